use proptest::prelude::*;
use serde_json::json;

use super::*;

fn decode(kind: &str, body: &str, strictness: Strictness) -> Result<Decoded, DecodeError> {
    let group = match kind {
        "StatefulSet" | "ControllerRevision" => "apps",
        "Lease" => "coordination",
        _ => "core",
    };
    Schema::get().decode(&format!("io.k8s.api.{group}.v1.{kind}"), body.as_bytes(), strictness)
}

fn error(kind: &str, body: &str) -> String {
    decode(kind, body, Strictness::Strict).unwrap_err().to_string()
}

fn value(kind: &str, body: &str) -> Value {
    decode(kind, body, Strictness::Strict).unwrap().value
}

#[test]
fn an_unknown_field_is_an_error_a_warning_or_nothing() {
    let body = r#"{"spec":{"foo":1,"template":{"spec":{"containers":[{},{"imag":"x"}]}}}}"#;
    assert_eq!(
        error("StatefulSet", body),
        r#"strict decoding error: unknown field "spec.foo", unknown field "spec.template.spec.containers[1].imag""#
    );
    let told = decode("StatefulSet", body, Strictness::Warn).unwrap();
    assert_eq!(
        told.warnings,
        [r#"unknown field "spec.foo""#, r#"unknown field "spec.template.spec.containers[1].imag""#]
    );
    let unsaid = decode("StatefulSet", body, Strictness::Ignore).unwrap();
    assert!(unsaid.warnings.is_empty());
    assert_eq!(unsaid.value, told.value);
    assert_eq!(unsaid.value, json!({"spec": {"template": {"spec": {"containers": [{}, {}]}}}}));
}

#[test]
fn repeated_fields_and_map_keys_are_told_and_the_last_one_counts() {
    let body = r#"{"dataa":[],"data":{"a":"1","a":"2"},"kind":"ConfigMap","kind":"ConfigMap",
        "metadata":{"labels":{"a":"x","a":""},"zz":1}}"#;
    let got = decode("ConfigMap", body, Strictness::Warn).unwrap();
    assert_eq!(
        got.warnings,
        [
            r#"unknown field "dataa""#,
            r#"duplicate field "data.a""#,
            r#"duplicate field "kind""#,
            r#"duplicate field "metadata.labels.a""#,
            r#"unknown field "metadata.zz""#,
        ]
    );
    assert_eq!(
        got.value,
        json!({"kind": "ConfigMap", "data": {"a": "2"}, "metadata": {"labels": {"a": ""}}})
    );
}

#[test]
fn a_problem_is_told_once_and_at_most_a_hundred_are() {
    let mut body = String::from("{");
    for i in 0..150 {
        body.push_str(&format!("\"f{i}\":1,\"f{i}\":1,"));
    }
    body.push_str("\"kind\":\"Pod\"}");
    assert_eq!(decode("Pod", &body, Strictness::Warn).unwrap().warnings.len(), 100);
}

#[test]
fn a_wrong_type_is_told_as_go_tells_it() {
    let cases = [
        (
            "StatefulSet",
            r#"{"spec":{"replicas":"x"}}"#,
            "string into Go struct field StatefulSetSpec.spec.replicas of type int32",
        ),
        (
            "StatefulSet",
            r#"{"spec":{"replicas":1.0}}"#,
            "number 1.0 into Go struct field StatefulSetSpec.spec.replicas of type int32",
        ),
        (
            "StatefulSet",
            r#"{"spec":{"replicas":3000000000}}"#,
            "number 3000000000 into Go struct field StatefulSetSpec.spec.replicas of type int32",
        ),
        (
            "StatefulSet",
            r#"{"spec":{"template":{"spec":{"containers":[{"image":5}]}}}}"#,
            "number into Go struct field Container.spec.template.spec.containers.image of type string",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"imagePullPolicy":true}]}}"#,
            "bool into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            "Pod",
            r#"{"spec":{"containers":[{"securityContext":{"capabilities":{"add":[1]}}}]}}"#,
            "number into Go struct field Capabilities.spec.containers.securityContext.capabilities.add of type v1.Capability",
        ),
        (
            "Pod",
            r#"{"metadata":{"creationTimestamp":5}}"#,
            "number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            "Service",
            r#"{"spec":{"ports":[{"targetPort":true}]}}"#,
            "bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
        ),
        (
            "Service",
            r#"{"spec":{"ports":[{"targetPort":1.5}]}}"#,
            "number 1.5 into Go struct field ServicePort.spec.ports.targetPort of type int32",
        ),
        (
            "Service",
            r#"{"spec":{"ports":"x"}}"#,
            "string into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort",
        ),
        (
            "Service",
            r#"{"spec":{"ports":["x"],"clusterIP":5}}"#,
            "string into Go struct field ServiceSpec.spec.ports of type v1.ServicePort",
        ),
        ("Service", r#"{"spec":[]}"#, "array into Go struct field Service.spec of type v1.ServiceSpec"),
        ("Service", "[]", "array into Go value of type v1.Service"),
        ("Service", "5", "number into Go value of type v1.Service"),
        ("Secret", r#"{"data":{"a":5}}"#, "number into Go struct field Secret.data of type []uint8"),
        ("ConfigMap", r#"{"data":{"a":5}}"#, "number into Go struct field ConfigMap.data of type string"),
        (
            "ConfigMap",
            r#"{"data":[]}"#,
            "array into Go struct field ConfigMap.data of type map[string]string",
        ),
    ];
    for (kind, body, expected) in cases {
        assert_eq!(error(kind, body), format!("json: cannot unmarshal {expected}"));
    }
    let refused = decode("StatefulSet", r#"{"spec":{"replicas":"x"}}"#, Strictness::Ignore).unwrap_err();
    assert_eq!(
        refused.bad_request("StatefulSet", "v1", "StatefulSet"),
        "StatefulSet in version \"v1\" cannot be handled as a StatefulSet: json: cannot unmarshal string into Go \
         struct field StatefulSetSpec.spec.replicas of type int32"
    );
}

#[test]
fn values_with_a_meaning_are_refused_in_the_words_of_their_parsers() {
    assert!(
        error("Pod", r#"{"metadata":{"creationTimestamp":"foo"}}"#).starts_with("parsing time \"foo\" as")
    );
    let quantities = "quantities must match the regular expression";
    for cpu in [r#""x""#, "true", "{}", "[]"] {
        let body = format!(
            r#"{{"spec":{{"containers":[{{"imagePullPolicy":5,"resources":{{"limits":{{"cpu":{cpu}}}}}}}]}}}}"#
        );
        assert!(error("Pod", &body).starts_with(quantities), "{cpu}");
    }
    assert_eq!(error("Secret", r#"{"data":{"a":"!!"}}"#), "illegal base64 data at input byte 0");
}

#[test]
fn what_is_read_is_what_kubernetes_would_write_again() {
    let got = value(
        "StatefulSet",
        r#"{"metadata":{"creationTimestamp":null,"labels":{}},
            "spec":{"replicas":0,"serviceName":"","template":{"spec":{
              "hostNetwork":false,"nodeSelector":{},"terminationGracePeriodSeconds":0,
              "volumes":[{"name":"d","emptyDir":{}}],
              "containers":[{"name":"","args":[],"resources":{"limits":{"memory":"1024Mi","cpu":0.5}},
                "ports":[{"containerPort":80,"hostPort":0}],"env":[{"name":"a","value":""}]}]}}}}"#,
    );
    assert_eq!(
        got,
        json!({
            "metadata": {},
            "spec": {"replicas": 0, "serviceName": "", "template": {"spec": {
                "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "d", "emptyDir": {}}],
                "containers": [{
                    "name": "", "ports": [{"containerPort": 80}], "env": [{"name": "a"}],
                    "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}},
                }],
            }}},
        })
    );
    assert_eq!(
        value(
            "Service",
            r#"{"spec":{"ports":[null,{"targetPort":"web"}],"externalIPs":[null]},"metadata":{"labels":{"a":null}}}"#
        ),
        json!({"spec": {"ports": [{}, {"targetPort": "web"}], "externalIPs": [""]}, "metadata": {"labels": {"a": ""}}})
    );
    assert_eq!(value("Pod", "null"), json!({}));
}

#[test]
fn free_form_values_stay_as_they_are() {
    let body = r#"{"data":{"spec":{"template":{"$patch":"replace","x":null,"y":[]}}},"revision":1}"#;
    assert_eq!(value("ControllerRevision", body), serde_json::from_str::<Value>(body).unwrap());
}

#[test]
fn what_is_no_json_is_refused_and_so_is_what_follows_it() {
    for body in ["", "{", "{\"a\"", "nonsense", "{} {}", "{\"spec\":}", "\u{0}"] {
        assert!(matches!(decode("Pod", body, Strictness::Ignore), Err(DecodeError::Syntax(_))), "{body}");
    }
    assert!(parse(b"{} x").is_err());
    let deep = "[".repeat(100_000);
    assert!(matches!(decode("Pod", &deep, Strictness::Ignore), Err(DecodeError::Syntax(_))));
    assert!(matches!(
        decode("ControllerRevision", &format!("{{\"data\":{deep}"), Strictness::Ignore),
        Err(DecodeError::Syntax(_))
    ));
    assert!(parse(deep.as_bytes()).is_err());
    let mut value = json!(1);
    for _ in 0..200 {
        value = json!([value]);
    }
    assert!(Schema::get().decode_value("io.k8s.api.core.v1.Pod", value, Strictness::Ignore).is_err());
}

#[test]
fn a_patch_tells_what_it_repeats() {
    let (value, repeated) = parse(br#"{"spec":{"a":1,"a":2},"list":[{"x":1,"x":1}]}"#).unwrap();
    assert_eq!(value, json!({"spec": {"a": 2}, "list": [{"x": 1}]}));
    assert_eq!(repeated, [r#"duplicate field "spec.a""#, r#"duplicate field "list[0].x""#]);
}

/// Values that hit the schema often: real field names, plausible and wrong values.
fn arbitrary(id: TypeId, depth: u32) -> BoxedStrategy<Value> {
    let scalar = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i16>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
        prop_oneof!["", "a", "80%", "1Gi", "500m", "2026-01-01T00:00:00Z", "YQ=="].prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
    ];
    if depth == 0 {
        return scalar.boxed();
    }
    let schema = Schema::get();
    let fields: Vec<Field> = schema.fields_of(id).collect();
    if fields.is_empty() {
        return scalar.boxed();
    }
    let field = proptest::sample::select(fields).prop_flat_map(move |field| {
        let mut shape = field.shape;
        let mut list = false;
        while let Shape::List(element) | Shape::Map(element) = shape {
            list |= matches!(shape, Shape::List(_));
            shape = schema.element(element);
        }
        let inner = match shape {
            Shape::Type(id) => arbitrary(id, depth - 1),
            _ => arbitrary(id, 0),
        };
        inner.prop_map(move |value| {
            let value = match (field.shape, list) {
                (Shape::List(_), _) => json!([value]),
                (Shape::Map(_), _) => json!({"k": value}),
                _ => value,
            };
            (field.name.to_owned(), value)
        })
    });
    proptest::collection::vec(field, 0..4).prop_map(|f| Value::Object(f.into_iter().collect())).boxed()
}

proptest! {
    #[test]
    fn decoding_is_idempotent_and_the_same_from_text_and_value(
        body in arbitrary(Schema::get().find_type("io.k8s.api.apps.v1.StatefulSet").unwrap(), 6)
    ) {
        let schema = Schema::get();
        let name = "io.k8s.api.apps.v1.StatefulSet";
        let from_text = schema.decode(name, body.to_string().as_bytes(), Strictness::Warn);
        let from_value = schema.decode_value(name, body, Strictness::Warn);
        prop_assert_eq!(&from_text, &from_value);
        if let Ok(first) = from_text {
            let second = schema.decode_value(name, first.value.clone(), Strictness::Strict).unwrap();
            prop_assert_eq!(first.value, second.value);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Schema::get().decode("io.k8s.api.core.v1.Pod", &body, Strictness::Strict);
        let _ = parse(&body);
    }
}

use std::collections::BTreeMap;

use prost::Message;

use super::*;

fn resource(group: &'static str, kind: &'static str, plural: &'static str, schema: &'static str) -> Resource {
    let namespaced = kind != "Node";
    let subresources = match kind {
        "StatefulSet" => vec![
            Subresource::Own("status"),
            Subresource::Other {
                name: "scale",
                group: "autoscaling",
                version: "v1",
                kind: "Scale",
                schema: "io.k8s.api.autoscaling.v1.Scale",
            },
        ],
        "Pod" => {
            vec![Subresource::Connect("log"), Subresource::Connect("exec"), Subresource::Connect("eviction")]
        }
        _ => Vec::new(),
    };
    Resource { group, version: "v1", kind, plural, namespaced, schema, subresources }
}

fn documents() -> OpenApi {
    OpenApi::new(
        Schema::get(),
        vec![
            resource("", "Pod", "pods", "io.k8s.api.core.v1.Pod"),
            resource("", "Node", "nodes", "io.k8s.api.core.v1.Node"),
            resource("", "Secret", "secrets", "io.k8s.api.core.v1.Secret"),
            resource("apps", "StatefulSet", "statefulsets", "io.k8s.api.apps.v1.StatefulSet"),
        ],
    )
}

fn v3(path: &str) -> Value {
    serde_json::from_slice(&documents().v3(path).unwrap()).unwrap()
}

/// Every `$ref` below a value.
fn references(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(to)) = map.get("$ref") {
                out.insert(to.clone());
            }
            map.values().for_each(|v| references(v, out));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

fn parameters(operation: &Value) -> Vec<&str> {
    operation["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect()
}

#[test]
fn the_index_has_a_document_a_group_version() {
    let index: Value = serde_json::from_slice(&documents().v3_index()).unwrap();
    let paths: Vec<&String> = index["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["api/v1", "apis/apps/v1"]);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(url, format!("/openapi/v3/apis/apps/v1?hash={}", documents().etag()));
    assert!(documents().v3("apis/batch/v1").is_none());
}

#[test]
fn every_reference_leads_to_a_definition_and_every_definition_is_referred_to() {
    for document in [v3("api/v1"), v3("apis/apps/v1")] {
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let defined: BTreeSet<String> = schemas.keys().map(|k| format!("#/components/schemas/{k}")).collect();
        assert_eq!(found, defined);
    }
    let v2: Value = serde_json::from_slice(&documents().v2_json()).unwrap();
    let mut found = BTreeSet::new();
    references(&v2, &mut found);
    let defined: BTreeSet<String> =
        v2["definitions"].as_object().unwrap().keys().map(|k| format!("#/definitions/{k}")).collect();
    assert_eq!(found, defined);
}

#[test]
fn patch_knows_field_validation_and_strategic_merge() {
    let document = v3("apis/apps/v1");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"]["patch"];
    let gvk = json!({"group": "apps", "kind": "StatefulSet", "version": "v1"});
    assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
    assert!(parameters(patch).contains(&"fieldValidation"));
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    let set = &document["components"]["schemas"]["io.k8s.api.apps.v1.StatefulSet"];
    assert_eq!(set["x-kubernetes-group-version-kind"], json!([gvk]));
}

#[test]
fn subresources_are_of_the_kind_they_speak() {
    let document = v3("apis/apps/v1");
    let paths = &document["paths"];
    let at = |sub: &str, method: &str| {
        let path = format!("/apis/apps/v1/namespaces/{{namespace}}/statefulsets/{{name}}/{sub}");
        paths[path][method]["x-kubernetes-group-version-kind"]["kind"].clone()
    };
    assert_eq!(at("scale", "put"), "Scale");
    assert_eq!(at("status", "patch"), "StatefulSet");
    let core = v3("api/v1");
    let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
    assert_eq!(
        core["paths"][format!("{pod}/eviction")]["post"]["x-kubernetes-group-version-kind"]["kind"],
        "Eviction"
    );
    assert!(core["paths"][format!("{pod}/log")]["get"].is_object());
    assert!(core["paths"][format!("{pod}/exec")]["post"].is_object());
    assert!(core["paths"]["/api/v1/nodes/{name}"]["get"].is_object());
    assert!(core["paths"]["/api/v1/namespaces/{namespace}/nodes"].is_null());
}

#[test]
fn operations_have_names_of_their_own() {
    let mut names = BTreeSet::new();
    let mut count = 0;
    for document in [v3("api/v1"), v3("apis/apps/v1")] {
        for item in document["paths"].as_object().unwrap().values() {
            for operation in item.as_object().unwrap().values().filter(|o| o.is_object()) {
                names.insert(operation["operationId"].as_str().unwrap().to_owned());
                count += 1;
            }
        }
    }
    assert_eq!(names.len(), count);
    assert!(names.contains("createAppsV1NamespacedStatefulSet"));
}

#[test]
fn fields_say_how_they_are_merged_and_what_they_may_be() {
    let core = v3("api/v1");
    let spec = &core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(spec["required"], json!(["containers"]));
    let containers = &spec["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(spec["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert_eq!(spec["properties"]["restartPolicy"]["enum"], json!(["Always", "Never", "OnFailure"]));
    let reference = &spec["properties"]["securityContext"];
    assert_eq!(reference["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSecurityContext");
    assert!(reference["description"].is_string());
}

/// The part of gnostic's openapi.v2.Document that the test looks at, with the tags of its .proto.
mod gnostic {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Document {
        #[prost(string, tag = "1")]
        pub swagger: String,
        #[prost(message, optional, tag = "8")]
        pub paths: Option<Paths>,
        #[prost(message, optional, tag = "9")]
        pub definitions: Option<Definitions>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Paths {
        #[prost(message, repeated, tag = "2")]
        pub path: Vec<NamedPathItem>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NamedPathItem {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<PathItem>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PathItem {
        #[prost(message, optional, tag = "8")]
        pub patch: Option<Operation>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Operation {
        #[prost(string, tag = "5")]
        pub operation_id: String,
        #[prost(message, repeated, tag = "8")]
        pub parameters: Vec<ParametersItem>,
        #[prost(message, repeated, tag = "13")]
        pub vendor_extension: Vec<NamedAny>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ParametersItem {
        #[prost(message, optional, tag = "1")]
        pub parameter: Option<Parameter>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Parameter {
        #[prost(message, optional, tag = "2")]
        pub non_body_parameter: Option<NonBodyParameter>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NonBodyParameter {
        #[prost(message, optional, tag = "3")]
        pub query: Option<Query>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Query {
        #[prost(string, tag = "4")]
        pub name: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NamedAny {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<Any>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Any {
        #[prost(string, tag = "2")]
        pub yaml: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Definitions {
        #[prost(message, repeated, tag = "1")]
        pub additional_properties: Vec<NamedSchema>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct NamedSchema {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<Schema>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Schema {
        #[prost(string, tag = "1")]
        pub reference: String,
        #[prost(string, tag = "4")]
        pub description: String,
        #[prost(message, optional, tag = "25")]
        pub properties: Option<Definitions>,
        #[prost(message, repeated, tag = "31")]
        pub vendor_extension: Vec<NamedAny>,
    }
}

#[test]
fn the_protobuf_document_says_the_same() {
    let v2: Value = serde_json::from_slice(&documents().v2_json()).unwrap();
    let document = gnostic::Document::decode(documents().v2_protobuf().as_slice()).unwrap();
    assert_eq!(document.swagger, "2.0");
    let paths: BTreeMap<String, gnostic::PathItem> =
        document.paths.unwrap().path.into_iter().map(|p| (p.name, p.value.unwrap())).collect();
    assert!(paths.keys().eq(v2["paths"].as_object().unwrap().keys()));

    let patch = paths["/api/v1/namespaces/{namespace}/pods/{name}"].patch.clone().unwrap();
    assert_eq!(patch.operation_id, "patchCoreV1NamespacedPod");
    let names: Vec<String> = patch
        .parameters
        .into_iter()
        .filter_map(|p| p.parameter?.non_body_parameter?.query)
        .map(|q| q.name)
        .collect();
    assert!(names.contains(&"fieldValidation".to_owned()));
    let gvk = patch.vendor_extension.iter().find(|e| e.name == "x-kubernetes-group-version-kind").unwrap();
    let gvk: Value = serde_json::from_str(&gvk.value.clone().unwrap().yaml).unwrap();
    assert_eq!(gvk, json!({"group": "", "kind": "Pod", "version": "v1"}));

    let definitions = document.definitions.unwrap().additional_properties;
    assert!(definitions.iter().map(|d| &d.name).eq(v2["definitions"].as_object().unwrap().keys()));
    for definition in definitions {
        let expected = &v2["definitions"][&definition.name];
        let schema = definition.value.unwrap();
        assert_eq!(schema.description, expected["description"].as_str().unwrap_or_default());
        let fields = schema.properties.map(|p| p.additional_properties).unwrap_or_default();
        for field in &fields {
            let expected = &expected["properties"][&field.name];
            let field = field.value.clone().unwrap();
            assert_eq!(field.reference, expected["$ref"].as_str().unwrap_or_default());
        }
        assert_eq!(fields.len(), expected["properties"].as_object().map_or(0, |p| p.len()));
    }
}

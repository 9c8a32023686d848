//! Service: a name for pods, and an address. What it holds (its address, its node ports) is given to it where
//! it is written, by [`crate::services::allocate`].

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{
    self, At, Errors, Unique, invalid_each, label_name, one_of, one_of_if_set, port_number,
    port_number_or_name,
};
use super::columns::{self, labels, list, or, text};
use super::{Kind, NameRule, Subresource, default, names, pod_spec};
use crate::field::FieldError;

pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Service",
    subresources: &[Subresource::Status],
    name_rule: NameRule::Label1035,
    has_status: true,
    default: defaults,
    prepare_create: |service| {
        if let Some(service) = service.as_object_mut() {
            service.insert("status".into(), json!({"loadBalancer": {}}));
        }
    },
    prepare_update: |old, new| {
        keep_allocated(old, new);
        drop_what_the_type_has_not(old, new);
    },
    validate: |service| validate_spec(&At::root(service).get("spec")),
    validate_update,
    columns: &[
        columns::NAME,
        text("Type", "How the service is reached.", |service, _| or(&service["spec"]["type"], "")),
        text("Cluster-IP", "The service's address inside.", |service, _| {
            let spec = &service["spec"];
            columns::or_none(list(&spec["clusterIPs"]).first().unwrap_or(&spec["clusterIP"]))
        }),
        text("External-IP", "The service's address outside.", |service, _| external_ip(service).into()),
        text("Port(s)", "The service's ports.", |service, _| ports(&service["spec"]["ports"]).into()),
        columns::AGE,
        text("Selector", "Labels of the pods behind the service.", |service, _| {
            labels(&service["spec"]["selector"])
        })
        .wide(),
    ],
    warnings: |service| {
        let spec = &service["spec"];
        let mut warnings = Vec::new();
        if spec["type"] == "LoadBalancer" {
            warnings.push(
                "spec.type: Berth has no load balancer to offer: the service is reached at its node ports, and its \
                 external address stays pending"
                    .to_owned(),
            );
        }
        if spec["trafficDistribution"].is_string() {
            warnings.push("spec.trafficDistribution: no preference is given to any endpoint yet".to_owned());
        }
        warnings
    },
    ..Kind::COMMON
};

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None"
}

fn defaults(service: &mut Value) {
    let spec = default::map(service, "spec");
    default::if_zero(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        let config = default::map(default::map(spec, "sessionAffinityConfig"), "clientIP");
        default::if_absent(config, "timeoutSeconds", 10_800);
    } else if spec["sessionAffinity"] == "None"
        && let Some(spec) = spec.as_object_mut()
    {
        spec.remove("sessionAffinityConfig");
    }
    default::if_zero(spec, "type", "ClusterIP");
    for port in default::each(spec, "ports") {
        default::if_zero(port, "protocol", "TCP");
        let number = port["port"].clone();
        default::if_zero(port, "targetPort", number);
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default::if_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default::if_absent(spec, "allocateLoadBalancerNodePorts", true);
    }
    if kind != "ExternalName" {
        default::if_absent(spec, "internalTrafficPolicy", "Cluster");
        default::if_absent(spec, "ipFamilyPolicy", "SingleStack");
        default::if_zero(spec, "ipFamilies", json!(["IPv4"]));
        // The two ways to say it agree; the older one wins.
        let address = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
        if !address.is_empty() {
            default::if_zero(spec, "clusterIPs", json!([address]));
        } else if let Some(first) = list(&spec["clusterIPs"]).first().cloned() {
            default::if_zero(spec, "clusterIP", first);
        }
    }
}

fn has_address(service: &Value) -> bool {
    service["spec"]["type"] != "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer"))
}

/// An update that names no address and no node ports keeps those allocated.
fn keep_allocated(old: &Value, new: &mut Value) {
    if has_address(old) && has_address(new) {
        let spec = default::map(new, "spec");
        if check::is_zero(&spec["clusterIP"]) && !check::is_zero(&old["spec"]["clusterIP"]) {
            for field in ["clusterIP", "clusterIPs"] {
                default::copy(&old["spec"], spec, field);
            }
        }
    }
    if !has_node_ports(old) || !has_node_ports(new) {
        return;
    }
    // By name, as Kubernetes does: everything else of a port may have been changed. One that the new service
    // says itself is not given to another of its ports.
    let said: Vec<Value> = list(&new["spec"]["ports"]).iter().map(|p| p["nodePort"].clone()).collect();
    let before: Vec<(Value, Value)> =
        list(&old["spec"]["ports"]).iter().map(|p| (p["name"].clone(), p["nodePort"].clone())).collect();
    for port in default::each(default::map(new, "spec"), "ports") {
        if !check::is_zero(&port["nodePort"]) {
            continue;
        }
        let kept = before.iter().find(|(name, number)| *name == port["name"] && !said.contains(number));
        if let Some((_, number)) = kept.filter(|(_, number)| !check::is_zero(number)) {
            port["nodePort"] = number.clone();
        }
    }
}

/// What belonged to the old type goes with it, unless the client has said it anew.
fn drop_what_the_type_has_not(old: &Value, new: &mut Value) {
    let spec = |object: &Value, field: &str| object["spec"][field].clone();
    let mut gone: Vec<&str> = Vec::new();
    if has_address(old) && !has_address(new) && spec(old, "clusterIP") == spec(new, "clusterIP") {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let numbers = |object: &Value| -> Vec<Value> {
            list(&object["spec"]["ports"]).iter().map(|p| p["nodePort"].clone()).collect()
        };
        if numbers(old) == numbers(new) {
            for port in default::each(default::map(new, "spec"), "ports") {
                port.as_object_mut().map(|port| port.remove("nodePort"));
            }
        }
        let outside = !list(&new["spec"]["externalIPs"]).is_empty();
        if !outside && spec(old, "externalTrafficPolicy") == spec(new, "externalTrafficPolicy") {
            gone.push("externalTrafficPolicy");
        }
    }
    if old["spec"]["type"] == "LoadBalancer" && new["spec"]["type"] != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec(old, field) == spec(new, field) {
                gone.push(field);
            }
        }
    }
    if let Some(spec) = default::map(new, "spec").as_object_mut() {
        gone.into_iter().for_each(|field| drop(spec.remove(field)));
    }
}

fn external_ip(service: &Value) -> String {
    let spec = &service["spec"];
    let ingress = list(&service["status"]["loadBalancer"]["ingress"]).iter();
    let given = ingress.filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str()));
    let external = list(&spec["externalIPs"]).iter().filter_map(Value::as_str);
    match spec["type"].as_str().unwrap_or_default() {
        "ExternalName" => spec["externalName"].as_str().unwrap_or_default().to_owned(),
        "LoadBalancer" => match columns::joined(given.chain(external)) {
            none if none.is_empty() => "<pending>".into(),
            some => some,
        },
        _ => match columns::joined(external) {
            none if none.is_empty() => "<none>".into(),
            some => some,
        },
    }
}

fn ports(ports: &Value) -> String {
    let shown: Vec<String> = list(ports)
        .iter()
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64().unwrap_or_default() {
                0 => format!("{}/{protocol}", port["port"]),
                node => format!("{}:{node}/{protocol}", port["port"]),
            }
        })
        .collect();
    if shown.is_empty() { "<none>".into() } else { shown.join(",") }
}

/// All fields but those that only a cloud's load balancer could honour.
const SUPPORTED: &[&str] = &[
    "ports",
    "selector",
    "clusterIP",
    "clusterIPs",
    "type",
    "externalIPs",
    "sessionAffinity",
    "sessionAffinityConfig",
    "externalName",
    "externalTrafficPolicy",
    "internalTrafficPolicy",
    "publishNotReadyAddresses",
    "ipFamilyPolicy",
    "ipFamilies",
    "allocateLoadBalancerNodePorts",
    "loadBalancerClass",
    "trafficDistribution",
];

fn validate_spec(spec: &At) -> Errors {
    let mut errors = check::only_supported(spec, SUPPORTED);
    let (kind, ports) = (spec.get("type"), spec.get("ports"));
    let headless = is_headless(spec.value);
    if ports.is_empty() && !headless && kind.str() != "ExternalName" {
        errors.push(ports.required(""));
    }
    errors.extend(one_of(&kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    match kind.str() {
        "LoadBalancer" | "NodePort" if headless => errors.push(FieldError::invalid(
            &spec.get("clusterIPs").path.index(0),
            "None",
            format!("may not be set to 'None' for {} services", kind.str()),
        )),
        "ExternalName" => errors.extend(external_name(spec)),
        _ => errors.extend(addresses(spec)),
    }
    errors.extend(validate_ports(&ports, kind.str()));
    errors.extend(check::labels(&spec.get("selector")));
    errors.extend(affinity(spec));
    for ip in spec.get("externalIPs").items() {
        errors.extend(super::endpoints::ip(&ip));
    }
    errors.extend(traffic(spec));
    errors
}

fn external_name(spec: &At) -> Errors {
    let mut errors = Errors::new();
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let at = spec.get(field);
        if !at.is_zero() {
            errors.push(at.forbidden("may not be set for ExternalName services"));
        }
    }
    let name = spec.get("externalName");
    let host = name.str().strip_suffix('.').unwrap_or(name.str());
    if host.is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(invalid_each(&name, names::subdomain(host)));
    }
    errors
}

fn addresses(spec: &At) -> Errors {
    let (one, all) = (spec.get("clusterIP"), spec.get("clusterIPs"));
    let mut errors = Errors::new();
    let first = all.items().next();
    if first.as_ref().is_some_and(|first| first.str() != one.str()) {
        errors.push(all.invalid("first value must match `clusterIP`"));
    }
    for ip in all.items().filter(|ip| ip.str() != "None") {
        errors.extend(pod_spec::ip(&ip));
    }
    if all.len() > 1 {
        if all.items().any(|ip| ip.str() == "None") {
            errors.push(all.invalid("'None' must be the first and only value"));
        } else {
            errors.push(check::unsupported(&all));
        }
    }
    for family in spec.get("ipFamilies").items().filter(|f| f.str() != "IPv4") {
        errors.push(match family.str() {
            "IPv6" => check::unsupported(&family),
            _ => family.not_supported(&["IPv4", "IPv6"]),
        });
    }
    let policy = spec.get("ipFamilyPolicy");
    errors.extend(one_of_if_set(&policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]));
    if policy.str() == "RequireDualStack" {
        errors.push(check::unsupported(&policy));
    }
    errors
}

fn validate_ports(ports: &At, kind: &str) -> Errors {
    let mut errors = Errors::new();
    let mut names = Unique::default();
    let mut seen = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for port in ports.items() {
        let [name, number, protocol, target, node] =
            ["name", "port", "protocol", "targetPort", "nodePort"].map(|field| port.get(field));
        if ports.len() > 1 && name.str().is_empty() {
            errors.push(name.required(""));
        } else if !name.str().is_empty() {
            errors.extend(label_name(&name));
            errors.extend(names.check(&name));
        }
        errors.extend(port_number(&number));
        errors.extend(one_of(&protocol, &["SCTP", "TCP", "UDP"]));
        errors.extend(port_number_or_name(&target));
        let application = port.get("appProtocol");
        if application.is_set() {
            errors.extend(invalid_each(&application, names::qualified(application.str())));
        }
        if kind == "ClusterIP" && !node.is_zero() {
            errors.push(node.forbidden("may not be used when `type` is 'ClusterIP'"));
        }
        if !node.is_zero() && !node_ports.insert((protocol.str(), node.int())) {
            errors.push(node.duplicate());
        }
        if !seen.insert((protocol.str(), number.int())) {
            let twice = json!({"protocol": protocol.value, "port": number.value});
            errors.push(FieldError::duplicate(&port.path, twice));
        }
    }
    errors
}

fn affinity(spec: &At) -> Errors {
    const MAX: i64 = 86_400;
    let (affinity, config) = (spec.get("sessionAffinity"), spec.get("sessionAffinityConfig"));
    let mut errors: Errors = one_of(&affinity, &["ClientIP", "None"]).into_iter().collect();
    match affinity.str() {
        "ClientIP" => {
            let timeout = config.get("clientIP").get("timeoutSeconds");
            if !timeout.int().is_some_and(|n| (1..=MAX).contains(&n)) {
                errors.push(timeout.invalid(format!("must be greater than 0 and less than {MAX}")));
            }
        }
        "None" if config.is_set() => {
            errors.push(config.forbidden("must not be set when session affinity is None"));
        }
        _ => {}
    }
    errors
}

fn traffic(spec: &At) -> Errors {
    const POLICIES: &[&str] = &["Cluster", "Local"];
    let mut errors = Errors::new();
    let (external, internal) = (spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy"));
    let outside =
        matches!(spec.get("type").str(), "NodePort" | "LoadBalancer") || !spec.get("externalIPs").is_empty();
    if !external.str().is_empty() && !outside {
        errors.push(external.invalid("may only be set for externally-accessible services"));
    } else {
        errors.extend(one_of_if_set(&external, POLICIES));
    }
    errors.extend(one_of_if_set(&internal, POLICIES));
    let distribution = spec.get("trafficDistribution");
    errors.extend(one_of_if_set(&distribution, &["PreferClose", "PreferSameNode", "PreferSameZone"]));
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        let at = spec.get(field);
        if at.is_set() && spec.get("type").str() != "LoadBalancer" {
            errors.push(at.forbidden("may only be used when `type` is 'LoadBalancer'"));
        }
    }
    let class = spec.get("loadBalancerClass");
    if !class.str().is_empty() {
        errors.extend(invalid_each(&class, names::qualified(class.str())));
    }
    errors
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old).get("spec"), At::root(new).get("spec"));
    if [&old, &new].iter().any(|spec| spec.get("type").str() == "ExternalName") {
        return Errors::new();
    }
    let (before, after) = (old.get("clusterIP"), new.get("clusterIP"));
    if before.str().is_empty() || before.str() == after.str() {
        return Errors::new();
    }
    let all = new.get("clusterIPs");
    vec![FieldError::invalid(&all.path.index(0), json!([after.value]), "may not change once set")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        defaults(&mut service);
        service
    }

    fn errors(spec: Value) -> Vec<String> {
        (SERVICE.validate)(&service(spec)).iter().map(ToString::to_string).collect()
    }

    fn row(service: &Value) -> Vec<Value> {
        let cell = |i: usize| (SERVICE.columns[i].cell)(service, jiff::Timestamp::UNIX_EPOCH);
        [1, 2, 3, 4, 6].map(cell).into()
    }

    #[test]
    fn a_headless_service_stays_headless() {
        let service = service(
            json!({"clusterIP": "None", "selector": {"app": "nginx"}, "ports": [{"port": 80, "name": "web"}]}),
        );
        assert_eq!((SERVICE.validate)(&service), []);
        assert_eq!(service["spec"]["clusterIPs"], json!(["None"]));
        assert_eq!(
            service["spec"]["ports"][0],
            json!({"port": 80, "name": "web", "protocol": "TCP", "targetPort": 80})
        );
        assert_eq!(row(&service), ["ClusterIP", "None", "<none>", "80/TCP", "app=nginx"]);
    }

    #[test]
    fn a_service_without_an_address_yet_is_valid_and_keeps_the_one_it_gets() {
        let plain = service(json!({"ports": [{"port": 6379}]}));
        assert_eq!((SERVICE.validate)(&plain), []);
        assert_eq!(row(&plain)[1], "<none>");
        let mut old = plain.clone();
        old["spec"]["clusterIP"] = "10.43.0.5".into();
        old["spec"]["clusterIPs"] = json!(["10.43.0.5"]);
        let mut new = plain;
        keep_allocated(&old, &mut new);
        assert_eq!(new, old);
        new["spec"]["clusterIP"] = "None".into();
        assert_eq!(
            validate_update(&old, &new)[0].to_string(),
            r#"spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set"#
        );
    }

    #[test]
    fn ports_are_there_named_and_different() {
        assert_eq!(errors(json!({})), ["spec.ports: Required value"]);
        assert_eq!(
            errors(json!({"ports": [{"port": 80}, {"port": 80, "name": "b"}]})),
            [
                "spec.ports[0].name: Required value",
                r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#
            ]
        );
        assert_eq!(
            errors(json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]})),
            [r#"spec.ports[1].name: Duplicate value: "a""#]
        );
        assert_eq!(
            errors(json!({"ports": [{"port": 0}]})),
            [
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }

    #[test]
    fn a_load_balancer_is_reached_at_its_node_ports_and_says_so() {
        let service = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        assert_eq!((SERVICE.validate)(&service), []);
        assert_eq!((SERVICE.warnings)(&service).len(), 1);
        assert_eq!(row(&service)[2], "<pending>");
    }

    #[test]
    fn what_only_a_load_balancer_could_honour_is_refused() {
        let refused =
            errors(json!({"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerIP": "192.0.2.1",
            "loadBalancerSourceRanges": ["192.0.2.0/24"], "healthCheckNodePort": 30100}));
        assert_eq!(refused.len(), 3);
        assert!(refused.iter().all(|e| e.ends_with("not supported by Berth yet")), "{refused:?}");
    }

    #[test]
    fn node_ports_are_kept_by_name_and_go_with_the_type() {
        let old = service(json!({"type": "NodePort", "clusterIP": "10.43.0.5", "ports": [
            {"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]}));
        let update = |spec: Value| {
            let mut new = service(spec);
            (SERVICE.prepare_update)(&old, &mut new);
            new
        };
        let kept = update(
            json!({"type": "NodePort", "ports": [{"name": "b", "port": 91}, {"name": "c", "port": 92}]}),
        );
        assert_eq!(kept["spec"]["ports"][0]["nodePort"], 30002);
        assert_eq!(kept["spec"]["ports"][1]["nodePort"], Value::Null);
        assert_eq!(kept["spec"]["clusterIP"], "10.43.0.5");

        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        (SERVICE.prepare_update)(&old, &mut plain);
        assert_eq!((SERVICE.validate)(&plain), []);
        assert!(plain["spec"]["ports"][0]["nodePort"].is_null());

        let mut alias = old.clone();
        alias["spec"]["type"] = json!("ExternalName");
        alias["spec"]["externalName"] = json!("db.example.org");
        (SERVICE.prepare_update)(&old, &mut alias);
        assert_eq!((SERVICE.validate)(&alias), []);
        assert!(alias["spec"]["clusterIP"].is_null());
    }
}

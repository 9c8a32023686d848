//! What stands behind a service, as the objects that clients of the API read: one Endpoints, and as many
//! EndpointSlices as it takes. The rules are Kubernetes' own (pkg/controller/endpoint, pkg/controller/endpointslice).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::backing::{Backend, BackendPort};
use super::service::Service;
use super::{
    ENDPOINTS_KEEPER, ENDPOINTS_MANAGED_BY, HEADLESS, MANAGED_BY, MOST_ENDPOINTS, SERVICE_NAME, SLICE_KEEPER,
};

/// What may not be more than so many addresses says so here.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The Endpoints of a service; `labels` are the service's own.
pub fn endpoints(service: &Service, labels: &Value, backends: &[Backend]) -> Value {
    let mut labels = copied(labels);
    labels.insert(ENDPOINTS_MANAGED_BY.into(), ENDPOINTS_KEEPER.into());
    if service.headless {
        labels.insert(HEADLESS.into(), "".into());
    }
    let (namespace, name) = &service.name;
    let mut metadata = json!({"name": name, "namespace": namespace, "labels": labels});
    // Whoever ends is not listed, but among those who are listed whatever their state.
    let listed = |b: &&Backend| !b.terminating || service.publish_not_ready;
    let with_ports = |b: &&Backend| !b.ports.is_empty() || service.ports.is_empty();
    let mut all: Vec<&Backend> = backends.iter().filter(listed).filter(with_ports).collect();
    if all.len() > MOST_ENDPOINTS {
        metadata["annotations"] = json!({OVER_CAPACITY: "truncated"});
        all.sort_by_key(|b| !b.ready);
        all.truncate(MOST_ENDPOINTS);
    }
    let mut subsets: BTreeMap<&[BackendPort], [Vec<Value>; 2]> = BTreeMap::new();
    for backend in all {
        let Some(ip) = backend.addresses.first() else { continue };
        let mut address = json!({
            "ip": ip, "nodeName": backend.node, "targetRef": reference(namespace, backend),
        });
        if !backend.hostname.is_empty() {
            address["hostname"] = backend.hostname.as_str().into();
        }
        let state = usize::from(!(service.publish_not_ready || backend.serving));
        subsets.entry(backend.ports.as_slice()).or_default()[state].push(address);
    }
    let subsets: Vec<Value> = subsets
        .into_iter()
        .map(|(ports, [ready, not_ready])| {
            let mut subset = Map::new();
            for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
                if !addresses.is_empty() {
                    subset.insert(field.into(), addresses.into());
                }
            }
            if !ports.is_empty() {
                subset.insert("ports".into(), ports.iter().map(|p| port(p, false)).collect());
            }
            subset.into()
        })
        .collect();
    let mut made = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata});
    if !subsets.is_empty() {
        made["subsets"] = subsets.into();
    }
    made
}

/// The EndpointSlices of a service, by name. A service with nobody behind it has one that is empty, as in
/// Kubernetes: clients that wait for it see it.
pub fn slices(service: &Service, labels: &Value, backends: &[Backend]) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<(bool, &[BackendPort]), Vec<&Backend>> = BTreeMap::new();
    for backend in backends {
        let six = backend.addresses.first().is_some_and(|a| a.contains(':'));
        groups.entry((six, backend.ports.as_slice())).or_default().push(backend);
    }
    if groups.is_empty() {
        groups.insert((false, &[]), Vec::new());
    }
    let mut labels = copied(labels);
    labels.insert(MANAGED_BY.into(), SLICE_KEEPER.into());
    labels.insert(SERVICE_NAME.into(), service.name.1.as_str().into());
    if service.headless {
        labels.insert(HEADLESS.into(), "".into());
    }
    let mut made = BTreeMap::new();
    for ((six, ports), group) in groups {
        let parts: Vec<&[&Backend]> =
            if group.is_empty() { vec![&[]] } else { group.chunks(MOST_ENDPOINTS).collect() };
        for (index, part) in parts.into_iter().enumerate() {
            let name = slice_name(service, six, ports, index);
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": name, "generateName": format!("{}-", service.name.1),
                    "namespace": service.name.0, "labels": labels,
                    "ownerReferences": [{
                        "apiVersion": "v1", "kind": "Service", "name": service.name.1, "uid": service.uid,
                        "controller": true, "blockOwnerDeletion": true,
                    }],
                },
                "addressType": if six { "IPv6" } else { "IPv4" },
                "endpoints": part.iter().map(|b| endpoint(&service.name.0, b)).collect::<Vec<_>>(),
                "ports": ports.iter().map(|p| port(p, true)).collect::<Vec<_>>(),
            });
            made.insert(name, slice);
        }
    }
    made
}

fn endpoint(namespace: &str, backend: &Backend) -> Value {
    let mut endpoint = json!({
        "addresses": backend.addresses,
        "conditions": {
            "ready": backend.ready, "serving": backend.serving, "terminating": backend.terminating,
        },
        "nodeName": backend.node,
        "targetRef": reference(namespace, backend),
    });
    if !backend.hostname.is_empty() {
        endpoint["hostname"] = backend.hostname.as_str().into();
    }
    endpoint
}

fn reference(namespace: &str, backend: &Backend) -> Value {
    json!({"kind": "Pod", "namespace": namespace, "name": backend.pod, "uid": backend.uid})
}

/// `always_named`: a port without a name is named "" rather than not at all.
fn port(port: &BackendPort, always_named: bool) -> Value {
    let mut made = json!({"port": port.port, "protocol": port.protocol});
    if always_named || !port.name.is_empty() {
        made["name"] = port.name.as_str().into();
    }
    if let Some(application) = &port.app_protocol {
        made["appProtocol"] = application.as_str().into();
    }
    made
}

/// The same for the same ports, so that a slice is changed rather than replaced.
fn slice_name(service: &Service, six: bool, ports: &[BackendPort], index: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(format!("{} {six} {ports:?} {index}", service.uid));
    let suffix = digest.iter().take(5).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()]));
    let base: String = service.name.1.chars().take(57).collect();
    format!("{base}-{}", suffix.collect::<String>())
}

/// A service's labels, but those that say who keeps an object and whose it is.
fn copied(labels: &Value) -> Map<String, Value> {
    const OWN: [&str; 4] = [MANAGED_BY, SERVICE_NAME, HEADLESS, ENDPOINTS_MANAGED_BY];
    let mut labels = labels.as_object().cloned().unwrap_or_default();
    labels.retain(|key, _| !OWN.contains(&key.as_str()));
    labels
}

#[cfg(test)]
mod tests {
    use super::super::backing::Backing;
    use super::*;

    fn service(more: Value) -> Service {
        let mut object = json!({"metadata": {"namespace": "d", "name": "web", "uid": "s"}, "spec": {
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}]}});
        for (field, value) in more.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        Service::of(&object)
    }

    fn pod(name: &str, ready: bool, more: Value) -> Value {
        let mut pod = json!({
            "metadata": {"namespace": "d", "name": name, "uid": format!("u-{name}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web",
                     "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        for (field, value) in more.as_object().unwrap() {
            pod[field] = value.clone();
        }
        pod
    }

    fn backend(service: &Service, pod: &Value, ip: &str) -> Option<Backend> {
        let given: Vec<String> = Some(ip.to_owned()).filter(|ip| !ip.is_empty()).into_iter().collect();
        Backing::of(pod).behind(service, crate::object::name(pod), &given)
    }

    #[test]
    fn endpoints_tell_ready_pods_from_those_that_are_not() {
        let service = service(json!({}));
        let pods = [pod("web-0", true, json!({})), pod("web-1", false, json!({}))];
        let backends: Vec<_> = pods
            .iter()
            .zip(["10.0.0.2", "10.0.0.3"])
            .filter_map(|(p, ip)| backend(&service, p, ip))
            .collect();
        let made = endpoints(&service, &json!({"team": "x"}), &backends);
        assert_eq!(
            made["subsets"],
            json!([{
                "addresses": [{"ip": "10.0.0.2", "nodeName": "n1", "hostname": "web-0",
                    "targetRef": {"kind": "Pod", "namespace": "d", "name": "web-0", "uid": "u-web-0"}}],
                "notReadyAddresses": [{"ip": "10.0.0.3", "nodeName": "n1", "hostname": "web-1",
                    "targetRef": {"kind": "Pod", "namespace": "d", "name": "web-1", "uid": "u-web-1"}}],
                "ports": [{"port": 8080, "protocol": "TCP"}],
            }])
        );
        assert_eq!(
            made["metadata"]["labels"],
            json!({"team": "x", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
        );
    }

    #[test]
    fn a_slice_says_ready_serving_and_terminating() {
        let service = service(json!({"clusterIP": "None"}));
        let ending = json!({"namespace": "d", "name": "web-1", "uid": "u", "deletionTimestamp": "x"});
        let pods = [pod("web-0", false, json!({})), pod("web-1", true, json!({"metadata": ending}))];
        let backends: Vec<_> = pods
            .iter()
            .zip(["10.0.0.2", "10.0.0.3"])
            .filter_map(|(p, ip)| backend(&service, p, ip))
            .collect();
        let made = slices(&service, &Value::Null, &backends);
        let slice = made.values().next().unwrap();
        assert_eq!(made.len(), 1);
        let conditions: Vec<&Value> =
            slice["endpoints"].as_array().unwrap().iter().map(|e| &e["conditions"]).collect();
        assert_eq!(
            conditions,
            [
                &json!({"ready": false, "serving": false, "terminating": false}),
                &json!({"ready": false, "serving": true, "terminating": true}),
            ]
        );
        assert_eq!(slice["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
        assert_eq!(slice["metadata"]["labels"]["service.kubernetes.io/headless"], "");
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "s");
        assert_eq!(slices(&service, &Value::Null, &backends), made, "names do not change");
        // Endpoints do not list who ends.
        let listed = endpoints(&service, &Value::Null, &backends);
        assert_eq!(listed["subsets"][0]["addresses"], Value::Null);
    }

    #[test]
    fn all_are_ready_where_addresses_are_published_in_any_state() {
        let service = service(json!({"publishNotReadyAddresses": true}));
        let backends: Vec<_> =
            backend(&service, &pod("web-0", false, json!({})), "10.0.0.2").into_iter().collect();
        assert!(backends[0].ready && !backends[0].serving);
        assert!(endpoints(&service, &Value::Null, &backends)["subsets"][0]["notReadyAddresses"].is_null());
    }

    #[test]
    fn a_pod_without_address_or_that_has_ended_is_behind_nothing() {
        let service = service(json!({}));
        assert_eq!(backend(&service, &pod("web-0", true, json!({})), ""), None);
        let ended = json!({"phase": "Failed"});
        assert_eq!(backend(&service, &pod("web-0", true, json!({"status": ended})), "10.0.0.2"), None);
        let made = endpoints(&service, &Value::Null, &[]);
        assert_eq!(made["subsets"], Value::Null);
        assert_eq!(slices(&service, &Value::Null, &[]).len(), 1);
    }

    #[test]
    fn pods_whose_port_of_that_name_differs_are_in_slices_of_their_own() {
        let service = service(json!({}));
        let mut other = pod("web-1", true, json!({}));
        other["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
        let mut none = pod("web-2", true, json!({}));
        none["spec"]["containers"][0]["ports"] = json!([]);
        let pods = [pod("web-0", true, json!({})), other, none];
        let ips = ["10.0.0.2", "10.0.0.3", "10.0.0.4"];
        let backends: Vec<_> = pods.iter().zip(ips).filter_map(|(p, ip)| backend(&service, p, ip)).collect();
        assert_eq!(slices(&service, &Value::Null, &backends).len(), 3);
        let made = endpoints(&service, &Value::Null, &backends);
        let ports: Vec<&Value> =
            made["subsets"].as_array().unwrap().iter().map(|s| &s["ports"][0]["port"]).collect();
        assert_eq!(ports, [8080, 9090], "and the one without it is nobody the service leads to");
    }

    #[test]
    fn a_hostname_is_one_of_the_service_only_where_the_subdomain_is() {
        let service = service(json!({}));
        let mut stranger = pod("web-0", true, json!({}));
        stranger["spec"]["subdomain"] = json!("other");
        assert_eq!(backend(&service, &stranger, "10.0.0.2").unwrap().hostname, "");
    }

    #[test]
    fn a_slice_holds_a_thousand_and_endpoints_no_more() {
        let service = service(json!({}));
        let backends: Vec<Backend> = (0..2500u32)
            .filter_map(|n| {
                backend(
                    &service,
                    &pod(&format!("web-{n}"), true, json!({})),
                    &format!("10.0.{}.{}", n / 250, n % 250),
                )
            })
            .collect();
        let made = slices(&service, &Value::Null, &backends);
        let sizes: Vec<usize> = made.values().map(|s| s["endpoints"].as_array().unwrap().len()).collect();
        assert_eq!((sizes.iter().sum::<usize>(), sizes.len()), (2500, 3));
        let made = endpoints(&service, &Value::Null, &backends);
        assert_eq!(made["subsets"][0]["addresses"].as_array().unwrap().len(), MOST_ENDPOINTS);
        assert_eq!(made["metadata"]["annotations"][OVER_CAPACITY], "truncated");
    }
}

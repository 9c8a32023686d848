//! The view against a reader of its updates: whatever happens, in whatever order, who hears the changes knows
//! what a newcomer is told.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What a host makes of the updates it hears.
#[derive(Clone, Debug, Default, PartialEq)]
struct Host {
    peers: BTreeMap<String, pb::Peer>,
    services: BTreeMap<Named, pb::Service>,
    endpoints: BTreeMap<Named, BTreeMap<String, pb::Endpoint>>,
}

impl Host {
    fn hear(&mut self, update: &NetworkUpdate) {
        let named = |r: &Option<pb::ServiceRef>| {
            let r = r.clone().unwrap();
            (r.namespace, r.name)
        };
        if update.reset {
            *self = Host::default();
        }
        self.peers.extend(update.peers.iter().map(|p| (p.node_name.clone(), p.clone())));
        self.peers.retain(|name, _| !update.removed_peers.contains(name));
        for removed in &update.removed_services {
            let name = named(&Some(removed.clone()));
            self.services.remove(&name);
            self.endpoints.remove(&name);
        }
        self.services.extend(update.services.iter().map(|s| (named(&s.service), s.clone())));
        for change in &update.endpoints {
            let name = named(&change.service);
            assert!(self.services.contains_key(&name), "endpoints of a service never told of");
            let there = self.endpoints.entry(name).or_default();
            change.removed.iter().for_each(|id| drop(there.remove(id)));
            there.extend(change.endpoints.iter().map(|e| (e.id.clone(), e.clone())));
        }
        self.endpoints.retain(|_, endpoints| !endpoints.is_empty());
    }

    fn told(view: &View) -> Host {
        let mut host = Host::default();
        view.snapshot().iter().for_each(|update| host.hear(update));
        host
    }
}

fn name(text: &str) -> Named {
    ("d".to_owned(), text.to_owned())
}

fn pod(name: &str, uid: u32, app: &str, ready: bool) -> Value {
    json!({
        "metadata": {"namespace": "d", "name": name, "uid": uid.to_string(), "labels": {"app": app, "x": "y"}},
        "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web",
                 "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

fn record(uid: u32, address: &str) -> Record {
    Record { uid: uid.to_string(), node: "n1".into(), epoch: 1, address: address.into() }
}

fn service(app: &str) -> Value {
    json!({"metadata": {"namespace": "d", "name": "web", "uid": "s"}, "spec": {
        "clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": app}, "ports": [{"port": 80, "targetPort": "http"}]}})
}

fn only_endpoint(update: &Option<NetworkUpdate>) -> pb::Endpoint {
    update.clone().unwrap().endpoints[0].endpoints[0].clone()
}

#[test]
fn a_pod_is_told_of_from_its_binding_on_and_is_ready_later() {
    let mut view = View::default();
    view.service(&name("web"), Some(&service("web")));
    view.pod(&name("web-0"), Some(&pod("web-0", 1, "web", false)));
    let first = view.refresh().update.unwrap();
    assert_eq!((first.services.len(), first.endpoints.len()), (1, 0), "no address yet");
    view.record(&name("web-0"), Some(&record(1, "10.42.0.7/24")));
    let bound = only_endpoint(&view.refresh().update);
    assert_eq!((&*bound.id, &*bound.hostname, bound.ready), ("web-0", "web-0", false));
    assert_eq!(bound.addresses, ["10.42.0.7"]);
    assert_eq!(bound.ports[0].port, 8080);
    view.pod(&name("web-0"), Some(&pod("web-0", 1, "web", true)));
    assert!(only_endpoint(&view.refresh().update).ready);
    view.pod(&name("web-0"), None);
    assert_eq!(view.refresh().update.unwrap().endpoints[0].removed, ["web-0"]);
}

#[test]
fn what_changes_nothing_is_not_told() {
    let mut view = View::default();
    view.service(&name("web"), Some(&service("web")));
    view.record(&name("web-0"), Some(&record(1, "10.42.0.7/24")));
    view.pod(&name("web-0"), Some(&pod("web-0", 1, "web", true)));
    assert!(view.refresh().update.is_some());
    let mut same = pod("web-0", 1, "web", true);
    same["status"]["startTime"] = json!("now");
    view.pod(&name("web-0"), Some(&same));
    view.service(&name("web"), Some(&service("web")));
    assert!(view.refresh().update.is_none());
}

#[test]
fn a_pod_that_waits_for_its_name_has_not_the_address_of_who_holds_it() {
    let mut view = View::default();
    view.service(&name("web"), Some(&service("web")));
    view.record(&name("web-0"), Some(&record(1, "10.42.0.7/24")));
    view.pod(&name("web-0"), Some(&pod("web-0", 2, "web", false)));
    assert!(view.refresh().update.unwrap().endpoints.is_empty());
}

#[test]
fn what_people_write_themselves_is_told_as_it_is() {
    let mut view = View::default();
    let plain = json!({"metadata": {"namespace": "d", "name": "db"}, "spec": {"clusterIP": "10.43.0.9", "ports": [{"port": 5432}]}});
    view.service(&name("db"), Some(&plain));
    let by_hand = json!({"metadata": {"namespace": "d", "name": "db"}, "subsets": [
        {"addresses": [{"ip": "192.0.2.4"}], "notReadyAddresses": [{"ip": "192.0.2.5"}], "ports": [{"port": 5432}]}]});
    view.endpoints(&name("db"), Some(&by_hand));
    let slice = json!({"metadata": {"namespace": "d", "name": "x", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.6"]}], "ports": [{"name": "", "port": 5433}]});
    view.slice(&name("x"), Some(&slice));
    let told = view.refresh().update.unwrap();
    let seen: Vec<(&str, bool, u32)> =
        told.endpoints[0].endpoints.iter().map(|e| (&*e.addresses[0], e.ready, e.ports[0].port)).collect();
    assert_eq!(seen, [("192.0.2.4", true, 5432), ("192.0.2.5", false, 5432), ("192.0.2.6", true, 5433)]);
    // Berth's own of both sorts are no news: they follow from the pods.
    let mut own = slice;
    own["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] =
        json!("endpointslice-controller.k8s.io");
    view.slice(&name("x"), Some(&own));
    view.endpoints(&name("db"), None);
    assert_eq!(view.refresh().update.unwrap().endpoints[0].removed.len(), 3);
}

#[test]
fn a_pod_on_the_hosts_network_has_the_hosts_address() {
    let mut view = View::default();
    let node = |ip: &str| json!({"spec": {"podCIDR": "10.42.0.0/24"}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
    view.node("n1", Some(&node("192.0.2.1")));
    view.service(&name("web"), Some(&service("web")));
    let mut of_host = pod("web-0", 1, "web", true);
    of_host["spec"]["hostNetwork"] = json!(true);
    view.pod(&name("web-0"), Some(&of_host));
    view.record(&name("web-0"), Some(&record(1, "")));
    assert_eq!(only_endpoint(&view.refresh().update).addresses, ["192.0.2.1"]);
    view.node("n1", Some(&node("192.0.2.2")));
    let moved = view.refresh().update;
    assert_eq!(only_endpoint(&moved).addresses, ["192.0.2.2"]);
    assert_eq!(moved.unwrap().peers[0].pod_cidrs, ["10.42.0.0/24"]);
}

#[test]
fn where_an_operator_gives_addresses_a_pod_is_known_by_what_is_reported() {
    let mut view = View::default();
    let node = |conditions: Value| json!({"spec": {"podCIDR": "10.42.0.0/24"}, "status": {"conditions": conditions}});
    view.node("n1", Some(&node(json!([{"type": pb::OPERATOR_NETWORK, "status": "True"}]))));
    view.service(&name("web"), Some(&service("web")));
    let mut there = pod("web-0", 1, "web", true);
    view.pod(&name("web-0"), Some(&there));
    view.record(&name("web-0"), Some(&record(1, "10.42.0.9/24")));
    assert!(view.refresh().update.unwrap().endpoints.iter().all(|e| e.endpoints.is_empty()));
    there["status"]["podIPs"] = json!([{"ip": "10.88.0.2"}]);
    view.pod(&name("web-0"), Some(&there));
    assert_eq!(only_endpoint(&view.refresh().update).addresses, ["10.88.0.2"]);
    // A silent host is what it was; one without such a configuration gives what was assigned.
    view.node("n1", Some(&node(json!([{"type": pb::OPERATOR_NETWORK, "status": "Unknown"}]))));
    assert!(view.refresh().update.is_none());
    view.node("n1", Some(&node(json!([]))));
    assert_eq!(only_endpoint(&view.refresh().update).addresses, ["10.42.0.9"]);
}

#[test]
fn a_big_snapshot_comes_in_parts_with_its_beginning_and_end_marked() {
    let mut view = View::default();
    view.service(&name("web"), Some(&service("web")));
    for n in 0..5000u32 {
        let pod_name = name(&format!("web-{n}"));
        view.pod(&pod_name, Some(&pod(&pod_name.1, n, "web", true)));
        view.record(&pod_name, Some(&record(n, &format!("10.{}.{}.2/24", n / 250, n % 250))));
    }
    let told = view.refresh().update.unwrap();
    let parts = view.snapshot();
    let marks: Vec<(bool, bool)> = parts.iter().map(|p| (p.reset, p.complete)).collect();
    assert_eq!(marks.len(), 4);
    assert_eq!((marks[0], marks[3]), ((true, false), (false, true)));
    assert!(marks[1..3].iter().all(|m| *m == (false, false)));
    let mut host = Host::default();
    split(told).iter().for_each(|part| host.hear(part));
    assert_eq!(host, Host::told(&view));
    assert_eq!(host.endpoints[&name("web")].len(), 5000);
}

#[derive(Clone, Debug)]
enum Happens {
    Pod(u8, u32, u8, bool),
    PodGone(u8),
    Record(u8, u32),
    RecordGone(u8),
    Service(u8),
    ServiceGone,
    Slice(u8),
    SliceGone,
    Node(u8),
    NodeGone,
    Again,
    Refresh,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..4u8, 0..3u32, 0..3u8, any::<bool>()).prop_map(|(n, u, a, r)| Happens::Pod(n, u, a, r)),
        1 => (0..4u8).prop_map(Happens::PodGone),
        3 => (0..4u8, 0..3u32).prop_map(|(n, u)| Happens::Record(n, u)),
        1 => (0..4u8).prop_map(Happens::RecordGone),
        2 => (0..3u8).prop_map(Happens::Service),
        1 => Just(Happens::ServiceGone),
        1 => (0..3u8).prop_map(Happens::Slice),
        1 => Just(Happens::SliceGone),
        1 => (0..3u8).prop_map(Happens::Node),
        1 => Just(Happens::NodeGone),
        1 => Just(Happens::Again),
        4 => Just(Happens::Refresh),
    ]
}

/// All stored objects, for a view that begins again.
#[derive(Default)]
struct Stored {
    pods: BTreeMap<String, Value>,
    records: BTreeMap<String, Record>,
    service: Option<Value>,
    slice: Option<Value>,
    node: Option<Value>,
}

impl Stored {
    fn load(&self, view: &mut View) {
        view.service(&name("web"), self.service.as_ref());
        view.slice(&name("x"), self.slice.as_ref());
        view.node("n1", self.node.as_ref());
        self.pods.iter().for_each(|(n, pod)| view.pod(&name(n), Some(pod)));
        self.records.iter().for_each(|(n, record)| view.record(&name(n), Some(record)));
    }
}

proptest! {
    #[test]
    fn who_hears_the_changes_knows_what_a_newcomer_is_told(steps in prop::collection::vec(happens(), 1..60)) {
        let apps = ["web", "db", "none"];
        let mut view = View::default();
        let mut stored = Stored::default();
        let mut host = Host::default();
        for step in steps.into_iter().chain([Happens::Refresh]) {
            match step {
                Happens::Pod(n, uid, app, ready) => {
                    let n = format!("web-{n}");
                    let pod = pod(&n, uid, apps[usize::from(app)], ready);
                    view.pod(&name(&n), Some(&pod));
                    stored.pods.insert(n, pod);
                }
                Happens::PodGone(n) => {
                    stored.pods.remove(&format!("web-{n}"));
                    view.pod(&name(&format!("web-{n}")), None);
                }
                Happens::Record(n, uid) => {
                    let record = record(uid, &format!("10.42.0.{}/24", n + 2));
                    view.record(&name(&format!("web-{n}")), Some(&record));
                    stored.records.insert(format!("web-{n}"), record);
                }
                Happens::RecordGone(n) => {
                    stored.records.remove(&format!("web-{n}"));
                    view.record(&name(&format!("web-{n}")), None);
                }
                Happens::Service(app) => {
                    stored.service = Some(service(apps[usize::from(app)]));
                    view.service(&name("web"), stored.service.as_ref());
                }
                Happens::ServiceGone => {
                    stored.service = None;
                    view.service(&name("web"), None);
                }
                Happens::Slice(n) => {
                    stored.slice = Some(json!({
                        "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "web"}},
                        "addressType": "IPv4", "endpoints": [{"addresses": [format!("192.0.2.{n}")]}]}));
                    view.slice(&name("x"), stored.slice.as_ref());
                }
                Happens::SliceGone => {
                    stored.slice = None;
                    view.slice(&name("x"), None);
                }
                Happens::Node(n) => {
                    stored.node = Some(json!({"status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{n}")}]}}));
                    view.node("n1", stored.node.as_ref());
                }
                Happens::NodeGone => {
                    stored.node = None;
                    view.node("n1", None);
                }
                Happens::Again => {
                    view.begin_again();
                    stored.load(&mut view);
                }
                Happens::Refresh => {
                    view.refresh().update.iter().for_each(|update| host.hear(update));
                    prop_assert_eq!(&host, &Host::told(&view));
                    // And what is told is what a view made from nothing would tell.
                    let mut fresh = View::default();
                    stored.load(&mut fresh);
                    fresh.refresh();
                    prop_assert_eq!(&host, &Host::told(&fresh));
                }
            }
        }
    }
}

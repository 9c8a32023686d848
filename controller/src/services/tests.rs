//! Allocation under concurrent writes, and the objects that follow a service's pods, on a real store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use berth_controller_core::identity::{self, Record};
use berth_controller_core::kinds::endpoints::ENDPOINTS;
use berth_controller_core::kinds::namespace::NAMESPACE;
use berth_controller_core::kinds::service::SERVICE;
use berth_controller_schema::Schema;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::*;
use crate::objects::{DeleteOptions, Options};
use crate::store::{Key, Scope, Store, Transaction};

const PATIENCE: Duration = Duration::from_secs(20);

async fn objects_in(store: &Store) -> Objects {
    let allocations = Arc::new(Allocations::new(store.clone(), "10.43.0.0/24".parse().unwrap()));
    let objects = Objects::new(store.clone(), Schema::get()).with(allocations);
    let namespace = json!({"metadata": {"name": "default"}});
    let _ = objects.create(&NAMESPACE, "", namespace, &Options::default()).await;
    objects
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    service
}

async fn create(
    objects: &Objects,
    name: &str,
    spec: Value,
) -> Result<Value, berth_controller_core::status::Status> {
    let made = objects.create(&SERVICE, "default", service(name, spec), &Options::default()).await;
    made.map(|o| o.value())
}

fn allocated(store: &Store) -> BTreeSet<String> {
    let records = store.list(&Scope::all("serviceallocations.berth.dev")).objects;
    records.iter().map(|o| o.key.name.clone()).collect()
}

#[tokio::test]
async fn services_made_at_the_same_time_never_share_an_address() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let making = (0..100).map(|n| {
        let objects = objects.clone();
        async move { create(&objects, &format!("s{n}"), json!({"type": "NodePort"})).await.unwrap() }
    });
    let made = join_all(making).await;
    let all: BTreeSet<&str> = made.iter().map(|s| s["spec"]["clusterIP"].as_str().unwrap()).collect();
    let ports: BTreeSet<u64> =
        made.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).collect();
    assert_eq!((all.len(), ports.len(), allocated(&store).len()), (100, 100, 200));
}

#[tokio::test]
async fn an_address_is_refused_while_it_is_held_and_free_once_its_service_is_gone() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let wanted = json!({"clusterIP": "10.43.0.7"});
    create(&objects, "a", wanted.clone()).await.unwrap();
    let refused = create(&objects, "b", wanted.clone()).await.unwrap_err();
    assert_eq!(refused.code, 422);
    assert!(refused.message.contains("provided IP is already allocated"), "{}", refused.message);
    objects.delete(&SERVICE, "default", "a", &DeleteOptions::default()).await.unwrap();
    assert_eq!(allocated(&store), BTreeSet::new());
    create(&objects, "b", wanted).await.unwrap();
}

#[tokio::test]
async fn a_dry_run_takes_nothing_and_a_change_of_type_gives_back() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let dry = Options { dry_run: true, ..Options::default() };
    let shown = objects.create(&SERVICE, "default", service("a", json!({})), &dry).await.unwrap().value();
    assert!(shown["spec"]["clusterIP"].as_str().unwrap().starts_with("10.43.0."));
    assert_eq!(allocated(&store), BTreeSet::new());

    create(&objects, "a", json!({"type": "NodePort"})).await.unwrap();
    assert_eq!(allocated(&store).len(), 2);
    let changed = objects.modify(&SERVICE, None, "default", "a", |s| {
        s["spec"]["type"] = json!("ClusterIP");
        Ok(())
    });
    assert!(changed.await.unwrap().value()["spec"]["ports"][0]["nodePort"].is_null());
    assert_eq!(allocated(&store).len(), 1);
}

#[tokio::test]
async fn services_stored_before_there_were_addresses_get_theirs_at_the_start() {
    let store = Store::in_memory().unwrap();
    let without = Objects::new(store.clone(), Schema::get());
    let namespace = json!({"metadata": {"name": "default"}});
    without.create(&NAMESPACE, "", namespace, &Options::default()).await.unwrap();
    create(&without, "old", json!({})).await.unwrap();
    create(&without, "kept", json!({"clusterIP": "10.43.0.9"})).await.unwrap();
    create(&without, "headless", json!({"clusterIP": "None"})).await.unwrap();

    let objects = objects_in(&store).await;
    repair(&objects).await.unwrap();
    let of = |name: &str| {
        let service = store.get(&Key::new("services", "default", name)).unwrap().value();
        service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned()
    };
    assert!(of("old").starts_with("10.43.0."));
    assert_eq!((of("kept").as_str(), of("headless").as_str()), ("10.43.0.9", "None"));
    assert_eq!(allocated(&store), BTreeSet::from([of("old"), of("kept")]));
    // And what a crash or an older version left over goes.
    let stray = Key::new("serviceallocations.berth.dev", "", "10.43.0.77");
    store.commit(Transaction::new().put(stray, json!({"metadata": {}, "uid": "x"}))).await.unwrap();
    repair(&objects).await.unwrap();
    assert_eq!(allocated(&store).len(), 2);
}

fn pod(name: &str, ready: bool) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

async fn put_pod(store: &Store, name: &str, ready: bool, address: &str) {
    let record = Record { uid: name.into(), node: "n1".into(), epoch: 1, address: address.into() };
    let transaction = Transaction::new()
        .put(Key::new("pods", "default", name), pod(name, ready))
        .put(Key::new(identity::RESOURCE, "default", name), record.write());
    store.commit(transaction).await.unwrap();
}

async fn until<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"))
}

#[tokio::test]
async fn endpoints_and_slices_follow_the_pods_and_go_with_the_service() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let services = Services::new(objects.clone());
    let _running = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(services.clone().run()));
    create(&objects, "web", json!({"selector": {"app": "web"}, "clusterIP": "None"})).await.unwrap();
    put_pod(&store, "web-0", true, "10.42.0.2/24").await;
    put_pod(&store, "web-1", false, "10.42.0.3/24").await;

    let endpoints = || store.get(&Key::new("endpoints", "default", "web")).map(|o| o.value());
    let ips = |of: &Value, field: &str| -> Vec<String> {
        let addresses = of["subsets"][0][field].as_array().into_iter().flatten();
        addresses.map(|a| a["ip"].as_str().unwrap().to_owned()).collect()
    };
    let found = until("both are listed", || {
        endpoints().filter(|e| ips(e, "addresses").len() == 1 && ips(e, "notReadyAddresses").len() == 1)
    });
    assert_eq!(ips(&found.await, "addresses"), ["10.42.0.2"]);
    put_pod(&store, "web-1", true, "10.42.0.3/24").await;
    until("both are ready", || endpoints().filter(|e| ips(e, "addresses").len() == 2)).await;
    let slices = || store.list(&Scope::all("endpointslices.discovery.k8s.io")).objects;
    let slice = until("one slice", || {
        slices().first().map(|o| o.value()).filter(|s| {
            s["endpoints"].as_array().is_some_and(|e| e.len() == 2 && e[1]["conditions"]["ready"] == true)
        })
    });
    assert_eq!(slice.await["metadata"]["labels"]["kubernetes.io/service-name"], "web");

    // Somebody deletes them: they come back.
    objects.delete(&ENDPOINTS, "default", "web", &DeleteOptions::default()).await.unwrap();
    until("they are back", endpoints).await;

    objects.delete(&SERVICE, "default", "web", &DeleteOptions::default()).await.unwrap();
    until("all is gone", || (endpoints().is_none() && slices().is_empty()).then_some(())).await;
}

/// What a listener is told next.
async fn told(listener: &mut Listener) -> Vec<NetworkUpdate> {
    let told = tokio::time::timeout(PATIENCE, listener.next()).await.unwrap();
    let read = |told: Told| match ControllerMessage::decode(told.encoded).unwrap().message {
        Some(Message::Network(update)) => update,
        other => panic!("{other:?}"),
    };
    told.into_iter().map(read).collect()
}

#[tokio::test]
async fn endpoints_made_by_hand_stay_as_they_are_until_their_service_goes() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let services = Services::new(objects.clone());
    let _running = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(services.clone().run()));
    let by_hand = json!({"metadata": {"name": "db"}, "subsets": [{"addresses": [{"ip": "192.0.2.4"}]}]});
    objects.create(&ENDPOINTS, "default", by_hand, &Options::default()).await.unwrap();
    create(&objects, "db", json!({})).await.unwrap();
    let mut listener = services.listen();
    let heard = loop {
        let updates = told(&mut listener).await;
        if let Some(endpoint) = updates.iter().flat_map(|u| &u.endpoints).flat_map(|e| &e.endpoints).next() {
            break endpoint.addresses.clone();
        }
    };
    assert_eq!(heard, ["192.0.2.4"]);
    let there = || store.get(&Key::new("endpoints", "default", "db"));
    assert_eq!(there().unwrap().value()["subsets"][0]["addresses"][0]["ip"], "192.0.2.4");
    objects.delete(&SERVICE, "default", "db", &DeleteOptions::default()).await.unwrap();
    until("they are gone too", || there().is_none().then_some(())).await;
}

#[tokio::test]
async fn a_listener_hears_everything_once_then_what_changes_and_all_again_when_it_is_late() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let services = Services::new(objects.clone());
    let _running = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(services.clone().run()));
    create(&objects, "web", json!({"selector": {"app": "web"}})).await.unwrap();
    let mut listener = services.listen();
    let mut late = services.listen();
    let first = told(&mut listener).await;
    assert!(first[0].reset && first.last().unwrap().complete);
    late.next().await;
    put_pod(&store, "web-0", true, "10.42.0.2/24").await;
    let change = loop {
        if let Some(update) = told(&mut listener).await.into_iter().find(|u| !u.endpoints.is_empty()) {
            break update;
        }
    };
    assert!(!change.reset);
    assert_eq!(change.endpoints[0].endpoints[0].addresses, ["10.42.0.2"]);
    // The log forgets what the late one has not heard.
    services.inner.state().log.clear();
    let again = told(&mut late).await;
    assert!(again[0].reset);
    assert_eq!(again[0].endpoints[0].endpoints[0].id, "web-0");
}

#[tokio::test]
async fn the_api_has_the_first_address_and_what_is_behind_it_follows_each_start() {
    let store = Store::in_memory().unwrap();
    let objects = objects_in(&store).await;
    let range = "10.43.0.0/24".parse().unwrap();
    let get = |kind| store.get(&crate::objects::key(kind, "default", "kubernetes")).unwrap().value();
    for (api, port) in [(Some("192.0.2.1"), 6443), (Some("192.0.2.2"), 7443), (None, 7443)] {
        let at = api.map(|ip| ip.parse().unwrap());
        kubernetes::publish(&objects, range, at, port).await.unwrap();
        let service = get(&SERVICE);
        assert_eq!(service["spec"]["clusterIP"], "10.43.0.1");
        assert_eq!(service["spec"]["ports"][0]["targetPort"], port);
        let behind = &get(&ENDPOINTS)["subsets"][0];
        assert_eq!(behind["addresses"][0]["ip"].as_str(), api);
        let slice = get(&berth_controller_core::kinds::endpoint_slice::ENDPOINT_SLICE);
        assert_eq!(slice["endpoints"][0]["addresses"][0].as_str(), api);
        assert_eq!(slice["ports"][0]["port"], port);
    }
    // Whoever holds the address keeps it.
    objects.delete(&SERVICE, "default", "kubernetes", &DeleteOptions::default()).await.unwrap();
    create(&objects, "mine", json!({"clusterIP": "10.43.0.1"})).await.unwrap();
    kubernetes::publish(&objects, range, None, 6443).await.unwrap();
    assert!(store.get(&crate::objects::key(&SERVICE, "default", "kubernetes")).is_none());
}

#[test]
fn an_api_on_loopback_is_reached_by_nobody_else() {
    let at = |listen: &str, advertised: &[&str]| {
        let advertised: Vec<String> = advertised.iter().map(|s| (*s).to_owned()).collect();
        kubernetes::reached_at(listen.parse().unwrap(), &advertised).map(|ip| ip.to_string())
    };
    assert_eq!(at("127.0.0.1:6443", &["192.0.2.1"]), None);
    assert_eq!(at("192.0.2.7:6443", &["192.0.2.1"]), Some("192.0.2.7".to_owned()));
    assert_eq!(at("0.0.0.0:6443", &["api.example", "192.0.2.1"]), Some("192.0.2.1".to_owned()));
}

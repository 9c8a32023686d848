//! The loops against the real store, with a scheduler and a kubelet that do what they are told.

mod garbage;
mod stateful_set;
mod volumes;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_controller_core::claims::{
    Backend, Directories, Directory, Export, Location, Provisioners, Standing, bind_on, standing,
};
use berth_controller_core::kinds::{self, Kind};
use berth_controller_core::object;
use berth_controller_schema::Schema;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::events::Events;
use super::feed::{Seen, follow};
use super::volumes::{Shelf, stage_binding};
use super::{Context, End, Hosts, Images, first_start};
use crate::objects::{DeleteOptions, Objects, Options, Propagation, key};
use crate::store::{EventKind, Key, Scope, Store, Transaction};

const SETS: &Kind = &kinds::stateful_set::STATEFUL_SET;
const PODS: &Kind = &kinds::pod::POD;
const CLAIMS: &Kind = &kinds::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM;
const VOLUMES: &Kind = &kinds::persistent_volume::PERSISTENT_VOLUME;
const NAMESPACES: &Kind = &kinds::namespace::NAMESPACE;

/// What the kubelet is told to do otherwise.
#[derive(Default)]
struct Orders {
    /// Pods that run but do not become ready.
    unready: Mutex<HashSet<String>>,
    /// Pods that do not stop.
    stuck: Mutex<HashSet<String>>,
}

/// Hosts that remember what they were asked to end.
#[derive(Default)]
struct FakeHosts {
    ended: Mutex<Vec<(Option<String>, Location, End)>>,
    /// What they answer instead.
    refuse: Mutex<Option<String>>,
}

impl Hosts for FakeHosts {
    fn end(&self, node: Option<String>, location: Location, end: End) -> BoxFuture<'_, Result<(), String>> {
        let refusal = self.refuse.lock().unwrap().clone();
        Box::pin(async move {
            match refusal {
                Some(why) => Err(why),
                None => {
                    self.ended.lock().unwrap().push((node, location, end));
                    Ok(())
                }
            }
        })
    }
}

/// Hosts that have every image but these.
#[derive(Default)]
struct FakeImages {
    missing: Mutex<HashSet<String>>,
}

impl Images for FakeImages {
    fn ensure(&self, node: &str, pod: &Value) -> BoxFuture<'static, Result<(), String>> {
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        let missing = self.missing.lock().unwrap().contains(image);
        let why = format!("image {image} on host {node}: not found");
        Box::pin(async move { if missing { Err(why) } else { Ok(()) } })
    }
}

struct World {
    objects: Objects,
    context: Context,
    mapping: watch::Sender<Provisioners>,
    orders: Arc<Orders>,
    hosts: Arc<FakeHosts>,
    images: Arc<FakeImages>,
    loops: Vec<JoinHandle<()>>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.loops.iter().for_each(JoinHandle::abort);
    }
}

impl World {
    /// A first start, with one node.
    async fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let objects = Objects::new(Store::open(&path).unwrap(), Schema::get());
        first_start(&objects).await.unwrap();
        let node = json!({"metadata": {"name": "a", "labels": {"kubernetes.io/hostname": "host-a"}}});
        objects.create(&kinds::node::NODE, "", node, &Options::default()).await.unwrap();
        let hosts = Arc::new(FakeHosts::default());
        let images = Arc::new(FakeImages::default());
        let mapped = Backend::Directories(Directories { root: "/srv/bdqn".to_owned(), shared: false });
        let export = Export { server: "nas".into(), share: "/export".into(), ..Export::default() };
        let mapping = watch::Sender::new(Provisioners::new([
            ("bdqn".to_owned(), mapped),
            ("subdir".to_owned(), Backend::Export(export)),
        ]));
        let context = Context {
            objects: objects.clone(),
            events: Events::new().0,
            provisioners: mapping.subscribe(),
            hosts: hosts.clone(),
            images: images.clone(),
        };
        let orders = Arc::new(Orders::default());
        let mut world = World {
            objects,
            context,
            mapping,
            orders,
            hosts,
            images,
            loops: Vec::new(),
            path,
            _directory: directory,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let (events, recorded) = Events::new();
        self.context.events = events;
        self.loops.push(tokio::spawn(super::run(self.context.clone(), recorded)));
        self.loops.push(tokio::spawn(kubelet(self.context.clone(), self.orders.clone())));
    }

    fn stop(&mut self) {
        self.loops.drain(..).for_each(|l| l.abort());
    }

    async fn create(&self, kind: &'static Kind, namespace: &str, value: Value) {
        self.objects.create(kind, namespace, value, &Options::default()).await.unwrap();
    }

    async fn change(&self, kind: &'static Kind, name: &str, mut change: impl FnMut(&mut Value)) {
        let namespace = if kind.namespaced { "default" } else { "" };
        let changed = self.objects.modify(kind, None, namespace, name, |value| {
            change(value);
            Ok(())
        });
        changed.await.unwrap();
    }

    async fn scale(&self, name: &str, replicas: u32) {
        self.change(SETS, name, |set| set["spec"]["replicas"] = replicas.into()).await;
    }

    async fn delete(&self, kind: &'static Kind, name: &str, propagation: Option<Propagation>) {
        let namespace = if kind.namespaced { "default" } else { "" };
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        self.objects.delete(kind, namespace, name, &options).await.unwrap();
    }

    fn get(&self, kind: &'static Kind, name: &str) -> Value {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.objects.store().get(&key(kind, namespace, name)).map(|o| o.value()).unwrap_or_default()
    }

    fn names(&self, kind: &'static Kind) -> Vec<String> {
        let list = self.objects.store().list(&Scope::all(key(kind, "", "").resource));
        list.objects.iter().map(|o| o.key.name.clone()).collect()
    }

    fn ready(&self) -> Vec<String> {
        let list = self.objects.store().list(&Scope::all("pods"));
        let ready = |pod: &Value| {
            pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let pods = list.objects.iter().filter(|o| !o.meta.deleting && ready(&o.value()));
        pods.map(|o| o.key.name.clone()).collect()
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let list = self.objects.store().list(&Scope::all("events"));
        let events = list.objects.iter().map(|o| o.value()).filter(|e| e["reason"] == reason);
        events.map(|e| e["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Waits until it holds; fails, saying what was waited for, if it never does.
    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        for _ in 0..10_000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never: {what}; pods {:?}, ready {:?}", self.names(PODS), self.ready());
    }

    /// Waits until nothing has been written for a while, before looking at what did not happen.
    async fn rest(&self) {
        let mut last = 0;
        for _ in 0..200 {
            if last == self.objects.store().revision() {
                return;
            }
            last = self.objects.store().revision();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("never at rest");
    }
}

fn set(name: &str, replicas: u32) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "c", "image": "busybox", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

/// Places each pod on the node (with its claims), runs it, stops it when it is deleted.
async fn kubelet(context: Context, orders: Arc<Orders>) {
    let store = context.objects.store().clone();
    let (sender, mut pods) = mpsc::unbounded_channel::<Key>();
    let feed = follow(&store, Scope::all("pods"), |seen| match seen {
        Seen::All(all) => all.iter().for_each(|o| drop(sender.send(o.key.clone()))),
        Seen::Changed(event) if event.kind == EventKind::Deleted => {}
        Seen::Changed(event) => drop(sender.send(event.object.key.clone())),
    });
    let work = async {
        while let Some(key) = pods.recv().await {
            for _ in 0..100 {
                if treat(&context, &orders, &key).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    };
    tokio::join!(feed, work);
}

async fn treat(context: &Context, orders: &Orders, key: &Key) -> bool {
    let objects = &context.objects;
    let Some(stored) = objects.store().get(key) else { return true };
    let mut pod = stored.value();
    let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
    if object::deleting(&pod) {
        if !orders.stuck.lock().unwrap().contains(name) {
            objects.remove(PODS, namespace, name, object::uid(&pod)).await.unwrap();
        }
        return true;
    }
    if pod["spec"]["nodeName"].is_null() {
        return place(context, key, pod).await;
    }
    let ready = !orders.unready.lock().unwrap().contains(name);
    let now = super::events::time(jiff::Timestamp::now());
    let status = json!({
        "phase": "Running",
        "conditions": [
            {"type": "Initialized", "status": "True", "lastTransitionTime": now},
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now},
        ],
    });
    if pod["status"]["phase"] == "Pending" {
        pod["status"] = status;
        let tx = Transaction::new().unchanged(key.clone(), stored.revision).put(key.clone(), pod);
        return objects.store().commit(tx).await.is_ok();
    }
    true
}

async fn place(context: &Context, key: &Key, mut pod: Value) -> bool {
    let objects = &context.objects;
    let store = objects.store();
    let node = store.get(&Key::new("nodes", "", "a")).unwrap().value();
    let revision = pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let mut tx = Transaction::new().unchanged(key.clone(), revision);
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() else { continue };
        let Some(stored) = store.get(&Key::new("persistentvolumeclaims", key.namespace.as_str(), claim))
        else {
            return false;
        };
        let claim = stored.value();
        let shelf = Shelf::of(store, &claim);
        let bound = shelf.with(&context.provisioners.borrow(), |storage| match standing(&claim, storage) {
            Standing::Bound { .. } => Ok(None),
            Standing::WithPod => bind_on(&claim, &node, storage).map(Some),
            other => Err(format!("{other:?}")),
        });
        match bound {
            Ok(None) => {}
            Ok(Some(binding)) => tx = stage_binding(objects, tx, binding, stored.revision).unwrap(),
            Err(_) => return false,
        }
    }
    pod["spec"]["nodeName"] = "a".into();
    store.commit(tx.put(key.clone(), pod)).await.is_ok()
}

//! A server with its loops, and hosts that are played: every pod is placed at once, becomes ready at once, and
//! ends as soon as it is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_controller::eviction;
use berth_controller::objects::{Objects, Options};
use berth_controller::reconcile::events::Events;
use berth_controller::reconcile::{self, Context, End, Hosts, Images};
use berth_controller::store::{Object, Scope, Transaction};
use berth_controller_core::claims::{Location, Provisioners};
use berth_controller_core::kinds::node::NODE;
use berth_controller_core::kinds::pod::POD;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::kubectl::Kubectl;
use super::{PATIENCE, start_with};

/// Images with this tag never become ready.
const BROKEN: &str = ":broken";

pub struct Cluster {
    pub kubectl: Kubectl,
    stuck: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

struct Obliging;

impl Hosts for Obliging {
    fn end(&self, _: Option<String>, _: Location, _: End) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

impl Images for Obliging {
    fn ensure(&self, _node: &str, _pod: &Value) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

impl Cluster {
    pub async fn start(nodes: &[&str]) -> Cluster {
        let server = start_with(|objects| vec![eviction::connect(objects.clone())]).await;
        let objects = server.objects.clone();
        for name in nodes {
            let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
            objects.create(&NODE, "", node, &Options::default()).await.unwrap();
        }
        let (events, recorded) = Events::new();
        let context = Context {
            objects: objects.clone(),
            events,
            provisioners: watch::channel(Provisioners::new([])).1,
            hosts: Arc::new(Obliging),
            images: Arc::new(Obliging),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(reconcile::run(context, recorded));
        let stuck: Arc<AtomicBool> = Arc::default();
        tasks.spawn(play(objects, stuck.clone()));
        Cluster { kubectl: Kubectl::of(server), stuck, _tasks: tasks }
    }

    /// From now on no pod that is deleted ends.
    pub fn hold(&self) {
        self.stuck.store(true, Ordering::SeqCst);
    }

    /// From now on they do, also those that were held.
    pub fn release(&self) {
        self.stuck.store(false, Ordering::SeqCst);
    }

    fn objects(&self) -> &Objects {
        &self.kubectl.server.objects
    }

    pub fn pods(&self) -> Vec<Value> {
        self.objects().store().list(&Scope::all("pods")).objects.iter().map(|o| o.value()).collect()
    }

    /// Waits until it holds.
    #[track_caller]
    pub fn until<'a>(
        &'a self,
        what: &'a str,
        holds: impl Fn(&Cluster) -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let waiting = async {
                while !holds(self) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let waited = tokio::time::timeout(PATIENCE, waiting).await;
            assert!(waited.is_ok(), "{caller}: never: {what}; {:#?}", self.pods());
        }
    }

    /// Waits until so many pods are ready, and there are no others.
    #[track_caller]
    pub fn ready(&self, count: usize) -> impl Future<Output = ()> + '_ {
        self.until("so many pods are ready", move |cluster| {
            let pods = cluster.pods();
            pods.len() == count && pods.iter().all(berth_controller_core::disruption::healthy)
        })
    }
}

async fn play(objects: Objects, stuck: Arc<AtomicBool>) {
    loop {
        for pod in objects.store().list(&Scope::all("pods")).objects {
            if pod.meta.deleting && stuck.load(Ordering::SeqCst) {
                continue;
            }
            if pod.meta.deleting {
                let _ = objects.remove(&POD, &pod.key.namespace, &pod.key.name, &pod.meta.uid).await;
            } else {
                run(&objects, &pod).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn run(objects: &Objects, stored: &Object) {
    let store = objects.store();
    let mut pod = stored.value();
    if pod["status"]["phase"] != "Pending" {
        return;
    }
    if pod["spec"]["nodeName"].is_null() {
        let nodes = store.list(&Scope::all("nodes")).objects;
        let Some(free) = nodes.iter().find(|n| n.value()["spec"]["taints"].is_null()) else { return };
        pod["spec"]["nodeName"] = free.key.name.clone().into();
    }
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    let ready = if image.ends_with(BROKEN) { "False" } else { "True" };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition =
        |name: &str, status: &str| json!({"type": name, "status": status, "lastTransitionTime": now});
    pod["status"]["phase"] = "Running".into();
    pod["status"]["conditions"] = json!([
        condition("Initialized", "True"),
        condition("Ready", ready),
        condition("PodScheduled", "True")
    ]);
    let key = stored.key.clone();
    let _ = store.commit(Transaction::new().unchanged(key.clone(), stored.revision).put(key, pod)).await;
}

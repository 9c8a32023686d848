//! Taints with the effect NoExecute: who does not tolerate one (any longer) is deleted from its node.
//!
//! A deletion like any other: the pod's name stays held until its host reports that nothing is left of it, however
//! silent that host is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_controller_core::kinds::node::NODE;
use berth_controller_core::kinds::pod::POD;
use berth_controller_core::taints::{self, Leave};
use berth_controller_core::{disruption, object};
use jiff::Timestamp;

use super::Context;
use super::events::{EventType, ObjectRef};
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use crate::objects::{DeleteOptions, key};
use crate::store::{EventKind, Object, Scope, Transaction};

const COMPONENT: &str = "taint-eviction-controller";
const WORKERS: usize = 2;

/// The nodes that drive pods out.
#[derive(Default)]
struct Tainted(Mutex<BTreeSet<String>>);

impl Tainted {
    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a node as it is; whether it has to be looked at.
    fn saw(&self, node: &Object, gone: bool) -> bool {
        let tainted = !gone && taints::evicting(&node.value()).next().is_some();
        match tainted {
            true => drop(self.names().insert(node.key.name.clone())),
            false => drop(self.names().remove(&node.key.name)),
        }
        tainted
    }
}

pub async fn run(context: Context) {
    let queue: Queue<String> = Queue::new();
    let store = context.objects.store().clone();
    let tainted: Arc<Tainted> = Arc::default();
    let work = {
        let context = context.clone();
        queue.clone().run("taints", WORKERS, move |node| {
            let context = context.clone();
            async move { reconcile(&context, &node).await }
        })
    };
    let look_at = |node: &Object, gone: bool| {
        if tainted.saw(node, gone) {
            queue.add(node.key.name.clone());
        }
    };
    tokio::join!(
        work,
        follow(&store, Scope::all(NODE.plural), |seen| match seen {
            Seen::All(nodes) => nodes.iter().for_each(|node| look_at(node, false)),
            Seen::Changed(event) => look_at(&event.object, event.kind == EventKind::Deleted),
        }),
        follow(&store, Scope::all(POD.plural), |seen| {
            // Most of the time no node is tainted, and no pod need be read.
            let names = tainted.names().clone();
            match seen {
                Seen::All(_) => names.into_iter().for_each(|name| queue.add(name)),
                Seen::Changed(event) if !names.is_empty() && event.kind != EventKind::Deleted => {
                    let node = event.object.value()["spec"]["nodeName"].as_str().map(str::to_owned);
                    if let Some(node) = node.filter(|node| names.contains(node)) {
                        queue.add(node);
                    }
                }
                Seen::Changed(_) => {}
            }
        }),
    );
}

async fn reconcile(context: &Context, name: &str) -> Outcome {
    let objects = &context.objects;
    let Some(stored) = objects.store().get(&key(&NODE, "", name)) else { return Ok(Next::Event) };
    let now = Timestamp::now();
    let mut node = stored.value();
    if taints::note_time(&mut node, now) {
        // Noted on the node, so that a toleration's seconds do not begin anew with each controller.
        let noted = objects.modify(&NODE, None, "", name, |node| {
            taints::note_time(node, now);
            Ok(())
        });
        match noted.await {
            // Looked at again with that change's own event.
            Ok(_) => return Ok(Next::Event),
            Err(status) if status.code == 404 => return Ok(Next::Event),
            Err(status) => return Err(status.into()),
        }
    }
    let mut next: Option<Timestamp> = None;
    for pod in objects.store().list(&Scope::all(POD.plural)).objects {
        if pod.meta.deleting {
            continue;
        }
        let value = pod.value();
        if value["spec"]["nodeName"] != name {
            continue;
        }
        match taints::leave(&node, &value, now) {
            Leave::Never => {}
            Leave::At(at) if at > now => next = Some(next.map_or(at, |other| other.min(at))),
            Leave::At(_) => evict(context, &pod).await?,
        }
    }
    Ok(match next {
        Some(at) => Next::After(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
        None => Next::Event,
    })
}

async fn evict(context: &Context, pod: &Object) -> Result<(), berth_controller_core::status::Status> {
    let (namespace, name) = (&pod.key.namespace, &pod.key.name);
    let about = ObjectRef::of(&pod.value());
    let message = format!("Marking for deletion Pod {namespace}/{name}");
    context.events.record(&about, EventType::Normal, "TaintManagerEviction", &message, COMPONENT);
    let options = DeleteOptions { uid: Some(pod.meta.uid.to_string()), ..DeleteOptions::default() };
    let deleted = context.objects.delete_with(&POD, namespace, name, &options, |pod| {
        if !object::deleting(pod) {
            let message = "Taint manager: deleting due to NoExecute taint";
            disruption::target(pod, "DeletionByTaintManager", message, Timestamp::now());
        }
        Ok(Transaction::new())
    });
    match deleted.await {
        // Gone, or another life of that name by now.
        Err(status) if !matches!(status.code, 404 | 409) => Err(status),
        _ => Ok(()),
    }
}

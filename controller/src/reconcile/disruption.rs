//! PodDisruptionBudgets: each one's status says how many of its pods may be evicted now.
//!
//! Evictions take from the same status (see [`eviction`](crate::eviction)). What is written here is therefore
//! conditional on the budget that was counted for: an eviction in between means counting again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use berth_controller_core::disruption::{self, Owner, Pod};
use berth_controller_core::kinds::pod_disruption_budget::POD_DISRUPTION_BUDGET;
use berth_controller_core::kinds::stateful_set::STATEFUL_SET;
use jiff::Timestamp;
use serde_json::Value;

use super::Context;
use super::events::{EventType, ObjectRef};
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use crate::objects::key;
use crate::store::{Event, EventKind, Key, Object, Scope, Store, Transaction};

const COMPONENT: &str = "controllermanager";
const WORKERS: usize = 2;

/// Whether a pod is healthy, by the version that was looked at: a change of one pod is no reason to read all.
#[derive(Default)]
struct Health(Mutex<HashMap<Key, (u64, bool)>>);

impl Health {
    fn of(&self, pod: &Object) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&pod.key) {
            Some((revision, healthy)) if *revision == pod.revision => *healthy,
            _ => {
                let healthy = disruption::healthy(&pod.value());
                known.insert(pod.key.clone(), (pod.revision, healthy));
                healthy
            }
        }
    }

    fn forget(&self, pod: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
    }
}

pub async fn run(context: Context) {
    let queue: Queue<Key> = Queue::new();
    let store = context.objects.store().clone();
    let health: Arc<Health> = Arc::default();
    let add = |scope: &Scope| {
        for budget in store.list(scope).objects {
            queue.add(budget.key.clone());
        }
    };
    let all = Scope::all(key(&POD_DISRUPTION_BUDGET, "", "").resource);
    let work = {
        let (context, health) = (context.clone(), health.clone());
        queue.clone().run("disruption", WORKERS, move |key| {
            let (context, health) = (context.clone(), health.clone());
            async move { reconcile(&context, &health, &key).await }
        })
    };
    tokio::join!(
        work,
        follow(&store, all.clone(), |seen| match seen {
            Seen::All(_) => add(&all),
            Seen::Changed(event) => queue.add(event.object.key.clone()),
        }),
        follow(&store, Scope::all("pods"), |seen| match seen {
            Seen::All(_) => add(&all),
            Seen::Changed(event) => {
                for budget in concerned(&store, event) {
                    queue.add(budget);
                }
                if event.kind == EventKind::Deleted {
                    health.forget(&event.object.key);
                }
            }
        }),
        // A percentage is one of what a set is to have.
        follow(&store, Scope::all(key(&STATEFUL_SET, "", "").resource), |seen| match seen {
            Seen::All(_) => add(&all),
            Seen::Changed(event) => add(&budgets_of(&event.object.key.namespace)),
        }),
    );
}

fn budgets_of(namespace: &str) -> Scope {
    Scope::namespaced(key(&POD_DISRUPTION_BUDGET, "", "").resource, namespace)
}

/// The budgets that select a pod, or did before it was changed.
fn concerned(store: &Store, event: &Event) -> Vec<Key> {
    let states = [Some(&event.object), event.previous.as_ref()];
    let scope = budgets_of(&event.object.key.namespace);
    let selects = |budget: &Object| {
        let selector = disruption::selector(&budget.value());
        states.iter().flatten().any(|pod| selector.matches_with(|label| pod.meta.labels.get(label)))
    };
    let all = store.list(&scope).objects;
    all.iter().filter(|budget| selects(budget)).map(|budget| budget.key.clone()).collect()
}

async fn reconcile(context: &Context, health: &Health, at: &Key) -> Outcome {
    let store = context.objects.store();
    let Some(stored) = store.get(at) else { return Ok(Next::Event) };
    let mut budget = stored.value();
    let selector = disruption::selector(&budget);
    let pods: Vec<Pod> = store
        .list(&Scope::namespaced("pods", at.namespace.as_str()))
        .objects
        .iter()
        .filter(|pod| selector.matches_with(|label| pod.meta.labels.get(label)))
        .map(|pod| Pod {
            name: pod.key.name.clone(),
            deleting: pod.meta.deleting,
            healthy: health.of(pod),
            owner: pod.meta.owners.iter().find(|owner| owner.controller).map(|owner| Owner {
                kind: owner.kind.to_string(),
                name: owner.name.to_string(),
                uid: owner.uid.to_string(),
            }),
        })
        .collect();
    let scale = |owner: &Owner| scale(store, &at.namespace, owner);
    let assessed = disruption::assess(&budget, &pods, &scale, Timestamp::now());
    if assessed.status == budget["status"] {
        return Ok(Next::Event);
    }
    let about = ObjectRef::of(&budget);
    let warn = |reason: &str, message: &str| {
        context.events.record(&about, EventType::Warning, reason, message, COMPONENT);
    };
    if let Some(why) = &assessed.failure {
        let message = format!("Failed to calculate the number of expected pods: {why}");
        warn("CalculateExpectedPodCountFailed", &message);
    }
    if assessed.unmanaged {
        warn(
            "UnmanagedPods",
            "Pods selected by this PodDisruptionBudget have no controller, so a percentage or maxUnavailable cannot \
             count them: set `.spec.minAvailable` to a number",
        );
    }
    if pods.is_empty() {
        let message = "No matching pods found";
        context.events.record(&about, EventType::Normal, "NoPods", message, COMPONENT);
    }
    budget["status"] = assessed.status;
    let transaction = Transaction::new().unchanged(at.clone(), stored.revision).put(at.clone(), budget);
    store.commit(transaction).await?;
    Ok(Next::Event)
}

/// How many pods a controller is to have.
fn scale(store: &Store, namespace: &str, owner: &Owner) -> Option<i64> {
    if owner.kind != STATEFUL_SET.kind {
        return None;
    }
    let set: Value = store.get(&key(&STATEFUL_SET, namespace, &owner.name))?.value();
    (set["metadata"]["uid"] == owner.uid.as_str()).then(|| set["spec"]["replicas"].as_i64().unwrap_or(1))
}

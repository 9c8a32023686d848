//! Namespaces: each has its default ServiceAccount; a deleted one is emptied, then goes.

use std::collections::BTreeMap;

use berth_controller_core::kinds::{self, Kind};
use berth_controller_core::object;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use super::events::time;
use super::feed::{Seen, follow};
use super::queue::{Next, Outcome, Queue};
use crate::objects::{DeleteOptions, Options, key};
use crate::store::{EventKind, Scope};
use berth_controller_core::kinds::Subresource;

const NAMESPACES: &Kind = &kinds::namespace::NAMESPACE;
const ACCOUNTS: &Kind = &kinds::service_account::SERVICE_ACCOUNT;
const WORKERS: usize = 4;

pub async fn run(context: Context) {
    let queue: Queue<String> = Queue::new();
    let store = context.objects.store().clone();
    let is_deleting =
        |name: &str| store.get(&key(NAMESPACES, "", name)).is_some_and(|namespace| namespace.meta.deleting);
    let add_all = || {
        for namespace in store.list(&Scope::all(NAMESPACES.plural)).objects {
            queue.add(namespace.key.name.clone());
        }
    };
    let work = {
        let context = context.clone();
        queue.clone().run("namespaces", WORKERS, move |name| {
            let context = context.clone();
            async move { reconcile(&context, &name).await }
        })
    };
    let contents = kinds::ALL.iter().filter(|k| k.namespaced).map(|kind| {
        let (add_all, queue, is_deleting) = (&add_all, &queue, &is_deleting);
        follow(&store, Scope::all(key(kind, "", "").resource), move |seen| match seen {
            Seen::All(_) => add_all(),
            Seen::Changed(event) => {
                let place = &event.object.key;
                let gone = event.kind == EventKind::Deleted;
                // The last one out lets the namespace go; a default account that is deleted comes back.
                let account = gone && kind.plural == ACCOUNTS.plural && place.name == "default";
                if account || is_deleting(&place.namespace) {
                    queue.add(place.namespace.clone());
                }
            }
        })
    });
    tokio::join!(
        work,
        join_all(contents),
        follow(&store, Scope::all(NAMESPACES.plural), |seen| match seen {
            Seen::All(_) => add_all(),
            Seen::Changed(event) => queue.add(event.object.key.name.clone()),
        }),
    );
}

async fn reconcile(context: &Context, name: &str) -> Outcome {
    let objects = &context.objects;
    let Some(namespace) = objects.store().get(&key(NAMESPACES, "", name)) else { return Ok(Next::Event) };
    if namespace.meta.deleting {
        return empty(context, name).await;
    }
    if objects.store().get(&key(ACCOUNTS, name, "default")).is_none() {
        let account = json!({"metadata": {"name": "default"}});
        match objects.create(ACCOUNTS, name, account, &Options::default()).await {
            Err(status) if !matches!(status.code, 403 | 404 | 409) => return Err(status.into()),
            _ => {}
        }
    }
    Ok(Next::Event)
}

/// Deletes all there is in the namespace; when nothing is left, lets it go.
async fn empty(context: &Context, name: &str) -> Outcome {
    let objects = &context.objects;
    let mut remaining: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    let mut failures: Vec<String> = Vec::new();
    for kind in kinds::ALL.iter().copied().filter(|k| k.namespaced) {
        let scope = Scope::namespaced(key(kind, "", "").resource, name);
        for object in objects.store().list(&scope).objects {
            if !object.meta.deleting {
                let options =
                    DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
                match objects.delete(kind, name, &object.key.name, &options).await {
                    Err(status) if !matches!(status.code, 404 | 409) => failures.push(status.message),
                    _ => {}
                }
            }
        }
        for object in objects.store().list(&scope).objects {
            *remaining.entry(kind.resource()).or_default() += 1;
            for finalizer in object.value()["metadata"]["finalizers"].as_array().into_iter().flatten() {
                *finalizers.entry(finalizer.as_str().unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
    }
    if remaining.is_empty() {
        let finalized = objects.modify(NAMESPACES, Some(Subresource::Finalize), "", name, |value| {
            if object::deleting(value) {
                value["spec"]["finalizers"] = json!([]);
            }
            Ok(())
        });
        return match finalized.await {
            Err(status) if status.code != 404 => Err(status.into()),
            _ => Ok(Next::Event),
        };
    }
    let conditions = conditions(&remaining, &finalizers, &failures);
    let told = objects.modify(NAMESPACES, Some(Subresource::Status), "", name, |value| {
        tell(value, &conditions);
        Ok(())
    });
    match told.await {
        Err(status) if status.code != 404 => Err(status.into()),
        _ if failures.is_empty() => Ok(Next::Event),
        _ => Err(failures.join("; ").into()),
    }
}

/// Kubernetes' conditions of a namespace that is on its way out: (type, status, reason, message).
fn conditions(
    remaining: &BTreeMap<String, usize>,
    finalizers: &BTreeMap<String, usize>,
    failures: &[String],
) -> Vec<(&'static str, bool, &'static str, String)> {
    let listed = |all: &BTreeMap<String, usize>, verb: &str| {
        let parts: Vec<String> =
            all.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
        parts.join(", ")
    };
    let failed = if failures.is_empty() {
        (
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".to_owned(),
        )
    } else {
        (
            true,
            "ContentDeletionFailed",
            format!("Failed to delete all resource types: {}", failures.join("; ")),
        )
    };
    let held = if finalizers.is_empty() {
        (false, "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
    } else {
        let list = listed(finalizers, "in");
        (
            true,
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {list}"),
        )
    };
    let left = format!("Some resources are remaining: {}", listed(remaining, "has"));
    vec![
        ("NamespaceDeletionContentFailure", failed.0, failed.1, failed.2),
        ("NamespaceContentRemaining", true, "SomeResourcesRemain", left),
        ("NamespaceFinalizersRemaining", held.0, held.1, held.2),
    ]
}

fn tell(value: &mut Value, conditions: &[(&'static str, bool, &'static str, String)]) {
    let now = time(Timestamp::now());
    let before = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let after: Vec<Value> = conditions
        .iter()
        .map(|(kind, holds, reason, message)| {
            let status = if *holds { "True" } else { "False" };
            let since = before
                .iter()
                .find(|c| c["type"] == *kind && c["status"] == status)
                .map_or(Value::from(now.clone()), |c| c["lastTransitionTime"].clone());
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": since,
            })
        })
        .collect();
    value["status"]["conditions"] = after.into();
}

//! Deletion: preconditions, grace, finalizers, propagation.

use std::sync::Arc;

use berth_controller_core::kinds::{Kind, Subresource};
use berth_controller_core::object as read;
use berth_controller_core::status::Status;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{ATTEMPTS, Objects, Refused, prepare, resource_version, unstored};
use crate::store::{Object, Scope, Transaction};

/// What happens to an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay, without an owner.
    Orphan,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds; None: what the object says. Only counts for what is deleted gracefully.
    pub grace: Option<i64>,
    /// The object must be this one.
    pub uid: Option<String>,
    /// The object must be in this state.
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

/// What a deletion did.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// It is gone; its last state.
    Gone(Arc<Object>),
    /// It goes once its grace is over and its finalizers are done.
    Pending(Arc<Object>),
}

impl Deleted {
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Deleted::Gone(object) | Deleted::Pending(object) => object,
        }
    }
}

/// Namespaces that are always there.
const LASTING: &[&str] = &["default", "kube-system", "kube-public"];

impl Objects {
    /// Deletes an object, or begins to.
    pub async fn delete(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.delete_with(kind, namespace, name, options, |_| Ok(Transaction::new())).await
    }

    /// As [`Objects::delete`], with what else must hold and is to be written with it, in one transaction.
    /// `also` is given the object as it is, may change it, and is asked again if anything of that was written
    /// by somebody else in between.
    pub async fn delete_with(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        mut also: impl FnMut(&mut Value) -> Result<Transaction, Status>,
    ) -> Result<Deleted, Status> {
        if kind.subresources.contains(&Subresource::Finalize) && LASTING.contains(&name) {
            return Err(Status::forbidden(&kind.resource(), name, "this namespace may not be deleted"));
        }
        for _ in 0..ATTEMPTS {
            let current = self.get(kind, namespace, name)?;
            let before = current.value();
            check(kind, &before, options)?;
            let mut value = before.clone();
            let transaction = also(&mut value)?;
            mark(kind, &mut value, options, self.clock().now());
            let value = (value != before).then_some(value);
            match self.finish(kind, &current, value, transaction, options.dry_run).await {
                Err(Refused::Raced) => continue,
                Err(Refused::Status(status)) => return Err(status),
                Ok(deleted) => return Ok(deleted),
            }
        }
        Err(Status::modified(&kind.resource(), name))
    }

    /// Deletes what a filter lets through, one after another; answers the objects as they were when listed.
    pub async fn delete_collection(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        filter: impl Fn(&Object) -> bool,
        options: &DeleteOptions,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let scope =
            Scope { resource: super::key(kind, "", "").resource, namespace: namespace.map(str::to_owned) };
        let mut objects = self.store.list(&scope).objects;
        objects.retain(|o| filter(o));
        for object in &objects {
            match self.delete(kind, &object.key.namespace, &object.key.name, options).await {
                Err(status) if status.code != 404 => return Err(status),
                _ => {}
            }
        }
        Ok(objects)
    }

    /// The grace of an object that is being deleted is over (a pod has stopped): it goes now, or as soon as
    /// its finalizers are done. Nothing happens if it is gone already or is not the one meant.
    pub async fn remove(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<(), Status> {
        let options = DeleteOptions { grace: Some(0), uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        match self.delete(kind, namespace, name, &options).await {
            Ok(_) => Ok(()),
            Err(status) if status.code == 404 || status.code == 409 => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// `value` is the object as it is to be, if that is not what it is.
    async fn finish(
        &self,
        kind: &'static Kind,
        current: &Arc<Object>,
        value: Option<Value>,
        transaction: Transaction,
        dry_run: bool,
    ) -> Result<Deleted, Refused> {
        let transaction = transaction.unchanged(current.key.clone(), current.revision);
        let changed = value.is_some();
        let value = value.unwrap_or_else(|| current.value());
        if prepare::removable(kind, &value) {
            if !dry_run {
                let transaction = self.allocate(kind, Some(&current.value()), None, transaction)?;
                self.commit(transaction.delete(current.key.clone())).await?;
            }
            return Ok(Deleted::Gone(Arc::new(unstored(current.key.clone(), current.revision, &value))));
        }
        if !changed {
            return Ok(Deleted::Pending(current.clone()));
        }
        if dry_run {
            return Ok(Deleted::Pending(Arc::new(unstored(current.key.clone(), current.revision, &value))));
        }
        let key = current.key.clone();
        let committed = self.commit(transaction.put(key.clone(), value)).await?;
        let written = committed.objects.into_iter().find(|object| object.key == key);
        Ok(Deleted::Pending(
            written.ok_or_else(|| Status::internal("the store answered without the object"))?,
        ))
    }
}

/// Preconditions.
fn check(kind: &Kind, value: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let conflict = |what: &str, wanted: &str, found: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
        Err(Status::conflict(&kind.resource(), read::name(value), &why))
    };
    match &options.uid {
        Some(uid) if uid != read::uid(value) => return conflict("UID", uid, read::uid(value)),
        _ => {}
    }
    match &options.resource_version {
        Some(version) if version != resource_version(value) => {
            conflict("ResourceVersion", version, resource_version(value))
        }
        _ => Ok(()),
    }
}

/// Marks an object as deleted.
fn mark(kind: &Kind, value: &mut Value, options: &DeleteOptions, now: Timestamp) {
    if let Some(propagation) = options.propagation {
        set_propagation(value, propagation);
    }
    let default_grace = (kind.graceful_deletion)(value);
    if read::deleting(value) {
        // Again: the grace may only become shorter.
        let running = value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or_default();
        let wanted = match (default_grace, options.grace) {
            (None, _) => 0,
            (Some(_), Some(grace)) => at_least_one_if_negative(grace),
            (Some(_), None) => running,
        };
        if wanted < running {
            let end =
                value["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
            let end = end.unwrap_or(now);
            let shifted = end.checked_sub(SignedDuration::from_secs(running - wanted)).unwrap_or(now);
            set_deadline(value, shifted, wanted);
        }
    } else {
        let grace = match default_grace {
            None => 0,
            Some(own) => at_least_one_if_negative(options.grace.unwrap_or(own)),
        };
        let deadline = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        set_deadline(value, deadline, grace);
        if kind.has_generation {
            let generation = read::generation(value) + 1;
            read::metadata_mut(value).insert("generation".to_owned(), generation.into());
        }
        if kind.subresources.contains(&Subresource::Finalize) {
            read::map_mut(value, "status").insert("phase".to_owned(), "Terminating".into());
        }
    }
}

/// Kubernetes takes a negative grace for "as short as can be", which is not "by force".
fn at_least_one_if_negative(grace: i64) -> i64 {
    if grace < 0 { 1 } else { grace.min(i64::from(i32::MAX)) }
}

fn set_deadline(value: &mut Value, at: Timestamp, grace: i64) {
    let metadata = read::metadata_mut(value);
    metadata.insert("deletionTimestamp".to_owned(), prepare::time(at).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
}

fn set_propagation(value: &mut Value, propagation: Propagation) {
    const FOREGROUND: &str = "foregroundDeletion";
    const ORPHAN: &str = "orphan";
    let (wanted, unwanted): (Option<&str>, &[&str]) = match propagation {
        Propagation::Background => (None, &[FOREGROUND, ORPHAN]),
        Propagation::Foreground => (Some(FOREGROUND), &[ORPHAN]),
        Propagation::Orphan => (Some(ORPHAN), &[FOREGROUND]),
    };
    let mut finalizers: Vec<Value> = value["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.retain(|f| !unwanted.iter().any(|u| f == u));
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|f| f == wanted)
    {
        finalizers.push(wanted.into());
    }
    let metadata = read::metadata_mut(value);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-11-21T08:45:09Z";

    fn pod() -> Kind {
        let template = berth_controller_core::kinds::ALL.iter().find(|k| k.plural == "pods").unwrap();
        Kind { graceful_deletion: |v| v["spec"]["nodeName"].as_str().map(|_| 30), ..**template }
    }

    fn marked(mut value: Value, options: DeleteOptions) -> Value {
        mark(&pod(), &mut value, &options, NOW.parse().unwrap());
        value
    }

    #[test]
    fn a_bound_pod_keeps_its_grace() {
        let bound = json!({"metadata": {"generation": 1}, "spec": {"nodeName": "a"}});
        let value = marked(bound.clone(), DeleteOptions::default());
        assert_eq!(value["metadata"]["deletionTimestamp"], "2026-11-21T08:45:39Z");
        assert_eq!(value["metadata"]["deletionGracePeriodSeconds"], 30);
        assert!(!prepare::removable(&pod(), &value));
        let forced = marked(bound, DeleteOptions { grace: Some(0), ..Default::default() });
        assert!(prepare::removable(&pod(), &forced));
    }

    #[test]
    fn an_unbound_pod_goes_at_once_whatever_the_caller_says() {
        let value = marked(json!({"spec": {}}), DeleteOptions { grace: Some(60), ..Default::default() });
        assert!(prepare::removable(&pod(), &value));
    }

    #[test]
    fn a_second_deletion_can_only_shorten_the_grace() {
        let bound = json!({"spec": {"nodeName": "a"}});
        let first = marked(bound, DeleteOptions::default());
        let longer = marked(first.clone(), DeleteOptions { grace: Some(90), ..Default::default() });
        assert_eq!(longer, first);
        let again = marked(first.clone(), DeleteOptions::default());
        assert_eq!(again, first);
        let shorter = marked(first, DeleteOptions { grace: Some(10), ..Default::default() });
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-11-21T08:45:19Z");
        assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 10);
    }

    #[test]
    fn propagation_is_a_finalizer() {
        let held = json!({"metadata": {"finalizers": ["orphan", "x/y"]}, "spec": {"nodeName": "a"}});
        let with = |p| {
            let options = DeleteOptions { propagation: p, ..Default::default() };
            marked(held.clone(), options)["metadata"]["finalizers"].clone()
        };
        assert_eq!(with(None), json!(["orphan", "x/y"]));
        assert_eq!(with(Some(Propagation::Background)), json!(["x/y"]));
        assert_eq!(with(Some(Propagation::Orphan)), json!(["orphan", "x/y"]));
        assert_eq!(with(Some(Propagation::Foreground)), json!(["x/y", "foregroundDeletion"]));
    }

    #[test]
    fn preconditions_are_told_as_kubernetes_tells_them() {
        let options = DeleteOptions { uid: Some("b".into()), ..Default::default() };
        let error = check(&pod(), &json!({"metadata": {"name": "web-0", "uid": "a"}}), &options).unwrap_err();
        assert_eq!(error.code, 409);
        assert_eq!(
            error.message,
            "Operation cannot be fulfilled on pods \"web-0\": Precondition failed: UID in precondition: b, UID in object meta: a"
        );
    }
}

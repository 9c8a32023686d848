//! The set, its pods, claims and revisions as the rules see them: read once, typed, small enough to keep.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::annotations;
use super::naming::{self, Ordinals};
use super::{POD_INDEX_LABEL, POD_NAME_LABEL, REVISION_LABEL};
use crate::object;
use crate::selector::Selector;

/// A StatefulSet. Reading it never fails: what is in the store was validated and defaulted.
#[derive(Clone, Debug)]
pub struct Set {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    pub deleting: bool,
    pub ordinals: Ordinals,
    /// podManagementPolicy: Parallel.
    pub parallel: bool,
    pub strategy: Strategy,
    pub min_ready_seconds: i64,
    pub history_limit: usize,
    pub(super) retention: Retention,
    /// Seconds a pod of a new revision may take to be Ready, if the set asks for a limit.
    pub(super) progress_deadline: Option<i64>,
    /// A revision that misses the deadline is left again.
    pub(super) auto_rollback: bool,
    /// Pods that could make way for the update, but whose successors' images cannot be had, with the cause.
    /// Not of the object: the loop knows.
    pub held: BTreeMap<String, String>,
    selector: Selector,
    /// `spec.selector.matchLabels`, which its claims carry.
    pub(super) match_labels: Value,
    pub(super) annotations: Value,
    pub(super) template: Value,
    pub(super) claim_templates: Vec<Value>,
    pub(super) service_name: String,
    /// The status as last written.
    pub(super) status: Value,
}

/// `persistentVolumeClaimRetentionPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retention {
    pub delete_when_deleted: bool,
    pub delete_when_scaled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    RollingUpdate {
        /// Ordinals below it (counted from the first) stay at the current revision.
        partition: u32,
        /// How many of the wanted pods an update may make unavailable, at least 1.
        max_unavailable: u32,
    },
    OnDelete,
}

/// Whose an object is, seen from one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    This,
    /// It has no controller: it may be adopted.
    Nobody,
    Another,
}

/// A pod of the set, or one that stands in its way.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub ordinal: Option<u32>,
    /// The revision it was made from, "" if unknown.
    pub revision: String,
    pub deleting: bool,
    pub phase: Phase,
    /// Since when it is Ready, if it is.
    pub ready_since: Option<Timestamp>,
    /// It runs, was Ready once, and is not now.
    pub lost_readiness: bool,
    /// The host it is bound to.
    pub node: Option<String>,
    /// Since when it is not Ready, if it is not: since it lost its readiness, or was made.
    pub(super) unready_since: Option<Timestamp>,
    /// Why it is not Ready, in a few words.
    pub(super) trouble: String,
    owner_uid: Option<String>,
    labels: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    /// Succeeded or Failed: nothing of it runs, and nothing will.
    Ended,
}

/// A claim that has the name of one of the set's.
#[derive(Clone, Debug)]
pub struct Claim {
    pub name: String,
    pub uid: String,
    pub deleting: bool,
    pub(super) owners: Vec<ClaimOwner>,
    /// It has a volume: only then may it ask for more.
    pub(super) bound: bool,
    /// What it asks for.
    pub(super) storage: Value,
    pub(super) labels: Value,
    pub(super) annotations: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimOwner {
    pub kind: String,
    pub name: String,
    pub uid: String,
    pub controller: bool,
}

/// A ControllerRevision.
#[derive(Clone, Debug)]
pub struct Revision {
    pub name: String,
    pub uid: String,
    pub number: i64,
    /// All pods were Ready at it once.
    pub(super) was_ready: bool,
    pub(super) data: Value,
    owner_uid: Option<String>,
    labels: Value,
    pub(super) deleting: bool,
}

impl Set {
    pub fn read(value: &Value) -> Set {
        let spec = &value["spec"];
        let number = |v: &Value, default: i64| v.as_i64().unwrap_or(default).max(0);
        let small = |v: &Value, default: i64| u32::try_from(number(v, default)).unwrap_or(u32::MAX);
        let retention = &spec["persistentVolumeClaimRetentionPolicy"];
        // (Values that cannot be read were refused when the set was written.)
        let annotation = |key: &str| object::annotation(value, key);
        let auto_rollback =
            annotation(annotations::AUTO_ROLLBACK).is_some_and(|v| annotations::auto_rollback(v) == Ok(true));
        let deadline = annotation(annotations::PROGRESS_DEADLINE)
            .and_then(|v| annotations::progress_deadline(v).ok())
            .or(auto_rollback.then_some(annotations::DEFAULT_DEADLINE));
        Set {
            name: object::name(value).to_owned(),
            namespace: object::namespace(value).to_owned(),
            uid: object::uid(value).to_owned(),
            generation: object::generation(value),
            deleting: object::deleting(value),
            ordinals: Ordinals {
                start: small(&spec["ordinals"]["start"], 0),
                replicas: small(&spec["replicas"], 1),
                reserved: annotation(annotations::RESERVE_ORDINALS)
                    .and_then(|v| annotations::reserved(v).ok())
                    .unwrap_or_default(),
            },
            parallel: spec["podManagementPolicy"] == "Parallel",
            strategy: match spec["updateStrategy"]["type"].as_str() {
                Some("OnDelete") => Strategy::OnDelete,
                _ => Strategy::RollingUpdate {
                    partition: small(&spec["updateStrategy"]["rollingUpdate"]["partition"], 0),
                    max_unavailable: max_unavailable(
                        &spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
                        small(&spec["replicas"], 1),
                    ),
                },
            },
            min_ready_seconds: number(&spec["minReadySeconds"], 0),
            retention: Retention {
                delete_when_deleted: retention["whenDeleted"] == "Delete",
                delete_when_scaled: retention["whenScaled"] == "Delete",
            },
            progress_deadline: deadline,
            auto_rollback,
            held: BTreeMap::new(),
            history_limit: usize::try_from(number(&spec["revisionHistoryLimit"], 10)).unwrap_or(usize::MAX),
            // (One that cannot be read was refused long ago: it selects nothing.)
            selector: Selector::from_object(&spec["selector"]).unwrap_or(Selector::nothing()),
            match_labels: spec["selector"]["matchLabels"].clone(),
            annotations: value["metadata"]["annotations"].clone(),
            template: spec["template"].clone(),
            claim_templates: spec["volumeClaimTemplates"].as_array().cloned().unwrap_or_default(),
            service_name: spec["serviceName"].as_str().unwrap_or_default().to_owned(),
            status: value["status"].clone(),
        }
    }

    pub(super) fn owner_of(&self, owner_uid: Option<&str>) -> Owner {
        match owner_uid {
            None => Owner::Nobody,
            Some(uid) if uid == self.uid => Owner::This,
            Some(_) => Owner::Another,
        }
    }

    /// The names of the claims of one ordinal, in the order of the templates.
    pub fn claims_of(&self, ordinal: u32) -> impl Iterator<Item = String> {
        self.claim_templates.iter().map(move |t| naming::claim_name(object::name(t), &self.name, ordinal))
    }
}

impl Pod {
    pub fn read(value: &Value) -> Pod {
        let status = &value["status"];
        let condition = |kind: &str| {
            status["conditions"].as_array().into_iter().flatten().find(move |c| c["type"] == kind)
        };
        let since = |c: &Value| c["lastTransitionTime"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        let phase = match status["phase"].as_str() {
            Some("Running") => Phase::Running,
            Some("Succeeded" | "Failed") => Phase::Ended,
            _ => Phase::Pending,
        };
        let ready = condition("Ready");
        let is_ready = phase == Phase::Running && ready.is_some_and(|c| c["status"] == "True");
        // A pod that was never ready has been not ready since before it was initialized.
        let was_ready = match (ready.and_then(since), condition("Initialized").and_then(since)) {
            (Some(ready), Some(initialized)) => ready > initialized,
            _ => false,
        };
        let containers = status["containerStatuses"].as_array();
        let runs = phase == Phase::Running
            && containers.is_some_and(|all| all.iter().all(|c| c["state"]["running"].is_object()));
        let created = value["metadata"]["creationTimestamp"].as_str().and_then(|t| t.parse().ok());
        let unready_since = if was_ready { ready.and_then(since) } else { created };
        let name = object::name(value).to_owned();
        Pod {
            unready_since: unready_since.filter(|_| !is_ready),
            trouble: if is_ready { String::new() } else { trouble(value) },
            ordinal: naming::parent_and_ordinal(&name).map(|(_, ordinal)| ordinal),
            uid: object::uid(value).to_owned(),
            revision: object::label(value, REVISION_LABEL).unwrap_or_default().to_owned(),
            deleting: object::deleting(value),
            phase,
            // A condition without a time counts as ready from the beginning.
            ready_since: is_ready.then(|| ready.and_then(since).unwrap_or(Timestamp::UNIX_EPOCH)),
            lost_readiness: runs && !is_ready && was_ready,
            node: value["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()).map(str::to_owned),
            owner_uid: owner_uid(value),
            labels: value["metadata"]["labels"].clone(),
            name,
        }
    }

    pub(super) fn owner(&self, set: &Set) -> Owner {
        set.owner_of(self.owner_uid.as_deref())
    }

    pub(super) fn selected_by(&self, set: &Set) -> bool {
        set.selector.matches(&self.labels)
    }

    /// The labels every pod of a set carries, where this one lacks them (it was adopted).
    pub(super) fn missing_labels(&self, ordinal: u32) -> Vec<(&'static str, String)> {
        [(POD_NAME_LABEL, self.name.clone()), (POD_INDEX_LABEL, ordinal.to_string())]
            .into_iter()
            .filter(|(key, value)| self.labels[*key].as_str() != Some(value))
            .collect()
    }

    /// Ready, for at least `min_ready_seconds`.
    pub fn available(&self, min_ready_seconds: i64, now: Timestamp) -> bool {
        self.available_at(min_ready_seconds).is_some_and(|at| at <= now)
    }

    /// When it is (or was) available, if it stays Ready.
    pub fn available_at(&self, min_ready_seconds: i64) -> Option<Timestamp> {
        let since = self.ready_since?;
        since.checked_add(jiff::SignedDuration::from_secs(min_ready_seconds)).ok()
    }

    pub fn ready(&self) -> bool {
        self.ready_since.is_some()
    }

    /// It serves nobody and did not only just stop to: it never was Ready, or its containers do not run.
    pub fn broken(&self) -> bool {
        !self.ready() && !self.lost_readiness
    }
}

impl Claim {
    pub fn read(value: &Value) -> Claim {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let owners = value["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        Claim {
            name: object::name(value).to_owned(),
            uid: object::uid(value).to_owned(),
            deleting: object::deleting(value),
            owners: owners
                .map(|o| ClaimOwner {
                    kind: text(&o["kind"]),
                    name: text(&o["name"]),
                    uid: text(&o["uid"]),
                    controller: o["controller"] == true,
                })
                .collect(),
            bound: value["status"]["phase"] == "Bound",
            storage: value["spec"]["resources"]["requests"]["storage"].clone(),
            labels: value["metadata"]["labels"].clone(),
            annotations: value["metadata"]["annotations"].clone(),
        }
    }
}

impl Revision {
    pub fn read(value: &Value) -> Revision {
        Revision {
            name: object::name(value).to_owned(),
            uid: object::uid(value).to_owned(),
            number: value["revision"].as_i64().unwrap_or_default(),
            was_ready: object::annotation(value, annotations::WAS_READY) == Some("true"),
            data: value["data"].clone(),
            owner_uid: owner_uid(value),
            labels: value["metadata"]["labels"].clone(),
            deleting: object::deleting(value),
        }
    }

    pub(super) fn owner(&self, set: &Set) -> Owner {
        set.owner_of(self.owner_uid.as_deref())
    }

    pub(super) fn selected_by(&self, set: &Set) -> bool {
        set.selector.matches(&self.labels)
    }
}

/// Why a pod is not Ready, from its status: the first container that waits for something other than its
/// turn, has ended, or is not ready; else what the scheduler says.
fn trouble(pod: &Value) -> String {
    let status = &pod["status"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let containers = ["initContainerStatuses", "containerStatuses"];
    let containers = || containers.iter().flat_map(|field| status[*field].as_array().into_iter().flatten());
    for container in containers() {
        let name = text(&container["name"]);
        let waiting = &container["state"]["waiting"];
        let reason = text(&waiting["reason"]);
        if !matches!(reason.as_str(), "" | "PodInitializing" | "ContainerCreating") {
            let message = text(&waiting["message"]);
            let message = if message.is_empty() { message } else { format!(" ({message})") };
            return format!("container {name} waits: {reason}{message}");
        }
    }
    for container in status["containerStatuses"].as_array().into_iter().flatten() {
        let name = text(&container["name"]);
        if let Some(code) = container["state"]["terminated"]["exitCode"].as_i64() {
            return format!("container {name} ended with exit code {code}");
        }
        if container["state"]["running"].is_object() && container["ready"] != true {
            return format!("container {name} runs, but is not ready");
        }
    }
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    match conditions.find(|c| c["type"] == "PodScheduled" && c["status"] == "False") {
        Some(condition) => format!("it is on no host: {}", text(&condition["message"])),
        None => format!("it is {}", status["phase"].as_str().unwrap_or("Pending")),
    }
}

/// A number, or a percentage of the replicas; as Kubernetes reads it: rounded down, and at least 1.
fn max_unavailable(value: &Value, replicas: u32) -> u32 {
    let number = match value {
        Value::String(text) => {
            let percent: u64 = text.strip_suffix('%').and_then(|n| n.parse().ok()).unwrap_or_default();
            percent.saturating_mul(u64::from(replicas)) / 100
        }
        other => other.as_u64().unwrap_or(1),
    };
    u32::try_from(number).unwrap_or(u32::MAX).max(1)
}

fn owner_uid(value: &Value) -> Option<String> {
    Some(object::controller_ref(value)?["uid"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn at_least_one_pod_may_always_be_unavailable() {
        let of = |value: Value, replicas| max_unavailable(&value, replicas);
        assert_eq!([of(json!(3), 2), of(Value::Null, 9), of(json!(0), 9)], [3, 1, 1]);
        assert_eq!([of(json!("50%"), 5), of(json!("10%"), 5), of(json!("100%"), 5)], [2, 1, 5]);
    }
}

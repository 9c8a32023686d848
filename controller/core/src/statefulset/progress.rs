//! Whether a roll-out gets on, for sets that ask (annotations `berth.dev/progress-deadline-seconds` and
//! `berth.dev/auto-rollback`).
//!
//! ```text
//!                 every pod of the update is available
//!   RollingOut ───────────────────────────────────────▶ NewRevisionAvailable
//!       │ ▲
//!       │ │ the pod is Ready after all (and was not given up)
//!       ▼ │                                    auto-rollback, and a revision to return to
//!   ProgressDeadlineExceeded ─────────────────────────────────────▶ the same, and RevisionRejected
//! ```
//! Another template begins anew, from any of these. What decides is stored: the pods, and the set's own
//! conditions, which belong to `status.updateRevision`. So a restart of the controller forgets nothing.
//!
//! Two things miss a deadline: a pod of the new revision that is not Ready that long after it was made (or
//! lost its readiness), and an outdated pod that could make way that long, but whose successor's images
//! cannot be had. Other waiting (for a stopping pod, for an unhealthy pod of another revision) is not the
//! new revision's fault.
//!
//! With OnDelete the same is said, of the pods that somebody has deleted and of those that come back. Nothing returns
//! by itself there: who deletes pods decides, and no time is too long for that.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::plan::Action;
use super::revision::Revisions;
use super::set::{Pod, Set, Strategy};

const PROGRESSING: &str = "Progressing";
const REJECTED: &str = "RevisionRejected";
const ROLLING_OUT: &str = "RollingOut";
const AVAILABLE: &str = "NewRevisionAvailable";
const EXCEEDED: &str = "ProgressDeadlineExceeded";

/// How the roll-out stands.
#[derive(Debug)]
pub(super) struct Progress {
    /// The update's revision was given up: pods return to the current one.
    pub rejected: bool,
    /// It missed its deadline, and no further pod is put at risk.
    pub halted: bool,
    /// When a deadline passes, if nothing changes.
    pub wake_at: Option<Timestamp>,
    conditions: Vec<Value>,
    pub events: Vec<Action>,
}

/// What the set's status says, if it speaks of this very update.
struct Said<'a> {
    progressing: Option<&'a Value>,
    rejected: Option<&'a Value>,
}

impl<'a> Said<'a> {
    fn of(set: &'a Set, revisions: &Revisions) -> Said<'a> {
        let same = set.status["updateRevision"] == *revisions.update.revision;
        let condition = |kind: &str| {
            let all = set.status["conditions"].as_array().into_iter().flatten();
            all.into_iter().find(|c| c["type"] == kind).filter(|_| same)
        };
        Said { progressing: condition(PROGRESSING), rejected: condition(REJECTED) }
    }
}

/// Judges the roll-out. `held`: the outdated pods that could make way now and have not yet.
pub(super) fn judge(
    set: &Set,
    members: &[&Pod],
    revisions: &Revisions,
    held: &[&str],
    now: Timestamp,
) -> Progress {
    let said = Said::of(set, revisions);
    let mut progress = Progress {
        rejected: said.rejected.is_some(),
        halted: false,
        wake_at: None,
        conditions: Vec::new(),
        events: Vec::new(),
    };
    // Of a set that goes nothing is rolled out any more.
    if progress.rejected || set.deleting {
        progress.conditions.extend(said.progressing.into_iter().chain(said.rejected).cloned());
        return progress;
    }
    let Some(deadline) = set.progress_deadline else { return progress };
    let (partition, rolls) = match set.strategy {
        Strategy::RollingUpdate { partition, .. } => (partition, true),
        Strategy::OnDelete => (0, false),
    };
    let update = &revisions.update.revision;
    let in_scope = || {
        let wanted = set.ordinals.iter().skip(partition as usize);
        wanted.map(|ordinal| members.iter().find(|p| p.ordinal == Some(ordinal) && !p.deleting))
    };
    let updated = in_scope().flatten().filter(|p| p.revision == *update).count();
    let available = in_scope()
        .flatten()
        .filter(|p| p.revision == *update && p.available(set.min_ready_seconds, now))
        .count();
    let was_complete = said.progressing.is_some_and(|c| c["reason"] == AVAILABLE);
    let outdated = in_scope().flatten().any(|p| p.revision != *update);
    if available == in_scope().count() || was_complete && !outdated {
        let message = format!("every pod that is to be of revision {update} is available");
        progress.say(&said, PROGRESSING, true, AVAILABLE, message, now);
        return progress;
    }

    let late = SignedDuration::from_secs(deadline);
    let mut fault: Option<String> = None;
    // Whether this has taken too long; if it may yet, the loop wakes up for it.
    let mut is_late = |since: Timestamp| match since.checked_add(late) {
        Ok(at) if at > now => {
            progress.wake_at = Some(progress.wake_at.map_or(at, |w| w.min(at)));
            false
        }
        _ => true,
    };
    for pod in in_scope().flatten().filter(|p| p.revision == *update) {
        if pod.unready_since.is_some_and(&mut is_late) && fault.is_none() {
            let (name, trouble) = (&pod.name, &pod.trouble);
            fault = Some(format!("pod {name} of revision {update} was not Ready in {deadline} s: {trouble}"));
        }
    }
    let unready = fault.is_some();
    let mut rolling_out = format!("{updated} pods are of revision {update}, {available} of them available");
    if !rolls {
        rolling_out += "; the others are updated when somebody deletes them";
    }
    let stored = said.progressing;
    // Once one was found late, it is until this pod makes way, whoever waits beside it.
    let names = |pod: &str| {
        let waits = format!("pod {pod} could not make way");
        stored.and_then(|c| c["message"].as_str()).is_some_and(|m| m.starts_with(&waits))
    };
    let found = held.iter().find(|pod| names(pod));
    if let Some(pod) = found.or(held.first()).filter(|_| !unready) {
        let why = set.held.get(*pod).map_or("its images are not on its host yet", String::as_str);
        // Since the last step.
        let since = stored
            .filter(|c| c["message"] == *rolling_out)
            .and_then(|c| c["lastTransitionTime"].as_str()?.parse().ok());
        if found.is_some() || is_late(since.unwrap_or(now)) {
            fault =
                Some(format!("pod {pod} could not make way for revision {update} in {deadline} s: {why}"));
        }
    }
    let Some(fault) = fault else {
        progress.say(&said, PROGRESSING, true, ROLLING_OUT, rolling_out, now);
        return progress;
    };
    progress.halted = unready;
    let current = &revisions.current;
    let can_return = current.was_ready && current.revision != *update;
    let mut message = fault.clone();
    if set.auto_rollback && rolls && can_return {
        progress.rejected = true;
        message =
            format!("{fault}; revision {update} is rejected and its pods return to {}", current.revision);
        progress.say(&said, REJECTED, true, EXCEEDED, message.clone(), now);
        progress.tell("RevisionRejected", &message);
    } else if set.auto_rollback && rolls {
        message =
            format!("{fault}; there is no revision to return to, since none was ever Ready in all its pods");
    }
    if stored.is_none_or(|c| c["status"] != "False") {
        progress.tell(EXCEEDED, &fault);
    }
    progress.say(&said, PROGRESSING, false, EXCEEDED, message, now);
    progress
}

impl Progress {
    /// A condition. It keeps its time for as long as it says the same.
    fn say(&mut self, said: &Said, kind: &str, holds: bool, reason: &str, message: String, now: Timestamp) {
        let status = if holds { "True" } else { "False" };
        let stored = if kind == PROGRESSING { said.progressing } else { said.rejected };
        let same = stored
            .filter(|c| c["status"] == status && c["reason"] == reason && c["message"] == *message)
            .and_then(|c| c["lastTransitionTime"].as_str());
        let since = same.map_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), str::to_owned);
        self.conditions.push(json!({
            "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
        }));
    }

    fn tell(&mut self, reason: &'static str, message: &str) {
        self.events.push(Action::Warn { reason, message: message.to_owned() });
    }

    /// The set's conditions: others' are kept.
    pub fn conditions(&self, set: &Set) -> Vec<Value> {
        let stored = set.status["conditions"].as_array().into_iter().flatten();
        let others = stored.filter(|c| c["type"] != PROGRESSING && c["type"] != REJECTED).cloned();
        others.chain(self.conditions.iter().cloned()).collect()
    }
}

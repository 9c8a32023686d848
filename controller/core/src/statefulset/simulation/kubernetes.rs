//! Kubernetes' own rule (stateful_set_control.go, as of 1.36), as far as the bugs cited here need it. It is here to
//! show that each of their tests fails under it.

use super::*;
use crate::statefulset::set::{Owner, Phase};
use crate::statefulset::{pod, revision};

/// Whose rule a world's loop goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Berth,
    Kubernetes,
}

/// The same plan, with what Kubernetes would do to pods and claims.
pub fn instead_of(mut plan: Plan, set: &Set, pods: &[Pod], revisions: &[Revision], now: Timestamp) -> Plan {
    plan.actions.retain(|action| match action {
        // Claims never follow their template.
        Action::ChangeClaim { .. } => false,
        Action::CreatePod { .. } | Action::DeletePod { .. } | Action::ReplacePod { .. } => false,
        Action::CreateClaims { .. } | Action::CannotCreate { .. } => false,
        _ => true,
    });
    let members: Vec<&Pod> = pods.iter().filter(|p| p.owner(set) == Owner::This).collect();
    let revisions = revision::resolve(set, &members, revisions);
    plan.actions.extend(next(set, &members, &revisions, now));
    plan
}

fn next(set: &Set, pods: &[&Pod], revisions: &revision::Revisions, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let healthy = |p: &Pod| p.available(set.min_ready_seconds, now) && !p.deleting;
    // Nothing is reserved.
    let wanted = set.ordinals.start..set.ordinals.start + set.ordinals.replicas;
    let of = |ordinal: u32| pods.iter().copied().find(|p| p.ordinal == Some(ordinal));
    let delete = |p: &Pod| Action::DeletePod { name: p.name.clone(), uid: p.uid.clone() };
    for ordinal in wanted.clone() {
        match of(ordinal) {
            None => {
                let pod = pod::make(set, &revisions.update, ordinal);
                let name = pod_name(&set.name, ordinal);
                actions.push(Action::CreatePod { name, pod, claims: Vec::new() });
            }
            Some(pod) if pod.phase == Phase::Ended && !pod.deleting => actions.push(delete(pod)),
            // The update is never reached.
            Some(pod) if healthy(pod) => continue,
            Some(_) => {}
        }
        if !set.parallel {
            return actions;
        }
    }
    let mut condemned: Vec<&Pod> =
        pods.iter().copied().filter(|p| p.ordinal.is_some_and(|o| !wanted.contains(&o))).collect();
    condemned.sort_by_key(|p| std::cmp::Reverse(p.ordinal));
    let first_unhealthy = condemned.iter().rev().find(|p| !healthy(p)).map(|p| &p.uid);
    for pod in condemned {
        let waits = pod.deleting || !healthy(pod) && first_unhealthy != Some(&pod.uid);
        if !pod.deleting && (set.parallel || !waits) {
            actions.push(delete(pod));
        }
        if !set.parallel {
            return actions;
        }
    }
    let super::super::set::Strategy::RollingUpdate { partition, .. } = set.strategy else { return actions };
    for ordinal in wanted.rev().take_while(|o| o - set.ordinals.start >= partition) {
        let Some(pod) = of(ordinal) else { break };
        if pod.revision != revisions.update.revision && !pod.deleting {
            actions.push(delete(pod));
        }
        if pod.revision != revisions.update.revision || !healthy(pod) {
            break;
        }
    }
    actions
}

//! StatefulSets: what is to be done next for one set, decided from what there is ([`plan`]).
//!
//! The rules are Kubernetes' (stateful_set_control.go), each in one place:
//! - [`naming`]: ordinals, and the names that follow from them;
//! - [`set`]: the set, its pods, claims and revisions as the rules see them;
//! - [`revision`]: which revisions exist, which is current and which the update goes to;
//! - [`pod`]: how a new pod and its claims look;
//! - [`plan`]: the order of things;
//! - [`update`]: which pods make way for a newer revision, and when;
//! - [`progress`]: whether an update gets on, and when it is given up;
//! - [`claims`]: who owns the claims;
//! - [`annotations`]: what a set may ask for beyond Kubernetes' fields;
//! - [`status`]: what is said about it.
//!
//! Three deviations, all towards less waiting: a condemned pod's own unreadiness never delays its deletion;
//! scaling to zero does not wait for pods that cannot become ready (kubernetes/kubernetes#57865); and a pod
//! of a superseded revision that is not Ready is replaced without waiting for it (#67250, #141095). Tests named
//! after such issues (`simulation/bugs.rs`) live the same history through under Kubernetes' rule, where they fail.

pub mod annotations;
mod claims;
mod naming;
mod plan;
mod pod;
mod progress;
mod revision;
mod set;
mod status;
mod update;

#[cfg(test)]
mod simulation;

pub use naming::{claim_name, parent_and_ordinal, pod_name};
pub use plan::{Action, Plan, plan};
pub use revision::{HASH_LABEL, hash};
pub use set::{Claim, Pod, Revision, Set};

pub const REVISION_LABEL: &str = "controller-revision-hash";
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

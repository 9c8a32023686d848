//! StatefulSets: what is to be done next for one set, decided from what there is ([`plan`]).
//!
//! The rules are Kubernetes' (stateful_set_control.go), each in one place:
//! - [`naming`]: ordinals, and the names that follow from them;
//! - [`set`]: the set, its pods, claims and revisions as the rules see them;
//! - [`revision`]: which revisions exist, which is current and which the update goes to;
//! - [`pod`]: how a new pod and its claims look;
//! - [`plan`]: the order of things;
//! - [`status`]: what is said about it.
//!
//! Two deviations, both towards less waiting: a condemned pod's own unreadiness never delays its deletion,
//! and scaling to zero does not wait for pods that cannot become ready (kubernetes/kubernetes#57865).

mod naming;
mod plan;
mod pod;
mod revision;
mod set;
mod status;

#[cfg(test)]
mod simulation;

pub use naming::{claim_name, parent_and_ordinal, pod_name};
pub use plan::{Action, Plan, plan};
pub use revision::{HASH_LABEL, hash};
pub use set::{Claim, Pod, Revision, Set};

pub const REVISION_LABEL: &str = "controller-revision-hash";
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

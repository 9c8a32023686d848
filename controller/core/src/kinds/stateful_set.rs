//! StatefulSet.

use super::{Kind, NameRule, Subresource};

pub static STATEFUL_SET: Kind = Kind {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.StatefulSet",
    subresources: &[Subresource::Status, Subresource::Scale],
    name_rule: NameRule::Label,
    has_status: true,
    has_generation: true,
    ..Kind::COMMON
};

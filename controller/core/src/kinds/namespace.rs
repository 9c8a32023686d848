//! Namespace.

use super::{Kind, NameRule, Subresource};

pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Namespace",
    subresources: &[Subresource::Status, Subresource::Finalize],
    name_rule: NameRule::Label,
    has_status: true,
    ..Kind::COMMON
};

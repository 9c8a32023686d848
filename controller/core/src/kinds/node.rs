//! Node.

use super::{Kind, Subresource};

pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Node",
    subresources: &[Subresource::Status],
    has_status: true,
    ..Kind::COMMON
};

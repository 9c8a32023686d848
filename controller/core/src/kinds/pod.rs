//! Pod.

use super::{Kind, Subresource};

pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Pod",
    subresources: &[Subresource::Status, Subresource::Connect("exec"), Subresource::Connect("log")],
    has_status: true,
    has_generation: true,
    ..Kind::COMMON
};

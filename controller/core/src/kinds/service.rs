//! Service.

use super::{Kind, NameRule, Subresource};

pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Service",
    subresources: &[Subresource::Status],
    name_rule: NameRule::Label1035,
    has_status: true,
    ..Kind::COMMON
};

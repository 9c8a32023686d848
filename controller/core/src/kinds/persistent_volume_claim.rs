//! PersistentVolumeClaim.

use super::{Kind, Subresource};

pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
    subresources: &[Subresource::Status],
    has_status: true,
    finalizers: &["kubernetes.io/pvc-protection"],
    ..Kind::COMMON
};

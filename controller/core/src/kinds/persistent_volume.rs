//! PersistentVolume.

use super::{Kind, Subresource};

pub static PERSISTENT_VOLUME: Kind = Kind {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.PersistentVolume",
    subresources: &[Subresource::Status],
    has_status: true,
    finalizers: &["kubernetes.io/pv-protection"],
    ..Kind::COMMON
};

//! What a kind is. A kind is one file here and one line in [`ALL`]; the HTTP layer, discovery, OpenAPI,
//! tables and garbage collection learn all they need from its [`Kind`], and name no kind themselves.

use serde_json::Value;

use crate::field::FieldError;

pub mod check;
pub mod columns;
pub mod config_map;
pub mod controller_revision;
pub mod default;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod lease;
pub mod meta;
pub mod names;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
mod pod_columns;
pub mod pod_disruption_budget;
pub mod pod_spec;
pub mod rbac;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod stateful_set;
pub mod storage_class;

/// Everything Berth knows about one kind. All functions are pure.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// "" for core/v1.
    pub group: &'static str,
    pub version: &'static str,
    /// `StatefulSet`
    pub kind: &'static str,
    /// `statefulsets`
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    /// `all` for what `kubectl get all` shows.
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// The type's name in Kubernetes' OpenAPI, e.g. `io.k8s.api.apps.v1.StatefulSet`.
    pub schema: &'static str,
    /// What can be read, written or done besides the whole object.
    pub subresources: &'static [Subresource],
    /// How a name must look.
    pub name_rule: NameRule,
    /// Fills Kubernetes' defaults into a decoded object (idempotent; also run on what patches produce).
    pub default: fn(&mut Value),
    /// After `default` and before `validate` of a new object: clears what only the system may set and puts
    /// the first status in (a pod is Pending, a namespace Active).
    pub prepare_create: fn(&mut Value),
    /// After `default` and before `validate` of an update of the main resource, given (old, new): keeps what
    /// a client may leave out because the system allocated it (a Service's address, a namespace's finalizers).
    pub prepare_update: fn(&Value, &mut Value),
    /// Everything wrong with a new object (its metadata is checked by the generic code).
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// What may not change, given (old, new); runs after `validate` accepted `new`.
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    /// Whether status is apart from the rest: dropped on create (`prepare_create` puts the first one in), kept
    /// on writes of the object, and written alone through the status subresource. False: the whole object is
    /// one (ConfigMap, Secret...).
    pub has_status: bool,
    /// Whether a change of `spec` counts up `metadata.generation` (Pod, StatefulSet; not what Kubernetes
    /// leaves without one, such as Service or Node).
    pub has_generation: bool,
    /// Grace period in seconds with which this object is deleted if the caller names none. None: at once,
    /// whatever the caller names (anything but a pod; a pod not bound yet, or one that has ended).
    pub graceful_deletion: fn(&Value) -> Option<i64>,
    /// Finalizers every new object gets (`kubernetes.io/pvc-protection`).
    pub finalizers: &'static [&'static str],
    /// Printed columns in order, Name first, Age wherever Kubernetes puts it.
    pub columns: &'static [Column],
    /// Field selectors besides metadata.name and metadata.namespace, e.g. `spec.nodeName`.
    pub fields: &'static [FieldSelector],
    /// Warnings on create and update, e.g. "grants nothing".
    pub warnings: fn(&Value) -> Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// Reads and writes only `status`.
    Status,
    /// autoscaling/v1 Scale over spec.replicas, status.replicas and spec.selector.
    Scale,
    /// Namespace finalization: writes only spec.finalizers.
    Finalize,
    /// Served by a handler that `main` registers: `log`, `exec`, `binding`, `eviction`.
    Connect(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253.
    Subdomain,
    /// RFC 1123 label, at most 63 (Namespace, ...).
    Label,
    /// RFC 1035 label, at most 63 (Service).
    Label1035,
    /// Anything that is one path segment (RBAC).
    PathSegment,
}

/// One printed column of `kubectl get`, as in metav1.TableColumnDefinition.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean`, `date`.
    pub r#type: &'static str,
    /// "" or `name`.
    pub format: &'static str,
    /// 0: always, 1: with `-o wide`.
    pub priority: i32,
    pub description: &'static str,
    /// The cell, given the object and the time now.
    pub cell: fn(&Value, jiff::Timestamp) -> Value,
}

#[derive(Debug)]
pub struct FieldSelector {
    /// `status.phase`
    pub path: &'static str,
    /// The value compared; "" if absent.
    pub value: fn(&Value) -> String,
}

impl Kind {
    /// What most kinds share, for `..Kind::COMMON`: namespaced, no status, nothing defaulted or refused.
    pub(crate) const COMMON: Kind = Kind {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        schema: "",
        subresources: &[],
        name_rule: NameRule::Subdomain,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        validate: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        has_status: false,
        has_generation: false,
        graceful_deletion: |_| None,
        finalizers: &[],
        columns: &[columns::NAME, columns::AGE],
        fields: &[],
        warnings: |_| Vec::new(),
    };

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `statefulsets.apps`, as error messages name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// All kinds served, in the order of discovery.
pub static ALL: &[&Kind] = &[
    &namespace::NAMESPACE,
    &node::NODE,
    &pod::POD,
    &service::SERVICE,
    &endpoints::ENDPOINTS,
    &persistent_volume::PERSISTENT_VOLUME,
    &persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    &config_map::CONFIG_MAP,
    &secret::SECRET,
    &service_account::SERVICE_ACCOUNT,
    &event::EVENT,
    &stateful_set::STATEFUL_SET,
    &controller_revision::CONTROLLER_REVISION,
    &endpoint_slice::ENDPOINT_SLICE,
    &lease::LEASE,
    &pod_disruption_budget::POD_DISRUPTION_BUDGET,
    &storage_class::STORAGE_CLASS,
    &rbac::ROLE,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::CLUSTER_ROLE_BINDING,
];

/// The kind served at this place of the API, if any.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The kind an object names in its apiVersion and kind.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.kind == kind && k.api_version() == api_version)
}

#[cfg(test)]
mod tests;

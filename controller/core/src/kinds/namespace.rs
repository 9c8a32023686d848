//! Namespace. It is removed in two steps: deletion makes it Terminating, and the `kubernetes` finalizer in its
//! spec goes once everything in it is gone.

use serde_json::{Value, json};

use super::check::{At, Errors, invalid_each};
use super::columns::{self, text};
use super::{FieldSelector, Kind, NameRule, Subresource, default, names};
use crate::object;

/// The label every namespace carries its own name in.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

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
    default: |namespace| {
        let name = object::name(namespace).to_owned();
        if !name.is_empty() {
            let labels = default::map(default::map(namespace, "metadata"), "labels");
            if let Some(labels) = labels.as_object_mut() {
                labels.insert(NAME_LABEL.into(), name.into());
            }
        }
    },
    prepare_create: |namespace| {
        let spec = default::map(namespace, "spec");
        let mut finalizers = spec["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        spec["finalizers"] = finalizers.into();
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.insert("status".into(), json!({"phase": "Active"}));
        }
    },
    // Only the finalize subresource writes the finalizers.
    prepare_update: |old, new| default::copy(&old["spec"], default::map(new, "spec"), "finalizers"),
    validate: |namespace| {
        let finalizers = At::root(namespace).get("spec").get("finalizers");
        let wrong = |f: At| invalid_each(&f, names::qualified(f.str()));
        finalizers.items().flat_map(wrong).collect::<Errors>()
    },
    columns: &[
        columns::NAME,
        text("Status", "Active, or Terminating while it is being removed.", |namespace, _| phase(namespace)),
        columns::AGE,
    ],
    fields: &[FieldSelector {
        path: "status.phase",
        value: |namespace| phase(namespace).as_str().unwrap_or_default().to_owned(),
    }],
    ..Kind::COMMON
};

fn phase(namespace: &Value) -> Value {
    columns::or(&namespace["status"]["phase"], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_active_labelled_and_held_by_its_finalizer() {
        let mut namespace = json!({"metadata": {"name": "xgp-lll"}});
        (NAMESPACE.default)(&mut namespace);
        (NAMESPACE.prepare_create)(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "xgp-lll", "labels": {NAME_LABEL: "xgp-lll"}},
                   "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        let mut without = json!({"metadata": {"name": "xgp-lll"}});
        (NAMESPACE.prepare_update)(&namespace, &mut without);
        assert_eq!(without["spec"], namespace["spec"]);
    }
}

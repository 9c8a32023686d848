//! StorageClass: how volumes are made for claims that name it.

use serde_json::Value;

use super::check::{At, Errors, immutable, invalid_each, one_of, only_supported, same, too_long};
use super::columns::{self, or, text};
use super::{Column, Kind, default, names};
use crate::field::FieldError;
use crate::object;

/// Set to `true` on the class of claims that name none.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

pub static STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    schema: "io.k8s.api.storage.v1.StorageClass",
    default: |class| {
        default::if_absent(class, "reclaimPolicy", "Delete");
        default::if_absent(class, "volumeBindingMode", "Immediate");
    },
    validate: |class| validate(&At::root(class)),
    validate_update,
    columns: &[
        Column {
            format: "name",
            ..text("Name", "The class's name; the default one is marked.", |class, _| {
                let marked = object::annotation(class, DEFAULT_CLASS) == Some("true");
                format!("{}{}", object::name(class), if marked { " (default)" } else { "" }).into()
            })
        },
        text("Provisioner", "What makes the volumes.", |class, _| or(&class["provisioner"], "")),
        text("ReclaimPolicy", "What becomes of the data once the claim is deleted.", |class, _| {
            or(&class["reclaimPolicy"], "Delete")
        }),
        text("VolumeBindingMode", "When volumes are made and bound.", |class, _| {
            or(&class["volumeBindingMode"], "Immediate")
        }),
        Column {
            r#type: "boolean",
            ..text("AllowVolumeExpansion", "Whether claims may grow.", |class, _| {
                (class["allowVolumeExpansion"] == true).into()
            })
        },
        columns::AGE,
    ],
    ..Kind::COMMON
};

fn validate(class: &At) -> Errors {
    const MAX: usize = 256 * 1024;
    let mut errors = Errors::new();
    let provisioner = class.get("provisioner");
    if provisioner.str().is_empty() {
        errors.push(provisioner.required(""));
    } else {
        errors.extend(invalid_each(&provisioner, names::qualified(&provisioner.str().to_lowercase())));
    }
    let parameters = class.get("parameters");
    if parameters.len() > 512 {
        errors.push(too_long(&parameters.path, 512));
    }
    if parameters.entries().any(|(key, _)| key.is_empty()) {
        errors.push(FieldError::invalid(&parameters.path, "", "field can not be empty."));
    }
    if parameters.entries().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX {
        errors.push(too_long(&parameters.path, MAX));
    }
    errors.extend(one_of(&class.get("reclaimPolicy"), &["Delete", "Retain"]));
    errors.extend(one_of(&class.get("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]));
    const KNOWN: &[&str] = &[
        "apiVersion",
        "kind",
        "metadata",
        "provisioner",
        "parameters",
        "reclaimPolicy",
        "volumeBindingMode",
        "allowVolumeExpansion",
        "mountOptions",
    ];
    errors.extend(only_supported(class, KNOWN));
    errors
}

fn validate_update(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old), At::root(new));
    let mut errors = Errors::new();
    for field in ["parameters", "provisioner"] {
        if !same(old.get(field).value, new.get(field).value) {
            errors.push(new.get(field).forbidden(format!("updates to {field} are forbidden.")));
        }
    }
    for field in ["reclaimPolicy", "volumeBindingMode"] {
        errors.extend(immutable(&old.get(field), &new.get(field)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_deletes_and_binds_at_once_unless_it_says_otherwise() {
        let mut class = json!({"metadata": {"name": "c"}, "provisioner": "bdqn", "reclaimPolicy": "Retain"});
        (STORAGE_CLASS.default)(&mut class);
        assert_eq!(class["reclaimPolicy"], "Retain");
        assert_eq!(class["volumeBindingMode"], "Immediate");
        assert_eq!((STORAGE_CLASS.validate)(&class), []);
    }

    #[test]
    fn the_default_class_is_marked() {
        let class = json!({"metadata": {"name": "local", "annotations": {DEFAULT_CLASS: "true"}}});
        assert_eq!((STORAGE_CLASS.columns[0].cell)(&class, jiff::Timestamp::UNIX_EPOCH), "local (default)");
    }

    #[test]
    fn what_makes_the_volumes_never_changes() {
        let old = json!({"provisioner": "a", "parameters": {"x": "1"}, "reclaimPolicy": "Delete"});
        let new = json!({"provisioner": "b", "parameters": {"x": "2"}, "reclaimPolicy": "Retain"});
        let errors: Vec<String> = validate_update(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                r#"reclaimPolicy: Invalid value: "Retain": field is immutable"#,
            ]
        );
    }
}

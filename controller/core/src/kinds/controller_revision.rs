//! ControllerRevision: a state of a StatefulSet's template, kept to go back to.

use super::Kind;
use super::check::{At, Errors, immutable, nonnegative};
use super::columns::{self, number, text};
use crate::object;

pub static CONTROLLER_REVISION: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    validate: |revision| {
        let (data, number) = (At::root(revision).get("data"), At::root(revision).get("revision"));
        let mut errors = Errors::new();
        if data.is_null() {
            errors.push(data.required("data is mandatory"));
        }
        errors.extend(nonnegative(&number));
        errors
    },
    validate_update: |old, new| {
        immutable(&At::root(old).get("data"), &At::root(new).get("data")).into_iter().collect()
    },
    columns: &[
        columns::NAME,
        text("Controller", "What the revision belongs to.", |revision, _| {
            let Some(owner) = object::controller_ref(revision) else { return "<none>".into() };
            let part = |field: &str| owner[field].as_str().unwrap_or_default();
            let group = part("apiVersion").rsplit_once('/').map(|(group, _)| format!(".{group}"));
            let kind = format!("{}{}", part("kind"), group.unwrap_or_default()).to_lowercase();
            format!("{kind}/{}", part("name")).into()
        }),
        number("Revision", "The revision's number.", |revision, _| {
            revision["revision"].as_i64().unwrap_or_default().into()
        }),
        columns::AGE,
    ],
    ..Kind::COMMON
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_row_names_the_set() {
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true});
        let revision = json!({"metadata": {"name": "web-1", "ownerReferences": [owner]}, "revision": 1});
        let cell = |i: usize| (CONTROLLER_REVISION.columns[i].cell)(&revision, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!((cell(1), cell(2)), (json!("statefulset.apps/web"), json!(1)));
    }

    #[test]
    fn its_data_never_changes() {
        let (old, new) = (json!({"data": {"a": 1}}), json!({"data": {"a": 2}}));
        assert_eq!(
            (CONTROLLER_REVISION.validate_update)(&old, &new)[0].to_string(),
            r#"data: Invalid value: {"a":2}: field is immutable"#
        );
    }
}

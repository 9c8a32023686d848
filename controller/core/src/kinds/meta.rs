//! Rules for `metadata`, which are the same for every kind (k8s.io/apimachinery api/validation/objectmeta.go).

use serde_json::Value;

use super::check::{self, At, Errors};
use super::{Kind, names};
use crate::field::FieldError;

/// The metadata of a new object, its name generated already.
pub fn validate(kind: &Kind, object: &Value) -> Errors {
    let meta = At::root(object).get("metadata");
    let mut errors = Errors::new();

    let (name, generate) = (meta.get("name"), meta.get("generateName"));
    if !generate.str().is_empty() {
        errors.extend(check::invalid_each(&generate, names::object(kind.name_rule, generate.str(), true)));
    }
    if name.str().is_empty() {
        errors.push(name.required("name or generateName is required"));
    } else {
        errors.extend(check::invalid_each(&name, names::object(kind.name_rule, name.str(), false)));
    }

    let namespace = meta.get("namespace");
    match (kind.namespaced, namespace.str()) {
        (true, "") => errors.push(namespace.required("")),
        (true, text) => errors.extend(check::invalid_each(&namespace, names::label(text))),
        (false, "") => {}
        (false, _) => errors.push(namespace.forbidden("not allowed on this type")),
    }
    errors.extend(common(&meta));
    errors
}

/// The metadata of a changed object.
pub fn validate_update(old: &Value, new: &Value) -> Errors {
    let (old, new) = (At::root(old).get("metadata"), At::root(new).get("metadata"));
    let mut errors = Errors::new();
    if old.get("deletionTimestamp").is_set() {
        let had: Vec<&str> = old.get("finalizers").items().map(|f| f.str()).collect();
        let mut added: Vec<&str> = new.get("finalizers").items().map(|f| f.str()).collect();
        added.retain(|f| !had.contains(f));
        added.sort_unstable();
        if !added.is_empty() {
            let list = added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            errors.push(new.get("finalizers").forbidden(format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers \
                 []string{{{list}}}"
            )));
        }
    }
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        errors.extend(check::immutable(&old.get(field), &new.get(field)));
    }
    errors.extend(common(&new));
    errors
}

fn common(meta: &At) -> Errors {
    let mut errors = Errors::new();
    errors.extend(check::nonnegative(&meta.get("generation")));
    errors.extend(check::labels(&meta.get("labels")));
    errors.extend(check::annotations(&meta.get("annotations")));
    errors.extend(owners(&meta.get("ownerReferences")));
    errors.extend(finalizers(&meta.get("finalizers")));
    errors
}

fn owners(at: &At) -> Errors {
    let mut errors = Errors::new();
    let mut controller: Option<String> = None;
    for owner in at.items() {
        for (field, says) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner.get(field).str().is_empty() {
                errors.push(FieldError::invalid(&at.path.child(field), "", says));
            }
        }
        if owner.get("apiVersion").str() == "v1" && owner.get("kind").str() == "Event" {
            errors.push(FieldError::invalid(
                &at.path,
                owner.value.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.get("controller").is_true() {
            let this = format!("{}/{}", owner.get("kind").str(), owner.get("name").str());
            match &controller {
                Some(first) => errors.push(at.invalid(format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for \
                     {first} and {this}"
                ))),
                None => controller = Some(this),
            }
        }
    }
    errors
}

fn finalizers(at: &At) -> Errors {
    const KNOWN: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
    let mut errors = Errors::new();
    for finalizer in at.items() {
        let name = finalizer.str();
        let wrong = names::qualified(name);
        if wrong.is_empty() && !name.contains('/') && !KNOWN.contains(&name) {
            errors.push(
                finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"),
            );
        }
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&at.path, name, m)));
    }
    let has = |name| at.items().any(|f| f.str() == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(at.invalid("finalizer orphan and foregroundDeletion cannot be both set"));
    }
    errors
}

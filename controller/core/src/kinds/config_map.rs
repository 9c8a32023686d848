//! ConfigMap.

use serde_json::Value;

use super::check::{At, Errors, same, too_long};
use super::columns::{self, number};
use super::{Kind, names};
use crate::field::{FieldError, Path};

/// Bytes that a ConfigMap's or Secret's values may have together.
pub const MAX_SIZE: usize = 1024 * 1024;

pub static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    validate,
    validate_update: |old, new| immutable_data(old, new, &["data", "binaryData"]),
    columns: &[
        columns::NAME,
        number("Data", "How many entries it has.", |map, _| {
            let entries = |field: &str| map[field].as_object().map_or(0, serde_json::Map::len);
            (entries("data") + entries("binaryData")).into()
        }),
        columns::AGE,
    ],
    ..Kind::COMMON
};

fn validate(map: &Value) -> Errors {
    let map = At::root(map);
    let (data, binary) = (map.get("data"), map.get("binaryData"));
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in data.entries() {
        errors.extend(key_errors(&value, key));
        if !binary.key(key).is_null() {
            errors.push(FieldError::invalid(&value.path, key, "duplicate of key present in binaryData"));
        }
        size += value.len();
    }
    for (key, value) in binary.entries() {
        errors.extend(key_errors(&value, key));
        size += value.len() / 4 * 3;
    }
    if size > MAX_SIZE {
        // Kubernetes points at the whole object like this.
        errors.push(too_long(&Path::new("[]"), MAX_SIZE));
    }
    errors
}

/// What is wrong with the key of an entry.
pub fn key_errors(at: &At, key: &str) -> Errors {
    names::config_key(key).into_iter().map(|m| FieldError::invalid(&at.path, key, m)).collect()
}

/// With `immutable: true`, neither that nor the data changes again.
pub fn immutable_data(old: &Value, new: &Value, fields: &[&str]) -> Errors {
    const SAYS: &str = "field is immutable when `immutable` is set";
    let (old, new) = (At::root(old), At::root(new));
    if !old.get("immutable").is_true() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    if !new.get("immutable").is_true() {
        errors.push(new.get("immutable").forbidden(SAYS));
    }
    let changed = fields.iter().filter(|field| !same(old.get(field).value, new.get(field).value));
    errors.extend(changed.map(|field| new.get(field).forbidden(SAYS)));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_file_names() {
        assert_eq!(validate(&json!({"data": {"a.conf": "x", "B_c": "y"}})), []);
        let errors = validate(&json!({"data": {"a/b": "x"}}));
        assert!(
            errors[0].to_string().starts_with(
                r#"data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.'"#
            ),
            "{}",
            errors[0]
        );
        let twice = json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}});
        assert_eq!(
            validate(&twice)[0].to_string(),
            r#"data[a]: Invalid value: "a": duplicate of key present in binaryData"#
        );
    }

    #[test]
    fn there_is_a_limit() {
        let big = json!({"data": {"a": "x".repeat(MAX_SIZE + 1)}});
        assert_eq!(validate(&big)[0].to_string(), "[]: Too long: may not be more than 1048576 bytes");
    }

    #[test]
    fn an_immutable_one_stays_as_it_is() {
        let old = json!({"data": {"a": "x"}, "immutable": true});
        let new = json!({"data": {"a": "y"}});
        let errors: Vec<String> =
            (CONFIG_MAP.validate_update)(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
        assert_eq!((CONFIG_MAP.validate_update)(&json!({"data": {}}), &new), []);
    }
}

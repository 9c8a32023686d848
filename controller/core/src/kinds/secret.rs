//! Secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::check::{At, Errors, immutable, too_long};
use super::columns::{self, number, or, text};
use super::config_map::{MAX_SIZE, immutable_data, key_errors};
use super::{FieldSelector, Kind, default};
use crate::field::{FieldError, Path};

pub static SECRET: Kind = Kind {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    default: |secret| {
        default::if_zero(secret, "type", "Opaque");
        take_string_data(secret);
    },
    validate,
    validate_update: |old, new| {
        let kind = |secret| At::root(secret).get("type");
        let mut errors: Errors = immutable(&kind(old), &kind(new)).into_iter().collect();
        errors.extend(immutable_data(old, new, &["data"]));
        errors
    },
    columns: &[
        columns::NAME,
        text("Type", "What the secret is for.", |secret, _| or(&secret["type"], "")),
        number("Data", "How many entries it has.", |secret, _| {
            secret["data"].as_object().map_or(0, serde_json::Map::len).into()
        }),
        columns::AGE,
    ],
    fields: &[FieldSelector {
        path: "type",
        value: |secret| secret["type"].as_str().unwrap_or_default().to_owned(),
    }],
    ..Kind::COMMON
};

/// `stringData` is for writing only: its texts become entries of `data`.
fn take_string_data(secret: &mut Value) {
    let Some(map) = secret.as_object_mut() else { return };
    let Some(strings) = map.remove("stringData") else { return };
    let Value::Object(strings) = strings else { return };
    let data = default::map(secret, "data");
    for (key, text) in strings {
        let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
        data[key] = encoded.into();
    }
}

fn validate(secret: &Value) -> Errors {
    let secret = At::root(secret);
    let data = secret.get("data");
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in data.entries() {
        errors.extend(key_errors(&value, key));
        match STANDARD.decode(value.str()) {
            Ok(bytes) => size += bytes.len(),
            Err(why) => errors.push(FieldError::invalid(
                &value.path,
                "<secret contents redacted>",
                format!("illegal base64 data: {why}"),
            )),
        }
    }
    if size > MAX_SIZE {
        errors.push(too_long(&data.path, MAX_SIZE));
    }
    errors.extend(well_formed(&secret, &data));
    errors
}

/// What the secret's type promises.
fn well_formed(secret: &At, data: &At) -> Errors {
    let missing = |keys: &[&str]| -> Errors {
        let absent = keys.iter().map(|key| data.key(key)).filter(At::is_null);
        absent.map(|at| at.required("")).collect()
    };
    match secret.get("type").str() {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            let annotations = secret.get("metadata").get("annotations");
            let name = annotations.key(NAME);
            if name.str().is_empty() { vec![name.required("")] } else { Errors::new() }
        }
        "kubernetes.io/dockercfg" => json(data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json(data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" => match missing(&["username", "password"]) {
            both if both.len() == 2 => both,
            _ => Errors::new(),
        },
        "kubernetes.io/ssh-auth" => {
            let key = data.key("ssh-privatekey");
            if key.is_empty() { vec![key.required("")] } else { Errors::new() }
        }
        "kubernetes.io/tls" => missing(&["tls.crt", "tls.key"]),
        _ => Errors::new(),
    }
}

fn json(data: &At, key: &str) -> Errors {
    let at = data.key(key);
    if at.is_null() {
        return vec![at.required("")];
    }
    let Ok(bytes) = STANDARD.decode(at.str()) else { return Errors::new() };
    match serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        Ok(_) => Errors::new(),
        Err(why) => {
            let path: &Path = &at.path;
            vec![FieldError::invalid(path, "<secret contents redacted>", why.to_string())]
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(secret: Value) -> Vec<String> {
        validate(&secret).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn string_data_becomes_data_and_is_not_kept() {
        let mut secret = json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "new"}});
        (SECRET.default)(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "bmV3", "b": "eQ=="}}));
    }

    #[test]
    fn what_a_type_promises_must_be_there() {
        assert_eq!(
            errors(json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            ["data[tls.key]: Required value"]
        );
        let docker = json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}});
        assert!(
            errors(docker)[0]
                .starts_with(r#"data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": "#)
        );
    }

    #[test]
    fn a_fault_never_shows_the_secret() {
        let error = &errors(json!({"type": "Opaque", "data": {"a": "hunter2!"}}))[0];
        assert!(error.contains("illegal base64") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn its_type_never_changes() {
        let (old, new) = (json!({"type": "Opaque"}), json!({"type": "x"}));
        assert_eq!(
            (SECRET.validate_update)(&old, &new)[0].to_string(),
            r#"type: Invalid value: "x": field is immutable"#
        );
    }
}

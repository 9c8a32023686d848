//! Request bodies: bounded in size and time, in JSON or protobuf.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use berth_controller_core::status::Status;
use berth_controller_schema::{Schema, Strictness, parse};
use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::protobuf;
use super::query::Query;
use crate::objects::{DeleteOptions, Options, Propagation};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// As Kubernetes: 3 MiB.
pub const LIMIT: usize = 3 * 1024 * 1024;
/// The whole body must be there by then.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads the whole body.
pub async fn read(body: Body) -> Result<Bytes, Status> {
    match tokio::time::timeout(PATIENCE, Limited::new(body, LIMIT).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {LIMIT}"),
        )),
        Ok(Err(error)) => {
            Err(Status::bad_request(format!("the body of the request could not be read: {error}")))
        }
        Err(_) => Err(Status::new(
            408,
            "Timeout",
            format!("the body of the request did not arrive within {} seconds", PATIENCE.as_secs()),
        )),
    }
}

/// The Content-Type without its parameters; "" if there is none.
pub fn media_type(request: &Request) -> String {
    let value = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What a body is to be.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub kind: &'a str,
    pub version: &'a str,
    /// The type's name in the schema.
    pub r#type: &'a str,
}

/// Reads an object. Repeated fields are warned of or refused as `options` says.
pub async fn object(request: Request, expected: Expected<'_>, options: &Options) -> Result<Value, Status> {
    let Expected { kind, version, r#type } = expected;
    let media_type = media_type(&request);
    check(&media_type)?;
    let body = read(request.into_body()).await?;
    if media_type == protobuf::MEDIA_TYPE {
        return from_protobuf(r#type, &body);
    }
    let (value, repeated) =
        parse(&body).map_err(|e| Status::bad_request(format!("couldn't get version/kind; {e}")))?;
    if !repeated.is_empty() {
        match options.strictness {
            Strictness::Strict => {
                let error = berth_controller_schema::DecodeError::Strict(repeated);
                return Err(Status::bad_request(error.bad_request(kind, version, kind)));
            }
            Strictness::Warn => repeated.into_iter().for_each(|w| options.warnings.add(w)),
            Strictness::Ignore => {}
        }
    }
    Ok(value)
}

fn from_protobuf(r#type: &str, body: &[u8]) -> Result<Value, Status> {
    protobuf::decode(Schema::get(), r#type, body).map_err(|e| Status::bad_request(e.to_string()))
}

fn check(media_type: &str) -> Result<(), Status> {
    match media_type {
        "" | "application/json" | protobuf::MEDIA_TYPE => Ok(()),
        _ => Err(Status::new(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// `dryRun` and `fieldValidation`.
pub fn options(query: &Query) -> Result<Options, Status> {
    let strictness = match query.get("fieldValidation") {
        None | Some("Warn") => Strictness::Warn,
        Some("Strict") => Strictness::Strict,
        Some("Ignore") => Strictness::Ignore,
        Some(other) => {
            return Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
            )));
        }
    };
    let dry_run = dry_run(query.all("dryRun").into_iter().filter(|v| !v.is_empty()))?;
    Ok(Options { dry_run, strictness, ..Options::default() })
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry = false;
    for value in values {
        if value != "All" {
            return Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {value:?}: supported values: \"All\""
            )));
        }
        dry = true;
    }
    Ok(dry)
}

/// DeleteOptions: from the body, if there is one, and from the query.
pub async fn delete_options(request: Request, query: &Query) -> Result<DeleteOptions, Status> {
    let media_type = media_type(&request);
    let body = read(request.into_body()).await?;
    let value = if body.is_empty() {
        Value::Null
    } else {
        check(&media_type)?;
        if media_type == protobuf::MEDIA_TYPE {
            return read_delete_options(&from_protobuf(DELETE_OPTIONS, &body)?, query);
        }
        parse(&body).map_err(|e| Status::bad_request(format!("couldn't get version/kind; {e}")))?.0
    };
    read_delete_options(&value, query)
}

/// DeleteOptions that are part of another object.
pub fn delete_options_of(value: &Value) -> Result<DeleteOptions, Status> {
    read_delete_options(value, &Query::default())
}

fn read_delete_options(value: &Value, query: &Query) -> Result<DeleteOptions, Status> {
    let wrong = |field: &str, wanted: &str| {
        Status::bad_request(format!(
            "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: {field} must be {wanted}"
        ))
    };
    match value {
        Value::Null | Value::Object(_) => {}
        _ => return Err(wrong("the body", "an object")),
    }
    let text = |at: &Value, field: &str| match &at[field] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(wrong(field, "a string")),
    };
    let grace = match &value["gracePeriodSeconds"] {
        Value::Null => query.number("gracePeriodSeconds")?,
        number => Some(number.as_i64().ok_or_else(|| wrong("gracePeriodSeconds", "a whole number"))?),
    };
    let orphan = match &value["orphanDependents"] {
        Value::Null => query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
        orphan => Some(orphan.as_bool().ok_or_else(|| wrong("orphanDependents", "true or false"))?),
    };
    let policy = text(value, "propagationPolicy")?.or(query.get("propagationPolicy").map(str::to_owned));
    let propagation = match (policy.as_deref(), orphan) {
        (Some(_), Some(_)) => {
            return Err(invalid_options(
                "propagationPolicy",
                "Invalid value: \"\": orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        (Some("Background"), None) | (None, Some(false)) => Some(Propagation::Background),
        (Some("Foreground"), None) => Some(Propagation::Foreground),
        (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
        (Some(other), None) => {
            return Err(invalid_options(
                "propagationPolicy",
                &format!(
                    "Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                ),
            ));
        }
        (None, None) => None,
    };
    let preconditions = &value["preconditions"];
    let listed = value["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let dry_run = dry_run(listed.chain(query.all("dryRun").into_iter().filter(|v| !v.is_empty())))?;
    Ok(DeleteOptions {
        grace,
        uid: text(preconditions, "uid")?,
        resource_version: text(preconditions, "resourceVersion")?,
        propagation,
        dry_run,
    })
}

fn invalid_options(field: &str, what: &str) -> Status {
    Status::new(422, "Invalid", format!("DeleteOptions.meta.k8s.io \"\" is invalid: {field}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn delete_options_come_from_body_and_query() {
        let read = |body, query| read_delete_options(&body, &Query::parse(query));
        let options = read(
            json!({"gracePeriodSeconds": 5, "preconditions": {"uid": "u"}, "propagationPolicy": "Orphan"}),
            "gracePeriodSeconds=9&dryRun=All",
        )
        .unwrap();
        assert_eq!(options.grace, Some(5));
        assert_eq!(options.uid.as_deref(), Some("u"));
        assert_eq!(options.propagation, Some(Propagation::Orphan));
        assert!(options.dry_run);
        assert_eq!(
            read(Value::Null, "orphanDependents=false").unwrap().propagation,
            Some(Propagation::Background)
        );
        assert_eq!(read(json!({"propagationPolicy": "x"}), "").unwrap_err().code, 422);
        assert_eq!(read(json!({"gracePeriodSeconds": "x"}), "").unwrap_err().code, 400);
        assert_eq!(read(json!([]), "").unwrap_err().code, 400);
        assert_eq!(read(json!({"dryRun": ["x"]}), "").unwrap_err().code, 400);
    }
}

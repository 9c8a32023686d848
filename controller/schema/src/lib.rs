//! What the kinds Berth serves look like: one table, made at build time from the types of `k8s-openapi`.
//!
//! On it stand decoding with Kubernetes' complaints ([`Schema::decode`]), strategic merge patches
//! ([`Schema::strategic_merge`]) and the OpenAPI documents ([`openapi`]). Pure: no I/O, no clock.
//! The table is static bytes, read in place; loading it costs nothing.
//!
//! Types are named as in Kubernetes' OpenAPI: `io.k8s.api.apps.v1.StatefulSet`.

mod decode;
mod layout;
pub mod openapi;
mod scalar;
mod strategic;
mod table;

pub use decode::{DecodeError, Decoded, Strictness, parse};
pub use strategic::PatchError;
pub use table::{Field, Schema, Shape, ShapeId, TypeId};

//! The OpenAPI documents of what is served: v3 per group version, v2 as JSON and as protobuf.
//!
//! They are written when asked for, out of the table, and not kept.

use crate::Schema;

/// One kind that is served.
#[derive(Clone, Debug)]
pub struct Resource {
    /// "" for core/v1.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    /// `io.k8s.api.apps.v1.StatefulSet`
    pub schema: &'static str,
    pub subresources: Vec<Subresource>,
}

/// A subresource of it.
#[derive(Clone, Debug)]
pub enum Subresource {
    /// get, update and patch of the object itself: `status`.
    Own(&'static str),
    /// get, update and patch of another kind: `scale` of autoscaling/v1 Scale.
    Other {
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        schema: &'static str,
    },
    /// update (`finalize`) or create (`binding`, `eviction`) of the kind named.
    Write {
        name: &'static str,
        method: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        schema: &'static str,
    },
    /// GET (and POST) answered with a stream: `log`, `exec`.
    Connect(&'static str),
}

/// Writes the documents.
#[derive(Debug)]
pub struct OpenApi {
    _schema: &'static Schema,
    _resources: Vec<Resource>,
}

impl OpenApi {
    pub fn new(schema: &'static Schema, resources: Vec<Resource>) -> OpenApi {
        OpenApi { _schema: schema, _resources: resources }
    }

    /// Body of `/openapi/v3`: the list of documents.
    pub fn v3_index(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Body of `/openapi/v3/<path>` (`api/v1`, `apis/apps/v1`); None: 404.
    pub fn v3(&self, _path: &str) -> Option<Vec<u8>> {
        None
    }

    /// Body of `/openapi/v2` as JSON.
    pub fn v2_json(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Body of `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
    pub fn v2_protobuf(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Changes whenever the documents do: the ETag (quote it), also used as `?hash=` in the index.
    pub fn etag(&self) -> &str {
        ""
    }
}

//! The OpenAPI documents of what is served: v3 per group version, v2 as JSON and as protobuf.
//!
//! They are written when asked for, piece by piece out of the table, and not kept: only what the listed kinds reach
//! is in them. kubectl reads them to validate (does PATCH know `fieldValidation`?), to explain, and to compute
//! strategic merge patches.

mod paths;
mod proto;
mod schemas;

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::io::Write;

use serde_json::{Value, json};

use crate::table::{Schema, TypeId};

/// One kind that is served.
#[derive(Clone, Debug, Hash)]
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
#[derive(Clone, Debug, Hash)]
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
    /// One `method` (`put` for `finalize`, `post` for `binding`) that takes the kind named.
    Write {
        name: &'static str,
        method: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        schema: &'static str,
    },
    /// What is answered with a stream: `log`, `exec`; also `binding` and `eviction`, which are known by name.
    Connect(&'static str),
}

/// Writes the documents.
#[derive(Debug)]
pub struct OpenApi {
    schema: &'static Schema,
    resources: Vec<Resource>,
    etag: String,
}

/// The two ways to write OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference to a definition.
    fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// A group, version and kind as documents show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gvk<'a> {
    group: &'a str,
    kind: &'a str,
    version: &'a str,
}

impl Gvk<'_> {
    fn value(self) -> Value {
        json!({"group": self.group, "kind": self.kind, "version": self.version})
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

impl OpenApi {
    /// `resources` in any order; kinds whose type the table does not know are documented without a schema.
    pub fn new(schema: &'static Schema, resources: Vec<Resource>) -> OpenApi {
        let mut hasher = std::hash::DefaultHasher::new();
        (env!("TABLE_HASH"), env!("CARGO_PKG_VERSION"), &resources).hash(&mut hasher);
        let etag = format!("{:016X}", hasher.finish());
        OpenApi { schema, resources, etag }
    }

    /// Body of `/openapi/v3`: the list of documents.
    pub fn v3_index(&self) -> Vec<u8> {
        let paths: serde_json::Map<String, Value> = self
            .group_versions()
            .into_iter()
            .map(|(group, version)| {
                let path = path_of(group, version);
                let url = format!("/openapi/v3/{path}?hash={}", self.etag);
                (path, json!({"serverRelativeURL": url}))
            })
            .collect();
        json!({"paths": paths}).to_string().into_bytes()
    }

    /// Body of `/openapi/v3/<path>` (`api/v1`, `apis/apps/v1`); None: 404.
    pub fn v3(&self, path: &str) -> Option<Vec<u8>> {
        let (group, version) = self.group_versions().into_iter().find(|(g, v)| path_of(g, v) == path)?;
        let resources: Vec<&Resource> =
            self.resources.iter().filter(|r| r.group == group && r.version == version).collect();
        let mut out = Vec::with_capacity(512 << 10);
        write(&mut out, "{\"openapi\":\"3.0.0\",\"info\":", &self.info());
        out.extend(b",\"paths\":{");
        self.each_path(&resources, Dialect::V3, &mut |first, path, item| {
            write_member(&mut out, first, path, item);
        });
        out.extend(b"},\"components\":{\"schemas\":{");
        self.each_definition(&resources, Dialect::V3, &mut |first, name, definition| {
            write_member(&mut out, first, name, definition);
        });
        out.extend(b"}}}");
        Some(out)
    }

    /// Body of `/openapi/v2` as JSON.
    pub fn v2_json(&self) -> Vec<u8> {
        let resources: Vec<&Resource> = self.resources.iter().collect();
        let mut out = Vec::with_capacity(1 << 20);
        write(&mut out, "{\"swagger\":\"2.0\",\"info\":", &self.info());
        out.extend(b",\"paths\":{");
        self.each_path(&resources, Dialect::V2, &mut |first, path, item| {
            write_member(&mut out, first, path, item);
        });
        out.extend(b"},\"definitions\":{");
        self.each_definition(&resources, Dialect::V2, &mut |first, name, definition| {
            write_member(&mut out, first, name, definition);
        });
        out.extend(b"}}");
        out
    }

    /// Body of `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
    pub fn v2_protobuf(&self) -> Vec<u8> {
        let resources: Vec<&Resource> = self.resources.iter().collect();
        let mut document = proto::Document::new(&self.info());
        self.each_path(&resources, Dialect::V2, &mut |_, path, item| document.path(path, item));
        self.each_definition(&resources, Dialect::V2, &mut |_, name, definition| {
            document.definition(name, definition);
        });
        document.finish()
    }

    /// Changes whenever the documents do: the ETag (quote it), also used as `?hash=` in the index.
    pub fn etag(&self) -> &str {
        &self.etag
    }

    fn info(&self) -> Value {
        json!({"title": "Berth", "version": concat!("v", env!("CARGO_PKG_VERSION"))})
    }

    fn group_versions(&self) -> BTreeSet<(&'static str, &'static str)> {
        self.resources.iter().map(|r| (r.group, r.version)).collect()
    }

    fn each_path(&self, resources: &[&Resource], dialect: Dialect, sink: &mut dyn FnMut(bool, &str, &Value)) {
        let mut first = true;
        for resource in resources {
            paths::of_resource(resource, dialect, &mut |path, item| {
                sink(first, path, item);
                first = false;
            });
        }
    }

    fn each_definition(
        &self,
        resources: &[&Resource],
        dialect: Dialect,
        sink: &mut dyn FnMut(bool, &str, &Value),
    ) {
        let mut first = true;
        for id in self.reachable(resources) {
            let name = self.schema.type_name(id);
            let mut definition = schemas::definition(self.schema, id, dialect);
            let kinds = self.kinds_of(name);
            if !kinds.is_empty() {
                definition["x-kubernetes-group-version-kind"] = kinds.into_iter().map(Gvk::value).collect();
            }
            sink(first, name, &definition);
            first = false;
        }
    }

    /// The types that these resources need, in order of their names.
    fn reachable(&self, resources: &[&Resource]) -> BTreeSet<TypeId> {
        let mut found = BTreeSet::new();
        let mut open: Vec<TypeId> = Vec::new();
        let mut root = |name: &str| open.extend(self.schema.find_type(name));
        for resource in resources {
            root(resource.schema);
            root(&format!("{}List", resource.schema));
            for subresource in &resource.subresources {
                if let Some((_, schema)) = paths::body_of(resource, subresource) {
                    root(schema);
                }
            }
        }
        for name in ["DeleteOptions", "Status", "Patch"] {
            root(&format!("{META}.{name}"));
        }
        while let Some(id) = open.pop() {
            if found.insert(id) {
                open.extend(schemas::references(self.schema, id));
            }
        }
        found
    }

    /// The kinds that a type of this name is.
    fn kinds_of(&self, name: &'static str) -> BTreeSet<Gvk<'_>> {
        if name == format!("{META}.Status") {
            return BTreeSet::from([Gvk { group: "", kind: "Status", version: "v1" }]);
        }
        if name == format!("{META}.DeleteOptions") {
            let all = self.group_versions().into_iter();
            return all.map(|(group, version)| Gvk { group, kind: "DeleteOptions", version }).collect();
        }
        let mut kinds = BTreeSet::new();
        for resource in &self.resources {
            let Resource { group, version, .. } = resource;
            if resource.schema == name {
                kinds.insert(Gvk { group, kind: resource.kind, version });
            } else if name.strip_suffix("List") == Some(resource.schema) {
                let kind = name.rsplit('.').next().unwrap_or(name);
                kinds.insert(Gvk { group, kind, version });
            }
            for subresource in &resource.subresources {
                if let Some((gvk, schema)) = paths::body_of(resource, subresource)
                    && schema == name
                {
                    kinds.insert(gvk);
                }
            }
        }
        kinds
    }
}

/// `api/v1`, `apis/apps/v1`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn write(out: &mut Vec<u8>, before: &str, value: &Value) {
    // Writing into memory does not fail.
    let _ = write!(out, "{before}{value}");
}

fn write_member(out: &mut Vec<u8>, first: bool, name: &str, value: &Value) {
    let comma = if first { "" } else { "," };
    let _ = write!(out, "{comma}{}:{value}", Value::from(name));
}

#[cfg(test)]
mod tests;

//! The store's vocabulary: keys, objects as bytes, transactions, events.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::CommitError;

/// Counts the transactions that were ever applied; a client's `resourceVersion`.
pub type Revision = u64;

/// Where an object is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `pods`, `statefulsets.apps`; internal records end in `.berth.dev`.
    pub resource: Cow<'static, str>,
    /// "" where the resource has no namespaces.
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(
        resource: impl Into<Cow<'static, str>>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Key {
        Key { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.resource, self.name)
        } else {
            write!(f, "{}/{}/{}", self.resource, self.namespace, self.name)
        }
    }
}

/// One version of one object. Immutable: readers and watchers share it.
#[derive(Debug)]
pub struct Object {
    pub key: Key,
    pub revision: Revision,
    /// JSON; `metadata.resourceVersion` is `revision`.
    pub bytes: Bytes,
    pub meta: Meta,
}

impl Object {
    /// The object, parsed anew on each call: thousands of objects stay small in memory that way.
    pub fn value(&self) -> Value {
        // (As text: that code is serde_json's own, and optimised in every build.)
        std::str::from_utf8(&self.bytes).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// This state, with another revision: what a deletion shows.
    pub(super) fn at(&self, revision: Revision) -> Object {
        Object {
            key: self.key.clone(),
            revision,
            bytes: restamp(&self.bytes, revision),
            meta: self.meta.clone(),
        }
    }

    /// What it costs to keep, about.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + 256
    }
}

/// What filters and owners' loops need of an object without parsing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub uid: Box<str>,
    pub labels: Labels,
    pub owners: Box<[Owner]>,
    /// `deletionTimestamp` is set.
    pub deleting: bool,
    /// Has any finalizer.
    pub finalizers: bool,
}

/// One of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
    pub controller: bool,
    pub block_owner_deletion: bool,
}

/// `metadata.labels`, sorted by key: a map that is small in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Labels {
        let sorted: BTreeMap<String, String> = pairs.into_iter().collect();
        Labels(sorted.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

impl Meta {
    /// Reads what [`Meta`] holds from an object's JSON. Also how a stored object is known to be sound.
    pub(super) fn parse(json: &[u8]) -> Result<Meta, serde_json::Error> {
        #[derive(Deserialize)]
        struct Outer {
            #[serde(default)]
            metadata: Inner,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Inner {
            uid: Option<Box<str>>,
            labels: Option<BTreeMap<String, String>>,
            owner_references: Option<Vec<Reference>>,
            deletion_timestamp: Option<serde::de::IgnoredAny>,
            finalizers: Option<Vec<serde::de::IgnoredAny>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Reference {
            uid: Box<str>,
            #[serde(default)]
            kind: Box<str>,
            #[serde(default)]
            name: Box<str>,
            controller: Option<bool>,
            block_owner_deletion: Option<bool>,
        }
        let Outer { metadata } = serde_json::from_slice(json)?;
        Ok(Meta {
            uid: metadata.uid.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default().into_iter().collect(),
            owners: metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .map(|r| Owner {
                    uid: r.uid,
                    kind: r.kind,
                    name: r.name,
                    controller: r.controller.unwrap_or_default(),
                    block_owner_deletion: r.block_owner_deletion.unwrap_or_default(),
                })
                .collect(),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.is_some_and(|f| !f.is_empty()),
        })
    }
}

/// A resource, in all namespaces or in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    pub resource: Cow<'static, str>,
    pub namespace: Option<String>,
}

impl Scope {
    /// Every object of a resource.
    pub fn all(resource: impl Into<Cow<'static, str>>) -> Scope {
        Scope { resource: resource.into(), namespace: None }
    }

    /// The objects of a resource in one namespace.
    pub fn namespaced(resource: impl Into<Cow<'static, str>>, namespace: impl Into<String>) -> Scope {
        Scope { resource: resource.into(), namespace: Some(namespace.into()) }
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.namespace.as_ref().is_none_or(|n| *n == key.namespace)
    }
}

/// Objects of a scope, as they were together at `revision`; ordered by namespace and name.
#[derive(Debug)]
pub struct List {
    pub revision: Revision,
    pub objects: Vec<Arc<Object>>,
    /// How many objects follow the last one here (0 unless a limit was given).
    pub remaining: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created or changed: `previous` tells which.
    Put,
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: Revision,
    pub kind: EventKind,
    /// The new state; of a deleted object its last state, with the deletion's revision.
    pub object: Arc<Object>,
    /// The state before, if there was one.
    pub previous: Option<Arc<Object>>,
}

/// What a watch has next.
#[derive(Debug)]
pub struct Batch {
    /// In order; never empty.
    pub events: Vec<Event>,
    /// Everything in the scope up to this revision has now been seen.
    pub revision: Revision,
}

/// What must hold for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Absent(Key),
    Unchanged(Key, Revision),
    Present(Key),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Put(Key, Value),
    /// No-op if there is nothing.
    Delete(Key),
}

/// Checks and writes that are applied together under one revision, or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
}

impl Transaction {
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Requires that there is no such object.
    pub fn absent(mut self, key: Key) -> Transaction {
        self.checks.push(Check::Absent(key));
        self
    }

    /// Requires that the object is there, whatever it says.
    pub fn present(mut self, key: Key) -> Transaction {
        self.checks.push(Check::Present(key));
        self
    }

    /// Requires that the object is the one of this revision.
    pub fn unchanged(mut self, key: Key, revision: Revision) -> Transaction {
        self.checks.push(Check::Unchanged(key, revision));
        self
    }

    /// Writes an object; `metadata.resourceVersion` is stamped by the store. Of several writes to one key
    /// the last counts.
    pub fn put(self, key: Key, value: Value) -> Transaction {
        self.with(Write::Put(key, value))
    }

    pub fn delete(self, key: Key) -> Transaction {
        self.with(Write::Delete(key))
    }

    /// Nothing to check and nothing to write.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.writes.is_empty()
    }

    fn with(mut self, write: Write) -> Transaction {
        match self.writes.iter_mut().find(|w| w.key() == write.key()) {
            Some(earlier) => *earlier = write,
            None => self.writes.push(write),
        }
        self
    }
}

impl Write {
    pub fn key(&self) -> &Key {
        match self {
            Write::Put(key, _) | Write::Delete(key) => key,
        }
    }
}

/// What a transaction did.
#[derive(Debug)]
pub struct Committed {
    /// Its revision; the newest one there is if nothing had to be written.
    pub revision: Revision,
    /// The objects put, in the order of the transaction's puts, as they were written.
    pub objects: Vec<Arc<Object>>,
}

/// A transaction whose objects are encoded already: done by the callers, side by side, so that the one
/// writer only has to fill in the revision.
#[derive(Debug)]
pub(super) struct Prepared {
    pub checks: Vec<Check>,
    pub writes: Vec<PreparedWrite>,
}

#[derive(Debug)]
pub(super) enum PreparedWrite {
    Put(Key, Template, Meta),
    Delete(Key),
}

impl Prepared {
    pub fn new(transaction: Transaction) -> Result<Prepared, CommitError> {
        let writes = transaction.writes.into_iter().map(|write| match write {
            Write::Delete(key) => Ok(PreparedWrite::Delete(key)),
            Write::Put(key, value) => {
                let malformed = |why: String| CommitError::Unavailable(format!("{key} is malformed: {why}"));
                let Value::Object(object) = value else { return Err(malformed("not an object".into())) };
                let template = Template::new(object).map_err(malformed)?;
                let meta = Meta::parse(&template.stamp(0)).map_err(|e| malformed(e.to_string()))?;
                Ok(PreparedWrite::Put(key, template, meta))
            }
        });
        Ok(Prepared { writes: writes.collect::<Result<_, _>>()?, checks: transaction.checks })
    }
}

/// Where every encoded object holds its revision. Only `kind` and `apiVersion` may come before it, whose
/// values cannot hold an unescaped quote: the first occurrence is always the right one.
const STAMP: &[u8] = br#""metadata":{"resourceVersion":""#;

/// An encoded object without its revision.
#[derive(Debug)]
pub(super) struct Template {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Template {
    fn new(mut object: Map<String, Value>) -> Result<Template, String> {
        let mut metadata = match object.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return Err("metadata is not an object".to_owned()),
        };
        metadata.remove("resourceVersion");
        let mut head = vec![b'{'];
        for first in ["kind", "apiVersion"] {
            match object.remove(first) {
                Some(Value::String(text)) => {
                    append(&mut head, &Value::from(first))?;
                    head.push(b':');
                    append(&mut head, &Value::from(text))?;
                    head.push(b',');
                }
                None | Some(Value::Null) => {}
                Some(_) => return Err(format!("{first} is not a string")),
            }
        }
        head.extend_from_slice(STAMP);
        let mut tail = vec![b'"'];
        members(&mut tail, metadata)?;
        tail.push(b'}');
        members(&mut tail, object)?;
        tail.push(b'}');
        Ok(Template { head, tail })
    }

    pub fn stamp(&self, revision: Revision) -> Bytes {
        join(&self.head, revision, &self.tail)
    }
}

fn members(out: &mut Vec<u8>, map: Map<String, Value>) -> Result<(), String> {
    for (name, value) in map {
        out.push(b',');
        append(out, &Value::String(name))?;
        out.push(b':');
        append(out, &value)?;
    }
    Ok(())
}

fn append(out: &mut Vec<u8>, value: &Value) -> Result<(), String> {
    serde_json::to_writer(out, value).map_err(|e| e.to_string())
}

fn join(head: &[u8], revision: Revision, tail: &[u8]) -> Bytes {
    let digits = revision.to_string();
    let mut bytes = Vec::with_capacity(head.len() + digits.len() + tail.len());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(digits.as_bytes());
    bytes.extend_from_slice(tail);
    bytes.into()
}

/// The same object with another revision in it.
fn restamp(bytes: &Bytes, revision: Revision) -> Bytes {
    let Some(at) = bytes.windows(STAMP.len()).position(|w| w == STAMP) else { return bytes.clone() };
    let (head, rest) = bytes.split_at(at + STAMP.len());
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    join(head, revision, &rest[digits..])
}

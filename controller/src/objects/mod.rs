//! The verbs on objects, called by HTTP and by the loops alike, so that both obey the same rules:
//! decoding, defaults, validation, uid, generation, finalizers, graceful deletion, namespaces' lifecycle.
//!
//! What a kind allows is asked of its [`Kind`]; what is stored is asked of the [`Store`]. Everything that
//! decides is in [`prepare`] and [`meta`], which are pure; here is the part that reads, writes and retries.

mod delete;
pub mod meta;
pub mod patch;
pub mod prepare;
pub mod scale;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use berth_controller_core::kinds::{Kind, Subresource};
use berth_controller_core::object as read;
use berth_controller_core::status::Status;
use berth_controller_schema::{Schema, Strictness};
use serde_json::Value;

use crate::clock::Clock;
use crate::store::{CommitError, Committed, Key, Object, Revision, Store, Transaction};

pub use delete::{DeleteOptions, Deleted, Propagation};
pub use patch::Patch;

/// How often a write without a resourceVersion is tried again when somebody else wrote in between.
const ATTEMPTS: usize = 32;

/// How to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// Do everything but the write.
    pub dry_run: bool,
    /// What happens to unknown fields. The loops' own objects must have none: Strict is the default.
    pub strictness: Strictness,
    /// Where warnings for the caller are gathered.
    pub warnings: Warnings,
}

impl Default for Options {
    fn default() -> Options {
        Options { dry_run: false, strictness: Strictness::Strict, warnings: Warnings::default() }
    }
}

/// Texts for `Warning` headers. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a warning, once.
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(&text) {
            all.push(text);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Gives objects what only one of them can have (a Service its address), in the transaction that writes them, so
/// that this module names no kind. None of it is kept in memory: a transaction that loses its race is made anew.
pub trait Allocate: Send + Sync {
    /// The object changes from `old` to `new` (None: there is none). Completes `new`, and adds to the transaction
    /// what is taken and what is given back.
    fn allocate(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: Option<&mut Value>,
        transaction: Transaction,
    ) -> Result<Transaction, Status>;
}

/// The verbs. Clones share the store.
#[derive(Clone)]
pub struct Objects {
    store: Store,
    schema: &'static Schema,
    allocate: Option<Arc<dyn Allocate>>,
    clock: Clock,
}

/// A write that did not happen.
enum Refused {
    /// Somebody else wrote first: worth another try.
    Raced,
    Status(Status),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        Refused::Status(status)
    }
}

impl Objects {
    pub fn new(store: Store, schema: &'static Schema) -> Objects {
        Objects { store, schema, allocate: None, clock: Clock::default() }
    }

    /// The same, with what gives objects what is scarce.
    pub fn with(self, allocate: Arc<dyn Allocate>) -> Objects {
        Objects { allocate: Some(allocate), ..self }
    }

    /// The same, at another time than the machine's.
    pub fn at(self, clock: Clock) -> Objects {
        Objects { clock, ..self }
    }

    /// What time it is for what is written here.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn allocate(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: Option<&mut Value>,
        transaction: Transaction,
    ) -> Result<Transaction, Status> {
        match &self.allocate {
            Some(allocate) => allocate.allocate(kind, old, new, transaction),
            None => Ok(transaction),
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// The object, or Kubernetes' NotFound.
    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.store.get(&key(kind, namespace, name)).ok_or_else(|| Status::not_found(&kind.resource(), name))
    }

    /// Makes a new object. `namespace` is "" for kinds without namespaces. Honours `metadata.generateName`.
    pub async fn create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        value: Value,
        options: &Options,
    ) -> Result<Arc<Object>, Status> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let home = self.home(kind, namespace, read::name(&value))?;
            let mut new = self.prepare_create(kind, namespace, value.clone(), options)?;
            let name = read::name(&new).to_owned();
            let key = key(kind, namespace, &name);
            if self.store.get(&key).is_some() {
                // A generated name that is taken: another one, unless that goes on for ever.
                if read::name(&value).is_empty() && attempts < 8 {
                    continue;
                }
                return Err(Status::already_exists(&kind.resource(), &name));
            }
            let allocated = self.allocate(kind, None, Some(&mut new), Transaction::new())?;
            if options.dry_run {
                return Ok(Arc::new(unstored(key, 0, &new)));
            }
            // The namespace is part of the transaction: nothing can be made in one that is being emptied.
            let mut transaction = allocated.absent(key.clone()).put(key, new);
            if let Some(home) = home {
                transaction = transaction.unchanged(home.key.clone(), home.revision);
            }
            match self.commit(transaction).await {
                Ok(committed) => return written(committed),
                Err(Refused::Raced) if attempts < ATTEMPTS => continue,
                Err(Refused::Raced) => return Err(Status::modified(&kind.resource(), &name)),
                Err(Refused::Status(status)) => return Err(status),
            }
        }
    }

    /// The object as `create` would write it: for a loop that puts several objects into one transaction
    /// (with `Transaction::absent`).
    pub fn stage_create(&self, kind: &'static Kind, namespace: &str, value: Value) -> Result<Value, Status> {
        self.home(kind, namespace, read::name(&value))?;
        self.prepare_create(kind, namespace, value, &Options::default())
    }

    /// Replaces the object, or the part of it that `sub` covers. A resourceVersion in `value` must be the
    /// stored one; without one the write is unconditional. Nothing is written if nothing changes.
    pub async fn update(
        &self,
        kind: &'static Kind,
        sub: Option<Subresource>,
        namespace: &str,
        name: &str,
        value: Value,
        options: &Options,
    ) -> Result<Arc<Object>, Status> {
        let conditional = !resource_version(&value).is_empty();
        self.retry(kind, namespace, name, conditional, options, |_| Ok((sub, value.clone()))).await
    }

    /// Reads, changes and writes, again if somebody else wrote in between. Nothing is written if the change
    /// changes nothing. A change that should hold only for the object the caller knows checks its uid.
    pub async fn modify(
        &self,
        kind: &'static Kind,
        sub: Option<Subresource>,
        namespace: &str,
        name: &str,
        mut change: impl FnMut(&mut Value) -> Result<(), Status>,
    ) -> Result<Arc<Object>, Status> {
        let options = Options::default();
        self.retry(kind, namespace, name, false, &options, |current| {
            let mut value = current.value();
            change(&mut value)?;
            Ok((sub, value))
        })
        .await
    }

    /// Applies a patch, again on the newer object if somebody else wrote in between (unless the patch
    /// itself names a resourceVersion).
    pub async fn patch(
        &self,
        kind: &'static Kind,
        sub: Option<Subresource>,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &Options,
    ) -> Result<Arc<Object>, Status> {
        self.retry(kind, namespace, name, patch.conditional(), options, |current| {
            let value = current.value();
            let patched = if sub == Some(Subresource::Scale) {
                patch.apply(self.schema, scale::SCHEMA, kind, name, &scale::of(&value))?
            } else {
                patch.apply(self.schema, kind.schema, kind, name, &value)?
            };
            Ok((sub, patched))
        })
        .await
    }

    /// The common loop of all changes.
    async fn retry(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        conditional: bool,
        options: &Options,
        mut change: impl FnMut(&Object) -> Result<(Option<Subresource>, Value), Status>,
    ) -> Result<Arc<Object>, Status> {
        for _ in 0..ATTEMPTS {
            let current = self.get(kind, namespace, name)?;
            let (sub, value) = change(&current)?;
            match self.update_once(kind, sub, &current, value, options).await {
                Ok(object) => return Ok(object),
                Err(Refused::Raced) if !conditional => continue,
                Err(Refused::Raced) => return Err(Status::modified(&kind.resource(), name)),
                Err(Refused::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(&kind.resource(), name))
    }

    async fn update_once(
        &self,
        kind: &'static Kind,
        sub: Option<Subresource>,
        current: &Arc<Object>,
        value: Value,
        options: &Options,
    ) -> Result<Arc<Object>, Refused> {
        let old = current.value();
        let mut new = self.prepare_update(kind, sub, &current.key, &old, value, options)?;
        let mut transaction = Transaction::new().unchanged(current.key.clone(), current.revision);
        if sub.is_none() {
            transaction = self.allocate(kind, Some(&old), Some(&mut new), transaction)?;
        }
        if prepare::same(&old, &new) {
            return Ok(current.clone());
        }
        if prepare::removable(kind, &new) {
            let last = Arc::new(unstored(current.key.clone(), current.revision, &new));
            if !options.dry_run {
                let transaction = Transaction::new().unchanged(current.key.clone(), current.revision);
                let transaction = self.allocate(kind, Some(&old), None, transaction)?;
                self.commit(transaction.delete(current.key.clone())).await?;
            }
            return Ok(last);
        }
        if options.dry_run {
            return Ok(Arc::new(unstored(current.key.clone(), current.revision, &new)));
        }
        let committed = self.commit(transaction.put(current.key.clone(), new)).await?;
        Ok(written(committed)?)
    }

    fn prepare_create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        value: Value,
        options: &Options,
    ) -> Result<Value, Status> {
        let value = self.decode(kind, value, options)?;
        let new = prepare::create(kind, namespace, value, self.clock.now(), &uuid::Uuid::new_v4())?;
        for warning in (kind.warnings)(&new) {
            options.warnings.add(warning);
        }
        Ok(new)
    }

    fn prepare_update(
        &self,
        kind: &'static Kind,
        sub: Option<Subresource>,
        key: &Key,
        old: &Value,
        value: Value,
        options: &Options,
    ) -> Result<Value, Status> {
        let value = match sub {
            Some(Subresource::Scale) => {
                let decoded = self
                    .schema
                    .decode_value(scale::SCHEMA, value, options.strictness)
                    .map_err(|e| Status::bad_request(e.bad_request("Scale", "v1", "Scale")))?;
                decoded.warnings.into_iter().for_each(|w| options.warnings.add(w));
                decoded.value
            }
            _ => self.decode(kind, value, options)?,
        };
        let new = prepare::update(kind, sub, &key.namespace, &key.name, old, value)?;
        if sub.is_none() {
            for warning in (kind.warnings)(&new) {
                options.warnings.add(warning);
            }
        }
        Ok(new)
    }

    /// Checks kind and apiVersion, and every field against the schema.
    fn decode(&self, kind: &Kind, mut value: Value, options: &Options) -> Result<Value, Status> {
        prepare::type_meta(kind, &mut value)?;
        let decoded = self
            .schema
            .decode_value(kind.schema, value, options.strictness)
            .map_err(|e| Status::bad_request(e.bad_request(kind.kind, kind.version, kind.kind)))?;
        decoded.warnings.into_iter().for_each(|w| options.warnings.add(w));
        Ok(decoded.value)
    }

    /// The namespace an object is made in: it must exist and must not be going away.
    fn home(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Arc<Object>>, Status> {
        if !kind.namespaced {
            return Ok(None);
        }
        let home = self
            .store
            .get(&Key::new("namespaces", "", namespace))
            .ok_or_else(|| Status::not_found("namespaces", namespace))?;
        if home.meta.deleting {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let mut status = Status::forbidden(&kind.resource(), name, &why);
            status.details["causes"] = serde_json::json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
            return Err(status);
        }
        Ok(Some(home))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, Refused> {
        self.store.write(transaction).await.map_err(|error| match error {
            CommitError::Conflict { .. } => Refused::Raced,
            CommitError::Unavailable(why) => Refused::Status(Status::new(
                503,
                "ServiceUnavailable",
                format!("the store cannot write now: {why}"),
            )),
        })
    }
}

/// Where an object of this kind is kept.
pub fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    let resource: Cow<'static, str> =
        if kind.group.is_empty() { kind.plural.into() } else { kind.resource().into() };
    let namespace = if kind.namespaced { namespace } else { "" };
    Key::new(resource, namespace, name)
}

/// `metadata.resourceVersion`, "" if absent.
fn resource_version(value: &Value) -> &str {
    value["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

/// The object of a transaction whose last put it was.
fn written(committed: Committed) -> Result<Arc<Object>, Status> {
    committed
        .objects
        .into_iter()
        .next_back()
        .ok_or_else(|| Status::internal("the store answered without the object"))
}

/// An object that is not in the store: the answer of a dry run, or the last state of one that is gone.
fn unstored(key: Key, revision: Revision, value: &Value) -> Object {
    let bytes = serde_json::to_vec(value).unwrap_or_default().into();
    Object { key, revision, bytes, meta: Default::default() }
}

//! Has the images of a pod that is about to be made on the host it will run on.
//!
//! Pods that want the same of a host at the same time are one request. It ends with the last who waits for
//! it; a pull that has begun goes on at the host.

use std::collections::HashMap;
use std::sync::Mutex;

use berth_controller_core::resolve;
use berth_proto::Prefetch;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use prost::Message as _;
use serde_json::Value;

use super::world::Stored;
use super::{NodeError, Nodes, lock};
use crate::reconcile::Images;

type Answer = BoxFuture<'static, Result<(), String>>;
/// Node and encoded request.
type Asked = (String, Vec<u8>);

/// What is being asked for. Whoever waits keeps it alive.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Asked, WeakShared<Answer>>>);

impl Flights {
    /// The request under way, or a new one.
    fn join(&self, key: Asked, begin: impl FnOnce() -> Answer) -> Shared<Answer> {
        let mut flights = lock(&self.0);
        // One that has landed answers nobody else: images come and go.
        flights.retain(|_, flight| flight.upgrade().is_some_and(|flight| flight.peek().is_none()));
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let flight = begin().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

impl Images for Nodes {
    fn ensure(&self, node: &str, pod: &Value) -> BoxFuture<'static, Result<(), String>> {
        let wanted = resolve::images(pod, &Stored(&self.inner.store, &self.inner.links));
        if wanted.images.is_empty() {
            return std::future::ready(Ok(())).boxed();
        }
        let (nodes, name) = (self.clone(), node.to_owned());
        let key = (name.clone(), wanted.encode_to_vec());
        let begin = || async move { nodes.fetch(&name, wanted).await }.boxed();
        self.inner.flights.join(key, begin).boxed()
    }
}

impl Nodes {
    async fn fetch(&self, node: &str, wanted: Prefetch) -> Result<(), String> {
        let names: Vec<&str> = wanted.images.iter().map(|image| image.image.as_str()).collect();
        let names = names.join(", ");
        let fetched = self.prefetch(node, wanted.images, wanted.registry_auth).await;
        fetched.map_err(|error| match error {
            // The agent names the image it could not get.
            NodeError::Failed(why) => format!("node {node:?}: {why}"),
            other => format!("{names}: {other}"),
        })
    }
}

//! A node's object: made when its agent first says hello, kept up to date by its reports, and its Ready
//! condition, which says whether there is a session.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use berth_controller_core::identity::{self, Record};
use berth_controller_core::kinds::Subresource;
use berth_controller_core::kinds::node::NODE;
use berth_controller_core::object;
use berth_controller_core::resolve::Place;
use berth_controller_core::status::Status;
use berth_controller_core::taints;
use berth_proto::NodeStatus;
use jiff::Timestamp;
use serde_json::Value;

use super::world::NODES;
use super::{Nodes, Range, node_object};
use crate::objects::Options;
use crate::store::{Key, Scope};

/// How long a node keeps its Ready condition after the controller's own start, when every agent has to come back.
const GRACE_AT_START: Duration = Duration::from_secs(40);

impl Nodes {
    /// Makes the Node object if there is none, and brings labels and status up to date.
    pub(super) async fn register(
        &self,
        name: &str,
        report: &NodeStatus,
        version: &str,
    ) -> Result<(), Status> {
        // Also keeps two new nodes from getting the same range.
        let _one = self.inner.registering.lock().await;
        let there = self.inner.store.get(&Key::new(NODES, "", name)).map(|o| o.value());
        match there {
            None => {
                let range = self.free_range(name).ok_or_else(|| {
                    Status::internal(format!(
                        "no range is left for node {name:?} in the pod range {}",
                        self.inner.config.pod_cidr
                    ))
                })?;
                let node = node_object::new(name, report, &range.to_string());
                self.inner.objects.create(&NODE, "", node, &Options::default()).await?;
            }
            Some(node) => {
                let range = match node["spec"]["podCIDR"].as_str() {
                    Some(_) => None,
                    None => self.free_range(name),
                };
                let labels = node_object::labels(name, report);
                self.inner
                    .objects
                    .modify(&NODE, None, "", name, |node| {
                        let metadata = object::metadata_mut(node);
                        let there =
                            metadata.entry("labels").or_insert_with(|| Value::Object(Default::default()));
                        if let Some(there) = there.as_object_mut() {
                            there.extend(labels.clone());
                        }
                        if let Some(range) = range {
                            let spec = object::map_mut(node, "spec");
                            spec.insert("podCIDR".into(), range.to_string().into());
                            spec.insert("podCIDRs".into(), vec![range.to_string()].into());
                        }
                        Ok(())
                    })
                    .await?;
            }
        }
        drop(_one);
        self.report_node(name, report, version).await
    }

    /// Takes over what the agent says of its host.
    pub(super) async fn report_node(
        &self,
        name: &str,
        report: &NodeStatus,
        version: &str,
    ) -> Result<(), Status> {
        self.write_status(name, |node| node_object::status(node, report, version, Timestamp::now())).await
    }

    async fn write_status(&self, name: &str, status: impl Fn(&Value) -> Value) -> Result<(), Status> {
        let written = self
            .inner
            .objects
            .modify(&NODE, Some(Subresource::Status), "", name, |node| {
                let new = status(node);
                if !node_object::same(&node["status"], &new) {
                    object::map_mut(node, "status");
                    node["status"] = new;
                }
                Ok(())
            })
            .await;
        let node = match written {
            // Deleted by a person: it comes back with the agent's next session.
            Err(status) if status.code == 404 => return Ok(()),
            other => other?,
        };
        // The scheduler does not wait for these: what is not Ready takes nothing anyhow.
        if !taints::follow_ready(&mut node.value(), Timestamp::now()) {
            return Ok(());
        }
        let tainted = self.inner.objects.modify(&NODE, None, "", name, |node| {
            taints::follow_ready(node, Timestamp::now());
            Ok(())
        });
        match tainted.await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }

    /// Marks a node Unknown unless a session comes back in time; `why` the last one ended.
    pub(super) fn watch_absence(&self, name: &str, why: String) {
        self.unknown_after(self.inner.config.grace, name, why);
    }

    /// As [`Nodes::watch_absence`], when the controller has just started.
    pub(super) fn await_arrival(&self, name: &str) {
        let why = "the agent has not connected since the controller's start".to_owned();
        self.unknown_after(GRACE_AT_START, name, why);
    }

    fn unknown_after(&self, grace: Duration, name: &str, why: String) {
        let (nodes, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = nodes.inner.shutdown.cancelled() => return,
                () = tokio::time::sleep(grace) => {}
            }
            if nodes.connected(&name) {
                return;
            }
            let unknown = |node: &Value| node_object::status_unknown(node, &why, Timestamp::now());
            if let Err(error) = nodes.write_status(&name, unknown).await {
                tracing::warn!(node = %name, %error, "the node's condition could not be written");
            }
        });
    }

    /// What a node adds to the pods placed on it; None without a Node object.
    pub(super) fn place_of(&self, name: &str) -> Option<Place> {
        let node = self.inner.store.get(&Key::new(NODES, "", name))?.value();
        let addresses = node["status"]["addresses"].as_array();
        let internal = addresses.into_iter().flatten().filter(|a| a["type"] == "InternalIP");
        let range: Option<Range> = node["spec"]["podCIDR"].as_str().and_then(|r| r.parse().ok());
        Some(Place {
            cluster_domain: self.inner.config.cluster_domain.clone(),
            nameservers: Vec::new(),
            host_ips: internal.filter_map(|a| a["address"].as_str().map(str::to_owned)).collect(),
            gateway: range.map(|r| r.gateway().to_string()).unwrap_or_default(),
        })
    }

    /// The range a node's pods get their addresses from, as text; empty if it has none.
    pub(super) fn range_of(&self, name: &str) -> String {
        let node = self.inner.store.get(&Key::new(NODES, "", name)).map(|o| o.value()).unwrap_or_default();
        node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned()
    }

    /// A range for a new node: the one its pods have addresses in already, if they have, or one that is
    /// nobody's.
    fn free_range(&self, name: &str) -> Option<Range> {
        let nodes = self.inner.store.list(&Scope::all(NODES)).objects;
        let taken: BTreeSet<Range> =
            nodes.iter().filter_map(|o| o.value()["spec"]["podCIDR"].as_str()?.parse().ok()).collect();
        let records = self.inner.store.list(&Scope::all(identity::RESOURCE)).objects;
        let records: Vec<Record> = records.iter().filter_map(|o| Record::read(&o.value())).collect();
        let own = records.iter().filter(|r| r.node == name).find_map(|r| r.address.parse::<Range>().ok());
        if let Some(own) = own.filter(|own| !taken.contains(own)) {
            return Some(own);
        }
        let used: BTreeSet<Ipv4Addr> = records.iter().filter_map(address_of).collect();
        self.inner.config.pod_cidr.share(&taken, &used)
    }
}

/// The address in a record, if the controller gave it one.
pub(super) fn address_of(record: &Record) -> Option<Ipv4Addr> {
    record.address.split('/').next()?.parse().ok()
}

//! Who holds which volumes: what the records say, so that an access mode counts whoever asks.
//!
//! A record lists the volumes its pod was bound with. One that does not (a host's word after a restore, or written
//! before there was such a list) counts with those of the pod's claims as they are now.

use std::collections::{BTreeMap, HashMap};

use berth_controller_core::claims::access::{self, Holder};
use berth_controller_core::{identity, object};
use serde_json::Value;

use super::binding::CLAIMS;
use super::world::Name;
use crate::store::{Key, Store};

/// Volumes and who has them.
#[derive(Default)]
pub struct Holders {
    /// By volume: namespace/name of each pod, and its node.
    by_volume: HashMap<String, BTreeMap<String, String>>,
    by_pod: HashMap<Name, Vec<String>>,
}

impl Holders {
    /// In place of what it had. True: it has less now.
    pub fn hold(&mut self, name: &Name, node: &str, volumes: Vec<String>) -> bool {
        let before = self.by_pod.get(name).map_or(0, Vec::len);
        let less = volumes.len() < before;
        self.release(name);
        for volume in &volumes {
            let holders = self.by_volume.entry(volume.clone()).or_default();
            holders.insert(name.to_string(), node.to_owned());
        }
        if !volumes.is_empty() {
            self.by_pod.insert(name.clone(), volumes);
        }
        less
    }

    /// True: it had some.
    pub fn release(&mut self, name: &Name) -> bool {
        let Some(volumes) = self.by_pod.remove(name) else { return false };
        for volume in volumes {
            if let Some(holders) = self.by_volume.get_mut(&volume) {
                holders.remove(&name.to_string());
                if holders.is_empty() {
                    self.by_volume.remove(&volume);
                }
            }
        }
        true
    }

    /// Why a pod on this node may not use the volume now.
    pub fn refusal(&self, volume: &Value, node: &str) -> Option<String> {
        let holders = self.by_volume.get(object::name(volume))?;
        access::refusal(volume, node, holders.iter().map(|(pod, node)| Holder { pod, node }))
    }
}

/// The volumes that the holder of a record has.
pub fn volumes_of(store: &Store, name: &Name, record: &Value) -> Vec<String> {
    if let Some(listed) = identity::volumes(record) {
        return listed.into_iter().map(str::to_owned).collect();
    }
    let Some(pod) = store.get(&name.pod_key()).map(|pod| pod.value()) else { return Vec::new() };
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let claims = volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
    claims
        .filter_map(|claim| store.get(&Key::new(CLAIMS, &name.namespace, claim)))
        .filter_map(|claim| claim.value()["spec"]["volumeName"].as_str().map(str::to_owned))
        .filter(|volume| !volume.is_empty())
        .collect()
}

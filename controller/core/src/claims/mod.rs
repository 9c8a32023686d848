//! Claims and volumes: which volume a PersistentVolumeClaim gets, and how a new one looks.
//!
//! Provisioners are data (DESIGN D8): see [`provision`]. Nothing here makes a directory: the host does, when it
//! gets the pod that uses it.
//!
//! A volume is one directory; [`location`] says where, [`access`] who may use it at the same time, [`reclaim`]
//! what becomes of it.

pub mod access;
mod location;
mod provision;
mod reclaim;

use serde_json::{Value, json};

pub use location::{Directory, Location, Nfs, UNUSED, location, pinned_to};
pub use provision::{
    Backend, Directories, Export, NFS_DRIVER, OnDelete, Provisioners, checked_export, patterned,
};
pub use reclaim::{Reclaim, end_of, reclaim, used_by_another};

use crate::object;
use crate::place::reaches;
use crate::quantity::Quantity;
use crate::selector::Selector;

/// The embedded provisioner's name, behind the class `local`.
pub const DIRECTORY_PROVISIONER: &str = "berth.dev/directory";
/// For volumes that people make by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
pub const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// The node label that pins a volume to its host.
pub const HOSTNAME: &str = "kubernetes.io/hostname";

/// What a claim is decided against: every volume and class there is.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    pub volumes: &'a [&'a Value],
    pub classes: &'a [&'a Value],
    pub provisioners: &'a Provisioners,
}

/// The two objects of a binding, as they are to be written, together.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub volume: Value,
    /// The volume does not exist yet. (It is to be created, with a uid and what else admission adds.)
    pub new: bool,
    pub claim: Value,
    /// Volumes (name, resourceVersion) whose directory it shares: the binding counts only if they are still as
    /// they were, since the end of one of them could take the directory with it.
    pub beside: Vec<(String, String)>,
}

/// Where a claim stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It has its volume, by this name.
    Bound { volume: String },
    /// Its binding depends on no host: to be written now.
    Now(Box<Binding>),
    /// Bound with its pod, in the transaction that places it ([`bind_on`]).
    WithPod,
    /// Cannot be bound as things are; the event to tell.
    Waits { reason: &'static str, message: String },
    /// It had a volume, which is gone: the claim's phase becomes Lost.
    Lost { message: String },
}

/// The class a claim asks for; "" if it asks for none.
pub fn class_name(claim: &Value) -> &str {
    if let Some(class) = object::annotation(claim, CLASS_BETA) {
        return class;
    }
    claim["spec"]["storageClassName"].as_str().unwrap_or_default()
}

/// The class for claims that name none: the youngest of those marked as default, as in Kubernetes.
pub fn default_class<'a>(classes: &[&'a Value]) -> Option<&'a str> {
    classes
        .iter()
        .filter(|c| {
            object::annotation(c, DEFAULT_CLASS) == Some("true")
                || object::annotation(c, "storageclass.beta.kubernetes.io/is-default-class") == Some("true")
        })
        .max_by_key(|c| {
            (
                c["metadata"]["creationTimestamp"].as_str().unwrap_or_default(),
                std::cmp::Reverse(object::name(c)),
            )
        })
        .map(|c| object::name(c))
}

/// Whether a claim is to be given the default class: it names none, not even "".
pub fn wants_default_class(claim: &Value) -> bool {
    claim["spec"]["storageClassName"].is_null()
        && object::annotation(claim, CLASS_BETA).is_none()
        && claim["spec"]["volumeName"].as_str().unwrap_or_default().is_empty()
}

/// The class `local` as it is made at first start. Deleted claims take their directory with them
/// (reclaim policy Delete), as Kubernetes' own classes do by default; a StatefulSet never deletes its claims.
pub fn local_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {DEFAULT_CLASS: "true"}},
        "provisioner": DIRECTORY_PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

/// Where this claim stands now.
pub fn standing(claim: &Value, storage: &Storage) -> Standing {
    let wanted = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    if !wanted.is_empty() {
        return standing_of_named(claim, wanted, storage);
    }
    let class_name = class_name(claim);
    let class = storage.classes.iter().copied().find(|c| object::name(c) == class_name);
    let waits_for_pod = class.is_some_and(|c| c["volumeBindingMode"] == "WaitForFirstConsumer");
    if !waits_for_pod && let Some(volume) = best_match(claim, storage.volumes, |_| true) {
        return Standing::Now(Box::new(bind_existing(claim, volume)));
    }
    let Some(class) = class else {
        if class_name.is_empty() {
            return Standing::Waits {
                reason: "FailedBinding",
                message: "no persistent volumes available for this claim and no storage class is set"
                    .to_owned(),
            };
        }
        return Standing::Waits {
            reason: "ProvisioningFailed",
            message: format!("storageclass.storage.k8s.io {class_name:?} not found"),
        };
    };
    let provisioner = class["provisioner"].as_str().unwrap_or_default();
    match storage.provisioners.get(provisioner) {
        Some(_) if !claim["spec"]["selector"].is_null() => Standing::Waits {
            reason: "ProvisioningFailed",
            message: "claim.spec.selector is not supported for a class that makes its volumes: remove the \
                      selector, or make a matching PersistentVolume"
                .to_owned(),
        },
        Some(Backend::Directories(directories)) if !directories.shared => Standing::WithPod,
        Some(backend) => match provision::provision(claim, class, backend, None, storage.volumes) {
            Err(message) => Standing::Waits { reason: "ProvisioningFailed", message },
            Ok(_) if waits_for_pod => Standing::WithPod,
            Ok(binding) => Standing::Now(Box::new(binding)),
        },
        None if provisioner == NO_PROVISIONER && waits_for_pod => Standing::WithPod,
        None if provisioner == NO_PROVISIONER => Standing::Waits {
            reason: "FailedBinding",
            message: "no persistent volumes available for this claim: its class makes none".to_owned(),
        },
        None => Standing::Waits {
            reason: "ExternalProvisioning",
            message: format!(
                "no directory or server is configured for provisioner {provisioner:?} of class \
                 {class_name:?}: map it in the controller's configuration, or create a matching \
                 PersistentVolume"
            ),
        },
    }
}

/// The binding of a claim that stands [`Standing::WithPod`], once its pod is placed on this node; or why
/// that node will not do.
pub fn bind_on(claim: &Value, node: &Value, storage: &Storage) -> Result<Binding, String> {
    if let Some(volume) = best_match(claim, storage.volumes, |v| reaches(v, node)) {
        return Ok(selected(bind_existing(claim, volume), node));
    }
    let class_name = class_name(claim);
    let class = storage.classes.iter().copied().find(|c| object::name(c) == class_name);
    let provisioner = class.map(|c| c["provisioner"].as_str().unwrap_or_default()).unwrap_or_default();
    match (class, storage.provisioners.get(provisioner)) {
        (Some(class), Some(backend)) if claim["spec"]["selector"].is_null() => {
            let made = provision::provision(claim, class, backend, Some(node), storage.volumes)?;
            Ok(selected(made, node))
        }
        _ => Err("node(s) didn't find available persistent volumes to bind".to_owned()),
    }
}

fn selected(mut binding: Binding, node: &Value) -> Binding {
    annotate(&mut binding.claim, SELECTED_NODE, object::name(node));
    binding
}

/// What becomes of a bound claim's wish for more. A directory has no size of its own: only what the volume
/// says of itself grows.
#[derive(Clone, Debug, PartialEq)]
pub enum Growth {
    /// It asks for no more than it has.
    None,
    /// The volume as it is to be.
    To(Box<Value>),
    /// Its class does not allow it.
    Refused(String),
}

/// Whether the volume of a bound claim is to grow.
pub fn growth(claim: &Value, volume: &Value, storage: &Storage) -> Growth {
    let requested = &claim["spec"]["resources"]["requests"]["storage"];
    if Quantity::or_zero(requested) <= Quantity::or_zero(&volume["spec"]["capacity"]["storage"]) {
        return Growth::None;
    }
    let class = storage.classes.iter().copied().find(|c| object::name(c) == class_name(claim));
    let made_here =
        object::annotation(volume, PROVISIONED_BY).is_some_and(|p| storage.provisioners.get(p).is_some());
    if !made_here || class.is_none_or(|c| c["allowVolumeExpansion"] != true) {
        return Growth::Refused(format!(
            "the volume stays as it is: storage class {:?} does not set allowVolumeExpansion",
            class_name(claim)
        ));
    }
    let mut volume = volume.clone();
    volume["spec"]["capacity"]["storage"] = requested.clone();
    Growth::To(Box::new(volume))
}

fn standing_of_named(claim: &Value, wanted: &str, storage: &Storage) -> Standing {
    let Some(volume) = storage.volumes.iter().copied().find(|v| object::name(v) == wanted) else {
        if object::annotation(claim, BIND_COMPLETED).is_some() {
            return Standing::Lost {
                message: "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned(),
            };
        }
        return Standing::Waits { reason: "FailedBinding", message: format!("volume {wanted:?} not found") };
    };
    let reference = &volume["spec"]["claimRef"];
    if !reference.is_null() && !refers_to(reference, claim) {
        if object::annotation(claim, BIND_COMPLETED).is_some() {
            return Standing::Lost {
                message: "Two claims are bound to the same volume, this one is bound incorrectly".to_owned(),
            };
        }
        return Standing::Waits {
            reason: "FailedBinding",
            message: format!("volume {wanted:?} already bound to a different claim."),
        };
    }
    let complete = claim["status"]["phase"] == "Bound" && volume["status"]["phase"] == "Bound";
    if complete && reference["uid"].as_str() == Some(object::uid(claim)) {
        return Standing::Bound { volume: wanted.to_owned() };
    }
    if object::annotation(claim, BIND_COMPLETED).is_none()
        && let Some(why) = mismatch(claim, volume)
    {
        return Standing::Waits {
            reason: "VolumeMismatch",
            message: format!("Cannot bind to requested volume {wanted:?}: {why}"),
        };
    }
    Standing::Now(Box::new(bind_existing(claim, volume)))
}

/// `claimRef` names this claim; one without a uid is a reservation by name.
fn refers_to(reference: &Value, claim: &Value) -> bool {
    reference["name"].as_str() == Some(object::name(claim))
        && reference["namespace"].as_str() == Some(object::namespace(claim))
        && reference["uid"].as_str().is_none_or(|uid| uid.is_empty() || uid == object::uid(claim))
}

/// The smallest volume that will do; one reserved for the claim comes first.
fn best_match<'a>(claim: &Value, volumes: &[&'a Value], also: impl Fn(&Value) -> bool) -> Option<&'a Value> {
    let mut best: Option<(Quantity, &Value)> = None;
    for &volume in volumes {
        let reference = &volume["spec"]["claimRef"];
        if object::deleting(volume) || mismatch(claim, volume).is_some() || !also(volume) {
            continue;
        }
        if !reference.is_null() {
            if refers_to(reference, claim) {
                return Some(volume);
            }
            continue;
        }
        if matches!(volume["status"]["phase"].as_str(), Some("Released" | "Failed" | "Bound")) {
            continue;
        }
        let Ok(capacity) = Quantity::of(&volume["spec"]["capacity"]["storage"]) else { continue };
        let smaller = match &best {
            None => true,
            Some((held, kept)) => match capacity.cmp(held) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => object::name(volume) < object::name(kept),
                std::cmp::Ordering::Greater => false,
            },
        };
        if smaller {
            best = Some((capacity, volume));
        }
    }
    best.map(|(_, volume)| volume)
}

/// Why this volume cannot serve this claim.
fn mismatch(claim: &Value, volume: &Value) -> Option<&'static str> {
    let requested = Quantity::of(&claim["spec"]["resources"]["requests"]["storage"]).ok();
    let capacity = Quantity::of(&volume["spec"]["capacity"]["storage"]).ok();
    if let Some(requested) = requested
        && capacity.is_none_or(|c| c < requested)
    {
        return Some("requested PV is too small");
    }
    if object::annotation(volume, CLASS_BETA)
        .unwrap_or_else(|| volume["spec"]["storageClassName"].as_str().unwrap_or_default())
        != class_name(claim)
    {
        return Some("storageClassName does not match");
    }
    let mode = |o: &Value| o["spec"]["volumeMode"].as_str().unwrap_or("Filesystem").to_owned();
    if mode(claim) != mode(volume) {
        return Some("incompatible volumeMode");
    }
    let offered = volume["spec"]["accessModes"].as_array();
    let asked = claim["spec"]["accessModes"].as_array();
    if !asked.into_iter().flatten().all(|m| offered.is_some_and(|o| o.contains(m))) {
        return Some("incompatible accessMode");
    }
    if !claim["spec"]["selector"].is_null()
        && !Selector::from_object(&claim["spec"]["selector"])
            .is_ok_and(|selector| selector.matches(&volume["metadata"]["labels"]))
    {
        return Some("the volume's labels do not match the claim's selector");
    }
    None
}

/// Claim and volume as they are once bound to each other.
fn bind_existing(claim: &Value, volume: &Value) -> Binding {
    let (mut claim, mut volume) = (claim.clone(), volume.clone());
    let by_person = !volume["spec"]["claimRef"].is_null();
    volume["spec"]["claimRef"] = json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1",
        "namespace": object::namespace(&claim), "name": object::name(&claim), "uid": object::uid(&claim),
        "resourceVersion": claim["metadata"]["resourceVersion"],
    });
    if object::annotation(&volume, PROVISIONED_BY).is_none() && !by_person {
        annotate(&mut volume, BOUND_BY_CONTROLLER, "yes");
    }
    volume["status"]["phase"] = "Bound".into();
    if claim["spec"]["volumeName"].as_str().is_none_or(str::is_empty) {
        claim["spec"]["volumeName"] = volume["metadata"]["name"].clone();
        annotate(&mut claim, BOUND_BY_CONTROLLER, "yes");
    }
    annotate(&mut claim, BIND_COMPLETED, "yes");
    claim["status"]["phase"] = "Bound".into();
    claim["status"]["accessModes"] = volume["spec"]["accessModes"].clone();
    claim["status"]["capacity"] = volume["spec"]["capacity"].clone();
    Binding { volume, new: false, claim, beside: Vec::new() }
}

fn annotate(target: &mut Value, key: &str, value: &str) {
    let annotations = &mut object::metadata_mut(target).entry("annotations").or_insert_with(|| json!({}));
    annotations[key] = value.into();
}

#[cfg(test)]
mod tests;

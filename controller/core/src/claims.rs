//! Claims and volumes: which volume a PersistentVolumeClaim gets, and how a new one looks.
//!
//! Provisioners are data (DESIGN D8): the embedded class `local` makes a directory on the pod's own host,
//! and the operator's mapping turns any other provisioner name into plain directories. Nothing here makes a
//! directory: the host does, when it gets the pod that uses it.
//!
//! A volume is one directory. `local.path` (pinned to a host by node affinity) or `hostPath.path` (the same
//! directory on every host, by the operator's word) holds it; a relative `local.path` lies below the
//! volumes directory of that host's agent, which only the agent knows.

use std::collections::BTreeMap;

use serde_json::{Value, json};

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

/// Where the volumes of one provisioner lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directories {
    /// Absolute; empty: the volumes directory of the host's agent.
    pub root: String,
    /// The operator says that `root` is the same directory on every host: volumes are not pinned.
    pub shared: bool,
}

/// Provisioner names to directories: the controller's configuration, and the embedded one.
#[derive(Clone, Debug)]
pub struct Provisioners(BTreeMap<String, Directories>);

impl Provisioners {
    pub fn new(mapped: impl IntoIterator<Item = (String, Directories)>) -> Provisioners {
        let mut all = BTreeMap::from([(DIRECTORY_PROVISIONER.to_owned(), Directories::default())]);
        all.extend(mapped);
        Provisioners(all)
    }

    pub fn get(&self, provisioner: &str) -> Option<&Directories> {
        self.0.get(provisioner)
    }
}

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
        Some(directories) if directories.shared && !waits_for_pod => {
            Standing::Now(Box::new(provision(claim, class, directories, None)))
        }
        Some(_) => Standing::WithPod,
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
        (Some(class), Some(directories)) if claim["spec"]["selector"].is_null() => {
            Ok(selected(provision(claim, class, directories, Some(node)), node))
        }
        _ => Err("node(s) didn't find available persistent volumes to bind".to_owned()),
    }
}

fn selected(mut binding: Binding, node: &Value) -> Binding {
    annotate(&mut binding.claim, SELECTED_NODE, object::name(node));
    binding
}

/// The directory behind a volume, for the host that uses it: (root, name); an empty root is the agent's own
/// volumes directory. None: not a directory.
pub fn directory(volume: &Value) -> Option<Directory> {
    let path = ["local", "hostPath"].iter().find_map(|source| volume["spec"][*source]["path"].as_str())?;
    let path = path.trim_end_matches('/');
    let (root, name) = path
        .rsplit_once('/')
        .map_or(("", path), |(root, name)| (if root.is_empty() { "/" } else { root }, name));
    if name.is_empty() || name == ".." || name == "." {
        return None;
    }
    Some(Directory { root: root.to_owned(), name: name.to_owned() })
}

/// A directory on a host; see [`directory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub root: String,
    pub name: String,
}

/// The host a volume is pinned to, if it is: the first value its affinity asks of kubernetes.io/hostname.
pub fn pinned_to(volume: &Value) -> Option<&str> {
    let terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array()?;
    terms
        .iter()
        .flat_map(|t| t["matchExpressions"].as_array().into_iter().flatten())
        .find(|e| e["key"] == HOSTNAME && e["operator"] == "In")
        .and_then(|e| e["values"][0].as_str())
}

/// What becomes of a volume whose claim is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Its phase becomes Released; a person decides.
    Keep,
    /// The directory is removed on its host, then the object.
    Remove,
}

/// What becomes of this volume once its claim is gone. Only what was provisioned here is ever removed.
pub fn reclaim(volume: &Value, provisioners: &Provisioners) -> Reclaim {
    let made_here = object::annotation(volume, PROVISIONED_BY).is_some_and(|p| provisioners.get(p).is_some());
    if made_here && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
        Reclaim::Remove
    } else {
        Reclaim::Keep
    }
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

/// A new volume for this claim: a directory, on that node unless the directories are shared.
fn provision(claim: &Value, class: &Value, directories: &Directories, node: Option<&Value>) -> Binding {
    let name = format!("pvc-{}", object::uid(claim));
    let provisioner = class["provisioner"].as_str().unwrap_or_default();
    let directory = directory_name(object::namespace(claim), object::name(claim), &name);
    let path = if directories.root.is_empty() {
        directory
    } else {
        format!("{}/{directory}", directories.root.trim_end_matches('/'))
    };
    let mut spec = json!({
        "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
        "accessModes": claim["spec"]["accessModes"],
        "persistentVolumeReclaimPolicy": class["reclaimPolicy"].as_str().unwrap_or("Delete"),
        "storageClassName": class_name(claim),
        "volumeMode": claim["spec"]["volumeMode"].as_str().unwrap_or("Filesystem"),
    });
    match node {
        Some(node) if !directories.shared => {
            let host = object::label(node, HOSTNAME).unwrap_or_else(|| object::name(node));
            spec["local"] = json!({"path": path});
            spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]},
            ]}});
        }
        _ => spec["hostPath"] = json!({"path": path, "type": "DirectoryOrCreate"}),
    }
    if class["mountOptions"].is_array() {
        spec["mountOptions"] = class["mountOptions"].clone();
    }
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: provisioner}},
        "spec": spec,
    });
    let mut claim = claim.clone();
    annotate(&mut claim, PROVISIONER, provisioner);
    annotate(&mut claim, PROVISIONER_BETA, provisioner);
    let mut binding = bind_existing(&claim, &volume);
    binding.new = true;
    binding
}

/// `<namespace>-<claim>-<volume>`, as the NFS subdir provisioner names it; one path component. A name too
/// long for a file system falls back to the volume's own, which is unique.
fn directory_name(namespace: &str, claim: &str, volume: &str) -> String {
    let name = format!("{namespace}-{claim}-{volume}");
    if name.len() <= 255 { name } else { volume.to_owned() }
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
    Binding { volume, new: false, claim }
}

fn annotate(target: &mut Value, key: &str, value: &str) {
    let annotations = &mut object::metadata_mut(target).entry("annotations").or_insert_with(|| json!({}));
    annotations[key] = value.into();
}

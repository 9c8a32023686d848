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

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(more: Value) -> Value {
        let mut claim = json!({
            "metadata": {"name": "data-web-0", "namespace": "default", "uid": "u1", "resourceVersion": "7"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "local", "volumeMode": "Filesystem",
            },
            "status": {"phase": "Pending"},
        });
        for (key, value) in more.as_object().unwrap() {
            claim["spec"][key] = value.clone();
        }
        claim
    }

    fn volume(name: &str, size: &str, class: &str) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"disk": name}},
            "spec": {
                "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "storageClassName": class, "hostPath": {"path": format!("/mnt/{name}")},
                "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem",
            },
            "status": {"phase": "Available"},
        })
    }

    fn class(name: &str, provisioner: &str, mode: &str) -> Value {
        json!({
            "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
            "reclaimPolicy": "Delete",
        })
    }

    fn provisioners() -> Provisioners {
        let at = |root: &str, shared| Directories { root: root.to_owned(), shared };
        Provisioners::new([
            ("bdqn".to_owned(), at("/srv/bdqn", false)),
            ("nas".to_owned(), at("/nas/", true)),
        ])
    }

    fn node(name: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {HOSTNAME: name}}})
    }

    fn stands(claim: &Value, volumes: &[Value], classes: &[Value]) -> Standing {
        let (volumes, classes): (Vec<&Value>, Vec<&Value>) =
            (volumes.iter().collect(), classes.iter().collect());
        standing(claim, &Storage { volumes: &volumes, classes: &classes, provisioners: &provisioners() })
    }

    fn bound_on(claim: &Value, on: &str, volumes: &[Value], classes: &[Value]) -> Result<Binding, String> {
        let (volumes, classes): (Vec<&Value>, Vec<&Value>) =
            (volumes.iter().collect(), classes.iter().collect());
        bind_on(
            claim,
            &node(on),
            &Storage { volumes: &volumes, classes: &classes, provisioners: &provisioners() },
        )
    }

    #[test]
    fn a_claim_of_class_local_becomes_a_directory_on_its_pods_host() {
        let claim = claim(json!({}));
        assert_eq!(stands(&claim, &[], &[local_class()]), Standing::WithPod);
        let made = bound_on(&claim, "a", &[], &[local_class()]).unwrap();
        assert!(made.new);
        assert_eq!(
            made.volume,
            json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {
                    "name": "pvc-u1", "annotations": {"pv.kubernetes.io/provisioned-by": "berth.dev/directory"},
                },
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "local",
                    "volumeMode": "Filesystem",
                    "local": {"path": "default-data-web-0-pvc-u1"},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]},
                    ]}]}},
                    "claimRef": {
                        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                        "name": "data-web-0", "uid": "u1", "resourceVersion": "7",
                    },
                },
                "status": {"phase": "Bound"},
            })
        );
        let (bound, pinned) = (&made.claim, pinned_to(&made.volume));
        assert_eq!(
            (&bound["spec"]["volumeName"], &bound["status"]["phase"]),
            (&json!("pvc-u1"), &json!("Bound"))
        );
        assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
        for (key, value) in [
            (SELECTED_NODE, "a"),
            (PROVISIONER, DIRECTORY_PROVISIONER),
            (BIND_COMPLETED, "yes"),
            (BOUND_BY_CONTROLLER, "yes"),
        ] {
            assert_eq!(object::annotation(bound, key), Some(value), "{key}");
        }
        assert_eq!(pinned, Some("a"));
        assert!(reaches(&made.volume, &node("a")) && !reaches(&made.volume, &node("b")));
        assert_eq!(
            stands(bound, std::slice::from_ref(&made.volume), &[local_class()]),
            Standing::Bound { volume: "pvc-u1".to_owned() }
        );
        assert_eq!(reclaim(&made.volume, &provisioners()), Reclaim::Remove);
    }

    #[test]
    fn a_mapped_provisioner_names_its_directories_as_the_nfs_subdir_provisioner_does() {
        let classes = [class("fast", "bdqn", "Immediate")];
        let claim = claim(json!({"storageClassName": "fast"}));
        assert_eq!(stands(&claim, &[], &classes), Standing::WithPod, "pinned to a host even if Immediate");
        let made = bound_on(&claim, "a", &[], &classes).unwrap();
        assert_eq!(made.volume["spec"]["local"]["path"], "/srv/bdqn/default-data-web-0-pvc-u1");
        assert_eq!(
            directory(&made.volume),
            Some(Directory { root: "/srv/bdqn".into(), name: "default-data-web-0-pvc-u1".into() })
        );
    }

    #[test]
    fn shared_directories_are_bound_at_once_and_pinned_nowhere() {
        let claim = claim(json!({"storageClassName": "nas"}));
        let Standing::Now(made) = stands(&claim, &[], &[class("nas", "nas", "Immediate")]) else { panic!() };
        assert_eq!(made.volume["spec"]["hostPath"]["path"], "/nas/default-data-web-0-pvc-u1");
        assert!(reaches(&made.volume, &node("b")) && pinned_to(&made.volume).is_none());
        let late = [class("nas", "nas", "WaitForFirstConsumer")];
        assert_eq!(stands(&claim, &[], &late), Standing::WithPod);
    }

    #[test]
    fn a_static_volume_is_the_smallest_that_fits_class_mode_size_and_selector() {
        let volumes = [
            volume("big", "10Gi", "manual"),
            volume("fits", "2Gi", "manual"),
            volume("small", "100Mi", "manual"),
            volume("other", "1Gi", "else"),
        ];
        let bound = |more: Value| match stands(&claim(more), &volumes, &[]) {
            Standing::Now(binding) => object::name(&binding.volume).to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(bound(json!({"storageClassName": "manual"})), "fits");
        let selector = json!({"matchLabels": {"disk": "big"}});
        assert_eq!(bound(json!({"storageClassName": "manual", "selector": selector})), "big");
        assert!(
            bound(json!({"storageClassName": "manual", "accessModes": ["ReadOnlyMany"]})).contains("Waits")
        );
    }

    #[test]
    fn a_volume_reserved_or_asked_for_by_name_is_taken() {
        let mut reserved = volume("reserved", "50Gi", "manual");
        reserved["spec"]["claimRef"] = json!({"namespace": "default", "name": "data-web-0"});
        let volumes = [volume("fits", "2Gi", "manual"), reserved];
        let manual = claim(json!({"storageClassName": "manual"}));
        let Standing::Now(binding) = stands(&manual, &volumes, &[]) else { panic!() };
        assert_eq!(object::name(&binding.volume), "reserved");
        let named = claim(json!({"storageClassName": "manual", "volumeName": "fits"}));
        let Standing::Now(binding) = stands(&named, &volumes, &[]) else { panic!() };
        assert_eq!(binding.claim["status"]["capacity"]["storage"], "2Gi");
        let taken = claim(json!({"storageClassName": "other", "volumeName": "fits"}));
        assert!(matches!(stands(&taken, &volumes, &[]), Standing::Waits { reason: "VolumeMismatch", .. }));
    }

    #[test]
    fn what_cannot_be_bound_says_why() {
        let why = |more: Value, classes: &[Value]| match stands(&claim(more), &[], classes) {
            Standing::Waits { reason, message } => (reason, message),
            other => panic!("{other:?}"),
        };
        let (reason, message) = why(json!({"storageClassName": "gone"}), &[]);
        assert_eq!(
            (reason, &*message),
            ("ProvisioningFailed", "storageclass.storage.k8s.io \"gone\" not found")
        );
        let (reason, message) =
            why(json!({"storageClassName": "x"}), &[class("x", "example.com/x", "Immediate")]);
        assert_eq!(reason, "ExternalProvisioning");
        assert!(message.contains("example.com/x"), "{message}");
        assert_eq!(why(json!({"storageClassName": ""}), &[]).0, "FailedBinding");
    }

    #[test]
    fn a_bound_claim_whose_volume_is_gone_is_lost() {
        let made = bound_on(&claim(json!({})), "a", &[], &[local_class()]).unwrap();
        assert!(matches!(stands(&made.claim, &[], &[local_class()]), Standing::Lost { .. }));
    }

    #[test]
    fn a_larger_request_grows_the_volume_if_its_class_allows_it() {
        let made = bound_on(&claim(json!({})), "a", &[], &[local_class()]).unwrap();
        let mut larger = made.claim.clone();
        larger["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        let grown = |claim: &Value, class: &Value| {
            let storage = Storage { volumes: &[], classes: &[class], provisioners: &provisioners() };
            match growth(claim, &made.volume, &storage) {
                Growth::To(volume) => volume["spec"]["capacity"]["storage"].clone(),
                other => format!("{other:?}").into(),
            }
        };
        assert_eq!(grown(&larger, &local_class()), "2Gi");
        assert_eq!(grown(&made.claim, &local_class()), "None");
        assert!(
            grown(&larger, &class("local", "bdqn", "Immediate")).as_str().unwrap().starts_with("Refused")
        );
    }

    #[test]
    fn a_half_written_binding_is_completed() {
        let made = bound_on(&claim(json!({})), "a", &[], &[local_class()]).unwrap();
        let mut half = made.claim.clone();
        half["status"] = json!({"phase": "Pending"});
        let Standing::Now(again) = stands(&half, std::slice::from_ref(&made.volume), &[local_class()]) else {
            panic!()
        };
        assert_eq!(again.claim["status"], made.claim["status"]);
    }

    #[test]
    fn the_youngest_default_class_is_for_claims_that_name_none() {
        let mut old = local_class();
        old["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        let mut young = class("young", "bdqn", "Immediate");
        young["metadata"]["annotations"] = json!({DEFAULT_CLASS: "true"});
        young["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
        assert_eq!(default_class(&[&old, &young, &class("x", "x", "Immediate")]), Some("young"));
        let mut none = claim(json!({}));
        none["spec"].as_object_mut().unwrap().remove("storageClassName");
        assert!(wants_default_class(&none));
        assert!(!wants_default_class(&claim(json!({"storageClassName": ""}))));
    }
}

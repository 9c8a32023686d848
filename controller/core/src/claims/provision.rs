//! New volumes: which provisioner a class names, what its parameters ask for, what the directory is called.
//!
//! | provisioner | behind it | the directory |
//! |---|---|---|
//! | `berth.dev/directory` (class `local`) | the pod's own host | `<namespace>-<claim>-<volume>` |
//! | `nfs.csi.k8s.io` | the class's `server` and `share` | `subDir`, else the volume's name |
//! | any other, mapped in the configuration | directories, or an NFS share | `pathPattern`, else `<namespace>-<claim>-<volume>` |
//!
//! What must never come out of here: a directory that is not strictly below its share.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::location::{self, Location, NFS_SHARE, ON_DELETE, UNUSED};
use super::{
    Binding, DIRECTORY_PROVISIONER, HOSTNAME, PROVISIONED_BY, PROVISIONER, PROVISIONER_BETA, annotate,
    bind_existing, class_name, reclaim,
};
use crate::object;

/// The provisioner's name, and the CSI driver's in the volumes it makes.
pub const NFS_DRIVER: &str = "nfs.csi.k8s.io";

/// Where the volumes of one provisioner lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directories {
    /// Absolute; empty: the volumes directory of the host's agent.
    pub root: String,
    /// The operator says that `root` is the same directory on every host: volumes are not pinned.
    pub shared: bool,
}

/// An NFS share that a provisioner's name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    pub server: String,
    /// Absolute.
    pub share: String,
    /// For classes that give none.
    pub mount_options: Vec<String>,
}

/// An export as it is written, checked; with its options one by one.
pub fn checked_export(given: Export) -> Result<Export, String> {
    Ok(Export {
        server: location::server(&given.server)?,
        share: location::share(&given.share)?,
        mount_options: location::options(given.mount_options.iter().map(String::as_str))?,
    })
}

/// What makes the volumes of a provisioner's classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    Directories(Directories),
    Export(Export),
    /// `nfs.csi.k8s.io`: the class says which server and share.
    Driver,
}

/// Provisioner names and what they stand for: the controller's configuration, and the embedded ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioners(BTreeMap<String, Backend>);

impl Provisioners {
    pub fn new(mapped: impl IntoIterator<Item = (String, Backend)>) -> Provisioners {
        let mut all = BTreeMap::from([
            (DIRECTORY_PROVISIONER.to_owned(), Backend::Directories(Directories::default())),
            (NFS_DRIVER.to_owned(), Backend::Driver),
        ]);
        all.extend(mapped);
        Provisioners(all)
    }

    pub fn get(&self, provisioner: &str) -> Option<&Backend> {
        self.0.get(provisioner)
    }
}

/// What becomes of the directory when its volume is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDelete {
    Delete,
    /// It is renamed to `archived-<name>`.
    Archive,
    /// The volume's object goes, the directory stays.
    Retain,
}

impl OnDelete {
    pub fn read(text: &str) -> Option<OnDelete> {
        match text {
            "delete" => Some(OnDelete::Delete),
            "archive" => Some(OnDelete::Archive),
            "retain" => Some(OnDelete::Retain),
            _ => None,
        }
    }

    /// As csi-driver-nfs reads it.
    pub fn read_in_any_case(text: &str) -> Option<OnDelete> {
        OnDelete::read(&text.to_ascii_lowercase())
    }

    fn text(self) -> &'static str {
        match self {
            OnDelete::Delete => "delete",
            OnDelete::Archive => "archive",
            OnDelete::Retain => "retain",
        }
    }
}

/// Whether a class chooses its directories' names itself: only then can two volumes have the same.
pub fn patterned(class: &Value) -> bool {
    parameters(class).any(|(key, _)| key.eq_ignore_ascii_case("subDir") || key == "pathPattern")
}

/// A new volume for this claim, bound to it. `node`: where the pod goes, for a volume that stays there.
pub(super) fn provision(
    claim: &Value,
    class: &Value,
    backend: &Backend,
    node: Option<&Value>,
    volumes: &[&Value],
) -> Result<Binding, String> {
    let provisioner = class["provisioner"].as_str().unwrap_or_default();
    let new = New { claim, class, name: format!("pvc-{}", object::uid(claim)) };
    let mut volume = match backend {
        Backend::Directories(directories) => new.directory(directories, node)?,
        Backend::Export(export) => new.of_export(export)?,
        Backend::Driver => new.of_driver()?,
    };
    annotate(&mut volume, PROVISIONED_BY, provisioner);
    let beside = neighbours(&volume, class, volumes)?;
    let mut claim = claim.clone();
    annotate(&mut claim, PROVISIONER, provisioner);
    annotate(&mut claim, PROVISIONER_BETA, provisioner);
    let mut binding = bind_existing(&claim, &volume);
    binding.new = true;
    binding.beside = beside;
    Ok(binding)
}

/// The volumes whose end would take this one's directory with it.
fn neighbours(volume: &Value, class: &Value, volumes: &[&Value]) -> Result<Vec<(String, String)>, String> {
    let own = location::location(volume)?;
    let (path, of_host) = match &own {
        Location::Nfs(nfs) => (nfs.full_path(), false),
        Location::Directory(directory) => (directory.full_path(), true),
    };
    if of_host && !patterned(class) {
        return Ok(Vec::new());
    }
    let mut beside = Vec::new();
    for other in volumes.iter().filter(|other| object::name(other) != object::name(volume)) {
        let (inside, around) = (location::lies_in(volume, other), location::lies_in(other, volume));
        if of_host && inside != around {
            // A host goes to its directories by their paths: who has the outer one could lead that elsewhere.
            return Err(format!(
                "its directory {path} and that of volume {:?} lie one in the other: choose another pathPattern",
                object::name(other)
            ));
        }
        if !inside {
            continue;
        }
        let ends = object::deleting(other)
            || matches!(other["status"]["phase"].as_str(), Some("Released" | "Failed"));
        if ends && reclaim::disposes(other) {
            return Err(format!(
                "its directory {path} is that of volume {:?}, which is being deleted: it is made once that is done",
                object::name(other)
            ));
        }
        let revision = other["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        beside.push((object::name(other).to_owned(), revision.to_owned()));
    }
    Ok(beside)
}

struct New<'a> {
    claim: &'a Value,
    class: &'a Value,
    name: String,
}

impl New<'_> {
    fn volume(&self, mount_options: &[String]) -> Value {
        let mut volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": self.name},
            "spec": {
                "capacity": {"storage": self.claim["spec"]["resources"]["requests"]["storage"]},
                "accessModes": self.claim["spec"]["accessModes"],
                "persistentVolumeReclaimPolicy": self.class["reclaimPolicy"].as_str().unwrap_or("Delete"),
                "storageClassName": class_name(self.claim),
                "volumeMode": self.claim["spec"]["volumeMode"].as_str().unwrap_or("Filesystem"),
            },
        });
        if self.class["mountOptions"].as_array().is_some_and(|options| !options.is_empty()) {
            volume["spec"]["mountOptions"] = self.class["mountOptions"].clone();
        } else if !mount_options.is_empty() {
            volume["spec"]["mountOptions"] = mount_options.into();
        }
        volume
    }

    /// On that node, unless the directories are shared.
    fn directory(&self, directories: &Directories, node: Option<&Value>) -> Result<Value, String> {
        let (directory, on_delete) = self.by_pattern(OnDelete::Delete)?;
        let path = if directories.root.is_empty() {
            if directory.contains('/') {
                return Err(format!("parameter pathPattern: {directory:?} must be one name, without \"/\""));
            }
            directory
        } else {
            format!("{}/{directory}", directories.root.trim_end_matches('/'))
        };
        let mut volume = self.volume(&[]);
        match node {
            Some(node) if !directories.shared => {
                let host = object::label(node, HOSTNAME).unwrap_or_else(|| object::name(node));
                volume["spec"]["local"] = json!({"path": path});
                volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]},
                ]}});
            }
            _ => volume["spec"]["hostPath"] = json!({"path": path, "type": "DirectoryOrCreate"}),
        }
        if on_delete != OnDelete::Delete {
            annotate(&mut volume, ON_DELETE, on_delete.text());
        }
        Ok(volume)
    }

    /// As nfs-subdir-external-provisioner makes it.
    fn of_export(&self, export: &Export) -> Result<Value, String> {
        let (directory, on_delete) = self.by_pattern(OnDelete::Archive)?;
        let share = location::share(&export.share)?;
        let mut volume = self.volume(&export.mount_options);
        let path = format!("{}/{directory}", share.trim_end_matches('/'));
        volume["spec"]["nfs"] = json!({"server": export.server, "path": path});
        annotate(&mut volume, NFS_SHARE, &share);
        annotate(&mut volume, ON_DELETE, on_delete.text());
        annotate(&mut volume, UNUSED, "true");
        Ok(volume)
    }

    /// The directory's name and end, as nfs-subdir-external-provisioner reads a class.
    fn by_pattern(&self, on_delete: OnDelete) -> Result<(String, OnDelete), String> {
        let mut pattern = None;
        let (mut explicit, mut archive) = (None, None);
        for (key, value) in parameters(self.class) {
            match key {
                "pathPattern" => pattern = Some(value),
                // As its chart leaves what is not set.
                "onDelete" | "archiveOnDelete" if value.is_empty() => {}
                "onDelete" => {
                    let read = OnDelete::read(value).ok_or_else(|| {
                        format!("parameter onDelete: {value:?} is none of delete, retain and archive")
                    })?;
                    explicit = Some(read);
                }
                "archiveOnDelete" => {
                    archive = Some(match value.to_ascii_lowercase().as_str() {
                        "true" | "t" | "1" => OnDelete::Archive,
                        "false" | "f" | "0" => OnDelete::Delete,
                        _ => {
                            return Err(format!("parameter archiveOnDelete: {value:?} is not true or false"));
                        }
                    });
                }
                _ => return Err(unknown(key, "pathPattern, onDelete and archiveOnDelete")),
            }
        }
        let on_delete = explicit.or(archive).unwrap_or(on_delete);
        let usual = directory_name(object::namespace(self.claim), object::name(self.claim), &self.name);
        let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) else {
            return Ok((usual, on_delete));
        };
        let expanded = expand(pattern, |what| {
            let of_claim = what.strip_prefix(".PVC.")?;
            if let Some(label) = of_claim.strip_prefix("labels.") {
                return object::label(self.claim, label).map(str::to_owned);
            }
            if let Some(annotation) = of_claim.strip_prefix("annotations.") {
                return object::annotation(self.claim, annotation).map(str::to_owned);
            }
            match of_claim {
                "name" => Some(object::name(self.claim).to_owned()),
                "namespace" => Some(object::namespace(self.claim).to_owned()),
                _ => None,
            }
        });
        let path = expanded.map_err(|what| {
            format!(
                "parameter pathPattern: this claim has no {what}; known are .PVC.name, .PVC.namespace, \
                 .PVC.labels.<label> and .PVC.annotations.<annotation>"
            )
        })?;
        let path = location::below(&path).map_err(|why| format!("parameter pathPattern: {why}"))?;
        Ok((path, on_delete))
    }

    /// As csi-driver-nfs makes it.
    fn of_driver(&self) -> Result<Value, String> {
        let (mut server, mut share, mut sub_dir) = (None, None, None);
        let mut on_delete = "";
        for (key, value) in parameters(self.class) {
            match key.to_ascii_lowercase().as_str() {
                "server" => server = Some(value),
                "share" => share = Some(value),
                "subdir" => sub_dir = Some(value).filter(|value| !value.is_empty()),
                "mountpermissions" => drop(location::mode(value)?),
                name @ ("uid" | "gid") => drop(location::id(name, value)?),
                "ondelete" => match OnDelete::read_in_any_case(value) {
                    Some(_) => on_delete = value,
                    None if value.is_empty() => {}
                    None => {
                        return Err(format!(
                            "parameter onDelete: {value:?} is none of delete, retain and archive"
                        ));
                    }
                },
                // Secrets with mount options for the deletion: the volume has its own.
                name if name.starts_with("csi.storage.k8s.io/") => {}
                _ => {
                    let known = "server, share, subDir, mountPermissions, uid, gid and onDelete";
                    return Err(unknown(key, known));
                }
            }
        }
        let given = |value: Option<&str>, name| {
            let missing = || format!("parameter {name} of class {:?} is missing", object::name(self.class));
            value.map(str::to_owned).filter(|value| !value.is_empty()).ok_or_else(missing)
        };
        let server = location::server(&given(server, "server")?)?;
        let share = location::share(&given(share, "share")?)?;
        let (claim_name, namespace) = (object::name(self.claim), object::namespace(self.claim));
        let expanded = expand(sub_dir.unwrap_or("${pv.metadata.name}"), |what| match what {
            "pvc.metadata.name" => Some(claim_name.to_owned()),
            "pvc.metadata.namespace" => Some(namespace.to_owned()),
            "pv.metadata.name" => Some(self.name.clone()),
            _ => None,
        });
        let path = expanded.map_err(|what| {
            format!(
                "parameter subDir: ${{{what}}} is not known; known are ${{pvc.metadata.name}}, \
                 ${{pvc.metadata.namespace}} and ${{pv.metadata.name}}"
            )
        })?;
        let path = location::below(&path).map_err(|why| format!("parameter subDir: {why}"))?;
        let attributes: Map<String, Value> = parameters(self.class)
            .filter(|(key, _)| !key.eq_ignore_ascii_case("subDir"))
            .map(|(key, value)| (key.to_owned(), value.into()))
            .chain([
                ("subDir".to_owned(), path.as_str().into()),
                ("csi.storage.k8s.io/pv/name".to_owned(), self.name.as_str().into()),
                ("csi.storage.k8s.io/pvc/name".to_owned(), claim_name.into()),
                ("csi.storage.k8s.io/pvc/namespace".to_owned(), namespace.into()),
            ])
            .collect();
        // As the driver itself writes it, so that it could take the volume over.
        let unique = if sub_dir.is_some() { self.name.as_str() } else { "" };
        let handle = format!("{server}#{}#{path}#{unique}#{on_delete}", share.trim_matches('/'));
        let mut volume = self.volume(&[]);
        volume["spec"]["csi"] =
            json!({"driver": NFS_DRIVER, "volumeHandle": handle, "volumeAttributes": attributes});
        annotate(&mut volume, UNUSED, "true");
        Ok(volume)
    }
}

fn parameters(class: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = class["parameters"].as_object().into_iter().flatten();
    all.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

fn unknown(key: &str, known: &str) -> String {
    format!("invalid parameter {key:?} in the storage class: known are {known}")
}

/// Replaces each `${...}`; fails with the first that has no value. What is put in is not looked at again.
fn expand(pattern: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let (what, after) = after.split_once('}').ok_or_else(|| after.to_owned())?;
        out.push_str(&value(what).ok_or_else(|| what.to_owned())?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// `<namespace>-<claim>-<volume>`, as the NFS subdir provisioner names it; one path component. A name too
/// long for a file system falls back to the volume's own, which is unique.
fn directory_name(namespace: &str, claim: &str, volume: &str) -> String {
    let name = format!("{namespace}-{claim}-{volume}");
    if name.len() <= 255 { name } else { volume.to_owned() }
}

//! Where a volume is: the one place that knows how a PersistentVolume says so.
//!
//! `local.path` (pinned to a host by node affinity) or `hostPath.path` (the same directory on every host, by the
//! operator's word) is a directory of a host; a relative `local.path` lies below the volumes directory of that
//! host's agent, which only the agent knows. `nfs`, and `csi` of the NFS driver, is a directory of a server.

use serde_json::Value;

use super::{HOSTNAME, NFS_DRIVER, PROVISIONED_BY};
use crate::object;

/// On a volume made here: the part of `spec.nfs.path` that is mounted, once for all volumes of that share.
pub const NFS_SHARE: &str = "berth.dev/nfs-share";
/// On a volume made here: what becomes of its directory, where the source has no place for it.
pub const ON_DELETE: &str = "berth.dev/on-delete";
/// On a volume made here whose directory no host has used yet: only then a missing directory is made.
pub const UNUSED: &str = "berth.dev/unused";

/// The longest path below a share.
const LONGEST: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Directory(Directory),
    Nfs(Box<Nfs>),
}

/// A directory on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Empty: the agent's own volumes directory.
    pub root: String,
    pub name: String,
}

impl Directory {
    /// As the host calls it; below its agent's volumes directory if it is not absolute.
    pub fn full_path(&self) -> String {
        match self.root.as_str() {
            "" => self.name.clone(),
            root => format!("{}/{}", root.trim_end_matches('/'), self.name),
        }
    }
}

/// A directory on an NFS server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nfs {
    pub server: String,
    /// Absolute; what is mounted.
    pub share: String,
    /// Below it; empty: the share itself.
    pub sub_dir: String,
    pub mount_options: Vec<String>,
    pub read_only: bool,
    /// 0: left as it is.
    pub mode: u32,
    /// Not used yet: made if it is not there.
    pub make: bool,
    pub new_mode: u32,
    /// None: left as it is.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl Nfs {
    /// As the server calls it.
    pub fn full_path(&self) -> String {
        match self.sub_dir.as_str() {
            "" => self.share.clone(),
            sub_dir => format!("{}/{sub_dir}", self.share.trim_end_matches('/')),
        }
    }
}

/// Whether a volume's directory is another's, or below it. What is pinned to no host is on each.
pub fn lies_in(volume: &Value, other: &Value) -> bool {
    let (own, there) = match (location(volume), location(other)) {
        (Ok(Location::Nfs(own)), Ok(Location::Nfs(there))) => {
            if !own.server.eq_ignore_ascii_case(&there.server) {
                return false;
            }
            (own.full_path(), there.full_path())
        }
        (Ok(Location::Directory(own)), Ok(Location::Directory(there))) => {
            if matches!((pinned_to(volume), pinned_to(other)), (Some(own), Some(there)) if own != there) {
                return false;
            }
            (own.full_path(), there.full_path())
        }
        _ => return false,
    };
    let below = own.strip_prefix(there.trim_end_matches('/'));
    below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where a volume is; or, in words for the user, why that cannot be told.
pub fn location(volume: &Value) -> Result<Location, String> {
    let spec = &volume["spec"];
    if let Some(directory) = directory(volume)? {
        return Ok(Location::Directory(directory));
    }
    let mount_options = mount_options(volume)?;
    if spec["nfs"].is_object() {
        let path = share(text(&spec["nfs"]["path"]))?;
        let nfs = Nfs {
            server: server(text(&spec["nfs"]["server"]))?,
            mount_options,
            read_only: spec["nfs"]["readOnly"] == true,
            new_mode: 0o777,
            make: unused(volume),
            ..Nfs::default()
        };
        let mounted = object::annotation(volume, NFS_SHARE).map(share).transpose()?.unwrap_or_default();
        let split = path.strip_prefix(mounted.trim_end_matches('/')).filter(|_| !mounted.is_empty());
        return Ok(Location::Nfs(Box::new(match split.and_then(|rest| rest.strip_prefix('/')) {
            Some(sub_dir) => Nfs { share: mounted, sub_dir: below(sub_dir)?, ..nfs },
            None => Nfs { share: path, make: false, ..nfs },
        })));
    }
    if spec["csi"]["driver"] == NFS_DRIVER {
        return of_driver(volume, mount_options).map(|nfs| Location::Nfs(Box::new(nfs)));
    }
    Err("its kind is not supported by Berth yet (local, hostPath, nfs and nfs.csi.k8s.io are)".to_owned())
}

fn of_driver(volume: &Value, mut mount_options: Vec<String>) -> Result<Nfs, String> {
    let csi = &volume["spec"]["csi"];
    let attribute = |name: &str| {
        let all = csi["volumeAttributes"].as_object().into_iter().flatten();
        let mut found = all.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().and_then(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    };
    let given = |name: &str| attribute(name).ok_or_else(|| format!("volumeAttributes.{name} is missing"));
    mount_options.extend(options(attribute("mountOptions"))?);
    // A directory that a provisioner made got its owner then, and is its users' from there on.
    let owned = unused(volume) || object::annotation(volume, PROVISIONED_BY).is_none();
    let owner = |name: &str| {
        let owner = attribute(name).map(|value| id(name, value)).transpose();
        owner.map(|owner| owner.filter(|_| owned))
    };
    Ok(Nfs {
        server: server(given("server")?)?,
        share: share(given("share")?)?,
        sub_dir: attribute("subDir").map(below).transpose()?.unwrap_or_default(),
        mount_options,
        read_only: csi["readOnly"] == true,
        mode: attribute("mountPermissions").map(mode).transpose()?.unwrap_or_default(),
        make: unused(volume),
        // As the driver leaves it.
        new_mode: 0o755,
        uid: owner("uid")?,
        gid: owner("gid")?,
    })
}

fn unused(volume: &Value) -> bool {
    object::annotation(volume, UNUSED).is_some()
}

fn directory(volume: &Value) -> Result<Option<Directory>, String> {
    let path = ["local", "hostPath"].iter().find_map(|source| volume["spec"][*source]["path"].as_str());
    let Some(path) = path else { return Ok(None) };
    if path.split('/').any(|part| part == "..") {
        return Err("its path must not contain \"..\"".to_owned());
    }
    let path = path.trim_end_matches('/');
    let (root, name) = path
        .rsplit_once('/')
        .map_or(("", path), |(root, name)| (if root.is_empty() { "/" } else { root }, name));
    if name.is_empty() || name == "." {
        return Err("its path names no directory".to_owned());
    }
    Ok(Some(Directory { root: root.to_owned(), name: name.to_owned() }))
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

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The volume's, or those of the annotation that came before the field.
fn mount_options(volume: &Value) -> Result<Vec<String>, String> {
    let field = volume["spec"]["mountOptions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let legacy = object::annotation(volume, "volume.beta.kubernetes.io/mount-options").unwrap_or_default();
    options(field.chain([legacy]))
}

/// Mount options one by one. Those that would do something else than mount this share are refused.
pub fn options<'a>(given: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for option in given.into_iter().flat_map(|text| text.split(',')).map(str::trim) {
        let name = option.split('=').next().unwrap_or_default();
        if matches!(name, "bind" | "rbind" | "move" | "remount" | "loop") {
            return Err(format!("mount option {option:?} is not one of an NFS share"));
        }
        if option.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("mount option {option:?} has a blank in it"));
        }
        if !option.is_empty() {
            all.push(option.to_owned());
        }
    }
    Ok(all)
}

/// A name or address of a server.
pub fn server(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '%');
    if text.is_empty() || text.starts_with('-') || !text.chars().all(good) {
        return Err(format!("server {text:?} is neither a name nor an address"));
    }
    // An IPv6 address stands in brackets before a path.
    let bare = text.contains(':') && !text.starts_with('[');
    Ok(if bare { format!("[{text}]") } else { text.to_owned() })
}

/// The path of a share: absolute, without a `/` at its end.
pub fn share(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("share {text:?} is not an absolute path"));
    }
    match text.trim_matches('/') {
        "" => Ok("/".to_owned()),
        path => below(path).map(|path| format!("/{path}")).map_err(|why| format!("share {text:?}: {why}")),
    }
}

/// A path that stays below where it begins and names something there.
pub fn below(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    let bad = path.split('/').find(|part| {
        matches!(*part, "" | "." | "..") || part.len() > 255 || part.chars().any(char::is_control)
    });
    match bad {
        Some(part) => Err(format!("{text:?} is not a directory below the share: it has the part {part:?}")),
        None if path.len() > LONGEST => Err(format!("{path:.40}... is longer than {LONGEST} bytes")),
        None => Ok(path.to_owned()),
    }
}

/// `mountPermissions`: octal.
pub fn mode(text: &str) -> Result<u32, String> {
    let digits = text.trim_start_matches("0o");
    let mode = if digits.is_empty() { Some(0) } else { u32::from_str_radix(digits, 8).ok() };
    mode.filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("mountPermissions {text:?} is not an octal mode, such as \"0770\""))
}

/// A numeric user or group.
pub fn id(name: &str, text: &str) -> Result<u32, String> {
    let id = text.parse::<u32>().ok().filter(|id| i32::try_from(*id).is_ok());
    id.ok_or_else(|| format!("{name} {text:?} is not a number from 0 to {}", i32::MAX))
}

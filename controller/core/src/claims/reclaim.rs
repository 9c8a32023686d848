//! What becomes of a volume whose claim is gone.

use serde_json::Value;

use super::location::{self, Location, ON_DELETE};
use super::{Backend, NFS_DRIVER, OnDelete, PROVISIONED_BY, Provisioners};
use crate::object;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Its phase becomes Released; a person decides.
    Keep,
    /// This is done to the directory; then the object goes.
    Dispose(OnDelete),
}

/// What becomes of this volume once its claim is gone. Only what a provisioner known here has made is touched.
pub fn reclaim(volume: &Value, provisioners: &Provisioners) -> Reclaim {
    let known = object::annotation(volume, PROVISIONED_BY).is_some_and(|p| provisioners.get(p).is_some());
    if known && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete" {
        Reclaim::Dispose(on_delete(volume))
    } else {
        Reclaim::Keep
    }
}

/// Its end may take the directory away.
pub(super) fn disposes(volume: &Value) -> bool {
    object::annotation(volume, PROVISIONED_BY).is_some()
        && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        && on_delete(volume) != OnDelete::Retain
}

fn on_delete(volume: &Value) -> OnDelete {
    let csi = &volume["spec"]["csi"];
    if csi["driver"] == NFS_DRIVER {
        let attributes = csi["volumeAttributes"].as_object().into_iter().flatten();
        let mut of_class = attributes.filter(|(key, _)| key.eq_ignore_ascii_case("onDelete"));
        // Older volumes of the driver's have it in their handle only.
        let handle = csi["volumeHandle"].as_str().and_then(|handle| handle.split('#').nth(4));
        let text = of_class.next().and_then(|(_, value)| value.as_str()).or(handle).unwrap_or_default();
        return OnDelete::read_in_any_case(text).unwrap_or(OnDelete::Delete);
    }
    let of_class = object::annotation(volume, ON_DELETE).and_then(OnDelete::read);
    // One that nfs-subdir-external-provisioner made: archiving is its own default, and loses nothing.
    let usual = if volume["spec"]["nfs"].is_object() { OnDelete::Archive } else { OnDelete::Delete };
    of_class.unwrap_or(usual)
}

/// Where a volume's directory is for whoever ends it: below a share. One that a provisioner of another cluster made
/// has its directory for a share: then it is looked for below what the provisioner's name stands for here, or
/// below the directory that holds it.
pub fn end_of(volume: &Value, provisioners: &Provisioners) -> Result<Location, String> {
    let mut nfs = match location::location(volume)? {
        Location::Nfs(nfs) if nfs.sub_dir.is_empty() => nfs,
        other => return Ok(other),
    };
    let path = std::mem::take(&mut nfs.share);
    let mapped = object::annotation(volume, PROVISIONED_BY).and_then(|name| provisioners.get(name));
    let mapped = match mapped {
        Some(Backend::Export(export)) => Some(export.share.trim_end_matches('/')),
        _ => None,
    };
    let of_share = mapped.and_then(|share| Some((share, path.strip_prefix(share)?.strip_prefix('/')?)));
    let (share, sub_dir) = of_share.or_else(|| path.rsplit_once('/')).unwrap_or_default();
    if sub_dir.is_empty() {
        return Err(format!("{path:?} is the whole server, which is not touched"));
    }
    nfs.share = if share.is_empty() { "/" } else { share }.to_owned();
    nfs.sub_dir = sub_dir.to_owned();
    Ok(Location::Nfs(nfs))
}

/// Another volume that would lose its data with this one's directory. Of several whose end has come, the one with
/// the last name is left to do it.
pub fn used_by_another<'a>(volume: &Value, volumes: &[&'a Value]) -> Option<&'a str> {
    let name = object::name(volume);
    let others = volumes.iter().filter(|other| object::name(other) != name);
    let mut users = others.filter(|other| {
        let ends =
            matches!(other["status"]["phase"].as_str(), Some("Released" | "Failed")) && disposes(other);
        let counts = !ends || object::name(other) > name;
        counts && location::lies_in(other, volume)
    });
    users.next().map(|other| object::name(other))
}

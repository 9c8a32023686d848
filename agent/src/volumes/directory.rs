//! Directories as volumes: `<root>/<name>`. They outlive pods and are removed only when the controller says so.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use berth_proto::DirectorySource;

use super::{VolumeError, ownership, remove_tree};

/// As Kubernetes' local provisioners make a new one.
const NEW: u32 = 0o777;

/// The directory, made if it is not there. An existing one keeps its mode unless one is asked for.
pub fn make(root: &Path, source: &DirectorySource) -> Result<PathBuf, VolumeError> {
    let path = path(root, source)?;
    std::fs::create_dir_all(root).map_err(|cause| VolumeError::io(root.display().to_string(), cause))?;
    let made = match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(cause) => return Err(VolumeError::io(path.display().to_string(), cause)),
    };
    match (made, source.mode) {
        (true, 0) => ownership::set_mode(&path, NEW)?,
        (false, 0) => drop(ownership::open_directory(&path)?),
        (_, mode) => ownership::set_mode(&path, mode)?,
    }
    Ok(path)
}

/// Puts the directory aside as `archived-<name>`, as the NFS provisioner does. Fine when it is not there.
pub fn archive(root: &Path, source: &DirectorySource) -> Result<(), VolumeError> {
    let from = path(root, source)?;
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    if !exists(&from) {
        return Ok(());
    }
    let mut to = root.join(format!("archived-{}", source.name));
    let mut number = 1;
    while exists(&to) {
        number += 1;
        to = root.join(format!("archived-{}-{number}", source.name));
    }
    std::fs::rename(&from, &to)
        .map_err(|cause| VolumeError::io(format!("renaming {} to {}", from.display(), to.display()), cause))
}

/// Removes the directory and all in it. Fine when it is not there.
pub fn remove(root: &Path, source: &DirectorySource) -> Result<(), VolumeError> {
    let path = path(root, source)?;
    match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(cause) => Err(VolumeError::io(path.display().to_string(), cause)),
        Ok(data) if !data.is_dir() => {
            Err(VolumeError::Refused(format!("{} is not a directory: left as it is", path.display())))
        }
        Ok(_) => remove_tree(&path),
    }
}

/// Below the root and nowhere else.
fn path(root: &Path, source: &DirectorySource) -> Result<PathBuf, VolumeError> {
    let name = &source.name;
    let one_component = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if !one_component {
        return Err(VolumeError::Refused(format!("{name:?} is not the name of a directory")));
    }
    if !root.is_absolute() || root.parent().is_none() {
        return Err(VolumeError::Refused(format!(
            "{} cannot be the root of directory volumes",
            root.display()
        )));
    }
    Ok(root.join(name))
}

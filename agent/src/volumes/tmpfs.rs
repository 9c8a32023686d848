//! Volumes in memory.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_call, umount2};

use super::VolumeError;
use super::mounts::Mounted;

/// Mounts a tmpfs; fine when one is there. `size` in bytes, 0: half of the machine's memory.
pub fn mount(path: &Path, size: u64, mode: u32) -> Result<(), VolumeError> {
    if is_mounted(path)? {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if size > 0 {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_call(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|cause| VolumeError::io(format!("mounting a tmpfs on {}", path.display()), cause))
}

/// Unmounts whatever is mounted there; fine when nothing is.
pub fn unmount(path: &Path) -> Result<(), VolumeError> {
    while is_mounted(path)? {
        // Lazy: what is in it goes with the pod in any case, and no container has it any more.
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(cause) => return Err(VolumeError::io(format!("unmounting {}", path.display()), cause)),
        }
    }
    Ok(())
}

fn is_mounted(path: &Path) -> Result<bool, VolumeError> {
    Ok(Mounted::read()?.at(path).is_some())
}

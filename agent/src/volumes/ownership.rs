//! fsGroup, as Kubernetes applies it: the group owns everything in the volume, may read and write it, and
//! new files inherit it.
//!
//! It must never leave the volume: directories are opened one by one without following links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, fchown, fchownat};

use berth_proto::PodSecurity;

use super::VolumeError;

/// Opens a directory without following a link at its end.
pub fn open_directory(path: &Path) -> Result<OwnedFd, VolumeError> {
    open(path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY, Mode::empty())
        .map_err(|cause| VolumeError::io(path.display().to_string(), cause))
}

/// Sets a directory's own mode, whatever the umask.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    let directory = open_directory(path)?;
    fchmod(&directory, Mode::from_bits_truncate(mode))
        .map_err(|cause| VolumeError::io(format!("chmod {}", path.display()), cause))
}

/// Applies the pod's fsGroup, if it has one. `read_only`: for what containers may only read.
pub fn apply(path: &Path, security: &PodSecurity, read_only: bool) -> Result<(), VolumeError> {
    let Some(group) = security.fs_group else { return Ok(()) };
    let group = u32::try_from(group)
        .map_err(|_| VolumeError::Refused(format!("fsGroup {group} is not a group id")))?;
    let bits = if read_only { 0o440 } else { 0o660 };
    let root = open_directory(path)?;
    let io = |cause: Errno| VolumeError::io(format!("fsGroup of {}", path.display()), cause);
    if security.fs_group_change_policy == "OnRootMismatch" {
        let stat = fstat(&root).map_err(io)?;
        let wanted = bits | 0o2110;
        if stat.st_gid == group && stat.st_mode & wanted == wanted {
            return Ok(());
        }
    }
    // The root comes last: an agent that dies half-way does it all again under OnRootMismatch.
    below(&root, group, bits).map_err(io)?;
    own_directory(&root, group, bits).map_err(io)
}

fn own_directory(directory: &OwnedFd, group: u32, bits: u32) -> Result<(), Errno> {
    fchown(directory, None, Some(Gid::from_raw(group)))?;
    let mode = fstat(directory)?.st_mode & 0o7777;
    fchmod(directory, Mode::from_bits_truncate(mode | bits | 0o2110))
}

/// Everything in a directory. Depth is bounded by the number of descriptors: a tree deeper than that fails
/// with the system's own words.
fn below(directory: &OwnedFd, group: u32, bits: u32) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let entries = std::fs::read_dir(path).map_err(|error| errno(&error))?;
    for entry in entries {
        let name = entry.map_err(|error| errno(&error))?.file_name();
        match own(directory, &name, group, bits) {
            // It went away under us.
            Err(Errno::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

fn own(directory: &OwnedFd, name: &OsStr, group: u32, bits: u32) -> Result<(), Errno> {
    let at = directory.as_fd();
    let stat = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let inner = openat(at, name, flags, Mode::empty())?;
        below(&inner, group, bits)?;
        return own_directory(&inner, group, bits);
    }
    fchownat(at, name, None, Some(Gid::from_raw(group)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind == SFlag::S_IFLNK {
        return Ok(());
    }
    let mode = Mode::from_bits_truncate((stat.st_mode & 0o7777) | bits);
    match fchmodat(at, name, mode, FchmodatFlags::NoFollowSymlink) {
        // It has become a symbolic link meanwhile.
        Err(Errno::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

//! Volumes in memory.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_call, umount2};

use super::VolumeError;

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
    Ok(mounts_below(path)?.iter().any(|mount| mount == path))
}

/// Mount points at or below a path, in this mount namespace.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(|cause| VolumeError::io("/proc/thread-self/mountinfo", cause))?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(path)).collect())
}

/// mountinfo writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_understood() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }
}

//! Paths below a directory, never outside of it: each is resolved by the kernel with `openat2`, which refuses
//! symbolic links, `..` and other mounts on the way. Whoever else writes there may rename what they like meanwhile.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::VolumeError;

/// Entries that were worked on: whoever waits sees that something goes on.
pub static PROGRESS: AtomicU64 = AtomicU64::new(0);

/// Deeper trees are refused, with the descriptors of all directories on the way open.
const DEEPEST: usize = 500;

/// A path that names something strictly below a directory.
pub fn relative(path: &str) -> Result<&Path, VolumeError> {
    let plain = !path.is_empty()
        && !path.contains('\0')
        && !path.ends_with('/')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
        && path.split('/').all(|part| !part.is_empty() && part != ".");
    match plain {
        true => Ok(Path::new(path)),
        false => Err(VolumeError::Refused(format!("{path:?} is not a path below the share"))),
    }
}

/// Opens a directory of the host as the place to begin from.
pub fn root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// Opens a directory below another one, for use as a place (`O_PATH`).
pub fn directory(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(root, path, how)
}

/// Opens a directory below another one and makes what is missing of it with this mode. True: its last part is new.
pub fn make(root: &OwnedFd, path: &Path, mode: u32) -> Result<(OwnedFd, bool), Errno> {
    let mut new = false;
    let mut done = PathBuf::new();
    let mut at = directory(root, Path::new("."))?;
    for part in path.components() {
        done.push(part);
        new = match mkdirat(&at, part.as_os_str(), Mode::from_bits_truncate(mode)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            // What is there already may be somebody's who lets nobody else make anything.
            Err(errno) => match directory(root, &done) {
                Ok(_) => false,
                Err(_) => return Err(errno),
            },
        };
        at = directory(root, &done)?;
    }
    Ok((at, new))
}

/// The directory that holds the last part of a path, and that part.
fn parent<'a>(root: &OwnedFd, path: &'a Path) -> Result<Option<(OwnedFd, &'a OsStr)>, Errno> {
    let Some(name) = path.file_name() else { return Err(Errno::EINVAL) };
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match directory(root, above) {
        Ok(above) => Ok(Some((above, name))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Renames the directory to `archived-<name>`, beside itself; never over something. Fine when it is not there.
pub fn archive(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let Some((above, name)) = parent(root, path)? else { return Ok(()) };
    let there = |name: &OsStr| match fstatat(&above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    };
    match fstatat(&above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
        Ok(stat) if kind(stat.st_mode) != SFlag::S_IFDIR => return Err(Errno::ENOTDIR),
        Ok(_) => {}
    }
    let mut to = OsStr::new("archived-").to_owned();
    to.push(name);
    let first = to.clone();
    let mut number = 1;
    while there(&to)? {
        number += 1;
        to.clone_from(&first);
        to.push(format!("-{number}"));
    }
    renameat(&above, name, &above, to.as_os_str())
}

/// Removes the directory and all in it; links are removed, not followed. Fine when it is not there.
pub fn remove(root: &OwnedFd, path: &Path) -> Result<(), Errno> {
    let Some((above, name)) = parent(root, path)? else { return Ok(()) };
    match fstatat(&above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(stat) if kind(stat.st_mode) != SFlag::S_IFDIR => Err(Errno::ENOTDIR),
        Ok(_) => remove_in(above.as_fd(), name, 0),
    }
}

fn remove_in(above: BorrowedFd, name: &OsStr, depth: usize) -> Result<(), Errno> {
    if depth > DEEPEST {
        return Err(Errno::ELOOP);
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    let gone = |result: Result<(), Errno>| match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    };
    let inner = match openat(above, name, flags, Mode::empty()) {
        Ok(inner) => inner,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    // Read to its end first: removing changes what is read.
    let mut names = Vec::new();
    let listed = std::fs::read_dir(path_of(&inner)).map_err(|error| errno_of(&error))?;
    for entry in listed {
        names.push(entry.map_err(|error| errno_of(&error))?.file_name());
    }
    for name in names {
        PROGRESS.fetch_add(1, Ordering::Relaxed);
        match unlinkat(&inner, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => remove_in(inner.as_fd(), &name, depth + 1)?,
            other => gone(other)?,
        }
    }
    gone(unlinkat(above, name, UnlinkatFlags::RemoveDir))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn kind(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

/// A path by which this process reaches what a descriptor is.
pub fn path_of(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

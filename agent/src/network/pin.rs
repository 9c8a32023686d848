//! Namespaces without a process in them: made by a thread, kept alive by bind mounts.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
        statfs::{FsType, statfs},
    },
};

use super::{NetworkError, PodNamespaces};

/// From linux/magic.h; nix does not have it.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// All three are pinned and /dev/shm is mounted.
pub(super) fn is_pinned(dir: &Path, names: &PodNamespaces) -> bool {
    [&names.net, &names.uts, &names.ipc].into_iter().all(|path| is_namespace(path))
        && is_mount(dir, &names.shm)
}

/// Whether a namespace is mounted there.
pub(super) fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

fn is_mount(parent: &Path, path: &Path) -> bool {
    match (fs::metadata(parent), fs::metadata(path)) {
        (Ok(parent), Ok(inner)) => parent.dev() != inner.dev(),
        _ => false,
    }
}

/// Makes what is missing; blocking. `own`: with a network of its own, else with this host's.
pub(super) fn pin(dir: &Path, names: &PodNamespaces, hostname: &str, own: bool) -> Result<(), NetworkError> {
    if is_pinned(dir, names) {
        return Ok(());
    }
    // Half of it is of no use: containers must never end up in different ones.
    unpin(dir, names)?;
    let directory = |path: &Path| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(path)
            .map_err(|e| NetworkError::system(path.display().to_string(), e))
    };
    directory(&dir.join("ns"))?;
    directory(&names.shm)?;
    for path in [&names.net, &names.uts, &names.ipc] {
        fs::File::create(path).map_err(|e| NetworkError::system(path.display().to_string(), e))?;
    }
    let shm = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), &names.shm, Some("tmpfs"), shm, Some("mode=1777,size=64m"))
        .map_err(|e| NetworkError::system(format!("mounting {}", names.shm.display()), e))?;
    let result = in_new_namespaces(names, hostname, own);
    if result.is_err() {
        unpin(dir, names)?;
    }
    result
}

/// On a thread of its own: a namespace belongs to a thread, and this one must never do anything else after.
fn in_new_namespaces(names: &PodNamespaces, hostname: &str, own: bool) -> Result<(), NetworkError> {
    std::thread::scope(|scope| {
        let work = || -> Result<(), NetworkError> {
            let network = if own { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
            unshare(network | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
                .map_err(|e| NetworkError::system("making namespaces", e))?;
            nix::unistd::sethostname(hostname)
                .map_err(|e| NetworkError::system(format!("setting the host name {hostname:?}"), e))?;
            if own {
                loopback_up().map_err(|e| NetworkError::system("setting the loopback interface up", e))?;
                unprivileged();
            }
            for (name, path) in [("net", &names.net), ("uts", &names.uts), ("ipc", &names.ipc)] {
                let own = format!("/proc/thread-self/ns/{name}");
                mount(Some(own.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .map_err(|e| NetworkError::system(format!("pinning {}", path.display()), e))?;
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("pin".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| NetworkError::system("starting a thread", e))?;
        thread.join().unwrap_or_else(|_| Err(NetworkError::system("pinning", "the thread died")))
    })
}

/// As containerd's own pods since 2.0: low ports and ping without privileges; it is the pod's own network.
fn unprivileged() {
    for (name, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")] {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv4/{name}"), value) {
            tracing::debug!(name, %error, "a sysctl of a pod's network");
        }
    }
}

/// One netlink request: RTM_NEWLINK for interface 1 with IFF_UP.
fn loopback_up() -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    // nlmsghdr: length, type, flags, sequence, port.
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    // ifinfomsg: family, pad, type, index, flags, change.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&1i32.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    use std::os::fd::AsRawFd;
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0u8; 1024];
    let n = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let word =
        |at: usize| answer[..n].get(at..at + 4).and_then(|w| w.try_into().ok()).map(i32::from_ne_bytes);
    let kind = answer[..n].get(4..6).and_then(|w| w.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, word(16)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(-errno)),
        _ => Err(io::Error::other("netlink answered something else")),
    }
}

/// Unmounts and removes all of it; blocking. Fine when nothing is there.
pub(super) fn unpin(dir: &Path, names: &PodNamespaces) -> Result<(), NetworkError> {
    for path in [&names.shm, &names.net, &names.uts, &names.ipc] {
        // More than once: an interrupted attempt may have mounted twice.
        for _ in 0..16 {
            match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(error) => {
                    return Err(NetworkError::system(format!("unmounting {}", path.display()), error));
                }
            }
        }
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(NetworkError::system(format!("removing {}", dir.display()), error)),
    }
}

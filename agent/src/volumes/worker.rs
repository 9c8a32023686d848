//! What is done on an NFS server's file system, in a process of its own: it may hang, and then it is killed or, if
//! even that has to wait for the server, left alone. The agent never touches such a file system itself.
//!
//! One request in JSON on standard input; the answer on standard output, one line, after lines with a single `.`
//! for as long as there is progress.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_proto::PodSecurity;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use super::mounts::{self, Mounted};
use super::{VolumeError, beneath, ownership};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Has a directory of the share mounted at `place`.
    Prepare(Prepare),
    /// All that was written to the share has arrived.
    Sync {
        root: PathBuf,
    },
    /// Takes away what is mounted there, whoever has it open: no process of a pod does any more.
    Detach {
        place: PathBuf,
    },
    /// Unmounts the share if nothing uses it.
    Unmount {
        root: PathBuf,
    },
    Make {
        root: PathBuf,
        sub_dir: String,
        mode: u32,
    },
    Archive {
        root: PathBuf,
        sub_dir: String,
    },
    Remove {
        root: PathBuf,
        sub_dir: String,
    },
    /// Whether a process like this may write there. This one is such a process afterwards.
    Try {
        place: PathBuf,
        user: u32,
        group: u32,
        groups: Vec<u32>,
    },
    /// How the share is, and each of these places.
    Look {
        root: PathBuf,
        places: Vec<PathBuf>,
    },
}

impl Request {
    /// What shows that the server has answered. The rest may be done without it: a lookup out of a cache, a detached
    /// bind, a flush of nothing, an error of a `soft` mount.
    pub fn proof(&self) -> fn(&Reply) -> bool {
        match self {
            Request::Look { .. } => |reply| {
                let asked = |look: &Look| look.errno == 0 || look.errno == Errno::ESTALE as i32;
                reply.looks.iter().any(asked)
            },
            Request::Make { .. } | Request::Archive { .. } | Request::Remove { .. } => {
                |reply| reply.error.is_empty()
            }
            _ => |_| false,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Prepare {
    pub root: PathBuf,
    /// Empty: the share itself.
    pub sub_dir: String,
    pub make: bool,
    pub new_mode: u32,
    /// None: left as it is.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// 0: left as it is.
    pub mode: u32,
    /// None: left as it is.
    pub fs_group: Option<i64>,
    pub on_root_mismatch: bool,
    pub place: PathBuf,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Not empty: it could not be done.
    pub error: String,
    /// What the system said, where it did.
    pub errno: i32,
    /// Done, but not all that was asked for; in words for the user.
    pub warnings: Vec<String>,
    /// The directory belongs to the fsGroup.
    pub grouped: bool,
    /// Answers to `Look`: the share, then each place.
    pub looks: Vec<Look>,
}

/// How a directory is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub errno: i32,
    pub total: u64,
    pub available: u64,
}

/// What the share's root turned out not to be: the caller mounts it and asks again.
pub const NOT_MOUNTED: &str = "the share is not mounted";

/// How often progress is told.
const TICK: Duration = Duration::from_secs(2);

/// The whole life of the process.
pub fn main() {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string());
    let request = read.and_then(|_| serde_json::from_str(&text).map_err(|error| error.to_string()));
    // Modes are what was asked for.
    nix::sys::stat::umask(Mode::empty());
    std::thread::spawn(tell_progress);
    let reply = match request {
        Ok(request) => serve(request),
        Err(error) => Reply { error: format!("a bug in the agent: {error}"), ..Reply::default() },
    };
    let line = serde_json::to_string(&reply).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "\n{line}");
    let _ = out.flush();
}

fn tell_progress() {
    let mut before = 0;
    loop {
        std::thread::sleep(TICK);
        let now = beneath::PROGRESS.load(Ordering::Relaxed);
        if now != before {
            before = now;
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, ".").and_then(|()| out.flush());
        }
    }
}

fn serve(request: Request) -> Reply {
    let mut reply = Reply::default();
    let done = match request {
        Request::Prepare(request) => prepare(&request, &mut reply),
        Request::Sync { root } => sync(&root),
        Request::Detach { place } => detach(&place),
        Request::Unmount { root } => {
            umount2(&root, MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| words("unmounting it", errno))
        }
        Request::Make { root, sub_dir, mode } => {
            with(&root, &sub_dir, "making", |root, path| beneath::make(root, path, mode).map(drop))
        }
        Request::Archive { root, sub_dir } => with(&root, &sub_dir, "archiving", beneath::archive),
        Request::Remove { root, sub_dir } => with(&root, &sub_dir, "removing", beneath::remove),
        Request::Try { place, user, group, groups } => {
            enter(&place, user, group, &groups).map_err(|errno| words("writing there", errno))
        }
        Request::Look { root, places } => {
            reply.looks = std::iter::once(&root).chain(&places).map(|path| look(path)).collect();
            Ok(())
        }
    };
    if let Err(failure) = done {
        reply.error = failure.words;
        reply.errno = failure.errno as i32;
    }
    reply
}

struct Failure {
    words: String,
    errno: Errno,
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Failure {
        let errno = match &error {
            VolumeError::Io { cause, .. } => cause.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
            _ => Errno::EINVAL,
        };
        Failure { words: error.to_string(), errno }
    }
}

fn words(what: &str, errno: Errno) -> Failure {
    Failure { words: format!("{what}: {}", errno.desc()), errno }
}

const SQUASHED: &str = "the server denies it to root: it maps root to another user (root_squash). Export the share \
                        with no_root_squash, or let that user write there";

/// What a server that maps root to somebody else denies to it.
fn denied(what: &str, errno: Errno) -> Failure {
    match errno {
        Errno::EPERM | Errno::EACCES => Failure { words: format!("{what}: {SQUASHED}"), errno },
        Errno::EROFS => Failure { words: format!("{what}: the share is exported read-only"), errno },
        // The kernel says the one of a link on the way, the other of one at the end.
        Errno::ELOOP | Errno::ENOTDIR => {
            let words = format!("{what}: a symbolic link (or a file) is in its path, which is not followed");
            Failure { words, errno }
        }
        Errno::EXDEV => {
            let words = format!("{what}: it is on another export of the server: name that one as the share");
            Failure { words, errno }
        }
        errno => words(what, errno),
    }
}

/// The root of the share, if the share is mounted there. While it is open nobody unmounts it.
fn open_root(path: &Path) -> Result<OwnedFd, Failure> {
    let root = beneath::root(path).map_err(|errno| words("opening the share", errno))?;
    let mounted = Mounted::read()?;
    match mounted.at(path).is_some_and(|mount| Some(mount.id) == mounts::id_of(root.as_raw_fd())) {
        true => Ok(root),
        false => Err(Failure { words: NOT_MOUNTED.to_owned(), errno: Errno::ENOENT }),
    }
}

fn with(
    root: &Path,
    sub_dir: &str,
    doing: &str,
    work: impl FnOnce(&OwnedFd, &Path) -> Result<(), Errno>,
) -> Result<(), Failure> {
    let path = beneath::relative(sub_dir)?;
    let root = open_root(root)?;
    work(&root, path).map_err(|errno| denied(&format!("{doing} directory {sub_dir:?}"), errno))
}

fn prepare(request: &Prepare, reply: &mut Reply) -> Result<(), Failure> {
    let warnings = &mut reply.warnings;
    let root = open_root(&request.root)?;
    let sub_dir = &request.sub_dir;
    let (directory, new) = if sub_dir.is_empty() {
        (root, false)
    } else if request.make {
        let what = format!("making directory {sub_dir:?}");
        beneath::make(&root, beneath::relative(sub_dir)?, request.new_mode).map_err(|e| denied(&what, e))?
    } else {
        let opened = beneath::directory(&root, beneath::relative(sub_dir)?);
        let opened = opened.map_err(|errno| match errno {
            Errno::ENOENT => Failure {
                words: format!(
                    "directory {sub_dir:?} is not on the server any more (is the right file system mounted \
                     there?); make it again if it should be empty"
                ),
                errno,
            },
            errno => denied(&format!("opening directory {sub_dir:?}"), errno),
        })?;
        (opened, false)
    };
    let path = beneath::path_of(&directory);
    if request.uid.is_some() || request.gid.is_some() {
        own(&directory, request.uid, request.gid)
            .map_err(|errno| denied(&format!("giving directory {sub_dir:?} its owner"), errno))?;
    }
    let mode = if request.mode != 0 { request.mode } else { request.new_mode };
    if request.mode != 0 || new {
        let set = std::fs::metadata(&path).and_then(|data| {
            let now = std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o7777;
            match now == mode {
                true => Ok(()),
                false => std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)),
            }
        });
        if let Err(error) = set {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            if !matches!(errno, Errno::EPERM | Errno::EACCES) {
                return Err(words(&format!("chmod {mode:04o} of directory {sub_dir:?}"), errno));
            }
            warnings
                .push(denied(&format!("mode {mode:04o} of directory {sub_dir:?} is not set"), errno).words);
        }
    }
    bind(&directory, &request.place)?;
    if request.fs_group.is_some() {
        let policy = if request.on_root_mismatch { "OnRootMismatch" } else { "Always" };
        let security = PodSecurity {
            fs_group: request.fs_group,
            fs_group_change_policy: policy.to_owned(),
            ..PodSecurity::default()
        };
        match ownership::apply(&request.place, &security, false).map_err(Failure::from) {
            Err(Failure { errno: errno @ (Errno::EPERM | Errno::EACCES), .. }) => {
                let group = request.fs_group.unwrap_or_default();
                warnings.push(
                    denied(&format!("fsGroup {group} is not applied to directory {sub_dir:?}"), errno).words,
                );
            }
            other => {
                other?;
                reply.grouped = true;
            }
        }
    }
    Ok(())
}

/// Gives a directory its owner and group, where it has another.
fn own(directory: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let now = nix::sys::stat::fstat(directory)?;
    if uid.is_none_or(|uid| uid == now.st_uid) && gid.is_none_or(|gid| gid == now.st_gid) {
        return Ok(());
    }
    let (uid, gid) = (uid.map(nix::unistd::Uid::from_raw), gid.map(nix::unistd::Gid::from_raw));
    nix::unistd::chown(&beneath::path_of(directory), uid, gid)
}

/// Becomes that process and asks whether it may write there; what it cannot become it says nothing of.
fn enter(place: &Path, user: u32, group: u32, groups: &[u32]) -> Result<(), Errno> {
    use nix::unistd::{AccessFlags, Gid, Uid, access, setgroups, setresgid, setresuid};
    // The way to it is root's.
    if std::env::set_current_dir(place).is_err() {
        return Ok(());
    }
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (group, user) = (Gid::from_raw(group), Uid::from_raw(user));
    setgroups(&groups)?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    access(".", AccessFlags::W_OK | AccessFlags::X_OK)
}

/// Binds the directory there, in place of whatever else is.
fn bind(directory: &OwnedFd, place: &Path) -> Result<(), Failure> {
    let wanted =
        nix::sys::stat::fstat(directory).map_err(|errno| words("looking at the directory", errno))?;
    if Mounted::read()?.at(place).is_some() {
        let same = nix::sys::stat::stat(place)
            .is_ok_and(|there| (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino));
        if same {
            return Ok(());
        }
        detach(place)?;
    }
    std::fs::create_dir_all(place).map_err(|cause| VolumeError::io(place.display().to_string(), cause))?;
    let source = beneath::path_of(directory);
    mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| words(&format!("binding it to {}", place.display()), errno))
}

fn detach(place: &Path) -> Result<(), Failure> {
    while Mounted::read()?.at(place).is_some() {
        match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(words(&format!("unmounting {}", place.display()), errno)),
        }
    }
    Ok(())
}

fn sync(root: &Path) -> Result<(), Failure> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = open(root, flags, Mode::empty()).map_err(|errno| words("opening the share", errno))?;
    nix::unistd::syncfs(open).map_err(|errno| words("writing back what pods have written", errno))
}

fn look(path: &Path) -> Look {
    let now = |path: &Path| -> Result<Look, Errno> {
        // This asks the server, whatever is cached.
        let there = statvfs(path)?;
        let unit = there.fragment_size();
        Ok(Look { errno: 0, total: there.blocks() * unit, available: there.blocks_free() * unit })
    };
    now(path).unwrap_or_else(|errno| Look { errno: errno as i32, ..Look::default() })
}

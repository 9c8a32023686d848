//! NFS volumes: one mount for each (server, share, options) of the host, and each volume's directory bound from it
//! to its pod's place.
//!
//! ```text
//! <run-dir>/nfs/<key>            the share, mounted once        <data-dir>/pods/<uid>/volumes/<name>
//!         └── <sub dir> ───────────────── bind ─────────────────────────▶ into the containers
//! ```
//! Everything that may wait for a server is done by a child process in that server's [`lane`]; the agent itself
//! reads only what the kernel lists. What this module must never do: unmount by force (all pods of the share would
//! get errors), or call a volume unmounted while what its pod wrote may still arrive at the server.

mod lane;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use berth_agent_core::Time;
use berth_agent_core::server::Change;
use berth_proto::volume_operation::Verb;
use berth_proto::{NfsSource, PodRef, PodSecurity, VolumeUsage};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::Instant;

use super::mounts::Mounted;
use super::worker::{Look, NOT_MOUNTED, Prepare, Reply, Request};
use super::{VolumeError, beneath};
use lane::{Ended, Job, Lane};

/// How things are done on this host.
#[derive(Clone, Debug)]
pub struct NfsConfig {
    /// Where shares are mounted; gone after a reboot, as they are.
    pub shares: PathBuf,
    /// Mounts one: `PROGRAM SERVER:SHARE DIRECTORY -o OPTIONS`.
    pub helper: PathBuf,
    /// This agent's program, and what makes it a volume worker.
    pub worker: Vec<PathBuf>,
    pub times: Times,
}

/// How long things may take, and how often they are done.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A server that has not answered a request for so long is said not to answer.
    pub patience: Duration,
    /// How often a server in use is asked whether it is there.
    pub look: Duration,
    pub usage: Duration,
    /// A share that nobody uses stays mounted for so long.
    pub idle: Duration,
}

impl NfsConfig {
    /// As it is on a host.
    pub fn new(shares: impl Into<PathBuf>) -> NfsConfig {
        NfsConfig {
            shares: shares.into(),
            helper: "mount.nfs".into(),
            // Not by its path: a newer one may be there by now.
            worker: ["/proc/self/exe", "volume-worker"].map(PathBuf::from).to_vec(),
            times: Times {
                patience: Duration::from_secs(20),
                look: Duration::from_secs(15),
                usage: Duration::from_secs(5 * 60),
                idle: Duration::from_secs(2 * 60),
            },
        }
    }
}

/// Whom to tell what is found out between two steps.
pub trait News: Send + Sync {
    fn event(&self, pod: &PodRef, warning: bool, reason: &'static str, message: String);
    /// What the pod has mounted there is gone: it must be mounted anew, under containers that are started anew.
    fn lost(&self, pod: &PodRef, volume: &str, why: String);
    fn usage(&self, usage: VolumeUsage);
}

/// A volume of a pod.
#[derive(Clone, Debug)]
pub struct Of<'a> {
    pub pod: &'a PodRef,
    pub volume: &'a str,
    /// Empty: none stands behind it.
    pub claim: &'a str,
    /// Where the pod has it.
    pub place: &'a Path,
}

/// As whom a process of a pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
}

/// A cheap handle.
#[derive(Clone)]
pub struct Nfs {
    inner: Arc<Inner>,
}

struct Inner {
    config: NfsConfig,
    /// By server.
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
    uses: Mutex<Uses>,
    news: OnceLock<Box<dyn News>>,
}

#[derive(Default)]
struct Uses {
    /// By the pod's uid (or an operation) and the volume's name.
    all: BTreeMap<(String, String), Use>,
    /// Servers that are looked after.
    watched: BTreeSet<String>,
    operations: u64,
}

/// Somebody who needs a share to be mounted.
#[derive(Clone)]
struct Use {
    pod: PodRef,
    volume: String,
    claim: String,
    server: String,
    root: PathBuf,
    place: PathBuf,
    /// It is mounted, and has not been found lost.
    ready: bool,
    /// The fsGroup that owns it.
    group: Option<u32>,
    told: Option<Instant>,
}

/// What is mounted once.
struct Share {
    server: String,
    /// server:path
    source: String,
    options: String,
    root: PathBuf,
    /// Names its jobs.
    key: String,
}

impl Share {
    /// A directory of this host: nothing to mount.
    fn of_host(root: &Path) -> Share {
        let (server, source, options, key) = <(String, String, String, String)>::default();
        Share { server, source, options, root: root.to_owned(), key }
    }
}

impl std::fmt::Debug for Nfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nfs").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Nfs {
    pub fn new(config: NfsConfig) -> Nfs {
        let inner = Inner { config, lanes: Mutex::default(), uses: Mutex::default(), news: OnceLock::new() };
        Nfs { inner: Arc::new(inner) }
    }

    /// Tells `news` from now on; only the first counts. Shares that an agent before has left unused go.
    pub fn listen(&self, news: impl News + 'static) {
        if self.inner.news.set(Box::new(news)).is_ok()
            && let Ok(entries) = std::fs::read_dir(&self.inner.config.shares)
        {
            for entry in entries.flatten() {
                self.leave(&entry.path(), "");
            }
        }
    }

    /// Has the volume mounted at its pod's place. Idempotent; what went stale is mounted anew.
    pub async fn mount(
        &self,
        of: &Of<'_>,
        source: &NfsSource,
        security: &PodSecurity,
        read_only: bool,
    ) -> Result<(), VolumeError> {
        let share = self.share(source)?;
        if !source.sub_dir.is_empty() {
            beneath::relative(&source.sub_dir)?;
        }
        let key = (of.pod.uid.clone(), of.volume.to_owned());
        self.inner.uses().all.insert(key.clone(), self.using(of, &share));
        self.watch(&share.server);
        let prepare = Prepare {
            root: share.root.clone(),
            sub_dir: source.sub_dir.clone(),
            make: source.make,
            new_mode: source.new_mode,
            uid: source.uid.filter(|_| source.make || !read_only),
            gid: source.gid.filter(|_| source.make || !read_only),
            mode: if read_only { 0 } else { source.mode },
            fs_group: security.fs_group.filter(|_| !read_only),
            on_root_mismatch: security.fs_group_change_policy == "OnRootMismatch",
            place: of.place.to_owned(),
        };
        let name = format!("prepare:{}", of.place.display());
        let reply = self.on_share(&share, &name, Request::Prepare(prepare)).await?;
        for warning in &reply.warnings {
            self.inner.tell(of.pod, true, "VolumePermissions", format!("volume {:?}: {warning}", of.volume));
        }
        if let Some(one) = self.inner.uses().all.get_mut(&key) {
            one.ready = true;
            let group = security.fs_group.filter(|_| reply.grouped);
            one.group = group.and_then(|group| u32::try_from(group).ok());
        }
        Ok(())
    }

    /// Tells, in a while, if the server does not let a process of a pod do what its fsGroup is for: it may go by
    /// groups of its own, and not by those that the process has here. A process's first group, and root, count
    /// with every server, so there is nothing to find out about them.
    pub fn try_group(&self, pod: &PodRef, volume: &str, process: Process) {
        let one = self.inner.uses().all.get(&(pod.uid.clone(), volume.to_owned())).cloned();
        let Some((one, group)) = one.and_then(|one| one.group.map(|group| (one, group))) else { return };
        if process.user == 0 || process.group == group {
            return;
        }
        let nfs = self.clone();
        tokio::spawn(async move {
            let Process { user, group: first, groups } = process;
            let name = format!("try:{}:{user}:{first}", one.place.display());
            let request = Request::Try { place: one.place, user, group: first, groups };
            let (ended, _) = nfs.lane(&one.server).run(nfs.job(&name, &request, false)).await;
            if !matches!(ended, Ended::Answer(reply) if reply.errno == Errno::EACCES as i32) {
                return;
            }
            let message = format!(
                "volume {:?}: fsGroup {group} owns its directory, but does not let user {user} write there: the \
                 server looks up itself who is in which group. Set manage-gids=n under [mountd] in its \
                 /etc/nfs.conf, or runAsGroup: {group} in the pod, or open the directory with the class's \
                 mountPermissions (\"0777\")",
                one.volume
            );
            nfs.inner.tell(&one.pod, true, "VolumePermissions", message);
        });
    }

    /// Looks after a directory of this host too, for what it says of its use.
    pub fn follow(&self, of: &Of<'_>, root: &Path) {
        let key = (of.pod.uid.clone(), of.volume.to_owned());
        let share = Share::of_host(root);
        let mut one = self.using(of, &share);
        one.ready = true;
        self.inner.uses().all.entry(key).or_insert(one);
        self.watch("");
    }

    /// Undoes [`Nfs::follow`].
    pub fn leave_alone(&self, pod: &PodRef, volume: &str) {
        self.inner.uses().all.remove(&(pod.uid.clone(), volume.to_owned()));
    }

    /// Undoes [`Nfs::mount`]; done only when nothing that the pod wrote can still arrive at the server. No process of
    /// the pod may be left.
    pub async fn unmount(&self, of: &Of<'_>, source: &NfsSource) -> Result<(), VolumeError> {
        let share = self.share(source)?;
        let key = (of.pod.uid.clone(), of.volume.to_owned());
        // It keeps the share mounted until the end.
        self.inner.uses().all.insert(key.clone(), self.using(of, &share));
        self.take_away(of.place, &share.server, Some(&share.root)).await?;
        self.inner.uses().all.remove(&key);
        self.leave(&share.root, &share.server);
        Ok(())
    }

    /// Takes away whatever is still mounted below a directory of a pod of which nothing else is known.
    pub async fn clear(&self, directory: &Path) -> Result<(), VolumeError> {
        let mounted = Mounted::read()?;
        for mount in mounted.below(directory) {
            let share =
                mounted.of(&mount.device).find(|other| other.point.starts_with(&self.inner.config.shares));
            self.take_away(&mount.point, "", share.map(|share| share.point.as_path())).await?;
        }
        Ok(())
    }

    /// Makes, archives or removes a volume's directory.
    pub async fn operate(&self, verb: Verb, source: &NfsSource) -> Result<(), VolumeError> {
        let share = self.share(source)?;
        beneath::relative(&source.sub_dir)?;
        let (root, sub_dir) = (share.root.clone(), source.sub_dir.clone());
        let (name, request) = match verb {
            Verb::Make => {
                let mode = if source.mode != 0 { source.mode } else { source.new_mode };
                ("make", Request::Make { root, sub_dir, mode })
            }
            Verb::Archive => ("archive", Request::Archive { root, sub_dir }),
            Verb::Remove => ("remove", Request::Remove { root, sub_dir }),
        };
        let name = format!("{name}:{}/{}", share.key, source.sub_dir);
        let key = {
            let mut uses = self.inner.uses();
            uses.operations += 1;
            let key = ("operation".to_owned(), uses.operations.to_string());
            let of = Of { pod: &PodRef::default(), volume: "", claim: "", place: Path::new("") };
            uses.all.insert(key.clone(), self.using(&of, &share));
            key
        };
        // Also when this is given up.
        let _use = Leave { nfs: self, key, share: &share };
        self.on_share(&share, &name, request).await.map(drop)
    }

    fn using(&self, of: &Of, share: &Share) -> Use {
        Use {
            pod: of.pod.clone(),
            volume: of.volume.to_owned(),
            claim: of.claim.to_owned(),
            server: share.server.clone(),
            root: share.root.clone(),
            place: of.place.to_owned(),
            ready: false,
            group: None,
            told: None,
        }
    }

    fn share(&self, source: &NfsSource) -> Result<Share, VolumeError> {
        let refused = |what: &str| VolumeError::Refused(format!("{what} is not what can be mounted by NFS"));
        if source.server.is_empty()
            || source.server.starts_with('-')
            || source.server.contains(char::is_whitespace)
        {
            return Err(refused(&format!("server {:?}", source.server)));
        }
        if !source.share.starts_with('/') || source.share.contains('\0') {
            return Err(refused(&format!("share {:?}", source.share)));
        }
        // For /etc/fstab, not for a share; `bg` would leave a process behind that tries for days.
        let beside = |option: &&String| {
            let name = option.split('=').next().unwrap_or_default();
            !matches!(
                name,
                "bg" | "fg" | "auto" | "noauto" | "nofail" | "_netdev" | "defaults" | "user" | "users"
            ) && !name.starts_with("x-")
        };
        let mut options: Vec<&str> = source.mount_options.iter().filter(beside).map(String::as_str).collect();
        if let Some(bad) =
            options.iter().find(|o| matches!(**o, "bind" | "rbind" | "move" | "remount" | "loop"))
        {
            return Err(refused(&format!("mount option {bad:?}")));
        }
        options.sort_unstable();
        options.dedup();
        let tries = options.iter().any(|option| option.starts_with("retry="));
        let mut options = options.join(",");
        if !tries {
            // It is tried again here, with what went wrong told in between.
            options.push_str(if options.is_empty() { "retry=0" } else { ",retry=0" });
        }
        let mount = format!("{}:{}", source.server, source.share);
        let digest = Sha256::digest(format!("{mount}\0{options}").as_bytes());
        let key: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let root = self.inner.config.shares.join(&key);
        Ok(Share { server: source.server.to_lowercase(), source: mount, options, root, key })
    }

    /// Does something on a share, mounting it first if it is not.
    async fn on_share(&self, share: &Share, name: &str, request: Request) -> Result<Reply, VolumeError> {
        let lane = self.lane(&share.server);
        let mut why = String::new();
        for _ in 0..3 {
            if Mounted::read()?.at(&share.root).is_none() {
                self.mount_share(&lane, share).await?;
            }
            let (ended, _) = lane.run(self.job(name, &request, false)).await;
            let reply = self.answer(&share.server, ended)?;
            if reply.error.is_empty() {
                return Ok(reply);
            }
            if reply.errno == Errno::ESTALE as i32 {
                // The share itself: whoever else has it finds out about their own.
                let root = Request::Detach { place: share.root.clone() };
                let (ended, _) = lane.run(self.job(&format!("share:{}", share.key), &root, false)).await;
                self.answer(&share.server, ended)?;
            } else if reply.error != NOT_MOUNTED {
                return Err(VolumeError::Refused(format!("{}: {}", share.source, reply.error)));
            }
            why = reply.error;
        }
        Err(VolumeError::Refused(format!("{}: {why}", share.source)))
    }

    async fn mount_share(&self, lane: &Arc<Lane>, share: &Share) -> Result<(), VolumeError> {
        beneath_private(&share.root)?;
        let mut command = Command::new(&self.inner.config.helper);
        command.arg(&share.source).arg(&share.root).arg("-o").arg(&share.options);
        let job = Job {
            key: format!("share:{}", share.key),
            command,
            input: Vec::new(),
            silence: self.inner.config.times.patience,
            worker: false,
            urgent: false,
            // It mounts nothing and refuses nothing by itself.
            proof: |_| true,
        };
        let (ended, _) = lane.run(job).await;
        if let Ended::Broken(error) = &ended {
            return Err(VolumeError::Refused(format!(
                "{}: {error}; the host needs an NFS client (on Debian the package nfs-common)",
                share.source
            )));
        }
        let reply = self.answer(&share.server, ended)?;
        match reply.error.as_str() {
            "" => Ok(()),
            // Somebody else was faster.
            _ if Mounted::read()?.at(&share.root).is_some() => Ok(()),
            error => Err(VolumeError::Refused(format!("mounting {}: {error}", share.source))),
        }
    }

    /// Detaches what is mounted at a pod's place and sees to it that what was written to it has arrived.
    async fn take_away(&self, place: &Path, server: &str, root: Option<&Path>) -> Result<(), VolumeError> {
        let lane = self.lane(server);
        // Beside the place, so that an agent after this one knows too.
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let marker = place.with_file_name(format!(".flush-{name}"));
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |cause| VolumeError::io(path, cause)
        };
        if Mounted::read()?.at(place).is_some() {
            std::fs::write(&marker, "").map_err(io(&marker))?;
            let request = Request::Detach { place: place.to_owned() };
            let (ended, _) = lane.run(self.job(&format!("detach:{}", place.display()), &request, true)).await;
            let reply = self.answer(server, ended)?;
            if !reply.error.is_empty() {
                return Err(VolumeError::Refused(reply.error));
            }
        }
        if marker.exists() {
            if let Some(root) = root.filter(|root| Mounted::read().is_ok_and(|m| m.at(root).is_some())) {
                self.flush(&lane, server, root).await?;
            }
            std::fs::remove_file(&marker).map_err(io(&marker))?;
        }
        match std::fs::remove_dir(place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(place)(error)),
            _ => Ok(()),
        }
    }

    async fn flush(&self, lane: &Arc<Lane>, server: &str, root: &Path) -> Result<(), VolumeError> {
        let name = format!("sync:{}", root.display());
        let request = Request::Sync { root: root.to_owned() };
        // One that had begun before may have passed over what this pod wrote last.
        for _ in 0..2 {
            let (ended, joined) = lane.run(self.job(&name, &request, true)).await;
            let reply = self.answer(server, ended).map_err(|error| {
                VolumeError::Refused(format!("what the pod has written may still arrive: {error}"))
            })?;
            // What could not be written and never will be has been told to whoever wrote it.
            if !reply.error.is_empty() && reply.errno != Errno::ESTALE as i32 {
                tracing::warn!(server, error = reply.error, "writing back ended with an error");
            }
            if !joined {
                break;
            }
        }
        Ok(())
    }

    /// Unmounts a share once nobody has used it for a while.
    fn leave(&self, root: &Path, server: &str) {
        let (inner, root, server) = (Arc::downgrade(&self.inner), root.to_owned(), server.to_owned());
        tokio::spawn(async move {
            let Some(idle) = inner.upgrade().map(|inner| inner.config.times.idle) else { return };
            tokio::time::sleep(idle).await;
            let Some(inner) = inner.upgrade() else { return };
            let used = || inner.uses().all.values().any(|one| one.root == root);
            let Ok(mounted) = Mounted::read() else { return };
            let Some(mount) = mounted.at(&root) else {
                if !used() {
                    let _ = std::fs::remove_dir(&root);
                }
                return;
            };
            // A pod of an agent before this one may not have been taken up yet.
            let of_pod = |point: &Path| point.parent().is_some_and(|above| above.ends_with("volumes"));
            let elsewhere = mounted.of(&mount.device).any(|other| of_pod(&other.point));
            if used() || (elsewhere && server.is_empty()) {
                return;
            }
            let nfs = Nfs { inner: inner.clone() };
            let lane = nfs.lane(&server);
            let key = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let request = Request::Unmount { root: root.clone() };
            let (ended, _) = lane.run(nfs.job(&format!("share:{key}"), &request, true)).await;
            match ended {
                Ended::Answer(reply) if reply.error.is_empty() => drop(std::fs::remove_dir(&root)),
                ended => tracing::debug!(root = %root.display(), ?ended, "a share stays mounted"),
            }
        });
    }

    fn job(&self, key: &str, request: &Request, urgent: bool) -> Job {
        let mut words = self.inner.config.worker.iter();
        let mut command = Command::new(words.next().map_or(Path::new("berth-agent"), PathBuf::as_path));
        command.args(words);
        Job {
            key: key.to_owned(),
            command,
            input: serde_json::to_vec(request).unwrap_or_default(),
            silence: self.inner.config.times.patience,
            worker: true,
            urgent,
            proof: request.proof(),
        }
    }

    fn answer(&self, server: &str, ended: Ended) -> Result<Reply, VolumeError> {
        match ended {
            Ended::Answer(reply) => Ok(reply),
            Ended::Silent { since } => {
                Err(VolumeError::Silent { server: server.to_owned(), since: text(since) })
            }
            Ended::Broken(error) => Err(VolumeError::Refused(error)),
        }
    }

    fn lane(&self, server: &str) -> Arc<Lane> {
        let mut lanes = self.inner.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = lanes.entry(server.to_owned()).or_insert_with(|| {
            let (inner, server) = (Arc::downgrade(&self.inner), server.to_owned());
            Lane::new(Arc::new(|| Time(jiff::Timestamp::now().as_millisecond())), move |change| {
                if let Some(inner) = inner.upgrade() {
                    inner.changed(&server, change);
                }
            })
        });
        lane.clone()
    }

    /// Looks after a server for as long as somebody uses it.
    fn watch(&self, server: &str) {
        if !self.inner.uses().watched.insert(server.to_owned()) {
            return;
        }
        let (inner, server) = (Arc::downgrade(&self.inner), server.to_owned());
        tokio::spawn(async move {
            let mut first = true;
            loop {
                let Some(times) = inner.upgrade().map(|inner| inner.config.times) else { return };
                // Whether the host's own directories are there needs no asking.
                let pause = if server.is_empty() && !first { times.usage } else { times.look };
                first = false;
                tokio::time::sleep(pause).await;
                let Some(inner) = inner.upgrade() else { return };
                let mut shares: BTreeMap<PathBuf, Vec<Use>> = BTreeMap::new();
                {
                    let mut uses = inner.uses();
                    if !uses.all.values().any(|one| one.server == server) {
                        uses.watched.remove(&server);
                        return;
                    }
                    for one in uses.all.values().filter(|one| one.server == server && one.ready) {
                        shares.entry(one.root.clone()).or_default().push(one.clone());
                    }
                }
                let nfs = Nfs { inner };
                for (root, users) in shares {
                    nfs.look(&server, &root, users).await;
                }
            }
        });
    }

    async fn look(&self, server: &str, root: &Path, users: Vec<Use>) {
        let lane = self.lane(server);
        let places = users.iter().map(|one| one.place.clone()).collect();
        let request = Request::Look { root: root.to_owned(), places };
        let (ended, _) = lane.run(self.job(&format!("look:{}", root.display()), &request, true)).await;
        let Ended::Answer(reply) = ended else { return };
        let Some((whole, looks)) = reply.looks.split_first() else { return };
        for (one, look) in users.iter().zip(looks) {
            self.found(one, whole, look);
        }
    }

    fn found(&self, one: &Use, whole: &Look, look: &Look) {
        let key = (one.pod.uid.clone(), one.volume.clone());
        if look.errno == Errno::ESTALE as i32 {
            let mut uses = self.inner.uses();
            let Some(held) = uses.all.get_mut(&key).filter(|held| held.ready) else { return };
            held.ready = false;
            drop(uses);
            let why = format!(
                "its directory on NFS server {} is not the one it was any more (stale file handle)",
                one.server
            );
            if let Some(news) = self.inner.news.get() {
                news.lost(&one.pod, &one.volume, why);
            }
            return;
        }
        let due = one.told.is_none_or(|told| told.elapsed() >= self.inner.config.times.usage);
        if look.errno != 0 || whole.errno != 0 || one.claim.is_empty() || !due {
            return;
        }
        if let Some(held) = self.inner.uses().all.get_mut(&key) {
            held.told = Some(Instant::now());
        }
        let enforced = look.total < whole.total && !alike(look.total, whole.total);
        if let Some(news) = self.inner.news.get() {
            news.usage(VolumeUsage {
                pod: Some(one.pod.clone()),
                claim: one.claim.clone(),
                enforced,
                limit_bytes: if enforced { look.total } else { 0 },
                used_bytes: if enforced { look.total.saturating_sub(look.available) } else { 0 },
            });
        }
    }
}

/// Whether this may be the size of one file system, asked for twice. A project quota shows as a smaller one; some
/// servers' file systems (ZFS) grow and shrink all the time.
fn alike(one: u64, other: u64) -> bool {
    one.abs_diff(other) <= one.max(other) / 100
}

impl Inner {
    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, pod: &PodRef, warning: bool, reason: &'static str, message: String) {
        if let Some(news) = self.news.get() {
            news.event(pod, warning, reason, message);
        }
    }

    /// A server has fallen silent, or is back: tells the pods that use it.
    fn changed(&self, server: &str, change: Change) {
        if server.is_empty() {
            return;
        }
        let pods: BTreeMap<String, PodRef> = {
            let uses = self.uses();
            let own = uses.all.values().filter(|one| one.server == server && !one.pod.uid.is_empty());
            own.map(|one| (one.pod.uid.clone(), one.pod.clone())).collect()
        };
        let (warning, reason, message) = match change {
            Change::Silent { since } => (
                true,
                "NFSServerNotAnswering",
                format!(
                    "NFS server {server} has not answered since {}: what the pod reads or writes there waits for it",
                    text(since)
                ),
            ),
            Change::Back { since } => (
                false,
                "NFSServerAnswering",
                format!("NFS server {server} answers again (it had not since {})", text(since)),
            ),
        };
        tracing::warn!(server, pods = pods.len(), message, "an NFS server");
        for pod in pods.values() {
            self.tell(pod, warning, reason, message.clone());
        }
    }
}

struct Leave<'a> {
    nfs: &'a Nfs,
    key: (String, String),
    share: &'a Share,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.nfs.inner.uses().all.remove(&self.key);
        self.nfs.leave(&self.share.root, &self.share.server);
    }
}

/// A directory that only root may look into: what is mounted there is for pods by their own binds.
fn beneath_private(path: &Path) -> Result<(), VolumeError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(|cause| VolumeError::io(path.display().to_string(), cause))
}

/// `2026-11-21T08:45:09Z`
fn text(at: Time) -> String {
    let second = jiff::Timestamp::from_second(at.0.div_euclid(1000)).unwrap_or_default();
    second.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_shrinks_a_little_is_no_quota() {
        assert!(alike(1 << 40, 1 << 40) && alike((1 << 40) - (1 << 30), 1 << 40));
        assert!(!alike(100 << 20, 1 << 40) && !alike(0, 1));
    }
}

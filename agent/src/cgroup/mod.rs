//! One cgroup per pod: a slice of systemd where it is the host's init, a plain directory of cgroupfs (v1 or v2) elsewhere.
//! Containers' cgroups are made by runc below it.
//!
//! It must never touch a cgroup outside its own parent.

mod systemd;
mod tree;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use systemd::Slices;
use tokio::time::Instant;
use tree::{Hierarchy, hierarchies};

use crate::{
    notify::Changes,
    runtime::spec::{quota, shares},
};

/// The hierarchies that are mounted: whether each is of version 2, and its controllers.
pub fn mounted() -> io::Result<Vec<(bool, Vec<String>)>> {
    Ok(hierarchies()?.into_iter().map(|hierarchy| (hierarchy.v2, hierarchy.controllers)).collect())
}

/// What went wrong, with the path.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct CgroupError {
    what: String,
    cause: String,
}

impl CgroupError {
    fn new(what: impl Into<String>, cause: impl ToString) -> Self {
        CgroupError { what: what.into(), cause: cause.to_string() }
    }
}

/// Limits of a whole pod; 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PodLimits {
    pub cpu_request_millis: u64,
    pub cpu_limit_millis: u64,
    pub memory_limit_bytes: u64,
}

/// All pods' cgroups on this host. A cheap handle.
#[derive(Debug, Clone)]
pub struct Cgroups {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Absolute below the cgroup root, without a slash at the end.
    parent: String,
    /// If systemd makes the pods' cgroups.
    slices: Option<Slices>,
    hierarchies: Vec<Hierarchy>,
}

/// Where pods' cgroups go if nobody says: to systemd, if it is the init of this host and its cgroups are of version 2.
pub fn usual_parent() -> &'static str {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified && Path::new("/run/systemd/system").exists() { "berth.slice" } else { "/berth" }
}

impl Cgroups {
    /// `parent`: a slice of systemd, e.g. `berth.slice`, or a path below the cgroup root, e.g. `/berth`.
    pub async fn open(parent: &str) -> Result<Cgroups, CgroupError> {
        let slices = match parent.ends_with(".slice") && !parent.contains('/') {
            true => {
                let no_slice = || CgroupError::new("cgroup parent", format!("{parent:?} is no slice's name"));
                Some(Slices::below(parent).ok_or_else(no_slice)?)
            }
            false => None,
        };
        let parent = slices.as_ref().map_or_else(|| parent.to_owned(), Slices::path);
        let parent = format!("/{}", parent.trim_matches('/'));
        if parent == "/" || parent.split('/').any(|part| part == "." || part == "..") {
            return Err(CgroupError::new(
                "cgroup parent",
                format!("{parent:?} is not a path below the root"),
            ));
        }
        let hierarchies = hierarchies().map_err(|e| CgroupError::new("/proc/self/mountinfo", e))?;
        if hierarchies.is_empty() {
            return Err(CgroupError::new("cgroups", "none are mounted: mount cgroup2 on /sys/fs/cgroup"));
        }
        if slices.is_some() && !hierarchies.iter().all(|hierarchy| hierarchy.v2) {
            let remedy = "slices need cgroups of version 2 alone: boot with systemd.unified_cgroup_hierarchy=1, or set \
                          cgroup-parent to a path such as /berth";
            return Err(CgroupError::new("cgroup parent", remedy));
        }
        Ok(Cgroups { inner: Arc::new(Inner { parent, slices, hierarchies }) })
    }

    /// Whether runc is to ask systemd for containers' cgroups ([`crate::runtime::RuntimeConfig::systemd_cgroups`]).
    pub fn through_systemd(&self) -> bool {
        self.inner.slices.is_some()
    }

    /// The cgroup path of a container, for [`crate::runtime::ContainerSpec::cgroup_path`].
    pub fn container_path(&self, uid: &str, container_id: &str) -> String {
        match &self.inner.slices {
            Some(slices) => slices.container_path(uid, container_id),
            None => format!("{}/{container_id}", self.inner.pod_path(uid)),
        }
    }

    /// Makes the pod's cgroup, or sets the limits of the one that is there.
    pub async fn make(&self, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        check(uid)?;
        let (inner, uid, limits) = (self.inner.clone(), uid.to_owned(), *limits);
        blocking(move || inner.make(&uid, &limits)).await
    }

    /// SIGKILL to every process in it, containers' included. Fine when it is not there.
    pub async fn kill_all(&self, uid: &str) -> Result<(), CgroupError> {
        check(uid)?;
        let (inner, uid) = (self.inner.clone(), uid.to_owned());
        blocking(move || {
            inner.dirs(&uid).try_for_each(|(hierarchy, dir)| hierarchy.kill(&dir).map_err(at(&dir)))
        })
        .await
    }

    /// Whether no process is left in it (or it is not there).
    pub async fn is_empty(&self, uid: &str) -> Result<bool, CgroupError> {
        check(uid)?;
        let (inner, uid) = (self.inner.clone(), uid.to_owned());
        blocking(move || inner.is_empty(&uid)).await
    }

    /// Waits until it is empty; false when it is not within `limit`. On v2 the kernel says when; v1 cannot, so there it
    /// is looked at again, at growing intervals.
    pub async fn wait_empty(&self, uid: &str, limit: Duration) -> Result<bool, CgroupError> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        let unified = match &self.inner.hierarchies[..] {
            [one] if one.v2 => Some(one.dir(&self.inner.pod_path(uid)).join("cgroup.events")),
            _ => None,
        };
        loop {
            let events = unified.as_deref().and_then(watch);
            if self.is_empty(uid).await? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            match events {
                Some(events) => drop(tokio::time::timeout_at(deadline, events.next()).await),
                None => {
                    tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
            }
        }
    }

    /// Removes it and what runc may have left below it. Fine when it is not there; an error while it holds processes.
    pub async fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        check(uid)?;
        let (inner, uid) = (self.inner.clone(), uid.to_owned());
        blocking(move || inner.remove(&uid)).await
    }

    /// The uids of all pods that have a cgroup here.
    pub async fn list(&self) -> Result<Vec<String>, CgroupError> {
        let inner = self.inner.clone();
        blocking(move || inner.list()).await
    }
}

impl Inner {
    fn pod_path(&self, uid: &str) -> String {
        match &self.slices {
            Some(slices) => slices.pod_path(uid),
            None => format!("{}/pod{uid}", self.parent),
        }
    }

    /// The pod's directory in each hierarchy.
    fn dirs(&self, uid: &str) -> impl Iterator<Item = (&Hierarchy, PathBuf)> {
        let path = self.pod_path(uid);
        self.hierarchies.iter().map(move |hierarchy| (hierarchy, hierarchy.dir(&path)))
    }

    fn make(&self, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        if let Some(slices) = &self.slices {
            return slices.make(uid, limits).map_err(|error| CgroupError::new(slices.unit(uid), error));
        }
        // In all hierarchies, also where nothing is limited: then the parent is never empty, and so never removed, while
        // runc makes a container below it.
        for (hierarchy, dir) in self.dirs(uid) {
            hierarchy.make(&dir).map_err(at(&dir))?;
            for (file, value) in settings(hierarchy, limits) {
                hierarchy.set(&dir, file, &value).map_err(at(&dir.join(file)))?;
            }
        }
        Ok(())
    }

    fn is_empty(&self, uid: &str) -> Result<bool, CgroupError> {
        for (hierarchy, dir) in self.dirs(uid) {
            if !hierarchy.is_empty(&dir).map_err(at(&dir))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        if let Some(slices) = &self.slices {
            if self.dirs(uid).any(|(_, dir)| dir.exists()) {
                slices.remove(uid).map_err(|error| CgroupError::new(slices.unit(uid), error))?;
            }
            // systemd does it in its own time; whoever is faster.
            return self.dirs(uid).try_for_each(|(_, dir)| tree::remove(&dir).map_err(at(&dir)));
        }
        for (hierarchy, dir) in self.dirs(uid) {
            tree::remove(&dir).map_err(at(&dir))?;
            // The parents too once they are empty; whoever is faster makes them again.
            let above = hierarchy.dir(&self.parent);
            for dir in above.ancestors().take_while(|dir| *dir != hierarchy.mount) {
                if std::fs::remove_dir(dir).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, CgroupError> {
        let mut uids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.dir(&self.parent);
            for name in tree::children(&dir).map_err(at(&dir))? {
                uids.extend(match &self.slices {
                    Some(slices) => slices.uid_of(&name),
                    None => name.strip_prefix("pod").map(str::to_owned),
                });
            }
        }
        Ok(uids.into_iter().collect())
    }
}

/// The kubelet's values, as the files of this hierarchy take them.
fn settings(hierarchy: &Hierarchy, limits: &PodLimits) -> Vec<(&'static str, String)> {
    let shares = shares(limits.cpu_request_millis);
    let quota = quota(limits.cpu_limit_millis);
    let memory = limits.memory_limit_bytes;
    let mut all = Vec::new();
    if hierarchy.v2 {
        if hierarchy.has("cpu") {
            // From shares' 2..262144 to weights' 1..10000, as runc does it.
            all.push(("cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string()));
            all.push(("cpu.max", quota.map_or("max 100000".into(), |quota| format!("{quota} 100000"))));
        }
        if hierarchy.has("memory") {
            all.push(("memory.max", if memory == 0 { "max".into() } else { memory.to_string() }));
        }
    } else {
        if hierarchy.has("cpu") {
            all.push(("cpu.shares", shares.to_string()));
            all.push(("cpu.cfs_quota_us", quota.unwrap_or(-1).to_string()));
        }
        if hierarchy.has("memory") {
            all.push(("memory.limit_in_bytes", if memory == 0 { "-1".into() } else { memory.to_string() }));
        }
    }
    all
}

/// How many processes of this container (of its pod, where systemd makes the cgroups) the kernel has killed for want of
/// memory. 0 when nobody can say. `path`: as in the container's specification.
pub(crate) async fn oom_kills(path: &str) -> u64 {
    let path = systemd::directory_of(path);
    let look = move || -> io::Result<u64> {
        let all = hierarchies()?;
        let Some(hierarchy) = all.iter().find(|hierarchy| hierarchy.has("memory")) else { return Ok(0) };
        let file = if hierarchy.v2 { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(hierarchy.dir(&path).join(file))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(kills.and_then(|kills| kills.trim().parse().ok()).unwrap_or(0))
    };
    tokio::task::spawn_blocking(move || look().unwrap_or(0)).await.unwrap_or(0)
}

/// None where there is nothing to watch (any more).
fn watch(path: &Path) -> Option<Changes> {
    let changes = Changes::new().ok()?;
    changes.watch(path).ok()?;
    Some(changes)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CgroupError + use<> {
    let path = path.display().to_string();
    move |error| CgroupError::new(path, error)
}

/// A uid becomes a directory's name.
fn check(uid: &str) -> Result<(), CgroupError> {
    let fine =
        !uid.is_empty() && uid.len() <= 128 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if fine { Ok(()) } else { Err(CgroupError::new("cgroup", format!("{uid:?} is not a pod's uid"))) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, CgroupError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(CgroupError::new("a blocking task", e)))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn v2() -> Hierarchy {
        Hierarchy { mount: "/x".into(), v2: true, controllers: vec!["cpu".into(), "memory".into()] }
    }

    #[test]
    fn limits_are_written_in_each_versions_own_words() {
        let limits =
            PodLimits { cpu_request_millis: 1000, cpu_limit_millis: 500, memory_limit_bytes: 1 << 20 };
        let words = |hierarchy: &Hierarchy, limits: &PodLimits| -> Vec<String> {
            settings(hierarchy, limits).into_iter().map(|(file, value)| format!("{file}={value}")).collect()
        };
        assert_eq!(words(&v2(), &limits), ["cpu.weight=39", "cpu.max=50000 100000", "memory.max=1048576"]);
        assert_eq!(
            words(&v2(), &PodLimits::default()),
            ["cpu.weight=1", "cpu.max=max 100000", "memory.max=max"]
        );
        let v1 = Hierarchy { v2: false, ..v2() };
        assert_eq!(
            words(&v1, &limits),
            ["cpu.shares=1024", "cpu.cfs_quota_us=50000", "memory.limit_in_bytes=1048576"]
        );
        let pids = Hierarchy { controllers: vec!["pids".into()], ..v2() };
        assert!(words(&pids, &limits).is_empty());
    }

    #[tokio::test]
    async fn what_is_no_uid_is_refused() {
        let cgroups = Cgroups::open("/berth-test-refused").await.unwrap();
        for bad in ["", "..", "a/b", "a b"] {
            assert!(cgroups.remove(bad).await.is_err(), "{bad:?}");
        }
        assert!(Cgroups::open("/").await.is_err());
        assert!(Cgroups::open("/a/../..").await.is_err());
    }

    /// A process in the pod's cgroup, in a child cgroup as runc makes them.
    fn process(cgroups: &Cgroups, uid: &str) -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        for (hierarchy, dir) in cgroups.inner.dirs(uid) {
            // cpuset takes nobody before it has processors, which runc gives it.
            if hierarchy.has("cpuset") && !hierarchy.v2 {
                continue;
            }
            let dir = dir.join("c1");
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child
    }

    #[tokio::test]
    async fn a_pods_cgroup_lives_and_is_killed_and_goes() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let parent = format!("/berth-test-{}", std::process::id());
        let cgroups = Cgroups::open(&parent).await.unwrap();
        let limits =
            PodLimits { cpu_request_millis: 100, cpu_limit_millis: 500, memory_limit_bytes: 64 << 20 };
        for (uid, limits) in [("a-1", limits), ("b-2", PodLimits::default())] {
            cgroups.make(uid, &limits).await.unwrap();
            cgroups.make(uid, &limits).await.unwrap();
        }
        assert_eq!(cgroups.list().await.unwrap(), ["a-1", "b-2"]);
        assert!(cgroups.is_empty("a-1").await.unwrap());

        let mut child = process(&cgroups, "a-1");
        assert!(!cgroups.is_empty("a-1").await.unwrap());
        assert!(!cgroups.wait_empty("a-1", Duration::from_millis(20)).await.unwrap());
        assert!(cgroups.remove("a-1").await.is_err(), "it holds a process");
        cgroups.kill_all("a-1").await.unwrap();
        child.wait().unwrap();
        assert!(cgroups.wait_empty("a-1", Duration::from_secs(10)).await.unwrap());

        for uid in ["a-1", "b-2", "never-made"] {
            cgroups.remove(uid).await.unwrap();
            cgroups.kill_all(uid).await.unwrap();
            assert!(cgroups.is_empty(uid).await.unwrap());
        }
        for hierarchy in &cgroups.inner.hierarchies {
            assert!(!hierarchy.dir(&parent).exists(), "the parent went with its last pod");
        }
    }
}

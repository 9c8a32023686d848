//! NFS volumes through the agent's own code: its lanes, its workers, its mounts.
//!
//! `plain` runs everywhere: a directory, bound by the mount helper, stands for the export (the helper is a setting;
//! everything but the mount call itself is what runs on a host). `kernel` needs a kernel NFS server and client of its
//! own, as in a virtual machine: run it there with `--ignored --test-threads=1`, with BERTH_AGENT naming the agent.

#![allow(clippy::unwrap_used)]

mod kernel;
mod plain;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_agent::volumes::nfs::{News, Of, Process, Times};
use berth_agent::volumes::{Nfs, NfsConfig, VolumeError};
use berth_proto::{NfsSource, PodRef, PodSecurity, VolumeUsage};

/// For what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub nfs: Nfs,
    pub news: Arc<Heard>,
}

/// What the volumes have told.
#[derive(Default)]
pub struct Heard {
    pub events: Mutex<Vec<(String, String, String)>>,
    pub lost: Mutex<Vec<(String, String)>>,
    pub usages: Mutex<Vec<VolumeUsage>>,
}

struct Ear(Arc<Heard>);

impl News for Ear {
    fn event(&self, pod: &PodRef, _warning: bool, reason: &'static str, message: String) {
        self.0.events.lock().unwrap().push((pod.name.clone(), reason.to_owned(), message));
    }
    fn lost(&self, pod: &PodRef, volume: &str, _why: String) {
        self.0.lost.lock().unwrap().push((pod.name.clone(), volume.to_owned()));
    }
    fn usage(&self, usage: VolumeUsage) {
        self.0.usages.lock().unwrap().push(usage);
    }
}

impl Heard {
    pub fn told(&self, pod: &str, reason: &str) -> Option<String> {
        let events = self.events.lock().unwrap();
        events.iter().find(|(p, r, _)| p == pod && r == reason).map(|(_, _, message)| message.clone())
    }
}

/// The agent's program: the one built with these tests, or (in a virtual machine) the one named.
pub fn agent() -> PathBuf {
    std::env::var_os("BERTH_AGENT").map_or(env!("CARGO_BIN_EXE_berth-agent").into(), PathBuf::from)
}

pub fn quick() -> Times {
    Times {
        patience: Duration::from_secs(2),
        look: Duration::from_millis(200),
        usage: Duration::from_secs(1),
        idle: Duration::from_millis(300),
    }
}

impl Lab {
    /// `change`: the helper or worker, if they are not the usual ones.
    pub fn new(change: impl FnOnce(&Path, &mut NfsConfig)) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let mut config = NfsConfig::new(dir.path().join("run"));
        config.worker = vec![agent(), "volume-worker".into()];
        config.times = quick();
        change(dir.path(), &mut config);
        let nfs = Nfs::new(config);
        let news = Arc::new(Heard::default());
        nfs.listen(Ear(news.clone()));
        Lab { dir, nfs, news }
    }

    pub fn place(&self, pod: &str) -> PathBuf {
        self.dir.path().join("pods").join(pod).join("volumes/data")
    }

    pub async fn mount(&self, pod: &str, source: &NfsSource) -> Result<PathBuf, VolumeError> {
        self.mount_as(pod, source, &PodSecurity::default()).await
    }

    pub async fn mount_as(
        &self,
        pod: &str,
        source: &NfsSource,
        security: &PodSecurity,
    ) -> Result<PathBuf, VolumeError> {
        let place = self.place(pod);
        let of = Of { pod: &life(pod), volume: "data", claim: "data", place: &place };
        self.nfs.mount(&of, source, security, false).await.map(|()| place.clone())
    }

    pub async fn unmount(&self, pod: &str, source: &NfsSource) -> Result<(), VolumeError> {
        let place = self.place(pod);
        let of = Of { pod: &life(pod), volume: "data", claim: "data", place: &place };
        self.nfs.unmount(&of, source).await
    }

    /// Mounts below the lab's directory.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let exports = self.dir.path().join("exports");
        points.filter(|point| point.starts_with(self.dir.path()) && *point != exports).collect()
    }

    pub fn shares(&self) -> usize {
        let run = self.dir.path().join("run");
        self.mounts().iter().filter(|point| point.starts_with(&run)).count()
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Lab) -> bool) {
        let begun = std::time::Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "never: {what}; {:?}", self.news.events.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for point in self.mounts().iter().rev().chain([&self.dir.path().join("exports")]) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

pub fn life(name: &str) -> PodRef {
    PodRef { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}"), epoch: 1 }
}

/// A directory of that server's export, as a class's volume is before its first use.
pub fn source(server: &str, share: &str, sub_dir: &str) -> NfsSource {
    NfsSource {
        server: server.into(),
        share: share.into(),
        sub_dir: sub_dir.into(),
        make: true,
        new_mode: 0o777,
        ..NfsSource::default()
    }
}

//! Shims that nobody knows any more.
//!
//! When an agent dies while containerd makes a container for it, containerd gives that up half-way and may
//! leave the shim behind (seen with 1.6): alive, without a task, and in the way of whoever makes a container of
//! that pod next, which then hangs. containerd does not list such a shim; it is found by its command line.
//!
//! It must never touch the shim of a container that has a task, nor one of another containerd or namespace.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Runtime, RuntimeError, TaskState};

impl Runtime {
    /// Ends the shims of our namespace whose group holds no container with a task. Only while nothing is
    /// being made in those groups. `group`: only those of this group (a pod's uid).
    pub async fn clear_stray_shims(&self, group: Option<&str>) -> Result<(), RuntimeError> {
        let containers = self.list(&[]).await?;
        let with_task = containers.iter().filter(|container| container.state != TaskState::None);
        let kept: Vec<String> = with_task.map(|container| container.id.clone()).collect();
        let config = &self.inner.config;
        let (namespace, address) = (config.namespace.clone(), config.address.clone());
        let group = group.map(|group| format!("{group}-"));
        let clear = move || {
            for (pid, id) in shims(&namespace, &address) {
                let wanted = group.as_ref().is_none_or(|group| id.starts_with(group.as_str()));
                // The shim carries the id of the first container of its group: `<group>-<name>-<number>`.
                let in_use = kept.iter().any(|other| same_group(other, &id));
                if wanted && !in_use {
                    tracing::warn!(pid, id, "a shim without a container is ended");
                    // It may have ended by itself.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        };
        tokio::task::spawn_blocking(clear).await.map_err(|e| RuntimeError::failed("clearing shims", e))
    }
}

/// Whether two container ids may be of one group. Ids begin with the group's uid; how long that is, the id does
/// not say: 36 characters for Kubernetes' uids. When in doubt they are of one.
fn same_group(one: &str, other: &str) -> bool {
    const UID: usize = 36;
    match (one.get(..UID), other.get(..UID)) {
        (Some(one), Some(other)) if is_uuid(one) && is_uuid(other) => one == other,
        _ => one.rsplitn(3, '-').last() == other.rsplitn(3, '-').last(),
    }
}

fn is_uuid(text: &str) -> bool {
    text.bytes().enumerate().all(|(at, byte)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Shims of this containerd and namespace: process and the id each was started with.
fn shims(namespace: &str, address: &Path) -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> =
            line.split(|byte| *byte == 0).map(|w| std::str::from_utf8(w).unwrap_or("")).collect();
        Some((pid, id_of(&words, namespace, address)?.to_owned()))
    })
    .collect()
}

/// The id in a shim's command line, if it is one of ours and does not merely clean up.
fn id_of<'a>(words: &[&'a str], namespace: &str, address: &Path) -> Option<&'a str> {
    let program = words.first()?.rsplit('/').next()?;
    let value = |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1));
    let same = |path: &str| {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        path == address.as_os_str() || real(Path::new(path)) == real(address)
    };
    let ours = program.starts_with("containerd-shim")
        && value("-namespace") == Some(&namespace)
        && value("-address").is_some_and(|path| same(path))
        && !words.contains(&"delete");
    if ours { value("-id").copied() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0e1a2b3c-1111-2222-3333-444455556666";

    #[test]
    fn only_shims_of_this_containerd_and_namespace_are_ours() {
        let line = |namespace: &'static str, address: &'static str| {
            [
                "/usr/bin/containerd-shim-runc-v2",
                "-namespace",
                namespace,
                "-id",
                "u-main-0",
                "-address",
                address,
            ]
        };
        let id = |words: &[&'static str]| id_of(words, "berth", Path::new("/run/c.sock"));
        assert_eq!(id(&line("berth", "/run/c.sock")), Some("u-main-0"));
        assert_eq!(id(&line("k8s.io", "/run/c.sock")), None);
        assert_eq!(id(&line("berth", "/run/other.sock")), None);
        let mut cleaning = line("berth", "/run/c.sock").to_vec();
        cleaning.push("delete");
        assert_eq!(id(&cleaning), None);
        assert_eq!(id(&["/bin/sh", "-namespace", "berth"]), None);
    }

    #[test]
    fn containers_of_one_pod_share_a_shim() {
        let id = |uid: &str, rest: &str| format!("{uid}-{rest}");
        assert!(same_group(&id(UID, "a-0"), &id(UID, "side-car-12")));
        assert!(!same_group(&id(UID, "a-0"), &id(&UID.replace('6', "7"), "a-0")));
        assert!(same_group("uid-1-a-0", "uid-1-b-3"));
    }
}

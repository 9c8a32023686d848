//! Pods' cgroups through systemd, as its slices: systemd owns the tree of cgroups on its hosts, and takes away what
//! others write into it. Containers become scopes below, which runc asks systemd for.
//!
//! It must never touch a unit that is not a pod's slice. Blocking.

use std::io;
use std::process::Command;

use super::PodLimits;
use crate::runtime::spec::{quota, shares};

/// systemd answers in milliseconds; one that does not answer for so long is in trouble.
const PATIENCE: &str = "--timeout=20";
/// "Without limit", to systemd.
const INFINITY: u64 = u64::MAX;

/// The slices of all pods of this host, below one slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slices {
    /// `berth.slice` without its ending.
    stem: String,
}

impl Slices {
    /// None: the name is not that of a slice.
    pub fn below(slice: &str) -> Option<Slices> {
        let stem = slice.strip_suffix(".slice")?;
        let part = |p: &str| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':'))
        };
        stem.split('-').all(part).then(|| Slices { stem: stem.to_owned() })
    }

    /// The pods' common slice.
    pub fn path(&self) -> String {
        path_of(&self.stem)
    }

    /// The pod's slice. A dash in a slice's name says what it is below, so those of the uid are written otherwise.
    pub fn unit(&self, uid: &str) -> String {
        format!("{}.slice", self.pod_stem(uid))
    }

    pub fn pod_path(&self, uid: &str) -> String {
        path_of(&self.pod_stem(uid))
    }

    fn pod_stem(&self, uid: &str) -> String {
        format!("{}-pod{}", self.stem, uid.replace('-', "_"))
    }

    /// The pod whose slice has this directory.
    pub fn uid_of(&self, directory: &str) -> Option<String> {
        let rest = directory.strip_suffix(".slice")?.strip_prefix(&self.stem)?;
        Some(rest.strip_prefix("-pod")?.replace('_', "-"))
    }

    /// The container's scope, in the words in which runc's systemd driver takes it.
    pub fn container_path(&self, uid: &str, container_id: &str) -> String {
        format!("{}:berth:{container_id}", self.unit(uid))
    }

    /// Makes the pod's slice, or sets the limits of the one that is there.
    pub fn make(&self, uid: &str, limits: &PodLimits) -> io::Result<()> {
        let unit = self.unit(uid);
        let limits = properties(limits);
        // Without default dependencies: a host that is shut down would end all pods at once, before the agent has
        // stopped them in their order.
        let own = [["Description", "s", "A pod of Berth"], ["DefaultDependencies", "b", "false"]]
            .map(|p| p.map(str::to_owned));
        let all: Vec<String> = own.iter().chain(&limits).flatten().cloned().collect();
        let count = (own.len() + limits.len()).to_string();
        let mut start = vec!["StartTransientUnit", "ssa(sv)a(sa(sv))", &unit, "replace", &count];
        start.extend(all.iter().map(String::as_str));
        start.push("0");
        match call(&start) {
            Err(error) if error.to_string().contains("already") => {
                let (all, count) = (limits.concat(), limits.len().to_string());
                let mut set = vec!["SetUnitProperties", "sba(sv)", &unit, "true", &count];
                set.extend(all.iter().map(String::as_str));
                call(&set)
            }
            other => other,
        }
    }

    /// Ends the pod's slice. Fine when systemd does not know it.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        match call(&["StopUnit", "ss", &self.unit(uid), "replace"]) {
            Err(error) if error.to_string().contains("not loaded") => Ok(()),
            other => other,
        }
    }
}

/// The directory of the cgroup that a container's specification names: a path as it is, or runc's
/// `slice:prefix:name`. For the latter the pod's slice: the scope is gone as soon as its last process is.
pub(super) fn directory_of(cgroups_path: &str) -> String {
    match cgroups_path.split_once(".slice:") {
        Some((stem, _)) => path_of(stem),
        None => cgroups_path.to_owned(),
    }
}

/// `/a.slice/a-b.slice` for `a-b`.
fn path_of(stem: &str) -> String {
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("/{}.slice", &stem[..end])).collect()
}

/// (name, D-Bus signature, value), with the kubelet's values.
fn properties(limits: &PodLimits) -> Vec<[String; 3]> {
    let weight = 1 + (shares(limits.cpu_request_millis) - 2) * 9999 / 262_142;
    // The quota is of each tenth of a second.
    let quota = quota(limits.cpu_limit_millis).and_then(|quota| u64::try_from(quota).ok());
    let memory = limits.memory_limit_bytes;
    let number = |name: &str, value: u64| [name.to_owned(), "t".to_owned(), value.to_string()];
    let yes = |name: &str| [name.to_owned(), "b".to_owned(), "true".to_owned()];
    vec![
        yes("CPUAccounting"),
        yes("MemoryAccounting"),
        yes("TasksAccounting"),
        number("CPUWeight", weight),
        number("CPUQuotaPerSecUSec", quota.map_or(INFINITY, |quota| quota * 10)),
        number("MemoryMax", if memory == 0 { INFINITY } else { memory }),
    ]
}

fn call(what: &[&str]) -> io::Result<()> {
    const MANAGER: [&str; 3] =
        ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];
    let output =
        Command::new("busctl").args(["--quiet", PATIENCE, "call"]).args(MANAGER).args(what).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("systemd refuses {}: {}", what[0], error.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_slice_lies_in_the_slice_of_all() {
        let slices = Slices::below("berth.slice").unwrap();
        assert_eq!(slices.path(), "/berth.slice");
        assert_eq!(slices.unit("1-2a"), "berth-pod1_2a.slice");
        assert_eq!(slices.pod_path("1-2a"), "/berth.slice/berth-pod1_2a.slice");
        assert_eq!(slices.uid_of("berth-pod1_2a.slice").as_deref(), Some("1-2a"));
        assert_eq!(slices.container_path("1-2a", "c"), "berth-pod1_2a.slice:berth:c");
        assert_eq!(directory_of("berth-pod1_2a.slice:berth:c"), "/berth.slice/berth-pod1_2a.slice");
        assert_eq!(directory_of("/berth/pod1-2a/c"), "/berth/pod1-2a/c");
        for other in ["system.slice", "berth-pod1", "berth-x.slice", "init.scope"] {
            assert_eq!(slices.uid_of(other), None, "{other}");
        }
    }

    #[test]
    fn slices_may_lie_in_slices() {
        let slices = Slices::below("machine-berth.slice").unwrap();
        assert_eq!(slices.path(), "/machine.slice/machine-berth.slice");
        assert_eq!(slices.pod_path("1"), "/machine.slice/machine-berth.slice/machine-berth-pod1.slice");
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        for bad in ["", ".slice", "-.slice", "a--b.slice", "a/b.slice", "berth.service", "a b.slice"] {
            assert_eq!(Slices::below(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn limits_are_said_in_systemds_words() {
        let words =
            |limits: &PodLimits| properties(limits).iter().skip(3).map(|p| p.join(" ")).collect::<Vec<_>>();
        let limits =
            PodLimits { cpu_request_millis: 1000, cpu_limit_millis: 500, memory_limit_bytes: 1 << 20 };
        assert_eq!(words(&limits), ["CPUWeight t 39", "CPUQuotaPerSecUSec t 500000", "MemoryMax t 1048576"]);
        let none = u64::MAX.to_string();
        let all = [
            "CPUWeight t 1".to_owned(),
            format!("CPUQuotaPerSecUSec t {none}"),
            format!("MemoryMax t {none}"),
        ];
        assert_eq!(words(&PodLimits::default()), all);
    }
}

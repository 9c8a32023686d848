//! From the agent's container to an OCI runtime specification. Pure, apart from what [`Host`] has read before.

use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder,
        LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespace,
        LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxResourcesBuilder, Mount,
        MountBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    },
};

use super::{ContainerSpec, Resources, RuntimeError, capabilities, images::Identity};

/// What of this host a specification depends on.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Capabilities that can be given.
    pub capabilities: HashSet<Capability>,
    /// Plain cgroup v2.
    pub unified_cgroup: bool,
    /// The agent's own oom_score_adj.
    pub oom_score_adj: i32,
}

impl Host {
    /// Reads it.
    pub fn read() -> Host {
        Host {
            capabilities: capabilities::available(),
            unified_cgroup: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            oom_score_adj: std::fs::read_to_string("/proc/self/oom_score_adj")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0),
        }
    }

    /// Lowering it below one's own takes a privilege that not every root has.
    fn permitted_oom_score_adj(&self, wanted: i32) -> i32 {
        let wanted = wanted.clamp(-1000, 1000);
        if self.capabilities.contains(&Capability::SysResource) {
            wanted
        } else {
            wanted.max(self.oom_score_adj)
        }
    }
}

const PERIOD: u64 = 100_000;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

impl ContainerSpec {
    /// As whom it runs.
    pub(crate) fn identity(&self) -> Result<Identity, RuntimeError> {
        self.image.accounts.identify(&self.image.config.user, &self.user)
    }
}

/// The whole specification.
pub(crate) fn generate(spec: &ContainerSpec, host: &Host) -> Result<Spec, RuntimeError> {
    let identity = spec.identity()?;
    let process = process(spec, host, &identity)?;
    build(spec, host, process).map_err(|e| RuntimeError::Config(e.to_string()))
}

fn process(spec: &ContainerSpec, host: &Host, identity: &Identity) -> Result<Process, RuntimeError> {
    let args = arguments(spec)?;
    let capabilities = capabilities::wanted(spec, &host.capabilities)?;
    let make = || -> Result<Process, OciSpecError> {
        let user = UserBuilder::default()
            .uid(identity.uid)
            .gid(identity.gid)
            // containerd puts the primary group among the additional ones as well; programs rely on it.
            .additional_gids(
                std::iter::once(identity.gid).chain(identity.groups.iter().copied()).collect::<Vec<_>>(),
            )
            .build()?;
        // Never inheritable or ambient: a process that is not root must not get them by exec.
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(capabilities.clone())
            .effective(capabilities.clone())
            .permitted(capabilities)
            .inheritable(HashSet::new())
            .ambient(HashSet::new())
            .build()?;
        let cwd = [spec.working_dir.as_str(), spec.image.config.working_dir.as_str(), "/"];
        let cwd = cwd.into_iter().find(|dir| !dir.is_empty()).unwrap_or("/");
        // Always set: otherwise containerd's own, often -999, would be inherited.
        let oom_score_adj = host.permitted_oom_score_adj(spec.oom_score_adj.unwrap_or(0));
        let mut process = ProcessBuilder::default()
            .terminal(spec.terminal.is_some())
            .user(user)
            .args(args)
            .env(environment(spec, &identity.home))
            .cwd(cwd)
            .capabilities(capabilities)
            .no_new_privileges(spec.no_new_privileges && !spec.privileged)
            .oom_score_adj(oom_score_adj)
            .build()?;
        // The builder's default is a limit of 1024 files; what containerd runs with is inherited instead.
        process.set_rlimits(None);
        Ok(process)
    };
    make().map_err(|e| RuntimeError::Config(e.to_string()))
}

/// Kubernetes' table of command, args, ENTRYPOINT and CMD.
fn arguments(spec: &ContainerSpec) -> Result<Vec<String>, RuntimeError> {
    let image = &spec.image.config;
    let args: Vec<String> = if !spec.command.is_empty() {
        spec.command.iter().chain(&spec.args).cloned().collect()
    } else if !spec.args.is_empty() {
        image.entrypoint.iter().chain(&spec.args).cloned().collect()
    } else {
        image.entrypoint.iter().chain(&image.cmd).cloned().collect()
    };
    if args.is_empty() {
        return Err(RuntimeError::Config("no command specified, and the image has none".into()));
    }
    Ok(args)
}

/// The image's, with the pod's over it; the first place a name has is kept.
fn environment(spec: &ContainerSpec, home: &str) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOME={home}")];
    if spec.terminal.is_some() {
        env.push("TERM=xterm".to_owned());
    }
    let mut set = |name: &str, line: String| match env
        .iter()
        .position(|one| one.split_once('=').is_some_and(|(have, _)| have == name))
    {
        Some(at) => env[at] = line,
        None => env.push(line),
    };
    for line in &spec.image.config.env {
        // One without a value is none, and newer versions of runc refuse it.
        if let Some((name, _)) = line.split_once('=') {
            set(name, line.clone());
        }
    }
    for (name, value) in &spec.env {
        set(name, format!("{name}={value}"));
    }
    env
}

fn build(spec: &ContainerSpec, host: &Host, process: Process) -> Result<Spec, OciSpecError> {
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(spec, host)?)
        .resources(resources(&spec.resources, spec.privileged)?)
        .cgroups_path(PathBuf::from(&spec.cgroup_path));
    if spec.privileged {
        linux = linux
            .devices(host_devices())
            .masked_paths(Vec::<String>::new())
            .readonly_paths(Vec::<String>::new());
    } else {
        linux = linux
            .masked_paths(MASKED.map(String::from).to_vec())
            .readonly_paths(READ_ONLY.map(String::from).to_vec());
    }
    let mut built = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path("rootfs").readonly(spec.read_only_root).build()?)
        .process(process)
        .mounts(mounts(spec)?)
        .annotations(HashMap::from([("io.containerd.runc.v2.group".to_owned(), spec.group.clone())]))
        .linux(linux.build()?)
        .build()?;
    // The builder's default names the host; set here, the name would be written into the shared UTS namespace again.
    built.set_hostname(None);
    Ok(built)
}

fn namespaces(spec: &ContainerSpec, host: &Host) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let own = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let joined = |typ, path: &Path| LinuxNamespaceBuilder::default().typ(typ).path(path).build();
    let mut all = vec![
        own(LinuxNamespaceType::Pid)?,
        own(LinuxNamespaceType::Mount)?,
        joined(LinuxNamespaceType::Network, &spec.namespaces.net)?,
        joined(LinuxNamespaceType::Uts, &spec.namespaces.uts)?,
        joined(LinuxNamespaceType::Ipc, &spec.namespaces.ipc)?,
    ];
    if host.unified_cgroup && !spec.privileged {
        all.push(own(LinuxNamespaceType::Cgroup)?);
    }
    Ok(all)
}

fn resources(resources: &Resources, privileged: bool) -> Result<LinuxResources, OciSpecError> {
    let mut cpu = LinuxCpuBuilder::default().shares(shares(resources.cpu_request_millis));
    if let Some(quota) = quota(resources.cpu_limit_millis) {
        cpu = cpu.quota(quota).period(PERIOD);
    }
    let mut all = LinuxResourcesBuilder::default().cpu(cpu.build()?).devices(device_rules(privileged)?);
    if resources.memory_limit_bytes > 0 {
        let limit = i64::try_from(resources.memory_limit_bytes).unwrap_or(i64::MAX);
        all = all.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    all.build()
}

/// The kubelet's formula, also for [`crate::cgroup`].
pub(crate) fn shares(request_millis: u64) -> u64 {
    (request_millis.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// Microseconds per [`PERIOD`]; the kernel wants at least 1000.
pub(crate) fn quota(limit_millis: u64) -> Option<i64> {
    if limit_millis == 0 {
        return None;
    }
    Some(i64::try_from(limit_millis.saturating_mul(PERIOD) / 1000).unwrap_or(i64::MAX).max(1000))
}

fn device_rules(privileged: bool) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    // runc itself adds null, zero, tty and the like.
    Ok(vec![LinuxDeviceCgroupBuilder::default().allow(privileged).access("rwm").build()?])
}

fn mounts(spec: &ContainerSpec) -> Result<Vec<Mount>, OciSpecError> {
    let make = |destination: &str, typ: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(typ)
            .source(source)
            .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
            .build()
    };
    let sys = if spec.privileged { "rw" } else { "ro" };
    let shm = spec.namespaces.shm.display().to_string();
    let system = [
        make("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        make("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        make(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        make("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        make("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys])?,
        make("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys])?,
        make("/dev/shm", "bind", &shm, &["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"])?,
    ];
    let mut own: Vec<&super::Mount> = spec.mounts.iter().collect();
    // Stable: what is written first stays first, but never before what it lies in.
    own.sort_by_key(|mount| Path::new(&mount.destination).components().count());
    let replaced: HashSet<&Path> = own.iter().map(|mount| Path::new(&mount.destination)).collect();
    let mut all: Vec<Mount> =
        system.into_iter().filter(|mount| !replaced.contains(mount.destination().as_path())).collect();
    for mount in own {
        let mode = if mount.read_only { "ro" } else { "rw" };
        let source = mount.source.display().to_string();
        all.push(make(&mount.destination, "bind", &source, &["rbind", "rprivate", mode])?);
    }
    Ok(all)
}

/// Every device node of the host, as `privileged` promises.
fn host_devices() -> Vec<LinuxDevice> {
    // Made anew in each container, or of no use in it.
    const NOT: [&str; 5] = ["pts", "shm", "fd", "mqueue", ".udev"];
    let mut found = Vec::new();
    let mut left = vec![(PathBuf::from("/dev"), 0)];
    while let Some((dir, depth)) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            // Links are left out: what they lead to is found by itself.
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                if depth < 4 && !NOT.iter().any(|not| entry.file_name() == *not) {
                    left.push((entry.path(), depth + 1));
                }
                continue;
            }
            let typ = if meta.file_type().is_char_device() {
                LinuxDeviceType::C
            } else if meta.file_type().is_block_device() {
                LinuxDeviceType::B
            } else {
                continue;
            };
            if entry.file_name() == "console" {
                continue;
            }
            let device = LinuxDeviceBuilder::default()
                .path(entry.path())
                .typ(typ)
                .major(nix::sys::stat::major(meta.rdev()) as i64)
                .minor(nix::sys::stat::minor(meta.rdev()) as i64)
                .file_mode(meta.mode() & 0o7777)
                .uid(meta.uid())
                .gid(meta.gid())
                .build();
            found.extend(device);
        }
    }
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::prelude::*;

    use super::{
        super::{Accounts, Image, ImageProcess, LogTarget, UserSpec},
        *,
    };
    use crate::network::PodNamespaces;

    pub(crate) fn container() -> ContainerSpec {
        let config = ImageProcess {
            entrypoint: vec!["entry".into()],
            cmd: vec!["cmd".into()],
            env: vec!["PATH=/bin".into(), "A=image".into(), "LANG".into()],
            ..ImageProcess::default()
        };
        ContainerSpec {
            id: "one".into(),
            labels: BTreeMap::new(),
            image: Arc::new(Image {
                name: "i".into(),
                id: "i".into(),
                digest: "d".into(),
                chain_id: "c".into(),
                size: 0,
                config,
                accounts: Arc::new(Accounts::default()),
            }),
            group: "uid".into(),
            command: vec![],
            args: vec![],
            env: vec![],
            working_dir: String::new(),
            user: UserSpec::default(),
            mounts: vec![],
            namespaces: PodNamespaces::below(Path::new("/run/berth/pods/uid")),
            cgroup_path: "/berth/poduid/one".into(),
            resources: Resources::default(),
            oom_score_adj: None,
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            add_capabilities: vec![],
            drop_capabilities: vec![],
            terminal: None,
            log: LogTarget::new("/log"),
        }
    }

    fn host() -> Host {
        Host { capabilities: capabilities::available(), unified_cgroup: false, oom_score_adj: 0 }
    }

    fn args(command: &[&str], args: &[&str]) -> Vec<String> {
        let mut spec = container();
        spec.command = command.iter().map(|s| s.to_string()).collect();
        spec.args = args.iter().map(|s| s.to_string()).collect();
        arguments(&spec).unwrap()
    }

    #[test]
    fn command_and_args_follow_kubernetes_table() {
        assert_eq!(args(&[], &[]), ["entry", "cmd"]);
        assert_eq!(args(&["c"], &[]), ["c"]);
        assert_eq!(args(&[], &["a"]), ["entry", "a"]);
        assert_eq!(args(&["c"], &["a"]), ["c", "a"]);
    }

    #[test]
    fn nothing_to_run_is_a_configuration_error() {
        let mut spec = container();
        Arc::make_mut(&mut spec.image).config = ImageProcess::default();
        assert!(matches!(generate(&spec, &host()), Err(RuntimeError::Config(_))));
    }

    #[test]
    fn the_pods_environment_lies_over_the_images() {
        let mut spec = container();
        spec.env = vec![("A".into(), "pod=x".into()), ("B".into(), "".into()), ("A".into(), "last".into())];
        assert_eq!(environment(&spec, "/root"), ["PATH=/bin", "HOME=/root", "A=last", "B="]);
    }

    #[test]
    fn shared_namespaces_are_joined_and_the_others_are_its_own() {
        let spec = generate(&container(), &host()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let joined = linux.namespaces().as_ref().unwrap().iter().filter(|n| n.path().is_some()).count();
        assert_eq!(joined, 3);
        assert!(spec.hostname().is_none(), "it would be set in the shared namespace again");
        assert!(spec.process().as_ref().unwrap().rlimits().is_none());
        assert_eq!(spec.annotations().as_ref().unwrap()["io.containerd.runc.v2.group"], "uid");
    }

    #[test]
    fn a_parent_is_mounted_before_what_lies_in_it() {
        let mut spec = container();
        let mount = |destination: &str| super::super::Mount {
            source: "/x".into(),
            destination: destination.into(),
            read_only: true,
        };
        spec.mounts = vec![mount("/data/a/b"), mount("/etc/hosts"), mount("/data"), mount("/dev/shm")];
        let all = mounts(&spec).unwrap();
        let order: Vec<_> = all.iter().map(|m| m.destination().display().to_string()).collect();
        let at = |path: &str| order.iter().position(|p| p == path).unwrap();
        assert!(at("/data") < at("/data/a/b"));
        assert_eq!(order.iter().filter(|p| *p == "/dev/shm").count(), 1, "the pod's own replaces ours");
        assert!(all[at("/data")].options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn privileged_sees_everything() {
        let mut spec = container();
        spec.privileged = true;
        spec.no_new_privileges = true;
        let spec = generate(&spec, &host()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().is_empty());
        assert!(linux.devices().as_ref().unwrap().iter().any(|d| d.path() == Path::new("/dev/null")));
        assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), Some(false));
    }

    #[test]
    fn cpu_is_the_kubelets_arithmetic() {
        assert_eq!((shares(0), shares(1), shares(1000), shares(250)), (2, 2, 1024, 256));
        assert_eq!(
            (quota(0), quota(500), quota(1), quota(4000)),
            (None, Some(50_000), Some(1000), Some(400_000))
        );
    }

    #[test]
    fn oom_score_is_lowered_only_where_it_may_be() {
        let weak = Host { capabilities: HashSet::new(), unified_cgroup: false, oom_score_adj: -10 };
        assert_eq!(weak.permitted_oom_score_adj(-997), -10);
        assert_eq!(weak.permitted_oom_score_adj(500), 500);
        let strong = Host { capabilities: HashSet::from([Capability::SysResource]), ..weak };
        assert_eq!(strong.permitted_oom_score_adj(-997), -997);
    }

    proptest! {
        #[test]
        fn every_name_is_in_the_environment_once(names in proptest::collection::vec("[A-C]{1,2}", 0..12)) {
            let mut spec = container();
            spec.env = names.into_iter().enumerate().map(|(n, name)| (name, n.to_string())).collect();
            let env = environment(&spec, "/");
            let mut seen: Vec<_> = env.iter().map(|l| l.split('=').next().unwrap()).collect();
            let all = seen.len();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), all);
            for (name, value) in &spec.env {
                let last = spec.env.iter().rev().find(|(n, _)| n == name).unwrap();
                let line = format!("{name}={}", last.1);
                prop_assert!(env.contains(&line), "{} of {}", value, name);
            }
        }
    }
}

//! Which capabilities a container gets.

use std::{collections::HashSet, str::FromStr};

use oci_spec::runtime::Capability;

use super::{ContainerSpec, RuntimeError};

/// In the kernel's numbering.
const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What Docker, containerd and the kubelet give.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// What the agent itself has, and so can give: asking for more makes runc fail.
pub(crate) fn available() -> HashSet<Capability> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    ALL.iter()
        .enumerate()
        .filter(|(bit, _)| bits & (1 << bit) != 0)
        .map(|(_, capability)| *capability)
        .collect()
}

/// Kubernetes' rules: all for privileged; else the default, with what is dropped (first) and added (then). An added one that
/// the agent itself does not have is an error; `ALL` means all that there are.
pub(crate) fn wanted(
    spec: &ContainerSpec,
    available: &HashSet<Capability>,
) -> Result<HashSet<Capability>, RuntimeError> {
    if spec.privileged {
        return Ok(available.clone());
    }
    let mut wanted: HashSet<Capability> = DEFAULT.into_iter().filter(|one| available.contains(one)).collect();
    if is_all(&spec.add_capabilities) {
        wanted.clone_from(available);
    }
    if is_all(&spec.drop_capabilities) {
        wanted.clear();
    }
    for name in spec.add_capabilities.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        let capability = parse(name)?;
        if !available.contains(&capability) {
            return Err(RuntimeError::Config(format!("capability {name} is not available on this host")));
        }
        wanted.insert(capability);
    }
    for name in spec.drop_capabilities.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
        wanted.remove(&parse(name)?);
    }
    Ok(wanted)
}

fn is_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

fn parse(name: &str) -> Result<Capability, RuntimeError> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(short).map_err(|_| RuntimeError::Config(format!("unknown capability {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::{super::spec::tests::container, *};

    fn all() -> HashSet<Capability> {
        ALL.into_iter().collect()
    }

    #[test]
    fn the_default_is_dockers() {
        assert_eq!(wanted(&container(), &all()).unwrap(), DEFAULT.into_iter().collect());
    }

    #[test]
    fn dropping_all_and_adding_one_leaves_one() {
        let mut spec = container();
        spec.drop_capabilities = vec!["ALL".into()];
        spec.add_capabilities = vec!["NET_BIND_SERVICE".into()];
        assert_eq!(wanted(&spec, &all()).unwrap(), HashSet::from([Capability::NetBindService]));
        spec.add_capabilities = vec!["cap_chown".into()];
        assert_eq!(wanted(&spec, &all()).unwrap(), HashSet::from([Capability::Chown]));
    }

    #[test]
    fn privileged_has_what_the_agent_has() {
        let mut spec = container();
        spec.privileged = true;
        let some = HashSet::from([Capability::Chown, Capability::SysAdmin]);
        assert_eq!(wanted(&spec, &some).unwrap(), some);
    }

    #[test]
    fn what_cannot_be_given_is_said() {
        let mut spec = container();
        spec.add_capabilities = vec!["SYS_ADMIN".into()];
        let error = wanted(&spec, &HashSet::new()).unwrap_err().to_string();
        assert!(error.contains("SYS_ADMIN is not available"), "{error}");
        spec.add_capabilities = vec!["FLY".into()];
        assert!(wanted(&spec, &all()).unwrap_err().to_string().contains("\"FLY\""));
    }

    #[test]
    fn the_numbering_is_the_kernels() {
        // The last one the kernel knows must be within the table, or privileged would not have it.
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        assert!(last.trim().parse::<usize>().unwrap() < ALL.len() + 1);
        assert_eq!(ALL[21], Capability::SysAdmin);
        assert_eq!(ALL[40], Capability::CheckpointRestore);
    }
}

//! An assignment in the words of those who carry it out: the runtime, the cgroups, the network. Nothing is done here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_proto::volume::Source;
use berth_proto::{Assignment, Container, PodRef};

use super::host::{Subjects, labels};
use crate::cgroup::{Cgroups, PodLimits};
use crate::runtime::{ContainerSpec, Image, LogTarget, Mount, Resources, UserSpec};

#[allow(clippy::too_many_arguments)]
pub fn container_spec(
    pod: &PodRef,
    assignment: &Assignment,
    spec: &Container,
    attempt: u32,
    id: String,
    image: Arc<Image>,
    mounts: Vec<Mount>,
    cgroups: &Cgroups,
    log: PathBuf,
) -> ContainerSpec {
    let security = spec.security.clone().unwrap_or_default();
    let of_pod = assignment.security.clone().unwrap_or_default();
    let resources = spec.resources.unwrap_or_default();
    let id_of = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let mut groups: Vec<u32> =
        of_pod.supplemental_groups.iter().filter_map(|group| u32::try_from(*group).ok()).collect();
    groups.extend(id_of(of_pod.fs_group));
    let mut env: Vec<(String, String)> =
        spec.env.iter().map(|var| (var.name.clone(), var.value.clone())).collect();
    if !env.iter().any(|(name, _)| name == "HOSTNAME") {
        env.insert(0, ("HOSTNAME".to_owned(), hostname(assignment)));
    }
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let labels: BTreeMap<String, String> = [
        label(labels::NAMESPACE, &pod.namespace),
        label(labels::NAME, &pod.name),
        label(labels::UID, &pod.uid),
        label(labels::EPOCH, &pod.epoch.to_string()),
        label(labels::CONTAINER, &spec.name),
        label(labels::ATTEMPT, &attempt.to_string()),
    ]
    .into();
    ContainerSpec {
        labels,
        image,
        group: pod.uid.clone(),
        command: spec.command.clone(),
        args: spec.args.clone(),
        env,
        working_dir: spec.working_dir.clone(),
        user: UserSpec {
            uid: id_of(security.run_as_user.or(of_pod.run_as_user)),
            gid: id_of(security.run_as_group.or(of_pod.run_as_group)),
            groups,
            non_root: security.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false),
        },
        mounts,
        namespaces: crate::network::PodNamespaces::below(Path::new("")),
        cgroup_path: cgroups.container_path(&pod.uid, &id),
        id,
        resources: Resources {
            cpu_request_millis: resources.cpu_request_millis,
            cpu_limit_millis: resources.cpu_limit_millis,
            memory_limit_bytes: resources.memory_limit_bytes,
        },
        oom_score_adj: None,
        privileged: security.privileged,
        read_only_root: security.read_only_root_filesystem,
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        add_capabilities: security.add_capabilities,
        drop_capabilities: security.drop_capabilities,
        terminal: None,
        log: LogTarget::new(log),
    }
}

/// The pod as a whole is limited only where each of its containers is; init containers count with their most.
pub fn limits(assignment: &Assignment) -> PodLimits {
    let of = |get: fn(&berth_proto::Resources) -> u64| {
        let value = |spec: &Container| spec.resources.as_ref().map_or(0, get);
        let each: Vec<u64> = assignment.containers.iter().map(value).collect();
        let inits: Vec<u64> = assignment.init_containers.iter().map(value).collect();
        (each, inits)
    };
    let limit = |get: fn(&berth_proto::Resources) -> u64| {
        let (each, inits) = of(get);
        if each.contains(&0) || inits.contains(&0) {
            return 0;
        }
        each.iter().sum::<u64>().max(inits.into_iter().max().unwrap_or(0))
    };
    let (requests, inits) = of(|resources| resources.cpu_request_millis);
    PodLimits {
        cpu_request_millis: requests.iter().sum::<u64>().max(inits.into_iter().max().unwrap_or(0)),
        cpu_limit_millis: limit(|resources| resources.cpu_limit_millis),
        memory_limit_bytes: limit(|resources| resources.memory_limit_bytes),
    }
}

pub fn on_nfs(assignment: &Assignment, volume: &str) -> bool {
    let spec = assignment.volumes.iter().find(|spec| spec.name == volume);
    spec.is_some_and(|spec| matches!(spec.source, Some(Source::Nfs(_))))
}

pub fn on_host_network(assignment: &Assignment) -> bool {
    assignment.network.as_ref().is_some_and(|network| network.host_network)
}

/// What the pod is called inside: on the host's network as the host is.
pub fn hostname(assignment: &Assignment) -> String {
    let of_host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    match on_host_network(assignment) {
        true => of_host().unwrap_or_else(|| assignment.hostname.clone()),
        false => assignment.hostname.clone(),
    }
}

/// The addresses the pod has, or will have once it is connected.
pub fn addresses(subjects: &Subjects) -> Vec<String> {
    if !subjects.ips.is_empty() {
        return subjects.ips.clone();
    }
    let network = subjects.assignment.network.as_ref();
    let addresses = network.into_iter().flat_map(|network| &network.addresses);
    addresses.map(|address| address.split('/').next().unwrap_or(address).to_owned()).collect()
}

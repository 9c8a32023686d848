//! Nothing leaks: what exists on the host after a set was deleted is what existed before it was made.

use std::collections::BTreeMap;

use anyhow::Result;
use berth_tests::cluster::Cluster;
use berth_tests::host::Host;
use berth_tests::scenario::{SOON, set};
use berth_tests::wait;
use nix::sys::signal::Signal;

/// All that a pod could leave behind, by kind.
fn inventory(cluster: &Cluster, host: &Host) -> Result<BTreeMap<&'static str, Vec<String>>> {
    let lines = |text: String| text.lines().map(str::to_owned).filter(|l| !l.is_empty()).collect::<Vec<_>>();
    let mut all = BTreeMap::new();
    all.insert("containers", lines(host.ctr(&["containers", "ls", "-q"])?));
    all.insert("tasks", lines(host.ctr(&["task", "ls", "-q"])?));
    let snapshots = host.ctr(&["snapshots", "ls"])?;
    // Committed snapshots are the images' layers.
    all.insert("snapshots", lines(snapshots).into_iter().filter(|l| l.contains("Active")).collect());
    all.insert("leases", lines(host.ctr(&["leases", "ls", "-q"])?));
    let links = host.run("ip", &["-o", "link", "show", "type", "veth"])?;
    // The host's own cable is not a pod's.
    all.insert("veths", lines(links).into_iter().filter(|l| !l.contains(": eth0@")).collect());
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", host.holder()?))?;
    let marker = cluster.dir.display().to_string();
    all.insert("mounts", lines(mounts).into_iter().filter(|l| l.contains(&marker)).collect());
    let routes = host.run("ip", &["route"])?;
    all.insert("routes", lines(routes));
    all.insert("processes", processes(host)?);
    let below = |dir: &str| -> Vec<String> {
        std::fs::read_dir(host.dir.join(dir))
            .into_iter()
            .flatten()
            .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    all.insert("pod directories", below("data/pods"));
    all.insert("log directories", below("data/logs"));
    all.insert("namespaces", below("run/pods"));
    all.insert("cgroups", cgroups("/sys/fs/cgroup")?);
    Ok(all)
}

/// The names of the processes in the host's mount namespace.
fn processes(host: &Host) -> Result<Vec<String>> {
    let own = std::fs::read_link(format!("/proc/{}/ns/mnt", host.holder()?))?;
    let mut names: Vec<String> = std::fs::read_dir("/proc")?
        .filter_map(|e| {
            let path = e.ok()?.path();
            let namespace = std::fs::read_link(path.join("ns/mnt")).ok()?;
            let comm = std::fs::read_to_string(path.join("comm")).ok()?;
            (namespace == own).then(|| comm.trim().to_owned())
        })
        .filter(|name| name != "ctr" && name != "ip")
        .collect();
    names.sort();
    Ok(names)
}

/// Cgroups of pods of this cluster's default namespace cannot be told by name from another test's: what
/// counts is that the pods' uids, asked for before, are gone. Here: every path below a `berth` cgroup.
fn cgroups(root: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut stack = vec![std::path::PathBuf::from(root)];
    while let Some(at) = stack.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.push(entry.path().display().to_string());
                stack.push(entry.path());
            }
        }
    }
    Ok(found)
}

#[test]
fn five_rounds_of_create_and_delete_leave_nothing_also_with_the_agent_killed_in_the_middle() {
    let cluster = Cluster::for_test().unwrap();
    let kubectl = &cluster.kubectl;
    let host = cluster.host().unwrap();
    // One pod's life first: what is made once for all (directories, the root cgroup) exists afterwards.
    let mut before = None;
    for round in 0..6 {
        kubectl.apply(&set("web", 3, "  podManagementPolicy: Parallel")).unwrap();
        if round == 2 {
            // While they start.
            wait::until_true("the first container", SOON, || {
                Ok(!host.ctr(&["containers", "ls", "-q"])?.is_empty())
            })
            .unwrap();
            host.signal("agent", Signal::SIGKILL).unwrap();
            cluster.start_agent(0).unwrap();
        }
        cluster.settled("web", 3).unwrap();
        let uids = kubectl.run("get pods -o jsonpath={.items[*].metadata.uid}").unwrap();
        kubectl.run("delete sts web --cascade=foreground --wait=false").unwrap();
        if round == 4 {
            // While they stop.
            host.signal("agent", Signal::SIGKILL).unwrap();
            cluster.start_agent(0).unwrap();
        }
        cluster.gone("sts/web").unwrap();
        for pod in ["web-0", "web-1", "web-2"] {
            cluster.gone(&format!("pod/{pod}")).unwrap();
        }
        let filter = |mut all: BTreeMap<&'static str, Vec<String>>| {
            let uids: Vec<String> =
                uids.split(' ').flat_map(|u| [u.to_owned(), u.replace('-', "_")]).collect();
            if let Some(cgroups) = all.get_mut("cgroups") {
                cgroups.retain(|c| uids.iter().any(|u| c.contains(u.as_str())));
            }
            all
        };
        if round == 0 {
            before = Some(filter(inventory(&cluster, host).unwrap()));
            for what in [
                "containers",
                "tasks",
                "snapshots",
                "leases",
                "veths",
                "pod directories",
                "log directories",
                "namespaces",
                "cgroups",
            ] {
                let left = &before.as_ref().unwrap()[what];
                assert!(left.is_empty(), "{what} after the first round: {left:?}");
            }
            continue;
        }
        let mut now = BTreeMap::new();
        wait::until_true("nothing left", SOON, || {
            now = filter(inventory(&cluster, host)?);
            Ok(Some(&now) == before.as_ref())
        })
        .unwrap_or_else(|e| panic!("round {round}: {e}: before {before:#?}, now {now:#?}"));
    }
    // The claims stay, and go when asked to, with their directories.
    kubectl.run("delete pvc --all").unwrap();
    wait::until_true("the volumes gone", SOON, || Ok(kubectl.run("get pv -o name")?.is_empty())).unwrap();
    let volumes = std::fs::read_dir(host.dir.join("data/volumes")).unwrap().count();
    assert_eq!(volumes, 0);
}

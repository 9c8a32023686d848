//! Machines that hosts and pods depend on, and what befalls them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::*;

/// How long a command in a pod may take on an emulated machine, whatever ails its neighbours.
const SOON: Duration = Duration::from_secs(20);

pub fn nfs_server(lab: &Lab) -> Result<()> {
    step("a share of 400 MiB, and beside the databases a pod that does not use it");
    // No file has room set aside behind its end (allocsize): a full share is felt at once.
    lab.on(
        "nfs",
        "mountpoint -q /srv/small && exit
mkdir -p /srv/small && truncate -s 400M /srv/small.img && mkfs.xfs -q -f /srv/small.img
opts=loop,allocsize=4k,x-systemd.required-by=nfs-server.service,x-systemd.requires=modprobe@loop.service
echo /srv/small.img /srv/small xfs $opts,x-systemd.after=systemd-remount-fs.service 0 0 >>/etc/fstab
echo '/srv/small 10.77.0.0/24(rw,no_root_squash,no_subtree_check,mountpoint)' >/etc/exports.d/small.exports
systemctl daemon-reload && mount /srv/small && exportfs -ra",
    )?;
    lab.web_set(1, 5)?;
    let ledger = Ledger::start_on(lab, "/srv/small")?;
    let server = lab.machine("nfs")?;
    let before = lab.lives()?;

    step("the server reboots");
    server.reboot()?;
    ledger.goes_on()?;
    unharmed(lab, "a reboot of the NFS server", &before)?;

    step("the server is cut off for three minutes: an event says so, and web-0 is served as ever");
    let cut = Instant::now();
    server.cable(false)?;
    for pod in ["redis-0", "postgres-0"] {
        lab.told(pod, "NFSServerNotAnswering", "nfs has not answered since")?;
    }
    let mut slowest = Duration::ZERO;
    while cut.elapsed() < Duration::from_secs(180) {
        let asked = Instant::now();
        lab.exec("web-0", "cat /data/started")?;
        lab.kubectl.run("logs web-0")?;
        slowest = slowest.max(asked.elapsed());
    }
    ensure!(slowest < SOON, "exec and logs of web-0 took {slowest:?}");
    println!("exec and logs of web-0 took {slowest:.1?} at most");
    lab.node_is("node1", "True")?;
    server.cable(true)?;
    ledger.goes_on()?;
    lab.told("redis-0", "NFSServerAnswering", "nfs")?;
    unharmed(lab, "three minutes without the NFS server", &before)?;

    step("the share is full: what does not fit is not acknowledged");
    // Ever smaller pieces, until not a block is left.
    let left = lab.on(
        "nfs",
        "mkdir /srv/small/full
for size in 64M 16M 4M 1M 256K 64K 16K 4K; do
  while fallocate -l $size $(mktemp -p /srv/small/full) 2>/dev/null; do :; done
done; df --output=avail /srv/small | tail -n 1",
    )?;
    println!("{} KiB are left", left.trim());
    for database in ["redis", "postgres"] {
        ledger.is_refused(database)?;
    }
    lab.exec("web-0", "cat /data/started")?;
    step("there is room again");
    lab.on("nfs", "rm -r /srv/small/full")?;
    ledger.verdict()?;
    lab.clear()
}

pub fn disk_full(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    let before = lab.lives()?;
    let mut there = Vec::new();

    step("the controller's disk is full: writes are refused, all else goes on");
    lab.on(
        "controller",
        "fallocate -l $(df --output=avail -B1 / | tail -n 1) /full; cat /dev/zero >/full2 || true",
    )?;
    let refused = wait::until("a write to be refused", READY, || {
        let name = format!("full-{}", there.len());
        match lab.kubectl.run(&format!("create configmap {name} --from-literal=a=b")) {
            Ok(_) => there.push(name),
            Err(error) => return Ok(Some(error)),
        }
        Ok(None)
    })?;
    println!("{} more writes, then: {refused}", there.len());
    lab.kubectl.run("get pods -o wide")?;
    ledger.goes_on()?;
    lab.exec("redis-0", "true")?;

    step("there is room again: writes are taken, and none was lost");
    lab.on("controller", "rm /full /full2")?;
    wait::until_true("a write to be taken", READY, || {
        Ok(lab.kubectl.run("create configmap again --from-literal=a=b").is_ok())
    })?;
    are_there(lab, &there)?;
    lab.node_is("node1", "True")?;
    unharmed(lab, "a full disk of the controller", &before)?;
    let uid = lab.uid("redis-0")?;
    lab.kubectl.run("delete pod redis-0")?;
    lab.replaced("redis-0", &uid)?;
    ledger.verdict()?;
    lab.clear()
}

pub fn power_cut(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    let before = lab.lives()?;
    let controller = lab.machine("controller")?;
    for cut in 1..=2 {
        step(&format!("the controller's plug is pulled under writes ({cut}); pods run on"));
        let there = under_writes(lab, &format!("cut-{cut}"), || controller.cut_power())?;
        ledger.goes_on()?;
        step("it boots again");
        controller.power_on()?;
        controller.booted()?;
        wait::until_true("the API to answer", READY, || Ok(lab.kubectl.run("get nodes").is_ok()))?;
        println!("{} objects were acknowledged", there.len());
        are_there(lab, &there)?;
        lab.node_is("node1", "True")?;
        lab.settled("redis", 1)?;
        ledger.goes_on()?;
        unharmed(lab, "a power cut of the controller", &before)?;
    }
    ledger.verdict()?;
    lab.clear()
}

/// Makes ConfigMaps one after the other, several at a time, while something happens; the names of those that were
/// acknowledged.
fn under_writes(lab: &Lab, prefix: &str, what: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let stop = AtomicBool::new(false);
    let written = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (stop, written) = (&stop, &written);
            scope.spawn(move || {
                for n in 0.. {
                    let name = format!("{prefix}-{writer}-{n}");
                    if stop.load(Ordering::Relaxed)
                        || lab
                            .kubectl
                            .run(&format!("create configmap {name} --from-literal=a=b --request-timeout=15s"))
                            .is_err()
                    {
                        return;
                    }
                    written.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                }
            });
        }
        let begun = || Ok(written.lock().unwrap_or_else(PoisonError::into_inner).len() >= 20);
        let outcome = wait::until_true("writes", READY, begun).and_then(|()| what());
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok(written.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn are_there(lab: &Lab, names: &[String]) -> Result<()> {
    let list = lab.kubectl.run("get configmaps -o name")?;
    let lost: Vec<&String> =
        names.iter().filter(|name| !list.lines().any(|line| line == format!("configmap/{name}"))).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    Ok(())
}

pub fn clock(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    let agrees = "agrees with the controller's";
    let (ahead, behind) = ("seconds ahead of the controller's", "seconds behind the controller's");
    for (machine, first, second) in [("node1", ahead, behind), ("controller", behind, ahead)] {
        for (by, told) in [("+1 hour", first), ("-1 hour", agrees), ("-1 hour", second), ("+1 hour", agrees)]
        {
            step(&format!("the clock of {machine} is set {by}: berth-agent check on node1 sees it"));
            let before = lab.lives()?;
            lab.on(machine, &format!("date -s '{by}'"))?;
            // A new session wants certificates that are valid at both ends.
            lab.on("node1", "systemctl restart berth-agent")?;
            ledger.goes_on()?;
            lab.node_is("node1", "True")?;
            let checked = lab.on("node1", "berth-agent check")?;
            ensure!(checked.contains(told), "berth-agent check says nothing of {told:?}:\n{checked}");
            unharmed(lab, by, &before)?;
            let uid = lab.uid("redis-0")?;
            lab.kubectl.run("delete pod redis-0")?;
            lab.replaced("redis-0", &uid)?;
            ledger.goes_on()?;
        }
    }
    ledger.verdict()?;
    lab.clear()
}

//! What happens to hosts and to what runs on them.

use super::*;

pub fn restarts(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    let before = lab.lives()?;
    for (machine, what) in [
        ("node1", "systemctl restart berth-agent"),
        ("node1", "systemctl kill -s KILL berth-agent"),
        ("node1", "systemctl restart containerd"),
        ("node1", "systemctl kill -s KILL --kill-whom=main containerd"),
        ("node1", "systemctl stop berth-agent containerd; systemctl start containerd berth-agent"),
        ("node1", "systemctl reload berth-agent"),
        ("node1", "systemctl daemon-reload"),
        ("node1", "apt-get install -y /root/containerd-newer.deb"),
        ("controller", "systemctl restart berth-controller"),
        ("controller", "systemctl kill -s KILL berth-controller"),
        ("controller", "systemctl reload berth-controller"),
    ] {
        step(&format!("{machine}: {what}"));
        lab.on(machine, what)?;
        answers(lab)?;
        ledger.goes_on()?;
        unharmed(lab, what, &before)?;
        limits_hold(lab)?;
    }
    let version = lab.on("node1", "dpkg-query -f '${Version}' -W containerd")?;
    ensure!(version.ends_with("+lab1"), "containerd is {version}");
    ledger.verdict()?;
    lab.clear()
}

/// All is well again: daemons active, the host Ready, exec works.
fn answers(lab: &Lab) -> Result<()> {
    for (machine, unit) in
        [("node1", "containerd"), ("node1", "berth-agent"), ("controller", "berth-controller")]
    {
        wait::until_true(&format!("{unit} to run"), READY, || {
            Ok(lab.on(machine, &format!("systemctl is-active {unit}")).is_ok())
        })?;
    }
    wait::until_true("exec in redis-0", READY, || Ok(lab.exec("redis-0", "true").is_ok()))?;
    lab.settled("redis", 1)?;
    lab.settled("postgres", 1)
}

/// systemd has not taken back what it was told of the pods' limits.
fn limits_hold(lab: &Lab) -> Result<()> {
    let limits = "cat /sys/fs/cgroup/berth.slice/berth-pod*.slice/{memory.max,cpu.max}";
    let text = lab.on("node1", limits)?;
    let expected = ["268435456", "268435456", "90000 100000", "90000 100000"];
    ensure!(text.lines().eq(expected), "limits of the pods' slices: {text}");
    Ok(())
}

/// Makes a package that is newer than what is installed, in /root/newer.
pub(super) fn newer(lab: &Lab, machine: &str, package: &str) -> Result<()> {
    let script = format!(
        "rm -rf /root/newer; mkdir /root/newer && cd /root/newer && dpkg-deb -R /root/{package}_*.deb tree
sed -i \"s/^Version: .*/Version: $(dpkg-query -W -f '${{Version}}' {package}).1/\" tree/DEBIAN/control && dpkg-deb --root-owner-group -Znone -b tree . && rm -r tree"
    );
    lab.on(machine, &script).map(drop)
}

pub fn packages(lab: &Lab) -> Result<()> {
    lab.web_set(1, 30)?;
    let ledger = Ledger::start(lab)?;
    let before = lab.lives()?;

    step("an upgrade of both, with a changed configuration kept");
    for (machine, package) in [("controller", "berth-controller"), ("node1", "berth-agent")] {
        newer(lab, machine, package)?;
        lab.on(
            machine,
            &format!(
                "cd /root/newer && sha256sum /etc/berth/*.toml >before
DEBIAN_FRONTEND=noninteractive apt-get install -y ./{package}_*.deb
sha256sum --quiet -c before && systemctl is-active {package} && rm -r /root/newer"
            ),
        )?;
    }
    answers(lab)?;
    ledger.goes_on()?;
    unharmed(lab, "an upgrade", &before)?;

    step("the agent removed and installed again: the pods run on, and are taken up");
    let removed = lab.on("node1", "DEBIAN_FRONTEND=noninteractive apt-get remove -y berth-agent")?;
    ensure!(removed.contains("Pods still run on this host"), "{removed}");
    let agent = lab.on("node1", "systemctl is-active berth-agent || true")?;
    ensure!(agent.trim() == "inactive", "the agent is {agent}");
    lab.on("node1", "ls -d /sys/fs/cgroup/berth.slice/berth-pod*.slice/berth-*.scope")?;
    let again = "apt-get install -y ./berth-agent_*.deb && systemctl enable --now berth-agent";
    lab.on("node1", again)?;
    answers(lab)?;
    ledger.goes_on()?;
    unharmed(lab, "a removal and installation", &before)?;

    step("purged: nothing runs and nothing stays, but the pods' data");
    let purged = lab.on("node1", "cp -r /etc/berth /root/etc-berth; apt-get purge -y berth-agent")?;
    ensure!(purged.contains("/var/lib/berth/volumes is kept"), "{purged}");
    let left = lab.on(
        "node1",
        "ls /var/lib/berth; ls -d /etc/berth /run/berth /usr/bin/berth-agent 2>/dev/null || true
ls -d /sys/fs/cgroup/berth.slice/*.slice 2>/dev/null || true; grep -c /var/lib/berth /proc/mounts || true",
    )?;
    ensure!(left.trim() == "volumes\n0", "left after the purge:\n{left}");

    let left = lab.on(
        "node1",
        "nft list tables | grep berth || true; ip -brief link | grep -E '^(berth|veth)' || true
ip route show proto 190; ctr namespaces ls -q | grep -x berth || true; systemctl list-units --no-legend 'berth*'",
    )?;
    ensure!(left.is_empty(), "left of network, containerd's store and units after the purge:\n{left}");

    step("joined again: the pods come back with their data");
    lab.on("node1", "apt-get install -y ./berth-agent_*.deb && cp /root/etc-berth/*.toml /etc/berth/")?;
    let hand_over = "berth-controller token create --node node1 | ssh root@node1 'install -m 600 /dev/stdin /etc/berth/token'";
    lab.on("controller", hand_over)?;
    lab.on("node1", "systemctl enable --now berth-agent")?;
    wait::until_true("pods to have started a second time", READY, || {
        Ok(lab.exec("web-0", "wc -l </data/started").is_ok_and(|n| n.trim() == "2"))
    })?;
    lab.settled("web", 1)?;
    ledger.verdict()?;
    lab.clear()
}

pub fn reboot(lab: &Lab) -> Result<()> {
    lab.web_set(2, 30)?;
    let ledger = Ledger::start(lab)?;
    let started = |n: usize| lab.exec(&format!("web-{n}"), "cat /data/started");
    let first = [started(0)?, started(1)?];
    step("node1 is shut down and boots again");
    let node = lab.machine("node1")?;
    node.reboot()?;
    lab.settled("web", 2)?;
    ledger.goes_on()?;
    wait::until_true("the pods to have started again", READY, || {
        Ok((0..2).all(|n| started(n).is_ok_and(|text| text != first[n])))
    })?;

    step("each ended of itself, the highest ordinal first; so did the databases");
    for pod in ["redis-0", "postgres-0"] {
        let ends = lab.exec(pod, "grep -c ^end /data/lives")?;
        ensure!(ends.trim() == "1", "{pod} ended gracefully {ends} times");
    }
    let ended = |n: usize| -> Result<f64> {
        let text = lab.exec(&format!("web-{n}"), "cat /data/ended")?;
        ensure!(text.lines().count() == 1, "web-{n} ended gracefully once: {text:?}");
        Ok(text.trim().parse()?)
    };
    let (low, high) = (ended(0)?, ended(1)?);
    ensure!(high + 1.0 < low, "web-1 ended at {high}, web-0 at {low}");

    step("the agent alone is stopped: the pods run on");
    let before = lab.lives()?;
    node.run("systemctl stop berth-agent; sleep 5; systemctl start berth-agent")?;
    lab.settled("web", 2)?;
    ledger.goes_on()?;
    unharmed(lab, "a stop of the agent", &before)?;
    ledger.verdict()?;
    lab.clear()
}

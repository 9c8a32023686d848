//! What somebody who knows systemd tries first, and what `check` says of a host on which something is wrong.

use super::*;

/// Unit, its machine, and the exposure that `systemd-analyze security` may at most see, times ten: the agent mounts
/// for its host, and what would keep that from the host is not for it.
const UNITS: [(&str, &str, u32); 2] = [("controller", "berth-controller", 15), ("node1", "berth-agent", 75)];

pub fn units(lab: &Lab) -> Result<()> {
    lab.web_set(1, 30)?;
    step("sandboxes, accounts, directories");
    for (machine, unit, most) in UNITS {
        let script = format!("systemd-analyze security --no-pager --threshold={most} {unit}.service");
        let told = lab.on(machine, &script)?;
        println!("{}", told.lines().last().unwrap_or_default());
    }
    let modes = |machine: &str, paths: &str| lab.on(machine, &format!("stat -c '%U:%G %a' {paths}"));
    let own = "berth-controller:berth-controller";
    let controller =
        modes("controller", "/var/lib/berth-controller /var/lib/berth-controller/admin.kubeconfig")?;
    ensure!(controller == format!("{own} 700\n{own} 600\n"), "{controller}");
    let agent =
        modes("node1", "/run/berth /var/lib/berth /run/berth/agent.sock /var/lib/berth/pki/agent.key")?;
    ensure!(agent == "root:root 711\nroot:root 711\nroot:root 600\nroot:root 600\n", "{agent}");

    checks(lab)?;
    let before = lab.lives()?;
    reloads(lab)?;
    never_given_up(lab)?;
    watchdogs(lab)?;
    lab.settled("web", 1)?;
    unharmed(lab, "reloads, restarts and watchdogs", &before)?;
    needs_a_pod(lab)?;
    lab.clear()
}

/// Runs `command` in a view of the file system where `disturb` was done; it must fail or not, and say all of `says`.
fn told(lab: &Lab, machine: &str, disturb: &str, command: &str, fails: bool, says: &[&str]) -> Result<()> {
    let script = format!(
        "cat >/tmp/look <<'END'\n{disturb}\nset +e\n{command}\necho exit $?\nEND\n\
         unshare --mount --propagation private bash -eu /tmp/look"
    );
    let told = lab.on(machine, &script)?;
    ensure!(told.trim_end().ends_with("exit 1") == fails, "{disturb}: {told}");
    for text in says {
        ensure!(told.contains(text), "{disturb}: {text:?} is not said:\n{told}");
    }
    Ok(())
}

fn checks(lab: &Lab) -> Result<()> {
    step("check: nothing is wrong here");
    let agent = |disturb: &str, fails: bool, says: &[&str]| {
        told(lab, "node1", disturb, "berth-agent check", fails, says)
    };
    agent(
        "",
        false,
        &["ok       controller: it answers, and knows this host", "ok       cgroups: version 2"],
    )?;
    told(
        lab,
        "controller",
        "",
        "berth-controller check",
        false,
        &["ok       ports: a controller runs here"],
    )?;

    step("check: one thing after the other is missing");
    let mut faults = Vec::new();
    let hidden = |path: &str| format!("mount -t tmpfs none {path}");
    let masked =
        |program: &str| format!("mount --bind /dev/null \"$(readlink -f \"$(command -v {program})\")\"");
    for (disturb, fails, says) in [
        (hidden("/run/containerd"), true, ["WRONG    containerd: does not answer", "apt-get install containerd"]),
        (masked("runc"), true, ["WRONG    runc:", "apt-get install runc"]),
        (hidden("/usr/lib/cni"), true, ["WRONG    CNI: no ptp and no static", "containernetworking-plugins"]),
        (masked("nft"), true, ["WRONG    nftables:", "apt-get install nftables"]),
        (masked("mount.nfs"), false, ["warning  NFS client: there is no", "apt-get install nfs-common"]),
        (masked("berth-log-writer"), true, ["WRONG    log writer:", "put berth-log-writer beside"]),
        ("umount --lazy /sys/fs/cgroup".into(), true, ["WRONG    cgroups: none are mounted", "mount cgroup2"]),
        (hidden("/lib/modules"), false, ["warning  kernel: the kernel has no vxlan", "install its modules"]),
        (
            "mount --bind /var/lib/berth /var/lib/berth; mount -o remount,bind,ro /var/lib/berth".into(),
            true,
            ["WRONG    data-dir: /var/lib/berth is on a file system that is mounted read-only", "mount it"],
        ),
        (
            "rm -rf /tmp/etc; cp -r /etc/berth /tmp/etc; echo 'max-pod = 1' >>/tmp/etc/agent.toml; mount --bind /tmp/etc /etc/berth"
                .into(),
            true,
            ["WRONG    settings:", "unknown field `max-pod`"],
        ),
        (
            format!("{}; rm -rf /tmp/etc; mkdir /tmp/etc; cp /etc/berth/agent.toml /tmp/etc; mount --bind /tmp/etc /etc/berth", hidden("/var/lib/berth/pki")),
            true,
            ["WRONG    controller: this host has not joined, and its token cannot be read", "token create"],
        ),
    ] {
        faults.extend(agent(&disturb, fails, &says).err().map(|error| error.to_string()));
    }
    // What cannot be hidden from one process is done to the host for a moment.
    for (disturb, says, mend) in [
        (
            "systemctl kill -s STOP --kill-whom=main containerd",
            "containerd: does not answer on /run/containerd/containerd.sock: no answer within 5s",
            "systemctl kill -s CONT --kill-whom=main containerd",
        ),
        ("date -s '+1 hour'", "seconds ahead of the controller's", "date -s '-1 hour'"),
        (
            "systemctl stop berth-agent; ip link delete berth.vx 2>/dev/null || true
systemd-run -q --unit=other systemd-socket-activate --datagram -l 4789 cat
until grep -q :12B5 /proc/net/udp*; do sleep 0.2; done",
            "ports: taken: UDP 4789",
            "systemctl stop other; systemctl start berth-agent",
        ),
        (
            "nft add table ip other; nft add chain ip other f '{ type filter hook forward priority 0; policy drop; }'",
            "firewall: chain f of table ip other drops",
            "nft delete table ip other",
        ),
    ] {
        lab.on("node1", disturb)?;
        let told = lab.on("node1", "berth-agent check || true");
        lab.on("node1", mend)?;
        let told = told?;
        if !told.contains(says) {
            faults.push(format!("{disturb}: {says:?} is not said:\n{told}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    lab.node_is("node1", "True")?;

    step("check: a controller's machine");
    let controller =
        |disturb: &str, command: &str, says: &[&str]| told(lab, "controller", disturb, command, true, says);
    let disturb = "mount --bind /var/lib/berth-controller /var/lib/berth-controller
mount -o remount,bind,ro /var/lib/berth-controller";
    controller(disturb, "berth-controller check", &["WRONG    data-dir:", "mounted read-only"])?;
    controller(
        &hidden("/var/lib/berth-controller"),
        "berth-controller check",
        &["WRONG    ports: 0.0.0.0:6443", "ss -ltnp"],
    )?;
    controller("", "berth-controller check --pod-cidr 10.77.0.0/16", &["10.77.0.2 of eth0 would be mistaken"])
}

fn reloads(lab: &Lab) -> Result<()> {
    step("systemctl reload: what can be is taken over, the rest is named, nothing ends");
    let pids = || -> Result<Vec<String>> {
        UNITS
            .iter()
            .map(|(machine, unit, _)| lab.on(machine, &format!("systemctl show -p MainPID {unit}")))
            .collect()
    };
    let before = pids()?;
    let logged = |machine: &str, unit: &str, text: &str| {
        wait::until_true(&format!("{text:?} in the log of {unit}"), READY, || {
            Ok(lab.on(machine, &format!("journalctl --no-pager -u {unit} -n 30"))?.contains(text))
        })
    };
    let reload = |machine: &str, unit: &str, file: &str, line: &str| {
        lab.on(machine, &format!("cp /etc/berth/{file} /root/kept; sed -i '1i {line}' /etc/berth/{file}; systemctl reload {unit}"))
    };
    reload("node1", "berth-agent", "agent.toml", "max-pods = 7\\nnfs-mount-helper = \"/sbin/mount.nfs4\"")?;
    wait::until_true("the host to take seven pods", READY, || {
        Ok(lab.kubectl.field("node node1", ".status.capacity.pods")? == "7")
    })?;
    logged("node1", "berth-agent", "\"nfs-mount-helper\"")?;
    lab.on("node1", "cp /root/kept /etc/berth/agent.toml; systemctl reload berth-agent")?;
    reload("controller", "berth-controller", "controller.toml", "cluster-domain = \"other\"\\nlisten = 1")?;
    logged("controller", "berth-controller", "nothing was taken over")?;
    lab.on("controller", "cp /root/kept /etc/berth/controller.toml; systemctl reload berth-controller")?;
    ensure!(pids()? == before, "a daemon was started again");
    Ok(())
}

fn never_given_up(lab: &Lab) -> Result<()> {
    step("what keeps both from starting is told, and they start as soon as it is mended");
    for (machine, unit, _) in UNITS {
        let file = format!("/etc/berth/{}.toml", unit.trim_start_matches("berth-"));
        lab.on(
            machine,
            &format!(
                "cp {file} /root/kept; sed -i '1i nonsense = 1' {file}; systemctl restart {unit} || true"
            ),
        )?;
        // More often than a unit may fail that has no say in it.
        wait::until_true(&format!("{unit} to have been tried eight times"), READY, || {
            let log = lab.on(machine, &format!("journalctl --no-pager -u {unit} -n 200 --since -15min"))?;
            Ok(log.matches("unknown field `nonsense`").count() >= 8)
        })?;
        lab.on(machine, &format!("cp /root/kept {file}"))?;
        wait::until_true(&format!("{unit} to run"), READY, || {
            Ok(lab.on(machine, &format!("systemctl is-active {unit}")).is_ok())
        })?;
    }
    lab.node_is("node1", "True")
}

fn watchdogs(lab: &Lab) -> Result<()> {
    step("both daemons hang: systemd kills them and starts them again");
    let restarts =
        |machine: &str, unit: &str| lab.on(machine, &format!("systemctl show -p NRestarts {unit}"));
    let mut before = Vec::new();
    for (machine, unit, _) in UNITS {
        before.push(restarts(machine, unit)?);
        lab.on(machine, &format!("systemctl kill -s STOP --kill-whom=main {unit}"))?;
    }
    for ((machine, unit, _), before) in UNITS.iter().zip(before) {
        wait::until_true(&format!("{unit} to be started again"), READY, || {
            let active = lab.on(machine, &format!("systemctl is-active {unit}")).is_ok();
            Ok(active && restarts(machine, unit)? != before)
        })?;
        let log = lab.on(machine, &format!("journalctl --no-pager -u {unit} -n 50"))?;
        ensure!(log.contains("Watchdog timeout"), "why {unit} was started again:\n{log}");
    }
    lab.node_is("node1", "True")
}

fn needs_a_pod(lab: &Lab) -> Result<()> {
    step("a unit that needs a pod is there after a reboot; agent, containerd and network went in this order");
    let node = lab.machine("node1")?;
    node.run(
        "cat >/etc/systemd/system/needs.service <<'END'
[Unit]
After=berth-agent.service
[Service]
Type=oneshot
RemainAfterExit=yes
User=nobody
TimeoutStartSec=300
ExecStartPre=+/usr/bin/berth-agent wait-ready default/web-0 --timeout 280s
ExecStart=/usr/bin/getent hosts web-0.web.default.svc.cluster.local
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload; systemctl enable --now needs",
    )?;
    node.reboot()?;
    let active = || node.run("systemctl is-active needs");
    wait::until_true("the unit that needs a pod", READY, || Ok(active().is_ok()))
        .with_context(|| node.run("systemctl status --no-pager needs || true").unwrap_or_default())?;
    let log = node.run("journalctl --no-pager -b -1 -o cat _PID=1")?;
    let at = |text: &str| log.rfind(&format!("\n{text}")).with_context(|| format!("{text:?} in\n{log}"));
    let order = [
        at("Stopped berth-agent.service")?,
        at("Stopping containerd.service")?,
        at("Stopped target network.target")?,
    ];
    ensure!(order.is_sorted(), "{order:?} in\n{log}");

    step("a pod that does not come fails the unit in time, and says how it stands");
    lab.kubectl.run("scale sts web --replicas=0")?;
    lab.settled("web", 0)?;
    let failed = node.run("berth-agent wait-ready default/web-0 --timeout 3s 2>&1 || echo $?")?;
    ensure!(failed.contains("not within") && failed.trim_end().ends_with('1'), "{failed}");
    node.run("systemctl disable --now needs; rm /etc/systemd/system/needs.service; systemctl daemon-reload")
        .map(drop)
}

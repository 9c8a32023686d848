//! Volumes on a kernel NFS server: what a class asks for is there, and a server that does not answer holds up its own
//! pods and nobody else.

mod brought;

use std::time::Instant;

use super::*;
use crate::lab::install;

/// The page whose blocks of commands make a share with quotas.
const STORAGE: &str = include_str!("../../../../docs/storage.md");
/// On an emulated machine, a dead server beside it. (What waits for that server waits for ever.)
const FAST: Duration = Duration::from_secs(15);
/// Stays, and ends at once on TERM.
const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";
/// Two lines a second, of which each says how many there are on the volume.
const WRITE: &str =
    "trap 'exit 0' TERM; while :; do echo line >>/data/lines && wc -l </data/lines; sleep 0.5; done";

fn class(name: &str, share: &str, parameters: &str, rest: &str) -> String {
    format!(
        "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: {name}}}
provisioner: nfs.csi.k8s.io
parameters: {{server: nfs, share: {share}{parameters}}}
{rest}
"
    )
}

fn claim(name: &str, class: &str, size: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec: {{storageClassName: {class}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {size}}}}}}}
"
    )
}

/// A pod with a claim of its own name at /data.
fn pod(name: &str, class: &str, command: &str, spec: &str) -> String {
    format!(
        "{}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 5
{spec}
  containers:
  - name: main
    image: httpd
    imagePullPolicy: IfNotPresent
    command: [sh, -c, {command:?}]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {name}}}}}]
",
        claim(name, class, "10Mi")
    )
}

/// A set whose pods mount claims of their own (template, class), and these others, each at its name.
fn set(name: &str, replicas: usize, command: &str, templates: &[(&str, &str)], others: &[&str]) -> String {
    let mounts = templates.iter().map(|(name, _)| name).chain(others);
    let mounts: String = mounts.map(|name| format!("{{name: {name}, mountPath: /{name}}}, ")).collect();
    let volume = |name: &&str| format!("{{name: {name}, persistentVolumeClaim: {{claimName: {name}}}}}, ");
    let volumes: String = others.iter().map(volume).collect();
    let template = |(name, class): &(&str, &str)| {
        format!(
            "
  - metadata: {{name: {name}}}
    spec: {{storageClassName: {class}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}"
        )
    };
    let templates: String = templates.iter().map(template).collect();
    format!(
        "
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}}}
spec:
  serviceName: {name}
  replicas: {replicas}
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: main
        image: httpd
        imagePullPolicy: IfNotPresent
        command: [sh, -c, {command:?}]
        volumeMounts: [{mounts}]
      volumes: [{volumes}]
  volumeClaimTemplates:{templates}
"
    )
}

impl Lab {
    fn ready(&self, pod: &str) -> Result<()> {
        self.replaced(pod, "")
    }

    /// Waits for an event that says this.
    pub(super) fn told(&self, object: &str, reason: &str, text: &str) -> Result<()> {
        let field = format!("involvedObject.name={object},reason={reason}");
        let args = ["get", "events", "--field-selector", &field, "-o", "jsonpath={.items[*].message}"];
        wait::until_true(&format!("event {reason} {text:?} on {object}"), READY, || {
            Ok(self.kubectl.args(&args)?.contains(text))
        })
        .with_context(|| self.kubectl.run("get events").unwrap_or_default())
    }

    /// Waits until a command on the server succeeds.
    fn on_server(&self, what: &str, command: &str) -> Result<()> {
        wait::until_true(what, READY, || Ok(self.on("nfs", command).is_ok()))
            .with_context(|| self.on("nfs", "ls -lR /srv | tail -n 40").unwrap_or_default())
    }

    fn lines(&self, pod: &str) -> Result<u32> {
        Ok(self.exec(pod, "wc -l </data/lines")?.trim().parse()?)
    }

    /// Three of ten packets to the NFS server are lost: what is asked of it takes seconds.
    fn slow_nfs(&self, slow: bool) -> Result<()> {
        let script = match slow {
            true => {
                "nft add table inet slow; nft 'add chain inet slow in { type filter hook input priority 0; }'
                 nft add rule inet slow in tcp dport 2049 numgen random mod 10 '<' 3 drop"
            }
            false => "nft delete table inet slow",
        };
        self.on("nfs", script).map(drop)
    }

    /// Nothing gets through between the NFS server and its clients.
    fn cut_nfs(&self, off: bool) -> Result<()> {
        let script = match off {
            true => {
                "nft add table inet cut; nft 'add chain inet cut in { type filter hook input priority 0; }'
                 nft add rule inet cut in tcp dport 2049 drop"
            }
            false => "nft delete table inet cut",
        };
        self.on("nfs", script).map(drop)
    }
}

pub fn storage(lab: &Lab) -> Result<()> {
    lab.publish_web()?;
    step("NFS 3, 4.1 and 4.2, each with its mount options, in a directory that the class names");
    let versions = [("three", "3"), ("fourone", "4.1"), ("fourtwo", "4.2")];
    for (name, version) in versions {
        let sub_dir = ", subDir: 'team/${pvc.metadata.namespace}/${pvc.metadata.name}'";
        let options = format!("mountOptions: [nfsvers={version}, noatime]");
        lab.kubectl.apply(&class(name, "/srv/berth", sub_dir, &options))?;
        lab.kubectl.apply(&pod(name, name, STAY, ""))?;
    }
    for (name, version) in versions {
        lab.ready(name)?;
        lab.exec(name, &format!("echo {name} >/data/page"))?;
        lab.on_server("the page to be there", &format!("grep {name} /srv/berth/team/default/{name}/page"))?;
        let mount = lab.exec(name, "grep ' /data ' /proc/mounts")?;
        ensure!(mount.contains(&format!("vers={version}")) && mount.contains("noatime"), "{mount}");
    }
    print!("{}", lab.on("node1", "grep /run/berth/nfs /proc/mounts")?);

    let blocks = install::blocks(STORAGE)?;
    let commands = |step: &'static str| {
        let of_step = blocks.iter().filter(move |block| block.step == step);
        of_step.map(|block| block.commands.as_str()).collect::<Vec<_>>()
    };
    step("the group of the pod, the mode of the class; and what a server denies is said");
    // Debian's server goes by its own groups until it is told not to.
    lab.on("nfs", "rm -f /etc/nfs.conf.d/berth.conf; systemctl restart nfs-mountd; exportfs -f")?;
    let own = "  securityContext: {runAsUser: 1000, fsGroup: 2000}";
    lab.kubectl.apply(&class("modes", "/srv/berth", ", mountPermissions: '0750', subDir: modes", ""))?;
    // Whose first group it is may write there on every server, as databases do.
    let first = "  securityContext: {runAsUser: 999, runAsGroup: 999, fsGroup: 999}";
    lab.kubectl.apply(&class("first", "/srv/berth", ", subDir: first", ""))?;
    lab.kubectl.apply(&pod("first", "first", STAY, first))?;
    lab.ready("first")?;
    lab.exec("first", "echo 1 >/data/page")?;
    lab.kubectl.apply(&pod("grouped", "modes", STAY, own))?;
    lab.ready("grouped")?;
    lab.told("grouped", "VolumePermissions", "manage-gids=n")?;
    let told = lab.kubectl.run("get events --field-selector involvedObject.name=first")?;
    ensure!(!told.contains("VolumePermissions"), "{told}");
    for script in commands("Permissions") {
        lab.on("nfs", script)?;
    }
    // The server makes its clients wait before it serves them again.
    let written = || Ok(lab.exec("grouped", "echo 1 >/data/page").is_ok());
    wait::until_true("user 1000 to write by its group", READY, written)?;
    let owner = lab.on("nfs", "stat -c '%g %a' /srv/berth/modes; stat -c '%u %g' /srv/berth/modes/page")?;
    ensure!(owner == "2000 2770\n1000 2000\n", "{owner}");
    lab.on(
        "nfs",
        "mkdir -p /srv/squash && chmod 1777 /srv/squash
echo '/srv/squash 10.77.0.0/24(rw,root_squash,no_subtree_check)' >/etc/exports.d/squash.exports && exportfs -ra",
    )?;
    lab.kubectl.apply(&class("squash", "/srv/squash", "", ""))?;
    lab.kubectl.apply(&pod("squashed", "squash", STAY, "  securityContext: {fsGroup: 2000}"))?;
    lab.ready("squashed")?;
    lab.told("squashed", "VolumePermissions", "root_squash")?;

    step(
        "deleted claims: the directory goes, is archived, or stays, and nothing is followed out of the share",
    );
    for (name, on_delete) in [("removed", "delete"), ("archived", "archive"), ("retained", "retain")] {
        lab.kubectl.apply(&class(
            name,
            "/srv/berth",
            &format!(", subDir: {name}, onDelete: {on_delete}"),
            "",
        ))?;
        lab.kubectl.apply(&pod(name, name, STAY, ""))?;
    }
    for name in ["removed", "archived", "retained"] {
        lab.ready(name)?;
        lab.exec(name, "echo 1 >/data/page")?;
    }
    lab.on(
        "nfs",
        "mkdir -p /srv/elsewhere && touch /srv/elsewhere/precious && ln -s /srv/elsewhere /srv/berth/link",
    )?;
    lab.kubectl.apply(&class("link", "/srv/berth", ", subDir: link", ""))?;
    lab.kubectl.apply(&pod("link", "link", STAY, ""))?;
    lab.told("link", "FailedMount", "symbolic link")?;
    lab.kubectl.run("delete pod,pvc removed archived retained link --timeout=240s")?;
    lab.on_server("the first to be gone", "test ! -e /srv/berth/removed")?;
    lab.on_server("the second to be archived", "test -e /srv/berth/archived-archived/page")?;
    lab.on("nfs", "test -e /srv/berth/retained/page && test -e /srv/elsewhere/precious")?;

    step("docs/storage.md: a share with quotas");
    ensure!(commands("Sizes and quotas").len() == 2, "docs/storage.md has other commands");
    for script in commands("Sizes and quotas") {
        print!("{}", lab.on("nfs", script)?);
    }
    lab.on("nfs", "dd if=/dev/zero of=/srv/quota/default/data-db-0/before bs=1M count=20 status=none; sync")?;
    let sub_dir = ", subDir: '${pvc.metadata.namespace}/${pvc.metadata.name}'";
    lab.kubectl.apply(&class("limited", "/srv/quota", sub_dir, "reclaimPolicy: Retain"))?;
    lab.kubectl.apply(&pod("data-db-0", "limited", STAY, ""))?;
    lab.ready("data-db-0")?;
    let described = wait::until("describe to tell of the quota", READY, || {
        let text = lab.kubectl.run("describe pvc data-db-0")?;
        Ok(text.contains("size-enforced: true").then_some(text))
    })?;
    print!("{described}");
    ensure!(described.contains("berth.dev/limit: 100Mi"), "the limit is not told");
    let told =
        described.lines().find_map(|line| line.trim().strip_prefix("berth.dev/used: ")?.strip_suffix("Mi"));
    let told: u64 = told.context("what is used is not told")?.parse()?;
    // The file system may have set some more aside for a file that grew.
    ensure!((20..40).contains(&told), "{told} MiB are said to be used");
    let full = lab.exec("data-db-0", "dd if=/dev/zero of=/data/more bs=1M count=150 conv=fsync");
    ensure!(full.is_err(), "150 MiB were taken");
    let used: u64 = lab.on("nfs", "du -sm /srv/quota/default/data-db-0 | cut -f1")?.trim().parse()?;
    ensure!((20..=101).contains(&used), "{used} MiB are there");
    let plain = lab.kubectl.run("describe pvc grouped")?;
    ensure!(plain.contains("size-enforced: false") && !plain.contains("berth.dev/limit"), "{plain}");
    brought::unnamed(lab)?;
    lab.clear()?;
    brought::by_hand(lab)?;
    brought::moved(lab, &commands("Moving here"))?;
    lab.clear()?;
    lab.on("nfs", "rm -rf /srv/berth/*").map(drop)
}

pub fn dead_server(lab: &Lab) -> Result<()> {
    lab.web_set(1, 5)?;
    let options = "mountOptions: [nfsvers=4.2]";
    lab.kubectl.apply(
        &(class("nas", "/srv/berth", "", options) + &set("writer", 2, WRITE, &[("data", "nas")], &[])),
    )?;
    lab.settled("writer", 2)?;
    wait::until_true("lines to be written", READY, || {
        Ok(lab.lines("writer-0")? > 3 && lab.lines("writer-1")? > 3)
    })?;
    let writer = |path: &str| lab.kubectl.field("pod writer-0", path);
    let container = writer(".status.containerStatuses[0].containerID")?;
    step("all is well; how long it takes to ask");
    others_are_fast(lab)?;

    step("the NFS server is slow: the pods that use it go on, slowly, and the others as ever");
    let lines = lab.lines("writer-0")?;
    lab.slow_nfs(true)?;
    others_are_fast(lab)?;
    wait::until_true("writer-0 to write on", READY, || {
        Ok(lab.lines("writer-0").is_ok_and(|now| now > lines + 3))
    })?;
    others_are_fast(lab)?;
    lab.slow_nfs(false)?;

    step("the NFS server is cut off");
    lab.cut_nfs(true)?;
    for pod in ["writer-0", "writer-1"] {
        lab.told(pod, "NFSServerNotAnswering", "NFS server nfs has not answered since 20")?;
    }
    let line = lab.kubectl.run("get events --field-selector reason=NFSServerNotAnswering")?;
    print!("{line}");
    others_are_fast(lab)?;

    step("a pod beside them is deleted and comes back; one that needs the server says why it waits");
    let uid = lab.uid("web-0")?;
    lab.kubectl.apply(&pod("late", "nas", STAY, ""))?;
    lab.kubectl.run("delete pod web-0")?;
    lab.replaced("web-0", &uid)?;
    lab.told("late", "FailedMount", "NFS server nfs has not answered since")?;

    step("an agent that starts meanwhile takes up all pods, and serves the others as ever");
    let id = ".status.containerStatuses[0].containerID";
    let lives =
        || ["web-0", "writer-0", "writer-1"].map(|pod| lab.kubectl.field(&format!("pod {pod}"), id).ok());
    let before = lives();
    lab.on("node1", "systemctl restart berth-agent")?;
    wait::until_true("exec in web-0", READY, || Ok(lab.exec("web-0", "true").is_ok()))?;
    others_are_fast(lab)?;
    ensure!(lives() == before, "pods were restarted: {before:?} {:?}", lives());

    step("a pod on the dead server is deleted, then by force: its name is not given away");
    let (old, before) = (lab.uid("writer-1")?, lab.kubectl.run("logs writer-1 --tail=1")?);
    lab.kubectl.run("delete pod writer-1 --wait=false")?;
    lab.told("writer-1", "FailedUnMount", "NFS server nfs has not answered since")?;
    ensure!(lab.uid("writer-1")? == old, "writer-1 is still ending");
    lab.kubectl.run("delete pod writer-1 --force --grace-period=0 --wait=false")?;
    lab.told("writer-1", "FailedScheduling", "still held by an earlier pod")?;
    others_are_fast(lab)?;

    step("nothing spins");
    let spent = "systemctl show -p CPUUsageNSec --value berth-agent";
    let node = lab.machine("node1")?;
    let cpu = || -> Result<u64> { Ok(node.run(spent)?.trim().parse()?) };
    let (at, since) = (cpu()?, Instant::now());
    std::thread::sleep(Duration::from_secs(30));
    let share = (cpu()? - at) as f64 / since.elapsed().as_nanos() as f64;
    let children: u32 = node.run("pgrep -fc '[v]olume-worker' || true")?.trim().parse()?;
    println!(
        "the agent and its children: {:.1} % of an emulated processor, {children} children",
        share * 100.0
    );
    ensure!(share < 0.25 && children <= 8, "something spins");

    step("the server is back: everything goes on by itself");
    lab.cut_nfs(false)?;
    lab.told("writer-0", "NFSServerAnswering", "NFS server nfs answers again")?;
    lab.ready("late")?;
    lab.replaced("writer-1", &old)?;
    let acknowledged: u32 = before.trim().parse()?;
    ensure!(lab.lines("writer-1")? >= acknowledged, "writer-1 had {acknowledged} lines");
    let lines = lab.lines("writer-0")?;
    wait::until_true("writer-0 to write on", READY, || Ok(lab.lines("writer-0")? > lines))?;
    ensure!(writer(".status.containerStatuses[0].containerID")? == container, "writer-0 was restarted");

    step("the directory is replaced on the server: the container starts anew on the new one");
    let volume = lab.kubectl.field("pvc data-writer-0", ".spec.volumeName")?;
    lab.on("nfs", &format!("cd /srv/berth && rm -r {volume} && mkdir -m 777 {volume}"))?;
    lab.told("writer-0", "VolumeLost", "stale file handle")?;
    let restarts = || writer(".status.containerStatuses[0].restartCount");
    wait::until_true("writer-0 to be restarted", READY, || Ok(restarts()? == "1"))?;
    lab.on_server("it to write there", &format!("test -s /srv/berth/{volume}/lines"))?;
    ensure!(
        lab.kubectl.field("pod writer-1", ".status.containerStatuses[0].restartCount")? == "0",
        "only it"
    );
    lab.clear()
}

/// What has nothing to do with the server: commands in pods, logs (of its pods too), statuses.
fn others_are_fast(lab: &Lab) -> Result<()> {
    let mut slow = Vec::new();
    for command in [
        "exec web-0 -- cat /data/started",
        "logs web-0 --tail=1",
        "logs writer-0 --tail=1",
        "get pods -o wide",
        "describe pod writer-0",
        "describe node node1",
    ] {
        let begun = Instant::now();
        lab.kubectl.run(command)?;
        let took = begun.elapsed();
        println!("{took:6.2?}  kubectl {command}");
        if took > FAST {
            slow.push(command);
        }
    }
    ensure!(slow.is_empty(), "slow: {slow:?}");
    Ok(())
}

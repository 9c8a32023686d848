//! The main job on real machines.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::*;
use crate::tools;

const CLASS: &str = include_str!("../../../../examples/httpd-class.yaml");
const ROLES: &str = include_str!("../../../../examples/httpd-rbac.yaml");
const SET: &str = include_str!("../../../../examples/httpd.yaml");
const NAME: &str = "statefulset-test";

pub fn smoke(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    step("the provisioner bdqn is the share /srv/berth of the NFS server");
    lab.publish_web()?;
    lab.on(
        "controller",
        "grep -q bdqn /etc/berth/controller.toml || cat >>/etc/berth/controller.toml <<END
[[provisioner]]
name = \"bdqn\"
server = \"nfs\"
share = \"/srv/berth\"
END
systemctl restart berth-controller",
    )?;

    step("three web servers, as in the tutorials");
    for manifest in [ROLES, CLASS, SET] {
        lab.kubectl.apply(manifest)?;
    }
    lab.settled(NAME, 3)?;
    print!("{}", lab.kubectl.run("get pods,pvc -o wide")?);

    step("each writes a page, which lies on the server in the pod's own directory");
    for n in 0..3 {
        lab.exec(&format!("{NAME}-{n}"), &format!("echo page {n} >/mnt/index.html"))?;
        is_on_server(lab, n, &format!("page {n}"))?;
    }
    print!("{}", lab.on("nfs", "ls -l /srv/berth")?);

    step("the pods are slices of systemd, with their containers' scopes in them");
    let pods = lab.on("node1", "systemctl list-units --plain --no-legend 'berth-pod*.slice' | wc -l")?;
    let scopes =
        lab.on("node1", "ls -d /sys/fs/cgroup/berth.slice/berth-pod*.slice/berth-*.scope | wc -l")?;
    ensure!((pods.trim(), scopes.trim()) == ("5", "5"), "{pods} {scopes}");

    step("the host finds them by name");
    lab.on("node1", &format!("getent hosts {NAME}-0.headless-svc.default.svc.cluster.local"))?;

    step("a deleted pod comes back with its page, a database with its numbers");
    let deleted = [format!("{NAME}-1"), "redis-0".to_owned()];
    let uids = [lab.uid(&deleted[0])?, lab.uid(&deleted[1])?];
    lab.kubectl.run(&format!("delete pod {}", deleted.join(" ")))?;
    for (pod, uid) in deleted.iter().zip(&uids) {
        lab.replaced(pod, uid)?;
    }
    has_page(lab, 1, "page 1")?;
    ledger.goes_on()?;

    step("the NFS server restarts");
    let before = lab.lives()?;
    lab.on("nfs", "systemctl restart nfs-server")?;
    for n in 0..3 {
        has_page(lab, n, &format!("page {n}"))?;
        lab.exec(&format!("{NAME}-{n}"), &format!("echo again {n} >/mnt/index.html"))?;
        is_on_server(lab, n, &format!("again {n}"))?;
    }
    ledger.goes_on()?;
    unharmed(lab, "a restart of the NFS server", &before)?;
    ledger.verdict()?;
    lab.clear()
}

/// Needs the test program, which is built here, with the features of the whole workspace.
pub fn volumes(lab: &Lab) -> Result<()> {
    step("the tests are built");
    let build = ["test", "--workspace", "--locked", "--test", "volumes", "--no-run", "--message-format=json"];
    let built = Command::new("cargo").args(build).stderr(Stdio::inherit()).output()?;
    ensure!(built.status.success(), "cargo {build:?} failed");
    let program = String::from_utf8(built.stdout)?.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "volumes").then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    let stripped = lab.dir.join("run/volumes");
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(program.context("cargo names no program")?);
    tools::output(strip)?;

    step("node1 is an NFS server for itself");
    let node = lab.machine("node1")?;
    node.copy(&stripped, "/root")?;
    node.run(
        "mkdir -p /srv/nfs /srv/squash /etc/exports.d
echo '/srv/nfs *(rw,no_root_squash,no_subtree_check)' >/etc/exports.d/volumes.exports
echo '/srv/squash *(rw,root_squash,no_subtree_check)' >>/etc/exports.d/volumes.exports
systemctl start nfs-server rpc-statd && exportfs -ra",
    )?;
    step("the tests");
    let run =
        "chmod +x volumes && BERTH_AGENT=/usr/bin/berth-agent ./volumes --ignored --test-threads=1 2>&1";
    print!("{}", node.run_within(run, Duration::from_secs(1500))?);
    node.run("systemctl stop nfs-server; rm /etc/exports.d/volumes.exports volumes").map(drop)
}

fn has_page(lab: &Lab, n: usize, page: &str) -> Result<()> {
    let read = lab.exec(&format!("{NAME}-{n}"), "cat /mnt/index.html")?;
    ensure!(read.trim() == page, "{NAME}-{n} has {read:?} in place of {page:?}");
    Ok(())
}

/// Under the name `<namespace>-<claim>-<volume>`.
fn is_on_server(lab: &Lab, n: usize, page: &str) -> Result<()> {
    let claim = format!("test-{NAME}-{n}");
    let volume = lab.kubectl.field(&format!("pvc {claim}"), ".spec.volumeName")?;
    let read = lab.on("nfs", &format!("cat /srv/berth/default-{claim}-{volume}/index.html"))?;
    ensure!(read.trim() == page, "on the server: {read:?} in place of {page:?}");
    Ok(())
}

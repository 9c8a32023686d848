//! Volumes that no class of this cluster has made: by hand, and brought from another cluster.

use super::*;

/// Of the examples: the classes of nfs-subdir-external-provisioner's manifests.
const CLASSES: &str = include_str!("../../../../../examples/classes.yaml");

fn volume(name: &str, size: &str, mode: &str, directory: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}, labels: {{disk: {name}}}}}
spec:
  capacity: {{storage: {size}}}
  accessModes: [{mode}]
  mountOptions: [nfsvers=4.2]
  nfs: {{server: nfs, path: /srv/berth/hand/{directory}}}
"
    )
}

fn wish(name: &str, size: &str, mode: &str, more: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  storageClassName: ''
  accessModes: [{mode}]
  resources: {{requests: {{storage: {size}}}}}
{more}
"
    )
}

impl Lab {
    fn phase(&self, object: &str, phase: &str) -> Result<()> {
        wait::until_true(&format!("{object} to be {phase}"), READY, || {
            Ok(self.kubectl.field(object, ".status.phase").is_ok_and(|now| now == phase))
        })
        .with_context(|| self.kubectl.run("get pv,pvc").unwrap_or_default())
    }

    /// Which volume a claim has got.
    fn volume_of(&self, claim: &str) -> Result<String> {
        self.phase(&format!("pvc {claim}"), "Bound")?;
        self.kubectl.field(&format!("pvc {claim}"), ".spec.volumeName")
    }
}

/// Ways to name a class that are older than `storageClassName`, or none at all.
pub fn unnamed(lab: &Lab) -> Result<()> {
    step("a claim that names its class in the annotation of old, and one that names none");
    let default = "storageclass.kubernetes.io/is-default-class";
    let of = |claim: &str| -> Result<String> {
        let volume = lab.volume_of(claim)?;
        lab.kubectl.field(&format!("pv {volume}"), ".spec.storageClassName")
    };
    let plain = |name: &str, annotations: &str| {
        format!(
            "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
"
        )
    };
    lab.kubectl.apply(&plain("annotated", "volume.beta.kubernetes.io/storage-class: fourone"))?;
    ensure!(of("annotated")? == "fourone", "annotated");
    lab.kubectl.run(&format!("annotate storageclass fourtwo {default}=true"))?;
    lab.kubectl.apply(&plain("unnamed", ""))?;
    ensure!(of("unnamed")? == "fourtwo", "the youngest default class is not taken");
    lab.kubectl.run(&format!("annotate storageclass fourtwo {default}-")).map(drop)
}

pub fn by_hand(lab: &Lab) -> Result<()> {
    step("volumes made by hand: by name, label, size and access mode; a claim made before its set");
    lab.on("nfs", "cd /srv/berth && mkdir -p hand/small hand/big hand/named && chmod 777 hand/*")?;
    let volumes = [
        volume("tiny", "1Mi", "ReadWriteMany", "none"),
        volume("small", "1Gi", "ReadWriteMany", "small"),
        volume("big", "10Gi", "ReadWriteMany", "big"),
        volume("read", "1Gi", "ReadOnlyMany", "small"),
    ];
    lab.kubectl.apply(&wish("data-early-0", "1Gi", "ReadWriteOnce", "  volumeName: named"))?;
    lab.kubectl.apply(&volumes.concat())?;
    for name in ["tiny", "small", "big", "read"] {
        lab.phase(&format!("pv {name}"), "Available")?;
    }
    let label = "  selector: {matchLabels: {disk: big}}";
    lab.kubectl.apply(&wish("by-size", "500Mi", "ReadWriteMany", ""))?;
    lab.kubectl.apply(&wish("by-label", "1Mi", "ReadWriteMany", label))?;
    lab.kubectl.apply(&wish("by-mode", "1Mi", "ReadOnlyMany", ""))?;
    ensure!(lab.kubectl.field("pvc data-early-0", ".status.phase")? == "Pending", "its volume is not there");
    lab.kubectl.apply(&volume("named", "5Gi", "ReadWriteOnce", "named"))?;
    for (claim, expected) in
        [("by-size", "small"), ("by-label", "big"), ("by-mode", "read"), ("data-early-0", "named")]
    {
        let got = lab.volume_of(claim)?;
        ensure!(got == expected, "{claim} has {got} in place of {expected}");
    }
    // The set's own class would give it another one.
    lab.kubectl.apply(&set("early", 1, STAY, &[("data", "local")], &["by-size", "by-label", "by-mode"]))?;
    lab.settled("early", 1)?;
    lab.exec("early-0", "echo early >/data/page; echo small >/by-size/page; echo big >/by-label/page")?;
    let pages = lab.on("nfs", "cd /srv/berth/hand && cat named/page small/page big/page")?;
    ensure!(pages == "early\nsmall\nbig\n", "{pages}");
    ensure!(lab.exec("early-0", "cat /by-mode/page")? == "small\n", "one directory, two volumes");
    let denied = lab.exec("early-0", "echo no >/by-mode/page");
    let denied = denied.err().context("a claim that is only to read was written to")?;
    ensure!(format!("{denied:#}").contains("Read-only file system"), "{denied:#}");
    lab.kubectl.run("delete statefulset,pod,pvc --all --timeout=240s")?;
    lab.phase("pv small", "Released")?;
    lab.on("nfs", "test -s /srv/berth/hand/small/page")?;
    lab.kubectl.run("delete pv --all --timeout=60s").map(drop)
}

/// This cluster is the other one first. `commands`: of docs/storage.md, for the old cluster and for the new one.
pub fn moved(lab: &Lab, commands: &[&str]) -> Result<()> {
    let [old, new] = commands else { anyhow::bail!("docs/storage.md has other commands: {commands:?}") };
    step("docs/storage.md: a set is moved here with its volumes, of both provisioners");
    lab.on(
        "controller",
        "rm -f volumes.yaml; grep -q '^name = .*nfs-subdir' /etc/berth/controller.toml || cat >>/etc/berth/controller.toml <<END
[[provisioner]]
name = \"k8s-sigs.io/nfs-subdir-external-provisioner\"
server = \"nfs\"
share = \"/srv/berth\"
END
systemctl reload berth-controller",
    )?;
    lab.kubectl.apply(CLASSES)?;
    lab.kubectl.apply(&class("nfs-csi", "/srv/berth", ", onDelete: delete", ""))?;
    let set = set("moved", 1, STAY, &[("old", "nfs-client"), ("new", "nfs-csi")], &[]);
    lab.kubectl.apply(&set)?;
    lab.settled("moved", 1)?;
    lab.exec("moved-0", "echo old >/old/page; echo new >/new/page")?;
    print!("{}", lab.on("controller", old)?);
    lab.kubectl.run("delete statefulset,pod,pvc --all --timeout=240s")?;
    lab.kubectl.run("delete pv --all --timeout=60s")?;
    let directories = || lab.on("nfs", "ls /srv/berth");
    let before = directories()?;
    // What only this cluster writes on a volume.
    lab.on("controller", "sed -i '/berth.dev/d' volumes.yaml")?;
    print!("{}", lab.on("controller", new)?);
    lab.kubectl.apply(&set)?;
    lab.settled("moved", 1)?;
    let pages = lab.exec("moved-0", "cat /old/page /new/page")?;
    ensure!(pages == "old\nnew\n", "{pages}");
    ensure!(directories()? == before, "directories were made:\n{before}{}", directories()?);

    step("and they end as their classes say");
    let delete = r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#;
    let (old, new) = (lab.volume_of("old-moved-0")?, lab.volume_of("new-moved-0")?);
    for volume in [&old, &new] {
        lab.kubectl.args(&["patch", "pv", volume, "-p", delete])?;
    }
    lab.kubectl.run("delete statefulset,pod,pvc --all --timeout=240s")?;
    let archived = format!("grep old /srv/berth/archived-default-old-moved-0-{old}/page");
    lab.on_server("the provisioner's to be archived", &archived)?;
    lab.on_server("the driver's to be removed", &format!("test ! -e /srv/berth/{new}"))?;
    lab.kubectl.run("delete storageclass nfs-csi nfs-client managed-nfs-storage").map(drop)
}

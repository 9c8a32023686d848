//! What the lab tries. Each scenario starts on a lab whose cluster is empty and whose machines are well, whatever
//! became of the one before, and has as many hosts as it asks for.

mod basic;
mod failures;
mod hosts;
mod moves;
mod operate;
mod storage;
mod units;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::ledger::Ledger;
use super::{Lab, Machine, Size, step};
use crate::wait;

/// One scenario.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    /// The least it needs.
    pub size: Size,
    pub run: fn(&Lab) -> Result<()>,
}

const fn scenario(
    name: &'static str,
    size: Size,
    what: &'static str,
    run: fn(&Lab) -> Result<()>,
) -> Scenario {
    Scenario { name, what, size, run }
}

/// All there are.
#[rustfmt::skip]
pub const ALL: &[Scenario] = &[
    scenario("smoke", Size::SMALL, "a set's pages lie on the server under their names, and outlive pod and server", basic::smoke),
    scenario("volumes", Size::SMALL, "the agent's tests of its NFS volumes, against a kernel's server", basic::volumes),
    scenario("restarts", Size::SMALL, "agent, containerd and controller stopped, killed: no pod notices", hosts::restarts),
    scenario("packages", Size::SMALL, "upgrade, remove and purge: pods run on, and nothing stays but data", hosts::packages),
    scenario("units", Size::SMALL, "sandboxes, watchdogs, reloads, units that need a pod, and what check says of a host that lacks something", units::units),
    scenario("operate", Size::PAIR, "docs/operate.md, each of its commands, while databases are written to", operate::operate),
    scenario("reboot", Size::SMALL, "a host is shut down: its pods end in their order and grace, and come back", hosts::reboot),
    scenario("drain", Size::PAIR, "databases move to another host, and back, with their data", moves::drain),
    scenario("cut-off", Size::PAIR, "a host is cut off: its pods start nowhere else before it is back", moves::cut_off),
    scenario("nfs-server", Size::APART, "the NFS server is rebooted, cut off for three minutes, full", failures::nfs_server),
    scenario("controller-disk-full", Size::APART, "writes are refused, pods run on, and all is well with room again", failures::disk_full),
    scenario("power-cut", Size::APART, "the controller's plug is pulled under writes: what it acknowledged is there", failures::power_cut),
    scenario("clock", Size::SMALL, "clocks are an hour off, ahead and behind, on a host and on the controller", failures::clock),
    scenario("storage", Size::SMALL, "classes on kernel NFS: versions, names, owners, quotas, and what becomes of a deleted claim's directory", storage::storage),
    scenario("dead-server", Size::SMALL, "the NFS server is cut off and comes back, a directory is replaced: only its own pods are affected", storage::dead_server),
];

/// A pod on an emulated machine, its image already there or in the lab's registry.
const READY: Duration = Duration::from_secs(300);

/// What scenarios may have left on a machine when they failed half-way.
const LEFT: &str = "/full /full2 /srv/small/full";

impl Lab {
    /// All machines run, are connected and agree on the time; the hosts that the scenario does not ask for take no
    /// pods; the cluster is empty.
    pub fn begin(&self, scenario: &Scenario) -> Result<()> {
        for machine in &self.machines {
            machine.cable(true)?;
            if !machine.running() {
                machine.power_on()?;
            }
        }
        self.each(&self.machines, |machine| {
            machine.booted()?;
            machine.set_clock()?;
            machine.run(&format!("rm -rf {LEFT}")).map(drop)
        })?;
        for (n, node) in self.nodes().iter().enumerate() {
            let name = node.kind.name;
            self.node_is(name, "True")?;
            let takes_pods = if n < scenario.size.nodes { "uncordon" } else { "cordon" };
            self.kubectl.run(&format!("{takes_pods} {name}"))?;
        }
        self.clear()
    }

    /// Waits until a set has this many pods, all Ready.
    fn settled(&self, set: &str, replicas: usize) -> Result<()> {
        wait::until_true(&format!("{set}: {replicas} Ready"), READY, || {
            let template = "jsonpath={.status.observedGeneration} {.metadata.generation} {.status.replicas} {.status.readyReplicas}";
            // The controller may be away for a while.
            let Ok(text) = self.kubectl.args(&["get", "sts", set, "-o", template]) else { return Ok(false) };
            let numbers: Vec<usize> = text.split(' ').map(|n| n.parse().unwrap_or(0)).collect();
            Ok(numbers[0] == numbers[1] && numbers[2] == replicas && numbers[3] == replicas)
        })
        .with_context(|| self.kubectl.run("get pods,events").unwrap_or_default())
    }

    /// Waits until a pod is Ready whose uid is not this one.
    fn replaced(&self, pod: &str, uid: &str) -> Result<()> {
        wait::until_true(&format!("a new {pod} to be Ready"), READY, || {
            let path = "jsonpath={.metadata.uid} {.status.conditions[?(@.type==\"Ready\")].status}";
            let Ok(text) = self.kubectl.args(&["get", "pod", pod, "-o", path]) else { return Ok(false) };
            Ok(text.split_once(' ').is_some_and(|(new, ready)| new != uid && ready == "True"))
        })
        .with_context(|| self.kubectl.run(&format!("describe pod {pod}")).unwrap_or_default())
    }

    /// The machine a pod is bound to.
    fn host_of(&self, pod: &str) -> Result<&Machine> {
        self.machine(&self.kubectl.field(&format!("pod {pod}"), ".spec.nodeName")?)
    }

    /// Waits until the API says this of a host: its condition Ready.
    fn node_is(&self, node: &str, ready: &str) -> Result<()> {
        wait::until_true(&format!("{node} to be Ready={ready}"), READY, || {
            let path = ".status.conditions[?(@.type==\"Ready\")].status";
            Ok(self.kubectl.field(&format!("node {node}"), path).is_ok_and(|said| said == ready))
        })
    }

    fn uid(&self, pod: &str) -> Result<String> {
        self.kubectl.field(&format!("pod {pod}"), ".metadata.uid")
    }

    /// `sh -c` in a pod's container.
    pub(super) fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl.args(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Container ids and restarts of all pods: the same again if nothing was restarted.
    fn lives(&self) -> Result<String> {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID} \
                    {.status.containerStatuses[*].restartCount}\n{end}";
        self.kubectl.args(&["get", "pods", "-o", path])
    }

    /// Removes everything of the namespace `default` that scenarios make, and their classes.
    fn clear(&self) -> Result<()> {
        self.clear_kinds("statefulsets,pods,pvc", "--timeout=240s")?;
        self.clear_kinds("services,configmaps,pdb,pv,storageclasses", "--wait=false")
    }

    fn clear_kinds(&self, kinds: &str, flags: &str) -> Result<()> {
        /// Those of Berth itself.
        const KEPT: [&str; 3] =
            ["service/kubernetes", "configmap/kube-root-ca.crt", "storageclass.storage.k8s.io/local"];
        let there = self.kubectl.run(&format!("get {kinds} -o name"))?;
        let names: Vec<&str> = there.lines().filter(|name| !KEPT.contains(name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        self.kubectl.run(&format!("delete {} --ignore-not-found {flags}", names.join(" "))).map(drop)
    }

    /// A set of web servers that write to class `local` and need no registry afterwards.
    fn web_set(&self, replicas: usize, grace: u32) -> Result<()> {
        self.publish_web()?;
        self.kubectl.apply(&format!(
            "
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: None, selector: {{app: web}}, ports: [{{port: 80}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  replicas: {replicas}
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: {grace}
      containers:
      - name: web
        image: httpd
        imagePullPolicy: IfNotPresent
        # Its end is written to its volume, a while after it was asked for.
        command:
        - sh
        - -c
        - |
          now() {{ cut -d' ' -f1 /proc/uptime; }}
          trap 'sleep 2; now >>/data/ended; exit 0' TERM
          now >>/data/started
          while :; do sleep 0.2; done
        volumeMounts: [{{name: data, mountPath: /data}}]
        resources: {{limits: {{memory: 64Mi, cpu: 500m}}, requests: {{cpu: 100m}}}}
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
"
        ))?;
        self.settled("web", replicas)
    }
}

/// That nothing was restarted while `what` happened.
fn unharmed(lab: &Lab, what: &str, before: &str) -> Result<()> {
    let after = lab.lives()?;
    ensure!(after == before, "{what}: pods were restarted\nbefore:\n{before}after:\n{after}");
    Ok(())
}

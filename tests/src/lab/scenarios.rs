//! What the lab tries. Each scenario starts on a lab whose cluster is empty, and leaves it empty.

mod basic;
mod hosts;
mod storage;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Lab, Size, step};
use crate::wait;

/// One scenario.
pub struct Scenario {
    pub name: &'static str,
    pub what: &'static str,
    /// The least it needs.
    pub size: Size,
    pub run: fn(&Lab) -> Result<()>,
}

const fn small(name: &'static str, what: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, what, size: Size::Small, run }
}

/// All there are.
pub const ALL: &[Scenario] = &[
    small(
        "smoke",
        "a set's pages lie on the server under their names, and outlive pod and server",
        basic::smoke,
    ),
    small("restarts", "agent, containerd and controller stopped, killed: no pod notices", hosts::restarts),
    small("packages", "upgrade, remove and purge: pods run on, and nothing stays but data", hosts::packages),
    small(
        "reboot",
        "a host is shut down: its pods end in their order and grace, and come back",
        hosts::reboot,
    ),
    small(
        "storage",
        "classes on kernel NFS: versions, names, owners, quotas, and what becomes of a deleted claim's directory",
        storage::storage,
    ),
    small(
        "dead-server",
        "the NFS server is cut off and comes back, a directory is replaced: only its own pods are affected",
        storage::dead_server,
    ),
];

/// A pod on an emulated machine, its image already there or in the lab's registry.
const READY: Duration = Duration::from_secs(300);

impl Lab {
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

    fn uid(&self, pod: &str) -> Result<String> {
        self.kubectl.field(&format!("pod {pod}"), ".metadata.uid")
    }

    /// `sh -c` in a pod's container.
    fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl.args(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Container ids and restarts of all pods: the same again if nothing was restarted.
    fn lives(&self) -> Result<String> {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID} \
                    {.status.containerStatuses[*].restartCount}\n{end}";
        self.kubectl.args(&["get", "pods", "-o", path])
    }

    /// Removes everything of the namespace `default` that scenarios make.
    fn clear(&self) -> Result<()> {
        self.kubectl.run("delete statefulsets,pods,pvc --all --wait=true --timeout=240s")?;
        self.kubectl.run("delete pv --all --wait=false")?;
        let services = self.kubectl.run("get services -o name")?;
        for service in services.lines().filter(|name| *name != "service/kubernetes") {
            self.kubectl.run(&format!("delete {service}"))?;
        }
        Ok(())
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
        resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
"
        ))?;
        self.settled("web", replicas)
    }

    fn publish_web(&self) -> Result<()> {
        let archives = crate::image::web(&self.images()?)?;
        let httpd = archives.iter().find(|path| path.ends_with("web-httpd.tar"));
        self.publish(httpd.context("the image httpd")?, &["docker.io/library/httpd:latest"])
    }
}

/// That nothing was restarted while `what` happened.
fn unharmed(lab: &Lab, what: &str, before: &str) -> Result<()> {
    let after = lab.lives()?;
    ensure!(after == before, "{what}: pods were restarted\nbefore:\n{before}after:\n{after}");
    Ok(())
}

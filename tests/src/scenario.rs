//! What end-to-end tests say again and again, in one place.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::{self, Cluster};
use crate::host::Host;
use crate::{image, wait};

/// How long anything that should happen may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

impl Cluster {
    /// Waits until a pod is Ready.
    pub fn ready(&self, pod: &str) -> Result<()> {
        wait::until_true(&format!("pod {pod} Ready"), SOON, || {
            let path = ".status.conditions[?(@.type==\"Ready\")].status";
            Ok(self.kubectl.field(&format!("pod {pod}"), path).is_ok_and(|s| s == "True"))
        })
        .with_context(|| self.kubectl.run(&format!("describe pod {pod}")).unwrap_or_default())
    }

    /// Waits until a set has this many pods, all Ready, and none besides.
    pub fn settled(&self, set: &str, replicas: usize) -> Result<()> {
        wait::until_true(&format!("{set}: {replicas} Ready"), SOON, || {
            let path = "{.status.observedGeneration} {.metadata.generation} {.status.replicas} {.status.readyReplicas}";
            let template = format!("jsonpath={path}");
            let text = self.kubectl.args(&["get", "sts", set, "-o", &template])?;
            let numbers: Vec<usize> = text.split(' ').map(|n| n.parse().unwrap_or(0)).collect();
            Ok(numbers[0] == numbers[1] && numbers[2] == replicas && numbers[3] == replicas)
        })
    }

    /// Waits until an object is gone.
    pub fn gone(&self, object: &str) -> Result<()> {
        wait::until_true(&format!("{object} gone"), SOON, || {
            let args: Vec<&str> = ["get"].into_iter().chain(object.split_whitespace()).collect();
            let out = self.kubectl.output(&args, None)?;
            if !out.ok && !out.stderr.contains("NotFound") {
                bail!("{}", out.stderr);
            }
            Ok(!out.ok)
        })
    }

    /// Waits until a field has a value.
    pub fn becomes(&self, object: &str, path: &str, value: &str) -> Result<()> {
        let mut last = String::new();
        wait::until_true(&format!("{object} {path} = {value}"), SOON, || {
            last = self.kubectl.field(object, path).unwrap_or_else(|e| e.to_string());
            Ok(last == value)
        })
        .with_context(|| format!("it was {last:?}"))
    }

    /// Waits for an event on an object whose message contains a text.
    pub fn event(&self, object: &str, reason: &str, text: &str) -> Result<()> {
        wait::until_true(&format!("event {reason} {text:?} on {object}"), SOON, || {
            let field = format!("involvedObject.name={object},reason={reason}");
            let out = self.kubectl.args(&[
                "get",
                "events",
                "--field-selector",
                &field,
                "-o",
                "jsonpath={.items[*].message}",
            ])?;
            Ok(out.contains(text))
        })
        .with_context(|| self.kubectl.run("get events").unwrap_or_default())
    }

    /// Runs a shell line in a pod.
    pub fn sh(&self, pod: &str, line: &str) -> Result<String> {
        Ok(self.kubectl.args(&["exec", pod, "--", "sh", "-c", line])?.trim_end().to_owned())
    }

    /// Waits until a shell line in a pod prints this and nothing else.
    pub fn prints(&self, pod: &str, line: &str, wanted: &str) -> Result<()> {
        let mut last = String::new();
        wait::until_true(&format!("{pod}: {line} prints {wanted:?}"), SOON, || {
            last = self.sh(pod, line).unwrap_or_else(|e| e.to_string());
            Ok(last == wanted)
        })
        .with_context(|| format!("it was {last:?}"))
    }

    /// The address of a pod.
    pub fn ip(&self, pod: &str) -> Result<String> {
        self.kubectl.field(&format!("pod {pod}"), ".status.podIP")
    }

    /// The host a pod is on.
    pub fn host_of(&self, pod: &str) -> Result<&Host> {
        self.host_named(&self.kubectl.field(&format!("pod {pod}"), ".spec.nodeName")?)
    }

    /// Has the images of `examples/` on every host, where a `latest` one is pulled from.
    pub fn offer_the_examples_images(&self) -> Result<()> {
        let images = cluster::images_dir()?;
        let redis = image::redis(&images)?;
        let web = image::web(&images)?;
        for host in &self.hosts {
            host.import(&redis)?;
            for archive in &web {
                host.import(archive)?;
            }
            // Their images are `latest`, which is pulled always: this registry is the host's mirror of docker.io.
            host.start_registry(false)?;
            for name in ["library/httpd:latest", "library/nginx:latest", "luksa/kubia-pet:latest"] {
                host.push(&format!("docker.io/{name}"), name)?;
            }
        }
        Ok(())
    }

    /// Applies files of `examples/`, unchanged, one after the other.
    pub fn apply_examples(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            self.kubectl.apply(&text).with_context(|| format!("examples/{name}"))?;
        }
        Ok(())
    }

    /// uid of an object.
    pub fn uid(&self, object: &str) -> Result<String> {
        self.kubectl.field(object, ".metadata.uid")
    }

    /// A process of a pod, as the machine numbers it.
    pub fn process_of(&self, pod: &str) -> Result<i32> {
        let container = self.container_id(pod)?;
        let id = container.rsplit('/').next().unwrap_or_default();
        self.host_of(pod)?.process_of(id)
    }

    /// The container of a pod as containerd knows it.
    pub fn container_id(&self, pod: &str) -> Result<String> {
        self.kubectl.field(&format!("pod {pod}"), ".status.containerStatuses[0].containerID")
    }
}

/// A set of busybox pods that end at once on TERM, with a claim each on the default class.
pub fn set(name: &str, replicas: usize, extra: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  serviceName: {name}
  selector: {{matchLabels: {{app: {name}}}}}
{extra}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: ["sh", "-c", "echo started $HOSTNAME; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"]
        volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {{requests: {{storage: 10Mi}}}}
"#
    )
}

/// A bare pod of busybox: `spec` is indented by two blanks, the rest of the container by four.
pub fn pod(name: &str, command: &str, container: &str, spec: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 5
{spec}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: ["sh", "-c", {command:?}]
{container}
"#
    )
}

/// A command that stays and ends at once on TERM.
pub const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

//! `make demo`: one host, end to end, before the user's eyes, on a cluster that stays for playing with.
//! `make demo-down` removes every trace.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use berth_tests::cluster::{self, Cluster};
use berth_tests::kubectl::{self, Kubectl};
use berth_tests::{image, tools, wait};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "One host, end to end, before your eyes")]
struct Args {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Starts a cluster of one host below target/demo and shows the main job; leaves it running.
    Up,
    /// Removes the cluster and all that belongs to it.
    Down,
}

/// What kubectl has been told must have reached a watch within this.
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = include_str!("../../../examples/redis.yaml");

fn main() -> Result<()> {
    let dir = tools::target_dir()?.join("demo");
    match Args::parse().command {
        Sub::Up => up(&dir),
        Sub::Down => {
            Cluster::remove(&dir)?;
            println!("The demo is gone.");
            Ok(())
        }
    }
}

fn up(dir: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes namespaces and containers: run it as root");
    }
    // A demo that was interrupted, or is still there, makes room for this one.
    Cluster::remove(dir)?;
    let mut demo = Demo { cluster: None, step: 0 };
    if let Err(error) = demo.run(dir) {
        let logs = demo.cluster.as_ref().map(Cluster::logs).unwrap_or_default();
        return Err(error.context(format!("{logs}\nthe demo failed (make demo-down removes it)")));
    }
    println!();
    println!("It all still runs. Go on with:");
    println!("  export KUBECONFIG={}", dir.join("controller/admin.kubeconfig").display());
    println!("  {} get all", tools::kubectl()?.display());
    println!("and end it with: make demo-down");
    Ok(())
}

/// `kubectl get pods -w`, which runs beside the steps and tells the order in which things happened.
struct Watch {
    child: Child,
    file: PathBuf,
}

impl Watch {
    fn start(kubectl: &Kubectl, file: &Path) -> Result<Watch> {
        let file = file.to_owned();
        let args = ["get", "pods", "-w", "--output-watch-events", "--no-headers"];
        let out = File::create(&file)?;
        let child = kubectl.command().args(args).stdin(Stdio::null()).stdout(out).spawn()?;
        let watch = Watch { child, file };
        wait::until_true("the pods that are there", PATIENCE, || Ok(!watch.said("ADDED").is_empty()))?;
        Ok(watch)
    }

    /// The pods of which this was said, in order.
    fn said(&self, event: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut lines = text.lines().map(words).collect::<Vec<_>>();
        lines.retain(|line| line.len() > 1 && line[0] == event);
        lines.into_iter().map(|mut line| line.swap_remove(1)).collect()
    }

    /// Shows that this happened to these pods, in this order and no other.
    fn pods(&self, event: &str, order: &[&str]) -> Result<()> {
        let wanted =
            |said: &[String]| said.ends_with(&order.iter().map(ToString::to_string).collect::<Vec<_>>());
        let seen = wait::until_true(event, PATIENCE, || Ok(wanted(&self.said(event))));
        println!("  {} in this order: {}", event.to_lowercase(), self.said(event).join(" "));
        seen.with_context(|| format!("the order should end with {order:?}"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It ends with the demo; one that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Demo {
    cluster: Option<Cluster>,
    step: usize,
}

impl Demo {
    fn run(&mut self, dir: &Path) -> Result<()> {
        self.title("A controller on loopback, and a host of namespaces with its own containerd and agent");
        let start = Instant::now();
        self.cluster = Some(Cluster::start(dir, &[("demo-host", 0)])?.keep());
        self.show("get nodes -o wide")?;
        took(start);

        self.title("The Redis image");
        let start = Instant::now();
        self.redis_image()?;
        took(start);

        self.title(
            "A StatefulSet of two, a Service, a claim per pod: redis-0 is Ready before redis-1 is made",
        );
        let file = dir.join("redis.yaml");
        std::fs::write(&file, MANIFEST)?;
        let start = Instant::now();
        self.show(&format!("apply -f {}", file.display()))?;
        self.show("rollout status statefulset/redis --timeout=300s")?;
        took(start);
        self.show("get pods,pvc -o wide")?;
        let ready = self
            .kubectl()?
            .field("pod redis-0", ".status.conditions[?(@.type==\"Ready\")].lastTransitionTime")?;
        let made = self.kubectl()?.field("pod redis-1", ".metadata.creationTimestamp")?;
        println!("  redis-0 was Ready at {ready}, redis-1 was made at {made}");

        self.title("Each pod has its lasting name");
        let start = Instant::now();
        for pod in ["redis-0", "redis-1"] {
            let name = self.show(&format!("exec {pod} -- hostname"))?;
            if name.trim() != pod {
                bail!("the host name of {pod} is {name}");
            }
        }
        took(start);

        self.title("A value is written; the pod is deleted; name, claim and value come back");
        let start = Instant::now();
        self.show("exec redis-0 -- redis-cli set ship berthed")?;
        let claim = ".spec.volumes[?(@.name==\"data\")].persistentVolumeClaim.claimName";
        let before = (
            self.kubectl()?.field("pod redis-0", ".metadata.uid")?,
            self.kubectl()?.field("pod redis-0", claim)?,
        );
        self.show("delete pod redis-0")?;
        let kubectl = self.kubectl()?.clone();
        wait::until_true("a new redis-0", Duration::from_secs(30), || {
            Ok(kubectl.run("get pod redis-0 -o jsonpath={.metadata.uid}").is_ok_and(|uid| uid != before.0))
        })?;
        self.show("wait --for=condition=Ready pod/redis-0 --timeout=300s")?;
        let value = self.show("exec redis-0 -- redis-cli get ship")?;
        took(start);
        let after = self.kubectl()?.field("pod redis-0", claim)?;
        if value.trim() != "berthed" || after != before.1 {
            bail!("the value is {value:?}, the claim {after} (before: {})", before.1);
        }

        self.title("A rolling update from the highest ordinal down, and back again; the value stays");
        let start = Instant::now();
        // The same content under a second name: what counts here is that the template changes.
        let host = self.cluster.as_ref().context("no cluster")?.host()?;
        host.ctr(&[
            "images",
            "tag",
            "--force",
            "docker.io/library/redis:7",
            "docker.io/library/redis:7-next",
        ])?;
        self.show("set image statefulset/redis redis=redis:7-next")?;
        self.show("rollout status statefulset/redis --timeout=300s")?;
        self.show("rollout history statefulset/redis")?;
        self.images("redis:7-next")?;
        self.show("rollout undo statefulset/redis")?;
        self.show("rollout status statefulset/redis --timeout=300s")?;
        self.images("redis:7")?;
        let value = self.show("exec redis-0 -- redis-cli get ship")?;
        took(start);
        if value.trim() != "berthed" {
            bail!("after the update the value is {value:?}");
        }

        self.title("Scaling up in order, down from the highest; claims stay");
        let seen = Watch::start(self.kubectl()?, &dir.join("watch"))?;
        let start = Instant::now();
        self.show("scale statefulset redis --replicas=4")?;
        self.show("rollout status statefulset/redis --timeout=300s")?;
        self.show("get pods")?;
        took(start);
        let start = Instant::now();
        self.show("scale statefulset redis --replicas=1")?;
        self.show("wait --for=delete pod/redis-1 pod/redis-2 pod/redis-3 --timeout=300s")?;
        self.show("get pods,pvc")?;
        took(start);
        seen.pods("ADDED", &["redis-2", "redis-3"])?;
        seen.pods("DELETED", &["redis-3", "redis-2", "redis-1"])?;
        let claims = self.kubectl()?.run("get pvc -o name")?;
        if claims.lines().count() != 4 {
            bail!("four claims should be left:\n{claims}");
        }
        Ok(())
    }

    /// Every pod of the set is made from this image.
    fn images(&self, wanted: &str) -> Result<()> {
        let args =
            "get pods -l app=redis -o custom-columns=POD:.metadata.name,IMAGE:.spec.containers[0].image";
        let pods = self.show(args)?;
        if pods.lines().skip(1).any(|line| line.split_whitespace().nth(1) != Some(wanted)) {
            bail!("not every pod has the image {wanted}");
        }
        Ok(())
    }

    /// Pulled if a registry answers, else made from the distribution's package.
    fn redis_image(&self) -> Result<()> {
        let cluster = self.cluster.as_ref().context("no cluster")?;
        let host = cluster.host()?;
        // From this side: the host's own network namespace reaches nothing but itself.
        let pull = Command::new(tools::find("ctr")?)
            .arg("-a")
            .arg(host.containerd_socket())
            .args(["-n", "berth", "--timeout", "20s", "images", "pull", "docker.io/library/redis:7"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if kubectl::finish(pull, "ctr images pull", Duration::from_secs(90)).is_ok_and(|done| done.ok) {
            println!("  pulled docker.io/library/redis:7");
            return Ok(());
        }
        println!("  no registry answers: made from the distribution's package redis-server, and imported");
        let archive: PathBuf = image::redis(&cluster::images_dir()?)?;
        host.import(&archive)
    }

    fn kubectl(&self) -> Result<&Kubectl> {
        Ok(&self.cluster.as_ref().context("no cluster")?.kubectl)
    }

    fn title(&mut self, text: &str) {
        self.step += 1;
        println!("\n== {}. {text}", self.step);
    }

    /// Prints the command and what it answers, as a person would see it; the answer.
    fn show(&self, args: &str) -> Result<String> {
        println!("$ kubectl {args}");
        let out = self.kubectl()?.run(args)?;
        for line in out.lines() {
            println!("  {line}");
        }
        std::io::stdout().flush()?;
        Ok(out)
    }
}

fn took(start: Instant) {
    println!("  ({:.2} s)", start.elapsed().as_secs_f64());
}

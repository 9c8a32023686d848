//! Driving the cluster as people do: with the stock kubectl, as a child process with a deadline.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A kubectl bound to one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    pub program: PathBuf,
    pub kubeconfig: PathBuf,
}

/// What a command answered.
#[derive(Clone, Debug)]
pub struct Output {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

const DEADLINE: Duration = Duration::from_secs(120);
/// What a command with a --timeout of its own gets on top of that.
const MARGIN: Duration = Duration::from_secs(60);

/// How long a command may take.
fn limit(args: &[&str]) -> Duration {
    let own = args.iter().find_map(|arg| arg.strip_prefix("--timeout=")?.strip_suffix('s')?.parse().ok());
    own.map_or(DEADLINE, |seconds| Duration::from_secs(seconds) + MARGIN)
}

impl Kubectl {
    /// The command, ready for arguments. HOME is the kubeconfig's directory, so that kubectl's caches end
    /// with the cluster.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig);
        if let Some(dir) = self.kubeconfig.parent() {
            command.env("HOME", dir).env("KUBECACHEDIR", dir.join("kube-cache"));
        }
        command
    }

    /// Runs `kubectl <args>`, split at blanks; the standard output if it succeeded.
    pub fn run(&self, args: &str) -> Result<String> {
        self.args(&args.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Kubectl::run`] with arguments as they are.
    pub fn args(&self, args: &[&str]) -> Result<String> {
        let flags = ["--wait", "--timeout", "--force", "--all", "-l"];
        if args.starts_with(&["delete", "pod"])
            && !args.iter().any(|arg| flags.iter().any(|f| arg.starts_with(f)))
        {
            return self.delete_pods(args);
        }
        let out = self.output(args, None)?;
        if !out.ok {
            bail!("kubectl {}: {}{}", args.join(" "), out.stderr.trim(), out.stdout.trim());
        }
        Ok(out.stdout)
    }

    /// From 1.32 on kubectl waits for a deletion in two steps, and a pod whose successor is there between the two it
    /// takes for the old one, for ever. Then a look at the pods decides.
    fn delete_pods(&self, args: &[&str]) -> Result<String> {
        let bounded: Vec<&str> = args.iter().copied().chain(["--timeout=45s"]).collect();
        let out = self.output(&bounded, None)?;
        if out.ok {
            return Ok(out.stdout);
        }
        let mut look: Vec<&str> = vec!["get", "--ignore-not-found", "-o", "jsonpath={..deletionTimestamp}"];
        look.extend(args.iter().skip(1).filter(|arg| !arg.starts_with("--grace-period")));
        let old = self.output(&look, None)?;
        if out.stderr.contains("timed out waiting") && old.ok && old.stdout.is_empty() {
            return Ok(out.stdout);
        }
        bail!("kubectl {}: {}{}", args.join(" "), out.stderr.trim(), out.stdout.trim());
    }

    /// `kubectl apply -f -` and the like.
    pub fn input(&self, args: &str, input: &str) -> Result<String> {
        let args: Vec<&str> = args.split_whitespace().collect();
        let out = self.output(&args, Some(input))?;
        if !out.ok {
            bail!("kubectl {}: {}", args.join(" "), out.stderr.trim());
        }
        Ok(out.stdout)
    }

    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.input("apply -f -", manifest)
    }

    /// One JSONPath of one object, "" if absent.
    pub fn field(&self, object: &str, path: &str) -> Result<String> {
        let template = format!("jsonpath={{{path}}}");
        let mut args: Vec<&str> = vec!["get"];
        args.extend(object.split_whitespace());
        args.extend(["-o", &template]);
        self.args(&args)
    }

    /// An object as JSON.
    pub fn json(&self, args: &str) -> Result<serde_json::Value> {
        let text = self.run(&format!("{args} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {args} -o json"))
    }

    /// Whatever the outcome; an error only if it did not run or did not end.
    pub fn output(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let mut child = self
            .command()
            .args(args)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", self.program.display()))?;
        if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).context("writing to kubectl")?;
        }
        finish(child, &args.join(" "), limit(args))
    }
}

/// Waits for a child with piped outputs, killing it at the deadline.
pub fn finish(mut child: Child, what: &str, limit: Duration) -> Result<Output> {
    let start = Instant::now();
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut pipe) = pipe {
                // A pipe that breaks has said all it will say.
                let _ = std::io::Read::read_to_end(&mut pipe, &mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let stdout = read(child.stdout.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>));
    let stderr = read(child.stderr.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!(
                "{what} did not end within {limit:?}; so far:\n{}{}",
                stdout.join().unwrap_or_default(),
                stderr.join().unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(Output {
        ok: status.success(),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

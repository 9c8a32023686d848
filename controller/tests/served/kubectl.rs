//! The real kubectl, as people type it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use berth_controller::api::Connect;
use tokio::process::Command;

use super::{PATIENCE, Served};

/// A set with a Service and claims, as people write them.
pub const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: nginx
spec:
  clusterIP: None
  selector:
    app: nginx
  ports:
  - port: 80
    name: web
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: web
spec:
  selector:
    matchLabels:
      app: nginx
  serviceName: nginx
  replicas: 3
  template:
    metadata:
      labels:
        app: nginx
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: nginx
        image: nginx
        ports:
        - containerPort: 80
          name: web
        volumeMounts:
        - name: www
          mountPath: /usr/share/nginx/html
  volumeClaimTemplates:
  - metadata:
      name: www
    spec:
      accessModes: [ "ReadWriteOnce" ]
      resources:
        requests:
          storage: 1Gi
"#;

/// $KUBECTL, the one that `tests/prepare` chose, or the first in PATH.
fn program() -> PathBuf {
    let chosen = || {
        let exe = std::env::current_exe().ok()?;
        // target/<profile>/deps/<test>
        Some(exe.ancestors().nth(3)?.join("tools/kubectl")).filter(|path| path.exists())
    };
    std::env::var_os("KUBECTL").map(PathBuf::from).or_else(chosen).unwrap_or_else(|| "kubectl".into())
}

/// The real kubectl and a server for it.
pub struct Kubectl {
    pub server: Served,
    web: PathBuf,
}

impl Kubectl {
    pub async fn start(connects: Vec<Connect>) -> Kubectl {
        Kubectl::of(super::start(connects).await)
    }

    pub fn of(server: Served) -> Kubectl {
        let web = server.directory().join("web.yaml");
        std::fs::write(&web, WEB).unwrap();
        Kubectl { server, web }
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        // Its cache of discovery must not outlive the server.
        command
            .env("KUBECONFIG", self.server.kubeconfig())
            .env("KUBECACHEDIR", self.server.directory().join("cache"))
            .env("HOME", self.server.directory())
            .args(words(line, &self.web))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, mut command: Command) -> (bool, String, String) {
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("kubectl ends").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    /// What a command prints; it must succeed.
    #[track_caller]
    pub fn ok<'a>(&'a self, line: &'a str) -> impl Future<Output = String> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let (success, out, err) = self.run(self.command(line)).await;
            assert!(success, "{caller}: kubectl {line}: {out}\n{err}");
            out
        }
    }

    /// The complaint of a command; it must fail.
    pub async fn fails(&self, line: &str) -> String {
        let (success, out, err) = self.run(self.command(line)).await;
        assert!(!success, "kubectl {line}: {out}");
        err
    }

    /// What a command prints, with the editor that it starts doing a sed script.
    pub async fn edited(&self, line: &str, script: &str) -> String {
        let mut command = self.command(line);
        command.env("EDITOR", format!("sed -i {script}"));
        let (success, out, err) = self.run(command).await;
        assert!(success, "kubectl {line}: {err}");
        out
    }
}

/// Splits at blanks outside of single quotes; `WEB` is the manifest.
fn words(line: &str, web: &Path) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    let web = web.display().to_string();
    words.into_iter().map(|w| if w == "WEB" { web.clone() } else { w }).collect()
}

pub fn lines(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

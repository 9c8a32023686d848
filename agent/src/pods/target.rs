//! What a command, a terminal or a reader of logs is led to: one container of one pod, looked at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use berth_agent_core::container;
use berth_agent_core::observed::find;
use berth_proto::PodRef;
use tokio::sync::watch;

use super::driver::{Instance, View};
use super::{Life, host};

/// What the agent must know of a pod to run something in one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecTarget {
    /// The container's id in containerd.
    pub container_id: String,
}

/// What it must know to attach to one.
#[derive(Clone, Debug)]
pub struct AttachTarget {
    /// The container's id in containerd.
    pub container_id: String,
    /// Where what it says is written.
    pub log: LogTarget,
    /// A FIFO, if it has stdin.
    pub stdin: Option<PathBuf>,
    /// The first who attaches to stdin closes it on leaving.
    pub stdin_once: bool,
    /// It has a terminal.
    pub tty: bool,
}

/// Where the log of a container's instance is.
#[derive(Clone, Debug)]
pub struct LogTarget {
    /// `<data-dir>/logs/<ns>_<name>_<uid>/<container>/<attempt>.log`
    pub path: PathBuf,
    /// Becomes true when the instance has ended (is true if it has): until then `follow` has something to
    /// wait for. See [`crate::logs::LogRequest::ended`].
    pub ended: watch::Receiver<bool>,
}

/// Why a container cannot be attached to; the text is for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// This host does not hold that pod (or holds another life of it).
    #[error("pod {0:?} is not on this node")]
    NoPod(String),
    /// The pod has no container of that name.
    #[error("container {container:?} not found in pod {pod:?}")]
    NoContainer { pod: String, container: String },
    /// It has never started (or not a second time, for a previous log), or does not run any more.
    #[error("container {container:?} in pod {pod:?} {why}")]
    NotThere { pod: String, container: String, why: String },
}

/// A container of a pod held here. It keeps the pod's view: what it answers is all of one moment.
pub struct Target<'a> {
    pod: &'a PodRef,
    name: String,
    view: MutexGuard<'a, View>,
}

impl<'a> Target<'a> {
    /// Without a name the first container is meant.
    pub fn find(
        pods: &'a BTreeMap<String, Life>,
        pod: &PodRef,
        container: &str,
    ) -> Result<Target<'a>, TargetError> {
        let life = pods.get(&pod.uid).ok_or_else(|| TargetError::NoPod(pod.name.clone()))?;
        let view = life.shared.view();
        let name = match container {
            "" => view.status.containers.first().map_or(String::new(), |status| status.name.clone()),
            given => given.to_owned(),
        };
        if !view.names.contains(&name) {
            return Err(TargetError::NoContainer { pod: pod.name.clone(), container: name });
        }
        Ok(Target { pod: &life.shared.pod, name, view })
    }

    pub fn exec(&self) -> Result<ExecTarget, TargetError> {
        let attempt = self.running()?.attempt;
        Ok(ExecTarget { container_id: container::id(&self.pod.uid, &self.name, attempt) })
    }

    pub fn attach(&self, data_dir: &Path) -> Result<AttachTarget, TargetError> {
        let instance = self.running()?;
        let spec = self.view.assignment.as_deref().and_then(|assignment| find(assignment, &self.name));
        let fifo = || host::stdin_path(data_dir, &self.pod.uid, &self.name, instance.attempt);
        Ok(AttachTarget {
            container_id: self.exec()?.container_id,
            log: self.log(data_dir, false)?,
            stdin: spec.filter(|spec| spec.stdin).map(|_| fifo()),
            stdin_once: spec.is_some_and(|spec| spec.stdin_once),
            tty: spec.is_some_and(|spec| spec.tty),
        })
    }

    pub fn log(&self, data_dir: &Path, previous: bool) -> Result<LogTarget, TargetError> {
        let instance =
            self.instance().ok_or_else(|| self.not_there("is waiting to start: ContainerCreating"))?;
        let (attempt, ended) = if previous {
            let before = instance.attempt.checked_sub(1);
            let before = before.ok_or_else(|| self.not_there("has no previous terminated instance"))?;
            (before, watch::channel(true).1)
        } else {
            (instance.attempt, instance.ended.subscribe())
        };
        Ok(LogTarget { path: host::log_path(data_dir, self.pod, &self.name, attempt), ended })
    }

    fn instance(&self) -> Option<&Instance> {
        self.view.instances.get(&self.name)
    }

    fn running(&self) -> Result<&Instance, TargetError> {
        let running = self.instance().filter(|instance| !*instance.ended.borrow());
        running.ok_or_else(|| self.not_there("is not running"))
    }

    fn not_there(&self, why: &str) -> TargetError {
        TargetError::NotThere {
            pod: self.pod.name.clone(),
            container: self.name.clone(),
            why: why.to_owned(),
        }
    }
}

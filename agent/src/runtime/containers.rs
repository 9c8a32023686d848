//! A container's life in containerd: made, started, waited for, signalled, removed.
//!
//! The record in containerd comes first and goes last, so that whatever happens in between, the container is found
//! again by its labels and everything it holds is reached through it.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetRequest, KillRequest, ListContainersRequest, ListTasksRequest, StartRequest,
    WaitRequest, WaitResponse, container,
};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use oci_spec::runtime::{Process, Spec};
use prost::Message as _;

use super::{
    ContainerInfo, ContainerSpec, Exit, LogTarget, Runtime, RuntimeError, Target, TaskState,
    client::{call, call_within, gone_is_fine},
    images::unpack::{prepare_snapshot, remove_snapshot},
    spec,
};

/// A shim that starts, or a runc that sets up a container, on a machine under load.
const SHIM: Duration = Duration::from_secs(120);
/// From SIGKILL to the end of a process that is not stuck in the kernel.
const KILLED: Duration = Duration::from_secs(30);
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const STOP_SIGNAL_LABEL: &str = "io.containerd.image.config.stop-signal";
/// What is known of processes is kept for this many containers at most.
const MAX_PROCESSES: usize = 1000;

/// The shim's options that matter here (containerd's `api/types/runc/options/oci.proto`).
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(bool, tag = "9")]
    systemd_cgroup: bool,
}

fn systemd_cgroups() -> prost_types::Any {
    let value = RuncOptions { systemd_cgroup: true }.encode_to_vec();
    prost_types::Any { type_url: "containerd.runc.v1.Options".into(), value }
}

impl Runtime {
    /// Makes the container up to the point where [`Runtime::start`] only has to let go of it: snapshot, record,
    /// shim, namespaces, mounts. May run at the same time as [`crate::network::Network::attach`]; namespaces and
    /// the pod's cgroup must be there. What a failed or interrupted attempt left is cleared first; a container that runs
    /// already is left alone.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let oci = spec::generate(spec, &self.inner.host)?;
        let encoded = serde_json::to_vec(&oci).map_err(|e| RuntimeError::Config(e.to_string()))?;
        let mut labels: HashMap<String, String> = spec.labels.clone().into_iter().collect();
        if !spec.image.config.stop_signal.is_empty() {
            labels.insert(STOP_SIGNAL_LABEL.into(), spec.image.config.stop_signal.clone());
        }
        let record = Container {
            id: spec.id.clone(),
            labels,
            image: spec.image.name.clone(),
            runtime: Some(container::Runtime {
                name: self.inner.config.shim.clone(),
                options: self.inner.config.systemd_cgroups.then(systemd_cgroups),
            }),
            spec: Some(prost_types::Any { type_url: SPEC_TYPE.into(), value: encoded }),
            snapshotter: self.inner.config.snapshotter.clone(),
            snapshot_key: spec.id.clone(),
            ..Container::default()
        };
        if let Err(error) = self.put_container(&record).await {
            if !matches!(error, RuntimeError::AlreadyExists(_)) {
                return Err(error);
            }
            if matches!(self.task_state(&spec.id).await?, TaskState::Running(_)) {
                return Ok(());
            }
            self.remove(&spec.id).await?;
            self.put_container(&record).await?;
        }
        let result = self.create_task(spec).await;
        match &result {
            Ok(()) => self.know_process(&spec.id, oci.process().clone().map(Arc::new)),
            Err(error) if error.is_away() => {}
            Err(_) => {
                if let Err(error) = self.remove(&spec.id).await {
                    tracing::debug!(container = spec.id, %error, "clearing a container that could not be made");
                }
            }
        }
        result
    }

    async fn put_container(&self, record: &Container) -> Result<(), RuntimeError> {
        let request = CreateContainerRequest { container: Some(record.clone()) };
        call("creating the container", self.inner.client.containers().create(request)).await?;
        Ok(())
    }

    async fn create_task(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let snapshotter = &self.inner.config.snapshotter;
        let rootfs =
            prepare_snapshot(&self.inner.client, snapshotter, &spec.id, &spec.image.chain_id).await?;
        let log = log_uri(&self.inner.config.log_writer, &spec.log, spec.terminal.is_some());
        let stdin = spec.terminal.as_ref().and_then(|terminal| terminal.stdin.as_ref());
        let request = CreateTaskRequest {
            container_id: spec.id.clone(),
            rootfs,
            stdin: stdin.map(|path| path.display().to_string()).unwrap_or_default(),
            stdout: log.clone(),
            // A terminal has one output.
            stderr: if spec.terminal.is_some() { String::new() } else { log },
            terminal: spec.terminal.is_some(),
            ..CreateTaskRequest::default()
        };
        call_within("creating the container", SHIM, self.inner.client.tasks().create(request)).await?;
        Ok(())
    }

    /// Starts a created container; answers its pid. Fine when it is started already.
    pub async fn start(&self, id: &str) -> Result<u32, RuntimeError> {
        let request = StartRequest { container_id: id.into(), exec_id: String::new() };
        match call_within("starting the container", SHIM, self.inner.client.tasks().start(request)).await {
            Ok(answer) => Ok(answer.pid),
            Err(error @ RuntimeError::Failed { .. }) => match self.task_state(id).await {
                Ok(TaskState::Running(pid)) => Ok(pid),
                _ => Err(error),
            },
            Err(other) => Err(other),
        }
    }

    /// Waits for the end of a container that was created. Sits through restarts of containerd. A container that
    /// has no task (any more) has ended: exit 255, unknown.
    pub async fn wait(&self, id: &str) -> Result<Exit, RuntimeError> {
        // A scope of systemd is gone with its last process: there the pod's kills are counted, before and after.
        let before = match self.inner.config.systemd_cgroups {
            true => self.oom_kills(id).await,
            false => 0,
        };
        let answer = self.wait_process(id, "").await?;
        let Some(answer) = answer else { return Ok(Exit::lost()) };
        let mut exit = Exit::from_wait(&answer);
        // Only a killed one can have been killed for want of memory, and nobody else pays for the look.
        exit.oom_killed = exit.code == 137 && self.oom_kills(id).await > before;
        Ok(exit)
    }

    async fn oom_kills(&self, id: &str) -> u64 {
        match self.cgroup_path(id).await {
            Ok(Some(path)) => crate::cgroup::oom_kills(&path).await,
            _ => 0,
        }
    }

    /// None: containerd does not know it (any more).
    pub(super) async fn wait_process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<Option<WaitResponse>, RuntimeError> {
        loop {
            let request = WaitRequest { container_id: id.into(), exec_id: exec_id.into() };
            // No deadline: this is the one call that is meant to hang.
            match self.inner.client.tasks().wait(request).await {
                Ok(answer) => return Ok(Some(answer.into_inner())),
                Err(status) => match RuntimeError::from_status("waiting for the container", status) {
                    RuntimeError::Away(_) => self.back_up().await,
                    RuntimeError::NotFound(_) => return Ok(None),
                    // The connection to the shim broke: either containerd is about to go, or the shim is dead.
                    error => match self.task_state(id).await {
                        Ok(TaskState::None) | Err(RuntimeError::NotFound(_)) => return Ok(None),
                        Err(RuntimeError::Away(_)) => self.back_up().await,
                        _ => {
                            tracing::warn!(container = id, %error, "waiting");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    },
                },
            }
        }
    }

    /// Sends a signal. Fine when it has ended or is not there.
    pub async fn kill(&self, id: &str, signal: i32, target: Target) -> Result<(), RuntimeError> {
        let request = KillRequest {
            container_id: id.into(),
            exec_id: String::new(),
            signal: signal.unsigned_abs(),
            all: target == Target::All,
        };
        gone_is_fine(
            call_within("signalling the container", SHIM, self.inner.client.tasks().kill(request)).await,
        )?;
        Ok(())
    }

    /// Sends the signal the image wants to be stopped with (SIGTERM unless it says otherwise).
    pub async fn terminate(&self, id: &str) -> Result<(), RuntimeError> {
        let record = match self.container(id).await {
            Ok(record) => record,
            Err(RuntimeError::NotFound(_)) => return Ok(()),
            Err(other) => return Err(other),
        };
        let written = record.labels.get(STOP_SIGNAL_LABEL).map(String::as_str).unwrap_or_default();
        let signal = parse_signal(written).unwrap_or_else(|| {
            if !written.is_empty() {
                tracing::warn!(
                    container = id,
                    signal = written,
                    "the image's stop signal is not known: SIGTERM"
                );
            }
            Signal::SIGTERM as i32
        });
        self.kill(id, signal, Target::Init).await
    }

    /// Removes the container: kills what runs in it, then deletes task, record and snapshot. Fine when some or all of it
    /// is gone.
    pub async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.delete_task(id).await?;
        // The snapshot before the record, which names it; in the other order a crash in between would leave it to
        // garbage collection.
        remove_snapshot(&self.inner.client, &self.inner.config.snapshotter, id).await?;
        let request = DeleteContainerRequest { id: id.into() };
        gone_is_fine(call("deleting the container", self.inner.client.containers().delete(request)).await)?;
        self.know_process(id, None);
        Ok(())
    }

    async fn delete_task(&self, id: &str) -> Result<(), RuntimeError> {
        let delete = || async {
            let request = DeleteTaskRequest { container_id: id.into() };
            call_within("deleting the task", SHIM, self.inner.client.tasks().delete(request)).await
        };
        // Usually it has ended, and this is one call.
        match delete().await {
            Ok(_) | Err(RuntimeError::NotFound(_)) => return Ok(()),
            Err(RuntimeError::Failed { .. }) => {}
            Err(other) => return Err(other),
        }
        self.kill(id, Signal::SIGKILL as i32, Target::All).await?;
        match tokio::time::timeout(KILLED, self.wait_process(id, "")).await {
            Ok(ended) => ended?,
            Err(_) => return Err(RuntimeError::Timeout(KILLED)),
        };
        gone_is_fine(delete().await)?;
        Ok(())
    }

    /// All our containers that carry these labels.
    pub async fn list(&self, labels: &[(&str, &str)]) -> Result<Vec<ContainerInfo>, RuntimeError> {
        let filters = if labels.is_empty() {
            Vec::new()
        } else {
            let parts: Vec<String> = labels
                .iter()
                .map(|(name, value)| format!("labels.{}=={}", quote(name), quote(value)))
                .collect();
            vec![parts.join(",")]
        };
        let mut containers = self.inner.client.containers();
        let mut tasks = self.inner.client.tasks();
        let (records, tasks) = tokio::join!(
            call("listing containers", containers.list(ListContainersRequest { filters })),
            call("listing tasks", tasks.list(ListTasksRequest::default())),
        );
        let states: HashMap<String, TaskState> =
            tasks?.tasks.into_iter().map(|task| (task.id.clone(), state(task.status, task.pid))).collect();
        let infos = records?.containers.into_iter().map(|record| {
            let state = states.get(&record.id).copied().unwrap_or(TaskState::None);
            info(record, state)
        });
        Ok(infos.collect())
    }

    /// One container; None when it is not there.
    pub async fn get(&self, id: &str) -> Result<Option<ContainerInfo>, RuntimeError> {
        let record = match self.container(id).await {
            Ok(record) => record,
            Err(RuntimeError::NotFound(_)) => return Ok(None),
            Err(other) => return Err(other),
        };
        let state = self.task_state(id).await?;
        Ok(Some(info(record, state)))
    }

    async fn container(&self, id: &str) -> Result<Container, RuntimeError> {
        let request = GetContainerRequest { id: id.into() };
        let answer = call("looking for the container", self.inner.client.containers().get(request)).await?;
        answer.container.ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    async fn task_state(&self, id: &str) -> Result<TaskState, RuntimeError> {
        let request = GetRequest { container_id: id.into(), exec_id: String::new() };
        match call("looking for the task", self.inner.client.tasks().get(request)).await {
            Ok(answer) => Ok(answer.process.map_or(TaskState::None, |p| state(p.status, p.pid))),
            Err(RuntimeError::NotFound(_)) => Ok(TaskState::None),
            Err(other) => Err(other),
        }
    }

    async fn oci_spec(&self, id: &str) -> Result<Spec, RuntimeError> {
        let encoded = self.container(id).await?.spec.unwrap_or_default().value;
        serde_json::from_slice(&encoded)
            .map_err(|e| RuntimeError::failed("reading the container's specification", e))
    }

    async fn cgroup_path(&self, id: &str) -> Result<Option<String>, RuntimeError> {
        let spec = self.oci_spec(id).await?;
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        Ok(path.map(|path| path.display().to_string()))
    }

    /// The container's process, as the base of others in it.
    pub(super) async fn process(&self, id: &str) -> Result<Arc<Process>, RuntimeError> {
        if let Some(known) = self.processes().get(id) {
            return Ok(known.clone());
        }
        let process = self.oci_spec(id).await?.process().clone().map(Arc::new);
        let process = process.ok_or_else(|| RuntimeError::failed("exec", "the container has no process"))?;
        self.know_process(id, Some(process.clone()));
        Ok(process)
    }

    fn know_process(&self, id: &str, process: Option<Arc<Process>>) {
        let mut known = self.processes();
        match process {
            None => {
                known.remove(id);
            }
            Some(process) => {
                if known.len() >= MAX_PROCESSES {
                    known.clear();
                }
                known.insert(id.to_owned(), process);
            }
        }
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.inner.processes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Exit {
    /// Nobody knows any more.
    pub(super) fn lost() -> Exit {
        Exit { code: 255, at: Timestamp::now(), oom_killed: false, unknown: true }
    }

    pub(super) fn from_wait(answer: &WaitResponse) -> Exit {
        let at = answer.exited_at.as_ref().and_then(timestamp);
        Exit {
            code: i32::try_from(answer.exit_status).unwrap_or(255),
            at: at.unwrap_or_else(Timestamp::now),
            oom_killed: false,
            unknown: at.is_none(),
        }
    }
}

/// Go's zero time, year 1, is "not set".
fn timestamp(at: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok().filter(|at| *at > Timestamp::UNIX_EPOCH)
}

fn info(record: Container, state: TaskState) -> ContainerInfo {
    ContainerInfo {
        id: record.id,
        labels: record.labels.into_iter().collect::<BTreeMap<_, _>>(),
        image: record.image,
        created_at: record.created_at.as_ref().and_then(timestamp).unwrap_or(Timestamp::UNIX_EPOCH),
        state,
    }
}

fn state(status: i32, pid: u32) -> TaskState {
    use containerd_client::types::v1::Status;
    match Status::try_from(status) {
        Ok(Status::Created) => TaskState::Created,
        Ok(Status::Running | Status::Paused | Status::Pausing) => TaskState::Running(pid),
        Ok(Status::Stopped) => TaskState::Stopped,
        _ => TaskState::None,
    }
}

/// A string in containerd's filter language.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The log writer with its one parameter: `<bytes>x<files>=<path>`, `<bytes>x<files>u=<path>` for what is not to wait for
/// the end of a line. One only, since containerd hands several over in random order.
fn log_uri(writer: &std::path::Path, log: &LogTarget, unbuffered: bool) -> String {
    let writer = percent(&writer.display().to_string(), true);
    let path = percent(&log.path.display().to_string(), false);
    let unbuffered = if unbuffered { "u" } else { "" };
    format!("binary://{writer}?{}x{}{unbuffered}={path}", log.max_size, log.max_files)
}

fn percent(text: &str, keep_slash: bool) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            b'/' if keep_slash => out.push('/'),
            // Writing to a String cannot fail.
            other => drop(write!(out, "%{other:02X}")),
        }
    }
    out
}

/// `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
fn parse_signal(written: &str) -> Option<i32> {
    if let Ok(number) = written.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = written.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let more = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&more).then_some(34 + more);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let less = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse().ok()? };
        return (0..=30).contains(&less).then_some(64 - less);
    }
    Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_understood_as_dockerfiles_write_them() {
        for (written, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("QUIT", 3),
            ("3", 3),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
        ] {
            assert_eq!(parse_signal(written), Some(number), "{written}");
        }
        for bad in ["", "SIGFOO", "0", "65", "-9", "RTMIN+99", "RTMINx"] {
            assert_eq!(parse_signal(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_log_writer_gets_exactly_one_parameter() {
        let log = LogTarget { path: "/var/log/a b&c=d?/1.log".into(), max_size: 10, max_files: 5 };
        let uri = |unbuffered| log_uri(std::path::Path::new("/usr/lib/berth log"), &log, unbuffered);
        assert_eq!(uri(false), "binary:///usr/lib/berth%20log?10x5=%2Fvar%2Flog%2Fa%20b%26c%3Dd%3F%2F1.log");
        assert_eq!(uri(true), "binary:///usr/lib/berth%20log?10x5u=%2Fvar%2Flog%2Fa%20b%26c%3Dd%3F%2F1.log");
    }

    #[test]
    fn filters_quote_what_could_end_them() {
        assert_eq!(quote(r#"a"b\c"#), r#""a\"b\\c""#);
    }
}

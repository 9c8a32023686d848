//! Processes run in a container beside its own. Their streams are FIFOs in a directory of their own that is gone
//! with the process.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest,
};
use nix::{errno::Errno, sys::signal::Signal, sys::stat::Mode, unistd::mkfifo};
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::watch};

use super::{
    CaptureLimits, Captured, ExecSpec, Exit, Runtime, RuntimeError,
    client::{call, call_within, gone_is_fine},
};

const WHAT: &str = "exec";
/// runc on a machine under load.
const START: Duration = Duration::from_secs(60);
/// After the end of a process, for what is still in its pipes; a child that holds them open is not waited for.
const DRAIN: Duration = Duration::from_secs(2);
/// From SIGKILL to the end.
const KILLED: Duration = Duration::from_secs(10);
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A process running in a container. Dropping it does not end the process; [`ProcessControl::kill`] does.
pub struct Exec {
    /// Write to it; then [`ProcessControl::close_stdin`] after dropping it.
    pub stdin: Option<pipe::Sender>,
    /// Ends when the process and all that inherited it have closed it.
    pub stdout: Option<pipe::Receiver>,
    /// None with a tty.
    pub stderr: Option<pipe::Receiver>,
    /// The rest.
    pub control: ProcessControl,
}

/// The handle on a process: an exec'ed one, or a container's own. Cheap to clone.
#[derive(Clone)]
pub struct ProcessControl {
    inner: Arc<Control>,
}

struct Control {
    runtime: Runtime,
    container: String,
    /// As containerd has it: empty for the container's own process.
    id: String,
    /// None for the container's own, which others wait for.
    exit: Option<watch::Receiver<Option<Exit>>>,
}

impl ProcessControl {
    /// How the process ended.
    pub async fn wait(&self) -> Result<Exit, RuntimeError> {
        let Some(mut exit) = self.inner.exit.clone() else {
            return self.inner.runtime.wait(&self.inner.container).await;
        };
        let ended = exit.wait_for(Option::is_some).await;
        Ok(ended.ok().and_then(|exit| *exit).unwrap_or_else(Exit::lost))
    }

    /// End of file for the process once it has read what was written. Drop the sender first.
    pub async fn close_stdin(&self) -> Result<(), RuntimeError> {
        let request = CloseIoRequest {
            container_id: self.inner.container.clone(),
            exec_id: self.inner.id.clone(),
            stdin: true,
        };
        gone_is_fine(call("closing stdin", self.inner.runtime.inner.client.tasks().close_io(request)).await)?;
        Ok(())
    }

    /// The size of its terminal.
    pub async fn resize(&self, width: u32, height: u32) -> Result<(), RuntimeError> {
        let request = ResizePtyRequest {
            container_id: self.inner.container.clone(),
            exec_id: self.inner.id.clone(),
            width,
            height,
        };
        gone_is_fine(
            call("resizing a terminal", self.inner.runtime.inner.client.tasks().resize_pty(request)).await,
        )?;
        Ok(())
    }

    /// A signal to the process; fine when it has ended.
    pub async fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        let request = KillRequest {
            container_id: self.inner.container.clone(),
            exec_id: self.inner.id.clone(),
            signal: signal.unsigned_abs(),
            all: false,
        };
        gone_is_fine(
            call("signalling a process", self.inner.runtime.inner.client.tasks().kill(request)).await,
        )?;
        Ok(())
    }
}

/// The FIFOs of one process. Dropping it removes them: whoever has them open is not disturbed.
struct Fifos {
    dir: PathBuf,
}

impl Fifos {
    fn new(parent: &Path, id: &str) -> Result<Fifos, RuntimeError> {
        let dir = parent.join(id);
        std::fs::create_dir(&dir)
            .map_err(|e| RuntimeError::failed(WHAT, format!("{}: {e}", dir.display())))?;
        Ok(Fifos { dir })
    }

    fn make(&self, name: &str) -> Result<PathBuf, RuntimeError> {
        let path = self.dir.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| RuntimeError::failed(WHAT, format!("{}: {e}", path.display())))?;
        Ok(path)
    }

    fn make_output(&self, name: &str) -> Result<(PathBuf, pipe::Receiver), RuntimeError> {
        let path = self.make(name)?;
        let receiver = pipe::OpenOptions::new()
            .open_receiver(&path)
            .map_err(|e| RuntimeError::failed(WHAT, format!("{}: {e}", path.display())))?;
        Ok((path, receiver))
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %error, "removing FIFOs");
        }
    }
}

impl Runtime {
    /// The container's own process: a way into its stdin, where it has one and still reads from it, and the handle.
    pub async fn attach(
        &self,
        id: &str,
        stdin: Option<&Path>,
    ) -> Result<(Option<pipe::Sender>, ProcessControl), RuntimeError> {
        let inner =
            Control { runtime: self.clone(), container: id.to_owned(), id: String::new(), exit: None };
        let control = ProcessControl { inner: Arc::new(inner) };
        let stdin = match stdin {
            Some(path) => open_stdin(path, &control).await?,
            None => None,
        };
        Ok((stdin, control))
    }

    /// Starts a process in a running container.
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec, RuntimeError> {
        let exec_id = exec_id();
        let fifos = Fifos::new(&self.inner.config.state_dir, &exec_id)?;
        let stdin = if spec.stdin { Some(fifos.make("stdin")?) } else { None };
        // The shim takes all or none of them, so what nobody asked for is made and emptied; a tty has but one.
        let any = spec.stdin || spec.stdout || spec.stderr || spec.tty;
        let stdout = if any { Some(fifos.make_output("stdout")?) } else { None };
        let stderr = if any && !spec.tty { Some(fifos.make_output("stderr")?) } else { None };
        let path_of =
            |output: &Option<(PathBuf, pipe::Receiver)>| output.as_ref().map(|(path, _)| path.clone());
        let paths = Paths { stdin: stdin.clone(), stdout: path_of(&stdout), stderr: path_of(&stderr) };
        let control = self.start_process(id, exec_id, &spec, paths).await?;
        let stdin = match &stdin {
            Some(path) => open_stdin(path, &control).await?,
            None => None,
        };
        // All that need them have them open.
        drop(fifos);
        let stdout = keep(stdout, spec.stdout || spec.tty);
        let stderr = keep(stderr, spec.stderr);
        Ok(Exec { stdin, stdout, stderr, control })
    }

    /// Runs a probe's or hook's command: no stdin, output kept up to a bound (and drained beyond it), killed at
    /// its deadline.
    pub async fn exec_captured(
        &self,
        id: &str,
        command: &[String],
        limits: CaptureLimits,
    ) -> Result<Captured, RuntimeError> {
        let exec_id = exec_id();
        let fifos = Fifos::new(&self.inner.config.state_dir, &exec_id)?;
        // One FIFO for both: the shim knows this case.
        let (path, mut output) = fifos.make_output("output")?;
        let spec = ExecSpec { command: command.to_vec(), ..ExecSpec::default() };
        let paths = Paths { stdin: None, stdout: Some(path.clone()), stderr: Some(path) };
        let control = self.start_process(id, exec_id, &spec, paths).await?;
        drop(fifos);
        // The command's own time, as with containerd's CRI: a busy host that takes a second to start it is not its fault.
        let deadline = tokio::time::Instant::now() + limits.timeout;
        let mut kept = Vec::new();
        let mut drained = false;
        let exit = loop {
            tokio::select! {
                exit = control.wait() => break Some(exit?),
                () = tokio::time::sleep_until(deadline) => break None,
                more = read_some(&mut output, &mut kept, limits.output), if !drained => drained = !more,
            }
        };
        if exit.is_none() {
            control.kill(Signal::SIGKILL as i32).await?;
            if tokio::time::timeout(KILLED, control.wait()).await.is_err() {
                tracing::warn!(container = id, "a process does not end after SIGKILL");
            }
        }
        if !drained {
            let drain = async { while read_some(&mut output, &mut kept, limits.output).await {} };
            let _ = tokio::time::timeout(DRAIN, drain).await;
        }
        Ok(Captured { exit_code: exit.map(|exit| exit.code), output: kept })
    }

    async fn start_process(
        &self,
        id: &str,
        exec_id: String,
        spec: &ExecSpec,
        paths: Paths,
    ) -> Result<ProcessControl, RuntimeError> {
        let mut process = (*self.process(id).await?).clone();
        process.set_args(Some(spec.command.clone()));
        process.set_terminal(Some(spec.tty));
        let mut env = process.env().clone().unwrap_or_default();
        let names_term = |line: &String| line.starts_with("TERM=");
        if spec.tty && !env.iter().any(names_term) && !spec.env.iter().any(|(name, _)| name == "TERM") {
            env.push("TERM=xterm".into());
        }
        env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
        process.set_env(Some(env));
        let value = serde_json::to_vec(&process).map_err(|e| RuntimeError::Config(e.to_string()))?;
        let text = |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
        let request = ExecProcessRequest {
            container_id: id.into(),
            stdin: text(paths.stdin),
            stdout: text(paths.stdout),
            stderr: text(paths.stderr),
            terminal: spec.tty,
            spec: Some(prost_types::Any { type_url: PROCESS_TYPE.into(), value }),
            exec_id: exec_id.clone(),
        };
        call_within(WHAT, START, self.inner.client.tasks().exec(request)).await?;
        let start = StartRequest { container_id: id.into(), exec_id: exec_id.clone() };
        if let Err(error) = call_within(WHAT, START, self.inner.client.tasks().start(start)).await {
            self.forget_process(id, &exec_id).await;
            return Err(error);
        }
        let (sender, exit) = watch::channel(None);
        // Also when nobody waits, so that containerd never keeps a process that has ended.
        let (runtime, container, waited) = (self.clone(), id.to_owned(), exec_id.clone());
        tokio::spawn(async move {
            let exit = match runtime.wait_process(&container, &waited).await {
                Ok(Some(answer)) => Exit::from_wait(&answer),
                Ok(None) | Err(_) => Exit::lost(),
            };
            sender.send_replace(Some(exit));
            runtime.forget_process(&container, &waited).await;
        });
        let inner =
            Control { runtime: self.clone(), container: id.to_owned(), id: exec_id, exit: Some(exit) };
        Ok(ProcessControl { inner: Arc::new(inner) })
    }

    async fn forget_process(&self, id: &str, exec_id: &str) {
        let request = DeleteProcessRequest { container_id: id.into(), exec_id: exec_id.into() };
        let deleted = call("forgetting a process", self.inner.client.tasks().delete_process(request)).await;
        if let Err(error) = gone_is_fine(deleted) {
            tracing::debug!(container = id, %error, "forgetting a process");
        }
    }
}

struct Paths {
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
}

fn exec_id() -> String {
    format!("exec-{}", uuid::Uuid::new_v4().simple())
}

/// For writing only, so that a process that closes its end is noticed; that takes a reader, which the shim is about to
/// be. None: it has ended before.
async fn open_stdin(path: &Path, control: &ProcessControl) -> Result<Option<pipe::Sender>, RuntimeError> {
    let mut pause = Duration::from_micros(200);
    for _ in 0..14 {
        match pipe::OpenOptions::new().open_sender(path) {
            Ok(sender) => return Ok(Some(sender)),
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
                if control.inner.exit.as_ref().is_some_and(|exit| exit.borrow().is_some()) {
                    return Ok(None);
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(RuntimeError::failed(WHAT, format!("{}: {error}", path.display()))),
        }
    }
    Ok(None)
}

/// The stream if it is wanted; otherwise what comes out of it is thrown away.
fn keep(output: Option<(PathBuf, pipe::Receiver)>, wanted: bool) -> Option<pipe::Receiver> {
    let (_, mut receiver) = output?;
    if wanted {
        return Some(receiver);
    }
    tokio::spawn(async move { while read_some(&mut receiver, &mut Vec::new(), 0).await {} });
    None
}

/// False at the end.
async fn read_some(output: &mut pipe::Receiver, kept: &mut Vec<u8>, limit: usize) -> bool {
    let mut buffer = [0u8; 4096];
    match output.read(&mut buffer).await {
        Ok(0) | Err(_) => false,
        Ok(n) => {
            let room = limit.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..n.min(room)]);
            true
        }
    }
}

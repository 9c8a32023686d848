//! Processes run in a container beside its own.

use std::sync::Arc;

use tokio::net::unix::pipe;

use super::{CaptureLimits, Captured, ExecSpec, Exit, Runtime, RuntimeError};

/// A process running in a container. Dropping it does not end the process; [`ExecControl::kill`] does.
pub struct Exec {
    /// Write to it; then [`ExecControl::close_stdin`] after dropping it.
    pub stdin: Option<pipe::Sender>,
    /// Ends when the process and all that inherited it have closed it.
    pub stdout: Option<pipe::Receiver>,
    /// None with a tty.
    pub stderr: Option<pipe::Receiver>,
    /// The rest.
    pub control: ExecControl,
}

/// The handle on an exec'ed process. Cheap to clone.
#[derive(Clone)]
pub struct ExecControl {
    #[allow(dead_code)]
    inner: Arc<()>,
}

impl ExecControl {
    /// The process's exit code. After it, the process is forgotten by containerd.
    pub async fn wait(&self) -> Result<Exit, RuntimeError> {
        Err(RuntimeError::failed("exec", "not there yet"))
    }

    /// End of file for the process once it has read what was written. Drop the sender first.
    pub async fn close_stdin(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// The size of its terminal.
    pub async fn resize(&self, _width: u32, _height: u32) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// A signal to the process; fine when it has ended.
    pub async fn kill(&self, _signal: i32) -> Result<(), RuntimeError> {
        Ok(())
    }
}

impl Runtime {
    /// Starts a process in a running container.
    pub async fn exec(&self, _id: &str, _spec: ExecSpec) -> Result<Exec, RuntimeError> {
        Err(RuntimeError::failed("exec", "not there yet"))
    }

    /// Runs a probe's or hook's command: no stdin, output kept up to a bound (and drained beyond it), killed at
    /// its deadline.
    pub async fn exec_captured(
        &self,
        _id: &str,
        _command: &[String],
        _limits: CaptureLimits,
    ) -> Result<Captured, RuntimeError> {
        Err(RuntimeError::failed("exec", "not there yet"))
    }
}

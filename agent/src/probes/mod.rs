//! Executing probes and lifecycle hooks: a command in the container, an HTTP request or a connection from the
//! host to the pod's address. What answers amount to is decided by `berth_agent_core::probe`.
//!
//! It must never outlast its deadline, nor keep more of an answer than a message needs.

mod http;

use std::time::Duration;

use berth_agent_core::Probed;
use berth_agent_core::time::words;
use berth_proto::Handler;
use berth_proto::handler::{Handler as Kind, HttpGet, TcpSocket};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::runtime::{CaptureLimits, Runtime};

/// What of a command's output goes into a message, as the kubelet's.
const OUTPUT: usize = 10 << 10;

/// The container a probe or hook is for.
pub struct Subject<'a> {
    pub runtime: &'a Runtime,
    /// In containerd.
    pub container_id: &'a str,
    /// The pod's first address; empty if it has none.
    pub ip: &'a str,
}

/// Makes one probe, within `limit`.
pub async fn probe(subject: &Subject<'_>, handler: &Handler, limit: Duration) -> Probed {
    match &handler.handler {
        Some(Kind::Exec(exec)) => {
            let limits = CaptureLimits { timeout: limit, output: OUTPUT };
            // The command has its own deadline; this one is for a containerd that does not answer.
            let run = subject.runtime.exec_captured(subject.container_id, &exec.command, limits);
            match timeout(limit + Duration::from_secs(10), run).await {
                Err(_) => Probed::Error("containerd does not answer".to_owned()),
                Ok(Err(error)) => Probed::Error(error.to_string()),
                Ok(Ok(captured)) => match captured.exit_code {
                    Some(0) => Probed::Success,
                    Some(_) => Probed::Failure(String::from_utf8_lossy(&captured.output).into_owned()),
                    None => Probed::Failure(format!(
                        "command timed out: {:?} timed out after {}",
                        exec.command.join(" "),
                        words(limit)
                    )),
                },
            }
        }
        Some(Kind::HttpGet(get)) => match http::get(get, subject.ip, limit).await {
            Ok(status) if (200..400).contains(&status) => Probed::Success,
            Ok(status) => Probed::Failure(format!("HTTP probe failed with statuscode: {status}")),
            Err(error) => Probed::Failure(error),
        },
        Some(Kind::TcpSocket(socket)) => match connect(socket, subject.ip, limit).await {
            Ok(()) => Probed::Success,
            Err(error) => Probed::Failure(error),
        },
        Some(Kind::Sleep(_)) | None => Probed::Error("the probe names nothing to do".to_owned()),
    }
}

/// Runs a postStart or preStop hook, within `limit`.
pub async fn hook(subject: &Subject<'_>, handler: &Handler, limit: Duration) -> Result<(), String> {
    match &handler.handler {
        Some(Kind::Exec(exec)) => {
            let limits = CaptureLimits { timeout: limit, output: OUTPUT };
            let run = subject.runtime.exec_captured(subject.container_id, &exec.command, limits);
            let command = exec.command.join(" ");
            match timeout(limit + Duration::from_secs(10), run).await {
                Err(_) => Err("containerd does not answer".to_owned()),
                Ok(Err(error)) => Err(error.to_string()),
                Ok(Ok(captured)) => match captured.exit_code {
                    Some(0) => Ok(()),
                    Some(code) => {
                        let output = String::from_utf8_lossy(&captured.output);
                        Err(format!("command '{command}' exited with {code}: {}", output.trim()))
                    }
                    None => Err(format!("command '{command}' timed out after {}", words(limit))),
                },
            }
        }
        // Any answer will do, as for the kubelet.
        Some(Kind::HttpGet(get)) => http::get(get, subject.ip, limit).await.map(|_| ()),
        Some(Kind::TcpSocket(socket)) => connect(socket, subject.ip, limit).await,
        Some(Kind::Sleep(sleep)) => {
            let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
            tokio::time::sleep(wanted.min(limit)).await;
            Ok(())
        }
        None => Err("the hook names nothing to do".to_owned()),
    }
}

async fn connect(socket: &TcpSocket, ip: &str, limit: Duration) -> Result<(), String> {
    let host = if socket.host.is_empty() { ip } else { &socket.host };
    dial(host, socket.port, limit).await.map(|_| ())
}

/// A connection, or why not in the words the kubelet uses.
async fn dial(host: &str, port: u32, limit: Duration) -> Result<TcpStream, String> {
    let port = u16::try_from(port).map_err(|_| format!("{port} is not a port"))?;
    if host.is_empty() {
        return Err("the pod has no address yet".to_owned());
    }
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {shown}: connect: {}", plain(&error))),
        Err(_) => Err(format!("dial tcp {shown}: i/o timeout")),
    }
}

/// The system's words without the number behind them.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

/// The URL of a request, for messages.
fn url(get: &HttpGet, ip: &str) -> String {
    let host = if get.host.is_empty() { ip } else { &get.host };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let slash = if get.path.starts_with('/') { "" } else { "/" };
    format!("{}://{host}:{}{slash}{}", get.scheme().to_lowercase(), get.port, get.path)
}

trait Scheme {
    fn scheme(&self) -> &str;
    fn is_https(&self) -> bool;
}

impl Scheme for HttpGet {
    fn scheme(&self) -> &str {
        if self.scheme.is_empty() { "HTTP" } else { &self.scheme }
    }

    fn is_https(&self) -> bool {
        self.scheme.eq_ignore_ascii_case("HTTPS")
    }
}

//! Interactive streams: logs, commands and what attaches to a container, dialled back to the controller on its request.
//!
//! Each has a connection of its own, so that a reader who is slow holds up nothing but itself. A stream ends
//! with whichever of its ends goes first, and takes its command with it.

use std::time::Duration;

use berth_proto::node_client::NodeClient;
use berth_proto::stream_down::Message as Down;
use berth_proto::stream_request::Request;
use berth_proto::stream_up::Message as Up;
use berth_proto::{
    AttachRequest, ExecRequest, LogRequest, PodRef, StreamDown, StreamEnd, StreamRequest, StreamUp,
};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::join::words;
use crate::logs::{self, LogReader};
use crate::pods::TargetError;
use crate::runtime::{Exec, ExecSpec, ProcessControl};
use crate::session::Session;

const DIAL: Duration = Duration::from_secs(10);
/// Chunks on their way.
const CHUNKS: usize = 4;
const CHUNK: usize = 32 << 10;
/// Output that something the command has left behind still holds open is waited for so long.
const DRAIN: Duration = Duration::from_secs(1);
/// Between asking a command to end and making it.
const HANG_UP: Duration = Duration::from_secs(2);
/// The controller's last word after ours.
const GOOD_BYE: Duration = Duration::from_secs(10);

/// The way up; closed when the controller has gone.
type UpSender = mpsc::Sender<StreamUp>;

/// Serves one request to its end.
pub async fn serve(session: &Session, request: StreamRequest) {
    let StreamRequest { stream_id, pod, container, request } = request;
    let (Some(pod), Some(request)) = (pod, request) else { return };
    let (up, messages) = mpsc::channel(CHUNKS);
    let _ = up.try_send(StreamUp { message: Some(Up::Open(stream_id)) });
    let down = match dial(session, messages).await {
        Ok(down) => down,
        Err(reason) => {
            tracing::warn!(pod = %pod.name, reason, "a stream could not be opened");
            return;
        }
    };
    match request {
        Request::Log(request) => Box::pin(log(session, &pod, &container, &request, up, down)).await,
        Request::Exec(request) => Box::pin(exec(session, &pod, &container, request, up, down)).await,
        Request::Attach(request) => Box::pin(attach(session, &pod, &container, request, up, down)).await,
    }
}

async fn dial(
    session: &Session,
    messages: mpsc::Receiver<StreamUp>,
) -> Result<Streaming<StreamDown>, String> {
    let dialling = async {
        let endpoint = session.credentials.endpoint(&session.controller).map_err(|e| words(&e))?;
        let channel = endpoint.connect().await.map_err(|e| words(&e))?;
        let mut client = NodeClient::new(channel);
        let opened = client.stream(ReceiverStream::new(messages)).await;
        opened.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    tokio::time::timeout(DIAL, dialling).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

/// Says how it ended, and waits until that has arrived: a connection that is dropped earlier may take the
/// last bytes with it.
async fn end(up: UpSender, mut down: Streaming<StreamDown>, end: StreamEnd) {
    let heard = async move {
        if up.send(StreamUp { message: Some(Up::End(end)) }).await.is_ok() {
            // The request's end; the answer's is waited for.
            drop(up);
            while let Ok(Some(_)) = down.message().await {}
        }
    };
    let _ = tokio::time::timeout(GOOD_BYE, heard).await;
}

fn failed(reason: &str, error: impl ToString) -> StreamEnd {
    StreamEnd { exit_code: 0, error: error.to_string(), error_reason: reason.to_owned() }
}

fn not_there(error: &TargetError) -> StreamEnd {
    let reason = match error {
        TargetError::NoPod(_) => "NotFound",
        TargetError::NoContainer { .. } | TargetError::NotThere { .. } => "BadRequest",
    };
    failed(reason, error)
}

async fn log(
    session: &Session,
    pod: &PodRef,
    container: &str,
    request: &LogRequest,
    up: UpSender,
    mut down: Streaming<StreamDown>,
) {
    let target = match session.pods.log_target(pod, container, request.previous) {
        Ok(target) => target,
        Err(error) => return end(up, down, not_there(&error)).await,
    };
    let reader = LogReader::open(logs::LogRequest {
        path: target.path,
        follow: request.follow,
        timestamps: request.timestamps,
        tail_lines: u64::try_from(request.tail_lines).ok(),
        since_ns: Some(request.since_ns).filter(|ns| *ns > 0),
        limit_bytes: u64::try_from(request.limit_bytes).ok().filter(|n| *n > 0),
        ended: target.ended,
    });
    let mut reader = match reader.await {
        Ok(reader) => reader,
        Err(error) => return end(up, down, failed("InternalError", error)).await,
    };
    // Says that there is a log, however long it takes until something is in it.
    let _ = up.send(StreamUp { message: Some(Up::Stdout(Vec::new())) }).await;
    let last = tokio::select! {
        last = copy_log(&mut reader, &up) => last,
        () = gone(&mut down) => None,
    };
    if let Some(last) = last {
        end(up, down, last).await;
    }
}

/// Copies a log up, until it ends; None: the controller has gone.
async fn copy_log(reader: &mut LogReader, up: &UpSender) -> Option<StreamEnd> {
    while let Some(chunk) = reader.next().await {
        match chunk {
            Ok(data) => {
                let message = StreamUp { message: Some(Up::Stdout(data.to_vec())) };
                if up.send(message).await.is_err() {
                    return None;
                }
            }
            Err(error) => return Some(failed("InternalError", error)),
        }
    }
    Some(StreamEnd::default())
}

/// The controller has nothing to say in a log: what comes is its end.
async fn gone(down: &mut Streaming<StreamDown>) {
    while let Ok(Some(_)) = down.message().await {}
}

async fn exec(
    session: &Session,
    pod: &PodRef,
    container: &str,
    request: ExecRequest,
    up: UpSender,
    mut down: Streaming<StreamDown>,
) {
    let target = match session.pods.exec_target(pod, container) {
        Ok(target) => target,
        Err(error) => return end(up, down, not_there(&error)).await,
    };
    let spec = ExecSpec {
        command: request.command,
        stdin: request.stdin,
        stdout: request.stdout,
        // A terminal has one output.
        stderr: request.stderr && !request.tty,
        tty: request.tty,
        env: if request.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
    };
    let Exec { stdin, stdout, stderr, control } = match session.runtime.exec(&target.container_id, spec).await
    {
        Ok(exec) => exec,
        Err(error) => return end(up, down, failed("InternalError", error)).await,
    };
    let outputs = async {
        tokio::join!(copy(stdout, &up, Up::Stdout), copy(stderr, &up, Up::Stderr));
    };
    let ending = async {
        tokio::pin!(outputs);
        let exit = tokio::select! {
            exit = control.wait() => {
                let _ = tokio::time::timeout(DRAIN, &mut outputs).await;
                exit
            }
            // All output is there; the process ends, or goes on without any.
            () = &mut outputs => control.wait().await,
        };
        match exit {
            Ok(exit) => StreamEnd { exit_code: exit.code, ..StreamEnd::default() },
            Err(error) => failed("InternalError", error),
        }
    };
    let last = tokio::select! {
        last = ending => Some(last),
        () = input(&mut down, stdin, &control, AtEnd::Close) => None,
    };
    match last {
        Some(last) => end(up, down, last).await,
        None => hang_up(&control).await,
    }
}

/// Attaches to the container's own process. What it says is read from its log: the one place where all of it goes,
/// whoever listens; of a terminal that is written as it comes. When whoever attached goes, the container stays.
async fn attach(
    session: &Session,
    pod: &PodRef,
    container: &str,
    request: AttachRequest,
    up: UpSender,
    mut down: Streaming<StreamDown>,
) {
    let target = match session.pods.attach_target(pod, container) {
        Ok(target) => target,
        Err(error) => return end(up, down, not_there(&error)).await,
    };
    let reader = LogReader::open(logs::LogRequest {
        path: target.log.path,
        follow: true,
        timestamps: false,
        // The prompt, which the shell has written before anybody could attach.
        tail_lines: Some(u64::from(target.tty)),
        since_ns: None,
        limit_bytes: None,
        ended: target.log.ended,
    });
    let mut reader = match reader.await {
        Ok(reader) => reader,
        Err(error) => return end(up, down, failed("InternalError", error)).await,
    };
    let stdin = target.stdin.filter(|_| request.stdin);
    let (stdin, control) = match session.runtime.attach(&target.container_id, stdin.as_deref()).await {
        Ok(attached) => attached,
        Err(error) => return end(up, down, failed("InternalError", error)).await,
    };
    let once = target.stdin_once && stdin.is_some();
    let at_end = if once { AtEnd::Close } else { AtEnd::Leave };
    let last = tokio::select! {
        last = copy_log(&mut reader, &up) => last,
        () = input(&mut down, stdin, &control, at_end) => None,
    };
    match last {
        Some(last) => end(up, down, last).await,
        None if once => close(&control).await,
        None => {}
    }
}

/// Whoever ran the command is gone: as with a terminal that is closed.
async fn hang_up(control: &ProcessControl) {
    let _ = control.kill(nix::libc::SIGHUP).await;
    if tokio::time::timeout(HANG_UP, control.wait()).await.is_err() {
        let _ = control.kill(nix::libc::SIGKILL).await;
        let _ = tokio::time::timeout(HANG_UP, control.wait()).await;
    }
}

/// Copies one output up, until it ends or the controller has gone.
async fn copy(from: Option<pipe::Receiver>, up: &UpSender, wrap: fn(Vec<u8>) -> Up) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if up.send(StreamUp { message: Some(wrap(buffer[..n].to_vec())) }).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What the end of the client's input means for the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Close,
    /// Others may attach later.
    Leave,
}

/// Passes input on; returns when the controller has gone.
async fn input(
    down: &mut Streaming<StreamDown>,
    stdin: Option<pipe::Sender>,
    control: &ProcessControl,
    at_end: AtEnd,
) {
    // Writing may take as long as the command likes, and a resize or the client's end must not wait for it.
    let (feed, fed) = mpsc::channel::<Bytes>(CHUNKS);
    let mut feed = Some(feed);
    let writing = write_stdin(stdin, fed, control, at_end);
    let reading = async {
        loop {
            match down.message().await {
                Ok(Some(StreamDown { message })) => match message {
                    Some(Down::Stdin(data)) => {
                        if let Some(open) = &feed
                            && open.send(data.into()).await.is_err()
                        {
                            // The command reads no more; its output is still wanted.
                            feed = None;
                        }
                    }
                    Some(Down::CloseStdin(_)) => feed = None,
                    Some(Down::Resize(size)) => {
                        if let Err(error) = control.resize(size.width, size.height).await {
                            tracing::debug!(%error, "a terminal could not be resized");
                        }
                    }
                    None => {}
                },
                Ok(None) | Err(_) => return,
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = async { writing.await; std::future::pending::<()>().await } => {}
    }
}

async fn write_stdin(
    stdin: Option<pipe::Sender>,
    mut fed: mpsc::Receiver<Bytes>,
    control: &ProcessControl,
    at_end: AtEnd,
) {
    let Some(mut stdin) = stdin else { return };
    while let Some(data) = fed.recv().await {
        if stdin.write_all(&data).await.is_err() {
            return;
        }
    }
    drop(stdin);
    if at_end == AtEnd::Close {
        close(control).await;
    }
}

async fn close(control: &ProcessControl) {
    if let Err(error) = control.close_stdin().await {
        tracing::debug!(%error, "the end of the input could not be passed on");
    }
}

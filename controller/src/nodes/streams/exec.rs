//! `pods/exec` and `pods/attach`: a command in a container, or its own process, over Kubernetes' WebSocket protocols.

use axum::extract::FromRequestParts;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::Response;
use berth_controller_core::field::{FieldError, Path};
use berth_controller_core::object;
use berth_controller_core::status::Status;
use berth_proto::stream_down::Message as Down;
use berth_proto::stream_request::Request;
use berth_proto::stream_up::Message as Up;
use berth_proto::{AttachRequest, ExecRequest, Resize, StreamDown, StreamEnd};
use tokio::sync::mpsc;

use super::{AgentStream, failure, target};
use crate::api::remote_command::{self, Input, Output, Session};
use crate::api::{Connection, Query};
use crate::nodes::Nodes;

/// Serves one request for `exec`.
pub async fn exec(nodes: Nodes, connection: Connection) -> Result<Response, Status> {
    let command: Vec<String> = connection.query.all("command").into_iter().map(str::to_owned).collect();
    if command.is_empty() {
        let error = FieldError::required(&Path::new("command"), "");
        return Err(Status::invalid("PodExecOptions", "", "", &[error]));
    }
    let Streams { stdin, stdout, stderr, tty } = Streams::asked_for(&connection.query)?;
    let request = ExecRequest { command, stdin, stdout, stderr, tty };
    serve(nodes, connection, "exec into", Request::Exec(request)).await
}

/// Serves one request for `attach`.
pub async fn attach(nodes: Nodes, connection: Connection) -> Result<Response, Status> {
    let Streams { stdin, .. } = Streams::asked_for(&connection.query)?;
    serve(nodes, connection, "attach to", Request::Attach(AttachRequest { stdin })).await
}

/// What `PodExecOptions` and `PodAttachOptions` have in common.
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Streams {
    fn asked_for(query: &Query) -> Result<Streams, Status> {
        let [stdin, stdout, stderr, tty] = ["stdin", "stdout", "stderr", "tty"].map(|name| query.flag(name));
        if !(stdin || stdout || stderr) {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(Streams { stdin, stdout, stderr, tty })
    }
}

async fn serve(
    nodes: Nodes,
    connection: Connection,
    doing: &str,
    request: Request,
) -> Result<Response, Status> {
    let pod = connection.object.value();
    let container = target::container(&pod, connection.query.get("container"))?;
    let name = object::name(&pod);
    if let Some(phase @ ("Succeeded" | "Failed")) = pod["status"]["phase"].as_str() {
        return Err(Status::bad_request(format!(
            "cannot {doing} a container in a completed pod; current phase is {phase}"
        )));
    }
    let Some((node, life)) = nodes.life_of(&pod) else {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    };
    let (mut parts, _) = connection.request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(|e| {
        Status::bad_request(format!(
            "unable to upgrade: this server speaks remote commands over WebSocket only ({e})"
        ))
    })?;
    let stream = nodes.open_stream(&node, life, &container, request).await?;
    remote_command::upgrade(upgrade, move |session| join(session, stream))
}

/// Joins the client's end and the agent's until one of them ends.
async fn join(session: Session, stream: AgentStream) {
    let Session { input, output } = session;
    let down = stream.down.clone();
    tokio::select! {
        () = up(stream, output) => {}
        () = feed(input, down) => {}
    }
}

async fn up(mut stream: AgentStream, output: mpsc::Sender<Output>) {
    loop {
        let message = match stream.next().await {
            Ok(Up::Stdout(data)) => Output::Stdout(data.into()),
            Ok(Up::Stderr(data)) => Output::Stderr(data.into()),
            Ok(Up::End(end)) => Output::End(ended(&end)),
            Ok(Up::Open(_)) => continue,
            Err(status) => Output::End(Err(status)),
        };
        let last = matches!(message, Output::End(_));
        if output.send(message).await.is_err() || last {
            return;
        }
    }
}

fn ended(end: &StreamEnd) -> Result<i32, Status> {
    match failure(end) {
        Some(status) => Err(status),
        None => Ok(end.exit_code),
    }
}

/// Returns when the client has gone.
async fn feed(mut input: mpsc::Receiver<Input>, down: mpsc::Sender<Result<StreamDown, tonic::Status>>) {
    while let Some(input) = input.recv().await {
        let message = match input {
            Input::Stdin(data) => Down::Stdin(data.to_vec()),
            Input::CloseStdin => Down::CloseStdin(true),
            Input::Resize { width, height } => {
                Down::Resize(Resize { width: u32::from(width), height: u32::from(height) })
            }
        };
        if down.send(Ok(StreamDown { message: Some(message) })).await.is_err() {
            // The agent has ended it: the other half says how.
            std::future::pending::<()>().await;
        }
    }
}

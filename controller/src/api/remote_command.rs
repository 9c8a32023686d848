//! Kubernetes' remote-command protocol over a WebSocket (`v5.channel.k8s.io` and `v4.channel.k8s.io`): how
//! `kubectl exec` talks. Each binary message begins with the number of its channel.
//!
//! Knows nothing of pods: whoever serves a command gets [`Input`]s, and gives [`Output`]s ending with
//! [`Output::End`].

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use berth_controller_core::status::Status;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The protocols spoken, the best first.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5 only: the next byte names a channel that has ended.
const CLOSE: u8 = 255;

/// How many messages may wait in either direction.
const DEPTH: usize = 16;
/// How long a client may take to take a message, or to answer our close.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_MESSAGE: usize = 1 << 20;

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Stdin(Bytes),
    CloseStdin,
    Resize { width: u16, height: u16 },
}

/// To the client.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The command's end: its exit code, or why it could not be run. Nothing follows.
    End(Result<i32, Status>),
}

/// The two ends a server of commands holds. When the client goes away, `input` ends and `output` is closed.
#[derive(Debug)]
pub struct Session {
    pub input: mpsc::Receiver<Input>,
    pub output: mpsc::Sender<Output>,
}

/// Answers the upgrade and runs `serve` with the session once the client is through.
pub fn upgrade<F, T>(request: WebSocketUpgrade, serve: F) -> Result<Response, Status>
where
    F: FnOnce(Session) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let request = request.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).protocols(PROTOCOLS);
    let Some(protocol) = request.selected_protocol() else {
        return Err(Status::bad_request(format!(
            "unable to upgrade: none of the requested protocols is known; use one of {}",
            PROTOCOLS.join(", ")
        )));
    };
    let closes = protocol.as_bytes() == PROTOCOLS[0].as_bytes();
    Ok(request.on_upgrade(move |socket| async move {
        let (to_serve, input) = mpsc::channel(DEPTH);
        let (output, from_serve) = mpsc::channel(DEPTH);
        let run = serve(Session { input, output });
        tokio::join!(run, pump(socket, closes, to_serve, from_serve));
    }))
}

/// Moves messages until the command has ended or the client has gone.
async fn pump(
    socket: WebSocket,
    closes: bool,
    to_serve: mpsc::Sender<Input>,
    mut from_serve: mpsc::Receiver<Output>,
) {
    let (mut sink, mut stream) = socket.split();
    let reading = async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) => {
                    let Some(input) = decode(&data, closes) else { continue };
                    if to_serve.send(input).await.is_err() {
                        // The command takes no input any more; the client may still listen.
                        continue;
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
    };
    let writing = async move {
        while let Some(output) = from_serve.recv().await {
            let end = matches!(output, Output::End(_));
            let message = Message::Binary(encode(&output));
            if !matches!(tokio::time::timeout(PATIENCE, sink.send(message)).await, Ok(Ok(()))) {
                return;
            }
            if end {
                break;
            }
        }
        let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
        // A client that is gone already needs no good-bye.
        let _ = tokio::time::timeout(PATIENCE, sink.send(Message::Close(Some(frame)))).await;
    };
    tokio::pin!(reading, writing);
    tokio::select! {
        // The client is gone: dropping the other half closes the command's output.
        () = &mut reading => {}
        // The command has ended: the client closes in its turn.
        () = &mut writing => { let _ = tokio::time::timeout(PATIENCE, reading).await; }
    }
}

/// What a message says; None for what a client has no business to say (ignored, as Kubernetes does).
fn decode(data: &Bytes, closes: bool) -> Option<Input> {
    let (channel, rest) = data.split_first()?;
    match *channel {
        STDIN => Some(Input::Stdin(data.slice(1..))),
        CLOSE if closes && rest == [STDIN] => Some(Input::CloseStdin),
        RESIZE => {
            let size: Value = serde_json::from_slice(rest).ok()?;
            let side = |name: &str| u16::try_from(size[name].as_u64()?).ok();
            Some(Input::Resize { width: side("Width")?, height: side("Height")? })
        }
        _ => None,
    }
}

fn encode(output: &Output) -> Bytes {
    let framed = |channel: u8, data: &[u8]| {
        let mut message = BytesMut::with_capacity(data.len() + 1);
        message.put_u8(channel);
        message.put_slice(data);
        message.freeze()
    };
    match output {
        Output::Stdout(data) => framed(STDOUT, data),
        Output::Stderr(data) => framed(STDERR, data),
        Output::End(end) => framed(ERROR, end_status(end).to_string().as_bytes()),
    }
}

/// The Status on the error channel, as client-go's remotecommand reads it.
fn end_status(end: &Result<i32, Status>) -> Value {
    match end {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(status) => status.to_json(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_by_their_channel() {
        assert_eq!(decode(&Bytes::from_static(b"\0hi"), true), Some(Input::Stdin(Bytes::from_static(b"hi"))));
        assert_eq!(decode(&Bytes::from_static(&[255, 0]), true), Some(Input::CloseStdin));
        assert_eq!(decode(&Bytes::from_static(&[255, 0]), false), None);
        let resize = Bytes::from_static(b"\x04{\"Width\":80,\"Height\":24}");
        assert_eq!(decode(&resize, true), Some(Input::Resize { width: 80, height: 24 }));
        for odd in [&b""[..], b"\x04{}", b"\x04[", b"\x09x", b"\x01x"] {
            assert_eq!(decode(&Bytes::copy_from_slice(odd), true), None);
        }
    }

    #[test]
    fn an_exit_code_is_told_as_clients_expect_it() {
        let status = end_status(&Ok(3));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(end_status(&Ok(0))["status"], "Success");
        assert_eq!(encode(&Output::Stdout(Bytes::from_static(b"x"))), Bytes::from_static(b"\x01x"));
    }
}

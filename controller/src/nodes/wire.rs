//! The session's call as `node.proto` has it, except that what goes to every host alike is not encoded for each.

use berth_proto::controller_message::Message;
use berth_proto::{AgentMessage, ControllerMessage};
use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Where gRPC has it.
pub const SESSION: &str = "/berth.node.v1.Node/Session";

/// A `ControllerMessage`.
#[derive(Debug)]
pub enum Outgoing {
    Message(Box<ControllerMessage>),
    Encoded(Bytes),
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Outgoing {
        Outgoing::Message(Box::new(ControllerMessage { message: Some(message) }))
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct SessionCodec;

impl Codec for SessionCodec {
    type Encode = Outgoing;
    type Decode = AgentMessage;
    type Encoder = SessionCodec;
    type Decoder = SessionCodec;

    fn encoder(&mut self) -> SessionCodec {
        SessionCodec
    }

    fn decoder(&mut self) -> SessionCodec {
        SessionCodec
    }
}

impl Encoder for SessionCodec {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            Outgoing::Encoded(bytes) => {
                to.put(bytes);
                Ok(())
            }
            Outgoing::Message(message) => message
                .encode(to)
                .map_err(|e| Status::internal(format!("a message that cannot be encoded: {e}"))),
        }
    }
}

impl Decoder for SessionCodec {
    type Item = AgentMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<AgentMessage>, Status> {
        let whole = from.copy_to_bytes(from.remaining());
        AgentMessage::decode(whole)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("not a message: {e}")))
    }
}

//! Decides the envelope around a raft message: version, cluster, every field of `eraftpb::Message` as raft's own
//! protobuf. Decoding is bounded and never panics. Must not judge the message (`gate` does).

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::effect::Effect;
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::log::identity::array;
use crate::log::outbound::Cleared;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 16;

/// An envelope that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than its header, or the message is not one.
    #[error("the message cannot be decoded")]
    Malformed,
    /// Another version.
    #[error("the message has version {0}")]
    Version(u8),
    /// Another cluster.
    #[error("the message belongs to cluster {0}")]
    OtherCluster(ClusterId),
    /// Longer than the limit of its kind.
    #[error("the message is too long")]
    TooLong,
}

/// The effect that sends a message.
pub(crate) fn send(cluster: &ClusterId, cleared: Cleared) -> Effect {
    let message = cleared.into_message();
    let bytes = envelope(cluster, &message);
    let bulk = message.msg_type == MessageType::MsgSnapshot as i32;
    Effect::Send { to: NodeId(message.to), bytes, bulk }
}

/// A message in its envelope.
pub(crate) fn envelope(cluster: &ClusterId, message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + message.encoded_len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&cluster.0);
    message.encode(&mut bytes).expect("a vector grows as far as a message needs");
    bytes
}

/// The message in an envelope.
pub(crate) fn decode(cluster: &ClusterId, bytes: &[u8]) -> Result<Message, WireError> {
    if bytes.len() > limits::SNAPSHOT_BYTES + limits::MESSAGE_BYTES {
        return Err(WireError::TooLong);
    }
    if bytes.len() < HEADER_BYTES {
        return Err(WireError::Malformed);
    }
    let sender = ClusterId(array(&bytes[1..HEADER_BYTES]));
    match bytes[0] {
        VERSION if sender == *cluster => {}
        VERSION => return Err(WireError::OtherCluster(sender)),
        other => return Err(WireError::Version(other)),
    }
    let message = Message::decode(&bytes[HEADER_BYTES..]).map_err(|_| WireError::Malformed)?;
    let long = bytes.len() > limits::MESSAGE_BYTES && message.msg_type != MessageType::MsgSnapshot as i32;
    if long { Err(WireError::TooLong) } else { Ok(message) }
}

//! Decides the envelope around what replicas say to each other: version, cluster, then either every field of `eraftpb::Message` as raft's
//! own protobuf, or a feed's stream and message. Decoding is bounded and never panics. Must not judge what is said (`gate` and `feed` do).

use prost::Message as _;
use raft::eraftpb::{Message, MessageType};

use crate::effect::Effect;
use crate::feed::{self, Feed};
use crate::ids::{ClusterId, NodeId};
use crate::limits;
use crate::log::identity::array;
use crate::log::outbound::Cleared;

const RAFT: u8 = 1;
const FEED: u8 = 2;
const HEADER_BYTES: usize = 1 + 16;
const STREAM_BYTES: usize = 8;

/// What is in an envelope.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    /// A message for raft.
    Raft(Message),
    /// A feed's, under its stream.
    Feed(u64, Feed),
}

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
    let mut bytes = begin(RAFT, cluster, message.encoded_len());
    message.encode(&mut bytes).expect("a vector grows as far as a message needs");
    bytes
}

/// A feed's encoded message in its envelope.
pub(crate) fn feed_envelope(cluster: &ClusterId, stream: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = begin(FEED, cluster, STREAM_BYTES + body.len());
    bytes.extend_from_slice(&stream.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn begin(version: u8, cluster: &ClusterId, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.push(version);
    bytes.extend_from_slice(&cluster.0);
    bytes
}

/// What is in an envelope.
pub(crate) fn decode(cluster: &ClusterId, bytes: &[u8]) -> Result<Said, WireError> {
    if bytes.len() > limits::SNAPSHOT_BYTES + limits::MESSAGE_BYTES {
        return Err(WireError::TooLong);
    }
    if bytes.len() < HEADER_BYTES {
        return Err(WireError::Malformed);
    }
    let (header, body) = bytes.split_at(HEADER_BYTES);
    let sender = ClusterId(array(&header[1..]));
    let said = match header[0] {
        RAFT | FEED if sender != *cluster => return Err(WireError::OtherCluster(sender)),
        RAFT => Said::Raft(Message::decode(body).map_err(|_| WireError::Malformed)?),
        FEED if body.len() < STREAM_BYTES => return Err(WireError::Malformed),
        FEED => {
            let (stream, body) = body.split_at(STREAM_BYTES);
            let feed = feed::decode(body).map_err(|_| WireError::Malformed)?;
            Said::Feed(u64::from_le_bytes(array(stream)), feed)
        }
        other => return Err(WireError::Version(other)),
    };
    let is_state = match &said {
        Said::Raft(message) => message.msg_type == MessageType::MsgSnapshot as i32,
        Said::Feed(..) => false,
    };
    if bytes.len() > limits::MESSAGE_BYTES && !is_state { Err(WireError::TooLong) } else { Ok(said) }
}

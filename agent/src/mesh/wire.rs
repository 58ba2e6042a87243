//! What members say to each other, and its bytes: `bincode` 2 enums behind this one module.
//!
//! Decides forms and limits. Types here never change, they gain variants. It must not act on anything.

use std::net::SocketAddr;

use bincode::{Decode, Encode};
use quinn::{RecvStream, SendStream};

/// Longest frame that is read.
pub const FRAME_LIMIT: usize = 8 << 20;
/// Longest raft message that is read, unless it is a snapshot: above `raft_store`'s own bound, which says more when it refuses.
pub const RAFT_LIMIT: usize = 64 << 20;
/// Longest snapshot that is read, with its envelope.
pub const SNAPSHOT_LIMIT: usize = (2 << 30) + (1 << 20);

/// Frames up to this are copied rather than written in two pieces.
const SMALL: usize = 64 << 10;

/// Small and losable.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Datagram {
    /// A packet of the gossip protocol.
    Gossip(Vec<u8>),
    /// "Are you there?": answered with the same number.
    Ping(u64),
    Pong(u64),
}

/// A request between members.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Propose a command (encoded by raft-store) at the leader.
    Propose(Vec<u8>),
    /// All that the sender knows of the members' states (encoded by membership).
    Exchange(Vec<u8>),
    /// Probe a member directly for a while; answer whether it was reached.
    Probe { node: u64 },
    /// Which of these blobs are here?
    HaveBlobs(Vec<String>),
    /// Send the blob: a `Response::Blob`, then its bytes.
    FetchBlob(String),
    /// Fetch a blob from a member and keep it; answered when it is synced.
    KeepBlob { digest: String, size: u64, from: u64 },
    /// Sign the administrator's certificate, for root on the sender (the leader does).
    SignClient { user: String, groups: Vec<String> },
    /// Renew the sender's certificate, for the key that it is listed with (the leader does).
    SignMember { signing_request: String, name: String, address: String },
    /// Output of a container of this node: lines as they are to be shown.
    Logs { uid: String, container: String, options: LogWish },
    /// Run a process in a container of this node; then `ExecFrame`s both ways.
    Exec { uid: String, container: String, args: Vec<String>, stdin: bool },
    /// What do you know of the store, and do you hear a leader? (`crate::recovery`)
    Survey,
    /// Begin a new cluster epoch from your log, without these members, if you too find that this is right.
    Recover { lost: Vec<String> },
    /// The cluster goes on in a new epoch with these members (JSON): keep your store aside and follow.
    NewEpoch { epoch: u64, members: String },
    /// Propose commands at the leader: `Forwarded`s follow on the stream, `Settled`s come back in any order.
    Forward,
    /// Let this machine in if its token is valid (the leader does).
    Enrol(JoinRequest),
    /// Seal the keyring to another recovery key: hex of its public half (the leader does).
    SetRecovery { public: String },
    /// What have you applied? (`crate::consistency`)
    Marks,
    /// This life of mine runs, and there (`crate::doubles`).
    Life { number: u64, place: String },
    /// My store cannot be trusted: know me by another key (the leader does). `crate::rebuild`
    Replace { signing_request: String, life: u64, place: String, why: String },
}

/// A command (encoded by raft-store) with the asker's number for it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Forwarded {
    pub id: u64,
    pub command: Vec<u8>,
}

/// What became of a command (encoded by raft-store).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Settled {
    pub id: u64,
    pub outcome: Vec<u8>,
}

/// Which part of a log is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LogWish {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    /// RFC 3339.
    pub since: Option<String>,
    pub limit_bytes: Option<u64>,
}

/// A piece of a running exec.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum ExecFrame {
    Stdin(Vec<u8>),
    /// No more input.
    StdinEnd,
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(i32),
    Failed(String),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    Done,
    /// Outcome of a proposal, encoded by raft-store.
    Outcome(Vec<u8>),
    Exchanged(Vec<u8>),
    Reached(bool),
    Blobs(Vec<bool>),
    Blob {
        size: u64,
    },
    Signed {
        certificate: String,
        key: String,
    },
    Certificate(String),
    Refused(String),
    /// A `recovery::Survivor`, JSON.
    Survey(Vec<u8>),
    /// Ask whoever leads.
    NotLeader,
    /// What a machine that wants in is told.
    Admitted(JoinAnswer),
    /// A `raft_store::consistency::Marks`.
    Marks(Vec<u8>),
    /// Two run as you: where.
    Doubled(String),
    /// Ask again in a moment.
    NotYet,
    /// The cluster epoch that this machine is in.
    InEpoch(u64),
}

/// Sent before a `JoinRequest` by a machine that speaks the second version of the protocol: the cluster versions its binary supports.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Supports {
    pub oldest: u32,
    pub newest: u32,
}

/// Sent by a machine that wants in, after it has checked our CA by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JoinRequest {
    pub secret: String,
    pub name: String,
    pub address: SocketAddr,
    pub api_port: u16,
    /// PEM.
    pub signing_request: String,
}

/// What a machine needs to be a member.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum JoinAnswer {
    Welcome {
        cluster: String,
        /// The cluster epoch (how often it was recovered).
        epoch: u64,
        certificate: String,
        ca_certificate: String,
        /// Always absent: the CA's key is in the keyring.
        ca_key: Option<String>,
        /// The member's own record, JSON.
        member: String,
        /// All members, JSON.
        members: String,
    },
    Refused(String),
}

/// Reading a frame failed.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the stream ended: {0}")]
    Ended(String),
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    #[error("the bytes make no sense: {0}")]
    Nonsense(String),
}

/// Bytes of a message.
pub fn encode<T: Encode>(message: &T) -> Vec<u8> {
    // Encoding into a growing vector fails only for types that say so themselves; ours do not.
    bincode::encode_to_vec(message, bincode::config::standard()).unwrap_or_default()
}

/// What may be decoded from another machine's bytes. Types get it in `crate::fuzzing`, with their fuzz target, and nowhere else.
pub trait Fuzzed: Encode + Decode<()> + PartialEq {}

/// A message from bytes, all of which it must use, with the limit of a frame.
pub fn decode<T: Fuzzed>(bytes: &[u8]) -> Result<T, FrameError> {
    let config = bincode::config::standard().with_limit::<FRAME_LIMIT>();
    let (message, used) =
        bincode::decode_from_slice(bytes, config).map_err(|error| FrameError::Nonsense(error.to_string()))?;
    if used == bytes.len() { Ok(message) } else { Err(FrameError::Nonsense("bytes left over".into())) }
}

/// Writes one length-prefixed message.
pub async fn write_frame<T: Encode>(stream: &mut SendStream, message: &T) -> Result<(), FrameError> {
    write_bytes(stream, &encode(message)).await
}

/// Writes length (32 bits, big endian) and bytes.
pub async fn write_bytes(stream: &mut SendStream, bytes: &[u8]) -> Result<(), FrameError> {
    let length = u32::try_from(bytes.len()).map_err(|_| FrameError::TooLong(bytes.len()))?;
    let ended = |error: quinn::WriteError| FrameError::Ended(error.to_string());
    if bytes.len() <= SMALL {
        // In one piece: two writes can become two packets.
        let mut frame = Vec::with_capacity(4 + bytes.len());
        put_bytes(bytes, &mut frame);
        return stream.write_all(&frame).await.map_err(ended);
    }
    stream.write_all(&length.to_be_bytes()).await.map_err(ended)?;
    stream.write_all(bytes).await.map_err(ended)
}

/// Appends length and bytes, of which there are less than 4 GiB.
pub fn put_bytes(bytes: &[u8], frame: &mut Vec<u8>) {
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(bytes);
}

/// Appends one length-prefixed message.
pub fn put_frame<T: Encode>(message: &T, frame: &mut Vec<u8>) {
    put_bytes(&encode(message), frame);
}

/// Reads one length-prefixed message.
pub async fn read_frame<T: Fuzzed>(stream: &mut RecvStream) -> Result<T, FrameError> {
    decode(&read_bytes(stream, FRAME_LIMIT).await?)
}

/// Reads length and bytes; memory is taken as bytes arrive, not as the length promises.
pub async fn read_bytes(stream: &mut RecvStream, limit: usize) -> Result<Vec<u8>, FrameError> {
    let ended = |error: quinn::ReadExactError| FrameError::Ended(error.to_string());
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).await.map_err(ended)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > limit {
        return Err(FrameError::TooLong(length));
    }
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    while bytes.len() < length {
        let wanted = (length - bytes.len()).min(64 << 10);
        match stream.read_chunk(wanted, true).await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(FrameError::Ended("in the middle of a frame".into())),
            Err(error) => return Err(FrameError::Ended(error.to_string())),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_can_be_read_back_and_rubbish_is_refused() {
        let request = Request::SignClient { user: "a".into(), groups: vec!["b".into()] };
        assert_eq!(decode::<Request>(&encode(&request)).unwrap(), request);
        for cut in 0..encode(&request).len() {
            assert!(decode::<Request>(&encode(&request)[..cut]).is_err());
        }
        assert!(decode::<Request>(&[0xff; 32]).is_err());
        // A length that promises more than the limit is refused before memory is taken.
        assert!(decode::<Request>(&[0, 253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err());
    }
}

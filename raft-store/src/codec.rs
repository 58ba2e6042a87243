//! Decides how commands and state become bytes: `bincode` 2 behind this one module, versioned and always decoded
//! with a size limit. Must not be bypassed: nothing else in the crate names bincode's functions.

use bincode::{Decode, Encode};

use crate::command::Command;
use crate::limits;

const COMMAND_VERSION: u8 = 1;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer version.
    #[error("version {0} is newer than this binary knows; upgrade skein on this machine")]
    Version(u8),
    /// Not decodable, or longer than the limit.
    #[error("the bytes cannot be decoded: {0}")]
    Malformed(String),
    /// Something follows the end.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
}

/// The command as it stands in the log.
pub(crate) fn encode_command(command: &Command) -> Vec<u8> {
    let mut bytes = vec![COMMAND_VERSION];
    encode_into(command, &mut bytes);
    bytes
}

/// The command of a log entry.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    match bytes.split_first() {
        Some((&COMMAND_VERSION, rest)) => decode::<Command, { limits::COMMAND_CLAIM }>(rest),
        Some((&version, _)) => Err(CodecError::Version(version)),
        None => Err(CodecError::Malformed("empty".to_owned())),
    }
}

/// Appends a value's encoding. Our own types hold nothing that can fail to encode.
pub(crate) fn encode_into<T: Encode>(value: &T, bytes: &mut Vec<u8>) {
    bincode::encode_into_std_write(value, bytes, bincode::config::standard())
        .expect("plain data into a vector always encodes");
}

/// Decodes a state. What it may claim grows with its bytes: a short one that announces a million keys claims little.
pub(crate) fn decode_state<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.len() {
        ..=0x8000 => decode::<T, { 4 << 20 }>(bytes),
        0x8001..=0x10_0000 => decode::<T, { 64 << 20 }>(bytes),
        0x10_0001..=0x100_0000 => decode::<T, { 1 << 30 }>(bytes),
        _ => decode::<T, { limits::SNAPSHOT_BYTES }>(bytes),
    }
}

/// Decodes the whole of `bytes`, claiming at most `LIMIT` bytes of memory for what it announces.
pub(crate) fn decode<T: Decode<()>, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, used) = bincode::decode_from_slice(bytes, config)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    match bytes.len() - used {
        0 => Ok(value),
        rest => Err(CodecError::Trailing(rest)),
    }
}

//! Decides how commands and state become bytes: `bincode` 2 behind this one module, versioned and always decoded
//! with a size limit. Must not be bypassed: nothing else in the crate names bincode's functions.

use std::sync::Arc;

use bincode::de::Decoder;
use bincode::de::read::Reader;
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};

use crate::command::Command;
use crate::limits;
use crate::version::{Supported, Version};

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer version.
    #[error("version {0} is newer than this binary knows; upgrade skein on this machine")]
    Version(u8),
    /// A command that a newer cluster version brought.
    #[error(
        "it needs cluster version {needed}, and this binary supports up to {newest}; upgrade skein on this machine"
    )]
    ClusterVersion {
        /// The version that brought it.
        needed: Version,
        /// The newest that is known here.
        newest: Version,
    },
    /// Not decodable, or longer than the limit.
    #[error("the bytes cannot be decoded: {0}")]
    Malformed(String),
    /// Something follows the end.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
}

/// The command as it stands in the log. First the cluster version that brought it, so that a binary that does not know it can say what it
/// lacks.
pub(crate) fn encode_command(command: &Command) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(command.needs().0).unwrap_or(u8::MAX)];
    encode_into(command, &mut bytes);
    bytes
}

/// The command of a log entry.
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    decode_command_for(bytes, Supported::OURS.newest)
}

/// The command of a log entry, for a binary that supports cluster versions up to `newest`.
pub(crate) fn decode_command_for(bytes: &[u8], newest: Version) -> Result<Command, CodecError> {
    let (&needed, rest) = bytes.split_first().ok_or_else(|| CodecError::Malformed("empty".to_owned()))?;
    let needed = Version(u32::from(needed));
    if needed > newest {
        return Err(CodecError::ClusterVersion { needed, newest });
    }
    let command = decode::<Command, { limits::COMMAND_CLAIM }>(rest)?;
    match command.needs() == needed {
        true => Ok(command),
        false => Err(CodecError::Malformed(format!("not a command of cluster version {needed}"))),
    }
}

/// Appends a value's encoding. Our own types hold nothing that can fail to encode.
pub(crate) fn encode_into<T: Encode>(value: &T, bytes: &mut Vec<u8>) {
    bincode::encode_into_std_write(value, bytes, bincode::config::standard())
        .expect("plain data into a vector always encodes");
}

/// What the bytes that are there hold of something.
pub(crate) enum Part<T> {
    /// All of it, and how long it is.
    Whole(T, usize),
    /// At least so many bytes are missing.
    Short(usize),
}

impl<T> Part<T> {
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U) -> Part<U> {
        match self {
            Part::Whole(value, used) => Part::Whole(make(value), used),
            Part::Short(missing) => Part::Short(missing),
        }
    }

    pub(crate) fn try_map<U, E>(self, make: impl FnOnce(T) -> Result<U, E>) -> Result<Part<U>, E> {
        Ok(match self {
            Part::Whole(value, used) => Part::Whole(make(value)?, used),
            Part::Short(missing) => Part::Short(missing),
        })
    }
}

/// One part of a state from the begin of `bytes`. None is longer than a command's parts, but for a change, which holds two entries.
pub(crate) fn part<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<Part<T>, CodecError> {
    let config = bincode::config::standard().with_limit::<{ limits::COMMAND_CLAIM }>();
    match bincode::borrow_decode_from_slice(bytes, config) {
        Ok((value, used)) => Ok(Part::Whole(value, used)),
        Err(DecodeError::UnexpectedEnd { additional }) => Ok(Part::Short(additional.max(1))),
        Err(error) => Err(CodecError::Malformed(error.to_string())),
    }
}

/// Reads a length and so many bytes straight into where they stay: a state has millions of them.
pub(crate) fn shared_bytes<D: Decoder>(decoder: &mut D) -> Result<Arc<[u8]>, DecodeError> {
    let length = u64::decode(decoder)?;
    let length = usize::try_from(length).map_err(|_| DecodeError::OutsideUsizeRange(length))?;
    decoder.claim_container_read::<u8>(length)?;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
    if let Some(bytes) = Arc::get_mut(&mut bytes) {
        decoder.reader().read(bytes)?;
    }
    Ok(bytes)
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

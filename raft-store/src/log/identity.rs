//! Decides whose files these are: cluster and node stand in the first bytes of every file, after magic and version.
//! Must not guess: a file of another cluster, node or newer version is refused by name.

use crate::ids::{ClusterId, NodeId};

/// The cluster and node that files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
}

/// Bytes of magic, version, cluster and node.
pub(crate) const PREFIX_BYTES: usize = 8 + 4 + 16 + 8;

/// Which files these are, and the version of their bytes.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) magic: &'static [u8; 8],
    pub(crate) version: u32,
}

/// What the first bytes of a file say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    Ours,
    NotAFile,
    Newer(u32),
    OtherCluster(ClusterId),
    OtherNode(NodeId),
}

impl Identity {
    pub(crate) fn write_prefix(&self, kind: Kind, out: &mut Vec<u8>) {
        out.extend_from_slice(kind.magic);
        out.extend_from_slice(&kind.version.to_le_bytes());
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0.to_le_bytes());
    }

    /// Compares a file's first bytes, whose checksum was verified before, with what they should be.
    pub(crate) fn check_prefix(&self, kind: Kind, bytes: &[u8]) -> Prefix {
        if bytes.len() < PREFIX_BYTES || &bytes[..8] != kind.magic {
            return Prefix::NotAFile;
        }
        let version = u32::from_le_bytes(array(&bytes[8..12]));
        let cluster = ClusterId(array(&bytes[12..28]));
        let node = NodeId(u64::from_le_bytes(array(&bytes[28..36])));
        match () {
            () if version > kind.version => Prefix::Newer(version),
            () if cluster != self.cluster => Prefix::OtherCluster(cluster),
            () if node != self.node => Prefix::OtherNode(node),
            () => Prefix::Ours,
        }
    }
}

/// A slice of known length as an array; zeros where it is short.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    let length = bytes.len().min(N);
    array[..length].copy_from_slice(&bytes[..length]);
    array
}

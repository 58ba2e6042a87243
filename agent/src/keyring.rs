//! The keyring: one replicated object that holds the cluster's secrets, sealed to each voter and to a recovery key.
//!
//! Decides its form and who can open it (docs/formats/keyring.md). So log, snapshots, backups and the disk of a machine that does not
//! vote show no secret. Who must hold a wrap is decided by [`holders`]; the leader's part that writes is [`keeper`].

pub mod holders;
pub mod keeper;
pub mod renewal;
pub mod seal;
pub mod secrets;
pub mod signing;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use raft_store::{NodeId, View};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock;
use crate::identity::{self, IdentityError};
use crate::pki;
use holders::Keys;
use seal::{SealKey, SealPublic};
pub use secrets::Secrets;

/// Where the keyring is kept in the store.
pub const KEY: &str = "k/keyring";
/// Only the leader writes below this.
pub const PREFIX: &str = "k/";
const VERSION: u32 = 1;
/// The sealing key's file, below `DATA/member`.
const SEAL_KEY: &str = "seal.key";
/// The sealed keyring of a new cluster, until it is in the store.
const FIRST: &str = "keyring.first";
/// What begins the text of a recovery key.
const RECOVERY: &str = "skein-recovery1.";

/// The keyring as it is stored, JSON: nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    version: u32,
    /// Generation of the data key that Secrets are written with.
    pub generation: u64,
    wraps: Vec<Wrap>,
    /// For the recovery key, of which only the public half is known here.
    #[serde(default)]
    recovery: Option<Wrap>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Wrap {
    /// The member's raft id; 0 for the recovery key.
    id: u64,
    /// Hex of the public key.
    key: String,
    /// Base64 of the sealed secrets.
    sealed: String,
}

/// The keyring cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the store has no keyring yet")]
    Absent,
    #[error("the keyring is not sealed to this machine")]
    NotHeld,
    #[error(
        "the keyring does not open with this key: it is another cluster's key, or the keyring was changed"
    )]
    Sealed,
    #[error("the keyring has version {0}: this program is too old for it")]
    Newer(u32),
    #[error("there is no recovery key")]
    NoRecovery,
}

/// The keyring cannot be sealed.
#[derive(Debug, thiserror::Error)]
#[error("the sealing key of member {0} is none")]
pub struct SealError(NodeId);

impl Ring {
    /// Seals secrets to the holders and the recovery key; `fresh` gives new random bytes at each call.
    pub fn seal(
        cluster: &str,
        secrets: &Secrets,
        holders: &Keys,
        recovery: Option<SealPublic>,
        mut fresh: impl FnMut() -> [u8; 32],
    ) -> Result<Ring, SealError> {
        let plain = Zeroizing::new(serde_json::to_vec(secrets).unwrap_or_default());
        let mut wrap = |id: u64, key: &SealPublic| {
            let sealed =
                seal::seal(key, fresh(), &context(cluster, id), &plain).ok_or(SealError(NodeId(id)))?;
            Ok(Wrap { id, key: pki::hex(key), sealed: STANDARD.encode(sealed) })
        };
        Ok(Ring {
            version: VERSION,
            generation: secrets.generation(),
            wraps: holders.iter().map(|(id, key)| wrap(id.0, key)).collect::<Result<_, _>>()?,
            recovery: recovery.map(|key| wrap(0, &key)).transpose()?,
        })
    }

    /// The cluster's.
    pub fn in_view(view: &View) -> Option<Ring> {
        serde_json::from_slice(view.get(KEY.as_bytes())?.value()).ok()
    }

    /// Whom it is sealed to.
    pub fn held(&self) -> Keys {
        let read = |wrap: &Wrap| Some((NodeId(wrap.id), public_of_text(&wrap.key)?));
        self.wraps.iter().filter_map(read).collect()
    }

    /// The public half of the recovery key.
    pub fn recovery(&self) -> Option<SealPublic> {
        public_of_text(&self.recovery.as_ref()?.key)
    }

    /// Opens it as a member.
    pub fn open(&self, cluster: &str, id: NodeId, own: &SealKey) -> Result<Secrets, OpenError> {
        let wrap = self.wraps.iter().find(|wrap| wrap.id == id.0).ok_or(OpenError::NotHeld)?;
        self.unwrap(cluster, wrap, own)
    }

    /// Opens it with the recovery key.
    pub fn open_by_recovery(&self, cluster: &str, key: &SealKey) -> Result<Secrets, OpenError> {
        self.unwrap(cluster, self.recovery.as_ref().ok_or(OpenError::NoRecovery)?, key)
    }

    fn unwrap(&self, cluster: &str, wrap: &Wrap, own: &SealKey) -> Result<Secrets, OpenError> {
        if self.version > VERSION {
            return Err(OpenError::Newer(self.version));
        }
        let sealed = STANDARD.decode(&wrap.sealed).map_err(|_| OpenError::Sealed)?;
        let plain = seal::open(own, &context(cluster, wrap.id), &sealed).ok_or(OpenError::Sealed)?;
        serde_json::from_slice(&plain).map_err(|_| OpenError::Sealed)
    }
}

/// A wrap is of one cluster and one holder.
fn context(cluster: &str, id: u64) -> Vec<u8> {
    format!("skein keyring {VERSION} {cluster} {id:016x}").into_bytes()
}

/// A public sealing key from its hex.
pub fn public_of_text(text: &str) -> Option<SealPublic> {
    pki::from_hex(text)?.try_into().ok()
}

/// The text of a recovery key, as an operator keeps it.
pub fn recovery_text(key: &SealKey) -> Zeroizing<String> {
    Zeroizing::new(format!("{RECOVERY}{}", pki::hex(key.to_bytes().as_slice())))
}

/// Reads a recovery key's text.
pub fn recovery_key(text: &str) -> Option<SealKey> {
    let bytes = pki::from_hex(text.trim().strip_prefix(RECOVERY)?)?;
    Some(SealKey::from_bytes(bytes.try_into().ok()?))
}

/// Thirty-two random bytes.
pub fn fresh() -> [u8; 32] {
    let mut bytes = [0; 32];
    clock::fill_random(&mut bytes);
    bytes
}

/// This machine's sealing key: made and written down when it is first asked for.
pub fn own_key(data: &Path) -> Result<SealKey, IdentityError> {
    let directory = data.join("member");
    let path = directory.join(SEAL_KEY);
    match std::fs::read_to_string(&path) {
        Ok(text) => match public_of_text(text.trim()) {
            Some(bytes) => Ok(SealKey::from_bytes(bytes)),
            None => {
                let cause = std::io::Error::new(std::io::ErrorKind::InvalidData, "this is no sealing key");
                Err(IdentityError::File { path, cause })
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            identity::make_private_directory(&directory)?;
            let key = SealKey::from_bytes(fresh());
            let text = Zeroizing::new(pki::hex(key.to_bytes().as_slice()));
            identity::write_durably(&path, text.as_bytes())?;
            Ok(key)
        }
        Err(cause) => Err(IdentityError::File { path, cause }),
    }
}

/// Writes the sealed keyring of a new cluster beside its first member's identity: its leader puts it into the store.
pub fn write_first(data: &Path, ring: &Ring) -> Result<(), IdentityError> {
    let text = serde_json::to_vec(ring).unwrap_or_default();
    identity::write_durably(&data.join("member").join(FIRST), &text)
}

#[cfg(test)]
mod tests;

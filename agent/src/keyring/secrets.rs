//! What the keyring keeps, opened: the CA's key, the keys of Secrets by generation, room for the service accounts' key.
//!
//! Decides how a Secret's bytes are encrypted. In memory only, wiped when dropped; it must never be written, logged or sent unsealed.

use std::collections::{BTreeMap, BTreeSet};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// First bytes of an encrypted Secret; the version is in them.
const MAGIC: &[u8; 4] = b"SKS1";
/// Data keys that are kept whether anything is known to be encrypted with them or not: a write may be under way while the key changes.
const KEPT: u64 = 2;
/// Magic, generation, nonce.
const HEAD: usize = 4 + 8 + NONCE_LEN;

/// Which data key these bytes are encrypted with, if they are an encrypted Secret.
pub fn generation_of(sealed: &[u8]) -> Option<u64> {
    let number = sealed.get(..HEAD)?.strip_prefix(MAGIC)?.get(..8)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

/// The secrets themselves.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// PEM of the CA's private key.
    pub ca_key: String,
    /// Which data key is used for what is written now.
    generation: u64,
    /// Data keys of Secrets; older ones open what was written under them.
    data_keys: BTreeMap<u64, [u8; 32]>,
    /// PEM of the key that signs service accounts' tokens.
    #[serde(default)]
    pub service_account_key: Option<String>,
}

/// An encrypted Secret cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("these bytes are no encrypted Secret of this version")]
    Form,
    #[error("it is encrypted with data key {0}, which the keyring does not have")]
    Generation(u64),
    #[error("it was changed, or belongs to another object")]
    Damaged,
}

impl Secrets {
    /// Those of a new cluster.
    pub fn new(ca_key: String, data_key: [u8; 32]) -> Secrets {
        Secrets {
            ca_key,
            generation: 1,
            data_keys: BTreeMap::from([(1, data_key)]),
            service_account_key: None,
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The data key of a generation. For tests that look for its bytes where they must not be.
    pub fn data_key(&self, generation: u64) -> Option<&[u8; 32]> {
        self.data_keys.get(&generation)
    }

    /// Writes with a new data key from now on. Of the older ones those stay that something is still encrypted with (`in_use`), and the one
    /// before.
    pub fn rotate(&mut self, data_key: [u8; 32], in_use: &BTreeSet<u64>) {
        self.generation += 1;
        self.data_keys.insert(self.generation, data_key);
        let kept_from = self.generation.saturating_sub(KEPT - 1);
        let stays = |generation: &u64| *generation >= kept_from || in_use.contains(generation);
        for (_, mut key) in self.data_keys.extract_if(.., |generation, _| !stays(generation)) {
            key.zeroize();
        }
    }

    /// Takes over the data keys of another cluster's keyring, for what a backup of it holds, and goes on with a new one above them.
    pub fn take_over(&mut self, old: &Secrets, data_key: [u8; 32]) {
        self.data_keys = old.data_keys.clone();
        self.generation = old.generation;
        self.service_account_key.clone_from(&old.service_account_key);
        let all = self.data_keys.keys().copied().collect();
        self.rotate(data_key, &all);
    }

    /// Encrypts a Secret's bytes. `nonce` must be random and new; `context` names the object and must be given again to open.
    pub fn seal_secret(&self, nonce: [u8; NONCE_LEN], context: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.key(self.generation)?;
        let mut sealed = Vec::with_capacity(HEAD + plain.len() + CHACHA20_POLY1305.tag_len());
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&self.generation.to_be_bytes());
        sealed.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        let aad = Aad::from([&sealed[..HEAD - NONCE_LEN], context].concat());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body).ok()?;
        sealed.extend_from_slice(&body);
        Some(sealed)
    }

    /// Decrypts what [`Secrets::seal_secret`] gave for this object, under any generation that is known.
    pub fn open_secret(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        let (head, body) = sealed.split_at_checked(HEAD).ok_or(SecretError::Form)?;
        let (front, nonce) = head.split_at(HEAD - NONCE_LEN);
        let number = front.strip_prefix(MAGIC).ok_or(SecretError::Form)?;
        let generation = u64::from_be_bytes(number.try_into().map_err(|_| SecretError::Form)?);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SecretError::Form)?;
        let key = self.key(generation).ok_or(SecretError::Generation(generation))?;
        let mut body = Zeroizing::new(body.to_vec());
        let aad = Aad::from([front, context].concat());
        let length = key.open_in_place(nonce, aad, &mut body).map_err(|_| SecretError::Damaged)?.len();
        body.truncate(length);
        Ok(body)
    }

    fn key(&self, generation: u64) -> Option<LessSafeKey> {
        let bytes = self.data_keys.get(&generation)?;
        Some(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).ok()?))
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.ca_key.zeroize();
        self.service_account_key.zeroize();
        self.data_keys.values_mut().for_each(Zeroize::zeroize);
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets(generation {})", self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_back_after_rotations_and_only_as_the_same_object() {
        let mut secrets = Secrets::new("key".into(), [1; 32]);
        let old = secrets.seal_secret([9; 12], b"a/b", b"password").unwrap();
        secrets.rotate([2; 32], &BTreeSet::new());
        let new = secrets.seal_secret([8; 12], b"a/b", b"password").unwrap();
        assert_eq!(secrets.open_secret(b"a/b", &old).unwrap().as_slice(), b"password");
        assert_eq!(secrets.open_secret(b"a/b", &new).unwrap().as_slice(), b"password");
        assert_eq!(secrets.open_secret(b"a/c", &new), Err(SecretError::Damaged));
        assert_eq!((old[11], new[11]), (1, 2), "the generation is in the header");
        let first = Secrets::new("key".into(), [1; 32]);
        assert_eq!(first.open_secret(b"a/b", &new), Err(SecretError::Generation(2)));
        assert!(!old.windows(8).any(|window| window == b"password"));
    }

    #[test]
    fn data_keys_that_nothing_uses_any_more_go_but_for_the_newest_two() {
        let mut secrets = Secrets::new("key".into(), [1; 32]);
        let first = secrets.seal_secret([9; 12], b"a/b", b"password").unwrap();
        assert_eq!(generation_of(&first), Some(1));
        assert_eq!(generation_of(&first[..20]), None);
        let in_use = BTreeSet::from([1]);
        (2..=5).for_each(|byte| secrets.rotate([byte; 32], &in_use));
        let kept = |secrets: &Secrets| secrets.data_keys.keys().copied().collect::<Vec<u64>>();
        assert_eq!(kept(&secrets), [1, 4, 5]);
        assert!(secrets.open_secret(b"a/b", &first).is_ok());
        secrets.rotate([6; 32], &BTreeSet::new());
        assert_eq!(kept(&secrets), [5, 6]);
        assert_eq!(secrets.open_secret(b"a/b", &first), Err(SecretError::Generation(1)));
    }

    #[test]
    fn cut_and_changed_secrets_are_refused() {
        let secrets = Secrets::new("key".into(), [1; 32]);
        let sealed = secrets.seal_secret([9; 12], b"a/b", b"password").unwrap();
        for cut in 0..sealed.len() {
            assert!(secrets.open_secret(b"a/b", &sealed[..cut]).is_err());
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(secrets.open_secret(b"a/b", &changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_restored_clusters_secrets_are_read_with_the_old_data_keys() {
        let old = Secrets::new("old ca".into(), [1; 32]);
        let sealed = old.seal_secret([9; 12], b"a/b", b"password").unwrap();
        let mut new = Secrets::new("new ca".into(), [2; 32]);
        new.take_over(&old, [3; 32]);
        assert_eq!(new.ca_key, "new ca");
        assert_eq!(new.generation(), 2);
        assert_eq!(new.open_secret(b"a/b", &sealed).unwrap().as_slice(), b"password");
    }

    #[test]
    fn what_is_printed_of_secrets_holds_none() {
        assert_eq!(format!("{:?}", Secrets::new("key".into(), [1; 32])), "Secrets(generation 1)");
    }
}

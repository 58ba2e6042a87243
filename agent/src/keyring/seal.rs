//! Sealing bytes to one machine's long-lived key: X25519, HKDF-SHA256, ChaCha20-Poly1305 (docs/formats/keyring.md).
//!
//! Decides the bytes. Randomness is handed in: each sealing needs a fresh ephemeral key, and that alone makes the fixed nonce safe.
//! It must not know what is sealed.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// First byte of what is sealed.
const VERSION: u8 = 1;
const SALT: &[u8] = b"skein seal 1";
const KEY: usize = 32;
/// Version and ephemeral key.
const HEAD: usize = 1 + KEY;

/// The public half of a sealing key.
pub type SealPublic = [u8; KEY];

/// The private half; wiped when it is dropped.
#[derive(Clone)]
pub struct SealKey(StaticSecret);

impl SealKey {
    pub fn from_bytes(bytes: [u8; KEY]) -> SealKey {
        SealKey(StaticSecret::from(bytes))
    }

    pub fn to_bytes(&self) -> Zeroizing<[u8; KEY]> {
        Zeroizing::new(self.0.to_bytes())
    }

    pub fn public(&self) -> SealPublic {
        PublicKey::from(&self.0).to_bytes()
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey")
    }
}

/// Whether something can be sealed to this key: some give everybody the same secret.
pub fn is_sound(to: &SealPublic) -> bool {
    StaticSecret::from([1; KEY]).diffie_hellman(&PublicKey::from(*to)).was_contributory()
}

/// Seals to `to`. `ephemeral` are 32 bytes that were never used before; `context` must be given again to open. `None` for a public
/// key that is none.
pub fn seal(to: &SealPublic, ephemeral: [u8; KEY], context: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    let ephemeral = StaticSecret::from(ephemeral);
    let sender = PublicKey::from(&ephemeral).to_bytes();
    let shared = ephemeral.diffie_hellman(&PublicKey::from(*to));
    if !shared.was_contributory() {
        return None;
    }
    let key = derive(shared.as_bytes(), &sender, to, context)?;
    let mut sealed = Vec::with_capacity(HEAD + plain.len() + CHACHA20_POLY1305.tag_len());
    sealed.push(VERSION);
    sealed.extend_from_slice(&sender);
    let mut body = plain.to_vec();
    key.seal_in_place_append_tag(once(), Aad::from(&sealed[..HEAD]), &mut body).ok()?;
    sealed.extend_from_slice(&body);
    Some(sealed)
}

/// Opens what was sealed to this key in this context; `None` for everything else.
pub fn open(own: &SealKey, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (head, body) = sealed.split_at_checked(HEAD)?;
    let (version, sender) = head.split_first()?;
    if *version != VERSION {
        return None;
    }
    let sender: SealPublic = sender.try_into().ok()?;
    let shared = own.0.diffie_hellman(&PublicKey::from(sender));
    if !shared.was_contributory() {
        return None;
    }
    let key = derive(shared.as_bytes(), &sender, &own.public(), context)?;
    let mut body = Zeroizing::new(body.to_vec());
    let length = key.open_in_place(once(), Aad::from(head), &mut body).ok()?.len();
    body.truncate(length);
    Some(body)
}

fn derive(shared: &[u8], sender: &SealPublic, to: &SealPublic, context: &[u8]) -> Option<LessSafeKey> {
    let info = [sender.as_slice(), to.as_slice(), context];
    let extracted = Salt::new(HKDF_SHA256, SALT).extract(shared);
    let expanded = extracted.expand(&info, &CHACHA20_POLY1305).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(expanded)))
}

/// Each key is made of a fresh ephemeral key and used once.
fn once() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_receiver_opens_and_only_in_the_same_context() {
        let (own, other) = (SealKey::from_bytes([1; 32]), SealKey::from_bytes([2; 32]));
        let sealed = seal(&own.public(), [3; 32], b"here", b"secret").unwrap();
        assert_eq!(open(&own, b"here", &sealed).unwrap().as_slice(), b"secret");
        assert!(open(&other, b"here", &sealed).is_none());
        assert!(open(&own, b"there", &sealed).is_none());
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
    }

    #[test]
    fn cut_and_changed_bytes_are_refused() {
        let own = SealKey::from_bytes([1; 32]);
        let sealed = seal(&own.public(), [3; 32], b"", b"secret").unwrap();
        for cut in 0..sealed.len() {
            assert!(open(&own, b"", &sealed[..cut]).is_none());
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&own, b"", &changed).is_none(), "byte {at}");
        }
    }

    #[test]
    fn a_public_key_that_gives_everybody_the_same_secret_is_refused() {
        assert!(seal(&[0; 32], [3; 32], b"", b"secret").is_none());
        assert!(!is_sound(&[0; 32]) && is_sound(&SealKey::from_bytes([1; 32]).public()));
    }
}

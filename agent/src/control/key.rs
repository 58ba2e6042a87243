//! The names by which controllers know things: store keys of objects, and uids.
//!
//! Decides nothing: each is its own type so that none can be taken for another.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use api::keys;
use api::kinds::Kind;

/// The store's key of one object. Cheap to clone; ordered like the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);

/// An object's `metadata.uid`: what owner references really mean.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Uid(Arc<str>);

impl ObjectKey {
    pub fn new(kind: &Kind, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey(keys::object(kind, namespace, name).into())
    }

    /// From a key of the store; `None` if it names no object.
    pub fn parse(bytes: &[u8]) -> Option<(ObjectKey, &'static Kind)> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (kind, _, _) = keys::parse(text)?;
        Some((ObjectKey(text.into()), kind))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Uid {
    pub fn new(uid: &str) -> Uid {
        Uid(uid.into())
    }
}

impl Borrow<str> for ObjectKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Uid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

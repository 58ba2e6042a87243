//! A sum over what all keys hold: equal for equal contents, in whatever order they came to be.
//!
//! Decides how a key, its value and its revisions become a number. A change takes the old entry's number out and puts the new one's in, so
//! that a replica whose value is not what it should be shows as soon as that key is written, and one that read wrong bytes at once: the
//! sum is made anew from the keys at each start. Must not be taken for a defence against forgers: it finds accidents.

use twox_hash::{XxHash3_64, XxHash3_128};

use super::Entry;
use crate::command::Key;

/// The sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content(u128);

impl Content {
    /// The sum over all of these.
    #[cfg(test)]
    pub(crate) fn of<'a>(objects: impl IntoIterator<Item = (&'a Key, &'a Entry)>) -> Content {
        let mut content = Content::default();
        objects.into_iter().for_each(|(key, entry)| content.put(key, entry));
        content
    }

    pub(crate) fn put(&mut self, key: &Key, entry: &Entry) {
        self.0 = self.0.wrapping_add(number(key, entry));
    }

    pub(crate) fn take(&mut self, key: &Key, entry: &Entry) {
        self.0 = self.0.wrapping_sub(number(key, entry));
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

fn number(key: &Key, entry: &Entry) -> u128 {
    let mut revisions = [0; 16];
    revisions[..8].copy_from_slice(&entry.create_revision.0.to_le_bytes());
    revisions[8..].copy_from_slice(&entry.mod_revision.0.to_le_bytes());
    let seed = XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&key.0), &revisions);
    XxHash3_128::oneshot_with_seed(seed, &entry.value.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Revision;

    fn entry(value: &str, revision: u64) -> Entry {
        Entry { value: value.into(), create_revision: Revision(1), mod_revision: Revision(revision) }
    }

    #[test]
    fn the_sum_knows_contents_and_no_order() {
        let (a, b) = (Key::from("a"), Key::from("b"));
        let (one, two) = (entry("one", 2), entry("two", 3));
        let both = Content::of([(&a, &one), (&b, &two)]);
        assert_eq!(Content::of([(&b, &two), (&a, &one)]), both);
        assert_ne!(Content::of([(&a, &two), (&b, &one)]), both, "whose value it is");
        assert_ne!(Content::of([(&a, &entry("one", 3)), (&b, &two)]), both, "revisions");
        assert_ne!(Content::of([(&a, &entry("onf", 2)), (&b, &two)]), both, "one bit of a value");
        let mut changed = both;
        changed.put(&a, &two);
        changed.take(&a, &two);
        assert_eq!(changed, both);
    }

    #[test]
    fn the_numbers_are_the_same_on_every_machine_and_in_every_version() {
        let content = Content::of([(&Key::from("key"), &entry("value", 7))]);
        assert_eq!(content.to_bytes(), [75, 212, 66, 188, 33, 98, 109, 84, 75, 63, 41, 11, 125, 6, 160, 134]);
    }
}

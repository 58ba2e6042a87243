//! A sum over what all keys hold: equal for equal contents, in whatever order they came to be.
//!
//! Decides how a key, its value and its revisions become a number. A change takes the old entry's number out and puts the new one's in, so
//! that a replica whose value is not what it should be shows as soon as that key is written, and one that read wrong bytes at once: the
//! sum is made anew from the keys at each start. Must not be taken for a defence against forgers: it finds accidents.

use twox_hash::{XxHash3_64, XxHash3_128};

use super::Entry;

/// The sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content(u128);

impl Content {
    /// The sum over all of these.
    #[cfg(test)]
    pub(crate) fn of<'a>(objects: impl IntoIterator<Item = &'a Entry>) -> Content {
        let mut content = Content::default();
        objects.into_iter().for_each(|entry| content.put(entry));
        content
    }

    pub(crate) fn put(&mut self, entry: &Entry) {
        self.0 = self.0.wrapping_add(number(entry));
    }

    pub(crate) fn take(&mut self, entry: &Entry) {
        self.0 = self.0.wrapping_sub(number(entry));
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

fn number(entry: &Entry) -> u128 {
    let mut revisions = [0; 16];
    revisions[..8].copy_from_slice(&entry.create_revision().0.to_le_bytes());
    revisions[8..].copy_from_slice(&entry.mod_revision().0.to_le_bytes());
    let seed = XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(entry.key()), &revisions);
    XxHash3_128::oneshot_with_seed(seed, entry.value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Revision;

    fn entry(key: &str, value: &str, revision: u64) -> Entry {
        Entry::new(key.as_bytes(), value.as_bytes(), Revision(1), Revision(revision))
    }

    #[test]
    fn the_sum_knows_contents_and_no_order() {
        let (one, two) = (entry("a", "one", 2), entry("b", "two", 3));
        let both = Content::of([&one, &two]);
        assert_eq!(Content::of([&two, &one]), both);
        assert_ne!(Content::of([&entry("a", "two", 3), &entry("b", "one", 2)]), both, "whose value it is");
        assert_ne!(Content::of([&entry("a", "one", 3), &two]), both, "revisions");
        assert_ne!(Content::of([&entry("a", "onf", 2), &two]), both, "one bit of a value");
        let mut changed = both;
        changed.put(&two);
        changed.take(&two);
        assert_eq!(changed, both);
    }

    #[test]
    fn the_numbers_are_the_same_on_every_machine_and_in_every_version() {
        let content = Content::of([&entry("key", "value", 7)]);
        assert_eq!(content.to_bytes(), [75, 212, 66, 188, 33, 98, 109, 84, 75, 63, 41, 11, 125, 6, 160, 134]);
    }
}

//! A4 and A5: what watchers were told, put together. Decides whether it is ordered, whole, the same for everybody, and adds up
//! to what lists showed. Must not know where the changes came from.

use std::collections::BTreeMap;
use std::fmt::Debug;

/// What one watcher has put together from a list and changes.
#[derive(Clone, Debug)]
pub struct Picture<K, V> {
    pub at: u64,
    pub entries: BTreeMap<K, V>,
}

impl<K: Ord, V> Default for Picture<K, V> {
    fn default() -> Picture<K, V> {
        Picture { at: 0, entries: BTreeMap::new() }
    }
}

impl<K: Ord + Debug, V> Picture<K, V> {
    /// Takes one change and answers what was there before. Several may have one revision.
    pub fn take(&mut self, revision: u64, key: K, after: Option<V>) -> Result<Option<V>, String> {
        if revision < self.at {
            return Err(format!("A4: {key:?} changed at {revision}, told after {}: out of order", self.at));
        }
        self.at = revision;
        Ok(match after {
            Some(value) => self.entries.insert(key, value),
            None => self.entries.remove(&key),
        })
    }
}

/// Every change that anybody was told of: the one history that all must agree with.
#[derive(Clone, Debug)]
pub struct Canon<K, V> {
    changes: BTreeMap<(u64, K), Option<V>>,
}

impl<K: Ord, V> Default for Canon<K, V> {
    fn default() -> Canon<K, V> {
        Canon { changes: BTreeMap::new() }
    }
}

impl<K: Ord + Clone + Debug, V: PartialEq + Clone + Debug> Canon<K, V> {
    /// Takes what somebody was told; two must not be told different things of one change.
    pub fn learn(&mut self, revision: u64, key: &K, after: &Option<V>) -> Result<(), String> {
        let known = self.changes.entry((revision, key.clone())).or_insert_with(|| after.clone());
        if known == after {
            return Ok(());
        }
        Err(format!("A4: {key:?} at {revision} is {known:?} to one and {after:?} to another"))
    }

    /// What was known of a key at a revision, if it changed there.
    pub fn at(&self, revision: u64, key: &K) -> Option<&Option<V>> {
        self.changes.get(&(revision, key.clone()))
    }

    /// All changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = (u64, &K, &Option<V>)> {
        self.changes.iter().map(|((revision, key), after)| (*revision, key, after))
    }

    /// One watch that began after `from` and was told `told`, and by a bookmark that it had heard all up to `until`: each
    /// change once, in order, none older than asked for, none left out.
    pub fn session(&self, from: u64, told: &[(u64, K, Option<V>)], until: Option<u64>) -> Result<(), String> {
        let mut last = from;
        for (revision, key, after) in told {
            if *revision <= from {
                return Err(format!("A4: a watch from {from} was told of {key:?} at {revision}"));
            }
            if *revision <= last {
                return Err(format!(
                    "A4: {key:?} at {revision} was told after {last}: out of order or twice"
                ));
            }
            last = *revision;
            if self.at(*revision, key) != Some(after) {
                return Err(format!("A4: a watch was told {after:?} of {key:?} at {revision}"));
            }
        }
        if until.is_some_and(|until| until < last) {
            return Err(format!("A4: a bookmark at {until:?} after a change at {last}"));
        }
        let until = until.unwrap_or(last).max(from);
        let mut heard = told.iter().map(|(revision, key, _)| (*revision, key)).peekable();
        for ((revision, key), after) in self.changes.iter().filter(|((at, _), _)| *at > from && *at <= until)
        {
            if heard.next_if_eq(&(*revision, key)).is_none() {
                return Err(format!(
                    "A4: a watch from {from} heard all up to {until} but not {key:?} = {after:?} at {revision}"
                ));
            }
        }
        Ok(())
    }

    /// What a list of a revision must show: each key's value with the revision that it is from.
    pub fn fold(&self, revision: u64) -> BTreeMap<K, (u64, V)> {
        let mut state = BTreeMap::new();
        for ((at, key), after) in self.changes.iter().take_while(|((at, _), _)| *at <= revision) {
            match after {
                Some(value) => state.insert(key.clone(), (*at, value.clone())),
                None => state.remove(key),
            };
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canon() -> Canon<u8, u8> {
        let mut canon = Canon::default();
        for (revision, key, after) in [(3, 1, Some(10)), (5, 2, Some(20)), (6, 1, None), (9, 1, Some(11))] {
            assert_eq!(canon.learn(revision, &key, &after), Ok(()));
        }
        canon
    }

    #[test]
    fn a_watch_that_heard_all_in_order_passes() {
        let canon = canon();
        assert_eq!(canon.session(3, &[(5, 2, Some(20)), (6, 1, None)], None), Ok(()));
        assert_eq!(canon.session(3, &[(5, 2, Some(20)), (6, 1, None)], Some(8)), Ok(()));
        assert_eq!(canon.session(200, &[], Some(200)), Ok(()), "the future is silent");
        assert_eq!(canon.fold(6), BTreeMap::from([(2, (5, 20))]));
    }

    #[test]
    fn gaps_repetitions_old_changes_and_untrue_bookmarks_do_not_pass() {
        let canon = canon();
        assert!(canon.session(3, &[(6, 1, None)], None).unwrap_err().contains("but not 2"));
        assert!(canon.session(3, &[(5, 2, Some(20))], Some(9)).unwrap_err().contains("heard all up to 9"));
        assert!(canon.session(3, &[(5, 2, Some(20)), (5, 2, Some(20))], None).is_err());
        assert!(canon.session(5, &[(5, 2, Some(20))], None).unwrap_err().contains("from 5"));
        assert!(canon.session(3, &[(5, 2, Some(21))], None).is_err());
        assert!(canon.clone().learn(9, &1, &Some(12)).is_err());
    }

    #[test]
    fn a_picture_takes_changes_in_order_only() {
        let mut picture = Picture::default();
        assert_eq!(picture.take(4, "a", Some(1)), Ok(None));
        assert_eq!(picture.take(4, "b", Some(2)), Ok(None));
        assert_eq!(picture.take(6, "a", None), Ok(Some(1)));
        assert!(picture.take(5, "b", None).is_err());
    }
}

//! A state's objects in the order of their keys: a B+tree whose versions share what is the same in both (path copying; Driscoll et al.,
//! "Making Data Structures Persistent", 1989).
//!
//! Decides which leaf a key lies in, and when leaves are split and joined. Must not know what is written or why (`apply`). Why not a
//! library's: that of `imbl` takes 30 bytes for each of keys that ascend where this takes 12, as its leaves are half full then, and short; and
//! it parts its nodes by entries, which keeps what their keys once held (docs/decisions/0125).

use std::slice;
use std::sync::Arc;

use imbl_sized_chunks::Chunk;

use super::Entry;
use super::sys::Shared;

/// Most entries of a leaf.
const ENTRIES: usize = 32;
/// Most children of a branch.
const CHILDREN: usize = 16;

/// Entries by key. Cloning copies a pointer; what changes afterwards is copied first.
#[derive(Clone, Default)]
pub(crate) struct Objects {
    root: Option<Node>,
    length: usize,
}

/// All leaves of a tree are equally deep, and none of them is empty.
#[derive(Clone)]
enum Node {
    Leaf(Arc<Leaf>),
    Branch(Arc<Branch>),
}

type Leaf = Chunk<Entry, ENTRIES>;

#[derive(Clone)]
struct Branch {
    /// For each child but the first: no key of it is less than this, and every key of the one before it is. Keys' bytes alone, so that
    /// nothing keeps what a key held.
    lows: Chunk<Shared, CHILDREN>,
    children: Chunk<Node, CHILDREN>,
}

/// What an insertion came to.
enum Inserted {
    Replaced(Entry),
    Added,
    /// Added, and what does not fit has to go right of it, with its low.
    Split(Shared, Node),
}

impl Objects {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The one of this key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = self.root.as_ref()?;
        loop {
            match node {
                Node::Leaf(leaf) => return position(leaf, key).ok().map(|at| &leaf[at]),
                Node::Branch(branch) => node = &branch.children[branch.child_of(key)],
            }
        }
    }

    /// Adds one, or puts it in the place of the one of its key, which it answers.
    pub(crate) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let Some(root) = &mut self.root else {
            self.root = Some(Node::Leaf(Arc::new(Chunk::unit(entry))));
            self.length = 1;
            return None;
        };
        match root.insert(entry) {
            Inserted::Replaced(before) => return Some(before),
            Inserted::Added => {}
            Inserted::Split(low, right) => {
                let children = Chunk::pair(root.clone(), right);
                *root = Node::Branch(Arc::new(Branch { lows: Chunk::unit(low), children }));
            }
        }
        self.length += 1;
        None
    }

    /// Takes away the one of this key.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        // First, as nothing is copied for a key that is not there.
        self.get(key)?;
        let removed = self.root.as_mut()?.remove(key)?;
        self.length -= 1;
        while let Some(Node::Branch(branch)) = &self.root
            && branch.children.len() <= 1
        {
            self.root = branch.children.first().cloned();
        }
        if self.length == 0 {
            self.root = None;
        }
        Some(removed)
    }

    /// All, in order.
    pub(crate) fn iter(&self) -> Range<'_> {
        self.from(b"")
    }

    /// Those of this key and greater ones, in order.
    pub(crate) fn from(&self, key: &[u8]) -> Range<'_> {
        self.range(key, |entry| entry.key() < key)
    }

    /// Those of greater keys, in order.
    pub(crate) fn after(&self, key: &[u8]) -> Range<'_> {
        self.range(key, |entry| entry.key() <= key)
    }

    /// Begins in the leaf of `key`, behind those for which `is_before` holds.
    fn range(&self, key: &[u8], is_before: impl Fn(&Entry) -> bool) -> Range<'_> {
        let mut range = Range { right: Vec::new(), leaf: [].iter() };
        let mut next = self.root.as_ref();
        while let Some(node) = next {
            next = match node {
                Node::Leaf(leaf) => {
                    range.leaf = leaf[leaf.partition_point(&is_before)..].iter();
                    None
                }
                Node::Branch(branch) => {
                    let mut children = branch.children[branch.child_of(key)..].iter();
                    let child = children.next();
                    range.right.push(children);
                    child
                }
            };
        }
        range
    }
}

#[cfg(test)]
impl FromIterator<Entry> for Objects {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Objects {
        let mut objects = Objects::default();
        entries.into_iter().for_each(|entry| drop(objects.insert(entry)));
        objects
    }
}

/// Entries in order.
pub(crate) struct Range<'a> {
    /// Right of where it is, from the root down.
    right: Vec<slice::Iter<'a, Node>>,
    leaf: slice::Iter<'a, Entry>,
}

impl<'a> Iterator for Range<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(entry);
            }
            match self.right.last_mut()?.next() {
                Some(Node::Leaf(leaf)) => self.leaf = leaf.iter(),
                Some(Node::Branch(branch)) => self.right.push(branch.children.iter()),
                None => drop(self.right.pop()),
            }
        }
    }
}

impl Node {
    /// Of the entries or children that it may have, how many it has.
    fn filled(&self) -> (usize, usize) {
        match self {
            Node::Leaf(leaf) => (leaf.len(), ENTRIES),
            Node::Branch(branch) => (branch.children.len(), CHILDREN),
        }
    }

    fn insert(&mut self, entry: Entry) -> Inserted {
        let leaf = match self {
            Node::Leaf(leaf) => leaf,
            Node::Branch(branch) => return Arc::make_mut(branch).insert(entry),
        };
        match position(leaf, entry.key()) {
            Ok(at) => return Inserted::Replaced(std::mem::replace(&mut Arc::make_mut(leaf)[at], entry)),
            Err(at) if leaf.len() < ENTRIES => Arc::make_mut(leaf).insert(at, entry),
            // Keys that ascend, or descend, leave full leaves behind. The low is such that the next of them comes to the new one.
            Err(ENTRIES) => {
                let low = right_after(leaf[ENTRIES - 1].key());
                return Inserted::Split(low, Node::Leaf(Arc::new(Chunk::unit(entry))));
            }
            Err(0) => {
                let low = bytes(leaf[0].key());
                let right = std::mem::replace(leaf, Arc::new(Chunk::unit(entry)));
                return Inserted::Split(low, Node::Leaf(right));
            }
            Err(at) => {
                let middle = if ascends(leaf, at) { at } else { ENTRIES / 2 };
                let left = Arc::make_mut(leaf);
                let mut right = left.split_off(middle);
                let low = bytes(right[0].key());
                match at <= middle {
                    true => left.insert(at, entry),
                    false => right.insert(at - middle, entry),
                }
                return Inserted::Split(low, Node::Leaf(Arc::new(right)));
            }
        }
        Inserted::Added
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        match self {
            Node::Leaf(leaf) => {
                let at = position(leaf, key).ok()?;
                Some(Arc::make_mut(leaf).remove(at))
            }
            Node::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let at = branch.child_of(key);
                let removed = branch.children[at].remove(key);
                branch.join(at);
                removed
            }
        }
    }

    /// Takes in its right neighbour, which begins at `low`, and for which there is room.
    fn append(&mut self, low: Shared, right: Node) {
        match (self, right) {
            (Node::Leaf(left), Node::Leaf(right)) => Arc::make_mut(left).extend(right.iter().cloned()),
            (Node::Branch(left), Node::Branch(right)) => {
                let left = Arc::make_mut(left);
                left.lows.push_back(low);
                left.lows.extend(right.lows.iter().cloned());
                left.children.extend(right.children.iter().cloned());
            }
            _ => unreachable!("neighbours are equally deep"),
        }
    }
}

impl Branch {
    /// The place of the child that `key` belongs to.
    fn child_of(&self, key: &[u8]) -> usize {
        self.lows.partition_point(|low| **low <= *key)
    }

    fn insert(&mut self, entry: Entry) -> Inserted {
        let at = self.child_of(entry.key());
        match self.children[at].insert(entry) {
            Inserted::Split(low, right) => self.add(at + 1, low, right),
            other => other,
        }
    }

    /// Adds a child in a place that is not the first.
    fn add(&mut self, at: usize, low: Shared, child: Node) -> Inserted {
        if self.children.len() < CHILDREN {
            self.lows.insert(at - 1, low);
            self.children.insert(at, child);
            return Inserted::Added;
        }
        if at == CHILDREN {
            let right = Branch { lows: Chunk::new(), children: Chunk::unit(child) };
            return Inserted::Split(low, Node::Branch(Arc::new(right)));
        }
        let middle = CHILDREN / 2;
        let mut right =
            Branch { lows: self.lows.split_off(middle), children: self.children.split_off(middle) };
        let between = self.lows.pop_back();
        match at <= middle {
            true => self.add(at, low, child),
            false => right.add(at - middle, low, child),
        };
        Inserted::Split(between, Node::Branch(Arc::new(right)))
    }

    /// Lets go of a child that has nothing left, and joins one that has little with a neighbour that has room for it and some more.
    fn join(&mut self, at: usize) {
        let (length, most) = self.children[at].filled();
        if length == 0 {
            self.children.remove(at);
            if !self.lows.is_empty() {
                self.lows.remove(at.saturating_sub(1));
            }
        } else if length < most / 4 {
            let both = |left: &usize| match self.children.get(left + 1) {
                Some(right) => self.children[*left].filled().0 + right.filled().0 <= most / 4 * 3,
                None => false,
            };
            if let Some(left) = [at.checked_sub(1), Some(at)].into_iter().flatten().find(both) {
                let (low, right) = (self.lows.remove(left), self.children.remove(left + 1));
                self.children[left].append(low, right);
            }
        }
    }
}

/// Whether somebody's keys ascend up to this place, before those of somebody else: the two before it are the newest there are, and none behind
/// it is as new. (Keys of one transaction, in whatever order, do not make it so, nor does one that came right before.)
fn ascends(entries: &[Entry], at: usize) -> bool {
    let (before, behind) = entries.split_at(at);
    let [older @ .., last_but_one, last] = before else { return false };
    let since = last_but_one.create_revision();
    since <= last.create_revision()
        && older.iter().all(|entry| entry.create_revision() <= since)
        && behind.iter().all(|entry| entry.create_revision() < since)
}

/// Where `key` is among entries, or where it would be.
fn position(entries: &[Entry], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|entry| entry.key().cmp(key))
}

fn bytes(key: &[u8]) -> Shared {
    Shared::new(key.len(), |bytes| bytes.copy_from_slice(key))
}

/// The least key that is greater.
fn right_after(key: &[u8]) -> Shared {
    Shared::new(key.len() + 1, |bytes| bytes[..key.len()].copy_from_slice(key))
}

#[cfg(test)]
mod tests;

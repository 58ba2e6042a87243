//! Decides what the replicated state is: objects, history window, sessions, epoch, members, and a running hash that
//! is equal on all replicas at equal applied index. Cloning it is cheap; a `View` is such a clone.
//! Must not know time, peers or disks: it changes only by log entries (`apply`) and by a whole snapshot.

pub(crate) mod apply;
pub(crate) mod content;
mod entry;
pub(crate) mod history;
pub(crate) mod objects;
pub(crate) mod sessions;
mod sys;

use std::sync::Arc;

use imbl::OrdMap;
use sha2::{Digest, Sha256};

use crate::command::Key;
use crate::ids::{Epoch, NodeId, Revision, SessionId};
use crate::members::Members;
use crate::version::{self, Supported, Version};
use content::Content;
pub use entry::{Change, Entry};
use history::History;
use objects::Objects;
use sessions::Session;

/// The whole replicated state at one applied entry.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) objects: Objects,
    pub(crate) history: History,
    pub(crate) sessions: OrdMap<SessionId, Session>,
    /// Keys that do not stay, and for how many seconds each does.
    pub(crate) ttls: OrdMap<Key, u32>,
    pub(crate) members: Arc<Members>,
    /// What the cluster may use.
    pub(crate) version: Version,
    /// Over `objects`.
    pub(crate) content: Content,
    pub(crate) revision: Revision,
    pub(crate) epoch: Epoch,
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    pub(crate) hash: [u8; 32],
}

impl State {
    /// The state every cluster begins with: one voter, as if by an entry at index 1 of term 1. Joining replicas get
    /// it by snapshot, because no log ever holds entry 1.
    pub(crate) fn first(id: NodeId) -> State {
        let (members, version) = (Arc::new(Members::only(id)), Supported::OURS.newest);
        State { members, version, applied_index: 1, applied_term: 1, ..State::default() }
    }

    /// What a key holds.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.objects.get(key)
    }

    /// Records the members that result from a membership entry.
    pub(crate) fn set_members(&mut self, members: Members) {
        self.members = Arc::new(members);
    }

    /// Marks the entry (index, term) as applied and folds it and what came of it into the hash.
    pub(crate) fn mark_applied(&mut self, index: u64, term: u64, data: &[u8]) {
        self.applied_index = index;
        self.applied_term = term;
        let mut hasher = Sha256::new();
        hasher.update(self.hash);
        let marks = [
            index,
            term,
            self.revision.0,
            self.history.floor().0,
            self.history.len() as u64,
            self.epoch.0,
            self.objects.len() as u64,
            self.sessions.len() as u64,
            self.ttls.len() as u64,
            data.len() as u64,
        ];
        marks.iter().for_each(|mark| hasher.update(mark.to_le_bytes()));
        self.members
            .voters
            .iter()
            .chain(&self.members.learners)
            .for_each(|id| hasher.update(id.0.to_le_bytes()));
        if self.version >= version::HASHED_VALUES {
            hasher.update(self.version.0.to_le_bytes());
            hasher.update(self.content.to_bytes());
        }
        hasher.update(data);
        self.hash = hasher.finalize().into();
    }
}

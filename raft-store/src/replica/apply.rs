//! Decides what a committed entry is: its type first, only then whether it is empty (an empty membership entry ends
//! a joint state). Must not skip an entry: index, members and hash move with every one.

use prost::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeV2, Entry, EntryType};

use super::Replica;
use crate::codec::{self, CodecError};
use crate::command::Command;
use crate::disk::Disk;
use crate::effect::{Effect, Fatal};
use crate::ids::Epoch;
use crate::members::Members;

impl<D: Disk> Replica<D> {
    pub(super) fn apply_all(&mut self, committed: Vec<Entry>) -> Result<(), Fatal> {
        if committed.is_empty() {
            return Ok(());
        }
        // raft-rs counts quorums by the *applied* members: a power cut must not take a replica back to older ones.
        let is_change = |entry: &&Entry| entry.entry_type != EntryType::EntryNormal as i32;
        if let Some(change) = committed.iter().rev().find(is_change) {
            self.log.persist_commit(change.index)?;
        }
        for entry in committed {
            if planted!(EmptyMembersSkipped) && entry.data.is_empty() {
                self.state.mark_applied(entry.index, entry.term, &entry.data);
                continue;
            }
            self.apply_one(&entry)?;
            self.marks.applied(self.state.applied_index, self.state.hash);
            self.compare_with_feeder();
        }
        let state = self.state.clone();
        self.node.mut_store().set_state(state);
        Ok(())
    }

    fn apply_one(&mut self, entry: &Entry) -> Result<(), Fatal> {
        match EntryType::from_i32(entry.entry_type) {
            Some(EntryType::EntryConfChange) => {
                let change = ConfChange::decode(entry.data.as_slice()).map(as_v2);
                self.apply_members(entry, change)
            }
            Some(EntryType::EntryConfChangeV2) => {
                self.apply_members(entry, ConfChangeV2::decode(entry.data.as_slice()))
            }
            Some(EntryType::EntryNormal) if entry.data.is_empty() => {
                self.state.mark_applied(entry.index, entry.term, &entry.data);
                self.change_overtaken(entry.index, entry.term);
                Ok(())
            }
            Some(EntryType::EntryNormal) => self.apply_command(entry),
            None => Err(Fatal::Consensus(format!("entry {} has an unknown type", entry.index))),
        }
    }

    fn apply_command(&mut self, entry: &Entry) -> Result<(), Fatal> {
        let (index, term) = (entry.index, entry.term);
        let newest = self.config.supported.newest;
        let command = codec::decode_command_for(&entry.data, newest)
            .map_err(|source| Fatal::Command { index, source })?;
        if let Command::SetVersion { version: needed, .. } = command
            && needed > newest
        {
            return Err(Fatal::Command { index, source: CodecError::ClusterVersion { needed, newest } });
        }
        let begins = matches!(command, Command::Epoch { term: begun } if begun == self.node.raft.term);
        let outcome = self.state.apply(index, term, command, &entry.data);
        if begins && self.is_established() {
            self.effects.push(Effect::EpochBegan { epoch: Epoch(term) });
        }
        if let Some(id) = self.proposals.applied(index, term) {
            self.effects.push(Effect::Answer { id, outcome });
        }
        Ok(())
    }

    fn apply_members(
        &mut self,
        entry: &Entry,
        change: Result<ConfChangeV2, prost::DecodeError>,
    ) -> Result<(), Fatal> {
        let change = change.map_err(|error| Fatal::Consensus(format!("entry {}: {error}", entry.index)))?;
        match self.node.apply_conf_change(&change) {
            Ok(conf) => self.state.set_members(Members::from_raft(&conf)),
            // The same on every replica: the change does not fit the members, and they stay.
            Err(error) => tracing::warn!(index = entry.index, %error, "membership entry refused by raft"),
        }
        self.state.mark_applied(entry.index, entry.term, &entry.data);
        self.members_applied(entry.index, entry.term);
        Ok(())
    }
}

/// The older form of a membership entry. We never make it; raft allows it.
fn as_v2(change: ConfChange) -> ConfChangeV2 {
    let single = ConfChangeSingle { change_type: change.change_type, node_id: change.node_id };
    ConfChangeV2 { changes: vec![single], context: change.context, ..ConfChangeV2::default() }
}

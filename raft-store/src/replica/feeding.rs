//! Joins feeds and raft. Decides nothing of who feeds whom (`feed` does): a fed batch becomes an append that raft judges like a
//! leader's, and raft's answer becomes the feed's once it is durable. (A whole state: `installing`.)
//! Must not let a feed look like a leader: what raft knows of its leader and of elections stays as it was for whoever votes or learns.

use raft::eraftpb::{Message, MessageType};

use super::Replica;
use crate::disk::Disk;
use crate::effect::Effect;
use crate::feed::follow::{self, Fit, Standing};
use crate::feed::serve::{Feeder, Said, Stock};
use crate::feed::{self, Batch, Feed, News, Place};
use crate::ids::{Millis, NodeId};
use crate::replica::reads::ReadContext;
use crate::{limits, timing, wire};

impl<D: Disk> Replica<D> {
    pub(super) fn take_feed(&mut self, from: NodeId, stream: u64, message: Feed) {
        match message {
            Feed::Subscribe { scope, from: place } => {
                let looped = self.follower.feeds_us(from);
                let now = self.now;
                let taken = self.with_feeder(|feeder, stock| match looped {
                    true => Err(feed::Reason::Behind),
                    false => feeder.subscribe(now, (from, stream), (scope, place), stock),
                });
                if let Err(reason) = taken {
                    let others = self.feeder.better(reason, &self.others(), self.state.applied_index);
                    self.say(from, stream, &Feed::Refused { reason, others });
                }
            }
            Feed::Batch(batch) => self.take_batch(from, stream, batch),
            Feed::Snapshot(_) => self.refuse(from, "a state in one message"),
            Feed::Piece(piece) => self.take_piece(from, stream, piece),
            Feed::Took { index, pieces, want } => {
                self.feeder.took(self.now, from, stream, (index, pieces, want));
            }
            Feed::Ack { index, fits } => self.feeder.acknowledged(self.now, from, stream, (index, fits)),
            Feed::Leave => self.feeder.left(from, stream),
            Feed::Refused { reason, others } if self.follower.is_from(from, stream) => {
                if reason == feed::Reason::Diverged {
                    return self.differs(self.state.applied_index);
                }
                self.follower.refused(self.now, reason, others);
                self.look_for_a_feed();
            }
            Feed::Refused { .. } => {}
            Feed::AskIndex { boot, counter } => self.ask_index(ReadContext { asker: from, boot, counter }),
            Feed::Index { boot, counter, index } => {
                let context = ReadContext { asker: self.config.id, boot, counter };
                self.reads.confirmed(context, index);
                self.hurry(index);
            }
            Feed::Hurry { index } => {
                self.feeder.hurry(from, stream, index);
                self.hurry(index);
            }
        }
    }

    /// Each tick: leaves a feeder, asks another.
    pub(super) fn look_for_a_feed(&mut self) {
        let standing = self.standing();
        let look = self.follower.look(self.now, standing, &self.state.members.voters);
        if let Some((feeder, stream)) = look.left {
            self.say(feeder, stream, &Feed::Leave);
        }
        if let Some((feeder, stream)) = look.asked {
            let scope = feed::Scope::Full;
            let from = self.place();
            self.say(feeder, stream, &Feed::Subscribe { scope, from });
        }
        // Who is not fed and hears no raft knows of no leader.
        let deaf = self.follower.fed().is_none() && standing.silent_ms >= timing::FEED_LEADERLESS_MS;
        if deaf && !standing.member && !standing.leads {
            self.node.raft.leader_id = raft::INVALID_ID;
        }
    }

    /// When an `advance` is due though nothing came in: something is held back until then.
    pub fn due(&self) -> Option<Millis> {
        [self.feeder.due(), self.telling_due()].into_iter().flatten().min()
    }

    /// Feeds whoever is fed.
    pub(super) fn feed(&mut self) {
        if self.feeder.feeds() == 0 {
            return;
        }
        let now = self.now;
        let said = self.with_feeder(|feeder, stock| feeder.pump(now, stock));
        for Said { to, stream, body } in said {
            let bytes = wire::feed_envelope(&self.config.cluster, stream, &body);
            self.effects.push(Effect::Send { to, bytes, bulk: false });
        }
    }

    /// raft's answer to a fed batch: what it had appended is durable now.
    pub(super) fn acknowledge_feed(&mut self, message: &Message) {
        let told = if message.reject { self.follower.stream() } else { self.follower.acknowledges(self.now) };
        if let Some((feeder, stream)) = told {
            self.say(feeder, stream, &Feed::Ack { index: message.index, fits: !message.reject });
        }
    }

    /// An entry has applied: is the state what the feeder's was?
    pub(super) fn compare_with_feeder(&mut self) {
        let (index, hash) = (self.state.applied_index, self.state.hash);
        self.recent.applied(index, hash);
        if !self.follower.agrees(index, hash) && !planted!(FeedsNotCompared) {
            self.differs(index);
        }
    }

    /// A raft message of a leader's was taken.
    pub(super) fn heard_leader(&mut self, kind: Option<MessageType>, term: u64) {
        use MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot};
        if matches!(kind, Some(MsgAppend | MsgHeartbeat | MsgSnapshot)) && term == self.node.raft.term {
            self.heard = Some(self.now);
        }
    }

    /// What reads ask for by the feed's messages, because raft would not answer one that is no member.
    pub(super) fn ask_for_index(&mut self, context: ReadContext) {
        if let Some(leader) = self.leader() {
            let ReadContext { boot, counter, .. } = context;
            self.say(leader, 0, &Feed::AskIndex { boot, counter });
        }
    }

    /// Reads, here or at one that is fed, wait for what this replica has yet to be fed.
    fn hurry(&mut self, index: u64) {
        if index > self.state.applied_index
            && let Some((feeder, _, _)) = self.follower.fed()
            && let Some((_, stream)) = self.follower.stream()
        {
            self.say(feeder, stream, &Feed::Hurry { index });
        }
    }

    /// A read index that raft confirmed for an observer.
    pub(super) fn tell_index(&mut self, context: ReadContext, index: u64) {
        let ReadContext { asker, boot, counter } = context;
        self.say(asker, 0, &Feed::Index { boot, counter, index });
    }

    /// Whether it votes or learns by its own log.
    pub(super) fn is_member(&self) -> bool {
        self.state.members.contains(self.config.id)
    }

    fn take_batch(&mut self, from: NodeId, stream: u64, batch: Batch) {
        if self.leads() || !self.follower.is_from(from, stream) {
            return self.say(from, stream, &Feed::Leave);
        }
        if !batch.is_sound() {
            return self.refuse(from, "a fed batch that makes no sense");
        }
        self.follower.heard(self.now, batch.news);
        let news = batch.news;
        self.learn_leader(news);
        if !batch.entries.is_empty() && self.log.is_pressed() {
            return self.refuse(from, "the disk is full");
        }
        let raft = &self.node.raft;
        let index = raft.raft_log.committed;
        if batch.is_news() {
            return self.say(from, stream, &Feed::Ack { index, fits: true });
        }
        let expected = batch.hash.map(|hash| (batch.end(), hash));
        let bytes = batch.entries.iter().map(|entry| entry.data.len() as u64).sum();
        match follow::fit(batch, raft.id, raft.term, &raft.raft_log) {
            Fit::Step(message) => {
                self.follower.took(bytes);
                if let Some((end, hash)) = expected.filter(|(end, _)| *end > self.state.applied_index) {
                    self.follower.expect(end, hash);
                }
                self.step_fed(*message, news);
            }
            Fit::Gap => self.say(from, stream, &Feed::Ack { index, fits: false }),
            Fit::Diverged(index) => self.differs(index),
            Fit::Nonsense => self.refuse(from, "a fed batch that makes no sense"),
        }
    }

    /// raft takes it as an append of a leader's, but must not take the feeder for one.
    pub(super) fn step_fed(&mut self, message: Message, news: News) {
        let raft = &self.node.raft;
        let (term, leader, elapsed) = (raft.term, raft.leader_id, raft.election_elapsed);
        let followed = raft.state == raft::StateRole::Follower;
        if let Err(error) = self.node.step(message) {
            self.refuse(NodeId(feed::FEED), &error.to_string());
        }
        let member = self.is_member();
        let raft = &mut self.node.raft;
        let same = raft.term == term && followed;
        raft.leader_id = if member && same { leader } else { raft::INVALID_ID };
        raft.election_elapsed = if member && !same { raft.election_elapsed } else { elapsed };
        self.learn_leader(news);
    }

    /// An observer knows of the leader by its feed.
    pub(super) fn learn_leader(&mut self, news: News) {
        if self.is_member() || self.leads() {
            return;
        }
        let leader = if news.leader == self.config.id.0 { raft::INVALID_ID } else { news.leader };
        self.node.raft.leader_id = leader;
    }

    /// This replica and its feeder hold different things: no more from there.
    fn differs(&mut self, index: u64) {
        let Some((feeder, stream)) = self.follower.differs(self.now, index) else { return };
        tracing::error!(%feeder, index, "what this machine holds differs from what it was fed, which must never be: it takes no more from there. The leader compares all and names the odd one");
        self.say(feeder, stream, &Feed::Leave);
        // What its feeder named as leader may hold other things too: no read is answered by what that said.
        if !self.is_member() {
            self.node.raft.leader_id = raft::INVALID_ID;
            self.reads.distrust();
        }
    }

    fn ask_index(&mut self, context: ReadContext) {
        let room = self.node.raft.pending_read_count() < limits::PENDING_READS;
        if self.leads() && room {
            self.node.read_index(context.encode());
        }
    }

    fn standing(&self) -> Standing {
        let (id, members) = (self.config.id, &self.state.members);
        let stays = [&members.voters, &members.learners, &members.learners_next];
        Standing {
            leads: self.leads(),
            member: stays.iter().any(|list| list.contains(&id)),
            silent_ms: self.now.since(self.heard.unwrap_or(self.begun.unwrap_or(self.now))),
            leader: self.leader(),
            applied: self.state.applied_index,
        }
    }

    /// How many feeds away from a voter this replica's news is; `None` if it is no news.
    fn hops(&self) -> Option<u32> {
        let standing = self.standing();
        let fed = || {
            let (_, news, _) = self.follower.fed()?;
            let near = news.hops + 1 < limits::FEED_HOPS && !self.follower.lags(self.now);
            (near && self.has_news()).then_some(news.hops + 1)
        };
        let hears = self.heard.is_some() && standing.silent_ms < timing::FEED_SILENCE_MS;
        if standing.leads || (standing.member && hears) { Some(0) } else { fed() }
    }

    /// Its feeder speaks, and hears of a leader.
    fn has_news(&self) -> bool {
        let fresh = |heard| self.now.since(heard) < timing::FEED_SILENCE_MS;
        self.follower.fed().is_some_and(|(_, news, heard)| news.leader != 0 && fresh(heard))
    }

    fn place(&self) -> Place {
        let state = &self.state;
        Place { index: state.applied_index, term: state.applied_term, hash: state.hash }
    }

    fn others(&self) -> Vec<NodeId> {
        let (id, leader) = (self.config.id, self.leader());
        let voters = self.state.members.voters.iter().copied().filter(|voter| *voter != id);
        let (leading, others): (Vec<_>, Vec<_>) = voters.partition(|voter| Some(*voter) == leader);
        others.into_iter().chain(leading).take(limits::FEED_HINTS).collect()
    }

    fn with_feeder<T>(&mut self, work: impl FnOnce(&mut Feeder, &Stock<'_>) -> T) -> T {
        let mut feeder = std::mem::take(&mut self.feeder);
        let hops = self.hops();
        let far = hops.is_none() && self.has_news();
        let raft = &self.node.raft;
        let leader = self.leader().filter(|_| hops.is_some()).map_or(0, |leader| leader.0);
        let stock = Stock {
            log: self.node.store(),
            recent: &self.recent,
            applied: self.place(),
            news: News {
                term: raft.term,
                leader,
                commit: raft.raft_log.committed,
                hops: if far { limits::FEED_HOPS } else { feeder.comes_from(hops) },
            },
            leads: self.leads(),
            votes: self.state.members.voters.contains(&self.config.id),
            fresh: hops.is_some() && !self.log.is_pressed(),
            others: self.others(),
            piece_bytes: self.config.feed_piece_bytes,
        };
        let done = work(&mut feeder, &stock);
        self.feeder = feeder;
        done
    }

    pub(super) fn say(&mut self, to: NodeId, stream: u64, message: &Feed) {
        let bytes = wire::feed_envelope(&self.config.cluster, stream, &feed::encode(message));
        self.effects.push(Effect::Send { to, bytes, bulk: false });
    }
}

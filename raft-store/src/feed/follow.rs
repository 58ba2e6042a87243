//! The observer's end of a feed. Decides whether a feed is needed, whom to ask for it, when a feeder is left for another, and whether
//! what it sends follows on this replica's log. Must not step raft, and must not believe one feeder that says others are wrong.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::RaftLog;
use raft::eraftpb::{Message, MessageType};

use super::{Batch, FEED, News, Place, Reason};
use crate::ids::{Millis, NodeId};
use crate::storage::Memory;
use crate::{limits, timing};

/// Hashes that wait until their entry has applied.
const EXPECTED: usize = 256;

/// What the replica is, for the question whether it needs a feed.
#[derive(Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) leads: bool,
    /// By its own log it votes or learns, and will go on doing so.
    pub(crate) member: bool,
    /// Milliseconds since raft heard of a leader.
    pub(crate) silent_ms: u64,
    /// Who leads, as far as is known.
    pub(crate) leader: Option<NodeId>,
    /// The last index that it has applied.
    pub(crate) applied: u64,
}

/// The feed that this replica has, or has asked for.
#[derive(Clone, Copy, Debug)]
struct Source {
    feeder: NodeId,
    stream: u64,
    heard: Millis,
    /// What it said last; nothing before its first word.
    news: Option<News>,
    leaderless: Option<Millis>,
    /// Since when it feeds.
    began: Millis,
    /// When it was told last what is durable here, and how many bytes came since.
    acknowledged: Millis,
    since_bytes: u64,
    /// What it had committed when this replica last held all of that, and since when this is to be reached.
    target: Option<(u64, Millis)>,
}

/// What an observer remembers of its feeds.
pub(crate) struct Follower {
    me: NodeId,
    seed: u64,
    streams: u64,
    /// Who can be asked, and whether it is suspected not to answer.
    peers: BTreeMap<NodeId, bool>,
    /// Whom one that refused us named: voters, or those that it feeds itself.
    hinted: BTreeSet<NodeId>,
    not_before: BTreeMap<NodeId, Millis>,
    /// Who said nothing when it was asked last, or fell silent, and until when that is remembered.
    silent: BTreeMap<NodeId, Millis>,
    source: Option<Source>,
    expected: VecDeque<(u64, [u8; 32])>,
    /// Refusals since somebody fed, and until when nobody is asked because of them.
    refusals: u64,
    rests_until: Millis,
    /// When a better feeder is looked for again, and how often that was in vain.
    better_from: Millis,
    in_vain: u32,
    /// Who fed something else than what this replica has, and where.
    pub(crate) diverged: Option<(NodeId, u64)>,
}

/// What becomes of a batch.
#[derive(Debug)]
pub(crate) enum Fit {
    /// Give this to raft.
    Step(Box<Message>),
    /// It does not follow on what is here.
    Gap,
    /// It contradicts what is committed here, at this index.
    Diverged(u64),
    /// Its numbers make no sense.
    Nonsense,
}

impl Follower {
    /// `first_stream` never repeats on one disk.
    pub(crate) fn new(me: NodeId, seed: u64, first_stream: u64) -> Follower {
        Follower {
            me,
            seed,
            streams: first_stream,
            peers: BTreeMap::new(),
            hinted: BTreeSet::new(),
            not_before: BTreeMap::new(),
            silent: BTreeMap::new(),
            source: None,
            expected: VecDeque::new(),
            refusals: 0,
            rests_until: Millis(0),
            better_from: Millis(0),
            in_vain: 0,
            diverged: None,
        }
    }

    /// Who can be asked now.
    pub(crate) fn peers(&mut self, answering: &[NodeId], suspected: &[NodeId]) {
        let all =
            suspected.iter().map(|peer| (*peer, true)).chain(answering.iter().map(|peer| (*peer, false)));
        self.peers = all.filter(|(peer, _)| *peer != self.me).collect();
    }

    /// Who feeds this replica, once it has said something.
    pub(crate) fn fed(&self) -> Option<(NodeId, News, Millis)> {
        let source = self.source.as_ref()?;
        source.news.map(|news| (source.feeder, news, source.heard))
    }

    /// Who feeds this replica or was asked to, and under which stream.
    pub(crate) fn stream(&self) -> Option<(NodeId, u64)> {
        self.source.map(|source| (source.feeder, source.stream))
    }

    /// Whether this feeder may feed on under this stream.
    pub(crate) fn is_from(&self, feeder: NodeId, stream: u64) -> bool {
        self.stream() == Some((feeder, stream))
    }

    /// Whether it feeds this replica: it must not be fed by it.
    pub(crate) fn feeds_us(&self, peer: NodeId) -> bool {
        self.source.is_some_and(|source| source.feeder == peer)
    }

    /// Leaves a feeder that says nothing or is not needed: whom to tell. Asks another if one is needed: whom, under which stream.
    pub(crate) fn look(&mut self, now: Millis, standing: Standing, voters: &[NodeId]) -> Look {
        let leader = standing.leader;
        self.follow_target(now, standing.applied);
        if self.fed().is_some() && !self.is_second_best(leader) {
            self.in_vain = 0;
        }
        let moves = self.could_do_better(now, leader, voters);
        if moves {
            // A voter may only be a moment behind; one that is full stays so for long.
            let wait_ms = (timing::FEED_SETTLED_MS << self.in_vain.min(8)).min(timing::FEED_SHUN_MS);
            self.better_from = Millis(now.0 + wait_ms);
            self.in_vain += 1;
        }
        self.remember_silence(now);
        let rest_ms = self.to_leave(now, standing).or(moves.then_some(timing::FEED_RETRY_MS));
        let left = rest_ms.map(|rest_ms| self.leave(now, rest_ms));
        let left = left.flatten();
        // Others are a moment behind, and soon no more: until then nobody that looked for better comes to hang on the leader.
        if moves && let Some(leader) = leader {
            self.not_before.insert(leader, Millis(now.0 + timing::FEED_REST_MS));
        }
        let asks = self.source.is_none() && needs(standing, left.is_some());
        Look { left, asked: asks.then(|| self.ask(now, voters, leader)).flatten() }
    }

    fn follow_target(&mut self, now: Millis, applied: u64) {
        let Some(source) = &mut self.source else { return };
        let Some(news) = source.news else { return };
        source.target = source.target.filter(|(commit, _)| applied < *commit).or(Some((news.commit, now)));
    }

    /// Whether this replica has not come for long to what its feeder had: who is fed by it would be as far behind.
    pub(crate) fn lags(&self, now: Millis) -> bool {
        let target = self.source.and_then(|source| source.target);
        target.is_some_and(|(_, since)| now.since(since) >= timing::FEED_LAG_MS)
    }

    /// Voters that say nothing must not keep an observer from asking others, however many they are.
    fn remember_silence(&mut self, now: Millis) {
        let silent = self.source.filter(|source| now.since(source.heard) >= timing::FEED_SILENCE_MS);
        if let Some(source) = silent {
            self.silent.insert(source.feeder, Millis(now.0 + timing::FEED_SILENT_MS));
        }
        self.silent.retain(|_, until| *until > now);
    }

    /// For how long a feeder that is left now is not asked again.
    fn to_leave(&self, now: Millis, standing: Standing) -> Option<u64> {
        let source = self.source.as_ref()?;
        let hears = standing.member && standing.silent_ms < timing::FEED_SILENCE_MS;
        let leaderless = source.leaderless.is_some_and(|at| now.since(at) >= timing::FEED_LEADERLESS_MS);
        match () {
            () if standing.leads || hears => Some(0),
            () if now.since(source.heard) >= timing::FEED_SILENCE_MS => Some(timing::FEED_REST_MS),
            () if leaderless => Some(timing::FEED_REST_MS),
            () if source.news.is_some_and(|news| news.hops >= limits::FEED_HOPS) => {
                Some(timing::FEED_REST_MS)
            }
            () => None,
        }
    }

    /// The leader, or somebody far from the voters, feeds for a while now, and a voter that does not lead could be asked. One feed between is
    /// no reason: voters have few places.
    fn could_do_better(&self, now: Millis, leader: Option<NodeId>, voters: &[NodeId]) -> bool {
        let Some(source) = &self.source else { return false };
        // Not all that joined together: who has left its feeder can feed nobody else for a moment.
        let later_ms = crate::replica::mix(self.seed ^ self.streams) % timing::FEED_SETTLED_MS;
        let settled =
            now.since(source.began) >= timing::FEED_SETTLED_MS + later_ms && now >= self.better_from;
        let answering = self.peers.iter().filter(|(_, suspected)| !**suspected).map(|(peer, _)| peer);
        let rests = |peer: &NodeId| self.not_before.get(peer).is_some_and(|until| *until > now);
        let mut free = answering.filter(|peer| Some(**peer) != leader && !rests(peer));
        self.is_second_best(leader) && settled && free.any(|peer| voters.contains(peer))
    }

    /// The leader feeds this replica, or one that is far from the voters.
    fn is_second_best(&self, leader: Option<NodeId>) -> bool {
        let far = |source: &Source| source.news.is_some_and(|news| news.hops > 1);
        self.source.as_ref().is_some_and(|source| Some(source.feeder) == leader || far(source))
    }

    fn leave(&mut self, now: Millis, rest_ms: u64) -> Option<(NodeId, u64)> {
        let source = self.source.take()?;
        self.expected.clear();
        self.not_before.insert(source.feeder, Millis(now.0 + rest_ms));
        Some((source.feeder, source.stream))
    }

    /// The best of those that may be asked: voters, then other observers, then the leader, then the suspected and the silent; among
    /// equals by chance.
    fn ask(&mut self, now: Millis, voters: &[NodeId], leader: Option<NodeId>) -> Option<(NodeId, u64)> {
        self.not_before.retain(|_, at| *at > now);
        if self.rests_until > now {
            return None;
        }
        let votes = |peer: &NodeId| voters.contains(peer) || self.hinted.contains(peer);
        let rank = |peer: &NodeId| match () {
            () if self.peers.get(peer) == Some(&true) || self.silent.contains_key(peer) => 3,
            () if leader == Some(*peer) => 2,
            () if votes(peer) => 0,
            () => 1,
        };
        let chance = |peer: &NodeId| crate::replica::mix(self.seed ^ peer.0.rotate_left(17) ^ self.streams);
        let free = self.peers.keys().filter(|peer| !self.not_before.contains_key(peer));
        let feeder = *free.min_by_key(|peer| (rank(peer), chance(peer), **peer))?;
        self.streams += 1;
        self.source = Some(Source {
            feeder,
            stream: self.streams,
            heard: now,
            news: None,
            leaderless: None,
            began: now,
            acknowledged: Millis(0),
            since_bytes: 0,
            target: None,
        });
        Some((feeder, self.streams))
    }

    /// The feeder said something.
    pub(crate) fn heard(&mut self, now: Millis, news: News) {
        let Some(source) = &mut self.source else { return };
        source.heard = now;
        self.refusals = 0;
        self.silent.remove(&source.feeder);
        source.news = Some(news);
        source.leaderless = match news.leader {
            0 => source.leaderless.or(Some(now)),
            _ => None,
        };
    }

    /// A piece of a state came: its feeder is not left for a better one meanwhile, or all that was taken would be for nothing.
    pub(crate) fn takes_state(&mut self, now: Millis) {
        if let Some(source) = &mut self.source {
            source.began = now;
        }
    }

    /// A batch came that raft takes.
    pub(crate) fn took(&mut self, bytes: u64) {
        if let Some(source) = &mut self.source {
            source.since_bytes += bytes;
        }
    }

    /// Whom to tell now, under which stream, that a batch is durable here. Not of each: the feeder counts bytes, and whether it is heard.
    pub(crate) fn acknowledges(&mut self, now: Millis) -> Option<(NodeId, u64)> {
        let source = self.source.as_mut()?;
        let late = now.since(source.acknowledged) >= timing::FEED_ACK_MS;
        if !late && source.since_bytes < limits::FEED_CREDIT_BYTES / 8 {
            return None;
        }
        (source.acknowledged, source.since_bytes) = (now, 0);
        Some((source.feeder, source.stream))
    }

    /// The feeder refused; who is asked next may be one that it names.
    pub(crate) fn refused(&mut self, now: Millis, reason: Reason, others: Vec<NodeId>) {
        let rest_ms = match reason {
            Reason::Behind => timing::FEED_RETRY_MS,
            Reason::Full => timing::FEED_REST_MS,
            Reason::ScopeNotServed | Reason::Diverged => timing::FEED_SHUN_MS,
        };
        self.hinted = others.into_iter().take(limits::FEED_HINTS).collect();
        // While nobody has a place, or what is wanted, all who want a feed must not ask all others without end.
        self.refusals += 1;
        if self.refusals.is_multiple_of(limits::FEED_REFUSALS) {
            let turns = self.refusals / limits::FEED_REFUSALS;
            self.rests_until = Millis(now.0 + (turns * timing::FEED_RETRY_MS).min(timing::FEED_REST_MS));
        }
        self.leave(now, rest_ms);
    }

    /// The feeder and this replica are not the same at `index`: nothing more from there, for long.
    pub(crate) fn differs(&mut self, now: Millis, index: u64) -> Option<(NodeId, u64)> {
        let left = self.leave(now, timing::FEED_SHUN_MS)?;
        self.diverged = Some((left.0, index));
        Some(left)
    }

    /// What the feeder sends cannot be used: nothing more from there, for long.
    pub(crate) fn shun(&mut self, now: Millis) -> Option<(NodeId, u64)> {
        self.leave(now, timing::FEED_SHUN_MS)
    }

    /// What the feeder's state was after an entry of its own.
    pub(crate) fn expect(&mut self, index: u64, hash: [u8; 32]) {
        if self.expected.len() < EXPECTED {
            self.expected.push_back((index, hash));
        }
    }

    /// Whether the state after an applied entry is what the feeder's was, as far as that is known.
    pub(crate) fn agrees(&mut self, index: u64, hash: [u8; 32]) -> bool {
        while let Some((expected, theirs)) = self.expected.front().copied()
            && expected <= index
        {
            self.expected.pop_front();
            if expected == index && theirs != hash {
                return false;
            }
        }
        true
    }
}

/// What `look` found.
#[derive(Debug)]
pub(crate) struct Look {
    /// Tell it, under this stream, that it need not feed.
    pub(crate) left: Option<(NodeId, u64)>,
    /// Ask it, under this stream.
    pub(crate) asked: Option<(NodeId, u64)>,
}

/// Whether a replica without a feed wants one. Who votes or learns hears its leader; only a long silence says otherwise.
fn needs(standing: Standing, had_one: bool) -> bool {
    let patience_ms = if had_one { timing::FEED_SILENCE_MS } else { timing::FEED_PATIENCE_MS };
    !standing.leads && (!standing.member || standing.silent_ms >= patience_ms)
}

/// What becomes of a batch at a replica whose log is `log` and whose term is `term`.
pub(crate) fn fit(batch: Batch, me: u64, term: u64, log: &RaftLog<Memory>) -> Fit {
    if !batch.is_sound() || batch.is_news() {
        return Fit::Nonsense;
    }
    let end = batch.end();
    let commit = batch.news.commit.min(end);
    let term = term.max(batch.news.term);
    let (mut index, mut anchor_term) = batch.after;
    if planted!(StaleFeedWithGap) && index > log.last_index() {
        (index, anchor_term) = (log.last_index(), log.last_term());
    }
    // What is committed here is not looked at again, but for the last of it.
    let known = (log.committed.saturating_sub(index) as usize).min(batch.entries.len());
    if known > 0 {
        (index, anchor_term) = (index + known as u64, batch.entries[known - 1].term);
    }
    if index > log.last_index() {
        return Fit::Gap;
    }
    let ours = log.term(index).unwrap_or(0);
    if ours != anchor_term {
        return match (index > log.committed, ours) {
            (true, _) => Fit::Gap,
            // Covered by a snapshot: older than anything that can still differ.
            (false, 0) => step(append(me, term, (index, anchor_term), commit, Vec::new())),
            (false, _) => Fit::Diverged(index),
        };
    }
    let rest = batch.entries.into_iter().skip(known).zip(index + 1..);
    let entries = rest.map(|(entry, index)| entry.into_entry(index)).collect();
    step(append(me, term, (index, anchor_term), commit, entries))
}

fn step(message: Message) -> Fit {
    Fit::Step(Box::new(message))
}

/// The append that a fed batch is for raft.
pub(crate) fn append(
    me: u64,
    term: u64,
    after: (u64, u64),
    commit: u64,
    entries: Vec<raft::eraftpb::Entry>,
) -> Message {
    Message {
        msg_type: MessageType::MsgAppend as i32,
        from: FEED,
        to: me,
        term,
        index: after.0,
        log_term: after.1,
        commit,
        entries,
        ..Message::default()
    }
}

impl Place {
    /// Whether two ends could be one at this place, by their hashes.
    pub(crate) fn may_be(&self, theirs: Option<[u8; 32]>) -> bool {
        theirs.is_none_or(|theirs| theirs == self.hash)
    }
}

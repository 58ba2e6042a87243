//! The feeder's end of feeds. Decides who is fed, how much is on its way to each, when it is sent again, and when a whole state goes
//! instead. Feeds only what this replica has applied. Must not touch raft: what it may look at is handed in as `Stock`.

use std::collections::{BTreeMap, VecDeque};

use super::recent::Recent;
use super::sending::Sending;
use super::{Batch, FedEntry, Feed, News, Place, Reason, SANE, Scope, Want, encode};
use crate::ids::{Millis, NodeId};
use crate::storage::Memory;
use crate::{limits, timing};

/// What a feeder has.
pub(crate) struct Stock<'a> {
    pub(crate) log: &'a Memory,
    pub(crate) recent: &'a Recent,
    pub(crate) applied: Place,
    pub(crate) news: News,
    pub(crate) leads: bool,
    pub(crate) votes: bool,
    /// It hears of a leader, by raft or by few enough feeds: its news is news.
    pub(crate) fresh: bool,
    /// The other voters, whom it would name to somebody it refuses.
    pub(crate) others: Vec<NodeId>,
    /// Length of a state's pieces.
    pub(crate) piece_bytes: usize,
}

/// Feeds take turns in so many parts: not all who are fed get to work at once.
const PARTS: usize = 4;

/// One member that is fed.
struct Feeding {
    stream: u64,
    /// Which one it is of all that there ever were.
    number: usize,
    /// The next index to be sent.
    next: u64,
    acked: u64,
    /// Ends and sizes of what is not acknowledged.
    under_way: VecDeque<(u64, u64)>,
    said: Millis,
    heard: Millis,
    /// When it lacked little last, and when what it has grew last or was all.
    near: Millis,
    moved: Millis,
    /// It takes nothing of what it is offered.
    stuck: bool,
    /// Its disk had no room for a state.
    roomless: bool,
    /// Entries up to here are not gathered first.
    hurried: u64,
    /// A state is on its way.
    state: Option<Sending>,
    /// No state before this.
    no_state_before: Millis,
    /// It is being sent a state, or got one and has not come up to this index since: the log is kept for it.
    behind: Option<u64>,
    /// After which index it was last sent again, when, and how long until the next time.
    again: (u64, Millis, u64),
}

/// All feeds of a feeder.
#[derive(Default)]
pub(crate) struct Feeder {
    feeds: BTreeMap<NodeId, Feeding>,
    stale_since: Option<Millis>,
    /// How many there ever were.
    subscribed: usize,
    /// When entries were sent last, to each part of the feeds.
    fed: [Option<Millis>; PARTS],
    /// When those that are gathered go.
    due: Option<Millis>,
    /// What those are told whose place somebody else has now.
    parting: Vec<Said>,
    /// How far its news came, when it had some last.
    hops: Option<u32>,
}

/// One message to be sent.
pub(crate) struct Said {
    pub(crate) to: NodeId,
    pub(crate) stream: u64,
    pub(crate) body: Vec<u8>,
}

/// The batch that the last feed got, with its first and last index: others want the same one.
type Shared = Option<(u64, u64, Vec<u8>)>;

impl Feeder {
    /// How many are fed.
    pub(crate) fn feeds(&self) -> usize {
        self.feeds.len()
    }

    /// How far its news comes, from `hops` if it has some. One moment without does not send everybody away: they hear that it knows of no leader,
    /// and are told to go when that lasts.
    pub(crate) fn comes_from(&mut self, hops: Option<u32>) -> u32 {
        self.hops = hops.or(self.hops);
        self.hops.unwrap_or(limits::FEED_HOPS)
    }

    /// Whom somebody is to ask who is not fed here: for whom there is no place is sent on to those that are fed and have caught up with `applied`.
    pub(crate) fn better(&self, reason: Reason, voters: &[NodeId], applied: u64) -> Vec<NodeId> {
        let fed = self.feeds.iter().filter(|(_, feed)| feed.has_caught_up(applied)).map(|(id, _)| *id);
        let fed: Vec<NodeId> = fed.take(limits::FEED_HINTS).collect();
        if reason == Reason::Full && !fed.is_empty() { fed } else { voters.to_vec() }
    }

    /// Takes a subscription, or says why not.
    pub(crate) fn subscribe(
        &mut self,
        now: Millis,
        (from, stream): (NodeId, u64),
        (scope, place): (Scope, Place),
        stock: &Stock<'_>,
    ) -> Result<(), Reason> {
        // What came twice or late: a stream is asked for once, and later ones have higher numbers. To begin anew would lose what is under way.
        if self.feeds.get(&from).is_some_and(|feed| feed.stream >= stream) {
            return Ok(());
        }
        self.feeds.remove(&from);
        match () {
            () if scope != Scope::Full => Err(Reason::ScopeNotServed),
            () if !stock.fresh || stock.applied.index == 0 || !has(&place, stock) => Err(Reason::Behind),
            () if differs(&place, stock) => Err(Reason::Diverged),
            () if self.feeds.len() >= self.places(stock) && !self.take_place(now, stock) => Err(Reason::Full),
            () => {
                self.stale_since = None;
                self.feeds.insert(from, Feeding::new(now, (stream, self.subscribed), place.index));
                self.subscribed += 1;
                Ok(())
            }
        }
    }

    /// How many may be fed: who takes a state, which may last, and until it has come up since can feed nobody, counts beside the others.
    fn places(&self, stock: &Stock<'_>) -> usize {
        let taking = self.feeds.values().filter(|feed| feed.takes_state()).count();
        bound(stock) + taking.min(limits::FEED_STATES)
    }

    /// Takes the place of one that lags, so that the slow do not keep everybody else out. One that is being sent a state, or waits for its
    /// turn, does not lag, unless its disk had no room.
    fn take_place(&mut self, now: Millis, stock: &Stock<'_>) -> bool {
        let lags =
            |(_, feed): &(&NodeId, &Feeding)| feed.roomless || now.since(feed.near) >= timing::FEED_HELD_MS;
        let slowest = self.feeds.iter().filter(lags).min_by_key(|(_, feed)| feed.acked).map(|(to, _)| *to);
        let Some(to) = slowest.filter(|_| self.feeds.len() <= self.places(stock)) else { return false };
        let Some(feed) = self.feeds.remove(&to) else { return false };
        let others = self.better(Reason::Full, &stock.others, stock.applied.index);
        self.parting.push(feed.refused(to, Reason::Full, &others));
        true
    }

    /// What a fed member says that it has.
    pub(crate) fn acknowledged(
        &mut self,
        now: Millis,
        from: NodeId,
        stream: u64,
        (index, fits): (u64, bool),
    ) {
        let known = |feed: &&mut Feeding| feed.stream == stream && index < SANE;
        let Some(feed) = self.feeds.get_mut(&from).filter(known) else { return };
        feed.heard = now;
        if index > feed.acked {
            feed.acked = index;
            feed.moved = now;
            feed.again.2 = timing::FEED_AGAIN_MS;
        }
        while feed.under_way.front().is_some_and(|(end, _)| *end <= index) {
            feed.under_way.pop_front();
        }
        if feed.state.as_ref().is_some_and(|state| state.index() <= index) {
            feed.state = None;
            feed.next = feed.next.max(index + 1);
        }
        if !fits && feed.state.is_none() {
            feed.send_again(now, index);
        }
    }

    /// Whether this is a feed's: a member that says "no more" is forgotten.
    pub(crate) fn left(&mut self, from: NodeId, stream: u64) {
        if self.feeds.get(&from).is_some_and(|feed| feed.stream == stream) {
            self.feeds.remove(&from);
        }
    }

    /// What a member that is sent a state says of its pieces.
    pub(crate) fn took(
        &mut self,
        now: Millis,
        from: NodeId,
        stream: u64,
        (index, pieces, want): (u64, u64, Want),
    ) {
        let Some(feed) = self.feeds.get_mut(&from).filter(|feed| feed.stream == stream) else { return };
        feed.heard = now;
        let Some(state) = feed.state.as_mut().filter(|state| state.index() == index) else { return };
        match want {
            Want::More | Want::Missing => {
                state.took(now, pieces, want == Want::Missing);
                feed.roomless &= pieces == 0;
            }
            Want::Room => {
                feed.begin_anew(Millis(now.0 + timing::FEED_ROOM_MS));
                feed.roomless = true;
            }
        }
    }

    /// A read of a fed member's waits for this index.
    pub(crate) fn hurry(&mut self, from: NodeId, stream: u64, index: u64) {
        if let Some(feed) = self.feeds.get_mut(&from).filter(|feed| feed.stream == stream) {
            feed.hurried = feed.hurried.max(index);
        }
    }

    /// The indexes from which the log has to go on holding entries, as far as there is memory for it: one for each feed.
    pub(crate) fn needs(&self) -> impl Iterator<Item = u64> + '_ {
        self.feeds.values().map(|feed| feed.state.as_ref().map_or(feed.acked, Sending::index) + 1)
    }

    /// When there is something to be sent that is still held back.
    pub(crate) fn due(&self) -> Option<Millis> {
        self.due.filter(|_| !self.feeds.is_empty())
    }

    /// All that is to be sent now. Entries are gathered for a moment and go to many at once: each batch costs each of them a message and a
    /// sync.
    pub(crate) fn pump(&mut self, now: Millis, stock: &Stock<'_>) -> Vec<Said> {
        self.feeds.values_mut().for_each(|feed| feed.look(now, stock));
        let mut said = self.shed(now, stock);
        let mut shared: Shared = None;
        let mut states = self.feeds.values().filter(|feed| feed.state.is_some()).count();
        let turns: Vec<Millis> = (0..PARTS).map(|part| turn(part, self.fed[part])).collect();
        self.due = None;
        for (to, feed) in &mut self.feeds {
            let turn = turns[feed.number % PARTS];
            let mut out = Vec::new();
            if now >= turn || feed.hurried >= feed.next {
                out = feed.batches(stock, &mut shared);
            } else if feed.waits(stock) {
                self.due = self.due.map_or(Some(turn), |due| Some(due.min(turn)));
            }
            if !out.is_empty() {
                self.fed[feed.number % PARTS] = Some(now);
            }
            if feed.lacks(stock) && now >= feed.no_state_before && states < limits::FEED_STATES {
                states += 1;
                feed.begin_state(now, stock);
            }
            if let Some(state) = &mut feed.state {
                out.extend(state.messages(now, stock.news, stock.piece_bytes));
            }
            if out.is_empty() && now.since(feed.said) >= timing::FEED_BEAT_MS {
                out.push(feed.beat(stock));
            }
            if !out.is_empty() {
                feed.said = now;
            }
            let stream = feed.stream;
            said.extend(out.into_iter().map(|body| Said { to: *to, stream, body }));
        }
        said
    }

    /// Ends the feeds of who is not heard any more, those beyond the bound, and all when the news is old.
    fn shed(&mut self, now: Millis, stock: &Stock<'_>) -> Vec<Said> {
        self.feeds.retain(|_, feed| now.since(feed.heard) < timing::FEED_LOST_MS);
        self.stale_since = match stock.fresh {
            true => None,
            false => self.stale_since.or(Some(now)),
        };
        let stale = self.stale_since.is_some_and(|at| now.since(at) >= timing::FEED_STALE_MS);
        let (keep, reason) = if stale { (0, Reason::Behind) } else { (self.places(stock), Reason::Full) };
        let mut said = std::mem::take(&mut self.parting);
        let surplus = self.feeds.len().saturating_sub(keep);
        if surplus == 0 {
            return said;
        }
        // Not who takes a state: it would have to begin anew elsewhere. It goes when it has come up since.
        let may_go = |(_, feed): &(&NodeId, &Feeding)| stale || !feed.takes_state();
        let ranked = |(id, feed): (&NodeId, &Feeding)| (feed.rank(stock.applied.index), *id);
        let mut going: Vec<_> = self.feeds.iter().filter(may_go).map(ranked).collect();
        // Those that have caught up are of use to those that are sent away, and are named to them; who is fed for longest feeds most.
        going.sort_unstable();
        let going = going.into_iter().rev().take(surplus);
        let gone: Vec<_> = going.filter_map(|(_, id)| Some((id, self.feeds.remove(&id)?))).collect();
        let others = self.better(reason, &stock.others, stock.applied.index);
        said.extend(gone.into_iter().map(|(to, feed)| feed.refused(to, reason, &others)));
        said
    }
}

impl Feeding {
    fn new(now: Millis, (stream, number): (u64, usize), acked: u64) -> Feeding {
        Feeding {
            stream,
            number,
            next: acked + 1,
            acked,
            under_way: VecDeque::new(),
            // The first word comes at once.
            said: Millis(0),
            heard: now,
            near: now,
            moved: now,
            stuck: false,
            roomless: false,
            hurried: 0,
            state: None,
            no_state_before: Millis(0),
            behind: None,
            again: (0, Millis(0), timing::FEED_AGAIN_MS),
        }
    }

    /// It is being sent a state, or has not come up since.
    fn takes_state(&self) -> bool {
        self.state.is_some() || self.behind.is_some()
    }

    /// Whether others can be sent to it.
    fn has_caught_up(&self, applied: u64) -> bool {
        let near = self.acked > 0 && self.acked + limits::FEED_LACKS >= applied;
        near && !self.takes_state() && !self.stuck
    }

    /// Its place among those that are kept: those that have caught up first, in the order of their coming, then by what they have.
    fn rank(&self, applied: u64) -> (bool, u64) {
        match self.has_caught_up(applied) {
            true => (false, self.number as u64),
            false => (true, u64::MAX - self.acked),
        }
    }

    /// What it is told that is fed no more.
    fn refused(&self, to: NodeId, reason: Reason, others: &[NodeId]) -> Said {
        Said { to, stream: self.stream, body: encode(&Feed::Refused { reason, others: others.to_vec() }) }
    }

    fn has_room(&self) -> bool {
        self.under_way.iter().map(|(_, bytes)| bytes).sum::<u64>() < limits::FEED_CREDIT_BYTES
    }

    /// Goes back to what follows `index`, not at every batch that did not fit.
    fn send_again(&mut self, now: Millis, index: u64) {
        let (after, at, wait_ms) = self.again;
        if after == index && now.since(at) < wait_ms {
            return;
        }
        let wait_ms = if after == index { (wait_ms * 2).min(timing::FEED_AGAIN_MOST_MS) } else { wait_ms };
        self.again = (index, now, wait_ms);
        self.next = index + 1;
        self.under_way.clear();
    }

    /// Gives up a state of which nothing comes, and notices who has caught up.
    fn look(&mut self, now: Millis, stock: &Stock<'_>) {
        if self.state.as_ref().is_some_and(|state| state.is_stuck(now)) {
            self.begin_anew(now);
        }
        let lacks = self.lacks(stock);
        let sent_a_state = self.state.is_some() || (lacks && now >= self.no_state_before);
        if self.acked >= stock.applied.index {
            self.moved = now;
        }
        // One whose disk is full hears all, and takes nothing.
        let takes = now.since(self.moved) < timing::FEED_LAG_MS;
        if sent_a_state || (!lacks && takes && self.acked + limits::FEED_LACKS >= stock.applied.index) {
            self.near = now;
        }
        self.stuck = !sent_a_state && !takes;
        if self.state.is_none() {
            self.behind = self.behind.map(|index| index.min(stock.applied.index));
            self.behind.take_if(|index| *index <= self.acked);
        }
    }

    /// Forgets the state that was on its way.
    fn begin_anew(&mut self, not_before: Millis) {
        self.state = None;
        self.behind = None;
        self.no_state_before = not_before;
        self.next = self.acked + 1;
    }

    /// Whether there are entries that could be sent.
    fn waits(&self, stock: &Stock<'_>) -> bool {
        self.state.is_none() && self.next <= offered(stock) && self.has_room() && !self.lacks(stock)
    }

    /// The entries that follow, as long as they are here and there is room under way.
    fn batches(&mut self, stock: &Stock<'_>, shared: &mut Shared) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while self.state.is_none() && self.has_room() && self.next <= offered(stock) {
            let Some((end, body)) = batch(stock, self.next, shared) else { break };
            self.under_way.push_back((end, body.len() as u64));
            self.next = end + 1;
            out.push(body);
        }
        out
    }

    /// Whether the log has forgotten what comes next.
    fn lacks(&self, stock: &Stock<'_>) -> bool {
        self.state.is_none() && self.next <= stock.applied.index && stock.log.term_of(self.next - 1).is_none()
    }

    fn begin_state(&mut self, now: Millis, stock: &Stock<'_>) {
        let state = Sending::new(now, stock.log.state_to_feed());
        self.next = state.index() + 1;
        self.under_way.clear();
        self.behind = Some(u64::MAX);
        self.state = Some(state);
    }

    /// A batch without entries: what was sent before shows to be missing if it is.
    fn beat(&self, stock: &Stock<'_>) -> Vec<u8> {
        let last = self.next - 1;
        let known = self.state.is_none() && last <= stock.applied.index;
        let term = if known { stock.log.term_of(last) } else { None };
        let after = term.map_or((0, 0), |term| (last, term));
        encode(&Feed::Batch(Batch { news: stock.news, after, entries: Vec::new(), hash: None }))
    }
}

/// When a part of the feeds may be sent entries again that was last at `fed`: the parts' times lie between each other's.
fn turn(part: usize, fed: Option<Millis>) -> Millis {
    let (whole, offset) = (timing::FEED_GATHER_MS, part as u64 * timing::FEED_GATHER_MS / PARTS as u64);
    fed.map_or(Millis(0), |fed| Millis((fed.0 + whole - offset) / whole * whole + offset))
}

/// How many may be fed.
fn bound(stock: &Stock<'_>) -> usize {
    match () {
        () if !stock.leads && !stock.votes => limits::FEEDS,
        () if stock.others.is_empty() => limits::LONE_VOTER_FEEDS,
        () if stock.leads => limits::LEADER_FEEDS,
        () => limits::VOTER_FEEDS,
    }
}

/// Whether this replica has what the asker has, or is about to: under writes one is a moment behind another, and what its log holds under the
/// same term will apply. A lower index alone says nothing: the asker may have what was lost here.
fn has(place: &Place, stock: &Stock<'_>) -> bool {
    place.index <= stock.applied.index || stock.log.term_of(place.index) == Some(place.term)
}

/// Whether the place is known not to be one of ours.
fn differs(place: &Place, stock: &Stock<'_>) -> bool {
    let term = stock.log.term_of(place.index);
    let last = (place.index == stock.applied.index).then_some(stock.applied.hash);
    let hash = stock.recent.at(place.index).or(last);
    place.index > 0 && (term.is_some_and(|term| term != place.term) || !place.may_be(hash))
}

/// The last index that is fed: what is applied here.
fn offered(stock: &Stock<'_>) -> u64 {
    if planted!(StaleFeedUncommitted) { stock.log.last_index_held() } else { stock.applied.index }
}

/// The batch that begins at `next`, and its end; `None` if the log has forgotten what it needs.
fn batch(stock: &Stock<'_>, next: u64, shared: &mut Shared) -> Option<(u64, Vec<u8>)> {
    if let Some((_, end, body)) = shared.as_ref().filter(|(first, ..)| *first == next) {
        return Some((*end, body.clone()));
    }
    let last = offered(stock);
    let term = stock.log.term_of(next - 1)?;
    let entries = stock.log.some(next, last, limits::FEED_BATCH_BYTES)?;
    let mut batch = Batch {
        news: stock.news,
        after: (next - 1, term),
        entries: entries.iter().map(FedEntry::of).collect(),
        hash: None,
    };
    if planted!(StaleFeedUncommitted) {
        batch.news.commit = batch.news.commit.max(batch.end());
    }
    let end = batch.end();
    batch.hash = stock.recent.at(end);
    let body = encode(&Feed::Batch(batch));
    *shared = Some((next, end, body.clone()));
    Some((end, body))
}

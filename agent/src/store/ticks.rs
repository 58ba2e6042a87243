//! raft's clock on the replica's thread: how many ticks have passed, and whether before or after what came.
//!
//! Decides what counts as silence: time in which the thread listened and nothing came. A follower that did not listen, because it waited for
//! the disk or was given no processor, has heard nothing and cannot say that nothing was said. Must not read a clock.

use raft_store::timing::{HEARTBEAT_MS, TICK_MS};

/// Ticks that are given out together while others are heard: a heartbeat's distance.
const TOGETHER: u64 = HEARTBEAT_MS / TICK_MS;
/// Most ticks of one round: those, and one for an alarm that is late.
const MOST: u64 = TOGETHER + 1;
/// Without a message for this long (milliseconds) each tick counts by itself: elections are near.
const HEARD_MS: u64 = 300;

/// Times are milliseconds of [`crate::clock::millis`].
pub struct Ticks {
    last: u64,
    heard: u64,
    /// When the thread began to listen, until when it meant to, and whether something waited already.
    listens: u64,
    until: u64,
    behind: bool,
}

impl Ticks {
    pub fn new(now: u64) -> Ticks {
        Ticks { last: now, heard: 0, listens: now, until: now, behind: false }
    }

    /// Milliseconds until the next ticks are due.
    pub fn wait(&self, now: u64) -> u64 {
        let quiet = now.saturating_sub(self.heard) > HEARD_MS;
        let together = if quiet { TICK_MS } else { TICK_MS * TOGETHER };
        (self.last + together).saturating_sub(now)
    }

    /// The thread listens from now on, for so long at most; `behind`: something came before it did.
    pub fn listen(&mut self, now: u64, wait: u64, behind: bool) {
        (self.listens, self.until, self.behind) = (now, now + wait, behind);
    }

    /// Something came. Answers the ticks that count before it: those of a silence that was listened to.
    pub fn before(&mut self, now: u64) -> u64 {
        self.heard = now;
        if self.deaf(now) { 0 } else { self.give(now, MOST) }
    }

    /// What came was taken. Answers the ticks that count now. `leads`: a leader's ticks are its heartbeats, which are not put off.
    pub fn after(&mut self, now: u64, leads: bool) -> u64 {
        let most = if self.deaf(now) && !leads { 1 } else { MOST };
        self.behind = false;
        self.give(now, most)
    }

    fn deaf(&self, now: u64) -> bool {
        self.behind || now > self.until + TICK_MS
    }

    /// The ticks since the last, at most so many; what is beyond is dropped.
    fn give(&mut self, now: u64, most: u64) -> u64 {
        let passed = now.saturating_sub(self.last) / TICK_MS;
        self.last = if passed > most { now } else { self.last + passed * TICK_MS };
        passed.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A follower that hears a leader each heartbeat; each is told apart by when it comes.
    fn heard_at_rest() -> Ticks {
        let mut ticks = Ticks::new(0);
        ticks.before(0);
        ticks.after(0, false);
        ticks
    }

    #[test]
    fn silence_counts_before_the_message_that_ends_it() {
        let mut ticks = heard_at_rest();
        let wait = ticks.wait(0);
        assert_eq!(wait, HEARTBEAT_MS);
        ticks.listen(0, wait, false);
        assert_eq!(ticks.before(174), 6);
        assert_eq!(ticks.after(174, false), 0, "an election comes early by none of them");
    }

    #[test]
    fn an_alarm_that_is_a_little_late_loses_no_time() {
        let mut ticks = heard_at_rest();
        ticks.listen(0, 175, false);
        assert_eq!(ticks.after(190, false), 7);
        ticks.listen(190, ticks.wait(190), false);
        assert_eq!(ticks.after(201, false), 1);
    }

    #[test]
    fn what_was_slept_through_is_no_silence() {
        let mut ticks = heard_at_rest();
        ticks.listen(0, 175, false);
        assert_eq!(ticks.before(2_000), 0);
        assert_eq!(ticks.after(2_000, false), 1);
        ticks.listen(2_000, 25, false);
        assert_eq!(ticks.before(2_024), 0, "the time slept is forgotten");
    }

    #[test]
    fn a_slow_disk_is_no_silence_when_something_waits_behind_it() {
        let mut ticks = heard_at_rest();
        ticks.listen(100, 75, true);
        assert_eq!(ticks.before(100), 0);
        assert_eq!(ticks.after(100, false), 1);
        // The next message was waited for.
        ticks.listen(100, 75, false);
        assert_eq!(ticks.before(150), 2);
    }

    #[test]
    fn a_leader_that_was_late_sends_its_heartbeat() {
        let mut ticks = heard_at_rest();
        ticks.listen(0, 100, false);
        assert_eq!(ticks.before(400), 0);
        assert_eq!(ticks.after(400, true), MOST);
    }

    #[test]
    fn near_an_election_each_tick_counts_by_itself() {
        let mut ticks = heard_at_rest();
        for now in [175, 350] {
            assert_eq!(ticks.wait(now - 175), 175);
            ticks.listen(now - 175, 175, false);
            assert_eq!(ticks.after(now, false), TOGETHER);
        }
        assert_eq!(ticks.wait(350), TICK_MS);
    }
}

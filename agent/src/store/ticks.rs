//! raft's clock on the replica's thread: how many ticks have passed, and whether before or after what came.
//!
//! Decides what counts as silence. A follower's thread that did not listen, because it waited for the disk or was given no processor, may have
//! been spoken to: it looks first at what came, and if a member spoke, the time before counts for nothing. Must not read a clock.

use raft_store::timing::{HEARTBEAT_MS, TICK_MS};

/// Ticks that are given out together while others are heard: a heartbeat's distance.
const TOGETHER: u64 = HEARTBEAT_MS / TICK_MS;
/// Most ticks of one round: those, and one for an alarm that is late. Longer silences were slept through.
const MOST: u64 = TOGETHER + 1;
/// Without a message for this long (milliseconds) each tick counts by itself: elections are near.
const HEARD_MS: u64 = 300;

/// Times are milliseconds of [`crate::clock::millis`].
pub struct Ticks {
    last: u64,
    heard: u64,
    /// When the thread listened last, and until when it means to now.
    listened: u64,
    until: u64,
    deaf: bool,
}

impl Ticks {
    pub fn new(now: u64) -> Ticks {
        Ticks { last: now, heard: 0, listened: now, until: now, deaf: false }
    }

    /// Milliseconds until the next ticks are due.
    pub fn wait(&self, now: u64) -> u64 {
        let quiet = now.saturating_sub(self.heard) > HEARD_MS;
        let together = if quiet { TICK_MS } else { TICK_MS * TOGETHER };
        (self.last + together).saturating_sub(now)
    }

    /// The thread listens from now on, for so long at most.
    pub fn listen(&mut self, now: u64, wait: u64) {
        self.deaf = now > self.listened + TICK_MS;
        self.until = now + wait;
    }

    /// It listens no longer. Answers whether it was deaf: before it listened, or beyond the time that it meant to.
    pub fn woke(&mut self, now: u64) -> bool {
        self.listened = now;
        self.deaf |= now > self.until + TICK_MS;
        self.deaf
    }

    /// Something came. Answers the ticks that count before it: those of a silence that was listened to.
    pub fn before(&mut self, now: u64) -> u64 {
        if self.deaf { 0 } else { self.give(now) }
    }

    /// All that came was taken; `heard`: a member spoke. Answers the ticks that count now. `leads`: a leader's are its heartbeats, and are not
    /// put off.
    pub fn after(&mut self, now: u64, heard: bool, leads: bool) -> u64 {
        if heard {
            self.heard = now;
        }
        if self.deaf && heard && !leads {
            self.last = now;
        }
        self.give(now)
    }

    /// The ticks since the last, at most so many; what is beyond is dropped.
    fn give(&mut self, now: u64) -> u64 {
        let passed = now.saturating_sub(self.last) / TICK_MS;
        self.last = if passed > MOST { now } else { self.last + passed * TICK_MS };
        passed.min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A follower that has just heard its leader.
    fn heard_at_rest() -> Ticks {
        let mut ticks = Ticks::new(0);
        ticks.listen(0, 0);
        ticks.woke(0);
        ticks.after(0, true, false);
        ticks
    }

    fn listened(ticks: &mut Ticks, from: u64, wait: u64, to: u64) -> bool {
        ticks.listen(from, wait);
        ticks.woke(to)
    }

    #[test]
    fn silence_counts_before_the_message_that_ends_it() {
        let mut ticks = heard_at_rest();
        let wait = ticks.wait(0);
        assert_eq!(wait, HEARTBEAT_MS);
        assert!(!listened(&mut ticks, 0, wait, 174));
        assert_eq!(ticks.before(174), 6);
        assert_eq!(ticks.after(174, true, false), 0, "an election comes early by none of them");
    }

    #[test]
    fn an_alarm_that_is_a_little_late_loses_no_time() {
        let mut ticks = heard_at_rest();
        assert!(!listened(&mut ticks, 0, 175, 190));
        assert_eq!(ticks.after(190, false, false), 7);
        let wait = ticks.wait(190);
        assert!(!listened(&mut ticks, 190, wait, 201));
        assert_eq!(ticks.after(201, false, false), 1);
    }

    #[test]
    fn what_was_slept_through_is_no_silence_if_a_member_spoke_meanwhile() {
        let mut ticks = heard_at_rest();
        assert!(listened(&mut ticks, 0, 175, 2_000));
        assert_eq!(ticks.before(2_000), 0);
        assert_eq!(ticks.after(2_000, true, false), 0);
        assert!(!listened(&mut ticks, 2_000, 175, 2_050));
        assert_eq!(ticks.before(2_050), 2, "from then on it is counted again");
    }

    #[test]
    fn who_slept_and_finds_nothing_said_counts_a_little_of_it() {
        let mut ticks = heard_at_rest();
        assert!(listened(&mut ticks, 0, 175, 2_000));
        assert_eq!(ticks.after(2_000, false, false), MOST);
    }

    #[test]
    fn a_slow_disk_is_no_silence_if_a_member_spoke_meanwhile() {
        for spoke in [true, false] {
            let mut ticks = heard_at_rest();
            assert!(!listened(&mut ticks, 0, 175, 10));
            // The round that follows takes 150 ms, and something of this machine's own waits at its end.
            assert!(listened(&mut ticks, 160, 15, 160));
            assert_eq!(ticks.before(160), 0);
            assert_eq!(ticks.after(160, spoke, false), if spoke { 0 } else { 6 });
        }
    }

    #[test]
    fn a_leader_that_was_late_sends_its_heartbeat() {
        let mut ticks = heard_at_rest();
        assert!(listened(&mut ticks, 0, 100, 400));
        assert_eq!(ticks.before(400), 0);
        assert_eq!(ticks.after(400, true, true), MOST);
    }

    #[test]
    fn near_an_election_each_tick_counts_by_itself() {
        let mut ticks = heard_at_rest();
        for now in [175, 350] {
            assert_eq!(ticks.wait(now - 175), 175);
            assert!(!listened(&mut ticks, now - 175, 175, now));
            assert_eq!(ticks.after(now, false, false), TOGETHER);
        }
        assert_eq!(ticks.wait(350), TICK_MS);
    }
}

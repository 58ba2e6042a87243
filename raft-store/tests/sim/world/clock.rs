//! A machine's monotonic clock: how fast it runs, that it is ahead, that it stands still.
//!
//! Decides what it shows at a true time. It never goes back: no such clock does, and a replica is told no other time.

use raft_store::Millis;

/// Thousandths of true time that a clock of the right rate runs in one.
const TRUE: u64 = 1_000;

#[derive(Debug)]
pub struct Clock {
    /// In thousandths of the true one's.
    rate: u64,
    /// It showed this …
    shown: u64,
    /// … at this true time, until which it stands still.
    since: u64,
}

impl Clock {
    /// One that is right.
    pub fn right() -> Clock {
        Clock { rate: TRUE, shown: 0, since: 0 }
    }

    pub fn shows(&self, now: u64) -> Millis {
        Millis(self.shown + now.saturating_sub(self.since) * self.rate / TRUE)
    }

    /// The true time at which it will surely show this.
    pub fn when(&self, shown: Millis) -> u64 {
        self.since + shown.0.saturating_sub(self.shown) * TRUE / self.rate + 1
    }

    /// How long so much of its time takes.
    pub fn takes(&self, ms: u64) -> u64 {
        ms * TRUE / self.rate
    }

    /// Until when it stands still.
    pub fn stands_until(&self, now: u64) -> Option<u64> {
        (self.since > now).then_some(self.since)
    }

    pub fn set_rate(&mut self, now: u64, rate: u64) {
        self.begin_anew(now);
        self.rate = rate;
    }

    /// Its machine slept, and it counted on.
    pub fn jump(&mut self, now: u64, ms: u64) {
        self.begin_anew(now);
        self.shown += ms;
    }

    pub fn stand_still(&mut self, now: u64, ms: u64) {
        self.begin_anew(now);
        self.since = self.since.max(now + ms);
    }

    pub fn go_on(&mut self, now: u64) {
        self.since = self.since.min(now);
    }

    fn begin_anew(&mut self, now: u64) {
        self.shown = self.shows(now).0;
        self.since = self.since.max(now);
    }
}

#[test]
fn a_clock_never_goes_back_and_is_waited_for_as_long_as_it_takes() {
    let mut clock = Clock::right();
    let mut last = Millis(0);
    for now in 0..20_000 {
        match now {
            1_003 => clock.set_rate(now, 950),
            2_007 => clock.stand_still(now, 500),
            2_300 => clock.stand_still(now, 100),
            3_001 => clock.set_rate(now, 1_050),
            3_500 => clock.stand_still(now, 400),
            3_700 => clock.jump(now, 10_000),
            4_000 => clock.stand_still(now, 5_000),
            5_000 => clock.go_on(now),
            _ => {}
        }
        let shown = clock.shows(now);
        assert!(shown >= last, "at {now}");
        let later = Millis(shown.0 + 250);
        let when = clock.when(later);
        assert!(clock.shows(when) >= later && clock.shows(when - 3) < later, "at {now}");
        last = shown;
    }
    assert_eq!(clock.stands_until(20_000), None);
}

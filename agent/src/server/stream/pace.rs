//! Whether a connection's questions come one at a time, so that it may be served beside the replica.
//!
//! Decides by the questions alone. A question that is asked while no other is under way spends most of its time in threads that wake each other:
//! on the replica's thread it needs two of these hops less (docs/decisions/0222). Must not bring work there that others would have to wait for:
//! many questions at once, ranges, much in one question or answer, or what goes on to another machine.

/// So many questions that each came alone, one after another, make a connection quiet.
pub const QUIET: u32 = 64;

/// What was seen of a connection.
#[derive(Debug, Default)]
pub struct Pace {
    /// Questions since the last that did not come alone, or was none for the replica, or was answered with much.
    alone: u32,
}

impl Pace {
    /// A question begins. `of_replica`: this machine's replica alone answers it, with little. `others`: some are under way.
    pub fn begins(&mut self, of_replica: bool, others: bool) {
        self.alone = if of_replica && !others { self.alone.saturating_add(1) } else { 0 };
    }

    /// It is not to be called quiet before as many again have come.
    pub fn forget(&mut self) {
        self.alone = 0;
    }

    pub fn is_quiet(&self) -> bool {
        self.alone >= QUIET
    }

    /// The last question, or its answer, has ended the quiet.
    pub fn is_busy(&self) -> bool {
        self.alone == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_one_at_a_time_are_quiet_and_the_first_that_is_not_ends_that() {
        let mut pace = Pace::default();
        for _ in 0..QUIET {
            assert!(!pace.is_quiet());
            pace.begins(true, false);
        }
        assert!(pace.is_quiet() && !pace.is_busy());
        for (of_replica, others) in [(true, true), (false, false), (false, true)] {
            pace.begins(of_replica, others);
            assert!(pace.is_busy() && !pace.is_quiet());
            (0..QUIET).for_each(|_| pace.begins(true, false));
            assert!(pace.is_quiet());
        }
        pace.forget();
        assert!(pace.is_busy(), "an answer, or who wants the seat, ends it too");
        (1..QUIET).for_each(|_| pace.begins(true, false));
        assert!(!pace.is_quiet() && !pace.is_busy());
    }
}

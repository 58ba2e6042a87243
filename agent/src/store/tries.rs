//! What the answer to one try of a command means for the command.
//!
//! Decides whether it is settled or tried again, and what is known when the time is over. It must not call a command "not done"
//! once a try of it may have taken effect, whatever a later try is told.

use raft_store::{Outcome, Refusal};

/// What came of one try.
pub enum Tried {
    Answered(Outcome),
    /// Nothing can have happened.
    NotSent,
    /// It may have happened.
    NoAnswer,
}

/// The tries of one command so far.
#[derive(Default)]
pub struct Tries {
    uncertain: bool,
}

impl Tries {
    /// The command's outcome, if this settles it; else it is tried again.
    pub fn settle(&mut self, tried: Tried) -> Option<Outcome> {
        match tried {
            Tried::Answered(Outcome::NotLeader { .. } | Outcome::Refused(Refusal::HandingOver))
            | Tried::NotSent => None,
            Tried::Answered(Outcome::Lost) | Tried::NoAnswer => {
                self.uncertain = true;
                None
            }
            // This try was refused; an earlier one may be on its way into the log.
            Tried::Answered(Outcome::Refused(_)) if self.uncertain => None,
            Tried::Answered(outcome) => Some(outcome),
        }
    }

    /// Whether a try without a final answer may have taken effect.
    pub fn uncertain(&self) -> bool {
        self.uncertain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_store::Revision;

    const REFUSED: [Refusal; 3] = [Refusal::Busy, Refusal::HandingOver, Refusal::DiskFull];

    fn refused(why: Refusal) -> Tried {
        Tried::Answered(Outcome::Refused(why))
    }

    /// A find of chaos-store, seed 18091: a write whose first try was without answer was told "not done" when its second try met
    /// a leader that was handing over. It was done.
    #[test]
    fn a_refusal_after_a_try_without_answer_settles_nothing() {
        for why in REFUSED {
            for lost in [Tried::NoAnswer, Tried::Answered(Outcome::Lost)] {
                let mut tries = Tries::default();
                assert_eq!(tries.settle(lost), None);
                assert_eq!(tries.settle(refused(why)), None, "{why}");
                assert!(tries.uncertain());
            }
        }
    }

    #[test]
    fn a_handover_is_waited_for_and_other_refusals_are_told_at_once() {
        let mut tries = Tries::default();
        assert_eq!(tries.settle(refused(Refusal::HandingOver)), None);
        assert_eq!(tries.settle(Tried::NotSent), None);
        assert!(!tries.uncertain());
        assert_eq!(tries.settle(refused(Refusal::Busy)), Some(Outcome::Refused(Refusal::Busy)));
    }

    #[test]
    fn an_answer_of_the_log_settles_also_what_was_uncertain() {
        let applied = Outcome::Applied { revision: Revision(7), changed: true };
        let mut tries = Tries::default();
        assert_eq!(tries.settle(Tried::NoAnswer), None);
        assert_eq!(tries.settle(Tried::Answered(applied.clone())), Some(applied));
    }
}

//! Refusals: other members close the door because this machine's key is not on their list.
//!
//! Decides when that is more than a list which has not arrived yet. It must not draw any other conclusion: a machine that was removed
//! while it was away hears of it in no other way, but keeps its state until somebody resets it.

use std::sync::{Mutex, PoisonError};

use quinn::ConnectionError;

use super::tls::UNKNOWN_KEY;
use crate::timing;

/// Why a member closes connections to one that has left its list.
pub const REMOVED: &[u8] = b"removed from the cluster";
/// Why it closes a new one that resumes an earlier session, in which TLS looks at no certificate again.
pub const NOT_A_MEMBER: &[u8] = b"not a member";

#[derive(Default)]
struct State {
    /// Of the first refusal that nothing has contradicted, in milliseconds of [`crate::clock::millis`].
    since: Option<u64>,
    said: bool,
}

/// What the others have let this machine know.
#[derive(Default)]
pub struct Refusals(Mutex<State>);

impl Refusals {
    /// A connection has ended; whether it is time to say, once, that this machine is no member any more.
    pub fn ended(&self, why: &ConnectionError, now: u64) -> bool {
        if !is_refusal(why) {
            return false;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts = now.saturating_sub(*state.since.get_or_insert(now));
        lasts >= timing::REFUSED.as_millis() as u64 && !std::mem::replace(&mut state.said, true)
    }

    /// A member has let this machine in, or has come by itself.
    pub fn contradicted(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }
}

pub(super) fn is_refusal(why: &ConnectionError) -> bool {
    let reason = match why {
        ConnectionError::ApplicationClosed(close) => {
            return [REMOVED, NOT_A_MEMBER].contains(&&close.reason[..]);
        }
        ConnectionError::ConnectionClosed(close) => &close.reason,
        _ => return false,
    };
    reason.windows(UNKNOWN_KEY.len()).any(|part| part == UNKNOWN_KEY.as_bytes())
}

#[cfg(test)]
mod tests {
    use quinn::{ApplicationClose, VarInt};

    use super::*;

    #[test]
    fn refusals_that_last_are_told_once_and_a_member_that_answers_contradicts_them() {
        let close = ApplicationClose { error_code: VarInt::from_u32(1), reason: REMOVED.into() };
        let refusal = ConnectionError::ApplicationClosed(close);
        let refusals = Refusals::default();
        assert!(!refusals.ended(&refusal, 1_000), "the list may be on its way");
        assert!(!refusals.ended(&ConnectionError::TimedOut, 9_000));
        assert!(refusals.ended(&refusal, 9_000));
        assert!(!refusals.ended(&refusal, 20_000), "once");
        refusals.contradicted();
        assert!(!refusals.ended(&refusal, 30_000));
        assert!(refusals.ended(&refusal, 40_000));
    }
}

//! The only place of this crate that reads a clock, and the log time format.
//!
//! Decides how a moment is written (RFC 3339, UTC, nine digits, as CRI logs have it). Must not decide
//! anything *by* the time: callers that need a deadline are handed durations.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Wall-clock time, nanoseconds since 1970 UTC. For people and for `since`, never for ordering events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn nanos(self) -> i64 {
        self.0
    }

    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// Reads the form that `Display` writes; fractions of any length up to nine digits.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('Z')?;
        let (date, time) = text.split_once('T')?;
        let mut date = date.splitn(3, '-').map(str::parse::<i64>);
        let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let mut time = time.splitn(3, ':').map(str::parse::<i64>);
        let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
        if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let scale = 10_i64.checked_pow(9 - u32::try_from(fraction.len()).ok()?)?;
        let nanos = fraction.parse::<i64>().ok()?.checked_mul(scale)?;
        let seconds = ((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
        Some(Self(seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds();
        let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
        let rest = seconds.rem_euclid(86_400);
        let nanos = self.0.rem_euclid(1_000_000_000);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
    }
}

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the crate's clock module")]
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// The monotonic clock, for the shim's time limits.
#[expect(clippy::disallowed_methods, reason = "this is the crate's clock module")]
pub fn monotonic() -> Instant {
    Instant::now()
}

// Howard Hinnant's algorithms; exact for every year that an i64 of nanoseconds reaches.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_print_and_parse() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_785_542_399_999_999_999, "2026-07-31T23:59:59.999999999Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(Timestamp::from_nanos(nanos).to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(Timestamp::from_nanos(nanos)));
        }
    }

    #[test]
    fn short_fractions_and_garbage() {
        assert_eq!(Timestamp::parse("1970-01-01T00:00:01.5Z"), Some(Timestamp::from_nanos(1_500_000_000)));
        for text in ["", "Z", "1970-01-01", "1970-01-01T00:00:00.Z", "a-b-cTd:e:fZ", "1970-01-01T00:00:00.0"]
        {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}

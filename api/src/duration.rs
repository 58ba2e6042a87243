//! Ages as kubectl prints them: `12s`, `3m5s`, `4h`, `2d`.
//!
//! Decides the wording only; the two times are handed in.

use jiff::Timestamp;

/// Human form of a span of whole seconds (k8s.io/apimachinery `HumanDuration`).
pub fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: i64, unit: char, small: i64, below: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{below}") }
    };
    match seconds {
        i64::MIN..=-2 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        _ => pair(days / 365, 'y', days % 365, 'd'),
    }
}

/// Age of an RFC 3339 time at `now`, `<unknown>` where there is none.
pub fn age(since: Option<&str>, now: Timestamp) -> String {
    match since.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(time) => human(now.as_second() - time.as_second()),
        None => "<unknown>".into(),
    }
}

/// The form of times in objects: RFC 3339, whole seconds, UTC.
pub fn rfc3339(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second()).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_kubectl() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (11_000, "3h3m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }

    #[test]
    fn times_have_whole_seconds() {
        let time: Timestamp = "2026-11-23T20:00:01.25Z".parse().unwrap();
        assert_eq!(rfc3339(time), "2026-11-23T20:00:01Z");
    }
}

//! Where the time goes: what the agents logged between two moments, with milliseconds since the first.
//!
//! Decides which lines belong to it (those that name what is looked for, or plan). Must not judge.

use super::Cluster;

/// Milliseconds since midnight, UTC, of a log line's time (`2026-11-26T03:46:16.380924Z …`).
fn of_day_ms(line: &str) -> Option<f64> {
    let time = line.get(11..26)?;
    let mut parts = time.split(':');
    let (hours, minutes): (f64, f64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(((hours * 60.0 + minutes) * 60.0 + seconds) * 1_000.0)
}

/// Prints the lines of all agents that name `name` or a round of planning, from the first that names it to `span_ms` after it.
pub fn print(cluster: &Cluster, name: &str, span_ms: f64) {
    let mut lines: Vec<(f64, String)> = Vec::new();
    for host in cluster.bed.hosts() {
        let text = std::fs::read_to_string(host.log_path()).unwrap_or_default();
        let timed = text.lines().filter_map(|line| Some((of_day_ms(line)?, line.get(28..)?)));
        lines.extend(timed.map(|(at, line)| (at, format!("{:<6} {line}", host.name()))));
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some(begun) = lines.iter().find(|(_, line)| line.contains(name)).map(|(at, _)| *at) else { return };
    println!("  the slowest, since the controllers first saw it:");
    for (at, line) in lines.iter().filter(|(at, _)| (begun..=begun + span_ms).contains(at)) {
        if line.contains(name) || line.contains("planned") {
            println!("  {:>7.1} ms  {line}", at - begun);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_log_lines_are_read_and_other_lines_are_none() {
        assert_eq!(of_day_ms("2026-11-26T00:01:02.500000Z  INFO agent: x"), Some(62_500.0));
        assert_eq!(of_day_ms("error: no agent"), None);
        assert_eq!(of_day_ms("éééééééééééééééééééééééé"), None);
    }
}

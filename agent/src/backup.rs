//! Backups of the whole state: on demand, and by a schedule on every voter's own disk.
//!
//! Decides when one is due and which old ones go. Must not put anything into a backup that the store does not hold: the keyring is in
//! it as it is there, sealed (`crate::keyring`), and a restore makes a new CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raft_store::{View, rescue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{info, warn};

use crate::clock;
use crate::cluster::Cluster;
use crate::identity;

/// Where the schedule is kept.
pub const SETTING: &str = "s/backups";
/// How often the driver looks whether one is due.
const LOOK: Duration = Duration::from_secs(60);
const SUFFIX: &str = ".skein-backup";

/// How often, and how many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Seconds between two; 0: none.
    pub every_s: u64,
    pub keep: usize,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule { every_s: 12 * 3600, keep: 5 }
    }
}

impl Schedule {
    /// Reads what an operator asked for: `{"every": "6h", "keep": 5}`; `every` may be `off`.
    pub fn parse(body: &Value) -> Result<Schedule, String> {
        let text = body["every"].as_str().unwrap_or("12h");
        let keep = body["keep"].as_u64().unwrap_or(5);
        if !(1..=1_000).contains(&keep) {
            return Err(format!("{keep} backups cannot be kept: say 1 to 1000"));
        }
        let every_s = if text == "off" { 0 } else { seconds(text)? };
        Ok(Schedule { every_s, keep: keep as usize })
    }

    /// The cluster's.
    pub fn of(view: &View) -> Schedule {
        let entry = view.get(SETTING.as_bytes());
        entry.and_then(|entry| serde_json::from_slice(&entry.value.0).ok()).unwrap_or_default()
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no time: say 30m, 6h, 1d or off");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let factor = match unit {
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

/// The bytes of a backup of `view`. Encoding a big state takes a while: it has a thread of its own, and the store goes on.
pub async fn make(cluster: &Cluster, view: View) -> Result<Vec<u8>, tokio::task::JoinError> {
    let id = cluster.identity.cluster_id();
    tokio::task::spawn_blocking(move || rescue::backup(&view, id)).await
}

/// Makes the scheduled backups of this machine, while it votes.
pub async fn run(cluster: Arc<Cluster>) {
    let directory = cluster.config.data.join("backups");
    loop {
        let view = cluster.store.view();
        let schedule = Schedule::of(&view);
        let now = clock::wall().as_second();
        let votes = view.members().is_voter(cluster.me());
        if votes && schedule.every_s > 0 && due(&list(&directory), schedule, now) {
            match keep_one(&cluster, &directory, view, now).await {
                Ok(path) => info!(path = %path.display(), "backup made"),
                Err(error) => warn!(%error, "no backup could be made"),
            }
            for old in surplus(list(&directory), schedule.keep) {
                let _ = std::fs::remove_file(directory.join(name(old)));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn keep_one(cluster: &Cluster, directory: &Path, view: View, now: i64) -> Result<PathBuf, String> {
    identity::make_private_directory(directory).map_err(|error| error.to_string())?;
    let bytes = make(cluster, view).await.map_err(|error| error.to_string())?;
    let path = directory.join(name(now));
    identity::write_durably(&path, &bytes).map_err(|error| error.to_string())?;
    Ok(path)
}

/// A backup's file by the second when it was made.
fn name(at: i64) -> String {
    format!("{at}{SUFFIX}")
}

/// When the backups of a directory were made, oldest first.
fn list(directory: &Path) -> Vec<i64> {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut times: Vec<i64> =
        names.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(SUFFIX)?.parse().ok()).collect();
    times.sort_unstable();
    times
}

fn due(made: &[i64], schedule: Schedule, now: i64) -> bool {
    // A clock that was set back does not stop backups for ever.
    made.last().is_none_or(|last| *last > now || now - last >= schedule.every_s as i64)
}

fn surplus(mut made: Vec<i64>, keep: usize) -> Vec<i64> {
    made.truncate(made.len().saturating_sub(keep));
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_backup_is_due_when_the_last_is_old_and_the_oldest_go() {
        let schedule = Schedule { every_s: 100, keep: 2 };
        assert!(due(&[], schedule, 1_000));
        assert!(!due(&[800, 950], schedule, 1_000));
        assert!(due(&[800, 900], schedule, 1_000));
        assert!(due(&[5_000], schedule, 1_000), "made in the future: the clock was set back");
        assert_eq!(surplus(vec![1, 2, 3, 4], 2), [1, 2]);
        assert_eq!(surplus(vec![1], 2), Vec::<i64>::new());
    }

    #[test]
    fn a_schedule_is_read_as_people_write_it() {
        let read = |every: &str| Schedule::parse(&json!({"every": every, "keep": 3}));
        assert_eq!(read("6h"), Ok(Schedule { every_s: 21_600, keep: 3 }));
        assert_eq!(read("off"), Ok(Schedule { every_s: 0, keep: 3 }));
        for wrong in ["", "6", "h", "6 h", "-1h", "0m", "99999999999999999999d", "6é"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(Schedule::parse(&json!({"every": "1h", "keep": 0})).is_err());
    }
}

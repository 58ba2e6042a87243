//! Backups of the whole state: on demand, and by a schedule on every voter's own disk.
//!
//! Decides when one is due and which old ones go. Must not put anything into a backup that the store does not hold: the keyring is in
//! it as it is there, sealed (`crate::keyring`), and a restore makes a new CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::keys;
use api::kinds::Kind;
use raft_store::{View, rescue};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{info, warn};

use crate::clock;
use crate::cluster::Cluster;
use crate::identity;

/// Where the schedule is kept.
pub const SETTING: &str = "s/backups";
/// How often the driver looks whether one is due, by a schedule that may have changed, …
const LOOK: Duration = Duration::from_secs(10);
/// … and how long it waits once none could be made.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
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
    /// What an operator asked for: `{"every": "6h", "keep": 5}`; `every` may be `off`, and what is left out stays.
    pub fn changed(self, body: &Value) -> Result<Schedule, String> {
        let mut new = self;
        if let Some(text) = body["every"].as_str() {
            new.every_s = if text == "off" { 0 } else { seconds(text)? };
        }
        if let Some(keep) = body["keep"].as_u64() {
            new.keep = keep as usize;
        }
        if !(1..=1_000).contains(&new.keep) {
            return Err(format!("{} backups cannot be kept: say 1 to 1000", new.keep));
        }
        Ok(new)
    }

    /// The cluster's.
    pub fn of(view: &View) -> Schedule {
        let entry = view.get(SETTING.as_bytes());
        entry.and_then(|entry| serde_json::from_slice(entry.value()).ok()).unwrap_or_default()
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
    clock::blocking(move || rescue::backup(&view, id)).await
}

/// Makes the scheduled backups of this machine, while it votes.
pub async fn run(cluster: Arc<Cluster>) {
    let shelf = Shelf::of(&cluster);
    shelf.remove_halves();
    loop {
        let view = cluster.store.view();
        let schedule = Schedule::of(&view);
        let now = clock::wall().as_second();
        let begun = is_begun(&view);
        let is_ours = begun && view.members().is_voter(cluster.me());
        let failed = is_ours && !shelf.tend(schedule, cluster.identity.cluster_id(), view, now).await;
        let pause = match (begun, failed) {
            (false, _) => Duration::from_secs(1),
            (true, false) => LOOK,
            (true, true) => AFTER_FAILURE,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Whether the cluster has what every cluster has: the first backup is not of nothing.
fn is_begun(view: &View) -> bool {
    let namespaces = Kind::by_name("Namespace").expect("Namespace is a row of the table of kinds");
    view.get(keys::object(namespaces, "", "default").as_bytes()).is_some()
}

/// The backups that a machine keeps of one cluster. Those of a cluster that it belonged to before lie beside them.
#[derive(Clone)]
struct Shelf {
    directory: PathBuf,
    /// `.CLUSTER.skein-backup`, with the first eight digits of its id.
    ending: String,
}

impl Shelf {
    fn of(cluster: &Cluster) -> Shelf {
        let id = &cluster.identity.cluster;
        let ending = format!(".{}{SUFFIX}", id.get(..8).unwrap_or(id));
        Shelf { directory: cluster.config.data.join("backups"), ending }
    }

    fn path(&self, at: i64) -> PathBuf {
        self.directory.join(format!("{at}{}", self.ending))
    }

    /// When they were made, oldest first.
    fn list(&self) -> Vec<i64> {
        let names = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let time = |name: std::ffi::OsString| name.to_str()?.strip_suffix(&self.ending)?.parse().ok();
        let mut times: Vec<i64> = names.filter_map(|entry| time(entry.file_name())).collect();
        times.sort_unstable();
        times
    }

    /// Makes one if it is due, and then removes the oldest of what is too many. Whether none failed.
    async fn tend(&self, schedule: Schedule, id: raft_store::ClusterId, view: View, now: i64) -> bool {
        if schedule.every_s == 0 || !due(&self.list(), schedule, now) {
            return true;
        }
        let made = self.add(id, view, now).await;
        match &made {
            Ok(path) => info!(path = %path.display(), "backup made"),
            Err(error) => warn!(%error, "no backup could be made"),
        }
        for old in surplus(self.list(), schedule.keep, now) {
            let _ = std::fs::remove_file(self.path(old));
        }
        made.is_ok()
    }

    /// What a machine left half written when it went down.
    fn remove_halves(&self) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == identity::ASIDE) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Encodes, looks for room, writes and syncs: all of it apart from the runtime's threads.
    async fn add(&self, id: raft_store::ClusterId, view: View, now: i64) -> Result<PathBuf, String> {
        let shelf = self.clone();
        let work = move || {
            identity::make_private_directory(&shelf.directory).map_err(|error| error.to_string())?;
            // Nothing is encoded for a disk that has no room for the last one either.
            let last = shelf.list().last().and_then(|at| std::fs::metadata(shelf.path(*at)).ok());
            has_room(&shelf.directory, last.map_or(0, |last| last.len()))?;
            let bytes = rescue::backup(&view, id);
            has_room(&shelf.directory, bytes.len() as u64)?;
            let path = shelf.path(now);
            identity::write_durably(&path, &bytes).map_err(|error| error.to_string())?;
            Ok(path)
        };
        clock::blocking(work).await.map_err(|error| error.to_string())?
    }
}

/// Whether a backup of so many bytes leaves as many: the store's log lies on the same disk, and comes first.
fn has_room(directory: &Path, bytes: u64) -> Result<(), String> {
    let found = nix::sys::statvfs::statvfs(directory).map_err(|error| error.to_string())?;
    let (needed, free) = (2 * bytes, found.blocks_available() as u64 * found.fragment_size() as u64);
    if free >= needed {
        return Ok(());
    }
    Err(format!(
        "{} has {free} bytes free, and a backup wants twice its size, {needed}: make room, or keep fewer ('skein cluster backups --keep')",
        directory.display()
    ))
}

/// A clock that was in the future once neither stops backups nor counts for anything: only what was made before now does.
fn due(made: &[i64], schedule: Schedule, now: i64) -> bool {
    made.iter().rfind(|at| **at <= now).is_none_or(|last| now - last >= schedule.every_s as i64)
}

/// The oldest ones beyond `keep`. What bears a time to come is kept beside them until that time is over.
fn surplus(mut made: Vec<i64>, keep: usize, now: i64) -> Vec<i64> {
    made.retain(|at| *at <= now);
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
        assert_eq!(surplus(vec![1, 2, 3, 4], 2, 10), [1, 2]);
        assert_eq!(surplus(vec![1], 2, 10), Vec::<i64>::new());
    }

    #[tokio::test]
    async fn the_files_of_the_oldest_backups_go_and_no_others() {
        let directory = std::env::temp_dir().join(format!("skein-backups-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let shelf = Shelf { directory: directory.clone(), ending: format!(".01010101{SUFFIX}") };
        let id = raft_store::ClusterId([1; 16]);
        let view = crate::testing::view(&[("k".into(), vec![1])]);
        let schedule = Schedule { every_s: 100, keep: 2 };
        assert!(shelf.tend(Schedule { every_s: 0, ..schedule }, id, view.clone(), 1_000).await);
        assert!(!directory.exists(), "none is wanted");
        let others = [format!("7.02020202{SUFFIX}"), "notes.txt".into()];
        for (now, kept) in [
            (1_000, vec![1_000]),
            (1_050, vec![1_000]),
            (1_100, vec![1_000, 1_100]),
            (1_200, vec![1_100, 1_200]),
            (1_450, vec![1_200, 1_450]),
        ] {
            assert!(shelf.tend(schedule, id, view.clone(), now).await);
            assert_eq!(shelf.list(), kept, "at {now}");
            others.iter().for_each(|name| std::fs::write(directory.join(name), "x").unwrap());
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 4, "two, and what is not its own");
        let bytes = std::fs::read(shelf.path(1_450)).unwrap();
        assert!(rescue::Rescued::from_backup(&bytes).is_ok(), "they are backups");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_clock_that_was_in_the_future_once_costs_no_backup() {
        let schedule = Schedule { every_s: 100, keep: 2 };
        assert!(due(&[800, 5_000], schedule, 1_000), "what is due by the others is due");
        assert!(!due(&[950, 5_000], schedule, 1_000), "and what is not is not");
        assert_eq!(surplus(vec![700, 800, 950, 5_000], 2, 1_000), [700]);
    }

    #[test]
    fn a_schedule_is_read_as_people_write_it() {
        let before = Schedule { every_s: 60, keep: 30 };
        let read = |every: &str| before.changed(&json!({"every": every, "keep": 3}));
        assert_eq!(before.changed(&json!({"every": "1h"})), Ok(Schedule { every_s: 3_600, keep: 30 }));
        assert_eq!(before.changed(&json!({"keep": 2})), Ok(Schedule { every_s: 60, keep: 2 }));
        assert_eq!(read("6h"), Ok(Schedule { every_s: 21_600, keep: 3 }));
        assert_eq!(read("off"), Ok(Schedule { every_s: 0, keep: 3 }));
        for wrong in ["", "6", "h", "6 h", "-1h", "0m", "99999999999999999999d", "6é"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(before.changed(&json!({"every": "1h", "keep": 0})).is_err());
    }
}

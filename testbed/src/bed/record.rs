//! The state file of a bed: who owns its directory, which processes and cgroups are its.
//!
//! Decides what a later bed may kill and delete: only processes whose start time matches, only what a bed made.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{BedError, cgroups};
use crate::clock;

const FILE: &str = "bed.json";
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A process that cannot be confused with a later one of the same pid.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Process {
    pid: i32,
    start: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    run: String,
    owner: Process,
    /// By host.
    inits: BTreeMap<String, Process>,
}

/// The state file of a bed that runs.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    content: Mutex<Content>,
}

impl Record {
    pub fn claim(directory: &Path, run: &str) -> Result<Record, BedError> {
        let content = Content { run: run.to_owned(), owner: own_process()?, inits: BTreeMap::new() };
        let record = Record { path: directory.join(FILE), content: Mutex::new(content) };
        record.change(|_| {})?;
        Ok(record)
    }

    pub fn add_init(&self, host: &str, pid: i32) -> Result<(), BedError> {
        let start = process_start(pid).unwrap_or(0);
        self.change(|content| {
            content.inits.insert(host.to_owned(), Process { pid, start });
        })
    }

    pub fn remove_init(&self, host: &str) -> Result<(), BedError> {
        self.change(|content| {
            content.inits.remove(host);
        })
    }

    /// The bed has ended: the directory stays known as a bed's, without an owner.
    pub fn release(&self) {
        let _ = self.change(|content| content.owner = Process { pid: 0, start: 0 });
    }

    fn change(&self, act: impl FnOnce(&mut Content)) -> Result<(), BedError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut content);
        let aside = self.path.with_extension("new");
        let written = serde_json::to_vec(&*content).map_err(io::Error::from);
        let done =
            written.and_then(|bytes| fs::write(&aside, bytes)).and_then(|()| fs::rename(&aside, &self.path));
        done.map_err(|source| BedError::File { path: self.path.clone(), source })
    }
}

/// Ends what an earlier bed left in this directory and empties it; refuses what is not a bed's.
pub fn clear_earlier(directory: &Path) -> Result<(), BedError> {
    let file = |source| BedError::File { path: directory.to_owned(), source };
    let path = directory.join(FILE);
    let Ok(bytes) = fs::read(&path) else {
        let empty = fs::read_dir(directory).map_err(file)?.next().is_none();
        return if empty { Ok(()) } else { Err(BedError::Foreign(directory.to_owned())) };
    };
    if let Ok(content) = serde_json::from_slice::<Content>(&bytes) {
        if lives(&content.owner) {
            return Err(BedError::InUse(directory.to_owned(), content.owner.pid));
        }
        content.inits.values().for_each(end);
        cgroups::remove_run(&content.run)?;
    }
    for entry in fs::read_dir(directory).map_err(file)? {
        let entry = entry.map_err(file)?;
        let directory = entry.file_type().map_err(file)?.is_dir();
        let removed =
            if directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.map_err(|source| BedError::File { path: entry.path(), source })?;
    }
    Ok(())
}

/// The pid of a host's init in whatever bed runs in this directory.
pub fn init_of(directory: &Path, host: &str) -> Option<i32> {
    let content: Content = serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()?;
    content.inits.get(host).filter(|process| lives(process)).map(|process| process.pid)
}

/// Name of a run without its number: name, pid and start time of this process.
pub fn owner_suffix(name: &str) -> Result<String, BedError> {
    let own = own_process()?;
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    Ok(format!("{plain}-{}-{}", own.pid, own.start))
}

/// Whether the process that a run is named for is still there. Names of another form are nobody's: alive.
pub fn owner_lives(run: &str) -> bool {
    let mut parts = run.rsplit('-').skip(1);
    let start = parts.next().and_then(|s| s.parse().ok());
    let pid = parts.next().and_then(|s| s.parse().ok());
    match (pid, start) {
        (Some(pid), Some(start)) => lives(&Process { pid, start }),
        _ => true,
    }
}

/// When a process started, in ticks since boot; none if there is no such process.
pub fn process_start(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; state is the first field behind it, start the twentieth.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.nth(18)?.parse().ok() }
}

fn own_process() -> Result<Process, BedError> {
    let pid = std::process::id().cast_signed();
    let start = process_start(pid).ok_or_else(|| BedError::File {
        path: "/proc/self/stat".into(),
        source: io::Error::other("unreadable: is /proc mounted?"),
    })?;
    Ok(Process { pid, start })
}

fn lives(process: &Process) -> bool {
    process.pid > 0 && process_start(process.pid) == Some(process.start)
}

fn end(process: &Process) {
    if lives(process) && kill(Pid::from_raw(process.pid), Signal::SIGKILL).is_ok() {
        clock::poll(KILL_LIMIT, Duration::from_millis(5), || (!lives(process)).then_some(()));
    }
}

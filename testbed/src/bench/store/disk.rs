//! What one durable write costs on this disk when nothing else is written: beside it a lone client's figures can be read.
//!
//! Decides how that is measured: a short record is written over one that was there, as a log does, and synced. Must not run beside a round.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::clock;

/// Length of what is written, in bytes, …
const RECORD: usize = 512;
/// … of the file, …
const FILE: u64 = 1 << 20;
/// … and for how long.
const FOR: Duration = Duration::from_millis(500);

/// Times of syncs, in milliseconds, sorted.
pub(super) struct Syncs(Vec<f64>);

impl Syncs {
    /// Writes and syncs in `directory`.
    pub(super) fn measure(directory: &Path) -> io::Result<Syncs> {
        let path = directory.join("sync-alone");
        fs::write(&path, vec![0; FILE as usize])?;
        let file = OpenOptions::new().write(true).open(&path)?;
        file.sync_all()?;
        let (begun, mut times) = (clock::now(), Vec::new());
        while begun.elapsed() < FOR {
            let offset = (times.len() * RECORD) as u64 % FILE;
            let before = clock::now();
            file.write_all_at(&[1; RECORD], offset)?;
            file.sync_data()?;
            times.push(before.elapsed().as_secs_f64() * 1000.0);
        }
        fs::remove_file(&path)?;
        times.sort_by(f64::total_cmp);
        Ok(Syncs(times))
    }

    /// All of several measurements.
    pub(super) fn joined(all: Vec<Syncs>) -> Syncs {
        let mut times: Vec<f64> = all.into_iter().flat_map(|syncs| syncs.0).collect();
        times.sort_by(f64::total_cmp);
        Syncs(times)
    }

    fn at(&self, part: f64) -> f64 {
        let index = (self.0.len() as f64 * part) as usize;
        self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Syncs {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|part| self.at(part));
        write!(out, "one sync alone: p50 {p50:.2} ms, p90 {p90:.2} ms, p99 {p99:.2} ms")
    }
}

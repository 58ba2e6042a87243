//! Decides how whole sectors become durable: past the page cache (`O_DIRECT`) where file and device take that, by way of it elsewhere; and by a
//! thread of its own where that is begun before it is waited for. Must not retry a sync (docs/decisions/0124).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::disk::{DiskError, SECTOR};

/// Where bytes begin in memory for direct I/O: no device asks for more than a page.
const PAGE: usize = 4096;
/// A buffer that is longer is not kept.
const KEPT: usize = 1 << 20;

/// Writes of one disk that are performed here, or begun: at most one is under way.
#[derive(Debug, Default)]
pub(super) struct Writes {
    target: Option<Target>,
    /// The filesystem or the device takes no direct writes of our sectors.
    by_cache: bool,
    worker: Option<Worker>,
    under_way: bool,
    /// Something else was changed since it was begun: what was begun need not cover that.
    changed: bool,
    /// What became of one that nobody has asked for yet. It must be heard of.
    failed: Option<DiskError>,
    /// The last write's.
    buffer: Vec<u8>,
}

/// The file that is written, by both of its descriptors.
#[derive(Debug)]
struct Target {
    name: String,
    file: Arc<File>,
    direct: Option<Arc<File>>,
}

/// One write.
#[derive(Debug)]
struct Write {
    file: Arc<File>,
    direct: Option<Arc<File>>,
    offset: u64,
    buffer: Vec<u8>,
    begin: usize,
    length: usize,
    /// It could not go past the page cache.
    refused: bool,
}

/// What was tried, and what the system said.
type Failure = (&'static str, io::Error);

/// Writes go in and come back with what became of them. (The lock is never contended: it makes the disk one that threads may read from.)
type Worker = (Sender<Write>, Mutex<Receiver<(Write, Result<(), Failure>)>>);

impl Write {
    fn perform(&mut self) -> Result<(), Failure> {
        let bytes = &self.buffer[self.begin..self.begin + self.length];
        let written = match &self.direct {
            Some(direct) => direct.write_all_at(bytes, self.offset),
            None => self.file.write_all_at(bytes, self.offset),
        };
        let written = match written {
            // The device has larger sectors, or the filesystem opens such files and does not write them.
            Err(error) if self.direct.is_some() && Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                self.refused = true;
                self.file.write_all_at(bytes, self.offset)
            }
            written => written,
        };
        written.map_err(|error| ("writing", error))?;
        self.file.sync_data().map_err(|error| ("sync", error))
    }
}

impl Writes {
    /// The file's names or bytes are changed by another way.
    pub(super) fn changes(&mut self) {
        self.changed = true;
    }

    /// The file has another name, or none any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.settle();
        self.target.take_if(|target| target.name == name);
    }

    /// Whether the file is the one that is written.
    pub(super) fn writes(&self, name: &str) -> bool {
        self.target.as_ref().is_some_and(|target| target.name == name)
    }

    /// From now on this one is. What is under way is the one's before.
    pub(super) fn turn_to(&mut self, name: &str, path: &Path, file: Arc<File>) {
        self.settle();
        let open =
            || OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path);
        // A filesystem without it says so here. Any other trouble shows by the other descriptor.
        let direct = (!self.by_cache).then(open).and_then(Result::ok).map(Arc::new);
        self.target = Some(Target { name: name.to_owned(), file, direct });
    }

    /// Writes to the file that it was turned to, and comes back when that is durable.
    pub(super) fn perform(&mut self, offset: u64, sectors: &[u8]) -> Result<(), DiskError> {
        let mut write = self.prepare(offset, sectors)?;
        let done = write.perform();
        self.end(write, done);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Begins that. Where there is no thread for it, it is done at once.
    pub(super) fn begin(&mut self, offset: u64, sectors: &[u8]) -> Result<(), DiskError> {
        if self.worker.is_none() {
            self.worker = start_worker().ok();
        }
        if self.worker.is_none() {
            return self.perform(offset, sectors);
        }
        let write = self.prepare(offset, sectors)?;
        if let Some((work, _)) = &self.worker {
            // A thread that has ended is found out by whoever waits for the write.
            let _ = work.send(write);
        }
        self.under_way = true;
        self.changed = false;
        Ok(())
    }

    /// Waits for the one under way. Whether the file is durable by it as it is now.
    pub(super) fn covers(&mut self, name: &str) -> Result<bool, DiskError> {
        let begun = self.settle();
        match self.failed.take() {
            Some(failed) => Err(failed),
            None => Ok(begun && !self.changed && self.writes(name)),
        }
    }

    fn prepare(&mut self, offset: u64, sectors: &[u8]) -> Result<Write, DiskError> {
        self.settle();
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let no_file = || DiskError::new("writing", "a file that is gone", io::ErrorKind::NotFound.into());
        let target = self.target.as_ref().ok_or_else(no_file)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < sectors.len() + PAGE {
            buffer = vec![0; sectors.len() + PAGE];
        }
        // Where that cannot be told the kernel refuses it as a direct write.
        let begin = buffer.as_ptr().align_offset(PAGE).min(PAGE);
        buffer[begin..begin + sectors.len()].copy_from_slice(sectors);
        let whole = offset.is_multiple_of(SECTOR as u64) && sectors.len().is_multiple_of(SECTOR);
        Ok(Write {
            file: target.file.clone(),
            direct: target.direct.clone().filter(|_| whole),
            offset,
            buffer,
            begin,
            length: sectors.len(),
            refused: false,
        })
    }

    /// Whether one was under way.
    fn settle(&mut self) -> bool {
        let was = std::mem::take(&mut self.under_way);
        if was {
            let receive = |(_, done): &mut Worker| {
                let done = done.get_mut().unwrap_or_else(PoisonError::into_inner);
                done.recv().ok()
            };
            match self.worker.as_mut().and_then(receive) {
                Some((write, done)) => self.end(write, done),
                None => self.fails(("sync", io::Error::other("the thread that writes has ended"))),
            }
        }
        was
    }

    fn end(&mut self, write: Write, done: Result<(), Failure>) {
        if write.refused {
            self.by_cache = true;
            if let Some(target) = &mut self.target {
                target.direct = None;
            }
        }
        if write.buffer.len() <= KEPT {
            self.buffer = write.buffer;
        }
        if let Err(failure) = done {
            self.fails(failure);
        }
    }

    fn fails(&mut self, (operation, error): Failure) {
        let file = self.target.as_ref().map_or("", |target| &target.name);
        let failed = DiskError::new(operation, file, error);
        self.failed.get_or_insert(failed);
    }
}

impl Drop for Writes {
    /// The directory's lock outlives what is under way.
    fn drop(&mut self) {
        self.settle();
    }
}

#[expect(clippy::disallowed_methods, reason = "driver: ends with the disk that asks it")]
fn start_worker() -> io::Result<Worker> {
    let (work, orders) = channel::<Write>();
    let (results, done) = channel();
    // It inherits the priority of the thread that asks first.
    std::thread::Builder::new().name("sync".into()).spawn(move || {
        for mut write in orders {
            let outcome = write.perform();
            if results.send((write, outcome)).is_err() {
                return;
            }
        }
    })?;
    Ok((work, Mutex::new(done)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;

    /// A file of some sectors, with what writes to it.
    struct Fixture {
        path: std::path::PathBuf,
        file: Arc<File>,
        writes: Writes,
    }

    impl Fixture {
        fn new(name: &str) -> Fixture {
            let path = std::env::temp_dir().join(format!("skein-through-{}-{name}", std::process::id()));
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            file.write_all_at(&[0; 8 * SECTOR], 0).unwrap();
            let mut fixture = Fixture { path, file: Arc::new(file), writes: Writes::default() };
            fixture.writes.turn_to("log", &fixture.path, fixture.file.clone());
            fixture
        }

        fn sector(&self, at: u64) -> [u8; SECTOR] {
            let mut bytes = [0; SECTOR];
            self.file.read_exact_at(&mut bytes, at * SECTOR as u64).unwrap();
            bytes
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            fs::remove_file(&self.path).unwrap();
        }
    }

    #[test]
    fn a_begun_write_covers_its_file_until_something_is_changed() {
        let mut of = Fixture::new("begun");
        assert!(!of.writes.covers("log").unwrap(), "nothing was begun");
        of.writes.begin(0, &[1; SECTOR]).unwrap();
        assert!(of.writes.covers("log").unwrap());
        assert!(!of.writes.covers("log").unwrap(), "what was waited for is over");
        of.writes.begin(0, &[2; SECTOR]).unwrap();
        assert!(!of.writes.covers("other").unwrap());
        of.writes.begin(SECTOR as u64, &[3; SECTOR]).unwrap();
        of.writes.changes();
        assert!(!of.writes.covers("log").unwrap(), "written after it was begun");
        assert_eq!((of.sector(0), of.sector(1)), ([2; SECTOR], [3; SECTOR]));
    }

    #[test]
    fn bytes_arrive_by_either_way_and_in_any_order() {
        let mut of = Fixture::new("ways");
        of.writes.perform(2 * SECTOR as u64, &[7; 2 * SECTOR]).unwrap();
        // No whole sectors: by way of the cache, over what went past it.
        of.writes.perform(2 * SECTOR as u64 + 100, &[8; 50]).unwrap();
        of.writes.perform(3 * SECTOR as u64, &[9; SECTOR]).unwrap();
        of.writes.begin(SECTOR as u64, &[6; SECTOR]).unwrap();
        of.writes.perform(0, &[5; SECTOR]).unwrap();
        let mut mixed = [7; SECTOR];
        mixed[100..150].fill(8);
        assert_eq!(
            [of.sector(0), of.sector(1), of.sector(2), of.sector(3)],
            [[5; SECTOR], [6; SECTOR], mixed, [9; SECTOR]]
        );
        assert_eq!(of.file.metadata().unwrap().len(), 8 * SECTOR as u64);
    }

    #[test]
    fn where_direct_writes_are_refused_the_cache_is_used_from_then_on() {
        let mut of = Fixture::new("refused");
        let mut write = of.writes.prepare(0, &[4; SECTOR]).unwrap();
        if write.direct.is_none() {
            // A filesystem that does not open such files (an old tmpfs): the other tests show what is left.
            return;
        }
        // As it is with larger sectors: the write does not begin where one does.
        write.offset = 8;
        let done = write.perform();
        assert!(write.refused);
        of.writes.end(write, done);
        assert!(of.writes.by_cache);
        let mut written = [4; SECTOR];
        written[..8].fill(0);
        assert_eq!(of.sector(0), written);
        let next = of.writes.prepare(0, &[5; SECTOR]).unwrap();
        assert!(next.direct.is_none());
    }

    #[test]
    fn a_begun_write_that_fails_is_heard_of_whatever_comes_next() {
        // fdatasync(2) of a device without a sync says EINVAL.
        let null = || Arc::new(File::options().write(true).open("/dev/null").unwrap());
        let mut writes = Writes::default();
        writes.turn_to("log", Path::new("/nowhere"), null());
        writes.begin(0, &[0; SECTOR]).unwrap();
        assert!(writes.covers("log").unwrap_err().to_string().contains("sync of log failed"));
        writes.begin(0, &[0; SECTOR]).unwrap();
        let heard = writes.perform(0, &[0; SECTOR]).unwrap_err().to_string();
        assert!(heard.contains("sync of log failed"), "{heard}");
        writes.begin(0, &[0; SECTOR]).unwrap();
        assert!(writes.covers("snapshot").unwrap_err().to_string().contains("sync of log failed"));
    }
}

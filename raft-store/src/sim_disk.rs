//! Decides how a bad disk behaves, for tests and the simulator: it can lose what was not synced, tear it by sectors
//! and leave garbage where it tore, lose what was synced or put it elsewhere,
//! flip bits, fail syncs and reads, and run full. A killed process loses nothing of it: what it wrote is there to be read, durable or
//! not. After a failed sync that is so for ever: the system takes it for written (Rebello et al., USENIX ATC 2020). Everything it does follows from the calls and the seed.
//! Must not be kinder than a real disk: unsynced names are lost too.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, DiskError};

const SECTOR: usize = 512;

/// A disk in memory. Clones are handles to the same disk, so a test keeps one while a replica uses another.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<Platter>>);

#[derive(Default)]
struct Platter {
    files: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<BTreeMap<String, u64>>,
    next_file: u64,
    syncs: u64,
    syncs_until_failure: Option<u64>,
    steps_until_failure: Option<u64>,
    reads_until_failure: Option<u64>,
    failed_at: Option<String>,
    capacity: Option<u64>,
}

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

impl MemDisk {
    /// An empty, healthy disk.
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    /// Power cut: of what was not synced each sector, and of the unsynced name changes a first part, may survive.
    pub fn crash(&self, seed: u64) {
        self.platter().crash(&mut SmallRng::seed_from_u64(seed));
    }

    /// The worst power cut: nothing that was not synced survives.
    pub fn lose_unsynced(&self) {
        let mut platter = self.platter();
        platter.names = platter.durable_names.clone();
        platter.name_changes.clear();
        platter.forget_unnamed();
        platter.files.values_mut().for_each(Inode::lose);
    }

    /// The `after`-th sync from now (0 = the next) fails, as do all later ones; `None` heals.
    pub fn fail_sync(&self, after: Option<u64>) {
        self.platter().syncs_until_failure = after;
    }

    /// The `after`-th change from now (0 = the next; writes, syncs, names) fails, as do all later ones; `None` heals. With a
    /// crash right after it this is a death before that very step.
    pub fn fail_step(&self, after: Option<u64>) {
        let mut platter = self.platter();
        platter.steps_until_failure = after;
        platter.failed_at = None;
    }

    /// The `after`-th read from now (0 = the next) fails, as do all later ones; `None` heals.
    pub fn fail_read(&self, after: Option<u64>) {
        let mut platter = self.platter();
        platter.reads_until_failure = after;
        platter.failed_at = None;
    }

    /// At which step `fail_step` or `fail_read` struck: the operation and the kind of file.
    pub fn failed_at(&self) -> Option<String> {
        self.platter().failed_at.clone()
    }

    /// Bounds the sum of all files' lengths; `None` lifts the bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.platter().capacity = bytes;
    }

    /// The sum of all files' lengths.
    pub fn used(&self) -> u64 {
        self.platter().used()
    }

    /// Flips bits of one byte at rest. False if there is no such byte.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) -> bool {
        self.change(name, offset, 1, |_, byte| byte ^ mask)
    }

    /// One sector of a file at rest has its zeros again, as if what was written there had never come to the disk, or has the bytes of
    /// another sector, as if that one's write had gone astray. False if nothing is different then.
    pub fn misplace(&self, name: &str, sector: usize, from: Option<usize>) -> bool {
        let Ok(bytes) = self.platter().inode("reading", name).map(|inode| inode.current.clone()) else {
            return false;
        };
        let source = |at: usize| from.and_then(|from| bytes.get(from * SECTOR + at)).copied().unwrap_or(0);
        self.change(name, sector * SECTOR, SECTOR, |at, _| source(at))
    }

    /// Changes bytes at rest. Whether one of them is another then.
    fn change(&self, name: &str, offset: usize, count: usize, to: impl Fn(usize, u8) -> u8) -> bool {
        let mut platter = self.platter();
        let Ok(inode) = platter.inode("changing", name) else { return false };
        let mut changed = false;
        for (at, byte) in inode.current.iter_mut().skip(offset).take(count).enumerate() {
            let new = to(at, *byte);
            changed |= new != *byte;
            *byte = new;
        }
        let durable = inode.durable.iter_mut().skip(offset).take(count).enumerate();
        durable.for_each(|(at, byte)| *byte = to(at, *byte));
        changed
    }

    /// How many syncs succeeded so far.
    pub fn syncs(&self) -> u64 {
        self.platter().syncs
    }

    /// An independent copy: another machine with the same disk, or an old image to roll back to.
    pub fn image(&self) -> MemDisk {
        let platter = self.platter();
        let image = Platter {
            files: platter.files.clone(),
            names: platter.names.clone(),
            durable_names: platter.durable_names.clone(),
            name_changes: platter.name_changes.clone(),
            next_file: platter.next_file,
            ..Platter::default()
        };
        MemDisk(Arc::new(Mutex::new(image)))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platter {
    fn crash(&mut self, rng: &mut SmallRng) {
        self.files.values_mut().for_each(|inode| inode.crash(rng));
        let kept = rng.random_range(0..=self.name_changes.len());
        if let Some(names) = kept.checked_sub(1).and_then(|last| self.name_changes.get(last)) {
            self.durable_names = names.clone();
        }
        self.names = self.durable_names.clone();
        self.name_changes.clear();
        self.forget_unnamed();
    }

    fn settle_names(&mut self) {
        self.durable_names = self.names.clone();
        self.name_changes.clear();
        self.forget_unnamed();
    }

    fn forget_unnamed(&mut self) {
        let names = &self.names;
        self.files.retain(|id, _| names.values().any(|named| named == id));
    }

    fn inode(&mut self, operation: &'static str, name: &str) -> Result<&mut Inode, DiskError> {
        let missing = || DiskError::new(operation, name, io::ErrorKind::NotFound.into());
        let id = self.names.get(name).copied().ok_or_else(missing)?;
        self.files.get_mut(&id).ok_or_else(missing)
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|id| self.files.get(id)).map(|i| i.current.len() as u64).sum()
    }

    fn room_for(&self, more: u64) -> bool {
        self.capacity.is_none_or(|capacity| self.used() + more <= capacity)
    }

    fn step(&mut self, operation: &'static str, name: &str) -> Result<(), DiskError> {
        match &mut self.steps_until_failure {
            Some(0) => return Err(self.fails(operation, name)),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn fails(&mut self, operation: &'static str, name: &str) -> DiskError {
        let kind: String = name.chars().take_while(|c| !c.is_ascii_digit()).collect();
        self.failed_at.get_or_insert(format!("{operation} {}", kind.trim_end_matches('-')));
        DiskError::new(operation, name, io::Error::other("input/output error"))
    }

    /// The bytes that a read answers with.
    fn readable(&mut self, name: &str) -> Result<&[u8], DiskError> {
        match &mut self.reads_until_failure {
            Some(0) => return Err(self.fails("reading", name)),
            Some(left) => *left -= 1,
            None => {}
        }
        self.inode("reading", name).map(|inode| inode.current.as_slice())
    }

    fn count_sync(&mut self, name: &str) -> Result<(), DiskError> {
        match &mut self.syncs_until_failure {
            Some(0) => return Err(DiskError::new("sync", name, io::Error::other("input/output error"))),
            Some(left) => *left -= 1,
            None => {}
        }
        self.syncs += 1;
        Ok(())
    }
}

impl Inode {
    /// A sync failed: what was to be written counts as written, and is not.
    fn forget_pending(&mut self) {
        self.pending.clear();
    }

    fn settle(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            pending.perform(&mut self.durable, |_| true);
        }
    }

    fn lose(&mut self) {
        self.pending.clear();
        self.current = self.durable.clone();
    }

    fn crash(&mut self, rng: &mut SmallRng) {
        for pending in std::mem::take(&mut self.pending) {
            let mode = rng.random_range(0..4);
            let pending = if mode == 3 { pending.torn(rng) } else { pending };
            pending.perform(&mut self.durable, |_| match mode {
                0 => false,
                1 | 3 => true,
                _ => rng.random_bool(0.5),
            });
        }
        self.current = self.durable.clone();
    }
}

impl Pending {
    /// The begin of a write, up to the sector in which it ended: of that the disk has garbage. What others wrote there stays.
    fn torn(mut self, rng: &mut SmallRng) -> Pending {
        if let Pending::Write { offset, bytes } = &mut self
            && !bytes.is_empty()
        {
            let at = rng.random_range(0..bytes.len());
            let begin = at.saturating_sub((*offset + at) % SECTOR);
            bytes.truncate(bytes.len().min(begin + SECTOR - (*offset + begin) % SECTOR));
            bytes[begin..].fill_with(|| rng.random());
        }
        self
    }

    /// Performs it on `bytes`, sector by sector where `keep` says so.
    fn perform(&self, target: &mut Vec<u8>, mut keep: impl FnMut(usize) -> bool) {
        match self {
            Pending::Length(length) if keep(0) => target.resize(*length, 0),
            Pending::Length(_) => {}
            Pending::Write { offset, bytes } => {
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                    if keep(offset + at) {
                        put(target, offset + at, &bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

fn put(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

impl Disk for MemDisk {
    fn list(&self) -> Result<Vec<String>, DiskError> {
        Ok(self.platter().names.keys().cloned().collect())
    }

    fn create(&mut self, name: &str, zeros: u64) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.step("creation", name)?;
        if platter.names.contains_key(name) {
            return Err(DiskError::new("creation", name, io::ErrorKind::AlreadyExists.into()));
        }
        if !platter.room_for(zeros) {
            return Err(DiskError::new("creation", name, io::ErrorKind::StorageFull.into()));
        }
        let id = platter.next_file;
        platter.next_file += 1;
        let inode = Inode {
            durable: Vec::new(),
            current: vec![0; zeros as usize],
            pending: vec![Pending::Length(zeros as usize)],
        };
        platter.files.insert(id, inode);
        platter.names.insert(name.to_owned(), id);
        let names = platter.names.clone();
        platter.name_changes.push(names);
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, DiskError> {
        self.platter().readable(name).map(<[u8]>::to_vec)
    }

    fn length(&self, name: &str) -> Result<u64, DiskError> {
        self.platter().inode("reading", name).map(|inode| inode.current.len() as u64)
    }

    fn read_at(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        let mut platter = self.platter();
        let bytes = platter.readable(name)?;
        let from = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
        let count = into.len().min(bytes.len() - from);
        into[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.step("writing", name)?;
        let length = platter.inode("writing", name)?.current.len() as u64;
        if !platter.room_for((offset + bytes.len() as u64).saturating_sub(length)) {
            return Err(DiskError::new("writing", name, io::ErrorKind::StorageFull.into()));
        }
        let inode = platter.inode("writing", name)?;
        put(&mut inode.current, offset as usize, bytes);
        inode.pending.push(Pending::Write { offset: offset as usize, bytes: bytes.to_vec() });
        Ok(())
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        let mut platter = self.platter();
        let synced = platter.step("sync", name).and_then(|()| platter.count_sync(name));
        let inode = platter.inode("sync", name)?;
        match &synced {
            Ok(()) => inode.settle(),
            Err(_) => inode.forget_pending(),
        }
        synced
    }

    fn truncate(&mut self, name: &str, length: u64) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.step("truncation", name)?;
        let inode = platter.inode("truncation", name)?;
        inode.current.resize(length as usize, 0);
        inode.pending.push(Pending::Length(length as usize));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.step("renaming", from)?;
        let missing = || DiskError::new("renaming", from, io::ErrorKind::NotFound.into());
        let id = platter.names.remove(from).ok_or_else(missing)?;
        platter.names.insert(to.to_owned(), id);
        let names = platter.names.clone();
        platter.name_changes.push(names);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.step("removal", name)?;
        let missing = || DiskError::new("removal", name, io::ErrorKind::NotFound.into());
        platter.names.remove(name).ok_or_else(missing)?;
        let names = platter.names.clone();
        platter.name_changes.push(names);
        Ok(())
    }

    fn room(&self) -> Result<u64, DiskError> {
        let platter = self.platter();
        Ok(platter.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(platter.used())))
    }

    fn sync_dir(&mut self) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.step("sync", "directory")?;
        platter.count_sync("the directory")?;
        platter.settle_names();
        Ok(())
    }
}

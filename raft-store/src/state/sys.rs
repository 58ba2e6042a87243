//! Bytes that many share and nobody changes, in slots of pages of their own: what a key holds lives for years, and lies apart from what
//! lives for milliseconds.
//!
//! Decides where such bytes lie, and when their memory is free again. Must not know what they mean (`entry` does). Why not `Arc<[u8]>`: its
//! pointer is twice as long, and between keys the allocator leaves holes of what a transient buffer had more than a key
//! (docs/decisions/0119). All slots of a page have one length (Bonwick, "The Slab Allocator", 1994). Pages are short, so that few keys that stay keep
//! one, and what is empty serves keys of any length.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(not(miri))]
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Lengths of slots are multiples of this.
const STEP: usize = 4;
/// The longest slot: fifteen fill a page. Longer bytes have an allocation each.
const LONGEST: usize = 544;
/// A page begins at a multiple of its length, so that a slot's address says where.
const PAGE_BYTES: usize = 8 << 10;
/// Pages that the kernel is asked for at once.
const PAGES: usize = u128::BITS as usize;

/// Immutable bytes with a count of their owners. Cloning copies a pointer (beyond two million owners: the bytes).
pub(crate) struct Shared(NonNull<Head>);

/// What lies before the bytes: in its lower bits how many they are, which never changes, and above how many own them.
#[repr(transparent)]
struct Head(AtomicU32);

const HEAD: usize = size_of::<Head>();
/// Of a head, the bits of the length. All of them are set where the bytes have an allocation of their own: then their length lies behind the
/// head in four bytes.
const LENGTH: u32 = (1 << 10) - 1;
const LONG_HEAD: usize = HEAD + size_of::<u32>();
/// One owner.
const OWNER: u32 = LENGTH + 1;
/// A head with so many owners, two millions, takes no further one. So it does not overflow while fewer threads than that clone at once.
const CROWDED: u32 = u32::MAX / 2;

const _: () = assert!(LONGEST - HEAD < LENGTH as usize, "lengths of slots fit into a head");
const _: () = assert!(STEP >= align_of::<Head>() && STEP >= size_of::<u16>() && LONGEST.is_multiple_of(STEP));
const _: () = assert!(PAGE_BYTES / STEP <= u16::MAX as usize, "a page's offsets have two bytes");

// SAFETY: the bytes are written before the first owner exists and never again; the count is atomic; the memory goes back by way of a lock.
unsafe impl Send for Shared {}
// SAFETY: as above; a shared reference reads bytes and counts atomically.
unsafe impl Sync for Shared {}

impl Shared {
    /// So many bytes, zero until `write` has been there. Panics beyond 4 GiB, which nothing that is stored reaches.
    pub(crate) fn new(length: usize, write: impl FnOnce(&mut [u8])) -> Shared {
        let counted = u32::try_from(length).expect("a key and its value are far shorter than 4 GiB");
        let in_slot = HEAD + length <= LONGEST;
        let begin = if in_slot { HEAD } else { LONG_HEAD };
        let place = POOL.take(begin + length);
        // SAFETY: `place` is ours alone, aligned to at least four, and has room for the head and so many bytes, all of which are
        // written before a reference to them is made.
        unsafe {
            let head = place.cast::<Head>();
            head.write(Head(AtomicU32::new(OWNER | if in_slot { counted } else { LENGTH })));
            if !in_slot {
                place.add(HEAD).cast::<u32>().write(counted);
            }
            let bytes = place.add(begin);
            bytes.write_bytes(0, length);
            let shared = Shared(head);
            write(std::slice::from_raw_parts_mut(bytes.as_ptr(), length));
            shared
        }
    }

    #[cfg(test)]
    pub(crate) fn owners(&self) -> u32 {
        self.head().0.load(Ordering::Relaxed) / OWNER
    }

    fn head(&self) -> &Head {
        // SAFETY: the head was written in `new` and lives as long as an owner does.
        unsafe { self.0.as_ref() }
    }

    /// How far behind the head's begin the bytes begin, and how many they are.
    fn span(&self) -> (usize, usize) {
        match self.head().0.load(Ordering::Relaxed) & LENGTH {
            // SAFETY: `new` wrote it there, and nobody does again.
            LENGTH => (LONG_HEAD, unsafe { self.0.cast::<u8>().add(HEAD).cast::<u32>().read() } as usize),
            length => (HEAD, length as usize),
        }
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (begin, length) = self.span();
        // SAFETY: so many bytes are there in the same allocation, were written in `new`, and are never written while an owner lives.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>().add(begin).as_ptr(), length) }
    }
}

impl Clone for Shared {
    fn clone(&self) -> Shared {
        // Relaxed is enough, as for `Arc`: who clones is an owner, so that nobody frees meanwhile.
        if self.head().0.fetch_add(OWNER, Ordering::Relaxed) > CROWDED {
            self.head().0.fetch_sub(OWNER, Ordering::Relaxed);
            return Shared::new(self.len(), |bytes| bytes.copy_from_slice(self));
        }
        Shared(self.0)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let (begin, length) = self.span();
        if self.head().0.fetch_sub(OWNER, Ordering::Release) / OWNER == 1 {
            // All that other owners read happens before this memory is used for something else.
            fence(Ordering::Acquire);
            // SAFETY: it came from `take` with the same size, and nobody else holds a pointer to it any more.
            unsafe { POOL.give(self.0.cast(), begin + length) }
        }
    }
}

impl PartialEq for Shared {
    fn eq(&self, other: &Shared) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Shared {}

static POOL: Pool = Pool::new();

/// Slots of all lengths.
struct Pool {
    classes: [Mutex<Class>; LONGEST / STEP],
    extents: Mutex<Extents>,
}

/// Slots of one length.
struct Class {
    /// Pages with room; the last one is used next.
    roomy: Vec<NonNull<Page>>,
}

// SAFETY: pages belong to the class, and are reached under its lock only.
unsafe impl Send for Class {}

/// What lies at the begin of a page. Offsets are in steps from there. Read and written under the lock of its class only.
#[repr(C)]
struct Page {
    /// The slot that was given back last, 0 for none; each such slot holds the offset of the one before in its first two bytes.
    free: u16,
    /// From here on no slot was ever taken.
    fresh: u16,
    /// Slots that are taken.
    taken: u16,
    /// Its number within its extent.
    number: u16,
    /// Its extent's number.
    extent: u32,
    /// Its place among the pages with room, `FULL` without any.
    place: u32,
}

const FULL: u32 = u32::MAX;
/// The first slot's offset.
const FIRST: u16 = size_of::<Page>().div_ceil(STEP) as u16;

const EXTENT_BYTES: usize = PAGES * PAGE_BYTES;

const EXTENT: Layout = match Layout::from_size_align(EXTENT_BYTES, PAGE_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("an extent's size and alignment make sense"),
};

/// Pages for all classes.
struct Extents {
    all: Vec<Extent>,
    /// Those of `all` that have an empty page, and those that are no more.
    roomy: Vec<u32>,
    unused: Vec<u32>,
}

/// Pages that the kernel gave at once.
struct Extent {
    begin: NonNull<u8>,
    /// A bit for each page that is empty.
    empty: u128,
    /// Its place among those with an empty page, `FULL` without any.
    place: u32,
}

// SAFETY: an extent belongs to `Extents`, its empty pages are reached under the lock of that, and the others by way of their class.
unsafe impl Send for Extents {}

/// The steps that a slot of so many bytes takes, a head at least; none if they are too many for one.
fn steps(size: usize) -> Option<usize> {
    (size <= LONGEST).then(|| size.div_ceil(STEP))
}

/// The layout of bytes that are too many for a slot.
fn alone(size: usize) -> Layout {
    Layout::from_size_align(size, align_of::<u64>()).expect("no more than 4 GiB and a head")
}

fn allocated(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here has size zero.
    let made = unsafe { alloc(layout) };
    NonNull::new(made).unwrap_or_else(|| handle_alloc_error(layout))
}

/// Memory of an extent, of the kernel's own: an allocator keeps blocks of this length once a longer one was given back to it (glibc's
/// threshold for `mmap` moves), between others that keep them from going back to the system.
#[cfg(not(miri))]
fn mapped() -> NonNull<u8> {
    let all = EXTENT_BYTES + PAGE_BYTES;
    // SAFETY: a new private mapping without an address is nobody else's; what is cut off it is in it, and was not used.
    unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let Ok(made) = mmap_anonymous(std::ptr::null_mut(), all, protection, MapFlags::PRIVATE) else {
            handle_alloc_error(EXTENT)
        };
        let before = made.cast::<u8>().align_offset(PAGE_BYTES);
        let begin = made.cast::<u8>().add(before);
        let ends = [(made.cast::<u8>(), before), (begin.add(EXTENT_BYTES), PAGE_BYTES - before)];
        for (end, length) in ends.into_iter().filter(|(_, length)| *length > 0) {
            // What cannot be cut off (too many mappings) is not lost: it is never touched, and so takes no memory.
            let _ = munmap(end.cast(), length);
        }
        NonNull::new(begin).unwrap_or_else(|| handle_alloc_error(EXTENT))
    }
}

/// # Safety
///
/// `begin` is from `mapped`, was not given back since, and nothing in it is used any more.
#[cfg(not(miri))]
unsafe fn unmap(begin: NonNull<u8>) {
    // SAFETY: what the caller promises. Where it cannot be unmapped (too many mappings) addresses stay, and no memory.
    unsafe {
        if munmap(begin.as_ptr().cast(), EXTENT_BYTES).is_err() {
            let _ = madvise(begin.as_ptr().cast(), EXTENT_BYTES, Advice::LinuxDontNeed);
        }
    }
}

/// Miri knows no mappings.
#[cfg(miri)]
fn mapped() -> NonNull<u8> {
    allocated(EXTENT)
}

/// # Safety
///
/// As above.
#[cfg(miri)]
unsafe fn unmap(begin: NonNull<u8>) {
    // SAFETY: what the caller promises; it was allocated with this layout.
    unsafe { dealloc(begin.as_ptr(), EXTENT) }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between two writes of what the locks here guard.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            classes: [const { Mutex::new(Class { roomy: Vec::new() }) }; LONGEST / STEP],
            extents: Mutex::new(Extents { all: Vec::new(), roomy: Vec::new(), unused: Vec::new() }),
        }
    }

    /// Memory for so many bytes, aligned to four, and not written.
    fn take(&self, size: usize) -> NonNull<u8> {
        match steps(size) {
            Some(steps) => locked(&self.classes[steps - 1]).take(steps, &self.extents),
            None => allocated(alone(size)),
        }
    }

    /// # Safety
    ///
    /// `place` is from `take` of this pool with this size, was not given back since, and is not used any more.
    unsafe fn give(&self, place: NonNull<u8>, size: usize) {
        match steps(size) {
            // SAFETY: what the caller promises.
            Some(steps) => unsafe { locked(&self.classes[steps - 1]).give(place, &self.extents) },
            // SAFETY: it was allocated with this layout in `take`.
            None => unsafe { dealloc(place.as_ptr(), alone(size)) },
        }
    }
}

impl Class {
    fn take(&mut self, steps: usize, extents: &Mutex<Extents>) -> NonNull<u8> {
        let page = match self.roomy.last() {
            Some(page) => *page,
            None => {
                let page = locked(extents).take();
                self.roomy.push(page);
                page
            }
        };
        // SAFETY: a page of this class, under its lock, with room: either `free` names a slot that was given back, or a whole one
        // begins at `fresh`. Both lie within the page, all of which `page` may reach.
        unsafe {
            let fields = &mut *page.as_ptr();
            let slot = if fields.free == 0 {
                let slot = page.cast::<u8>().add(STEP * usize::from(fields.fresh));
                fields.fresh += steps as u16;
                slot
            } else {
                let slot = page.cast::<u8>().add(STEP * usize::from(fields.free));
                fields.free = slot.cast::<u16>().read();
                slot
            };
            fields.taken += 1;
            if fields.free == 0 && STEP * (usize::from(fields.fresh) + steps) > PAGE_BYTES {
                fields.place = FULL;
                self.roomy.pop();
            }
            slot
        }
    }

    /// # Safety
    ///
    /// `slot` is from `take` of this class, was not given back since, and is not used any more.
    unsafe fn give(&mut self, slot: NonNull<u8>, extents: &Mutex<Extents>) {
        let within = slot.as_ptr().addr() % PAGE_BYTES;
        // SAFETY: a page begins at a multiple of its length, so that the slot's begins `within` bytes before it, in the same
        // allocation. Its fields are reached under the lock of its class; the slot's bytes are nobody's, and hold two at least.
        unsafe {
            let page = slot.sub(within).cast::<Page>();
            let fields = &mut *page.as_ptr();
            slot.cast::<u16>().write(fields.free);
            fields.free = (within / STEP) as u16;
            fields.taken -= 1;
            if fields.place == FULL {
                fields.place = self.roomy.len() as u32;
                self.roomy.push(page);
            }
            if fields.taken == 0 {
                let place = fields.place;
                self.roomy.swap_remove(place as usize);
                if let Some(moved) = self.roomy.get(place as usize) {
                    (*moved.as_ptr()).place = place;
                }
                locked(extents).give(page);
            }
        }
    }
}

impl Extents {
    /// An empty page, to be the only one with room of its class.
    fn take(&mut self) -> NonNull<Page> {
        let number = self.roomy.last().copied().unwrap_or_else(|| self.begin());
        let extent = &mut self.all[number as usize];
        let page = extent.empty.trailing_zeros() as u16;
        extent.empty &= extent.empty - 1;
        // SAFETY: one of an extent's pages, which nobody has.
        let begin = unsafe { extent.begin.add(PAGE_BYTES * usize::from(page)).cast::<Page>() };
        if extent.empty == 0 {
            extent.place = FULL;
            self.roomy.pop();
        }
        let fields = Page { free: 0, fresh: FIRST, taken: 0, number: page, extent: number, place: 0 };
        // SAFETY: as above; a page's begin is aligned for its fields.
        unsafe { begin.write(fields) };
        begin
    }

    fn begin(&mut self) -> u32 {
        let extent = Extent { begin: mapped(), empty: u128::MAX, place: self.roomy.len() as u32 };
        let number = match self.unused.pop() {
            Some(number) => {
                self.all[number as usize] = extent;
                number
            }
            None => {
                self.all.push(extent);
                self.all.len() as u32 - 1
            }
        };
        self.roomy.push(number);
        number
    }

    /// # Safety
    ///
    /// `page` is from `take` of these extents, was not given back since, and is not used any more.
    unsafe fn give(&mut self, page: NonNull<Page>) {
        // SAFETY: what the caller promises: its fields are still what `take` wrote.
        let (number, page) = unsafe { (page.as_ref().extent, page.as_ref().number) };
        let extent = &mut self.all[number as usize];
        extent.empty |= 1 << page;
        if extent.place == FULL {
            extent.place = self.roomy.len() as u32;
            self.roomy.push(number);
        }
        // One that is empty stays while no other has room.
        if extent.empty == u128::MAX && self.roomy.len() > 1 {
            let (begin, place) = (extent.begin, extent.place);
            self.roomy.swap_remove(place as usize);
            if let Some(moved) = self.roomy.get(place as usize) {
                self.all[*moved as usize].place = place;
            }
            self.unused.push(number);
            // SAFETY: it was mapped in `begin`, and all of its pages were given back.
            unsafe { unmap(begin) };
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "threads of a test, which it joins")]
mod tests {
    use super::*;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    /// Bytes that say by themselves what they should be.
    fn made(length: usize, seed: u8) -> Shared {
        Shared::new(length, |bytes| (0..length).for_each(|at| bytes[at] = seed.wrapping_add(at as u8)))
    }

    fn is_whole(shared: &Shared, length: usize, seed: u8) -> bool {
        shared.len() == length && (0..length).all(|at| shared[at] == seed.wrapping_add(at as u8))
    }

    /// Random lengths, some of them too long for a slot, given back in any order.
    fn churn(seed: u64, turns: usize) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut kept: Vec<(Shared, usize, u8)> = Vec::new();
        for _ in 0..turns {
            match rng.random_range(0..10) {
                0..5 => {
                    let most = if rng.random_bool(0.1) { 5_000 } else { 400 };
                    let (length, seed) = (rng.random_range(0..most), rng.random());
                    kept.push((made(length, seed), length, seed));
                }
                5 if !kept.is_empty() => {
                    let at = rng.random_range(0..kept.len());
                    kept.push(kept[at].clone());
                }
                _ if !kept.is_empty() => {
                    let at = rng.random_range(0..kept.len());
                    let (shared, length, seed) = kept.swap_remove(at);
                    assert!(is_whole(&shared, length, seed));
                }
                _ => {}
            }
        }
        assert!(kept.iter().all(|(shared, length, seed)| is_whole(shared, *length, *seed)));
    }

    #[test]
    fn bytes_stay_what_they_are_until_the_last_owner_goes_whatever_others_do() {
        let turns = if cfg!(miri) { 300 } else { 20_000 };
        let threads: Vec<_> = (0..4).map(|seed| std::thread::spawn(move || churn(seed, turns))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn what_too_many_own_is_copied() {
        for length in [100, 5_000] {
            let shared = made(length, 5);
            let before = shared.head().0.fetch_or(1 << 31, Ordering::Relaxed);
            let copy = shared.clone();
            assert_ne!(copy.as_ptr(), shared.as_ptr());
            assert_eq!(shared.owners(), (1 << 31) / OWNER + 1, "the copy is no owner of it");
            shared.head().0.store(before, Ordering::Relaxed);
            drop(shared);
            assert!(is_whole(&copy, length, 5) && copy.owners() == 1);
        }
    }

    #[test]
    fn an_owner_in_another_thread_keeps_the_bytes() {
        let first = made(300, 7);
        let others: Vec<Shared> = (0..8).map(|_| first.clone()).collect();
        drop(first);
        let threads: Vec<_> =
            others.into_iter().map(|other| std::thread::spawn(move || is_whole(&other, 300, 7))).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    }

    /// Pages that are not empty, and extents that there are.
    fn held(pool: &Pool) -> (usize, usize) {
        let extents = locked(&pool.extents);
        let count = extents.all.len() - extents.unused.len();
        let there = (0..).zip(&extents.all).filter(|(number, _)| !extents.unused.contains(number));
        let empty: u32 = there.map(|(_, extent)| extent.empty.count_ones()).sum();
        (count * PAGES - empty as usize, count)
    }

    fn taken(pool: &Pool, count: usize, size: usize) -> Vec<NonNull<u8>> {
        (0..count).map(|_| pool.take(size)).collect()
    }

    fn give_all(pool: &Pool, slots: impl IntoIterator<Item = NonNull<u8>>, size: usize) {
        // SAFETY: tests give each slot back once, with its size.
        slots.into_iter().for_each(|slot| unsafe { pool.give(slot, size) });
    }

    #[test]
    fn pages_are_filled_and_what_is_empty_serves_other_lengths_and_goes() {
        // As the real one it lives for good, with the extent that it keeps.
        static OWN: Pool = Pool::new();
        let (pool, size, other) = (&OWN, 320, 100);
        let per_page = (PAGE_BYTES - STEP * usize::from(FIRST)) / size;
        let full = 2 * PAGES;
        let mut slots = taken(pool, full * per_page, size);
        assert_eq!(held(pool), (full, 2), "so many pages are full");
        let one = slots.pop();
        give_all(pool, one, size);
        slots.push(pool.take(size));
        assert_eq!(held(pool), (full, 2), "the slot that was given back is taken again");
        // All but one of each page go: none is empty. Then all of every other page go.
        let (stay, go): (Vec<_>, Vec<_>) =
            slots.into_iter().enumerate().partition(|(at, _)| at % per_page == 0);
        give_all(pool, go.into_iter().map(|(_, slot)| slot), size);
        assert_eq!(held(pool), (full, 2));
        let (stay, go): (Vec<_>, Vec<_>) =
            stay.into_iter().partition(|(at, _)| (at / per_page).is_multiple_of(2));
        give_all(pool, go.into_iter().map(|(_, slot)| slot), size);
        assert_eq!(held(pool), (full / 2, 2));
        // Another length has them, and what is left of the first its own.
        let others = taken(pool, full / 2 * ((PAGE_BYTES - STEP * usize::from(FIRST)) / other), other);
        let again = taken(pool, full / 2 * (per_page - 1), size);
        assert_eq!(held(pool), (full, 2));
        give_all(pool, others, other);
        give_all(pool, again, size);
        give_all(pool, stay.into_iter().map(|(_, slot)| slot), size);
        assert_eq!(held(pool), (0, 1), "one extent is kept");
    }

    #[test]
    fn the_longest_slot_the_first_bytes_beyond_it_and_none_at_all() {
        for length in [0, 1, 7, 8, 9, LONGEST - HEAD, LONGEST - HEAD + 1, 100_000] {
            let shared = made(length, 3);
            assert_eq!(shared.as_ptr().addr() % align_of::<u32>(), 0);
            assert!(is_whole(&shared, length, 3) && shared == shared.clone());
        }
        assert_eq!(size_of::<Option<Shared>>(), size_of::<usize>());
    }
}

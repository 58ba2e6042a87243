//! An allocator that counts what each thread holds, and the most it held: how the fuzzer sees that memory is bounded.
//!
//! Decides nothing. Hands everything on to the system's allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// What this thread holds now; the most begins there.
pub fn mark() -> usize {
    let held = HELD.with(Cell::get);
    MOST.with(|most| most.set(held));
    held
}

/// The most that this thread has held since, beyond what it held then.
pub fn most_since(mark: usize) -> usize {
    MOST.with(Cell::get).saturating_sub(mark)
}

fn grew(bytes: usize) {
    // A thread that ends allocates without its cells: that is not counted.
    let _ = HELD.try_with(|held| {
        held.set(held.get().wrapping_add(bytes));
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

fn shrank(bytes: usize) {
    let _ = HELD.try_with(|held| held.set(held.get().saturating_sub(bytes)));
}

// SAFETY: every call goes to `System` with the same arguments, so its promises are ours; counting allocates nothing.
#[allow(unsafe_code, reason = "an allocator is made of it")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrank(layout.size());
        // SAFETY: `pointer` came from `System` with this layout, by `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

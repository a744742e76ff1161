//! An allocator that counts, per thread, so that tests running beside each other do not disturb one another.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

fn grow(bytes: i64) {
    // `try_with`: a thread may allocate while its locals are already gone.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
    if bytes > 0 {
        let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
    }
}

#[expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait; every call is handed to the system's allocator as it came")]
// SAFETY: all four methods forward to `System`, which keeps the contract; the counters never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        grow(-(layout.size() as i64));
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work`; returns what it gave, how often it allocated, and how many bytes it held at most beyond those held before.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    let (calls, live) = (CALLS.get(), LIVE.get());
    PEAK.set(live);
    let value = work();
    (value, CALLS.get() - calls, u64::try_from(PEAK.get() - live).unwrap_or(0))
}

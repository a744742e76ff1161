//! The one import of locks and atomics.
//!
//! Everything above takes its locks and atomics from here, so that model checkers can be slipped underneath in one place, and so
//! that nobody mixes poisoning with non-poisoning locks. Under `cfg(loom)` every load, store and lock is loom's, which tries all
//! interleavings and all values that the memory model lets a load return; under `cfg(shuttle)` it is shuttle's, which tries many
//! schedules of a whole disk. `docs/design/0024-interleavings.md` says what is tried with which, and how.

#[cfg(any(loom, shuttle))]
mod checked;
#[cfg(all(test, loom))]
pub(crate) mod loom_tests;

#[cfg(all(feature = "nbd", not(any(loom, shuttle))))]
pub(crate) use parking_lot::Condvar;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::OnceLock;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};

#[cfg(any(loom, shuttle))]
pub(crate) use checked::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::fence;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::fence;

pub(crate) use std::sync::atomic::Ordering;
pub(crate) use std::sync::{Arc, Weak};

/// What belongs to the process and not to one disk: statics, sources of unique numbers, memos of values. No protocol hangs on
/// it, and it outlives an execution of a model, so it is the real thing under every checker.
pub(crate) mod process {
    pub(crate) use parking_lot::Mutex;
    #[cfg(any(feature = "sim", target_os = "linux"))]
    pub(crate) use std::sync::OnceLock;
    pub(crate) use std::sync::atomic::AtomicU64;
    #[cfg(target_os = "linux")]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize};
}

/// A small number of the calling thread: threads that work at the same time should have different ones.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    MINE.with(|mine| *mine)
}
#[cfg(any(loom, shuttle))]
pub(crate) use checked::thread_number;

/// A number that a model keeps small: every object costs a checker time, and some would only repeat what a few of them show.
pub(crate) const fn fewer_when_checked(usual: usize, checked: usize) -> usize {
    if cfg!(any(loom, shuttle)) { checked } else { usual }
}

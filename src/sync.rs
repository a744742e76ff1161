//! The one import of locks and atomics.
//!
//! Everything above takes its locks and atomics from here, so that model checkers can be slipped underneath in one place
//! (`cfg(loom)`), and so that nobody mixes poisoning with non-poisoning locks.

#[cfg(feature = "nbd")]
pub(crate) use parking_lot::Condvar;
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, OnceLock, Weak};

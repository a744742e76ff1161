//! Locks and atomics of a model checker behind the signatures of ours.
//!
//! The checkers' locks poison and ours do not, and neither checker has a `OnceLock`. Loom lets a `SeqCst` load return a value that
//! is older than the last `SeqCst` store where that value was stored with less, which no processor does; so here such an access
//! stands between two `SeqCst` fences, which loom knows exactly. All these differences end in this file.

#[cfg(loom)]
use loom::sync as under;
#[cfg(all(shuttle, not(loom)))]
use shuttle::sync as under;

#[cfg(loom)]
pub(crate) use in_order::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};
use std::fmt;
#[cfg(all(shuttle, not(loom)))]
pub(crate) use under::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};
pub(crate) use under::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use super::Ordering;
use std::sync::PoisonError;

/// As `parking_lot::Mutex`.
#[derive(Default)]
pub(crate) struct Mutex<T>(under::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(under::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

/// As `parking_lot::RwLock`.
#[derive(Default)]
pub(crate) struct RwLock<T>(under::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(under::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RwLock")
    }
}

/// As `std::sync::OnceLock`, made of a checked lock and a checked flag, with std's own for the memory behind them.
#[derive(Default)]
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    turn: Mutex<()>,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self { is_set: AtomicBool::new(false), turn: Mutex::new(()), value: std::sync::OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        // Acquire pairs with the Release in `get_or_init`.
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        let _turn = self.turn.lock();
        let value = self.value.get_or_init(make);
        self.is_set.store(true, Ordering::Release);
        value
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let mut offered = Some(value);
        self.get_or_init(|| offered.take().expect("called once"));
        offered.map_or(Ok(()), Err)
    }
}

/// Loom's atomics with `SeqCst` as the language has it.
#[cfg(loom)]
mod in_order {
    use super::under::atomic::{self, fence};
    use crate::sync::Ordering;

    fn fenced<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
        let is_total = order == Ordering::SeqCst;
        if is_total {
            fence(Ordering::SeqCst);
        }
        let value = access();
        if is_total {
            fence(Ordering::SeqCst);
        }
        value
    }

    macro_rules! atomic {
        ($name:ident, $value:ty, [$($store:ident)?] $(, $change:ident)*) => {
            #[derive(Debug, Default)]
            pub(crate) struct $name(atomic::$name);

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    fenced(order, || self.0.load(order))
                }

                $(pub(crate) fn $store(&self, value: $value, order: Ordering) {
                    fenced(order, || self.0.$store(value, order));
                })?

                $(pub(crate) fn $change(&self, value: $value, order: Ordering) -> $value {
                    fenced(order, || self.0.$change(value, order))
                })*
            }
        };
    }

    atomic!(AtomicBool, bool, [store], swap);
    atomic!(AtomicU8, u8, [store]);
    atomic!(AtomicU64, u64, [store], fetch_add, fetch_or, fetch_and);
    atomic!(AtomicUsize, usize, [], fetch_add, fetch_sub);
}

#[cfg(loom)]
pub(crate) fn thread_number() -> usize {
    loom::thread_local!(static MINE: usize = number_of(&format!("{:?}", loom::thread::current().id())));
    MINE.with(|mine| *mine)
}

/// The last number in loom's description of a thread, which counts the threads of a model.
#[cfg(loom)]
fn number_of(id: &str) -> usize {
    let digits: Vec<&str> = id.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()).collect();
    digits.last().and_then(|digits| digits.parse().ok()).expect("loom numbers its threads")
}

#[cfg(all(shuttle, not(loom)))]
pub(crate) fn thread_number() -> usize {
    shuttle::current::me().into()
}

//! Which metadata pages changed since the last commit.
//!
//! Every change of an entry or a bit happens under the shared gate, together with marking its page here. Freezing takes the
//! gate exclusively, so no change can fall between being made and being marked; the flag on the page only saves the trip to
//! the list for pages that are on it already.

use crate::sync::{AtomicBool, Mutex, Ordering};

/// Names a metadata page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PageKey {
    /// A page of sector bitmap bits, by [`super::bitmap::BitmapTable::page_of`]. Sorts before the BAT: see `disk/flush.rs`.
    Bitmap(u64),
    /// A page of the BAT, by [`super::bat::BatTable::page_of`].
    Bat(u64),
}

/// Whether a page is on the list.
pub(crate) struct DirtyFlag(AtomicBool);

impl DirtyFlag {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Whether the page waits for a commit. The caller holds the gate.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The pages to commit next.
pub(crate) struct DirtyList {
    pages: Mutex<Vec<PageKey>>,
}

impl DirtyList {
    pub(crate) fn new() -> Self {
        Self { pages: Mutex::new(Vec::new()) }
    }

    /// Puts a page on the list. The caller holds the gate (shared), as the module says.
    pub(crate) fn mark(&self, key: PageKey, flag: &DirtyFlag) {
        // Relaxed: the gate orders marking against freezing, and nothing else reads the flag. A flag that is set stays so while the gate
        // is held, so it is looked at first: most pages are on the list already.
        if !flag.is_set() && !flag.0.swap(true, Ordering::Relaxed) {
            self.pages.lock().push(key);
        }
    }

    /// How many pages are on the list. The caller holds the gate exclusively, or does not mind an old answer.
    pub(crate) fn len(&self) -> usize {
        self.pages.lock().len()
    }

    /// Takes the whole list. The caller holds the gate exclusively and calls [`DirtyList::unmark`] for each page.
    pub(crate) fn take(&self) -> Vec<PageKey> {
        std::mem::take(&mut *self.pages.lock())
    }

    /// Clears a page's flag before it is copied.
    pub(crate) fn unmark(flag: &DirtyFlag) {
        flag.0.store(false, Ordering::Relaxed);
    }
}

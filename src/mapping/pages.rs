//! A sparse array of pages that are loaded once and never move.
//!
//! Two levels of `OnceLock`: a 64 TiB disk has up to 4 million bitmap pages, so the root is small, a middle node appears with
//! its first page, and an empty map costs a few KiB whatever the size of the disk. A page, once there, stays until the map is
//! dropped, so readers hold plain references and take no lock.

use crate::sync::{OnceLock, fewer_when_checked};

const FAN: usize = fewer_when_checked(512, 16);

/// Middle node: one slot for each of `FAN` pages.
struct Middle<T> {
    /// An array rather than a slice: a look-up then needs no bounds check.
    slots: Box<[OnceLock<Box<T>>; FAN]>,
}

impl<T> Middle<T> {
    fn new() -> Self {
        let slots: Box<[_]> = (0..FAN).map(|_| OnceLock::new()).collect();
        Self { slots: slots.try_into().unwrap_or_else(|_| unreachable!("as many slots were made as the array has")) }
    }
}

/// See the module.
pub(crate) struct PageMap<T> {
    root: Box<[OnceLock<Middle<T>>]>,
}

impl<T> PageMap<T> {
    /// A map for pages `0..pages`, all absent.
    pub(crate) fn new(pages: u64) -> Self {
        let middles = usize::try_from(pages.div_ceil(FAN as u64)).expect("a 64 TiB disk has 2^22 bitmap pages at most");
        Self { root: (0..middles).map(|_| OnceLock::new()).collect() }
    }

    /// The page, if somebody loaded it.
    #[inline]
    pub(crate) fn get(&self, page: u64) -> Option<&T> {
        let page = page as usize;
        self.root.get(page / FAN)?.get()?.slots[page % FAN].get().map(|page| &**page)
    }

    /// The first loaded page at or after `from`.
    pub(crate) fn next_loaded(&self, from: u64) -> Option<u64> {
        let from = from as usize;
        (from / FAN..self.root.len()).find_map(|middle| {
            let slots = &self.root[middle].get()?.slots;
            let first = if middle == from / FAN { from % FAN } else { 0 };
            (first..FAN).find(|&slot| slots[slot].get().is_some()).map(|slot| (middle * FAN + slot) as u64)
        })
    }

    /// The page, loading it if nobody has. When two threads load at once, one result is dropped and both see the other.
    #[inline]
    pub(crate) fn get_or_load<E>(&self, page: u64, load: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        match self.get(page) {
            Some(found) => Ok(found),
            None => self.load(page, load),
        }
    }

    #[cold]
    fn load<E>(&self, page: u64, load: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let page = page as usize;
        let loaded = Box::new(load()?);
        let middle = self.root[page / FAN].get_or_init(Middle::new);
        Ok(middle.slots[page % FAN].get_or_init(|| loaded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_loaded_once_and_a_failed_load_leaves_nothing() {
        let map = PageMap::<u32>::new(1 << 22);
        assert_eq!(map.get_or_load(4_000_000, || Err("no")), Err("no"));
        assert_eq!(map.get(4_000_000), None);
        assert_eq!(map.get_or_load(4_000_000, || Ok::<_, ()>(7)), Ok(&7));
        assert_eq!(map.get_or_load(4_000_000, || Ok::<_, ()>(8)), Ok(&7));
        assert_eq!(map.get(4_000_001), None);
    }
}

//! The log of a file, read a piece at a time: it may be 64 MiB long, and what counts in it are headers and descriptors.
//!
//! Sectors that cannot be read stand as zeros, as long as they are few, and are remembered: `replay.rs` judges whether one of them
//! may hide anything.

use super::headers::HeaderError;
use crate::format::LogRing;
use crate::storage::{self, Storage, StorageError};
use crate::units::PAGE_LEN;
use std::collections::BTreeSet;

/// Sectors read at a time.
const AHEAD: usize = 64;
/// Sectors of a log that may be unreadable. With more of them it is the storage that is gone, and asking on would take long.
const MOST_UNREAD: usize = 16;

/// See the module.
pub(crate) struct Window<'a> {
    file: &'a dyn Storage,
    at: u64,
    sectors: usize,
    /// The sectors from `first` on; fewer than [`AHEAD`] at the end of the log, none before the first read.
    held: Vec<[u8; PAGE_LEN]>,
    first: usize,
    unread: BTreeSet<usize>,
    error: Option<StorageError>,
}

impl<'a> Window<'a> {
    /// Over the `sectors` of the log at `at`, which lie inside the file.
    pub(crate) fn new(file: &'a dyn Storage, at: u64, sectors: usize) -> Self {
        Self { file, at, sectors, held: Vec::new(), first: 0, unread: BTreeSet::new(), error: None }
    }

    /// The sectors that could not be read so far, and why the first of them could not.
    pub(crate) fn unread(&self) -> Option<(BTreeSet<usize>, StorageError)> {
        Some((self.unread.clone(), self.error.clone()?))
    }

    fn fill(&mut self, first: usize) -> Result<(), StorageError> {
        self.first = first;
        self.held.resize(AHEAD.min(self.sectors - first), [0; PAGE_LEN]);
        let at = self.at + (first * PAGE_LEN) as u64;
        let Err(e) = storage::read_exact(self.file, self.held.as_flattened_mut(), at) else { return Ok(()) };
        for (number, sector) in (first..).zip(&mut self.held) {
            if storage::read_exact(self.file, sector, self.at + (number * PAGE_LEN) as u64).is_err() {
                sector.fill(0);
                self.unread.insert(number);
                if self.unread.len() > MOST_UNREAD {
                    self.held.clear();
                    return Err(e);
                }
            }
        }
        self.error.get_or_insert(e);
        Ok(())
    }
}

impl LogRing for Window<'_> {
    type Error = HeaderError;

    fn sectors(&self) -> usize {
        self.sectors
    }

    fn sector(&mut self, number: usize) -> Result<&[u8; PAGE_LEN], HeaderError> {
        assert!(number < self.sectors, "the scan stays inside of the ring");
        if !(self.first..self.first + self.held.len()).contains(&number) {
            self.fill(number)?;
        }
        Ok(&self.held[number - self.first])
    }
}

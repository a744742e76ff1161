//! Rewriting the parent locator of a file: where its parent is, not what it holds.
//!
//! The locator is a metadata item, and metadata has neither checksum nor second copy, so its pages go through the log like those of the
//! BAT: one entry holds the item and, where the item has to move, the table entry that says so. In this order:
//!
//! ```text
//!   1. a header with a new file write GUID, synced; its mirror   crash: nothing changed
//!   2. the log entry, synced                                     crash: nothing changed, no header names the entry
//!   3. a header that names the log, synced                       crash: the next opening replays it
//!   4. pages home, log declared empty                            crash: as 3, or done
//! ```
//!
//! The data write GUID stays: what a user can read is the same as before, and children of this file must go on recognising it. That is
//! why this is not a session of the `Writer`, which gives both identities anew.

use super::error::DiskError;
use super::writer::{Commit, Writer};
use crate::format::{MetadataEntry, MetadataTable, PARENT_LOCATOR, ParentLocator, Region, TABLE_LEN};
use crate::guid::FileWriteGuid;
use crate::kind::Structure;
use crate::log::writer::{Lengths, Page};
use crate::storage::{self, Storage, SyncSite};
use crate::units::{FileOffset, MIB, PAGE, PAGE_LEN};
use std::collections::BTreeMap;

/// Bytes of an entry in the metadata table, and of the header before the first.
const ENTRY_LEN: u64 = 32;

/// The locator cannot be rewritten.
#[derive(Clone, Debug)]
pub(crate) enum RelinkFault {
    /// The metadata region has no room for a longer locator.
    NoRoom { needed: u64 },
    /// The file failed.
    Disk(DiskError),
}

impl<E: Into<DiskError>> From<E> for RelinkFault {
    fn from(e: E) -> Self {
        Self::Disk(e.into())
    }
}

impl Writer {
    /// Puts `locator` in place of the file's parent locator, durably. The layer goes on with the old one: it is to be closed.
    ///
    /// # Panics
    /// When the session has begun, or the file has no parent: both are for the caller to see to.
    pub(crate) fn rewrite_locator(&self, locator: &ParentLocator) -> Result<(), RelinkFault> {
        let mut commit = self.commit.lock();
        assert!(!self.has_begun(), "a file is relinked before anything else is done to it");
        let file = &*self.layer.file;
        let pages = self.locator_pages(&locator.encode())?;
        let Commit { headers, log, durable_len, .. } = &mut *commit;
        if pages.len() > log.batch_pages() {
            return Err(RelinkFault::NoRoom { needed: pages.len() as u64 * PAGE });
        }
        headers.change(file, SyncSite::Identity, |header| header.file_write = FileWriteGuid::random())?;
        headers.mirror(file)?;
        let lengths = Lengths { flushed: *durable_len, last: self.layer.file_len.next_multiple_of(MIB) };
        let frozen = log.freeze(pages);
        let (guid, entry) = log.write_unnamed(file, frozen, lengths)?;
        let barrier = log.sync(file, headers, SyncSite::Payload)?;
        log.name(file, headers, guid, entry.settle(&barrier))?;
        log.stop(file, headers)?;
        Ok(())
    }

    /// The pages of the metadata region that change, as they will be.
    fn locator_pages(&self, item: &[u8]) -> Result<Vec<Page>, RelinkFault> {
        let file = &*self.layer.file;
        let region = self.metadata_region();
        let mut bytes = vec![0; TABLE_LEN];
        storage::read_exact(file, &mut bytes, region.offset.get())?;
        let table = MetadataTable::parse(region, &bytes)?;
        let is_locator = |entry: &MetadataEntry| entry.id == PARENT_LOCATOR && !entry.is_user;
        let index = table.entries.iter().position(is_locator).expect("a differencing disk has a parent locator");
        let len = item.len() as u64;
        let offset = place(&table, index, len, u64::from(region.length)).ok_or(RelinkFault::NoRoom { needed: len })?;
        let mut moved = table.clone();
        moved.entries[index].offset = offset;
        moved.entries[index].length = u32::try_from(len).expect("a locator of a few paths is far below 4 GiB");
        let entry_at = ENTRY_LEN * (1 + index as u64);
        let entry = &moved.encode()[entry_at as usize..(entry_at + ENTRY_LEN) as usize];

        let mut pages = BTreeMap::new();
        lay_over(file, &mut pages, region.offset.get() + entry_at, entry)?;
        lay_over(file, &mut pages, region.offset.get() + u64::from(offset), item)?;
        Ok(pages.into_iter().map(|(home, image)| Page { home: FileOffset::new(home), image }).collect())
    }

    fn metadata_region(&self) -> Region {
        let taken = self.layer.bat.taken().iter().find(|(_, _, what)| *what == Structure::MetadataTable);
        let &(start, end, _) = taken.expect("an open layer has a metadata region");
        let length = u32::try_from(end - start).expect("a region's length is a 32-bit field");
        Region { guid: crate::format::METADATA_REGION, offset: FileOffset::new(start), length, required: true }
    }
}

/// Where in the region the item goes: where it is if it fits there, behind all items otherwise.
fn place(table: &MetadataTable, index: usize, len: u64, region_len: u64) -> Option<u32> {
    let old = &table.entries[index];
    let others = || table.entries.iter().enumerate().filter(|(i, entry)| *i != index && entry.length > 0).map(|(_, entry)| entry);
    let next = others().map(|entry| u64::from(entry.offset)).filter(|&at| at > u64::from(old.offset)).min().unwrap_or(region_len);
    if old.length > 0 && u64::from(old.offset) + len <= next {
        return Some(old.offset);
    }
    let end = others().map(|entry| u64::from(entry.offset) + u64::from(entry.length)).max().unwrap_or(0).max(TABLE_LEN as u64);
    (end + len <= region_len).then(|| u32::try_from(end).expect("regions are smaller than 4 GiB"))
}

/// Lays bytes over the file's pages in memory.
fn lay_over(
    file: &dyn Storage,
    pages: &mut BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
    at: u64,
    bytes: &[u8],
) -> Result<(), storage::StorageError> {
    let mut done = 0;
    while done < bytes.len() {
        let here = at + done as u64;
        let home = here / PAGE * PAGE;
        let within = (here - home) as usize;
        let len = (bytes.len() - done).min(PAGE_LEN - within);
        let page = match pages.entry(home) {
            std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => {
                let mut image = Box::new([0; PAGE_LEN]);
                storage::read_zero_extended(file, &mut image[..], home)?;
                free.insert(image)
            }
        };
        page[within..within + len].copy_from_slice(&bytes[done..done + len]);
        done += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(items: &[(u32, u32)]) -> MetadataTable {
        let entry = |&(offset, length): &(u32, u32)| MetadataEntry {
            id: PARENT_LOCATOR,
            offset,
            length,
            is_user: false,
            is_virtual_disk: false,
            is_required: true,
        };
        MetadataTable { entries: items.iter().map(entry).collect() }
    }

    #[test]
    fn an_item_stays_where_it_fits_and_moves_behind_the_others_where_not() {
        let region = 0x1_0000 + 1000;
        let between = table(&[(0x1_0000, 100), (0x1_0100, 100)]);
        assert_eq!(place(&between, 0, 256, region), Some(0x1_0000), "up to the next item");
        assert_eq!(place(&between, 0, 257, region), Some(0x1_0164), "behind the last");
        assert_eq!(place(&between, 1, 744, region), Some(0x1_0100), "up to the end of the region");
        assert_eq!(place(&between, 1, 745, region), Some(0x1_0064), "in the gap before");
        assert_eq!(place(&between, 0, 645, region), None, "not over the end");
    }
}

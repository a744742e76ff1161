//! Changing metadata items: the parent locator, the virtual size, the flags of the file, items of the virtual disk.
//!
//! Metadata has neither checksum nor second copy, so its pages go through the log like those of the BAT: one entry holds every item that
//! changes and the part of the table that says where they are, and counts whole or not at all. An item stays where it is if it fits there
//! and moves behind all others if not; items are added and removed the same way.
//!
//! **Before the session has begun** (a new parent locator, say) nothing else is touched, and the log is empty again afterwards:
//!
//! ```text
//!   1. a header with a new file write GUID, synced; its mirror   crash: nothing changed
//!   2. the log entry, synced                                     crash: nothing changed, no header names the entry
//!   3. a header that names the log, synced                       crash: the next opening replays it
//!   4. pages home, log declared empty                            crash: as 3, or done
//! ```
//!
//! The data write GUID stays: what a user can read is the same as before, and children of this file must go on recognising it.
//!
//! **In a session** ([`Writer::change_items`] and [`Writer::change_together`]) the items travel in an entry of the running log, under the
//! commit lock, with the identity that the session has:
//!
//! ```text
//!   1. flush: everything changed so far                          crash: nothing of this act
//!   2. all stripes and the gate: BAT entries of this act change, dirty pages are copied
//!   3. payload and earlier homes, synced                         crash: as 1
//!   4. one entry: items, BAT pages, whatever else is dirty; synced   crash: all of the act, by replay, or nothing
//! ```
//!
//! The layer in memory goes on with the items it was opened with; a caller whose act matters to a running disk says what follows from it.

use super::error::DiskError;
use super::writer::{Commit, Writer};
use crate::format::{
    FILE_PARAMETERS, METADATA_REGION, Metadata, MetadataEntry, MetadataTable, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, ParentLocator, Region,
    TABLE_LEN, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use crate::guid::{FileWriteGuid, Guid};
use crate::kind::Structure;
use crate::log::writer::{Lengths, LogWriter, Page};
use crate::storage::{self, Storage, SyncSite};
use crate::units::{FileOffset, MIB, PAGE, PAGE_LEN};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// One change of the metadata region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ItemChange {
    /// The item has these bytes and flags from now on, whether it was there or not. `entry` says which; its offset and length count for
    /// nothing.
    Put { entry: MetadataEntry, bytes: Vec<u8> },
    /// The item is gone. No harm if it was not there.
    Remove { id: Guid, is_user: bool },
}

impl ItemChange {
    fn system(id: Guid, is_virtual_disk: bool, bytes: Vec<u8>) -> Self {
        Self::Put { entry: MetadataEntry { id, offset: 0, length: 0, is_user: false, is_virtual_disk, is_required: true }, bytes }
    }

    /// Another parent locator (MS-VHDX 2.6.2.6).
    pub(crate) fn locator(locator: &ParentLocator) -> Self {
        Self::system(PARENT_LOCATOR, false, locator.encode())
    }

    /// No parent locator.
    pub(crate) fn no_locator() -> Self {
        Self::Remove { id: PARENT_LOCATOR, is_user: false }
    }

    /// Another virtual size in bytes (MS-VHDX 2.6.2.2).
    pub(crate) fn virtual_size(bytes: u64) -> Self {
        Self::system(VIRTUAL_DISK_SIZE, true, bytes.to_le_bytes().to_vec())
    }

    /// Another identity for the guest (MS-VHDX 2.6.2.3).
    pub(crate) fn disk_id(id: Guid) -> Self {
        Self::system(VIRTUAL_DISK_ID, true, id.to_bytes().to_vec())
    }

    /// Another physical sector size (MS-VHDX 2.6.2.5).
    pub(crate) fn physical_sector(bytes: u32) -> Self {
        Self::system(PHYSICAL_SECTOR_SIZE, true, bytes.to_le_bytes().to_vec())
    }

    /// Block size and flags as `metadata` has them (MS-VHDX 2.6.2.1).
    pub(crate) fn file_parameters(metadata: &Metadata) -> Self {
        Self::system(FILE_PARAMETERS, false, metadata.encode_file_parameters().to_vec())
    }
}

/// Changes BAT entries of a writer whose stripes and gate are held.
pub(crate) type Edit<'a> = Box<dyn FnOnce(&Writer) + 'a>;

/// What else goes into the entry that changes items.
#[derive(Default)]
pub(crate) struct Together<'a> {
    /// Publishes BAT entries with [`Writer::publish`] and releases space, under all stripes and the exclusive gate. Only pages that were
    /// looked at before may change here, and no I/O is done. Once it ran, a failure latches: nobody knows which of old and new counts.
    pub(crate) edit: Option<Edit<'a>>,
    /// The most BAT pages that `edit` changes.
    pub(crate) edit_pages: usize,
    /// Other pages: of the region tables, of a BAT that moved. None of them lies in the metadata region.
    pub(crate) pages: Vec<Page>,
}

/// The items cannot be changed.
#[derive(Clone, Debug)]
pub(crate) enum ItemFault {
    /// The metadata region, or one entry of the log, has no room for that much.
    NoRoom { needed: u64 },
    /// The file failed.
    Disk(DiskError),
}

impl<E: Into<DiskError>> From<E> for ItemFault {
    fn from(e: E) -> Self {
        Self::Disk(e.into())
    }
}

impl Writer {
    /// Changes items, durably and all at once. See the module for what happens before a session has begun, and in one.
    pub(crate) fn change_items(&self, changes: &[ItemChange]) -> Result<(), ItemFault> {
        self.check_latch()?;
        if self.has_begun() { self.change_together(changes, Together::default()) } else { self.change_unbegun(changes) }
    }

    fn change_unbegun(&self, changes: &[ItemChange]) -> Result<(), ItemFault> {
        let mut commit = self.commit.lock();
        let file = &*self.layer.file;
        let pages = self.item_pages(&commit.log, changes)?;
        let Commit { headers, log, durable_len, .. } = &mut *commit;
        fits(log, pages.len())?;
        headers.change(file, SyncSite::ItemsIdentity, |header| header.file_write = FileWriteGuid::random())?;
        headers.mirror(file)?;
        let lengths = Lengths { flushed: *durable_len, last: self.layer.file_len.next_multiple_of(MIB) };
        let frozen = log.freeze(pages);
        let (guid, entry) = log.write_unnamed(file, frozen, lengths)?;
        let barrier = log.sync(file, headers, SyncSite::ItemsEntry)?;
        log.name(file, headers, guid, entry.settle(&barrier))?;
        log.stop(file, headers, None)?;
        Ok(())
    }

    /// Changes items and BAT entries in one entry of the running log.
    ///
    /// # Panics
    /// When the session has not begun: the caller knows which kind it needs.
    pub(crate) fn change_together(&self, changes: &[ItemChange], together: Together<'_>) -> Result<(), ItemFault> {
        assert!(self.has_begun(), "an entry of the running log needs a session");
        let Together { edit, edit_pages, pages: others } = together;
        let mut commit = self.commit.lock();
        self.check_latch()?;
        let mut pages = self.item_pages(&commit.log, changes)?;
        pages.extend(others);
        fits(&commit.log, pages.len() + edit_pages)?;
        let room = commit.log.batch_pages() - pages.len() - edit_pages;
        let is_edited = edit.is_some();
        let frozen = loop {
            self.flush_as_leader(&mut commit)?;
            // What others changed since that flush travels along; if it is too much, it goes first. It takes hundreds of pages in an
            // instant to go round again.
            let _stripes = self.all_stripes();
            let _gate = self.gate.write();
            if self.dirty.len() <= room {
                if let Some(edit) = edit {
                    edit(self);
                }
                break self.freeze_gated().map_err(|e| self.latch(e))?;
            }
        };
        pages.extend(frozen.logged.iter().map(|(_, page)| page.clone()));
        match self.commit_entry(&mut commit, &frozen.direct, pages) {
            Ok(()) => {
                let mut space = self.space.lock();
                let epoch = self.quarantine.epoch();
                space.enter_limbo(epoch, frozen.released);
            }
            Err(e) if e.is_harmless() && !is_edited => {
                self.restore_frozen(frozen);
                return Err(e.into());
            }
            Err(e) => return Err(self.latch(e.into()).into()),
        }
        drop(commit);
        self.reclaim();
        Ok(())
    }

    /// The pages of the metadata region that change, as they will be.
    fn item_pages(&self, log: &LogWriter, changes: &[ItemChange]) -> Result<Vec<Page>, ItemFault> {
        let region = self.metadata_region();
        let mut pages = Pages { file: &*self.layer.file, log, changed: BTreeMap::new() };
        let start = region.offset.get();
        let old = pages.read(start, TABLE_LEN)?;
        let mut table = MetadataTable::parse(region, &old)?;
        for change in changes {
            match change {
                ItemChange::Remove { id, is_user } => table.entries.retain(|entry| entry.id != *id || entry.is_user != *is_user),
                ItemChange::Put { entry, bytes } => {
                    let offset = put(&mut table, entry, bytes.len() as u64, u64::from(region.length))?;
                    pages.lay_over(start + u64::from(offset), bytes)?;
                }
            }
        }
        let new = table.encode();
        for (at, (old, new)) in (start..).step_by(PAGE_LEN).zip(old.chunks(PAGE_LEN).zip(new.chunks(PAGE_LEN))) {
            if old != new {
                pages.lay_over(at, new)?;
            }
        }
        Ok(pages.changed.into_iter().map(|(home, image)| Page { home: FileOffset::new(home), image }).collect())
    }

    fn metadata_region(&self) -> Region {
        let taken = self.layer.bat.taken().iter().find(|(_, _, what)| *what == Structure::MetadataTable);
        let &(start, end, _) = taken.expect("an open layer has a metadata region");
        let length = u32::try_from(end - start).expect("a region's length is a 32-bit field");
        Region { guid: METADATA_REGION, offset: FileOffset::new(start), length, required: true }
    }
}

fn fits(log: &LogWriter, pages: usize) -> Result<(), ItemFault> {
    if pages > log.batch_pages() { Err(ItemFault::NoRoom { needed: pages as u64 * PAGE }) } else { Ok(()) }
}

/// Enters an item of `len` bytes in the table; returns where in the region its bytes go.
fn put(table: &mut MetadataTable, item: &MetadataEntry, len: u64, region_len: u64) -> Result<u32, ItemFault> {
    let is_it = |entry: &MetadataEntry| entry.id == item.id && entry.is_user == item.is_user;
    let index = table.entries.iter().position(is_it).unwrap_or_else(|| {
        table.entries.push(MetadataEntry { offset: 0, length: 0, ..item.clone() });
        table.entries.len() - 1
    });
    let no_room = ItemFault::NoRoom { needed: len };
    if table.entries.len() > MOST_ITEMS {
        return Err(no_room);
    }
    let offset = if len == 0 { 0 } else { place(table, index, len, region_len).ok_or(no_room)? };
    let length = u32::try_from(len).expect("items are far below 4 GiB");
    table.entries[index] = MetadataEntry { offset, length, ..item.clone() };
    Ok(offset)
}

/// Entries that a metadata table holds (MS-VHDX 2.6.1.1).
const MOST_ITEMS: usize = 2047;

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

/// Pages of the file as they are once everything durable is home, and as they will be.
struct Pages<'a> {
    file: &'a dyn Storage,
    log: &'a LogWriter,
    changed: BTreeMap<u64, Box<[u8; PAGE_LEN]>>,
}

impl Pages<'_> {
    /// Whole pages of the file, with what still waits in the log.
    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, storage::StorageError> {
        let mut bytes = vec![0; len];
        storage::read_zero_extended(self.file, &mut bytes, at)?;
        for (page, home) in bytes.chunks_mut(PAGE_LEN).zip((at..).step_by(PAGE_LEN)) {
            if let Some(image) = self.log.pending(home) {
                page.copy_from_slice(&image[..]);
            }
        }
        Ok(bytes)
    }

    /// Lays bytes over the pages they fall into.
    fn lay_over(&mut self, at: u64, bytes: &[u8]) -> Result<(), storage::StorageError> {
        let mut done = 0;
        while done < bytes.len() {
            let here = at + done as u64;
            let home = here / PAGE * PAGE;
            let within = (here - home) as usize;
            let len = (bytes.len() - done).min(PAGE_LEN - within);
            if !self.changed.contains_key(&home) {
                let image: Box<[u8; PAGE_LEN]> = self.read(home, PAGE_LEN)?.into_boxed_slice().try_into().expect("a page was read");
                self.changed.insert(home, image);
            }
            let Entry::Occupied(page) = self.changed.entry(home) else { unreachable!("it was put there") };
            page.into_mut()[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! A merged parent gets the child's size.
//!
//! **Longer**, before anything is copied: the rest of a block that the old end cut becomes zeros in place, synced, then the size item
//! alone changes. A crash before the entry leaves the old size; after it the new part reads as zeros, which is what the child showed there
//! all along. The table must have room as it is; it is not moved here.
//!
//! **Shorter**, after everything is copied: blocks behind the new end are forgotten and their space released in ordinary commits, then
//! the size item changes. The child, which is no longer than that, never saw them.

use super::{FoldError, On, Side, item_fault};
use crate::chain::disk::{Disk, Parents};
use crate::disk::items::ItemChange;
use crate::format::{BitmapState, PayloadState};
use crate::geometry::{BatRole, Geometry};
use crate::kind::Structure;
use crate::storage::{self, StorageError};
use crate::units::{BatIndex, PAGE_LEN};

/// The shape of a disk with another size.
fn reshaped(disk: &Disk, size: u64) -> Geometry {
    let m = &disk.leaf.metadata;
    Geometry::new(size, u64::from(m.block_size), m.logical_sector).expect("another open disk has this size and sector")
}

/// Whether the parent can take a larger size as it is.
pub(super) fn may_grow(disk: &Disk, size: u64) -> Result<(), FoldError> {
    let refused = |why| Err(FoldError::Refused(Side::Parent, why));
    let layer = &*disk.leaf;
    if layer.is_fixed() {
        return refused("it is fixed and smaller than the child; merge into a new file instead");
    }
    match &disk.parents {
        Parents::None => {}
        Parents::NotOpened => return refused("its own parents are not open"),
        Parents::Line(line) if line.layer.geometry.size() > layer.geometry.size() => {
            return refused("it hides the end of its own parent and is smaller than the child; merge into a new file instead");
        }
        Parents::Line(_) => {}
    }
    let (old, new) = (entries(disk, &layer.geometry), entries(disk, &reshaped(disk, size)));
    let bat = layer.bat.taken().iter().find(|(_, _, what)| *what == Structure::Bat);
    let &(start, end, _) = bat.expect("an open layer has a table");
    if new * 8 > end - start {
        return refused("its block allocation table has no room for the child's size; merge into a new file instead");
    }
    let mut at = start + old * 8;
    let mut page = [0; PAGE_LEN];
    while at < start + new * 8 {
        let data = layer.file.next_data(at).map_err(|e| StorageError::new(storage::Operation::Seek, at, e)).on(Side::Parent)?;
        let Some((from, _)) = data else { break };
        at = at.max(from);
        if at >= start + new * 8 {
            break;
        }
        let part = &mut page[..(start + new * 8 - at).min(PAGE_LEN as u64) as usize];
        storage::read_zero_extended(&*layer.file, part, at).on(Side::Parent)?;
        if part.iter().any(|&byte| byte != 0) {
            return refused("there is something behind the end of its block allocation table; merge into a new file instead");
        }
        at += part.len() as u64;
    }
    Ok(())
}

fn entries(disk: &Disk, g: &Geometry) -> u64 {
    if disk.leaf.has_parent() { g.bat_entries_differencing() } else { g.bat_entries() }
}

/// Makes the parent larger; the session has begun. The disk in memory keeps its old shape: it is to be closed.
pub(super) fn grow(disk: &Disk, size: u64) -> Result<(), FoldError> {
    let writer = disk.writer().on(Side::Parent)?;
    let g = &disk.leaf.geometry;
    if let Some(last) = g.blocks().checked_sub(1).map(crate::units::BlockIndex::new) {
        let cut = u64::from(g.visible_len(last));
        let home = match disk.leaf.payload(last).on(Side::Parent)? {
            PayloadState::FullyPresent(home) | PayloadState::PartiallyPresent(home) => Some(home),
            PayloadState::NotPresent | PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => None,
        };
        if let Some(home) = home
            && cut < g.block_size()
        {
            storage::punch_or_zero(&*disk.leaf.file, home.start().get() + cut, g.block_size() - cut).on(Side::Parent)?;
            writer.mark_payload();
        }
    }
    writer.change_items(&[ItemChange::virtual_size(size)]).map_err(item_fault(Side::Parent))
}

/// Forgets what the parent holds behind `size`, which is shorter than the disk.
pub(super) fn clear_beyond(disk: &Disk, size: u64) -> Result<(), FoldError> {
    let writer = disk.writer().on(Side::Parent)?;
    let layer = &*disk.leaf;
    let g = &layer.geometry;
    // The rest of a block that the new end cuts must be zeros, should the disk ever grow.
    let block_end = size.next_multiple_of(g.block_size()).min(g.size());
    disk.write_zeroes(size, block_end - size).on(Side::Parent)?;
    writer.flush().on(Side::Parent)?;
    let kept = reshaped(disk, size);
    let (blocks, chunks) = (kept.blocks(), kept.chunks());
    let mut gone: Vec<(BatIndex, u64)> = Vec::new();
    layer
        .bat
        .walk(&*layer.file, u64::MAX, |index, word| -> Result<(), StorageError> {
            let is_beyond = match g.bat_role(index) {
                Some(BatRole::Payload(block)) => block.get() >= blocks,
                Some(BatRole::Bitmap(chunk)) => chunk.get() >= chunks,
                None => false,
            };
            if is_beyond {
                gone.push((index, word));
            }
            Ok(())
        })
        .on(Side::Parent)?;
    for (index, word) in gone {
        // Looked up first, so that the page is in memory.
        layer.bat.load(index, &*layer.file).on(Side::Parent)?;
        let _gate = writer.gate.read();
        debug_assert_eq!(PayloadState::NotPresent.encode(), BitmapState::NotPresent.encode());
        writer.publish(index, PayloadState::NotPresent.encode());
        match (g.bat_role(index), layer.placed(index, word).filter(|placed| !placed.is_anchor)) {
            (Some(BatRole::Payload(_)), Some(placed)) => writer.space.lock().release(placed.home, placed.mib),
            (Some(BatRole::Bitmap(chunk)), Some(placed)) => writer.give_up_bitmap(chunk, placed.home),
            (_, None) | (None, _) => {}
        }
    }
    writer.flush().on(Side::Parent)
}

//! The metadata region, item by item: one that is wrong does not hide the others.
//!
//! The parser stops at the first thing that is wrong. Here the item at fault is told about, a harmless stand-in takes its place *in
//! memory*, and the parser goes on. What decides where things are (block size, virtual size, logical sector size, the flags) has no
//! stand-in: without it the BAT cannot be read, and the examination of this file ends there.

use super::{Collector, Repair, Severity};
use crate::format::{
    FILE_PARAMETERS, Fault, FormatError, LOGICAL_SECTOR_SIZE, Metadata, MetadataEntry, MetadataItem, MetadataTable, PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE, ParentLocator, Region, TABLE_LEN, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use crate::guid::{DataWriteGuid, Guid};
use crate::kind::Structure;
use crate::storage::{self, Storage};
use crate::units::FileOffset;

/// Faults of one region that are told; a table has 2047 entries.
const MOST_FAULTS: usize = 100;

/// What the region says, with stand-ins where it says nonsense; a locator that says nonsense is left out. `None` when the BAT cannot be read without knowing more.
pub(crate) fn examine(file: &dyn Storage, region: Region, out: &mut Collector<'_>) -> Option<Metadata> {
    let mut bytes = vec![0; TABLE_LEN];
    if let Err(e) = storage::read_exact(file, &mut bytes, region.offset.get()) {
        out.error(Structure::MetadataTable, region.offset, Fault::Unreadable(e.source.to_string()));
        return None;
    }
    let table = match MetadataTable::parse(region, &bytes) {
        Ok(table) => table,
        Err(e) => {
            out.refuse(e);
            return None;
        }
    };
    let table_has_locator = table.entries.iter().any(|entry| entry.id == PARENT_LOCATOR && !entry.is_user);
    let mut items = Vec::with_capacity(table.entries.len());
    for entry in table.entries {
        let mut bytes = vec![0; entry.length as usize];
        let at = region.offset.get() + u64::from(entry.offset);
        match storage::read_exact(file, &mut bytes, at) {
            Ok(()) => items.push(MetadataItem { entry, bytes }),
            Err(e) => out.error(Structure::MetadataItem, FileOffset::new(at), Fault::Unreadable(e.source.to_string())),
        }
    }
    let metadata = judge(region, items, out)?;
    if let Some(locator) = &metadata.parent_locator
        && locator.paths().is_empty()
    {
        out.add(Severity::Warning, Repair::Not, Structure::ParentLocator, region.offset, Fault::NoPath);
    }
    if !metadata.has_parent && table_has_locator {
        out.add(Severity::Note, Repair::Not, Structure::ParentLocator, region.offset, Fault::NeedlessLocator);
    }
    Some(metadata)
}

fn judge(region: Region, mut items: Vec<MetadataItem>, out: &mut Collector<'_>) -> Option<Metadata> {
    let mut knows_parent = true;
    for _ in 0..MOST_FAULTS {
        let e = match Metadata::from_items(region, &items) {
            Ok(mut metadata) => {
                if !knows_parent {
                    metadata.parent_locator = None;
                }
                return Some(metadata);
            }
            Err(e) => e,
        };
        knows_parent &= e.structure != Structure::ParentLocator && e.fault != Fault::Missing("parent locator item");
        let can_go_on = stand_in(region, &mut items, &e);
        out.refuse(e);
        if !can_go_on {
            return None;
        }
    }
    None
}

/// Puts something harmless in place of what `e` is about; `false` where there is nothing harmless.
fn stand_in(region: Region, items: &mut Vec<MetadataItem>, e: &FormatError) -> bool {
    match &e.fault {
        Fault::UnknownRequired(id) => drop_item(items, *id),
        Fault::IncompleteFile => false,
        Fault::Missing(what) => {
            let id = match *what {
                "physical sector size item" => PHYSICAL_SECTOR_SIZE,
                "virtual disk id item" => VIRTUAL_DISK_ID,
                "parent locator item" => PARENT_LOCATOR,
                // A locator without its linkage.
                _ if e.structure == Structure::ParentLocator => PARENT_LOCATOR,
                _ => return false,
            };
            drop_item(items, id);
            items.push(harmless(id));
            true
        }
        _ => {
            let at = |item: &MetadataItem| region.offset.get() + u64::from(item.entry.offset);
            let Some(item) = items.iter_mut().find(|item| at(item) == e.at.get() && !item.entry.is_user) else { return false };
            let id = item.entry.id;
            if [FILE_PARAMETERS, VIRTUAL_DISK_SIZE, LOGICAL_SECTOR_SIZE].contains(&id) || item.entry.offset == 0 {
                return false;
            }
            *item = harmless(id);
            true
        }
    }
}

fn drop_item(items: &mut Vec<MetadataItem>, id: Guid) -> bool {
    let before = items.len();
    items.retain(|item| item.entry.id != id || item.entry.is_user);
    items.len() < before
}

fn harmless(id: Guid) -> MetadataItem {
    let bytes = match id {
        PHYSICAL_SECTOR_SIZE => 4096_u32.to_le_bytes().to_vec(),
        PARENT_LOCATOR => ParentLocator::new(DataWriteGuid::new(Guid::ZERO), &[("relative_path", ".")]).encode(),
        _ => vec![0; 16],
    };
    // Nowhere: it is in no table.
    let entry = MetadataEntry { id, offset: 0, length: 0, is_user: false, is_virtual_disk: false, is_required: true };
    MetadataItem { entry, bytes }
}

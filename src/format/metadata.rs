//! The metadata region: the sizes of the disk, its identity and its parent (MS-VHDX 2.6).
//!
//! ```text
//! region + 0         64 KiB table: 32 bytes header, then 32 bytes for each item
//! region + 64 KiB    items, at any alignment, not overlapping
//! ```
//!
//! Nothing here has a checksum, so everything is judged: [`MetadataTable::parse`] the shape of the table,
//! [`Metadata::from_items`] the content of the items. Items of unknown meaning are kept when they are optional and refuse the
//! file when they are required.

use std::collections::BTreeSet;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire::{len64, prefix, split};
use super::{Fault, FormatError, ParentLocator, Region, TABLE_LEN};
use crate::geometry::{Geometry, GeometryError};
use crate::guid::Guid;
use crate::kind::Structure;
use crate::units::FileOffset;

/// The item with block size and type of the disk (MS-VHDX 2.6.2.1).
pub const FILE_PARAMETERS: Guid = Guid::from_u128(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
/// The item with the virtual size (MS-VHDX 2.6.2.2).
pub const VIRTUAL_DISK_SIZE: Guid = Guid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
/// The item with the identity that a guest sees (MS-VHDX 2.6.2.3).
pub const VIRTUAL_DISK_ID: Guid = Guid::from_u128(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
/// The item with the logical sector size (MS-VHDX 2.6.2.4).
pub const LOGICAL_SECTOR_SIZE: Guid = Guid::from_u128(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
/// The item with the physical sector size (MS-VHDX 2.6.2.5).
pub const PHYSICAL_SECTOR_SIZE: Guid = Guid::from_u128(0xCDA348C7_445D_4471_9CC9_E9885251C556);
/// The item with the parent locator (MS-VHDX 2.6.2.6).
pub const PARENT_LOCATOR: Guid = Guid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
/// Cylinders, heads and sectors of a disk converted from VHD. Not in the specification; known so that it may be required.
const CHS_PARAMETERS: Guid = Guid::from_u128(0xDA02D7BC_3D3A_423C_AC88_2A36AB21479B);
/// Labels of persistent memory. Not in the specification; known so that it may be required.
const PMEM_LABELS: Guid = Guid::from_u128(0x10E1AE8A_4B7E_4169_A40F_CD70DE928393);
/// Marks a file whose creation or conversion is not finished.
const INCOMPLETE_FILE: Guid = Guid::from_u128(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);

const SIGNATURE: [u8; 8] = *b"metadata";
const MAX_ENTRIES: u16 = 2047;
const MAX_USER_ENTRIES: usize = 1024;
const MAX_ITEM_LEN: u32 = 1 << 20;
/// Items start behind the table.
const ITEMS_AT: u32 = 0x1_0000;
/// Bytes of items that are read, all together; Microsoft's own parser stops at as many for system items and for user items.
const MAX_ITEMS_LEN: u64 = 80 << 20;

const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeader {
    signature: [u8; 8],
    reserved: U16,
    entry_count: U16,
    reserved2: [u8; 20],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireEntry {
    id: [u8; 16],
    offset: U32,
    length: U32,
    flags: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireFileParameters {
    block_size: U32,
    flags: U32,
}

/// Where an item is and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataEntry {
    /// ItemId, unique together with `is_user`.
    pub id: Guid,
    /// From the start of the region; 0 for an empty item.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// Whether the item belongs to the user and not to the system.
    pub is_user: bool,
    /// Whether the item belongs to the virtual disk, so that children inherit it.
    pub is_virtual_disk: bool,
    /// Whether a reader that does not know the item must refuse the file.
    pub is_required: bool,
}

impl MetadataEntry {
    fn at(&self, region: Region) -> FileOffset {
        FileOffset::new(region.offset.get().saturating_add(self.offset.into()))
    }

    fn end(&self) -> u64 {
        u64::from(self.offset).saturating_add(self.length.into())
    }

    fn flags(&self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.is_user, IS_USER) | bit(self.is_virtual_disk, IS_VIRTUAL_DISK) | bit(self.is_required, IS_REQUIRED)
    }
}

/// The metadata table, judged as far as it can be without its items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataTable {
    /// All entries in the order of the table.
    pub entries: Vec<MetadataEntry>,
}

impl MetadataTable {
    /// Reads the first 65536 bytes of the metadata region.
    ///
    /// # Errors
    /// A wrong signature, too many entries, reserved flags, the same item twice, or items that are too long, overlap, or are
    /// not between the table and the end of the region.
    pub fn parse(region: Region, bytes: &[u8]) -> Result<Self, FormatError> {
        let err = |fault| FormatError::new(Structure::MetadataTable, region.offset, fault);
        let (table, _) = split(bytes, TABLE_LEN, Structure::MetadataTable, region.offset)?;
        let (header, mut left) = prefix::<WireHeader>(table, Structure::MetadataTable, region.offset)?;
        if header.signature != SIGNATURE {
            return Err(err(Fault::Signature));
        }
        let count = header.entry_count.get();
        if count > MAX_ENTRIES {
            return Err(err(Fault::Field { field: "EntryCount", value: count.into(), rule: "above 2047" }));
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            let (wire, next) = prefix::<WireEntry>(left, Structure::MetadataTable, region.offset)?;
            left = next;
            let flags = wire.flags.get();
            if flags & !(IS_USER | IS_VIRTUAL_DISK | IS_REQUIRED) != 0 {
                return Err(err(Fault::ReservedBits(flags.into())));
            }
            entries.push(MetadataEntry {
                id: Guid::from_bytes(wire.id),
                offset: wire.offset.get(),
                length: wire.length.get(),
                is_user: flags & IS_USER != 0,
                is_virtual_disk: flags & IS_VIRTUAL_DISK != 0,
                is_required: flags & IS_REQUIRED != 0,
            });
        }
        check_entries(region, entries.iter()).map_err(err)?;
        Ok(Self { entries })
    }

    /// The 65536 bytes of the table.
    ///
    /// # Panics
    /// With more than 2047 entries, which no table holds.
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.entries.len()).ok().filter(|&n| n <= MAX_ENTRIES).expect("a table holds 2047 items");
        let header = WireHeader { signature: SIGNATURE, reserved: U16::ZERO, entry_count: count.into(), reserved2: [0; 20] };
        let mut bytes = header.as_bytes().to_vec();
        for entry in &self.entries {
            let wire = WireEntry {
                id: entry.id.to_bytes(),
                offset: entry.offset.into(),
                length: entry.length.into(),
                flags: entry.flags().into(),
                reserved: U32::ZERO,
            };
            bytes.extend_from_slice(wire.as_bytes());
        }
        bytes.resize(TABLE_LEN, 0);
        bytes
    }
}

/// Judges the entries among themselves (MS-VHDX 2.6.1.2).
fn check_entries<'a>(region: Region, entries: impl Iterator<Item = &'a MetadataEntry>) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    let mut placed = Vec::new();
    let (mut users, mut total) = (0_usize, 0_u64);
    for entry in entries {
        let offset_fault = |rule| Err(Fault::Field { field: "Offset", value: entry.offset.into(), rule });
        if !seen.insert((entry.id, entry.is_user)) {
            return Err(Fault::Duplicate(entry.id));
        }
        if entry.length > MAX_ITEM_LEN {
            return Err(Fault::Field { field: "Length", value: entry.length.into(), rule: "above 1 MiB" });
        }
        if entry.length == 0 && entry.offset != 0 {
            return offset_fault("but the item is empty");
        }
        if entry.length != 0 {
            if entry.offset < ITEMS_AT {
                return offset_fault("inside the metadata table");
            }
            if entry.end() > region.length.into() {
                return offset_fault("so that the item ends behind the region");
            }
            placed.push(entry);
        }
        users = users.saturating_add(usize::from(entry.is_user));
        total = total.saturating_add(entry.length.into());
    }
    if users > MAX_USER_ENTRIES {
        return Err(Fault::Field { field: "EntryCount", value: len64(users), rule: "above 1024 user items" });
    }
    if total > MAX_ITEMS_LEN {
        return Err(Fault::Field { field: "Length", value: total, rule: "above 80 MiB over all items, the most that is read" });
    }
    placed.sort_unstable_by_key(|entry| entry.offset);
    for (a, b) in placed.iter().zip(placed.iter().skip(1)) {
        if a.end() > b.offset.into() {
            return Err(Fault::Collision { one: (a.id, a.offset.into()), other: (b.id, b.offset.into()) });
        }
    }
    Ok(())
}

/// An item: its entry and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataItem {
    /// The entry in the table.
    pub entry: MetadataEntry,
    /// The content.
    pub bytes: Vec<u8>,
}

/// What the metadata of a file says, with sizes that make a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// BlockSize.
    pub block_size: u32,
    /// LeaveBlocksAllocated: the mark of a fixed disk. Means nothing when `has_parent`.
    pub leave_blocks_allocated: bool,
    /// HasParent: the mark of a differencing disk.
    pub has_parent: bool,
    /// VirtualDiskSize in bytes.
    pub virtual_size: u64,
    /// VirtualDiskId, equal in parent and children.
    pub disk_id: Guid,
    /// LogicalSectorSize.
    pub logical_sector: u32,
    /// PhysicalSectorSize.
    pub physical_sector: u32,
    /// The parent locator; there exactly when `has_parent`.
    pub parent_locator: Option<ParentLocator>,
    /// Everything else, kept as it is: items of the user, and optional items of the system that mean nothing to this crate.
    pub others: Vec<MetadataItem>,
}

impl Metadata {
    /// Judges all items of a region. A parent locator in a file that has no parent is ignored.
    ///
    /// # Errors
    /// `IncompleteFile`; an item that is required and unknown, there twice, missing, or of a wrong length; sizes outside of
    /// their ranges; a locator that cannot be read.
    pub fn from_items(region: Region, items: &[MetadataItem]) -> Result<Self, FormatError> {
        let table_err = |fault| FormatError::new(Structure::MetadataTable, region.offset, fault);
        check_entries(region, items.iter().map(|item| &item.entry)).map_err(table_err)?;
        if items.iter().any(|item| item.entry.id == INCOMPLETE_FILE && !item.entry.is_user) {
            return Err(table_err(Fault::IncompleteFile));
        }
        let mut others = Vec::new();
        for item in items {
            match role(&item.entry) {
                Role::Understood => {}
                Role::Kept => others.push(item.clone()),
                Role::Refused => return Err(table_err(Fault::UnknownRequired(item.entry.id))),
            }
        }
        let system = System { region, items };
        let (parameters, at) = system.exact::<WireFileParameters>(FILE_PARAMETERS, "file parameters item")?;
        let flags = parameters.flags.get();
        if flags & !(LEAVE_BLOCKS_ALLOCATED | HAS_PARENT) != 0 {
            return Err(FormatError::new(Structure::MetadataItem, at, Fault::ReservedBits(flags.into())));
        }
        let (virtual_size, size_at) = system.exact::<U64>(VIRTUAL_DISK_SIZE, "virtual disk size item")?;
        let (logical_sector, logical_at) = system.exact::<U32>(LOGICAL_SECTOR_SIZE, "logical sector size item")?;
        Geometry::new(virtual_size.get(), parameters.block_size.get().into(), logical_sector.get()).map_err(|fault| {
            let at = match fault {
                GeometryError::BlockSize(_) => at,
                GeometryError::LogicalSectorSize(_) => logical_at,
                GeometryError::VirtualSize { .. } => size_at,
            };
            FormatError::new(Structure::MetadataItem, at, Fault::Geometry(fault))
        })?;
        let (physical_sector, physical_at) = system.exact::<U32>(PHYSICAL_SECTOR_SIZE, "physical sector size item")?;
        let physical_sector = physical_sector.get();
        if !matches!(physical_sector, 512 | 4096) {
            let fault = Fault::Field { field: "PhysicalSectorSize", value: physical_sector.into(), rule: "neither 512 nor 4096" };
            return Err(FormatError::new(Structure::MetadataItem, physical_at, fault));
        }
        let (disk_id, _) = system.exact::<[u8; 16]>(VIRTUAL_DISK_ID, "virtual disk id item")?;
        let has_parent = flags & HAS_PARENT != 0;
        let parent_locator = if has_parent {
            let item = system.find(PARENT_LOCATOR, "parent locator item")?;
            Some(ParentLocator::parse(item.entry.at(region), &item.bytes)?)
        } else {
            None
        };
        Ok(Self {
            block_size: parameters.block_size.get(),
            leave_blocks_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0,
            has_parent,
            virtual_size: virtual_size.get(),
            disk_id: Guid::from_bytes(*disk_id),
            logical_sector: logical_sector.get(),
            physical_sector,
            parent_locator,
            others,
        })
    }

    /// The shape of the disk.
    ///
    /// # Panics
    /// When the fields were set by hand to sizes that make no disk; `from_items` refuses those.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.virtual_size, self.block_size.into(), self.logical_sector).expect("the sizes were checked")
    }

    /// The bytes of the File Parameters item (MS-VHDX 2.6.2.1).
    pub fn encode_file_parameters(&self) -> [u8; 8] {
        let flags = (if self.leave_blocks_allocated { LEAVE_BLOCKS_ALLOCATED } else { 0 }) | (if self.has_parent { HAS_PARENT } else { 0 });
        let mut bytes = [0; 8];
        let wire = WireFileParameters { block_size: self.block_size.into(), flags: flags.into() };
        bytes.copy_from_slice(wire.as_bytes());
        bytes
    }

    /// The region of a new file, from the table to the end of the last item: the items in the order of Windows, without gaps,
    /// then the others.
    ///
    /// # Panics
    /// With more items than a table holds.
    pub fn encode_region(&self) -> Vec<u8> {
        let mut region = Builder::default();
        region.system(FILE_PARAMETERS, false, &self.encode_file_parameters());
        region.system(VIRTUAL_DISK_SIZE, true, &self.virtual_size.to_le_bytes());
        region.system(LOGICAL_SECTOR_SIZE, true, &self.logical_sector.to_le_bytes());
        region.system(PHYSICAL_SECTOR_SIZE, true, &self.physical_sector.to_le_bytes());
        region.system(VIRTUAL_DISK_ID, true, &self.disk_id.to_bytes());
        if let Some(locator) = &self.parent_locator {
            region.system(PARENT_LOCATOR, false, &locator.encode());
        }
        for item in &self.others {
            region.push(item.entry.clone(), &item.bytes);
        }
        let mut bytes = MetadataTable { entries: region.entries }.encode();
        bytes.append(&mut region.items);
        bytes
    }
}

/// What becomes of an item.
enum Role {
    Understood,
    Kept,
    Refused,
}

fn role(entry: &MetadataEntry) -> Role {
    if !entry.is_user {
        match entry.id {
            FILE_PARAMETERS | VIRTUAL_DISK_SIZE | VIRTUAL_DISK_ID | LOGICAL_SECTOR_SIZE | PHYSICAL_SECTOR_SIZE | PARENT_LOCATOR => {
                return Role::Understood;
            }
            CHS_PARAMETERS | PMEM_LABELS => return Role::Kept,
            _ => {}
        }
    }
    if entry.is_required { Role::Refused } else { Role::Kept }
}

/// The system items of a region.
struct System<'a> {
    region: Region,
    items: &'a [MetadataItem],
}

impl<'a> System<'a> {
    fn find(&self, id: Guid, name: &'static str) -> Result<&'a MetadataItem, FormatError> {
        let found = self.items.iter().find(|item| item.entry.id == id && !item.entry.is_user);
        found.ok_or_else(|| FormatError::new(Structure::MetadataTable, self.region.offset, Fault::Missing(name)))
    }

    /// The item as the wire structure that it must exactly be, and where it stands.
    fn exact<W>(&self, id: Guid, name: &'static str) -> Result<(&'a W, FileOffset), FormatError>
    where
        W: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let item = self.find(id, name)?;
        let at = item.entry.at(self.region);
        let wire = W::ref_from_bytes(&item.bytes).map_err(|_| {
            let fault = Fault::Field { field: "Length", value: len64(item.bytes.len()), rule: "not the length of this item" };
            FormatError::new(Structure::MetadataItem, at, fault)
        })?;
        Ok((wire, at))
    }
}

#[derive(Default)]
struct Builder {
    entries: Vec<MetadataEntry>,
    items: Vec<u8>,
}

impl Builder {
    fn system(&mut self, id: Guid, is_virtual_disk: bool, bytes: &[u8]) {
        self.push(MetadataEntry { id, offset: 0, length: 0, is_user: false, is_virtual_disk, is_required: true }, bytes);
    }

    fn push(&mut self, entry: MetadataEntry, bytes: &[u8]) {
        let place = |at: usize| u32::try_from(at).ok().and_then(|at| at.checked_add(ITEMS_AT)).expect("items fit into a region");
        let offset = if bytes.is_empty() { 0 } else { place(self.items.len()) };
        let length = u32::try_from(bytes.len()).expect("an item has at most 1 MiB");
        self.items.extend_from_slice(bytes);
        self.entries.push(MetadataEntry { offset, length, ..entry });
    }
}

#[cfg(test)]
#[path = "metadata_tests.rs"]
mod tests;

//! Bytes to values and back: every structure of a VHDX file, without I/O, locks, clocks or randomness.
//!
//! ```text
//! file offset   size       content
//! 0x0_0000      64 KiB     file type identifier, never rewritten
//! 0x1_0000      64 KiB     header 1 (4 KiB used)   \ two slots, the higher sequence number wins,
//! 0x2_0000      64 KiB     header 2 (4 KiB used)   / the other one is overwritten next
//! 0x3_0000      64 KiB     region table 1          \ equal, changed only through the log
//! 0x4_0000      64 KiB     region table 2          /
//! 0x5_0000      704 KiB    reserved
//! 0x10_0000                everything else in units of 1 MiB, in any order, nothing overlapping:
//!                          log, metadata region, BAT region, payload blocks, sector bitmap blocks
//! ```
//!
//! What this crate creates: log at 1 MiB, metadata region behind it, BAT region behind that, then data (MS-VHDX 2.1 leaves the
//! order free; this is what Windows writes).
//!
//! Parsing takes slices and returns checked values or a [`FormatError`] that names the structure, the offset in the file and
//! the fault. Nothing here allocates more than the bytes it was given justify.

// File data is untrusted: no index, conversion or sum here may panic or wrap. Tests build their own data and index freely.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions, clippy::unwrap_used))]

mod bat;
mod bitmap;
mod checksum;
mod error;
mod header;
mod identifier;
mod locator;
mod log;
mod metadata;
mod neighbour;
mod region;
mod scan;
mod wire;

pub use bat::{BitmapState, PayloadState};
pub use bitmap::{Run, runs, set_range};
pub use checksum::{crc32c, crc32c_with_field_zeroed};
pub use error::{Fault, FormatError};
pub use header::{CurrentHeader, FORMAT_VERSION, Header, HeaderSlot, LOG_VERSION, MAX_LOG_LENGTH, choose_header};
pub use identifier::{encode_identifier, parse_identifier};
pub use locator::{ParentLocator, VHDX_LOCATOR};
pub use log::{Descriptor, EntryFields, EntryHeader, LoggedPage, encode_entry, entry_len};
pub use metadata::{
    FILE_PARAMETERS, LOGICAL_SECTOR_SIZE, Metadata, MetadataEntry, MetadataItem, MetadataTable, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE,
    VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
pub use neighbour::Neighbour;
pub use region::{BAT_REGION, METADATA_REGION, Region, RegionTable};
pub use scan::{ActiveSequence, LogDiagnosis, LogRing, MAX_FILE_LEN, Replay, diagnose, scan};

use crate::units::FileOffset;

/// Bytes of the header section: identifier, headers and region tables (MS-VHDX 2.2).
pub const HEADER_SECTION: u64 = 1 << 20;
/// Where the two region tables stand (MS-VHDX 2.2).
pub const REGION_TABLES: [FileOffset; 2] = [FileOffset::new(0x3_0000), FileOffset::new(0x4_0000)];
/// Bytes of a region table and of the metadata table (MS-VHDX 2.2.3, 2.6.1).
pub const TABLE_LEN: usize = 64 << 10;

//! The vocabulary of failure: what sort of thing went wrong, and which structure of the file it happened in.

use std::fmt;

/// What sort of thing went wrong, coarse enough to act on. Every error of this crate maps to one of these through `kind()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, parent, image or clone is not there.
    NotFound,
    /// The operating system or the parent policy refuses access.
    Denied,
    /// The name is taken.
    AlreadyExists,
    /// Somebody else holds a lock that excludes this use.
    InUse,
    /// The file contradicts MS-VHDX, or a chain does not fit together.
    Damaged,
    /// The file is sound but needs something this implementation does not know.
    Unsupported,
    /// The caller asked for something outside the rules (range, option, read-only disk).
    InvalidInput,
    /// No space, quota or file-size limit left.
    NoSpace,
    /// The disk is latched after a failed sync, or the storage does not answer.
    Unavailable,
    /// The caller cancelled.
    Cancelled,
    /// Anything else the operating system reports.
    Io,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Denied => "denied",
            Self::AlreadyExists => "already exists",
            Self::InUse => "in use",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::InvalidInput => "invalid input",
            Self::NoSpace => "no space",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Io => "input/output error",
        })
    }
}

/// The structures of a VHDX file, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The file as a whole.
    File,
    /// The file type identifier (MS-VHDX 2.2.1).
    FileIdentifier,
    /// One of the two headers (MS-VHDX 2.2.2).
    Header,
    /// One of the two region tables (MS-VHDX 2.2.3).
    RegionTable,
    /// The log as a whole (MS-VHDX 2.3).
    Log,
    /// One log entry (MS-VHDX 2.3.1).
    LogEntry,
    /// The block allocation table as a whole (MS-VHDX 2.5).
    Bat,
    /// One entry of the block allocation table (MS-VHDX 2.5.1).
    BatEntry,
    /// A sector bitmap block (MS-VHDX 2.4).
    SectorBitmap,
    /// A payload block (MS-VHDX 2.5).
    PayloadBlock,
    /// The metadata region's table (MS-VHDX 2.6.1).
    MetadataTable,
    /// One metadata item (MS-VHDX 2.6.2).
    MetadataItem,
    /// The parent locator item (MS-VHDX 2.6.2.6).
    ParentLocator,
}

impl Structure {
    /// The name with underscores, as `--json` prints it.
    pub fn key(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::FileIdentifier => "file_identifier",
            Self::Header => "header",
            Self::RegionTable => "region_table",
            Self::Log => "log",
            Self::LogEntry => "log_entry",
            Self::Bat => "bat",
            Self::BatEntry => "bat_entry",
            Self::SectorBitmap => "sector_bitmap",
            Self::PayloadBlock => "payload_block",
            Self::MetadataTable => "metadata_table",
            Self::MetadataItem => "metadata_item",
            Self::ParentLocator => "parent_locator",
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::FileIdentifier => "file type identifier",
            Self::Header => "header",
            Self::RegionTable => "region table",
            Self::Log => "log",
            Self::LogEntry => "log entry",
            Self::Bat => "BAT",
            Self::BatEntry => "BAT entry",
            Self::SectorBitmap => "sector bitmap block",
            Self::PayloadBlock => "payload block",
            Self::MetadataTable => "metadata table",
            Self::MetadataItem => "metadata item",
            Self::ParentLocator => "parent locator",
        })
    }
}

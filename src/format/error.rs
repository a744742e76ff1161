//! What a file can lie about, each lie with its name.

use crate::geometry::GeometryError;
use crate::guid::Guid;
use crate::kind::{ErrorKind, Structure};
use crate::units::FileOffset;

/// A structure of the file contradicts MS-VHDX: which, where, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} at {at}: {fault}")]
pub struct FormatError {
    /// The structure.
    pub structure: Structure,
    /// Where in the file it starts.
    pub at: FileOffset,
    /// What is wrong with it.
    pub fault: Fault,
}

impl FormatError {
    /// Puts the three together.
    pub fn new(structure: Structure, at: FileOffset, fault: Fault) -> Self {
        Self { structure, at, fault }
    }

    /// `Unsupported` for sound files that need something unknown, `Damaged` for the rest.
    pub fn kind(&self) -> ErrorKind {
        match self.fault {
            Fault::UnknownRequired(_) | Fault::Version { .. } | Fault::LogVersion(_) | Fault::LocatorType(_) | Fault::IncompleteFile => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Damaged,
        }
    }
}

/// What is wrong with a structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The signature is not the structure's.
    #[error("the signature is wrong")]
    Signature,
    /// The stored CRC-32C is not that of the bytes.
    #[error("the checksum is {stored:#010x} but the bytes give {computed:#010x}")]
    Checksum {
        /// In the file.
        stored: u32,
        /// From the bytes.
        computed: u32,
    },
    /// The file or the enclosing structure ends first.
    #[error("{needed} bytes are needed but only {available} are there")]
    Truncated {
        /// Bytes that must be there.
        needed: u64,
        /// Bytes that are.
        available: u64,
    },
    /// The format version is not 1.
    #[error("version {found} is not {expected}")]
    Version {
        /// In the file.
        found: u16,
        /// The only one known.
        expected: u16,
    },
    /// A log of unknown version must be replayed.
    #[error("log version {0} is unknown and the log is not empty")]
    LogVersion(u16),
    /// Neither header is valid.
    #[error("neither header is valid (header 1: {0}; header 2: {1})")]
    NoValidHeader(Box<Fault>, Box<Fault>),
    /// Both headers are valid, have one sequence number and differ.
    #[error("both headers have sequence number {0} but differ")]
    AmbiguousHeaders(u64),
    /// A sequence number cannot grow any more.
    #[error("the sequence number {0} leaves no room for another")]
    SequenceExhausted(u64),
    /// A field has a value outside its range.
    #[error("{field} is {value:#x}, {rule}")]
    Field {
        /// The field's name in MS-VHDX.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// Two things that must not share bytes do.
    #[error("it overlaps the {0}")]
    Overlap(Structure),
    /// Two regions or metadata items that must not share bytes do.
    #[error("{0} and {1} overlap")]
    Collision(Guid, Guid),
    /// It lies outside of the file.
    #[error("it ends at {end:#x} but the file ends at {len:#x}")]
    BeyondFile {
        /// Where it ends.
        end: u64,
        /// The length of the file.
        len: u64,
    },
    /// A GUID or key that must be unique occurs twice.
    #[error("{0} occurs twice")]
    Duplicate(Guid),
    /// A region or item that must be understood is not.
    #[error("{0} is required but unknown")]
    UnknownRequired(Guid),
    /// A region or item that every file has is missing.
    #[error("the {0} is missing")]
    Missing(&'static str),
    /// Whoever created or converted the file did not finish.
    #[error("the file is marked as incomplete: its creation or conversion was not finished")]
    IncompleteFile,
    /// The sizes do not make a disk.
    #[error("{0}")]
    Geometry(#[from] GeometryError),
    /// The log is not empty and holds no valid sequence.
    #[error("the log is not empty but holds no valid sequence of entries")]
    NoActiveSequence,
    /// The file is shorter than the log says it was.
    #[error("the file was truncated: the log knows {flushed} durable bytes but {len} are there")]
    FileTruncated {
        /// FlushedFileOffset of the newest entry.
        flushed: u64,
        /// The length of the file.
        len: u64,
    },
    /// A state value that is reserved, or not allowed for this type of disk.
    #[error("state {0} is not allowed here")]
    State(u8),
    /// Reserved bits are set.
    #[error("reserved bits are set ({0:#x})")]
    ReservedBits(u64),
    /// A partially present block without a sector bitmap.
    #[error("the block is partially present but its chunk has no sector bitmap block")]
    NoSectorBitmap,
    /// The parent locator is of another kind.
    #[error("parent locator type {0} is unknown")]
    LocatorType(Guid),
    /// A parent locator string is not text, or breaks a rule.
    #[error("{0}")]
    Text(&'static str),
    /// A parent locator key occurs twice.
    #[error("the key \"{0}\" occurs twice")]
    DuplicateKey(String),
    /// What an examination of the whole table found.
    #[error("{0}")]
    Found(String),
}

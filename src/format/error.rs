//! What a file can lie about, each lie with its name.

use super::neighbour::Neighbour;
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
    #[error("what starts at {start:#x} overlaps {other}")]
    Overlap {
        /// Where the one that the finding is about starts.
        start: u64,
        /// The other one.
        other: Neighbour,
    },
    /// Two regions or metadata items that must not share bytes do.
    #[error("{} at {:#x} and {} at {:#x} overlap", one.0, one.1, other.0, other.1)]
    Collision {
        /// The first, and where it starts: in the file a region, in the metadata region an item.
        one: (Guid, u64),
        /// The second, which starts inside of the first.
        other: (Guid, u64),
    },
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
    /// The storage does not give the bytes.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// The header that is not current says something else where both should agree (MS-VHDX 2.2.2.1).
    #[error("the spare header has another {0} than the current one")]
    SpareDiffers(&'static str),
    /// Both region tables are whole and name different regions.
    #[error("the two copies differ; the first one counts")]
    CopiesDiffer,
    /// The log holds changes that are not at their place yet.
    #[error("the log is not empty: {entries} entries wait to be replayed")]
    LogNotEmpty {
        /// Entries of the active sequence.
        entries: u64,
    },
    /// The header names a log of length 0, so nothing can be changed safely.
    #[error("the file has no log, so it can only be read")]
    NoLog,
    /// An entry of the BAT behind the last block is not zero.
    #[error("the entry is behind the last block and holds {value:#x}")]
    BehindLastBlock {
        /// The entry.
        value: u64,
    },
    /// A block that has no place names one.
    #[error("the block has no place but its entry names one, {mib} MiB")]
    NeedlessPlace {
        /// FileOffsetMB.
        mib: u64,
    },
    /// A sector bitmap entry of a file without a parent is not zero.
    #[error("a sector bitmap entry, {value:#x}, in a file without a parent")]
    NeedlessBitmap {
        /// The entry.
        value: u64,
    },
    /// A parent locator in a file without a parent.
    #[error("a parent locator in a file without a parent; it is ignored")]
    NeedlessLocator,
    /// A block lies where another one lies.
    #[error("it lies at {mib} MiB, over {}", whose(other))]
    SharedPlace {
        /// Where it starts.
        mib: u64,
        /// What lies there, too; `None` where nobody looked for it, as when a first write looks for free space.
        other: Option<Neighbour>,
    },
    /// An unmapped or undefined block keeps a place that is another's, or none.
    #[error("it keeps a place that is not its own, {mib} MiB{}", of_whom(other))]
    StrayAnchor {
        /// Where it starts.
        mib: u64,
        /// Whose place it is, where it is somebody's.
        other: Option<Neighbour>,
    },
    /// A block starts inside the file and ends behind it.
    #[error("the block is cut: it ends at {end:#x} and the file at {len:#x}; the rest reads as zeros")]
    CutByEnd {
        /// Where the block ends.
        end: u64,
        /// The length of the file.
        len: u64,
    },
    /// Space in the middle of the file belongs to nothing.
    #[error("{mib} MiB in the middle of the file belong to nothing; writing to the disk or compacting it reuses them")]
    Leaked {
        /// How much.
        mib: u64,
    },
    /// Space at the end of the file belongs to nothing.
    #[error("the last {mib} MiB of the file belong to nothing")]
    LeakedTail {
        /// How much.
        mib: u64,
    },
    /// The file is not a whole number of MiB long.
    #[error("the length, {len} bytes, is no multiple of 1 MiB")]
    OddLength {
        /// The length.
        len: u64,
    },
    /// The parent has another identity than the child asks for.
    #[error("the parent has changed or is another disk: data write GUID {expected} is wanted, {found} was found")]
    Linkage {
        /// What the child's locator asks for.
        expected: Guid,
        /// What the parent has.
        found: Guid,
    },
    /// The child's linkage or the parent's identity is zero, so nothing proves that the two belong together.
    #[error("the linkage is zero, so nothing proves which file is the parent")]
    ZeroLinkage,
    /// The locator has none of the three path keys (MS-VHDX 2.6.2.6.3).
    #[error("the parent locator names no path")]
    NoPath,
    /// The chain comes back to a file that is already in it.
    #[error("the chain comes back to layer {0}")]
    Cycle(usize),
    /// The chain is longer than is followed.
    #[error("the chain has more than {0} layers")]
    TooDeep(usize),
    /// Logical sector sizes must be equal along a chain (MS-VHDX 2.6.2.4).
    #[error("logical sectors of {child} bytes over a parent with {parent} bytes")]
    SectorSizes {
        /// The child's.
        child: u32,
        /// The parent's.
        parent: u32,
    },
    /// A parent has another virtual size than its child, which is allowed.
    #[error("the disk has {child} bytes and its parent {parent}; behind the shorter one's end nothing of the parent shows")]
    SizesDiffer {
        /// The child's.
        child: u64,
        /// The parent's.
        parent: u64,
    },
}

impl Fault {
    /// The name with underscores, as `--json` prints it. Names are only added, never changed.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Checksum { .. } => "checksum",
            Self::Truncated { .. } => "truncated",
            Self::Version { .. } => "version",
            Self::LogVersion(_) => "log_version",
            Self::NoValidHeader(..) => "no_valid_header",
            Self::AmbiguousHeaders(_) => "ambiguous_headers",
            Self::SequenceExhausted(_) => "sequence_exhausted",
            Self::Field { .. } => "field",
            Self::Overlap { .. } => "overlap",
            Self::Collision { .. } => "collision",
            Self::BeyondFile { .. } => "beyond_file",
            Self::Duplicate(_) => "duplicate",
            Self::UnknownRequired(_) => "unknown_required",
            Self::Missing(_) => "missing",
            Self::IncompleteFile => "incomplete_file",
            Self::Geometry(_) => "geometry",
            Self::NoActiveSequence => "no_active_sequence",
            Self::FileTruncated { .. } => "file_truncated",
            Self::State(_) => "state",
            Self::ReservedBits(_) => "reserved_bits",
            Self::NoSectorBitmap => "no_sector_bitmap",
            Self::LocatorType(_) => "locator_type",
            Self::Text(_) => "text",
            Self::DuplicateKey(_) => "duplicate_key",
            Self::Unreadable(_) => "unreadable",
            Self::SpareDiffers(_) => "spare_differs",
            Self::CopiesDiffer => "copies_differ",
            Self::LogNotEmpty { .. } => "log_not_empty",
            Self::NoLog => "no_log",
            Self::BehindLastBlock { .. } => "behind_last_block",
            Self::NeedlessPlace { .. } => "needless_place",
            Self::NeedlessBitmap { .. } => "needless_bitmap",
            Self::NeedlessLocator => "needless_locator",
            Self::SharedPlace { .. } => "shared_place",
            Self::StrayAnchor { .. } => "stray_anchor",
            Self::CutByEnd { .. } => "cut_by_end",
            Self::Leaked { .. } => "leaked",
            Self::LeakedTail { .. } => "leaked_tail",
            Self::OddLength { .. } => "odd_length",
            Self::Linkage { .. } => "linkage",
            Self::ZeroLinkage => "zero_linkage",
            Self::NoPath => "no_path",
            Self::Cycle(_) => "cycle",
            Self::TooDeep(_) => "too_deep",
            Self::SectorSizes { .. } => "sector_sizes",
            Self::SizesDiffer { .. } => "sizes_differ",
        }
    }

    /// The numbers in it, each with its name: what was stored, what was computed, where something ends.
    pub fn numbers(&self) -> Vec<(&'static str, u64)> {
        match *self {
            Self::Checksum { stored, computed } => vec![("stored", stored.into()), ("computed", computed.into())],
            Self::Truncated { needed, available } => vec![("needed", needed), ("available", available)],
            Self::Version { found, expected } => vec![("found", found.into()), ("expected", expected.into())],
            Self::LogVersion(found) => vec![("found", found.into())],
            Self::AmbiguousHeaders(sequence) | Self::SequenceExhausted(sequence) => vec![("sequence", sequence)],
            Self::Field { value, .. } | Self::BehindLastBlock { value } | Self::NeedlessBitmap { value } => vec![("value", value)],
            Self::BeyondFile { end, len } | Self::CutByEnd { end, len } => vec![("end", end), ("length", len)],
            Self::FileTruncated { flushed, len } => vec![("flushed", flushed), ("length", len)],
            Self::State(state) => vec![("state", state.into())],
            Self::ReservedBits(bits) => vec![("bits", bits)],
            Self::LogNotEmpty { entries } => vec![("entries", entries)],
            Self::NeedlessPlace { mib } | Self::SharedPlace { mib, .. } | Self::StrayAnchor { mib, .. } => vec![("mib", mib)],
            Self::Overlap { start, .. } => vec![("start", start)],
            Self::Collision { one: (_, start), other: (_, other) } => vec![("start", start), ("other_start", other)],
            Self::Leaked { mib } | Self::LeakedTail { mib } => vec![("mib", mib)],
            Self::OddLength { len } => vec![("length", len)],
            Self::SectorSizes { child, parent } => vec![("child", child.into()), ("parent", parent.into())],
            Self::SizesDiffer { child, parent } => vec![("child", child), ("parent", parent)],
            _ => Vec::new(),
        }
    }

    /// What claims the same bytes, where that is known.
    pub fn other(&self) -> Option<Neighbour> {
        match *self {
            Self::Overlap { other, .. } => Some(other),
            Self::SharedPlace { other, .. } | Self::StrayAnchor { other, .. } => other,
            _ => None,
        }
    }
}

fn whose(other: &Option<Neighbour>) -> String {
    other.map_or_else(|| "another block".to_owned(), |other| other.to_string())
}

fn of_whom(other: &Option<Neighbour>) -> String {
    other.map_or_else(String::new, |other| format!(": there lies {other}"))
}

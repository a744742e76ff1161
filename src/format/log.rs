//! Log entries: atomic sets of page images and zero ranges (MS-VHDX 2.3.1).
//!
//! ```text
//! sector 0            header (64 bytes), then the first 126 descriptors of 32 bytes
//! sectors 1 .. D      128 descriptors each
//! D data sectors on   one for each data descriptor, in order
//! ```
//!
//! A data sector gives its first 8 and last 4 bytes to a signature and the halves of the sequence number, which catch torn
//! writes; what stood there travels in the descriptor. Finding the entries that count in a ring is the business of
//! [`scan`](super::scan()).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c_with_field_zeroed;
use crate::guid::{Guid, LogGuid};
use crate::units::{FileOffset, PAGE_LEN};

pub(super) const ENTRY_SIGNATURE: [u8; 4] = *b"loge";
pub(super) const DATA_DESCRIPTOR: [u8; 4] = *b"desc";
pub(super) const ZERO_DESCRIPTOR: [u8; 4] = *b"zero";
const DATA_SECTOR: [u8; 4] = *b"data";
pub(super) const CHECKSUM_AT: usize = 4;
/// Bytes of an entry header.
const HEADER_LEN: usize = 64;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: usize = 32;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireHeader {
    pub(super) signature: [u8; 4],
    pub(super) checksum: U32,
    pub(super) entry_length: U32,
    pub(super) tail: U32,
    pub(super) sequence: U64,
    pub(super) descriptor_count: U32,
    pub(super) reserved: U32,
    pub(super) log_guid: [u8; 16],
    pub(super) flushed_file_offset: U64,
    pub(super) last_file_offset: U64,
}

/// Both kinds of descriptors: `word` and `long` mean trailing and leading bytes, or nothing and the length of the zeros.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireDescriptor {
    pub(super) signature: [u8; 4],
    pub(super) word: [u8; 4],
    pub(super) long: [u8; 8],
    pub(super) file_offset: U64,
    pub(super) sequence: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireDataSector {
    signature: [u8; 4],
    sequence_high: [u8; 4],
    data: [u8; 4084],
    sequence_low: [u8; 4],
}

/// The header of a log entry (MS-VHDX 2.3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// EntryLength in bytes.
    pub length: u32,
    /// Tail: where in the log the oldest entry starts that must be replayed when this one is the newest.
    pub tail: u32,
    /// SequenceNumber.
    pub sequence: u64,
    /// DescriptorCount.
    pub descriptor_count: u32,
    /// LogGuid.
    pub log_guid: LogGuid,
    /// FlushedFileOffset: a length that the file was known to have durably.
    pub flushed_file_offset: u64,
    /// LastFileOffset: a length that everything allocated fits into.
    pub last_file_offset: u64,
}

impl EntryHeader {
    pub(super) fn from_wire(wire: &WireHeader) -> Self {
        Self {
            length: wire.entry_length.get(),
            tail: wire.tail.get(),
            sequence: wire.sequence.get(),
            descriptor_count: wire.descriptor_count.get(),
            log_guid: LogGuid::new(Guid::from_bytes(wire.log_guid)),
            flushed_file_offset: wire.flushed_file_offset.get(),
            last_file_offset: wire.last_file_offset.get(),
        }
    }
}

/// A descriptor (MS-VHDX 2.3.1.2, 2.3.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// A page to be rewritten; its middle is in a data sector.
    Data {
        /// Where the page belongs.
        home: FileOffset,
        /// The first bytes of the page.
        leading: [u8; 8],
        /// The last bytes of the page.
        trailing: [u8; 4],
    },
    /// A range to be filled with zeros.
    Zero {
        /// Where it starts.
        home: FileOffset,
        /// Bytes.
        length: u64,
    },
}

impl Descriptor {
    /// `None` for unknown signatures and descriptors of another entry.
    pub(super) fn from_wire(wire: &WireDescriptor, sequence: u64) -> Option<Self> {
        if wire.sequence.get() != sequence {
            return None;
        }
        let home = FileOffset::new(wire.file_offset.get());
        match wire.signature {
            DATA_DESCRIPTOR => Some(Self::Data { home, leading: wire.long, trailing: wire.word }),
            ZERO_DESCRIPTOR => Some(Self::Zero { home, length: u64::from_le_bytes(wire.long) }),
            _ => None,
        }
    }

    fn to_wire(self, sequence: u64) -> WireDescriptor {
        let (signature, word, long, home) = match self {
            Self::Data { home, leading, trailing } => (DATA_DESCRIPTOR, trailing, leading, home),
            Self::Zero { home, length } => (ZERO_DESCRIPTOR, [0; 4], length.to_le_bytes(), home),
        };
        WireDescriptor { signature, word, long, file_offset: home.get().into(), sequence: sequence.into() }
    }
}

/// What a writer decides about an entry; the rest follows from its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFields {
    /// Tail.
    pub tail: u32,
    /// SequenceNumber.
    pub sequence: u64,
    /// LogGuid.
    pub log_guid: LogGuid,
    /// FlushedFileOffset.
    pub flushed_file_offset: u64,
    /// LastFileOffset.
    pub last_file_offset: u64,
}

/// Sectors for the header and `descriptors` descriptors; `None` beyond what memory can count.
pub(super) fn descriptor_sectors(descriptors: usize) -> Option<usize> {
    descriptors.checked_mul(DESCRIPTOR_LEN)?.checked_add(HEADER_LEN).map(|bytes| bytes.div_ceil(PAGE_LEN))
}

/// Bytes of an entry with so many page images and zero ranges.
pub fn entry_len(pages: usize, zeros: usize) -> usize {
    let sectors = pages.checked_add(zeros).and_then(descriptor_sectors).and_then(|sectors| sectors.checked_add(pages));
    sectors.and_then(|sectors| sectors.checked_mul(PAGE_LEN)).expect("an entry is smaller than memory")
}

/// A whole entry, checksum included.
///
/// The zero ranges come first: a replay goes in order, so an entry may clear a new sector bitmap block and set bits in it.
///
/// # Panics
/// When the entry would have 4 GiB or more.
pub fn encode_entry(fields: &EntryFields, pages: &[(FileOffset, &[u8; PAGE_LEN])], zeros: &[(FileOffset, u64)]) -> Vec<u8> {
    let zeros = zeros.iter().map(|&(home, length)| Change::Zero(home, length));
    let pages = pages.iter().map(|&(home, image)| Change::Page(home, image));
    encode_changes(fields, &zeros.chain(pages).collect::<Vec<_>>())
}

/// One change of an entry, for [`encode_changes`].
#[derive(Clone, Copy)]
enum Change<'a> {
    Page(FileOffset, &'a [u8; PAGE_LEN]),
    Zero(FileOffset, u64),
}

fn encode_changes(fields: &EntryFields, changes: &[Change<'_>]) -> Vec<u8> {
    let pages = changes.iter().filter(|change| matches!(change, Change::Page(..))).count();
    let length = entry_len(pages, changes.len().saturating_sub(pages));
    let mut header = WireHeader {
        signature: ENTRY_SIGNATURE,
        checksum: U32::ZERO,
        entry_length: u32::try_from(length).expect("an entry fits into a log").into(),
        tail: fields.tail.into(),
        sequence: fields.sequence.into(),
        descriptor_count: u32::try_from(changes.len()).expect("an entry fits into a log").into(),
        reserved: U32::ZERO,
        log_guid: fields.log_guid.get().to_bytes(),
        flushed_file_offset: fields.flushed_file_offset.into(),
        last_file_offset: fields.last_file_offset.into(),
    };
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(header.as_bytes());
    let [s0, s1, s2, s3, s4, s5, s6, s7] = fields.sequence.to_le_bytes();
    let mut sectors = Vec::with_capacity(pages);
    for &change in changes {
        let descriptor = match change {
            Change::Zero(home, length) => Descriptor::Zero { home, length },
            Change::Page(home, image) => {
                let page: &WirePage = zerocopy::transmute_ref!(image);
                sectors.push(WireDataSector {
                    signature: DATA_SECTOR,
                    sequence_high: [s4, s5, s6, s7],
                    data: page.middle,
                    sequence_low: [s0, s1, s2, s3],
                });
                Descriptor::Data { home, leading: page.leading, trailing: page.trailing }
            }
        };
        bytes.extend_from_slice(descriptor.to_wire(fields.sequence).as_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(PAGE_LEN), 0);
    bytes.extend_from_slice(sectors.as_bytes());
    header.checksum.set(crc32c_with_field_zeroed(&bytes, CHECKSUM_AT));
    for (to, from) in bytes.iter_mut().zip(header.as_bytes()) {
        *to = *from;
    }
    bytes
}

/// A page as the log takes it apart.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WirePage {
    leading: [u8; 8],
    middle: [u8; 4084],
    trailing: [u8; 4],
}

/// A page in the log: its middle is in a data sector, its ends are here (MS-VHDX 2.3.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedPage {
    /// The number of the data sector in the log.
    pub sector: usize,
    /// The sequence number of its entry, which the sector repeats.
    pub sequence: u64,
    /// The first bytes of the page.
    pub leading: [u8; 8],
    /// The last bytes of the page.
    pub trailing: [u8; 4],
}

impl LoggedPage {
    /// Puts the page together again, in place: `sector` is the data sector and becomes the page. `None`, and nothing done, when it is
    /// not the sector that the entry had when it was scanned, as far as the signature and the sequence number tell.
    #[must_use]
    pub fn restore(&self, sector: &mut [u8; PAGE_LEN]) -> Option<()> {
        if !is_data_sector_of(sector, self.sequence) {
            return None;
        }
        let page: &mut WirePage = zerocopy::transmute_mut!(sector);
        (page.leading, page.trailing) = (self.leading, self.trailing);
        Some(())
    }
}

/// Whether a sector says that it is a data sector of the entry with this number.
pub(super) fn is_data_sector_of(sector: &[u8; PAGE_LEN], sequence: u64) -> bool {
    let wire: &WireDataSector = zerocopy::transmute_ref!(sector);
    let [a, b, c, d, e, f, g, h] = sequence.to_le_bytes();
    wire.signature == DATA_SECTOR && wire.sequence_high == [e, f, g, h] && wire.sequence_low == [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(sequence: u64, tail: u32, flushed: u64, last: u64) -> EntryFields {
        let log_guid = LogGuid::new("0f0e0d0c-0b0a-0908-0706-050403020100".parse().unwrap());
        EntryFields { tail, sequence, log_guid, flushed_file_offset: flushed << 20, last_file_offset: last << 20 }
    }

    #[test]
    fn the_empty_reference_entry_is_written_byte_for_byte() {
        #[rustfmt::skip]
        let hex = [
            0x6c, 0x6f, 0x67, 0x65, 0x2f, 0x82, 0x5e, 0xb0, 0x00, 0x10, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0x0c, 0x0d, 0x0e, 0x0f, 0x0a, 0x0b, 0x08, 0x09, 7, 6, 5, 4, 3, 2, 1, 0,
            0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0,
        ];
        let bytes = encode_entry(&fields(1, 0, 4, 4), &[], &[]);
        assert_eq!((bytes.len(), &bytes[..64]), (4096, hex.as_slice()));
        assert!(bytes[64..].iter().all(|&b| b == 0));
    }

    #[test]
    fn the_reference_entry_with_two_descriptors_is_written_byte_for_byte() {
        let mut image: [u8; 4096] = std::array::from_fn(|n| n as u8);
        image[..8].copy_from_slice(&0x40_0006_u64.to_le_bytes());
        let changes = [Change::Page(FileOffset::new(0x30_0000), &image), Change::Zero(FileOffset::new(0x30_1000), 0x2000)];
        let bytes = encode_changes(&fields(0x1122_3344_5566_7788, 0x1000, 4, 5), &changes);
        #[rustfmt::skip]
        let hex = [
            0x6c, 0x6f, 0x67, 0x65, 0x53, 0x45, 0xab, 0x55, 0x00, 0x20, 0, 0, 0, 0x10, 0, 0,
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 2, 0, 0, 0, 0, 0, 0, 0,
            0x0c, 0x0d, 0x0e, 0x0f, 0x0a, 0x0b, 0x08, 0x09, 7, 6, 5, 4, 3, 2, 1, 0,
            0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0,
            0x64, 0x65, 0x73, 0x63, 0xfc, 0xfd, 0xfe, 0xff, 6, 0, 0x40, 0, 0, 0, 0, 0,
            0, 0, 0x30, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
            0x7a, 0x65, 0x72, 0x6f, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0,
            0, 0x10, 0x30, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
        ];
        assert_eq!((bytes.len(), &bytes[..128]), (0x2000, hex.as_slice()));
        assert_eq!(bytes[0x1000..0x1010], *b"data\x44\x33\x22\x11\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f");
        assert_eq!(bytes[0x1FF0..], *b"\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa\xfb\x88\x77\x66\x55");
    }

    #[test]
    fn lengths_count_descriptor_sectors_and_data_sectors() {
        for (pages, zeros, sectors) in [(0, 0, 1), (126, 0, 127), (127, 0, 129), (0, 126, 1), (0, 127, 2), (252, 0, 254), (255, 0, 258)] {
            assert_eq!(entry_len(pages, zeros), sectors * 4096, "{pages} {zeros}");
        }
        let image = [9; 4096];
        let bytes = encode_entry(&fields(1, 0, 4, 4), &vec![(FileOffset::new(0x30_0000), &image); 127], &[]);
        assert_eq!(bytes.len(), entry_len(127, 0));
        assert_eq!((&bytes[4096..4100], &bytes[8192..8196]), (DATA_DESCRIPTOR.as_slice(), DATA_SECTOR.as_slice()));
    }
}

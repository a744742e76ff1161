//! The two headers, and which of them is current (MS-VHDX 2.2.2).
//!
//! Two slots hold one header each. An update goes to the slot that is not current, with a sequence number one higher, and
//! becomes current by being whole: a torn one fails its checksum and the other slot still counts. [`Header::parse`] therefore
//! checks no more than signature and checksum; the fields become trustworthy when [`choose_header`] has decided, and
//! [`Header::check_fields`] judges them then.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c_with_field_zeroed;
use super::wire::{prefix, split};
use super::{Fault, FormatError};
use crate::guid::{DataWriteGuid, FileWriteGuid, Guid, LogGuid};
use crate::kind::Structure;
use crate::units::{FileOffset, MIB, PAGE_LEN};

const SIGNATURE: [u8; 4] = *b"head";
const CHECKSUM_AT: usize = 4;
/// The only version of the format.
pub const FORMAT_VERSION: u16 = 1;
/// The only version of the log.
pub const LOG_VERSION: u16 = 0;
/// The largest log this implementation reads. Writers in the field use 1 MiB; the field could say 4 GiB.
pub const MAX_LOG_LENGTH: u32 = 64 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    signature: [u8; 4],
    checksum: U32,
    sequence: U64,
    file_write: [u8; 16],
    data_write: [u8; 16],
    log: [u8; 16],
    log_version: U16,
    version: U16,
    log_length: U32,
    log_offset: U64,
    reserved: [u8; 4016],
}

/// One of the two places for a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderSlot {
    /// At 64 KiB.
    One,
    /// At 128 KiB.
    Two,
}

impl HeaderSlot {
    /// Where the slot starts in the file.
    pub const fn offset(self) -> FileOffset {
        match self {
            Self::One => FileOffset::new(0x1_0000),
            Self::Two => FileOffset::new(0x2_0000),
        }
    }

    /// The slot that the next update goes to when this one is current.
    pub const fn other(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }

    fn error(self, fault: Fault) -> FormatError {
        FormatError::new(Structure::Header, self.offset(), fault)
    }
}

/// A header whose signature and checksum are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// SequenceNumber: the higher one is current.
    pub sequence: u64,
    /// FileWriteGuid.
    pub file_write: FileWriteGuid,
    /// DataWriteGuid, the identity that children link to.
    pub data_write: DataWriteGuid,
    /// LogGuid; zero when the log is empty.
    pub log: LogGuid,
    /// LogVersion.
    pub log_version: u16,
    /// Version.
    pub version: u16,
    /// LogLength in bytes.
    pub log_length: u32,
    /// LogOffset.
    pub log_offset: u64,
}

impl Header {
    /// Reads the 4096 bytes of a slot; signature and checksum only, because a slot that is not current may hold anything.
    ///
    /// # Errors
    /// `Truncated`, `Signature` or `Checksum`.
    pub fn parse(slot: HeaderSlot, bytes: &[u8]) -> Result<Self, FormatError> {
        let (page, _) = split(bytes, PAGE_LEN, Structure::Header, slot.offset())?;
        let (wire, _) = prefix::<Wire>(page, Structure::Header, slot.offset())?;
        if wire.signature != SIGNATURE {
            return Err(slot.error(Fault::Signature));
        }
        let computed = crc32c_with_field_zeroed(page, CHECKSUM_AT);
        if wire.checksum.get() != computed {
            return Err(slot.error(Fault::Checksum { stored: wire.checksum.get(), computed }));
        }
        Ok(Self {
            sequence: wire.sequence.get(),
            file_write: FileWriteGuid::new(Guid::from_bytes(wire.file_write)),
            data_write: DataWriteGuid::new(Guid::from_bytes(wire.data_write)),
            log: LogGuid::new(Guid::from_bytes(wire.log)),
            log_version: wire.log_version.get(),
            version: wire.version.get(),
            log_length: wire.log_length.get(),
            log_offset: wire.log_offset.get(),
        })
    }

    /// The bytes of a slot, checksum included.
    pub fn encode(&self) -> Box<[u8; PAGE_LEN]> {
        let mut wire = Wire {
            signature: SIGNATURE,
            checksum: U32::ZERO,
            sequence: self.sequence.into(),
            file_write: self.file_write.get().to_bytes(),
            data_write: self.data_write.get().to_bytes(),
            log: self.log.get().to_bytes(),
            log_version: self.log_version.into(),
            version: self.version.into(),
            log_length: self.log_length.into(),
            log_offset: self.log_offset.into(),
            reserved: [0; 4016],
        };
        wire.checksum.set(crc32c_with_field_zeroed(wire.as_bytes(), CHECKSUM_AT));
        Box::new(zerocopy::transmute!(wire))
    }

    /// Judges the fields of the current header in a file of `file_len` bytes.
    ///
    /// # Errors
    /// An unknown version; an unknown log version while the log is not empty (MS-VHDX 2.2.2); a log that is unaligned, too
    /// long, in the header section, outside of the file, or missing while the header names one.
    pub fn check_fields(&self, slot: HeaderSlot, file_len: u64) -> Result<(), FormatError> {
        self.fields_fault(file_len).map_or(Ok(()), |fault| Err(slot.error(fault)))
    }

    fn fields_fault(&self, file_len: u64) -> Option<Fault> {
        if self.version != FORMAT_VERSION {
            return Some(Fault::Version { found: self.version, expected: FORMAT_VERSION });
        }
        let log_is_empty = self.log.get().is_zero();
        if self.log_version != LOG_VERSION && !log_is_empty {
            return Some(Fault::LogVersion(self.log_version));
        }
        let length = u64::from(self.log_length);
        let length_fault = |rule| Some(Fault::Field { field: "LogLength", value: length, rule });
        let offset_fault = |rule| Some(Fault::Field { field: "LogOffset", value: self.log_offset, rule });
        if self.log_length == 0 {
            return if log_is_empty { None } else { length_fault("but the log is not empty") };
        }
        if !length.is_multiple_of(MIB) {
            return length_fault("not a multiple of 1 MiB");
        }
        if self.log_length > MAX_LOG_LENGTH {
            return length_fault("above 64 MiB, the largest log that is read");
        }
        if !self.log_offset.is_multiple_of(MIB) {
            return offset_fault("not a multiple of 1 MiB");
        }
        if self.log_offset < MIB {
            return offset_fault("inside the header section");
        }
        match self.log_offset.checked_add(length) {
            None => offset_fault("past any file"),
            Some(end) if end > file_len => Some(Fault::BeyondFile { end, len: file_len }),
            Some(_) => None,
        }
    }

    /// The sequence number of the next update; `slot` is where this header stands.
    ///
    /// # Errors
    /// `SequenceExhausted` for the last number: wrapping around would make the old header the current one.
    pub fn next_sequence(&self, slot: HeaderSlot) -> Result<u64, FormatError> {
        self.sequence.checked_add(1).ok_or_else(|| slot.error(Fault::SequenceExhausted(self.sequence)))
    }
}

/// The header that counts, and what the other slot holds.
#[derive(Clone, Debug)]
pub struct CurrentHeader {
    /// The current header.
    pub header: Header,
    /// Its slot.
    pub slot: HeaderSlot,
    /// What the other slot gave.
    pub other: Result<Header, FormatError>,
}

/// Decides which header is current (MS-VHDX 2.2.2): the valid one, or of two valid ones that with the higher sequence number.
///
/// Equal numbers are no decision, with one exception that existing converters need: headers equal in every field count as one.
///
/// # Errors
/// `NoValidHeader` with both reasons, or `AmbiguousHeaders`.
pub fn choose_header(one: Result<Header, FormatError>, two: Result<Header, FormatError>) -> Result<CurrentHeader, FormatError> {
    match (one, two) {
        (Ok(first), Ok(second)) if first.sequence == second.sequence && first != second => {
            Err(HeaderSlot::One.error(Fault::AmbiguousHeaders(first.sequence)))
        }
        (Ok(first), Ok(second)) if second.sequence > first.sequence => {
            Ok(CurrentHeader { header: second, slot: HeaderSlot::Two, other: Ok(first) })
        }
        (Ok(first), other) => Ok(CurrentHeader { header: first, slot: HeaderSlot::One, other }),
        (other, Ok(second)) => Ok(CurrentHeader { header: second, slot: HeaderSlot::Two, other }),
        (Err(first), Err(second)) => Err(HeaderSlot::One.error(Fault::NoValidHeader(Box::new(first.fault), Box::new(second.fault)))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kind::ErrorKind;

    fn sample(sequence: u64) -> Header {
        Header {
            sequence,
            file_write: FileWriteGuid::new("11111111-2222-3333-4444-555555555555".parse().unwrap()),
            data_write: DataWriteGuid::new("a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5".parse().unwrap()),
            log: LogGuid::default(),
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        }
    }

    fn stored_crc(header: &Header) -> u32 {
        u32::from_le_bytes(header.encode()[4..8].try_into().unwrap())
    }

    #[test]
    fn the_reference_header_is_written_byte_for_byte() {
        #[rustfmt::skip]
        let hex = [
            0x68, 0x65, 0x61, 0x64, 0xbc, 0x1d, 0xac, 0xcc, 0x01, 0, 0, 0, 0, 0, 0, 0,
            0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0x44, 0x44, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55,
            0xa3, 0xa2, 0xa1, 0xa0, 0xb1, 0xb0, 0xc1, 0xc0, 0xd0, 0xd1, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0x01, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
        ];
        let bytes = sample(1).encode();
        assert_eq!(bytes[..80], hex);
        assert!(bytes[80..].iter().all(|&b| b == 0));
        assert_eq!(stored_crc(&sample(0)), 0x4E54_81CB);
        let log = LogGuid::new("0f0e0d0c-0b0a-0908-0706-050403020100".parse().unwrap());
        assert_eq!(stored_crc(&Header { log, ..sample(2) }), 0x8CBA_A74D);
    }

    #[test]
    fn headers_of_qemu_and_windows_verify() {
        // qemu-img 10.0.2, header 1; Windows 10.0.14393, header 2.
        let qemu: [(usize, &[u8]); 4] = [
            (0, b"head\xf7\xf0\xc3\x57\x52\x7f\xdf\x36"),
            (0x10, b"\xaf\x9e\x53\x2b\x4a\x77\x48\x2a\x9f\x2e\xd4\x20\xe0\xfe\xb7\x94"),
            (0x20, b"\xbd\x07\xa0\xe7\x1c\x8e\x47\x99\x9c\x73\x15\xf1\x0a\x1c\xfc\xdd"),
            (0x40, b"\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00\x10\x00"),
        ];
        let windows: [(usize, &[u8]); 4] = [
            (0, b"head\x9a\x0a\xf1\xec\x0b"),
            (0x10, b"\xc6\x80\x9c\x78\xf5\x2c\x74\x45\xb9\xa0\xf9\x80\x5b\xe4\xaa\x12"),
            (0x20, b"\x87\x10\x7e\xe0\xff\xf0\x0c\x4f\xa7\x2d\x3f\xeb\x69\xc6\xd4\xe6"),
            (0x40, b"\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00\x10\x00"),
        ];
        for (parts, sequence) in [(qemu, 920_616_786), (windows, 11)] {
            let mut bytes = [0; 4096];
            for (at, part) in parts {
                bytes[at..at + part.len()].copy_from_slice(part);
            }
            let header = Header::parse(HeaderSlot::Two, &bytes).unwrap();
            assert_eq!(header.sequence, sequence);
            assert_eq!(*header.encode(), bytes);
            header.check_fields(HeaderSlot::Two, 8 << 20).unwrap();
        }
        let ten = Header {
            sequence: 10,
            file_write: FileWriteGuid::new("789c80c6-2cf5-4574-b9a0-f9805be4aa12".parse().unwrap()),
            data_write: DataWriteGuid::new("e07e1087-f0ff-4f0c-a72d-3feb69c6d4e6".parse().unwrap()),
            ..sample(0)
        };
        assert_eq!(stored_crc(&ten), 0x6E09_96ED);
    }

    #[test]
    fn the_higher_sequence_number_is_current() {
        for (one, two, current) in [(1, 2, HeaderSlot::Two), (2, 1, HeaderSlot::One), (u64::MAX, 0, HeaderSlot::One)] {
            let chosen = choose_header(Ok(sample(one)), Ok(sample(two))).unwrap();
            assert_eq!((chosen.slot, chosen.header.sequence), (current, one.max(two)));
            assert_eq!(chosen.other.unwrap().sequence, one.min(two));
        }
    }

    #[test]
    fn a_damaged_header_leaves_the_other_one() {
        let mut bytes = *sample(5).encode();
        bytes[17] ^= 1;
        let bad = Header::parse(HeaderSlot::One, &bytes);
        assert!(matches!(bad.as_ref().unwrap_err().fault, Fault::Checksum { .. }));
        let chosen = choose_header(bad.clone(), Ok(sample(1))).unwrap();
        assert_eq!((chosen.slot, chosen.other), (HeaderSlot::Two, bad.clone()));
        let chosen = choose_header(Ok(sample(1)), bad.clone()).unwrap();
        assert_eq!((chosen.slot, chosen.other), (HeaderSlot::One, bad.clone()));
        assert!(matches!(choose_header(bad.clone(), bad).unwrap_err().fault, Fault::NoValidHeader(..)));
    }

    #[test]
    fn equal_numbers_are_accepted_only_for_twins() {
        assert_eq!(choose_header(Ok(sample(7)), Ok(sample(7))).unwrap().slot, HeaderSlot::One);
        let differs = Header { log_length: 2 << 20, ..sample(7) };
        assert_eq!(choose_header(Ok(sample(7)), Ok(differs)).unwrap_err().fault, Fault::AmbiguousHeaders(7));
    }

    #[test]
    fn the_reserved_rest_of_a_header_is_ignored_but_signed() {
        let mut bytes = *sample(1).encode();
        bytes[4095] = 1;
        assert!(Header::parse(HeaderSlot::One, &bytes).is_err());
        let crc = crc32c_with_field_zeroed(&bytes, 4);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::parse(HeaderSlot::One, &bytes), Ok(sample(1)));
    }

    #[test]
    fn versions_are_refused_only_where_they_matter() {
        let check = |header: Header| header.check_fields(HeaderSlot::One, 4 << 20);
        let error = check(Header { version: 2, ..sample(1) }).unwrap_err();
        assert_eq!((error.fault.clone(), error.kind()), (Fault::Version { found: 2, expected: 1 }, ErrorKind::Unsupported));
        assert_eq!(check(Header { log_version: 1, ..sample(1) }), Ok(()));
        let dirty = Header { log_version: 1, log: LogGuid::random(), ..sample(1) };
        assert_eq!(check(dirty).unwrap_err().fault, Fault::LogVersion(1));
    }

    #[test]
    fn logs_in_impossible_places_are_refused() {
        let fault = |length, offset, log| {
            let header = Header { log_length: length, log_offset: offset, log, ..sample(1) };
            header.check_fields(HeaderSlot::Two, 4 << 20).err().map(|e| e.fault)
        };
        let (none, some) = (LogGuid::default(), LogGuid::random());
        assert_eq!(fault(0, 0, none), None);
        assert_eq!(fault(3 << 20, 1 << 20, some), None);
        for (length, offset, log, field) in [
            (0, 1 << 20, some, "LogLength"),
            (4096, 1 << 20, none, "LogLength"),
            (0xFFF0_0000, 1 << 20, none, "LogLength"),
            (1 << 20, 0, none, "LogOffset"),
            (1 << 20, (1 << 20) + 4096, none, "LogOffset"),
            (1 << 20, 0xFFFF_FFFF_FFF0_0000, none, "LogOffset"),
        ] {
            assert!(matches!(fault(length, offset, log), Some(Fault::Field { field: f, .. }) if f == field), "{length:#x} {offset:#x}");
        }
        assert_eq!(fault(1 << 20, 4 << 20, none), Some(Fault::BeyondFile { end: 5 << 20, len: 4 << 20 }));
    }

    #[test]
    fn the_last_sequence_number_has_no_successor() {
        assert_eq!(sample(4).next_sequence(HeaderSlot::One), Ok(5));
        assert_eq!(sample(u64::MAX).next_sequence(HeaderSlot::One).unwrap_err().fault, Fault::SequenceExhausted(u64::MAX));
    }

    proptest! {
        #[test]
        fn headers_come_back(
            sequence: u64, guids: [[u8; 16]; 3], log_version: u16, version: u16, log_length: u32, log_offset: u64, file_len: u64,
        ) {
            let header = Header {
                sequence,
                file_write: FileWriteGuid::new(Guid::from_bytes(guids[0])),
                data_write: DataWriteGuid::new(Guid::from_bytes(guids[1])),
                log: LogGuid::new(Guid::from_bytes(guids[2])),
                log_version, version, log_length, log_offset,
            };
            let _ = header.check_fields(HeaderSlot::One, file_len);
            prop_assert_eq!(Header::parse(HeaderSlot::One, header.encode().as_slice()), Ok(header));
        }

        #[test]
        fn any_changed_byte_is_noticed(at in 0_usize..4096, by in 1_u8..) {
            let mut bytes = *sample(3).encode();
            bytes[at] ^= by;
            prop_assert!(Header::parse(HeaderSlot::One, &bytes).is_err());
        }

        #[test]
        fn short_slots_are_errors(len in 0_usize..4096) {
            prop_assert!(Header::parse(HeaderSlot::One, &sample(1).encode()[..len]).is_err());
        }
    }
}

//! The parent locator: how a differencing file names its parent (MS-VHDX 2.6.2.6).
//!
//! A list of text pairs. `parent_linkage` is the identity that the parent must have; up to three paths say where it may be
//! found. Both sides of every pair are hostile input: nothing here opens anything, and text that is not text is refused.

use std::collections::BTreeSet;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire::{len64, prefix};
use super::{Fault, FormatError};
use crate::guid::{DataWriteGuid, Guid};
use crate::kind::Structure;
use crate::units::FileOffset;

/// The locator type of VHDX parents.
pub const VHDX_LOCATOR: Guid = Guid::from_u128(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);
/// Pairs that are read. The standard keys are five.
const MAX_PAIRS: u16 = 256;

const LINKAGE: &str = "parent_linkage";
const LINKAGE2: &str = "parent_linkage2";
/// The keys of paths, in the order in which they are tried (MS-VHDX 2.6.2.6.3).
const PATHS: [&str; 3] = ["relative_path", "volume_path", "absolute_win32_path"];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireHeader {
    locator_type: [u8; 16],
    reserved: U16,
    count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WirePair {
    key_offset: U32,
    value_offset: U32,
    key_length: U16,
    value_length: U16,
}

/// The pairs of a parent locator, keys unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    /// Keys and values in the order of the file.
    pub entries: Vec<(String, String)>,
}

impl ParentLocator {
    /// A locator for a parent with this identity, to be found at `paths` (pairs of path key and value).
    pub fn new(linkage: DataWriteGuid, paths: &[(&str, &str)]) -> Self {
        let linkage = (LINKAGE.to_owned(), format!("{{{linkage}}}"));
        let paths = paths.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Self { entries: std::iter::once(linkage).chain(paths).collect() }
    }

    /// Reads the item; `at` is where it stands in the file.
    ///
    /// # Errors
    /// An unknown locator type; too many pairs; strings outside of the item, empty, of odd length, with NULs, not UTF-16, or
    /// together longer than the item; a key twice; no `parent_linkage`, or one that is not a GUID.
    pub fn parse(at: FileOffset, bytes: &[u8]) -> Result<Self, FormatError> {
        let err = |fault| FormatError::new(Structure::ParentLocator, at, fault);
        let (header, mut left) = prefix::<WireHeader>(bytes, Structure::ParentLocator, at)?;
        let locator_type = Guid::from_bytes(header.locator_type);
        if locator_type != VHDX_LOCATOR {
            return Err(err(Fault::LocatorType(locator_type)));
        }
        let count = header.count.get();
        if count > MAX_PAIRS {
            return Err(err(Fault::Field { field: "KeyValueCount", value: count.into(), rule: "above 256, the most pairs that are read" }));
        }
        let mut entries = Vec::new();
        let mut keys = BTreeSet::new();
        // Strings may share bytes, but not to make more text than the item has bytes.
        let mut text_left = bytes.len();
        for _ in 0..count {
            let (pair, next) = prefix::<WirePair>(left, Structure::ParentLocator, at)?;
            left = next;
            let mut text = |offset, length| {
                let raw = string_at(bytes, offset, length)?;
                text_left = text_left.checked_sub(raw.len()).ok_or(Fault::Text("its strings are longer than the item"))?;
                decode(raw)
            };
            let key = text(pair.key_offset.get(), pair.key_length.get()).map_err(err)?;
            let value = text(pair.value_offset.get(), pair.value_length.get()).map_err(err)?;
            if !keys.insert(key.clone()) {
                return Err(err(Fault::DuplicateKey(key.escape_debug().take(40).collect())));
            }
            entries.push((key, value));
        }
        let locator = Self { entries };
        locator.linkage_fault().map_err(err)?;
        Ok(locator)
    }

    /// The bytes of the item: header, pairs, then each key followed by its value.
    ///
    /// # Panics
    /// With more pairs or longer strings than the format can express (65535; 32767 UTF-16 units).
    pub fn encode(&self) -> Vec<u8> {
        let count = u16::try_from(self.entries.len()).expect("a locator has a handful of pairs");
        let header = WireHeader { locator_type: VHDX_LOCATOR.to_bytes(), reserved: U16::ZERO, count: count.into() };
        let mut pairs = header.as_bytes().to_vec();
        let mut texts = Vec::new();
        let strings_at = u32::from(count)
            .checked_mul(12)
            .and_then(|pairs_len| pairs_len.checked_add(20))
            .expect("65535 pairs of 12 bytes fit in 32 bits");
        for (key, value) in &self.entries {
            let mut put = |text: &str| {
                let before = texts.len();
                texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                let length = u16::try_from(texts.len().saturating_sub(before)).expect("a string has at most 32767 UTF-16 units");
                let offset = u32::try_from(before).ok().and_then(|before| before.checked_add(strings_at));
                (U32::new(offset.expect("a locator is smaller than 4 GiB")), U16::new(length))
            };
            let (key_offset, key_length) = put(key);
            let (value_offset, value_length) = put(value);
            pairs.extend_from_slice(WirePair { key_offset, value_offset, key_length, value_length }.as_bytes());
        }
        pairs.append(&mut texts);
        pairs
    }

    /// The value of a key. Keys are case sensitive.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// The identity that the parent must have: its DataWriteGuid.
    ///
    /// # Errors
    /// Only for locators put together by hand: `parse` refuses one without a readable `parent_linkage`.
    pub fn linkage(&self) -> Result<Guid, FormatError> {
        self.linkage_fault().map_err(|fault| FormatError::new(Structure::ParentLocator, FileOffset::new(0), fault))
    }

    fn linkage_fault(&self) -> Result<Guid, Fault> {
        let text = self.get(LINKAGE).ok_or(Fault::Missing("key parent_linkage"))?;
        text.parse().map_err(|_| Fault::Text("its parent_linkage is not a GUID"))
    }

    /// The second identity that counts while a merge is under way. Windows writes zeros when there is none; those, and text
    /// that is no GUID, are `None`.
    pub fn linkage2(&self) -> Option<Guid> {
        self.get(LINKAGE2)?.parse().ok().filter(|guid: &Guid| !guid.is_zero())
    }

    /// Whether a file with this identity is the parent. A zero identity identifies nothing and is never accepted.
    pub fn accepts(&self, parent: DataWriteGuid) -> bool {
        let parent = parent.get();
        !parent.is_zero() && (self.linkage().is_ok_and(|linkage| linkage == parent) || self.linkage2() == Some(parent))
    }

    /// The same paths to a parent with this identity, or, while a merge is under way, with the second one (MS-VHDX 2.6.2.6.2).
    #[must_use]
    pub fn linked(&self, linkage: DataWriteGuid, second: Option<DataWriteGuid>) -> Self {
        let pair = |key: &str, guid: DataWriteGuid| (key.to_owned(), format!("{{{guid}}}"));
        let mut entries = vec![pair(LINKAGE, linkage)];
        entries.extend(self.entries.iter().filter(|(key, _)| key != LINKAGE && key != LINKAGE2).cloned());
        entries.extend(second.map(|guid| pair(LINKAGE2, guid)));
        Self { entries }
    }

    /// The paths that are there, as key and value, in the order in which they are to be tried: relative, volume, absolute.
    pub fn paths(&self) -> Vec<(&str, &str)> {
        PATHS.into_iter().filter_map(|key| Some((key, self.get(key)?))).collect()
    }
}

fn string_at(bytes: &[u8], offset: u32, length: u16) -> Result<&[u8], Fault> {
    if offset == 0 || length == 0 || !length.is_multiple_of(2) {
        return Err(Fault::Text("a key or value is empty, nowhere, or of odd length"));
    }
    let end = u64::from(offset).saturating_add(length.into());
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    let found = range.and_then(|(start, end)| bytes.get(start..end));
    found.ok_or(Fault::Truncated { needed: end, available: len64(bytes.len()) })
}

fn decode(raw: &[u8]) -> Result<String, Fault> {
    let (units, _) = raw.as_chunks::<2>();
    let units = units.iter().copied().map(u16::from_le_bytes);
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| Fault::Text("a key or value is not UTF-16"))?;
    if text.contains('\0') {
        return Err(Fault::Text("a key or value contains a NUL"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kind::ErrorKind;

    const AT: FileOffset = FileOffset::new(0x21_0028);
    const PARENT: &str = "a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5";

    fn parent() -> DataWriteGuid {
        DataWriteGuid::new(PARENT.parse().unwrap())
    }

    fn reference() -> ParentLocator {
        ParentLocator::new(parent(), &[("relative_path", ".\\p.vhdx")])
    }

    fn fault_of(change: impl FnOnce(&mut Vec<u8>)) -> Fault {
        let mut bytes = reference().encode();
        change(&mut bytes);
        ParentLocator::parse(AT, &bytes).unwrap_err().fault
    }

    fn with(pairs: &[(&str, &str)]) -> ParentLocator {
        ParentLocator { entries: pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect() }
    }

    #[test]
    fn the_reference_locator_is_written_byte_for_byte() {
        let bytes = reference().encode();
        #[rustfmt::skip]
        let head = [
            0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13,
            0, 0, 2, 0, 0x2c, 0, 0, 0, 0x48, 0, 0, 0, 0x1c, 0, 0x4c, 0,
            0x94, 0, 0, 0, 0xae, 0, 0, 0, 0x1a, 0, 0x10, 0,
        ];
        let texts: Vec<u8> = format!("parent_linkage{{{PARENT}}}relative_path.\\p.vhdx").bytes().flat_map(|b| [b, 0]).collect();
        assert_eq!(bytes, [head.as_slice(), &texts].concat());
        assert_eq!(bytes.len(), 190);
        assert_eq!(ParentLocator::parse(AT, &bytes), Ok(reference()));
    }

    #[test]
    fn a_locator_of_windows_is_understood() {
        let locator = with(&[
            ("parent_linkage", &format!("{{{PARENT}}}")),
            ("absolute_win32_path", "C:\\Projects\\fat-parent.vhdx"),
            ("relative_path", ".\\fat-parent.vhdx"),
            ("volume_path", "\\\\?\\Volume{2dc27766-f623-4200-9d64-115e9bfd4a08}\\fat-parent.vhdx"),
            ("parent_linkage2", "{00000000-0000-0000-0000-000000000000}"),
        ]);
        let read = ParentLocator::parse(AT, &locator.encode()).unwrap();
        assert_eq!(read, locator);
        assert_eq!(read.linkage().unwrap(), parent().get());
        assert_eq!(read.linkage2(), None);
        assert_eq!(read.paths().iter().map(|p| p.0).collect::<Vec<_>>(), PATHS);
        assert_eq!(read.get("Relative_path"), None);
        assert!(read.accepts(parent()));
        assert!(!read.accepts(DataWriteGuid::default()));
    }

    #[test]
    fn both_identities_count_during_a_merge() {
        let new = DataWriteGuid::random();
        let locator = with(&[("parent_linkage", &PARENT.to_uppercase()), ("parent_linkage2", &new.to_string())]);
        let locator = ParentLocator::parse(AT, &locator.encode()).unwrap();
        assert!(locator.accepts(parent()) && locator.accepts(new));
        assert!(!locator.accepts(DataWriteGuid::random()));
        let zero = with(&[("parent_linkage", "{00000000-0000-0000-0000-000000000000}")]);
        assert!(!zero.accepts(DataWriteGuid::default()));
    }

    #[test]
    fn other_kinds_of_parents_are_unsupported() {
        let mut bytes = reference().encode();
        bytes[0] ^= 1;
        let error = ParentLocator::parse(AT, &bytes).unwrap_err();
        assert!(matches!(error.fault, Fault::LocatorType(_)));
        assert_eq!((error.kind(), error.at), (ErrorKind::Unsupported, AT));
    }

    #[test]
    fn hostile_locators_are_refused() {
        assert!(matches!(fault_of(|b| b.truncate(19)), Fault::Truncated { needed: 20, available: 19 }));
        assert!(matches!(fault_of(|b| b[18..20].fill(0xFF)), Fault::Field { field: "KeyValueCount", value: 65535, .. }));
        assert!(matches!(fault_of(|b| b[18] = 200), Fault::Text(_) | Fault::Truncated { .. }));
        assert!(matches!(fault_of(|b| b[20..24].fill(0)), Fault::Text(_)));
        assert!(matches!(fault_of(|b| b[24..28].fill(0xFF)), Fault::Truncated { .. }));
        assert!(matches!(fault_of(|b| b[28] = 0), Fault::Text(_)));
        assert!(matches!(fault_of(|b| b[30] = 0x4B), Fault::Text(_)));
        assert!(matches!(fault_of(|b| b.truncate(189)), Fault::Truncated { needed: 190, available: 189 }));
        assert_eq!(fault_of(|b| b[0xAF] = 0xD8), Fault::Text("a key or value is not UTF-16"));
        assert_eq!(fault_of(|b| b[0xAE] = 0), Fault::Text("a key or value contains a NUL"));
        assert_eq!(fault_of(|b| b[18] = 0), Fault::Missing("key parent_linkage"));
        assert_eq!(fault_of(|b| b[0x48] = b'x'), Fault::Text("its parent_linkage is not a GUID"));
        let twice = with(&[("parent_linkage", PARENT), ("parent_linkage", PARENT)]);
        assert_eq!(ParentLocator::parse(AT, &twice.encode()).unwrap_err().fault, Fault::DuplicateKey("parent_linkage".to_owned()));
    }

    #[test]
    fn overlapping_strings_do_not_multiply() {
        // 256 pairs that all point at one long string: 32 MiB of text out of a few KiB.
        let mut bytes = VHDX_LOCATOR.to_bytes().to_vec();
        bytes.extend([0, 0, 0, 1]);
        for _ in 0..256 {
            bytes.extend([0x10, 0x10, 0, 0, 0x10, 0x10, 0, 0, 0xFE, 0xFF, 0xFE, 0xFF]);
        }
        bytes.resize(80_000, b'a');
        assert_eq!(ParentLocator::parse(AT, &bytes).unwrap_err().fault, Fault::Text("its strings are longer than the item"));
    }

    proptest! {
        #[test]
        fn locators_come_back(values in prop::collection::btree_map("[a-z]{1,9}", "[^\\x00]{1,30}", 0..6)) {
            let mut locator = ParentLocator::new(parent(), &[]);
            locator.entries.extend(values);
            prop_assert_eq!(ParentLocator::parse(AT, &locator.encode()), Ok(locator));
        }

        #[test]
        fn mutated_locators_never_panic(changes in prop::collection::vec((16_usize..190, any::<u8>()), 0..8), len in 0_usize..=190) {
            let mut bytes = reference().encode();
            changes.iter().for_each(|&(at, to)| bytes[at] = to);
            if let Ok(locator) = ParentLocator::parse(AT, &bytes[..len]) {
                prop_assert!(locator.linkage().is_ok());
            }
        }
    }
}

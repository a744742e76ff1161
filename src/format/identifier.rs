//! The file type identifier: the first 64 KiB of the file, written once and never touched again (MS-VHDX 2.2.1).
//!
//! Only the signature means anything. The creator is for people who look at the file; it is decoded leniently and nothing may
//! depend on it.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire::prefix;
use super::{Fault, FormatError};
use crate::kind::Structure;
use crate::units::FileOffset;

const SIGNATURE: [u8; 8] = *b"vhdxfile";
/// UTF-16 units that the creator may have.
const CREATOR_UNITS: usize = 256;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    signature: [u8; 8],
    creator: [U16; CREATOR_UNITS],
}

/// Checks the signature and returns the creator, for display only: bytes that are not UTF-16 show as U+FFFD.
///
/// # Errors
/// When fewer than 520 bytes are there or the signature is another.
pub fn parse_identifier(bytes: &[u8]) -> Result<String, FormatError> {
    let at = FileOffset::new(0);
    let (wire, _) = prefix::<Wire>(bytes, Structure::FileIdentifier, at)?;
    if wire.signature != SIGNATURE {
        return Err(FormatError::new(Structure::FileIdentifier, at, Fault::Signature));
    }
    let units = wire.creator.iter().map(|unit| unit.get()).take_while(|&unit| unit != 0);
    Ok(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// The 520 defined bytes of the identifier. A creator above 256 UTF-16 units is cut between characters.
pub fn encode_identifier(creator: &str) -> Vec<u8> {
    let mut wire = Wire { signature: SIGNATURE, creator: [U16::ZERO; CREATOR_UNITS] };
    let mut free = wire.creator.as_mut_slice();
    for c in creator.chars() {
        let mut buffer = [0; 2];
        let units = c.encode_utf16(&mut buffer);
        let Some((slot, rest)) = free.split_at_mut_checked(units.len()) else { break };
        for (to, unit) in slot.iter_mut().zip(units) {
            to.set(*unit);
        }
        free = rest;
    }
    wire.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_identifier_of_qemu_is_read() {
        let mut bytes = b"vhdxfile".to_vec();
        bytes.extend("QEMU v10.0.2".encode_utf16().flat_map(u16::to_le_bytes));
        bytes.resize(520, 0);
        assert_eq!(parse_identifier(&bytes).unwrap(), "QEMU v10.0.2");
        assert_eq!(encode_identifier("QEMU v10.0.2"), bytes);
        assert_eq!(parse_identifier(&bytes[..519]).unwrap_err().fault, Fault::Truncated { needed: 520, available: 519 });
        bytes[0] = b'c';
        assert_eq!(parse_identifier(&bytes).unwrap_err().fault, Fault::Signature);
    }

    #[test]
    fn a_creator_without_end_or_sense_is_still_shown() {
        let mut bytes = b"vhdxfile".to_vec();
        bytes.resize(520, 0xD8);
        assert_eq!(parse_identifier(&bytes).unwrap(), "\u{FFFD}".repeat(256));
    }

    #[test]
    fn a_long_creator_is_cut_between_characters() {
        let bytes = encode_identifier(&format!("{}\u{1F4BE}", "x".repeat(255)));
        assert_eq!(parse_identifier(&bytes).unwrap(), "x".repeat(255));
    }

    proptest! {
        #[test]
        fn creators_come_back(creator in "[^\\x00]{0,100}") {
            prop_assert_eq!(parse_identifier(&encode_identifier(&creator)).unwrap(), creator);
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), sign in any::<bool>()) {
            if sign && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(b"vhdxfile");
            }
            let _ = parse_identifier(&bytes);
        }
    }
}

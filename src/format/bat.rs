//! BAT entries: one 64-bit word says what a payload block or a sector bitmap block is and where (MS-VHDX 2.5.1).
//!
//! ```text
//!  63                                            20 19               3 2   0
//! | FileOffsetMB                                   | reserved, zero   |State|
//! ```
//!
//! Payload entries know six states and sector bitmap entries two, so each kind has its own type. Only the present states carry
//! a place. Decoding stands on the path of every read; it is a few shifts and compares.

use super::Fault;
use crate::units::BlockHome;

const RESERVED: u64 = 0xF_FFF8;
const MIB_SHIFT: u32 = 20;

const NOT_PRESENT: u8 = 0;
const UNDEFINED: u8 = 1;
const ZERO: u8 = 2;
const UNMAPPED: u8 = 3;
const PRESENT: u8 = 6;
const PARTIALLY_PRESENT: u8 = 7;

/// What a BAT entry says about a payload block (MS-VHDX 2.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadState {
    /// Nothing is known here: a child asks its parent, a base answers zeros.
    NotPresent,
    /// The content does not matter; read as zeros, and never from the parent.
    Undefined,
    /// Zeros.
    Zero,
    /// Discarded by the user of the disk; read as zeros, and never from the parent.
    Unmapped,
    /// All sectors are in this file.
    FullyPresent(BlockHome),
    /// The sector bitmap says which sectors are in this file; the parent has the others.
    PartiallyPresent(BlockHome),
}

impl PayloadState {
    /// Reads an entry. Where a state has no place, the place bits are ignored.
    ///
    /// # Errors
    /// `ReservedBits`; `State` for 4 and 5; `Field` for a present block that is nowhere or beyond reach.
    #[inline]
    pub fn decode(word: u64) -> Result<Self, Fault> {
        match state(word)? {
            NOT_PRESENT => Ok(Self::NotPresent),
            UNDEFINED => Ok(Self::Undefined),
            ZERO => Ok(Self::Zero),
            UNMAPPED => Ok(Self::Unmapped),
            PRESENT => Ok(Self::FullyPresent(home(word)?)),
            PARTIALLY_PRESENT => Ok(Self::PartiallyPresent(home(word)?)),
            other => Err(Fault::State(other)),
        }
    }

    /// The same for look-ups that are on a hot path and have somebody to ask when it is `None`: a fault has an error to be built and
    /// dropped, which costs more than the rest.
    #[inline]
    pub fn decode_sound(word: u64) -> Option<Self> {
        if word & RESERVED != 0 {
            return None;
        }
        let [low, ..] = word.to_le_bytes();
        match low & 7 {
            NOT_PRESENT => Some(Self::NotPresent),
            UNDEFINED => Some(Self::Undefined),
            ZERO => Some(Self::Zero),
            UNMAPPED => Some(Self::Unmapped),
            PRESENT => Some(Self::FullyPresent(BlockHome::from_mib(word >> MIB_SHIFT)?)),
            PARTIALLY_PRESENT => Some(Self::PartiallyPresent(BlockHome::from_mib(word >> MIB_SHIFT)?)),
            _ => None,
        }
    }

    /// The entry, with a zero place in the states that have none.
    #[inline]
    pub fn encode(self) -> u64 {
        match self {
            Self::NotPresent => NOT_PRESENT.into(),
            Self::Undefined => UNDEFINED.into(),
            Self::Zero => ZERO.into(),
            Self::Unmapped => UNMAPPED.into(),
            Self::FullyPresent(home) => pack(PRESENT, home),
            Self::PartiallyPresent(home) => pack(PARTIALLY_PRESENT, home),
        }
    }

    /// The place that an undefined or unmapped entry keeps for its block's return (MS-VHDX 2.5.1.1): nobody reads it, but its
    /// space is taken. `None` in every other state and for places no file reaches.
    pub fn anchor(word: u64) -> Option<BlockHome> {
        match Self::decode(word) {
            Ok(Self::Undefined | Self::Unmapped) => BlockHome::from_mib(word >> MIB_SHIFT),
            _ => None,
        }
    }
}

/// What a BAT entry says about a sector bitmap block (MS-VHDX 2.5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapState {
    /// The chunk has none, so none of its blocks may be partially present.
    NotPresent,
    /// Here it is.
    Present(BlockHome),
}

impl BitmapState {
    /// Reads an entry.
    ///
    /// # Errors
    /// `ReservedBits`; `State` for anything but 0 and 6; `Field` for a present bitmap that is nowhere or beyond reach.
    #[inline]
    pub fn decode(word: u64) -> Result<Self, Fault> {
        match state(word)? {
            NOT_PRESENT => Ok(Self::NotPresent),
            PRESENT => Ok(Self::Present(home(word)?)),
            other => Err(Fault::State(other)),
        }
    }

    /// The entry.
    #[inline]
    pub fn encode(self) -> u64 {
        match self {
            Self::NotPresent => NOT_PRESENT.into(),
            Self::Present(home) => pack(PRESENT, home),
        }
    }
}

#[inline]
fn state(word: u64) -> Result<u8, Fault> {
    if word & RESERVED != 0 {
        return Err(Fault::ReservedBits(word & RESERVED));
    }
    let [low, ..] = word.to_le_bytes();
    Ok(low & 7)
}

#[inline]
fn home(word: u64) -> Result<BlockHome, Fault> {
    let mib = word >> MIB_SHIFT;
    BlockHome::from_mib(mib).ok_or(Fault::Field { field: "FileOffsetMB", value: mib, rule: "but a present block is at 1 MiB to 4 EiB" })
}

#[inline]
fn pack(state: u8, home: BlockHome) -> u64 {
    u64::from(state) | (home.mib() << MIB_SHIFT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(mib: u64) -> BlockHome {
        BlockHome::from_mib(mib).unwrap()
    }

    #[test]
    fn the_quick_decoder_agrees_with_the_other_one() {
        let mut word = 1_u64;
        for i in 0..100_000_u64 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            for word in [word, word & !RESERVED, (i << MIB_SHIFT) | (word >> 61), i] {
                assert_eq!(PayloadState::decode_sound(word), PayloadState::decode(word).ok(), "{word:#x}");
            }
        }
    }

    #[test]
    fn entries_of_real_files_are_read() {
        for (word, state) in [
            (0x80_0006, PayloadState::FullyPresent(at(8))),
            (0x40_0006, PayloadState::FullyPresent(at(4))),
            (0x40_0007, PayloadState::PartiallyPresent(at(4))),
            (0, PayloadState::NotPresent),
            (1, PayloadState::Undefined),
            (2, PayloadState::Zero),
            (3, PayloadState::Unmapped),
        ] {
            assert_eq!(PayloadState::decode(word), Ok(state));
            assert_eq!(state.encode(), word);
        }
        assert_eq!(BitmapState::decode(0x60_0006), Ok(BitmapState::Present(at(6))));
        assert_eq!(BitmapState::Present(at(6)).encode(), 0x60_0006);
        assert_eq!(BitmapState::decode(0), Ok(BitmapState::NotPresent));
    }

    #[test]
    fn reserved_states_and_bits_are_refused() {
        for state in [4, 5] {
            assert_eq!(PayloadState::decode(0x40_0000 | state), Err(Fault::State(state as u8)));
        }
        for state in [1, 2, 3, 4, 5, 7] {
            assert_eq!(BitmapState::decode(0x40_0000 | state), Err(Fault::State(state as u8)));
        }
        for bit in 3..20 {
            assert_eq!(PayloadState::decode(2 | 1 << bit), Err(Fault::ReservedBits(1 << bit)));
            assert_eq!(BitmapState::decode(0x40_0006 | 1 << bit), Err(Fault::ReservedBits(1 << bit)));
        }
    }

    #[test]
    fn present_blocks_are_somewhere() {
        for word in [6, 7, u64::MAX << 20 | 6, u64::MAX << 20 | 7, 1 << 52 | 6] {
            assert!(matches!(PayloadState::decode(word), Err(Fault::Field { field: "FileOffsetMB", .. })), "{word:#x}");
        }
        assert!(matches!(BitmapState::decode(6), Err(Fault::Field { .. })));
    }

    #[test]
    fn places_are_kept_only_where_the_format_keeps_them() {
        assert_eq!(PayloadState::anchor(0x40_0003), Some(at(4)));
        assert_eq!(PayloadState::anchor(0x40_0001), Some(at(4)));
        for word in [1, 3, 0x40_0000, 0x40_0002, 0x40_0006, 0x40_0007, 0x40_000B, u64::MAX << 20 | 3] {
            assert_eq!(PayloadState::anchor(word), None, "{word:#x}");
        }
        assert_eq!(PayloadState::decode(0x40_0002), Ok(PayloadState::Zero));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_meaning(word: u64, tidy: bool) {
            let word = if tidy { word & !RESERVED } else { word };
            if let Ok(state) = PayloadState::decode(word) {
                prop_assert_eq!(PayloadState::decode(state.encode()), Ok(state));
            }
            if let Ok(state) = BitmapState::decode(word) {
                prop_assert_eq!(BitmapState::decode(state.encode()), Ok(state));
            }
            let _ = PayloadState::anchor(word);
        }
    }
}

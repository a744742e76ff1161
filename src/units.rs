//! Numbers that know what they count.
//!
//! A VHDX engine juggles offsets in the virtual disk, offsets in the file, block numbers, chunk numbers and BAT indexes. All
//! are integers and most are interchangeable by accident, so each is its own type. None derefs to the integer; only sums that
//! mean something exist.

use std::fmt;
use std::num::NonZeroU32;

/// Bytes in a mebibyte, the unit in which the format places everything (MS-VHDX 2.1).
pub const MIB: u64 = 1 << 20;
/// Bytes in a kibibyte.
pub const KIB: u64 = 1 << 10;
/// The unit of the log and of every metadata write.
pub const PAGE: u64 = 4096;
/// The same, for arrays.
pub const PAGE_LEN: usize = 4096;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($int);

        impl $name {
            /// Wraps the number.
            pub const fn new(value: $int) -> Self {
                Self(value)
            }

            /// The bare number.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

unit! {
    /// A byte of the virtual disk, counted from its start.
    VirtualOffset(u64)
}
unit! {
    /// A byte of a file, counted from its start.
    FileOffset(u64)
}
unit! {
    /// A byte inside one payload block: below 256 MiB.
    InBlock(u32)
}
unit! {
    /// The number of a payload block: below 2^26 (64 TiB in blocks of 1 MiB).
    BlockIndex(u32)
}
unit! {
    /// The number of a chunk, the span of one sector bitmap block.
    ChunkIndex(u32)
}
unit! {
    /// The position of an entry in the BAT, where sector bitmap entries are interleaved with payload entries (MS-VHDX 2.5).
    BatIndex(u32)
}

impl FileOffset {
    /// The byte `by` further on; `None` past the end of the 64-bit range.
    pub const fn checked_add(self, by: u64) -> Option<Self> {
        match self.0.checked_add(by) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// Where a payload block or a sector bitmap block starts in the file: a whole number of MiB, at least 1.
///
/// Invariant: never null and never unaligned, so "present but nowhere" has no spelling. Files above 2^32 MiB (4 EiB) are
/// beyond what this engine places.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHome(NonZeroU32);

impl BlockHome {
    /// The home at `mib` MiB; `None` for 0 and for numbers of MiB that no file reaches.
    pub fn from_mib(mib: u64) -> Option<Self> {
        u32::try_from(mib).ok().and_then(NonZeroU32::new).map(Self)
    }

    /// The distance from the start of the file in MiB.
    pub const fn mib(self) -> u64 {
        // Widening by `as` because `u64::from` is not const.
        self.0.get() as u64
    }

    /// The first byte.
    pub const fn start(self) -> FileOffset {
        FileOffset(self.mib() * MIB)
    }

    /// The byte `within` the block.
    pub const fn at(self, within: InBlock) -> FileOffset {
        FileOffset(self.mib() * MIB + within.0 as u64)
    }
}

impl fmt::Debug for BlockHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockHome({} MiB)", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_never_null_and_never_out_of_reach() {
        assert_eq!(BlockHome::from_mib(0), None);
        assert_eq!(BlockHome::from_mib((1 << 44) - 1), None);
        let home = BlockHome::from_mib(4).unwrap();
        assert_eq!(home.at(InBlock::new(5)).get(), 4 * MIB + 5);
    }
}

//! What every codec needs to look at bytes without trusting their number.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Fault, FormatError};
use crate::kind::Structure;
use crate::units::FileOffset;

/// A length in memory as the 64-bit number that file arithmetic is done in.
pub(super) fn len64(len: usize) -> u64 {
    u64::try_from(len).expect("no machine counts memory in more than 64 bits")
}

/// The first `needed` bytes and the rest.
pub(super) fn split(bytes: &[u8], needed: usize, structure: Structure, at: FileOffset) -> Result<(&[u8], &[u8]), FormatError> {
    bytes
        .split_at_checked(needed)
        .ok_or_else(|| FormatError::new(structure, at, Fault::Truncated { needed: len64(needed), available: len64(bytes.len()) }))
}

/// A wire structure seen in place at the start of `bytes`, and the rest.
pub(super) fn prefix<W>(bytes: &[u8], structure: Structure, at: FileOffset) -> Result<(&W, &[u8]), FormatError>
where
    W: FromBytes + KnownLayout + Immutable + Unaligned,
{
    W::ref_from_prefix(bytes)
        .map_err(|_| FormatError::new(structure, at, Fault::Truncated { needed: len64(size_of::<W>()), available: len64(bytes.len()) }))
}

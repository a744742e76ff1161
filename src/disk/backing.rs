//! What a writer asks of the parents: a floor above answers.

use super::error::DiskError;

/// What a disk shows where its own file holds nothing. For a disk without a parent: zeros.
pub(crate) trait Backing {
    /// Fills `buf` with what the parents show at `at`.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), DiskError>;

    /// Whether the parents are known to show nothing but zeros in the range, without reading data.
    fn is_zero(&self, at: u64, len: u64) -> Result<bool, DiskError>;
}

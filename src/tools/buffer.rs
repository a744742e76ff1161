//! Buffers whose bytes start at a page, and the search for zeros in them.

use crate::storage::PageBuffer;
use std::ops::Range;

/// The unit in which content is read and copied, in bytes. Small enough that what was read is still in the processor's cache when it
/// is looked at and written.
pub(crate) const CHUNK: usize = 1 << 20;

/// Zeros are looked for in units of this many bytes.
pub(crate) const GRAIN: usize = 4096;

/// One [`CHUNK`] that starts at a page boundary, as direct I/O and the kernel's copy loops like it.
#[derive(Debug)]
pub(crate) struct Buffer(PageBuffer);

impl Buffer {
    /// All zeros.
    pub(crate) fn new() -> Self {
        Self(PageBuffer::new(CHUNK))
    }

    /// The first `len` bytes.
    pub(crate) fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[..len.min(CHUNK)]
    }
}

/// Whether all bytes are zero.
///
/// Asked in steps of 512 bytes, each of which may end the search; a step is 32 bytes wide in two sums, which the compiler turns into
/// vector instructions without a branch inside the step.
pub fn is_zero(bytes: &[u8]) -> bool {
    const WIDE: usize = 32;
    let (steps, rest) = bytes.as_chunks::<512>();
    steps.iter().all(|step| {
        let (wide, _) = step.as_chunks::<WIDE>();
        let mut sum = [0_u8; WIDE];
        for part in wide {
            for (all, byte) in sum.iter_mut().zip(part) {
                *all |= byte;
            }
        }
        sum == [0; WIDE]
    }) && rest.iter().fold(0, |all, byte| all | byte) == 0
}

/// The stretches of `content` that are worth writing: whole grains that are not all zeros, neighbours together.
pub(crate) fn data_runs(content: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let grain = |at: usize| &content[at..(at + GRAIN).min(content.len())];
        while at < content.len() && is_zero(grain(at)) {
            at += GRAIN;
        }
        let start = at;
        while at < content.len() && !is_zero(grain(at)) {
            at += GRAIN;
        }
        let end = at.min(content.len());
        // The grain that ended the run is zeros: it need not be looked at again.
        at += GRAIN;
        (start < end).then_some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_whole() {
        let mut buffer = Buffer::new();
        assert_eq!(buffer.first(CHUNK).as_ptr().align_offset(4096), 0);
        assert_eq!((buffer.first(CHUNK).len(), buffer.first(7).len()), (CHUNK, 7));
    }

    #[test]
    fn one_bit_is_found_anywhere() {
        let mut bytes = vec![0; 1100];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..1100 {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn zeros_split_runs() {
        let runs = |content: &[u8]| data_runs(content).collect::<Vec<_>>();
        let mut content = vec![0; 4 * GRAIN + 10];
        assert!(runs(&content).is_empty());
        content[GRAIN + 5] = 1;
        content[2 * GRAIN] = 1;
        content[4 * GRAIN + 9] = 1;
        assert_eq!(runs(&content), [GRAIN..3 * GRAIN, 4 * GRAIN..4 * GRAIN + 10]);
        content[0] = 1;
        content[3 * GRAIN] = 1;
        let whole = 0..content.len();
        assert_eq!(runs(&content), [whole]);
    }
}

//! Memory that starts on a page.
//!
//! A copy whose target lies 16 bytes past a page start, which is where a large `Vec` begins, is several times slower on common
//! processors than one that lies on the start (`docs/bench/`), and direct I/O refuses it altogether. So everything here that
//! carries payload, the NBD server's replies included, lies in a [`PageBuffer`].

use std::ops::{Deref, DerefMut};

/// The alignment, in bytes.
const PAGE: usize = 4096;

/// A fixed number of bytes that start at a page boundary, zeros at first.
///
/// ```
/// let mut buffer = diffdisk::storage::PageBuffer::new(1 << 20);
/// assert_eq!(buffer.as_ptr().align_offset(4096), 0);
/// buffer[7] = 1;
/// assert_eq!((buffer.len(), buffer[7]), (1 << 20, 1));
/// ```
#[derive(Debug)]
pub struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    /// `len` bytes of zeros. What is never touched is left to the system.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self::over(vec![0; len + PAGE], len)
    }

    /// The same; `None` when there is no memory for it.
    #[must_use]
    pub fn try_new(len: usize) -> Option<Self> {
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(len.checked_add(PAGE)?).ok()?;
        bytes.resize(len + PAGE, 0);
        Some(Self::over(bytes, len))
    }

    /// `bytes` is not grown any more, so it stays where it is.
    fn over(bytes: Vec<u8>, len: usize) -> Self {
        // `align_offset` may decline to answer; alignment is a matter of speed.
        let start = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        Self { bytes, start, len }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for PageBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zero_and_whole() {
        for len in [0, 1, 4095, 4096, 1 << 20] {
            for buffer in [PageBuffer::new(len), PageBuffer::try_new(len).unwrap()] {
                assert_eq!((buffer.as_ptr().align_offset(PAGE), buffer.len()), (0, len));
                assert!(buffer.iter().all(|&byte| byte == 0));
            }
        }
        assert!(PageBuffer::try_new(usize::MAX).is_none() && PageBuffer::try_new(usize::MAX / 2).is_none());
    }
}

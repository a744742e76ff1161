//! Buffers whose bytes start at a page.

use diffdisk::storage::PageBuffer;

/// The unit in which content goes in and out.
pub const CHUNK: usize = 1 << 20;

/// One [`CHUNK`] that starts at a page boundary, as direct I/O and the kernel's copy loops like it.
#[derive(Debug)]
pub struct Buffer(PageBuffer);

impl Buffer {
    /// All zeros.
    pub fn new() -> Self {
        Self(PageBuffer::new(CHUNK))
    }

    /// The first `len` bytes.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.0[..len.min(CHUNK)]
    }
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
}

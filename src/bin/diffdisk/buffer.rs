//! Buffers whose bytes start at a page.

/// The unit in which content goes in and out.
pub const CHUNK: usize = 1 << 20;

const PAGE: usize = 4096;

/// One [`CHUNK`] that starts at a page boundary, as direct I/O and the kernel's copy loops like it.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// All zeros.
    pub fn new() -> Self {
        let bytes = vec![0; CHUNK + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        // `align_offset` may decline to answer; alignment is a matter of speed.
        let start = if start < PAGE { start } else { 0 };
        Self { bytes, start }
    }

    /// The first `len` bytes.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..][..len.min(CHUNK)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_whole() {
        let mut buffer = Buffer::new();
        assert_eq!(buffer.first(CHUNK).as_ptr().align_offset(PAGE), 0);
        assert_eq!((buffer.first(CHUNK).len(), buffer.first(7).len()), (CHUNK, 7));
    }
}

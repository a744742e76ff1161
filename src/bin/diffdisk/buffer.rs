//! Buffers whose bytes start at a page, and the search for zeros in them.

/// The unit in which content is read, hashed and copied.
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

/// Whether all bytes are zero. In steps that the compiler turns into wide instructions, each of which may end the search.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|step| step.iter().fold(0, |sum, byte| sum | byte) == 0)
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

    #[test]
    fn one_bit_is_found_anywhere() {
        let mut bytes = vec![0; 1000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in [0, 255, 256, 999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}

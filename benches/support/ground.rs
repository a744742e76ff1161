//! What every measurement needs: a page-aligned buffer and a place for files.

use diffdisk::storage::PageBuffer;
use std::path::PathBuf;
use tempfile::TempDir;

/// The unit of most measurements.
pub const PAGE: usize = 4096;

/// A buffer that starts on a page, filled with noise.
pub struct Buffer(PageBuffer);

impl Buffer {
    pub fn new(len: usize) -> Self {
        let mut bytes = PageBuffer::new(len);
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for byte in &mut *bytes {
            state = next_random(state);
            *byte = state as u8;
        }
        Self(bytes)
    }

    pub fn get(&self) -> &[u8] {
        &self.0
    }

    pub fn get_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn next_random(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

/// `DIFFDISK_BENCH_DIR`, a memory file system, or the usual place for temporary files, in this order.
pub fn scratch_dir() -> TempDir {
    let chosen = std::env::var_os("DIFFDISK_BENCH_DIR").map(PathBuf::from);
    let memory = PathBuf::from("/dev/shm");
    match chosen.or_else(|| memory.is_dir().then_some(memory)) {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .expect("a directory for the measurements")
}

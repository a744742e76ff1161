//! Storage in memory: sparse, growing page by page.

use super::{Storage, StorageId, SyncSite};
use crate::sync::process::AtomicU64;
use crate::sync::{Ordering, RwLock};
use std::collections::BTreeMap;
use std::io;

const CHUNK: u64 = 64 << 10;

/// A file that lives in memory. Holes cost nothing, so a 64 TiB disk fits.
///
/// ```
/// use diffdisk::storage::{MemoryStorage, Storage};
/// let file = MemoryStorage::new();
/// file.write_at(b"abc", 1 << 40)?;
/// assert_eq!(file.len()?, (1 << 40) + 3);
/// assert!(file.allocated()? < 1 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryStorage {
    id: StorageId,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    len: u64,
    chunks: BTreeMap<u64, Box<[u8]>>,
}

impl MemoryStorage {
    /// An empty file.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let object = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id: StorageId { device: u64::MAX, object }, inner: RwLock::new(Inner::default()) }
    }

    /// A file with this content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let file = Self::new();
        {
            let mut inner = file.inner.write();
            inner.write(bytes, 0);
        }
        file
    }

    /// The whole content. Meant for small files.
    pub fn to_bytes(&self) -> Vec<u8> {
        let inner = self.inner.read();
        let mut out = vec![0; usize::try_from(inner.len).expect("a small file")];
        inner.read(&mut out, 0);
        out
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    fn read(&self, buf: &mut [u8], at: u64) -> usize {
        let n = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let pos = at + done as u64;
            let (chunk, within) = (pos / CHUNK, (pos % CHUNK) as usize);
            let part = (CHUNK as usize - within).min(n - done);
            match self.chunks.get(&chunk) {
                Some(bytes) => buf[done..done + part].copy_from_slice(&bytes[within..within + part]),
                None => buf[done..done + part].fill(0),
            }
            done += part;
        }
        n
    }

    fn write(&mut self, buf: &[u8], at: u64) {
        let mut done = 0;
        while done < buf.len() {
            let pos = at + done as u64;
            let (chunk, within) = (pos / CHUNK, (pos % CHUNK) as usize);
            let part = (CHUNK as usize - within).min(buf.len() - done);
            let bytes = self.chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK as usize].into());
            bytes[within..within + part].copy_from_slice(&buf[done..done + part]);
            done += part;
        }
        self.len = self.len.max(at + buf.len() as u64);
    }

    fn zero(&mut self, at: u64, len: u64) {
        let end = at + len;
        let (first, last) = (at / CHUNK, end.div_ceil(CHUNK));
        let touched: Vec<u64> = self.chunks.range(first..last).map(|(&k, _)| k).collect();
        for chunk in touched {
            let (start, stop) = (chunk * CHUNK, (chunk + 1) * CHUNK);
            if at <= start && end >= stop {
                self.chunks.remove(&chunk);
            } else if let Some(bytes) = self.chunks.get_mut(&chunk) {
                bytes[(at.max(start) - start) as usize..(end.min(stop) - start) as usize].fill(0);
            }
        }
    }
}

impl Storage for MemoryStorage {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        Ok(self.inner.read().read(buf, at))
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        if at.checked_add(buf.len() as u64).is_none() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.inner.write().write(buf, at);
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.read().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner.write();
        if len < inner.len {
            let cut = inner.len - len;
            inner.zero(len, cut);
        }
        inner.len = len;
        Ok(())
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let mut inner = self.inner.write();
        let end = at.saturating_add(len).min(inner.len);
        if at < end {
            inner.zero(at, end - at);
        }
        Ok(())
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let inner = self.inner.read();
        let Some((&first, _)) = inner.chunks.range(at / CHUNK..).next() else { return Ok(None) };
        let mut last = first;
        while inner.chunks.contains_key(&(last + 1)) {
            last += 1;
        }
        let (start, end) = (at.max(first * CHUNK), ((last + 1) * CHUNK).min(inner.len));
        Ok((start < end).then_some((start, end)))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.inner.read().chunks.len() as u64 * CHUNK)
    }

    fn id(&self) -> StorageId {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_read_as_zeros_and_a_cut_tail_does_not_come_back() {
        let file = MemoryStorage::new();
        file.write_at(&[7; 300_000], 10).unwrap();
        file.punch(100_000, 100_000).unwrap();
        file.set_len(250_000).unwrap();
        file.set_len(400_000).unwrap();
        let all = file.to_bytes();
        assert!(all[10..100_000].iter().all(|&b| b == 7));
        assert!(all[100_000..200_000].iter().all(|&b| b == 0));
        assert!(all[200_000..250_000].iter().all(|&b| b == 7));
        assert!(all[250_000..].iter().all(|&b| b == 0));
    }

    #[test]
    fn next_data_skips_holes() {
        let file = MemoryStorage::new();
        file.write_at(&[1], 5 * CHUNK).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some((5 * CHUNK, 5 * CHUNK + 1)));
        assert_eq!(file.next_data(6 * CHUNK).unwrap(), None);
    }
}

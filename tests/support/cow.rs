//! Storage in memory whose copies cost next to nothing: pages are shared until somebody writes to one.
//!
//! The model test looks at a copy of every file after every few operations; copying megabytes each time would leave no time for
//! operations.

use diffdisk::storage::{Storage, StorageId, SyncSite};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const PAGE: u64 = 16 << 10;

#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

#[derive(Debug)]
pub struct CowStorage {
    id: u64,
    content: Mutex<Content>,
}

impl CowStorage {
    pub fn new() -> Arc<Self> {
        Self::with(Content::default())
    }

    fn with(content: Content) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), content: Mutex::new(content) })
    }

    /// Another file with the same content as of now.
    pub fn copy(&self) -> Arc<Self> {
        Self::with(self.content.lock().unwrap().clone())
    }

    /// Whether two files hold the same bytes. Shared pages are not looked at.
    pub fn same_as(&self, other: &Self) -> bool {
        let (a, b) = (self.content.lock().unwrap().clone(), other.content.lock().unwrap().clone());
        let zeros = |page: Option<&Arc<[u8; PAGE as usize]>>| page.is_none_or(|p| p.iter().all(|&x| x == 0));
        a.len == b.len
            && a.pages.keys().chain(b.pages.keys()).all(|key| match (a.pages.get(key), b.pages.get(key)) {
                (Some(x), Some(y)) => Arc::ptr_eq(x, y) || x == y,
                (x, y) => zeros(x) && zeros(y),
            })
    }
}

fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < len).then(|| {
            let pos = at + done as u64;
            let within = (pos % PAGE) as usize;
            let part = (PAGE as usize - within).min(len - done);
            done += part;
            (pos / PAGE, within, part, done - part)
        })
    })
}

impl Content {
    fn zero(&mut self, at: u64, end: u64) {
        let touched: Vec<u64> = self.pages.range(at / PAGE..end.div_ceil(PAGE)).map(|(&k, _)| k).collect();
        for key in touched {
            let (start, stop) = (at.max(key * PAGE), end.min((key + 1) * PAGE));
            if stop - start == PAGE {
                self.pages.remove(&key);
            } else if let Some(page) = self.pages.get_mut(&key) {
                Arc::make_mut(page)[(start - key * PAGE) as usize..(stop - key * PAGE) as usize].fill(0);
            }
        }
    }
}

impl Storage for CowStorage {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let content = self.content.lock().unwrap();
        let n = content.len.saturating_sub(at).min(buf.len() as u64) as usize;
        for (key, within, part, done) in pieces(at, n) {
            match content.pages.get(&key) {
                Some(page) => buf[done..done + part].copy_from_slice(&page[within..within + part]),
                None => buf[done..done + part].fill(0),
            }
        }
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        let mut content = self.content.lock().unwrap();
        for (key, within, part, done) in pieces(at, buf.len()) {
            let page = content.pages.entry(key).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + part].copy_from_slice(&buf[done..done + part]);
        }
        content.len = content.len.max(at + buf.len() as u64);
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        let old = content.len;
        if len < old {
            content.zero(len, old);
        }
        content.len = len;
        Ok(())
    }

    fn sync(&self, _site: SyncSite) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        let end = at.saturating_add(len).min(content.len);
        if at < end {
            content.zero(at, end);
        }
        Ok(())
    }

    fn id(&self) -> StorageId {
        StorageId { device: 77, object: self.id }
    }
}

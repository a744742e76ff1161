//! A directory and files that fail at the k-th call of any of them, and files that count what is read.

use diffdisk::storage::sim::SimWorld;
use diffdisk::storage::{Storage, StorageId, SyncSite, Volume};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    Once,
    FromThen,
}

/// What all files of one rig share.
#[derive(Debug)]
struct Fuse {
    at: u64,
    repeat: Repeat,
    calls: AtomicU64,
    healed: AtomicBool,
    hit: AtomicBool,
}

impl Fuse {
    fn burn(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = call == self.at || (self.repeat == Repeat::FromThen && call > self.at);
        if fails && !self.healed.load(Ordering::SeqCst) {
            self.hit.store(true, Ordering::SeqCst);
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Faulty {
    pub world: SimWorld,
    fuse: Arc<Fuse>,
}

impl Faulty {
    pub fn new(at: u64, repeat: Repeat) -> Self {
        let (calls, healed, hit) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        Self { world: SimWorld::new(at), fuse: Arc::new(Fuse { at, repeat, calls, healed, hit }) }
    }

    pub fn wrap(&self, file: &Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(FaultyFile { inner: Arc::clone(file), fuse: Arc::clone(&self.fuse) })
    }

    pub fn wrap_all(&self, files: &[Arc<dyn Storage>]) -> Vec<Arc<dyn Storage>> {
        files.iter().map(|file| self.wrap(file)).collect()
    }

    /// Nothing fails from now on; whether anything did.
    pub fn heal(&self) -> bool {
        self.fuse.healed.store(true, Ordering::SeqCst);
        self.fuse.hit.load(Ordering::SeqCst)
    }
}

impl Volume for Faulty {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        self.fuse.burn()?;
        Ok(self.wrap(&self.world.create_new(name)?))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        self.fuse.burn()?;
        self.world.rename(from, to, replace)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.fuse.burn()?;
        self.world.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fuse.burn()?;
        self.world.sync_dir()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.fuse.burn()?;
        self.world.list()
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn Storage>,
    fuse: Arc<Fuse>,
}

impl Storage for FaultyFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.fuse.burn()?;
        self.inner.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.fuse.burn()?;
        self.inner.write_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.fuse.burn()?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fuse.burn()?;
        self.inner.set_len(len)
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.fuse.burn()?;
        self.inner.sync(site)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.fuse.burn()?;
        self.inner.punch(at, len)
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.fuse.burn()?;
        self.inner.next_data(at)
    }

    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

/// Counts the bytes that reads return.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Storage>,
    read: Arc<AtomicU64>,
}

impl Counted {
    pub fn on(file: &Arc<dyn Storage>, read: &Arc<AtomicU64>) -> Arc<dyn Storage> {
        Arc::new(Self { inner: Arc::clone(file), read: Arc::clone(read) })
    }
}

impl Storage for Counted {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let n = self.inner.read_at(buf, at)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.inner.write_at(buf, at)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.inner.sync(site)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.inner.punch(at, len)
    }

    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.inner.next_data(at)
    }

    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

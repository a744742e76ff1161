//! A plain [`Storage`] as a disk: byte n of the file is byte n of the disk.

use super::device::{BlockDevice, DeviceExtent, ExtentClass};
use crate::storage::{self, Storage, StorageError, SyncSite};
use std::io;
use std::ops::ControlFlow;

/// Exports a storage as it is, without any format: raw images, and memory in tests and benches.
///
/// The size is taken once and never changes. Holes of the storage are holes of the disk, zeroing and trimming make holes.
#[derive(Debug)]
pub struct StorageDevice<S> {
    storage: S,
    size: u64,
    writable: bool,
}

impl<S: Storage> StorageDevice<S> {
    /// A writable disk as large as the storage is now.
    ///
    /// # Errors
    /// The storage does not tell its length.
    pub fn new(storage: S) -> io::Result<Self> {
        let size = storage.len()?;
        Ok(Self { storage, size, writable: true })
    }

    /// Whether changes are allowed.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }
}

fn plain(error: StorageError) -> io::Error {
    io::Error::new(error.source.kind(), error)
}

impl<S: Storage> BlockDevice for StorageDevice<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        storage::read_zero_extended(&self.storage, buf, offset).map_err(plain)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        storage::write_all(&self.storage, buf, offset).map_err(plain)
    }

    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> io::Result<()> {
        if keep_space {
            storage::write_zeros(&self.storage, offset, len).map_err(plain)
        } else {
            storage::punch_or_zero(&self.storage, offset, len).map_err(plain)
        }
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.storage.punch(offset, len) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.sync(SyncSite::ExportFlush)
    }

    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (start, stop) = match self.storage.next_data(at)? {
                Some((start, stop)) if start < end => (start.max(at), stop.min(end)),
                _ => (end, end),
            };
            if start > at {
                let hole = DeviceExtent { offset: at, len: start - at, class: ExtentClass::Hole, depth: 0 };
                if visit(hole).is_break() {
                    return Ok(());
                }
            }
            if stop > start {
                let data = DeviceExtent { offset: start, len: stop - start, class: ExtentClass::Data, depth: 0 };
                if visit(data).is_break() {
                    return Ok(());
                }
            }
            at = stop.max(start);
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::storage::sim::{CrashOptions, CrashWalk, SimWorld};

    /// Whether what was written before a flush is there after every power cut that follows it.
    fn lasts(options: CrashOptions) -> bool {
        let world = SimWorld::new(7);
        let file = world.create("raw");
        file.set_len(4096).expect("a simulated length");
        world.forget();
        let file = std::sync::Arc::into_inner(world.open("raw").expect("it is there")).expect("one handle");
        let device = StorageDevice::new(file).expect("a device");
        device.write_at(&[7; 512], 1024).expect("a write");
        device.flush().expect("a flush");
        let trace = world.trace();
        let (mut walk, mut all) = (CrashWalk::new(&trace, options), true);
        walk.go_to(trace.events.len());
        walk.for_each_choice(&mut |_, image| {
            let mut bytes = [0; 512];
            let file = image.boot(false).open("raw").expect("it is there");
            all &= file.read_at(&mut bytes, 1024).is_ok() && bytes == [7; 512];
            all
        });
        all
    }

    #[test]
    fn a_flush_of_a_raw_disk_lasts() {
        assert!(lasts(CrashOptions::default()));
        let blind = CrashOptions { no_op: [SyncSite::ExportFlush].into(), ..CrashOptions::default() };
        assert!(!lasts(blind), "nothing goes wrong without the sync");
    }
}

//! Batches: the same bytes as one by one, in fewer calls.

use diffdisk::storage::sim::Rng;
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{CreateOptions, Disk, DiskError, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

/// Counts calls, vectored ones as one, and cuts vectored ones short where told to.
#[derive(Debug, Default)]
struct Counting {
    inner: MemoryStorage,
    calls: AtomicU64,
    short: AtomicU64,
}

impl Counting {
    fn calls(&self) -> u64 {
        self.calls.swap(0, Ordering::Relaxed)
    }

    fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed) > 0 && self.short.fetch_sub(1, Ordering::Relaxed) > 0
    }
}

impl Storage for Counting {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.write_at(buf, at)
    }
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], at: u64) -> io::Result<usize> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let many = if self.is_short() { 1 } else { bufs.len() };
        self.inner.read_vectored_at(&mut bufs[..many], at)
    }
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let many = if self.is_short() { 1 } else { bufs.len() };
        self.inner.write_vectored_at(&bufs[..many], at)
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
    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

/// A base whose every sector says where it is, and an empty child of it.
fn pair() -> (Arc<Counting>, Arc<Counting>, Disk) {
    let (base, child) = (Arc::new(Counting::default()), Arc::new(Counting::default()));
    let disk = Disk::create_on(base.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)).unwrap();
    let all: Vec<u8> = (0..SIZE / 512).flat_map(|sector| [sector as u8 ^ (sector >> 8) as u8; 512]).collect();
    disk.write_at(&all, 0).unwrap();
    disk.close().unwrap();
    let disk = Disk::create_child_on(child.clone(), vec![base.clone()], &CreateOptions::child().block_size(MIB)).unwrap();
    (base, child, disk)
}

#[test]
fn a_batch_does_what_its_requests_do() {
    let (_base, child, disk) = pair();
    let mut plain = vec![0; SIZE as usize];
    disk.read_at(&mut plain, 0).unwrap();
    let mut rng = Rng::new(11);
    for round in 0..300_u64 {
        // Mostly neighbours of each other, in any order, sometimes one over the other, at any alignment.
        let start = rng.below(SIZE - 200_000);
        let requests: Vec<(u64, Vec<u8>)> = (0..1 + rng.below(20))
            .map(|i| {
                let len = if rng.below(3) == 0 { rng.below(6000) } else { 4096 };
                let at = if rng.below(4) == 0 { start + rng.below(100_000) } else { start / 4096 * 4096 + (i * 7 % 20) * 4096 };
                (at, vec![rng.below(256) as u8; len as usize])
            })
            .collect();
        child.short.store(rng.below(3), Ordering::Relaxed);
        if round % 3 > 0 {
            let batch: Vec<(u64, &[u8])> = requests.iter().map(|(at, data)| (*at, &data[..])).collect();
            disk.write_batch(&batch).unwrap();
            for (at, data) in &requests {
                plain[*at as usize..*at as usize + data.len()].copy_from_slice(data);
            }
        }
        let mut got = requests.clone();
        let mut batch: Vec<(u64, &mut [u8])> = got.iter_mut().map(|(at, buf)| (*at, &mut buf[..])).collect();
        disk.read_batch(&mut batch).unwrap();
        for (at, buf) in &got {
            assert!(buf[..] == plain[*at as usize..*at as usize + buf.len()], "round {round}, {} bytes at {at}", buf.len());
        }
    }
    let mut all = vec![0; SIZE as usize];
    disk.read_at(&mut all, 0).unwrap();
    assert!(all == plain);
    disk.flush().unwrap();
    assert!(disk.check().unwrap().errors.is_empty());
    disk.close().unwrap();
}

#[test]
fn neighbours_travel_together_whatever_their_order() {
    let (base, child, disk) = pair();
    let data = vec![7; 4096];
    for page in 0..64 {
        disk.write_at(&data, page * 4096).unwrap();
    }
    let mut buffers = vec![[0_u8; 4096]; 64];
    let _ = (base.calls(), child.calls());
    let mut batch: Vec<(u64, &mut [u8])> =
        buffers.iter_mut().enumerate().map(|(i, buf)| ((i as u64 * 37 % 64) * 4096, &mut buf[..])).collect();
    disk.read_batch(&mut batch).unwrap();
    assert_eq!((base.calls(), child.calls()), (0, 1), "64 reads of neighbouring pages are one");
    let batch: Vec<(u64, &[u8])> = (0..64).map(|i| ((i * 37 % 64) * 4096, &data[..])).collect();
    disk.write_batch(&batch).unwrap();
    assert_eq!((base.calls(), child.calls()), (0, 1), "and so are 64 rewrites");
    // Half of them are the parent's: one run in each file. (The first read of the parent also reads a page of its BAT.)
    disk.read_at(&mut buffers[0], 70 * 4096).unwrap();
    let _ = (base.calls(), child.calls());
    let mut batch: Vec<(u64, &mut [u8])> = buffers.iter_mut().enumerate().map(|(i, buf)| ((32 + i as u64) * 4096, &mut buf[..])).collect();
    disk.read_batch(&mut batch).unwrap();
    assert_eq!((base.calls(), child.calls()), (1, 1));
}

#[test]
fn a_request_outside_of_the_disk_fails_the_batch_before_anything_is_done() {
    let (_base, child, disk) = pair();
    child.calls();
    let (mut a, mut b) = ([1_u8; 512], [1_u8; 512]);
    let outside = disk.read_batch(&mut [(0, &mut a), (SIZE - 511, &mut b)]);
    assert!(matches!(outside, Err(DiskError::OutOfRange { .. })), "{outside:?}");
    let outside = disk.write_batch(&[(0, &a), (u64::MAX, &b)]);
    assert!(matches!(outside, Err(DiskError::OutOfRange { .. })), "{outside:?}");
    assert_eq!(child.calls(), 0);
    disk.read_batch(&mut []).unwrap();
    disk.write_batch(&[]).unwrap();
    disk.write_batch(&[(SIZE, &[])]).unwrap();
    assert_eq!(child.calls(), 0, "nothing is nothing");
    drop(disk);
    let disk = Disk::open_on(child, vec![_base], &OpenOptions::new()).unwrap();
    assert!(matches!(disk.write_batch(&[]), Err(DiskError::ReadOnly)));
}

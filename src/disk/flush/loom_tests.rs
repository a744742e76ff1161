//! The writer itself, on a small disk, in all interleavings of two threads: real look-ups, real commits, a file whose every call is a
//! place to switch at. What a flush promised is held against what is durable.

use super::*;
use crate::disk::backing::Backing;
use crate::disk::layer::{Answer, Layer};
use crate::storage::Storage;
use crate::sync::loom_tests::{Quiet, made_once, spawn, try_all};
use crate::sync::{Arc, AtomicBool};
use crate::units::VirtualOffset;
use crate::{CreateOptions, Disk};
use std::collections::BTreeMap;

const SECTOR: u64 = 512;

/// A parent that reads as `P` everywhere.
struct Parent;

impl Backing for Parent {
    fn read(&self, buf: &mut [u8], _: u64) -> Result<(), DiskError> {
        buf.fill(b'P');
        Ok(())
    }

    fn is_zero(&self, _: u64, _: u64) -> Result<bool, DiskError> {
        Ok(false)
    }
}

/// A child of two blocks. With `touched` the first sectors of block 0 are there already.
fn child(touched: u64) -> Quiet {
    made_once(move || {
        let parent = Arc::new(Quiet::new());
        Disk::create_on(parent.clone(), &CreateOptions::dynamic(2 * MIB).block_size(MIB)).expect("a parent").close().expect("closes");
        let file = Arc::new(Quiet::new());
        let disk = Disk::create_child_on(file.clone(), vec![parent], &CreateOptions::child().block_size(MIB)).expect("a child");
        for sector in 0..touched {
            disk.write_at(&[b'o'; SECTOR as usize], sector * SECTOR).expect("a write");
        }
        disk.close().expect("closes");
        file.copy()
    })
}

fn open(file: &Arc<Quiet>) -> Writer {
    let layer = Layer::open(Arc::clone(file) as Arc<dyn Storage>, None).expect("it opens");
    let writer = Writer::new(Arc::new(layer));
    writer.begin().expect("the session begins");
    writer
}

fn put(writer: &Writer, sector: u64, byte: u8) {
    writer.write(&Parent, &[byte; SECTOR as usize], VirtualOffset::new(sector * SECTOR)).expect("a write");
}

/// The first bytes of sectors, as somebody sees them who opens what is durable now.
fn durable(file: &Quiet, sectors: &[u64]) -> BTreeMap<u64, u8> {
    let layer = Layer::open(Arc::new(file.durable()) as Arc<dyn Storage>, None).expect("what is durable opens");
    let byte = |sector: u64| match layer.answer(VirtualOffset::new(sector * SECTOR), SECTOR).expect("an answer").0 {
        Answer::Data(at) => {
            let mut byte = [0];
            storage::read_zero_extended(&*layer.file, &mut byte, at.get()).expect("a read");
            byte[0]
        }
        Answer::Zero => 0,
        Answer::Parent => b'P',
    };
    sectors.iter().map(|&sector| (sector, byte(sector))).collect()
}

/// Two writers touch one block for the first time: one block, both writes, and the next flush hardens them.
#[test]
fn loom_first_touch_by_two() {
    let image = child(0);
    try_all("first touch of one block by two writers", move || {
        let file = Arc::new(image.copy());
        let writer = Arc::new(open(&file));
        let before = writer.space.lock().end();
        let other = Arc::clone(&writer);
        let other = spawn(move || put(&other, 1, b'b'));
        put(&writer, 0, b'a');
        other.join().expect("the other writer ends");
        // One block and the chunk's bitmap.
        assert_eq!(writer.space.lock().end() - before, 2, "two writers, one block");
        writer.flush().expect("a flush");
        assert_eq!(durable(&file, &[0, 1, 2]), [(0, b'a'), (1, b'b'), (2, b'P')].into());
    });
}

/// A bit that is set while a commit is frozen is in that commit or marked for the next one.
#[test]
fn loom_freeze_and_new_bits() {
    let image = child(1);
    try_all("freeze and new bits", move || {
        let file = Arc::new(image.copy());
        let writer = Arc::new(open(&file));
        let other = Arc::clone(&writer);
        let other = spawn(move || put(&other, 1, b'b'));
        writer.flush().expect("a flush");
        other.join().expect("the other writer ends");
        writer.flush().expect("another flush");
        assert_eq!(durable(&file, &[0, 1, 2]), [(0, b'o'), (1, b'b'), (2, b'P')].into());
    });
}

/// Two threads rewrite and flush: whoever has the leader's seat, a flush that returns has its caller's bytes down.
#[test]
fn loom_leader_hand_over() {
    let image = child(2);
    try_all("leader hand-over", move || {
        let file = Arc::new(image.copy());
        let writer = Arc::new(open(&file));
        let other = (Arc::clone(&writer), Arc::clone(&file));
        let other = spawn(move || {
            put(&other.0, 1, b'b');
            other.0.flush().expect("a flush");
            assert_eq!(durable(&other.1, &[1])[&1], b'b', "the other one's flush returned too early");
        });
        put(&writer, 0, b'a');
        writer.flush().expect("a flush");
        assert_eq!(durable(&file, &[0])[&0], b'a', "a flush returned too early");
        other.join().expect("the other one ends");
    });
}

/// The device goes while two flush: no flush returns that hardened nothing, and who comes later is told why.
#[test]
fn loom_latch_and_flush() {
    let image = child(2);
    try_all("latch and flush", move || {
        let file = Arc::new(image.copy());
        let writer = Arc::new(open(&file));
        file.fail_after(0);
        let failed = Arc::new(AtomicBool::new(false));
        let other = (Arc::clone(&writer), Arc::clone(&failed));
        let other = spawn(move || {
            let known = other.1.load(Ordering::Acquire);
            match other.0.write(&Parent, &[b'b'; SECTOR as usize], VirtualOffset::new(SECTOR)) {
                Ok(()) => assert!(!known, "a write after a flush was known to have failed"),
                Err(e) => assert!(matches!(e, DiskError::Latched { .. }), "{e}"),
            }
            assert!(other.0.flush().is_err(), "a flush returned, and nothing is durable any more");
        });
        put(&writer, 0, b'a');
        assert!(writer.flush().is_err(), "a flush returned, and the device is gone");
        failed.store(true, Ordering::Release);
        assert!(matches!(writer.flush(), Err(DiskError::Latched { .. })));
        other.join().expect("the other one ends");
    });
}

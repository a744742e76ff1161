//! The lock-free protocols of the mapping, in all interleavings of two or three threads. What each proves is at its head; which
//! weakening of the code it notices stands in `docs/design/0024-interleavings.md`.

use super::bat::{BatTable, Fences};
use super::bitmap::{BitmapTable, PageSource};
use super::quarantine::Quarantine;
use crate::format::PayloadState;
use crate::geometry::Geometry;
use crate::storage::Storage;
use crate::sync::loom_tests::{Place, Quiet, spawn, try_all};
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::units::{BlockHome, BlockIndex, ChunkIndex, FileOffset, MIB};

const BLOCK: BlockIndex = BlockIndex::new(0);
const CHUNK: ChunkIndex = ChunkIndex::new(0);

fn home() -> BlockHome {
    BlockHome::from_mib(9).expect("a home")
}

fn table() -> BatTable {
    let geometry = Geometry::new(2 * MIB, MIB, 512).expect("a geometry");
    BatTable::new(FileOffset::new(MIB), geometry, true, Fences { taken: Vec::new() }, 64 * MIB)
}

/// Who sees an entry sees the payload behind it, whoever of the two loads the page first.
#[test]
fn loom_publish_and_load() {
    try_all("publish and load", || {
        let shared = Arc::new((table(), Place::new(), Quiet::new()));
        let writer = Arc::clone(&shared);
        let writer = spawn(move || {
            let (table, payload, file) = &*writer;
            payload.change();
            let _ = table.payload(BLOCK, file as &dyn Storage).expect("a page of zeros");
            let index = Geometry::new(2 * MIB, MIB, 512).expect("a geometry").bat_index(BLOCK);
            table.store(index, PayloadState::FullyPresent(home()).encode());
        });
        let (table, payload, file) = &*shared;
        match table.payload(BLOCK, file).expect("a sound page") {
            PayloadState::FullyPresent(at) => {
                assert_eq!(at, home());
                payload.look();
            }
            state => assert_eq!(state, PayloadState::NotPresent),
        }
        writer.join().expect("the writer ends");
    });
}

/// Who sees a bit sees the sector behind it; two writers of one word lose none of each other's bits.
#[test]
fn loom_bits_and_runs() {
    try_all("bits and runs", || {
        let shared = Arc::new((BitmapTable::new(1), [Place::new(), Place::new()], Quiet::new()));
        let (bits, _, file) = &*shared;
        bits.page(0, file, || Ok(PageSource::Fresh)).expect("a fresh page");
        let writers = [0, 1].map(|sector: u32| {
            let shared = Arc::clone(&shared);
            spawn(move || {
                let (bits, sectors, _) = &*shared;
                sectors[sector as usize].change();
                bits.fill(CHUNK, sector, 1, true, |_, _| {});
            })
        });
        let (bits, sectors, file) = &*shared;
        let present = |sector: u32| bits.run(CHUNK, sector, 1, file, || Ok(home())).expect("a loaded page").present;
        for sector in 0..2 {
            if present(sector) {
                sectors[sector as usize].look();
            }
        }
        writers.into_iter().for_each(|writer| writer.join().expect("a writer ends"));
        assert!(present(0) && present(1), "a bit is lost");
    });
}

/// A writer with a ticket and the one who gets the space afterwards are never in it at once.
#[test]
fn loom_quarantine_and_tickets() {
    try_all("quarantine and tickets", || {
        let shared = Arc::new((Quarantine::new(), AtomicU64::new(1), Place::new()));
        let writers = [(), ()].map(|()| {
            let shared = Arc::clone(&shared);
            spawn(move || {
                let (quarantine, mapped, _) = &*shared;
                let ticket = quarantine.enter();
                let found = mapped.load(Ordering::Acquire) == 1;
                if found {
                    shared.2.look(); // two old writers may meet; the new owner may not meet them
                }
                drop(ticket);
            })
        });
        let (quarantine, mapped, space) = &*shared;
        mapped.store(0, Ordering::Release);
        let given_up = quarantine.epoch();
        if (0..3).any(|_| quarantine.advance() > given_up) {
            space.change();
        }
        writers.into_iter().for_each(|writer| writer.join().expect("a writer ends"));
        assert!((0..3).any(|_| quarantine.advance() > given_up), "with all tickets gone space comes free");
    });
}

/// A reader without a ticket that saw the new owner's bytes sees the count of reuses move, and reads again.
///
/// Written when it failed: the count was moved, and compared again, by `SeqCst` accesses alone, which say nothing about the bytes
/// between them. A processor with weak ordering may show the new owner's bytes first, and answer the second look at the count early.
/// Two fences order them now. (Loads are relaxed here because those of a file are whatever the kernel makes of them.)
#[test]
fn loom_reuse_and_readers() {
    const OLD: u64 = 1;
    const NEW: u64 = 2;
    try_all("reuse and readers", || {
        let shared = Arc::new((Quarantine::new(), AtomicU64::new(1), AtomicU64::new(OLD)));
        let owner = Arc::clone(&shared);
        let owner = spawn(move || {
            let (quarantine, mapped, space) = &*owner;
            mapped.store(0, Ordering::Release);
            let given_up = quarantine.epoch();
            if (0..3).any(|_| quarantine.advance() > given_up) {
                quarantine.count_reuse();
                space.store(NEW, Ordering::Relaxed);
            }
        });
        // As `Disk::read_at` does it.
        let (quarantine, mapped, space) = &*shared;
        let before = quarantine.reuses();
        let seen = (mapped.load(Ordering::Relaxed) == 1).then(|| space.load(Ordering::Relaxed));
        if quarantine.none_since(before) {
            assert!(seen.is_none_or(|bytes| bytes == OLD), "another block's bytes, and nobody noticed");
        } else {
            let _ticket = quarantine.enter();
            let seen = (mapped.load(Ordering::Relaxed) == 1).then(|| space.load(Ordering::Relaxed));
            assert_eq!(seen, None, "who saw the reuse sees that the block is gone");
        }
        owner.join().expect("the owner ends");
    });
}

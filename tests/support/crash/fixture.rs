//! The disks the scripts start from, made once and forked for each script.

use super::ledger::Runs;
use super::run::{Parents, Run};
use super::script::{Kind, MIB, Op, SIZE};
use super::value::{PIECE, Value};
use diffdisk::storage::sim::{Class, FileId, Fixed, SimStorage, SimWorld};
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{CreateOptions, Disk};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The file name of the disk under test.
pub const LEAF: &str = "leaf.vhdx";

/// A parent that counts every attempt to change it (promise 6: there is none).
#[derive(Debug)]
pub struct Sealed {
    bytes: MemoryStorage,
    attempts: AtomicU64,
}

impl Sealed {
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    fn refuse<T>(&self) -> io::Result<T> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl Storage for Sealed {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.bytes.read_at(buf, at)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        self.refuse()
    }
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        self.refuse()
    }
    fn sync(&self, _: SyncSite) -> io::Result<()> {
        self.refuse()
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        self.refuse()
    }
    fn id(&self) -> StorageId {
        self.bytes.id()
    }
}

/// A prepared disk: block 0 has its first 64 KiB, block 4 is full, the rest is untouched (a wide one is empty); closed and clean.
pub struct Fixture {
    pub kind: Kind,
    pub world: SimWorld,
    pub parents: Parents,
    pub sealed: Option<Arc<Sealed>>,
    pub content: Arc<Runs>,
}

pub fn options(kind: Kind) -> CreateOptions {
    match kind {
        Kind::Dynamic | Kind::Wide => CreateOptions::dynamic(kind.size()),
        Kind::Child => CreateOptions::child(),
    }
    .block_size(MIB)
    .log_size(MIB)
}

fn sealed_parent() -> Arc<Sealed> {
    let bytes = Arc::new(MemoryStorage::new());
    let disk = Disk::create_on(bytes.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)).expect("a parent is made");
    let mut all = vec![0; SIZE as usize];
    for (piece, part) in all.chunks_exact_mut(PIECE).enumerate() {
        part.copy_from_slice(&Value::Parent.bytes(piece as u64));
    }
    disk.write_at(&all, 0).expect("the parent is filled");
    disk.close().expect("the parent is closed");
    Arc::new(Sealed { bytes: MemoryStorage::from_bytes(&bytes.to_bytes()), attempts: AtomicU64::new(0) })
}

impl Fixture {
    pub fn new(kind: Kind, seed: u64) -> Self {
        let _fixed = Fixed::new(seed, 0);
        let world = SimWorld::new(seed);
        let leaf = world.create(LEAF);
        let sealed = (kind == Kind::Child).then(sealed_parent);
        let parents: Parents = sealed.iter().map(|parent| Arc::clone(parent) as Arc<dyn Storage>).collect();
        let inherited = if kind == Kind::Child { Value::Parent } else { Value::Zero };
        let content: Arc<Runs> = Arc::new(vec![(0..kind.size() / PIECE as u64, inherited)]);
        let disk = match kind {
            Kind::Dynamic | Kind::Wide => Disk::create_on(leaf, &options(kind)),
            Kind::Child => Disk::create_child_on(leaf, parents.clone(), &options(kind)),
        };
        disk.expect("a disk is made").close().expect("a new disk is closed");
        let mut run = Run::start(world.clone(), parents.clone(), content, 0).expect("a new disk opens");
        let filled = [Op::Write { at: 0, len: 64 * 1024 }, Op::Write { at: 4 * MIB, len: MIB }];
        for &op in if kind == Kind::Wide { &[][..] } else { &filled }.iter().chain(&[Op::Close]) {
            run.perform(op).expect("the fixture is prepared");
        }
        let content = Arc::new(run.ledger.latest());
        world.forget();
        Self { kind, world, parents, sealed, content }
    }
}

fn u64_at(file: &SimStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_at(&mut bytes, at).expect("simulated reads succeed");
    u64::from_le_bytes(bytes)
}

/// Where the log is, by the first header.
pub fn log_range(file: &SimStorage) -> std::ops::Range<u64> {
    let start = u64_at(file, 0x10000 + 72);
    start..start + (u64_at(file, 0x10000 + 64) >> 32)
}

/// Says what sort of bytes lie where, from the file as it is now.
pub fn classifier(file: &SimStorage) -> Arc<dyn Fn(FileId, u64) -> Class + Send + Sync> {
    let log = log_range(file);
    let regions: Vec<(u64, u64, bool)> = (0..2)
        .map(|i| {
            let entry = 0x30010 + 32 * i;
            (u64_at(file, entry + 16), u64_at(file, entry + 24) & 0xFFFF_FFFF, u64_at(file, entry) == 0x4200_F623_2DC2_7766)
        })
        .collect();
    let bat = regions.iter().find(|region| region.2).expect("there is a BAT").0;
    // A chunk holds 2^23 sectors; the bitmap's entry follows the entries of the chunk's payload blocks.
    let ratio = (512 << 23) / MIB;
    let bitmap = u64_at(file, bat + ratio * 8) >> 20 << 20;
    Arc::new(move |_, at| {
        if log.contains(&at) {
            return Class::Log;
        }
        if let Some(&(_, _, is_bat)) = regions.iter().find(|(start, len, _)| (*start..start + len).contains(&at)) {
            return if is_bat { Class::Bat } else { Class::Metadata };
        }
        match at {
            0..MIB => Class::Metadata,
            _ if bitmap != 0 && (bitmap..bitmap + MIB).contains(&at) => Class::Bitmap,
            _ => Class::Payload,
        }
    })
}

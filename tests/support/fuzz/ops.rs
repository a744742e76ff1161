//! `ops`: a disk written to, failed and crashed, beside an array of bytes.
//!
//! The disk is of one of six geometries, plain or over a parent. Operations, faults of the k-th storage call and power cuts come from the
//! input; after a cut the input says which of the writes in flight landed. The array remembers for each 512-byte piece what it held
//! at the last flush and everything since: after a crash it must hold one of these, and while the disk lives exactly the newest, unless
//! the request that would have changed it failed.

use super::guard::{Watched, bounded};
use super::source::Source;
use diffdisk::storage::sim::{
    BeyondEnd, CallKind, Choice, CrashOptions, CrashWalk, Fault, FaultStorage, FreshSpace, Repeat, SimStorage, SimWorld,
};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{CreateOptions, Disk, DiskError, OpenOptions};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const PIECE: usize = 512;
const MOST_OPS: usize = 40;
const LEAF: &str = "leaf";

/// What a disk may hold.
#[derive(Clone)]
struct Model {
    now: Vec<u8>,
    /// For pieces changed since the last flush: what they held at it, and everything since but `now`.
    before: BTreeMap<usize, Vec<Box<[u8]>>>,
}

impl Model {
    fn piece(&self, p: usize) -> std::ops::Range<usize> {
        p * PIECE..((p + 1) * PIECE).min(self.now.len())
    }

    fn change(&mut self, at: u64, len: u64, byte: impl Fn(u64) -> u8) {
        for p in at as usize / PIECE..((at + len) as usize).div_ceil(PIECE) {
            let old = self.now[self.piece(p)].into();
            self.before.entry(p).or_default().push(old);
        }
        for i in at..at + len {
            self.now[i as usize] = byte(i);
        }
    }

    fn settle(&mut self) {
        self.before.clear();
    }

    /// Takes what was read after a failure for the truth, where it may be. `torn`: half of a piece may have landed.
    fn adopt(&mut self, got: &[u8], torn: bool, what: &str) {
        assert_eq!(got.len(), self.now.len());
        if got == self.now {
            return;
        }
        for p in 0..got.len().div_ceil(PIECE) {
            let range = self.piece(p);
            if got[range.clone()] == self.now[range.clone()] {
                continue;
            }
            let old = self.before.get_mut(&p);
            let (piece, newest) = (&got[range.clone()], &self.now[range.clone()]);
            let mixed =
                |all: &Vec<Box<[u8]>>| (0..piece.len()).all(|i| piece[i] == newest[i] || all.iter().any(|value| value[i] == piece[i]));
            let known = old.as_ref().is_some_and(|all| all.iter().any(|value| **value == *piece) || torn && mixed(all));
            let i = got[range.clone()].iter().zip(&self.now[range.clone()]).position(|(a, b)| a != b).unwrap_or(0) + range.start;
            assert!(
                known,
                "{what}: the piece at {:#x} holds nothing it ever held: {:#04x} at {i:#x}, not {:#04x}",
                range.start, got[i], self.now[i]
            );
            old.expect("it is known").push(self.now[range.clone()].into());
            self.now[range.clone()].copy_from_slice(&got[range]);
        }
    }
}

/// A file to start from.
struct Start {
    world: SimWorld,
    parent: Option<Arc<MemoryStorage>>,
    content: Vec<u8>,
    block: u64,
}

fn start(n: usize) -> Start {
    let (sector, block, size) = [(512, MIB, 3 * MIB + 1536), (4096, MIB, 2 * MIB + 8192), (512, 2 * MIB, 3 * MIB)][n % 3];
    let base = CreateOptions::dynamic(size).block_size(block).logical_sector(sector).durable(false);
    let world = SimWorld::new(7);
    let leaf = world.create(LEAF);
    let mut content = vec![0; size as usize];
    let parent = (n >= 3).then(|| {
        let parent = Arc::new(MemoryStorage::new());
        let disk = Disk::create_on(Arc::clone(&parent) as Arc<dyn Storage>, &base).expect("a disk in memory");
        for at in [0, MIB / 2, MIB - 8192, 2 * MIB] {
            let part = 16384.min(content.len() - at as usize);
            let data: Vec<u8> = (0..part).map(|i| 0x80 | (i / PIECE) as u8).collect();
            disk.write_at(&data, at).expect("memory takes it");
            content[at as usize..at as usize + part].copy_from_slice(&data);
        }
        disk.close().expect("memory takes it");
        parent
    });
    let disk = match &parent {
        Some(parent) => Disk::create_child_on(leaf, vec![Arc::clone(parent) as Arc<dyn Storage>], &CreateOptions::child().durable(false)),
        None => Disk::create_on(leaf, &base),
    };
    disk.expect("a disk in memory").close().expect("memory takes it");
    let block = if parent.is_some() { MIB } else { block };
    world.forget();
    Start { world, parent, content, block }
}

thread_local! {
    static STARTS: [OnceCell<Start>; 6] = const { [const { OnceCell::new() }; 6] };
}

/// The disk, the model, and the storage between them.
struct Run {
    world: SimWorld,
    parents: Vec<Arc<dyn Storage>>,
    file: Arc<SimStorage>,
    faulty: Arc<FaultStorage>,
    disk: Option<Disk>,
    model: Model,
    block: u64,
    tag: u8,
    /// A sync failed on this handle.
    failed: bool,
    /// This handle was asked for a change. Closing one that was not hardens nothing.
    changed: bool,
    /// A storage that moves parts of a piece was asked for, so a failure or a cut may leave a part of one.
    torn: bool,
}

fn attach(world: &SimWorld) -> (Arc<SimStorage>, Arc<FaultStorage>) {
    let file = world.open(LEAF).expect("the file is there");
    let faulty = FaultStorage::new(Arc::clone(&file) as Arc<dyn Storage>).expect("memory can be read");
    (file, Arc::new(faulty))
}

impl Run {
    fn new(n: usize) -> Self {
        STARTS.with(|starts| {
            let start = starts[n % 6].get_or_init(|| start(n % 6));
            let world = start.world.fork();
            let (file, faulty) = attach(&world);
            let parents = start.parent.iter().map(|parent| {
                let parent = Watched::sealed(Arc::clone(parent) as Arc<dyn Storage>);
                parent.expect_blocks(4 * MIB);
                parent as Arc<dyn Storage>
            });
            let model = Model { now: start.content.clone(), before: BTreeMap::new() };
            let parents = parents.collect();
            let mut run = Self {
                world,
                parents,
                file,
                faulty,
                disk: None,
                model,
                block: start.block,
                tag: 0,
                failed: false,
                changed: false,
                torn: false,
            };
            run.open();
            run
        })
    }

    fn size(&self) -> u64 {
        self.model.now.len() as u64
    }

    /// Opens the file for writing; with a fault armed it may fail, without one it may not.
    fn open(&mut self) {
        let options = OpenOptions::new().writable(true);
        let open = || Disk::open_on(Arc::clone(&self.faulty) as Arc<dyn Storage>, self.parents.clone(), &options);
        let hits = self.faulty.hits();
        let disk = match open() {
            Ok(disk) => disk,
            Err(e) => {
                assert!(self.faulty.hits() > hits, "opening failed for no reason: {e}");
                self.faulty.heal();
                open().expect("healed, it opens")
            }
        };
        self.disk = Some(disk);
        (self.failed, self.changed) = (false, false);
        self.verify("reopened");
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the disk is open")
    }

    /// Everything, and what `check()` says of it. Heals what is broken first.
    fn verify(&mut self, what: &str) {
        self.faulty.heal();
        let mut all = vec![0; self.model.now.len()];
        self.disk().read_at(&mut all, 0).expect("reads go on");
        self.model.adopt(&all, self.torn, what);
        let report = self.disk().check().expect("a disk can be examined");
        assert!(report.is_sound(), "{what}: {:?}", report.errors);
    }

    /// What came of a request that `hits` says met a fault or did not.
    fn outcome(&mut self, hits: u64, result: Result<(), DiskError>, what: &str) -> bool {
        let Err(e) = result else { return true };
        assert!(self.faulty.hits() > hits || self.failed, "{what} failed for no reason: {e}");
        let was_latched = self.disk().is_degraded();
        self.verify(what);
        if was_latched {
            self.failed = true;
        }
        false
    }

    fn range(&self, s: &mut Source<'_>) -> (u64, u64) {
        let border = [0, self.block, 2 * self.block, self.size(), 4096, MIB / 2][s.pick(6)];
        let nudge = [0, 512, 4096, 1, 511, 700, 64 << 10, 5120][s.pick(8)];
        let at = if s.byte() & 1 == 0 { border + nudge } else { border.saturating_sub(nudge) }.min(self.size());
        let len = [512, 1, 4096, 1000, 8192, 64 << 10, self.block, self.size()][s.pick(8)];
        (at, len.min(self.size() - at))
    }

    /// Writes, zeroes or trims a range.
    fn change(&mut self, s: &mut Source<'_>, kind: usize) {
        let (mut at, mut len) = self.range(s);
        let hits = self.faulty.hits();
        self.tag = self.tag % 100 + 1;
        let tag = self.tag;
        let byte = move |i: u64| if kind == 0 { tag ^ (i / 512) as u8 } else { 0 };
        let result = match kind {
            0 => {
                len = len.min(96 << 10);
                let data: Vec<u8> = (at..at + len).map(byte).collect();
                self.disk().write_at(&data, at)
            }
            1 => self.disk().write_zeroes(at, len),
            _ => {
                let result = self.disk().trim(at, len);
                let end = if at + len == self.size() { self.size() } else { (at + len) / self.block * self.block };
                at = at.div_ceil(self.block) * self.block;
                len = end.saturating_sub(at);
                result
            }
        };
        if len > 0 {
            self.changed = true;
            self.model.change(at, len, byte);
        }
        if !self.outcome(hits, result, ["a write", "zeroing", "a trim"][kind]) && !self.failed {
            // Healed and not latched: the same request must be done now.
            let again = if kind == 0 { self.disk().write_at(&vec![tag; 512], at.min(self.size() - 512)) } else { Ok(()) };
            again.expect("after a harmless failure writing goes on");
            if kind == 0 {
                self.model.change(at.min(self.size() - 512), 512, |_| tag);
            }
        }
    }

    fn flush(&mut self) {
        let hits = self.faulty.hits();
        let result = self.disk().flush();
        assert!(!(self.failed && result.is_ok()), "a flush is done after a failed sync");
        if self.outcome(hits, result, "a flush") {
            self.model.settle();
        }
    }

    fn close(&mut self) {
        let hits = self.faulty.hits();
        let failed = self.failed;
        match self.disk.take().expect("the disk is open").close() {
            Ok(()) => {
                assert!(!failed, "a close is done after a failed sync");
                if self.changed {
                    self.model.settle();
                }
            }
            Err(e) => assert!(failed || self.faulty.hits() > hits, "closing failed for no reason: {e}"),
        }
        self.open();
    }

    fn arm(&mut self, s: &mut Source<'_>) {
        let kind = [CallKind::Write, CallKind::Sync, CallKind::SetLen, CallKind::Read, CallKind::Punch, CallKind::Len][s.pick(6)];
        let io = [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::Interrupted][s.pick(3)];
        let fault = match (s.pick(6), kind) {
            (0..2, _) => Fault::Error(io),
            (2, CallKind::Read | CallKind::Write) => Fault::ShortHalf,
            (3, CallKind::Read | CallKind::Write) => Fault::ShortOne,
            (4, CallKind::Write) => Fault::ErrorAfterHalf(io),
            _ => Fault::ErrorAfterEffect(io),
        };
        self.torn |= matches!(fault, Fault::ShortHalf | Fault::ShortOne | Fault::ErrorAfterHalf(_));
        // Byte by byte for ever, a megabyte would be a million events in the simulator.
        let is_short = matches!(fault, Fault::ShortHalf | Fault::ShortOne);
        let once = s.byte() & 1 == 0 || io == ErrorKind::Interrupted || is_short;
        let repeat = if once { Repeat::Once } else { Repeat::FromThen };
        self.faulty.arm(kind, 1 + s.pick(10) as u64, repeat, fault);
    }

    /// The power goes, in the middle of what happened since `from`; `before` is what was allowed then.
    fn crash(&mut self, s: &mut Source<'_>, from: usize, before: &Model) {
        self.disk = None;
        let trace = self.world.trace();
        let end = self.world.cut();
        let cut = end - (s.byte() as usize).min(end - from);
        let mut walk = CrashWalk::new(&trace, CrashOptions::default());
        walk.go_to(cut);
        let pending = walk.pending().len();
        let (density, mut state) = (s.pick(4), u64::from(s.byte()) << 8 | u64::from(s.byte()) | 1 << 20);
        let mut roll = || {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            state >> 33
        };
        let kept = (0..pending).map(|_| [false, true, roll() & 1 == 1, roll() & 7 != 0][density]).collect();
        let beyond = if s.byte() & 1 == 0 { BeyondEnd::Vanish } else { BeyondEnd::Extend };
        let image = walk.image(&Choice { kept, beyond, space: FreshSpace::Zeros, flight: None });
        self.world = image.boot(true);
        if cut < end {
            // What the request would have settled was not settled yet.
            for (p, old) in &before.before {
                self.model.before.entry(*p).or_default().extend(old.iter().cloned());
            }
            for p in 0..before.now.len().div_ceil(PIECE) {
                let range = before.piece(p);
                if before.now[range.clone()] != self.model.now[range.clone()] {
                    self.model.before.entry(p).or_default().push(before.now[range].into());
                }
            }
        }
        (self.file, self.faulty) = attach(&self.world);
        self.open();
        // What is there now is all there is.
        self.model.settle();
    }

    fn step(&mut self, s: &mut Source<'_>) {
        let op = s.byte();
        if op & 15 == 15 {
            return self.arm(s);
        }
        let crashes = op & 0xC0 == 0xC0;
        let (from, before) = (self.world.cut(), if crashes { Some(self.model.clone()) } else { None });
        match op & 15 {
            0..5 => self.change(s, 0),
            5 | 6 => self.change(s, 1),
            7 | 8 => self.change(s, 2),
            9..12 => self.flush(),
            12 => self.close(),
            13 => {
                self.disk = None;
                self.open();
            }
            _ => self.verify("looked at"),
        }
        if let Some(before) = before {
            self.crash(s, from, &before);
        }
    }
}

/// The body.
pub fn run(input: &[u8]) {
    let mut s = Source::new(input);
    // The simulator remembers every write until the next crash; that is not the engine's memory.
    bounded("a run", 192 * MIB, || {
        let mut run = Run::new(s.pick(6));
        for _ in 0..MOST_OPS {
            if s.is_empty() {
                break;
            }
            run.step(&mut s);
        }
        run.verify("at the end");
        if !run.failed {
            run.flush();
        }
        run.close();
        assert_eq!(run.file.file().0, 0);
    });
}

//! One script on one disk whose storage fails at one call, and everything that must hold afterwards.

use super::ledger::{Bytes, Ledger, PARENT, PIECE, pattern, tracked};
use super::script::{KIB, Kind, MIB, Op, SIZE, Script, WIDE, Way};
use diffdisk::storage::sim::{CallKind, Fault, FaultStorage, Lost, Repeat, SimWorld};
use diffdisk::storage::{MemoryStorage, Storage, StorageId, SyncSite};
use diffdisk::{CreateOptions, Disk, DiskError, FlushMode, OpenError, OpenOptions};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const LEAF: &str = "leaf.vhdx";
/// A place that no script touches, for going on afterwards.
const ASIDE: Op = Op::Write { at: 2 * MIB + 512 * KIB, len: 4 * KIB };
/// The headers stand below this.
const HEADERS_END: u64 = 0x30000;

/// A call that failed, as the engine saw it.
#[derive(Clone, Copy, Debug)]
struct Failure {
    call: CallKind,
    at: u64,
    kind: io::ErrorKind,
}

/// Stands between the engine and the failing storage and writes down what failed.
#[derive(Debug)]
struct Watch {
    inner: FaultStorage,
    failures: Mutex<Vec<Failure>>,
    /// The read, counted down from here, in which one bit is wrong.
    flip: AtomicU64,
}

impl Watch {
    fn note<T>(&self, call: CallKind, at: u64, result: io::Result<T>) -> io::Result<T> {
        let is_retried = |kind| kind == io::ErrorKind::Interrupted && matches!(call, CallKind::Read | CallKind::Write);
        if let Err(e) = &result
            && !is_retried(e.kind())
        {
            self.failures.lock().unwrap().push(Failure { call, at, kind: e.kind() });
        }
        result
    }
}

impl Storage for Watch {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let n = self.note(CallKind::Read, at, self.inner.read_at(buf, at))?;
        if self.flip.load(Ordering::Relaxed) > 0 && self.flip.fetch_sub(1, Ordering::Relaxed) == 1 && n > 0 {
            buf[at as usize / 7 % n] ^= 1 << (at % 8);
        }
        Ok(n)
    }
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        match self.inner.write_at(buf, at) {
            Ok(0) if !buf.is_empty() => self.note(CallKind::Write, at, Err(io::ErrorKind::WriteZero.into())).or(Ok(0)),
            result => self.note(CallKind::Write, at, result),
        }
    }
    fn len(&self) -> io::Result<u64> {
        self.note(CallKind::Len, 0, self.inner.len())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(CallKind::SetLen, len, self.inner.set_len(len))
    }
    fn sync(&self, site: SyncSite) -> io::Result<()> {
        self.note(CallKind::Sync, 0, self.inner.sync(site))
    }
    fn writes_durably(&self) -> bool {
        self.inner.writes_durably()
    }
    fn write_durable(&self, buf: &[u8], at: u64, site: SyncSite) -> io::Result<()> {
        self.note(CallKind::Sync, at, self.inner.write_durable(buf, at, site))
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.note(CallKind::Punch, at, self.inner.punch(at, len))
    }
    fn next_data(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        self.inner.next_data(at)
    }
    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }
    fn id(&self) -> StorageId {
        self.inner.id()
    }
}

/// A prepared disk, made once and forked for each run.
pub struct Fixture {
    kind: Kind,
    world: SimWorld,
    file: FaultStorage,
    /// What stands under a child, and the same behind storage that fails.
    parent: Option<(Arc<MemoryStorage>, Arc<FaultStorage>)>,
}

fn size_of(kind: Kind) -> u64 {
    if kind == Kind::Wide { WIDE } else { SIZE }
}

fn base(kind: Kind, piece: u64) -> Bytes {
    match piece {
        0..128 if kind != Kind::Wide => pattern(0, piece),
        8192..8224 if kind != Kind::Wide => pattern(0, piece),
        8192..10240 => [0; PIECE as usize],
        _ if kind == Kind::Child => pattern(PARENT, piece),
        _ => [0; PIECE as usize],
    }
}

fn pieces(tag: u64, from: u64, to: u64) -> Vec<u8> {
    (from..to).flat_map(|piece| pattern(tag, piece)).collect()
}

impl Fixture {
    /// Block 0 has its first 64 KiB, block 4 is present with 16 KiB of data and zeros, the rest is untouched; closed and clean.
    pub fn new(kind: Kind) -> Self {
        let world = SimWorld::new(1);
        let leaf = world.create(LEAF);
        let parent = (kind == Kind::Child).then(|| {
            let bytes = Arc::new(MemoryStorage::new());
            let disk = Disk::create_on(bytes.clone(), &CreateOptions::dynamic(SIZE).block_size(MIB)).unwrap();
            disk.write_at(&pieces(PARENT, 0, SIZE / PIECE), 0).unwrap();
            disk.close().unwrap();
            (bytes.clone(), Arc::new(FaultStorage::new(bytes).unwrap()))
        });
        let disk = match &parent {
            Some((parent, _)) => Disk::create_child_on(leaf, vec![parent.clone()], &CreateOptions::child().block_size(MIB)),
            None => Disk::create_on(leaf, &CreateOptions::dynamic(size_of(kind)).block_size(MIB)),
        };
        let disk = disk.unwrap();
        if kind != Kind::Wide {
            disk.write_at(&pieces(0, 0, 128), 0).unwrap();
            disk.write_zeroes(4 * MIB, MIB).unwrap();
            disk.write_at(&pieces(0, 8192, 8224), 4 * MIB).unwrap();
        }
        disk.close().unwrap();
        world.forget();
        let file = FaultStorage::new(world.open(LEAF).unwrap()).unwrap();
        Self { kind, world, file, parent }
    }

    /// Opens a disk over a parent that never fails.
    fn open(&self, leaf: Arc<dyn Storage>) -> Result<Disk, OpenError> {
        let parents = self.parent.iter().map(|(sound, _)| Arc::clone(sound) as Arc<dyn Storage>).collect();
        Disk::open_on(leaf, parents, &OpenOptions::new().writable(true))
    }

    /// Opens a disk over the parent that may fail.
    fn open_failing(&self, leaf: Arc<dyn Storage>, way: Way) -> Result<Disk, OpenError> {
        let parents = self.parent.iter().map(|(_, failing)| Arc::clone(failing) as Arc<dyn Storage>).collect();
        let mode = if way == Way::PayloadInLog { FlushMode::PayloadInLog } else { FlushMode::default() };
        Disk::open_on(leaf, parents, &OpenOptions::new().writable(true).flush_mode(mode))
    }
}

/// Which storage fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Leaf,
    Parent,
}

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    Fault(Target, CallKind, Fault, Repeat),
    /// One bit of what a read returned.
    Flip,
    /// The share is gone: from the `k`-th call of each kind on, nothing answers.
    Gone,
}

impl Wrong {
    fn sync_loss(self) -> Option<Lost> {
        match self {
            Self::Fault(_, _, Fault::Sync(_, lost) | Fault::SyncLate(_, lost), _) => Some(lost),
            _ => None,
        }
    }

    fn is_late(self) -> bool {
        matches!(self, Self::Fault(_, _, Fault::SyncLate(..), _))
    }
}

/// What a call returned, as far as a script cares.
#[derive(Debug)]
enum Outcome {
    Done,
    Failed(String),
    /// There was no handle.
    Skipped,
}

impl Outcome {
    fn of(result: Result<(), DiskError>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(e) => Self::Failed(e.to_string()),
        }
    }
}

struct Rig<'a> {
    fixture: &'a Fixture,
    world: SimWorld,
    file: Arc<Watch>,
    disk: Option<Disk>,
    way: Way,
    ledger: Ledger,
    op: usize,
    wrong: Wrong,
    failed: Vec<Op>,
    /// A handle was opened after the system lost what a sync was to harden.
    opened_after_loss: bool,
}

/// One run: `wrong` meets the `k`-th call. Says whether it was met at all.
///
/// # Errors
/// The promise that was broken.
pub fn run(fixture: &Fixture, script: &Script, wrong: Wrong, k: u64) -> Result<bool, String> {
    fixture.parent.as_ref().inspect(|(_, failing)| failing.heal());
    let mut rig = Rig::new(fixture, script, wrong)?;
    for &op in &script.setup {
        match rig.perform(op)? {
            Outcome::Done => {}
            other => return Err(format!("the setup's {op:?}: {other:?}")),
        }
    }
    let parent = fixture.parent.as_ref().map(|(_, failing)| failing);
    parent.inspect(|parent| parent.reset_calls());
    match wrong {
        Wrong::Fault(Target::Leaf, call, fault, repeat) => rig.file.inner.arm(call, k, repeat, fault),
        Wrong::Fault(Target::Parent, call, fault, repeat) => parent.expect("there is a parent").arm(call, k, repeat, fault),
        Wrong::Flip => rig.file.flip.store(k, Ordering::Relaxed),
        Wrong::Gone => {
            for call in [CallKind::Read, CallKind::Write, CallKind::Len, CallKind::SetLen, CallKind::Sync, CallKind::Punch] {
                rig.file.inner.arm(call, k, Repeat::FromThen, Fault::Error(io::ErrorKind::NotConnected));
            }
        }
    }
    for &op in &script.ops {
        rig.step(op)?;
    }
    let met = match wrong {
        Wrong::Fault(Target::Leaf, ..) | Wrong::Gone => rig.file.inner.hits() > 0,
        Wrong::Fault(Target::Parent, ..) => parent.expect("there is a parent").hits() > 0,
        Wrong::Flip => rig.file.flip.load(Ordering::Relaxed) == 0,
    };
    rig.file.inner.heal();
    parent.inspect(|parent| parent.heal());
    if matches!(wrong, Wrong::Flip) {
        // What a wrong bit does where no checksum stands guard is no promise, except that nothing panics.
        let leaf = rig.world.open(LEAF).unwrap();
        drop(rig);
        let _ = fixture.open(leaf).map(|disk| disk.check().map(drop));
        return Ok(met);
    }
    rig.afterwards(k)?;
    Ok(met)
}

impl<'a> Rig<'a> {
    fn new(fixture: &'a Fixture, script: &Script, wrong: Wrong) -> Result<Self, String> {
        let world = fixture.world.fork();
        let file = fixture.file.fork(world.open(LEAF).unwrap());
        file.offer_durable_writes(script.way != Way::TwoSyncs);
        let file = Arc::new(Watch { inner: file, failures: Mutex::default(), flip: AtomicU64::new(0) });
        let disk = Some(fixture.open_failing(file.clone(), script.way).map_err(|e| format!("the fixture does not open: {e}"))?);
        let all = script.setup.iter().chain(&script.ops).chain([&ASIDE]);
        let size = size_of(fixture.kind);
        let ledger = Ledger::new(size, &tracked(size, all), |piece| base(fixture.kind, piece));
        Ok(Self { fixture, world, file, disk, way: script.way, ledger, op: 0, wrong, failed: Vec::new(), opened_after_loss: false })
    }

    /// Performs an operation and keeps the ledger. Reads are compared with it.
    fn perform(&mut self, op: Op) -> Result<Outcome, String> {
        self.op += 1;
        let number = self.op;
        if matches!(op, Op::Open | Op::PowerCut | Op::Ragged) {
            return self.reopen(op);
        }
        let Some(disk) = &self.disk else { return Ok(Outcome::Skipped) };
        self.ledger.issue(number, op);
        let result = match op {
            Op::Write { at, len } => {
                let (first, end) = (at / PIECE, (at + len).div_ceil(PIECE));
                let data = pieces(number as u64, first, end);
                let from = (at - first * PIECE) as usize;
                disk.write_at(&data[from..from + len as usize], at)
            }
            Op::Zeroes { at, len } => disk.write_zeroes(at, len),
            Op::Trim { at, len } => disk.trim(at, len),
            Op::Read { at, len } => {
                let mut buf = vec![0xEE; len as usize];
                let result = disk.read_at(&mut buf, at);
                if result.is_ok() {
                    self.judge_read(at / PIECE, &buf)?;
                }
                result
            }
            Op::Flush => disk.flush(),
            Op::Close => self.disk.take().expect("there is a handle").close(),
            Op::Open | Op::PowerCut | Op::Ragged => unreachable!("handled above"),
        };
        let outcome = Outcome::of(result);
        if let Outcome::Done = outcome {
            self.ledger.done(number);
            if matches!(op, Op::Flush | Op::Close) {
                self.ledger.flushed(number);
            }
        }
        Ok(outcome)
    }

    fn reopen(&mut self, op: Op) -> Result<Outcome, String> {
        self.disk = None;
        match op {
            Op::PowerCut => self.file.inner.power_cut().map_err(|e| e.to_string())?,
            Op::Ragged => {
                let len = self.file.len().map_err(|e| e.to_string())?;
                self.file.set_len(len + 512).map_err(|e| e.to_string())?;
            }
            _ => match self.fixture.open_failing(self.file.clone(), self.way) {
                Ok(disk) => {
                    self.disk = Some(disk);
                    self.opened_after_loss |= self.wrong.sync_loss().is_some() && self.file.inner.hits() > 0;
                    self.observe_opened()?;
                }
                Err(e) => return Ok(Outcome::Failed(e.to_string())),
            },
        }
        Ok(Outcome::Done)
    }

    /// From the moment of opening, each piece is what it is found to be: unflushed values of the former handle are gone or there.
    fn observe_opened(&mut self) -> Result<(), String> {
        // Looked at on a fork, so that no call of the run is spent on it.
        let disk = match self.fixture.open(self.world.fork().open(LEAF).unwrap()) {
            Ok(disk) => disk,
            Err(_) if matches!(self.wrong, Wrong::Flip) => return Ok(()),
            Err(e) => return Err(format!("opened, but a fork of the file does not: {e}")),
        };
        if matches!(self.wrong, Wrong::Flip) { Ok(()) } else { observe(&mut self.ledger, &disk) }
    }

    /// What a read of this handle returned must be what the last request left.
    fn judge_read(&self, first: u64, buf: &[u8]) -> Result<(), String> {
        if matches!(self.wrong, Wrong::Flip) {
            return Ok(());
        }
        // When the system threw dirty pages away, only blocks that nobody touched since the last flush can be told.
        let lost = self.wrong.sync_loss() == Some(Lost::Everywhere) && self.file.inner.hits() > 0;
        for (bytes, piece) in buf.as_chunks::<512>().0.iter().zip(first..) {
            let may_be = self.ledger.now(piece).contains(bytes) || lost && self.ledger.is_unsettled(piece);
            if !may_be {
                return Err(format!("a live read of piece {piece} returned {}", origin(bytes)));
            }
        }
        Ok(())
    }

    /// Performs an operation while faults are armed and checks P10 and P11.
    fn step(&mut self, op: Op) -> Result<(), String> {
        let degraded_before = self.disk.as_ref().is_some_and(Disk::is_degraded);
        let before = self.file.failures.lock().unwrap().len();
        let outcome = self.perform(op)?;
        let failures = self.file.failures.lock().unwrap()[before..].to_vec();
        let degraded = self.disk.as_ref().is_some_and(Disk::is_degraded);
        let changes = matches!(op, Op::Write { .. } | Op::Zeroes { .. } | Op::Trim { .. } | Op::Flush | Op::Close);
        let done = matches!(outcome, Outcome::Done);
        if matches!(outcome, Outcome::Failed(..)) {
            self.failed.push(op);
        }
        if degraded_before && changes && done {
            return Err(format!("P10: {op:?} succeeded on a degraded handle"));
        }
        if failures.iter().any(|failure| failure.call == CallKind::Sync) {
            if done {
                return Err(format!("P10: {op:?} met a failed sync and succeeded"));
            }
            if self.disk.is_some() && !degraded && op != Op::Open {
                return Err(format!("P10: {op:?} met a failed sync and the handle is not degraded"));
            }
        }
        if degraded && !degraded_before {
            let harmful = |failure: &Failure| match failure.call {
                CallKind::Sync => true,
                CallKind::Write => failure.at < HEADERS_END || !is_no_space(failure.kind),
                _ => false,
            };
            if !matches!(self.wrong, Wrong::Flip) && !failures.iter().any(harmful) {
                return Err(format!("P11: {op:?} degraded the handle after {failures:?}: {outcome:?}"));
            }
        }
        Ok(())
    }

    /// The faults are over. What the handle still promises, and what the file holds.
    fn afterwards(mut self, k: u64) -> Result<(), String> {
        if self.disk.is_some() {
            self.look_at_handle()?;
            let degraded = self.disk.as_ref().is_some_and(Disk::is_degraded);
            if degraded {
                for op in [ASIDE, Op::Flush] {
                    if let Outcome::Done = self.perform(op)? {
                        return Err(format!("P10: {op:?} succeeded on a degraded handle after the storage healed"));
                    }
                }
            } else if k.is_multiple_of(2) {
                self.try_again()?;
            }
        }
        self.disk = None;
        // One of the two will do where they hardly differ; failed syncs get both.
        let (sees, cut) =
            (self.wrong.sync_loss().is_some() || (k / 2).is_multiple_of(2), self.wrong.sync_loss().is_some() || k / 2 % 2 == 1);
        if sees {
            let visible = self.world.fork();
            self.recover(&visible.open(LEAF).unwrap(), "with what readers see")?;
        }
        // A sync that lied leaves nothing to promise about what the device holds, and neither does what a new handle read from a
        // cache whose dirty pages had been forgotten.
        if cut && !self.opened_after_loss && !(self.wrong.is_late() && self.file.inner.hits() > 0) {
            self.file.inner.power_cut().map_err(|e| e.to_string())?;
            self.recover(&self.world.open(LEAF).unwrap(), "after a power cut")?;
        }
        Ok(())
    }

    fn look_at_handle(&mut self) -> Result<(), String> {
        for stretch in self.ledger.stretches() {
            let (at, len) = (stretch.start * PIECE, (stretch.end - stretch.start) * PIECE);
            if let Outcome::Failed(e) = self.perform(Op::Read { at, len })? {
                return Err(format!("P10: reading {at:#x} failed after the storage healed: {e}"));
            }
        }
        Ok(())
    }

    /// A failed request harmed only itself: the same handle does it again.
    fn try_again(&mut self) -> Result<(), String> {
        let again = std::mem::take(&mut self.failed);
        for op in again.into_iter().filter(|op| !matches!(op, Op::Open | Op::Close)).chain([ASIDE, Op::Flush]) {
            if let Outcome::Failed(e) = self.perform(op)? {
                return Err(format!("P11: {op:?} failed again after the storage healed: {e}"));
            }
        }
        self.look_at_handle()
    }

    /// Old or new per piece, sound, and able to go on.
    fn recover(&self, leaf: &Arc<diffdisk::storage::sim::SimStorage>, how: &str) -> Result<(), String> {
        let mut ledger = self.ledger.clone();
        let mut go = || -> Result<(), String> {
            let open = || self.fixture.open(leaf.clone()).map_err(|e| format!("P4: does not open: {e}"));
            let disk = open()?;
            sound(&disk)?;
            observe(&mut ledger, &disk)?;
            for (tag, op) in [(900, ASIDE), (901, Op::Write { at: 4 * KIB, len: 2 * KIB })] {
                let Op::Write { at, len } = op else { unreachable!("both write") };
                ledger.issue(tag, op);
                disk.write_at(&pieces(tag as u64, at / PIECE, (at + len) / PIECE), at).map_err(|e| format!("P4: write: {e}"))?;
                ledger.done(tag);
            }
            disk.flush().map_err(|e| format!("P4: flush: {e}"))?;
            ledger.flushed(902);
            drop(disk);
            let disk = open()?;
            sound(&disk)?;
            observe(&mut ledger, &disk)?;
            disk.close().map_err(|e| format!("P4: close: {e}"))
        };
        go().map_err(|e| format!("reopened {how}: {e}"))
    }
}

fn is_no_space(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

fn sound(disk: &Disk) -> Result<(), String> {
    let report = disk.check().map_err(|e| format!("P4: check: {e}"))?;
    report.errors.first().map_or(Ok(()), |finding| Err(format!("P4: check found {finding:?}")))
}

/// Holds a freshly opened disk against the ledger (P2), and takes what it finds as the truth from here on.
fn observe(ledger: &mut Ledger, disk: &Disk) -> Result<(), String> {
    let mut found: BTreeMap<u64, Bytes> = BTreeMap::new();
    for stretch in ledger.stretches() {
        let mut buf = vec![0xEE; ((stretch.end - stretch.start) * PIECE) as usize];
        disk.read_at(&mut buf, stretch.start * PIECE).map_err(|e| format!("P2: reading piece {}: {e}", stretch.start))?;
        found.extend(stretch.zip(buf.as_chunks::<512>().0.iter().copied()));
    }
    for (piece, bytes) in found {
        let allowed = ledger.durable(piece);
        if !allowed.contains(&bytes) {
            let allowed: Vec<String> = allowed.iter().map(origin).collect();
            return Err(format!("P2: piece {piece} holds {}, allowed were {allowed:?}", origin(&bytes)));
        }
        ledger.observed(piece, bytes);
    }
    Ok(())
}

/// Names where bytes came from, if a pattern tells.
fn origin(bytes: &Bytes) -> String {
    if bytes.iter().all(|&b| b == 0) {
        return "zeros".into();
    }
    for tag in (0..300).chain(900..902).chain([PARENT]) {
        if let Some(piece) = (0..SIZE / PIECE).find(|&piece| pattern(tag, piece)[..8] == bytes[..8]) {
            let whole = if pattern(tag, piece) == *bytes { "" } else { ", in part" };
            return format!("what operation {tag} wrote to piece {piece}{whole}");
        }
    }
    format!("foreign bytes {:02x?}", &bytes[..16])
}

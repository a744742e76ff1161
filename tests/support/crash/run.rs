//! Operations performed on a disk in a simulated world, with the ledger of what each piece may hold afterwards.

use super::fixture::LEAF;
use super::ledger::{Ledger, Runs};
use super::script::Op;
use super::value::{PIECE, Value};
use diffdisk::storage::Storage;
use diffdisk::storage::sim::{Event, SimStorage, SimWorld};
use diffdisk::{Cancel, CompactOptions, Disk, FlushMode, NoProgress, OpenOptions};
use std::sync::Arc;

pub type Parents = Vec<Arc<dyn Storage>>;

/// An operation and where in the trace it began and ended.
#[derive(Clone, Copy, Debug)]
pub struct Performed {
    pub op: Op,
    pub issued: usize,
    pub done: usize,
}

/// From one opening to the next.
#[derive(Debug)]
pub struct Session {
    /// The first operation after the opening.
    pub first: usize,
    pub opened_at: usize,
    /// The file before the opening, and what its current header said.
    pub before: Arc<SimStorage>,
    pub header: HeaderSeen,
}

/// What one header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderSeen {
    pub sequence: u64,
    pub file: [u8; 16],
    pub data: [u8; 16],
    pub log: [u8; 16],
}

/// Reads both headers with nothing but the specification at hand.
pub fn headers(file: &SimStorage) -> [Option<HeaderSeen>; 2] {
    [0x10000, 0x20000].map(|at| {
        let mut bytes = [0; 4096];
        if !file.read_at(&mut bytes, at).is_ok_and(|n| n == 4096) || bytes[..4] != *b"head" {
            return None;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &[0; 4]), &bytes[8..]);
        let guid = |at: usize| bytes[at..at + 16].try_into().expect("sixteen bytes");
        let sequence = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        (crc.to_le_bytes() == bytes[4..8]).then(|| HeaderSeen { sequence, file: guid(16), data: guid(32), log: guid(48) })
    })
}

/// The header that counts.
pub fn current(file: &SimStorage) -> Option<HeaderSeen> {
    headers(file).into_iter().flatten().max_by_key(|header| header.sequence)
}

/// A disk under test and everything that was asked of it.
pub struct Run {
    pub world: SimWorld,
    pub parents: Parents,
    pub ops: Vec<Performed>,
    pub sessions: Vec<Session>,
    pub ledger: Ledger,
    /// Whether payload may ride in the log.
    pub rides: bool,
    disk: Option<Disk>,
    tags: u64,
}

impl Run {
    /// Opens the leaf of the world for writing.
    pub fn start(world: SimWorld, parents: Parents, initial: Arc<Runs>, tags: u64) -> Result<Self, String> {
        let mut run = Self::closed(world, parents, initial, tags);
        run.open()?;
        Ok(run)
    }

    /// Before the first opening.
    pub fn closed(world: SimWorld, parents: Parents, initial: Arc<Runs>, tags: u64) -> Self {
        Self { world, parents, ops: Vec::new(), sessions: Vec::new(), ledger: Ledger::new(initial), rides: false, disk: None, tags }
    }

    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the disk is open")
    }

    pub fn open(&mut self) -> Result<(), String> {
        let leaf = self.world.open(LEAF).ok_or("the file is gone")?;
        let before = self.world.fork().open(LEAF).expect("a fork has the same names");
        let header = current(&leaf).ok_or("no header is valid")?;
        let opened_at = self.world.cut();
        self.sessions.push(Session { first: self.ops.len(), opened_at, before, header });
        let mode = if self.rides { FlushMode::PayloadInLog } else { FlushMode::default() };
        let options = OpenOptions::new().writable(true).flush_mode(mode);
        let opened = Disk::open_on(leaf, self.parents.clone(), &options);
        self.disk = Some(opened.map_err(|e| format!("cannot be opened ({:?}): {e}", e.kind()))?);
        Ok(())
    }

    /// Opens the leaf for reading only.
    pub fn open_read_only(&mut self) -> Result<(), String> {
        let leaf = self.world.open(LEAF).ok_or("the file is gone")?;
        let opened = Disk::open_on(leaf, self.parents.clone(), &OpenOptions::new());
        self.disk = Some(opened.map_err(|e| format!("cannot be opened read-only ({:?}): {e}", e.kind()))?);
        Ok(())
    }

    /// Drops the disk without closing it.
    pub fn abandon(&mut self) {
        self.disk = None;
    }

    /// Does one thing and notes it in the ledger.
    pub fn perform(&mut self, op: Op) -> Result<(), String> {
        let index = self.ops.len();
        self.world.mark(2 * index as u64);
        let issued = self.world.cut();
        self.ops.push(Performed { op, issued, done: usize::MAX });
        let failed = |e: &dyn std::fmt::Display| format!("{op:?} failed: {e}");
        match op {
            Op::Write { at, len } => self.write(index, at, len)?,
            Op::Scatter { at, stride, count } => {
                for i in 0..count {
                    self.write(index, at + i * stride, PIECE as u64)?;
                }
            }
            Op::Zeroes { at, len } => {
                self.note_zeros(index, at, len);
                self.disk().write_zeroes(at, len).map_err(|e| failed(&e))?;
            }
            Op::Trim { at, len } => {
                self.note_zeros(index, at, len);
                self.disk().trim(at, len).map_err(|e| failed(&e))?;
            }
            Op::Flush => self.disk().flush().map_err(|e| failed(&e))?,
            Op::Close => self.disk.take().expect("the disk is open").close().map_err(|e| failed(&e))?,
            Op::Open => self.open()?,
            Op::Drop => self.abandon(),
            Op::Compact => {
                let _ = self.disk().compact(&CompactOptions::default(), &NoProgress, &Cancel::new()).map_err(|e| failed(&e))?;
            }
        }
        self.world.mark(2 * index as u64 + 1);
        self.ops[index].done = self.world.cut();
        Ok(())
    }

    fn note_zeros(&mut self, index: usize, at: u64, len: u64) {
        assert!(at.is_multiple_of(PIECE as u64) && len.is_multiple_of(PIECE as u64), "zeros are whole pieces here");
        self.ledger.note(index, at / PIECE as u64..(at + len) / PIECE as u64, Value::Zero);
    }

    fn write(&mut self, index: usize, at: u64, len: u64) -> Result<(), String> {
        let bytes = self.note_write(index, at, len);
        self.disk().write_at(&bytes, at).map_err(|e| format!("writing {len} bytes at {at:#x} failed: {e}"))
    }

    fn note_write(&mut self, index: usize, at: u64, len: u64) -> Vec<u8> {
        self.tags += 1;
        let (value, unit) = (Value::Tag(self.tags), PIECE as u64);
        let (first, end) = (at / unit, (at + len).div_ceil(unit));
        let mut bytes: Vec<u8> = Vec::with_capacity(((end - first) as usize) * PIECE);
        bytes.extend((first..end).flat_map(|piece| value.bytes(piece)));
        let (whole_first, whole_end) = (at.div_ceil(unit), (at + len) / unit);
        for piece in [first..whole_first.min(end), whole_end.max(whole_first).min(end)..end].into_iter().flatten() {
            let start = piece * unit;
            let mut mixed = self.ledger.value(piece, usize::MAX).bytes(piece);
            let (from, to) = ((at.max(start) - start) as usize, ((at + len).min(start + unit) - start) as usize);
            mixed[from..to].copy_from_slice(&value.bytes(piece)[from..to]);
            self.ledger.note(index, piece..piece + 1, Value::Bytes(Arc::new(mixed)));
        }
        self.ledger.note(index, whole_first..whole_end, value);
        let skip = (at - first * unit) as usize;
        bytes[skip..skip + len as usize].to_vec()
    }

    /// The last operation done at a cut that makes everything before it durable. The floor of a piece is what it held before it.
    pub fn floor_op(&self, cut: usize) -> usize {
        let hardens = |performed: &&Performed| matches!(performed.op, Op::Flush | Op::Close) && performed.done <= cut;
        self.ops.iter().rposition(|performed| hardens(&performed)).unwrap_or(0)
    }

    /// Whether an operation was issued before a cut.
    pub fn is_issued(&self, op: usize, cut: usize) -> bool {
        self.ops[op].issued <= cut
    }

    /// Whether the disk was closed at a cut and nothing has been asked since.
    pub fn is_closed(&self, cut: usize) -> bool {
        let last = self.ops.iter().rfind(|performed| performed.issued <= cut);
        last.is_some_and(|performed| performed.op == Op::Close && performed.done <= cut)
    }

    /// The session that a cut falls into.
    pub fn session(&self, cut: usize) -> Option<&Session> {
        self.sessions.iter().rev().find(|session| session.opened_at <= cut)
    }

    /// Takes the places of the marks from a trace whose events were moved about.
    pub fn follow(&mut self, events: &[Event]) {
        for (at, event) in events.iter().enumerate() {
            if let Event::Mark(mark) = event {
                let performed = &mut self.ops[*mark as usize / 2];
                *if mark % 2 == 0 { &mut performed.issued } else { &mut performed.done } = at + 1;
            }
        }
    }
}

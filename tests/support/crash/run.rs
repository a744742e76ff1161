//! Operations performed on a disk in a simulated world, with the ledger of what each piece may hold afterwards.

use super::fixture::LEAF;
use super::script::{Op, SIZE};
use super::value::{PIECE, Value};
use diffdisk::storage::Storage;
use diffdisk::storage::sim::{SimStorage, SimWorld};
use diffdisk::{Disk, OpenOptions};
use std::collections::BTreeMap;
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
    /// The file before the opening, and the identities in its current header.
    pub before: Arc<SimStorage>,
    pub identity: Identity,
}

/// The two GUIDs of the current header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub file: [u8; 16],
    pub data: [u8; 16],
}

/// Reads the current header with nothing but the specification at hand.
pub fn identity(file: &SimStorage) -> Option<Identity> {
    let mut best: Option<(u64, Identity)> = None;
    for at in [0x10000, 0x20000] {
        let mut bytes = [0; 4096];
        if !file.read_at(&mut bytes, at).is_ok_and(|n| n == 4096) || bytes[..4] != *b"head" {
            continue;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &[0; 4]), &bytes[8..]);
        if crc.to_le_bytes() != bytes[4..8] {
            continue;
        }
        let sequence = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        if best.is_none_or(|(have, _)| sequence > have) {
            best = Some((sequence, Identity { file: bytes[16..32].try_into().unwrap(), data: bytes[32..48].try_into().unwrap() }));
        }
    }
    best.map(|(_, identity)| identity)
}

/// A disk under test and everything that was asked of it.
pub struct Run {
    pub world: SimWorld,
    pub parents: Parents,
    pub ops: Vec<Performed>,
    pub sessions: Vec<Session>,
    pub initial: Arc<Vec<Value>>,
    /// What operations gave to pieces, in order.
    pub versions: BTreeMap<u64, Vec<(usize, Value)>>,
    /// Pieces whose content was found rather than written: a recovered disk is what it is.
    pub observed: BTreeMap<u64, Value>,
    disk: Option<Disk>,
    tags: u64,
}

impl Run {
    /// Opens the leaf of the world for writing.
    pub fn start(world: SimWorld, parents: Parents, initial: Arc<Vec<Value>>, tags: u64) -> Result<Self, String> {
        let mut run = Self::closed(world, parents, initial, tags);
        run.open()?;
        Ok(run)
    }

    /// Before the first opening.
    pub fn closed(world: SimWorld, parents: Parents, initial: Arc<Vec<Value>>, tags: u64) -> Self {
        let (ops, sessions, versions, observed) = (Vec::new(), Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { world, parents, ops, sessions, initial, versions, observed, disk: None, tags }
    }

    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("the disk is open")
    }

    pub fn open(&mut self) -> Result<(), String> {
        let leaf = self.world.open(LEAF).ok_or("the file is gone")?;
        let before = self.world.fork().open(LEAF).expect("a fork has the same names");
        let identity = identity(&leaf).ok_or("no header is valid")?;
        let opened_at = self.world.cut();
        self.sessions.push(Session { first: self.ops.len(), opened_at, before, identity });
        let options = OpenOptions::new().writable(true);
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
            Op::Write { at, len } => {
                let bytes = self.note_write(index, at, len);
                self.disk().write_at(&bytes, at).map_err(|e| failed(&e))?;
            }
            Op::Zeroes { at, len } => {
                self.note(index, at, len);
                self.disk().write_zeroes(at, len).map_err(|e| failed(&e))?;
            }
            Op::Trim { at, len } => {
                self.note(index, at, len);
                self.disk().trim(at, len).map_err(|e| failed(&e))?;
            }
            Op::Flush => self.disk().flush().map_err(|e| failed(&e))?,
            Op::Close => self.disk.take().expect("the disk is open").close().map_err(|e| failed(&e))?,
            Op::Open => self.open()?,
        }
        self.world.mark(2 * index as u64 + 1);
        self.ops[index].done = self.world.cut();
        Ok(())
    }

    fn note(&mut self, index: usize, at: u64, len: u64) {
        assert!(at.is_multiple_of(PIECE as u64) && len.is_multiple_of(PIECE as u64), "zeros are whole pieces here");
        for piece in at / PIECE as u64..(at + len) / PIECE as u64 {
            // Zeros over zeros allow nothing new.
            if *self.value(piece, usize::MAX) != Value::Zero {
                self.versions.entry(piece).or_default().push((index, Value::Zero));
            }
        }
    }

    fn note_write(&mut self, index: usize, at: u64, len: u64) -> Vec<u8> {
        self.tags += 1;
        let value = Value::Tag(self.tags);
        let (first, end) = (at / PIECE as u64, (at + len).div_ceil(PIECE as u64));
        let mut bytes = Vec::with_capacity(((end - first) as usize) * PIECE);
        for piece in first..end {
            let start = piece * PIECE as u64;
            let full = at <= start && start + PIECE as u64 <= at + len;
            let pattern = value.bytes(piece);
            bytes.extend_from_slice(&pattern);
            let new = if full {
                value.clone()
            } else {
                let mut mixed = self.value(piece, usize::MAX).bytes(piece);
                let (from, to) = ((at.max(start) - start) as usize, ((at + len).min(start + PIECE as u64) - start) as usize);
                mixed[from..to].copy_from_slice(&pattern[from..to]);
                Value::Bytes(Arc::new(mixed))
            };
            self.versions.entry(piece).or_default().push((index, new));
        }
        let skip = (at - first * PIECE as u64) as usize;
        bytes[skip..skip + len as usize].to_vec()
    }

    /// What a piece holds after all operations before `op`.
    pub fn value(&self, piece: u64, op: usize) -> &Value {
        let newest = self.versions.get(&piece).and_then(|versions| versions.iter().rev().find(|(index, _)| *index < op));
        let before = || self.observed.get(&piece).unwrap_or(&self.initial[piece as usize]);
        newest.map_or_else(before, |(_, value)| value)
    }

    /// What all pieces hold now.
    pub fn latest(&self) -> Vec<Value> {
        (0..SIZE / PIECE as u64).map(|piece| self.value(piece, usize::MAX).clone()).collect()
    }

    /// The last operation done at a cut that makes everything before it durable. The floor of a piece is what it held before it.
    pub fn floor_op(&self, cut: usize) -> usize {
        let hardens = |performed: &&Performed| matches!(performed.op, Op::Flush | Op::Close) && performed.done <= cut;
        self.ops.iter().rposition(|performed| hardens(&performed)).unwrap_or(0)
    }

    /// The session that a cut falls into.
    pub fn session(&self, cut: usize) -> Option<&Session> {
        self.sessions.iter().rev().find(|session| session.opened_at <= cut)
    }

    /// Whether these bytes may be what a piece holds after a crash at a cut.
    pub fn allowed(&self, cut: usize, floor: usize, piece: u64, bytes: &[u8]) -> Option<&Value> {
        let old = self.value(piece, floor);
        if old.matches(piece, bytes) {
            return Some(old);
        }
        let later = self.versions.get(&piece)?.iter().filter(|(index, _)| *index >= floor && self.ops[*index].issued <= cut);
        later.map(|(_, value)| value).find(|value| value.matches(piece, bytes))
    }
}

//! Storage that fails on command while the program lives on, and counts what it is asked.
//!
//! A test arms a [`Fault`] for the k-th call of a kind, runs its script, and counts k up until a run finishes unharmed. For
//! syncs the interesting question is what became of the dirty data ([`Lost`]): kernels may drop it, keep showing it to readers,
//! and say yes to the next sync. [`FaultStorage`] therefore keeps beside the file it wraps what the *device* holds, and
//! [`FaultStorage::power_cut`] goes back to that.

use super::sparse::SparseFile;
use crate::storage::{Storage, StorageId, SyncSite};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering};
use std::io;

/// The calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of the calls of Storage")]
pub enum CallKind {
    Read,
    Write,
    Len,
    SetLen,
    Sync,
    Punch,
}

/// How many calls of each kind were made, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the calls of Storage")]
pub struct Calls {
    pub reads: u64,
    pub writes: u64,
    pub lens: u64,
    pub set_lens: u64,
    pub syncs: u64,
    pub punches: u64,
}

impl Calls {
    /// The count of one kind.
    pub fn of(&self, kind: CallKind) -> u64 {
        match kind {
            CallKind::Read => self.reads,
            CallKind::Write => self.writes,
            CallKind::Len => self.lens,
            CallKind::SetLen => self.set_lens,
            CallKind::Sync => self.syncs,
            CallKind::Punch => self.punches,
        }
    }

    fn of_mut(&mut self, kind: CallKind) -> &mut u64 {
        match kind {
            CallKind::Read => &mut self.reads,
            CallKind::Write => &mut self.writes,
            CallKind::Len => &mut self.lens,
            CallKind::SetLen => &mut self.set_lens,
            CallKind::Sync => &mut self.syncs,
            CallKind::Punch => &mut self.punches,
        }
    }
}

/// What a failed sync did to the data it was to harden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing: it is still dirty, and the next sync may harden it.
    Nothing,
    /// The device does not have it, readers still see it, and no later sync will write it.
    OnDevice,
    /// Readers see the old content again.
    Everywhere,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and does nothing.
    Error(io::ErrorKind),
    /// The call does its work, then fails.
    ErrorAfterEffect(io::ErrorKind),
    /// The first half of a write lands, then the call fails.
    ErrorAfterHalf(io::ErrorKind),
    /// A read or write moves only the first byte.
    ShortOne,
    /// A read or write moves half of the bytes (at least one).
    ShortHalf,
    /// A read or write moves all bytes but one (at least one).
    ShortAllButOne,
    /// A read returns 0 bytes, a write takes 0 bytes.
    Nothing,
    /// A read returns a wrong bit: bit 0 of the byte at this file offset, when the read covers it.
    FlipBit(u64),
    /// A sync fails.
    Sync(io::ErrorKind, Lost),
    /// A sync says yes, has failed, and the next one says so.
    SyncLate(io::ErrorKind, Lost),
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// For the one call.
    Once,
    /// For this many calls.
    Times(u64),
    /// Until healed.
    FromThen,
}

#[derive(Clone, Copy, Debug)]
struct Armed {
    kind: CallKind,
    first: u64,
    last: u64,
    fault: Fault,
}

#[derive(Debug)]
enum Dirty {
    Bytes(u64, Box<[u8]>),
    SetLen(u64),
    Zero(u64, u64),
}

#[derive(Debug, Default)]
struct State {
    calls: Calls,
    sites: Vec<SyncSite>,
    armed: Vec<Armed>,
    hits: u64,
    late: Option<io::ErrorKind>,
    device: SparseFile,
    dirty: Vec<Dirty>,
    /// Ranges where the file may differ from the device.
    touched: Vec<(u64, u64)>,
}

/// A storage that wraps another, counts the calls and fails those it was told to fail.
///
/// ```
/// use diffdisk::storage::{MemoryStorage, Storage, sim::{CallKind, Fault, FaultStorage, Repeat}};
/// use std::{io::ErrorKind, sync::Arc};
/// let file = FaultStorage::new(Arc::new(MemoryStorage::new()))?;
/// file.arm(CallKind::Write, 2, Repeat::Once, Fault::Error(ErrorKind::StorageFull));
/// assert!(file.write_at(&[1], 0).is_ok());
/// assert_eq!(file.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::StorageFull);
/// assert!(file.write_at(&[1], 0).is_ok());
/// assert_eq!(file.calls().writes, 3);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
    /// See [`FaultStorage::offer_durable_writes`].
    durable: AtomicBool,
}

impl FaultStorage {
    /// Around a file, whose present content counts as durable.
    ///
    /// # Errors
    /// When the content cannot be read.
    pub fn new(inner: Arc<dyn Storage>) -> io::Result<Self> {
        let mut device = SparseFile::default();
        let mut at = 0;
        while let Some((start, end)) = inner.next_data(at)? {
            let mut part = vec![0; (end - start).min(1 << 20) as usize];
            let n = inner.read_at(&mut part, start)?;
            device.write(&part[..n], start);
            at = start + n.max(1) as u64;
        }
        device.set_len(inner.len()?);
        Ok(Self { inner, state: Mutex::new(State { device, ..State::default() }), durable: AtomicBool::new(false) })
    }

    /// Around `copy`, a copy of the file under this one, with the same content of the device. Costs almost nothing, unlike
    /// [`FaultStorage::new`], which reads the file.
    #[must_use]
    pub fn fork(&self, copy: Arc<dyn Storage>) -> Self {
        let state = State { device: self.state.lock().device.clone(), ..State::default() };
        Self { inner: copy, state: Mutex::new(state), durable: AtomicBool::new(self.durable.load(Ordering::Relaxed)) }
    }

    /// Says whether it offers [`Storage::write_durable`] as something cheaper than a sync; it does not, unless told to. Such a write is a
    /// write and a sync by count, and either may fail; what it hardens is its own range and nothing else.
    pub fn offer_durable_writes(&self, offered: bool) {
        self.durable.store(offered, Ordering::Relaxed);
    }

    /// Makes the `k`-th call of a kind from now on (1 is the next) fail, and those after it as `repeat` says.
    pub fn arm(&self, kind: CallKind, k: u64, repeat: Repeat, fault: Fault) {
        let mut state = self.state.lock();
        let first = state.calls.of(kind) + k;
        let last = match repeat {
            Repeat::Once => first,
            Repeat::Times(n) => first + n.saturating_sub(1),
            Repeat::FromThen => u64::MAX,
        };
        state.armed.push(Armed { kind, first, last, fault });
    }

    /// Disarms everything.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.armed.clear();
        state.late = None;
    }

    /// How many calls an armed fault has met so far. A counted loop ends when a run meets none.
    pub fn hits(&self) -> u64 {
        self.state.lock().hits
    }

    /// The calls so far.
    pub fn calls(&self) -> Calls {
        self.state.lock().calls
    }

    /// The barriers asked for so far, in order.
    pub fn sync_sites(&self) -> Vec<SyncSite> {
        self.state.lock().sites.clone()
    }

    /// Starts the counts anew. Faults armed keep their distance.
    pub fn reset_calls(&self) {
        let mut state = self.state.lock();
        let old = std::mem::take(&mut state.calls);
        state.sites.clear();
        state.hits = 0;
        for armed in &mut state.armed {
            let before = old.of(armed.kind);
            armed.first = armed.first.saturating_sub(before);
            armed.last = if armed.last == u64::MAX { u64::MAX } else { armed.last.saturating_sub(before) };
        }
    }

    /// Makes the file what the device holds: everything that no good sync has hardened is gone.
    ///
    /// # Errors
    /// When the wrapped storage fails.
    pub fn power_cut(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.dirty.clear();
        Self::revert(&self.inner, &mut state)
    }

    fn revert(inner: &Arc<dyn Storage>, state: &mut State) -> io::Result<()> {
        let len = state.device.len();
        for (start, end) in std::mem::take(&mut state.touched) {
            let mut at = start;
            while at < end.min(len) {
                let mut part = vec![0; (end.min(len) - at).min(1 << 20) as usize];
                state.device.read(&mut part, at);
                super::super::write_all(&**inner, &part, at).map_err(io::Error::other)?;
                at += part.len() as u64;
            }
        }
        inner.set_len(len)
    }

    /// Counts a call and says what goes wrong with it.
    fn meet(&self, kind: CallKind) -> Option<Fault> {
        let mut state = self.state.lock();
        let count = state.calls.of_mut(kind);
        *count += 1;
        let count = *count;
        let fault = state.armed.iter().find(|armed| armed.kind == kind && (armed.first..=armed.last).contains(&count))?.fault;
        state.hits += 1;
        Some(fault)
    }

    fn write_part(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        let old = self.inner.len()?;
        let n = self.inner.write_at(buf, at)?;
        let mut state = self.state.lock();
        state.dirty.push(Dirty::Bytes(at, buf[..n].into()));
        state.touched.push((at.min(old), at + n as u64));
        Ok(n)
    }

    /// Counts a barrier, and says what becomes of it; `lose` is what a loss is for this one.
    fn meet_sync(&self, site: SyncSite, lose: impl Fn(Lost) -> io::Result<()>) -> io::Result<Met> {
        let fault = self.meet(CallKind::Sync);
        let late = {
            let mut state = self.state.lock();
            state.sites.push(site);
            state.late.take()
        };
        if let Some(kind) = late {
            return Err(kind.into());
        }
        match fault {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::Sync(kind, lost)) => lose(lost).and(Err(kind.into())),
            Some(Fault::SyncLate(kind, lost)) => {
                lose(lost)?;
                self.state.lock().late = Some(kind);
                Ok(Met::Lied)
            }
            fault => Ok(Met::Goes(fault)),
        }
    }

    fn lose(&self, lost: Lost) -> io::Result<()> {
        let mut state = self.state.lock();
        match lost {
            Lost::Nothing => Ok(()),
            Lost::OnDevice => {
                state.dirty.clear();
                Ok(())
            }
            Lost::Everywhere => {
                state.dirty.clear();
                Self::revert(&self.inner, &mut state)
            }
        }
    }
}

/// What is said of a call that was done.
fn afterwards(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        Some(Fault::ErrorAfterEffect(kind) | Fault::ErrorAfterHalf(kind)) => Err(kind.into()),
        _ => Ok(()),
    }
}

/// What a barrier that was not refused does.
enum Met {
    /// It says yes and has done nothing.
    Lied,
    /// It does what it should, and this comes on top.
    Goes(Option<Fault>),
}

/// How many of `n` bytes a short call moves.
fn short(fault: Fault, n: usize) -> usize {
    match fault {
        Fault::ShortOne => n.min(1),
        Fault::ShortHalf => (n / 2).max(n.min(1)),
        Fault::ShortAllButOne => (n.saturating_sub(1)).max(n.min(1)),
        _ => n,
    }
}

impl Storage for FaultStorage {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        match self.meet(CallKind::Read) {
            Some(Fault::Error(kind) | Fault::ErrorAfterEffect(kind) | Fault::ErrorAfterHalf(kind)) => Err(kind.into()),
            Some(Fault::Nothing) => Ok(0),
            Some(Fault::FlipBit(place)) => {
                let n = self.inner.read_at(buf, at)?;
                if let Some(byte) = place.checked_sub(at).and_then(|within| buf[..n].get_mut(within as usize)) {
                    *byte ^= 1;
                }
                Ok(n)
            }
            Some(fault) => {
                let n = short(fault, buf.len());
                self.inner.read_at(&mut buf[..n], at)
            }
            None => self.inner.read_at(buf, at),
        }
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        match self.meet(CallKind::Write) {
            Some(Fault::Error(kind)) => Err(kind.into()),
            Some(Fault::ErrorAfterEffect(kind)) => self.write_part(buf, at).and(Err(kind.into())),
            Some(Fault::ErrorAfterHalf(kind)) => self.write_part(&buf[..buf.len() / 2], at).and(Err(kind.into())),
            Some(Fault::Nothing) => Ok(0),
            Some(fault) => self.write_part(&buf[..short(fault, buf.len())], at),
            None => self.write_part(buf, at),
        }
    }

    fn len(&self) -> io::Result<u64> {
        match self.meet(CallKind::Len) {
            Some(Fault::Error(kind)) => Err(kind.into()),
            _ => self.inner.len(),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let fault = self.meet(CallKind::SetLen);
        if let Some(Fault::Error(kind)) = fault {
            return Err(kind.into());
        }
        let old = self.inner.len()?;
        self.inner.set_len(len)?;
        let mut state = self.state.lock();
        state.dirty.push(Dirty::SetLen(len));
        state.touched.push((len.min(old), len.max(old)));
        afterwards(fault)
    }

    fn sync(&self, site: SyncSite) -> io::Result<()> {
        let fault = match self.meet_sync(site, |lost| self.lose(lost))? {
            Met::Lied => return Ok(()),
            Met::Goes(fault) => fault,
        };
        self.inner.sync(site)?;
        let mut state = self.state.lock();
        let dirty = std::mem::take(&mut state.dirty);
        for change in dirty {
            match change {
                Dirty::Bytes(at, bytes) => state.device.write(&bytes, at),
                Dirty::SetLen(len) => state.device.set_len(len),
                Dirty::Zero(at, len) => state.device.zero(at, len),
            }
        }
        afterwards(fault)
    }

    fn writes_durably(&self) -> bool {
        self.durable.load(Ordering::Relaxed)
    }

    fn write_durable(&self, buf: &[u8], at: u64, site: SyncSite) -> io::Result<()> {
        let before = self.state.lock().dirty.len();
        super::super::write_all(self, buf, at).map_err(|e| io::Error::new(e.source.kind(), e))?;
        if !self.writes_durably() {
            return self.sync(site);
        }
        let lose = |lost| match lost {
            // These bytes alone were to be hardened, and are what the system forgets about.
            Lost::OnDevice => {
                self.state.lock().dirty.truncate(before);
                Ok(())
            }
            Lost::Nothing | Lost::Everywhere => self.lose(lost),
        };
        let fault = match self.meet_sync(site, lose)? {
            Met::Lied => return Ok(()),
            Met::Goes(fault) => fault,
        };
        self.inner.sync(site)?;
        // What is waiting below stays where it is in the order, and puts the same bytes there once more.
        self.state.lock().device.write(buf, at);
        afterwards(fault)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let fault = self.meet(CallKind::Punch);
        if let Some(Fault::Error(kind)) = fault {
            return Err(kind.into());
        }
        self.inner.punch(at, len)?;
        let mut state = self.state.lock();
        state.dirty.push(Dirty::Zero(at, len));
        state.touched.push((at, at.saturating_add(len)));
        afterwards(fault)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn content(file: &FaultStorage) -> Vec<u8> {
        let mut all = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut all, 0).unwrap();
        all
    }

    fn fresh() -> FaultStorage {
        let file = FaultStorage::new(Arc::new(MemoryStorage::from_bytes(&[1; 8]))).unwrap();
        file.write_at(&[2; 12], 4).unwrap();
        file
    }

    #[test]
    fn a_power_cut_goes_back_to_the_last_good_sync() {
        let file = fresh();
        file.power_cut().unwrap();
        assert_eq!(content(&file), [1; 8]);
        file.write_at(&[3; 2], 0).unwrap();
        file.sync(SyncSite::Payload).unwrap();
        file.write_at(&[4; 2], 0).unwrap();
        file.set_len(3).unwrap();
        file.power_cut().unwrap();
        assert_eq!(content(&file), [3, 3, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_failed_sync_may_lose_data_in_three_ways() {
        let file = fresh();
        file.arm(CallKind::Sync, 1, Repeat::Once, Fault::Sync(io::ErrorKind::Other, Lost::Everywhere));
        file.sync(SyncSite::Payload).unwrap_err();
        assert_eq!(content(&file), [1; 8]);

        let file = fresh();
        file.arm(CallKind::Sync, 1, Repeat::Once, Fault::Sync(io::ErrorKind::Other, Lost::OnDevice));
        file.sync(SyncSite::Payload).unwrap_err();
        file.sync(SyncSite::Payload).unwrap();
        assert_eq!(content(&file).len(), 16, "readers still see it");
        file.power_cut().unwrap();
        assert_eq!(content(&file), [1; 8], "the second sync said yes and meant nothing");

        let file = fresh();
        file.arm(CallKind::Sync, 1, Repeat::Once, Fault::Sync(io::ErrorKind::Other, Lost::Nothing));
        file.sync(SyncSite::Payload).unwrap_err();
        file.sync(SyncSite::Payload).unwrap();
        file.power_cut().unwrap();
        assert_eq!(content(&file).len(), 16);
    }

    #[test]
    fn a_durable_write_hardens_its_range_and_nothing_else() {
        let file = fresh();
        file.offer_durable_writes(true);
        file.write_durable(&[5; 2], 1, SyncSite::Log).unwrap();
        file.power_cut().unwrap();
        assert_eq!(content(&file), [1, 5, 5, 1, 1, 1, 1, 1]);
        for (lost, seen) in [(Lost::Nothing, 6), (Lost::OnDevice, 6), (Lost::Everywhere, 1)] {
            let file = fresh();
            file.offer_durable_writes(true);
            file.arm(CallKind::Sync, 1, Repeat::Once, Fault::Sync(io::ErrorKind::Other, lost));
            file.write_durable(&[6; 2], 1, SyncSite::Log).unwrap_err();
            assert_eq!(content(&file)[1], seen, "{lost:?}");
            file.sync(SyncSite::Payload).unwrap();
            file.power_cut().unwrap();
            assert_eq!(content(&file)[1] == 6, lost == Lost::Nothing, "{lost:?}");
            assert_eq!(
                content(&file).len() == 16,
                lost != Lost::Everywhere,
                "what else was written is lost only where everything is: {lost:?}"
            );
        }
    }

    #[test]
    fn a_late_error_is_told_by_the_next_sync() {
        let file = fresh();
        file.arm(CallKind::Sync, 1, Repeat::Once, Fault::SyncLate(io::ErrorKind::Other, Lost::OnDevice));
        file.sync(SyncSite::Payload).unwrap();
        file.sync(SyncSite::Payload).unwrap_err();
        file.sync(SyncSite::Payload).unwrap();
    }

    #[test]
    fn short_calls_and_counts() {
        let file = fresh();
        file.reset_calls();
        file.arm(CallKind::Read, 2, Repeat::Times(2), Fault::ShortOne);
        let mut buf = [0; 4];
        let lens: Vec<usize> = (0..4).map(|_| file.read_at(&mut buf, 0).unwrap()).collect();
        assert_eq!(lens, [4, 1, 1, 4]);
        assert_eq!(file.calls().reads, 4);
        assert_eq!(file.hits(), 2);
    }
}

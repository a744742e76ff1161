//! The changing half of an open disk: session, space, locks, latch.
//!
//! Lock order, outermost first; nobody takes an outer lock while holding an inner one:
//!
//! ```text
//! commit            the flush leader's seat: headers, log, the pages on their way home
//!   stripe[block % 64]   one block's first touches, trims and partial sectors
//!     gate          shared while entries and bits change, exclusive while they are frozen
//!       space       which MiB of the file are whose
//!         dirty list, bitmap and BAT pages (atomics, no lock)
//! ```
//!
//! No lock but `commit` is held across a sync, no two stripes at once, and no callback runs under any of them. Reads and rewrites
//! of sectors that are present take none.
//!
//! A session begins with the first change after opening. In this order:
//!   1. scan the BAT for used space (nothing is written)
//!   2. a header with new file and data write GUIDs, synced   crash: the old header, nothing changed
//!   3. the same in the other slot, not synced                crash: 2
//!   4. from here on bytes of the file may change (first its length, where it ends inside a MiB or a block)
//!
//! Step 2 costs the one sync that MS-VHDX 2.2.2.1 asks for: identity before change. The log gets its name in the first
//! commit, see `log/writer.rs`.
//!
//! A session that only moves things about (compacting, hydrating, a new parent locator) changes nothing that a user can see, so it
//! begins with a new file write GUID alone ([`Session::Layout`]): children of the file go on recognising it. When content is to change
//! after all, the data write GUID follows in a header of its own, synced, before the first byte:
//!   5. what is in flight, synced             crash: as before, nothing of it counts less
//!   6. a header with a new data write GUID   crash: the old identity or the new one, the content is still the same

use super::error::DiskError;
use super::layer::{Layer, Placed};
use super::riding::Riders;
use crate::format::{Fault, FormatError};
use crate::geometry::BatRole;
use crate::guid::{DataWriteGuid, FileWriteGuid, Guid};
use crate::kind::Structure;
use crate::log::headers::HeaderPair;
use crate::log::writer::LogWriter;
use crate::mapping::bat::BatTable;
use crate::mapping::dirty::{DirtyList, PageKey};
use crate::mapping::quarantine::Quarantine;
use crate::mapping::space::{Allotment, Claim, MAX_FILE_MIB, Space, UsedMap};
use crate::storage::{self, SyncSite};
use crate::sync::{Arc, AtomicBool, AtomicU8, Mutex, MutexGuard, OnceLock, Ordering, RwLock, fewer_when_checked};
use crate::units::{BatIndex, BlockHome, BlockIndex, ChunkIndex, MIB};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

const STRIPES: usize = fewer_when_checked(64, 2);
/// Bytes of BAT that are worth reading to learn what is free. A larger table is left unread and the file only grows.
const SCAN_LIMIT: u64 = 32 << 20;

/// What a session may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Session {
    /// It has not begun.
    None,
    /// Where things are in the file, and metadata that no guest sees. The data write GUID stays.
    Layout,
    /// What a user can read.
    Content,
}

impl Session {
    fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Layout => 1,
            Self::Content => 2,
        }
    }
}

/// What the flush leader owns.
pub(crate) struct Commit {
    pub(crate) headers: HeaderPair,
    pub(crate) log: LogWriter,
    /// Bytes of the file that are known to be durable: FlushedFileOffset.
    pub(crate) durable_len: u64,
    /// What the headers' identity allows. What comes after writing it may fail and be tried again.
    identified: Session,
    /// Whether somebody else's writes to the file may be waiting for a sync.
    pub(crate) inherits: bool,
}

/// See the module.
pub(crate) struct Writer {
    pub(crate) layer: Arc<Layer>,
    pub(crate) commit: Mutex<Commit>,
    /// The code of a [`Session`].
    begun: AtomicU8,
    latched: AtomicBool,
    cause: OnceLock<DiskError>,
    stripes: Box<[Mutex<()>]>,
    pub(crate) gate: RwLock<()>,
    pub(crate) space: Mutex<Space>,
    pub(crate) dirty: DirtyList,
    pub(crate) quarantine: Quarantine,
    /// Payload that may ride in log entries; `None` unless the caller asked for that.
    pub(crate) riders: Option<Riders>,
    /// Whether payload was written since the last sync began.
    payload_dirty: AtomicBool,
    /// Sector bitmap blocks that were allocated in this session, by chunk. Two blocks of one chunk may need the chunk's first
    /// bitmap at once, under different stripes: whoever comes first allocates it here, both publish it. Taken under a stripe
    /// and outside of `gate` and `space`.
    fresh_bitmaps: Mutex<HashMap<u32, BlockHome>>,
    /// Sector bitmap blocks that were given up in this session. The log holds images of their pages: until it is empty, bringing pages home
    /// or a replay writes them there, so nobody else may have the space before the end of the session.
    pub(super) given_up: Mutex<Vec<BlockHome>>,
    /// Partially present blocks into whose missing sectors hosts are writing by themselves, and how many of them. Taken under a stripe.
    hosted: Mutex<HashMap<BlockIndex, usize>>,
    /// Held by whoever rearranges the whole file (compacting, hydrating, flattening, resizing): one of them at a time. Outside of
    /// all other locks.
    pub(crate) overhaul: Mutex<()>,
    /// Unmapped and undefined blocks that keep a place which nobody else has, as the scan found them.
    pub(crate) anchors: Mutex<Vec<(BlockIndex, BlockHome)>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("begun", &self.has_begun()).field("latched", &self.is_latched()).finish_non_exhaustive()
    }
}

impl Writer {
    /// The writer of a layer that was opened writable.
    pub(crate) fn new(layer: Arc<Layer>) -> Self {
        let headers = HeaderPair::new(layer.header.clone(), layer.slot, layer.spare);
        let log = LogWriter::new(layer.header.log_offset, u64::from(layer.header.log_length), first_sequence());
        let durable_len = layer.file_len / MIB * MIB;
        Self {
            commit: Mutex::new(Commit { headers, log, durable_len, identified: Session::None, inherits: true }),
            begun: AtomicU8::new(Session::None.code()),
            latched: AtomicBool::new(false),
            cause: OnceLock::new(),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            gate: RwLock::new(()),
            space: Mutex::new(Space::opaque(layer.file_len.div_ceil(MIB))),
            dirty: DirtyList::new(),
            quarantine: Quarantine::new(),
            riders: None,
            payload_dirty: AtomicBool::new(false),
            fresh_bitmaps: Mutex::new(HashMap::new()),
            given_up: Mutex::new(Vec::new()),
            hosted: Mutex::new(HashMap::new()),
            overhaul: Mutex::new(()),
            anchors: Mutex::new(Vec::new()),
            layer,
        }
    }

    /// Lets payload ride in log entries, see `riding.rs`. Only a child has first writes that leave the rest of a block alone.
    pub(crate) fn let_payload_ride(&mut self) {
        if self.layer.has_parent() {
            self.riders = Some(Riders::new());
            self.commit.lock().log.has_riders = true;
        }
    }

    /// Everything in the file is known to be durable: it was synced when it was made.
    pub(crate) fn inherit_nothing(&self) {
        self.commit.lock().inherits = false;
    }

    /// The identity of the content, which stays for the rest of the session once that has begun.
    pub(crate) fn data_write_guid(&self) -> DataWriteGuid {
        self.commit.lock().headers.current().data_write
    }

    /// Whether an earlier failure put an end to writing.
    pub(crate) fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// Refuses when latched.
    #[inline]
    pub(crate) fn check_latch(&self) -> Result<(), DiskError> {
        if self.is_latched() { Err(self.latch_error()) } else { Ok(()) }
    }

    #[cold]
    fn latch_error(&self) -> DiskError {
        let cause = self.cause.get().cloned().expect("the cause is set before the latch");
        DiskError::Latched { cause: Box::new(cause) }
    }

    /// Puts an end to writing on this handle, because nobody knows what the file holds now.
    pub(crate) fn latch(&self, cause: DiskError) -> DiskError {
        let _ = self.cause.set(cause.clone());
        self.latched.store(true, Ordering::Release);
        cause
    }

    /// The lock of a block's first touches.
    pub(crate) fn stripe(&self, block: BlockIndex) -> MutexGuard<'_, ()> {
        self.stripes[block.get() as usize % STRIPES].lock()
    }

    /// All stripes, in their order: nobody is inside a first touch, a trim or a partial sector meanwhile. The caller holds `commit`, so
    /// there is one of these at a time, and who holds a single stripe waits for no other.
    pub(crate) fn all_stripes(&self) -> Vec<MutexGuard<'_, ()>> {
        self.stripes.iter().map(Mutex::lock).collect()
    }

    /// Whether the session has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire) != Session::None.code()
    }

    /// Begins the session if this is its first change of content.
    #[inline]
    pub(crate) fn begin(&self) -> Result<(), DiskError> {
        // Acquire pairs with the Release in `begin_now`: whoever sees the flag sees the space map.
        if self.begun.load(Ordering::Acquire) == Session::Content.code() { Ok(()) } else { self.begin_now(Session::Content, None) }
    }

    /// Begins the session, if it has not begun, for changes that no user can see: the data write GUID stays.
    pub(crate) fn begin_layout(&self) -> Result<(), DiskError> {
        if self.has_begun() { Ok(()) } else { self.begin_now(Session::Layout, None) }
    }

    /// Begins the session with a data write GUID of the caller's choice.
    ///
    /// # Panics
    /// When content has changed in this session already: its identity is out.
    pub(crate) fn begin_as(&self, data_write: DataWriteGuid) -> Result<(), DiskError> {
        assert!(self.begun.load(Ordering::Acquire) != Session::Content.code(), "an identity is chosen before anything changes");
        self.begin_now(Session::Content, Some(data_write))
    }

    #[cold]
    fn begin_now(&self, wanted: Session, data_write: Option<DataWriteGuid>) -> Result<(), DiskError> {
        let mut commit = self.commit.lock();
        let begun = self.begun.load(Ordering::Acquire);
        if begun >= wanted.code() {
            return Ok(());
        }
        self.check_latch()?;
        // Whoever moves things about wants to know all free space, and has the time.
        let limit = if wanted == Session::Layout { u64::MAX } else { SCAN_LIMIT };
        let scanned = if begun == Session::None.code() { Some(self.scan_space(limit)?) } else { None };
        let file = &*self.layer.file;
        self.identify(&mut commit, wanted, data_write).map_err(|e| self.latch(e))?;
        if let Some((mut space, anchors)) = scanned {
            // qemu cuts the last block of a fixed disk short; bring it to full length before anything goes behind it.
            if space.end() * MIB > self.layer.file_len {
                storage::set_len(file, space.end() * MIB)?;
            }
            space.grown(space.end());
            self.layer.bat.set_file_len(space.end() * MIB);
            *self.space.lock() = space;
            *self.anchors.lock() = anchors;
        }
        self.begun.store(wanted.code(), Ordering::Release);
        Ok(())
    }

    /// Gives the headers the identity that a session of this kind needs, durably.
    pub(crate) fn identify(&self, commit: &mut Commit, wanted: Session, data_write: Option<DataWriteGuid>) -> Result<(), DiskError> {
        if commit.identified >= wanted {
            return Ok(());
        }
        let file = &*self.layer.file;
        let headers = &mut commit.headers;
        headers.change(file, SyncSite::Identity, |header| {
            header.file_write = FileWriteGuid::random();
            if wanted == Session::Content {
                header.data_write = data_write.unwrap_or_else(DataWriteGuid::random);
            }
        })?;
        headers.mirror(file)?;
        commit.identified = wanted;
        Ok(())
    }

    /// The data write GUID that the file has now.
    pub(crate) fn data_write(&self) -> DataWriteGuid {
        self.commit.lock().headers.current().data_write
    }

    /// Learns from the BAT which MiB of the file are used. Holes in the table are skipped, so a fresh clone of a 64 TiB disk
    /// costs one system call. Returns the anchors that lie over nothing as well.
    fn scan_space(&self, limit: u64) -> Result<(Space, Vec<(BlockIndex, BlockHome)>), DiskError> {
        let layer = &*self.layer;
        let file_end = layer.file_len.div_ceil(MIB);
        let mut used = UsedMap::default();
        for &(start, end, _) in layer.bat.taken() {
            // Regions were checked against each other and the file when it was opened.
            let _ = used.claim(start / MIB, (end - start) / MIB);
        }
        let mut anchors = Vec::new();
        let complete = layer.bat.walk(&*layer.file, limit, |index, word| -> Result<(), DiskError> {
            let Some(placed) = layer.placed(index, word) else { return Ok(()) };
            if placed.is_anchor {
                anchors.push((index, placed));
            } else if used.claim(placed.home.mib(), placed.mib) != Claim::Free {
                return Err(FormatError::new(
                    Structure::BatEntry,
                    layer.bat.entry_at(index),
                    Fault::SharedPlace { mib: placed.home.mib(), other: None },
                )
                .into());
            }
            Ok(())
        })?;
        if !complete {
            return Ok((Space::opaque(file_end), Vec::new()));
        }
        // After the blocks: an anchor that lies over something is nonsense that nobody reads, and gives nothing back.
        anchors.retain(|(_, placed)| used.claim(placed.home.mib(), placed.mib) == Claim::Free);
        let own = |(index, placed): (BatIndex, Placed)| match layer.geometry.bat_role(index) {
            Some(BatRole::Payload(block)) => Some((block, placed.home)),
            // A sector bitmap entry in a file without a parent is left alone.
            Some(BatRole::Bitmap(_)) | None => None,
        };
        Ok((Space::mapped(file_end, &used), anchors.into_iter().filter_map(own).collect()))
    }

    /// Marks that payload was written, so that the next flush syncs it. Called after the bytes are in the file.
    #[inline]
    pub(crate) fn mark_payload(&self) {
        // SeqCst here and in `take_payload`: a writer that sees `true` and leaves it was there before the leader's swap, so
        // its bytes are in the file before the leader's sync begins.
        if !self.payload_dirty.load(Ordering::SeqCst) {
            self.payload_dirty.store(true, Ordering::SeqCst);
        }
    }

    /// Whether payload waits for a sync.
    pub(crate) fn has_payload(&self) -> bool {
        self.payload_dirty.load(Ordering::SeqCst)
    }

    /// Whether payload waits for a sync; the caller syncs next.
    pub(crate) fn take_payload(&self) -> bool {
        self.payload_dirty.swap(false, Ordering::SeqCst)
    }

    /// Space for `mib` MiB, inside the file, reading as zeros if asked for.
    pub(crate) fn allocate(&self, mib: u64, wants_zeros: bool) -> Result<Allotment, DiskError> {
        let file = &*self.layer.file;
        let space = {
            let mut space = self.space.lock();
            let too_large = DiskError::FileTooLarge { limit: MAX_FILE_MIB * MIB };
            let allotment = space.allocate(mib, wants_zeros).ok_or(too_large)?;
            if let Some((comfortable, least)) = space.growth() {
                // Under the space lock, so that the file never shrinks under a block that another thread just got.
                let grown = match storage::set_len(file, comfortable * MIB) {
                    Ok(()) => Ok(comfortable),
                    Err(_) => storage::set_len(file, least * MIB).map(|()| least),
                };
                match grown {
                    Ok(end) => {
                        space.grown(end);
                        self.layer.bat.set_file_len(end * MIB);
                    }
                    Err(e) => {
                        space.retract(allotment);
                        return Err(e.into());
                    }
                }
            }
            allotment
        };
        if space.reused {
            self.quarantine.count_reuse();
        }
        if wants_zeros { self.zeroed(space) } else { Ok(space) }
    }

    /// Makes space that was just allocated read as zeros.
    pub(crate) fn zeroed(&self, space: Allotment) -> Result<Allotment, DiskError> {
        if !space.zeroed {
            let done = storage::punch_or_zero(&*self.layer.file, space.home.start().get(), space.mib * MIB);
            self.mark_payload();
            if let Err(e) = done {
                self.space.lock().give_back(space);
                return Err(e.into());
            }
        }
        Ok(space)
    }

    /// The sector bitmap block of a chunk is elsewhere now, or nowhere.
    pub(crate) fn forget_fresh_bitmap(&self, chunk: ChunkIndex, now: Option<BlockHome>) {
        if let Entry::Occupied(mut found) = self.fresh_bitmaps.lock().entry(chunk.get()) {
            match now {
                Some(home) => *found.get_mut() = home,
                None => drop(found.remove()),
            }
        }
    }

    /// The sector bitmap block that this session allocated for a chunk, if it did. Pages of it that are not in memory are
    /// zeros.
    pub(crate) fn fresh_bitmap(&self, chunk: ChunkIndex) -> Option<BlockHome> {
        self.fresh_bitmaps.lock().get(&chunk.get()).copied()
    }

    /// The same, allocating it now if the chunk has none.
    pub(crate) fn claim_bitmap(&self, chunk: ChunkIndex) -> Result<BlockHome, DiskError> {
        match self.fresh_bitmaps.lock().entry(chunk.get()) {
            Entry::Occupied(found) => Ok(*found.get()),
            Entry::Vacant(free) => Ok(*free.insert(self.allocate(1, true)?.home)),
        }
    }

    /// The sector bitmap block of a chunk is not needed any more. The caller holds the gate and publishes that.
    pub(crate) fn give_up_bitmap(&self, chunk: ChunkIndex, home: BlockHome) {
        self.fresh_bitmaps.lock().remove(&chunk.get());
        self.given_up.lock().push(home);
    }

    /// A host is going to write into missing sectors of a partially present block. The caller holds the block's stripe.
    pub(super) fn enter_hosted(&self, block: BlockIndex) {
        *self.hosted.lock().entry(block).or_insert(0) += 1;
    }

    /// The host is done, or gave up.
    pub(super) fn leave_hosted(&self, block: BlockIndex) {
        if let Entry::Occupied(mut hosts) = self.hosted.lock().entry(block) {
            *hosts.get_mut() -= 1;
            if *hosts.get() == 0 {
                hosts.remove();
            }
        }
    }

    /// Whether a host is writing into it. The caller holds the block's stripe.
    pub(super) fn is_hosted(&self, block: BlockIndex) -> bool {
        self.hosted.lock().contains_key(&block)
    }

    /// Publishes a BAT entry. The caller holds the gate (shared) and the block's stripe.
    pub(crate) fn publish(&self, index: BatIndex, word: u64) {
        let page = self.layer.bat.store(index, word);
        self.dirty.mark(PageKey::Bat(BatTable::page_of(index)), &page.dirty);
    }
}

/// Where the sequence numbers of a session start: anywhere, as Windows does, so that remains of older sessions never continue
/// a sequence by accident (MS-VHDX 2.3.1.1 only asks for more than zero).
pub(crate) fn first_sequence() -> u64 {
    let bytes = Guid::random().to_bytes();
    let random = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    (random >> 2).max(1)
}

//! The open disk: a leaf, its parents, and everything a caller can do with them.

use super::ancestor::{Ancestor, Place};
use crate::disk::backing::Backing;
use crate::disk::error::DiskError;
use crate::disk::layer::{Answer, Layer};
use crate::disk::writer::Writer;
use crate::mapping::bat::MapError;
use crate::storage;
use crate::sync::Arc;
use crate::units::{FileOffset, VirtualOffset};

/// How often a read without a ticket starts over before it draws one.
const FREE_TRIES: usize = 3;

/// A virtual disk: one VHDX file and the chain it stands on.
///
/// All data calls take `&self` and may come from many threads at once. Reads, and writes to sectors that this file already
/// holds, take no lock. Dropping a disk writes nothing: what was not flushed may be lost, and the next opening replays the log.
/// [`Disk::close`] ends a session cleanly and reports what `Drop` cannot.
///
/// ```
/// use diffdisk::{CreateOptions, Disk, OpenOptions};
/// # let dir = tempfile::tempdir()?;
/// # let path = |name: &str| dir.path().join(name);
/// let base = Disk::create(path("app.vhdx"), &CreateOptions::dynamic(1 << 30))?;
/// base.write_at(b"golden", 4096)?;
/// base.close()?;
///
/// let clone = Disk::create_child(path("alice.vhdx"), path("app.vhdx"), &CreateOptions::child())?;
/// clone.write_at(b"G", 4096)?;
/// let mut word = [0; 6];
/// clone.read_at(&mut word, 4096)?;
/// assert_eq!(&word, b"Golden");
/// clone.close()?;
///
/// let base = Disk::open(path("app.vhdx"), &OpenOptions::new())?;
/// base.read_at(&mut word, 4096)?;
/// assert_eq!(&word, b"golden");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Disk {
    pub(crate) leaf: Arc<Layer>,
    pub(crate) parents: Parents,
    pub(crate) writer: Option<Writer>,
}

/// What a leaf stands on.
#[derive(Debug)]
pub(crate) enum Parents {
    /// Nothing: a fixed or dynamic disk.
    None,
    /// It has a parent, but the caller did not want it opened.
    NotOpened,
    /// The open chain.
    Line(Arc<Ancestor>),
}

/// Where a stretch of the disk is, seen from the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    Data { layer: usize, at: FileOffset },
    Zero { layer: Option<usize> },
}

/// Bytes of one file that go to neighbouring bytes of the caller's buffer.
struct Run {
    layer: usize,
    at: u64,
    from: usize,
    len: usize,
}

impl Backing for Parents {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<(), DiskError> {
        match self {
            Self::None => buf.fill(0),
            Self::NotOpened => return Err(DiskError::ParentNotOpen),
            Self::Line(line) => line.read(buf, VirtualOffset::new(at))?,
        }
        Ok(())
    }

    fn is_zero(&self, at: u64, len: u64) -> Result<bool, DiskError> {
        match self {
            Self::None => Ok(true),
            Self::NotOpened => Ok(false),
            Self::Line(line) => Ok(line.is_zero(at, len)?),
        }
    }
}

impl Disk {
    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.leaf.geometry.size()
    }

    /// The logical sector size in bytes, 512 or 4096: the unit of copy-on-write.
    pub fn logical_sector_size(&self) -> u32 {
        self.leaf.geometry.logical_sector()
    }

    /// Whether the disk was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writer.is_some()
    }

    /// Whether an earlier failed sync or metadata write put an end to writing. Reads go on; reopening recovers.
    pub fn is_degraded(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::is_latched)
    }

    /// Checks that a range lies inside the disk; `None` when it is empty.
    #[inline]
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<Option<VirtualOffset>, DiskError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok((len > 0).then(|| VirtualOffset::new(offset))),
            _ => Err(DiskError::OutOfRange { offset, len, size: self.size() }),
        }
    }

    pub(crate) fn writer(&self) -> Result<&Writer, DiskError> {
        self.writer.as_ref().ok_or(DiskError::ReadOnly)
    }

    /// Where the bytes from `at` on are, and for how many of at most `max` bytes that holds.
    #[inline]
    pub(crate) fn locate(&self, at: VirtualOffset, max: u64) -> Result<(Spot, u64), DiskError> {
        let (answer, len) = self.leaf.answer(at, max)?;
        match answer {
            Answer::Data(at) => Ok((Spot::Data { layer: 0, at }, len)),
            Answer::Zero => Ok((Spot::Zero { layer: self.leaf.zero_owner(at)? }, len)),
            Answer::Parent => self.locate_in_parents(at, len),
        }
    }

    #[inline]
    fn locate_in_parents(&self, at: VirtualOffset, max: u64) -> Result<(Spot, u64), DiskError> {
        match &self.parents {
            Parents::None => Ok((Spot::Zero { layer: None }, max)),
            Parents::NotOpened => Err(DiskError::ParentNotOpen),
            Parents::Line(line) => {
                let (place, len) = line.locate(at, max)?;
                let spot = match place {
                    Place::Data { hop, at } => Spot::Data { layer: hop + 1, at },
                    Place::Zero { hop } => Spot::Zero { layer: hop.map(|hop| hop + 1) },
                };
                Ok((spot, len))
            }
        }
    }

    #[inline]
    pub(super) fn storage_of(&self, layer: usize) -> &dyn storage::Storage {
        match (layer, &self.parents) {
            (0, _) => &*self.leaf.file,
            (_, Parents::Line(line)) => &*line.line()[layer - 1].file,
            (_, Parents::None | Parents::NotOpened) => unreachable_layer(layer),
        }
    }

    /// Fills `buf` with the bytes from `offset` on: any offset and length inside the disk. Aligned to sectors is the fast
    /// path; one stretch of one file costs one read of it.
    ///
    /// # Errors
    /// `OutOfRange` outside the disk; `Format` or `Storage` when a file of the chain lies or fails there.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let Some(at) = self.range(offset, buf.len() as u64)? else { return Ok(()) };
        let Some(writer) = &self.writer else { return self.read_located(buf, at) };
        for _ in 0..FREE_TRIES {
            let before = writer.quarantine.reuses();
            let result = self.read_located(buf, at);
            // Space that changed hands meanwhile may have been ours: what was read could be another block's bytes.
            if writer.quarantine.none_since(before) {
                return result;
            }
        }
        let _ticket = writer.quarantine.enter();
        self.read_located(buf, at)
    }

    #[inline]
    fn read_located(&self, buf: &mut [u8], at: VirtualOffset) -> Result<(), DiskError> {
        match self.locate(at, buf.len() as u64)? {
            // One stretch of one file, as small reads nearly always are.
            (Spot::Data { layer, at }, len) if len == buf.len() as u64 => {
                Ok(storage::read_zero_extended(self.storage_of(layer), buf, at.get())?)
            }
            _ => self.read_stretches(buf, at),
        }
    }

    /// Reads stretch by stretch; neighbours in one file travel in one call.
    fn read_stretches(&self, buf: &mut [u8], at: VirtualOffset) -> Result<(), DiskError> {
        let total = buf.len();
        let mut done = 0;
        let mut run: Option<Run> = None;
        while done < total {
            let (spot, len) = self.locate(VirtualOffset::new(at.get() + done as u64), (total - done) as u64)?;
            let len = len as usize;
            match spot {
                Spot::Data { layer, at } => match &mut run {
                    Some(open) if open.layer == layer && open.at + open.len as u64 == at.get() => open.len += len,
                    _ => {
                        self.read_run(run.take(), buf)?;
                        run = Some(Run { layer, at: at.get(), from: done, len });
                    }
                },
                Spot::Zero { .. } => {
                    self.read_run(run.take(), buf)?;
                    buf[done..done + len].fill(0);
                }
            }
            done += len;
        }
        self.read_run(run, buf)
    }

    fn read_run(&self, run: Option<Run>, buf: &mut [u8]) -> Result<(), DiskError> {
        if let Some(run) = run {
            storage::read_zero_extended(self.storage_of(run.layer), &mut buf[run.from..run.from + run.len], run.at)?;
        }
        Ok(())
    }

    /// Writes `buf` at `offset`: any offset and length inside the disk. The bytes are visible to reads when the call returns,
    /// and durable after the next [`Disk::flush`].
    ///
    /// A sector that is written in part for the first time is completed from the parent.
    ///
    /// # Errors
    /// `OutOfRange`, `ReadOnly`; `Latched` after an earlier failed sync; `Storage` when the file fails: the range then holds
    /// old or new bytes, sector by sector, and nothing else is affected.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DiskError> {
        let writer = self.writer()?;
        match self.range(offset, buf.len() as u64)? {
            None => writer.check_latch(),
            Some(at) => writer.write(&self.parents, buf, at),
        }
    }

    /// Makes a range read as zeros. Whole blocks give their space back; the last block counts as whole when the range reaches
    /// the end of the disk.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let writer = self.writer()?;
        match self.range(offset, len)? {
            None => writer.check_latch(),
            Some(at) => writer.write_zeroes(&self.parents, at, len),
        }
    }

    /// Makes a range zeros of this file's own: they stay zeros under any parent, also where the present one shows zeros as well.
    pub(crate) fn pin_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let writer = self.writer()?;
        match self.range(offset, len)? {
            None => writer.check_latch(),
            Some(at) => writer.pin_zeroes(&self.parents, at, len),
        }
    }

    /// Says that the content of a range is not needed any more. Whole blocks in it read as zeros afterwards (never as the
    /// parent) and give their space back; the rest of the range is left alone.
    ///
    /// # Errors
    /// As [`Disk::write_at`].
    pub fn trim(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let writer = self.writer()?;
        match self.range(offset, len)? {
            None => writer.check_latch(),
            Some(at) => writer.trim(&self.parents, at, len),
        }
    }

    /// Returns when every write that was acknowledged before the call survives a power cut. Concurrent callers share one
    /// commit. Costs no sync when nothing changed, one when only present sectors were rewritten, two otherwise.
    ///
    /// # Errors
    /// A failed sync latches the disk (`Latched` from then on). `NoSpace` before anything was published does not: free some
    /// space and flush again.
    pub fn flush(&self) -> Result<(), DiskError> {
        match &self.writer {
            Some(writer) => writer.flush(),
            None => Ok(()),
        }
    }

    /// Flushes, brings the log's content home, declares the log empty and cuts off unused space at the end of the file, so
    /// that even readers that cannot replay a log read the file right.
    ///
    /// # Errors
    /// As [`Disk::flush`].
    pub fn close(self) -> Result<(), DiskError> {
        match &self.writer {
            Some(writer) => writer.close(),
            None => Ok(()),
        }
    }
}

#[cold]
fn unreachable_layer(layer: usize) -> ! {
    panic!("layer {layer} was located in a chain that is not open")
}

impl From<Option<Arc<Ancestor>>> for Parents {
    fn from(line: Option<Arc<Ancestor>>) -> Self {
        line.map_or(Self::None, Self::Line)
    }
}

impl Layer {
    /// Who says that a stretch is zero: this layer, unless it simply holds nothing there.
    #[cold]
    pub(crate) fn zero_owner(&self, at: VirtualOffset) -> Result<Option<usize>, MapError> {
        use crate::format::PayloadState;
        Ok((self.payload(self.geometry.block_of(at))? != PayloadState::NotPresent).then_some(0))
    }
}

//! Bringing a source into a new disk: what is zero stays a hole, and what was done is not done twice.
//!
//! An image is made in `STORE/.work`, under a name that says which generation of which image it will be, and under the lock of that
//! image's name. When the caller wants to be able to resume, a journal beside it says how far the durable part reaches: the disk is
//! flushed first and the journal is written then, so the journal never claims more than is there.

use super::catalog::Store;
use super::error::StoreError;
use super::files::{self, Durability};
use super::manifest::SourceInfo;
use super::source::Opened;
use crate::chain::Disk;
use crate::kind::ErrorKind;
use crate::progress::{Cancel, Phase, Progress};
use crate::storage::{self, FileStorage, Storage};
use crate::sync::Arc;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// Bytes that are written or left out together.
const GRAIN: usize = 64 << 10;
/// Bytes between two points from which loading can be resumed.
const CHECKPOINT: u64 = 256 << 20;

/// The right to change what images of one name there are.
#[derive(Debug)]
pub(super) struct NameLock {
    path: PathBuf,
    #[expect(dead_code, reason = "it is held for its lock")]
    file: Arc<dyn Storage>,
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Removed while it is locked: who opened it meanwhile sees that it has no name any more. A leftover is only an empty file.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Store {
    /// Takes the lock of an image's name.
    pub(super) fn lock_name(&self, name: &str) -> Result<NameLock, StoreError> {
        let work = self.work_dir();
        files::make_dir(&work)?;
        let path = work.join(format!("{name}.lock"));
        let busy = || {
            let next = "wait until that is finished and try again";
            StoreError::InUse { path: self.image_dir(name), who: "another process that is making or changing this image", next }
        };
        // Two turns: one for a file that somebody left, one for a file that went away in between.
        for _ in 0..2 {
            match files::put_bytes(&path, b"", false, Durability::Quick) {
                Ok(file) => return Ok(NameLock { path, file }),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
            match FileStorage::open_write(&path) {
                Ok(file) => return Ok(NameLock { path, file: Arc::new(file) }),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if e.kind() == ErrorKind::InUse => return Err(busy()),
                Err(e) => return Err(StoreError::storage("lock", &path)(e)),
            }
        }
        Err(busy())
    }
}

/// Where one generation is made.
#[derive(Debug)]
pub(super) struct Workspace {
    dir: PathBuf,
    stem: String,
    #[expect(dead_code, reason = "it is held for its lock")]
    lock: NameLock,
}

/// How far a load has come.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) source: SourceInfo,
    pub(super) done: u64,
}

/// A file that goes away with this value.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is swept.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Workspace {
    pub(super) fn new(store: &Store, lock: NameLock, name: &str, generation: u32) -> Self {
        Self { dir: store.work_dir(), stem: format!("{name}@{generation}"), lock }
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("{}.{ending}", self.stem))
    }

    /// The disk that is being made.
    pub(super) fn disk(&self) -> PathBuf {
        self.file("vhdx")
    }

    /// The digests that are being made.
    pub(super) fn digests(&self) -> PathBuf {
        self.file("blake3")
    }

    fn journal(&self) -> PathBuf {
        self.file("part.json")
    }

    /// A file for something that is not in a file yet.
    pub(super) fn scratch(&self, ending: &str) -> Result<Scratch, StoreError> {
        let path = self.file(ending);
        files::remove(&path)?;
        Ok(Scratch(path))
    }

    /// What an earlier attempt left, if it was about the same source.
    pub(super) fn resumable(&self, source: &SourceInfo) -> Option<u64> {
        let journal: Journal = files::read_if_there(&self.journal()).ok()??;
        (journal.source == *source && source.path.is_some() && self.disk().exists()).then_some(journal.done)
    }

    fn note(&self, source: &SourceInfo, done: u64) -> Result<(), StoreError> {
        files::write(&self.journal(), &Journal { source: source.clone(), done }, Durability::Durable)
    }

    /// From here on the disk is not what was loaded any more.
    pub(super) fn forget_journal(&self) -> Result<(), StoreError> {
        files::remove(&self.journal())
    }

    /// Removes everything that an attempt left.
    pub(super) fn clear(&self) -> Result<(), StoreError> {
        for path in [self.journal(), self.disk(), self.digests()] {
            files::remove(&path)?;
        }
        Ok(())
    }
}

/// Whether to write down how far the load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    No,
    Possible,
}

/// Copies the source from `from` on.
pub(super) fn load(
    workspace: &Workspace,
    source: &Opened,
    disk: &Disk,
    from: u64,
    resume: Resume,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(), StoreError> {
    progress.phase(Phase::Load, Some(source.info.size));
    let failed = || workspace.disk();
    let checkpoint = |at: u64| -> Result<(), StoreError> {
        disk.flush().map_err(StoreError::disk(failed()))?;
        workspace.note(&source.info, at)
    };
    let mut buffer = vec![0; PIECE];
    let (mut at, mut noted) = (from, from);
    while let Some((start, end)) = source.next_data(at)? {
        // Holes need not begin on a grain of ours.
        at = start.max(at) / GRAIN as u64 * GRAIN as u64;
        while at < end {
            if cancel.is_cancelled() {
                if resume == Resume::Possible {
                    checkpoint(at)?;
                }
                return Err(StoreError::Cancelled { doing: "loading the image", left: left_by(resume) });
            }
            let len = (end.next_multiple_of(GRAIN as u64) - at).min(PIECE as u64).min(disk.size() - at) as usize;
            source.read(&mut buffer[..len], at)?;
            write_nonzero(disk, &buffer[..len], at).map_err(StoreError::disk(failed()))?;
            at += len as u64;
            progress.advance(at.min(source.info.size));
            if resume == Resume::Possible && at - noted >= CHECKPOINT {
                checkpoint(at)?;
                noted = at;
            }
        }
    }
    progress.advance(source.info.size);
    if resume == Resume::Possible { checkpoint(source.info.size) } else { Ok(()) }
}

fn left_by(resume: Resume) -> &'static str {
    match resume {
        Resume::No => "nothing was made",
        Resume::Possible => "the same command resumes it, and `image sweep` gives up on it",
    }
}

/// Writes the grains that are not all zeros, neighbours in one call.
fn write_nonzero(disk: &Disk, bytes: &[u8], at: u64) -> Result<(), crate::disk::error::DiskError> {
    let grains: Vec<&[u8]> = bytes.chunks(GRAIN).collect();
    let mut start = 0;
    for run in grains.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|grain| grain.len()).sum();
        if !is_zero(run[0]) {
            disk.write_at(&bytes[start..start + len], at + start as u64)?;
        }
        start += len;
    }
    Ok(())
}

/// Whether all bytes are zero. Compared in one piece with zeros, which is as fast as memory.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; GRAIN] = [0; GRAIN];
    bytes.chunks(GRAIN).all(|part| part == &ZEROS[..part.len()])
}

/// Puts a stream into a sparse file. Returns the file, open for reading, and the length of the stream.
pub(super) fn spool(
    mut reader: Box<dyn Read + Send>,
    path: &Path,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(FileStorage, u64), StoreError> {
    progress.phase(Phase::Gather, None);
    let file = FileStorage::create_new(path).map_err(StoreError::storage("create", path))?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(StoreError::Cancelled { doing: "reading the stream", left: "nothing was made" });
        }
        let len = fill(&mut reader, &mut buffer).map_err(StoreError::io("read", "the stream"))?;
        for (i, grain) in buffer[..len].chunks(GRAIN).enumerate().filter(|(_, grain)| !is_zero(grain)) {
            storage::write_all(&file, grain, at + (i * GRAIN) as u64).map_err(StoreError::storage("write", path))?;
        }
        at += len as u64;
        progress.advance(at);
        if len < buffer.len() {
            break;
        }
    }
    if at == 0 {
        return Err(StoreError::Source { source_name: "the stream".into(), why: "it is empty".into() });
    }
    storage::set_len(&file, at).map_err(StoreError::storage("write", path))?;
    drop(file);
    let file = FileStorage::open_read(path).map_err(StoreError::storage("open", path))?;
    Ok((file, at))
}

/// Reads until the buffer is full or the stream ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match reader.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

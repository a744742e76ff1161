//! Checking a clone or an image: the files for themselves, and what the store's books say of them.
//!
//! What is inside a file is [`Disk::examine`]'s business, which needs no file that opens; there is no second notion of a sound disk here. What only
//! the store can know stands in a list of its own: is the sidecar there, does the store know the clone, is there an image with the identity that
//! is asked for, are the savepoints those that were frozen, has a crash left something unfinished. Nothing is written.
//!
//! ```text
//!   files   alice.vhdx ─► alice.s2.avhdx ─► app/1.vhdx     one chain, examined together: what each asks for, and what the next one is
//!           alice.s1.avhdx                                  a savepoint on another branch, examined for itself
//!   books   alice.vhdx.json, STORE/.clones/ID.json, STORE/app/1.json, STORE/app/1.blake3
//! ```
//!
//! The sidecar is held meanwhile where that is possible, so that a save or a drop in progress is not taken for one that died.

use super::clone::CloneDisk;
use super::digest;
use super::error::StoreError;
use super::files::{self, Held};
use super::image::Image;
use super::open::linkage_of;
use super::record::{Ground, Record, Savepoint};
use super::repair::{is_read_only, leads_to};
use crate::chain::{Disk, OpenOptions, ParentPolicy};
use crate::disk::check::{CheckReport, Severity};
use crate::guid::Guid;
use crate::kind::ErrorKind;
use crate::progress::{Cancel, Progress};
use std::path::{Path, PathBuf};

/// Files that were examined together.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExaminedFiles {
    /// The files, leaf first. [`Finding::layer`](crate::Finding::layer) counts in this list.
    pub layers: Vec<PathBuf>,
    /// What was found in them and between them.
    pub report: CheckReport,
}

/// What is wrong in the books of a store, or between them and the files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BookFault {
    /// A clone without a sidecar.
    #[error("the clone's sidecar is missing")]
    NoSidecar,
    /// A sidecar that says nothing.
    #[error("the sidecar cannot be read ({0})")]
    SpoiledSidecar(String),
    /// The store does not know the clone, and would let its image be removed.
    #[error("the store has no record of the clone, so nothing keeps its image from being removed")]
    NoRecord,
    /// The store's record cannot be read.
    #[error("the store's record of the clone cannot be read ({0})")]
    SpoiledRecord(String),
    /// The store's record is another than the sidecar.
    #[error("the store's record of the clone says something else than its sidecar")]
    RecordDiffers,
    /// The file of a clone or an image is not there.
    #[error("the file is missing")]
    NoFile,
    /// No image of the store is what the clone stands on.
    #[error("no image of the store has the identity that it stands on, {0}")]
    NoImage(Guid),
    /// The clone stands on another image than the one that is written down.
    #[error("it stands on {found}, and {noted} is written down")]
    OtherImage {
        /// What is written down.
        noted: String,
        /// What it stands on.
        found: String,
    },
    /// A clone's file without a parent, which nobody flattened.
    #[error("it has no parent, and is written down as a clone of {0}; if somebody flattened it, `clone flatten` takes note of that")]
    NoParent(String),
    /// The paths in the file do not lead to its parent.
    #[error("the paths in it do not lead to its parent {}; other programs will not find it", .0.display())]
    WrongPaths(PathBuf),
    /// A save that nobody finished.
    #[error("saving {0} was begun and not finished")]
    UnfinishedSave(String),
    /// A drop that nobody finished.
    #[error("dropping the savepoint {0} was begun and not finished")]
    UnfinishedDrop(String),
    /// A removal that nobody finished.
    #[error("removing the clone was begun and not finished")]
    UnfinishedRemoval,
    /// A flattening that nobody finished.
    #[error("cutting the link to the image was begun and not finished")]
    UnfinishedFlatten,
    /// A reset or a rebase that nobody finished.
    #[error("putting the clone on another image was begun and not finished")]
    UnfinishedMove,
    /// The file of a savepoint is missing.
    #[error("the file of the savepoint {0} is missing")]
    NoSavepoint(String),
    /// A savepoint's content was changed, or its file is another one.
    #[error("the savepoint {name} is {wanted}, and this file is {found}: it was changed after it was frozen, or exchanged")]
    OtherSavepoint {
        /// Its name.
        name: String,
        /// The identity of what was frozen.
        wanted: Guid,
        /// The identity of what is there.
        found: Guid,
    },
    /// A savepoint stands on something else than the books say.
    #[error("the savepoint {0} stands on something else than what is written down")]
    SavepointMoved(String),
    /// A frozen file that anybody may write to.
    #[error("the file is frozen and not read-only")]
    Writable,
    /// An image's file is not the one that was sealed.
    #[error("the file is {found}, and {sealed} was sealed")]
    OtherImageFile {
        /// The identity that was sealed.
        sealed: Guid,
        /// The identity of what is there.
        found: Guid,
    },
    /// An image has another shape than the one that was sealed.
    #[error("the disk has {0} and was sealed with {1}")]
    OtherShape(String, String),
    /// The digests of an image are missing or not those of the manifest.
    #[error("the digests of its blocks cannot be used ({0}); the image cannot be verified")]
    Digests(String),
}

impl BookFault {
    /// The name that `--json` prints.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NoSidecar => "no_sidecar",
            Self::SpoiledSidecar(_) => "spoiled_sidecar",
            Self::NoRecord => "no_record",
            Self::SpoiledRecord(_) => "spoiled_record",
            Self::RecordDiffers => "record_differs",
            Self::NoFile => "no_file",
            Self::NoImage(_) => "no_image",
            Self::OtherImage { .. } => "other_image",
            Self::NoParent(_) => "no_parent",
            Self::WrongPaths(_) => "wrong_paths",
            Self::UnfinishedSave(_) => "unfinished_save",
            Self::UnfinishedDrop(_) => "unfinished_drop",
            Self::UnfinishedRemoval => "unfinished_removal",
            Self::UnfinishedFlatten => "unfinished_flatten",
            Self::UnfinishedMove => "unfinished_move",
            Self::NoSavepoint(_) => "no_savepoint",
            Self::OtherSavepoint { .. } => "other_savepoint",
            Self::SavepointMoved(_) => "savepoint_moved",
            Self::Writable => "writable",
            Self::OtherImageFile { .. } => "other_image_file",
            Self::OtherShape(..) => "other_shape",
            Self::Digests(_) => "digests",
        }
    }

    /// How bad it is: an error where content is lost, could be, or cannot be told.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoRecord
            | Self::NoFile
            | Self::NoImage(_)
            | Self::NoSavepoint(_)
            | Self::OtherSavepoint { .. }
            | Self::SavepointMoved(_)
            | Self::OtherImageFile { .. }
            | Self::OtherShape(..)
            | Self::Digests(_) => Severity::Error,
            Self::NoSidecar
            | Self::SpoiledSidecar(_)
            | Self::SpoiledRecord(_)
            | Self::RecordDiffers
            | Self::OtherImage { .. }
            | Self::NoParent(_)
            | Self::WrongPaths(_)
            | Self::UnfinishedSave(_)
            | Self::UnfinishedDrop(_)
            | Self::UnfinishedRemoval
            | Self::UnfinishedFlatten
            | Self::UnfinishedMove
            | Self::Writable => Severity::Warning,
        }
    }
}

/// One thing in the books that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookFinding {
    /// The file it is about.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: BookFault,
    /// Whether [`CloneDisk::repair`] puts it right.
    pub is_repairable: bool,
}

/// What a check of a clone or an image found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// The chain first, then savepoints that it does not lead over.
    pub files: Vec<ExaminedFiles>,
    /// What only the store can know.
    pub books: Vec<BookFinding>,
}

impl StoreReport {
    /// Whether there is no error, in the files or in the books.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// How many findings of a severity there are, in the files and in the books.
    pub fn count(&self, severity: Severity) -> u64 {
        let books = self.books.iter().filter(|finding| finding.fault.severity() == severity).count();
        self.files.iter().map(|files| files.report.count(severity)).sum::<u64>() + books as u64
    }

    fn note(&mut self, path: &Path, fault: BookFault, is_repairable: bool) {
        self.books.push(BookFinding { path: path.to_path_buf(), fault, is_repairable });
    }

    /// Whether the paths in a file lead to what it stands on. Where those of a file below do not, that one is to blame.
    fn note_paths(&mut self, path: &Path, line: &[PathBuf]) {
        let Some(parent) = line.first() else { return };
        if !leads_to(path, parent) && line.windows(2).all(|pair| leads_to(&pair[0], &pair[1])) {
            self.note(path, BookFault::WrongPaths(parent.clone()), true);
        }
    }
}

impl CloneDisk {
    /// Examines the clone's file, everything it stands on, its savepoints, and what the store has written down. Not a byte is written.
    ///
    /// ```
    /// use diffdisk::{BookFault, Cancel, CloneOptions, ImageOptions, NoProgress, Source, Store};
    /// # let dir = tempfile::tempdir()?;
    /// # let (raw, alice) = (dir.path().join("db.img"), dir.path().join("alice.vhdx"));
    /// # std::fs::write(&raw, [7; 1 << 20])?;
    /// let store = Store::open(dir.path().join("images"))?;
    /// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
    /// let clone = image.create_clone(&alice, &CloneOptions::default())?;
    /// std::fs::remove_file(dir.path().join("alice.vhdx.json"))?;
    /// let report = clone.check(&NoProgress, &Cancel::new())?;
    /// assert!(report.is_sound() && report.books[0].fault == BookFault::NoSidecar);
    /// clone.repair()?;
    /// assert!(clone.check(&NoProgress, &Cancel::new())?.books.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `NoClone`; `Foreign` when it belongs to another store; `InUse` while somebody writes to it or changes it; `Cancelled`; `Open`. What is
    /// wrong with files and books is in the report.
    pub fn check(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<StoreReport, StoreError> {
        let _held = match Held::take(&self.sidecar()) {
            // Looking needs no permission to write.
            Err(e) if e.kind() == ErrorKind::Denied => None,
            held => held?,
        };
        let record = self.record()?;
        let mut report = StoreReport { files: Vec::new(), books: Vec::new() };
        self.check_notes(&record, &mut report)?;
        let mut line = Vec::new();
        if files::exists(&self.path)? {
            line = self.check_chain(&record, &mut report, progress, cancel)?;
        } else {
            report.note(&self.path, BookFault::NoFile, false);
        }
        for savepoint in record.savepoints.iter().filter(|savepoint| !savepoint.pending) {
            self.check_savepoint(&record, savepoint, &mut report)?;
            let file = self.dir().join(&savepoint.file);
            if !line.contains(&file) && files::exists(&file)? {
                let found = examine(&file, &[], progress, cancel)?;
                report.files.push(ExaminedFiles { layers: vec![file], report: found });
            }
        }
        Ok(report)
    }

    /// Sidecar and record, and what they say is unfinished.
    fn check_notes(&self, record: &Record, report: &mut StoreReport) -> Result<(), StoreError> {
        let sidecar = self.sidecar();
        match files::read_if_there::<Record>(&sidecar) {
            Ok(Some(_)) => {}
            Ok(None) => report.note(&sidecar, BookFault::NoSidecar, true),
            Err(e) => report.note(&sidecar, BookFault::SpoiledSidecar(said(&e)), true),
        }
        let place = self.store.record_path(record.id);
        let stored = match files::read_if_there::<Record>(&place) {
            Ok(stored) => stored,
            Err(e) => {
                report.note(&place, BookFault::SpoiledRecord(said(&e)), true);
                Some(record.clone())
            }
        };
        match stored {
            None => report.note(&place, BookFault::NoRecord, true),
            Some(stored) if stored.next_image.is_some() => report.note(&place, BookFault::UnfinishedMove, true),
            Some(stored) if stored != *record || record.path != self.path || record.store_path != self.store.dir() => {
                report.note(&place, BookFault::RecordDiffers, true);
            }
            Some(_) => {}
        }
        if record.flattening {
            report.note(&sidecar, BookFault::UnfinishedFlatten, true);
        }
        if record.removing {
            report.note(&sidecar, BookFault::UnfinishedRemoval, false);
        }
        let pending = record.savepoints.iter().filter(|savepoint| savepoint.pending);
        pending.for_each(|savepoint| report.note(&sidecar, BookFault::UnfinishedSave(savepoint.name.clone()), true));
        record.dropping.iter().for_each(|name| report.note(&sidecar, BookFault::UnfinishedDrop(name.clone()), true));
        Ok(())
    }

    /// The leaf and everything below it. Returns the files below that were examined with it.
    fn check_chain(
        &self,
        record: &Record,
        report: &mut StoreReport,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Vec<PathBuf>, StoreError> {
        // A file that cannot say what it stands on is examined alone.
        let mut line = match self.linkage() {
            Ok(parent) => match self.files_below(record, parent) {
                Ok(line) => line,
                Err(StoreError::NoImage { .. }) => {
                    report.note(&self.path, BookFault::NoImage(self.root(record, parent).unwrap_or(Guid::ZERO)), false);
                    Vec::new()
                }
                Err(StoreError::Foreign { .. }) => {
                    report.note(&self.path, BookFault::NoParent(record.ground.note().reference()), false);
                    Vec::new()
                }
                Err(e) => return Err(e),
            },
            Err(StoreError::Open { .. }) => Vec::new(),
            Err(e) => return Err(e),
        };
        let mut is_whole = true;
        for file in &line {
            let is_there = files::exists(file)?;
            if !is_there && !record.savepoints.iter().any(|savepoint| self.dir().join(&savepoint.file) == *file) {
                report.note(file, BookFault::NoFile, false);
            }
            is_whole &= is_there;
        }
        if !is_whole {
            line.clear();
        }
        let found = examine(&self.path, &line, progress, cancel)?;
        let layers = [self.path.clone()].into_iter().chain(line.iter().cloned()).collect();
        let is_sound = found.is_sound();
        report.files.push(ExaminedFiles { layers, report: found });
        if is_sound {
            report.note_paths(&self.path, &line);
        }
        let note = record.ground.note();
        if !line.is_empty()
            && let Some(root) = self.root(record, self.linkage()?)
            && let Some(image) = self.store.find(root, &note.name, note.generation)?
            && record.ground != Ground::Image(image.note())
        {
            let noted = record.ground.image().map_or_else(|| "no image".to_owned(), |_| note.reference());
            report.note(&self.sidecar(), BookFault::OtherImage { noted, found: image.reference() }, true);
        }
        Ok(line)
    }

    fn check_savepoint(&self, record: &Record, savepoint: &Savepoint, report: &mut StoreReport) -> Result<(), StoreError> {
        let path = self.dir().join(&savepoint.file);
        let name = savepoint.name.clone();
        let is_dropped = record.dropping.contains(&name);
        if !files::exists(&path)? {
            if !is_dropped {
                report.note(&path, BookFault::NoSavepoint(name), false);
            }
            return Ok(());
        }
        if !is_read_only(&path)? {
            report.note(&path, BookFault::Writable, true);
        }
        // One that does not open is what `examine` tells of.
        let Ok(disk) = Disk::open(&path, &OpenOptions::new().parents(ParentPolicy::Deny)) else { return Ok(()) };
        let found = disk.leaf.header.data_write.get();
        drop(disk);
        if found != savepoint.data_write_guid {
            let fault = BookFault::OtherSavepoint { name: name.clone(), wanted: savepoint.data_write_guid, found };
            report.note(&path, fault, false);
        }
        if !is_dropped && linkage_of(&path).ok() != Some(savepoint.parent) {
            report.note(&path, BookFault::SavepointMoved(name), false);
        }
        if let Ok(line) = self.line(record, savepoint.parent) {
            report.note_paths(&path, &line);
        }
        Ok(())
    }
}

impl Image {
    /// Examines the image's file and holds its shape against the manifest. The content is not read: [`Image::verify`] does that. Not a byte is
    /// written.
    ///
    /// # Errors
    /// `InUse` while somebody writes to the file; `Cancelled`; `Open`. What is wrong is in the report.
    pub fn check(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<StoreReport, StoreError> {
        let (path, manifest) = (self.path(), self.manifest());
        let mut report = StoreReport { files: Vec::new(), books: Vec::new() };
        match digest::read(&self.digests_path(), manifest) {
            Ok(_) => {}
            Err(e) => report.note(&self.digests_path(), BookFault::Digests(said(&e)), false),
        }
        if !files::exists(&path)? {
            report.note(&path, BookFault::NoFile, false);
            return Ok(report);
        }
        let found = examine(&path, &[], progress, cancel)?;
        report.files.push(ExaminedFiles { layers: vec![path.clone()], report: found });
        if !is_read_only(&path)? {
            report.note(&path, BookFault::Writable, false);
        }
        let Ok(disk) = Disk::open(&path, &OpenOptions::new().parents(ParentPolicy::Deny)) else { return Ok(report) };
        let geometry = &disk.leaf.geometry;
        let found = disk.leaf.header.data_write.get();
        if found != manifest.data_write_guid {
            report.note(&path, BookFault::OtherImageFile { sealed: manifest.data_write_guid, found }, false);
        }
        let shape = |size: u64, block: u64, sector: u32| format!("{size} bytes in blocks of {block} and sectors of {sector}");
        let now = shape(geometry.size(), geometry.block_size(), disk.logical_sector_size());
        let then = shape(manifest.virtual_size, manifest.block_size, manifest.logical_sector_size);
        if now != then {
            report.note(&path, BookFault::OtherShape(now, then), false);
        }
        Ok(report)
    }
}

/// [`Disk::examine`] over a file and what it stands on; alone where that is nothing.
fn examine(path: &Path, line: &[PathBuf], progress: &dyn Progress, cancel: &Cancel) -> Result<CheckReport, StoreError> {
    let parents = if line.is_empty() { ParentPolicy::Deny } else { ParentPolicy::Paths(line.to_vec()) };
    Disk::examine(path, &OpenOptions::new().parents(parents), progress, cancel).map_err(StoreError::work(path))
}

/// What an error says of a file, without its name.
fn said(e: &StoreError) -> String {
    match e {
        StoreError::Damaged { what, .. } => what.clone(),
        StoreError::Io { source, .. } => source.to_string(),
        e => e.to_string(),
    }
}

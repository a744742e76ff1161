//! The store's records of its clones, and listings of ten thousand of them.
//!
//! A listing opens no disk that has not changed since the last listing. What it needs beyond the records is one look at each clone's
//! file, and the diverged bytes, which stand in the disk's tables. Those are remembered in `STORE/.index` together with how the file
//! looked when they were read. The index is a cache: a checksum tells when it is spoiled, and without it everything is read again.

use super::catalog::{Store, entries, numbered};
use super::clock::Timestamp;
use super::clone::{CloneDisk, Origin};
use super::error::StoreError;
use super::files::{self, Durability, Held};
use super::image::Image;
use super::names::{Placeholders, clone_name, expand, is_temporary, sidecar_of};
use super::record::{CloneId, Ground, Record, Savepoint};
use crate::chain::{Disk, OpenOptions, ParentPolicy, Sizes};
use crate::guid::Guid;
use crate::kind::ErrorKind;
use crate::storage::FileStorage;
use crate::sync::Arc;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the first line of the index begins with.
const HEADLINE: &str = "diffdisk-index 2 ";
/// A file that changed this recently may change again without looking different.
const SETTLING: Duration = Duration::from_secs(2);
/// How long a clone without a file is taken for one that is being made.
const MAKING: Duration = Duration::from_secs(60);

/// Whether a clone can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloneState {
    /// Its file is there.
    Ready,
    /// Its file is not there, and it was begun less than a minute ago.
    Making,
    /// Its file is not there: deleted, moved, or on something that is not mounted.
    Missing,
}

impl CloneState {
    /// The name that `--json` prints.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Making => "making",
            Self::Missing => "missing",
        }
    }
}

/// What a clone stands on, below its savepoints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloneBase {
    /// A generation of an image, by the name that it had when the clone was made, reset or repaired.
    Image {
        /// The image.
        name: String,
        /// Its generation.
        generation: u32,
    },
    /// Nothing: it was flattened, and no image of the store need be kept for it.
    Alone {
        /// The image that it came from, as `NAME@GENERATION`.
        from: String,
        /// When it was flattened.
        since: Timestamp,
    },
}

impl CloneBase {
    /// The image that it stands on, as `NAME@GENERATION`.
    pub fn image(&self) -> Option<String> {
        match self {
            Self::Image { name, generation } => Some(format!("{name}@{generation}")),
            Self::Alone { .. } => None,
        }
    }
}

/// What a listing says of a clone.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CloneSummary {
    /// Its identity.
    pub id: CloneId,
    /// Its file's name without `.vhdx`.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What it stands on, below its savepoints.
    pub base: CloneBase,
    /// Whether it can be used.
    pub state: CloneState,
    /// The four sizes of its file; `None` when it is missing or its tables cannot be read.
    pub sizes: Option<Sizes>,
    /// What the file system gave to its savepoints.
    pub savepoints_allocated: u64,
    /// How many savepoints it has.
    pub savepoints: usize,
    /// When it was made.
    pub created: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it was last written to or opened for writing.
    pub last_used: Option<Timestamp>,
    /// From when on it may be pruned.
    pub expires: Option<Timestamp>,
    /// Whether it is protected.
    pub protected: bool,
}

/// How a file looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    object: u64,
    len: u64,
    allocated: u64,
    modified: u64,
}

impl Stamp {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Self {
            object: object(metadata),
            len: metadata.len(),
            allocated: allocated(path, metadata),
            modified: u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Whether the file was left alone for long enough that its time of change tells one content from another.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u128::from(self.modified) + SETTLING.as_nanos() < now.as_nanos()
    }
}

/// What the index knows of one clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Known {
    record_stamp: Stamp,
    record: Record,
    leaf: Option<(Stamp, Leaf)>,
}

/// What only a look into a clone's file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leaf {
    virtual_size: u64,
    /// Bytes of its own.
    diverged: u64,
}

type Index = HashMap<String, Known>;

impl Store {
    pub(super) fn record_path(&self, id: CloneId) -> PathBuf {
        self.records_dir().join(format!("{id}.json"))
    }

    /// Makes the record of a new clone and holds it.
    pub(super) fn create_record(&self, record: &Record, durability: Durability) -> Result<Held, StoreError> {
        let path = self.record_path(record.id);
        match Held::create(&path, record, durability) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                files::make_dir(&self.records_dir())?;
                files::sync_dir(self.dir(), durability)?;
                Held::create(&path, record, durability)
            }
            result => result,
        }
    }

    /// Writes the record of a clone that is held.
    pub(super) fn put_record(&self, record: &Record, durability: Durability) -> Result<(), StoreError> {
        files::make_dir(&self.records_dir())?;
        files::write(&self.record_path(record.id), record, durability)
    }

    /// The names of all record files.
    fn record_files(&self) -> Result<Vec<(String, PathBuf)>, StoreError> {
        let dir = self.records_dir();
        if !files::exists(&dir)? {
            return Ok(Vec::new());
        }
        Ok(entries(&dir)?.into_iter().filter(|(name, _)| name.ends_with(".json") && !is_temporary(name)).collect())
    }

    /// All records. One that goes away meanwhile is left out; one that cannot be read is an error, because who asks wants to know what
    /// may be removed.
    pub(super) fn records(&self) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        for (_, path) in self.record_files()? {
            if let Some(record) = read_record(&path)? {
                record.check_format(&path)?;
                records.push(record);
            }
        }
        Ok(records)
    }

    /// The record of the clone at this path.
    pub(super) fn record_at(&self, path: &Path) -> Result<Option<Record>, StoreError> {
        Ok(self.records()?.into_iter().find(|record| record.path == path))
    }

    /// The clones that keep this image from being removed.
    pub(super) fn users_of(&self, image: Guid) -> Result<Vec<PathBuf>, StoreError> {
        Ok(self.records()?.into_iter().filter(|record| record.needs(image)).map(|record| record.path).collect())
    }

    /// The clone at a path.
    ///
    /// # Errors
    /// `NoClone`; `Foreign` when it belongs to another store.
    pub fn clone_at(&self, path: impl AsRef<Path>) -> Result<CloneDisk, StoreError> {
        let values = Placeholders { image: "", now: Timestamp::now() };
        let path = files::real_path(&expand(path.as_ref(), &values, 1)?)?;
        let clone = CloneDisk { store: self.clone(), path, origin: Origin::Found };
        clone.record()?;
        Ok(clone)
    }

    /// The clone that a file is, by its sidecar; `None` for a file that has none, or whose store is not there.
    ///
    /// # Errors
    /// `Io` when the file's directory cannot be read.
    pub fn clone_of_file(path: impl AsRef<Path>) -> Result<Option<CloneDisk>, StoreError> {
        let path = files::real_path(path.as_ref())?;
        let Ok(Some(record)) = files::read_if_there::<Record>(&sidecar_of(&path)) else { return Ok(None) };
        // Opening makes a store of a directory that is none.
        if !Self::is_at(&record.store_path) {
            return Ok(None);
        }
        let store = Self::open(&record.store_path)?;
        let clone = CloneDisk { store, path, origin: Origin::Found };
        Ok(clone.record().is_ok().then_some(clone))
    }

    /// The image whose disk a file is; `None` for a file that is none, wherever it is.
    ///
    /// # Errors
    /// `Io` when the file's directory cannot be read; `Damaged` when the image's manifest is.
    pub fn image_of_file(path: impl AsRef<Path>) -> Result<Option<Image>, StoreError> {
        let path = std::fs::canonicalize(path.as_ref()).map_err(StoreError::io("find", path.as_ref()))?;
        let mut above = path.ancestors().skip(1);
        let (Some(dir), Some(store)) = (above.next(), above.next()) else { return Ok(None) };
        let text = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let (Some(file), Some(name)) = (text(&path), text(dir)) else { return Ok(None) };
        match numbered(&file, ".vhdx") {
            Some(generation) if Self::is_at(store) => Self::open(store)?.load(&name, generation),
            _ => Ok(None),
        }
    }

    /// The clone and the savepoint of it that a file is, by the sidecars beside it; `None` for any other file.
    ///
    /// # Errors
    /// `Io` when the file's directory cannot be read.
    pub fn savepoint_of_file(path: impl AsRef<Path>) -> Result<Option<(CloneDisk, Savepoint)>, StoreError> {
        let path = std::fs::canonicalize(path.as_ref()).map_err(StoreError::io("find", path.as_ref()))?;
        let is_savepoint = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("avhdx"));
        let (true, Some(dir), Some(name)) = (is_savepoint, path.parent(), path.file_name()) else { return Ok(None) };
        // A clone may have been renamed since, and its savepoints' files keep their names.
        for (file, sidecar) in entries(dir)? {
            if !file.to_ascii_lowercase().ends_with(".vhdx.json") {
                continue;
            }
            let Ok(Some(record)) = files::read_if_there::<Record>(&sidecar) else { continue };
            if let Some(savepoint) = record.savepoints.iter().find(|savepoint| name == savepoint.file.as_str())
                && let Some(clone) = Self::clone_of_file(sidecar.with_extension(""))?
            {
                return Ok(Some((clone, savepoint.clone())));
            }
        }
        Ok(None)
    }

    /// The clone that somebody means by a path, a name, or an identity.
    ///
    /// # Errors
    /// `NoClone`; `Ambiguous` when several have the name.
    pub fn find_clone(&self, text: &str) -> Result<CloneDisk, StoreError> {
        let no_clone = || StoreError::NoClone { clone: text.to_owned(), store: self.dir().to_path_buf() };
        match self.clone_at(text) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {}
            result => return result,
        }
        let wanted = text.strip_suffix(".vhdx").unwrap_or(text);
        let fits = |record: &Record| clone_name(&record.path) == wanted || record.id.to_string() == text;
        let mut found: Vec<PathBuf> = self.records()?.into_iter().filter(fits).map(|record| record.path).collect();
        found.sort();
        match found.len() {
            0 => Err(no_clone()),
            1 => Ok(CloneDisk { store: self.clone(), path: found.remove(0), origin: Origin::Found }),
            _ => Err(StoreError::Ambiguous { name: text.to_owned(), paths: found }),
        }
    }

    /// All clones that the store knows, by path.
    ///
    /// # Errors
    /// `Io` when the store cannot be read; `Damaged` when a record cannot.
    pub fn clones(&self) -> Result<Vec<CloneSummary>, StoreError> {
        let mut old = self.read_index();
        let old_len = old.len();
        let (mut summaries, mut index, mut changed) = (Vec::new(), Index::new(), false);
        for (name, path) in self.record_files()? {
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let record_stamp = Stamp::of(&path, &metadata);
            let known = old.remove(&name).filter(|known| known.record_stamp == record_stamp);
            let record = match &known {
                Some(known) => known.record.clone(),
                None => match read_record(&path)? {
                    Some(record) => record,
                    None => continue,
                },
            };
            record.check_format(&path)?;
            let (summary, leaf) = self.summarize(&record, known.as_ref());
            changed |= known.as_ref().is_none_or(|known| known.leaf != leaf);
            summaries.push(summary);
            index.insert(name, Known { record_stamp, record, leaf });
        }
        if changed || index.len() != old_len {
            self.write_index(&index);
        }
        summaries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(summaries)
    }

    /// What a listing says of one clone, and what is worth remembering of it.
    pub(super) fn summarize(&self, record: &Record, known: Option<&Known>) -> (CloneSummary, Option<(Stamp, Leaf)>) {
        let path = &record.path;
        let metadata = std::fs::metadata(path).ok();
        let stamp = metadata.as_ref().map(|metadata| Stamp::of(path, metadata));
        let remembered = known.and_then(|known| known.leaf).filter(|(then, _)| Some(*then) == stamp);
        let found = match (remembered, stamp) {
            (Some((_, leaf)), _) => Some(leaf),
            (None, Some(_)) => look_into(path),
            (None, None) => None,
        };
        let leaf = stamp.zip(found).filter(|(stamp, _)| stamp.is_settled());
        let sizes = stamp.zip(found).map(|(stamp, leaf)| Sizes {
            virtual_size: leaf.virtual_size,
            apparent: stamp.len,
            allocated: stamp.allocated,
            diverged: leaf.diverged,
        });
        let dir = path.parent().unwrap_or(Path::new("."));
        let saved = |file: &String| super::steps::allocated(&dir.join(file));
        let changed = |metadata: Option<Metadata>| metadata.and_then(|metadata| metadata.modified().ok());
        let last_used = match &metadata {
            Some(_) => changed(metadata.clone()).max(changed(std::fs::metadata(sidecar_of(path)).ok())),
            None => None,
        };
        let summary = CloneSummary {
            id: record.id,
            name: clone_name(path),
            path: path.clone(),
            base: match &record.ground {
                Ground::Image(note) => CloneBase::Image { name: note.name.clone(), generation: note.generation },
                Ground::Alone { from, since } => CloneBase::Alone { from: from.reference(), since: *since },
            },
            state: if metadata.is_some() { CloneState::Ready } else { state_of_absent(record) },
            sizes,
            savepoints_allocated: record.savepoints.iter().map(|savepoint| saved(&savepoint.file)).sum(),
            savepoints: record.savepoints.len(),
            created: record.created,
            created_by: record.created_by.clone(),
            last_used: last_used.map(Timestamp::from),
            expires: record.expires,
            protected: record.protected,
        };
        (summary, leaf)
    }

    /// The index, empty when there is none or it is spoiled.
    fn read_index(&self) -> Index {
        let parse = |text: &[u8]| {
            let end = text.iter().position(|&b| b == b'\n')?;
            let (headline, body) = (std::str::from_utf8(&text[..end]).ok()?, &text[end + 1..]);
            let sum = u32::from_str_radix(headline.strip_prefix(HEADLINE)?, 16).ok()?;
            (crc32fast::hash(body) == sum).then(|| serde_json::from_slice(body).ok())?
        };
        std::fs::read(self.index_path()).ok().and_then(|text| parse(&text)).unwrap_or_default()
    }

    /// Writes the index. Where that is not possible the next listing is as slow as this one.
    fn write_index(&self, index: &Index) {
        let body = serde_json::to_vec(index).expect("our values have string keys and no failing parts");
        let mut text = format!("{HEADLINE}{:08x}\n", crc32fast::hash(&body)).into_bytes();
        text.extend_from_slice(&body);
        let _ = files::put_bytes(&self.index_path(), &text, true, Durability::Quick);
    }
}

/// A record in the store. One that is spoiled is written again from the clone's sidecar, and must not simply be put away: it keeps the image.
fn read_record(path: &Path) -> Result<Option<Record>, StoreError> {
    files::read_if_there::<Record>(path).map_err(|e| match e {
        StoreError::Damaged { path, what, .. } => {
            let next = "`clone repair PATH` with the clone's path writes it again; move it away only if that clone is gone";
            StoreError::Damaged { path, what, next }
        }
        e => e,
    })
}

/// Its lock would tell for sure, but asking for it could be in the way of the maker.
fn state_of_absent(record: &Record) -> CloneState {
    if record.created.after(MAKING) > Timestamp::now() { CloneState::Making } else { CloneState::Missing }
}

/// Size, and bytes of the clone's own. Looked at without a lock, because a listing must not keep anybody from opening a clone; what it says of one
/// that is being written is about right.
fn look_into(path: &Path) -> Option<Leaf> {
    let file = Arc::new(FileStorage::peek(path).ok()?);
    let disk = Disk::open_on(file, Vec::new(), &OpenOptions::new().parents(ParentPolicy::Deny)).ok()?;
    let sizes = disk.info().ok()?.sizes;
    Some(Leaf { virtual_size: sizes.virtual_size, diverged: sizes.diverged })
}

/// Which file it is; 0 where only an open file tells.
fn object(metadata: &Metadata) -> u64 {
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::ino(metadata)
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        0
    }
}

#[cfg(unix)]
fn allocated(_path: &Path, metadata: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks() * 512
}

#[cfg(not(unix))]
fn allocated(path: &Path, _metadata: &Metadata) -> u64 {
    super::steps::allocated(path)
}

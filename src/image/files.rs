//! Small files that several processes read and change.
//!
//! Reading takes no lock: content changes only by replacing the whole file, so a reader sees an old or a new one. Changing goes
//! through a [`Held`] file, and only its holder may replace or remove it. The lock is on the inode, so replacing the file would
//! leave the holder with a lock on a nameless file, and the next one with a lock on the new file: therefore the replacement is
//! locked before it gets the name, and becomes the file that is held. Whoever waited for the old inode finds that the name leads
//! elsewhere and starts over.

use super::StoreError;
use crate::kind::ErrorKind;
use crate::storage::{DirVolume, FileStorage, Storage, StorageError, StorageId, Volume, create_atomically, write_all};
use crate::sync::Arc;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The largest small file that is read; ours are a few KiB.
const MAX_LEN: u64 = 16 << 20;

/// How long to wait for somebody who is changing a file, and how often to look.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

/// Whether an act survives a power cut when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// It does.
    Durable,
    /// It survives a crash of the process only.
    Quick,
}

impl Durability {
    pub(super) fn new(durable: bool) -> Self {
        if durable { Self::Durable } else { Self::Quick }
    }

    pub(super) fn is_durable(self) -> bool {
        self == Self::Durable
    }
}

/// A small file that this value alone may change.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    file: Arc<dyn Storage>,
}

impl Held {
    /// Makes the file, which must not exist, and holds it.
    pub(super) fn create<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_path_buf(), file: put(path, value, false, durability)? })
    }

    /// Takes the lock of a file that exists; `None` if there is none. Most changes take a moment, so it waits for one before it says
    /// `InUse`.
    pub(super) fn take(path: &Path) -> Result<Option<Self>, StoreError> {
        let began = Instant::now();
        loop {
            match Self::take_now(path) {
                Err(e) if e.kind() == ErrorKind::InUse && began.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// The same without waiting.
    pub(super) fn take_now(path: &Path) -> Result<Option<Self>, StoreError> {
        match FileStorage::open_write(path) {
            // A reader that is opened later would find our lock; readers of small files take none.
            Ok(file) if is_still(path, &file)? => Ok(Some(Self { path: path.to_path_buf(), file: Arc::new(file) })),
            Ok(_) => Err(busy(path)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == ErrorKind::InUse => Err(busy(path)),
            Err(e) => Err(StoreError::storage("open", path)(e)),
        }
    }

    /// Puts new content in place of the old, atomically, and goes on holding the file.
    pub(super) fn replace<T: Serialize>(&mut self, value: &T, durability: Durability) -> Result<(), StoreError> {
        self.file = put(&self.path, value, true, durability)?;
        Ok(())
    }

    /// Removes the file.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        remove(&self.path)
    }

    /// What the file says.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        read(&self.path)
    }
}

fn busy(path: &Path) -> StoreError {
    let next = "wait until that is finished and try again";
    StoreError::InUse { path: path.to_path_buf(), who: "another process that is changing it", next }
}

/// Which file a path leads to.
pub(super) fn id_at(path: &Path) -> Result<StorageId, StoreError> {
    FileStorage::id_at(path).map_err(StoreError::io("look at", path))
}

/// Whether the path still leads to the file that was locked.
fn is_still(path: &Path, file: &FileStorage) -> Result<bool, StoreError> {
    match FileStorage::id_at(path) {
        Ok(id) => Ok(id == file.id()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::io("look at", path)(e)),
    }
}

fn put<T: Serialize>(path: &Path, value: &T, replace: bool, durability: Durability) -> Result<Arc<dyn Storage>, StoreError> {
    let mut text = serde_json::to_vec_pretty(value).expect("our values have string keys and no failing parts");
    text.push(b'\n');
    put_bytes(path, &text, replace, durability)
}

/// Writes a file whole or not at all and returns it, locked.
pub(super) fn put_bytes(path: &Path, bytes: &[u8], replace: bool, durability: Durability) -> Result<Arc<dyn Storage>, StoreError> {
    let failed = |e: StorageError| StoreError::storage("write", path)(e);
    let (dir, name) = split(path)?;
    let volume = DirVolume::open(dir).map_err(failed)?;
    let fill = |file: &Arc<dyn Storage>| write_all(&**file, bytes, 0);
    let (file, ()) = create_atomically(&volume, name, replace, durability.is_durable(), fill).map_err(failed)?;
    Ok(file)
}

/// Writes a small file that somebody may be reading, whole or not at all, without going on to hold it.
pub(super) fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), StoreError> {
    put(path, value, true, durability).map(drop)
}

/// Directory and file name of a path.
pub(super) fn split(path: &Path) -> Result<(&Path, &str), StoreError> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| StoreError::Name {
        what: "a file",
        name: path.display().to_string(),
        rule: "it must end in a Unicode file name",
    })?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir, name))
}

/// Reads a small file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    read_if_there(path)?.ok_or_else(|| StoreError::io("read", path)(io::ErrorKind::NotFound.into()))
}

/// Reads a small file that may be missing.
pub(super) fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let damaged = |what: String| {
        let next = "restore it from a copy, or move it away";
        StoreError::Damaged { path: path.to_path_buf(), what, next }
    };
    let text = match std::fs::metadata(path).and_then(|metadata| match metadata {
        metadata if !metadata.is_file() => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        metadata if metadata.len() > MAX_LEN => Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large to be one of ours")),
        _ => std::fs::read(path),
    }) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("read", path)(e)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| damaged(format!("it is not what we write there ({e})")))
}

/// Removes a file; one that is gone already is removed.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path, durability: Durability) -> Result<(), StoreError> {
    if !durability.is_durable() {
        return Ok(());
    }
    let volume = DirVolume::open(dir).map_err(StoreError::storage("open", dir))?;
    volume.sync_dir().map_err(StoreError::io("sync", dir))
}

/// Gives a file another name in its directory or another, refusing to replace.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    let ((from_dir, from_name), (to_dir, to_name)) = (split(from)?, split(to)?);
    if from_dir == to_dir {
        let volume = DirVolume::open(from_dir).map_err(StoreError::storage("open", from_dir))?;
        return volume.rename(from_name, to_name, false).map_err(StoreError::io("rename", from));
    }
    // Between directories a link refuses what is there; the two names exist side by side for a moment.
    match std::fs::hard_link(from, to) {
        Ok(()) => std::fs::remove_file(from).map_err(StoreError::io("rename", from)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists || std::fs::symlink_metadata(to).is_ok() => {
            Err(StoreError::CloneExists { path: to.to_path_buf() })
        }
        Err(_) => std::fs::rename(from, to).map_err(StoreError::io("rename", from)),
    }
}

/// Makes a directory and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(dir).map_err(StoreError::io("create the directory", dir)),
        Err(e) => Err(StoreError::io("create the directory", dir)(e)),
    }
}

/// Whether there is anything under this name.
pub(super) fn exists(path: &Path) -> Result<bool, StoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(StoreError::io("look at", path)(e)),
    }
}

/// The path without links; of a file that may not exist yet, in a directory that does.
pub(super) fn real_path(path: &Path) -> Result<PathBuf, StoreError> {
    let (dir, name) = split(path)?;
    Ok(std::fs::canonicalize(dir).map_err(StoreError::io("find the directory", dir))?.join(name))
}

/// The text form of GUIDs in our JSON.
pub(super) mod guid_text {
    use crate::guid::Guid;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(guid: &Guid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(guid)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Guid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same where there may be none.
pub(super) mod guid_text_if_any {
    use crate::guid::Guid;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(guid: &Option<Guid>, serializer: S) -> Result<S::Ok, S::Error> {
        match guid {
            Some(guid) => serializer.collect_str(guid),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Guid>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

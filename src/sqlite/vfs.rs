//! The callbacks: which file SQLite means, and what its wishes are on a disk or on an ordinary file.

use super::device::DeviceError;
use super::inner::{Inner, WriteError};
use super::side::{self, Open, SideFile};
use crate::kind::ErrorKind;
use crate::sync::{Arc, Mutex, Weak};
use rsqlite_vfs::{
    AccessMode, DeviceCharacteristics, FileKind, LockLevel, OpenAccess, OpenOptions, OpenRequest, OpenedFile, OsCallback, SQLiteIoMethods,
    SQLiteVfs, SectorSize, SyncOptions, SystemErrorCode, VfsError, VfsErrorCode, VfsFile, VfsResult, VfsStore,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The volumes of this process by name. An entry is free again when the volume and its last open file are gone.
pub(super) static VOLUMES: Mutex<BTreeMap<String, Weak<Inner>>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// What SQLite cannot carry: the words behind its last error code on this thread.
    static LAST: RefCell<Option<VfsError>> = const { RefCell::new(None) };
}

/// See [`super::last_error`].
pub(super) fn last_error() -> Option<String> {
    LAST.with_borrow(|last| last.as_ref().map(|e| e.message().to_owned()))
}

/// The name under which a path is registered: absolute and without symbolic links, so that a clone has one name and one journal.
pub(super) fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let absolute = std::path::absolute(path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(file)) => Ok(parent.canonicalize()?.join(file)),
                _ => Err(e),
            }
        }
        other => other,
    }
}

/// The type parameters of the callbacks.
pub(super) struct Vfs;
pub(super) struct Io;
pub(super) struct Store;
pub(super) struct Os;

/// An open file of SQLite's.
pub(super) enum Handle {
    Database(Database),
    Side(SideFile),
}

/// A database file: one connection's view of a volume.
pub(super) struct Database {
    volume: Arc<Inner>,
    holder: u64,
    level: LockLevel,
}

// The registration's SAFETY comment rests on these.
const fn assert_shared<T: Send + Sync>() {}
const fn assert_moved<T: Send>() {}
const _: () = assert_shared::<Inner>();
const _: () = assert_moved::<Handle>();

impl SQLiteIoMethods for Io {
    type Store = Store;
}

impl SQLiteVfs<Io> for Vfs {
    type Os = Os;
    const MAX_PATH_SIZE: std::ffi::c_int = 4096;

    fn os((): &()) -> &Os {
        &Os
    }
}

impl OsCallback for Os {
    fn sleep(&self, dur: Duration) {
        std::thread::sleep(dur);
    }

    fn random(&self, buf: &mut [u8]) -> usize {
        if getrandom::fill(buf).is_ok() { buf.len() } else { 0 }
    }

    fn epoch_timestamp_in_ms(&self) -> VfsResult<i64> {
        let millis = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()),
            Err(e) => i64::try_from(e.duration().as_millis()).map(|before| -before),
        };
        millis.map_err(|_| VfsError::new(VfsErrorCode::Error, "the clock is out of range".into()))
    }
}

impl VfsStore for Store {
    type File = Handle;
    type AppData = ();

    fn record_error((): &(), error: VfsError) {
        // Reading past the end and finding a lock taken are how SQLite works, not failures.
        if !matches!(error.code(), VfsErrorCode::IoShortRead | VfsErrorCode::Busy) {
            LAST.set(Some(error));
        }
    }

    fn last_error((): &()) -> Option<VfsError> {
        LAST.with_borrow(Clone::clone)
    }

    fn open_file((): &(), request: OpenRequest<'_>) -> VfsResult<OpenedFile<Handle>> {
        let options = request.options;
        match (options.kind(), request.filename) {
            (Some(FileKind::MainDb), Some(name)) => open_database(name.path(), options),
            (_, Some(name)) => open_beside(Path::new(name.path()), options),
            (_, None) => {
                let file = SideFile::temporary().map_err(|e| failed(VfsErrorCode::CantOpen, "a temporary file", &e))?;
                Ok(OpenedFile { file: Handle::Side(file), access: options.access() })
            }
        }
    }

    fn close_file((): &(), name: Option<&str>, file: Handle, options: OpenOptions) -> VfsResult<()> {
        match (file, name) {
            (Handle::Database(mut database), _) => {
                database.unlock_to(LockLevel::None);
                Ok(())
            }
            (Handle::Side(file), Some(name)) if options.delete_on_close() => {
                drop(file);
                side::remove(Path::new(name)).map(drop).map_err(|e| failed(VfsErrorCode::IoDelete, name, &e))
            }
            (Handle::Side(_), _) => Ok(()),
        }
    }

    fn access((): &(), name: &str, mode: AccessMode) -> VfsResult<bool> {
        match std::fs::metadata(name) {
            // An empty journal protects nothing; SQLite's own file systems do not count one either.
            Ok(found) if mode == AccessMode::Exists => Ok(!found.is_file() || found.len() > 0),
            Ok(found) => Ok(mode == AccessMode::Read || !found.permissions().readonly()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed(VfsErrorCode::IoAccess, name, &e)),
        }
    }

    fn full_pathname((): &(), name: &str) -> VfsResult<String> {
        let full = canonical(Path::new(name)).map_err(|e| failed(VfsErrorCode::CantOpen, name, &e))?;
        full.into_os_string()
            .into_string()
            .map_err(|full| VfsError::new(VfsErrorCode::CantOpen, format!("{full:?}: SQLite takes only paths in UTF-8").into()))
    }

    fn delete_file((): &(), name: &str, sync_dir: bool) -> VfsResult<()> {
        match side::remove(Path::new(name)) {
            Ok(true) if sync_dir => side::sync_directory_of(Path::new(name)).map_err(|e| failed(VfsErrorCode::IoDirectorySync, name, &e)),
            Ok(true) => Ok(()),
            Ok(false) => Err(VfsError::new(VfsErrorCode::IoDeleteNoEntry, format!("{name}: no such file").into())),
            Err(e) => Err(failed(VfsErrorCode::IoDelete, name, &e)),
        }
    }
}

fn open_database(name: &str, options: OpenOptions) -> VfsResult<OpenedFile<Handle>> {
    let volume = VOLUMES.lock().get(name).and_then(Weak::upgrade);
    let Some(volume) = volume else {
        let message = format!("{name}: no disk is registered as a SQLite volume under this path");
        return Err(VfsError::new(VfsErrorCode::CantOpen, message.into()));
    };
    let access = if volume.device.is_writable() { options.access() } else { OpenAccess::ReadOnly };
    let holder = volume.new_holder();
    Ok(OpenedFile { file: Handle::Database(Database { volume, holder, level: LockLevel::None }), access })
}

fn open_beside(path: &Path, options: OpenOptions) -> VfsResult<OpenedFile<Handle>> {
    let how = match (options.access(), options.create(), options.exclusive()) {
        (OpenAccess::ReadOnly, ..) => Open::Read,
        (OpenAccess::ReadWrite, true, true) => Open::CreateNew,
        (OpenAccess::ReadWrite, true, false) => Open::Create,
        (OpenAccess::ReadWrite, false, _) => Open::Write,
    };
    let file = SideFile::open(path, how).map_err(|e| failed(VfsErrorCode::CantOpen, &path.display().to_string(), &e))?;
    Ok(OpenedFile { file: Handle::Side(file), access: options.access() })
}

impl Database {
    fn unlock_to(&mut self, keep: LockLevel) {
        self.volume.locks.lock().unlock(self.holder, &mut self.level, keep);
    }
}

impl VfsFile for Handle {
    fn sector_size(&self) -> SectorSize {
        match self {
            Self::Database(database) => SectorSize::new(database.volume.device.sector_size()).unwrap_or(SectorSize::DEFAULT),
            Self::Side(_) => SectorSize::DEFAULT,
        }
    }

    fn device_characteristics(&self) -> DeviceCharacteristics {
        DeviceCharacteristics::POWERSAFE_OVERWRITE | DeviceCharacteristics::SUBPAGE_READ
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> VfsResult<usize> {
        match self {
            Self::Database(database) => {
                database.volume.read(buf, offset).map_err(|e| device_failed(VfsErrorCode::IoRead, &database.volume, &e))
            }
            Self::Side(file) => file.read(buf, offset).map_err(|e| beside_failed(VfsErrorCode::IoRead, &e)),
        }
    }

    fn write(&mut self, buf: &[u8], offset: u64) -> VfsResult<()> {
        match self {
            Self::Database(database) => {
                database.volume.write(buf, offset).map_err(|e| write_failed(VfsErrorCode::IoWrite, &database.volume, &e))
            }
            Self::Side(file) => file.write(buf, offset).map_err(|e| beside_failed(VfsErrorCode::IoWrite, &e)),
        }
    }

    fn truncate(&mut self, size: u64) -> VfsResult<()> {
        match self {
            Self::Database(database) => {
                database.volume.truncate(size).map_err(|e| write_failed(VfsErrorCode::IoTruncate, &database.volume, &e))
            }
            Self::Side(file) => file.truncate(size).map_err(|e| beside_failed(VfsErrorCode::IoTruncate, &e)),
        }
    }

    fn sync(&mut self, options: SyncOptions) -> VfsResult<()> {
        match self {
            Self::Database(database) => {
                database.volume.device.flush().map_err(|e| device_failed(VfsErrorCode::IoSync, &database.volume, &e))
            }
            Self::Side(file) => file.sync(options.data_only).map_err(|e| beside_failed(VfsErrorCode::IoSync, &e)),
        }
    }

    fn size(&self) -> VfsResult<u64> {
        match self {
            Self::Database(database) => Ok(database.volume.len()),
            Self::Side(file) => file.len().map_err(|e| beside_failed(VfsErrorCode::IoStat, &e)),
        }
    }

    fn lock(&mut self, want: LockLevel) -> VfsResult<()> {
        let Self::Database(database) = self else { return Ok(()) };
        if database.volume.locks.lock().lock(database.holder, &mut database.level, want) {
            return Ok(());
        }
        Err(VfsError::new(VfsErrorCode::Busy, "another connection of this process holds a lock".into()))
    }

    fn unlock(&mut self, keep: LockLevel) -> VfsResult<()> {
        if let Self::Database(database) = self {
            database.unlock_to(keep);
        }
        Ok(())
    }

    fn check_reserved_lock(&self) -> VfsResult<bool> {
        match self {
            Self::Database(database) => Ok(database.volume.locks.lock().is_reserved()),
            Self::Side(_) => Ok(false),
        }
    }
}

fn write_failed(code: VfsErrorCode, volume: &Inner, error: &WriteError) -> VfsError {
    match error {
        WriteError::Device(e) => device_failed(code, volume, e),
        WriteError::PastTheEnd => {
            let message = format!("{}: the database would outgrow its disk of {} bytes", volume.name, volume.device.size());
            VfsError::new(VfsErrorCode::Full, message.into())
        }
    }
}

/// A full disk is `SQLITE_FULL`, a read-only one `SQLITE_READONLY`; the rest is the `SQLITE_IOERR` of the operation.
fn device_failed(code: VfsErrorCode, volume: &Inner, error: &DeviceError) -> VfsError {
    let code = match error.kind {
        ErrorKind::NoSpace if code != VfsErrorCode::IoSync => VfsErrorCode::Full,
        ErrorKind::Denied if code == VfsErrorCode::IoWrite => VfsErrorCode::ReadOnly,
        _ => code,
    };
    VfsError::new(code, format!("{}: {error}", volume.name).into())
}

fn beside_failed(code: VfsErrorCode, error: &io::Error) -> VfsError {
    failed(code, "journal or temporary file", error)
}

fn failed(code: VfsErrorCode, what: &str, error: &io::Error) -> VfsError {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge if code == VfsErrorCode::IoWrite => {
            VfsErrorCode::Full
        }
        _ => code,
    };
    let failure = VfsError::new(code, format!("{what}: {error}").into());
    match error.raw_os_error().and_then(SystemErrorCode::from_raw) {
        Some(system) => failure.with_system_error(system),
        None => failure,
    }
}

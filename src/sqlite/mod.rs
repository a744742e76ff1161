//! SQLite in process: a database whose file is the content of a disk.
//!
//! A test or a tool opens the database inside a clone with no mount, no root and no server. A [`Volume`] makes a [`Disk`] known to SQLite
//! under the clone's path; [`Volume::connect`] gives ordinary `rusqlite` connections, several at once if wanted, and SQL can `ATTACH` any
//! other volume of the process by its path. [`open`] does both for the common case.
//!
//! ```text
//!   rusqlite::Connection ── SQLite's pager ── our VFS ─┬─ main database ──▶ Disk (reads, writes, flush)
//!                                                      ├─ CLONE.vhdx-journal, an ordinary file beside the clone
//!                                                      └─ temporary files without a name
//! ```
//!
//! The disk's content is the database file byte for byte, so an image made from a plain `app.db` opens, and a clone converted to a raw file
//! opens anywhere. A disk has no length of its own to give to a database: it is kept in memory while the volume lives and comes from the
//! database's header when it is attached. `docs/design/0006-sqlite-vfs.md` says why that survives crashes and what else was weighed.
//!
//! What holds: a commit that returned is durable, and a process that dies leaves a journal beside the clone that the next connection rolls
//! back. What does not: write-ahead logging with more than one connection (SQLite then keeps its rollback journal; see
//! [`Volume::connect`]).
//!
//! A journal belongs to the very disk it was written for. Whoever replaces a clone's file (reset, revert, remove) removes
//! [`journal_path`] and [`wal_path`] as well.

mod device;
mod error;
mod inner;
mod length;
mod locks;
mod register;
mod side;
#[cfg(test)]
mod tests;
mod vfs;

pub use error::SqliteError;

use crate::Disk;
use crate::sync::Arc;
use device::Device;
use inner::Inner;
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A disk that SQLite can open by the path of its clone.
///
/// Dropping it while connections are open is harmless: they go on, and the path is free again when the last one closes.
pub struct Volume {
    inner: Arc<Inner>,
}

impl Volume {
    /// Makes `disk` the database that SQLite knows as `clone`, the path of the disk's file. The journal will lie beside it.
    ///
    /// The disk may hold a SQLite database or zeros. Who wants it back to close it keeps an `Arc` and takes the disk out of it when
    /// the volume and all its connections are gone.
    ///
    /// ```
    /// use diffdisk::{CreateOptions, Disk, sqlite::Volume};
    /// use std::sync::Arc;
    /// # let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("app.vhdx");
    /// let disk = Arc::new(Disk::create(&path, &CreateOptions::dynamic(64 << 20))?);
    /// let volume = Volume::new(disk.clone(), &path)?;
    /// let connection = volume.connect()?;
    /// connection.execute_batch("CREATE TABLE users(name); INSERT INTO users VALUES ('Ada')")?;
    /// drop((connection, volume));
    /// Arc::into_inner(disk).expect("nobody else holds it").close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Something else is on the disk, the path is in use or not UTF-8, or the disk cannot be read.
    pub fn new(disk: Arc<Disk>, clone: &Path) -> Result<Self, SqliteError> {
        Self::attach(Box::new(disk), clone)
    }

    fn attach(device: Box<dyn Device>, clone: &Path) -> Result<Self, SqliteError> {
        let path = vfs::canonical(clone).map_err(|source| SqliteError::Beside { path: clone.to_owned(), source })?;
        let Some(name) = path.to_str().map(str::to_owned) else { return Err(SqliteError::PathNotUtf8 { path }) };
        let mut volumes = vfs::VOLUMES.lock();
        volumes.retain(|_, volume| volume.strong_count() > 0);
        if volumes.contains_key(&name) {
            return Err(SqliteError::InUse { path });
        }
        let inner = Arc::new(Inner::attach(device, name.clone())?);
        volumes.insert(name, Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Opens a connection: for writing if the disk is writable, and then with `synchronous=EXTRA`, so that a commit is durable when it
    /// returns. A caller who can do without (a bulk load into a new image) says so with a pragma.
    ///
    /// A database that arrives in write-ahead mode, or with a `-wal` file beside its clone, is turned back to a rollback journal first,
    /// which applies that file. `PRAGMA journal_mode=WAL` later changes nothing unless `PRAGMA locking_mode=EXCLUSIVE` came first.
    ///
    /// # Errors
    /// Whatever SQLite reports while opening, or the disk while SQLite looked at it.
    pub fn connect(&self) -> Result<Connection, SqliteError> {
        let name = register::vfs_name().map_err(|message| SqliteError::Register { message })?;
        let flags = match self.inner.device.is_writable() {
            true => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            false => OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        };
        let path = || PathBuf::from(&self.inner.name);
        let is_wal = self.inner.is_wal().map_err(|e| SqliteError::Disk { path: path(), kind: e.kind, message: e.message })?;
        let connect = || {
            let connection = Connection::open_with_flags_and_vfs(&self.inner.name, flags, name)?;
            if self.inner.device.is_writable() {
                if is_wal || wal_path(&path()).exists() {
                    leave_wal(&connection)?;
                }
                connection.pragma_update(None, "synchronous", "EXTRA")?;
            }
            Ok(connection)
        };
        connect().map_err(|source| SqliteError::Sqlite { path: path(), source })
    }

    /// The name that SQL knows this volume by: `ATTACH` takes it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The bytes the database has now. The disk around it may be larger.
    pub fn database_len(&self) -> u64 {
        self.inner.len()
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume").field("name", &self.inner.name).field("database_len", &self.inner.len()).finish_non_exhaustive()
    }
}

/// Opens the database inside `disk`, whose file is `clone`: a [`Volume`] with one connection, which ends with the connection.
///
/// # Errors
/// As [`Volume::new`] and [`Volume::connect`].
pub fn open(disk: Arc<Disk>, clone: &Path) -> Result<Connection, SqliteError> {
    Volume::new(disk, clone)?.connect()
}

/// With one connection SQLite keeps the index of a write-ahead log in its own memory; that is enough to apply the log and be rid of it.
fn leave_wal(connection: &Connection) -> rusqlite::Result<()> {
    let pragma = |name: &str, value: &str| connection.pragma_update_and_check(None, name, value, |row| row.get::<_, String>(0));
    pragma("locking_mode", "EXCLUSIVE")?;
    pragma("journal_mode", "DELETE")?;
    pragma("locking_mode", "NORMAL")?;
    // SQLite lets go of the lock at the end of the next statement that reads the database.
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get::<_, i64>(0)).map(drop)
}

/// Where the rollback journal of a clone lies while a transaction runs, and after a crash.
pub fn journal_path(clone: &Path) -> PathBuf {
    beside(clone, "-journal")
}

/// Where the write-ahead log of a clone lies, if a connection in exclusive locking mode made one.
pub fn wal_path(clone: &Path) -> PathBuf {
    beside(clone, "-wal")
}

fn beside(clone: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(clone);
    name.push(suffix);
    name.into()
}

/// The sentence behind the last failure of a volume on this thread. SQLite itself carries only a code (`disk I/O error`).
pub fn last_error() -> Option<String> {
    vfs::last_error()
}

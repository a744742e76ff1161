//! Volumes on a device in memory that can be told to fail, to be full, or to lose what was not flushed.

use super::device::{Device, DeviceError};
use super::*;
use crate::kind::ErrorKind;
use crate::storage::{self, MemoryStorage, Storage};
use crate::sync::{AtomicBool, Mutex, Ordering};

#[derive(Default)]
struct Switches {
    fail_flush: AtomicBool,
    no_space: AtomicBool,
    /// What a failing flush found: the device and the journal, as a power cut at that moment could leave them.
    cut: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

struct TestDevice {
    content: Arc<MemoryStorage>,
    size: u64,
    is_writable: bool,
    journal: PathBuf,
    switches: Arc<Switches>,
}

impl TestDevice {
    fn failure(kind: ErrorKind, message: &str) -> DeviceError {
        DeviceError { kind, message: message.to_owned() }
    }
}

impl Device for TestDevice {
    fn size(&self) -> u64 {
        self.size
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn is_writable(&self) -> bool {
        self.is_writable
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        assert!(offset + buf.len() as u64 <= self.size, "reads stay on the device");
        storage::read_zero_extended(&*self.content, buf, offset).map_err(|e| Self::failure(ErrorKind::Io, &e.to_string()))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        assert!(offset + buf.len() as u64 <= self.size, "writes stay on the device");
        if self.switches.no_space.load(Ordering::SeqCst) {
            return Err(Self::failure(ErrorKind::NoSpace, "the volume under the clone is full"));
        }
        storage::write_all(&*self.content, buf, offset).map_err(|e| Self::failure(ErrorKind::Io, &e.to_string()))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        storage::write_zeros(&*self.content, offset, len).map_err(|e| Self::failure(ErrorKind::Io, &e.to_string()))
    }
    fn trim(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.content.punch(offset, len).map_err(|e| Self::failure(ErrorKind::Io, &e.to_string()))
    }
    fn flush(&self) -> Result<(), DeviceError> {
        if !self.switches.fail_flush.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.switches.cut.lock().get_or_insert_with(|| (self.content.to_bytes(), std::fs::read(&self.journal).unwrap()));
        Err(Self::failure(ErrorKind::Unavailable, "the sync failed"))
    }
}

struct World {
    dir: tempfile::TempDir,
    content: Arc<MemoryStorage>,
    size: u64,
    switches: Arc<Switches>,
}

impl World {
    fn new(size: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), content: Arc::new(MemoryStorage::new()), size, switches: Arc::default() }
    }
    fn clone_path(&self) -> PathBuf {
        self.dir.path().join("clone.vhdx")
    }
    fn try_volume(&self, is_writable: bool) -> Result<Volume, SqliteError> {
        let (content, switches, journal) = (self.content.clone(), self.switches.clone(), journal_path(&self.clone_path()));
        Volume::attach(Box::new(TestDevice { content, size: self.size, is_writable, journal, switches }), &self.clone_path())
    }
    /// The world as its first failing flush found it.
    fn cut(&self) -> Self {
        let (content, journal) = self.switches.cut.lock().take().unwrap();
        let cut = Self { content: Arc::new(MemoryStorage::from_bytes(&content)), ..Self::new(self.size) };
        std::fs::write(journal_path(&cut.clone_path()), journal).unwrap();
        cut
    }
    fn volume(&self) -> Volume {
        self.try_volume(true).unwrap()
    }
}

fn count(connection: &Connection, table: &str) -> i64 {
    connection.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get(0)).unwrap()
}

fn integrity(connection: &Connection) -> String {
    connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap()
}

fn code(error: &rusqlite::Error) -> i32 {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        other => panic!("not an error of SQLite's: {other}"),
    }
}

const FILL: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
    INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) SELECT randomblob(1000) FROM n;";

#[test]
fn a_database_is_there_again_with_its_length() {
    let world = World::new(4 << 20);
    let len = {
        let volume = world.volume();
        volume.connect().unwrap().execute_batch(FILL).unwrap();
        volume.database_len()
    };
    assert!(len > 200_000);
    let volume = world.volume();
    assert_eq!(volume.database_len(), len);
    let connection = volume.connect().unwrap();
    assert_eq!((count(&connection, "t"), integrity(&connection).as_str()), (200, "ok"));
    assert!(!journal_path(&world.clone_path()).exists());
}

#[test]
fn a_volume_is_attached_once_until_its_last_connection_closes() {
    let world = World::new(1 << 20);
    let volume = world.volume();
    let connection = volume.connect().unwrap();
    assert_eq!(world.try_volume(true).unwrap_err().kind(), ErrorKind::InUse);
    drop(volume);
    connection.execute_batch("CREATE TABLE t(v)").unwrap();
    assert_eq!(world.try_volume(true).unwrap_err().kind(), ErrorKind::InUse);
    connection.close().unwrap();
    assert_eq!(count(&world.volume().connect().unwrap(), "t"), 0);
}

#[test]
fn something_else_on_the_disk_is_left_alone() {
    let world = World::new(1 << 20);
    world.content.write_at(&[0x53, 0xEF], 1080).unwrap();
    assert!(matches!(world.try_volume(true).unwrap_err(), SqliteError::NotADatabase { .. }));
    world.content.punch(0, 4096).unwrap();
    world.content.write_at(b"SQLite format 3\0\x10\0\x01\x01", 0).unwrap();
    assert!(matches!(world.try_volume(true).unwrap_err(), SqliteError::NoPageCount { .. }));
}

#[test]
fn a_full_disk_is_sqlite_full_and_the_database_goes_on() {
    let world = World::new(128 << 10);
    let volume = world.volume();
    let connection = volume.connect().unwrap();
    connection.execute_batch("CREATE TABLE t(v BLOB); INSERT INTO t VALUES (randomblob(1000))").unwrap();
    let error = connection.execute_batch("INSERT INTO t VALUES (randomblob(200000))").unwrap_err();
    assert_eq!(code(&error), rusqlite::ffi::SQLITE_FULL, "{error}");
    assert!(last_error().unwrap().contains("131072"), "{:?}", last_error());
    world.switches.no_space.store(true, Ordering::SeqCst);
    let error = connection.execute_batch("INSERT INTO t VALUES (randomblob(1000))").unwrap_err();
    assert_eq!(code(&error), rusqlite::ffi::SQLITE_FULL, "{error}");
    assert!(last_error().unwrap().contains("under the clone is full"));
    world.switches.no_space.store(false, Ordering::SeqCst);
    connection.execute_batch("INSERT INTO t VALUES (randomblob(1000))").unwrap();
    assert_eq!((count(&connection, "t"), integrity(&connection).as_str()), (2, "ok"));
}

#[test]
fn a_failed_flush_fails_the_commit_and_leaves_the_old_state() {
    let world = World::new(4 << 20);
    {
        let volume = world.volume();
        let connection = volume.connect().unwrap();
        connection.execute_batch(FILL).unwrap();
        world.switches.fail_flush.store(true, Ordering::SeqCst);
        let error = connection.execute_batch("DELETE FROM t").unwrap_err();
        assert_eq!(code(&error), rusqlite::ffi::SQLITE_IOERR_FSYNC, "{error}");
        assert!(last_error().unwrap().contains("the sync failed"));
    }
    world.switches.fail_flush.store(false, Ordering::SeqCst);
    let connection = world.volume().connect().unwrap();
    assert_eq!((count(&connection, "t"), integrity(&connection).as_str()), (200, "ok"));
}

#[test]
fn readers_and_a_writer_share_a_volume() {
    let world = World::new(4 << 20);
    let volume = world.volume();
    let (writer, reader) = (volume.connect().unwrap(), volume.connect().unwrap());
    writer.execute_batch(FILL).unwrap();
    reader.busy_timeout(std::time::Duration::ZERO).unwrap();
    writer.busy_timeout(std::time::Duration::ZERO).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM t LIMIT 1").unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; DELETE FROM t WHERE id = 1").unwrap();
    assert_eq!(code(&reader.execute_batch("DELETE FROM t WHERE id = 2").unwrap_err()) & 0xff, rusqlite::ffi::SQLITE_BUSY);
    assert_eq!(code(&writer.execute_batch("COMMIT").unwrap_err()) & 0xff, rusqlite::ffi::SQLITE_BUSY, "the reader is still reading");
    assert_eq!(count(&reader, "t"), 200);
    reader.execute_batch("COMMIT").unwrap();
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&reader, "t"), 199);
}

#[test]
fn a_shrinking_transaction_cut_short_gets_its_pages_back() {
    let world = World::new(4 << 20);
    let volume = world.volume();
    let connection = volume.connect().unwrap();
    connection.execute_batch("PRAGMA auto_vacuum=FULL").unwrap();
    connection.execute_batch(FILL).unwrap();
    let old = volume.database_len();
    world.switches.fail_flush.store(true, Ordering::SeqCst);
    connection.execute_batch("DELETE FROM t WHERE id < 150").unwrap_err();
    let cut = world.cut();
    let mut page_count = [0; 4];
    cut.content.read_at(&mut page_count, 28).unwrap();
    assert!(u64::from(u32::from_be_bytes(page_count)) * 4096 < old, "page 1 already says that the database is short");
    let volume = cut.volume();
    assert_eq!(volume.database_len(), old);
    let connection = volume.connect().unwrap();
    assert_eq!((count(&connection, "t"), integrity(&connection).as_str()), (200, "ok"));
}

#[test]
fn the_first_transaction_cut_short_leaves_an_empty_database() {
    let world = World::new(4 << 20);
    let volume = world.volume();
    world.switches.fail_flush.store(true, Ordering::SeqCst);
    volume.connect().unwrap().execute_batch(FILL).unwrap_err();
    let cut = world.cut();
    let half = World { content: Arc::new(MemoryStorage::from_bytes(&cut.content.to_bytes())), ..World::new(4 << 20) };
    std::fs::copy(journal_path(&cut.clone_path()), journal_path(&half.clone_path())).unwrap();
    assert_eq!(count(&cut.volume().connect().unwrap(), "sqlite_schema"), 0);

    // The same, but page 1 never arrived while others did: SQLite deletes the journal without looking at it.
    half.content.punch(0, 4096).unwrap();
    let cut = half;
    for _ in 0..2 {
        let connection = cut.volume().connect().unwrap();
        assert_eq!(count(&connection, "sqlite_schema"), 0);
    }
    let connection = cut.volume().connect().unwrap();
    connection.execute_batch(FILL).unwrap();
    assert_eq!((count(&connection, "t"), integrity(&connection).as_str()), (200, "ok"));
}

#[test]
fn vacuum_shortens_the_database_and_gives_space_back() {
    let world = World::new(4 << 20);
    let volume = world.volume();
    let connection = volume.connect().unwrap();
    connection.execute_batch(FILL).unwrap();
    let (len, allocated) = (volume.database_len(), world.content.allocated().unwrap());
    connection.execute_batch("DELETE FROM t WHERE id > 10; VACUUM").unwrap();
    assert!(volume.database_len() < len / 4);
    assert!(world.content.allocated().unwrap() < allocated);
    connection.execute_batch("PRAGMA page_size=1024; VACUUM").unwrap();
    assert_eq!((count(&connection, "t"), integrity(&connection).as_str()), (10, "ok"));
}

#[test]
fn write_ahead_mode_needs_a_connection_of_its_own_and_is_left_at_the_next_opening() {
    let world = World::new(4 << 20);
    let mode = |connection: &Connection| connection.query_row("PRAGMA journal_mode=WAL", (), |row| row.get::<_, String>(0)).unwrap();
    {
        let volume = world.volume();
        let connection = volume.connect().unwrap();
        assert_eq!(mode(&connection), "delete");
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
        assert_eq!(mode(&connection), "wal");
        connection.execute_batch(FILL).unwrap();
        assert!(wal_path(&world.clone_path()).exists());
        // Neither checkpoint nor clean close: what a killed process leaves.
        std::mem::forget(connection);
    }
    let dead = World { content: world.content.clone(), ..World::new(world.size) };
    std::fs::copy(wal_path(&world.clone_path()), wal_path(&dead.clone_path())).unwrap();
    let volume = dead.volume();
    let (connection, second) = (volume.connect().unwrap(), volume.connect().unwrap());
    assert_eq!((count(&connection, "t"), count(&second, "t"), integrity(&connection).as_str()), (200, 200, "ok"));
    assert!(!wal_path(&dead.clone_path()).exists());
}

#[test]
fn a_read_only_disk_is_read_and_refuses_to_change() {
    let world = World::new(4 << 20);
    world.volume().connect().unwrap().execute_batch(FILL).unwrap();
    let volume = world.try_volume(false).unwrap();
    let connection = volume.connect().unwrap();
    assert_eq!(count(&connection, "t"), 200);
    let error = connection.execute_batch("DELETE FROM t").unwrap_err();
    assert_eq!(code(&error) & 0xff, rusqlite::ffi::SQLITE_READONLY, "{error}");
}

#[test]
fn volumes_attach_to_each_other_and_commit_together() {
    let (here, there) = (World::new(4 << 20), World::new(4 << 20));
    let (volume, other) = (here.volume(), there.volume());
    other.connect().unwrap().execute_batch("CREATE TABLE u(v)").unwrap();
    let connection = volume.connect().unwrap();
    connection.execute("ATTACH ?1 AS other", [other.name()]).unwrap();
    connection.execute_batch("BEGIN; CREATE TABLE t(v); INSERT INTO t VALUES (1); INSERT INTO other.u VALUES (2); COMMIT").unwrap();
    assert_eq!((count(&connection, "t"), count(&other.connect().unwrap(), "u")), (1, 1));
    let left: Vec<_> = std::fs::read_dir(here.dir.path()).unwrap().collect();
    assert!(left.is_empty(), "no journal and no super-journal stays: {left:?}");
    let nobody = connection.execute("ATTACH ?1 AS nobody", [here.dir.path().join("plain.db").to_str().unwrap()]).unwrap_err();
    assert_eq!(code(&nobody) & 0xff, rusqlite::ffi::SQLITE_CANTOPEN);
}

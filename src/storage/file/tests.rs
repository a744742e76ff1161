use super::*;
use crate::kind::ErrorKind;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

fn new_file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, b"content").unwrap();
    (dir, path)
}

fn refused(result: Result<FileStorage, StorageError>) -> ErrorKind {
    result.expect_err("must be refused").kind()
}

#[test]
fn a_second_writer_is_refused_until_the_first_is_gone() {
    let (_dir, path) = new_file();
    let first = FileStorage::open_write(&path).unwrap();
    assert_eq!(refused(FileStorage::open_write(&path)), ErrorKind::InUse);
    assert_eq!(refused(FileStorage::open_read(&path)), ErrorKind::InUse);
    drop(first);
    FileStorage::open_write(&path).unwrap();
}

#[test]
fn readers_share_and_keep_writers_out() {
    let (_dir, path) = new_file();
    let readers = [FileStorage::open_read(&path).unwrap(), FileStorage::open_read(&path).unwrap()];
    assert_eq!(refused(FileStorage::open_write(&path)), ErrorKind::InUse);
    drop(readers);
    FileStorage::open_write(&path).unwrap();
}

#[test]
fn the_lock_is_on_the_file_not_on_its_name() {
    let (dir, path) = new_file();
    let (soft, hard) = (dir.path().join("soft"), dir.path().join("hard"));
    symlink(&path, &soft).unwrap();
    std::fs::hard_link(&path, &hard).unwrap();
    let holder = FileStorage::open_write(&path).unwrap();
    for other in [&soft, &hard] {
        assert_eq!(refused(FileStorage::open_write(other)), ErrorKind::InUse, "{}", other.display());
        assert_eq!(refused(FileStorage::open_read(other)), ErrorKind::InUse, "{}", other.display());
    }
    drop(holder);
    let (a, b) = (FileStorage::open_read(&soft).unwrap(), FileStorage::open_read(&hard).unwrap());
    assert_eq!(a.id(), b.id());
    assert_eq!(refused(FileStorage::open_write(&path)), ErrorKind::InUse);
}

const HELPER_PATH: &str = "DIFFDISK_TEST_LOCK_PATH";

/// Not a test by itself: the process that `a_killed_holder_blocks_nobody` kills.
#[test]
#[ignore = "a process that another test starts"]
fn hold_a_lock_until_killed() {
    // Absent when somebody runs all ignored tests.
    let Some(path) = std::env::var_os(HELPER_PATH) else { return };
    let _held = FileStorage::open_write(Path::new(&path)).unwrap();
    println!("\nholding");
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

fn start_holder(path: &Path) -> Child {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::hold_a_lock_until_killed"), "--ignored", "--nocapture"])
        .env(HELPER_PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).any(|line| line == "holding");
    assert!(said, "the helper never got its lock");
    child
}

#[test]
fn a_killed_holder_blocks_nobody() {
    let (_dir, path) = new_file();
    let mut holder = start_holder(&path);
    assert_eq!(refused(FileStorage::open_write(&path)), ErrorKind::InUse);
    assert_eq!(refused(FileStorage::open_read(&path)), ErrorKind::InUse);
    holder.kill().unwrap();
    holder.wait().unwrap();
    FileStorage::open_write(&path).unwrap();
}

#[test]
fn a_copied_descriptor_does_not_keep_the_lock() {
    let (_dir, path) = new_file();
    let holder = FileStorage::open_write(&path).unwrap();
    let copy = holder.file().try_clone().unwrap();
    drop(holder);
    FileStorage::open_write(&path).unwrap();
    drop(copy);
}

#[test]
fn only_files_and_block_devices_are_opened_and_a_fifo_does_not_block() {
    let (dir, _) = new_file();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
    for (path, what) in [(fifo.as_path(), "a FIFO"), (Path::new("/dev/null"), "a character device"), (dir.path(), "a directory")] {
        let error = FileStorage::open_read(path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    assert_eq!(refused(FileStorage::open_write(&fifo)), ErrorKind::InvalidInput);
}

#[test]
fn a_new_file_never_takes_a_name_that_is_there() {
    let (dir, path) = new_file();
    assert_eq!(refused(FileStorage::create_new(&path)), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    let (dangling, target) = (dir.path().join("dangling"), dir.path().join("target"));
    symlink(&target, &dangling).unwrap();
    assert_eq!(refused(FileStorage::create_new(&dangling)), ErrorKind::AlreadyExists);
    assert!(!target.exists());
    let fresh = dir.path().join("fresh");
    let _held = FileStorage::create_new(&fresh).unwrap();
    assert_eq!(refused(FileStorage::open_read(&fresh)), ErrorKind::InUse);
}

#[test]
fn a_file_opened_for_reading_cannot_be_changed_even_through_a_writable_descriptor() {
    let (_dir, path) = new_file();
    let writable = File::options().read(true).write(true).open(&path).unwrap();
    let storage = FileStorage::from_file(writable, Access::Read).unwrap();
    let denied = io::ErrorKind::PermissionDenied;
    assert_eq!(storage.write_at(b"x", 0).unwrap_err().kind(), denied);
    assert_eq!(storage.set_len(0).unwrap_err().kind(), denied);
    assert_eq!(storage.punch(0, 1).unwrap_err().kind(), denied);
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
}

#[test]
fn a_file_that_appends_is_not_taken_for_writing() {
    let (_dir, path) = new_file();
    let appending = File::options().read(true).append(true).open(&path).unwrap();
    assert_eq!(refused(FileStorage::from_file(appending, Access::Write)), ErrorKind::InvalidInput);
}

#[test]
fn bytes_lengths_and_positions() {
    let (_dir, path) = new_file();
    let storage = FileStorage::open_write(&path).unwrap();
    storage.write_at(b"far", 1000).unwrap();
    assert_eq!(storage.len().unwrap(), 1003);
    let mut buf = [0xFF; 8];
    assert_eq!(storage.read_at(&mut buf, 998).unwrap(), 5);
    assert_eq!(&buf[..5], b"\0\0far");
    assert_eq!(storage.read_at(&mut buf, 5000).unwrap(), 0);
    storage.set_len(3).unwrap();
    storage.sync(SyncSite::Truncate).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"con");
}

/// On a file system without holes (none of the usual Linux ones) the punch says `Unsupported` and there is nothing to look at.
#[test]
fn holes_are_punched_found_and_not_charged() {
    const MIB: u64 = 1 << 20;
    let (_dir, path) = new_file();
    let storage = FileStorage::open_write(&path).unwrap();
    storage.set_len(0).unwrap();
    assert_eq!(storage.next_data(0).unwrap(), None);
    super::super::write_all(&storage, &vec![7; 4 << 20], 0).unwrap();
    storage.sync(SyncSite::Payload).unwrap();
    let full = storage.allocated().unwrap();
    match storage.punch(MIB, 2 * MIB) {
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::Unsupported),
        Ok(()) => {
            assert!(storage.allocated().unwrap() < full);
            assert_eq!(storage.next_data(MIB).unwrap(), Some((3 * MIB, 4 * MIB)));
            assert_eq!(storage.next_data(0).unwrap(), Some((0, MIB)));
            assert_eq!(storage.next_data(4 * MIB).unwrap(), None);
            let mut buf = [1; 4096];
            super::super::read_exact(&storage, &mut buf, 2 * MIB).unwrap();
            assert_eq!(buf, [0; 4096]);
        }
    }
    assert_eq!(storage.len().unwrap(), 4 * MIB);
    storage.punch(0, 0).unwrap();
}

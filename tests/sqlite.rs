//! A database inside a disk, from the outside: what a test or a tool that uses `diffdisk::sqlite` relies on.
//!
//! The crash tests run this very binary again as a child (one of the tests below, told by an environment variable to misbehave), kill it
//! in the middle of its work, and look at what it left. The child says on its standard output what it has committed, each time on a line of
//! its own: the test harness begins lines that it does not end.
#![cfg(feature = "sqlite")]

use diffdisk::sqlite::{self, Volume, journal_path};
use diffdisk::{CreateOptions, Disk, ErrorKind, OpenOptions};
use rusqlite::Connection;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const SIZE: u64 = 64 << 20;
/// Tells the child which disk to work on.
const DISK: &str = "DIFFDISK_TEST_SQLITE_DISK";

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image with a table of 500 posts.
    fn image(&self) -> PathBuf {
        let path = self.path("image.vhdx");
        with_database(Disk::create(&path, &CreateOptions::dynamic(SIZE)).unwrap(), &path, |connection| {
            connection.execute_batch(POSTS).unwrap();
        });
        path
    }

    fn clone_of(&self, image: &Path, name: &str) -> PathBuf {
        let path = self.path(name);
        Disk::create_child(&path, image, &CreateOptions::child()).unwrap().close().unwrap();
        path
    }
}

const POSTS: &str = "CREATE TABLE posts(id INTEGER PRIMARY KEY, score INTEGER, body BLOB);
    INSERT INTO posts(score, body)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT i % 7, randomblob(2000) FROM n;
    CREATE INDEX by_score ON posts(score);";

/// Runs `work` on the database in `disk`, and closes both.
fn with_database<T>(disk: Disk, path: &Path, work: impl FnOnce(&Connection) -> T) -> T {
    let disk = Arc::new(disk);
    let connection = sqlite::open(disk.clone(), path).unwrap();
    let result = work(&connection);
    connection.close().unwrap();
    Arc::into_inner(disk).expect("the volume ended with its connection").close().unwrap();
    result
}

fn on<T>(path: &Path, work: impl FnOnce(&Connection) -> T) -> T {
    with_database(Disk::open(path, &OpenOptions::new().writable(true)).unwrap(), path, work)
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, (), |row| row.get(0)).unwrap_or_else(|e| panic!("{sql}: {e}: {:?}", sqlite::last_error()))
}

fn assert_sound(connection: &Connection) {
    let said: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
}

#[test]
fn rows_are_there_again_after_reopening() {
    let lab = Lab::new();
    let image = lab.image();
    for round in 1..=3 {
        on(&image, |connection| {
            assert_eq!(number(connection, "SELECT count(*) FROM posts"), 499 + round);
            connection.execute("INSERT INTO posts(score, body) VALUES (?1, zeroblob(100000))", [round]).unwrap();
            assert_sound(connection);
        });
    }
    assert!(!journal_path(&image).exists());
}

#[test]
fn clones_diverge_and_the_image_stays() {
    let lab = Lab::new();
    let image = lab.image();
    let before = std::fs::read(&image).unwrap();
    let (alice, bob) = (lab.clone_of(&image, "alice.vhdx"), lab.clone_of(&image, "bob.vhdx"));
    on(&alice, |connection| {
        connection.execute_batch("DELETE FROM posts WHERE id > 100; ALTER TABLE posts ADD COLUMN title; VACUUM").unwrap();
    });
    on(&bob, |connection| connection.execute_batch("INSERT INTO posts(score) VALUES (1000); DROP INDEX by_score").unwrap());
    on(&alice, |connection| {
        assert_eq!(number(connection, "SELECT count(*) FROM posts WHERE title IS NULL"), 100);
        assert_sound(connection);
    });
    on(&bob, |connection| {
        assert_eq!(number(connection, "SELECT count(*) FROM posts"), 501);
        assert_eq!(number(connection, "SELECT count(*) FROM pragma_table_info('posts') WHERE name = 'title'"), 0);
        assert_sound(connection);
    });
    assert!(std::fs::read(&image).unwrap() == before, "the image is the same to the last bit");
}

#[test]
fn a_sealed_image_is_read_in_place() {
    let lab = Lab::new();
    let image = lab.image();
    with_database(Disk::open(&image, &OpenOptions::new()).unwrap(), &image, |connection| {
        assert_eq!(number(connection, "SELECT count(*) FROM posts"), 500);
        let error = connection.execute("DELETE FROM posts", ()).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{error}");
    });
}

#[test]
fn twenty_clones_in_one_process_at_once() {
    let lab = Lab::new();
    let image = lab.image();
    let clones: Vec<PathBuf> = (0..20).map(|i| lab.clone_of(&image, &format!("clone-{i}.vhdx"))).collect();
    std::thread::scope(|scope| {
        for (i, clone) in (0i64..).zip(&clones) {
            scope.spawn(move || {
                on(clone, |connection| {
                    for _ in 0..=i {
                        connection.execute("INSERT INTO posts(score) VALUES (?1)", [1000 + i]).unwrap();
                    }
                });
            });
        }
    });
    for (i, clone) in (0i64..).zip(&clones) {
        on(clone, |connection| {
            assert_eq!(number(connection, "SELECT count(*) FROM posts WHERE score >= 1000"), i + 1);
            assert_eq!(number(connection, &format!("SELECT count(*) FROM posts WHERE score = {}", 1000 + i)), i + 1);
        });
    }
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let lab = Lab::new();
    let path = lab.path("small.vhdx");
    let disk = Disk::create(&path, &CreateOptions::dynamic(4 << 20)).unwrap();
    with_database(disk, &path, |connection| {
        connection.execute_batch(POSTS).unwrap();
        let error = connection.execute_batch("INSERT INTO posts(body) SELECT randomblob(8000) FROM posts").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull), "{error}");
        assert!(sqlite::last_error().unwrap().contains("outgrow its disk of 4194304 bytes"));
        assert_eq!(number(connection, "SELECT count(*) FROM posts"), 500);
        assert_sound(connection);
        connection.execute_batch("DELETE FROM posts WHERE id > 400; INSERT INTO posts(body) VALUES (randomblob(100000))").unwrap();
    });
    on(&path, |connection| {
        assert_eq!(number(connection, "SELECT count(*) FROM posts"), 401);
        assert_sound(connection);
    });
}

#[test]
fn a_disk_of_something_else_is_refused() {
    let lab = Lab::new();
    let path = lab.path("other.vhdx");
    let disk = Arc::new(Disk::create(&path, &CreateOptions::dynamic(SIZE)).unwrap());
    disk.write_at(&[0x53, 0xEF], 1080).unwrap();
    let error = Volume::new(disk.clone(), &path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let mut kept = [0; 2];
    disk.read_at(&mut kept, 1080).unwrap();
    assert_eq!(kept, [0x53, 0xEF]);
}

/// Starts this binary again to work on the disk at `path`.
fn child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DISK, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Reads what the child says until `enough` of it has been said, and then kills it with SIGKILL; returns the last number after `word`.
fn kill_after(mut child: Child, word: &str, enough: u64) -> u64 {
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let number = |line: String| line.strip_prefix(word).and_then(|n| n.parse::<u64>().ok());
    let mut last = said.by_ref().find_map(number).expect("the child gets to work");
    while last < enough {
        last = said.by_ref().find_map(number).expect("the child goes on");
    }
    child.kill().unwrap();
    // What it managed to say before the signal arrived counts as well.
    let last = said.filter_map(number).last().unwrap_or(last);
    child.wait().unwrap();
    last
}

/// The child's half of [`killed_between_and_inside_commits`]: commits one batch of ten rows after the other, without an end.
fn commit_for_ever(path: &Path) {
    let disk = Arc::new(Disk::open(path, &OpenOptions::new().writable(true)).unwrap());
    let mut connection = sqlite::open(disk, path).unwrap();
    // A small cache spills pages of an open transaction into the disk.
    connection.execute_batch("PRAGMA cache_size=10").unwrap();
    let first = number(&connection, "SELECT coalesce(max(batch), 0) FROM batches") + 1;
    for batch in first.. {
        let transaction = connection.transaction().unwrap();
        for _ in 0..10 {
            transaction.execute("INSERT INTO batches VALUES (?1, randomblob(5000))", [batch]).unwrap();
        }
        transaction.execute("UPDATE posts SET score = ?1", [batch]).unwrap();
        transaction.commit().unwrap();
        println!("\ncommitted {batch}");
    }
}

#[test]
fn killed_between_and_inside_commits() {
    if let Some(path) = std::env::var_os(DISK) {
        return commit_for_ever(Path::new(&path));
    }
    let lab = Lab::new();
    let clone = lab.clone_of(&lab.image(), "clone.vhdx");
    on(&clone, |connection| connection.execute_batch("CREATE TABLE batches(batch INTEGER, body BLOB)").unwrap());
    let mut enough = 3;
    for _ in 0..5 {
        let committed = kill_after(child("killed_between_and_inside_commits", &clone), "committed ", enough);
        on(&clone, |connection| {
            assert_sound(connection);
            let last = number(connection, "SELECT max(batch) FROM batches") as u64;
            // The commit after the last one that was announced may have finished too.
            assert!(last == committed || last == committed + 1, "{committed} announced, {last} found");
            assert_eq!(number(connection, "SELECT count(*) FROM batches") as u64, last * 10, "batches are whole or absent");
            assert_eq!(number(connection, "SELECT count(DISTINCT score) FROM posts"), 1);
            assert_eq!(number(connection, "SELECT max(score) FROM posts") as u64, last);
            enough = last + 3;
        });
    }
}

/// The child's half of [`a_journal_left_behind_is_rolled_back`]: changes everything, spills it into the disk, and waits to be killed.
fn change_and_wait(path: &Path) {
    let disk = Arc::new(Disk::open(path, &OpenOptions::new().writable(true)).unwrap());
    let connection = sqlite::open(disk, path).unwrap();
    connection
        .execute_batch("PRAGMA cache_size=10; BEGIN; UPDATE posts SET body = randomblob(3000), score = -1; DELETE FROM posts WHERE id < 50")
        .unwrap();
    println!("\nchanged 1");
    std::thread::park();
}

#[test]
fn a_journal_left_behind_is_rolled_back() {
    if let Some(path) = std::env::var_os(DISK) {
        return change_and_wait(Path::new(&path));
    }
    let lab = Lab::new();
    let clone = lab.clone_of(&lab.image(), "clone.vhdx");
    let digest = |connection: &Connection| number(connection, "SELECT sum(id * 31 + score * 7 + length(body)) FROM posts");
    let before = on(&clone, digest);
    kill_after(child("a_journal_left_behind_is_rolled_back", &clone), "changed ", 1);
    assert!(journal_path(&clone).metadata().unwrap().len() > 100_000, "the journal holds the pages that were changed");
    on(&clone, |connection| {
        assert_eq!(digest(connection), before);
        assert_eq!(number(connection, "SELECT count(*) FROM posts"), 500);
        assert_sound(connection);
    });
    assert!(!journal_path(&clone).exists());
}

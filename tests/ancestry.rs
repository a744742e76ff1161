//! Clones of one image in one process: they share the image (one open file), do not see each other (P8), and never write it (P6);
//! and one file has one writer, across processes (P14).

#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::Rng;
use diffdisk::{CreateOptions, Disk, ErrorKind, OpenOptions};
use loud::loud;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
const PIECE: u64 = 512;

fn pattern(tag: u64, piece: u64) -> [u8; PIECE as usize] {
    let mut out = [0; PIECE as usize];
    for (i, word) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = ((tag << 40 | piece << 8 | i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1).to_le_bytes();
    }
    out
}

/// An image in which every piece has the pattern of tag 1.
fn image(path: &Path) {
    let disk = Disk::create(path, &CreateOptions::dynamic(SIZE).block_size(MIB)).unwrap();
    let all: Vec<u8> = (0..SIZE / PIECE).flat_map(|piece| pattern(1, piece)).collect();
    disk.write_at(&all, 0).unwrap();
    disk.close().unwrap();
}

fn clone(path: &Path, parent: &Path) -> Disk {
    Disk::create_child(path, parent, &CreateOptions::child().durable(false)).unwrap()
}

/// How many descriptors of this process are open on a file.
#[cfg(target_os = "linux")]
fn descriptors(path: &Path) -> usize {
    let path = path.canonicalize().unwrap();
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(Result::ok).filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == path)).count()
}

#[test]
#[cfg(target_os = "linux")]
fn all_clones_of_an_image_hold_one_descriptor_of_each_ancestor() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    image(&path("image.vhdx"));
    clone(&path("middle.vhdx"), &path("image.vhdx")).close().unwrap();
    let count = || (descriptors(&path("image.vhdx")), descriptors(&path("middle.vhdx")));
    assert_eq!(count(), (0, 0));
    let a = clone(&path("a.vhdx"), &path("middle.vhdx"));
    assert_eq!(count(), (1, 1), "one clone");
    let b = clone(&path("b.vhdx"), &path("middle.vhdx"));
    clone(&path("c.vhdx"), &path("image.vhdx")).close().unwrap();
    let c = Disk::open(path("c.vhdx"), &OpenOptions::new().writable(true)).unwrap();
    assert_eq!(count(), (1, 1), "two clones of the middle and one of the image, made and opened");
    let mut piece = [0; PIECE as usize];
    for disk in [&a, &b, &c] {
        disk.read_at(&mut piece, 3 * MIB).unwrap();
        assert_eq!(piece, pattern(1, 3 * MIB / PIECE));
    }
    drop((a, b));
    assert_eq!(count(), (1, 0), "nobody stands on the middle any more");
    c.read_at(&mut piece, 5 * MIB).unwrap();
    assert_eq!(piece, pattern(1, 5 * MIB / PIECE));
    drop(c);
    assert_eq!(count(), (0, 0));
}

/// Works on a clone from one of four threads and compares every read with what this thread and the image say.
fn work(disk: &Disk, clone: u64, thread: u64) -> usize {
    let mut rng = Rng::new(clone * 4 + thread);
    let per_thread = SIZE / PIECE / 4;
    // Pieces are dealt out like cards, so that all threads work in every block.
    let piece_at = |n: u64| n * 4 + thread;
    let mut mine = vec![1; per_thread as usize];
    let mut buf = [0; PIECE as usize];
    for op in 0..4000 {
        let n = rng.below(per_thread);
        let at = piece_at(n) * PIECE;
        match rng.below(8) {
            0..3 => {
                let tag = 1000 + (clone * 4 + thread) * 10_000 + op;
                disk.write_at(&pattern(tag, piece_at(n)), at).unwrap();
                mine[n as usize] = tag;
            }
            3 => {
                disk.write_zeroes(at, PIECE).unwrap();
                mine[n as usize] = 0;
            }
            4 if op % 16 == 0 => disk.flush().unwrap(),
            _ => {
                disk.read_at(&mut buf, at).unwrap();
                let want = if mine[n as usize] == 0 { [0; PIECE as usize] } else { pattern(mine[n as usize], piece_at(n)) };
                assert!(buf == want, "clone {clone}, thread {thread}, piece {}: not what this thread left", piece_at(n));
            }
        }
    }
    mine.iter().filter(|&&tag| tag != 1).count()
}

#[test]
fn siblings_on_four_threads_each_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    image(&path("image.vhdx"));
    let before = std::fs::read(path("image.vhdx")).unwrap();
    let modified = std::fs::metadata(path("image.vhdx")).unwrap().modified().unwrap();
    let clones = ["a.vhdx", "b.vhdx"].map(|name| clone(&path(name), &path("image.vhdx")));
    let changed: usize = std::thread::scope(|scope| {
        let work = |(disk, clone, thread)| scope.spawn(move || work(disk, clone, thread));
        let workers: Vec<_> = (0..8).map(|i| work((&clones[i as usize / 4], i / 4, i % 4))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert!(changed > 2000, "only {changed} pieces changed");
    let contents = clones.map(|disk| {
        let mut all = vec![0; SIZE as usize];
        disk.read_at(&mut all, 0).unwrap();
        disk.close().unwrap();
        all
    });
    for (name, content) in ["a.vhdx", "b.vhdx"].into_iter().zip(&contents) {
        let disk = Disk::open(path(name), &OpenOptions::new()).unwrap();
        let mut all = vec![0; SIZE as usize];
        disk.read_at(&mut all, 0).unwrap();
        assert!(all == *content, "{name} reopened");
        assert!(disk.check().unwrap().is_sound(), "{name}");
    }
    assert!(std::fs::read(path("image.vhdx")).unwrap() == before, "P6: the image changed");
    assert_eq!(std::fs::metadata(path("image.vhdx")).unwrap().modified().unwrap(), modified, "P6: the image was touched");
}

/// The directory in which a second process of this test opens `clone.vhdx` for writing.
const HOLDER: &str = "DIFFDISK_TEST_HOLDER";

/// Not a test: the second process. Holds the clone until it is killed.
#[test]
fn the_holder() {
    let Ok(dir) = std::env::var(HOLDER) else { return };
    let disk = Disk::open(Path::new(&dir).join("clone.vhdx"), &OpenOptions::new().writable(true)).unwrap();
    disk.write_at(&pattern(2, 0), 0).unwrap();
    disk.flush().unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\nholding").unwrap();
    out.flush().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn one_writer_across_processes_and_a_dead_one_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    image(&path("image.vhdx"));
    clone(&path("clone.vhdx"), &path("image.vhdx")).close().unwrap();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["the_holder", "--exact", "--nocapture"])
        .env(HOLDER, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "holding"), "the second process opened the clone");

    let kind = |name: &str, writable| Disk::open(path(name), &OpenOptions::new().writable(writable)).unwrap_err().kind();
    assert_eq!(kind("clone.vhdx", true), ErrorKind::InUse, "a second writer");
    assert_eq!(kind("clone.vhdx", false), ErrorKind::InUse, "a reader beside the writer");
    assert_eq!(kind("image.vhdx", true), ErrorKind::InUse, "a writer on what is in use as a parent");
    assert!(Disk::open(path("image.vhdx"), &OpenOptions::new()).is_ok(), "readers of the parent are welcome");
    #[cfg(unix)]
    {
        std::fs::hard_link(path("clone.vhdx"), path("hard.vhdx")).unwrap();
        std::os::unix::fs::symlink(path("clone.vhdx"), path("soft.vhdx")).unwrap();
        assert_eq!(kind("hard.vhdx", true), ErrorKind::InUse, "the same file by another name");
        assert_eq!(kind("soft.vhdx", true), ErrorKind::InUse, "the same file by a link");
    }

    holder.kill().unwrap();
    holder.wait().unwrap();
    let disk = Disk::open(path("clone.vhdx"), &OpenOptions::new().writable(true)).unwrap();
    let mut piece = [0; PIECE as usize];
    disk.read_at(&mut piece, 0).unwrap();
    assert_eq!(piece, pattern(2, 0), "what the dead holder flushed");
    disk.close().unwrap();
    Disk::open(path("image.vhdx"), &OpenOptions::new().writable(true)).unwrap();
    loud("ancestry: one descriptor for each ancestor, 2 x 4 threads apart, one writer across processes");
}

//! A merge into a new file whose process is killed: no file of the name or a whole one, the chain as it was, and the next try works.

use super::setting;
use diffdisk::{Cancel, CreateOptions, Disk, MergeOptions, NoProgress, OpenOptions, merge_to};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PLACE: &str = "DIFFDISK_MERGE_PLACE";
const MIB: u64 = 1 << 20;

fn merge(place: &Path) {
    merge_to(&place.join("leaf.vhdx"), None, &place.join("new.vhdx"), &MergeOptions::new(), &NoProgress, &Cancel::new()).expect("a merge");
}

/// Not a test of its own: the process that is killed.
#[test]
fn the_merge() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    merge(Path::new(&place));
}

fn write(path: &Path, parent: Option<&Path>, blocks: impl Iterator<Item = u64>, byte: u8) {
    let disk = match parent {
        None => Disk::create(path, &CreateOptions::dynamic(64 * MIB).block_size(MIB)),
        Some(parent) => Disk::create_child(path, parent, &CreateOptions::child().block_size(MIB)),
    }
    .expect("a disk");
    for block in blocks {
        disk.write_at(&vec![byte; 700_000], block * MIB + 512).expect("a write");
    }
    disk.close().expect("a close");
}

fn content(path: &Path) -> Vec<u8> {
    let disk = Disk::open(path, &OpenOptions::new()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(disk.check().expect("it can be checked").is_sound());
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).expect("a read");
    bytes
}

#[test]
fn a_merge_into_a_new_file_that_is_killed_leaves_nothing_or_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    write(&at("base.vhdx"), None, 0..40, b'b');
    write(&at("leaf.vhdx"), Some(&at("base.vhdx")), (0..60).step_by(3), b'l');
    let files = || ["base.vhdx", "leaf.vhdx"].map(|name| std::fs::read(at(name)).expect("a file"));
    let (before, expected) = (files(), content(&at("leaf.vhdx")));
    let spawn = || {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["killed::the_merge", "--exact"]).env(PLACE, dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("a process")
    };
    let began = Instant::now();
    assert!(spawn().wait().expect("it ends").success());
    let (whole_run, rounds) = (began.elapsed(), setting("DIFFDISK_MERGE_KILLS", 12));
    assert!(content(&at("new.vhdx")) == expected, "a merge that nobody disturbed");
    let (mut absent, mut whole, mut left) = (0, 0, 0);
    for round in 0..rounds {
        let _ = std::fs::remove_file(at("new.vhdx"));
        let mut child = spawn();
        // Spread over the whole run, in an order that depends on nothing; the last ones come late.
        std::thread::sleep(whole_run.mul_f64((round * 5 % rounds) as f64 / rounds as f64 * 1.3) + Duration::from_micros(round * 77));
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        match at("new.vhdx").exists() {
            true => {
                assert!(content(&at("new.vhdx")) == expected, "under its final name, and not whole");
                whole += 1;
            }
            false => absent += 1,
        }
        assert!(files() == before, "a merge into a new file changes none");
        let names: Vec<PathBuf> =
            std::fs::read_dir(dir.path()).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
        for path in names {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if !["base.vhdx", "leaf.vhdx", "new.vhdx"].contains(&name.as_str()) {
                assert!(name.starts_with(".new.vhdx.") && name.ends_with(".tmp"), "left without a name that gives it away: {name}");
                std::fs::remove_file(path).expect("a leftover");
                left += 1;
            }
        }
    }
    let _ = std::fs::remove_file(at("new.vhdx"));
    merge(dir.path());
    assert!(content(&at("new.vhdx")) == expected);
    println!(
        "merge --to, killed: {rounds} kills, {absent} without the file, {whole} with a whole one, {left} leftovers with a telling name"
    );
    assert!(absent > 0, "nothing was killed in time");
}

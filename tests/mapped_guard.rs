//! A mapped ancestor that is cut short under its clone: an error where the program asked for that, and nobody else's signals are
//! touched. In a process of its own, because a signal's handler belongs to the process.
#![cfg(target_os = "linux")]

use diffdisk::storage::{FileStorage, MappedStorage, Storage, guard_mappings};
use diffdisk::{CreateOptions, Disk, ErrorKind, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
/// What the second process is told to do, in its environment.
const ROLE: &str = "DIFFDISK_TEST_GUARD";

/// A base of 8 MiB, full, and an empty child of it.
fn chain(dir: &Path) {
    let base = Disk::create(dir.join("base.vhdx"), &CreateOptions::dynamic(8 * MIB).block_size(MIB)).unwrap();
    base.write_at(&vec![7; 8 * MIB as usize], 0).unwrap();
    base.close().unwrap();
    Disk::create_child(dir.join("child.vhdx"), dir.join("base.vhdx"), &CreateOptions::child()).unwrap().close().unwrap();
}

fn cut(path: &Path, len: u64) {
    std::fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_parent_cut_short_is_an_error_and_the_rest_still_reads() {
    guard_mappings().unwrap();
    guard_mappings().unwrap();
    let dir = tempfile::tempdir().unwrap();
    chain(dir.path());
    let other = tempfile::tempdir().unwrap();
    chain(other.path());
    let options = OpenOptions::new().map_ancestors(true);
    let disk = Disk::open(dir.path().join("child.vhdx"), &options).unwrap();
    let bystander = Disk::open(other.path().join("child.vhdx"), &options).unwrap();
    let mut page = [0; 4096];
    disk.read_at(&mut page, 0).unwrap();
    assert_eq!(page, [7; 4096]);
    let whole = std::fs::metadata(dir.path().join("base.vhdx")).unwrap().len();
    cut(&dir.path().join("base.vhdx"), whole - 4 * MIB);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut page = [0; 4096];
                for i in 0..256 {
                    let failed = disk.read_at(&mut page, 4 * MIB + (thread * 256 + i) * 4096).unwrap_err();
                    assert_eq!(failed.kind(), ErrorKind::Damaged, "{failed}");
                    disk.read_at(&mut page, (thread * 256 + i) * 4096).unwrap();
                    assert_eq!(page, [7; 4096], "what is left is read as ever");
                }
            });
        }
    });
    for at in (0..8 * MIB).step_by(4096) {
        bystander.read_at(&mut page, at).unwrap();
        assert_eq!(page, [7; 4096], "another mapping has not failed");
    }
}

#[test]
fn a_mapping_made_before_the_guard_and_anybody_elses_are_left_alone() {
    if let Ok(role) = std::env::var(ROLE) {
        let path = std::env::temp_dir().join(format!("diffdisk-guard-{}", std::process::id()));
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        if role == "after" {
            guard_mappings().unwrap();
        }
        let mapped = MappedStorage::new(FileStorage::open_read(&path).unwrap()).map_err(|(_, why)| why).unwrap();
        if role == "before" {
            guard_mappings().unwrap();
        }
        cut(&path, 4096);
        std::fs::remove_file(&path).unwrap();
        let mut page = [0; 4096];
        let read = mapped.read_at(&mut page, 8192);
        println!("{read:?}");
        std::process::exit(if read.is_err() { 40 } else { 41 });
    }
    let child = |role: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_mapping_made_before_the_guard_and_anybody_elses_are_left_alone"]).env(ROLE, role);
        command.output().unwrap().status
    };
    assert_eq!(child("before").signal(), Some(7), "a mapping that is not guarded dies as it would without a handler");
    assert_eq!(child("never").signal(), Some(7));
    assert_eq!(child("after").code(), Some(40));
}

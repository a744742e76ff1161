//! A file system that really is full. The counted faults of `tests/faults.rs` say what should happen; this says that the system's
//! way of having no space is the one they imitate.

#![cfg(target_os = "linux")]

#[path = "support/loud.rs"]
mod loud;

use diffdisk::{CreateOptions, Disk, ErrorKind, OpenOptions};
use loud::loud;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A small file system of its own, gone when dropped.
struct Small {
    dir: PathBuf,
    _base: tempfile::TempDir,
}

impl Small {
    fn mount(mib: u64) -> Result<Self, String> {
        let base = tempfile::tempdir().map_err(|e| e.to_string())?;
        let dir = base.path().join("full");
        std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(&dir).output();
        let mounted = mounted.map_err(|e| format!("mount does not run: {e}"))?;
        if mounted.status.success() {
            Ok(Self { dir, _base: base })
        } else {
            Err(String::from_utf8_lossy(&mounted.stderr).trim().to_owned())
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
    }
}

fn block(tag: u64, at: u64) -> Vec<u8> {
    (0..64 * 1024 / 8_u64).flat_map(|i| ((tag << 48 | at | i).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1).to_le_bytes()).collect()
}

/// Writes and flushes until there is no space; returns the places that are flushed and those that may be there.
fn fill(disk: &Disk) -> (Vec<u64>, Vec<u64>) {
    let (mut flushed, mut waiting) = (Vec::new(), Vec::new());
    for at in (0..256).map(|i| i * 640 * 1024) {
        let outcome = disk.write_at(&block(1, at), at);
        waiting.push(at);
        if let Err(e) = outcome {
            assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
            return (flushed, waiting);
        }
        if waiting.len() == 3 {
            match disk.flush() {
                Ok(()) => flushed.append(&mut waiting),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                    return (flushed, waiting);
                }
            }
        }
    }
    panic!("a file system of 8 MiB took 16 MiB");
}

fn holds(disk: &Disk, at: u64) -> bool {
    let mut buf = vec![0; 64 * 1024];
    disk.read_at(&mut buf, at).unwrap();
    buf == block(1, at)
}

fn run(dir: &Path, ballast: u64) -> usize {
    let (path, weight) = (dir.join(format!("{ballast}.vhdx")), dir.join("ballast"));
    std::fs::write(&weight, vec![1; ballast as usize]).unwrap();
    let options = CreateOptions::dynamic(256 * MIB).block_size(MIB);
    let disk = Disk::create(&path, &options).unwrap();
    let (flushed, waiting) = fill(&disk);
    assert!(!flushed.is_empty() && !disk.is_degraded(), "no space is not the end of a handle");
    assert!(flushed.iter().all(|&at| holds(&disk, at)), "what was flushed is readable while the disk is full");
    // Somebody makes room: the same handle goes on.
    std::fs::remove_file(&weight).unwrap();
    for &at in &waiting {
        disk.write_at(&block(1, at), at).unwrap();
    }
    disk.flush().unwrap();
    drop(disk);
    let disk = Disk::open(&path, &OpenOptions::new().writable(true)).unwrap();
    assert!(flushed.iter().chain(&waiting).all(|&at| holds(&disk, at)), "and after reopening");
    assert!(disk.check().unwrap().is_sound());
    disk.close().unwrap();
    std::fs::remove_file(&path).unwrap();
    flushed.len()
}

#[test]
fn a_full_file_system_harms_only_the_request_that_meets_it() {
    let small = match Small::mount(8) {
        Ok(small) => small,
        Err(why) => return loud(&format!("full disk: skipped: no tmpfs can be mounted here: {why}")),
    };
    // Different amounts of ballast, so that the space ends in different places: payload, log, bitmap or table.
    let runs: Vec<usize> = (0..24).map(|i| run(&small.dir, MIB + i * 20 * 1024)).collect();
    loud(&format!(
        "full disk: {} file systems of 8 MiB filled up, {} pieces of 64 KiB flushed and kept",
        runs.len(),
        runs.iter().sum::<usize>()
    ));
}

//! A clone mounted through FUSE, changed by the calls that programs make on files, beside an array of bytes.
#![cfg(all(target_os = "linux", feature = "fuse"))]

use diffdisk::export::fuse::FuseMount;
use diffdisk::{CreateOptions, Disk, OpenOptions};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB + 512;

/// Whether this machine lets us; says aloud when it does not.
fn may_mount() -> bool {
    let reason = match File::options().read(true).write(true).open("/dev/fuse") {
        Err(e) => format!("/dev/fuse cannot be opened: {e}"),
        Ok(_) if rustix::process::geteuid().is_root() => {
            // A container's root may still be forbidden to mount; a mount that fails then is no news.
            let caps = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let mask = caps.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
            if mask.is_some_and(|mask| mask >> 21 & 1 == 1) {
                return true;
            }
            "no CAP_SYS_ADMIN".to_owned()
        }
        Ok(_) if Path::new("/usr/bin/fusermount3").exists() || Path::new("/bin/fusermount3").exists() => return true,
        Ok(_) => "neither root nor fusermount3".to_owned(),
    };
    eprintln!("fuse: SKIPPED, {reason}");
    false
}

struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// A parent with data at 2..5 MiB, and a child of it.
    fn new() -> (Self, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let base = Disk::create(dir.path().join("base.vhdx"), &CreateOptions::dynamic(SIZE).block_size(MIB)).unwrap();
        let mut model = vec![0; SIZE as usize];
        model[2 << 20..5 << 20].fill(0xa5);
        base.write_at(&model[2 << 20..5 << 20], 2 * MIB).unwrap();
        base.close().unwrap();
        Disk::create_child(dir.path().join("alice.vhdx"), dir.path().join("base.vhdx"), &CreateOptions::child()).unwrap().close().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        (Self { dir }, model)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Mounts, runs `with` on the file that is the disk, unmounts, and closes the disk.
    fn mounted(&self, on: &str, writable: bool, with: impl FnOnce(&Path)) {
        let disk = Arc::new(Disk::open(self.path("alice.vhdx"), &OpenOptions::new().writable(writable)).unwrap());
        let mounted = FuseMount::new(disk.clone()).name("alice.img").mount(&self.path(on)).unwrap();
        let (file, stopper) = (mounted.file().to_path_buf(), mounted.stopper());
        let serving = std::thread::spawn(move || mounted.serve());
        // Also when it panics, or nothing below the directory could be removed any more.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| with(&file)));
        stopper.unmount().unwrap();
        serving.join().unwrap().unwrap();
        stopper.unmount().expect("once more does nothing");
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        let disk = Arc::into_inner(disk).expect("nobody else has it");
        if writable {
            disk.close().unwrap();
        }
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn files_are_written_punched_and_synced_as_arrays_are() {
    if !may_mount() {
        return;
    }
    let (world, mut model) = World::new();
    let parent = std::fs::read(world.path("base.vhdx")).unwrap();
    world.mounted("mnt", true, |path| {
        assert_eq!(path.file_name().unwrap(), "alice.img");
        let file = open(path);
        assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().mode()), (SIZE, 0o100_600));
        let mut state = 0x5EED_u64;
        let mut roll = |n: u64| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 33) % n
        };
        for turn in 0..300 {
            let at = roll(SIZE);
            let len = [1, 511, 512, 4096, 70_000, MIB, 3 * MIB][roll(7) as usize].min(SIZE - at);
            let range = at as usize..(at + len) as usize;
            match roll(6) {
                0 => {
                    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len).unwrap();
                    model[range].fill(0);
                }
                1 => {
                    fallocate(&file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, len).unwrap();
                    model[range].fill(0);
                }
                2 => file.sync_data().unwrap(),
                3 => {
                    let mut got = vec![0; len as usize];
                    file.read_exact_at(&mut got, at).unwrap();
                    assert!(got == model[range], "turn {turn}: {len} bytes at {at}");
                }
                _ => {
                    let len = len.min(200_000);
                    let range = at as usize..(at + len) as usize;
                    model[range.clone()].fill(turn as u8 | 1);
                    file.write_all_at(&model[range], at).unwrap();
                }
            }
        }
        assert!(std::fs::read(path).unwrap() == model);
    });
    let disk = Disk::open(world.path("alice.vhdx"), &OpenOptions::new()).unwrap();
    let mut all = vec![0; SIZE as usize];
    disk.read_at(&mut all, 0).unwrap();
    assert!(all == model, "what was seen is what the disk holds");
    assert!(disk.check().unwrap().is_sound());
    assert!(std::fs::read(world.path("base.vhdx")).unwrap() == parent, "the parent was not written");
}

#[test]
fn holes_are_found_and_the_size_is_fixed() {
    if !may_mount() {
        return;
    }
    let (world, _) = World::new();
    world.mounted("mnt", true, |path| {
        let file = open(path);
        assert_eq!(file.metadata().unwrap().blocks() * 512, 3 * MIB, "what the parent holds");
        assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(2 * MIB));
        assert_eq!(seek(&file, SeekFrom::Hole(2 * MIB + 7)), Ok(5 * MIB));
        assert_eq!(seek(&file, SeekFrom::Hole(7)), Ok(7));
        assert_eq!(seek(&file, SeekFrom::Data(5 * MIB)), Err(Errno::NXIO));
        file.write_all_at(b"the end", SIZE - 7).unwrap();
        assert_eq!(seek(&file, SeekFrom::Hole(SIZE - 1)), Ok(SIZE), "the end is a hole");
        assert_eq!(file.write_at(b"beyond", SIZE).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(file.read_at(&mut [0; 9], SIZE - 7).unwrap(), 7);
        assert_eq!(file.set_len(0).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        file.set_len(SIZE).unwrap();
        assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, MIB), Err(Errno::OPNOTSUPP));
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["alice.img"]);
        assert!(File::create(path.with_file_name("other")).is_err(), "there is one file");
    });
}

#[test]
fn a_file_can_be_the_mount_point_and_a_disk_read_only() {
    if !may_mount() {
        return;
    }
    let (world, model) = World::new();
    std::fs::write(world.path("here"), "below").unwrap();
    world.mounted("here", false, |path| {
        assert_eq!(path, std::fs::canonicalize(world.path("here")).unwrap());
        assert!(std::fs::read(path).unwrap() == model);
        assert!(File::options().write(true).open(path).is_err());
    });
    assert_eq!(std::fs::read(world.path("here")).unwrap(), b"below");
    let missing =
        FuseMount::new(Arc::new(Disk::open(world.path("alice.vhdx"), &OpenOptions::new()).unwrap())).mount(&world.path("nothing"));
    assert_eq!(missing.err().map(|e| e.kind()), Some(diffdisk::ErrorKind::NotFound));
}

#[test]
fn a_mount_in_use_is_not_torn_away() {
    if !may_mount() {
        return;
    }
    let (world, _) = World::new();
    let disk = Arc::new(Disk::open(world.path("alice.vhdx"), &OpenOptions::new().writable(true)).unwrap());
    let mounted = FuseMount::new(disk).mount(&world.path("mnt")).unwrap();
    let (path, stopper) = (mounted.file().to_path_buf(), mounted.stopper());
    let serving = std::thread::spawn(move || mounted.serve());
    let file = open(&path);
    file.write_all_at(&[7; 512], 0).unwrap();
    let busy = stopper.unmount().unwrap_err();
    assert_eq!(busy.kind(), diffdisk::ErrorKind::InUse, "{busy}");
    file.write_all_at(&[8; 512], 0).unwrap();
    drop(file);
    // Closing reaches us after it has returned to the one who closes.
    let mut tries = 0;
    while let Err(e) = stopper.unmount() {
        tries += 1;
        assert!(tries < 200, "{e}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    serving.join().unwrap().unwrap();
}

//! The shortest way through the engine: create, write, clone, diverge, flush, close, reopen, compare.

use diffdisk::{CreateOptions, Disk, ErrorKind, ExtentKind, OpenOptions};
use std::io::{Seek, Write};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn read(disk: &Disk, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0xEE; len];
    disk.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[test]
fn a_clone_diverges_and_its_image_does_not_change() -> Result {
    let dir = tempfile::tempdir()?;
    let (image, clone) = (dir.path().join("image.vhdx"), dir.path().join("clone.vhdx"));
    let base = Disk::create(&image, &CreateOptions::dynamic(64 << 20).block_size(2 << 20))?;
    base.write_at(&[0xB0; 5000], 1000)?;
    base.write_at(&[0xB1; 3 << 20], 10 << 20)?;
    base.close()?;
    let sealed = std::fs::read(&image)?;

    let disk = Disk::create_child(&clone, &image, &CreateOptions::child())?;
    disk.write_at(&[0xC0; 10], 2000)?;
    disk.write_at(&[0xC1; 2 << 20], 11 << 20)?;
    disk.flush()?;
    disk.trim(12 << 20, 1 << 20)?;
    assert!(disk.check()?.is_sound(), "{:?}", disk.check()?);
    disk.close()?;

    let disk = Disk::open(&clone, &OpenOptions::new())?;
    assert!(disk.check()?.is_sound(), "{:?}", disk.check()?);
    assert_eq!(read(&disk, 999, 1)?, [0]);
    assert_eq!(read(&disk, 1000, 1000)?, [0xB0; 1000]);
    assert_eq!(read(&disk, 2000, 12)?, [[0xC0; 10].as_slice(), &[0xB0; 2]].concat());
    assert_eq!(read(&disk, 10 << 20, 1 << 20)?, vec![0xB1; 1 << 20]);
    assert_eq!(read(&disk, 11 << 20, 1 << 20)?, vec![0xC1; 1 << 20]);
    assert_eq!(read(&disk, 12 << 20, 2 << 20)?, vec![0; 2 << 20], "trimmed, not the parent");
    assert_eq!(std::fs::read(&image)?, sealed, "the image is never written");
    assert_eq!(disk.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::Denied);
    Ok(())
}

#[test]
fn a_dropped_session_is_replayed_by_readers_and_writers_alike() -> Result {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk.vhdx");
    let disk = Disk::create(&path, &CreateOptions::dynamic(16 << 20))?;
    for i in 0..16u8 {
        disk.write_at(&[i + 1; 700], u64::from(i) << 20)?;
        disk.flush()?;
    }
    drop(disk);
    let before = std::fs::read(&path)?;
    let reader = Disk::open(&path, &OpenOptions::new())?;
    assert!(reader.info()?.log_dirty);
    for i in 0..16u8 {
        assert_eq!(read(&reader, u64::from(i) << 20, 700)?, [i + 1; 700]);
    }
    drop(reader);
    assert_eq!(std::fs::read(&path)?, before, "reading changes no byte");
    let writer = Disk::open(&path, &OpenOptions::new().writable(true))?;
    for i in 0..16u8 {
        assert_eq!(read(&writer, u64::from(i) << 20, 700)?, [i + 1; 700]);
    }
    writer.close()?;
    assert!(!Disk::open(&path, &OpenOptions::new())?.info()?.log_dirty);
    Ok(())
}

#[test]
fn a_host_may_write_by_itself() -> Result {
    let dir = tempfile::tempdir()?;
    let (image, clone) = (dir.path().join("image.vhdx"), dir.path().join("clone.vhdx"));
    let base = Disk::create(&image, &CreateOptions::dynamic(8 << 20))?;
    base.write_at(&[7; 4096], 0)?;
    base.close()?;
    let disk = Disk::create_child(&clone, &image, &CreateOptions::child())?;
    let token = disk.begin_write(512, 1024)?;
    let extents = token.extents();
    assert_eq!(extents.len(), 1);
    let mut file = std::fs::OpenOptions::new().write(true).open(&clone)?;
    file.seek(std::io::SeekFrom::Start(extents[0].file_offset))?;
    file.write_all(&[9; 1024])?;
    assert_eq!(read(&disk, 512, 1)?, [7], "not visible before it is complete");
    token.complete()?;
    assert_eq!(read(&disk, 0, 4096)?, [[7; 512].as_slice(), &[9; 1024], &[7; 2560]].concat());
    drop(disk.begin_write(4 << 20, 4096)?);
    let kinds: Vec<_> = disk.extents(0, 8 << 20)?.collect::<std::result::Result<_, _>>()?;
    assert!(matches!(kinds[0].kind, ExtentKind::Data { layer: 1, .. }) && kinds[0].len == 512);
    disk.close()?;
    Ok(())
}

#[test]
fn huge_disks_cost_what_small_ones_cost() -> Result {
    let dir = tempfile::tempdir()?;
    let (image, clone) = (dir.path().join("image.vhdx"), dir.path().join("clone.vhdx"));
    Disk::create(&image, &CreateOptions::dynamic(64 << 40))?.close()?;
    let disk = Disk::create_child(&clone, &image, &CreateOptions::child().block_size(1 << 20))?;
    let last = (64 << 40) - 4096;
    disk.write_at(&[1; 4096], 0)?;
    disk.write_at(&[2; 4096], last)?;
    disk.flush()?;
    assert_eq!(read(&disk, last, 4096)?, [2; 4096]);
    let sizes = disk.info()?.sizes;
    if cfg!(unix) {
        // On NTFS a sparse file could not be attached by Windows, so its tables take their space.
        assert!(sizes.allocated < 256 << 10, "{sizes:?}");
    }
    assert_eq!(sizes.diverged, 8192);
    disk.close()?;
    let disk = Disk::open(&clone, &OpenOptions::new())?;
    assert_eq!(read(&disk, last, 4096)?, [2; 4096]);
    assert_eq!(read(&disk, 1 << 40, 4096)?, [0; 4096]);
    Ok(())
}

#[test]
fn a_file_in_use_is_not_replaced() -> Result {
    let dir = tempfile::tempdir()?;
    let (image, clone) = (dir.path().join("image.vhdx"), dir.path().join("clone.vhdx"));
    let options = CreateOptions::dynamic(8 << 20);
    Disk::create(&image, &options)?.close()?;
    assert_eq!(Disk::create(&image, &options).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let disk = Disk::create_child(&clone, &image, &CreateOptions::child())?;
    let taken = options.overwrite(true);
    assert_eq!(Disk::create(&image, &taken).unwrap_err().kind(), ErrorKind::InUse, "a parent");
    assert_eq!(Disk::create(&clone, &taken).unwrap_err().kind(), ErrorKind::InUse, "a disk");
    assert_eq!(Disk::open(&image, &OpenOptions::new().writable(true)).unwrap_err().kind(), ErrorKind::InUse);
    drop(disk);
    Disk::create(&image, &taken)?;
    assert_eq!(std::fs::read_dir(dir.path())?.count(), 2, "no temporary file is left");
    Ok(())
}

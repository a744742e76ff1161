//! Digests of whole disks and files: SHA-256 as hexadecimal text, and the sparse digest that costs nothing for holes.

use diffdisk::{Disk, ExtentKind};
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

pub const PIECE: u64 = 64 << 10;

pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// Both digests of a disk in one pass: sha256 of every byte (if asked for), and the sparse digest.
///
/// The sparse digest is over the 64 KiB pieces that are not all zeros: offset (u64), length (u32), bytes; then the virtual size.
/// Pieces that `extents()` calls zero are not read, unless `read_all` says so: then every byte comes through `read_at`.
pub fn of_disk(disk: &Disk, with_sha256: bool, read_all: bool) -> Result<(String, String), String> {
    let (mut full, mut sparse) = (Sha256::new(), Sha256::new());
    let size = disk.size();
    let mut buf = vec![0; PIECE as usize];
    let zeros = vec![0; PIECE as usize];
    let mut next = 0;
    let mut piece = |from: u64, full: &mut Sha256| -> Result<u64, String> {
        let len = (size - from).min(PIECE);
        let part = &mut buf[..len as usize];
        disk.read_at(part, from).map_err(|e| format!("read_at {from:#x}: {e}"))?;
        if with_sha256 {
            full.update(&*part);
        }
        if part[..] != zeros[..len as usize] {
            sparse.update(from.to_le_bytes());
            sparse.update((len as u32).to_le_bytes());
            sparse.update(&*part);
        }
        Ok(from + len)
    };
    if read_all {
        while next < size {
            next = piece(next, &mut full)?;
        }
    } else {
        let mut at = 0;
        for extent in disk.extents(0, size).map_err(|e| format!("extents: {e}"))? {
            let extent = extent.map_err(|e| format!("extent: {e}"))?;
            if extent.offset != at {
                return Err(format!("extents: {:#x} follows {at:#x}", extent.offset));
            }
            at += extent.len;
            if matches!(extent.kind, ExtentKind::Data { .. }) {
                // All pieces that the stretch touches; zeros before them count only for the full digest.
                let first = extent.offset / PIECE * PIECE;
                while with_sha256 && next < first {
                    full.update(&zeros);
                    next += PIECE;
                }
                next = next.max(first);
                while next < at {
                    next = piece(next, &mut full)?;
                }
            }
        }
        if at != size {
            return Err(format!("extents end at {at:#x} and not at {size:#x}"));
        }
        while with_sha256 && next < size {
            let len = (size - next).min(PIECE);
            full.update(&zeros[..len as usize]);
            next += len;
        }
    }
    sparse.update(size.to_le_bytes());
    Ok((hex(full), hex(sparse)))
}

/// What a file looked like: length, modification time, space on the disk, and the SHA-256 of the pieces that are not holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Print {
    pub len: u64,
    modified: std::time::SystemTime,
    allocated: u64,
    data: String,
}

/// Takes the fingerprint; `data` lists the 64 KiB pieces that were written when the file was made. Whoever writes to a hole changes
/// the time and the space.
pub fn print(path: &Path, data: &[u64]) -> std::io::Result<Print> {
    let mut file = std::fs::File::open(path)?;
    let meta = file.metadata()?;
    let (mut hash, mut buf) = (Sha256::new(), Vec::new());
    for &at in data {
        file.seek(SeekFrom::Start(at))?;
        buf.clear();
        Read::by_ref(&mut file).take(PIECE).read_to_end(&mut buf)?;
        hash.update(&buf);
    }
    #[cfg(unix)]
    let allocated = std::os::unix::fs::MetadataExt::blocks(&meta);
    #[cfg(not(unix))]
    let allocated = 0;
    Ok(Print { len: meta.len(), modified: meta.modified()?, allocated, data: hex(hash) })
}

/// SHA-256 of a file.
pub fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(hex(hash))
}

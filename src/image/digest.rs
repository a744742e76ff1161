//! The digests of an image: one BLAKE3 for each block that is not all zeros.
//!
//! They are lines of text in `GENERATION.blake3`, so that `b3sum` and a shell can check one block by hand. A block that has no line is
//! zeros. The BLAKE3 of this file stands in the manifest.

use super::error::StoreError;
use super::load::is_zero;
use super::manifest::Manifest;
use crate::chain::{Disk, ExtentKind};
use crate::progress::{Cancel, Phase, Progress};
use std::fmt::Write;
use std::path::Path;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlockDigest {
    pub(super) block: u64,
    pub(super) digest: blake3::Hash,
}

/// The first line of the file.
fn headline(block_size: u64) -> String {
    format!("# BLAKE3 of each block of {block_size} bytes that is not all zeros: block number, digest\n")
}

/// The content of the file.
pub(super) fn encode(block_size: u64, digests: &[BlockDigest]) -> String {
    let mut text = headline(block_size);
    for BlockDigest { block, digest } in digests {
        writeln!(text, "{block} {}", digest.to_hex()).expect("a string takes any text");
    }
    text
}

/// Reads the file's content back.
pub(super) fn decode(path: &Path, block_size: u64, text: &str) -> Result<Vec<BlockDigest>, StoreError> {
    let damaged = |what: String| {
        let next = "restore it from a copy; without it the image cannot be verified";
        StoreError::Damaged { path: path.to_path_buf(), what, next }
    };
    let lines = text.strip_prefix(&headline(block_size)).ok_or_else(|| damaged("its first line is not ours".into()))?;
    let parse = |line: &str| {
        let (block, hex) = line.split_once(' ')?;
        Some(BlockDigest { block: block.parse().ok()?, digest: blake3::Hash::from_hex(hex).ok()? })
    };
    let digests: Option<Vec<BlockDigest>> = lines.lines().map(parse).collect();
    let digests = digests.ok_or_else(|| damaged("a line is not a block number and a digest".into()))?;
    if digests.is_sorted_by(|a, b| a.block < b.block) { Ok(digests) } else { Err(damaged("its lines are not in order".into())) }
}

/// Reads the file of an image and holds it against the manifest.
pub(super) fn read(path: &Path, manifest: &Manifest) -> Result<Vec<BlockDigest>, StoreError> {
    let text = std::fs::read(path).map_err(StoreError::io("read the digests", path))?;
    if blake3::hash(&text).to_hex().as_str() != manifest.digest {
        let what = "its digest is not the one in the manifest".to_owned();
        return Err(StoreError::Damaged { path: path.to_path_buf(), what, next: "restore it from a copy, or refresh the image" });
    }
    decode(path, manifest.block_size, &String::from_utf8_lossy(&text))
}

/// Reads every block that may hold data, in order, and calls `each` with its number and its digest; `None` if it is zeros after all.
pub(super) fn walk(
    disk: &Disk,
    path: &Path,
    block_size: u64,
    phase: Phase,
    progress: &dyn Progress,
    cancel: &Cancel,
    mut each: impl FnMut(u64, Option<blake3::Hash>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    progress.phase(phase, Some(disk.size()));
    let mut buffer = vec![0; block_size as usize];
    let mut next = 0;
    for extent in disk.extents(0, disk.size()).map_err(StoreError::disk(path))? {
        let extent = extent.map_err(StoreError::disk(path))?;
        if matches!(extent.kind, ExtentKind::Zero { .. }) {
            continue;
        }
        let end = (extent.offset + extent.len).div_ceil(block_size);
        for block in next.max(extent.offset / block_size)..end {
            if cancel.is_cancelled() {
                return Err(StoreError::Cancelled { doing: phase.label(), left: "nothing was changed" });
            }
            let at = block * block_size;
            let part = &mut buffer[..block_size.min(disk.size() - at) as usize];
            disk.read_at(part, at).map_err(StoreError::disk(path))?;
            each(block, (!is_zero(part)).then(|| blake3::hash(part)))?;
            progress.advance(at + part.len() as u64);
            next = block + 1;
        }
    }
    progress.advance(disk.size());
    Ok(())
}

//! What a chain of storages reads as, piece by piece, and the laws that a repair must keep.

use crate::table::fingerprint;
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Cancel, CheckReport, Consent, Disk, Finding, NoProgress, OpenOptions, Repair, RepairOptions, RepairReport, ToolError};
use std::sync::Arc;

pub type File = Arc<dyn Storage>;

const MIB: u64 = 1 << 20;

/// See [`content`].
pub type Content = Option<Vec<Option<u64>>>;

/// A hash of each MiB, or `None` where it cannot be read; of large disks, both ends. `None` for a chain that does not open.
pub fn content(files: &[File]) -> Content {
    let disk = Disk::open_on(Arc::clone(&files[0]), files[1..].to_vec(), &OpenOptions::new()).ok()?;
    let (mut pieces, mut at, mut buf) = (Vec::new(), 0, vec![0; MIB as usize]);
    while at < disk.size() {
        if at == 64 * MIB && disk.size() > 128 * MIB {
            at = (disk.size() - 32 * MIB).max(at);
        }
        let part = &mut buf[..(disk.size() - at).min(MIB) as usize];
        pieces.push(disk.read_at(part, at).ok().map(|()| hash(part)));
        at += MIB;
    }
    Some(pieces)
}

/// Fast, and different for pieces that differ in one place or are shifted. Eight chains side by side: one alone waits for its multiplications.
fn hash(bytes: &[u8]) -> u64 {
    let word = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
    let (lines, rest) = bytes.as_chunks::<64>();
    let mut chains = [1_u64, 2, 3, 4, 5, 6, 7, 8];
    for line in lines {
        for (chain, bytes) in chains.iter_mut().zip(line.as_chunks::<8>().0) {
            *chain = word(*chain, u64::from_le_bytes(*bytes));
        }
    }
    let hash = chains.into_iter().fold(rest.len() as u64, word);
    rest.iter().fold(hash, |hash, &byte| word(hash, byte.into()))
}

/// Everything that could be read before can be read now, and is the same.
pub fn still_reads(before: &Content, after: &Content) -> Result<(), String> {
    let Some(before) = before else { return Ok(()) };
    let Some(after) = after else { return Err("it no longer opens".to_owned()) };
    if before.len() != after.len() {
        return Err("it has another size".to_owned());
    }
    for (at, (old, new)) in before.iter().zip(after).enumerate() {
        if old.is_some() && old != new {
            return Err(format!("piece {at} reads as {new:?} and not as {old:?}"));
        }
    }
    Ok(())
}

pub fn options(consents: &[Consent]) -> RepairOptions {
    consents.iter().fold(RepairOptions::new(), |options, &consent| options.accept(consent))
}

pub fn examine(files: &[File]) -> Result<CheckReport, ToolError> {
    Disk::examine_on(&files[0], files[1..].to_vec(), &NoProgress, &Cancel::new())
}

pub fn repair(file: &File, consents: &[Consent]) -> Result<RepairReport, ToolError> {
    Disk::repair_on(file, &options(consents), &NoProgress, &Cancel::new())
}

pub fn is_repairable(finding: &&Finding) -> bool {
    finding.repair == Repair::Repairable
}

/// Repairs the leaf and holds the outcome against every law. Says what was done.
pub fn lawful_repair(files: &[Arc<MemoryStorage>], consents: &[Consent]) -> Result<RepairReport, String> {
    let chain: Vec<File> = files.iter().map(|file| Arc::clone(file) as File).collect();
    let before = content(&chain);
    let prints: Vec<_> = files.iter().map(|file| fingerprint(file)).collect();
    let identity = data_write(&chain);
    let report = repair(&chain[0], consents).map_err(|e| format!("repair: {e}"))?;
    still_reads(&before, &content(&chain))?;
    let now: Vec<_> = files.iter().map(|file| fingerprint(file)).collect();
    if now[1..] != prints[1..] {
        return Err("a parent was written".to_owned());
    }
    if report.steps.is_empty() && now[0] != prints[0] {
        return Err("nothing was done, and the file changed".to_owned());
    }
    if !report.steps.is_empty() && now[0] == prints[0] {
        return Err(format!("{:?} was done, and the file did not change", report.steps));
    }
    if identity.is_some() && identity != data_write(&chain) {
        return Err("the data write GUID changed".to_owned());
    }
    let found = examine(&chain[..1]).map_err(|e| format!("examine: {e}"))?;
    if found != report.left {
        return Err(format!("left is {:?}, and an examination finds {found:?}", report.left));
    }
    for finding in &report.repaired {
        if found.findings().any(|left| left == finding) {
            return Err(format!("said to be repaired: {finding}"));
        }
    }
    let pending: Vec<_> = found.findings().filter(is_repairable).collect();
    if !report.steps.is_empty() && !pending.is_empty() {
        return Err(format!("not done at once: {pending:?}"));
    }
    if report.steps.is_empty() && !pending.is_empty() && report.needs.is_empty() {
        return Err(format!("repairable, and nothing was done: {pending:?}"));
    }
    let again = repair(&chain[0], consents).map_err(|e| format!("a second repair: {e}"))?;
    if !again.steps.is_empty() {
        return Err(format!("a second repair did {:?}", again.steps));
    }
    if found.is_sound() && chain.len() == 1 {
        // A differencing disk alone cannot show that it reads.
        let opens = Disk::open_on(Arc::clone(&chain[0]), Vec::new(), &OpenOptions::new().parents(diffdisk::ParentPolicy::Deny));
        opens.map_err(|e| format!("sound, and does not open: {e}"))?;
    }
    Ok(report)
}

fn data_write(files: &[File]) -> Option<String> {
    let options = OpenOptions::new().parents(diffdisk::ParentPolicy::Deny);
    let disk = Disk::open_on(Arc::clone(&files[0]), Vec::new(), &options).ok()?;
    disk.info().ok().map(|info| info.data_write_guid.to_string())
}

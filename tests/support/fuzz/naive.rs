//! A log replayed the slow and obvious way, from the text of §3.6 and §3.7 of the format's description alone.

use super::forge::{RawGuid, crc32c};
use diffdisk::storage::{MemoryStorage, Storage};

/// What one descriptor asks for: zeros of a length, or a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Page(u64, Vec<u8>),
    Zero(u64, u64),
}

#[derive(Clone, Debug)]
struct Entry {
    len: usize,
    sequence: u64,
    tail: usize,
    flushed: u64,
    last: u64,
    steps: Vec<Step>,
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

/// The entry that starts at `at`, if one does.
fn entry(ring: &[u8], at: usize, log_at: u64, guid: RawGuid) -> Option<Entry> {
    let len = u32_at(ring, at + 8) as usize;
    if &ring[at..at + 4] != b"loge" || len == 0 || !len.is_multiple_of(4096) || len > ring.len() {
        return None;
    }
    let mut b: Vec<u8> = (at..at + len).map(|i| ring[i % ring.len()]).collect();
    let (tail, sequence, count) = (u32_at(&b, 12) as usize, u64_at(&b, 16), u32_at(&b, 24) as usize);
    if !tail.is_multiple_of(4096) || tail >= ring.len() || sequence == 0 || u32_at(&b, 28) != 0 || b[32..48] != guid {
        return None;
    }
    let first_data = (64 + 32 * count).div_ceil(4096) * 4096;
    if first_data > len {
        return None;
    }
    let mut data = first_data;
    let mut steps = Vec::new();
    for d in (0..count).map(|n| 64 + 32 * n) {
        let home = u64_at(&b, d + 16);
        let (step, bytes) = match &b[d..d + 4] {
            b"zero" => (Step::Zero(home, u64_at(&b, d + 8)), u64_at(&b, d + 8)),
            b"desc" => {
                let sector = b.get(data..data + 4096)?;
                let sound =
                    &sector[..4] == b"data" && u64::from(u32_at(sector, 4)) == sequence >> 32 && u32_at(sector, 4092) == sequence as u32;
                if !sound {
                    return None;
                }
                data += 4096;
                (Step::Page(home, [&b[d + 8..d + 16], &sector[8..4092], &b[d + 4..d + 8]].concat()), 4096)
            }
            _ => return None,
        };
        let end = home.checked_add(bytes)?;
        let in_log = home < log_at + ring.len() as u64 && log_at < end;
        if u64_at(&b, d + 24) != sequence || !home.is_multiple_of(4096) || !bytes.is_multiple_of(4096) || home < 0x30000 || in_log {
            return None;
        }
        steps.push(step);
    }
    let stored = u32_at(&b, 4);
    b[4..8].fill(0);
    let whole = data == len && crc32c(&b) == stored;
    whole.then(|| Entry { len, sequence, tail, flushed: u64_at(&b, 48), last: u64_at(&b, 56), steps })
}

/// Bounds of the engine's own, which the format leaves open.
pub struct Bounds {
    /// The longest file.
    pub len: u64,
    /// How far past the file, and past what any entry says of its length, a step may reach.
    pub slack: u64,
    /// The most bytes that are cleared.
    pub zeros: u64,
}

/// What a replay of the ring does to a file of `file_len` bytes: its steps in order, and how long the file is afterwards at least. `None`
/// when it must be refused.
pub fn replay(ring: &[u8], log_at: u64, guid: RawGuid, file_len: u64, bounds: &Bounds) -> Option<(Vec<Step>, u64)> {
    let all: Vec<Option<Entry>> = (0..ring.len() / 4096).map(|n| entry(ring, n * 4096, log_at, guid)).collect();
    let mut best: Option<(u64, usize, Vec<&Entry>)> = None;
    for start in 0..all.len() {
        let (mut at, mut run) = (start, Vec::new());
        while let Some(entry) = all[at]
            .as_ref()
            .filter(|e| run.last().is_none_or(|&(_, last): &(usize, &Entry)| last.sequence.checked_add(1) == Some(e.sequence)))
        {
            run.push((at * 4096, entry));
            at = (at + entry.len / 4096) % all.len();
        }
        let Some(&(head_at, head)) = run.last() else { continue };
        let Some(tail) = run.iter().position(|&(at, _)| at == head.tail) else { continue };
        if best.as_ref().is_none_or(|&(sequence, at, _)| (head.sequence, at) > (sequence, head_at)) {
            best = Some((head.sequence, head_at, run[tail..].iter().map(|&(_, entry)| entry).collect()));
        }
    }
    let (_, _, entries) = best?;
    let head = entries.last()?;
    let steps: Vec<Step> = entries.iter().flat_map(|entry| entry.steps.clone()).collect();
    let end = |step: &Step| match step {
        Step::Page(home, _) => home + 4096,
        Step::Zero(home, len) => home + len,
    };
    let most = bounds.len.max(file_len);
    let told = entries.iter().map(|entry| entry.last).chain([file_len]).max()?;
    let furthest = steps.iter().map(end).max().unwrap_or(0);
    let cleared = steps.iter().fold(0_u64, |sum, step| if let Step::Zero(_, len) = step { sum.saturating_add(*len) } else { sum });
    let refused =
        file_len < head.flushed || head.last > most || cleared > bounds.zeros || furthest > told.saturating_add(bounds.slack).min(most);
    (!refused).then(|| (steps, furthest.max(file_len).max(head.last)))
}

/// Does the steps.
pub fn apply(file: &MemoryStorage, steps: &[Step], len: u64) {
    file.set_len(len).expect("memory grows");
    for step in steps {
        match step {
            Step::Page(home, image) => drop(file.write_at(image, *home).expect("memory takes it")),
            Step::Zero(home, bytes) => file.punch(*home, *bytes).expect("memory takes it"),
        }
    }
}

//! Many writes in one call; see `chain/batch.rs` for what it is good for.

use super::backing::Backing;
use super::error::DiskError;
use super::writer::Writer;
use crate::storage;
use crate::units::VirtualOffset;
use std::io::IoSlice;

/// Bytes on their way to a place in the file.
struct Piece<'a> {
    at: u64,
    data: &'a [u8],
}

impl Writer {
    /// Writes requests that lie inside the disk. Sectors that are present are gathered and go out sorted, the others one by one.
    pub(crate) fn write_batch(&self, backing: &dyn Backing, requests: &[(u64, &[u8])]) -> Result<(), DiskError> {
        self.check_latch()?;
        if overlaps(requests) {
            // Sorting would decide who wins; the order of the caller shall.
            return requests
                .iter()
                .filter(|(_, data)| !data.is_empty())
                .try_for_each(|&(at, data)| self.write(backing, data, VirtualOffset::new(at)));
        }
        if requests.iter().all(|(_, data)| data.is_empty()) {
            return Ok(());
        }
        self.begin()?;
        // As for a single write: no place found below moves to another block before the bytes are there.
        let _ticket = self.quarantine.enter();
        let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(requests.len());
        for &(at, data) in requests {
            let mut from = 0;
            for span in self.layer.geometry.spans(VirtualOffset::new(at), data.len() as u64) {
                let part = &data[from..from + span.len as usize];
                match self.hot_home(span)? {
                    Some(home) => pieces.push(Piece { at: home.at(span.within).get(), data: part }),
                    None => self.write_cold(backing, span, part)?,
                }
                from += part.len();
            }
        }
        pieces.sort_unstable_by_key(|piece| piece.at);
        let file = &*self.layer.file;
        for run in pieces.chunk_by(|a, b| a.at + a.data.len() as u64 == b.at) {
            let result = match run {
                [only] => {
                    self.land(only.data, only.at)?;
                    continue;
                }
                run if self.riders.is_some() => {
                    run.iter().try_for_each(|piece| self.land(piece.data, piece.at))?;
                    continue;
                }
                run => {
                    let slices: Vec<IoSlice<'_>> = run.iter().map(|piece| IoSlice::new(piece.data)).collect();
                    storage::write_vectored_all(file, &slices, run[0].at)
                }
            };
            // Also after a failure: a part may have landed.
            self.mark_payload();
            result?;
        }
        Ok(())
    }
}

/// Whether any two requests touch the same bytes.
fn overlaps(requests: &[(u64, &[u8])]) -> bool {
    let is_sorted = requests.windows(2).all(|pair| pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
    if is_sorted {
        return false;
    }
    let mut ranges: Vec<(u64, u64)> =
        requests.iter().filter(|(_, data)| !data.is_empty()).map(|(at, data)| (*at, at + data.len() as u64)).collect();
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| pair[0].1 > pair[1].0)
}

#[cfg(test)]
mod tests {
    use super::overlaps;

    #[test]
    fn neighbours_do_not_overlap_in_any_order() {
        let (a, b) = ([0_u8; 512], [0_u8; 1024]);
        assert!(!overlaps(&[(0, &a), (512, &b), (1536, &a)]));
        assert!(!overlaps(&[(1536, &a), (0, &a), (512, &b)]));
        assert!(overlaps(&[(512, &b), (0, &b)]) && overlaps(&[(0, &b), (512, &a)]) && overlaps(&[(0, &a), (0, &a)]));
        assert!(!overlaps(&[(0, &b), (100, &[])]) && !overlaps(&[]), "nothing overlaps nothing");
    }
}

//! Many requests in one call.
//!
//! A caller with a queue of small requests (a block server, a database's checkpoint) pays a system call for each when it comes with
//! them one by one. Here all of them are looked up first, their stretches are sorted by file and offset, and neighbours travel
//! in one vectored call, whichever requests they belong to and in whatever order these came. What has no neighbour costs what it
//! costs alone. The order also suits a disk with a head.
//!
//! A batch is not a transaction: each request succeeds or fails by the rules of [`Disk::read_at`] and [`Disk::write_at`], and the
//! first failure is reported for all.

use super::disk::{Disk, Spot};
use crate::disk::error::DiskError;
use crate::storage;
use crate::units::VirtualOffset;
use std::io::IoSliceMut;

/// A stretch of one file and where its bytes go.
struct Piece<'a> {
    layer: usize,
    at: u64,
    into: &'a mut [u8],
}

impl Disk {
    /// Fills several buffers, each with the bytes from its offset on. Neighbouring stretches of a file are read in one call,
    /// whatever the order of the requests.
    ///
    /// ```
    /// # use diffdisk::{CreateOptions, Disk};
    /// # let dir = tempfile::tempdir()?;
    /// let disk = Disk::create(dir.path().join("a.vhdx"), &CreateOptions::dynamic(1 << 30))?;
    /// disk.write_batch(&[(4096, &[2; 4096]), (0, &[1; 4096]), (1 << 20, &[3; 512])])?; // two calls of the system
    /// let (mut a, mut b) = ([0; 4096], [0; 4096]);
    /// disk.read_batch(&mut [(4096, &mut b), (0, &mut a)])?; // one
    /// assert_eq!((a, b), ([1; 4096], [2; 4096]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Disk::read_at`], for the first request that fails; the buffers then hold anything.
    pub fn read_batch(&self, requests: &mut [(u64, &mut [u8])]) -> Result<(), DiskError> {
        // Nothing is read unless all of them lie inside the disk.
        for (offset, buf) in &*requests {
            self.range(*offset, buf.len() as u64)?;
        }
        // What moves under a single read makes it start over; a batch is too long for that and draws a ticket at once.
        let _ticket = self.writer.as_ref().map(|writer| writer.quarantine.enter());
        let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(requests.len());
        for (offset, buf) in requests {
            let (mut at, mut rest) = (*offset, &mut **buf);
            while !rest.is_empty() {
                let (spot, len) = self.locate(VirtualOffset::new(at), rest.len() as u64)?;
                let (into, after) = std::mem::take(&mut rest).split_at_mut(len as usize);
                match spot {
                    Spot::Data { layer, at } => pieces.push(Piece { layer, at: at.get(), into }),
                    Spot::Zero { .. } => into.fill(0),
                }
                (at, rest) = (at + len, after);
            }
        }
        pieces.sort_unstable_by_key(|piece| (piece.layer, piece.at));
        for run in pieces.chunk_by_mut(|a, b| a.layer == b.layer && a.at + a.into.len() as u64 == b.at) {
            let (layer, at) = (run[0].layer, run[0].at);
            let file = self.storage_of(layer);
            match run {
                [only] => storage::read_zero_extended(file, only.into, at)?,
                run => {
                    let mut slices: Vec<IoSliceMut<'_>> = run.iter_mut().map(|piece| IoSliceMut::new(piece.into)).collect();
                    storage::read_vectored_zero_extended(file, &mut slices, at)?;
                }
            }
        }
        Ok(())
    }

    /// Writes several buffers, each at its offset. Neighbouring stretches that this file holds already are written in one call,
    /// whatever the order of the requests. Where two requests touch the same bytes, the later one wins.
    ///
    /// # Errors
    /// As [`Disk::write_at`], for the first request that fails; of the others any may have been done.
    pub fn write_batch(&self, requests: &[(u64, &[u8])]) -> Result<(), DiskError> {
        let writer = self.writer()?;
        for (offset, buf) in requests {
            self.range(*offset, buf.len() as u64)?;
        }
        writer.write_batch(&self.parents, requests)
    }
}

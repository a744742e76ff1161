//! Cutting the unused end off a file whose log is in use (our format reference §9.5).
//!
//! Entries of the log vouch for lengths of the file: a replay refuses a file shorter than FlushedFileOffset and extends it to LastFileOffset.
//! In this order, with the commit lock held:
//!
//! ```text
//!   1 commit     nothing durable lies behind the new end
//!   2 withhold   the free space at the end is in no list, so nobody gets it; what others allocate meanwhile lies behind it
//!   3 rewind     everything home, then one empty entry with both lengths at the new end, its own tail     crash: the old length, valid
//!   4 cut        under the space lock, if nobody allocated behind: readers are told, the file is shortened  crash: either length, valid
//! ```
//!
//! While no header names the log, step 3 has nothing to do. If somebody did allocate behind the tail, the tail becomes free space again.

use super::{Compactor, Outcome};
use crate::disk::writer::Commit;
use crate::log::writer::Lengths;
use crate::storage;
use crate::units::MIB;

impl Compactor<'_> {
    /// See the module.
    pub(super) fn cut(&mut self) -> Outcome<()> {
        self.settle_space()?;
        let writer = self.writer;
        let file = &*writer.layer.file;
        let mut commit = writer.commit.lock();
        writer.check_latch()?;
        writer.flush_as_leader(&mut commit)?;
        writer.reclaim();
        let Some(tail) = writer.space.lock().withhold_tail() else { return Ok(()) };
        let end = tail.start * MIB;
        let Commit { headers, log, .. } = &mut *commit;
        if let Err(e) = log.rewind(file, headers, Lengths { flushed: end, last: end }) {
            writer.space.lock().return_tail(tail);
            return Err(if e.is_harmless() { e.into() } else { writer.latch(e.into()).into() });
        }
        let mut space = writer.space.lock();
        if !space.is_last(&tail) {
            space.return_tail(tail);
            return Ok(());
        }
        writer.quarantine.count_reuse();
        if let Err(e) = storage::set_len(file, end) {
            space.return_tail(tail);
            return Err(e.into());
        }
        space.cut(tail);
        writer.layer.bat.set_file_len(end);
        commit.durable_len = commit.durable_len.min(end);
        Ok(())
    }
}

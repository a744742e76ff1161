//! Every power cut in a verb that changes one file.

use diffdisk::storage::Storage;
use diffdisk::storage::sim::{CrashOptions, CrashWalk, Share, Trace};
use diffdisk::{Disk, OpenError, OpenOptions};
use std::collections::HashSet;
use std::sync::Arc;

/// How many files were looked at.
pub struct Crashed {
    /// Different ones.
    pub states: usize,
    /// Of them: a header that cannot be read at all, beside one that names no log, which is reported and not passed over.
    pub refused: usize,
}

/// Lays out what a power cut may leave of the file `leaf`, one of `of` choices at each moment and each content once, and has it looked at: the
/// file, and the disk on it.
pub fn after_each(trace: &Trace, of: u64, parents: &[Arc<dyn Storage>], look: &mut dyn FnMut(Arc<dyn Storage>, Disk)) -> Crashed {
    let mut options = CrashOptions { harsh: true, ..CrashOptions::default() };
    options.limits.share = Share { of, nth: 0 };
    let mut walk = CrashWalk::new(trace, options);
    let (mut states, mut refused) = (HashSet::new(), 0);
    loop {
        walk.for_each_choice(&mut |_, image| {
            if states.insert(image.hash()) {
                let file: Arc<dyn Storage> = image.boot(false).open("leaf").unwrap();
                match Disk::open_on(file.clone(), parents.to_vec(), &OpenOptions::new()) {
                    Ok(disk) => look(file, disk),
                    Err(OpenError::Storage(_)) => refused += 1,
                    Err(e) => panic!("{e}"),
                }
            }
            true
        });
        if walk.step().is_none() {
            return Crashed { states: states.len(), refused };
        }
    }
}

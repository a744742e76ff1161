//! The states that a power cut may leave along a trace.
//!
//! A sync of a file hardens what was written to it before; a sync of a directory hardens the names in it. Whatever was not hardened
//! is there or not, each change of a name for itself, and of each file nothing, the first half, or everything that was written.
//! A write that is durable by itself is there once it was made, whatever else of its file is.
//! File systems that keep names in order leave fewer states; nothing here relies on that.

use super::files::{Files, Ino};
use super::trace::Event;
use diffdisk::storage::sim::Rng;
use std::collections::BTreeMap;

/// Up to this many changes of names all subsets are tried.
const EXHAUSTIVE: usize = 6;
/// Random subsets at each cut beyond that.
const RANDOM: usize = 12;

/// How much of what was written to files is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    All,
    Nothing,
    /// The first half of the calls on each file.
    Half,
    /// Everything but what was written to one file.
    AllBut(Ino),
}

/// One state, and where it is from.
pub struct State {
    pub files: Files,
    pub is_done: bool,
    pub story: String,
}

/// Calls `visit` with every state of the trace until it says stop. `without` is the number of a sync that does nothing.
pub fn states(start: &Files, end: &Files, events: &[Event], without: Option<usize>, visit: &mut dyn FnMut(State) -> bool) {
    let mut durable = start.clone();
    durable.know_all_of(end);
    let (mut pending, mut is_done, mut syncs) = (Vec::<Pending<'_>>::new(), false, 0);
    for (cut, event) in events.iter().enumerate() {
        if let Event::Sync { what, .. } = event {
            if !at_cut(&durable, &pending, is_done, cut, visit) {
                return;
            }
            syncs += 1;
            if without != Some(syncs - 1) {
                let (now, later): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(event, _)| home_of(event) == Some(*what));
                now.into_iter().for_each(|(event, _)| durable.apply(event));
                pending = later;
            }
        } else if matches!(event, Event::Done) {
            is_done = true;
        } else if let Event::Write { durable: Some(_), .. } = event {
            if !at_cut(&durable, &pending, is_done, cut, visit) {
                return;
            }
            syncs += 1;
            pending.push((event, without != Some(syncs - 1)));
        } else {
            pending.push((event, false));
            // Between two changes of names the states differ only in the names.
            if !matches!(event, Event::Write { .. } | Event::SetLen { .. } | Event::Punch { .. })
                && !at_cut(&durable, &pending, is_done, cut + 1, visit)
            {
                return;
            }
        }
    }
    at_cut(&durable, &pending, is_done, events.len(), visit);
}

/// A change that no sync has hardened, and whether it is durable by itself.
type Pending<'a> = (&'a Event, bool);

/// What has to be synced for a change to last.
fn home_of(event: &Event) -> Option<Ino> {
    match event {
        Event::Write { file, .. } | Event::SetLen { file, .. } | Event::Punch { file, .. } => Some(*file),
        Event::Link { dir, .. } | Event::Unlink { dir, .. } | Event::Rename { dir, .. } => Some(*dir),
        Event::Sync { .. } | Event::Done => None,
    }
}

fn is_name(event: &Event) -> bool {
    matches!(event, Event::Link { .. } | Event::Unlink { .. } | Event::Rename { .. })
}

fn at_cut(durable: &Files, pending: &[Pending<'_>], is_done: bool, cut: usize, visit: &mut dyn FnMut(State) -> bool) -> bool {
    let names = pending.iter().filter(|(event, _)| is_name(event)).count();
    let mut of_file: BTreeMap<Ino, usize> = BTreeMap::new();
    for (event, _) in pending.iter().filter(|(event, is_durable)| !is_name(event) && !is_durable) {
        *of_file.entry(home_of(event).expect("a write has a file")).or_default() += 1;
    }
    let mut bytes = vec![Bytes::All];
    if !of_file.is_empty() {
        bytes.extend([Bytes::Nothing, Bytes::Half]);
    }
    if of_file.len() > 1 {
        bytes.extend(of_file.keys().map(|&file| Bytes::AllBut(file)));
    }
    for mask in masks(names, cut) {
        for &bytes in &bytes {
            let mut files = durable.clone();
            let (mut name, mut seen, mut lost) = (0, BTreeMap::<Ino, usize>::new(), Vec::new());
            for &(event, is_durable) in pending {
                let kept = if is_durable {
                    true
                } else if is_name(event) {
                    name += 1;
                    mask[name - 1]
                } else {
                    let file = home_of(event).expect("a write has a file");
                    let seen = seen.entry(file).or_default();
                    *seen += 1;
                    match bytes {
                        Bytes::All => true,
                        Bytes::Nothing => false,
                        Bytes::Half => *seen * 2 <= of_file[&file],
                        Bytes::AllBut(other) => other != file,
                    }
                };
                if kept {
                    files.apply(event);
                } else if is_name(event) {
                    lost.push(format!("{event:?}"));
                }
            }
            let story = format!("cut {cut}, bytes {bytes:?}, names lost: {}", lost.join("; "));
            if !visit(State { files, is_done, story }) {
                return false;
            }
        }
    }
    true
}

/// Which changes of names are there: everything where they are few, else telling ones.
fn masks(n: usize, seed: usize) -> Vec<Vec<bool>> {
    if n <= EXHAUSTIVE {
        return (0..1_u32 << n).map(|mask| (0..n).map(|i| mask >> i & 1 == 1).collect()).collect();
    }
    let mut masks = Vec::new();
    for i in 0..=n {
        masks.push((0..n).map(|k| k < i).collect());
        masks.push((0..n).map(|k| k >= i).collect());
        masks.push((0..n).map(|k| k != i).collect());
        masks.push((0..n).map(|k| k == i).collect());
    }
    let mut rng = Rng::new(seed as u64);
    masks.extend((0..RANDOM).map(|_| (0..n).map(|_| rng.below(2) == 0).collect()));
    masks
}

//! Histories of registers: what was written and read when, and whether that can be.
//!
//! Every cell of the disk is a register. Each request draws a stamp when it is issued and one when it is done, so that of two
//! requests it is known whether one was over before the other began. Nonzero values are written once only; zeros may come from
//! several requests.

use std::collections::HashMap;

/// The value of a cell that reads as zeros.
pub const ZERO: u64 = 0;

/// A write of a value, or a read that returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub is_write: bool,
    pub value: u64,
    pub issued: u64,
    pub done: u64,
}

impl Event {
    fn before(&self, other: &Self) -> bool {
        self.done < other.issued
    }
}

/// All that concerns one value: when the first of it was over, when the last of it began.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    write: Event,
    first_done: u64,
    last_issued: u64,
}

impl Cluster {
    /// From here to there the register certainly held the value, if there is such a time.
    fn certain(&self) -> Option<(u64, u64)> {
        (self.first_done < self.last_issued).then_some((self.first_done, self.last_issued))
    }
}

/// Checks one register that held `initial` before the first stamp.
///
/// # Errors
/// Two events that cannot both be.
pub fn check(initial: u64, events: &[Event]) -> Result<(), String> {
    let start = Event { is_write: true, value: initial, issued: 0, done: 0 };
    let writes: Vec<Event> = std::iter::once(start).chain(events.iter().copied().filter(|event| event.is_write)).collect();
    let mut clusters: HashMap<u64, Cluster> = HashMap::new();
    for &write in writes.iter().filter(|write| write.value != ZERO) {
        let cluster = Cluster { write, first_done: write.done, last_issued: write.issued };
        if clusters.insert(write.value, cluster).is_some() {
            return Err(format!("the test wrote {:#x} twice", write.value));
        }
    }
    for read in events.iter().filter(|event| !event.is_write && event.value != ZERO) {
        let cluster = clusters.get_mut(&read.value).ok_or_else(|| format!("{read:?} returned what nobody wrote here"))?;
        if read.before(&cluster.write) {
            return Err(format!("{read:?} returned what {:?} wrote later", cluster.write));
        }
        cluster.first_done = cluster.first_done.min(read.done);
        cluster.last_issued = cluster.last_issued.max(read.issued);
    }
    let mut certain: Vec<(u64, u64, u64)> =
        clusters.values().filter_map(|cluster| cluster.certain().map(|(from, to)| (from, to, cluster.write.value))).collect();
    certain.sort_unstable();
    for pair in certain.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(format!(
                "new was seen, then old: {:#x} from {} to {} and {:#x} from {} to {}",
                pair[0].2, pair[0].0, pair[0].1, pair[1].2, pair[1].0, pair[1].1
            ));
        }
    }
    let holder = |event: &Event| {
        let after = certain.partition_point(|&(from, ..)| from < event.issued);
        certain[..after].last().filter(|&&(_, to, value)| event.done < to && value != event.value)
    };
    for event in events {
        // The whole cluster of a nonzero value must lie inside for a contradiction; one zero is enough.
        let alone = event.value == ZERO
            || clusters.get(&event.value).is_some_and(|cluster| cluster.certain().is_none() && is_around(cluster, event));
        if let Some((from, to, value)) = holder(event).filter(|_| alone) {
            return Err(format!("{event:?} happened while {value:#x} was certainly there, from {from} to {to}"));
        }
    }
    zeros(&writes, &clusters, events)
}

/// Whether the event alone says when its value was there at the earliest and at the latest.
fn is_around(cluster: &Cluster, event: &Event) -> bool {
    cluster.first_done >= event.done && cluster.last_issued <= event.issued
}

/// A read that returned zeros needs a write of zeros that nothing certainly replaced.
fn zeros(writes: &[Event], clusters: &HashMap<u64, Cluster>, events: &[Event]) -> Result<(), String> {
    let sources: Vec<&Event> = writes.iter().filter(|write| write.value == ZERO).collect();
    let mut replaced: Vec<&Cluster> = clusters.values().collect();
    replaced.sort_unstable_by_key(|cluster| cluster.first_done);
    // Of the values that were certainly there before a moment, the latest beginning of a write.
    let newest: Vec<(u64, u64)> = replaced
        .iter()
        .scan(0, |newest, cluster| {
            *newest = cluster.write.issued.max(*newest);
            Some((cluster.first_done, *newest))
        })
        .collect();
    for read in events.iter().filter(|event| !event.is_write && event.value == ZERO) {
        let before = newest.partition_point(|&(done, _)| done < read.issued);
        let replaced_by = before.checked_sub(1).map_or(0, |last| newest[last].1);
        let sound = |zero: &&Event| !read.before(zero) && (zero.done >= replaced_by);
        if !sources.iter().any(sound) {
            return Err(format!("{read:?} returned zeros, and all of them had been replaced by {replaced_by}"));
        }
    }
    Ok(())
}

/// Whether a register may hold `value` after a power cut: the last flush that was done was called at `flush`.
pub fn may_survive(initial: u64, events: &[Event], flush: u64, value: u64) -> bool {
    let start = Event { is_write: true, value: initial, issued: 0, done: 0 };
    let writes = || std::iter::once(&start).chain(events.iter().filter(|event| event.is_write));
    writes().filter(|write| write.value == value).any(|write| {
        // Replaced for good: a write that began when this one was over, and was itself over when the flush was called.
        !writes().any(|later| write.before(later) && later.done < flush)
    })
}

/// The checker must see what it is there to see.
pub fn canaries() {
    let event = |is_write, value, issued, done| Event { is_write, value, issued, done };
    let (w, r) = (|value, from, to| event(true, value, from, to), |value, from, to| event(false, value, from, to));
    assert!(check(7, &[w(1, 1, 4), r(7, 2, 3), r(1, 5, 6)]).is_ok());
    assert!(check(7, &[w(1, 1, 2), r(7, 3, 4)]).is_err(), "a stale read");
    assert!(check(7, &[w(1, 1, 9), r(1, 2, 3), r(7, 4, 5)]).is_err(), "new, then old");
    assert!(check(7, &[w(1, 1, 2), w(ZERO, 3, 4), r(1, 5, 6)]).is_err(), "a stale read behind zeros");
    assert!(check(7, &[w(1, 1, 2), w(ZERO, 3, 4), w(2, 5, 6), r(ZERO, 7, 8)]).is_err(), "stale zeros");
    assert!(check(7, &[w(1, 1, 2), r(ZERO, 3, 4), w(ZERO, 5, 6)]).is_err(), "zeros before their time");
    assert!(check(7, &[w(1, 1, 2), r(9, 3, 4)]).is_err(), "foreign bytes");
    assert!(check(7, &[w(1, 1, 9), w(2, 1, 9), r(1, 2, 3), r(2, 4, 5), r(1, 6, 7)]).is_err(), "back and forth");
    assert!(check(7, &[w(ZERO, 1, 9), w(1, 1, 9), r(1, 2, 3), r(ZERO, 4, 5)]).is_ok());
    assert!(may_survive(7, &[w(1, 1, 2)], 3, 1) && !may_survive(7, &[w(1, 1, 2)], 3, 7), "flushed");
    assert!(may_survive(7, &[w(1, 1, 5)], 3, 7) && may_survive(7, &[w(1, 1, 5)], 3, 1), "not over when the flush was called");
}

//! Traces of an engine that does things in the wrong order: real traces with a few events moved.

use super::run::Run;
use super::script::{Kind, MIB, Op};
use diffdisk::storage::SyncSite;
use diffdisk::storage::sim::{Event, Trace};
use std::ops::Range;

/// A mistake: the script that shows it, and how it changes the events.
pub struct Mistake {
    pub name: &'static str,
    pub kind: Kind,
    pub ops: &'static [Op],
    pub edit: fn(&mut Vec<Event>),
}

const FIRST: Op = Op::Write { at: MIB + 64 * 1024, len: 4096 };
/// On a wide disk, in a page of the BAT that no entry of the log holds yet.
const FAR: Op = Op::Write { at: 600 * MIB, len: 4096 };
const SECOND: Op = Op::Write { at: 2 * MIB + 4096, len: 4096 };

pub const MISTAKES: [Mistake; 5] = [
    Mistake {
        name: "pages go home before the log is synced",
        kind: Kind::Wide,
        ops: &[FIRST, Op::Flush, FAR, Op::Flush, Op::Close],
        edit: home_first,
    },
    Mistake {
        name: "only one header is used",
        kind: Kind::Dynamic,
        ops: &[FIRST, Op::Flush, SECOND, Op::Flush, Op::Close],
        edit: one_header,
    },
    Mistake {
        name: "space is used again before its unmapping is durable",
        kind: Kind::Child,
        ops: &[FIRST, Op::Flush, Op::Trim { at: 4 * MIB, len: MIB }, Op::Flush, SECOND, Op::Flush, Op::Close],
        edit: reuse_first,
    },
    Mistake {
        name: "the log is written before the payload is synced",
        kind: Kind::Child,
        ops: &[FIRST, Op::Flush, SECOND, Op::Flush, Op::Close],
        edit: no_payload_barrier,
    },
    Mistake {
        name: "the log is declared empty before the pages are home",
        kind: Kind::Child,
        ops: &[FIRST, Op::Flush, Op::Close],
        edit: empty_first,
    },
];

impl Mistake {
    /// Changes a trace and makes the run follow it.
    pub fn make(&self, run: &mut Run, trace: &mut Trace) {
        (self.edit)(&mut trace.events);
        // Syncs cover what now stands before them.
        let mut began = None;
        for (at, event) in trace.events.iter_mut().enumerate() {
            match event {
                Event::SyncBegin { .. } => began = Some(at),
                Event::SyncEnd { begin, .. } => *begin = began.expect("a sync begins before it ends"),
                _ => {}
            }
        }
        run.follow(&trace.events);
    }
}

/// The beginning and the end of the `nth` sync of a site.
fn sync(events: &[Event], wanted: SyncSite, nth: usize) -> Range<usize> {
    let at = |begins: bool| {
        let mut found = events.iter().enumerate().filter_map(|(at, event)| match event {
            Event::SyncBegin { site, .. } if begins && *site == wanted => Some(at),
            Event::SyncEnd { site, .. } if !begins && *site == wanted => Some(at),
            _ => None,
        });
        found.nth(nth).unwrap_or_else(|| panic!("there is no {wanted:?} number {nth}"))
    };
    at(true)..at(false)
}

/// The writes between two places that `which` names.
fn writes(events: &[Event], between: Range<usize>, which: impl Fn(u64) -> bool) -> Vec<usize> {
    let is_wanted = |at: &usize| matches!(&events[*at], Event::Write { at, .. } | Event::Punch { at, .. } if which(*at));
    let found: Vec<usize> = between.filter(is_wanted).collect();
    assert!(!found.is_empty(), "there is nothing to move");
    found
}

/// Moves events forward to before `to`, in their order.
fn bring_forward(events: &mut Vec<Event>, what: &[usize], to: usize) {
    for (moved, &from) in what.iter().enumerate() {
        let event = events.remove(from);
        events.insert(to + moved, event);
    }
}

/// Where the headers end and the log is over.
const LOG: Range<u64> = MIB..2 * MIB;

fn home_first(events: &mut Vec<Event>) {
    let log = sync(events, SyncSite::Log, 0);
    let home = writes(events, log.end..sync(events, SyncSite::CloseHome, 0).start, |at| at >= LOG.end);
    bring_forward(events, &home, log.start);
}

fn one_header(events: &mut Vec<Event>) {
    for event in events {
        if let Event::Write { at, .. } = event
            && *at == 0x20000
        {
            *at = 0x10000;
        }
    }
}

fn reuse_first(events: &mut Vec<Event>) {
    let unmapped = sync(events, SyncSite::Log, 0);
    let reuse = writes(events, unmapped.end..sync(events, SyncSite::Payload, 0).start, |at| at >= LOG.end);
    bring_forward(events, &reuse, unmapped.start);
}

fn no_payload_barrier(events: &mut Vec<Event>) {
    let payload = sync(events, SyncSite::Payload, 0);
    let log = writes(events, payload.end..sync(events, SyncSite::Log, 0).start, |at| LOG.contains(&at));
    events.drain(payload.start..=payload.end);
    assert!(log.iter().all(|&at| at > payload.end));
}

fn empty_first(events: &mut Vec<Event>) {
    let home = sync(events, SyncSite::CloseHome, 0);
    let empty = writes(events, home.end..sync(events, SyncSite::CloseFirst, 0).start, |at| at < LOG.start);
    bring_forward(events, &empty, home.start);
}

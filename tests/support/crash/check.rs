//! One crash image against the ledger: it opens, nothing in it contradicts itself, every piece is old or new, and the disk
//! goes on working through a write, a flush, a close and, for a sample, another crash.

use super::fixture::{LEAF, classifier};
use super::ledger::{Expected, Runs, append, join};
use super::run::{Run, Session, current, headers};
use super::script::{MIB, Op};
use super::value::PIECE;
use diffdisk::storage::sim::{Atom, Choice, Class, CrashImage, CrashOptions, CrashWalk, Event, Fixed, Flight, Limits, Share, Torn, Trace};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// What was counted on the way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Distinct images checked.
    pub states: u64,
    /// Of these, images of a crash in a recovery.
    pub second: u64,
    /// Images whose torn piece could not be read and whose opening said so.
    pub refused: u64,
}

/// A promise broken, with what is needed to see it again.
#[derive(Debug)]
pub struct Violation {
    pub what: String,
    pub cut: usize,
    pub choice: Choice,
    pub report: String,
}

/// How to go about one trace.
#[derive(Clone, Debug)]
pub struct Plan {
    pub options: CrashOptions,
    /// One image in this many has its recovery crashed too; 0 for none.
    pub deep_every: u64,
    /// Of the crashes of such a recovery one in this many is tried.
    pub deep_share: u64,
    /// Which images to try, of those that the options name.
    pub only: fn(&CrashWalk<'_>, &Choice) -> bool,
}

/// For plans that leave nothing out.
pub fn everything(_: &CrashWalk<'_>, _: &Choice) -> bool {
    true
}

/// Images in which a header is torn in one piece and everything else landed: one that is good again once that piece is.
pub fn nearly_whole_headers(walk: &CrashWalk<'_>, choice: &Choice) -> bool {
    let Some(Torn { atom, twin: None, how: Flight::Junk }) = choice.flight else { return false };
    let is_header = |atom: &Atom| matches!(atom.class(), Class::HeaderA | Class::HeaderB);
    is_header(&walk.pending()[atom]) && choice.kept.iter().filter(|&&kept| !kept).count() == 1
}

/// What every image of one cut is held against.
struct Frame<'a> {
    run: &'a Run,
    cut: usize,
    expected: Vec<Expected>,
    /// The session that the cut falls into, unless something of an earlier one is still pending (a close cuts the file's end off
    /// and leaves that to later syncs).
    session: Option<&'a Session>,
}

impl<'a> Frame<'a> {
    fn new(run: &'a Run, stretches: &[Range<u64>], walk: &CrashWalk<'_>) -> Self {
        let cut = walk.cut();
        let expected = run.ledger.expect(stretches, run.floor_op(cut), |op| run.is_issued(op, cut));
        let is_whole = |session: &&Session| walk.pending().first().is_none_or(|oldest| oldest.event() >= session.opened_at);
        Self { run, cut, expected, session: run.session(cut).filter(is_whole) }
    }
}

/// Tries the crashes of a run from a cut on. `fresh` says whether an image is new to the whole campaign.
pub fn crash(
    run: &Run,
    trace: &Trace,
    from: usize,
    plan: &Plan,
    fresh: &mut dyn FnMut(u128) -> bool,
    tally: &mut Tally,
) -> Result<(), Box<Violation>> {
    let stretches = run.ledger.stretches(MIB);
    let mut walk = CrashWalk::new(trace, plan.options.clone());
    let mut seen: HashSet<(u128, usize)> = HashSet::new();
    loop {
        let cut = walk.cut();
        let next = trace.events.get(cut);
        let after_mark = cut > 0 && matches!(trace.events[cut - 1], Event::Mark(_));
        if cut >= from && (after_mark || matches!(next, Some(Event::SyncEnd { .. }) | None)) {
            let frame = Frame::new(run, &stretches, &walk);
            let floor = run.floor_op(cut);
            let mut broken = None;
            let here = walk.clone();
            walk.for_each_choice(&mut |choice, image| {
                if !(plan.only)(&here, choice) || !seen.insert((image.hash(), floor)) {
                    return true;
                }
                tally.states += u64::from(fresh(image.hash()));
                let result = one_image(&frame, choice, &image, plan, fresh, tally);
                broken = result.err().map(|what| (what, choice.clone()));
                broken.is_none()
            });
            if let Some((what, choice)) = broken {
                let report = report(run, trace, &walk, &choice);
                return Err(Box::new(Violation { what, cut, choice, report }));
            }
        }
        if walk.step().is_none() {
            return Ok(());
        }
    }
}

fn one_image(
    frame: &Frame<'_>,
    choice: &Choice,
    image: &CrashImage,
    plan: &Plan,
    fresh: &mut dyn FnMut(u128) -> bool,
    tally: &mut Tally,
) -> Result<(), String> {
    let luck = (image.hash() >> 32) as u64;
    let deep = plan.deep_every > 0 && luck.is_multiple_of(plan.deep_every);
    let guarded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| recover(frame, choice, image, deep)));
    let recovered = guarded.map_err(|panic| format!("panic: {}", panic_text(&*panic)))??;
    match recovered {
        None => tally.refused += 1,
        Some(second) if deep => {
            let share = Share { of: plan.deep_share, nth: 1 + luck / 7 };
            let limits = Limits { exhaustive: 6, payload: 4, random: 2, share };
            let options = CrashOptions { limits, ..plan.options.clone() };
            let plan = Plan { options, deep_every: 0, deep_share: 1, only: everything };
            let mut inner = Tally::default();
            crash(&second, &second.world.trace(), 0, &plan, fresh, &mut inner)
                .map_err(|v| format!("in the recovery: {} (cut {}, {:?})\n{}", v.what, v.cut, v.choice, v.report))?;
            tally.second += inner.states;
            tally.states += inner.states;
        }
        Some(_) => {}
    }
    Ok(())
}

/// Opens an image, holds it against the ledger, and goes on working with it. `None` when a piece that cannot be read made opening fail.
fn recover(frame: &Frame<'_>, choice: &Choice, image: &CrashImage, record: bool) -> Result<Option<Run>, String> {
    let _fixed = Fixed::seed(image.hash() as u64);
    let (run, cut) = (frame.run, frame.cut);
    let world = image.boot(record);
    let leaf = world.open(LEAF).ok_or("the file is gone")?;
    let unreadable = matches!(choice.flight, Some(Torn { how: Flight::Unreadable, .. }));
    let Some(before) = current(&leaf) else { return Err("no header is valid".into()) };
    if let Some(session) = frame.session
        && session.header.file == before.file
        && leaf.differs(&session.before, 0x30000, u64::MAX)
    {
        return Err("bytes changed before a new file write GUID was durable".into());
    }
    if run.is_closed(cut) && headers(&leaf).iter().any(|header| header.is_none_or(|header| header.log != [0; 16])) {
        return Err("closed, but one of the headers is bad or names a log".into());
    }

    let mut second = Run::closed(world, run.parents.clone(), Arc::clone(&run.ledger.initial), 1 << 20);
    if image.hash().is_multiple_of(8) {
        // What a reader makes of the log must be what a writer makes of it.
        match second.open_read_only() {
            Ok(()) => {
                compare(frame, &second)?;
                second.abandon();
                if leaf.differs(&image.boot(false).open(LEAF).expect("it was there"), 0, u64::MAX) {
                    return Err("opening read-only changed the file".into());
                }
            }
            Err(e) if unreadable && e.contains("(Io)") => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    match second.open() {
        Err(e) if unreadable && e.contains("(Io)") => return Ok(None),
        opened => opened?,
    }
    if current(&leaf).map(|now| now.data) != Some(before.data) {
        return Err("replay changed the data write GUID".into());
    }
    sound(&second)?;
    second.ledger.observed = compare(frame, &second)?;
    if let Some(session) = frame.session
        && session.header.data == before.data
    {
        let found = second.ledger.observed.iter().map(|(pieces, _)| pieces.clone()).collect::<Vec<_>>();
        let old = run.ledger.expect(&found, session.first, |_| false);
        if let Some(changed) = old.iter().find(|old| *second.ledger.value(old.pieces.start, usize::MAX) != old.values[0]) {
            return Err(format!("piece {} changed before a new data write GUID was durable", changed.pieces.start));
        }
    }
    go_on(run, &mut second, image.hash() as u64)?;
    Ok(Some(second))
}

/// Writes, flushes, closes, reopens and compares: what is written now, its neighbours, and a part of everything else.
fn go_on(run: &Run, second: &mut Run, luck: u64) -> Result<(), String> {
    let changes = &run.ledger.changes;
    let place = changes.get((luck % changes.len().max(1) as u64) as usize).map_or(0..1, |change| change.pieces.clone());
    let piece = place.start + luck / 64 % (place.end - place.start);
    let aside = Op::Write { at: 3 * MIB + MIB / 2, len: 4096 };
    for op in [Op::Write { at: piece * PIECE as u64, len: PIECE as u64 }, aside, Op::Flush] {
        second.perform(op)?;
    }
    let mut some: Vec<Range<u64>> =
        second.ledger.changes.iter().map(|change| change.pieces.start.max(1) - 1..change.pieces.end + 1).collect();
    for (pieces, _) in &second.ledger.observed {
        let at = pieces.start + luck / 512 % (pieces.end - pieces.start);
        some.extend([pieces.start..pieces.start + 1, at..at + 1, pieces.end - 1..pieces.end]);
    }
    let some = second.ledger.expect(&join(some, second.ledger.pieces()), usize::MAX, |_| false);
    hold(second, &some).map_err(|e| format!("after going on: {e}"))?;
    second.perform(Op::Close)?;
    second.open_read_only().map_err(|e| format!("after closing: {e}"))?;
    hold(second, &some).map_err(|e| format!("after reopening: {e}"))?;
    sound(second).map_err(|e| format!("after reopening: {e}"))?;
    second.abandon();
    Ok(())
}

fn sound(run: &Run) -> Result<(), String> {
    let report = run.disk().check().map_err(|e| format!("check failed: {e}"))?;
    match report.errors.first() {
        Some(finding) => Err(format!("check found {} errors, first {finding:?}", report.errors.len())),
        None => Ok(()),
    }
}

/// Old or new, nothing else. Returns what was found.
fn compare(frame: &Frame<'_>, found: &Run) -> Result<Runs, String> {
    hold(found, &frame.expected).map_err(|e| format!("{e}{}", origin(frame.run, found, &frame.expected)))
}

/// Whether an undisturbed disk shows what was written to it.
pub fn shows_its_ledger(disk: &Run) -> Result<(), String> {
    let stretches = disk.ledger.stretches(MIB);
    hold(disk, &disk.ledger.expect(&stretches, usize::MAX, |_| false)).map(drop)
}

/// Holds a disk against what it must show. Returns what was found.
fn hold(disk: &Run, expected: &[Expected]) -> Result<Runs, String> {
    let (mut found, mut buf) = (Runs::new(), Vec::new());
    // Neighbouring stretches are read in one go, as a caller would.
    for group in expected.chunk_by(|a, b| a.pieces.end == b.pieces.start) {
        let (start, end) = (group[0].pieces.start, group[group.len() - 1].pieces.end);
        buf.resize((end - start) as usize * PIECE, 0xEE);
        let at = start * PIECE as u64;
        disk.disk().read_at(&mut buf, at).map_err(|e| format!("reading {at:#x} failed: {e}"))?;
        let mut rest = buf.chunks_exact(PIECE);
        for Expected { pieces, values } in group {
            let mut likely = 0;
            for (piece, bytes) in pieces.clone().zip(&mut rest) {
                if !values[likely].matches(piece, bytes) {
                    let matching = values.iter().position(|value| value.matches(piece, bytes));
                    likely = matching.ok_or_else(|| {
                        format!(
                            "piece {piece} (byte {:#x}) begins {:02x?}, allowed is one of {values:?}",
                            piece * PIECE as u64,
                            &bytes[..16]
                        )
                    })?;
                }
                append(&mut found, piece..piece + 1, &values[likely]);
            }
        }
    }
    Ok(found)
}

/// Names where a wrong piece's bytes came from, if a pattern tells.
fn origin(run: &Run, disk: &Run, expected: &[Expected]) -> String {
    let mut bytes = [0; PIECE];
    let pieces = expected.iter().flat_map(|expected| expected.pieces.clone().map(move |piece| (piece, expected)));
    for (piece, Expected { values, .. }) in pieces {
        if disk.disk().read_at(&mut bytes, piece * PIECE as u64).is_err() || values.iter().any(|value| value.matches(piece, &bytes)) {
            continue;
        }
        let changes = run.ledger.changes.iter().map(|change| (change.pieces.clone(), &change.value));
        let known = run.ledger.initial.iter().map(|(pieces, value)| (pieces.start..pieces.end.min(pieces.start + (1 << 20)), value));
        for (pieces, value) in changes.chain(known) {
            if let Some(home) = pieces.clone().find(|&home| value.begins(home, &bytes)) {
                return format!("; it is {value:?} of piece {home}{}", if value.matches(home, &bytes) { "" } else { ", in part" });
            }
        }
        return if bytes == [0; PIECE] { "; it is zeros".into() } else { "; nobody wrote that".into() };
    }
    String::new()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

/// Everything needed to understand a violation: the ledger's operations, what landed, and the end of the trace.
fn report(run: &Run, trace: &Trace, walk: &CrashWalk<'_>, choice: &Choice) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let first = run.ops.iter().rposition(|performed| performed.done <= walk.cut()).unwrap_or(0).saturating_sub(6);
    for (i, performed) in run.ops.iter().enumerate().skip(first) {
        writeln!(out, "  op {i}: {performed:?}").unwrap();
    }
    let mut lines: BTreeMap<usize, (usize, usize, String)> = BTreeMap::new();
    for (atom, kept) in walk.pending().iter().zip(&choice.kept) {
        let line = lines.entry(atom.event()).or_insert((0, 0, format!("{:?} {atom}", atom.class())));
        line.0 += usize::from(*kept);
        line.1 += 1;
    }
    for (event, (kept, of, text)) in lines {
        writeln!(out, "  pending event {event}: {kept} of {of} atoms landed, first {text}").unwrap();
    }
    writeln!(out, "  {choice:?}").unwrap();
    let table = trace.to_string();
    let from = walk.cut().saturating_sub(60);
    for line in table.lines().take(1).chain(table.lines().skip(1 + from).take(70)) {
        writeln!(out, "  {line}").unwrap();
    }
    out
}

/// The rules for a run's trace: what lies where is read from the file as the run left it.
pub fn options_for(run: &Run, piece: u64) -> CrashOptions {
    let leaf = run.world.open(LEAF).expect("the file has its name");
    CrashOptions { piece, harsh: true, classify: classifier(&leaf), ..CrashOptions::default() }
}

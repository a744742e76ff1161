//! One crash image against the ledger: it opens, nothing in it contradicts itself, every piece is old or new, and the disk
//! goes on working through a write, a flush, a close and, for a sample, another crash.

use super::fixture::{LEAF, classifier};
use super::run::{Run, identity};
use super::script::{MIB, Op, SIZE};
use super::value::{PIECE, Value};
use diffdisk::storage::sim::{Choice, CrashImage, CrashOptions, CrashWalk, Event, Flight, Limits, Trace};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

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
}

/// The stretches of pieces to read: those touched, their neighbours, the borders of all blocks, and a few that nobody touches.
pub fn stretches(run: &Run) -> Vec<Range<u64>> {
    let last = SIZE / PIECE as u64 - 1;
    let mut pieces: BTreeSet<u64> = run.versions.keys().chain(run.observed.keys()).copied().collect();
    let around: Vec<u64> = pieces.iter().flat_map(|&piece| [piece.saturating_sub(1), (piece + 1).min(last)]).collect();
    pieces.extend(around);
    for block in 0..=SIZE / MIB {
        let first = block * MIB / PIECE as u64;
        pieces.extend([first, first + 5, first + 1000].map(|piece| piece.min(last)));
        pieces.insert((first + MIB / PIECE as u64 - 1).min(last));
    }
    let mut out: Vec<Range<u64>> = Vec::new();
    for piece in pieces {
        match out.last_mut() {
            Some(stretch) if stretch.end == piece => stretch.end += 1,
            _ => out.push(piece..piece + 1),
        }
    }
    out
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
    let stretches = stretches(run);
    let mut walk = CrashWalk::new(trace, plan.options.clone());
    let mut seen: HashSet<(u128, usize)> = HashSet::new();
    loop {
        let cut = walk.cut();
        let next = trace.events.get(cut);
        let after_mark = cut > 0 && matches!(trace.events[cut - 1], Event::Mark(_));
        if cut >= from && (after_mark || matches!(next, Some(Event::SyncEnd { .. }) | None)) {
            let floor = run.floor_op(cut);
            let mut broken = None;
            walk.for_each_choice(&mut |choice, image| {
                if !seen.insert((image.hash(), floor)) {
                    return true;
                }
                tally.states += u64::from(fresh(image.hash()));
                let result = one_image(run, &stretches, cut, choice, &image, plan, tally);
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
    run: &Run,
    stretches: &[Range<u64>],
    cut: usize,
    choice: &Choice,
    image: &CrashImage,
    plan: &Plan,
    tally: &mut Tally,
) -> Result<(), String> {
    let lucky = |one_in: u64| one_in > 0 && (image.hash() >> 32) as u64 % one_in == 0;
    let deep = lucky(plan.deep_every);
    let guarded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| recover(run, stretches, cut, choice, image, deep)));
    let recovered = guarded.map_err(|panic| format!("panic: {}", panic_text(&*panic)))??;
    match recovered {
        None => tally.refused += 1,
        Some(second) if deep => {
            let trace = second.world.trace();
            let limits = Limits { exhaustive: 6, payload: 4, random: 2 };
            let options = CrashOptions { limits, ..plan.options.clone() };
            let plan = Plan { options, deep_every: 0 };
            let mut inner = Tally::default();
            crash(&second, &trace, 0, &plan, &mut |_| true, &mut inner)
                .map_err(|v| format!("in the recovery: {} (cut {}, {:?})\n{}", v.what, v.cut, v.choice, v.report))?;
            tally.second += inner.states;
            tally.states += inner.states;
        }
        Some(_) => {}
    }
    Ok(())
}

/// Opens an image, holds it against the ledger, and goes on working with it. `None` when a piece that cannot be read made opening fail.
fn recover(
    run: &Run,
    stretches: &[Range<u64>],
    cut: usize,
    choice: &Choice,
    image: &CrashImage,
    record: bool,
) -> Result<Option<Run>, String> {
    let world = image.boot(record);
    let leaf = world.open(LEAF).ok_or("the file is gone")?;
    let unreadable = matches!(choice.flight, Some((_, Flight::Unreadable)));
    let Some(before) = identity(&leaf) else { return Err("no header is valid".into()) };
    let session = run.session(cut);
    if let Some(session) = session
        && session.identity.file == before.file
        && leaf.differs(&session.before, 0x30000, u64::MAX)
    {
        return Err("bytes changed before a new file write GUID was durable".into());
    }

    let mut second = Run::closed(world, run.parents.clone(), run.initial.clone(), 1 << 20);
    if image.hash().is_multiple_of(8) {
        // What a reader makes of the log must be what a writer makes of it.
        match second.open_read_only() {
            Ok(()) => {
                compare(run, &second, stretches, cut)?;
                second.abandon();
                if second.world.open(LEAF).is_none_or(|now| now.differs(&image.boot(false).open(LEAF).expect("it was there"), 0, u64::MAX))
                {
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
    if identity(&leaf).map(|now| now.data) != Some(before.data) {
        return Err("replay changed the data write GUID".into());
    }
    sound(&second)?;
    second.observed = compare(run, &second, stretches, cut)?;
    if let Some(session) = session
        && session.identity.data == before.data
        && let Some((piece, _)) = second.observed.iter().find(|(piece, value)| run.value(**piece, session.first) != *value)
    {
        return Err(format!("piece {piece} changed before a new data write GUID was durable"));
    }
    go_on(run, &mut second, image.hash() as u64)?;
    Ok(Some(second))
}

/// Writes, flushes, closes, reopens and compares.
fn go_on(run: &Run, second: &mut Run, luck: u64) -> Result<(), String> {
    let count = run.versions.len().max(1) as u64;
    let piece = run.versions.keys().nth((luck % count) as usize).copied().unwrap_or(0);
    let aside = Op::Write { at: 3 * MIB + MIB / 2, len: 4096 };
    for op in [Op::Write { at: piece * PIECE as u64, len: PIECE as u64 }, aside, Op::Flush] {
        second.perform(op)?;
    }
    let stretches = stretches(second);
    same(second, &stretches).map_err(|e| format!("after going on: {e}"))?;
    second.perform(Op::Close)?;
    second.open_read_only().map_err(|e| format!("after closing: {e}"))?;
    same(second, &stretches).map_err(|e| format!("after reopening: {e}"))?;
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

fn for_each_piece(disk: &Run, stretches: &[Range<u64>], visit: &mut dyn FnMut(u64, &[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut buf = Vec::new();
    for stretch in stretches {
        buf.resize((stretch.end - stretch.start) as usize * PIECE, 0xEE);
        let at = stretch.start * PIECE as u64;
        disk.disk().read_at(&mut buf, at).map_err(|e| format!("reading {at:#x} failed: {e}"))?;
        for (bytes, piece) in buf.chunks_exact(PIECE).zip(stretch.start..) {
            visit(piece, bytes)?;
        }
    }
    Ok(())
}

/// Old or new, nothing else. Returns what was found.
fn compare(run: &Run, found: &Run, stretches: &[Range<u64>], cut: usize) -> Result<BTreeMap<u64, Value>, String> {
    let floor = run.floor_op(cut);
    let mut observed = BTreeMap::new();
    for_each_piece(found, stretches, &mut |piece, bytes| match run.allowed(cut, floor, piece, bytes) {
        Some(value) => {
            observed.insert(piece, value.clone());
            Ok(())
        }
        None => {
            let old = run.value(piece, floor);
            let later: Vec<_> = run.versions.get(&piece).into_iter().flatten().filter(|(index, _)| *index >= floor).collect();
            Err(format!("piece {piece} (byte {:#x}) holds {}, allowed were {old:?} and, if issued, {later:?}", piece * 512, origin(bytes)))
        }
    })?;
    Ok(observed)
}

/// Exactly what the ledger says.
fn same(run: &Run, stretches: &[Range<u64>]) -> Result<(), String> {
    for_each_piece(run, stretches, &mut |piece, bytes| {
        let want = run.value(piece, usize::MAX);
        if want.matches(piece, bytes) {
            return Ok(());
        }
        Err(format!("piece {piece} (byte {:#x}) holds {} instead of {want:?}", piece * 512, origin(bytes)))
    })
}

/// Names where bytes came from, if a pattern tells.
fn origin(bytes: &[u8]) -> String {
    if bytes.iter().all(|&b| b == 0) {
        return "zeros".into();
    }
    for tag in (1..400).chain((1 << 20)..(1 << 20) + 4) {
        for piece in 0..SIZE / PIECE as u64 + 1 {
            if bytes[..8] == Value::Tag(tag).first_word(piece) {
                return format!("Tag({tag}) of piece {piece}{}", if Value::Tag(tag).matches(piece, bytes) { "" } else { ", in part" });
            }
        }
    }
    for piece in 0..SIZE / PIECE as u64 {
        if bytes[..8] == Value::Parent.first_word(piece) {
            return format!("the parent's piece {piece}");
        }
    }
    format!("foreign bytes {:02x?}", &bytes[..16])
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

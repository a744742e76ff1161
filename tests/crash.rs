//! Every legal power cut in every short script: the disk opens, and each piece is old or new.
//!
//! The simulator (`storage::sim`) builds the images; `support/crash` runs the scripts and holds the images against a ledger of what
//! each piece may hold. Three knobs, all in the environment: `DIFFDISK_CRASH_STATES` is the number of distinct states below which
//! the run fails (20,000; CI says 300,000), `DIFFDISK_CRASH_SECONDS` the time box, `DIFFDISK_CRASH_SEED` the seed.

#[path = "support/crash/mod.rs"]
mod crash;

use crash::check::{self, Plan, Tally, Violation};
use crash::fixture::{Fixture, LEAF, log_range};
use crash::run::Run;
use crash::script::{self, Kind, MIB, Op, Script};
use diffdisk::storage::SyncSite;
use diffdisk::storage::sim::{Event, Trace};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The tests use both cores themselves, so they take turns.
static TURN: Mutex<()> = Mutex::new(());
const THREADS: u64 = 2;

fn knob(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

struct Fixtures {
    dynamic: Fixture,
    child: Fixture,
}

impl Fixtures {
    fn new(seed: u64) -> Self {
        Self { dynamic: Fixture::new(Kind::Dynamic, seed), child: Fixture::new(Kind::Child, seed) }
    }

    fn of(&self, kind: Kind) -> &Fixture {
        match kind {
            Kind::Dynamic => &self.dynamic,
            Kind::Child => &self.child,
        }
    }

    fn assert_parent_untouched(&self) {
        let attempts: u64 =
            [&self.dynamic, &self.child].iter().filter_map(|fixture| fixture.sealed.as_ref()).map(|sealed| sealed.attempts()).sum();
        assert_eq!(attempts, 0, "somebody tried to change a parent");
    }
}

/// Where in the ring the last entry ended, in 4 KiB sectors before its end.
fn sectors_left(run: &Run, since: usize, log: &std::ops::Range<u64>) -> Option<u64> {
    let written = |event: &Event| match event {
        Event::Write { at, bytes, .. } if log.contains(at) => Some((log.end - at - bytes.len() as u64) / 4096),
        _ => None,
    };
    run.world.events_since(since).iter().rev().find_map(written)
}

/// Performs a script. Returns the run, its trace, and the cut from which crashes are worth trying.
fn perform(fixture: &Fixture, script: &Script) -> Result<(Run, Trace, usize), String> {
    let mut run = Run::start(fixture.world.fork(), fixture.parents.clone(), fixture.content.clone(), 0)?;
    if let Some(wanted) = script.near_wrap {
        let log = log_range(&run.world.open(LEAF).expect("the file has its name"));
        for round in 0.. {
            assert!(round < 600, "the log's end never came near");
            let since = run.world.cut();
            // The cheapest commits: bits of a bitmap in a child, a block that comes and goes elsewhere.
            let op = match (script.kind, round % 2) {
                (Kind::Child, _) => Op::Write { at: 2 * MIB + MIB / 2 + 512 * round, len: 512 },
                (Kind::Dynamic, 0) => Op::Write { at: 2 * MIB + MIB / 2, len: 512 },
                (Kind::Dynamic, _) => Op::Trim { at: 2 * MIB, len: MIB },
            };
            run.perform(op)?;
            run.perform(Op::Flush)?;
            if sectors_left(&run, since, &log).is_some_and(|left| left <= wanted) {
                break;
            }
        }
    }
    let skip = run.ops.len() + script.interesting;
    for &op in &script.ops {
        run.perform(op)?;
    }
    let trace = run.world.trace();
    let from = if script.interesting == 0 && script.near_wrap.is_none() { 0 } else { run.ops[skip].issued };
    Ok((run, trace, from))
}

fn attempt(
    fixtures: &Fixtures,
    script: &Script,
    plan: &dyn Fn(&Run) -> Plan,
    fresh: &mut dyn FnMut(u128) -> bool,
    tally: &mut Tally,
) -> Result<(), String> {
    let fixture = fixtures.of(script.kind);
    let (run, trace, from) = perform(fixture, script).map_err(|e| format!("{}: without any crash: {e}", script.name))?;
    let told = |v: Box<Violation>| format!("{}\n  ops {:?}\n  cut {}: {}\n{}", script.name, script.ops, v.cut, v.what, v.report);
    check::crash(&run, &trace, from, &plan(&run), fresh, tally).map_err(told)
}

#[test]
fn every_crash_leaves_old_or_new() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let floor = knob("DIFFDISK_CRASH_STATES");
    let seconds = knob("DIFFDISK_CRASH_SECONDS").unwrap_or(if floor.is_some() { 240 } else { 15 });
    let seed = knob("DIFFDISK_CRASH_SEED").unwrap_or(7);
    let end = Instant::now() + Duration::from_secs(seconds);

    let mut scripts = script::exhaustive();
    let all = scripts.len();
    if floor.is_none() {
        // A short box cannot try all; take them in an order that is spread over the alphabet.
        scripts.sort_by_key(|script| script.name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)));
    }
    let next = AtomicUsize::new(0);
    let distinct = Mutex::new(HashSet::new());
    let violations = Mutex::new(Vec::new());
    let total = Mutex::new(Tally::default());
    let worker = || {
        let fixtures = Fixtures::new(seed);
        let mut tally = Tally::default();
        while Instant::now() < end && violations.lock().unwrap().len() < 3 {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let random = script::random(seed.wrapping_mul(1_000_003) + number as u64);
            let script = scripts.get(number).unwrap_or(&random);
            let plan = |run: &Run| Plan { options: check::options_for(run, script.piece), deep_every: 32 };
            let mut fresh = |hash| distinct.lock().unwrap().insert(hash);
            if let Err(violation) = attempt(&fixtures, script, &plan, &mut fresh, &mut tally) {
                violations.lock().unwrap().push(violation);
            }
        }
        fixtures.assert_parent_untouched();
        let mut total = total.lock().unwrap();
        total.states += tally.states;
        total.second += tally.second;
        total.refused += tally.refused;
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(worker);
        }
    });

    let (tally, violations) = (total.into_inner().unwrap(), violations.into_inner().unwrap());
    let scripts_run = next.into_inner();
    println!(
        "crash: {} distinct states, {} violations, seed {seed} ({} of a second crash, {} of {all} short scripts, {} random ones, {} unreadable pieces reported)",
        tally.states,
        violations.len(),
        tally.second,
        scripts_run.min(all),
        scripts_run.saturating_sub(all),
        tally.refused
    );
    assert!(violations.is_empty(), "{}", violations.join("\n\n"));
    let floor = floor.unwrap_or(20_000);
    assert!(tally.states >= floor, "only {} distinct states in {seconds} s, {floor} were wanted", tally.states);
    assert!(scripts_run >= all || seconds < 60, "the box of {seconds} s ended before all {all} short scripts were tried");
}

/// Which barriers the scripts pass, recoveries included.
fn reachable(fixtures: &Fixtures, scripts: &[Script]) -> BTreeSet<SyncSite> {
    let mut sites = BTreeSet::new();
    for script in scripts {
        let (run, trace, _) = perform(fixtures.of(script.kind), script).expect("the script runs without a crash");
        sites.extend(trace.sites());
        // A crash before the last close leaves a log to replay.
        let cut = run.ops.last().expect("scripts have operations").issued;
        let mut walk = diffdisk::storage::sim::CrashWalk::new(&trace, check::options_for(&run, 512));
        walk.go_to(cut);
        let choice = diffdisk::storage::sim::Choice {
            kept: vec![true; walk.pending().len()],
            beyond: Default::default(),
            space: Default::default(),
            flight: None,
        };
        let world = walk.image(&choice).boot(true);
        let mut second = Run::start(world.clone(), run.parents.clone(), run.initial.clone(), 0).expect("the image opens");
        second.perform(Op::Close).expect("it closes");
        sites.extend(world.trace().sites());
    }
    sites
}

/// The first violation that shows when a barrier does nothing.
fn first_notice(scripts: &[Script], site: SyncSite, seconds: u64) -> (Option<String>, u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let notice = Mutex::new(None);
    let states = AtomicUsize::new(0);
    let in_recovery = matches!(site, SyncSite::ReplayIdentity | SyncSite::ReplayHome | SyncSite::ReplayFirst | SyncSite::ReplaySecond);
    let worker = || {
        let fixtures = Fixtures::new(7);
        while !stop.load(Ordering::Relaxed) && Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let random = script::random(77_000 + number as u64);
            let script = scripts.get(number).unwrap_or(&random);
            let plan = |run: &Run| {
                let mut options = check::options_for(run, script.piece);
                options.no_op.insert(site);
                Plan { options, deep_every: if in_recovery { 4 } else { 64 } }
            };
            let mut tally = Tally::default();
            let result = attempt(&fixtures, script, &plan, &mut |_| !stop.load(Ordering::Relaxed), &mut tally);
            states.fetch_add(tally.states as usize, Ordering::Relaxed);
            if let Err(violation) = result {
                stop.store(true, Ordering::Relaxed);
                notice.lock().unwrap().get_or_insert(violation);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(worker);
        }
    });
    (notice.into_inner().unwrap(), states.into_inner() as u64)
}

#[test]
fn every_barrier_is_missed_when_it_does_nothing() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let seconds = knob("DIFFDISK_SENSITIVITY_SECONDS").unwrap_or(20);
    let scripts = script::exhaustive();
    let sites = reachable(&Fixtures::new(7), &scripts);
    let mut silent = Vec::new();
    println!("{:<16} {:>8}  first seen as", "barrier", "states");
    for &site in &sites {
        let (notice, states) = first_notice(&scripts, site, seconds);
        let text = notice
            .as_deref()
            .map_or("NOT NOTICED".into(), |text| text.lines().filter(|line| line.contains(": ")).take(1).collect::<String>());
        println!("{:<16} {states:>8}  {}", format!("{site:?}"), text.chars().take(160).collect::<String>());
        if notice.is_none() {
            silent.push(site);
        }
    }
    assert!(!sites.is_empty());
    assert!(silent.is_empty(), "nothing goes wrong without these barriers, so they are needless or the checker is blind: {silent:?}");
}

/// A campaign in which no barrier works must drown in violations; if it does not, the tests above prove nothing.
#[test]
fn the_canary_dies() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let fixtures = Fixtures::new(7);
    let mut kinds: BTreeMap<Kind, u64> = BTreeMap::new();
    for script in script::exhaustive().iter().take(40) {
        let plan = |run: &Run| {
            let mut options = check::options_for(run, 512);
            options.no_op.extend(run.world.trace().sites());
            Plan { options, deep_every: 0 }
        };
        if attempt(&fixtures, script, &plan, &mut |_| true, &mut Tally::default()).is_err() {
            *kinds.entry(script.kind).or_default() += 1;
        }
    }
    assert!(kinds.len() == 2 && kinds.values().all(|&died| died >= 5), "without any barrier almost nothing broke: {kinds:?}");
}

//! Every legal power cut in every short script: the disk opens, and each piece is old or new.
//!
//! The simulator (`storage::sim`) builds the images; `support/crash` runs the scripts and holds the images against a ledger of what
//! each piece may hold. Three knobs, all in the environment: `DIFFDISK_CRASH_STATES` is the number of distinct states below which
//! the run fails (CI says 150,000), `DIFFDISK_CRASH_SECONDS` the time box, `DIFFDISK_CRASH_SEED` the seed. Without any of them the
//! campaign is one round: a share of the crashes of every script, the same ones every time.

#[path = "support/crash/mod.rs"]
mod crash;

use crash::campaign::{self, Campaign, Fixtures, first_violation};
use crash::check::{self, Plan, Tally};
use crash::edited::MISTAKES;
use crash::fixture::{self, LEAF};
use crash::run::Run;
use crash::script::{self, Kind, MIB, Op, Script};
use diffdisk::storage::sim::{BeyondEnd, Choice, Class, CrashOptions, CrashWalk, Event, Flight, FreshSpace, Share, SimWorld, Torn};
use diffdisk::storage::{Storage, SyncSite, create_atomically};
use diffdisk::{CreateError, Disk, OpenOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The tests use both cores themselves, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn knob(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_crash_leaves_old_or_new() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let floor = knob("DIFFDISK_CRASH_STATES");
    let seconds = knob("DIFFDISK_CRASH_SECONDS").or(floor.map(|_| 200));
    let campaign = Campaign::new(knob("DIFFDISK_CRASH_SEED").unwrap_or(7));
    let began = Instant::now();
    let (round, wanted) = (campaign.round(), floor.unwrap_or(20_000));
    let outcome = campaign.run(&|attempt, states, _| match seconds.map(Duration::from_secs) {
        None => attempt < round,
        // A busy machine gets three times the box before the run counts as too small.
        Some(time) => began.elapsed() < time || (began.elapsed() < 3 * time && (states < wanted || attempt < round)),
    });
    let tally = outcome.tally;
    println!(
        "crash: {} distinct states, {} violations, seed {} ({} of a second crash, {} unreadable pieces reported, {} of {} short scripts, {:.1} rounds, {:.0} s)",
        tally.states,
        outcome.violations.len(),
        campaign.seed,
        tally.second,
        tally.refused,
        outcome.attempts.min(campaign.short),
        campaign.short,
        outcome.attempts as f64 / round as f64,
        began.elapsed().as_secs_f64(),
    );
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n\n"));
    assert!(tally.states >= wanted, "only {} distinct states, {wanted} were wanted", tally.states);
    assert!(outcome.attempts >= round, "the box ended before every script had a share");
}

/// The deep stage: all words of length 3. `DIFFDISK_CRASH_LENGTH=3` turns it on; `DIFFDISK_CRASH_PART=k/n` runs one of n equal parts
/// (counted from 1), `DIFFDISK_CRASH_ROUNDS` says how many of the 256 shares of each word's crashes are tried (1),
/// `DIFFDISK_CRASH_THREADS` on how many threads (1), `DIFFDISK_CRASH_SECONDS` when to stop early, and `DIFFDISK_CRASH_FROM` with which
/// attempt to go on after that. What was done is printed every minute, so that a run that is killed has a result too.
#[test]
fn every_crash_of_three_acts_leaves_old_or_new() {
    if knob("DIFFDISK_CRASH_LENGTH") != Some(3) {
        println!("crash, length 3: skipped: DIFFDISK_CRASH_LENGTH is not 3");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let text = std::env::var("DIFFDISK_CRASH_PART").unwrap_or("1/1".into());
    let part = text.split_once('/').and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    let (k, n) = part.filter(|&(k, n)| (1..=n).contains(&k)).unwrap_or_else(|| panic!("DIFFDISK_CRASH_PART={text} is not like 2/8"));
    let rounds = knob("DIFFDISK_CRASH_ROUNDS").unwrap_or(1) as usize;
    let threads = knob("DIFFDISK_CRASH_THREADS").unwrap_or(1);
    let mut campaign = Campaign::length_three(knob("DIFFDISK_CRASH_SEED").unwrap_or(7), k - 1, n, threads);
    campaign.from = knob("DIFFDISK_CRASH_FROM").unwrap_or(0) as usize;
    let (began, seconds) = (Instant::now(), knob("DIFFDISK_CRASH_SECONDS").map(Duration::from_secs));
    let (told, wanted, from) = (Mutex::new(Instant::now()), campaign.round() * rounds, campaign.from);
    let line = |done: usize, states: u64, violations: usize| {
        format!(
            "crash, length 3, part {k}/{n}, seed {}: {done} attempts from {from} on, of {wanted} ({:.3} % of them, {:.1} shares of each word), \
             {states} distinct states, {violations} violations, {:.0} s",
            campaign.seed,
            100.0 * done as f64 / wanted as f64,
            done as f64 / campaign.round() as f64,
            began.elapsed().as_secs_f64()
        )
    };
    let outcome = campaign.run(&|attempt, states, violations| {
        let mut told = told.lock().unwrap();
        if told.elapsed() > Duration::from_secs(60) {
            *told = Instant::now();
            println!("{}", line(attempt - from, states, violations));
        }
        attempt < wanted && seconds.is_none_or(|time| began.elapsed() < time)
    });
    println!(
        "{} ({} of a second crash, {} unreadable pieces reported)",
        line(outcome.attempts, outcome.tally.states, outcome.violations.len()),
        outcome.tally.second,
        outcome.tally.refused
    );
    if from + outcome.attempts < wanted {
        println!("crash, length 3: stopped early; goes on with DIFFDISK_CRASH_FROM={}", from + outcome.attempts);
    }
    assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n\n"));
    assert!(outcome.attempts > 0 && outcome.tally.states as usize >= outcome.attempts.min(100), "a stage that tried nothing");
}

/// Tries crashes of each script, one of `of`, and of every 64th a share of those of its recovery.
fn leaves_old_or_new(name: &str, scripts: &[Script], of: u64) {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let plan = |run: &Run, script: &Script| {
        let mut options = check::options_for(run, script.piece);
        options.limits.share = Share { of, nth: 0 };
        Plan { options, deep_every: 64, deep_share: 16, only: check::everything }
    };
    let began = Instant::now();
    let (violation, states) = first_violation(scripts, &plan, began + Duration::from_secs(3600));
    println!("{name}: {states} states of {} scripts, {:.0} s", scripts.len(), began.elapsed().as_secs_f64());
    assert!(violation.is_none(), "{}", violation.unwrap_or_default());
    assert!(states > 1000, "only {states} states");
}

/// The scripts of payload in the log, tried harder than a round of the campaign does.
#[test]
fn payload_in_the_log_leaves_old_or_new() {
    leaves_old_or_new("riding", &script::riding(), knob("DIFFDISK_RIDING_SHARE").unwrap_or(64));
}

/// Handles that are dropped, and sessions that only move things about.
#[test]
fn dropped_handles_and_compactions_leave_old_or_new() {
    leaves_old_or_new("odd", &script::odd(), 2);
}

/// They do ride: a flush of such a script is one durable write, and a page that changes is logged again.
#[test]
fn the_scripts_of_payload_in_the_log_ride() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let fixtures = Fixtures::new(7);
    let scripts = script::riding();
    let _fixed = diffdisk::storage::sim::Fixed::new(0xF1, 0);
    let (run, trace, _) = campaign::perform(fixtures.of(Kind::Child), &scripts[0]).expect("the script runs without a crash");
    for flush in run.ops.iter().filter(|performed| performed.op == Op::Flush).skip(1) {
        let sites: Vec<SyncSite> = trace.events[flush.issued..flush.done]
            .iter()
            .filter_map(|event| if let Event::SyncEnd { site, .. } = event { Some(*site) } else { None })
            .collect();
        assert_eq!(sites, [SyncSite::Log], "one write, durable on its own");
    }
}

/// Every barrier of the engine but those of creation, which `a_creation_is_all_or_nothing` tries.
const BARRIERS: [SyncSite; 17] = [
    SyncSite::HeaderWipe,
    SyncSite::Identity,
    SyncSite::Rewrite,
    SyncSite::Inheritance,
    SyncSite::Payload,
    SyncSite::FirstEntry,
    SyncSite::LogStart,
    SyncSite::Log,
    SyncSite::Home,
    SyncSite::LogTail,
    SyncSite::CloseHome,
    SyncSite::CloseFirst,
    SyncSite::CloseSecond,
    SyncSite::ReplayIdentity,
    SyncSite::ReplayHome,
    SyncSite::ReplayFirst,
    SyncSite::ReplaySecond,
];

/// How a barrier that does nothing is looked for.
fn sensitive(site: SyncSite, run: &Run, script: &Script) -> Plan {
    // Shares of the crashes of a script and of those of a recovery, and how many recoveries are crashed.
    let (share, deep_share, deep_every, only): (_, _, _, fn(&CrashWalk<'_>, &Choice) -> bool) = match site {
        SyncSite::HeaderWipe => (1, 1, 1, check::nearly_whole_headers),
        SyncSite::ReplayIdentity | SyncSite::ReplayHome | SyncSite::ReplayFirst | SyncSite::ReplaySecond => (256, 4, 1, check::everything),
        SyncSite::Home | SyncSite::LogTail => (128, 1, 0, check::everything),
        _ => (16, 1, 0, check::everything),
    };
    let mut options = check::options_for(run, script.piece);
    options.no_op.insert(site);
    options.limits.share = Share { of: share, nth: 0 };
    Plan { options, deep_every, deep_share, only }
}

#[test]
fn every_barrier_is_missed_when_it_does_nothing() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let seconds = knob("DIFFDISK_SENSITIVITY_SECONDS").unwrap_or(60);
    let (began, campaign) = (Instant::now(), Campaign::new(7));
    let (mut silent, mut all) = (Vec::new(), 0);
    println!("{:<16} {:>7} {:>6}  first seen as", "barrier", "states", "s");
    for site in BARRIERS {
        let scripts = match site {
            SyncSite::Home | SyncSite::LogTail => script::crowded(),
            SyncSite::Inheritance => script::odd(),
            _ => campaign.short_scripts().to_vec(),
        };
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let (notice, states) = first_violation(&scripts, &|run, script| sensitive(site, run, script), end);
        let line = |text: &String| {
            let mut lines = text.lines();
            format!("{}:{}", lines.next().unwrap_or_default(), lines.nth(1).unwrap_or_default().chars().take(150).collect::<String>())
        };
        let text = notice.as_ref().map_or("NOT NOTICED".into(), line);
        println!("{:<16} {states:>7} {:>6.1}  {text}", format!("{site:?}"), start.elapsed().as_secs_f64());
        all += states;
        silent.extend(notice.is_none().then_some(site));
    }
    println!(
        "sensitivity: {} of {} barriers missed when they do nothing, {all} states, {:.0} s",
        BARRIERS.len() - silent.len(),
        BARRIERS.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(silent.is_empty(), "nothing goes wrong without these barriers, so they are needless or the checker is blind: {silent:?}");
}

#[test]
fn every_barrier_of_the_scripts_is_on_the_list() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let fixtures = Fixtures::new(7);
    let mut sites: BTreeSet<SyncSite> = BTreeSet::new();
    for script in script::exhaustive().iter().step_by(7).chain(&script::crowded()).chain(&script::odd()) {
        let (_, trace, _) = campaign::perform(fixtures.of(script.kind), script).expect("the script runs without a crash");
        sites.extend(trace.sites());
    }
    let unknown: Vec<_> = sites.iter().filter(|site| !BARRIERS.contains(site)).collect();
    assert!(sites.len() >= 8 && unknown.is_empty(), "barriers that nobody tries to do without: {unknown:?}");
}

/// Real traces with a few events moved: each mistake must show, and only the mistake.
#[test]
fn a_wrong_order_is_noticed() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let fixtures = Fixtures::new(7);
    let noticed = MISTAKES.iter().map(|mistake| {
        let [without, with] = campaign::with_and_without(&fixtures, mistake);
        assert_eq!(without, Ok(()), "{}: the trace is wrong without the mistake", mistake.name);
        let text = with.expect_err(mistake.name);
        println!("wrong order: {}: {}", mistake.name, text.lines().next().unwrap_or_default().chars().take(160).collect::<String>());
    });
    println!("wrong order: {} of {} mistakes noticed", noticed.count(), MISTAKES.len());
}

/// A campaign in which no barrier works must drown in violations; if it does not, the tests above prove nothing.
#[test]
fn the_canary_dies() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let (fixtures, campaign) = (Fixtures::new(7), Campaign::new(7));
    let mut died: BTreeMap<Kind, u64> = BTreeMap::new();
    for script in campaign.short_scripts().iter().take(40) {
        let plan = |run: &Run| {
            let mut options = check::options_for(run, 512);
            options.no_op.extend(run.world.trace().sites());
            options.limits.share = Share { of: 16, nth: 0 };
            Plan { options, deep_every: 0, deep_share: 1, only: check::everything }
        };
        if campaign::attempt(&fixtures, script, &plan, &mut |_| true, &mut Tally::default()).is_err() {
            *died.entry(script.kind).or_default() += 1;
        }
    }
    println!("canary: {died:?} of 40 scripts fail where no barrier works");
    assert!(died.len() == 2 && died.values().all(|&died| died >= 5), "without any barrier almost nothing broke: {died:?}");
}

/// A power cut tears the first entry of a session, a long one, and a sector of it never reads again. The sessions after it write
/// short entries, and every one of them ends in a power cut. An earlier engine read the log in one piece and never opened such a
/// disk again, with all that had been flushed since.
#[test]
fn a_dead_sector_of_the_log_keeps_nobody_out() {
    let fixtures = Fixtures::new(7);
    let fixture = fixtures.of(Kind::Wide);
    let scatter = Op::Scatter { at: 0, stride: 520 * MIB, count: 12 };
    let script = Script {
        kind: Kind::Wide,
        log_start: 0,
        name: String::new(),
        ops: vec![scatter, Op::Flush],
        interesting: 0,
        piece: 512,
        durable: true,
        rides: false,
    };
    let (run, trace, _) = campaign::perform(fixture, &script).expect("the script runs without a crash");
    let mut walk = CrashWalk::new(&trace, check::options_for(&run, script.piece));
    let in_payload = |event: &Event| matches!(event, Event::SyncEnd { site: SyncSite::FirstEntry, .. });
    walk.go_to(trace.events.iter().position(in_payload).expect("new blocks are synced before they are named"));
    let torn = (0..walk.pending().len()).filter(|&i| walk.pending()[i].class() == Class::Log).collect::<Vec<_>>();
    for &atom in &torn {
        let flight = Some(Torn { atom, twin: None, how: Flight::Unreadable });
        let kept = vec![false; walk.pending().len()];
        let image = walk.image(&Choice { kept, beyond: BeyondEnd::Vanish, space: FreshSpace::Zeros, flight });
        let mut later = Run::closed(image.boot(false), fixture.parents.clone(), Arc::clone(&fixture.content), 1 << 20);
        for session in 0..3 {
            later.open().unwrap_or_else(|e| panic!("session {session} after {}: {e}", walk.pending()[atom]));
            check::shows_its_ledger(&later).unwrap();
            for flush in 0..3 {
                later.perform(Op::Write { at: (session * 3 + flush) * MIB, len: 4096 }).unwrap();
                later.perform(Op::Flush).unwrap();
            }
            later.abandon();
        }
    }
    println!("dead sectors: {} places in a log, three sessions over each", torn.len());
    assert!(torn.len() > 80);
}

/// What crashes of a creation leave under the name: nothing, or a disk without a flaw. Returns how many images held one.
fn creations(options: &CrashOptions) -> Result<(u64, u64), String> {
    let world = SimWorld::new(7);
    let plan = fixture::options(Kind::Dynamic).durable(false);
    let fill = |file: &Arc<dyn Storage>| Disk::create_on(Arc::clone(file), &plan).map(drop);
    create_atomically::<(), CreateError>(&world, LEAF, false, true, fill).expect("a disk is created");
    let (trace, done) = (world.trace(), world.cut());
    let mut walk = CrashWalk::new(&trace, options.clone());
    let (mut states, mut whole, mut broken) = (0, 0, None);
    loop {
        let cut = walk.cut();
        walk.for_each_choice(&mut |choice, image| {
            states += 1;
            broken = match image.boot(false).open(LEAF) {
                None if cut < done => None,
                None => Some(format!("the name is gone: {choice:?}")),
                Some(file) => {
                    whole += 1;
                    let opened = Disk::open_on(file, Vec::new(), &OpenOptions::new()).map_err(|e| e.to_string());
                    let report = opened.and_then(|disk| disk.check().map_err(|e| e.to_string()));
                    match report {
                        Ok(report) if report.errors.is_empty() && report.warnings.is_empty() => None,
                        bad => Some(format!("under its final name, and not whole: {bad:?} {choice:?}")),
                    }
                }
            };
            broken.is_none()
        });
        if let Some(what) = broken {
            return Err(format!("cut {cut}: {what}"));
        }
        if walk.step().is_none() {
            return Ok((states, whole));
        }
    }
}

/// A disk that was made durably on a storage of the caller's is whole after every crash from then on. Returns the states.
fn creations_on(options: CrashOptions) -> Result<u64, String> {
    let world = SimWorld::new(7);
    let file = world.create(LEAF);
    drop(Disk::create_on(file, &fixture::options(Kind::Dynamic)).expect("a disk is created"));
    let trace = world.trace();
    let (mut walk, mut states, mut broken) = (CrashWalk::new(&trace, options), 0, None);
    walk.go_to(trace.events.len());
    walk.for_each_choice(&mut |choice, image| {
        states += 1;
        let file = image.boot(false).open(LEAF).expect("it was there before");
        let opened = Disk::open_on(file, Vec::new(), &OpenOptions::new()).map_err(|e| e.to_string());
        broken = opened.and_then(|disk| disk.check().map_err(|e| e.to_string())).err().map(|e| format!("{e}: {choice:?}"));
        broken.is_none()
    });
    broken.map_or(Ok(states), Err)
}

#[test]
fn a_creation_on_a_storage_lasts_when_it_returns() {
    let harsh = CrashOptions { harsh: true, ..CrashOptions::default() };
    assert_eq!(creations_on(harsh.clone()), Ok(1), "nothing is left in the air");
    let blind = CrashOptions { no_op: [SyncSite::CreateOn].into(), ..harsh };
    assert!(creations_on(blind).is_err(), "nothing goes wrong when the new disk is not synced");
}

#[test]
fn a_creation_is_all_or_nothing() {
    let harsh = CrashOptions { harsh: true, ..CrashOptions::default() };
    let (states, whole) = creations(&harsh).unwrap();
    println!("creation: {states} states, {whole} with a whole disk under its name");
    assert!(whole > 0 && whole < states);
    let no_file = CrashOptions { no_op: [SyncSite::Create].into(), ..harsh.clone() };
    let no_dir = CrashOptions { no_op_dir: true, ..harsh };
    assert!(creations(&no_file).is_err(), "nothing goes wrong when the new file is not synced");
    assert!(creations(&no_dir).is_err(), "nothing goes wrong when the directory is not synced");
}

//! Many scripts, many crashes each, in an order in which everybody gets a little before anybody gets more.
//!
//! The crashes of a script are cut into shares. A round gives every script one share, in an order that is spread over the
//! alphabet; the next round gives each its next share. Rounds and shares depend on the seed alone, not on time or threads, so
//! what a campaign of so many rounds tries is always the same.

use super::check::{self, Plan, Tally, Violation};
use super::edited::Mistake;
use super::fixture::Fixture;
use super::run::Run;
use super::script::{self, Kind, Script};
use diffdisk::storage::sim::{Fixed, Limits, Share, Trace};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// Both cores of the machine that runs the tests; a campaign has the machine for itself.
const THREADS: u64 = 2;
/// Shares that the crashes of a script are cut into.
const SHARES: u64 = 256;
/// Random scripts in a round.
const RANDOM: usize = 120;

pub struct Fixtures(Vec<Fixture>);

impl Fixtures {
    pub fn new(seed: u64) -> Self {
        Self(Kind::ALL.map(|kind| Fixture::new(kind, seed)).into())
    }

    pub fn of(&self, kind: Kind) -> &Fixture {
        self.0.iter().find(|fixture| fixture.kind == kind).expect("there is one of each kind")
    }

    pub fn assert_parent_untouched(&self) {
        let attempts: u64 = self.0.iter().filter_map(|fixture| fixture.sealed.as_ref()).map(|sealed| sealed.attempts()).sum();
        assert_eq!(attempts, 0, "somebody tried to change a parent");
    }
}

/// Performs a script. Returns the run, its trace, and the cut from which crashes are worth trying.
pub fn perform(fixture: &Fixture, script: &Script) -> Result<(Run, Trace, usize), String> {
    let world = fixture.world.fork();
    world.offer_durable_writes(script.durable);
    let mut run = Run::closed(world, fixture.parents.clone(), fixture.content.clone(), 0);
    run.rides = script.rides;
    run.open()?;
    for &op in &script.ops {
        run.perform(op)?;
    }
    let trace = run.world.trace();
    let from = if script.interesting == 0 { 0 } else { run.ops[script.interesting].issued };
    Ok((run, trace, from))
}

/// Performs a script and tries the crashes that the plan names.
pub fn attempt(
    fixtures: &Fixtures,
    script: &Script,
    plan: &dyn Fn(&Run) -> Plan,
    fresh: &mut dyn FnMut(u128) -> bool,
    tally: &mut Tally,
) -> Result<(), String> {
    // The same identities in every script: where two begin alike, they write the same bytes and their crashes are the same.
    let _fixed = Fixed::new(0xF1, script.log_start);
    let (run, trace, from) = perform(fixtures.of(script.kind), script).map_err(|e| format!("{}: without any crash: {e}", script.name))?;
    let told = |v: Box<Violation>| format!("{}\n  ops {:?}\n  cut {}: {}\n{}", script.name, script.ops, v.cut, v.what, v.report);
    check::crash(&run, &trace, from, &plan(&run), fresh, tally).map_err(told)
}

/// What a campaign is to try.
pub struct Campaign {
    pub seed: u64,
    scripts: Vec<Script>,
    /// Scripts of the alphabet among them.
    pub short: usize,
    /// Random scripts in a round.
    random: usize,
    threads: u64,
    /// The attempt to begin with: what a campaign that was stopped had come to.
    pub from: usize,
}

/// What a campaign came to.
#[derive(Default)]
pub struct Outcome {
    pub tally: Tally,
    pub violations: Vec<String>,
    /// Attempts begun; the first [`Campaign::short`] are the first share of every short script.
    pub attempts: usize,
}

fn spread(text: &str, seed: u64) -> u64 {
    text.bytes().fold(seed ^ 0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

impl Campaign {
    pub fn new(seed: u64) -> Self {
        let mut scripts = script::exhaustive();
        let short = scripts.len();
        scripts.sort_by_key(|script| spread(&script.name, seed));
        scripts.extend(script::crowded());
        scripts.extend(script::riding());
        scripts.extend(script::odd());
        Self { seed, scripts, short, random: RANDOM, threads: THREADS, from: 0 }
    }

    /// One of `of` equal parts of the words of length 3, in an order that depends on the seed alone: the parts are disjoint, together
    /// everything, and may run on different machines. Its rounds are those of the short campaign: a share of the crashes of each word.
    pub fn length_three(seed: u64, part: usize, of: usize, threads: u64) -> Self {
        let mut scripts = script::length_three();
        scripts.sort_by_key(|script| spread(&script.name, seed));
        let scripts: Vec<Script> = scripts.into_iter().skip(part).step_by(of).collect();
        Self { seed, short: scripts.len(), scripts, random: 0, threads, from: 0 }
    }

    /// The scripts of the alphabet, in the order of a round.
    pub fn short_scripts(&self) -> &[Script] {
        &self.scripts[..self.short]
    }

    /// Attempts in a round.
    pub fn round(&self) -> usize {
        self.scripts.len() + self.random
    }

    fn script(&self, attempt: usize) -> Script {
        let random = || script::random(self.seed.wrapping_mul(1_000_003) + attempt as u64);
        self.scripts.get(attempt % self.round()).cloned().unwrap_or_else(random)
    }

    fn plan(&self, run: &Run, script: &Script, attempt: usize) -> Plan {
        let share = Share { of: SHARES, nth: (attempt / self.round()) as u64 };
        let mut options = check::options_for(run, script.piece);
        options.limits = Limits { share, ..Limits::default() };
        Plan { options, deep_every: 32, deep_share: 64, only: check::everything }
    }

    /// Tries attempt after attempt while `go_on` says so, which is told the number of the next, the states so far, and the violations.
    pub fn run(&self, go_on: &(dyn Fn(usize, u64, usize) -> bool + Sync)) -> Outcome {
        let (next, states) = (AtomicUsize::new(self.from), AtomicUsize::new(0));
        let (distinct, outcome) = (Mutex::new(HashSet::new()), Mutex::new(Outcome::default()));
        let worker = || {
            let fixtures = Fixtures::new(self.seed);
            let mut tally = Tally::default();
            loop {
                let attempt = next.fetch_add(1, Ordering::Relaxed);
                let violations = outcome.lock().unwrap().violations.len();
                if violations >= 3 || !go_on(attempt, states.load(Ordering::Relaxed) as u64, violations) {
                    break;
                }
                let script = self.script(attempt);
                let mut fresh = |hash| {
                    let new = distinct.lock().unwrap().insert(hash);
                    states.fetch_add(usize::from(new), Ordering::Relaxed);
                    new
                };
                let plan = |run: &Run| self.plan(run, &script, attempt);
                let result = self::attempt(&fixtures, &script, &plan, &mut fresh, &mut tally);
                let mut outcome = outcome.lock().unwrap();
                outcome.violations.extend(result.err());
                outcome.attempts += 1;
            }
            fixtures.assert_parent_untouched();
            let mut outcome = outcome.lock().unwrap();
            outcome.tally.states += tally.states;
            outcome.tally.second += tally.second;
            outcome.tally.refused += tally.refused;
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(worker);
            }
        });
        outcome.into_inner().unwrap()
    }
}

/// The first violation that a list of scripts shows under a plan, and the states looked at. Stops at a moment.
pub fn first_violation(scripts: &[Script], plan: &(dyn Fn(&Run, &Script) -> Plan + Sync), end: Instant) -> (Option<String>, u64) {
    let (next, stop, states) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let notice = Mutex::new(None);
    let worker = || {
        let fixtures = Fixtures::new(7);
        while !stop.load(Ordering::Relaxed) && Instant::now() < end {
            let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let mut tally = Tally::default();
            let result = attempt(&fixtures, script, &|run| plan(run, script), &mut |_| true, &mut tally);
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

/// Performs the script of a mistake and tries its crashes, as they are and as the mistake makes them.
pub fn with_and_without(fixtures: &Fixtures, mistake: &Mistake) -> [Result<(), String>; 2] {
    [false, true].map(|made| {
        let script = Script {
            kind: mistake.kind,
            log_start: 0,
            name: mistake.name.into(),
            ops: mistake.ops.into(),
            interesting: 0,
            piece: 512,
            durable: true,
            rides: false,
        };
        let _fixed = Fixed::new(0xF1, 0);
        let (mut run, mut trace, _) = perform(fixtures.of(script.kind), &script)?;
        if made {
            mistake.make(&mut run, &mut trace);
        }
        let mut options = check::options_for(&run, script.piece);
        options.limits = Limits { share: Share { of: 8, nth: 0 }, ..Limits::default() };
        let plan = Plan { options, deep_every: 0, deep_share: 1, only: check::everything };
        check::crash(&run, &trace, 0, &plan, &mut |_| true, &mut Tally::default()).map_err(|v| format!("cut {}: {}", v.cut, v.what))
    })
}

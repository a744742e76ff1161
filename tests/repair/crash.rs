//! A repair that is interrupted at every storage call: what is left reads the same, and another repair finishes the work.

use crate::content::{File, content, is_repairable, repair, still_reads};
use crate::damage::{self, Damage};
use crate::loud::loud;
use diffdisk::Consent;
use diffdisk::storage::SyncSite;
use diffdisk::storage::sim::{CrashOptions, CrashWalk, SimWorld};
use std::collections::{BTreeSet, HashSet};

struct Tally {
    states: usize,
    unreadable: usize,
    sites: BTreeSet<SyncSite>,
}

fn crash_everywhere(damage: &Damage, without: Option<SyncSite>) -> Tally {
    let world = SimWorld::new(11);
    let leaf = world.create("leaf");
    let id = leaf.file();
    damage::pour(&damage.chain[0].storage(), &*leaf);
    world.forget();
    let leaf: File = leaf;
    let with = |leaf: File| -> Vec<File> { std::iter::once(leaf).chain(damage::parents(damage)).collect() };
    let before = content(&with(leaf.clone()));
    let report = repair(&leaf, &damage.consents).expect("it is repaired");
    assert!(!report.steps.is_empty() && report.left.is_sound(), "{}: {:?}", damage.name, report.left);
    let repaired = content(&with(leaf));
    still_reads(&before, &repaired).expect("the same content");

    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, CrashOptions { harsh: true, no_op: without.into_iter().collect(), ..CrashOptions::default() });
    let (all, end) = ([Consent::OlderHeader, Consent::EmptyLog], trace.events.len());
    let (mut seen, mut unreadable) = (HashSet::new(), 0);
    loop {
        let is_over = walk.cut() == end;
        walk.for_each_choice(&mut |choice, image| {
            if !seen.insert((image.hash(), is_over)) {
                return true;
            }
            let what = |text: String| format!("{}, cut {choice:?}: {text}", damage.name);
            let leaf: File = image.file(id).expect("the file is there");
            let now = content(&with(leaf.clone()));
            if now.is_none() && before.is_some() {
                // A header that cannot be read at all, beside one that names no log, is reported and not passed over: the way out is consent.
                unreadable += 1;
                let refused = repair(&leaf, &[]).expect("an examination");
                assert_eq!((refused.steps.len(), &refused.needs[..]), (0, &[Consent::OlderHeader][..]), "{}", what(String::new()));
            } else {
                still_reads(&before, &now).map_err(&what).unwrap();
            }
            let again = repair(&leaf, &all).map_err(|e| what(e.to_string())).unwrap();
            assert!(again.left.is_sound() && !again.left.findings().any(|f| is_repairable(&f)), "{}", what(format!("{:?}", again.left)));
            assert!(again.steps.is_empty() || !is_over, "{}", what(format!("it had returned, and {:?} was left to do", again.steps)));
            still_reads(&repaired, &content(&with(leaf))).map_err(&what).unwrap();
            true
        });
        if walk.step().is_none() {
            break;
        }
    }
    Tally { states: seen.len(), unreadable, sites: trace.sites().into_iter().collect() }
}

#[test]
fn a_crash_in_a_repair_loses_nothing_and_the_next_one_finishes() {
    let (mut states, mut unreadable, mut sites) = (0, 0, BTreeSet::new());
    let damages = damage::all();
    for damage in &damages {
        let tally = crash_everywhere(damage, None);
        assert!(tally.states > 8, "{}: {} states", damage.name, tally.states);
        (states, unreadable) = (states + tally.states, unreadable + tally.unreadable);
        sites.extend(tally.sites);
    }
    loud(&format!(
        "repair crashes: {} files, {states} states, {unreadable} with an unreadable header, {} barriers",
        damages.len(),
        sites.len()
    ));
    assert!(states > 500 && unreadable < states / 3, "{states} states, {unreadable}");
    assert!(
        sites.contains(&SyncSite::LogStart) && sites.contains(&SyncSite::Truncate) && sites.contains(&SyncSite::ReplayHome),
        "{sites:?}"
    );
}

/// The syncs that only a repair does, left out one by one.
#[test]
fn every_barrier_of_a_repair_is_missed_when_it_does_nothing() {
    use SyncSite::{RepairEntry, RepairIdentity, RepairMirror, Truncate};
    let damages = damage::all();
    for site in [RepairIdentity, RepairMirror, RepairEntry, Truncate] {
        let missed = damages.iter().find_map(|damage| {
            let attempt = std::panic::AssertUnwindSafe(|| crash_everywhere(damage, Some(site)));
            let panic = std::panic::catch_unwind(attempt).err()?;
            Some(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| damage.name.to_string()))
        });
        let text = missed.unwrap_or_else(|| panic!("nothing goes wrong without {site:?}"));
        loud(&format!("repair sensitivity: {site:?}: {}", text.chars().take(120).collect::<String>()));
    }
}

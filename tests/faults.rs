//! Storage that fails at every call in turn: what was flushed stays, a failed request harms only itself, a failed sync is final.
//!
//! For each script and each fault the first call fails, then in a new run the second, and so on until a run meets no fault. After
//! each run the handle is dropped, the storage healed, and the file opened twice: with what readers see, and with what the
//! device holds. See `support/faults/rig.rs` for what is checked.

#[path = "support/faults/mod.rs"]
mod faults;
#[path = "support/loud.rs"]
mod loud;

use diffdisk::storage::sim::{CallKind, Fault, Lost, Repeat};
use faults::rig::{Fixture, Target, Wrong, run};
use faults::script::{self, Kind, Op, Script, Way};
use loud::loud;
use std::io::ErrorKind::{
    FileTooLarge, Interrupted, Other, QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, Unsupported,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Every way to fail. Most come once and from then on; short calls from then on are the harder case, one byte at a time only takes
/// long, and a call that is interrupted for ever is never done.
fn wrongs(script: &Script) -> Vec<Wrong> {
    use CallKind::{Len, Punch, Read, SetLen, Sync, Write};
    let mut out = vec![Wrong::Flip, Wrong::Gone];
    let mut add = |target, call, repeats: &[Repeat], faults: &[Fault]| {
        for &fault in faults {
            out.extend(repeats.iter().map(|&repeat| Wrong::Fault(target, call, fault, repeat)));
        }
    };
    let (once, on, both, twice) = (&[Repeat::Once], &[Repeat::FromThen], &[Repeat::Once, Repeat::FromThen], &[Repeat::Times(2)]);
    for target in [Target::Leaf, Target::Parent] {
        if target == Target::Parent && script.kind != Kind::Child {
            continue;
        }
        add(target, Read, both, &[Fault::Error(Other), Fault::Nothing]);
        add(target, Read, on, &[Fault::Error(StaleNetworkFileHandle), Fault::ShortHalf, Fault::ShortAllButOne]);
        add(target, Read, once, &[Fault::ShortOne]);
        add(target, Read, twice, &[Fault::Error(Interrupted)]);
        add(target, Len, both, &[Fault::Error(Other)]);
    }
    let leaf = Target::Leaf;
    add(leaf, Write, both, &[Fault::Error(Other), Fault::ErrorAfterEffect(Other), Fault::Nothing, Fault::Error(StorageFull)]);
    add(leaf, Write, on, &[Fault::ShortHalf, Fault::ShortAllButOne]);
    add(leaf, Write, once, &[QuotaExceeded, FileTooLarge, ReadOnlyFilesystem].map(Fault::Error));
    add(leaf, Write, once, &[Fault::ErrorAfterEffect(StorageFull), Fault::ShortOne]);
    add(leaf, Write, twice, &[Fault::Error(Interrupted)]);
    if script.halves {
        add(leaf, Write, once, &[Fault::ErrorAfterHalf(Other)]);
        add(leaf, Write, both, &[Fault::ErrorAfterHalf(StorageFull)]);
    }
    add(leaf, Sync, both, &[Lost::Nothing, Lost::OnDevice, Lost::Everywhere].map(|lost| Fault::Sync(Other, lost)));
    add(leaf, Sync, both, &[Fault::Sync(StorageFull, Lost::Nothing)]);
    add(leaf, Sync, once, &[Fault::Error(Interrupted), Fault::ErrorAfterEffect(Other), Fault::SyncLate(Other, Lost::OnDevice)]);
    add(leaf, SetLen, both, &[Fault::Error(StorageFull), Fault::ErrorAfterEffect(Other)]);
    add(leaf, SetLen, once, &[Fault::Error(QuotaExceeded), Fault::Error(FileTooLarge)]);
    add(leaf, Punch, both, &[Fault::Error(Unsupported), Fault::Error(Other), Fault::Error(StorageFull)]);
    add(leaf, Punch, once, &[Fault::ErrorAfterEffect(Other)]);
    // A wide disk takes long to set up and is about one thing: making room in the log. Neither do durable writes change what other calls do.
    let telling = |wrong: &Wrong| {
        matches!(wrong, Wrong::Fault(_, Write, Fault::Error(Other | StorageFull), _) | Wrong::Fault(_, Sync, Fault::Sync(Other, _), _))
    };
    out.retain(|wrong| script.kind != Kind::Wide && script.way == Way::TwoSyncs || telling(wrong));
    // A sync that says yes and has not: what is promised after a power cut is gone with it.
    let is_cut = script.ops.contains(&Op::PowerCut);
    out.retain(|wrong| !is_cut || !matches!(wrong, Wrong::Fault(_, _, Fault::SyncLate(..), _)));
    out
}

/// The counted loop for one script.
fn count_up(fixture: &Fixture, script: &Script, broken: &mut Vec<String>) -> usize {
    let mut met = 0;
    for wrong in wrongs(script) {
        for k in 1.. {
            let guarded = catch_unwind(AssertUnwindSafe(|| run(fixture, script, wrong, k)));
            let result = guarded.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
                Err(format!("panic: {}", text.unwrap_or("no text")))
            });
            match result {
                Ok(true) => met += 1,
                Ok(false) => break,
                Err(what) => {
                    broken.push(format!("{:?}, {:?}, {}: {wrong:?} at call {k}: {what}", script.kind, script.way, script.name));
                    break;
                }
            }
        }
    }
    met
}

#[test]
fn every_call_fails_in_turn_and_nothing_flushed_is_lost() {
    let scripts = script::all();
    let kinds = scripts.iter().map(|script| wrongs(script).len()).max().unwrap_or(0);
    let (next, met, broken) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let fixtures = [Kind::Dynamic, Kind::Child, Kind::Wide].map(|kind| (kind, Fixture::new(kind)));
                while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (_, fixture) = fixtures.iter().find(|(kind, _)| *kind == script.kind).expect("one of each");
                    let mut mine = Vec::new();
                    met.fetch_add(count_up(fixture, script, &mut mine), Ordering::Relaxed);
                    broken.lock().unwrap().extend(mine);
                }
            });
        }
    });
    let (met, broken) = (met.into_inner(), broken.into_inner().unwrap());
    loud(&format!("faults: {} scripts, {kinds} kinds of fault, {met} injected, {} broken promises", scripts.len(), broken.len()));
    assert!(broken.is_empty(), "{}", broken.iter().take(40).cloned().collect::<Vec<_>>().join("\n"));
    assert!(met > 6_000, "only {met} faults were met");
}

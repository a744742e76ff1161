//! A repair whose storage fails: each call in turn, once and from then on.

use crate::content::{Content, File, content, is_repairable, repair, still_reads};
use crate::damage::{self, Damage};
use crate::loud::loud;
use diffdisk::storage::sim::{CallKind, Fault, FaultStorage, Lost, Repeat};
use diffdisk::storage::{MemoryStorage, Storage};
use std::io::ErrorKind::{Interrupted, Other, StorageFull};
use std::sync::Arc;

/// Runs a repair in which one call fails; `false` when no call was left to fail.
fn run(damage: &Damage, before: &Content, kind: CallKind, k: u64, repeat: Repeat, fault: Fault) -> Result<bool, String> {
    let inner: Arc<MemoryStorage> = damage.chain[0].storage();
    let with = |leaf: File| -> Vec<File> { std::iter::once(leaf).chain(damage::parents(damage)).collect() };
    let storage = Arc::new(FaultStorage::new(inner.clone() as Arc<dyn Storage>).map_err(|e| e.to_string())?);
    storage.reset_calls();
    storage.arm(kind, k, repeat, fault);
    let leaf: File = storage.clone();
    let outcome = repair(&leaf, &damage.consents);
    let was_met = storage.hits() > 0;
    storage.heal();
    if let (Ok(report), CallKind::Sync) = (&outcome, kind)
        && was_met
        && !report.steps.is_empty()
    {
        return Err("a sync failed, and the repair says it is done".to_owned());
    }
    // What the device did not get is gone with the machine.
    storage.power_cut().map_err(|e| e.to_string())?;
    let now = content(&with(leaf.clone()));
    still_reads(before, &now)?;
    let again = repair(&leaf, &damage.consents).map_err(|e| format!("a second repair: {e}"))?;
    if !again.left.is_sound() || again.left.findings().any(|f| is_repairable(&f)) {
        return Err(format!("a second repair left {:?}", again.left));
    }
    still_reads(before, &content(&with(leaf)))?;
    Ok(was_met)
}

#[test]
fn every_call_of_a_repair_fails_in_turn() {
    let (once, on) = (Repeat::Once, Repeat::FromThen);
    let wrongs = [
        (CallKind::Read, once, Fault::Error(Other)),
        (CallKind::Read, on, Fault::Error(Other)),
        (CallKind::Read, once, Fault::ShortOne),
        (CallKind::Read, once, Fault::Error(Interrupted)),
        (CallKind::Write, once, Fault::Error(Other)),
        (CallKind::Write, on, Fault::Error(StorageFull)),
        (CallKind::Write, once, Fault::ErrorAfterHalf(Other)),
        (CallKind::Write, once, Fault::ShortHalf),
        (CallKind::Len, once, Fault::Error(Other)),
        (CallKind::SetLen, once, Fault::Error(StorageFull)),
        (CallKind::SetLen, on, Fault::ErrorAfterEffect(Other)),
        (CallKind::Sync, once, Fault::Sync(Other, Lost::Nothing)),
        (CallKind::Sync, once, Fault::Sync(Other, Lost::OnDevice)),
        (CallKind::Sync, once, Fault::Sync(Other, Lost::Everywhere)),
        (CallKind::Sync, on, Fault::Sync(Other, Lost::Everywhere)),
        (CallKind::Punch, once, Fault::Error(std::io::ErrorKind::Unsupported)),
    ];
    let (mut met, mut broken) = (0, Vec::new());
    for damage in &damage::all() {
        let chain: Vec<File> = damage.chain.iter().map(|image| image.storage() as File).collect();
        let before = content(&chain);
        for (kind, repeat, fault) in wrongs {
            for k in 1.. {
                match run(damage, &before, kind, k, repeat, fault) {
                    Ok(true) => met += 1,
                    Ok(false) => break,
                    Err(what) => {
                        broken.push(format!("{}: {kind:?} {repeat:?} {fault:?} at call {k}: {what}", damage.name));
                        break;
                    }
                }
            }
        }
    }
    loud(&format!("repair faults: {met} injected, {} broken promises", broken.len()));
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(met > 500, "only {met} faults were met");
}

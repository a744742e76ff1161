//! Repairing every file of the corpus.

use crate::cases::find;
use crate::digest;
use crate::loud::loud;
use crate::unpack::unpack;
use diffdisk::{Cancel, Consent, Disk, NoProgress, OpenOptions, ParentPolicy, Repair, RepairOptions};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Whether the repair changed anything.
fn judge(json: &Path, case: &Value) -> Result<bool, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let home = dir.path().canonicalize().map_err(|e| e.to_string())?;
    let from = json.parent().expect("a directory");
    for name in case["files"].as_object().expect("files").keys() {
        unpack(&from.join(format!("{name}.xz")), &home.join(name))?;
    }
    let chain: Vec<PathBuf> = case["chain"].as_array().expect("a chain").iter().map(|f| home.join(f.as_str().expect("a name"))).collect();
    let options = OpenOptions::new().parents(ParentPolicy::Beneath(vec![home.clone()]));
    let content = || Disk::open(&chain[0], &options).ok().and_then(|disk| digest::of_disk(&disk, false, false).ok());
    let before = content();
    let examined = Disk::examine(&chain[0], &options, &NoProgress, &Cancel::new());
    match (case["expect"].as_str().expect("a verdict"), &examined) {
        ("accept", Ok(report)) if !report.is_sound() => return Err(format!("is to be accepted, and there is {}", report.errors[0])),
        ("accept", Err(e)) => return Err(format!("is to be accepted: {e}")),
        ("refuse" | "report", Ok(report)) if report.is_sound() => return Err("no error was found".to_owned()),
        _ => {}
    }
    let consent = RepairOptions::new().accept(Consent::OlderHeader).accept(Consent::EmptyLog);
    let report = Disk::repair(&chain[0], &consent, &NoProgress, &Cancel::new()).map_err(|e| format!("repair: {e}"))?;
    if before.is_some() && content() != before {
        return Err("it reads differently".to_owned());
    }
    if let Some(finding) = report.left.findings().find(|f| f.repair == Repair::Repairable) {
        return Err(format!("left undone: {finding}"));
    }
    let again = Disk::repair(&chain[0], &consent, &NoProgress, &Cancel::new()).map_err(|e| format!("a second repair: {e}"))?;
    if !again.steps.is_empty() {
        return Err(format!("a second repair did {:?}", again.steps));
    }
    Ok(!report.steps.is_empty())
}

#[test]
fn no_repair_makes_a_file_of_the_corpus_worse() {
    let home =
        std::env::var_os("DIFFDISK_CORPUS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    if !home.is_dir() {
        loud(&format!("skipped: no corpus at {}", home.display()));
        return;
    }
    let mut found = Vec::new();
    find(&home, &mut found);
    let (mut changed, mut failures) = (0, Vec::new());
    for path in &found {
        let text = std::fs::read_to_string(path).expect("the case can be read");
        match judge(path, &serde_json::from_str(&text).expect("a case is JSON")) {
            Ok(was_changed) => changed += u32::from(was_changed),
            Err(text) => failures.push(format!("{}: {text}", path.display())),
        }
    }
    loud(&format!("repair: {} cases of the corpus, {changed} changed, {} broken laws", found.len(), failures.len()));
    assert!(!found.is_empty(), "there is a corpus at {} but no case in it", home.display());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

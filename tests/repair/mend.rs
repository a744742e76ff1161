//! Repairing every file of the hostile table.

use crate::content::lawful_repair;
use crate::findings::table;
use crate::loud::loud;
use crate::table::Quiet;
use diffdisk::Consent;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// So many hostile files there must be at least.
const FEWEST: u32 = 150;

#[test]
fn no_repair_makes_anything_worse() {
    let quiet = Quiet::new();
    let all = [Consent::OlderHeader, Consent::EmptyLog];
    let (mut failures, mut changed, mut healed, mut files) = (Vec::new(), 0, 0, 0);
    for case in &table().cases {
        for consents in [&[][..], &all] {
            let storages: Vec<_> = case.chain.iter().map(|image| image.storage()).collect();
            let outcome = catch_unwind(AssertUnwindSafe(|| lawful_repair(&storages, consents)));
            files += 1;
            match outcome.unwrap_or_else(|_| Err("PANIC".to_owned())) {
                Ok(report) => {
                    changed += u32::from(!report.steps.is_empty());
                    healed += u32::from(report.repaired.iter().any(|f| f.severity == diffdisk::Severity::Error) && report.left.is_sound());
                }
                Err(text) => failures.push(format!("row {}: {} ({} consents): {text}", case.row, case.name, consents.len())),
            }
        }
    }
    drop(quiet);
    let cases = files / 2;
    loud(&format!(
        "repair: {cases} hostile files, {files} repairs (without and with consent), {changed} changed one, {healed} healed one, {} broken laws",
        failures.len()
    ));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases >= FEWEST, "{cases} hostile files");
    assert!(changed > 60 && healed > 2, "{changed} changed, {healed} healed");
}

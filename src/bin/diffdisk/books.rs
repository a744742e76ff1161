//! `clone check` and `image check`: the files, and what the store has written down.

use crate::check::{Findings, sentence_about};
use crate::context::Context;
use crate::error::CliError;
use diffdisk::{Repair, Severity, StoreReport};
use serde_json::{Value, json};
use std::path::Path;

/// Prints a report; exit code 6 when there are errors. `key` is what `--json` calls the thing that was checked.
pub fn answer(key: &str, name: &str, report: &StoreReport, ctx: &Context) -> Result<(), CliError> {
    let files: Vec<Value> = report
        .files
        .iter()
        .map(|files| {
            let mut value = serde_json::to_value(Findings::new(&files.report)).expect("findings have string keys");
            value["layers"] = json!(files.layers.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>());
            value
        })
        .collect();
    let books: Vec<Value> = report
        .books
        .iter()
        .map(|finding| {
            json!({
                "file": finding.path.to_string_lossy(),
                "severity": finding.fault.severity().to_string(),
                "fault": finding.fault.key(),
                "message": finding.fault.to_string(),
                "repairable": finding.is_repairable,
            })
        })
        .collect();
    let value = json!({ key: name, "sound": report.is_sound(), "files": files, "books": books });
    // Only a clone has a verb that repairs it.
    let can = |is_repairable: bool| if is_repairable && key == "clone" { " (clone repair)" } else { "" };
    ctx.emit(&value, |out| {
        for severity in [Severity::Error, Severity::Warning, Severity::Note] {
            for files in &report.files {
                for finding in files.report.findings().filter(|finding| finding.severity == severity) {
                    let file = files.layers.get(finding.layer).map_or(Path::new(""), |path| path.as_path());
                    // What is only noted is left as it is.
                    let mends = finding.repair == Repair::Repairable && severity != Severity::Note && finding.layer == 0;
                    writeln!(out, "{severity}: {}{}", sentence_about(finding, file), can(mends))?;
                }
            }
            for finding in report.books.iter().filter(|finding| finding.fault.severity() == severity) {
                writeln!(out, "{severity}: {}: {}{}", finding.path.display(), finding.fault, can(finding.is_repairable))?;
            }
        }
        let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Note].map(|severity| report.count(severity));
        writeln!(out, "{name}: {errors} errors, {warnings} warnings, {notes} notes")
    })?;
    if report.is_sound() { Ok(()) } else { Err(CliError::Answered) }
}

//! Every file of the hostile table has its expected findings.
//!
//! They stand in `findings.txt`: the row of the checklist, the name of the file, and what an examination of its chain finds, as
//! `layer:severity:structure:fault:repair`, each once, with how often where it is found more than once. `DIFFDISK_BLESS=1` writes the file
//! anew; whoever does that reads the difference. Beside the list, the verdict of the table must agree: what is refused has an error, what
//! reads has none, what is reported has one in the right structure.

use crate::alloc::measured;
use crate::content::{File, examine};
use crate::forge::MIB;
use crate::loud::loud;
use crate::table::{Case, Table, Verdict, fingerprint};
use diffdisk::{CheckReport, Disk, OpenOptions, ParentPolicy, Severity};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

/// So many hostile files there must be at least, and as many with a finding.
const FEWEST: usize = 150;

/// Every file of the table.
pub fn table() -> Table {
    let mut table = Table::default();
    crate::head::rows(&mut table);
    crate::journal::rows(&mut table);
    crate::meta::rows(&mut table);
    crate::blocks::rows(&mut table);
    crate::head::negative_vectors(&mut table);
    table
}

fn line(case: &Case, report: &CheckReport) -> String {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for f in report.findings() {
        let text = format!("{}:{}:{}:{}:{}", f.layer, f.severity, f.structure.key(), f.fault.key(), f.repair.key());
        *found.entry(text).or_default() += 1;
    }
    let mut text = format!("{}\t{}\t", case.row, case.name);
    for (n, (finding, count)) in found.iter().enumerate() {
        let _ = write!(text, "{}{finding}", if n > 0 { " " } else { "" });
        if *count > 1 {
            let _ = write!(text, "*{count}");
        }
    }
    if found.is_empty() {
        text.push('-');
    }
    text
}

/// Whether the findings and the verdict agree.
fn agrees(case: &Case, report: &CheckReport, opens: bool) -> Result<(), String> {
    if !opens && report.is_sound() {
        return Err("it does not open, and there is no error".to_owned());
    }
    match &case.verdict {
        Verdict::Refuse(..) if report.is_sound() && case.row != 38 => Err("is to be refused, and there is no error".to_owned()),
        Verdict::Read(_) if !report.is_sound() => Err(format!("is to be read, and there is {}", report.errors[0])),
        Verdict::Report(names) | Verdict::Fault(names) => {
            let named = |text: String| names.iter().any(|name| text.to_lowercase().contains(&name.to_lowercase()));
            if report.errors.iter().any(|f| named(f.to_string())) { Ok(()) } else { Err(format!("no error names one of {names:?}")) }
        }
        _ => Ok(()),
    }
}

fn judge(case: &Case) -> Result<String, String> {
    let files: Vec<_> = case.chain.iter().map(|image| image.storage()).collect();
    let chain: Vec<File> = files.iter().map(|file| Arc::clone(file) as File).collect();
    let before: Vec<_> = files.iter().map(|file| fingerprint(file)).collect();
    let started = Instant::now();
    let (report, _, memory) = measured(|| examine(&chain));
    let took = started.elapsed();
    if files.iter().map(|file| fingerprint(file)).ne(before) {
        return Err("examining changed a file".to_owned());
    }
    // A chain that ends too early is an error of the call.
    let report = match report {
        Ok(report) => report,
        Err(e) => return Ok(format!("{}\t{}\t{:?}", case.row, case.name, e.kind())),
    };
    if memory > 24 * MIB || took.as_secs() > 5 {
        return Err(format!("took {} KiB of memory and {took:?}", memory >> 10));
    }
    // A leaf that is given alone is examined alone.
    let policy = if chain.len() == 1 { ParentPolicy::Deny } else { ParentPolicy::default() };
    let opens = Disk::open_on(Arc::clone(&chain[0]), chain[1..].to_vec(), &OpenOptions::new().parents(policy)).is_ok();
    agrees(case, &report, opens)?;
    if report.count(Severity::Error) != report.errors.len() as u64 {
        return Err("errors are not all listed".to_owned());
    }
    Ok(line(case, &report))
}

#[test]
fn every_file_has_its_expected_findings() {
    let table = table();
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    for case in &table.cases {
        match judge(case) {
            Ok(line) => lines.push(line),
            Err(text) => failures.push(format!("row {}: {}: {text}", case.row, case.name)),
        }
    }
    assert!(failures.is_empty(), "{} of {} files:\n{}", failures.len(), table.cases.len(), failures.join("\n"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/repair/findings.txt");
    let text = lines.join("\n") + "\n";
    if std::env::var_os("DIFFDISK_BLESS").is_some() {
        std::fs::write(path, &text).expect("the list can be written");
    }
    let expected = std::fs::read_to_string(path).expect("the list is there");
    let wrong: Vec<String> = text
        .lines()
        .zip(expected.lines())
        .filter(|(now, then)| now != then)
        .map(|(now, then)| format!("found    {now}\nexpected {then}"))
        .collect();
    // Files with a finding or a refusal of their own; the others are sound ones beside them, of which nothing may be said.
    let listed = expected.lines().filter(|line| !line.ends_with("\t-")).count();
    loud(&format!("findings: {} hostile files, {listed} of them with findings, {} other than expected", lines.len(), wrong.len()));
    assert!(listed >= 150, "only {listed} files have findings");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines.len() >= FEWEST && listed >= FEWEST, "{} files, {listed} with a finding", lines.len());
    assert_eq!(text.lines().count(), expected.lines().count(), "files without a line, or lines without a file");
}

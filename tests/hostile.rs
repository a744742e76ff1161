//! Files that lie, one for every row of the hostile-input checklist of the format's description, and what they must get.
//!
//! The files come from `support/forge.rs`, a second VHDX writer that shares no code with the engine. A refusal is right when its
//! [`ErrorKind`](diffdisk::ErrorKind) and the structure its text names are right. Whatever the verdict: no panic, no byte changed by
//! reading, little memory, little time.

#[path = "support/alloc.rs"]
mod alloc;
#[path = "hostile/blocks.rs"]
mod blocks;
#[path = "support/forge.rs"]
mod forge;
#[path = "hostile/head.rs"]
mod head;
#[path = "hostile/journal.rs"]
mod journal;
#[path = "support/loud.rs"]
mod loud;
#[path = "hostile/meta.rs"]
mod meta;
#[path = "hostile/paths.rs"]
mod paths;
#[path = "hostile/table.rs"]
mod table;
#[path = "hostile/vectors.rs"]
mod vectors;
#[path = "hostile/writing.rs"]
mod writing;

use std::collections::BTreeSet;
use table::Table;

/// Rows that only show on paths or in writing have tests of their own in `paths.rs` and `writing.rs`; all others are in the table.
#[test]
fn every_row_gets_its_verdict() {
    let quiet = table::Quiet::new();
    let mut table = Table::default();
    head::rows(&mut table);
    journal::rows(&mut table);
    meta::rows(&mut table);
    blocks::rows(&mut table);
    head::negative_vectors(&mut table);
    let rows: BTreeSet<u32> = table.cases.iter().map(|case| case.row).filter(|&row| row > 0).collect();
    let mut failures = Vec::new();
    let mut most = (0, std::time::Duration::ZERO);
    for case in &table.cases {
        match table::judge(case) {
            Ok((memory, took)) => most = (most.0.max(memory), most.1.max(took)),
            Err(text) => failures.push(format!("row {}: {}: {text}", case.row, case.name)),
        }
    }
    drop(quiet);
    loud::loud(&format!(
        "hostile: {} files over {} rows, {} wrong answers, at most {} KiB and {} ms of CPU each",
        table.cases.len(),
        rows.len(),
        failures.len(),
        most.0 >> 10,
        most.1.as_millis()
    ));
    assert!(table.cases.len() >= 150, "only {} files", table.cases.len());
    assert_eq!(rows.len(), 44, "rows without a file: {:?}", (1..=44).filter(|row| !rows.contains(row)).collect::<Vec<_>>());
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), table.cases.len(), failures.join("\n"));
}

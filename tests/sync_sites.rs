//! Every place in the source that orders a sync stands in `docs/sync-sites.md`, with what breaks without it and the test that notices.
//!
//! A new site, a site that moved to another function, a second one in the same function, a name that is used twice, and a test that the
//! page names and nobody has: each fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CALLS: [&str; 7] = ["sync", "sync_all", "sync_data", "sync_dir", "sync_directory_of", "write_durable", "harden_entry"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        // The simulator and the tests order syncs for their own ends.
        let is_ours = !["sim", "tests", "loom_tests"].contains(&stem.as_str()) && !stem.ends_with("_tests");
        match path.is_dir() {
            true if stem != "sim" => sources(&path, found),
            false if is_ours && path.extension().is_some_and(|e| e == "rs") => found.push(path),
            _ => {}
        }
    }
}

/// The name that a line defines a function under.
fn function(line: &str) -> Option<String> {
    let (before, rest) = line.split_once("fn ")?;
    let is_definition =
        before.trim().split(' ').all(|word| word.is_empty() || word.starts_with("pub") || ["const", "unsafe", "async"].contains(&word));
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (is_definition && !name.is_empty()).then_some(name)
}

/// How often a line calls one of [`CALLS`].
fn calls(line: &str) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let called = |name: &str| {
        let needle = format!("{name}(");
        line.match_indices(&needle).filter(|(at, _)| !line[..*at].ends_with(is_word) && !line[..*at].ends_with("fn ")).count()
    };
    CALLS.iter().map(|name| called(name)).sum()
}

/// Calls by file and function.
type Sites = BTreeMap<(String, String), usize>;

/// What the source has: the calls, and the names of barriers with where they are used.
fn found() -> (Sites, BTreeMap<String, Vec<String>>) {
    let (mut paths, mut sites, mut names) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    sources(&root().join("src"), &mut paths);
    for path in paths {
        let name = path.strip_prefix(root().join("src")).expect("below src").to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(&path).expect("a readable source");
        let product = text.split("\n#[cfg(test)]\nmod ").next().and_then(|text| text.split("\n#[cfg(all(test").next()).expect("a part");
        let mut inside = String::new();
        for line in product.lines().filter(|line| !line.trim_start().starts_with("//")) {
            if let Some(function) = function(line) {
                inside = function;
            }
            let n = calls(line);
            if n > 0 {
                *sites.entry((name.clone(), inside.clone())).or_default() += n;
            }
            for (at, word) in line.match_indices("SyncSite::") {
                let site: String = line[at + word.len()..].chars().take_while(|c| c.is_alphanumeric()).collect();
                names.entry(site).or_insert_with(Vec::new).push(format!("{name} {inside}"));
            }
        }
    }
    (sites, names)
}

/// The rows of a table of the page: their cells, without backticks.
fn rows(page: &str, title: &str) -> Vec<Vec<String>> {
    let section = page.split("\n## ").find(|section| section.starts_with(title)).unwrap_or_else(|| panic!("no section {title:?}"));
    let lines = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines
        .filter(|line| !line.starts_with("| -"))
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

/// `file.rs name` in a cell about tests: the file has a test or function of that name.
fn names_tests(cell: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if cell.starts_with("argued: ") {
        return wrong;
    }
    for part in cell.split("; ") {
        let is_there = part.split_once(' ').is_some_and(|(file, test)| {
            let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
            text.contains(&format!("fn {test}("))
        });
        if !is_there {
            wrong.push(format!("no such test: {part:?}"));
        }
    }
    wrong
}

#[test]
fn every_sync_of_the_source_is_accounted_for() {
    let page = std::fs::read_to_string(root().join("docs/sync-sites.md")).expect("the page");
    let (sites, names) = found();
    let mut wrong = Vec::new();

    // Barriers in a disk's file: a name each, and one place that uses it.
    let barriers = rows(&page, "Barriers");
    let listed: BTreeSet<&String> = barriers.iter().map(|row| &row[0]).collect();
    for (name, places) in &names {
        if places.len() > 1 {
            wrong.push(format!("SyncSite::{name} is used at {places:?}: give each a name of its own"));
        }
        let row = barriers.iter().find(|row| row[0] == *name);
        match row {
            None => wrong.push(format!("SyncSite::{name} ({places:?}) is not on the page")),
            Some(row) if !places.contains(&row[1]) => wrong.push(format!("SyncSite::{name} is at {places:?}, and not at {:?}", row[1])),
            Some(row) => wrong.extend(names_tests(&row[3])),
        }
    }
    wrong.extend(listed.iter().filter(|name| !names.contains_key(**name)).map(|name| format!("SyncSite::{name} is used nowhere")));

    // All calls, those above included: how many there are in each function.
    let all = rows(&page, "Calls");
    for ((file, function), count) in &sites {
        let row = all.iter().find(|row| row[0] == format!("{file} {function}"));
        match row {
            None => wrong.push(format!("{file} {function} orders {count} syncs that are not on the page")),
            Some(row) if row[1] != count.to_string() => {
                wrong.push(format!("{file} {function} orders {count} syncs; the page says {}", row[1]))
            }
            Some(row) if row.len() > 3 => wrong.extend(names_tests(&row[3])),
            Some(_) => {}
        }
    }
    for row in &all {
        let there = sites.keys().any(|(file, function)| row[0] == format!("{file} {function}"));
        if !there {
            wrong.push(format!("{} orders no sync", row[0]));
        }
    }
    println!("sync sites: {} named barriers, {} calls in {} functions", names.len(), sites.values().sum::<usize>(), sites.len());
    assert!(names.len() > 20 && sites.len() > 25, "the source was found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

//! The rules of the house that a compiler does not know: which floor may use which, where `unsafe` and locks may stand, how long a
//! file may be, and what must not be left lying around.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Modules of the crate root and the floor each lives on. A module uses modules of its own floor and of floors below.
const FLOORS: [(&str, u32); 17] = [
    ("units", 0),
    ("geometry", 0),
    ("guid", 0),
    ("kind", 0),
    ("sync", 0),
    ("progress", 0),
    ("format", 1),
    ("storage", 2),
    ("log", 3),
    ("mapping", 4),
    ("disk", 5),
    ("chain", 6),
    ("tools", 7),
    ("image", 8),
    ("export", 9),
    ("sqlite", 9),
    ("bin", 10),
];
/// Lines of product code; house style asks for 600 and a reason beyond.
const LONGEST_FILE: usize = 700;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir).expect("a source directory").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&path) {
            found.push(path);
        }
    }
}

/// Unit tests that outgrew the foot of their file.
fn is_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_tests"))
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    sources(&root.join("src"), &mut found);
    assert!(found.len() > 40, "the source tree was found");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root.join("src")).expect("below src").to_string_lossy().replace('\\', "/");
            (name, std::fs::read_to_string(&path).expect("a readable source"))
        })
        .collect()
}

fn floor_of(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The part of a file that is product code: without what follows `#[cfg(test)]`.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().expect("split yields at least one part")
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn floors_only_look_down() {
    let mut wrong = String::new();
    for (name, text) in all_sources() {
        let module = name.split('/').next().expect("a first component").trim_end_matches(".rs").to_owned();
        if module == "lib" {
            continue;
        }
        let Some(floor) = floor_of(&module) else {
            writeln!(wrong, "{name}: module {module} has no floor; give it one in tests/tidy.rs").expect("strings take text");
            continue;
        };
        for (line, code) in code_lines(product(&text)) {
            for (at, _) in code.match_indices("crate::") {
                let used: String = code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(other) = floor_of(&used)
                    && other > floor
                {
                    writeln!(wrong, "{name}:{line}: floor {floor} ({module}) uses floor {other} ({used})").expect("strings take text");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn unsafe_and_locks_have_one_address() {
    let mut wrong = String::new();
    for (name, text) in all_sources() {
        for (line, code) in code_lines(&text) {
            // The second address registers the SQLite VFS: `docs/design/0006-sqlite-vfs.md`.
            // The third catches what reading a mapping may raise: `docs/design/0021-mapped-ancestors.md`.
            let may = ["storage/map.rs", "storage/guard.rs", "sqlite/register.rs"].contains(&name.as_str());
            if !may && (code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")) {
                writeln!(wrong, "{name}:{line}: unsafe outside of its three addresses").expect("strings take text");
            }
            if name != "sync.rs" && code.contains("parking_lot::") {
                writeln!(wrong, "{name}:{line}: a lock that does not come from sync.rs").expect("strings take text");
            }
        }
        let engine = ["log/", "mapping/", "disk/", "chain/"].iter().any(|floor| name.starts_with(floor));
        if engine && name != "chain/gate.rs" && !name.starts_with("chain/gate/") && product(&text).contains("std::fs::") {
            writeln!(wrong, "{name}: std::fs above floor 2").expect("strings take text");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn files_are_short_and_nothing_is_left_lying_around() {
    let markers = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!("];
    let mut wrong = String::new();
    for (name, text) in all_sources() {
        let lines = product(&text).lines().count();
        if lines > LONGEST_FILE {
            writeln!(wrong, "{name}: {lines} lines; {LONGEST_FILE} is the most").expect("strings take text");
        }
        for marker in markers.iter().filter(|marker| text.contains(**marker)) {
            writeln!(wrong, "{name}: {marker}").expect("strings take text");
        }
        if !text.trim_start().starts_with("//!") && name != "lib.rs" {
            writeln!(wrong, "{name}: does not say what it is for").expect("strings take text");
        }
        if product(&text).contains("#[allow(") {
            writeln!(wrong, "{name}: allow instead of expect").expect("strings take text");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

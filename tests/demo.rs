//! `diffdisk demo`, small: it does what it says, twice in the same place, and leaves alone what is not its own.
#![cfg(feature = "cli")]

use std::path::Path;
use std::process::{Command, Output};

fn demo(dir: &Path) -> Output {
    let args = ["demo", "--size", "4M", "--clones", "4", "--dir"];
    Command::new(env!("CARGO_BIN_EXE_diffdisk")).args(args).arg(dir).output().unwrap()
}

#[test]
fn the_demo_runs_and_runs_again() {
    let lab = tempfile::tempdir().unwrap();
    let dir = lab.path().join("demo");
    for round in 0..2 {
        let output = demo(&dir);
        let (table, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "round {round}: {said}");
        for line in ["one clone made in", "bit-identical", "4 copies would have taken", "diffdisk info dev-01.vhdx --chain"] {
            assert!(table.contains(line), "{line:?} is missing in {table}");
        }
        for name in ["stack.vhdx", "dev-01.vhdx", "dev-04.vhdx"] {
            assert!(dir.join(name).is_file(), "{name}");
        }
        std::fs::write(dir.join("mine.vhdx"), "of the user's").unwrap();
    }
    assert_eq!(std::fs::read_to_string(dir.join("mine.vhdx")).unwrap(), "of the user's");
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 7, "image, four clones, the mark, and what the user added: {left:?}");
}

#[test]
fn a_directory_with_something_in_it_is_left_alone() {
    let lab = tempfile::tempdir().unwrap();
    std::fs::write(lab.path().join("stack.vhdx"), "precious").unwrap();
    let output = demo(lab.path());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--dir"), "the message says what to do");
    assert_eq!(std::fs::read_to_string(lab.path().join("stack.vhdx")).unwrap(), "precious");
}

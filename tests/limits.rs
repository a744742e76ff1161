//! Limits of the process that the system enforces with a signal: the command must come back with an exit code all the same.

#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the command with a limit on the length of files, in KiB, and this standard input.
fn limited(dir: &Path, kib: u64, words: &str, input: &[u8]) -> Output {
    let script = format!("ulimit -f {kib} && exec {} {words} --json", env!("CARGO_BIN_EXE_diffdisk"));
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The command may stop reading long before the end.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// The limit used to kill the process with SIGXFSZ: no message, no exit code 8, and the hidden file of a creation left behind.
#[test]
fn a_file_size_limit_is_no_space_and_not_death() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let failed = limited(dir, 1024, "create fixed.vhdx --size 64M --fixed", b"");
    assert_eq!(failed.status.code(), Some(8), "{failed:?}");
    assert_eq!(names(dir), [""; 0], "nothing is left of a creation that failed");

    assert!(limited(dir, 1 << 20, "create a.vhdx --size 64M", b"").status.success());
    let failed = limited(dir, 8192, "write a.vhdx --offset 0", &vec![7; 32 << 20]);
    assert_eq!(failed.status.code(), Some(8), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("no_space"), "{failed:?}");
    let checked = limited(dir, 1 << 20, "check a.vhdx", b"");
    assert!(checked.status.success(), "{checked:?}");
    let again = limited(dir, 1 << 20, "write a.vhdx --offset 0", &vec![7; 4 << 20]);
    assert!(again.status.success(), "{again:?}");
}

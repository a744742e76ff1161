//! Commands as a script runs them.

use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A directory in which commands run, with a store and a raw disk.
pub struct Place {
    _dir: tempfile::TempDir,
    pub home: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let mut raw = vec![0; 5 << 20];
        raw[..9].copy_from_slice(b"the image");
        std::fs::write(home.join("db.img"), raw).unwrap();
        Self { _dir: dir, home }
    }

    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diffdisk"));
        command.current_dir(&self.home).args(args.split_whitespace()).stdin(Stdio::null());
        command.env("DIFFDISK_STORE", "images").env("USER", "tess");
        command
    }

    pub fn run(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn ok(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{args} --json"))).unwrap()
    }

    pub fn fails(&self, code: i32, args: &str) -> String {
        let output = self.run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args}: {message}");
        assert_eq!(message.lines().count(), 1, "one sentence: {message}");
        message
    }

    pub fn write(&self, file: &str, at: u64, content: &[u8]) {
        let mut child = self.command(&format!("write {file} --offset {at} --parents images")).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

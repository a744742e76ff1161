//! Commands that change a new image or a fresh clone before anybody sees it.
//!
//! A step is a program that gets the path of the disk, as its first argument and as `DIFFDISK_DISK` in its environment. It may do with
//! it what it wants, and leaves it closed. The first step that fails ends the whole act, and nothing is left of it.

use super::error::StoreError;
use super::record::StepCost;
use crate::progress::Cancel;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long to wait before looking whether a step has ended.
const POLL: Duration = Duration::from_millis(10);
/// How long to wait for what a failed step printed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of what a failed step printed is repeated, in bytes.
const REPEATED: usize = 500;

/// A command. See [`Step::shell`] and [`Step::script`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    kind: StepKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum StepKind {
    Shell(String),
    Script(PathBuf),
}

impl Step {
    /// A command line for the system's shell. The disk is `$1` and `$DIFFDISK_DISK` (`%DIFFDISK_DISK%` on Windows).
    pub fn shell(command: impl Into<String>) -> Self {
        Self { kind: StepKind::Shell(command.into()) }
    }

    /// A program or shell script.
    pub fn script(path: impl Into<PathBuf>) -> Self {
        Self { kind: StepKind::Script(path.into()) }
    }

    /// What it is called in reports.
    pub fn label(&self) -> String {
        match &self.kind {
            StepKind::Shell(command) => command.clone(),
            StepKind::Script(path) => path.display().to_string(),
        }
    }

    fn command(&self, disk: &Path) -> Command {
        let mut command = match &self.kind {
            StepKind::Shell(text) if cfg!(windows) => {
                let mut command = Command::new("cmd");
                command.arg("/C").arg(text);
                command
            }
            StepKind::Shell(text) => {
                let mut command = Command::new("sh");
                command.arg("-c").arg(text).arg("sh").arg(disk);
                command
            }
            StepKind::Script(path) => {
                // A bare name means the file here, not a program of that name somewhere.
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let mut command = if is_executable(&path) { Command::new(&path) } else { shell_with(&path) };
                command.arg(disk);
                command
            }
        };
        command.env("DIFFDISK_DISK", disk).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            // A group of its own, so that stopping it stops what it started.
            command.process_group(0);
        }
        command
    }

    /// Runs it on a disk that nobody has open.
    pub(super) fn run(&self, disk: &Path, cancel: &Cancel) -> Result<StepCost, StoreError> {
        let began = Instant::now();
        let before = allocated(disk);
        let failed = |outcome: String, output: String| StoreError::Step { step: self.label(), outcome, output };
        let mut child = self.command(disk).spawn().map_err(|e| failed(format!("cannot be started ({e})"), String::new()))?;
        let stderr = child.stderr.take();
        // A step that prints more than a pipe holds would wait for a reader. What it left running may hold the pipe open for ever, so
        // nobody waits for the reader for long.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(stderr.map_or_else(Vec::new, tail)));
        match wait(&mut child, cancel) {
            Ok(Some(status)) if status.success() => Ok(StepCost {
                step: self.label(),
                milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                allocated: i64::try_from(allocated(disk)).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX),
            }),
            Ok(Some(status)) => {
                let printed = receiver.recv_timeout(LAST_WORDS).unwrap_or_default();
                Err(failed(format!("ended with {status}"), String::from_utf8_lossy(&printed).trim().to_owned()))
            }
            Ok(None) => Err(StoreError::Cancelled { doing: "running a step", left: "nothing was made" }),
            Err(e) => Err(failed(format!("cannot be waited for ({e})"), String::new())),
        }
    }
}

/// Waits for the end; `None` when it was cancelled and killed.
fn wait(child: &mut Child, cancel: &Cancel) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if cancel.is_cancelled() {
            kill(child);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn kill(child: &mut Child) {
    #[cfg(unix)]
    {
        let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(group) = group {
            // If it ended in this moment there is nobody left to kill.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
    let _ = child.kill();
}

/// The end of what comes out of a pipe.
fn tail(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n) = pipe.read(&mut buffer) {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..n]);
        let surplus = kept.len().saturating_sub(REPEATED);
        kept.drain(..surplus);
    }
    kept
}

fn shell_with(script: &Path) -> Command {
    let mut command = Command::new(if cfg!(windows) { "cmd" } else { "sh" });
    if cfg!(windows) {
        command.arg("/C");
    }
    command.arg(script);
    command
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("exe"))
}

/// What the file system gave to a file; 0 where that cannot be known.
pub(super) fn allocated(path: &Path) -> u64 {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
    }
    #[cfg(not(unix))]
    {
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    }
}

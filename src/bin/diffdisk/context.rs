//! What every verb gets besides its arguments: how to print, how to show progress, and whether somebody pressed Ctrl-C.
//!
//! Standard output may go away in the middle (`diffdisk map big.vhdx | head`). That is the reader's decision and no failure: what a
//! verb prints after that is dropped, and its exit code stays what it would have been. Only `read`, whose work *is* its output, stops.

use crate::error::CliError;
use diffdisk::{Cancel, ErrorKind, Phase, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::cell::RefCell;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Handed to every verb.
#[derive(Debug)]
pub struct Context {
    json: bool,
    out: RefCell<BufWriter<Stdout>>,
    interrupt: OnceLock<Interrupt>,
}

impl Context {
    /// For this process.
    pub fn new(json: bool) -> Self {
        outlive_limits();
        Self { json, out: RefCell::new(BufWriter::new(io::stdout())), interrupt: OnceLock::new() }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the answer of a verb: `value` as one line of JSON, or what `human` writes.
    pub fn emit<T: Serialize + ?Sized>(&self, value: &T, human: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
        self.print(|out| {
            if self.json {
                serde_json::to_writer(&mut *out, value)?;
                writeln!(out)
            } else {
                human(out)
            }
        })
    }

    /// Prints a list of any length without holding it: a JSON array, one element per line, or a line of `human` for each.
    pub fn emit_list<T: Serialize>(
        &self,
        items: impl IntoIterator<Item = Result<T, CliError>>,
        mut human: impl FnMut(&mut dyn Write, &T) -> io::Result<()>,
    ) -> Result<(), CliError> {
        let mut before = "[\n";
        for item in items {
            let item = item?;
            self.print(|out| {
                if !self.json {
                    return human(out, &item);
                }
                out.write_all(before.as_bytes())?;
                serde_json::to_writer(&mut *out, &item).map_err(io::Error::from)
            })?;
            before = ",\n";
        }
        self.print(|out| match (self.json, before) {
            (false, _) => Ok(()),
            (true, "[\n") => writeln!(out, "[]"),
            (true, _) => writeln!(out, "\n]"),
        })
    }

    /// Lets `write` print on standard output. A reader that went away is no error.
    pub fn print(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
        forgive(write(&mut *self.out.borrow_mut()))
    }

    /// Writes bytes to standard output; `false` when the reader went away.
    pub fn write_out(&self, bytes: &[u8]) -> Result<bool, CliError> {
        match self.out.borrow_mut().write_all(bytes) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            result => result.map(|()| true).map_err(output_error),
        }
    }

    /// Sends what was printed on its way.
    pub fn flush(&self) -> Result<(), CliError> {
        forgive(self.out.borrow_mut().flush())
    }

    /// A bar on standard error, if that is a terminal and `--json` was not given.
    pub fn progress(&self, what: &'static str, total: u64) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let template = "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).expect("the template is right");
        ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_message(what)
    }

    /// What a long verb of the library takes: a bar, which goes when it is dropped, and the wish to stop, which is Ctrl-C.
    pub fn watch(&self) -> Result<(Bar, Cancel), CliError> {
        Ok((Bar(self.progress("", 0)), Cancel::from(self.interrupt()?.flag.clone())))
    }

    /// From the first call on, Ctrl-C (SIGTERM, SIGHUP) no longer ends the process but asks it to stop: verbs with something to
    /// clean up call this and look at the answer often.
    pub fn interrupt(&self) -> Result<&Interrupt, CliError> {
        if let Some(interrupt) = self.interrupt.get() {
            return Ok(interrupt);
        }
        let interrupt = Interrupt::default();
        let flag = Arc::clone(&interrupt.flag);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .map_err(|e| CliError::new(ErrorKind::Io, format!("cannot listen for Ctrl-C: {e}")))?;
        Ok(self.interrupt.get_or_init(|| interrupt))
    }
}

/// A bar that starts anew with every phase.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Progress for Bar {
    fn phase(&self, phase: Phase, total: Option<u64>) {
        self.0.set_message(phase.label());
        self.0.set_position(0);
        self.0.set_length(total.unwrap_or(0));
    }

    fn advance(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Whether somebody pressed Ctrl-C: a flag for library calls that take one.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    /// True once somebody did.
    pub flag: Arc<AtomicBool>,
}

/// A file size limit (`ulimit -f`) answers a write with SIGXFSZ, which ends the process in the middle of its work and leaves no exit
/// code. While the signal is masked the write fails with EFBIG, which is "no space" like any other. Threads that are started later
/// inherit the mask, programs do not.
fn outlive_limits() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};
        let mask = SigSet::from_iter([Signal::SIGXFSZ]);
        // Nobody was promised a limit; without the mask the process dies as it always did.
        let _ = mask.thread_block();
    }
}

fn forgive(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(output_error),
    }
}

fn output_error(e: io::Error) -> CliError {
    let inner = CliError::from(e);
    CliError::new(inner.kind(), format!("standard output: {inner}"))
}

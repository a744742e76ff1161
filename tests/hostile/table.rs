//! What a case is, and how one is judged.

use crate::alloc::measured;
use crate::forge::{Image, MIB};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Disk, ErrorKind, OpenOptions};
use std::cell::Cell;
use std::error::Error;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, panics of this thread print nothing: the table catches and counts them, and their text would drown it.
pub struct Quiet;

impl Quiet {
    pub fn new() -> Self {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info)
            }
        }));
        QUIET.set(true);
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(false);
    }
}

/// What opening the file and reading all of it must come to.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Fails with one of these kinds, and the text names one of these structures.
    Refuse(Vec<ErrorKind>, Vec<&'static str>),
    /// Opens, and these ranges (offset, length) hold this byte.
    Read(Vec<(u64, u64, u8)>),
    /// Opens; `check()` has an error that names one of these structures; opening it as untrusted refuses it.
    Report(Vec<&'static str>),
    /// `Refuse`, or `check()` has an error that names one of these.
    Fault(Vec<&'static str>),
    /// Both are sound answers: `Refuse` as damaged, or `Read`.
    Either(Vec<&'static str>, Vec<(u64, u64, u8)>),
}

pub struct Case {
    pub row: u32,
    pub name: String,
    /// Leaf first.
    pub chain: Vec<Image>,
    pub verdict: Verdict,
}

/// Collects the cases of one row after the other.
#[derive(Default)]
pub struct Table {
    pub cases: Vec<Case>,
}

impl Table {
    fn push(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, verdict: Verdict) {
        self.cases.push(Case { row, name: name.into(), chain, verdict });
    }

    pub fn damaged(&mut self, row: u32, name: impl Into<String>, image: Image, names: &[&'static str]) {
        self.push(row, name, vec![image], Verdict::Refuse(vec![ErrorKind::Damaged], names.to_vec()));
    }

    pub fn damaged_chain(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, names: &[&'static str]) {
        self.push(row, name, chain, Verdict::Refuse(vec![ErrorKind::Damaged], names.to_vec()));
    }

    pub fn unsupported(&mut self, row: u32, name: impl Into<String>, image: Image, names: &[&'static str]) {
        self.push(row, name, vec![image], Verdict::Refuse(vec![ErrorKind::Unsupported], names.to_vec()));
    }

    pub fn refused(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, kinds: &[ErrorKind], names: &[&'static str]) {
        self.push(row, name, chain, Verdict::Refuse(kinds.to_vec(), names.to_vec()));
    }

    pub fn reads(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, content: &[(u64, u64, u8)]) {
        self.push(row, name, chain, Verdict::Read(content.to_vec()));
    }

    pub fn reported(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, names: &[&'static str]) {
        self.push(row, name, chain, Verdict::Report(names.to_vec()));
    }

    pub fn faulty(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, names: &[&'static str]) {
        self.push(row, name, chain, Verdict::Fault(names.to_vec()));
    }

    pub fn either(&mut self, row: u32, name: impl Into<String>, chain: Vec<Image>, names: &[&'static str], content: &[(u64, u64, u8)]) {
        self.push(row, name, chain, Verdict::Either(names.to_vec(), content.to_vec()));
    }
}

/// The message of an error and of all it stands on, and what sort it is.
pub type Failure = (ErrorKind, String);

pub fn explain(kind: ErrorKind, error: &dyn Error) -> Failure {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let _ = write!(text, ": {cause}");
        below = cause.source();
    }
    (kind, text)
}

pub fn open(chain: &[Arc<MemoryStorage>], options: &OpenOptions) -> Result<Disk, Failure> {
    let mut all = chain.iter().map(|s| Arc::clone(s) as Arc<dyn Storage>);
    let leaf = all.next().expect("a chain has a leaf");
    Disk::open_on(leaf, all.collect(), options).map_err(|e| explain(e.kind(), &e))
}

/// Reads all of a small disk, and both ends of a large one, in steps of one MiB.
fn read_all(disk: &Disk, buf: &mut [u8]) -> Result<(), Failure> {
    let size = disk.size();
    let mut at = 0;
    while at < size {
        if at == 64 * MIB && size > 128 * MIB {
            at = (size - 32 * MIB).max(at);
        }
        let part = (size - at).min(buf.len() as u64);
        disk.read_at(&mut buf[..part as usize], at).map_err(|e| explain(e.kind(), &e))?;
        at += part;
    }
    Ok(())
}

/// What `check()` complains about: its errors, and its warnings.
fn complaints(disk: &Disk) -> Result<(Vec<String>, usize), Failure> {
    let report = disk.check().map_err(|e| explain(e.kind(), &e))?;
    let text = report.errors.iter().map(|f| f.to_string()).collect();
    Ok((text, report.warnings.len()))
}

fn names_one(text: &str, names: &[&str]) -> bool {
    names.iter().any(|name| text.to_lowercase().contains(&name.to_lowercase()))
}

fn content_is(disk: &Disk, content: &[(u64, u64, u8)]) -> Result<(), String> {
    for &(at, len, byte) in content {
        let mut buf = vec![!byte; len as usize];
        disk.read_at(&mut buf, at).map_err(|e| format!("reading {at:#x}: {e}"))?;
        if let Some(wrong) = buf.iter().position(|&b| b != byte) {
            return Err(format!("byte {:#x} is {:#04x} and not {byte:#04x}", at + wrong as u64, buf[wrong]));
        }
    }
    Ok(())
}

/// CPU time for opening the file and reading all of it. Tests are built with optimisation, and the CPU's time and not the wall's counts,
/// so a busy machine does not matter much; reading 64 MiB of disk content is part of some cases.
const LIMIT: Duration = Duration::from_millis(250);
/// Whatever the file claims, the log of 64 MiB included.
const MEMORY: u64 = 16 * MIB;

/// CPU time of this thread where the system says it, time otherwise.
fn clock() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| START.get_or_init(Instant::now).elapsed(), Duration::from_nanos)
}

/// Reads, checks and judges one case; says how much memory and time reading took, or what is wrong with the engine's answer.
pub fn judge(case: &Case) -> Result<(u64, Duration), String> {
    let files: Vec<_> = case.chain.iter().map(Image::storage).collect();
    let before: Vec<_> = files.iter().map(|f| fingerprint(f)).collect();
    let mut buf = vec![0; MIB as usize];
    let started = clock();
    let (outcome, _, memory) = measured(|| {
        catch_unwind(AssertUnwindSafe(|| {
            let disk = open(&files, &OpenOptions::new())?;
            read_all(&disk, &mut buf)?;
            Ok(disk)
        }))
    });
    let took = clock().saturating_sub(started);
    let outcome: Result<Disk, Failure> = outcome.map_err(|_| "PANIC".to_owned())?;
    weigh(&case.verdict, &outcome, &files)?;
    drop(outcome);
    let after: Vec<_> = files.iter().map(|f| fingerprint(f)).collect();
    if before != after {
        return Err("reading changed the file".to_owned());
    }
    if took > LIMIT {
        return Err(format!("took {took:?}"));
    }
    if memory > MEMORY {
        return Err(format!("took {} KiB of memory", memory >> 10));
    }
    poke(&files)?;
    Ok((memory, took))
}

fn weigh(verdict: &Verdict, outcome: &Result<Disk, Failure>, files: &[Arc<MemoryStorage>]) -> Result<(), String> {
    let refused = |kinds: &[ErrorKind], names: &[&str], failure: &Failure| {
        if !kinds.contains(&failure.0) {
            Err(format!("is {:?} and not one of {kinds:?}: {}", failure.0, failure.1))
        } else if !names_one(&failure.1, names) {
            Err(format!("the message names none of {names:?}: {}", failure.1))
        } else {
            Ok(())
        }
    };
    match (verdict, outcome) {
        (Verdict::Refuse(kinds, names), Err(failure)) => refused(kinds, names, failure),
        (Verdict::Fault(names) | Verdict::Either(names, _), Err(failure)) => refused(&[ErrorKind::Damaged], names, failure),
        (Verdict::Refuse(..), Ok(_)) => Err("was accepted".to_owned()),
        (Verdict::Read(_) | Verdict::Report(_), Err((kind, text))) => Err(format!("was refused ({kind:?}): {text}")),
        (Verdict::Read(content) | Verdict::Either(_, content), Ok(disk)) => {
            content_is(disk, content)?;
            let (errors, _) = complaints(disk).map_err(|(_, text)| format!("check failed: {text}"))?;
            if errors.is_empty() { Ok(()) } else { Err(format!("check complains: {errors:?}")) }
        }
        (Verdict::Report(names) | Verdict::Fault(names), Ok(disk)) => {
            let errors = match complaints(disk) {
                Ok((errors, _)) => errors,
                Err((_, text)) => vec![text],
            };
            if !errors.iter().any(|e| names_one(e, names)) {
                return Err(format!("check names none of {names:?}: {errors:?}"));
            }
            match open(files, &OpenOptions::new().untrusted(true)) {
                Err((ErrorKind::Damaged, _)) => Ok(()),
                Err((kind, text)) => Err(format!("untrusted: {kind:?}: {text}")),
                Ok(_) if matches!(verdict, Verdict::Fault(_)) => Ok(()),
                Ok(_) => Err("was accepted although called untrusted".to_owned()),
            }
        }
    }
}

/// Opens the file for writing and pokes it all over. Nothing is expected but survival: no panic, no byte of a parent changed, no byte of
/// the leaf's identifier changed, and none of its BAT, metadata or region tables where a block claims to lie over them.
fn poke(files: &[Arc<MemoryStorage>]) -> Result<(), String> {
    let parents: Vec<_> = files[1..].iter().map(|f| fingerprint(f)).collect();
    let head = bytes_of(&files[0], 0, 0x10000);
    let ok = catch_unwind(AssertUnwindSafe(|| {
        let Ok(disk) = open(files, &OpenOptions::new().writable(true)) else { return };
        for block in 0..8 {
            let at = block * MIB + 512;
            let _ = disk.write_at(&[0xEE; 4096], at);
        }
        let _ = disk.trim(0, disk.size());
        let _ = disk.write_zeroes(0, disk.size().min(MIB));
        let _ = disk.flush();
        let _ = disk.check();
        let _ = disk.close();
    }));
    ok.map_err(|_| "PANIC when written to".to_owned())?;
    if files[1..].iter().map(|f| fingerprint(f)).ne(parents) {
        return Err("a parent was written".to_owned());
    }
    if bytes_of(&files[0], 0, 0x10000) != head {
        return Err("the file type identifier was written".to_owned());
    }
    Ok(())
}

pub fn bytes_of(file: &MemoryStorage, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    let n = file.read_at(&mut buf, at).expect("memory can be read");
    buf.truncate(n);
    buf
}

/// Length and a hash of everything that is not a hole.
pub fn fingerprint(file: &MemoryStorage) -> (u64, u64) {
    let mut hash = 0_u64;
    let mut at = 0;
    while let Some((start, end)) = file.next_data(at).expect("memory can be searched") {
        let mut buf = vec![0; (end - start).min(MIB) as usize];
        let n = file.read_at(&mut buf, start).expect("memory can be read");
        // A file may end in the middle of a word.
        buf.truncate(n);
        buf.resize(n.next_multiple_of(8), 0);
        for (i, word) in buf.as_chunks::<8>().0.iter().enumerate() {
            let value = u64::from_le_bytes(*word);
            if value != 0 {
                let place = start + 8 * i as u64;
                hash = hash.wrapping_add(
                    (value ^ place.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(value | 1),
                );
            }
        }
        at = start + n as u64;
    }
    (file.len().expect("memory has a length"), hash)
}

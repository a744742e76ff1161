//! Every case of the corpus: real files of other people's software, made ones, and ones that break a rule.
//!
//! The corpus lies beside the repository (`../shared/corpus`) or where `DIFFDISK_CORPUS` says; without it the test says so and passes.
//! Cases are unpacked with holes kept, as many at a time as there are processors, into a temporary directory. A case that is to be accepted must have its digests
//! and probes, be content for `check()`, and be the same file afterwards; opened for writing and closed it must still have them. A
//! case to be refused must fail at opening or at reading. A case to be reported must get an error from `check()`.

#[path = "support/cases.rs"]
mod cases;
#[path = "support/digest.rs"]
mod digest;
#[path = "support/loud.rs"]
mod loud;
#[path = "support/unpack.rs"]
mod unpack;

use cases::find;
use diffdisk::{Disk, ErrorKind, OpenOptions, ParentPolicy};
use loud::loud;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use unpack::unpack;

/// Files up to this size are held against their sha256 in the corpus; larger ones only against themselves before and after.
const HASHED: u64 = 64 << 20;
/// Disks up to this size are read as a whole through `read_at`; larger ones only where `extents()` shows data.
const READ_WHOLE: u64 = 300 << 20;

struct Case {
    name: String,
    home: PathBuf,
    json: Value,
}

impl Case {
    fn text<'a>(&'a self, key: &str) -> &'a str {
        self.json[key].as_str().unwrap_or("")
    }

    fn chain(&self) -> Vec<&str> {
        self.json["chain"].as_array().expect("a chain").iter().map(|f| f.as_str().expect("a name")).collect()
    }
}

struct Unpacked {
    path: PathBuf,
    data: Vec<u64>,
    print: digest::Print,
}

impl Unpacked {
    fn is_unchanged(&self) -> Result<(), String> {
        let now = digest::print(&self.path, &self.data).map_err(|e| e.to_string())?;
        if now == self.print { Ok(()) } else { Err(format!("{} changed: {now:?}, was {:?}", self.path.display(), self.print)) }
    }
}

#[derive(Default)]
struct Counters {
    accepted: u32,
    refused: u32,
    reported: u32,
    files: u32,
    probes: u32,
}

impl Counters {
    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.reported += other.reported;
        self.files += other.files;
        self.probes += other.probes;
    }
}

fn judge(case: &Case, counters: &mut Counters) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    // Symbolic links on the way to the temporary directory are not the case's business.
    let home = dir.path().canonicalize().map_err(|e| e.to_string())?;
    let mut before = Vec::new();
    for (name, facts) in case.json["files"].as_object().expect("files") {
        let path = home.join(name);
        let data = unpack(&case.home.join(format!("{name}.xz")), &path)?;
        File::open(&path).and_then(|file| file.sync_data()).map_err(|e| e.to_string())?;
        counters.files += 1;
        let print = digest::print(&path, &data).map_err(|e| e.to_string())?;
        if Some(print.len) != facts["size"].as_u64() {
            return Err(format!("the corpus: {name} has {} bytes", print.len));
        }
        if print.len <= HASHED && Some(digest::sha256_of_file(&path).map_err(|e| e.to_string())?.as_str()) != facts["sha256"].as_str() {
            return Err(format!("the corpus: {name} has another sha256"));
        }
        before.push(Unpacked { path, data, print });
    }
    let leaf = home.join(case.chain()[0]);
    let options = || OpenOptions::new().parents(ParentPolicy::Beneath(vec![home.clone()]));
    let verdict = match case.text("expect") {
        "accept" => accept(case, &leaf, &options(), counters).inspect(|()| counters.accepted += 1),
        "refuse" => refuse(&leaf, &options()).inspect(|()| counters.refused += 1),
        "report" => report(&leaf, &options()).inspect(|()| counters.reported += 1),
        other => Err(format!("the corpus: what is \"{other}\"?")),
    };
    verdict?;
    for file in &before {
        file.is_unchanged().map_err(|e| format!("although only read: {e}"))?;
    }
    if case.text("expect") == "accept" {
        rewrite(case, &leaf, &options(), &before)?;
    }
    Ok(())
}

fn digests(case: &Case, disk: &Disk, with_sha256: bool) -> Result<(), String> {
    let want = &case.json["digest"];
    let with_sha256 = with_sha256 && want["sha256"].is_string();
    let (full, sparse) = digest::of_disk(disk, with_sha256, disk.size() <= READ_WHOLE)?;
    if want["sdigest"].as_str() != Some(&sparse) {
        return Err(format!("the sparse digest is {sparse}"));
    }
    if with_sha256 && want["sha256"].as_str() != Some(&full) {
        return Err(format!("the sha256 is {full}"));
    }
    Ok(())
}

fn accept(case: &Case, leaf: &Path, options: &OpenOptions, counters: &mut Counters) -> Result<(), String> {
    let disk = Disk::open(leaf, options).map_err(|e| format!("refused: {e}"))?;
    let info = disk.info().map_err(|e| format!("info: {e}"))?;
    let number = |key: &str| case.json[key].as_u64();
    let same = number("virtual_size") == Some(info.virtual_size)
        && number("block_size") == Some(info.block_size)
        && number("logical_sector") == Some(u64::from(info.logical_sector_size))
        && number("physical_sector") == Some(u64::from(info.physical_sector_size))
        && case.json["dirty"].as_bool() == Some(info.log_dirty)
        && case.text("type") == format!("{:?}", info.kind).to_lowercase()
        && info.chain.len() == case.chain().len();
    if !same {
        return Err(format!("info is {info:?}"));
    }
    digests(case, &disk, true)?;
    if disk.size() <= READ_WHOLE {
        let (_, sparse) = digest::of_disk(&disk, false, false)?;
        if case.json["digest"]["sdigest"].as_str() != Some(&sparse) {
            return Err("extents() call something zero that is not".to_owned());
        }
    }
    for probe in case.json["probes"].as_array().expect("probes") {
        let (at, len) = (probe[0].as_u64().expect("an offset"), probe[1].as_u64().expect("a length"));
        let mut buf = vec![0xAA; len as usize];
        disk.read_at(&mut buf, at).map_err(|e| format!("probe {at:#x}: {e}"))?;
        if Some(digest::sha256(&buf).as_str()) != probe[2].as_str() {
            return Err(format!("probe {at:#x}+{len:#x} differs"));
        }
        counters.probes += 1;
    }
    let report = disk.check().map_err(|e| format!("check: {e}"))?;
    match report.errors.first() {
        Some(f) => Err(format!("check: layer {}: {f}", f.layer)),
        None => Ok(()),
    }
}

fn refuse(leaf: &Path, options: &OpenOptions) -> Result<(), String> {
    let disk = match Disk::open(leaf, options) {
        Ok(disk) => disk,
        // Whatever the rule: the file or its parent is to blame, not the machine.
        Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported | ErrorKind::NotFound | ErrorKind::Denied) => {
            return Ok(());
        }
        Err(e) => return Err(format!("refused as {:?}: {e}", e.kind())),
    };
    match digest::of_disk(&disk, false, true) {
        Err(_) => Ok(()),
        Ok(_) => Err("was accepted and read".to_owned()),
    }
}

fn report(leaf: &Path, options: &OpenOptions) -> Result<(), String> {
    let Ok(disk) = Disk::open(leaf, options) else { return Ok(()) };
    match disk.check() {
        Ok(report) if report.errors.is_empty() => Err("check finds no fault".to_owned()),
        _ => Ok(()),
    }
}

/// Opened for writing (a dirty log is replayed to disk) and closed, the disk reads the same, is clean, and no parent changed.
fn rewrite(case: &Case, leaf: &Path, options: &OpenOptions, before: &[Unpacked]) -> Result<(), String> {
    let disk = Disk::open(leaf, &options.clone().writable(true)).map_err(|e| format!("writable: {e}"))?;
    disk.close().map_err(|e| format!("close: {e}"))?;
    let disk = Disk::open(leaf, options).map_err(|e| format!("after a session: {e}"))?;
    if disk.info().map_err(|e| format!("info: {e}"))?.log_dirty {
        return Err("the log is not empty after a session".to_owned());
    }
    digests(case, &disk, false).map_err(|e| format!("after a session: {e}"))?;
    for file in before.iter().filter(|file| file.path != leaf) {
        file.is_unchanged().map_err(|e| format!("a parent: {e}"))?;
    }
    Ok(())
}

#[test]
fn every_case_gets_its_verdict() {
    let home =
        std::env::var_os("DIFFDISK_CORPUS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"), PathBuf::from);
    if !home.is_dir() {
        loud(&format!("skipped: no corpus at {}", home.display()));
        return;
    }
    let only = std::env::var("DIFFDISK_CORPUS_ONLY").unwrap_or_default();
    let mut found = Vec::new();
    find(&home, &mut found);
    found.retain(|path| path.to_string_lossy().contains(&only));
    // Cases have nothing to do with one another: each processor takes the next one.
    let (next, done) = (AtomicUsize::new(0), Mutex::new((Counters::default(), Vec::new())));
    let work = || {
        while let Some(path) = found.get(next.fetch_add(1, Ordering::Relaxed)) {
            let text = std::fs::read_to_string(path).expect("the case can be read");
            let json = serde_json::from_str(&text).expect("a case is JSON");
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let case = Case { name, home: path.parent().expect("a directory").to_owned(), json };
            let mut counters = Counters::default();
            let result = judge(&case, &mut counters);
            let mut done = done.lock().unwrap();
            done.0.add(&counters);
            done.1.extend(result.err().map(|text| format!("{}: {text}", case.name)));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(work);
        }
    });
    let (counters, failures) = done.into_inner().unwrap();
    let Counters { accepted, refused, reported, files, probes } = counters;
    loud(&format!(
        "corpus: {accepted} accepted, {refused} refused, {reported} reported of {} cases; {files} files, {probes} probes; {} wrong answers",
        found.len(),
        failures.len()
    ));
    assert!(!found.is_empty(), "there is a corpus at {} but no case in it", home.display());
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

//! Processes that fight for one disk: at random moments they open it to write or to read, hold it, close it, or are killed with it.
//!
//! The test binary runs itself again; each process notes in one journal, a line at a time, when it has the disk and before it gives it
//! back. The journal is appended to, so its lines have an order that all agree on, and it is checked when all is over: nobody has the
//! disk beside a writer, counts that a writer flushed never go back, and after everybody was killed the disk opens at the first try.
//! `DIFFDISK_FIGHT_SECONDS` says for how long (3), `DIFFDISK_FIGHT_SEED` with which seed (drawn from the clock, and printed).
#![cfg(unix)]

#[path = "support/loud.rs"]
mod loud;

use diffdisk::{CreateOptions, Disk, ErrorKind, OpenOptions};
use loud::loud;
use std::collections::BTreeSet;
use std::fs::OpenOptions as FileOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PLACE: &str = "DIFFDISK_FIGHT_PLACE";
const SEED: &str = "DIFFDISK_FIGHT_SEED";
const PROCESSES: usize = 6;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (self.0 >> 33) % n
    }

    fn nap(&mut self, most: u64) {
        std::thread::sleep(Duration::from_micros(self.below(most)));
    }
}

/// Appends a line to the journal; one write, so that lines of two processes do not mix.
fn note(place: &Path, line: &str) {
    let mut file = FileOptions::new().append(true).create(true).open(place.join("journal")).expect("the journal");
    file.write_all(format!("{line}\n").as_bytes()).expect("a line");
}

fn count(disk: &Disk) -> u64 {
    let mut bytes = [0; 8];
    disk.read_at(&mut bytes, 0).expect("a read");
    u64::from_le_bytes(bytes)
}

/// Not a test of its own: what each process does until it is killed.
#[test]
fn fighter() {
    let (Some(place), Ok(seed)) = (std::env::var_os(PLACE), std::env::var(SEED)) else { return };
    let (place, mut rng, me) = (PathBuf::from(place), Rng(seed.parse().expect("a number")), std::process::id());
    loop {
        let writes = rng.below(3) > 0;
        let disk = match Disk::open(place.join("child.vhdx"), &OpenOptions::new().writable(writes)) {
            Ok(disk) => disk,
            Err(e) => {
                // What a killed writer left in the log may be replayed by somebody else at this moment; anything but "in use" is a find.
                if e.kind() != ErrorKind::InUse {
                    note(&place, &format!("{me} failed {e}"));
                }
                rng.nap(300);
                continue;
            }
        };
        note(&place, &format!("{me} {} {}", if writes { "writes" } else { "reads" }, count(&disk)));
        if writes {
            for _ in 0..rng.below(3) {
                let next = count(&disk) + 1;
                disk.write_at(&next.to_le_bytes(), 0).expect("a write");
                disk.flush().expect("a flush");
                note(&place, &format!("{me} flushed {next}"));
                rng.nap(1500);
            }
        }
        rng.nap(1500);
        note(&place, &format!("{me} leaves"));
        disk.close().expect("a close");
        rng.nap(400);
    }
}

fn spawn(place: &Path, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["fighter", "--exact", "--test-threads=1"]).env(PLACE, place).env(SEED, seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a process")
}

fn kill(place: &Path, child: &mut Child) {
    // Noted before and after: in between it may or may not have the disk.
    note(place, &format!("{} dying", child.id()));
    child.kill().expect("it is ours");
    let status = child.wait().expect("it ends");
    assert!(status.code().is_none(), "a process ended by itself: {status}");
    note(place, &format!("{} dead", child.id()));
}

#[derive(Debug, Default)]
struct Tally {
    writers: u64,
    readers: u64,
    flushes: u64,
    /// Kills of somebody who had the disk to write, and of these, how many of them somebody else followed.
    killed: u64,
}

/// Holds a journal against the rules.
fn check(journal: &str) -> Result<Tally, String> {
    let (mut writer, mut readers, mut dying): (Option<u32>, BTreeSet<u32>, BTreeSet<u32>) = Default::default();
    let (mut tally, mut flushed) = (Tally::default(), 0);
    for (number, line) in journal.lines().enumerate() {
        let wrong = |what: &str| Err(format!("line {}: {line}: {what}; writer {writer:?}, readers {readers:?}", number + 1));
        let mut words = line.splitn(3, ' ');
        let pid: u32 = words.next().and_then(|word| word.parse().ok()).ok_or("a line without a process")?;
        let (verb, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let number: u64 = rest.parse().unwrap_or_default();
        match verb {
            "writes" | "reads" => {
                if writer.is_some() || verb == "writes" && !readers.is_empty() {
                    return wrong("somebody else has the disk");
                }
                if number < flushed {
                    return wrong(&format!("{flushed} was flushed before"));
                }
                // Who is being killed may be gone before anybody notes it, and does not stand in the way of the next.
                let is_dying = dying.contains(&pid);
                if verb == "writes" {
                    (writer, tally.writers) = (Some(pid).filter(|_| !is_dying), tally.writers + 1);
                } else {
                    tally.readers += 1;
                    readers.extend((!is_dying).then_some(pid));
                }
            }
            "flushed" => {
                if writer.is_some_and(|writer| writer != pid) || number <= flushed {
                    return wrong("it does not have the disk, or a count goes back");
                }
                (flushed, tally.flushes) = (number, tally.flushes + 1);
            }
            "leaves" | "dying" => {
                tally.killed += u64::from(verb == "dying" && writer == Some(pid));
                writer = writer.filter(|writer| *writer != pid);
                readers.remove(&pid);
                if verb == "dying" {
                    dying.insert(pid);
                }
            }
            "dead" => drop(dying.remove(&pid)),
            _ => return wrong("neither opened nor in use"),
        }
    }
    Ok(tally)
}

#[test]
fn the_checker_notices() {
    for (journal, why) in [
        ("1 writes 0\n2 writes 0\n", "somebody else"),
        ("1 reads 0\n2 writes 0\n", "somebody else"),
        ("1 writes 0\n2 reads 0\n", "somebody else"),
        ("1 writes 0\n1 flushed 1\n1 leaves\n2 writes 0\n", "was flushed before"),
        ("1 writes 0\n1 flushed 1\n1 dying\n1 dead\n2 reads 0\n", "was flushed before"),
        ("1 failed the log is damaged\n", "neither"),
    ] {
        let error = check(journal).expect_err(journal);
        assert!(error.contains(why), "{error}");
    }
    let fine = "1 reads 0\n2 reads 0\n1 leaves\n2 leaves\n1 writes 0\n1 dying\n2 writes 0\n1 dead\n2 flushed 1\n2 leaves\n3 reads 1\n";
    assert_eq!(check(fine).expect("nothing is wrong").killed, 1);
}

#[test]
fn one_writer_and_a_dead_one_blocks_nobody() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")));
    let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    let (seed, seconds) = (number(SEED).unwrap_or(clock), number("DIFFDISK_FIGHT_SECONDS").unwrap_or(3));
    let (dir, mut rng) = (tempfile::tempdir().expect("a directory"), Rng(seed));
    let place = dir.path();
    Disk::create(place.join("base.vhdx"), &CreateOptions::dynamic(8 << 20)).expect("a base").close().expect("a close");
    let child = CreateOptions::child();
    Disk::create_child(place.join("child.vhdx"), place.join("base.vhdx"), &child).expect("a child").close().expect("a close");

    let (began, mut rounds) = (Instant::now(), 0_u64);
    let mut fighters: Vec<Child> = (0..PROCESSES).map(|_| spawn(place, rng.below(u64::MAX >> 34))).collect();
    while began.elapsed() < Duration::from_secs(seconds) {
        rng.nap(60_000);
        rounds += 1;
        if rng.below(6) > 0 {
            let one = rng.below(PROCESSES as u64) as usize;
            kill(place, &mut fighters[one]);
            fighters[one] = spawn(place, rng.below(u64::MAX >> 34));
            continue;
        }
        // All at once: whoever held it, the next one gets it, at the first try.
        fighters.iter_mut().for_each(|fighter| kill(place, fighter));
        let disk = Disk::open(place.join("child.vhdx"), &OpenOptions::new().writable(true));
        let disk = disk.unwrap_or_else(|e| panic!("seed {seed}: everybody is dead, and the disk does not open: {e}"));
        assert!(disk.check().expect("it can be checked").is_sound(), "seed {seed}");
        let me = std::process::id();
        note(place, &format!("{me} writes {}", count(&disk)));
        note(place, &format!("{me} leaves"));
        disk.close().expect("a close");
        fighters = (0..PROCESSES).map(|_| spawn(place, rng.below(u64::MAX >> 34))).collect();
    }
    fighters.iter_mut().for_each(|fighter| kill(place, fighter));
    let journal = std::fs::read_to_string(place.join("journal")).expect("a journal");
    let tally = check(&journal).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    let disk = Disk::open(place.join("child.vhdx"), &OpenOptions::new().writable(true)).expect("the last one gets it");
    assert!(disk.check().expect("it can be checked").is_sound());
    loud(&format!(
        "lock fight: {PROCESSES} processes, {seconds} s, seed {seed}: {} writers, {} readers, {} flushes, {rounds} rounds of kills, {} of them of a writer, 0 violations",
        tally.writers, tally.readers, tally.flushes, tally.killed
    ));
    assert!(tally.writers > 5 && tally.readers > 2 && tally.flushes > 5 && rounds > 3, "almost nobody fought: {tally:?}");
}

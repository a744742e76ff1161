//! `locator`: what a differencing disk may call its parent, against a directory full of traps.
//!
//! ```text
//! top/secret.vhdx          the parent's identity, content A5: never to be read
//! top/gate/child.vhdx      what is opened; its locator comes from the input
//! top/gate/parent.vhdx     the parent's identity, content 5A
//! top/gate/sub/parent.vhdx the same
//! top/gate/{link,dir,loop,pipe,raw}   links out, a link to itself, a FIFO, no VHDX
//! ```
//!
//! Whatever the locator says, a disk that opens stands on a 5A file inside of the gate. The bytes of a locator item are also parsed by
//! themselves, and what parses must survive being written and parsed again.

use super::forge::*;
use super::guard::bounded;
use super::open::pairs;
use super::source::Source;
use diffdisk::format::ParentLocator;
use diffdisk::units::FileOffset;
use diffdisk::{Disk, OpenOptions, ParentPolicy};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const OUT: u8 = 0xA5;
const IN: u8 = 0x5A;

fn filled(byte: u8) -> Vhdx {
    let mut disk = Vhdx::dynamic(4 * MIB, MIB as u32);
    disk.bat.insert(0, present(DATA_AT));
    disk.fill(DATA_AT, 4096, byte);
    disk.len = DATA_AT + MIB;
    disk
}

/// The directory, made once for a process. Named by its number, so that processes do not meet.
fn world() -> PathBuf {
    static WORLD: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let make = || -> std::io::Result<PathBuf> {
        let top = std::env::temp_dir().join(format!("diffdisk-fuzz-locator-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let gate = top.join("gate");
        fs::create_dir_all(gate.join("sub"))?;
        filled(OUT).build().write_to(&top.join("secret.vhdx"))?;
        filled(IN).build().write_to(&gate.join("parent.vhdx"))?;
        filled(IN).build().write_to(&gate.join("sub/parent.vhdx"))?;
        Vhdx::child_of(&filled(IN), "parent.vhdx").build().write_to(&gate.join("child.vhdx"))?;
        fs::write(gate.join("raw"), vec![OUT; 1 << 20])?;
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../secret.vhdx", gate.join("link"))?;
            std::os::unix::fs::symlink("..", gate.join("dir"))?;
            std::os::unix::fs::symlink("loop", gate.join("loop"))?;
            // Without `mkfifo` there is one trap less.
            let _ = std::process::Command::new("mkfifo").arg(gate.join("pipe")).status();
        }
        fs::canonicalize(top)
    };
    WORLD.get_or_init(|| make().expect("a directory can be made")).clone()
}

/// Removes the directory. Fuzzers do not come back from their loop, so only tests call this.
pub fn clean_up() {
    let _ = fs::remove_dir_all(world());
}

const PARTS: [&str; 24] = [
    ".",
    "..",
    "",
    "parent.vhdx",
    "secret.vhdx",
    "child.vhdx",
    "gate",
    "sub",
    "link",
    "dir",
    "loop",
    "pipe",
    "raw",
    "C:",
    "c:",
    "?",
    "UNC",
    "server",
    "Volume{26a21bda-a627-11d7-9931-806e6f6e6963}",
    "parent.vhdx:stream",
    "\u{0}",
    "\u{fffd}",
    "PARENT.VHDX",
    "GLOBALROOT",
];
const PREFIXES: [&str; 8] = ["", ".\\", "\\", "/", "\\\\", "\\\\?\\", "C:\\images\\", "TOP"];

/// A path out of words, or any bytes.
fn path(s: &mut Source<'_>) -> Vec<u8> {
    if s.byte() & 7 == 7 {
        return s.bytes(120).to_vec();
    }
    let mut text = match PREFIXES[s.pick(PREFIXES.len())] {
        "TOP" => format!("{}/", world().display()),
        prefix => prefix.to_owned(),
    };
    for i in 0..s.pick(7) {
        if i > 0 {
            text.push(if s.byte() & 1 == 0 { '\\' } else { '/' });
        }
        text.push_str(PARTS[s.pick(PARTS.len())]);
    }
    let mut bytes = utf16(&text);
    if s.byte() & 15 == 15 && !bytes.is_empty() {
        let at = s.byte() as usize % bytes.len();
        bytes[at] = s.byte();
    }
    bytes
}

/// The three paths and the identity, mostly; or any pairs.
fn item(s: &mut Source<'_>) -> Vec<u8> {
    let how = s.byte();
    let mut locator = Locator::new(BASE_IDS.1, "");
    locator.pairs.truncate(1);
    if how & 7 == 7 {
        locator.pairs = pairs(s);
    } else {
        for (key, wanted) in ["relative_path", "volume_path", "absolute_win32_path"].into_iter().zip([1, 2, 4]) {
            if how & (wanted << 3) != 0 || wanted == 1 {
                locator.pairs.push((utf16(key), path(s)));
            }
        }
    }
    let mut bytes = locator.encode();
    if how & 0xC0 == 0xC0 {
        for _ in 0..1 + s.pick(3) {
            let at = s.pick(bytes.len().min(256));
            bytes[at] = s.byte();
        }
    }
    bytes
}

fn parses_both_ways(bytes: &[u8]) {
    let at = FileOffset::new(METADATA_AT + 0x10028);
    let Ok(locator) = bounded("parsing", 0, || ParentLocator::parse(at, bytes)) else { return };
    let again = ParentLocator::parse(at, &locator.encode());
    assert_eq!(again.as_ref(), Ok(&locator), "a locator written and read is another one");
    assert!(locator.paths().len() <= 3 && locator.linkage().is_ok());
}

/// Puts the locator into the child. In place: making the file anew costs a hundred times as much.
fn put_item(path: &Path, item: &[u8]) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    let mut put = |at: u64, bytes: &[u8]| file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes));
    put(METADATA_AT + 32 * 6 + 20, &(item.len() as u32).to_le_bytes())?;
    put(METADATA_AT + 0x10028, item)
}

/// The body.
pub fn run(input: &[u8]) {
    let mut s = Source::new(input);
    let policy = s.byte();
    let item = item(&mut s);
    parses_both_ways(&item);

    let gate = world().join("gate");
    let path = gate.join("child.vhdx");
    put_item(&path, &item).expect("the child can be written");
    let mut options = OpenOptions::new().writable(policy & 8 != 0).map_ancestors(policy & 16 != 0);
    if policy & 1 == 1 {
        options = options.windows_paths(vec![("C:\\images".to_owned(), gate.join("sub"))]);
    }
    if policy & 6 == 6 {
        options = options.parents(ParentPolicy::Beneath(vec![gate.join("sub"), gate.join("nowhere")]));
    }
    bounded("opening", 0, || {
        let disk = match Disk::open(&path, &options) {
            Ok(disk) => disk,
            Err(e) => return assert!(e.to_string().len() < 10_000, "an error of {} characters", e.to_string().len()),
        };
        let info = disk.info().expect("an open disk can be described");
        let parent = info.chain.get(1).and_then(|layer| layer.path.clone()).expect("it has a parent in a file");
        let real = fs::canonicalize(&parent).expect("the parent is there");
        assert!(real.starts_with(&gate), "a parent outside of the gate: {}", real.display());
        let mut buf = [0; 4096];
        disk.read_at(&mut buf, 0).expect("the parent can be read");
        assert_eq!(buf, [IN; 4096], "bytes of another file");
    });
}

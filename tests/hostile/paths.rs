//! Rows 37 and 38 on a real directory: what a parent locator may lead to.

use crate::forge::*;
use crate::table::{Failure, explain};
use diffdisk::{Disk, ErrorKind, OpenOptions, ParentPolicy};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn base() -> Vhdx {
    let mut disk = Vhdx::dynamic(4 * MIB, MIB as u32);
    disk.bat.insert(0, present(DATA_AT));
    disk.fill(DATA_AT, MIB, 0xA0);
    disk.len = DATA_AT + MIB;
    disk
}

/// `top/secret.vhdx` is a base, `top/inside/base.vhdx` the same base, `top/inside/child.vhdx` names its parent as told.
fn world(relative: &str) -> TempDir {
    let top = tempfile::tempdir().unwrap();
    let inside = top.path().join("inside");
    fs::create_dir(&inside).unwrap();
    base().build().write_to(&top.path().join("secret.vhdx")).unwrap();
    base().build().write_to(&inside.join("base.vhdx")).unwrap();
    Vhdx::child_of(&base(), relative).build().write_to(&inside.join("child.vhdx")).unwrap();
    top
}

fn open(child: &Path, options: &OpenOptions) -> Result<Disk, Failure> {
    let started = Instant::now();
    let result = Disk::open(child, options).map_err(|e| explain(e.kind(), &e));
    assert!(started.elapsed() < Duration::from_secs(1), "opening took {:?}", started.elapsed());
    result
}

fn open_default(top: &TempDir) -> Result<Disk, Failure> {
    open(&top.path().join("inside/child.vhdx"), &OpenOptions::new())
}

fn first_byte(disk: &Disk) -> u8 {
    let mut byte = [0];
    disk.read_at(&mut byte, 0).unwrap();
    byte[0]
}

fn must_refuse(what: &str, result: Result<Disk, Failure>) -> String {
    match result {
        Ok(_) => panic!("{what} was accepted"),
        Err((kind, text)) => {
            let kinds = [ErrorKind::Denied, ErrorKind::NotFound, ErrorKind::Damaged, ErrorKind::Unsupported];
            assert!(kinds.contains(&kind), "{what}: {kind:?}: {text}");
            text
        }
    }
}

#[test]
fn a_parent_beside_or_below_the_child_is_found() {
    for relative in ["base.vhdx", r".\base.vhdx", r".\.\base.vhdx", r".\deep er\..\base.vhdx", r".\deep er\base.vhdx"] {
        let top = world(relative);
        fs::create_dir(top.path().join("inside/deep er")).unwrap();
        fs::copy(top.path().join("inside/base.vhdx"), top.path().join("inside/deep er/base.vhdx")).unwrap();
        let disk = open_default(&top).unwrap_or_else(|e| panic!("{relative}: {e:?}"));
        assert_eq!(first_byte(&disk), 0xA0);
    }
}

#[test]
fn paths_that_leave_the_gate_are_refused() {
    for relative in [
        r"..\secret.vhdx",
        r".\..\secret.vhdx",
        r"..\..\..\..\..\..\..\..\..\etc\shadow",
        r"../secret.vhdx",
        r".\..\inside\..\secret.vhdx",
        "/etc/shadow",
        r"\etc\shadow",
        r"C:\secret.vhdx",
        r"C:base.vhdx",
        r"\\host\share\base.vhdx",
        r"\\?\C:\base.vhdx",
        r"\\?\UNC\host\share\base.vhdx",
        r"\\.\PhysicalDrive0",
        r"base.vhdx:stream",
        r".",
        r"..",
        "/dev/zero",
        "/proc/self/mem",
    ] {
        must_refuse(relative, open_default(&world(relative)));
    }
}

#[test]
fn a_refusal_does_not_say_whether_the_file_exists() {
    let top = world(r"..\secret.vhdx");
    let there = must_refuse("a secret", open_default(&top));
    fs::remove_file(top.path().join("secret.vhdx")).unwrap();
    let gone = must_refuse("nothing", open_default(&top));
    assert_eq!(there, gone);
}

#[test]
fn the_policy_decides() {
    let top = world(r"..\secret.vhdx");
    let child = top.path().join("inside/child.vhdx");
    let with = |policy| open(&child, &OpenOptions::new().parents(policy));
    assert_eq!(first_byte(&with(ParentPolicy::Anywhere).unwrap()), 0xA0);
    assert_eq!(first_byte(&with(ParentPolicy::Beneath(vec![top.path().to_owned()])).unwrap()), 0xA0);
    assert_eq!(first_byte(&with(ParentPolicy::Paths(vec![top.path().join("secret.vhdx")])).unwrap()), 0xA0);
    // The child alone can be looked into, but no byte of a parent comes out of it.
    if let Ok(alone) = with(ParentPolicy::Deny) {
        let mut byte = [7];
        assert!(alone.read_at(&mut byte, 0).is_err());
        assert_ne!(byte[0], 0xA0, "no byte of the parent");
    }
    must_refuse("another directory", with(ParentPolicy::Beneath(vec![top.path().join("inside")])));
    must_refuse("no parent given", with(ParentPolicy::Paths(Vec::new())));
}

#[cfg(unix)]
#[test]
fn links_out_of_the_gate_are_not_followed() {
    use std::os::unix::fs::symlink;
    let top = world("link.vhdx");
    symlink(top.path().join("secret.vhdx"), top.path().join("inside/link.vhdx")).unwrap();
    must_refuse("a link out", open_default(&top));
    let top = world(r"dir\secret.vhdx");
    symlink(top.path(), top.path().join("inside/dir")).unwrap();
    must_refuse("a directory link out", open_default(&top));
    let top = world("link.vhdx");
    symlink("link.vhdx", top.path().join("inside/link.vhdx")).unwrap();
    must_refuse("a link to itself", open_default(&top));
}

#[test]
fn what_is_no_vhdx_is_no_parent() {
    let top = world("dir");
    fs::create_dir(top.path().join("inside/dir")).unwrap();
    must_refuse("a directory", open_default(&top));
    let top = world("raw.img");
    Image::raw(64 * MIB).write_to(&top.path().join("inside/raw.img")).unwrap();
    must_refuse("a raw image", open_default(&top));
    let top = world("empty");
    fs::write(top.path().join("inside/empty"), b"").unwrap();
    must_refuse("an empty file", open_default(&top));
    let top = world("other.vhdx");
    let mut other = base();
    other.data_write = guid(12);
    other.build().write_to(&top.path().join("inside/other.vhdx")).unwrap();
    let text = must_refuse("another disk", open_default(&top));
    for id in [BASE_IDS.1, guid(12)] {
        assert!(text.contains(guid_text(id).trim_matches(['{', '}'])), "both GUIDs are named: {text}");
    }
}

#[cfg(unix)]
#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let top = world("pipe");
    let made = std::process::Command::new("mkfifo").arg(top.path().join("inside/pipe")).status();
    if !made.is_ok_and(|s| s.success()) {
        crate::loud::loud("skipped: a FIFO as parent (no mkfifo)");
        return;
    }
    must_refuse("a FIFO", open_default(&top));
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let top = tempfile::tempdir().unwrap();
    let mut selfish = Vhdx::child_of(&base(), "self.vhdx");
    selfish.data_write = base().data_write;
    let path = top.path().join("self.vhdx");
    selfish.build().write_to(&path).unwrap();
    must_refuse("its own parent", open(&path, &OpenOptions::new()));
    fs::hard_link(&path, top.path().join("link.vhdx")).unwrap();
    let mut alias = selfish.clone();
    alias.set_locator(&Locator::new(base().data_write, "link.vhdx"));
    alias.build().write_to(&path).unwrap();
    must_refuse("its own parent by a hard link", open(&path, &OpenOptions::new()));

    for i in 0..3_u128 {
        let mut next = Vhdx::child_of(&base(), &format!("{}.vhdx", (i + 1) % 3));
        next.data_write = guid(100 + i);
        next.set_locator(&Locator::new(guid(100 + (i + 1) % 3), &format!("{}.vhdx", (i + 1) % 3)));
        next.build().write_to(&top.path().join(format!("{i}.vhdx"))).unwrap();
    }
    must_refuse("a cycle of three", open(&top.path().join("0.vhdx"), &OpenOptions::new()));
}

#[test]
fn a_chain_of_thousands_is_refused_in_time() {
    let top = tempfile::tempdir().unwrap();
    let depth = 2_000_u128;
    base().build().write_to(&top.path().join("0.vhdx")).unwrap();
    for i in 1..=depth {
        let mut next = Vhdx::child_of(&base(), &format!("{}.vhdx", i - 1));
        next.data_write = guid(i);
        let linkage = if i == 1 { base().data_write } else { guid(i - 1) };
        next.set_locator(&Locator::new(linkage, &format!("{}.vhdx", i - 1)));
        next.build().write_to(&top.path().join(format!("{i}.vhdx"))).unwrap();
    }
    must_refuse("2000 parents", open(&top.path().join(format!("{depth}.vhdx")), &OpenOptions::new()));
    assert_eq!(first_byte(&open(&top.path().join("64.vhdx"), &OpenOptions::new()).unwrap()), 0xA0);
}

#[test]
fn a_wrong_candidate_does_not_hide_the_right_one() {
    let top = world("base.vhdx");
    let mut child = Vhdx::child_of(&base(), "wrong.vhdx");
    let mut locator = Locator::new(base().data_write, "wrong.vhdx");
    locator.pairs.push((utf16("absolute_win32_path"), utf16(r"C:\images\right.vhdx")));
    child.set_locator(&locator);
    child.build().write_to(&top.path().join("inside/child.vhdx")).unwrap();
    let mut wrong = base();
    wrong.data_write = guid(12);
    wrong.build().write_to(&top.path().join("inside/wrong.vhdx")).unwrap();
    base().build().write_to(&top.path().join("inside/right.vhdx")).unwrap();
    let mapped = OpenOptions::new().windows_paths(vec![(r"C:\images".to_owned(), top.path().join("inside"))]);
    assert_eq!(first_byte(&open(&top.path().join("inside/child.vhdx"), &mapped).unwrap()), 0xA0);
    must_refuse("no table for C:", open_default(&top));
}

//! One kind of call, a given number of times, for tools that count: `instructions KIND COUNT`.
//!
//! Not a benchmark: `.ci/instructions` runs it under callgrind and strace with two counts and subtracts, so that neither noise nor the
//! preparation matters. What a plain file costs in the same loop is subtracted as well. Without arguments it does nothing, so that
//! `cargo bench` may call it.

#[path = "support/positioned.rs"]
mod positioned;
#[path = "support/ground.rs"]
mod support;

use diffdisk::{CreateOptions, Disk, OpenOptions};
use positioned::Positioned;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use support::{Buffer, PAGE};

const MIB: u64 = 1 << 20;
/// Virtual bytes of the disk.
const SIZE: u64 = 16 * MIB;
const PAGES: u64 = SIZE / PAGE as u64;

/// A base, a child with every other page of its own, and a child of that: two levels above the base.
fn chain(dir: &Path) {
    let content = Buffer::new(MIB as usize);
    let path = |name: &str| dir.join(name);
    let base = Disk::create(path("base"), &CreateOptions::dynamic(SIZE).durable(false)).expect("the base is created");
    for at in (0..SIZE).step_by(MIB as usize) {
        base.write_at(content.get(), at).expect("the base is written");
    }
    base.close().expect("the base is closed");
    let child = |name: &str, parent: &str| {
        Disk::create_child(path(name), path(parent), &CreateOptions::child().durable(false)).expect("a child is created")
    };
    child("middle", "base").close().expect("the middle is closed");
    let leaf = child("leaf", "middle");
    for at in (0..SIZE).step_by(2 * PAGE) {
        leaf.write_at(&content.get()[..PAGE], at).expect("the leaf is written");
    }
    leaf.close().expect("the leaf is closed");
    std::fs::write(path("plain"), vec![1; SIZE as usize]).expect("the plain file is written");
}

/// Every page once, in an order that jumps; those of the leaf are even.
fn place(i: u64, parity: u64) -> u64 {
    ((i * 0x9E37) % (PAGES / 2) * 2 + parity) * PAGE as u64
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(kind), Some(count)) = (arguments.next(), arguments.next()) else {
        println!("instructions: nothing to do without KIND and COUNT; .ci/instructions calls this");
        return;
    };
    let count: u64 = count.parse().expect("COUNT is a number");
    let dir = support::scratch_dir();
    chain(dir.path());
    let mut buf = Buffer::new(PAGE);
    let plain = File::options().read(true).write(true).open(dir.path().join("plain")).expect("the plain file opens");
    let open = |writable, mapped| {
        Disk::open(dir.path().join("leaf"), &OpenOptions::new().writable(writable).map_ancestors(mapped)).expect("the chain opens")
    };
    let read = |disk: &Disk, parity, buf: &mut Buffer| {
        // Tables are read on first touch; that is no part of a hot read.
        for i in 0..PAGES / 2 {
            disk.read_at(buf.get_mut(), place(i, parity)).expect("the disk is read");
        }
        for i in 0..count {
            disk.read_at(buf.get_mut(), place(i, parity)).expect("the disk is read");
            black_box(buf.get()[0]);
        }
    };
    match kind.as_str() {
        "plain-read" => {
            for i in 0..count {
                plain.read_exact_at(buf.get_mut(), place(i, 0)).expect("the plain file is read");
                black_box(buf.get()[0]);
            }
        }
        "plain-write" => {
            for i in 0..count {
                plain.write_all_at(buf.get(), place(i, 0)).expect("the plain file is written");
            }
        }
        "plain-copy" => {
            let source = Buffer::new(SIZE as usize);
            for i in 0..count {
                let at = place(i, 0) as usize;
                buf.get_mut().copy_from_slice(black_box(&source.get()[at..at + PAGE]));
                black_box(buf.get()[0]);
            }
        }
        "read-base" => read(&open(false, false), 1, &mut buf),
        "read-base-writable" => read(&open(true, false), 1, &mut buf),
        "read-base-mapped" => read(&open(false, true), 1, &mut buf),
        "read-own" => read(&open(false, false), 0, &mut buf),
        "read-own-writable" => read(&open(true, false), 0, &mut buf),
        "rewrite" => {
            let disk = open(true, false);
            disk.write_at(buf.get(), place(0, 0)).expect("the session begins");
            for i in 0..PAGES / 2 {
                disk.write_at(buf.get(), place(i, 0)).expect("the disk is written");
            }
            for i in 0..count {
                disk.write_at(buf.get(), place(i, 0)).expect("the disk is written");
            }
        }
        other => panic!("no such kind: {other}"),
    }
}

//! A clone served over NBD: two clients at once against a model, block status against the layers, and the parent untouched.
#![cfg(all(unix, feature = "nbd"))]

#[expect(dead_code, reason = "the probe device belongs to the other user of this module")]
#[path = "support/nbd.rs"]
mod support;

use diffdisk::export::DEPTH_NONE;
use diffdisk::export::nbd::proto::{cmd_flag, flag};
use diffdisk::export::nbd::{Export, NbdServer};
use diffdisk::{CreateOptions, Disk, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use support::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB + 512;

fn options() -> CreateOptions {
    CreateOptions::dynamic(SIZE).block_size(MIB)
}

/// A parent with data at 2..5 MiB and zeroed space at 6..7 MiB, and a child of it.
fn family(directory: &Path) -> (Vec<u8>, Disk) {
    let parent = Disk::create(directory.join("parent.vhdx"), &options()).unwrap();
    let mut model = vec![0; SIZE as usize];
    model[2 << 20..5 << 20].fill(0xa5);
    parent.write_at(&model[2 << 20..5 << 20], 2 * MIB).unwrap();
    parent.close().unwrap();
    let child = Disk::create_child(directory.join("child.vhdx"), directory.join("parent.vhdx"), &CreateOptions::child()).unwrap();
    (model, child)
}

#[test]
fn block_status_names_the_layer() {
    let directory = tempfile::tempdir().unwrap();
    let (_, child) = family(directory.path());
    let path = directory.path().join("s");
    let server = NbdServer::new().export(Export::new("", Arc::new(child))).unix(&path).spawn().unwrap();
    let mut c = Client::open(&path, "");
    assert_eq!(c.size, SIZE);
    assert_eq!(c.write(3 * MIB, &[1; 4096]), 0);
    assert_eq!(c.ask(WRITE_ZEROES, cmd_flag::FAST_ZERO, 4 * MIB, MIB as u32, &[]).error, 0);
    assert_eq!(c.ask(WRITE_ZEROES, cmd_flag::FAST_ZERO, 4 * MIB + 1, 512, &[]).error, 95, "a part of a block");
    assert_eq!(c.ask(WRITE_ZEROES, cmd_flag::NO_HOLE, 8 * MIB, 4096, &[]).error, 0);
    let outcome = c.ask(BLOCK_STATUS, 0, 0, 9 << 20, &[]);
    let mib = MIB as u32;
    let allocation = [(2 * mib, 3), (2 * mib, 0), (4 * mib, 3), (4096, 0), (mib - 4096, 3)];
    assert_eq!(outcome.status[0], (1, allocation.to_vec()));
    let depth =
        [(2 * mib, DEPTH_NONE), (mib, 1), (4096, 0), (mib - 4096, 1), (mib, 0), (3 * mib, DEPTH_NONE), (4096, 0), (mib - 4096, DEPTH_NONE)];
    assert_eq!(outcome.status[1], (2, depth.to_vec()));
    server.stop().unwrap();
}

#[test]
fn random_changes_by_two_clients_end_in_a_sound_clone() {
    let directory = tempfile::tempdir().unwrap();
    let (mut model, child) = family(directory.path());
    let parent_before = std::fs::read(directory.path().join("parent.vhdx")).unwrap();
    let child = Arc::new(child);
    let path = directory.path().join("s");
    let server = NbdServer::new().export(Export::new("alice", child.clone())).unix(&path).spawn().unwrap();
    let mut clients = [Client::open(&path, "alice"), Client::open_simple(&path, "alice")];
    let mut dice = Dice(0xfeed_5eed);
    for step in 0..1500 {
        let c = &mut clients[dice.roll(2) as usize];
        let len = dice.roll([600, 9000, 200_000, 3 << 20][step % 4]) + 1;
        let offset = dice.roll(SIZE - len + 1);
        let range = offset as usize..(offset + len) as usize;
        let fua = if dice.roll(20) == 0 { cmd_flag::FUA } else { 0 };
        match dice.roll(6) {
            0 | 1 => {
                let fill = dice.roll(256) as u8;
                assert_eq!(c.ask(WRITE, fua, offset, len as u32, &vec![fill; len as usize]).error, 0);
                model[range].fill(fill);
            }
            2 => {
                assert_eq!(c.ask(WRITE_ZEROES, fua, offset, len as u32, &[]).error, 0);
                model[range].fill(0);
            }
            3 => {
                assert_eq!(c.ask(TRIM, fua, offset, len as u32, &[]).error, 0);
                let (first, last) = (offset.div_ceil(MIB) * MIB, (offset + len) / MIB * MIB);
                // The last, partial block counts as whole when the range reaches the end.
                let last = if offset + len == SIZE { SIZE } else { last };
                if first < last {
                    model[first as usize..last as usize].fill(0);
                }
            }
            _ => assert!(c.read_back(offset, len as u32) == model[range], "step {step}: {len} bytes at {offset}"),
        }
    }
    // Not flushed by any client: the stop does it.
    server.stop().unwrap();
    drop(clients);
    let child = Arc::into_inner(child).expect("the server has let go");
    assert_eq!(child.check().unwrap().errors, []);
    child.close().unwrap();
    let child = Disk::open(directory.path().join("child.vhdx"), &OpenOptions::new()).unwrap();
    let mut all = vec![0; SIZE as usize];
    child.read_at(&mut all, 0).unwrap();
    assert!(all == model);
    assert!(std::fs::read(directory.path().join("parent.vhdx")).unwrap() == parent_before, "the parent is never written");
}

#[test]
fn a_disk_opened_read_only_is_exported_read_only() {
    let directory = tempfile::tempdir().unwrap();
    let (model, child) = family(directory.path());
    child.close().unwrap();
    let child = Disk::open(directory.path().join("child.vhdx"), &OpenOptions::new()).unwrap();
    let path = directory.path().join("s");
    let server = NbdServer::new().export(Export::new("", Arc::new(child))).unix(&path).spawn().unwrap();
    let mut c = Client::open(&path, "");
    assert_ne!(c.flags & flag::READ_ONLY, 0);
    assert_eq!(c.write(0, b"no"), 1);
    assert!(c.read_back(0, 8 << 20) == model[..8 << 20]);
    server.stop().unwrap();
}

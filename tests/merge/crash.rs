//! A power cut after any storage call of a merge or a flattening, with any legal subset of what was in flight: the disk shows what it
//! showed, and going on ends where an undisturbed run ends.

use super::chain::{MIB, content, scribble};
use super::{each_crash, setting};
use diffdisk::storage::Storage;
use diffdisk::storage::sim::{Fixed, Rng, SimStorage, SimWorld};
use diffdisk::{Cancel, CreateOptions, Disk, NoProgress, OpenOptions, merge_into_on};
use std::sync::Arc;

struct Pair {
    world: SimWorld,
    base: Arc<SimStorage>,
    child: Arc<SimStorage>,
    shown: Vec<u8>,
}

/// A base and a child in a simulated world.
fn pair(seed: u64, base_size: u64, child_size: u64, base_blocks: u64) -> Pair {
    let world = SimWorld::new(seed);
    let (base, child) = (world.create("base"), world.create("child"));
    let mut rng = Rng::new(seed);
    let disk = Disk::create_on(base.clone(), &CreateOptions::dynamic(base_size).block_size(base_blocks)).expect("a base");
    let mut model = vec![0; base_size as usize];
    scribble(&disk, &mut model, &mut rng, 8);
    disk.close().expect("a close");
    model.resize(child_size as usize, 0);
    let disk = Disk::create_child_on(child.clone(), vec![base.clone()], &CreateOptions::child().size(child_size)).expect("a child");
    scribble(&disk, &mut model, &mut rng, 8);
    disk.close().expect("a close");
    world.forget();
    Pair { world, base, child, shown: model }
}

fn open(leaf: Arc<SimStorage>, base: Arc<SimStorage>, writable: bool) -> Disk {
    let disk = Disk::open_on(leaf, vec![base], &OpenOptions::new().writable(writable)).expect("the disk opens after a crash");
    let report = disk.check().expect("a check");
    assert!(report.is_sound(), "{:?}", report.errors);
    disk
}

fn merge(child: &Arc<SimStorage>, base: &Arc<SimStorage>) {
    let (child, base): (Arc<dyn Storage>, Arc<dyn Storage>) = (child.clone(), base.clone());
    merge_into_on(&child, &base, &[], &NoProgress, &Cancel::new()).expect("a merge");
}

#[test]
fn a_merge_that_is_cut_off_leaves_the_child_valid_and_can_go_on() {
    let most = setting("DIFFDISK_MERGE_CRASHES", 1500);
    // Equal sizes, a child that is larger, one that is smaller.
    for (seed, [base_size, child_size]) in [(21, [4 * MIB, 4 * MIB]), (22, [3 * MIB + 4096, 5 * MIB]), (23, [5 * MIB, 3 * MIB + 512])] {
        let _fixed = Fixed::new(seed, 0);
        let pair = pair(seed, base_size, child_size, 2 * MIB);
        let (base, child) = (pair.base.file(), pair.child.file());
        merge(&pair.child, &pair.base);
        let trace = pair.world.trace();
        let (mut resumed, mut finished) = (0, 0);
        let states = each_crash(&trace, most, |number, image| {
            let files = || (image.file(child).expect("the child"), image.file(base).expect("the base"));
            let (leaf, parent) = files();
            let disk = open(leaf, parent.clone(), false);
            assert!(content(&disk) == pair.shown, "seed {seed}, crash {number}: the child shows something else");
            let identity = disk.info().expect("an info").chain;
            if identity[0].data_write_guid == identity[1].data_write_guid {
                // The parent says that it is the child, so it is.
                finished += 1;
                let alone = Disk::open_on(parent, Vec::new(), &OpenOptions::new()).expect("the base opens");
                assert!(content(&alone) == pair.shown, "seed {seed}, crash {number}: the parent has the name and not the content");
            }
            drop(disk);
            if number % 4 == 0 {
                let (leaf, parent) = files();
                merge(&leaf, &parent);
                let alone = Disk::open_on(parent.clone(), Vec::new(), &OpenOptions::new()).expect("the base opens");
                assert!(content(&alone) == pair.shown, "seed {seed}, crash {number}: merged again, something else");
                assert!(content(&open(leaf, parent, false)) == pair.shown);
                resumed += 1;
            }
        });
        println!("merge {base_size} <- {child_size}: {states} crash images, {resumed} resumed, {finished} finished");
        assert!(states > 60 && finished > 2 && resumed > 14);
    }
}

#[test]
fn a_flattening_that_is_cut_off_leaves_a_disk_that_reads_the_same() {
    let most = setting("DIFFDISK_MERGE_CRASHES", 1500);
    let _fixed = Fixed::new(31, 0);
    let pair = pair(31, 5 * MIB, 5 * MIB + 8192, MIB);
    let (base, child) = (pair.base.file(), pair.child.file());
    let disk = open(pair.child.clone(), pair.base.clone(), true);
    disk.flatten(&NoProgress, &Cancel::new()).expect("a cut");
    disk.close().expect("a close");
    let trace = pair.world.trace();
    let (mut linked, mut cut) = (0, 0);
    let states = each_crash(&trace, most, |number, image| {
        let files = || (image.file(child).expect("the child"), image.file(base).expect("the base"));
        let (leaf, parent) = files();
        let disk = open(leaf, parent, false);
        let is_linked = disk.info().expect("an info").parent.is_some();
        if is_linked {
            linked += 1;
        } else {
            cut += 1;
        }
        assert!(content(&disk) == pair.shown, "crash {number}: it shows something else, linked {is_linked}");
        drop(disk);
        if number % 4 == 0 {
            let (leaf, parent) = files();
            let disk = open(leaf.clone(), parent, true);
            disk.flatten(&NoProgress, &Cancel::new()).expect("a cut");
            disk.close().expect("a close");
            let alone = Disk::open_on(leaf, Vec::new(), &OpenOptions::new()).expect("it needs nobody");
            assert!(content(&alone) == pair.shown, "crash {number}: flattened again, something else");
        }
    });
    println!("flatten: {states} crash images, {linked} linked, {cut} cut");
    assert!(states > 100 && linked > 20 && cut > 2);
}

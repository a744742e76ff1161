//! Rows 30 to 32, 38 to 41 and 44: BAT entries, sector bitmaps, and chains handed over as open files.

use crate::forge::*;
use crate::head::{SMALL, small};
use crate::table::Table;
use crate::vectors::{va, vb};
use diffdisk::ErrorKind;

pub fn rows(t: &mut Table) {
    states(t);
    homes(t);
    bitmaps(t);
    chains(t);
    cut(t);
}

fn entry(value: u64) -> Image {
    let mut disk = small();
    disk.bat.insert(1, value);
    disk.build()
}

const ENTRY: &[&str] = &["BAT entry"];

fn states(t: &mut Table) {
    t.damaged(30, "state 4", entry(4), ENTRY);
    t.damaged(30, "state 5", entry(5), ENTRY);
    t.damaged(30, "state 4 with a place", entry((5 * MIB) | 4), ENTRY);
    t.damaged(30, "state 7 without a parent", entry(partial(DATA_AT)), ENTRY);
    for bit in [3, 11, 19] {
        let mut disk = small();
        disk.bat.insert(1, present(5 * MIB) | 1 << bit);
        disk.len = 6 * MIB;
        t.faulty(30, format!("reserved bit {bit}"), vec![disk.build()], ENTRY);
    }
    for state in [0, 2] {
        t.reads(30, format!("a place in state {state} means nothing"), vec![entry((77 * MIB) | state)], &SMALL);
    }
    for state in [1, 2, 3] {
        t.reads(30, format!("state {state}"), vec![entry(state)], &SMALL);
    }
    // Entries of sector bitmaps in a file without a parent are ignored, those behind the last block too.
    let mut wide = Vhdx::dynamic(5 << 30, MIB as u32);
    wide.bat.extend([(0, present(DATA_AT)), (4096, present(6 * MIB)), (4097, present(5 * MIB))]);
    wide.fill(DATA_AT, MIB, 0xA0);
    wide.fill(5 * MIB, MIB, 0xB0);
    wide.len = 7 * MIB;
    t.reads(30, "a bitmap entry without a parent", vec![wide.build()], &[(0, MIB, 0xA0), (4095 * MIB, MIB, 0), (4096 * MIB, MIB, 0xB0)]);
    let mut padding = small();
    padding.bat.insert(8, 5);
    padding.bat.insert(9, u64::MAX);
    t.reads(30, "entries behind the last block", vec![padding.build()], &SMALL);
    for state in [1, 2, 3, 4, 5, 7] {
        let mut child = vb();
        child.bat.insert(2048, (6 * MIB) | state);
        t.damaged_chain(30, format!("a bitmap in state {state}"), vec![child.build(), va().build()], &["BAT entry", "sector bitmap"]);
    }
}

fn homes(t: &mut Table) {
    let places = [0, MIB, METADATA_AT, BAT_AT, 5 * MIB, 6 * MIB, 1 << 40, ((1 << 44) - 1) << 20];
    for at in places {
        t.damaged(31, format!("a block at {at:#x}"), entry(present(at)), ENTRY);
        let mut child = vb();
        child.bat.insert(0, partial(at));
        if at != 5 * MIB && at != 6 * MIB {
            t.damaged_chain(31, format!("a partial block at {at:#x}"), vec![child.build(), va().build()], ENTRY);
        }
    }
    let mut wide = Vhdx::dynamic(64 * MIB, 32 << 20);
    wide.len = 34 * MIB;
    for at in [MIB, METADATA_AT, BAT_AT] {
        wide.bat.insert(0, present(at));
        t.damaged(31, format!("a wide block from {at:#x} on"), wide.build(), ENTRY);
    }
    let mut log_behind = small();
    log_behind.log_at = 5 * MIB;
    log_behind.len = 6 * MIB;
    log_behind.bat.insert(1, present(5 * MIB));
    t.damaged(31, "a block over a log behind the data", log_behind.build(), ENTRY);
    let names = &["BAT entry", "payload block", "sector bitmap"];
    t.reported(31, "two blocks in one place", vec![entry(present(DATA_AT))], names);
    let mut half = Vhdx::dynamic(8 * MIB, 2 << 20);
    half.bat.extend([(0, present(DATA_AT)), (1, present(5 * MIB))]);
    half.len = 8 * MIB;
    t.reported(31, "two blocks that share a MiB", vec![half.build()], names);
    let mut kept = small();
    kept.bat.extend([(1, (5 * MIB) | 3), (2, present(5 * MIB))]);
    kept.len = 6 * MIB;
    kept.fill(5 * MIB, MIB, 0xA2);
    // The anchor of an unmapped block counts as used space for a checker; a reader has no use for it.
    t.faulty(31, "a block in the place an unmapped one keeps", vec![kept.build()], names);
}

fn bitmaps(t: &mut Table) {
    let over = |child: Vhdx| vec![child.build(), va().build()];
    let mut child = vb();
    child.bat.remove(&2048);
    t.damaged_chain(32, "no bitmap for a partial block", over(child), &["BAT entry", "sector bitmap"]);
    for at in [0, MIB, METADATA_AT, BAT_AT, 7 * MIB, 1 << 40, ((1 << 44) - 1) << 20] {
        let mut child = vb();
        child.bat.insert(2048, present(at));
        t.damaged_chain(32, format!("a bitmap at {at:#x}"), over(child), &["BAT entry", "sector bitmap"]);
    }
    let mut child = vb();
    child.bat.insert(2048, present(5 * MIB));
    t.reported(32, "a bitmap inside of a block", over(child), &["BAT entry", "sector bitmap", "payload block"]);
    let mut child = vb();
    child.bat.insert(0, present(DATA_AT));
    child.bat.remove(&2048);
    t.reads(32, "a full block needs no bitmap", over(child), &[(0, 512, 0xC0), (512, 512, 0), (9 * 512, 512, 0xC9)]);
    // Stale bits of blocks that are not partial, and of sectors behind the end, say nothing.
    let mut child = vb();
    child.fill(6 * MIB + 512, MIB - 512, 0xFF);
    t.reads(32, "stale bits", over(child), &[(0, 512, 0xC0), (512, 512, 0), (2 * MIB, 62 * MIB, 0)]);
}

/// A base full of 0xA0, of a size of its own.
fn full(size: u64) -> Vhdx {
    let mut disk = Vhdx::dynamic(size, MIB as u32);
    for block in 0..size.div_ceil(MIB) {
        disk.bat.insert(block, present(DATA_AT + block * MIB));
    }
    disk.len = DATA_AT + size.div_ceil(MIB) * MIB;
    disk.fill(DATA_AT, disk.len - DATA_AT, 0xA0);
    disk
}

fn resized(mut disk: Vhdx, size: u64) -> Vhdx {
    disk.item(ITEM_SIZE).data = size.to_le_bytes().to_vec();
    disk
}

fn chains(t: &mut Table) {
    let base = full(4 * MIB);
    let child = Vhdx::child_of(&base, "base.vhdx");
    let mut sectors = child.clone();
    sectors.set_logical(4096);
    let kinds = [ErrorKind::Damaged, ErrorKind::Unsupported, ErrorKind::InvalidInput];
    t.refused(39, "sectors of 4096 over 512", vec![sectors.build(), base.build()], &kinds, &["sector"]);
    let mut physical = child.clone();
    physical.item(ITEM_PHYSICAL).data = 512_u32.to_le_bytes().to_vec();
    t.reads(39, "another physical sector size", vec![physical.build(), base.build()], &[(0, 4 * MIB, 0xA0)]);

    let odd = full(2 * MIB + 1536);
    let larger = resized(Vhdx::child_of(&odd, "base.vhdx"), 8 * MIB);
    t.reads(40, "a shorter parent", vec![larger.build(), odd.build()], &[(0, 2 * MIB + 1536, 0xA0), (2 * MIB + 1536, 6 * MIB - 1536, 0)]);
    let smaller = resized(child.clone(), MIB + 512);
    t.reads(40, "a longer parent", vec![smaller.build(), base.build()], &[(0, MIB + 512, 0xA0)]);
    let mut blocks = child.clone();
    blocks.item(ITEM_PARAMETERS).data[..4].copy_from_slice(&(32_u32 << 20).to_le_bytes());
    t.reads(40, "larger blocks than the parent's", vec![blocks.build(), base.build()], &[(0, 4 * MIB, 0xA0)]);

    let change = Change::Data { at: BAT_AT, sector: bat_sector(&[present(DATA_AT), 2, present(DATA_AT + 2 * MIB)]) };
    let dirty = base.clone().dirty(&Entry::new(1, 0, 8 * MIB, vec![change]));
    let replayed = [(0, MIB, 0xA0), (MIB, MIB, 0), (2 * MIB, MIB, 0xA0), (3 * MIB, MIB, 0)];
    t.reads(41, "a dirty parent", vec![child.build(), dirty.build()], &replayed);
    t.reads(41, "a dirty parent of a clean parent", vec![grandchild().build(), child.build(), dirty.build()], &replayed);
    let broken = base.build().edit_headers(48, &LOG_GUID);
    t.damaged_chain(41, "a parent whose log is broken", vec![child.build(), broken], &["log"]);

    let missing = [ErrorKind::NotFound, ErrorKind::InvalidInput, ErrorKind::Damaged, ErrorKind::Denied];
    let mut twin = child.clone();
    twin.data_write = base.data_write;
    t.refused(
        38,
        "a child with its own parent's identity",
        vec![twin.build(), twin.build()],
        &missing,
        &["cycle", "loop", "itself", "twice", "parent"],
    );
    t.refused(38, "a child without its parent", vec![child.build()], &missing, &["parent", "chain"]);
    t.refused(38, "a chain without its base", vec![grandchild().build(), child.build()], &missing, &["parent", "chain"]);

    let mut nil = base.clone();
    nil.data_write = [0; 16];
    let of_nil = Vhdx::child_of(&nil, "base.vhdx");
    t.refused(
        37,
        "a nil linkage to a nil parent",
        vec![of_nil.build(), nil.build()],
        &kinds,
        &["linkage", "parent", "locator", "zero", "nil"],
    );

    let mut deep = vec![base];
    for level in 0..300_u128 {
        let mut next = Vhdx::child_of(deep.last().expect("not empty"), "next.vhdx");
        next.data_write = guid(1000 + level);
        deep.push(next);
    }
    deep.reverse();
    t.refused(38, "300 parents", deep.iter().map(Vhdx::build).collect(), &kinds, &["deep", "depth", "parents", "chain"]);
    t.reads(38, "64 parents", deep[300 - 64..].iter().map(Vhdx::build).collect(), &[(0, 4 * MIB, 0xA0)]);
}

fn grandchild() -> Vhdx {
    let mut child = Vhdx::child_of(&full(4 * MIB), "base.vhdx");
    let mut grandchild = Vhdx::child_of(&child, "child.vhdx");
    child.bat.clear();
    grandchild.data_write = guid(3);
    grandchild
}

fn cut(t: &mut Table) {
    let mut image = Vhdx::fixed(4 * MIB + 512 * KIB, MIB as u32);
    image.fill(DATA_AT, 4 * MIB + 512 * KIB, 0xA0);
    t.reads(44, "a whole fixed disk", vec![image.build()], &[(0, 4 * MIB + 512 * KIB, 0xA0)]);
    let whole = image.build().with_len(DATA_AT + 4 * MIB + 512 * KIB);
    t.reads(44, "a last block cut at the end of the disk", vec![whole.clone()], &[(0, 4 * MIB + 512 * KIB, 0xA0)]);
    let short = whole.with_len(DATA_AT + 4 * MIB + 1000);
    t.reads(44, "a last block cut before it", vec![short], &[(0, 4 * MIB + 1000, 0xA0), (4 * MIB + 1000, 512 * KIB - 1000, 0)]);
}

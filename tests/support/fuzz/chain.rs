//! `chain`: one to six files whose identities, sizes, sectors and blocks the input chooses, and the same file twice.
//!
//! Whether such a chain may be opened, and what every byte of it is, follows from a dozen lines of rules, which this module has of its
//! own. A last decision may be to lie in one of the files (`open`'s edits); then only survival and the parents' peace are asked for.
//! Parents are never written to ([`Watched`]).

use super::cow::CowStorage;
use super::forge::*;
use super::guard::{Watched, bounded};
use super::open::edit;
use super::source::Source;
use diffdisk::storage::Storage;
use diffdisk::{ChainError, Disk, MAX_CHAIN_DEPTH, OpenError, OpenOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a block of a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Present(u8),
    /// Even sectors are here.
    Partial(u8),
    Zeros,
    Absent,
}

/// One file, as rules see it.
#[derive(Debug)]
struct Rule {
    id: u128,
    linkage: u128,
    has_parent: bool,
    sector: u64,
    size: u64,
    block: u64,
    blocks: BTreeMap<u64, Block>,
}

fn rule(s: &mut Source<'_>, n: usize, count: usize) -> Rule {
    let how = s.byte();
    let is_last = n + 1 == count;
    let block = MIB << [0, 0, 1, 2][s.pick(4)];
    let sector = if how & 7 == 7 { 4096 } else { 512 };
    let tail = if how & 8 == 0 { 0 } else { sector * (1 + s.pick(20) as u64) };
    let size = (1 + s.pick(7) as u64) * MIB + tail;
    let id = if how & 0x30 == 0x30 { s.pick(4) as u128 } else { 100 + n as u128 };
    let linkage = if how & 0xC0 == 0xC0 { s.pick(4) as u128 } else { 101 + n as u128 };
    let has_parent = if s.byte() & 15 == 15 { is_last } else { !is_last };
    let mut blocks = BTreeMap::new();
    for _ in 0..s.pick(6) {
        let state = s.byte();
        let fill = (n as u8 + 1) << 4 | state >> 4;
        let state = match state & 7 {
            0..3 => Block::Present(fill),
            3..5 if has_parent => Block::Partial(fill),
            5 => Block::Absent,
            _ => Block::Zeros,
        };
        blocks.insert(s.pick(8) as u64 % size.div_ceil(block), state);
    }
    Rule { id, linkage, has_parent, sector, size, block, blocks }
}

/// The byte of every sector: its block's, in blocks filled all over but for the last sectors, which stay zeros.
const FILLED: u64 = 64 << 10;

fn forge(rule: &Rule) -> Image {
    let mut disk = Vhdx::dynamic(rule.size, rule.block as u32);
    disk.data_write = guid(rule.id);
    disk.set_logical(rule.sector as u32);
    if rule.has_parent {
        disk.set_flags(2);
        disk.set_locator(&Locator::new(guid(rule.linkage), "p.vhdx"));
    }
    let mut at = DATA_AT;
    let ratio = (rule.sector << 23) / rule.block;
    if rule.has_parent {
        disk.bat.insert(ratio, present(at));
        at += MIB;
    }
    for (&block, state) in &rule.blocks {
        let word = match *state {
            Block::Present(fill) | Block::Partial(fill) => {
                disk.fill(at, FILLED, fill);
                at += rule.block;
                (at - rule.block) | if matches!(state, Block::Present(_)) { 6 } else { 7 }
            }
            Block::Zeros => 2,
            Block::Absent => 0,
        };
        disk.bat.insert(block, word);
        if let Block::Partial(_) = state {
            let per_block = rule.block / rule.sector / 8;
            disk.bytes.push((DATA_AT + block * per_block, vec![0x55; per_block as usize]));
        }
    }
    disk.len = at;
    disk.build()
}

/// What the byte at `at` is, from layer `n` of the chain on.
fn byte_at(rules: &[Rule], at: u64) -> u8 {
    for rule in rules {
        if at >= rule.size {
            return 0;
        }
        let within = at % rule.block;
        let shown = |fill: u8| if within < FILLED { fill } else { 0 };
        match rule.blocks.get(&(at / rule.block)) {
            Some(Block::Present(fill)) => return shown(*fill),
            Some(Block::Partial(fill)) if (at / rule.sector).is_multiple_of(2) => return shown(*fill),
            Some(Block::Zeros) => return 0,
            Some(Block::Partial(_) | Block::Absent) | None if rule.has_parent => {}
            Some(Block::Partial(_) | Block::Absent) | None => return 0,
        }
    }
    0
}

/// How many files the chain has, when the rules let it be opened.
fn opens(rules: &[Rule], order: &[usize]) -> Option<usize> {
    let mut n = 0;
    while rules[order[n]].has_parent {
        let (child, parent) = (&rules[order[n]], &rules[*order.get(n + 1)?]);
        if order[..=n].contains(&order[n + 1]) || parent.id == 0 || child.linkage != parent.id || child.sector != parent.sector {
            return None;
        }
        n += 1;
    }
    Some(n + 1)
}

fn compare(disk: &Disk, rules: &[Rule]) {
    let mut buf = vec![0; 12 << 10];
    for border in (0..=disk.size() / (MIB / 2)).map(|n| n * (MIB / 2)).chain(rules.iter().map(|r| r.size)) {
        let at = border.saturating_sub(6 << 10).min(disk.size());
        let part = (disk.size() - at).min(12 << 10) as usize;
        disk.read_at(&mut buf[..part], at).expect("a good chain can be read");
        for (i, &byte) in buf[..part].iter().enumerate().step_by(256) {
            let place = at + i as u64;
            assert_eq!(byte, byte_at(rules, place), "the byte at {place:#x} of {rules:#?}");
        }
    }
}

/// Longer chains than may be, in copies that share nearly everything.
fn deep(extra: usize) {
    let base = CowStorage::new();
    let child = forge(&Rule { id: 100, linkage: 101, has_parent: true, sector: 512, size: MIB, block: MIB, blocks: BTreeMap::new() });
    let plain = child.storage();
    let mut buf = vec![0; 64 << 10];
    while let Some((start, _)) = plain.next_data(base.len().expect("memory has a length")).expect("memory can be searched") {
        let n = plain.read_at(&mut buf, start).expect("memory can be read");
        let _ = base.write_at(&buf[..n], start).expect("memory takes it");
    }
    base.set_len(child.len).expect("memory grows");
    let files: Vec<Arc<dyn Storage>> = (0..MAX_CHAIN_DEPTH + extra)
        .map(|n| {
            let file = base.copy();
            let mut image = Image::raw(0);
            image.put(0x10000, &child.get(0x10000, 4096));
            let header = image.edit(Place::Header(0, 32), &guid(100 + n as u128)).get(0x10000, 4096);
            for at in [0x10000, 0x20000] {
                let _ = file.write_at(&header, at).expect("memory takes it");
            }
            let locator = Locator::new(guid(101 + n as u128), "p.vhdx").encode();
            let _ = file.write_at(&locator, METADATA_AT + 0x10028).expect("memory takes it");
            Watched::sealed(file) as Arc<dyn Storage>
        })
        .collect();
    let mut files = files.into_iter();
    let leaf = files.next().expect("a chain has a leaf");
    let opened = bounded("a deep chain", 0, || Disk::open_on(leaf, files.collect(), &OpenOptions::new()));
    match opened {
        Err(OpenError::Chain(ChainError::TooDeep { limit })) => assert_eq!(limit, MAX_CHAIN_DEPTH),
        other => panic!("a chain that never ends: {other:?}"),
    }
}

/// The body.
pub fn run(input: &[u8]) {
    let mut s = Source::new(input);
    let how = s.byte();
    if how == 0xFF {
        return deep(s.pick(5));
    }
    let count = 1 + usize::from(how) % 6;
    let rules: Vec<Rule> = (0..count).map(|n| rule(&mut s, n, count)).collect();
    let mut images: Vec<Image> = rules.iter().map(forge).collect();
    let mut order: Vec<usize> = (0..count).collect();
    if how & 0x80 != 0 {
        order[s.pick(count)] = s.pick(count);
    }
    let lies = how & 0x40 != 0 && !s.is_empty();
    while lies && !s.is_empty() {
        let n = s.pick(count);
        edit(&mut images[n], BAT_AT, &mut s);
        images[n].len = images[n].len.min(1 << 47);
    }
    let files: Vec<_> = images.iter().map(Image::storage).collect();
    let chain = |sealed: bool| -> (Arc<dyn Storage>, Vec<Arc<dyn Storage>>) {
        let watch = |n: &usize| -> Arc<dyn Storage> {
            let file = Watched::sealed(Arc::clone(&files[*n]) as Arc<dyn Storage>);
            file.expect_blocks(256 * MIB);
            file
        };
        let leaf = if sealed { watch(&order[0]) } else { Arc::clone(&files[order[0]]) as Arc<dyn Storage> };
        (leaf, order[1..].iter().map(watch).collect())
    };
    let depth = bounded("reading", 0, || {
        let (leaf, parents) = chain(true);
        let opened = Disk::open_on(leaf, parents, &OpenOptions::new());
        let expected = opens(&rules, &order);
        if lies {
            if let Ok(disk) = &opened {
                let _ = disk.check();
                let mut buf = [0; 512];
                (0..8).for_each(|n| drop(disk.read_at(&mut buf, n * MIB)));
            }
            return None;
        }
        assert_eq!(opened.is_ok(), expected.is_some(), "{order:?} {rules:#?}: {:?}", opened.err());
        let disk = opened.ok()?;
        assert!(disk.check().is_ok_and(|report| report.is_sound()), "a good chain is not sound");
        let seen: Vec<&Rule> = order.iter().map(|&n| &rules[n]).collect();
        assert_eq!(disk.size(), seen[0].size);
        // With a file in it twice a chain opens only if it ends before the second time.
        if order.iter().enumerate().all(|(i, &n)| i == n) {
            compare(&disk, &rules);
        }
        expected
    });
    bounded("writing", 0, || {
        let (leaf, parents) = chain(false);
        let opened = Disk::open_on(leaf, parents, &OpenOptions::new().writable(true));
        assert!(lies || opened.is_ok() == depth.is_some());
        let Ok(disk) = opened else { return };
        for at in [100, MIB - 300, disk.size().saturating_sub(700)] {
            let data = vec![0xEE; 600.min(disk.size().saturating_sub(at)) as usize];
            let wrote = disk.write_at(&data, at);
            assert!(lies || wrote.is_ok(), "{wrote:?}");
            let mut back = vec![0; data.len()];
            assert!(wrote.is_err() || disk.read_at(&mut back, at).is_err() || back == data);
        }
        let closed = disk.close();
        assert!(lies || closed.is_ok(), "{closed:?}");
    });
}

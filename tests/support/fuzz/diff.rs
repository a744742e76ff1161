//! Target `diff`: generated valid images, read by us, by rules of the body's own, and by three foreign readers.
//!
//! An input says how one to three files look: where their structures stand, how large blocks and sectors are, which blocks are in which
//! state, at which homes, with which bytes. They are forged, and by choice the leaf is then written to by the engine. What every
//! byte is follows from the same decisions ([`Layer`]); our reader and each foreign one must say the same, and our check finds
//! nothing. The foreign readers' known defects (§11 of the format's description) are left out one by one, in [`ask`].
//!
//! It starts processes, so it runs some tens of inputs a second. Where a reader is missing, the others are compared.

use super::forge::*;
use super::guard::{Watched, bounded};
use super::readers::{self, Readers, readers};
use super::source::Source;
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Disk, OpenOptions};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const UNIT: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Undefined,
    Zero,
    Unmapped,
    Present,
    /// With this byte all over its part of the sector bitmap.
    Partial(u8),
}

/// A block and what its payload holds: (first unit, units, a byte that all of them follow from).
#[derive(Clone, Debug)]
struct Block {
    state: State,
    runs: Vec<(u64, u64, u8)>,
}

/// One file, as rules see it.
#[derive(Clone, Debug)]
struct Layer {
    size: u64,
    block: u64,
    sector: u64,
    has_parent: bool,
    fixed: bool,
    blocks: BTreeMap<u64, Block>,
    /// Whether every chunk of a child has a sector bitmap, needed or not.
    bitmaps: bool,
}

/// No two units of a run are alike for a while, so that a misplaced one is seen.
fn byte_of(fill: u8, unit: u64) -> u8 {
    fill ^ (unit as u8).wrapping_mul(29) | 1
}

impl Layer {
    /// The byte of a unit that is here; `None` when the parent is asked.
    fn unit(&self, unit: u64) -> Option<u8> {
        let at = unit * UNIT;
        if at >= self.size {
            return Some(0);
        }
        let below = if self.has_parent { None } else { Some(0) };
        let Some(block) = self.blocks.get(&(at / self.block)) else { return below };
        let within = at % self.block;
        let payload = || {
            let within = within / UNIT;
            let run = block.runs.iter().rev().find(|(from, n, _)| (*from..from + n).contains(&within));
            run.map_or(0, |&(_, _, fill)| byte_of(fill, within))
        };
        match block.state {
            State::Present => Some(payload()),
            State::Partial(mask) if mask >> (within / self.sector % 8) & 1 == 1 => Some(payload()),
            State::Partial(_) | State::Absent => below,
            State::Zero | State::Unmapped | State::Undefined => Some(0),
        }
    }
}

/// Layers leaf first, and what was written through the engine since.
struct Model {
    layers: Vec<Layer>,
    written: Vec<(u64, Vec<u8>)>,
}

impl Model {
    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        for (i, unit) in bytes.chunks_mut(UNIT as usize).enumerate() {
            let answer = self.layers.iter().find_map(|layer| layer.unit(at / UNIT + i as u64));
            unit.fill(answer.expect("the last layer answers"));
        }
        for (from, data) in &self.written {
            let (start, end) = ((*from).max(at), (from + data.len() as u64).min(at + len));
            if start < end {
                let data = &data[(start - from) as usize..(end - from) as usize];
                bytes[(start - at) as usize..(end - at) as usize].copy_from_slice(data);
            }
        }
        bytes
    }
}

const TALL: u64 = 64 * MIB;

fn layer(s: &mut Source<'_>, has_parent: bool, above: Option<&Layer>) -> Layer {
    let how = s.byte();
    // More than one chunk: 4 GiB of payload blocks, whose places in the BAT are interleaved with the bitmaps'.
    let tall = above.map_or(how & 7 == 7, |layer| layer.block == TALL);
    let sector = above.map_or(if how & 0x18 == 0x18 && !tall { 4096 } else { 512 }, |layer| layer.sector);
    let block = if tall { TALL } else { MIB << [0, 0, 1, 3, 5][s.pick(5)] };
    let tail = if how & 0x20 == 0 { 0 } else { sector * (1 + s.pick(40) as u64) };
    let size = match above {
        Some(layer) if how & 0x40 == 0 => layer.size,
        _ if tall => ((4 << 10) + 1 + s.pick(5000) as u64) * MIB + tail,
        _ => (1 + s.pick(11) as u64) * MIB + tail,
    };
    let fixed = how & 0x80 != 0 && !has_parent && !tall && above.is_none();
    let count = size.div_ceil(block);
    let mut blocks = BTreeMap::new();
    for _ in 0..s.pick(if tall { 5 } else { 9 }) {
        let state = match s.byte() & 15 {
            0..5 => State::Present,
            5..9 if has_parent => State::Partial(s.byte()),
            9 => State::Absent,
            10 => State::Undefined,
            11 => State::Unmapped,
            12 | 13 => State::Zero,
            _ => State::Present,
        };
        // Ends and borders of chunks more often than not.
        let index = [s.number() % count, s.byte().into(), count - 1, (8 << 10) / (block / MIB) / 2, count / 2][s.pick(5)] % count;
        let units = block / UNIT;
        let run = |s: &mut Source<'_>| {
            let from = [0, s.number() % units, units - 8][s.pick(3)];
            (from, (1 + s.pick(200) as u64).min(units - from), s.byte())
        };
        let runs = (0..s.pick(4)).map(|_| run(s)).collect();
        blocks.insert(index, Block { state, runs });
    }
    if fixed {
        blocks = (0..count).map(|n| (n, blocks.remove(&n).unwrap_or(Block { state: State::Present, runs: Vec::new() }))).collect();
        blocks.values_mut().for_each(|block| block.state = State::Present);
    }
    Layer { size, block, sector, has_parent, fixed, blocks, bitmaps: true }
}

fn id(n: usize) -> RawGuid {
    guid(0xD1FF_0000_0000_0000_0000_0000_0000_0001 + n as u128)
}

fn name(n: usize) -> String {
    format!("layer-{n}.vhdx")
}

/// The file of a layer: structures in an order of choice, payload behind them, holes between.
fn forge(s: &mut Source<'_>, n: usize, layer: &mut Layer) -> Image {
    let mut disk = Vhdx::dynamic(layer.size, layer.block as u32);
    (disk.data_write, disk.file_write) = (id(n), id(100 + n));
    disk.set_logical(layer.sector as u32);
    if layer.fixed {
        disk.set_flags(1);
    }
    if layer.has_parent {
        disk.set_flags(2);
        disk.set_locator(&Locator::new(id(n + 1), &name(n + 1)));
    }
    disk.sequence = [[0, 1], [9, 8], [u64::MAX / 2, u64::MAX / 2 + 1], [1 << 33, 5]][s.pick(4)];
    let order = [[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]][s.pick(4)];
    let gap = s.pick(3) as u64 * MIB;
    let mut at = MIB;
    for part in order {
        match part {
            0 => disk.log_at = at,
            1 => disk.regions[0].at = at,
            _ => disk.regions[1].at = at,
        }
        at += MIB + gap;
    }
    let ratio = (layer.sector << 23) / layer.block;
    let mut bitmaps: BTreeMap<u64, u64> = BTreeMap::new();
    // Payload goes up or down through the file, with its neighbours in between.
    let mut all: Vec<(u64, &Block)> = layer.blocks.iter().map(|(&index, block)| (index, block)).collect();
    let direction = s.byte();
    if direction & 1 == 1 && !layer.fixed {
        all.reverse();
    }
    for (index, block) in all {
        let entry = match block.state {
            State::Absent => 0,
            State::Undefined => 1,
            State::Zero => 2,
            State::Unmapped => 3,
            State::Present | State::Partial(_) => {
                for &(from, units, fill) in &block.runs {
                    for unit in from..from + units {
                        disk.bytes.push((at + unit * UNIT, vec![byte_of(fill, unit); UNIT as usize]));
                    }
                }
                at += layer.block;
                (at - layer.block) | if block.state == State::Present { 6 } else { 7 }
            }
        };
        disk.bat.insert(index + index / ratio, entry);
        if let State::Partial(mask) = block.state {
            let bitmap = *bitmaps.entry(index / ratio).or_insert_with(|| {
                at += MIB;
                at - MIB
            });
            let per_block = layer.block / layer.sector / 8;
            disk.bytes.push((bitmap + index % ratio * per_block, vec![mask; per_block as usize]));
            disk.bat.insert(index / ratio * (ratio + 1) + ratio, present(bitmap));
        }
    }
    for chunk in 0..layer.size.div_ceil(layer.block * ratio) {
        if layer.has_parent && direction & 6 != 6 && !bitmaps.contains_key(&chunk) {
            disk.bat.insert(chunk * (ratio + 1) + ratio, present(at));
            let _ = bitmaps.insert(chunk, at);
            at += MIB;
        }
        layer.bitmaps &= bitmaps.contains_key(&chunk);
    }
    // Later runs lie over earlier ones in `Layer::unit`, and so they do here: `bytes` is put down in order.
    disk.len = at;
    disk.build()
}

fn open(files: &[Arc<MemoryStorage>], writable: bool) -> Disk {
    let sealed = |file: &Arc<MemoryStorage>| {
        let watched = Watched::sealed(Arc::clone(file) as Arc<dyn Storage>);
        watched.expect_blocks(256 * MIB);
        watched as Arc<dyn Storage>
    };
    let leaf = if writable { Arc::clone(&files[0]) as Arc<dyn Storage> } else { sealed(&files[0]) };
    let options = OpenOptions::new().writable(writable);
    Disk::open_on(leaf, files[1..].iter().map(sealed).collect(), &options).expect("a valid chain opens")
}

/// Writes to the leaf through the engine; returns whether something may have become a block of zeros.
fn session(s: &mut Source<'_>, files: &[Arc<MemoryStorage>], model: &mut Model) -> bool {
    let disk = open(files, true);
    let size = disk.size();
    let mut zeros = false;
    for _ in 0..1 + s.pick(6) {
        let how = s.byte();
        let border = [0, MIB, 3 * MIB, size / 2, size, model.layers[0].block][s.pick(6)].min(size - 1);
        let at = border.saturating_sub(s.number() % MIB);
        let at = if how & 0x10 == 0 { at / 4096 * 4096 } else { at };
        let len = (s.number() % (2 * MIB)).clamp(1, size - at);
        match how & 3 {
            0 | 1 => {
                let data: Vec<u8> = (0..len).map(|i| byte_of(how, (at + i) / UNIT)).collect();
                disk.write_at(&data, at).expect("a write");
                model.written.push((at, data));
            }
            2 => {
                disk.write_zeroes(at, len).expect("zeroing");
                model.written.push((at, vec![0; len as usize]));
                zeros = true;
            }
            _ => {
                let old = model.read(at / UNIT * UNIT, (at + len).div_ceil(UNIT) * UNIT - at / UNIT * UNIT);
                disk.trim(at, len).expect("a trim");
                let mut new = vec![0; len as usize];
                disk.read_at(&mut new, at).expect("what was trimmed can be read");
                let old = &old[(at % UNIT) as usize..];
                assert!(new.iter().zip(old).all(|(new, old)| *new == 0 || new == old), "a trim at {at:#x} shows what was never there");
                model.written.push((at, new));
                zeros = true;
            }
        }
    }
    disk.close().expect("a close");
    zeros
}

fn compare(who: &str, model: &Model, stretches: &[(u64, u64)], theirs: impl Fn(u64, u64) -> Vec<u8>) {
    for &(at, len) in stretches {
        let (ours, theirs) = (model.read(at, len), theirs(at, len));
        assert_eq!(theirs.len() as u64, len, "{who} at {at:#x} returns another length");
        if let Some(i) = (0..len as usize).find(|&i| ours[i] != theirs[i]) {
            let place = at + i as u64;
            panic!("{who} reads {place:#x} as {:#04x}, which is {:#04x}; {:#?}", theirs[i], ours[i], model.layers);
        }
    }
}

/// A directory that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("diffdisk-diff-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory for files");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes down a file, holes as holes.
fn save(storage: &MemoryStorage, path: &Path) {
    let mut file = File::create(path).expect("a file");
    let (mut at, mut buf) = (0, vec![0; MIB as usize]);
    while let Some((start, end)) = storage.next_data(at).expect("memory can be searched") {
        let len = (end - start).min(MIB) as usize;
        let n = storage.read_at(&mut buf[..len], start).expect("memory can be read");
        let _ = file.seek(SeekFrom::Start(start)).expect("a seek");
        file.write_all(&buf[..n]).expect("a write");
        at = start + n as u64;
    }
    file.set_len(storage.len().expect("memory has a length")).expect("a length");
}

/// All foreign readers that may be asked. Returns how many were.
fn ask(tools: &Readers, files: &[Arc<MemoryStorage>], model: &Model, stretches: &[(u64, u64)], zeros: bool) -> u64 {
    let dir = Scratch::new();
    let paths: Vec<PathBuf> = (0..files.len()).map(|n| dir.0.join(name(n))).collect();
    for (file, path) in files.iter().zip(&paths) {
        save(file, path);
    }
    let (layers, size) = (&model.layers, model.layers[0].size);
    // Both stop, or fail, at the parent's end.
    let larger = layers.windows(2).any(|pair| pair[0].size > pair[1].size);
    let tall = layers[0].block == TALL;
    let mut asked = 0;
    // It refuses parents and sectors of 4096.
    if let Some(program) = tools.qemu.filter(|_| layers.len() == 1 && layers[0].sector == 512) {
        let flat = readers::qemu(program, &paths[0]);
        let len = std::fs::metadata(&flat).expect("a flat copy").len();
        assert_eq!(len, size, "qemu-img finds a disk of another size");
        compare("qemu-img", model, stretches, |at, len| {
            let mut file = File::open(&flat).expect("a flat copy");
            let mut bytes = vec![0; len as usize];
            let _ = file.seek(SeekFrom::Start(at)).expect("a seek");
            file.read_exact(&mut bytes).expect("as long as the disk");
            bytes
        });
        asked += 1;
    }
    // It refuses odd numbers of sectors, and gives no part of a disk: gigabytes would take a second.
    let odd = layers.iter().any(|layer| layer.size / layer.sector % 2 == 1);
    if let Some(program) = tools.zip.filter(|_| !odd && !larger && !tall) {
        let all = readers::zip(program, &paths[0]);
        assert_eq!(all.len() as u64, size, "7-Zip finds a disk of another size");
        compare("7-Zip", model, stretches, |at, len| all[at as usize..(at + len) as usize].to_vec());
        asked += 1;
    }
    // It shows the parent where a child says that there is nothing, and takes the file's first bytes for a bitmap that is not there.
    let nothing = |block: &Block| matches!(block.state, State::Zero | State::Unmapped | State::Undefined);
    let nothing = layers.iter().filter(|layer| layer.has_parent).any(|layer| layer.blocks.values().any(nothing));
    let bare = layers.iter().any(|layer| layer.has_parent && !layer.bitmaps);
    if let Some(program) = tools.libvhdi.filter(|_| !(bare || larger || nothing || zeros && layers[0].has_parent)) {
        let (all, found) = readers::libvhdi(program, &paths, stretches);
        assert_eq!(found, size, "libvhdi finds a disk of another size");
        compare("libvhdi", model, stretches, |at, len| {
            let before = stretches.iter().take_while(|stretch| stretch.0 != at).map(|stretch| stretch.1).sum::<u64>();
            all[before as usize..(before + len) as usize].to_vec()
        });
        asked += 1;
    }
    asked
}

/// What is compared: all of a disk of some MiB; of a tall one the blocks that are somewhere, and what is beside them.
fn stretches(layers: &[Layer]) -> Vec<(u64, u64)> {
    let size = layers[0].size;
    if layers[0].block != TALL {
        return vec![(0, size)];
    }
    let ends = layers.iter().flat_map(|layer| layer.blocks.keys().flat_map(|index| [index * TALL, (index + 1) * TALL]));
    let starts: std::collections::BTreeSet<u64> = ends.map(|end| end.saturating_sub(MIB / 4)).filter(|&at| at < size).collect();
    let starts: Vec<u64> = starts.into_iter().chain([size - 512]).collect();
    let mut all: Vec<(u64, u64)> = starts.into_iter().map(|at| (at, (MIB / 2).min(size - at))).collect();
    all.dedup_by_key(|stretch| stretch.0);
    all
}

/// The body. Returns how many foreign readers said the same.
pub fn compare_all(input: &[u8]) -> u64 {
    let mut s = Source::new(input);
    let how = s.byte();
    let count = 1 + usize::from(how & 15) % 3;
    let mut layers: Vec<Layer> = Vec::new();
    for n in 0..count {
        let next = layer(&mut s, n + 1 < count, layers.last());
        layers.push(next);
    }
    let files: Vec<Arc<MemoryStorage>> = (0..count).map(|n| forge(&mut s, n, &mut layers[n]).storage()).collect();
    let stretches = stretches(&layers);
    let mut model = Model { layers, written: Vec::new() };
    let zeros = how & 0x10 != 0 && bounded("writing", 64 * MIB, || session(&mut s, &files, &mut model));
    bounded("reading", 64 * MIB, || {
        let disk = open(&files, false);
        assert_eq!(disk.size(), model.layers[0].size);
        let report = disk.check();
        assert!(report.as_ref().is_ok_and(|report| report.is_sound()), "a valid chain is not sound: {report:?}");
        compare("our reader", &model, &stretches, |at, len| {
            let mut bytes = vec![0; len as usize];
            disk.read_at(&mut bytes, at).expect("a valid chain can be read");
            bytes
        });
    });
    ask(readers(), &files, &model, &stretches, zeros)
}

/// The body.
pub fn run(input: &[u8]) {
    let _ = compare_all(input);
}

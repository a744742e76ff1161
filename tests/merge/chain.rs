//! A chain of small disks in memory, and what each of them should show.

use diffdisk::storage::sim::Rng;
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{CreateOptions, Disk, OpenOptions};
use std::sync::Arc;

pub const MIB: u64 = 1 << 20;

pub struct Layer {
    pub file: Arc<MemoryStorage>,
    pub model: Vec<u8>,
    /// Whether it still stands on the layer below.
    pub is_linked: bool,
}

/// Base first.
pub struct Chain {
    pub layers: Vec<Layer>,
}

/// A child that nobody wrote to shows its parent, cut or followed by zeros.
pub fn inherit(parent: &[u8], size: u64) -> Vec<u8> {
    let mut model = parent.to_vec();
    model.resize(size as usize, 0);
    model
}

pub fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).expect("a read");
    bytes
}

pub fn pick(rng: &mut Rng, from: &[u64]) -> u64 {
    from[rng.below(from.len() as u64) as usize]
}

/// Random writes, zeros and trims.
pub fn scribble(disk: &Disk, model: &mut [u8], rng: &mut Rng, times: u64) {
    let size = disk.size();
    let block = disk.info().expect("an info").block_size;
    for _ in 0..times {
        let offset = rng.below(size);
        let most = pick(rng, &[1, 512, 4096, 70_000, MIB, 3 * MIB]);
        let len = (1 + rng.below(most)).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match rng.below(10) {
            0..=6 => {
                let byte = 1 + rng.below(255) as u8;
                disk.write_at(&vec![byte; len as usize], offset).expect("a write");
                model[range].fill(byte);
            }
            7 => {
                disk.write_zeroes(offset, len).expect("zeros");
                model[range].fill(0);
            }
            8 => {
                let start = offset / block * block;
                let len = block.min(size - start);
                disk.trim(start, len).expect("a trim");
                model[start as usize..(start + len) as usize].fill(0);
            }
            _ => disk.flush().expect("a flush"),
        }
    }
}

impl Chain {
    pub fn random(rng: &mut Rng, depth: u64) -> Self {
        let sector = pick(rng, &[512, 4096]) as u32;
        let tail = |rng: &mut Rng| rng.below(256) * 4096;
        let base: Arc<MemoryStorage> = Arc::default();
        let size = (2 + rng.below(6)) * MIB + tail(rng);
        let options = if rng.below(5) == 0 { CreateOptions::fixed(size) } else { CreateOptions::dynamic(size) };
        let options = options.logical_sector(sector).block_size(MIB << rng.below(3));
        let disk = Disk::create_on(base.clone(), &options).expect("a base");
        let mut model = vec![0; size as usize];
        scribble(&disk, &mut model, rng, 12);
        disk.close().expect("a close");
        let mut chain = Self { layers: vec![Layer { file: base, model, is_linked: false }] };
        for _ in 1..depth {
            let file: Arc<MemoryStorage> = Arc::default();
            let parent = chain.layers.last().expect("a parent");
            let size = match rng.below(4) {
                0 => (2 + rng.below(8)) * MIB + tail(rng),
                _ => parent.model.len() as u64,
            };
            let mut model = inherit(&parent.model, size);
            let options = CreateOptions::child().size(size).block_size(MIB << rng.below(3));
            let below = chain.below(chain.layers.len());
            let disk = Disk::create_child_on(file.clone(), below, &options).expect("a child");
            scribble(&disk, &mut model, rng, 10);
            disk.close().expect("a close");
            chain.layers.push(Layer { file, model, is_linked: true });
        }
        chain
    }

    /// What layer `number` stands on, nearest first.
    pub fn below(&self, number: usize) -> Vec<Arc<dyn Storage>> {
        let mut line: Vec<Arc<dyn Storage>> = Vec::new();
        for layer in self.layers[..number].iter().rev() {
            line.push(layer.file.clone());
            if !layer.is_linked {
                break;
            }
        }
        line
    }

    pub fn open(&self, number: usize, writable: bool) -> Disk {
        let below = if self.layers[number].is_linked { self.below(number) } else { Vec::new() };
        Disk::open_on(self.layers[number].file.clone(), below, &OpenOptions::new().writable(writable)).expect("a chain that opens")
    }

    /// Every byte of every disk is as the model says, and every file is sound.
    pub fn check(&self, what: &str) {
        for (number, layer) in self.layers.iter().enumerate() {
            let disk = self.open(number, false);
            let report = disk.check().expect("a check");
            assert!(report.is_sound(), "{what}: layer {number}: {:?}", report.errors);
            let shown = content(&disk);
            assert_eq!(shown.len(), layer.model.len(), "{what}: size of layer {number}");
            let wrong = shown.iter().zip(&layer.model).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{what}: first wrong byte of layer {number}");
        }
    }
}

//! A chain under test beside its model, and the operations on both.

use crate::cow::CowStorage;
use crate::ops::{Kind, Op, Rng};
use crate::plain::{Layer, Own, PIECE, differ};
use diffdisk::format::Fault;
use diffdisk::storage::Storage;
use diffdisk::{Cancel, CompactOptions, CreateOptions, Disk, ErrorKind, ExtentKind, NoProgress, OpenOptions};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// A second instance looks at a copy of the bytes after this many operations, and after every flush, close and drop.
const PEEK_EVERY: u64 = 4;
/// ... and at all of it, not only at what was touched, after this many.
const WHOLE_EVERY: u64 = 128;

/// Large reads go in steps of this, which is no divisor of a block and a whole number of pieces.
const STRIDE: u64 = 768 << 10;

/// The steps of a range.
fn strides(at: u64, len: u64, stride: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len.div_ceil(stride)).map(move |i| (at + i * stride, (len - i * stride).min(stride)))
}

/// A part of a buffer that only ever grows.
fn room(buf: &mut Vec<u8>, len: u64) -> &mut [u8] {
    if buf.len() < len as usize {
        buf.resize(len as usize, 0xAA);
    }
    &mut buf[..len as usize]
}

pub struct World {
    /// Base first.
    layers: Vec<Layer>,
    files: Vec<Arc<CowStorage>>,
    /// Copies of sealed parents, to prove that nobody wrote to them.
    sealed: Vec<Arc<CowStorage>>,
    disk: Option<Disk>,
    /// Ranges touched since the last look, whole pieces.
    touched: Vec<(u64, u64)>,
    rng: Rng,
    pub log: Vec<String>,
    steps: u64,
    buf: Vec<u8>,
}

type Step = Result<(), String>;

fn say<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}

impl World {
    /// A base of a shape that the seed decides.
    pub fn new(seed: u64) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let block = MIB << [0, 0, 0, 0, 1, 1, 1, 2, 2, 3][rng.below(10) as usize];
        let sector = [512, 512, 4096][rng.below(3) as usize];
        let blocks = 1 + rng.below((20 * MIB / block).min(12));
        let tail = [0, sector, block - sector, block / 2 + sector * 3][rng.below(4) as usize];
        // Every fourth world lies around the border of a chunk, deep inside of a sparse disk.
        let chunk = sector << 23;
        let start = if rng.below(4) == 0 { chunk - (1 + rng.below(blocks)) * block } else { 0 };
        let size = start + (blocks - u64::from(tail > 0 && blocks > 1)) * block + tail;
        let fixed = start == 0 && rng.below(6) == 0;
        let options = if fixed { CreateOptions::fixed(size) } else { CreateOptions::dynamic(size) };
        let options = options.block_size(block).logical_sector(sector as u32).log_size(MIB);
        let file = CowStorage::new();
        let disk = Disk::create_on(Arc::clone(&file) as Arc<dyn Storage>, &options).map_err(say("create"))?;
        let log = vec![format!("base: size {size:#x} from {start:#x}, block {} MiB, sector {sector}, fixed {fixed}", block / MIB)];
        Ok(Self {
            layers: vec![Layer::base(start, size, block, sector)],
            files: vec![file],
            sealed: Vec::new(),
            disk: Some(disk),
            touched: Vec::new(),
            rng,
            log,
            steps: 0,
            buf: Vec::new(),
        })
    }

    fn leaf(&self) -> &Layer {
        self.layers.last().expect("a chain has a leaf")
    }

    fn leaf_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("a chain has a leaf")
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("open between steps")
    }

    fn parents(&self) -> Vec<Arc<dyn Storage>> {
        self.files.iter().rev().skip(1).map(|f| Arc::clone(f) as Arc<dyn Storage>).collect()
    }

    fn open(&mut self, leaf: Arc<CowStorage>, writable: bool) -> Result<Disk, String> {
        let options = OpenOptions::new().writable(writable).untrusted(self.rng.below(2) == 0);
        Disk::open_on(leaf, self.parents(), &options).map_err(say("open"))
    }

    fn reopen(&mut self) -> Step {
        let leaf = Arc::clone(self.files.last().expect("a chain has a leaf"));
        self.disk = Some(self.open(leaf, true)?);
        Ok(())
    }

    fn close(&mut self) -> Step {
        self.disk.take().expect("open between steps").close().map_err(say("close"))?;
        self.leaf_mut().settle();
        Ok(())
    }

    /// One operation on engine and model, then the looks that are due.
    pub fn step(&mut self, op: &Op) -> Step {
        self.steps += 1;
        let (at, len) = op.range(self.leaf());
        self.log.push(format!("{:?} {at:#x}+{len:#x}", op.kind));
        match op.kind {
            Kind::Write => self.write(at, len, op)?,
            Kind::Zero => {
                self.disk().write_zeroes(at, len).map_err(say("write_zeroes"))?;
                self.leaf_mut().write_zeroes(at, len);
            }
            Kind::Trim => {
                self.disk().trim(at, len).map_err(say("trim"))?;
                self.leaf_mut().trim(at, len);
            }
            Kind::Read => {}
            Kind::Flush => {
                self.disk().flush().map_err(say("flush"))?;
                self.leaf_mut().settle();
            }
            Kind::Close => {
                self.close()?;
                self.look(self.steps.is_multiple_of(2), true)?;
                self.reopen()?;
            }
            Kind::Drop => self.forget()?,
            Kind::Extents => self.extents(at, len)?,
            Kind::Child => self.child(op)?,
            Kind::Beyond => self.beyond(len)?,
            Kind::Look => self.look(op.a.is_multiple_of(2), false)?,
            Kind::Compact => self.compact(op)?,
        }
        // Children may be shorter than their parents: the range is that of the leaf as it was.
        if at + len <= self.leaf().size && at >= self.leaf().start {
            self.compare_live(at, len)?;
            self.touched.push((at, len));
        }
        if self.steps.is_multiple_of(PEEK_EVERY) {
            let whole = self.steps.is_multiple_of(WHOLE_EVERY);
            if whole {
                let (start, size) = (self.leaf().start, self.leaf().size);
                self.compare_live(start, size - start)?;
                self.clean(&self.disk().check().map_err(say("check"))?.errors)?;
            }
            self.look(self.steps.is_multiple_of(3 * PEEK_EVERY), whole)?;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, len: u64, op: &Op) -> Step {
        let mut data = std::mem::take(&mut self.buf);
        data.clear();
        // Every sixteen bytes say which write of which layer put them where.
        let stamp = (self.steps as u32, self.layers.len() as u32);
        let end = at + len;
        let mut pos = at - at % 16;
        while pos < end {
            data.extend_from_slice(&stamp.0.to_le_bytes());
            data.extend_from_slice(&(stamp.1 | (op.a as u32) << 8).to_le_bytes());
            data.extend_from_slice(&pos.to_le_bytes());
            pos += 16;
        }
        data.drain(..(at % 16) as usize);
        data.truncate(len as usize);
        // Now and then what compaction looks for: zeros, or what stands below anyway.
        match (op.b >> 40) % 10 {
            0 => data.fill(0),
            1 => {
                if let [.., below, _] = &self.layers[..] {
                    let known = below.size.min(end).saturating_sub(at);
                    data.fill(0);
                    if known > 0 {
                        data[..known as usize].copy_from_slice(below.expect(at, known));
                    }
                }
            }
            _ => {}
        }
        let result = self.disk().write_at(&data, at).map_err(say("write_at"));
        self.leaf_mut().write(at, &data);
        self.buf = data;
        result
    }

    fn compare_live(&mut self, at: u64, len: u64) -> Step {
        let mut buf = std::mem::take(&mut self.buf);
        // What a request touched is read by one request, the whole disk by several.
        let stride = if len == self.leaf().size - self.leaf().start { STRIDE } else { len.max(1) };
        for (from, part) in strides(at, len, stride) {
            let got = room(&mut buf, part);
            self.disk().read_at(got, from).map_err(say("read_at"))?;
            let want = self.leaf().expect(from, part);
            if got != want {
                return Err(format!("live read at {from:#x}: {}", differ(got, want)));
            }
        }
        self.buf = buf;
        Ok(())
    }

    /// The handle goes without a word; the file still holds what was flushed, or anything newer, for each piece by itself.
    fn forget(&mut self) -> Step {
        self.disk = None;
        self.reopen()?;
        let (start, size) = (self.leaf().start, self.leaf().size);
        let mut got = vec![0; (size - start) as usize];
        self.disk().read_at(&mut got, start).map_err(say("read after drop"))?;
        self.leaf().allows(start, &got).map_err(|e| format!("after drop: {e}"))?;
        self.leaf_mut().forget(got);
        self.look(false, true)
    }

    fn clean(&self, errors: &[diffdisk::Finding]) -> Step {
        match errors.first() {
            None => Ok(()),
            Some(f) => Err(format!("check: layer {}: {f}", f.layer)),
        }
    }

    /// A second instance on a copy of the bytes: it must open, `check()` must be content, and what was touched must be allowed.
    fn look(&mut self, writable: bool, whole: bool) -> Step {
        let copy = self.files.last().expect("a chain has a leaf").copy();
        let disk = self.open(Arc::clone(&copy), writable).map_err(|e| format!("second instance: {e}"))?;
        self.clean(&disk.check().map_err(say("check of a copy"))?.errors).map_err(|e| format!("copy: {e}"))?;
        let leaf = self.layers.last().expect("a chain has a leaf");
        let touched = std::mem::take(&mut self.touched);
        let ranges = if whole { vec![(leaf.start, leaf.size - leaf.start)] } else { touched };
        for (at, len) in ranges {
            let piece = PIECE as u64;
            // Piece by piece, so unaligned ranges grow to whole ones.
            let (from, to) = ((at / piece * piece).min(leaf.size), ((at + len).div_ceil(piece) * piece).min(leaf.size));
            for (from, part) in strides(from, to - from, STRIDE) {
                let got = room(&mut self.buf, part);
                disk.read_at(got, from).map_err(say("read of a copy"))?;
                leaf.allows(from, got).map_err(|e| format!("copy (writable {writable}): {e}"))?;
            }
        }
        if writable {
            disk.close().map_err(say("close of a copy"))?;
            let again = self.open(copy, false).map_err(|e| format!("copy after close: {e}"))?;
            self.clean(&again.check().map_err(say("check of a closed copy"))?.errors).map_err(|e| format!("closed copy: {e}"))?;
            if again.info().map_err(say("info"))?.log_dirty {
                return Err("closed copy: the log is not empty".to_owned());
            }
        }
        Ok(())
    }

    /// Who answers for each stretch, and do its bytes in that file agree with what is read?
    fn extents(&mut self, at: u64, len: u64) -> Step {
        let mut next = at;
        let disk = self.disk.as_ref().expect("open between steps");
        for extent in disk.extents(at, len).map_err(say("extents"))? {
            let extent = extent.map_err(say("extent"))?;
            if extent.offset != next || extent.len == 0 || extent.offset + extent.len > at + len {
                return Err(format!("extents: {:#x}+{:#x} does not follow {next:#x}", extent.offset, extent.len));
            }
            next += extent.len;
            let want = self.layers.last().expect("a chain has a leaf").expect(extent.offset, extent.len);
            let owner = match extent.kind {
                ExtentKind::Data { layer, file_offset } => {
                    let file = &self.files[self.files.len() - 1 - layer];
                    let mut got = vec![0; extent.len as usize];
                    file.read_at(&mut got, file_offset).map_err(say("read of a file"))?;
                    if got != want {
                        return Err(format!("extents: data of layer {layer} for {:#x}: {}", extent.offset, differ(&got, want)));
                    }
                    Some(layer)
                }
                ExtentKind::Zero { layer } => {
                    if let Some(i) = want.iter().position(|&b| b != 0) {
                        return Err(format!("extents: zero, but {:#x} is not", extent.offset + i as u64));
                    }
                    layer
                }
            };
            self.owner_is(extent.offset, extent.len, owner)?;
        }
        if next == at + len { Ok(()) } else { Err(format!("extents end at {next:#x}")) }
    }

    /// No layer above the one that answers may own a sector of the stretch, and that one must.
    fn owner_is(&self, at: u64, len: u64, owner: Option<usize>) -> Step {
        let mut end = at + len;
        for (depth, layer) in self.layers.iter().rev().enumerate() {
            // Behind the end of a layer nothing below it counts.
            end = end.min(layer.size);
            if layer.is_base || owner.is_some_and(|o| depth > o) {
                break;
            }
            let wrong = if owner == Some(depth) { Own::No } else { Own::Yes };
            let mut pos = at;
            while pos < end {
                let sector = ((pos - layer.start) / layer.sector) as usize;
                if layer.own[sector] == wrong {
                    return Err(format!("extents: {owner:?} answers for {pos:#x}, but for layer {depth} ownership is {wrong:?}"));
                }
                pos = (pos / layer.sector + 1) * layer.sector;
            }
        }
        Ok(())
    }

    /// The data write GUID as the file has it.
    fn identity(&mut self) -> Result<diffdisk::DataWriteGuid, String> {
        let copy = self.files.last().expect("a chain has a leaf").copy();
        Ok(self.open(copy, false)?.info().map_err(say("info"))?.data_write_guid)
    }

    /// Gives space back, sometimes right after opening, when nothing else has happened in the session.
    fn compact(&mut self, op: &Op) -> Step {
        if op.a.is_multiple_of(4) {
            self.close()?;
            self.reopen()?;
        }
        let options = CompactOptions::new().punch(!op.b.is_multiple_of(5)).relocate(!op.b.is_multiple_of(7));
        let identity = self.identity()?;
        let report = self.disk().compact(&options, &NoProgress, &Cancel::new()).map_err(say("compact"))?;
        if identity != self.identity()? {
            return Err("compact: the data write GUID changed".to_owned());
        }
        self.log.push(format!("   {report:?}"));
        if report.busy_blocks > 0 || report.is_opaque {
            return Err(format!("compact: nobody else is there, yet {report:?}"));
        }
        let file = self.files.last().expect("a chain has a leaf");
        if file.len().map_err(say("len"))? != report.file_after || report.file_after > report.file_before.next_multiple_of(MIB) {
            return Err(format!("compact: the file is as long as {:?}, but {report:?}", file.len()));
        }
        let block = self.leaf().block;
        match &mut self.layers[..] {
            [.., below, leaf] => leaf.compact(Some(below)),
            [leaf] => leaf.compact(None),
            [] => unreachable!("a chain has a leaf"),
        }
        let (start, size) = (self.leaf().start, self.leaf().size);
        self.compare_live(start, size - start)?;
        let check = self.disk().check().map_err(say("check"))?;
        self.clean(&check.errors)?;
        // Blocks of 1 MiB fit everywhere, so no MiB may be unowned.
        let leak = check.notes.iter().find(|note| note.layer == 0 && matches!(note.fault, Fault::Leaked { .. } | Fault::LeakedTail { .. }));
        if let Some(leak) = leak
            && block == MIB
            && !report.is_fixed
            && !op.b.is_multiple_of(7)
        {
            return Err(format!("compact: {} in {} MiB after {report:?}", leak.fault, report.file_after / MIB));
        }
        self.look(op.a.is_multiple_of(3), true)
    }

    /// Seals the leaf (cleanly, or flushed and dropped with its log in use) and puts a child on it.
    fn child(&mut self, op: &Op) -> Step {
        if self.layers.len() == 5 {
            return Ok(());
        }
        if op.a.is_multiple_of(3) {
            self.disk().flush().map_err(say("flush"))?;
            self.leaf_mut().settle();
            self.disk = None;
        } else {
            self.close()?;
        }
        self.look(false, true)?;
        self.sealed.push(self.files.last().expect("a chain has a leaf").copy());
        let parent = self.leaf();
        let block = MIB << (op.a / 3 % 4);
        let sectors = [0, 0, 1, block / parent.sector / 2 + 1, 2 * block / parent.sector][(op.b % 5) as usize] * parent.sector;
        let window = parent.size - parent.start;
        let window =
            if (op.b / 5).is_multiple_of(2) { (window + sectors).min(24 * MIB) } else { window.saturating_sub(sectors).max(parent.sector) };
        let size = parent.start + window;
        let layer = Layer::child(parent, size, block);
        let options = CreateOptions::child().block_size(block).size(size).log_size(MIB);
        let file = CowStorage::new();
        let parents = self.files.iter().rev().map(|f| Arc::clone(f) as Arc<dyn Storage>).collect();
        self.log.push(format!("   child {}: size {size:#x}, block {} MiB", self.layers.len(), block / MIB));
        let disk = Disk::create_child_on(Arc::clone(&file) as Arc<dyn Storage>, parents, &options).map_err(say("create child"))?;
        self.disk = Some(disk);
        self.files.push(file);
        self.layers.push(layer);
        self.touched.clear();
        self.compare_live(self.leaf().start, size - self.leaf().start)
    }

    /// Requests that reach over the end are refused, and change nothing.
    fn beyond(&mut self, len: u64) -> Step {
        let size = self.leaf().size;
        let len = len.clamp(1, 4096);
        let mut buf = vec![0xBE; len as usize];
        let at = size - len / 2;
        let disk = self.disk();
        let refused = [
            disk.write_at(&buf, at + u64::from(len == 1)),
            disk.read_at(&mut buf, size),
            disk.write_zeroes(at, len.max(2)),
            disk.trim(size, 1),
            disk.read_at(&mut buf, u64::MAX - 1),
            disk.trim(1, u64::MAX),
        ];
        for (i, result) in refused.into_iter().enumerate() {
            match result.map_err(|e| e.kind()) {
                Err(ErrorKind::InvalidInput) => {}
                other => return Err(format!("request {i} over the end: {other:?}")),
            }
        }
        let tail = len.min(size - self.leaf().start);
        self.compare_live(size - tail, tail)
    }

    /// Close, look at everything once more, and prove that no parent was written.
    pub fn finish(&mut self) -> Step {
        self.close()?;
        self.look(false, true)?;
        for (i, (file, sealed)) in self.files.iter().zip(&self.sealed).enumerate() {
            if !file.same_as(sealed) {
                return Err(format!("parent {i} was written"));
            }
        }
        Ok(())
    }
}

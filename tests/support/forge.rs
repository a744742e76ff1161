//! A second VHDX writer, for tests only: every byte is placed by hand from the format's description.
//!
//! Nothing here uses the engine's codecs, so a mistake in them cannot hide behind itself. [`Vhdx`] holds the knobs, [`Vhdx::build`]
//! turns them into an [`Image`]: a length and the pages that are not zero. An image can be edited afterwards, structure by
//! structure; [`Image::edit`] signs what it changed again, because a lie with a wrong checksum tests nothing but the checksum.

use diffdisk::storage::{MemoryStorage, Storage};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

pub type RawGuid = [u8; 16];

/// Text groups to disk order: the first three are little-endian.
pub const fn guid(text: u128) -> RawGuid {
    let b = text.to_be_bytes();
    [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
}

/// Disk order to the text a parent locator holds.
pub fn guid_text(g: RawGuid) -> String {
    let h = |range: &[usize]| range.iter().map(|&i| format!("{:02x}", g[i])).collect::<String>();
    format!("{{{}-{}-{}-{}-{}}}", h(&[3, 2, 1, 0]), h(&[5, 4]), h(&[7, 6]), h(&[8, 9]), h(&[10, 11, 12, 13, 14, 15]))
}

pub const REGION_BAT: RawGuid = guid(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
pub const REGION_METADATA: RawGuid = guid(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);
pub const ITEM_PARAMETERS: RawGuid = guid(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
pub const ITEM_SIZE: RawGuid = guid(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
pub const ITEM_DISK_ID: RawGuid = guid(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
pub const ITEM_LOGICAL: RawGuid = guid(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
pub const ITEM_PHYSICAL: RawGuid = guid(0xCDA348C7_445D_4471_9CC9_E9885251C556);
pub const ITEM_LOCATOR: RawGuid = guid(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
pub const ITEM_INCOMPLETE: RawGuid = guid(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);
pub const LOCATOR_VHDX: RawGuid = guid(0xB04AEFB7_D19E_4A81_B789_25B8E9445913);

/// Identities of the reference vectors: (file write GUID, data write GUID) of the base.
pub const BASE_IDS: (RawGuid, RawGuid) = (guid(0x11111111_2222_3333_4444_555555555555), guid(0xa0a1a2a3_b0b1_c0c1_d0d1_e0e1e2e3e4e5));
/// The same of its child.
pub const CHILD_IDS: (RawGuid, RawGuid) = (guid(0x22222222_2222_3333_4444_555555555555), guid(0xb0b1b2b3_b0b1_c0c1_d0d1_e0e1e2e3e4e5));
pub const LOG_GUID: RawGuid = guid(0x0f0e0d0c_0b0a_0908_0706_050403020100);

/// CRC-32C, bit-reflected, one table of 256.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0_u32; 256];
        let mut i = 0;
        while i < 256 {
            let mut c = i as u32;
            let mut k = 0;
            while k < 8 {
                c = if c & 1 == 1 { (c >> 1) ^ 0x82F6_3B78 } else { c >> 1 };
                k += 1;
            }
            table[i] = c;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0_u32, |c, &b| (c >> 8) ^ TABLE[((c ^ u32::from(b)) & 0xFF) as usize])
}

/// Puts the checksum of `bytes` at its offset 4, where every checksummed structure has it.
pub fn sign(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let crc = crc32c(bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

pub fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[derive(Clone, Debug)]
pub struct Region {
    pub id: RawGuid,
    pub at: u64,
    pub len: u32,
    pub required: u32,
}

#[derive(Clone, Debug)]
pub struct Item {
    pub id: RawGuid,
    pub flags: u32,
    pub data: Vec<u8>,
    /// Offset and length as the table claims them; laid out one after the other when `None`.
    pub claim: Option<(u32, u32)>,
}

/// The pairs of a parent locator, raw: keys and values are bytes, so they need not be text.
#[derive(Clone, Debug)]
pub struct Locator {
    pub kind: RawGuid,
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Locator {
    pub fn new(linkage: RawGuid, relative: &str) -> Self {
        let pairs = vec![(utf16("parent_linkage"), utf16(&guid_text(linkage))), (utf16("relative_path"), utf16(relative))];
        Self { kind: LOCATOR_VHDX, pairs }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.kind.to_vec();
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&(self.pairs.len() as u16).to_le_bytes());
        let mut table = Vec::new();
        let mut strings = Vec::new();
        let base = 20 + 12 * self.pairs.len();
        for (key, value) in &self.pairs {
            let key_at = (base + strings.len()) as u32;
            let value_at = key_at + key.len() as u32;
            table.extend_from_slice(&key_at.to_le_bytes());
            table.extend_from_slice(&value_at.to_le_bytes());
            table.extend_from_slice(&(key.len() as u16).to_le_bytes());
            table.extend_from_slice(&(value.len() as u16).to_le_bytes());
            strings.extend_from_slice(key);
            strings.extend_from_slice(value);
        }
        out.extend(table);
        out.extend(strings);
        out
    }
}

/// The knobs. `dynamic`, `fixed` and `child_of` set them all; change any before `build`.
#[derive(Clone, Debug)]
pub struct Vhdx {
    pub creator: Vec<u8>,
    pub file_write: RawGuid,
    pub data_write: RawGuid,
    pub log_guid: RawGuid,
    pub log_version: u16,
    pub version: u16,
    /// Of header 1 and header 2.
    pub sequence: [u64; 2],
    pub log_at: u64,
    pub log_len: u32,
    pub regions: Vec<Region>,
    pub items: Vec<Item>,
    /// BAT entries by index in the table, interleaving included.
    pub bat: BTreeMap<u64, u64>,
    /// Anything else: payload, bitmaps.
    pub bytes: Vec<(u64, Vec<u8>)>,
    /// (offset in the ring, entry as encoded); wraps at the end of the ring.
    pub log: Vec<(u64, Vec<u8>)>,
    pub len: u64,
}

pub const LOG_AT: u64 = MIB;
pub const METADATA_AT: u64 = 2 * MIB;
pub const BAT_AT: u64 = 3 * MIB;
pub const DATA_AT: u64 = 4 * MIB;

pub fn present(at: u64) -> u64 {
    at | 6
}

pub fn partial(at: u64) -> u64 {
    at | 7
}

impl Vhdx {
    pub fn dynamic(size: u64, block: u32) -> Self {
        let item = |id, flags, data: &[u8]| Item { id, flags, data: data.to_vec(), claim: None };
        let mut parameters = block.to_le_bytes().to_vec();
        parameters.extend([0; 4]);
        Self {
            creator: utf16("ref-vector 1"),
            file_write: BASE_IDS.0,
            data_write: BASE_IDS.1,
            log_guid: [0; 16],
            log_version: 0,
            version: 1,
            sequence: [0, 1],
            log_at: LOG_AT,
            log_len: MIB as u32,
            regions: vec![
                Region { id: REGION_BAT, at: BAT_AT, len: MIB as u32, required: 1 },
                Region { id: REGION_METADATA, at: METADATA_AT, len: MIB as u32, required: 1 },
            ],
            items: vec![
                item(ITEM_PARAMETERS, 4, &parameters),
                item(ITEM_SIZE, 6, &size.to_le_bytes()),
                item(ITEM_LOGICAL, 6, &512_u32.to_le_bytes()),
                item(ITEM_PHYSICAL, 6, &4096_u32.to_le_bytes()),
                item(ITEM_DISK_ID, 6, &guid(0x01234567_89ab_cdef_0123_456789abcdef)),
            ],
            bat: BTreeMap::new(),
            bytes: Vec::new(),
            log: Vec::new(),
            len: DATA_AT,
        }
    }

    /// All blocks present, one after the other from 4 MiB on.
    pub fn fixed(size: u64, block: u32) -> Self {
        let mut disk = Self::dynamic(size, block);
        disk.set_flags(1);
        let ratio = (512 << 23) / u64::from(block);
        for b in 0..size.div_ceil(u64::from(block)) {
            disk.bat.insert(b + b / ratio, present(DATA_AT + b * u64::from(block)));
            disk.len = DATA_AT + (b + 1) * u64::from(block);
        }
        disk
    }

    pub fn child_of(parent: &Self, relative: &str) -> Self {
        let mut disk = parent.clone();
        (disk.file_write, disk.data_write) = CHILD_IDS;
        (disk.log_guid, disk.len) = ([0; 16], DATA_AT);
        (disk.bat, disk.bytes, disk.log) = Default::default();
        disk.items.retain(|item| item.id != ITEM_LOCATOR);
        disk.set_flags(2);
        disk.set_locator(&Locator::new(parent.data_write, relative));
        disk
    }

    pub fn set_locator(&mut self, locator: &Locator) {
        self.items.retain(|item| item.id != ITEM_LOCATOR);
        self.items.push(Item { id: ITEM_LOCATOR, flags: 4, data: locator.encode(), claim: None });
    }

    pub fn item(&mut self, id: RawGuid) -> &mut Item {
        self.items.iter_mut().find(|item| item.id == id).expect("the item is there")
    }

    pub fn set_flags(&mut self, flags: u32) {
        self.item(ITEM_PARAMETERS).data[4..8].copy_from_slice(&flags.to_le_bytes());
    }

    pub fn set_logical(&mut self, bytes: u32) {
        self.item(ITEM_LOGICAL).data = bytes.to_le_bytes().to_vec();
    }

    /// Marks the log as in use, with this one entry at the start of the ring.
    pub fn dirty(mut self, entry: &Entry) -> Self {
        self.log_guid = entry.guid;
        self.log.push((0, entry.encode()));
        self
    }

    pub fn fill(&mut self, at: u64, len: u64, byte: u8) {
        self.bytes.push((at, vec![byte; len as usize]));
    }

    pub fn build(&self) -> Image {
        let mut image = Image { len: self.len, pages: BTreeMap::new(), bat_at: BAT_AT, metadata_at: METADATA_AT, log_at: self.log_at };
        image.put(0, b"vhdxfile");
        image.put(8, &self.creator);
        for slot in 0..2 {
            image.put(Image::header_at(slot), &self.header(slot));
            image.put(Image::region_at(slot), &self.region_table());
        }
        if let Some(region) = self.regions.iter().find(|r| r.id == REGION_METADATA) {
            image.metadata_at = region.at;
        }
        if let Some(region) = self.regions.iter().find(|r| r.id == REGION_BAT) {
            image.bat_at = region.at;
        }
        self.metadata(&mut image);
        for (&index, &entry) in &self.bat {
            image.put(image.bat_at + 8 * index, &entry.to_le_bytes());
        }
        for (at, bytes) in &self.bytes {
            image.put(*at, bytes);
        }
        for (pos, entry) in &self.log {
            image.put_log(*pos, u64::from(self.log_len), entry);
        }
        image
    }

    fn header(&self, slot: usize) -> Vec<u8> {
        let mut h = vec![0; 4096];
        h[..4].copy_from_slice(b"head");
        h[8..16].copy_from_slice(&self.sequence[slot].to_le_bytes());
        h[16..32].copy_from_slice(&self.file_write);
        h[32..48].copy_from_slice(&self.data_write);
        h[48..64].copy_from_slice(&self.log_guid);
        h[64..66].copy_from_slice(&self.log_version.to_le_bytes());
        h[66..68].copy_from_slice(&self.version.to_le_bytes());
        h[68..72].copy_from_slice(&self.log_len.to_le_bytes());
        h[72..80].copy_from_slice(&self.log_at.to_le_bytes());
        sign(&mut h);
        h
    }

    fn region_table(&self) -> Vec<u8> {
        let mut t = vec![0; 64 << 10];
        t[..4].copy_from_slice(b"regi");
        t[8..12].copy_from_slice(&(self.regions.len() as u32).to_le_bytes());
        for (region, entry) in self.regions.iter().zip(t[16..].chunks_exact_mut(32)) {
            entry[..16].copy_from_slice(&region.id);
            entry[16..24].copy_from_slice(&region.at.to_le_bytes());
            entry[24..28].copy_from_slice(&region.len.to_le_bytes());
            entry[28..32].copy_from_slice(&region.required.to_le_bytes());
        }
        sign(&mut t);
        t
    }

    fn metadata(&self, image: &mut Image) {
        let base = image.metadata_at;
        image.put(base, b"metadata");
        image.put(base + 10, &(self.items.len() as u16).to_le_bytes());
        let mut next = 0x10000_u32;
        for (i, item) in self.items.iter().enumerate() {
            let (at, len) = item.claim.unwrap_or((if item.data.is_empty() { 0 } else { next }, item.data.len() as u32));
            let mut entry = item.id.to_vec();
            for word in [at, len, item.flags, 0] {
                entry.extend(word.to_le_bytes());
            }
            image.put(base + 32 + 32 * i as u64, &entry);
            if item.claim.is_none() {
                image.put(base + u64::from(next), &item.data);
                next += item.data.len() as u32;
            }
        }
    }
}

/// One change named by a log entry.
#[derive(Clone, Debug)]
pub enum Change {
    Data { at: u64, sector: Vec<u8> },
    Zero { at: u64, len: u64 },
}

/// A log entry before it is bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    pub guid: RawGuid,
    pub sequence: u64,
    pub tail: u32,
    pub flushed: u64,
    pub last: u64,
    pub changes: Vec<Change>,
}

impl Entry {
    pub fn new(sequence: u64, tail: u32, len: u64, changes: Vec<Change>) -> Self {
        Self { guid: LOG_GUID, sequence, tail, flushed: len, last: len, changes }
    }

    pub fn encode(&self) -> Vec<u8> {
        let data = self.changes.iter().filter(|c| matches!(c, Change::Data { .. })).count();
        let head = (64 + 32 * self.changes.len()).div_ceil(4096) * 4096;
        let mut out = vec![0; head];
        out[..4].copy_from_slice(b"loge");
        out[8..12].copy_from_slice(&((head + 4096 * data) as u32).to_le_bytes());
        out[12..16].copy_from_slice(&self.tail.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..28].copy_from_slice(&(self.changes.len() as u32).to_le_bytes());
        out[32..48].copy_from_slice(&self.guid);
        out[48..56].copy_from_slice(&self.flushed.to_le_bytes());
        out[56..64].copy_from_slice(&self.last.to_le_bytes());
        let mut sectors = Vec::new();
        for (i, change) in self.changes.iter().enumerate() {
            let d = &mut out[64 + 32 * i..96 + 32 * i];
            match change {
                Change::Data { at, sector } => {
                    d[..4].copy_from_slice(b"desc");
                    d[4..8].copy_from_slice(&sector[4092..]);
                    d[8..16].copy_from_slice(&sector[..8]);
                    d[16..24].copy_from_slice(&at.to_le_bytes());
                    sectors.extend_from_slice(b"data");
                    sectors.extend_from_slice(&((self.sequence >> 32) as u32).to_le_bytes());
                    sectors.extend_from_slice(&sector[8..4092]);
                    sectors.extend_from_slice(&(self.sequence as u32).to_le_bytes());
                }
                Change::Zero { at, len } => {
                    d[..4].copy_from_slice(b"zero");
                    d[8..16].copy_from_slice(&len.to_le_bytes());
                    d[16..24].copy_from_slice(&at.to_le_bytes());
                }
            }
            d[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        }
        out.extend(sectors);
        sign(&mut out);
        out
    }
}

/// A sector of the BAT that holds these first entries and zeros behind them.
pub fn bat_sector(entries: &[u64]) -> Vec<u8> {
    let mut sector: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    sector.resize(4096, 0);
    sector
}

/// Places that can be edited by name.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Slot and offset in the 4 KiB structure.
    Header(usize, u64),
    /// Copy and offset in the 64 KiB table.
    Regions(usize, u64),
    /// Offset in the metadata region.
    Metadata(u64),
    /// Anywhere.
    File(u64),
}

/// A file: its length and its pages that are not zero.
#[derive(Clone, Debug)]
pub struct Image {
    pub len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    bat_at: u64,
    metadata_at: u64,
    log_at: u64,
}

impl Image {
    /// A file that is no VHDX at all.
    pub fn raw(len: u64) -> Self {
        Self { len, pages: BTreeMap::new(), bat_at: 0, metadata_at: 0, log_at: 0 }
    }

    fn header_at(slot: usize) -> u64 {
        0x10000 + 0x10000 * slot as u64
    }

    fn region_at(copy: usize) -> u64 {
        0x30000 + 0x10000 * copy as u64
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let pos = at + done as u64;
            let within = (pos % PAGE) as usize;
            let part = (PAGE as usize - within).min(bytes.len() - done);
            let page = self.pages.entry(pos / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[within..within + part].copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        for (&page, bytes) in self.pages.range(at / PAGE..(at + len as u64).div_ceil(PAGE)) {
            let (from, to) = (at.max(page * PAGE), (at + len as u64).min((page + 1) * PAGE));
            out[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&bytes[(from - page * PAGE) as usize..(to - page * PAGE) as usize]);
        }
        out
    }

    fn put_log(&mut self, pos: u64, ring: u64, entry: &[u8]) {
        for (i, sector) in entry.chunks(4096).enumerate() {
            self.put(self.log_at + (pos + 4096 * i as u64) % ring, sector);
        }
    }

    /// Writes `bytes` at `place` and signs the structure around it again.
    pub fn edit(mut self, place: Place, bytes: &[u8]) -> Self {
        let (start, size, within) = match place {
            Place::Header(slot, at) => (Self::header_at(slot), 4096, at),
            Place::Regions(copy, at) => (Self::region_at(copy), 64 << 10, at),
            Place::Metadata(at) => (self.metadata_at, 0, at),
            Place::File(at) => (0, 0, at),
        };
        self.put(start + within, bytes);
        if size > 0 {
            let mut whole = self.get(start, size);
            sign(&mut whole);
            self.put(start, &whole);
        }
        self
    }

    /// The same edit in both headers.
    pub fn edit_headers(self, within: u64, bytes: &[u8]) -> Self {
        self.edit(Place::Header(0, within), bytes).edit(Place::Header(1, within), bytes)
    }

    /// The same edit in both region tables.
    pub fn edit_regions(self, within: u64, bytes: &[u8]) -> Self {
        self.edit(Place::Regions(0, within), bytes).edit(Place::Regions(1, within), bytes)
    }

    /// Flips one bit, and signs nothing.
    pub fn flip(mut self, at: u64) -> Self {
        let byte = self.get(at, 1)[0] ^ 0x10;
        self.put(at, &[byte]);
        self
    }

    /// Cuts the file off, or extends it with zeros.
    pub fn with_len(mut self, len: u64) -> Self {
        self.len = len;
        self
    }

    pub fn storage(&self) -> Arc<MemoryStorage> {
        let file = MemoryStorage::new();
        for (&page, bytes) in self.pages.range(..self.len.div_ceil(PAGE)) {
            let keep = (self.len - page * PAGE).min(PAGE) as usize;
            file.write_at(&bytes[..keep], page * PAGE).expect("memory takes it");
        }
        file.set_len(self.len).expect("memory takes it");
        Arc::new(file)
    }

    pub fn write_to(&self, path: &std::path::Path) -> std::io::Result<()> {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::File::create(path)?;
        for (&page, bytes) in self.pages.range(..self.len.div_ceil(PAGE)) {
            file.seek(SeekFrom::Start(page * PAGE))?;
            file.write_all(&bytes[..(self.len - page * PAGE).min(PAGE) as usize])?;
        }
        file.set_len(self.len)
    }
}

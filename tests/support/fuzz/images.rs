//! The files that inputs start from. Each is built once and costs a clone of a few hundred KiB.

use super::forge::*;
use std::cell::OnceCell;

/// Leaf first, and where the leaf's BAT stands.
#[derive(Clone)]
pub struct Base {
    pub chain: Vec<Image>,
    pub bat_at: u64,
}

pub const BASES: usize = 8;

/// 8 MiB, block 0 present with two pages of 0xA0, block 2 of zeros, block 3 with two of 0xA3.
pub fn small() -> Vhdx {
    let mut disk = Vhdx::dynamic(8 * MIB, MIB as u32);
    disk.bat.extend([(0, present(DATA_AT)), (2, 2), (3, present(DATA_AT + MIB))]);
    disk.fill(DATA_AT, 8192, 0xA0);
    disk.fill(DATA_AT + MIB, 8192, 0xA3);
    disk.len = DATA_AT + 2 * MIB;
    disk
}

/// Over [`small`]: block 0 partially present (sectors 0 to 7 and 16), 1 present, 2 unmapped, 3 zeros, 4 undefined, the rest not
/// present.
pub fn child() -> Vhdx {
    let mut disk = Vhdx::child_of(&small(), "parent.vhdx");
    disk.bat.extend([(0, partial(DATA_AT)), (1, present(DATA_AT + MIB)), (2, 3), (3, 2), (4, 1), (4096, present(DATA_AT + 2 * MIB))]);
    disk.fill(DATA_AT, 16384, 0xB0);
    disk.fill(DATA_AT + MIB, 8192, 0xB1);
    disk.bytes.push((DATA_AT + 2 * MIB, vec![0xFF, 0x00, 0x01]));
    disk.len = DATA_AT + 3 * MIB;
    disk
}

/// A log of three entries that wraps: block 0 away, block 1 present, block 0 back.
pub fn dirty(mut disk: Vhdx) -> Vhdx {
    let bat = |entries: &[u64]| vec![Change::Data { at: BAT_AT, sector: bat_sector(entries) }];
    let ring = disk.log_len;
    let zero = Change::Zero { at: DATA_AT + MIB + 4096, len: 4096 };
    let entries = [
        (ring - 0x3000, Entry::new(5, ring - 0x3000, disk.len, bat(&[2]))),
        (ring - 0x1000, Entry::new(6, ring - 0x3000, disk.len, vec![zero])),
        (0, Entry::new(7, ring - 0x3000, disk.len, bat(&[present(DATA_AT), present(DATA_AT + MIB)]))),
    ];
    disk.log_guid = LOG_GUID;
    disk.log = entries.into_iter().map(|(at, entry)| (u64::from(at), entry.encode())).collect();
    disk
}

/// 64 TiB with blocks of `block`; the region table, the BAT and the payload have their usual order.
fn huge(block: u32) -> Vhdx {
    let mut disk = Vhdx::dynamic(64 << 40, block);
    let blocks = (64_u64 << 40) / u64::from(block);
    let entries = blocks + blocks.div_ceil((512 << 23) / u64::from(block));
    let len = (entries * 8).div_ceil(MIB) * MIB;
    disk.regions[0].len = len as u32;
    let data = BAT_AT + len;
    disk.bat.insert(0, present(data));
    disk.bat.insert(entries - 2, present(data + u64::from(block)));
    disk.fill(data, 4096, 0xC0);
    disk.len = data + 2 * u64::from(block);
    disk
}

fn build(n: usize) -> Base {
    let mut large_sectors = small();
    large_sectors.set_logical(4096);
    let mut fixed = Vhdx::fixed(4 * MIB, MIB as u32);
    fixed.fill(DATA_AT, 4096, 0xD0);
    let chain = match n {
        0 => vec![small()],
        1 => vec![child(), small()],
        2 => vec![fixed],
        3 => vec![large_sectors],
        4 => vec![dirty(small())],
        5 => vec![dirty(child()), dirty(small())],
        6 => vec![huge(256 << 20)],
        _ => vec![huge(32 << 20)],
    };
    Base { chain: chain.iter().map(Vhdx::build).collect(), bat_at: BAT_AT }
}

/// The `n`th base.
pub fn base(n: usize) -> Base {
    thread_local! {
        static BUILT: [OnceCell<Base>; BASES] = const { [const { OnceCell::new() }; BASES] };
    }
    BUILT.with(|all| all[n % BASES].get_or_init(|| build(n % BASES)).clone())
}

//! The forge against the published vectors of the format's description: proof that the second writer writes VHDX.

use crate::forge::*;
use sha2::{Digest, Sha256};

/// The two reference files: a dynamic disk and its child.
pub fn va() -> Vhdx {
    Vhdx::dynamic(64 * MIB, 2 << 20)
}

pub fn vb() -> Vhdx {
    let mut vb = Vhdx::child_of(&va(), r".\va.vhdx");
    vb.bat.extend([(0, partial(DATA_AT)), (1, 2), (2, 3), (2048, present(6 * MIB))]);
    for (sector, byte) in [(0, 0xC0), (9, 0xC9), (4095, 0xCF)] {
        vb.fill(DATA_AT + 512 * sector, 512, byte);
    }
    for (at, byte) in [(0, 1), (1, 2), (511, 0x80)] {
        vb.fill(6 * MIB + at, 1, byte);
    }
    vb.len = 7 * MIB;
    vb
}

fn sha256(image: &Image) -> String {
    let bytes = image.storage().to_bytes();
    Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_checksum_is_castagnoli() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(&[0; 65536]), 0x72C0_C4A4);
}

#[test]
fn the_reference_files_come_out_byte_for_byte() {
    assert_eq!(sha256(&va().build()), "b51933d28c2601da2c590c6a0575ae568930ab0d6ed3289e90780944d5de2f8a");
    assert_eq!(sha256(&vb().build()), "be821e0f489d7a5264d1c7d243a2bf23987674ed15cb03b73d2d198128943f0d");
}

#[test]
fn headers_tables_and_entries_have_the_published_checksums() {
    let image = va().build();
    assert_eq!(image.get(0x20004, 4), 0xCCAC_1DBC_u32.to_le_bytes());
    assert_eq!(image.get(0x10004, 4), 0x4E54_81CB_u32.to_le_bytes());
    assert_eq!(image.get(0x30004, 4), 0xC66B_8CAE_u32.to_le_bytes());
    let edited = image.edit(Place::Header(1, 8), &2_u64.to_le_bytes()).edit(Place::Header(1, 48), &LOG_GUID);
    assert_eq!(edited.get(0x20004, 4), 0x8CBA_A74D_u32.to_le_bytes());

    let empty = Entry::new(1, 0, 4 * MIB, Vec::new()).encode();
    assert_eq!(empty[4..8], 0xB05E_822F_u32.to_le_bytes());
    let mut sector: Vec<u8> = (0..4096).map(|i| i as u8).collect();
    sector[..8].copy_from_slice(&0x40_0006_u64.to_le_bytes());
    let changes = vec![Change::Data { at: 0x30_0000, sector }, Change::Zero { at: 0x30_1000, len: 0x2000 }];
    let entry = Entry { guid: LOG_GUID, sequence: 0x1122_3344_5566_7788, tail: 0x1000, flushed: 4 * MIB, last: 5 * MIB, changes }.encode();
    assert_eq!((entry.len(), &entry[4..8]), (0x2000, &0x55AB_4553_u32.to_le_bytes()[..]));
}

#[test]
fn the_locator_is_the_published_one() {
    let locator = Locator::new(BASE_IDS.1, r".\p.vhdx").encode();
    assert_eq!(locator.len(), 190);
    assert_eq!(locator[16..32], [0, 0, 2, 0, 0x2C, 0, 0, 0, 0x48, 0, 0, 0, 0x1C, 0, 0x4C, 0]);
    assert_eq!(locator[32..44], [0x94, 0, 0, 0, 0xAE, 0, 0, 0, 0x1A, 0, 0x10, 0]);
}

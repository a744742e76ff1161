//! Two complete files, put together from the codecs alone and compared by digest with files that qemu-img (the base), 7-Zip and
//! libvhdi (both) were seen to open.

use diffdisk::format::{
    BAT_REGION, BitmapState, Header, HeaderSlot, METADATA_REGION, Metadata, ParentLocator, PayloadState, REGION_TABLES, Region,
    RegionTable, encode_identifier, set_range,
};
use diffdisk::units::{BlockHome, FileOffset};
use diffdisk::{DataWriteGuid, FileWriteGuid, LogGuid};
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;
const VA_DATA: &str = "a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5";

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn hex_digest(file: &[u8]) -> String {
    Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn region(guid: diffdisk::Guid, mib: u64) -> Region {
    Region { guid, offset: FileOffset::new(mib << 20), length: 1 << 20, required: true }
}

/// Everything but BAT and payload.
fn skeleton(len: usize, file_write: &str, data_write: &str, parent_locator: Option<ParentLocator>) -> Vec<u8> {
    let mut file = vec![0; len];
    put(&mut file, 0, &encode_identifier("ref-vector 1"));
    for (slot, sequence) in [(HeaderSlot::One, 0), (HeaderSlot::Two, 1)] {
        let header = Header {
            sequence,
            file_write: FileWriteGuid::new(file_write.parse().unwrap()),
            data_write: DataWriteGuid::new(data_write.parse().unwrap()),
            log: LogGuid::default(),
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        };
        put(&mut file, slot.offset().get() as usize, header.encode().as_slice());
    }
    let table = RegionTable { entries: vec![region(BAT_REGION, 3), region(METADATA_REGION, 2)] };
    for at in REGION_TABLES {
        put(&mut file, at.get() as usize, &table.encode());
    }
    let metadata = Metadata {
        block_size: 2 << 20,
        leave_blocks_allocated: false,
        has_parent: parent_locator.is_some(),
        virtual_size: 64 << 20,
        disk_id: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        logical_sector: 512,
        physical_sector: 4096,
        parent_locator,
        others: Vec::new(),
    };
    put(&mut file, 2 * MIB, &metadata.encode_region());
    file
}

#[test]
fn the_dynamic_reference_file_has_its_digest() {
    let file = skeleton(4 * MIB, "11111111-2222-3333-4444-555555555555", VA_DATA, None);
    assert_eq!(hex_digest(&file), "b51933d28c2601da2c590c6a0575ae568930ab0d6ed3289e90780944d5de2f8a");
}

#[test]
fn the_differencing_reference_file_has_its_digest() {
    let locator = ParentLocator::new(DataWriteGuid::new(VA_DATA.parse().unwrap()), &[("relative_path", ".\\va.vhdx")]);
    let (file_write, data_write) = ("22222222-2222-3333-4444-555555555555", "b0b1b2b3-b0b1-c0c1-d0d1-e0e1e2e3e4e5");
    let mut file = skeleton(7 * MIB, file_write, data_write, Some(locator));
    let home = |mib| BlockHome::from_mib(mib).unwrap();
    for (index, word) in [
        (0, PayloadState::PartiallyPresent(home(4)).encode()),
        (1, PayloadState::Zero.encode()),
        (2, PayloadState::Unmapped.encode()),
        (2048, BitmapState::Present(home(6)).encode()),
    ] {
        put(&mut file, 3 * MIB + index * 8, &word.to_le_bytes());
    }
    let mut bitmap = vec![0_u8; MIB];
    for (sector, fill) in [(0, 0xC0), (9, 0xC9), (4095, 0xCF)] {
        put(&mut file, 4 * MIB + sector * 512, &[fill; 512]);
        set_range(bitvec::slice::BitSlice::from_slice_mut(&mut bitmap), sector as u32, 1);
    }
    put(&mut file, 6 * MIB, &bitmap);
    assert_eq!(hex_digest(&file), "be821e0f489d7a5264d1c7d243a2bf23987674ed15cb03b73d2d198128943f0d");
}

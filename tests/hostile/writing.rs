//! The rows that only show when the file is opened for writing.

use crate::forge::*;
use crate::head::small;
use crate::table::{bytes_of, open};
use diffdisk::storage::Storage;
use diffdisk::{ErrorKind, OpenOptions};

fn writable() -> OpenOptions {
    OpenOptions::new().writable(true)
}

#[test]
fn row_2_no_header_can_follow_the_last_sequence_number() {
    for slot in [0, 1] {
        let file = small().build().edit(Place::Header(slot, 8), &u64::MAX.to_le_bytes()).storage();
        let before = file.to_bytes();
        let result = open(std::slice::from_ref(&file), &writable())
            .and_then(|disk| disk.write_at(&[1; 512], 0).and_then(|()| disk.flush()).map_err(|e| crate::table::explain(e.kind(), &e)));
        let (kind, text) = result.unwrap_err();
        assert_eq!(kind, ErrorKind::Damaged, "{text}");
        assert!(text.contains("header"), "{text}");
        assert_eq!(file.to_bytes(), before, "a refused file is left alone");
    }
}

#[test]
fn row_5_a_file_without_a_log_gets_one_or_a_clear_no() {
    let file = small().build().edit_headers(68, &[0; 4]).storage();
    match open(std::slice::from_ref(&file), &writable()) {
        Ok(disk) => {
            disk.write_at(&[7; 4096], 3 * MIB).unwrap();
            disk.close().unwrap();
            let disk = open(&[file], &OpenOptions::new()).unwrap();
            let mut buf = [0; 4096];
            disk.read_at(&mut buf, 3 * MIB).unwrap();
            assert_eq!(buf, [7; 4096]);
        }
        Err((kind, text)) => assert!(matches!(kind, ErrorKind::Unsupported | ErrorKind::Damaged), "{text}"),
    }
}

/// The escape: a guest that writes to its disk must never write the file's own structures.
#[test]
fn row_31_a_block_over_a_structure_is_never_written() {
    for place in [0, MIB, METADATA_AT, BAT_AT] {
        for state in [6, 7] {
            let mut disk = Vhdx::child_of(&small(), "base.vhdx");
            disk.bat.extend([(1, place | state), (4096, present(5 * MIB))]);
            disk.len = 6 * MIB;
            disk.fill(5 * MIB, 4096, 0xFF);
            let chain = [disk.build().storage(), small().build().storage()];
            let identifier = bytes_of(&chain[0], 0, 64 << 10);
            let Ok(disk) = open(&chain, &writable()) else { continue };
            let write = disk.write_at(&[0x66; 4096], MIB).map_err(|e| e.kind());
            assert_eq!(write, Err(ErrorKind::Damaged), "place {place:#x}");
            for outcome in [disk.trim(MIB, MIB), disk.write_zeroes(MIB, MIB)] {
                if let Err(e) = outcome {
                    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
                }
            }
            drop(disk);
            assert_eq!(bytes_of(&chain[0], 0, 64 << 10), identifier);
            let all = bytes_of(&chain[0], 0, 4 << 20);
            assert!(!all.windows(64).any(|w| w == [0x66; 64]), "the guest's bytes are among the structures");
        }
    }
}

#[test]
fn row_15_replay_extends_the_file_to_the_last_offset() {
    let mut entry = Entry::new(1, 0, 4 * MIB, Vec::new());
    entry.last = 10 * MIB;
    let file = Vhdx::dynamic(64 * MIB, 2 << 20).dirty(&entry).build().storage();
    let disk = open(std::slice::from_ref(&file), &writable()).unwrap();
    assert!(file.len().unwrap() >= 10 * MIB);
    disk.close().unwrap();
    assert_eq!(bytes_of(&file, 0x10000 + 48, 16), [0; 16], "the log of header 1 is empty");
    assert_eq!(bytes_of(&file, 0x20000 + 48, 16), [0; 16], "the log of header 2 is empty");
}

#[test]
fn replay_keeps_the_data_write_guid() {
    let change = Change::Data { at: BAT_AT, sector: bat_sector(&[2]) };
    let file = small().dirty(&Entry::new(1, 0, 5 * MIB, vec![change])).build().storage();
    open(std::slice::from_ref(&file), &writable()).unwrap().close().unwrap();
    for slot in [0x10000, 0x20000] {
        assert_eq!(bytes_of(&file, slot + 32, 16), BASE_IDS.1, "children still find it");
        assert_ne!(bytes_of(&file, slot + 16, 16), BASE_IDS.0, "but the file changed");
        assert_eq!(bytes_of(&file, slot + 48, 16), [0; 16]);
    }
    assert_eq!(bytes_of(&file, BAT_AT, 8), 2_u64.to_le_bytes());
}

/// A present block that the file's end cuts: a write behind the cut extends the file, and nothing else is lost.
#[test]
fn row_44_a_cut_block_grows_when_it_is_written() {
    let mut image = Vhdx::fixed(4 * MIB, MIB as u32);
    image.fill(DATA_AT, 4 * MIB, 0xA0);
    let file = image.build().with_len(DATA_AT + 3 * MIB + 1000).storage();
    let disk = open(std::slice::from_ref(&file), &writable()).unwrap();
    disk.write_at(&[0xB0; 512], 3 * MIB + 512 * KIB).unwrap();
    disk.close().unwrap();
    let disk = open(&[file], &OpenOptions::new()).unwrap();
    let mut buf = vec![0; MIB as usize];
    disk.read_at(&mut buf, 3 * MIB).unwrap();
    let cut = 512 << 10;
    assert!(buf[..1000].iter().all(|&b| b == 0xA0) && buf[1000..cut].iter().all(|&b| b == 0));
    assert!(buf[cut..cut + 512].iter().all(|&b| b == 0xB0) && buf[cut + 512..].iter().all(|&b| b == 0));
}

/// Bits of a block that was not partially present are leftovers: the first write of a sector shows that sector and no other.
#[test]
fn row_32_stale_bits_do_not_come_alive() {
    let mut base = Vhdx::dynamic(8 * MIB, MIB as u32);
    base.bat.insert(2, present(DATA_AT));
    base.fill(DATA_AT, MIB, 0xA0);
    base.len = 5 * MIB;
    let mut child = Vhdx::child_of(&base, "base.vhdx");
    child.bat.insert(4096, present(DATA_AT));
    child.fill(DATA_AT, MIB, 0xFF);
    child.len = 5 * MIB;
    let chain = [child.build().storage(), base.build().storage()];
    let disk = open(&chain, &writable()).unwrap();
    disk.write_at(&[0xB0; 512], 2 * MIB + 512).unwrap();
    let mut want = vec![0xA0; MIB as usize];
    want[512..1024].fill(0xB0);
    let mut got = vec![0; MIB as usize];
    disk.read_at(&mut got, 2 * MIB).unwrap();
    assert!(got == want, "in the session");
    disk.close().unwrap();
    open(&chain, &OpenOptions::new()).unwrap().read_at(&mut got, 2 * MIB).unwrap();
    assert!(got == want, "after it");
}

/// Unknown optional regions and items outlive a session of writes.
#[test]
fn row_21_what_is_unknown_is_kept() {
    let mut disk = small();
    disk.regions.push(Region { id: guid(9), at: 5 * MIB, len: MIB as u32, required: 0 });
    disk.items.push(Item { id: guid(8), flags: 0, data: b"keep me".to_vec(), claim: None });
    disk.fill(5 * MIB, MIB, 0x99);
    disk.len = 6 * MIB;
    let image = disk.build();
    let file = image.storage();
    let writer = open(std::slice::from_ref(&file), &writable()).unwrap();
    for block in 0..8 {
        writer.write_at(&[0xEE; 4096], block * MIB).unwrap();
    }
    writer.trim(0, 8 * MIB).unwrap();
    writer.write_at(&[0xEF; 4096], 0).unwrap();
    writer.close().unwrap();
    assert!(bytes_of(&file, 5 * MIB, MIB as usize).iter().all(|&b| b == 0x99), "the region is untouched");
    assert_eq!(bytes_of(&file, 0x30000, 112), image.get(0x30000, 112));
    assert_eq!(bytes_of(&file, METADATA_AT, 0x11000), image.get(METADATA_AT, 0x11000));
}

#[test]
fn row_7_a_broken_log_is_not_opened_for_writing_either() {
    let file = small().build().edit_headers(48, &LOG_GUID).storage();
    let before = file.to_bytes();
    assert_eq!(open(std::slice::from_ref(&file), &writable()).map(|_| ()).unwrap_err().0, ErrorKind::Damaged);
    assert_eq!(file.to_bytes(), before);
}

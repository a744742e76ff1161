//! Rows 21 to 28 and 33 to 36: the metadata region and the parent locator.

use crate::forge::*;
use crate::head::{SMALL, small};
use crate::table::Table;
use crate::vectors::{va, vb};
use diffdisk::ErrorKind;

pub fn rows(t: &mut Table) {
    items(t);
    values(t);
    locator_shape(t);
    locator_text(t);
}

fn plus(item: Item) -> Image {
    let mut disk = small();
    disk.items.push(item);
    disk.build()
}

fn items(t: &mut Table) {
    let names = &["metadata"];
    let item = |id, flags, data: &[u8]| Item { id, flags, data: data.to_vec(), claim: None };
    t.unsupported(21, "an unknown required item", plus(item(guid(9), 4, b"what")), names);
    t.reads(21, "an unknown optional item", vec![plus(item(guid(9), 0, b"what"))], &SMALL);
    t.reads(21, "an empty optional item", vec![plus(item(guid(9), 1, b""))], &SMALL);
    t.unsupported(21, "the mark of an unfinished file", plus(item(ITEM_INCOMPLETE, 4, b"")), &["metadata", "incomplete"]);
    for count in [2048_u16, u16::MAX] {
        t.damaged(22, format!("{count} items"), small().build().edit(Place::Metadata(10), &count.to_le_bytes()), names);
    }
    t.damaged(22, "no item", small().build().edit(Place::Metadata(10), &[0, 0]), names);
    t.damaged(22, "no signature", small().build().edit(Place::Metadata(0), b"Metadata"), names);
    t.damaged(23, "two sizes", plus(item(ITEM_SIZE, 6, &(4 * MIB).to_le_bytes())), names);
    t.damaged(
        23,
        "two unknown items of one name",
        {
            let mut disk = small();
            disk.items.extend([item(guid(9), 0, b"a"), item(guid(9), 0, b"b")]);
            disk.build()
        },
        names,
    );
    let user = plus(item(ITEM_SIZE, 1, &(4 * MIB).to_le_bytes()));
    t.reads(23, "a user item with the name of a system item", vec![user], &SMALL);

    let claim = |at: u32, len: u32| plus(Item { id: guid(9), flags: 0, data: b"what".to_vec(), claim: Some((at, len)) });
    let claims = [
        (0, 4),
        (32, 32),
        (0xFFFC, 8),
        (0xF_FFFE, 4),
        (0x10_0000, 4),
        (0x20_0000, 4),
        (u32::MAX, 4),
        (u32::MAX - 3, 8),
        (0x2_0000, u32::MAX),
        (0x2_0000, 0x10_0001),
        (0x1_0000, 8),
        (0x1_0004, 1),
        (0x2_0000, 0),
    ];
    for (at, len) in claims {
        t.damaged(24, format!("{len:#x} bytes at {at:#x}"), claim(at, len), names);
    }
    let wide = |len: u32| {
        let mut disk = small();
        disk.regions[1] = Region { id: REGION_METADATA, at: 8 * MIB, len: 4 << 20, required: 1 };
        disk.len = 12 * MIB;
        disk.items.push(Item { id: guid(9), flags: 0, data: Vec::new(), claim: Some((0x2_0000, len)) });
        disk.build()
    };
    t.damaged(24, "an item of more than one MiB", wide(MIB as u32 + 1), names);
    t.reads(24, "an item of one MiB", vec![wide(MIB as u32)], &SMALL);
    for (name, id) in [
        ("parameters", ITEM_PARAMETERS),
        ("size", ITEM_SIZE),
        ("disk id", ITEM_DISK_ID),
        ("logical", ITEM_LOGICAL),
        ("physical", ITEM_PHYSICAL),
    ] {
        let right = small().item(id).data.len();
        for len in [0, 1, right - 1, right + 1, 2 * right] {
            let mut disk = small();
            disk.item(id).data.resize(len, 0);
            t.damaged(25, format!("{name} of {len} bytes"), disk.build(), names);
        }
        let mut disk = small();
        disk.items.retain(|item| item.id != id);
        t.damaged(25, format!("no {name}"), disk.build(), names);
    }
}

fn values(t: &mut Table) {
    let names = &["metadata item"];
    for block in [0_u32, 1, 512, 65536, 512 << 10, 3 << 20, (1 << 20) + 1, 512 << 20, 2 << 30, u32::MAX] {
        t.damaged(26, format!("BlockSize {block:#x}"), small().build().edit(Place::Metadata(0x10000), &block.to_le_bytes()), names);
    }
    for (what, at) in [("logical", 0x10010), ("physical", 0x10014)] {
        for sector in [0_u32, 1, 511, 513, 520, 1024, 2048, 8192, 1 << 31, u32::MAX] {
            let image = small().build().edit(Place::Metadata(at), &sector.to_le_bytes());
            t.damaged(27, format!("{what} sector of {sector}"), image, names);
        }
    }
    for size in [1_u64, 511, 513, MIB + 1, (64 << 40) + 512, 1 << 47, 1 << 63, u64::MAX, u64::MAX - 511] {
        let image = small().build().edit(Place::Metadata(0x10008), &size.to_le_bytes());
        t.damaged(28, format!("a size of {size:#x}"), image, names);
    }
    t.either(28, "a size of 0", vec![small().build().edit(Place::Metadata(0x10008), &[0; 8])], names, &[]);
    let mut odd = small();
    odd.set_logical(4096);
    t.damaged(28, "512 bytes too many for the sector", odd.build().edit(Place::Metadata(0x10008), &(8 * MIB + 512).to_le_bytes()), names);
    for size in [1_u64 << 40, 64 << 40] {
        let image = small().build().edit(Place::Metadata(0x10008), &size.to_le_bytes());
        t.damaged(29, format!("a BAT of 1 MiB for {size:#x} bytes"), image, &["BAT", "region table"]);
    }
    // 131072 entries fit into one MiB: exactly as many as a disk of 31 chunks and 4065 blocks needs.
    let fits = (131_072 - 31) * MIB;
    t.reads(
        29,
        "a BAT that just fits",
        vec![small().build().edit(Place::Metadata(0x10008), &fits.to_le_bytes())],
        &[(0, MIB, 0xA0), (MIB, MIB, 0)],
    );
    let one_more = small().build().edit(Place::Metadata(0x10008), &(fits + 512).to_le_bytes());
    t.damaged(29, "a BAT one entry short", one_more, &["BAT", "region table"]);
}

fn with_locator(data: Vec<u8>) -> Vec<Image> {
    let mut child = vb();
    child.item(ITEM_LOCATOR).data = data;
    vec![child.build(), va().build()]
}

pub const LOCATOR: &[&str] = &["parent locator"];

fn locator_shape(t: &mut Table) {
    let child = vec![(0, 512, 0xC0), (512, 512, 0), (9 * 512, 512, 0xC9), (2 * MIB, 62 * MIB, 0)];
    t.reads(33, "VB over VA", vec![vb().build(), va().build()], &child);
    let mut orphan = vb();
    orphan.items.retain(|item| item.id != ITEM_LOCATOR);
    t.damaged_chain(33, "HasParent without a locator", vec![orphan.build(), va().build()], &["parent locator"]);
    let mut needless = small();
    needless.set_locator(&Locator::new(BASE_IDS.1, "p.vhdx"));
    t.reads(33, "a locator without HasParent", vec![needless.build()], &SMALL);

    let good = Locator::new(BASE_IDS.1, r".\va.vhdx");
    let edit = |at: usize, bytes: &[u8]| {
        let mut data = good.encode();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        with_locator(data)
    };
    for count in [0_u16, 16, 257, u16::MAX] {
        t.damaged_chain(34, format!("{count} pairs"), edit(18, &count.to_le_bytes()), LOCATOR);
    }
    for (what, at) in [("key", 20), ("value", 24), ("second key", 32), ("second value", 36)] {
        for offset in [0_u32, 189, 190, 0x1_0000, 0x7FFF_FFFF, u32::MAX, u32::MAX - 5] {
            t.damaged_chain(34, format!("{what} at {offset:#x}"), edit(at, &offset.to_le_bytes()), LOCATOR);
        }
    }
    for (what, at) in [("key", 28), ("value", 30), ("second key", 40), ("second value", 42)] {
        for len in [0_u16, 1, 27, 77, 0x7FFF, 0xFFFE, u16::MAX] {
            t.damaged_chain(34, format!("{what} of {len} bytes"), edit(at, &len.to_le_bytes()), LOCATOR);
        }
    }
    for len in [0, 1, 16, 19, 20, 32, 100, 189] {
        t.damaged_chain(34, format!("cut to {len} bytes"), with_locator(good.encode()[..len].to_vec()), &["parent locator", "metadata"]);
    }
    let mut many = good.clone();
    many.pairs.extend((0..300).map(|i| (utf16(&format!("key{i}")), utf16("v"))));
    t.damaged_chain(34, "302 pairs", with_locator(many.encode()), LOCATOR);
    let kinds = &[ErrorKind::Unsupported];
    t.refused(34, "a locator of another kind", edit(0, &[1, 2, 3]), kinds, LOCATOR);
}

fn locator_text(t: &mut Table) {
    let good = || Locator::new(BASE_IDS.1, r".\va.vhdx");
    let child = [(0, 512, 0xC0), (512, 512, 0)];
    let pair = |key: &str, value: &str| (utf16(key), utf16(value));
    let twice = |extra: (Vec<u8>, Vec<u8>)| {
        let mut locator = good();
        locator.pairs.push(extra);
        with_locator(locator.encode())
    };
    t.damaged_chain(35, "two linkages", twice(pair("parent_linkage", &guid_text(CHILD_IDS.0))), LOCATOR);
    t.damaged_chain(35, "the same linkage twice", twice(pair("parent_linkage", &guid_text(BASE_IDS.1))), LOCATOR);
    t.damaged_chain(35, "two relative paths", twice(pair("relative_path", "other.vhdx")), LOCATOR);
    t.reads(35, "keys that differ in case", twice(pair("Relative_Path", "other.vhdx")), &child);
    t.reads(35, "a nil second linkage", twice(pair("parent_linkage2", &guid_text([0; 16]))), &child);

    let value = |index: usize, bytes: Vec<u8>| {
        let mut locator = good();
        locator.pairs[index].1 = bytes;
        with_locator(locator.encode())
    };
    let lone = vec![0x2E, 0, 0x00, 0xD8, 0x41, 0];
    t.either(36, "a lone surrogate in the path", value(1, lone.clone()), LOCATOR, &child);
    t.damaged_chain(36, "a lone surrogate in the linkage", value(0, lone.clone()), LOCATOR);
    let mut odd_key = good();
    odd_key.pairs.push((lone, utf16("v")));
    t.either(36, "a lone surrogate in a key", with_locator(odd_key.encode()), LOCATOR, &child);
    t.damaged_chain(34, "a NUL in the path", value(1, utf16(".\\va.vhdx\0.txt")), LOCATOR);
    for text in ["", "x", "{a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e}", "{g0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5}", "not a guid at all, no"] {
        t.damaged_chain(34, format!("the linkage \"{text}\""), value(0, utf16(text)), LOCATOR);
    }
    t.reads(34, "an upper case linkage", value(0, utf16(&guid_text(BASE_IDS.1).to_uppercase())), &child);
    t.reads(34, "a linkage without braces", value(0, utf16(guid_text(BASE_IDS.1).trim_matches(['{', '}']))), &child);
    let mut second = good();
    second.pairs[0].1 = utf16(&guid_text(guid(5)));
    second.pairs.push(pair("parent_linkage2", &guid_text(BASE_IDS.1)));
    t.reads(35, "the second linkage is the parent's", with_locator(second.encode()), &child);
    let mut none = good();
    none.pairs.remove(0);
    t.damaged_chain(34, "no linkage", with_locator(none.encode()), LOCATOR);
    let linkage = value(0, utf16(&guid_text(guid(5))));
    t.refused(37, "another parent's linkage", linkage, &[ErrorKind::Damaged], &["a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5"]);
}

//! Items find their places, and travel whole or not at all.

use super::*;

fn table(items: &[(u32, u32)]) -> MetadataTable {
    let entry = |&(offset, length): &(u32, u32)| MetadataEntry {
        id: PARENT_LOCATOR,
        offset,
        length,
        is_user: false,
        is_virtual_disk: false,
        is_required: true,
    };
    MetadataTable { entries: items.iter().map(entry).collect() }
}

#[test]
fn an_item_stays_where_it_fits_and_moves_behind_the_others_where_not() {
    let region = 0x1_0000 + 1000;
    let between = table(&[(0x1_0000, 100), (0x1_0100, 100)]);
    assert_eq!(place(&between, 0, 256, region), Some(0x1_0000), "up to the next item");
    assert_eq!(place(&between, 0, 257, region), Some(0x1_0164), "behind the last");
    assert_eq!(place(&between, 1, 744, region), Some(0x1_0100), "up to the end of the region");
    assert_eq!(place(&between, 1, 745, region), Some(0x1_0064), "in the gap before");
    assert_eq!(place(&between, 0, 645, region), None, "not over the end");
}

#[test]
fn an_item_that_is_new_goes_behind_the_others() {
    let mut items = table(&[(0x1_0000, 100)]);
    let new = MetadataEntry { id: VIRTUAL_DISK_SIZE, ..items.entries[0].clone() };
    assert_eq!(put(&mut items, &new, 8, 0x2_0000).expect("room"), 0x1_0064);
    assert_eq!((items.entries.len(), items.entries[1].length), (2, 8));
    assert!(matches!(put(&mut items, &new, 0x1_0000, 0x2_0000), Err(ItemFault::NoRoom { needed: 0x1_0000 })));
}

#[cfg(feature = "sim")]
mod sim {
    use super::*;
    use crate::disk::create::Blueprint;
    use crate::disk::layer::Layer;
    use crate::format::{MetadataItem, PayloadState};
    use crate::mapping::bat::BatTable;
    use crate::storage::sim::{CrashOptions, CrashWalk, SimStorage, SimWorld};
    use crate::sync::Arc;
    use crate::units::{BlockIndex, VirtualOffset};
    use std::collections::HashSet;

    struct Nothing;

    impl crate::disk::backing::Backing for Nothing {
        fn read(&self, buf: &mut [u8], _at: u64) -> Result<(), DiskError> {
            buf.fill(0);
            Ok(())
        }

        fn is_zero(&self, _at: u64, _len: u64) -> Result<bool, DiskError> {
            Ok(true)
        }
    }

    fn made(file: &SimStorage) {
        let metadata = Metadata {
            block_size: 1 << 20,
            leave_blocks_allocated: false,
            has_parent: false,
            virtual_size: 8 << 20,
            disk_id: Guid::random(),
            logical_sector: 512,
            physical_sector: 4096,
            parent_locator: None,
            others: Vec::new(),
        };
        Blueprint { creator: "test".to_owned(), log_size: 1 << 20, metadata }.lay_down(file).expect("an empty file");
        storage::sync(file, SyncSite::Create).expect("a sound world");
    }

    fn user_item(bytes: &[u8]) -> ItemChange {
        let id = Guid::from_u128(7);
        let entry = MetadataEntry { id, offset: 0, length: 0, is_user: true, is_virtual_disk: false, is_required: false };
        ItemChange::Put { entry, bytes: bytes.to_vec() }
    }

    /// Two changes in one session, the first with a BAT entry in the same entry of the log: a crash anywhere leaves the file as it was
    /// before the first, between the two, or after the second, and in no state between.
    #[test]
    fn every_crash_leaves_all_of_an_entry_or_nothing() {
        let world = SimWorld::new(5);
        let file = world.create("disk");
        let id = file.file();
        made(&file);
        world.forget();
        let writer = Writer::new(Arc::new(Layer::open(file, None).expect("a sound file")));
        let identity = writer.data_write();
        writer.begin_layout().expect("a session");
        let block = BlockIndex::new(3);
        let index = writer.layer.geometry.bat_index(block);
        writer.layer.payload(block).expect("a sound entry");
        assert_eq!(BatTable::page_of(index), 0);
        let edit: Box<dyn FnOnce(&Writer)> = Box::new(|writer| writer.publish(index, PayloadState::Zero.encode()));
        let together = Together { edit: Some(edit), edit_pages: 1, pages: Vec::new() };
        writer.change_together(&[ItemChange::virtual_size(6 << 20), user_item(&[1; 5000])], together).expect("a change");
        writer
            .change_items(&[ItemChange::virtual_size(7 << 20), ItemChange::Remove { id: Guid::from_u128(7), is_user: true }])
            .expect("another");
        assert_eq!(writer.data_write(), identity, "so far nothing that a user sees has changed");
        writer.write(&Nothing, &[9; 512], VirtualOffset::new(0)).expect("a write");
        assert_ne!(writer.data_write(), identity, "identity before content");
        writer.close().expect("a close");
        drop(writer);

        let trace = world.trace();
        let mut walk = CrashWalk::new(&trace, CrashOptions { harsh: true, ..CrashOptions::default() });
        let (mut states, mut seen) = (HashSet::new(), [0, 0, 0]);
        loop {
            walk.for_each_choice(&mut |_, image| {
                if !states.insert(image.hash()) {
                    return true;
                }
                let again: Arc<dyn Storage> = image.file(id).expect("the file");
                let layer = match Layer::open(again, None) {
                    Ok(layer) => layer,
                    // A header that cannot be read at all, beside one that names no log, is reported and not passed over.
                    Err(crate::disk::error::LayerError::Storage(e)) if e.operation == storage::Operation::Read => return true,
                    Err(e) => panic!("{e}"),
                };
                let items: Vec<&MetadataItem> = layer.metadata.others.iter().collect();
                let is_zero = layer.payload(block).expect("a sound entry") == PayloadState::Zero;
                let step = match (layer.metadata.virtual_size >> 20, &items[..], is_zero) {
                    (8, [], false) => 0,
                    (6, [item], true) if item.bytes == [1; 5000] => 1,
                    (7, [], true) => 2,
                    other => panic!("{other:?}"),
                };
                seen[step] += 1;
                if layer.payload(BlockIndex::new(0)).expect("a sound entry") != PayloadState::NotPresent {
                    assert_ne!(layer.header.data_write, identity);
                }
                true
            });
            if walk.step().is_none() {
                break;
            }
        }
        assert!(states.len() > 100 && seen.iter().all(|&n| n > 10), "{} states, {seen:?}", states.len());
    }

    /// Every crash of an act, with syncs left out: the file opens, is as large as `sizes` allow, has no byte changed under its old file
    /// write GUID, and when the act is over, two good headers and the last of the sizes.
    fn crash(without: &[SyncSite], sizes: &[u64], act: &dyn Fn(&Writer)) -> Result<usize, String> {
        let world = SimWorld::new(5);
        let file = world.create("disk");
        let id = file.file();
        made(&file);
        world.forget();
        let before = world.fork();
        let before = before.open("disk").expect("a fork has the same names");
        let writer = Writer::new(Arc::new(Layer::open(file, None).expect("a sound file")));
        let old = writer.layer.header.file_write;
        act(&writer);
        drop(writer);
        let trace = world.trace();
        let options = CrashOptions { harsh: true, no_op: without.iter().copied().collect(), ..CrashOptions::default() };
        let (mut walk, mut states, mut broken) = (CrashWalk::new(&trace, options), HashSet::new(), None);
        loop {
            let is_over = walk.cut() == trace.events.len();
            walk.for_each_choice(&mut |_, image| {
                states.insert(image.hash());
                let leaf = image.file(id).expect("the file");
                let look = || -> Result<(), String> {
                    let layer = match Layer::open(leaf.clone(), None) {
                        Err(crate::disk::error::LayerError::Storage(e)) if e.operation == storage::Operation::Read && !is_over => {
                            return Ok(());
                        }
                        opened => opened.map_err(|e| e.to_string())?,
                    };
                    let size = layer.metadata.virtual_size >> 20;
                    if !sizes.contains(&size) || is_over && sizes.last() != Some(&size) {
                        return Err(format!("{size} MiB"));
                    }
                    if layer.header.file_write == old && leaf.differs(&before, 0x3_0000, u64::MAX) {
                        return Err("bytes changed before a new file write GUID was durable".to_owned());
                    }
                    if is_over && layer.spare != crate::log::headers::Spare::Same {
                        return Err(format!("over, and the spare header is {:?}", layer.spare));
                    }
                    Ok(())
                };
                broken = look().err();
                broken.is_none()
            });
            if let Some(what) = broken {
                return Err(what);
            }
            if walk.step().is_none() {
                return Ok(states.len());
            }
        }
    }

    #[test]
    fn every_barrier_of_items_is_missed_when_it_does_nothing() {
        let resize = |writer: &Writer| writer.change_items(&[ItemChange::virtual_size(6 << 20)]).expect("a change");
        let nothing = |writer: &Writer| {
            writer.begin_layout().expect("a session");
            writer.close().expect("a close");
        };
        let states = crash(&[], &[8, 6], &resize).expect("every crash leaves the old size or the new one");
        assert!(states > 50, "{states} states");
        assert!(crash(&[], &[8], &nothing).expect("nothing changes") > 10);
        for site in [SyncSite::ItemsIdentity, SyncSite::ItemsEntry] {
            let missed = crash(&[site], &[8, 6], &resize).expect_err(&format!("{site:?} is needless, or nobody looks"));
            println!("items sensitivity: {site:?}: {missed}");
        }
        let missed = crash(&[SyncSite::CloseMirror], &[8], &nothing).expect_err("CloseMirror is needless, or nobody looks");
        println!("items sensitivity: CloseMirror: {missed}");
    }

    #[test]
    fn an_identity_given_at_the_close_comes_with_everything_before_it() {
        let world = SimWorld::new(6);
        let file = world.create("disk");
        let id = file.file();
        made(&file);
        world.forget();
        let wanted = crate::guid::DataWriteGuid::random();
        let writer = Writer::new(Arc::new(Layer::open(file, None).expect("a sound file")));
        writer.write(&Nothing, &[9; 1 << 20], VirtualOffset::new(1 << 20)).expect("a write");
        writer.close_as(wanted).expect("a close");
        drop(writer);
        let trace = world.trace();
        let mut walk = CrashWalk::new(&trace, CrashOptions::default());
        let mut finished = 0;
        loop {
            walk.for_each_choice(&mut |_, image| {
                let again: Arc<dyn Storage> = image.file(id).expect("the file");
                let layer = Layer::open(again, None).expect("a sound file");
                if layer.header.data_write == wanted {
                    finished += 1;
                    let PayloadState::FullyPresent(home) = layer.payload(BlockIndex::new(1)).expect("a sound entry") else {
                        panic!("the identity came before the content");
                    };
                    let mut bytes = [0; 512];
                    storage::read_exact(&*layer.file, &mut bytes, home.start().get()).expect("a sound file");
                    assert_eq!(bytes, [9; 512]);
                }
                true
            });
            if walk.step().is_none() {
                break;
            }
        }
        assert!(finished > 3, "{finished}");
    }
}

//! The simulator's own rules, and a canary: a store with a missing barrier, in which the enumeration must find the hole.

use super::*;
use crate::storage::MemoryStorage;
use std::collections::HashSet;

const P: usize = 512;

fn bytes(file: &SimStorage) -> Vec<u8> {
    let mut all = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut all, 0).unwrap();
    all
}

/// The contents that file 0 may have after a crash at the end of the trace: the first byte of each piece.
fn outcomes(world: &SimWorld, options: CrashOptions) -> HashSet<Vec<u8>> {
    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, options);
    walk.go_to(world.cut());
    let mut seen = HashSet::new();
    walk.for_each_choice(&mut |choice, image| {
        assert_eq!(walk_again(&trace, world.cut(), choice).hash(), image.hash(), "a choice names its image");
        let file = image.file(FileId(0)).unwrap();
        if choice.flight.is_none() {
            seen.insert(bytes(&file).iter().step_by(P).copied().collect());
        }
        true
    });
    seen
}

fn walk_again(trace: &Trace, cut: usize, choice: &Choice) -> CrashImage {
    let mut walk = CrashWalk::new(trace, CrashOptions::default());
    walk.go_to(cut);
    walk.image(choice)
}

fn two_pieces() -> (SimWorld, Arc<SimStorage>) {
    let world = SimWorld::new(1);
    let file = world.create("f");
    file.write_at(&[1; 2 * P], 0).unwrap();
    file.sync(SyncSite::Create).unwrap();
    (world, file)
}

#[test]
fn pieces_land_one_by_one_and_synced_bytes_stay() {
    let (world, file) = two_pieces();
    file.write_at(&[2; 2 * P], 0).unwrap();
    assert_eq!(outcomes(&world, CrashOptions::default()), HashSet::from([vec![1, 1], vec![1, 2], vec![2, 1], vec![2, 2]]));
    file.sync(SyncSite::Payload).unwrap();
    assert_eq!(outcomes(&world, CrashOptions::default()), HashSet::from([vec![2, 2]]));
}

#[test]
fn with_large_pieces_small_writes_are_whole() {
    let (world, file) = two_pieces();
    file.write_at(&[2; 2 * P], 0).unwrap();
    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, CrashOptions { piece: 4096, ..CrashOptions::default() });
    walk.go_to(world.cut());
    assert_eq!(walk.pending().len(), 1);
}

#[test]
fn a_piece_written_in_part_takes_older_pending_bytes_along() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    file.write_at(&[3; 10], 0).unwrap();
    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, CrashOptions::default());
    walk.go_to(world.cut());
    let mut seen = HashSet::new();
    walk.for_each_choice(&mut |_, image| {
        let all = bytes(&image.file(FileId(0)).unwrap());
        seen.insert((all[0], all[100]));
        true
    });
    assert_eq!(seen, HashSet::from([(1, 1), (2, 2), (3, 2)]), "never new bytes in an old piece past a younger one");
}

#[test]
fn of_overlapping_writes_none_the_first_or_the_second_wins() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    file.write_at(&[3; P], 0).unwrap();
    assert_eq!(outcomes(&world, CrashOptions::default()), HashSet::from([vec![1, 1], vec![2, 1], vec![3, 1]]));
}

#[test]
fn a_sync_covers_only_what_came_before_it_began() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    let mut trace = world.trace();
    trace.events.push(Event::SyncBegin { file: FileId(0), site: SyncSite::Payload });
    let begin = trace.events.len() - 1;
    trace.events.push(Event::Write { file: FileId(0), at: P as u64, bytes: [3; P].as_slice().into() });
    trace.events.push(Event::SyncEnd { file: FileId(0), site: SyncSite::Payload, begin, range: None });
    let mut walk = CrashWalk::new(&trace, CrashOptions::default());
    walk.go_to(trace.events.len());
    assert_eq!(walk.pending().len(), 1);
    assert_eq!(walk.pending()[0].event(), begin + 1);
}

#[test]
fn a_durable_write_covers_its_range_and_nothing_else() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    file.write_at(&[3; P], P as u64).unwrap();
    file.write_durable(&[4; P], P as u64, SyncSite::Log).unwrap();
    assert_eq!(outcomes(&world, CrashOptions::default()), HashSet::from([vec![1, 4], vec![2, 4]]));
    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, CrashOptions { no_op: [SyncSite::Log].into(), ..CrashOptions::default() });
    walk.go_to(world.cut());
    assert_eq!(walk.pending().len(), 3, "treated as if it did nothing, it is a write like any other");
    world.offer_durable_writes(false);
    assert!(!file.writes_durably());
}

#[test]
fn a_sync_of_one_file_leaves_the_other_pending() {
    let (world, file) = two_pieces();
    let other = world.create("g");
    file.write_at(&[2; P], 0).unwrap();
    other.sync(SyncSite::Payload).unwrap();
    assert_eq!(outcomes(&world, CrashOptions::default()).len(), 2);
}

#[test]
fn a_piece_beyond_a_lost_end_vanishes_or_lengthens() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 3 * P as u64).unwrap();
    let want = HashSet::from([vec![1, 1], vec![1, 1, 0, 0], vec![1, 1, 0, 2]]);
    assert_eq!(outcomes(&world, CrashOptions::default()), want);
    let harsh = outcomes(&world, CrashOptions { harsh: true, ..CrashOptions::default() });
    assert!(harsh.is_superset(&want));
    assert!(harsh.iter().any(|pieces| pieces.len() == 4 && pieces[2] != 0 && pieces[3] == 2), "the gap may be junk: {harsh:?}");
    assert!(harsh.iter().all(|pieces| pieces[..2] == [1, 1]));
}

#[test]
fn lengths_and_holes_are_atoms() {
    let (world, file) = two_pieces();
    file.punch(0, 2 * P as u64).unwrap();
    file.set_len(P as u64).unwrap();
    assert_eq!(outcomes(&world, CrashOptions::default()), HashSet::from([vec![1, 1], vec![1], vec![0, 0], vec![0]]));
}

#[test]
fn synced_zeros_are_never_junk() {
    let (world, file) = two_pieces();
    file.set_len(4 * P as u64).unwrap();
    file.sync(SyncSite::Payload).unwrap();
    file.write_at(&[2; P], 3 * P as u64).unwrap();
    let harsh = outcomes(&world, CrashOptions { harsh: true, ..CrashOptions::default() });
    assert_eq!(harsh, HashSet::from([vec![1, 1, 0, 0], vec![1, 1, 0, 2]]));
}

#[test]
fn a_piece_in_flight_is_junk_or_unreadable_and_a_rewrite_heals_it() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    let trace = world.trace();
    let options = CrashOptions { harsh: true, classify: Arc::new(|_, _| Class::Log), ..CrashOptions::default() };
    let mut walk = CrashWalk::new(&trace, options);
    walk.go_to(world.cut());
    let (mut junk, mut unreadable) = (0, 0);
    walk.for_each_choice(&mut |choice, image| {
        let file = image.file(FileId(0)).unwrap();
        match choice.flight {
            Some(Torn { how: Flight::Junk, .. }) => {
                assert!(!matches!(bytes(&file)[..P], [1, 1, ..] | [2, 2, ..]));
                junk += 1;
            }
            Some(Torn { how: Flight::Unreadable, .. }) => {
                let mut piece = [0; P];
                file.read_at(&mut piece, 0).unwrap_err();
                assert_eq!(file.read_at(&mut piece, P as u64).unwrap(), P);
                file.write_at(&[4; P], 0).unwrap();
                assert_eq!(bytes(&file)[0], 4);
                unreadable += 1;
            }
            None => {}
        }
        true
    });
    assert!(junk > 0 && unreadable > 0);
}

#[test]
fn directory_operations_are_atoms_until_the_directory_is_synced() {
    let (world, file) = two_pieces();
    let mut trace = world.trace();
    trace.events.push(Event::Rename { from: "f".into(), to: "g".into() });
    let names = |trace: &Trace| {
        let mut walk = CrashWalk::new(trace, CrashOptions::default());
        walk.go_to(trace.events.len());
        let mut seen = HashSet::new();
        walk.for_each_choice(&mut |_, image| {
            let world = image.boot(false);
            seen.insert((world.open("f").is_some(), world.open("g").is_some()));
            true
        });
        seen
    };
    assert_eq!(names(&trace), HashSet::from([(true, false), (false, true)]), "never half");
    trace.events.push(Event::SyncDir);
    assert_eq!(names(&trace), HashSet::from([(false, true)]));
    drop(file);
}

#[test]
fn recovery_can_be_crashed_in_its_turn() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, CrashOptions::default());
    walk.go_to(world.cut());
    let mut second = HashSet::new();
    walk.for_each_choice(&mut |_, image| {
        let world = image.boot(true);
        world.open("f").unwrap().write_at(&[3; P], P as u64).unwrap();
        second.extend(outcomes(&world, CrashOptions::default()));
        true
    });
    assert_eq!(second, HashSet::from([vec![1, 1], vec![2, 1], vec![1, 3], vec![2, 3]]));
}

#[test]
fn equal_images_have_equal_hashes() {
    let (world, file) = two_pieces();
    file.write_at(&[2; P], 0).unwrap();
    file.write_at(&[2; P], 0).unwrap();
    let trace = world.trace();
    let mut walk = CrashWalk::new(&trace, CrashOptions::default());
    walk.go_to(world.cut());
    let (mut hashes, mut images) = (HashSet::new(), 0);
    walk.for_each_choice(&mut |_, image| {
        hashes.insert(image.hash());
        images += 1;
        true
    });
    assert_eq!((images, hashes.len()), (4, 2));
}

/// A toy with the classic protocol: write a record, sync, set the flag that says it is there, sync. Returns the crash images in
/// which the flag is set and the record is not whole.
fn lies_of_the_toy(no_op: &[SyncSite]) -> usize {
    let world = SimWorld::new(3);
    let file = world.create("toy");
    file.write_at(&[0; 4 * P], 0).unwrap();
    file.sync(SyncSite::Create).unwrap();
    file.write_at(&[7; 3 * P], P as u64).unwrap();
    file.sync(SyncSite::Payload).unwrap();
    file.write_at(&[1; 8], 0).unwrap();
    file.sync(SyncSite::Log).unwrap();
    let trace = world.trace();
    assert_eq!(trace.sites(), [SyncSite::Create, SyncSite::Payload, SyncSite::Log]);
    let mut walk = CrashWalk::new(&trace, CrashOptions { no_op: no_op.iter().copied().collect(), ..CrashOptions::default() });
    let mut lies = 0;
    while walk.step().is_some() {
        walk.for_each_choice(&mut |_, image| {
            let all = bytes(&image.file(FileId(0)).unwrap());
            lies += usize::from(all.first() == Some(&1) && all.get(P..4 * P).is_none_or(|record| record.iter().any(|&b| b != 7)));
            true
        });
    }
    lies
}

#[test]
fn the_canary_dies_without_its_barrier() {
    assert_eq!(lies_of_the_toy(&[]), 0);
    assert!(lies_of_the_toy(&[SyncSite::Payload]) > 0, "a missing barrier must be seen");
}

#[test]
fn the_trace_prints_as_a_table() {
    let (world, _file) = two_pieces();
    world.mark(42);
    let text = world.trace().to_string();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.contains("0x0") && text.contains("Create") && text.contains("42"), "{text}");
}

#[test]
fn live_files_behave_like_memory() {
    let (world, memory) = (SimWorld::new(5), MemoryStorage::new());
    let file = world.create("f");
    let mut rng = Rng::new(9);
    for _ in 0..500 {
        let (at, len) = (rng.below(1 << 20), rng.below(20_000));
        match rng.below(4) {
            0 => {
                file.set_len(at).unwrap();
                memory.set_len(at).unwrap();
            }
            1 => {
                file.punch(at, len).unwrap();
                memory.punch(at, len).unwrap();
            }
            _ => {
                let data = vec![rng.next_u64() as u8; len as usize + 1];
                file.write_at(&data, at).unwrap();
                memory.write_at(&data, at).unwrap();
            }
        }
        assert_eq!(file.len().unwrap(), memory.len().unwrap());
    }
    assert!(bytes(&file) == memory.to_bytes());
}

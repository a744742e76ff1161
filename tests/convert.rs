//! Conversion, comparison, differences and exports against arrays of bytes.
//!
//! Each world is a family of disks (a base, a child of it, a child of that, a sibling) and raw files, each with its bytes as a model.
//! Everything is converted into everything by one worker and by four, compared with everything, and told apart from everything; what is
//! exported as a child must read as what it was made of. Then every storage call fails in turn, and every legal power cut is tried.
//! `DIFFDISK_SEED` sets another seed, `DIFFDISK_CONVERT_WORLDS` another number of worlds.

#[path = "convert/family.rs"]
mod family;
#[path = "support/loud.rs"]
mod loud;
#[path = "convert/rig.rs"]
mod rig;

use diffdisk::storage::Storage;
use diffdisk::storage::sim::{CrashOptions, CrashWalk, SimWorld};
use diffdisk::{
    Cancel, ChangeKind, CompareOptions, Content, ConvertOptions, DiffOptions, Disk, ErrorKind, MergeOptions, NoProgress, OpenOptions,
    ParentPolicy, Phase, Progress, ToolError, compare, convert, convert_on, copy_out, diff, merge_into, merge_to,
};
use family::{Family, Member, Rng, from_env, padded, read_all};
use loud::loud;
use rig::{Faulty, Repeat};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn child() -> ConvertOptions {
    ConvertOptions::child_of("parent.vhdx", ParentPolicy::default())
}

/// Every output made of a member, by one worker and by four.
fn convert_all(family: &Family, member: &Member, turn: u64) -> usize {
    let source = member.content();
    let sector = u64::from(family.sector);
    let block = (1 << 20) << (turn % 3);
    let forms: [(&str, ConvertOptions); 4] = [
        ("raw", ConvertOptions::raw()),
        ("dynamic", ConvertOptions::dynamic().block_size(block).logical_sector(family.sector)),
        ("fixed", ConvertOptions::fixed().block_size(block).logical_sector(family.sector)),
        ("child", child().block_size(block)),
    ];
    let parent = &family.members[turn as usize % family.disks];
    let world = SimWorld::new(turn);
    let mut made = Vec::new();
    for (form, options) in &forms {
        let parents: &[Arc<dyn Storage>] = if *form == "child" { &parent.files } else { &[] };
        for workers in [1, 4] {
            let name = format!("{form}-{workers}");
            let options = options.clone().workers(workers);
            let done = convert_on(&source, &world, &name, parents, &options, &NoProgress, &Cancel::new())
                .unwrap_or_else(|e| panic!("{} to {name}: {e}", member.name));
            world.forget();
            let file: Arc<dyn Storage> = world.open(&name).expect("it was made");
            let expected = if *form == "raw" { member.bytes.clone() } else { padded(&member.bytes, sector) };
            assert_eq!(done.virtual_size, expected.len() as u64, "{} to {name}", member.name);
            if *form == "raw" {
                let content = Content::raw_on(file, name.as_str()).expect("a raw file");
                assert!(read_all(&content) == expected, "{} to {name}: {}", member.name, first(&read_all(&content), &expected));
            } else {
                let disk = Disk::open_on(file, parents.to_vec(), &OpenOptions::new()).expect("what was made opens");
                let report = disk.check().expect("it can be checked");
                assert!(report.is_sound(), "{} to {name}: {report:?}", member.name);
                let read = read_all(&Content::of(&disk, name.as_str()));
                assert!(read == expected, "{} to {name}: {}", member.name, first(&read, &expected));
            }
            made.push((form, done.written, done.zeroed));
        }
    }
    for pair in made.chunks(2) {
        assert_eq!(pair[0], pair[1], "workers make no difference");
    }
    let mut piped = Vec::new();
    copy_out(&source, &mut piped, "a pipe", &NoProgress, &Cancel::new()).expect("a pipe");
    assert!(piped == member.bytes, "{} piped", member.name);
    made.len()
}

fn first(a: &[u8], b: &[u8]) -> String {
    format!("{:?} of {} and {}", a.iter().zip(b).position(|(x, y)| x != y), a.len(), b.len())
}

/// Both members as they are when the shorter one is filled up with zeros.
fn even(a: &Member, b: &Member) -> (Vec<u8>, Vec<u8>) {
    let size = a.bytes.len().max(b.bytes.len());
    let longer = |bytes: &[u8]| {
        let mut all = bytes.to_vec();
        all.resize(size, 0);
        all
    };
    (longer(&a.bytes), longer(&b.bytes))
}

fn compare_both(a: &Member, b: &Member) {
    let (x, y) = (a.content(), b.content());
    let (all_x, all_y) = even(a, b);
    let with_tail = all_x.iter().zip(&all_y).position(|(x, y)| x != y).map(|at| at as u64);
    let common = a.bytes.len().min(b.bytes.len()) as u64;
    let without = with_tail.filter(|&at| at < common).or((a.bytes.len() != b.bytes.len()).then_some(common));
    for workers in [1, 4] {
        for (zero_tail, expected) in [(true, with_tail), (false, without)] {
            let options = CompareOptions::new().zero_tail(zero_tail).workers(workers);
            let found = compare(&x, &y, &options, &NoProgress, &Cancel::new()).expect("both can be read");
            assert_eq!(found, expected, "{} and {}, zero tail {zero_tail}, {workers} workers", a.name, b.name);
        }
    }
}

fn diff_both(a: &Member, b: &Member, unit: u32) -> usize {
    let (old, new) = even(a, b);
    let mut expected: Vec<(u64, u64, ChangeKind)> = Vec::new();
    for (at, (x, y)) in (0..).step_by(unit as usize).zip(old.chunks(unit as usize).zip(new.chunks(unit as usize))) {
        let kind = if y.iter().all(|&byte| byte == 0) { ChangeKind::Zero } else { ChangeKind::Data };
        match expected.last_mut() {
            _ if x == y => {}
            Some(last) if last.2 == kind && last.0 + last.1 == at => last.1 += y.len() as u64,
            _ => expected.push((at, y.len() as u64, kind)),
        }
    }
    let (x, y) = (a.content(), b.content());
    for workers in [1, 4] {
        let options = DiffOptions::new().granularity(unit).workers(workers);
        let found = diff(&x, &y, &options, &NoProgress, &Cancel::new()).expect("both can be read");
        let found: Vec<_> = found.iter().map(|change| (change.offset, change.len, change.kind)).collect();
        assert_eq!(found, expected, "{} to {} in units of {unit}, {workers} workers", a.name, b.name);
    }
    let told = diff(&x, &y, &DiffOptions::new().by_allocation(true), &NoProgress, &Cancel::new()).expect("both can be read");
    let mut known = vec![None; old.len()];
    for change in &told {
        known[change.offset as usize..(change.offset + change.len) as usize].fill(Some(change.kind));
    }
    for (at, (x, y)) in old.iter().zip(&new).enumerate() {
        assert!(x == y || known[at].is_some(), "{} to {}: byte {at} changed and the mappings do not tell", a.name, b.name);
        assert!(*y == 0 || known[at] != Some(ChangeKind::Zero), "{} to {}: byte {at} is no zero", a.name, b.name);
    }
    expected.len()
}

#[test]
fn everything_becomes_everything_and_is_told_apart() {
    let seed = from_env("DIFFDISK_SEED", 20_261_125);
    let worlds = from_env("DIFFDISK_CONVERT_WORLDS", 6);
    let mut rng = Rng::new(seed);
    let (mut made, mut pairs, mut changes) = (0, 0, 0);
    for world in 0..worlds {
        let family = Family::new(&mut rng);
        for (turn, member) in (world..).zip(&family.members) {
            made += convert_all(&family, member, turn);
            for (at, other) in family.members.iter().enumerate() {
                compare_both(member, other);
                changes += diff_both(member, other, [512, 4096, 65_536][(turn as usize + at) % 3]);
                pairs += 1;
            }
        }
    }
    loud(&format!("convert: {worlds} worlds, {made} conversions, {pairs} pairs compared and told apart, {changes} changes, seed {seed}"));
    assert!(changes > 100, "disks that hardly differ show nothing: {changes}");
}

#[test]
fn what_two_clones_share_is_not_read() {
    let family = Family::populated(48 << 20);
    let [base, one, two] = [0, 1, 2].map(|n| &family.members[n]);
    let read = Arc::new(AtomicU64::new(0));
    let open = |member: &Member| member.counted(&read);
    let (a, b, image) = (open(one), open(two), open(base));
    let spent = |what: &str, most: u64, act: &mut dyn FnMut()| {
        let before = read.load(Ordering::Relaxed);
        act();
        let bytes = read.load(Ordering::Relaxed) - before;
        assert!(bytes < most, "{what} read {bytes} bytes, {most} is enough");
    };
    spent("comparing two clones", 1 << 20, &mut || compare_equal(&a, &b, one, two));
    spent("comparing a clone and its image", 1 << 20, &mut || compare_equal(&a, &image, one, base));
    spent("telling two clones apart", 1 << 20, &mut || {
        let found = diff(&a, &b, &DiffOptions::new(), &NoProgress, &Cancel::new()).expect("both can be read");
        assert!(found.len() >= 2, "{found:?}");
    });
    spent("asking the mappings", 64 << 10, &mut || {
        assert!(diff(&a, &b, &DiffOptions::new().by_allocation(true), &NoProgress, &Cancel::new()).expect("both can be read").len() >= 2);
    });
    spent("exporting the changes", 2 << 20, &mut || {
        let world = SimWorld::new(1);
        let made =
            convert_on(&b, &world, "out", &family.counted_files(0, &read), &child(), &NoProgress, &Cancel::new()).expect("an export");
        assert!(made.written + made.zeroed < 1 << 20, "{made:?}");
    });
}

fn compare_equal(a: &Content<'_>, b: &Content<'_>, x: &Member, y: &Member) {
    let expected = x.bytes.iter().zip(&y.bytes).position(|(x, y)| x != y).map(|at| at as u64);
    assert_eq!(compare(a, b, &CompareOptions::new(), &NoProgress, &Cancel::new()).expect("both can be read"), expected);
}

struct StopAt(u64, Cancel);

impl Progress for StopAt {
    fn phase(&self, phase: Phase, total: Option<u64>) {
        assert!(matches!(phase, Phase::Convert | Phase::Diff) && total.is_some());
    }

    fn advance(&self, done: u64) {
        if done >= self.0 {
            self.1.cancel();
        }
    }
}

#[test]
fn a_cancelled_conversion_leaves_nothing() {
    let family = Family::populated(12 << 20);
    for (form, options) in [("raw", ConvertOptions::raw()), ("fixed", ConvertOptions::fixed()), ("child", child())] {
        for workers in [1, 3] {
            let world = SimWorld::new(1);
            let cancel = Cancel::new();
            let stop = StopAt(4 << 20, cancel.clone());
            let source = family.members[3].content();
            let parents = if form == "child" { &family.members[0].files[..] } else { &[] };
            let result = convert_on(&source, &world, "out", parents, &options.clone().workers(workers), &stop, &cancel);
            assert!(matches!(result, Err(ToolError::Cancelled)), "{form}: {result:?}");
            assert_eq!(names(&world), [""; 0], "{form}, {workers} workers");
        }
    }
}

fn names(world: &SimWorld) -> Vec<String> {
    diffdisk::storage::Volume::list(world).expect("a simulated directory lists")
}

/// Each call of source, parent, directory and new file fails, once and from then on: the whole file, or an error and no file.
#[test]
fn every_call_fails_in_turn_and_nothing_half_made_is_left() {
    let family = Family::small();
    let mut met = 0;
    for (form, options) in [("raw", ConvertOptions::raw()), ("dynamic", ConvertOptions::dynamic()), ("child", child())] {
        for (repeat, workers) in [(Repeat::Once, 1), (Repeat::FromThen, 1), (Repeat::Once, 2)] {
            for k in 1.. {
                let rig = Faulty::new(k, repeat);
                let base = &family.members[0];
                let parents = if form == "child" { rig.wrap_all(&base.files) } else { Vec::new() };
                let source = Content::raw_on(rig.wrap(&family.members[3].files[0]), "source");
                let result = source.and_then(|source| {
                    convert_on(&source, &rig, "out", &parents, &options.clone().workers(workers), &NoProgress, &Cancel::new())
                });
                let hit = rig.heal();
                let expected = if form == "raw" { family.members[3].bytes.clone() } else { padded(&family.members[3].bytes, 512) };
                let context = format!("{form}, {repeat:?} at call {k}, {workers} workers: {result:?}");
                let left: Vec<String> = names(&rig.world).into_iter().filter(|name| name == "out" || result.is_ok()).collect();
                assert!(result.is_err() || left == ["out"], "{context}: {left:?}");
                // Where the directory fails for good behind the rename, the name cannot be taken back; then the file is whole.
                for _ in &left {
                    assert!(result.is_ok() || repeat == Repeat::FromThen, "{context}: {left:?}");
                    let file: Arc<dyn Storage> = rig.world.open("out").expect("it is listed");
                    let read = if form == "raw" {
                        read_all(&Content::raw_on(file, "out").expect("a raw file"))
                    } else {
                        let below = if form == "child" { base.files.clone() } else { Vec::new() };
                        read_all(&Content::of(&Disk::open_on(file, below, &OpenOptions::new()).expect("it opens"), "out"))
                    };
                    assert!(read == expected, "{context}: {}", first(&read, &expected));
                }
                if result.is_err() && repeat == Repeat::Once {
                    assert!(names(&rig.world).is_empty(), "{context}: {:?}", names(&rig.world));
                }
                if !hit {
                    assert!(result.is_ok(), "{context}");
                    break;
                }
                met += 1;
            }
        }
    }
    loud(&format!("convert: {met} faults met, nothing half made was left"));
    assert!(met > 150, "only {met} faults were met");
}

#[test]
fn a_power_cut_leaves_the_old_file_or_the_whole_new_one() {
    let family = Family::small();
    let mut states = 0;
    for (form, options) in [("raw", ConvertOptions::raw()), ("dynamic", ConvertOptions::dynamic()), ("child", child())] {
        let world = SimWorld::new(9);
        let source = family.members[3].content();
        let parents = if form == "child" { &family.members[0].files[..] } else { &[] };
        convert_on(&source, &world, "out", parents, &options.workers(1), &NoProgress, &Cancel::new()).expect("it works");
        let (trace, done) = (world.trace(), world.cut());
        let expected = if form == "raw" { family.members[3].bytes.clone() } else { padded(&family.members[3].bytes, 512) };
        let mut walk = CrashWalk::new(&trace, CrashOptions::default());
        let (mut seen, mut whole, mut absent) = (HashSet::new(), 0, 0);
        loop {
            let made = walk.cut() == done;
            walk.for_each_choice(&mut |_, image| {
                if !seen.insert((image.hash(), made)) {
                    return true;
                }
                match image.boot(false).open("out") {
                    None => {
                        assert!(!made, "{form}: what was made is gone");
                        absent += 1;
                    }
                    Some(file) => {
                        let read = if form == "raw" {
                            read_all(&Content::raw_on(file, "out").expect("a raw file"))
                        } else {
                            let disk = Disk::open_on(file, parents.to_vec(), &OpenOptions::new()).expect("what has the name opens");
                            read_all(&Content::of(&disk, "out"))
                        };
                        assert!(read == expected, "{form}: {}", first(&read, &expected));
                        whole += 1;
                    }
                }
                true
            });
            if walk.step().is_none() {
                break;
            }
        }
        assert!(whole > 0 && absent > 50, "{form}: {whole} whole, {absent} absent");
        states += whole + absent;
    }
    loud(&format!("convert: {states} states after a power cut, each with the whole file or none"));
}

/// Three generations travel as one image and two deltas, to a place where only copies are; there each delta is merged, into a new file and in
/// place. Sizes grow and shrink on the way.
#[test]
fn generations_travel_as_deltas() -> Result<(), Box<dyn std::error::Error>> {
    let mut rng = Rng::new(from_env("DIFFDISK_SEED", 20_261_125));
    let (mut sent, mut whole) = (0, 0);
    for round in 0..6_u64 {
        let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let at = |name: &str| here.path().join(name);
        let to = |name: &str| there.path().join(name);
        let go = |source: &Content<'_>, name: &str, options: ConvertOptions| {
            convert(source, at(name), &options.block_size((1 << 20) << (round % 3)), &NoProgress, &Cancel::new())
        };
        let sizes = [6_u64 << 20, (4 << 20) + rng.below(4 << 20) / 512 * 512, 6 << 20];
        let mut bytes: Vec<u8> = Vec::new();
        let mut generations = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            bytes.resize(size as usize, 0);
            for _ in 0..5 {
                let start = rng.below(size) as usize;
                let most = [700, 20_000, 2 << 20][rng.below(3) as usize];
                let end = (start + 1 + rng.below(most) as usize).min(bytes.len());
                let byte = if rng.below(3) == 0 { 0 } else { rng.below(255) as u8 + 1 };
                bytes[start..end].fill(byte);
            }
            std::fs::write(at(&format!("{number}.img")), &bytes)?;
            let name = format!("{number}.vhdx");
            whole += go(&Content::raw(at(&format!("{number}.img")))?, &name, ConvertOptions::dynamic())?.written;
            if number > 0 {
                let parent = ConvertOptions::child_of(at(&format!("{}.vhdx", number - 1)), ParentPolicy::default());
                let delta = format!("delta-{number}.vhdx");
                sent += go(&Content::vhdx(at(&name), &OpenOptions::new())?, &delta, parent.keep_identity(true))?.written;
                std::fs::copy(at(&delta), to(&delta))?;
            }
            generations.push(bytes.clone());
        }
        std::fs::copy(at("0.vhdx"), to("0.vhdx"))?;
        let shows = |name: &str, bytes: &[u8]| -> Result<(), Box<dyn std::error::Error>> {
            let disk = Disk::open(to(name), &OpenOptions::new())?;
            assert!(disk.check()?.is_sound());
            let read = read_all(&Content::of(&disk, name));
            assert!(read == bytes, "round {round}, {name}: {}", first(&read, bytes));
            Ok(())
        };
        shows("delta-1.vhdx", &generations[1])?;
        // Under the identity that generation 1 has where it was made: the second delta was made over that.
        let options = MergeOptions::new().keep_identity(true);
        merge_to(&to("delta-1.vhdx"), None, &to("1.vhdx"), &options, &NoProgress, &Cancel::new())?;
        shows("1.vhdx", &generations[1])?;
        shows("delta-2.vhdx", &generations[2])?;
        merge_into(&to("delta-2.vhdx"), None, &options, &NoProgress, &Cancel::new())?;
        shows("1.vhdx", &generations[2])?;
    }
    loud(&format!("convert: 12 deltas sent and merged, {sent} bytes where whole images have {whole}"));
    assert!(sent < whole);
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused() {
    let family = Family::small();
    let world = SimWorld::new(2);
    let source = family.members[3].content();
    let go = |name: &str, parents: &[Arc<dyn Storage>], options: ConvertOptions| {
        convert_on(&source, &world, name, parents, &options, &NoProgress, &Cancel::new()).expect_err("it makes no sense").kind()
    };
    assert_eq!(go("a", &[], child()), ErrorKind::InvalidInput);
    assert_eq!(go("a", &[], ConvertOptions::dynamic().block_size(3 << 20)), ErrorKind::InvalidInput);
    assert_eq!(go("a", &family.members[0].files, child().logical_sector(4096)), ErrorKind::InvalidInput);
    world.create("taken");
    assert_eq!(go("taken", &[], ConvertOptions::raw()), ErrorKind::AlreadyExists);
    assert_eq!(names(&world), ["taken"]);
    assert_eq!(go("a", &[], ConvertOptions::dynamic().keep_identity(true)), ErrorKind::InvalidInput);
    let same = diff(&source, &source, &DiffOptions::new().granularity(1000), &NoProgress, &Cancel::new());
    assert_eq!(same.expect_err("no power of two").kind(), ErrorKind::InvalidInput);
}

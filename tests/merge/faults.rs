//! Every storage call fails, once and from then on; and somebody asks for a stop at every pause.

use super::chain::{MIB, content, scribble};
use diffdisk::storage::sim::{CallKind, Fault, FaultStorage, Lost, Repeat, Rng};
use diffdisk::storage::{MemoryStorage, Storage};
use diffdisk::{Cancel, CreateOptions, Disk, ErrorKind, NoProgress, OpenOptions, Phase, Progress, ToolError, merge_into_on};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Pair {
    base: Vec<u8>,
    child: Vec<u8>,
    shown: Vec<u8>,
}

fn pair() -> Pair {
    let (base, child): (Arc<MemoryStorage>, Arc<MemoryStorage>) = Default::default();
    let mut rng = Rng::new(77);
    let disk = Disk::create_on(base.clone(), &CreateOptions::dynamic(4 * MIB)).expect("a base");
    let mut model = vec![0; 4 * MIB as usize];
    scribble(&disk, &mut model, &mut rng, 10);
    disk.close().expect("a close");
    let size = 4 * MIB + 4096;
    model.resize(size as usize, 0);
    let disk = Disk::create_child_on(child.clone(), vec![base.clone()], &CreateOptions::child().size(size)).expect("a child");
    scribble(&disk, &mut model, &mut rng, 10);
    disk.close().expect("a close");
    Pair { base: base.to_bytes(), child: child.to_bytes(), shown: model }
}

/// Copies of both files, behind storages that can fail.
struct Files {
    inner: [Arc<MemoryStorage>; 2],
    outer: [Arc<FaultStorage>; 2],
}

impl Files {
    fn new(pair: &Pair) -> Self {
        let inner = [&pair.child, &pair.base].map(|bytes| Arc::new(MemoryStorage::from_bytes(bytes)));
        let outer = [0, 1].map(|n| Arc::new(FaultStorage::new(inner[n].clone()).expect("memory can be read")));
        Self { inner, outer }
    }

    /// As they are, without faults.
    fn healed(&self) -> [Arc<dyn Storage>; 2] {
        [self.inner[0].clone(), self.inner[1].clone()]
    }
}

fn merge(files: [Arc<dyn Storage>; 2], progress: &dyn Progress, cancel: &Cancel) -> Result<u64, ToolError> {
    merge_into_on(&files[0], &files[1], &[], progress, cancel)
}

fn flatten(files: [Arc<dyn Storage>; 2], progress: &dyn Progress, cancel: &Cancel) -> Result<u64, ToolError> {
    let [child, base] = files;
    let disk = Disk::open_on(child, vec![base], &OpenOptions::new().writable(true))
        .map_err(|e| ToolError::Open { path: "child".into(), cause: Box::new(e) })?;
    let done = disk.flatten(progress, cancel)?;
    disk.close().map_err(|cause| ToolError::Disk { path: "child".into(), cause })?;
    Ok(done.copied)
}

fn shown([child, base]: [Arc<dyn Storage>; 2]) -> Vec<u8> {
    let disk = Disk::open_on(child, vec![base], &OpenOptions::new()).expect("the child opens");
    assert!(disk.check().expect("a check").is_sound());
    content(&disk)
}

type Act = fn([Arc<dyn Storage>; 2], &dyn Progress, &Cancel) -> Result<u64, ToolError>;

fn counted(name: &str, act: Act, result_alone: usize) {
    let pair = pair();
    let faults = [
        (CallKind::Read, Fault::Error(io::ErrorKind::Other)),
        (CallKind::Write, Fault::Error(io::ErrorKind::Other)),
        (CallKind::Write, Fault::ErrorAfterHalf(io::ErrorKind::StorageFull)),
        (CallKind::Sync, Fault::Sync(io::ErrorKind::Other, Lost::Nothing)),
        (CallKind::SetLen, Fault::Error(io::ErrorKind::StorageFull)),
        (CallKind::Punch, Fault::Error(io::ErrorKind::Other)),
    ];
    let (mut runs, mut failed) = (0, 0);
    for which in 0..2 {
        for (kind, fault) in faults {
            for repeat in [Repeat::Once, Repeat::FromThen] {
                for k in 1.. {
                    let files = Files::new(&pair);
                    files.outer[which].arm(kind, k, repeat, fault);
                    let outer: [Arc<dyn Storage>; 2] = [files.outer[0].clone(), files.outer[1].clone()];
                    let result = act(outer, &NoProgress, &Cancel::new());
                    let was_hit = files.outer[which].hits() > 0;
                    let what = format!("{name}, file {which}, {kind:?} {k} {repeat:?} {fault:?}");
                    runs += 1;
                    failed += u64::from(result.is_err());
                    assert!(shown(files.healed()) == pair.shown, "{what}: the child shows something else after {result:?}");
                    if result.is_err() {
                        assert!(was_hit, "{what}: {result:?} without a fault");
                        act(files.healed(), &NoProgress, &Cancel::new()).unwrap_or_else(|e| panic!("{what}: not resumable: {e}"));
                        assert!(shown(files.healed()) == pair.shown, "{what}: the child shows something else in the end");
                    }
                    let alone =
                        Disk::open_on(files.healed()[result_alone].clone(), Vec::new(), &OpenOptions::new()).expect("it needs nobody");
                    assert!(content(&alone) == pair.shown, "{what}: the result is something else");
                    if !was_hit {
                        break;
                    }
                }
            }
        }
    }
    println!("{name}: {runs} runs, {failed} failed and were resumed");
    assert!(failed > 50);
}

#[test]
fn a_merge_survives_every_failing_call() {
    counted("merge", merge, 1);
}

#[test]
fn a_flattening_survives_every_failing_call() {
    counted("flatten", flatten, 0);
}

/// Asks for a stop at the n-th sign of life.
struct StopAt {
    left: AtomicU64,
    cancel: Cancel,
}

impl Progress for StopAt {
    fn phase(&self, _phase: Phase, _total: Option<u64>) {
        self.advance(0);
    }

    fn advance(&self, _done: u64) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.cancel.cancel();
        }
    }
}

#[test]
fn whoever_stops_can_go_on() {
    let pair = pair();
    for (name, act, alone) in [("merge", merge as Act, 1), ("flatten", flatten as Act, 0)] {
        let mut stops = 0;
        for n in 1.. {
            let files = Files::new(&pair);
            let cancel = Cancel::new();
            let progress = StopAt { left: AtomicU64::new(n), cancel: cancel.clone() };
            let result = act(files.healed(), &progress, &cancel);
            assert!(shown(files.healed()) == pair.shown, "{name}, stop {n}");
            let Err(e) = result else { break };
            assert_eq!(e.kind(), ErrorKind::Cancelled);
            stops += 1;
            act(files.healed(), &NoProgress, &Cancel::new()).expect("it goes on");
            let result = Disk::open_on(files.healed()[alone].clone(), Vec::new(), &OpenOptions::new()).expect("it needs nobody");
            assert!(content(&result) == pair.shown, "{name}, stop {n}");
        }
        assert!(stops > 1, "{name}: {stops} stops");
    }
    // Stopped before it began, nothing is written.
    let files = Files::new(&pair);
    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(merge(files.healed(), &NoProgress, &cancel).expect_err("a stop").kind(), ErrorKind::Cancelled);
    assert!(files.inner[0].to_bytes() == pair.child && files.inner[1].to_bytes() == pair.base);
}

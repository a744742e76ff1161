//! The hot paths, each beside `pread` or `pwrite` on a plain file in the same group.
//!
//! What counts is the ratio inside a group, not the time: the groups run on whatever machine there is. `benches/ratio_gate.rs`
//! measures most of the same paths in interleaved rounds and fails when one of them is lost; this one shows distributions.
//! On a memory file system a sync costs nothing, so the flush groups show the engine's own work there; point
//! `DIFFDISK_BENCH_DIR` at a real disk to see what the syncs cost.

mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use diffdisk::Disk;
use std::fs::File;
use std::hint::black_box;
use std::time::{Duration, Instant};
use support::{Buffer, Lab, MAX_DEPTH, PAGE, Places, Positioned};

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(30);
    group
}

/// For groups of which there are many.
fn short<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = group(c, name);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(700)).sample_size(10);
    group
}

/// The unit of comparison: something that reads and writes at offsets.
trait Bytes {
    fn read(&self, buf: &mut [u8], at: u64);
    fn write(&self, buf: &[u8], at: u64);
    fn flush(&self);
}

impl Bytes for File {
    fn read(&self, buf: &mut [u8], at: u64) {
        self.read_exact_at(buf, at).expect("the plain file is read");
    }

    fn write(&self, buf: &[u8], at: u64) {
        self.write_all_at(buf, at).expect("the plain file is written");
    }

    fn flush(&self) {
        self.sync_data().expect("the plain file is synced");
    }
}

impl Bytes for Disk {
    fn read(&self, buf: &mut [u8], at: u64) {
        self.read_at(buf, at).expect("the disk is read");
    }

    fn write(&self, buf: &[u8], at: u64) {
        self.write_at(buf, at).expect("the disk is written");
    }

    fn flush(&self) {
        Self::flush(self).expect("the disk is flushed");
    }
}

fn read(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bytes: &dyn Bytes) {
    let (mut buf, mut places) = (Buffer::new(PAGE), Places::new());
    group.bench_function(name, |b| {
        b.iter(|| {
            bytes.read(buf.get_mut(), places.next());
            black_box(buf.get()[0])
        });
    });
}

fn write(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bytes: &dyn Bytes, len: usize) {
    let (buf, mut places) = (Buffer::new(len), Places::new());
    group.bench_function(name, |b| b.iter(|| bytes.write(buf.get(), places.next())));
}

/// The same, and 70 reads to 30 writes, by several threads at once; what is shown is the time of all threads by the number of calls.
fn crowd(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, threads: u64, bytes: &(dyn Bytes + Sync), writes: bool) {
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    scope.spawn(move || {
                        let (mut buf, mut places) = (Buffer::new(PAGE), Places::new());
                        // Each somewhere else.
                        for _ in 0..thread * 1021 {
                            places.next();
                        }
                        for i in 0..iterations.div_ceil(threads) {
                            if writes && i % 10 < 3 {
                                bytes.write(buf.get(), places.next());
                            } else {
                                // Every second one of a page that a warm child most likely does not hold.
                                let neighbour = if writes && i % 2 == 1 { PAGE as u64 } else { 0 };
                                bytes.read(buf.get_mut(), places.next() ^ neighbour);
                                black_box(buf.get()[0]);
                            }
                        }
                    });
                }
            });
            start.elapsed()
        });
    });
}

/// Writes into files that `fresh` makes anew, off the clock, whenever the stream of places starts over. With a flush after each
/// `every`-th write.
fn first_writes<B: Bytes>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    len: usize,
    every: Option<u64>,
    mut fresh: impl FnMut() -> B,
) {
    let buf = Buffer::new(len);
    group.bench_function(name, |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let (bytes, mut places) = (fresh(), Places::new());
                let mut done = 0;
                let start = Instant::now();
                while left > done {
                    bytes.write(buf.get(), places.next());
                    done += 1;
                    if every.is_some_and(|every| done % every == 0) {
                        bytes.flush();
                    }
                    if places.is_at_start() {
                        break;
                    }
                }
                spent += start.elapsed();
                left -= done;
            }
            spent
        });
    });
}

fn reads(c: &mut Criterion) {
    let lab = Lab::new();
    let mut present = group(c, "read 4 KiB present");
    read(&mut present, "plain file", &lab.raw);
    read(&mut present, "full block", &lab.chain(0, false));
    read(&mut present, "own sectors of a child", &lab.warm("warm", false));
    present.finish();
    for depth in [1, 2, 8, MAX_DEPTH] {
        let mut redirected = group(c, &format!("read 4 KiB redirected, depth {depth}"));
        read(&mut redirected, "plain file", &lab.raw);
        read(&mut redirected, "chain", &lab.chain(depth, false));
        read(&mut redirected, "chain, ancestors mapped", &lab.chain(depth, true));
        redirected.finish();
    }
}

fn writes(c: &mut Criterion) {
    let lab = Lab::new();
    let warm = lab.warm("warm", false);
    for (name, len) in [("4 KiB", PAGE), ("512 B", 512)] {
        let mut rewrite = group(c, &format!("rewrite {name}"));
        write(&mut rewrite, "plain file", &lab.raw, len);
        write(&mut rewrite, "child", &warm, len);
        rewrite.finish();
        let mut first = group(c, &format!("first write {name}"));
        first_writes(&mut first, "plain file", len, None, || lab.fresh_raw());
        first_writes(&mut first, "child", len, None, || lab.fresh());
        first.finish();
    }
}

fn flushes(c: &mut Criterion) {
    let lab = Lab::new();
    let warm = lab.warm("warm", false);
    let mut rewrites = group(c, "rewrite 4 KiB and flush");
    for (name, bytes) in [("plain file", &lab.raw as &dyn Bytes), ("child", &warm)] {
        let (buf, mut places) = (Buffer::new(PAGE), Places::new());
        rewrites.bench_function(name, |b| {
            b.iter(|| {
                bytes.write(buf.get(), places.next());
                bytes.flush();
            });
        });
    }
    rewrites.finish();
    for every in [1, 32] {
        let mut new = group(c, &format!("first write 4 KiB, flush after every {every}"));
        first_writes(&mut new, "plain file", PAGE, Some(every), || lab.fresh_raw());
        first_writes(&mut new, "child", PAGE, Some(every), || lab.fresh());
        new.finish();
    }
}

fn threads(c: &mut Criterion) {
    let lab = Lab::new();
    for threads in [1, 2, 4] {
        for depth in [1, 2, 8, MAX_DEPTH] {
            let mut redirected = short(c, &format!("read 4 KiB redirected, depth {depth}, {threads} threads"));
            crowd(&mut redirected, "plain file", threads, &lab.raw, false);
            crowd(&mut redirected, "chain", threads, &lab.chain(depth, false), false);
            crowd(&mut redirected, "chain, ancestors mapped", threads, &lab.chain(depth, true), false);
            redirected.finish();
        }
        let mut mixed = short(c, &format!("70 reads to 30 writes of 4 KiB, {threads} threads"));
        crowd(&mut mixed, "plain file", threads, &lab.raw, true);
        crowd(&mut mixed, "child", threads, &lab.warm("mixed", false), true);
        crowd(&mut mixed, "child, ancestors mapped", threads, &lab.warm("mixed-mapped", true), true);
        mixed.finish();
    }
}

/// What a guard costs (`storage::guard_mappings`). Runs last: mappings made from here on have guards.
#[cfg(target_os = "linux")]
fn guard(c: &mut Criterion) {
    let lab = Lab::new();
    let bare = lab.chain(2, true);
    diffdisk::storage::guard_mappings().expect("the handler is installed");
    let mut guards = group(c, "read 4 KiB redirected, depth 2, mapped");
    read(&mut guards, "bare", &bare);
    read(&mut guards, "guarded", &lab.chain(2, true));
    guards.finish();
}

#[cfg(not(target_os = "linux"))]
fn guard(_: &mut Criterion) {
    eprintln!("skipped: guards of mappings are made for Linux only");
}

criterion_group!(benches, reads, writes, flushes, threads, guard);
criterion_main!(benches);

//! Creating a clone, and opening one with a first read, at 1 GiB and at 64 TiB, beside the same for an empty plain file.
//!
//! Neither may touch the tables of the parent, so the two sizes should cost the same. Creation here is not made durable: with
//! syncs the file system's journal is all one would see.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use diffdisk::{CreateOptions, Disk, OpenOptions};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

fn scratch_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory for the measurements")
}

fn open(c: &mut Criterion) {
    for (name, size) in [("1 GiB", 1_u64 << 30), ("64 TiB", 64 << 40)] {
        let dir = scratch_dir();
        let path = |name: &str| dir.path().join(name);
        Disk::create(path("base.vhdx"), &CreateOptions::dynamic(size).durable(false)).expect("the base").close().expect("closed");
        let (plain, child) = (path("plain"), path("child.vhdx"));
        // The largest plain files of a common file system are 16 TiB; the length of an empty file does not matter.
        let plain_len = size.min(8 << 40);

        let mut create = c.benchmark_group(format!("create, {name}"));
        create.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(30);
        create.bench_function("plain file", |b| {
            let remove = || drop(std::fs::remove_file(&plain));
            b.iter_batched(remove, |()| File::create(&plain).expect("created").set_len(plain_len).expect("sized"), BatchSize::PerIteration);
        });
        create.bench_function("clone", |b| {
            let remove = || drop(std::fs::remove_file(&child));
            let options = CreateOptions::child().durable(false);
            b.iter_batched(
                remove,
                |()| drop(Disk::create_child(&child, path("base.vhdx"), &options).expect("created")),
                BatchSize::PerIteration,
            );
        });
        create.finish();

        let mut open = c.benchmark_group(format!("open and first read, {name}"));
        open.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(30);
        let mut page = [0; 4096];
        open.bench_function("plain file", |b| {
            b.iter(|| {
                let mut file = File::open(&plain).expect("opened");
                file.seek(SeekFrom::Start(plain_len / 2)).and_then(|_| file.read_exact(&mut page)).expect("read");
            });
        });
        open.bench_function("clone", |b| {
            b.iter(|| Disk::open(&child, &OpenOptions::new()).expect("opened").read_at(&mut page, size / 2).expect("read"));
        });
        open.finish();
    }
}

criterion_group!(benches, open);
criterion_main!(benches);

//! Opening a file below a directory without following a link.
//!
//! On Linux one `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS` does it, and the kernel refuses in the
//! middle of the walk whatever somebody swaps in. Where that call is missing (before Linux 5.6, or forbidden by a sandbox) and on
//! other unixes, the path is walked one component at a time with `O_NOFOLLOW`, each relative to the directory opened before; a
//! component is never looked at by its full path, so there is nothing to swap either.
//!
//! On other systems there are no directory handles to walk along: every component is checked for being a link, the result is
//! canonicalised and compared, and the file is opened. Somebody who can write to the allowed directory could win a race against
//! that; it keeps out files that merely *contain* a bad path.

use std::fs::File;
use std::io;
use std::path::Path;

/// Why nothing was opened.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A component is a link, or the walk left the directory.
    Link,
    /// There is no such file.
    Missing,
    /// It is something that cannot even be opened like a file.
    NotRegular,
    /// Anything else.
    Failed(io::Error),
}

#[cfg(unix)]
pub(super) use unix::Directory;

#[cfg(not(unix))]
pub(super) use portable::Directory;

/// Opens for reading as any program would, but without waiting for the other end of a FIFO.
pub(super) fn open_following(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, unix::READ.bits().cast_signed());
    options.open(path)
}

#[cfg(unix)]
mod unix {
    use super::Refusal;
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use rustix::io::Errno;
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::path::{Component, Path};

    /// How a parent is opened: never created, never waited for, never a controlling terminal.
    pub(super) const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

    /// A directory to walk from. Where the system can, a handle that needs no right to list it.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const WALK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const WALK: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

    /// An open directory.
    #[derive(Debug)]
    pub(in super::super) struct Directory(OwnedFd);

    impl Directory {
        pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
            Ok(Self(openat(CWD, path, WALK, Mode::empty())?))
        }

        /// Opens `rest` (names only) below this directory.
        pub(in super::super) fn open_beneath(&self, rest: &Path) -> Result<File, Refusal> {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if let Some(result) = in_one_call(self.0.as_fd(), rest) {
                return result;
            }
            walk(self.0.as_fd(), rest)
        }
    }

    fn refusal(e: Errno) -> Refusal {
        match e {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Refusal::Missing,
            // EMLINK is what FreeBSD says for a link under O_NOFOLLOW; EXDEV says that the walk left the directory.
            Errno::LOOP | Errno::MLINK | Errno::XDEV => Refusal::Link,
            // A socket, or a device without a driver.
            Errno::NXIO | Errno::NODEV => Refusal::NotRegular,
            e => Refusal::Failed(e.into()),
        }
    }

    /// `None` where the call does not exist, or a sandbox that does not know it says `EPERM`.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn in_one_call(dir: BorrowedFd<'_>, rest: &Path) -> Option<Result<File, Refusal>> {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut result = openat2(dir, rest, READ, Mode::empty(), resolve);
        // EAGAIN: a rename somewhere made the kernel unsure. It asks to be asked again.
        for _ in 0..32 {
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
            result = openat2(dir, rest, READ, Mode::empty(), resolve);
        }
        match result {
            Err(Errno::NOSYS | Errno::PERM) => None,
            Ok(file) => Some(Ok(file.into())),
            Err(e) => Some(Err(refusal(e))),
        }
    }

    /// One component at a time, no link followed.
    pub(super) fn walk(dir: BorrowedFd<'_>, rest: &Path) -> Result<File, Refusal> {
        let mut names = Vec::new();
        for component in rest.components() {
            let Component::Normal(name) = component else { return Err(Refusal::Link) };
            names.push(name);
        }
        let Some((last, dirs)) = names.split_last() else { return Err(Refusal::NotRegular) };
        let mut here: Option<OwnedFd> = None;
        for name in dirs {
            let next = {
                let from = here.as_ref().map_or(dir, AsFd::as_fd);
                openat(from, *name, WALK | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| match e {
                    // Asking for a directory and no link, a link is told as "not a directory".
                    Errno::NOTDIR if is_link(from, name) => Refusal::Link,
                    e => refusal(e),
                })?
            };
            here = Some(next);
        }
        let from = here.as_ref().map_or(dir, AsFd::as_fd);
        openat(from, *last, READ | OFlags::NOFOLLOW, Mode::empty()).map(File::from).map_err(refusal)
    }

    /// For the message only: nothing is opened on the strength of this.
    fn is_link(dir: BorrowedFd<'_>, name: &std::ffi::OsStr) -> bool {
        use rustix::fs::{AtFlags, FileType, statat};
        statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    }

    #[cfg(all(test, any(target_os = "linux", target_os = "android")))]
    mod tests {
        use super::*;
        use std::io::Read;
        use std::os::unix::fs::symlink;
        use std::sync::atomic::{AtomicBool, Ordering};

        type Open = fn(BorrowedFd<'_>, &Path) -> Option<Result<File, Refusal>>;

        /// Both ways; the first is left out by a kernel that does not have it.
        const WAYS: [(&str, Open); 2] = [("openat2", in_one_call), ("walk", |dir, rest| Some(walk(dir, rest)))];

        fn told(result: &Result<File, Refusal>) -> &'static str {
            match result {
                Ok(_) => "open",
                Err(Refusal::Link) => "link",
                Err(Refusal::Missing) => "missing",
                Err(Refusal::NotRegular) => "not regular",
                Err(Refusal::Failed(_)) => "failed",
            }
        }

        #[test]
        fn both_ways_say_the_same() {
            let root = tempfile::tempdir().unwrap();
            let (inside, outside) = (root.path().join("in"), root.path().join("out"));
            for dir in [&inside, &outside] {
                std::fs::create_dir_all(dir.join("sub")).unwrap();
                std::fs::write(dir.join("sub/file"), b"x").unwrap();
            }
            symlink("../out", inside.join("dirlink")).unwrap();
            symlink("sub", inside.join("harmless")).unwrap();
            symlink("sub/file", inside.join("filelink")).unwrap();
            symlink("/proc/self/root", inside.join("magic")).unwrap();
            let dir = Directory::open(&inside).unwrap();
            let cases = [
                ("sub/file", "open"),
                ("sub/none", "missing"),
                ("none/file", "missing"),
                ("sub/file/below", "missing"),
                ("dirlink/sub/file", "link"),
                ("dirlink/none", "link"),
                ("harmless/file", "link"),
                ("filelink", "link"),
                ("magic/etc/passwd", "link"),
                ("../out/sub/file", "link"),
                ("/etc/passwd", "link"),
            ];
            for (way, open) in WAYS {
                for (rest, expected) in cases {
                    let Some(result) = open(dir.0.as_fd(), Path::new(rest)) else { break };
                    assert_eq!(told(&result), expected, "{way} {rest}");
                }
            }
        }

        /// A writer in the allowed directory swaps a file, and the directory above a file, for links to the outside.
        #[test]
        fn links_swapped_in_a_race_never_lead_outside() {
            let root = tempfile::tempdir().unwrap();
            let (inside, outside) = (root.path().join("in"), root.path().join("out"));
            for (dir, content) in [(&inside, "inside"), (&outside, "secret")] {
                std::fs::create_dir_all(dir.join("sub")).unwrap();
                std::fs::write(dir.join("sub/file"), content).unwrap();
                std::fs::write(dir.join("file"), content).unwrap();
            }
            symlink(outside.join("file"), inside.join("filelink")).unwrap();
            symlink(outside.join("sub"), inside.join("sublink")).unwrap();
            let dir = Directory::open(&inside).unwrap();
            let stop = AtomicBool::new(false);
            let swap = |a: &str, b: &str| {
                let (a, b) = (inside.join(a), inside.join(b));
                rustix::fs::renameat_with(CWD, a, CWD, b, rustix::fs::RenameFlags::EXCHANGE).unwrap();
            };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        swap("file", "filelink");
                        swap("sub", "sublink");
                    }
                });
                for (way, open) in WAYS {
                    let (mut opened, mut refused) = (0, 0);
                    for round in 0..1_000_000 {
                        if round > 2_000 && opened > 0 && refused > 0 {
                            break;
                        }
                        let Some(result) = open(dir.0.as_fd(), Path::new(["file", "sub/file"][round % 2])) else { break };
                        match result {
                            Ok(mut file) => {
                                let mut content = String::new();
                                file.read_to_string(&mut content).unwrap();
                                assert_eq!(content, "inside", "{way}");
                                opened += 1;
                            }
                            Err(_) => refused += 1,
                        }
                    }
                    println!("{way}: {opened} opened, {refused} refused");
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
    }
}

#[cfg(not(unix))]
mod portable {
    use super::Refusal;
    use std::fs::File;
    use std::io;
    use std::path::{Component, Path, PathBuf};

    /// A directory, by its canonical path.
    #[derive(Debug)]
    pub(in super::super) struct Directory(PathBuf);

    impl Directory {
        pub(in super::super) fn open(path: &Path) -> io::Result<Self> {
            let real = std::fs::canonicalize(path)?;
            if !std::fs::metadata(&real)?.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Ok(Self(real))
        }

        pub(in super::super) fn open_beneath(&self, rest: &Path) -> Result<File, Refusal> {
            let refused = |e: io::Error| match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => Refusal::Missing,
                _ => Refusal::Failed(e),
            };
            let mut path = self.0.clone();
            let mut is_file = false;
            for component in rest.components() {
                let Component::Normal(name) = component else { return Err(Refusal::Link) };
                path.push(name);
                let kind = std::fs::symlink_metadata(&path).map_err(refused)?.file_type();
                if kind.is_symlink() {
                    return Err(Refusal::Link);
                }
                is_file = kind.is_file();
            }
            if !is_file {
                return Err(Refusal::NotRegular);
            }
            if !std::fs::canonicalize(&path).map_err(refused)?.starts_with(&self.0) {
                return Err(Refusal::Link);
            }
            File::open(&path).map_err(refused)
        }
    }
}

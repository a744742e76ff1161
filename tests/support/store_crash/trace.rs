//! The system calls of a child process, as `strace` prints them, turned into changes of files and directories.
//!
//! Nothing is taken on trust: a call that could change a file below the root and is not known here ends the test.

use super::files::{Files, Ino, ROOT};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Calls that change or harden something, and those that say which descriptor is what.
const CALLS: &str = "openat,?openat2,open,creat,close,dup,dup2,dup3,fcntl,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,\
fallocate,fsync,fdatasync,sync,syncfs,sync_file_range,copy_file_range,sendfile,splice,rename,renameat,renameat2,link,linkat,unlink,\
unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,?fchmodat2";

/// One thing that happened, in terms of inodes, so that it can be replayed whatever else was lost.
#[derive(Clone, Debug)]
pub enum Event {
    Write {
        file: Ino,
        at: u64,
        bytes: Arc<[u8]>,
        /// The path, where the call returns once these very bytes are durable; what was written before gains nothing by that.
        durable: Option<String>,
    },
    SetLen {
        file: Ino,
        len: u64,
    },
    Punch {
        file: Ino,
        at: u64,
        len: u64,
    },
    /// A name appears: a creation, a link, a new directory.
    Link {
        dir: Ino,
        name: String,
        what: Ino,
    },
    Unlink {
        dir: Ino,
        name: String,
    },
    /// In one directory; what had the new name loses it in the same instant.
    Rename {
        dir: Ino,
        from: String,
        to: String,
        what: Ino,
    },
    /// Of a file or a directory.
    Sync {
        what: Ino,
        path: String,
    },
    /// The act is over: what it promised must last.
    Done,
}

/// A name that does not exist; asking for its removal marks a place in the trace.
pub const DONE: &str = "the-act-is-done";

/// Whether `strace` is there and may trace.
pub fn can_trace() -> Result<(), String> {
    let out = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output().map_err(|e| format!("strace: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()) }
}

/// Runs a command under `strace` and returns its events. `files` is what is below the root before, and after.
pub fn record(command: &Command, root: &Path, files: &mut Files) -> Vec<Event> {
    let log = tempfile::NamedTempFile::new().expect("a file for the trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-xx", "-s", "4000000", "-e", &format!("trace={CALLS}"), "-o"]).arg(log.path());
    strace.arg(command.get_program()).args(command.get_args());
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let out = strace.output().expect("strace runs");
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let text = std::fs::read_to_string(log.path()).expect("the trace is text");
    let mut reader =
        Reader { root: root.to_str().expect("a plain path").to_owned(), files, descriptors: HashMap::new(), events: Vec::new() };
    let mut unfinished: HashMap<&str, String> = HashMap::new();
    for line in text.lines() {
        let (pid, rest) = line.split_once(' ').expect("a process id");
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, begun.to_owned());
        } else if let Some((_, ended)) = rest.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>")) {
            let begun = unfinished.remove(pid).expect("what is resumed was begun");
            reader.line(&(begun + ended));
        } else {
            reader.line(rest);
        }
    }
    assert!(matches!(reader.events.last(), Some(Event::Done)), "the act came to its end");
    reader.events
}

struct Reader<'a> {
    root: String,
    files: &'a mut Files,
    /// Open files and directories below the root.
    descriptors: HashMap<i64, (Ino, String)>,
    events: Vec<Event>,
}

impl Reader<'_> {
    fn line(&mut self, line: &str) {
        let Some((call, rest)) = line.split_once('(') else { return };
        let Some((args, result)) = rest.rsplit_once(") = ").or_else(|| rest.rsplit_once(')')) else { return };
        let result = result.trim_start_matches([' ', '=']);
        let failed = result.starts_with('-');
        let args: Vec<&str> = args.split(", ").map(str::trim).collect();
        if failed {
            if call.starts_with("unlink") && args.iter().any(|arg| text(arg).is_some_and(|path| path.ends_with(DONE))) {
                self.events.push(Event::Done);
            }
            return;
        }
        let value: i64 = result.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        self.call(call, &args, value);
    }

    fn call(&mut self, call: &str, args: &[&str], value: i64) {
        match call {
            "openat" | "openat2" => self.open(args, value),
            "close" => drop(self.descriptors.remove(&number(args[0]))),
            "dup" | "dup2" | "dup3" => self.duplicate(args[0], value),
            "fcntl" => {
                if args[1].starts_with("F_DUPFD") {
                    self.duplicate(args[0], value);
                }
            }
            "pwrite64" => {
                if let Some((file, _)) = self.descriptor(args[0]) {
                    let mut bytes = bytes(args[1]).expect("the bytes of a write");
                    bytes.truncate(usize::try_from(value).expect("a length"));
                    if !bytes.is_empty() {
                        self.change(Event::Write { file, at: number(args[3]) as u64, bytes: bytes.into(), durable: None });
                    }
                }
            }
            "pwritev2" if self.descriptor(args[0]).is_some() => {
                let (file, path) = self.descriptor(args[0]).expect("just looked");
                let [_, base, _, "1", at, "RWF_DSYNC"] = args else { panic!("a write of another sort: {:?}", &args[2..]) };
                let mut bytes = bytes(base.strip_prefix("[{iov_base=").expect("a buffer")).expect("the bytes of a write");
                bytes.truncate(usize::try_from(value).expect("a length"));
                self.change(Event::Write { file, at: number(at) as u64, bytes: bytes.into(), durable: Some(path) });
            }
            "ftruncate" => {
                if let Some((file, _)) = self.descriptor(args[0]) {
                    self.change(Event::SetLen { file, len: number(args[1]) as u64 });
                }
            }
            "fallocate" => {
                if let Some((file, _)) = self.descriptor(args[0]) {
                    assert!(args[1].contains("FALLOC_FL_PUNCH_HOLE"), "an allocation: {args:?}");
                    self.change(Event::Punch { file, at: number(args[2]) as u64, len: number(args[3]) as u64 });
                }
            }
            "fsync" | "fdatasync" => {
                if let Some((what, path)) = self.descriptor(args[0]) {
                    self.events.push(Event::Sync { what, path });
                }
            }
            "rename" => self.rename(self.place("AT_FDCWD", args[0]), self.place("AT_FDCWD", args[1])),
            "renameat" | "renameat2" => self.rename(self.place(args[0], args[1]), self.place(args[2], args[3])),
            "link" => self.link(self.place("AT_FDCWD", args[0]), self.place("AT_FDCWD", args[1])),
            "linkat" => self.link(self.place(args[0], args[1]), self.place(args[2], args[3])),
            "unlink" | "rmdir" => self.unlink(self.place("AT_FDCWD", args[0])),
            "unlinkat" => self.unlink(self.place(args[0], args[1])),
            "mkdir" => self.make_dir(self.place("AT_FDCWD", args[0])),
            "mkdirat" => self.make_dir(self.place(args[0], args[1])),
            // Modes decide nothing that is tested here: the one who recovers may do everything.
            "chmod" | "fchmod" | "fchmodat" | "fchmodat2" => {}
            "write" | "writev" if self.descriptor(args[0]).is_none() => {}
            other => {
                let names_ours = args.iter().any(|arg| text(arg).is_some_and(|path| path.starts_with(&self.root)));
                let holds_ours = args.iter().any(|arg| self.descriptor(arg).is_some());
                assert!(!names_ours && !holds_ours, "{other} {args:?}: this test does not know what that does");
            }
        }
    }

    fn descriptor(&self, arg: &str) -> Option<(Ino, String)> {
        self.descriptors.get(&arg.parse().ok()?).cloned()
    }

    fn duplicate(&mut self, from: &str, to: i64) {
        if let Some(known) = self.descriptor(from) {
            self.descriptors.insert(to, known);
        }
    }

    /// The directory and the last component of a path below the root.
    fn place(&self, dir: &str, path: &str) -> Option<(Ino, String, String)> {
        let path = text(path)?;
        let whole = match self.descriptor(dir) {
            Some((_, dir_path)) if !path.starts_with('/') => format!("{dir_path}/{path}"),
            _ => path.strip_prefix(&self.root)?.to_owned(),
        };
        let mut parts: Vec<&str> = whole.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let name = parts.pop()?.to_owned();
        let dir = parts.iter().try_fold(ROOT, |dir, part| self.files.entry(dir, part))?;
        Some((dir, name, format!("/{}", whole.trim_start_matches('/'))))
    }

    fn open(&mut self, args: &[&str], descriptor: i64) {
        let flags = args[2];
        let Some((dir, name, path)) = self.place(args[0], args[1]) else {
            if text(args[1]).is_some_and(|path| path.trim_end_matches('/') == self.root) {
                self.descriptors.insert(descriptor, (ROOT, String::new()));
            }
            return;
        };
        let file = self.files.entry(dir, &name).unwrap_or_else(|| {
            assert!(flags.contains("O_CREAT"), "{path} was opened and is not known");
            let what = self.files.new_file();
            self.change(Event::Link { dir, name, what });
            what
        });
        assert!(!flags.contains("O_TRUNC") && !flags.contains("O_TMPFILE"), "{path} was opened with {flags}");
        self.descriptors.insert(descriptor, (file, path));
    }

    fn rename(&mut self, from: Option<(Ino, String, String)>, to: Option<(Ino, String, String)>) {
        let (Some((dir, from, _)), Some((to_dir, to, _))) = (from, to) else { return };
        let what = self.files.entry(dir, &from).expect("what is renamed is there");
        assert_eq!(dir, to_dir, "a rename between directories: {from} {to}");
        self.change(Event::Rename { dir, from, to, what });
    }

    fn link(&mut self, from: Option<(Ino, String, String)>, to: Option<(Ino, String, String)>) {
        let (Some((from_dir, from, _)), Some((dir, name, _))) = (from, to) else { return };
        let what = self.files.entry(from_dir, &from).expect("what is linked is there");
        self.change(Event::Link { dir, name, what });
    }

    fn unlink(&mut self, place: Option<(Ino, String, String)>) {
        if let Some((dir, name, _)) = place {
            self.change(Event::Unlink { dir, name });
        }
    }

    fn make_dir(&mut self, place: Option<(Ino, String, String)>) {
        if let Some((dir, name, _)) = place {
            let what = self.files.new_dir();
            self.change(Event::Link { dir, name, what });
        }
    }

    fn change(&mut self, event: Event) {
        self.files.apply(&event);
        self.events.push(event);
    }
}

fn number(arg: &str) -> i64 {
    arg.parse().unwrap_or(-1)
}

/// The bytes of a string as `-xx` prints it.
fn bytes(arg: &str) -> Option<Vec<u8>> {
    let inner = arg.strip_prefix('"')?;
    let inner = inner.strip_suffix('"').unwrap_or_else(|| panic!("strace cut a string short: {} characters", inner.len()));
    inner.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).ok()).collect()
}

fn text(arg: &str) -> Option<String> {
    String::from_utf8(bytes(arg)?).ok()
}

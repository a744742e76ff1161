//! Foreign readers of VHDX files, for comparisons: `qemu-img`, 7-Zip, and libvhdi through its Python binding.
//!
//! Each is asked for once whether it is there. None is ever given a file that its known defects make it read wrongly: [`super::diff`]
//! decides that, from the list of divergences in the format's description (§11).

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

/// Which readers this machine has, and under which names.
#[derive(Debug, Default)]
pub struct Readers {
    pub qemu: Option<&'static str>,
    pub zip: Option<&'static str>,
    pub libvhdi: Option<&'static str>,
}

impl Readers {
    /// Their names, for a line of counters.
    pub fn names(&self) -> String {
        let named = [("qemu-img", self.qemu), ("7-Zip", self.zip), ("libvhdi", self.libvhdi)];
        let (there, missing): (Vec<_>, Vec<_>) = named.into_iter().partition(|(_, found)| found.is_some());
        let list = |some: Vec<(&str, Option<&str>)>| some.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        match (there.is_empty(), missing.is_empty()) {
            (_, true) => list(there),
            (true, false) => "skipped: no foreign reader here (qemu-utils, p7zip-full, python3-libvhdi)".to_owned(),
            (false, false) => format!("{}; skipped for want of the tool: {}", list(there), list(missing)),
        }
    }
}

fn says(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).to_lowercase())
}

/// The readers of this machine.
pub fn readers() -> &'static Readers {
    static FOUND: OnceLock<Readers> = OnceLock::new();
    FOUND.get_or_init(|| Readers {
        qemu: ["qemu-img"].into_iter().find(|name| says(name, &["--help"]).is_some_and(|text| text.contains("vhdx"))),
        // Old versions know VHD and not VHDX.
        zip: ["7zz", "7z"].into_iter().find(|name| says(name, &["i"]).is_some_and(|text| text.contains(" vhdx "))),
        libvhdi: ["/usr/bin/python3", "python3"].into_iter().find(|name| says(name, &["-c", "import pyvhdi"]).is_some()),
    })
}

fn finish(mut command: Command, who: &str) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{who} does not start: {e}"));
    assert!(output.status.success(), "{who} refuses the file: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The path of a flat copy of `file`, which has no parent, made by `qemu-img`.
pub fn qemu(program: &str, file: &Path) -> PathBuf {
    let flat = file.with_extension("qemu");
    let mut check = Command::new(program);
    check.args(["check", "-q", "-f", "vhdx"]).arg(file);
    let _ = finish(check, "qemu-img check");
    let mut convert = Command::new(program);
    convert.args(["convert", "-f", "vhdx", "-O", "raw"]).arg(file).arg(&flat);
    let _ = finish(convert, "qemu-img convert");
    flat
}

/// All bytes of `file` as 7-Zip unpacks them; parents are found by their names.
pub fn zip(program: &str, file: &Path) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(["e", "-so", "-tVHDX"]).arg(file);
    finish(command, "7-Zip")
}

/// Reads stretches of chains for as long as its input lasts: `path` lines leaf first, `read at len` lines, then `go OUT`.
const SCRIPT: &str = r#"
import sys, pyvhdi
paths, stretches = [], []
for line in sys.stdin:
    word, _, rest = line.rstrip("\n").partition(" ")
    if word == "path":
        paths.append(rest)
    elif word == "read":
        stretches.append([int(n) for n in rest.split()])
    else:
        try:
            files = []
            for path in paths:
                file = pyvhdi.file()
                file.open(path)
                files.append(file)
            for child, parent in zip(files, files[1:]):
                child.set_parent(parent)
            with open(rest, "wb") as out:
                for at, left in stretches:
                    files[0].seek_offset(at, 0)
                    while left:
                        part = files[0].read_buffer(min(left, 1 << 20))
                        if not part:
                            raise OSError(f"stops {left} bytes before the end")
                        out.write(part)
                        left -= len(part)
            answer = f"ok {files[0].get_media_size()}"
            for file in reversed(files):
                file.close()
        except OSError as error:
            answer = "error " + str(error).replace("\n", " ")
        print(answer, flush=True)
        paths, stretches = [], []
"#;

struct Server {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Server {
    fn start(program: &str) -> Self {
        let mut command = Command::new(program);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("Python starts");
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().expect("a pipe")));
        Self { child, to, from }
    }

    fn ask(&mut self, question: &str) -> std::io::Result<String> {
        let to = self.to.as_mut().expect("it is taken away only at the end");
        to.write_all(question.as_bytes())?;
        to.flush()?;
        let mut answer = String::new();
        let _ = self.from.read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.to.take());
        let _ = self.child.wait();
    }
}

/// The stretches of the chain `files` (leaf first), one after the other, and the size of the disk, as libvhdi has them.
pub fn libvhdi(program: &str, files: &[PathBuf], stretches: &[(u64, u64)]) -> (Vec<u8>, u64) {
    thread_local! {
        static SERVER: RefCell<Option<Server>> = const { RefCell::new(None) };
    }
    let out = files[0].with_extension("libvhdi");
    let mut question: String = files.iter().map(|file| format!("path {}\n", file.display())).collect();
    question.extend(stretches.iter().map(|(at, len)| format!("read {at} {len}\n")));
    question += &format!("go {}\n", out.display());
    let answer = SERVER.with_borrow_mut(|server| server.get_or_insert_with(|| Server::start(program)).ask(&question));
    let answer = answer.expect("Python answers");
    let size = answer.strip_prefix("ok ").unwrap_or_else(|| panic!("libvhdi refuses the file: {answer:?}"));
    (std::fs::read(&out).expect("what Python wrote"), size.parse().expect("a number"))
}

//! Asking the process that has a clone open to save it.
//!
//! Whoever serves a clone holds its lock, so nobody else can freeze its leaf. A [`Control`] is a unix socket beside the clone, `NAME.vhdx.control`, on
//! which others ask for it: one line of JSON, one line of JSON back, then the connection ends.
//!
//! ```text
//!     → {"verb":"save","savepoint":"before-migration"}
//!     ← {"ok":true,"savepoint":{..},"pause_microseconds":41}
//!     ← {"ok":false,"kind":"already_exists","message":"the clone .. has a savepoint .. already"}
//! ```
//!
//! The socket is made with mode 0600 before it listens. Whoever makes it holds the clone's lock, so one that is there already belongs to
//! nobody any more and is replaced. There are no hidden threads: [`Control::run`] works on the thread that calls it, one request at a time.

use super::clone::CloneDisk;
use super::error::StoreError;
use super::live::{LiveClone, Saved};
use super::record::Savepoint;
use crate::kind::ErrorKind;
use crate::sync::Arc;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest line of either side.
const MAX_LINE: u64 = 64 << 10;
/// How long a client may take to ask.
const ASKING: Duration = Duration::from_secs(5);
/// How long a save may take: everything that was written since the last flush has to become durable.
const ANSWERING: Duration = Duration::from_secs(120);
const BACKLOG: i32 = 8;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Save { savepoint: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    savepoint: Option<Savepoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pause_microseconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// The kinds of errors on the wire. What is not among them arrives as `Io`.
const KINDS: [(ErrorKind, &str); 10] = [
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::Denied, "denied"),
    (ErrorKind::AlreadyExists, "already_exists"),
    (ErrorKind::InUse, "in_use"),
    (ErrorKind::Damaged, "damaged"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::InvalidInput, "invalid_input"),
    (ErrorKind::NoSpace, "no_space"),
    (ErrorKind::Unavailable, "unavailable"),
    (ErrorKind::Cancelled, "cancelled"),
];

/// The socket on which others ask this process to save a clone that it has open.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// A byte comes out of the first when it is time to stop.
    bell: (UnixStream, Arc<UnixStream>),
}

/// Ends [`Control::run`].
#[derive(Clone, Debug)]
pub struct ControlStopper(Arc<UnixStream>);

impl ControlStopper {
    /// Lets `run` return, once it has answered whom it is answering.
    pub fn stop(&self) {
        // A full buffer means that it was told already.
        let _ = (&*self.0).write(&[1]);
    }
}

pub(super) fn socket_of(clone: &Path) -> PathBuf {
    let mut name = clone.as_os_str().to_owned();
    name.push(".control");
    name.into()
}

impl Control {
    /// Makes the socket of a clone that this process has open.
    ///
    /// # Errors
    /// `Io`, for instance when the path is longer than a socket's name may be (about 100 bytes).
    pub fn open(live: &LiveClone) -> Result<Self, StoreError> {
        let path = socket_of(live.clone_disk().path());
        let failed = |e: io::Error| StoreError::io("make the control socket", &path)(e);
        if std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            super::files::remove(&path)?;
        }
        let address = SocketAddrUnix::new(&path).map_err(|e| failed(e.into()))?;
        let fd = socket(AddressFamily::UNIX, SocketType::STREAM, None).map_err(|e| failed(e.into()))?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        bind(&fd, &address).map_err(|e| failed(e.into()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listen(&fd, BACKLOG).map_err(|e| failed(e.into()))?;
        let (out, into) = UnixStream::pair().map_err(failed)?;
        into.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener: UnixListener::from(fd), path: path.clone(), bell: (out, Arc::new(into)) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something with which another thread ends [`Control::run`].
    pub fn stopper(&self) -> ControlStopper {
        ControlStopper(Arc::clone(&self.bell.1))
    }

    /// Answers requests until it is stopped.
    pub fn run(&self, live: &LiveClone) {
        loop {
            let mut fds = [PollFd::new(&self.bell.0, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            // An error (interrupted) is a wake-up like any other.
            let _ = poll(&mut fds, None);
            if !fds[0].revents().is_empty() {
                return;
            }
            if fds[1].revents().is_empty() {
                continue;
            }
            match self.listener.accept() {
                // A client that goes away or talks nonsense is its own problem.
                Ok((stream, _)) => drop(serve(stream, live)),
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(mut stream: UnixStream, live: &LiveClone) -> io::Result<()> {
    stream.set_read_timeout(Some(ASKING))?;
    stream.set_write_timeout(Some(ASKING))?;
    let answer = match hear::<Request>(&stream) {
        Ok(Request::Save { savepoint }) => match live.save(&savepoint) {
            Ok(saved) => Answer {
                ok: true,
                savepoint: Some(saved.savepoint),
                pause_microseconds: Some(u64::try_from(saved.pause.as_micros()).unwrap_or(u64::MAX)),
                kind: None,
                message: None,
            },
            Err(e) => refusal(e.kind(), e.to_string()),
        },
        Err(e) => refusal(ErrorKind::InvalidInput, format!("that is no request: {e}")),
    };
    say(&mut stream, &answer)
}

fn refusal(kind: ErrorKind, message: String) -> Answer {
    let key = KINDS.iter().find(|(known, _)| *known == kind).map_or("io", |(_, key)| key);
    Answer { ok: false, savepoint: None, pause_microseconds: None, kind: Some(key.to_owned()), message: Some(message) }
}

fn say<T: Serialize>(stream: &mut UnixStream, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn hear<T: for<'de> Deserialize<'de>>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

impl CloneDisk {
    /// Saves the clone wherever it is: here when nobody has it open (as [`CloneDisk::save`] does; nobody waits then, so the pause is zero), otherwise
    /// by asking the process that has it open and listens for that ([`Control`]; `diffdisk serve` does).
    ///
    /// # Errors
    /// As [`CloneDisk::save`] and [`LiveClone::save`]; `InUse` when somebody has it open who does not listen; `Remote` with what the other
    /// process said.
    pub fn save_wherever(&self, name: &str) -> Result<Saved, StoreError> {
        let busy = match self.save(name) {
            Ok(()) => {
                let savepoint = self.record()?.savepoint(name).cloned().ok_or_else(|| self.unknown())?;
                return Ok(Saved { savepoint, pause: Duration::ZERO });
            }
            Err(e) if e.kind() == ErrorKind::InUse => e,
            Err(e) => return Err(e),
        };
        let socket = socket_of(&self.path);
        // Nobody listens: what was in the way is the answer.
        let Ok(mut stream) = UnixStream::connect(&socket) else { return Err(busy) };
        let failed = |e| StoreError::io("ask the process that has the clone open", &socket)(e);
        stream.set_read_timeout(Some(ANSWERING)).map_err(failed)?;
        say(&mut stream, &Request::Save { savepoint: name.to_owned() }).map_err(failed)?;
        let answer: Answer = hear(&stream).map_err(failed)?;
        match answer {
            Answer { ok: true, savepoint: Some(savepoint), pause_microseconds, .. } => {
                Ok(Saved { savepoint, pause: Duration::from_micros(pause_microseconds.unwrap_or(0)) })
            }
            Answer { kind, message, .. } => {
                let kind = KINDS.iter().find(|(_, key)| kind.as_deref() == Some(*key)).map_or(ErrorKind::Io, |(kind, _)| *kind);
                Err(StoreError::Remote { kind, message: message.unwrap_or_else(|| "the other process gave no reason".to_owned()) })
            }
        }
    }
}

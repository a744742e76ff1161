//! Where clients knock: listening sockets, and waiting at several of them at once.

use super::error::NbdError;
use super::stream::ByteStream;
use crate::sync::Arc;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;
#[cfg(unix)]
use {
    rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket},
    std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    std::os::unix::net::{UnixListener, UnixStream},
    std::path::{Path, PathBuf},
};

/// Bytes of replies that the kernel keeps for a client on a unix socket. On TCP it finds out by itself what pays.
#[cfg(unix)]
const SEND_BUFFER: usize = 1 << 20;
/// Connections the kernel keeps for us until we accept them.
#[cfg(unix)]
const BACKLOG: i32 = 128;

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixSocket),
}

/// A listening unix socket and the name it has in the file system.
#[cfg(unix)]
#[derive(Debug)]
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the name, so that nobody else's is removed.
    identity: (u64, u64),
}

impl Listener {
    /// Listens on TCP, on a loopback address unless `allow_remote`.
    pub(super) fn tcp(address: &str, allow_remote: bool) -> Result<Self, NbdError> {
        let what = || NbdError::io(format!("listen at {address}"));
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(what())?.collect();
        if !allow_remote && !addresses.iter().all(|a| a.ip().to_canonical().is_loopback()) {
            return Err(NbdError::RemoteRefused(address.to_owned()));
        }
        let listener = TcpListener::bind(&addresses[..]).map_err(what())?;
        listener.set_nonblocking(true).map_err(what())?;
        Ok(Self::Tcp(listener))
    }

    /// The TCP address, with the port the system chose if none was asked for.
    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            #[cfg(unix)]
            Self::Unix(_) => None,
        }
    }

    /// The next client, `None` if it went away again.
    pub(super) fn accept(&self) -> io::Result<Option<Arc<dyn ByteStream>>> {
        let accepted: io::Result<Arc<dyn ByteStream>> = match self {
            Self::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                // Replies leave whole; waiting for more would only delay them.
                stream.set_nodelay(true)?;
                #[cfg(unix)]
                rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Arc::new(stream) as Arc<dyn ByteStream>)
            }),
            #[cfg(unix)]
            Self::Unix(socket) => socket.listener.accept().and_then(|(stream, _)| {
                // A reply of 1 MiB leaves without waiting for its reader. The kernel may give less, which is only slower.
                let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
                stream.set_nonblocking(false)?;
                Ok(Arc::new(stream) as Arc<dyn ByteStream>)
            }),
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(unix)]
impl Listener {
    /// Listens on a unix socket that only its owner can connect to.
    ///
    /// The name is bound before the socket listens: nobody gets in before the mode is set. A socket that a dead server left
    /// behind is replaced, one that answers is not. Servers that start at the same moment take turns by a lock on the directory,
    /// so that one cannot mistake the other, bound and not yet listening, for dead.
    pub(super) fn unix(path: &Path) -> Result<Self, NbdError> {
        let what = || NbdError::io(format!("listen at {}", path.display()));
        let _turn = lock_directory(path);
        let address = SocketAddrUnix::new(path).map_err(|e| what()(e.into()))?;
        let fd = socket(AddressFamily::UNIX, SocketType::STREAM, None).map_err(|e| what()(e.into()))?;
        match bind(&fd, &address) {
            Err(rustix::io::Errno::ADDRINUSE) => {
                remove_dead_socket(path)?;
                bind(&fd, &address).map_err(|e| what()(e.into()))?;
            }
            other => other.map_err(|e| what()(e.into()))?,
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(what())?;
        let meta = std::fs::symlink_metadata(path).map_err(what())?;
        listen(&fd, BACKLOG).map_err(|e| what()(e.into()))?;
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true).map_err(what())?;
        Ok(Self::Unix(UnixSocket { listener, path: path.to_owned(), identity: (meta.dev(), meta.ino()) }))
    }
}

#[cfg(unix)]
impl Drop for UnixSocket {
    /// Removes the name, if it is still ours.
    fn drop(&mut self) {
        let _turn = lock_directory(&self.path);
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity) {
            // A name that stays is replaced by the next server.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where the file system cannot lock, servers that start at the same moment are on their own.
#[cfg(unix)]
fn lock_directory(path: &Path) -> Option<std::fs::File> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let handle = std::fs::File::open(directory).ok()?;
    handle.lock().ok()?;
    Some(handle)
}

#[cfg(unix)]
fn remove_dead_socket(path: &Path) -> Result<(), NbdError> {
    let what = || NbdError::io(format!("replace the socket {}", path.display()));
    if !std::fs::symlink_metadata(path).map_err(what())?.file_type().is_socket() {
        return Err(NbdError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(what()),
        Ok(_) => Err(NbdError::InUse(path.to_owned())),
        // A full backlog, another type of socket, no permission: somebody is alive.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(NbdError::InUse(path.to_owned())),
        Err(e) => Err(what()(e)),
    }
}

/// Wakes the thread that waits for clients.
#[derive(Debug)]
pub(super) struct Bell {
    #[cfg(unix)]
    ends: (UnixStream, UnixStream),
}

#[cfg(unix)]
impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let ends = UnixStream::pair()?;
        ends.1.set_nonblocking(true)?;
        Ok(Self { ends })
    }

    pub(super) fn ring(&self) {
        // A full buffer means that it rings already.
        let _ = io::Write::write(&mut &self.ends.1, &[1]);
    }

    /// Returns when a client may be there, when the bell rings, or after `limit`.
    pub(super) fn wait(&self, listeners: &[Listener], limit: Option<Duration>) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = vec![PollFd::new(&self.ends.0, PollFlags::IN)];
        // While waiting for a limit (no descriptors left) clients stay in the backlog.
        for listener in listeners.iter().filter(|_| limit.is_none()) {
            fds.push(match listener {
                Listener::Tcp(listener) => PollFd::new(listener, PollFlags::IN),
                Listener::Unix(socket) => PollFd::new(&socket.listener, PollFlags::IN),
            });
        }
        let limit = limit.map(|limit| Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() });
        // An error (interrupted) is a wake-up like any other: the caller looks again.
        let _ = poll(&mut fds, limit.as_ref());
    }
}

#[cfg(not(unix))]
impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    pub(super) fn ring(&self) {}

    /// No portable way to wait for several sockets: look again a few times per second.
    pub(super) fn wait(&self, _listeners: &[Listener], limit: Option<Duration>) {
        std::thread::sleep(limit.unwrap_or(Duration::from_millis(50)));
    }
}

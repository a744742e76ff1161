//! The server: its addresses, its connections, and how it stops.

use super::error::NbdError;
use super::exports::{Export, ExportList};
use super::handshake::negotiate;
use super::listen::{Bell, Listener};
use super::stream::{ByteStream, Input};
use super::transmission;
use crate::sync::{Arc, AtomicBool, Condvar, Mutex, Ordering};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
enum Address {
    Tcp(String),
    #[cfg(unix)]
    Unix(PathBuf),
}

/// Where a running server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// Host and port; the port is the real one if 0 was asked for.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl NbdAddress {
    /// The NBD URI of an export at this address, as `nbdinfo`, `nbdcopy`, `nbdfuse` and `qemu-img` take it.
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes());
        match self {
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
            Self::Unix(path) => {
                format!("nbd+unix:///{export}?socket={}", percent_encoded(path.as_os_str().as_encoded_bytes()))
            }
        }
    }
}

impl fmt::Display for NbdAddress {
    /// The URI of the default export.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri(""))
    }
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// An NBD server to be: exports, addresses, limits. See the [module](super) for an example.
#[derive(Debug)]
#[must_use = "a server does nothing before `spawn`"]
pub struct NbdServer {
    exports: ExportList,
    addresses: Vec<Address>,
    allow_remote: bool,
    max_connections: usize,
    handshake_patience: Duration,
    stop_patience: Duration,
}

impl Default for NbdServer {
    fn default() -> Self {
        Self::new()
    }
}

impl NbdServer {
    /// No exports, no addresses, 64 connections, 10 seconds for a handshake, 10 seconds for a stop.
    pub fn new() -> Self {
        Self {
            exports: ExportList::default(),
            addresses: Vec::new(),
            allow_remote: false,
            max_connections: 64,
            handshake_patience: Duration::from_secs(10),
            stop_patience: Duration::from_secs(10),
        }
    }

    /// Adds an export.
    pub fn export(mut self, export: Export) -> Self {
        self.exports.add(export);
        self
    }

    /// Listens at a unix socket. Only its owner (and root) can connect: its mode is 0600. A socket that a dead server left behind
    /// is replaced. It is removed when the server stops.
    #[cfg(unix)]
    pub fn unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.addresses.push(Address::Unix(path.into()));
        self
    }

    /// Listens at `HOST:PORT`. Every user of this machine can connect, and with [`NbdServer::allow_remote`] everybody else.
    pub fn tcp(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(Address::Tcp(address.into()));
        self
    }

    /// Allows TCP addresses that are not loopback addresses. There is neither encryption nor a password: whoever reaches the
    /// address reads and writes the disks.
    pub fn allow_remote(mut self, allow: bool) -> Self {
        self.allow_remote = allow;
        self
    }

    /// How many clients may be connected at once. One more is disconnected at once.
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }

    /// How long a client may take for its whole handshake.
    pub fn handshake_patience(mut self, patience: Duration) -> Self {
        self.handshake_patience = patience;
        self
    }

    /// How long a stop waits for clients to take the replies to what they had sent.
    pub fn stop_patience(mut self, patience: Duration) -> Self {
        self.stop_patience = patience;
        self
    }

    /// Starts to listen and returns; threads serve from then on.
    ///
    /// # Errors
    /// The exports are no good, or an address cannot be listened at.
    pub fn spawn(self) -> Result<NbdHandle, NbdError> {
        self.exports.check()?;
        if self.addresses.is_empty() {
            return Err(NbdError::NoAddress);
        }
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &self.addresses {
            match address {
                Address::Tcp(address) => {
                    let listener = Listener::tcp(address, self.allow_remote)?;
                    addresses.extend(listener.tcp_address().map(NbdAddress::Tcp));
                    listeners.push(listener);
                }
                #[cfg(unix)]
                Address::Unix(path) => {
                    listeners.push(Listener::unix(path)?);
                    addresses.push(NbdAddress::Unix(path.clone()));
                }
            }
        }
        let bell = Bell::new().map_err(NbdError::io("make a socket pair"))?;
        let shared = Arc::new(Shared {
            exports: Mutex::new(Arc::new(self.exports)),
            handshake_patience: self.handshake_patience,
            max_connections: self.max_connections,
            stop_patience: self.stop_patience,
            stopping: AtomicBool::new(false),
            bell,
            guests: Mutex::new(Guests::default()),
            left: Condvar::new(),
        });
        let host = Arc::clone(&shared);
        let thread =
            Builder::new().name("nbd-host".to_owned()).spawn(move || host.run(listeners)).map_err(NbdError::io("start a thread"))?;
        Ok(NbdHandle { shared, addresses, thread: Some(thread) })
    }

    /// Serves one client on a stream that somebody else made (socket activation, a virtual socket, a test), in this thread, until
    /// it leaves. Addresses and the limit of connections do not matter here.
    ///
    /// # Errors
    /// The exports are no good. Whatever the client does is no error.
    pub fn serve_stream(&self, stream: &dyn ByteStream) -> Result<(), NbdError> {
        self.exports.check()?;
        serve(&self.exports, stream, self.handshake_patience);
        Ok(())
    }
}

fn serve(exports: &ExportList, stream: &dyn ByteStream, patience: Duration) {
    let mut input = Input::new();
    // A client that breaks off its handshake, in whatever way, is no news.
    if let Ok(Some(session)) = negotiate(stream, &mut input, exports, patience) {
        transmission::serve(stream, &session, input);
    }
    // It may be closed already.
    let _ = stream.shutdown(Shutdown::Both);
}

struct Shared {
    /// Emptied at the end, so that the devices are free for their owner again however long a stopper lives.
    exports: Mutex<Arc<ExportList>>,
    handshake_patience: Duration,
    max_connections: usize,
    stop_patience: Duration,
    stopping: AtomicBool,
    bell: Bell,
    guests: Mutex<Guests>,
    /// A guest has left.
    left: Condvar,
}

#[derive(Default)]
struct Guests {
    next: u64,
    present: BTreeMap<u64, Guest>,
}

struct Guest {
    stream: Arc<dyn ByteStream>,
}

/// Takes a guest off the list, however its thread ends.
struct Departure<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.shared.guests.lock().present.remove(&self.id);
        self.shared.left.notify_all();
    }
}

impl Shared {
    fn run(self: &Arc<Self>, listeners: Vec<Listener>) -> Result<(), NbdError> {
        let mut pause = None;
        while !self.stopping.load(Ordering::Acquire) {
            self.bell.wait(&listeners, pause.take());
            for listener in &listeners {
                match listener.accept() {
                    Ok(Some(stream)) => self.admit(stream),
                    Ok(None) => {}
                    // Out of descriptors or memory: clients wait in the backlog until some have left.
                    Err(_) => pause = Some(Duration::from_millis(100)),
                }
            }
        }
        drop(listeners);
        self.see_off();
        let exports = std::mem::take(&mut *self.exports.lock());
        for export in exports.iter().filter(|export| !export.is_read_only() && !export.device().is_read_only()) {
            export.device().flush().map_err(|source| NbdError::Flush { export: export.name().to_owned(), source })?;
        }
        Ok(())
    }

    /// Gives a client its thread, or the door if the house is full.
    fn admit(self: &Arc<Self>, stream: Arc<dyn ByteStream>) {
        let mut guests = self.guests.lock();
        if guests.present.len() >= self.max_connections {
            return;
        }
        let id = guests.next;
        guests.next += 1;
        guests.present.insert(id, Guest { stream: Arc::clone(&stream) });
        drop(guests);
        let shared = Arc::clone(self);
        let exports = Arc::clone(&self.exports.lock());
        let spawned = Builder::new().name("nbd-client".to_owned()).spawn(move || {
            let _departure = Departure { shared: &shared, id };
            // Dropped before the departure: whoever sees the guest gone sees its hold on the devices gone.
            let exports = exports;
            serve(&exports, &*stream, shared.handshake_patience);
        });
        if spawned.is_err() {
            self.guests.lock().present.remove(&id);
        }
    }

    /// Lets clients have the replies to what they have sent, but listens to nothing new; after a while it insists.
    fn see_off(&self) {
        let deadline = Instant::now() + self.stop_patience;
        let mut guests = self.guests.lock();
        for guest in guests.present.values() {
            // What is received already can still be read; then the stream ends. One that is closed needs no more.
            let _ = guest.stream.shutdown(Shutdown::Read);
        }
        let mut insisted = false;
        while !guests.present.is_empty() {
            if insisted {
                // Only a device that does not return keeps a thread now, and what it does must end before the last flush.
                self.left.wait(&mut guests);
            } else if self.left.wait_until(&mut guests, deadline).timed_out() {
                for guest in guests.present.values() {
                    let _ = guest.stream.shutdown(Shutdown::Both);
                }
                insisted = true;
            }
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// A running server. Dropping it stops the server without telling how that went; [`NbdHandle::stop`] tells.
#[must_use = "the server stops when this is dropped"]
pub struct NbdHandle {
    shared: Arc<Shared>,
    addresses: Vec<NbdAddress>,
    thread: Option<JoinHandle<Result<(), NbdError>>>,
}

impl NbdHandle {
    /// Where it listens, in the order the addresses were given.
    pub fn addresses(&self) -> &[NbdAddress] {
        &self.addresses
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.shared.guests.lock().present.len()
    }

    /// Something that can stop the server from another thread, such as a signal handler's.
    pub fn stopper(&self) -> NbdStopper {
        NbdStopper { shared: Arc::clone(&self.shared) }
    }

    /// Stops: no new clients, replies for what was received, then a flush of every export. When this returns, the server holds
    /// no device any more: an `Arc` that was its owner's alone before is again.
    ///
    /// # Errors
    /// The flush of an export failed.
    pub fn stop(self) -> Result<(), NbdError> {
        self.shared.stop();
        self.wait()
    }

    /// Waits until somebody stops the server.
    ///
    /// # Errors
    /// As [`NbdHandle::stop`].
    pub fn wait(mut self) -> Result<(), NbdError> {
        let thread = self.thread.take().expect("only this function and drop take the thread");
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for NbdHandle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.stop();
            // Nobody is left to tell.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for NbdHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdHandle").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Stops a server from elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct NbdStopper {
    shared: Arc<Shared>,
}

impl NbdStopper {
    /// Asks the server to stop and returns at once.
    pub fn request(&self) {
        self.shared.stop();
    }
}

impl fmt::Debug for NbdStopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdStopper").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_export_and_socket() {
        let unix = NbdAddress::Unix("/tmp/a b/s?".into());
        assert_eq!(unix.uri("app@3 ü"), "nbd+unix:///app@3%20%C3%BC?socket=/tmp/a%20b/s%3F");
        assert_eq!(NbdAddress::Tcp("[::1]:10809".parse().unwrap()).to_string(), "nbd://[::1]:10809/");
    }
}

//! The connection as the server sees it, and the buffer that requests are read through.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::time::{Duration, Instant};

/// A connected stream socket, or something that behaves like one.
///
/// Both directions are used at once, each by one thread at a time.
pub trait ByteStream: Send + Sync {
    /// Receives into the buffers, in order; 0 when the peer has said everything.
    ///
    /// # Errors
    /// Whatever the stream reports; `TimedOut` or `WouldBlock` when the time limit has passed.
    fn recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Receives what is there already, without waiting for it; `None` when nothing is. A stream that cannot tell waits, as by default.
    ///
    /// # Errors
    /// Whatever the stream reports.
    fn try_recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
        uninterrupted(|| self.recv(bufs)).map(Some)
    }

    /// Sends a non-empty prefix of the buffers.
    ///
    /// # Errors
    /// Whatever the stream reports; `TimedOut` or `WouldBlock` when the time limit has passed.
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Limits how long one `recv` or `send` may block; `None` lifts the limit.
    ///
    /// # Errors
    /// The stream refuses.
    fn set_time_limit(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Ends one or both directions and wakes whoever blocks in them.
    ///
    /// # Errors
    /// The stream refuses, or the peer is gone already.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
}

macro_rules! socket_stream {
    ($socket:ty) => {
        impl ByteStream for $socket {
            fn recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                io::Read::read_vectored(&mut &*self, bufs)
            }

            #[cfg(unix)]
            fn try_recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
                use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};
                match recvmsg(self, bufs, &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT) {
                    Ok(message) => Ok(Some(message.bytes)),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
                    Err(e) => Err(e.into()),
                }
            }

            #[cfg(unix)]
            fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
                // Not `write_vectored`: where the program has reset SIGPIPE to its default (command lines do), a client that
                // vanishes would end the process.
                use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
                #[cfg(not(target_vendor = "apple"))]
                let flags = SendFlags::NOSIGNAL;
                #[cfg(target_vendor = "apple")]
                let flags = SendFlags::empty();
                Ok(sendmsg(self, bufs, &mut SendAncillaryBuffer::default(), flags)?)
            }

            #[cfg(not(unix))]
            fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
                io::Write::write_vectored(&mut &*self, bufs)
            }

            fn set_time_limit(&self, limit: Option<Duration>) -> io::Result<()> {
                self.set_read_timeout(limit)?;
                self.set_write_timeout(limit)
            }

            fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                <$socket>::shutdown(self, how)
            }
        }
    };
}

socket_stream!(std::net::TcpStream);
#[cfg(unix)]
socket_stream!(std::os::unix::net::UnixStream);

/// Sends everything, or fails.
pub(super) fn send_all(stream: &dyn ByteStream, mut bufs: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match uninterrupted(|| stream.send(bufs))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => IoSlice::advance_slices(&mut bufs, n),
        }
    }
    Ok(())
}

/// Makes a call again that a signal has ended.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Whether waiting awake pays.
#[derive(Debug, Default)]
struct Eagerness(u32);

impl Eagerness {
    /// Receives, impatiently at first where that has paid lately.
    fn recv(&mut self, stream: &dyn ByteStream, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let started = Instant::now();
        if self.0 > MOST_EAGER / 2 {
            while started.elapsed() < IMPATIENCE {
                if let Some(n) = stream.try_recv(bufs)? {
                    return Ok(n);
                }
                std::thread::yield_now();
            }
        }
        let n = uninterrupted(|| stream.recv(bufs))?;
        // Waking up is part of it: a sleeper that would have been served in time sees it take twice as long.
        self.0 = if started.elapsed() < 2 * IMPATIENCE { (self.0 + 1).min(MOST_EAGER) } else { 0 };
        Ok(n)
    }
}

/// Bytes of the receive buffer: at depth one call brings in some dozen requests.
const INPUT_LEN: usize = 64 << 10;

/// How long an impatient connection asks for the next request before it sleeps. Waking up costs about as much on a virtual machine.
const IMPATIENCE: Duration = Duration::from_micros(50);
/// A wait of the client that ended within [`IMPATIENCE`] adds 1 to the eagerness, up to this; any longer one takes it all.
const MOST_EAGER: u32 = 8;

/// What has been received and not yet consumed.
///
/// A client that waits for each reply before it asks again makes the server fall asleep and wake up for every request. So while
/// requests come soon after the last reply, the socket is asked again and again for a moment, other threads being let through in
/// between; a client that pauses is waited for asleep from then on, until it is quick again.
///
/// Short things (headers, options) are looked at in place. A payload goes to where the device wants it: what is already here
/// is copied, the rest is received straight into its destination, with this buffer behind it so that the next header comes in
/// by the same call.
#[derive(Debug)]
pub(super) struct Input {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    eagerness: Eagerness,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { buf: vec![0; INPUT_LEN].into(), start: 0, end: 0, eagerness: Eagerness::default() }
    }

    /// The next `N` bytes if they are here.
    pub(super) fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.buf[self.start..self.end].first_chunk()
    }

    /// Drops bytes that were looked at.
    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end, "only received bytes are consumed");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves at most `max` of the bytes that are here to the end of `into`.
    pub(super) fn drain(&mut self, max: usize, into: &mut Vec<u8>) {
        let n = max.min(self.end - self.start);
        into.extend_from_slice(&self.buf[self.start..self.start + n]);
        self.consume(n);
    }

    /// Receives some more; 0 at the end of the stream.
    pub(super) fn fill(&mut self, stream: &dyn ByteStream) -> io::Result<usize> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = self.eagerness.recv(stream, &mut [IoSliceMut::new(&mut self.buf[self.end..])])?;
        self.end += n;
        Ok(n)
    }

    /// Takes exactly `dest.len()` bytes, waiting for them.
    pub(super) fn take(&mut self, dest: &mut [u8], stream: &dyn ByteStream) -> io::Result<()> {
        let here = (self.end - self.start).min(dest.len());
        dest[..here].copy_from_slice(&self.buf[self.start..self.start + here]);
        self.consume(here);
        let mut done = here;
        while done < dest.len() {
            let want = dest.len() - done;
            let n = self.eagerness.recv(stream, &mut [IoSliceMut::new(&mut dest[done..]), IoSliceMut::new(&mut self.buf)])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += n.min(want);
            self.end = n.saturating_sub(want);
        }
        Ok(())
    }

    /// Takes `len` bytes and forgets them.
    pub(super) fn discard(&mut self, mut len: u64, stream: &dyn ByteStream) -> io::Result<()> {
        loop {
            let here = len.min((self.end - self.start) as u64);
            self.consume(here as usize);
            len -= here;
            if len == 0 {
                return Ok(());
            }
            if self.fill(stream)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A client whose next request is there at once, after a pause, or only for who sleeps.
    #[derive(Default)]
    struct Client {
        pause: Duration,
        only_asleep: bool,
        awake: AtomicU32,
        asleep: AtomicU32,
    }

    impl ByteStream for Client {
        fn recv(&self, _: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            self.asleep.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.pause);
            Ok(1)
        }

        fn try_recv(&self, _: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
            self.awake.fetch_add(1, Ordering::Relaxed);
            Ok((!self.only_asleep).then_some(1))
        }

        fn send(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            unreachable!("nothing is sent")
        }

        fn set_time_limit(&self, _: Option<Duration>) -> io::Result<()> {
            Ok(())
        }

        fn shutdown(&self, _: Shutdown) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(eagerness: &mut Eagerness, client: &Client) {
        let mut byte = [0];
        assert_eq!(eagerness.recv(client, &mut [IoSliceMut::new(&mut byte)]).unwrap(), 1);
    }

    /// Eager, on whatever machine: a wait that the scheduler drew out counts as slow, so it may take a while.
    fn eager() -> Eagerness {
        let (mut eagerness, quick) = (Eagerness::default(), Client::default());
        for _ in 0..100_000 {
            if quick.awake.load(Ordering::Relaxed) > 0 {
                return eagerness;
            }
            ask(&mut eagerness, &quick);
        }
        panic!("a client that is always quick is never waited for awake");
    }

    #[test]
    fn a_stranger_is_waited_for_asleep() {
        let (mut eagerness, client) = (Eagerness::default(), Client::default());
        ask(&mut eagerness, &client);
        assert_eq!((client.awake.into_inner(), client.asleep.into_inner()), (0, 1));
    }

    #[test]
    fn a_quick_client_is_waited_for_awake() {
        let (mut eagerness, client) = (eager(), Client::default());
        ask(&mut eagerness, &client);
        assert_eq!((client.awake.into_inner(), client.asleep.into_inner()), (1, 0), "and the thread does not sleep");
    }

    #[test]
    fn one_pause_costs_one_moment_and_ends_it() {
        let client = Client { pause: 4 * IMPATIENCE, only_asleep: true, ..Client::default() };
        let mut eagerness = eager();
        ask(&mut eagerness, &client);
        assert_eq!(client.asleep.load(Ordering::Relaxed), 1, "awake for a moment, then asleep");
        let awake = client.awake.load(Ordering::Relaxed);
        assert!(awake > 0);
        for _ in 0..10 {
            ask(&mut eagerness, &client);
        }
        assert_eq!(client.awake.load(Ordering::Relaxed), awake, "an idle connection costs no processor time");
    }
}

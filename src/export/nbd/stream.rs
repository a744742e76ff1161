//! The connection as the server sees it, and the buffer that requests are read through.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::time::Duration;

/// A connected stream socket, or something that behaves like one.
///
/// Both directions are used at once, each by one thread at a time.
pub trait ByteStream: Send + Sync {
    /// Receives into the buffers, in order; 0 when the peer has said everything.
    ///
    /// # Errors
    /// Whatever the stream reports; `TimedOut` or `WouldBlock` when the time limit has passed.
    fn recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

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
        match stream.send(bufs) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut bufs, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn recv(stream: &dyn ByteStream, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    loop {
        match stream.recv(bufs) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Bytes of the receive buffer: at depth one call brings in some dozen requests.
const INPUT_LEN: usize = 64 << 10;

/// What has been received and not yet consumed.
///
/// Short things (headers, options) are looked at in place. A payload goes to where the device wants it: what is already here
/// is copied, the rest is received straight into its destination, with this buffer behind it so that the next header comes in
/// by the same call.
#[derive(Debug)]
pub(super) struct Input {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { buf: vec![0; INPUT_LEN].into(), start: 0, end: 0 }
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
        let n = recv(stream, &mut [IoSliceMut::new(&mut self.buf[self.end..])])?;
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
            let n = recv(stream, &mut [IoSliceMut::new(&mut dest[done..]), IoSliceMut::new(&mut self.buf)])?;
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

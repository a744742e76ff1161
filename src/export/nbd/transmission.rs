//! The conversation after the handshake: requests in, replies out.
//!
//! **Who does the work.** A connection has a *seat*: the lock on its receive buffer. The thread in the seat reads requests and
//! answers them itself, in order, without waking anybody; what arrived by one receive call is answered by one send call. That
//! is as fast as a socket goes while the data is hot, however large the requests are: handing every second megabyte to a
//! colleague costs more in cold caches and wake-ups than it brings (`docs/bench/2026-11-26.md`). Some requests take long: a
//! flush, anything with FUA, large zeroing, and reads and writes when the last ones turned out to be slow (cold data). Before
//! such a request the thread gives up the seat to a colleague, hired on demand, does the work where it is, replies, and queues
//! up for the seat again. So a slow flush holds up nobody, depth on cold data reaches the disk, and a hot path pays for neither.
//!
//! **What a client can do to us.** Its memory is bounded: a receive buffer, and one [`Desk`] for each of at most [`CREW`]
//! threads; one request per connection at a time may need a larger buffer (a simple read of up to 32 MiB, whose errors must be
//! known before its header is sent). A client that stops reading blocks its own threads in `send` and nobody else. A request
//! that breaks the rules is answered with an error after its payload, if any, was thrown away; only a wrong magic ends the
//! connection, because it means that the two sides no longer agree where a request starts.

use super::desk::{ARENA, Desk};
use super::handshake::{ALLOCATION, DEPTH, Session};
use super::pieces::{Status, clamp, runs};
use super::proto::{Command, Errno, MAX_PAYLOAD, REQUEST_LEN, Request, cmd_flag, state};
use super::stream::{ByteStream, Input};
use crate::export::ExtentClass;
use crate::storage::PageBuffer;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};
use std::io;
use std::net::Shutdown;
use std::ops::{ControlFlow, Range};
use std::thread::{Builder, Scope, scope};
use std::time::{Duration, Instant};

/// Threads of one connection.
const CREW: usize = 8;
/// A call of the device that took longer than this, and half a nanosecond more for each byte, is slow.
const SLOW: Duration = Duration::from_micros(300);
/// Large reads pass through the desk in pieces of so many bytes: they stay in the processor's cache, and the client copies
/// one while we copy the next.
const PIECE: usize = 256 << 10;
/// A slow request adds so much to the score, a fast one takes 1 off it.
const SLOW_WEIGHT: usize = 8;
/// Above this score data requests give up the seat: one slow request in a row of fast ones is an accident, three are cold data.
const SLOW_SCORE: usize = 2 * SLOW_WEIGHT;
/// Zeroing and trimming beyond this many bytes gives up the seat.
const SMALL_EFFECT: u32 = 1 << 20;
/// Structured reads from this many bytes up leave holes out.
const SPARSE_FROM: u32 = 32 << 10;
/// Extents per context of one block status reply.
const MAX_EXTENTS: usize = 16 << 10;

/// A refusal or a failure, on its way to the client.
struct Fault {
    error: Errno,
    message: String,
}

impl Fault {
    fn new(error: Errno, message: &str) -> Self {
        Self { error, message: message.to_owned() }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self { error: Errno::of(&error), message: error.to_string() }
    }
}

/// A request to be worked on without the seat.
struct Errand {
    request: Request,
    /// Of a write: where its payload lies.
    payload: Range<usize>,
    /// Of a write that was too large to be kept: it was passed on to the device piece by piece and only the flush is left.
    landed: bool,
}

enum Turn {
    Over,
    Leave(Errand),
}

struct Connection<'a> {
    stream: &'a dyn ByteStream,
    session: &'a Session,
    /// The seat.
    input: Mutex<Input>,
    /// Held while replies are sent, so that they do not interleave.
    output: Mutex<()>,
    hired: AtomicUsize,
    /// Threads that wait for the seat.
    waiting: AtomicUsize,
    /// How slow data requests were of late.
    slowness: AtomicUsize,
    over: AtomicBool,
}

/// Serves requests until the client says goodbye, disappears or breaks the framing; then returns, with nothing in flight.
pub(super) fn serve(stream: &dyn ByteStream, session: &Session, input: Input) {
    let connection = Connection {
        stream,
        session,
        input: Mutex::new(input),
        output: Mutex::new(()),
        hired: AtomicUsize::new(1),
        waiting: AtomicUsize::new(0),
        slowness: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    scope(|scope| connection.work(scope));
}

/// Ends the connection when a thread of it panics (a device may), so that its colleagues do not go on in the middle of a request.
struct Alarm<'a, 'b>(&'a Connection<'b>);

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.hang_up();
        }
    }
}

impl<'a> Connection<'a> {
    fn work<'scope, 'env>(&'scope self, scope: &'scope Scope<'scope, 'env>)
    where
        'a: 'scope,
    {
        let _alarm = Alarm(self);
        let mut desk = Desk::new();
        loop {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let mut input = self.input.lock();
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            match self.lead(&mut input, &mut desk) {
                Turn::Over => {
                    // Still in the seat: whoever gets it next sees the mark. Written and read under the lock, except by
                    // `hang_up`, which also wakes the one who leads.
                    self.over.store(true, Ordering::Relaxed);
                    return;
                }
                Turn::Leave(errand) => {
                    drop(input);
                    self.hire(scope);
                    self.run_errand(&mut desk, errand);
                }
            }
        }
    }

    /// Makes sure that somebody takes the seat that was just left, as long as the crew is not complete.
    fn hire<'scope, 'env>(&'scope self, scope: &'scope Scope<'scope, 'env>) {
        if self.waiting.load(Ordering::Relaxed) > 0 || self.hired.load(Ordering::Relaxed) >= CREW {
            return;
        }
        self.hired.fetch_add(1, Ordering::Relaxed);
        // Without a thread to be had the seat stays empty until the errand is run. That is slower and not wrong.
        if Builder::new().name("nbd-crew".to_owned()).spawn_scoped(scope, move || self.work(scope)).is_err() {
            self.hired.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn hang_up(&self) {
        self.over.store(true, Ordering::Relaxed);
        // It may be gone already; then nobody blocks in it.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn send(&self, desk: &mut Desk) -> Result<(), ()> {
        self.send_with(desk, &[])
    }

    fn send_with(&self, desk: &mut Desk, extra: &[u8]) -> Result<(), ()> {
        if desk.is_empty() && extra.is_empty() {
            return Ok(());
        }
        let _turn = self.output.lock();
        desk.send(self.stream, extra).map_err(|_| self.hang_up())
    }

    /// In the seat: reads and answers until the end, or until something must be done without the seat.
    fn lead(&self, input: &mut Input, desk: &mut Desk) -> Turn {
        loop {
            let Some(header) = input.peek::<REQUEST_LEN>() else {
                if self.send(desk).is_err() || !matches!(input.fill(self.stream), Ok(1..)) {
                    return Turn::Over;
                }
                continue;
            };
            let Some(request) = Request::parse(header) else {
                let _ = self.send(desk);
                return Turn::Over;
            };
            input.consume(REQUEST_LEN);
            match self.handle(input, desk, request) {
                Ok(None) => {}
                Ok(Some(errand)) => return Turn::Leave(errand),
                Err(()) => return Turn::Over,
            }
        }
    }

    /// One request. `Err`: the conversation is over.
    fn handle(&self, input: &mut Input, desk: &mut Desk, request: Request) -> Result<Option<Errand>, ()> {
        if request.command == Command::Disc {
            let _ = self.send(desk);
            return Err(());
        }
        let structured = self.session.structured;
        let takes_payload = request.command == Command::Write;
        if let Err(fault) = self.judge(&request) {
            if takes_payload {
                self.send(desk)?;
                input.discard(u64::from(request.len), self.stream).map_err(drop)?;
            }
            desk.reply_error(structured, request.cookie, fault.error, &fault.message);
            return Ok(None);
        }
        let len = request.len as usize;
        let leaves = self.gives_up_seat(&request);
        let carries = matches!(request.command, Command::Read | Command::Write);
        if leaves || desk.is_full(if carries { len.min(ARENA) } else { 0 }) {
            self.send(desk)?;
        }
        let mut errand = Errand { request, payload: 0..0, landed: false };
        if takes_payload && len <= ARENA {
            errand.payload = desk.place(len);
            input.take(desk.bytes(errand.payload.clone()), self.stream).map_err(drop)?;
        } else if takes_payload {
            self.send(desk)?;
            if let Err(fault) = self.pass_on(input, desk, &request)? {
                desk.reply_error(structured, request.cookie, fault.error, &fault.message);
                return Ok(None);
            }
            errand.landed = true;
        }
        if leaves && (request.command != Command::Read || len <= ARENA) {
            return Ok(Some(errand));
        }
        self.execute(desk, errand)?;
        Ok(None)
    }

    fn run_errand(&self, desk: &mut Desk, errand: Errand) {
        if self.execute(desk, errand).is_ok() {
            // A failure has ended the connection; whoever takes the seat next sees it.
            let _ = self.send(desk);
        }
    }

    /// Keeps the score of how slow the device is: `started` is when a call for `len` bytes began that has just returned.
    fn note(&self, started: Instant, len: usize) {
        // Threads may overwrite each other's score: it is a hint.
        let score = self.slowness.load(Ordering::Relaxed);
        if started.elapsed() > SLOW + Duration::from_nanos(len as u64 / 2) {
            self.slowness.store((score + SLOW_WEIGHT).min(2 * SLOW_SCORE), Ordering::Relaxed);
        } else if score > 0 {
            self.slowness.store(score - 1, Ordering::Relaxed);
        }
    }

    fn device_read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let started = Instant::now();
        let result = self.session.device.read_at(buf, offset);
        self.note(started, buf.len());
        result
    }

    fn device_write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let started = Instant::now();
        let result = self.session.device.write_at(buf, offset);
        self.note(started, buf.len());
        result
    }

    fn gives_up_seat(&self, request: &Request) -> bool {
        if request.flags & cmd_flag::FUA != 0 {
            return true;
        }
        match request.command {
            Command::Flush | Command::Cache => true,
            Command::Trim | Command::WriteZeroes => request.len > SMALL_EFFECT,
            Command::Read | Command::Write => self.slowness.load(Ordering::Relaxed) > SLOW_SCORE,
            Command::BlockStatus | Command::Disc | Command::Unknown(_) => false,
        }
    }

    /// Whether the request keeps the rules of the protocol.
    fn judge(&self, request: &Request) -> Result<(), Fault> {
        let session = self.session;
        let fault = |error, message| Err(Fault::new(error, message));
        let known = match request.command {
            Command::Read if session.structured => cmd_flag::FUA | cmd_flag::DF,
            Command::WriteZeroes => cmd_flag::FUA | cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            Command::BlockStatus => cmd_flag::FUA | cmd_flag::REQ_ONE,
            Command::Unknown(_) => return fault(Errno::Inval, "unknown command"),
            _ => cmd_flag::FUA,
        };
        if request.flags & !known != 0 {
            return fault(Errno::Inval, "a flag that this command does not have");
        }
        if request.command == Command::Flush {
            if (request.offset, request.len) != (0, 0) {
                return fault(Errno::Inval, "a flush has neither offset nor length");
            }
            return Ok(());
        }
        let changes = matches!(request.command, Command::Write | Command::WriteZeroes | Command::Trim);
        if changes && session.read_only {
            return fault(Errno::Perm, "the export is read-only");
        }
        let size = session.size.min(session.device.size());
        if request.offset.checked_add(u64::from(request.len)).is_none_or(|end| end > size) {
            let grows = matches!(request.command, Command::Write | Command::WriteZeroes);
            return fault(if grows { Errno::NoSpc } else { Errno::Inval }, "the range is not inside of the export");
        }
        let minimum = u64::from(session.block_sizes.minimum.max(1));
        if !request.offset.is_multiple_of(minimum) || !u64::from(request.len).is_multiple_of(minimum) {
            return fault(Errno::Inval, "the range is not aligned to the minimum block size");
        }
        match request.command {
            Command::Write if request.len > MAX_PAYLOAD => fault(Errno::Inval, "the payload is longer than the maximum"),
            Command::Read if request.len > MAX_PAYLOAD && session.structured => {
                fault(Errno::Overflow, "the read is longer than the maximum payload")
            }
            Command::Read if request.len > MAX_PAYLOAD => fault(Errno::Inval, "the read is longer than the maximum payload"),
            Command::BlockStatus if session.contexts.none() || !session.structured => {
                fault(Errno::Inval, "no metadata context was negotiated")
            }
            Command::BlockStatus if request.len == 0 => fault(Errno::Inval, "block status of nothing"),
            _ => Ok(()),
        }
    }

    /// A write that is larger than the desk: from the socket to the device in pieces. The outer `Err`: the conversation is over.
    fn pass_on(&self, input: &mut Input, desk: &mut Desk, request: &Request) -> Result<Result<(), Fault>, ()> {
        let mut done = 0;
        let len = request.len as usize;
        while done < len {
            let place = desk.place((len - done).min(ARENA));
            let piece = desk.bytes(place);
            input.take(piece, self.stream).map_err(drop)?;
            let result = self.device_write(piece, request.offset + done as u64);
            done += piece.len();
            if let Err(error) = result {
                input.discard((len - done) as u64, self.stream).map_err(drop)?;
                return Ok(Err(error.into()));
            }
        }
        Ok(Ok(()))
    }

    /// Does what was asked and puts the reply on the desk.
    fn execute(&self, desk: &mut Desk, errand: Errand) -> Result<(), ()> {
        let request = errand.request;
        let device = &*self.session.device;
        let (offset, len) = (request.offset, u64::from(request.len));
        let effect = match request.command {
            Command::Read => return self.read(desk, &request),
            Command::BlockStatus => return self.block_status(desk, &request),
            Command::Write if errand.landed || len == 0 => Ok(()),
            Command::Write => self.device_write(desk.bytes(errand.payload), offset).map_err(Fault::from),
            Command::WriteZeroes => self.write_zeroes(&request),
            Command::Trim if len == 0 => Ok(()),
            Command::Trim => device.trim(offset, len).map_err(Fault::from),
            Command::Cache => self.warm(desk, &request),
            Command::Flush => device.flush().map_err(Fault::from),
            Command::Disc | Command::Unknown(_) => Err(Fault::new(Errno::Inval, "unknown command")),
        };
        let changed = matches!(request.command, Command::Write | Command::WriteZeroes | Command::Trim);
        let durable = match effect {
            Ok(()) if changed && request.flags & cmd_flag::FUA != 0 => device.flush().map_err(Fault::from),
            other => other,
        };
        match durable {
            Ok(()) => desk.reply_ok(request.cookie),
            Err(fault) => desk.reply_error(self.session.structured, request.cookie, fault.error, &fault.message),
        }
        Ok(())
    }

    fn write_zeroes(&self, request: &Request) -> Result<(), Fault> {
        let device = &*self.session.device;
        let (offset, len) = (request.offset, u64::from(request.len));
        let keep_space = request.flags & cmd_flag::NO_HOLE != 0;
        if request.flags & cmd_flag::FAST_ZERO != 0 && !device.can_zero_fast(offset, len, keep_space) {
            return Err(Fault::new(Errno::NotSup, "zeroing this range is no faster than writing it"));
        }
        if len == 0 {
            return Ok(());
        }
        Ok(device.write_zeroes(offset, len, keep_space)?)
    }

    /// Reads, for the sake of the caches below, as much as one request may read.
    fn warm(&self, desk: &mut Desk, request: &Request) -> Result<(), Fault> {
        let len = request.len.min(MAX_PAYLOAD) as usize;
        let mut done = 0;
        while done < len {
            let place = desk.place((len - done).min(ARENA));
            let piece = desk.bytes(place);
            self.session.device.read_at(piece, request.offset + done as u64)?;
            done += piece.len();
        }
        Ok(())
    }

    fn read(&self, desk: &mut Desk, request: &Request) -> Result<(), ()> {
        let len = request.len as usize;
        let structured = self.session.structured;
        let whole = !structured || request.flags & cmd_flag::DF != 0;
        let result = if len == 0 {
            if structured {
                desk.chunk_none(request.cookie)
            } else {
                desk.reply_ok(request.cookie)
            }
            Ok(())
        } else if whole && len > ARENA {
            return self.read_large(desk, request);
        } else if whole || request.len < SPARSE_FROM {
            self.read_plain(desk, request, request.offset, len, true)
        } else {
            self.read_sparse(desk, request)?
        };
        if let Err(fault) = result {
            desk.reply_error(structured, request.cookie, fault.error, &fault.message);
        }
        Ok(())
    }

    fn read_plain(&self, desk: &mut Desk, request: &Request, offset: u64, len: usize, last: bool) -> Result<(), Fault> {
        let place = desk.place(len);
        self.device_read(desk.bytes(place.clone()), offset)?;
        if self.session.structured {
            desk.chunk_data(request.cookie, offset, place, last);
        } else {
            desk.reply_simple_data(request.cookie, place);
        }
        Ok(())
    }

    /// A read that must be one chunk and is larger than the desk.
    fn read_large(&self, desk: &mut Desk, request: &Request) -> Result<(), ()> {
        let structured = self.session.structured;
        let len = request.len as usize;
        let result = match PageBuffer::try_new(len) {
            None => Err(Fault::new(Errno::NoMem, "no memory for a read of this size")),
            Some(mut pages) => self.session.device.read_at(&mut pages, request.offset).map(|()| pages).map_err(Fault::from),
        };
        match result {
            Ok(pages) => {
                if structured {
                    desk.chunk_data_head(request.cookie, request.offset, request.len);
                } else {
                    desk.reply_simple_head(request.cookie);
                }
                self.send_with(desk, &pages)
            }
            Err(fault) => {
                desk.reply_error(structured, request.cookie, fault.error, &fault.message);
                Ok(())
            }
        }
    }

    /// A structured read that leaves holes out, a piece at a time.
    fn read_sparse(&self, desk: &mut Desk, request: &Request) -> Result<Result<(), Fault>, ()> {
        let end = request.offset + u64::from(request.len);
        let mut at = request.offset;
        while at < end {
            let stop = end.min(at + PIECE as u64);
            if at > request.offset || !desk.is_empty() {
                self.send(desk)?;
            }
            let runs = match runs(&*self.session.device, at, stop) {
                Ok(runs) => runs,
                Err(error) => return Ok(Err(error.into())),
            };
            for run in runs {
                let last = at + run.len == end;
                if run.is_hole {
                    desk.chunk_hole(request.cookie, at, run.len as u32, last);
                } else if let Err(fault) = self.read_plain(desk, request, at, run.len as usize, last) {
                    return Ok(Err(fault));
                }
                at += run.len;
            }
        }
        Ok(Ok(()))
    }

    fn block_status(&self, desk: &mut Desk, request: &Request) -> Result<(), ()> {
        let contexts = self.session.contexts;
        let most = if request.flags & cmd_flag::REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
        let mut allocation = Status::new(contexts.allocation, most);
        let mut depth = Status::new(contexts.depth, most);
        let stop = request.offset + u64::from(request.len);
        let mut at = request.offset;
        let result = self.session.device.extents(request.offset, u64::from(request.len), &mut |extent| {
            let Some(len) = clamp(&extent, at, stop) else { return ControlFlow::Break(()) };
            let flags = match extent.class {
                ExtentClass::Data => 0,
                ExtentClass::Zero => state::ZERO,
                ExtentClass::Hole => state::ZERO | state::HOLE,
            };
            at += len;
            let open = [allocation.add(len as u32, flags), depth.add(len as u32, extent.depth)];
            if at < stop && open.contains(&true) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let fault = match result {
            Err(error) => Some(error.into()),
            Ok(()) if at == request.offset => Some(Fault::new(Errno::Io, "the device tells nothing about this range")),
            Ok(()) => None,
        };
        if let Some(fault) = fault {
            desk.reply_error(true, request.cookie, fault.error, &fault.message);
            return Ok(());
        }
        if contexts.allocation {
            desk.chunk_status(request.cookie, ALLOCATION.0, &allocation.extents, !contexts.depth);
        }
        if contexts.depth {
            desk.chunk_status(request.cookie, DEPTH.0, &depth.extents, true);
        }
        Ok(())
    }
}

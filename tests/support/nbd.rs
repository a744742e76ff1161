//! A small NBD client that checks what it is told, and devices to serve to it.

use diffdisk::export::nbd::proto::{self, chunk, cmd_flag, info, opt, rep};
use diffdisk::export::{BlockDevice, DeviceExtent, ExtentClass};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// A reply to an option: its type and data.
pub type OptionReply = (u32, Vec<u8>);

/// What a request came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub error: u32,
    /// Of a read.
    pub data: Vec<u8>,
    /// Holes and data chunks of a structured read.
    pub holes: usize,
    pub chunks: usize,
    /// Of a block status: context, extents.
    pub status: Vec<(u32, Vec<(u32, u32)>)>,
}

pub struct Client {
    pub socket: UnixStream,
    pub structured: bool,
    pub size: u64,
    pub flags: u16,
    next: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Client {
    /// Connects and reads the greeting, nothing more.
    pub fn knock(path: &Path) -> Self {
        let client = Self { socket: UnixStream::connect(path).unwrap(), structured: false, size: 0, flags: 0, next: 1 };
        let greeting = client.read(18).expect("a greeting");
        assert_eq!(u64_at(&greeting, 0), proto::INIT_MAGIC);
        assert_eq!(u64_at(&greeting, 8), proto::OPTION_MAGIC);
        assert_eq!(greeting[16..], [0, 3]);
        client
    }

    /// Connects and answers the greeting.
    pub fn greet(path: &Path) -> Self {
        let client = Self::knock(path);
        client.say(&3u32.to_be_bytes());
        client
    }

    /// The whole handshake, with structured replies and both contexts.
    pub fn open(path: &Path, export: &str) -> Self {
        let mut client = Self::greet(path);
        client.structured = client.option(opt::STRUCTURED_REPLY, &[]).unwrap()[0].0 == rep::ACK;
        let replies = client.option(opt::SET_META_CONTEXT, &meta(export, &["base:allocation", "diffdisk:depth"])).unwrap();
        assert_eq!(replies.len(), 3);
        client.go(export);
        client
    }

    /// The handshake of a client that knows simple replies only.
    pub fn open_simple(path: &Path, export: &str) -> Self {
        let mut client = Self::greet(path);
        client.go(export);
        client
    }

    pub fn go(&mut self, export: &str) {
        let replies = self.option(opt::GO, &go(export, &[info::BLOCK_SIZE])).unwrap();
        assert_eq!(replies.last().unwrap().0, rep::ACK, "{replies:?}");
        for (kind, data) in &replies[..replies.len() - 1] {
            assert_eq!(*kind, rep::INFO);
            if data[..2] == [0, 0] {
                self.size = u64_at(data, 2);
                self.flags = u16::from_be_bytes([data[10], data[11]]);
            }
        }
        assert_ne!(self.flags, 0);
    }

    pub fn say(&self, bytes: &[u8]) {
        // A server that has hung up is noticed when reading.
        let _ = (&self.socket).write_all(bytes);
    }

    pub fn read(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        (&self.socket).read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the server has closed the connection.
    pub fn is_cut(&self) -> bool {
        matches!((&self.socket).read(&mut [0]), Ok(0) | Err(_))
    }

    pub fn say_option(&self, option: u32, data: &[u8]) {
        let mut bytes = proto::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        self.say(&bytes);
    }

    /// Sends an option and collects the replies to the last one.
    pub fn option(&self, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
        self.say_option(option, data);
        let mut replies = Vec::new();
        loop {
            let head = self.read(20)?;
            assert_eq!(u64_at(&head, 0), proto::OPTION_REPLY_MAGIC);
            assert_eq!(u32_at(&head, 8), option);
            let kind = u32_at(&head, 12);
            let data = self.read(u32_at(&head, 16) as usize)?;
            replies.push((kind, data));
            if kind == rep::ACK || kind >> 31 == 1 {
                return Ok(replies);
            }
        }
    }

    /// Sends a request and returns its cookie.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        let cookie = self.next * 0x0101_0101;
        self.next += 1;
        let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.say(&bytes);
        cookie
    }

    /// Receives one whole reply and checks its structure against the request: command, flags, offset, length.
    pub fn reply(&self, (command, flags, offset, len): (u16, u16, u64, u32)) -> io::Result<(u64, Outcome)> {
        let mut outcome = Outcome::default();
        let mut covered = vec![false; if command == READ { len as usize } else { 0 }];
        outcome.data = vec![0xee; covered.len()];
        loop {
            let magic = u32_at(&self.read(4)?, 0);
            if magic == proto::SIMPLE_REPLY_MAGIC {
                assert!(!(self.structured && command == READ), "a simple reply to a structured read");
                let head = self.read(12)?;
                outcome.error = u32_at(&head, 0);
                outcome.data = if command == READ && outcome.error == 0 { self.read(len as usize)? } else { Vec::new() };
                return Ok((u64_at(&head, 4), outcome));
            }
            assert_eq!(magic, proto::CHUNK_MAGIC);
            assert!(self.structured, "a structured reply nobody asked for");
            let head = self.read(16)?;
            let (done, kind) = (head[1] & 1 == 1, u16::from_be_bytes([head[2], head[3]]));
            let payload = self.read(u32_at(&head, 12) as usize)?;
            let mut cover = |at: u64, n: usize| {
                let start = at.checked_sub(offset).expect("content inside of the request") as usize;
                assert!(n > 0 && covered[start..start + n].iter().all(|c| !c), "content twice");
                covered[start..start + n].fill(true);
                start..start + n
            };
            match kind {
                chunk::NONE => assert!(done && payload.is_empty()),
                chunk::OFFSET_DATA => {
                    let range = cover(u64_at(&payload, 0), payload.len() - 8);
                    outcome.data[range].copy_from_slice(&payload[8..]);
                    outcome.chunks += 1;
                }
                chunk::OFFSET_HOLE => {
                    assert_eq!(payload.len(), 12);
                    let range = cover(u64_at(&payload, 0), u32_at(&payload, 8) as usize);
                    outcome.data[range].fill(0);
                    outcome.holes += 1;
                    outcome.chunks += 1;
                }
                chunk::BLOCK_STATUS => {
                    let extents: Vec<_> = payload[4..].chunks(8).map(|e| (u32_at(e, 0), u32_at(e, 4))).collect();
                    let sum: u64 = extents.iter().map(|e| u64::from(e.0)).sum();
                    assert!(!extents.is_empty() && sum <= u64::from(len) && extents.iter().all(|e| e.0 > 0));
                    assert!(flags & cmd_flag::REQ_ONE == 0 || extents.len() == 1);
                    outcome.status.push((u32_at(&payload, 0), extents));
                }
                chunk::ERROR => {
                    outcome.error = u32_at(&payload, 0);
                    let message_len = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
                    assert!(outcome.error != 0 && payload.len() == 6 + message_len);
                    assert!(std::str::from_utf8(&payload[6..]).is_ok());
                }
                other => panic!("chunk type {other}"),
            }
            if done {
                if outcome.error == 0 {
                    assert!(covered.iter().all(|&c| c), "a read with gaps");
                    assert!(flags & cmd_flag::DF == 0 || outcome.chunks <= 1, "a fragment");
                }
                return Ok((u64_at(&head, 4), outcome));
            }
        }
    }

    /// One request and its reply.
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Outcome {
        let cookie = self.send(command, flags, offset, len, payload);
        let (of, outcome) = self.reply((command, flags, offset, len)).expect("the connection lives");
        assert_eq!(of, cookie);
        outcome
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(WRITE, 0, offset, data.len() as u32, data).error
    }

    pub fn read_back(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let outcome = self.ask(READ, 0, offset, len, &[]);
        assert_eq!(outcome.error, 0);
        outcome.data
    }
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

/// Data of `GO` and `INFO`.
pub fn go(export: &str, wants: &[u16]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&(wants.len() as u16).to_be_bytes());
    wants.iter().for_each(|want| data.extend_from_slice(&want.to_be_bytes()));
    data
}

/// Data of the options for metadata contexts.
pub fn meta(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// Bytes in pieces of 512, each written or not; counts and faults on demand.
#[derive(Default)]
pub struct Probe {
    pub bytes: Mutex<(Vec<u8>, Vec<bool>)>,
    pub flushes: AtomicU64,
    pub writes_at_last_flush: AtomicU64,
    pub writes: AtomicU64,
    /// Reads at or behind this offset fail; 0 for never.
    pub fail_from: AtomicU64,
    pub panics: AtomicBool,
    /// Shown instead of the real size, unless 0.
    pub shrunk: AtomicU64,
    /// Reads that are slow, and how many were begun; later ones wait until two are inside at once.
    pub slow_reads: AtomicU64,
    pub reads: AtomicU64,
    pub inside: Mutex<(u64, bool)>,
    pub met: Condvar,
    /// While closed, flushes wait.
    pub closed: Mutex<bool>,
    pub opened: Condvar,
}

pub const PIECE: u64 = 512;

impl Probe {
    pub fn new(size: u64) -> Self {
        let bytes = Mutex::new((vec![0; size as usize], vec![false; size.div_ceil(PIECE) as usize]));
        Self { bytes, ..Self::default() }
    }

    /// A disk that is slow for some reads, and then insists on company.
    fn dawdle(&self) {
        let slow = self.slow_reads.load(Ordering::SeqCst);
        if slow == 0 {
            return;
        }
        if self.reads.fetch_add(1, Ordering::SeqCst) < slow {
            let until = Instant::now() + Duration::from_millis(1);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            return;
        }
        let mut inside = self.inside.lock().unwrap();
        inside.0 += 1;
        inside.1 |= inside.0 >= 2;
        self.met.notify_all();
        let (mut inside, timeout) = self.met.wait_timeout_while(inside, Duration::from_secs(20), |inside| !inside.1).unwrap();
        inside.0 -= 1;
        assert!(!timeout.timed_out(), "reads come one at a time");
    }

    pub fn set_closed(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

impl BlockDevice for Probe {
    fn size(&self) -> u64 {
        match self.shrunk.load(Ordering::SeqCst) {
            0 => self.bytes.lock().unwrap().0.len() as u64,
            shrunk => shrunk,
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.dawdle();
        let fail_from = self.fail_from.load(Ordering::SeqCst);
        if fail_from != 0 && offset + buf.len() as u64 > fail_from {
            return Err(io::Error::other("a bad sector"));
        }
        assert!(!self.panics.load(Ordering::SeqCst), "a panic on demand");
        let at = offset as usize;
        buf.copy_from_slice(&self.bytes.lock().unwrap().0[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let at = offset as usize;
        bytes.0[at..at + buf.len()].copy_from_slice(buf);
        bytes.1[at / 512..(at + buf.len()).div_ceil(512)].fill(true);
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn can_zero_fast(&self, offset: u64, len: u64, keep_space: bool) -> bool {
        !keep_space && offset.is_multiple_of(PIECE) && len.is_multiple_of(PIECE)
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let (first, last) = (offset.div_ceil(PIECE) as usize, ((offset + len) / PIECE) as usize);
        for piece in first..last {
            bytes.0[piece * 512..(piece + 1) * 512].fill(0);
            bytes.1[piece] = false;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let writes = self.writes.load(Ordering::SeqCst);
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
        self.writes_at_last_flush.store(writes, Ordering::SeqCst);
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        let written = self.bytes.lock().unwrap().1.clone();
        let mut at = offset;
        while at < offset + len {
            let is_written = written[(at / PIECE) as usize];
            let stop = (at / PIECE + 1) * PIECE;
            let (class, depth) = if is_written { (ExtentClass::Data, 0) } else { (ExtentClass::Hole, 3) };
            let extent = DeviceExtent { offset: at, len: stop.min(offset + len) - at, class, depth };
            if visit(extent).is_break() {
                break;
            }
            at = stop;
        }
        Ok(())
    }
}

/// A small generator with a fixed seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

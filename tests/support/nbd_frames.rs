//! Body of the fuzz target `nbd`: bytes become several clients' frames, sane and insane, and everything the server says back is
//! checked. Shared by the fuzzer and by `tests/nbd_frames.rs`.

use diffdisk::export::nbd::proto::{self, chunk};
use diffdisk::export::nbd::{ByteStream, Export, NbdServer};
use diffdisk::export::{BlockDevice, DeviceExtent, ExtentClass};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SIZE: u64 = 1 << 20;

/// A disk of zeros that insists on being asked sensible things.
struct Strict;

fn check(offset: u64, len: u64) {
    assert!(offset.checked_add(len).is_some_and(|end| end <= SIZE), "{len} bytes at {offset} are outside of the device");
}

impl BlockDevice for Strict {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check(offset, buf.len() as u64);
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check(offset, buf.len() as u64);
        Ok(())
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        check(offset, len);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Says too much, too little, or the wrong thing, depending on where it is asked.
    fn extents(&self, offset: u64, len: u64, visit: &mut dyn FnMut(DeviceExtent) -> ControlFlow<()>) -> io::Result<()> {
        check(offset, len);
        let (mut at, mut class) = (offset, ExtentClass::Data);
        while at < offset + len {
            let step = match at % 7 {
                0 => 1,
                1 => u64::MAX - at,
                2 => 0,
                n => n * 3000,
            };
            class = if class == ExtentClass::Data { ExtentClass::Hole } else { ExtentClass::Data };
            if visit(DeviceExtent { offset: at, len: step, class, depth: 1 }).is_break() || step == 0 || step > SIZE {
                break;
            }
            at += step;
        }
        Ok(())
    }
}

/// A client that said everything in advance.
struct Tape {
    said: Mutex<(usize, Vec<u8>)>,
    most: usize,
    heard: Mutex<Vec<u8>>,
}

impl ByteStream for Tape {
    fn recv(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut said = self.said.lock().unwrap();
        let mut left = self.most.min(said.1.len() - said.0);
        let mut n = 0;
        for buf in bufs {
            let part = buf.len().min(left);
            buf[..part].copy_from_slice(&said.1[said.0..said.0 + part]);
            said.0 += part;
            left -= part;
            n += part;
        }
        Ok(n)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).expect("something is sent");
        let n = first.len().min(self.most);
        self.heard.lock().unwrap().extend_from_slice(&first[..n]);
        Ok(n)
    }

    fn set_time_limit(&self, _limit: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, _how: Shutdown) -> io::Result<()> {
        Ok(())
    }
}

/// Takes decisions off the input; zeros when it is used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn number(&mut self) -> u64 {
        let mut value = [0; 8];
        value[4..].fill_with(|| self.byte());
        u64::from_be_bytes(value)
    }

    fn some(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()).min(self.0.len());
        let (some, rest) = self.0.split_at(len);
        self.0 = rest;
        some.to_vec()
    }
}

/// What a session said, and what it may hear.
#[derive(Default)]
struct Script {
    said: Vec<u8>,
    structured: bool,
    /// Requests by cookie: command, offset, length. `None` once the client has lost the framing on purpose.
    requests: BTreeMap<u64, (u16, u64, u32)>,
    options: usize,
    starts: bool,
    has_noise: bool,
}

fn option(script: &mut Script, number: u32, data: &[u8]) {
    script.said.extend_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
    script.said.extend_from_slice(&number.to_be_bytes());
    script.said.extend_from_slice(&(data.len() as u32).to_be_bytes());
    script.said.extend_from_slice(data);
    script.options += 1;
}

fn write_script(choices: &mut Choices<'_>) -> Script {
    let mut script = Script::default();
    script.said.extend_from_slice(&u32::from(choices.byte() & 3).to_be_bytes());
    for _ in 0..choices.byte() % 5 {
        let number = u32::from(choices.byte() % 13);
        let data = choices.some();
        // The options that change what follows are said below, where that is known.
        if ![proto::opt::EXPORT_NAME, proto::opt::ABORT, proto::opt::GO, proto::opt::STRUCTURED_REPLY].contains(&number) {
            option(&mut script, number, &data);
        }
    }
    script.structured = choices.byte() & 1 == 1;
    if script.structured {
        option(&mut script, proto::opt::STRUCTURED_REPLY, &[]);
        option(&mut script, proto::opt::SET_META_CONTEXT, b"\0\0\0\0\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0ediffdisk:depth");
    }
    script.starts = choices.byte() & 7 != 0;
    if script.starts {
        option(&mut script, proto::opt::GO, &[0; 6]);
    }
    for cookie in 1..=u64::from(choices.byte() % 40) {
        let kind = choices.byte();
        if kind == 0xff {
            script.has_noise = true;
            let noise = choices.some();
            script.said.extend_from_slice(&noise);
            continue;
        }
        let command = u16::from(kind % 10);
        let flags = if kind & 0x40 == 0 { 0 } else { u16::from(choices.byte()) };
        let offset = choices.number() % if kind & 0x80 == 0 { SIZE } else { u64::MAX };
        let len = (choices.number() % if kind & 0x20 == 0 { 1 << 17 } else { 1 << 32 }) as u32;
        let payload_len = if command == 1 { len.min(1 << 17) } else { 0 };
        script.said.extend_from_slice(&proto::REQUEST_MAGIC.to_be_bytes());
        script.said.extend_from_slice(&flags.to_be_bytes());
        script.said.extend_from_slice(&command.to_be_bytes());
        script.said.extend_from_slice(&cookie.to_be_bytes());
        script.said.extend_from_slice(&offset.to_be_bytes());
        script.said.extend_from_slice(&len.to_be_bytes());
        script.said.resize(script.said.len() + payload_len as usize, kind);
        // A write that promises more than it sends swallows what follows: then nothing is known any more.
        script.has_noise |= command == 1 && payload_len < len;
        script.requests.insert(cookie, (command, offset, len));
    }
    script
}

/// The server's half of a session, to be taken apart.
struct Heard<'a>(&'a [u8]);

impl<'a> Heard<'a> {
    /// A server may end anywhere when its client did; what it did say must be whole.
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at_checked(n).expect("nothing is cut short");
        self.0 = tail;
        head
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }
}

fn judge(script: &Script, heard: &[u8], tally: &mut Tally) {
    let mut heard = Heard(heard);
    assert_eq!(heard.take(18), b"NBDMAGICIHAVEOPT\0\x03");
    let mut started = false;
    let mut finals = 0;
    while !heard.0.is_empty() && !started && heard.0.starts_with(&proto::OPTION_REPLY_MAGIC.to_be_bytes()) {
        heard.take(8);
        let (option, kind, len) = (heard.u32(), heard.u32(), heard.u32());
        heard.take(len as usize);
        finals += usize::from(kind == proto::rep::ACK || kind >> 31 == 1);
        started = option == proto::opt::GO && kind == proto::rep::ACK;
    }
    assert!(finals <= script.options);
    assert!(started == script.starts || script.has_noise);
    let mut open = script.requests.clone();
    while !heard.0.is_empty() {
        let magic = heard.u32();
        if magic == proto::SIMPLE_REPLY_MAGIC {
            let (error, cookie) = (heard.u32(), heard.u64());
            let Some((command, _, len)) = open.remove(&cookie) else { panic!("a reply to nobody") };
            if command == 0 && error == 0 {
                assert!(!script.structured);
                assert!(heard.take(len as usize).iter().all(|&b| b == 0));
            }
            continue;
        }
        assert_eq!(magic, proto::CHUNK_MAGIC);
        assert!(script.structured);
        let flags_and_kind = heard.u32();
        let (done, kind) = (flags_and_kind >> 16 & 1 == 1, flags_and_kind as u16);
        let cookie = heard.u64();
        let len = heard.u32();
        let payload = heard.take(len as usize);
        let &(command, offset, request_len) = open.get(&cookie).expect("a chunk for somebody");
        let inside = |at: u64, n: u64| assert!(command == 0 && n > 0 && at >= offset && at + n <= offset + u64::from(request_len));
        match kind {
            chunk::OFFSET_DATA => inside(Heard(payload).u64(), u64::from(len) - 8),
            chunk::OFFSET_HOLE => inside(Heard(payload).u64(), u64::from(Heard(&payload[8..]).u32())),
            chunk::BLOCK_STATUS => {
                let sum: u64 = payload[4..].chunks(8).map(|e| u64::from(Heard(e).u32())).sum();
                assert!(command == 7 && sum > 0 && sum <= u64::from(request_len));
            }
            chunk::NONE | chunk::ERROR => {}
            other => panic!("chunk type {other}"),
        }
        if done {
            open.remove(&cookie);
        }
    }
    tally.replies += script.requests.len() - open.len();
    if started && !script.has_noise {
        tally.clean_sessions += 1;
        // Whatever was asked before a goodbye is answered.
        let goodbye = script.requests.iter().find(|(_, request)| request.0 == 2).map_or(u64::MAX, |(&cookie, _)| cookie);
        assert_eq!(open.range(..goodbye).next(), None, "a request without a reply");
    }
}

/// What was checked, so that a run that checked nothing is noticed.
#[derive(Debug, Default)]
pub struct Tally {
    /// Sessions in which every request had to be answered.
    pub clean_sessions: usize,
    /// Requests that were answered in full.
    pub replies: usize,
}

/// Runs three sessions against one server.
pub fn run(input: &[u8], tally: &mut Tally) {
    let server = NbdServer::new().export(Export::new("", Arc::new(Strict)));
    let mut choices = Choices(input);
    for _ in 0..3 {
        let script = write_script(&mut choices);
        let most = 1 + usize::from(choices.byte()) * usize::from(choices.byte());
        let tape = Tape { said: Mutex::new((0, script.said.clone())), most, heard: Mutex::default() };
        server.serve_stream(&tape).unwrap();
        judge(&script, &tape.heard.into_inner().unwrap(), tally);
    }
}

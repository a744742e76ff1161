//! From a fresh connection to a chosen export: the fixed newstyle handshake.
//!
//! The client speaks in options, one at a time, and each gets a reply. What it negotiates is collected in [`Haggling`] until
//! `GO` or `EXPORT_NAME` turns it into a [`Session`]. A client has one span of time for all of it, a cap on the length of an
//! option and on their number; whoever exceeds one of these, or breaks the framing, is cut off. Whoever merely asks for nonsense
//! gets an error reply and may go on.

use super::exports::{Export, ExportList};
use super::proto::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, InfoQuery, MAX_PAYLOAD, MetaQuery, OPTION_LEN, OPTION_MAGIC, OptionHeader, flag, info,
    opt, put_option_reply, rep,
};
use super::stream::{ByteStream, Input, send_all};
use crate::export::{BlockDevice, BlockSizes};
use crate::sync::Arc;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

/// The longest option that is looked at. A longer one is refused unread.
const MAX_OPTION: u32 = 64 << 10;
/// The longest option that is even skipped.
const MAX_SKIP: u32 = 16 << 20;
/// Options of one handshake. Clients that list and describe a few hundred exports stay below it.
const MAX_OPTIONS: u32 = 4096;

/// What the two sides have agreed on.
pub(super) struct Session {
    pub(super) device: Arc<dyn BlockDevice>,
    /// As the client was told. The device may have changed since.
    pub(super) size: u64,
    pub(super) block_sizes: BlockSizes,
    pub(super) read_only: bool,
    /// Replies to `READ` are structured.
    pub(super) structured: bool,
    pub(super) contexts: Contexts,
}

/// The metadata contexts the client selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contexts {
    pub(super) allocation: bool,
    pub(super) depth: bool,
}

/// Every context there is: its number on the wire and its name.
pub(super) const ALLOCATION: (u32, &str) = (1, "base:allocation");
/// See [`ALLOCATION`].
pub(super) const DEPTH: (u32, &str) = (2, "diffdisk:depth");

impl Contexts {
    fn matching(queries: &[&[u8]], wildcards: bool) -> Self {
        let selects = |(_, name): (u32, &str)| {
            let namespace = name.split_inclusive(':').next().unwrap_or(name);
            queries.iter().any(|&query| query == name.as_bytes() || (wildcards && query == namespace.as_bytes()))
        };
        Self { allocation: selects(ALLOCATION), depth: selects(DEPTH) }
    }

    fn each(self) -> impl Iterator<Item = (u32, &'static str)> {
        [(self.allocation, ALLOCATION), (self.depth, DEPTH)].into_iter().filter_map(|(on, context)| on.then_some(context))
    }

    pub(super) fn none(self) -> bool {
        self == Self::default()
    }
}

/// What an option leads to.
enum Next {
    Another,
    Start(Session),
    Goodbye,
}

struct Haggling<'a> {
    exports: &'a ExportList,
    no_zeroes: bool,
    structured: bool,
    /// Selected contexts, and the export they were selected for.
    contexts: (Vec<u8>, Contexts),
}

/// Speaks the handshake to its end. `Ok(None)`: the client said goodbye or was shown the door.
///
/// # Errors
/// The stream failed, or the time is over.
pub(super) fn negotiate(
    stream: &dyn ByteStream,
    input: &mut Input,
    exports: &ExportList,
    patience: Duration,
) -> io::Result<Option<Session>> {
    let line = Line { stream, deadline: Instant::now() + patience };
    let mut greeting = Vec::new();
    greeting.extend_from_slice(&INIT_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    line.send(&greeting)?;
    let client = u32::from_be_bytes(line.receive::<4>(input)?);
    if client & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Ok(None);
    }
    let no_zeroes = client & u32::from(FLAG_NO_ZEROES) != 0;
    let mut haggling = Haggling { exports, no_zeroes, structured: false, contexts: Default::default() };
    for _ in 0..MAX_OPTIONS {
        let Some(header) = OptionHeader::parse(&line.receive::<OPTION_LEN>(input)?) else { return Ok(None) };
        let mut reply = Vec::new();
        let next = if header.len > MAX_OPTION {
            if header.len > MAX_SKIP {
                return Ok(None);
            }
            line.discard(input, header.len)?;
            haggling.too_long(header.option, &mut reply)
        } else {
            let data = line.receive_vec(input, header.len as usize)?;
            haggling.option(header.option, &data, &mut reply)
        };
        line.send(&reply)?;
        match next {
            Next::Another => {}
            Next::Goodbye => return Ok(None),
            Next::Start(session) => {
                stream.set_time_limit(None)?;
                return Ok(Some(session));
            }
        }
    }
    Ok(None)
}

/// The stream, until the deadline.
struct Line<'a> {
    stream: &'a dyn ByteStream,
    deadline: Instant,
}

impl Line<'_> {
    fn hurry(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_time_limit(Some(left.max(Duration::from_millis(1))))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.hurry()?;
        send_all(self.stream, &mut [IoSlice::new(bytes)])
    }

    fn more(&self, input: &mut Input) -> io::Result<()> {
        self.hurry()?;
        match input.fill(self.stream)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn receive<const N: usize>(&self, input: &mut Input) -> io::Result<[u8; N]> {
        loop {
            if let Some(&bytes) = input.peek::<N>() {
                input.consume(N);
                return Ok(bytes);
            }
            self.more(input)?;
        }
    }

    fn receive_vec(&self, input: &mut Input, len: usize) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        while data.len() < len {
            let before = data.len();
            input.drain(len - before, &mut data);
            if data.len() == before {
                self.more(input)?;
            }
        }
        Ok(data)
    }

    fn discard(&self, input: &mut Input, len: u32) -> io::Result<()> {
        let mut left = len as usize;
        while left > 0 {
            let mut scrap = Vec::new();
            input.drain(left, &mut scrap);
            left -= scrap.len();
            if scrap.is_empty() {
                self.more(input)?;
            }
        }
        Ok(())
    }
}

impl Haggling<'_> {
    fn too_long(&mut self, option: u32, reply: &mut Vec<u8>) -> Next {
        match option {
            // This option has no error reply.
            opt::EXPORT_NAME => return Next::Goodbye,
            opt::SET_META_CONTEXT => self.contexts = Default::default(),
            _ => {}
        }
        put_option_reply(reply, option, rep::ERR_TOO_BIG, &[b"the option is too long"]);
        Next::Another
    }

    fn option(&mut self, option: u32, data: &[u8], reply: &mut Vec<u8>) -> Next {
        let refuse = |reply: &mut Vec<u8>, code: u32, why: &str| {
            put_option_reply(reply, option, code, &[why.as_bytes()]);
            Next::Another
        };
        match option {
            opt::EXPORT_NAME => self.export_name(data, reply),
            opt::ABORT => {
                put_option_reply(reply, option, rep::ACK, &[]);
                Next::Goodbye
            }
            opt::LIST if !data.is_empty() => refuse(reply, rep::ERR_INVALID, "LIST takes no data"),
            opt::LIST => {
                for export in self.exports.iter() {
                    let name_len = export.name().len() as u32;
                    let parts = [&name_len.to_be_bytes(), export.name().as_bytes(), export.about().as_bytes()];
                    put_option_reply(reply, option, rep::SERVER, &parts);
                }
                put_option_reply(reply, option, rep::ACK, &[]);
                Next::Another
            }
            opt::STARTTLS => refuse(reply, rep::ERR_POLICY, "this server has no TLS"),
            opt::INFO | opt::GO => self.describe(option, data, reply),
            opt::STRUCTURED_REPLY if !data.is_empty() => refuse(reply, rep::ERR_INVALID, "STRUCTURED_REPLY takes no data"),
            opt::STRUCTURED_REPLY if self.structured => refuse(reply, rep::ERR_INVALID, "structured replies are on already"),
            opt::STRUCTURED_REPLY => {
                self.structured = true;
                put_option_reply(reply, option, rep::ACK, &[]);
                Next::Another
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => {
                self.meta_context(option, data, reply);
                Next::Another
            }
            _ => refuse(reply, rep::ERR_UNSUP, "this option is unknown here"),
        }
    }

    fn export_name(&self, name: &[u8], reply: &mut Vec<u8>) -> Next {
        let Some(export) = self.exports.find(name) else { return Next::Goodbye };
        let session = self.session(export);
        reply.extend_from_slice(&session.size.to_be_bytes());
        reply.extend_from_slice(&transmission_flags(&session).to_be_bytes());
        if !self.no_zeroes {
            reply.extend_from_slice(&[0; 124]);
        }
        Next::Start(session)
    }

    fn describe(&self, option: u32, data: &[u8], reply: &mut Vec<u8>) -> Next {
        let Some(query) = InfoQuery::parse(data) else {
            put_option_reply(reply, option, rep::ERR_INVALID, &[b"the lengths in this option do not add up"]);
            return Next::Another;
        };
        let Some(export) = self.exports.find(query.name) else {
            put_option_reply(reply, option, rep::ERR_UNKNOWN, &[b"there is no export of this name"]);
            return Next::Another;
        };
        let session = self.session(export);
        let parts: [&[u8]; 3] = [&info::EXPORT.to_be_bytes(), &session.size.to_be_bytes(), &transmission_flags(&session).to_be_bytes()];
        put_option_reply(reply, option, rep::INFO, &parts);
        if query.wants.contains(&info::NAME) {
            put_option_reply(reply, option, rep::INFO, &[&info::NAME.to_be_bytes(), export.name().as_bytes()]);
        }
        if query.wants.contains(&info::DESCRIPTION) && !export.about().is_empty() {
            put_option_reply(reply, option, rep::INFO, &[&info::DESCRIPTION.to_be_bytes(), export.about().as_bytes()]);
        }
        if query.wants.contains(&info::BLOCK_SIZE) || session.block_sizes.minimum > 1 {
            let BlockSizes { minimum, preferred } = session.block_sizes;
            let parts: [&[u8]; 4] = [
                &info::BLOCK_SIZE.to_be_bytes(),
                &minimum.to_be_bytes(),
                &preferred.to_be_bytes(),
                &MAX_PAYLOAD.max(preferred).to_be_bytes(),
            ];
            put_option_reply(reply, option, rep::INFO, &parts);
        }
        put_option_reply(reply, option, rep::ACK, &[]);
        if option == opt::GO { Next::Start(session) } else { Next::Another }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], reply: &mut Vec<u8>) {
        let setting = option == opt::SET_META_CONTEXT;
        if setting {
            self.contexts = Default::default();
        }
        if !self.structured {
            return put_option_reply(reply, option, rep::ERR_INVALID, &[b"negotiate structured replies first"]);
        }
        let Some(query) = MetaQuery::parse(data) else {
            return put_option_reply(reply, option, rep::ERR_INVALID, &[b"the lengths in this option do not add up"]);
        };
        let Some(export) = self.exports.find(query.name) else {
            return put_option_reply(reply, option, rep::ERR_UNKNOWN, &[b"there is no export of this name"]);
        };
        let contexts = match (setting, query.queries.is_empty()) {
            (false, true) => Contexts { allocation: true, depth: true },
            (_, _) => Contexts::matching(&query.queries, !setting),
        };
        for (id, name) in contexts.each() {
            let id = if setting { id } else { 0 };
            put_option_reply(reply, option, rep::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
        }
        put_option_reply(reply, option, rep::ACK, &[]);
        if setting {
            self.contexts = (export.name().as_bytes().to_vec(), contexts);
        }
    }

    fn session(&self, export: &Export) -> Session {
        let device = export.device();
        let (for_name, contexts) = &self.contexts;
        Session {
            size: device.size(),
            block_sizes: device.block_sizes(),
            read_only: export.is_read_only() || device.is_read_only(),
            structured: self.structured,
            contexts: if for_name == export.name().as_bytes() { *contexts } else { Contexts::default() },
            device,
        }
    }
}

fn transmission_flags(session: &Session) -> u16 {
    let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
    if session.read_only {
        flags |= flag::READ_ONLY;
    } else {
        flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    }
    if session.structured {
        flags |= flag::SEND_DF;
    }
    flags
}

//! The wire format: numbers, and bytes to values and back. No I/O.
//!
//! Everything on the wire is big-endian. The names are those of the protocol document (`doc/proto.md` of the NBD project)
//! without their `NBD_` prefix.

/// First word the server says.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word the server says, and the first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of the server and client flag alike: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of the server and client flag alike: no 124 zeros after `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// The longest string either side may send.
pub const MAX_STRING: usize = 4096;
/// The longest payload of one request, advertised in `INFO_BLOCK_SIZE`.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Bytes of a request without its payload.
pub const REQUEST_LEN: usize = 28;
/// Bytes of an option's header.
pub const OPTION_LEN: usize = 16;

/// Numbers of options.
pub mod opt {
    /// Choose an export and start, without any possible error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Upgrade to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Numbers of option replies.
pub mod rep {
    /// Success, nothing follows.
    pub const ACK: u32 = 1;
    /// An export of a list.
    pub const SERVER: u32 = 2;
    /// Something about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is unknown.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The option is known and refused.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// The option is malformed.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// The option is too long.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Kinds of `rep::INFO`.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The name.
    pub const NAME: u16 = 1;
    /// The description.
    pub const DESCRIPTION: u16 = 2;
    /// The block sizes and the longest payload.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Changes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush covers all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Command flags.
pub mod cmd_flag {
    /// Reply when the data is durable.
    pub const FUA: u16 = 1 << 0;
    /// Zeros keep their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk of data at most.
    pub const DF: u16 = 1 << 2;
    /// One extent per context at most.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zero quickly or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of structured reply chunks.
pub mod chunk {
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Bytes.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// Flag: the last chunk of this reply.
    pub const FLAG_DONE: u16 = 1;
}

/// Flags of the context `base:allocation`.
pub mod state {
    /// Takes no space.
    pub const HOLE: u32 = 1;
    /// Reads as zeros.
    pub const ZERO: u32 = 2;
}

/// The error numbers a reply may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// The device failed.
    Io = 5,
    /// No memory.
    NoMem = 12,
    /// The request breaks a rule.
    Inval = 22,
    /// No space, or a write past the end.
    NoSpc = 28,
    /// The request is longer than the server handles at once.
    Overflow = 75,
    /// It cannot be done fast.
    NotSup = 95,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The number for a failure of a device.
    pub fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        match error.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Self::NoSpc,
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::Perm,
            K::InvalidInput => Self::Inval,
            K::OutOfMemory => Self::NoMem,
            _ => Self::Io,
        }
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes, please.
    Read,
    /// Store these bytes.
    Write,
    /// Goodbye.
    Disc,
    /// Make everything durable.
    Flush,
    /// Nobody needs this range.
    Trim,
    /// This range will be read soon.
    Cache,
    /// Make this range zeros.
    WriteZeroes,
    /// What is this range made of.
    BlockStatus,
    /// Something else.
    Unknown(u16),
}

impl Command {
    fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disc,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }
}

/// The fixed part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bits of [`cmd_flag`].
    pub flags: u16,
    /// What.
    pub command: Command,
    /// The client's name for the request; returned as it came.
    pub cookie: u64,
    /// Where.
    pub offset: u64,
    /// How much. Only a `Write` is followed by that many bytes.
    pub len: u32,
}

/// Reads big-endian values off a slice; `None` when it ends first.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length, no longer than [`MAX_STRING`].
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok().filter(|&len| len <= MAX_STRING)?;
        self.bytes(len)
    }
}

impl Request {
    /// Reads a request; `None` if the magic is wrong, after which nothing on this connection can be trusted.
    pub fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: Command::from_number(fields.u16()?),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }
}

/// The fixed part of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// One of [`opt`], or something newer.
    pub option: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Reads an option's header; `None` if the magic is wrong.
    pub fn parse(bytes: &[u8; OPTION_LEN]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u64()? == OPTION_MAGIC).then_some(())?;
        Some(Self { option: fields.u32()?, len: fields.u32()? })
    }
}

/// The data of `INFO` and `GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoQuery<'a> {
    /// Of the export.
    pub name: &'a [u8],
    /// Kinds of information asked for.
    pub wants: Vec<u16>,
}

impl<'a> InfoQuery<'a> {
    /// Reads it; `None` unless it fits its length to the byte.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = usize::from(fields.u16()?);
        if fields.0.len() != count * 2 {
            return None;
        }
        let wants = fields.0.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        Some(Self { name, wants })
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// Of the export.
    pub name: &'a [u8],
    /// Names of contexts, or patterns.
    pub queries: Vec<&'a [u8]>,
}

impl<'a> MetaQuery<'a> {
    /// Reads it; `None` unless it fits its length to the byte.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields.0.is_empty().then_some(Self { name, queries })
    }
}

/// Appends an option reply.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&u32::try_from(len).expect("option replies are a few KiB").to_be_bytes());
    for part in data {
        out.extend_from_slice(part);
    }
}

/// Appends a simple reply. `error` 0 is success.
pub fn put_simple_reply(out: &mut Vec<u8>, error: u32, cookie: u64) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// Appends the header of a structured reply chunk whose payload has `len` bytes.
pub fn put_chunk(out: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, len: u32) {
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends an error chunk, the last of its reply.
pub fn put_error_chunk(out: &mut Vec<u8>, cookie: u64, error: Errno, message: &str) {
    let message = &message.as_bytes()[..message.floor_char_boundary_at(256)];
    put_chunk(out, chunk::FLAG_DONE, chunk::ERROR, cookie, 6 + message.len() as u32);
    out.extend_from_slice(&error.code().to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

/// Cuts text where a character starts (the standard library's version is newer than our lowest compiler).
trait CharBoundary {
    fn floor_char_boundary_at(&self, max: usize) -> usize;
}

impl CharBoundary for str {
    fn floor_char_boundary_at(&self, max: usize) -> usize {
        (0..=max.min(self.len())).rev().find(|&at| self.is_char_boundary(at)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_info_query_must_fit_to_the_byte() {
        let good = [0, 0, 0, 2, b'a', b'b', 0, 1, 0, 3];
        assert_eq!(InfoQuery::parse(&good), Some(InfoQuery { name: b"ab", wants: vec![3] }));
        assert_eq!(InfoQuery::parse(&good[..9]), None);
        assert_eq!(InfoQuery::parse(&[&good[..], &[0]].concat()), None);
        assert_eq!(InfoQuery::parse(&[0xff, 0xff, 0xff, 0xff, 0, 0]), None);
    }

    #[test]
    fn a_meta_query_that_promises_four_billion_names_allocates_none() {
        assert_eq!(MetaQuery::parse(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(MetaQuery::parse(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'x']), Some(MetaQuery { name: b"", queries: vec![b"x"] }));
    }

    #[test]
    fn a_request_needs_its_magic() {
        let mut bytes = [0; REQUEST_LEN];
        assert_eq!(Request::parse(&bytes), None);
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[7] = 7;
        bytes[27] = 9;
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.command, request.len), (Command::BlockStatus, 9));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut out = Vec::new();
        put_error_chunk(&mut out, 1, Errno::Io, &"ä".repeat(200));
        assert_eq!(out.len(), 20 + 6 + 256);
        let mut odd = Vec::new();
        put_error_chunk(&mut odd, 1, Errno::Io, &format!("x{}", "ä".repeat(200)));
        assert!(std::str::from_utf8(&odd[26..]).is_ok());
    }
}

//! One thread's working memory: where payloads land, and the replies that wait to be sent.
//!
//! Payloads lie on page boundaries: a copy between the page cache and memory a few bytes off a page start costs several times
//! one that is aligned. Replies to requests that came in together leave together, headers and payloads interleaved, in one
//! system call. The memory is taken once per thread, is touched only as far as it is needed, and is all a thread ever has.

use super::proto::{self, Errno, chunk};
use super::stream::{ByteStream, send_all};
use crate::storage::PageBuffer;
use std::io::{self, IoSlice};
use std::ops::Range;

const PAGE: usize = 4096;
/// Bytes for payloads; larger ones are passed on in pieces.
pub(super) const ARENA: usize = 1 << 20;
/// Pieces of one send.
const MAX_PARTS: usize = 64;
/// What payloads may lose by each starting on a page.
const SLACK: usize = MAX_PARTS * PAGE;
/// Replies that wait at most. More would let the client idle.
const MAX_REPLIES: usize = 16;
/// Payload bytes that wait at most.
const MAX_WAITING: usize = 256 << 10;

#[derive(Debug)]
enum Part {
    Head(Range<usize>),
    Body(Range<usize>),
}

#[derive(Debug)]
pub(super) struct Desk {
    arena: PageBuffer,
    /// Bytes of the arena that belong to waiting replies; on a page boundary.
    used: usize,
    heads: Vec<u8>,
    parts: Vec<Part>,
    replies: usize,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self { arena: PageBuffer::new(ARENA + SLACK), used: 0, heads: Vec::new(), parts: Vec::with_capacity(MAX_PARTS), replies: 0 }
    }

    /// Whether the waiting replies should leave before `len` more bytes are worked on.
    pub(super) fn is_full(&self, len: usize) -> bool {
        self.replies >= MAX_REPLIES || self.parts.len() + 4 > MAX_PARTS || (self.used > 0 && self.used + len > MAX_WAITING)
    }

    /// A place for `len` bytes behind the waiting ones. The caller made room with [`Desk::is_full`].
    pub(super) fn place(&self, len: usize) -> Range<usize> {
        debug_assert!(self.used + len <= ARENA + SLACK, "the caller made room");
        self.used..self.used + len
    }

    pub(super) fn bytes(&mut self, place: Range<usize>) -> &mut [u8] {
        &mut self.arena[place]
    }

    fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.heads.len();
        write(&mut self.heads);
        let end = self.heads.len();
        match self.parts.last_mut() {
            Some(Part::Head(range)) if range.end == start => range.end = end,
            _ => self.parts.push(Part::Head(start..end)),
        }
    }

    /// Success, without data, for anything but a structured read.
    pub(super) fn reply_ok(&mut self, cookie: u64) {
        self.head(|out| proto::put_simple_reply(out, 0, cookie));
        self.replies += 1;
    }

    /// Failure.
    pub(super) fn reply_error(&mut self, structured: bool, cookie: u64, error: Errno, message: &str) {
        self.head(|out| {
            if structured {
                proto::put_error_chunk(out, cookie, error, message);
            } else {
                proto::put_simple_reply(out, error.code(), cookie);
            }
        });
        self.replies += 1;
    }

    /// A simple reply whose payload lies at `place`.
    pub(super) fn reply_simple_data(&mut self, cookie: u64, place: Range<usize>) {
        self.head(|out| proto::put_simple_reply(out, 0, cookie));
        self.body(place);
        self.replies += 1;
    }

    /// The header of a simple reply whose payload the caller sends itself.
    pub(super) fn reply_simple_head(&mut self, cookie: u64) {
        self.head(|out| proto::put_simple_reply(out, 0, cookie));
    }

    /// A chunk of data that lies at `place`.
    pub(super) fn chunk_data(&mut self, cookie: u64, offset: u64, place: Range<usize>, last: bool) {
        self.head(|out| {
            proto::put_chunk(out, u16::from(last), chunk::OFFSET_DATA, cookie, 8 + place.len() as u32);
            out.extend_from_slice(&offset.to_be_bytes());
        });
        self.body(place);
        self.replies += usize::from(last);
    }

    /// The header of one chunk of data that the caller sends itself, the last of its reply.
    pub(super) fn chunk_data_head(&mut self, cookie: u64, offset: u64, len: u32) {
        self.head(|out| {
            proto::put_chunk(out, chunk::FLAG_DONE, chunk::OFFSET_DATA, cookie, 8 + len);
            out.extend_from_slice(&offset.to_be_bytes());
        });
    }

    /// A chunk of zeros.
    pub(super) fn chunk_hole(&mut self, cookie: u64, offset: u64, len: u32, last: bool) {
        self.head(|out| {
            proto::put_chunk(out, u16::from(last), chunk::OFFSET_HOLE, cookie, 12);
            out.extend_from_slice(&offset.to_be_bytes());
            out.extend_from_slice(&len.to_be_bytes());
        });
        self.replies += usize::from(last);
    }

    /// A structured reply that says nothing but "done".
    pub(super) fn chunk_none(&mut self, cookie: u64) {
        self.head(|out| proto::put_chunk(out, chunk::FLAG_DONE, chunk::NONE, cookie, 0));
        self.replies += 1;
    }

    /// The extents of one context, as (length, flags).
    pub(super) fn chunk_status(&mut self, cookie: u64, context: u32, extents: &[(u32, u32)], last: bool) {
        self.head(|out| {
            let len = 4 + 8 * extents.len() as u32;
            proto::put_chunk(out, u16::from(last), chunk::BLOCK_STATUS, cookie, len);
            out.extend_from_slice(&context.to_be_bytes());
            for (len, flags) in extents {
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
            }
        });
        self.replies += usize::from(last);
    }

    fn body(&mut self, place: Range<usize>) {
        self.used = place.end.next_multiple_of(PAGE);
        self.parts.push(Part::Body(place));
    }

    /// Sends what waits, and `extra` behind it.
    pub(super) fn send(&mut self, stream: &dyn ByteStream, extra: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); MAX_PARTS + 1];
        let mut count = 0;
        for part in &self.parts {
            slices[count] = IoSlice::new(match part {
                Part::Head(range) => &self.heads[range.clone()],
                Part::Body(range) => &self.arena[range.clone()],
            });
            count += 1;
        }
        slices[count] = IoSlice::new(extra);
        let result = send_all(stream, &mut slices[..=count]);
        self.heads.clear();
        self.parts.clear();
        self.heads.shrink_to(PAGE);
        (self.used, self.replies) = (0, 0);
        result
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_start_on_pages() {
        let mut desk = Desk::new();
        let first = desk.place(5);
        desk.chunk_data(1, 0, first, true);
        let second = desk.place(4096);
        assert_eq!(desk.bytes(second).as_ptr().addr() % PAGE, 0);
    }

    #[test]
    fn a_full_desk_says_so_before_the_parts_run_out() {
        let mut desk = Desk::new();
        let mut replies = 0;
        while !desk.is_full(4096) {
            let place = desk.place(4096);
            desk.chunk_data(replies, 0, place, true);
            replies += 1;
        }
        assert!(replies >= 8 && desk.parts.len() <= MAX_PARTS && desk.used <= ARENA);
    }
}

//! `read`, `write` and `trim`: content in and out, by offset.

use crate::args::{ParentsArgs, bytes};
use crate::buffer::{Buffer, CHUNK};
use crate::context::Context;
use crate::error::{About, CliError};
use crate::sealed;
use diffdisk::{Disk, DiskError};
use serde_json::json;
use std::io::Read;
use std::path::PathBuf;

/// Write content to standard output.
///
/// With --json the content comes as `hex` in an object.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk read alice.vhdx --offset 1M --length 4K | xxd | head")]
pub struct ReadArgs {
    /// The disk.
    file: PathBuf,
    /// First byte.
    #[arg(long, value_parser = bytes, default_value = "0")]
    offset: u64,
    /// Bytes; to the end of the disk unless given.
    #[arg(long, value_parser = bytes)]
    length: Option<u64>,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Write content from standard input, then flush and close.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: echo hello | diffdisk write alice.vhdx --offset 1M")]
pub struct WriteArgs {
    /// The disk.
    file: PathBuf,
    /// First byte.
    #[arg(long, value_parser = bytes)]
    offset: u64,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Give up content: whole blocks in the range read as zeros afterwards and give their space back; the rest is left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk trim alice.vhdx --offset 1G --length 512M")]
pub struct TrimArgs {
    /// The disk.
    file: PathBuf,
    /// First byte.
    #[arg(long, value_parser = bytes)]
    offset: u64,
    /// Bytes.
    #[arg(long, value_parser = bytes)]
    length: u64,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// The length of a range that ends with the disk unless told otherwise; refused when it lies outside.
pub fn range(disk: &Disk, offset: u64, length: Option<u64>) -> Result<u64, DiskError> {
    let size = disk.size();
    let len = length.unwrap_or(size.saturating_sub(offset));
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(len),
        _ => Err(DiskError::OutOfRange { offset, len, size }),
    }
}

/// Runs `read`.
pub fn run_read(args: &ReadArgs, ctx: &Context) -> Result<(), CliError> {
    let disk = Disk::open(&args.file, &args.parents.read_only()).about(&args.file)?;
    let length = range(&disk, args.offset, args.length).about(&args.file)?;
    if ctx.is_json() {
        let file = json!(args.file.to_string_lossy());
        ctx.print(|out| write!(out, "{{\"file\":{file},\"offset\":{},\"length\":{length},\"hex\":\"", args.offset))?;
    }
    let mut buffer = Buffer::new();
    let (mut at, end) = (args.offset, args.offset + length);
    while at < end {
        let bytes = buffer.first((end - at).min(CHUNK as u64) as usize);
        disk.read_at(bytes, at).about(&args.file)?;
        let reader_is_there = if ctx.is_json() { ctx.write_out(&hex(bytes))? } else { ctx.write_out(bytes)? };
        if !reader_is_there {
            return Ok(());
        }
        at += bytes.len() as u64;
    }
    if ctx.is_json() { ctx.print(|out| writeln!(out, "\"}}")) } else { Ok(()) }
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

/// Runs `write`.
pub fn run_write(args: &WriteArgs, ctx: &Context) -> Result<(), CliError> {
    let disk = sealed::open_writable(&args.file, &args.parents)?;
    range(&disk, args.offset, Some(0)).about(&args.file)?;
    let copied = copy_in(&disk, args);
    // What was written before something went wrong stays, and stays whole.
    disk.flush().about(&args.file)?;
    let written = copied.as_ref().copied().unwrap_or(0);
    disk.close().about(&args.file)?;
    copied?;
    let answer = json!({ "file": args.file.to_string_lossy(), "offset": args.offset, "written": written });
    ctx.emit(&answer, |out| writeln!(out, "{}: {written} bytes written at {}", args.file.display(), args.offset))
}

fn copy_in(disk: &Disk, args: &WriteArgs) -> Result<u64, CliError> {
    let (mut buffer, mut input, mut at) = (Buffer::new(), std::io::stdin().lock(), args.offset);
    loop {
        // Chunks end at multiples of their size, so that all but the first and the last are whole sectors.
        let room = CHUNK - (at % CHUNK as u64) as usize;
        let got = fill(&mut input, buffer.first(room)).map_err(|e| {
            let e = CliError::from(e);
            CliError::new(e.kind(), format!("standard input: {e}"))
        })?;
        if got == 0 {
            return Ok(at - args.offset);
        }
        let (size, end) = (disk.size(), at + got as u64);
        let inside = size.min(end) - at;
        disk.write_at(&buffer.first(got)[..inside as usize], at).about(&args.file)?;
        if end > size {
            let message = format!("standard input goes on past the end of the disk; {} bytes fitted", size - args.offset);
            return Err(CliError::usage(message).about(&args.file));
        }
        at = end;
    }
}

fn fill(input: &mut impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match input.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Runs `trim`.
pub fn run_trim(args: &TrimArgs, ctx: &Context) -> Result<(), CliError> {
    let disk = sealed::open_writable(&args.file, &args.parents)?;
    disk.trim(args.offset, args.length).about(&args.file)?;
    disk.close().about(&args.file)?;
    let answer = json!({ "file": args.file.to_string_lossy(), "offset": args.offset, "length": args.length });
    ctx.emit(&answer, |out| writeln!(out, "{}: {} bytes at {} given up", args.file.display(), args.length, args.offset))
}

//! `digest`: what a disk holds, in 32 bytes.

use crate::args::{Format, ParentsArgs};
use crate::buffer::{Buffer, CHUNK, is_zero};
use crate::context::Context;
use crate::error::CliError;
use crate::source::{PIECE, Source};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Print the SHA-256 of the virtual content, parents included.
///
/// The sparse digest costs nothing for holes: SHA-256 over, for each 64-KiB piece that is not all zeros, in order, its offset
/// (u64 LE), its length (u32 LE) and its bytes, then the virtual size (u64 LE).
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk digest alice.vhdx --sparse")]
pub struct DigestArgs {
    /// The disk.
    file: PathBuf,
    /// Print the sparse digest instead.
    #[arg(long)]
    sparse: bool,
    /// What FILE is; its name does not matter here.
    #[arg(long, value_enum, default_value = "vhdx")]
    from: Format,
    #[command(flatten)]
    parents: ParentsArgs,
}

/// Runs the verb.
pub fn run(args: &DigestArgs, ctx: &Context) -> Result<(), CliError> {
    let source = Source::open(&args.file, args.from, &args.parents)?;
    let digest = if args.sparse { sparse(&source, ctx)? } else { full(&source, ctx)? };
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let answer = json!({
        "file": args.file.to_string_lossy(),
        "algorithm": if args.sparse { "sparse-sha256" } else { "sha256" },
        "digest": hex,
        "virtual_size": source.size(),
    });
    ctx.emit(&answer, |out| writeln!(out, "{hex}  {}", args.file.display()))
}

fn full(source: &Source, ctx: &Context) -> Result<[u8; 32], CliError> {
    let (mut hash, mut buffer, zeros) = (Sha256::new(), Buffer::new(), vec![0; CHUNK]);
    let mut at = 0;
    let bar = ctx.progress("hashing", source.size());
    let hash_hole = |hash: &mut Sha256, from: u64, to: u64| {
        let mut from = from;
        while from < to {
            let part = (to - from).min(CHUNK as u64);
            hash.update(&zeros[..part as usize]);
            from += part;
            bar.set_position(from);
        }
    };
    for chunk in source.chunks()? {
        let (offset, len) = chunk?;
        hash_hole(&mut hash, at, offset);
        let bytes = buffer.first(len);
        source.read(bytes, offset)?;
        hash.update(bytes);
        at = offset + len as u64;
        bar.set_position(at);
    }
    hash_hole(&mut hash, at, source.size());
    bar.finish_and_clear();
    Ok(hash.finalize().into())
}

fn sparse(source: &Source, ctx: &Context) -> Result<[u8; 32], CliError> {
    let (mut hash, mut buffer) = (Sha256::new(), Buffer::new());
    let bar = ctx.progress("hashing", source.size());
    for chunk in source.chunks()? {
        let (offset, len) = chunk?;
        let bytes = buffer.first(len);
        source.read(bytes, offset)?;
        for (piece, at) in bytes.chunks(PIECE as usize).zip((offset..).step_by(PIECE as usize)) {
            if !is_zero(piece) {
                hash.update(at.to_le_bytes());
                hash.update((piece.len() as u32).to_le_bytes());
                hash.update(piece);
            }
        }
        bar.set_position(offset);
    }
    bar.finish_and_clear();
    hash.update(source.size().to_le_bytes());
    Ok(hash.finalize().into())
}

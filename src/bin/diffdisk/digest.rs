//! `digest`: what a disk holds, in 32 bytes.

use crate::args::{Format, ParentsArgs};
use crate::context::{Bar, Context};
use crate::error::CliError;
use diffdisk::{Cancel, Content, Phase, Progress, ToolError, is_zero, walk};
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

/// Pieces of the sparse digest, in bytes.
const PIECE: usize = 64 << 10;
/// Zeros hashed at a time.
const ZEROS: usize = 1 << 20;

/// Runs the verb.
pub fn run(args: &DigestArgs, ctx: &Context) -> Result<(), CliError> {
    let (bar, cancel) = ctx.watch()?;
    let content = args.from.open(&args.file, &args.parents)?;
    let digest = if args.sparse { sparse(&content, &bar, &cancel)? } else { full(&content, &bar, &cancel)? };
    drop(bar);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let answer = json!({
        "file": args.file.to_string_lossy(),
        "algorithm": if args.sparse { "sparse-sha256" } else { "sha256" },
        "digest": hex,
        "virtual_size": content.size(),
    });
    ctx.emit(&answer, |out| writeln!(out, "{hex}  {}", args.file.display()))
}

fn full(content: &Content<'_>, bar: &Bar, cancel: &Cancel) -> Result<[u8; 32], ToolError> {
    let (mut hash, zeros) = (Sha256::new(), vec![0; ZEROS]);
    let mut done = 0;
    let fill_up = |hash: &mut Sha256, done: &mut u64, to: u64| {
        while *done < to {
            if cancel.is_cancelled() {
                return Err(ToolError::Cancelled);
            }
            let part = (to - *done).min(ZEROS as u64);
            hash.update(&zeros[..part as usize]);
            *done += part;
            bar.advance(*done);
        }
        Ok(())
    };
    walk(content, Phase::Digest, bar, cancel, |offset, bytes| {
        fill_up(&mut hash, &mut done, offset)?;
        hash.update(bytes);
        done = offset + bytes.len() as u64;
        Ok(())
    })?;
    fill_up(&mut hash, &mut done, content.size())?;
    Ok(hash.finalize().into())
}

fn sparse(content: &Content<'_>, bar: &Bar, cancel: &Cancel) -> Result<[u8; 32], ToolError> {
    let mut hash = Sha256::new();
    walk(content, Phase::Digest, bar, cancel, |offset, bytes| {
        for (piece, at) in bytes.chunks(PIECE).zip((offset..).step_by(PIECE)) {
            if !is_zero(piece) {
                hash.update(at.to_le_bytes());
                hash.update((piece.len() as u32).to_le_bytes());
                hash.update(piece);
            }
        }
        Ok(())
    })?;
    hash.update(content.size().to_le_bytes());
    Ok(hash.finalize().into())
}

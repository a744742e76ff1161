//! Reading a content from beginning to end, on the caller's thread: for digests and for pipes.

use super::buffer::{Buffer, CHUNK};
use super::content::Content;
use super::error::ToolError;
use crate::progress::{Cancel, Phase, Progress};
use std::io::Write;

/// Hands every stretch that may hold something other than zeros to `each`, in order: offset and bytes, at most 1 MiB at a time, cut at
/// multiples of 64 KiB (or the end). What is not handed on is zeros.
///
/// # Errors
/// `Storage` or `Disk` when reading fails; what `each` returns; `Cancelled`.
pub fn walk(
    content: &Content<'_>,
    phase: Phase,
    progress: &dyn Progress,
    cancel: &Cancel,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    const PIECE: u64 = 64 << 10;
    progress.phase(phase, Some(content.size()));
    let mut buffer = Buffer::new();
    for chunk in content.chunks(PIECE)? {
        if cancel.is_cancelled() {
            return Err(ToolError::Cancelled);
        }
        let (offset, len) = chunk?;
        let bytes = buffer.first(len);
        content.read_at(bytes, offset)?;
        each(offset, bytes)?;
        progress.advance(offset + len as u64);
    }
    progress.advance(content.size());
    Ok(())
}

/// Writes all bytes of a content to a pipe or whatever else only takes bytes in order, zeros included; `name` stands in errors.
///
/// # Errors
/// As [`walk`]; `Storage` when writing fails (kind `Io` with a broken pipe when the reader went away).
pub fn copy_out(content: &Content<'_>, out: &mut dyn Write, name: &str, progress: &dyn Progress, cancel: &Cancel) -> Result<(), ToolError> {
    use crate::storage::{Operation, StorageError};
    let failed = |at: u64, e| ToolError::Storage { path: name.into(), cause: StorageError::new(Operation::Write, at, e) };
    let zeros = vec![0; CHUNK];
    let mut done = 0;
    let fill_up = |out: &mut dyn Write, done: &mut u64, to: u64| -> Result<(), ToolError> {
        while *done < to {
            if cancel.is_cancelled() {
                return Err(ToolError::Cancelled);
            }
            let part = (to - *done).min(CHUNK as u64);
            out.write_all(&zeros[..part as usize]).map_err(|e| failed(*done, e))?;
            *done += part;
        }
        Ok(())
    };
    walk(content, Phase::Convert, progress, cancel, |offset, bytes| {
        fill_up(out, &mut done, offset)?;
        out.write_all(bytes).map_err(|e| failed(offset, e))?;
        done = offset + bytes.len() as u64;
        Ok(())
    })?;
    fill_up(out, &mut done, content.size())?;
    out.flush().map_err(|e| failed(content.size(), e))
}

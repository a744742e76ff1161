//! What the platform is asked, one name for each question: Windows.

use std::fs::{File, Metadata};
use std::io;
use std::os::windows::fs::{FileExt, MetadataExt};

pub(super) fn read_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    file.seek_read(buf, at)
}

pub(super) fn write_at(file: &File, buf: &[u8], at: u64) -> io::Result<usize> {
    file.seek_write(buf, at)
}

pub(super) fn allocated(metadata: &Metadata) -> u64 {
    metadata.file_size()
}

pub(super) fn punch(_file: &File, _at: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn is_local(_file: &File) -> bool {
    true
}

pub(super) fn overwrites_in_place(_file: &File) -> bool {
    false
}

pub(super) fn write_durable(_file: &File, _buf: &[u8], _at: u64) -> io::Result<bool> {
    Ok(false)
}

pub(super) fn appends(_file: &File) -> bool {
    false
}

pub(super) fn no_locks(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::Unsupported
}

pub(super) fn on_read_only_mount(_file: &File) -> bool {
    false
}

/// The answer to "where is the next data".
#[expect(dead_code, reason = "only one of the answers is ever given here")]
pub(super) enum NextData {
    Found(u64, u64),
    OnlyHoles,
    NoAnswer,
}

pub(super) fn next_data(_file: &File, _at: u64) -> io::Result<NextData> {
    Ok(NextData::NoAnswer)
}

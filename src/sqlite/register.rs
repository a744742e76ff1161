//! The one unsafe call: handing our callbacks to SQLite, once in a process.

use super::vfs::{Io, Vfs};
use crate::guid::Guid;
use crate::sync::OnceLock;

/// The name under which SQLite knows our VFS; `Err` says why it could not be registered.
pub(super) fn vfs_name() -> Result<&'static str, String> {
    static NAME: OnceLock<Result<String, String>> = OnceLock::new();
    NAME.get_or_init(register).as_deref().map_err(Clone::clone)
}

#[expect(unsafe_code, reason = "rsqlite-vfs leaves the threading rules of a registration to its caller; see the SAFETY comment")]
fn register() -> Result<String, String> {
    let name = format!("diffdisk-{}", Guid::random());
    // SAFETY: `Vfs` and `Io` override no callback, layout or version of rsqlite-vfs, so its own tables and ours agree by construction.
    // The application data is `()` and everything shared behind the callbacks (`vfs::VOLUMES`, volumes) is `Sync`, which the assertions in
    // `vfs.rs` hold; each open file is used by one connection at a time, as SQLite guarantees. The bundled SQLite is built
    // thread-safe. Nobody else can register this name: it is random, and `OnceLock` runs this once. Nothing is ever unregistered or freed.
    let registration = unsafe { rsqlite_vfs::register_vfs::<Io, Vfs>(&name, (), false) };
    registration.map_err(|e| e.to_string())?.into_raw();
    Ok(name)
}

//! A server for NBD, the network block device protocol: a disk for QEMU, libnbd, nbdfuse, the Linux kernel.
//!
//! ```
//! use diffdisk::export::nbd::{Export, NbdServer};
//! use diffdisk::{CreateOptions, Disk};
//! use std::sync::Arc;
//!
//! # let dir = tempfile::tempdir()?;
//! let disk = Arc::new(Disk::create(dir.path().join("app.vhdx"), &CreateOptions::dynamic(1 << 30))?);
//! let server = NbdServer::new()
//!     .export(Export::new("app", disk.clone()).description("an empty gigabyte"))
//!     .tcp("127.0.0.1:0")
//!     .spawn()?;
//! println!("nbdinfo {}", server.addresses()[0].uri("app"));
//! // ... until the last client has done its work; then:
//! server.stop()?;
//! Arc::into_inner(disk).expect("the server has let go of it").close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **What it speaks.** Fixed newstyle handshake with `EXPORT_NAME`, `GO`, `INFO`, `LIST`, `ABORT`, structured replies and metadata
//! contexts; `READ` (structured with holes left out, DF honoured), `WRITE`, `DISC`, `FLUSH`, `TRIM`, `CACHE`, `WRITE_ZEROES`
//! (NO_HOLE, FAST_ZERO), `BLOCK_STATUS` (REQ_ONE), FUA on everything. A flush covers all connections of all clients, so
//! multi-conn is advertised. The protocol is that of `doc/proto.md` of the NBD project; what it calls experimental (extended
//! headers, resizing) and TLS are refused as it prescribes.
//!
//! **Contexts.** `base:allocation` calls data 0, zeros that take space 2, holes 3; bytes that a clone inherits are data, as a
//! reader sees it. `diffdisk:depth` tells for each extent which layer of the chain it comes from: 0 the disk itself, 1 its parent,
//! and so on, [`DEPTH_NONE`](crate::export::DEPTH_NONE) for ranges that nobody ever wrote.
//!
//! **Whom it trusts.** The protocol knows no users. A unix socket is made with mode 0600; TCP is confined to loopback unless
//! [`NbdServer::allow_remote`] says otherwise, and even then every local user can connect. Clients may lie, stall or vanish: a
//! handshake has a deadline, options have a longest length, requests are checked against the size the client was told *and* the
//! size the device has now, memory per connection is bounded (`transmission` has the numbers), and a client that does not
//! read its replies blocks its own threads only.
//!
//! **What an agent must know.** A write is durable when a later flush, or its own FUA, was answered. [`NbdHandle::stop`] takes
//! no new requests, answers those received, and flushes every writable export; a server that dies takes with it what was not flushed,
//! like a disk that loses power. There are no threads but those this server starts: one that accepts, one per client, and up
//! to seven more for a client whose requests are slow.
//!
//! ```text
//! listen ──► server ──► handshake ──► transmission ──► BlockDevice
//!            one thread per client     │ one in the seat reads and answers, slow work leaves it
//!                                      desk: page-aligned payloads, one send for many replies
//! ```

mod desk;
mod error;
mod exports;
mod handshake;
mod listen;
mod pieces;
pub mod proto;
mod server;
mod stream;
mod transmission;

pub use error::NbdError;
pub use exports::Export;
pub use server::{NbdAddress, NbdHandle, NbdServer, NbdStopper};
pub use stream::ByteStream;

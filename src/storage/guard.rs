//! A mapped file that is cut short, or whose disk fails, gives an error instead of ending the process.
//!
//! Reading a page of a mapping that the kernel cannot fill raises SIGBUS in the reading thread. [`guard_mappings`] installs a
//! handler for it, once in a process and only when asked, because a signal's handler belongs to the program and not to a library. The
//! handler looks the address up among the mappings of this crate. If it is one of them, it marks that mapping as failed, lays a page
//! of zeros over the place, and returns: the copy goes on, ends, finds the mark, and is thrown away; the read is done again with
//! `pread`, which has error returns, and so are all later reads of that mapping. Any other address is passed on to the handler
//! that was there before, or to the system's, as if this one did not exist.
//!
//! What it costs where nothing fails is one load of the mark after each copy. What it cannot see: a file that is cut in the middle
//! of a page reads as zeros up to the end of that page, without any signal. Sealed files are not cut by anybody who asks for
//! locks; this is about everybody else.
//!
//! The handler only loads and stores atomics that never move and calls `mmap`, `sigaction` and what was there before it. It allocates
//! nothing and takes no lock.

#![expect(unsafe_code, reason = "installing a signal handler, and laying a page over a fault; see docs/design/0021-mapped-ancestors.md")]

use crate::sync::Ordering;
use crate::sync::process::{AtomicBool, AtomicUsize, OnceLock};
use std::io;

/// Mappings that can be guarded at a time. One more is not mapped at all, and read with `pread`.
const SLOTS: usize = 1024;

/// One guarded mapping.
struct Slot {
    taken: AtomicBool,
    /// `usize::MAX` while no mapping stands in it.
    start: AtomicUsize,
    end: AtomicUsize,
    failed: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot { taken: AtomicBool::new(false), start: AtomicUsize::new(usize::MAX), end: AtomicUsize::new(0), failed: AtomicBool::new(false) }
}; SLOTS];

/// Whether the handler is in place, or why not (an error number).
static INSTALLED: OnceLock<Result<Before, i32>> = OnceLock::new();

/// What handled the signal before, and the size of a page.
struct Before {
    action: libc::sigaction,
    page: usize,
}

/// From now on a mapped ancestor ([`OpenOptions::map_ancestors`](crate::OpenOptions::map_ancestors)) that is cut short by somebody, or
/// that its disk cannot read, is an error of the read that meets it, and not a SIGBUS that ends the process.
///
/// Installs a process-wide handler for SIGBUS that passes on whatever does not concern this crate. Mappings made before the call
/// stay unguarded. Once is enough; more often does no harm. To be called before the program installs a handler of its own, which
/// should pass on what it does not know, as this one does.
///
/// ```
/// # #[cfg(target_os = "linux")]
/// diffdisk::storage::guard_mappings()?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Whatever the system says.
pub fn guard_mappings() -> io::Result<()> {
    match INSTALLED.get_or_init(install) {
        Ok(_) => Ok(()),
        Err(errno) => Err(io::Error::from_raw_os_error(*errno)),
    }
}

fn is_installed() -> bool {
    matches!(INSTALLED.get(), Some(Ok(_)))
}

fn install() -> Result<Before, i32> {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: `sysconf` takes a number and touches no memory of ours.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).map_err(|_| errno())?;
    // SAFETY: a `sigaction` is plain data of the C library for which all zeros are a value.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with a null action nothing changes; `before` is ours and large enough.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) } != 0 {
        return Err(errno());
    }
    let mut ours = before;
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    ours.sa_sigaction = handler as *const () as libc::sighandler_t;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, lives for ever, and does only what a handler may (see the
    // module). The old action was read above and is passed on to from the handler; between the two calls nobody of ours faults on
    // a guarded mapping, because there is none before this returns.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) } != 0 {
        return Err(errno());
    }
    Ok(Before { action: before, page })
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(Ok(before)) = INSTALLED.get() else {
        // Between the installation and the note of it: nobody's mapping is guarded yet, so it is somebody else's fault.
        give_up(signal);
        return;
    };
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid `siginfo_t`; for SIGBUS it holds an address.
    let at = unsafe { (*info).si_addr() } as usize;
    if lay_zeros_over(at, before.page) {
        return;
    }
    let action = &before.action;
    if action.sa_sigaction == libc::SIG_DFL || action.sa_sigaction == libc::SIG_IGN {
        give_up(signal);
    } else if action.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: this is the handler that stood here, with the signature that its flag promises, and gets what it would have got.
        let handler = unsafe {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)>(action.sa_sigaction)
        };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, for a handler without SA_SIGINFO.
        let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(action.sa_sigaction) };
        handler(signal);
    }
}

/// Puts the system's handler in place. The access that failed is tried again on return, and ends the process as it would have.
fn give_up(signal: libc::c_int) {
    // SAFETY: a zeroed `sigaction` names the default handler; the call touches nothing else.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const default, std::ptr::null_mut());
    }
}

/// If the address is in a guarded mapping: marks it and makes the place readable.
fn lay_zeros_over(at: usize, page: usize) -> bool {
    for slot in &TABLE {
        // Acquire pairs with the Release in `Guard::new`. Looked at twice, so that a slot that changes hands meanwhile is not believed.
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
        if start > at || at >= end || slot.start.load(Ordering::Acquire) != start {
            continue;
        }
        // Before the zeros: whoever copies them finds the mark.
        slot.failed.store(true, Ordering::SeqCst);
        let place = at / page * page;
        // SAFETY: the page lies inside a mapping of ours (both begin on a page), which stays ours as long as the slot says so, and the
        // slot is cleared before the mapping goes. The thread that faulted is inside a copy out of it that borrows the mapping.
        // No Rust reference covers any byte of it. `errno` is put back, because the interrupted code may be about to read its own.
        return unsafe {
            let errno = *libc::__errno_location();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let got = libc::mmap(place as *mut libc::c_void, page, libc::PROT_READ, flags, -1, 0);
            *libc::__errno_location() = errno;
            got != libc::MAP_FAILED
        };
    }
    false
}

/// A mapping's place in the table. To be dropped before the mapping.
#[derive(Debug)]
pub(super) struct Guard(&'static Slot);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Guard {
    /// For `len` bytes mapped at `start`. `Ok(None)` where nobody asked for guards.
    ///
    /// # Errors
    /// Too many mappings are guarded already.
    pub(super) fn new(start: *const u8, len: usize) -> io::Result<Option<Self>> {
        if !is_installed() {
            return Ok(None);
        }
        let free = TABLE.iter().find(|slot| slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok());
        let slot = free.ok_or_else(|| io::Error::other("too many guarded mappings"))?;
        slot.failed.store(false, Ordering::Relaxed);
        slot.end.store(start.addr() + len, Ordering::Relaxed);
        slot.start.store(start.addr(), Ordering::Release);
        Ok(Some(Self(slot)))
    }

    /// Whether a part of the mapping could not be read, so that nothing copied out of it counts. Asked after the copy.
    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        // The mark is set before the zeros are laid down, by this thread or by another whose zeros this one saw.
        self.0.failed.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(usize::MAX, Ordering::Release);
        self.0.end.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

//! The read-only layers under a disk, shared by everybody in the process who stands on them.
//!
//! An [`Ancestor`] is one sealed layer and everything below it. It never changes while it is open (its file is locked against
//! writers), so all clones of one image share its file handle, its BAT and bitmap pages, and its *hop index*: one word for
//! every block, saying how many levels down the first layer is that holds anything of that block and, where that layer holds all
//! of it, where in its file. The word is found by walking once and never forgotten; from then on a chain of 32 costs what a chain
//! of 2 does, and most reads ask nobody but the index.
//!
//! A shorter layer hides what lies below it: past its end the disk is zeros, whatever a grandparent holds there.

use crate::disk::layer::{Answer, Layer};
use crate::format::PayloadState;
use crate::mapping::bat::MapError;
use crate::mapping::pages::PageMap;
use crate::storage::{self, StorageId};
use crate::sync::process::{AtomicU64, Mutex};
use crate::sync::{Arc, Ordering, Weak};
use crate::units::{FileOffset, MIB, VirtualOffset};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Most layers of a chain, the leaf included. Never above 255: a hop is one byte.
pub const MAX_CHAIN_DEPTH: usize = 250;

/// A word of the hop index: in its lowest byte [`UNKNOWN`], [`NOBODY`], or one more than the hop; [`WHOLE`]; above [`PLACE`], where
/// the granule starts in the file of a layer that holds all of it, which is a whole number of MiB.
const UNKNOWN: u64 = 0;
const NOBODY: u64 = 255;
const CODE: u64 = 255;
const WHOLE: u64 = 1 << 8;
const PLACE: u64 = !(MIB - 1);
/// Words in a page of the index.
const PER_PAGE: usize = 512;

/// Where the bytes of a stretch are, below the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `hop` levels below the ancestor that was asked, at this offset of that layer's file.
    Data { hop: usize, at: FileOffset },
    /// Zeros; `hop` names the layer that says so, `None` when nobody holds the block.
    Zero { hop: Option<usize> },
}

/// See the module.
pub(crate) struct Ancestor {
    pub(crate) layer: Arc<Layer>,
    /// This layer and the ones below it, nearest first.
    line: Box<[Arc<Layer>]>,
    /// The ancestors below this one, nearest first: `line[1..]`, each with an index of its own.
    below: Box<[Arc<Ancestor>]>,
    /// For each hop, how much of the disk is visible through it: the shortest layer on the way.
    visible: Box<[u64]>,
    /// log2 of the smallest block size in the line: what one word of the index covers.
    granule_shift: u32,
    hops: PageMap<[AtomicU64; PER_PAGE]>,
}

impl std::fmt::Debug for Ancestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ancestor").field("layer", &self.layer).field("depth", &self.line.len()).finish_non_exhaustive()
    }
}

impl Ancestor {
    /// `layer` standing on `below`.
    pub(crate) fn new(layer: Arc<Layer>, below: Option<&Arc<Ancestor>>) -> Self {
        let mut line = vec![Arc::clone(&layer)];
        let mut ancestors = Vec::new();
        let mut granule_shift = layer.geometry.block_shift();
        if let Some(next) = below {
            line.extend(next.line.iter().cloned());
            ancestors.push(Arc::clone(next));
            ancestors.extend(next.below.iter().cloned());
            granule_shift = granule_shift.min(next.granule_shift);
        }
        let visible = line
            .iter()
            .scan(u64::MAX, |least, layer| {
                *least = layer.geometry.size().min(*least);
                Some(*least)
            })
            .collect();
        let granules = layer.geometry.size().div_ceil(1 << granule_shift);
        Self {
            hops: PageMap::new(granules.div_ceil(PER_PAGE as u64)),
            layer,
            line: line.into(),
            below: ancestors.into(),
            visible,
            granule_shift,
        }
    }

    /// The layers of the line, nearest first.
    pub(crate) fn line(&self) -> &[Arc<Layer>] {
        &self.line
    }

    /// The line below this layer, if there is one.
    pub(crate) fn below(&self) -> Option<Arc<Ancestor>> {
        self.below.first().cloned()
    }

    /// What the layer `hops` levels down stands on; 0 asks for what this one stands on.
    pub(crate) fn beneath(&self, hops: usize) -> Option<&Arc<Ancestor>> {
        self.below.get(hops)
    }

    /// Where the bytes from `here` on are, and for how many of at most `max` bytes that holds.
    #[inline]
    pub(crate) fn locate(&self, here: VirtualOffset, max: u64) -> Result<(Place, u64), MapError> {
        let granule = here.get() >> self.granule_shift;
        if let Some(page) = self.hops.get(granule / PER_PAGE as u64) {
            let word = page[granule as usize % PER_PAGE].load(Ordering::Relaxed);
            if word & WHOLE != 0 {
                let size = 1 << self.granule_shift;
                let within = here.get() & (size - 1);
                let place = Place::Data { hop: (word & CODE) as usize - 1, at: FileOffset::new((word & PLACE) + within) };
                return Ok((place, max.min(size - within)));
            }
        }
        self.locate_by_walking(here, max)
    }

    fn locate_by_walking(&self, here: VirtualOffset, max: u64) -> Result<(Place, u64), MapError> {
        let mut node = self;
        let mut base = 0;
        let mut len = max;
        loop {
            let visible = node.visible[0];
            if here.get() >= visible {
                return Ok((Place::Zero { hop: None }, len));
            }
            let granule_end = ((here.get() >> node.granule_shift) + 1) << node.granule_shift;
            len = len.min(visible - here.get()).min(granule_end - here.get());
            let Some(hop) = node.hop(here)? else { return Ok((Place::Zero { hop: None }, len)) };
            let visible = node.visible[hop];
            if here.get() >= visible {
                return Ok((Place::Zero { hop: None }, len));
            }
            len = len.min(visible - here.get());
            let (answer, answered) = node.line[hop].answer(here, len)?;
            len = answered;
            match answer {
                Answer::Data(at) => return Ok((Place::Data { hop: base + hop, at }, len)),
                Answer::Zero => {
                    let says_so = node.line[hop].zero_owner(here)?.is_some();
                    return Ok((Place::Zero { hop: says_so.then_some(base + hop) }, len));
                }
                Answer::Parent => match node.below.get(hop) {
                    None => return Ok((Place::Zero { hop: None }, len)),
                    Some(next) => {
                        node = next;
                        base += hop + 1;
                    }
                },
            }
        }
    }

    /// How many levels down the first layer is that holds anything of the granule at `at`.
    #[inline]
    fn hop(&self, at: VirtualOffset) -> Result<Option<usize>, MapError> {
        let granule = at.get() >> self.granule_shift;
        // The closure cannot fail: the page starts out knowing nothing.
        let page = self.hops.get_or_load::<MapError>(granule / PER_PAGE as u64, || Ok([const { AtomicU64::new(UNKNOWN) }; PER_PAGE]))?;
        let cell = &page[granule as usize % PER_PAGE];
        // Relaxed: the value is a pure function of sealed files, so any thread that computes it computes the same.
        let mut word = cell.load(Ordering::Relaxed);
        if word == UNKNOWN {
            word = self.find_hop(granule)?;
            cell.store(word, Ordering::Relaxed);
        }
        Ok(if word == NOBODY { None } else { Some((word & CODE) as usize - 1) })
    }

    #[cold]
    fn find_hop(&self, granule: u64) -> Result<u64, MapError> {
        let start = VirtualOffset::new(granule << self.granule_shift);
        let end = start.get() + (1 << self.granule_shift);
        for (hop, layer) in self.line.iter().enumerate() {
            if start.get() >= self.visible[hop] {
                return Ok(NOBODY);
            }
            let code = hop as u64 + 1;
            match layer.payload(layer.geometry.block_of(start))? {
                PayloadState::NotPresent => {}
                // Blocks and granules start at whole MiB, in the disk and in the file.
                PayloadState::FullyPresent(home) if end <= self.visible[hop] => {
                    return Ok(home.at(layer.geometry.in_block(start)).get() | WHOLE | code);
                }
                _ => return Ok(code),
            }
            // Somebody may have walked from the next layer down: a savepoint that was just made stands on a line that is warm.
            let Some(next) = self.below.get(hop) else { continue };
            match next.known_hop(start) {
                UNKNOWN => {}
                NOBODY => return Ok(NOBODY),
                known => {
                    let code = code + (known & CODE);
                    // Its granules may be larger than ours, and what it sees may be hidden by a shorter layer above it.
                    let within = start.get() & ((1 << next.granule_shift) - 1);
                    let is_whole = known & WHOLE != 0 && end <= self.visible[code as usize - 1];
                    return Ok(if is_whole { ((known & PLACE) + within) | WHOLE | code } else { code });
                }
            }
        }
        Ok(NOBODY)
    }

    /// What the index has for the granule at `at`, as it is stored there.
    fn known_hop(&self, at: VirtualOffset) -> u64 {
        let granule = at.get() >> self.granule_shift;
        let page = self.hops.get(granule / PER_PAGE as u64);
        page.map_or(UNKNOWN, |page| page[granule as usize % PER_PAGE].load(Ordering::Relaxed))
    }

    /// Fills `buf` with what this line shows from `at` on.
    pub(crate) fn read(&self, buf: &mut [u8], at: VirtualOffset) -> Result<(), MapError> {
        let mut done = 0;
        while done < buf.len() {
            let here = VirtualOffset::new(at.get() + done as u64);
            let (place, len) = self.locate(here, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + len as usize];
            match place {
                Place::Data { hop, at } => storage::read_zero_extended(&*self.line[hop].file, part, at.get())?,
                Place::Zero { .. } => part.fill(0),
            }
            done += len as usize;
        }
        Ok(())
    }

    /// Whether nothing but zeros shows in the range, as far as the mappings tell.
    pub(crate) fn is_zero(&self, at: u64, len: u64) -> Result<bool, MapError> {
        let mut done = 0;
        while done < len {
            match self.locate(VirtualOffset::new(at + done), len - done)? {
                (Place::Data { .. }, _) => return Ok(false),
                (Place::Zero { .. }, part) => done += part,
            }
        }
        Ok(true)
    }
}

/// What makes two ancestors the same: the file, how it is read, and what it stands on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AncestorKey {
    pub(crate) file: StorageId,
    pub(crate) mapped: bool,
    /// Address of the ancestor below, which lives as long as the one above; 0 for none.
    below: usize,
}

static SHARED: LazyLock<Mutex<HashMap<AncestorKey, Weak<Ancestor>>>> = LazyLock::new(Mutex::default);

/// The ancestor for an opened layer, shared with whoever in the process has the same one open.
///
/// The layer's file is open and locked against writers, so as long as an equal ancestor is alive, it is the same content.
pub(crate) fn share(layer: Layer, mapped: bool, below: Option<&Arc<Ancestor>>) -> Arc<Ancestor> {
    let key = key(layer.file.id(), mapped, below);
    let mut shared = SHARED.lock();
    // The header is compared as well: a tool that ignores locks may have changed the file since the other one was opened.
    if let Some(found) = shared.get(&key).and_then(Weak::upgrade).filter(|found| found.layer.header == layer.header) {
        return found;
    }
    let ancestor = Arc::new(Ancestor::new(Arc::new(layer), below));
    shared.retain(|_, weak| weak.strong_count() > 0);
    shared.insert(key, Arc::downgrade(&ancestor));
    ancestor
}

fn key(file: StorageId, mapped: bool, below: Option<&Arc<Ancestor>>) -> AncestorKey {
    AncestorKey { file, mapped, below: below.map_or(0, |ancestor| Arc::as_ptr(ancestor) as usize) }
}

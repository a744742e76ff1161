//! From a trace to the images a power cut may leave.
//!
//! A [`CrashWalk`] moves through the trace and keeps two things: what is durable at its cut, and the atoms that may or may not
//! have landed. A [`Choice`] says which did, and under which of the harsh rules; [`CrashWalk::image`] builds it by applying the
//! atoms kept, in order, to a clone of the durable state. Neighbouring atoms of one write are applied together, and whole pages of
//! a write are made once and shared by all images that hold them.

use super::choice::{BeyondEnd, Choice, Class, Flight, FreshSpace};
use super::enumerate::{Limits, Rng, for_each};
use super::sparse::{PAGE, Page};
use super::{Event, FileId, SimStorage, SimWorld, Snapshot, Trace, World, junk_page};
use crate::storage::SyncSite;
use crate::sync::Arc;
use std::collections::BTreeSet;
use std::fmt;

/// The bytes of one write.
#[derive(Debug)]
struct Written {
    at: u64,
    bytes: Arc<[u8]>,
    /// Where the whole pages of the file begin in the bytes, and those pages.
    first_page: usize,
    pages: Vec<Arc<Page>>,
}

impl Written {
    fn new(at: u64, bytes: &Arc<[u8]>) -> Self {
        let first_page = (at.next_multiple_of(PAGE as u64) - at) as usize;
        let whole = bytes.get(first_page..).unwrap_or_default().as_chunks().0;
        Self { at, bytes: Arc::clone(bytes), first_page, pages: whole.iter().map(|page| Arc::new(Page::new(*page))).collect() }
    }

    /// The pages that lie wholly between two places in the bytes, and where they begin and end there.
    fn pages_between(&self, from: usize, to: usize) -> (&[Arc<Page>], usize, usize) {
        let first = from.saturating_sub(self.first_page).div_ceil(PAGE);
        let end = (to.saturating_sub(self.first_page) / PAGE).max(first);
        match self.pages.get(first..end) {
            Some(pages) if !pages.is_empty() => (pages, self.first_page + first * PAGE, self.first_page + end * PAGE),
            _ => (&[], to, to),
        }
    }
}

#[derive(Clone, Debug)]
enum What {
    Bytes { write: Arc<Written>, from: usize, to: usize },
    Lengthen(u64),
    SetLen(u64),
    Punch { at: u64, len: u64 },
    Create(String),
    Rename(String, String),
    Link(String, String),
    Unlink(String),
}

/// The smallest thing that lands or does not.
#[derive(Clone, Debug)]
pub struct Atom {
    file: FileId,
    event: usize,
    class: Class,
    what: What,
}

impl Atom {
    /// The index in the trace of the event this is part of.
    pub fn event(&self) -> usize {
        self.event
    }

    /// What sort of bytes it touches.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl Atom {
    /// Whether it is bytes, all of them between two places. A piece that only touches the range is not covered by it, and neither is
    /// what happened to the length of the file: the engine writes durably in whole pieces, inside the file.
    fn lies_in(&self, start: u64, end: u64) -> bool {
        match &self.what {
            What::Bytes { write, from, to } => start <= write.at + *from as u64 && write.at + *to as u64 <= end,
            _ => false,
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {} file {} {:?} ", self.event, self.file.0, self.class)?;
        match &self.what {
            What::Bytes { write, from, to } => write!(f, "{} bytes at {:#x}", to - from, write.at + *from as u64),
            What::Lengthen(to) => write!(f, "lengthen to {to:#x}"),
            What::SetLen(to) => write!(f, "set length {to:#x}"),
            What::Punch { at, len } => write!(f, "punch {len} at {at:#x}"),
            What::Create(name) => write!(f, "create {name}"),
            What::Rename(from, to) => write!(f, "rename {from} to {to}"),
            What::Link(name, second) => write!(f, "link {name} to {second}"),
            What::Unlink(name) => write!(f, "unlink {name}"),
        }
    }
}

/// How to read a trace.
#[derive(Clone)]
pub struct CrashOptions {
    /// Bytes of a write that land together: 512, or 4096 for media with large sectors.
    pub piece: u64,
    /// Barriers that are treated as if they did nothing, to see whether anybody notices.
    pub no_op: BTreeSet<SyncSite>,
    /// Whether syncs of the directory are treated as if they did nothing.
    pub no_op_dir: bool,
    /// Whether to build the harsh images of rules 3 and 4 too.
    pub harsh: bool,
    /// How many images to build where there are too many atoms for all.
    pub limits: Limits,
    /// What sort of bytes lie at this place of this file. Headers are recognised without it.
    pub classify: Arc<dyn Fn(FileId, u64) -> Class + Send + Sync>,
}

impl Default for CrashOptions {
    fn default() -> Self {
        Self {
            piece: 512,
            no_op: BTreeSet::new(),
            no_op_dir: false,
            harsh: false,
            limits: Limits::default(),
            classify: Arc::new(|_, _| Class::Payload),
        }
    }
}

impl fmt::Debug for CrashOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashOptions")
            .field("piece", &self.piece)
            .field("no_op", &self.no_op)
            .field("harsh", &self.harsh)
            .finish_non_exhaustive()
    }
}

/// A place in a trace: what is durable there, and what is pending.
#[derive(Clone, Debug)]
pub struct CrashWalk<'t> {
    trace: &'t Trace,
    options: CrashOptions,
    next: usize,
    durable: Snapshot,
    /// What reads at this cut see: everything.
    live: Snapshot,
    pending: Vec<Atom>,
    junk: Arc<Page>,
    rng: Rng,
    /// Choices come to so far, taken or not.
    ordinal: u64,
}

impl<'t> CrashWalk<'t> {
    /// At the beginning of the trace.
    pub fn new(trace: &'t Trace, options: CrashOptions) -> Self {
        Self {
            trace,
            options,
            next: 0,
            durable: trace.start.clone(),
            live: trace.start.clone(),
            pending: Vec::new(),
            junk: junk_page(trace.seed),
            rng: Rng::new(trace.seed),
            ordinal: 0,
        }
    }

    /// The cut: how many events have happened.
    pub fn cut(&self) -> usize {
        self.next
    }

    /// What may or may not have landed at this cut.
    pub fn pending(&self) -> &[Atom] {
        &self.pending
    }

    /// Moves over one event and returns it; `None` at the end.
    pub fn step(&mut self) -> Option<&'t Event> {
        let event = self.trace.events.get(self.next)?;
        let index = self.next;
        self.next += 1;
        match event {
            Event::Write { file, at, bytes } => self.write(index, *file, *at, bytes),
            Event::SetLen { file, len } => {
                self.live.file_mut(*file).set_len(*len);
                self.push(index, *file, Class::Length, What::SetLen(*len));
            }
            Event::Punch { file, at, len } => {
                let class = self.class(*file, *at);
                self.live.file_mut(*file).zero(*at, *len);
                self.push(index, *file, class, What::Punch { at: *at, len: *len });
            }
            Event::SyncEnd { file, site, begin, range } if !self.options.no_op.contains(site) => {
                self.settle(|atom| {
                    let covered = range.is_none_or(|(start, end)| atom.lies_in(start, end));
                    atom.file == *file && atom.event < *begin && atom.class != Class::Directory && covered
                });
            }
            Event::Create { file, name } => {
                self.live.file_mut(*file);
                self.push(index, *file, Class::Directory, What::Create(name.clone()));
            }
            Event::Rename { from, to } => self.push(index, FileId(usize::MAX), Class::Directory, What::Rename(from.clone(), to.clone())),
            Event::Link { name, second } => {
                self.push(index, FileId(usize::MAX), Class::Directory, What::Link(name.clone(), second.clone()));
            }
            Event::Unlink { name } => self.push(index, FileId(usize::MAX), Class::Directory, What::Unlink(name.clone())),
            Event::SyncDir if !self.options.no_op_dir => self.settle(|atom| atom.class == Class::Directory),
            Event::SyncEnd { .. } | Event::SyncDir | Event::SyncBegin { .. } | Event::Mark(_) => {}
        }
        Some(event)
    }

    /// Moves to a cut that lies ahead.
    pub fn go_to(&mut self, cut: usize) {
        while self.next < cut && self.step().is_some() {}
    }

    fn push(&mut self, event: usize, file: FileId, class: Class, what: What) {
        self.pending.push(Atom { file, event, class, what });
    }

    fn class(&self, file: FileId, at: u64) -> Class {
        match at {
            0x10000..0x20000 => Class::HeaderA,
            0x20000..0x30000 => Class::HeaderB,
            _ => (self.options.classify)(file, at),
        }
    }

    fn write(&mut self, event: usize, file: FileId, at: u64, bytes: &Arc<[u8]>) {
        let end = at + bytes.len() as u64;
        let live = self.live.file_mut(file);
        let longer = end > live.len();
        live.write(bytes, at);
        // A piece that is written in part goes out whole, with what the cache holds around it: an older write to it that is
        // still pending cannot be lost under a younger one.
        let piece = self.options.piece;
        let (at, end_of_pieces) = (at - at % piece, end.next_multiple_of(piece).min(live.len()));
        let mut bytes = Arc::clone(bytes);
        if end_of_pieces - at > bytes.len() as u64 {
            let mut whole = vec![0; (end_of_pieces - at) as usize];
            live.read(&mut whole, at);
            bytes = whole.into();
        }
        if longer {
            self.push(event, file, Class::Length, What::Lengthen(end));
        }
        let end = end_of_pieces;
        let write = Arc::new(Written::new(at, &bytes));
        let mut pos = at;
        while pos < end {
            let stop = (pos - pos % self.options.piece + self.options.piece).min(end);
            let (from, to) = ((pos - at) as usize, (stop - at) as usize);
            let class = self.class(file, pos);
            self.push(event, file, class, What::Bytes { write: Arc::clone(&write), from, to });
            pos = stop;
        }
    }

    /// Makes the atoms that a sync covers durable.
    fn settle(&mut self, covered: impl Fn(&Atom) -> bool) {
        let mut builder = Builder { now: &mut self.durable, beyond: BeyondEnd::Extend, junk: None };
        let (settled, pending) = std::mem::take(&mut self.pending).into_iter().partition(covered);
        self.pending = pending;
        builder.apply_all(&settled, |_| true);
    }

    /// Builds the image that a choice names.
    ///
    /// # Panics
    /// When the choice was made at another cut.
    pub fn image(&self, choice: &Choice) -> CrashImage {
        assert_eq!(choice.kept.len(), self.pending.len(), "this choice belongs to another cut");
        let mut snapshot = self.durable.clone();
        let junk = (choice.space == FreshSpace::Junk).then_some(&self.junk);
        let mut builder = Builder { now: &mut snapshot, beyond: choice.beyond, junk };
        match choice.flight {
            None => builder.apply_all(&self.pending, |i| choice.kept[i]),
            Some(torn) => {
                for (i, atom) in self.pending.iter().enumerate() {
                    if torn.atom == i || torn.twin == Some(i) {
                        builder.tear(atom, torn.how, &self.junk);
                    } else if choice.kept[i] {
                        builder.apply(atom);
                    }
                }
            }
        }
        let hash = snapshot.hash();
        CrashImage { snapshot, hash, seed: self.trace.seed, durable_writes: self.trace.durable_writes }
    }

    /// Builds the images of this cut by the rules of enumeration, until `visit` returns false: all subsets of few atoms,
    /// telling ones of many, of these the share that [`Limits::share`] asks for. Different choices may lead to equal images;
    /// compare [`CrashImage::hash`].
    pub fn for_each_choice(&mut self, visit: &mut dyn FnMut(&Choice, CrashImage) -> bool) {
        let classes: Vec<Class> = self.pending.iter().map(|atom| atom.class).collect();
        let mut rng = self.rng.clone();
        let lengthens = classes.contains(&Class::Length);
        let tearable = |i: usize| matches!(self.pending[i].what, What::Bytes { .. }) && !matches!(classes[i], Class::Payload);
        let torn: Vec<usize> = if self.options.harsh { (0..classes.len()).filter(|&i| tearable(i)).collect() } else { Vec::new() };
        let (share, mut ordinal) = (self.options.limits.share, self.ordinal);
        let mut consider = |choice: &Choice| {
            // Nothing and everything belong to the first share, so that one walk through it sees both at every cut.
            let plain =
                choice.flight.is_none() && choice.beyond == BeyondEnd::Vanish && choice.kept.iter().all(|&kept| kept == choice.kept[0]);
            ordinal += u64::from(!plain);
            let taken = if plain { share.takes(0) } else { share.takes(ordinal) };
            !taken || visit(choice, self.image(choice))
        };
        for_each(&classes, &torn, &self.options.limits, &mut rng, &mut |kept, flight| {
            let mut choice = Choice { kept: kept.to_vec(), beyond: BeyondEnd::Vanish, space: FreshSpace::Zeros, flight };
            let mut go = consider(&choice);
            if lengthens && go {
                choice.beyond = BeyondEnd::Extend;
                go = consider(&choice);
            }
            if lengthens && self.options.harsh && go {
                choice.space = FreshSpace::Junk;
                go = consider(&choice);
            }
            go
        });
        (self.rng, self.ordinal) = (rng, ordinal);
    }
}

/// Applies atoms to a snapshot under one set of rules.
struct Builder<'a> {
    now: &'a mut Snapshot,
    beyond: BeyondEnd,
    junk: Option<&'a Arc<Page>>,
}

impl Builder<'_> {
    fn lengthen(&mut self, file: FileId, to: u64) {
        let file = self.now.file_mut(file);
        let len = file.len();
        if to > len {
            file.set_len(to);
            if let Some(junk) = self.junk {
                file.fill(len, to, junk);
            }
        }
    }

    /// Applies those that `kept` names, neighbouring ones of one write together.
    fn apply_all(&mut self, atoms: &[Atom], kept: impl Fn(usize) -> bool) {
        let mut i = 0;
        while i < atoms.len() {
            if !kept(i) {
                i += 1;
                continue;
            }
            let What::Bytes { write, from, to } = &atoms[i].what else {
                self.apply(&atoms[i]);
                i += 1;
                continue;
            };
            let (first, mut end) = (i, *to);
            i += 1;
            while let Some(Atom { what: What::Bytes { write: next, from, to }, .. }) = atoms.get(i)
                && Arc::ptr_eq(next, write)
                && *from == end
                && kept(i)
            {
                end = *to;
                i += 1;
            }
            self.put(atoms[first].file, write, *from, end);
        }
    }

    fn apply(&mut self, atom: &Atom) {
        match &atom.what {
            What::Bytes { write, from, to } => self.put(atom.file, write, *from, *to),
            What::Lengthen(to) => self.lengthen(atom.file, *to),
            What::SetLen(to) if *to < self.now.file_mut(atom.file).len() => self.now.file_mut(atom.file).set_len(*to),
            What::SetLen(to) => self.lengthen(atom.file, *to),
            What::Punch { at, len } => self.now.file_mut(atom.file).zero(*at, *len),
            What::Create(name) => {
                self.now.file_mut(atom.file);
                self.now.names.insert(name.clone(), atom.file);
            }
            What::Rename(from, to) => {
                if let Some(file) = self.now.names.remove(from) {
                    self.now.names.insert(to.clone(), file);
                }
            }
            What::Link(name, second) => {
                if let Some(&file) = self.now.names.get(name) {
                    self.now.names.insert(second.clone(), file);
                }
            }
            What::Unlink(name) => {
                self.now.names.remove(name);
            }
        }
    }

    /// How many of `len` bytes at `at` land, by the rule for what lies beyond the end.
    fn landing(&mut self, file: FileId, at: u64, len: usize) -> usize {
        match self.beyond {
            BeyondEnd::Extend => {
                self.lengthen(file, at + len as u64);
                len
            }
            BeyondEnd::Vanish => self.now.file_mut(file).len().saturating_sub(at).min(len as u64) as usize,
        }
    }

    fn put(&mut self, file: FileId, write: &Written, from: usize, to: usize) {
        let to = from + self.landing(file, write.at + from as u64, to - from);
        let (pages, first, end) = write.pages_between(from, to);
        let now = self.now.file_mut(file);
        for (from, to) in [(from, first), (end, to)] {
            if from < to {
                now.write(&write.bytes[from..to], write.at + from as u64);
            }
        }
        if !pages.is_empty() {
            now.share(pages, write.at + first as u64);
        }
    }

    fn tear(&mut self, atom: &Atom, how: Flight, junk: &Arc<Page>) {
        if let What::Bytes { write, from, to } = &atom.what {
            let at = write.at + *from as u64;
            match how {
                Flight::Junk => {
                    let landed = self.landing(atom.file, at, to - from);
                    if landed > 0 {
                        self.now.file_mut(atom.file).write(&junk.bytes()[..landed], at);
                    }
                }
                Flight::Unreadable => self.now.file_mut(atom.file).spoil(at, (to - from) as u64),
            }
        }
    }
}

/// What a power cut left.
#[derive(Clone, Debug)]
pub struct CrashImage {
    snapshot: Snapshot,
    hash: u128,
    seed: u64,
    durable_writes: bool,
}

impl CrashImage {
    /// Names this content: equal images have equal hashes.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// The world after the power is back. With `recording`, what the recovery does can be crashed in its turn.
    pub fn boot(&self, recording: bool) -> SimWorld {
        SimWorld::from_snapshot(self.snapshot.clone(), self.seed ^ self.hash as u64, self.durable_writes, recording)
    }

    /// One file of [`CrashImage::boot`] without recording, for the common case of one file.
    pub fn file(&self, file: FileId) -> Option<Arc<SimStorage>> {
        let SimWorld { world } = self.boot(false);
        (file.0 < self.snapshot.files.len()).then(|| Arc::new(SimStorage { world: Arc::<World>::clone(&world), file }))
    }
}

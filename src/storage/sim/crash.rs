//! From a trace to the images a power cut may leave.
//!
//! A [`CrashWalk`] moves through the trace and keeps two things: what is durable at its cut, and the atoms that may or may not
//! have landed. A [`Choice`] says which did, and under which of the harsh rules; [`CrashWalk::image`] builds it by applying the
//! atoms kept, in order, to a clone of the durable state.

use super::enumerate::{Limits, Rng, for_each};
use super::{Event, FileId, SimStorage, SimWorld, Snapshot, Trace, World, junk_page, sparse::Page};
use crate::storage::SyncSite;
use crate::sync::Arc;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What sort of bytes an atom touches. All-or-nothing choices are made for each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the words of the format")]
pub enum Class {
    HeaderA,
    HeaderB,
    Log,
    Bat,
    Bitmap,
    Metadata,
    Payload,
    Length,
    Directory,
}

/// What happens to a piece that landed beyond the end of a file whose lengthening was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BeyondEnd {
    /// It is gone.
    #[default]
    Vanish,
    /// It lengthens the file; the gap reads as fresh space does.
    Extend,
}

/// How space reads that lengthened a file and was never synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FreshSpace {
    /// As zeros.
    #[default]
    Zeros,
    /// As something else.
    Junk,
}

/// What became of the one piece that was being written when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flight {
    /// It reads as junk.
    Junk,
    /// It does not read at all.
    Unreadable,
}

/// One legal outcome of a power cut.
#[derive(Clone, PartialEq, Eq)]
pub struct Choice {
    /// For each atom pending at the cut, whether it landed.
    pub kept: Vec<bool>,
    /// Where pieces beyond a lost end go.
    pub beyond: BeyondEnd,
    /// How unsynced new space reads.
    pub space: FreshSpace,
    /// The atom in flight, if this choice tears one.
    pub flight: Option<(usize, Flight)>,
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.iter().filter(|&&kept| kept).count();
        write!(f, "{kept} of {} atoms landed [", self.kept.len())?;
        let bits: String = self.kept.iter().map(|&kept| if kept { '1' } else { '.' }).collect();
        write!(f, "{bits}], beyond the end: {:?}, fresh space: {:?}, in flight: {:?}", self.beyond, self.space, self.flight)
    }
}

#[derive(Clone, Debug)]
enum What {
    Bytes { at: u64, bytes: Arc<[u8]>, from: usize, to: usize },
    Lengthen(u64),
    SetLen(u64),
    Punch { at: u64, len: u64 },
    Create(String),
    Rename(String, String),
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

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {} file {} {:?} ", self.event, self.file.0, self.class)?;
        match &self.what {
            What::Bytes { at, from, to, .. } => write!(f, "{} bytes at {at:#x}", to - from),
            What::Lengthen(to) => write!(f, "lengthen to {to:#x}"),
            What::SetLen(to) => write!(f, "set length {to:#x}"),
            What::Punch { at, len } => write!(f, "punch {len} at {at:#x}"),
            What::Create(name) => write!(f, "create {name}"),
            What::Rename(from, to) => write!(f, "rename {from} to {to}"),
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
#[derive(Debug)]
pub struct CrashWalk<'t> {
    trace: &'t Trace,
    options: CrashOptions,
    next: usize,
    durable: Snapshot,
    durable_hash: u128,
    live_len: BTreeMap<FileId, u64>,
    pending: Vec<Atom>,
    junk: Arc<Page>,
    rng: Rng,
}

impl<'t> CrashWalk<'t> {
    /// At the beginning of the trace.
    pub fn new(trace: &'t Trace, options: CrashOptions) -> Self {
        let live_len = trace.start.files.iter().enumerate().map(|(i, file)| (FileId(i), file.len())).collect();
        Self {
            trace,
            options,
            next: 0,
            durable: trace.start.clone(),
            durable_hash: trace.start_hash,
            live_len,
            pending: Vec::new(),
            junk: junk_page(trace.seed),
            rng: Rng::new(trace.seed),
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
                self.live_len.insert(*file, *len);
                self.push(index, *file, Class::Length, What::SetLen(*len));
            }
            Event::Punch { file, at, len } => {
                let class = self.class(*file, *at);
                self.push(index, *file, class, What::Punch { at: *at, len: *len });
            }
            Event::SyncEnd { file, site, begin } if !self.options.no_op.contains(site) => {
                self.settle(|atom| atom.file == *file && atom.event < *begin && atom.class != Class::Directory);
            }
            Event::Create { file, name } => {
                self.live_len.insert(*file, 0);
                self.push(index, *file, Class::Directory, What::Create(name.clone()));
            }
            Event::Rename { from, to } => self.push(index, FileId(usize::MAX), Class::Directory, What::Rename(from.clone(), to.clone())),
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
        let live = self.live_len.entry(file).or_default();
        if end > *live {
            *live = end;
            self.push(event, file, Class::Length, What::Lengthen(end));
        }
        let mut pos = at;
        while pos < end {
            let stop = (pos - pos % self.options.piece + self.options.piece).min(end);
            let (from, to) = ((pos - at) as usize, (stop - at) as usize);
            let class = self.class(file, pos);
            self.push(event, file, class, What::Bytes { at: pos, bytes: Arc::clone(bytes), from, to });
            pos = stop;
        }
    }

    /// Makes the atoms that a sync covers durable.
    fn settle(&mut self, covered: impl Fn(&Atom) -> bool) {
        let before = self.durable.clone();
        let mut builder = Builder { now: &mut self.durable, beyond: BeyondEnd::Extend, junk: None };
        self.pending.retain(|atom| {
            let covered = covered(atom);
            if covered {
                builder.apply(atom);
            }
            !covered
        });
        self.durable_hash = self.durable.hash_from(&before, self.durable_hash);
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
        for (i, atom) in self.pending.iter().enumerate() {
            match choice.flight {
                Some((torn, how)) if torn == i => builder.tear(atom, how, &self.junk),
                _ if choice.kept[i] => builder.apply(atom),
                _ => {}
            }
        }
        let hash = snapshot.hash_from(&self.durable, self.durable_hash);
        CrashImage { snapshot, hash, seed: self.trace.seed }
    }

    /// Builds the images of this cut by the rules of enumeration, until `visit` returns false: all subsets of few atoms,
    /// telling ones of many. Different choices may lead to equal images; compare [`CrashImage::hash`].
    pub fn for_each_choice(&mut self, visit: &mut dyn FnMut(&Choice, CrashImage) -> bool) {
        let classes: Vec<Class> = self.pending.iter().map(|atom| atom.class).collect();
        let mut rng = self.rng.clone();
        let lengthens = classes.contains(&Class::Length);
        let tearable = |i: usize| matches!(self.pending[i].what, What::Bytes { .. }) && !matches!(classes[i], Class::Payload);
        let torn: Vec<usize> = if self.options.harsh { (0..classes.len()).filter(|&i| tearable(i)).collect() } else { Vec::new() };
        for_each(&classes, &torn, &self.options.limits, &mut rng, &mut |kept, flight| {
            let mut choice = Choice { kept: kept.to_vec(), beyond: BeyondEnd::Vanish, space: FreshSpace::Zeros, flight };
            let mut go = visit(&choice, self.image(&choice));
            if lengthens && go {
                choice.beyond = BeyondEnd::Extend;
                go = visit(&choice, self.image(&choice));
            }
            if lengthens && self.options.harsh && go {
                choice.space = FreshSpace::Junk;
                go = visit(&choice, self.image(&choice));
            }
            go
        });
        self.rng = rng;
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

    fn apply(&mut self, atom: &Atom) {
        match &atom.what {
            What::Bytes { at, bytes, from, to } => self.put(atom.file, *at, &bytes[*from..*to]),
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
            What::Unlink(name) => {
                self.now.names.remove(name);
            }
        }
    }

    fn put(&mut self, file: FileId, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        let len = self.now.file_mut(file).len();
        let landed = match self.beyond {
            BeyondEnd::Extend => {
                self.lengthen(file, end);
                bytes.len()
            }
            BeyondEnd::Vanish => len.saturating_sub(at).min(bytes.len() as u64) as usize,
        };
        if landed > 0 {
            self.now.file_mut(file).write(&bytes[..landed], at);
        }
    }

    fn tear(&mut self, atom: &Atom, how: Flight, junk: &Arc<Page>) {
        if let What::Bytes { at, from, to, .. } = &atom.what {
            match how {
                Flight::Junk => self.put(atom.file, *at, &junk[..to - from]),
                Flight::Unreadable => self.now.file_mut(atom.file).spoil(*at, (to - from) as u64),
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
}

impl CrashImage {
    /// Names this content: equal images have equal hashes.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// The world after the power is back. With `recording`, what the recovery does can be crashed in its turn.
    pub fn boot(&self, recording: bool) -> SimWorld {
        SimWorld::from_snapshot(self.snapshot.clone(), Some(self.hash), self.seed ^ self.hash as u64, recording)
    }

    /// One file of [`CrashImage::boot`] without recording, for the common case of one file.
    pub fn file(&self, file: FileId) -> Option<Arc<SimStorage>> {
        let SimWorld { world } = self.boot(false);
        (file.0 < self.snapshot.files.len()).then(|| Arc::new(SimStorage { world: Arc::<World>::clone(&world), file }))
    }
}

//! Several threads on one list of chunks.
//!
//! Chunks are handed out in order under one lock, which is held for as long as it takes to find the next one. Whatever order they are
//! finished in, the answer is that of one worker: of all that happened the thing that lies first on the disk counts, a find as well as
//! an error, because everything before it was handed out before it and is finished before the crew goes home. Memory is a few chunks
//! for each worker. One worker works on the caller's thread, in order, and no thread is started.

use super::buffer::CHUNK;
use super::chunks::Chunks;
use super::error::ToolError;
use crate::progress::{Cancel, Phase, Progress};
use crate::sync::Mutex;
use std::ops::ControlFlow;

/// More workers than this only wait for each other.
const MOST: usize = 16;

/// Who works, who watches, and who may stop it.
#[derive(Clone, Copy)]
pub(crate) struct Crew<'a> {
    /// 0: as many as there are processors.
    pub(crate) workers: usize,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

struct Queue<'a> {
    chunks: Chunks<'a>,
    /// How far chunks were handed out.
    front: u64,
    closed: bool,
}

/// What put an end to the work, and where.
type Ending<B> = Option<(u64, Result<B, ToolError>)>;

impl Crew<'_> {
    fn workers(&self, bytes: u64) -> usize {
        let wanted = match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            wanted => wanted,
        };
        // No more than there are chunks.
        wanted.min(MOST).min(usize::try_from(bytes.div_ceil(CHUNK as u64)).unwrap_or(MOST)).max(1)
    }

    /// `Cancelled` when somebody asked for a stop.
    pub(crate) fn check(&self) -> Result<(), ToolError> {
        if self.cancel.is_cancelled() { Err(ToolError::Cancelled) } else { Ok(()) }
    }

    /// Lets the workers do `each` chunk of `total` bytes, each worker with a state of its own. Returns the states and, if one broke
    /// off, the break that lies first on the disk.
    pub(crate) fn work<S: Send, B: Send>(
        &self,
        phase: Phase,
        total: u64,
        chunks: Chunks<'_>,
        state: impl Fn() -> S + Sync,
        each: impl Fn(&mut S, u64, usize) -> Result<ControlFlow<B>, ToolError> + Sync,
    ) -> Result<(Vec<S>, Option<B>), ToolError> {
        self.progress.phase(phase, Some(total));
        let queue = Mutex::new(Queue { chunks, front: 0, closed: false });
        let ending: Mutex<Ending<B>> = Mutex::new(None);
        let worker = || {
            let mut state = state();
            while let Some((offset, next)) = self.take(&queue) {
                let outcome = next.and_then(|len| each(&mut state, offset, len));
                let outcome = match outcome {
                    Ok(ControlFlow::Continue(())) => continue,
                    Ok(ControlFlow::Break(found)) => Ok(found),
                    Err(e) => Err(e),
                };
                queue.lock().closed = true;
                let mut ending = ending.lock();
                if ending.as_ref().is_none_or(|(at, _)| offset < *at) {
                    *ending = Some((offset, outcome));
                }
            }
            state
        };
        let workers = self.workers(total);
        let states = if workers == 1 {
            vec![worker()]
        } else {
            std::thread::scope(|scope| {
                let hired: Vec<_> = (1..workers).map(|_| scope.spawn(worker)).collect();
                let mut states = vec![worker()];
                for thread in hired {
                    // A panic in a worker is a broken invariant of ours and goes on in the caller's thread.
                    states.push(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
                }
                states
            })
        };
        self.check()?;
        match ending.into_inner() {
            None => {
                self.progress.advance(total);
                Ok((states, None))
            }
            Some((_, Ok(found))) => Ok((states, Some(found))),
            Some((_, Err(e))) => Err(e),
        }
    }

    /// The next chunk: where it is, and its length or why it cannot be found.
    fn take(&self, queue: &Mutex<Queue<'_>>) -> Option<(u64, Result<usize, ToolError>)> {
        let mut queue = queue.lock();
        if queue.closed || self.cancel.is_cancelled() {
            return None;
        }
        let front = queue.front;
        let next = queue.chunks.next()?;
        Some(match next {
            Ok((offset, len)) => {
                queue.front = offset + len as u64;
                self.progress.advance(offset);
                (offset, Ok(len))
            }
            Err(e) => (front, Err(e)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::NoProgress;

    fn chunks(count: u64) -> Chunks<'static> {
        let ranges = std::iter::once(Ok(0..count * CHUNK as u64));
        Chunks::new(Box::new(ranges), count * CHUNK as u64, 4096)
    }

    #[test]
    fn every_chunk_is_done_once_and_the_first_break_counts() {
        let cancel = Cancel::new();
        for workers in [1, 4] {
            let crew = Crew { workers, progress: &NoProgress, cancel: &cancel };
            let each = |seen: &mut Vec<u64>, offset: u64, _: usize| {
                seen.push(offset >> 20);
                Ok::<_, ToolError>(ControlFlow::<u64>::Continue(()))
            };
            let (states, found) = crew.work(Phase::Compare, 100 << 20, chunks(100), Vec::new, each).expect("it works");
            let mut all = states.concat();
            all.sort_unstable();
            assert_eq!((all, found), ((0..100).collect(), None));
            assert_eq!(states.len(), workers);

            let late = |_: &mut (), offset: u64, _: usize| {
                // The first break is found last.
                if offset >> 20 == 40 {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Ok(if offset >> 20 >= 40 { ControlFlow::Break(offset >> 20) } else { ControlFlow::Continue(()) })
            };
            let (_, found) = crew.work(Phase::Compare, 100 << 20, chunks(100), || (), late).expect("it works");
            assert_eq!(found, Some(40));
        }
    }

    #[test]
    fn a_cancelled_crew_says_so() {
        let cancel = Cancel::new();
        let crew = Crew { workers: 3, progress: &NoProgress, cancel: &cancel };
        let each = |_: &mut (), offset: u64, _: usize| {
            if offset >> 20 == 7 {
                cancel.cancel();
            }
            Ok(ControlFlow::<()>::Continue(()))
        };
        assert!(matches!(crew.work(Phase::Compare, 100 << 20, chunks(100), || (), each), Err(ToolError::Cancelled)));
    }
}

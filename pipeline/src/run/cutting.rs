//! Cutting: from the channels of the inputs to the engine.
//!
//! It has a thread, which looks at them now and then, and whenever an input rings for it. A source that waits for its broker
//! cuts what it has brought by itself ([`Cutters::cut`]): to wake another thread for that takes longer than to do it.

use super::Shutdown;
use super::standing::noted;
use crate::committer::{Note, wall_now};
use crate::cutter::{Clock, Cut, Cutter};
use crate::engine::{Engine, EngineError};
use crate::explain::Desk;
use crossbeam_channel::{Receiver, Sender, TryRecvError, never};
use marea_model::live::Problem;
use marea_model::time::{MILLI, now_ms};
use marea_model::{ConfigUpdate, Nanos};
use marea_sinks::Metrics;
use marea_sinks::metrics::Stage;
use marea_sources::{Gaps, Input, Lags};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How often it is shown how far the source is behind.
const LAGS_EVERY: Duration = Duration::from_secs(1);
/// How often it is cut without input: timers fire this late at most.
const TICK: Duration = Duration::from_millis(10);
/// With so many epochs before the slowest worker it has enough for its next round: what comes meanwhile shares an epoch,
/// for each costs every thread on the way a wake-up …
const ENOUGH: usize = 4;
/// … and how often it is looked whether the worker has taken them.
const LOOK: Duration = Duration::from_micros(200);

/// Who cuts: one at a time, whoever comes first.
#[derive(Clone, Default)]
pub(super) struct Cutters(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// None before it has begun, and once it has ended.
    cutting: Mutex<Option<Cutting>>,
    /// There may be something that nobody has seen who cuts.
    rung: AtomicBool,
    /// Something was left for an instant later.
    held: AtomicBool,
    /// Nothing more comes, or it failed.
    over: AtomicBool,
    /// The one that looks now and then.
    thread: OnceLock<Thread>,
}

impl Cutters {
    /// Has the thread look at what there is.
    pub(super) fn wake(&self) {
        self.0.rung.store(true, Ordering::SeqCst);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.0.thread.get() {
            thread.unpark();
        }
    }

    /// Cuts what there is, on this thread. Blocks while the engine is full.
    pub(super) fn cut(&self) {
        if self.turn() {
            self.unpark();
        }
    }

    /// Whether the thread has something to do sooner than it thinks.
    fn turn(&self) -> bool {
        let Shared { cutting, rung, held, over, .. } = &*self.0;
        rung.store(true, Ordering::SeqCst);
        let mut sooner = false;
        // Whoever has the lock sees the bell when it lets go; should it not, the thread does at its next look.
        while rung.load(Ordering::SeqCst) && !over.load(Ordering::SeqCst) {
            let mut cutting = match cutting.try_lock() {
                Ok(cutting) => cutting,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return sooner,
            };
            rung.store(false, Ordering::SeqCst);
            let Some(cutting) = &mut *cutting else { return sooner };
            let turn = cutting.turn().unwrap_or_else(|error| {
                cutting.shutdown.fail(error);
                cutting.failed = true;
                Turn::Over
            });
            let was_held = held.swap(turn == Turn::Held, Ordering::SeqCst);
            over.store(turn == Turn::Over, Ordering::SeqCst);
            sooner |= turn == Turn::Over || turn == Turn::Held && !was_held;
        }
        sooner
    }

    /// The thread: until nothing more comes, or it is asked to stop; then lets the engine finish what was submitted.
    pub(super) fn run(&self, cutting: Cutting, first: Vec<ConfigUpdate>) {
        let shared = &*self.0;
        // It runs once.
        let _ = shared.thread.set(std::thread::current());
        let shutdown = cutting.shutdown.clone();
        let lock = || shared.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        lock().insert(cutting).begin(first);
        loop {
            self.turn();
            if shutdown.is_stopped() || shared.over.load(Ordering::SeqCst) {
                break;
            }
            std::thread::park_timeout(if shared.held.load(Ordering::SeqCst) { LOOK } else { TICK });
        }
        let cutting = lock().take();
        if let Some(mut cutting) = cutting {
            // What one of several workers was not fed the others are not fed either.
            if !cutting.failed
                && let Err(error) = cutting.end()
            {
                shutdown.fail(error);
            }
            // The committer ends when what was submitted has come out.
            drop(cutting.engine.close());
        }
    }
}

/// What came of a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// All is cut.
    Done,
    /// Some is left for an instant later: the workers have enough to do.
    Held,
    /// Nothing more will come.
    Over,
}

/// What cuts.
pub(super) struct Cutting {
    pub(super) cutter: Cutter,
    pub(super) inputs: Receiver<Input>,
    /// Those of the live configuration.
    pub(super) live: Receiver<Input>,
    pub(super) clock: Clock,
    pub(super) engine: Engine,
    pub(super) notes: Sender<Note>,
    pub(super) desk: Arc<Mutex<Desk>>,
    /// What was said to be wrong with the live configuration.
    pub(super) problems: Vec<Problem>,
    /// The live configuration to begin with, until it has entered.
    pub(super) first: Option<Vec<ConfigUpdate>>,
    pub(super) shutdown: Shutdown,
    pub(super) until: Option<Nanos>,
    pub(super) end_when_finished: bool,
    /// How far the source is behind, where it is shown how all goes, and when the former was last.
    pub(super) lags: (Lags, Metrics, Instant),
    /// What the source skips, to be noted.
    pub(super) gaps: Gaps,
    /// Whether the engine refused a cut.
    pub(super) failed: bool,
    /// Of this process, in the store.
    pub(super) generation: u64,
}

impl Cutting {
    fn begin(&mut self, first: Vec<ConfigUpdate>) {
        match self.clock {
            Clock::Wall => self.push(Input::Config(first)),
            // Before the first record there is no time at which it could be judged.
            Clock::Event => self.first = Some(first),
        }
    }

    /// Takes what there is, and cuts it.
    fn turn(&mut self) -> Result<Turn, EngineError> {
        loop {
            if self.shutdown.is_stopped() {
                return Ok(Turn::Over);
            }
            self.note_gaps();
            let ended = self.take();
            if self.cutter.is_replaying() {
                let Some(cut) = self.cutter.restored() else {
                    if ended {
                        self.shutdown.fail("the source ended before it came to where the store stands");
                        return Ok(Turn::Over);
                    }
                    return Ok(Turn::Done);
                };
                tracing::info!(ticks = cut.records().count(), "read again what had not sealed");
                self.submit(cut)?;
            }
            if !ended && !self.cutter.is_drained() && !self.cutter.ready() && self.engine.waiting() >= ENOUGH {
                return Ok(Turn::Held);
            }
            self.cut(|cutter| !cutter.ready())?;
            self.show_lags();
            if ended {
                self.push_first();
                self.cut(Cutter::is_drained)?;
                if self.clock == Clock::Event || self.until.is_some() {
                    let cut = self.cutter.finish(self.until);
                    self.submit(cut)?;
                }
                if self.end_when_finished {
                    return Ok(Turn::Over);
                }
            }
            if self.inputs.is_empty() && self.live.is_empty() {
                return Ok(Turn::Done);
            }
        }
    }

    /// Takes what waits in the channels, until it is enough to be cut. Whether the source has ended, which is said once.
    fn take(&mut self) -> bool {
        loop {
            match self.live.try_recv() {
                Ok(input) => self.push(input),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.live = never();
                    break;
                }
            }
        }
        // While it is read once more, all of it is wanted.
        while self.cutter.is_replaying() && !self.cutter.has_replayed() || !self.cutter.ready() {
            match self.inputs.try_recv() {
                Ok(input) => self.push(input),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {
                    self.inputs = never();
                    // A source that ended since it was stopped, or broke, has not reached its end.
                    return !self.shutdown.is_stopped();
                }
            }
        }
        false
    }

    /// Cuts what was taken, and nothing else.
    fn end(&mut self) -> Result<(), EngineError> {
        self.cut(Cutter::is_drained)?;
        match self.cutter.settle() {
            Some(cut) => self.submit(cut),
            None => Ok(()),
        }
    }

    fn show_lags(&mut self) {
        let (lags, metrics, shown) = &mut self.lags;
        if shown.elapsed() >= LAGS_EVERY {
            *shown = Instant::now();
            for (partition, lag) in lags.all() {
                metrics.consumer_lag(partition, lag.records);
            }
            for (operator, bytes) in self.engine.state_bytes() {
                metrics.operator_state_bytes(operator, bytes as u64);
            }
        }
    }

    fn push(&mut self, input: Input) {
        if !matches!(input, Input::Start { .. }) {
            self.push_first();
        }
        self.note_gaps();
        self.cutter.push(input, wall_now());
    }

    /// What was skipped is noted before what comes after it.
    fn note_gaps(&mut self) {
        for gap in self.gaps.take() {
            self.push_first();
            self.cutter.push(Input::Config(vec![noted(&gap, self.generation)]), wall_now());
        }
    }

    fn push_first(&mut self) {
        if let Some(first) = self.first.take() {
            self.cutter.push(Input::Config(first), wall_now());
        }
    }

    /// Cuts until `enough`, or until nothing is left to cut.
    fn cut(&mut self, enough: impl Fn(&Cutter) -> bool) -> Result<(), EngineError> {
        while !self.cutter.is_replaying() {
            match self.cutter.cut(wall_now() / MILLI) {
                Some(cut) => self.submit(cut)?,
                None if self.cutter.is_drained() => return Ok(()),
                // The epochs of this millisecond are used up.
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            if enough(&self.cutter) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn submit(&mut self, cut: Cut) -> Result<(), EngineError> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        desk.observe(&cut);
        if !cut.config.is_empty() {
            let problems = desk.live().problems();
            for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
                tracing::warn!("live configuration: {problem}");
            }
            self.problems = problems;
        }
        drop(desk);
        // What is computed once more was noted when it happened.
        if cut.sealed.is_none() && (cut.received.is_some() || !cut.config.is_empty()) {
            self.show_way(&cut);
            let note =
                Note { epoch: cut.epoch, received: cut.received, cut: Instant::now(), config: cut.config.clone() };
            // A committer that is gone has said why, and has asked to stop.
            let _ = self.notes.send(note);
        }
        self.engine.submit(cut)
    }

    /// How long the first record of a cut has been on its way, and how far the cuts are behind.
    fn show_way(&self, cut: &Cut) {
        let (_, metrics, _) = &self.lags;
        let now = wall_now();
        let took = |from: Nanos, to: Nanos| Duration::from_nanos(u64::try_from(to - from).unwrap_or_default());
        if let Some((received, entered)) = cut.received.zip(cut.entered) {
            metrics.stage_took(Stage::Decode, took(received, entered));
            metrics.stage_took(Stage::EpochWait, took(entered, now));
        }
        if self.clock == Clock::Wall {
            metrics.frontier_lag("cut", (now / MILLI - now_ms(cut.epoch)).max(0) as f64 / 1000.0);
        }
    }
}

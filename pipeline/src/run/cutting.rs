//! The thread that cuts: from the channels of the inputs to the engine.

use super::Shutdown;
use super::standing::noted;
use crate::committer::{Note, wall_now};
use crate::cutter::{Clock, Cut, Cutter};
use crate::engine::{Engine, EngineError};
use crate::explain::Desk;
use crossbeam_channel::{Receiver, Sender, TryRecvError, never, select};
use marea_model::live::Problem;
use marea_model::time::{MILLI, now_ms};
use marea_model::{ConfigUpdate, Nanos};
use marea_sinks::Metrics;
use marea_sinks::metrics::Stage;
use marea_sources::{Gaps, Input, Lags};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is shown how far the source is behind.
const LAGS_EVERY: Duration = Duration::from_secs(1);
/// How often the wall clock cuts without input: timers fire this late at most.
const WALL_TICK: Duration = Duration::from_millis(10);
/// How often the event clock looks at what else may have happened.
const EVENT_TICK: Duration = Duration::from_millis(50);
/// With so many epochs before the slowest worker it has enough for its next round: what comes meanwhile shares an epoch,
/// for each costs every thread on the way a wake-up …
const ENOUGH: usize = 4;
/// … and how often it is looked whether the worker has taken them.
const LOOK: Duration = Duration::from_micros(200);

/// The thread that cuts.
pub(super) struct Cutting {
    pub(super) cutter: Cutter,
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
    /// Of this process, in the store.
    pub(super) generation: u64,
}

impl Cutting {
    pub(super) fn run(mut self, first: Vec<ConfigUpdate>, mut inputs: Receiver<Input>, mut live: Receiver<Input>) {
        match self.clock {
            Clock::Wall => self.push(Input::Config(first)),
            // Before the first record there is no time at which it could be judged.
            Clock::Event => self.first = Some(first),
        }
        if let Err(error) = self.cut_all(&mut inputs, &mut live) {
            self.shutdown.fail(error);
        }
        // Lets the engine finish what was submitted; then the committer ends.
        drop(self.engine.close());
    }

    fn cut_all(&mut self, inputs: &mut Receiver<Input>, live: &mut Receiver<Input>) -> Result<(), EngineError> {
        let tick = match self.clock {
            Clock::Wall => WALL_TICK,
            Clock::Event => EVENT_TICK,
        };
        let (mut ended, mut held) = (false, false);
        while !self.shutdown.is_stopped() {
            let tick = if held { LOOK } else { tick };
            select! {
                recv(inputs) -> input => match input {
                    Ok(input) => self.push(input),
                    Err(_) => (*inputs, ended) = (never(), true),
                },
                recv(live) -> input => match input {
                    Ok(input) => self.push(input),
                    Err(_) => *live = never(),
                },
                default(tick) => self.note_gaps(),
            }
            while !self.cutter.ready() {
                match inputs.try_recv() {
                    Ok(input) => self.push(input),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        (*inputs, ended) = (never(), true);
                        break;
                    }
                }
            }
            if self.cutter.is_replaying() {
                let Some(cut) = self.cutter.restored() else {
                    if ended {
                        self.shutdown.fail("the source ended before it came to where the store stands");
                    }
                    continue;
                };
                tracing::info!(ticks = cut.records().count(), "read again what had not sealed");
                self.submit(cut)?;
            }
            held = !ended && !self.cutter.is_drained() && !self.cutter.ready() && self.engine.waiting() >= ENOUGH;
            if !held {
                self.cut(|cutter| !cutter.ready())?;
            }
            self.show_lags();
            // A source that ended since it was stopped, or broke, has not reached its end.
            if ended && !self.shutdown.is_stopped() {
                ended = false;
                self.push_first();
                self.cut(Cutter::is_drained)?;
                if self.clock == Clock::Event || self.until.is_some() {
                    let cut = self.cutter.finish(self.until);
                    self.submit(cut)?;
                }
                if self.end_when_finished {
                    break;
                }
            }
        }
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

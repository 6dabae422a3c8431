//! The engine: workers that run the dataflow, fed cut by cut, giving closed epochs in order.
//!
//! ```text
//!                    ┌► worker 0 ─┐
//!  submit(Cut) ──────┼► worker 1 ─┼──► outputs(): ClosedEpoch
//!   (bounded)        └► …        ─┘   (whoever passes an epoch last nets it)
//! ```
//!
//! 1. Cuts enter in the order of their epochs, and each reaches every worker whole; a worker takes what it owns.
//! 2. An epoch leaves once, complete, in order; with or without changes.
//! 3. Few epochs are in flight, so that their state stays in cache: `submit` blocks while [`QUEUED_TICKS`] or
//!    [`QUEUED_EPOCHS`] wait for the slowest worker, or while [`CLOSED`] closed epochs (and [`UNCOMMITTED`]) wait for whoever
//!    reads them: a full store holds the sources back. What waits is fed at once, up to [`ROUND_TICKS`]: small epochs share
//!    the cost of a step. One of several workers is fed [`ROUNDS`] rounds before the first has come through.
//! 4. Whoever took the outputs and is gone stops the engine: `submit` says so.

use crate::cutter::Cut;
use crate::dataflow::{self, DataflowConfig, HOLDERS, Report, Reports};
use crossbeam_channel::{Receiver, Sender, bounded, never, unbounded};
use marea_model::output::{ClosedEpoch, Totals, net};
use marea_model::{Epoch, Rows};
use marea_operators::bars::Counts;
use marea_operators::epochs::Feed;
use marea_operators::rollup::RollupError;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Ticks that wait for a worker, beside those that it works on. One epoch may always wait.
const QUEUED_TICKS: usize = 40_000;
/// Epochs that wait for a worker, however few ticks they have.
const QUEUED_EPOCHS: usize = 256;
/// Ticks that a worker is fed before it steps. One epoch may have more.
const ROUND_TICKS: usize = 4_096;
/// Rounds that one of several workers is fed before the first of them has come through: others take part in that, and
/// may not have been fed yet, or have more of it.
const ROUNDS: usize = 3;

/// Closed epochs that wait for the committer, and cuts that wait to be closed …
const CLOSED: usize = 64;
/// … and as many more as some transactions take where they are published before their commit: it holds none of them up.
const UNCOMMITTED: usize = 512;

/// How long an idle worker looks again before it sleeps, leaving the core to whoever wants it.
const WATCHFUL: Duration = Duration::from_micros(100);

/// How long an idle worker sleeps at most: it shows that it is alive more often than anybody asks.
const IDLE: Duration = Duration::from_millis(500);

/// What an engine is built from.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// What the dataflow is built from.
    pub dataflow: DataflowConfig,
}

/// Whoever has a closed epoch first.
pub type Early = Box<dyn FnMut(&ClosedEpoch) + Send>;

/// What one worker is to be fed: a queue that is full by its ticks.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// There is room again, or nobody takes any more.
    room: Condvar,
}

#[derive(Default)]
struct Waiting {
    feeds: VecDeque<(Epoch, Arc<Feed>)>,
    ticks: usize,
    /// Nothing more comes.
    closed: bool,
    /// Nobody takes any more.
    abandoned: bool,
}

fn ticks_of(feed: &Feed) -> usize {
    feed.ticks.iter().map(|slice| slice.rows.len()).sum()
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks while it is full.
    fn push(&self, epoch: Epoch, feed: Arc<Feed>) -> Result<(), EngineError> {
        let ticks = ticks_of(&feed);
        let mut waiting = self.lock();
        while !waiting.abandoned
            && !waiting.feeds.is_empty()
            && (waiting.ticks + ticks > QUEUED_TICKS || waiting.feeds.len() >= QUEUED_EPOCHS)
        {
            waiting = self.room.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if waiting.abandoned {
            return Err(EngineError::Stopped);
        }
        waiting.ticks += ticks;
        waiting.feeds.push_back((epoch, feed));
        Ok(())
    }

    /// Takes the epochs of a round; none if there are none, and nothing more comes.
    fn take(&self, round: &mut Vec<(Epoch, Arc<Feed>)>) -> Option<()> {
        let mut waiting = self.lock();
        let mut taken = 0;
        while let Some((epoch, feed)) = waiting.feeds.pop_front() {
            let ticks = ticks_of(&feed);
            taken += ticks;
            waiting.ticks -= ticks;
            round.push((epoch, feed));
            if taken >= ROUND_TICKS {
                break;
            }
        }
        if round.is_empty() {
            return (!waiting.closed).then_some(());
        }
        self.room.notify_one();
        Some(())
    }
}

/// Whoever takes from a queue; when it is gone, also by a panic, the queue is abandoned.
struct Taker(Arc<Queue>);

impl Drop for Taker {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.abandoned = true;
        waiting.feeds.clear();
        self.0.room.notify_one();
    }
}

/// What the operators hold, a worker each.
type Held = Arc<[[AtomicUsize; 2]]>;

/// The running workers. Dropping it, or [`Engine::close`], lets them finish what was submitted.
pub struct Engine {
    workers: Vec<(Arc<Queue>, Thread)>,
    cuts: Sender<Cut>,
    /// To see how many closed epochs wait to be read.
    closed: Sender<ClosedEpoch>,
    outputs: Receiver<ClosedEpoch>,
    /// How many of them may wait.
    uncommitted: usize,
    held: Held,
    /// Ends with the workers.
    join: Option<JoinHandle<()>>,
}

/// A worker could not be started, or died.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Timely refused its configuration.
    #[error("cannot start the dataflow: {0}")]
    Start(String),
    /// The timeframes do not roll up.
    #[error("timeframes: {0}")]
    Timeframes(#[from] RollupError),
    /// A worker is gone: it has panicked, and says why in the log.
    #[error("a worker of the dataflow has stopped")]
    Stopped,
}

impl Engine {
    /// Starts the workers.
    pub fn start(config: &EngineConfig) -> Result<Engine, EngineError> {
        Engine::start_watched(config, |_| (), None)
    }

    /// Starts the workers; each calls `beat` with its index at least once a second while it is alive, and `early` with
    /// each epoch that it closes, in order, before anybody else has it.
    pub fn start_watched(
        config: &EngineConfig,
        beat: impl Fn(usize) + Send + Sync + 'static,
        early: Option<Early>,
    ) -> Result<Engine, EngineError> {
        let uncommitted = CLOSED + if early.is_some() { UNCOMMITTED } else { 0 };
        let peers = config.workers.max(1);
        config.dataflow.scan(0, peers)?;
        let (cuts, cuts_in) = bounded::<Cut>(QUEUED_EPOCHS + uncommitted);
        let (closed, outputs) = unbounded();
        let waiting = (0..peers).map(|_| VecDeque::new()).collect();
        let gatherer = Mutex::new(Gatherer { waiting, cuts: cuts_in, closed: Some(closed.clone()), early });
        let (thread_out, thread_in) = bounded::<(usize, Thread)>(peers);
        let queues: Vec<Arc<Queue>> = (0..peers).map(|_| Arc::default()).collect();
        let takers: Mutex<Vec<_>> = Mutex::new(queues.iter().map(|queue| Some(Taker(queue.clone()))).collect());
        let dataflow = config.dataflow.clone();
        let held: Held = (0..peers).map(|_| Default::default()).collect();
        let holding = held.clone();
        let timely_config = match peers {
            1 => timely::Config::thread(),
            _ => timely::Config::process(peers),
        };
        let run = move |worker: &mut timely::worker::Worker| {
            let taker = takers.lock().ok().and_then(|mut t| t.get_mut(worker.index()).and_then(Option::take));
            let Some(taker) = taker else { return };
            // The engine may be gone already; then the queue says so below.
            let _ = thread_out.send((worker.index(), std::thread::current()));
            work(worker, &dataflow, &taker.0, &gatherer, (&beat, &holding));
        };
        // Timely's guards join on drop; they live on a thread of their own, which ends when the workers do.
        let guards = timely::execute(timely_config, run).map_err(EngineError::Start)?;
        let join = std::thread::spawn(move || drop(guards));
        let mut threads: Vec<(usize, Thread)> = thread_in.iter().take(peers).collect();
        threads.sort_by_key(|(index, _)| *index);
        if threads.len() < peers {
            return Err(EngineError::Stopped);
        }
        let workers = queues.into_iter().zip(threads.into_iter().map(|(_, thread)| thread)).collect();
        Ok(Engine { workers, cuts, closed, outputs, uncommitted, held, join: Some(join) })
    }

    /// Feeds a cut; blocks while the workers are behind. Epochs must rise.
    pub fn submit(&self, mut cut: Cut) -> Result<(), EngineError> {
        let feed = Arc::new(Feed {
            progress: cut.progress,
            ticks: std::mem::take(&mut cut.ticks),
            config: std::mem::take(&mut cut.config),
            accounts: cut.accounts.clone(),
            metrics: cut.metrics,
            sealed: cut.sealed.take(),
        });
        let epoch = cut.epoch;
        // Here, and not on a worker: a worker that waits for a slow reader would seem dead.
        while self.closed.len() >= self.uncommitted {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.cuts.send(cut).map_err(|_| EngineError::Stopped)?;
        for (queue, thread) in &self.workers {
            queue.push(epoch, Arc::clone(&feed))?;
            thread.unpark();
        }
        Ok(())
    }

    /// How many epochs wait for the slowest worker, beside those that it works on.
    pub fn waiting(&self) -> usize {
        self.workers.iter().map(|(queue, _)| queue.lock().feeds.len()).max().unwrap_or(0)
    }

    /// Closed epochs, in order. Disconnected once the engine is closed and drained.
    pub fn outputs(&self) -> &Receiver<ClosedEpoch> {
        &self.outputs
    }

    /// Closed epochs, in order, for one reader: when it is gone, the engine stops.
    pub fn take_outputs(&mut self) -> Receiver<ClosedEpoch> {
        std::mem::replace(&mut self.outputs, crossbeam_channel::never())
    }

    /// Bytes that operators hold on all workers, as of the last complete epoch that asked for metrics.
    pub fn state_bytes(&self) -> [(&'static str, usize); 2] {
        let of = |i: usize| self.held.iter().map(|held| held[i].load(Ordering::Relaxed)).sum();
        [(HOLDERS[0], of(0)), (HOLDERS[1], of(1))]
    }

    /// Ends the input. What was submitted still comes out of the returned channel, which then disconnects.
    pub fn close(self) -> Receiver<ClosedEpoch> {
        self.outputs.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for (queue, thread) in self.workers.drain(..) {
            queue.lock().closed = true;
            thread.unpark();
        }
        // Not waited for: what was submitted still has to come out.
        self.join = None;
    }
}

/// One worker: builds the dataflow, then feeds it round by round until the engine is gone.
fn work(
    worker: &mut timely::worker::Worker,
    config: &DataflowConfig,
    queue: &Queue,
    gatherer: &Mutex<Gatherer>,
    (beat, held): (&impl Fn(usize), &Held),
) {
    let reports = Reports::default();
    // The timeframes were tried before any worker was started.
    let Ok(mut input) = dataflow::build(worker, config, &reports) else { return };
    let (mut round, mut idle_since) = (Vec::new(), None);
    let rounds = if worker.peers() == 1 { 1 } else { ROUNDS };
    // The last epochs of the rounds that have not come through.
    let mut ahead = VecDeque::with_capacity(rounds);
    loop {
        if ahead.len() < rounds && queue.take(&mut round).is_none() && ahead.is_empty() {
            return;
        }
        beat(worker.index());
        if let Some((last, _)) = round.last() {
            ahead.push_back(*last);
            round.drain(..).for_each(|(epoch, feed)| input.feed(epoch, feed));
            idle_since = None;
            worker.step();
        } else if !ahead.is_empty() {
            // Few epochs in flight keep the state in cache.
            worker.step_or_park(Some(Duration::from_millis(100)));
        } else {
            // To be woken costs more than most epochs do: an instant later there may be one.
            let waits = idle_since.get_or_insert_with(Instant::now).elapsed();
            if waits < WATCHFUL {
                std::thread::yield_now();
            } else {
                worker.step_or_park(Some(IDLE));
            }
        }
        let before = ahead.len();
        let reached = reports.borrow().last().map(|report| report.epoch);
        while ahead.pop_front_if(|last| reached.is_some_and(|reached| reached >= *last)).is_some() {}
        if ahead.len() == before {
            continue;
        }
        for (held, bytes) in held[worker.index()].iter().zip(input.state_bytes()) {
            held.store(bytes, Ordering::Relaxed);
        }
        let given = gatherer.lock().unwrap_or_else(PoisonError::into_inner).take(worker.index(), &reports);
        if given.is_err() {
            // Nobody reads any more, and `submit` says so. Until the engine is dropped this worker goes on with the others,
            // which have been fed what it may send them: were its input closed, they would come to epochs that it was fed alone.
            reports.borrow_mut().clear();
        }
    }
}

/// Puts the workers' parts of each epoch together, on the thread of whoever brings the last one.
struct Gatherer {
    /// Every worker reports every epoch, in order.
    waiting: Vec<VecDeque<Report>>,
    cuts: Receiver<Cut>,
    /// None once nobody reads any more.
    closed: Option<Sender<ClosedEpoch>>,
    /// Who has them first.
    early: Option<Early>,
}

impl Gatherer {
    /// Takes over what a worker has left. An error, for every worker, once nobody reads closed epochs.
    fn take(&mut self, worker: usize, reports: &Reports) -> Result<(), EngineError> {
        let Some(closed) = &self.closed else { return Err(EngineError::Stopped) };
        self.waiting[worker].extend(reports.borrow_mut().drain(..));
        while self.waiting.iter().all(|reports| !reports.is_empty()) {
            let parts = self.waiting.iter_mut().filter_map(VecDeque::pop_front);
            // It was sent before the workers were fed.
            let cut = self.cuts.recv().map_err(|_| EngineError::Stopped)?;
            let epoch = close(cut, parts);
            if let Some(early) = &mut self.early {
                early(&epoch);
            }
            if closed.send(epoch).is_err() {
                // Whoever waits to hand over another cut is told.
                (self.closed, self.cuts) = (None, never());
                return Err(EngineError::Stopped);
            }
        }
        Ok(())
    }
}

/// One closed epoch of its parts.
fn close(cut: Cut, parts: impl Iterator<Item = Report>) -> ClosedEpoch {
    let Cut { epoch, mut dead, counts: mut totals, marks, raw, accounts, amends, progress, metrics, .. } = cut;
    let (mut rows, mut deltas, mut quotes, mut price_jumps) = (Rows::default(), Vec::new(), Vec::new(), 0);
    for mut part in parts {
        debug_assert_eq!(part.epoch, epoch, "every worker reports every epoch");
        rows.append(part.rows);
        deltas.append(&mut part.deltas);
        dead.append(&mut part.dead);
        quotes.append(&mut part.quotes);
        let Counts { accepted, duplicate, dead, held, price_jumps: jumps } = part.counts;
        totals.add(&Totals { accepted, duplicate, dead, held, ..Totals::default() });
        price_jumps += jumps;
    }
    dead.sort();
    let (rows, changes) = (Arc::new(rows), net(deltas));
    ClosedEpoch {
        epoch,
        rows,
        changes,
        dead,
        totals,
        price_jumps,
        marks,
        raw,
        quotes,
        accounts,
        amends,
        progress,
        metrics,
        closed_at: Instant::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutter::{Clock, Cutter, CutterConfig};
    use marea_model::Timeframe;
    use marea_sources::synthetic::{self, Pace, Synthetic};
    use marea_sources::{Input, Stop};
    use std::sync::atomic::AtomicBool;

    /// Rows go between the workers: strategies run where their symbols' owner may not be.
    #[test]
    fn when_nobody_reads_any_more_all_workers_end_in_order() {
        static PANICKED: AtomicBool = AtomicBool::new(false);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Those of timely's own threads.
            let thread = std::thread::current();
            PANICKED.fetch_or(thread.name().is_some_and(|name| name.starts_with("timely:")), Ordering::Relaxed);
            before(panic);
        }));
        let instruments = Arc::new(synthetic::instruments());
        let timeframes = vec![Timeframe::S1, Timeframe::M1];
        let (out, inputs) = unbounded();
        let market = Synthetic { pace: Pace::Full, limit: Some(20_000), ..Synthetic::default() };
        synthetic::run(&market, &instruments, &out.into(), &Stop::default()).unwrap();
        let mut cutter = Cutter::new(CutterConfig {
            clock: Clock::Event,
            lateness: 1_000_000_000,
            max_ticks: 20,
            timeframes: timeframes.clone(),
            instruments: instruments.clone(),
            metrics_every: 0,
        });
        cutter.push(Input::Config(synthetic::live_config()), 0);
        inputs.iter().for_each(|input| cutter.push(input, 0));
        let cuts: Vec<Cut> = std::iter::from_fn(|| cutter.cut(0)).collect();
        let dataflow = DataflowConfig { timeframes, indicators: Vec::new(), instruments };
        for read in 0..20 {
            let alive = Arc::new(());
            let beat = {
                let alive = Arc::clone(&alive);
                move |_| drop(Arc::clone(&alive))
            };
            let config = EngineConfig { workers: 3, dataflow: dataflow.clone() };
            let mut engine = Engine::start_watched(&config, beat, None).unwrap();
            let outputs = engine.take_outputs();
            let reader = std::thread::spawn(move || drop(outputs.iter().take(5 * read).collect::<Vec<_>>()));
            let stopped = cuts.iter().any(|cut| engine.submit(cut.clone()).is_err());
            assert!(stopped, "all cuts were taken");
            drop(engine);
            reader.join().unwrap();
            let began = Instant::now();
            while Arc::strong_count(&alive) > 1 {
                assert!(began.elapsed() < Duration::from_secs(60), "a worker has not ended");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(!PANICKED.load(Ordering::Relaxed), "a worker has panicked");
    }
}

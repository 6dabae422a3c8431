//! The engine: workers that run the dataflow, fed cut by cut, giving closed epochs in order.
//!
//! ```text
//!                    ┌► worker 0 ─┐
//!  submit(Cut) ──────┼► worker 1 ─┼──► gather ──► outputs(): ClosedEpoch
//!   (bounded)        └► …        ─┘   (nets each epoch once every worker has passed it)
//! ```
//!
//! 1. Cuts enter in the order of their epochs, and each reaches every worker: its records by the owner of their symbol,
//!    its accounts, configuration and progress to all.
//! 2. An epoch leaves once, complete, in order; with or without changes.
//! 3. Few epochs are in flight: `submit` blocks while the slowest worker is [`IN_FLIGHT`] cuts behind, or while
//!    [`CLOSED`] closed epochs wait for whoever reads them: a full store holds the sources back.
//! 4. Whoever took the outputs and is gone stops the engine: `submit` says so.

use crate::cutter::Cut;
use crate::dataflow::{self, Control, DataflowConfig, Piece, Report};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use marea_model::output::{ClosedEpoch, Totals, net};
use marea_model::{Epoch, Record};
use marea_operators::rollup::RollupError;
use marea_operators::scan::owner;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;
use timely::dataflow::ProbeHandle;

/// Cuts that wait for a worker, beside the one that it works on.
const IN_FLIGHT: usize = 2;

/// Closed epochs that wait for the committer, and cuts that wait to be closed.
const CLOSED: usize = 64;

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

/// A cut's part for one worker.
struct Share {
    epoch: Epoch,
    records: Vec<Record>,
    control: Control,
}

/// The running workers. Dropping it, or [`Engine::close`], lets them finish what was submitted.
pub struct Engine {
    workers: Vec<(Sender<Share>, Thread)>,
    cuts: Sender<Cut>,
    outputs: Receiver<ClosedEpoch>,
    threads: Vec<JoinHandle<()>>,
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
        Engine::start_watched(config, |_| ())
    }

    /// Starts the workers; each calls `beat` with its index at least once a second while it is alive.
    pub fn start_watched(
        config: &EngineConfig,
        beat: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Engine, EngineError> {
        let peers = config.workers.max(1);
        config.dataflow.scan(0, peers)?;
        let (report_out, report_in) = crossbeam_channel::unbounded::<Report>();
        let (thread_out, thread_in) = bounded::<(usize, Thread)>(peers);
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..peers).map(|_| bounded::<Share>(IN_FLIGHT)).unzip();
        let receivers: Mutex<Vec<Option<Receiver<Share>>>> = Mutex::new(receivers.into_iter().map(Some).collect());
        let dataflow = config.dataflow.clone();
        let timely_config = match peers {
            1 => timely::Config::thread(),
            _ => timely::Config::process(peers),
        };
        let run = move |worker: &mut timely::worker::Worker| {
            let shares = receivers.lock().ok().and_then(|mut r| r.get_mut(worker.index()).and_then(Option::take));
            let Some(shares) = shares else { return };
            // The engine may be gone already; then the channel says so below.
            let _ = thread_out.send((worker.index(), std::thread::current()));
            work(worker, &dataflow, &shares, &report_out, &beat);
        };
        // Timely's guards join on drop; they live on a thread of their own, which ends when the workers do.
        let guards = timely::execute(timely_config, run).map_err(EngineError::Start)?;
        let join = std::thread::spawn(move || drop(guards));
        let mut threads: Vec<(usize, Thread)> = thread_in.iter().take(peers).collect();
        threads.sort_by_key(|(index, _)| *index);
        if threads.len() < peers {
            return Err(EngineError::Stopped);
        }
        let (cuts, cuts_in) = bounded::<Cut>(CLOSED);
        let (closed_out, outputs) = bounded(CLOSED);
        let gather = std::thread::Builder::new()
            .name("gather".to_owned())
            .spawn(move || gather(peers, &cuts_in, &report_in, &closed_out))
            .map_err(|e| EngineError::Start(e.to_string()))?;
        let workers = senders.into_iter().zip(threads.into_iter().map(|(_, thread)| thread)).collect();
        Ok(Engine { workers, cuts, outputs, threads: vec![join, gather] })
    }

    /// Feeds a cut; blocks while the workers are behind. Epochs must rise.
    pub fn submit(&self, mut cut: Cut) -> Result<(), EngineError> {
        let peers = self.workers.len();
        let records = std::mem::take(&mut cut.records);
        let control = Control {
            progress: cut.progress,
            config: Arc::from(cut.config.as_slice()),
            accounts: Arc::from(cut.accounts.as_slice()),
        };
        let epoch = cut.epoch;
        self.cuts.send(cut).map_err(|_| EngineError::Stopped)?;
        let mut shares: Vec<Vec<Record>> = vec![Vec::new(); peers];
        if peers == 1 {
            shares[0] = records;
        } else {
            for record in records {
                shares[owner(record.tick.symbol, peers)].push(record);
            }
        }
        for ((sender, thread), records) in self.workers.iter().zip(shares) {
            sender.send(Share { epoch, records, control: control.clone() }).map_err(|_| EngineError::Stopped)?;
            thread.unpark();
        }
        Ok(())
    }

    /// Closed epochs, in order. Disconnected once the engine is closed and drained.
    pub fn outputs(&self) -> &Receiver<ClosedEpoch> {
        &self.outputs
    }

    /// Closed epochs, in order, for one reader: when it is gone, the engine stops.
    pub fn take_outputs(&mut self) -> Receiver<ClosedEpoch> {
        std::mem::replace(&mut self.outputs, crossbeam_channel::never())
    }

    /// Ends the input. What was submitted still comes out of the returned channel, which then disconnects.
    pub fn close(self) -> Receiver<ClosedEpoch> {
        self.outputs.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for (sender, thread) in self.workers.drain(..) {
            drop(sender);
            thread.unpark();
        }
        self.threads.clear();
    }
}

/// One worker: builds the dataflow, then feeds it share by share until the engine is gone.
fn work(
    worker: &mut timely::worker::Worker,
    config: &DataflowConfig,
    shares: &Receiver<Share>,
    reports: &Sender<Report>,
    beat: &impl Fn(usize),
) {
    let probe = ProbeHandle::new();
    // The timeframes were tried before any worker was started.
    let Ok(mut inputs) = dataflow::build(worker, config, reports.clone(), &probe) else { return };
    loop {
        beat(worker.index());
        match shares.try_recv() {
            Ok(share) => {
                inputs.feed(share.epoch, share.records, share.control);
                // Until it has come through: few epochs in flight keep the state in cache. Other workers' shares of
                // this epoch may still be on their way, hence the park.
                while probe.less_than(&(share.epoch + 1)) {
                    worker.step_or_park(Some(Duration::from_millis(100)));
                }
            }
            Err(TryRecvError::Empty) => {
                worker.step_or_park(Some(IDLE));
            }
            Err(TryRecvError::Disconnected) => break,
        }
    }
    inputs.close();
}

/// Puts the workers' parts of each epoch together.
fn gather(peers: usize, cuts: &Receiver<Cut>, reports: &Receiver<Report>, closed: &Sender<ClosedEpoch>) {
    let mut through = vec![0; peers];
    let mut pieces: BTreeMap<Epoch, Vec<Piece>> = BTreeMap::new();
    let mut next: Option<Cut> = None;
    for report in reports {
        for (epoch, piece) in report.pieces {
            pieces.entry(epoch).or_default().push(piece);
        }
        through[report.worker] = report.through;
        let complete = through.iter().min().copied().unwrap_or(0);
        loop {
            if next.is_none() {
                next = cuts.try_recv().ok();
            }
            let Some(cut) = next.take_if(|cut| cut.epoch < complete) else { break };
            let pieces = pieces.remove(&cut.epoch).unwrap_or_default();
            if closed.send(close(cut, pieces)).is_err() {
                return;
            }
        }
    }
}

/// One closed epoch of its parts.
fn close(cut: Cut, pieces: Vec<Piece>) -> ClosedEpoch {
    let mut deltas = Vec::new();
    let mut dead = cut.dead;
    let mut totals = cut.counts;
    for piece in pieces {
        match piece {
            Piece::Deltas(mut d) => deltas.append(&mut d),
            Piece::Dead(mut d) => dead.append(&mut d),
            Piece::Counts(counts) => totals.add(&Totals {
                accepted: counts.accepted,
                duplicate: counts.duplicate,
                dead: counts.dead,
                held: counts.held,
                price_jumps: counts.price_jumps,
                ..Totals::default()
            }),
        }
    }
    dead.sort();
    let (epoch, cursors, progress) = (cut.epoch, cut.cursors, cut.progress);
    ClosedEpoch { epoch, changes: net(deltas), dead, totals, cursors, progress }
}

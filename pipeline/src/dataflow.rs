//! The whole path of a tick, one `let` a stage.
//!
//! ```text
//!  records ──► bars ──► scan (roll-up, indicators, backtests) ──► recommend ──► gate ──► verdicts
//!                └────── quotes ─────────────────────────────────────────────────▲
//!  progress, configuration, accounts: to every worker
//! ```

use crossbeam_channel::Sender;
use marea_model::{
    AccountSnapshot, ConfigUpdate, DeadLetter, Delta, Epoch, Instruments, Output, Progress, Record, Timeframe,
};
use marea_operators::bars::{Counts, bars};
use marea_operators::epochs::{EpochOperator, EpochStream};
use marea_operators::gate::{Gate, gate};
use marea_operators::indicators::IndicatorSpec;
use marea_operators::recommend::{Recommend, recommend};
use marea_operators::rollup::RollupError;
use marea_operators::scan::{Scan, ScanConfig, scan};
use std::sync::Arc;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::vec::{Broadcast, Map};
use timely::dataflow::operators::{Concatenate, Input, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};
use timely::worker::Worker;

/// What the dataflow is built from.
#[derive(Clone, Debug)]
pub struct DataflowConfig {
    /// The timeframes, the base first.
    pub timeframes: Vec<Timeframe>,
    /// The indicators kept for every symbol.
    pub indicators: Vec<(Timeframe, Vec<IndicatorSpec>)>,
    /// Scales and price sources, and all else of instruments to begin with.
    pub instruments: Arc<Instruments>,
}

impl DataflowConfig {
    /// The scan of one worker; an error where the timeframes do not roll up.
    pub fn scan(&self, index: usize, peers: usize) -> Result<Scan, RollupError> {
        Scan::new(ScanConfig {
            timeframes: self.timeframes.clone(),
            indicators: self.indicators.clone(),
            instruments: self.instruments.clone(),
            index,
            peers,
        })
    }

    fn recommend(&self) -> Recommend {
        Recommend::new(&self.instruments).with_timeframes(&self.timeframes)
    }

    fn gate(&self, index: usize, peers: usize) -> Gate {
        Gate::new(&self.instruments, index, peers).with_timeframes(&self.timeframes)
    }
}

/// What reaches every worker beside its records.
#[derive(Clone, Debug)]
pub struct Control {
    /// As of the epoch's end.
    pub progress: Progress,
    /// Edits of the live configuration.
    pub config: Arc<[ConfigUpdate]>,
    /// Snapshots of accounts.
    pub accounts: Arc<[AccountSnapshot]>,
}

/// One operator's part in one epoch's result.
#[derive(Debug)]
pub enum Piece {
    /// Changed rows.
    Deltas(Vec<Delta>),
    /// Records refused after decoding.
    Dead(Vec<DeadLetter>),
    /// What became of the records.
    Counts(Counts),
}

/// What one worker has done: all its pieces of the epochs below `through`, as far as not reported before.
#[derive(Debug)]
pub struct Report {
    /// The worker.
    pub worker: usize,
    /// Every epoch before this one is complete on this worker.
    pub through: Epoch,
    /// Its results.
    pub pieces: Vec<(Epoch, Piece)>,
}

type Handle<D> = InputHandle<Epoch, CapacityContainerBuilder<Vec<D>>>;

/// The inputs of one worker.
pub struct Inputs {
    records: Handle<Record>,
    progress: Handle<Progress>,
    config: Handle<ConfigUpdate>,
    accounts: Handle<AccountSnapshot>,
}

impl Inputs {
    /// Sends one epoch whole; the worker must not step in between, so that only epochs that were cut come by.
    pub fn feed(&mut self, epoch: Epoch, mut records: Vec<Record>, control: Control) {
        self.advance_to(epoch);
        self.records.send_batch(&mut records);
        self.progress.send(control.progress);
        control.config.iter().for_each(|update| self.config.send(update.clone()));
        control.accounts.iter().for_each(|snapshot| self.accounts.send(snapshot.clone()));
        self.advance_to(epoch + 1);
    }

    fn advance_to(&mut self, epoch: Epoch) {
        self.records.advance_to(epoch);
        self.progress.advance_to(epoch);
        self.config.advance_to(epoch);
        self.accounts.advance_to(epoch);
    }

    /// Ends the input.
    pub fn close(self) {}
}

/// Builds the dataflow on one worker. Results go to `reports`; `probe` follows the last stage.
pub fn build(
    worker: &mut Worker,
    settings: &DataflowConfig,
    reports: Sender<Report>,
    probe: &ProbeHandle<Epoch>,
) -> Result<Inputs, RollupError> {
    let (index, peers) = (worker.index(), worker.peers());
    let kernel = settings.scan(index, peers)?;
    Ok(worker.dataflow::<Epoch, _, _>(|scope| {
        let (records_in, records) = scope.new_input::<Vec<Record>>();
        let (progress_in, progress) = scope.new_input::<Vec<Progress>>();
        let (config_in, config) = scope.new_input::<Vec<ConfigUpdate>>();
        let (accounts_in, accounts) = scope.new_input::<Vec<AccountSnapshot>>();

        let ticks = bars(records, progress.clone(), settings.instruments.clone(), settings.timeframes[0]);
        let base_bars = if peers == 1 { ticks.bars } else { ticks.bars.broadcast() };
        let scanned = scan(base_bars, progress.clone(), config.clone(), kernel);
        let (recommender, gatekeeper) = (settings.recommend(), settings.gate(index, peers));
        let recommendations =
            recommend(progress.clone(), scanned.contributions, scanned.decisions, config.clone(), recommender);
        let verdicts = gate(progress.clone(), recommendations.clone(), ticks.quotes, accounts, config, gatekeeper);

        let recommendations = recommendations.map(|(row, diff)| Delta { output: Output::Recommendation(row), diff });
        let verdicts = verdicts.map(|(row, diff)| Delta { output: Output::Verdict(row), diff });
        let deltas = scope.concatenate([scanned.deltas, recommendations, verdicts]);
        report(progress, deltas, ticks.dead, ticks.counts, index, reports).probe_with(probe);
        Inputs { records: records_in, progress: progress_in, config: config_in, accounts: accounts_in }
    }))
}

/// The end of the path: hands what each complete epoch did to the gatherer.
fn report<'scope>(
    clock: EpochStream<'scope, Progress>,
    deltas: EpochStream<'scope, Delta>,
    dead: EpochStream<'scope, DeadLetter>,
    counts: EpochStream<'scope, Counts>,
    worker: usize,
    reports: Sender<Report>,
) -> EpochStream<'scope, ()> {
    let mut operator = EpochOperator::new("report", clock);
    let deltas = operator.input(deltas, Pipeline);
    let dead = operator.input(dead, Pipeline);
    let counts = operator.input(counts, Pipeline);
    let (_, done) = operator.output::<()>();
    operator.build(move |epoch, _| {
        let (deltas, dead) = (deltas.take(), dead.take());
        let mut pieces: Vec<(Epoch, Piece)> = counts.drain().map(|c| (epoch, Piece::Counts(c))).collect();
        if !deltas.is_empty() {
            pieces.push((epoch, Piece::Deltas(deltas)));
        }
        if !dead.is_empty() {
            pieces.push((epoch, Piece::Dead(dead)));
        }
        // The gatherer gone: the engine is being dropped, and nobody waits for this.
        let _ = reports.send(Report { worker, through: epoch + 1, pieces });
    });
    done
}

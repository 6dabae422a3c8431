//! The whole path of a tick, one `let` a stage.
//!
//! ```text
//!  feed ──► bars ──► scan (roll-up, indicators, backtests) ──► recommend ──► gate ──► report
//!             │└ route ─▲ of other workers                                     ▲
//!             └────── quotes ──────────────────────────────────────────────────┘
//!  the feed, which is all that enters at an epoch, goes to every stage of every worker
//!
//!  one worker: all of it is one operator; several: bars, route ═► scan ═► the rest; records change workers at each ═►
//! ```

use marea_model::{
    DeadLetter, Delta, Epoch, Instruments, Output, Quote, Recommendation, Rows, Symbol, Timeframe, Verdict,
};
use marea_operators::bars::{Bars, Counts, QuoteUpdate, bars};
use marea_operators::epochs::{Clock, EpochOperator, EpochStream, Feed};
use marea_operators::gate::{Gate, gate};
use marea_operators::indicators::IndicatorSpec;
use marea_operators::recommend::{Recommend, recommend};
use marea_operators::rollup::RollupError;
use marea_operators::route::{Route, route};
use marea_operators::scan::{Scan, ScanConfig, scan};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::operators::Input;
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

    fn bars(&self, index: usize, peers: usize) -> Bars {
        Bars::new(self.instruments.clone(), self.timeframes[0]).of_worker(index, peers)
    }

    /// None where there is nobody to send bars to.
    fn route(&self, index: usize, peers: usize) -> Option<Route> {
        (peers > 1).then(|| Route::new(&self.instruments, index, peers).with_timeframes(&self.timeframes))
    }

    fn recommend(&self) -> Recommend {
        Recommend::new(&self.instruments).with_timeframes(&self.timeframes)
    }

    fn gate(&self, index: usize, peers: usize) -> Gate {
        Gate::new(&self.instruments, index, peers).with_timeframes(&self.timeframes)
    }
}

/// What one worker did at one epoch.
#[derive(Debug)]
pub struct Report {
    /// The epoch, complete on this worker.
    pub epoch: Epoch,
    /// Rows that stand now.
    pub rows: Rows,
    /// Other changes.
    pub deltas: Vec<Delta>,
    /// Latest quotes that changed, and symbols that are new.
    pub quotes: Vec<(Symbol, Option<Quote>)>,
    /// Records refused after decoding.
    pub dead: Vec<DeadLetter>,
    /// What became of the records.
    pub counts: Counts,
}

/// Where the reports of a worker are left for it.
pub type Reports = Rc<RefCell<Vec<Report>>>;

/// The operators that hold most, by the names that [`FeedHandle::state_bytes`] counts under.
pub const HOLDERS: [&str; 2] = ["bars", "scan"];

/// The input of one worker.
pub struct FeedHandle {
    input: InputHandle<Epoch, CapacityContainerBuilder<Vec<Arc<Feed>>>>,
    held: [Rc<Cell<usize>>; 2],
}

impl FeedHandle {
    /// What each of [`HOLDERS`] holds on this worker, as of the last complete epoch that asked for metrics.
    pub fn state_bytes(&self) -> [usize; 2] {
        self.held.each_ref().map(|held| held.get())
    }

    /// Sends one epoch whole.
    pub fn feed(&mut self, epoch: Epoch, feed: Arc<Feed>) {
        self.input.advance_to(epoch);
        self.input.send_batch(&mut vec![feed]);
        self.input.advance_to(epoch + 1);
    }
}

/// Builds the dataflow on one worker. What each complete epoch did goes to `reports`.
pub fn build(worker: &mut Worker, settings: &DataflowConfig, reports: &Reports) -> Result<FeedHandle, RollupError> {
    let (index, peers) = (worker.index(), worker.peers());
    let kernel = settings.scan(index, peers)?;
    let reports = Rc::clone(reports);
    Ok(worker.dataflow::<Epoch, _, _>(|scope| {
        let (input, feeds) = scope.new_input::<Vec<Arc<Feed>>>();
        let clock = Clock::new(feeds);
        let ticks = bars(clock.clone(), settings.bars(index, peers));
        let kernel = Rc::new(RefCell::new(kernel));
        let routed =
            settings.route(index, peers).map(|it| route(clock.clone(), ticks.bars.clone(), it, kernel.clone()));
        let scanned = scan(clock.clone(), ticks.bars, routed, kernel);
        let recommended = recommend(clock.clone(), scanned.contributions, scanned.decisions, settings.recommend());
        let verdicts = gate(clock.clone(), recommended.clone(), ticks.quotes.clone(), settings.gate(index, peers));
        let results = Results {
            rows: scanned.rows,
            deltas: scanned.deltas,
            recommendations: recommended,
            verdicts,
            quotes: ticks.quotes,
            dead: ticks.dead,
            counts: ticks.counts,
        };
        report(clock.clone(), results, reports);
        clock.build();
        FeedHandle { input, held: [ticks.bytes, scanned.bytes] }
    }))
}

struct Results<'scope> {
    rows: EpochStream<'scope, Rows>,
    deltas: EpochStream<'scope, Delta>,
    recommendations: EpochStream<'scope, (Arc<Recommendation>, i64)>,
    verdicts: EpochStream<'scope, (Arc<Verdict>, i64)>,
    quotes: EpochStream<'scope, QuoteUpdate>,
    dead: EpochStream<'scope, DeadLetter>,
    counts: EpochStream<'scope, Counts>,
}

/// The end of the path: leaves what each complete epoch did for whoever steps the worker.
fn report<'scope>(clock: Clock<'scope>, results: Results<'scope>, reports: Reports) {
    let mut operator = EpochOperator::new("report", clock);
    let rows = operator.input(results.rows);
    let deltas = operator.input(results.deltas);
    let recommendations = operator.input(results.recommendations);
    let verdicts = operator.input(results.verdicts);
    let quotes = operator.input(results.quotes);
    let dead = operator.input(results.dead);
    let counts = operator.input(results.counts);
    operator.build(move |epoch, _| {
        let mut all = deltas.take();
        let row = |(row, diff)| Delta { output: Output::Recommendation(row), diff };
        all.extend(recommendations.drain().map(row));
        all.extend(verdicts.drain().map(|(row, diff)| Delta { output: Output::Verdict(row), diff }));
        let quotes = quotes.drain().map(|update| (update.symbol, update.quote)).collect();
        let (dead, nothing) = (dead.take(), (Rows::default(), Counts::default()));
        let mut report = Report { epoch, rows: nothing.0, deltas: all, quotes, dead, counts: nothing.1 };
        rows.drain().for_each(|rows| report.rows.append(rows));
        counts.drain().for_each(|counts| report.counts = counts);
        reports.borrow_mut().push(report);
    });
}

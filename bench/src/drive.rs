//! The one place that calls the engine, the cutter and the kernels, and that knows what batches and closed epochs look
//! like: everything else in the bench speaks of [`Record`]s in and [`Seen`] rows out.

use crate::measure::{Stopwatch, Took};
use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, unbounded};
use marea::committer::wall_now;
use marea::cutter::{Clock, Cutter, CutterConfig};
use marea::dataflow::DataflowConfig;
use marea::engine::{Early, Engine, EngineConfig, EngineError};
use marea_model::codec::arrow::{RowsAre, decode_batch};
use marea_model::codec::{Decoded, Decoder};
use marea_model::cursor::Batch;
use marea_model::output::{Change, ClosedEpoch, net};
use marea_model::time::{MILLI, SECOND};
use marea_model::{
    AccountSnapshot, Bar, ConfigUpdate, Cursor, Epoch, Instruments, MetricsRow, Nanos, Output, Partition, Progress,
    Record, Rows, Symbol, Ticks, Timeframe,
};
use marea_operators::bars::{BarUpsert, Bars};
use marea_operators::indicators::IndicatorSpec;
use marea_operators::scan::{Scan, ScanConfig, ScanOutput};
use marea_sources::{BATCH_ROWS, Carries, Committed, Input, Lags, Sender, Stop, kafka};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Batches that wait for the cutter, how many epochs are enough for a worker, and how often the wall clock cuts without
/// input: as in `pipeline/src/run`.
const BATCHES: usize = 8;
const ENOUGH: usize = 4;
const WALL_TICK: Duration = Duration::from_millis(10);
/// How often it is looked whether a worker that has enough has taken it.
const LOOK: Duration = Duration::from_micros(200);

/// What a graph is built from.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The base first.
    pub(crate) timeframes: Vec<Timeframe>,
    /// Kept for every symbol.
    pub(crate) indicators: Vec<(Timeframe, Vec<IndicatorSpec>)>,
    /// Scales and price sources.
    pub(crate) instruments: Arc<Instruments>,
    /// Worker threads.
    pub(crate) workers: usize,
    /// Ticks an epoch, at most.
    pub(crate) max_ticks: usize,
    /// How far behind the watermark a record may be.
    pub(crate) lateness: Nanos,
    /// What `now` follows.
    pub(crate) clock: Clock,
}

impl Setup {
    /// One timeframe, one worker, nothing else: event clock, 10,000 ticks an epoch, 10 minutes of lateness.
    pub(crate) fn plain(timeframe: Timeframe) -> Setup {
        Setup {
            timeframes: vec![timeframe],
            indicators: Vec::new(),
            instruments: Arc::new(Instruments::default()),
            workers: 1,
            max_ticks: 10_000,
            lateness: 600 * SECOND,
            clock: Clock::Event,
        }
    }

    /// What decoders need to know.
    pub(crate) fn decoder(&self) -> Decoder {
        Decoder { instruments: self.instruments.clone(), base_timeframe: self.timeframes[0], max_ahead: None }
    }
}

/// A batch of one partition. `upper` is the first offset not in it.
pub(crate) fn batch(
    partition: Partition,
    records: impl IntoIterator<Item = Record>,
    upper: u64,
    at_end: bool,
) -> Input {
    Input::Batch(Batch { records: records.into_iter().collect(), upper, at_end, ..Batch::new(partition, 0) })
}

/// Snapshots of accounts, as a batch of a partition of their own.
pub(crate) fn accounts(partition: Partition, snapshots: Vec<AccountSnapshot>) -> Input {
    let upper = snapshots.len() as u64;
    let cursor = |offset: usize| Cursor { partition, offset: offset as u64, row: 0 };
    let accounts = snapshots.into_iter().enumerate().map(|(i, s)| (cursor(i), s)).collect();
    Input::Batch(Batch { accounts, upper, at_end: true, ..Batch::new(partition, 0) })
}

/// Decodes a record batch in memory into the batch of a source.
pub(crate) fn arrow_batch(
    decoder: &Decoder,
    rows: &arrow_array::RecordBatch,
    first: Cursor,
    at_end: bool,
    decoded: &mut Decoded,
) -> Input {
    decode_batch(decoder, rows, first, RowsAre::Offsets, 0, decoded);
    let upper = first.offset + rows.num_rows() as u64;
    let records = std::mem::take(&mut decoded.records);
    let input = Input::Batch(Batch {
        records,
        rejects: std::mem::take(&mut decoded.rejects),
        upper,
        at_end,
        ..Batch::new(first.partition, 0)
    });
    decoded.clear();
    input
}

/// Calls `tick` with each decoded trade's symbol, event time, price and size, the numbers as integers; then forgets all
/// but the symbols. How many there were; an error if anything was rejected.
pub(crate) fn each_trade(
    decoded: &mut Decoded,
    mut tick: impl FnMut(Symbol, Nanos, i64, i64),
) -> anyhow::Result<usize> {
    anyhow::ensure!(decoded.rejects.is_empty(), "a record was rejected: {:?}", decoded.rejects[0]);
    let count = decoded.records.len();
    let ticks = &decoded.records;
    anyhow::ensure!(ticks.all_trades(), "a record is no trade");
    let columns = ticks.codes().iter().zip(ticks.event_times()).zip(ticks.firsts().iter().zip(ticks.seconds()));
    for ((code, time), (price, size)) in columns {
        tick(ticks.symbols()[*code as usize], *time, *price, *size);
    }
    decoded.clear();
    Ok(count)
}

/// A cutter and an engine, wired as in `pipeline/src/run`.
pub(crate) struct Session {
    cutter: Cutter,
    engine: Engine,
}

impl Session {
    /// Starts the workers. The receiver ends when the session is dropped and drained.
    pub(crate) fn start(setup: &Setup) -> anyhow::Result<(Session, Receiver<ClosedEpoch>)> {
        Session::start_with(setup, None)
    }

    /// The same, with somebody who has closed epochs first.
    pub(crate) fn start_with(setup: &Setup, early: Option<Early>) -> anyhow::Result<(Session, Receiver<ClosedEpoch>)> {
        let dataflow = DataflowConfig {
            timeframes: setup.timeframes.clone(),
            indicators: setup.indicators.clone(),
            instruments: setup.instruments.clone(),
        };
        let mut engine = Engine::start_watched(&EngineConfig { workers: setup.workers, dataflow }, |_| (), early)?;
        let outputs = engine.take_outputs();
        let cutter = Cutter::new(CutterConfig {
            clock: setup.clock,
            lateness: setup.lateness,
            max_ticks: setup.max_ticks,
            timeframes: setup.timeframes.clone(),
            instruments: setup.instruments.clone(),
            metrics_every: SECOND,
        });
        Ok((Session { cutter, engine }, outputs))
    }

    /// Queues an input.
    pub(crate) fn push(&mut self, input: Input) {
        self.cutter.push(input, wall_now());
    }

    /// Cuts and submits every full epoch.
    pub(crate) fn cut_full(&mut self) -> Result<(), EngineError> {
        if self.cutter.ready() { self.cut_until(|cutter| !cutter.ready()) } else { Ok(()) }
    }

    /// Cuts and submits all that is pending.
    pub(crate) fn cut_all(&mut self) -> Result<(), EngineError> {
        if self.cutter.is_drained() { Ok(()) } else { self.cut_until(Cutter::is_drained) }
    }

    /// Cuts and submits all that is pending, unless the worker has enough for its next round: as the pipeline does.
    pub(crate) fn cut_unless_busy(&mut self) -> Result<(), EngineError> {
        if self.engine.waiting() >= ENOUGH { self.cut_full() } else { self.cut_all() }
    }

    /// Cuts at least once, until `enough`, or until nothing is left to cut.
    fn cut_until(&mut self, enough: impl Fn(&Cutter) -> bool) -> Result<(), EngineError> {
        loop {
            match self.cutter.cut(wall_now() / MILLI) {
                Some(cut) => self.engine.submit(cut)?,
                None if self.cutter.is_drained() => return Ok(()),
                // The epochs of this millisecond are used up.
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            if enough(&self.cutter) {
                return Ok(());
            }
        }
    }

    /// Cuts all, and closes every bar; says which epoch is the last before it is submitted.
    pub(crate) fn finish(&mut self, say: impl FnOnce(Epoch)) -> Result<(), EngineError> {
        self.cut_all()?;
        let cut = self.cutter.finish(None);
        say(cut.epoch);
        self.engine.submit(cut)
    }

    /// The cutter's thread: cuts when the input is drained or an epoch is full, and when time has passed. Until all
    /// senders are gone.
    pub(crate) fn serve(&mut self, inputs: &Receiver<Input>) -> Result<(), EngineError> {
        loop {
            match inputs.recv_timeout(if self.engine.waiting() >= ENOUGH { LOOK } else { WALL_TICK }) {
                Ok(input) => self.push(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            while !self.cutter.ready() {
                let Ok(input) = inputs.try_recv() else { break };
                self.push(input);
            }
            if self.engine.waiting() < ENOUGH || self.cutter.ready() {
                self.cut_until(|cutter| !cutter.ready())?;
            }
        }
    }
}

/// The way to a cutter's thread.
pub(crate) fn inputs() -> (crossbeam_channel::Sender<Input>, Receiver<Input>) {
    bounded(BATCHES)
}

/// A source that reads a topic from its beginning to the end that it has now.
pub(crate) fn kafka(setup: &Setup, brokers: &str, topic: &str) -> anyhow::Result<kafka::Kafka> {
    let config = kafka::KafkaConfig {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        accounts_topic: None,
        dead_letters: None,
        group: "marea-bench".to_owned(),
        security: kafka::Security::default(),
        until_end: true,
        accept_gap: false,
    };
    Ok(kafka::open(config, setup.decoder(), Vec::new(), Committed::default(), Lags::default())?)
}

/// Runs a graph over inputs that one thread makes and cuts, into `sink`. The time from the first input until the last
/// epoch has gone through the sink; making the graph and taking it down are not in it.
pub(crate) fn replay(
    setup: &Setup,
    inputs: impl Iterator<Item = Input> + Send,
    sink: impl FnMut(&ClosedEpoch),
) -> anyhow::Result<Took> {
    run(setup, sink, |session, last| {
        for input in inputs {
            session.push(input);
            session.cut_full()?;
        }
        session.finish(|epoch| last.store(epoch, Ordering::SeqCst))?;
        Ok(())
    })
}

/// As [`replay`], with a source on a thread of its own, as the real pipeline has it.
pub(crate) fn replay_source(
    setup: &Setup,
    source: impl FnOnce(&Sender, &Stop) -> anyhow::Result<()> + Send,
    sink: impl FnMut(&ClosedEpoch),
) -> anyhow::Result<Took> {
    run(setup, sink, |session, last| {
        let (out, inputs) = inputs();
        let out = Sender::from(out);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let source = scope.spawn(move || source(&out, &Stop::new()));
            session.serve(&inputs)?;
            session.finish(|epoch| last.store(epoch, Ordering::SeqCst))?;
            source.join().map_err(|_| anyhow::anyhow!("the source has panicked"))?
        })
    })
}

fn run(
    setup: &Setup,
    mut sink: impl FnMut(&ClosedEpoch),
    feed: impl FnOnce(&mut Session, &AtomicU64) -> anyhow::Result<()> + Send,
) -> anyhow::Result<Took> {
    let last = AtomicU64::new(0);
    let (mut session, outputs) = Session::start(setup)?;
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        let last = &last;
        let feeder = scope.spawn(move || feed(&mut session, last));
        let mut took = None;
        for closed in outputs {
            sink(&closed);
            if closed.epoch == last.load(Ordering::SeqCst) {
                took = Some(watch.took());
            }
        }
        feeder.join().map_err(|_| anyhow::anyhow!("the source has panicked"))??;
        took.context("the last epoch never came out")
    })
}

/// Records in batches as a source would make them, from `Start` on; at the end nothing more comes.
pub(crate) fn batches(
    partition: Partition,
    count: usize,
    record: impl Fn(usize) -> Record + Send,
) -> impl Iterator<Item = Input> + Send {
    batches_of(partition, count, true, record)
}

/// As [`batches`]; `ends` says whether nothing more comes.
pub(crate) fn batches_of(
    partition: Partition,
    count: usize,
    ends: bool,
    record: impl Fn(usize) -> Record + Send,
) -> impl Iterator<Item = Input> + Send {
    let start = std::iter::once(Input::Start { partition, carries: Carries::Ticks });
    start.chain((0..count).step_by(BATCH_ROWS).map(move |from| {
        let to = count.min(from + BATCH_ROWS);
        batch(partition, (from..to).map(&record), to as u64, ends && to == count)
    }))
}

/// A row that came out.
pub(crate) enum Seen<'a> {
    /// A bar that now stands.
    Bar(&'a Bar),
    /// A bar that stands no more.
    NoBar(&'a Bar),
    /// Indicators of bars that have closed, one after the other.
    Indicators {
        /// The instrument.
        symbol: Symbol,
        /// Of the values of a bar.
        names: &'a [Arc<str>],
        /// The bars.
        open_times: &'a [Nanos],
        /// Bar by bar; NaN where undefined.
        values: &'a [f64],
    },
    /// A value of an indicator that was corrected.
    Indicator {
        /// The instrument.
        symbol: Symbol,
        /// The bar.
        open_time: Nanos,
        /// `ema(12)`.
        name: &'a str,
        /// The value.
        value: f64,
    },
    /// Metrics of a strategy.
    Metrics(&'a MetricsRow),
    /// Metrics that stand no more.
    NoMetrics(&'a MetricsRow),
    /// A verdict on a symbol has changed.
    Verdict(Symbol),
}

/// Calls `see` with what an epoch has changed, as far as the bench looks at it.
pub(crate) fn each_row(closed: &ClosedEpoch, mut see: impl FnMut(Seen<'_>)) {
    each_standing(&closed.rows, &mut see);
    each_change(&closed.changes, see);
}

/// Calls `see` with each row of a kernel's output that stands after it.
pub(crate) fn each_output(out: ScanOutput, mut see: impl FnMut(Seen<'_>)) {
    each_standing(&out.rows, &mut see);
    each_change(&net(out.deltas), see);
}

fn each_standing(rows: &Rows, see: &mut impl FnMut(Seen<'_>)) {
    rows.bars.iter().for_each(|bar| see(Seen::Bar(bar)));
    for (symbol, _, names, open_times, values) in rows.indicators.blocks() {
        see(Seen::Indicators { symbol, names, open_times, values });
    }
    rows.metrics.iter().for_each(|row| see(Seen::Metrics(row)));
}

fn each_change(changes: &[Change], mut see: impl FnMut(Seen<'_>)) {
    for change in changes {
        match change {
            Change::Upsert(Output::Bar(bar)) => see(Seen::Bar(bar)),
            Change::Delete(Output::Bar(bar)) => see(Seen::NoBar(bar)),
            Change::Upsert(Output::Indicator(row)) => {
                let (symbol, open_time, value) = (row.symbol, row.open_time, row.value.0);
                see(Seen::Indicator { symbol, open_time, name: &row.name, value });
            }
            Change::Upsert(Output::Metrics(row)) => see(Seen::Metrics(row)),
            Change::Delete(Output::Metrics(row)) => see(Seen::NoMetrics(row)),
            Change::Upsert(Output::Verdict(row)) => see(Seen::Verdict(row.symbol)),
            _ => {}
        }
    }
}

/// The first offset of a partition that was not in this epoch or before, if it moved.
pub(crate) fn upper(closed: &ClosedEpoch, partition: Partition) -> Option<u64> {
    closed.marks.iter().find(|mark| mark.partition == partition).map(|mark| mark.upper)
}

/// A thread that reads a graph's output, and hands on, with the time, what `look` makes of an epoch.
pub(crate) fn tap<T: Send + 'static>(
    outputs: Receiver<ClosedEpoch>,
    mut look: impl FnMut(&ClosedEpoch) -> Option<T> + Send + 'static,
) -> Receiver<(Instant, T)> {
    let (out, seen) = unbounded();
    std::thread::spawn(move || {
        for closed in outputs {
            if let Some(it) = look(&closed) {
                // Nobody looks any more: the graph must not wait for that.
                let _ = out.send((Instant::now(), it));
            }
        }
    });
    seen
}

/// The kernels of one worker without a dataflow: bars, then scan.
pub(crate) struct Kernels {
    bars: Bars,
    scan: Scan,
}

impl Kernels {
    /// Of one worker.
    pub(crate) fn new(setup: &Setup) -> anyhow::Result<Kernels> {
        let scan = Scan::new(ScanConfig {
            timeframes: setup.timeframes.clone(),
            indicators: setup.indicators.clone(),
            instruments: setup.instruments.clone(),
            index: 0,
            peers: 1,
        })?;
        Ok(Kernels { bars: Bars::new(setup.instruments.clone(), setup.timeframes[0]), scan })
    }

    /// An epoch of ticks through both.
    pub(crate) fn ticks(&mut self, records: Vec<Record>, progress: Progress) -> ScanOutput {
        let ticks = records.into_iter().collect::<Ticks>();
        let bars = self.bars.epoch(&[ticks.into()], Some(progress)).bars;
        self.scan.epoch(bars, Some(progress), &[], true)
    }

    /// An epoch of ticks through the bars alone.
    pub(crate) fn log(&mut self, records: Vec<Record>, progress: Progress) {
        let ticks = records.into_iter().collect::<Ticks>();
        self.bars.epoch(&[ticks.into()], Some(progress));
    }

    /// An epoch of base bars, straight into the scan. Metrics only if they are asked for.
    pub(crate) fn scan(
        &mut self,
        bars: Vec<BarUpsert>,
        progress: Option<Progress>,
        edits: &[ConfigUpdate],
        metrics: bool,
    ) -> ScanOutput {
        self.scan.epoch(bars, progress, edits, metrics)
    }
}

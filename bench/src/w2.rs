//! W2: 400 EMA-cross variants over 500,000 one-minute bars. The baseline is a plain loop a variant; the subject is the
//! scan, alone and in the whole graph: variants that are added at once to the history, one bar at a time with all live,
//! and variants that are added one by one while ticks flow.

use crate::Options;
use crate::drive::{Kernels, Seen, Session, Setup, batch, batches, each_output, each_row, tap};
use crate::loops::{self, BARS_A_YEAR, Variant, W2Sum};
use crate::measure::{Stopwatch, Took, timed};
use crate::report::{Goal, Report, Row};
use crate::workload;
use anyhow::Context as _;
use crossbeam_channel::Receiver;
use marea_model::output::{Metrics, MetricsWindow};
use marea_model::time::SECOND;
use marea_model::{
    BarBody, ConfigUpdate, Cursor, Event, Nanos, Partition, Price, Progress, Record, Size, StrategyId, Symbol, Tick,
    Timeframe,
};
use marea_operators::bars::BarUpsert;
use marea_operators::scan::ScanOutput;
use marea_sources::Input;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

const PART: &str = "w2";
/// Open time of the first bar.
pub(crate) const START: Nanos = 1_600_000_000 / 60 * 60 * SECOND;
pub(crate) const MINUTE: Nanos = 60 * SECOND;

/// The 400 variants.
pub(crate) fn variants() -> Vec<Variant> {
    (5..=24).flat_map(|fast| (0..20).map(move |i| (fast, 30 + 5 * i))).collect()
}

/// Closes as the loops want them.
pub(crate) fn prices(closes: &[i64]) -> Vec<f64> {
    closes.iter().map(|c| *c as f64 / 10_000.0).collect()
}

/// A close in units of 1e-4 as a price.
pub(crate) fn price(close: i64) -> Price {
    Price(close * 10_000)
}

fn key((fast, slow): Variant) -> String {
    format!("/marea/strategies/v-{fast}-{slow}")
}

/// A variant enters the collection of strategies.
pub(crate) fn put(variant: Variant) -> ConfigUpdate {
    let (fast, slow) = variant;
    let value = format!(
        r#"{{"kind":"ema_cross","fast":{fast},"slow":{slow},"sides":"long","timeframe":"1m","fill":"next_close",
        "seed":"first","size":1,"slippage_bps":5,"commission_bps":10}}"#
    );
    ConfigUpdate::Put { key: key(variant), value, revision: 1 }
}

fn delete(variant: Variant) -> ConfigUpdate {
    ConfigUpdate::Delete { key: key(variant), revision: 1 }
}

/// The base bar number `at`, of one trade.
pub(crate) fn bar(symbol: Symbol, at: usize, close: i64) -> BarUpsert {
    BarUpsert { symbol, open_time: START + at as i64 * MINUTE, body: Some(BarBody::first(price(close), Size(0))) }
}

/// `bars` bars have closed; nothing has sealed.
fn through(bars: usize) -> Option<Progress> {
    Some(Progress { sealed_through: i64::MIN, closed_through: START + bars as i64 * MINUTE })
}

/// The Sharpe ratio over the n − 1 returns without the first, which is 0, from the one over all n.
fn without_first(sharpe: f64, n: f64) -> f64 {
    // Scaled so that the mean of n is 1: then the sum is n, and the variance follows from the ratio.
    let variance = BARS_A_YEAR / (sharpe * sharpe);
    let squares = variance * (n - 1.0) + n;
    let mean = n / (n - 1.0);
    let variance = (squares - (n - 1.0) * mean * mean) / (n - 2.0);
    sharpe.signum() * mean / variance.sqrt() * BARS_A_YEAR.sqrt()
}

/// The metrics that stand, by strategy.
#[derive(Default)]
pub(crate) struct Standing(HashMap<StrategyId, Metrics>);

impl Standing {
    /// Looks at a row.
    pub(crate) fn see(&mut self, seen: &Seen<'_>) {
        if let Seen::Metrics(row) = seen
            && row.window == MetricsWindow::All
        {
            self.0.insert(row.strategy, row.metrics);
        }
    }

    /// Sums over some variants; an error if one has no metrics.
    pub(crate) fn sum(&self, variants: &[Variant]) -> anyhow::Result<W2Sum> {
        let mut sum = W2Sum::default();
        for (fast, slow) in variants {
            let id = StrategyId::new(&format!("v-{fast}-{slow}"))?;
            let m = self.0.get(&id).with_context(|| format!("{id} has no metrics"))?;
            let value = |v: Option<marea_model::F64>| v.map_or(0.0, |v| v.0);
            sum.total_return += value(m.total_return);
            sum.sharpe += without_first(value(m.sharpe), m.bars as f64);
            sum.drawdown += value(m.max_drawdown);
            sum.trades += m.trades;
            sum.win_rate += value(m.win_rate);
        }
        Ok(sum)
    }
}

fn agree(sum: &W2Sum, expected: &W2Sum) -> anyhow::Result<()> {
    anyhow::ensure!(sum.agrees(expected), "W2 checksum: {sum:?} is not the loop's {expected:?}");
    Ok(())
}

/// Runs W2.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let (bars, few) = if options.quick { (20_000, 1_000) } else { (500_000, 5_000) };
    let closes = workload::closes(bars);
    let prices = prices(&closes);
    let variants = variants();
    let setup = Setup::plain(Timeframe::M1);
    let symbol = Symbol::new("W2")?;
    let name = |n: usize| format!("{n} bars × {} variants", variants.len());
    let steps = |bars: usize| (bars * variants.len()) as f64;
    let (mut whole, mut part) = (Vec::new(), Vec::new());
    let (mut scan_at_once, mut scan_by_bar, mut graph_by_bar) = (Vec::new(), Vec::new(), Vec::new());
    let mut graph = Graph::with_history(&setup, symbol, &closes)?;
    let (mut graph_at_once, mut graph_removed) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (expected, took) = timed(|| loops::w2(&prices, &variants));
        if bars == 500_000 {
            agree(&expected, &W2Sum::EXPECTED)?;
        }
        whole.push(took);
        let (sum, took) = added_to_scan(&setup, symbol, &closes, &variants)?;
        agree(&sum, &expected)?;
        scan_at_once.push(took);
        let (sum, took) = graph.add(&variants)?;
        agree(&sum, &expected)?;
        graph_at_once.push(took);
        graph_removed.push(graph.remove(&variants)?);
        let (expected, took) = timed(|| loops::w2(&prices[..few], &variants));
        part.push(took);
        let (sum, took) = scan_by_bar_once(&setup, symbol, &closes[..few], &variants)?;
        agree(&sum, &expected)?;
        scan_by_bar.push(took);
        let (sum, took) = graph_by_bar_once(&setup, symbol, &closes[..few], &variants)?;
        agree(&sum, &expected)?;
        graph_by_bar.push(took);
    }
    let row = |what: String, bars, base: &[Took], subject: &[Took]| Row::rate(PART, what, steps(bars), base, subject);
    let at_once = |place: &str| format!("{}, added at once to {place}", name(bars));
    report.add(row(at_once("the scan"), bars, &whole, &scan_at_once).goal(Goal::RatioAtLeast(2.0)));
    let note = "until all metrics have come out of the graph";
    let in_graph = row(at_once("the graph"), bars, &whole, &graph_at_once).goal(Goal::RatioAtLeast(2.0));
    report.add(in_graph.note(note));
    let what = format!("{}, removed at once from the graph", name(bars));
    let removed = Row::time(PART, what, ("ms", 1e3), &whole, &graph_removed);
    report.add(removed.note("until all metrics and trades are withdrawn; baseline: the loop that computes them"));
    let by_bar = |place: &str| format!("{}, one closed bar an epoch, {place}", name(few));
    report.add(row(by_bar("scan"), few, &part, &scan_by_bar).goal(Goal::RatioAtLeast(1.0)));
    report.add(row(by_bar("graph"), few, &part, &graph_by_bar).goal(Goal::RatioAtLeast(1.0)));

    let one_by_one = if options.quick { 10 } else { 40 };
    let (mut base, mut subject) = (Vec::new(), Vec::new());
    for variant in variants.iter().step_by(variants.len() / one_by_one) {
        base.push(timed(|| std::hint::black_box(loops::w2(&prices, &[*variant]))).1);
        subject.push(graph.add_while_ticks_flow(*variant)?);
    }
    let what = format!("one variant × {bars} bars added while 10000 ticks/s flow, edit → metrics");
    report.add(
        Row::time(PART, what, ("ms", 1e3), &base, &subject)
            .note(format!("{} edits; baseline: the loop alone", base.len())),
    );
    Ok(())
}

/// The scan alone: all variants added to the history in one epoch.
fn added_to_scan(setup: &Setup, symbol: Symbol, closes: &[i64], variants: &[Variant]) -> anyhow::Result<(W2Sum, Took)> {
    let mut kernels = Kernels::new(setup)?;
    let bars = closes.iter().enumerate().map(|(i, c)| bar(symbol, i, *c)).collect();
    kernels.scan(bars, through(closes.len()), &[], true);
    let edits: Vec<ConfigUpdate> = variants.iter().map(|v| put(*v)).collect();
    let (out, took) = timed(|| kernels.scan(Vec::new(), None, &edits, true));
    let mut standing = Standing::default();
    each_output(out, |seen| standing.see(&seen));
    Ok((standing.sum(variants)?, took))
}

/// The scan alone: all variants live, one closed bar an epoch, everything emitted that has changed.
fn scan_by_bar_once(
    setup: &Setup,
    symbol: Symbol,
    closes: &[i64],
    variants: &[Variant],
) -> anyhow::Result<(W2Sum, Took)> {
    let mut kernels = Kernels::new(setup)?;
    let edits: Vec<ConfigUpdate> = variants.iter().map(|v| put(*v)).collect();
    kernels.scan(Vec::new(), None, &edits, true);
    let mut last = ScanOutput::default();
    let ((), took) = timed(|| {
        for (i, close) in closes.iter().enumerate() {
            // Metrics are given once a second, and here that is once: at the end.
            let metrics = i + 1 == closes.len();
            last = kernels.scan(vec![bar(symbol, i, *close)], through(i + 1), &[], metrics);
        }
    });
    let mut standing = Standing::default();
    each_output(last, |seen| standing.see(&seen));
    Ok((standing.sum(variants)?, took))
}

fn trade(partition: Partition, symbol: Symbol, offset: usize, event_time: Nanos, close: i64) -> Record {
    let event = Event::Trade { price: price(close), size: Size(100_000_000) };
    let cursor = Cursor { partition, offset: offset as u64, row: 0 };
    Record { cursor, tick: Tick { symbol, event_time, seq: offset as u64, event } }
}

/// The graph: all variants live, one tick a bar and an epoch.
fn graph_by_bar_once(
    setup: &Setup,
    symbol: Symbol,
    closes: &[i64],
    variants: &[Variant],
) -> anyhow::Result<(W2Sum, Took)> {
    let partition = Partition::new("w2")?;
    let setup = Setup { max_ticks: 1, ..setup.clone() };
    let edits = Input::Config(variants.iter().map(|v| put(*v)).collect());
    let record = |i: usize| trade(partition, symbol, i, START + i as i64 * MINUTE, closes[i]);
    let inputs = std::iter::once(edits).chain(batches(partition, closes.len(), record));
    let mut standing = Standing::default();
    let took = crate::drive::replay(&setup, inputs, |closed| each_row(closed, |seen| standing.see(&seen)))?;
    Ok((standing.sum(variants)?, took))
}

/// What the graph's reader hands on: the rows of metrics of an epoch.
/// None where they stand no more.
type Rows = Vec<(StrategyId, Option<Metrics>)>;

/// A graph that holds the history, and a tick of the bar after it, which stays open.
struct Graph {
    session: Session,
    seen: Receiver<(Instant, Rows)>,
    partition: Partition,
    symbol: Symbol,
    /// Ticks so far.
    ticks: usize,
    /// Event time of the last one.
    time: Nanos,
    close: i64,
}

impl Graph {
    fn with_history(setup: &Setup, symbol: Symbol, closes: &[i64]) -> anyhow::Result<Graph> {
        let (mut session, outputs) = Session::start(setup)?;
        let seen = tap(outputs, |closed| {
            let mut rows = Rows::new();
            each_row(closed, |seen| match seen {
                Seen::Metrics(row) if row.window == MetricsWindow::All => rows.push((row.strategy, Some(row.metrics))),
                Seen::NoMetrics(row) if row.window == MetricsWindow::All => rows.push((row.strategy, None)),
                _ => {}
            });
            (!rows.is_empty()).then_some(rows)
        });
        let partition = Partition::new("w2")?;
        let record = |i: usize| trade(partition, symbol, i, START + i as i64 * MINUTE, closes[i]);
        for input in batches(partition, closes.len(), record) {
            session.push(input);
            session.cut_full()?;
        }
        let (time, close) = (START + closes.len() as i64 * MINUTE, closes[closes.len() - 1]);
        let mut graph = Graph { session, seen, partition, symbol, ticks: closes.len(), time, close };
        graph.tick(0)?;
        Ok(graph)
    }

    /// One more tick, so much later, as an epoch of its own.
    fn tick(&mut self, later: Nanos) -> anyhow::Result<()> {
        self.time += later;
        let record = trade(self.partition, self.symbol, self.ticks, self.time, self.close);
        self.ticks += 1;
        self.session.push(batch(self.partition, [record], self.ticks as u64, false));
        Ok(self.session.cut_all()?)
    }

    /// Adds variants at once: until all of their metrics are out.
    fn add(&mut self, variants: &[Variant]) -> anyhow::Result<(W2Sum, Took)> {
        // What was before must be through.
        std::thread::sleep(Duration::from_millis(500));
        let mut standing = Standing::default();
        let watch = Stopwatch::start();
        self.session.push(Input::Config(variants.iter().map(|v| put(*v)).collect()));
        self.session.cut_all()?;
        while standing.0.len() < variants.len() {
            let (_, rows) = self.seen.recv_timeout(Duration::from_secs(600)).context("no metrics came out")?;
            standing.0.extend(rows.into_iter().filter_map(|(id, metrics)| Some((id, metrics?))));
        }
        let took = watch.took();
        Ok((standing.sum(variants)?, took))
    }

    /// Removes variants at once: until none of their metrics stands, so that nothing of it is left to be done when the
    /// next are added.
    fn remove(&mut self, variants: &[Variant]) -> anyhow::Result<Took> {
        let watch = Stopwatch::start();
        self.session.push(Input::Config(variants.iter().map(|v| delete(*v)).collect()));
        self.session.cut_all()?;
        let mut standing: HashSet<StrategyId> = variants
            .iter()
            .map(|(fast, slow)| StrategyId::new(&format!("v-{fast}-{slow}")))
            .collect::<Result<_, _>>()?;
        while !standing.is_empty() {
            let (_, rows) = self.seen.recv_timeout(Duration::from_secs(600)).context("metrics did not go")?;
            rows.iter().filter(|(_, metrics)| metrics.is_none()).for_each(|(id, _)| {
                standing.remove(id);
            });
        }
        Ok(watch.took())
    }

    /// Adds one variant while a tick comes every 100 µs: from the edit until its metrics are out.
    fn add_while_ticks_flow(&mut self, variant: Variant) -> anyhow::Result<Took> {
        const GAP: Duration = Duration::from_micros(100);
        // 50 ms of ticks before the edit, in which what came before goes through.
        for _ in 0..500 {
            std::thread::sleep(GAP);
            self.tick(1_000)?;
        }
        let begin = Instant::now();
        self.session.push(Input::Config(vec![put(variant)]));
        self.session.cut_all()?;
        loop {
            if let Ok((at, rows)) = self.seen.try_recv()
                && rows
                    .iter()
                    .any(|(id, _)| *id == StrategyId::new(&format!("v-{}-{}", variant.0, variant.1)).unwrap_or(*id))
            {
                let wall = at.duration_since(begin).as_secs_f64();
                return Ok(Took { wall, cpu: f64::NAN });
            }
            anyhow::ensure!(begin.elapsed() < Duration::from_secs(60), "no metrics came out");
            std::thread::sleep(GAP);
            self.tick(1_000)?;
        }
    }
}

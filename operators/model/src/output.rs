//! Rows of the state tables, and how they change.

use crate::account::AccountSnapshot;
use crate::bar::Bar;
use crate::cursor::{DeadLetter, PartitionMark, RawMessage};
use crate::name::{AccountId, StrategyId, Symbol};
use crate::num::F64;
use crate::progress::Progress;
use crate::recommendation::Recommendation;
use crate::tick::{Quote, Tick};
use crate::time::{Epoch, Nanos, Timeframe};
use crate::verdict::Verdict;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// One value of an indicator at a closed bar. Undefined values have no row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IndicatorRow {
    /// The instrument.
    pub symbol: Symbol,
    /// The bars.
    pub timeframe: Timeframe,
    /// The bar.
    pub open_time: Nanos,
    /// `ema(12)`, `macd(12,26,9).signal` …
    pub name: Arc<str>,
    /// The value.
    pub value: F64,
}

/// Why a backtest's trade ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ExitReason {
    /// The rule's side changed.
    Signal,
    /// The stop was hit.
    StopLoss,
    /// The target was hit.
    TakeProfit,
}

impl ExitReason {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Signal => "signal",
            ExitReason::StopLoss => "stop_loss",
            ExitReason::TakeProfit => "take_profit",
        }
    }
}

/// One closed trade of a backtest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TradeRow {
    /// The strategy.
    pub strategy: StrategyId,
    /// The instrument.
    pub symbol: Symbol,
    /// The bars.
    pub timeframe: Timeframe,
    /// Open time of the bar it entered in (`next_open`), or that bar's close time (`next_close`).
    pub entry_time: Nanos,
    /// 1 long, −1 short.
    pub side: i8,
    /// Fill price, slippage included.
    pub entry_price: F64,
    /// Open time (an exit at the open) or close time (at the close, a stop or a target inside) of the bar it left in.
    pub exit_time: Nanos,
    /// Fill price, slippage included.
    pub exit_price: F64,
    /// Units, positive.
    pub quantity: F64,
    /// Profit and loss net of fees, in money.
    pub pnl: F64,
    /// Both commissions, in money.
    pub fees: F64,
    /// Why it ended.
    pub exit_reason: ExitReason,
}

/// The backtest metrics of a window. Undefined is none, never 0 or NaN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Metrics {
    /// Bars in the window.
    pub bars: u64,
    /// Closed trades that exit in it.
    pub trades: u64,
    /// last ÷ first equity − 1.
    pub total_return: Option<F64>,
    /// (last ÷ first)^(periods a year ÷ n) − 1.
    pub cagr: Option<F64>,
    /// mean ÷ std(ddof 1) · √(periods a year); none without variance.
    pub sharpe: Option<F64>,
    /// mean ÷ √(mean of min(r, 0)²) · √(periods a year).
    pub sortino: Option<F64>,
    /// max(1 − equity ÷ peak), positive.
    pub max_drawdown: Option<F64>,
    /// cagr ÷ max_drawdown.
    pub calmar: Option<F64>,
    /// total_return ÷ max_drawdown.
    pub recovery_factor: Option<F64>,
    /// Share of trades with pnl > 0.
    pub win_rate: Option<F64>,
    /// Σ wins ÷ −Σ losses.
    pub profit_factor: Option<F64>,
    /// Mean pnl of a trade, in money.
    pub expectancy: Option<F64>,
    /// Mean of pnl ÷ initial risk, over trades that had a stop.
    pub mean_r: Option<F64>,
    /// Mean of pnl > 0.
    pub average_win: Option<F64>,
    /// Mean of pnl ≤ 0 (negative or 0).
    pub average_loss: Option<F64>,
    /// Greatest pnl > 0.
    pub largest_win: Option<F64>,
    /// Least pnl ≤ 0.
    pub largest_loss: Option<F64>,
    /// Commissions of the trades, in money.
    pub fees: Option<F64>,
    /// Mean time from entry to exit, in seconds.
    pub average_duration: Option<F64>,
    /// Share of bars at whose close a position was held.
    pub time_in_market: Option<F64>,
    /// last close ÷ the close before the window (over all history: the first close) − 1.
    pub buy_and_hold_return: Option<F64>,
}

impl Metrics {
    /// (name, value) of every metric, in the order of the columns.
    pub fn named(&self) -> [(&'static str, Option<f64>); 21] {
        let f = |v: Option<F64>| v.map(|v| v.0);
        [
            ("bars", Some(self.bars as f64)),
            ("trades", Some(self.trades as f64)),
            ("total_return", f(self.total_return)),
            ("cagr", f(self.cagr)),
            ("sharpe", f(self.sharpe)),
            ("sortino", f(self.sortino)),
            ("max_drawdown", f(self.max_drawdown)),
            ("calmar", f(self.calmar)),
            ("recovery_factor", f(self.recovery_factor)),
            ("win_rate", f(self.win_rate)),
            ("profit_factor", f(self.profit_factor)),
            ("expectancy", f(self.expectancy)),
            ("mean_r", f(self.mean_r)),
            ("average_win", f(self.average_win)),
            ("average_loss", f(self.average_loss)),
            ("largest_win", f(self.largest_win)),
            ("largest_loss", f(self.largest_loss)),
            ("fees", f(self.fees)),
            ("average_duration", f(self.average_duration)),
            ("time_in_market", f(self.time_in_market)),
            ("buy_and_hold_return", f(self.buy_and_hold_return)),
        ]
    }
}

/// The window of a row of metrics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MetricsWindow {
    /// All history.
    All,
    /// The last closed bar's UTC day and the 29 before.
    Days30,
}

impl MetricsWindow {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            MetricsWindow::All => "all",
            MetricsWindow::Days30 => "30d",
        }
    }
}

/// The metrics of a strategy on a symbol over a window.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MetricsRow {
    /// The strategy.
    pub strategy: StrategyId,
    /// The instrument.
    pub symbol: Symbol,
    /// The bars.
    pub timeframe: Timeframe,
    /// The window.
    pub window: MetricsWindow,
    /// The last closed bar's open time.
    pub as_of: Nanos,
    /// The figures.
    pub metrics: Metrics,
}

/// A row of any state table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Output {
    /// `bars`
    Bar(Bar),
    /// `indicators`
    Indicator(IndicatorRow),
    /// `trades`
    Trade(TradeRow),
    /// `metrics`
    Metrics(Box<MetricsRow>),
    /// `recommendations`
    Recommendation(Arc<Recommendation>),
    /// `verdicts`
    Verdict(Arc<Verdict>),
}

/// What names a row within the state: at any closed epoch a key has at most one row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// Of `bars`.
    Bar(Symbol, Timeframe, Nanos),
    /// Of `indicators`.
    Indicator(Symbol, Timeframe, Nanos, Arc<str>),
    /// Of `trades`: strategy, symbol, timeframe, entry time, side.
    Trade(StrategyId, Symbol, Timeframe, Nanos, i8),
    /// Of `metrics`.
    Metrics(StrategyId, Symbol, Timeframe, MetricsWindow),
    /// Of `recommendations`.
    Recommendation(Symbol),
    /// Of `verdicts`.
    Verdict(AccountId, Symbol),
}

impl Output {
    /// Its key.
    pub fn key(&self) -> Key {
        match self {
            Output::Bar(b) => Key::Bar(b.symbol, b.timeframe, b.open_time),
            Output::Indicator(i) => Key::Indicator(i.symbol, i.timeframe, i.open_time, i.name.clone()),
            Output::Trade(t) => Key::Trade(t.strategy, t.symbol, t.timeframe, t.entry_time, t.side),
            Output::Metrics(m) => Key::Metrics(m.strategy, m.symbol, m.timeframe, m.window),
            Output::Recommendation(r) => Key::Recommendation(r.symbol),
            Output::Verdict(v) => Key::Verdict(v.account, v.symbol),
        }
    }
}

/// A row inserted (`diff` 1) or retracted (−1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Delta {
    /// The row.
    pub output: Output,
    /// 1 or −1.
    pub diff: i64,
}

/// The net change of one key over an epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The row that now stands.
    Upsert(Output),
    /// No row stands any more; the row that stood.
    Delete(Output),
}

/// Records counted: `records_in = accepted + duplicate + dead + held`, over the whole run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Totals {
    /// Records that arrived, readable or not.
    pub records_in: i64,
    /// Records that count.
    pub accepted: i64,
    /// Records that were there already.
    pub duplicate: i64,
    /// Dead letters.
    pub dead: i64,
    /// Busts, corrections and amends that wait for their target or seal (over an epoch: the change).
    pub held: i64,
    /// Records whose unknown fields were ignored.
    pub unknown_fields: i64,
}

impl Totals {
    /// Adds the counts of another epoch or worker.
    pub fn add(&mut self, other: &Totals) {
        self.records_in += other.records_in;
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        self.dead += other.dead;
        self.held += other.held;
        self.unknown_fields += other.unknown_fields;
    }

    /// Whether nothing was lost and nothing invented.
    pub fn balanced(&self) -> bool {
        self.records_in == self.accepted + self.duplicate + self.dead + self.held
    }
}

/// The indicators of newly closed bars, a row a bar: the values of a set of names. Undefined values are NaN here, and
/// have no row in the state.
#[derive(Clone, Debug, Default)]
pub struct IndicatorBars {
    blocks: Vec<IndicatorBlock>,
    open_times: Vec<Nanos>,
    values: Vec<f64>,
}

/// Bars of one symbol, one after the other.
#[derive(Clone, Debug)]
struct IndicatorBlock {
    symbol: Symbol,
    timeframe: Timeframe,
    names: Arc<[Arc<str>]>,
    bars: usize,
}

impl IndicatorBars {
    /// Bars held.
    pub fn len(&self) -> usize {
        self.open_times.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open_times.is_empty()
    }

    /// Makes room for more bars, with so many values in all.
    pub fn reserve(&mut self, bars: usize, values: usize) {
        self.open_times.reserve(bars);
        self.values.reserve(values);
    }

    /// Appends a row for each of these bars of one symbol, all undefined; gives their values to be filled in, bar by bar,
    /// in the order of `names`.
    pub fn extend(
        &mut self,
        symbol: Symbol,
        timeframe: Timeframe,
        open_times: &[Nanos],
        names: &Arc<[Arc<str>]>,
    ) -> &mut [f64] {
        let from = self.values.len();
        self.blocks.push(IndicatorBlock { symbol, timeframe, names: names.clone(), bars: open_times.len() });
        self.open_times.extend_from_slice(open_times);
        self.values.resize(from + open_times.len() * names.len(), f64::NAN);
        &mut self.values[from..]
    }

    /// Appends all of another.
    pub fn append(&mut self, mut other: IndicatorBars) {
        if self.is_empty() {
            *self = other;
            return;
        }
        self.blocks.append(&mut other.blocks);
        self.open_times.append(&mut other.open_times);
        self.values.append(&mut other.values);
    }

    /// Symbol, timeframe, names, open times, and values bar by bar, of bars of one symbol and timeframe after the other.
    pub fn blocks(&self) -> impl Iterator<Item = (Symbol, Timeframe, &[Arc<str>], &[Nanos], &[f64])> {
        let (mut open_times, mut values) = (&*self.open_times, &*self.values);
        self.blocks.iter().map(move |block| {
            let (times, later) = open_times.split_at(block.bars);
            let (these, others) = values.split_at(block.bars * block.names.len());
            (open_times, values) = (later, others);
            (block.symbol, block.timeframe, &*block.names, times, these)
        })
    }

    /// One row of the state each.
    pub fn rows(&self) -> impl Iterator<Item = IndicatorRow> {
        self.blocks().flat_map(|(symbol, timeframe, names, open_times, values)| {
            let bars = open_times.iter().zip(values.chunks(names.len()));
            bars.flat_map(move |(open_time, values)| {
                names.iter().zip(values).filter(|(_, value)| !value.is_nan()).map(move |(name, value)| IndicatorRow {
                    symbol,
                    timeframe,
                    open_time: *open_time,
                    name: name.clone(),
                    value: F64(*value),
                })
            })
        })
    }
}

/// Rows that stand now: new, or in the place of one of the same key. This is how most rows come, by table and in no
/// particular order, so that nobody has to compare them.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Of `bars`.
    pub bars: Vec<Bar>,
    /// Of `indicators`, for bars that have closed.
    pub indicators: IndicatorBars,
    /// Of `trades`.
    pub trades: Vec<TradeRow>,
    /// Of `metrics`.
    pub metrics: Vec<MetricsRow>,
}

impl Rows {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bars.is_empty() && self.indicators.is_empty() && self.trades.is_empty() && self.metrics.is_empty()
    }

    /// Appends all of another.
    pub fn append(&mut self, mut other: Rows) {
        fn append<T>(all: &mut Vec<T>, other: &mut Vec<T>) {
            if all.is_empty() { std::mem::swap(all, other) } else { all.append(other) }
        }
        append(&mut self.bars, &mut other.bars);
        append(&mut self.trades, &mut other.trades);
        append(&mut self.metrics, &mut other.metrics);
        self.indicators.append(other.indicators);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bars.len() + self.indicators.values.len() + self.trades.len() + self.metrics.len()
    }

    /// The same, one by one.
    pub fn outputs(&self) -> impl Iterator<Item = Output> {
        let bars = self.bars.iter().copied().map(Output::Bar);
        let indicators = self.indicators.rows().map(Output::Indicator);
        let trades = self.trades.iter().cloned().map(Output::Trade);
        let metrics = self.metrics.iter().map(|row| Output::Metrics(Box::new(*row)));
        bars.chain(indicators).chain(trades).chain(metrics)
    }
}

/// What one closed epoch did, gathered from all workers: all that a sink needs. A key stands in one of `rows` and
/// `changes` at most.
#[derive(Clone, Debug)]
pub struct ClosedEpoch {
    /// The epoch.
    pub epoch: Epoch,
    /// Rows that stand now. Shared: they may be many, and are read long after the epoch was told.
    pub rows: Arc<Rows>,
    /// The net change of each other key, ordered by key.
    pub changes: Vec<Change>,
    /// Dead letters, ordered.
    pub dead: Vec<DeadLetter>,
    /// Counts of this epoch alone.
    pub totals: Totals,
    /// Accepted prices far from the one before them as they came: a hint for people, which no state keeps.
    pub price_jumps: i64,
    /// Where each partition stands that does not stand where it stood.
    pub marks: Vec<PartitionMark>,
    /// Messages of sources that cannot be asked for them again.
    pub raw: Vec<RawMessage>,
    /// The latest quote of each symbol whose latest quote changed, and of each that is new.
    pub quotes: Vec<(Symbol, Option<Quote>)>,
    /// Snapshots of accounts, as they came.
    pub accounts: Vec<AccountSnapshot>,
    /// Amends, as they came.
    pub amends: Vec<Tick>,
    /// As of its end.
    pub progress: Progress,
    /// Whether metrics were asked for: else those of the last epoch that was asked stand on, until the next one that is.
    pub metrics: bool,
    /// When all workers were through with it.
    pub closed_at: Instant,
}

impl ClosedEpoch {
    /// An epoch in which nothing happened, metrics asked for.
    pub fn empty(epoch: Epoch) -> Self {
        ClosedEpoch {
            epoch,
            rows: Arc::default(),
            changes: Vec::new(),
            dead: Vec::new(),
            totals: Totals::default(),
            price_jumps: 0,
            marks: Vec::new(),
            raw: Vec::new(),
            quotes: Vec::new(),
            accounts: Vec::new(),
            amends: Vec::new(),
            progress: Progress::START,
            metrics: true,
            closed_at: Instant::now(),
        }
    }

    /// Makes changes of all rows: then `changes` has the net change of every key, ordered by key.
    pub fn expand(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        let rows = std::mem::take(&mut self.rows);
        self.changes.extend(rows.outputs().map(Change::Upsert));
        self.changes.sort_by_cached_key(|change| match change {
            Change::Upsert(output) | Change::Delete(output) => output.key(),
        });
    }
}

/// Nets the deltas of an epoch into at most one change a key, ordered by key. Rows that come and go leave nothing.
///
/// # Panics
/// If a key ends with two rows or a row is retracted twice: then an operator is wrong, and nothing may be committed.
pub fn net(mut deltas: Vec<Delta>) -> Vec<Change> {
    deltas.sort_by(|a, b| a.output.cmp(&b.output));
    let mut rows: Vec<Delta> = Vec::with_capacity(deltas.len());
    for delta in deltas {
        match rows.last_mut() {
            Some(last) if last.output == delta.output => last.diff += delta.diff,
            _ => rows.push(delta),
        }
    }
    rows.retain(|d| d.diff != 0);
    let mut keyed: Vec<(Key, Delta)> = rows.into_iter().map(|d| (d.output.key(), d)).collect();
    keyed.sort_by(|(a, x), (b, y)| a.cmp(b).then(x.diff.cmp(&y.diff)));
    let mut changes: Vec<Change> = Vec::with_capacity(keyed.len());
    let mut last_key: Option<Key> = None;
    for (key, delta) in keyed {
        assert!(delta.diff.abs() == 1, "row with multiplicity {}: {:?}", delta.diff, delta.output);
        // A key's retraction sorts before its insertion, which replaces it.
        if last_key.as_ref() == Some(&key) {
            match changes.last() {
                Some(Change::Delete(_)) if delta.diff == 1 => {
                    changes.pop();
                }
                _ => panic!("two rows for one key: {:?}", delta.output),
            }
        }
        changes.push(if delta.diff == 1 { Change::Upsert(delta.output) } else { Change::Delete(delta.output) });
        last_key = Some(key);
    }
    changes
}

//! A strategy among the consumers of a lane: what it has said, and the days behind its trailing metrics.

use super::ScanOutput;
use crate::backtest::{Backtest, ClosedTrade, ColumnEvents, DayPartial, Params, metrics, metrics_all};
use crate::series::Series;
use marea_model::output::MetricsWindow;
use marea_model::recommendation::Contribution;
use marea_model::{Delta, F64, Metrics, MetricsRow, Nanos, Output, Strategy, Symbol, Timeframe, TradeRow};
use std::ops::Range;
use std::sync::Arc;

/// Days of the trailing window, the last closed bar's included.
pub(super) const TRAILING_DAYS: i32 = 30;
/// Completed days kept beyond those: what may be deleted at the tip before a consumer must start over.
const SPARE_DAYS: i32 = 3;

/// A strategy on these bars; its state is among the columns.
pub(super) struct BacktestConsumer {
    pub(super) strategy: Arc<Strategy>,
    pub(super) params: Params,
    /// Where its state is.
    pub(super) slot: usize,
    /// Completed UTC days, oldest first, from `days_from` on.
    days: Vec<DayPartial>,
    /// The merge of those in the trailing window, and its first day, until days change.
    merged: Option<(i32, Option<DayPartial>)>,
    days_from: i32,
    /// What stands downstream.
    pub(super) contribution: Option<Box<Contribution>>,
    metrics: Option<Box<[MetricsRow; 2]>>,
}

/// Which consumer has a slot.
pub(super) fn slots(consumers: &[BacktestConsumer]) -> Vec<usize> {
    let mut by_slot = Vec::new();
    for (at, consumer) in consumers.iter().enumerate() {
        if by_slot.len() <= consumer.slot {
            by_slot.resize(consumer.slot + 1, usize::MAX);
        }
        by_slot[consumer.slot] = at;
    }
    by_slot
}

/// Where rows of trades go.
pub(super) enum Trades<'a> {
    /// They are new.
    Rows(&'a mut Vec<TradeRow>),
    /// They come or go.
    Deltas(&'a mut Vec<Delta>),
}

impl<'a> Trades<'a> {
    pub(super) fn of(retracts: bool, out: &'a mut ScanOutput) -> Self {
        if retracts { Trades::Deltas(&mut out.deltas) } else { Trades::Rows(&mut out.rows.trades) }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Trades::Rows(rows) => rows.len(),
            Trades::Deltas(deltas) => deltas.len(),
        }
    }

    /// Makes room: rows that grow by doubling are copied, and touch twice the memory.
    pub(super) fn reserve(&mut self, more: usize) {
        match self {
            Trades::Rows(rows) => rows.reserve(more),
            Trades::Deltas(deltas) => deltas.reserve(more),
        }
    }
}

/// Takes down what backtests do: rows of trades, and completed days.
pub(super) struct Tape<'a> {
    pub(super) key: (Symbol, Timeframe),
    pub(super) consumers: &'a mut [BacktestConsumer],
    pub(super) by_slot: &'a [usize],
    pub(super) rows: Trades<'a>,
}

impl ColumnEvents for Tape<'_> {
    fn trade(&mut self, slot: usize, diff: i64, trade: &ClosedTrade) {
        let id = self.consumers[self.by_slot[slot]].strategy.id;
        let row = trade.row(id, self.key.0, self.key.1);
        match &mut self.rows {
            Trades::Rows(rows) => rows.push(row),
            Trades::Deltas(deltas) => deltas.push(Delta { output: Output::Trade(row), diff }),
        }
    }

    fn day(&mut self, slot: usize, day: &DayPartial) {
        self.consumers[self.by_slot[slot]].complete_day(day);
    }

    fn withdraw_days(&mut self, slot: usize, range: Range<i32>) {
        self.consumers[self.by_slot[slot]].withdraw_days(range);
    }
}

/// The last closed bar of a symbol, and what a strategy has made of all bars up to it.
pub(super) struct Tip<'a> {
    pub(super) symbol: Symbol,
    pub(super) as_of: Nanos,
    pub(super) state: &'a Backtest,
}

impl BacktestConsumer {
    /// One that has seen nothing, and whose state is in this slot.
    pub(super) fn new(strategy: Arc<Strategy>, params: Params, slot: usize) -> Self {
        BacktestConsumer {
            strategy,
            params,
            slot,
            days: Vec::new(),
            merged: None,
            days_from: i32::MIN,
            contribution: None,
            metrics: None,
        }
    }

    /// Whether a day that the trailing window may need, where the last closed bar is of day `tip`, has been let go.
    pub(super) fn lacks_days(&self, tip: i32) -> bool {
        tip - TRAILING_DAYS + 1 < self.days_from
    }

    /// All days will be told again.
    pub(super) fn start_over(&mut self) {
        self.days_from = i32::MIN;
    }

    /// Takes a completed day, and lets go of those that are far out of the trailing window.
    fn complete_day(&mut self, day: &DayPartial) {
        self.merged = None;
        // The last closed bar is of a later day.
        let oldest = day.day + 2 - TRAILING_DAYS - SPARE_DAYS;
        if self.days.first().is_some_and(|first| first.day < oldest - SPARE_DAYS) {
            self.days.retain(|day| day.day >= oldest);
            self.days_from = self.days_from.max(oldest);
        }
        if self.days.len() == self.days.capacity() {
            self.days.reserve_exact(4);
        }
        // What is replayed may lie before days that stay.
        let at = match self.days.last() {
            Some(last) if last.day > day.day => self.days.partition_point(|other| other.day < day.day),
            _ => self.days.len(),
        };
        self.days.insert(at, *day);
    }

    /// Forgets days that are not so. Most edits lie in the current day, and none is.
    fn withdraw_days(&mut self, range: Range<i32>) {
        if self.days.last().is_some_and(|last| last.day >= range.start) {
            self.merged = None;
            self.days.retain(|day| !range.contains(&day.day));
        }
    }

    /// The metrics of the trailing window. Its completed days are merged once a day, not once a bar.
    fn trailing(&mut self, state: &Backtest) -> Metrics {
        let current = state.day();
        let first = current.day - (TRAILING_DAYS - 1);
        let merged = match self.merged {
            Some((of, merged)) if of == first => merged,
            _ => {
                let mut days = self.days.iter().filter(|day| (first..current.day).contains(&day.day));
                let mut merged = days.next().copied();
                if let Some(merged) = &mut merged {
                    days.for_each(|day| merged.merge(day));
                }
                self.merged = Some((first, merged));
                merged
            }
        };
        match merged {
            None => metrics(current, &self.params),
            Some(mut window) => {
                window.merge(current);
                metrics(&window, &self.params)
            }
        }
    }

    /// Emits the contribution as of the last closed bar, and withdraws what stood; nothing where both agree.
    pub(super) fn contribute(&mut self, tip: Option<Tip<'_>>, tail: &Series, out: &mut ScanOutput) {
        let fresh = tip.map(|tip| Box::new(self.says(&tip, tail)));
        if fresh != self.contribution {
            out.contributions.extend(self.contribution.take().map(|row| (*row, -1)));
            out.contributions.extend(fresh.clone().map(|row| (*row, 1)));
            self.contribution = fresh;
        }
    }

    /// Emits the metrics as of the last closed bar, where they have changed.
    pub(super) fn give_metrics(&mut self, tip: Option<Tip<'_>>, retracts: bool, out: &mut ScanOutput) {
        let fresh = tip.map(|tip| self.figures(tip));
        let delta = |row: MetricsRow, diff| Delta { output: Output::Metrics(Box::new(row)), diff };
        match (&mut self.metrics, fresh) {
            (Some(standing), Some(fresh)) if !retracts => {
                let changed = fresh.iter().zip(&**standing).filter(|(new, old)| new != old);
                out.rows.metrics.extend(changed.map(|(new, _)| *new));
                **standing = fresh;
            }
            (None, Some(fresh)) if !retracts => {
                out.rows.metrics.extend(fresh);
                self.metrics = Some(Box::new(fresh));
            }
            (Some(standing), Some(fresh)) => {
                for (old, new) in standing.iter_mut().zip(fresh).filter(|(old, new)| **old != *new) {
                    out.deltas.extend([delta(*old, -1), delta(new, 1)]);
                    *old = new;
                }
            }
            (standing, fresh) => {
                out.deltas.extend(standing.take().into_iter().flat_map(|rows| rows.map(|row| delta(row, -1))));
                out.deltas.extend(fresh.into_iter().flat_map(|rows| rows.map(|row| delta(row, 1))));
                *standing = fresh.map(Box::new);
            }
        }
    }

    fn figures(&mut self, Tip { symbol, as_of, state }: Tip<'_>) -> [MetricsRow; 2] {
        let (strategy, timeframe) = (self.strategy.id, self.strategy.timeframe);
        let row = |window, metrics| MetricsRow { strategy, symbol, timeframe, window, as_of, metrics };
        [row(MetricsWindow::All, metrics_all(state, &self.params)), row(MetricsWindow::Days30, self.trailing(state))]
    }

    fn says(&mut self, tip: &Tip<'_>, tail: &Series) -> Contribution {
        let Tip { symbol, state, .. } = *tip;
        let trailing = self.trailing(state);
        Contribution {
            symbol,
            strategy: self.strategy.id,
            timeframe: self.strategy.timeframe,
            kind: self.strategy.kind,
            weight: self.strategy.weight,
            side: state.standing_side(),
            confidence: F64(state.confidence(&self.params)),
            trades: trailing.trades,
            trailing_return: trailing.total_return,
            sharpe: trailing.sharpe,
            win_rate: trailing.win_rate,
            values: state.values(&self.params, tail, tail.len().saturating_sub(1)).map(|v| v.map(F64)),
        }
    }
}

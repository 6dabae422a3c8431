//! The consumers of one (symbol, timeframe)'s closed bars on this worker.

use super::ScanOutput;
use super::track::{GAP, Mark, Span, Track, retain, thin};
use crate::backtest::{Backtest, ClosedTrade, DayPartial, Events, Params, metrics_30d, metrics_all};
use crate::history::History;
use crate::indicators::{Indicator, IndicatorSpec, Values};
use crate::series::{Series, SeriesBar, utc_day};
use marea_model::num::fixed_to_f64;
use marea_model::output::MetricsWindow;
use marea_model::recommendation::{Contribution, DecisionBar};
use marea_model::strategy::ATR_PERIOD;
use marea_model::{
    BarBody, Delta, F64, IndicatorRow, MetricsRow, Nanos, Output, Strategy, StrategyId, Symbol, Timeframe,
};
use std::sync::Arc;

/// Days of the trailing window, the last closed bar's included.
const TRAILING_DAYS: i32 = 30;
/// Completed days kept beyond those: what may be deleted at the tip before a consumer must start over.
const SPARE_DAYS: i32 = 30;
/// Bars behind the tip that are kept as doubles beyond what the consumers look back at.
const TAIL: usize = 256;
/// What the levels of a recommendation are measured in.
pub(super) const DECISION_ATR: IndicatorSpec = IndicatorSpec::Atr { period: ATR_PERIOD };

/// One closed bar that changed: what stood and what stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edit {
    pub(super) open_time: Nanos,
    pub(super) old: Option<BarBody>,
    pub(super) new: Option<BarBody>,
}

struct IndicatorConsumer {
    spec: IndicatorSpec,
    /// Empty for one that is only read here (the decision bar's ATR).
    names: Vec<Arc<str>>,
    initial: Stepped,
    track: Track<Stepped>,
}

/// An indicator, and its values at the last bar that it has seen.
type Stepped = (Indicator, Values);

struct BacktestConsumer {
    strategy: Arc<Strategy>,
    params: Params,
    initial: Backtest,
    track: Track<Backtest>,
    /// Completed UTC days, oldest first, from `days_from` on.
    days: Vec<DayPartial>,
    days_from: i32,
    /// What stands downstream.
    emitted: Option<Box<(MetricsRow, MetricsRow, Contribution)>>,
}

/// One (symbol, timeframe) and its consumers.
pub(super) struct Lane {
    symbol: Symbol,
    timeframe: Timeframe,
    scale: u8,
    /// Closed bars, a prefix of the history.
    closed: usize,
    last_closed: Option<Nanos>,
    /// The last closed bars, as doubles.
    tail: Series,
    lookback: usize,
    marks: Vec<Mark>,
    indicators: Vec<IndicatorConsumer>,
    backtests: Vec<BacktestConsumer>,
}

fn push(series: &mut Series, open_time: Nanos, body: &BarBody, scale: u8) {
    series.push(SeriesBar {
        open_time,
        open: body.open.to_f64(scale),
        high: body.high.to_f64(scale),
        low: body.low.to_f64(scale),
        close: body.close.to_f64(scale),
        volume: fixed_to_f64(body.volume, 8),
        turnover: fixed_to_f64(body.turnover, scale) / 1e8,
    });
}

/// Adds a row, or cancels the opposite one that has just been added.
fn emit(deltas: &mut Vec<Delta>, output: Output, diff: i64) {
    let recent = deltas.len().saturating_sub(8);
    match deltas[recent..].iter().position(|d| d.diff == -diff && d.output == output) {
        Some(at) => {
            deltas.swap_remove(recent + at);
        }
        None => deltas.push(Delta { output, diff }),
    }
}

fn emit_indicator(
    key: (Symbol, Timeframe),
    names: &[Arc<str>],
    values: &Values,
    at: Nanos,
    diff: i64,
    out: &mut ScanOutput,
) {
    for (name, value) in names.iter().zip(values) {
        if let Some(value) = *value {
            let row =
                IndicatorRow { symbol: key.0, timeframe: key.1, open_time: at, name: name.clone(), value: F64(value) };
            emit(&mut out.deltas, Output::Indicator(row), diff);
        }
    }
}

impl Lane {
    pub(super) fn new(symbol: Symbol, timeframe: Timeframe, scale: u8) -> Self {
        Lane {
            symbol,
            timeframe,
            scale,
            closed: 0,
            last_closed: None,
            tail: Series::new(),
            lookback: 1,
            marks: Vec::new(),
            indicators: Vec::new(),
            backtests: Vec::new(),
        }
    }

    /// The closed bars `history[from..to]` as doubles.
    fn segment(&self, history: &History, from: usize, to: usize) -> Series {
        let mut series = Series::new();
        for i in from..to {
            push(&mut series, history.open_times()[i], &history.body(i), self.scale);
        }
        series
    }

    /// A span in which all closed bars are new.
    fn whole(&self, history: &History) -> Span {
        Span { old: Series::new(), new: self.segment(history, 0, self.closed), from: 0, last_edit: Nanos::MAX }
    }

    fn grow_lookback(&mut self, history: &History, lookback: usize) {
        if lookback > self.lookback {
            self.lookback = lookback;
            self.rebuild_tail(history, self.closed);
        }
    }

    fn rebuild_tail(&mut self, history: &History, closed: usize) {
        self.tail = self.segment(history, closed.saturating_sub(self.lookback + TAIL), closed);
    }

    /// Starts indicators, in one pass over the history. Those without `visible` are only read here.
    pub(super) fn add_indicators(
        &mut self,
        specs: &[IndicatorSpec],
        visible: bool,
        history: &History,
        out: &mut ScanOutput,
    ) {
        let fresh: Vec<&IndicatorSpec> = specs
            .iter()
            .filter(|s| !self.indicators.iter().any(|i| i.spec == **s && i.names.is_empty() != visible))
            .collect();
        if fresh.is_empty() {
            return;
        }
        let lookback = fresh.iter().map(|s| s.lookback()).max().unwrap_or(0);
        self.grow_lookback(history, lookback);
        let span = self.whole(history);
        for spec in fresh {
            let initial = (spec.build(), Values::default());
            let names = if visible { spec.outputs() } else { Vec::new() };
            let track = Track::new(initial, self.marks.len());
            let mut consumer = IndicatorConsumer { spec: *spec, names, initial, track };
            consumer.replay((self.symbol, self.timeframe), &self.marks, 0, &span, out);
            self.indicators.push(consumer);
        }
    }

    /// Starts strategies, in one pass over the history.
    pub(super) fn add_backtests(&mut self, strategies: &[Arc<Strategy>], history: &History, out: &mut ScanOutput) {
        if strategies.is_empty() {
            return;
        }
        let mut fresh: Vec<BacktestConsumer> = Vec::with_capacity(strategies.len());
        for strategy in strategies {
            let params = Params::new(strategy);
            let initial = Backtest::new(&params);
            fresh.push(BacktestConsumer {
                strategy: strategy.clone(),
                params,
                track: Track::new(initial, self.marks.len()),
                initial,
                days: Vec::new(),
                days_from: i32::MIN,
                emitted: None,
            });
        }
        self.grow_lookback(history, fresh.iter().map(|c| c.params.lookback()).max().unwrap_or(0));
        let span = self.whole(history);
        for consumer in &mut fresh {
            consumer.replay((self.symbol, self.timeframe), &self.marks, 0, &span, out);
        }
        self.backtests.append(&mut fresh);
    }

    /// Stops a strategy and withdraws all that it said; or, where only its weight differs, carries on with `successor`.
    /// Returns whether the successor is in place.
    pub(super) fn remove_backtest(
        &mut self,
        id: StrategyId,
        successor: Option<&Arc<Strategy>>,
        history: &History,
        out: &mut ScanOutput,
    ) -> bool {
        let Some(at) = self.backtests.iter().position(|c| c.strategy.id == id) else { return false };
        if let Some(successor) = successor {
            let same = Strategy {
                weight: successor.weight,
                symbols: successor.symbols.clone(),
                ..(*self.backtests[at].strategy).clone()
            };
            if same == **successor {
                self.backtests[at].strategy = successor.clone();
                return true;
            }
        }
        let mut gone = self.backtests.swap_remove(at);
        let span =
            Span { new: Series::new(), old: self.segment(history, 0, self.closed), from: 0, last_edit: Nanos::MAX };
        gone.replay((self.symbol, self.timeframe), &[], 0, &span, out);
        gone.publish(None, &self.tail, out);
        false
    }

    /// The ids of its strategies.
    pub(super) fn strategies(&self) -> impl Iterator<Item = StrategyId> {
        self.backtests.iter().map(|c| c.strategy.id)
    }

    /// Takes the closed bars that changed in this epoch, ordered by open time; `history` already holds them.
    pub(super) fn apply(&mut self, edits: &[Edit], history: &History, out: &mut ScanOutput) {
        if edits.is_empty() {
            return;
        }
        // Marks stay where bars at the tip were deleted: what comes back at or before one rewrites it, like any edit.
        let last = self.last_closed.max(self.marks.last().map(|mark| mark.time));
        let is_append = |e: &&Edit| e.old.is_none() && last.is_none_or(|last| e.open_time > last);
        let appended = edits.iter().rev().take_while(is_append).count();
        let (past, appends) = edits.split_at(edits.len() - appended);
        if !past.is_empty() {
            self.edit(past, history, out);
        }
        self.append(appends, out);
        self.last_closed = self.closed.checked_sub(1).map(|last| history.open_times()[last]);
    }

    /// Steps every consumer over new bars at the tip, a block at a time: consumers outside, bars inside.
    fn append(&mut self, appends: &[Edit], out: &mut ScanOutput) {
        let key = (self.symbol, self.timeframe);
        let mut rest = appends;
        while !rest.is_empty() {
            let to_mark = GAP as usize - self.closed % GAP as usize;
            let (block, tail) = rest.split_at(to_mark.min(rest.len()));
            rest = tail;
            let from = self.tail.len();
            for edit in block {
                if let Some(body) = &edit.new {
                    push(&mut self.tail, edit.open_time, body, self.scale);
                }
            }
            for consumer in &mut self.indicators {
                for i in from..self.tail.len() {
                    let (machine, values) = &mut consumer.track.state;
                    *values = machine.step(&self.tail, i);
                    emit_indicator(key, &consumer.names, values, self.tail.open_time[i], 1, out);
                }
            }
            for consumer in &mut self.backtests {
                let mut tape =
                    Tape { id: consumer.strategy.id, key, diff: 1, days: &mut consumer.days, deltas: &mut out.deltas };
                consumer.track.state.run(&consumer.params, &self.tail, from..self.tail.len(), &mut tape);
            }
            self.closed += block.len();
            if self.closed.is_multiple_of(GAP as usize) {
                self.mark();
            }
        }
        let keep = self.lookback + TAIL;
        if self.tail.len() > 2 * keep {
            self.tail = self.tail.tail(self.tail.len() - keep);
        }
    }

    /// Keeps the state of every consumer as of the tip.
    fn mark(&mut self) {
        let Some(time) = self.tail.open_time.last().copied() else { return };
        let count = self.closed as u64;
        self.marks.push(Mark { time, count });
        for consumer in &mut self.indicators {
            consumer.track.saved.push(consumer.track.state);
        }
        for consumer in &mut self.backtests {
            consumer.track.saved.push(consumer.track.state);
        }
        if let Some(keep) = thin(&self.marks, count) {
            retain(&mut self.marks, &keep);
            for consumer in &mut self.indicators {
                retain(&mut consumer.track.saved, &keep);
            }
            for consumer in &mut self.backtests {
                retain(&mut consumer.track.saved, &keep);
            }
        }
    }

    /// Rewrites the past: one diff of all edits, from the mark before the earliest.
    fn edit(&mut self, edits: &[Edit], history: &History, out: &mut ScanOutput) {
        let key = (self.symbol, self.timeframe);
        let inserted = edits.iter().filter(|e| e.old.is_none()).count();
        let deleted = edits.iter().filter(|e| e.new.is_none()).count();
        let closed = self.closed + inserted - deleted;
        let tip_day = closed.checked_sub(1).map(|last| utc_day(history.open_times()[last]));
        let mut first = self.marks.partition_point(|m| m.time < edits[0].open_time);
        // Deleting bars at the tip can move the trailing window onto days that were let go: then all of it again.
        let start_over =
            self.backtests.iter().any(|c| tip_day.is_some_and(|tip| tip - TRAILING_DAYS + 1 < c.days_from));
        if start_over {
            first = 0;
        }
        let after = first.checked_sub(1).map(|m| self.marks[m].time);
        let start = after.map_or(0, |time| history.open_times().partition_point(|open_time| *open_time <= time));
        let back = start.saturating_sub(self.lookback);
        let new = self.segment(history, back, closed);
        let mut old = self.segment(history, back, start);
        let mut rest = edits;
        let mut at = start;
        loop {
            let bar_time = (at < closed).then(|| history.open_times()[at]);
            match rest {
                [edit, tail @ ..] if bar_time.is_none_or(|t| edit.open_time <= t) => {
                    if let Some(body) = &edit.old {
                        push(&mut old, edit.open_time, body, self.scale);
                    }
                    at += usize::from(edit.new.is_some());
                    rest = tail;
                }
                _ => {
                    let Some(time) = bar_time else { break };
                    push(&mut old, time, &history.body(at), self.scale);
                    at += 1;
                }
            }
        }
        let last_edit = edits.last().filter(|_| !start_over).map_or(Nanos::MAX, |e| e.open_time);
        let span = Span { old, new, from: start - back, last_edit };
        for consumer in &mut self.indicators {
            consumer.replay(key, &self.marks, first, &span, out);
        }
        for consumer in &mut self.backtests {
            consumer.replay(key, &self.marks, first, &span, out);
            if start_over {
                consumer.days_from = i32::MIN;
            }
        }
        self.closed = closed;
        self.rebuild_tail(history, closed);
    }

    /// At the end of an epoch: what the strategies say now, where that has changed.
    pub(super) fn publish(&mut self, out: &mut ScanOutput) {
        for consumer in &mut self.backtests {
            consumer.publish(self.last_closed.map(|last| (self.symbol, last)), &self.tail, out);
        }
    }

    /// The decision bar, with what surrounds it; none before the first closed bar.
    pub(super) fn decision(&self, history: &History) -> Option<DecisionBar> {
        let last = self.closed.checked_sub(1)?;
        let body = history.body(last);
        let atr = self.indicators.iter().find(|i| i.spec == DECISION_ATR);
        let volume_change = last.checked_sub(20).and_then(|from| {
            let before: i128 = (from..last).map(|i| history.body(i).volume).sum();
            (before > 0).then(|| F64(body.volume as f64 / (before as f64 / 20.0) - 1.0))
        });
        let five_bar_move = last.checked_sub(5).and_then(|from| {
            let before = history.body(from).close.to_f64(self.scale);
            (before != 0.0).then(|| F64(body.close.to_f64(self.scale) / before - 1.0))
        });
        let forming = || (self.closed..history.len()).map(|i| history.body(i));
        Some(DecisionBar {
            symbol: self.symbol,
            timeframe: self.timeframe,
            open_time: history.open_times()[last],
            close: body.close.decimal(self.scale),
            atr: atr.and_then(|i| i.track.state.1[0]).map(F64),
            volume_change,
            five_bar_move,
            high_since: forming().map(|b| b.high).max().map(|p| p.decimal(self.scale)),
            low_since: forming().map(|b| b.low).min().map(|p| p.decimal(self.scale)),
        })
    }
}

impl IndicatorConsumer {
    fn replay(&mut self, key: (Symbol, Timeframe), marks: &[Mark], first: usize, span: &Span, out: &mut ScanOutput) {
        let (names, lookback) = (&self.names, self.spec.lookback());
        self.track.replay(&self.initial, marks, first, span, lookback, |(machine, values), series, i, diff| {
            *values = machine.step(series, i);
            emit_indicator(key, names, values, series.open_time[i], diff, out);
        });
    }
}

/// Takes down what a backtest does: rows of trades, and completed days.
struct Tape<'a> {
    id: StrategyId,
    key: (Symbol, Timeframe),
    diff: i64,
    days: &'a mut Vec<DayPartial>,
    deltas: &'a mut Vec<Delta>,
}

impl Events for Tape<'_> {
    fn trade(&mut self, trade: &ClosedTrade) {
        emit(self.deltas, Output::Trade(trade.row(self.id, self.key.0, self.key.1)), self.diff);
    }

    fn day(&mut self, day: &DayPartial) {
        self.days.push(*day);
    }
}

impl BacktestConsumer {
    fn replay(&mut self, key: (Symbol, Timeframe), marks: &[Mark], first: usize, span: &Span, out: &mut ScanOutput) {
        let (params, id, lookback) = (&self.params, self.strategy.id, self.params.lookback());
        let (mut withdrawn, mut completed) = (Vec::new(), Vec::new());
        let deltas = &mut out.deltas;
        self.track.replay(&self.initial, marks, first, span, lookback, |state, series, i, diff| {
            let days = if diff < 0 { &mut withdrawn } else { &mut completed };
            state.step(params, series, i, &mut Tape { id, key, diff, days, deltas });
        });
        // Both sides started from the same state, so the old side completed exactly the days that are to be replaced.
        self.days.retain(|d| !withdrawn.iter().any(|w| w.day == d.day));
        self.days.append(&mut completed);
        self.days.sort_by_key(|d| d.day);
    }

    /// Emits metrics and contribution as of the last closed bar, and withdraws what stood; nothing where both agree.
    fn publish(&mut self, tip: Option<(Symbol, Nanos)>, tail: &Series, out: &mut ScanOutput) {
        let fresh = tip.map(|(symbol, as_of)| {
            let oldest = utc_day(as_of) - TRAILING_DAYS + 1;
            if self.days.first().is_some_and(|d| d.day < oldest - 2 * SPARE_DAYS) {
                self.days.retain(|d| d.day >= oldest - SPARE_DAYS);
                self.days_from = oldest - SPARE_DAYS;
            }
            Box::new(self.figures(symbol, as_of, tail))
        });
        if fresh == self.emitted {
            return;
        }
        for (figures, diff) in [(&self.emitted, -1), (&fresh, 1)] {
            if let Some(figures) = figures {
                let (all, trailing, contribution) = &**figures;
                out.deltas.push(Delta { output: Output::Metrics(Box::new(*all)), diff });
                out.deltas.push(Delta { output: Output::Metrics(Box::new(*trailing)), diff });
                out.contributions.push((contribution.clone(), diff));
            }
        }
        self.emitted = fresh;
    }

    fn figures(&self, symbol: Symbol, as_of: Nanos, tail: &Series) -> (MetricsRow, MetricsRow, Contribution) {
        let state = &self.track.state;
        let all = metrics_all(state, &self.params);
        let trailing = metrics_30d(&self.days, state.day(), &self.params);
        let (strategy, timeframe) = (self.strategy.id, self.strategy.timeframe);
        let row = |window, metrics| MetricsRow { strategy, symbol, timeframe, window, as_of, metrics };
        let contribution = Contribution {
            symbol,
            strategy,
            timeframe,
            kind: self.strategy.kind,
            weight: self.strategy.weight,
            side: state.standing_side(),
            confidence: F64(state.confidence(&self.params)),
            trades: trailing.trades,
            trailing_return: trailing.total_return,
            sharpe: trailing.sharpe,
            win_rate: trailing.win_rate,
            values: state.values(&self.params, tail, tail.len().saturating_sub(1)).map(|v| v.map(F64)),
        };
        (row(MetricsWindow::All, all), row(MetricsWindow::Days30, trailing), contribution)
    }
}

//! The consumers of one (symbol, timeframe)'s closed bars on this worker.

use super::ScanOutput;
use super::track::{GAP, Mark, Span, Track, retain, thin};
use crate::backtest::{Backtest, ClosedTrade, ColumnEvents, Columns, DayPartial, Params, Replay, metrics, metrics_all};
use crate::history::History;
use crate::indicators::{Indicator, IndicatorSpec, Values};
use crate::series::{Series, SeriesBar, utc_day};
use marea_model::num::fixed_to_f64;
use marea_model::output::MetricsWindow;
use marea_model::recommendation::{Contribution, DecisionBar};
use marea_model::strategy::ATR_PERIOD;
use marea_model::{
    BarBody, Delta, F64, IndicatorRow, Metrics, MetricsRow, Nanos, Output, Strategy, StrategyId, Symbol, Timeframe,
    TradeRow,
};
use std::ops::Range;
use std::sync::Arc;

/// Days of the trailing window, the last closed bar's included.
const TRAILING_DAYS: i32 = 30;
/// Completed days kept beyond those: what may be deleted at the tip before a consumer must start over.
const SPARE_DAYS: i32 = 7;
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
    /// Where its values begin among those of all visible indicators.
    column: usize,
    initial: Stepped,
    track: Track<Stepped>,
}

/// An indicator, and its values at the last bar that it has seen.
type Stepped = (Indicator, Values);

struct BacktestConsumer {
    strategy: Arc<Strategy>,
    params: Params,
    /// Where its state is.
    slot: usize,
    /// Completed UTC days, oldest first, from `days_from` on.
    days: Vec<DayPartial>,
    /// The merge of those in the trailing window, and its first day, until days change.
    merged: Option<(i32, Option<DayPartial>)>,
    days_from: i32,
    /// What stands downstream.
    contribution: Option<Box<Contribution>>,
    metrics: Option<Box<[MetricsRow; 2]>>,
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
    /// Of all values of all visible indicators.
    names: Arc<[Arc<str>]>,
    backtests: Vec<BacktestConsumer>,
    /// Whether rows were retracted in this epoch: then others may come in their place, and all go as deltas.
    retracts: bool,
    /// The decision bar without the bars that are forming, until closed bars change.
    settled: Option<DecisionBar>,
    /// The state of all of them, at the tip and at each mark.
    columns: Columns,
    /// Which of them has a slot there.
    by_slot: Vec<usize>,
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
            names: Arc::from([]),
            backtests: Vec::new(),
            retracts: false,
            settled: None,
            columns: Columns::new(),
            by_slot: Vec::new(),
        }
    }

    /// Bytes of the checkpoints of its strategies.
    pub(super) fn mark_bytes(&self) -> usize {
        // Most lanes of a wide market have none yet.
        if self.marks.is_empty() { 0 } else { self.marks.len() * self.columns.mark_bytes() }
    }

    fn mark_times(&self) -> Vec<Nanos> {
        self.marks.iter().map(|mark| mark.time).collect()
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

    /// Starts the indicators whose values are given, before there is any bar.
    pub(super) fn show_indicators(&mut self, specs: &[IndicatorSpec]) {
        let mut names: Vec<Arc<str>> = Vec::new();
        for spec in specs {
            if self.indicators.iter().any(|i| i.spec == *spec) {
                continue;
            }
            let (initial, column) = ((spec.build(), Values::default()), names.len());
            names.extend(spec.outputs());
            let (names, track) = (spec.outputs(), Track::new(initial, 0));
            self.indicators.push(IndicatorConsumer { spec: *spec, names, column, initial, track });
            self.lookback = self.lookback.max(spec.lookback());
        }
        self.names = names.into();
    }

    /// Starts an indicator that is only read here, in one pass over the history.
    pub(super) fn add_indicator(&mut self, spec: IndicatorSpec, history: &History) {
        if self.indicators.iter().any(|i| i.spec == spec && i.names.is_empty()) {
            return;
        }
        self.settled = None;
        self.grow_lookback(history, spec.lookback());
        let initial = (spec.build(), Values::default());
        let track = Track::new(initial, self.marks.len());
        let mut consumer = IndicatorConsumer { spec, names: Vec::new(), column: 0, initial, track };
        let span = self.whole(history);
        consumer.replay((self.symbol, self.timeframe), &self.marks, 0, &span, &mut ScanOutput::default());
        self.indicators.push(consumer);
    }

    /// Starts strategies, in one pass over the history.
    pub(super) fn add_backtests(&mut self, strategies: &[Arc<Strategy>], history: &History, out: &mut ScanOutput) {
        if strategies.is_empty() {
            return;
        }
        let mut columns = Columns::new();
        let mut fresh: Vec<BacktestConsumer> = Vec::with_capacity(strategies.len());
        for strategy in strategies {
            let params = Params::new(strategy);
            fresh.push(BacktestConsumer {
                strategy: strategy.clone(),
                slot: columns.add(&params),
                params,
                days: Vec::new(),
                merged: None,
                days_from: i32::MIN,
                contribution: None,
                metrics: None,
            });
        }
        self.grow_lookback(history, fresh.iter().map(|c| c.params.lookback()).max().unwrap_or(0));
        let series = self.segment(history, 0, self.closed);
        let by_slot = slots(&fresh);
        let key = (self.symbol, self.timeframe);
        let rows = Trades::of(self.retracts, out);
        columns.catch_up(
            &self.mark_times(),
            &series,
            &mut Tape { key, consumers: &mut fresh, by_slot: &by_slot, rows },
        );
        self.columns.join(columns, |from, to| fresh[by_slot[from]].slot = to);
        self.backtests.append(&mut fresh);
        self.by_slot = slots(&self.backtests);
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
        let (series, slot) = (self.segment(history, 0, self.closed), self.backtests[at].slot);
        let key = (self.symbol, self.timeframe);
        let (consumers, by_slot) = (&mut self.backtests, &self.by_slot);
        self.retracts = true;
        let rows = Trades::Deltas(&mut out.deltas);
        self.columns.withdraw(slot, &series, &mut Tape { key, consumers, by_slot, rows });
        self.columns.remove(slot);
        let mut gone = self.backtests.swap_remove(at);
        self.by_slot = slots(&self.backtests);
        gone.contribute(None, &self.tail, out);
        gone.give_metrics(None, true, out);
        false
    }

    /// Whether it has strategies.
    pub(super) fn has_backtests(&self) -> bool {
        !self.backtests.is_empty()
    }

    /// The ids of its strategies.
    pub(super) fn strategies(&self) -> impl Iterator<Item = StrategyId> {
        self.backtests.iter().map(|c| c.strategy.id)
    }

    /// Takes the closed bars that changed in this epoch: `edits`, ordered by open time, then all that are new at the tip;
    /// `history` already holds them, and its first `closed` bars are closed.
    pub(super) fn apply(&mut self, edits: &[Edit], history: &History, closed: usize, out: &mut ScanOutput) {
        self.settled = None;
        // Marks stay where bars at the tip were deleted: what comes back at or before one rewrites it, like any edit.
        let last = self.last_closed.max(self.marks.last().map(|mark| mark.time));
        let is_append =
            |open_time: Nanos, old: Option<BarBody>| old.is_none() && last.is_none_or(|last| open_time > last);
        let appended = edits.iter().rev().take_while(|e| is_append(e.open_time, e.old)).count();
        let past = &edits[..edits.len() - appended];
        if past.is_empty() && appended == 0 {
            // Only appended; but some may be at or before a mark.
            let back =
                history.open_times()[self.closed..closed].iter().take_while(|open| !is_append(**open, None)).count();
            if back > 0 {
                let bar = |i: usize| Edit { open_time: history.open_times()[i], old: None, new: Some(history.body(i)) };
                let past: Vec<Edit> = (self.closed..self.closed + back).map(bar).collect();
                self.edit(&past, history, out);
            }
        } else if !past.is_empty() {
            self.edit(past, history, out);
        }
        self.append(history, closed, out);
        self.last_closed = self.closed.checked_sub(1).map(|last| history.open_times()[last]);
    }

    /// Steps every consumer over new bars at the tip, a block at a time: consumers outside, bars inside.
    fn append(&mut self, history: &History, closed: usize, out: &mut ScanOutput) {
        let key = (self.symbol, self.timeframe);
        while self.closed < closed {
            let to_mark = GAP as usize - self.closed % GAP as usize;
            let block = to_mark.min(closed - self.closed);
            let from = self.tail.len();
            for i in self.closed..self.closed + block {
                push(&mut self.tail, history.open_times()[i], &history.body(i), self.scale);
            }
            let to = self.tail.len();
            let width = self.names.len();
            let mut hidden = [];
            let values = match width {
                0 => &mut hidden,
                _ => out.rows.indicators.extend(key.0, key.1, &self.tail.open_time[from..], &self.names),
            };
            for consumer in &mut self.indicators {
                let (machine, last) = &mut consumer.track.state;
                let (column, outputs) = (consumer.column, consumer.names.len());
                machine.run(&self.tail, from..to, |i, stepped| {
                    *last = *stepped;
                    if outputs > 0 {
                        let row = (i - from) * width + column;
                        for (value, stepped) in values[row..row + outputs].iter_mut().zip(stepped) {
                            *value = stepped.unwrap_or(f64::NAN);
                        }
                    }
                });
            }
            let (consumers, by_slot) = (&mut self.backtests, &self.by_slot);
            let mut tape = Tape { key, consumers, by_slot, rows: Trades::of(self.retracts, out) };
            self.columns.run(&self.tail, from..to, &mut tape);
            self.closed += block;
            if self.closed.is_multiple_of(GAP as usize) {
                self.mark();
            }
        }
        let keep = self.lookback + TAIL;
        if self.tail.len() > 2 * keep {
            self.tail.drop_front(self.tail.len() - keep);
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
        self.columns.mark();
        if let Some(keep) = thin(&self.marks, count) {
            retain(&mut self.marks, &keep);
            for consumer in &mut self.indicators {
                retain(&mut consumer.track.saved, &keep);
            }
            self.columns.retain_marks(&keep);
        }
    }

    /// Rewrites the past: one diff of all edits, from the mark before the earliest.
    fn edit(&mut self, edits: &[Edit], history: &History, out: &mut ScanOutput) {
        self.retracts = true;
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
        let Span { old, new, from, last_edit } = &span;
        let replay = Replay { old, new, from: *from, after: first.checked_sub(1), last_edit: *last_edit };
        let marks = self.mark_times();
        let (consumers, by_slot) = (&mut self.backtests, &self.by_slot);
        let rows = Trades::Deltas(&mut out.deltas);
        self.columns.replay(&marks, replay, &mut Tape { key, consumers, by_slot, rows });
        for consumer in &mut self.backtests {
            // What was replayed may lie before days that stay.
            consumer.days.sort_by_key(|day| day.day);
            if start_over {
                consumer.days_from = i32::MIN;
            }
        }
        self.closed = closed;
        self.rebuild_tail(history, closed);
    }

    /// What the strategies say now, where that has changed; nothing, unless recommendations rest on these bars.
    pub(super) fn contribute(&mut self, decisive: bool, out: &mut ScanOutput) {
        if !decisive && self.backtests.iter().all(|consumer| consumer.contribution.is_none()) {
            return;
        }
        for consumer in &mut self.backtests {
            let state = self.columns.get(consumer.slot);
            let tip = self.last_closed.filter(|_| decisive).zip(state.as_ref());
            consumer.contribute(tip.map(|(as_of, state)| Tip { symbol: self.symbol, as_of, state }), &self.tail, out);
        }
    }

    /// The metrics of all strategies as of the last closed bar.
    pub(super) fn publish_metrics(&mut self, out: &mut ScanOutput) {
        for consumer in &mut self.backtests {
            let state = self.columns.get(consumer.slot);
            let tip = self.last_closed.zip(state.as_ref());
            let tip = tip.map(|(as_of, state)| Tip { symbol: self.symbol, as_of, state });
            consumer.give_metrics(tip, self.retracts, out);
        }
    }

    /// Says whether rows are retracted in this epoch, so that all must go as deltas.
    pub(super) fn set_retracts(&mut self, retracts: bool) {
        self.retracts = retracts;
    }

    /// The decision bar, with what surrounds it; none before the first closed bar.
    pub(super) fn decision(&mut self, history: &History) -> Option<DecisionBar> {
        if self.settled.is_none() {
            self.settled = self.settle(history);
        }
        let forming = || (self.closed..history.len()).map(|i| history.body(i));
        Some(DecisionBar {
            high_since: forming().map(|b| b.high).max().map(|p| p.decimal(self.scale)),
            low_since: forming().map(|b| b.low).min().map(|p| p.decimal(self.scale)),
            ..self.settled?
        })
    }

    fn settle(&self, history: &History) -> Option<DecisionBar> {
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
        Some(DecisionBar {
            symbol: self.symbol,
            timeframe: self.timeframe,
            open_time: history.open_times()[last],
            close: body.close.decimal(self.scale),
            atr: atr.and_then(|i| i.track.state.1[0]).map(F64),
            volume_change,
            five_bar_move,
            high_since: None,
            low_since: None,
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

/// Which consumer has a slot.
fn slots(consumers: &[BacktestConsumer]) -> Vec<usize> {
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
enum Trades<'a> {
    /// They are new.
    Rows(&'a mut Vec<TradeRow>),
    /// They come or go.
    Deltas(&'a mut Vec<Delta>),
}

impl<'a> Trades<'a> {
    fn of(retracts: bool, out: &'a mut ScanOutput) -> Self {
        if retracts { Trades::Deltas(&mut out.deltas) } else { Trades::Rows(&mut out.rows.trades) }
    }
}

/// Takes down what backtests do: rows of trades, and completed days.
struct Tape<'a> {
    key: (Symbol, Timeframe),
    consumers: &'a mut [BacktestConsumer],
    by_slot: &'a [usize],
    rows: Trades<'a>,
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
        let consumer = &mut self.consumers[self.by_slot[slot]];
        consumer.merged = None;
        if consumer.days.len() == consumer.days.capacity() {
            consumer.days.reserve_exact(4);
        }
        consumer.days.push(*day);
    }

    fn withdraw_days(&mut self, slot: usize, range: Range<i32>) {
        let consumer = &mut self.consumers[self.by_slot[slot]];
        consumer.merged = None;
        consumer.days.retain(|day| !range.contains(&day.day));
    }
}

/// The last closed bar of a symbol, and what a strategy has made of all bars up to it.
struct Tip<'a> {
    symbol: Symbol,
    as_of: Nanos,
    state: &'a Backtest,
}

impl BacktestConsumer {
    /// Lets go of days that are far out of the trailing window.
    fn forget_days(&mut self, as_of: Nanos) {
        let oldest = utc_day(as_of) - TRAILING_DAYS + 1;
        if self.days.first().is_some_and(|d| d.day < oldest - 2 * SPARE_DAYS) {
            self.days.retain(|d| d.day >= oldest - SPARE_DAYS);
            self.days_from = oldest - SPARE_DAYS;
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
    fn contribute(&mut self, tip: Option<Tip<'_>>, tail: &Series, out: &mut ScanOutput) {
        let fresh = tip.map(|tip| {
            self.forget_days(tip.as_of);
            Box::new(self.says(&tip, tail))
        });
        if fresh != self.contribution {
            out.contributions.extend(self.contribution.take().map(|row| (*row, -1)));
            out.contributions.extend(fresh.clone().map(|row| (*row, 1)));
            self.contribution = fresh;
        }
    }

    /// Emits the metrics as of the last closed bar, where they have changed.
    fn give_metrics(&mut self, tip: Option<Tip<'_>>, retracts: bool, out: &mut ScanOutput) {
        let fresh = tip.map(|tip| self.figures(tip));
        let as_deltas =
            |rows: [MetricsRow; 2], diff| rows.map(|row| Delta { output: Output::Metrics(Box::new(row)), diff });
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
            (standing, fresh) => {
                out.deltas.extend(standing.take().into_iter().flat_map(|rows| as_deltas(*rows, -1)));
                out.deltas.extend(fresh.into_iter().flat_map(|rows| as_deltas(rows, 1)));
                *standing = fresh.map(Box::new);
            }
        }
    }

    fn figures(&mut self, Tip { symbol, as_of, state }: Tip<'_>) -> [MetricsRow; 2] {
        self.forget_days(as_of);
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

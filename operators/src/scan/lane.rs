//! The consumers of one (symbol, timeframe)'s closed bars on this worker.

mod mend;

use super::ScanOutput;
use super::consumer::{BacktestConsumer, Tape, Tip, Trades, slots};
use super::track::{GAP, Mark, Span, Track, retain, thin};
use crate::backtest::{Columns, Params, Replay};
use crate::history::History;
use crate::indicators::{Indicator, IndicatorSpec, Values};
use crate::series::{Series, SeriesBar, utc_day};
use marea_model::num::fixed_to_f64;
use marea_model::recommendation::DecisionBar;
use marea_model::strategy::ATR_PERIOD;
use marea_model::{BarBody, Delta, F64, IndicatorRow, Nanos, Output, Strategy, StrategyId, Symbol, Timeframe};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Bars behind the tip that are kept as doubles beyond what the consumers look back at.
const TAIL: usize = 128;
/// Bars that are made doubles at a time for a pass over all of them.
const BLOCK: usize = 1024;
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
    /// The values of all visible indicators at the last bars of the tail, bar by bar; NaN where undefined.
    kept: Vec<f64>,
    marks: Vec<Mark>,
    indicators: Vec<IndicatorConsumer>,
    /// Of all values of all visible indicators.
    names: Arc<[Arc<str>]>,
    backtests: Vec<BacktestConsumer>,
    /// Whether one of them may have a contribution that stands.
    speaks: bool,
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
    series.push(series_bar(open_time, body, scale));
}

fn series_bar(open_time: Nanos, body: &BarBody, scale: u8) -> SeriesBar {
    SeriesBar {
        open_time,
        open: body.open.to_f64(scale),
        high: body.high.to_f64(scale),
        low: body.low.to_f64(scale),
        close: body.close.to_f64(scale),
        volume: fixed_to_f64(body.volume, 8),
        turnover: fixed_to_f64(body.turnover, scale) / 1e8,
    }
}

/// Closed bars as doubles, a block at a time: so they stay in the cache.
struct Blocks<'a> {
    history: &'a History,
    scale: u8,
    /// Bars kept before a block.
    lookback: usize,
    series: Series,
    /// Bars so far.
    at: usize,
}

impl<'a> Blocks<'a> {
    fn new(lane: &Lane, history: &'a History) -> Self {
        let (scale, lookback) = (lane.scale, lane.lookback);
        Blocks { history, scale, lookback, series: Series::with_capacity(lookback + BLOCK), at: 0 }
    }

    /// The next bars before `end`, as their places in the series; none if there are none.
    fn next(&mut self, end: usize) -> Option<Range<usize>> {
        if self.at >= end {
            return None;
        }
        self.series.drop_front(self.series.len().saturating_sub(self.lookback));
        let (from, to) = (self.series.len(), end.min(self.at + BLOCK));
        for (open_time, body) in self.history.bodies(self.at..to) {
            push(&mut self.series, open_time, &body, self.scale);
        }
        self.at = to;
        Some(from..self.series.len())
    }
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
            kept: Vec::new(),
            marks: Vec::new(),
            indicators: Vec::new(),
            names: Arc::from([]),
            backtests: Vec::new(),
            speaks: false,
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

    /// How many values of indicators a bar has.
    pub(super) fn width(&self) -> usize {
        self.names.len()
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
        self.kept.clear();
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
            fresh.push(BacktestConsumer::new(strategy.clone(), params, columns.add(&params)));
        }
        self.grow_lookback(history, fresh.iter().map(|c| c.params.lookback()).max().unwrap_or(0));
        let by_slot = slots(&fresh);
        let (key, rows) = ((self.symbol, self.timeframe), Trades::of(self.retracts, out));
        let mut tape = Tape { key, consumers: &mut fresh, by_slot: &by_slot, rows };
        let mut blocks = Blocks::new(self, history);
        let before = tape.rows.len();
        let mut foreseen = false;
        let cut = |mark: &Mark| history.open_times()[..self.closed].partition_point(|time| *time <= mark.time);
        for (mark, end) in self.marks.iter().map(cut).chain([self.closed]).enumerate() {
            while let Some(bars) = blocks.next(end) {
                columns.run(&blocks.series, bars, &mut tape);
                if !foreseen && blocks.at >= self.closed / 8 {
                    // The rest may have as many trades a bar as an eighth had.
                    foreseen = true;
                    tape.rows.reserve((tape.rows.len() - before) * 9);
                }
            }
            if mark < self.marks.len() {
                columns.mark();
            }
        }
        self.columns.join(columns, |from, to| fresh[by_slot[from]].slot = to);
        self.backtests.append(&mut fresh);
        self.by_slot = slots(&self.backtests);
    }

    /// Puts `successor` in the place of the strategy of its id, where only the weight and the symbols differ. Returns
    /// whether it is.
    pub(super) fn carry_on(&mut self, successor: &Arc<Strategy>) -> bool {
        let standing = self.backtests.iter_mut().find(|c| c.strategy.id == successor.id);
        let Some(standing) = standing else { return false };
        let weight = successor.weight;
        let same = Strategy { weight, symbols: successor.symbols.clone(), ..(*standing.strategy).clone() };
        if same != **successor {
            return false;
        }
        standing.strategy = successor.clone();
        true
    }

    /// Stops strategies and withdraws all that they said, in one pass over the history.
    pub(super) fn remove_backtests(&mut self, gone: &BTreeSet<StrategyId>, history: &History, out: &mut ScanOutput) {
        let leaves = |c: &BacktestConsumer| gone.contains(&c.strategy.id);
        let leaving: Vec<usize> = self.backtests.iter().filter(|c| leaves(c)).map(|c| c.slot).collect();
        if leaving.is_empty() {
            return;
        }
        self.retracts = true;
        let mut columns = self.columns.afresh(&leaving);
        let mut blocks = Blocks::new(self, history);
        let (key, rows) = ((self.symbol, self.timeframe), Trades::Deltas(&mut out.deltas));
        let mut tape = Tape { key, consumers: &mut self.backtests, by_slot: &self.by_slot, rows };
        while let Some(bars) = blocks.next(self.closed) {
            columns.withdraw(&blocks.series, bars, &mut tape);
        }
        leaving.iter().for_each(|slot| self.columns.remove(*slot));
        let (left, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.backtests).into_iter().partition(leaves);
        self.backtests = stay;
        self.by_slot = slots(&self.backtests);
        for mut consumer in left {
            consumer.contribute(None, &self.tail, out);
            consumer.give_metrics(None, true, out);
        }
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
                self.rewrite(&past, history, out);
            }
        } else if !past.is_empty() {
            self.rewrite(past, history, out);
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
            self.kept.extend_from_slice(values);
            if !self.backtests.is_empty() {
                let (consumers, by_slot) = (&mut self.backtests, &self.by_slot);
                let mut tape = Tape { key, consumers, by_slot, rows: Trades::of(self.retracts, out) };
                self.columns.run(&self.tail, from..to, &mut tape);
            }
            self.closed += block;
            if self.closed.is_multiple_of(GAP as usize) {
                self.mark();
            }
        }
        let keep = self.lookback + TAIL;
        if self.tail.len() > 2 * keep {
            self.tail.drop_front(self.tail.len() - keep);
            let kept = self.kept.len().min(self.tail.len() * self.names.len());
            self.kept.drain(..self.kept.len() - kept);
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

    /// Rewrites the past.
    fn rewrite(&mut self, edits: &[Edit], history: &History, out: &mut ScanOutput) {
        if !self.mend(edits, out) {
            self.edit(edits, history, out);
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
        let start_over = tip_day.is_some_and(|tip| self.backtests.iter().any(|c| c.lacks_days(tip)));
        if start_over {
            first = 0;
            self.backtests.iter_mut().for_each(BacktestConsumer::start_over);
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
        self.closed = closed;
        self.rebuild_tail(history, closed);
    }

    /// What the strategies say now, where that has changed; nothing, unless recommendations rest on these bars.
    pub(super) fn contribute(&mut self, decisive: bool, out: &mut ScanOutput) {
        if !decisive && !self.speaks {
            return;
        }
        self.speaks = decisive;
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

//! Bars of every timeframe from base bars, and when each closes: the bar `[open_time, open_time + timeframe)` is the
//! fold of the base bars in it, in time order. Gaps stay gaps.
//!
//! ```text
//!  base bars that changed ──► base history ──► 1m ──► 5m ──► 1h     each timeframe is folded from the longest shorter
//!  closed_through ──► timers ──► bars that close                    one that divides it; what folds is associative
//! ```
//!
//! * Key: (symbol, timeframe). Corrects: one [`LevelChange`] a key an epoch. Nearly always only the end of a history
//!   changes ([`How::Tail`]): the newest open bar has another body, bars are appended, bars close. Anything else is a list
//!   of bars, old against new ([`How::Rewritten`]).
//! * Closed: `open_time + timeframe ≤ closed_through`. A closed bar that changes stays closed; one that appears in the
//!   past is closed at once.
//! * A bar with a sum that leaves i128 or u64 stands in no timeframe above its children: it is left out, like a gap,
//!   until its sums fit. So is every bar that would hold it.
//! * State: one [`History`] a symbol and timeframe (72 bytes a bar, 74 with slack), and the fold of all but the last
//!   child of the newest bar.
//! * Cost: a change of the last child O(1) a timeframe, of an earlier one the children of the bars that hold it. Bars
//!   close by timers, one a symbol and timeframe: symbols that have nothing to close cost nothing.

use crate::bars::{BarUpsert, SymbolIndex};
use crate::history::History;
use marea_model::{Bar, BarBody, Instruments, Nanos, Progress, Symbol, Timeframe};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

/// What became of one bar in an epoch. At least one of `old` and `new` is there, and they differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BarChange {
    /// The instrument.
    pub symbol: Symbol,
    /// Its length.
    pub timeframe: Timeframe,
    /// Its first instant.
    pub open_time: Nanos,
    /// Digits after the point of its prices.
    pub scale: u8,
    /// What stood at the epoch's start, and whether it was closed.
    pub old: Option<(BarBody, bool)>,
    /// What stands at its end, and whether it is closed.
    pub new: Option<(BarBody, bool)>,
}

impl BarChange {
    fn row(&self, side: Option<(BarBody, bool)>) -> Option<Bar> {
        let (body, closed) = side?;
        let BarChange { symbol, timeframe, open_time, scale, .. } = *self;
        Some(Bar { symbol, timeframe, open_time, body, scale, closed })
    }

    /// The row to retract.
    pub fn old_row(&self) -> Option<Bar> {
        self.row(self.old)
    }

    /// The row to insert.
    pub fn new_row(&self) -> Option<Bar> {
        self.row(self.new)
    }
}

/// Why timeframes can not be rolled up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RollupError {
    /// There is not even a base.
    #[error("no timeframe is given; the first is the base")]
    Empty,
    /// A bar of it would cut a base bar in two.
    #[error("timeframe {0} is not a multiple of the base {1}")]
    NotAMultiple(Timeframe, Timeframe),
    /// It is there twice.
    #[error("timeframe {0} is given twice")]
    Twice(Timeframe),
}

/// The fold of the children of the newest bar that open before `tail`.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// Open time of the bar.
    bar: Nanos,
    /// Open time of its last child, which may still change.
    tail: Nanos,
    fold: Option<BarBody>,
}

/// What became of the bars of one symbol and timeframe in an epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LevelChange {
    /// The instrument.
    pub symbol: Symbol,
    /// The bars' length.
    pub timeframe: Timeframe,
    /// Digits after the point of their prices.
    pub scale: u8,
    /// How many bars are closed, before and after: of `Tail`, those from the first on to the second have closed now.
    pub closed: (usize, usize),
    /// Which bars changed.
    pub how: How,
    /// The number of the symbol, in the order of their first bars.
    pub number: usize,
    /// Which of the timeframes.
    pub level: usize,
}

/// Which bars changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// From index `first` on, bars are new; or the one at `first` was open and has another body.
    Tail {
        /// The length of the history, if no body changed.
        first: usize,
    },
    /// These, in time order. Those that have closed are among them.
    Rewritten(Vec<BarChange>),
}

/// One timeframe of a symbol.
#[derive(Debug)]
struct Level {
    history: History,
    prefix: Prefix,
    /// Bars that are left out because a sum overflows.
    overflown: BTreeSet<Nanos>,
    /// How many bars were closed at the epoch's start.
    closed: usize,
    /// What happened at the end in this epoch: as in [`How::Tail`], and what stood at `first`.
    tail: Option<(usize, Option<BarBody>)>,
    /// Whether something else happened too; then `touched` has it all.
    rewritten: bool,
    /// (open_time, what stood at the epoch's start) of the bars that changed in this epoch.
    touched: Vec<(Nanos, Option<BarBody>)>,
    /// The `closed_through` at which its first open bar closes.
    due: Nanos,
}

impl Level {
    fn new() -> Self {
        Level {
            history: History::new(),
            prefix: Prefix { bar: Nanos::MIN, tail: Nanos::MIN, fold: None },
            overflown: BTreeSet::new(),
            closed: 0,
            tail: None,
            rewritten: false,
            touched: Vec::new(),
            due: Nanos::MAX,
        }
    }

    /// Puts a bar in, or takes it out. Whether that changed anything.
    fn put(&mut self, open_time: Nanos, body: Option<&BarBody>) -> bool {
        if let (false, Some(body)) = (self.rewritten, body) {
            let newest = self.history.len().wrapping_sub(1);
            match self.history.open_times().last() {
                Some(last) if *last > open_time => {}
                Some(last) if *last == open_time => {
                    if newest >= self.closed {
                        let old = self.history.body(newest);
                        if old == *body {
                            return false;
                        }
                        self.history.replace_last(body);
                        if self.tail.is_none() {
                            self.tail = Some((newest, Some(old)));
                        }
                        return true;
                    }
                }
                _ => {
                    self.history.push(open_time, body);
                    self.tail.get_or_insert((newest.wrapping_add(1), None));
                    return true;
                }
            }
        }
        let old = self.history.get(open_time);
        if old.as_ref() == body {
            return false;
        }
        self.rewrite();
        self.history.set(open_time, body.copied());
        self.touched.push((open_time, old));
        true
    }

    /// From now on changes are listed.
    fn rewrite(&mut self) {
        self.rewritten = true;
        if let Some((first, mut replaced)) = self.tail.take() {
            let times = &self.history.open_times()[first..];
            self.touched.extend(times.iter().map(|open_time| (*open_time, replaced.take())));
        }
    }

    fn is_changed(&self) -> bool {
        self.rewritten || self.tail.is_some()
    }

    /// How many bars changed, and the open time of each, rising.
    fn changed(&self) -> (usize, impl Fn(usize) -> Nanos) {
        let first = self.tail.map(|(first, _)| first);
        let count = first.map_or(self.touched.len(), |first| self.history.len() - first);
        (count, move |i: usize| match first {
            Some(first) => self.history.open_times()[first + i],
            None => self.touched[i].0,
        })
    }

    /// The bar of `[open_time, close_time)` from its children, of which none before `changed` has changed. `Err`: a sum
    /// overflows.
    fn fold(
        &mut self,
        children: &Level,
        open_time: Nanos,
        close_time: Nanos,
        changed: Nanos,
    ) -> Result<Option<BarBody>, ()> {
        if children.overflown.range(open_time..close_time).next().is_some() {
            self.forget(open_time);
            return Err(());
        }
        let (mut fold, mut tail) = (None, open_time);
        if self.prefix.bar == open_time && self.prefix.tail <= changed {
            (fold, tail) = (self.prefix.fold, self.prefix.tail);
        }
        let mut last: Option<BarBody> = None;
        let indexes = children.history.range(tail, close_time);
        for (open, body) in children.history.bodies(indexes) {
            // The child before is not the last one.
            if let Some(before) = last.replace(body) {
                append(&mut fold, &before).inspect_err(|()| self.forget(open_time))?;
            }
            tail = open;
        }
        if open_time >= self.prefix.bar {
            self.prefix = Prefix { bar: open_time, tail, fold };
        }
        if let Some(last) = last {
            append(&mut fold, &last)?;
        }
        Ok(fold)
    }

    fn forget(&mut self, open_time: Nanos) {
        if self.prefix.bar == open_time {
            self.prefix.tail = Nanos::MAX;
        }
    }
}

fn append(fold: &mut Option<BarBody>, body: &BarBody) -> Result<(), ()> {
    match fold {
        Some(fold) => fold.append(body).map_err(|_| ()),
        None => {
            *fold = Some(*body);
            Ok(())
        }
    }
}

#[derive(Debug)]
struct SymbolBars {
    symbol: Symbol,
    scale: u8,
    levels: Vec<Level>,
    /// Whether it stands among the active symbols of this epoch.
    active: bool,
}

/// The kernel: base bars that changed in, bars of every timeframe that changed out.
#[derive(Debug)]
pub struct Rollup {
    instruments: Arc<Instruments>,
    /// Base first, rising.
    timeframes: Vec<Timeframe>,
    /// Of each timeframe, which one it is folded from.
    children: Vec<usize>,
    index: SymbolIndex,
    symbols: Vec<SymbolBars>,
    /// Symbols with a change or a closing bar in this epoch.
    active: Vec<u32>,
    /// (the `closed_through` at which a bar closes, symbol, timeframe). Entries that are not the level's `due` are void.
    timers: BinaryHeap<Reverse<(Nanos, u32, u32)>>,
    closed_through: Nanos,
}

impl Rollup {
    /// No bars yet. The first timeframe is the base; the others, in any order, are multiples of it.
    pub fn new(timeframes: &[Timeframe], instruments: Arc<Instruments>) -> Result<Self, RollupError> {
        let base = *timeframes.first().ok_or(RollupError::Empty)?;
        if let Some(other) = timeframes.iter().find(|t| t.nanos() % base.nanos() != 0) {
            return Err(RollupError::NotAMultiple(*other, base));
        }
        let mut timeframes = timeframes.to_vec();
        timeframes.sort_unstable();
        if let Some(pair) = timeframes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(RollupError::Twice(pair[0]));
        }
        let divides = |i: usize, j: usize| timeframes[i].nanos() % timeframes[j].nanos() == 0;
        let children = (0..timeframes.len()).map(|i| (0..i).rev().find(|j| divides(i, *j)).unwrap_or(0)).collect();
        Ok(Rollup {
            instruments,
            timeframes,
            children,
            index: SymbolIndex::default(),
            symbols: Vec::new(),
            active: Vec::new(),
            timers: BinaryHeap::new(),
            closed_through: Nanos::MIN,
        })
    }

    /// The timeframes, base first, rising.
    pub fn timeframes(&self) -> &[Timeframe] {
        &self.timeframes
    }

    /// Bars that close at or before this are closed.
    pub fn closed_through(&self) -> Nanos {
        self.closed_through
    }

    /// All bars of a symbol, forming ones too; none if the symbol or the timeframe is unknown.
    pub fn history(&self, symbol: Symbol, timeframe: Timeframe) -> Option<&History> {
        let symbol = &self.symbols[self.index.get(symbol)?];
        let level = self.timeframes.iter().position(|t| *t == timeframe)?;
        Some(&symbol.levels[level].history)
    }

    /// How many bars of [`Rollup::history`], from the first on, are closed.
    pub fn closed(&self, symbol: Symbol, timeframe: Timeframe) -> usize {
        self.history(symbol, timeframe).map_or(0, |history| history.closed(timeframe.nanos(), self.closed_through))
    }

    /// Digits after the point of the prices of a symbol's bars.
    pub fn scale(&self, symbol: Symbol) -> u8 {
        self.instruments.get(symbol).bar_scale()
    }

    /// Bytes of all histories.
    pub fn bytes(&self) -> usize {
        self.symbols.iter().flat_map(|s| &s.levels).map(|level| level.history.bytes()).sum()
    }

    /// The symbols that have been met, by their numbers.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol> {
        self.symbols.iter().map(|symbol| symbol.symbol)
    }

    /// The symbol of a number. There are as many as symbols have been met, also by bars that changed nothing.
    ///
    /// # Panics
    /// If it has not been met.
    pub fn symbol_at(&self, number: usize) -> Symbol {
        self.symbols[number].symbol
    }

    /// The bars of a symbol by its number, and one of the timeframes.
    ///
    /// # Panics
    /// If no [`LevelChange`] ever spoke of them.
    pub fn history_at(&self, number: usize, level: usize) -> &History {
        &self.symbols[number].levels[level].history
    }

    /// Takes in an epoch: its base bars, then how far the input has come at its end. What changed, symbol by symbol, the
    /// timeframes rising.
    pub fn epoch(
        &mut self,
        upserts: impl IntoIterator<Item = impl Borrow<BarUpsert>>,
        progress: Option<Progress>,
    ) -> Vec<LevelChange> {
        let before = self.closed_through;
        if let Some(progress) = progress {
            self.closed_through = before.max(progress.closed_through);
        }
        for upsert in upserts {
            self.upsert(upsert.borrow());
        }
        self.fold();
        self.wake();
        self.changes(before)
    }

    fn upsert(&mut self, upsert: &BarUpsert) {
        let number = self.index.number(upsert.symbol);
        if number == self.symbols.len() {
            let levels = self.timeframes.iter().map(|_| Level::new()).collect();
            let scale = self.instruments.get(upsert.symbol).bar_scale();
            self.symbols.push(SymbolBars { symbol: upsert.symbol, scale, levels, active: false });
        }
        let symbol = &mut self.symbols[number];
        if symbol.levels[0].put(upsert.open_time, upsert.body.as_ref()) && !std::mem::replace(&mut symbol.active, true)
        {
            self.active.push(number as u32);
        }
    }

    /// Carries what changed in the base histories up to all timeframes.
    fn fold(&mut self) {
        for number in &self.active {
            let levels = &mut self.symbols[*number as usize].levels;
            if levels[0].rewritten {
                net(&mut levels[0]);
            }
            for i in 1..levels.len() {
                let (lower, upper) = levels.split_at_mut(i);
                let (children, level) = (&lower[self.children[i]], &mut upper[0]);
                let length = self.timeframes[i].nanos();
                let (count, changed_at) = children.changed();
                let mut k = 0;
                while k < count {
                    let changed = changed_at(k);
                    let open_time = self.timeframes[i].open_time(changed);
                    let close_time = open_time.saturating_add(length);
                    while k < count && changed_at(k) < close_time {
                        k += 1;
                    }
                    let folded = level.fold(children, open_time, close_time, changed);
                    if folded.is_ok() && (level.overflown.is_empty() || !level.overflown.remove(&open_time)) {
                        level.put(open_time, folded.unwrap_or(None).as_ref());
                        continue;
                    }
                    // A bar that is left out, or fits again, decides about those above it whatever stood here.
                    if folded.is_err() {
                        level.overflown.insert(open_time);
                    }
                    level.rewrite();
                    let old = level.history.set(open_time, folded.unwrap_or(None));
                    level.touched.push((open_time, old));
                }
                if level.rewritten {
                    net(level);
                }
            }
        }
    }

    /// Adds the symbols that have a bar to close to the active ones.
    fn wake(&mut self) {
        while let Some(Reverse((at, number, i))) = self.timers.peek().copied() {
            if at > self.closed_through {
                break;
            }
            self.timers.pop();
            let symbol = &mut self.symbols[number as usize];
            if symbol.levels[i as usize].due == at && !std::mem::replace(&mut symbol.active, true) {
                self.active.push(number);
            }
        }
    }

    fn changes(&mut self, before: Nanos) -> Vec<LevelChange> {
        let mut active = std::mem::take(&mut self.active);
        let mut changes = Vec::with_capacity(active.len());
        for number in active.drain(..) {
            let SymbolBars { symbol, scale, levels, active } = &mut self.symbols[number as usize];
            *active = false;
            for (i, (level, timeframe)) in levels.iter_mut().zip(&self.timeframes).enumerate() {
                if !level.is_changed() && level.due > self.closed_through {
                    continue;
                }
                let length = timeframe.nanos();
                let was = level.closed;
                let times = level.history.open_times();
                // Where only the end has changed, what was due is still the first to close.
                if level.rewritten || level.due <= self.closed_through || level.due == Nanos::MAX {
                    level.closed = if level.rewritten {
                        level.history.closed(length, self.closed_through)
                    } else {
                        let newly = times[was..].iter();
                        was + newly.take_while(|open| open.saturating_add(length) <= self.closed_through).count()
                    };
                    let due = times.get(level.closed).map_or(Nanos::MAX, |open| open.saturating_add(length));
                    if due != level.due {
                        level.due = due;
                        if due < Nanos::MAX {
                            self.timers.push(Reverse((due, number, i as u32)));
                        }
                    }
                }
                let closed = level.closed;
                let (symbol, timeframe, scale) = (*symbol, *timeframe, *scale);
                let how = if level.rewritten {
                    let from = level.history.closed(length, before);
                    let touched = level.touched.len();
                    for (open_time, body) in level.history.bodies(from..closed.max(from)) {
                        if level.touched[..touched].binary_search_by_key(&open_time, |(open, _)| *open).is_err() {
                            level.touched.push((open_time, Some(body)));
                        }
                    }
                    level.touched.sort_unstable_by_key(|(open, _)| *open);
                    let mut rows = Vec::with_capacity(level.touched.len());
                    for (open_time, old) in level.touched.drain(..) {
                        let close_time = open_time.saturating_add(length);
                        let old = old.map(|body| (body, close_time <= before));
                        let new = level.history.get(open_time).map(|body| (body, close_time <= self.closed_through));
                        if old != new {
                            rows.push(BarChange { symbol, timeframe, open_time, scale, old, new });
                        }
                    }
                    level.rewritten = false;
                    How::Rewritten(rows)
                } else {
                    let first = level.tail.take().map_or(times.len(), |(first, _)| first);
                    How::Tail { first }
                };
                let (number, closed) = (number as usize, (was, closed));
                changes.push(LevelChange { symbol, timeframe, scale, closed, how, number, level: i });
            }
        }
        self.active = active;
        changes
    }
}

/// Leaves each touched bar once, in time order, with what stood at the epoch's start.
fn net(level: &mut Level) {
    let ordered = level.touched.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !ordered {
        level.touched.sort_by_key(|(open, _)| *open);
        level.touched.dedup_by_key(|(open, _)| *open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::{Price, Size};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const S: Nanos = 1_000_000_000;

    fn timeframe(text: &str) -> Timeframe {
        text.parse().unwrap()
    }

    fn rollup(timeframes: &[&str]) -> Rollup {
        let timeframes: Vec<_> = timeframes.iter().map(|t| timeframe(t)).collect();
        Rollup::new(&timeframes, Arc::new(Instruments::default())).unwrap()
    }

    fn upsert(symbol: &str, second: i64, body: Option<BarBody>) -> BarUpsert {
        BarUpsert { symbol: Symbol::new(symbol).unwrap(), open_time: second * S, body }
    }

    fn bar(price: i64) -> Option<BarBody> {
        Some(BarBody::first(Price(price), Size(price)))
    }

    fn through(second: i64) -> Option<Progress> {
        Some(Progress { sealed_through: Nanos::MIN, closed_through: second * S })
    }

    /// One epoch, bar by bar: by symbol, timeframe and open time.
    fn epoch(
        rollup: &mut Rollup,
        upserts: impl IntoIterator<Item = BarUpsert>,
        progress: Option<Progress>,
    ) -> Vec<BarChange> {
        let mut all = Vec::new();
        let histories = |of: &SymbolBars| of.levels.iter().map(|level| level.history.clone()).collect();
        let before: Vec<Vec<History>> = rollup.symbols.iter().map(histories).collect();
        for change in rollup.epoch(upserts, progress) {
            let LevelChange { symbol, timeframe, scale, closed, how, number, level } = change;
            let first = match how {
                How::Rewritten(mut changes) => {
                    all.append(&mut changes);
                    continue;
                }
                How::Tail { first } => first,
            };
            let history = rollup.history_at(number, level);
            for i in closed.0.min(first)..history.len() {
                let body = history.body(i);
                let open_time = history.open_times()[i];
                let old = before.get(number).and_then(|levels| levels[level].get(open_time));
                let (old, new) = (old.map(|body| (body, i < closed.0)), Some((body, i < closed.1)));
                if old != new {
                    all.push(BarChange { symbol, timeframe, open_time, scale, old, new });
                }
            }
        }
        all.sort();
        all
    }

    /// "A 1m@0 10/10/10/10 open" where open/high/low/close; old ─ new.
    fn show(changes: &[BarChange]) -> Vec<String> {
        let side = |side: Option<(BarBody, bool)>| match side {
            None => "none".to_owned(),
            Some((b, closed)) => {
                let state = if closed { "closed" } else { "open" };
                format!("{}/{}/{}/{} {state}", b.open.0, b.high.0, b.low.0, b.close.0)
            }
        };
        let show = |c: &BarChange| {
            format!("{} {}@{}: {} > {}", c.symbol, c.timeframe, c.open_time / S, side(c.old), side(c.new))
        };
        changes.iter().map(show).collect()
    }

    #[test]
    fn bars_form_close_and_change() {
        let mut rollup = rollup(&["1s", "1m"]);
        assert_eq!(epoch(&mut rollup, [], through(0)), []);
        let steps: &[(&[BarUpsert], i64, &[&str])] = &[
            // Two symbols, out of order; nothing closes yet.
            (
                &[upsert("B", 0, bar(5)), upsert("A", 1, bar(20)), upsert("A", 0, bar(10))],
                0,
                &[
                    "A 1s@0: none > 10/10/10/10 open",
                    "A 1s@1: none > 20/20/20/20 open",
                    "A 1m@0: none > 10/20/10/20 open",
                    "B 1s@0: none > 5/5/5/5 open",
                    "B 1m@0: none > 5/5/5/5 open",
                ],
            ),
            // Time alone closes.
            (&[], 1, &["A 1s@0: 10/10/10/10 open > 10/10/10/10 closed", "B 1s@0: 5/5/5/5 open > 5/5/5/5 closed"]),
            (&[], 1, &[]),
            // The last child changes, in the epoch in which it closes.
            (
                &[upsert("A", 1, bar(30))],
                2,
                &["A 1s@1: 20/20/20/20 open > 30/30/30/30 closed", "A 1m@0: 10/20/10/20 open > 10/30/10/30 open"],
            ),
            // A bar in the past is closed at once; the minute is not over.
            (&[upsert("A", -1, bar(1))], 2, &["A 1s@-1: none > 1/1/1/1 closed", "A 1m@-60: none > 1/1/1/1 closed"]),
            (&[], 60, &["A 1m@0: 10/30/10/30 open > 10/30/10/30 closed", "B 1m@0: 5/5/5/5 open > 5/5/5/5 closed"]),
            // A closed bar changes, and one goes; they stay closed.
            (
                &[upsert("A", 0, None), upsert("B", 0, None)],
                60,
                &[
                    "A 1s@0: 10/10/10/10 closed > none",
                    "A 1m@0: 10/30/10/30 closed > 30/30/30/30 closed",
                    "B 1s@0: 5/5/5/5 closed > none",
                    "B 1m@0: 5/5/5/5 closed > none",
                ],
            ),
            // What stands already is no change; time never goes back.
            (&[upsert("A", 1, bar(30)), upsert("B", 7, None)], 0, &[]),
        ];
        for (upserts, closed_through, expected) in steps {
            assert_eq!(show(&epoch(&mut rollup, upserts.iter().copied(), through(*closed_through))), *expected);
        }
        let symbol = Symbol::new("A").unwrap();
        assert_eq!(rollup.history(symbol, Timeframe::S1).unwrap().open_times(), [-S, S]);
        assert_eq!((rollup.closed(symbol, Timeframe::S1), rollup.closed(symbol, Timeframe::M1)), (2, 2));
        assert!(rollup.history(symbol, Timeframe::H1).is_none());
        assert!(rollup.history(Symbol::new("NONE").unwrap(), Timeframe::S1).is_none());
    }

    #[test]
    fn a_change_and_its_undoing_in_one_epoch_are_none() {
        let mut rollup = rollup(&["1s", "1m"]);
        epoch(&mut rollup, [upsert("A", 0, bar(1))], None);
        assert_eq!(epoch(&mut rollup, [upsert("A", 0, bar(2)), upsert("A", 0, bar(1))], None), []);
        assert_eq!(epoch(&mut rollup, [upsert("A", 1, bar(2)), upsert("A", 1, None)], None), []);
    }

    #[test]
    fn a_bar_that_overflows_is_left_out_with_all_that_hold_it() {
        let mut rollup = rollup(&["1s", "2s", "4s"]);
        let huge = |turnover| Some(BarBody { turnover, ..bar(7).unwrap() });
        epoch(&mut rollup, [upsert("A", 0, huge(i128::MAX - 10)), upsert("A", 2, bar(1))], None);
        let changes = show(&epoch(&mut rollup, [upsert("A", 1, huge(100))], None));
        assert_eq!(
            changes,
            ["A 1s@1: none > 7/7/7/7 open", "A 2s@0: 7/7/7/7 open > none", "A 4s@0: 7/7/1/1 open > none"]
                .map(String::from)
        );
        // It stays out while it changes beside; then it fits again.
        let changes = show(&epoch(&mut rollup, [upsert("A", 3, bar(2))], None));
        assert_eq!(changes, ["A 1s@3: none > 2/2/2/2 open", "A 2s@2: 1/1/1/1 open > 1/2/1/2 open"].map(String::from));
        let changes = show(&epoch(&mut rollup, [upsert("A", 0, None), upsert("A", 1, None)], None));
        assert_eq!(changes[2..], ["A 4s@0: none > 1/2/1/2 open".to_owned()]);
    }

    #[test]
    fn bad_timeframes_are_named() {
        let new = |timeframes: &[Timeframe]| {
            Rollup::new(timeframes, Arc::new(Instruments::default())).map(|_| ()).unwrap_err().to_string()
        };
        let (two, three) = (timeframe("2s"), timeframe("3s"));
        assert_eq!(new(&[]), "no timeframe is given; the first is the base");
        assert_eq!(new(&[two, Timeframe::M1, three]), "timeframe 3s is not a multiple of the base 2s");
        assert_eq!(new(&[two, Timeframe::S1]), "timeframe 1s is not a multiple of the base 2s");
        assert_eq!(new(&[two, two]), "timeframe 2s is given twice");
    }

    #[test]
    fn a_timeframe_is_folded_from_the_longest_that_divides_it() {
        let rollup = rollup(&["1s", "1h", "5m", "2m", "1m"]);
        assert_eq!(
            rollup.timeframes().iter().map(|t| t.to_string()).collect::<Vec<_>>(),
            ["1s", "1m", "2m", "5m", "1h"]
        );
        assert_eq!(rollup.children, [0, 0, 1, 1, 3]);
    }

    type Bars = BTreeMap<(Symbol, Timeframe, Nanos), (BarBody, bool)>;

    /// All bars from scratch.
    fn from_scratch(
        base: &BTreeMap<(Symbol, Nanos), BarBody>,
        timeframes: &[Timeframe],
        closed_through: Nanos,
    ) -> Bars {
        let mut bars = Bars::new();
        for ((symbol, open), body) in base {
            for timeframe in timeframes {
                let open_time = timeframe.open_time(*open);
                let closed = open_time + timeframe.nanos() <= closed_through;
                bars.entry((*symbol, *timeframe, open_time))
                    .and_modify(|(fold, _)| fold.append(body).unwrap())
                    .or_insert((*body, closed));
            }
        }
        bars
    }

    type Step = (Vec<(bool, i64, Option<i64>)>, i64);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let upsert = (any::<bool>(), 0_i64..40, prop::option::weighted(0.8, 1_i64..9));
        prop::collection::vec((prop::collection::vec(upsert, 0..6), 0_i64..4), 1..60)
    }

    proptest! {
        #[test]
        fn it_equals_a_fold_from_scratch_after_every_epoch(steps in steps(), rising in any::<bool>()) {
            let mut rollup = rollup(&["1s", "2s", "6s", "10s"]);
            let timeframes = rollup.timeframes().to_vec();
            let (mut base, mut bars, mut closed) = (BTreeMap::new(), Bars::new(), 0);
            for (i, (upserts, more)) in steps.iter().enumerate() {
                closed += more * S;
                let mut given = Vec::new();
                for (second_symbol, second, price) in upserts {
                    let symbol = if *second_symbol { "B" } else { "A" };
                    // Mostly at the end, as live: the fold of the forming bar is what is at stake.
                    let second = if rising { i as i64 + second / 20 } else { *second };
                    let upsert = upsert(symbol, second, price.and_then(bar));
                    match upsert.body {
                        Some(body) => base.insert((upsert.symbol, upsert.open_time), body),
                        None => base.remove(&(upsert.symbol, upsert.open_time)),
                    };
                    given.push(upsert);
                }
                let changes = epoch(&mut rollup, given, Some(Progress { sealed_through: 0, closed_through: closed }));
                let keys: Vec<_> = changes.iter().map(|c| (c.symbol, c.timeframe, c.open_time)).collect();
                prop_assert!(keys.is_sorted_by(|a, b| a < b), "{:?}", keys);
                for (key, change) in keys.into_iter().zip(changes) {
                    prop_assert_eq!(bars.get(&key).copied(), change.old);
                    prop_assert_ne!(change.old, change.new);
                    match change.new {
                        Some(new) => bars.insert(key, new),
                        None => bars.remove(&key),
                    };
                }
                prop_assert_eq!(&bars, &from_scratch(&base, &timeframes, closed));
                for (symbol, timeframe, _) in bars.keys() {
                    let history = rollup.history(*symbol, *timeframe).unwrap();
                    let expected: Vec<_> = bars
                        .range((*symbol, *timeframe, Nanos::MIN)..=(*symbol, *timeframe, Nanos::MAX))
                        .map(|((_, _, open), (body, closed))| (*open, *body, *closed))
                        .collect();
                    let closed = rollup.closed(*symbol, *timeframe);
                    let got: Vec<_> = history.iter().enumerate().map(|(i, (o, b))| (o, b, i < closed)).collect();
                    prop_assert_eq!(got, expected);
                }
            }
        }
    }
}

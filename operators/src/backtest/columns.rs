//! Backtests as columns: many strategies of one (symbol, timeframe), eight of a kind stepping as one.
//!
//! What [`Backtest::step`] defines, to the bit, at a fraction of its cost: a vector's lanes are strategies, never time,
//! each lane does the operations of the definition in its order, and none is fused. A **group** is eight seats for
//! strategies whose rules step alike (EMA crosses; MACD crosses; all others, whose rules step one by one) and that all
//! have stops or targets, or none do. Its hot numbers (equity, its peak and low, the sums of returns, averages) are
//! columns of eight; over the bars in which nothing happens to any of the eight, they stay in registers. What is rare
//! (a signal, a fill, a stop, a new day) happens to one strategy at a time, by the definition's own code, upon its
//! book. So a group is as fast as its strategies are quiet: some 10 ns a bar
//! for all eight with AVX-512, where one bar in a hundred fills an order.
//!
//! - **All seats have seen the same bars.** So day, counts of bars, closes and ATR are one [`Clock`] for all.
//! - **Warm-up** goes bar by bar until the longest of the group is over.
//! - **Few bars at a time** step the rules alone; equities are marked when somebody asks for them, or before a fill.
//! - **Equities that are not above 0**, or beyond what a double holds, are marked bar by bar; a flat account without
//!   equity is parked, since nothing moves it any more.
//! - **Drawdown** is taken once a peak, from the least equity since: `segment.rs` proves that no bit differs.
//! - **Checkpoints** leave out what the clock or the parameters tell: 281 bytes a strategy and mark for EMA crosses
//!   without stops, 8 more for MACD, 48 more with stops or targets, against 464 of a [`Backtest`].
//! - **A replay** steps the old bars for their trades only, about a third of the work, since nothing else of them is
//!   asked for.

mod group;
mod saved;
mod segment;
#[cfg(test)]
mod tests;

use super::{Backtest, ClosedTrade, DayPartial, Params};
use crate::indicators::Atr;
use crate::series::{Series, utc_day};
use fearless_simd::Level;
use group::{Course, Seats, State, lanes};
use marea_model::num::F64;
use marea_model::strategy::ATR_PERIOD;
use marea_model::time::{DAY, Nanos};
use saved::Saved;
use segment::LANES;
use std::ops::Range;

/// Bars that all groups run over before any goes on: so many that a group's state comes cheap, and so few that their
/// columns stay in the cache for the next.
const BLOCK: usize = 1024;

/// Fewer bars than that do not mark equities at once: see [`State::glide`].
const FEW: usize = 8;

/// Bars of which equities are not marked, at most.
const OWED: usize = 64;

/// Where the trades and completed days of many backtests go. Those of one strategy come in order, different ones' in
/// any.
pub trait ColumnEvents {
    /// A trade of the strategy in this slot has ended (`diff` 1), or is withdrawn (−1).
    fn trade(&mut self, slot: usize, diff: i64, trade: &ClosedTrade);

    /// A UTC day of it is complete.
    fn day(&mut self, slot: usize, day: &DayPartial);

    /// The days of it that were completed before, and lie in this range, are withdrawn. What replaces them follows.
    fn withdraw_days(&mut self, slot: usize, days: Range<i32>);
}

/// Nowhere.
impl ColumnEvents for () {
    fn trade(&mut self, _: usize, _: i64, _: &ClosedTrade) {}
    fn day(&mut self, _: usize, _: &DayPartial) {}
    fn withdraw_days(&mut self, _: usize, _: Range<i32>) {}
}

/// What bars alone make of a run of days.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct DayClock {
    day: i32,
    bars: u32,
    open_close: F64,
    last_close: F64,
}

/// What bars alone make of a backtest: the same for all strategies that have seen them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Clock {
    /// Bars.
    seen: u32,
    atr: F64,
    past: DayClock,
    today: DayClock,
}

impl Clock {
    /// Whether strategies go on from both alike; without stops or targets the ATR is nothing to them.
    fn agrees(&self, other: &Clock, stops: bool) -> bool {
        let atr = if stops { self.atr } else { other.atr };
        Clock { atr, ..*self } == *other
    }

    /// The next bar begins a day: what `Book::begin_day` does.
    fn begin_day(&mut self, day: i32, close: f64) {
        let DayClock { bars, last_close, .. } = self.today;
        let close = if bars == 0 { F64(close) } else { last_close };
        if bars > 0 {
            let first = if self.past.bars == 0 { self.today } else { self.past };
            self.past =
                DayClock { day: self.today.day, bars: self.past.bars + bars, open_close: first.open_close, last_close };
        }
        self.today = DayClock { day, bars: 0, open_close: close, last_close: close };
    }

    /// Goes over bars of one day.
    fn advance(&mut self, tape: &Tape<'_>, bars: Range<usize>) {
        let Some(last) = bars.clone().next_back() else { return };
        let count = bars.len() as u32;
        self.seen = self.seen.saturating_add(count);
        self.today.bars += count;
        self.today.last_close.0 = tape.series.close[last];
        self.atr = tape.atr(last);
    }

    /// Goes over bars of several days.
    fn walk(&mut self, tape: &Tape<'_>, bars: Range<usize>) {
        let mut i = bars.start;
        while i < bars.end {
            if tape.begins_day(i, self) {
                self.begin_day(tape.day(i), tape.series.close[i]);
            }
            let end = tape.day_end(i).min(bars.end);
            self.advance(tape, i..end);
            i = end;
        }
    }
}

/// Bars to run over, with what is computed from them once for all groups.
struct Tape<'a> {
    series: &'a Series,
    from: usize,
    /// After each bar from there on.
    atr: Vec<F64>,
    /// Bars that begin another day than the one before, past the first.
    days: Vec<usize>,
}

impl<'a> Tape<'a> {
    /// Of some bars, which the clock stands before; the buffers are written over.
    fn new(series: &'a Series, bars: Range<usize>, clock: &Clock, (mut atr, mut days): (Vec<F64>, Vec<usize>)) -> Self {
        atr.clear();
        days.clear();
        let (kernel, from) = (Atr::new(ATR_PERIOD), bars.start);
        let (mut state, mut seen) = (clock.atr, clock.seen);
        let mut midnight = Nanos::MIN;
        for i in bars {
            kernel.next(&mut state, seen.min(ATR_PERIOD + 1), series, i);
            seen = seen.saturating_add(1);
            atr.push(state);
            if series.open_time[i] >= midnight {
                midnight = (i64::from(utc_day(series.open_time[i])) + 1).saturating_mul(DAY);
                if i > from {
                    days.push(i);
                }
            }
        }
        Tape { series, from, atr, days }
    }

    fn atr(&self, i: usize) -> F64 {
        self.atr[i - self.from]
    }

    fn day(&self, i: usize) -> i32 {
        utc_day(self.series.open_time[i])
    }

    fn begins_day(&self, i: usize, clock: &Clock) -> bool {
        clock.today.bars == 0 || self.day(i) != clock.today.day
    }

    /// The first bar of the day after that of bar `i`, or the end.
    fn day_end(&self, i: usize) -> usize {
        let next = self.days.partition_point(|day| *day <= i);
        self.days.get(next).copied().unwrap_or(self.from + self.atr.len())
    }
}

/// Two histories to step side by side: those bars before `from` are equal, and only looked back at.
#[derive(Clone, Copy, Debug)]
pub struct Replay<'a> {
    /// What stood.
    pub old: &'a Series,
    /// What stands.
    pub new: &'a Series,
    /// The first bar to step, in both.
    pub from: usize,
    /// The mark to start after: all bars up to it are before `from`. None is the beginning of history.
    pub after: Option<usize>,
    /// Open time of the latest bar that differs.
    pub last_edit: Nanos,
}

#[derive(Clone, Debug)]
struct Group {
    seats: Seats,
    state: State,
}

/// The backtests of one (symbol, timeframe), and their checkpoints. A strategy keeps its slot for as long as it is
/// there.
#[derive(Clone, Debug)]
pub struct Columns {
    level: Level,
    groups: Vec<Group>,
    clock: Clock,
    /// At each mark.
    saved: Vec<Saved>,
    /// The closes of the last bars, of which equities may not have been marked yet.
    recent: Vec<f64>,
    buffers: (Vec<F64>, Vec<usize>),
}

impl Default for Columns {
    fn default() -> Self {
        Self::new()
    }
}

/// What happens to a group, kept for comparison.
#[derive(Default)]
struct Kept {
    trades: Vec<(usize, ClosedTrade)>,
    days: Vec<(usize, DayPartial)>,
}

impl ColumnEvents for Kept {
    fn trade(&mut self, slot: usize, _: i64, trade: &ClosedTrade) {
        self.trades.push((slot, *trade));
    }
    fn day(&mut self, slot: usize, day: &DayPartial) {
        self.days.push((slot, *day));
    }
    fn withdraw_days(&mut self, _: usize, _: Range<i32>) {}
}

/// All trades are withdrawn.
struct Withdrawn<'a, E>(&'a mut E);

impl<E: ColumnEvents> ColumnEvents for Withdrawn<'_, E> {
    fn trade(&mut self, slot: usize, diff: i64, trade: &ClosedTrade) {
        self.0.trade(slot, -diff, trade);
    }
    fn day(&mut self, _: usize, _: &DayPartial) {}
    fn withdraw_days(&mut self, _: usize, _: Range<i32>) {}
}

impl Columns {
    /// No strategies.
    pub fn new() -> Self {
        Self::with_level(Level::new())
    }

    fn with_level(level: Level) -> Self {
        let (groups, clock, saved) = (Vec::new(), Clock::default(), Vec::new());
        Columns { level, groups, clock, saved, recent: Vec::new(), buffers: Default::default() }
    }

    /// Whether there are no strategies.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.seats.live == 0)
    }

    /// A seat that is free for strategies of a kind, in a new group if need be.
    fn seat(&mut self, params: &Params) -> (usize, usize) {
        let kind = Seats::kind(params);
        let free = |group: &Group| group.seats.kind == kind && group.seats.live != u8::MAX;
        let at = self.groups.iter().position(free).unwrap_or_else(|| {
            let seats = Seats::new(params);
            for saved in &mut self.saved {
                saved.open(kind);
            }
            self.groups.push(Group { state: State::new(&seats), seats });
            self.groups.len() - 1
        });
        (at, self.groups[at].seats.live.trailing_ones() as usize)
    }

    /// Seats a strategy that has seen nothing, before the first bar; its slot.
    pub fn add(&mut self, params: &Params) -> usize {
        debug_assert!(self.clock.seen == 0 && self.saved.is_empty(), "later ones catch up, then join");
        let (at, lane) = self.seat(params);
        let Group { seats, state } = &mut self.groups[at];
        seats.sit(lane, params);
        state.put(seats, lane, &Backtest::new(params));
        at * LANES + lane
    }

    /// Marks all equities that are owed: before states are looked at, or seats change.
    fn settle(&mut self) {
        for Group { seats, state } in &mut self.groups {
            state.settle(self.level, seats, &self.recent);
        }
        self.recent.clear();
    }

    /// Takes in strategies that have caught up: that have seen the same bars, and have checkpoints at the same marks.
    /// Calls `moved` with each one's slot there and its slot here. Free seats fill first.
    pub fn join(&mut self, mut caught_up: Columns, mut moved: impl FnMut(usize, usize)) {
        self.settle();
        caught_up.settle();
        if self.is_empty() {
            *self = caught_up;
            for (at, group) in self.groups.iter().enumerate() {
                lanes(group.seats.live).for_each(|lane| moved(at * LANES + lane, at * LANES + lane));
            }
            return;
        }
        debug_assert!(self.clock == caught_up.clock && self.saved.len() == caught_up.saved.len());
        let places = saved::places(caught_up.groups.iter().map(|group| group.seats.kind));
        for (from, group) in caught_up.groups.iter().enumerate() {
            for lane in lanes(group.seats.live) {
                let params = group.seats.params(lane);
                let (to, seat) = self.seat(params);
                let place = saved::place(self.groups.iter().map(|group| group.seats.kind), to);
                let Group { seats, state } = &mut self.groups[to];
                seats.sit(seat, params);
                state.put(seats, seat, &group.state.get(&group.seats, lane, &self.clock));
                for (mine, theirs) in self.saved.iter_mut().zip(&caught_up.saved) {
                    mine.copy(place, seat, theirs, places[from], lane);
                }
                moved(from * LANES + lane, to * LANES + seat);
            }
        }
    }

    /// Empties a slot, without a word about what its strategy did: see [`Columns::afresh`].
    pub fn remove(&mut self, slot: usize) {
        self.settle();
        let Some(Group { seats, state }) = self.groups.get_mut(slot / LANES) else { return };
        seats.leave(slot % LANES);
        state.clear(slot % LANES);
        if self.is_empty() {
            self.groups.clear();
            self.saved.iter_mut().for_each(Saved::clear);
        }
    }

    /// The strategies in these slots before the first bar, in the same slots of columns of their own.
    pub fn afresh(&self, slots: &[usize]) -> Columns {
        let group = |(at, group): (usize, &Group)| {
            let mut seats = Seats::new(group.seats.params(0));
            for lane in slots.iter().filter(|slot| **slot / LANES == at).map(|slot| slot % LANES) {
                seats.sit(lane, group.seats.params(lane));
            }
            Group { state: State::new(&seats), seats }
        };
        Columns { groups: self.groups.iter().enumerate().map(group).collect(), ..Columns::with_level(self.level) }
    }

    /// Withdraws the trades that strategies made over `bars`, those right after what was withdrawn before: begun by
    /// [`Columns::afresh`], and good for nothing else afterwards. Cost: about a third of [`Columns::run`].
    pub fn withdraw(&mut self, series: &Series, bars: Range<usize>, sink: &mut impl ColumnEvents) {
        self.pass::<false, _>(series, bars, &mut Withdrawn(sink));
    }

    /// The state of the strategy in a slot, as if it had been alone. Cost: some 50 ns, and the marks that its group owes.
    pub fn get(&mut self, slot: usize) -> Option<Backtest> {
        let Group { seats, state } = self.groups.get_mut(slot / LANES)?;
        state.settle(self.level, seats, &self.recent);
        let lane = slot % LANES;
        (seats.live >> lane & 1 == 1).then(|| state.get(seats, lane, &self.clock))
    }

    /// Steps all over `bars`, those right after what they have seen: as [`Backtest::run`] for each.
    pub fn run(&mut self, series: &Series, bars: Range<usize>, sink: &mut impl ColumnEvents) {
        self.pass::<true, _>(series, bars, sink);
    }

    fn pass<const MARK: bool, E: ColumnEvents>(&mut self, series: &Series, bars: Range<usize>, sink: &mut E) {
        let mut from = bars.start;
        while from < bars.end {
            let block = from..bars.end.min(from + BLOCK);
            from = block.end;
            let tape = Tape::new(series, block.clone(), &self.clock, std::mem::take(&mut self.buffers));
            let is_one_day = !tape.begins_day(block.start, &self.clock) && tape.days.is_empty();
            let glides = MARK && block.len() < FEW && is_one_day;
            if !glides || self.recent.len() + block.len() > OWED {
                self.settle();
            }
            if glides {
                self.recent.extend_from_slice(&series.close[block.clone()]);
            }
            for (at, Group { seats, state }) in self.groups.iter_mut().enumerate() {
                if seats.live == 0 {
                    continue;
                }
                let course = Course { level: self.level, seats, slot: at * LANES, tape: &tape };
                if glides && self.clock.seen >= seats.warm() {
                    state.glide(&course, block.clone(), &self.clock, &self.recent, sink);
                } else {
                    state.run::<MARK, E>(&course, block.clone(), &self.clock, sink);
                }
            }
            self.clock.walk(&tape, block);
            self.buffers = (tape.atr, tape.days);
        }
    }

    /// Keeps the state of all as of now: one more mark.
    pub fn mark(&mut self) {
        self.settle();
        let mut saved = Saved::of(self.groups.iter().map(|group| group.seats.kind));
        saved.clock = self.clock;
        for (place, group) in self.places().into_iter().zip(&self.groups) {
            saved.write(place, &group.seats, &group.state, &self.clock);
        }
        self.saved.push(saved);
    }

    /// Lets go of marks: keeps those that `keep` says, in order.
    pub fn retain_marks(&mut self, keep: &[bool]) {
        let mut flags = keep.iter();
        self.saved.retain(|_| *flags.next().unwrap_or(&true));
    }

    fn places(&self) -> Vec<saved::Place> {
        saved::places(self.groups.iter().map(|group| group.seats.kind))
    }

    /// Bytes that a checkpoint of all strategies takes.
    pub fn mark_bytes(&self) -> usize {
        Saved::of(self.groups.iter().map(|group| group.seats.kind)).bytes()
    }

    /// Replaces what the strategies made of `replay.old` by what they make of `replay.new`, and their checkpoints after
    /// `replay.after` likewise; `marks` are the times of all marks, each state being as of the last bar that opened at
    /// or before its mark.
    ///
    /// Trades that come out the same on both sides are not told. A group stops at the first mark after the last edit
    /// (and all that rules look back at) at which its state is what it was.
    pub fn replay(&mut self, marks: &[Nanos], replay: Replay<'_>, sink: &mut impl ColumnEvents) {
        self.settle();
        let Replay { old, new, from, after, last_edit } = replay;
        debug_assert!(self.saved.len() == marks.len(), "every mark has a checkpoint");
        let start = after.map_or(Clock::default(), |mark| self.saved[mark].clock);
        let first = after.map_or(0, |mark| mark + 1);
        let new_tape = Tape::new(new, from..new.len(), &start, Default::default());
        let old_tape = Tape::new(old, from..old.len(), &start, Default::default());
        let up_to = |series: &Series, time: Nanos| series.open_time.partition_point(|t| *t <= time).max(from);
        // Where each mark lies in the new bars, and the clock there.
        let mut clock = start;
        let mut at = from;
        let mut cuts: Vec<(usize, Clock)> = Vec::with_capacity(marks.len() - first);
        for mark in &marks[first..] {
            let cut = up_to(new, *mark);
            clock.walk(&new_tape, at..cut);
            at = cut;
            cuts.push((cut, clock));
        }
        clock.walk(&new_tape, at..new.len());
        let edited = up_to(new, last_edit);

        let level = self.level;
        let places = self.places();
        for (at, group) in self.groups.iter_mut().enumerate() {
            let (Group { seats, state: live }, place) = (group, places[at]);
            if seats.live == 0 {
                continue;
            }
            let slot = at * LANES;
            let course = Course { level, seats, slot, tape: &new_tape };
            let begin = match after {
                Some(mark) => self.saved[mark].read(place, seats),
                None => State::new(seats),
            };
            let (mut state, mut kept, mut bar, mut clock) = (begin.clone(), Kept::default(), from, start);
            let mut settled = None;
            for (mark, (cut, clock_there)) in cuts.iter().enumerate() {
                state.run::<true, _>(&course, bar..*cut, &clock, &mut kept);
                state.settle(level, seats, &[]);
                (bar, clock) = (*cut, *clock_there);
                let saved = &mut self.saved[first + mark];
                let past = marks[first + mark] > last_edit && *cut >= edited + seats.lookback();
                let same = saved.write(place, seats, &state, &clock);
                if past && same && saved.clock.agrees(&clock, seats.kind.1) {
                    settled = Some(first + mark);
                    break;
                }
            }
            if settled.is_none() {
                state.run::<true, _>(&course, bar..new.len(), &clock, &mut kept);
                state.settle(level, seats, &[]);
                *live = state;
            }
            let (mut state, mut before) = (begin, Kept::default());
            let end = settled.map_or(old.len(), |mark| up_to(old, marks[mark]));
            state.run::<false, _>(&Course { tape: &old_tape, ..course }, from..end, &start, &mut before);
            let since = if start.today.bars > 0 { start.today.day } else { i32::MIN };
            let until = settled.map_or(i32::MAX, |mark| self.saved[mark].clock.today.day);
            lanes(seats.live).for_each(|lane| sink.withdraw_days(slot + lane, since..until));
            kept.days.iter().for_each(|(slot, day)| sink.day(*slot, day));
            tell_difference(&mut before.trades, &mut kept.trades, sink);
        }
        for (saved, (_, clock)) in self.saved[first..].iter_mut().zip(&cuts) {
            saved.clock = *clock;
        }
        self.clock = clock;
    }
}

/// Tells the trades that only one side has. The trades of a strategy do not overlap, and no two begin at one time.
fn tell_difference(old: &mut [(usize, ClosedTrade)], new: &mut [(usize, ClosedTrade)], sink: &mut impl ColumnEvents) {
    let key = |(slot, trade): &(usize, ClosedTrade)| (*slot, trade.entry_time);
    old.sort_by_key(key);
    new.sort_by_key(key);
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let (before, after) = (old.peek().map(|t| key(t)), new.peek().map(|t| key(t)));
        let takes = |a: Option<_>, b: Option<_>| a.is_some() && (b.is_none() || a <= b);
        let gone = if takes(before, after) { old.next() } else { None };
        let come = if takes(after, before) { new.next() } else { None };
        if gone.is_none() && come.is_none() {
            return;
        }
        if gone != come {
            gone.into_iter().for_each(|(slot, trade)| sink.trade(*slot, -1, trade));
            come.into_iter().for_each(|(slot, trade)| sink.trade(*slot, 1, trade));
        }
    }
}

//! Eight strategies: their seats, their state, and how it runs.

use super::super::{Backtest, Book, ClosedTrade, DayPartial, Events, Params};
use super::segment::{self, Bars, Col, EMA, Exit, Hot, LANES, MACD, Sides, TOLD, deepened, keep};
use super::{Clock, ColumnEvents, Tape};
use crate::series::Series;
use crate::strategies::{Crossing, RuleState};
use fearless_simd::Level;
use marea_model::num::F64;
use std::ops::Range;

/// Bars whose sides are told ahead where the rules step one by one.
const CHUNK: usize = 64;

/// The lanes whose bits are set.
pub(super) fn lanes(mut bits: u8) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = bits.trailing_zeros() as usize;
        bits &= bits.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}

/// What strategies must share to sit in one group: how their rules step, and whether they have stops or targets.
pub(super) type Kind = (Option<Crossing>, bool);

/// Who sits in a group.
#[derive(Clone, Debug)]
pub(super) struct Seats {
    pub(super) kind: Kind,
    /// Lanes that are taken.
    pub(super) live: u8,
    /// The sides that each takes.
    taken: Sides,
    /// Bars until the last of them is warm: only then do they run as columns.
    warm: u32,
    /// Off the path of every bar, like what else is boxed.
    params: Box<[Params; LANES]>,
}

impl Seats {
    pub(super) fn kind(params: &Params) -> Kind {
        (params.rule.crossing().map(|(crossing, _)| crossing), params.atr.is_some())
    }

    /// Seats for strategies like this one, all empty.
    pub(super) fn new(params: &Params) -> Self {
        Seats {
            kind: Self::kind(params),
            live: 0,
            taken: Sides::default(),
            warm: 0,
            params: Box::new([*params; LANES]),
        }
    }

    pub(super) fn sit(&mut self, lane: usize, params: &Params) {
        self.params[lane] = *params;
        self.live |= 1 << lane;
        self.rate();
    }

    pub(super) fn leave(&mut self, lane: usize) {
        self.live &= !(1 << lane);
        self.rate();
    }

    pub(super) fn params(&self, lane: usize) -> &Params {
        &self.params[lane]
    }

    /// Bars until the last of them is warm.
    pub(super) fn warm(&self) -> u32 {
        self.warm
    }

    fn rate(&mut self) {
        self.taken = Sides::default();
        self.warm = 0;
        for lane in lanes(self.live) {
            let [least, greatest] = self.params[lane].sides;
            self.taken.up |= u8::from(greatest > 0) << lane;
            self.taken.down |= u8::from(least < 0) << lane;
            self.warm = self.warm.max(self.params[lane].warm_up);
        }
    }

    /// How far its strategies look back.
    pub(super) fn lookback(&self) -> usize {
        lanes(self.live).map(|lane| self.params[lane].lookback).max().unwrap_or(0)
    }
}

/// The state of a group after some bars. A book is right in what fills write; in what every bar writes, the columns
/// are, or the clock.
#[derive(Clone, Debug)]
pub(super) struct State {
    hot: Hot,
    /// Whose signals have not been filled yet.
    pending: u8,
    /// Flat with an equity ≤ 0, which stays so: their columns are those of an empty seat.
    parked: u8,
    /// Last signals.
    sides: Sides,
    /// Bars of the day until which a book has counted its time in market.
    counted: [u32; LANES],
    books: Box<[Book; LANES]>,
    /// Where the rules are no crossings, else none.
    rules: Vec<RuleState>,
    /// Until they are warm, while bars come in: the strategies themselves, and nothing else of this is right.
    warming: Option<Box<[Backtest; LANES]>>,
    /// The last bars, of which the equities have not been marked yet: see [`State::glide`].
    owed: usize,
}

/// Where a group runs.
#[derive(Clone, Copy)]
pub(super) struct Course<'a> {
    pub(super) level: Level,
    pub(super) seats: &'a Seats,
    /// Of its first lane.
    pub(super) slot: usize,
    pub(super) tape: &'a Tape<'a>,
}

/// Events of one of the strategies.
struct Of<'a, E> {
    slot: usize,
    sink: &'a mut E,
}

impl<E: ColumnEvents> Events for Of<'_, E> {
    fn trade(&mut self, trade: &ClosedTrade) {
        self.sink.trade(self.slot, 1, trade);
    }

    fn day(&mut self, day: &DayPartial) {
        self.sink.day(self.slot, day);
    }
}

impl State {
    /// Before the first bar.
    pub(super) fn new(seats: &Seats) -> Self {
        let start = Backtest::new(&seats.params[0]);
        let mut state = State {
            hot: Hot::EMPTY,
            pending: 0,
            parked: 0,
            sides: Sides::default(),
            counted: [0; LANES],
            books: Box::new([start.book; LANES]),
            rules: if seats.kind.0.is_none() { vec![start.rule; LANES] } else { Vec::new() },
            warming: None,
            owed: 0,
        };
        for lane in lanes(seats.live) {
            state.put(seats, lane, &Backtest::new(&seats.params[lane]));
        }
        state
    }

    /// One strategy as it stands; the group must be settled.
    pub(super) fn get(&self, seats: &Seats, lane: usize, clock: &Clock) -> Backtest {
        debug_assert!(self.owed == 0 && self.warming.is_none(), "it is settled before it is looked at");
        let (params, hot) = (&seats.params[lane], &self.hot);
        let mut book = self.books[lane];
        book.atr = if params.atr.is_some() { clock.atr } else { F64(0.0) };
        book.age = clock.seen.min(params.warm_up);
        let held = book.units.0 != 0.0;
        let today = &mut book.today;
        (today.day, today.bars) = (clock.today.day, clock.today.bars);
        (today.open_close, today.last_close) = (clock.today.open_close, clock.today.last_close);
        if held {
            today.in_market = today.in_market.wrapping_add(clock.today.bars.wrapping_sub(self.counted[lane]));
        }
        if self.parked >> lane & 1 == 0 {
            let (since, peak) = (hot.since.0[lane], hot.peak.0[lane]);
            today.last_equity.0 = hot.last.0[lane];
            today.peak.0 = peak;
            today.low.0 = hot.low.0[lane];
            today.drawdown.0 = deepened(hot.drawdown.0[lane], since, peak);
            today.returns.0 = hot.returns.0[lane];
            today.squares.0 = hot.squares.0[lane];
            today.downside.0 = hot.downside.0[lane];
        }
        let rule = match seats.kind.0 {
            Some(crossing) => RuleState::of_averages(crossing, hot.averages.each_ref().map(|y| y.0[lane])),
            None => self.rules[lane],
        };
        Backtest { rule, book }
    }

    /// Takes a strategy's state; it must be as old as the others'.
    pub(super) fn put(&mut self, seats: &Seats, lane: usize, backtest: &Backtest) {
        let Backtest { rule, book } = backtest;
        self.clear(lane);
        let bit = 1 << lane;
        self.books[lane] = *book;
        self.pending |= u8::from(book.pending) << lane;
        self.sides.up |= u8::from(book.side > 0) << lane;
        self.sides.down |= u8::from(book.side < 0) << lane;
        self.counted[lane] = book.today.bars;
        if let Some(at) = self.rules.get_mut(lane) {
            *at = *rule;
        }
        if let Some((_, weights)) = seats.params[lane].rule.crossing() {
            let averages = rule.averages();
            for i in 0..weights.len() {
                self.hot.averages[i].0[lane] = averages[i];
                self.hot.weights[i].0[lane] = weights[i];
            }
        }
        let (today, hot) = (&book.today, &mut self.hot);
        if book.units.0 == 0.0 && book.cash == today.last_equity && book.cash.0 <= 0.0 {
            self.parked |= bit;
            return;
        }
        hot.last.0[lane] = today.last_equity.0;
        hot.peak.0[lane] = today.peak.0;
        hot.low.0[lane] = today.low.0;
        // What came before is in the drawdown.
        hot.since.0[lane] = today.peak.0;
        hot.drawdown.0[lane] = today.drawdown.0;
        hot.keep.0[lane] = keep(today.drawdown.0);
        hot.returns.0[lane] = today.returns.0;
        hot.squares.0[lane] = today.squares.0;
        hot.downside.0[lane] = today.downside.0;
        self.hold(seats, lane);
    }

    /// Empties a seat.
    pub(super) fn clear(&mut self, lane: usize) {
        let (stay, empty, hot) = (!(1_u8 << lane), &Hot::EMPTY, &mut self.hot);
        self.pending &= stay;
        self.parked &= stay;
        self.sides = Sides { up: self.sides.up & stay, down: self.sides.down & stay };
        let blank = |col: &mut Col, of: &Col| col.0[lane] = of.0[lane];
        blank(&mut hot.cash, &empty.cash);
        blank(&mut hot.units, &empty.units);
        blank(&mut hot.last, &empty.last);
        blank(&mut hot.peak, &empty.peak);
        blank(&mut hot.low, &empty.low);
        blank(&mut hot.since, &empty.since);
        blank(&mut hot.drawdown, &empty.drawdown);
        blank(&mut hot.keep, &empty.keep);
        blank(&mut hot.returns, &empty.returns);
        blank(&mut hot.squares, &empty.squares);
        blank(&mut hot.downside, &empty.downside);
        blank(&mut hot.above, &empty.above);
        blank(&mut hot.below, &empty.below);
        for i in 0..hot.averages.len() {
            blank(&mut hot.averages[i], &empty.averages[i]);
            blank(&mut hot.weights[i], &empty.weights[i]);
        }
    }

    /// What a strategy holds, from its book to the columns.
    #[inline]
    fn hold(&mut self, seats: &Seats, lane: usize) {
        let (book, hot) = (&self.books[lane], &mut self.hot);
        hot.cash.0[lane] = book.cash.0;
        hot.units.0[lane] = book.units.0;
        if seats.kind.1 {
            let (above, below) = if book.units.0 > 0.0 {
                (book.stop.0, book.target.0)
            } else if book.units.0 < 0.0 {
                (book.target.0, book.stop.0)
            } else {
                (f64::NEG_INFINITY, f64::INFINITY)
            };
            hot.above.0[lane] = above;
            hot.below.0[lane] = below;
        }
    }

    /// Runs over `bars` of the tape, which the clock stands before. Without `MARK` only trades come out right: the
    /// equities and what is made of them stand still, and no days are told.
    pub(super) fn run<const MARK: bool, E: ColumnEvents>(
        &mut self,
        course: &Course<'_>,
        bars: Range<usize>,
        clock: &Clock,
        sink: &mut E,
    ) {
        if bars.is_empty() {
            return;
        }
        let Course { level, seats, slot, tape } = *course;
        let warm = clock.seen >= seats.warm;
        if warm && seats.kind.0.is_some() && !tape.begins_day(bars.start, clock) && tape.day_end(bars.start) >= bars.end
        {
            return self.piece::<MARK, E>(course, bars, clock, &[], sink);
        }
        let (series, mut clock, mut i) = (tape.series, *clock, bars.start);
        if !warm {
            i = bars.end.min(i + (seats.warm - clock.seen) as usize);
            let mut warming = self.warming.take().unwrap_or_else(|| {
                let vacant = Backtest::new(&seats.params[0]);
                let live = |lane| if seats.live >> lane & 1 == 1 { self.get(seats, lane, &clock) } else { vacant };
                Box::new(std::array::from_fn(live))
            });
            for lane in lanes(seats.live) {
                let mut events = Of { slot: slot + lane, sink };
                warming[lane].run(&seats.params[lane], series, bars.start..i, &mut events);
            }
            clock.walk(tape, bars.start..i);
            self.warming = Some(warming);
            if clock.seen < seats.warm {
                return;
            }
            self.settle(level, seats, &[]);
        }
        while i < bars.end {
            if tape.begins_day(i, &clock) {
                if MARK {
                    self.begin_day(course, i, &clock, sink);
                }
                clock.begin_day(tape.day(i), series.close[i]);
            }
            let mut end = tape.day_end(i).min(bars.end);
            if seats.kind.0.is_some() {
                self.piece::<MARK, E>(course, i..end, &clock, &[], sink);
            } else {
                end = end.min(i + CHUNK);
                let told = self.told(seats, series, i..end);
                self.piece::<MARK, E>(course, i..end, &clock, &told, sink);
            }
            clock.advance(tape, i..end);
            i = end;
        }
    }

    /// Runs over a few bars of one day, all strategies being warm, and leaves the equities to be marked later: nothing
    /// that a bar does rests on them, and many bars are marked at once for little more than one. `closes` ends with these
    /// bars, and has all before them that are owed.
    pub(super) fn glide<E: ColumnEvents>(
        &mut self,
        course: &Course<'_>,
        bars: Range<usize>,
        clock: &Clock,
        closes: &[f64],
        sink: &mut E,
    ) {
        let Course { level, seats, tape, .. } = *course;
        let told;
        let told = match seats.kind.0 {
            Some(_) => &[][..],
            None => {
                told = self.told(seats, tape.series, bars.clone());
                &told[..bars.len()]
            }
        };
        let before = closes.len() - bars.len();
        let (mut i, mut clock) = (bars.start, *clock);
        while i < bars.end {
            let here = i - bars.start;
            let due = if seats.kind.1 { self.pending | self.reached(tape.series, i) } else { self.pending };
            if due != 0 {
                self.settle(level, seats, &closes[..before + here]);
                for lane in lanes(due) {
                    self.trade(course, lane, i, clock.today.bars, sink);
                }
            }
            let exit = self.segment::<false>(
                level,
                seats,
                Bars::of(tape.series, i..bars.end),
                told.get(here..).unwrap_or_default(),
            );
            clock.today.bars += exit.bars as u32;
            self.owed += exit.bars;
            i += exit.bars;
            self.tell(seats, exit.sides, tape, i - 1);
        }
    }

    /// Marks what is owed, the last of `closes`, and puts strategies that were warming in their seats: from now on all of
    /// the state is right.
    pub(super) fn settle(&mut self, level: Level, seats: &Seats, closes: &[f64]) {
        if let Some(warming) = self.warming.take() {
            for lane in lanes(seats.live) {
                self.put(seats, lane, &warming[lane]);
            }
        }
        let owed = std::mem::take(&mut self.owed);
        let mut closes = &closes[closes.len() - owed..];
        while !closes.is_empty() {
            let (few, rest) = closes.split_at(closes.len().min(CHUNK));
            let bars = Bars { close: few, high: few, low: few };
            let exit = segment::segment::<TOLD, false, true>(
                level,
                &mut self.hot,
                Sides::default(),
                Sides::default(),
                bars,
                &[Sides::default(); CHUNK],
            );
            if !exit.tame {
                self.mark_each(seats, few);
            }
            closes = rest;
        }
    }

    /// The rules say this at the close of bar `i`.
    #[inline]
    fn tell(&mut self, seats: &Seats, sides: Sides, tape: &Tape<'_>, i: usize) {
        let changed = sides.changed(self.sides);
        self.sides = sides;
        self.pending |= changed;
        for lane in lanes(changed) {
            let atr = if seats.params[lane].atr.is_some() { tape.atr(i) } else { F64(0.0) };
            self.books[lane].signal(sides.side(lane), atr);
        }
    }

    /// Steps rules that are no crossings.
    fn told(&mut self, seats: &Seats, series: &Series, bars: Range<usize>) -> [Sides; CHUNK] {
        let mut told = [Sides::default(); CHUNK];
        for lane in lanes(seats.live) {
            let params = &seats.params[lane];
            let [least, greatest] = params.sides;
            for (i, sides) in bars.clone().zip(&mut told) {
                let side = params.rule.step(&mut self.rules[lane], params.warm_up, series, i).clamp(least, greatest);
                sides.up |= u8::from(side > 0) << lane;
                sides.down |= u8::from(side < 0) << lane;
            }
        }
        told
    }

    #[cold]
    #[inline(never)]
    fn begin_day<E: ColumnEvents>(&mut self, course: &Course<'_>, i: usize, clock: &Clock, sink: &mut E) {
        let Course { seats, slot, tape, .. } = *course;
        for lane in lanes(seats.live) {
            let mut backtest = self.get(seats, lane, clock);
            backtest.book.begin_day(tape.day(i), tape.series.close[i], &mut Of { slot: slot + lane, sink });
            self.put(seats, lane, &backtest);
        }
    }

    /// Runs over bars of one day, all strategies being warm.
    fn piece<const MARK: bool, E: ColumnEvents>(
        &mut self,
        course: &Course<'_>,
        bars: Range<usize>,
        clock: &Clock,
        told: &[Sides],
        sink: &mut E,
    ) {
        let Course { level, seats, tape, .. } = *course;
        let series = tape.series;
        let mut i = bars.start;
        while i < bars.end {
            let due = if seats.kind.1 { self.pending | self.reached(series, i) } else { self.pending };
            for lane in lanes(due) {
                let today = clock.today.bars + (i - bars.start) as u32;
                self.trade(course, lane, i, today, sink);
            }
            let rest = told.get(i - bars.start..).unwrap_or_default();
            let exit = self.segment::<MARK>(level, seats, Bars::of(series, i..bars.end), rest);
            let from = i;
            i += exit.bars;
            if !exit.tame {
                self.mark_each(seats, &series.close[from..i]);
            }
            self.tell(seats, exit.sides, tape, i - 1);
        }
    }

    #[inline]
    fn segment<const MARK: bool>(&mut self, level: Level, seats: &Seats, bars: Bars<'_>, told: &[Sides]) -> Exit {
        let (hot, standing, taken) = (&mut self.hot, self.sides, seats.taken);
        let run = match seats.kind {
            (Some(Crossing::Ema), false) => segment::segment::<EMA, false, MARK>,
            (Some(Crossing::Ema), true) => segment::segment::<EMA, true, MARK>,
            (Some(Crossing::Macd), false) => segment::segment::<MACD, false, MARK>,
            (Some(Crossing::Macd), true) => segment::segment::<MACD, true, MARK>,
            (None, false) => segment::segment::<TOLD, false, MARK>,
            (None, true) => segment::segment::<TOLD, true, MARK>,
        };
        run(level, hot, standing, taken, bars, told)
    }

    /// Whose stop or target bar `i` reaches.
    #[inline]
    fn reached(&self, series: &Series, i: usize) -> u8 {
        let (low, high, hot) = (series.low[i], series.high[i], &self.hot);
        let mut within = 0;
        for lane in 0..LANES {
            within |= u8::from(low > hot.above.0[lane] && high < hot.below.0[lane]) << lane;
        }
        !within
    }

    /// What bar `i` fills of one strategy; `today` bars of the day came before.
    fn trade<E: ColumnEvents>(&mut self, course: &Course<'_>, lane: usize, i: usize, today: u32, sink: &mut E) {
        let Course { seats, slot, tape, .. } = *course;
        let book = &mut self.books[lane];
        if book.units.0 != 0.0 {
            let more = today.wrapping_sub(self.counted[lane]);
            book.today.in_market = book.today.in_market.wrapping_add(more);
        }
        self.counted[lane] = today;
        book.trade(&seats.params[lane], tape.series, i, &mut Of { slot: slot + lane, sink });
        self.pending &= !(1 << lane);
        if self.parked >> lane & 1 == 0 {
            self.hold(seats, lane);
        }
    }

    /// Marks bars one by one, where an equity is not above 0 or too great for the columns.
    #[cold]
    #[inline(never)]
    fn mark_each(&mut self, seats: &Seats, closes: &[f64]) {
        for lane in lanes(seats.live & !self.parked) {
            let hot = &mut self.hot;
            let book = &self.books[lane];
            let mut day = book.today;
            day.last_equity.0 = hot.last.0[lane];
            day.peak.0 = hot.peak.0[lane];
            day.low.0 = hot.low.0[lane];
            day.drawdown.0 = deepened(hot.drawdown.0[lane], hot.since.0[lane], hot.peak.0[lane]);
            day.returns.0 = hot.returns.0[lane];
            day.squares.0 = hot.squares.0[lane];
            day.downside.0 = hot.downside.0[lane];
            for close in closes {
                day.mark(book.cash.0 + book.units.0 * close, *close, false);
            }
            if book.units.0 == 0.0 && book.cash == day.last_equity && book.cash.0 <= 0.0 {
                let averages = hot.averages.each_ref().map(|y| y.0[lane]);
                let weights = hot.weights.each_ref().map(|w| w.0[lane]);
                let today = &mut self.books[lane].today;
                (today.last_equity, today.peak, today.low) = (day.last_equity, day.peak, day.low);
                (today.drawdown, today.returns) = (day.drawdown, day.returns);
                (today.squares, today.downside) = (day.squares, day.downside);
                let (pending, sides) = (self.pending, self.sides);
                self.clear(lane);
                (self.pending, self.sides) = (pending, sides);
                for i in 0..weights.len() {
                    self.hot.averages[i].0[lane] = averages[i];
                    self.hot.weights[i].0[lane] = weights[i];
                }
                self.parked |= 1 << lane;
                continue;
            }
            hot.last.0[lane] = day.last_equity.0;
            hot.peak.0[lane] = day.peak.0;
            hot.low.0[lane] = day.low.0;
            hot.since.0[lane] = day.peak.0;
            hot.drawdown.0[lane] = day.drawdown.0;
            hot.keep.0[lane] = keep(day.drawdown.0);
            hot.returns.0[lane] = day.returns.0;
            hot.squares.0[lane] = day.squares.0;
            hot.downside.0[lane] = day.downside.0;
        }
    }
}

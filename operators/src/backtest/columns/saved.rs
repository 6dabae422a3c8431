//! Checkpoints: what the clock and the parameters do not tell, packed.

use super::super::{Backtest, Book, DayPartial};
use super::Clock;
use super::group::{Kind, Seats, State, lanes};
use super::segment::LANES;
use crate::strategies::{Crossing, RuleState};
use marea_model::num::F64;

/// 64 bits of each strategy of a group.
type Word = [u64; LANES];

/// Words of every strategy, and those more with stops or targets.
const PLAIN: usize = 33;
const STOPS: usize = 6;
/// The most that a group has.
const MOST: usize = PLAIN + STOPS + 3;

/// Words in a block: 4 KiB, so that the allocator rounds next to nothing up.
const BLOCK: usize = 64;

/// The words that a rule's state takes; others than crossings are kept whole.
fn averages((crossing, _): Kind) -> usize {
    match crossing {
        Some(Crossing::Ema) => 2,
        Some(Crossing::Macd) => 3,
        None => 0,
    }
}

/// Where a group is kept: its number, its first word, and which of the groups with whole rules it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    kind: Kind,
    at: usize,
    word: usize,
    rule: usize,
}

impl Place {
    fn words(&self) -> usize {
        PLAIN + if self.kind.1 { STOPS } else { 0 } + averages(self.kind)
    }

    fn next(self, kind: Kind) -> Place {
        let rule = self.rule + usize::from(self.kind.0.is_none());
        Place { kind, at: self.at + 1, word: self.word + self.words(), rule }
    }
}

/// The places of groups of these kinds, in order.
pub(super) fn places(kinds: impl Iterator<Item = Kind>) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for kind in kinds {
        let first = Place { kind, at: 0, word: 0, rule: 0 };
        places.push(places.last().map_or(first, |last| last.next(kind)));
    }
    places
}

/// The place of the group `at`.
pub(super) fn place(kinds: impl Iterator<Item = Kind>, at: usize) -> Place {
    places(kinds)[at]
}

/// The words of all groups, in blocks that are full but for the last.
#[derive(Clone, Default, Debug)]
struct Words(Vec<Box<[Word]>>);

impl Words {
    fn of(count: usize) -> Self {
        let block = |from| vec![[0; LANES]; BLOCK.min(count - from)].into_boxed_slice();
        Words((0..count).step_by(BLOCK).map(block).collect())
    }

    fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * BLOCK + last.len())
    }

    fn grow(&mut self, more: usize) {
        let count = self.len() + more;
        let mut last = self.0.pop_if(|last| last.len() < BLOCK).map(Vec::from).unwrap_or_default();
        let rest = count - self.0.len() * BLOCK;
        last.resize(rest.min(BLOCK), [0; LANES]);
        self.0.push(last.into_boxed_slice());
        self.0.extend(Words::of(rest.saturating_sub(BLOCK)).0);
    }

    /// A group's words.
    fn load(&self, place: Place) -> [Word; MOST] {
        let mut words = [[0; LANES]; MOST];
        let (mut to, mut at) = (&mut words[..place.words()], place.word);
        while !to.is_empty() {
            let part = &self.0[at / BLOCK][at % BLOCK..];
            let count = part.len().min(to.len());
            let (here, later) = to.split_at_mut(count);
            here.copy_from_slice(&part[..count]);
            (to, at) = (later, at + count);
        }
        words
    }

    fn store(&mut self, place: Place, words: &[Word; MOST]) {
        let (mut from, mut at) = (&words[..place.words()], place.word);
        while !from.is_empty() {
            let part = &mut self.0[at / BLOCK][at % BLOCK..];
            let count = part.len().min(from.len());
            part[..count].copy_from_slice(&from[..count]);
            (from, at) = (&from[count..], at + count);
        }
    }
}

/// A checkpoint of all groups.
#[derive(Clone, Default, Debug)]
pub(super) struct Saved {
    pub(super) clock: Clock,
    words: Words,
    /// Of each group and lane: the side + 1, 4 if pending, 8 if stopped.
    flags: Vec<[u8; LANES]>,
    /// Of the groups whose rules are no crossings.
    rules: Vec<Vec<RuleState>>,
}

/// Shows every field that a checkpoint keeps, as a word to replace.
fn exchange(book: &mut Book, stops: bool, mut word: impl FnMut(u64) -> u64) {
    let mut float = |x: &mut F64| x.0 = f64::from_bits(word(x.0.to_bits()));
    let Book { cash, units, entry_price, entry_time, stop, target, signal_atr, past, today, .. } = book;
    for x in [cash, units, entry_price, &mut today.open_equity, &mut today.last_equity] {
        float(x);
    }
    for day in [&mut *today, &mut *past] {
        let DayPartial { peak, low, drawdown, returns, squares, downside, .. } = day;
        for x in [peak, low, drawdown, returns, squares, downside] {
            float(x);
        }
        let DayPartial { won, lost, largest_win, largest_loss, fees, .. } = day;
        for x in [won, lost, largest_win, largest_loss, fees] {
            float(x);
        }
    }
    if stops {
        for x in [stop, target, signal_atr, &mut today.r_multiples, &mut past.r_multiples] {
            float(x);
        }
    }
    for x in [entry_time, &mut today.held, &mut past.held] {
        *x = word(*x as u64) as i64;
    }
    let mut pair = |a: &mut u32, b: &mut u32| {
        let both = word(u64::from(*a) << 32 | u64::from(*b));
        (*a, *b) = ((both >> 32) as u32, both as u32);
    };
    pair(&mut past.in_market, &mut past.trades);
    pair(&mut past.wins, &mut today.in_market);
    pair(&mut today.trades, &mut today.wins);
    if stops {
        pair(&mut today.risked, &mut past.risked);
    }
}

impl Saved {
    /// With room for groups of these kinds, and not a byte more.
    pub(super) fn of(kinds: impl Iterator<Item = Kind>) -> Self {
        let places = places(kinds);
        let words = places.last().map_or(0, |last| last.word + last.words());
        let whole = places.iter().filter(|place| place.kind.0.is_none()).count();
        Saved {
            clock: Clock::default(),
            words: Words::of(words),
            flags: vec![[0; LANES]; places.len()],
            rules: vec![Vec::new(); whole],
        }
    }

    /// Makes room for one more group.
    pub(super) fn open(&mut self, kind: Kind) {
        let words = Place { kind, at: 0, word: 0, rule: 0 }.words();
        self.words.grow(words);
        self.flags.reserve_exact(1);
        self.flags.push([0; LANES]);
        if kind.0.is_none() {
            self.rules.reserve_exact(1);
            self.rules.push(Vec::new());
        }
    }

    /// Forgets all groups.
    pub(super) fn clear(&mut self) {
        *self = Saved { clock: self.clock, ..Saved::default() };
    }

    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        let rules: usize = self.rules.iter().map(|r| r.capacity() * size_of::<RuleState>()).sum();
        let vecs = self.rules.capacity() * size_of::<Vec<RuleState>>();
        self.words.len() * size_of::<Word>() + self.flags.capacity() * LANES + rules + vecs
    }

    /// Keeps a group's state at a clock. Whether that is what it had kept, the clock aside.
    pub(super) fn write(&mut self, place: Place, seats: &Seats, state: &State, clock: &Clock) -> bool {
        let mut differs = 0;
        let mut put = |at: &mut u64, word: u64| {
            differs |= *at ^ word;
            *at = word;
        };
        let mut same = true;
        let mut words = self.words.load(place);
        for lane in lanes(seats.live) {
            let Backtest { mut book, rule } = state.get(seats, lane, clock);
            let mut rows = words[..place.words()].iter_mut();
            exchange(&mut book, place.kind.1, |word| {
                if let Some(row) = rows.next() {
                    put(&mut row[lane], word);
                }
                word
            });
            for (row, y) in rows.zip(rule.averages()) {
                put(&mut row[lane], y.to_bits());
            }
            let flags = (book.side + 1) as u8 | u8::from(book.pending) << 2 | u8::from(book.stopped) << 3;
            let at = &mut self.flags[place.at][lane];
            same &= *at == flags;
            *at = flags;
            if place.kind.0.is_none() {
                let rules = &mut self.rules[place.rule];
                if rules.is_empty() {
                    *rules = vec![rule; LANES];
                    same = false;
                }
                same &= rules[lane] == rule;
                rules[lane] = rule;
            }
        }
        self.words.store(place, &words);
        same && differs == 0
    }

    /// A group's state as it was kept.
    pub(super) fn read(&self, place: Place, seats: &Seats) -> State {
        let mut state = State::new(seats);
        let words = self.words.load(place);
        for lane in lanes(seats.live) {
            state.put(seats, lane, &self.backtest(place, &words[..place.words()], seats, lane));
        }
        state
    }

    fn backtest(&self, place: Place, words: &[Word], seats: &Seats, lane: usize) -> Backtest {
        let params = seats.params(lane);
        let Backtest { mut book, rule } = Backtest::new(params);
        let mut rows = words.iter().map(|row| row[lane]);
        exchange(&mut book, place.kind.1, |_| rows.next().unwrap_or_default());
        let mut averages = [0.0; 3];
        for (y, word) in averages.iter_mut().zip(rows) {
            *y = f64::from_bits(word);
        }
        let rule = match place.kind.0 {
            Some(crossing) => RuleState::of_averages(crossing, averages),
            None => self.rules[place.rule].get(lane).copied().unwrap_or(rule),
        };
        let flags = self.flags[place.at][lane];
        book.side = (flags & 3) as i8 - 1;
        (book.pending, book.stopped) = (flags & 4 != 0, flags & 8 != 0);
        if !place.kind.1 && book.units.0 != 0.0 {
            let side = book.units.0.signum();
            (book.stop.0, book.target.0) = (-side * f64::INFINITY, side * f64::INFINITY);
        }
        let clock = &self.clock;
        if clock.past.bars > 0 {
            let past = &mut book.past;
            (past.day, past.bars) = (clock.past.day, clock.past.bars);
            (past.open_close, past.last_close) = (clock.past.open_close, clock.past.last_close);
            past.open_equity.0 = params.capital;
            past.last_equity = book.today.open_equity;
        }
        let today = &mut book.today;
        (today.day, today.bars) = (clock.today.day, clock.today.bars);
        (today.open_close, today.last_close) = (clock.today.open_close, clock.today.last_close);
        Backtest { rule, book }
    }

    /// Copies what another checkpoint keeps of a strategy.
    pub(super) fn copy(&mut self, to: Place, seat: usize, theirs: &Saved, from: Place, lane: usize) {
        let (mut mine, their) = (self.words.load(to), theirs.words.load(from));
        for (mine, their) in mine.iter_mut().zip(their) {
            mine[seat] = their[lane];
        }
        self.words.store(to, &mine);
        self.flags[to.at][seat] = theirs.flags[from.at][lane];
        if to.kind.0.is_none() {
            let (mine, their) = (&mut self.rules[to.rule], &theirs.rules[from.rule]);
            if mine.is_empty() {
                mine.clone_from(their);
            }
            if let (Some(mine), Some(their)) = (mine.get_mut(seat), their.get(lane)) {
                *mine = *their;
            }
        }
    }
}

//! Ticks in columns: what sources decode into, and what workers read.
//!
//! A trade is 36 bytes; where there are quotes or edits each row is 41, and a quote 57. Each column is one vector, so
//! that a decoder fills it in one loop and the hot path reads only what it needs. Event times, seqs and codes may stand
//! in the buffers that they were read into, where those hold nothing else. Symbols are codes into a dictionary of the
//! batch; cursors are runs, since a source's offsets nearly always follow each other.

use crate::cursor::{Cursor, Record};
use crate::name::Symbol;
use crate::num::{Powers, Price, SCALE, Size, extend_from_f64s};
use crate::tick::{Event, Tick};
use crate::time::Nanos;
use arrow_array::{Int64Array, UInt32Array, UInt64Array};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// What a row is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RowKind {
    /// A trade.
    Trade,
    /// A top-of-book quote.
    Quote,
    /// A bust, correction or amend.
    Edit,
}

/// A symbol brings its own hash.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Rows whose cursors follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    /// Its first row here.
    row: u32,
    first: Cursor,
    /// Whether the offset counts the rows; else the row within a message does.
    offsets: bool,
}

impl Run {
    fn cursor(&self, row: u32) -> Cursor {
        let on = row - self.row;
        match self.offsets {
            // Beyond the last number there is no row that it could be of.
            true => Cursor { offset: self.first.offset.wrapping_add(u64::from(on)), ..self.first },
            false => Cursor { row: self.first.row.wrapping_add(on), ..self.first },
        }
    }
}

/// Columns of all rows in the buffers that they were read into.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) times: Int64Array,
    pub(crate) seqs: UInt64Array,
    /// None: codes are not shared.
    pub(crate) codes: Option<UInt32Array>,
    /// See [`rise`].
    pub(crate) rise: bool,
}

/// Whether no time is before the one above it, or negative.
pub(crate) fn rise(times: &[Nanos]) -> bool {
    let later = times.get(1..).unwrap_or_default();
    // Of numbers that are not negative no difference wraps around.
    let signs = times.iter().zip(later).fold(0, |signs, (time, later)| signs | time | later.wrapping_sub(*time));
    signs | times.last().copied().unwrap_or(0) >= 0
}

/// Ticks, in columns. At most 2^32 rows.
///
/// ```
/// use marea_model::{Cursor, Event, Partition, Price, Record, Size, Symbol, Tick, Ticks};
///
/// let cursor = Cursor { partition: Partition::new("p").unwrap(), offset: 7, row: 0 };
/// let event = Event::Trade { price: Price(10), size: Size(1) };
/// let tick = Tick { symbol: Symbol::new("A").unwrap(), event_time: 5, seq: 1, event };
/// let record = Record { cursor, tick };
/// let ticks: Ticks = [record.clone()].into_iter().collect();
/// assert_eq!(ticks.iter().collect::<Vec<_>>(), [record]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Ticks {
    pub(crate) symbols: Vec<Symbol>,
    codes: HashMap<Symbol, u32, BuildHasherDefault<AsItIs>>,
    pub(crate) symbol: Vec<u32>,
    event_time: Vec<Nanos>,
    /// Whether an event time may be before the one above it.
    falls: bool,
    seq: Vec<u64>,
    /// These where they stand in the buffers that they were read into.
    shared: Option<Keys>,
    /// Empty while all rows are trades.
    kind: Vec<RowKind>,
    /// A trade's price, a quote's bid.
    pub(crate) first: Vec<i64>,
    /// A trade's size, a quote's ask.
    pub(crate) second: Vec<i64>,
    /// Where a quote's sizes or an edit's event stand; likewise.
    pub(crate) aside: Vec<u32>,
    pub(crate) quote_sizes: Vec<(Size, Size)>,
    edits: Vec<Event>,
    runs: Vec<Run>,
}

impl Ticks {
    /// No ticks.
    pub fn new() -> Self {
        Ticks::default()
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Makes room for more rows.
    pub fn reserve(&mut self, rows: usize) {
        self.event_time.reserve(rows);
        self.seq.reserve(rows);
        self.symbol.reserve(rows);
        self.reserve_others(rows);
    }

    /// Makes room for more symbols.
    pub(crate) fn reserve_symbols(&mut self, symbols: usize) {
        self.symbols.reserve(symbols);
        self.codes.reserve(symbols);
    }

    /// The same as [`Ticks::reserve`], but for what these columns hold.
    pub(crate) fn reserve_beside(&mut self, keys: &Keys) {
        if keys.codes.is_none() {
            self.symbol.reserve(keys.times.len());
        }
        self.reserve_others(keys.times.len());
    }

    fn reserve_others(&mut self, rows: usize) {
        self.first.reserve(rows);
        self.second.reserve(rows);
    }

    /// These columns of the first rows, which were appended without.
    pub(crate) fn copy_keys(&mut self, keys: &Keys, rows: usize) {
        self.falls |= !keys.rise;
        self.event_time.extend_from_slice(&keys.times.values()[..rows]);
        self.seq.extend_from_slice(&keys.seqs.values()[..rows]);
        if let Some(codes) = &keys.codes {
            self.symbol.extend_from_slice(&codes.values()[..rows]);
        }
    }

    /// The same of all rows, to be shared.
    pub(crate) fn share_keys(&mut self, keys: Keys) {
        debug_assert!(keys.times.values().len() == self.len() && keys.seqs.values().len() == self.len());
        self.falls = !keys.rise;
        self.shared = Some(keys);
    }

    /// Its columns are to be its own: there will be more.
    fn unshare(&mut self) {
        if let Some(keys) = self.shared.take() {
            self.copy_keys(&keys, keys.times.values().len());
        }
    }

    /// Forgets all rows, and keeps the room.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.codes.clear();
        self.symbol.clear();
        self.event_time.clear();
        self.falls = false;
        self.seq.clear();
        self.shared = None;
        self.kind.clear();
        self.first.clear();
        self.second.clear();
        self.aside.clear();
        self.quote_sizes.clear();
        self.edits.clear();
        self.runs.clear();
    }

    /// The code of a symbol in this batch's dictionary; a new one is appended.
    pub fn code(&mut self, symbol: Symbol) -> u32 {
        if let Some(code) = self.symbol.last()
            && self.symbols[*code as usize] == symbol
        {
            return *code;
        }
        *self.codes.entry(symbol).or_insert_with(|| {
            self.symbols.push(symbol);
            self.symbols.len() as u32 - 1
        })
    }

    /// Appends a row.
    pub fn push(&mut self, cursor: Cursor, tick: Tick) {
        let Tick { symbol, event_time, seq, event } = tick;
        let code = self.code(symbol);
        self.locate(cursor, self.len(), 1, None);
        match event {
            Event::Trade { price, size } => self.add_trade(code, event_time, seq, price.0, size.0),
            Event::Quote { bid, ask, bid_size, ask_size } => {
                self.add_quote(code, event_time, seq, bid.0, ask.0, bid_size.0, ask_size.0);
            }
            edit => {
                self.add(code, event_time, seq, 0, 0);
                self.set_aside(RowKind::Edit, self.edits.len());
                self.edits.push(edit);
            }
        }
    }

    /// Appends a trade; where it comes from is still to be said.
    pub(crate) fn add_trade(&mut self, code: u32, event_time: Nanos, seq: u64, price: i64, size: i64) {
        self.add(code, event_time, seq, price, size);
        if !self.all_trades() {
            self.kind.push(RowKind::Trade);
            self.aside.push(0);
        }
    }

    /// Appends a quote; where it comes from is still to be said.
    #[allow(clippy::too_many_arguments, reason = "one a column")]
    pub(crate) fn add_quote(
        &mut self,
        code: u32,
        event_time: Nanos,
        seq: u64,
        bid: i64,
        ask: i64,
        bid_size: i64,
        ask_size: i64,
    ) {
        self.add(code, event_time, seq, bid, ask);
        self.set_aside(RowKind::Quote, self.quote_sizes.len());
        self.quote_sizes.push((Size(bid_size), Size(ask_size)));
    }

    fn add(&mut self, code: u32, event_time: Nanos, seq: u64, first: i64, second: i64) {
        self.unshare();
        self.symbol.push(code);
        self.falls |= self.event_time.last().is_some_and(|last| event_time < *last);
        self.event_time.push(event_time);
        self.seq.push(seq);
        self.first.push(first);
        self.second.push(second);
    }

    /// Appends plain rows, whose cursors follow each other from `first` on: by offset, or by the row within the message.
    pub(crate) fn append_plain(&mut self, first: Cursor, offsets: bool, rows: &Plain<'_>) {
        let (before, n) = (self.len(), rows.firsts.len());
        self.unshare();
        self.locate(first, before, n, Some(offsets));
        self.symbol.extend_from_slice(rows.symbols);
        if let Some(time) = rows.times.first() {
            self.falls |= self.event_time.last().is_some_and(|last| time < last) || !rise(rows.times);
        }
        self.event_time.extend_from_slice(rows.times);
        self.seq.extend_from_slice(rows.seqs);
        self.first.extend_from_slice(rows.firsts);
        self.second.extend_from_slice(rows.seconds);
        let kinds = rows.kinds.filter(|kinds| !self.all_trades() || kinds.contains(&RowKind::Quote));
        let Some(kinds) = kinds else {
            if !self.all_trades() {
                self.kind.resize(before + n, RowKind::Trade);
                self.aside.resize(before + n, 0);
            }
            return;
        };
        self.kind.resize(before, RowKind::Trade);
        self.kind.extend_from_slice(kinds);
        self.aside.resize(before, 0);
        for (i, kind) in kinds.iter().enumerate() {
            let quote = *kind == RowKind::Quote;
            self.aside.push(if quote { self.quote_sizes.len() as u32 } else { 0 });
            if quote {
                self.quote_sizes.push((Size(rows.bid_sizes[i]), Size(rows.ask_sizes[i])));
            }
        }
    }

    /// Appends plain trades, prices and sizes alone: the rest is to be shared. False, and nothing is appended, if one of
    /// them is not plainly exact and positive.
    pub(crate) fn append_trades(
        &mut self,
        first: Cursor,
        offsets: bool,
        (prices, powers): (&[f64], &Powers<'_>),
        sizes: &[f64],
    ) -> bool {
        let before = self.len();
        let are_plain = extend_from_f64s(&mut self.first, prices, powers)
            && extend_from_f64s(&mut self.second, sizes, &Powers::One(SCALE));
        if are_plain {
            self.locate(first, before, prices.len(), Some(offsets));
        } else {
            self.first.truncate(before);
            self.second.truncate(before);
        }
        are_plain
    }

    /// The last row, just pushed, is no trade, and has something aside.
    fn set_aside(&mut self, kind: RowKind, at: usize) {
        let before = self.len() - 1;
        self.kind.resize(before, RowKind::Trade);
        self.kind.push(kind);
        self.aside.resize(before, 0);
        self.aside.push(at as u32);
    }

    /// Says where `rows` rows from row `at` on, which are the last, come from: `first`, and on by offset or by the row
    /// within the message. Where that is left open it follows from the rows before.
    pub(crate) fn locate(&mut self, first: Cursor, at: usize, rows: usize, offsets: Option<bool>) {
        let row = at as u32;
        if rows == 0 {
            return;
        }
        if let Some(run) = self.runs.last_mut() {
            let length = row - run.row;
            if run.cursor(row) == first && offsets.is_none_or(|o| o == run.offsets || rows == 1) {
                return;
            }
            // A run of one row may still be of either sort.
            let other = Run { offsets: !run.offsets, ..*run };
            if length == 1 && other.cursor(row) == first && offsets.is_none_or(|o| o == other.offsets || rows == 1) {
                *run = other;
                return;
            }
        }
        self.runs.push(Run { row, first, offsets: offsets.unwrap_or(true) });
    }

    /// Whether every row is a trade.
    pub fn all_trades(&self) -> bool {
        self.aside.is_empty()
    }

    /// The dictionary: what a code of [`Ticks::codes`] means. It may have symbols that no row has.
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }

    /// The symbol of each row, as a code.
    pub fn codes(&self) -> &[u32] {
        let shared = self.shared.as_ref().and_then(|keys| keys.codes.as_ref());
        shared.map_or(&self.symbol, |codes| codes.values())
    }

    /// The event time of each row.
    pub fn event_times(&self) -> &[Nanos] {
        self.shared.as_ref().map_or(&self.event_time, |keys| keys.times.values())
    }

    /// The seq of each row.
    pub fn seqs(&self) -> &[u64] {
        self.shared.as_ref().map_or(&self.seq, |keys| keys.seqs.values())
    }

    /// The least and the greatest event time of some rows: at once if those of the batch rise, else each is read. Of no
    /// rows [`Nanos::MAX`] and [`Nanos::MIN`].
    pub fn time_span(&self, rows: Range<usize>) -> (Nanos, Nanos) {
        let times = &self.event_times()[rows];
        match times {
            [first, .., last] if !self.falls => (*first, *last),
            _ => times.iter().fold((Nanos::MAX, Nanos::MIN), |(a, b), time| (a.min(*time), b.max(*time))),
        }
    }

    /// What each row is; empty if [all are trades](Ticks::all_trades).
    pub fn kinds(&self) -> &[RowKind] {
        &self.kind
    }

    /// What a row is.
    pub fn kind(&self, row: usize) -> RowKind {
        if self.all_trades() { RowKind::Trade } else { self.kind[row] }
    }

    /// The price of each trade, the bid of each quote; 0 of an edit.
    pub fn firsts(&self) -> &[i64] {
        &self.first
    }

    /// The size of each trade, the ask of each quote; 0 of an edit.
    pub fn seconds(&self) -> &[i64] {
        &self.second
    }

    /// The sizes at the bid and the ask of a quote.
    pub fn quote_sizes(&self, row: usize) -> (Size, Size) {
        self.quote_sizes[self.aside[row] as usize]
    }

    /// Where a row comes from.
    pub fn cursor(&self, row: usize) -> Cursor {
        let row = row as u32;
        self.runs[self.runs.partition_point(|run| run.row <= row) - 1].cursor(row)
    }

    /// The first row from `row` on whose cursor does not follow from that of `row`, or the end; and whether the offsets
    /// of the rows up to there count up.
    pub fn run(&self, row: usize) -> (usize, bool) {
        let next = self.runs.partition_point(|run| run.row <= row as u32);
        (self.runs.get(next).map_or(self.len(), |run| run.row as usize), self.runs[next - 1].offsets)
    }

    /// Whether a row replaces a whole bar.
    pub fn is_amend(&self, row: usize) -> bool {
        self.kind(row) == RowKind::Edit && matches!(self.edits[self.aside[row] as usize], Event::Amend(_))
    }

    /// What a row says.
    pub fn event(&self, row: usize) -> Event {
        match self.kind(row) {
            RowKind::Trade => Event::Trade { price: Price(self.first[row]), size: Size(self.second[row]) },
            RowKind::Quote => {
                let (bid_size, ask_size) = self.quote_sizes(row);
                Event::Quote { bid: Price(self.first[row]), ask: Price(self.second[row]), bid_size, ask_size }
            }
            RowKind::Edit => self.edits[self.aside[row] as usize].clone(),
        }
    }

    /// A row.
    pub fn tick(&self, row: usize) -> Tick {
        Tick {
            symbol: self.symbols[self.codes()[row] as usize],
            event_time: self.event_times()[row],
            seq: self.seqs()[row],
            event: self.event(row),
        }
    }

    /// A row, and where it comes from.
    pub fn record(&self, row: usize) -> Record {
        Record { cursor: self.cursor(row), tick: self.tick(row) }
    }

    /// All rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record> + '_ {
        (0..self.len()).map(|row| self.record(row))
    }
}

impl Extend<Record> for Ticks {
    fn extend<I: IntoIterator<Item = Record>>(&mut self, records: I) {
        let records = records.into_iter();
        self.reserve(records.size_hint().0);
        records.for_each(|record| self.push(record.cursor, record.tick));
    }
}

impl FromIterator<Record> for Ticks {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let mut ticks = Ticks::new();
        ticks.extend(records);
        ticks
    }
}

/// Trades and quotes in columns, to be appended at once. Symbols are codes of the batch to which they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<'a> {
    /// None: all are trades.
    pub(crate) kinds: Option<&'a [RowKind]>,
    /// Empty, like `times` and `seqs`, if they are to be shared.
    pub(crate) symbols: &'a [u32],
    pub(crate) times: &'a [Nanos],
    pub(crate) seqs: &'a [u64],
    pub(crate) firsts: &'a [i64],
    pub(crate) seconds: &'a [i64],
    /// Of quotes; of trades they may be anything.
    pub(crate) bid_sizes: &'a [i64],
    pub(crate) ask_sizes: &'a [i64],
}

/// Some rows of a batch, shared.
#[derive(Clone, Debug)]
pub struct TickSlice {
    /// The batch.
    pub ticks: Arc<Ticks>,
    /// Which of its rows.
    pub rows: Range<usize>,
}

impl TickSlice {
    /// Its rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record> + '_ {
        self.rows.clone().map(|row| self.ticks.record(row))
    }
}

impl From<Ticks> for TickSlice {
    fn from(ticks: Ticks) -> Self {
        let rows = 0..ticks.len();
        TickSlice { ticks: Arc::new(ticks), rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Partition;
    use crate::tick::Amend;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1_i64..9, 1_i64..9).prop_map(|(p, s)| Event::Trade { price: Price(p), size: Size(s) }),
            2 => (1_i64..9, 1_i64..9).prop_map(|(p, s)| Event::Quote {
                bid: Price(p),
                ask: Price(p + 1),
                bid_size: Size(s),
                ask_size: Size(0)
            }),
            1 => Just(Event::Bust),
            1 => (0_u32..3).prop_map(|rev| Event::Amend(Box::new(Amend { rev, bar: None }))),
        ]
    }

    proptest! {
        #[test]
        fn rows_come_back_as_they_went_in(rows in prop::collection::vec((0_u8..3, 0_u64..3, 0_u32..3, event()), 0..40)) {
            let mut offset = 0;
            let records: Vec<Record> = rows
                .into_iter()
                .map(|(name, on, row, event)| {
                    offset += on;
                    let partition = Partition::new("p").unwrap();
                    let symbol = Symbol::new(["A", "B", "C"][usize::from(name)]).unwrap();
                    let tick = Tick { symbol, event_time: offset as i64 - i64::from(row), seq: offset, event };
                    Record { cursor: Cursor { partition, offset, row }, tick }
                })
                .collect();
            let ticks: Ticks = records.iter().cloned().collect();
            prop_assert_eq!(ticks.all_trades(), records.iter().all(|r| r.tick.event.kind() == "trade"));
            prop_assert_eq!(ticks.iter().collect::<Vec<_>>(), &records[..]);
            let times: Vec<Nanos> = records.iter().map(|r| r.tick.event_time).collect();
            prop_assert!(!ticks.falls || !times.is_sorted());
            for from in 0..=times.len() {
                for to in from..=times.len() {
                    let some = || times[from..to].iter().copied();
                    let span = (some().min().unwrap_or(Nanos::MAX), some().max().unwrap_or(Nanos::MIN));
                    prop_assert_eq!(ticks.time_span(from..to), span);
                }
            }
        }

        #[test]
        fn times_rise_or_do_not(mut times in prop::collection::vec(prop_oneof![0..5_i64, any::<i64>()], 0..9), sorted: bool) {
            if sorted {
                times.sort_unstable();
            }
            prop_assert_eq!(rise(&times), times.is_sorted() && times.iter().all(|time| *time >= 0));
        }
    }

    #[test]
    fn cursors_that_follow_each_other_are_one_run() {
        let partition = Partition::new("p").unwrap();
        let tick = Tick { symbol: Symbol::new("A").unwrap(), event_time: 0, seq: 0, event: Event::Bust };
        for (step, runs) in [((1, 0), 1), ((0, 1), 1), ((2, 0), 100)] {
            let mut ticks = Ticks::new();
            for i in 0..100 {
                let cursor = Cursor { partition, offset: 5 + i * step.0, row: 7 + i as u32 * step.1 };
                ticks.push(cursor, tick.clone());
                assert_eq!(ticks.cursor(i as usize), cursor);
            }
            assert_eq!(ticks.runs.len(), runs);
        }
    }
}

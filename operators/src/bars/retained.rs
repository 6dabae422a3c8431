//! The trades that came in order and have not sealed, left where they came: in the batch that brought them, or, where
//! batches are small, in columns of up to 8,192 rows that all symbols share. So a trade in order costs its symbol nothing
//! here; only who asks for a trade of the past (a late tick, a bust, a correction) has its piece indexed by symbol.
//!
//! * A *piece* is a run of rows, numbered as they came. The rows of a symbol rise, in each piece and from piece to piece:
//!   what did not come in order is not among them, but in the symbol's [`Log`](super::log::Log). A bucket remembers the
//!   pieces that its rows stand in ([`Pieces`]), so that nothing is searched by time.
//! * Memory: 36 bytes a trade of a batch or in shared columns, and 2 where a piece is indexed. A piece goes when its
//!   greatest event time has sealed. So that one row cannot keep many, never more than twice the rows that are wanted,
//!   and [`SLACK`], stay: then the oldest piece is given up, and what is still wanted of it moves to the logs.
//! * Cost: a batch with so many rows in order is not copied at all; of others a row is copied once, and once more if its
//!   piece is given up. An index costs some nanoseconds a row, once; while rows are still being added, once for every
//!   quarter that its last [`PART`] have grown. A look-up guesses its row by its time, and looks around there.

use super::log::{Around, Key, Trade};
use marea_model::{Nanos, Price, Size, Ticks};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The number of a symbol that another worker owns.
pub(super) const NOT_MINE: u32 = u32::MAX;

/// A batch of fewer rows is copied: each piece of a bar is looked through for itself.
const SHARED: usize = if cfg!(test) { 8 } else { 2_048 };

/// Rows that shared columns are filled to.
const COLUMNS: usize = if cfg!(test) { 16 } else { 8_192 };

/// Rows that a piece has at most, so that an index has two bytes a row.
pub(super) const MOST: usize = 1 << 16;

/// Rows that nobody wants any more may stay, beside as many as there are wanted ones.
const SLACK: usize = if cfg!(test) { 24 } else { 4 * MOST };

/// Rows that came since a piece was indexed are looked through one by one, up to so many.
const UNINDEXED: usize = if cfg!(test) { 2 } else { 256 };

/// Rows from which on an index is not made anew when more rows come: they have one of their own.
const PART: usize = if cfg!(test) { 8 } else { 16_384 };

/// Rows of which the greatest time up to them is kept, to guess where a time stands.
const SAMPLE: usize = if cfg!(test) { 16 } else { 64 };

/// The pieces that the rows of a bucket stand in, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pieces {
    first: u32,
    last: u32,
    /// How many rows stand there.
    rows: u32,
}

impl Pieces {
    /// No rows.
    pub(super) const NONE: Pieces = Pieces { first: 0, last: 0, rows: 0 };

    /// More rows, of a piece that is not before those known.
    #[inline]
    pub(super) fn add(&mut self, piece: u32, rows: u32) {
        if self.rows == 0 {
            self.first = piece;
        }
        self.last = piece;
        self.rows += rows;
    }

    /// A row stands in the symbol's log now.
    pub(super) fn remove(&mut self) {
        self.rows -= 1;
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.rows as usize
    }

    fn numbers(&self) -> Range<u32> {
        if self.rows == 0 { 0..0 } else { self.first..self.last + 1 }
    }
}

enum Columns {
    /// Trades of a batch, from a row of it on; the number of each of its codes.
    Batch {
        ticks: Arc<Ticks>,
        start: usize,
        numbers: Arc<[u32]>,
    },
    Own(Own),
}

#[derive(Default)]
struct Own {
    numbers: Vec<u32>,
    times: Vec<Nanos>,
    seqs: Vec<u64>,
    prices: Vec<i64>,
    sizes: Vec<i64>,
}

impl Own {
    /// Makes room for a piece, if it looks as if it will be filled.
    fn reserve(&mut self, rows: usize) {
        if rows * 8 >= COLUMNS && self.times.capacity() < COLUMNS {
            self.numbers.reserve_exact(COLUMNS);
            self.times.reserve_exact(COLUMNS);
            self.seqs.reserve_exact(COLUMNS);
            self.prices.reserve_exact(COLUMNS);
            self.sizes.reserve_exact(COLUMNS);
        }
    }

    /// Gives back what it has no use for.
    fn shrink(&mut self) {
        if self.times.capacity() > self.times.len() + self.times.len() / 8 {
            self.numbers.shrink_to_fit();
            self.times.shrink_to_fit();
            self.seqs.shrink_to_fit();
            self.prices.shrink_to_fit();
            self.sizes.shrink_to_fit();
        }
    }

    /// Appends rows of a batch; those of other workers' symbols are left out.
    fn extend(&mut self, ticks: &Ticks, rows: Range<usize>, numbers: &[u32], is_alone: bool) {
        let codes = &ticks.codes()[rows.clone()];
        if is_alone {
            self.numbers.extend(codes.iter().map(|code| numbers[*code as usize]));
            self.times.extend_from_slice(&ticks.event_times()[rows.clone()]);
            self.seqs.extend_from_slice(&ticks.seqs()[rows.clone()]);
            self.prices.extend_from_slice(&ticks.firsts()[rows.clone()]);
            self.sizes.extend_from_slice(&ticks.seconds()[rows]);
            return;
        }
        for (row, code) in rows.zip(codes) {
            let number = numbers[*code as usize];
            if number != NOT_MINE {
                self.numbers.push(number);
                self.times.push(ticks.event_times()[row]);
                self.seqs.push(ticks.seqs()[row]);
                self.prices.push(ticks.firsts()[row]);
                self.sizes.push(ticks.seconds()[row]);
            }
        }
    }

    fn clear(&mut self) {
        self.numbers.clear();
        self.times.clear();
        self.seqs.clear();
        self.prices.clear();
        self.sizes.clear();
    }
}

/// Some rows of a piece by symbol.
#[derive(Default)]
struct Index {
    /// Which rows.
    from: usize,
    upto: usize,
    /// The symbols that have rows, rising, and where those of each begin.
    symbols: Vec<u32>,
    starts: Vec<u32>,
    rows: Vec<u16>,
}

impl Index {
    fn of(&self, number: u32) -> &[u16] {
        match self.symbols.binary_search(&number) {
            Ok(i) => {
                let end = self.starts.get(i + 1).map_or(self.rows.len(), |end| *end as usize);
                &self.rows[self.starts[i] as usize..end]
            }
            Err(_) => &[],
        }
    }
}

struct Piece {
    columns: Columns,
    rows: usize,
    /// Rows among them that did not come in order, rising.
    others: Vec<u32>,
    /// The greatest event time in it.
    greatest: Nanos,
    /// Of its rows from the first on, by row.
    indexes: Vec<Index>,
    /// Of each [`SAMPLE`] indexed rows the greatest time up to their end.
    samples: Vec<Nanos>,
}

impl Piece {
    fn new(columns: Columns) -> Self {
        let (others, indexes, samples) = (Vec::new(), Vec::new(), Vec::new());
        Piece { columns, rows: 0, others, greatest: Nanos::MIN, indexes, samples }
    }

    fn number(&self, row: usize) -> u32 {
        match &self.columns {
            Columns::Batch { ticks, start, numbers } => numbers[ticks.codes()[start + row] as usize],
            Columns::Own(own) => own.numbers[row],
        }
    }

    /// The event times and seqs of its rows.
    fn keys(&self) -> (&[Nanos], &[u64]) {
        match &self.columns {
            Columns::Batch { ticks, start, .. } => {
                let rows = *start..*start + self.rows;
                (&ticks.event_times()[rows.clone()], &ticks.seqs()[rows])
            }
            Columns::Own(own) => (&own.times, &own.seqs),
        }
    }

    fn key(&self, row: usize) -> Key {
        let (times, seqs) = self.keys();
        Key { event_time: times[row], seq: seqs[row] }
    }

    fn trade(&self, row: usize) -> Trade {
        let (price, size) = match &self.columns {
            Columns::Batch { ticks, start, .. } => (ticks.firsts()[start + row], ticks.seconds()[start + row]),
            Columns::Own(own) => (own.prices[row], own.sizes[row]),
        };
        Trade { key: self.key(row), price: Price(price), size: Size(size) }
    }

    /// Some of its rows, those in order, with their symbols.
    fn in_order(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, u32)> {
        let others = self.others.partition_point(|row| (*row as usize) < rows.start);
        let mut others = self.others[others..].iter().peekable();
        let mut is_other = move |row: usize| others.next_if(|other| **other as usize == row).is_some();
        let numbered = |row| (row, self.number(row));
        rows.filter(move |row| !is_other(*row)).map(numbered).filter(|(_, number)| *number != NOT_MINE)
    }

    /// Indexes it, unless only few rows are new; `symbols` is more than every number in it.
    fn reindex(&mut self, symbols: usize) {
        let (mut from, upto) = self.indexes.last().map_or((0, 0), |last| (last.from, last.upto));
        if upto > 0 && self.rows - upto <= UNINDEXED.max((upto - from) / 4) {
            return;
        }
        if upto - from >= PART {
            from = upto;
        } else {
            self.indexes.pop();
        }
        let mut places = vec![0_u32; symbols];
        let mut count = 0;
        for (_, number) in self.in_order(from..self.rows) {
            places[number as usize] += 1;
            count += 1;
        }
        let mut fresh = Index { from, upto: self.rows, rows: vec![0; count], ..Index::default() };
        let mut start = 0;
        for (number, place) in places.iter_mut().enumerate().filter(|(_, place)| **place > 0) {
            fresh.symbols.push(number as u32);
            fresh.starts.push(start);
            start += std::mem::replace(place, start);
        }
        for (row, number) in self.in_order(from..self.rows) {
            let place = &mut places[number as usize];
            fresh.rows[*place as usize] = row as u16;
            *place += 1;
        }
        self.indexes.push(fresh);
        let (mut samples, times) = (std::mem::take(&mut self.samples), self.keys().0);
        let mut greatest = samples.last().copied().unwrap_or(Nanos::MIN);
        let fresh = times[samples.len() * SAMPLE..].chunks_exact(SAMPLE);
        samples.reserve_exact(fresh.len());
        for times in fresh {
            greatest = times.iter().fold(greatest, |greatest, time| greatest.max(*time));
            samples.push(greatest);
        }
        self.samples = samples;
    }

    /// The rows of a symbol, rising, from the first whose key is not before `key` on; and the row before that.
    fn rows_from(&self, number: u32, key: Key) -> (Option<usize>, impl Iterator<Item = usize>) {
        let (times, seqs) = self.keys();
        let is_before = |row: usize| match times[row].cmp(&key.event_time) {
            Ordering::Equal => seqs[row] < key.seq,
            order => order == Ordering::Less,
        };
        let mut before = None;
        let passed = self.indexes.iter().take_while(|index| match index.of(number).last() {
            Some(last) if is_before(usize::from(*last)) => {
                before = Some(usize::from(*last));
                true
            }
            last => last.is_none(),
        });
        let passed = passed.count();
        let mut found: &[u16] = &[];
        if let Some(index) = self.indexes.get(passed) {
            let of = index.of(number);
            // Times rise with the rows, nearly always; and the rows of a symbol lie evenly among all, often.
            let row = self.samples.partition_point(|greatest| *greatest < key.event_time) * SAMPLE + SAMPLE / 2;
            let share = of.len() * row.saturating_sub(index.from) / (index.upto - index.from);
            let guess = partition(of.len(), share, |i| usize::from(of[i]) < row);
            let at = partition(of.len(), guess, |i| is_before(usize::from(of[i])));
            before = at.checked_sub(1).map(|at| usize::from(of[at])).or(before);
            found = &of[at..];
        }
        let later = move |(row, of): (usize, u32)| (of == number).then_some(row);
        let indexed = self.indexes.last().map_or(0, |last| last.upto);
        let mut rest = self.in_order(indexed..self.rows).filter_map(later).peekable();
        if passed == self.indexes.len() {
            while let Some(row) = rest.next_if(|row| is_before(*row)) {
                before = Some(row);
            }
        }
        let others = self.indexes.iter().skip(passed + 1).flat_map(move |index| index.of(number));
        (before, found.iter().chain(others).map(|row| usize::from(*row)).chain(rest))
    }

    fn bytes(&self) -> usize {
        let row = match &self.columns {
            Columns::Batch { .. } => self.rows * 36,
            Columns::Own(own) => own.times.capacity() * 36,
        };
        let of = |index: &Index| index.rows.capacity() * 2 + (index.symbols.capacity() + index.starts.capacity()) * 4;
        let indexed: usize = self.indexes.iter().map(of).sum();
        row + indexed + self.samples.capacity() * 8 + self.others.capacity() * 4
    }
}

/// The least of `0..length` that is not before, `length` if all are; looked for from `guess` on in steps that double.
fn partition(length: usize, guess: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let guess = guess.min(length);
    let (mut low, mut high, mut step) = (0, length, 1);
    if guess < length && is_before(guess) {
        low = guess + 1;
        while low + step <= length {
            if !is_before(low + step - 1) {
                high = low + step - 1;
                break;
            }
            low += step;
            step *= 2;
        }
    } else {
        high = guess;
        while high >= step {
            if is_before(high - step) {
                low = high - step + 1;
                break;
            }
            high -= step;
            step *= 2;
        }
    }
    while low < high {
        let middle = low.midpoint(high);
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// See the module.
pub(super) struct Retained {
    pieces: VecDeque<Piece>,
    /// The number of the first.
    first: u32,
    /// Rows of all pieces, and those of unsealed buckets among them.
    rows: usize,
    wanted: usize,
    /// Workers, each of which owns some of the symbols.
    peers: usize,
    /// Whether many rows of late did not come in order: then batches are copied without them.
    copies: bool,
    /// The rows of a batch that are being read: those before `start` are in the newest piece.
    reading: Range<usize>,
    /// Columns to be used again.
    spare: Option<Own>,
}

impl Retained {
    pub(super) fn new() -> Self {
        Retained {
            pieces: VecDeque::new(),
            first: 0,
            rows: 0,
            wanted: 0,
            peers: 1,
            copies: false,
            reading: 0..0,
            spare: None,
        }
    }

    pub(super) fn set_peers(&mut self, peers: usize) {
        self.peers = peers.max(1);
    }

    /// The number of the newest piece.
    pub(super) fn newest(&self) -> u32 {
        self.first + self.pieces.len() as u32 - 1
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(&self) -> usize {
        self.pieces.iter().map(Piece::bytes).sum()
    }

    /// Some rows of a batch, [`MOST`] at most, are about to be read; they go into the newest piece.
    pub(super) fn begin(&mut self, ticks: &Arc<Ticks>, rows: Range<usize>, numbers: &Arc<[u32]>) {
        self.reading = rows.clone();
        let newest = self.pieces.back_mut();
        if ticks.all_trades() && ticks.len() >= SHARED && !self.copies {
            if let Some(Piece { columns: Columns::Batch { ticks: last, start, .. }, rows: length, others, .. }) = newest
                && Arc::ptr_eq(last, ticks)
                && *start + *length <= rows.start
                && rows.end - *start <= MOST
            {
                // What was late is in no epoch.
                let gap = *length..rows.start - *start;
                self.rows += gap.len();
                others.extend(gap.map(|row| row as u32));
                *length = rows.start - *start;
                return;
            }
            let (ticks, numbers) = (Arc::clone(ticks), Arc::clone(numbers));
            self.close();
            self.pieces.push_back(Piece::new(Columns::Batch { ticks, start: rows.start, numbers }));
            return;
        }
        match newest {
            Some(Piece { columns: Columns::Own(_), rows: length, .. }) if *length + rows.len() <= COLUMNS => {}
            _ => {
                let mut own = self.spare.take().unwrap_or_default();
                own.reserve(rows.len());
                self.close();
                self.pieces.push_back(Piece::new(Columns::Own(own)));
            }
        }
    }

    /// Nothing more goes into the newest piece.
    fn close(&mut self) {
        if let Some(Piece { columns: Columns::Own(own), .. }) = self.pieces.back_mut() {
            own.shrink();
        }
    }

    /// The rows before this one have been read.
    pub(super) fn advance(&mut self, ticks: &Ticks, row: usize, numbers: &[u32]) {
        let rows = self.reading.start..row;
        let Some(piece) = self.pieces.back_mut().filter(|_| !rows.is_empty()) else { return };
        self.reading.start = row;
        let before = piece.rows;
        match &mut piece.columns {
            Columns::Batch { .. } => piece.rows += rows.len(),
            Columns::Own(own) => {
                own.extend(ticks, rows, numbers, self.peers == 1);
                piece.rows = own.numbers.len();
            }
        }
        self.rows += piece.rows - before;
    }

    /// The next row did not come in order: whoever wants it has it.
    pub(super) fn pass(&mut self) {
        self.reading.start += 1;
        let Some(piece) = self.pieces.back_mut() else { return };
        if let Columns::Batch { .. } = piece.columns {
            piece.others.push(piece.rows as u32);
            piece.rows += 1;
            self.rows += 1;
        }
    }

    /// All rows have been read; so many of them were passed, and none was later than `greatest`.
    pub(super) fn end(&mut self, rows: usize, passed: usize, greatest: Nanos) {
        self.pieces.back_mut().into_iter().for_each(|piece| piece.greatest = piece.greatest.max(greatest));
        self.copies = passed * 16 > rows;
    }

    /// Rows of buckets that have not sealed are more now, or fewer.
    pub(super) fn want(&mut self, rows: usize) {
        self.wanted += rows;
    }

    pub(super) fn forget(&mut self, rows: usize) {
        self.wanted -= rows;
    }

    /// Indexes some pieces.
    fn index(&mut self, pieces: Pieces, symbols: usize) {
        for number in pieces.numbers() {
            if let Some(piece) = number.checked_sub(self.first).and_then(|i| self.pieces.get_mut(i as usize)) {
                piece.reindex(symbols);
            }
        }
    }

    fn some(&self, pieces: Pieces) -> impl Iterator<Item = &Piece> {
        pieces.numbers().filter_map(|number| self.pieces.get(number.checked_sub(self.first)? as usize))
    }

    /// What there is of symbol `number` of `symbols` in a bucket's pieces at `key`.
    pub(super) fn around(&mut self, number: u32, symbols: usize, pieces: Pieces, key: Key) -> Around<Trade> {
        self.index(pieces, symbols);
        let mut around = Around::default();
        for piece in self.some(pieces) {
            let (before, mut rows) = piece.rows_from(number, key);
            around.before = before.map(|row| piece.key(row)).or(around.before);
            if let Some(trade) = rows.next().map(|row| piece.trade(row)) {
                if trade.key == key {
                    around.found = Some(trade);
                } else {
                    around.after = Some(trade.key);
                }
                break;
            }
        }
        around
    }

    /// The trades of symbol `number` of `symbols` in a bucket's pieces in `[from, to)`, in order.
    pub(super) fn between(
        &mut self,
        number: u32,
        symbols: usize,
        pieces: Pieces,
        from: Nanos,
        to: Nanos,
    ) -> impl Iterator<Item = Trade> {
        self.index(pieces, symbols);
        let first = Key { event_time: from, seq: 0 };
        let trades = move |piece| {
            let piece: &Piece = piece;
            piece.rows_from(number, first).1.map(|row| piece.trade(row))
        };
        self.some(pieces).flat_map(trades).take_while(move |trade| trade.key.event_time < to)
    }

    /// Frees the pieces in front that have nothing at or after `time`, the first instant that has not sealed.
    pub(super) fn free_before(&mut self, time: Nanos) {
        while let Some(piece) = self.pieces.pop_front_if(|piece| piece.greatest < time) {
            self.freed(piece);
        }
    }

    fn freed(&mut self, piece: Piece) {
        self.first += 1;
        self.rows -= piece.rows;
        if let Columns::Own(mut own) = piece.columns {
            own.clear();
            self.spare = Some(own);
        }
    }

    /// Gives up the oldest piece, if too much is kept that nobody wants: each of its trades, with its symbol, to `keep`,
    /// which says whether it was wanted. Whether there was a piece.
    pub(super) fn give_up(&mut self, mut keep: impl FnMut(u32, Trade) -> bool) -> bool {
        // All workers share a batch, and each wants its part of it.
        if self.rows <= 2 * self.wanted * self.peers + SLACK {
            return false;
        }
        let Some(piece) = self.pieces.pop_front() else { return false };
        self.wanted -= piece.in_order(0..piece.rows).filter(|(row, number)| keep(*number, piece.trade(*row))).count();
        self.freed(piece);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::{Cursor, Event, Partition, Record, Symbol, Tick};

    fn batch(rows: usize) -> Ticks {
        let partition = Partition::new("p").unwrap();
        let record = |i: usize| {
            let symbol = Symbol::new(["A", "B", "C"][i % 3]).unwrap();
            let event = Event::Trade { price: Price(1), size: Size(1) };
            let tick = Tick { symbol, event_time: i as Nanos, seq: 0, event };
            Record { cursor: Cursor { partition, offset: i as u64, row: 0 }, tick }
        };
        (0..rows).map(record).collect()
    }

    #[test]
    fn a_place_is_found_from_every_guess() {
        for length in 0..20 {
            for place in 0..=length {
                for guess in 0..22 {
                    assert_eq!(partition(length, guess, |i| i < place), place, "of {length} from {guess}");
                }
            }
        }
    }

    /// Left in its batch or copied, indexed or not.
    #[test]
    fn a_retained_trade_is_within_40_bytes() {
        const ROWS: usize = 6_000;
        let numbers: Arc<[u32]> = Arc::from([0, 1, 2]);
        for (rows, copies) in [(ROWS, false), (COLUMNS, true)] {
            let (mut retained, mut pieces) = (Retained::new(), Pieces::NONE);
            for _ in 0..ROWS / rows {
                let ticks = Arc::new(batch(rows));
                retained.copies = copies;
                retained.begin(&ticks, 0..rows, &numbers);
                retained.advance(&ticks, rows, &numbers);
                pieces.add(retained.newest(), rows as u32);
            }
            let count = pieces.rows();
            assert!(retained.bytes() <= 40 * count, "{} bytes for {count}", retained.bytes());
            let found = retained.around(1, 3, pieces, Key { event_time: 4, seq: 0 });
            assert_eq!(found.found.map(|trade| trade.key.event_time), Some(4));
            // Beside each symbol's place in a part, which has far more rows than here.
            let places = 4 * 8 * count.div_ceil(PART);
            assert!(retained.bytes() <= 40 * count + places, "{} bytes for {count}, indexed", retained.bytes());
        }
    }

    /// One row that seals late keeps neither its piece nor those behind it for long.
    #[test]
    fn what_nobody_wants_is_given_up() {
        let numbers: Arc<[u32]> = Arc::from([0, 1, 2]);
        let mut retained = Retained::new();
        let mut kept = 0;
        for _ in 0..100 {
            let ticks = Arc::new(batch(30));
            retained.begin(&ticks, 0..30, &numbers);
            retained.advance(&ticks, 30, &numbers);
            retained.want(30);
            // All have sealed but one.
            retained.forget(29);
            let mut keep = |_, trade: Trade| trade.key.event_time == 29;
            while retained.give_up(&mut keep) {
                kept += 1;
            }
        }
        assert!(retained.rows <= 2 * retained.wanted + SLACK && kept > 90, "{} {kept}", retained.rows);
    }
}

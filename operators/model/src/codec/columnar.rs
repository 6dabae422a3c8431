//! The fast way through a record batch: whole columns at a time, for the rows that are plain trades and quotes.
//!
//! It never judges. A few hundred rows at once are turned into the columns of [`Ticks`](crate::Ticks), every check that the judge
//! would make is made on whole columns, and a row of which any check does not plainly hold is left to the judge. So
//! what is accepted, what is rejected and in which words is the same as row by row; a property test holds it to that.
//!
//! A batch of trades in order, whose names are codes already, has even less to do: of it only the numbers are read, some
//! hundred at once straight into their columns ([`Columnar::is_straight`]).

use super::arrow::{Cells, Rows, RowsAre};
use super::{Decoded, EARLIEST, Field, Kind, SymbolCache, Value};
use crate::instrument::Instruments;
use crate::num::{MAX_SCALE, Powers, SCALE, fixed_from_f64, fixed_from_f64s, pow10};
use crate::ticks::{Keys, Plain, RowKind, Ticks, rise};
use crate::time::Nanos;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowDictionaryKeyType, Int8Type, Int16Type, Int32Type, Int64Type, TimestampNanosecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrowNativeTypeOp, BooleanArray, GenericStringArray, Int64Array, OffsetSizeTrait, RecordBatch,
    StringViewArray, UInt32Array, UInt64Array,
};
use arrow_schema::DataType;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Rows at a time: their columns stay in the nearest cache.
const CHUNK: usize = WORDS * 64;
const WORDS: usize = 8;

/// A bit a row of a chunk.
type Bits = [u64; WORDS];

const TRADE: u32 = 0;
const QUOTE: u32 = 1;
/// The code of a text that is left to the judge.
pub(super) const UNUSUAL: u32 = u32::MAX - 1;
/// The code of a dictionary's key that has not been met.
const UNMET: u32 = u32::MAX;
/// Bids and asks below have a mean that fits.
pub(super) const LARGEST_QUOTED: i64 = 1 << 59;

/// A batch in which rows may be plain.
pub(super) struct Columnar<'a> {
    kinds: Codes<'a>,
    symbols: Codes<'a>,
    times: &'a [i64],
    unit: Nanos,
    seqs: Seqs<'a>,
    /// Times, seqs and perhaps codes as they can be shared, if they can.
    keys: Option<Keys>,
    /// Which rows have all of these four.
    present: Vec<BooleanArray>,
    price: Numbers<'a>,
    size: Numbers<'a>,
    bid: Numbers<'a>,
    ask: Numbers<'a>,
    bid_size: Numbers<'a>,
    ask_size: Numbers<'a>,
    /// Where trades, and quotes, have values that they do not need: in some rows, or in all.
    beside: [Vec<Option<BooleanArray>>; 2],
}

enum Seqs<'a> {
    UInt64(&'a [u64]),
    Int64(&'a [i64]),
}

/// Which rows are not null; none if no row is null.
fn validity(array: &dyn Array) -> Option<BooleanArray> {
    let nulls = array.logical_nulls().filter(|nulls| nulls.null_count() > 0)?;
    Some(BooleanArray::new(nulls.into_inner(), None))
}

/// Batches of fewer rows are not worth it.
const SHARED_ROWS: usize = if cfg!(test) { 2 } else { 1_024 };

/// Rows to a name of a dictionary at least, for its keys to be the codes: each name is looked up.
const ROWS_TO_A_NAME: usize = if cfg!(test) { 1 } else { 32 };

/// Nanoseconds and seqs, if the buffers of these columns can be kept in their place: they hold little else (the whole body
/// of a message may be one buffer), and no null. And codes, if those of a dictionary, as they stand, may be.
fn shareable(event_time: &dyn Array, seq: &dyn Array, symbol: &dyn Array) -> Option<Keys> {
    let seqs = seq.as_primitive_opt::<UInt64Type>()?;
    let times = match event_time.as_primitive_opt::<TimestampNanosecondType>() {
        Some(times) => times.values(),
        None => event_time.as_primitive_opt::<Int64Type>()?.values(),
    };
    let fits = |capacity: usize, width: usize| capacity <= seqs.len() * width + seqs.len() + 128;
    let are_alone = fits(times.inner().capacity(), 8) && fits(seqs.values().inner().capacity(), 8);
    let are_whole = seq.null_count() == 0 && event_time.null_count() == 0;
    if !are_alone || !are_whole || seqs.len() < SHARED_ROWS {
        return None;
    }
    let codes = plain_keys(symbol).filter(|codes| fits(codes.values().inner().capacity(), 4));
    Some(Keys {
        rise: rise(times),
        times: Int64Array::new(times.clone(), None),
        seqs: UInt64Array::new(seqs.values().clone(), None),
        codes,
    })
}

/// The keys of a dictionary that is much shorter than its column, which has no null.
fn plain_keys(array: &dyn Array) -> Option<UInt32Array> {
    let dictionary = array.as_any_dictionary_opt()?;
    let names = dictionary.values();
    if array.null_count() > 0 || names.null_count() > 0 || names.len() * ROWS_TO_A_NAME > array.len() {
        return None;
    }
    let keys = dictionary.keys();
    // A negative one becomes one that is too great.
    let signed = || Some(keys.as_primitive_opt::<Int32Type>()?.values().inner().clone());
    let unsigned = keys.as_primitive_opt::<UInt32Type>().map(|keys| keys.values().inner().clone());
    Some(UInt32Array::new(unsigned.or_else(signed)?.into(), None))
}

/// Some rows of a column of bits, from the first word's lowest bit on.
fn words(bits: &BooleanArray, range: &Range<usize>) -> Bits {
    let part = bits.values().slice(range.start, range.len());
    let mut words = [0; WORDS];
    words.iter_mut().zip(part.bit_chunks().iter_padded()).for_each(|(to, from)| *to = from);
    words
}

impl<'a> Columnar<'a> {
    /// None if a required column is of a type that is not usual.
    pub(super) fn of(batch: &'a RecordBatch) -> Option<Self> {
        let column = |field: Field| batch.column_by_name(field.name()).map(AsRef::as_ref);
        let [Some(kind), Some(symbol), Some(event_time), Some(seq)] = Field::REQUIRED.map(column) else { return None };
        let (times, unit): (&[i64], Nanos) = match Cells::of(event_time) {
            Cells::Timestamp { counts, unit, .. } => (counts, unit),
            Cells::Int64(array) => (array.values(), 1),
            _ => return None,
        };
        let seqs = match Cells::of(seq) {
            Cells::UInt64(array) => Seqs::UInt64(array.values()),
            Cells::Int64(array) => Seqs::Int64(array.values()),
            _ => return None,
        };
        let beside = [Kind::Trade, Kind::Quote].map(|kind| {
            let others = Field::ALL.into_iter().filter(|field| field.bit() & kind.fields() == 0);
            let others = others.filter_map(column).map(validity);
            others.filter(|valid| valid.as_ref().is_none_or(BooleanArray::has_true)).collect()
        });
        let numbers = |field| Numbers::of(column(field));
        Some(Columnar {
            kinds: Codes::of(kind)?,
            symbols: Codes::of(symbol)?,
            times,
            unit,
            keys: shareable(event_time, seq, symbol),
            seqs,
            present: [kind, symbol, event_time, seq].into_iter().filter_map(validity).collect(),
            price: numbers(Field::Price),
            size: numbers(Field::Size),
            bid: numbers(Field::Bid),
            ask: numbers(Field::Ask),
            bid_size: numbers(Field::BidSize),
            ask_size: numbers(Field::AskSize),
            beside,
        })
    }

    /// Decodes all rows, those that are not plain by the judge.
    pub(super) fn decode(mut self, rows: &mut Rows<'a>, out: &mut Decoded) {
        let latest = rows.decoder.latest(rows.receive_time);
        let mut scales = Scales::default();
        let mut keys = self.keys.take().filter(|_| out.records.is_empty());
        if let Some(keys) = &mut keys
            && keys.codes.is_some()
        {
            out.records.reserve_symbols(self.symbols.table.len());
            let mut find = finder(&rows.decoder.instruments, &mut scales, &mut out.symbols, &mut out.records);
            if !self.symbols.is_as_it_stands(&mut find) {
                keys.codes = None;
            }
        }
        match &keys {
            Some(keys) => out.records.reserve_beside(keys),
            None => out.records.reserve(self.times.len()),
        }
        let mut chunk = None;
        let straight = keys.as_ref().is_some_and(|keys| self.is_straight(keys, EARLIEST..=latest));
        let mut powers = Vec::new();
        for start in (0..self.times.len()).step_by(CHUNK) {
            let range = start..self.times.len().min(start + CHUNK);
            if straight
                && let Some(keys) = &keys
                && self.append_trades(rows, keys, &range, &scales, &mut powers, out)
            {
                continue;
            }
            let chunk = chunk.get_or_insert_with(|| Chunk::new(self.times.len().min(CHUNK)));
            self.read(&rows.decoder.instruments, EARLIEST..=latest, &range, chunk, &mut scales, out);
            let n = range.len();
            let mut at = 0;
            while at < n {
                let plain = chunk.run(at, n, false);
                if plain > at {
                    if rows.ignores {
                        out.unknown_fields += (plain - at) as u64;
                    } else {
                        out.unknown_fields += self.beside([&chunk.trades, &chunk.quotes], &range, at..plain);
                    }
                    let cursor = rows.rows_are.cursor(rows.first, start + at);
                    let mut part = self.part(chunk, &range, at..plain);
                    if let Some(keys) = &keys {
                        (part.times, part.seqs) = (&[], &[]);
                        if keys.codes.is_some() {
                            part.symbols = &[];
                        }
                    }
                    out.records.append_plain(cursor, rows.rows_are == RowsAre::Offsets, &part);
                }
                at = chunk.run(plain, n, true);
                if at > plain
                    && let Some(keys) = keys.take()
                {
                    // All rows before this one are plain.
                    let before = start + plain;
                    out.records.copy_keys(&keys, before);
                    out.records.reserve(self.times.len() - before);
                }
                (plain..at).for_each(|row| rows.one(start + row, out));
            }
        }
        if let Some(keys) = keys {
            out.records.share_keys(keys);
        }
    }

    /// Whether all rows are trades, as far as these columns go, of times in this range: so that only their numbers are
    /// to be read, and nothing but those.
    fn is_straight(&self, keys: &Keys, times: std::ops::RangeInclusive<Nanos>) -> bool {
        let Some(codes) = &keys.codes else { return false };
        let (first, last) = (self.times.first().copied(), self.times.last().copied());
        let ends = [first, last].map(|time| time.is_some_and(|time| times.contains(&time)));
        // A code that is too great is one that is no code: below 2^31 as a difference, or above.
        let names = self.symbols.table.len() as i32;
        let known = |signs: i32, code: &u32| signs | *code as i32 | (names - 1).wrapping_sub(*code as i32);
        keys.rise
            && ends == [true; 2]
            && self.present.is_empty()
            && self.kinds.one().is_some_and(|text| Kind::named(&text) == Some(Kind::Trade))
            && codes.values().iter().fold(0, known) >= 0
            && [&self.price, &self.size].into_iter().all(|numbers| numbers.plain().is_some())
    }

    /// Appends a chunk of such rows, if their numbers are plain as well.
    fn append_trades(
        &self,
        rows: &Rows<'a>,
        keys: &Keys,
        range: &Range<usize>,
        scales: &Scales,
        powers: &mut Vec<f64>,
        out: &mut Decoded,
    ) -> bool {
        let (Some(prices), Some(sizes), Some(codes)) = (self.price.plain(), self.size.plain(), &keys.codes) else {
            return false;
        };
        let price_powers = match scales.all {
            Some(scale) => Powers::One(scale),
            None => {
                powers.clear();
                powers.extend(codes.values()[range.clone()].iter().map(|code| pow10(scales.of(*code)) as f64));
                Powers::Each(powers)
            }
        };
        let cursor = rows.rows_are.cursor(rows.first, range.start);
        let offsets = rows.rows_are == RowsAre::Offsets;
        let prices = (&prices[range.clone()], &price_powers);
        if !out.records.append_trades(cursor, offsets, prices, &sizes[range.clone()]) {
            return false;
        }
        out.unknown_fields += match rows.ignores {
            true => range.len() as u64,
            false => self.beside([&[u64::MAX; WORDS], &[0; WORDS]], range, 0..range.len()),
        };
        true
    }

    fn part<'b>(&'b self, chunk: &'b Chunk, range: &Range<usize>, rows: Range<usize>) -> Plain<'b> {
        let all = range.start + rows.start..range.start + rows.end;
        Plain {
            kinds: if chunk.mix == Mix::Trades { None } else { Some(&chunk.row_kinds[rows.clone()]) },
            symbols: &chunk.symbols[rows.clone()],
            times: if self.unit == 1 { &self.times[all.clone()] } else { &chunk.times[rows.clone()] },
            seqs: match self.seqs {
                Seqs::UInt64(seqs) => &seqs[all],
                Seqs::Int64(_) => &chunk.seqs[rows.clone()],
            },
            firsts: &chunk.firsts[rows.clone()],
            seconds: &chunk.seconds[rows.clone()],
            bid_sizes: &chunk.bid_sizes[rows.clone()],
            ask_sizes: &chunk.ask_sizes[rows],
        }
    }

    /// How many of some plain rows of a chunk, trades and quotes, have values that they do not need.
    fn beside(&self, of_kinds: [&Bits; 2], range: &Range<usize>, rows: Range<usize>) -> u64 {
        let mut counted = [0; WORDS];
        for (others, of_kind) in self.beside.iter().zip(of_kinds) {
            for valid in others {
                let valid = valid.as_ref().map_or([u64::MAX; WORDS], |valid| words(valid, range));
                (0..WORDS).for_each(|i| counted[i] |= valid[i] & of_kind[i]);
            }
        }
        if counted == [0; WORDS] {
            return 0;
        }
        rows.filter(|row| counted[row / 64] >> (row % 64) & 1 == 1).count() as u64
    }

    /// Reads a chunk, and marks the rows that are not plain.
    fn read(
        &mut self,
        instruments: &Arc<Instruments>,
        times: std::ops::RangeInclusive<Nanos>,
        range: &Range<usize>,
        chunk: &mut Chunk,
        scales: &mut Scales,
        out: &mut Decoded,
    ) {
        let n = range.len();
        chunk.unusual = [0; WORDS];
        self.kinds.read(range, &mut chunk.kinds[..n], &mut |text| match Kind::named(text) {
            Some(Kind::Trade) => TRADE,
            Some(Kind::Quote) => QUOTE,
            _ => UNUSUAL,
        });
        chunk.sort(n);
        {
            let mut find = finder(instruments, scales, &mut out.symbols, &mut out.records);
            self.symbols.read(range, &mut chunk.symbols[..n], &mut find);
        }
        if chunk.symbols[..n].iter().fold(0, |most, code| most.max(*code)) >= UNUSUAL {
            for row in 0..n {
                if chunk.symbols[row] >= UNUSUAL {
                    chunk.symbols[row] = 0;
                    mark(&mut chunk.unusual, row);
                }
            }
        }
        for valid in &self.present {
            let valid = words(valid, range);
            (0..WORDS).for_each(|i| chunk.unusual[i] |= !valid[i]);
        }
        self.read_times(times, range, chunk);
        if let Seqs::Int64(seqs) = self.seqs {
            let mut all = 0;
            for (to, seq) in chunk.seqs[..n].iter_mut().zip(&seqs[range.clone()]) {
                all |= *seq;
                *to = *seq as u64;
            }
            if all < 0 {
                (0..n).filter(|row| seqs[range.start + row] < 0).for_each(|row| mark(&mut chunk.unusual, row));
            }
        }
        self.read_numbers(range, chunk, scales);
    }

    fn read_times(&self, times: std::ops::RangeInclusive<Nanos>, range: &Range<usize>, chunk: &mut Chunk) {
        let counts = &self.times[range.clone()];
        // A bound is whole in any unit, or the last count that is not above it.
        let (least, most) = (times.start().div_euclid(self.unit), times.end().div_euclid(self.unit));
        // No count from least to most makes either difference negative, and any other makes one of them so, wrapped
        // around or not.
        let out = counts.iter().fold(0, |out, c| out | c.wrapping_sub(least) | most.wrapping_sub(*c));
        if out < 0 {
            let out = (0..counts.len()).filter(|row| !(least..=most).contains(&counts[*row]));
            out.for_each(|row| mark(&mut chunk.unusual, row));
        }
        if self.unit != 1 {
            chunk.times.iter_mut().zip(counts).for_each(|(to, count)| *to = count.wrapping_mul(self.unit));
        }
    }

    fn read_numbers(&self, range: &Range<usize>, chunk: &mut Chunk, scales: &Scales) {
        let n = range.len();
        let Chunk { symbols, firsts, seconds, other, powers, trades, quotes, unusual, .. } = chunk;
        let (firsts, seconds, other) = (&mut firsts[..n], &mut seconds[..n], &mut other[..n]);
        let price_powers = match scales.all {
            Some(scale) => Powers::One(scale),
            None => {
                let power = |code: &u32| pow10(scales.of(*code)) as f64;
                powers.iter_mut().zip(&symbols[..n]).for_each(|(to, code)| *to = power(code));
                Powers::Each(&powers[..n])
            }
        };
        match chunk.mix {
            Mix::Trades => {
                self.price.read(range, &price_powers, firsts);
                self.size.read(range, &Powers::One(SCALE), seconds);
            }
            Mix::Quotes => {
                self.bid.read(range, &price_powers, firsts);
                self.ask.read(range, &price_powers, seconds);
            }
            Mix::Both => {
                let select = |mine: &mut [i64], other: &[i64]| {
                    for ((mine, other), kind) in mine.iter_mut().zip(other).zip(&chunk.kinds) {
                        *mine = if *kind == TRADE { *mine } else { *other };
                    }
                };
                self.price.read(range, &price_powers, firsts);
                self.bid.read(range, &price_powers, other);
                select(firsts, other);
                self.size.read(range, &Powers::One(SCALE), seconds);
                self.ask.read(range, &price_powers, other);
                select(seconds, other);
            }
        }
        let needed = [(&self.price, &*trades), (&self.size, trades), (&self.bid, quotes), (&self.ask, quotes)];
        for (numbers, of_kind) in needed {
            if let Some(valid) = &numbers.valid {
                let valid = words(valid, range);
                (0..WORDS).for_each(|i| unusual[i] |= of_kind[i] & !valid[i]);
            }
        }
        let scale = |row: usize| scales.of(symbols[row]);
        let is_trade = |row: usize| chunk.kinds[row] == TRADE;
        // The sign of `v | v - 1` says whether v is positive.
        if firsts.iter().fold(0, |all, v| all | v | v.wrapping_sub(1)) < 0 {
            for (row, first) in firsts.iter_mut().enumerate() {
                let numbers = if is_trade(row) { &self.price } else { &self.bid };
                positive(numbers, range.start + row, scale(row), first, unusual, row);
            }
        }
        if seconds.iter().fold(0, |all, v| all | v | v.wrapping_sub(1)) < 0 {
            for (row, second) in seconds.iter_mut().enumerate() {
                let (numbers, scale) = if is_trade(row) { (&self.size, SCALE) } else { (&self.ask, scale(row)) };
                positive(numbers, range.start + row, scale, second, unusual, row);
            }
        }
        if chunk.mix == Mix::Trades {
            return;
        }
        // A negative one, which is unusual already, has all of the bits in question.
        if firsts.iter().zip(&*seconds).fold(0, |all, (a, b)| all | a | b) as u64 >= LARGEST_QUOTED as u64 {
            let large = |row: &usize| !is_trade(*row) && firsts[*row].max(seconds[*row]) >= LARGEST_QUOTED;
            (0..n).filter(large).for_each(|row| mark(unusual, row));
        }
        for (numbers, to) in [(&self.bid_size, &mut chunk.bid_sizes[..n]), (&self.ask_size, &mut chunk.ask_sizes[..n])]
        {
            numbers.read(range, &Powers::One(SCALE), to);
            // Where it is unknown it is 0.
            if let Some(valid) = &numbers.valid {
                let valid = words(valid, range);
                for (row, to) in to.iter_mut().enumerate() {
                    *to &= ((valid[row / 64] >> (row % 64) & 1) as i64).wrapping_neg();
                }
            }
            if to.iter().fold(0, |all, v| all | v) < 0 {
                for row in (0..n).filter(|row| !is_trade(*row)) {
                    // One more than a size is positive.
                    let mut more = to[row].saturating_add(1);
                    if more <= 0 {
                        to[row] = numbers.exact(range.start + row, SCALE).unwrap_or(-1);
                        more = to[row].saturating_add(1);
                    }
                    if more <= 0 {
                        mark(unusual, row);
                    }
                }
            }
        }
    }
}

/// The code of a symbol by its name, and its scale.
fn finder<'a>(
    instruments: &'a Arc<Instruments>,
    scales: &'a mut Scales,
    symbols: &'a mut SymbolCache,
    records: &'a mut Ticks,
) -> impl FnMut(&str) -> u32 {
    move |text| match symbols.get(instruments, text) {
        Ok(known) => {
            let code = records.code(known.symbol);
            scales.set(code, known.scale);
            code
        }
        Err(_) => UNUSUAL,
    }
}

/// Sees to a value that must be positive: where it is not, the exact conversion may know better.
fn positive(numbers: &Numbers<'_>, at: usize, scale: u8, value: &mut i64, unusual: &mut Bits, row: usize) {
    if *value <= 0 {
        match numbers.exact(at, scale) {
            Some(exact) if exact > 0 => *value = exact,
            _ => mark(unusual, row),
        }
    }
}

fn mark(bits: &mut Bits, row: usize) {
    bits[row / 64] |= 1 << (row % 64);
}

/// Which kinds a chunk has, beside what is unusual.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mix {
    Trades,
    Quotes,
    Both,
}

/// The rows in hand.
struct Chunk {
    kinds: Vec<u32>,
    row_kinds: Vec<RowKind>,
    symbols: Vec<u32>,
    times: Vec<i64>,
    seqs: Vec<u64>,
    firsts: Vec<i64>,
    seconds: Vec<i64>,
    bid_sizes: Vec<i64>,
    ask_sizes: Vec<i64>,
    other: Vec<i64>,
    powers: Vec<f64>,
    mix: Mix,
    trades: Bits,
    quotes: Bits,
    unusual: Bits,
}

impl Chunk {
    fn new(rows: usize) -> Self {
        let numbers = || vec![0_i64; rows];
        Chunk {
            kinds: vec![0; rows],
            row_kinds: vec![RowKind::Trade; rows],
            symbols: vec![0; rows],
            times: numbers(),
            seqs: vec![0; rows],
            firsts: numbers(),
            seconds: numbers(),
            bid_sizes: numbers(),
            ask_sizes: numbers(),
            other: numbers(),
            powers: vec![0.0; rows],
            mix: Mix::Trades,
            trades: [0; WORDS],
            quotes: [0; WORDS],
            unusual: [0; WORDS],
        }
    }

    /// Sorts the rows by their kinds.
    fn sort(&mut self, n: usize) {
        let kinds = &self.kinds[..n];
        if kinds.iter().fold(0, |any, kind| any | kind) == TRADE {
            (self.mix, self.trades, self.quotes) = (Mix::Trades, [u64::MAX; WORDS], [0; WORDS]);
            return;
        }
        let of = |wanted: u32| {
            let mut bits = [0; WORDS];
            for (bits, kinds) in bits.iter_mut().zip(kinds.chunks(64)) {
                *bits = kinds.iter().rev().fold(0, |bits, kind| bits << 1 | u64::from(*kind == wanted));
            }
            bits
        };
        (self.trades, self.quotes) = (of(TRADE), of(QUOTE));
        let none = |bits: &Bits| bits.iter().all(|bits| *bits == 0);
        self.mix = match (none(&self.trades), none(&self.quotes)) {
            (_, true) => Mix::Trades,
            (true, false) => Mix::Quotes,
            (false, false) => Mix::Both,
        };
        for i in 0..WORDS {
            // Beyond the last row nobody looks.
            self.unusual[i] |= !(self.trades[i] | self.quotes[i]);
        }
        for (to, kind) in self.row_kinds.iter_mut().zip(kinds) {
            *to = if *kind == QUOTE { RowKind::Quote } else { RowKind::Trade };
        }
    }

    /// The end of the rows from `at` on that are all unusual, or all not.
    fn run(&self, at: usize, n: usize, unusual: bool) -> usize {
        let mut at = at;
        while at < n {
            let bits = if unusual { !self.unusual[at / 64] } else { self.unusual[at / 64] };
            match (bits >> (at % 64)).trailing_zeros() as usize {
                // No such bit up to the word's end.
                64 => at = (at / 64 + 1) * 64,
                on => return n.min(at + on),
            }
        }
        n
    }
}

/// The scales of the symbols met, by their codes.
#[derive(Default)]
pub(super) struct Scales {
    by_code: Vec<Option<u8>>,
    /// The scale of all of them, if it is one.
    all: Option<u8>,
    several: bool,
}

impl Scales {
    pub(super) fn set(&mut self, code: u32, scale: u8) {
        let code = code as usize;
        if code >= self.by_code.len() {
            self.by_code.resize(code + 1, None);
        }
        self.by_code[code] = Some(scale);
        self.several |= self.all.is_some_and(|all| all != scale);
        self.all = (!self.several).then_some(scale);
    }

    pub(super) fn of(&self, code: u32) -> u8 {
        self.by_code.get(code as usize).copied().flatten().unwrap_or(0)
    }
}

/// A column of prices or sizes.
struct Numbers<'a> {
    values: Values<'a>,
    /// Which are not null, if any is.
    valid: Option<BooleanArray>,
}

enum Values<'a> {
    Absent,
    Float64(&'a [f64]),
    Int64(&'a [i64]),
    Decimal128(&'a [i128], i8),
    Other(Cells<'a>),
}

impl<'a> Numbers<'a> {
    fn of(column: Option<&'a dyn Array>) -> Self {
        let valid = column.and_then(validity);
        let values = match column {
            Some(array) if valid.as_ref().is_none_or(BooleanArray::has_true) => match Cells::of(array) {
                Cells::Float64(array) => Values::Float64(array.values()),
                Cells::Int64(array) => Values::Int64(array.values()),
                Cells::Decimal128 { array, scale } => Values::Decimal128(array.values(), scale),
                other => Values::Other(other),
            },
            _ => Values::Absent,
        };
        Numbers { values, valid }
    }

    /// Reads some values as units: −1 where that is not plainly exact, anything where they are null.
    fn read(&self, range: &Range<usize>, powers: &Powers<'_>, to: &mut [i64]) {
        match &self.values {
            Values::Absent => to.fill(0),
            Values::Float64(values) => fixed_from_f64s(&values[range.clone()], powers, to),
            Values::Int64(values) => {
                for (row, (to, value)) in to.iter_mut().zip(&values[range.clone()]).enumerate() {
                    *to = value.checked_mul(powers.of(row)).unwrap_or(-1);
                }
            }
            Values::Decimal128(values, from) => {
                let from = i32::from(*from);
                if !(0..=i32::from(MAX_SCALE)).contains(&from) {
                    return to.fill(-1);
                }
                let unit = pow10(from as u8);
                for (row, (to, value)) in to.iter_mut().zip(&values[range.clone()]).enumerate() {
                    let power = powers.of(row);
                    *to = match i64::try_from(*value) {
                        Ok(value) if power >= unit => value.checked_mul(power / unit).unwrap_or(-1),
                        Ok(value) if value % (unit / power) == 0 => value / (unit / power),
                        _ => -1,
                    };
                }
            }
            Values::Other(cells) => {
                for (row, to) in to.iter_mut().enumerate() {
                    *to = cells.get(range.start + row).fixed(powers.scale(row)).unwrap_or(-1);
                }
            }
        }
    }

    /// The doubles that it is, if none is null.
    fn plain(&self) -> Option<&'a [f64]> {
        match self.values {
            Values::Float64(values) if self.valid.is_none() => Some(values),
            _ => None,
        }
    }

    /// A value as units by the exact conversion; none if that fails, or it is null.
    fn exact(&self, row: usize, scale: u8) -> Option<i64> {
        if self.valid.as_ref().is_some_and(|valid| !valid.value(row)) {
            return None;
        }
        match &self.values {
            Values::Float64(values) => fixed_from_f64(values[row], scale).ok(),
            Values::Decimal128(values, from) => Value::Fixed { units: values[row], scale: *from }.fixed(scale).ok(),
            _ => None,
        }
    }
}

/// A column of texts, each of which stands for a code.
struct Codes<'a> {
    texts: Texts<'a>,
    /// The codes of a dictionary's keys.
    table: Vec<u32>,
    /// Whether those are the keys themselves.
    as_it_stands: bool,
    /// The codes of the texts met lately.
    slots: Slots,
}

enum Texts<'a> {
    Utf8(&'a GenericStringArray<i32>),
    LargeUtf8(&'a GenericStringArray<i64>),
    Utf8View(&'a StringViewArray),
    Dictionary { array: &'a dyn Array, keys: &'a DataType, values: Cells<'a> },
}

/// A text of at most 16 bytes: its first eight and its last eight (0 if it has no more than eight) and its length.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Short {
    head: u64,
    tail: u64,
    length: u64,
}

/// No text has the length 0 of an empty slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    text: Short,
    code: u32,
}

/// The codes of short texts met lately: each text has two slots.
pub(super) struct Slots(Vec<Slot>);

impl Slots {
    /// For so many texts, few of which differ.
    pub(super) fn new(texts: usize) -> Self {
        Slots(vec![Slot::default(); texts.clamp(16, 1024).next_power_of_two()])
    }

    fn slot(&self, text: Short) -> usize {
        let Short { head, tail, length } = text;
        let mixed = (head ^ tail.rotate_left(29) ^ length).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 54) as usize & (self.0.len() - 1)
    }

    pub(super) fn get(&self, text: Short) -> Option<u32> {
        let slot = self.slot(text);
        let (one, two) = (self.0.get(slot)?, self.0.get(slot ^ 1)?);
        if one.text == text {
            return Some(one.code);
        }
        (two.text == text).then_some(two.code)
    }

    pub(super) fn put(&mut self, text: Short, code: u32) {
        let slot = self.slot(text);
        self.0[slot ^ 1] = self.0[slot];
        self.0[slot] = Slot { text, code };
    }
}

impl Short {
    /// The text at a place of a column's bytes, if it is short.
    pub(super) fn at(bytes: &[u8], start: usize, length: usize) -> Option<Short> {
        if length > 16 || length == 0 {
            return None;
        }
        let head = if length >= 8 {
            u64::from_le_bytes(*bytes.get(start..)?.first_chunk()?)
        } else {
            match bytes.get(start..).and_then(|rest| rest.first_chunk()) {
                Some(eight) => u64::from_le_bytes(*eight) & (u64::MAX >> (64 - 8 * length)),
                // The last texts of a column.
                None => bytes.get(start..start + length)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)),
            }
        };
        let tail = match length {
            9.. => u64::from_le_bytes(*bytes.get(start + length - 8..)?.first_chunk()?),
            _ => 0,
        };
        Some(Short { head, tail, length: length as u64 })
    }
}

impl<'a> Codes<'a> {
    /// None if it has no texts.
    fn of(array: &'a dyn Array) -> Option<Self> {
        let (mut table, mut slots) = (Vec::new(), Slots::new(0));
        let texts = match array.data_type() {
            DataType::Utf8 => Texts::Utf8(array.as_string()),
            DataType::LargeUtf8 => Texts::LargeUtf8(array.as_string()),
            DataType::Utf8View => Texts::Utf8View(array.as_string_view()),
            DataType::Dictionary(keys, _) => {
                let values = array.as_any_dictionary().values();
                table = vec![UNMET; values.len()];
                Texts::Dictionary { array, keys, values: Cells::of(values.as_ref()) }
            }
            _ => return None,
        };
        if !matches!(texts, Texts::Dictionary { .. }) {
            slots = Slots::new(array.len());
        }
        Some(Codes { texts, table, as_it_stands: false, slots })
    }

    /// The text that all rows have, if it is known at once.
    fn one(&self) -> Option<Cow<'_, str>> {
        let Texts::Dictionary { array, keys, values } = &self.texts else { return None };
        let key = match *keys {
            DataType::Int8 => one_key::<Int8Type, _>(*array),
            DataType::Int32 => one_key::<Int32Type, _>(*array),
            DataType::UInt8 => one_key::<UInt8Type, _>(*array),
            DataType::UInt32 => one_key::<UInt32Type, _>(*array),
            _ => None,
        };
        match values.get(key.filter(|key| *key < self.table.len())?) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether the keys of a dictionary, all of which are to be known, are the codes.
    fn is_as_it_stands(&mut self, find: &mut dyn FnMut(&str) -> u32) -> bool {
        let Texts::Dictionary { values, .. } = &self.texts else { return false };
        for (key, code) in self.table.iter_mut().enumerate() {
            *code = match values.get(key) {
                Value::Text(text) => find(&text),
                _ => UNUSUAL,
            };
        }
        self.as_it_stands = self.table.iter().zip(0..).all(|(code, key)| *code == key);
        self.as_it_stands
    }

    /// Reads the codes of some rows: `find` knows those that have not been met. Anything where a row is null.
    fn read(&mut self, range: &Range<usize>, to: &mut [u32], find: &mut dyn FnMut(&str) -> u32) {
        let Codes { texts, table, as_it_stands, slots } = self;
        match texts {
            Texts::Utf8(array) => read_texts(array, slots, range, to, find),
            Texts::LargeUtf8(array) => read_texts(array, slots, range, to, find),
            Texts::Utf8View(array) => {
                for (to, row) in to.iter_mut().zip(range.clone()) {
                    let view = array.views()[row];
                    let length = view as u32;
                    // So short a text stands in the view itself, followed by zeros.
                    let text = (1..=12).contains(&length).then(|| Short {
                        head: (view >> 32) as u64,
                        tail: (view >> 96) as u64,
                        length: u64::from(length),
                    });
                    *to = look_up(slots, text, || array.value(row), find);
                }
            }
            Texts::Dictionary { array, .. } if *as_it_stands => read_plain_keys(*array, range, table.len(), to),
            Texts::Dictionary { array, keys, values } => {
                let read = match *keys {
                    DataType::Int8 => read_keys::<Int8Type, _>,
                    DataType::Int16 => read_keys::<Int16Type, _>,
                    DataType::Int32 => read_keys::<Int32Type, _>,
                    DataType::Int64 => read_keys::<Int64Type, _>,
                    DataType::UInt8 => read_keys::<UInt8Type, _>,
                    DataType::UInt16 => read_keys::<UInt16Type, _>,
                    DataType::UInt32 => read_keys::<UInt32Type, _>,
                    _ => read_keys::<UInt64Type, _>,
                };
                let mut of_key = |key| match values.get(key) {
                    Value::Text(text) => find(&text),
                    _ => UNUSUAL,
                };
                read(*array, range, table, to, &mut of_key);
            }
        }
    }
}

fn read_texts<O: OffsetSizeTrait>(
    array: &GenericStringArray<O>,
    slots: &mut Slots,
    range: &Range<usize>,
    to: &mut [u32],
    find: &mut dyn FnMut(&str) -> u32,
) {
    let offsets = &array.value_offsets()[range.start..=range.end];
    let bytes = array.value_data();
    for (i, (to, pair)) in to.iter_mut().zip(offsets.windows(2)).enumerate() {
        let (start, end) = (pair[0].as_usize(), pair[1].as_usize());
        let text = Short::at(bytes, start, end.wrapping_sub(start));
        *to = look_up(slots, text, || array.value(range.start + i), find);
    }
}

fn look_up<'a>(
    slots: &mut Slots,
    short: Option<Short>,
    text: impl FnOnce() -> &'a str,
    find: &mut dyn FnMut(&str) -> u32,
) -> u32 {
    let Some(short) = short else { return find(text()) };
    if let Some(code) = slots.get(short) {
        return code;
    }
    let code = find(text());
    slots.put(short, code);
    code
}

/// Reads keys that are codes.
fn read_plain_keys(array: &dyn Array, range: &Range<usize>, values: usize, to: &mut [u32]) {
    let Some(keys) = plain_keys(array) else { return to.fill(UNUSUAL) };
    to.copy_from_slice(&keys.values()[range.clone()]);
    if to.iter().fold(0, |most, key| most.max(*key)) as usize >= values {
        to.iter_mut().filter(|key| **key as usize >= values).for_each(|key| *key = UNUSUAL);
    }
}

/// The key that all rows have.
fn one_key<K: ArrowDictionaryKeyType<Native = N>, N: ArrowNativeTypeOp>(array: &dyn Array) -> Option<usize> {
    let keys: &[N] = array.as_dictionary::<K>().keys().values();
    let first = keys.first()?;
    (!keys.iter().fold(false, |differs, key| differs | key.is_ne(*first))).then(|| first.as_usize())
}

fn read_keys<K: ArrowDictionaryKeyType<Native = N>, N: ArrowNativeTypeOp>(
    array: &dyn Array,
    range: &Range<usize>,
    table: &mut [u32],
    to: &mut [u32],
    find: &mut dyn FnMut(usize) -> u32,
) {
    let keys: &[N] = &array.as_dictionary::<K>().keys().values()[range.clone()];
    // Whole columns are of one kind.
    let known = |key: &N| table.get(key.as_usize()).copied().unwrap_or(UNUSUAL);
    if let Some(first) = keys.first()
        && known(first) != UNMET
        && !keys.iter().fold(false, |differs, key| differs | key.is_ne(*first))
    {
        return to.fill(known(first));
    }
    let mut met = true;
    for (to, key) in to.iter_mut().zip(keys) {
        *to = known(key);
        met &= *to != UNMET;
    }
    if met {
        return;
    }
    for (to, key) in to.iter_mut().zip(keys) {
        // The key of a null may be any.
        *to = match table.get_mut(key.as_usize()) {
            None => UNUSUAL,
            Some(code) => {
                if *code == UNMET {
                    *code = find(key.as_usize());
                }
                *code
            }
        };
    }
}

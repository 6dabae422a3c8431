//! Base bars from ticks: for each symbol and base bucket `[open_time, open_time + base)` the first, highest, lowest and
//! last price by (event_time, seq), and the sums of size, price · size and ticks.
//!
//! * Key: (symbol, open_time). Bars of `last` are made of trades; of `mid` and `bid`, of quotes (volume and turnover 0).
//! * Corrects: a bar is given again whenever its body differs at an epoch's end, `None` when no tick of it stands any
//!   more. At most one [`BarUpsert`] a bar an epoch.
//! * Ties: the identity of a tick is (symbol, event_time, seq), over all kinds and sources. The first to arrive stands;
//!   the same again is a duplicate, another payload a dead letter `conflict`.
//! * A bust or correction holds until its target arrives; when the target's event time is before `sealed_through` and
//!   it has not come, it is a dead letter `unknown_target`. A bust absorbs; else the highest (rev, price, size) wins.
//!   One that has no effect (superseded, or after a bust) is accepted; the same again is a duplicate. Their targets are
//!   trades: of a quote they are dead letters `conflict`, whichever came first.
//! * An amend is held until its bar seals (its close ≤ `sealed_through`), then replaces the bar of ticks; the highest
//!   (rev, body) wins. An amend of a bar that has sealed applies at once; the first one is passed on even if it says
//!   what the bar is already, since a sealed bar is no longer here to compare (roll-up drops it).
//! * Late data: the cutter has judged. Whatever comes for a sealed bucket nevertheless is a dead letter `late`.
//! * Overflow: a trade or correction whose Σ|price · size| of the bar would leave i128, or a quote whose mid leaves i64,
//!   is a dead letter `overflow` and not in the log. Which of several trades is one too many depends on the order of
//!   arrival; nothing else here does. (It takes three trades of the greatest price and size.)
//! * State: per symbol the latest quote and its open buckets ([`bucket`]): 32 bytes a trade and 48 a quote (an eighth
//!   more at most, twice in the newest bucket), 192 a bucket. A bucket's ticks are freed when it seals; all amends of a
//!   bar are kept for ever.
//! * Cost: a tick in order O(1), a late one O(log n) and moving what is after it in its bucket; a bust or correction
//!   rebuilds its one bar, once an epoch. Sealing looks only at symbols that have something to seal.
//! * The output frontier promises: all bars, quotes, dead letters and counts of the epochs before it.

mod bucket;
mod names;
#[cfg(test)]
mod tests;

pub(crate) use names::SymbolIndex;

use crate::epochs::{EpochOperator, EpochStream};
use bucket::{Bucket, Edit, Edits, Found, Key, QuoteTick, Trade, UNTOUCHED};
use marea_model::cursor::excerpt;
use marea_model::num::format_fixed;
use marea_model::time::format_rfc3339;
use marea_model::{
    Amend, BarBody, Cursor, DeadLetter, Event, Instruments, Nanos, Price, PriceSource, Progress, Reason, Record, Size,
    Symbol, Tick, Timeframe,
};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use timely::dataflow::channels::pact::Exchange;

/// A base bar as it stands now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BarUpsert {
    /// The instrument.
    pub symbol: Symbol,
    /// Its first instant.
    pub open_time: Nanos,
    /// None: no bar stands any more.
    pub body: Option<BarBody>,
}

/// The top of the book.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Quote {
    /// The exchange's time.
    pub event_time: Nanos,
    /// Order within the event time.
    pub seq: u64,
    /// Best bid.
    pub bid: Price,
    /// Best ask.
    pub ask: Price,
}

/// The latest quote of a symbol, once an epoch when it changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct QuoteUpdate {
    /// The instrument.
    pub symbol: Symbol,
    /// The quote of the greatest (event_time, seq). None: the symbol has appeared, without a quote so far.
    pub quote: Option<Quote>,
}

/// What became of an epoch's records: `records = accepted + duplicate + dead + held`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Records that count, also held ones whose time has come.
    pub accepted: i64,
    /// Records that were there already.
    pub duplicate: i64,
    /// Dead letters.
    pub dead: i64,
    /// The change of the number of records that wait for a target or a seal.
    pub held: i64,
    /// Accepted prices more than [`JUMP_PERCENT`] % from the one accepted before: kept, and counted beside the above.
    pub price_jumps: i64,
}

/// How far, in percent, a price may be from the one accepted before it without being counted as a jump.
pub const JUMP_PERCENT: i128 = 10;

/// All that an epoch gave.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BarsOutput {
    /// Bars whose body changed, each once, in no particular order.
    pub bars: Vec<BarUpsert>,
    /// Latest quotes that changed, each symbol once, in no particular order.
    pub quotes: Vec<QuoteUpdate>,
    /// Refused records, by cursor.
    pub dead: Vec<DeadLetter>,
    /// What became of the records.
    pub counts: Counts,
}

/// Why a record is refused.
struct Fault {
    reason: Reason,
    field: &'static str,
    value: String,
    detail: String,
}

impl Fault {
    fn late(key: Key) -> Outcome {
        let value = format_rfc3339(key.event_time);
        let detail = "its bar has sealed".to_owned();
        Outcome::Dead(Box::new(Fault { reason: Reason::Late, field: "event_time", value, detail }))
    }

    fn overflow(field: &'static str, value: String) -> Outcome {
        let detail = "a sum of its bar would overflow".to_owned();
        Outcome::Dead(Box::new(Fault { reason: Reason::Overflow, field, value, detail }))
    }

    fn conflict(field: &'static str, value: String, first: &str) -> Outcome {
        let detail = format!("{first} with this event_time and seq came first");
        Outcome::Dead(Box::new(Fault { reason: Reason::Conflict, field, value, detail }))
    }

    fn not_a_trade(key: Key, kind: &str) -> Outcome {
        let detail = format!("the target of this {kind} is a quote");
        Outcome::Dead(Box::new(Fault { reason: Reason::Conflict, field: "seq", value: key.seq.to_string(), detail }))
    }
}

/// What became of a record.
enum Outcome {
    Accepted,
    Duplicate,
    Held,
    /// Boxed, so that the outcome of every tick stays in two registers.
    Dead(Box<Fault>),
}

/// A bucket that something has happened to in this epoch.
struct Touched {
    symbol: u32,
    open_time: Nanos,
    /// What stood at the epoch's start.
    before: Option<BarBody>,
    /// What stands for ever, if it has sealed in this epoch.
    sealed: Option<Option<BarBody>>,
}

/// What all symbols share.
struct Shared {
    instruments: Arc<Instruments>,
    base: Timeframe,
    sealed_through: Nanos,
    /// (the `sealed_through` at which it has something to do, symbol). Entries that are not its `due` any more are void.
    timers: BinaryHeap<Reverse<(Nanos, u32)>>,
    touched: Vec<Touched>,
    /// Symbols with a new latest quote, or new themselves.
    quoted: Vec<u32>,
    /// Sealed bars with a new amend.
    amended: Vec<(u32, Nanos)>,
    counts: Counts,
    dead: Vec<DeadLetter>,
}

impl Shared {
    #[inline]
    fn touch(&mut self, symbol: u32, open_time: Nanos, bucket: &mut Bucket) {
        if bucket.touched == UNTOUCHED {
            bucket.touched = self.touched.len() as u32;
            self.touched.push(Touched { symbol, open_time, before: bucket.standing(), sealed: None });
        }
    }

    fn close_time(&self, open_time: Nanos) -> Nanos {
        open_time.saturating_add(self.base.nanos())
    }

    fn is_sealed(&self, open_time: Nanos) -> bool {
        self.close_time(open_time) <= self.sealed_through
    }

    #[inline]
    fn count(&mut self, outcome: Outcome, cursor: Cursor, tick: impl FnOnce() -> Tick) {
        match outcome {
            Outcome::Accepted => self.counts.accepted += 1,
            Outcome::Duplicate => self.counts.duplicate += 1,
            Outcome::Held => self.counts.held += 1,
            Outcome::Dead(fault) => self.refuse(*fault, cursor, &tick()),
        }
    }

    #[cold]
    fn refuse(&mut self, fault: Fault, cursor: Cursor, tick: &Tick) {
        let Fault { reason, field, value, detail } = fault;
        let (field, value) = (field.to_owned(), excerpt(&value));
        let original = marea_model::codec::json::encode(tick, &self.instruments);
        self.counts.dead += 1;
        self.dead.push(DeadLetter { cursor, reason, field, value, detail, original });
    }
}

/// All amends of a bar.
#[derive(Default)]
struct Amended {
    /// The greatest wins.
    known: BTreeSet<Amend>,
    /// What was given last: none before the bar seals.
    given: Option<Option<BarBody>>,
    /// Whether it stands among the amended bars of this epoch.
    queued: bool,
}

impl Amended {
    fn body(&self) -> Option<BarBody> {
        self.known.last().and_then(|amend| amend.bar)
    }
}

/// The state of one symbol.
struct SymbolState {
    number: u32,
    symbol: Symbol,
    source: PriceSource,
    scale: u8,
    /// (open_time, bucket), by open_time. Boxed, so that a late bucket moves pointers.
    buckets: VecDeque<(Nanos, Box<Bucket>)>,
    /// Busts and corrections of unsealed ticks, those without a target too.
    edits: BTreeMap<Key, Edits>,
    /// The keys of `edits` that have no target yet.
    waiting: BTreeSet<Key>,
    amends: BTreeMap<Nanos, Amended>,
    /// The open times of `amends` that have not sealed.
    unsealed_amends: BTreeSet<Nanos>,
    quote: Option<Quote>,
    /// The price accepted last, in order of arrival: of trades, or of what its bars are made of.
    last_price: Option<Price>,
    /// Whether a record of it was ever accepted.
    seen: bool,
    /// Whether it stands among the quoted symbols of this epoch.
    quoted: bool,
    /// The `sealed_through` at which it has something to do.
    due: Nanos,
}

impl SymbolState {
    fn new(number: usize, symbol: Symbol, instruments: &Instruments) -> Self {
        let instrument = instruments.get(symbol);
        SymbolState {
            number: number as u32,
            symbol,
            source: instrument.price_source,
            scale: instrument.scale,
            buckets: VecDeque::new(),
            edits: BTreeMap::new(),
            waiting: BTreeSet::new(),
            amends: BTreeMap::new(),
            unsealed_amends: BTreeSet::new(),
            quote: None,
            last_price: None,
            seen: false,
            quoted: false,
            due: Nanos::MAX,
        }
    }

    /// The newest bucket, if what has `key` is new there and comes in order.
    #[inline]
    fn in_order(&mut self, base: Timeframe, key: Key) -> Option<(Nanos, &mut Bucket)> {
        let waits = !self.waiting.is_empty() && self.waiting.contains(&key);
        let (open_time, bucket) = self.buckets.back_mut()?;
        let inside = (key.event_time.wrapping_sub(*open_time) as u64) < base.nanos() as u64;
        (inside && key > bucket.last && !waits).then_some((*open_time, bucket))
    }

    /// The bucket of `event_time`.
    fn find_bucket(&self, shared: &Shared, event_time: Nanos) -> Option<usize> {
        let open_time = shared.base.open_time(event_time);
        match self.buckets.back() {
            Some((last, _)) if *last == open_time => Some(self.buckets.len() - 1),
            _ => self.buckets.binary_search_by_key(&open_time, |(open, _)| *open).ok(),
        }
    }

    /// The bucket of `event_time`, made if it is not there; none if it has sealed.
    fn bucket(&mut self, shared: &mut Shared, event_time: Nanos) -> Option<usize> {
        if let Some(i) = self.find_bucket(shared, event_time) {
            return Some(i);
        }
        let open_time = shared.base.open_time(event_time);
        if shared.is_sealed(open_time) {
            return None;
        }
        let i = self.buckets.partition_point(|(open, _)| *open < open_time);
        if let Some((_, grown)) = self.buckets.back_mut().filter(|(last, _)| *last < open_time) {
            grown.cut();
        }
        self.buckets.insert(i, (open_time, Box::new(Bucket::new())));
        self.schedule(shared, shared.close_time(open_time));
        Some(i)
    }

    fn schedule(&mut self, shared: &mut Shared, at: Nanos) {
        if at < self.due {
            self.due = at;
            shared.timers.push(Reverse((at, self.number)));
        }
    }

    /// Takes note of an accepted price.
    #[inline]
    fn priced(&mut self, shared: &mut Shared, price: Price) {
        if let Some(last) = self.last_price.replace(price) {
            let (last, moved) = (i128::from(last.0), i128::from(price.0) - i128::from(last.0));
            shared.counts.price_jumps += i64::from(moved.abs() * 100 > last.abs() * JUMP_PERCENT);
        }
    }

    fn appear(&mut self, shared: &mut Shared) {
        if !self.seen {
            self.seen = true;
            self.queue_quote(shared);
        }
    }

    #[inline]
    fn queue_quote(&mut self, shared: &mut Shared) {
        if !self.quoted {
            self.quoted = true;
            shared.quoted.push(self.number);
        }
    }

    /// The in-order case: a trade after all ticks of the newest bucket. False, and nothing done, if it is another case.
    #[inline]
    fn append_trade(&mut self, shared: &mut Shared, trade: Trade) -> bool {
        let (number, makes_bars) = (self.number, self.source == PriceSource::Last);
        let Some((open_time, bucket)) = self.in_order(shared.base, trade.key) else { return false };
        let mut gross = None;
        if makes_bars {
            gross = bucket.gross_with(trade.price.turnover(trade.size));
            if gross.is_none() {
                return false;
            }
            shared.touch(number, open_time, bucket);
        }
        bucket.push_trade(trade, gross);
        self.priced(shared, trade.price);
        true
    }

    fn trade(&mut self, shared: &mut Shared, trade: Trade) -> Outcome {
        if self.append_trade(shared, trade) {
            return Outcome::Accepted;
        }
        let Some(i) = self.bucket(shared, trade.key.event_time) else { return Fault::late(trade.key) };
        let (open_time, bucket) = &mut self.buckets[i];
        match bucket.find(trade.key) {
            Found::Trade(j) => {
                let known = &bucket.trades[j];
                return if known.price != trade.price {
                    Fault::conflict("price", trade.price.decimal(self.scale).to_string(), "a trade at another price")
                } else if known.size != trade.size {
                    Fault::conflict("size", size_text(trade.size), "a trade of another size")
                } else {
                    Outcome::Duplicate
                };
            }
            Found::Quote(_) => return Fault::conflict("kind", "trade".to_owned(), "a quote"),
            Found::Nothing => {}
        }
        let mut gross = None;
        if self.source == PriceSource::Last {
            gross = bucket.gross_with(trade.price.turnover(trade.size));
            if gross.is_none() {
                return Fault::overflow("size", size_text(trade.size));
            }
            shared.touch(self.number, *open_time, bucket);
        }
        bucket.insert_trade(trade, gross);
        self.priced(shared, trade.price);
        self.appear(shared);
        self.release(shared, trade.key);
        Outcome::Accepted
    }

    /// The in-order case of a quote. False, and nothing done, if it is another case.
    #[inline]
    fn append_quote(&mut self, shared: &mut Shared, quote: QuoteTick, price: Option<Price>) -> bool {
        let number = self.number;
        let Some((open_time, bucket)) = self.in_order(shared.base, quote.key) else { return false };
        if price.is_some() {
            shared.touch(number, open_time, bucket);
        }
        bucket.push_quote(quote, price);
        price.into_iter().for_each(|price| self.priced(shared, price));
        self.latest(shared, quote);
        true
    }

    fn quote(&mut self, shared: &mut Shared, quote: QuoteTick) -> Outcome {
        let price = match self.source {
            PriceSource::Last => None,
            PriceSource::Bid => Some(quote.bid),
            PriceSource::Mid => match Price::mid(quote.bid, quote.ask) {
                Some(mid) => Some(mid),
                None => return Fault::overflow("ask", quote.ask.decimal(self.scale).to_string()),
            },
        };
        if self.append_quote(shared, quote, price) {
            return Outcome::Accepted;
        }
        let Some(i) = self.bucket(shared, quote.key.event_time) else { return Fault::late(quote.key) };
        let (open_time, bucket) = &mut self.buckets[i];
        match bucket.find(quote.key) {
            Found::Quote(j) => return compare_quotes(&bucket.quotes[j], &quote, self.scale),
            Found::Trade(_) => return Fault::conflict("kind", "quote".to_owned(), "a trade"),
            Found::Nothing => {}
        }
        if price.is_some() {
            shared.touch(self.number, *open_time, bucket);
        }
        bucket.insert_quote(quote, price);
        price.into_iter().for_each(|price| self.priced(shared, price));
        self.latest(shared, quote);
        self.appear(shared);
        self.release(shared, quote.key);
        Outcome::Accepted
    }

    #[inline]
    fn latest(&mut self, shared: &mut Shared, quote: QuoteTick) {
        let QuoteTick { key, bid, ask, .. } = quote;
        if self.quote.is_none_or(|last| (last.event_time, last.seq) < (key.event_time, key.seq)) {
            self.quote = Some(Quote { event_time: key.event_time, seq: key.seq, bid, ask });
            self.queue_quote(shared);
        }
    }

    /// A target has come: what waited for it waits no longer.
    fn release(&mut self, shared: &mut Shared, key: Key) {
        if !self.waiting.remove(&key) {
            return;
        }
        for (edit, cursor) in self.edits.remove(&key).unwrap_or_default().0 {
            shared.counts.held -= 1;
            let outcome = self.edit(shared, key, edit, cursor);
            shared.count(outcome, cursor, || self.tick(key, edit));
        }
    }

    fn edit(&mut self, shared: &mut Shared, key: Key, edit: Edit, cursor: Cursor) -> Outcome {
        let bucket = self.find_bucket(shared, key.event_time).map(|i| &mut self.buckets[i]);
        let found = bucket.as_ref().map_or(Found::Nothing, |(_, bucket)| bucket.find(key));
        match (found, bucket) {
            (Found::Quote(_), _) => Fault::not_a_trade(key, Event::from(edit).kind()),
            (Found::Trade(j), Some((open_time, bucket))) => {
                let edits = self.edits.entry(key).or_default();
                if edits.0.contains_key(&edit) {
                    return Outcome::Duplicate;
                }
                let trade = bucket.trades[j];
                let before = edits.effective(&trade);
                edits.0.insert(edit, cursor);
                let after = edits.effective(&trade);
                if self.source == PriceSource::Last && before != after {
                    shared.touch(self.number, *open_time, bucket);
                    if !bucket.edit(before, after) {
                        edits.0.remove(&edit);
                        let size = after.map_or(Size(0), |(_, size)| size);
                        return Fault::overflow("size", size_text(size));
                    }
                }
                Outcome::Accepted
            }
            _ if shared.is_sealed(shared.base.open_time(key.event_time)) => Fault::late(key),
            _ => {
                let edits = self.edits.entry(key).or_default();
                // The first one is held, and may die; a repeat is only a duplicate.
                if edits.0.contains_key(&edit) {
                    return Outcome::Duplicate;
                }
                edits.0.insert(edit, cursor);
                self.waiting.insert(key);
                self.schedule(shared, key.event_time.saturating_add(1));
                Outcome::Held
            }
        }
    }

    fn amend(&mut self, shared: &mut Shared, open_time: Nanos, amend: &Amend) -> Outcome {
        if shared.base.open_time(open_time) != open_time {
            let detail = format!("no bar of {} opens then", shared.base);
            let value = format_rfc3339(open_time);
            return Outcome::Dead(Box::new(Fault { reason: Reason::Invalid, field: "open_time", value, detail }));
        }
        let amended = self.amends.entry(open_time).or_default();
        if !amended.known.insert(amend.clone()) {
            return Outcome::Duplicate;
        }
        if !shared.is_sealed(open_time) {
            self.unsealed_amends.insert(open_time);
            self.schedule(shared, shared.close_time(open_time));
            return Outcome::Held;
        }
        if !std::mem::replace(&mut amended.queued, true) {
            shared.amended.push((self.number, open_time));
        }
        self.appear(shared);
        Outcome::Accepted
    }

    /// `sealed_through` has reached `due`: what waited too long is dead, what is over seals.
    fn seal(&mut self, shared: &mut Shared) {
        let through = shared.sealed_through;
        while let Some(key) = self.waiting.first().copied().filter(|key| key.event_time < through) {
            self.waiting.remove(&key);
            for (edit, cursor) in self.edits.remove(&key).unwrap_or_default().0 {
                shared.counts.held -= 1;
                let detail = format!("no trade with the event_time and seq of this {} came", Event::from(edit).kind());
                let value = key.seq.to_string();
                let fault = Fault { reason: Reason::UnknownTarget, field: "seq", value, detail };
                shared.count(Outcome::Dead(Box::new(fault)), cursor, || self.tick(key, edit));
            }
        }
        while let Some((open_time, mut bucket)) = self.buckets.pop_front_if(|(open, _)| shared.is_sealed(*open)) {
            bucket.settle(&self.edits);
            let body = bucket.standing();
            let last = self.seal_amends(shared, open_time).unwrap_or(body);
            if let Some(touched) = shared.touched.get_mut(bucket.touched as usize) {
                touched.sealed = Some(last);
            } else if last != body {
                let (symbol, before) = (self.number, body);
                shared.touched.push(Touched { symbol, open_time, before, sealed: Some(last) });
            }
            let close_time = shared.close_time(open_time);
            while self.edits.first_key_value().is_some_and(|(key, _)| key.event_time < close_time) {
                self.edits.pop_first();
            }
        }
        // Bars that no tick made.
        while let Some(open_time) = self.unsealed_amends.first().copied().filter(|open| shared.is_sealed(*open)) {
            if let Some(last) = self.seal_amends(shared, open_time) {
                let symbol = self.number;
                shared.touched.push(Touched { symbol, open_time, before: None, sealed: Some(last) });
            }
        }
        self.due = Nanos::MAX;
        let next = [
            self.waiting.first().map(|key| key.event_time.saturating_add(1)),
            self.buckets.front().map(|(open, _)| shared.close_time(*open)),
            self.unsealed_amends.first().map(|open| shared.close_time(*open)),
        ];
        if let Some(at) = next.into_iter().flatten().min() {
            self.schedule(shared, at);
        }
    }

    /// The body that amends give a bar that seals now, if there are any.
    fn seal_amends(&mut self, shared: &mut Shared, open_time: Nanos) -> Option<Option<BarBody>> {
        if !self.unsealed_amends.remove(&open_time) {
            return None;
        }
        let amended = self.amends.get_mut(&open_time)?;
        shared.counts.held -= amended.known.len() as i64;
        shared.counts.accepted += amended.known.len() as i64;
        amended.given = Some(amended.body());
        let body = amended.given;
        self.appear(shared);
        body
    }

    fn tick(&self, key: Key, edit: Edit) -> Tick {
        Tick { symbol: self.symbol, event_time: key.event_time, seq: key.seq, event: edit.into() }
    }
}

fn size_text(size: Size) -> String {
    format_fixed(i128::from(size.0), marea_model::num::SCALE)
}

fn compare_quotes(known: &QuoteTick, quote: &QuoteTick, scale: u8) -> Outcome {
    let price = |price: Price| price.decimal(scale).to_string();
    let fields = [
        (known.bid == quote.bid, "bid", price(quote.bid)),
        (known.ask == quote.ask, "ask", price(quote.ask)),
        (known.bid_size == quote.bid_size, "bid_size", size_text(quote.bid_size)),
        (known.ask_size == quote.ask_size, "ask_size", size_text(quote.ask_size)),
    ];
    match fields.into_iter().find(|(same, ..)| !same) {
        None => Outcome::Duplicate,
        Some((_, field, value)) => Fault::conflict(field, value, "a quote that differs"),
    }
}

/// The kernel: records in, bars, latest quotes, dead letters and counts out.
pub struct Bars {
    index: SymbolIndex,
    symbols: Vec<SymbolState>,
    shared: Shared,
}

impl Bars {
    /// No tick seen yet. Price source and scale of a symbol are those of its first record, for ever.
    pub fn new(instruments: Arc<Instruments>, base: Timeframe) -> Self {
        Bars {
            index: SymbolIndex::default(),
            symbols: Vec::new(),
            shared: Shared {
                instruments,
                base,
                sealed_through: Nanos::MIN,
                timers: BinaryHeap::new(),
                touched: Vec::new(),
                quoted: Vec::new(),
                amended: Vec::new(),
                counts: Counts::default(),
                dead: Vec::new(),
            },
        }
    }

    /// Takes in an epoch: all its records, then how far the input has come at its end.
    pub fn epoch(&mut self, records: impl IntoIterator<Item = Record>, progress: Option<Progress>) -> BarsOutput {
        for Record { cursor, tick } in records {
            self.record(cursor, tick);
        }
        if let Some(progress) = progress {
            self.shared.sealed_through = self.shared.sealed_through.max(progress.sealed_through);
        }
        self.seal();
        self.output()
    }

    #[inline]
    fn record(&mut self, cursor: Cursor, tick: Tick) {
        let number = self.index.number(tick.symbol);
        if number == self.symbols.len() {
            self.symbols.push(SymbolState::new(number, tick.symbol, &self.shared.instruments));
        }
        let (symbol, shared) = (&mut self.symbols[number], &mut self.shared);
        let key = Key { event_time: tick.event_time, seq: tick.seq };
        let outcome = match &tick.event {
            Event::Trade { price, size } => symbol.trade(shared, Trade { key, price: *price, size: *size }),
            Event::Quote { bid, ask, bid_size, ask_size } => {
                let (bid, ask, bid_size, ask_size) = (*bid, *ask, *bid_size, *ask_size);
                symbol.quote(shared, QuoteTick { key, bid, ask, bid_size, ask_size })
            }
            Event::Bust => symbol.edit(shared, key, Edit::Bust, cursor),
            Event::Correction { rev, price, size } => {
                let correction = Edit::Correction { rev: *rev, price: *price, size: *size };
                symbol.edit(shared, key, correction, cursor)
            }
            Event::Amend(amend) => symbol.amend(shared, tick.event_time, amend),
        };
        shared.count(outcome, cursor, || tick);
    }

    fn seal(&mut self) {
        let through = self.shared.sealed_through;
        while let Some(Reverse((at, number))) =
            self.shared.timers.peek().copied().filter(|Reverse((at, _))| *at <= through)
        {
            self.shared.timers.pop();
            let symbol = &mut self.symbols[number as usize];
            if symbol.due == at {
                symbol.seal(&mut self.shared);
            }
        }
    }

    fn output(&mut self) -> BarsOutput {
        let shared = &mut self.shared;
        let mut bars = Vec::with_capacity(shared.touched.len() + shared.amended.len());
        for Touched { symbol, open_time, before, sealed } in shared.touched.drain(..) {
            let symbol = &mut self.symbols[symbol as usize];
            let body = match sealed {
                Some(body) => body,
                None => {
                    let newest = symbol.buckets.len().wrapping_sub(1);
                    let i = match symbol.buckets.get(newest) {
                        Some((open, _)) if *open == open_time => newest,
                        _ => symbol.buckets.partition_point(|(open, _)| *open < open_time),
                    };
                    let bucket = &mut symbol.buckets[i].1;
                    bucket.touched = UNTOUCHED;
                    bucket.settle(&symbol.edits);
                    bucket.standing()
                }
            };
            if body != before {
                bars.push(BarUpsert { symbol: symbol.symbol, open_time, body });
            }
        }
        for (symbol, open_time) in shared.amended.drain(..) {
            let symbol = &mut self.symbols[symbol as usize];
            if let Some(amended) = symbol.amends.get_mut(&open_time) {
                amended.queued = false;
                let body = amended.body();
                if amended.given.replace(body) != Some(body) {
                    bars.push(BarUpsert { symbol: symbol.symbol, open_time, body });
                }
            }
        }
        let mut quotes = Vec::with_capacity(shared.quoted.len());
        for number in shared.quoted.drain(..) {
            let symbol = &mut self.symbols[number as usize];
            symbol.quoted = false;
            quotes.push(QuoteUpdate { symbol: symbol.symbol, quote: symbol.quote });
        }
        let mut dead = std::mem::take(&mut shared.dead);
        dead.sort_unstable();
        BarsOutput { bars, quotes, dead, counts: std::mem::take(&mut shared.counts) }
    }
}

/// What [`bars`] gives.
pub struct BarsStreams<'scope> {
    /// Base bars that changed, on the worker of their symbol.
    pub bars: EpochStream<'scope, BarUpsert>,
    /// Latest quotes that changed.
    pub quotes: EpochStream<'scope, QuoteUpdate>,
    /// Refused records.
    pub dead: EpochStream<'scope, DeadLetter>,
    /// One for each epoch and worker that had something to count.
    pub counts: EpochStream<'scope, Counts>,
}

/// The operator: records routed to the worker of their symbol, `progress` given to every worker.
pub fn bars<'scope>(
    records: EpochStream<'scope, Record>,
    progress: EpochStream<'scope, Progress>,
    instruments: Arc<Instruments>,
    base: Timeframe,
) -> BarsStreams<'scope> {
    let mut operator = EpochOperator::new("bars", progress);
    let records = operator.input(records, Exchange::new(|record: &Record| record.tick.symbol.stable_hash()));
    let (bars, bar_stream) = operator.output();
    let (quotes, quote_stream) = operator.output();
    let (dead, dead_stream) = operator.output();
    let (counts, count_stream) = operator.output();
    let mut kernel = Bars::new(instruments, base);
    operator.build(move |_, progress| {
        let output = kernel.epoch(records.drain(), Some(progress));
        bars.give_vec(output.bars);
        quotes.give_vec(output.quotes);
        dead.give_vec(output.dead);
        if output.counts != Counts::default() {
            counts.give(output.counts);
        }
    });
    BarsStreams { bars: bar_stream, quotes: quote_stream, dead: dead_stream, counts: count_stream }
}

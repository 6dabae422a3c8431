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
//! * State: per symbol the latest quote, its unsealed ticks ([`log`]: 32 bytes a trade, 48 a quote) and its open buckets
//!   ([`bucket`]: 144 bytes). Ticks are freed when their buckets have sealed; all amends of a bar are kept for ever.
//! * Cost: a trade in order is one append to its symbol's log; bars are made of what was appended symbol by symbol, at
//!   the epoch's end or before anything else happens to the symbol. A late tick costs O(log n) and moving what is after
//!   it in its chunk; a bust or correction rebuilds its one bar, once an epoch. Sealing looks only at symbols that have
//!   something to seal.
//! * The output frontier promises: all bars, quotes, dead letters and counts of the epochs before it.

mod bucket;
mod log;
mod names;
#[cfg(test)]
mod tests;

pub(crate) use names::SymbolIndex;

use crate::epochs::{Clock, EpochOperator, EpochStream};
use crate::scan::owner;
use bucket::{Bucket, Edit, Edits, UNTOUCHED, is_small};
use log::{Key, Log, Pool, QuoteTick, Trade};
use marea_model::cursor::excerpt;
use marea_model::num::format_fixed;
pub use marea_model::tick::Quote;
use marea_model::ticks::RowKind;
use marea_model::time::format_rfc3339;
use marea_model::{
    Amend, BarBody, Cursor, DeadLetter, Event, Instruments, Nanos, Price, PriceSource, Progress, Reason, Sealed, Size,
    Symbol, Tick, TickSlice, Ticks, Timeframe,
};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

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

/// A bucket that something rare has happened to in this epoch.
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
    /// Bars that nothing rare has happened to, and that have sealed in this epoch.
    sealed: Vec<BarUpsert>,
    /// Symbols with a new latest quote, or new themselves.
    quoted: Vec<u32>,
    /// Sealed bars with a new amend.
    amended: Vec<(u32, Nanos)>,
    counts: Counts,
    dead: Vec<DeadLetter>,
    trades: Pool<Trade>,
    quotes: Pool<QuoteTick>,
}

impl Shared {
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

/// How many trades of a symbol wait to be folded at most: few enough that their sizes add up in 64 bits.
const PENDING: usize = 64;

/// What the loop over ticks touches of a symbol, and nothing else.
struct Hot {
    /// The greatest key of all its ticks: what is greater is in order, and new.
    last: Key,
    /// Trades that came in order since the symbol was folded: they are in no log and no bucket yet. So few that they
    /// stay in cache, while a log is nearly always out of it.
    pending: Vec<Trade>,
    /// While fewer are pending, a small trade in order may be added: [`PENDING`], or 0 where each must be looked at.
    limit: usize,
    /// Whether it stands among the active symbols of this epoch.
    active: bool,
}

/// The state of one symbol.
struct SymbolState {
    number: u32,
    symbol: Symbol,
    source: PriceSource,
    scale: u8,
    /// By open time.
    buckets: VecDeque<Bucket>,
    trades: Log<Trade>,
    quotes: Log<QuoteTick>,
    /// From which bucket on trades were appended in this epoch, and what stood there before it. Later buckets are new.
    appended: Option<(Nanos, Option<BarBody>)>,
    /// Busts and corrections of unsealed ticks, those without a target too.
    edits: BTreeMap<Key, Edits>,
    /// The keys of `edits` that have no target yet.
    waiting: BTreeSet<Key>,
    amends: BTreeMap<Nanos, Amended>,
    /// The open times of `amends` that have not sealed.
    unsealed_amends: BTreeSet<Nanos>,
    quote: Option<Quote>,
    /// The last price accepted, in order of arrival, of those that its bars are made of. After a restart without ticks of
    /// it, the close of its last bar: another one only where its last tick came late or was corrected.
    last_price: Option<Price>,
    /// Whether a record of it was ever accepted.
    seen: bool,
    /// Whether it stands among the quoted symbols of this epoch.
    quoted: bool,
    /// The `sealed_through` at which it has something to do.
    due: Nanos,
}

fn is_jump(last: Price, price: Price) -> bool {
    let (last, moved) = (i128::from(last.0), i128::from(price.0) - i128::from(last.0));
    moved.abs() * 100 > last.abs() * JUMP_PERCENT
}

impl SymbolState {
    fn new(number: usize, symbol: Symbol, instruments: &Instruments) -> (Hot, Self) {
        let instrument = instruments.get(symbol);
        let state = SymbolState {
            number: number as u32,
            symbol,
            source: instrument.price_source,
            scale: instrument.scale,
            buckets: VecDeque::new(),
            trades: Log::new(),
            quotes: Log::new(),
            appended: None,
            edits: BTreeMap::new(),
            waiting: BTreeSet::new(),
            amends: BTreeMap::new(),
            unsealed_amends: BTreeSet::new(),
            quote: None,
            last_price: None,
            seen: false,
            quoted: false,
            due: Nanos::MAX,
        };
        let last = Key { event_time: Nanos::MIN, seq: 0 };
        let mut hot = Hot { last, pending: Vec::new(), limit: 0, active: false };
        state.set_limit(&mut hot);
        (hot, state)
    }

    /// Says whether trades in order may be appended unseen: nothing waits for one of them, and no sum is close to its end.
    fn set_limit(&self, hot: &mut Hot) {
        let plain = self.source == PriceSource::Last
            && self.waiting.last().is_none_or(|key| *key <= hot.last)
            && self.buckets.back().is_none_or(Bucket::is_roomy);
        hot.limit = if plain { PENDING } else { 0 };
    }

    /// Makes bars of the pending trades.
    fn fold(&mut self, hot: &mut Hot, shared: &mut Shared) {
        let mut rest = &hot.pending[..];
        let Some(first) = rest.first() else { return };
        self.trades.extend(rest, &mut shared.trades);
        shared.counts.accepted += rest.len() as i64;
        let mut last = first.price.0;
        let mut jumps = self.last_price.is_some_and(|last| is_jump(last, first.price)) as i64;
        for trade in &rest[1..] {
            // Small, so that this does not overflow.
            jumps += i64::from((trade.price.0 - last).abs() * 100 > last * JUMP_PERCENT as i64);
            last = trade.price.0;
        }
        shared.counts.price_jumps += jumps;
        self.last_price = Some(Price(last));
        let base = shared.base.nanos();
        while let Some(first) = rest.first() {
            let time = first.key.event_time;
            let newest = self.buckets.back().map(|bucket| bucket.open_time);
            let open_time = match newest {
                Some(open_time) if ((time - open_time) as u64) < base as u64 => open_time,
                _ => {
                    let open_time = shared.base.open_time(time);
                    self.buckets.push_back(Bucket::new(open_time));
                    self.schedule(shared, shared.close_time(open_time));
                    open_time
                }
            };
            let Some(bucket) = self.buckets.back_mut() else { return };
            if self.appended.is_none() {
                let before = if bucket.touched == UNTOUCHED { bucket.standing() } else { None };
                self.appended = Some((open_time, before));
            }
            let close_time = open_time.saturating_add(base);
            let inside = match rest.last() {
                Some(last) if last.key.event_time < close_time => rest.len(),
                _ => rest.iter().take_while(|trade| trade.key.event_time < close_time).count(),
            };
            let (these, others) = rest.split_at(inside);
            bucket.append(these);
            rest = others;
        }
        hot.pending.clear();
        self.appear(shared);
    }

    /// The bucket of `event_time`.
    fn find_bucket(&self, shared: &Shared, event_time: Nanos) -> Option<usize> {
        let open_time = shared.base.open_time(event_time);
        match self.buckets.back() {
            Some(last) if last.open_time == open_time => Some(self.buckets.len() - 1),
            _ => self.buckets.binary_search_by_key(&open_time, |bucket| bucket.open_time).ok(),
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
        let i = self.buckets.partition_point(|bucket| bucket.open_time < open_time);
        self.buckets.insert(i, Bucket::new(open_time));
        self.schedule(shared, shared.close_time(open_time));
        Some(i)
    }

    /// What stood at the epoch's start where trades were appended since; none elsewhere.
    fn before_appends(&self, open_time: Nanos) -> Option<Option<BarBody>> {
        let (from, before) = self.appended.filter(|(from, _)| open_time >= *from)?;
        Some(if open_time == from { before } else { None })
    }

    fn touch(&mut self, shared: &mut Shared, i: usize) {
        let bucket = &self.buckets[i];
        if bucket.touched == UNTOUCHED {
            let (symbol, open_time) = (self.number, bucket.open_time);
            let before = self.before_appends(open_time).unwrap_or_else(|| bucket.standing());
            self.buckets[i].touched = shared.touched.len() as u32;
            shared.touched.push(Touched { symbol, open_time, before, sealed: None });
        }
    }

    fn schedule(&mut self, shared: &mut Shared, at: Nanos) {
        if at < self.due {
            self.due = at;
            shared.timers.push(Reverse((at, self.number)));
        }
    }

    /// Takes note of an accepted price that goes into a bar.
    fn priced(&mut self, shared: &mut Shared, price: Price) {
        if let Some(last) = self.last_price.replace(price) {
            shared.counts.price_jumps += i64::from(is_jump(last, price));
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

    /// A trade that was not appended unseen.
    fn trade(&mut self, hot: &mut Hot, shared: &mut Shared, trade: Trade) -> Outcome {
        let key = trade.key;
        let Some(i) = self.bucket(shared, key.event_time) else { return Fault::late(key) };
        if key <= hot.last {
            if let Some(place) = self.trades.find(key) {
                let known = self.trades.get(place);
                return if known.price != trade.price {
                    Fault::conflict("price", trade.price.decimal(self.scale).to_string(), "a trade at another price")
                } else if known.size != trade.size {
                    Fault::conflict("size", size_text(trade.size), "a trade of another size")
                } else {
                    Outcome::Duplicate
                };
            }
            if self.quotes.find(key).is_some() {
                return Fault::conflict("kind", "trade".to_owned(), "a quote");
            }
        }
        let makes_bars = self.source == PriceSource::Last;
        let gross = match self.buckets[i].gross_with(trade.price.turnover(trade.size)) {
            Some(gross) => gross,
            None if makes_bars => return Fault::overflow("size", size_text(trade.size)),
            None => 0,
        };
        let neighbours = self.trades.insert(trade, &mut shared.trades);
        hot.last = hot.last.max(key);
        if makes_bars {
            self.touch(shared, i);
            let bucket = &mut self.buckets[i];
            let [first, last] = ends(neighbours, bucket.open_time, shared.base);
            bucket.insert(trade.price, trade.size, gross, first, last);
            self.priced(shared, trade.price);
        }
        self.appear(shared);
        self.release(shared, key);
        Outcome::Accepted
    }

    fn quote(&mut self, hot: &mut Hot, shared: &mut Shared, quote: QuoteTick) -> Outcome {
        let key = quote.key;
        let price = match self.source {
            PriceSource::Last => None,
            PriceSource::Bid => Some(quote.bid),
            PriceSource::Mid => match Price::mid(quote.bid, quote.ask) {
                Some(mid) => Some(mid),
                None => return Fault::overflow("ask", quote.ask.decimal(self.scale).to_string()),
            },
        };
        let base = shared.base.nanos() as u64;
        let in_newest = |buckets: &VecDeque<Bucket>| {
            buckets.back().is_some_and(|bucket| (key.event_time.wrapping_sub(bucket.open_time) as u64) < base)
        };
        // Buckets are made in the order of the ticks, and what is pending cannot be found.
        if !in_newest(&self.buckets) || key <= hot.last {
            self.fold(hot, shared);
        }
        let i = match in_newest(&self.buckets) {
            true => self.buckets.len() - 1,
            false => match self.bucket(shared, key.event_time) {
                Some(i) => i,
                None => return Fault::late(key),
            },
        };
        if key <= hot.last {
            if let Some(place) = self.quotes.find(key) {
                return compare_quotes(self.quotes.get(place), &quote, self.scale);
            }
            if self.trades.find(key).is_some() {
                return Fault::conflict("kind", "quote".to_owned(), "a trade");
            }
        }
        let neighbours = self.quotes.insert(quote, &mut shared.quotes);
        hot.last = hot.last.max(key);
        if let Some(price) = price {
            self.touch(shared, i);
            let bucket = &mut self.buckets[i];
            let [first, last] = ends(neighbours, bucket.open_time, shared.base);
            bucket.insert(price, Size(0), bucket.gross(), first, last);
            self.priced(shared, price);
        }
        self.latest(shared, quote);
        self.appear(shared);
        self.release(shared, key);
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
        if self.waiting.is_empty() || !self.waiting.remove(&key) {
            return;
        }
        for (edit, cursor) in self.edits.remove(&key).unwrap_or_default().0 {
            shared.counts.held -= 1;
            let outcome = self.edit(shared, key, edit, cursor);
            shared.count(outcome, cursor, || self.tick(key, edit));
        }
    }

    fn edit(&mut self, shared: &mut Shared, key: Key, edit: Edit, cursor: Cursor) -> Outcome {
        if let Some(i) = self.find_bucket(shared, key.event_time) {
            if let Some(place) = self.trades.find(key) {
                let edits = self.edits.entry(key).or_default();
                if edits.0.contains_key(&edit) {
                    return Outcome::Duplicate;
                }
                let trade = *self.trades.get(place);
                let before = edits.effective(&trade);
                edits.0.insert(edit, cursor);
                let after = edits.effective(&trade);
                if self.source == PriceSource::Last && before != after {
                    self.touch(shared, i);
                    if !self.buckets[i].edit(before, after) {
                        if let Some(edits) = self.edits.get_mut(&key) {
                            edits.0.remove(&edit);
                        }
                        let size = after.map_or(Size(0), |(_, size)| size);
                        return Fault::overflow("size", size_text(size));
                    }
                }
                return Outcome::Accepted;
            }
            if self.quotes.find(key).is_some() {
                return Fault::not_a_trade(key, Event::from(edit).kind());
            }
        }
        if shared.is_sealed(shared.base.open_time(key.event_time)) {
            return Fault::late(key);
        }
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
    fn seal(&mut self, hot: &mut Hot, shared: &mut Shared) {
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
        let mut sealed = None;
        while let Some(mut bucket) = self.buckets.pop_front_if(|bucket| shared.is_sealed(bucket.open_time)) {
            let open_time = bucket.open_time;
            let close_time = shared.close_time(open_time);
            bucket.settle(close_time, &self.trades, &self.edits);
            let body = bucket.standing();
            let last = self.seal_amends(shared, open_time).unwrap_or(body);
            if let Some(touched) = shared.touched.get_mut(bucket.touched as usize) {
                touched.sealed = Some(last);
            } else if last != self.before_appends(open_time).unwrap_or(body) {
                shared.sealed.push(BarUpsert { symbol: self.symbol, open_time, body: last });
            }
            sealed = Some(close_time);
        }
        if let Some(close_time) = sealed {
            while self.edits.first_key_value().is_some_and(|(key, _)| key.event_time < close_time) {
                self.edits.pop_first();
            }
            self.trades.free_before(close_time, &mut shared.trades);
            self.quotes.free_before(close_time, &mut shared.quotes);
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
            self.buckets.front().map(|bucket| shared.close_time(bucket.open_time)),
            self.unsealed_amends.first().map(|open| shared.close_time(*open)),
        ];
        if let Some(at) = next.into_iter().flatten().min() {
            self.schedule(shared, at);
        }
        self.set_limit(hot);
    }

    /// The body that amends give a bar that seals now, if there are any.
    fn seal_amends(&mut self, shared: &mut Shared, open_time: Nanos) -> Option<Option<BarBody>> {
        if self.unsealed_amends.is_empty() || !self.unsealed_amends.remove(&open_time) {
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

    /// The bars that trades were appended to in this epoch, and nothing rare has happened to.
    fn give_appended(&mut self, bars: &mut Vec<BarUpsert>) {
        let Some((from, before)) = self.appended.take() else { return };
        let newer = self.buckets.iter().rev().take_while(|bucket| bucket.open_time >= from).count();
        for bucket in self.buckets.range(self.buckets.len() - newer..) {
            if bucket.touched != UNTOUCHED {
                continue;
            }
            let (open_time, body) = (bucket.open_time, bucket.standing());
            let before = if open_time == from { before } else { None };
            if body != before {
                bars.push(BarUpsert { symbol: self.symbol, open_time, body });
            }
        }
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

/// The kernel: ticks in, bars, latest quotes, dead letters and counts out.
pub struct Bars {
    /// This worker, of so many: the symbols that it owns.
    index: usize,
    peers: usize,
    names: SymbolIndex,
    hot: Vec<Hot>,
    symbols: Vec<SymbolState>,
    /// Of the batch that was read last: the number of each code of its dictionary.
    batch: Option<Arc<Ticks>>,
    numbers: Vec<u32>,
    /// Symbols with appended trades.
    active: Vec<u32>,
    shared: Shared,
}

/// The number of a symbol that another worker owns.
const NOT_MINE: u32 = u32::MAX;

impl Bars {
    /// No tick seen yet. Price source and scale of a symbol are those of its first record, for ever.
    pub fn new(instruments: Arc<Instruments>, base: Timeframe) -> Self {
        Bars {
            index: 0,
            peers: 1,
            names: SymbolIndex::default(),
            hot: Vec::new(),
            symbols: Vec::new(),
            batch: None,
            numbers: Vec::new(),
            active: Vec::new(),
            shared: Shared {
                instruments,
                base,
                sealed_through: Nanos::MIN,
                timers: BinaryHeap::new(),
                touched: Vec::new(),
                sealed: Vec::new(),
                quoted: Vec::new(),
                amended: Vec::new(),
                counts: Counts::default(),
                dead: Vec::new(),
                trades: Pool::new(),
                quotes: Pool::new(),
            },
        }
    }

    /// The same, for worker `index` of `peers`: ticks of symbols that others own are passed over.
    pub fn of_worker(self, index: usize, peers: usize) -> Self {
        Bars { index, peers, ..self }
    }

    /// Takes in an epoch: all its ticks, then how far the input has come at its end.
    pub fn epoch(&mut self, ticks: &[TickSlice], progress: Option<Progress>) -> BarsOutput {
        for slice in ticks {
            self.read(slice);
        }
        for number in &self.active {
            let number = *number as usize;
            self.symbols[number].fold(&mut self.hot[number], &mut self.shared);
        }
        if let Some(progress) = progress {
            self.shared.sealed_through = self.shared.sealed_through.max(progress.sealed_through);
        }
        self.seal();
        self.output()
    }

    /// Bytes of the ticks that have not sealed. Costs a look at each symbol's chunks.
    pub fn bytes(&self) -> usize {
        self.symbols.iter().map(|state| state.trades.bytes() + state.quotes.bytes()).sum()
    }

    /// Takes over what has sealed before this process: before the first epoch, whose ticks are then those of bars that have
    /// not.
    pub fn restore(&mut self, sealed: &Sealed, sealed_through: Nanos) {
        self.shared.sealed_through = sealed_through;
        for (symbol, open_time, body) in &sealed.bars {
            if let Some((state, shared)) = self.number(*symbol) {
                state.appear(shared);
                // By open time: the last one stays. What is read once more comes after it.
                state.last_price = Some(body.close);
                shared.sealed.push(BarUpsert { symbol: *symbol, open_time: *open_time, body: Some(*body) });
            }
        }
        for (symbol, quote) in &sealed.quotes {
            if let Some((state, shared)) = self.number(*symbol) {
                state.quote = *quote;
                state.appear(shared);
            }
        }
        for tick in &sealed.amends {
            let Event::Amend(amend) = &tick.event else { continue };
            if let Some((state, shared)) = self.number(tick.symbol) {
                state.appear(shared);
                let amended = state.amends.entry(tick.event_time).or_default();
                amended.known.insert((**amend).clone());
                amended.given = Some(amended.body());
            }
        }
    }

    /// The state of a symbol, if it is this worker's.
    fn number(&mut self, symbol: Symbol) -> Option<(&mut SymbolState, &mut Shared)> {
        if owner(symbol, self.peers) != self.index {
            return None;
        }
        let number = self.names.number(symbol);
        if number == self.symbols.len() {
            let (hot, state) = SymbolState::new(number, symbol, &self.shared.instruments);
            self.hot.push(hot);
            self.symbols.push(state);
        }
        Some((&mut self.symbols[number], &mut self.shared))
    }

    fn number_symbols(&mut self, ticks: &Arc<Ticks>) {
        if self.batch.as_ref().is_some_and(|batch| Arc::ptr_eq(batch, ticks)) {
            return;
        }
        self.numbers.clear();
        for symbol in ticks.symbols() {
            let number = self.number(*symbol).map_or(NOT_MINE, |(state, _)| state.number);
            self.numbers.push(number);
        }
        self.batch = Some(Arc::clone(ticks));
    }

    fn read(&mut self, slice: &TickSlice) {
        self.number_symbols(&slice.ticks);
        let (ticks, rows) = (&*slice.ticks, slice.rows.clone());
        let (codes, kinds) = (&ticks.codes()[rows.clone()], &ticks.kinds()[rows.clone()]);
        let (times, seqs) = (&ticks.event_times()[rows.clone()], &ticks.seqs()[rows.clone()]);
        let (firsts, seconds) = (&ticks.firsts()[rows.clone()], &ticks.seconds()[rows.clone()]);
        let columns = codes.iter().zip(kinds).zip(times.iter().zip(seqs)).zip(firsts.iter().zip(seconds));
        let sealed_through = self.shared.sealed_through;
        for (row, (((code, kind), (time, seq)), (first, second))) in columns.enumerate() {
            let number = self.numbers[*code as usize];
            if number == NOT_MINE {
                continue;
            }
            let hot = &mut self.hot[number as usize];
            let key = Key { event_time: *time, seq: *seq };
            let plain = *kind == RowKind::Trade && is_small(*first, *second) && *time >= sealed_through;
            if plain && hot.pending.len() < hot.limit && key > hot.last {
                hot.last = key;
                hot.pending.push(Trade { key, price: Price(*first), size: Size(*second) });
                if !hot.active {
                    hot.active = true;
                    self.active.push(number);
                }
            } else {
                self.row(ticks, rows.start + row, number);
            }
        }
    }

    /// A row that is not just a trade in order.
    #[inline(never)]
    fn row(&mut self, ticks: &Ticks, row: usize, number: u32) {
        let (symbol, hot) = (&mut self.symbols[number as usize], &mut self.hot[number as usize]);
        let shared = &mut self.shared;
        let key = Key { event_time: ticks.event_times()[row], seq: ticks.seqs()[row] };
        let (first, second) = (ticks.firsts()[row], ticks.seconds()[row]);
        let outcome = match ticks.kinds()[row] {
            RowKind::Quote => {
                let (bid_size, ask_size) = ticks.quote_sizes(row);
                symbol.quote(hot, shared, QuoteTick { key, bid: Price(first), ask: Price(second), bid_size, ask_size })
            }
            RowKind::Trade => {
                symbol.fold(hot, shared);
                // Only too many were pending.
                if hot.limit > 0 && key > hot.last && is_small(first, second) && key.event_time >= shared.sealed_through
                {
                    hot.last = key;
                    hot.pending.push(Trade { key, price: Price(first), size: Size(second) });
                    if !std::mem::replace(&mut hot.active, true) {
                        self.active.push(number);
                    }
                    return;
                }
                symbol.trade(hot, shared, Trade { key, price: Price(first), size: Size(second) })
            }
            RowKind::Edit => {
                symbol.fold(hot, shared);
                let cursor = ticks.cursor(row);
                match ticks.event(row) {
                    Event::Correction { rev, price, size } => {
                        symbol.edit(shared, key, Edit::Correction { rev, price, size }, cursor)
                    }
                    Event::Amend(amend) => symbol.amend(shared, key.event_time, &amend),
                    _ => symbol.edit(shared, key, Edit::Bust, cursor),
                }
            }
        };
        symbol.set_limit(hot);
        match outcome {
            Outcome::Accepted => shared.counts.accepted += 1,
            other => shared.count(other, ticks.cursor(row), || ticks.tick(row)),
        }
    }

    fn seal(&mut self) {
        let through = self.shared.sealed_through;
        while let Some(Reverse((at, number))) =
            self.shared.timers.peek().copied().filter(|Reverse((at, _))| *at <= through)
        {
            self.shared.timers.pop();
            let symbol = &mut self.symbols[number as usize];
            if symbol.due == at {
                symbol.seal(&mut self.hot[number as usize], &mut self.shared);
            }
        }
    }

    fn output(&mut self) -> BarsOutput {
        let shared = &mut self.shared;
        let mut bars = std::mem::take(&mut shared.sealed);
        bars.reserve(self.active.len() + shared.touched.len() + shared.amended.len());
        for number in self.active.drain(..) {
            self.hot[number as usize].active = false;
            self.symbols[number as usize].give_appended(&mut bars);
        }
        for Touched { symbol: number, open_time, before, sealed } in shared.touched.drain(..) {
            let symbol = &mut self.symbols[number as usize];
            let body = match sealed {
                Some(body) => body,
                None => {
                    let newest = symbol.buckets.len().wrapping_sub(1);
                    let i = match symbol.buckets.get(newest) {
                        Some(bucket) if bucket.open_time == open_time => newest,
                        _ => symbol.buckets.partition_point(|bucket| bucket.open_time < open_time),
                    };
                    let bucket = &mut symbol.buckets[i];
                    bucket.touched = UNTOUCHED;
                    let close_time = open_time.saturating_add(shared.base.nanos());
                    bucket.settle(close_time, &symbol.trades, &symbol.edits);
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

/// Whether an entry between these neighbours of the log is the first and the last of its bar.
fn ends(neighbours: [Option<Key>; 2], open_time: Nanos, base: Timeframe) -> [bool; 2] {
    let inside = |key: Key| ((key.event_time.wrapping_sub(open_time)) as u64) < base.nanos() as u64;
    neighbours.map(|key| !key.is_some_and(inside))
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
    /// Bytes that the kernel of this worker holds, as of the last epoch that asked for metrics.
    pub bytes: Rc<Cell<usize>>,
}

/// The operator: every worker is fed all ticks, and takes those of the symbols that it owns.
pub fn bars<'scope>(clock: Clock<'scope>, mut kernel: Bars) -> BarsStreams<'scope> {
    let mut operator = EpochOperator::new("bars", clock);
    let (bars, bar_stream) = operator.output();
    let (quotes, quote_stream) = operator.output();
    let (dead, dead_stream) = operator.output();
    let (counts, count_stream) = operator.output();
    let bytes = Rc::new(Cell::new(0));
    let held = Rc::clone(&bytes);
    operator.build(move |_, feed| {
        if let Some(sealed) = &feed.sealed {
            kernel.restore(sealed, feed.progress.sealed_through);
        }
        let mut output = kernel.epoch(&feed.ticks, Some(feed.progress));
        if feed.metrics {
            held.set(kernel.bytes());
        }
        if feed.sealed.is_some() {
            // Judged and counted before, by the process that was killed.
            (output.dead, output.counts) = (Vec::new(), Counts::default());
        }
        bars.give_vec(output.bars);
        quotes.give_vec(output.quotes);
        dead.give_vec(output.dead);
        if output.counts != Counts::default() {
            counts.give(output.counts);
        }
    });
    BarsStreams { bars: bar_stream, quotes: quote_stream, dead: dead_stream, counts: count_stream, bytes }
}

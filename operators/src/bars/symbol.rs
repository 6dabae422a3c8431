//! The state of one symbol: its open buckets, what is late or has been edited in them, and what becomes of them when
//! they seal.

use super::bucket::{Bucket, Edit, Edits, UNTOUCHED};
use super::hot::Hot;
use super::log::{Around, Key, Log, Pool, QuoteTick, Trade};
use super::shared::{Amended, Fault, Outcome, Shared, Touched};
use super::{BarUpsert, JUMP_PERCENT};
use marea_model::tick::Quote;
use marea_model::{BarBody, Event, Instruments, Nanos, Price, PriceSource, Reason, Symbol, Tick, Timeframe};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The state of one symbol. What an epoch of trades in order needs comes first, and together.
#[repr(C, align(64))]
pub(super) struct SymbolState {
    pub(super) number: u32,
    pub(super) source: PriceSource,
    pub(super) scale: u8,
    /// Whether a record of it was ever accepted.
    pub(super) seen: bool,
    /// Whether it stands among the quoted symbols of this epoch.
    pub(super) quoted: bool,
    pub(super) symbol: Symbol,
    /// The `sealed_through` at which it has something to do.
    pub(super) due: Nanos,
    /// The price, as it came, of the greatest of the ticks that its bars are made of; after a restart, the close of its last
    /// sealed bar.
    pub(super) last_price: Option<Price>,
    /// The keys of `edits` that have no target yet.
    pub(super) waiting: BTreeSet<Key>,
    /// By open time.
    pub(super) buckets: VecDeque<Bucket>,
    /// From which bucket on trades were appended in this epoch, and what stood there before it. Later buckets are new.
    pub(super) appended: Option<(Nanos, Option<BarBody>)>,
    /// Trades that did not come in order, or were not plain; the others are retained for all symbols.
    pub(super) trades: Log<Trade>,
    pub(super) quotes: Log<QuoteTick>,
    /// Busts and corrections of unsealed ticks, those without a target too.
    pub(super) edits: BTreeMap<Key, Edits>,
    pub(super) amends: BTreeMap<Nanos, Amended>,
    /// The open times of `amends` that have not sealed.
    pub(super) unsealed_amends: BTreeSet<Nanos>,
    pub(super) quote: Option<Quote>,
}
pub(super) fn is_jump(last: Price, price: Price) -> bool {
    let (last, moved) = (i128::from(last.0), i128::from(price.0) - i128::from(last.0));
    moved.abs() * 100 > last.abs() * JUMP_PERCENT
}
impl SymbolState {
    pub(super) fn new(number: usize, symbol: Symbol, instruments: &Instruments) -> (Hot, Self) {
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
        (Hot::new(), state)
    }
    /// The bucket of `event_time`.
    pub(super) fn find_bucket(&self, shared: &Shared, event_time: Nanos) -> Option<usize> {
        let open_time = shared.base.open_time(event_time);
        let (first, last) = (self.buckets.front()?, self.buckets.back()?);
        if last.open_time <= open_time || first.open_time > open_time {
            return (last.open_time == open_time).then(|| self.buckets.len() - 1);
        }
        // So many buckets on, if each has a trade.
        let guess = (open_time.wrapping_sub(first.open_time) as u64 / shared.base.nanos() as u64) as usize;
        match self.buckets.get(guess) {
            Some(bucket) if bucket.open_time == open_time => Some(guess),
            _ => self.buckets.binary_search_by_key(&open_time, |bucket| bucket.open_time).ok(),
        }
    }

    /// The bucket of `event_time`, made if it is not there; none if it has sealed.
    pub(super) fn bucket(&mut self, shared: &mut Shared, event_time: Nanos) -> Option<usize> {
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
    pub(super) fn before_appends(&self, open_time: Nanos) -> Option<Option<BarBody>> {
        let (from, before) = self.appended.filter(|(from, _)| open_time >= *from)?;
        Some(if open_time == from { before } else { None })
    }

    pub(super) fn touch(&mut self, shared: &mut Shared, i: usize) {
        let bucket = &self.buckets[i];
        if bucket.touched == UNTOUCHED {
            let (symbol, open_time) = (self.number, bucket.open_time);
            let before = self.before_appends(open_time).unwrap_or_else(|| bucket.standing());
            self.buckets[i].touched = shared.touched.len() as u32;
            shared.touched.push(Touched { symbol, open_time, before, sealed: None });
        }
    }

    pub(super) fn schedule(&mut self, shared: &mut Shared, at: Nanos) {
        if at < self.due {
            self.due = at;
            shared.timers.push(Reverse((at, self.number)));
        }
    }

    /// Takes note of an accepted price that goes into a bar, of a tick after all others.
    pub(super) fn priced(&mut self, shared: &mut Shared, price: Price) {
        if let Some(last) = self.last_price.replace(price) {
            shared.counts.price_jumps += i64::from(is_jump(last, price));
        }
    }

    pub(super) fn appear(&mut self, shared: &mut Shared) {
        if !self.seen {
            self.seen = true;
            self.queue_quote(shared);
        }
    }

    #[inline]
    pub(super) fn queue_quote(&mut self, shared: &mut Shared) {
        if !self.quoted {
            self.quoted = true;
            shared.quoted.push(self.number);
        }
    }

    /// What there is of its trades at a key in a bucket, or else beside it; of the buckets before and after there may be
    /// something too.
    pub(super) fn around(&self, shared: &mut Shared, i: usize, key: Key) -> Around<Trade> {
        let pieces = self.buckets[i].pieces;
        let retained = shared.retained.around(self.number, shared.known, pieces, key);
        if retained.found.is_some() {
            return retained;
        }
        let Around { before, found, after } = self.trades.around(key);
        let after = retained.after.into_iter().chain(after).min();
        Around { before: before.max(retained.before), found, after }
    }

    /// Takes over a trade that was retained for all; not if its bucket has sealed.
    pub(super) fn keep(&mut self, base: Timeframe, trade: Trade, pool: &mut Pool<Trade>) -> bool {
        let open_time = base.open_time(trade.key.event_time);
        let Ok(i) = self.buckets.binary_search_by_key(&open_time, |bucket| bucket.open_time) else { return false };
        self.buckets[i].pieces.remove();
        self.trades.insert(trade, pool);
        true
    }

    /// [`SymbolState::settle_bucket`] of one that is open.
    pub(super) fn settle(&mut self, i: usize, shared: &mut Shared) {
        if self.buckets[i].is_dirty() {
            let mut bucket = std::mem::replace(&mut self.buckets[i], Bucket::new(0));
            self.settle_bucket(&mut bucket, shared);
            self.buckets[i] = bucket;
        }
    }

    /// Brings the bar of a bucket up to its trades, if it has to be.
    fn settle_bucket(&self, bucket: &mut Bucket, shared: &mut Shared) {
        if !bucket.is_dirty() {
            return;
        }
        let (open_time, close_time) = (bucket.open_time, shared.close_time(bucket.open_time));
        let Shared { retained, known, .. } = shared;
        let mut late = self.trades.between(open_time, close_time).copied().peekable();
        let mut in_order = retained.between(self.number, *known, bucket.pieces, open_time, close_time).peekable();
        let merged = std::iter::from_fn(|| match (late.peek(), in_order.peek()) {
            (Some(a), Some(b)) if a.key < b.key => late.next(),
            (_, Some(_)) => in_order.next(),
            _ => late.next(),
        });
        bucket.settle(close_time, merged, &self.edits);
    }

    /// `sealed_through` has reached `due`: what waited too long is dead, what is over seals.
    pub(super) fn seal(&mut self, shared: &mut Shared) {
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
        let over = self.buckets.iter().take_while(|bucket| shared.is_sealed(bucket.open_time)).count();
        for i in 0..over {
            self.settle(i, shared);
            let Bucket { open_time, touched, pieces, .. } = self.buckets[i];
            shared.retained.forget(pieces.rows());
            sealed = Some(shared.close_time(open_time));
            let before = self.before_appends(open_time);
            let body = self.buckets[i].standing();
            if touched == UNTOUCHED && before.is_none() && self.unsealed_amends.is_empty() {
                continue;
            }
            let last = self.seal_amends(shared, open_time).unwrap_or(body);
            if let Some(touched) = shared.touched.get_mut(touched as usize) {
                touched.sealed = Some(last);
            } else if last != before.unwrap_or(body) {
                shared.sealed.push(BarUpsert { symbol: self.symbol, open_time, body: last });
            }
        }
        self.buckets.drain(..over);
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
    }

    /// The body that amends give a bar that seals now, if there are any.
    pub(super) fn seal_amends(&mut self, shared: &mut Shared, open_time: Nanos) -> Option<Option<BarBody>> {
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
    pub(super) fn give_appended(&mut self, bars: &mut Vec<BarUpsert>) {
        let Some((from, before)) = &self.appended else { return };
        let mut newer = self.buckets.len();
        while newer > 0 && self.buckets[newer - 1].open_time >= *from {
            newer -= 1;
        }
        while let Some(bucket) = self.buckets.get(newer) {
            newer += 1;
            if bucket.touched != UNTOUCHED {
                continue;
            }
            let (open_time, body) = (bucket.open_time, bucket.standing());
            let before = if open_time == *from { before } else { &None };
            if body != *before {
                bars.push(BarUpsert { symbol: self.symbol, open_time, body });
            }
        }
        self.appended = None;
    }
    pub(super) fn tick(&self, key: Key, edit: Edit) -> Tick {
        Tick { symbol: self.symbol, event_time: key.event_time, seq: key.seq, event: edit.into() }
    }
}

//! One base bucket until it seals: the accumulator of its bar, and the ticks that it is made of.
//!
//! The log keeps what arrived, sorted by (event_time, seq): 32 bytes a trade, 48 a quote. Busts and corrections stand
//! beside it ([`Edits`]), so that a repeated record is still known as the same. Logs that no longer grow are cut to
//! their length.

use marea_model::{BarBody, Cursor, Event, Nanos, Price, Size};
use std::collections::BTreeMap;

/// What orders and identifies the ticks of a symbol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) event_time: Nanos,
    pub(super) seq: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trade {
    pub(super) key: Key,
    pub(super) price: Price,
    pub(super) size: Size,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QuoteTick {
    pub(super) key: Key,
    pub(super) bid: Price,
    pub(super) ask: Price,
    pub(super) bid_size: Size,
    pub(super) ask_size: Size,
}

/// A bust or a correction of a trade. Orders corrections as they win.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Edit {
    Correction {
        rev: u32,
        price: Price,
        size: Size,
    },
    /// Greater than every correction: it absorbs them.
    Bust,
}

impl From<Edit> for Event {
    fn from(edit: Edit) -> Event {
        match edit {
            Edit::Correction { rev, price, size } => Event::Correction { rev, price, size },
            Edit::Bust => Event::Bust,
        }
    }
}

/// All different busts and corrections of one target, with where each came from.
#[derive(Debug, Default)]
pub(super) struct Edits(pub(super) BTreeMap<Edit, Cursor>);

impl Edits {
    /// What the trade really was: none if it never was.
    pub(super) fn effective(&self, original: &Trade) -> Option<(Price, Size)> {
        match self.0.last_key_value() {
            None => Some((original.price, original.size)),
            Some((Edit::Correction { price, size, .. }, _)) => Some((*price, *size)),
            Some((Edit::Bust, _)) => None,
        }
    }
}

/// Where a key stands in a bucket.
pub(super) enum Found {
    Trade(usize),
    Quote(usize),
    Nothing,
}

/// `touched` of a bucket that nothing has happened to in this epoch.
pub(super) const UNTOUCHED: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Bucket {
    /// The greatest key of both logs: what is greater is in order, and new.
    pub(super) last: Key,
    pub(super) trades: Vec<Trade>,
    pub(super) quotes: Vec<QuoteTick>,
    /// The bar; none stands while its count is 0. Wrong while `dirty`.
    body: BarBody,
    /// Σ |price · size| of the trades in the bar, at most `i128::MAX`: then no order of adding them up overflows.
    gross: i128,
    /// Its entry among the touched buckets of this epoch.
    pub(super) touched: u32,
    /// A trade in it was busted or corrected since the body was built.
    dirty: bool,
    /// A trade in it was ever busted or corrected: positions in the log say nothing about open and close.
    edited: bool,
}

const NO_BAR: BarBody =
    BarBody { open: Price(0), high: Price(0), low: Price(0), close: Price(0), volume: 0, turnover: 0, count: 0 };

impl Bucket {
    pub(super) fn new() -> Self {
        let last = Key { event_time: Nanos::MIN, seq: 0 };
        let (trades, quotes) = (Vec::new(), Vec::new());
        Bucket { last, trades, quotes, body: NO_BAR, gross: 0, touched: UNTOUCHED, dirty: false, edited: false }
    }

    pub(super) fn find(&self, key: Key) -> Found {
        if key > self.last {
            return Found::Nothing;
        }
        if let Ok(i) = self.trades.binary_search_by(|t| t.key.cmp(&key)) {
            return Found::Trade(i);
        }
        match self.quotes.binary_search_by(|q| q.key.cmp(&key)) {
            Ok(i) => Found::Quote(i),
            Err(_) => Found::Nothing,
        }
    }

    /// The bar that stands. Only true after [`Bucket::settle`] if a trade was busted or corrected.
    pub(super) fn standing(&self) -> Option<BarBody> {
        debug_assert!(!self.dirty, "settle first");
        (self.body.count > 0).then_some(self.body)
    }

    /// `gross` with one more trade in the bar, none if a sum could overflow.
    #[inline]
    pub(super) fn gross_with(&self, turnover: i128) -> Option<i128> {
        self.gross.checked_add(turnover.abs())
    }

    /// A trade in order, counted in the bar if `gross` is given.
    #[inline]
    pub(super) fn push_trade(&mut self, trade: Trade, gross: Option<i128>) {
        self.last = trade.key;
        self.trades.push(trade);
        if let Some(gross) = gross {
            self.gross = gross;
            self.include(trade.price, trade.size, false, true);
        }
    }

    /// A quote in order, counted in the bar at `price` if that is given.
    #[inline]
    pub(super) fn push_quote(&mut self, quote: QuoteTick, price: Option<Price>) {
        self.last = quote.key;
        self.quotes.push(quote);
        if let Some(price) = price {
            self.include(price, Size(0), false, true);
        }
    }

    /// A trade anywhere; the key is new.
    pub(super) fn insert_trade(&mut self, trade: Trade, gross: Option<i128>) {
        self.last = self.last.max(trade.key);
        let i = self.trades.partition_point(|t| t.key < trade.key);
        let (first, last) = (i == 0, i == self.trades.len());
        insert(&mut self.trades, i, trade);
        if let Some(gross) = gross {
            self.gross = gross;
            // In an edited bucket the neighbours in the log may not be in the bar: only the end is certain.
            self.dirty |= self.edited && !last;
            self.include(trade.price, trade.size, first, last);
        }
    }

    /// A quote anywhere; the key is new.
    pub(super) fn insert_quote(&mut self, quote: QuoteTick, price: Option<Price>) {
        self.last = self.last.max(quote.key);
        let i = self.quotes.partition_point(|q| q.key < quote.key);
        let (first, last) = (i == 0, i == self.quotes.len());
        insert(&mut self.quotes, i, quote);
        if let Some(price) = price {
            self.include(price, Size(0), first, last);
        }
    }

    /// Only open and close depend on the order, so that a late tick that was never edited needs no rebuild.
    #[inline]
    fn include(&mut self, price: Price, size: Size, first: bool, last: bool) {
        if self.dirty {
            return;
        }
        let body = &mut self.body;
        if body.count == 0 {
            *body = BarBody::first(price, size);
            return;
        }
        if first {
            body.open = price;
        }
        if last {
            body.close = price;
        }
        body.high = body.high.max(price);
        body.low = body.low.min(price);
        // Bounded: count by memory, volume by count · 2^63, turnover by `gross`.
        body.volume += i128::from(size.0);
        body.turnover += price.turnover(size);
        body.count += 1;
    }

    /// A trade of the bar is really `after`, not `before`. False, and nothing done, if a sum could overflow.
    pub(super) fn edit(&mut self, before: Option<(Price, Size)>, after: Option<(Price, Size)>) -> bool {
        let turnover = |trade: Option<(Price, Size)>| trade.map_or(0, |(p, s)| p.turnover(s).abs());
        let Some(gross) = (self.gross - turnover(before)).checked_add(turnover(after)) else { return false };
        self.gross = gross;
        (self.dirty, self.edited) = (true, true);
        true
    }

    /// Rebuilds the bar from its log, if it has to be.
    pub(super) fn settle(&mut self, edits: &BTreeMap<Key, Edits>) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.body = NO_BAR;
        let (Some(first), Some(last)) = (self.trades.first(), self.trades.last()) else { return };
        let mut edits = edits.range(first.key..=last.key).peekable();
        let trades = std::mem::take(&mut self.trades);
        for trade in &trades {
            // An edit without a target is held, so that there may be some between two trades.
            while edits.next_if(|(key, _)| **key < trade.key).is_some() {}
            let edits = edits.next_if(|(key, _)| **key == trade.key);
            let effective = edits.map_or(Some((trade.price, trade.size)), |(_, edits)| edits.effective(trade));
            if let Some((price, size)) = effective {
                self.include(price, size, false, true);
            }
        }
        self.trades = trades;
    }

    /// Gives back what the logs have reserved: no more ticks are expected in order.
    pub(super) fn cut(&mut self) {
        shrink(&mut self.trades);
        shrink(&mut self.quotes);
    }
}

fn insert<T>(log: &mut Vec<T>, i: usize, entry: T) {
    if log.len() == log.capacity() {
        // Late ticks are few: doubling a log for one would cost more memory than it saves time.
        log.reserve_exact(1 + log.len() / 8);
    }
    log.insert(i, entry);
}

fn shrink<T>(log: &mut Vec<T>) {
    if log.capacity() > log.len() + log.len() / 8 {
        log.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retained_trade_is_within_40_bytes() {
        assert_eq!((size_of::<Trade>(), size_of::<QuoteTick>()), (32, 48));
        // Of a log that no longer grows, at most an eighth is slack: 36 bytes.
        assert!(size_of::<Trade>() * 9 / 8 <= 40);
        assert!(size_of::<Bucket>() <= 192, "{}", size_of::<Bucket>());

        let mut bucket = Bucket::new();
        for seq in 0..1000 {
            let key = Key { event_time: 0, seq };
            bucket.push_trade(Trade { key, price: Price(1), size: Size(1) }, bucket.gross_with(1));
        }
        bucket.cut();
        assert!(bucket.trades.capacity() <= 1125, "{}", bucket.trades.capacity());
        for seq in 2000..2200 {
            let key = Key { event_time: -1, seq };
            bucket.insert_trade(Trade { key, price: Price(1), size: Size(1) }, bucket.gross_with(1));
            let (length, capacity) = (bucket.trades.len(), bucket.trades.capacity());
            assert!(capacity <= length + length / 8 + 1, "{length} {capacity}");
        }
    }

    #[test]
    fn a_bust_absorbs_and_the_highest_correction_wins() {
        let key = Key { event_time: 0, seq: 0 };
        let trade = Trade { key, price: Price(10), size: Size(1) };
        let cursor = Cursor { partition: marea_model::Partition::new("p").unwrap(), offset: 0, row: 0 };
        let mut edits = Edits::default();
        let correction = |rev, price| Edit::Correction { rev, price: Price(price), size: Size(1) };
        for (edit, expected) in [
            (correction(1, 30), Some((Price(30), Size(1)))),
            (correction(2, 20), Some((Price(20), Size(1)))),
            (correction(2, 25), Some((Price(25), Size(1)))),
            (correction(1, 40), Some((Price(25), Size(1)))),
            (Edit::Bust, None),
            (correction(3, 50), None),
        ] {
            edits.0.insert(edit, cursor);
            assert_eq!(edits.effective(&trade), expected);
        }
    }
}

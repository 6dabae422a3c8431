//! One base bucket until it seals: the accumulator of its bar. Its trades in order are retained for all
//! symbols, its other ticks stand in the symbol's log; busts and corrections beside it ([`Edits`]), so that a repeated record is still known as the same.

use super::hot::Hot;
use super::log::{Key, Trade};
use super::retained::Pieces;
use marea_model::{BarBody, Cursor, Event, Nanos, Price, Size};
use std::collections::BTreeMap;

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
    /// Whether the trade never was.
    pub(super) fn is_bust(&self) -> bool {
        matches!(self.0.last_key_value(), Some((Edit::Bust, _)))
    }

    /// What the trade really was: none if it never was.
    pub(super) fn effective(&self, original: &Trade) -> Option<(Price, Size)> {
        match self.0.last_key_value() {
            None => Some((original.price, original.size)),
            Some((Edit::Correction { price, size, .. }, _)) => Some((*price, *size)),
            Some((Edit::Bust, _)) => None,
        }
    }
}

/// `touched` of a bucket that no edit, late tick or other rare thing has happened to in this epoch.
pub(super) const UNTOUCHED: u32 = u32::MAX;

/// A price and a size that are not negative and have fewer bits than this are small: 2^32 of their products fit i128.
const SMALL_BITS: u32 = 47;

/// Whether a trade can be added up without looking at what its bar holds. See [`Bucket::is_roomy`].
#[inline]
pub(super) fn is_small(price: i64, size: i64) -> bool {
    ((price | size) as u64) >> SMALL_BITS == 0
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) open_time: Nanos,
    /// Where its trades in order stand.
    pub(super) pieces: Pieces,
    /// Its entry among the touched buckets of this epoch.
    pub(super) touched: u32,
    /// A trade in it was busted or corrected since the body was built.
    dirty: bool,
    /// The bar; none stands while its count is 0. Wrong while `dirty`.
    body: BarBody,
    /// Σ |price · size| of the trades in the bar, at most `i128::MAX`: then no order of adding them up overflows.
    gross: i128,
}

const NO_BAR: BarBody =
    BarBody { open: Price(0), high: Price(0), low: Price(0), close: Price(0), volume: 0, turnover: 0, count: 0 };

impl Bucket {
    pub(super) fn new(open_time: Nanos) -> Self {
        Bucket { open_time, pieces: Pieces::NONE, touched: UNTOUCHED, dirty: false, body: NO_BAR, gross: 0 }
    }

    /// The bar that stands. Only true after [`Bucket::settle`] if a trade was busted or corrected.
    pub(super) fn standing(&self) -> Option<BarBody> {
        debug_assert!(!self.dirty, "settle first");
        (self.body.count > 0).then_some(self.body)
    }

    /// Whether as many small trades as memory holds can be added without an overflow.
    pub(super) fn is_roomy(&self) -> bool {
        self.gross < 1 << 126
    }

    /// `gross` with one more trade in the bar, none if a sum could overflow.
    pub(super) fn gross_with(&self, turnover: i128) -> Option<i128> {
        self.gross.checked_add(turnover.abs())
    }

    /// Small trades that come after all of this bucket, added up. It must be roomy.
    #[inline]
    pub(super) fn append(&mut self, trades: &Hot) {
        self.gross += trades.turnover as i128;
        if self.dirty {
            return;
        }
        let body = &mut self.body;
        let (high, low) = (Price(trades.high), Price(trades.low));
        if body.count == 0 {
            *body = BarBody { open: Price(trades.open), high, low, ..NO_BAR };
        }
        body.high = body.high.max(high);
        body.low = body.low.min(low);
        body.close = Price(trades.close);
        body.volume += i128::from(trades.volume);
        body.turnover += trades.turnover as i128;
        body.count += u64::from(trades.count);
    }

    /// A tick anywhere, counted at `gross` (of a trade) in the bar; whether it is the first and the last in it, none if
    /// that is not known.
    pub(super) fn insert(&mut self, price: Price, size: Size, gross: i128, ends: Option<[bool; 2]>) {
        self.gross = gross;
        match ends {
            Some([first, last]) => self.include(price, size, first, last),
            None => self.dirty = true,
        }
    }

    /// Σ |price · size| of the trades in it.
    pub(super) fn gross(&self) -> i128 {
        self.gross
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
        match before {
            _ if self.dirty => {}
            // A price that is none of its four is nowhere to be seen in the bar.
            Some((price, size)) if self.is_inside(price) => {
                self.body.volume -= i128::from(size.0);
                self.body.turnover -= price.turnover(size);
                self.body.count -= 1;
                if let Some((price, size)) = after {
                    self.include(price, size, false, false);
                }
            }
            _ => self.dirty = true,
        }
        true
    }

    fn is_inside(&self, price: Price) -> bool {
        let BarBody { open, high, low, close, .. } = self.body;
        low < price && price < high && price != open && price != close
    }

    /// Whether the bar must be rebuilt.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Rebuilds the bar, which ends before `close_time`, from its trades.
    pub(super) fn settle(
        &mut self,
        close_time: Nanos,
        trades: impl Iterator<Item = Trade>,
        edits: &BTreeMap<Key, Edits>,
    ) {
        self.dirty = false;
        self.body = NO_BAR;
        let key = |event_time| Key { event_time, seq: 0 };
        let mut edits = edits.range(key(self.open_time)..key(close_time)).peekable();
        for trade in trades {
            // An edit without a target is held, so that there may be some between two trades.
            while edits.next_if(|(key, _)| **key < trade.key).is_some() {}
            let edits = edits.next_if(|(key, _)| **key == trade.key);
            let effective = edits.map_or(Some((trade.price, trade.size)), |(_, edits)| edits.effective(&trade));
            if let Some((price, size)) = effective {
                self.include(price, size, false, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_within_two_cache_lines_and_a_bit() {
        assert!(size_of::<Bucket>() <= 144, "{}", size_of::<Bucket>());
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

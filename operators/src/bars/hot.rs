//! What the loop over ticks touches of a symbol, and nothing else: the bar of the trades that came in order since its
//! bucket was looked up.

use super::JUMP_PERCENT;
use super::bucket::{Bucket, UNTOUCHED, is_small};
use super::log::{Key, Trade};
use super::shared::Shared;
use super::symbol::{SymbolState, is_jump};
use marea_model::{Nanos, Price, PriceSource, Size, Ticks};

/// No row.
const NONE: u32 = u32::MAX;

/// Trades in order of one bucket, as one. All are small and fewer than 2^17, so that nothing overflows.
#[repr(align(64))]
pub(super) struct Hot {
    /// Small trades in order before this belong to the newest bucket, and to what is added up here; `MIN` if nothing is.
    end: Nanos,
    pub(super) high: i64,
    pub(super) low: i64,
    pub(super) volume: u64,
    pub(super) turnover: u128,
    pub(super) count: u32,
    /// The last trade, if it stands in this row of the batch that is being read: then the seq in `last` and `close` are
    /// those of a trade before it. See [`Hot::settle`].
    row: u32,
    /// The last price is small and no less than this, by no more than `calm`; no two such prices are a jump apart.
    from: i64,
    calm: u64,
    /// The greatest key of all ticks of the symbol: what is greater is in order, and new.
    pub(super) last: Key,
    pub(super) open: i64,
    pub(super) close: i64,
    jumps: u32,
    /// Whether it stands among the active symbols of this epoch.
    pub(super) active: bool,
}

impl Hot {
    pub(super) fn new() -> Self {
        Hot {
            end: Nanos::MIN,
            high: 0,
            low: 0,
            volume: 0,
            turnover: 0,
            count: 0,
            row: NONE,
            from: 0,
            calm: 0,
            last: Key { event_time: Nanos::MIN, seq: 0 },
            open: 0,
            close: 0,
            jumps: 0,
            active: false,
        }
    }

    /// Whether a trade can simply be added, whatever its seq.
    #[inline]
    pub(super) fn takes(&self, event_time: Nanos, price: i64, size: i64) -> bool {
        event_time > self.last.event_time && event_time < self.end && self.is_calm(price) && is_small(0, size)
    }

    /// Adds a trade that it takes, of this row of the batch.
    #[inline]
    pub(super) fn add(&mut self, row: usize, event_time: Nanos, price: i64, size: i64) {
        self.row = row as u32;
        self.last.event_time = event_time;
        self.high = self.high.max(price);
        self.low = self.low.min(price);
        self.volume += size as u64;
        self.turnover += u128::from(price as u64) * u128::from(size as u64);
        self.count += 1;
    }

    /// Looks at a trade again: whether it could be added, since it is in order by its seq, or its price has moved.
    /// It must have been settled.
    #[inline]
    pub(super) fn append(&mut self, row: usize, trade: Trade) -> bool {
        let Trade { key, price: Price(price), size: Size(size) } = trade;
        let takes = key > self.last && key.event_time < self.end && is_small(price, size);
        if takes {
            if !self.is_calm(price) {
                self.jumps += u32::from(is_jump(Price(self.close), Price(price)));
                self.calm_at(price);
            }
            self.add(row, key.event_time, price, size);
        }
        takes
    }

    /// Whether a price is small, and surely no jump.
    #[inline]
    fn is_calm(&self, price: i64) -> bool {
        price.wrapping_sub(self.from) as u64 <= self.calm
    }

    /// Small prices within 1/22 of this one are calm: they are at most 1/10.5 of the lowest of them apart.
    fn calm_at(&mut self, price: i64) {
        const { assert!(JUMP_PERCENT == 10, "a 22nd to either side is right for a tenth") };
        let around = price / 22;
        let (from, to) = (price - around, price + around);
        let to = if is_small(to, 0) { to } else { price };
        (self.from, self.calm) = (from, (to - from) as u64);
    }

    /// Looks up the last trade.
    #[inline]
    pub(super) fn settle(&mut self, columns: &Columns<'_>) {
        if self.row != NONE {
            let row = std::mem::replace(&mut self.row, NONE) as usize;
            let Trade { key, price, .. } = columns.trade(row);
            (self.last, self.close) = (key, price.0);
        }
    }
}

/// The columns of a batch that all trades have a place in.
pub(super) struct Columns<'a> {
    times: &'a [Nanos],
    seqs: &'a [u64],
    prices: &'a [i64],
    sizes: &'a [i64],
}

impl<'a> Columns<'a> {
    pub(super) fn of(ticks: &'a Ticks) -> Self {
        let (times, seqs) = (ticks.event_times(), ticks.seqs());
        Columns { times, seqs, prices: ticks.firsts(), sizes: ticks.seconds() }
    }

    /// The trade in a row.
    #[inline]
    pub(super) fn trade(&self, row: usize) -> Trade {
        let key = Key { event_time: self.times[row], seq: self.seqs[row] };
        Trade { key, price: Price(self.prices[row]), size: Size(self.sizes[row]) }
    }
}

impl SymbolState {
    /// Begins anew with a trade, in its bucket: not if it must be looked at, since it is late or not small, something
    /// may wait for it, or a sum is close to its end.
    #[inline(never)]
    pub(super) fn open(&mut self, hot: &mut Hot, shared: &mut Shared, trade: Trade) -> bool {
        let Trade { key, price, size } = trade;
        let time = key.event_time;
        let plain = key > hot.last && is_small(price.0, size.0) && time >= shared.sealed_through;
        if !plain || self.source != PriceSource::Last || self.waiting.last().is_some_and(|key| *key > hot.last) {
            return false;
        }
        self.fold(hot, shared);
        let base = shared.base.nanos();
        let newest = self.buckets.back().filter(|bucket| ((time - bucket.open_time) as u64) < base as u64);
        let open_time = match newest {
            Some(bucket) if !bucket.is_roomy() => return false,
            Some(bucket) => bucket.open_time,
            None => {
                let open_time = shared.base.open_time(time);
                self.buckets.push_back(Bucket::new(open_time));
                shared.opened += 1;
                self.schedule(shared, shared.close_time(open_time));
                open_time
            }
        };
        if self.appended.is_none() {
            let bucket = self.buckets.back().filter(|bucket| bucket.touched == UNTOUCHED);
            self.appended = Some((open_time, bucket.and_then(Bucket::standing)));
        }
        let (price, size) = (price.0, size.0 as u64);
        hot.last = key;
        hot.end = open_time.saturating_add(base);
        (hot.open, hot.high, hot.low, hot.close) = (price, price, price, price);
        hot.volume = size;
        hot.turnover = u128::from(price as u64) * u128::from(size);
        hot.count = 1;
        hot.jumps = u32::from(self.last_price.is_some_and(|last| is_jump(last, Price(price))));
        hot.calm_at(price);
        true
    }

    /// Puts what was added up into its bucket; it must have been settled.
    #[inline]
    pub(super) fn fold(&mut self, hot: &mut Hot, shared: &mut Shared) {
        hot.end = Nanos::MIN;
        if hot.count == 0 {
            return;
        }
        if let Some(bucket) = self.buckets.back_mut() {
            bucket.append(hot);
            bucket.pieces.add(shared.retained.newest(), hot.count);
        }
        shared.retained.want(hot.count as usize);
        shared.counts.accepted += i64::from(hot.count);
        shared.counts.price_jumps += i64::from(hot.jumps);
        self.last_price = Some(Price(hot.close));
        hot.count = 0;
        self.appear(shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that none of them need be looked at.
    #[test]
    fn no_two_calm_prices_are_a_jump_apart_and_all_are_small() {
        let mut hot = Hot::new();
        for price in (0..2_000).chain((0..47).map(|bits| 1 << bits)).chain([(1 << 47) - 1]) {
            hot.calm_at(price);
            let (low, high) = (hot.from, hot.from + hot.calm as i64);
            assert!(hot.is_calm(price) && !hot.is_calm(low - 1) && !hot.is_calm(high + 1), "{price}");
            assert!(is_small(low, high), "{price}");
            assert!(!is_jump(Price(low), Price(high)) && !is_jump(Price(high), Price(low)), "{price}");
        }
    }
}

//! What the loop over ticks touches of a symbol, and nothing else: the bar of the trades that came in order since its
//! bucket was looked up.

use super::JUMP_PERCENT;
use super::bucket::{Bucket, UNTOUCHED, is_small};
use super::log::{Key, Trade};
use super::shared::Shared;
use super::symbol::{SymbolState, is_jump};
use marea_model::{Nanos, Price, PriceSource};

/// Trades in order of one bucket, as one. All are small and fewer than 2^17, so that nothing overflows.
pub(super) struct Hot {
    /// The greatest key of all ticks of the symbol: what is greater is in order, and new.
    pub(super) last: Key,
    /// Small trades in order before this belong to the newest bucket, and to what is added up here; `MIN` if nothing is.
    end: Nanos,
    pub(super) open: i64,
    pub(super) high: i64,
    pub(super) low: i64,
    pub(super) close: i64,
    pub(super) volume: u64,
    pub(super) count: u32,
    jumps: u32,
    pub(super) turnover: u128,
    /// Whether it stands among the active symbols of this epoch.
    pub(super) active: bool,
}

impl Hot {
    pub(super) fn new() -> Self {
        Hot {
            last: Key { event_time: Nanos::MIN, seq: 0 },
            end: Nanos::MIN,
            open: 0,
            high: 0,
            low: 0,
            close: 0,
            volume: 0,
            count: 0,
            jumps: 0,
            turnover: 0,
            active: false,
        }
    }

    /// Whether a trade can simply be added.
    #[inline]
    pub(super) fn takes(&self, key: Key, price: i64, size: i64) -> bool {
        key > self.last && key.event_time < self.end && is_small(price, size)
    }

    /// Adds a trade that it takes.
    #[inline]
    pub(super) fn add(&mut self, key: Key, price: i64, size: i64) {
        self.last = key;
        // Small, so that this does not overflow.
        self.jumps += u32::from((price - self.close).abs() * 100 > self.close * JUMP_PERCENT as i64);
        self.high = self.high.max(price);
        self.low = self.low.min(price);
        self.close = price;
        self.volume += size as u64;
        self.turnover += u128::from(price as u64) * u128::from(size as u64);
        self.count += 1;
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
        true
    }

    /// Puts what was added up into its bucket.
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

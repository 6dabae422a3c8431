//! The bars of one (symbol, timeframe), by open time, exact.
//!
//! * Memory: 72 bytes a bar, the open time in a column of its own and everything else in one cache line; beside it at
//!   most a quarter of the open times, and the rest of a block of 64 bars. A volume beyond ± 9.2e10 units or a count
//!   beyond 4.2e9 takes some 70 bytes aside.
//! * Cost: append and replace the last bar O(1), without ever moving a bar; find O(log n); replace O(log n); insert or
//!   remove in the middle moves what is after it, and a look-up near the end is as cheap as the distance to it.

use marea_model::{BarBody, Nanos, Price};
use std::collections::BTreeMap;
use std::ops::Range;

/// In the place of a volume: look aside.
const WIDE: i64 = i64::MIN;

/// Bars in a block.
const BLOCK: usize = 64;

/// A bar but for its open time, in a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(64))]
struct Packed {
    prices: [i64; 4],
    volume: i64,
    /// The low and the high half.
    turnover: [u64; 2],
    count: u32,
}

impl Packed {
    /// The bar, if it fits.
    fn new(body: &BarBody) -> Option<Packed> {
        let (volume, count) = (i64::try_from(body.volume).ok()?, u32::try_from(body.count).ok()?);
        (volume != WIDE).then(|| Packed { volume, count, ..Packed::beside(body) })
    }

    /// The bar without its volume and count, which stand aside.
    fn beside(body: &BarBody) -> Packed {
        let prices = [body.open.0, body.high.0, body.low.0, body.close.0];
        let turnover = [body.turnover as u64, (body.turnover >> 64) as u64];
        Packed { prices, volume: WIDE, turnover, count: 0 }
    }

    fn body(&self, volume: i128, count: u64) -> BarBody {
        let [open, high, low, close] = self.prices;
        let (open, high, low, close) = (Price(open), Price(high), Price(low), Price(close));
        let turnover = i128::from(self.turnover[0]) | ((self.turnover[1] as i128) << 64);
        BarBody { open, high, low, close, volume, turnover, count }
    }
}

/// Bars in the order of their open times, each open time once.
///
/// ```
/// use marea_model::{BarBody, Price, Size};
/// use marea_operators::history::History;
///
/// let bar = |price| BarBody::first(Price(price), Size(1));
/// let mut history = History::new();
/// assert_eq!(history.set(0, Some(bar(10))), None);
/// assert_eq!(history.set(2, Some(bar(30))), None);
/// assert_eq!(history.set(1, Some(bar(20))), None); // in the past
/// assert_eq!(history.set(2, None), Some(bar(30)));
/// assert_eq!(history.iter().collect::<Vec<_>>(), [(0, bar(10)), (1, bar(20))]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    open_time: Vec<Nanos>,
    /// All full but the last, and none empty.
    blocks: Vec<Vec<Packed>>,
    /// (volume, count) of the bars where one of them does not fit.
    wide: BTreeMap<Nanos, (i128, u64)>,
}

impl History {
    /// Bytes of a bar.
    pub const BYTES: usize = size_of::<Nanos>() + size_of::<Packed>();

    /// No bars.
    pub fn new() -> Self {
        History::default()
    }

    /// How many bars.
    pub fn len(&self) -> usize {
        self.open_time.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open_time.is_empty()
    }

    /// All open times, rising.
    pub fn open_times(&self) -> &[Nanos] {
        &self.open_time
    }

    /// Where the bar that opens at `open_time` stands, or would stand.
    pub fn find(&self, open_time: Nanos) -> Result<usize, usize> {
        match self.open_time.last() {
            None => Err(0),
            Some(last) if *last < open_time => Err(self.len()),
            Some(last) if *last == open_time => Ok(self.len() - 1),
            Some(_) => {
                // Edits are nearly always close to the end: double the step back from there, then halve.
                let mut step = 1;
                while step < self.len() && self.open_time[self.len() - step] > open_time {
                    step *= 2;
                }
                let (from, to) = (self.len().saturating_sub(step), self.len() - step / 2);
                self.open_time[from..to].binary_search(&open_time).map(|i| from + i).map_err(|i| from + i)
            }
        }
    }

    /// The index of the first bar that opens at or after `open_time`.
    pub fn lower_bound(&self, open_time: Nanos) -> usize {
        self.find(open_time).unwrap_or_else(|i| i)
    }

    /// The bar at `index`.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn body(&self, index: usize) -> BarBody {
        let packed = &self.blocks[index / BLOCK][index % BLOCK];
        match packed.volume {
            WIDE => {
                let (volume, count) = self.wide[&self.open_time[index]];
                packed.body(volume, count)
            }
            volume => packed.body(i128::from(volume), u64::from(packed.count)),
        }
    }

    /// The bar that opens at `open_time`.
    pub fn get(&self, open_time: Nanos) -> Option<BarBody> {
        self.find(open_time).ok().map(|i| self.body(i))
    }

    /// The last bar.
    pub fn last(&self) -> Option<(Nanos, BarBody)> {
        self.open_time.last().map(|open_time| (*open_time, self.body(self.len() - 1)))
    }

    /// Indexes of the bars that open in `[from, to)`.
    pub fn range(&self, from: Nanos, to: Nanos) -> Range<usize> {
        let end = self.lower_bound(to);
        self.lower_bound(from).min(end)..end
    }

    /// The bars at `indexes`, with their open times.
    pub fn bodies(&self, indexes: Range<usize>) -> impl ExactSizeIterator<Item = (Nanos, BarBody)> + '_ {
        indexes.map(|i| (self.open_time[i], self.body(i)))
    }

    /// All bars, with their open times.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Nanos, BarBody)> + '_ {
        self.bodies(0..self.len())
    }

    /// How many bars, from the first on, close at or before `through` if each is `length` long.
    pub fn closed(&self, length: Nanos, through: Nanos) -> usize {
        match through.checked_sub(length) {
            Some(last) if last < Nanos::MAX => self.lower_bound(last + 1),
            Some(_) => self.len(),
            None => 0,
        }
    }

    /// Appends a bar, later than the last.
    pub fn push(&mut self, open_time: Nanos, body: &BarBody) {
        debug_assert!(self.open_time.last().is_none_or(|last| *last < open_time), "bars come in time order");
        let packed = self.pack(open_time, body);
        self.reserve();
        self.open_time.push(open_time);
        match self.blocks.last_mut() {
            Some(block) if block.len() < BLOCK => block.push(packed),
            last => {
                // The first block grows: most histories of long timeframes are short.
                let room = if last.is_some() { BLOCK } else { 4 };
                let mut block = Vec::with_capacity(room);
                block.push(packed);
                self.blocks.push(block);
            }
        }
    }

    fn reserve(&mut self) {
        if self.open_time.len() == self.open_time.capacity() {
            self.open_time.reserve_exact(8 + self.open_time.len() / 4);
        }
    }

    /// Gives the last bar another body.
    ///
    /// # Panics
    /// If there is none.
    pub fn replace_last(&mut self, body: &BarBody) {
        let i = self.len() - 1;
        self.forget_wide(i);
        self.blocks[i / BLOCK][i % BLOCK] = self.pack(self.open_time[i], body);
    }

    /// Puts a bar in, replaces it, or takes it out (`None`); gives what stood there.
    pub fn set(&mut self, open_time: Nanos, body: Option<BarBody>) -> Option<BarBody> {
        match (self.find(open_time), body) {
            (Ok(i), Some(body)) => {
                let old = self.body(i);
                self.forget_wide(i);
                self.blocks[i / BLOCK][i % BLOCK] = self.pack(open_time, &body);
                Some(old)
            }
            (Ok(i), None) => {
                let old = self.body(i);
                self.forget_wide(i);
                self.open_time.remove(i);
                self.remove(i);
                Some(old)
            }
            (Err(i), Some(body)) if i == self.len() => {
                self.push(open_time, &body);
                None
            }
            (Err(i), Some(body)) => {
                let packed = self.pack(open_time, &body);
                self.reserve();
                self.open_time.insert(i, open_time);
                self.insert(i, packed);
                None
            }
            (Err(_), None) => None,
        }
    }

    fn forget_wide(&mut self, i: usize) {
        if self.blocks[i / BLOCK][i % BLOCK].volume == WIDE {
            self.wide.remove(&self.open_time[i]);
        }
    }

    /// What does not fit goes aside.
    fn pack(&mut self, open_time: Nanos, body: &BarBody) -> Packed {
        Packed::new(body).unwrap_or_else(|| {
            self.wide.insert(open_time, (body.volume, body.count));
            Packed::beside(body)
        })
    }

    /// The last bar of every block from there on moves into the next.
    fn insert(&mut self, i: usize, packed: Packed) {
        let (mut carried, mut at) = (Some(packed), i % BLOCK);
        for block in &mut self.blocks[i / BLOCK..] {
            let Some(packed) = carried.take() else { return };
            carried = if block.len() == BLOCK { block.pop() } else { None };
            block.insert(at, packed);
            at = 0;
        }
        if let Some(packed) = carried {
            let mut block = Vec::with_capacity(BLOCK);
            block.push(packed);
            self.blocks.push(block);
        }
    }

    /// The first bar of every block after there moves into the one before.
    fn remove(&mut self, i: usize) {
        let first = i / BLOCK;
        self.blocks[first].remove(i % BLOCK);
        for next in first + 1..self.blocks.len() {
            let moved = self.blocks[next].remove(0);
            self.blocks[next - 1].push(moved);
        }
        if self.blocks.last().is_some_and(Vec::is_empty) {
            self.blocks.pop();
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.capacity() * size_of::<Packed>()).sum();
        let headers = self.blocks.capacity() * size_of::<Vec<Packed>>();
        self.open_time.capacity() * size_of::<Nanos>() + blocks + headers + self.wide.len() * 72
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::Size;
    use proptest::prelude::*;

    fn bar(n: i64) -> BarBody {
        BarBody::first(Price(n), Size(n))
    }

    #[test]
    fn a_bar_takes_less_than_80_bytes() {
        assert_eq!(History::BYTES, 72);
        let mut history = History::new();
        for i in 0..100_000 {
            history.set(i, Some(bar(i)));
            // A block of slack is nothing in a history, but much in one of ten.
            let allowed = (history.len() + BLOCK) * 80;
            assert!(history.bytes() <= allowed, "{} bars take {}", history.len(), history.bytes());
        }
        assert!(history.bytes() <= 80 * 100_000);
    }

    #[test]
    fn what_does_not_fit_goes_aside_and_comes_back() {
        let mut history = History::new();
        let wide = BarBody { volume: i128::MAX, count: u64::MAX, ..bar(1) };
        let lowest = BarBody { volume: i128::from(i64::MIN), ..bar(1) };
        let greatest = BarBody { volume: i128::from(i64::MAX), count: u64::from(u32::MAX), ..bar(1) };
        for (open_time, body) in [(0, wide), (1, lowest), (2, greatest)] {
            history.set(open_time, Some(body));
            assert_eq!(history.get(open_time), Some(body));
        }
        assert_eq!(history.wide.len(), 2);
        assert_eq!(history.set(0, Some(bar(5))), Some(wide));
        assert_eq!(history.set(1, None), Some(lowest));
        assert!(history.wide.is_empty());
        assert_eq!(history.get(0), Some(bar(5)));
    }

    #[test]
    fn closed_bars_are_the_first() {
        let mut history = History::new();
        for open_time in [0, 10, 30] {
            history.set(open_time, Some(bar(1)));
        }
        let cases = [(i64::MIN, 0), (9, 0), (10, 1), (20, 2), (39, 2), (40, 3), (i64::MAX, 3)];
        for (through, expected) in cases {
            assert_eq!(history.closed(10, through), expected, "{through}");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_open_time(steps in prop::collection::vec((0_i64..60, prop::option::of(1_i64..5)), 0..200)) {
            let (mut history, mut map) = (History::new(), BTreeMap::new());
            for (open_time, price) in steps {
                let body = price.map(bar);
                let old = match body {
                    Some(body) => map.insert(open_time, body),
                    None => map.remove(&open_time),
                };
                prop_assert_eq!(history.set(open_time, body), old);
                prop_assert!(history.iter().eq(map.iter().map(|(k, v)| (*k, *v))));
                prop_assert_eq!(history.last(), map.last_key_value().map(|(k, v)| (*k, *v)));
            }
            for from in -1..61 {
                prop_assert_eq!(history.get(from), map.get(&from).copied());
                prop_assert_eq!(history.lower_bound(from), map.range(..from).count());
                let some: Vec<_> = history.bodies(history.range(from, from + 7)).collect();
                let expected: Vec<_> = map.range(from..from + 7).map(|(k, v)| (*k, *v)).collect();
                prop_assert_eq!(some, expected);
            }
            prop_assert!(history.range(30, 10).is_empty());
        }
    }
}

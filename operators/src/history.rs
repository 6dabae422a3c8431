//! The bars of one (symbol, timeframe), by open time, exact, in columns.
//!
//! * Memory: 68 bytes a bar (open_time, four prices, volume 8 each, turnover 16, count 4), and at most an eighth more
//!   that the columns have reserved: 76.5. A volume beyond ± 9.2e10 units or a count beyond 4.2e9 does not fit its column
//!   and takes some 70 bytes aside.
//! * Cost: append and replace the last bar O(1); find O(log n); replace O(log n); insert or remove in the middle moves
//!   what is after it, and a look-up near the end is as cheap as the distance to it.

use marea_model::{BarBody, Nanos, Price};
use std::collections::BTreeMap;
use std::ops::Range;

/// In the column of volumes: look aside.
const WIDE: i64 = i64::MIN;

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
    open: Vec<i64>,
    high: Vec<i64>,
    low: Vec<i64>,
    close: Vec<i64>,
    volume: Vec<i64>,
    turnover: Vec<i128>,
    count: Vec<u32>,
    /// (volume, count) of the bars where one of them does not fit its column.
    wide: BTreeMap<Nanos, (i128, u64)>,
}

/// Applies one call to every column.
macro_rules! columns {
    ($history:ident, $column:ident => $call:expr) => {{
        macro_rules! each {
            ($name:ident) => {{
                let $column = &mut $history.$name;
                $call;
            }};
        }
        each!(open_time);
        each!(open);
        each!(high);
        each!(low);
        each!(close);
        each!(volume);
        each!(turnover);
        each!(count);
    }};
}

impl History {
    /// Bytes of a bar within the columns.
    pub const BYTES: usize = 6 * size_of::<i64>() + size_of::<i128>() + size_of::<u32>();

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
    pub fn body(&self, index: usize) -> BarBody {
        let (volume, count) = match self.volume[index] {
            WIDE => self.wide[&self.open_time[index]],
            volume => (i128::from(volume), u64::from(self.count[index])),
        };
        BarBody {
            open: Price(self.open[index]),
            high: Price(self.high[index]),
            low: Price(self.low[index]),
            close: Price(self.close[index]),
            volume,
            turnover: self.turnover[index],
            count,
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

    /// Puts a bar in, replaces it, or takes it out (`None`); gives what stood there.
    pub fn set(&mut self, open_time: Nanos, body: Option<BarBody>) -> Option<BarBody> {
        match (self.find(open_time), body) {
            (Ok(i), Some(body)) => {
                let old = self.body(i);
                self.wide.remove(&open_time);
                (self.open[i], self.high[i]) = (body.open.0, body.high.0);
                (self.low[i], self.close[i]) = (body.low.0, body.close.0);
                (self.volume[i], self.count[i]) = self.narrow(open_time, &body);
                self.turnover[i] = body.turnover;
                Some(old)
            }
            (Ok(i), None) => {
                let old = self.body(i);
                self.wide.remove(&open_time);
                columns!(self, column => column.remove(i));
                Some(old)
            }
            (Err(i), Some(body)) => {
                if self.len() == self.open_time.capacity() {
                    let more = 8 + self.len() / 8;
                    columns!(self, column => column.reserve_exact(more));
                }
                let (volume, count) = self.narrow(open_time, &body);
                self.open_time.insert(i, open_time);
                self.open.insert(i, body.open.0);
                self.high.insert(i, body.high.0);
                self.low.insert(i, body.low.0);
                self.close.insert(i, body.close.0);
                self.volume.insert(i, volume);
                self.turnover.insert(i, body.turnover);
                self.count.insert(i, count);
                None
            }
            (Err(_), None) => None,
        }
    }

    /// Volume and count as their columns hold them; what does not fit goes aside.
    fn narrow(&mut self, open_time: Nanos, body: &BarBody) -> (i64, u32) {
        match (i64::try_from(body.volume), u32::try_from(body.count)) {
            (Ok(volume), Ok(count)) if volume != WIDE => (volume, count),
            _ => {
                self.wide.insert(open_time, (body.volume, body.count));
                (WIDE, 0)
            }
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.open_time.capacity() * Self::BYTES + self.wide.len() * 72
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
        assert_eq!(History::BYTES, 68);
        let mut history = History::new();
        for i in 0..100_000 {
            history.set(i, Some(bar(i)));
            // Eight bars of slack are nothing in a history, but much in one of ten.
            let allowed = (history.len() + 8) * 80;
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

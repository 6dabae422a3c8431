//! The closed bars of one (symbol, timeframe) as columns of doubles: what indicators, rules and backtests step over.
//!
//! A kernel is given `(series, i)`: bar `i` is new, and it may look back at its last `lookback()` bars. A series may
//! begin in mid-history, so `i` is no age: kernels count the bars that they have seen themselves.

use marea_model::time::{DAY, Nanos};

/// One closed bar as doubles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeriesBar {
    /// First instant.
    pub open_time: Nanos,
    /// First price.
    pub open: f64,
    /// Highest price.
    pub high: f64,
    /// Lowest price.
    pub low: f64,
    /// Last price.
    pub close: f64,
    /// Sum of sizes, in units.
    pub volume: f64,
    /// Sum of price · size, in money.
    pub turnover: f64,
}

/// Contiguous closed bars in time order, column by column; all columns have one length.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the columns are the fields of SeriesBar")]
pub struct Series {
    pub open_time: Vec<Nanos>,
    pub open: Vec<f64>,
    pub high: Vec<f64>,
    pub low: Vec<f64>,
    pub close: Vec<f64>,
    pub volume: Vec<f64>,
    pub turnover: Vec<f64>,
}

impl Series {
    /// No bars.
    pub fn new() -> Self {
        Series::default()
    }

    /// No bars, with room for `bars`.
    pub fn with_capacity(bars: usize) -> Self {
        Series {
            open_time: Vec::with_capacity(bars),
            open: Vec::with_capacity(bars),
            high: Vec::with_capacity(bars),
            low: Vec::with_capacity(bars),
            close: Vec::with_capacity(bars),
            volume: Vec::with_capacity(bars),
            turnover: Vec::with_capacity(bars),
        }
    }

    /// Bars held.
    pub fn len(&self) -> usize {
        self.open_time.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open_time.is_empty()
    }

    /// Appends a bar, later than the last.
    pub fn push(&mut self, bar: SeriesBar) {
        debug_assert!(self.open_time.last().is_none_or(|last| *last < bar.open_time), "bars come in time order");
        self.open_time.push(bar.open_time);
        self.open.push(bar.open);
        self.high.push(bar.high);
        self.low.push(bar.low);
        self.close.push(bar.close);
        self.volume.push(bar.volume);
        self.turnover.push(bar.turnover);
    }

    /// Replaces bar `i`.
    pub fn set(&mut self, i: usize, bar: SeriesBar) {
        self.open_time[i] = bar.open_time;
        self.open[i] = bar.open;
        self.high[i] = bar.high;
        self.low[i] = bar.low;
        self.close[i] = bar.close;
        self.volume[i] = bar.volume;
        self.turnover[i] = bar.turnover;
    }

    /// Puts a bar in before bar `i`.
    pub fn insert(&mut self, i: usize, bar: SeriesBar) {
        self.open_time.insert(i, bar.open_time);
        self.open.insert(i, bar.open);
        self.high.insert(i, bar.high);
        self.low.insert(i, bar.low);
        self.close.insert(i, bar.close);
        self.volume.insert(i, bar.volume);
        self.turnover.insert(i, bar.turnover);
    }

    /// Bar `i`.
    pub fn bar(&self, i: usize) -> SeriesBar {
        SeriesBar {
            open_time: self.open_time[i],
            open: self.open[i],
            high: self.high[i],
            low: self.low[i],
            close: self.close[i],
            volume: self.volume[i],
            turnover: self.turnover[i],
        }
    }

    /// Keeps the first `bars`.
    pub fn truncate(&mut self, bars: usize) {
        self.open_time.truncate(bars);
        self.open.truncate(bars);
        self.high.truncate(bars);
        self.low.truncate(bars);
        self.close.truncate(bars);
        self.volume.truncate(bars);
        self.turnover.truncate(bars);
    }

    /// Lets go of the first `bars`.
    pub fn drop_front(&mut self, bars: usize) {
        self.open_time.drain(..bars);
        self.open.drain(..bars);
        self.high.drain(..bars);
        self.low.drain(..bars);
        self.close.drain(..bars);
        self.volume.drain(..bars);
        self.turnover.drain(..bars);
    }

    /// Keeps none, and the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// A copy of the bars from `from` on.
    pub fn tail(&self, from: usize) -> Series {
        (from..self.len()).map(|i| self.bar(i)).collect()
    }
}

impl Extend<SeriesBar> for Series {
    fn extend<I: IntoIterator<Item = SeriesBar>>(&mut self, bars: I) {
        for bar in bars {
            self.push(bar);
        }
    }
}

impl FromIterator<SeriesBar> for Series {
    fn from_iter<I: IntoIterator<Item = SeriesBar>>(bars: I) -> Self {
        let bars = bars.into_iter();
        let mut series = Series::with_capacity(bars.size_hint().0);
        series.extend(bars);
        series
    }
}

/// The UTC day that a bar belongs to, that of its open time: days since 1970-01-01.
#[inline]
pub fn utc_day(open_time: Nanos) -> i32 {
    open_time.div_euclid(DAY) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(open_time: Nanos) -> SeriesBar {
        SeriesBar { open_time, open: 1.0, high: 4.0, low: 0.5, close: 2.0, volume: 3.0, turnover: 6.0 }
    }

    #[test]
    fn bars_come_back_as_they_went_in() {
        let mut series: Series = (0..5).map(bar).collect();
        assert_eq!((series.len(), series.bar(3)), (5, bar(3)));
        assert_eq!(series.tail(3).open_time, [3, 4]);
        series.truncate(2);
        assert_eq!(series.open_time, [0, 1]);
        series.clear();
        assert!(series.is_empty() && series == Series::new());
    }

    #[test]
    fn days_begin_at_midnight_also_before_1970() {
        assert_eq!([-DAY - 1, -DAY, -1, 0, DAY - 1, DAY].map(utc_day), [-2, -1, -1, 0, 0, 1]);
    }
}

//! Where the close stands in the range of the last n bars: [`Donchian`] and [`WilliamsR`].
//!
//! | | formula | output | source |
//! |---|---|---|---|
//! | Donchian | highest high, lowest low, their mean, this bar included | prices | Donchian (1960); TA-Lib `MAX`, `MIN` |
//! | Williams %R | `−100·(highest high − close)/(highest high − lowest low)`, 0 without range | −100 to 0 | Williams (1973); TA-Lib `WILLR` |
//!
//! Parameter: `period` n ≥ 1. Input: high, low, close. From bar n on. Cost: O(n), looks back n − 1 bars.

use super::{Kernel, Values, one, window};
use crate::series::Series;
use std::ops::Range;

/// (lowest low, highest high) of a range of bars.
#[inline]
pub fn extremes(series: &Series, bars: Range<usize>) -> (f64, f64) {
    (window::lowest(&series.low[bars.clone()]), window::highest(&series.high[bars]))
}

/// Donchian's channel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Donchian {
    period: u32,
}

impl Donchian {
    /// Over `period` bars.
    pub fn new(period: u32) -> Self {
        Donchian { period }
    }
}

impl Kernel for Donchian {
    type State = ();

    fn lookback(&self) -> usize {
        self.period as usize - 1
    }

    fn warm_up(&self) -> u32 {
        self.period
    }

    #[inline]
    fn step(&self, (): &mut (), age: u32, series: &Series, i: usize) -> Values {
        if age + 1 < self.period {
            return [None; 4];
        }
        let (lower, upper) = extremes(series, i + 1 - self.period as usize..i + 1);
        [Some(lower), Some((upper + lower) / 2.0), Some(upper), None]
    }
}

/// Williams %R.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct WilliamsR {
    period: u32,
}

impl WilliamsR {
    /// Over `period` bars.
    pub fn new(period: u32) -> Self {
        WilliamsR { period }
    }
}

impl Kernel for WilliamsR {
    type State = ();

    fn lookback(&self) -> usize {
        self.period as usize - 1
    }

    fn warm_up(&self) -> u32 {
        self.period
    }

    #[inline]
    fn step(&self, (): &mut (), age: u32, series: &Series, i: usize) -> Values {
        if age + 1 < self.period {
            return [None; 4];
        }
        let (low, high) = extremes(series, i + 1 - self.period as usize..i + 1);
        one(Some(if high > low { -100.0 * ((high - series.close[i]) / (high - low)) } else { 0.0 }))
    }
}

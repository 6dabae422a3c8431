//! How far the price is from where it was: [`Roc`] and [`Cci`].
//!
//! | | formula | first value (bars) | looks back | source |
//! |---|---|---|---|---|
//! | ROC | `100·(close/close n bars before − 1)`; 0 where that close is 0 | n + 1 | n | TA-Lib `ROC` |
//! | CCI | `(tp − SMA(tp)) / (0.015 · mean distance of tp from it)`, tp = (high + low + close)/3; 0 where nothing differs | n | n − 1 | Lambert (1980); TA-Lib `CCI` |
//!
//! Parameter: `period` n ≥ 1. Input: high, low, close. Output: percent; index points. Cost: O(1); O(n).

use super::{Kernel, Values, one};
use crate::series::Series;

/// Rate of change.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Roc {
    period: u32,
}

impl Roc {
    /// Against the close `period` bars before.
    pub fn new(period: u32) -> Self {
        Roc { period }
    }
}

impl Kernel for Roc {
    type State = ();

    fn lookback(&self) -> usize {
        self.period as usize
    }

    fn warm_up(&self) -> u32 {
        self.period + 1
    }

    #[inline]
    fn step(&self, (): &mut (), age: u32, series: &Series, i: usize) -> Values {
        if age < self.period {
            return [None; 4];
        }
        let before = series.close[i - self.period as usize];
        one(Some(if before == 0.0 { 0.0 } else { 100.0 * (series.close[i] / before - 1.0) }))
    }
}

/// The typical price (high + low + close)/3.
#[inline]
pub fn typical_price(series: &Series, i: usize) -> f64 {
    (series.high[i] + series.low[i] + series.close[i]) / 3.0
}

/// Commodity channel index.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cci {
    period: u32,
}

impl Cci {
    /// Over `period` bars.
    pub fn new(period: u32) -> Self {
        Cci { period }
    }
}

/// The share of the mean that the mean distance from it must exceed: typical prices are rounded to 1e-16 of themselves.
const FLAT: f64 = 1e-13;

impl Kernel for Cci {
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
        let (first, n) = (i + 1 - self.period as usize, f64::from(self.period));
        // Around the first, as in window::mean: a flat window differs nowhere.
        let origin = typical_price(series, first);
        let mean = origin + (first..=i).map(|j| typical_price(series, j) - origin).sum::<f64>() / n;
        let distance = (first..=i).map(|j| (typical_price(series, j) - mean).abs()).sum::<f64>() / n;
        // What is nearer than rounding is flat.
        let flat = distance <= FLAT * mean.abs();
        one(Some(if flat { 0.0 } else { (typical_price(series, i) - mean) / (0.015 * distance) }))
    }
}

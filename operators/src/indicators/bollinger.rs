//! Bollinger bands: `middle` = SMA(n) of closes, `lower` and `upper` = middle ∓ d · standard deviation.
//!
//! Parameters: `period` n ≥ 1, `deviations` d > 0. Input: closes. Output: from bar n on. The deviation is that of the
//! population (÷ n). Cost: O(n), looks back n − 1 bars. Source: Bollinger, *On Bollinger Bands* (2001); TA-Lib
//! `BBANDS`.

use super::{Kernel, Values, window};
use crate::series::Series;

/// The bands' parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bollinger {
    period: u32,
    deviations: f64,
}

/// The bands at one bar.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bands {
    /// middle − d · standard deviation.
    pub lower: f64,
    /// The mean.
    pub middle: f64,
    /// middle + d · standard deviation.
    pub upper: f64,
}

impl Bollinger {
    /// Over `period` bars, `deviations` wide to each side.
    pub fn new(period: u32, deviations: f64) -> Self {
        Bollinger { period, deviations }
    }

    /// The bands at bar `i`, which has n − 1 bars before it.
    #[inline]
    pub fn bands(&self, series: &Series, i: usize) -> Bands {
        let closes = &series.close[i + 1 - self.period as usize..=i];
        let middle = window::mean(closes);
        let width = self.deviations * window::deviation(closes, middle);
        Bands { lower: middle - width, middle, upper: middle + width }
    }
}

impl Kernel for Bollinger {
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
        let bands = self.bands(series, i);
        [Some(bands.lower), Some(bands.middle), Some(bands.upper), None]
    }
}

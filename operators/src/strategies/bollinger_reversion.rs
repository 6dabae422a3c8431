//! Bollinger reversion: long from a close below the lower band, short from one above the upper, until the close reaches
//! the middle; a close beyond the opposite band turns it over at once.
//!
//! Parameters: `period`, `deviations`. Defined from bar `period` on. Cost: O(period), looks back period − 1 bars.
//! Confidence 0.75. Source: Bollinger's bands as a reversion rule.

use super::{RuleKernel, hold};
use crate::indicators::{Bollinger, Kernel, Values};
use crate::series::Series;

/// The rule's parameters; its state is the side held.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BollingerReversion {
    bollinger: Bollinger,
}

impl BollingerReversion {
    /// Over `period` bars, the bands `deviations` away.
    pub fn new(period: u32, deviations: f64) -> Self {
        BollingerReversion { bollinger: Bollinger::new(period, deviations) }
    }
}

impl RuleKernel for BollingerReversion {
    type State = i8;

    fn lookback(&self) -> usize {
        self.bollinger.lookback()
    }

    fn warm_up(&self) -> u32 {
        self.bollinger.warm_up()
    }

    #[inline]
    fn step(&self, side: &mut i8, age: u32, series: &Series, i: usize) -> i8 {
        if age + 1 >= self.bollinger.warm_up() {
            let bands = self.bollinger.bands(series, i);
            hold(side, series.close[i], bands.lower, bands.middle, bands.upper);
        }
        *side
    }

    fn values(&self, _: &i8, age: u32, series: &Series, i: usize) -> Values {
        let close = Some(series.close[i]);
        if age < self.bollinger.warm_up() {
            return [close, None, None, None];
        }
        let bands = self.bollinger.bands(series, i);
        [close, Some(bands.lower), Some(bands.middle), Some(bands.upper)]
    }

    fn confidence(&self, _: &i8) -> f64 {
        0.75
    }
}

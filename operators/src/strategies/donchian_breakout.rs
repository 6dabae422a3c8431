//! Donchian breakout: long from a close above the highest high of the `period` bars before it, short from one below
//! their lowest low, until the opposite break.
//!
//! Parameter: `period` n. Defined from bar n + 1 on. Cost: O(n), looks back n bars. Source: Donchian's channel rule, as
//! the Turtles traded it.

use super::RuleKernel;
use crate::indicators::Values;
use crate::indicators::channel::extremes;
use crate::series::Series;

/// The rule's parameter; its state is the side held.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DonchianBreakout {
    period: u32,
}

impl DonchianBreakout {
    /// The channel of `period` bars.
    pub fn new(period: u32) -> Self {
        DonchianBreakout { period }
    }

    /// (lowest low, highest high) of the bars before bar `i`.
    fn channel(&self, series: &Series, i: usize) -> (f64, f64) {
        extremes(series, i - self.period as usize..i)
    }
}

impl RuleKernel for DonchianBreakout {
    type State = i8;

    fn lookback(&self) -> usize {
        self.period as usize
    }

    fn warm_up(&self) -> u32 {
        self.period + 1
    }

    #[inline]
    fn step(&self, side: &mut i8, age: u32, series: &Series, i: usize) -> i8 {
        if age >= self.period {
            let (lower, upper) = self.channel(series, i);
            if series.close[i] > upper {
                *side = 1;
            } else if series.close[i] < lower {
                *side = -1;
            }
        }
        *side
    }

    fn values(&self, _: &i8, age: u32, series: &Series, i: usize) -> Values {
        let close = Some(series.close[i]);
        if age < self.warm_up() {
            return [close, None, None, None];
        }
        let (lower, upper) = self.channel(series, i);
        [close, Some(lower), Some(upper), None]
    }
}

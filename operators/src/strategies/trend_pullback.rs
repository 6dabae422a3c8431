//! Trend pullback: the side of the close against EMA(trend) while RSI is between its levels (`low` ≤ RSI ≤ `high`),
//! else 0.
//!
//! Parameters: `trend`, RSI's `period`, `low` < `high`, and how the EMA starts. Defined from bar
//! max(trend, period + 1) on. Cost: O(1), looks back 1 bar. Source: the usual "buy the dip within a trend".

use super::{RuleKernel, sign};
use crate::indicators::rsi::{Rsi, RsiState};
use crate::indicators::{Ema, Kernel, Values};
use crate::series::Series;
use marea_model::num::F64;
use marea_model::strategy::EmaSeed;

/// The rule's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TrendPullback {
    trend: Ema,
    rsi: Rsi,
    low: f64,
    high: f64,
}

/// The average and RSI.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TrendPullbackState {
    trend: F64,
    rsi: RsiState,
}

impl TrendPullback {
    /// `low` < `high`.
    pub fn new(trend: u32, period: u32, low: f64, high: f64, seed: EmaSeed) -> Self {
        TrendPullback { trend: Ema::new(trend, seed), rsi: Rsi::new(period), low, high }
    }
}

impl RuleKernel for TrendPullback {
    type State = TrendPullbackState;

    fn lookback(&self) -> usize {
        self.rsi.lookback()
    }

    fn warm_up(&self) -> u32 {
        self.trend.period().max(self.rsi.warm_up())
    }

    #[inline]
    fn step(&self, state: &mut TrendPullbackState, age: u32, series: &Series, i: usize) -> i8 {
        let close = series.close[i];
        self.trend.next(&mut state.trend, age, close);
        self.rsi.next(&mut state.rsi, age, series, i);
        if age + 1 < self.warm_up() || !(self.low..=self.high).contains(&state.rsi.value()) {
            return 0;
        }
        sign(close, state.trend.0)
    }

    fn values(&self, state: &TrendPullbackState, age: u32, series: &Series, i: usize) -> Values {
        let trend = (age >= self.trend.period()).then_some(state.trend.0);
        let rsi = (age >= self.rsi.warm_up()).then(|| state.rsi.value());
        [Some(series.close[i]), trend, rsi, None]
    }
}

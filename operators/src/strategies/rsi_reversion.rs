//! RSI reversion: long from a close with RSI < `oversold`, short from RSI > `overbought`, until RSI reaches 50; an
//! opposite extreme turns it over at once.
//!
//! Parameters: `period`, `oversold` ≤ 50 ≤ `overbought`. Defined from bar period + 1 on. Cost: O(1), looks back 1 bar.
//! Confidence 0.7, and 0.9 while RSI is more than 10 beyond a level. Source: Wilder's reading of RSI.

use super::{RuleKernel, hold};
use crate::indicators::rsi::{Rsi, RsiState};
use crate::indicators::{Kernel, Values};
use crate::series::Series;

/// The rule's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RsiReversion {
    rsi: Rsi,
    oversold: f64,
    overbought: f64,
}

/// RSI, and the side held.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RsiReversionState {
    rsi: RsiState,
    side: i8,
}

/// How far beyond a level RSI is extreme.
const EXTREME: f64 = 10.0;

impl RsiReversion {
    /// `oversold` ≤ 50 ≤ `overbought`.
    pub fn new(period: u32, oversold: f64, overbought: f64) -> Self {
        RsiReversion { rsi: Rsi::new(period), oversold, overbought }
    }

    /// RSI once it is defined.
    pub(super) fn rsi(&self, state: &RsiReversionState, age: u32) -> Option<f64> {
        (age >= self.rsi.warm_up()).then(|| state.rsi.value())
    }
}

impl RuleKernel for RsiReversion {
    type State = RsiReversionState;

    fn lookback(&self) -> usize {
        self.rsi.lookback()
    }

    fn warm_up(&self) -> u32 {
        self.rsi.warm_up()
    }

    #[inline]
    fn step(&self, state: &mut RsiReversionState, age: u32, series: &Series, i: usize) -> i8 {
        self.rsi.next(&mut state.rsi, age, series, i);
        if age + 1 >= self.rsi.warm_up() {
            hold(&mut state.side, state.rsi.value(), self.oversold, 50.0, self.overbought);
        }
        state.side
    }

    fn values(&self, state: &RsiReversionState, age: u32, _: &Series, _: usize) -> Values {
        [self.rsi(state, age), None, None, None]
    }

    fn confidence(&self, state: &RsiReversionState) -> f64 {
        let rsi = state.rsi.value();
        if rsi < self.oversold - EXTREME || rsi > self.overbought + EXTREME { 0.9 } else { 0.7 }
    }
}

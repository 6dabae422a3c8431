//! EMA cross: the sign of EMA(fast) − EMA(slow), 0 where they are equal.
//!
//! Parameters: `fast` < `slow`, and how the EMAs start. Defined from bar `slow` on, with either seed. Cost: O(1), looks
//! back at nothing. Source: the classic two-average crossover.

use super::{RuleKernel, sign};
use crate::indicators::{Ema, Values};
use crate::series::Series;
use marea_model::num::F64;
use marea_model::strategy::EmaSeed;

/// The rule's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct EmaCross {
    fast: Ema,
    slow: Ema,
}

/// The two averages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EmaCrossState {
    fast: F64,
    slow: F64,
}

impl EmaCrossState {
    /// Fast, slow, and nothing.
    pub(super) fn averages(&self) -> [f64; 3] {
        [self.fast.0, self.slow.0, 0.0]
    }

    /// Of what [`EmaCrossState::averages`] gave.
    pub(super) fn of([fast, slow, _]: [f64; 3]) -> Self {
        EmaCrossState { fast: F64(fast), slow: F64(slow) }
    }
}

impl EmaCross {
    /// `fast` < `slow`.
    pub fn new(fast: u32, slow: u32, seed: EmaSeed) -> Self {
        EmaCross { fast: Ema::new(fast, seed), slow: Ema::new(slow, seed) }
    }

    /// What a new close weighs in each average once both are seeded, which they are at the warm-up's end.
    pub(super) fn weights(&self) -> [f64; 3] {
        [self.fast.weight(), self.slow.weight(), 0.0]
    }

    /// EMA(fast) and EMA(slow) once each has had its bars.
    pub(super) fn averages(&self, state: &EmaCrossState, age: u32) -> [Option<f64>; 2] {
        [(self.fast, state.fast), (self.slow, state.slow)].map(|(ema, y)| (age >= ema.period()).then_some(y.0))
    }
}

impl RuleKernel for EmaCross {
    type State = EmaCrossState;

    fn lookback(&self) -> usize {
        0
    }

    fn warm_up(&self) -> u32 {
        self.slow.period()
    }

    #[inline]
    fn step(&self, state: &mut EmaCrossState, age: u32, series: &Series, i: usize) -> i8 {
        let close = series.close[i];
        self.fast.next(&mut state.fast, age, close);
        self.slow.next(&mut state.slow, age, close);
        if age + 1 >= self.slow.period() { sign(state.fast.0, state.slow.0) } else { 0 }
    }

    fn values(&self, state: &EmaCrossState, age: u32, _: &Series, _: usize) -> Values {
        let [fast, slow] = self.averages(state, age);
        [fast, slow, None, None]
    }
}

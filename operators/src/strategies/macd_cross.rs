//! MACD cross: the sign of MACD − its signal line, 0 where they are equal.
//!
//! Parameters: `fast` < `slow`, `signal`, and how the EMAs start. Defined from bar slow + signal − 1 on. Cost: O(1),
//! looks back at nothing. Confidence 0.8. Source: Appel's signal-line crossover.

use super::{RuleKernel, sign};
use crate::indicators::macd::{Macd, MacdState};
use crate::indicators::{Kernel, Values};
use crate::series::Series;
use marea_model::strategy::EmaSeed;

/// The rule's parameters; its state is MACD's.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MacdCross {
    macd: Macd,
}

impl MacdCross {
    /// `fast` < `slow`.
    pub fn new(fast: u32, slow: u32, signal: u32, seed: EmaSeed) -> Self {
        MacdCross { macd: Macd::new(fast, slow, signal, seed) }
    }

    /// What a new value weighs in each average once all are seeded, which they are at the warm-up's end.
    pub(super) fn weights(&self) -> [f64; 3] {
        self.macd.weights()
    }
}

impl RuleKernel for MacdCross {
    type State = MacdState;

    fn lookback(&self) -> usize {
        0
    }

    fn warm_up(&self) -> u32 {
        self.macd.warm_up()
    }

    #[inline]
    fn step(&self, state: &mut MacdState, age: u32, series: &Series, i: usize) -> i8 {
        self.macd.next(state, age, series.close[i]);
        if age + 1 >= self.macd.warm_up() { sign(state.macd(), state.signal()) } else { 0 }
    }

    fn values(&self, state: &MacdState, age: u32, _: &Series, _: usize) -> Values {
        if age < self.macd.warm_up() { [None; 4] } else { [Some(state.macd()), Some(state.signal()), None, None] }
    }

    fn confidence(&self, _: &MacdState) -> f64 {
        0.8
    }
}

//! Relative strength index: `100·g/(g + l)`, g and l being the RMA of gains and of losses of the close.
//!
//! Parameter: `period` ≥ 1. Input: closes. Output: 0 to 100, from the bar n + 1 on; 0 where nothing has moved at all.
//! Cost: O(1), looks back 1 bar. Source: Wilder, *New Concepts* (1978); TA-Lib `RSI`.

use super::{Kernel, Rma, Values, one};
use crate::series::Series;
use marea_model::num::F64;

/// RSI's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rsi {
    average: Rma,
}

/// Average gain and loss.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RsiState {
    gain: F64,
    loss: F64,
}

impl RsiState {
    /// 0 to 100; meaningless before the warm-up's end.
    #[inline]
    pub fn value(&self) -> f64 {
        let sum = self.gain.0 + self.loss.0;
        if sum > 0.0 { 100.0 * (self.gain.0 / sum) } else { 0.0 }
    }
}

impl Rsi {
    /// Over `period` changes.
    pub fn new(period: u32) -> Self {
        Rsi { average: Rma::new(period) }
    }

    /// Takes bar `i`, the `age`-th after the first (which may saturate at n + 1).
    #[inline]
    pub fn next(&self, state: &mut RsiState, age: u32, series: &Series, i: usize) {
        if age > 0 {
            let change = series.close[i] - series.close[i - 1];
            let (gain, loss) = if change > 0.0 { (change, 0.0) } else { (0.0, 0.0 - change) };
            self.average.next(&mut state.gain, age - 1, gain);
            self.average.next(&mut state.loss, age - 1, loss);
        }
    }
}

impl Kernel for Rsi {
    type State = RsiState;

    fn lookback(&self) -> usize {
        1
    }

    fn warm_up(&self) -> u32 {
        self.average.period() + 1
    }

    #[inline]
    fn step(&self, state: &mut RsiState, age: u32, series: &Series, i: usize) -> Values {
        self.next(state, age, series, i);
        one((age + 1 >= self.warm_up()).then(|| state.value()))
    }
}

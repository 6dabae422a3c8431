//! Average true range: the RMA of `max(high − low, |high − previous close|, |low − previous close|)`.
//!
//! Parameter: `period` n ≥ 1. Input: high, low, close. Output: in price units, from bar n + 1 on (the first bar has no
//! true range). Cost: O(1), looks back 1 bar. Source: Wilder, *New Concepts* (1978); TA-Lib `ATR`.

use super::{Kernel, Rma, Values, one};
use crate::series::Series;
use marea_model::num::F64;

/// The true range of bar `i`, which has a bar before it.
#[inline]
pub fn true_range(series: &Series, i: usize) -> f64 {
    let (high, low, previous) = (series.high[i], series.low[i], series.close[i - 1]);
    (high - low).max((high - previous).abs()).max((low - previous).abs())
}

/// ATR's parameters; its state is the average.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Atr {
    average: Rma,
}

impl Atr {
    /// Over `period` true ranges.
    pub fn new(period: u32) -> Self {
        Atr { average: Rma::new(period) }
    }

    /// Takes bar `i`, the `age`-th after the first (which may saturate at n + 1).
    #[inline]
    pub fn next(&self, state: &mut F64, age: u32, series: &Series, i: usize) {
        if age > 0 {
            self.average.next(state, age - 1, true_range(series, i));
        }
    }
}

impl Kernel for Atr {
    type State = F64;

    fn lookback(&self) -> usize {
        1
    }

    fn warm_up(&self) -> u32 {
        self.average.period() + 1
    }

    #[inline]
    fn step(&self, state: &mut F64, age: u32, series: &Series, i: usize) -> Values {
        self.next(state, age, series, i);
        one((age + 1 >= self.warm_up()).then_some(state.0))
    }
}

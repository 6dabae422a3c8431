//! Directional movement: `plus_di`, `minus_di`, `dx` = 100·|+DI − −DI|/(+DI + −DI), and `adx`, Wilder's average of
//! `dx`.
//!
//! Parameter: `period` n ≥ 1. Input: high, low, close. Output: 0 to 100; the DIs and `dx` from bar n + 1, `adx` from
//! bar 2n on. Cost: O(1), looks back 1 bar. Source: Wilder, *New Concepts* (1978); TA-Lib `PLUS_DI`, `MINUS_DI`,
//! `DX`, `ADX`.
//!
//! A movement counts on the side that moved more, and only outwards. Movements and true ranges are Wilder *sums*: the
//! plain sum of the first n − 1, then `s − s/n + x`. Where both DIs are 0, `dx` has no meaning: it keeps its last
//! value, and `adx` does not move (while it is seeded, such a bar counts 0). Without any range the DIs are 0.

use super::{Kernel, Values, atr::true_range};
use crate::series::Series;
use marea_model::num::F64;

/// ADX's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adx {
    period: u32,
    n: f64,
}

/// The sums of movements and ranges, and the last DX and ADX.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AdxState {
    plus: F64,
    minus: F64,
    range: F64,
    dx: F64,
    adx: F64,
}

impl Adx {
    /// Over `period` bars.
    pub fn new(period: u32) -> Self {
        Adx { period, n: f64::from(period) }
    }
}

impl Kernel for Adx {
    type State = AdxState;

    fn lookback(&self) -> usize {
        1
    }

    fn warm_up(&self) -> u32 {
        2 * self.period
    }

    #[inline]
    fn step(&self, state: &mut AdxState, age: u32, series: &Series, i: usize) -> Values {
        if age == 0 {
            return [None; 4];
        }
        let (up, down) = (series.high[i] - series.high[i - 1], series.low[i - 1] - series.low[i]);
        let plus = if up > down && up > 0.0 { up } else { 0.0 };
        let minus = if down > up && down > 0.0 { down } else { 0.0 };
        let movements = [plus, minus, true_range(series, i)];
        let sums = [&mut state.plus, &mut state.minus, &mut state.range];
        if age < self.period {
            for (sum, x) in sums.into_iter().zip(movements) {
                sum.0 += x;
            }
            return [None; 4];
        }
        for (sum, x) in sums.into_iter().zip(movements) {
            sum.0 = sum.0 - sum.0 / self.n + x;
        }
        let range = state.range.0;
        let index = |sum: F64| if range > 0.0 { 100.0 * (sum.0 / range) } else { 0.0 };
        let (plus_di, minus_di) = (index(state.plus), index(state.minus));
        let both = plus_di + minus_di;
        let moved = both > 0.0;
        if moved {
            state.dx.0 = 100.0 * ((plus_di - minus_di).abs() / both);
        }
        let seeding = age - self.period;
        if seeding < self.period {
            let dx = if moved { state.dx.0 } else { 0.0 };
            state.adx.0 += (dx - state.adx.0) / f64::from(seeding + 1);
        } else if moved {
            state.adx.0 += (state.dx.0 - state.adx.0) / self.n;
        }
        let adx = (age + 1 >= self.warm_up()).then_some(state.adx.0);
        [adx, Some(plus_di), Some(minus_di), Some(state.dx.0)]
    }
}

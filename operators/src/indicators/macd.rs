//! Moving average convergence/divergence: `macd` = EMA(fast) − EMA(slow), `signal` = EMA(signal) of it, `hist` their
//! difference.
//!
//! Parameters: `fast` < `slow`, `signal` ≥ 1, and how the EMAs start. Input: closes. Output: all three from bar
//! slow + signal − 1 on. Cost: O(1), looks back at nothing. Source: Appel (1979); TA-Lib `MACD`.
//!
//! With the seed `sma` both EMAs begin at bar `slow`, as TA-Lib has it: the fast one is seeded with the mean of the
//! `fast` closes up to there, so it differs at first from a plain EMA(fast). The signal is seeded with the mean of
//! the first `signal` differences. With `first` everything begins at the first close, and is shown as late.

use super::{Ema, Kernel, Values};
use crate::series::Series;
use marea_model::num::F64;
use marea_model::strategy::EmaSeed;

/// MACD's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Macd {
    fast: Ema,
    slow: Ema,
    signal: Ema,
    fast_start: u32,
    signal_start: u32,
}

/// The three averages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MacdState {
    fast: F64,
    slow: F64,
    signal: F64,
}

impl MacdState {
    /// Fast, slow, signal.
    pub(crate) fn averages(&self) -> [f64; 3] {
        [self.fast.0, self.slow.0, self.signal.0]
    }

    /// Of what [`MacdState::averages`] gave.
    pub(crate) fn of([fast, slow, signal]: [f64; 3]) -> Self {
        MacdState { fast: F64(fast), slow: F64(slow), signal: F64(signal) }
    }

    /// EMA(fast) − EMA(slow).
    #[inline]
    pub fn macd(&self) -> f64 {
        self.fast.0 - self.slow.0
    }

    /// Its average.
    #[inline]
    pub fn signal(&self) -> f64 {
        self.signal.0
    }
}

impl Macd {
    /// `fast` < `slow`.
    pub fn new(fast: u32, slow: u32, signal: u32, seed: EmaSeed) -> Self {
        let (fast_start, signal_start) = match seed {
            EmaSeed::Sma => (slow - fast, slow - 1),
            EmaSeed::First => (0, 0),
        };
        let [fast, slow, signal] = [fast, slow, signal].map(|n| Ema::new(n, seed));
        Macd { fast, slow, signal, fast_start, signal_start }
    }

    /// What a new value weighs in each average once all are seeded, which they are at the warm-up's end.
    pub(crate) fn weights(&self) -> [f64; 3] {
        [self.fast.weight(), self.slow.weight(), self.signal.weight()]
    }

    /// Takes the close `x` after `age` closes (which may saturate at the warm-up).
    #[inline]
    pub fn next(&self, state: &mut MacdState, age: u32, x: f64) {
        if age >= self.fast_start {
            self.fast.next(&mut state.fast, age - self.fast_start, x);
        }
        self.slow.next(&mut state.slow, age, x);
        if age >= self.signal_start {
            let macd = state.macd();
            self.signal.next(&mut state.signal, age - self.signal_start, macd);
        }
    }
}

impl Kernel for Macd {
    type State = MacdState;

    fn lookback(&self) -> usize {
        0
    }

    fn warm_up(&self) -> u32 {
        self.slow.period() + self.signal.period() - 1
    }

    #[inline]
    fn step(&self, state: &mut MacdState, age: u32, series: &Series, i: usize) -> Values {
        self.next(state, age, series.close[i]);
        if age + 1 < self.warm_up() {
            return [None; 4];
        }
        let (macd, signal) = (state.macd(), state.signal());
        [Some(macd), Some(signal), Some(macd - signal), None]
    }
}

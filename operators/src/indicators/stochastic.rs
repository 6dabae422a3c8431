//! Slow stochastic: `k` = SMA(smooth) of `100·(close − lowest low)/(highest high − lowest low)` over k bars, `d` =
//! SMA(d) of `k`.
//!
//! Parameters: `k`, `smooth`, `d` ≥ 1. Input: high, low, close. Output: 0 to 100, both from bar k + smooth + d − 2 on
//! (as TA-Lib shows %K no earlier than %D); a window without range counts 0. Cost: O(k·(smooth + d)), looks back
//! k + smooth + d − 3 bars. Source: Lane (1984); TA-Lib `STOCH`.

use super::{Kernel, Values, window};
use crate::series::Series;

/// The stochastic's parameters.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stochastic {
    k: usize,
    smooth: usize,
    d: usize,
}

impl Stochastic {
    /// The longest `smooth` and `d`, since each adds a pass over the window.
    pub const MAX_SMOOTH: u32 = 100;

    /// Over `k` bars, smoothed over `smooth` ≤ [`Stochastic::MAX_SMOOTH`], its signal over `d`, likewise.
    pub fn new(k: u32, smooth: u32, d: u32) -> Self {
        Stochastic { k: k as usize, smooth: smooth as usize, d: d as usize }
    }

    fn fast(&self, series: &Series, i: usize) -> f64 {
        let bars = i + 1 - self.k..=i;
        let (low, high) = (window::lowest(&series.low[bars.clone()]), window::highest(&series.high[bars]));
        if high > low { 100.0 * ((series.close[i] - low) / (high - low)) } else { 0.0 }
    }
}

impl Kernel for Stochastic {
    type State = ();

    fn lookback(&self) -> usize {
        self.k + self.smooth + self.d - 3
    }

    fn warm_up(&self) -> u32 {
        self.lookback() as u32 + 1
    }

    fn step(&self, (): &mut (), age: u32, series: &Series, i: usize) -> Values {
        if age + 1 < self.warm_up() {
            return [None; 4];
        }
        // Fast %K of the last smooth + d − 1 bars, then %K of the last d, both oldest first.
        let mut fast = [0.0; 2 * Stochastic::MAX_SMOOTH as usize];
        let fast = &mut fast[..self.smooth + self.d - 1];
        let first = i + 1 - fast.len();
        for (j, value) in fast.iter_mut().enumerate() {
            *value = self.fast(series, first + j);
        }
        let mut slow = [0.0; Stochastic::MAX_SMOOTH as usize];
        let slow = &mut slow[..self.d];
        for (j, value) in slow.iter_mut().enumerate() {
            *value = window::mean(&fast[j..j + self.smooth]);
        }
        [Some(slow[self.d - 1]), Some(window::mean(slow)), None, None]
    }
}

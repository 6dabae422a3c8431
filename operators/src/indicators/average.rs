//! Averages: [`Sma`] over a window, [`Ema`] and [`Rma`] as recurrences.
//!
//! | | formula | first value (bars) | looks back | cost | source |
//! |---|---|---|---|---|---|
//! | SMA | mean of the last n closes | n | n − 1 | O(n) | TA-Lib `SMA` |
//! | EMA | `y += 2/(n+1)·(x − y)`, seeded with the SMA of the first n or with the first value | n | 0 | O(1) | TA-Lib `EMA` |
//! | RMA | `y += (x − y)/n`, seeded with the SMA of the first n | n | 0 | O(1) | Wilder, *New Concepts* (1978) |
//!
//! Until a recurrence is seeded, its state is the running mean `y += (x − y)/j` of the j values so far, which is the
//! SMA at the n-th. Rounding contracts with the recurrence: a state that differed by an edit is bit-equal again some
//! hundreds of bars later (EMA(26): about 330).

use super::{Kernel, Values, one, window};
use crate::series::Series;
use marea_model::num::F64;
use marea_model::strategy::EmaSeed;

/// One value of a recurrence `y += k·(x − y)`, or of the running mean that seeds it while `age` < `seed`.
#[inline(always)]
fn recur(y: &mut F64, age: u32, seed: u32, k: f64, x: f64) {
    let weight = if age >= seed { k } else { 1.0 / f64::from(age + 1) };
    y.0 += weight * (x - y.0);
}

/// The simple moving average of closes. Parameter: `period` ≥ 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sma {
    period: u32,
}

impl Sma {
    /// Over `period` bars.
    pub fn new(period: u32) -> Self {
        Sma { period }
    }
}

impl Kernel for Sma {
    type State = ();

    fn lookback(&self) -> usize {
        self.period as usize - 1
    }

    fn warm_up(&self) -> u32 {
        self.period
    }

    #[inline]
    fn step(&self, (): &mut (), age: u32, series: &Series, i: usize) -> Values {
        if age + 1 < self.period {
            one(None)
        } else {
            one(Some(window::mean(&series.close[i + 1 - self.period as usize..=i])))
        }
    }
}

/// The exponential moving average. Parameters: `period` ≥ 1, and how it starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ema {
    period: u32,
    seed: u32,
    k: f64,
}

impl Ema {
    /// Over `period` bars.
    pub fn new(period: u32, seed: EmaSeed) -> Self {
        let seed = match seed {
            EmaSeed::Sma => period,
            EmaSeed::First => 1,
        };
        Ema { period, seed, k: 2.0 / (f64::from(period) + 1.0) }
    }

    /// The length n.
    pub fn period(&self) -> u32 {
        self.period
    }

    /// What a new value weighs once the average is seeded: 2/(n + 1).
    pub(crate) fn weight(&self) -> f64 {
        self.k
    }

    /// Takes the value `x` after `age` values (which may saturate at n).
    #[inline(always)]
    pub fn next(&self, y: &mut F64, age: u32, x: f64) {
        recur(y, age, self.seed, self.k, x);
    }
}

impl Kernel for Ema {
    type State = F64;

    fn lookback(&self) -> usize {
        0
    }

    /// With the seed `first` it has a value from the first bar on.
    fn warm_up(&self) -> u32 {
        self.seed
    }

    #[inline]
    fn step(&self, y: &mut F64, age: u32, series: &Series, i: usize) -> Values {
        self.next(y, age, series.close[i]);
        one((age + 1 >= self.seed).then_some(y.0))
    }
}

/// Wilder's average. Parameter: `period` ≥ 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rma {
    period: u32,
    k: f64,
}

impl Rma {
    /// Over `period` bars.
    pub fn new(period: u32) -> Self {
        Rma { period, k: 1.0 / f64::from(period) }
    }

    /// The length n.
    pub fn period(&self) -> u32 {
        self.period
    }

    /// Takes the value `x` after `age` values (which may saturate at n).
    #[inline(always)]
    pub fn next(&self, y: &mut F64, age: u32, x: f64) {
        recur(y, age, self.period, self.k, x);
    }
}

impl Kernel for Rma {
    type State = F64;

    fn lookback(&self) -> usize {
        0
    }

    fn warm_up(&self) -> u32 {
        self.period
    }

    #[inline]
    fn step(&self, y: &mut F64, age: u32, series: &Series, i: usize) -> Values {
        self.next(y, age, series.close[i]);
        one((age + 1 >= self.period).then_some(y.0))
    }
}

//! Price and volume: [`Obv`] and [`Vwap`].
//!
//! | | formula | output | source |
//! |---|---|---|---|
//! | OBV | starts at the first volume; + volume on a higher close, − on a lower one | units, from the first bar on | Granville (1963); TA-Lib `OBV` |
//! | VWAP | Σ tp·volume ÷ Σ volume since the UTC day's first bar, tp = (high + low + close)/3 | a price; none while the day has no volume | session VWAP on the typical price |
//!
//! Input: high, low, close, volume, open time. Cost: O(1), looks back 1 bar. OBV sums over all history, so an edit
//! stays in it; a VWAP forgets it at the next midnight.

use super::{Kernel, Values, momentum::typical_price, one};
use crate::series::{Series, utc_day};
use marea_model::num::F64;

/// On-balance volume.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Obv;

impl Kernel for Obv {
    type State = F64;

    fn lookback(&self) -> usize {
        1
    }

    fn warm_up(&self) -> u32 {
        1
    }

    #[inline]
    fn step(&self, sum: &mut F64, age: u32, series: &Series, i: usize) -> Values {
        let volume = series.volume[i];
        if age == 0 || series.close[i] > series.close[i - 1] {
            sum.0 += volume;
        } else if series.close[i] < series.close[i - 1] {
            sum.0 -= volume;
        }
        one(Some(sum.0))
    }
}

/// Volume-weighted average price of the UTC day.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Vwap;

/// The day's sums.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VwapState {
    turnover: F64,
    volume: F64,
}

impl Kernel for Vwap {
    type State = VwapState;

    fn lookback(&self) -> usize {
        1
    }

    fn warm_up(&self) -> u32 {
        1
    }

    #[inline]
    fn step(&self, state: &mut VwapState, age: u32, series: &Series, i: usize) -> Values {
        if age > 0 && utc_day(series.open_time[i]) != utc_day(series.open_time[i - 1]) {
            *state = VwapState::default();
        }
        state.turnover.0 += typical_price(series, i) * series.volume[i];
        state.volume.0 += series.volume[i];
        one((state.volume.0 > 0.0).then(|| state.turnover.0 / state.volume.0))
    }
}

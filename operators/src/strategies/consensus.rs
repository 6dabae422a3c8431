//! Consensus: the common side of an EMA cross, an RSI reversion and a MACD cross, 0 where they differ.
//!
//! Parameters: those of the three, whose own rules hold; each holds its side from where it is defined itself. Defined
//! where all are. Cost: O(1), looks back 1 bar.

use super::ema_cross::EmaCrossState;
use super::rsi_reversion::RsiReversionState;
use super::{EmaCross, MacdCross, RsiReversion, RuleKernel};
use crate::indicators::Values;
use crate::indicators::macd::MacdState;
use crate::series::Series;

/// The rule's parameters: three rules.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Consensus {
    ema: EmaCross,
    rsi: RsiReversion,
    macd: MacdCross,
}

/// Their states.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ConsensusState {
    ema: EmaCrossState,
    rsi: RsiReversionState,
    macd: MacdState,
}

impl Consensus {
    /// Of these rules.
    pub fn new(ema: EmaCross, rsi: RsiReversion, macd: MacdCross) -> Self {
        Consensus { ema, rsi, macd }
    }
}

impl RuleKernel for Consensus {
    type State = ConsensusState;

    fn lookback(&self) -> usize {
        self.ema.lookback().max(self.rsi.lookback()).max(self.macd.lookback())
    }

    fn warm_up(&self) -> u32 {
        self.ema.warm_up().max(self.rsi.warm_up()).max(self.macd.warm_up())
    }

    #[inline]
    fn step(&self, state: &mut ConsensusState, age: u32, series: &Series, i: usize) -> i8 {
        let ema = self.ema.step(&mut state.ema, age, series, i);
        let rsi = self.rsi.step(&mut state.rsi, age, series, i);
        let macd = self.macd.step(&mut state.macd, age, series, i);
        if ema == rsi && rsi == macd { ema } else { 0 }
    }

    fn values(&self, state: &ConsensusState, age: u32, _: &Series, _: usize) -> Values {
        let [fast, slow] = self.ema.averages(&state.ema, age);
        let hist = (age >= self.macd.warm_up()).then(|| state.macd.macd() - state.macd.signal());
        [fast, slow, self.rsi.rsi(&state.rsi, age), hist]
    }
}

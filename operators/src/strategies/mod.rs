//! The rules of strategies: from closed bars to a side, −1, 0 or 1.
//!
//! A [`RuleKernel`] is a rule's parameters, indicators included; its state is apart. Which sides a strategy takes, its
//! stops and fills are the backtest's business ([`crate::backtest`]), and so is the warm-up: before all of a rule's
//! indicators are defined (and ATR(14), where there is a stop or target) its side counts 0, and what it says at the
//! warm-up's end counts, also if it has said so before.
//!
//! All indicators of a rule begin at the same bar, so one age serves them all.

pub mod bollinger_reversion;
pub mod consensus;
pub mod donchian_breakout;
pub mod ema_cross;
pub mod macd_cross;
pub mod rsi_reversion;
pub mod trend_pullback;

pub use bollinger_reversion::BollingerReversion;
pub use consensus::Consensus;
pub use donchian_breakout::DonchianBreakout;
pub use ema_cross::EmaCross;
pub use macd_cross::MacdCross;
pub use rsi_reversion::RsiReversion;
pub use trend_pullback::TrendPullback;

use crate::indicators::Values;
use crate::indicators::macd::MacdState;
use crate::series::Series;
use marea_model::strategy::{EmaSeed, Kind};
use std::fmt::Debug;

/// A rule's parameters, and how it steps over bars.
pub trait RuleKernel: Copy + PartialEq + Debug {
    /// What it carries from bar to bar; its default is before the first bar.
    type State: Copy + Default + Eq + Debug;

    /// How many bars before bar `i` a step reads.
    fn lookback(&self) -> usize;

    /// How many bars it takes until all of its indicators are defined.
    fn warm_up(&self) -> u32;

    /// Takes bar `i`, before which `age` bars of history have been stepped, and gives the side at its close; `age` may
    /// saturate at [`RuleKernel::warm_up`] or later.
    fn step(&self, state: &mut Self::State, age: u32, series: &Series, i: usize) -> i8;

    /// The values behind the side after bar `i`, the `age`-th, in the order of
    /// [`marea_model::recommendation::reason_names`].
    fn values(&self, state: &Self::State, age: u32, series: &Series, i: usize) -> Values;

    /// How much its side is worth in a recommendation, 0 to 1.
    fn confidence(&self, _: &Self::State) -> f64 {
        1.0
    }
}

/// 1 where `a` > `b`, −1 where it is below, 0 where they are equal.
#[inline]
fn sign(a: f64, b: f64) -> i8 {
    i8::from(a > b) - i8::from(a < b)
}

/// A reversion's side after the value `x`: entered beyond `low` or `high`, left where `middle` is reached.
#[inline]
fn hold(side: &mut i8, x: f64, low: f64, middle: f64, high: f64) {
    if x < low {
        *side = 1;
    } else if x > high {
        *side = -1;
    } else if (*side == 1 && x >= middle) || (*side == -1 && x <= middle) {
        *side = 0;
    }
}

macro_rules! rules {
    ($($name:ident),* $(,)?) => {
        /// The rule of a strategy: one of the kernels.
        #[derive(Clone, Copy, PartialEq, Debug)]
        #[expect(missing_docs, reason = "each is its kernel")]
        pub enum Rule {
            $($name($name),)*
        }

        /// The state of a rule: that of the same kernel.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "each is its kernel's")]
        pub enum RuleState {
            $($name(<$name as RuleKernel>::State),)*
        }

        impl Rule {
            /// The state before the first bar.
            pub fn start(&self) -> RuleState {
                match self {
                    $(Rule::$name(_) => RuleState::$name(Default::default()),)*
                }
            }

            /// How many bars before bar `i` a step reads.
            pub fn lookback(&self) -> usize {
                match self {
                    $(Rule::$name(kernel) => kernel.lookback(),)*
                }
            }

            /// How many bars it takes until all of its indicators are defined.
            pub fn warm_up(&self) -> u32 {
                match self {
                    $(Rule::$name(kernel) => kernel.warm_up(),)*
                }
            }
        }
    };
}

rules!(EmaCross, RsiReversion, MacdCross, BollingerReversion, DonchianBreakout, TrendPullback, Consensus,);

/// Evaluates `$body` with the kernel of a rule and its state, whichever they are: the dispatch, once outside of loops.
macro_rules! with_rule {
    ($rule:expr, $state:expr, |$kernel:ident, $of:ident| $body:expr) => {{
        use $crate::strategies::{Rule, RuleState};
        match ($rule, $state) {
            (Rule::EmaCross($kernel), RuleState::EmaCross($of)) => $body,
            (Rule::RsiReversion($kernel), RuleState::RsiReversion($of)) => $body,
            (Rule::MacdCross($kernel), RuleState::MacdCross($of)) => $body,
            (Rule::BollingerReversion($kernel), RuleState::BollingerReversion($of)) => $body,
            (Rule::DonchianBreakout($kernel), RuleState::DonchianBreakout($of)) => $body,
            (Rule::TrendPullback($kernel), RuleState::TrendPullback($of)) => $body,
            (Rule::Consensus($kernel), RuleState::Consensus($of)) => $body,
            _ => unreachable!("a rule is stepped with the state that it started"),
        }
    }};
}
pub(crate) use with_rule;

/// Rules whose step, once warm, is the same few recurrences over closes for every strategy of the kind, so that several
/// strategies step as one: `y += weight · (x − y)`, and the side is the sign of a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crossing {
    /// x is the close for `y[0]` and `y[1]`; the sign of `y[0]` − `y[1]`.
    Ema,
    /// Likewise, and x is `y[0]` − `y[1]` for `y[2]`; the sign of that difference − `y[2]`.
    Macd,
}

impl Rule {
    /// Whether it is one of these, and its weights.
    pub(crate) fn crossing(&self) -> Option<(Crossing, [f64; 3])> {
        match self {
            Rule::EmaCross(rule) => Some((Crossing::Ema, rule.weights())),
            Rule::MacdCross(rule) => Some((Crossing::Macd, rule.weights())),
            _ => None,
        }
    }
}

impl RuleState {
    /// The averages of a [`Crossing`]; of other rules nothing.
    pub(crate) fn averages(&self) -> [f64; 3] {
        match self {
            RuleState::EmaCross(state) => state.averages(),
            RuleState::MacdCross(state) => state.averages(),
            _ => [0.0; 3],
        }
    }

    /// The state of a [`Crossing`] with these averages.
    pub(crate) fn of_averages(crossing: Crossing, averages: [f64; 3]) -> RuleState {
        match crossing {
            Crossing::Ema => RuleState::EmaCross(ema_cross::EmaCrossState::of(averages)),
            Crossing::Macd => RuleState::MacdCross(MacdState::of(averages)),
        }
    }
}

impl Rule {
    /// The rule of a kind of strategy whose EMAs start with `seed`.
    pub fn new(kind: &Kind, seed: EmaSeed) -> Rule {
        match *kind {
            Kind::EmaCross { fast, slow } => Rule::EmaCross(EmaCross::new(fast, slow, seed)),
            Kind::RsiReversion { period, oversold, overbought } => {
                Rule::RsiReversion(RsiReversion::new(period, oversold.0, overbought.0))
            }
            Kind::MacdCross { fast, slow, signal } => Rule::MacdCross(MacdCross::new(fast, slow, signal, seed)),
            Kind::BollingerReversion { period, deviations } => {
                Rule::BollingerReversion(BollingerReversion::new(period, deviations.0))
            }
            Kind::DonchianBreakout { period } => Rule::DonchianBreakout(DonchianBreakout::new(period)),
            Kind::TrendPullback { trend, period, low, high } => {
                Rule::TrendPullback(TrendPullback::new(trend, period, low.0, high.0, seed))
            }
            Kind::Consensus { fast, slow, period, oversold, overbought, macd_fast, macd_slow, macd_signal } => {
                Rule::Consensus(Consensus::new(
                    EmaCross::new(fast, slow, seed),
                    RsiReversion::new(period, oversold.0, overbought.0),
                    MacdCross::new(macd_fast, macd_slow, macd_signal, seed),
                ))
            }
        }
    }

    /// Takes bar `i`: see [`RuleKernel::step`].
    pub fn step(&self, state: &mut RuleState, age: u32, series: &Series, i: usize) -> i8 {
        with_rule!(self, state, |kernel, state| kernel.step(state, age, series, i))
    }

    /// The values behind the side: see [`RuleKernel::values`].
    pub fn values(&self, state: &RuleState, age: u32, series: &Series, i: usize) -> Values {
        with_rule!(self, state, |kernel, state| kernel.values(state, age, series, i))
    }

    /// How much its side is worth: see [`RuleKernel::confidence`].
    pub fn confidence(&self, state: &RuleState) -> f64 {
        with_rule!(self, state, |kernel, state| kernel.confidence(state))
    }
}

#[cfg(test)]
mod tests;

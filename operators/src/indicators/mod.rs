//! Indicators: TA-Lib's definitions and warm-up, over [`Series`], bar by bar.
//!
//! A [`Kernel`] is parameters; its state is apart, small and compared bit by bit. Stepping bar `i` reads at most
//! `lookback()` bars before it and gives up to four values, each `None` until it is defined. Two runs go on equally
//! from where their states are equal and their last `lookback()` bars too; that is where an edit's effect ends.
//!
//! [`IndicatorSpec`] is an indicator by name, `ema(12)`; [`Indicator`] is one at work, with its state:
//!
//! ```
//! use marea_operators::{indicators::IndicatorSpec, series::{Series, SeriesBar}};
//!
//! let spec: IndicatorSpec = "sma(2)".parse()?;
//! let mut indicator = spec.build();
//! let mut series = Series::new();
//! let mut values = Vec::new();
//! for (i, close) in [1.0, 2.0, 4.0].into_iter().enumerate() {
//!     let open_time = i as i64;
//!     series.push(SeriesBar { open_time, open: close, high: close, low: close, close, volume: 1.0, turnover: close });
//!     values.push(indicator.step(&series, i)[0]);
//! }
//! assert_eq!(values, [None, Some(1.5), Some(3.0)]);
//! # Ok::<(), marea_operators::indicators::IndicatorError>(())
//! ```

pub mod adx;
pub mod atr;
pub mod average;
pub mod bollinger;
pub mod channel;
pub mod macd;
pub mod momentum;
pub mod rsi;
pub mod stochastic;
pub mod volume;
pub mod window;

pub use adx::Adx;
pub use atr::Atr;
pub use average::{Ema, Rma, Sma};
pub use bollinger::Bollinger;
pub use channel::{Donchian, WilliamsR};
pub use macd::Macd;
pub use momentum::{Cci, Roc};
pub use rsi::Rsi;
pub use stochastic::Stochastic;
pub use volume::{Obv, Vwap};

use crate::series::Series;
use marea_model::num::F64;
use marea_model::strategy::{EmaSeed, MAX_PERIOD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::{self, Debug};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// The values of an indicator at one bar, in the order of [`IndicatorSpec::outputs`]; undefined ones are none.
pub type Values = [Option<f64>; 4];

/// A single value.
#[inline(always)]
fn one(value: Option<f64>) -> Values {
    [value, None, None, None]
}

/// An indicator's parameters, and how it steps over bars.
pub trait Kernel: Copy + PartialEq + Debug {
    /// What it carries from bar to bar; its default is before the first bar.
    type State: Copy + Default + Eq + Debug;

    /// How many bars before bar `i` a step reads.
    fn lookback(&self) -> usize;

    /// How many bars it takes until all of its values are defined.
    fn warm_up(&self) -> u32;

    /// Takes bar `i`, before which `age` bars of history have been stepped; `age` may saturate at [`Kernel::warm_up`].
    fn step(&self, state: &mut Self::State, age: u32, series: &Series, i: usize) -> Values;
}

macro_rules! kernels {
    ($($name:ident),* $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Debug)]
        enum Working {
            $($name($name, <$name as Kernel>::State),)*
        }

        $(impl From<$name> for Indicator {
            fn from(kernel: $name) -> Self {
                Indicator { age: 0, working: Working::$name(kernel, Default::default()) }
            }
        })*

        impl Indicator {
            /// Takes bar `i`, the one after the last that it took, and gives the values of that bar.
            #[inline]
            pub fn step(&mut self, series: &Series, i: usize) -> Values {
                match &mut self.working {
                    $(Working::$name(kernel, state) => {
                        let values = kernel.step(state, self.age, series, i);
                        self.age = (self.age + 1).min(kernel.warm_up());
                        values
                    })*
                }
            }

            /// Takes `bars` one after the other: as [`Indicator::step`], but the kernel is told apart only once.
            pub fn run(&mut self, series: &Series, bars: Range<usize>, mut each: impl FnMut(usize, &Values)) {
                match &mut self.working {
                    $(Working::$name(kernel, state) => {
                        // A copy that nothing else can see stays in registers.
                        let (mut local, mut age) = (*state, self.age);
                        for i in bars {
                            let values = kernel.step(&mut local, age, series, i);
                            age = (age + 1).min(kernel.warm_up());
                            each(i, &values);
                        }
                        (*state, self.age) = (local, age);
                    })*
                }
            }

            /// How many bars before bar `i` a step reads.
            pub fn lookback(&self) -> usize {
                match &self.working {
                    $(Working::$name(kernel, _) => kernel.lookback(),)*
                }
            }

            /// How many bars it takes until all of its values are defined.
            pub fn warm_up(&self) -> u32 {
                match &self.working {
                    $(Working::$name(kernel, _) => kernel.warm_up(),)*
                }
            }
        }
    };
}

kernels!(Sma, Ema, Rma, Rsi, Macd, Bollinger, Atr, Stochastic, Adx, Cci, WilliamsR, Roc, Obv, Donchian, Vwap);

/// An indicator at work: its parameters, its state, and its age up to the warm-up's end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Indicator {
    age: u32,
    working: Working,
}

/// An indicator by name and parameters; periods are in bars. Reads as it prints: `macd(12,26,9)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the kernels say what each is, and the parameters are theirs")]
pub enum IndicatorSpec {
    Sma { period: u32 },
    Ema { period: u32 },
    Rma { period: u32 },
    Rsi { period: u32 },
    Macd { fast: u32, slow: u32, signal: u32 },
    Bollinger { period: u32, deviations: F64 },
    Atr { period: u32 },
    Stochastic { k: u32, smooth: u32, d: u32 },
    Adx { period: u32 },
    Cci { period: u32 },
    WilliamsR { period: u32 },
    Roc { period: u32 },
    Obv,
    Donchian { period: u32 },
    Vwap,
}

/// Every indicator: its name, its parameters, and the suffixes of its outputs where it has several.
const KNOWN: [(&str, &[&str], &[&str]); 15] = [
    ("sma", &["period"], &[]),
    ("ema", &["period"], &[]),
    ("rma", &["period"], &[]),
    ("rsi", &["period"], &[]),
    ("macd", &["fast", "slow", "signal"], &["macd", "signal", "hist"]),
    ("bollinger", &["period", "deviations"], &["lower", "middle", "upper"]),
    ("atr", &["period"], &[]),
    ("stochastic", &["k", "smooth", "d"], &["k", "d"]),
    ("adx", &["period"], &["adx", "plus_di", "minus_di", "dx"]),
    ("cci", &["period"], &[]),
    ("williams_r", &["period"], &[]),
    ("roc", &["period"], &[]),
    ("obv", &[], &[]),
    ("donchian", &["period"], &["lower", "middle", "upper"]),
    ("vwap", &[], &[]),
];

/// Why a text is no indicator: the parameter, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {must}")]
pub struct IndicatorError {
    /// The parameter.
    pub parameter: String,
    /// What it must be.
    pub must: String,
}

impl IndicatorSpec {
    /// All indicators with their usual parameters.
    pub fn defaults() -> Vec<IndicatorSpec> {
        vec![
            IndicatorSpec::Sma { period: 20 },
            IndicatorSpec::Ema { period: 12 },
            IndicatorSpec::Ema { period: 26 },
            IndicatorSpec::Rma { period: 14 },
            IndicatorSpec::Rsi { period: 14 },
            IndicatorSpec::Macd { fast: 12, slow: 26, signal: 9 },
            IndicatorSpec::Bollinger { period: 20, deviations: F64(2.0) },
            IndicatorSpec::Atr { period: 14 },
            IndicatorSpec::Stochastic { k: 14, smooth: 3, d: 3 },
            IndicatorSpec::Adx { period: 14 },
            IndicatorSpec::Cci { period: 20 },
            IndicatorSpec::WilliamsR { period: 14 },
            IndicatorSpec::Roc { period: 10 },
            IndicatorSpec::Obv,
            IndicatorSpec::Donchian { period: 20 },
            IndicatorSpec::Vwap,
        ]
    }

    /// Its row of [`KNOWN`].
    fn known(&self) -> usize {
        match self {
            IndicatorSpec::Sma { .. } => 0,
            IndicatorSpec::Ema { .. } => 1,
            IndicatorSpec::Rma { .. } => 2,
            IndicatorSpec::Rsi { .. } => 3,
            IndicatorSpec::Macd { .. } => 4,
            IndicatorSpec::Bollinger { .. } => 5,
            IndicatorSpec::Atr { .. } => 6,
            IndicatorSpec::Stochastic { .. } => 7,
            IndicatorSpec::Adx { .. } => 8,
            IndicatorSpec::Cci { .. } => 9,
            IndicatorSpec::WilliamsR { .. } => 10,
            IndicatorSpec::Roc { .. } => 11,
            IndicatorSpec::Obv => 12,
            IndicatorSpec::Donchian { .. } => 13,
            IndicatorSpec::Vwap => 14,
        }
    }

    /// The full names of its values, in the order of [`Values`]: `ema(12)`, or `macd(12,26,9).macd`, `….signal`,
    /// `….hist`.
    pub fn outputs(&self) -> Vec<Arc<str>> {
        let (_, _, suffixes) = KNOWN[self.known()];
        if suffixes.is_empty() {
            return vec![self.to_string().into()];
        }
        suffixes.iter().map(|suffix| format!("{self}.{suffix}").into()).collect()
    }

    /// How many bars before bar `i` a step reads.
    pub fn lookback(&self) -> usize {
        self.build().lookback()
    }

    /// How many bars it takes until all of its values are defined.
    pub fn warm_up(&self) -> u32 {
        self.build().warm_up()
    }

    /// The indicator before its first bar.
    pub fn build(&self) -> Indicator {
        match *self {
            IndicatorSpec::Sma { period } => Sma::new(period).into(),
            IndicatorSpec::Ema { period } => Ema::new(period, EmaSeed::Sma).into(),
            IndicatorSpec::Rma { period } => Rma::new(period).into(),
            IndicatorSpec::Rsi { period } => Rsi::new(period).into(),
            IndicatorSpec::Macd { fast, slow, signal } => Macd::new(fast, slow, signal, EmaSeed::Sma).into(),
            IndicatorSpec::Bollinger { period, deviations } => Bollinger::new(period, deviations.0).into(),
            IndicatorSpec::Atr { period } => Atr::new(period).into(),
            IndicatorSpec::Stochastic { k, smooth, d } => Stochastic::new(k, smooth, d).into(),
            IndicatorSpec::Adx { period } => Adx::new(period).into(),
            IndicatorSpec::Cci { period } => Cci::new(period).into(),
            IndicatorSpec::WilliamsR { period } => WilliamsR::new(period).into(),
            IndicatorSpec::Roc { period } => Roc::new(period).into(),
            IndicatorSpec::Obv => Obv.into(),
            IndicatorSpec::Donchian { period } => Donchian::new(period).into(),
            IndicatorSpec::Vwap => Vwap.into(),
        }
    }

    /// What is wrong with its parameters, if anything is. What is read from a text has passed.
    pub fn check(self) -> Result<IndicatorSpec, IndicatorError> {
        let bars = |parameter: &str, value: u32, most: u32| {
            if (1..=most).contains(&value) {
                Ok(())
            } else {
                refuse(parameter, format!("{value} must be 1 to {most} bars"))
            }
        };
        match self {
            IndicatorSpec::Macd { fast, slow, signal } => {
                bars("fast", fast, MAX_PERIOD)?;
                bars("slow", slow, MAX_PERIOD)?;
                if fast >= slow {
                    return refuse("fast", format!("{fast} must be below slow = {slow}"));
                }
                bars("signal", signal, MAX_PERIOD)?;
            }
            IndicatorSpec::Bollinger { period, deviations } => {
                bars("period", period, MAX_PERIOD)?;
                // `contains` is false for NaN.
                if !(0.1..=10.0).contains(&deviations.0) {
                    return refuse("deviations", format!("{deviations} must be 0.1 to 10"));
                }
            }
            IndicatorSpec::Stochastic { k, smooth, d } => {
                bars("k", k, MAX_PERIOD)?;
                bars("smooth", smooth, Stochastic::MAX_SMOOTH)?;
                bars("d", d, Stochastic::MAX_SMOOTH)?;
            }
            IndicatorSpec::Sma { period }
            | IndicatorSpec::Ema { period }
            | IndicatorSpec::Rma { period }
            | IndicatorSpec::Rsi { period }
            | IndicatorSpec::Atr { period }
            | IndicatorSpec::Adx { period }
            | IndicatorSpec::Cci { period }
            | IndicatorSpec::WilliamsR { period }
            | IndicatorSpec::Roc { period }
            | IndicatorSpec::Donchian { period } => bars("period", period, MAX_PERIOD)?,
            IndicatorSpec::Obv | IndicatorSpec::Vwap => {}
        }
        Ok(self)
    }
}

fn refuse<T>(parameter: &str, must: impl Into<String>) -> Result<T, IndicatorError> {
    Err(IndicatorError { parameter: parameter.to_owned(), must: must.into() })
}

impl fmt::Display for IndicatorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, ..) = KNOWN[self.known()];
        match self {
            IndicatorSpec::Obv | IndicatorSpec::Vwap => write!(f, "{name}"),
            IndicatorSpec::Macd { fast, slow, signal } => write!(f, "{name}({fast},{slow},{signal})"),
            IndicatorSpec::Bollinger { period, deviations } => write!(f, "{name}({period},{deviations})"),
            IndicatorSpec::Stochastic { k, smooth, d } => write!(f, "{name}({k},{smooth},{d})"),
            IndicatorSpec::Sma { period }
            | IndicatorSpec::Ema { period }
            | IndicatorSpec::Rma { period }
            | IndicatorSpec::Rsi { period }
            | IndicatorSpec::Atr { period }
            | IndicatorSpec::Adx { period }
            | IndicatorSpec::Cci { period }
            | IndicatorSpec::WilliamsR { period }
            | IndicatorSpec::Roc { period }
            | IndicatorSpec::Donchian { period } => write!(f, "{name}({period})"),
        }
    }
}

impl FromStr for IndicatorSpec {
    type Err = IndicatorError;

    fn from_str(text: &str) -> Result<Self, IndicatorError> {
        let (name, given) = match text.strip_suffix(')').and_then(|t| t.split_once('(')) {
            Some((name, given)) => (name, given.split(',').map(str::trim).collect()),
            None => (text, Vec::new()),
        };
        let Some((name, parameters, _)) = KNOWN.iter().find(|known| known.0 == name) else {
            let known: Vec<&str> = KNOWN.iter().map(|known| known.0).collect();
            let text: String = text.chars().take(64).collect();
            return refuse("indicator", format!("unknown indicator {text:?}; known: {}", known.join(", ")));
        };
        if given.len() != parameters.len() {
            return refuse(
                name,
                match parameters.len() {
                    0 => "takes no parameters".to_owned(),
                    _ => format!("takes ({})", parameters.join(",")),
                },
            );
        }
        let bars = |at: usize| match given[at].parse::<u32>() {
            Ok(n) => Ok(n),
            Err(_) => refuse(parameters[at], format!("{:?} must be a whole number of bars", given[at])),
        };
        match *name {
            "sma" => IndicatorSpec::Sma { period: bars(0)? },
            "ema" => IndicatorSpec::Ema { period: bars(0)? },
            "rma" => IndicatorSpec::Rma { period: bars(0)? },
            "rsi" => IndicatorSpec::Rsi { period: bars(0)? },
            "macd" => IndicatorSpec::Macd { fast: bars(0)?, slow: bars(1)?, signal: bars(2)? },
            "bollinger" => {
                let Ok(deviations) = given[1].parse() else {
                    return refuse("deviations", format!("{:?} must be a number", given[1]));
                };
                IndicatorSpec::Bollinger { period: bars(0)?, deviations: F64(deviations) }
            }
            "atr" => IndicatorSpec::Atr { period: bars(0)? },
            "stochastic" => IndicatorSpec::Stochastic { k: bars(0)?, smooth: bars(1)?, d: bars(2)? },
            "adx" => IndicatorSpec::Adx { period: bars(0)? },
            "cci" => IndicatorSpec::Cci { period: bars(0)? },
            "williams_r" => IndicatorSpec::WilliamsR { period: bars(0)? },
            "roc" => IndicatorSpec::Roc { period: bars(0)? },
            "obv" => IndicatorSpec::Obv,
            "donchian" => IndicatorSpec::Donchian { period: bars(0)? },
            _ => IndicatorSpec::Vwap,
        }
        .check()
    }
}

impl Serialize for IndicatorSpec {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IndicatorSpec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;

//! Strategies, which are data: a kind with its parameters, and how it is backtested.

use crate::name::{StrategyId, Symbol};
use crate::num::F64;
use crate::time::Timeframe;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A rule and its parameters; periods are in bars.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// The sign of EMA(fast) − EMA(slow).
    EmaCross {
        /// Shorter period.
        fast: u32,
        /// Longer period.
        slow: u32,
    },
    /// Long when RSI closes below `oversold`, short above `overbought`, left at 50.
    RsiReversion {
        /// RSI's period.
        period: u32,
        /// Lower level.
        oversold: F64,
        /// Upper level.
        overbought: F64,
    },
    /// The sign of MACD − its signal line.
    MacdCross {
        /// Shorter EMA.
        fast: u32,
        /// Longer EMA.
        slow: u32,
        /// EMA of the difference.
        signal: u32,
    },
    /// Long on a close below the lower band, short above the upper, left at the middle.
    BollingerReversion {
        /// Window.
        period: u32,
        /// Band width in population standard deviations.
        deviations: F64,
    },
    /// Long on a close above the previous `period` bars' high, short below their low, until the opposite break.
    DonchianBreakout {
        /// Window.
        period: u32,
    },
    /// The side of the close against EMA(trend) while RSI is between its levels, else 0.
    TrendPullback {
        /// The trend's EMA.
        trend: u32,
        /// RSI's period.
        period: u32,
        /// Lower level.
        low: F64,
        /// Upper level.
        high: F64,
    },
    /// The common side of an EMA cross, an RSI reversion and a MACD cross, else 0.
    Consensus {
        /// EMA cross: shorter period.
        fast: u32,
        /// EMA cross: longer period.
        slow: u32,
        /// RSI's period.
        period: u32,
        /// RSI's lower level.
        oversold: F64,
        /// RSI's upper level.
        overbought: F64,
        /// MACD: shorter EMA.
        macd_fast: u32,
        /// MACD: longer EMA.
        macd_slow: u32,
        /// MACD: signal.
        macd_signal: u32,
    },
}

impl Kind {
    /// Its name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::EmaCross { .. } => "ema_cross",
            Kind::RsiReversion { .. } => "rsi_reversion",
            Kind::MacdCross { .. } => "macd_cross",
            Kind::BollingerReversion { .. } => "bollinger_reversion",
            Kind::DonchianBreakout { .. } => "donchian_breakout",
            Kind::TrendPullback { .. } => "trend_pullback",
            Kind::Consensus { .. } => "consensus",
        }
    }
}

/// Which sides a strategy takes. A side that it does not take counts as 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sides {
    /// Long only.
    Long,
    /// Short only.
    Short,
    /// Both.
    #[default]
    Both,
}

impl Sides {
    /// `side`, or 0 where it is not taken.
    pub fn allow(self, side: i8) -> i8 {
        match self {
            Sides::Long => side.max(0),
            Sides::Short => side.min(0),
            Sides::Both => side,
        }
    }
}

/// At which price of the next bar a signal fills.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// Its open.
    #[default]
    NextOpen,
    /// Its close.
    NextClose,
}

/// How an EMA starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmaSeed {
    /// With the mean of the first n values.
    #[default]
    Sma,
    /// With the first value. A rule still waits for as many bars as with `sma`.
    First,
}

/// How many units a backtest trades.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Sizing {
    /// All equity: long cash ÷ (price·(1 + fee)), short equity ÷ (price·(1 + fee)).
    AllIn,
    /// Always as many units.
    Units(F64),
}

/// Which symbols a strategy runs on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Symbols {
    /// All.
    All,
    /// These.
    Only(BTreeSet<Symbol>),
}

impl Symbols {
    /// Whether it runs on `symbol`.
    pub fn contains(&self, symbol: Symbol) -> bool {
        match self {
            Symbols::All => true,
            Symbols::Only(set) => set.contains(&symbol),
        }
    }
}

/// A strategy. Checked when built ([`StrategySpec::build`]), so that nothing can panic later.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Strategy {
    /// Its name.
    pub id: StrategyId,
    /// Rule and parameters.
    pub kind: Kind,
    /// Which sides it takes.
    pub sides: Sides,
    /// Where it runs.
    pub symbols: Symbols,
    /// On which bars.
    pub timeframe: Timeframe,
    /// Its weight in recommendations, ≥ 0.
    pub weight: F64,
    /// Distance of the stop from the fill in ATR(14) of the signal's bar.
    pub stop_loss: Option<F64>,
    /// Distance of the target likewise.
    pub take_profit: Option<F64>,
    /// Fill.
    pub fill: Fill,
    /// How its EMAs start.
    pub seed: EmaSeed,
    /// Units a trade.
    pub sizing: Sizing,
    /// Adverse slippage of a fill, in basis points.
    pub slippage_bps: F64,
    /// Commission of a fill, in basis points of its notional.
    pub commission_bps: F64,
    /// Starting capital.
    pub capital: F64,
}

/// The bars of ATR in stop distances.
pub const ATR_PERIOD: u32 = 14;

/// The longest period that a parameter may have.
pub const MAX_PERIOD: u32 = 10_000;

/// A strategy as it is written (TOML or JSON). Unknown keys are errors.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the keys are those of Strategy and Kind")]
pub struct StrategySpec {
    pub kind: String,
    #[serde(default)]
    pub sides: Sides,
    pub symbols: Option<SymbolsSpec>,
    pub timeframe: Option<Timeframe>,
    pub weight: Option<f64>,
    pub stop_loss: Option<f64>,
    pub take_profit: Option<f64>,
    #[serde(default)]
    pub fill: Fill,
    #[serde(default)]
    pub seed: EmaSeed,
    pub size: Option<SizeSpec>,
    pub slippage_bps: Option<f64>,
    pub commission_bps: Option<f64>,
    pub capital: Option<f64>,
    pub fast: Option<u32>,
    pub slow: Option<u32>,
    pub signal: Option<u32>,
    pub period: Option<u32>,
    pub trend: Option<u32>,
    pub oversold: Option<f64>,
    pub overbought: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub deviations: Option<f64>,
    pub macd_fast: Option<u32>,
    pub macd_slow: Option<u32>,
    pub macd_signal: Option<u32>,
}

/// `"*"`, one symbol, or a list of symbols.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum SymbolsSpec {
    /// `"*"` or one symbol.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// `"all_in"`, or a number of units.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum SizeSpec {
    /// `all_in`.
    Name(String),
    /// Units.
    Units(f64),
}

/// Why a strategy was refused: the parameter, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {must}")]
pub struct StrategyError {
    /// The parameter.
    pub parameter: String,
    /// What it must be.
    pub must: String,
}

/// The parameters that a kind takes.
fn parameters(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "ema_cross" => &["fast", "slow"],
        "rsi_reversion" => &["period", "oversold", "overbought"],
        "macd_cross" => &["fast", "slow", "signal"],
        "bollinger_reversion" => &["period", "deviations"],
        "donchian_breakout" => &["period"],
        "trend_pullback" => &["trend", "period", "low", "high"],
        "consensus" => &["fast", "slow", "period", "oversold", "overbought", "macd_fast", "macd_slow", "macd_signal"],
        _ => return None,
    })
}

/// The names of all kinds.
pub const KINDS: [&str; 7] = [
    "ema_cross",
    "rsi_reversion",
    "macd_cross",
    "bollinger_reversion",
    "donchian_breakout",
    "trend_pullback",
    "consensus",
];

fn refuse<T>(parameter: &str, must: impl Into<String>) -> Result<T, StrategyError> {
    Err(StrategyError { parameter: parameter.to_owned(), must: must.into() })
}

fn finite(parameter: &str, value: f64, low: f64, high: f64) -> Result<F64, StrategyError> {
    // `contains` is false for NaN.
    if (low..=high).contains(&value) {
        Ok(F64(value))
    } else {
        refuse(parameter, format!("{value} must be {low} to {high}"))
    }
}

fn period(parameter: &str, value: u32) -> Result<u32, StrategyError> {
    if (1..=MAX_PERIOD).contains(&value) {
        Ok(value)
    } else {
        refuse(parameter, format!("{value} must be 1 to {MAX_PERIOD} bars"))
    }
}

impl StrategySpec {
    /// The strategy, or the first parameter that is wrong.
    pub fn build(&self, id: StrategyId) -> Result<Strategy, StrategyError> {
        let Some(known) = parameters(&self.kind) else {
            return refuse("kind", format!("unknown kind {:?}; known: {}", self.kind, KINDS.join(", ")));
        };
        let given = [
            ("fast", self.fast.is_some()),
            ("slow", self.slow.is_some()),
            ("signal", self.signal.is_some()),
            ("period", self.period.is_some()),
            ("trend", self.trend.is_some()),
            ("oversold", self.oversold.is_some()),
            ("overbought", self.overbought.is_some()),
            ("low", self.low.is_some()),
            ("high", self.high.is_some()),
            ("deviations", self.deviations.is_some()),
            ("macd_fast", self.macd_fast.is_some()),
            ("macd_slow", self.macd_slow.is_some()),
            ("macd_signal", self.macd_signal.is_some()),
        ];
        for (name, is_given) in given {
            if is_given && !known.contains(&name) {
                return refuse(name, format!("unknown parameter of {}; it takes {}", self.kind, known.join(", ")));
            }
        }
        let kind = self.kind()?;
        let symbols = match &self.symbols {
            None => Symbols::All,
            Some(SymbolsSpec::One(one)) if one == "*" => Symbols::All,
            Some(SymbolsSpec::One(one)) => Symbols::Only(BTreeSet::from([symbol(one)?])),
            Some(SymbolsSpec::Many(many)) => Symbols::Only(many.iter().map(|s| symbol(s)).collect::<Result<_, _>>()?),
        };
        let sizing = match &self.size {
            None => Sizing::AllIn,
            Some(SizeSpec::Name(name)) if name == "all_in" => Sizing::AllIn,
            Some(SizeSpec::Name(name)) => {
                return refuse("size", format!("{name:?} must be \"all_in\" or a number of units"));
            }
            Some(SizeSpec::Units(units)) if *units > 0.0 && units.is_finite() => Sizing::Units(F64(*units)),
            Some(SizeSpec::Units(units)) => return refuse("size", format!("{units} must be positive")),
        };
        let distance = |name, value: Option<f64>| value.map(|v| finite(name, v, 0.01, 1000.0)).transpose();
        Ok(Strategy {
            id,
            kind,
            sides: self.sides,
            symbols,
            timeframe: self.timeframe.unwrap_or(Timeframe::M5),
            weight: finite("weight", self.weight.unwrap_or(1.0), 0.0, 1e6)?,
            stop_loss: distance("stop_loss", self.stop_loss)?,
            take_profit: distance("take_profit", self.take_profit)?,
            fill: self.fill,
            seed: self.seed,
            sizing,
            slippage_bps: finite("slippage_bps", self.slippage_bps.unwrap_or(0.0), 0.0, 1000.0)?,
            commission_bps: finite("commission_bps", self.commission_bps.unwrap_or(0.0), 0.0, 1000.0)?,
            capital: finite("capital", self.capital.unwrap_or(100_000.0), 1e-6, 1e15)?,
        })
    }

    fn kind(&self) -> Result<Kind, StrategyError> {
        let fast_slow = |fast_name: &str, fast, slow_name: &str, slow| {
            let (fast, slow) = (period(fast_name, fast)?, period(slow_name, slow)?);
            if fast < slow {
                Ok((fast, slow))
            } else {
                refuse(fast_name, format!("{fast} must be below {slow_name} = {slow}"))
            }
        };
        let levels = |low_name: &str, low, high_name: &str, high| {
            let (low, high) = (finite(low_name, low, 0.0, 100.0)?, finite(high_name, high, 0.0, 100.0)?);
            if low < high {
                Ok((low, high))
            } else {
                refuse(low_name, format!("{low} must be below {high_name} = {high}"))
            }
        };
        let reversion = || {
            let (oversold, overbought) =
                levels("oversold", self.oversold.unwrap_or(30.0), "overbought", self.overbought.unwrap_or(70.0))?;
            if oversold.0 > 50.0 {
                return refuse("oversold", format!("{oversold} must not be above 50, where the rule leaves"));
            }
            if overbought.0 < 50.0 {
                return refuse("overbought", format!("{overbought} must not be below 50, where the rule leaves"));
            }
            Ok((oversold, overbought))
        };
        Ok(match self.kind.as_str() {
            "ema_cross" => {
                let (fast, slow) = fast_slow("fast", self.fast.unwrap_or(12), "slow", self.slow.unwrap_or(26))?;
                Kind::EmaCross { fast, slow }
            }
            "rsi_reversion" => {
                let (oversold, overbought) = reversion()?;
                Kind::RsiReversion { period: period("period", self.period.unwrap_or(14))?, oversold, overbought }
            }
            "macd_cross" => {
                let (fast, slow) = fast_slow("fast", self.fast.unwrap_or(12), "slow", self.slow.unwrap_or(26))?;
                Kind::MacdCross { fast, slow, signal: period("signal", self.signal.unwrap_or(9))? }
            }
            "bollinger_reversion" => Kind::BollingerReversion {
                period: period("period", self.period.unwrap_or(20))?,
                deviations: finite("deviations", self.deviations.unwrap_or(2.0), 0.1, 10.0)?,
            },
            "donchian_breakout" => Kind::DonchianBreakout { period: period("period", self.period.unwrap_or(20))? },
            "trend_pullback" => {
                let (low, high) = levels("low", self.low.unwrap_or(40.0), "high", self.high.unwrap_or(60.0))?;
                let trend = period("trend", self.trend.unwrap_or(50))?;
                Kind::TrendPullback { trend, period: period("period", self.period.unwrap_or(14))?, low, high }
            }
            _ => {
                let (fast, slow) = fast_slow("fast", self.fast.unwrap_or(12), "slow", self.slow.unwrap_or(26))?;
                let (oversold, overbought) = reversion()?;
                let (macd_fast, macd_slow) =
                    fast_slow("macd_fast", self.macd_fast.unwrap_or(12), "macd_slow", self.macd_slow.unwrap_or(26))?;
                Kind::Consensus {
                    fast,
                    slow,
                    period: period("period", self.period.unwrap_or(14))?,
                    oversold,
                    overbought,
                    macd_fast,
                    macd_slow,
                    macd_signal: period("macd_signal", self.macd_signal.unwrap_or(9))?,
                }
            }
        })
    }
}

fn symbol(text: &str) -> Result<Symbol, StrategyError> {
    Symbol::canonical(text).or_else(|e| refuse("symbols", e.to_string()))
}

/// Reads a strategy's JSON, naming what is wrong.
pub fn parse_strategy(id: StrategyId, json: &str) -> Result<Strategy, StrategyError> {
    let spec: StrategySpec = match serde_json::from_str(json) {
        Ok(spec) => spec,
        Err(e) => return refuse("json", e.to_string()),
    };
    spec.build(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Strategy, String> {
        parse_strategy(StrategyId::new("s").unwrap(), json).map_err(|e| e.to_string())
    }

    #[test]
    fn every_kind_has_defaults() {
        for kind in KINDS {
            let strategy = parse(&format!(r#"{{"kind":"{kind}"}}"#)).unwrap();
            assert_eq!(strategy.kind.name(), kind);
        }
    }

    #[test]
    fn a_bad_strategy_names_its_parameter() {
        for (json, expected) in [
            (r#"{"kind":"ema_cross","fast":0}"#, "fast: 0 must be 1 to 10000 bars"),
            (r#"{"kind":"ema_cross","fast":26}"#, "fast: 26 must be below slow = 26"),
            (
                r#"{"kind":"rsi_reversion","fast":3}"#,
                "fast: unknown parameter of rsi_reversion; it takes period, oversold, overbought",
            ),
            (r#"{"kind":"rsi_reversion","oversold":80}"#, "oversold: 80 must be below overbought = 70"),
            (r#"{"kind":"donchian_breakout","period":10001}"#, "period: 10001 must be 1 to 10000 bars"),
            (r#"{"kind":"ema_cross","weight":-1}"#, "weight: -1 must be 0 to 1000000"),
            (r#"{"kind":"ema_cross","size":"half"}"#, "size: \"half\" must be \"all_in\" or a number of units"),
        ] {
            assert_eq!(parse(json).unwrap_err(), expected);
        }
        assert!(
            parse(r#"{"kind":"magic"}"#).unwrap_err().starts_with("kind: unknown kind \"magic\"; known: ema_cross, ")
        );
        assert!(parse(r#"{"kind":"ema_cross","nonsense":1}"#).unwrap_err().contains("unknown field `nonsense`"));
        assert!(parse(r#"{"kind":"ema_cross","weight":NaN}"#).is_err());
    }
}

//! Why a recommendation is what it is, and what an account may do about it: every number, so that they can be added up.
//!
//! An explanation is made from a [`Case`]: the recommendation and the verdict as they were published, the backtest metrics
//! behind each vote's track, the last bars, and the [`Facts`] that verdicts are judged by and that no table has (quote,
//! policy, equity). Where the case came from (a running feed, a store, a replay) makes no difference to how it reads.
//!
//! Terms are rounded before they are added, so that what is printed adds up as printed; the last digit may then differ from
//! the unrounded value that stands in the recommendation.

mod desk;
#[cfg(test)]
mod tests;
mod verdict;
mod words;

pub use desk::{AccountFacts, Desk, Facts, InstrumentFacts, PolicyFacts, QuoteFacts};

use crate::cli::Lang;
use marea_model::num::{Decimal, SCALE, fixed_to_f64};
use marea_model::time::format_rfc3339;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many bars are shown: the recommendation's and those before it.
pub const BARS: usize = 10;

/// Everything that an explanation rests on, as it reads on the wire.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The recommendation.
    pub recommendation: serde_json::Value,
    /// The verdict of the account that was asked for.
    pub verdict: Option<serde_json::Value>,
    /// The 30 days behind the tracks, by strategy.
    pub tracks: BTreeMap<String, Track>,
    /// Closed bars of the decision timeframe up to the recommendation's, oldest first.
    pub bars: Vec<BarLine>,
    /// What the verdict is judged by, where it is known.
    pub facts: Option<Facts>,
}

/// A strategy's trailing 30 days.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in marea_model::Metrics")]
pub struct Track {
    pub trades: u64,
    pub total_return: Option<f64>,
    pub sharpe: Option<f64>,
    pub win_rate: Option<f64>,
}

impl From<&marea_model::Metrics> for Track {
    fn from(metrics: &marea_model::Metrics) -> Self {
        let value = |v: Option<marea_model::F64>| v.map(|v| v.0);
        Track {
            trades: metrics.trades,
            total_return: value(metrics.total_return),
            sharpe: value(metrics.sharpe),
            win_rate: value(metrics.win_rate),
        }
    }
}

/// A bar of the table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in marea_model::Bar")]
pub struct BarLine {
    pub open_time: String,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
}

impl From<&marea_model::Bar> for BarLine {
    fn from(bar: &marea_model::Bar) -> Self {
        let price = |p| Decimal::to_f64(bar.price(p));
        let body = &bar.body;
        BarLine {
            open_time: format_rfc3339(bar.open_time),
            open: price(body.open),
            high: price(body.high),
            low: price(body.low),
            close: price(body.close),
            volume: fixed_to_f64(body.volume, SCALE),
        }
    }
}

/// A recommendation or verdict that does not read as one: another version wrote it.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be read: {cause}")]
pub struct CaseError {
    what: &'static str,
    cause: serde_json::Error,
}

/// The explanation in words.
pub fn explain(case: &Case, lang: Lang) -> Result<String, CaseError> {
    words::explain(case, lang)
}

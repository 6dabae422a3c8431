//! Series that were added to the configuration since the last run: indicators, and timeframes with all that is computed
//! of their bars. The dataflow computes them for all history, and the store has none of it.
//!
//! A series is an addition where its last sealed row does not stand. So is one that was taken away for a while. Cost: one
//! look-up a timeframe and indicator.

use super::link::{Link, Named};
use super::{Standing, StoreError, load::last_open};
use marea_model::output::Change;
use marea_model::{Nanos, Output, Symbol, Timeframe};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const BAR: &str = "SELECT 1 FROM bars WHERE symbol = $1 AND timeframe = $2 AND open_time = $3";
const INDICATOR: &str =
    "SELECT 1 FROM indicators WHERE symbol = $1 AND timeframe = $2 AND open_time = $3 AND name = $4";

/// What was added.
#[derive(Debug, Default)]
pub(super) struct Added {
    timeframes: BTreeSet<Timeframe>,
    indicators: BTreeSet<(Timeframe, Arc<str>)>,
}

impl Added {
    /// Of the whole state.
    pub(super) async fn find(
        link: &mut Link,
        named: &Named,
        standing: &Standing,
        state: &[Change],
    ) -> Result<Added, StoreError> {
        let sealed = |timeframe| last_open(standing.progress.sealed_through, timeframe);
        // The last sealed row of each, of those that must all stand.
        let mut bars: BTreeMap<Timeframe, (Nanos, Symbol)> = BTreeMap::new();
        let mut indicators: BTreeMap<(Timeframe, Arc<str>), (Nanos, Symbol)> = BTreeMap::new();
        for change in state {
            match change {
                Change::Upsert(Output::Bar(row)) if row.open_time <= sealed(row.timeframe) => {
                    let at = (row.open_time, row.symbol);
                    let last = bars.entry(row.timeframe).or_insert(at);
                    *last = at.max(*last);
                }
                Change::Upsert(Output::Indicator(row))
                    if row.open_time <= sealed(row.timeframe) && row.open_time < standing.indicators_low =>
                {
                    let at = (row.open_time, row.symbol);
                    let last = indicators.entry((row.timeframe, row.name.clone())).or_insert(at);
                    *last = at.max(*last);
                }
                _ => {}
            }
        }
        let mut added = Added::default();
        for (timeframe, (last, symbol)) in bars {
            let key = [symbol.as_str().to_owned().into(), timeframe.to_string().into(), last.into()];
            if link.rows(named, BAR, &key).await?.is_empty() {
                added.timeframes.insert(timeframe);
            }
        }
        for ((timeframe, name), (last, symbol)) in indicators {
            let symbol = symbol.as_str().to_owned();
            let key = [symbol.into(), timeframe.to_string().into(), last.into(), name.to_string().into()];
            if link.rows(named, INDICATOR, &key).await?.is_empty() {
                added.indicators.insert((timeframe, name));
            }
        }
        Ok(added)
    }

    /// Whether a row is of a series that was added.
    pub(super) fn has(&self, row: &Output) -> bool {
        match row {
            Output::Bar(row) => self.timeframes.contains(&row.timeframe),
            Output::Trade(row) => self.timeframes.contains(&row.timeframe),
            Output::Indicator(row) => {
                !self.indicators.is_empty() && self.indicators.contains(&(row.timeframe, row.name.clone()))
            }
            Output::Metrics(_) | Output::Recommendation(_) | Output::Verdict(_) => false,
        }
    }

    /// Their names, none where nothing was added.
    pub(super) fn names(&self) -> Option<String> {
        let bars = self.timeframes.iter().map(|timeframe| format!("bars of {timeframe}"));
        let all: Vec<String> =
            bars.chain(self.indicators.iter().map(|(timeframe, name)| format!("{name} of {timeframe}"))).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

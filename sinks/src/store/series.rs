//! Series that were added to the configuration since the last run: indicators, and timeframes with all that is computed
//! of their bars. The dataflow computes them for all history, and the store has none of it.
//!
//! A series is an addition where it has sealed rows after the last one that stands. So is one that was taken away for a
//! while. Cost: a step in the index for each symbol and series that stands; a look through a series that does not.

use super::cell::Cell;
use super::link::{Link, Named};
use super::tables::{self, Table};
use super::verify::symbols;
use super::{Standing, StoreError, load::last_open};
use marea_model::output::Change;
use marea_model::{Nanos, Output, Timeframe};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
        let mut bars: BTreeMap<Timeframe, Nanos> = BTreeMap::new();
        let mut indicators: BTreeMap<(Timeframe, Arc<str>), Nanos> = BTreeMap::new();
        for change in state {
            match change {
                Change::Upsert(Output::Bar(row)) if row.open_time <= sealed(row.timeframe) => {
                    let last = bars.entry(row.timeframe).or_insert(Nanos::MIN);
                    *last = row.open_time.max(*last);
                }
                Change::Upsert(Output::Indicator(row))
                    if row.open_time <= sealed(row.timeframe) && row.open_time < standing.indicators_low =>
                {
                    let last = indicators.entry((row.timeframe, row.name.clone())).or_insert(Nanos::MIN);
                    *last = row.open_time.max(*last);
                }
                _ => {}
            }
        }
        let mut added = Added::default();
        for (timeframe, last) in bars {
            let stands = last_of(link, named, &tables::BARS, "", &[timeframe.to_string().into()]).await?;
            if stands.is_none_or(|stands| stands < last) {
                added.timeframes.insert(timeframe);
            }
        }
        for ((timeframe, name), last) in indicators {
            let arguments = [timeframe.to_string().into(), name.to_string().into()];
            let stands = last_of(link, named, &tables::INDICATORS, "AND t.name = $2", &arguments).await?;
            if stands.is_none_or(|stands| stands < last) {
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

/// The open time of the last row of a series, over all symbols.
async fn last_of(
    link: &mut Link,
    named: &Named,
    table: &Table,
    which: &str,
    arguments: &[Cell],
) -> Result<Option<Nanos>, StoreError> {
    let sql = format!(
        "{} SELECT max((SELECT t.open_time FROM {} t WHERE t.symbol = s.symbol AND t.timeframe = $1 {which} \
         ORDER BY t.open_time DESC LIMIT 1)) FROM symbols s WHERE s.symbol IS NOT NULL",
        symbols(table),
        table.name
    );
    let rows = link.rows(named, &sql, arguments).await?;
    let last = |row: &super::cell::Row| row.optional_int(0);
    rows.first().map(last).transpose().map(Option::flatten).map_err(|error| named.broken(error))
}

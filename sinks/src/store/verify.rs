//! What stands, compared with what was computed again.
//!
//! A restart computes from sealed bars and from the ticks after them; whatever it may have computed otherwise is compared,
//! and nothing else is read: bars and indicators of bars that close after `sealed_through`, trades that left in such a
//! bar, all metrics, all recommendations and verdicts; and series that were [added](super::series) since. Floats compare by their bits; recommendations and verdicts by
//! their payload without `as_of`, and without epoch, seq and generation, which say when they were written.
//!
//! Metrics and indicators are written behind: after a kill, those that stand may be of a moment before
//! ([`Difference::was_due`]). Of indicators all that may not have been written are compared, sealed or not.

use super::behind::was_due;
use super::cell::{Cell, Row};
use super::ledger::{Ledger, Repair, payload_of, without_as_of};
use super::link::{Link, Named};
use super::rows::{cells, table_of};
use super::series::Added;
use super::tables::{self, STATE, Table};
use super::{AuditKey, Standing, StoreError, load::last_open};
use marea_model::output::{Change, ClosedEpoch, Key, MetricsWindow};
use marea_model::{Nanos, Output, StrategyId, Symbol, Timeframe};
use std::collections::BTreeSet;
use std::fmt;

/// A row that stands otherwise than it was computed again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which row.
    pub key: Key,
    /// What stood: a payload as JSON, or columns as text. None: nothing, or a trade that left in a sealed bar.
    pub stood: Option<String>,
    /// What should have stood. None: nothing.
    pub should: Option<String>,
    /// Whether it says no more than that the process was killed before it wrote this row: no alarm.
    pub was_due: bool,
}

impl Difference {
    /// The table that it is in.
    pub fn table(&self) -> &'static str {
        STATE[table_of(&self.key)].name
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stood, should) = (self.stood.as_deref().unwrap_or("none"), self.should.as_deref().unwrap_or("none"));
        write!(f, "{:?}: stood {stood}, should be {should}", self.key)
    }
}

/// What is compared, and what was found.
struct Comparison<'a> {
    standing: &'a Standing,
    /// Every row of the state, ordered by key.
    state: &'a [Change],
    added: Added,
    differences: Vec<Difference>,
    repairs: Vec<Repair>,
    /// Keys that stand.
    met: BTreeSet<Key>,
}

/// Compares the whole state with what stands; gives the differences, ordered by key, and what mends them.
pub(crate) async fn compare(
    link: &mut Link,
    named: &Named,
    ledger: &Ledger,
    closed: &ClosedEpoch,
) -> Result<(Vec<Difference>, Vec<Repair>), StoreError> {
    compare_after(link, named, ledger, ledger.standing(), closed).await
}

/// The same for all of history: as if nothing were sealed.
pub(crate) async fn compare_whole(
    link: &mut Link,
    named: &Named,
    ledger: &Ledger,
    closed: &ClosedEpoch,
) -> Result<(Vec<Difference>, Vec<Repair>), StoreError> {
    let mut standing = ledger.standing().clone();
    standing.progress.sealed_through = Nanos::MIN;
    compare_after(link, named, ledger, &standing, closed).await
}

async fn compare_after(
    link: &mut Link,
    named: &Named,
    ledger: &Ledger,
    standing: &Standing,
    closed: &ClosedEpoch,
) -> Result<(Vec<Difference>, Vec<Repair>), StoreError> {
    let expanded = (!closed.rows.is_empty()).then(|| {
        let mut closed = closed.clone();
        closed.expand();
        closed
    });
    let state = &expanded.as_ref().unwrap_or(closed).changes;
    let added = Added::find(link, named, standing, state).await?;
    if let Some(names) = added.names() {
        tracing::info!("new since the last run, and written for all history: {names}");
    }
    let mut comparison =
        Comparison { standing, state, added, differences: Vec::new(), repairs: Vec::new(), met: BTreeSet::new() };
    let sealed = comparison.standing.progress.sealed_through;
    // Trades are found by when they left, so by the longest bar that one may have left in.
    let mut longest = comparison.state.iter().filter_map(|change| traded(output(change))).max();
    for table in [&tables::BARS, &tables::INDICATORS] {
        let timeframes = timeframes(link, named, table).await?;
        longest = longest.max(timeframes.iter().max().copied());
        let columns = table.select(table.columns.len() - 1, "t.");
        // The symbols first, each found by one step in the index; so nothing that is sealed is touched.
        let sql = format!(
            "{} SELECT {columns} FROM symbols s CROSS JOIN {} t \
             WHERE t.symbol = s.symbol AND t.timeframe = $1 AND t.open_time > $2",
            symbols(table),
            table.name
        );
        for timeframe in &timeframes {
            let mut after = last_open(sealed, *timeframe);
            if table.name == tables::INDICATORS.name {
                after = after.min(comparison.standing.indicators_low.saturating_sub(1));
            }
            let arguments = [timeframe.to_string().into(), after.into()];
            link.each(named, &sql, &arguments, |row| comparison.stands(table, &row)).await?;
        }
    }
    let table = &tables::TRADES;
    let sql = format!("SELECT {} FROM trades WHERE exit_time > $1", table.select(table.columns.len() - 1, ""));
    let arguments = [longest.map_or(sealed, |timeframe| last_open(sealed, timeframe)).into()];
    link.each(named, &sql, &arguments, |row| comparison.stands(table, &row)).await?;
    let table = &tables::METRICS;
    let sql = format!("SELECT {} FROM {}", table.select(table.columns.len() - 1, ""), table.name);
    link.each(named, &sql, &[], |row| comparison.stands(table, &row)).await?;
    for (key, payload) in ledger.payloads() {
        comparison.payload_stands(*key, payload);
    }
    Ok(comparison.finish())
}

impl<'a> Comparison<'a> {
    fn should(&self, key: &Key) -> Option<&'a Output> {
        let at = self.state.binary_search_by(|change| output(change).key().cmp(key)).ok()?;
        match &self.state[at] {
            Change::Upsert(row) => Some(row),
            Change::Delete(_) => None,
        }
    }

    fn stands(&mut self, table: &Table, row: &Row) -> Result<(), String> {
        let key = key(table, row)?;
        let should = self.should(&key);
        let left_unsealed = match &key {
            Key::Trade(_, _, timeframe, ..) => {
                row.int(6)? > last_open(self.standing.progress.sealed_through, *timeframe)
            }
            _ => true,
        };
        if !left_unsealed && !should.is_some_and(|row| is_unsealed(row, self.standing)) {
            return Ok(());
        }
        let cells = should.map(cells);
        let same = |cells: &Vec<Cell>| cells.len() == row.0.len() && cells.iter().zip(&row.0).all(|(a, b)| a.same(b));
        if !cells.as_ref().is_some_and(same) {
            let shown = |cells: &[Cell]| shown(table, cells);
            let (stood, should_be) = (Some(shown(&row.0)), cells.as_deref().map(shown));
            self.differs(key.clone(), stood, should_be, should);
        }
        self.met.insert(key);
        Ok(())
    }

    fn payload_stands(&mut self, audit_key: AuditKey, stood: &str) {
        let key = match audit_key {
            AuditKey::Recommendation(symbol) => Key::Recommendation(symbol),
            AuditKey::Verdict(account, symbol) => Key::Verdict(account, symbol),
        };
        let should = self.should(&key);
        let payload = should.and_then(payload_of).map(|payload| without_as_of(&payload));
        if payload.as_deref() != Some(stood) {
            let should_be = payload.map(|payload| payload.to_string());
            self.differs(key.clone(), Some(stood.to_owned()), should_be, should);
        }
        self.met.insert(key);
    }

    fn differs(&mut self, key: Key, stood: Option<String>, should: Option<String>, row: Option<&Output>) {
        self.repairs.push((key.clone(), row.cloned()));
        let was_due = was_due(&key, self.standing);
        self.differences.push(Difference { key, stood, should, was_due });
    }

    /// What should stand and does not.
    fn finish(mut self) -> (Vec<Difference>, Vec<Repair>) {
        for change in self.state {
            let Change::Upsert(row) = change else { continue };
            if self.added.has(row) {
                self.repairs.push((row.key(), Some(row.clone())));
                continue;
            }
            if !is_unsealed(row, self.standing) {
                continue;
            }
            let key = row.key();
            if !self.met.contains(&key) {
                let should = payload_of(row).map_or_else(
                    || shown(STATE[table_of(&key)], &cells(row)),
                    |payload| without_as_of(&payload).to_string(),
                );
                self.differs(key, None, Some(should), Some(row));
            }
        }
        self.differences.sort_by(|a, b| a.key.cmp(&b.key));
        self.repairs.sort_by(|a, b| a.0.cmp(&b.0));
        (self.differences, self.repairs)
    }
}

fn output(change: &Change) -> &Output {
    match change {
        Change::Upsert(row) | Change::Delete(row) => row,
    }
}

/// The timeframe of a trade.
fn traded(row: &Output) -> Option<Timeframe> {
    match row {
        Output::Trade(row) => Some(row.timeframe),
        _ => None,
    }
}

/// Whether ticks that are read once more may have made this row, or it may not have been written.
fn is_unsealed(row: &Output, standing: &Standing) -> bool {
    let sealed = standing.progress.sealed_through;
    match row {
        Output::Bar(row) => row.open_time > last_open(sealed, row.timeframe),
        Output::Indicator(row) => {
            row.open_time > last_open(sealed, row.timeframe) || row.open_time >= standing.indicators_low
        }
        // An exit at the open of an unsealed bar, or at its close.
        Output::Trade(row) => row.exit_time > last_open(sealed, row.timeframe),
        Output::Metrics(_) | Output::Recommendation(_) | Output::Verdict(_) => true,
    }
}

fn shown(table: &Table, cells: &[Cell]) -> String {
    let values = table.columns.iter().zip(cells).skip(table.key);
    values.map(|((name, _), cell)| format!("{name} {}", cell.shown())).collect::<Vec<_>>().join(", ")
}

/// `WITH … symbols`: the distinct symbols of a table whose key begins with them, each found by one step in the index.
pub(crate) fn symbols(table: &Table) -> String {
    let table = table.name;
    format!(
        "WITH RECURSIVE symbols(symbol) AS (SELECT min(symbol) FROM {table} UNION ALL \
         SELECT (SELECT min(t.symbol) FROM {table} t WHERE t.symbol > symbols.symbol) FROM symbols \
         WHERE symbols.symbol IS NOT NULL)"
    )
}

/// The distinct timeframes of a table whose key begins with symbol and timeframe.
/// The timeframes of which there are rows, each found by one step in the index for each symbol.
pub(crate) async fn timeframes(link: &mut Link, named: &Named, table: &Table) -> Result<Vec<Timeframe>, StoreError> {
    let name = table.name;
    let sql = format!(
        "{}, series(symbol, timeframe) AS (\
         SELECT symbol, (SELECT min(t.timeframe) FROM {name} t WHERE t.symbol = symbols.symbol) FROM symbols \
         WHERE symbol IS NOT NULL UNION ALL \
         SELECT symbol, (SELECT min(t.timeframe) FROM {name} t \
         WHERE t.symbol = series.symbol AND t.timeframe > series.timeframe) FROM series WHERE timeframe IS NOT NULL) \
         SELECT DISTINCT timeframe FROM series WHERE timeframe IS NOT NULL",
        symbols(table)
    );
    let rows = link.rows(named, &sql, &[]).await?;
    rows.iter().map(|row| row.parse(0, str::parse)).collect::<Result<_, _>>().map_err(|error| named.broken(error))
}

/// The key of a row that was read.
fn key(table: &Table, row: &Row) -> Result<Key, String> {
    let strategy = || row.parse(0, StrategyId::new);
    let symbol = |column| row.parse(column, Symbol::new);
    let timeframe = |column| row.parse(column, str::parse::<Timeframe>);
    Ok(match table.name {
        "bars" => Key::Bar(symbol(0)?, timeframe(1)?, row.int(2)?),
        "indicators" => Key::Indicator(symbol(0)?, timeframe(1)?, row.int(2)?, row.text(3)?.into()),
        "trades" => {
            let side = i8::try_from(row.int(4)?).map_err(|error| error.to_string())?;
            Key::Trade(strategy()?, symbol(1)?, timeframe(2)?, row.int(3)?, side)
        }
        _ => {
            let window = match row.text(3)? {
                "all" => MetricsWindow::All,
                "30d" => MetricsWindow::Days30,
                other => return Err(format!("{other} is no span")),
            };
            Key::Metrics(strategy()?, symbol(1)?, timeframe(2)?, window)
        }
    })
}

//! The store, seen from outside: how far it is while a process writes it, and whether its history keeps its laws.

use super::Place;
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::runtime::Runtime;

/// Rows of the audit that are read together.
const PAGE: usize = 10_000;

/// Tables that must be the same in both stores: their columns but those that say when a row was written; those that are
/// exact, and those that are floats.
const SAME: [(&str, &[&str], &[&str]); 7] = [
    (
        "bars",
        &[
            "symbol",
            "timeframe",
            "open_time",
            "price_scale",
            "open",
            "high",
            "low",
            "close",
            "volume",
            "turnover",
            "count",
            "closed",
        ],
        &[],
    ),
    ("indicators", &["symbol", "timeframe", "open_time", "name"], &["value"]),
    (
        "trades",
        &["strategy", "symbol", "timeframe", "entry_time", "side", "exit_time", "exit_reason"],
        &["entry_price", "exit_price", "quantity", "pnl", "fees"],
    ),
    (
        "backtest_metrics",
        &["strategy", "symbol", "timeframe", "span", "bars", "trades"],
        &[
            "total_return",
            "cagr",
            "sharpe",
            "sortino",
            "max_drawdown",
            "calmar",
            "recovery_factor",
            "win_rate",
            "profit_factor",
            "expectancy",
            "mean_r",
            "average_win",
            "average_loss",
            "largest_win",
            "largest_loss",
            "fees",
            "average_duration",
            "time_in_market",
            "buy_and_hold_return",
        ],
    ),
    ("quotes", &["symbol", "event_time", "seq", "bid", "ask"], &[]),
    ("accounts", &["account", "event_time", "seq", "peak", "payload"], &[]),
    ("amends", &["symbol", "open_time", "rev", "payload"], &[]),
];

/// A row, all of it as text.
type Cells = Vec<Option<String>>;

enum Link {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Where the pipeline stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) upper: u64,
    pub(crate) last_seq: u64,
    pub(crate) generation: u64,
    pub(crate) records_in: u64,
    pub(crate) accepted: u64,
    pub(crate) duplicate: u64,
    pub(crate) dead: u64,
    pub(crate) held: u64,
}

/// The audit up to a row, as one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Digest {
    seq: u64,
    hash: u64,
}

impl Digest {
    fn add(&mut self, row: &Cells) {
        let mut hasher = DefaultHasher::new();
        (self.hash, row).hash(&mut hasher);
        (self.hash, self.seq) = (hasher.finish(), number(row, 0));
    }
}

/// Looks into a store. Holds a connection only between [`Watch::standing`] and [`Watch::leave`], so that a process that
/// starts finds a database which nobody has open.
pub(crate) struct Watch {
    place: Place,
    runtime: Runtime,
    link: Option<Link>,
    /// The audit as it was at each look.
    digests: Vec<Digest>,
}

fn number(row: &Cells, column: usize) -> u64 {
    row.get(column).and_then(Option::as_ref).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn text(row: &Cells, column: usize) -> String {
    row.get(column).cloned().flatten().unwrap_or_default()
}

impl Watch {
    pub(crate) fn new(place: Place) -> anyhow::Result<Watch> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Watch { place, runtime, link: None, digests: vec![Digest::default()] })
    }

    /// None while there is no store, or it does not answer.
    pub(crate) fn standing(&mut self) -> Option<Standing> {
        let sql = "SELECT CAST(upper AS TEXT), CAST(last_seq AS TEXT), CAST(generation AS TEXT), CAST(records_in AS TEXT), \
                   CAST(accepted AS TEXT), CAST(duplicate AS TEXT), CAST(dead AS TEXT), CAST(held AS TEXT) FROM pipeline";
        let rows = self.rows(sql).ok()?;
        let row = rows.first()?;
        let [upper, last_seq, generation, records_in, accepted, duplicate, dead, held] =
            std::array::from_fn(|column| number(row, column));
        Some(Standing { upper, last_seq, generation, records_in, accepted, duplicate, dead, held })
    }

    /// Remembers the audit as it is now.
    pub(crate) fn look(&mut self) {
        let mut digest = self.digests.last().copied().unwrap_or_default();
        // A store that does not answer now is looked at the next time.
        while let Ok(rows) = self.audit(digest.seq) {
            rows.iter().for_each(|row| digest.add(row));
            if rows.len() < PAGE {
                break;
            }
        }
        if self.digests.last() != Some(&digest) {
            self.digests.push(digest);
        }
    }

    /// Gives the connection back.
    pub(crate) fn leave(&mut self) {
        match self.link.take() {
            Some(Link::Sqlite(connection)) => drop(self.runtime.block_on(connection.close())),
            Some(Link::Postgres(connection)) => drop(self.runtime.block_on(connection.close())),
            None => {}
        }
    }

    fn audit(&mut self, after: u64) -> anyhow::Result<Vec<Cells>> {
        self.rows(&format!(
            "SELECT CAST(seq AS TEXT), CAST(epoch AS TEXT), CAST(generation AS TEXT), kind, account, symbol, payload \
             FROM audit WHERE seq > {after} ORDER BY audit.seq LIMIT {PAGE}"
        ))
    }

    fn rows(&mut self, sql: &str) -> anyhow::Result<Vec<Cells>> {
        let rows = self.runtime.block_on(async {
            if self.link.is_none() {
                self.link = Some(connect(&self.place).await?);
            }
            let sql = sqlx::raw_sql(AssertSqlSafe(sql));
            match &mut self.link {
                Some(Link::Sqlite(connection)) => {
                    let rows = sql.fetch_all(connection).await?;
                    rows.iter().map(|row| (0..row.len()).map(|column| row.try_get(column)).collect()).collect()
                }
                Some(Link::Postgres(connection)) => {
                    let rows = sql.fetch_all(connection).await?;
                    rows.iter().map(|row| (0..row.len()).map(|column| row.try_get(column)).collect()).collect()
                }
                None => Ok(Vec::new()),
            }
        });
        if rows.is_err() {
            self.link = None;
        }
        rows.map_err(|error: sqlx::Error| error.into())
    }

    /// What is wrong with the history tables; nothing if all is well.
    pub(crate) fn laws(&mut self) -> anyhow::Result<Vec<String>> {
        let standing = self.standing().ok_or_else(|| anyhow::anyhow!("the store has no row in `pipeline`"))?;
        let mut wrong = Vec::new();
        let Standing { records_in, accepted, duplicate, dead, held, last_seq, .. } = standing;
        if records_in != accepted + duplicate + dead + held {
            wrong.push(format!(
                "in {records_in} = accepted {accepted} + duplicate {duplicate} + dead {dead} + held {held}: no"
            ));
        }
        let letters = self.rows("SELECT CAST(count(*) AS TEXT) FROM dead_letters")?;
        let letters = letters.first().map_or(0, |row| number(row, 0));
        if letters != dead {
            wrong.push(format!("{dead} records are dead, {letters} dead letters stand"));
        }
        let twice = "SELECT CAST(count(*) AS TEXT) FROM (SELECT 1 AS one FROM dead_letters \
                     GROUP BY source_partition, source_offset, source_row HAVING count(*) > 1) twice";
        let twice = self.rows(twice)?.first().map_or(0, |row| number(row, 0));
        if twice > 0 {
            wrong.push(format!("{twice} records are dead for two reasons"));
        }
        let last = self.audited(&mut wrong, last_seq)?;
        self.stands(&last, &mut wrong)?;
        Ok(wrong)
    }

    /// Walks the audit: dense, neighbours differ, and nothing that was seen has changed. The last row of each key.
    fn audited(
        &mut self,
        wrong: &mut Vec<String>,
        last_seq: u64,
    ) -> anyhow::Result<BTreeMap<[String; 3], Option<String>>> {
        let mut last: BTreeMap<[String; 3], Option<String>> = BTreeMap::new();
        let mut digest = Digest::default();
        let seen: BTreeMap<u64, u64> = self.digests.iter().map(|digest| (digest.seq, digest.hash)).collect();
        let mut met = 0;
        loop {
            let rows = self.audit(digest.seq)?;
            for row in &rows {
                let seq = number(row, 0);
                if seq != digest.seq + 1 {
                    wrong.push(format!("audit: seq {seq} after {}", digest.seq));
                }
                digest.add(row);
                if let Some(hash) = seen.get(&seq) {
                    met += 1;
                    if *hash != digest.hash {
                        wrong.push(format!("audit: what was committed up to seq {seq} has changed since"));
                    }
                }
                let key = [text(row, 3), text(row, 4), text(row, 5)];
                let payload = row.get(6).cloned().flatten();
                if let Some(before) = last.get(&key)
                    && without_as_of(before.as_deref()) == without_as_of(payload.as_deref())
                {
                    wrong.push(format!("audit: seq {seq} of {key:?} says what the row before it says"));
                }
                last.insert(key, payload);
            }
            if rows.len() < PAGE {
                break;
            }
        }
        if digest.seq != last_seq {
            wrong.push(format!("audit: ends at seq {}, the pipeline's row says {last_seq}", digest.seq));
        }
        if met + 1 < seen.len() {
            wrong.push(format!("audit: {} rows that were committed are gone", seen.len() - 1 - met));
        }
        Ok(last)
    }

    /// The last row of each key is what stands.
    fn stands(&mut self, last: &BTreeMap<[String; 3], Option<String>>, wrong: &mut Vec<String>) -> anyhow::Result<()> {
        let sql = "SELECT 'recommendation', '', symbol, payload FROM recommendations \
                   UNION ALL SELECT 'verdict', account, symbol, payload FROM verdicts";
        let rows = self.rows(sql)?;
        let standing: BTreeSet<_> = rows.iter().map(|row| [0, 1, 2, 3].map(|column| text(row, column))).collect();
        let audited = last.iter().filter_map(|([kind, account, symbol], payload)| {
            Some([kind.clone(), account.clone(), symbol.clone(), payload.clone()?])
        });
        let audited: BTreeSet<[String; 4]> = audited.collect();
        for row in standing.symmetric_difference(&audited) {
            wrong.push(format!("audit: the last row of a key is not what stands: {row:?}"));
        }
        Ok(())
    }

    /// Where the tables of two stores differ.
    pub(crate) fn differences(&mut self, expected: &mut Watch) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for (table, exact, floats) in SAME {
            let is_sqlite = matches!(self.place, Place::Sqlite(_));
            // All its digits, as PostgreSQL gives them anyway.
            let float = |column: &&str| match is_sqlite {
                true => format!("CASE WHEN {column} IS NOT NULL THEN printf('%!.17g', {column}) END"),
                false => format!("CAST({column} AS TEXT)"),
            };
            let exact = exact.iter().map(|column| format!("CAST({column} AS TEXT)"));
            let columns = exact.chain(floats.iter().map(float)).map(|column| format!("coalesce({column}, 'null')"));
            let sql = format!("SELECT {} FROM {table}", columns.collect::<Vec<_>>().join(" || ' ' || "));
            wrong.extend(difference(table, expected.lines(&sql)?, self.lines(&sql)?));
        }
        for table in ["recommendations", "verdicts"] {
            let sql = format!("SELECT payload FROM {table}");
            let lines = |watch: &mut Watch| -> anyhow::Result<Vec<String>> {
                let lines = watch.lines(&sql)?;
                let mut lines: Vec<String> =
                    lines.iter().map(|line| format!("{:?}", without_as_of(Some(line)))).collect();
                lines.sort_unstable();
                Ok(lines)
            };
            wrong.extend(difference(table, lines(expected)?, lines(self)?));
        }
        Ok(wrong)
    }

    /// The first column of all rows, in order.
    fn lines(&mut self, sql: &str) -> anyhow::Result<Vec<String>> {
        let mut lines: Vec<String> = self.rows(sql)?.iter().map(|row| text(row, 0)).collect();
        lines.sort_unstable();
        Ok(lines)
    }

    /// Every dead letter but those that came late: which these are depends on how partitions are read against each other.
    pub(crate) fn dead(&mut self) -> anyhow::Result<BTreeSet<[String; 4]>> {
        let sql = "SELECT source_partition, CAST(source_offset AS TEXT), CAST(source_row AS TEXT), reason FROM dead_letters \
                   WHERE reason <> 'late'";
        let rows = self.rows(sql)?;
        Ok(rows.iter().map(|row| [0, 1, 2, 3].map(|column| text(row, column))).collect())
    }
}

/// How two tables differ.
fn difference(table: &str, expected: Vec<String>, got: Vec<String>) -> Option<String> {
    if expected == got && !got.is_empty() {
        return None;
    }
    let (rows, of) = (got.len(), expected.len());
    let (expected, got) = (BTreeSet::from_iter(expected), BTreeSet::from_iter(got));
    let (missing, more): (Vec<_>, Vec<_>) = (expected.difference(&got).collect(), got.difference(&expected).collect());
    let first = |rows: &[&String]| rows.first().map_or_else(|| "none".to_owned(), |row| (*row).clone());
    Some(format!(
        "store: {table}: {rows} rows, should be {of}; {} should be there: {}; {} should not: {}",
        missing.len(),
        first(&missing),
        more.len(),
        first(&more)
    ))
}

/// A payload without the time at which it was computed.
fn without_as_of(payload: Option<&str>) -> Option<Value> {
    let mut value: Value = serde_json::from_str(payload?).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.remove("as_of");
    }
    Some(value)
}

async fn connect(place: &Place) -> Result<Link, sqlx::Error> {
    match place {
        Place::Sqlite(path) => {
            Ok(Link::Sqlite(SqliteConnectOptions::new().filename(path).read_only(true).connect().await?))
        }
        Place::Postgres(url) => Ok(Link::Postgres(PgConnection::connect(url).await?)),
    }
}

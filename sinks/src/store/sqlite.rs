//! The store on SQLite: WAL, `synchronous = FULL`, one writing connection, a few reading ones for the feed.
//!
//! What a commit means stands in the [module above](super); this file only executes a [`Plan`]. Rows are written some
//! at a time by prepared statements (128, 16 or 1 rows), keyed by their natural primary keys. After any failure the
//! connection is opened anew and the pipeline's row read again, so that a COMMIT whose outcome is unknown is never
//! guessed.

use super::{AuditEntry, AuditKey, Committed, Ledger, Plan, Standing, StoreError};
use marea_model::live::ConfigUpdate;
use marea_model::num::F64;
use marea_model::output::{Change, ClosedEpoch, MetricsRow, TradeRow};
use marea_model::{
    AccountId, Bar, BarBody, DeadLetter, Decimal, Epoch, IndicatorRow, Nanos, Output, Partition, Price, Progress,
    Recommendation, Symbol, Timeframe, Verdict,
};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::query::Query;
use sqlx::sqlite::{
    Sqlite, SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqlSafeStr};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Applied in order, each once; an applied one never changes.
fn migrations() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![migration(1, "init", include_str!("../../../migrations/sqlite/0001_init.sql"))])
}

const TABLES: [&str; 12] = [
    "pipeline",
    "cursors",
    "bars",
    "indicators",
    "trades",
    "backtest_metrics",
    "recommendations",
    "verdicts",
    "audit",
    "dead_letters",
    "config_events",
    "_sqlx_migrations",
];

/// How many rows a statement carries, greatest first.
const CHUNKS: [usize; 3] = [128, 16, 1];

/// The store's one writer.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// None after a failure: the next commit connects again and reads where the store stands.
    connection: Option<SqliteConnection>,
    reader: Reader,
    ledger: Ledger,
    /// Changes of the configuration that wait for the commit of their epoch.
    config: Vec<(Epoch, ConfigUpdate)>,
}

impl Store {
    /// Opens the store, makes it if there is none, migrates and checks it, and takes it over (generation + 1).
    /// Every error is a reason to refuse to start, and leaves the process that has the store its own.
    pub async fn open(path: &Path) -> Result<Store, StoreError> {
        let mut connection = connect(path).await.map_err(|error| open_error(classify(path, &error)))?;
        migrate(path, &mut connection).await?;
        check_tables(path, &mut connection).await?;
        let ledger = take_over(path, &mut connection).await?;
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options);
        let Standing { generation, last_seq, .. } = *ledger.standing();
        let reader = Reader { path: path.into(), pool, generation, last_seq };
        Ok(Store { path: path.to_owned(), connection: Some(connection), reader, ledger, config: Vec::new() })
    }

    /// Where the run that a store holds stands: its upper. None if there is no file, or no run in it yet. Only reads:
    /// takes nothing over, makes and migrates nothing.
    pub async fn peek(path: &Path) -> Result<Option<Epoch>, StoreError> {
        let unopened = |detail: String| StoreError::Open { path: path.to_owned(), detail };
        if !path.try_exists().map_err(|error| unopened(error.to_string()))? {
            return Ok(None);
        }
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(5));
        let connection = options.connect().await;
        let mut connection = connection.map_err(|error| open_error(classify(path, &error)))?;
        let upper = upper(path, &mut connection).await.map_err(open_error);
        connection.close().await.map_err(|error| open_error(classify(path, &error)))?;
        Ok(upper?.filter(|upper| *upper > 0))
    }

    /// Where it stands.
    pub fn standing(&self) -> &Standing {
        self.ledger.standing()
    }

    /// Read queries for the feed.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Changes of the live configuration that took effect in `epoch`: they are written in its transaction.
    pub fn note_config(&mut self, epoch: Epoch, updates: &[ConfigUpdate]) {
        self.config.extend(updates.iter().map(|update| (epoch, update.clone())));
    }

    /// Commits these epochs in one transaction, empty ones too. They rise strictly, from `standing().upper`.
    ///
    /// After an error that is [retryable](StoreError::retryable), call again with the same epochs, and more after them
    /// if there are more: those that had been committed after all are not written twice, and their audit entries are
    /// returned like the others.
    pub async fn commit(&mut self, epochs: &[ClosedEpoch]) -> Result<Committed, StoreError> {
        let mut landed = Vec::new();
        let mut epochs = epochs;
        // Taken out before the first await: a commit that is dropped half-way counts as failed.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = connect(&self.path).await.map_err(|error| classify(&self.path, &error))?;
                let mine = self.ledger.standing().clone();
                let ledger = load(&self.path, &mut connection).await?;
                let found = ledger.standing();
                if found.generation != mine.generation {
                    return Err(fenced(&mine, found));
                }
                if found.upper > mine.upper {
                    let rows = audit_after(&mut connection, mine.last_seq, i64::MAX).await;
                    landed = rows.map_err(|error| classify(&self.path, &error))?;
                    epochs = &epochs[epochs.partition_point(|closed| closed.epoch < found.upper)..];
                    self.config.retain(|(epoch, _)| *epoch >= found.upper);
                    self.ledger = ledger;
                }
                connection
            }
        };
        let plan = self.ledger.plan(epochs)?;
        let before = self.ledger.standing();
        let config = &self.config[..self.config.partition_point(|(epoch, _)| *epoch < plan.standing.upper)];
        write(&mut connection, &self.path, before, &plan, config).await?;
        self.connection = Some(connection);
        self.config.retain(|(epoch, _)| *epoch >= plan.standing.upper);
        let mut committed = self.ledger.accept(plan);
        if !landed.is_empty() {
            landed.append(&mut committed.audit);
            committed.audit = landed;
        }
        Ok(committed)
    }

    /// Closes the store; SQLite folds its log into the file.
    pub async fn close(self) -> Result<(), StoreError> {
        self.reader.pool.close().await;
        match self.connection {
            Some(connection) => connection.close().await.map_err(|error| classify(&self.path, &error)),
            None => Ok(()),
        }
    }
}

fn fenced(mine: &Standing, found: &Standing) -> StoreError {
    StoreError::Fenced { mine: mine.generation, found: found.generation, upper: found.upper }
}

async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .connect()
        .await
}

/// What cannot be opened is not waited for.
fn open_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { path, detail } | StoreError::Statement { path, detail } => {
            StoreError::Open { path, detail }
        }
        other => other,
    }
}

/// Checks that the store is whole, and only then raises its generation. One transaction: nobody commits in between.
async fn take_over(path: &Path, connection: &mut SqliteConnection) -> Result<Ledger, StoreError> {
    let error = |error: sqlx::Error| classify(path, &error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(error)?;
    let mut ledger = load(path, &mut transaction).await?;
    check_upper(path, &mut transaction, ledger.standing()).await?;
    ledger.standing.generation += 1;
    sqlx::query("UPDATE pipeline SET generation = ? WHERE id = 1")
        .bind(ledger.standing.generation.cast_signed())
        .execute(&mut *transaction)
        .await
        .map_err(error)?;
    transaction.commit().await.map_err(error)?;
    Ok(ledger)
}

/// The pipeline's upper; none in a file that was never migrated.
async fn upper(path: &Path, connection: &mut SqliteConnection) -> Result<Option<Epoch>, StoreError> {
    if !check_version(path, connection).await? {
        return Ok(None);
    }
    let upper = sqlx::query_scalar::<_, i64>("SELECT upper FROM pipeline WHERE id = 1").fetch_one(connection).await;
    upper.map(|upper| Some(upper.cast_unsigned())).map_err(|error| classify(path, &error))
}

/// The primary result code is the low byte of SQLite's extended ones: https://www.sqlite.org/rescode.html.
fn classify(path: &Path, error: &sqlx::Error) -> StoreError {
    let (path, detail) = (path.to_owned(), error.to_string());
    let sqlx::Error::Database(database) = error else {
        return match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                StoreError::Unavailable { path, detail }
            }
            _ => StoreError::Statement { path, detail },
        };
    };
    let code = database.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default() & 0xff;
    match code {
        13 => StoreError::DiskFull { path },
        8 => StoreError::ReadOnly { path },
        5 | 6 => StoreError::Busy { path },
        10 | 14 => StoreError::Unavailable { path, detail: database.message().to_owned() },
        _ => StoreError::Statement { path, detail: database.message().to_owned() },
    }
}

/// The greatest version of the schema that is known here.
fn known() -> i64 {
    migrations().iter().map(|m| m.version).max().unwrap_or_default()
}

fn newer(path: &Path, found: i64) -> StoreError {
    StoreError::NewerSchema { path: path.to_owned(), found, known: known() }
}

/// Whether any migration was applied; an error if one was that is not known here.
async fn check_version(path: &Path, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let error = |error: sqlx::Error| classify(path, &error);
    let migrated: Option<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE name = '_sqlx_migrations'")
        .fetch_optional(&mut *connection)
        .await
        .map_err(error)?;
    if migrated.is_none() {
        return Ok(false);
    }
    let found: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
        .fetch_one(&mut *connection)
        .await
        .map_err(error)?;
    match found {
        Some(found) if found > known() => Err(newer(path, found)),
        found => Ok(found.is_some()),
    }
}

async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    check_version(path, connection).await?;
    let error = |error: sqlx::Error| classify(path, &error);
    migrations().run(connection).await.map_err(|failure| match failure {
        MigrateError::VersionMissing(found) => newer(path, found),
        MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) => {
            StoreError::ForeignSchema { path: path.to_owned(), version }
        }
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => error(source),
        other => StoreError::Statement { path: path.to_owned(), detail: other.to_string() },
    })
}

async fn check_tables(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(connection)
        .await
        .map_err(|error| classify(path, &error))?;
    match TABLES.iter().find(|table| !tables.iter().any(|t| t == *table)) {
        Some(table) => Err(StoreError::TableMissing { path: path.to_owned(), table: (*table).to_owned() }),
        None => Ok(()),
    }
}

/// Nothing may be in the tables that the pipeline's row does not know of: then a file was restored in part.
async fn check_upper(path: &Path, connection: &mut SqliteConnection, standing: &Standing) -> Result<(), StoreError> {
    let newest = [
        ("audit", "SELECT epoch FROM audit ORDER BY seq DESC LIMIT 1"),
        ("recommendations", "SELECT max(epoch) FROM recommendations"),
        ("verdicts", "SELECT max(epoch) FROM verdicts"),
        ("config_events", "SELECT max(epoch) FROM config_events"),
    ];
    for (table, sql) in newest {
        let row: Option<Option<i64>> =
            sqlx::query_scalar(sql).fetch_optional(&mut *connection).await.map_err(|error| classify(path, &error))?;
        if let Some(epoch) = row.flatten().map(i64::cast_unsigned).filter(|epoch| *epoch >= standing.upper) {
            return Err(StoreError::UpperBehind { path: path.to_owned(), upper: standing.upper, table, epoch });
        }
    }
    let found: i64 = sqlx::query_scalar("SELECT coalesce(max(seq), 0) FROM audit")
        .fetch_one(connection)
        .await
        .map_err(|error| classify(path, &error))?;
    let (found, expected) = (found.cast_unsigned(), standing.last_seq);
    if found == expected { Ok(()) } else { Err(StoreError::AuditBroken { path: path.to_owned(), found, expected }) }
}

/// The ledger as it stands in the file.
async fn load(path: &Path, connection: &mut SqliteConnection) -> Result<Ledger, StoreError> {
    let error = |error: sqlx::Error| classify(path, &error);
    let broken =
        |detail: String| StoreError::Statement { path: path.to_owned(), detail: format!("unreadable row: {detail}") };
    let row = sqlx::query("SELECT * FROM pipeline WHERE id = 1").fetch_optional(&mut *connection).await;
    let row = row.map_err(error)?.ok_or_else(|| broken("pipeline has none".to_owned()))?;
    let number = |name: &str| row.try_get::<i64, _>(name).map_err(error);
    let mut standing = Standing {
        upper: number("upper")?.cast_unsigned(),
        generation: number("generation")?.cast_unsigned(),
        last_seq: number("last_seq")?.cast_unsigned(),
        totals: marea_model::output::Totals {
            records_in: number("records_in")?,
            accepted: number("accepted")?,
            duplicate: number("duplicate")?,
            dead: number("dead")?,
            held: number("held")?,
            unknown_fields: number("unknown_fields")?,
            price_jumps: 0,
        },
        progress: Progress { sealed_through: number("sealed_through")?, closed_through: number("closed_through")? },
        cursors: BTreeMap::new(),
    };
    let cursors: Vec<(String, i64)> = sqlx::query_as("SELECT source_partition, upper FROM cursors")
        .fetch_all(&mut *connection)
        .await
        .map_err(error)?;
    for (partition, upper) in cursors {
        let partition = Partition::new(&partition).map_err(|e| broken(e.to_string()))?;
        standing.cursors.insert(partition, upper.cast_unsigned());
    }
    let rows: Vec<(Option<String>, String, String)> = sqlx::query_as(
        "SELECT NULL, symbol, payload FROM recommendations UNION ALL SELECT account, symbol, payload FROM verdicts",
    )
    .fetch_all(connection)
    .await
    .map_err(error)?;
    let mut payloads = Vec::with_capacity(rows.len());
    for (account, symbol, payload) in rows {
        let key = audit_key(account.as_deref(), &symbol).map_err(broken)?;
        payloads.push((key, payload.into()));
    }
    Ok(Ledger::resume(standing, payloads))
}

fn audit_key(account: Option<&str>, symbol: &str) -> Result<AuditKey, String> {
    let symbol = Symbol::new(symbol).map_err(|e| e.to_string())?;
    match account {
        None => Ok(AuditKey::Recommendation(symbol)),
        Some(account) => Ok(AuditKey::Verdict(AccountId::new(account).map_err(|e| e.to_string())?, symbol)),
    }
}

async fn write(
    connection: &mut SqliteConnection,
    path: &Path,
    before: &Standing,
    plan: &Plan<'_>,
    config: &[(Epoch, ConfigUpdate)],
) -> Result<(), StoreError> {
    let error = |error: sqlx::Error| classify(path, &error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(error)?;
    let after = &plan.standing;
    let moved = sqlx::query(
        "UPDATE pipeline SET upper = ?, last_seq = ?, records_in = ?, accepted = ?, duplicate = ?, dead = ?, held = ?, \
         unknown_fields = ?, sealed_through = ?, closed_through = ? WHERE id = 1 AND upper = ? AND generation = ?",
    )
    .bind(after.upper.cast_signed())
    .bind(after.last_seq.cast_signed())
    .bind(after.totals.records_in)
    .bind(after.totals.accepted)
    .bind(after.totals.duplicate)
    .bind(after.totals.dead)
    .bind(after.totals.held)
    .bind(after.totals.unknown_fields)
    .bind(after.progress.sealed_through)
    .bind(after.progress.closed_through)
    .bind(before.upper.cast_signed())
    .bind(before.generation.cast_signed())
    .execute(&mut *transaction)
    .await
    .map_err(error)?;
    if moved.rows_affected() == 0 {
        let (generation, upper): (i64, i64) = sqlx::query_as("SELECT generation, upper FROM pipeline")
            .fetch_one(&mut *transaction)
            .await
            .map_err(error)?;
        let (found, upper) = (generation.cast_unsigned(), upper.cast_unsigned());
        return Err(StoreError::Fenced { mine: before.generation, found, upper });
    }
    for batch in batches(plan, config) {
        batch.execute(&mut transaction).await.map_err(error)?;
    }
    transaction.commit().await.map_err(error)
}

/// A value of a row.
#[derive(Clone, Debug)]
enum Cell {
    Null,
    Int(i64),
    Float(f64),
    Name(&'static str),
    Text(String),
    Shared(Arc<str>),
    Bytes(Vec<u8>),
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Cell::Int(value)
    }
}
impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Cell::Int(value.cast_signed())
    }
}
impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Cell::Int(value.into())
    }
}
impl From<F64> for Cell {
    fn from(value: F64) -> Self {
        Cell::Float(value.0)
    }
}
impl From<&'static str> for Cell {
    fn from(value: &'static str) -> Self {
        Cell::Name(value)
    }
}
impl From<String> for Cell {
    fn from(value: String) -> Self {
        Cell::Text(value)
    }
}
impl From<Decimal> for Cell {
    fn from(value: Decimal) -> Self {
        Cell::Text(value.to_string())
    }
}
impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}

/// What a batch does with its rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Insert, or replace what stands.
    Upsert,
    /// Insert; a row that stands already is the same one.
    InsertOnce,
    /// Insert; a row that stands already is an error.
    Insert,
    /// Delete: rows are keys.
    Delete,
}

/// Rows of one table. The table's key is its first `key` columns.
struct Batch {
    table: &'static str,
    columns: &'static [&'static str],
    key: usize,
    action: Action,
    rows: Vec<Vec<Cell>>,
}

impl Batch {
    fn new(table: &'static str, columns: &'static [&'static str], key: usize, action: Action) -> Self {
        Batch { table, columns, key, action, rows: Vec::new() }
    }

    fn sql(&self, rows: usize) -> String {
        let width = if self.action == Action::Delete { self.key } else { self.columns.len() };
        let row = format!("({})", vec!["?"; width].join(","));
        let values = vec![row; rows].join(",");
        let key = self.columns[..self.key].join(",");
        let table = self.table;
        if self.action == Action::Delete {
            return format!("DELETE FROM {table} WHERE ({key}) IN (VALUES {values})");
        }
        let columns = self.columns.join(",");
        let insert = format!("INSERT INTO {table} ({columns}) VALUES {values}");
        match self.action {
            Action::Insert | Action::Delete => insert,
            Action::InsertOnce => format!("{insert} ON CONFLICT ({key}) DO NOTHING"),
            Action::Upsert => {
                let set: Vec<String> = self.columns[self.key..].iter().map(|c| format!("{c}=excluded.{c}")).collect();
                format!("{insert} ON CONFLICT ({key}) DO UPDATE SET {}", set.join(","))
            }
        }
    }

    async fn execute(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let mut rest = self.rows.as_slice();
        for size in CHUNKS {
            if rest.len() < size {
                continue;
            }
            let sql: Arc<str> = self.sql(size).into();
            while rest.len() >= size {
                let (chunk, tail) = rest.split_at(size);
                let query = sqlx::query(AssertSqlSafe(sql.clone()));
                chunk.iter().flatten().fold(query, bind).execute(&mut *connection).await?;
                rest = tail;
            }
        }
        Ok(())
    }
}

fn bind<'q>(query: Query<'q, Sqlite, SqliteArguments>, cell: &Cell) -> Query<'q, Sqlite, SqliteArguments> {
    match cell {
        Cell::Null => query.bind(None::<i64>),
        Cell::Int(value) => query.bind(*value),
        Cell::Float(value) => query.bind(*value),
        Cell::Name(value) => query.bind(*value),
        Cell::Text(value) => query.bind(value.clone()),
        Cell::Shared(value) => query.bind(value.clone()),
        Cell::Bytes(value) => query.bind(value.clone()),
    }
}

const BARS: (&str, &[&str], usize) = (
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
        "epoch",
    ],
    3,
);
const INDICATORS: (&str, &[&str], usize) =
    ("indicators", &["symbol", "timeframe", "open_time", "name", "value", "epoch"], 4);
const TRADES: (&str, &[&str], usize) = (
    "trades",
    &[
        "strategy",
        "symbol",
        "timeframe",
        "entry_time",
        "side",
        "entry_price",
        "exit_time",
        "exit_price",
        "quantity",
        "pnl",
        "fees",
        "exit_reason",
        "epoch",
    ],
    5,
);
const METRICS: (&str, &[&str], usize) = (
    "backtest_metrics",
    &[
        "strategy",
        "symbol",
        "timeframe",
        "span",
        "as_of",
        "bars",
        "trades",
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
        "epoch",
    ],
    4,
);
const RECOMMENDATIONS: (&str, &[&str], usize) = (
    "recommendations",
    &[
        "symbol",
        "timeframe",
        "bar_open_time",
        "bar_close_time",
        "action",
        "bias",
        "status",
        "strength",
        "consensus",
        "confidence",
        "agreeing",
        "close",
        "atr",
        "entry_low",
        "entry_high",
        "stop_loss",
        "take_profit",
        "expires_at",
        "seq",
        "epoch",
        "generation",
        "payload",
    ],
    1,
);
const VERDICTS: (&str, &[&str], usize) = (
    "verdicts",
    &[
        "account",
        "symbol",
        "intent",
        "side",
        "allow",
        "reasons",
        "lots",
        "entry",
        "stop_loss",
        "take_profit",
        "cancel_pending",
        "recommendation_time",
        "valid_until",
        "blocked_until",
        "as_of",
        "seq",
        "epoch",
        "generation",
        "payload",
    ],
    2,
);
const AUDIT: (&str, &[&str], usize) =
    ("audit", &["seq", "epoch", "generation", "kind", "account", "symbol", "payload"], 1);
const DEAD_LETTERS: (&str, &[&str], usize) = (
    "dead_letters",
    &["source_partition", "source_offset", "source_row", "reason", "field", "value", "detail", "original", "epoch"],
    4,
);
const CURSORS: (&str, &[&str], usize) = ("cursors", &["source_partition", "upper"], 1);
const CONFIG_EVENTS: (&str, &[&str], usize) = ("config_events", &["epoch", "position", "key", "value", "revision"], 2);

/// Everything a transaction writes after its fence, table by table.
fn batches(plan: &Plan<'_>, config: &[(Epoch, ConfigUpdate)]) -> Vec<Batch> {
    let batch = |(table, columns, key): (&'static str, &'static [&'static str], usize), action| {
        Batch::new(table, columns, key, action)
    };
    let tables = [BARS, INDICATORS, TRADES, METRICS, RECOMMENDATIONS, VERDICTS];
    let mut upserts = tables.map(|table| batch(table, Action::Upsert));
    let mut deletes = tables.map(|table| batch(table, Action::Delete));
    // The last audit entry of each key: its state carries that seq.
    let entries: BTreeMap<AuditKey, &AuditEntry> = plan.audit.iter().map(|entry| (entry.key, entry)).collect();
    for (change, epoch) in plan.rows.values() {
        let (row, stands) = match change {
            Change::Upsert(row) => (row, true),
            Change::Delete(row) => (row, false),
        };
        let (table, mut cells) = match row {
            Output::Bar(row) => (0, bar_cells(row)),
            Output::Indicator(row) => (1, indicator_cells(row)),
            Output::Trade(row) => (2, trade_cells(row)),
            Output::Metrics(row) => (3, metrics_cells(row)),
            Output::Recommendation(row) => (4, recommendation_cells(row)),
            Output::Verdict(row) => (5, verdict_cells(row)),
        };
        if !stands {
            cells.truncate(deletes[table].key);
            deletes[table].rows.push(cells);
            continue;
        }
        let audit_key = match row {
            Output::Recommendation(row) => Some(AuditKey::Recommendation(row.symbol)),
            Output::Verdict(row) => Some(AuditKey::Verdict(row.account, row.symbol)),
            _ => None,
        };
        match audit_key.and_then(|key| entries.get(&key)) {
            Some(entry) => cells.extend([
                entry.seq.into(),
                entry.epoch.into(),
                entry.generation.into(),
                entry.payload.clone().map_or(Cell::Null, Cell::Shared),
            ]),
            None => cells.push((*epoch).into()),
        }
        upserts[table].rows.push(cells);
    }
    let mut audit = batch(AUDIT, Action::Insert);
    audit.rows.extend(plan.audit.iter().map(audit_cells));
    let mut dead = batch(DEAD_LETTERS, Action::InsertOnce);
    dead.rows.extend(plan.dead.iter().map(|(letter, epoch)| dead_letter_cells(letter, *epoch)));
    let mut cursors = batch(CURSORS, Action::Upsert);
    cursors.rows.extend(plan.cursors.iter().map(|(p, upper)| vec![p.as_str().into(), (*upper).into()]));
    let mut events = batch(CONFIG_EVENTS, Action::Insert);
    let mut position = (0, 0_i64);
    for (epoch, update) in config {
        position = if position.0 == *epoch { (*epoch, position.1 + 1) } else { (*epoch, 0) };
        events.rows.push(config_cells(*epoch, position.1, update));
    }
    deletes.into_iter().chain(upserts).chain([audit, dead, cursors, events]).collect()
}

fn bar_cells(bar: &Bar) -> Vec<Cell> {
    let body = &bar.body;
    vec![
        bar.symbol.as_str().into(),
        bar.timeframe.to_string().into(),
        bar.open_time.into(),
        i64::from(bar.scale).into(),
        body.open.0.into(),
        body.high.0.into(),
        body.low.0.into(),
        body.close.0.into(),
        body.volume.to_string().into(),
        body.turnover.to_string().into(),
        body.count.into(),
        bar.closed.into(),
    ]
}

fn indicator_cells(row: &IndicatorRow) -> Vec<Cell> {
    vec![
        row.symbol.as_str().into(),
        row.timeframe.to_string().into(),
        row.open_time.into(),
        Cell::Shared(row.name.clone()),
        row.value.into(),
    ]
}

fn trade_cells(row: &TradeRow) -> Vec<Cell> {
    vec![
        row.strategy.as_str().into(),
        row.symbol.as_str().into(),
        row.timeframe.to_string().into(),
        row.entry_time.into(),
        i64::from(row.side).into(),
        row.entry_price.into(),
        row.exit_time.into(),
        row.exit_price.into(),
        row.quantity.into(),
        row.pnl.into(),
        row.fees.into(),
        row.exit_reason.as_str().into(),
    ]
}

fn metrics_cells(row: &MetricsRow) -> Vec<Cell> {
    let mut cells: Vec<Cell> = vec![
        row.strategy.as_str().into(),
        row.symbol.as_str().into(),
        row.timeframe.to_string().into(),
        row.window.as_str().into(),
        row.as_of.into(),
        row.metrics.bars.into(),
        row.metrics.trades.into(),
    ];
    // The first two are the counts above.
    cells.extend(row.metrics.named()[2..].iter().map(|(_, value)| Cell::from(value.map(F64))));
    cells
}

fn recommendation_cells(row: &Recommendation) -> Vec<Cell> {
    vec![
        row.symbol.as_str().into(),
        row.timeframe.to_string().into(),
        row.bar_open_time.into(),
        row.bar_close_time.into(),
        row.action.as_str().into(),
        i64::from(row.bias).into(),
        row.status.as_str().into(),
        row.strength.into(),
        row.consensus.into(),
        row.confidence.into(),
        i64::from(row.agreeing).into(),
        row.close.into(),
        row.atr.into(),
        row.entry_low.into(),
        row.entry_high.into(),
        row.stop_loss.into(),
        row.take_profit.into(),
        row.expires_at.into(),
    ]
}

fn verdict_cells(row: &Verdict) -> Vec<Cell> {
    let reasons: Vec<&str> = row.reasons.iter().map(|r| r.as_str()).collect();
    vec![
        row.account.as_str().into(),
        row.symbol.as_str().into(),
        row.intent.as_str().into(),
        i64::from(row.side).into(),
        row.allow.into(),
        reasons.join(" ").into(),
        row.lots.map(|lots| lots.0).into(),
        row.entry.into(),
        row.stop_loss.into(),
        row.take_profit.into(),
        row.cancel_pending.into(),
        row.recommendation_time.into(),
        row.valid_until.into(),
        row.blocked_until.into(),
        row.as_of.into(),
    ]
}

fn audit_cells(entry: &AuditEntry) -> Vec<Cell> {
    vec![
        entry.seq.into(),
        entry.epoch.into(),
        entry.generation.into(),
        entry.key.kind().into(),
        entry.key.account().map(AccountId::as_str).into(),
        entry.key.symbol().as_str().into(),
        entry.payload.clone().map_or(Cell::Null, Cell::Shared),
    ]
}

fn dead_letter_cells(letter: &DeadLetter, epoch: Epoch) -> Vec<Cell> {
    vec![
        letter.cursor.partition.as_str().into(),
        letter.cursor.offset.into(),
        i64::from(letter.cursor.row).into(),
        letter.reason.as_str().into(),
        letter.field.clone().into(),
        letter.value.clone().into(),
        letter.detail.clone().into(),
        Cell::Bytes(letter.original.clone()),
        epoch.into(),
    ]
}

fn config_cells(epoch: Epoch, position: i64, update: &ConfigUpdate) -> Vec<Cell> {
    let (key, value, revision): (Cell, Cell, Cell) = match update {
        ConfigUpdate::Put { key, value, revision } => (key.clone().into(), value.clone().into(), (*revision).into()),
        ConfigUpdate::Delete { key, revision } => (key.clone().into(), Cell::Null, (*revision).into()),
        ConfigUpdate::Stale(stale) => (Cell::Null, stale.to_string().into(), Cell::Null),
    };
    vec![epoch.into(), position.into(), key, value, revision]
}

async fn audit_after(connection: &mut SqliteConnection, seq: u64, limit: i64) -> Result<Vec<AuditEntry>, sqlx::Error> {
    let sql = "SELECT seq, epoch, generation, account, symbol, payload FROM audit WHERE seq > ? ORDER BY seq LIMIT ?";
    let rows = sqlx::query(sql).bind(seq.cast_signed()).bind(limit).fetch_all(connection).await?;
    rows.iter().map(audit_entry).collect()
}

fn audit_entry(row: &SqliteRow) -> Result<AuditEntry, sqlx::Error> {
    let number = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
    let account: Option<String> = row.try_get("account")?;
    let symbol: String = row.try_get("symbol")?;
    let payload: Option<String> = row.try_get("payload")?;
    Ok(AuditEntry {
        seq: number("seq")?,
        epoch: number("epoch")?,
        generation: number("generation")?,
        key: audit_key(account.as_deref(), &symbol).map_err(|e| sqlx::Error::Decode(e.into()))?,
        payload: payload.map(Into::into),
    })
}

/// Read queries of the feed, on connections of their own: they see what is committed and block no writer.
#[derive(Clone, Debug)]
pub struct Reader {
    path: Arc<Path>,
    pool: SqlitePool,
    generation: u64,
    last_seq: u64,
}

impl Reader {
    /// The generation that opened the store.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The last seq of the audit when the store was opened.
    pub fn opened_at_seq(&self) -> u64 {
        self.last_seq
    }

    /// The audit after `seq`, at most `limit` entries.
    pub async fn audit_after(&self, seq: u64, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(|error| classify(&self.path, &error))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        audit_after(&mut connection, seq, limit).await.map_err(|error| classify(&self.path, &error))
    }

    /// Opens a store only to read: takes nothing over, makes and migrates nothing.
    pub async fn open(path: &Path) -> Result<Reader, StoreError> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options);
        let standing = sqlx::query("SELECT generation, last_seq FROM pipeline WHERE id = 1").fetch_one(&pool).await;
        let row = standing.map_err(|error| StoreError::Open { path: path.to_owned(), detail: error.to_string() })?;
        let number = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
        let of = |error| classify(path, &error);
        let (generation, last_seq) = (number("generation").map_err(of)?, number("last_seq").map_err(of)?);
        Ok(Reader { path: path.into(), pool, generation, last_seq })
    }

    /// The recommendation that stands, as JSON.
    pub async fn recommendation(&self, symbol: Symbol) -> Result<Option<String>, StoreError> {
        let query = sqlx::query_scalar("SELECT payload FROM recommendations WHERE symbol = ?").bind(symbol.as_str());
        query.fetch_optional(&self.pool).await.map_err(|error| classify(&self.path, &error))
    }

    /// The verdict that stands, as JSON.
    pub async fn verdict(&self, account: AccountId, symbol: Symbol) -> Result<Option<String>, StoreError> {
        let sql = "SELECT payload FROM verdicts WHERE account = ? AND symbol = ?";
        let query = sqlx::query_scalar(sql).bind(account.as_str()).bind(symbol.as_str());
        query.fetch_optional(&self.pool).await.map_err(|error| classify(&self.path, &error))
    }

    /// Of each strategy on this symbol and timeframe: trades, total return, Sharpe ratio and win rate of 30 days.
    pub async fn tracks(
        &self,
        symbol: Symbol,
        timeframe: Timeframe,
    ) -> Result<Vec<(String, u64, [Option<f64>; 3])>, StoreError> {
        let sql = "SELECT strategy, trades, total_return, sharpe, win_rate FROM backtest_metrics \
                   WHERE symbol = ? AND timeframe = ? AND span = '30d' ORDER BY strategy";
        let rows = sqlx::query(sql).bind(symbol.as_str()).bind(timeframe.to_string()).fetch_all(&self.pool).await;
        let track = |row: &SqliteRow| {
            let value = |name: &str| row.try_get::<Option<f64>, _>(name);
            let values = [value("total_return")?, value("sharpe")?, value("win_rate")?];
            Ok((row.try_get("strategy")?, row.try_get::<i64, _>("trades")?.cast_unsigned(), values))
        };
        rows.and_then(|rows| rows.iter().map(track).collect()).map_err(|error| classify(&self.path, &error))
    }

    /// Every change of the live configuration, in order.
    pub async fn config_events(&self) -> Result<Vec<ConfigUpdate>, StoreError> {
        let rows = sqlx::query("SELECT * FROM config_events ORDER BY epoch, position").fetch_all(&self.pool).await;
        rows.and_then(|rows| rows.iter().map(config_event).collect()).map_err(|error| classify(&self.path, &error))
    }

    /// Bars with `from` ≤ open time < `to`, rising: the first `limit` if there is a `from`, else the last.
    pub async fn bars(
        &self,
        symbol: Symbol,
        timeframe: Timeframe,
        from: Option<Nanos>,
        to: Option<Nanos>,
        limit: usize,
    ) -> Result<Vec<Bar>, StoreError> {
        let sql = if from.is_some() {
            "SELECT * FROM bars WHERE symbol = ? AND timeframe = ? AND open_time >= ? AND open_time < ? \
             ORDER BY open_time LIMIT ?"
        } else {
            "SELECT * FROM bars WHERE symbol = ? AND timeframe = ? AND open_time >= ? AND open_time < ? \
             ORDER BY open_time DESC LIMIT ?"
        };
        let rows = sqlx::query(sql)
            .bind(symbol.as_str())
            .bind(timeframe.to_string())
            .bind(from.unwrap_or(Nanos::MIN))
            .bind(to.unwrap_or(Nanos::MAX))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .and_then(|rows| rows.iter().map(|row| bar(symbol, timeframe, row)).collect::<Result<Vec<_>, _>>());
        let mut bars = rows.map_err(|error| classify(&self.path, &error))?;
        if from.is_none() {
            bars.reverse();
        }
        Ok(bars)
    }
}

/// What [`config_cells`] wrote.
fn config_event(row: &SqliteRow) -> Result<ConfigUpdate, sqlx::Error> {
    let text = |name: &str| row.try_get::<Option<String>, _>(name);
    let revision = row.try_get::<Option<i64>, _>("revision")?.unwrap_or(0).cast_unsigned();
    Ok(match (text("key")?, text("value")?) {
        (Some(key), Some(value)) => ConfigUpdate::Put { key, value, revision },
        (Some(key), None) => ConfigUpdate::Delete { key, revision },
        (None, value) => ConfigUpdate::Stale(value.as_deref() == Some("true")),
    })
}

fn bar(symbol: Symbol, timeframe: Timeframe, row: &SqliteRow) -> Result<Bar, sqlx::Error> {
    let sum = |name: &str| -> Result<i128, sqlx::Error> {
        row.try_get::<String, _>(name)?.parse().map_err(|e: std::num::ParseIntError| sqlx::Error::Decode(e.into()))
    };
    let price = |name: &str| row.try_get::<i64, _>(name).map(Price);
    let scale: i64 = row.try_get("price_scale")?;
    Ok(Bar {
        symbol,
        timeframe,
        open_time: row.try_get("open_time")?,
        body: BarBody {
            open: price("open")?,
            high: price("high")?,
            low: price("low")?,
            close: price("close")?,
            volume: sum("volume")?,
            turnover: sum("turnover")?,
            count: row.try_get::<i64, _>("count")?.cast_unsigned(),
        },
        scale: u8::try_from(scale).map_err(|e| sqlx::Error::Decode(e.into()))?,
        closed: row.try_get("closed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{judged, up, verdict};
    use marea_model::output::Totals;
    use marea_model::{BlockReason, Cursor, Reason};

    fn epoch(epoch: Epoch, dead: usize) -> ClosedEpoch {
        let partition = Partition::new("ticks").unwrap();
        let letter = |offset| DeadLetter {
            cursor: Cursor { partition, offset, row: 0 },
            reason: Reason::Malformed,
            field: String::new(),
            value: String::new(),
            detail: String::new(),
            original: vec![7; 4_096],
        };
        let totals = Totals { records_in: 1, accepted: 1, ..Totals::default() };
        let dead = (0..dead as u64).map(|i| letter(epoch * 1_000 + i)).collect();
        ClosedEpoch {
            epoch,
            rows: marea_model::Rows::default(),
            changes: Vec::new(),
            dead,
            totals,
            cursors: Vec::new(),
            progress: Progress::START,
        }
    }

    async fn pragma(store: &mut Store, sql: &'static str) {
        sqlx::query(sql).execute(store.connection.as_mut().unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_pauses_and_heals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marea.db");
        let mut store = Store::open(&path).await.unwrap();
        store.commit(&[epoch(1, 0)]).await.unwrap();
        // The file may not grow any more on this connection: what SQLite says when the disk is full.
        pragma(&mut store, "PRAGMA max_page_count = 1").await;
        let batch = [epoch(2, 200), epoch(3, 0)];
        let error = store.commit(&batch).await.unwrap_err();
        let expected = "disk full: nothing is acknowledged until there is space";
        assert_eq!(error.to_string(), format!("store {}: {expected}", path.display()));
        assert!(error.retryable());
        assert_eq!(store.standing().upper, 2, "nothing was committed");
        let committed = store.commit(&batch).await.unwrap();
        assert_eq!((committed.upper, committed.totals.records_in), (4, 3));
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_written_pauses_and_heals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marea.db");
        let mut store = Store::open(&path).await.unwrap();
        pragma(&mut store, "PRAGMA query_only = ON").await;
        let error = store.commit(&[epoch(1, 1)]).await.unwrap_err();
        let expected = "read-only: nothing is acknowledged until it can be written";
        assert_eq!(error.to_string(), format!("store {}: {expected}", path.display()));
        assert!(error.retryable());
        assert_eq!(store.commit(&[epoch(1, 1)]).await.unwrap().upper, 2);
    }

    #[tokio::test]
    async fn a_lock_that_another_holds_is_said_and_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marea.db");
        let mut store = Store::open(&path).await.unwrap();
        pragma(&mut store, "PRAGMA busy_timeout = 20").await;
        let mut other = connect(&path).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        let error = store.commit(&[epoch(1, 1)]).await.unwrap_err();
        assert_eq!(error.to_string(), format!("store {}: locked by another process", path.display()));
        assert!(error.retryable());
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        store.commit(&[epoch(1, 1)]).await.unwrap();
    }

    /// The outcome of COMMIT was lost: the connection is gone, and the epochs are in the file after all.
    #[tokio::test]
    async fn a_commit_that_landed_after_all_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marea.db");
        let mut store = Store::open(&path).await.unwrap();
        let before = store.ledger.clone();
        let with = |number, reasons| ClosedEpoch {
            changes: vec![up(judged(verdict("M1", "A", reasons)))],
            ..epoch(number, 1)
        };
        let epochs = [with(1, vec![]), with(2, vec![BlockReason::NoQuote]), with(3, vec![])];
        let first = store.commit(&epochs[..2]).await.unwrap();
        store.ledger = before;
        store.connection = None;
        let committed = store.commit(&epochs).await.unwrap();
        assert_eq!((first.totals.records_in, committed.totals.records_in), (2, 3), "none counted twice");
        assert_eq!(committed.audit[..2], first.audit, "they are still to be published");
        assert_eq!(
            committed.audit.iter().map(|entry| (entry.seq, entry.epoch)).collect::<Vec<_>>(),
            [(1, 1), (2, 2), (3, 3)]
        );
        assert_eq!(committed.upper, 4);
    }
}

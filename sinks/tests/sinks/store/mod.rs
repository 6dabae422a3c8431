//! The store, from outside, on both databases: what is in it after what was committed.

mod behind;
mod commit;
mod postgres;
mod rebuild;
mod restart;
mod timescale;

use crate::fixture::*;
use marea_model::cursor::Fingerprint;
use marea_model::num::{Amount, Price, Size, pow10};
use marea_model::output::{ClosedEpoch, MetricsWindow, Totals};
use marea_model::recommendation::Action;
use marea_model::time::SECOND;
use marea_model::{
    AccountSnapshot, Amend, BarBody, BlockReason, Event, Nanos, Output, Partition, PartitionMark, Position, Progress,
    Quote, Reason, Tick, Timeframe,
};
use marea_sinks::store::StoreTarget;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use std::path::PathBuf;

/// Where a test's store is: new and empty.
pub enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Place {
    pub fn sqlite(_: &str) -> Self {
        Place::Sqlite(tempfile::tempdir().unwrap())
    }

    pub fn postgres(name: &str) -> Self {
        Place::Postgres(marea_servers::shared::postgres().database(name))
    }

    pub fn file(&self) -> PathBuf {
        match self {
            Place::Sqlite(folder) => folder.path().join("marea.db"),
            Place::Postgres(_) => panic!("no file"),
        }
    }

    pub fn target(&self) -> StoreTarget {
        match self {
            Place::Sqlite(_) => StoreTarget::Sqlite(self.file()),
            Place::Postgres(url) => StoreTarget::parse(url),
        }
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self, Place::Postgres(_))
    }

    /// The first column, which must be text.
    pub async fn rows(&self, query: &str) -> Vec<String> {
        let sql = sqlx::raw_sql(AssertSqlSafe(query));
        match self {
            Place::Sqlite(_) => {
                let mut sqlite = SqliteConnectOptions::new().filename(self.file()).connect().await.unwrap();
                let rows = sql.fetch_all(&mut sqlite).await.unwrap();
                rows.iter().map(|row| row.get_unchecked::<String, _>(0)).collect()
            }
            Place::Postgres(url) => {
                let rows = sql.fetch_all(&mut PgConnection::connect(url).await.unwrap()).await.unwrap();
                rows.iter().map(|row| row.get_unchecked::<String, _>(0)).collect()
            }
        }
    }

    pub async fn execute(&self, statement: &str) {
        let sql = sqlx::raw_sql(AssertSqlSafe(statement));
        match self {
            Place::Sqlite(_) => {
                let mut sqlite = SqliteConnectOptions::new().filename(self.file()).connect().await.unwrap();
                sql.execute(&mut sqlite).await.unwrap();
            }
            Place::Postgres(url) => {
                sql.execute(&mut PgConnection::connect(url).await.unwrap()).await.unwrap();
            }
        }
    }

    /// Bits of a column of floats.
    pub async fn floats(&self, query: &str) -> Vec<u64> {
        let bits: Vec<f64> = match self {
            Place::Sqlite(_) => {
                let mut sqlite = SqliteConnectOptions::new().filename(self.file()).connect().await.unwrap();
                sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut sqlite).await.unwrap()
            }
            Place::Postgres(url) => {
                let mut postgres = PgConnection::connect(url).await.unwrap();
                sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut postgres).await.unwrap()
            }
        };
        bits.into_iter().map(f64::to_bits).collect()
    }

    /// Another empty one of the same kind.
    pub fn another(&self, name: &str) -> Place {
        if self.is_postgres() { Place::postgres(name) } else { Place::sqlite(name) }
    }

    /// A statement with SQLite's way to write bytes.
    pub fn bytes_zero(&self, sql: &str) -> String {
        if self.is_postgres() {
            sql.replace("x'00'", "'\\x00'").replace("VALUES (9, 'later', 1,", "VALUES (9, 'later', true,")
        } else {
            sql.to_owned()
        }
    }

    /// Takes PostgreSQL's lock as another process would, until the connection is dropped.
    pub async fn hold_lock(&self) -> PgConnection {
        let Place::Postgres(url) = self else { panic!("no PostgreSQL") };
        let mut connection = PgConnection::connect(url).await.unwrap();
        let sql = "SELECT pg_try_advisory_lock(hashtextextended('marea.' || current_schema(), 0))";
        assert!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut connection).await.unwrap());
        connection
    }

    /// Lets go of a writer's lock behind its back: a deleted file, a lost connection.
    pub async fn steal_lock(&self) {
        match self {
            Place::Sqlite(folder) => std::fs::remove_file(folder.path().join("marea.db.lock")).unwrap(),
            Place::Postgres(_) => {
                self.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                )
                .await;
            }
        }
    }
}

/// Runs a test on both databases.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::store::Place::sqlite(stringify!($test))).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::store::Place::postgres(stringify!($test))).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// 1, in 1e-8.
pub const UNIT: i64 = pow10(8);

pub fn snapshot(who: &str, event_time: Nanos, equity: i64) -> AccountSnapshot {
    let position = Position { symbol: symbol("IBM"), side: -1, lots: Amount(UNIT / 4) };
    AccountSnapshot {
        account: account(who),
        event_time,
        seq: 1,
        equity: Amount(equity),
        balance: Amount(equity),
        currency: *b"USD",
        positions: vec![position],
    }
}

pub fn amend(of: &str, open_time: Nanos, rev: u32) -> Tick {
    let mut bar = BarBody::first(Price(i64::MAX - 1), Size(i64::MAX));
    bar.volume = i128::MAX - 7;
    let event = Event::Amend(Box::new(Amend { rev, bar: Some(bar) }));
    Tick { symbol: symbol(of), event_time: open_time, seq: 0, event }
}

/// Something in every table.
pub fn everything(epoch: u64) -> ClosedEpoch {
    let mut closed = closed(
        epoch,
        vec![
            up(Output::Bar(bar("IBM", Timeframe::M1, OPEN, [18_190, 18_215, 18_190, 18_215], 2))),
            up(indicator("ema(12)", "IBM", OPEN, -0.0)),
            up(indicator("ema(26)", "IBM", OPEN, 0.1 + 0.2)),
            up(Output::Trade(trade("IBM", "ema-fast"))),
            up(Output::Metrics(Box::new(metrics(
                "IBM",
                "ema-fast",
                MetricsWindow::All,
                Some(f64::MIN_POSITIVE / 2.0),
            )))),
            up(recommended(recommendation("IBM", Action::Buy, 18_190, 2))),
            up(judged(verdict("M1", "IBM", vec![]))),
            up(judged(verdict("M2", "IBM", vec![BlockReason::NoPolicy]))),
        ],
    );
    closed.dead = vec![dead_letter(7, Reason::Late, b"{}")];
    closed.totals = Totals { records_in: 10, accepted: 7, duplicate: 1, dead: 1, held: 1, unknown_fields: 2 };
    let mark = |partition, upper, fingerprint: Option<Fingerprint>| PartitionMark {
        partition: Partition::new(partition).unwrap(),
        low: 2,
        upper,
        greatest: fingerprint.map(|_| OPEN),
        fingerprint,
    };
    let fingerprint = Fingerprint { offset: 9, timestamp_ms: -1, hash: u64::MAX };
    closed.marks = vec![mark("queue", 4, Some(fingerprint)), mark("ticks.csv", u64::MAX - 3, None)];
    let quote = |of| Quote { event_time: OPEN, seq: of, bid: Price(18_189), ask: Price(18_191) };
    closed.quotes = vec![(symbol("IBM"), Some(quote(1))), (symbol("NEW"), None)];
    closed.accounts = vec![snapshot("M1", OPEN, 10_000 * UNIT), snapshot("M1", OPEN + 1, 9_000 * UNIT + UNIT / 2)];
    closed.amends = vec![amend("IBM", OPEN - 60 * SECOND, 4)];
    closed.raw = (0..4).map(|offset| raw_message("queue", offset)).collect();
    closed.progress = Progress { sealed_through: OPEN, closed_through: OPEN + 60 * SECOND };
    closed
}

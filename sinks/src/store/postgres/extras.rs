//! What depends on the server and on who migrates: roles, and TimescaleDB. Each step may be repeated, is done alone, and
//! says what it did or why it skipped it; without all of it everything works.
//!
//! - **Roles**: `marea_reader` reads, `marea_writer` also writes rows; neither logs in, neither changes the schema. They
//!   are made where the migrating user may make roles, and granted to by whoever owns the tables.
//! - **Hypertables**: bars, indicators and trades, in chunks of their BIGINT nanoseconds ([`Chunks`]). `marea_now()` is
//!   the pipeline's own clock, so that a replay of old data is as young as it was.
//! - **Compression**, by symbol, newest first; the primary key's columns are all in it, so that an upsert finds its row
//!   without unpacking more than one segment.
//! - **Retention** of indicators and trades: they are results. Base bars are what a restart computes everything from, and
//!   are never forgotten, as the audit is not.
//! - **No continuous aggregates**: bars of every timeframe are computed by the pipeline, and corrected in the transaction
//!   of the tick that corrects them. An aggregate of bars would be wrong from a correction to its next refresh.

use super::super::link::Named;
use super::super::{Chunks, StoreError, tables};
use super::{CONNECT, options, within};
use marea_model::Nanos;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

/// A hypertable: table, time, what segments and orders its compressed chunks, and whether it may be forgotten.
const HYPERTABLES: [(&str, &str, &str, &str, bool); 3] = [
    ("bars", "open_time", "symbol, timeframe", "open_time DESC", false),
    ("indicators", "open_time", "symbol, timeframe, name", "open_time DESC", true),
    ("trades", "entry_time", "symbol, timeframe", "entry_time DESC, strategy, side", true),
];

const NOW: &str = "CREATE OR REPLACE FUNCTION marea_now() RETURNS BIGINT LANGUAGE SQL STABLE SET search_path FROM CURRENT \
                   AS 'SELECT upper / 4096 * 1000000 FROM pipeline WHERE id = 1'";

/// Does all of it; gives a line for each step. On a connection of its own: TimescaleDB ends one that it does not like.
pub(crate) async fn extras(url: &str, chunks: Chunks, named: &Named) -> Result<Vec<String>, StoreError> {
    let connection = within(CONNECT, named, "connecting", options(url, named)?.connect()).await?;
    let mut steps = Steps { connection, named, chunks, done: Vec::new() };
    steps.roles().await?;
    if let Err(error) = steps.timescale().await {
        steps.done.push(format!("skipped: the rest of TimescaleDB: {error}"));
    }
    Ok(steps.done)
}

struct Steps<'a> {
    connection: PgConnection,
    named: &'a Named,
    chunks: Chunks,
    done: Vec<String>,
}

impl Steps<'_> {
    /// Runs a step. What the server refuses is skipped and said; a lost connection is an error.
    async fn step(&mut self, what: &str, sql: String) -> Result<bool, StoreError> {
        match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection).await {
            Ok(_) => {
                self.done.push(what.to_owned());
                Ok(true)
            }
            Err(sqlx::Error::Database(error)) => {
                self.done.push(format!("skipped: {what}: {}", error.message()));
                Ok(false)
            }
            Err(error) => Err(self.named.error(&error)),
        }
    }

    async fn asks(&mut self, sql: &'static str) -> Result<bool, StoreError> {
        let row = sqlx::query(sql).fetch_one(&mut self.connection).await;
        row.and_then(|row| row.try_get(0)).map_err(|error| self.named.error(&error))
    }

    async fn roles(&mut self) -> Result<(), StoreError> {
        let there = "SELECT count(*) = 2 FROM pg_roles WHERE rolname IN ('marea_reader', 'marea_writer')";
        if !self.asks(there).await? {
            if !self.asks("SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user").await? {
                let skipped = "skipped: roles marea_reader, marea_writer: this user may not make roles";
                self.done.push(skipped.to_owned());
                return Ok(());
            }
            let role = |name: &str| {
                format!(
                    "DO $$ BEGIN CREATE ROLE {name} NOLOGIN; \
                     EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;"
                )
            };
            let sql = role("marea_reader") + &role("marea_writer");
            if !self.step("made the roles marea_reader, marea_writer", sql).await? {
                return Ok(());
            }
        }
        let all = tables::NAMES.join(", ");
        let sql = format!(
            "DO $$ BEGIN \
             EXECUTE format('GRANT USAGE ON SCHEMA %I TO marea_reader, marea_writer', current_schema()); \
             EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO marea_writer', current_database()); \
             GRANT SELECT ON {all}, market_data TO marea_reader, marea_writer; \
             GRANT INSERT, UPDATE, DELETE ON {} TO marea_writer; END $$",
            tables::NAMES.iter().filter(|name| !name.starts_with('_')).copied().collect::<Vec<_>>().join(", ")
        );
        self.step("granted to marea_reader to read, to marea_writer to write rows", sql).await.map(drop)
    }

    async fn timescale(&mut self) -> Result<(), StoreError> {
        if !self.asks("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')").await? {
            let skipped = "skipped: TimescaleDB is not available on this server: bars, indicators and trades are plain \
                           tables, without chunks, compression and retention";
            self.done.push(skipped.to_owned());
            return Ok(());
        }
        let loaded = "SELECT current_setting('timescaledb.max_background_workers', true) IS NOT NULL";
        if !self.asks(loaded).await? {
            let skipped = "skipped: TimescaleDB is not loaded: add it to shared_preload_libraries, restart the server \
                           and migrate again";
            self.done.push(skipped.to_owned());
            return Ok(());
        }
        let extension = "CREATE EXTENSION IF NOT EXISTS timescaledb".to_owned();
        if !self.step("TimescaleDB is there", extension).await? || !self.step("function marea_now", NOW.into()).await? {
            return Ok(());
        }
        let Chunks { span, compress_after, forget_after } = self.chunks;
        for (table, time, segments, order, forgettable) in HYPERTABLES {
            // What stands from an earlier migration takes the new lengths: chunks that are there keep theirs.
            let hypertable = format!(
                "SELECT create_hypertable('{table}', '{time}', chunk_time_interval => {span}::bigint, \
                 if_not_exists => true, migrate_data => true, create_default_indexes => false); \
                 SELECT set_chunk_time_interval('{table}', {span}::bigint); \
                 SELECT set_integer_now_func('{table}', 'marea_now', replace_if_exists => true)"
            );
            if !self.step(&format!("{table}: hypertable in chunks of {}", days(span)), hypertable).await? {
                continue;
            }
            let compression = format!(
                "ALTER TABLE {table} SET (timescaledb.compress, timescaledb.compress_segmentby = '{segments}', \
                 timescaledb.compress_orderby = '{order}'); \
                 SELECT remove_compression_policy('{table}', if_exists => true); \
                 SELECT add_compression_policy('{table}', compress_after => {compress_after}::bigint)"
            );
            self.step(&format!("{table}: compressed after {}", days(compress_after)), compression).await?;
            if !forgettable {
                continue;
            }
            let remove = format!("SELECT remove_retention_policy('{table}', if_exists => true)");
            match forget_after {
                None => self.step(&format!("{table}: never forgotten"), remove).await?,
                Some(age) => {
                    let retention = format!("SELECT add_retention_policy('{table}', drop_after => {age}::bigint)");
                    self.step(&format!("{table}: forgotten after {}", days(age)), format!("{remove}; {retention}"))
                        .await?
                }
            };
        }
        Ok(())
    }
}

fn days(length: Nanos) -> String {
    const HOUR: Nanos = 3_600_000_000_000;
    match (length / HOUR / 24, length / HOUR % 24) {
        (days, 0) => format!("{days} days"),
        (days, hours) => format!("{days} days {hours} h"),
    }
}

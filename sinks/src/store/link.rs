//! One connection, or a pool of them, to either database, for statements that both understand: parameters are `$1`,
//! `$2` …, truth values and numbers come as the cells that they were written as.

use super::StoreError;
use super::cell::{Cell, Row};
use super::postgres::Session;
use super::{postgres, sqlite};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Column, Connection, Decode, Postgres, Row as _, Sqlite, Type, TypeInfo, ValueRef};
use std::sync::Arc;
use std::time::Duration;

/// How long a query of the feed may take: a server that is gone does not say so.
const READ: Duration = Duration::from_secs(15);

/// The one connection that writes.
#[derive(Debug)]
pub(crate) enum Link {
    Sqlite(Box<SqliteConnection>),
    Postgres(Box<Session>),
}

/// Connections that read.
#[derive(Clone, Debug)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// What a database said, of a store by its name.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) store: Arc<str>,
    pub(crate) is_postgres: bool,
}

impl Named {
    pub(crate) fn error(&self, error: &sqlx::Error) -> StoreError {
        if self.is_postgres { postgres::classify(&self.store, error) } else { sqlite::classify(&self.store, error) }
    }

    pub(crate) fn broken(&self, detail: impl std::fmt::Display) -> StoreError {
        StoreError::Statement { store: self.store.clone(), detail: format!("unreadable row: {detail}") }
    }
}

/// Whether to go on reading.
type Taken = Result<(), String>;

impl Link {
    /// Runs a statement without parameters, or several.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        match self {
            Link::Sqlite(connection) => sql.execute(&mut **connection).await.map(drop),
            Link::Postgres(session) => sql.execute(&mut session.connection).await.map(drop),
        }
    }

    /// Runs a statement; gives the number of rows that it changed.
    pub(crate) async fn execute(&mut self, sql: &str, arguments: &[Cell]) -> Result<u64, sqlx::Error> {
        let sql = AssertSqlSafe(sql);
        Ok(match self {
            Link::Sqlite(connection) => {
                let query = arguments.iter().fold(sqlx::query(sql), bind_sqlite);
                query.execute(&mut **connection).await?.rows_affected()
            }
            Link::Postgres(session) => {
                let query = arguments.iter().fold(sqlx::query(sql), bind_postgres);
                query.execute(&mut session.connection).await?.rows_affected()
            }
        })
    }

    /// Hands over row by row. Boxed: the compiler cannot see otherwise that it may move to another thread.
    pub(crate) fn each<'a>(
        &'a mut self,
        named: &'a Named,
        sql: &'a str,
        arguments: &'a [Cell],
        mut take: impl FnMut(Row) -> Taken + Send + 'a,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let error = |error: sqlx::Error| named.error(&error);
            let sql = AssertSqlSafe(sql);
            match self {
                Link::Sqlite(connection) => {
                    let query = arguments.iter().fold(sqlx::query(sql), bind_sqlite);
                    let mut rows = query.fetch(&mut **connection);
                    while let Some(row) = rows.try_next().await.map_err(error)? {
                        take(sqlite_row(&row).map_err(error)?).map_err(|e| named.broken(e))?;
                    }
                }
                Link::Postgres(session) => {
                    let query = arguments.iter().fold(sqlx::query(sql), bind_postgres);
                    let mut rows = query.fetch(&mut session.connection);
                    while let Some(row) = rows.try_next().await.map_err(error)? {
                        take(postgres_row(&row).map_err(error)?).map_err(|e| named.broken(e))?;
                    }
                }
            }
            Ok(())
        })
    }

    /// All rows at once.
    pub(crate) async fn rows(&mut self, named: &Named, sql: &str, arguments: &[Cell]) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::new();
        self.each(named, sql, arguments, |row| {
            rows.push(row);
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    pub(crate) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Link::Sqlite(_) => self.run("BEGIN IMMEDIATE").await,
            Link::Postgres(_) => self.run("BEGIN").await,
        }
    }

    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.run("COMMIT").await
    }

    pub(crate) async fn close(self) -> Result<(), sqlx::Error> {
        match self {
            Link::Sqlite(connection) => connection.close().await,
            Link::Postgres(session) => session.connection.close().await,
        }
    }
}

impl Pool {
    /// All rows at once.
    pub(crate) async fn rows(&self, named: &Named, sql: &str, arguments: &[Cell]) -> Result<Vec<Row>, StoreError> {
        let sql = AssertSqlSafe(sql);
        let rows: Result<Vec<Row>, sqlx::Error> = match self {
            Pool::Sqlite(pool) => {
                let rows = arguments.iter().fold(sqlx::query(sql), bind_sqlite).fetch_all(pool).await;
                rows.and_then(|rows| rows.iter().map(sqlite_row).collect())
            }
            Pool::Postgres(pool) => {
                let query = arguments.iter().fold(sqlx::query(sql), bind_postgres);
                let rows = tokio::time::timeout(READ, query.fetch_all(pool)).await;
                rows.unwrap_or(Err(sqlx::Error::PoolTimedOut)).and_then(|rows| rows.iter().map(postgres_row).collect())
            }
        };
        rows.map_err(|error| named.error(&error))
    }

    pub(crate) async fn close(&self) {
        match self {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

pub(crate) fn bind_sqlite<'q>(
    query: Query<'q, Sqlite, SqliteArguments>,
    cell: &Cell,
) -> Query<'q, Sqlite, SqliteArguments> {
    match cell {
        Cell::Null => query.bind(None::<i64>),
        Cell::Int(value) => query.bind(*value),
        Cell::Bool(value) => query.bind(*value),
        Cell::Float(value) => query.bind(*value),
        Cell::Name(value) => query.bind(*value),
        Cell::Text(value) => query.bind(value.clone()),
        Cell::Shared(value) => query.bind(value.clone()),
        Cell::Bytes(value) => query.bind(value.clone()),
    }
}

/// A NULL has a type there: none may be a parameter.
fn bind_postgres<'q>(query: Query<'q, Postgres, PgArguments>, cell: &Cell) -> Query<'q, Postgres, PgArguments> {
    match cell {
        Cell::Null => query.bind(None::<i64>),
        Cell::Int(value) => query.bind(*value),
        Cell::Bool(value) => query.bind(*value),
        Cell::Float(value) => query.bind(*value),
        Cell::Bytes(value) => query.bind(value.as_slice()),
        text => query.bind(postgres::guarded(text.as_str().unwrap_or_default()).into_owned()),
    }
}

fn sqlite_row(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let mut cells = Vec::with_capacity(row.len());
    for column in 0..row.len() {
        let value = row.try_get_raw(column)?;
        if value.is_null() {
            cells.push(Cell::Null);
            continue;
        }
        let kind = value.type_info();
        cells.push(match kind.name() {
            "INTEGER" | "BOOLEAN" => Cell::Int(row.try_get_unchecked(column)?),
            "REAL" => Cell::Float(row.try_get_unchecked(column)?),
            "BLOB" => Cell::Bytes(row.try_get_unchecked(column)?),
            _ => Cell::Text(row.try_get_unchecked(column)?),
        });
    }
    Ok(Row(cells))
}

fn postgres_row(row: &PgRow) -> Result<Row, sqlx::Error> {
    fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, column: usize) -> Result<T, sqlx::Error> {
        row.try_get(column)
    }
    let mut cells = Vec::with_capacity(row.len());
    for column in 0..row.len() {
        if row.try_get_raw(column)?.is_null() {
            cells.push(Cell::Null);
            continue;
        }
        cells.push(match row.column(column).type_info().name() {
            "INT8" => Cell::Int(get(row, column)?),
            "INT4" => Cell::Int(get::<i32>(row, column)?.into()),
            "BOOL" => Cell::Bool(get(row, column)?),
            "FLOAT8" => Cell::Float(get(row, column)?),
            "BYTEA" => Cell::Bytes(get(row, column)?),
            _ => Cell::Text(postgres::unguarded(get(row, column)?)),
        });
    }
    Ok(Row(cells))
}

//! What is particular to SQLite: WAL, `synchronous = FULL`, rows some at a time by prepared statements (128, 16 or 1
//! rows), and a lock on a file beside the database, `<path>.lock`, for the life of the writer.

use super::StoreError;
use super::cell::Cell;
use super::link::{Link, Named, bind_sqlite};
use super::tables::{Action, Batch};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How many rows a statement carries, greatest first.
const CHUNKS: [usize; 3] = [128, 16, 1];
/// How long a statement waits for another process.
const BUSY: Duration = Duration::from_secs(5);

/// Takes the writer's lock; none if another process, or another store of this one, has it. Dropping it gives it back,
/// and so does the death of the process. The file stays.
pub(crate) fn lock(path: &Path, named: &Named) -> Result<Option<File>, StoreError> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let name = PathBuf::from(name);
    let open = |error: std::io::Error| StoreError::Open {
        store: named.store.clone(),
        detail: format!("{}: {error}", name.display()),
    };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(open(error)),
    }
}

pub(crate) async fn connect(path: &Path) -> Result<Link, sqlx::Error> {
    let connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .row_buffer_size(1_024)
        .connect()
        .await?;
    Ok(Link::Sqlite(Box::new(connection)))
}

fn reading(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY)
}

pub(crate) async fn connect_to_read(path: &Path) -> Result<Link, sqlx::Error> {
    Ok(Link::Sqlite(Box::new(reading(path).connect().await?)))
}

pub(crate) fn pool(path: &Path, connections: u32) -> SqlitePool {
    SqlitePoolOptions::new().max_connections(connections).acquire_timeout(BUSY).connect_lazy_with(reading(path))
}

/// What cannot be opened is not waited for.
pub(crate) fn open_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { store, detail } | StoreError::Statement { store, detail } => {
            StoreError::Open { store, detail }
        }
        other => other,
    }
}

/// The primary result code is the low byte of SQLite's extended ones: https://www.sqlite.org/rescode.html.
pub(crate) fn classify(store: &Arc<str>, error: &sqlx::Error) -> StoreError {
    let (store, detail) = (store.clone(), error.to_string());
    let sqlx::Error::Database(database) = error else {
        return match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                StoreError::Unavailable { store, detail }
            }
            _ => StoreError::Statement { store, detail },
        };
    };
    let code = database.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default() & 0xff;
    match code {
        13 => StoreError::DiskFull { store },
        8 => StoreError::ReadOnly { store },
        5 | 6 => StoreError::Busy { store },
        10 | 14 => StoreError::Unavailable { store, detail: database.message().to_owned() },
        _ => StoreError::Statement { store, detail: database.message().to_owned() },
    }
}

/// A statement that writes so many rows of a batch.
fn sql(batch: &Batch, rows: usize) -> String {
    let (table, width) = (batch.table, batch.width());
    let row = format!("({})", vec!["?"; width].join(","));
    let values = vec![row; rows].join(",");
    let columns = table.list(width, |name, _| name.to_owned());
    match batch.action {
        Action::Delete => format!("DELETE FROM {} WHERE ({columns}) IN (VALUES {values})", table.name),
        _ => format!("INSERT INTO {} ({columns}) VALUES {values}{}", table.name, batch.on_conflict()),
    }
}

pub(crate) async fn write(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let mut rest = batch.rows.as_slice();
    for size in CHUNKS {
        if rest.len() < size {
            continue;
        }
        let sql: Arc<str> = sql(batch, size).into();
        while rest.len() >= size {
            let (chunk, tail) = rest.split_at(size);
            let query = sqlx::query(AssertSqlSafe(sql.clone()));
            chunk.iter().flatten().fold(query, bind_sqlite).execute(&mut *connection).await?;
            rest = tail;
        }
    }
    Ok(())
}

/// Deletes the messages before these places.
pub(crate) async fn forget(connection: &mut SqliteConnection, lows: &[(Cell, Cell)]) -> Result<(), sqlx::Error> {
    for (partition, low) in lows {
        let query = sqlx::query("DELETE FROM raw_messages WHERE source_partition = ? AND source_offset < ?");
        bind_sqlite(bind_sqlite(query, partition), low).execute(&mut *connection).await?;
    }
    Ok(())
}

//! Rows into tables: few as arrays in one statement, many by COPY into a temporary table and from there.
//!
//! Measured: COPY is a quarter faster for ten thousand rows and more, and does not hold a batch twice. For fewer it may
//! cost 40 ms: the client ends it with a message of its own, which waits until the server has acknowledged the rows
//! (Nagle's algorithm, which sqlx leaves on). An array statement is one message.

use super::super::cell::Cell;
use super::super::tables::{Action, Batch, Kind};
use super::{Session, guarded};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

/// From so many rows on a batch goes by COPY: then 40 ms are little.
const COPY_FROM: usize = 8_000;
/// And from so many bytes on: a statement with its parameters must fit into a gigabyte.
const HEAVY: usize = 1 << 26;
/// Bytes sent at a time.
const BUFFER: usize = 1 << 18;

pub(crate) async fn write(session: &mut Session, batch: &Batch) -> Result<(), sqlx::Error> {
    let heavy = batch.rows.iter().flatten().map(size).sum::<usize>() > HEAVY;
    if heavy || batch.rows.len() >= COPY_FROM { copy(session, batch).await } else { arrays(session, batch).await }
}

/// The bytes of a cell that may have many.
fn size(cell: &Cell) -> usize {
    match cell {
        Cell::Bytes(bytes) => bytes.len(),
        cell => cell.as_str().map_or(0, str::len),
    }
}

/// Deletes the messages before these places.
pub(crate) async fn forget(session: &mut Session, lows: &[(Cell, Cell)]) -> Result<(), sqlx::Error> {
    let partitions: Vec<&str> = lows.iter().filter_map(|(partition, _)| partition.as_str()).collect();
    let lows: Vec<Option<i64>> = lows.iter().map(|(_, low)| int(low)).collect();
    let sql = "DELETE FROM raw_messages r USING UNNEST($1::text[], $2::bigint[]) AS s(source_partition, low) \
               WHERE r.source_partition = s.source_partition AND r.source_offset < s.low";
    sqlx::query(sql).bind(partitions).bind(lows).execute(&mut session.connection).await.map(drop)
}

/// The type that a column's values travel as.
fn carrier(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Decimal => "text",
        Kind::Int => "bigint",
        Kind::Bool => "boolean",
        Kind::Float => "double precision",
        Kind::Bytes => "bytea",
    }
}

/// What a batch does with the rows of `source`, which is named `s`.
fn statement(batch: &Batch, source: &str) -> String {
    let (table, width) = (batch.table, batch.width());
    if batch.action == Action::Delete {
        let same = table.columns[..width].iter().map(|(name, _)| format!("t.{name} = s.{name}"));
        let same = same.collect::<Vec<_>>().join(" AND ");
        return format!("DELETE FROM {} t USING {source} WHERE {same}", table.name);
    }
    let columns = table.list(width, |name, _| name.to_owned());
    let values = table.list(width, |name, kind| match kind {
        Kind::Decimal => format!("s.{name}::numeric"),
        _ => format!("s.{name}"),
    });
    format!("INSERT INTO {} ({columns}) SELECT {values} FROM {source}{}", table.name, batch.on_conflict())
}

/// One statement, prepared once for each table and action, a parameter a column.
async fn arrays(session: &mut Session, batch: &Batch) -> Result<(), sqlx::Error> {
    let columns = &batch.table.columns[..batch.width()];
    let parameters: Vec<String> =
        columns.iter().enumerate().map(|(i, (_, kind))| format!("${}::{}[]", i + 1, carrier(*kind))).collect();
    let names = batch.table.list(batch.width(), |name, _| name.to_owned());
    let sql = statement(batch, &format!("UNNEST({}) AS s({names})", parameters.join(",")));
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (i, (_, kind)) in columns.iter().enumerate() {
        query = bind_column(query, *kind, batch.rows.iter().map(|row| &row[i]));
    }
    query.execute(&mut session.connection).await.map(drop)
}

fn bind_column<'q, 'r>(
    query: Query<'q, Postgres, PgArguments>,
    kind: Kind,
    cells: impl Iterator<Item = &'r Cell>,
) -> Query<'q, Postgres, PgArguments> {
    match kind {
        Kind::Text | Kind::Decimal => query.bind(cells.map(|cell| cell.as_str().map(guarded)).collect::<Vec<_>>()),
        Kind::Int => query.bind(cells.map(int).collect::<Vec<_>>()),
        Kind::Bool => query.bind(cells.map(|cell| int(cell).map(|value| value != 0)).collect::<Vec<_>>()),
        Kind::Float => query.bind(cells.map(float).collect::<Vec<_>>()),
        Kind::Bytes => query.bind(cells.map(bytes).collect::<Vec<_>>()),
    }
}

fn int(cell: &Cell) -> Option<i64> {
    match cell {
        Cell::Int(value) => Some(*value),
        Cell::Bool(value) => Some(i64::from(*value)),
        _ => None,
    }
}

fn float(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Float(value) => Some(*value),
        _ => None,
    }
}

fn bytes(cell: &Cell) -> Option<&[u8]> {
    match cell {
        Cell::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// Binary COPY into a temporary table, which empties at the end of the transaction; then one statement.
async fn copy(session: &mut Session, batch: &Batch) -> Result<(), sqlx::Error> {
    let columns = &batch.table.columns[..batch.width()];
    let keys = if batch.action == Action::Delete { "_keys" } else { "" };
    let stage = format!("stage_{}{keys}", batch.table.name);
    if !session.staged.contains(&stage) {
        let types = batch.table.list(batch.width(), |name, kind| format!("{name} {}", carrier(kind)));
        let sql = format!("CREATE TEMPORARY TABLE {stage} ({types}) ON COMMIT DELETE ROWS");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut session.connection).await?;
        session.staged.insert(stage.clone());
    }
    let mut copy = session.connection.copy_in_raw(&format!("COPY {stage} FROM STDIN (FORMAT binary)")).await?;
    let mut buffer = Vec::with_capacity(BUFFER + 4_096);
    buffer.extend(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for row in &batch.rows {
        encode(row, columns, &mut buffer)?;
        if buffer.len() >= BUFFER {
            copy.send(buffer.as_slice()).await?;
            buffer.clear();
        }
    }
    buffer.extend((-1_i16).to_be_bytes());
    copy.send(buffer.as_slice()).await?;
    copy.finish().await?;
    let sql = statement(batch, &format!("{stage} s"));
    sqlx::query(AssertSqlSafe(sql)).execute(&mut session.connection).await.map(drop)
}

/// A row as https://www.postgresql.org/docs/15/sql-copy.html has it in binary: each field its length, then its bytes.
fn encode(row: &[Cell], columns: &[(&str, Kind)], out: &mut Vec<u8>) -> Result<(), sqlx::Error> {
    out.extend((columns.len() as i16).to_be_bytes());
    for (cell, (name, kind)) in row.iter().zip(columns) {
        let at = out.len();
        out.extend((-1_i32).to_be_bytes());
        match (kind, cell) {
            (_, Cell::Null) => continue,
            (Kind::Int, cell) => out.extend(int(cell).unwrap_or_default().to_be_bytes()),
            (Kind::Bool, cell) => out.push(u8::from(int(cell) != Some(0))),
            (Kind::Float, cell) => out.extend(float(cell).unwrap_or_default().to_be_bytes()),
            (Kind::Bytes, cell) => out.extend(bytes(cell).unwrap_or_default()),
            (Kind::Text | Kind::Decimal, cell) => out.extend(guarded(cell.as_str().unwrap_or_default()).as_bytes()),
        }
        let length = i32::try_from(out.len() - at - 4);
        let length = length.map_err(|_| sqlx::Error::Encode(format!("column {name} has more than 2 GiB").into()))?;
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

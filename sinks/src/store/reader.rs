//! Read queries of the feed, on connections of their own: they see what is committed and block no writer.

use super::cell::{Cell, Row};
use super::link::{Named, Pool};
use super::load::{self, body};
use super::writer::opening;
use super::{AuditEntry, StoreError, StoreTarget, postgres, sqlite};
use marea_model::cursor::Reason;
use marea_model::live::ConfigUpdate;
use marea_model::{AccountId, Bar, Cursor, DeadLetter, Epoch, Nanos, Partition, Symbol, Timeframe};

/// A dead letter as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredLetter {
    /// It, its bytes perhaps cut off.
    pub letter: DeadLetter,
    /// The epoch in which it died.
    pub epoch: Epoch,
    /// How many bytes it had.
    pub length: u64,
}

/// Read queries of the feed, on connections of their own: they see what is committed and block no writer.
#[derive(Clone, Debug)]
pub struct Reader {
    named: Named,
    pool: Pool,
    generation: u64,
    last_seq: u64,
}

impl Reader {
    pub(crate) fn new(
        target: &StoreTarget,
        named: Named,
        connections: u32,
        generation: u64,
        last_seq: u64,
    ) -> Result<Reader, StoreError> {
        let pool = match target {
            StoreTarget::Sqlite(path) => Pool::Sqlite(sqlite::pool(path, connections)),
            StoreTarget::Postgres { url, .. } => Pool::Postgres(postgres::pool(url, &named, connections)?),
        };
        Ok(Reader { named, pool, generation, last_seq })
    }

    /// Opens a store only to read: takes nothing over, makes and migrates nothing.
    pub async fn open(target: impl Into<StoreTarget>) -> Result<Reader, StoreError> {
        let target = target.into();
        let mut reader = Reader::new(&target, Named::of(&target), 1, 0, 0)?;
        let rows = reader.rows("SELECT generation, last_seq FROM pipeline WHERE id = 1", &[]).await;
        let rows = rows.map_err(|error| opening(&reader.named, error))?;
        let row = rows.first().ok_or_else(|| reader.named.broken("pipeline has none"))?;
        let read = || Ok::<_, String>((row.unsigned(0)?, row.unsigned(1)?));
        (reader.generation, reader.last_seq) = read().map_err(|error| reader.named.broken(error))?;
        Ok(reader)
    }

    /// The generation that opened the store.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Which store it is, as errors name it.
    pub(crate) fn store(&self) -> std::sync::Arc<str> {
        std::sync::Arc::clone(&self.named.store)
    }

    /// The last seq of the audit when the store was opened.
    pub fn opened_at_seq(&self) -> u64 {
        self.last_seq
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    async fn rows(&self, sql: &str, arguments: &[Cell]) -> Result<Vec<Row>, StoreError> {
        self.pool.rows(&self.named, sql, arguments).await
    }

    async fn all<T>(
        &self,
        sql: &str,
        arguments: &[Cell],
        read: impl Fn(&Row) -> Result<T, String>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.rows(sql, arguments).await?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|error| self.named.broken(error))
    }

    /// The audit after `seq`, at most `limit` entries.
    pub async fn audit_after(&self, seq: u64, limit: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let (sql, arguments) = load::audit_after(seq, limit);
        self.all(sql, &arguments, load::audit_entry).await
    }

    /// The recommendations and verdicts that stand: the last audit entry of each.
    pub async fn standing(&self) -> Result<Vec<AuditEntry>, StoreError> {
        self.all(load::STANDING, &[], load::audit_entry).await
    }

    /// The generation that has the store now: another one than [`Reader::generation`] once it was taken over.
    pub async fn current_generation(&self) -> Result<u64, StoreError> {
        let generation = |row: &Row| row.unsigned(0);
        let rows = self.all("SELECT generation FROM pipeline WHERE id = 1", &[], generation).await?;
        rows.first().copied().ok_or_else(|| self.named.broken("pipeline has none"))
    }

    /// The recommendation that stands, as JSON.
    pub async fn recommendation(&self, symbol: Symbol) -> Result<Option<String>, StoreError> {
        let sql = "SELECT payload FROM recommendations WHERE symbol = $1";
        let payload = |row: &Row| row.text(0).map(str::to_owned);
        Ok(self.all(sql, &[symbol.as_str().into()], payload).await?.pop())
    }

    /// The verdict that stands, as JSON.
    pub async fn verdict(&self, account: AccountId, symbol: Symbol) -> Result<Option<String>, StoreError> {
        let sql = "SELECT payload FROM verdicts WHERE account = $1 AND symbol = $2";
        let payload = |row: &Row| row.text(0).map(str::to_owned);
        Ok(self.all(sql, &[account.as_str().into(), symbol.as_str().into()], payload).await?.pop())
    }

    /// Of each strategy on this symbol and timeframe: trades, total return, Sharpe ratio and win rate of 30 days.
    pub async fn tracks(
        &self,
        symbol: Symbol,
        timeframe: Timeframe,
    ) -> Result<Vec<(String, u64, [Option<f64>; 3])>, StoreError> {
        let sql = "SELECT strategy, trades, total_return, sharpe, win_rate FROM backtest_metrics \
                   WHERE symbol = $1 AND timeframe = $2 AND span = '30d' ORDER BY strategy";
        let track = |row: &Row| {
            let values = [row.optional_float(2)?, row.optional_float(3)?, row.optional_float(4)?];
            Ok((row.text(0)?.to_owned(), row.unsigned(1)?, values))
        };
        self.all(sql, &[symbol.as_str().into(), timeframe.to_string().into()], track).await
    }

    /// Where the delivery of dead letters has come to: all of epochs before it are delivered.
    pub async fn dead_letters_upper(&self) -> Result<Epoch, StoreError> {
        let upper = |row: &Row| row.unsigned(0);
        let rows = self.all("SELECT dead_letters_upper FROM pipeline WHERE id = 1", &[], upper).await?;
        rows.first().copied().ok_or_else(|| self.named.broken("pipeline has none"))
    }

    /// The dead letters of whole epochs from `upper` on, rising by epoch: about `limit` of them, and at least those of one
    /// epoch, if there are any; of each at most so many `bytes`.
    pub async fn dead_letters_from(
        &self,
        upper: Epoch,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<StoredLetter>, StoreError> {
        let end = "SELECT coalesce(max(epoch), 0) FROM \
                   (SELECT epoch FROM dead_letters WHERE epoch >= $1 ORDER BY epoch LIMIT $2) first";
        let sql = format!(
            "SELECT source_partition, source_offset, source_row, reason, field, value, detail, \
             substr(original, 1, {bytes}), epoch, length(original) FROM dead_letters WHERE epoch >= $1 AND epoch <= ({end}) \
             ORDER BY epoch, source_partition, source_offset, source_row, reason"
        );
        self.all(&sql, &[upper.into(), (limit as u64).into()], dead_letter).await
    }

    /// The live configuration: all that the run began with, then the last change of each key, in order.
    pub async fn config_events(&self) -> Result<Vec<ConfigUpdate>, StoreError> {
        self.all(load::CONFIG_EVENTS, &[], load::config_event).await
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
        let order = if from.is_some() { "" } else { " DESC" };
        let sql = format!(
            "SELECT open_time, price_scale, closed, open, high, low, close, CAST(volume AS TEXT), \
             CAST(turnover AS TEXT), count FROM bars WHERE symbol = $1 AND timeframe = $2 AND open_time >= $3 \
             AND open_time < $4 ORDER BY open_time{order} LIMIT $5"
        );
        let arguments = [
            symbol.as_str().into(),
            timeframe.to_string().into(),
            from.unwrap_or(Nanos::MIN).into(),
            to.unwrap_or(Nanos::MAX).into(),
            i64::try_from(limit).unwrap_or(i64::MAX).into(),
        ];
        let bar = |row: &Row| {
            let scale = u8::try_from(row.int(1)?).map_err(|error| error.to_string())?;
            let (open_time, closed) = (row.int(0)?, row.int(2)? != 0);
            Ok(Bar { symbol, timeframe, open_time, body: body(row, 3)?, scale, closed })
        };
        let mut bars = self.all(&sql, &arguments, bar).await?;
        if from.is_none() {
            bars.reverse();
        }
        Ok(bars)
    }
}

fn dead_letter(row: &Row) -> Result<StoredLetter, String> {
    let cursor = Cursor {
        partition: row.parse(0, Partition::new)?,
        offset: row.unsigned(1)?,
        row: u32::try_from(row.int(2)?).map_err(|error| error.to_string())?,
    };
    let reason = row.text(3)?;
    let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason);
    let letter = DeadLetter {
        cursor,
        reason: reason.ok_or("an unknown reason")?,
        field: row.text(4)?.to_owned(),
        value: row.text(5)?.to_owned(),
        detail: row.text(6)?.to_owned(),
        original: row.bytes(7)?,
    };
    Ok(StoredLetter { letter, epoch: row.unsigned(8)?, length: row.unsigned(9)? })
}

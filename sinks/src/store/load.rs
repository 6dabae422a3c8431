//! What stands, read back: the pipeline's row, partitions, the last payloads, accounts.

use super::cell::{Cell, Row};
use super::ledger::Ledger;
use super::link::{Link, Named};
use super::{AuditEntry, AuditKey, LOGIC_VERSION, Standing, StoreError};
use marea_model::codec::{Decoded, Decoder, json};
use marea_model::cursor::Fingerprint;
use marea_model::live::ConfigUpdate;
use marea_model::output::Totals;
use marea_model::{
    AccountId, AccountSnapshot, Amount, Cursor, Epoch, Nanos, Partition, PartitionMark, Price, Progress, Symbol,
    Timeframe,
};
use std::collections::{BTreeMap, BTreeSet};

const PIPELINE: &str = "SELECT upper, generation, last_seq, records_in, accepted, duplicate, dead, held, unknown_fields, \
                        sealed_through, closed_through, metrics_upper, indicators_low \
                        FROM pipeline WHERE id = 1";

/// The pipeline's row.
pub(crate) async fn standing(link: &mut Link, named: &Named, lock: bool) -> Result<Standing, StoreError> {
    let sql = format!("{PIPELINE}{}", if lock && named.is_postgres { " FOR UPDATE" } else { "" });
    let rows = link.rows(named, &sql, &[]).await?;
    let row = rows.first().ok_or_else(|| named.broken("pipeline has none"))?;
    let read = || -> Result<Standing, String> {
        Ok(Standing {
            upper: row.unsigned(0)?,
            generation: row.unsigned(1)?,
            last_seq: row.unsigned(2)?,
            totals: Totals {
                records_in: row.int(3)?,
                accepted: row.int(4)?,
                duplicate: row.int(5)?,
                dead: row.int(6)?,
                held: row.int(7)?,
                unknown_fields: row.int(8)?,
            },
            progress: Progress { sealed_through: row.int(9)?, closed_through: row.int(10)? },
            metrics_upper: row.unsigned(11)?,
            indicators_low: row.int(12)?,
            partitions: BTreeMap::new(),
        })
    };
    read().map_err(|error| named.broken(error))
}

/// The pipeline's upper, of a store that may not be migrated to what is known here. Refuses what
/// another logic computed.
pub(crate) async fn upper(link: &mut Link, named: &Named) -> Result<Epoch, StoreError> {
    let rows = link.rows(named, "SELECT upper, logic_version FROM pipeline WHERE id = 1", &[]).await?;
    let row = rows.first().ok_or_else(|| named.broken("pipeline has none"))?;
    let read = || Ok::<_, String>((row.unsigned(0)?, row.int(1)?));
    let (upper, found) = read().map_err(|error| named.broken(error))?;
    if upper > 0 && found != LOGIC_VERSION {
        return Err(StoreError::LogicVersion { store: named.store.clone(), found, known: LOGIC_VERSION });
    }
    Ok(upper)
}

/// Which logic has computed the store.
pub(crate) async fn logic(link: &mut Link, named: &Named) -> Result<i64, StoreError> {
    let rows = link.rows(named, "SELECT logic_version FROM pipeline WHERE id = 1", &[]).await?;
    let row = rows.first().ok_or_else(|| named.broken("pipeline has none"))?;
    row.int(0).map_err(|error| named.broken(error))
}

/// The ledger as it stands in the database; with `lock`, once nobody else is about to change it.
pub(crate) async fn ledger(link: &mut Link, named: &Named, lock: bool) -> Result<Ledger, StoreError> {
    let mut standing = standing(link, named, lock).await?;
    let sql = format!("SELECT {} FROM partitions", super::tables::PARTITIONS.select(7, ""));
    let partitions = &mut standing.partitions;
    link.each(named, &sql, &[], |row| {
        let mark = mark(&row)?;
        partitions.insert(mark.partition, mark);
        Ok(())
    })
    .await?;
    let mut payloads = Vec::new();
    let sql =
        "SELECT NULL, symbol, payload FROM recommendations UNION ALL SELECT account, symbol, payload FROM verdicts";
    link.each(named, sql, &[], |row| {
        payloads.push((audit_key(&row, 0, 1)?, row.text(2)?.into()));
        Ok(())
    })
    .await?;
    let mut accounts = BTreeMap::new();
    link.each(named, "SELECT payload, CAST(peak AS TEXT) FROM accounts", &[], |row| {
        let snapshot = snapshot(row.text(0)?)?;
        accounts.insert(snapshot.account, (snapshot, row.parse(1, str::parse::<Amount>)?));
        Ok(())
    })
    .await?;
    let mut kept = BTreeSet::new();
    link.each(named, "SELECT DISTINCT source_partition FROM raw_messages", &[], |row| {
        kept.insert(row.parse(0, Partition::new)?);
        Ok(())
    })
    .await?;
    Ok(Ledger::resume(standing, payloads, accounts, kept))
}

fn mark(row: &Row) -> Result<PartitionMark, String> {
    let fingerprint = match row.optional_int(4)? {
        Some(offset) => {
            Some(Fingerprint { offset: offset.cast_unsigned(), timestamp_ms: row.int(5)?, hash: row.unsigned(6)? })
        }
        None => None,
    };
    Ok(PartitionMark {
        partition: row.parse(0, Partition::new)?,
        low: row.unsigned(1)?,
        upper: row.unsigned(2)?,
        greatest: row.optional_int(3)?,
        fingerprint,
    })
}

fn audit_key(row: &Row, account: usize, symbol: usize) -> Result<AuditKey, String> {
    let symbol = row.parse(symbol, Symbol::new)?;
    match row.optional_text(account)? {
        None => Ok(AuditKey::Recommendation(symbol)),
        Some(_) => Ok(AuditKey::Verdict(row.parse(account, AccountId::new)?, symbol)),
    }
}

/// What `encode_account` wrote.
fn snapshot(payload: &str) -> Result<AccountSnapshot, String> {
    let decoder = Decoder { instruments: Default::default(), base_timeframe: Timeframe::S1, max_ahead: None };
    let partition = Partition::new("accounts").map_err(|error| error.to_string())?;
    let mut decoded = Decoded::default();
    let cursor = Cursor { partition, offset: 0, row: 0 };
    json::decode_account(&decoder, payload.as_bytes(), cursor, 0, &mut decoded);
    match (decoded.accounts.pop(), decoded.rejects.pop()) {
        (Some((_, snapshot)), _) => Ok(snapshot),
        (None, reject) => Err(reject.map_or_else(String::new, |reject| reject.detail)),
    }
}

const AUDIT_AFTER: &str =
    "SELECT seq, epoch, generation, account, symbol, payload FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";

/// The query for the audit after a seq.
pub(crate) fn audit_after(seq: u64, limit: usize) -> (&'static str, [Cell; 2]) {
    (AUDIT_AFTER, [seq.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()])
}

/// The query for the last audit entry of each recommendation and verdict that stands.
pub(crate) const STANDING: &str = "SELECT seq, epoch, generation, NULL AS account, symbol, payload FROM recommendations \
                                   UNION ALL SELECT seq, epoch, generation, account, symbol, payload FROM verdicts";

/// A row of these queries.
pub(crate) fn audit_entry(row: &Row) -> Result<AuditEntry, String> {
    Ok(AuditEntry {
        seq: row.unsigned(0)?,
        epoch: row.unsigned(1)?,
        generation: row.unsigned(2)?,
        key: audit_key(row, 3, 4)?,
        payload: row.optional_text(5)?.map(Into::into),
    })
}

/// The query for the live configuration, in order: all that the run began with, since the instruments' scales are those
/// of then, and the last change of each key. Its cost grows with the keys that there ever were, not with their changes.
pub(crate) const CONFIG_EVENTS: &str = "\
    WITH RECURSIVE keys(key) AS (SELECT min(key) FROM config_events UNION ALL \
    SELECT (SELECT min(e.key) FROM config_events e WHERE e.key > keys.key) FROM keys WHERE keys.key IS NOT NULL), \
    wanted(epoch, position) AS (\
    SELECT epoch, position FROM config_events WHERE epoch = (SELECT min(epoch) FROM config_events) UNION \
    SELECT (SELECT e.epoch FROM config_events e WHERE e.key = k.key ORDER BY e.epoch DESC, e.position DESC LIMIT 1), \
    (SELECT e.position FROM config_events e WHERE e.key = k.key ORDER BY e.epoch DESC, e.position DESC LIMIT 1) \
    FROM keys k WHERE k.key IS NOT NULL UNION \
    SELECT * FROM (SELECT epoch, position FROM config_events WHERE key IS NULL \
    ORDER BY epoch DESC, position DESC LIMIT 1) stale) \
    SELECT c.key, c.value, c.revision FROM config_events c \
    JOIN wanted w ON w.epoch = c.epoch AND w.position = c.position ORDER BY c.epoch, c.position";

/// A row of that query.
pub(crate) fn config_event(row: &Row) -> Result<ConfigUpdate, String> {
    let revision = row.optional_int(2)?.unwrap_or(0).cast_unsigned();
    Ok(match (row.optional_text(0)?, row.optional_text(1)?) {
        (Some(key), Some(value)) => ConfigUpdate::Put { key: key.to_owned(), value: value.to_owned(), revision },
        (Some(key), None) => ConfigUpdate::Delete { key: key.to_owned(), revision },
        (None, value) => ConfigUpdate::Stale(value == Some("true")),
    })
}

/// A bar's columns from `open` on: open, high, low, close, volume, turnover, count.
pub(crate) fn body(row: &Row, from: usize) -> Result<marea_model::BarBody, String> {
    let price = |column| row.int(column).map(Price);
    Ok(marea_model::BarBody {
        open: price(from)?,
        high: price(from + 1)?,
        low: price(from + 2)?,
        close: price(from + 3)?,
        volume: row.parse(from + 4, str::parse::<i128>)?,
        turnover: row.parse(from + 5, str::parse::<i128>)?,
        count: row.unsigned(from + 6)?,
    })
}

/// The last open time whose bar has closed by `through`.
pub(crate) fn last_open(through: Nanos, timeframe: Timeframe) -> Nanos {
    through.saturating_sub(timeframe.nanos())
}

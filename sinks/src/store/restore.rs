//! What a process needs to go on where another one was killed: read once, at the start.

use super::StoreError;
use super::cell::Row;
use super::ledger::Ledger;
use super::link::{Link, Named};
use super::load::{CONFIG_EVENTS, body, config_event, last_open};
use super::tables;
use super::verify::{symbols, timeframes};
use crate::failpoint;
use marea_model::{
    BarBody, Cursor, Epoch, Nanos, Partition, Price, Quote, RawMessage, Restoration, Sealed, Symbol, Tick, Timeframe,
};
use std::collections::BTreeSet;

const BARS: &str = "SELECT symbol, open_time, open, high, low, close, CAST(volume AS TEXT), CAST(turnover AS TEXT), count \
                    FROM bars WHERE timeframe = $1 AND open_time <= $2 ORDER BY symbol, open_time";
const BLOCK: &str = "SELECT group_concat(open_time || ' ' || open || ' ' || high || ' ' || low || ' ' || close || ' ' || \
                     volume || ' ' || turnover || ' ' || count, ';') FROM (SELECT * FROM bars WHERE symbol = $1 AND \
                     timeframe = $2 AND open_time > $3 AND open_time <= $4 ORDER BY open_time LIMIT 8192)";
const QUOTES: &str = "SELECT symbol, event_time, seq, bid, ask FROM quotes ORDER BY symbol";
const AMENDS: &str = "SELECT payload FROM amends WHERE open_time <= $1 ORDER BY symbol, open_time, rev, payload";
const DEAD: &str = "SELECT d.source_partition, d.source_offset, d.source_row FROM dead_letters d \
                    JOIN partitions p ON p.source_partition = d.source_partition WHERE d.source_offset >= p.low";
const RAW: &str = "SELECT source_partition, source_offset, content_type, receive_time, body FROM raw_messages \
                   ORDER BY source_partition, source_offset";

/// Everything as of the last committed epoch; none if there is none. `as_it_stands`: nothing is read again, every bar
/// counts as sealed.
pub(crate) async fn restoration(
    link: &mut Link,
    named: &Named,
    ledger: &Ledger,
    base: Timeframe,
    as_it_stands: bool,
) -> Result<Option<Restoration>, StoreError> {
    let standing = ledger.standing();
    let Some(epoch) = standing.upper.checked_sub(1) else { return Ok(None) };
    let timeframes = timeframes(link, named, &tables::BARS).await?;
    if let Some(found) = timeframes.into_iter().min().filter(|found| *found != base) {
        return Err(StoreError::BaseTimeframe { store: named.store.clone(), found, wanted: base });
    }
    let sealed = last_open(standing.progress.sealed_through, base);
    let mut restoration = Restoration {
        epoch,
        progress: standing.progress,
        partitions: standing.partitions.clone(),
        config: Vec::new(),
        sealed: Sealed::default(),
        accounts: ledger.accounts().map(|(snapshot, peak)| (snapshot.clone(), *peak)).collect(),
        dead: BTreeSet::new(),
        raw: Vec::new(),
        unacknowledged: super::unacknowledged::load(link, named).await?,
    };
    let config = &mut restoration.config;
    link.each(named, CONFIG_EVENTS, &[], |row| {
        config.push(config_event(&row)?);
        Ok(())
    })
    .await?;
    restoration.sealed.bars = bars(link, named, base, if as_it_stands { Nanos::MAX } else { sealed }).await?;
    if as_it_stands {
        let bars = restoration.sealed.bars.iter().map(|(_, open_time, _)| *open_time);
        // What was read may stand in no bar, as a quote or a busted trade: read again, it must not count again.
        let read = restoration.partitions.values().filter_map(|mark| mark.greatest).map(|at| base.open_time(at));
        let last = bars.chain(read).map(|open_time| base.close_time(open_time)).max();
        let sealed_through = &mut restoration.progress.sealed_through;
        *sealed_through = (*sealed_through).max(last.unwrap_or(Nanos::MIN));
        restoration.partitions.values_mut().for_each(|mark| mark.low = mark.upper);
    }
    let quotes = &mut restoration.sealed.quotes;
    link.each(named, QUOTES, &[], |row| {
        let quote = match row.optional_int(1)? {
            Some(event_time) => {
                let (bid, ask) = (Price(row.int(3)?), Price(row.int(4)?));
                Some(Quote { event_time, seq: row.unsigned(2)?, bid, ask })
            }
            None => None,
        };
        quotes.push((row.parse(0, Symbol::new)?, quote));
        Ok(())
    })
    .await?;
    let amends = &mut restoration.sealed.amends;
    link.each(named, AMENDS, &[sealed.into()], |row| {
        amends.push(row.parse(0, |text| serde_json::from_str::<Tick>(text))?);
        Ok(())
    })
    .await?;
    let dead = &mut restoration.dead;
    link.each(named, DEAD, &[], |row| {
        let dead_row = u32::try_from(row.int(2)?).map_err(|error| error.to_string())?;
        dead.insert(Cursor { row: dead_row, ..cursor(&row)? });
        Ok(())
    })
    .await?;
    let raw = &mut restoration.raw;
    link.each(named, RAW, &[], |row| {
        raw.push(RawMessage {
            cursor: cursor(&row)?,
            content_type: row.optional_text(2)?.map(str::to_owned),
            receive_time: row.int(3)?,
            body: row.bytes(4)?,
            identity: None,
        });
        Ok(())
    })
    .await?;
    // By place: names of partitions order by their bytes in both databases, offsets as what they are.
    raw.sort_by_key(|message| message.cursor);
    Ok(Some(restoration))
}

type BaseBar = (Symbol, Nanos, BarBody);

/// The sealed base bars, by symbol and open time.
async fn bars(link: &mut Link, named: &Named, base: Timeframe, sealed: Nanos) -> Result<Vec<BaseBar>, StoreError> {
    if !named.is_postgres {
        return blocks_of_bars(link, named, base, sealed).await;
    }
    let mut bars: Vec<BaseBar> = Vec::new();
    link.each(named, BARS, &[base.to_string().into(), sealed.into()], |row| {
        let text = row.text(0)?;
        let symbol = match bars.last() {
            Some((last, ..)) if last.as_str() == text => *last,
            _ => row.parse(0, Symbol::new)?,
        };
        failpoint::pass("restore.bars");
        bars.push((symbol, row.int(1)?, body(&row, 2)?));
        Ok(())
    })
    .await?;
    Ok(bars)
}

/// The same from SQLite: some thousand bars a row, since a row costs its driver 5 µs, and a query next to nothing.
async fn blocks_of_bars(
    link: &mut Link,
    named: &Named,
    base: Timeframe,
    sealed: Nanos,
) -> Result<Vec<BaseBar>, StoreError> {
    let sql = format!("{} SELECT symbol FROM symbols WHERE symbol IS NOT NULL", symbols(&tables::BARS));
    let mut bars: Vec<BaseBar> = Vec::new();
    for row in link.rows(named, &sql, &[]).await? {
        let symbol = row.parse(0, Symbol::new).map_err(|error| named.broken(error))?;
        let mut after = Nanos::MIN;
        loop {
            let arguments = [symbol.as_str().into(), base.to_string().into(), after.into(), sealed.into()];
            let rows = link.rows(named, BLOCK, &arguments).await?;
            let block = rows.first().map_or(Ok(None), |row| row.optional_text(0));
            let Some(block) = block.map_err(|error| named.broken(error))? else { break };
            failpoint::pass("restore.bars");
            let before = bars.len();
            for line in block.split(';') {
                let (open_time, body) = line_of_a_block(line)
                    .ok_or_else(|| named.broken(format!("{} is no bar", marea_model::cursor::excerpt(line))))?;
                bars.push((symbol, open_time, body));
            }
            bars[before..].sort_unstable_by_key(|(_, open_time, _)| *open_time);
            after = bars.last().map_or(Nanos::MAX, |(_, open_time, _)| *open_time);
        }
    }
    Ok(bars)
}

fn line_of_a_block(line: &str) -> Option<(Nanos, BarBody)> {
    fn next<T: std::str::FromStr>(fields: &mut std::str::Split<'_, char>) -> Option<T> {
        fields.next()?.parse().ok()
    }
    let mut fields = line.split(' ');
    let open_time = next(&mut fields)?;
    let body = BarBody {
        open: Price(next(&mut fields)?),
        high: Price(next(&mut fields)?),
        low: Price(next(&mut fields)?),
        close: Price(next(&mut fields)?),
        volume: next(&mut fields)?,
        turnover: next(&mut fields)?,
        count: next::<i64>(&mut fields)?.cast_unsigned(),
    };
    fields.next().is_none().then_some((open_time, body))
}

fn cursor(row: &Row) -> Result<Cursor, String> {
    let offset: Epoch = row.unsigned(1)?;
    Ok(Cursor { partition: row.parse(0, Partition::new)?, offset, row: 0 })
}

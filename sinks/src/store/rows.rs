//! What a [`Plan`] writes into the tables, row by row. The same for both databases.

use super::cell::Cell;
use super::ledger::Plan;
use super::tables::{
    ACCOUNTS, AMENDS, AUDIT, Action, Batch, CONFIG_EVENTS, DEAD_LETTERS, PARTITIONS, QUOTES, RAW_MESSAGES, STATE,
};
use super::unacknowledged::{self, UNACKNOWLEDGED};
use super::{AuditEntry, AuditKey};
use marea_model::live::ConfigUpdate;
use marea_model::num::F64;
use marea_model::output::{Key, MetricsRow, TradeRow};
use marea_model::{
    AccountId, AccountSnapshot, Amount, Bar, DeadLetter, Epoch, IndicatorRow, Output, PartitionMark, Quote, RawMessage,
    Recommendation, Symbol, Verdict,
};
use std::collections::BTreeMap;

/// Everything a transaction writes after its fence, table by table, each ordered by key. None is empty.
pub(crate) fn batches(plan: &Plan<'_>, config: &[(Epoch, ConfigUpdate)]) -> Vec<Batch> {
    let mut upserts = STATE.map(|table| Batch::new(table, Action::Upsert, None));
    let mut deletes = STATE.map(|table| Batch::new(table, Action::Delete, None));
    // The last audit entry of each key: its state carries that seq.
    let entries: BTreeMap<AuditKey, &AuditEntry> = plan.audit.iter().map(|entry| (entry.key, entry)).collect();
    for (key, (row, epoch)) in &plan.rows {
        let table = table_of(key);
        let Some(row) = row else {
            deletes[table].rows.push(key_cells(key));
            continue;
        };
        let mut cells = cells(row);
        match audit_key(key).and_then(|key| entries.get(&key)) {
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
    let mut position = (0, 0_i64);
    let config = config.iter().map(|(epoch, update)| {
        position = if position.0 == *epoch { (*epoch, position.1 + 1) } else { (*epoch, 0) };
        config_cells(*epoch, position.1, update)
    });
    let quotes = plan.quotes.iter().map(|(symbol, (quote, epoch))| quote_cells(*symbol, *quote, *epoch));
    let accounts = plan.accounts.iter().map(|(_, (snapshot, peak, epoch))| account_cells(snapshot, *peak, *epoch));
    let mut amends: Vec<Vec<Cell>> = plan.amends.iter().map(|(tick, epoch)| amend_cells(tick, *epoch)).collect();
    amends.sort_by(|a, b| a[0].as_str().cmp(&b[0].as_str()));
    let all = deletes.into_iter().chain(upserts).chain([
        Batch::new(&AUDIT, Action::Insert, plan.audit.iter().map(audit_cells)),
        Batch::new(
            &DEAD_LETTERS,
            Action::InsertOnce,
            plan.dead.iter().map(|(letter, epoch)| dead_letter_cells(letter, *epoch)),
        ),
        Batch::new(&PARTITIONS, Action::Upsert, plan.marks.values().map(partition_cells)),
        Batch::new(&RAW_MESSAGES, Action::InsertOnce, plan.raw.iter().map(|message| raw_message_cells(message))),
        Batch::new(&UNACKNOWLEDGED, Action::InsertOnce, unacknowledged::rows(&plan.raw)),
        Batch::new(&QUOTES, Action::Upsert, quotes),
        Batch::new(&ACCOUNTS, Action::Upsert, accounts),
        Batch::new(&AMENDS, Action::InsertOnce, amends),
        Batch::new(&CONFIG_EVENTS, Action::Insert, config),
    ]);
    all.filter(|batch| !batch.rows.is_empty()).collect()
}

/// The place of a key's table in [`STATE`].
pub(crate) fn table_of(key: &Key) -> usize {
    match key {
        Key::Bar(..) => 0,
        Key::Indicator(..) => 1,
        Key::Trade(..) => 2,
        Key::Metrics(..) => 3,
        Key::Recommendation(_) => 4,
        Key::Verdict(..) => 5,
    }
}

/// The audit's key, of a key that has an audit.
pub(crate) fn audit_key(key: &Key) -> Option<AuditKey> {
    match *key {
        Key::Recommendation(symbol) => Some(AuditKey::Recommendation(symbol)),
        Key::Verdict(account, symbol) => Some(AuditKey::Verdict(account, symbol)),
        _ => None,
    }
}

/// A key as the first columns of its table.
pub(crate) fn key_cells(key: &Key) -> Vec<Cell> {
    match key {
        Key::Bar(symbol, timeframe, open_time) => {
            vec![symbol.as_str().into(), timeframe.to_string().into(), (*open_time).into()]
        }
        Key::Indicator(symbol, timeframe, open_time, name) => {
            let name = Cell::Shared(name.clone());
            vec![symbol.as_str().into(), timeframe.to_string().into(), (*open_time).into(), name]
        }
        Key::Trade(strategy, symbol, timeframe, entry_time, side) => vec![
            strategy.as_str().into(),
            symbol.as_str().into(),
            timeframe.to_string().into(),
            (*entry_time).into(),
            i64::from(*side).into(),
        ],
        Key::Metrics(strategy, symbol, timeframe, window) => {
            vec![strategy.as_str().into(), symbol.as_str().into(), timeframe.to_string().into(), window.as_str().into()]
        }
        Key::Recommendation(symbol) => vec![symbol.as_str().into()],
        Key::Verdict(account, symbol) => vec![account.as_str().into(), symbol.as_str().into()],
    }
}

/// A row's columns, without those that say when and by whom it was written.
pub(crate) fn cells(row: &Output) -> Vec<Cell> {
    match row {
        Output::Bar(row) => bar_cells(row),
        Output::Indicator(row) => indicator_cells(row),
        Output::Trade(row) => trade_cells(row),
        Output::Metrics(row) => metrics_cells(row),
        Output::Recommendation(row) => recommendation_cells(row),
        Output::Verdict(row) => verdict_cells(row),
    }
}

fn partition_cells(mark: &PartitionMark) -> Vec<Cell> {
    let fingerprint = mark.fingerprint;
    vec![
        mark.partition.as_str().into(),
        mark.low.into(),
        mark.upper.into(),
        mark.greatest.into(),
        fingerprint.map(|f| f.offset).into(),
        fingerprint.map(|f| f.timestamp_ms).into(),
        fingerprint.map(|f| f.hash).into(),
    ]
}

fn raw_message_cells(message: &RawMessage) -> Vec<Cell> {
    vec![
        message.cursor.partition.as_str().into(),
        message.cursor.offset.into(),
        message.content_type.clone().into(),
        message.receive_time.into(),
        Cell::Bytes(message.body.clone()),
    ]
}

fn quote_cells(symbol: Symbol, quote: Option<Quote>, epoch: Epoch) -> Vec<Cell> {
    vec![
        symbol.as_str().into(),
        quote.map(|quote| quote.event_time).into(),
        quote.map(|quote| quote.seq).into(),
        quote.map(|quote| quote.bid.0).into(),
        quote.map(|quote| quote.ask.0).into(),
        epoch.into(),
    ]
}

fn account_cells(snapshot: &AccountSnapshot, peak: Amount, epoch: Epoch) -> Vec<Cell> {
    let payload = marea_model::codec::json::encode_account(snapshot);
    vec![
        snapshot.account.as_str().into(),
        snapshot.event_time.into(),
        snapshot.seq.into(),
        snapshot.equity.to_string().into(),
        snapshot.balance.to_string().into(),
        String::from_utf8_lossy(&snapshot.currency).into_owned().into(),
        (snapshot.positions.len() as u64).into(),
        peak.to_string().into(),
        String::from_utf8_lossy(&payload).into_owned().into(),
        epoch.into(),
    ]
}

/// The tick as it is in memory: its numbers need no instrument to be read again.
fn amend_cells(tick: &marea_model::Tick, epoch: Epoch) -> Vec<Cell> {
    let rev = match &tick.event {
        marea_model::Event::Amend(amend) => i64::from(amend.rev),
        _ => 0,
    };
    let payload = serde_json::to_string(tick).expect("ticks have text keys and no failing serializer");
    vec![tick.symbol.as_str().into(), tick.event_time.into(), rev.into(), payload.into(), epoch.into()]
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

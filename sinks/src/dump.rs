//! The final state as sorted CSV, so that anyone can compare it with any other program.
//!
//! ```text
//!  changes of each epoch ──apply──► State: key → row ──► bars.csv, indicators.csv, trades.csv, metrics.csv,
//!            dead letters ────────►                       recommendations.csv, verdicts.csv, dead_letters.csv
//! ```
//!
//! 1. Rows come in the order of their keys (symbols by text, timeframes by length, times rising).
//! 2. Times are RFC 3339 with nanoseconds in UTC; a double reads back as the same bits; undefined is empty.
//! 3. Nothing depends on how records were cut into epochs: no epoch, seq, generation, receive time or `as_of`.
//!    Only dead letters are history; [`State::to_bytes`] leaves them out.

use csv::Writer;
use marea_model::num::{F64, SCALE, format_fixed};
use marea_model::output::{Change, ClosedEpoch, Key};
use marea_model::time::format_rfc3339;
use marea_model::{
    Bar, Cursor, DeadLetter, IndicatorRow, MetricsRow, Nanos, Output, Reason, Recommendation, TradeRow, Verdict,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A table of the dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// `bars.csv`
    Bars,
    /// `indicators.csv`
    Indicators,
    /// `trades.csv`
    Trades,
    /// `metrics.csv`, in long form
    Metrics,
    /// `recommendations.csv`
    Recommendations,
    /// `verdicts.csv`
    Verdicts,
    /// `dead_letters.csv`
    DeadLetters,
}

impl Table {
    /// The tables that the laws compare.
    pub const STATE: [Table; 6] =
        [Table::Bars, Table::Indicators, Table::Trades, Table::Metrics, Table::Recommendations, Table::Verdicts];

    /// Its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Table::Bars => "bars.csv",
            Table::Indicators => "indicators.csv",
            Table::Trades => "trades.csv",
            Table::Metrics => "metrics.csv",
            Table::Recommendations => "recommendations.csv",
            Table::Verdicts => "verdicts.csv",
            Table::DeadLetters => "dead_letters.csv",
        }
    }

    /// Its columns.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Table::Bars => &[
                "symbol",
                "timeframe",
                "open_time",
                "open",
                "high",
                "low",
                "close",
                "volume",
                "turnover",
                "count",
                "closed",
            ],
            Table::Indicators => &["symbol", "timeframe", "open_time", "name", "value"],
            Table::Trades => &[
                "strategy",
                "symbol",
                "timeframe",
                "side",
                "entry_time",
                "entry_price",
                "exit_time",
                "exit_price",
                "quantity",
                "pnl",
                "fees",
                "exit_reason",
            ],
            Table::Metrics => &["strategy", "symbol", "timeframe", "window", "metric", "value"],
            Table::Recommendations => &[
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
                "votes",
                "explanation",
            ],
            Table::Verdicts => &[
                "account",
                "symbol",
                "intent",
                "side",
                "allow",
                "reasons",
                "details",
                "lots",
                "entry",
                "stop_loss",
                "take_profit",
                "cancel_pending",
                "recommendation_time",
                "valid_until",
                "blocked_until",
            ],
            Table::DeadLetters => &["partition", "offset", "row", "reason", "field", "value", "detail", "original"],
        }
    }
}

/// Why a dump could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct DumpError {
    path: PathBuf,
    source: std::io::Error,
}

/// The state tables in memory: what stands after the epochs applied so far.
#[derive(Clone, Debug, Default)]
pub struct State {
    rows: BTreeMap<Key, Output>,
    dead: BTreeMap<(Cursor, Reason), DeadLetter>,
}

impl State {
    /// Applies the net changes of an epoch.
    pub fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Upsert(row) => self.rows.insert(row.key(), row.clone()),
                Change::Delete(row) => self.rows.remove(&row.key()),
            };
        }
    }

    /// Adds dead letters; each (place, reason) stands once.
    pub fn add_dead(&mut self, dead: &[DeadLetter]) {
        for letter in dead {
            self.dead.entry((letter.cursor, letter.reason)).or_insert_with(|| letter.clone());
        }
    }

    /// Applies a closed epoch: its changes and its dead letters.
    pub fn apply_epoch(&mut self, epoch: &ClosedEpoch) {
        self.apply(&epoch.changes);
        self.rows.extend(epoch.rows.outputs().map(|row| (row.key(), row)));
        self.add_dead(&epoch.dead);
    }

    /// Every row, by key.
    pub fn rows(&self) -> &BTreeMap<Key, Output> {
        &self.rows
    }

    /// The row of a key.
    pub fn get(&self, key: &Key) -> Option<&Output> {
        self.rows.get(key)
    }

    /// Dead letters by place.
    pub fn dead(&self) -> impl Iterator<Item = &DeadLetter> {
        self.dead.values()
    }

    /// Writes all seven tables into `dir`, which is made if it is not there.
    pub fn write_csv(&self, dir: &Path) -> Result<(), DumpError> {
        fs::create_dir_all(dir).map_err(|source| DumpError { path: dir.to_owned(), source })?;
        for table in Table::STATE.into_iter().chain([Table::DeadLetters]) {
            let path = dir.join(table.file_name());
            File::create(&path)
                .map_err(csv::Error::from)
                .and_then(|file| self.write(table, BufWriter::new(file)))
                .map_err(|error| DumpError { path, source: error.into() })?;
        }
        Ok(())
    }

    /// The state tables' CSVs one after the other: what the laws compare.
    pub fn to_bytes(&self) -> Vec<u8> {
        Table::STATE.into_iter().flat_map(|table| self.table(table)).collect()
    }

    /// One table's CSV.
    pub fn table(&self, table: Table) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(table, &mut bytes).expect("writing to memory does not fail");
        bytes
    }

    fn write(&self, table: Table, out: impl Write) -> csv::Result<()> {
        let mut csv = Writer::from_writer(out);
        csv.write_record(table.columns())?;
        let rows = self.rows.values();
        match table {
            Table::Bars => rows.filter_map(as_bar).try_for_each(|row| csv.write_record(bar(row)))?,
            Table::Indicators => rows.filter_map(as_indicator).try_for_each(|row| csv.write_record(indicator(row)))?,
            Table::Trades => rows.filter_map(as_trade).try_for_each(|row| csv.write_record(trade(row)))?,
            Table::Metrics => rows.filter_map(as_metrics).try_for_each(|row| metrics(row, &mut csv))?,
            Table::Recommendations => {
                rows.filter_map(as_recommendation).try_for_each(|row| csv.write_record(recommendation(row)))?;
            }
            Table::Verdicts => rows.filter_map(as_verdict).try_for_each(|row| csv.write_record(verdict(row)))?,
            Table::DeadLetters => self.dead.values().try_for_each(|letter| csv.write_record(dead_letter(letter)))?,
        }
        csv.flush()?;
        Ok(())
    }
}

macro_rules! only {
    ($name:ident, $variant:ident, $row:ty) => {
        fn $name(output: &Output) -> Option<&$row> {
            if let Output::$variant(row) = output { Some(row) } else { None }
        }
    };
}
only!(as_bar, Bar, Bar);
only!(as_indicator, Indicator, IndicatorRow);
only!(as_trade, Trade, TradeRow);
only!(as_metrics, Metrics, MetricsRow);
only!(as_recommendation, Recommendation, Recommendation);
only!(as_verdict, Verdict, Verdict);

/// The shortest text that reads back as the same bits; exponents only where zeros would run long.
pub fn float(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && size.is_finite() && !(1e-9..1e17).contains(&size) {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

fn optional_float(value: Option<F64>) -> String {
    value.map(|v| float(v.0)).unwrap_or_default()
}

fn optional_time(value: Option<Nanos>) -> String {
    value.map(format_rfc3339).unwrap_or_default()
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("rows have text keys and no failing serializer")
}

fn bar(bar: &Bar) -> [String; 11] {
    let body = &bar.body;
    [
        bar.symbol.to_string(),
        bar.timeframe.to_string(),
        format_rfc3339(bar.open_time),
        bar.price(body.open).to_string(),
        bar.price(body.high).to_string(),
        bar.price(body.low).to_string(),
        bar.price(body.close).to_string(),
        format_fixed(body.volume, SCALE),
        format_fixed(body.turnover, bar.scale + SCALE),
        body.count.to_string(),
        bar.closed.to_string(),
    ]
}

fn indicator(row: &IndicatorRow) -> [String; 5] {
    [
        row.symbol.to_string(),
        row.timeframe.to_string(),
        format_rfc3339(row.open_time),
        row.name.to_string(),
        float(row.value.0),
    ]
}

fn trade(row: &TradeRow) -> [String; 12] {
    [
        row.strategy.to_string(),
        row.symbol.to_string(),
        row.timeframe.to_string(),
        row.side.to_string(),
        format_rfc3339(row.entry_time),
        float(row.entry_price.0),
        format_rfc3339(row.exit_time),
        float(row.exit_price.0),
        float(row.quantity.0),
        float(row.pnl.0),
        float(row.fees.0),
        row.exit_reason.as_str().to_owned(),
    ]
}

fn metrics<W: Write>(row: &MetricsRow, csv: &mut Writer<W>) -> csv::Result<()> {
    let timeframe = row.timeframe.to_string();
    row.metrics.named().into_iter().try_for_each(|(name, value)| {
        let value = value.map(float).unwrap_or_default();
        csv.write_record([row.strategy.as_str(), row.symbol.as_str(), &timeframe, row.window.as_str(), name, &value])
    })
}

fn recommendation(row: &Recommendation) -> [String; 20] {
    [
        row.symbol.to_string(),
        row.timeframe.to_string(),
        format_rfc3339(row.bar_open_time),
        format_rfc3339(row.bar_close_time),
        row.action.as_str().to_owned(),
        row.bias.to_string(),
        row.status.as_str().to_owned(),
        float(row.strength.0),
        float(row.consensus.0),
        float(row.confidence.0),
        row.agreeing.to_string(),
        row.close.to_string(),
        optional_float(row.atr),
        optional(row.entry_low),
        optional(row.entry_high),
        optional(row.stop_loss),
        optional(row.take_profit),
        format_rfc3339(row.expires_at),
        json(&row.votes),
        json(&row.explanation),
    ]
}

fn verdict(row: &Verdict) -> [String; 15] {
    let reasons: Vec<&str> = row.reasons.iter().map(|r| r.as_str()).collect();
    [
        row.account.to_string(),
        row.symbol.to_string(),
        row.intent.as_str().to_owned(),
        row.side.to_string(),
        row.allow.to_string(),
        reasons.join(" "),
        row.details.join("; "),
        optional(row.lots),
        optional(row.entry),
        optional(row.stop_loss),
        optional(row.take_profit),
        row.cancel_pending.to_string(),
        optional_time(row.recommendation_time),
        optional_time(row.valid_until),
        optional_time(row.blocked_until),
    ]
}

fn dead_letter(letter: &DeadLetter) -> [String; 8] {
    // Bytes that are no text are written in hexadecimal: a CSV file is text.
    let original = std::str::from_utf8(&letter.original).map_or_else(
        |_| letter.original.iter().fold("hex:".to_owned(), |text, byte| format!("{text}{byte:02x}")),
        str::to_owned,
    );
    [
        letter.cursor.partition.to_string(),
        letter.cursor.offset.to_string(),
        letter.cursor.row.to_string(),
        letter.reason.to_string(),
        letter.field.clone(),
        letter.value.clone(),
        letter.detail.clone(),
        original,
    ]
}

//! The tables, their columns and keys. The same for both databases.

use super::cell::Cell;

/// What a column holds. The migrations say what each database makes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Text,
    Int,
    Bool,
    Float,
    Bytes,
    /// A decimal number of any length, here as text.
    Decimal,
}
use Kind::{Bool, Bytes, Decimal, Float, Int, Text};

/// A table. Its key is its first `key` columns.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) key: usize,
    pub(crate) columns: &'static [(&'static str, Kind)],
}

impl Table {
    /// `a,b,c`, each made by `write`.
    pub(crate) fn list(&self, columns: usize, write: impl Fn(&str, Kind) -> String) -> String {
        self.columns[..columns].iter().map(|(name, kind)| write(name, *kind)).collect::<Vec<_>>().join(",")
    }

    /// Its columns as a query reads them, with a prefix such as `b.`.
    pub(crate) fn select(&self, columns: usize, prefix: &str) -> String {
        self.list(columns, |name, kind| match kind {
            Kind::Decimal => format!("CAST({prefix}{name} AS TEXT)"),
            _ => format!("{prefix}{name}"),
        })
    }
}

pub(crate) static PARTITIONS: Table = Table {
    name: "partitions",
    key: 1,
    columns: &[
        ("source_partition", Text),
        ("low", Int),
        ("upper", Int),
        ("greatest", Int),
        ("fingerprint_offset", Int),
        ("fingerprint_timestamp_ms", Int),
        ("fingerprint_hash", Int),
    ],
};
pub(crate) static RAW_MESSAGES: Table = Table {
    name: "raw_messages",
    key: 2,
    columns: &[
        ("source_partition", Text),
        ("source_offset", Int),
        ("content_type", Text),
        ("receive_time", Int),
        ("body", Bytes),
    ],
};
pub(crate) static QUOTES: Table = Table {
    name: "quotes",
    key: 1,
    columns: &[("symbol", Text), ("event_time", Int), ("seq", Int), ("bid", Int), ("ask", Int), ("epoch", Int)],
};
pub(crate) static ACCOUNTS: Table = Table {
    name: "accounts",
    key: 1,
    columns: &[
        ("account", Text),
        ("event_time", Int),
        ("seq", Int),
        ("equity", Decimal),
        ("balance", Decimal),
        ("currency", Text),
        ("positions", Int),
        ("peak", Decimal),
        ("payload", Text),
        ("epoch", Int),
    ],
};
pub(crate) static AMENDS: Table = Table {
    name: "amends",
    key: 4,
    columns: &[("symbol", Text), ("open_time", Int), ("rev", Int), ("payload", Text), ("epoch", Int)],
};
pub(crate) static BARS: Table = Table {
    name: "bars",
    key: 3,
    columns: &[
        ("symbol", Text),
        ("timeframe", Text),
        ("open_time", Int),
        ("price_scale", Int),
        ("open", Int),
        ("high", Int),
        ("low", Int),
        ("close", Int),
        ("volume", Decimal),
        ("turnover", Decimal),
        ("count", Int),
        ("closed", Bool),
        ("epoch", Int),
    ],
};
pub(crate) static INDICATORS: Table = Table {
    name: "indicators",
    key: 4,
    columns: &[
        ("symbol", Text),
        ("timeframe", Text),
        ("open_time", Int),
        ("name", Text),
        ("value", Float),
        ("epoch", Int),
    ],
};
pub(crate) static TRADES: Table = Table {
    name: "trades",
    key: 5,
    columns: &[
        ("strategy", Text),
        ("symbol", Text),
        ("timeframe", Text),
        ("entry_time", Int),
        ("side", Int),
        ("entry_price", Float),
        ("exit_time", Int),
        ("exit_price", Float),
        ("quantity", Float),
        ("pnl", Float),
        ("fees", Float),
        ("exit_reason", Text),
        ("epoch", Int),
    ],
};
pub(crate) static METRICS: Table = Table {
    name: "backtest_metrics",
    key: 4,
    columns: &[
        ("strategy", Text),
        ("symbol", Text),
        ("timeframe", Text),
        ("span", Text),
        ("as_of", Int),
        ("bars", Int),
        ("trades", Int),
        ("total_return", Float),
        ("cagr", Float),
        ("sharpe", Float),
        ("sortino", Float),
        ("max_drawdown", Float),
        ("calmar", Float),
        ("recovery_factor", Float),
        ("win_rate", Float),
        ("profit_factor", Float),
        ("expectancy", Float),
        ("mean_r", Float),
        ("average_win", Float),
        ("average_loss", Float),
        ("largest_win", Float),
        ("largest_loss", Float),
        ("fees", Float),
        ("average_duration", Float),
        ("time_in_market", Float),
        ("buy_and_hold_return", Float),
        ("epoch", Int),
    ],
};
pub(crate) static RECOMMENDATIONS: Table = Table {
    name: "recommendations",
    key: 1,
    columns: &[
        ("symbol", Text),
        ("timeframe", Text),
        ("bar_open_time", Int),
        ("bar_close_time", Int),
        ("action", Text),
        ("bias", Int),
        ("status", Text),
        ("strength", Float),
        ("consensus", Float),
        ("confidence", Float),
        ("agreeing", Int),
        ("close", Decimal),
        ("atr", Float),
        ("entry_low", Decimal),
        ("entry_high", Decimal),
        ("stop_loss", Decimal),
        ("take_profit", Decimal),
        ("expires_at", Int),
        ("seq", Int),
        ("epoch", Int),
        ("generation", Int),
        ("payload", Text),
    ],
};
pub(crate) static VERDICTS: Table = Table {
    name: "verdicts",
    key: 2,
    columns: &[
        ("account", Text),
        ("symbol", Text),
        ("intent", Text),
        ("side", Int),
        ("allow", Bool),
        ("reasons", Text),
        ("lots", Int),
        ("entry", Decimal),
        ("stop_loss", Decimal),
        ("take_profit", Decimal),
        ("cancel_pending", Bool),
        ("recommendation_time", Int),
        ("valid_until", Int),
        ("blocked_until", Int),
        ("as_of", Int),
        ("seq", Int),
        ("epoch", Int),
        ("generation", Int),
        ("payload", Text),
    ],
};
pub(crate) static AUDIT: Table = Table {
    name: "audit",
    key: 1,
    columns: &[
        ("seq", Int),
        ("epoch", Int),
        ("generation", Int),
        ("kind", Text),
        ("account", Text),
        ("symbol", Text),
        ("payload", Text),
    ],
};
pub(crate) static DEAD_LETTERS: Table = Table {
    name: "dead_letters",
    key: 4,
    columns: &[
        ("source_partition", Text),
        ("source_offset", Int),
        ("source_row", Int),
        ("reason", Text),
        ("field", Text),
        ("value", Text),
        ("detail", Text),
        ("original", Bytes),
        ("epoch", Int),
    ],
};
pub(crate) static CONFIG_EVENTS: Table = Table {
    name: "config_events",
    key: 2,
    columns: &[("epoch", Int), ("position", Int), ("key", Text), ("value", Text), ("revision", Int)],
};

/// Every table that a store has.
pub(crate) const NAMES: [&str; 17] = [
    "pipeline",
    "partitions",
    "raw_messages",
    "unacknowledged",
    "quotes",
    "accounts",
    "amends",
    "bars",
    "indicators",
    "trades",
    "backtest_metrics",
    "recommendations",
    "verdicts",
    "audit",
    "dead_letters",
    "config_events",
    "_sqlx_migrations",
];

/// The tables of the state, in the order of [`Output`].
pub(crate) static STATE: [&Table; 6] = [&BARS, &INDICATORS, &TRADES, &METRICS, &RECOMMENDATIONS, &VERDICTS];

/// What a batch does with its rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Action {
    /// Insert, or replace what stands.
    Upsert,
    /// Insert; a row that stands already is the same one.
    InsertOnce,
    /// Insert; a row that stands already is an error.
    Insert,
    /// Delete: rows are keys.
    Delete,
}

/// Rows of one table.
pub(crate) struct Batch {
    pub(crate) table: &'static Table,
    pub(crate) action: Action,
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Batch {
    pub(crate) fn new(table: &'static Table, action: Action, rows: impl IntoIterator<Item = Vec<Cell>>) -> Self {
        Batch { table, action, rows: rows.into_iter().collect() }
    }

    /// The columns that a row has.
    pub(crate) fn width(&self) -> usize {
        if self.action == Action::Delete { self.table.key } else { self.table.columns.len() }
    }

    /// What stands after `INSERT INTO table (columns) …`.
    pub(crate) fn on_conflict(&self) -> String {
        let table = self.table;
        let key = table.list(table.key, |name, _| name.to_owned());
        match self.action {
            Action::Insert | Action::Delete => String::new(),
            Action::InsertOnce => format!(" ON CONFLICT ({key}) DO NOTHING"),
            Action::Upsert => {
                let rest = &table.columns[table.key..];
                let set: Vec<String> = rest.iter().map(|(name, _)| format!("{name}=excluded.{name}")).collect();
                format!(" ON CONFLICT ({key}) DO UPDATE SET {}", set.join(","))
            }
        }
    }
}

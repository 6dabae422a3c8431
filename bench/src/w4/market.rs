//! A desk on which every symbol is a BUY, and whose spreads become too wide, and narrow again, every 100 ms.

use super::PARTITIONS;
use marea_model::Nanos;
use marea_model::time::{MILLI, SECOND, format_rfc3339};
use std::io::Write as _;

/// How many symbols.
pub(super) const SYMBOLS: usize = 20;
/// How long a spread stays as it is.
const PHASE: Nanos = 100 * MILLI;
/// What strategies have seen before.
const HISTORY: Nanos = 5_400 * SECOND;

/// Strategies that follow trends, accounts, and a policy that a wide spread breaks.
pub(super) const LIVE: &str = r#"
[core]
master_accounts = ["M1"]
slave_accounts = ["S1", "S2"]
trading_enabled = true

[policy."*"]
max_spread = 15
risk_per_trade = 0.5

[instruments.default]
scale = 4
tick_size = "0.01"
tick_value = "0.01"
currency = "USD"
min_lot = 1
max_lot = 1000000
lot_step = 1
decision_timeframe = "1m"

[strategies.ema-3-10]
kind = "ema_cross"
timeframe = "1m"
fast = 3
slow = 10

[strategies.ema-5-20]
kind = "ema_cross"
timeframe = "1m"
fast = 5
slow = 20

[strategies.ema-12-26]
kind = "ema_cross"
timeframe = "1m"
fast = 12
slow = 26

[strategies.macd]
kind = "macd_cross"
timeframe = "1m"
weight = 0.5

[strategies.donchian]
kind = "donchian_breakout"
timeframe = "1m"
weight = 0.5
"#;

/// One message.
pub(super) struct Tick<'a> {
    pub(super) symbol: usize,
    pub(super) partition: i32,
    pub(super) key: &'a str,
    pub(super) body: Vec<u8>,
    /// Whether it makes the spread wide, or narrow again; none: it changes nothing.
    pub(super) flips: Option<bool>,
}

/// What the ticks are.
pub(super) struct Market {
    names: Vec<String>,
    begin: Nanos,
    /// Ticks so far: their seq.
    count: u64,
    /// Of each symbol.
    turns: Vec<u64>,
    wide: Vec<bool>,
}

impl Market {
    pub(super) fn new() -> Market {
        Market {
            names: (0..SYMBOLS).map(|k| format!("W{k:02}")).collect(),
            begin: marea::committer::wall_now() / SECOND * SECOND - HISTORY,
            count: 0,
            turns: vec![0; SYMBOLS],
            wide: vec![false; SYMBOLS],
        }
    }

    /// Account snapshots, as JSON.
    pub(super) fn accounts(&self) -> Vec<(&'static str, String)> {
        let at = format_rfc3339(self.begin);
        let snapshot = |account| {
            let body = format!(
                r#"{{"account":"{account}","event_time":"{at}","seq":0,"equity":"100000","balance":"100000","currency":"USD","positions":[]}}"#
            );
            (account, body)
        };
        ["M1", "S1", "S2"].map(snapshot).to_vec()
    }

    /// A tick a symbol and second, until a second ago: partition, key and body.
    pub(super) fn history(&mut self) -> Vec<(i32, &str, Vec<u8>)> {
        let seconds = HISTORY / SECOND - 1;
        let times = (0..seconds).flat_map(|second| (0..SYMBOLS).map(move |symbol| (second, symbol)));
        let bodies: Vec<_> =
            times.map(|(second, symbol)| (symbol, self.body(symbol, self.begin + second * SECOND, false))).collect();
        bodies.into_iter().map(|(symbol, body)| (partition(symbol), self.names[symbol].as_str(), body)).collect()
    }

    /// The next tick, of now.
    pub(super) fn next(&mut self) -> Tick<'_> {
        let symbol = (self.count % SYMBOLS as u64) as usize;
        let now = marea::committer::wall_now();
        let wide = (now / PHASE + symbol as i64) % 2 == 1;
        let is_quote = self.turns[symbol] % 3 != 2;
        let flips = (is_quote && wide != self.wide[symbol]).then_some(wide);
        if is_quote {
            self.wide[symbol] = wide;
        }
        let body = self.body(symbol, now, wide);
        Tick { symbol, partition: partition(symbol), key: &self.names[symbol], body, flips }
    }

    /// Two quotes to a trade; a cent up in 3 s, and a cent or two of noise that the trend outweighs over a minute.
    fn body(&mut self, symbol: usize, at: Nanos, wide: bool) -> Vec<u8> {
        let (turn, seq, name) = (self.turns[symbol], self.count, &self.names[symbol]);
        self.turns[symbol] += 1;
        self.count += 1;
        let middle = 10_000 + (at - self.begin) / (3 * SECOND) + (turn % 3) as i64;
        let price = |cents: i64| format!("{}.{:02}", cents / 100, cents % 100);
        let mut body = Vec::with_capacity(192);
        let written = if turn % 3 == 2 {
            let (price, size) = (price(middle), 1 + turn % 9);
            write!(
                body,
                r#"{{"kind":"trade","symbol":"{name}","event_time":{at},"seq":{seq},"price":"{price}","size":"{size}"}}"#
            )
        } else {
            let half = if wide { 20 } else { 1 };
            let (bid, ask) = (price(middle - half), price(middle + half));
            write!(
                body,
                r#"{{"kind":"quote","symbol":"{name}","event_time":{at},"seq":{seq},"bid":"{bid}","ask":"{ask}","bid_size":"1","ask_size":"1"}}"#
            )
        };
        written.expect("a vector takes what is written");
        body
    }
}

fn partition(symbol: usize) -> i32 {
    (symbol % PARTITIONS as usize) as i32
}

/// What a quote's message says: which symbol, and whether its spread is wide.
pub(super) fn of_tick(body: &[u8]) -> Option<(usize, bool)> {
    #[derive(serde::Deserialize)]
    struct Quote<'a> {
        symbol: &'a str,
        bid: &'a str,
        ask: &'a str,
    }
    // A trade has no bid.
    let quote: Quote<'_> = serde_json::from_slice(body).ok()?;
    let (bid, ask): (f64, f64) = (quote.bid.parse().ok()?, quote.ask.parse().ok()?);
    Some((quote.symbol.get(1..)?.parse().ok()?, ask - bid > 0.1))
}

/// What a verdict's message says: which symbol, and whether its spread is what blocks it; none of one that is `early` where
/// those are not meant, or the reverse: a change that is published twice must not be taken for the next one.
pub(super) fn of_verdict(body: &[u8], early: bool) -> Option<(usize, bool)> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    if body["seq"].is_null() != early {
        return None;
    }
    let (row, symbol) = (&body["verdict"], body["symbol"].as_str()?);
    let (reasons, symbol) = (row["reasons"].as_array()?, symbol.get(1..)?.parse().ok()?);
    let wide = reasons.iter().any(|reason| reason == "SPREAD_ABOVE_MAX");
    (wide || row["allow"] == true).then_some((symbol, wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_how_wide_its_spread_is() {
        let mut market = Market::new();
        let quote = market.body(7, market.begin, true);
        assert_eq!(of_tick(&quote), Some((7, true)));
        assert_eq!(of_tick(&market.body(7, market.begin, false)), Some((7, false)));
        let trade = market.body(7, market.begin, false);
        assert_eq!(of_tick(&trade), None);
    }
}

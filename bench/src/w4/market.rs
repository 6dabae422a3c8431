//! A desk on which every symbol is a BUY, and whose quotes allow it, or block it for one of five sets of reasons, each for
//! 100 ms: a change that was lost is not taken for another one, as long as no tick needs half a second to the pipeline.

use super::PARTITIONS;
use marea_model::Nanos;
use marea_model::time::{MILLI, SECOND, format_rfc3339, parse_rfc3339};
use std::io::Write as _;

/// How many symbols.
pub(super) const SYMBOLS: usize = 20;
/// How long quotes stay as they are.
const PHASE: Nanos = 100 * MILLI;
/// What quotes do, one after the other: why they block.
const REASONS: [&[&str]; 6] = [
    &[],
    &["SPREAD_ABOVE_MAX"],
    &["QUOTE_CROSSED"],
    &["PRICE_MOVED"],
    &["SPREAD_ABOVE_MAX", "PRICE_MOVED"],
    &["QUOTE_CROSSED", "PRICE_MOVED"],
];
/// What strategies have seen before.
const HISTORY: Nanos = 5_400 * SECOND;

/// Strategies that follow trends, accounts, and a policy that quotes break.
pub(super) const LIVE: &str = r#"
[core]
master_accounts = ["M1"]
slave_accounts = ["S1", "S2"]
trading_enabled = true

[policy."*"]
max_spread = 15
max_slippage = 200
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
    /// Its event time: now.
    pub(super) at: Nanos,
    /// Which of the reasons it makes hold, by their index; none: it changes nothing.
    pub(super) flips: Option<usize>,
}

/// What the ticks are.
pub(super) struct Market {
    names: Vec<String>,
    begin: Nanos,
    /// Ticks so far: their seq.
    count: u64,
    /// Of each symbol.
    turns: Vec<u64>,
    states: Vec<usize>,
    /// Whether all symbols' quotes change at one instant; else one after the other.
    pub(super) at_once: bool,
}

impl Market {
    pub(super) fn new() -> Market {
        Market {
            names: (0..SYMBOLS).map(|k| format!("W{k:02}")).collect(),
            begin: marea::committer::wall_now() / SECOND * SECOND - HISTORY,
            count: 0,
            turns: vec![0; SYMBOLS],
            states: vec![0; SYMBOLS],
            at_once: false,
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
            times.map(|(second, symbol)| (symbol, self.body(symbol, self.begin + second * SECOND, 0))).collect();
        bodies.into_iter().map(|(symbol, body)| (partition(symbol), self.names[symbol].as_str(), body)).collect()
    }

    /// The next tick, of now.
    pub(super) fn next(&mut self) -> Tick<'_> {
        let symbol = (self.count % SYMBOLS as u64) as usize;
        let now = marea::committer::wall_now();
        let apart = if self.at_once { 0 } else { PHASE / SYMBOLS as i64 };
        let state = ((now + symbol as i64 * apart) / PHASE + symbol as i64) as usize % REASONS.len();
        let is_quote = self.turns[symbol] % 3 != 2;
        let flips = (is_quote && state != self.states[symbol]).then_some(state);
        if is_quote {
            self.states[symbol] = state;
        }
        let body = self.body(symbol, now, state);
        Tick { symbol, partition: partition(symbol), key: &self.names[symbol], body, at: now, flips }
    }

    /// Two quotes to a trade; a cent up in 3 s, and a cent or two of noise that the trend outweighs over a minute.
    fn body(&mut self, symbol: usize, at: Nanos, state: usize) -> Vec<u8> {
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
            let half = [1, 20, -1][state % 3];
            let middle = middle + 500 * (state / 3) as i64;
            let (bid, ask, size) = (price(middle - half), price(middle + half), 1 + state);
            write!(
                body,
                r#"{{"kind":"quote","symbol":"{name}","event_time":{at},"seq":{seq},"bid":"{bid}","ask":"{ask}","bid_size":"{size}","ask_size":"1"}}"#
            )
        };
        written.expect("a vector takes what is written");
        body
    }
}

fn partition(symbol: usize) -> i32 {
    (symbol % PARTITIONS as usize) as i32
}

/// What a message says of a symbol's quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub(super) symbol: usize,
    /// Which of the reasons hold, by their index.
    pub(super) state: usize,
    /// As of when: nothing that was sent later is in it.
    pub(super) as_of: Nanos,
}

/// What a quote's message says.
pub(super) fn of_tick(body: &[u8]) -> Option<Seen> {
    #[derive(serde::Deserialize)]
    struct Quote<'a> {
        symbol: &'a str,
        event_time: Nanos,
        bid_size: &'a str,
    }
    // A trade has no bid.
    let quote: Quote<'_> = serde_json::from_slice(body).ok()?;
    let state = quote.bid_size.parse::<usize>().ok()?.checked_sub(1)?;
    Some(Seen { symbol: quote.symbol.get(1..)?.parse().ok()?, state, as_of: quote.event_time })
}

/// What a verdict's message says; none where it blocks for other reasons.
pub(super) fn of_verdict(body: &[u8]) -> Option<Seen> {
    #[derive(serde::Deserialize)]
    struct Body<'a> {
        symbol: &'a str,
        #[serde(borrow)]
        verdict: Verdict<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Verdict<'a> {
        #[serde(borrow)]
        reasons: Vec<&'a str>,
        as_of: &'a str,
    }
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    let state = REASONS.iter().position(|of| *of == body.verdict.reasons)?;
    // To the millisecond: what was sent in it may be in it.
    let as_of = parse_rfc3339(body.verdict.as_of).ok()? + MILLI - 1;
    Some(Seen { symbol: body.symbol.get(1..)?.parse().ok()?, state, as_of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_its_quote_does() {
        let mut market = Market::new();
        for state in 0..REASONS.len() {
            let quote = market.body(7, market.begin, state);
            assert_eq!(of_tick(&quote), Some(Seen { symbol: 7, state, as_of: market.begin }));
            if market.turns[7] % 3 == 2 {
                let trade = market.body(7, market.begin, state);
                assert_eq!(of_tick(&trade), None);
            }
        }
    }

    #[test]
    fn a_verdict_says_what_its_quote_did() {
        let of = |reasons: &str| {
            let verdict = format!(r#"{{"reasons":[{reasons}],"as_of":"1970-01-01T00:00:00.007Z","allow":false}}"#);
            of_verdict(format!(r#"{{"seq":1,"symbol":"W07","verdict":{verdict}}}"#).as_bytes())
        };
        let seen = |state| Some(Seen { symbol: 7, state, as_of: 8 * MILLI - 1 });
        assert_eq!(of(""), seen(0));
        assert_eq!(of(r#""QUOTE_CROSSED","PRICE_MOVED""#), seen(5));
        assert_eq!(of(r#""QUOTE_STALE""#), None);
        assert_eq!(of_verdict(br#"{"seq":1,"symbol":"W07","deleted":true}"#), None);
    }
}

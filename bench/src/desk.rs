//! A desk like the demo's: six symbols with quotes and trades that rise steadily, default indicators, seven strategies,
//! three accounts with policies. Strategies that follow trends agree, so every symbol is a BUY, and a quote whose spread
//! is beyond the policies' limit blocks it: a verdict that one tick changes.

use crate::drive::{Session, Setup, accounts};
use anyhow::Context as _;
use marea::cutter::Clock;
use marea_model::instrument::InstrumentSpec;
use marea_model::time::SECOND;
use marea_model::{
    AccountId, AccountSnapshot, Amount, ConfigUpdate, Cursor, Event, Instrument, Instruments, Nanos, Partition, Price,
    Record, Size, Symbol, Tick, Timeframe,
};
use marea_operators::indicators::IndicatorSpec;
use marea_sources::Input;
use std::sync::Arc;

/// Of so many ticks the first eight widen the spread, where they are quotes before another quote of their symbol, which
/// narrows it again.
const WIDE_EVERY: u64 = 97;
/// A price in cents, at scale 4.
const CENT: i64 = 100;

/// Symbols and their ticks.
pub(crate) struct Desk {
    symbols: Vec<Symbol>,
    /// The graph.
    pub(crate) setup: Setup,
    /// Where the ticks come from.
    pub(crate) partition: Partition,
    begin: Nanos,
}

impl Desk {
    /// So many symbols, whose history begins at `begin`.
    pub(crate) fn new(symbols: usize, begin: Nanos, lateness: Nanos) -> anyhow::Result<Desk> {
        let spec = r#"{"scale":4,"tick_size":"0.01","tick_value":"0.01","currency":"USD","min_lot":"1",
            "max_lot":"1000000","lot_step":"1","decision_timeframe":"1m"}"#;
        let spec: InstrumentSpec = serde_json::from_str(spec)?;
        let instruments = Instruments { default: spec.over(&Instrument::default())?, ..Instruments::default() };
        let timeframes = vec![Timeframe::S1, Timeframe::M1, Timeframe::M5, Timeframe::H1];
        let setup = Setup {
            indicators: timeframes[1..].iter().map(|t| (*t, IndicatorSpec::defaults())).collect(),
            instruments: Arc::new(instruments),
            workers: 1,
            max_ticks: 10_000,
            lateness,
            clock: Clock::Wall,
            timeframes,
        };
        let symbols = (0..symbols).map(|k| Symbol::new(&format!("D{k:02}"))).collect::<Result<_, _>>()?;
        Ok(Desk { symbols, setup, partition: Partition::new("desk")?, begin })
    }

    /// Strategies, accounts and policies.
    pub(crate) fn config() -> Vec<ConfigUpdate> {
        let cross = |fast, slow| format!(r#"{{"kind":"ema_cross","timeframe":"1m","fast":{fast},"slow":{slow}}}"#);
        let mut keys = vec![
            ("/echo/core/master_accounts".to_owned(), "M1".to_owned()),
            ("/echo/core/slave_accounts".to_owned(), "S1,S2".to_owned()),
            ("/echo/policy/*/max_spread".to_owned(), "15".to_owned()),
            ("/echo/policy/*/risk_per_trade".to_owned(), "0.5".to_owned()),
        ];
        for (fast, slow) in [(3, 10), (5, 20), (8, 21), (12, 26), (20, 50)] {
            keys.push((format!("/marea/strategies/ema-{fast}-{slow}"), cross(fast, slow)));
        }
        for kind in ["macd_cross", "donchian_breakout"] {
            keys.push((
                format!("/marea/strategies/{kind}"),
                format!(r#"{{"kind":"{kind}","timeframe":"1m","weight":0.5}}"#),
            ));
        }
        keys.into_iter().map(|(key, value)| ConfigUpdate::Put { key, value, revision: 1 }).collect()
    }

    fn snapshots(&self) -> anyhow::Result<Vec<AccountSnapshot>> {
        let snapshot = |name| {
            let account = AccountId::new(name).context("an account")?;
            let equity = Amount::whole(100_000);
            let (event_time, currency) = (self.begin, *b"USD");
            Ok(AccountSnapshot {
                account,
                event_time,
                seq: 0,
                equity,
                balance: equity,
                currency,
                positions: Vec::new(),
            })
        };
        ["M1", "S1", "S2"].into_iter().map(snapshot).collect()
    }

    /// Tick number `i`, at `event_time`: two quotes to a trade.
    pub(crate) fn record(&self, i: u64, event_time: Nanos) -> Record {
        let n = self.symbols.len() as u64;
        let (symbol, turn) = (self.symbols[(i % n) as usize], i / n);
        // A cent up in 3 s, and a cent or two of noise that the trend outweighs over a minute.
        let middle = 10_000 + (event_time - self.begin) / (3 * SECOND) + (turn % 3) as i64;
        let event = if turn % 3 == 2 {
            Event::Trade { price: Price(middle * CENT), size: Size(100_000_000 * (1 + turn as i64 % 9)) }
        } else {
            let half = if self.widens(i) { 20 } else { 1 };
            let (bid, ask) = (Price((middle - half) * CENT), Price((middle + half) * CENT));
            Event::Quote { bid, ask, bid_size: Size(100_000_000), ask_size: Size(100_000_000) }
        };
        let cursor = Cursor { partition: self.partition, offset: i, row: 0 };
        Record { cursor, tick: Tick { symbol, event_time, seq: i, event } }
    }

    fn widens(&self, i: u64) -> bool {
        let turn = i / self.symbols.len() as u64;
        turn.is_multiple_of(3) && i % WIDE_EVERY < 8
    }

    /// Whether a tick makes a spread too wide, or narrow again.
    pub(crate) fn flips(&self, i: u64) -> bool {
        let n = self.symbols.len() as u64;
        let quote = |i: u64| (i / n) % 3 != 2;
        let before = [1, 2].into_iter().filter_map(|turns| i.checked_sub(turns * n)).find(|before| quote(*before));
        quote(i) && before.is_some_and(|before| self.widens(before) != self.widens(i))
    }

    /// The symbol of a tick.
    pub(crate) fn symbol(&self, i: u64) -> Symbol {
        self.symbols[(i % self.symbols.len() as u64) as usize]
    }

    /// Configuration, accounts and history, up to `now`: a tick a symbol and second. How many ticks.
    pub(crate) fn prepare(&self, session: &mut Session, now: Nanos) -> anyhow::Result<u64> {
        session.push(Input::Config(Desk::config()));
        session.push(accounts(Partition::new("accounts")?, self.snapshots()?));
        let gap = SECOND / self.symbols.len() as i64;
        let count = ((now - self.begin) / gap) as usize;
        for input in crate::drive::batches_of(self.partition, count, false, |i| {
            self.record(i as u64, self.begin + i as i64 * gap)
        }) {
            session.push(input);
            session.cut_full()?;
        }
        session.cut_all()?;
        Ok(count as u64)
    }
}

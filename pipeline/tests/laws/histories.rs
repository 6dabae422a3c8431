//! Random histories: what a market, its accounts and its keepers may do in a minute, a day or a month.
//!
//! A history is drawn as a [`Plan`], small integers that mean something only together, so that proptest can shrink it
//! and every shrunken plan is still a valid history: no identity with two payloads, no record beyond the lateness
//! horizon (unless the law asks for some), every sum small.

use crate::oracle::World;
use marea_model::bar::BarBody;
use marea_model::instrument::InstrumentSpec;
use marea_model::tick::{Amend, Event, Tick};
use marea_model::time::{MILLI, Nanos, SECOND, Timeframe, format_rfc3339};
use marea_model::{
    AccountId, AccountSnapshot, Amount, Instrument, Instruments, Partition, Position, Price, PriceSource, Size, Symbol,
};
use marea_operators::indicators::IndicatorSpec;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const MINUTE: Nanos = 60 * SECOND;
const HOUR: Nanos = 3600 * SECOND;
/// Monday, 4 March 2024, 00:00 UTC.
const MONDAY: Nanos = 1_709_510_400 * SECOND;
/// How late a record may be.
pub(crate) const LATENESS: Nanos = 10 * MINUTE;

/// One change of the live configuration: the key has this value now, or is gone.
pub(crate) type Edit = (String, Option<String>);

/// Something that arrives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    /// A record.
    Tick(Tick),
    /// A snapshot.
    Account(AccountSnapshot),
    /// One revision of the configuration.
    Config(Vec<Edit>),
    /// The configuration's source has stopped answering, or answers again.
    Stale(bool),
}

/// Something, and when it arrives. Arrival is not event time: it only orders.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    /// By which items are ordered.
    pub(crate) at: Nanos,
    /// What arrives.
    pub(crate) item: Item,
}

/// All that happened, in the order of arrival.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// What arrives.
    pub(crate) arrivals: Vec<Arrival>,
    /// Where `now` moves on to at the end.
    pub(crate) until: Nanos,
    /// Into how many partitions symbols are spread.
    pub(crate) partitions: usize,
}

impl History {
    /// All records, in the order of arrival.
    pub(crate) fn ticks(&self) -> impl Iterator<Item = &Tick> {
        self.arrivals.iter().filter_map(|a| if let Item::Tick(tick) = &a.item { Some(tick) } else { None })
    }

    /// The partition that a symbol's records come through.
    pub(crate) fn partition(&self, symbol: Symbol) -> Partition {
        let index = symbol.as_str().bytes().map(usize::from).sum::<usize>() % self.partitions.max(1);
        Partition::new(&format!("part-{index}")).unwrap()
    }

    /// The same records and edits in another order of arrival, within the horizon. Edits keep their order.
    pub(crate) fn reordered(&self, seed: u64) -> History {
        let mut random = Random(seed);
        let mut history = self.clone();
        for arrival in &mut history.arrivals {
            match &arrival.item {
                Item::Tick(tick) if !matches!(tick.event, Event::Amend(_)) => {
                    arrival.at = tick.event_time + random.below(LATENESS as u64) as Nanos;
                }
                Item::Tick(tick) => arrival.at = tick.event_time + random.below(8 * LATENESS as u64) as Nanos,
                Item::Account(account) => {
                    arrival.at = account.event_time + random.below(LATENESS as u64) as Nanos;
                }
                Item::Config(_) | Item::Stale(_) => {}
            }
        }
        history.arrivals.sort_by_key(|a| a.at);
        history
    }

    /// With some records repeated, within the horizon.
    pub(crate) fn repeated(&self, seed: u64) -> History {
        let mut random = Random(seed);
        let mut history = self.clone();
        for arrival in &self.arrivals {
            let late = match &arrival.item {
                Item::Tick(tick) => (tick.event_time + LATENESS - arrival.at).max(0),
                _ => 0,
            };
            if late > 1 && random.below(4) == 0 {
                let at = arrival.at + random.below(late as u64) as Nanos;
                history.arrivals.push(Arrival { at, item: arrival.item.clone() });
            }
        }
        history.arrivals.sort_by_key(|a| a.at);
        history
    }

    /// As it would have been had nothing ever been wrong: busted trades are not there, corrected ones are right, and
    /// nobody needs to say so.
    pub(crate) fn righted(&self) -> History {
        let identity = |t: &Tick| (t.symbol, t.event_time, t.seq);
        let mut busted = BTreeSet::new();
        let mut corrected: BTreeMap<_, (u32, Price, Size)> = BTreeMap::new();
        for tick in self.ticks() {
            match tick.event {
                Event::Bust => {
                    busted.insert(identity(tick));
                }
                Event::Correction { rev, price, size } => {
                    let best = corrected.entry(identity(tick)).or_insert((rev, price, size));
                    *best = (*best).max((rev, price, size));
                }
                _ => {}
            }
        }
        let mut history = self.clone();
        history.arrivals.retain_mut(|arrival| {
            let Item::Tick(tick) = &mut arrival.item else { return true };
            let identity = identity(tick);
            match &mut tick.event {
                Event::Bust | Event::Correction { .. } => false,
                Event::Trade { .. } if busted.contains(&identity) => false,
                Event::Trade { price, size } => {
                    if let Some(right) = corrected.get(&identity) {
                        (*price, *size) = (right.1, right.2);
                    }
                    true
                }
                _ => true,
            }
        });
        history
    }

    /// The final configuration from the start, and no edit after.
    pub(crate) fn settled(&self) -> History {
        let mut tree: BTreeMap<String, String> = BTreeMap::new();
        let mut stale = None;
        let mut history = self.clone();
        history.arrivals.retain(|arrival| match &arrival.item {
            Item::Config(edits) => {
                for (key, value) in edits {
                    match value {
                        Some(value) => tree.insert(key.clone(), value.clone()),
                        None => tree.remove(key),
                    };
                }
                false
            }
            Item::Stale(now) => {
                stale = Some(*now);
                false
            }
            _ => true,
        });
        let at = history.arrivals.first().map_or(0, |a| a.at);
        let edits = tree.into_iter().map(|(key, value)| (key, Some(value))).collect();
        history.arrivals.insert(0, Arrival { at, item: Item::Config(edits) });
        history.arrivals.extend(stale.map(|now| Arrival { at: Nanos::MAX, item: Item::Stale(now) }));
        history
    }

    /// Without the ticks at or after `t`.
    pub(crate) fn before(&self, t: Nanos) -> History {
        let mut history = self.clone();
        history.arrivals.retain(|a| !matches!(&a.item, Item::Tick(tick) if tick.event_time >= t));
        history
    }
}

/// A small generator (splitmix64) for what need not shrink.
pub(crate) struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is positive.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What a law allows.

/// What may happen in a law's histories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Busts, corrections and amends.
    pub(crate) amended: bool,
    /// Repeated records.
    pub(crate) repeats: bool,
    /// Edits of the configuration after the start.
    pub(crate) edits: bool,
    /// Records out of order.
    pub(crate) disorder: bool,
    /// Records beyond the lateness horizon.
    pub(crate) too_late: bool,
    /// Busts and corrections of quotes, and of trades that never were.
    pub(crate) nonsense: bool,
}

impl Profile {
    /// Everything that the laws L1 to L7 allow.
    pub(crate) const FULL: Profile =
        Profile { amended: true, repeats: true, edits: true, disorder: true, too_late: false, nonsense: true };
}

/// A history before it means anything.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Minutes, hours, days or weeks.
    pub(crate) span: u8,
    /// Which symbols there are, as bits.
    pub(crate) symbols: u8,
    /// Which strategies there are at the start, as bits.
    pub(crate) strategies: u32,
    /// The trend of each symbol's price.
    pub(crate) trend: [i8; 4],
    /// 1 or 2.
    pub(crate) partitions: u8,
    /// Into the day, in minutes.
    pub(crate) start: u16,
    /// How far past the last event the run goes on.
    pub(crate) beyond: u16,
    /// What happens, in order of event time.
    pub(crate) events: Vec<Raw>,
}

/// One event before it means anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    kind: u8,
    symbol: u8,
    gap: u16,
    step: i16,
    size: u16,
    delay: u32,
    pick: u32,
}

fn raw() -> impl Strategy<Value = Raw> {
    (any::<u8>(), any::<u8>(), any::<u16>(), any::<i16>(), any::<u16>(), any::<u32>(), any::<u32>())
        .prop_map(|(kind, symbol, gap, step, size, delay, pick)| Raw { kind, symbol, gap, step, size, delay, pick })
}

/// Plans of up to `events` events.
pub(crate) fn plans(events: usize) -> impl Strategy<Value = Plan> {
    // Mostly one or two symbols and many strategies, so that some agree and there is something to act on.
    let symbols = prop_oneof![
        4 => (0_u8..4).prop_map(|i| 1 << i),
        2 => (0_u8..4, 0_u8..4).prop_map(|(i, j)| 1 << i | 1 << j),
        1 => 1_u8..16,
    ];
    let strategies = prop_oneof![any::<u32>(), (any::<u32>(), any::<u32>()).prop_map(|(a, b)| a | b)];
    let head = (0_u8..6, symbols, strategies, any::<[i8; 4]>(), 1_u8..=2, 0_u16..1440, any::<u16>());
    (head, vec(raw(), 1..events)).prop_map(|(head, events)| {
        let (span, symbols, strategies, trend, partitions, start, beyond) = head;
        Plan { span, symbols, strategies, trend, partitions, start, beyond, events }
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// The world.

/// Timeframes, indicators and instruments of every law.
pub(crate) fn world() -> World {
    let spec = |json: &str| serde_json::from_str::<InstrumentSpec>(json).unwrap().over(&Instrument::default()).unwrap();
    let symbol = |s: &str| Symbol::new(s).unwrap();
    let by_symbol = BTreeMap::from([
        (symbol("ACME"), spec(r#"{"scale":2,"tick_size":"0.01","currency":"USD","decision_timeframe":"1m"}"#)),
        (
            symbol("EUR/USD"),
            spec(
                r#"{"scale":5,"tick_size":"0.00001","price_source":"mid","decision_timeframe":"5m",
                    "min_stop_distance":3,"lot_step":"0.1","min_lot":"0.1"}"#,
            ),
        ),
        (
            symbol("BUND"),
            spec(
                r#"{"scale":3,"tick_size":"0.005","tick_value":"2.5","price_source":"bid","currency":"EUR",
                    "decision_timeframe":"1m","max_lot":3}"#,
            ),
        ),
    ]);
    let indicator = |text: &str| text.parse::<IndicatorSpec>().unwrap();
    let many = ["sma(3)", "ema(4)", "rma(3)", "rsi(3)", "macd(2,4,3)", "bollinger(4,2)", "atr(3)", "stochastic(4,2,2)"];
    let more = ["adx(3)", "cci(4)", "williams_r(4)", "roc(3)", "obv", "donchian(3)", "vwap"];
    World {
        timeframes: vec![Timeframe::S1, Timeframe::M1, Timeframe::M5, Timeframe::H1],
        indicators: vec![
            (Timeframe::M1, many.iter().chain(&more).map(|t| indicator(t)).collect()),
            (Timeframe::M5, ["ema(3)", "rsi(2)", "obv"].iter().map(|t| indicator(t)).collect()),
            (Timeframe::S1, vec![indicator("ema(2)"), indicator("vwap")]),
        ],
        instruments: Arc::new(Instruments { default: Instrument::default(), by_symbol }),
        lateness: LATENESS,
    }
}

/// Every symbol that histories trade: configured ones of each price source, and one that nobody has heard of.
fn all_symbols() -> [Symbol; 4] {
    ["ACME", "EUR/USD", "BUND", "NEWCO"].map(|s| Symbol::new(s).unwrap())
}

/// A price to start from and a step, in units of the symbol's scale.
fn prices(symbol: Symbol) -> (i64, i64) {
    match symbol.as_str() {
        "ACME" => (10_000, 7),
        "EUR/USD" => (110_000, 9),
        "BUND" => (130_000, 10),
        _ => (5_000_000_000, 3_000_000),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The configuration.

/// (id, JSON) of every strategy that a history may have.
const STRATEGIES: [(&str, &str); 16] = [
    ("a-ema", r#"{"kind":"ema_cross","fast":2,"slow":3,"timeframe":"1m","stop_loss":1.5,"take_profit":2}"#),
    ("b-rsi", r#"{"kind":"rsi_reversion","period":3,"oversold":35,"overbought":65,"timeframe":"1m"}"#),
    ("c-don", r#"{"kind":"donchian_breakout","period":3,"timeframe":"1m","commission_bps":2,"slippage_bps":1}"#),
    ("d-bol", r#"{"kind":"bollinger_reversion","period":4,"deviations":1.0,"timeframe":"1m","sides":"long"}"#),
    ("e-macd", r#"{"kind":"macd_cross","fast":2,"slow":3,"signal":2,"timeframe":"1m","size":10}"#),
    ("f-pull", r#"{"kind":"trend_pullback","trend":3,"period":2,"low":20,"high":80,"timeframe":"1m"}"#),
    (
        "g-cons",
        r#"{"kind":"consensus","fast":2,"slow":3,"period":2,"oversold":45,"overbought":55,"macd_fast":2,"macd_slow":3,
            "macd_signal":2,"timeframe":"1m"}"#,
    ),
    ("h-close", r#"{"kind":"ema_cross","fast":1,"slow":2,"timeframe":"1m","fill":"next_close","seed":"first"}"#),
    ("i-ema5", r#"{"kind":"ema_cross","fast":1,"slow":2,"timeframe":"5m","symbols":"EUR/USD","weight":2}"#),
    ("j-don5", r#"{"kind":"donchian_breakout","period":2,"timeframe":"5m","take_profit":1}"#),
    ("k-fast", r#"{"kind":"ema_cross","fast":1,"slow":2,"timeframe":"1s","symbols":["ACME","NEWCO"],"capital":5000}"#),
    ("l-short", r#"{"kind":"donchian_breakout","period":1,"timeframe":"1m","sides":"short","weight":0.5}"#),
    ("m-hour", r#"{"kind":"ema_cross","fast":1,"slow":2,"timeframe":"1h","stop_loss":0.5}"#),
    ("n-long", r#"{"kind":"donchian_breakout","period":1,"timeframe":"5m","sides":"long","fill":"next_close"}"#),
    ("o-trend", r#"{"kind":"ema_cross","fast":1,"slow":3,"timeframe":"5m","sides":"long","weight":3}"#),
    ("p-break", r#"{"kind":"donchian_breakout","period":2,"timeframe":"1m","sides":"long","stop_loss":3}"#),
];

fn strategy_key(index: usize) -> (String, String) {
    let (id, json) = STRATEGIES[index % STRATEGIES.len()];
    (format!("/marea/strategies/{id}"), json.to_owned())
}

/// Where the configuration begins: strategies by the bits of the plan, two accounts, a policy for all.
fn first_config(plan: &Plan) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    let mut put = |key: &str, value: &str| edits.push((key.to_owned(), Some(value.to_owned())));
    for index in 0..STRATEGIES.len() {
        if plan.strategies >> index & 1 == 1 {
            let (key, value) = strategy_key(index);
            put(&key, &value);
        }
    }
    put("/echo/core/master_accounts", "M1,M2");
    put("/echo/core/slave_accounts", "S1");
    put("/echo/policy/*/max_spread", if plan.strategies >> 20 & 1 == 1 { "20" } else { "200000" });
    put("/echo/policy/*/risk_per_trade", "2");
    if plan.strategies >> 16 & 1 == 1 {
        put("/echo/policy/*/allow_short", "true");
    }
    if plan.strategies >> 17 & 3 > 0 {
        put("/echo/policy/*/max_quote_age_ms", "100000000");
    }
    if plan.strategies >> 21 & 1 == 1 {
        put("/echo/policy/S1/copy_sl_tp", "false");
        put("/echo/policy/S1/catastrophic_sl", "50");
    }
    if plan.strategies >> 22 & 1 == 1 {
        put("/echo/policy/M2/risk_fixed", "500");
        put("/echo/policy/M2/sl_offset", "2");
        put("/echo/policy/M2/tp_offset", "1");
    }
    edits
}

/// An edit at event time `now`: something of strategies, policies, windows, switches, instruments.
fn edit(raw: &Raw, now: Nanos) -> Vec<Edit> {
    let put = |key: &str, value: &str| vec![(key.to_owned(), Some(value.to_owned()))];
    let gone = |key: &str| vec![(key.to_owned(), None)];
    let pick = raw.pick as usize;
    let account = ["M1", "S1", "*", "M2"][pick / 64 % 4];
    let symbol = ["ACME", "EUR%2FUSD", "*", "BUND", "NEWCO"][pick / 256 % 5];
    let window = format!("/echo/windows/{account}/{symbol}");
    let start = now + i64::from(raw.step) * SECOND / 8;
    let end = start + (1 + i64::from(raw.size % 64)) * 30 * SECOND;
    match raw.delay % 34 {
        0..=4 => {
            let (key, value) = strategy_key(pick);
            put(&key, &value)
        }
        5..=7 => gone(&strategy_key(pick).0),
        8 => {
            // The same rule, another weight: nothing but recommendations changes.
            let (key, value) = strategy_key(pick);
            if value.contains("weight") {
                put(&key, &value)
            } else {
                put(&key, &value.replacen('{', r#"{"weight":1.5,"#, 1))
            }
        }
        9 => put(&strategy_key(pick).0, r#"{"kind":"ema_cross","fast":9,"slow":3}"#),
        10 => {
            let (key, value) = strategy_key(pick);
            put(&key, &value.replace(r#""timeframe":"1m""#, r#""timeframe":"5m""#))
        }
        11 => put(&format!("/echo/policy/{account}/max_spread"), ["5", "200", "5,0", "100000"][pick % 4]),
        12 => gone(&format!("/echo/policy/{account}/max_spread")),
        13 => put(&format!("/echo/policy/{account}/max_slippage"), ["1", "30", "500"][pick % 3]),
        14 => put(&format!("/echo/policy/{account}/max_delay_ms"), ["1000", "90000", "soon"][pick % 3]),
        15 => put(&format!("/echo/policy/{account}/max_quote_age_ms"), ["1000", "60000", "100000000"][pick % 3]),
        16 => put(&format!("/echo/policy/{account}/allow_short"), ["true", "false"][pick % 2]),
        17 => put(&format!("/echo/policy/{account}/enabled"), ["true", "false"][pick % 2]),
        18 => put(&format!("/echo/policy/{account}/risk_fixed"), ["100", "-3", "0.01"][pick % 3]),
        19 => gone(&format!("/echo/policy/{account}/risk_fixed")),
        20 => put(&format!("/echo/policy/{account}/max_drawdown_pct"), ["5", "20"][pick % 2]),
        21 => put(&format!("/echo/policy/{account}/sl_offset"), ["3", "0"][pick % 2]),
        22 => put(&format!("/echo/policy/{account}/copy_sl_tp"), ["true", "false"][pick % 2]),
        23 => put("/echo/core/trading_enabled", ["false", "true", "maybe"][pick % 3]),
        24 => gone("/echo/core/trading_enabled"),
        25 => put("/echo/core/slave_accounts", ["S1", "S1,S2", "", "S2,M1"][pick % 4]),
        26..=28 => {
            // A whole window in one revision.
            let id = ["", "/fed", "/close"][pick % 3];
            let mut edits = put(&format!("{window}{id}/start_utc"), &format_rfc3339(start));
            edits.extend(put(&format!("{window}{id}/end_utc"), &format_rfc3339(end)));
            if pick.is_multiple_of(5) {
                edits.extend(put(&format!("{window}{id}/pre_buffer_sec"), "45"));
                edits.extend(put(&format!("{window}{id}/post_buffer_sec"), "75"));
            }
            edits
        }
        29 => put(&format!("{window}/end_utc"), &format_rfc3339(end)),
        30 => {
            let mut edits = gone(&format!("{window}/start_utc"));
            edits.extend(gone(&format!("{window}/end_utc")));
            edits
        }
        31 => put(&format!("{window}/fed/start_utc"), "2024-03-04 10:00"),
        32 => match pick % 3 {
            0 => put(&format!("{window}/lease/active"), "true"),
            1 => put(&format!("{window}/lease/active"), "yes"),
            _ => gone(&format!("{window}/lease/active")),
        },
        _ => match pick % 4 {
            0 => put(
                "/marea/instruments/ACME",
                r#"{"scale":2,"tick_size":"0.05","currency":"USD","decision_timeframe":"5m","min_lot":"0.5"}"#,
            ),
            1 => gone("/marea/instruments/ACME"),
            2 => put("/marea/instruments/LATER", r#"{"tick_size":"0.01"}"#),
            _ => gone("/marea/instruments/LATER"),
        },
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// From plan to history.

struct Builder {
    arrivals: Vec<Arrival>,
    symbols: Vec<Symbol>,
    price: BTreeMap<Symbol, i64>,
    /// Identities so far.
    trades: Vec<(Tick, bool)>,
    quotes: Vec<Tick>,
    records: Vec<Tick>,
    seq: u64,
}

impl Builder {
    fn tick(&mut self, at: Nanos, tick: Tick) {
        self.arrivals.push(Arrival { at, item: Item::Tick(tick.clone()) });
        self.records.push(tick);
    }
}

fn latest<T>(all: &[T], pick: u32) -> Option<&T> {
    let recent = &all[all.len().saturating_sub(24)..];
    recent.get(pick as usize % recent.len().max(1))
}

impl Plan {
    /// What this plan means.
    pub(crate) fn build(&self, profile: &Profile) -> History {
        let symbols: Vec<Symbol> =
            all_symbols().into_iter().enumerate().filter(|(i, _)| self.symbols >> i & 1 == 1).map(|(_, s)| s).collect();
        let mut now = MONDAY + i64::from(self.start) * MINUTE;
        let mut builder = Builder {
            arrivals: vec![Arrival { at: Nanos::MIN, item: Item::Config(first_config(self)) }],
            price: symbols.iter().map(|s| (*s, prices(*s).0)).collect(),
            symbols,
            trades: Vec::new(),
            quotes: Vec::new(),
            records: Vec::new(),
            seq: 0,
        };
        // Every symbol trades once at the very start, with nothing wrong: busting all that a symbol ever traded must
        // not decide whether it is known.
        for index in 0..builder.symbols.len() {
            let calm = Raw { kind: 0, symbol: index as u8, gap: 0, step: 0, size: 9, delay: 0, pick: 0 };
            self.market(&mut builder, &calm, now, now, false);
            now += MILLI;
        }
        for pick in 0..3 {
            let solid = Raw { kind: 0, symbol: 0, gap: 0, step: 1_000, size: u16::MAX, delay: 0, pick: 3 + pick };
            self.account(&mut builder, &solid, now, 0);
        }
        for raw in &self.events {
            now += self.gap(raw.gap);
            let delay = if profile.disorder { delay(raw.delay) } else { 0 };
            self.event(&mut builder, profile, raw, now, delay);
        }
        // The last tick of all is in order and stays, so that the clock ends alike whatever was wrong before.
        now += SECOND;
        let last = Raw { kind: 0, symbol: 0, gap: 0, step: 11, size: 5, delay: 0, pick: 1 };
        self.market(&mut builder, &last, now, now, false);
        let greatest = builder
            .arrivals
            .iter()
            .filter_map(|a| if let Item::Account(a) = &a.item { Some(a.event_time) } else { None });
        let greatest = greatest.chain([now]).max().unwrap_or(now);
        builder.arrivals.sort_by_key(|a| a.at);
        let beyond = i64::from(self.beyond % 240) * MINUTE;
        let until = Timeframe::H1.close_time(greatest) + if self.beyond.is_multiple_of(3) { beyond } else { 0 };
        History { arrivals: builder.arrivals, until, partitions: usize::from(self.partitions) }
    }

    /// The time between two events: clustered, so that bars get several ticks, and gaps.
    fn gap(&self, raw: u16) -> Nanos {
        let fine = i64::from(raw % 1000);
        let cluster = fine * 3 * MILLI / 2;
        match (self.span, raw % 16) {
            (_, 0) => 0,
            (_, 1..=4) => cluster,
            // A minute of seconds, hours of minutes, days of minutes, and weeks with holes of days.
            (0, _) => fine * 4 * MILLI,
            (1..=3, 15) => fine * SECOND / 2,
            (1..=3, _) => fine * SECOND / 12,
            (4, 15) => fine * 30 * SECOND,
            (4, _) => fine * SECOND / 4,
            (_, 14) => fine * 4 * MINUTE,
            (_, 15) => fine * 11 * MINUTE,
            (_, _) => fine * 300 * MILLI,
        }
    }

    /// A trade or quote.
    fn market(&self, builder: &mut Builder, raw: &Raw, event_time: Nanos, at: Nanos, wrong: bool) {
        let symbol = builder.symbols[usize::from(raw.symbol) % builder.symbols.len()];
        let (start, step) = prices(symbol);
        let index = all_symbols().iter().position(|s| *s == symbol).unwrap_or(0);
        let drift = i64::from(self.trend[index]) / 8;
        let price = builder.price.entry(symbol).or_insert(start);
        // Now and then a jump, which crosses stops and targets.
        let jump = if raw.gap % 53 == 1 { 12 } else { 1 };
        *price = (*price + jump * step * (i64::from(raw.step % 16) + drift) / 4).clamp(start / 2, start * 2);
        // A wrong tick is far off, so that it matters.
        let price = if wrong { *price + step * i64::from(raw.step % 256) } else { *price };
        builder.seq += 1;
        let seq = if raw.pick.is_multiple_of(7) { 1_000_000 - builder.seq } else { builder.seq };
        let quotes = !matches!(symbol.as_str(), "ACME" | "NEWCO");
        let quote = if wrong { false } else { (raw.kind % 8 < 6) == quotes };
        let event = if quote {
            let spread = match raw.pick % 32 {
                0 => 0,
                1 => -2,
                _ => i64::from(raw.size % 24),
            };
            let size = if raw.pick.is_multiple_of(3) { Size(0) } else { Size(i64::from(raw.size) * 1_000_000) };
            Event::Quote { bid: Price(price), ask: Price(price + spread * step / 4), bid_size: size, ask_size: size }
        } else {
            Event::Trade { price: Price(price), size: Size((1 + i64::from(raw.size)) * 10_000_000) }
        };
        let tick = Tick { symbol, event_time, seq, event };
        match tick.event {
            Event::Trade { .. } => builder.trades.push((tick.clone(), false)),
            _ => builder.quotes.push(tick.clone()),
        }
        builder.tick(at, tick);
    }

    fn event(&self, builder: &mut Builder, profile: &Profile, raw: &Raw, now: Nanos, delay: Nanos) {
        match raw.kind {
            0..=13 if profile.amended => self.wrong(builder, raw, now, delay),
            14..=21 if profile.amended => self.amend(builder, raw, now),
            22..=25 if profile.nonsense => {
                let target = match latest(&builder.quotes, raw.pick) {
                    Some(quote) if raw.kind < 24 => quote.clone(),
                    _ => {
                        let symbol = builder.symbols[usize::from(raw.symbol) % builder.symbols.len()];
                        Tick { symbol, event_time: now, seq: 2_000_000 + u64::from(raw.size), event: Event::Bust }
                    }
                };
                let event = match raw.size % 2 {
                    0 => Event::Bust,
                    _ => Event::Correction { rev: 1, price: Price(1000 + i64::from(raw.size)), size: Size(100) },
                };
                builder.tick(target.event_time + delay, Tick { event, ..target });
            }
            26..=35 if profile.repeats => {
                if let Some(record) = latest(&builder.records, raw.pick).cloned() {
                    builder.tick(record.event_time + delay, record);
                }
            }
            36..=47 => self.account(builder, raw, now, delay),
            48..=63 if profile.edits => {
                builder.arrivals.push(Arrival { at: now, item: Item::Config(edit(raw, now)) });
            }
            64 if profile.edits => {
                builder.arrivals.push(Arrival { at: now, item: Item::Stale(raw.pick.is_multiple_of(2)) })
            }
            65..=67 if profile.too_late => {
                let delay = LATENESS + i64::from(raw.delay % 1000) * SECOND;
                self.market(builder, raw, now, now + delay, false);
            }
            _ => self.market(builder, raw, now, now + delay, false),
        }
    }

    /// A wrong trade, or what says so of an earlier one: busts and corrections come before and after their target.
    fn wrong(&self, builder: &mut Builder, raw: &Raw, now: Nanos, delay: Nanos) {
        if raw.kind.is_multiple_of(3) || builder.trades.len() < 6 {
            return self.market(builder, raw, now, now + delay, true);
        }
        // Not the first trades: they make their symbols known.
        let from = 4.max(builder.trades.len().saturating_sub(24));
        let range = builder.trades.len() - from;
        let (target, _) = builder.trades[from + raw.pick as usize % range].clone();
        let event = match raw.kind % 3 {
            1 => Event::Bust,
            _ => {
                let (_, step) = prices(target.symbol);
                let price = builder.price[&target.symbol] + step * i64::from(raw.step % 8);
                let size = Size((1 + i64::from(raw.size)) * 10_000_000);
                Event::Correction { rev: 1 + raw.size as u32 % 3, price: Price(price), size }
            }
        };
        builder.tick(target.event_time + delay, Tick { event, ..target });
    }

    /// What some base bar really was: before it seals or long after, of a bar that is there or of none.
    fn amend(&self, builder: &mut Builder, raw: &Raw, now: Nanos) {
        let base = Timeframe::S1;
        let all = &builder.records;
        let Some(near) = all.get(raw.pick as usize % all.len().max(1)) else { return };
        let (symbol, near) = (near.symbol, near.event_time);
        let open_time = base.open_time(near) + if raw.size.is_multiple_of(8) { SECOND } else { 0 };
        let (source, scale) = match world().instruments.by_symbol.get(&symbol) {
            Some(instrument) => {
                (instrument.price_source, if instrument.price_source == PriceSource::Mid { 10 } else { 1 })
            }
            None => (PriceSource::Last, 1),
        };
        let (_, step) = prices(symbol);
        let open = builder.price[&symbol] * scale;
        let close = open + step * scale * i64::from(raw.step % 8);
        let volume = if source == PriceSource::Last { i128::from(raw.size) * 10_000_000 } else { 0 };
        let body = BarBody {
            open: Price(open),
            high: Price(open.max(close) + step),
            low: Price(open.min(close) - step),
            close: Price(close),
            volume,
            turnover: volume * i128::from(open),
            count: 1 + u64::from(raw.size % 5),
        };
        let bar = (raw.step % 3 != 0).then_some(body);
        let event = Event::Amend(Box::new(Amend { rev: 1 + u32::from(raw.size % 3), bar }));
        // An amend is never late.
        let at = open_time.max(now - LATENESS) + i64::from(raw.delay % 2400) * SECOND;
        builder.tick(at, Tick { symbol, event_time: open_time, seq: 0, event });
    }

    fn account(&self, builder: &mut Builder, raw: &Raw, now: Nanos, delay: Nanos) {
        let account = AccountId::new(["M1", "S1", "M2"][raw.pick as usize % 3]).unwrap();
        let mut positions: Vec<Position> = Vec::new();
        for (i, symbol) in builder.symbols.iter().enumerate() {
            let side = match raw.size >> (2 * i) & 3 {
                0 => -1,
                1 => 1,
                _ => continue,
            };
            positions.push(Position { symbol: *symbol, side, lots: Amount::whole(1 + i as i32) });
        }
        positions.sort();
        builder.seq += 1;
        let equity = match raw.pick % 37 {
            0 => 0,
            1 => -500,
            _ => 9_000 + i64::from(raw.step % 2_000),
        };
        let snapshot = AccountSnapshot {
            account,
            event_time: now,
            seq: builder.seq,
            equity: Amount(equity * 100_000_000),
            balance: Amount(10_000 * 100_000_000),
            currency: if raw.pick.is_multiple_of(11) { *b"EUR" } else { *b"USD" },
            positions,
        };
        builder.arrivals.push(Arrival { at: now + delay, item: Item::Account(snapshot) });
    }
}

/// How much later than its event time a record arrives: mostly at once, always within the horizon.
fn delay(raw: u32) -> Nanos {
    match raw % 8 {
        0..=4 => 0,
        5 => i64::from(raw / 8 % 3_000) * MILLI,
        6 => i64::from(raw / 8 % 90) * SECOND,
        _ => i64::from(raw / 8 % 599) * SECOND,
    }
}

/// A long history of one symbol, one bar a second for hours, with busts, corrections and amends as far back as its
/// beginning: what checkpoints are for.
pub(crate) fn long(seed: u64, bars: usize) -> History {
    let mut random = Random(seed);
    let symbol = all_symbols()[0];
    let (mut price, step) = prices(symbol);
    let on_seconds = |json: &str| json.replace(r#""timeframe":"1m""#, r#""timeframe":"1s""#);
    let mut edits = vec![("/echo/core/master_accounts".to_owned(), Some("M1".to_owned()))];
    for index in [0, 1, 2, 4, 5, 7, 8] {
        let (key, value) = strategy_key(index);
        edits.push((key, Some(on_seconds(&value))));
    }
    let mut arrivals = vec![Arrival { at: Nanos::MIN, item: Item::Config(edits) }];
    let mut now = MONDAY + 20 * HOUR;
    let begin = now;
    let mut trades: Vec<Tick> = Vec::new();
    for seq in 0..bars as u64 {
        now += SECOND * (1 + (random.below(20) == 0) as i64 * random.below(90) as i64);
        price = (price + step * (random.below(9) as i64 - 4)).clamp(8_000, 12_000);
        let event = Event::Trade { price: Price(price), size: Size(100_000_000) };
        let tick = Tick { symbol, event_time: now + random.below(900) as i64 * MILLI, seq, event };
        let mut push = |tick: Tick| arrivals.push(Arrival { at: now, item: Item::Tick(tick) });
        push(tick.clone());
        trades.push(tick);
        if random.below(150) == 0 {
            let recent = &trades[trades.len().saturating_sub(400)..];
            let target = &recent[random.below(recent.len() as u64) as usize];
            // Of a second that may have sealed, nothing but an amend: it would be late.
            if target.event_time > now - LATENESS + MINUTE {
                let right = Event::Correction { rev: 1 + random.below(5) as u32, price: Price(price), size: Size(1) };
                push(Tick { event: if random.below(2) == 0 { Event::Bust } else { right }, ..target.clone() });
            }
        }
        if random.below(300) == 0 {
            let open_time = Timeframe::S1.open_time(begin + random.below((now - begin) as u64) as i64);
            let body = BarBody::first(Price(price), Size(100_000_000));
            let bar = (random.below(3) > 0).then_some(body);
            let amend = Amend { rev: random.below(9) as u32, bar };
            push(Tick { symbol, event_time: open_time, seq: 0, event: Event::Amend(Box::new(amend)) });
        }
        if random.below(2_000) == 0 {
            let (key, value) = strategy_key(random.below(8) as usize);
            let value = (random.below(2) == 0).then(|| on_seconds(&value));
            arrivals.push(Arrival { at: now, item: Item::Config(vec![(key, value)]) });
        }
    }
    History { arrivals, until: Timeframe::H1.close_time(now), partitions: 1 }
}

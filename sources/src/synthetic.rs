//! A market that is made up: several symbols with trades and quotes, good enough to look at and bad enough to test.
//!
//! **What happens in it.** Each symbol drifts (which rules that follow trends earn by) or swings around a centre (which
//! rules of reversion earn by), for half an hour or more each; some symbols do more of one, some of the other. Bursts raise its volatility, spread and
//! tick rate for seconds to a minute; in quiet spells it says nothing at all, and its quote grows stale. Currencies
//! are quoted; companies are quoted and traded. A few ticks arrive late, a few twice; a few trades are busted (most
//! of them far from the market) or corrected, some of them twice. Accounts hold positions: the first one goes with
//! the trends, the others follow it.
//!
//! **Order and determinism.** The same seed, start and settings give the same records in the same order on every
//! machine: own random numbers (splitmix64), additions, multiplications and square roots only, no clock. Due times
//! never fall; event times do, where a tick is late. Every late tick lies within two minutes. No identity comes with
//! two payloads.
//!
//! **Pace.** At full speed, or each record when the wall clock reaches its due time: with `start` = now and some
//! `history`, the hours before come at once (at a lower rate of ticks) and the live market goes on from there.
//!
//! **Cursor**: partition `synthetic`, offset = number of the record from 0. Nothing is kept: a restart begins anew.

use crate::{BATCH_ROWS, Carries, Input, Sender, Stop, live_file, send, wall_now};
use marea_model::cursor::Fingerprint;
use marea_model::instrument::InstrumentSpec;
use marea_model::time::{MILLI, Nanos, SECOND};
use marea_model::{
    AccountId, AccountSnapshot, Amount, ConfigUpdate, Cursor, Event, Instrument, Instruments, Partition, Price, Size,
    Symbol, Tick, Ticks, cursor::Batch,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The partition of the synthetic market.
pub const PARTITION: &str = "synthetic";

/// The live configuration that fits the default market, as a file to start from.
pub const LIVE_CONFIG: &str = include_str!("demo.toml");

/// [`LIVE_CONFIG`] as revision 1: six instruments decided on 1m, ten strategies of all seven kinds, the accounts M1
/// (master), S1 and S2 (slaves), and their policies.
pub fn live_config() -> Vec<ConfigUpdate> {
    live_file::diff(&BTreeMap::new(), &live_tree(), 1)
}

fn live_tree() -> BTreeMap<String, String> {
    live_file::parse(Path::new("demo.toml"), LIVE_CONFIG.as_bytes()).expect("the embedded file is valid TOML")
}

/// The instruments of [`LIVE_CONFIG`].
pub fn instruments() -> Instruments {
    let default = Instrument::default();
    let by_symbol = live_tree().into_iter().filter_map(|(key, json)| {
        let symbol = key.strip_prefix("/marea/instruments/")?;
        let symbol = Symbol::new(symbol).expect("the embedded file has valid symbols");
        let spec: InstrumentSpec = serde_json::from_str(&json).expect("the embedded file has valid instruments");
        Some((symbol, spec.over(&default).expect("the embedded file has valid instruments")))
    });
    Instruments { default, by_symbol: by_symbol.collect() }
}

/// When records come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pace {
    /// As fast as they are taken.
    Full,
    /// When the wall clock reaches their due time: the past at once, the rest live.
    #[default]
    Wall,
}

/// How often something goes wrong: shares of all ticks (of all trades, for busts and corrections), 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Faults {
    /// Ticks that arrive late, up to 90 s.
    pub late: f64,
    /// Ticks that arrive twice.
    pub duplicate: f64,
    /// Trades that are busted.
    pub bust: f64,
    /// Trades that are corrected.
    pub correction: f64,
}

impl Faults {
    /// Nothing ever goes wrong.
    pub const NONE: Faults = Faults { late: 0.0, duplicate: 0.0, bust: 0.0, correction: 0.0 };
}

impl Default for Faults {
    fn default() -> Self {
        Faults { late: 0.005, duplicate: 0.003, bust: 0.001, correction: 0.002 }
    }
}

/// The settings of a synthetic market.
#[derive(Clone, PartialEq, Debug)]
pub struct Synthetic {
    /// Another seed, another market.
    pub seed: u64,
    /// Number of symbols, 1 to 1,000. The first six are those of [`LIVE_CONFIG`].
    pub symbols: usize,
    /// The event time at which the live market starts.
    pub start: Nanos,
    /// Nanoseconds before `start` that come first.
    pub history: Nanos,
    /// Ticks a second before `start`, over all symbols.
    pub history_rate: f64,
    /// Ticks a second from `start` on, over all symbols.
    pub rate: f64,
    /// When records come.
    pub pace: Pace,
    /// The number of ticks after which it ends, history included; endless if absent.
    pub limit: Option<u64>,
    /// How often something goes wrong.
    pub faults: Faults,
    /// The accounts; the first one is followed by the others.
    pub accounts: Vec<AccountId>,
}

impl Default for Synthetic {
    /// Six symbols at 200 ticks a second from Monday, 2026-01-05 09:00 UTC, without history.
    fn default() -> Self {
        let account = |id| AccountId::new(id).expect("a valid account name");
        Synthetic {
            seed: 1,
            symbols: 6,
            start: 1_767_603_600 * SECOND,
            history: 0,
            history_rate: 2.0,
            rate: 200.0,
            pace: Pace::Wall,
            limit: None,
            faults: Faults::default(),
            accounts: vec![account("M1"), account("S1"), account("S2")],
        }
    }
}

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} must be {must}")]
pub struct SyntheticError {
    /// The setting.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub must: &'static str,
}

/// The latest start: far enough from the end of 64-bit nanoseconds that no market ever gets there.
const MAX_START: Nanos = 7_258_118_400 * SECOND;

impl Synthetic {
    /// What tells this market from every other one: its start, and all that decides what happens in it.
    pub fn fingerprint(&self) -> Fingerprint {
        let Synthetic { seed, symbols, start, history, history_rate, rate, faults, accounts, pace: _, limit: _ } = self;
        let settings = format!("{seed} {symbols} {history} {history_rate} {rate} {faults:?} {accounts:?}");
        // FNV-1a: the same in every process.
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = settings.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
        Fingerprint { offset: 0, timestamp_ms: start / MILLI, hash }
    }

    /// The same market as one that was read before; none if its settings are not those.
    pub fn resumed(self, fingerprint: Fingerprint) -> Option<Synthetic> {
        let market = Synthetic { start: fingerprint.timestamp_ms.saturating_mul(MILLI), ..self };
        (market.fingerprint() == fingerprint).then_some(market)
    }

    fn check(&self) -> Result<(), SyntheticError> {
        let refuse = |field, value: &dyn ToString, must| Err(SyntheticError { field, value: value.to_string(), must });
        if !(1..=1000).contains(&self.symbols) {
            return refuse("symbols", &self.symbols, "1 to 1000");
        }
        if !(0..=MAX_START).contains(&self.start) {
            return refuse("start", &self.start, "nanoseconds from 1970 to 2200");
        }
        if !(0..=self.start).contains(&self.history) {
            return refuse("history", &self.history, "nanoseconds, not before 1970");
        }
        for (field, rate) in [("rate", self.rate), ("history_rate", self.history_rate)] {
            if !(0.001..=1e7).contains(&rate) {
                return refuse(field, &rate, "0.001 to 10000000 ticks a second");
            }
        }
        let Faults { late, duplicate, bust, correction } = self.faults;
        for (field, share) in [("late", late), ("duplicate", duplicate), ("bust", bust), ("correction", correction)] {
            if !(0.0..=1.0).contains(&share) {
                return refuse(field, &share, "a share, 0 to 1");
            }
        }
        Ok(())
    }
}

/// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    fn below(&mut self, n: u64) -> u64 {
        // The bias of the remainder is below 1e-15 for the small n used here.
        self.next() % n
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Mean 0, variance 1, within ± 3.5: the sum of four uniform numbers, without logarithms.
    fn noise(&mut self) -> f64 {
        const SQRT_3: f64 = 1.732_050_807_568_877_2;
        (self.unit() + self.unit() + self.unit() + self.unit() - 2.0) * SQRT_3
    }

    fn seconds(&mut self, low: f64, high: f64) -> Nanos {
        (self.range(low, high) * 1e9) as Nanos
    }
}

/// How a kind of symbol behaves.
#[derive(Clone, Copy, Debug)]
struct Nature {
    name: &'static str,
    /// The price that it comes back to in the long run.
    price: f64,
    /// Decimals of its price step.
    digits: u8,
    /// Standard deviation of a minute's return, in basis points.
    volatility: f64,
    /// Ordinary spread, in price steps.
    spread: i64,
    /// How often it drifts instead of swinging, 0 to 1.
    trending: f64,
    /// Whether it is traded, or only quoted.
    traded: bool,
    /// Sizes are multiples of this.
    lot: i64,
    /// Its share of the ticks.
    weight: u32,
}

const fn currency(name: &'static str, price: f64, digits: u8, volatility: f64, spread: i64, trending: f64) -> Nature {
    Nature { name, price, digits, volatility, spread, trending, traded: false, lot: 500_000, weight: 3 }
}

const fn company(name: &'static str, price: f64, volatility: f64, spread: i64, trending: f64) -> Nature {
    Nature { name, price, digits: 2, volatility, spread, trending, traded: true, lot: 100, weight: 2 }
}

const NATURES: [Nature; 12] = [
    currency("EURUSD", 1.085, 5, 1.6, 6, 0.15),
    currency("GBPUSD", 1.272, 5, 1.8, 8, 0.5),
    currency("USDJPY", 152.4, 3, 1.7, 7, 0.8),
    company("AQUA", 181.9, 5.0, 2, 0.7),
    company("BRIO", 42.35, 6.0, 1, 0.1),
    company("CORA", 96.1, 5.5, 2, 0.4),
    company("BTC/USD", 64_000.0, 7.0, 80, 0.7),
    currency("AUDUSD", 0.664, 5, 2.0, 8, 0.5),
    currency("EUR/CHF", 0.958, 5, 1.2, 9, 0.2),
    company("DUNE", 312.5, 5.0, 4, 0.6),
    company("ELMO", 18.75, 9.0, 1, 0.4),
    company("FARO", 67.2, 7.0, 2, 0.5),
];

#[derive(Clone, Copy, Debug)]
enum Regime {
    /// Price units a second.
    Trend { drift: f64 },
    /// A triangle around a centre.
    Swing { centre: f64, height: f64, period: Nanos, since: Nanos },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Calm,
    Burst,
    Quiet,
}

#[derive(Clone, Debug)]
struct Asset {
    symbol: Symbol,
    nature: Nature,
    instrument: Instrument,
    price: f64,
    time: Nanos,
    regime: Regime,
    regime_until: Nanos,
    mood: Mood,
    mood_until: Nanos,
    seq: u64,
}

impl Asset {
    fn new(nature: Nature, symbol: Symbol, instrument: Instrument, time: Nanos, random: &mut Random) -> Self {
        let price = nature.price * random.range(0.995, 1.005);
        let (regime, mood) = (Regime::Trend { drift: 0.0 }, Mood::Calm);
        let mood_until = time + random.seconds(60.0, 400.0);
        Asset { symbol, nature, instrument, price, time, regime, regime_until: time, mood, mood_until, seq: 0 }
    }

    /// Standard deviation of a minute, in price units.
    fn sigma(&self) -> f64 {
        self.price * self.nature.volatility * 1e-4
    }

    fn next_mood(&mut self, time: Nanos, random: &mut Random) {
        let (mood, length) = match self.mood {
            Mood::Calm if random.chance(0.55) => (Mood::Burst, random.seconds(10.0, 50.0)),
            Mood::Calm => (Mood::Quiet, random.seconds(15.0, 45.0)),
            Mood::Burst | Mood::Quiet => (Mood::Calm, random.seconds(240.0, 900.0)),
        };
        self.mood = mood;
        self.mood_until = time + length;
    }

    fn next_regime(&mut self, time: Nanos, random: &mut Random) {
        let sigma = self.sigma();
        if random.chance(self.nature.trending) {
            // The further it has gone, the likelier it comes back.
            let up = random.chance((0.5 - 6.0 * (self.price / self.nature.price - 1.0)).clamp(0.1, 0.9));
            let drift = random.range(0.25, 0.6) * sigma / 60.0;
            self.regime = Regime::Trend { drift: if up { drift } else { -drift } };
        } else {
            let (height, period) = (random.range(5.0, 9.0) * sigma, random.seconds(1800.0, 3000.0));
            self.regime = Regime::Swing { centre: self.price, height, period, since: time };
        }
        self.regime_until = time + random.seconds(1800.0, 5400.0);
    }

    /// Moves the price to `time`.
    fn advance(&mut self, time: Nanos, random: &mut Random) {
        if time >= self.regime_until {
            self.next_regime(time, random);
        }
        // After a long silence the price has moved, but not by leaps.
        let passed = ((time - self.time) as f64 / 1e9).min(60.0);
        self.time = time;
        let burst = if self.mood == Mood::Burst { 4.0 } else { 1.0 };
        let noise = self.sigma() * burst * (passed / 60.0).sqrt() * random.noise();
        self.price += match self.regime {
            Regime::Trend { drift } => drift * passed + noise * 0.7,
            Regime::Swing { centre, height, period, since } => {
                // Begins at the centre: a quarter into the triangle, which is −1 at 0 and 1 at the half.
                let phase = ((time - since) + period / 4) % period;
                let triangle = 1.0 - 4.0 * (phase as f64 / period as f64 - 0.5).abs();
                (centre + height * triangle - self.price) * (passed / 120.0) + noise * 0.8
            }
        };
        self.price = self.price.max(self.nature.price * 0.2);
    }

    /// Bid and ask in price steps.
    fn book(&self, random: &mut Random) -> (i64, i64) {
        let wide = if self.mood == Mood::Burst { 2 + random.below(3) as i64 } else { 1 };
        let spread = (self.nature.spread * wide + random.below(3) as i64 - 1).max(1);
        let steps = self.price * marea_model::num::pow10(self.nature.digits) as f64;
        let bid = ((steps - spread as f64 / 2.0).round() as i64).max(1);
        (bid, bid + spread)
    }

    /// Price steps as a price of the instrument.
    fn price(&self, steps: i64) -> Price {
        let (digits, scale) = (self.nature.digits, self.instrument.scale);
        let power = marea_model::num::pow10(digits.abs_diff(scale));
        Price(if scale >= digits { steps.saturating_mul(power) } else { (steps / power).max(1) })
    }

    fn size(&self, random: &mut Random) -> Size {
        Size((1 + random.below(10) as i64) * self.nature.lot * 100_000_000)
    }

    fn identity(&mut self, event_time: Nanos, event: Event) -> Tick {
        self.seq += 1;
        Tick { symbol: self.symbol, event_time, seq: self.seq, event }
    }
}

#[derive(Clone, Debug)]
struct Holding {
    asset: usize,
    side: i8,
    lots: Amount,
    entry: f64,
}

#[derive(Clone, Debug)]
struct Account {
    id: AccountId,
    balance: f64,
    holdings: Vec<Holding>,
    seq: u64,
}

/// Money, to the cent.
fn cents(money: f64) -> Amount {
    Amount((money * 100.0).round() as i64 * 1_000_000)
}

/// What comes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Emitted {
    /// A tick.
    Tick(Tick),
    /// An account's state.
    Account(AccountSnapshot),
}

/// The endless market: yields (due time, what comes).
#[derive(Clone, Debug)]
pub struct Market {
    random: Random,
    start: Nanos,
    rates: [f64; 2],
    faults: Faults,
    assets: Vec<Asset>,
    /// Indices of assets, each as often as it weighs.
    lottery: Vec<usize>,
    accounts: Vec<Account>,
    /// The time of the next tick, and of the next snapshots.
    next_tick: Nanos,
    next_snapshot: Nanos,
    /// What follows from earlier ticks, by due time and order.
    scheduled: BTreeMap<(Nanos, u64), Emitted>,
    order: u64,
}

impl Market {
    /// A market; prices have the scales of `instruments`.
    pub fn new(config: &Synthetic, instruments: &Instruments) -> Result<Self, SyntheticError> {
        config.check()?;
        let mut random = Random(config.seed);
        let begin = config.start - config.history;
        let assets: Vec<Asset> = (0..config.symbols)
            .map(|i| {
                let nature = NATURES[i % NATURES.len()];
                let name = if i < NATURES.len() { nature.name.to_owned() } else { format!("SYN{i:04}") };
                let symbol = Symbol::new(&name).expect("a valid symbol");
                Asset::new(nature, symbol, *instruments.get(symbol), begin, &mut random)
            })
            .collect();
        let weights = assets.iter().enumerate().flat_map(|(i, a)| (0..a.nature.weight).map(move |_| i));
        let lottery = weights.collect();
        let balances = [100_000.0, 25_000.0, 10_000.0];
        let account = |(i, id): (usize, &AccountId)| Account {
            id: *id,
            balance: balances[i % balances.len()],
            holdings: Vec::new(),
            seq: 0,
        };
        Ok(Market {
            random,
            start: config.start,
            rates: [config.history_rate, config.rate],
            faults: config.faults,
            assets,
            lottery,
            accounts: config.accounts.iter().enumerate().map(account).collect(),
            next_tick: begin,
            next_snapshot: begin,
            scheduled: BTreeMap::new(),
            order: 0,
        })
    }

    fn schedule(&mut self, due: Nanos, what: Emitted) {
        self.order += 1;
        self.scheduled.insert((due, self.order), what);
    }

    /// One tick at `time`, and what follows from it; none where the symbols drawn keep quiet.
    fn tick(&mut self, time: Nanos) {
        let random = &mut self.random;
        // A symbol in a burst is taken whenever it is drawn, another one every fourth time: so bursts are busy.
        let mut drawn = None;
        for _ in 0..32 {
            let index = self.lottery[random.below(self.lottery.len() as u64) as usize];
            let asset = &mut self.assets[index];
            if time >= asset.mood_until {
                asset.next_mood(time, random);
            }
            let share = match asset.mood {
                Mood::Calm => 0.25,
                Mood::Burst => 1.0,
                Mood::Quiet => 0.0,
            };
            if random.chance(share) {
                drawn = Some(index);
                break;
            }
        }
        let Some(index) = drawn else { return };
        let asset = &mut self.assets[index];
        asset.advance(time, random);
        let (bid, ask) = asset.book(random);
        let mut follow: Vec<(Nanos, Event)> = Vec::new();
        let event = if asset.nature.traded && random.chance(0.5) {
            let mut steps = bid + random.below((ask - bid + 1) as u64) as i64;
            let size = asset.size(random);
            if random.chance(self.faults.bust) {
                if random.chance(0.7) {
                    let off = (steps as f64 * random.range(0.01, 0.03)) as i64;
                    steps = if random.chance(0.5) { steps + off } else { (steps - off).max(1) };
                }
                follow.push((time + random.seconds(1.0, 20.0), Event::Bust));
            } else if random.chance(self.faults.correction) {
                let mut due = time;
                for rev in 1..=if random.chance(0.2) { 2 } else { 1 } {
                    due += random.seconds(1.0, 30.0);
                    let steps = (steps + random.below(9) as i64 - 4).max(1);
                    follow.push((due, Event::Correction { rev, price: asset.price(steps), size }));
                }
            }
            Event::Trade { price: asset.price(steps), size }
        } else {
            let (bid_size, ask_size) = (asset.size(random), asset.size(random));
            Event::Quote { bid: asset.price(bid), ask: asset.price(ask), bid_size, ask_size }
        };
        let tick = asset.identity(time, event);
        let late = if random.chance(self.faults.late) {
            // Most are late by little.
            let u = random.unit();
            50 * MILLI + (u * u * u * 90e9) as Nanos
        } else {
            0
        };
        let again = random.chance(self.faults.duplicate).then(|| late + random.seconds(0.0, 5.0));
        for (due, event) in follow {
            self.schedule(due, Emitted::Tick(Tick { event, ..tick.clone() }));
        }
        if let Some(again) = again {
            self.schedule(time + again, Emitted::Tick(tick.clone()));
        }
        self.schedule(time + late, Emitted::Tick(tick));
    }

    /// The state of every account at `time`; `seconds` have passed since the last.
    fn snapshots(&mut self, time: Nanos, seconds: f64) {
        let Market { random, assets, accounts, .. } = self;
        let gain = |h: &Holding| {
            let instrument = &assets[h.asset].instrument;
            let points = (assets[h.asset].price - h.entry) / instrument.tick_size.to_f64(instrument.scale);
            f64::from(h.side) * points * instrument.tick_value.to_f64() * h.lots.to_f64()
        };
        // The first account, by trends and chance; what it holds afterwards is what the others follow.
        let mut wanted: Vec<(usize, i8)> = Vec::new();
        if let Some(master) = accounts.first() {
            wanted.extend(master.holdings.iter().map(|h| (h.asset, h.side)));
            wanted.retain(|_| !random.chance(seconds / 900.0));
            if wanted.len() < 3.min(assets.len()) && random.chance(seconds / 180.0) {
                let asset = random.below(assets.len() as u64) as usize;
                let side = match assets[asset].regime {
                    Regime::Trend { drift } if drift < 0.0 => -1,
                    Regime::Trend { .. } => 1,
                    Regime::Swing { .. } => [-1, 1][random.below(2) as usize],
                };
                if wanted.iter().all(|(held, _)| *held != asset) {
                    wanted.push((asset, side));
                }
            }
        }
        let mut snapshots = Vec::with_capacity(accounts.len());
        for (i, account) in accounts.iter_mut().enumerate() {
            for held in account.holdings.extract_if(.., |h| !wanted.contains(&(h.asset, h.side))) {
                account.balance += gain(&held);
            }
            for &(asset, side) in &wanted {
                if account.holdings.iter().all(|h| h.asset != asset) {
                    let instrument = &assets[asset].instrument;
                    let lots = instrument.min_lot.0.saturating_mul(if i == 0 { 10 } else { 2 });
                    let lots = Amount(lots.min(instrument.max_lot.0));
                    account.holdings.push(Holding { asset, side, lots, entry: assets[asset].price });
                }
            }
            account.seq += 1;
            let open: f64 = account.holdings.iter().map(gain).sum();
            let position =
                |h: &Holding| marea_model::Position { symbol: assets[h.asset].symbol, side: h.side, lots: h.lots };
            let mut positions: Vec<_> = account.holdings.iter().map(position).collect();
            positions.sort_unstable();
            snapshots.push(AccountSnapshot {
                account: account.id,
                event_time: time,
                seq: account.seq,
                equity: cents(account.balance + open),
                balance: cents(account.balance),
                currency: *b"USD",
                positions,
            });
        }
        for snapshot in snapshots {
            self.schedule(time, Emitted::Account(snapshot));
        }
    }
}

impl Iterator for Market {
    type Item = (Nanos, Emitted);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = self.next_snapshot.min(self.next_tick);
            if let Some(first) = self.scheduled.first_entry()
                && first.key().0 <= next
            {
                let ((due, _), what) = first.remove_entry();
                return Some((due, what));
            }
            if self.next_snapshot <= self.next_tick {
                let seconds = if next < self.start { 60 } else { 2 };
                self.next_snapshot += seconds * SECOND;
                self.snapshots(next, seconds as f64);
            } else {
                let rate = self.rates[usize::from(next >= self.start)];
                let gap = (1e9 / rate * self.random.range(0.5, 1.5)) as Nanos;
                self.next_tick += gap.max(1);
                // The live market starts on time, however slow the history was.
                if next < self.start {
                    self.next_tick = self.next_tick.min(self.start);
                }
                self.tick(next);
            }
        }
    }
}

/// Sends the market until its limit or a stop. Prices have the scales of `instruments` (those that the dataflow
/// knows: [`instruments`] with [`live_config`]).
pub fn run(config: &Synthetic, instruments: &Instruments, out: &Sender, stop: &Stop) -> Result<(), SyntheticError> {
    let mut market = Market::new(config, instruments)?.peekable();
    let partition = Partition::new(PARTITION).expect("a valid partition name");
    if send(out, stop, Input::Start { partition, carries: Carries::Ticks }).is_err() {
        return Ok(());
    }
    let fingerprint = config.fingerprint();
    let (mut offset, mut left) = (0_u64, config.limit.unwrap_or(u64::MAX));
    while left > 0 {
        let now = wall_now();
        let deadline = match config.pace {
            Pace::Full => Nanos::MAX,
            Pace::Wall => now,
        };
        let (mut records, mut accounts) = (Ticks::new(), Vec::new());
        while left > 0 && records.len() + accounts.len() < BATCH_ROWS {
            let Some((_, what)) = market.next_if(|(due, _)| *due <= deadline) else { break };
            let cursor = Cursor { partition, offset, row: 0 };
            offset += 1;
            match what {
                Emitted::Tick(tick) => {
                    left -= 1;
                    records.push(cursor, tick);
                }
                Emitted::Account(snapshot) => accounts.push((cursor, snapshot)),
            }
        }
        let wait = market.peek().map_or(0, |(due, _)| due.saturating_sub(deadline));
        if !records.is_empty() || !accounts.is_empty() {
            let batch = Batch {
                records,
                accounts,
                upper: offset,
                // Live, everything that there is has been sent; at full speed there is always more.
                at_end: wait > 0,
                fingerprint: Some(fingerprint),
                ..Batch::new(partition, now)
            };
            if send(out, stop, Input::Batch(batch)).is_err() {
                return Ok(());
            }
        }
        // Never less than a millisecond: at high rates a batch is better than a tick.
        if wait > 0 && left > 0 && !stop.sleep(Duration::from_nanos(wait.max(MILLI).unsigned_abs())) {
            return Ok(());
        }
    }
    // Nobody listening any more is as good an end as any.
    let _ = send(out, stop, Input::Finished { partition });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::num::MAX_SCALE;
    use marea_model::strategy::{KINDS, StrategySpec};
    use marea_model::{LiveConfig, Record, StrategyId};
    use std::collections::{BTreeSet, HashMap};
    use std::time::Instant;

    fn market(config: &Synthetic) -> Market {
        Market::new(config, &instruments()).unwrap()
    }

    fn ticks(config: &Synthetic, n: usize) -> Vec<(Nanos, Tick)> {
        let only_ticks = |(due, what)| if let Emitted::Tick(tick) = what { Some((due, tick)) } else { None };
        market(config).filter_map(only_ticks).take(n).collect()
    }

    /// Everything that `run` sends.
    fn sent(config: &Synthetic) -> (Vec<Record>, Vec<(Cursor, AccountSnapshot)>, Vec<Input>) {
        let (out, inputs) = crossbeam_channel::unbounded();
        let out = Sender::from(out);
        run(config, &instruments(), &out, &Stop::new()).unwrap();
        drop(out);
        let (mut records, mut accounts, mut others) = (vec![], vec![], vec![]);
        for input in inputs {
            match input {
                Input::Batch(batch) => {
                    assert!(batch.records.len() + batch.accounts.len() <= BATCH_ROWS);
                    records.extend(batch.records.iter());
                    accounts.extend(batch.accounts);
                }
                other => others.push(other),
            }
        }
        (records, accounts, others)
    }

    #[test]
    fn the_same_seed_is_the_same_market_and_another_is_another() {
        let config = Synthetic { history: 3600 * SECOND, ..Synthetic::default() };
        let twenty_thousand = |config: &Synthetic| market(config).take(20_000).collect::<Vec<_>>();
        let first = twenty_thousand(&config);
        assert_eq!(first, twenty_thousand(&config));
        assert_ne!(first, twenty_thousand(&Synthetic { seed: 2, ..config }));
    }

    #[test]
    fn splitmix_gives_the_published_numbers() {
        let mut random = Random(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([random.next(), random.next(), random.next()], expected);
    }

    #[test]
    fn every_fault_happens_and_no_identity_has_two_payloads() {
        let config = Synthetic { rate: 50.0, ..Synthetic::default() };
        let all = ticks(&config, 200_000);
        let instruments = instruments();
        let mut payloads: HashMap<(Symbol, Nanos, u64), &Event> = HashMap::new();
        let mut seen = BTreeSet::new();
        let (mut late, mut duplicates, mut last_due) = (0, 0, Nanos::MIN);
        for (due, tick) in &all {
            assert!(*due >= last_due);
            last_due = *due;
            seen.insert((tick.event.kind(), instruments.get(tick.symbol).scale > 2));
            assert!((0..120 * SECOND).contains(&(due - tick.event_time)), "{tick:?} due {due}");
            if matches!(tick.event, Event::Trade { .. } | Event::Quote { .. }) {
                late += usize::from(*due > tick.event_time);
                let identity = (tick.symbol, tick.event_time, tick.seq);
                if let Some(payload) = payloads.insert(identity, &tick.event) {
                    assert_eq!(payload, &tick.event);
                    duplicates += 1;
                }
            }
        }
        assert!((500..3000).contains(&late), "{late}");
        assert!((300..1200).contains(&duplicates), "{duplicates}");
        let expected = [("quote", true), ("quote", false), ("trade", false), ("bust", false), ("correction", false)];
        assert_eq!(seen, BTreeSet::from(expected), "currencies (scale above 2) are only quoted");
        // What is busted or corrected exists.
        for (_, tick) in &all[..150_000] {
            if matches!(tick.event, Event::Bust | Event::Correction { .. }) {
                let target = payloads[&(tick.symbol, tick.event_time, tick.seq)];
                assert_eq!(target.kind(), "trade");
            }
        }
        let clean = ticks(&Synthetic { faults: Faults::NONE, ..config }, 20_000);
        assert!(clean.iter().all(|(due, t)| *due == t.event_time && matches!(t.event.kind(), "trade" | "quote")));
    }

    #[test]
    fn prices_are_sane_for_days_and_symbols_keep_quiet_at_times() {
        let config = Synthetic { rate: 2.0, ..Synthetic::default() };
        let instruments = instruments();
        let mut last: BTreeMap<Symbol, Nanos> = BTreeMap::new();
        let mut silences: BTreeMap<Symbol, usize> = BTreeMap::new();
        let mut spreads: BTreeMap<Symbol, BTreeSet<i64>> = BTreeMap::new();
        for (due, tick) in ticks(&config, 400_000) {
            if let Event::Quote { bid, ask, bid_size, .. } = tick.event {
                let nature = NATURES.iter().find(|n| n.name == tick.symbol.as_str()).unwrap();
                let price = bid.to_f64(instruments.get(tick.symbol).scale);
                assert!((0.7..1.4).contains(&(price / nature.price)), "{} {price}", tick.symbol);
                assert!(bid < ask && bid_size > Size(0));
                spreads.entry(tick.symbol).or_default().insert(ask.0 - bid.0);
            }
            let before = last.insert(tick.symbol, due).unwrap_or(due);
            *silences.entry(tick.symbol).or_default() += usize::from(due - before > 14 * SECOND);
        }
        assert_eq!(last.len(), 6);
        assert!(silences.values().all(|n| *n > 100), "{silences:?}");
        for (symbol, spreads) in spreads {
            assert!(spreads.last().unwrap() >= &(2 * spreads.first().unwrap()), "{symbol}: bursts widen the spread");
        }
    }

    #[test]
    fn the_rate_is_what_was_asked_for_and_history_comes_first() {
        let config = Synthetic { history: 600 * SECOND, history_rate: 10.0, rate: 100.0, ..Synthetic::default() };
        let all = ticks(&config, 20_000);
        let (before, after): (Vec<_>, Vec<_>) = all.iter().partition(|(due, _)| *due < config.start);
        assert!((5_500..6_500).contains(&before.len()), "{}", before.len());
        let seconds = (after.last().unwrap().0 - config.start) as f64 / 1e9;
        let rate = after.len() as f64 / seconds;
        assert!((90.0..110.0).contains(&rate), "{rate}");
        assert!(before[0].0 < config.start - 599 * SECOND);
    }

    #[test]
    fn accounts_hold_positions_and_slaves_follow() {
        let config = Synthetic { rate: 5.0, ..Synthetic::default() };
        let mut at: BTreeMap<Nanos, Vec<AccountSnapshot>> = BTreeMap::new();
        for (_, what) in market(&config).take(50_000) {
            if let Emitted::Account(snapshot) = what {
                at.entry(snapshot.event_time).or_default().push(snapshot);
            }
        }
        at.pop_last();
        let (mut held, mut moved) = (0, BTreeSet::new());
        for snapshots in at.values() {
            assert_eq!(snapshots.len(), 3);
            let sides = |s: &AccountSnapshot| s.positions.iter().map(|p| (p.symbol, p.side)).collect::<Vec<_>>();
            assert!(snapshots.iter().all(|s| sides(s) == sides(&snapshots[0])));
            assert!(snapshots.iter().all(|s| s.positions.is_sorted_by(|a, b| a.symbol < b.symbol)));
            assert!(snapshots.iter().all(|s| s.equity.0 > 0 && s.currency == *b"USD"));
            held += usize::from(!snapshots[0].positions.is_empty());
            moved.insert(snapshots[0].equity);
        }
        assert!(held > at.len() / 2 && moved.len() > 100);
    }

    #[test]
    fn run_sends_as_many_ticks_as_asked_for_in_order() {
        let config = Synthetic { pace: Pace::Full, limit: Some(20_000), ..Synthetic::default() };
        let (records, accounts, others) = sent(&config);
        assert_eq!(records.len(), 20_000);
        let expected: Vec<Tick> = ticks(&config, 20_000).into_iter().map(|(_, tick)| tick).collect();
        assert_eq!(records.iter().map(|r| r.tick.clone()).collect::<Vec<_>>(), expected);
        let mut offsets: Vec<u64> = records.iter().map(|r| r.cursor.offset).collect();
        offsets.extend(accounts.iter().map(|(cursor, _)| cursor.offset));
        offsets.sort_unstable();
        assert!(offsets.into_iter().eq(0..(20_000 + accounts.len()) as u64));
        assert!(matches!(others[..], [Input::Start { .. }, Input::Finished { .. }]));
    }

    #[test]
    fn history_comes_at_once_and_then_the_wall_clock_rules() {
        let start = wall_now();
        let history = 3600 * SECOND;
        let config = Synthetic { start, history, history_rate: 1.0, rate: 500.0, ..Synthetic::default() };
        let (out, inputs) = crossbeam_channel::bounded(4);
        let out = Sender::from(out);
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| run(&config, &instruments(), &out, &stop).unwrap());
            let (mut live, begun) = (0, Instant::now());
            while live < 100 {
                let Input::Batch(batch) = inputs.recv_timeout(Duration::from_secs(10)).unwrap() else { continue };
                assert!(batch.records.iter().all(|r| r.tick.event_time <= batch.receive_time));
                live += batch.records.iter().filter(|r| r.tick.event_time >= start).count();
            }
            assert!(begun.elapsed() > Duration::from_millis(150), "100 ticks at 500 a second");
            stop.stop();
        });
    }

    #[test]
    fn prices_take_the_scale_of_the_instrument() {
        let config = Synthetic { faults: Faults::NONE, ..Synthetic::default() };
        let prices = |instruments: &Instruments| {
            let market = Market::new(&config, instruments).unwrap();
            let bid = |(_, what)| match what {
                Emitted::Tick(Tick { symbol, event: Event::Quote { bid, .. }, .. }) => Some((symbol, bid.0)),
                _ => None,
            };
            market.filter_map(bid).take(1000).collect::<Vec<_>>()
        };
        let own = prices(&instruments());
        let of_scale =
            |scale| Instruments { default: Instrument { scale, ..Instrument::default() }, ..Instruments::default() };
        for ((symbol, fine), (_, price)) in prices(&of_scale(MAX_SCALE)).iter().zip(&own) {
            let digits = instruments().get(*symbol).scale;
            assert_eq!(*fine, price * marea_model::num::pow10(MAX_SCALE - digits));
        }
        assert!(prices(&of_scale(0)).iter().all(|(_, price)| *price >= 1));
    }

    #[test]
    fn many_symbols_have_names_of_their_own() {
        let config = Synthetic { symbols: 1000, ..Synthetic::default() };
        let symbols: BTreeSet<Symbol> = market(&config).assets.iter().map(|a| a.symbol).collect();
        assert_eq!(symbols.len(), 1000);
        assert_eq!(market(&config).filter(|(_, what)| matches!(what, Emitted::Tick(_))).take(1000).count(), 1000);
    }

    #[test]
    fn bad_settings_are_named() {
        let base = Synthetic::default;
        let cases = [
            (Synthetic { symbols: 0, ..base() }, "symbols: 0 must be 1 to 1000"),
            (Synthetic { start: -1, ..base() }, "start: -1 must be nanoseconds from 1970 to 2200"),
            (Synthetic { history: -1, ..base() }, "history: -1 must be nanoseconds, not before 1970"),
            (Synthetic { rate: 0.0, ..base() }, "rate: 0 must be 0.001 to 10000000 ticks a second"),
            (
                Synthetic { history_rate: f64::NAN, ..base() },
                "history_rate: NaN must be 0.001 to 10000000 ticks a second",
            ),
            (Synthetic { faults: Faults { late: 1.5, ..Faults::NONE }, ..base() }, "late: 1.5 must be a share, 0 to 1"),
        ];
        for (config, expected) in cases {
            assert_eq!(Market::new(&config, &instruments()).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_live_configuration_is_valid_and_has_all_kinds() {
        let tree = live_tree();
        let of = |prefix: &'static str| tree.iter().filter_map(move |(k, v)| Some((k.strip_prefix(prefix)?, v)));
        let strategies: Vec<_> = of("/marea/strategies/")
            .map(|(id, json)| {
                let spec: StrategySpec = serde_json::from_str(json).unwrap();
                spec.build(StrategyId::new(id).unwrap()).unwrap()
            })
            .collect();
        assert_eq!(strategies.len(), 10);
        let kinds: BTreeSet<&str> = strategies.iter().map(|s| s.kind.name()).collect();
        assert_eq!(kinds, BTreeSet::from(KINDS));
        let minute = "1m".parse().unwrap();
        assert!(strategies.iter().all(|s| s.timeframe == minute));
        let instruments = instruments();
        assert_eq!(instruments.by_symbol.len(), 6);
        for (instrument, nature) in NATURES[..6].iter().map(|n| (instruments.get(Symbol::new(n.name).unwrap()), n)) {
            assert_eq!((instrument.scale, instrument.decision_timeframe), (nature.digits, minute));
            assert_eq!(instrument.tick_size, Price(1));
        }
        assert_eq!(tree["/echo/core/master_accounts"], "M1");
        assert_eq!(tree["/echo/core/slave_accounts"], "S1,S2");
        let mut live = LiveConfig::new(&instruments);
        for update in live_config() {
            live.apply(&update);
        }
        assert!(live.problems().is_empty(), "{:?}", live.problems());
        assert!(live_config().iter().all(|u| matches!(u, ConfigUpdate::Put { revision: 1, .. })));
        assert_eq!(live_config().len(), tree.len());
    }
}

//! What goes into the topics: a synthetic market, and on top of it whatever makes a restart hard.
//!
//! The state that comes of it does not depend on how four partitions are read against each other, and so not on kills:
//!
//! - what may change a bar comes within the lateness horizon of its own partition, so it is never late;
//! - what comes beyond the horizon is a quote of an instrument whose bars are of trades: late or not, it changes nothing;
//! - whether a bar has sealed when the input ends is the same in every run for the first hours and for the last minutes:
//!   amends, and busts of trades that never come, name bars of those alone.

use marea_model::instrument::PriceSource;
use marea_model::time::{SECOND, Timeframe};
use marea_model::{
    AccountId, AccountSnapshot, Amend, Amount, BarBody, Event, Instruments, Nanos, Price, Size, Symbol, Tick,
};
use marea_sources::synthetic::{self, Emitted, Faults, Market, Pace, Synthetic};
use std::collections::BTreeMap;

/// Monday, 2026-01-05 20:00 UTC: a day ends within the input.
const START: Nanos = 1_767_643_200 * SECOND;
/// How much event time the input covers, about: few ticks are far apart, many are close together.
const SPAN: Nanos = 6 * 3_600 * SECOND;
const MINUTE: Nanos = 60 * SECOND;
/// Symbols of the market; beside them there is [`IDLE`].
const SYMBOLS: usize = 12;
/// A symbol that trades for twenty minutes and then never again; of one more trade there is the bust alone.
pub const IDLE: &str = "IDLE";
/// An account whose equity was at its peak yesterday.
pub const FALLEN: &str = "D1";
/// Sequence numbers of what the market does not have.
const OWN: u64 = 1 << 40;

/// A seeded source of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n.max(1)
    }
}

/// One record of the input.
#[derive(Clone, Debug)]
pub enum Sent {
    /// A tick.
    Tick(Tick),
    /// An account's state.
    Account(AccountSnapshot),
    /// What nobody can read, where the symbol's ticks are.
    Garbage(Symbol),
}

/// The whole input.
pub struct Input {
    /// In the order in which it is published.
    pub records: Vec<Sent>,
    /// Scales and price sources.
    pub instruments: Instruments,
    /// Where `now` ends: less than a minute after the last record, so that recommendations and quotes are alive.
    pub until: Nanos,
}

impl Input {
    /// About so many ticks.
    pub fn new(seed: u64, ticks: u64) -> anyhow::Result<Input> {
        let instruments = synthetic::instruments();
        let rate = ticks as f64 / (SPAN / SECOND) as f64;
        let faults = Faults { late: 0.01, duplicate: 0.01, bust: 0.003, correction: 0.004 };
        let config =
            Synthetic { seed, symbols: SYMBOLS, start: START, rate, pace: Pace::Full, faults, ..Synthetic::default() };
        let mut left = ticks;
        let wanted = |(_, what): &(Nanos, Emitted)| {
            let is_tick = matches!(what, Emitted::Tick(_));
            left -= u64::from(is_tick && left > 0);
            left > 0
        };
        let market: Vec<(Nanos, Emitted)> = Market::new(&config, &instruments)?.take_while(wanted).collect();
        let last = market.iter().map(|(due, what)| event_time(what).max(*due)).max().unwrap_or(START);
        let mut making = Making {
            random: Random(seed ^ 0xc4a0_5000),
            instruments,
            last,
            records: Vec::with_capacity(market.len() + market.len() / 50),
            waiting: BTreeMap::new(),
            order: 0,
        };
        making.idle()?;
        making.fallen()?;
        for (due, what) in market {
            making.release(due);
            making.take(due, what);
        }
        making.release(Nanos::MAX);
        let Making { records, instruments, .. } = making;
        Ok(Input { records, instruments, until: (last / MINUTE + 1) * MINUTE })
    }

    /// How many of them are ticks, account snapshots, and neither.
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for record in &self.records {
            counts[match record {
                Sent::Tick(_) => 0,
                Sent::Account(_) => 1,
                Sent::Garbage(_) => 2,
            }] += 1;
        }
        counts
    }
}

fn event_time(what: &Emitted) -> Nanos {
    match what {
        Emitted::Tick(tick) => tick.event_time,
        Emitted::Account(snapshot) => snapshot.event_time,
    }
}

struct Making {
    random: Random,
    instruments: Instruments,
    /// The greatest event time.
    last: Nanos,
    records: Vec<Sent>,
    /// What comes later, by due time.
    waiting: BTreeMap<(Nanos, u64), Sent>,
    order: u64,
}

impl Making {
    fn wait(&mut self, due: Nanos, what: Sent) {
        self.order += 1;
        // Nothing comes after the last record of the market, so that `until` is what it is.
        self.waiting.insert((due.min(self.last), self.order), what);
    }

    fn release(&mut self, due: Nanos) {
        while self.waiting.first_key_value().is_some_and(|((at, _), _)| *at <= due) {
            self.records.extend(self.waiting.pop_first().map(|(_, what)| what));
        }
    }

    /// Whether it is known how a bar of this time ends: sealed, or not.
    fn is_certain(&self, time: Nanos) -> bool {
        time < self.last - 20 * MINUTE || time > self.last - 5 * MINUTE
    }

    fn own(&mut self) -> u64 {
        self.order += 1;
        OWN + self.order
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        let symbol = Symbol::new(IDLE)?;
        self.wait(
            self.last,
            Sent::Tick(Tick { symbol, event_time: self.last - 3 * MINUTE, seq: OWN, event: Event::Bust }),
        );
        let price = 50 * 10_i64.pow(u32::from(self.instruments.get(symbol).scale));
        for i in 0..120 {
            let event_time = START + i * 10 * SECOND;
            let price = Price(price + price / 1_000 * (self.random.below(20) as i64 - 10));
            let size = Size(100_000_000);
            let quote =
                Event::Quote { bid: price, ask: Price(price.0 + price.0 / 1_000), bid_size: size, ask_size: size };
            for event in [Event::Trade { price, size }, quote] {
                let seq = self.own();
                self.wait(event_time, Sent::Tick(Tick { symbol, event_time, seq, event }));
            }
        }
        Ok(())
    }

    fn fallen(&mut self) -> anyhow::Result<()> {
        let account = AccountId::new(FALLEN)?;
        for i in 0..36_i64 {
            let event_time = START + i * 10 * MINUTE;
            // The peak at 22:00; from 23:00 on 15 % below it.
            let equity = Amount::whole(match i {
                0..12 => 10_000 + 100 * i as i32,
                12..18 => 20_000,
                _ => 17_000,
            });
            let currency = *b"USD";
            let snapshot = AccountSnapshot {
                account,
                event_time,
                seq: 1,
                equity,
                balance: equity,
                currency,
                positions: Vec::new(),
            };
            self.wait(event_time, Sent::Account(snapshot));
        }
        Ok(())
    }

    fn take(&mut self, due: Nanos, what: Emitted) {
        let tick = match what {
            Emitted::Tick(tick) => tick,
            // There are very many.
            Emitted::Account(_) if self.random.below(8) > 0 => return,
            Emitted::Account(snapshot) => return self.records.push(Sent::Account(snapshot)),
        };
        let Tick { symbol, event_time, seq, .. } = tick;
        let instrument = *self.instruments.get(symbol);
        let step = instrument.tick_size.0;
        let chance = self.random.below(1_000);
        match tick.event {
            Event::Trade { price, size } => match chance {
                // What becomes of it comes before it.
                0..4 => {
                    let event = match chance {
                        0 | 1 => Event::Bust,
                        _ => Event::Correction { rev: 1, price: Price(price.0 + step), size },
                    };
                    self.records.push(Sent::Tick(Tick { symbol, event_time, seq, event }));
                    let later = self.random.below(60) as Nanos * SECOND;
                    return self.wait(due + later, Sent::Tick(tick));
                }
                // Late, within the horizon.
                4..10 => {
                    let later = self.random.below(8 * 60) as Nanos * SECOND;
                    return self.wait(event_time + later, Sent::Tick(tick));
                }
                // The same again, and another one in its place.
                10..12 => {
                    let other = Event::Trade { price: Price(price.0 + step), size };
                    self.records.push(Sent::Tick(tick.clone()));
                    self.records.push(Sent::Tick(tick));
                    return self.records.push(Sent::Tick(Tick { symbol, event_time, seq, event: other }));
                }
                // Of a trade that never comes.
                12 => {
                    let event_time = event_time - self.random.below(5 * 60) as Nanos * SECOND;
                    if self.is_certain(event_time) {
                        let seq = self.own();
                        self.records.push(Sent::Tick(Tick { symbol, event_time, seq, event: Event::Bust }));
                    }
                }
                // A bar of the last forty minutes: sealed or not yet.
                13..16 if instrument.price_source == PriceSource::Last => {
                    let ago = self.random.below(40 * 60) as Nanos * SECOND;
                    let base = Timeframe::S1.nanos();
                    let open = (event_time - ago) / base * base;
                    if self.is_certain(open) {
                        let bar = (chance != 13).then(|| BarBody::first(price, size));
                        let amend = Amend { rev: 1 + self.random.below(3) as u32, bar };
                        let event = Event::Amend(Box::new(amend));
                        self.records.push(Sent::Tick(Tick { symbol, event_time: open, seq: 0, event }));
                    }
                }
                16 => self.records.push(Sent::Garbage(symbol)),
                _ => {}
            },
            Event::Quote { .. } if chance < 3 && instrument.price_source == PriceSource::Last => {
                let ago = 30 * MINUTE + self.random.below(30 * 60) as Nanos * SECOND;
                let seq = self.own();
                self.records.push(Sent::Tick(Tick { event_time: event_time - ago, seq, ..tick.clone() }));
            }
            _ => {}
        }
        self.records.push(Sent::Tick(tick));
    }
}

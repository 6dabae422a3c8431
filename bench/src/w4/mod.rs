//! W4: a tick in Kafka → what it changes in Redis, open loop, at 1,000, 10,000 and 100,000 ticks a second; beside a relay
//! that copies the same messages from Kafka to Redis and knows nothing of what is in them.
//!
//! ```text
//!  sender ──► Kafka (4 partitions) ──► marea run (a child: PostgreSQL, Redis) ──► channel verdict:M1 ──► reader
//!        └──► Kafka (4 partitions) ──► relay: SET and PUBLISH of the bytes    ──► channels relay:*   ──► reader
//! ```
//!
//! What is timed are ticks that change a verdict: each symbol's quotes block it for other reasons every 100 ms, one symbol
//! after the other; and once more all of them *at once*, as when news comes: 60 verdicts within some milliseconds.
//! The latency is from when the tick was *due to be sent* until the reader, a subscriber of Redis, has what it changed: a
//! sender, broker or pipeline that falls behind shows. Relay and pipeline take turns on two topics of one broker; history
//! and everything else is the same.

mod child;
mod market;
mod relay;
mod stages;

use crate::Options;
use crate::measure::quantile;
use crate::report::{Goal, Report, Row};
use anyhow::{Context as _, bail};
use child::Child;
use marea_model::Nanos;
use marea_servers::{Kafka, Postgres, Redis};
use marea_sources::message::JSON;
use market::{Market, SYMBOLS, Seen};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use relay::Relay;
use stages::Stages;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PART: &str = "w4";
/// Partitions of each topic.
const PARTITIONS: u32 = 4;
/// The first of each turn is not timed: verdicts of quotes that went stale come back.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long a turn's last changes may take.
const TAIL: Duration = Duration::from_secs(10);

/// Runs W4.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let (kafka, redis, postgres) = (Kafka::start()?, Redis::start()?, Postgres::start()?);
    let rates: &[u64] = if options.quick { &[1_000] } else { &[1_000, 10_000, 100_000] };
    let turn = Duration::from_secs(if options.quick { 3 } else { options.seconds.min(60) });
    let reader = Reader::start(&redis.url())?;
    let relay = Relay::start(&kafka, &redis.url(), "w4.relay", PARTITIONS)?;
    for publish in ["fast", "durable"] {
        let name = |(rate, at_once): &(u64, bool)| {
            format!("{publish}, {rate} ticks/s{}", if *at_once { ", at once" } else { "" })
        };
        let at_once = rates.iter().filter(|rate| **rate == 10_000).map(|rate| (*rate, true));
        let loads = rates.iter().map(|rate| (*rate, false)).chain(at_once);
        let loads: Vec<(u64, bool)> = loads.filter(|load| name(load).contains(&options.only)).collect();
        if loads.is_empty() {
            continue;
        }
        let topic = format!("w4.{publish}");
        let store = postgres.database(&format!("w4_{publish}"));
        let mut market = Market::new();
        let mut child = Child::start(&kafka, &redis.url(), &store, &topic, PARTITIONS, publish, &market)?;
        let mut sender = Sender::new(&kafka)?;
        for (partition, key, body) in market.history() {
            sender.send(&topic, partition, key, &body)?;
        }
        sender.flush()?;
        child.until_allowed(&redis.url())?;
        for load in &loads {
            let (rate, name) = (load.0, name(load));
            market.at_once = load.1;
            let mut figures = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
            let (mut seen, mut missed, mut left, mut lag) = (0, 0, 0, 0.0_f64);
            let before = Stages::read(&child.metrics()?);
            for _ in 0..options.rounds {
                for (who, to) in ["w4.relay", &topic].into_iter().enumerate() {
                    let turn = Turn { rate, lasts: turn, topic: to };
                    let times = turn.run(&mut market, &mut sender, &reader)?;
                    figures[who][0].push(quantile(&times, 0.5));
                    figures[who][1].push(quantile(&times, 0.99));
                    if who == 1 {
                        seen += times.len();
                        missed += reader.missed();
                        left += reader.left();
                        lag = lag.max(child::lag(&child.metrics()?));
                    }
                }
            }
            let [[relay_p50, relay_p99], [p50, p99]] = figures;
            let goals = match publish {
                "fast" => [crate::measure::median(&relay_p50) + 1.0, crate::measure::median(&relay_p99) + 5.0],
                _ => [25.0, f64::INFINITY],
            };
            let note = format!(
                "{seen} changes, {missed} overtaken by others, {left} never seen; lag at a turn's end {lag} records at most"
            );
            for (part, base, subject, goal) in [("p50", relay_p50, p50, goals[0]), ("p99", relay_p99, p99, goals[1])] {
                let what = format!("{name}, {part}");
                let row = Row::compared(PART, what, "ms", base, subject).note(&note);
                report.add(if goal.is_finite() { row.goal(Goal::AtMost(goal)) } else { row });
            }
            for (stage, mean, note) in Stages::read(&child.metrics()?).since(&before) {
                let what = format!("{name}, mean of an epoch's {stage}");
                report.add(Row::value(PART, what, "ms", vec![mean]).note(note));
            }
        }
        child.stop()?;
        // The other one has another store.
        redis::cmd("FLUSHALL").exec(&mut redis::Client::open(redis.url())?.get_connection()?)?;
    }
    relay.stop()
}

/// One open loop.
struct Turn<'a> {
    rate: u64,
    lasts: Duration,
    topic: &'a str,
}

impl Turn<'_> {
    /// Sends, and gives the milliseconds of every change that was seen.
    fn run(&self, market: &mut Market, sender: &mut Sender, reader: &Reader) -> anyhow::Result<Vec<f64>> {
        let start = Instant::now();
        let due = |i: u64| start + Duration::from_nanos(i * 1_000_000_000 / self.rate);
        let count = (self.lasts + WARM_UP).as_millis() as u64 * self.rate / 1_000;
        reader.begin(start + WARM_UP);
        let mut next = 0;
        while next < count {
            // Without spinning, for the core is somebody else's: a timer is some 60 µs late, which counts.
            std::thread::sleep(due(next).saturating_duration_since(Instant::now()));
            let now = Instant::now();
            while next < count && due(next) <= now {
                let tick = market.next();
                if let Some(state) = tick.flips {
                    reader.expect(tick.symbol, Change { state, due: due(next), sent: tick.at });
                }
                sender.send(self.topic, tick.partition, tick.key, &tick.body)?;
                next += 1;
            }
        }
        let began = Instant::now();
        while reader.left() > 0 && began.elapsed() < TAIL {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(reader.take())
    }
}

/// Writes to Kafka, each message within some milliseconds.
struct Sender {
    producer: ThreadedProducer<DefaultProducerContext>,
}

impl Sender {
    fn new(kafka: &Kafka) -> anyhow::Result<Sender> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", kafka.brokers())
            // As Kafka's own producer has it by default. With less, the broker's requests take a core at 10,000 a second.
            .set("linger.ms", "5")
            .set("acks", "1")
            .set("queue.buffering.max.messages", "1000000")
            .create()?;
        Ok(Sender { producer })
    }

    fn send(&mut self, topic: &str, partition: i32, key: &str, body: &[u8]) -> anyhow::Result<()> {
        let headers = OwnedHeaders::new().insert(Header { key: "content-type", value: Some(JSON) });
        let record = BaseRecord::to(topic).partition(partition).key(key).payload(body).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).context("the producer's queue is full")
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.producer.flush(Duration::from_secs(60))?)
    }
}

/// What a symbol's quotes became, when that was due, and when it was sent by the wall clock.
#[derive(Clone, Copy)]
struct Change {
    state: usize,
    due: Instant,
    sent: Nanos,
}

/// What the reader waits for.
#[derive(Default)]
struct Expected {
    /// Of each symbol: the changes that were not seen yet.
    by_symbol: Vec<VecDeque<Change>>,
    /// Changes due before are not timed.
    from: Option<Instant>,
    times: Vec<f64>,
    missed: usize,
}

/// A subscriber of Redis that times what it is told.
struct Reader {
    expected: Arc<Mutex<Expected>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn start(url: &str) -> anyhow::Result<Reader> {
        let (expected, stop) = (Arc::new(Mutex::new(Expected::default())), Arc::new(AtomicBool::new(false)));
        let mut connection = redis::Client::open(url)?.get_connection()?;
        connection.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (told, stopped) = (Arc::clone(&expected), Arc::clone(&stop));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
            let mut channels = connection.as_pubsub();
            let subscribed = channels.subscribe("verdict:M1").and_then(|()| channels.psubscribe("relay:*"));
            let _ = ready.send(subscribed);
            while !stopped.load(Ordering::Relaxed) {
                let Ok(message) = channels.get_message() else { continue };
                let now = Instant::now();
                let seen = match message.get_channel_name() {
                    "verdict:M1" => market::of_verdict(message.get_payload_bytes()),
                    _ => market::of_tick(message.get_payload_bytes()),
                };
                if let Some(seen) = seen {
                    told.lock().unwrap_or_else(PoisonError::into_inner).happened(seen, now);
                }
            }
        })?;
        is_ready.recv().context("the reader has ended")??;
        Ok(Reader { expected, stop, thread: Some(thread) })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Expected) -> T) -> T {
        work(&mut self.expected.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin(&self, from: Instant) {
        self.with(|expected| {
            *expected = Expected { by_symbol: vec![VecDeque::new(); SYMBOLS], from: Some(from), ..Expected::default() };
        });
    }

    fn expect(&self, symbol: usize, change: Change) {
        self.with(|expected| expected.by_symbol[symbol].push_back(change));
    }

    fn left(&self) -> usize {
        self.with(|expected| expected.by_symbol.iter().map(VecDeque::len).sum())
    }

    fn missed(&self) -> usize {
        self.with(|expected| expected.missed)
    }

    fn take(&self) -> Vec<f64> {
        self.with(|expected| std::mem::take(&mut expected.times))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Expected {
    /// It is the last change to that which may be in it, and those before it were overtaken: whatever was lost, or comes
    /// again for another reason, no other one is taken for it.
    fn happened(&mut self, seen: Seen, now: Instant) {
        let Some(waiting) = self.by_symbol.get_mut(seen.symbol) else { return };
        let is_it = |change: &Change| change.state == seen.state && change.sent <= seen.as_of;
        let Some(at) = waiting.iter().rposition(is_it) else { return };
        for (i, change) in waiting.drain(..=at).enumerate() {
            if self.from.is_none_or(|from| change.due < from) {
                continue;
            }
            if i == at {
                self.times.push((now - change.due).as_secs_f64() * 1_000.0);
            } else {
                self.missed += 1;
            }
        }
    }
}

/// Whether `marea` is beside this program.
fn program() -> anyhow::Result<std::path::PathBuf> {
    let marea = std::env::current_exe()?.with_file_name("marea");
    if !marea.is_file() {
        bail!("{} is not there: build it first, cargo build --release -p marea", marea.display());
    }
    Ok(marea)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_was_lost_delays_no_other() {
        let due = Instant::now();
        let change = |state, sent| Change { state, due: due + Duration::from_nanos(sent as u64), sent };
        let changes = [(0, 0), (1, 100), (0, 600), (1, 700)].map(|(state, sent)| change(state, sent));
        let mut expected = Expected { from: Some(due), ..Expected::default() };
        expected.by_symbol.push(VecDeque::from(changes));
        let now = due + Duration::from_millis(1);
        let mut see = |state, as_of| {
            expected.happened(Seen { symbol: 0, state, as_of }, now);
            (expected.times.len(), expected.missed, expected.by_symbol[0].len())
        };
        assert_eq!(see(1, 99), (0, 0, 4), "it was not sent yet");
        assert_eq!(see(0, 599), (1, 0, 3));
        assert_eq!(see(0, 650), (2, 1, 1), "what is between was lost");
        assert_eq!(see(0, 750), (2, 1, 1), "it came again");
        assert_eq!(see(1, 750), (3, 1, 0));
    }
}

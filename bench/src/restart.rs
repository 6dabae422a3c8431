//! How long a restart takes: from the start of a process to its first new commit, by the sealed bars that the store has
//! and by the ticks that are read again from Kafka because their bars have not sealed.
//!
//! Ticks are JSON, ten symbols in four partitions, the strategies are those of the embedded configuration, on every
//! symbol. Beside the ticks that must be read again there are up to 4,096 messages a partition that need not be.

use crate::chaos::child::{Marea, binary, environment};
use crate::chaos::store::Watch;
use crate::chaos::{Place, StoreKind};
use anyhow::{Context, ensure};
use marea_model::codec::json;
use marea_model::time::{MILLI, SECOND, format_rfc3339};
use marea_model::{Event, Instruments, Nanos, Price, Size, Symbol, Tick};
use marea_servers::{Kafka, Postgres};
use marea_sinks::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use marea_sources::message::JSON;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 4;
const SYMBOLS: u64 = 10;
/// Monday, 2026-01-05 00:00 UTC.
const START: Nanos = 1_767_571_200 * SECOND;
/// What is later than this before the last tick has not sealed.
const LATENESS: Nanos = 600 * SECOND;
/// Ticks that are read again come in so many seconds, so that they all lie within the lateness.
const UNSEALED: u64 = 590;
/// Who has not started after so long never will.
const STUCK: Duration = Duration::from_secs(600);

/// What to time.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How often each is started; the median counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Only the first size of bars and of ticks: whether it runs.
    #[arg(long)]
    pub quick: bool,
    /// The program; else the `marea` beside this one.
    #[arg(long, value_name = "PATH")]
    pub marea: Option<PathBuf>,
}

const SMALL: u64 = 10_000;
/// Bars in the store, and ticks to read again.
const SIZES: [(u64, u64); 6] = [
    (SMALL, SMALL),
    (100_000, SMALL),
    (1_000_000, SMALL),
    (SMALL, 100_000),
    (SMALL, 1_000_000),
    (1_000_000, 1_000_000),
];

/// Times all of them, and gives the table.
///
/// # Errors
///
/// Where a process does not do what it should, or a server cannot be started.
pub fn run(options: &Options, kafka: &Kafka) -> anyhow::Result<String> {
    let binary = binary(options.marea.as_deref())?;
    let postgres = Postgres::start()?;
    let mut table = "| restart | bars | ticks | start to first new commit |\n|---|---:|---:|---:|\n".to_owned();
    let sizes = if options.quick { &SIZES[..1] } else { &SIZES[..] };
    for (bars, ticks) in sizes {
        let mut market = Market::new(kafka, &format!("restart.{bars}.{ticks}"))?;
        market.fill(*bars, *ticks)?;
        for (kind, name) in [(StoreKind::Sqlite, "SQLite"), (StoreKind::Postgres, "PostgreSQL")] {
            let folder = tempfile::tempdir()?;
            let place = match kind {
                StoreKind::Sqlite => Place::Sqlite(folder.path().join("marea.db")),
                StoreKind::Postgres => Place::Postgres(postgres.database("restart")),
            };
            let marea = Marea {
                binary: binary.clone(),
                folder: folder.path().to_owned(),
                env: environment(&place, &kafka.brokers(), &market.topic, None),
                until: format_rfc3339(market.last / MILLI * MILLI + MILLI),
            };
            std::fs::write(folder.path().join("live.toml"), marea::run::DEFAULT_LIVE)?;
            let filled = Instant::now();
            marea.start(Some("filled"), &[])?.wait()?;
            eprintln!("{name}, {bars} bars, {ticks} ticks: filled in {:.1} s", filled.elapsed().as_secs_f64());
            let mut took = Vec::new();
            for _ in 0..options.rounds.max(1) {
                market.next()?;
                took.push(restart(&marea, place.clone())?);
            }
            took.sort_unstable();
            let median = took[took.len() / 2].as_secs_f64();
            eprintln!("{name}, {bars} bars, {ticks} ticks: {took:.2?}");
            writeln!(table, "| {name} | {bars} | {ticks} | {median:.2} s |")?;
        }
    }
    Ok(table)
}

/// From the start of a process to its first new commit; then it is killed.
fn restart(marea: &Marea, place: Place) -> anyhow::Result<Duration> {
    let mut watch = Watch::new(place)?;
    let before = watch.standing().context("the store does not answer")?;
    watch.leave();
    let mut running = marea.start(None, &[])?;
    loop {
        let took = running.since.elapsed();
        if watch.standing().is_some_and(|standing| standing.records_in > before.records_in) {
            watch.leave();
            running.kill()?;
            return Ok(took);
        }
        let ended = running.ended()?;
        ensure!(ended.is_none() && took < STUCK, "no commit ({ended:?}):\n{}", running.last_words());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A topic of trades, a bar a second and symbol, and many more at the end.
struct Market {
    publisher: KafkaPublisher,
    instruments: Instruments,
    topic: String,
    symbols: Vec<Symbol>,
    seq: u64,
    last: Nanos,
}

impl Market {
    fn new(kafka: &Kafka, topic: &str) -> anyhow::Result<Market> {
        let publisher = KafkaPublisher::new(KafkaPublisherConfig::new(kafka.brokers()))?;
        publisher.ensure_topic(topic, PARTITIONS)?;
        let symbols = (0..SYMBOLS).map(|i| Symbol::new(&format!("R{i:02}"))).collect::<Result<_, _>>()?;
        let instruments = Instruments::default();
        Ok(Market { publisher, instruments, topic: topic.to_owned(), symbols, seq: 0, last: START })
    }

    fn fill(&mut self, bars: u64, ticks: u64) -> anyhow::Result<()> {
        for i in 0..bars {
            self.trade(START + (i / SYMBOLS) as Nanos * SECOND, i)?;
        }
        let from = self.last + LATENESS - UNSEALED as Nanos * SECOND;
        for i in 0..ticks {
            let after = i128::from(UNSEALED) * i128::from(SECOND) * i128::from(i) / i128::from(ticks);
            self.trade(from + after as Nanos, i)?;
        }
        self.publisher.flush(Duration::from_secs(120))?;
        Ok(())
    }

    /// One more trade of each symbol, a moment later: what is to be committed first.
    fn next(&mut self) -> anyhow::Result<()> {
        let at = self.last + MILLI;
        for i in 0..SYMBOLS {
            self.trade(at, i)?;
        }
        self.publisher.flush(Duration::from_secs(120))?;
        Ok(())
    }

    fn trade(&mut self, event_time: Nanos, i: u64) -> anyhow::Result<()> {
        let symbol = self.symbols[(i % SYMBOLS) as usize];
        self.seq += 1;
        // Up and down by turns of some minutes: strategies have something to do.
        let phase = (event_time / SECOND % 1_200 - 600).abs();
        let price = Price((10_000 + phase * 2 + (self.seq % 7) as i64) * 1_000_000);
        let tick = Tick { symbol, event_time, seq: self.seq, event: Event::Trade { price, size: Size(100_000_000) } };
        let partition = (symbol.stable_hash() % u64::from(PARTITIONS)) as i32;
        let body = json::encode(&tick, &self.instruments);
        self.publisher.send(&self.topic, Some(partition), symbol.as_str().as_bytes(), JSON, &body, None)?;
        self.last = self.last.max(event_time);
        Ok(())
    }
}

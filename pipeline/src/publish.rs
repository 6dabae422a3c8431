//! `marea publish`: files into a topic, a stream or a queue, at full speed or paced, as JSON or Arrow.
//!
//! A symbol's ticks keep their order: all of them go to one partition, which a hash of the symbol that never changes
//! chooses, whatever the codec. Arrow messages have up to [`ARROW_ROWS`] ticks of one partition, in the files' order. A row
//! that cannot be read is published nowhere: it is counted, the first ones are named, and the command fails at the end.

use crate::cli::{Broker, MessageCodec, Publish};
use crate::config::{Config, Loaded, SourceKind};
use crate::run::{Failure, Live, open_files};
use crate::status::{progress_bar, thousands};
use crossbeam_channel::bounded;
use marea_model::codec::{arrow, json};
use marea_model::cursor::Batch;
use marea_model::{AccountSnapshot, Event, Instruments, Symbol, Tick};
use marea_sinks::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use marea_sinks::publish::rabbitmq::{self, RabbitPublisher, RabbitTls};
use marea_sources::message::{ARROW, JSON};
use marea_sources::rabbitmq::RabbitKind;
use marea_sources::{Input, Stop};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most ticks of an Arrow message.
pub const ARROW_ROWS: usize = 1_000;
/// How long the broker may take to confirm what is left at the end.
const CONFIRM: Duration = Duration::from_secs(60);
/// How many rows that cannot be read are named.
const SHOWN: usize = 5;
/// Where account snapshots go if the configuration does not say.
const ACCOUNTS_TOPIC: &str = "marea.accounts.v1";
const ACCOUNTS_QUEUE: &str = "marea.accounts";
/// Where ticks are published to; its queues and streams are bound to it.
const EXCHANGE: &str = "marea.ticks";
const ACCOUNTS_EXCHANGE: &str = "marea.accounts";

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Summary {
    ticks: u64,
    accounts: u64,
    messages: u64,
    bytes: u64,
    unreadable: u64,
    seconds: f64,
}

/// Publishes files as the command line says.
pub fn publish(loaded: &Loaded, args: &Publish, json: bool) -> Result<(), Failure> {
    let config = &loaded.config;
    let live = match &config.live_file {
        Some(path) => Live::of(path, false)?,
        None => Live::embedded(SourceKind::File),
    };
    let instruments = Arc::new(live.read(config).instruments().clone());
    let files = open_files(config, instruments.clone()).map_err(Failure::Refused)?;
    let target = Target::open(config, args).map_err(Failure::failed)?;
    let progress = files.progress();
    let bar = progress_bar(std::io::stderr().is_terminal() && !json);
    let (out, inputs) = bounded(8);
    let source = std::thread::spawn(move || files.run(&out.into(), &Stop::new()));
    let started = Instant::now();
    let mut publisher =
        Publisher { target, codec: args.codec, instruments, waiting: Vec::new(), done: Summary::default() };
    for input in inputs {
        if let Input::Batch(batch) = input {
            publisher.batch(&batch).map_err(Failure::failed)?;
            bar.set_position((progress.fraction() * 1000.0) as u64);
            bar.set_message(format!("{} messages", thousands(publisher.done.messages as i64)));
        }
    }
    let read = source.join().map_err(|_| Failure::failed("the thread that reads files has panicked"))?;
    // What was read before a file broke is published.
    publisher.target.flush().map_err(Failure::failed)?;
    read.map_err(Failure::failed)?;
    bar.finish_and_clear();
    let done = Summary { seconds: started.elapsed().as_secs_f64(), ..publisher.done };
    let text = if json {
        serde_json::to_string_pretty(&done).unwrap_or_default() + "\n"
    } else {
        format!(
            "published {} ticks and {} account snapshots in {} messages, {:.1} MB, to {} in {:.1} s\n",
            thousands(done.ticks as i64),
            thousands(done.accounts as i64),
            thousands(done.messages as i64),
            done.bytes as f64 / 1e6,
            publisher.target,
            done.seconds
        )
    };
    // Nobody reading it is no reason to fail.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if done.unreadable > 0 {
        return Err(Failure::failed(format!("{} rows could not be read, and were not published", done.unreadable)));
    }
    Ok(())
}

struct Publisher {
    target: Target,
    codec: MessageCodec,
    instruments: Arc<Instruments>,
    /// Of Arrow: the ticks of each partition that wait for their message.
    waiting: Vec<Vec<Tick>>,
    done: Summary,
}

impl Publisher {
    fn batch(&mut self, batch: &Batch) -> Result<(), String> {
        for record in batch.records.iter() {
            self.done.ticks += 1;
            match self.codec {
                MessageCodec::Json => {
                    let body = json::encode(&record.tick, &self.instruments);
                    self.send(&[record.tick], JSON, &body)?;
                }
                MessageCodec::Arrow => {
                    let partition = self.target.partition(record.tick.symbol);
                    if self.waiting.len() <= partition {
                        self.waiting.resize(partition + 1, Vec::new());
                    }
                    self.waiting[partition].push(record.tick);
                    if self.waiting[partition].len() >= ARROW_ROWS {
                        self.send_arrow(partition)?;
                    }
                }
            }
        }
        // What is paced must not wait for more.
        for partition in 0..self.waiting.len() {
            self.send_arrow(partition)?;
        }
        for (_, snapshot) in &batch.accounts {
            let body = json::encode_account(snapshot);
            self.target.send_account(snapshot, &body)?;
            self.done.accounts += 1;
            self.count(&body);
        }
        for reject in &batch.rejects {
            self.done.unreadable += 1;
            if self.done.unreadable <= SHOWN as u64 {
                let (cursor, reason, detail) = (&reject.cursor, reject.reason, &reject.detail);
                tracing::warn!(%cursor, %reason, field = reject.field, value = reject.value, "{detail}");
            }
        }
        Ok(())
    }

    fn send_arrow(&mut self, partition: usize) -> Result<(), String> {
        let ticks = std::mem::take(&mut self.waiting[partition]);
        if ticks.is_empty() {
            return Ok(());
        }
        let body = arrow::encode_stream(&ticks, &self.instruments);
        self.send(&ticks, ARROW, &body)
    }

    fn send(&mut self, ticks: &[Tick], content_type: &str, body: &[u8]) -> Result<(), String> {
        self.count(body);
        self.target.send(ticks, content_type, body)
    }

    fn count(&mut self, body: &[u8]) {
        self.done.messages += 1;
        self.done.bytes += body.len() as u64;
    }
}

/// Where messages go.
enum Target {
    Kafka { publisher: Box<KafkaPublisher>, topic: String, accounts: String, partitions: u32 },
    Rabbit { publisher: Box<RabbitPublisher>, name: String },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Kafka { topic, partitions, .. } => write!(f, "{topic} ({partitions} partitions)"),
            Target::Rabbit { name, .. } => f.write_str(name),
        }
    }
}

impl Target {
    fn open(config: &Config, args: &Publish) -> Result<Target, String> {
        match args.to {
            Broker::Kafka => {
                let kafka = &config.source.kafka;
                let publisher = KafkaPublisher::new(KafkaPublisherConfig {
                    security: kafka.security.clone(),
                    ..KafkaPublisherConfig::new(kafka.brokers.clone())
                });
                let publisher = publisher.map_err(text)?;
                publisher.ensure_topic(&kafka.topic, args.partitions.into()).map_err(text)?;
                let accounts = kafka.accounts_topic.clone().unwrap_or_else(|| ACCOUNTS_TOPIC.to_owned());
                if args.accounts.is_some() {
                    publisher.ensure_topic(&accounts, 1).map_err(text)?;
                }
                let partitions = publisher.partitions(&kafka.topic).map_err(text)?;
                Ok(Target::Kafka { publisher: Box::new(publisher), topic: kafka.topic.clone(), accounts, partitions })
            }
            Broker::Rabbitmq => {
                let rabbit = &config.source.rabbitmq;
                let tls = RabbitTls { ca: rabbit.ca.clone(), cert: rabbit.cert.clone(), key: rabbit.key.clone() };
                let mut publisher = RabbitPublisher::connect(&rabbit.url, &tls).map_err(text)?;
                let kind = match rabbit.kind {
                    RabbitKind::Stream => rabbitmq::RabbitKind::Stream,
                    RabbitKind::Queue => rabbitmq::RabbitKind::Queue,
                };
                publisher.ensure(kind, &rabbit.name, EXCHANGE).map_err(text)?;
                if args.accounts.is_some() {
                    let accounts = rabbit.accounts.as_deref().unwrap_or(ACCOUNTS_QUEUE);
                    publisher.ensure(kind, accounts, ACCOUNTS_EXCHANGE).map_err(text)?;
                }
                Ok(Target::Rabbit { publisher: Box::new(publisher), name: rabbit.name.clone() })
            }
        }
    }

    /// Where a symbol's ticks go.
    fn partition(&self, symbol: Symbol) -> usize {
        match self {
            Target::Kafka { partitions, .. } => (symbol.stable_hash() % u64::from((*partitions).max(1))) as usize,
            Target::Rabbit { .. } => 0,
        }
    }

    /// One message. All ticks are of one partition, and at least one.
    fn send(&mut self, ticks: &[Tick], content_type: &str, body: &[u8]) -> Result<(), String> {
        let Some(first) = ticks.first() else { return Ok(()) };
        let key = first.symbol.as_str();
        let partition = self.partition(first.symbol);
        match self {
            Target::Kafka { publisher, topic, .. } => publisher
                .send(topic, i32::try_from(partition).ok(), key.as_bytes(), content_type, body, None)
                .map_err(text),
            Target::Rabbit { publisher, .. } => publisher
                .publish(EXCHANGE, key, content_type, Some(&message_id(first, ticks.len())), body)
                .map_err(text),
        }
    }

    fn send_account(&mut self, snapshot: &AccountSnapshot, body: &[u8]) -> Result<(), String> {
        let key = snapshot.account.as_str();
        match self {
            Target::Kafka { publisher, accounts, .. } => {
                publisher.send(accounts, None, key.as_bytes(), JSON, body, None).map_err(text)
            }
            Target::Rabbit { publisher, .. } => {
                let id = format!("{key}:{}:{}", snapshot.event_time, snapshot.seq);
                publisher.publish(ACCOUNTS_EXCHANGE, key, JSON, Some(&id), body).map_err(text)
            }
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        match self {
            Target::Kafka { publisher, .. } => publisher.flush(CONFIRM).map(drop).map_err(text),
            Target::Rabbit { publisher, .. } => publisher.flush().map(drop).map_err(text),
        }
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// The same message again has the same id.
fn message_id(first: &Tick, ticks: usize) -> String {
    let rev = match &first.event {
        Event::Correction { rev, .. } => *rev,
        Event::Amend(amend) => amend.rev,
        _ => 0,
    };
    let Tick { symbol, event_time, seq, event } = first;
    format!("{symbol}:{event_time}:{seq}:{}:{rev}:{ticks}", event.kind())
}

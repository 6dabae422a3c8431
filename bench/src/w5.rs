//! W5: W1's trades in a Kafka topic of four partitions, as JSON (a tick a message) and Arrow (1,000 a message). The real
//! source on a thread of its own, the cutter on another, the graph, and a sink that counts and sums; against librdkafka
//! that polls the same topic and decodes each message, on one thread, and does nothing else.

use crate::Options;
use crate::drive::{Setup, kafka, replay_source};
use crate::measure::try_timed;
use crate::report::{Goal, Report, Row};
use crate::w1::{Sink, agree, plain, setup, symbols, tick};
use crate::{loops, workload};
use anyhow::{Context as _, ensure};
use marea_model::codec::{Decoded, arrow, json};
use marea_model::time::SECOND;
use marea_model::{Cursor, Partition, Tick};
use marea_servers::Kafka;
use marea_sinks::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use marea_sources::message::{ARROW, JSON};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use std::time::Duration;

/// Partitions of the topic.
const PARTITIONS: u32 = 4;
/// Ticks of an Arrow message.
const ROWS: usize = 1_000;

/// Runs W5.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let count = if options.quick { 100_000 } else { 1_000_000 };
    let symbols = symbols()?;
    let trades = workload::trades(count);
    let expected = loops::w1(&plain(&trades), SECOND);
    let ticks: Vec<Tick> = trades.iter().enumerate().map(|(i, t)| tick(i, t, &symbols)).collect();
    let broker = Kafka::start()?;
    let setup = setup(SECOND, 10_000, 1)?;
    for (codec, content_type) in [("JSON", JSON), ("Arrow", ARROW)] {
        let topic = format!("w5.{}", codec.to_lowercase());
        let bytes = publish(&setup, &broker, &topic, content_type, &ticks)?;
        let (mut base, mut subject) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let (decoded, took) = try_timed(|| consume_and_decode(&setup, &broker, &topic, content_type, count))?;
            ensure!(decoded == count, "{decoded} ticks were decoded, of {count}");
            base.push(took);
            let source = kafka(&setup, &broker.brokers(), &topic)?;
            let mut sink = Sink::default();
            let took = replay_source(&setup, |out, stop| Ok(source.run(out, stop)?), |closed| sink.take(closed))?;
            // Partitions come in another order than the file's, and give the same bars.
            agree(&sink.sum(), &expected)?;
            subject.push(took);
        }
        let what = format!("from Kafka, {codec}, {PARTITIONS} partitions, 1 s bars");
        let row = Row::rate("w5", what, count as f64, &base, &subject).goal(Goal::RatioAtLeast(0.8));
        report.add(row.note(format!("{:.0} MB of messages", bytes as f64 / 1e6)));
    }
    Ok(())
}

/// Fills a topic, and says how many bytes it has.
fn publish(setup: &Setup, broker: &Kafka, topic: &str, content_type: &str, ticks: &[Tick]) -> anyhow::Result<usize> {
    let mut publisher = KafkaPublisher::new(KafkaPublisherConfig::new(broker.brokers()))?;
    publisher.ensure_topic(topic, PARTITIONS)?;
    let partition = |tick: &Tick| tick.symbol.stable_hash() % u64::from(PARTITIONS);
    let mut bytes = 0;
    let mut send = |partition: u64, key: &str, body: &[u8]| {
        bytes += body.len();
        publisher.send(topic, Some(partition as i32), key.as_bytes(), content_type, body, None)
    };
    if content_type == JSON {
        for tick in ticks {
            send(partition(tick), tick.symbol.as_str(), &json::encode(tick, &setup.instruments))?;
        }
    } else {
        for chunk in ticks.chunks(ROWS * PARTITIONS as usize) {
            for p in 0..u64::from(PARTITIONS) {
                let these: Vec<Tick> = chunk.iter().filter(|tick| partition(tick) == p).cloned().collect();
                for rows in these.chunks(ROWS) {
                    send(p, "", &arrow::encode_stream(rows, &setup.instruments))?;
                }
            }
        }
    }
    publisher.flush(Duration::from_secs(60))?;
    Ok(bytes)
}

/// The least that anybody who reads the topic must do. How many ticks there were.
fn consume_and_decode(
    setup: &Setup,
    broker: &Kafka,
    topic: &str,
    content_type: &str,
    count: usize,
) -> anyhow::Result<usize> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.brokers())
        .set("group.id", "w5")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        // As the source has them: with the defaults this loop mostly waits.
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "10")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&partitions)?;
    let (decoder, partition) = (setup.decoder(), Partition::new(topic)?);
    let (mut decoded, mut sum, mut ended) = (Decoded::default(), 0, 0);
    while ended < PARTITIONS {
        match consumer.poll(Duration::from_secs(10)).context("the broker is silent")? {
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => return Err(error.into()),
            Ok(message) => {
                let body = message.payload().context("a message has no body")?;
                let cursor = Cursor { partition, offset: message.offset() as u64, row: 0 };
                if content_type == JSON {
                    json::decode(&decoder, body, cursor, 0, &mut decoded);
                } else {
                    arrow::decode_stream(&decoder, body, cursor, 0, &mut decoded);
                }
                if decoded.len() >= 8_192 {
                    sum += decoded.records.len();
                    decoded.clear();
                }
            }
        }
    }
    sum += decoded.records.len();
    ensure!(sum <= count, "more ticks than were published");
    Ok(sum)
}

//! The least that anybody does who brings messages from Kafka to Redis: it copies bytes.

use anyhow::Context as _;
use marea_servers::Kafka;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The most messages of one pipeline of commands.
const MESSAGES: usize = 1_000;

/// A thread that copies.
pub(super) struct Relay {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Relay {
    /// Makes the topic, and copies what comes.
    pub(super) fn start(kafka: &Kafka, redis: &str, topic: &str, partitions: u32) -> anyhow::Result<Relay> {
        kafka.create_topic(topic, partitions, &[])?;
        // As the pipeline's consumer is set.
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", kafka.brokers())
            .set("group.id", "relay")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "10")
            .set("fetch.queue.backoff.ms", "5")
            .create()?;
        let mut from = TopicPartitionList::new();
        for partition in 0..partitions {
            from.add_partition_offset(topic, partition as i32, Offset::Beginning)?;
        }
        consumer.assign(&from)?;
        let connection = redis::Client::open(redis)?.get_connection()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || copy(&consumer, connection, &stopped))
            .context("a thread for the relay")?;
        Ok(Relay { stop, thread })
    }

    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the relay has panicked"))?
    }
}

fn copy(consumer: &BaseConsumer, mut redis: redis::Connection, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let Some(first) = consumer.poll(Duration::from_millis(100)) else { continue };
        let mut commands = redis::pipe();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(message) = next {
            let message = message?;
            let (key, body) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
            let name = [b"relay:", key].concat();
            commands.cmd("SET").arg(&name).arg(body).ignore();
            commands.cmd("PUBLISH").arg(&name).arg(body).ignore();
            taken += 1;
            next = if taken < MESSAGES { consumer.poll(Duration::ZERO) } else { None };
        }
        commands.query::<()>(&mut redis)?;
    }
    Ok(())
}

//! The topic of dead letters, where one is named.

use super::Failure;
use crate::committer::Target;
use crate::config::{Config, SourceKind};
use marea_sinks::DeadLetters;
use marea_sinks::publish::kafka::KafkaPublisherConfig;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a run that ends waits for what is under way. What is not there by then, the next start delivers.
const END: Duration = Duration::from_secs(1);

/// Begins to deliver them from a store: the second of the two is its thread.
pub(super) fn deliver(
    config: &Config,
    target: &Target,
) -> Result<(Option<DeadLetters>, Option<JoinHandle<()>>), Failure> {
    let kafka = &config.source.kafka;
    let (Some(topic), Target::Store(store)) = (&kafka.dead_letters, target) else { return Ok((None, None)) };
    if config.source.kind != SourceKind::Kafka {
        return Ok((None, None));
    }
    let publisher =
        KafkaPublisherConfig { security: kafka.security.clone(), ..KafkaPublisherConfig::new(&kafka.brokers) };
    let started = DeadLetters::start(topic.clone(), publisher, store.target().clone());
    let (letters, thread) = started.map_err(Failure::failed)?;
    Ok((Some(letters), Some(thread)))
}

/// Gives it a moment to end.
pub(super) fn finish(thread: &JoinHandle<()>) {
    let until = Instant::now() + END;
    while !thread.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
}

//! Ticks and account snapshots from Kafka.
//!
//! **Protocol.** One consumer a topic, every partition assigned by hand: no subscription, so no rebalance. Only committed
//! records are read (`read_committed`). The header `content-type` says what a record is ([`crate::message`]).
//!
//! **Order**: that of each partition. Partitions are announced, all of them, before the first batch.
//!
//! **Delivery**: every record of a partition from where reading begins, once and in order, however often brokers go and
//! come back. A producer that writes a record twice wrote two records: both are delivered, with two cursors.
//!
//! **Cursor.** The partition is `kafka:{topic}/{number}`, the offset is Kafka's, the row counts within an Arrow message. A
//! batch's `upper` is the next offset to read; offsets may have gaps (transaction markers, aborted records), and at a
//! partition's end `upper` moves past them within seconds. `at_end` says that the end was reached at `upper`.
//!
//! **Where reading begins**: at [`Resume::low`], without it at the earliest record, and never where the consumer group stands.
//! The group's offsets are written (what is committed, at most once a second) for tools that show lag, and never read.
//!
//! **Gaps.** Nothing is skipped in silence, and no offset is reset by itself:
//! - the broker no longer has the next record (retention): [`KafkaError::Gap`], at the start and while running;
//! - the last record that was read now reads differently, or the partition is shorter than what was read, or gone (a topic
//!   that was recreated): [`KafkaError::Recreated`]. Checked at the start, and again when the brokers were away, or the topic
//!   seemed to be. A record that retention has removed cannot be compared; then the offsets alone decide. A topic that is
//!   recreated, and at once longer than before, while it is read is noticed within seconds: records may have come of it;
//! - the topic is deleted while running: [`KafkaError::Deleted`].
//!
//! With `accept_gap`, reading goes on at the earliest record instead, and [`Gaps`] says what was skipped. What was
//! committed and is read once more, from [`Resume::low`] to [`Resume::upper`], must be whole nevertheless: a bar of a part
//! of its ticks would be wrong. Whoever accepts its loss asks for it before anything is read ([`Kafka::check`]).
//!
//! **What was committed comes first.** While any partition of any topic is below its [`Resume::upper`], nothing beyond the
//! upper of another one is read: nothing new can be used before all of that is there.
//!
//! **Partitions that are added** are found within some 6 s, announced, and read from their start.
//!
//! **Disconnect**: the client reconnects by itself, within a second of the broker's return. A topic that is missing at the
//! start is waited for. What waiting cannot mend (authentication, authorization, an unknown compression) ends the source.
//!
//! **Until the end**: each partition ends where it ended at the start; later records and partitions are not read.

mod client;
mod config;
mod header;
mod state;

pub use config::{KafkaConfig, Protocol, Security};

use crate::{Carries, Committed, Gap, Gaps, Lags, Resume, Sender, Stop};
use client::Reader;
use marea_model::Partition;
use marea_model::codec::Decoder;
use state::State;
use std::time::Duration;

/// Why Kafka cannot be read (any further). None of it is mended by waiting: what is, is waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// The client does not take the configuration.
    #[error("kafka: {0}")]
    Config(String),
    /// The broker no longer has records that are wanted.
    #[error(
        "{partition}: offset {wanted} is wanted, the broker has records from {available} only: raise the topic's retention, \
         or go on without the lost records with --accept-gap"
    )]
    Gap {
        /// The partition.
        partition: Partition,
        /// The next offset to read.
        wanted: u64,
        /// The earliest that there is.
        available: u64,
    },
    /// The partition is not the one that was read.
    #[error(
        "{partition}: {detail} (offsets {start} to {end} are there): the topic was recreated. Start with a fresh store, or go on \
         from its earliest record with --accept-gap"
    )]
    Recreated {
        /// The partition.
        partition: Partition,
        /// What differs, and at which offset.
        detail: String,
        /// The first offset that there is.
        start: u64,
        /// The first offset that is not there yet.
        end: u64,
    },
    /// The topic was deleted while it was read.
    #[error("topic {topic} was deleted while it was read: create it again and restart")]
    Deleted {
        /// The topic.
        topic: String,
    },
    /// The broker refuses, or speaks another protocol.
    #[error("topic {topic}: {cause}: {advice}")]
    Refused {
        /// The topic.
        topic: String,
        /// What the client says.
        cause: String,
        /// What to do.
        advice: &'static str,
    },
}

/// A source that is ready to run.
pub struct Kafka {
    readers: Vec<Reader>,
    gaps: Gaps,
}

/// Makes the clients. What is wrong with the configuration alone is said here ([`KafkaConfig::check`] says it better);
/// brokers are met in [`Kafka::run`]. Of `resume`, what belongs to other sources is ignored.
pub fn open(
    config: KafkaConfig,
    decoder: Decoder,
    resume: Vec<Resume>,
    committed: Committed,
    lags: Lags,
) -> Result<Kafka, KafkaError> {
    let gaps = Gaps::default();
    let topics = [(Some(&config.topic), Carries::Ticks), (config.accounts_topic.as_ref(), Carries::Accounts)];
    let mut readers = Vec::new();
    for (topic, carries) in topics.into_iter().filter_map(|(topic, carries)| Some((topic?, carries))) {
        let rules = state::Rules { carries, until_end: config.until_end, accept_gap: config.accept_gap };
        let state = State::new(topic, rules, decoder.clone(), &resume, gaps.clone());
        readers.push(Reader::new(&config, state, committed.clone(), lags.clone())?);
    }
    Ok(Kafka { readers, gaps })
}

impl Kafka {
    /// What is skipped while it runs.
    pub fn gaps(&self) -> Gaps {
        self.gaps.clone()
    }

    /// Whether all that a restart wants is still there: what is lost of it, where that is accepted, else an error. None if
    /// brokers do not answer within so long, or it was stopped. Sends nothing, and commits nothing.
    pub fn check(self, within: Duration, stop: &Stop) -> Result<Option<Vec<Gap>>, KafkaError> {
        let answered = client::check(self.readers, within, stop)?;
        Ok(answered.then(|| self.gaps.take()))
    }

    /// Reads until it is stopped, nobody listens any more, every partition is finished, or something is wrong. What was
    /// read before an error has been sent.
    pub fn run(self, out: &Sender, stop: &Stop) -> Result<(), KafkaError> {
        client::run(self.readers, out, stop)
    }
}

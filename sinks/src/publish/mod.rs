//! Writing records to a broker: for `marea publish`, load generators and dead letters.
//!
//! A publisher takes messages without waiting for each, holds a bounded number of them, and says at [`flush`] how many the
//! broker has. Nothing is given up in silence: what was taken is delivered, or counted as undelivered with the first cause.
//!
//! [`flush`]: kafka::KafkaPublisher::flush

pub mod kafka;
pub mod rabbitmq;

use std::time::Duration;

/// Why messages are not at the broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The client does not take the configuration.
    #[error("{0}")]
    Config(String),
    /// A message, or something asked for, was refused. It was not taken.
    #[error("{target}: {cause}")]
    Refused {
        /// The topic, queue or exchange.
        target: String,
        /// What the client or broker says.
        cause: String,
    },
    /// Messages that were taken are not delivered, and never will be.
    #[error("{failed} messages were not delivered ({delivered} were), the first because: {first}")]
    Undelivered {
        /// How many are lost.
        failed: u64,
        /// How many arrived.
        delivered: u64,
        /// Why the first one is lost.
        first: String,
    },
    /// The broker did not confirm in time. They may still arrive.
    #[error("{pending} messages are not confirmed after {within:?}: is the broker there?")]
    Timeout {
        /// How many were not confirmed.
        pending: u64,
        /// How long it was waited for.
        within: Duration,
    },
}

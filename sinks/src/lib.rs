//! Where marea's results go. Every sink receives closed, consolidated epochs ([`ClosedEpoch`]) and holds no dataflow.
//!
//! ```text
//!  closed epochs ──► store (SQLite, PostgreSQL: one transaction for several epochs) ──► feed (view ─► REST, SSE, the page)
//!               └──► dump (the final state as sorted CSV)                          ├──► metrics (Prometheus)
//!                                                                                  └──► redis (values, streams, channels)
//! ```
//!
//! Beside them, [`dead_letters`] delivers these from the store to a topic, and [`publish`] writes records to brokers.
//!
//! [`ClosedEpoch`]: marea_model::output::ClosedEpoch
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod dead_letters;
pub mod dump;
pub mod failpoint;
pub mod feed;
pub mod metrics;
pub mod page;
pub mod publish;
pub mod redis;
pub mod store;
pub mod view;

#[cfg(test)]
#[allow(dead_code, missing_docs, unreachable_pub)]
#[path = "../tests/sinks/fixture.rs"]
mod fixture;

pub use dead_letters::DeadLetters;
pub use dump::State;
pub use feed::{Clock, Feed, FeedConfig};
pub use metrics::Metrics;
pub use store::{Committed, Store, StoreError};

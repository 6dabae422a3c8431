//! Publishers against real servers, one module a publisher.
#![allow(missing_docs, clippy::unwrap_used)]

mod kafka;
mod rabbitmq;

//! Sources against real servers, one module a source. Every server is a child process of the test.
#![allow(missing_docs, clippy::unwrap_used)]

mod etcd;
mod kafka;
mod rabbitmq;
mod secure;

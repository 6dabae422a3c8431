//! The program against real servers: Kafka, RabbitMQ, etcd. Every server is a child process of the test.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod chaos;
mod common;
mod dashboards;
mod etcd;
mod kafka;
mod live_cli;
mod metrics;
mod rabbitmq;
mod redis;

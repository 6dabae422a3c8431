//! One server of each kind for a whole process, started by its first use.
//!
//! Tests that share one keep apart by names: a topic, a virtual host, a prefix, a database a test. A test that kills or
//! pauses a server starts one of its own.
//!
//! An environment variable gives the address of a server that runs already, which is then used instead:
//! `MAREA_TEST_KAFKA` (`host:port`), `MAREA_TEST_RABBITMQ` (`amqp://user:password@host:port/vhost`; the management
//! interface at port 15672 of the same host, or at `MAREA_TEST_RABBITMQ_MANAGEMENT`), `MAREA_TEST_ETCD`
//! (`http://host:port`), `MAREA_TEST_POSTGRES` and `MAREA_TEST_REDIS` (URLs).

use std::sync::OnceLock;

use crate::{Etcd, Kafka, Postgres, RabbitMq, Redis, ServerError};

// A failure is kept as well, so that every test says at once why it cannot run.
type Shared<T> = OnceLock<Result<T, ServerError>>;

fn get<T>(
    shared: &'static Shared<T>,
    variable: &'static str,
    external: impl FnOnce(String, &'static str) -> T,
    start: impl FnOnce() -> Result<T, ServerError>,
) -> &'static T {
    let made = shared.get_or_init(|| match std::env::var(variable) {
        Ok(address) if !address.is_empty() => Ok(external(address, variable)),
        _ => start(),
    });
    made.as_ref().unwrap_or_else(|error| panic!("{error}\n(or name a server that runs already by {variable})"))
}

/// The Kafka broker of this process.
///
/// # Panics
///
/// If it cannot be started.
pub fn kafka() -> &'static Kafka {
    static SHARED: Shared<Kafka> = OnceLock::new();
    get(&SHARED, "MAREA_TEST_KAFKA", Kafka::external, Kafka::start)
}

/// The RabbitMQ node of this process.
///
/// # Panics
///
/// If it cannot be started.
pub fn rabbitmq() -> &'static RabbitMq {
    static SHARED: Shared<RabbitMq> = OnceLock::new();
    let external = |url, variable| {
        let management = std::env::var("MAREA_TEST_RABBITMQ_MANAGEMENT").ok();
        RabbitMq::external(url, management, variable)
    };
    get(&SHARED, "MAREA_TEST_RABBITMQ", external, RabbitMq::start)
}

/// The etcd node of this process.
///
/// # Panics
///
/// If it cannot be started.
pub fn etcd() -> &'static Etcd {
    static SHARED: Shared<Etcd> = OnceLock::new();
    get(&SHARED, "MAREA_TEST_ETCD", Etcd::external, Etcd::start)
}

/// The PostgreSQL server of this process.
///
/// # Panics
///
/// If it cannot be started.
pub fn postgres() -> &'static Postgres {
    static SHARED: Shared<Postgres> = OnceLock::new();
    get(&SHARED, "MAREA_TEST_POSTGRES", Postgres::external, Postgres::start)
}

/// The Redis server of this process.
///
/// # Panics
///
/// If it cannot be started.
pub fn redis() -> &'static Redis {
    static SHARED: Shared<Redis> = OnceLock::new();
    get(&SHARED, "MAREA_TEST_REDIS", Redis::external, Redis::start)
}

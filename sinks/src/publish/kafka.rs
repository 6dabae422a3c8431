//! A producer of Kafka records.
//!
//! **Delivery**: acknowledged by all in-sync replicas (`acks=all`), in order within a partition and, while this producer
//! lives, without repetitions (an idempotent producer). A message goes to the partition that its key hashes to, as Java's
//! producer has it, so that a symbol stays in one partition whoever writes it.
//!
//! **Back-pressure**: [`KafkaPublisher::send`] only waits while the client's queue is full.
//!
//! **Timestamps.** Retention looks at the timestamp of a record. A record of the past with its event time as timestamp is
//! deleted at once where retention is by time: so the default is the time of sending.
//!
//! Topics are never created but by [`KafkaPublisher::ensure_topic`].

use super::PublishError;
use marea_model::security::Security;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

/// How long a full queue is waited for before it is tried again.
const FULL: Duration = Duration::from_millis(5);
/// How long a broker may take to create a topic.
const CREATE: Duration = Duration::from_secs(30);

/// Where to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaPublisherConfig {
    /// `host:port`, several separated by commas.
    pub brokers: String,
    /// How the connection is secured.
    pub security: Security,
    /// How long a message may wait for its acknowledgement, in milliseconds, before it counts as undelivered.
    pub delivery_timeout_ms: u32,
}

impl KafkaPublisherConfig {
    /// Writes to these brokers, in clear.
    pub fn new(brokers: impl Into<String>) -> Self {
        KafkaPublisherConfig { brokers: brokers.into(), security: Security::default(), delivery_timeout_ms: 120_000 }
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers).set("client.id", "marea");
        self.security.settings().into_iter().for_each(|(key, value)| {
            client.set(key, value);
        });
        client.set("reconnect.backoff.max.ms", "1000").set("socket.nagle.disable", "true");
        client
    }

    fn producer(&self, compression: &str) -> ClientConfig {
        let mut client = self.client();
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", compression)
            .set("linger.ms", "5")
            .set("message.max.bytes", "20971520")
            .set("message.timeout.ms", self.delivery_timeout_ms.to_string())
            // A topic that does not exist is an error within seconds, and is not created by asking for it.
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("allow.auto.create.topics", "false")
            .set("partitioner", "murmur2_random");
        client
    }
}

/// What became of the messages.
#[derive(Clone, Default)]
struct Outcome {
    delivered: u64,
    failed: u64,
    first: Option<String>,
    fatal: Option<String>,
}

impl Outcome {
    /// One message was delivered, or not.
    fn count(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => self.delivered += 1,
            Err(cause) => {
                self.failed += 1;
                self.first.get_or_insert(cause);
            }
        }
    }

    fn verdict(self) -> Result<u64, PublishError> {
        let Outcome { delivered, failed, first, fatal } = self;
        match fatal.or(first) {
            Some(first) if failed > 0 => Err(PublishError::Undelivered { failed, delivered, first }),
            _ => Ok(delivered),
        }
    }
}

#[derive(Default)]
struct Deliveries(Mutex<Outcome>);

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Outcome> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
        let fatal =
            [RDKafkaErrorCode::Fatal, RDKafkaErrorCode::Authentication, RDKafkaErrorCode::SaslAuthenticationFailed];
        if error.rdkafka_error_code().is_some_and(|code| fatal.contains(&code)) {
            self.lock().fatal.get_or_insert_with(|| reason.to_owned());
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.lock().count(result.as_ref().map(|_| ()).map_err(|(error, _)| error.to_string()));
    }
}

/// Writes records to topics.
pub struct KafkaPublisher {
    config: KafkaPublisherConfig,
    producer: ThreadedProducer<Deliveries>,
    /// The header of the content type that was used last: nearly all messages have the same.
    header: Option<(String, OwnedHeaders)>,
}

impl KafkaPublisher {
    /// Makes the client; brokers are met when something is sent.
    pub fn new(config: KafkaPublisherConfig) -> Result<Self, PublishError> {
        let lz4: Result<ThreadedProducer<_>, _> = config.producer("lz4").create_with_context(Deliveries::default());
        // A client that was built without it writes uncompressed.
        let producer = lz4.or_else(|_| config.producer("none").create_with_context(Deliveries::default()));
        let producer = producer.map_err(|error| PublishError::Config(format!("kafka: {error}")))?;
        Ok(KafkaPublisher { config, producer, header: None })
    }

    /// Creates the topic if it does not exist. Whether it was created; one that exists keeps its partitions and settings.
    pub fn ensure_topic(&self, name: &str, partitions: u32) -> Result<bool, PublishError> {
        let refused = |cause: String| PublishError::Refused { target: format!("topic {name}"), cause };
        let admin: AdminClient<DefaultClientContext> =
            self.config.client().create().map_err(|error| PublishError::Config(format!("kafka: {error}")))?;
        let partitions = i32::try_from(partitions).map_err(|error| refused(error.to_string()))?;
        // −1: as many replicas as the cluster's default.
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        let options = AdminOptions::new().operation_timeout(Some(CREATE)).request_timeout(Some(CREATE));
        let created = block_on(admin.create_topics([&topic], &options)).map_err(|error| refused(error.to_string()))?;
        match created.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(false),
            Some(Err((_, code))) => Err(refused(code.to_string())),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    /// How many partitions a topic has.
    pub fn partitions(&self, topic: &str) -> Result<u32, PublishError> {
        let refused = |cause: String| PublishError::Refused { target: format!("topic {topic}"), cause };
        let metadata = self.producer.client().fetch_metadata(Some(topic), CREATE);
        let metadata = metadata.map_err(|error| refused(error.to_string()))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty());
        let found = found.ok_or_else(|| refused("has no partitions".to_owned()))?;
        u32::try_from(found.partitions().len()).map_err(|error| refused(error.to_string()))
    }

    /// Takes a message; waits only while the queue is full. Without a partition the key chooses it; without a timestamp
    /// it is the time of sending.
    pub fn send(
        &mut self,
        topic: &str,
        partition: Option<i32>,
        key: &[u8],
        content_type: &str,
        payload: &[u8],
        timestamp_ms: Option<i64>,
    ) -> Result<(), PublishError> {
        let known = self.header.take().filter(|(known, _)| known == content_type);
        let (name, headers) = known.unwrap_or_else(|| {
            let header = Header { key: "content-type", value: Some(content_type) };
            (content_type.to_owned(), OwnedHeaders::new_with_capacity(1).insert(header))
        });
        let mut record = BaseRecord::to(topic).key(key).payload(payload).headers(headers.clone());
        self.header = Some((name, headers));
        record.partition = partition;
        record.timestamp = timestamp_ms;
        self.take(topic, record)
    }

    /// Takes a message with these headers; its key chooses the partition. Waits only while the queue is full.
    pub fn send_with(
        &self,
        topic: &str,
        key: &[u8],
        headers: &[(&str, String)],
        payload: &[u8],
    ) -> Result<(), PublishError> {
        let header = |all: OwnedHeaders, (key, value): &(&str, String)| all.insert(Header { key, value: Some(value) });
        let headers = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), header);
        self.take(topic, BaseRecord::to(topic).key(key).payload(payload).headers(headers))
    }

    fn take(&self, topic: &str, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), PublishError> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.producer.poll(FULL);
                    record = back;
                }
                Err((error, _)) => {
                    let fatal = self.producer.context().lock().fatal.clone();
                    let cause = fatal.unwrap_or_else(|| error.to_string());
                    return Err(PublishError::Refused { target: format!("topic {topic}"), cause });
                }
            }
        }
    }

    /// Waits until everything that was taken is delivered or given up. How many are delivered, since the beginning.
    pub fn flush(&self, timeout: Duration) -> Result<u64, PublishError> {
        let flushed = self.producer.flush(timeout);
        let outcome = self.producer.context().lock().clone();
        if flushed.is_err() {
            let pending = u64::try_from(self.producer.in_flight_count()).unwrap_or(0);
            if let Some(first) = outcome.fatal {
                let (failed, delivered) = (outcome.failed + pending, outcome.delivered);
                return Err(PublishError::Undelivered { failed, delivered, first });
            }
            if pending > 0 {
                return Err(PublishError::Timeout { pending, within: timeout });
            }
        }
        outcome.verdict()
    }
}

/// Wakes the thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future of the client, which needs no runtime: its own thread wakes it. (A runtime's `block_on` would panic
/// within another runtime.)
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_delivered_is_counted_with_the_first_cause() {
        let outcome = |results: &[Result<(), &str>]| {
            let mut outcome = Outcome::default();
            results.iter().for_each(|result| outcome.count(result.map_err(str::to_owned)));
            outcome.verdict()
        };
        assert_eq!(outcome(&[]), Ok(0));
        assert_eq!(outcome(&[Ok(()), Ok(())]), Ok(2));
        let first = "too large".to_owned();
        let undelivered = Err(PublishError::Undelivered { failed: 2, delivered: 1, first });
        assert_eq!(outcome(&[Err("too large"), Ok(()), Err("gone")]), undelivered);
    }

    #[test]
    fn passwords_are_not_shown() {
        let hush = Some("hush".to_owned());
        let security = Security { key_password: hush.clone(), password: hush, ..Security::default() };
        let config = KafkaPublisherConfig { security, ..KafkaPublisherConfig::new("b:1") };
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn a_wrong_setting_is_refused_at_once() {
        let security = Security { mechanism: Some("carrier pigeon".to_owned()), ..Security::default() };
        let config = KafkaPublisherConfig { security, ..KafkaPublisherConfig::new("b:1") };
        assert!(matches!(KafkaPublisher::new(config), Err(PublishError::Config(_))));
    }

    #[test]
    fn without_a_broker_a_flush_ends_in_time() {
        let config = KafkaPublisherConfig::new("127.0.0.1:1");
        let mut publisher = KafkaPublisher::new(config).unwrap();
        publisher.send("t", None, b"A", "application/json", b"{}", None).unwrap();
        let within = Duration::from_millis(100);
        assert_eq!(publisher.flush(within), Err(PublishError::Timeout { pending: 1, within }));
    }
}

//! The Kafka publisher against a real broker.

use marea_servers::shared;
use marea_sinks::publish::PublishError;
use marea_sinks::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SOON: Duration = Duration::from_secs(30);

fn name(base: &str) -> String {
    format!("{base}-{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos())
}

fn publisher() -> KafkaPublisher {
    KafkaPublisher::new(KafkaPublisherConfig::new(shared::kafka().brokers())).unwrap()
}

fn read(topic: &str, partitions: i32, count: usize) -> Vec<OwnedMessage> {
    let mut config = ClientConfig::new();
    let consumer: BaseConsumer =
        config.set("bootstrap.servers", shared::kafka().brokers()).set("group.id", topic).create().unwrap();
    let mut list = TopicPartitionList::new();
    for id in 0..partitions {
        list.add_partition_offset(topic, id, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let begun = Instant::now();
    let mut messages = Vec::new();
    while messages.len() < count {
        assert!(begun.elapsed() < SOON, "{} of {count}", messages.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            messages.push(message.unwrap().detach());
        }
    }
    messages
}

#[test]
fn what_is_sent_arrives_in_order_by_key() {
    let topic = name("published");
    let mut publisher = publisher();
    assert_eq!(publisher.ensure_topic(&topic, 4), Ok(true));
    assert_eq!(publisher.ensure_topic(&topic, 2), Ok(false));
    // More than the queue holds (100,000).
    let count = 150_000_u32;
    for i in 0..count {
        let key = format!("S{}", i % 50);
        publisher.send(&topic, None, key.as_bytes(), "application/json", &i.to_le_bytes(), None).unwrap();
    }
    assert_eq!(publisher.flush(SOON), Ok(u64::from(count)));
    publisher.send(&topic, None, b"S0", "application/vnd.apache.arrow.stream", b"", Some(1_600_000_000_000)).unwrap();
    assert_eq!(publisher.flush(SOON), Ok(u64::from(count) + 1));

    let mut last = BTreeMap::new();
    let (mut partitions, mut by_key) = (BTreeSet::new(), BTreeMap::new());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    for message in read(&topic, 4, count as usize + 1) {
        let header = message.headers().unwrap().get(0);
        assert_eq!((header.key, message.headers().unwrap().count()), ("content-type", 1));
        partitions.insert(message.partition());
        let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
        assert_eq!(*by_key.entry(key.clone()).or_insert(message.partition()), message.partition());
        if header.value == Some(b"application/json") {
            let i = u32::from_le_bytes(message.payload().unwrap().try_into().unwrap());
            assert!(last.insert(key, i).is_none_or(|before| before < i));
            assert!((now - message.timestamp().to_millis().unwrap()).abs() < 60_000, "the time of sending");
        } else {
            assert_eq!(message.timestamp().to_millis(), Some(1_600_000_000_000));
        }
    }
    assert_eq!((partitions.len(), last.len()), (4, 50));
}

#[test]
fn a_missing_topic_and_a_large_message_are_told() {
    let mut lost = publisher();
    lost.send(&name("nowhere"), None, b"A", "application/json", b"{}", None).unwrap();
    let Err(PublishError::Undelivered { failed: 1, delivered: 0, first }) = lost.flush(SOON) else { panic!("lost") };
    assert!(first.contains("Unknown"), "{first}");
    let topic = name("large");
    let mut publisher = publisher();
    publisher.ensure_topic(&topic, 1).unwrap();
    let large = vec![0; 21 << 20];
    let refused = publisher.send(&topic, None, b"A", "application/json", &large, None);
    assert!(matches!(refused, Err(PublishError::Refused { .. })), "{refused:?}");
    publisher.send(&topic, None, b"A", "application/json", b"{}", None).unwrap();
    assert_eq!(publisher.flush(SOON), Ok(1), "the publisher goes on");
}

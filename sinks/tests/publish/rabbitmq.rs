//! The publisher against a real RabbitMQ.

use marea_servers::{RabbitMq, shared};
use marea_sinks::publish::rabbitmq::{
    EXCHANGE, OUTSTANDING, RabbitKind, RabbitPublishError, RabbitPublisher, RabbitTls,
};
use std::process::Command;
use std::time::{Duration, Instant};

const JSON: &str = "application/json";

fn publisher(url: &str) -> RabbitPublisher {
    RabbitPublisher::connect(url, &RabbitTls::default()).unwrap()
}

/// Takes messages out of a queue by the management interface: routing key, properties and payload.
fn get(url: &str, queue: &str, count: u64) -> Vec<serde_json::Value> {
    let (login, rest) = url.strip_prefix("amqp://").unwrap().split_once('@').unwrap();
    let vhost = rest.split_once('/').unwrap().1;
    let address = format!("{}/api/queues/{vhost}/{queue}/get", shared::rabbitmq().management());
    let body = serde_json::json!({"count": count, "ackmode": "ack_requeue_false", "encoding": "auto"}).to_string();
    let answer = Command::new("curl").args(["-sf", "-u", login, "-d", &body, &address]).output().unwrap();
    serde_json::from_slice(&answer.stdout).unwrap()
}

#[test]
fn what_is_published_is_confirmed_in_order_and_says_what_it_is() {
    let url = shared::rabbitmq().vhost("publish");
    let mut publisher = publisher(&url);
    for _ in 0..2 {
        publisher.ensure(RabbitKind::Queue, "q", EXCHANGE).unwrap();
        publisher.ensure(RabbitKind::Stream, "s", EXCHANGE).unwrap();
    }
    let count = 3 * OUTSTANDING as u64;
    let begun = Instant::now();
    for seq in 0..count {
        publisher.publish(EXCHANGE, "IBM", JSON, Some(&seq.to_string()), seq.to_string().as_bytes()).unwrap();
        let published = publisher.published();
        assert!(published.sent - published.confirmed <= OUTSTANDING as u64);
    }
    let published = publisher.flush().unwrap();
    println!("{count} messages to a quorum queue and a stream in {:?}", begun.elapsed());
    assert_eq!((published.sent, published.confirmed), (count, count));

    let messages = get(&url, "q", count);
    assert_eq!(messages.len() as u64, count);
    for (seq, message) in messages.iter().enumerate() {
        assert_eq!(message["payload"], seq.to_string());
    }
    let first = &messages[0];
    assert_eq!((&first["exchange"], &first["routing_key"]), (&EXCHANGE.into(), &"IBM".into()));
    let properties = &first["properties"];
    assert_eq!(properties["content_type"], JSON);
    assert_eq!((&properties["message_id"], &properties["delivery_mode"]), (&"0".into(), &2.into()));
}

#[test]
fn what_nobody_takes_is_an_error_that_stays() {
    let url = shared::rabbitmq().vhost("unroutable");
    let mut publisher = publisher(&url);
    publisher.ensure(RabbitKind::Queue, "q", EXCHANGE).unwrap();
    publisher.publish("amq.topic", "IBM", JSON, None, b"1").unwrap();
    let error = publisher.flush().unwrap_err();
    assert!(matches!(&error, RabbitPublishError::Unroutable { routing_key, .. } if routing_key == "IBM"), "{error}");
    let error = publisher.publish(EXCHANGE, "IBM", JSON, None, b"1").unwrap_err();
    assert!(matches!(error, RabbitPublishError::Ended(_)), "{error}");
    assert_eq!(publisher.published().confirmed, 0);
}

#[test]
fn an_unknown_exchange_is_an_error() {
    let url = shared::rabbitmq().vhost("no_exchange");
    let mut publisher = publisher(&url);
    let published = publisher.publish("nowhere", "IBM", JSON, None, b"1");
    let error = published.and_then(|()| publisher.flush()).unwrap_err();
    assert!(matches!(error, RabbitPublishError::Lost { unconfirmed: 1, .. }), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn another_kind_of_the_same_name_is_an_error_and_publishing_goes_on() {
    let url = shared::rabbitmq().vhost("declared");
    let mut publisher = publisher(&url);
    publisher.ensure(RabbitKind::Queue, "q", EXCHANGE).unwrap();
    let error = publisher.ensure(RabbitKind::Stream, "q", EXCHANGE).unwrap_err();
    assert!(matches!(error, RabbitPublishError::Declare { .. }), "{error}");
    publisher.publish(EXCHANGE, "IBM", JSON, None, b"1").unwrap();
    assert_eq!(publisher.flush().unwrap().confirmed, 1);
    let error = publisher.publish(EXCHANGE, &"k".repeat(256), JSON, None, b"1").unwrap_err();
    assert!(matches!(error, RabbitPublishError::TooLong { field: "routing key", bytes: 256 }), "{error}");
}

#[test]
fn a_refused_login_does_not_show_the_password() {
    let url = shared::rabbitmq().url().replace("test:test@", "test:hunter2@");
    let error = RabbitPublisher::connect(&url, &RabbitTls::default()).unwrap_err();
    assert!(matches!(error, RabbitPublishError::Connect { .. }), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("test") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_broker_that_is_gone_is_an_error_that_counts_what_is_unconfirmed() {
    let server = RabbitMq::start().unwrap();
    let url = server.vhost("gone");
    let mut publisher = publisher(&url);
    publisher.ensure(RabbitKind::Queue, "q", EXCHANGE).unwrap();
    publisher.publish(EXCHANGE, "IBM", JSON, None, b"1").unwrap();
    publisher.flush().unwrap();
    server.kill().unwrap();
    let begun = Instant::now();
    let published = publisher.publish(EXCHANGE, "IBM", JSON, None, b"2");
    let error = published.and_then(|()| publisher.flush()).unwrap_err();
    assert!(matches!(error, RabbitPublishError::Lost { unconfirmed: 1, .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(40));
    println!("{error} after {:?}", begun.elapsed());
}

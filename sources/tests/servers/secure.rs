//! TLS and passwords on real brokers: who is trusted is served, and whoever is not is told what is wrong, and no secret.

use super::{kafka, rabbitmq};
use marea_servers::{Certificates, Kafka, RabbitMq};
use marea_sources::kafka::{KafkaConfig, KafkaError, Protocol, Security};
use marea_sources::rabbitmq::{RabbitConfig, RabbitError, RabbitKind};

#[test]
fn kafka_by_certificates_and_by_a_password() {
    let certificates = Certificates::new().unwrap();
    let broker = Kafka::start_secure(&certificates).unwrap();
    broker.create_topic("t", 1, &[]).unwrap();
    kafka::put_ticks_at(&broker.brokers(), "t", 0, 0..20);
    let path = |file: &str| Some(certificates.path(file));
    let tls = Security {
        protocol: Protocol::Ssl,
        ca: path("ca.pem"),
        certificate: path("client.pem"),
        key: path("client.key"),
        ..Security::default()
    };
    let (user, password) = Kafka::USER;
    let scram = Security {
        protocol: Protocol::SaslSsl,
        ca: path("ca.pem"),
        mechanism: Some("SCRAM-SHA-512".to_owned()),
        username: Some(user.to_owned()),
        password: Some(password.to_owned()),
        ..Security::default()
    };
    let config = |way: &str, security: &Security| KafkaConfig {
        until_end: true,
        security: security.clone(),
        ..kafka::config(&broker.secure(way).unwrap(), "t")
    };
    for (way, security) in [("TLS", &tls), ("SCRAM", &scram)] {
        let mut run = kafka::Running::new(config(way, security), vec![]);
        assert_eq!(run.end(), Ok(()), "{way}");
        assert_eq!(run.seqs(), (0..20).collect::<Vec<_>>(), "{way}");
    }
    let other = |security: &Security| Security { ca: path("other.pem"), ..security.clone() };
    for (what, way, security, said) in [
        ("another authority", "TLS", other(&tls), "certificate"),
        ("another authority, a password", "SCRAM", other(&scram), "certificate"),
        ("a certificate that has expired", "EXPIRED", tls.clone(), "certificate"),
        ("no certificate", "TLS", Security { certificate: None, key: None, ..tls.clone() }, "certificate"),
        ("a wrong password", "SCRAM", Security { password: Some("hunter2".to_owned()), ..scram.clone() }, "password"),
    ] {
        let error = kafka::Running::new(config(way, &security), vec![]).end().unwrap_err();
        println!("{what}: {error}");
        assert!(matches!(error, KafkaError::Refused { .. }), "{what}: {error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(said) && text.contains(&broker.secure(way).unwrap()), "{what}: {text}");
        assert!(!text.contains("hunter2") && !text.contains(password), "{what}: {text}");
    }
}

#[test]
fn rabbitmq_by_certificates() {
    let certificates = Certificates::new().unwrap();
    let broker = RabbitMq::start_secure(&certificates).unwrap();
    let producer = rabbitmq::Producer::new(&broker.vhost("secure"));
    producer.declare("t", "quorum", &[]);
    producer.ticks("t", 0..20);
    let url = broker.secure("secure").unwrap();
    let path = |file: &str| Some(certificates.path(file));
    let good = RabbitConfig {
        ca: path("ca.pem"),
        cert: path("client.pem"),
        key: path("client.key"),
        until_end: true,
        ..RabbitConfig::new(&url, "t", RabbitKind::Queue)
    };
    let mut run = rabbitmq::Run::new(good.clone(), vec![]);
    run.end().unwrap();
    assert_eq!(run.seqs(), (0..20).collect::<Vec<_>>());
    let host = url.split('@').nth(1).unwrap().split('/').next().unwrap();
    for (what, bad) in [
        ("another authority", RabbitConfig { ca: path("other.pem"), ..good.clone() }),
        ("no certificate", RabbitConfig { cert: None, key: None, ..good.clone() }),
        ("one that has expired", RabbitConfig { cert: path("expired.pem"), key: path("expired.key"), ..good.clone() }),
    ] {
        let error = rabbitmq::Run::new(bad, vec![]).end().unwrap_err();
        println!("{what}: {error}");
        assert!(matches!(error, RabbitError::Untrusted { .. }), "{what}: {error}");
        assert!(error.to_string().contains(host), "{what}: {error}");
    }
    let wrong = RabbitConfig { url: url.replace("test:test", "test:hunter2"), ..good };
    let error = rabbitmq::Run::new(wrong, vec![]).end().unwrap_err();
    println!("a wrong password: {error}");
    assert!(matches!(error, RabbitError::Refused { .. }) && !format!("{error:?}").contains("hunter2"), "{error}");
}

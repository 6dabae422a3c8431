//! What to read, and how to get there.

use super::KafkaError;
use marea_model::Partition;
pub use marea_model::security::{Protocol, Security};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use std::fs::File;
use std::path::Path;

/// The mechanisms of authentication.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// What is wrong with it. Looks at files.
fn check_security(security: &Security, wrong: &mut Vec<String>) {
    let tls = [("ca", &security.ca), ("certificate", &security.certificate), ("key", &security.key)];
    for (name, path) in tls {
        let Some(path) = path else { continue };
        if !security.protocol.has_tls() {
            wrong.push(format!("security.{name}: is of no use with protocol {}", security.protocol.as_str()));
        } else if let Err(cause) = readable(path) {
            wrong.push(format!("security.{name}: {}: {cause}", path.display()));
        }
    }
    match (&security.certificate, &security.key) {
        (Some(_), None) => wrong.push("security.key: the certificate needs its key".to_owned()),
        (None, Some(_)) => wrong.push("security.certificate: the key needs its certificate".to_owned()),
        _ => {}
    }
    if security.key_password.is_some() && security.key.is_none() {
        wrong.push("security.key_password: there is no key".to_owned());
    }
    let user = [("mechanism", &security.mechanism), ("username", &security.username), ("password", &security.password)];
    for (name, value) in user {
        match (security.protocol.has_user(), value) {
            (true, None) => {
                wrong.push(format!("security.{name}: is missing, protocol {} needs it", security.protocol.as_str()));
            }
            (true, Some(value)) if value.is_empty() => wrong.push(format!("security.{name}: is empty")),
            (false, Some(_)) => {
                wrong.push(format!("security.{name}: is of no use with protocol {}", security.protocol.as_str()));
            }
            _ => {}
        }
    }
    if let Some(mechanism) = security.mechanism.as_deref().filter(|m| !m.is_empty() && !MECHANISMS.contains(m)) {
        wrong.push(format!("security.mechanism: {mechanism:?} must be one of {}", MECHANISMS.join(", ")));
    }
}

fn readable(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let is_file = file.metadata().map_err(|error| error.to_string())?.is_file();
    if is_file { Ok(()) } else { Err("is no file".to_owned()) }
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KafkaConfig {
    /// `host:port`, several separated by commas: who is asked first for the others.
    pub brokers: String,
    /// The topic of ticks.
    pub topic: String,
    /// The topic of account snapshots.
    pub accounts_topic: Option<String>,
    /// The topic that dead letters go to once they are committed. The source does not write it.
    pub dead_letters: Option<String>,
    /// The consumer group under which lag tools see what is committed. Nothing is read from it.
    pub group: String,
    /// How the connection is secured.
    pub security: Security,
    /// Whether to end where the partitions end at the start.
    pub until_end: bool,
    /// Whether to go on without records that are lost.
    pub accept_gap: bool,
}

impl KafkaConfig {
    /// Everything that is wrong, each naming its key. Looks at files, and not at the network.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for broker in self.brokers.split(',') {
            if let Err(cause) = check_broker(broker.trim()) {
                wrong.push(format!("brokers: {broker:?} {cause}"));
            }
        }
        let topics = [
            ("topic", Some(&self.topic)),
            ("accounts_topic", self.accounts_topic.as_ref()),
            ("dead_letters", self.dead_letters.as_ref()),
        ];
        for (key, topic) in topics.into_iter().filter_map(|(key, topic)| Some((key, topic?))) {
            if let Err(cause) = check_topic(topic) {
                wrong.push(format!("{key}: {topic:?} {cause}"));
            }
        }
        if self.accounts_topic.as_ref() == Some(&self.topic) {
            wrong.push(format!("accounts_topic: {:?} is the topic of the ticks", self.topic));
        }
        if self.dead_letters.is_some()
            && [Some(&self.topic), self.accounts_topic.as_ref()].contains(&self.dead_letters.as_ref())
        {
            wrong.push(format!(
                "dead_letters: {:?} is a topic that is read",
                self.dead_letters.as_deref().unwrap_or_default()
            ));
        }
        if self.group.is_empty() || self.group.len() > 255 || self.group.chars().any(char::is_control) {
            wrong.push(format!("group: {:?} must be 1 to 255 bytes without control characters", self.group));
        }
        check_security(&self.security, &mut wrong);
        wrong
    }

    /// The client's settings for one consumer.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "marea")
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("topic.metadata.refresh.interval.ms", "3000")
            .set("statistics.interval.ms", "1000")
            // That a topic was recreated is told in a debug line and nowhere else.
            .set("debug", "metadata")
            .set_log_level(RDKafkaLogLevel::Debug)
            // The end of a partition is told by an answer without records: the broker waits so long with it.
            .set("fetch.wait.max.ms", "10")
            // The default stalls a second whenever the queue was full; it is emptied within milliseconds.
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.nagle.disable", "true");
        self.security.settings().into_iter().for_each(|(key, value)| {
            client.set(key, value);
        });
        client
    }
}

fn check_broker(broker: &str) -> Result<(), &'static str> {
    const MUST: &str = "must be host:port";
    let (host, port) = broker.rsplit_once(':').ok_or(MUST)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let named = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let numbered = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    if !named && !numbered {
        return Err(MUST);
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => Err("must have a port from 1 to 65535"),
    }
}

fn check_topic(topic: &str) -> Result<(), &'static str> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if topic.is_empty() || topic.len() > 249 || !topic.chars().all(valid) || topic == "." || topic == ".." {
        return Err("must be 1 to 249 of letters, digits, . _ -");
    }
    Ok(())
}

/// The partition of a topic, as marea names it.
pub(super) fn partition(topic: &str, id: i32) -> Result<Partition, KafkaError> {
    Partition::new(&format!("kafka:{topic}/{id}")).map_err(|error| KafkaError::Config(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::consumer::BaseConsumer;

    fn good() -> KafkaConfig {
        KafkaConfig {
            brokers: "127.0.0.1:9092, kafka-2.example:9092,[::1]:9092".to_owned(),
            topic: "marea.ticks.v1".to_owned(),
            accounts_topic: Some("marea.accounts.v1".to_owned()),
            group: "marea".to_owned(),
            ..KafkaConfig::default()
        }
    }

    #[test]
    fn what_is_good_passes() {
        assert_eq!(good().check(), Vec::<String>::new());
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = Some(file.path().to_owned());
        let security = Security {
            protocol: Protocol::SaslSsl,
            ca: path.clone(),
            certificate: path.clone(),
            key: path,
            key_password: Some("open".to_owned()),
            mechanism: Some("SCRAM-SHA-512".to_owned()),
            username: Some("u".to_owned()),
            password: Some("p".to_owned()),
        };
        assert_eq!(KafkaConfig { security, ..good() }.check(), Vec::<String>::new());
    }

    #[test]
    fn the_client_takes_every_protocol_and_mechanism() {
        for protocol in Protocol::ALL {
            for mechanism in MECHANISMS {
                let user = protocol.has_user().then(|| "u".to_owned());
                let mechanism = user.as_ref().map(|_| mechanism.to_owned());
                let (username, password) = (user.clone(), user);
                let security = Security { protocol, mechanism, username, password, ..Security::default() };
                let config = KafkaConfig { security, ..good() };
                assert_eq!(config.check(), Vec::<String>::new());
                let client: Result<BaseConsumer, _> = config.client().create();
                assert!(client.is_ok(), "{config:?}: {:?}", client.err());
            }
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let security = Security {
            protocol: Protocol::SaslSsl,
            ca: Some("/nowhere/ca.pem".into()),
            certificate: Some("/".into()),
            mechanism: Some("GSSAPI".to_owned()),
            password: Some(String::new()),
            ..Security::default()
        };
        let config = KafkaConfig {
            brokers: "kafka,:9092,kafka:0,kafka:70000,ka fka:1,".to_owned(),
            topic: "a/b".to_owned(),
            accounts_topic: Some("a/b".to_owned()),
            group: String::new(),
            security,
            ..KafkaConfig::default()
        };
        let wrong = config.check();
        let starts = [
            "brokers: \"kafka\"",
            "brokers: \":9092\"",
            "brokers: \"kafka:0\"",
            "brokers: \"kafka:70000\"",
            "brokers: \"ka fka:1\"",
            "brokers: \"\"",
            "topic: \"a/b\" must",
            "accounts_topic: \"a/b\" must",
            "accounts_topic: \"a/b\" is the topic",
            "group: ",
            "security.ca: /nowhere/ca.pem: No such file",
            "security.certificate: /: is no file",
            "security.key: the certificate",
            "security.username: is missing",
            "security.password: is empty",
            "security.mechanism: \"GSSAPI\"",
        ];
        assert_eq!(wrong.len(), starts.len(), "{wrong:#?}");
        for (wrong, start) in wrong.iter().zip(starts) {
            assert!(wrong.starts_with(start), "{wrong} / {start}");
        }
        let useless = Security { username: Some("u".to_owned()), ca: Some("/".into()), ..Security::default() };
        assert_eq!(KafkaConfig { security: useless, ..good() }.check().len(), 2);
    }

    #[test]
    fn passwords_are_not_shown() {
        let security = Security {
            key_password: Some("hush".to_owned()),
            password: Some("hush".to_owned()),
            ..Security::default()
        };
        assert!(!format!("{:?}", KafkaConfig { security, ..good() }).contains("hush"));
    }
}

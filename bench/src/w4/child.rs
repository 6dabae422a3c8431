//! The pipeline as its users run it: a process, with Kafka, PostgreSQL and Redis.

use super::market::{self, Market, SYMBOLS};
use super::program;
use anyhow::{Context as _, bail, ensure};
use marea_servers::Kafka;
use marea_sources::message::JSON;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take until every symbol may be entered.
const READY: Duration = Duration::from_secs(120);
/// How long it may take to end.
const END: Duration = Duration::from_secs(15);

/// Records that it is behind by, over all partitions, as `/metrics` says.
pub(super) fn lag(metrics: &str) -> f64 {
    let lags = metrics.lines().filter(|line| line.starts_with("marea_kafka_consumer_lag_records{"));
    lags.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// The running program.
pub(super) struct Child {
    process: std::process::Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Child {
    /// Makes the topics, and starts the program on them.
    pub(super) fn start(
        kafka: &Kafka,
        redis: &str,
        store: &str,
        topic: &str,
        partitions: u32,
        publish: &str,
        market: &Market,
    ) -> anyhow::Result<Child> {
        let accounts = format!("{topic}.accounts");
        kafka.create_topic(topic, partitions, &[])?;
        kafka.create_topic(&accounts, 1, &[])?;
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create()?;
        for (account, body) in market.accounts() {
            let headers = OwnedHeaders::new().insert(Header { key: "content-type", value: Some(JSON) });
            let record = BaseRecord::to(&accounts).key(account).payload(&body).headers(headers);
            producer.send(record).map_err(|(error, _)| error)?;
        }
        producer.flush(Duration::from_secs(30))?;

        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("live.toml"), market::LIVE)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let brokers = kafka.brokers();
        let config = format!(
            "[source]\nkind = \"kafka\"\n[kafka]\nbrokers = \"{brokers}\"\ntopic = \"{topic}\"\naccounts_topic = \"{accounts}\"\n\
             [live]\nfile = \"live.toml\"\n[store]\nurl = \"{store}\"\n[redis]\nurl = \"{redis}\"\n\
             [feed]\nlisten = \"{address}\"\npublish = \"{publish}\"\n[log]\nlevel = \"warn\"\n"
        );
        std::fs::write(folder.path().join("marea.toml"), config)?;
        let mut command = Command::new(program()?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAREA__")) {
            command.env_remove(name);
        }
        let command = command.arg("run").current_dir(folder.path()).stdout(Stdio::null());
        let process = command.spawn().context("starting marea")?;
        Ok(Child { process, address, _folder: folder })
    }

    /// Waits until every symbol may be entered.
    pub(super) fn until_allowed(&mut self, redis: &str) -> anyhow::Result<()> {
        let mut connection = redis::Client::open(redis)?.get_connection()?;
        let began = Instant::now();
        loop {
            let keys: Vec<String> = (0..SYMBOLS).map(|k| format!("verdict:M1:W{k:02}:latest")).collect();
            let verdicts: Vec<Option<Vec<u8>>> = redis::cmd("MGET").arg(&keys).query(&mut connection)?;
            let has_intent = |body: &Vec<u8>| {
                let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
                // Quotes of the history are stale by now; all else is as it will be.
                body["verdict"]["intent"] == "enter"
            };
            if verdicts.iter().flatten().filter(|body| has_intent(body)).count() == SYMBOLS {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("marea has ended: {status}");
            }
            ensure!(began.elapsed() < READY, "no verdict may be entered after {READY:?}: {:?}", verdicts.first());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What `/metrics` says.
    pub(super) fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.address)?;
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics)?;
        Ok(metrics)
    }

    /// Asks it to end.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        while began.elapsed() < END {
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "marea ended with {status}");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("marea did not end within {END:?} of SIGTERM")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

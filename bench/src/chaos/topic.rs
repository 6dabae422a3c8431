//! The topics: written little by little, as JSON and as Arrow by turns.

use super::input::{Input, Random, Sent};
use marea_model::codec::{arrow, json};
use marea_model::{Symbol, Tick};
use marea_sinks::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use marea_sources::message::{ARROW, JSON};
use std::time::Duration;

const PARTITIONS: u32 = 4;
/// The most records that go out in the same codec.
const RUN: u64 = 64;
/// How long the broker may take to confirm.
const CONFIRM: Duration = Duration::from_secs(60);

/// Two topics of a broker, and how far the input is in them.
pub(super) struct Topic {
    publisher: KafkaPublisher,
    pub(super) ticks: String,
    pub(super) accounts: String,
    random: Random,
    /// The first record that is not there.
    pub(super) published: usize,
}

fn partition(symbol: Symbol) -> i32 {
    (symbol.stable_hash() % u64::from(PARTITIONS)) as i32
}

impl Topic {
    pub(super) fn new(brokers: &str, name: &str, seed: u64) -> anyhow::Result<Topic> {
        let publisher = KafkaPublisher::new(KafkaPublisherConfig::new(brokers))?;
        let (ticks, accounts) = (name.to_owned(), format!("{name}.accounts"));
        anyhow::ensure!(publisher.ensure_topic(&ticks, PARTITIONS)?, "the topic {ticks} is there already");
        publisher.ensure_topic(&accounts, 1)?;
        Ok(Topic { publisher, ticks, accounts, random: Random(seed), published: 0 })
    }

    /// Publishes the input up to this record, and waits until the broker has it.
    pub(super) fn publish(&mut self, input: &Input, upto: usize) -> anyhow::Result<()> {
        let upto = upto.min(input.records.len());
        if upto <= self.published {
            return Ok(());
        }
        while self.published < upto {
            let end = upto.min(self.published + 1 + self.random.below(RUN) as usize);
            let run = &input.records[self.published..end];
            let as_arrow = self.random.below(2) == 0;
            let mut columns: [Vec<Tick>; PARTITIONS as usize] = Default::default();
            for record in run {
                match record {
                    Sent::Tick(tick) if as_arrow => columns[partition(tick.symbol) as usize].push(tick.clone()),
                    Sent::Tick(tick) => {
                        self.send(
                            partition(tick.symbol),
                            tick.symbol.as_str(),
                            JSON,
                            &json::encode(tick, &input.instruments),
                        )?;
                    }
                    Sent::Garbage(symbol) => {
                        self.send(partition(*symbol), symbol.as_str(), JSON, b"{\"kind\":\"trade\",")?
                    }
                    Sent::Account(snapshot) => {
                        let body = json::encode_account(snapshot);
                        let key = snapshot.account.as_str().as_bytes();
                        self.publisher.send(&self.accounts, Some(0), key, JSON, &body, None)?;
                    }
                }
            }
            for (partition, ticks) in columns.iter().enumerate().filter(|(_, ticks)| !ticks.is_empty()) {
                self.send(partition as i32, "", ARROW, &arrow::encode_stream(ticks, &input.instruments))?;
            }
            self.published = end;
        }
        self.publisher.flush(CONFIRM)?;
        Ok(())
    }

    fn send(&mut self, partition: i32, key: &str, content_type: &str, body: &[u8]) -> anyhow::Result<()> {
        Ok(self.publisher.send(&self.ticks, Some(partition), key.as_bytes(), content_type, body, None)?)
    }
}

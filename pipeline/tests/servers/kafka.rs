//! Kafka: live and historical are the same (law L6), whatever happens to the broker and to us.

use crate::common::{Feed, Market, assert_same, market};
use marea_model::ConfigUpdate;
use marea_servers::Kafka;
use marea_sinks::store::Reader;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

pub(crate) struct Topic {
    env: Vec<(String, String)>,
}

impl Topic {
    pub(crate) fn new(broker: &Kafka, name: &str) -> Topic {
        let env = [
            ("MAREA__SOURCE__KIND", "kafka".to_owned()),
            ("MAREA__KAFKA__BROKERS", broker.brokers()),
            ("MAREA__KAFKA__TOPIC", name.to_owned()),
            ("MAREA__KAFKA__ACCOUNTS_TOPIC", format!("{name}.accounts")),
            ("MAREA__FEED__LISTEN", "127.0.0.1:0".to_owned()),
        ];
        Topic { env: env.map(|(key, value)| (key.to_owned(), value)).into() }
    }

    pub(crate) fn env(&self) -> Vec<(&str, &str)> {
        self.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    fn publish(&self, market: &Market, codec: &str) {
        let args = ["publish", "ticks.csv", "--to", "kafka", "--as", codec, "--accounts", "accounts.jsonl"];
        let args = [&args[..], &["--live", "live.toml", "--format", "json"]].concat();
        let done = market.run(&args, &self.env());
        assert_eq!(done["ticks"], market.ticks, "{done}");
    }
}

#[test]
fn a_topic_gives_what_the_file_gives() {
    let market = market(30_000);
    let expected = market.expected();
    for codec in ["json", "arrow"] {
        let topic = Topic::new(marea_servers::shared::kafka(), &format!("l6.{codec}"));
        topic.publish(&market, codec);
        for workers in ["1", "2"] {
            let store = format!("{codec}{workers}.db");
            let args = ["run", "--until", &market.until, "--dump", "got", "--clock", "event", "--live", "live.toml"];
            let args = [&args[..], &["--store", &store, "--workers", workers, "--format", "json"]].concat();
            let totals = market.run(&args, &topic.env());
            assert_eq!(totals["dead"], 0, "{totals}");
            assert_same(&expected, &market.dump("got"), &format!("{codec}, {workers} workers"));
        }
    }
}

#[test]
fn a_broker_that_is_killed_and_we_too_lose_nothing_and_double_nothing() {
    killed(&[("MAREA__STORE__PATH", "killed.db")]);
}

#[test]
fn nor_with_postgresql() {
    let url = marea_servers::shared::postgres().database("killed");
    killed(&[("MAREA__STORE__URL", &url)]);
    // What analysts are told to ask is answered.
    let text = include_str!("../../../docs/queries.md");
    let queries: Vec<&str> = text.split("```sql").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(queries.len() >= 6);
    for query in queries {
        let psql = Command::new("psql").args(["-v", "ON_ERROR_STOP=1", "-c", query, &url]).output().unwrap();
        assert!(psql.status.success(), "{query}\n{}", String::from_utf8_lossy(&psql.stderr));
    }
}

fn killed(store: &[(&str, &str)]) {
    let market = market(24_000);
    let expected = market.expected();
    let broker = Kafka::start().unwrap();
    let topic = Topic::new(&broker, "killed");
    // Both topics are there before anybody reads.
    std::fs::write(market.path().join("none.csv"), "event_time,symbol,seq,kind,price,size\n").unwrap();
    let none = ["publish", "none.csv", "--to", "kafka", "--accounts", "accounts.jsonl", "--format", "json"];
    market.run(&none, &topic.env());
    // 20 minutes in some 50 seconds.
    let args = ["publish", "ticks.csv", "--to", "kafka", "--live", "live.toml", "--speed", "24x"];
    let publisher = market.start("publisher", &args, &topic.env());
    let run = ["run", "--clock", "event", "--live", "live.toml"];
    let env = [&topic.env(), store].concat();
    let mut process = market.start("run", &run, &env);
    let records = |feed: &Feed| feed.metric("marea_records_total{outcome=\"in\"}").unwrap_or_default() as u64;
    let mut feed = process.feed();
    for round in 0..5 {
        feed.wait_for("records", Duration::from_secs(60), |feed| records(feed) > 100);
        broker.kill().unwrap();
        if round % 2 == 0 {
            process.kill();
            broker.restart().unwrap();
            process = market.start("run", &run, &env);
            feed = process.feed();
        } else {
            broker.restart().unwrap();
        }
    }
    publisher.wait();
    process.terminate();
    let args = ["run", "--until", &market.until, "--dump", "got", "--clock", "event", "--live", "live.toml"];
    let args = [&args[..], &["--format", "json"]].concat();
    let totals = market.run(&args, &env);
    assert_same(&expected, &market.dump("got"), "after five kills of the broker and three of ours");
    let accounts = std::fs::read_to_string(market.path().join("accounts.jsonl")).unwrap().lines().count();
    assert_eq!(totals["records_in"], market.ticks + accounts, "0 lost, 0 twice: {totals}");
    assert_eq!(totals["dead"], 0, "{totals}");
}

fn kcat(broker: &Kafka, args: &[&str], input: &str) -> String {
    let mut kcat = Command::new("kcat");
    kcat.args(["-b", &broker.brokers()]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut kcat = kcat.spawn().unwrap();
    kcat.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = kcat.wait_with_output().unwrap();
    assert!(done.status.success(), "{args:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn what_cannot_be_counted_goes_into_a_topic_of_its_own() {
    let market = market(1_000);
    let broker = marea_servers::shared::kafka();
    let topic = Topic::new(broker, "bad");
    for name in ["bad", "bad.accounts"] {
        broker.create_topic(name, 1, &[]).unwrap();
    }
    let write = |lines: &str| kcat(broker, &["-P", "-t", "bad", "-H", "content-type=application/json"], lines);
    let early =
        r#"{"v":1,"kind":"trade","symbol":"IBM","event_time":"1812-06-24T00:00:00Z","seq":1,"price":"1","size":"1"}"#;
    write(&format!("nonsense\n{early}\n"));
    let env = [&topic.env()[..], &[("MAREA__KAFKA__DEAD_LETTERS", "bad.dlq")]].concat();
    let run = ["run", "--store", "bad.db", "--live", "live.toml"];
    let mut process = market.start("first", &run, &env);
    let dead = |feed: &Feed| feed.metric("marea_records_total{outcome=\"dead\"}").unwrap_or_default();
    let soon = Duration::from_secs(60);
    process.feed().wait_for("dead letters", soon, |feed| dead(feed) == 2.0);
    // There is no such topic yet: they wait, and nothing waits for them.
    marea_servers::wait_until(soon, "a word about it", || process.log().contains("dead letters wait in the store"));
    broker.create_topic("bad.dlq", 1, &[]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let noted = || {
        runtime.block_on(async {
            Reader::open(market.path().join("bad.db")).await.unwrap().dead_letters_upper().await.unwrap()
        })
    };
    marea_servers::wait_until(soon, "their delivery to be noted", || noted() > 0);
    process.kill();
    write("more nonsense\n");
    let before = noted();
    process = market.start("second", &run, &env);
    marea_servers::wait_until(soon, "the delivery of the last", || noted() > before);
    process.terminate();
    let got = kcat(broker, &["-C", "-t", "bad.dlq", "-e", "-q", "-f", "%k|%h|%s\n"], "");
    let got: Vec<Vec<&str>> = got.lines().map(|line| line.splitn(3, '|').collect()).collect();
    let places: Vec<&str> = got.iter().map(|fields| fields[0]).collect();
    assert_eq!(places, ["kafka:bad/0@0", "kafka:bad/0@1", "kafka:bad/0@2"], "each once: {got:?}");
    assert_eq!([got[0][2], got[1][2], got[2][2]], ["nonsense", early, "more nonsense"], "as they came");
    let said = [got[0][1], got[1][1]];
    assert!(said[0].starts_with("marea-reason=malformed,marea-field=,"), "{said:?}");
    assert!(said[1].starts_with("marea-reason=event_time,marea-field=event_time,marea-value=1812-06-24T00:00:00Z,"));
}

/// Retention has taken a part of what a restart reads again: refused; and where it is accepted, nothing that stands is
/// computed of what is left.
#[test]
fn what_retention_took_of_a_restart_is_refused_or_stands_as_it_stood() {
    let market = market(24_000);
    let broker = marea_servers::shared::kafka();
    let topic = Topic::new(broker, "taken");
    broker.create_topic("taken", 1, &[]).unwrap();
    topic.publish(&market, "json");
    let args = ["run", "--until", &market.until, "--clock", "event", "--live", "live.toml", "--store", "taken.db"];
    let run = |more: &[&str]| {
        let args = [&args[..], &["--format", "json"], more].concat();
        market.marea(&args, &topic.env()).output().unwrap()
    };
    let first = run(&["--dump", "before"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", broker.brokers()).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("taken", 0, Offset::Offset(20_000)).unwrap();
        admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    });

    let refused = run(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("kafka:taken/0: offset ") && said.contains("the broker has records from 20000 only"),
        "{said}"
    );

    for (round, notes) in [("first", 1), ("second", 1)] {
        let accepted = run(&["--accept-gap", "--dump", round]);
        let said = String::from_utf8_lossy(&accepted.stderr);
        assert!(accepted.status.success(), "{said}");
        assert!(!said.contains("recomputed otherwise"), "{said}");
        assert_same(&market.dump("before"), &market.dump(round), round);
        let events = runtime.block_on(async {
            let reader = Reader::open(market.path().join("taken.db")).await.unwrap();
            reader.config_events().await.unwrap()
        });
        let of_gaps = events.into_iter().filter_map(|event| match event {
            ConfigUpdate::Put { key, value, .. } if key.starts_with("/marea/gaps/") => Some((key, value)),
            ConfigUpdate::Delete { key, .. } => panic!("{key} was deleted"),
            _ => None,
        });
        let of_gaps: Vec<(String, String)> = of_gaps.collect();
        assert_eq!(of_gaps.len(), notes, "{round}: {of_gaps:?}");
        let (key, value) = &of_gaps[0];
        assert!(key.contains("taken"), "{key}");
        let value: serde_json::Value = serde_json::from_str(value).unwrap();
        assert_eq!(
            (value["available"].as_u64(), value["cause"].as_str()),
            (Some(20_000), Some("retention")),
            "{value}"
        );
        assert!(value["wanted"].as_u64() < Some(20_000) && value["generation"].as_u64() > Some(1), "{value}");
    }
}

//! etcd: what is written there decides, at once; and when it falls silent nobody may enter.

use crate::common::{Market, Running, market};
use marea_servers::Etcd;
use marea_sources::etcd::{Client, EtcdConfig, Write};
use marea_sources::{live_file, synthetic};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// A synthetic market, live, whose policies are in an etcd of its own.
struct Desk {
    etcd: Etcd,
    client: Client,
    verdicts: Receiver<(Instant, Value)>,
    _market: Market,
    process: Running,
}

impl Desk {
    fn new() -> Desk {
        let etcd = Etcd::start().unwrap();
        let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..EtcdConfig::default() };
        let client = Client::connect(&config).unwrap();
        let tree = live_file::parse(Path::new("demo.toml"), synthetic::LIVE_CONFIG.as_bytes()).unwrap();
        client.write(&Write { puts: tree, ..Write::default() }).unwrap();
        let market = market(10);
        let env = [("MAREA__ETCD__ENDPOINTS", &*etcd.endpoint()), ("MAREA__FEED__LISTEN", "127.0.0.1:0")];
        let mut process = market.start("run", &["run"], &env);
        let feed = process.feed();
        let (out, verdicts) = channel();
        let mut stream = TcpStream::connect(&feed.address).unwrap();
        write!(stream, "GET /api/v1/stream HTTP/1.1\r\nhost: {}\r\n\r\n", feed.address).unwrap();
        std::thread::spawn(move || {
            let mut event = String::new();
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if let Some(name) = line.strip_prefix("event:") {
                    event = name.trim().to_owned();
                }
                if let Some(data) = line.strip_prefix("data:").filter(|_| event == "verdict")
                    && let Ok(data) = serde_json::from_str(data)
                    && out.send((Instant::now(), data)).is_err()
                {
                    return;
                }
            }
        });
        feed.wait_for("verdicts", Duration::from_secs(60), |feed| feed.all_verdicts().len() >= 18);
        Desk { etcd, client, verdicts, _market: market, process }
    }

    fn put(&self, key: &str, value: &str) {
        let puts = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        self.client.write(&Write { puts, ..Write::default() }).unwrap();
    }

    /// When the first verdict of M1 on EURUSD comes that has this reason, or has it not.
    fn wait_for(&self, reason: &str, has: bool) -> Instant {
        let until = Instant::now() + SOON;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let (at, data) =
                self.verdicts.recv_timeout(left).unwrap_or_else(|_| panic!("{reason}: {has}: not in {SOON:?}"));
            let verdict = &data["verdict"];
            if data["account"] == "M1" && data["symbol"] == "EURUSD" && reasons(verdict).any(|r| r == reason) == has {
                return at;
            }
        }
    }
}

fn reasons(verdict: &Value) -> impl Iterator<Item = &str> {
    verdict["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Prints how long it took: a figure, not a test.
#[test]
fn a_policy_that_is_put_changes_the_verdict_in_the_feed() {
    let desk = Desk::new();
    let mut took = Vec::new();
    for i in 0..200 {
        let begun = Instant::now();
        desk.put("/echo/policy/M1/enabled", if i % 2 == 0 { "false" } else { "true" });
        took.push(desk.wait_for("ACCOUNT_DISABLED", i % 2 == 0) - begun);
    }
    took.sort();
    println!("from before the put to the verdict in the stream: p50 {:?}, p99 {:?}", took[100], took[197]);
    // A window under a lease ends when the lease does.
    let puts = BTreeMap::from([("/echo/windows/M1/EURUSD/news/active".to_owned(), "true".to_owned())]);
    desk.client.write(&Write { puts, ttl: Some(Duration::from_secs(2)), ..Write::default() }).unwrap();
    let begun = desk.wait_for("NO_TRADE_WINDOW", true);
    let ended = desk.wait_for("NO_TRADE_WINDOW", false);
    assert!(ended - begun > Duration::from_secs(1), "{:?}", ended - begun);
    desk.process.terminate();
}

#[test]
fn a_silent_etcd_blocks_every_entry_within_five_seconds() {
    let mut desk = Desk::new();
    let feed = desk.process.feed();
    let stale =
        |verdicts: &[Value]| verdicts.iter().all(|v| v["intent"] == "exit" || reasons(v).any(|r| r == "POLICY_STALE"));
    assert!(!stale(&feed.all_verdicts()));
    let frozen = Instant::now();
    desk.etcd.pause().unwrap();
    feed.wait_for("POLICY_STALE", SOON, |feed| stale(&feed.all_verdicts()));
    let took = frozen.elapsed();
    // Its own 5 s begin with the last read that was answered.
    assert!(took < Duration::from_millis(5_500), "{took:?}");
    assert!(feed.all_verdicts().iter().all(|v| v["intent"] == "exit" || v["allow"] == false));
    desk.etcd.resume().unwrap();
    let none = |verdicts: &[Value]| !verdicts.iter().any(|v| reasons(v).any(|r| r == "POLICY_STALE"));
    feed.wait_for("no POLICY_STALE", SOON, |feed| none(&feed.all_verdicts()));
    println!("blocked {took:?} after it fell silent");
    desk.process.terminate();
}

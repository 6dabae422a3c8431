//! RabbitMQ: a stream and a queue give what the file gives (law L6), and what a queue delivers again counts once.

use crate::common::{Feed, Market, assert_same, market};
use marea_servers::{Proxy, shared, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const PATIENT: Duration = Duration::from_secs(60);

fn env<'a>(url: &'a str, kind: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("MAREA__SOURCE__KIND", "rabbitmq"),
        ("MAREA__RABBITMQ__URL", url),
        ("MAREA__RABBITMQ__KIND", kind),
        ("MAREA__RABBITMQ__ACCOUNTS", "marea.accounts"),
        ("MAREA__FEED__LISTEN", "127.0.0.1:0"),
    ]
}

fn publish(market: &Market, codec: &str, env: &[(&str, &str)]) {
    let args = ["publish", "ticks.csv", "--to", "rabbitmq", "--as", codec, "--accounts", "accounts.jsonl"];
    let args = [&args[..], &["--live", "live.toml", "--format", "json"]].concat();
    let done = market.run(&args, env);
    assert_eq!(done["ticks"], market.ticks, "{done}");
}

fn run_to_the_end(market: &Market, store: &str, env: &[(&str, &str)]) -> Value {
    let args = ["run", "--until", &market.until, "--dump", "got", "--clock", "event", "--live", "live.toml"];
    market.run(&[&args[..], &["--store", store, "--format", "json"]].concat(), env)
}

#[test]
fn a_stream_and_a_queue_give_what_the_file_gives() {
    let market = market(20_000);
    let expected = market.expected();
    for (kind, codec) in [("stream", "json"), ("stream", "arrow"), ("queue", "json")] {
        let url = shared::rabbitmq().vhost(&format!("l6-{kind}-{codec}"));
        publish(&market, codec, &env(&url, kind));
        let totals = run_to_the_end(&market, &format!("{kind}-{codec}.db"), &env(&url, kind));
        assert_eq!(totals["dead"], 0, "{totals}");
        assert_same(&expected, &market.dump("got"), &format!("{kind}, {codec}"));
    }
}

#[test]
fn what_was_committed_and_not_acknowledged_at_a_kill_counts_once() {
    const VHOST: &str = "unacknowledged";
    const LATE: &str =
        r#"{"kind":"trade","symbol":"LATE","event_time":1600000000000000000,"seq":1,"price":"1","size":"1"}"#;
    const SNAPSHOT: &str = r#"{"account":"M1","event_time":1600000000000000000,"seq":1,"equity":"1","balance":"1","currency":"USD","positions":[]}"#;
    let broker = shared::rabbitmq();
    let url = broker.vhost(VHOST);
    let market = market(16_000);
    publish(&market, "json", &env(&url, "queue"));
    // A message that its producer writes twice under one id is known, and counts once.
    let lines = |name: &str| std::fs::read_to_string(market.path().join(name)).unwrap();
    let distinct = |text: &str| text.lines().collect::<BTreeSet<_>>().len() as u64;
    let before = distinct(&lines("ticks.csv")) - 1 + distinct(&lines("accounts.jsonl"));

    let (login, server) = url.rsplit_once('/').unwrap().0.rsplit_once('@').unwrap();
    let proxy = Proxy::to(server).unwrap();
    let through = format!("{login}@{}/{VHOST}?heartbeat=60", proxy.address());
    let run = ["run", "--clock", "event", "--live", "live.toml", "--store", "killed.db"];
    let mut process = market.start("run", &run, &env(&through, "queue"));
    let records = |feed: &Feed| feed.metric("marea_records_total{outcome=\"in\"}").unwrap_or_default() as u64;
    let feed = process.feed();
    feed.wait_for("what was published", PATIENT, |feed| records(feed) == before);
    // All are taken before the first is committed; from then on no acknowledgement arrives.
    process.pause();
    proxy.hold_acknowledgements();
    for _ in 0..2 {
        broker.publish(VHOST, "marea.ticks", r#"{"kind":"#);
    }
    broker.publish(VHOST, "marea.ticks", LATE);
    broker.publish(VHOST, "marea.accounts", SNAPSHOT);
    wait_until(PATIENT, "both queues deliver", || proxy.delivered() == 2);
    process.resume();
    feed.wait_for("the last ones", PATIENT, |feed| records(feed) == before + 4);
    process.kill();
    proxy.cut();
    // The same bytes once more, as another message.
    broker.publish(VHOST, "marea.ticks", r#"{"kind":"#);

    let totals = run_to_the_end(&market, "killed.db", &env(&url, "queue"));
    println!("{totals}");
    assert_eq!(totals["records_in"], before + 5, "each once: {totals}");
    assert_eq!(totals["dead"], 4, "three that cannot be read, one late: {totals}");
    let sum: i64 = ["accepted", "duplicate", "dead", "held"].iter().map(|name| totals[*name].as_i64().unwrap()).sum();
    assert_eq!(totals["records_in"], sum, "{totals}");
    // All of it is acknowledged now.
    let totals = run_to_the_end(&market, "killed.db", &env(&url, "queue"));
    assert_eq!(totals["records_in"], before + 5, "{totals}");
}

#[test]
fn a_store_of_a_stream_is_refused_for_a_queue() {
    let market = market(500);
    let url = shared::rabbitmq().vhost("kind-changed");
    publish(&market, "json", &env(&url, "stream"));
    run_to_the_end(&market, "kinds.db", &env(&url, "stream"));
    let args = ["run", "--until", &market.until, "--clock", "event", "--live", "live.toml", "--store", "kinds.db"];
    let output = market.marea(&args, &env(&url, "queue")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for partition in ["rabbitmq:stream:kind-changed/marea.", "rabbitmq:queue:kind-changed/marea.ticks"] {
        assert!(said.contains(partition), "{said}");
    }
}

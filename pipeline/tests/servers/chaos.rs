//! Killed again and again, and nothing shows (law L5): the chaos runner, small.

use crate::common::{Market, assert_same, market};
use crate::kafka::Topic;
use marea_bench::chaos::{self, Options, StoreKind};
use std::time::Duration;

fn chaos(store: StoreKind, pg_restarts: usize, cut_commits: usize) {
    let options = Options {
        seed: 1,
        kills: 9,
        ticks: 50_000,
        store,
        failpoints: 1,
        pg_restarts,
        cut_commits,
        marea: Some(env!("CARGO_BIN_EXE_marea").into()),
        quiet: false,
    };
    let outcome = chaos::run(&options, marea_servers::shared::kafka()).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{outcome}");
    assert!(outcome.problems.is_empty(), "{outcome}");
    assert!(outcome.missed().is_empty(), "no process died at {:?}\n{outcome}", outcome.missed());
}

#[test]
fn a_process_that_is_killed_anywhere_goes_on_to_the_byte() {
    chaos(StoreKind::Sqlite, 0, 0);
}

#[test]
fn and_with_postgresql_that_is_killed_as_well_and_cut_off_in_its_commits() {
    chaos(StoreKind::Postgres, 2, 4);
}

/// Publishes a part of the market's ticks, and its accounts with the first one.
fn publish(market: &Market, topic: &Topic, name: &str, ticks: &[&str]) {
    let text = std::fs::read_to_string(market.path().join("ticks.csv")).unwrap();
    let header = text.lines().next().unwrap();
    std::fs::write(market.path().join(name), [&[header], ticks, &[""]].concat().join("\n")).unwrap();
    let mut args = vec!["publish", name, "--to", "kafka", "--live", "live.toml", "--format", "json"];
    if name == "first.csv" {
        args.extend(["--accounts", "accounts.jsonl"]);
    }
    assert_eq!(market.run(&args, &topic.env())["ticks"], ticks.len());
}

/// A process that stands still is not gone: its session ends when an operator or the server ends it. Then another one takes
/// over; and the first, when it wakes up, finds that out before it writes anything.
#[test]
fn a_process_that_was_frozen_stops_by_itself_when_another_has_taken_over() {
    let market = market(20_000);
    let expected = market.expected();
    let postgres = marea_servers::shared::postgres();
    let url = postgres.database("frozen");
    let topic = Topic::new(marea_servers::shared::kafka(), "frozen");
    let env = [&topic.env()[..], &[("MAREA__STORE__URL", url.as_str())]].concat();
    let text = std::fs::read_to_string(market.path().join("ticks.csv")).unwrap();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    publish(&market, &topic, "first.csv", &lines[..lines.len() / 2]);
    let mut first = market.start("first", &["run", "--clock", "event", "--live", "live.toml"], &env);
    first.feed().wait_for("records", Duration::from_secs(60), |feed| {
        feed.metric("marea_records_total{outcome=\"in\"}").unwrap_or_default() > 100.0
    });
    first.pause();
    publish(&market, &topic, "second.csv", &lines[lines.len() / 2..]);
    let args = ["run", "--until", &market.until, "--dump", "got", "--clock", "event", "--live", "live.toml"];
    let second = market.start("second", &args, &env);
    marea_servers::wait_until(Duration::from_secs(60), "standing by", || second.log().contains("standing by"));
    let end = "SELECT pg_terminate_backend(l.pid, 5000) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
               WHERE l.locktype = 'advisory' AND l.granted AND d.datname = 'frozen'";
    assert_eq!(postgres.query(end).unwrap().trim(), "t");
    second.wait();
    assert_same(&expected, &market.dump("got"), "after another took over");
    first.resume();
    let log = first.wait_for_failure();
    assert!(log.contains("another process has taken over"), "{log}");
    let args = ["run", "--until", &market.until, "--dump", "after", "--clock", "event", "--live", "live.toml"];
    let totals = market.run(&[&args[..], &["--format", "json"]].concat(), &env);
    assert_same(&expected, &market.dump("after"), "after the first woke up");
    let accounts = std::fs::read_to_string(market.path().join("accounts.jsonl")).unwrap().lines().count();
    assert_eq!(totals["records_in"], market.ticks + accounts, "0 lost, 0 twice: {totals}");
}

//! `publish = "fast"`: before the commit, and what becomes of it.

use crate::desk::Desk;
use crate::fixture::*;
use marea_model::BlockReason;
use marea_model::output::{Change, ClosedEpoch};
use redis::Connection;
use serde_json::json;
use std::time::{Duration, Instant};

pub fn blocked(reason: BlockReason) -> Vec<Change> {
    vec![up(judged(verdict("M1", "IBM", vec![reason])))]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_value_has_no_seq_and_touches_no_stream_until_it_is_committed() {
    let mut desk = Desk::new().await;
    desk.commit(blocked(BlockReason::KillSwitch)).await;
    desk.converges("the first").await;
    let epoch = desk.close(blocked(BlockReason::QuoteStale));
    desk.sink.early(&epoch);
    desk.wait_for("early", |desk| desk.get("verdict:M1:IBM:latest").unwrap()["epoch"] == epoch.epoch).await;
    let early = desk.get("verdict:M1:IBM:latest").unwrap();
    assert_eq!((&early["seq"], &early["verdict"]["reasons"]), (&json!(null), &json!(["QUOTE_STALE"])));
    assert_eq!(desk.stream("verdict:M1:stream").unwrap().len(), 1);
    // Looking at every key again and again does not take it back.
    let rebuilds = desk.metric("marea_redis_rebuilds_total ");
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap(), early);
    assert_eq!(desk.metric("marea_redis_rebuilds_total "), rebuilds);
    desk.commit_all(&[epoch]).await;
    desk.converges("committed").await;
    assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap()["seq"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_committed_is_withdrawn_by_the_restart() {
    let mut desk = Desk::new().await;
    desk.commit(blocked(BlockReason::KillSwitch)).await;
    desk.converges("the first").await;
    let never = desk.close(vec![up(judged(verdict("M1", "IBM", vec![]))), up(judged(verdict("M2", "IBM", vec![])))]);
    desk.sink.early(&never);
    desk.wait_for("early", |desk| desk.get("verdict:M2:IBM:latest").is_some()).await;
    desk.epoch -= 1;
    let mut desk = desk.restart().await;
    desk.converges("the restart").await;
    let body = desk.get("verdict:M1:IBM:latest").unwrap();
    assert_eq!((&body["seq"], &body["verdict"]["allow"]), (&json!(1), &json!(false)));
    assert_eq!(body["generation"], 2, "by a higher generation");
    assert_eq!(desk.get("verdict:M2:IBM:latest").unwrap()["deleted"], true);
}

/// Whichever way it comes.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_value_that_comes_after_its_commit_changes_nothing() {
    for (way, mut desk) in [("direct", direct().await), ("queued", Desk::new().await)] {
        let sent = |desk: &Desk| desk.metric(&format!("marea_redis_early_values_total{{way=\"{way}\"}} "));
        let epoch = desk.close(blocked(BlockReason::NoEquity));
        desk.commit_all(std::slice::from_ref(&epoch)).await;
        desk.converges("committed").await;
        let (committed, before) = (desk.get("verdict:M1:IBM:latest").unwrap(), sent(&desk));
        assert!(committed["seq"].as_u64().is_some());
        desk.sink.early(&epoch);
        desk.wait_for("sent", |desk| sent(desk) > before).await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap(), committed, "{way}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A kill switch: more values than may be on their way at once, and their commit right behind them.
#[tokio::test(flavor = "multi_thread")]
async fn very_many_early_values_go_before_their_commit() {
    const ACCOUNTS: usize = 10;
    const SYMBOLS: usize = 1_500;
    let changes = |reason| -> Vec<Change> {
        let names = |n, letter| (0..n).map(move |i| format!("{letter}{i:04}"));
        let all =
            names(ACCOUNTS, 'M').flat_map(|account| names(SYMBOLS, 'S').map(move |symbol| (account.clone(), symbol)));
        all.map(|(account, symbol)| up(judged(verdict(&account, &symbol, vec![reason])))).collect()
    };
    let mut desk = Desk::new().await;
    desk.commit(changes(BlockReason::QuoteStale)).await;
    desk.converges("known").await;
    let epoch = desk.close(changes(BlockReason::KillSwitch));
    desk.sink.early(&epoch);
    desk.commit_all(&[epoch]).await;
    desk.converges("committed").await;
    let rebuilds = desk.metric("marea_redis_rebuilds_total ");
    assert_eq!(rebuilds, 1.0, "no session ended");
}

/// How many early values went the shortest way.
fn directly(desk: &Desk) -> f64 {
    desk.metric("marea_redis_early_values_total{way=\"direct\"} ")
}

/// Commits values, early before, until one more has gone the shortest way.
pub async fn until_direct(desk: &mut Desk) {
    desk.early = true;
    let (before, began) = (directly(desk), Instant::now());
    for reason in [BlockReason::QuoteStale, BlockReason::KillSwitch].into_iter().cycle() {
        assert!(began.elapsed() < crate::desk::SOON, "no early value goes the shortest way");
        desk.commit(blocked(reason)).await;
        if directly(desk) > before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A desk of a verdict, whose early values go the shortest way.
async fn direct() -> Desk {
    let mut desk = Desk::new().await;
    until_direct(&mut desk).await;
    desk.commit(blocked(BlockReason::AccountDisabled)).await;
    desk.converges("it").await;
    desk
}

/// Where the connection for early values comes from.
fn address(desk: &Desk) -> Option<String> {
    let client = desk.client("marea-early")?;
    Some(client.split_once(" addr=")?.1.split(' ').next()?.to_owned())
}

/// Whether the value of this epoch stands.
pub fn reads(desk: &Desk, epoch: &ClosedEpoch) -> bool {
    let key = if desk.hash_tags { "verdict:{M1}:{IBM}:latest" } else { "verdict:M1:IBM:latest" };
    desk.get(key).is_some_and(|body| body["epoch"] == epoch.epoch)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_value_is_written_by_whoever_has_it() {
    let mut desk = direct().await;
    let (before, epoch) = (directly(&desk), desk.close(blocked(BlockReason::QuoteStale)));
    desk.sink.early(&epoch);
    assert_eq!(directly(&desk), before + 1.0, "it is when the call returns");
    desk.wait_for("early", |desk| reads(desk, &epoch)).await;
    assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap()["seq"], json!(null));
    desk.commit_all(&[epoch]).await;
    // A key that is new is known to the index before it is written.
    let new = desk.close(vec![up(judged(verdict("M2", "IBM", vec![])))]);
    desk.sink.early(&new);
    desk.wait_for("a new key", |desk| desk.get("verdict:M2:IBM:latest").is_some()).await;
    let indexed: bool =
        redis::Commands::hexists(&mut desk.redis().unwrap(), "marea:index", "verdict:M2:IBM:latest").unwrap();
    assert!(indexed);
    desk.commit_all(&[new]).await;
    desk.converges("committed").await;
    assert_eq!(desk.metric("marea_redis_rebuilds_total "), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_early_values_that_come_too_late_nobody_is_told() {
    let mut desk = direct().await;
    let mut connection: Connection = redis::Client::open(desk.server.url()).unwrap().get_connection().unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut channel = connection.as_pubsub();
    channel.subscribe("verdict:M1").unwrap();
    let [older, newer, last] = [BlockReason::QuoteStale, BlockReason::NoEquity, BlockReason::KillSwitch]
        .map(|reason| desk.close(blocked(reason)));
    for epoch in [&newer, &older, &last] {
        desk.sink.early(epoch);
    }
    let mut told = Vec::new();
    while told.last() != Some(&last.epoch) {
        let message: String = channel.get_message().unwrap().get_payload().unwrap();
        let message: serde_json::Value = serde_json::from_str(&message).unwrap();
        if message["seq"].is_null() {
            told.push(message["epoch"].as_u64().unwrap());
        }
    }
    // What came before the subscription may still be told.
    told.retain(|epoch| *epoch >= older.epoch);
    assert_eq!(told, [newer.epoch, last.epoch]);
}

/// Whatever becomes of the connection, its values come with their commit, and there is another one.
#[tokio::test(flavor = "multi_thread")]
async fn the_shortest_way_of_early_values_is_mended() {
    let mut desk = direct().await;
    let first = address(&desk).unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("ADDR").arg(&first).exec(&mut desk.redis().unwrap()).unwrap();
    // A write into a connection that is gone is noticed at the next one.
    let began = Instant::now();
    while address(&desk).is_none_or(|address| address == first) {
        assert!(began.elapsed() < crate::desk::SOON, "no other connection");
        until_direct(&mut desk).await;
    }
    desk.converges("mended").await;
    assert_eq!(desk.metric("marea_redis_rebuilds_total "), 1.0, "no session ended");
}

/// What finds no room waits, and the connection stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stands_still_delays_no_worker() {
    let mut desk = direct().await;
    let queued = |desk: &Desk| desk.metric("marea_redis_early_values_total{way=\"queued\"} ");
    let (connection, direct_before, queued_before) = (address(&desk), directly(&desk), queued(&desk));
    desk.server.pause().unwrap();
    let began = Instant::now();
    // If one waited for Redis, this would never end.
    for reason in [BlockReason::QuoteStale, BlockReason::KillSwitch].into_iter().cycle().take(4_000) {
        let epoch = desk.close(blocked(reason));
        desk.sink.early(&epoch);
        if began.elapsed() > Duration::from_millis(500) {
            break;
        }
    }
    desk.server.resume().unwrap();
    // 64 KiB, of values of half a KiB and more.
    let written = directly(&desk) - direct_before;
    assert!((1.0..=128.0).contains(&written), "{written}");
    desk.commit(blocked(BlockReason::NoEquity)).await;
    desk.converges("resumed").await;
    assert!(queued(&desk) > queued_before);
    assert_eq!(address(&desk), connection);
}

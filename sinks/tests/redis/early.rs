//! `publish = "fast"`: before the commit, and what becomes of it.

use crate::desk::Desk;
use crate::fixture::*;
use marea_model::BlockReason;
use marea_model::output::Change;
use serde_json::json;
use std::time::{Duration, Instant};

fn blocked(reason: BlockReason) -> Vec<Change> {
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

#[tokio::test(flavor = "multi_thread")]
async fn an_early_value_that_comes_after_its_commit_changes_nothing() {
    let mut desk = Desk::new().await;
    let epoch = desk.close(blocked(BlockReason::KillSwitch));
    desk.commit_all(std::slice::from_ref(&epoch)).await;
    desk.converges("committed").await;
    desk.sink.early(&epoch);
    desk.wait_for("sent", |desk| desk.metric("marea_stage_latency_seconds_count{stage=\"early\"} ") > 0.0).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap()["seq"], 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
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

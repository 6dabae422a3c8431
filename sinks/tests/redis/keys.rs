//! Each key: its body, its life, who may not write it.

use crate::desk::Desk;
use crate::fixture::*;
use marea_model::output::{Change, MetricsWindow};
use marea_model::recommendation::{Action, Status};
use marea_model::time::MILLI;
use marea_model::{BlockReason, Output, Timeframe};
use marea_sinks::Clock;
use redis::Commands;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_its_body_and_its_life() {
    let mut desk = Desk::new().await;
    let mut hold = recommendation("EUR/USD", Action::Hold, 18_204, 2);
    hold.status = Status::Invalidated;
    desk.commit(vec![
        up(Output::Bar(bar("IBM", Timeframe::M1, OPEN, [18_190, 18_215, 18_190, 18_201], 2))),
        up(Output::Bar(bar("IBM", Timeframe::M1, OPEN + 1, [18_190, 18_215, 18_190, 18_202], 2))),
        up(Output::Metrics(Box::new(metrics("IBM", "a", MetricsWindow::Days30, Some(0.5))))),
        up(Output::Metrics(Box::new(metrics("IBM", "b", MetricsWindow::Days30, None)))),
        up(Output::Metrics(Box::new(metrics("IBM", "c", MetricsWindow::Days30, Some(2.0))))),
        up(Output::Metrics(Box::new(metrics("IBM", "c", MetricsWindow::All, Some(3.0))))),
        up(recommended(hold)),
        up(recommended(recommendation("IBM", Action::Buy, 18_204, 2))),
        up(judged(verdict("M1", "IBM", vec![]))),
    ])
    .await;
    desk.wait_for("a heartbeat", |desk| desk.get("marea:heartbeat").is_some_and(|beat| beat["seq"] == 3)).await;
    let generation = desk.store.standing().generation;

    let body = desk.get("recommendation:IBM:latest").unwrap();
    let head = (&body["seq"], &body["epoch"], &body["generation"], &body["valid_until"]);
    assert_eq!(head, (&json!(2), &json!(desk.epoch), &json!(generation), &body["recommendation"]["expires_at"]));
    assert_eq!((&body["symbol"], &body["recommendation"]["action"]), (&json!("IBM"), &json!("BUY")));
    let ttl = desk.ttl_ms("recommendation:IBM:latest");
    assert!((1_000_000..=1_200_000).contains(&ttl), "20 minutes, its expiry: {ttl}");

    let body = desk.get("verdict:M1:IBM:latest").unwrap();
    assert_eq!((&body["seq"], &body["account"], &body["verdict"]["allow"]), (&json!(3), &json!("M1"), &json!(true)));
    assert_eq!(body["valid_until"], body["verdict"]["valid_until"]);
    assert_eq!(desk.ttl_ms("verdict:M1:IBM:latest"), -1);

    let body = desk.get("market_data:IBM:1m:latest").unwrap();
    assert_eq!(
        (&body["close"], &body["generation"], &body["timeframe"]),
        (&json!(182.02), &json!(generation), &json!("1m"))
    );
    assert!((800_000..=900_000).contains(&desk.ttl_ms("market_data:IBM:1m:latest")));

    let mut redis = desk.redis().unwrap();
    let ranked: Vec<(String, f64)> = redis.zrevrange_withscores("strategy_rankings:IBM", 0, -1).unwrap();
    assert_eq!(ranked, [("c".to_owned(), 2.0), ("a".to_owned(), 0.5)], "without a Sharpe ratio there is no rank");
    let ranked: Vec<(String, f64)> = redis.zrevrange_withscores("recommendations:ranking", 0, -1).unwrap();
    assert_eq!(ranked, [("IBM".to_owned(), 78.0)], "an invalidated one has none");

    let body = desk.get("backtest:c:result").unwrap();
    let windows: Vec<&str> =
        body["results"].as_array().unwrap().iter().map(|r| r["window"].as_str().unwrap()).collect();
    assert_eq!((&body["strategy"], windows), (&json!("c"), vec!["all", "30d"]));
    assert!((600_000_000..=604_800_000).contains(&desk.ttl_ms("backtest:c:result")), "7 days");

    assert_eq!(desk.stream("recommendation:IBM:stream").unwrap()[&2], desk.get("recommendation:IBM:latest").unwrap());
    assert_eq!(desk.stream("verdict:M1:stream").unwrap()[&3], desk.get("verdict:M1:IBM:latest").unwrap());

    let beat = desk.get("marea:heartbeat").unwrap();
    assert_eq!(
        (&beat["seq"], &beat["epoch"], &beat["generation"]),
        (&json!(3), &json!(desk.epoch), &json!(generation))
    );
    let (left, ttl) = (beat["deadline_ms"].as_i64().unwrap() - wall_ms(), desk.ttl_ms("marea:heartbeat"));
    assert!((left - ttl).abs() < 2_000 && ttl <= 5_000, "{left} {ttl}");
    // Nothing is committed any more: it goes.
    desk.wait_for("no heartbeat", |desk| desk.get("marea:heartbeat").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retracted_is_deleted_and_announced_and_what_expires_is_gone() {
    let mut desk = Desk::with(Clock::Wall, false).await;
    let client = redis::Client::open(desk.server.url()).unwrap();
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut connection = client.get_connection().unwrap();
        let mut subscribed = connection.as_pubsub();
        subscribed.subscribe("recommendation:IBM").unwrap();
        said.send("{}".to_owned()).unwrap();
        while let Ok(message) = subscribed.get_message() {
            if said.send(message.get_payload().unwrap()).is_err() {
                return;
            }
        }
    });
    heard.recv().unwrap();
    let mut row = recommendation("IBM", Action::Buy, 18_204, 2);
    row.expires_at = (wall_ms() + 3_600_000 * 5) * MILLI;
    desk.commit(vec![up(recommended(row.clone()))]).await;
    desk.wait_for("a value", |desk| desk.get("recommendation:IBM:latest").is_some()).await;
    let ttl = desk.ttl_ms("recommendation:IBM:latest");
    assert!((3_500_000..=3_600_000).contains(&ttl), "an hour at most: {ttl}");
    desk.redis().unwrap().pexpire::<_, ()>("recommendation:IBM:latest", 3_000_000).unwrap();
    desk.wait_for("refreshed", |desk| desk.ttl_ms("recommendation:IBM:latest") > 3_400_000).await;

    desk.commit(vec![Change::Delete(recommended(row.clone()))]).await;
    desk.wait_for("no value", |desk| desk.get("recommendation:IBM:latest").unwrap()["deleted"] == true).await;
    let ttl = desk.ttl_ms("recommendation:IBM:latest");
    assert!((3_500_000..=3_600_000).contains(&ttl), "for an hour: {ttl}");
    // Whoever is late does not bring it back.
    let late = closed(desk.epoch - 1, vec![up(recommended(row.clone()))]);
    desk.sink.early(&late);
    desk.commit(vec![up(judged(verdict("M1", "IBM", vec![])))]).await;
    desk.wait_for("what came after", |desk| desk.get("verdict:M1:IBM:latest").is_some()).await;
    assert_eq!(desk.get("recommendation:IBM:latest").unwrap()["deleted"], true);
    // What stood when the session began may be told twice.
    let mut told: Vec<serde_json::Value> = Vec::new();
    while told.len() < 2 {
        let message = serde_json::from_str(&heard.recv_timeout(Duration::from_secs(20)).unwrap()).unwrap();
        if told.last() != Some(&message) {
            told.push(message);
        }
    }
    assert_eq!((&told[0]["seq"], &told[0]["deleted"]), (&json!(1), &json!(null)));
    assert_eq!(
        (&told[1]["seq"], &told[1]["deleted"], &told[1]["recommendation"]),
        (&json!(2), &json!(true), &json!(null))
    );
    assert_eq!(desk.stream("recommendation:IBM:stream").unwrap()[&2], told[1]);

    row.expires_at = (wall_ms() + 2_000) * MILLI;
    desk.commit(vec![up(recommended(row))]).await;
    desk.wait_for("in the stream", |desk| desk.stream("recommendation:IBM:stream").is_some_and(|s| s.len() == 3)).await;
    desk.wait_for("gone", |desk| desk.get("recommendation:IBM:latest").is_none()).await;
    assert!(desk.feed.view().recommendation(symbol("IBM")).is_some(), "though it stands in the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn braces_are_written_where_they_are_asked_for() {
    let mut desk = Desk::with(Clock::Event, true).await;
    let rows =
        [up(recommended(recommendation("IBM", Action::Buy, 18_204, 2))), up(judged(verdict("M1", "IBM", vec![])))];
    desk.commit(rows.into()).await;
    desk.wait_for("values", |desk| desk.get("verdict:{M1}:{IBM}:latest").is_some()).await;
    desk.wait_for("values", |desk| desk.get("recommendation:{IBM}:latest").is_some()).await;
    assert!(desk.stream("recommendation:{IBM}:stream").unwrap().len() == 1);
    let slot = |key: &str| -> u64 {
        redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut desk.redis().unwrap()).unwrap_or_default()
    };
    assert_eq!(slot("verdict:{M1}:{IBM}:latest"), slot("verdict:{M1}:stream"));
}

/// The one that was taken over from writes nothing any more, though it still has something to write.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_refused() {
    let mut desk = Desk::new().await;
    desk.trade(1).await;
    desk.converges("the first").await;
    let (old_sink, old_feed, old_task) = (desk.sink.clone(), desk.feed.clone(), desk.task);
    desk.task = tokio::spawn(async {});
    let generation = desk.store.standing().generation;
    let mut desk = desk.restart().await;
    desk.trade(2).await;
    desk.converges("the second").await;
    let late = closed(desk.epoch + 10, vec![]);
    let payload = desk.get("verdict:M1:IBM:latest").unwrap()["verdict"].to_string();
    let entry = marea_sinks::store::AuditEntry {
        seq: 999,
        epoch: late.epoch,
        generation,
        key: marea_sinks::store::AuditKey::Verdict(account("M1"), symbol("IBM")),
        payload: Some(payload.into()),
    };
    let totals = marea_model::output::Totals::default();
    let committed =
        marea_sinks::Committed { upper: late.epoch + 1, generation, last_seq: 999, totals, audit: vec![entry] };
    old_feed.publish(std::slice::from_ref(&late), &committed);
    old_sink.committed(&[late], &committed);
    tokio::time::timeout(crate::desk::SOON, old_task).await.expect("it ends").unwrap();
    assert!(desk.get("verdict:M1:IBM:latest").unwrap()["seq"] != 999);
    desk.trade(3).await;
    desk.converges("the second goes on").await;
    let blocked = vec![BlockReason::KillSwitch];
    desk.commit(vec![up(judged(verdict("M1", "IBM", blocked)))]).await;
    desk.converges("and on").await;
}

/// What was retracted while Redis heard nothing goes by the audit, also if no index names it any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_index_does_not_name_is_withdrawn_all_the_same() {
    let mut desk = Desk::new().await;
    let row = judged(verdict("M1", "IBM", vec![]));
    desk.commit(vec![up(row.clone())]).await;
    desk.converges("the first").await;
    desk.task.abort();
    desk.wait_for("it ends", |desk| desk.task.is_finished()).await;
    desk.commit(vec![Change::Delete(row)]).await;
    desk.redis().unwrap().del::<_, ()>("marea:index").unwrap();
    assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap()["verdict"]["allow"], true);
    let mut desk = desk.restart().await;
    desk.converges("the restart").await;
    assert_eq!(desk.get("verdict:M1:IBM:latest").unwrap()["deleted"], true);
}

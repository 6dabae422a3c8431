//! Metrics and indicators, which follow the rest.

use super::{Place, on_both};
use crate::fixture::*;
use marea_model::live::ConfigUpdate;
use marea_model::output::{Change, ClosedEpoch, Key, MetricsWindow, Rows};
use marea_model::time::SECOND;
use marea_model::{BlockReason, MetricsRow, Nanos, Output, Progress, Timeframe};
use marea_sinks::{Store, StoreError};
use std::sync::Arc;

on_both! {
    metrics_and_indicators_follow_and_the_newest_stands,
    what_comes_by_table_follows_in_the_order_of_epochs,
    their_upper_is_where_metrics_were_asked_for,
    what_a_kill_left_out_is_written_anew_and_is_no_alarm,
    a_row_that_was_due_is_found_though_its_bar_has_sealed,
    whoever_was_overtaken_lets_nothing_follow,
    a_restart_reads_the_last_change_of_each_key,
}

fn sharpe(value: f64) -> Output {
    Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::All, Some(value))))
}

fn of(i: i64, value: f64) -> Output {
    indicator("ema(12)", "IBM", OPEN + i * 60 * SECOND, value)
}

async fn stands(place: &Place) -> Vec<String> {
    let metrics = place.rows("SELECT sharpe || ' @' || epoch FROM backtest_metrics").await;
    let rows = "SELECT value || ' @' || epoch FROM indicators ORDER BY open_time";
    [metrics, place.rows(rows).await].concat()
}

async fn metrics_and_indicators_follow_and_the_newest_stands(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let late = |epoch, value| closed(epoch, vec![up(of(0, value)), up(of(epoch as i64, value)), up(sharpe(value))]);
    let mut first = late(1, 0.25);
    first.changes.push(up(judged(verdict("M1", "IBM", vec![BlockReason::NoPolicy]))));
    store.commit(&[first, late(2, 0.5)]).await.unwrap();
    assert_eq!(place.rows("SELECT reasons FROM verdicts").await, ["NO_POLICY"], "what is urgent does not wait");
    assert_eq!(stands(&place).await, [""; 0]);
    assert_eq!((store.standing().metrics_upper, store.standing().indicators_low), (0, OPEN));
    assert!(!store.follow().await.unwrap(), "one chunk was enough");
    assert_eq!(stands(&place).await, ["0.5 @2", "0.5 @2", "0.25 @1", "0.5 @2"]);
    assert_eq!((store.standing().metrics_upper, store.standing().indicators_low), (3, Nanos::MAX));
    // Once a second at most: the next pass has not begun, and takes what comes meanwhile.
    store.commit(&[late(3, 0.75), closed(4, vec![Change::Delete(of(0, 0.75)), up(sharpe(1.5))])]).await.unwrap();
    assert!(!store.follow().await.unwrap());
    assert_eq!(stands(&place).await.len(), 4);
    store.settle().await.unwrap();
    assert_eq!(stands(&place).await, ["1.5 @4", "0.25 @1", "0.5 @2", "0.75 @3"]);
    let standing = store.standing().clone();
    store.close().await.unwrap();
    let again = Store::open(place.target()).await.unwrap();
    assert_eq!((again.standing().metrics_upper, again.standing().indicators_low), (5, Nanos::MAX));
    assert_eq!(again.standing().upper, standing.upper);
}

async fn what_comes_by_table_follows_in_the_order_of_epochs(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let named = |strategy, value| metrics("IBM", strategy, MetricsWindow::All, Some(value));
    let table = |epoch, metrics: Vec<MetricsRow>| {
        let bars = vec![bar("IBM", Timeframe::M1, OPEN + epoch as i64 * 60 * SECOND, [1, 1, 1, 1], 2)];
        let rows = Rows { bars, metrics, ..Rows::default() };
        ClosedEpoch { rows: Arc::new(rows), ..closed(epoch, vec![]) }
    };
    let gone = |epoch, strategy| closed(epoch, vec![Change::Delete(Output::Metrics(Box::new(named(strategy, 1.0))))]);
    let first = table(1, vec![named("a", 1.5), named("b", 1.5), named("c", 1.5)]);
    store.commit(&[first, gone(2, "a"), gone(3, "b")]).await.unwrap();
    store.commit(&[table(4, vec![named("b", 4.5)])]).await.unwrap();
    assert_eq!(place.rows("SELECT count(*) || '' FROM bars").await, ["2"]);
    assert_eq!(stands(&place).await, [""; 0]);
    let error = store.commit(&[table(5, vec![named("b", f64::NAN)])]).await.unwrap_err();
    assert!(matches!(error, StoreError::NotANumber { .. }), "{error}");
    store.settle().await.unwrap();
    let rows = "SELECT strategy || ' ' || sharpe || ' @' || epoch FROM backtest_metrics ORDER BY 1";
    assert_eq!(place.rows(rows).await, ["b 4.5 @4", "c 1.5 @1"]);
    assert_eq!(store.standing().metrics_upper, 5);
}

async fn their_upper_is_where_metrics_were_asked_for(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let asked = |epoch, metrics, changes| ClosedEpoch { metrics, ..closed(epoch, changes) };
    store.commit(&[asked(1, true, vec![]), asked(2, false, vec![])]).await.unwrap();
    assert_eq!(store.standing().metrics_upper, 2, "nothing is due, and nothing has to follow");
    store.commit(&[asked(3, true, vec![up(sharpe(1.0))]), asked(4, false, vec![up(of(0, 1.0))])]).await.unwrap();
    assert_eq!(store.standing().metrics_upper, 2);
    store.commit(&[asked(5, true, vec![])]).await.unwrap();
    assert_eq!(store.standing().metrics_upper, 2, "some are due");
    store.settle().await.unwrap();
    assert_eq!(store.standing().metrics_upper, 6);
    store.commit(&[asked(6, false, vec![up(of(1, 1.0))])]).await.unwrap();
    store.settle().await.unwrap();
    assert_eq!((store.standing().metrics_upper, store.standing().upper), (6, 7), "those of 6 were not asked for");
}

/// The state of a strategy and some bars.
fn state(epoch: u64, rows: i64) -> ClosedEpoch {
    let mut changes: Vec<Change> = (0..rows).map(|i| up(of(i, i as f64))).collect();
    changes.push(up(sharpe(epoch as f64)));
    closed(epoch, changes)
}

async fn reopened(place: &Place) -> Store {
    place.steal_lock().await;
    Store::open(place.target()).await.unwrap()
}

async fn what_a_kill_left_out_is_written_anew_and_is_no_alarm(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[state(1, 900)]).await.unwrap();
    // A pass begun and not ended: some rows stand.
    assert!(store.follow().await.unwrap());
    store.commit(&[state(2, 1_000)]).await.unwrap();
    assert_eq!(place.rows("SELECT count(*) || '' FROM indicators").await, ["500"]);
    let mut store = reopened(&place).await;
    assert_eq!((store.standing().metrics_upper, store.standing().indicators_low), (0, OPEN));
    let found = store.verify(&state(2, 1_000)).await.unwrap();
    assert_eq!(found.len(), 501);
    assert!(found.iter().all(|difference| difference.was_due));
    store.settle().await.unwrap();
    assert_eq!(place.rows("SELECT count(*) || ' ' || max(epoch) FROM indicators").await, ["1000 2"]);
    assert_eq!((store.standing().metrics_upper, store.standing().indicators_low), (3, Nanos::MAX));
    let mut store = reopened(&place).await;
    assert_eq!(store.verify(&state(2, 1_000)).await.unwrap(), []);
    // What stood before is an alarm: it was not due.
    let mut store = reopened(&place).await;
    place.execute("UPDATE indicators SET value = 7 WHERE value = 3").await;
    place.execute("UPDATE backtest_metrics SET trades = 1").await;
    store.commit(&[closed(3, vec![up(of(990, -1.0))])]).await.unwrap();
    let mut store = reopened(&place).await;
    let mut again = state(2, 1_000);
    again.changes[990] = up(of(990, -1.0));
    let found = store.verify(&again).await.unwrap();
    let found: Vec<_> = found.iter().map(|d| (matches!(d.key, Key::Metrics(..)), d.was_due)).collect();
    assert_eq!(found, [(false, false), (false, true), (true, true)], "of metrics only their upper is known");
}

async fn a_row_that_was_due_is_found_though_its_bar_has_sealed(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[state(1, 3)]).await.unwrap();
    store.settle().await.unwrap();
    // An amended bar, far back, changes what all has sealed around it.
    let through = OPEN + 3_600 * SECOND;
    let mut amended = closed(2, vec![up(of(1, 8.0)), Change::Delete(of(2, 2.0)), up(of(3, 9.0))]);
    amended.progress = Progress { sealed_through: through, closed_through: through };
    store.commit(&[amended]).await.unwrap();
    let mut store = reopened(&place).await;
    let mut again = closed(2, vec![up(of(0, 5.0)), up(of(1, 8.0)), up(of(3, 9.0)), up(sharpe(1.0))]);
    again.changes.sort_by_key(|change| match change {
        Change::Upsert(row) | Change::Delete(row) => row.key(),
    });
    let found = store.verify(&again).await.unwrap();
    let opens: Vec<_> = found.iter().map(|d| (d.key.clone(), d.was_due)).collect();
    assert_eq!(opens, [of(1, 0.0), of(2, 0.0), of(3, 0.0)].map(|row| (row.key(), true)), "the first one is sealed");
    store.settle().await.unwrap();
    assert_eq!(stands(&place).await[1..], ["0 @1", "8 @2", "9 @2"].map(|row| number(&place, row)));
}

/// SQLite writes a float with its point.
fn number(place: &Place, row: &str) -> String {
    if place.is_postgres() { row.to_owned() } else { row.replace(" @", ".0 @") }
}

async fn whoever_was_overtaken_lets_nothing_follow(place: Place) {
    let mut old = Store::open(place.target()).await.unwrap();
    old.commit(&[state(1, 3)]).await.unwrap();
    let mut new = reopened(&place).await;
    if place.is_postgres() {
        assert!(old.follow().await.unwrap_err().retryable(), "its connection was lost");
    }
    for _ in 0..2 {
        let error = old.follow().await.unwrap_err();
        assert!(matches!(error, StoreError::Fenced { mine: 1, found: 2, upper: 2 }), "{error:?}");
    }
    assert_eq!(stands(&place).await, [""; 0]);
    new.verify(&state(1, 3)).await.unwrap();
    new.settle().await.unwrap();
    assert_eq!(stands(&place).await.len(), 4);
}

async fn a_restart_reads_the_last_change_of_each_key(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let put = |key: &str, revision: u64| {
        let (key, value) = (key.to_owned(), revision.to_string());
        ConfigUpdate::Put { key, value, revision }
    };
    store.note_config(1, &[put("a", 1), put("b", 1), put("c", 1), ConfigUpdate::Stale(true)]);
    store.commit(&[closed(1, vec![])]).await.unwrap();
    for i in 2..50 {
        let stale = ConfigUpdate::Stale(i % 2 == 0);
        store.note_config(i, &[put("b", i), put("b", i), put(&format!("new{}", i % 2), i), stale]);
        store.commit(&[closed(i, vec![])]).await.unwrap();
    }
    let gone = ConfigUpdate::Delete { key: "a".to_owned(), revision: 50 };
    store.note_config(50, std::slice::from_ref(&gone));
    store.commit(&[closed(50, vec![])]).await.unwrap();
    let began = [put("a", 1), put("b", 1), put("c", 1), ConfigUpdate::Stale(true)];
    let last = [put("new0", 48), put("b", 49), put("new1", 49), ConfigUpdate::Stale(false), gone];
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    assert_eq!(restored.config, [&began[..], &last[..]].concat());
    assert_eq!(store.reader().config_events().await.unwrap(), restored.config);
    let kept = place.rows("SELECT count(*) || '' FROM config_events").await;
    assert_eq!(kept, [(4 + 48 * 4 + 1).to_string()], "people have all of them");
}

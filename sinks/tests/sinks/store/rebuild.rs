//! A store that another logic has computed.

use super::restart::{Reopen, state};
use super::{Place, on_both};
use crate::fixture::*;
use marea_model::output::{Change, Key, MetricsWindow};
use marea_model::{BlockReason, Nanos, Output};
use marea_sinks::{Store, StoreError};
use std::time::{Duration, Instant};

on_both! {
    what_another_logic_computed_is_refused_compared_and_swapped,
    a_rebuild_takes_nothing_over,
}

/// The rows that were altered, as the old logic may have had them.
fn altered() -> Vec<Key> {
    let mut keys = vec![
        // Of a bar that has sealed.
        indicator("ema(12)", "IBM", OPEN - 60_000_000_000, 0.0).key(),
        indicator("old", "IBM", OPEN, 0.0).key(),
        Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::All, None))).key(),
        judged(verdict("M1", "IBM", vec![])).key(),
        judged(verdict("M2", "IBM", vec![])).key(),
    ];
    keys.sort();
    keys
}

async fn of_another_logic(place: &Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[state(1)]).await.unwrap();
    store.settle().await.unwrap();
    store.close().await.unwrap();
    for sql in [
        "UPDATE pipeline SET logic_version = 0",
        "UPDATE indicators SET value = 70 WHERE value = 0.5",
        "INSERT INTO indicators (symbol, timeframe, open_time, name, value, epoch) \
         SELECT symbol, timeframe, open_time, 'old', 1.5, epoch FROM indicators WHERE value = 70",
        "UPDATE indicators SET open_time = open_time + 60000000000 WHERE name = 'old'",
        "DELETE FROM backtest_metrics WHERE span = 'all'",
        "UPDATE verdicts SET payload = replace(payload, '\"lots\":', '\"lots_of_old\":') WHERE account = 'M1'",
        "UPDATE verdicts SET payload = replace(payload, 'NO_POLICY', 'NO_QUOTE') WHERE account = 'M2'",
    ] {
        place.execute(sql).await;
    }
}

/// The store, once nobody has it: a child process that another test is starting has all open files, and their locks, until
/// it has become its program.
async fn to_rebuild(place: &Place) -> Store {
    let began = Instant::now();
    loop {
        if let Some(store) = Store::try_open_to_rebuild(place.target()).await.unwrap() {
            return store;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "somebody has it still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn what_another_logic_computed_is_refused_compared_and_swapped(place: Place) {
    of_another_logic(&place).await;
    let refused = Store::open(place.target()).await.unwrap_err();
    assert!(matches!(refused, StoreError::LogicVersion { found: 0, known: 1, .. }), "{refused:?}");
    assert!(refused.to_string().contains("`marea migrate --rebuild`"), "{refused}");

    let mut store = to_rebuild(&place).await;
    assert_eq!(store.logic_version().await.unwrap(), 0);
    let found = store.differences(&state(1)).await.unwrap();
    let keys: Vec<Key> = found.iter().map(|difference| difference.key.clone()).collect();
    assert_eq!(keys, altered());
    let tables: Vec<_> = found.iter().map(|difference| difference.table()).collect();
    assert_eq!(tables, ["indicators", "indicators", "backtest_metrics", "verdicts", "verdicts"]);
    assert_eq!(place.rows("SELECT count(*) || '' FROM audit").await, ["3"], "nothing was changed");

    let kept = store.swap(&state(1)).await.unwrap();
    assert_eq!(store.logic_version().await.unwrap(), 1);
    assert_eq!(store.differences(&state(1)).await.unwrap(), []);
    store.close().await.unwrap();
    // The audit has a row for each that is audited, and what stood is kept.
    let audit = "SELECT account || ' ' || seq || ' ' || generation FROM audit WHERE seq > 3 ORDER BY seq";
    assert_eq!(place.rows(audit).await, ["M1 4 2", "M2 5 2"]);
    let same = "SELECT a.account FROM audit a JOIN verdicts v ON v.payload = a.payload AND v.seq = a.seq ORDER BY 1";
    assert_eq!(place.rows(same).await, ["M1", "M2"]);
    let old = "SELECT value || '' FROM indicators WHERE name = 'old'";
    if place.is_postgres() {
        assert_eq!(kept, "marea_logic_0");
        assert_eq!(place.rows(&old.replace("indicators", "marea_logic_0.indicators")).await, ["1.5"]);
        assert_eq!(place.rows("SELECT logic_version || '' FROM marea_logic_0.pipeline").await, ["0"]);
    } else {
        assert_eq!(kept, format!("{}.logic-0", place.file().display()));
        let refused = Store::open(std::path::Path::new(&kept)).await.unwrap_err();
        assert!(matches!(refused, StoreError::LogicVersion { found: 0, .. }), "{refused:?}");
    }
    assert_eq!(place.rows(old).await, [""; 0]);
    let mut store = Store::open(place.target()).await.unwrap();
    assert_eq!((store.standing().generation, store.standing().upper, store.standing().metrics_upper), (3, 3, 3));
    assert_eq!(store.standing().indicators_low, Nanos::MAX);
    assert_eq!(store.verify(&state(2)).await.unwrap(), []);
    store.commit(&[closed(3, vec![])]).await.unwrap();
}

async fn a_rebuild_takes_nothing_over(place: Place) {
    let mut live = Store::open(place.target()).await.unwrap();
    live.commit(&[state(1)]).await.unwrap();
    assert!(Store::try_open_to_rebuild(place.target()).await.unwrap().is_none(), "not beside a live process");
    let reopened = live.close_and_reopen(&place).await;
    reopened.close().await.unwrap();
    let mut store = to_rebuild(&place).await;
    // Nothing had followed: that is a difference too.
    let found = store.differences(&state(1)).await.unwrap();
    assert!(found.len() == 6 && found.iter().all(|difference| difference.was_due), "{found:?}");
    let changed = state(1).changes.into_iter().map(|change| match change {
        Change::Upsert(Output::Verdict(v)) => {
            up(judged(verdict(v.account.as_str(), "IBM", vec![BlockReason::KillSwitch])))
        }
        other => other,
    });
    let found = store.differences(&closed(1, changed.collect())).await.unwrap();
    assert_eq!(found.iter().filter(|difference| difference.table() == "verdicts").count(), 2);
    store.close().await.unwrap();
    assert_eq!(place.rows("SELECT generation || ' ' || upper || ' ' || last_seq FROM pipeline").await, ["2 2 3"]);
}

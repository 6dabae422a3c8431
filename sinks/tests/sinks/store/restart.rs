//! What a process finds where another one was killed.

use super::{Place, UNIT, amend, everything, on_both, snapshot};
use crate::fixture::*;
use marea_model::cursor::MessageIdentity;
use marea_model::live::ConfigUpdate;
use marea_model::num::{Amount, F64, Price};
use marea_model::output::{Change, ClosedEpoch, Key, MetricsWindow, Totals};
use marea_model::recommendation::Action;
use marea_model::time::SECOND;
use marea_model::{
    Bar, BlockReason, Cursor, Nanos, Output, Partition, PartitionMark, Progress, Quote, RawMessage, Reason, Timeframe,
    TradeRow,
};
use marea_sinks::store::StoreTarget;
use marea_sinks::{Store, StoreError};
use std::time::Duration;

on_both! {
    a_restart_begins_with_all_that_stands,
    nothing_is_to_be_restored_before_the_first_commit,
    what_may_be_delivered_again_is_known_until_it_is_acknowledged,
    an_account_keeps_its_greatest_snapshot_and_its_peak,
    the_same_state_differs_in_nothing,
    every_difference_is_found_and_mended,
    sealed_history_is_not_compared,
    series_that_are_new_are_written_for_all_history,
    a_standby_waits_until_the_first_is_gone,
    a_standby_takes_over_where_a_process_was_killed,
}

const MINUTE: Nanos = 60 * SECOND;

fn minute_bar(of: &str, i: i64, close: i64) -> Bar {
    bar(of, Timeframe::M1, OPEN + i * MINUTE, [close, close + 2, close - 2, close], 2)
}

fn sealed_through(mut epoch: ClosedEpoch, through: Nanos) -> ClosedEpoch {
    epoch.progress = Progress { sealed_through: through, closed_through: through };
    epoch
}

async fn a_restart_begins_with_all_that_stands(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let mut huge = minute_bar("IBM", 1, 18_200);
    (huge.body.volume, huge.body.turnover) = (i128::MAX, i128::MIN);
    let m5 = bar("IBM", Timeframe::M5, OPEN, [1, 1, 1, 1], 2);
    let mut first = closed(
        epoch_at(0),
        [minute_bar("IBM", 2, 3), m5, minute_bar("IBM", 0, 1), huge, minute_bar("Z-9", 0, 5), minute_bar("ABC", 0, 4)]
            .map(|bar| up(Output::Bar(bar)))
            .to_vec(),
    );
    let mark = |name, low, upper| PartitionMark {
        partition: Partition::new(name).unwrap(),
        low,
        upper,
        greatest: Some(OPEN + 3 * MINUTE + 1),
        fingerprint: None,
    };
    first.marks = vec![mark("a", 5, 9), mark("queue", 1, 3)];
    let dead = |name, offset, row| {
        let mut letter = dead_letter(offset, Reason::Late, b"\0\xff");
        letter.cursor = Cursor { partition: Partition::new(name).unwrap(), offset, row };
        letter
    };
    first.dead = vec![dead("a", 4, 0), dead("a", 5, 7), dead("a", 8, 0), dead("unmarked", 9, 0)];
    first.dead.push({
        let mut again = dead("a", 8, 0);
        again.reason = Reason::Conflict;
        again
    });
    first.raw = vec![raw_message("queue", 2), raw_message("queue", 1), raw_message("queue", 0)];
    let quote = |seq| Quote { event_time: OPEN, seq, bid: Price(-5), ask: Price(i64::MAX) };
    first.quotes = vec![(symbol("IBM"), Some(quote(1))), (symbol("NEW"), None)];
    first.amends = vec![amend("IBM", OPEN, 2), amend("IBM", OPEN, 1), amend("IBM", OPEN + MINUTE, 1)];
    first.accounts = vec![snapshot("M1", OPEN, 5 * UNIT)];
    let put = |key: &str, value: &str, revision| ConfigUpdate::Put { key: key.into(), value: value.into(), revision };
    let nul = "half a\0value \u{10ffff}0 of somebody";
    let before = [put("/echo/core/master_accounts", "M1", 1), put("/echo/odd", nul, 1), ConfigUpdate::Stale(true)];
    let after = [ConfigUpdate::Delete { key: "/echo/odd".into(), revision: 3 }, ConfigUpdate::Stale(false)];
    store.note_config(epoch_at(0), &before);
    store.commit(&[first]).await.unwrap();
    let through = OPEN + 2 * MINUTE;
    let mut second = sealed_through(closed(epoch_at(5), vec![]), through);
    second.quotes = vec![(symbol("IBM"), Some(quote(2))), (symbol("NEW"), Some(quote(u64::MAX)))];
    second.amends = vec![amend("IBM", OPEN, 2)];
    store.note_config(epoch_at(5), &after);
    store.commit(&[second]).await.unwrap();
    let partitions = store.standing().partitions.clone();
    store.close().await.unwrap();

    let mut store = Store::open(place.target()).await.unwrap();
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    assert_eq!((restored.epoch, restored.progress.sealed_through), (epoch_at(5), through));
    assert_eq!(restored.partitions, partitions);
    assert_eq!(restored.config, [&before[..], &after[..]].concat());
    let row = |bar: Bar| (bar.symbol, bar.open_time, bar.body);
    // IBM's third bar is unsealed, and five minutes are not the base.
    let bars = [minute_bar("ABC", 0, 4), minute_bar("IBM", 0, 1), huge, minute_bar("Z-9", 0, 5)].map(row);
    assert_eq!(restored.sealed.bars, bars);
    let quotes = [(symbol("IBM"), Some(quote(2))), (symbol("NEW"), Some(quote(u64::MAX)))];
    assert_eq!(restored.sealed.quotes, quotes);
    let amends = [amend("IBM", OPEN, 1), amend("IBM", OPEN, 2), amend("IBM", OPEN + MINUTE, 1)];
    assert_eq!(restored.sealed.amends, amends, "each once");
    assert_eq!(restored.accounts, [(snapshot("M1", OPEN, 5 * UNIT), Amount(5 * UNIT))]);
    let cursors: Vec<String> = restored.dead.iter().map(ToString::to_string).collect();
    assert_eq!(cursors, ["a@5.7", "a@8"]);
    assert_eq!(restored.raw, [raw_message("queue", 1), raw_message("queue", 2)]);
    // Where what is read again is lost: nothing is, and all bars count as sealed, and so does the bucket of the newest tick,
    // that stands in none. An amend that waits goes on waiting.
    let as_it_stands = store.restoration_as_it_stands(Timeframe::M1).await.unwrap().unwrap();
    let mut bars = bars.to_vec();
    bars.insert(3, row(minute_bar("IBM", 2, 3)));
    assert_eq!(as_it_stands.sealed.bars, bars);
    assert_eq!(as_it_stands.progress.sealed_through, OPEN + 4 * MINUTE);
    assert_eq!(as_it_stands.progress.closed_through, restored.progress.closed_through);
    assert!(as_it_stands.partitions.values().all(|mark| mark.low == mark.upper));
    assert_eq!((as_it_stands.sealed.amends, as_it_stands.config), (restored.sealed.amends, restored.config));
    // Bars of another base cannot go on.
    for other in [Timeframe::S1, Timeframe::M5, Timeframe::H1] {
        let error = store.restoration(other).await.unwrap_err();
        assert!(!error.retryable() && error.to_string().contains("its smallest bars are of 1m"), "{error}");
        assert!(error.to_string().contains(&format!("begins with {other}")), "{error}");
    }
}

async fn what_may_be_delivered_again_is_known_until_it_is_acknowledged(place: Place) {
    let queue = Partition::new("queue").unwrap();
    let identity = |offset| MessageIdentity([u8::try_from(offset).unwrap(); 16]);
    let message = |offset| RawMessage { identity: Some(identity(offset)), ..raw_message("queue", offset) };
    let mut store = Store::open(place.target()).await.unwrap();
    let mut first = closed(epoch_at(0), vec![]);
    first.raw = (0..6).map(message).collect();
    // Nothing is asked for again of what has sealed, acknowledged or not.
    first.marks = vec![PartitionMark { partition: queue, low: 6, upper: 6, greatest: None, fingerprint: None }];
    store.commit(&[first]).await.unwrap();
    store.note_acknowledged(vec![(queue, 0..2), (queue, 4..5)]);
    store.commit(&[closed(epoch_at(1), vec![])]).await.unwrap();
    store.close().await.unwrap();
    let mut store = Store::open(place.target()).await.unwrap();
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    assert_eq!(restored.unacknowledged, [2, 3, 5].map(|offset| (queue, offset, identity(offset))));
    assert_eq!(restored.raw, []);
}

async fn nothing_is_to_be_restored_before_the_first_commit(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    assert!(store.restoration(Timeframe::M1).await.unwrap().is_none());
    store.commit(&[closed(1, vec![])]).await.unwrap();
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    assert_eq!((restored.epoch, restored.progress), (1, Progress::START));
}

async fn an_account_keeps_its_greatest_snapshot_and_its_peak(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let mut epoch = 0;
    let mut accounts = async |store: &mut Store, snapshots: &[(&str, Nanos, i64)]| {
        epoch += 1;
        let mut closed = closed(epoch, vec![]);
        closed.accounts = snapshots.iter().map(|(who, at, equity)| snapshot(who, OPEN + at, *equity)).collect();
        store.commit(&[closed]).await.unwrap();
        store.close_and_reopen(&place).await
    };
    let mut store = accounts(&mut store, &[("M1", 5, 70), ("M1", 3, 90), ("B", 1, -5)]).await;
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    let expected = [(snapshot("B", OPEN + 1, -5), Amount(-5)), (snapshot("M1", OPEN + 5, 70), Amount(90))];
    assert_eq!(restored.accounts, expected);
    // Older, and of the same time with less; then of the same time with more.
    let mut store = accounts(&mut store, &[("M1", 4, 80), ("M1", 5, 60)]).await;
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    assert_eq!(restored.accounts, expected);
    let mut store = accounts(&mut store, &[("M1", 5, 75)]).await;
    let restored = store.restoration(Timeframe::M1).await.unwrap().unwrap();
    assert_eq!(restored.accounts[1], (snapshot("M1", OPEN + 5, 75), Amount(90)));
}

pub trait Reopen {
    async fn close_and_reopen(&mut self, place: &Place) -> Store;
}

impl Reopen for Store {
    /// As after a kill: the lock goes with the store.
    async fn close_and_reopen(&mut self, place: &Place) -> Store {
        place.steal_lock().await;
        Store::open(place.target()).await.unwrap()
    }
}

/// Something of every table, with half of it sealed.
pub fn state(epoch: u64) -> ClosedEpoch {
    let exit = |exit_time| Output::Trade(TradeRow { entry_time: exit_time - 1, exit_time, ..trade("IBM", "ema-fast") });
    let rows = vec![
        Output::Bar(minute_bar("IBM", -1, 1)),
        Output::Bar(minute_bar("IBM", 0, 2)),
        Output::Bar(minute_bar("IBM", 1, 3)),
        Output::Bar(bar("IBM", Timeframe::H1, OPEN - 59 * MINUTE, [1, 2, 1, 2], 2)),
        Output::Bar(bar("IBM", Timeframe::M5, OPEN, [1, 2, 1, 2], 2)),
        indicator("ema(12)", "IBM", OPEN - MINUTE, 0.5),
        indicator("ema(12)", "IBM", OPEN, -0.0),
        indicator("ema(26)", "IBM", OPEN, 0.1 + 0.2),
        indicator("ema(26)", "OTHER", OPEN, 7.0),
        exit(OPEN - 300 * SECOND),
        exit(OPEN - 299 * SECOND),
        Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::All, None))),
        Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::Days30, Some(1.0)))),
        recommended(recommendation("IBM", Action::Buy, 18_190, 2)),
        judged(verdict("M1", "IBM", vec![])),
        judged(verdict("M2", "IBM", vec![BlockReason::NoPolicy])),
    ];
    let mut changes: Vec<Change> = rows.into_iter().map(up).collect();
    changes.sort_by_key(key);
    sealed_through(closed(epoch, changes), OPEN)
}

fn key(change: &Change) -> Key {
    match change {
        Change::Upsert(row) | Change::Delete(row) => row.key(),
    }
}

async fn the_same_state_differs_in_nothing(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[state(1)]).await.unwrap();
    store.settle().await.unwrap();
    let mut store = store.close_and_reopen(&place).await;
    let mut again = state(1);
    for change in &mut again.changes {
        if let Change::Upsert(Output::Verdict(row)) = change {
            std::sync::Arc::make_mut(row).as_of += SECOND;
        }
    }
    assert_eq!(store.verify(&again).await.unwrap(), []);
    let committed = store.commit(&[closed(2, vec![])]).await.unwrap();
    assert!(committed.audit.is_empty());
}

async fn every_difference_is_found_and_mended(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[state(1)]).await.unwrap();
    store.settle().await.unwrap();
    let mut store = store.close_and_reopen(&place).await;
    let mut again = state(1);
    let (mut expected, mut extra) = (Vec::new(), Vec::new());
    again.changes.retain_mut(|change| {
        let key = key(change);
        let Change::Upsert(row) = change else { unreachable!() };
        match row {
            Output::Bar(row) if row.open_time == OPEN + MINUTE => row.body.turnover += 1,
            Output::Indicator(row) if row.value == F64(-0.0) => row.value = F64(0.0),
            Output::Indicator(row) if row.symbol.as_str() == "OTHER" => {
                extra.push(key.clone());
                expected.push(key);
                return false;
            }
            Output::Trade(row) if row.exit_time == OPEN - 299 * SECOND => row.pnl = F64(1.0),
            Output::Metrics(row) if row.window == MetricsWindow::All => row.metrics.sharpe = Some(F64(2.0)),
            Output::Verdict(row) if row.account == account("M1") => {
                *row = std::sync::Arc::new(verdict("M1", "IBM", vec![BlockReason::QuoteStale]));
            }
            Output::Verdict(_) => {
                extra.push(key.clone());
                expected.push(key);
                return false;
            }
            _ => return true,
        }
        expected.push(key);
        true
    });
    let new = [up(Output::Bar(minute_bar("NEW", 0, 9))), up(judged(verdict("M3", "IBM", vec![])))];
    expected.extend(new.iter().map(key));
    again.changes.extend(new.clone());
    again.changes.sort_by_key(key);
    expected.sort();
    let found = store.verify(&again).await.unwrap();
    let keys: Vec<Key> = found.iter().map(|difference| difference.key.clone()).collect();
    assert_eq!(keys, expected);
    for difference in &found {
        assert_eq!(difference.should.is_none(), extra.contains(&difference.key), "{difference}");
        assert_eq!(difference.stood.is_none(), new.iter().any(|new| key(new) == difference.key), "{difference}");
        assert!(!difference.was_due, "all had been written: {difference}");
    }
    let shown = found.iter().find(|d| matches!(d.key, Key::Indicator(_, _, _, ref name) if &**name == "ema(12)"));
    assert!(shown.unwrap().to_string().ends_with("stood value -0.0, should be value 0.0"), "{shown:?}");

    // The epoch that comes next changes one of them further; the audit has what was mended and what came then.
    let blocked = judged(verdict("M1", "IBM", vec![BlockReason::KillSwitch]));
    let committed = store.commit(&[closed(2, vec![]), closed(3, vec![up(blocked.clone())])]).await.unwrap();
    let audit: Vec<_> =
        committed.audit.iter().map(|e| (e.seq, e.epoch, e.key.account().unwrap(), e.payload.is_some())).collect();
    let (m1, m2, m3) = (account("M1"), account("M2"), account("M3"));
    assert_eq!(audit, [(4, 2, m1, true), (5, 2, m2, false), (6, 2, m3, true), (7, 3, m1, true)]);
    for change in &mut again.changes {
        if key(change) == blocked.key() {
            *change = up(blocked.clone());
        }
    }
    store.settle().await.unwrap();
    let mut store = store.close_and_reopen(&place).await;
    assert_eq!(store.verify(&again).await.unwrap(), []);
    assert!(store.commit(&[closed(4, vec![])]).await.unwrap().audit.is_empty(), "mended once");
}

/// Whatever is wrong there, it is neither found nor touched.
async fn sealed_history_is_not_compared(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let hour = bar("IBM", Timeframe::H1, OPEN, [1, 2, 1, 2], 2);
    let mut committed = sealed_through(state(1), OPEN + 10 * MINUTE);
    committed.changes.push(up(Output::Bar(hour)));
    committed.changes.sort_by_key(key);
    let mut wrong = committed.clone();
    store.commit(&[committed]).await.unwrap();
    store.settle().await.unwrap();
    wrong.changes.retain_mut(|change| match change {
        // Unsealed for another fifty minutes.
        Change::Upsert(Output::Bar(row)) if *row == hour => true,
        Change::Upsert(Output::Bar(row)) => {
            row.body.count += 1;
            true
        }
        Change::Upsert(Output::Indicator(_) | Output::Trade(_)) => false,
        _ => true,
    });
    assert_eq!(store.verify(&wrong).await.unwrap(), []);
    for change in &mut wrong.changes {
        match change {
            Change::Upsert(Output::Bar(row)) if *row == hour => row.body.count += 1,
            _ => (),
        }
    }
    let found = store.verify(&wrong).await.unwrap();
    assert_eq!(found.iter().map(|difference| difference.key.clone()).collect::<Vec<_>>(), [Output::Bar(hour).key()]);
}

async fn series_that_are_new_are_written_for_all_history(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[sealed_through(state(1), OPEN + 300 * MINUTE)]).await.unwrap();
    store.settle().await.unwrap();
    let mut store = store.close_and_reopen(&place).await;
    let quarter: Timeframe = "15m".parse().unwrap();
    let fresh = [
        Output::Bar(bar("IBM", quarter, OPEN - 15 * MINUTE, [1, 2, 1, 2], 2)),
        Output::Bar(bar("IBM", quarter, OPEN, [1, 2, 1, 2], 2)),
        indicator("sma(2)", "IBM", OPEN - MINUTE, 0.25),
        indicator("sma(2)", "OTHER", OPEN, 0.75),
    ];
    let mut more = sealed_through(state(1), OPEN + 300 * MINUTE);
    more.changes.extend(fresh.map(up));
    more.changes.sort_by_key(key);
    assert_eq!(store.verify(&more).await.unwrap(), [], "no alarm");
    store.commit(&[sealed_through(closed(2, vec![]), OPEN + 300 * MINUTE)]).await.unwrap();
    store.settle().await.unwrap();
    let rows = "SELECT value || '' FROM indicators WHERE name = 'sma(2)' ORDER BY open_time";
    assert_eq!(place.rows(rows).await, ["0.25", "0.75"]);
    assert_eq!(place.rows("SELECT count(*) || '' FROM bars WHERE timeframe = '15m'").await, ["2"]);
    assert_eq!(store.verify(&more).await.unwrap(), []);
}

async fn a_standby_waits_until_the_first_is_gone(place: Place) {
    let mut live = Store::open(place.target()).await.unwrap();
    live.commit(&[everything(1)]).await.unwrap();
    let target = place.target();
    let standby = tokio::spawn(async move { Store::open(target).await });
    for epoch in 2..6 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(!standby.is_finished());
        live.commit(&[everything(epoch)]).await.unwrap();
    }
    assert_eq!(Store::peek(place.target()).await.unwrap(), Some(6), "a peek needs no lock");
    drop(live);
    let mut second = tokio::time::timeout(Duration::from_secs(10), standby).await.unwrap().unwrap().unwrap();
    assert_eq!((second.standing().generation, second.standing().upper), (2, 6));
    assert!(!matches!(second.commit(&[closed(6, vec![])]).await, Err(StoreError::Fenced { .. })));
}

/// A process of its own, which commits until it is killed.
#[tokio::test]
#[ignore = "run by another test"]
async fn commits_until_it_is_killed() {
    let Ok(target) = std::env::var("MAREA_TEST_STORE") else { return };
    let mut store = Store::open(StoreTarget::parse(&target)).await.unwrap();
    for epoch in 1..2_000 {
        let reasons = if epoch % 2 == 0 { vec![] } else { vec![BlockReason::QuoteStale] };
        let rows = (0..200).map(|i| up(Output::Bar(minute_bar("IBM", i, epoch as i64))));
        let mut closed = closed(epoch, rows.chain([up(judged(verdict("M1", "IBM", reasons)))]).collect());
        closed.totals = Totals { records_in: 1, accepted: 1, ..Totals::default() };
        store.commit(&[closed]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
}

async fn a_standby_takes_over_where_a_process_was_killed(place: Place) {
    let target = match &place {
        Place::Sqlite(_) => place.file().display().to_string(),
        Place::Postgres(url) => url.clone(),
    };
    let mut first = std::process::Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(std::env::current_exe().unwrap())
        .args(["store::restart::commits_until_it_is_killed", "--exact", "--ignored"])
        .env("MAREA_TEST_STORE", &target)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while !matches!(Store::peek(place.target()).await, Ok(Some(3..))) {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let target = place.target();
    let standby = tokio::spawn(async move { Store::open(target).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!standby.is_finished());
    first.kill().unwrap();
    first.wait().unwrap();
    let store = tokio::time::timeout(Duration::from_secs(10), standby).await.unwrap().unwrap().unwrap();
    let standing = store.standing().clone();
    assert_eq!(standing.generation, 2);
    // All of the last commit, or nothing of it.
    let last = standing.upper - 1;
    assert_eq!((standing.last_seq, standing.totals.records_in), (last, last.cast_signed()));
    let bars = "SELECT count(*) || ' ' || min(close) || ' ' || max(close) || ' ' || min(epoch) FROM bars";
    assert_eq!(place.rows(bars).await, [format!("200 {last} {last} {last}")]);
    assert_eq!(place.rows("SELECT max(seq) || ' ' || count(*) FROM audit").await, [format!("{last} {last}")]);
}

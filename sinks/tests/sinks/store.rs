//! The store, from outside: what is in the file after what was committed.

use crate::fixture::*;
use marea_model::live::ConfigUpdate;
use marea_model::output::{Change, ClosedEpoch, MetricsWindow, Totals};
use marea_model::recommendation::Action;
use marea_model::time::SECOND;
use marea_model::{BlockReason, Output, Partition, Progress, Reason, Timeframe};
use marea_sinks::store::{AuditKey, Ledger};
use marea_sinks::{Store, StoreError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use std::path::{Path, PathBuf};

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marea.db");
    (folder, path)
}

async fn sql(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn rows(path: &Path, query: &str) -> Vec<String> {
    let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(&mut sql(path).await).await.unwrap();
    rows.iter().map(|row| row.get_unchecked::<String, _>(0)).collect()
}

async fn execute(path: &Path, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut sql(path).await).await.unwrap();
}

fn everything(epoch: u64) -> ClosedEpoch {
    let mut closed = closed(
        epoch,
        vec![
            up(Output::Bar(bar("IBM", Timeframe::M1, OPEN, [18_190, 18_215, 18_190, 18_215], 2))),
            up(indicator("ema(12)", "IBM", OPEN, -0.0)),
            up(indicator("ema(26)", "IBM", OPEN, 0.1 + 0.2)),
            up(Output::Trade(trade("IBM", "ema-fast"))),
            up(Output::Metrics(Box::new(metrics(
                "IBM",
                "ema-fast",
                MetricsWindow::All,
                Some(f64::MIN_POSITIVE / 2.0),
            )))),
            up(recommended(recommendation("IBM", Action::Buy, 18_190, 2))),
            up(judged(verdict("M1", "IBM", vec![]))),
            up(judged(verdict("M2", "IBM", vec![BlockReason::NoPolicy]))),
        ],
    );
    closed.dead = vec![dead_letter(7, Reason::Late, b"{}")];
    closed.totals =
        Totals { records_in: 10, accepted: 7, duplicate: 1, dead: 1, held: 1, unknown_fields: 2, price_jumps: 0 };
    closed.cursors = vec![(Partition::new("ticks.csv").unwrap(), u64::MAX - 3)];
    closed.progress = Progress { sealed_through: OPEN, closed_through: OPEN + 60 * SECOND };
    closed
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let (_folder, path) = file();
    let mut store = Store::open(&path).await.unwrap();
    assert_eq!((store.standing().generation, store.standing().upper), (1, 0));
    store.note_config(
        epoch_at(0),
        &[
            ConfigUpdate::Put { key: "/echo/policy/M1/max_spread".into(), value: "20".into(), revision: 3 },
            ConfigUpdate::Stale(true),
        ],
    );
    let committed = store.commit(&[everything(epoch_at(0))]).await.unwrap();
    let keys: Vec<_> = committed.audit.iter().map(|entry| (entry.seq, entry.key)).collect();
    let ibm = symbol("IBM");
    assert_eq!(
        keys,
        [
            (1, AuditKey::Recommendation(ibm)),
            (2, AuditKey::Verdict(account("M1"), ibm)),
            (3, AuditKey::Verdict(account("M2"), ibm))
        ]
    );
    let standing = store.standing().clone();
    store.close().await.unwrap();

    let mut store = Store::open(&path).await.unwrap();
    let again = store.standing().clone();
    assert_eq!(again.generation, 2);
    assert_eq!(again, marea_sinks::store::Standing { generation: 2, ..standing });
    assert_eq!(again.cursors[&Partition::new("ticks.csv").unwrap()], u64::MAX - 3);
    // The same rows once more are no change: no audit, and the dead letter stands once.
    let committed = store.commit(&[everything(epoch_at(1))]).await.unwrap();
    assert_eq!((committed.audit.len(), committed.last_seq, committed.totals.records_in), (0, 3, 20));
    for (query, expected) in [
        ("SELECT count(*) || '' FROM dead_letters", "1"),
        ("SELECT value || ' ' || printf('%d', epoch > 0) FROM config_events WHERE position = 0", "20 1"),
        ("SELECT value FROM config_events WHERE key IS NULL", "true"),
        ("SELECT printf('%!.17g', value) FROM indicators WHERE name = 'ema(26)'", "0.30000000000000004"),
        (
            "SELECT volume || ' ' || turnover || ' ' || open_at FROM bars",
            "10000000000 182150000000000 2013-10-07T13:30:00.000Z",
        ),
        ("SELECT close || ' ' || stop_loss || ' ' || seq FROM recommendations", "181.9 181.54 1"),
        ("SELECT reasons || ' ' || seq || ' ' || generation FROM verdicts WHERE account = 'M2'", "NO_POLICY 3 1"),
        ("SELECT payload = (SELECT payload FROM audit WHERE seq = 2) || '' FROM verdicts WHERE account = 'M1'", "1"),
    ] {
        assert_eq!(rows(&path, query).await, [expected], "{query}");
    }
}

#[tokio::test]
async fn floats_come_back_bit_equal() {
    let (_folder, path) = file();
    let mut store = Store::open(&path).await.unwrap();
    let mut values = vec![-0.0, 5.0, f64::MAX, f64::MIN_POSITIVE / 8.0, f64::INFINITY, f64::NEG_INFINITY, 0.1 + 0.2];
    let mut bits = 7_u64;
    while values.len() < 1_000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.extend(Some(f64::from_bits(bits)).filter(|value| !value.is_nan()));
    }
    let changes = values.iter().enumerate().map(|(i, v)| up(indicator(&format!("x({i:04})"), "IBM", OPEN, *v)));
    store.commit(&[closed(1, changes.collect())]).await.unwrap();
    let rows =
        sqlx::query("SELECT value FROM indicators ORDER BY name").fetch_all(&mut sql(&path).await).await.unwrap();
    let stored: Vec<u64> = rows.iter().map(|row| row.get::<f64, _>(0).to_bits()).collect();
    assert_eq!(stored, values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    let nan = store.commit(&[closed(2, vec![up(indicator("x", "IBM", OPEN, f64::NAN))])]).await.unwrap_err();
    assert!(nan.to_string().ends_with("has a NaN; undefined must be null"), "{nan}");
    assert!(!nan.retryable());
}

#[tokio::test]
async fn several_epochs_are_one_transaction_and_each_has_its_audit() {
    let (_folder, path) = file();
    let mut store = Store::open(&path).await.unwrap();
    let allowed = || judged(verdict("M1", "IBM", vec![]));
    let mut blocked = verdict("M1", "IBM", vec![BlockReason::QuoteStale]);
    let epochs = [
        closed(10, vec![up(allowed())]),
        closed(11, vec![up(judged(blocked.clone()))]),
        // Only `as_of` differs: no change.
        closed(
            12,
            vec![up(judged({
                blocked.as_of += 1;
                blocked
            }))],
        ),
        closed(13, vec![Change::Delete(allowed())]),
        closed(14, vec![Change::Delete(allowed())]),
        closed(15, vec![up(allowed())]),
        closed(16, vec![]),
    ];
    let committed = store.commit(&epochs).await.unwrap();
    let audit: Vec<_> = committed.audit.iter().map(|e| (e.seq, e.epoch, e.payload.is_some())).collect();
    assert_eq!(audit, [(1, 10, true), (2, 11, true), (3, 13, false), (4, 15, true)]);
    assert_eq!(committed.upper, 17);
    assert_eq!(store.reader().audit_after(1, 2).await.unwrap(), committed.audit[1..3]);
    assert_eq!(rows(&path, "SELECT seq || ' ' || epoch FROM verdicts").await, ["4 15"]);
    // The ledger without I/O says the same.
    assert_eq!(Ledger::new(1).commit(&epochs).unwrap(), committed);
    let order = store.commit(&[closed(16, vec![])]).await.unwrap_err();
    assert_eq!(order.to_string(), "store: epoch 16 comes after 17 was committed");
}

#[tokio::test]
async fn a_net_retraction_is_a_delete_and_many_rows_go_in_chunks() {
    let (_folder, path) = file();
    let mut store = Store::open(&path).await.unwrap();
    let at = |i: i64| Output::Bar(bar("IBM", Timeframe::M1, OPEN + i * 60 * SECOND, [i, i + 2, i, i + 1], 2));
    store.commit(&[closed(1, (0..700).map(|i| up(at(i))).collect())]).await.unwrap();
    store.commit(&[closed(2, (3..699).map(|i| Change::Delete(at(i))).collect())]).await.unwrap();
    assert_eq!(rows(&path, "SELECT open || '' FROM bars ORDER BY open_time").await, ["0", "1", "2", "699"]);
    let reader = store.reader();
    let opens = |bars: Vec<marea_model::Bar>| bars.iter().map(|b| b.body.open.0).collect::<Vec<_>>();
    let ibm = symbol("IBM");
    let ask = async |from, to, limit| opens(reader.bars(ibm, Timeframe::M1, from, to, limit).await.unwrap());
    assert_eq!(ask(None, None, 2).await, [2, 699], "the last two, rising");
    assert_eq!(ask(Some(OPEN + 1), None, 2).await, [1, 2], "the first two from there");
    assert_eq!(ask(None, Some(OPEN + 120 * SECOND), 9).await, [0, 1], "`to` is exclusive");
    assert_eq!(reader.bars(ibm, Timeframe::M5, None, None, 9).await.unwrap(), []);
    let stored = reader.bars(ibm, Timeframe::M1, None, None, 1).await.unwrap();
    assert_eq!(Output::Bar(stored[0]), at(699));
}

#[tokio::test]
async fn whoever_was_overtaken_writes_nothing() {
    let (_folder, path) = file();
    let mut old = Store::open(&path).await.unwrap();
    old.commit(&[closed(1, vec![])]).await.unwrap();
    let mut new = Store::open(&path).await.unwrap();
    let error = old.commit(&[everything(2)]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "store: another process has taken over: generation 2 at epoch 2, this one is generation 1"
    );
    assert!(matches!(error, StoreError::Fenced { .. }) && !error.retryable());
    assert!(matches!(old.commit(&[everything(2)]).await, Err(StoreError::Fenced { .. })), "and again");
    assert!(rows(&path, "SELECT symbol FROM bars").await.is_empty());
    new.commit(&[everything(2)]).await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_not_whole_is_refused() {
    let cases = [
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9, 'later', 1, x'00', 0)",
            "its schema is version 9, this marea knows 1: use a newer marea",
        ),
        ("DROP TABLE trades", "table trades is missing: restore a backup or start with a new file"),
        (
            "UPDATE pipeline SET upper = 5",
            "upper 5 is behind the table audit, which has epoch 1999999: restore a backup or start with a new file",
        ),
        (
            "DELETE FROM audit WHERE seq = 3",
            "the audit ends at seq 2, the pipeline's row says 3: restore a backup or start with a new file",
        ),
        (
            "UPDATE _sqlx_migrations SET checksum = x'00'",
            "migration 1 was applied in another form: this is not marea's schema",
        ),
        ("DELETE FROM pipeline", "unreadable row: pipeline has none"),
    ];
    for (damage, expected) in cases {
        let (_folder, path) = file();
        let mut store = Store::open(&path).await.unwrap();
        store.commit(&[everything(1_999_999)]).await.unwrap();
        store.close().await.unwrap();
        execute(&path, damage).await;
        let error = Store::open(&path).await.unwrap_err();
        assert_eq!(error.to_string(), format!("store {}: {expected}", path.display()), "{damage}");
        assert!(!error.retryable());
    }
    let (folder, path) = file();
    std::fs::write(&path, "no database, but longer than a header of a hundred bytes ".repeat(4)).unwrap();
    let error = Store::open(&path).await.unwrap_err().to_string();
    assert_eq!(error, format!("store {}: cannot be opened: file is not a database", path.display()));
    let nowhere = folder.path().join("no/such/folder/marea.db");
    let error = Store::open(&nowhere).await.unwrap_err().to_string();
    assert_eq!(error, format!("store {}: cannot be opened: unable to open database file", nowhere.display()));
}

/// Whoever cannot start must not stop the one that runs.
#[tokio::test]
async fn a_refusal_takes_nothing_over() {
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9, 'later', 1, x'00', 0)";
    let cases = [
        (newer, "DELETE FROM _sqlx_migrations WHERE version = 9"),
        ("ALTER TABLE trades RENAME TO t", "ALTER TABLE t RENAME TO trades"),
        ("UPDATE pipeline SET upper = 1", "UPDATE pipeline SET upper = 3"),
        ("UPDATE audit SET seq = 9 WHERE seq = 3", "UPDATE audit SET seq = 3 WHERE seq = 9"),
    ];
    let (_folder, path) = file();
    let mut live = Store::open(&path).await.unwrap();
    live.commit(&[everything(2)]).await.unwrap();
    for (epoch, (damage, repair)) in (3..).zip(cases) {
        execute(&path, damage).await;
        Store::open(&path).await.unwrap_err();
        let repair = repair.replace("upper = 3", &format!("upper = {epoch}"));
        execute(&path, &repair).await;
        live.commit(&[closed(epoch, vec![])]).await.unwrap_or_else(|e| panic!("{damage}: {e}"));
    }
    assert_eq!(rows(&path, "SELECT generation || '' FROM pipeline").await, ["1"]);
}

#[tokio::test]
async fn a_peek_takes_nothing_over() {
    let (folder, path) = file();
    assert_eq!(Store::peek(&path).await.unwrap(), None, "no file");
    assert!(!path.exists(), "and none was made");
    std::fs::write(&path, "").unwrap();
    assert_eq!(Store::peek(&path).await.unwrap(), None, "an empty file");
    let mut live = Store::open(&path).await.unwrap();
    assert_eq!(Store::peek(&path).await.unwrap(), None, "no run yet");
    live.commit(&[everything(6)]).await.unwrap();
    assert_eq!(Store::peek(&path).await.unwrap(), Some(7));
    live.commit(&[closed(7, vec![])]).await.unwrap();
    live.close().await.unwrap();
    assert_eq!(Store::peek(&path).await.unwrap(), Some(8), "closed");
    assert_eq!(rows(&path, "SELECT generation || '' FROM pipeline").await, ["1"]);
    execute(&path, "UPDATE _sqlx_migrations SET version = 9").await;
    let error = Store::peek(&path).await.unwrap_err().to_string();
    let expected = "its schema is version 9, this marea knows 1: use a newer marea";
    assert_eq!(error, format!("store {}: {expected}", path.display()));
    let other = folder.path().join("other");
    std::fs::write(&other, "no database, but longer than a header of a hundred bytes ".repeat(4)).unwrap();
    let error = Store::peek(&other).await.unwrap_err().to_string();
    assert_eq!(error, format!("store {}: cannot be opened: file is not a database", other.display()));
}

#[tokio::test]
async fn a_history_keeps_its_laws() {
    let (_folder, path) = file();
    let mut store = Store::open(&path).await.unwrap();
    let mut random = 11_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut state = marea_sinks::State::default();
    let mut epoch = 1;
    for round in 0..40 {
        let mut batch = Vec::new();
        for _ in 0..=next(3) {
            let mut changes = Vec::new();
            for who in ["M1", "M2"] {
                let reasons = match next(4) {
                    0 => continue,
                    1 => vec![],
                    2 => vec![BlockReason::QuoteStale],
                    _ => vec![BlockReason::NoPolicy],
                };
                let mut row = verdict(who, "IBM", reasons);
                row.as_of += i64::try_from(epoch).unwrap();
                let key = judged(row.clone()).key();
                match state.get(&key) {
                    Some(standing) if next(3) == 0 => changes.push(Change::Delete(standing.clone())),
                    _ => changes.push(up(judged(row))),
                }
            }
            state.apply(&changes);
            batch.push(closed(epoch, changes));
            epoch += 1 + next(5);
        }
        store.commit(&batch).await.unwrap();
        if round % 10 == 9 {
            store.close().await.unwrap();
            store = Store::open(&path).await.unwrap();
        }
    }
    let audit = store.reader().audit_after(0, usize::MAX).await.unwrap();
    assert!(audit.len() > 20);
    assert!(audit.iter().zip(1..).all(|(entry, seq)| entry.seq == seq), "seq is dense");
    for who in ["M1", "M2"] {
        let key = AuditKey::Verdict(account(who), symbol("IBM"));
        let mut history = audit.iter().filter(|entry| entry.key == key).peekable();
        let bare = |payload: &Option<std::sync::Arc<str>>| {
            payload.as_ref().map(|p| p.split(",\"as_of\"").next().unwrap().to_owned())
        };
        while let Some(entry) = history.next() {
            match history.peek() {
                Some(after) => assert_ne!(bare(&entry.payload), bare(&after.payload), "neighbours differ"),
                None => {
                    let row = state.get(&judged(verdict(who, "IBM", vec![])).key());
                    let payload = row.map(|row| match row {
                        Output::Verdict(v) => serde_json::to_string(v.as_ref()).unwrap().into(),
                        other => panic!("{other:?}"),
                    });
                    assert_eq!(bare(&entry.payload), bare(&payload), "the last one is the state");
                }
            }
        }
    }
}

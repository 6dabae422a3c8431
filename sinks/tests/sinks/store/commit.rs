//! What was committed is what stands.

use super::{Place, everything, on_both};
use crate::fixture::*;
use marea_model::live::ConfigUpdate;
use marea_model::output::{Change, MetricsWindow};
use marea_model::time::SECOND;
use marea_model::{BlockReason, Output, Partition, Timeframe, TradeRow};
use marea_sinks::store::{AuditKey, Ledger, Reader, StoreTarget, migrate};
use marea_sinks::{Store, StoreError};

on_both! {
    what_was_committed_is_there_after_a_restart,
    floats_come_back_bit_equal,
    several_epochs_are_one_transaction_and_each_has_its_audit,
    a_net_retraction_is_a_delete_and_many_rows_go_in_chunks,
    whoever_was_overtaken_writes_nothing,
    a_store_that_is_not_whole_is_refused,
    a_refusal_takes_nothing_over,
    a_peek_takes_nothing_over,
    a_history_keeps_its_laws,
    many_rows_stand_to_the_bit,
    a_reader_finds_what_stands,
    a_store_that_went_back_is_not_continued,
}

async fn what_was_committed_is_there_after_a_restart(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
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

    let mut store = Store::open(place.target()).await.unwrap();
    let again = store.standing().clone();
    assert_eq!(again.generation, 2);
    assert_eq!(again, marea_sinks::store::Standing { generation: 2, ..standing });
    assert_eq!(again.partitions[&Partition::new("ticks.csv").unwrap()].upper, u64::MAX - 3);
    // The same rows once more are no change: no audit, and the dead letter stands once.
    let committed = store.commit(&[everything(epoch_at(1))]).await.unwrap();
    assert_eq!((committed.audit.len(), committed.last_seq, committed.totals.records_in), (0, 3, 20));
    let open_at = if place.is_postgres() {
        "SELECT to_char(open_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM bars"
    } else {
        "SELECT strftime('%Y-%m-%d %H:%M:%S', open_at) FROM bars"
    };
    for (query, expected) in [
        ("SELECT count(*) || '' FROM dead_letters", "1"),
        ("SELECT value || ' ' || (epoch > 0 AND revision = 3) FROM config_events WHERE position = 0", "20 true"),
        ("SELECT value FROM config_events WHERE key IS NULL", "true"),
        ("SELECT volume || ' ' || turnover FROM bars", "10000000000 182150000000000"),
        (open_at, "2013-10-07 13:30:00"),
        ("SELECT close || ' ' || stop_loss || ' ' || seq FROM recommendations", "181.9 181.54 1"),
        ("SELECT reasons || ' ' || seq || ' ' || generation FROM verdicts WHERE account = 'M2'", "NO_POLICY 3 1"),
        (
            "SELECT 'the same' FROM verdicts v JOIN audit a ON a.seq = 2 AND a.payload = v.payload WHERE v.account = 'M1'",
            "the same",
        ),
        ("SELECT unknown_fields || ' ' || logic_version FROM pipeline", "4 1"),
        ("SELECT symbol || ' ' || bid || ' ' || ask FROM quotes WHERE event_time IS NOT NULL", "IBM 18189 18191"),
        ("SELECT account || ' ' || currency || ' ' || equity || ' ' || peak FROM accounts", "M1 USD 9000.5 10000"),
        ("SELECT symbol || ' ' || rev FROM amends", "IBM 4"),
    ] {
        let expected = if place.is_postgres() { expected } else { &expected.replace("20 true", "20 1") };
        assert_eq!(place.rows(query).await, [expected], "{query}");
    }
    // What stands before `low` is no longer needed.
    let raw = "SELECT source_offset || ' ' || content_type FROM raw_messages ORDER BY source_offset";
    assert_eq!(place.rows(raw).await, ["2 a/b", "3 a/b"]);
}

async fn floats_come_back_bit_equal(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let mut values = vec![-0.0, 5.0, f64::MAX, f64::MIN_POSITIVE / 8.0, f64::INFINITY, f64::NEG_INFINITY, 0.1 + 0.2];
    let mut bits = 7_u64;
    while values.len() < 1_000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.extend(Some(f64::from_bits(bits)).filter(|value| !value.is_nan()));
    }
    let changes = values.iter().enumerate().map(|(i, v)| up(indicator(&format!("x({i:04})"), "IBM", OPEN, *v)));
    store.commit(&[closed(1, changes.collect())]).await.unwrap();
    store.settle().await.unwrap();
    let stored: Vec<u64> = place.floats("SELECT value FROM indicators ORDER BY name").await;
    assert_eq!(stored, values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
    let nan = store.commit(&[closed(2, vec![up(indicator("x", "IBM", OPEN, f64::NAN))])]).await.unwrap_err();
    assert!(nan.to_string().ends_with("has a NaN; undefined must be null"), "{nan}");
    assert!(!nan.retryable());
}

async fn several_epochs_are_one_transaction_and_each_has_its_audit(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
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
    assert_eq!(place.rows("SELECT seq || ' ' || epoch FROM verdicts").await, ["4 15"]);
    // The ledger without I/O says the same.
    assert_eq!(Ledger::new(1).commit(&epochs).unwrap(), committed);
    let order = store.commit(&[closed(16, vec![])]).await.unwrap_err();
    assert_eq!(order.to_string(), "store: epoch 16 comes after 17 was committed");
}

async fn a_net_retraction_is_a_delete_and_many_rows_go_in_chunks(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let at = |i: i64| Output::Bar(bar("IBM", Timeframe::M1, OPEN + i * 60 * SECOND, [i, i + 2, i, i + 1], 2));
    store.commit(&[closed(1, (0..700).map(|i| up(at(i))).collect())]).await.unwrap();
    store.commit(&[closed(2, (3..699).map(|i| Change::Delete(at(i))).collect())]).await.unwrap();
    assert_eq!(place.rows("SELECT open || '' FROM bars ORDER BY open_time").await, ["0", "1", "2", "699"]);
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

async fn whoever_was_overtaken_writes_nothing(place: Place) {
    let mut old = Store::open(place.target()).await.unwrap();
    old.commit(&[closed(1, vec![])]).await.unwrap();
    assert!(Store::try_open(place.target()).await.unwrap().is_none(), "a live process is not fenced");
    old.commit(&[closed(2, vec![])]).await.unwrap();
    place.steal_lock().await;
    let mut new = Store::open(place.target()).await.unwrap();
    if place.is_postgres() {
        // Its connection was lost: the next call finds out who stands.
        assert!(old.commit(&[everything(3)]).await.unwrap_err().retryable());
    }
    let error = old.commit(&[everything(3)]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "store: another process has taken over: generation 2 at epoch 3, this one is generation 1"
    );
    assert!(matches!(error, StoreError::Fenced { .. }) && !error.retryable());
    assert!(matches!(old.commit(&[everything(3)]).await, Err(StoreError::Fenced { .. })), "and again");
    assert!(place.rows("SELECT symbol FROM bars").await.is_empty());
    new.commit(&[everything(3)]).await.unwrap();
}

async fn a_store_that_is_not_whole_is_refused(place: Place) {
    let cases = [
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9, 'later', 1, x'00', 0)",
            "its schema is version 9, this marea knows 5: use a newer marea",
        ),
        ("DROP TABLE trades", "table trades is missing: restore a backup or start with an empty store"),
        (
            "UPDATE pipeline SET upper = 5",
            "upper 5 is behind the table audit, which has epoch 1999999: restore a backup or start with an empty store",
        ),
        (
            "DELETE FROM audit WHERE seq = 3",
            "the audit ends at seq 2, the pipeline's row says 3: restore a backup or start with an empty store",
        ),
        (
            "UPDATE _sqlx_migrations SET checksum = x'00'",
            "migration 1 was applied in another form: this is not marea's schema",
        ),
        ("DELETE FROM pipeline", "unreadable row: pipeline has none"),
    ];
    for (i, (damage, expected)) in cases.into_iter().enumerate() {
        let place = place.another(&format!("damaged_{i}"));
        let damage = &place.bytes_zero(damage);
        let mut store = Store::open(place.target()).await.unwrap();
        store.commit(&[everything(1_999_999)]).await.unwrap();
        store.close().await.unwrap();
        place.execute(damage).await;
        let error = Store::open(place.target()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("store {}: {expected}", place.target()), "{damage}");
        assert!(!error.retryable());
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_refused() {
    let place = Place::sqlite("");
    let path = place.file();
    std::fs::write(&path, "no database, but longer than a header of a hundred bytes ".repeat(4)).unwrap();
    let error = Store::open(place.target()).await.unwrap_err().to_string();
    assert_eq!(error, format!("store {}: cannot be opened: file is not a database", path.display()));
    let nowhere = path.with_file_name("no").join("marea.db");
    let error = Store::open(&nowhere).await.unwrap_err().to_string();
    let detail = format!("{}.lock: No such file or directory (os error 2)", nowhere.display());
    assert_eq!(error, format!("store {}: cannot be opened: {detail}", nowhere.display()));
    for open in [Store::peek(&path).await.unwrap_err(), migrate(&path).await.unwrap_err()] {
        assert_eq!(open.to_string(), format!("store {}: cannot be opened: file is not a database", path.display()));
    }
}

/// Whoever cannot start must not stop the one that runs.
async fn a_refusal_takes_nothing_over(place: Place) {
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9, 'later', 1, x'00', 0)";
    let cases = [
        (newer, "DELETE FROM _sqlx_migrations WHERE version = 9"),
        ("ALTER TABLE trades RENAME TO t", "ALTER TABLE t RENAME TO trades"),
        ("UPDATE pipeline SET upper = 1", "UPDATE pipeline SET upper = 3"),
        ("UPDATE audit SET seq = 9 WHERE seq = 3", "UPDATE audit SET seq = 3 WHERE seq = 9"),
    ];
    let mut live = Store::open(place.target()).await.unwrap();
    live.commit(&[everything(2)]).await.unwrap();
    for (epoch, (damage, repair)) in (3..).zip(cases) {
        place.execute(&place.bytes_zero(damage)).await;
        place.steal_lock().await;
        Store::open(place.target()).await.unwrap_err();
        let repair = repair.replace("upper = 3", &format!("upper = {epoch}"));
        place.execute(&repair).await;
        let next = [closed(epoch, vec![])];
        if place.is_postgres() {
            assert!(live.commit(&next).await.unwrap_err().retryable(), "its connection was lost");
        }
        live.commit(&next).await.unwrap_or_else(|e| panic!("{damage}: {e}"));
    }
    assert_eq!(place.rows("SELECT generation || '' FROM pipeline").await, ["1"]);
}

async fn a_peek_takes_nothing_over(place: Place) {
    assert_eq!(Store::peek(place.target()).await.unwrap(), None, "nothing there");
    if !place.is_postgres() {
        assert!(!place.file().exists(), "and none was made");
        std::fs::write(place.file(), "").unwrap();
        assert_eq!(Store::peek(place.target()).await.unwrap(), None, "an empty file");
    }
    let mut live = Store::open(place.target()).await.unwrap();
    assert_eq!(Store::peek(place.target()).await.unwrap(), None, "no run yet");
    live.commit(&[everything(6)]).await.unwrap();
    assert_eq!(Store::peek(place.target()).await.unwrap(), Some(7));
    live.commit(&[closed(7, vec![])]).await.unwrap();
    live.close().await.unwrap();
    assert_eq!(Store::peek(place.target()).await.unwrap(), Some(8), "closed");
    assert_eq!(place.rows("SELECT generation || '' FROM pipeline").await, ["1"]);
    for (damage, expected) in [
        (
            "UPDATE pipeline SET logic_version = 7",
            "it was computed by logic version 7, this marea computes version 1: `marea migrate --rebuild` \
             computes it anew and shows what differs; or use the marea that wrote it",
        ),
        (
            "UPDATE _sqlx_migrations SET version = 9 WHERE version = 2",
            "its schema is version 9, this marea knows 5: use a newer marea",
        ),
    ] {
        place.execute(damage).await;
        for error in [Store::peek(place.target()).await.unwrap_err(), Store::open(place.target()).await.unwrap_err()] {
            assert_eq!(error.to_string(), format!("store {}: {expected}", place.target()));
        }
    }
}

async fn a_history_keeps_its_laws(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
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
            store = Store::open(place.target()).await.unwrap();
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

async fn many_rows_stand_to_the_bit(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let values = [-0.0, 0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE / 4.0, 0.1 + 0.2, f64::MAX, -7.5];
    let at = |i: i64| OPEN + i * SECOND;
    let row = |i: i64| {
        let mut bar = bar("IBM", Timeframe::S1, at(i), [i64::MIN + i, i64::MAX - i, -i, i], 2);
        (bar.body.volume, bar.body.turnover, bar.closed) = (i128::MAX - i128::from(i), i128::MIN, i % 2 == 0);
        Output::Bar(bar)
    };
    let exit = |i: i64| TradeRow { entry_time: at(i), exit_time: at(i + 1), ..trade("IBM", "ema-fast") };
    let value = |i: i64| indicator("x\t\\N\n", "IBM", at(i), values[i as usize % values.len()]);
    let state = |range: std::ops::Range<i64>, epoch| {
        let all = range.flat_map(|i| [row(i), value(i), Output::Trade(exit(i))]);
        let mut closed = closed(epoch, all.map(up).collect());
        closed.changes.sort_by_cached_key(|change| match change {
            Change::Upsert(row) | Change::Delete(row) => row.key(),
        });
        closed
    };
    store.commit(&[state(0..9_000, 1)]).await.unwrap();
    store.settle().await.unwrap();
    let differences = store.verify(&state(0..9_000, 1)).await.unwrap();
    assert_eq!((differences.len(), differences.first()), (0, None));
    // Replaced, deleted and new, many of each.
    let gone = state(0..8_200, 2).changes.into_iter().map(|change| match change {
        Change::Upsert(row) => Change::Delete(row),
        delete => delete,
    });
    store.commit(&[closed(2, gone.collect()), state(8_600..17_000, 3)]).await.unwrap();
    store.settle().await.unwrap();
    let differences = store.verify(&state(8_200..17_000, 3)).await.unwrap();
    assert_eq!((differences.len(), differences.first()), (0, None));
    let counts = "SELECT count(*) || ' ' || sum(CASE WHEN epoch = 1 THEN 1 ELSE 0 END) FROM indicators";
    assert_eq!(place.rows(counts).await, ["8800 400"]);
    // And by what is read once for each row: nothing was mended, so nothing is written.
    store.commit(&[closed(4, vec![])]).await.unwrap();
    store.settle().await.unwrap();
    for table in ["bars", "indicators", "trades"] {
        assert_eq!(place.rows(&format!("SELECT max(epoch) || '' FROM {table}")).await, ["3"]);
    }
}

async fn a_reader_finds_what_stands(place: Place) {
    let target = match place.target() {
        StoreTarget::Postgres { url, .. } => StoreTarget::parse(&url.replace("postgres@", "postgres:s3cret@")),
        sqlite => sqlite,
    };
    let mut store = Store::open(&target).await.unwrap();
    let update = ConfigUpdate::Put { key: "/echo/core/master_accounts".into(), value: "M1".into(), revision: 1 };
    store.note_config(1, std::slice::from_ref(&update));
    let mut epoch = everything(1);
    epoch.changes.push(up(Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::Days30, Some(1.5))))));
    store.commit(&[epoch]).await.unwrap();
    store.settle().await.unwrap();
    for reader in [store.reader(), Reader::open(&target).await.unwrap()] {
        let audit = reader.audit_after(0, 9).await.unwrap();
        let ibm = symbol("IBM");
        assert_eq!(reader.recommendation(ibm).await.unwrap().as_deref(), audit[0].payload.as_deref());
        assert_eq!(reader.verdict(account("M2"), ibm).await.unwrap().as_deref(), audit[2].payload.as_deref());
        assert_eq!(reader.verdict(account("M3"), ibm).await.unwrap(), None);
        assert_eq!(reader.config_events().await.unwrap(), std::slice::from_ref(&update));
        let track = ("ema-fast".to_owned(), 12, [Some(0.042), Some(1.5), Some(0.583_333_333_333_333_4)]);
        assert_eq!(reader.tracks(ibm, Timeframe::M5).await.unwrap(), [track]);
        assert!(!format!("{reader:?}").contains("s3cret"));
    }
    assert_eq!((store.reader().generation(), Reader::open(&target).await.unwrap().opened_at_seq()), (1, 3));
    assert!(!format!("{store:?} {}", store.target()).contains("s3cret"));
    let nothing = place.another("nothing").target();
    let error = Reader::open(nothing).await.unwrap_err();
    assert!(!error.retryable(), "{error}");
}

/// A replica that lagged took its place: going on would leave a gap.
async fn a_store_that_went_back_is_not_continued(place: Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    store.commit(&[closed(1, vec![])]).await.unwrap();
    store.commit(&[closed(2, vec![])]).await.unwrap();
    place.execute("UPDATE pipeline SET upper = 2").await;
    let expected = format!(
        "store {}: upper 2 is behind 3, which it had confirmed: a replica that lagged or an older backup has taken its \
         place; start again, to compute anew what it lost",
        place.target()
    );
    for _ in 0..2 {
        let error = store.commit(&[closed(3, vec![])]).await.unwrap_err();
        assert!(!error.retryable());
        assert_eq!(error.to_string(), expected);
    }
}

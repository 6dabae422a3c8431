//! What only PostgreSQL can do to a commit.

use super::{Place, everything};
use crate::fixture::*;
use marea_model::output::{ClosedEpoch, Totals};
use marea_model::{BlockReason, Output, Timeframe};
use marea_servers::Postgres;
use marea_servers::relay::{Cut, Relay};
use marea_sinks::store::{AuditEntry, Reader, StoreTarget, migrate};
use marea_sinks::{Store, StoreError};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An epoch that counts one record, flips a verdict, and adds a bar.
fn flip(epoch: u64) -> ClosedEpoch {
    let reasons = if epoch.is_multiple_of(2) { vec![] } else { vec![BlockReason::QuoteStale] };
    let at = OPEN + epoch as i64 * Timeframe::M1.nanos();
    let bar = bar("IBM", Timeframe::M1, at, [1, 1, 1, epoch as i64], 2);
    let mut closed = closed(epoch, vec![up(Output::Bar(bar)), up(judged(verdict("M1", "IBM", reasons)))]);
    closed.totals = Totals { records_in: 1, accepted: 1, ..Totals::default() };
    closed.dead = vec![dead_letter(epoch, marea_model::Reason::Late, b"{}")];
    closed
}

/// Commits, again and again while that may help. How often it did not.
async fn commit(store: &mut Store, epochs: &[ClosedEpoch], published: &mut Vec<AuditEntry>) -> usize {
    let began = Instant::now();
    for failures in 0.. {
        match store.commit(epochs).await {
            Ok(committed) => {
                published.extend(committed.audit);
                return failures;
            }
            Err(error) => assert!(error.retryable() && began.elapsed() < Duration::from_secs(30), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    unreachable!()
}

/// Of epochs 1 to `last`, each was committed once and published once.
async fn nothing_lost_nothing_twice(place: &Place, last: u64, published: &[AuditEntry]) {
    let query = "SELECT records_in || ' ' || upper || ' ' || last_seq FROM pipeline";
    assert_eq!(place.rows(query).await, [format!("{last} {} {last}", last + 1)]);
    for table in ["bars", "dead_letters", "audit"] {
        let count = place.rows(&format!("SELECT count(*) || ' ' || count(DISTINCT epoch) FROM {table}")).await;
        assert_eq!(count, [format!("{last} {last}")], "{table}");
    }
    let seqs: Vec<(u64, u64)> = published.iter().map(|entry| (entry.seq, entry.epoch)).collect();
    assert_eq!(seqs, (1..=last).map(|n| (n, n)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_at_its_commit_loses_nothing_and_doubles_nothing() {
    let place = Place::postgres("cut");
    let Place::Postgres(url) = &place else { unreachable!() };
    let (login, rest) = url.split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let relay = Relay::to(server);
    let through = format!("{login}@127.0.0.1:{}/{database}?sslmode=disable", relay.port);
    let mut store = Store::open(StoreTarget::parse(&through)).await.unwrap();
    let (mut published, mut failures, mut cuts) = (Vec::new(), BTreeMap::<u8, usize>::new(), 0);
    let mut epoch = 0;
    for round in 0..20 {
        for cut in [Cut::Before, Cut::Behind, Cut::Answer, Cut::Silent, Cut::Nowhere] {
            if cut == Cut::Silent && round % 10 != 0 {
                continue;
            }
            epoch += 1;
            relay.arm(cut);
            cuts += usize::from(cut != Cut::Nowhere);
            let failed = commit(&mut store, &[flip(epoch)], &mut published).await;
            assert_eq!(failed > 0, cut != Cut::Nowhere, "{cut:?}");
            *failures.entry(cut as u8).or_default() += failed;
        }
    }
    // The first lands, unheard; the retry, with a second, finds that out, and is cut as well.
    for cut in [Cut::Before, Cut::Behind, Cut::Answer] {
        let epochs = [flip(epoch + 1), flip(epoch + 2)];
        relay.arm(Cut::Answer);
        assert!(store.commit(&epochs[..1]).await.unwrap_err().retryable());
        relay.arm(cut);
        let before = relay.cuts();
        while relay.cuts() == before {
            assert!(store.commit(&epochs).await.unwrap_err().retryable());
        }
        commit(&mut store, &epochs, &mut published).await;
        epoch += 2;
        cuts += 2;
    }
    assert_eq!(relay.cuts(), cuts);
    println!("failures by cut {failures:?} of {epoch} commits");
    nothing_lost_nothing_twice(&place, epoch, &published).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_loses_nothing_and_doubles_nothing() {
    let server = Postgres::start().unwrap();
    let place = Place::Postgres(server.database("killed"));
    let mut store = Store::open(place.target()).await.unwrap();
    let (mut published, mut epoch, mut failures) = (Vec::new(), 0, 0);
    for round in 0..8_u64 {
        if round % 2 == 0 {
            // Between two commits.
            server.kill().unwrap();
            let error = store.commit(&[flip(epoch + 1)]).await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
            server.restart().unwrap();
        }
        let until = epoch + 40;
        std::thread::scope(|threads| {
            let killer = (round % 2 == 1).then(|| {
                threads.spawn(|| {
                    std::thread::sleep(Duration::from_micros(5_000 + 3_700 * round));
                    server.kill().unwrap();
                    server.restart().unwrap();
                })
            });
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    while epoch < until || killer.as_ref().is_some_and(|killer| !killer.is_finished()) {
                        epoch += 1;
                        failures += commit(&mut store, &[flip(epoch)], &mut published).await;
                    }
                });
            });
        });
    }
    assert!(failures > 0);
    nothing_lost_nothing_twice(&place, epoch, &published).await;

    // Read-only: paused, and healed by itself.
    server.query("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
    server.query("SELECT pg_reload_conf()").unwrap();
    let began = Instant::now();
    let error = loop {
        match store.commit(&[flip(epoch + 1)]).await {
            Ok(committed) => (epoch, published) = (epoch + 1, [published, committed.audit].concat()),
            Err(error) => break error,
        }
        assert!(began.elapsed() < Duration::from_secs(10));
    };
    let expected = "read-only: nothing is acknowledged until it can be written";
    assert_eq!(error.to_string(), format!("store {}: {expected}", place.target()));
    assert!(error.retryable());
    let again = store.commit(&[flip(epoch + 1)]).await.unwrap_err();
    assert!(matches!(again, StoreError::ReadOnly { .. }), "{again:?}");
    server.query("ALTER SYSTEM RESET default_transaction_read_only").unwrap();
    server.query("SELECT pg_reload_conf()").unwrap();
    epoch += 1;
    commit(&mut store, &[flip(epoch)], &mut published).await;

    // Stopped for good, then there again.
    server.stop().unwrap();
    let error = store.commit(&[flip(epoch + 1)]).await.unwrap_err();
    assert!(error.retryable(), "{error:?}");
    let opened = Store::open(place.target()).await.unwrap_err();
    assert!(opened.retryable(), "{opened:?}");
    server.restart().unwrap();
    epoch += 1;
    commit(&mut store, &[flip(epoch)], &mut published).await;
    nothing_lost_nothing_twice(&place, epoch, &published).await;
}

/// The lock was lost with the connection; another process took it, and the first one sees that it is behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_another_has_is_waited_for_and_then_fences() {
    let place = Place::postgres("lost_lock");
    let mut first = Store::open(place.target()).await.unwrap();
    first.commit(&[flip(1)]).await.unwrap();
    // Whoever holds the lock has not taken over yet.
    place.steal_lock().await;
    let holder = place.hold_lock().await;
    assert!(first.commit(&[flip(2)]).await.unwrap_err().retryable());
    let error = first.commit(&[flip(2)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
    drop(holder);
    let mut published = Vec::new();
    commit(&mut first, &[flip(2)], &mut published).await;
    assert!(Store::try_open(place.target()).await.unwrap().is_none(), "it has its lock again");
    place.steal_lock().await;
    let mut second = Store::open(place.target()).await.unwrap();
    second.commit(&[flip(3)]).await.unwrap();
    assert!(first.commit(&[flip(3)]).await.unwrap_err().retryable());
    let error = first.commit(&[flip(3)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced { mine: 1, found: 2, upper: 4 }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_says_what_it_did_and_what_it_skipped() {
    let place = Place::postgres("migrated");
    let done = migrate(place.target()).await.unwrap();
    assert_eq!(done[..2], ["applied migration 1 init", "applied migration 2 behind"]);
    assert!(done.iter().any(|line| line.starts_with("granted to marea_reader")), "{done:#?}");
    let timescale = place.rows("SELECT count(*) || '' FROM pg_available_extensions WHERE name = 'timescaledb'").await;
    if timescale == ["0"] {
        assert!(done.last().unwrap().starts_with("skipped: TimescaleDB is not available on this server"), "{done:#?}");
    } else {
        assert!(done.iter().any(|line| line == "bars: hypertable in chunks of 7 days"), "{done:#?}");
    }
    assert!(!done.iter().any(|line| line.contains("skipped") && !line.contains("TimescaleDB")), "{done:#?}");
    let again = migrate(place.target()).await.unwrap();
    assert_eq!(again[0], "the schema is up to date");
    assert_eq!(Store::peek(place.target()).await.unwrap(), None);

    let mut store = Store::open(place.target()).await.unwrap();
    assert!(matches!(migrate(place.target()).await, Err(StoreError::Busy { .. })), "not under a live process");
    store.commit(&[everything(1)]).await.unwrap();
    let view = "SELECT concat_ws(' ', symbol, timestamp_utc AT TIME ZONE 'UTC', open, high, volume, round(vwap, 2)) \
                FROM market_data";
    assert_eq!(place.rows(view).await, ["IBM 2013-10-07 13:30:00 181.9 182.15 100 182.15"]);
    let undocumented = "SELECT CAST(c.relname AS TEXT) FROM pg_class c WHERE relkind IN ('r', 'v') \
                        AND relnamespace = 'public'::regnamespace AND relname NOT LIKE '\\_sqlx%' \
                        AND obj_description(c.oid) IS NULL";
    assert!(place.rows(undocumented).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_needs_no_right_to_change_the_schema() {
    let place = Place::postgres("roles");
    let Place::Postgres(url) = &place else { unreachable!() };
    place.execute("DROP ROLE IF EXISTS a_writer; CREATE ROLE a_writer LOGIN").await;
    place.execute("DROP ROLE IF EXISTS a_reader; CREATE ROLE a_reader LOGIN").await;
    let user = |name: &str| StoreTarget::parse(&url.replace("postgres@", &format!("{name}@")));
    let error = Store::open(user("a_writer")).await.unwrap_err();
    assert!(!error.retryable() && error.to_string().contains("permission denied for schema"), "{error}");
    migrate(place.target()).await.unwrap();
    let error = Store::open(user("a_writer")).await.unwrap_err();
    assert!(!error.retryable() && error.to_string().contains("permission denied for table"), "{error}");
    place.execute("GRANT marea_writer TO a_writer; GRANT marea_reader TO a_reader").await;
    let mut store = Store::open(user("a_writer")).await.unwrap();
    // More than goes without a temporary table.
    let bars = (0..9_000).map(|i| up(Output::Bar(bar("IBM", Timeframe::S1, i * 1_000_000_000, [1, 1, 1, 1], 2))));
    store.commit(&[closed(1, bars.collect()), everything(2)]).await.unwrap();
    store.close().await.unwrap();
    let reader = Reader::open(user("a_reader")).await.unwrap();
    assert_eq!(reader.audit_after(0, 9).await.unwrap().len(), 3);
    let error = Store::open(user("a_reader")).await.unwrap_err();
    assert!(!error.retryable(), "{error}");
    let nobody = Store::open(user("nobody_at_all")).await.unwrap_err();
    assert!(matches!(nobody, StoreError::Open { .. }), "{nobody:?}");
    let nowhere = Store::peek(StoreTarget::parse(&format!("{url}_not"))).await.unwrap_err();
    assert!(matches!(nowhere, StoreError::Open { .. }), "{nowhere:?}");
}

/// What the server says when its disk is full, whatever is written to a table.
async fn fill_disk(place: &Place, table: &str) {
    let sql = "CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$; \
               CREATE TRIGGER full_disk BEFORE INSERT ON $table FOR EACH STATEMENT EXECUTE FUNCTION full_disk()";
    place.execute(&sql.replace("$table", table)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_heals() {
    let place = Place::postgres("full_disk");
    let mut store = Store::open(place.target()).await.unwrap();
    let mut published = Vec::new();
    commit(&mut store, &[flip(1)], &mut published).await;
    let expected = format!("store {}: disk full: nothing is acknowledged until there is space", place.target());
    // At the last table of a transaction, and at the first.
    for (epoch, table) in [(2, "dead_letters"), (3, "bars")] {
        fill_disk(&place, table).await;
        for _ in 0..3 {
            let error = loop {
                match store.commit(&[flip(epoch)]).await.unwrap_err() {
                    // The server has not yet seen that the old connection is gone.
                    StoreError::Busy { .. } => tokio::time::sleep(Duration::from_millis(10)).await,
                    error => break error,
                }
            };
            assert_eq!(error.to_string(), expected);
            assert!(error.retryable());
            assert_eq!(store.standing().upper, epoch);
        }
        place.execute(&format!("DROP TRIGGER full_disk ON {table}")).await;
        commit(&mut store, &[flip(epoch)], &mut published).await;
    }
    nothing_lost_nothing_twice(&place, 3, &published).await;

    // What follows is written in the end, too.
    store.commit(&[closed(4, vec![up(indicator("ema(12)", "IBM", OPEN, 1.5))])]).await.unwrap();
    fill_disk(&place, "indicators").await;
    assert_eq!(store.settle().await.unwrap_err().to_string(), expected);
    assert!(store.settle().await.unwrap_err().retryable());
    place.execute("DROP TRIGGER full_disk ON indicators").await;
    let began = Instant::now();
    while let Err(error) = store.settle().await {
        assert!(error.retryable() && began.elapsed() < Duration::from_secs(30), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(place.rows("SELECT value || '' FROM indicators").await, ["1.5"]);
    assert_eq!(place.rows("SELECT metrics_upper || '' FROM pipeline").await, ["5"]);
}

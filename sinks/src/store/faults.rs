//! What a commit does when the database fails.

use super::{Store, StoreError, StoreTarget, sqlite};
use crate::fixture::{judged, up, verdict};
use marea_model::output::{ClosedEpoch, Totals};
use marea_model::{BlockReason, Cursor, DeadLetter, Epoch, Partition, Reason};
use std::time::{Duration, Instant};

fn epoch(epoch: Epoch, dead: usize) -> ClosedEpoch {
    let partition = Partition::new("ticks").unwrap();
    let letter = |offset| DeadLetter {
        cursor: Cursor { partition, offset, row: 0 },
        reason: Reason::Malformed,
        field: String::new(),
        value: String::new(),
        detail: String::new(),
        original: vec![7; 4_096],
    };
    let totals = Totals { records_in: 1, accepted: 1, ..Totals::default() };
    let dead = (0..dead as u64).map(|i| letter(epoch * 1_000 + i)).collect();
    ClosedEpoch { dead, totals, ..ClosedEpoch::empty(epoch) }
}

async fn pragma(store: &mut Store, sql: &str) {
    store.link().run(sql).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_pauses_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marea.db");
    let mut store = Store::open(&path).await.unwrap();
    store.commit(&[epoch(1, 0)]).await.unwrap();
    // The file may not grow any more on this connection: what SQLite says when the disk is full.
    pragma(&mut store, "PRAGMA max_page_count = 1").await;
    let batch = [epoch(2, 200), epoch(3, 0)];
    let error = store.commit(&batch).await.unwrap_err();
    let expected = "disk full: nothing is acknowledged until there is space";
    assert_eq!(error.to_string(), format!("store {}: {expected}", path.display()));
    assert!(error.retryable());
    assert_eq!(store.standing().upper, 2, "nothing was committed");
    let committed = store.commit(&batch).await.unwrap();
    assert_eq!((committed.upper, committed.totals.records_in), (4, 3));
}

#[tokio::test]
async fn a_store_that_cannot_be_written_pauses_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marea.db");
    let mut store = Store::open(&path).await.unwrap();
    pragma(&mut store, "PRAGMA query_only = ON").await;
    let error = store.commit(&[epoch(1, 1)]).await.unwrap_err();
    let expected = "read-only: nothing is acknowledged until it can be written";
    assert_eq!(error.to_string(), format!("store {}: {expected}", path.display()));
    assert!(error.retryable());
    assert_eq!(store.commit(&[epoch(1, 1)]).await.unwrap().upper, 2);
}

#[tokio::test]
async fn a_lock_that_another_holds_is_said_and_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marea.db");
    let mut store = Store::open(&path).await.unwrap();
    pragma(&mut store, "PRAGMA busy_timeout = 20").await;
    let mut other = sqlite::connect(&path).await.unwrap();
    other.begin().await.unwrap();
    let error = store.commit(&[epoch(1, 1)]).await.unwrap_err();
    assert_eq!(error.to_string(), format!("store {}: locked by another process", path.display()));
    assert!(error.retryable());
    other.run("ROLLBACK").await.unwrap();
    store.commit(&[epoch(1, 1)]).await.unwrap();
}

/// The outcome of COMMIT was lost: the connection is gone, and the epochs are in the store after all.
async fn a_commit_that_landed_is_not_repeated(target: StoreTarget) {
    let mut store = Store::open(target).await.unwrap();
    let before = store.ledger().clone();
    let with =
        |number, reasons| ClosedEpoch { changes: vec![up(judged(verdict("M1", "A", reasons)))], ..epoch(number, 1) };
    let epochs = [with(1, vec![]), with(2, vec![BlockReason::NoQuote]), with(3, vec![])];
    let first = store.commit(&epochs[..2]).await.unwrap();
    *store.ledger() = before;
    store.forget_link();
    let committed = loop {
        match store.commit(&epochs).await {
            Ok(committed) => break committed,
            // The server has not yet seen that the old connection is gone.
            Err(error) => assert!(matches!(error, StoreError::Busy { .. }), "{error:?}"),
        }
    };
    assert_eq!((first.totals.records_in, committed.totals.records_in), (2, 3), "none counted twice");
    assert_eq!(committed.audit[..2], first.audit, "they are still to be published");
    let audit: Vec<_> = committed.audit.iter().map(|entry| (entry.seq, entry.epoch)).collect();
    assert_eq!(audit, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(committed.upper, 4);
}

#[tokio::test]
async fn a_commit_that_landed_is_not_repeated_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    a_commit_that_landed_is_not_repeated(folder.path().join("marea.db").into()).await;
}

#[tokio::test]
async fn a_commit_that_landed_is_not_repeated_on_postgres() {
    let url = marea_servers::shared::postgres().database("landed");
    a_commit_that_landed_is_not_repeated(StoreTarget::parse(&url)).await;
}

/// Its connections stay open, and nothing answers.
#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_and_found_again() {
    let server = marea_servers::Postgres::start().unwrap();
    let mut store = Store::open(StoreTarget::parse(&server.url())).await.unwrap();
    store.be_patient(Duration::from_secs(1));
    store.commit(&[epoch(1, 1)]).await.unwrap();
    server.pause().unwrap();
    let error = store.commit(&[epoch(2, 1)]).await.unwrap_err();
    let expected = format!("store {}: unavailable: no answer for 1 s while committing", store.target());
    assert_eq!(error.to_string(), expected);
    assert!(error.retryable());
    server.resume().unwrap();
    let began = Instant::now();
    let committed = loop {
        match store.commit(&[epoch(2, 1), epoch(3, 1)]).await {
            Ok(committed) => break committed,
            Err(error) => assert!(error.retryable() && began.elapsed() < Duration::from_secs(30), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((committed.upper, committed.totals.records_in), (4, 3));
}

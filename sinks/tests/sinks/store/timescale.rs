//! Chunks, compression and retention: on TimescaleDB where the server has it, and the same commits on a server without.

use super::Place;
use crate::fixture::*;
use marea_model::output::Change;
use marea_model::time::{MILLI, SECOND};
use marea_model::{Nanos, Output, Timeframe};
use marea_sinks::Store;
use marea_sinks::store::{Chunks, migrate};

const DAY: Nanos = 86_400 * SECOND;

/// Runs what TimescaleDB runs by itself from time to time.
async fn run_jobs(place: &Place, procedure: &str) {
    let jobs = format!(
        "SELECT format('CALL run_job(%s)', job_id) FROM timescaledb_information.jobs \
         WHERE proc_name = '{procedure}' AND hypertable_name IS NOT NULL ORDER BY job_id"
    );
    for call in place.rows(&jobs).await {
        place.execute(&call).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_compressed_take_corrections_and_are_forgotten() {
    let place = Place::postgres("timescale");
    let chunks = Chunks { span: DAY, compress_after: 2 * DAY, forget_after: Some(20 * DAY) };
    let done = migrate(place.target().with_chunks(chunks)).await.unwrap();
    let available = "SELECT count(*) || '' FROM pg_available_extensions WHERE name = 'timescaledb'";
    let timescale = place.rows(available).await == ["1"];
    assert_eq!(timescale, done.contains(&"trades: forgotten after 20 days".to_owned()), "{done:#?}");

    // A day of bars, an indicator and a trade; then the clock moves on.
    let mut store = Store::open(place.target()).await.unwrap();
    let at = |day: i64| epoch_at(day * DAY / MILLI);
    let minute = |i: i64, close| bar("IBM", Timeframe::M1, OPEN + i * 60 * SECOND, [1, 9, 1, close], 2);
    let mut rows: Vec<Change> = (0..100).map(|i| up(Output::Bar(minute(i, 5)))).collect();
    rows.push(up(indicator("ema(12)", "IBM", OPEN, 1.5)));
    rows.push(up(Output::Trade(trade("IBM", "ema"))));
    store.commit(&[closed(at(0), rows)]).await.unwrap();
    store.commit(&[closed(at(10), Vec::new())]).await.unwrap();
    store.settle().await.unwrap();
    if timescale {
        run_jobs(&place, "policy_compression").await;
        let compressed =
            "SELECT hypertable_name || ' ' || is_compressed FROM timescaledb_information.chunks ORDER BY 1";
        assert_eq!(place.rows(compressed).await, ["bars true", "indicators true", "trades true"]);
    }

    // A correction of what is compressed: one bar says otherwise, one is gone, one is new.
    let amended = vec![
        up(Output::Bar(minute(3, 7))),
        Change::Delete(Output::Bar(minute(4, 5))),
        up(Output::Bar(minute(100, 8))),
        up(indicator("ema(12)", "IBM", OPEN, 2.5)),
    ];
    store.commit(&[closed(at(10) + 1, amended)]).await.unwrap();
    store.settle().await.unwrap();
    let bars = "SELECT count(*) || ' ' || sum(close) FROM market_data";
    assert_eq!(place.rows(bars).await, ["100 5.05"]);
    assert_eq!(place.rows("SELECT value || '' FROM indicators").await, ["2.5"]);
    if timescale {
        // What was unpacked for it is packed again.
        run_jobs(&place, "policy_compression").await;
        assert_eq!(place.rows(bars).await, ["100 5.05"]);
    }

    store.commit(&[closed(at(30), Vec::new())]).await.unwrap();
    if timescale {
        run_jobs(&place, "policy_retention").await;
        let left = "SELECT (SELECT count(*) FROM bars) || ' ' || (SELECT count(*) FROM indicators) || ' ' || \
                    (SELECT count(*) FROM trades)";
        assert_eq!(place.rows(left).await, ["100 0 0"], "bars stay");
    }
    store.close().await.unwrap();
    // Other lengths take effect at the next migration.
    let done = migrate(place.target().with_chunks(Chunks { forget_after: None, ..chunks })).await.unwrap();
    assert_eq!(timescale, done.contains(&"trades: never forgotten".to_owned()), "{done:#?}");
    let policies = "SELECT count(*) || '' FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention'";
    if timescale {
        assert_eq!(place.rows(policies).await, ["0"]);
    }
}

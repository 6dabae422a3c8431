//! Figures, on demand: `cargo test -p marea-sinks --test sinks measure -- --ignored --nocapture --test-threads 1`.

use super::Place;
use crate::fixture::*;
use marea_model::output::ClosedEpoch;
use marea_model::time::SECOND;
use marea_model::{BlockReason, Output, Progress, Timeframe};
use marea_sinks::Store;
use std::time::{Duration, Instant};

fn bars(symbol: &str, from: i64, count: i64, epoch: u64) -> ClosedEpoch {
    let row = |i: i64| bar(symbol, Timeframe::S1, OPEN + (from + i) * SECOND, [18_190, 18_215, 18_190, i], 2);
    let mut closed = closed(epoch, (0..count).map(|i| up(Output::Bar(row(i)))).collect());
    closed.progress = Progress { sealed_through: i64::MAX, closed_through: i64::MAX };
    closed
}

fn quantile(times: &mut [Duration], share: f64) -> f64 {
    times.sort();
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
}

async fn latency(place: &Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let mut epoch = 0;
    for (rows, commits) in
        [(1, 400), (10, 400), (50, 400), (1_000, 60), (2_000, 30), (5_000, 20), (10_000, 10), (50_000, 5)]
    {
        let mut times = Vec::new();
        for i in 0..commits {
            epoch += 1;
            let mut closed = bars("IBM", i * rows / 2, rows - 1, epoch);
            let reasons = if epoch % 2 == 0 { vec![] } else { vec![BlockReason::QuoteStale] };
            closed.changes.push(up(judged(verdict("M1", "IBM", reasons))));
            let began = Instant::now();
            store.commit(&[closed]).await.unwrap();
            times.push(began.elapsed());
        }
        let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        let kind = place.target().kind();
        println!("{kind}: {rows} rows: p50 {p50:.2} ms, p99 {p99:.2} ms, {:.0} rows/s", rows as f64 / p50 * 1e3);
    }
}

async fn restoration(place: &Place) {
    let mut store = Store::open(place.target()).await.unwrap();
    let (symbols, each) = (20, 50_000);
    let mut writing = Duration::ZERO;
    for i in 0..symbols {
        let epoch = bars(&format!("S{i:02}"), 0, each, i + 1);
        let began = Instant::now();
        store.commit(&[epoch]).await.unwrap();
        writing += began.elapsed();
    }
    let total = symbols as f64 * each as f64;
    let kind = place.target().kind();
    println!("{kind}: {total} new bars in {writing:.1?}: {:.0} rows/s", total / writing.as_secs_f64());
    let began = Instant::now();
    for i in 0..4 {
        store.commit(&[bars(&format!("S{i:02}"), 0, each, symbols + i + 1)]).await.unwrap();
    }
    println!("{kind}: replaced: {:.0} rows/s", 4.0 * each as f64 / began.elapsed().as_secs_f64());
    for _ in 0..2 {
        let began = Instant::now();
        let restored = store.restoration(Timeframe::S1).await.unwrap().unwrap();
        println!("{kind}: restoration of {} bars: {:.2?}", restored.sealed.bars.len(), began.elapsed());
        assert!(restored.sealed.bars.is_sorted_by_key(|(symbol, open_time, _)| (*symbol, *open_time)));
    }
    let began = Instant::now();
    let differences = store.verify(&closed(1, vec![])).await.unwrap();
    println!("{kind}: verification with nothing unsealed: {:.2?}", began.elapsed());
    assert_eq!(differences, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures, not a test"]
async fn measure_latency() {
    latency(&Place::sqlite("")).await;
    latency(&Place::postgres("latency")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures, not a test"]
async fn measure_restoration() {
    restoration(&Place::sqlite("")).await;
    restoration(&Place::postgres("restoration")).await;
}

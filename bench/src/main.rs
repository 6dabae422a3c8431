//! Marea's benchmarks, each beside its baseline in the same run: `marea-bench all`, or `w1`, `w2`.
//!
//! Baseline and subject take turns, so that a machine whose speed drifts slows both; the ratio is of medians.

mod w1;
mod w2;
mod workload;

use std::time::{Duration, Instant};

/// The rounds of each comparison.
const ROUNDS: usize = 5;

struct Row {
    what: String,
    baseline: Vec<f64>,
    subject: Vec<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

impl Row {
    /// Items a second, in millions.
    fn print(&self, items: f64) {
        let rate = |values: &[f64], pick: fn(&[f64]) -> f64| items / pick(values) / 1e6;
        let least = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |v: &[f64]| v.iter().copied().fold(0.0, f64::max);
        println!(
            "{:<44} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>8.3}",
            self.what,
            rate(&self.baseline, median),
            rate(&self.subject, median),
            rate(&self.subject, most),
            rate(&self.subject, least),
            median(&self.baseline) / median(&self.subject)
        );
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

fn header(title: &str) {
    println!("\n{title}");
    println!("{:<44} {:>9} {:>9} {:>9} {:>9} {:>8}", "M items/s", "baseline", "median", "min", "max", "ratio");
}

fn run_w1() -> anyhow::Result<()> {
    const TRADES: usize = 5_000_000;
    let trades = workload::trades(TRADES);
    let rows: Vec<_> = trades.iter().map(|t| (t.time, t.symbol, t.price(), t.size())).collect();
    header("W1: ticks → bars → five indicators, against a plain loop in memory");
    for (bar, name) in [(1_000_000_000, "1 s bars"), (10_000_000, "10 ms bars")] {
        for (per_epoch, workers) in [(100, 1), (1_000, 1), (10_000, 1), (65_536, 1), (10_000, 2)] {
            let what = format!("{name}, {per_epoch} ticks an epoch, {workers} worker(s)");
            let mut row = Row { what, baseline: Vec::new(), subject: Vec::new() };
            for _ in 0..ROUNDS {
                let (expected, took) = timed(|| w1::plain_loop(&rows, bar));
                row.baseline.push(took.as_secs_f64());
                let (sum, took) = w1::graph(&trades, bar, per_epoch, workers)?;
                row.subject.push(took.as_secs_f64());
                anyhow::ensure!(sum.agrees(&expected), "W1 checksum: {sum:?} is not the loop's {expected:?}");
                if bar == 1_000_000_000 {
                    anyhow::ensure!(sum.agrees(&w1::Checksum::expected()), "W1 checksum: {sum:?}");
                }
            }
            row.print(TRADES as f64);
        }
    }
    Ok(())
}

fn run_w2() -> anyhow::Result<()> {
    let closes = workload::closes();
    let prices: Vec<f64> = closes.iter().map(|c| *c as f64 / 10_000.0).collect();
    let steps = (closes.len() * w2::variants().count()) as f64;
    header("W2: 400 EMA-cross variants × 500,000 bars, against a plain loop a variant");
    let row = |what: &str| Row { what: what.to_owned(), baseline: Vec::new(), subject: Vec::new() };
    let (mut at_once, mut streaming) =
        (row("variants added at once to the history"), row("one closed bar an epoch (5,000 bars)"));
    let few = 5_000;
    for _ in 0..ROUNDS {
        let (expected, took) = timed(|| w2::plain_loop(&prices));
        anyhow::ensure!(expected.agrees(&w2::Checksum::EXPECTED), "W2 checksum of the loop: {expected:?}");
        at_once.baseline.push(took.as_secs_f64());
        let (sum, took) = w2::added_at_once(&closes)?;
        anyhow::ensure!(sum.agrees(&expected), "W2 checksum: {sum:?} is not the loop's {expected:?}");
        at_once.subject.push(took.as_secs_f64());
        streaming.baseline.push(took_plain(&prices[..few]));
        streaming.subject.push(w2::bar_by_bar(&closes[..few])?.as_secs_f64());
    }
    at_once.print(steps);
    streaming.print((few * w2::variants().count()) as f64);
    Ok(())
}

fn took_plain(prices: &[f64]) -> f64 {
    timed(|| std::hint::black_box(w2::plain_loop(prices))).1.as_secs_f64()
}

fn main() -> anyhow::Result<()> {
    let part = std::env::args().nth(1).unwrap_or_else(|| "all".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores");
    match part.as_str() {
        "all" => {
            run_w1()?;
            run_w2()
        }
        "w1" => run_w1(),
        "w2" => run_w2(),
        other => anyhow::bail!("unknown part {other:?}; known: all, w1, w2"),
    }
}

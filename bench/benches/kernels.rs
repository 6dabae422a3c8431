//! The kernels alone: a tick into its bar, a step of every indicator, a step of every kind of strategy, the codecs.
//!
//! `cargo bench -p marea-bench`, or one group by name: `cargo bench -p marea-bench -- indicator`. Times are of one
//! element: a tick, a bar.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use marea_model::codec::arrow::{RowsAre, decode_batch};
use marea_model::codec::{Decoded, Decoder, arrow, csv, json};
use marea_model::strategy::{KINDS, parse_strategy};
use marea_model::time::{MILLI, SECOND};
use marea_model::{
    Cursor, Event, Instruments, Partition, Price, Progress, Record, Size, StrategyId, Symbol, Tick, Timeframe,
};
use marea_operators::backtest::{Backtest, Params};
use marea_operators::bars::Bars;
use marea_operators::indicators::IndicatorSpec;
use marea_operators::series::{Series, SeriesBar};
use std::hint::black_box;
use std::sync::Arc;

const START: i64 = 1_700_000_000 * SECOND;
const TICKS: usize = 10_000;
const BARS: usize = 10_000;

/// splitmix64.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn ticks() -> Vec<Tick> {
    let symbols: Vec<Symbol> = (0..50).filter_map(|k| Symbol::new(&format!("S{k:02}")).ok()).collect();
    let (mut next, mut cents) = (random(42), 10_000);
    (0..TICKS)
        .map(|i| {
            cents += (next() % 5) as i64 - 2;
            let event =
                Event::Trade { price: Price(cents * 1_000_000), size: Size((1 + next() % 999) as i64 * 100_000) };
            let symbol = symbols[(next() % 50) as usize];
            Tick { symbol, event_time: START + i as i64 * MILLI / 10, seq: i as u64, event }
        })
        .collect()
}

fn series() -> Series {
    let (mut next, mut close, mut series) = (random(7), 100.0, Series::with_capacity(BARS));
    for i in 0..BARS {
        let open: f64 = close;
        close = (open + (next() % 201) as f64 / 100.0 - 1.0).max(1.0);
        let (high, low) = (open.max(close) + 0.25, open.min(close) - 0.25);
        let volume = (1 + next() % 1000) as f64;
        let open_time = START + i as i64 * 60 * SECOND;
        series.push(SeriesBar { open_time, open, high, low, close, volume, turnover: volume * close });
    }
    series
}

fn partition() -> Partition {
    Partition::new("bench").expect("a valid partition name")
}

fn bar_update(criterion: &mut Criterion) {
    let cursor = |i: usize| Cursor { partition: partition(), offset: i as u64, row: 0 };
    let in_order: Vec<Record> =
        ticks().into_iter().enumerate().map(|(i, tick)| Record { cursor: cursor(i), tick }).collect();
    let mut shuffled = in_order.clone();
    let mut next = random(3);
    (1..shuffled.len()).for_each(|i| shuffled.swap(i, (next() % (i as u64 + 1)) as usize));
    let mut group = criterion.benchmark_group("bars");
    group.throughput(Throughput::Elements(TICKS as u64));
    for (name, records) in [("in order", in_order), ("in any order", shuffled)] {
        let ticks: [marea_model::TickSlice; 1] = [records.into_iter().collect::<marea_model::Ticks>().into()];
        group.bench_function(name, |bencher| {
            let fresh = || Bars::new(Arc::new(Instruments::default()), Timeframe::S1);
            bencher.iter_batched(
                fresh,
                |mut bars| (bars.epoch(&ticks, Some(Progress::START)), bars),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn indicators(criterion: &mut Criterion) {
    let series = series();
    let mut group = criterion.benchmark_group("indicator");
    group.throughput(Throughput::Elements(BARS as u64));
    for spec in IndicatorSpec::defaults() {
        group.bench_function(BenchmarkId::from_parameter(spec), |bencher| {
            bencher.iter(|| {
                let mut indicator = spec.build();
                for i in 0..series.len() {
                    black_box(indicator.step(&series, i));
                }
            });
        });
    }
    group.finish();
}

fn strategies(criterion: &mut Criterion) {
    let series = series();
    let mut group = criterion.benchmark_group("strategy");
    group.throughput(Throughput::Elements(BARS as u64));
    for kind in KINDS {
        let id = StrategyId::new(kind).expect("a valid id");
        let levels = r#""timeframe":"1m","stop_loss":3,"take_profit":4,"slippage_bps":1,"commission_bps":1"#;
        let plain = format!(r#"{{"kind":"{kind}","timeframe":"1m"}}"#);
        let full = format!(r#"{{"kind":"{kind}",{levels}}}"#);
        for (name, json) in [("rule alone", plain), ("stop, target, costs", full)] {
            let params = Params::new(&parse_strategy(id, &json).expect("every kind has defaults"));
            group.bench_function(BenchmarkId::new(kind, name), |bencher| {
                bencher.iter(|| {
                    let mut backtest = Backtest::new(&params);
                    backtest.run(&params, &series, 0..series.len(), &mut ());
                    black_box(backtest)
                });
            });
        }
    }
    group.finish();
}

fn codecs(criterion: &mut Criterion) {
    let (ticks, instruments) = (ticks(), Instruments::default());
    let decoder =
        Decoder { instruments: Arc::new(instruments.clone()), base_timeframe: Timeframe::S1, max_ahead: None };
    let first = Cursor { partition: partition(), offset: 0, row: 0 };
    let messages: Vec<Vec<u8>> = ticks.iter().map(|tick| json::encode(tick, &instruments)).collect();
    let (text, rows) = (csv::encode(&ticks, &instruments), arrow::encode(&ticks, &instruments));
    let stream = arrow::encode_stream(&ticks, &instruments);
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(TICKS as u64));
    let mut out = Decoded::default();
    group.bench_function("JSON decode", |bencher| {
        bencher.iter(|| {
            messages.iter().for_each(|message| json::decode(&decoder, message, first, 0, &mut out));
            out.clear();
        });
    });
    group.bench_function("CSV decode", |bencher| {
        bencher.iter(|| {
            let mut reader = csv::Reader::open(text.as_bytes(), first.partition, "ticks.csv", None).expect("our own");
            reader.read(&decoder, usize::MAX, 0, &mut out).expect("bytes in memory");
            out.clear();
        });
    });
    group.bench_function("Arrow rows decode", |bencher| {
        bencher.iter(|| {
            decode_batch(&decoder, &rows, first, RowsAre::Offsets, 0, &mut out);
            out.clear();
        });
    });
    group.bench_function("Arrow stream decode", |bencher| {
        bencher.iter(|| {
            arrow::decode_stream(&decoder, &stream, first, 0, &mut out);
            out.clear();
        });
    });
    group.bench_function("JSON encode", |bencher| {
        bencher.iter(|| ticks.iter().for_each(|tick| drop(black_box(json::encode(tick, &instruments)))));
    });
    group.bench_function("CSV encode", |bencher| bencher.iter(|| csv::encode(&ticks, &instruments)));
    group.bench_function("Arrow encode", |bencher| bencher.iter(|| arrow::encode(&ticks, &instruments)));
    group.finish();
}

criterion_group!(kernels, bar_update, indicators, strategies, codecs);
criterion_main!(kernels);

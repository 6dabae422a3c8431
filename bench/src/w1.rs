//! W1: 5,000,000 trades of 50 symbols → bars per symbol → EMA(12), EMA(26), RSI(14), ATR(14), Bollinger(20, 2) on each
//! closed bar. The baseline is a plain loop over the trades in memory; the subject is the whole graph: a source thread
//! that decodes and cuts, the channel, a worker, and a sink that counts and sums.

use crate::workload::{SYMBOLS, Trade};
use marea::cutter::{Clock, Cutter, CutterConfig};
use marea::dataflow::DataflowConfig;
use marea::engine::{Engine, EngineConfig};
use marea_model::cursor::Batch;
use marea_model::num::fixed_to_f64;
use marea_model::output::Change;
use marea_model::{Cursor, Event, Instruments, Nanos, Output, Partition, Price, Record, Size, Symbol, Tick, Timeframe};
use marea_operators::indicators::IndicatorSpec;
use marea_sources::Input;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What every way of doing W1 must agree on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checksum {
    /// Closed bars.
    pub(crate) bars: u64,
    /// Sum of their closes.
    pub(crate) closes: f64,
    /// Sum of their volumes.
    pub(crate) volumes: f64,
    /// Sums over the symbols of the last values: ema(12), ema(26), rsi(14), upper, lower band, atr(14).
    pub(crate) last: [f64; 6],
}

impl Checksum {
    /// Equal but for the order in which floats were added.
    pub(crate) fn agrees(&self, other: &Checksum) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(1.0);
        self.bars == other.bars
            && near(self.closes, other.closes)
            && near(self.volumes, other.volumes)
            && self.last.iter().zip(&other.last).all(|(a, b)| near(*a, *b))
    }

    /// The figures that 5,000,000 trades and one-second bars must give.
    pub(crate) fn expected() -> Checksum {
        Checksum {
            bars: 25_100,
            closes: 4_810_898.20,
            volumes: 25_000_444.222,
            last: [9577.508383, 9572.052430, 2586.791015, 9623.730444, 9519.637556, 18.137838],
        }
    }
}

const SPECS: [&str; 5] = ["ema(12)", "ema(26)", "rsi(14)", "bollinger(20,2)", "atr(14)"];

fn specs() -> Vec<IndicatorSpec> {
    SPECS.iter().filter_map(|s| s.parse().ok()).collect()
}

#[derive(Clone, Copy, Default)]
struct Open {
    high: f64,
    low: f64,
    close: f64,
    volume: f64,
    count: u32,
}

/// The five indicators, as small running states: what one would write by hand.
#[derive(Clone)]
struct Five {
    seen: u32,
    previous: f64,
    ema: [(f64, f64); 2],
    gain: f64,
    loss: f64,
    atr: f64,
    window: [f64; 20],
    base: f64,
    sum: f64,
    squares: f64,
    out: [f64; 6],
}

impl Five {
    fn new() -> Self {
        Five {
            seen: 0,
            previous: 0.0,
            ema: [(0.0, f64::NAN); 2],
            gain: 0.0,
            loss: 0.0,
            atr: 0.0,
            window: [0.0; 20],
            base: 0.0,
            sum: 0.0,
            squares: 0.0,
            out: [f64::NAN; 6],
        }
    }

    #[inline]
    fn push(&mut self, bar: &Open) {
        let (n, x) = (self.seen + 1, bar.close);
        for (slot, period) in [12_u32, 26].into_iter().enumerate() {
            let (sum, value) = &mut self.ema[slot];
            if n > period {
                *value += 2.0 / f64::from(period + 1) * (x - *value);
            } else {
                *sum += x;
                if n == period {
                    *value = *sum / f64::from(period);
                }
            }
            self.out[slot] = *value;
        }
        if n == 1 {
            self.base = x;
        } else {
            let move_ = x - self.previous;
            let (gain, loss) = (move_.max(0.0), (-move_).max(0.0));
            let range = (bar.high - bar.low).max((bar.high - self.previous).abs()).max((bar.low - self.previous).abs());
            if n > 15 {
                self.gain = (self.gain * 13.0 + gain) / 14.0;
                self.loss = (self.loss * 13.0 + loss) / 14.0;
                self.atr = (self.atr * 13.0 + range) / 14.0;
            } else {
                self.gain += gain;
                self.loss += loss;
                self.atr += range;
                if n == 15 {
                    self.gain /= 14.0;
                    self.loss /= 14.0;
                    self.atr /= 14.0;
                }
            }
            if n >= 15 {
                let both = self.gain + self.loss;
                self.out[2] = if both > 0.0 { 100.0 * self.gain / both } else { 0.0 };
                self.out[5] = self.atr;
            }
        }
        let slot = (self.seen % 20) as usize;
        let (y, old) = (x - self.base, self.window[slot]);
        self.window[slot] = y;
        self.sum += y - old;
        self.squares += y * y - old * old;
        if n >= 20 {
            let mean = self.sum / 20.0;
            let deviation = (self.squares / 20.0 - mean * mean).max(0.0).sqrt();
            self.out[3] = mean + self.base + 2.0 * deviation;
            self.out[4] = mean + self.base - 2.0 * deviation;
        }
        self.previous = x;
        self.seen = n;
    }
}

/// The baseline: one loop over trades in memory.
pub(crate) fn plain_loop(trades: &[(i64, u32, f64, f64)], bar: Nanos) -> Checksum {
    fn close_all(open: &mut [Open], fives: &mut [Five], sum: &mut Checksum) {
        for (bar, five) in open.iter_mut().zip(fives) {
            if bar.count > 0 {
                five.push(bar);
                sum.bars += 1;
                sum.closes += bar.close;
                sum.volumes += bar.volume;
                bar.count = 0;
            }
        }
    }
    let mut open = vec![Open::default(); SYMBOLS];
    let mut fives = vec![Five::new(); SYMBOLS];
    let mut sum = Checksum::default();
    let mut end = i64::MIN;
    for &(time, symbol, price, size) in trades {
        if time >= end {
            close_all(&mut open, &mut fives, &mut sum);
            end = time - time.rem_euclid(bar) + bar;
        }
        let bar = &mut open[symbol as usize];
        if bar.count == 0 {
            *bar = Open { high: price, low: price, close: price, volume: size, count: 1 };
        } else {
            if price > bar.high {
                bar.high = price;
            }
            if price < bar.low {
                bar.low = price;
            }
            bar.close = price;
            bar.volume += size;
            bar.count += 1;
        }
    }
    close_all(&mut open, &mut fives, &mut sum);
    for five in &fives {
        for (total, value) in sum.last.iter_mut().zip(five.out) {
            *total += value;
        }
    }
    sum
}

fn record(i: usize, trade: &Trade, symbols: &[Symbol], partition: Partition) -> Record {
    Record {
        cursor: Cursor { partition, offset: i as u64, row: 0 },
        tick: Tick {
            symbol: symbols[trade.symbol as usize],
            event_time: trade.time,
            seq: i as u64,
            event: Event::Trade { price: Price(trade.price * 1_000_000), size: Size(i64::from(trade.size) * 100_000) },
        },
    }
}

/// The subject: the whole graph. Gives what it found and how long it took from the first tick to the last epoch.
pub(crate) fn graph(
    trades: &[Trade],
    bar: Nanos,
    per_epoch: usize,
    workers: usize,
) -> anyhow::Result<(Checksum, Duration)> {
    let symbols = (0..SYMBOLS).map(|k| Symbol::new(&format!("S{k:02}"))).collect::<Result<Vec<_>, _>>()?;
    let partition = Partition::new("w1")?;
    let timeframe = Timeframe::new(bar)?;
    let instruments = Arc::new(Instruments::default());
    let dataflow = DataflowConfig {
        timeframes: vec![timeframe],
        indicators: vec![(timeframe, specs())],
        instruments: instruments.clone(),
    };
    let engine = Engine::start(&EngineConfig { workers, dataflow })?;
    let outputs = engine.outputs().clone();
    let mut cutter = Cutter::new(CutterConfig {
        clock: Clock::Event,
        lateness: 600_000_000_000,
        max_ticks: per_epoch,
        timeframes: vec![timeframe],
        instruments,
    });
    let begin = Instant::now();
    let sum = std::thread::scope(|scope| -> anyhow::Result<Checksum> {
        scope.spawn(move || {
            cutter.push(Input::Start { partition }, 0);
            for (chunk_index, chunk) in trades.chunks(per_epoch).enumerate() {
                let first = chunk_index * per_epoch;
                let records =
                    chunk.iter().enumerate().map(|(i, t)| record(first + i, t, &symbols, partition)).collect();
                let upper = (first + chunk.len()) as u64;
                let batch = Batch {
                    partition,
                    records,
                    rejects: Vec::new(),
                    accounts: Vec::new(),
                    unknown_fields: 0,
                    upper,
                    at_end: upper == trades.len() as u64,
                    receive_time: 0,
                };
                cutter.push(Input::Batch(batch), 0);
                while let Some(cut) = cutter.cut(0) {
                    if engine.submit(cut).is_err() {
                        return;
                    }
                }
            }
            cutter.push(Input::Finished { partition }, 0);
            // A dead engine shows as a missing checksum.
            let _ = engine.submit(cutter.finish(None));
        });
        let mut sum = Checksum::default();
        let mut last: HashMap<(Symbol, Arc<str>), f64> = HashMap::new();
        for closed in outputs {
            for change in closed.changes {
                match change {
                    Change::Upsert(Output::Bar(bar)) if bar.closed => {
                        sum.bars += 1;
                        sum.closes += bar.body.close.to_f64(bar.scale);
                        sum.volumes += fixed_to_f64(bar.body.volume, 8);
                    }
                    Change::Upsert(Output::Indicator(row)) => {
                        last.insert((row.symbol, row.name), row.value.0);
                    }
                    _ => {}
                }
            }
        }
        for ((_, name), value) in last {
            let slot = match &*name {
                "ema(12)" => 0,
                "ema(26)" => 1,
                "rsi(14)" => 2,
                "bollinger(20,2).upper" => 3,
                "bollinger(20,2).lower" => 4,
                "atr(14)" => 5,
                _ => continue,
            };
            sum.last[slot] += value;
        }
        Ok(sum)
    })?;
    Ok((sum, begin.elapsed()))
}

//! W1: 5,000,000 trades of 50 symbols → bars per symbol → EMA(12), EMA(26), RSI(14), ATR(14), Bollinger(20, 2) on each
//! closed bar. The baseline is a plain loop over the trades in memory; the subject is the whole graph: a source thread
//! that makes batches and cuts them, the channel, workers, and a sink that counts and sums.

use crate::drive::{Seen, Setup, arrow_batch, batches, each_row, replay};
use crate::loops::{self, PlainTrade, W1Sum};
use crate::measure::{Took, timed};
use crate::report::{Goal, Report, Row};
use crate::workload::{self, SYMBOLS, Trade};
use crate::{Options, drive};
use arrow_array::{
    ArrayRef, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray, TimestampNanosecondArray,
    UInt64Array,
};
use marea_model::codec::{Decoded, arrow};
use marea_model::num::fixed_to_f64;
use marea_model::output::ClosedEpoch;
use marea_model::time::SECOND;
use marea_model::{Bar, Cursor, Event, Nanos, Partition, Price, Record, Size, Symbol, Tick, Timeframe};
use marea_operators::indicators::IndicatorSpec;
use marea_sources::{BATCH_ROWS, Carries, Input};
use std::collections::HashMap;
use std::sync::Arc;

const PART: &str = "w1";
const MILLIS_10: Nanos = 10_000_000;
const SPECS: [&str; 5] = ["ema(12)", "ema(26)", "rsi(14)", "bollinger(20,2)", "atr(14)"];

/// The graph of W1.
pub(crate) fn setup(bar: Nanos, max_ticks: usize, workers: usize) -> anyhow::Result<Setup> {
    let timeframe = Timeframe::new(bar)?;
    let specs: Vec<IndicatorSpec> = SPECS.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
    // So short that logs seal during the run, and their memory is used again, as it is after a day.
    let lateness = 120 * SECOND;
    Ok(Setup { indicators: vec![(timeframe, specs)], max_ticks, workers, lateness, ..Setup::plain(timeframe) })
}

/// The names of W1's symbols.
pub(crate) fn symbols() -> anyhow::Result<Vec<Symbol>> {
    Ok((0..SYMBOLS).map(|k| Symbol::new(&format!("S{k:02}"))).collect::<Result<_, _>>()?)
}

/// A trade of W1 as a tick; its index is its seq.
pub(crate) fn tick(i: usize, trade: &Trade, symbols: &[Symbol]) -> Tick {
    let event = Event::Trade { price: Price(trade.price * 1_000_000), size: Size(i64::from(trade.size) * 100_000) };
    Tick { symbol: symbols[trade.symbol as usize], event_time: trade.time, seq: i as u64, event }
}

/// Trades as the plain loop wants them.
pub(crate) fn plain(trades: &[Trade]) -> Vec<PlainTrade> {
    trades.iter().map(|t| (t.time, t.symbol, t.price(), t.size())).collect()
}

/// Open time, close and volume.
type ClosedBar = (Nanos, f64, f64);

/// The sink: counts and sums.
#[derive(Default)]
pub(crate) struct Sink {
    sum: W1Sum,
    /// Of each symbol: the last bar, and its values.
    last: HashMap<Symbol, (Nanos, [f64; 6])>,
    /// Of each symbol its closed bars, where bars may be replaced after they have closed.
    bars: Option<HashMap<Symbol, Vec<ClosedBar>>>,
}

impl Sink {
    /// A sink for bars that change after they have closed.
    fn correcting() -> Self {
        Sink { bars: Some(HashMap::new()), ..Sink::default() }
    }

    /// Takes an epoch.
    pub(crate) fn take(&mut self, closed: &ClosedEpoch) {
        each_row(closed, |seen| match seen {
            Seen::Bar(bar) if bar.closed => self.bar(bar),
            Seen::NoBar(bar) if bar.closed => self.no_bar(bar),
            Seen::Indicators { symbol, names, open_times, values } => {
                // Of the values only the last ones of a symbol are summed; all are there to be read.
                let Some(open_time) = open_times.last() else { return };
                for (name, value) in names.iter().zip(&values[values.len() - names.len()..]) {
                    if !value.is_nan() {
                        self.value(symbol, *open_time, name, *value);
                    }
                }
            }
            Seen::Indicator { symbol, open_time, name, value } => self.value(symbol, open_time, name, value),
            _ => {}
        });
    }

    fn value(&mut self, symbol: Symbol, open_time: Nanos, name: &str, value: f64) {
        let slot = match name {
            "ema(12)" => 0,
            "ema(26)" => 1,
            "rsi(14)" => 2,
            "bollinger(20,2).upper" => 3,
            "bollinger(20,2).lower" => 4,
            "atr(14)" => 5,
            _ => return,
        };
        let last = self.last.entry(symbol).or_insert((Nanos::MIN, [0.0; 6]));
        // A corrected bar may not be the last.
        if open_time >= last.0 {
            last.0 = open_time;
            last.1[slot] = value;
        }
    }

    fn bar(&mut self, bar: &Bar) {
        let (close, volume) = (bar.body.close.to_f64(bar.scale), fixed_to_f64(bar.body.volume, 8));
        let Some(bars) = &mut self.bars else {
            self.sum.bars += 1;
            self.sum.closes += close;
            self.sum.volumes += volume;
            return;
        };
        let bars = bars.entry(bar.symbol).or_default();
        match bars.binary_search_by_key(&bar.open_time, |(open, ..)| *open) {
            Ok(i) => bars[i] = (bar.open_time, close, volume),
            Err(i) => bars.insert(i, (bar.open_time, close, volume)),
        }
    }

    fn no_bar(&mut self, bar: &Bar) {
        if let Some(bars) = self.bars.as_mut().and_then(|b| b.get_mut(&bar.symbol)) {
            bars.retain(|(open, ..)| *open != bar.open_time);
        }
    }

    /// What it has found.
    pub(crate) fn sum(mut self) -> W1Sum {
        for (_, close, volume) in self.bars.iter().flat_map(HashMap::values).flatten() {
            self.sum.bars += 1;
            self.sum.closes += close;
            self.sum.volumes += volume;
        }
        for (_, values) in self.last.values() {
            self.sum.last.iter_mut().zip(values).for_each(|(total, value)| *total += value);
        }
        self.sum
    }
}

/// The subject over what arrives. Gives what it found and how long it took from the first tick to the last epoch.
fn graph(setup: &Setup, inputs: impl Iterator<Item = Input> + Send, mut sink: Sink) -> anyhow::Result<(W1Sum, Took)> {
    let took = replay(setup, inputs, |closed| sink.take(closed))?;
    Ok((sink.sum(), took))
}

/// The data of W1, in the forms that it is read in.
struct Data {
    trades: Vec<Trade>,
    plain: Vec<PlainTrade>,
    symbols: Vec<Symbol>,
    partition: Partition,
}

impl Data {
    fn record(&self, i: usize, tick: Tick) -> Record {
        Record { cursor: Cursor { partition: self.partition, offset: i as u64, row: 0 }, tick }
    }

    /// As Arrow record batches in memory, which the source decodes: names in dictionaries, numbers as doubles.
    fn in_dictionaries(&self, arrivals: impl Iterator<Item = (usize, bool)>) -> anyhow::Result<Vec<RecordBatch>> {
        let arrivals: Vec<(usize, bool)> = arrivals.collect();
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(self.symbols.iter().map(|s| s.as_str())));
        let kinds: ArrayRef = Arc::new(StringArray::from(vec!["trade", "bust"]));
        let batch = |rows: &[(usize, bool)]| -> anyhow::Result<RecordBatch> {
            let trades = || rows.iter().map(|(i, bust)| (&self.trades[*i], *bust));
            let number = |value: fn(&Trade) -> f64| -> ArrayRef {
                Arc::new(trades().map(|(t, bust)| (!bust).then(|| value(t))).collect::<Float64Array>())
            };
            let symbol = trades().map(|(t, _)| t.symbol as i32).collect::<Int32Array>();
            let kind = trades().map(|(_, bust)| i32::from(bust)).collect::<Int32Array>();
            let times = TimestampNanosecondArray::from_iter_values(trades().map(|(t, _)| t.time)).with_timezone("UTC");
            let columns: [(&str, ArrayRef); 6] = [
                ("event_time", Arc::new(times)),
                ("symbol", Arc::new(DictionaryArray::try_new(symbol, names.clone())?)),
                ("seq", Arc::new(rows.iter().map(|(i, _)| *i as u64).collect::<UInt64Array>())),
                ("kind", Arc::new(DictionaryArray::try_new(kind, kinds.clone())?)),
                ("price", number(Trade::price)),
                ("size", number(Trade::size)),
            ];
            Ok(RecordBatch::try_from_iter(columns)?)
        };
        arrivals.chunks(BATCH_ROWS).map(batch).collect()
    }

    /// The same in the columns that our encoder writes: names as texts.
    fn as_encoded(&self, setup: &Setup) -> Vec<RecordBatch> {
        let ticks: Vec<Tick> = self.trades.iter().enumerate().map(|(i, t)| tick(i, t, &self.symbols)).collect();
        ticks.chunks(BATCH_ROWS).map(|ticks| arrow::encode(ticks, &setup.instruments)).collect()
    }

    fn batches_from<'a>(&'a self, setup: &Setup, rows: &'a [RecordBatch]) -> impl Iterator<Item = Input> + Send + 'a {
        let (decoder, mut decoded, mut offset) = (setup.decoder(), Decoded::default(), 0);
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        let start = std::iter::once(Input::Start { partition: self.partition, carries: Carries::Ticks });
        start.chain(rows.iter().map(move |rows| {
            let first = Cursor { partition: self.partition, offset, row: 0 };
            offset += rows.num_rows() as u64;
            arrow_batch(&decoder, rows, first, offset == count as u64, &mut decoded)
        }))
    }

    /// 1 % late, 0.1 % busted; and what stands in the end, in order.
    fn disordered(&self) -> (Vec<(u32, bool)>, Vec<PlainTrade>) {
        let arrivals = workload::disorder(&self.trades);
        let mut stands = vec![true; self.trades.len()];
        arrivals.iter().filter(|(_, bust)| *bust).for_each(|(i, _)| stands[*i as usize] = false);
        let clean = self.plain.iter().zip(&stands).filter(|(_, stands)| **stands).map(|(trade, _)| *trade).collect();
        (arrivals, clean)
    }
}

/// Runs W1 in memory.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let count = if options.quick { 500_000 } else { 5_000_000 };
    let trades = workload::trades(count);
    let data = Data { plain: plain(&trades), trades, symbols: symbols()?, partition: Partition::new("w1")? };
    fewer(&data)?;
    let rows = data.in_dictionaries((0..count).map(|i| (i, false)))?;
    for (bar, name) in [(SECOND, "1 s bars"), (MILLIS_10, "10 ms bars")] {
        for (per_epoch, goal) in [(100, 0.1), (1_000, 0.25), (10_000, 0.5), (65_536, 0.0)] {
            let what = format!("{name}, {per_epoch} ticks an epoch");
            if !what.contains(&options.only) {
                continue;
            }
            let row = against_loop(options, &data, &rows, bar, per_epoch, &what)?;
            let asked = per_epoch == 10_000 || (bar == SECOND && per_epoch < 10_000);
            report.add(if asked { row.goal(Goal::RatioAtLeast(goal)) } else { row });
        }
        let what = format!("{name}, 10000 ticks an epoch, two workers against one");
        if !what.contains(&options.only) {
            continue;
        }
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            for (workers, took) in [(1, &mut one), (2, &mut two)] {
                let setup = setup(bar, 10_000, workers)?;
                let (sum, t) = graph(&setup, data.batches_from(&setup, &rows), Sink::default())?;
                sum.check(count, bar)?;
                took.push(t);
            }
        }
        report.add(Row::rate(PART, what, count as f64, &one, &two).goal(Goal::RatioAtLeast(1.6)));
    }
    from_arrow(options, &data, report)?;
    for per_epoch in [10_000, 1_000] {
        with_faults(options, &data, per_epoch, report)?;
    }
    Ok(())
}

/// The first 500,000 ticks have a checksum of their own.
fn fewer(data: &Data) -> anyhow::Result<()> {
    const FEW: usize = 500_000;
    loops::w1(&data.plain[..FEW], SECOND).check(FEW, SECOND)?;
    let inputs = batches(data.partition, FEW, |i| data.record(i, tick(i, &data.trades[i], &data.symbols)));
    graph(&setup(SECOND, 10_000, 1)?, inputs, Sink::default())?.0.check(FEW, SECOND)
}

fn against_loop(
    options: &Options,
    data: &Data,
    rows: &[RecordBatch],
    bar: Nanos,
    per_epoch: usize,
    what: &str,
) -> anyhow::Result<Row> {
    let (mut base, mut subject) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (expected, took) = timed(|| loops::w1(&data.plain, bar));
        expected.check(data.trades.len(), bar)?;
        base.push(took);
        let setup = setup(bar, per_epoch, 1)?;
        let (sum, took) = graph(&setup, data.batches_from(&setup, rows), Sink::default())?;
        agree(&sum, &expected)?;
        subject.push(took);
    }
    Ok(Row::rate(PART, what, data.trades.len() as f64, &base, &subject))
}

/// An error unless both agree.
pub(crate) fn agree(sum: &W1Sum, expected: &W1Sum) -> anyhow::Result<()> {
    anyhow::ensure!(sum.agrees(expected), "W1 checksum: {sum:?} is not the loop's {expected:?}");
    Ok(())
}

fn from_arrow(options: &Options, data: &Data, report: &mut Report) -> anyhow::Result<()> {
    let what = "1 s bars, 10000 ticks an epoch, names as texts";
    if !what.contains(&options.only) {
        return Ok(());
    }
    let setup = setup(SECOND, 10_000, 1)?;
    let rows = data.as_encoded(&setup);
    let (mut base, mut same, mut subject) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (expected, took) = timed(|| loops::w1(&data.plain, SECOND));
        base.push(took);
        let (sum, took) = crate::measure::try_timed(|| decoding_loop(&setup, data.partition, &rows))?;
        agree(&sum, &expected)?;
        same.push(took);
        let (sum, took) = graph(&setup, data.batches_from(&setup, &rows), Sink::default())?;
        agree(&sum, &expected)?;
        subject.push(took);
    }
    let count = data.trades.len() as f64;
    let row = Row::rate(PART, format!("{what}, against the loop over doubles"), count, &base, &subject);
    report.add(row.goal(Goal::RatioAtLeast(0.5)));
    let what = format!("{what}, against the loop with the same decoder");
    report.add(Row::rate(PART, what, count, &same, &subject).goal(Goal::RatioAtLeast(0.5)));
    Ok(())
}

/// The baseline with the decoder of the subject.
fn decoding_loop(setup: &Setup, partition: Partition, rows: &[RecordBatch]) -> anyhow::Result<W1Sum> {
    let (decoder, mut decoded, mut plain) = (setup.decoder(), Decoded::default(), loops::W1Loop::new(SECOND));
    for rows in rows {
        let first = Cursor { partition, offset: 0, row: 0 };
        arrow::decode_batch(&decoder, rows, first, arrow::RowsAre::Offsets, 0, &mut decoded);
        into_loop(&mut decoded, &mut plain)?;
    }
    Ok(plain.finish())
}

/// Hands decoded trades to the plain loop. How many.
pub(crate) fn into_loop(decoded: &mut Decoded, plain: &mut loops::W1Loop) -> anyhow::Result<usize> {
    drive::each_trade(decoded, |symbol, time, price, size| {
        // `S00` to `S49`.
        let name = symbol.as_str().as_bytes();
        let number = usize::from(name[1] - b'0') * 10 + usize::from(name[2] - b'0');
        plain.trade(time, number, price as f64 / 1e8, size as f64 / 1e8);
    })
}

fn with_faults(options: &Options, data: &Data, per_epoch: usize, report: &mut Report) -> anyhow::Result<()> {
    let what = format!("1 s bars, {per_epoch} ticks an epoch, 1 % late by up to 60 s, 0.1 % busted");
    if !what.contains(&options.only) {
        return Ok(());
    }
    let (arrivals, clean) = data.disordered();
    let rows = data.in_dictionaries(arrivals.iter().map(|(i, bust)| (*i as usize, *bust)))?;
    let setup = setup(SECOND, per_epoch, 1)?;
    let (mut base, mut subject) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (expected, took) = timed(|| loops::w1(&clean, SECOND));
        base.push(took);
        let (sum, took) = graph(&setup, data.batches_from(&setup, &rows), Sink::correcting())?;
        agree(&sum, &expected)?;
        subject.push(took);
    }
    let row = Row::rate_of(PART, what, (clean.len() as f64, &base), (arrivals.len() as f64, &subject));
    report.add(row.goal(Goal::RatioAtLeast(0.1)).note("lateness 2 min"));
    Ok(())
}

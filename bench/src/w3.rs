//! W3: 1,000 EMA-cross strategies live on one symbol's 1-minute bars; a busted tick and a late one, a minute and an hour
//! back (lateness 2 h), and an amend a day back. The subject is the epoch that carries the edit, through bars and scan,
//! without the sink; the baseline recomputes every strategy over the whole history by the plain loop. The cost of an
//! edit must not grow with the history before it.

use crate::Options;
use crate::drive::{Kernels, Setup, each_output};
use crate::loops::{self, Variant};
use crate::measure::{Took, median, timed};
use crate::report::{Goal, Report, Row};
use crate::w2::{MINUTE, START, Standing, bar, price, prices, put};
use crate::workload;
use marea_model::time::{MILLI, SECOND};
use marea_model::{
    Amend, BarBody, ConfigUpdate, Cursor, Event, Nanos, Partition, Progress, Record, Size, Symbol, Tick, Timeframe,
};
use marea_operators::scan::ScanOutput;

const PART: &str = "w3";
/// Bars that are made of ticks, at the end; what is before goes straight into the scan.
const TICKED: usize = 180;
/// Trades of each of those.
const TRADES: usize = 30;
const LATENESS: Nanos = 120 * MINUTE;

/// 1,000 variants: 20 fast periods, 50 slow ones.
pub(crate) fn thousand() -> Vec<Variant> {
    (5..=24).flat_map(|fast| (0..50).map(move |i| (fast, 30 + 5 * i))).collect()
}

/// What is edited, and how many bars before the last closed one.
#[derive(Clone, Copy)]
enum Edit {
    Bust(usize),
    Late(usize),
    Amend(usize),
}

const EDITS: [(Edit, &str); 5] = [
    (Edit::Bust(1), "bust 1 minute back"),
    (Edit::Late(1), "late tick 1 minute back"),
    (Edit::Bust(60), "bust 1 hour back"),
    (Edit::Late(60), "late tick 1 hour back"),
    (Edit::Amend(1440), "amend 1 day back"),
];

/// A live scan at the end of a history, and what its closes should be.
pub(crate) struct Live {
    kernels: Kernels,
    symbol: Symbol,
    partition: Partition,
    progress: Progress,
    closes: Vec<i64>,
    /// Of the bars that are made of ticks: which trades stand, as (time, seq, close).
    trades: Vec<Vec<(Nanos, u64, i64)>>,
    standing: Standing,
    records: u64,
}

impl Live {
    /// Fills the scan: first the strategies, then bars in chunks, as they come while live.
    pub(crate) fn new(closes: Vec<i64>, variants: &[Variant], ticked: usize) -> anyhow::Result<Live> {
        let setup = Setup::plain(Timeframe::M1);
        let edits: Vec<ConfigUpdate> = variants.iter().map(|v| put(*v)).collect();
        let mut live = Live {
            kernels: Kernels::new(&setup)?,
            symbol: Symbol::new("W3")?,
            partition: Partition::new("w3")?,
            progress: Progress::START,
            trades: Vec::new(),
            standing: Standing::default(),
            records: 0,
            closes,
        };
        live.kernels.scan(Vec::new(), None, &edits, true);
        let old = live.closes.len().saturating_sub(ticked);
        for from in (0..old).step_by(10_000) {
            let to = old.min(from + 10_000);
            let bars = (from..to).map(|i| bar(live.symbol, i, live.closes[i])).collect();
            live.move_on(to);
            let out = live.kernels.scan(bars, Some(live.progress), &[], true);
            live.see(out);
        }
        for at in old..live.closes.len() {
            let close = live.closes[at];
            let mut records = Vec::with_capacity(TRADES);
            live.trades.push(Vec::with_capacity(TRADES));
            for i in 0..TRADES {
                // The last trade is the close; those before it lie about it.
                let around = close + (TRADES - 1 - i) as i64 % 7 * 3;
                let time = START + at as i64 * MINUTE + i as i64 * SECOND;
                records.push(live.trade(at - old, time, around));
            }
            live.move_on(at + 1);
            let out = live.kernels.ticks(records, live.progress);
            live.see(out);
        }
        Ok(live)
    }

    fn see(&mut self, out: ScanOutput) {
        each_output(out, |seen| self.standing.see(&seen));
    }

    fn move_on(&mut self, bars: usize) {
        let closed_through = START + bars as i64 * MINUTE;
        self.progress = Progress { sealed_through: closed_through - LATENESS, closed_through };
    }

    fn record(&mut self, event_time: Nanos, seq: u64, event: Event) -> Record {
        self.records += 1;
        let cursor = Cursor { partition: self.partition, offset: self.records, row: 0 };
        Record { cursor, tick: Tick { symbol: self.symbol, event_time, seq, event } }
    }

    fn trade(&mut self, ticked: usize, time: Nanos, close: i64) -> Record {
        let seq = self.records;
        self.trades[ticked].push((time, seq, close));
        self.record(time, seq, Event::Trade { price: price(close), size: Size(100_000_000) })
    }

    /// The epoch that carries an edit; notes what the close is then.
    fn edit(&mut self, edit: Edit, round: usize) -> Took {
        let (Edit::Bust(back) | Edit::Late(back) | Edit::Amend(back)) = edit;
        let at = self.closes.len() - 1 - back;
        let ticked = (at + self.trades.len()).saturating_sub(self.closes.len());
        let record = match edit {
            Edit::Bust(_) => {
                // A trade that is not the last one may have left no trace.
                let (time, seq, _) = self.trades[ticked].pop().unwrap_or_default();
                self.closes[at] = self.trades[ticked].last().map_or(0, |(.., close)| *close);
                self.record(time, seq, Event::Bust)
            }
            Edit::Late(_) => {
                let close = self.closes[at] + 11 + round as i64;
                self.closes[at] = close;
                let time = START + at as i64 * MINUTE + 40 * SECOND + round as i64 * MILLI;
                self.trade(ticked, time, close)
            }
            Edit::Amend(_) => {
                let close = self.closes[at] + 17;
                self.closes[at] = close;
                let body = BarBody::first(price(close), Size(100_000_000));
                let amend = Amend { rev: round as u32 + 1, bar: Some(body) };
                self.record(START + at as i64 * MINUTE, 0, Event::Amend(Box::new(amend)))
            }
        };
        let (out, took) = timed(|| self.kernels.ticks(vec![record], self.progress));
        self.see(out);
        took
    }

    /// An error unless the metrics are those of the plain loop over the edited closes.
    fn check(&self, variants: &[Variant]) -> anyhow::Result<()> {
        let (sum, expected) = (self.standing.sum(variants)?, loops::w2(&prices(&self.closes), variants));
        anyhow::ensure!(sum.agrees(&expected), "W3 checksum: {sum:?} is not the loop's {expected:?}");
        Ok(())
    }
}

/// Runs W3.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let sizes: &[usize] = if options.quick { &[3_000, 6_000] } else { &[10_000, 100_000, 1_000_000] };
    let variants = thousand();
    let mut hour_back: Vec<(f64, f64)> = Vec::new();
    for size in sizes {
        let mut live = Live::new(workload::closes(*size), &variants, TICKED)?;
        // The plain loop is linear in the strategies: where all of them take too long, some are measured.
        let some: Vec<Variant> = variants.iter().step_by((size / 50_000).max(1)).copied().collect();
        let scale = variants.len() as f64 / some.len() as f64;
        let prices = prices(&live.closes);
        let mut base = Vec::new();
        let mut subjects: [Vec<Took>; EDITS.len()] = Default::default();
        for round in 0..options.rounds {
            let (_, took) = timed(|| std::hint::black_box(loops::w2(&prices, &some)));
            base.push(Took { wall: took.wall * scale, cpu: took.cpu * scale });
            for ((edit, _), took) in EDITS.iter().zip(&mut subjects) {
                took.push(live.edit(*edit, usize::from(round)));
            }
        }
        live.check(&some)?;
        for ((edit, name), took) in EDITS.iter().zip(&subjects) {
            let what = format!("{name}, {size} bars, {} strategies", variants.len());
            let mut row = Row::time(PART, what, ("ms", 1e3), &base, took);
            if matches!(edit, Edit::Bust(60) | Edit::Late(60)) && *size >= 1_000_000 {
                row = row.goal(Goal::RatioAtLeast(1000.0));
            }
            if matches!(edit, Edit::Bust(60)) {
                let middle = |of: fn(&Took) -> f64| median(&took.iter().map(of).collect::<Vec<_>>());
                hour_back.push((middle(|t| t.wall), middle(|t| t.cpu)));
            }
            if some.len() < variants.len() {
                row = row.note(format!("baseline measured on {} strategies, scaled", some.len()));
            }
            report.add(row);
        }
    }
    let (wall, cpu): (Vec<f64>, Vec<f64>) = hour_back.into_iter().unzip();
    for (clock, costs) in [("wall", wall), ("CPU", cpu)] {
        let worst = costs.iter().copied().fold(0.0, f64::max) / costs[0];
        let what = format!("bust 1 hour back: {clock} time, the dearest history ÷ that of {} bars", sizes[0]);
        let row = Row::value(PART, what, "times", vec![worst]).goal(Goal::AtMost(1.5));
        report.add(row.note("flat is 1; the bound of 1.5 is the bench's own"));
    }
    Ok(())
}

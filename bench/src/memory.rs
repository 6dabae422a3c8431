//! Memory by the allocator's own count (jemalloc's `stats.allocated`), as differences: bytes a retained bar, a retained
//! trade, and the checkpoints of 1,000 strategies; and whether a steady load leaves it flat.

use crate::Options;
use crate::desk::Desk;
use crate::drive::{Kernels, Session, Setup, batch, tap};
use crate::measure::{median, slope};
use crate::report::{Goal, Report, Row};
use crate::w2::{MINUTE, START, bar, put};
use crate::w3::thousand;
use crate::workload::{self, Trade};
use crate::{loops::Variant, w1};
use marea::committer::wall_now;
use marea_model::time::SECOND;
use marea_model::{ConfigUpdate, Cursor, Nanos, Partition, Progress, Record, Symbol, Timeframe};
use std::time::{Duration, Instant};
use tikv_jemalloc_ctl::{epoch, stats};

const PART: &str = "memory";

/// Bytes that are allocated now, by all threads.
fn allocated() -> anyhow::Result<f64> {
    let failed = |e: tikv_jemalloc_ctl::Error| anyhow::anyhow!("jemalloc does not count: {e}");
    epoch::advance().map_err(failed)?;
    Ok(stats::allocated::read().map_err(failed)? as f64)
}

/// Resident bytes.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
    pages.unwrap_or(0.0) * rustix::param::page_size() as f64
}

/// Runs the memory part.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let (bars, trades) = if options.quick { (20_000, 100_000) } else { (1_000_000, 1_000_000) };
    let bare = scanned(bars, &[])?;
    let bytes = bare / bars as f64;
    let row = Row::value(PART, format!("a retained bar, of {bars}"), "bytes", vec![bytes]);
    report.add(row.goal(Goal::AtMost(80.0)).note("the scan's history of one symbol and timeframe"));
    for symbols in [1, 10, 50] {
        let bytes = logged(trades, symbols)? / trades as f64;
        let row = Row::value(PART, format!("a retained trade, of {trades}, {symbols} symbol(s)"), "bytes", vec![bytes]);
        report.add(row.goal(Goal::AtMost(40.0)).note("unsealed logs of 1 s bars, buckets included"));
    }
    let variants = thousand();
    let whole = scanned(bars, &variants)? - bare;
    // Before the first checkpoint.
    const FEW: usize = 63;
    let least = scanned(FEW, &variants)? - scanned(FEW, &[])?;
    let megabytes = (whole - least) / 1e6;
    let what = format!("checkpoints of {} strategies, {bars} bars", variants.len());
    let row = Row::value(PART, what, "MB", vec![megabytes]).goal(Goal::AtMost(25.0));
    report.add(row.note(format!("beside them: {:.1} MB of states and standing rows", least / 1e6)));
    steady(options, report)
}

/// Bytes that what `build` makes holds. It is made on a thread of its own: what a thread has freed and keeps for itself
/// counts as allocated until the thread ends.
fn held<T: Send>(build: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<f64> {
    let before = allocated()?;
    let built = std::thread::scope(|scope| scope.spawn(build).join());
    let built = built.map_err(|_| anyhow::anyhow!("building has panicked"))??;
    let after = allocated()?;
    drop(built);
    Ok(after - before)
}

/// Bytes that a scan holds after so many bars.
fn scanned(bars: usize, variants: &[Variant]) -> anyhow::Result<f64> {
    let (symbol, closes) = (Symbol::new("MEM")?, workload::closes(bars));
    let edits: Vec<ConfigUpdate> = variants.iter().map(|v| put(*v)).collect();
    held(|| {
        let mut kernels = Kernels::new(&Setup::plain(Timeframe::M1))?;
        kernels.scan(Vec::new(), None, &edits, true);
        for from in (0..bars).step_by(1_000) {
            let to = bars.min(from + 1_000);
            let progress = Progress { sealed_through: i64::MIN, closed_through: START + to as i64 * MINUTE };
            kernels.scan((from..to).map(|i| bar(symbol, i, closes[i])).collect(), Some(progress), &[], true);
        }
        Ok(kernels)
    })
}

/// Bytes that the bars operator holds for so many unsealed trades, at 10,000 an epoch.
fn logged(count: usize, symbols: u32) -> anyhow::Result<f64> {
    let (names, partition) = (w1::symbols()?, Partition::new("memory")?);
    let trades: Vec<Trade> =
        workload::trades(count).into_iter().map(|t| Trade { symbol: t.symbol % symbols, ..t }).collect();
    held(|| {
        let mut kernels = Kernels::new(&Setup::plain(Timeframe::S1))?;
        for (chunk, part) in trades.chunks(10_000).enumerate() {
            let record = |(i, trade): (usize, &Trade)| {
                let at = chunk * 10_000 + i;
                Record { cursor: Cursor { partition, offset: at as u64, row: 0 }, tick: w1::tick(at, trade, &names) }
            };
            kernels.log(part.iter().enumerate().map(record).collect(), Progress::START);
        }
        Ok(kernels)
    })
}

/// 20,000 ticks a second through the graph, lateness 10 s: what the fitted line gains a second, after warm-up.
fn steady(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    const A_SECOND: u64 = 20_000;
    const STEP: Duration = Duration::from_millis(5);
    const SYMBOLS: usize = 10;
    let minutes = if options.quick { 0.2 } else { options.minutes };
    let every = Duration::from_secs(if options.quick { 1 } else { 10 });
    let begin_wall = wall_now();
    let desk = Desk::new(SYMBOLS, begin_wall - 3600 * SECOND, 10 * SECOND)?;
    let (mut session, outputs) = Session::start(&desk.setup)?;
    let seen = tap(outputs, |_| None::<()>);
    let first = desk.prepare(&mut session, begin_wall)?;
    let (begin, mut shown, mut sent) = (Instant::now(), Instant::now(), 0);
    let mut points: Vec<(f64, f64, f64)> = Vec::new();
    eprintln!("memory: seconds, RSS MB, allocated MB, ticks/s");
    while begin.elapsed().as_secs_f64() < minutes * 60.0 {
        std::thread::sleep(STEP);
        let due = (begin.elapsed().as_secs_f64() * A_SECOND as f64) as u64;
        let wall: Nanos = wall_now();
        let gap = STEP.as_nanos() as i64 / (due - sent + 1) as i64;
        let record = |i: u64| desk.record(first + i, wall - (due - i) as i64 * gap);
        session.push(batch(desk.partition, (sent..due).map(record), first + due, false));
        session.cut_all()?;
        sent = due;
        if shown.elapsed() >= every {
            shown += every;
            let (rss, bytes, seconds) = (resident(), allocated()?, begin.elapsed().as_secs_f64());
            eprintln!("{seconds:.0} {:.1} {:.1} {:.0}", rss / 1e6, bytes / 1e6, sent as f64 / seconds);
            points.push((seconds, rss, bytes));
        }
    }
    drop(session);
    while seen.recv().is_ok() {}
    // The first third fills what is kept until it seals.
    let settled = &points[points.len() / 3..];
    // What is kept for ever: bars of 1 s, 1 m, 5 m, 1 h. Beyond that a kilobyte a second, which is a bound of our own:
    // 86 MB a day.
    let bars = SYMBOLS as f64 * (1.0 + 1.0 / 60.0 + 1.0 / 300.0 + 1.0 / 3600.0);
    for (name, pick) in [("RSS", 1), ("allocated", 2)] {
        let values: Vec<(f64, f64)> =
            settled.iter().map(|(x, rss, bytes)| (*x, if pick == 1 { *rss } else { *bytes })).collect();
        let what = format!("{minutes} min of {A_SECOND} ticks/s, lateness 10 s: slope of {name}");
        let row = Row::value(PART, what, "bytes/s", vec![slope(&values)]);
        let middle = median(&values.iter().map(|v| v.1).collect::<Vec<_>>()) / 1e6;
        let row = if pick == 2 { row.goal(Goal::AtMost(bars * 80.0 + 1_000.0)) } else { row };
        report.add(row.note(format!("{middle:.1} MB; new bars alone, kept for ever: {:.0} bytes/s", bars * 80.0)));
    }
    Ok(())
}

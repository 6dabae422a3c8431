//! In-process latency. Open loop: 10,000 ticks a second, and in each second 50 ms at 100,000; one worker, a desk like the
//! demo's. The latency of a tick is the time from when it was *due to be sent* until its epoch has come out of the
//! engine, to a thread that waits for it; or until it is closed, from where values leave that are published early (to hand
//! them over is not in it), while the thread that commits comes every 20 ms. A sender or a graph that falls behind shows (no coordinated omission). Epochs are
//! cut as the pipeline cuts them. Ticks that change a verdict are also shown alone. Closed loop: one tick in, its epoch out,
//! then the next.

use crate::Options;
use crate::desk::Desk;
use crate::drive::{Seen, Session, batch, each_row, inputs, upper};
use crate::measure::quantile;
use crate::report::{Goal, Report, Row};
use crossbeam_channel::Receiver;
use marea::committer::wall_now;
use marea::engine::Early;
use marea_model::output::ClosedEpoch;
use marea_model::time::SECOND;
use marea_model::{Nanos, Symbol};
use std::time::{Duration, Instant};

const PART: &str = "latency";
const CALM: u64 = 10_000;
const BURST: u64 = 100_000;
/// Of each second.
const BURST_MS: u64 = 50;
/// Between two commits where values are published early, as `pipeline/src/run` has it.
const PACE: Duration = Duration::from_millis(20);
/// Epochs that are committed together, at most.
const TRANSACTION: usize = 256;
/// What a sleep may overshoot; the rest of a wait is spun.
const SPIN: Duration = Duration::from_micros(30);

/// When tick number `i` is due, from the start.
fn due(i: u64) -> Duration {
    let in_burst = BURST * BURST_MS / 1000;
    let a_second = in_burst + CALM * (1000 - BURST_MS) / 1000;
    let (second, rest) = (i / a_second, i % a_second);
    let within = if rest < in_burst {
        rest * (1_000_000_000 / BURST)
    } else {
        BURST_MS * 1_000_000 + (rest - in_burst) * (1_000_000_000 / CALM)
    };
    Duration::new(second, within as u32)
}

/// How many ticks are due in so many seconds.
fn ticks_in(seconds: u64) -> u64 {
    seconds * (BURST * BURST_MS + CALM * (1000 - BURST_MS)) / 1000
}

/// Waits until an instant, to the microsecond.
pub(crate) fn wait_until(at: Instant) {
    let left = at.saturating_duration_since(Instant::now());
    if left > SPIN {
        std::thread::sleep(left - SPIN);
    }
    while Instant::now() < at {
        std::hint::spin_loop();
    }
}

/// Which threads there are beside the worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wiring {
    /// One sends, one cuts, one waits for epochs.
    OwnThreads,
    /// One sends and cuts, one waits for epochs.
    SourceCuts,
    /// One sends and cuts; what is closed is there, and one takes it away now and then.
    Early,
}

/// Lets time pass between two commits, unless a transaction is full before.
fn wait_for(outputs: &Receiver<ClosedEpoch>) {
    let began = Instant::now();
    while began.elapsed() < PACE && outputs.len() < TRANSACTION {
        std::thread::sleep(PACE / 4);
    }
}

/// Microseconds of all ticks, and of those that changed a verdict.
#[derive(Default)]
struct Latencies {
    all: Vec<f64>,
    verdicts: Vec<f64>,
    /// The most ticks of an epoch.
    largest: u64,
}

/// Ticks from `first` on, sent from `start` on.
#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    wall: Nanos,
    first: u64,
    count: u64,
}

impl Schedule {
    fn send(
        &self,
        desk: &Desk,
        mut give: impl FnMut(marea_sources::Input) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut next = 0;
        while next < self.count {
            wait_until(self.start + due(next));
            let now = self.start.elapsed();
            let from = next;
            while next < self.count && due(next) <= now {
                next += 1;
            }
            let time = |i: u64| self.wall + due(i).as_nanos() as i64;
            let records = (from..next).map(|i| desk.record(self.first + i, time(i)));
            give(batch(desk.partition, records, self.first + next, false))?;
        }
        Ok(())
    }

    /// Reads what comes out until the last tick has.
    fn read(&self, desk: &Desk, outputs: &Receiver<ClosedEpoch>, wiring: Wiring) -> anyhow::Result<Latencies> {
        let mut seen = Latencies::default();
        let mut next = 0;
        while next < self.count {
            if wiring == Wiring::Early && outputs.is_empty() {
                wait_for(outputs);
            }
            let closed = outputs.recv_timeout(Duration::from_secs(30))?;
            let now = match wiring {
                Wiring::Early => closed.closed_at.saturating_duration_since(self.start),
                _ => self.start.elapsed(),
            };
            let Some(upper) = upper(&closed, desk.partition) else { continue };
            let upper = upper.saturating_sub(self.first).min(self.count);
            let mut changed: Vec<Symbol> = Vec::new();
            each_row(&closed, |row| {
                if let Seen::Verdict(symbol) = row {
                    changed.push(symbol);
                }
            });
            seen.largest = seen.largest.max(upper.saturating_sub(next));
            for i in next..upper {
                let latency = now.saturating_sub(due(i)).as_secs_f64() * 1e6;
                seen.all.push(latency);
                let tick = self.first + i;
                if desk.flips(tick) && changed.contains(&desk.symbol(tick)) {
                    seen.verdicts.push(latency);
                }
            }
            next = next.max(upper);
        }
        Ok(seen)
    }
}

/// Runs the latency part.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let seconds = if options.quick { 2 } else { options.seconds };
    // Sleeps end when they should; where that is not allowed they end 50 µs later.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
    for wiring in [Wiring::OwnThreads, Wiring::SourceCuts, Wiring::Early] {
        let (name, thread) = match wiring {
            Wiring::OwnThreads => ("source and cutter on their own threads", "as files and RabbitMQ are wired"),
            Wiring::SourceCuts => ("the source's thread cuts", "as Kafka is wired"),
            Wiring::Early => {
                ("the source's thread cuts, until closed", "as Kafka is wired where values are published early")
            }
        };
        let seen = open_loop(seconds, wiring)?;
        anyhow::ensure!(!seen.verdicts.is_empty(), "no tick has changed a verdict: the desk is not what it should be");
        let note = format!("{} ticks, largest epoch {}, {thread}", seen.all.len(), seen.largest);
        add(report, &format!("open loop, {name}"), &seen.all, &note, true);
        let note = format!("{} ticks", seen.verdicts.len());
        add(report, &format!("open loop, {name}: ticks that change a verdict"), &seen.verdicts, &note, true);
    }
    let seen = closed_loop(if options.quick { 2_000 } else { 50_000 })?;
    add(report, "closed loop, one tick in, its epoch out", &seen, &format!("{} ticks", seen.len()), false);
    Ok(())
}

fn add(report: &mut Report, what: &str, latencies: &[f64], note: &str, goals: bool) {
    for (name, q, goal) in
        [("p50", 0.5, Some(25.0)), ("p99", 0.99, Some(100.0)), ("p99.9", 0.999, None), ("max", 1.0, None)]
    {
        let row = Row::value(PART, format!("{what}, {name}"), "µs", vec![quantile(latencies, q)]);
        let row = if q == 0.5 { row.note(note) } else { row };
        report.add(match goal.filter(|_| goals) {
            Some(most) => row.goal(Goal::AtMost(most)),
            None => row,
        });
    }
}

/// A desk that is ready: history of two hours up to now, all of which has come out.
pub(crate) fn ready(early: bool) -> anyhow::Result<(Desk, Session, Receiver<ClosedEpoch>, u64)> {
    let now = wall_now();
    let desk = Desk::new(6, (now - 7200 * SECOND) / (60 * SECOND) * 60 * SECOND, 600 * SECOND)?;
    let early = early.then(|| Box::new(|_: &ClosedEpoch| ()) as Early);
    let (mut session, outputs) = Session::start_with(&desk.setup, early)?;
    let first = std::thread::scope(|scope| {
        let preparing = scope.spawn(|| desk.prepare(&mut session, now));
        let mut ready = None;
        loop {
            if ready.is_none() && preparing.is_finished() {
                ready = Some(());
            }
            if outputs.recv_timeout(Duration::from_millis(300)).is_err() && ready.is_some() {
                break;
            }
        }
        preparing.join().map_err(|_| anyhow::anyhow!("preparing has panicked"))?
    })?;
    Ok((desk, session, outputs, first))
}

fn open_loop(seconds: u64, wiring: Wiring) -> anyhow::Result<Latencies> {
    let (desk, mut session, outputs, first) = ready(wiring == Wiring::Early)?;
    let start = Instant::now() + Duration::from_millis(100);
    let wall = wall_now() + 100_000_000;
    let schedule = Schedule { start, wall, first, count: ticks_in(seconds) };
    let (desk, schedule, session) = (&desk, &schedule, &mut session);
    std::thread::scope(|scope| {
        if wiring == Wiring::OwnThreads {
            let (out, queued) = inputs();
            scope.spawn(move || session.serve(&queued));
            scope.spawn(move || schedule.send(desk, |input| Ok(out.send(input)?)));
        } else {
            scope.spawn(move || -> anyhow::Result<()> {
                schedule.send(desk, |input| {
                    session.push(input);
                    Ok(session.cut_unless_busy()?)
                })?;
                Ok(session.cut_all()?)
            });
        }
        schedule.read(desk, &outputs, wiring)
    })
}

fn closed_loop(count: u64) -> anyhow::Result<Vec<f64>> {
    let (desk, mut session, outputs, first) = ready(false)?;
    let mut seen = Vec::with_capacity(count as usize);
    for i in first..first + count {
        let input = batch(desk.partition, [desk.record(i, wall_now())], i + 1, false);
        let begin = Instant::now();
        session.push(input);
        session.cut_all()?;
        while upper(&outputs.recv_timeout(Duration::from_secs(30))?, desk.partition) != Some(i + 1) {}
        seen.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_a_burst_and_then_calm() {
        assert_eq!(ticks_in(1), 14_500);
        assert_eq!(due(14_500), Duration::from_secs(1));
        assert_eq!(due(4_999) + Duration::from_micros(10), due(5_000));
        assert_eq!(due(5_001) - due(5_000), Duration::from_micros(100));
        assert!((0..30_000).all(|i| due(i) < due(i + 1)));
    }

    #[test]
    fn some_ticks_flip_a_verdict_and_then_back() {
        let desk = Desk::new(6, 0, SECOND).unwrap();
        let flips = (0..29_000).filter(|i| desk.flips(*i)).count();
        assert!((500..5_000).contains(&flips), "{flips}");
    }
}

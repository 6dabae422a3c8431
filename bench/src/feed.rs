//! The feed under readers that do not read: the time from the end of a commit to the event at a prompt reader of the
//! stream, alone, and beside 1,000 connections that ask nothing and 50 readers that read 64 bytes now and then.
//!
//! Epochs are those of the desk; each that changes a verdict is committed in memory and published 2 ms after the one
//! before. The feed has two threads, as in the pipeline; the prompt reader has one of its own.

use crate::Options;
use crate::desk::Desk;
use crate::drive::{Session, batch, upper};
use crate::latency::ready;
use crate::measure::quantile;
use crate::report::{Report, Row};
use anyhow::Context as _;
use crossbeam_channel::{Receiver, unbounded};
use marea::committer::wall_now;
use marea_model::output::{Change, ClosedEpoch, Output};
use marea_sinks::store::Ledger;
use marea_sinks::{Clock, Feed, FeedConfig, Metrics};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PART: &str = "feed";
const IDLE: usize = 1_000;
const SLOW: usize = 50;
/// Between two commits.
const PACE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the feed part.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let count = if options.quick { 200 } else { 5_000 };
    allow_files()?;
    let mut market = Market::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (address, feed) = serve(&runtime)?;
    let mut ledger = Ledger::new(1);
    let alone = measure(&mut market, &feed, &mut ledger, address, count)?;
    let crowd = Crowd::gather(address)?;
    let beside = measure(&mut market, &feed, &mut ledger, address, count)?;
    drop(crowd);
    for (name, q) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        for (who, seen) in [("alone".to_owned(), &alone), (format!("beside {IDLE} idle, {SLOW} slow"), &beside)] {
            let what = format!("commit → event at a prompt reader, {who}, {name}");
            let row = Row::value(PART, what, "µs", vec![quantile(seen, q)]);
            report.add(row.note(format!("{count} commits, one every {} ms", PACE.as_millis())));
        }
    }
    Ok(())
}

/// Lets this process have both ends of every connection.
fn allow_files() -> anyhow::Result<()> {
    let wanted = 2 * (IDLE + SLOW) as u64 + 200;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).context("open files: ulimit -n")?;
    }
    Ok(())
}

/// Epochs that change a verdict, one after the other.
struct Market {
    desk: Desk,
    session: Session,
    outputs: Receiver<ClosedEpoch>,
    next: u64,
}

impl Market {
    fn new() -> anyhow::Result<Market> {
        let (desk, session, outputs, next) = ready(false)?;
        Ok(Market { desk, session, outputs, next })
    }

    /// The epochs up to the next that changes a verdict.
    fn epochs(&mut self) -> anyhow::Result<Vec<ClosedEpoch>> {
        let mut epochs = Vec::new();
        loop {
            let record = self.desk.record(self.next, wall_now());
            self.next += 1;
            self.session.push(batch(self.desk.partition, [record], self.next, false));
            self.session.cut_all()?;
            loop {
                let mut closed = self.outputs.recv_timeout(PATIENCE)?;
                let is_last = upper(&closed, self.desk.partition) == Some(self.next);
                closed.expand();
                epochs.push(closed);
                if is_last {
                    break;
                }
            }
            let judged = |change: &Change| matches!(change, Change::Upsert(Output::Verdict(_)));
            if epochs.iter().any(|epoch| epoch.changes.iter().any(judged)) {
                return Ok(epochs);
            }
        }
    }
}

fn serve(runtime: &tokio::runtime::Runtime) -> anyhow::Result<(SocketAddr, Feed)> {
    let config = FeedConfig { clock: Clock::Wall, workers: 1, store: None, max_lag: PATIENCE, config_current: None };
    let feed = Feed::new(config, Metrics::new("0", "synthetic"));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(feed.clone().serve(listener, std::future::pending()));
    Ok((address, feed))
}

fn stream(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /api/v1/stream HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    Ok(stream)
}

/// Microseconds from the end of each commit to its last event.
fn measure(
    market: &mut Market,
    feed: &Feed,
    ledger: &mut Ledger,
    address: SocketAddr,
    count: usize,
) -> anyhow::Result<Vec<f64>> {
    let mut lines = BufReader::new(stream(address)?).lines();
    // The first event says that it is connected.
    while !lines.next().context("the stream ended")??.starts_with("event: heartbeat") {}
    let (seen_out, seen) = unbounded();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let seq = line.strip_prefix("id: ").and_then(|id| id.rsplit_once('-')?.1.parse::<u64>().ok());
            if seq.is_some_and(|seq| seen_out.send((seq, Instant::now())).is_err()) {
                return;
            }
        }
    });
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let due = Instant::now() + PACE;
        let epochs = market.epochs()?;
        let committed = ledger.commit(&epochs)?;
        let begin = Instant::now();
        feed.publish(&epochs, &committed);
        loop {
            let (seq, at) = seen.recv_timeout(PATIENCE)?;
            if seq == committed.last_seq {
                took.push(at.saturating_duration_since(begin).as_secs_f64() * 1e6);
                break;
            }
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(took)
}

/// Connections that are there and do little.
struct Crowd {
    _idle: Vec<TcpStream>,
    gone: Arc<AtomicBool>,
}

impl Crowd {
    fn gather(address: SocketAddr) -> anyhow::Result<Crowd> {
        let idle = (0..IDLE).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
        let mut slow = (0..SLOW).map(|_| stream(address)).collect::<Result<Vec<_>, _>>()?;
        let gone = Arc::new(AtomicBool::new(false));
        let over = gone.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !over.load(Ordering::Relaxed) {
                // One that was disconnected, since it is too slow, is not there any more.
                slow.retain_mut(|stream| stream.read(&mut bytes).is_ok_and(|read| read > 0));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Ok(Crowd { _idle: idle, gone })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_crowd_every_event_reaches_a_prompt_reader() {
        allow_files().unwrap();
        let mut market = Market::new().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (address, feed) = serve(&runtime).unwrap();
        let crowd = Crowd::gather(address).unwrap();
        let seen = measure(&mut market, &feed, &mut Ledger::new(1), address, 50).unwrap();
        assert_eq!(seen.len(), 50);
        drop(crowd);
    }
}

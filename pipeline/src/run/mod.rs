//! The composition: sources, cutter, engine, committer and feed, each on threads of its own; only Kafka's source cuts by itself.
//!
//! ```text
//!  source ──► channel ─┐                                        ┌► store
//!                      ├─► cutter ──► engine ──► committer ──────┼► feed ──► HTTP
//!  live file ► channel ┘      │       (submit blocks:            ├► kept state
//!                             │        backpressure)             └► Redis
//!                             └─ publish = "fast": each closed epoch, before its commit ─▲
//! ```
//!
//! **Runtimes.** The feed has one of two threads; the store one that only the committer drives, so that an answer wakes
//! nobody else; Redis one of its own, for the same reason.
//!
//! **Ending.** When the source is finished, everything is cut, `now` moves on, the engine drains, the committer commits.
//! At a signal nothing more is read: what was taken over is cut, drained and committed; what still waits in a channel is
//! not, and will be read again.

mod cutting;
mod letters;
mod live;
mod rebuild;
mod source;
mod standing;

pub use live::{DEFAULT_LIVE, Live, Watch, read_updates};
pub use rebuild::{Rebuilt, rebuild};
pub use source::{check_files, market, open_files};
pub use standing::check_store;

use crate::committer::{Committer, Outcome, wall_now};
use crate::config::{Config, Publish, SourceKind};
use crate::cutter::{Clock, Cutter, CutterConfig};
use crate::dataflow::DataflowConfig;
use crate::engine::{Early, Engine, EngineConfig};
use crate::explain::Desk;
use crossbeam_channel::{bounded, unbounded};
use cutting::{Cutters, Cutting};
use marea_model::codec::Decoder;
use marea_model::cursor::Batch;
use marea_model::time::SECOND;
use marea_model::{ConfigUpdate, Instruments, Nanos};
use marea_sinks::redis::Redis;
use marea_sinks::store::StoreTarget;
use marea_sinks::{Feed, FeedConfig, Metrics};
use marea_sources::etcd;
use marea_sources::file::FileProgress;
use marea_sources::synthetic::Synthetic;
use marea_sources::{Input, Lags, Sender, Stop, live_file, message};
use source::{MAX_AHEAD, Prepared, Preparing};
use standing::{Marks, Standing, noted, open_store, restoration};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Batches that wait for the cutter.
const BATCHES: usize = 8;
/// The time between two commits, unless a transaction is full before, where whoever wants a value at once has it before: each costs the store, the worker
/// and Redis a share of the cores that the next value needs.
const PACE: Duration = Duration::from_millis(20);
/// How often metrics are given: nothing waits for them, and there may be very many.
const METRICS_EVERY: Nanos = SECOND;
/// How long commits are tried again after a signal, so that the process is gone within 10 s of it: the last one may wait
/// 5 s for a lock.
const DRAIN: Duration = Duration::from_secs(4);
/// How far behind the feed may be and still call itself ready.
const MAX_LAG: Duration = Duration::from_secs(5);

/// Why nothing was started, or why it ended otherwise than it should.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// Bad usage or configuration: everything that is wrong. Exit 2.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// It failed while running. Exit 1.
    #[error("{0}")]
    Failed(String),
    /// It was asked to stop before it began. Exit 0.
    #[error("stopped before it began")]
    Stopped,
}

impl Failure {
    /// One thing that is wrong with usage or configuration.
    pub fn refused(error: impl ToString) -> Self {
        Failure::Refused(vec![error.to_string()])
    }

    /// It failed while running.
    pub fn failed(error: impl ToString) -> Self {
        Failure::Failed(error.to_string())
    }
}

/// Where the feed is to listen.
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// Whether one of the hundred ports after it will do, if it is taken.
    pub or_next: bool,
    /// Where the address came from.
    pub origin: String,
}

/// What refuses to start, gathered, so that all of it is said at once.
#[derive(Default)]
struct Refusals(Vec<String>);

impl Refusals {
    /// The value, or a reason to refuse; a failure of another kind is returned.
    fn take<T>(&mut self, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Failure::Refused(errors)) => {
                self.0.extend(errors);
                Ok(None)
            }
            Err(failed) => Err(failed),
        }
    }
}

/// What to run.
pub struct Plan {
    /// The configuration.
    pub config: Config,
    /// The live configuration, or why there is none.
    pub live: Result<Live, Failure>,
    /// Of the synthetic market: what it is like beside seed and rate.
    pub market: Synthetic,
    /// The store; none: nothing is stored.
    pub store: Option<StoreTarget>,
    /// Whether to go on where the run that the store holds has ended, or to refuse it.
    pub resume: bool,
    /// Where the feed listens; none: no feed.
    pub listen: Option<Listen>,
    /// Where `now` ends when the source is finished.
    pub until: Option<Nanos>,
    /// Whether to end when the source is finished, or to go on serving.
    pub end_when_finished: bool,
    /// Whether the final state is kept in memory.
    pub keep_state: bool,
}

/// A request to stop, when it was made, and why if something went wrong.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stop: Stop,
    at: Arc<OnceLock<Instant>>,
    failure: Arc<OnceLock<Failure>>,
}

impl Shutdown {
    /// Asks everybody to stop.
    pub fn stop(&self) {
        self.at.get_or_init(Instant::now);
        self.stop.stop();
    }

    /// Asks everybody to stop, since this went wrong.
    pub fn fail(&self, error: impl ToString) {
        self.end(Failure::failed(error));
    }

    /// Asks everybody to stop, since of this.
    fn end(&self, failure: Failure) {
        self.failure.get_or_init(|| failure);
        self.stop();
    }

    /// Whether somebody has asked.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }
}

/// A running pipeline.
pub struct Running {
    /// Ends it.
    pub shutdown: Shutdown,
    /// The feed, if there is one.
    pub feed: Option<Feed>,
    /// Where it listens.
    pub address: Option<SocketAddr>,
    /// What was cut so far, for explanations.
    pub desk: Arc<Mutex<Desk>>,
    /// How far files have been read.
    pub progress: Option<Arc<FileProgress>>,
    sources: Vec<JoinHandle<()>>,
    cutter: JoinHandle<()>,
    committer: JoinHandle<Option<Outcome>>,
    server: Option<Server>,
    redis: Option<(Redis, tokio::task::JoinHandle<()>)>,
    delivery: Option<JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
}

/// Starts everything. Whatever refuses to start is said at once, and before the store is taken over.
pub fn start(plan: Plan) -> Result<Running, Failure> {
    let Plan { config, live, market, store, resume, listen, until, end_when_finished, keep_state } = plan;
    let mut refusals = Refusals::default();
    let live = refusals.take(live)?;
    let listener = match &listen {
        Some(listen) => refusals.take(bind(listen))?,
        None => None,
    };
    if let Some(target) = &store {
        refusals.take(check_store(target, resume))?;
    }
    let mut live = live.unwrap_or_else(|| Live::embedded(config.source.kind));
    let read = live.read(&config);
    let (acknowledge, lags) = (marea_sources::Committed::default(), Lags::default());
    let prepare = |instruments: &Arc<Instruments>, marks: &Marks| {
        let preparing = Preparing { config: &config, instruments, acknowledge: &acknowledge, lags: &lags, marks };
        preparing.prepare(market.clone(), until.is_some())
    };
    let instruments = Arc::new(read.instruments().clone());
    // Tried before the store is taken over, so that all that is wrong is said at once.
    refusals.take(prepare(&instruments, &Marks::new()))?;
    if !refusals.0.is_empty() {
        return Err(Failure::Refused(refusals.0));
    }
    let address = listener.as_ref().map(TcpListener::local_addr).transpose().map_err(Failure::failed)?;
    for problem in read.problems() {
        tracing::warn!("live configuration: {problem}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?;
    let shutdown = Shutdown::default();
    watch_signals(&runtime, &shutdown);

    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), config.source.kind.as_str());
    let writing = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let writing = writing.map_err(|e| Failure::failed(format!("cannot start the store's runtime: {e}")))?;
    let (mut target, reader) = open_store(store.as_ref(), resume, &writing, &shutdown)?;
    // Before anything is computed of what is left.
    let (generation, marks) = (target.standing().generation, target.standing().partitions.clone());
    let preparing =
        Preparing { config: &config, instruments: &instruments, acknowledge: &acknowledge, lags: &lags, marks: &marks };
    let lost = preparing.lost(&shutdown.stop)?;
    let base = config.pipeline.timeframes[0];
    let restoration = restoration(&mut target, base, !lost.is_empty(), &writing, &shutdown)?;
    if shutdown.is_stopped() {
        return Err(Failure::Stopped);
    }
    acknowledge.remember(restoration.iter().flat_map(|restoration| restoration.unacknowledged.iter().copied()));
    // While it stood by, or read the store, what it knew of policies may have become old: an old one may allow too much.
    let mut unread = false;
    if restoration.is_some() {
        live = match &live.watch {
            Watch::Nothing => live,
            Watch::File(path) => match Live::of(path, true) {
                Ok(live) => live,
                // A run that goes on waits for it, blocked, as it would have while running.
                Err(error) => {
                    tracing::error!("{error}: entries are blocked until it is mended");
                    unread = true;
                    live
                }
            },
            Watch::Etcd(_) => match Live::configured(&config, true, &shutdown.stop) {
                Err(_) if shutdown.is_stopped() => return Err(Failure::Stopped),
                live => live?,
            },
        };
    }
    let Standing { read, mut first, instruments, marks } = Standing::new(&config, &mut live, restoration.as_ref())?;
    first.extend(unread.then_some(ConfigUpdate::Stale(true)));
    first.extend(lost.iter().map(|gap| noted(gap, generation)));
    let Prepared { run: source, progress, gaps } = prepare(&instruments, &marks)?;
    let answered = etcd::Answered::default();
    let standing = match &reader {
        Some(reader) if restoration.is_some() => standing::rows(reader, &runtime, &shutdown)?,
        _ => Vec::new(),
    };
    // What has no store is a test or a replay: nobody's Redis is to have it.
    let redis = config.redis.as_ref().filter(|_| store.is_some() && resume);
    let audit = reader.clone();
    let feed = (listener.is_some() || redis.is_some()).then(|| {
        let clock = match config.pipeline.clock {
            Clock::Wall => marea_sinks::Clock::Wall,
            Clock::Event => marea_sinks::Clock::Event,
        };
        let config_current = matches!(live.watch, Watch::Etcd(_)).then(|| {
            let answered = answered.clone();
            Box::new(move || answered.sent().map(system_time)) as marea_sinks::feed::ConfigCurrent
        });
        let feed =
            FeedConfig { clock, workers: config.pipeline.workers, store: reader, max_lag: MAX_LAG, config_current };
        Feed::new(feed, metrics.clone())
    });
    let redis = match (redis, &feed) {
        (Some(redis), Some(feed)) => {
            let started = Redis::start(redis, feed.clone(), audit, runtime.handle());
            Some(started.map_err(|must| Failure::refused(format!("redis.url: \"***\" {must}")))?)
        }
        _ => None,
    };

    let (dead_letters, delivery) = match resume {
        true => letters::deliver(&config, &target)?,
        false => (None, None),
    };

    let (out, inputs) = bounded(BATCHES);
    let timeframes = config.pipeline.timeframes.clone();
    let engine_config = EngineConfig {
        workers: config.pipeline.workers,
        dataflow: DataflowConfig {
            timeframes: timeframes.clone(),
            indicators: config.indicators.timeframes.iter().map(|t| (*t, config.indicators.list.clone())).collect(),
            instruments: instruments.clone(),
        },
    };
    let watched = feed.clone();
    let beat = move |worker| watched.iter().for_each(|feed| feed.health().beat(worker));
    let early = redis.as_ref().filter(|_| config.publish == Publish::Fast).map(|(redis, _)| {
        let (redis, mut restored) = (redis.clone(), restoration.is_some());
        let early: Early = Box::new(move |closed| match std::mem::take(&mut restored) {
            // It is what stands already.
            true => {}
            false => redis.early(closed),
        });
        early
    });
    let every = if early.is_some() { PACE } else { Duration::ZERO };
    let mut engine = Engine::start_watched(&engine_config, beat, early).map_err(Failure::failed)?;

    let (notes_out, notes) = unbounded();
    let committer = Committer {
        target,
        feed: feed.clone(),
        redis: redis.as_ref().map(|(redis, _)| redis.clone()),
        dead_letters,
        standing,
        metrics: metrics.clone(),
        clock: config.pipeline.clock,
        keep_state,
        notes,
        acknowledge: acknowledge.clone(),
        restored: restoration.is_some(),
        every,
        deadline: Box::new({
            let at = shutdown.at.clone();
            move || at.get().map(|at| *at + DRAIN)
        }),
    };
    let outputs = engine.take_outputs();
    let committer = spawn("committer", {
        let shutdown = shutdown.clone();
        move || match committer.run(&outputs, &writing) {
            Ok(outcome) => Some(outcome),
            Err(error) => {
                shutdown.fail(error);
                None
            }
        }
    })?;

    let problems = read.problems();
    let desk = Arc::new(Mutex::new(Desk::new(read)));
    if let Some(feed) = &feed {
        let desk = desk.clone();
        feed.set_facts(move |symbol, account| {
            let facts = desk.lock().unwrap_or_else(PoisonError::into_inner).facts(symbol, account);
            serde_json::to_value(facts).unwrap_or_default()
        });
    }
    let (live_out, live_in) = bounded(BATCHES);
    let cutter = CutterConfig {
        clock: config.pipeline.clock,
        lateness: config.pipeline.lateness,
        max_ticks: config.pipeline.max_ticks,
        timeframes,
        instruments: instruments.clone(),
        metrics_every: METRICS_EVERY,
    };
    let cutter = match restoration {
        None => Cutter::new(cutter),
        Some(mut restoration) => {
            let raw = std::mem::take(&mut restoration.raw);
            tracing::info!(epoch = restoration.epoch, bars = restoration.sealed.bars.len(), "going on from the store");
            let decoder = Decoder {
                instruments: instruments.clone(),
                base_timeframe: config.pipeline.timeframes[0],
                max_ahead: Some(MAX_AHEAD),
            };
            let mut cutter = Cutter::resume(cutter, restoration);
            for batch in message::replay(&decoder, &raw) {
                let upper = marks.get(&batch.partition).map_or(batch.upper, |mark| mark.upper.max(batch.upper));
                cutter.push(Input::Batch(Batch { upper, ..batch }), wall_now());
            }
            cutter
        }
    };
    let cutting = Cutting {
        cutter,
        inputs,
        live: live_in,
        clock: config.pipeline.clock,
        engine,
        notes: notes_out,
        desk: desk.clone(),
        problems,
        first: None,
        shutdown: shutdown.clone(),
        until,
        end_when_finished,
        lags: (lags, metrics, Instant::now()),
        gaps,
        failed: false,
        generation,
    };
    let cutters = Cutters::default();
    let live_out = Sender::with_bell(live_out, ring_of(&cutters));
    let out = match config.source.kind {
        SourceKind::Kafka => {
            let cutters = cutters.clone();
            Sender::with_bell(out, move || cutters.cut())
        }
        // Those that read as fast as they can have better to do, and a connection lives on the thread of RabbitMQ.
        _ => Sender::with_bell(out, ring_of(&cutters)),
    };
    let no_source = ring_of(&cutters);
    // The whole live configuration enters before the first record.
    let cutter = spawn("cutter", move || cutters.run(cutting, first))?;

    let mut sources = vec![spawn("source", {
        let shutdown = shutdown.clone();
        move || {
            if let Err(failure) = source(&out, &shutdown.stop) {
                shutdown.end(failure);
            }
            drop(out);
            no_source();
        }
    })?];
    let stop = shutdown.stop.clone();
    match live.watch {
        Watch::Nothing => {}
        Watch::File(path) => {
            sources.push(spawn("live file", move || {
                live_file::watch_from(&path, live.tree, live.revision, unread, &live_out, &stop);
            })?);
        }
        Watch::Etcd(watch) => {
            let (etcd, snapshot) = *watch;
            let shutdown = shutdown.clone();
            sources.push(spawn("etcd", move || {
                if let Err(error) = etcd::watch(&etcd, snapshot, &answered, &live_out, &stop) {
                    shutdown.fail(error);
                }
            })?);
        }
    }
    let server = match (listener, &feed) {
        (Some(listener), Some(feed)) => Some(serve(&runtime, listener, feed.clone())?),
        _ => None,
    };
    Ok(Running {
        shutdown,
        feed,
        address,
        desk,
        progress,
        sources,
        cutter,
        committer,
        server,
        redis,
        delivery,
        runtime,
    })
}

impl Running {
    /// Whether everything has been committed.
    pub fn is_over(&self) -> bool {
        self.committer.is_finished()
    }

    /// Waits for the end, and says what came of it.
    pub fn finish(self) -> Result<Outcome, Failure> {
        let outcome = self.committer.join().map_err(|_| Failure::failed("the committer has panicked"))?;
        // Sources may still wait for the clock, and the live file for an edit.
        self.shutdown.stop();
        for thread in self.sources.into_iter().chain([self.cutter]) {
            thread.join().map_err(|_| Failure::failed("a thread of the pipeline has panicked"))?;
        }
        if let Some((stop, server)) = self.server {
            // A server that has ended does not wait for it.
            let _ = stop.send(());
            match self.runtime.block_on(server) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the feed ended"),
                Err(error) => tracing::warn!(%error, "the feed ended"),
            }
        }
        if let Some((redis, task)) = self.redis {
            redis.stop();
            // What is not there by then, the next start puts there.
            let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), task).await });
        }
        self.delivery.iter().for_each(letters::finish);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        match (self.shutdown.failure.get(), outcome) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some(outcome)) => Ok(outcome),
            (None, None) => Err(Failure::failed("nothing was committed")),
        }
    }
}

/// Has the thread that cuts look.
fn ring_of(cutters: &Cutters) -> impl Fn() + Send + Sync + 'static {
    let cutters = cutters.clone();
    move || cutters.wake()
}

/// The first signal asks to stop; the second one does not wait.
fn watch_signals(runtime: &tokio::runtime::Runtime, shutdown: &Shutdown) {
    use tokio::signal::unix::{SignalKind, signal};
    let shutdown = shutdown.clone();
    // Before anything else is begun.
    let _context = runtime.enter();
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    runtime.spawn(async move {
        let mut interrupt = async || {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        };
        interrupt().await;
        tracing::info!("stopping: what was read is committed; again to stop at once");
        shutdown.stop();
        interrupt().await;
        std::process::exit(130);
    });
}

type Server = (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<std::io::Result<()>>);

fn serve(runtime: &tokio::runtime::Runtime, listener: TcpListener, feed: Feed) -> Result<Server, Failure> {
    let failed = |e| Failure::failed(format!("the feed cannot listen: {e}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let _context = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let serving = feed.serve(listener, async {
        // The sender gone means the same.
        let _ = stopped.await;
    });
    Ok((stop, runtime.spawn(serving)))
}

fn bind(listen: &Listen) -> Result<TcpListener, Failure> {
    let Listen { address, or_next, origin } = listen;
    let last = if *or_next { address.port().saturating_add(100) } else { address.port() };
    let mut first_error = None;
    for port in address.port()..=last {
        match TcpListener::bind(SocketAddr::new(address.ip(), port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
                first_error.get_or_insert(error);
                if !in_use {
                    break;
                }
            }
        }
    }
    let why = match first_error {
        Some(e) if e.kind() == std::io::ErrorKind::AddrInUse => "is in use".to_owned(),
        Some(e) => format!("cannot be listened on: {e}"),
        None => "has no free port".to_owned(),
    };
    Err(Failure::Refused(vec![format!("{origin}: feed.listen: \"{address}\" {why}")]))
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, Failure> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|e| Failure::failed(format!("cannot start the thread {name}: {e}")))
}

fn system_time(since_1970: Nanos) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(since_1970.unsigned_abs())
}

//! The composition: sources, cutter, engine, committer and feed, each on threads of its own.
//!
//! ```text
//!  source ──► channel ─┐                                        ┌► store
//!                      ├─► cutter ──► engine ──► committer ──────┼► feed ──► HTTP
//!  live file ► channel ┘      (submit blocks: backpressure)      └► kept state
//! ```
//!
//! **Ending.** When the source is finished, everything is cut, `now` moves on, the engine drains, the committer commits.
//! At a signal nothing more is read: what was taken over is cut, drained and committed; what still waits in a channel is
//! not, and will be read again.

use crate::committer::{Committer, Note, Outcome, Target, wall_now};
use crate::config::{Config, SourceKind};
use crate::cutter::{Clock, Cut, Cutter, CutterConfig};
use crate::dataflow::DataflowConfig;
use crate::engine::{Engine, EngineConfig};
use crate::explain::Desk;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never, select, unbounded};
use marea_model::codec::Decoder;
use marea_model::cursor::Batch;
use marea_model::instrument::InstrumentSpec;
use marea_model::live::{Problem, decode_segment};
use marea_model::time::{MILLI, SECOND};
use marea_model::{
    ConfigUpdate, Instrument, Instruments, LiveConfig, Nanos, Partition, PartitionMark, Restoration, Symbol,
};
use marea_sinks::store::{Ledger, StoreTarget};
use marea_sinks::{Feed, FeedConfig, Metrics, Store};
use marea_sources::etcd::{self, EtcdConfig};
use marea_sources::file::{FileConfig, FileProgress};
use marea_sources::kafka::{self, KafkaConfig};
use marea_sources::rabbitmq::{self, RabbitConfig};
use marea_sources::synthetic::Synthetic;
use marea_sources::{Input, Lags, Resume, Stop, file, live_file, message, synthetic};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The live configuration where none is named.
pub const DEFAULT_LIVE: &str = include_str!("default_live.toml");

/// Batches that wait for the cutter.
const BATCHES: usize = 8;
/// How often a process that stands by looks whether the other one is gone.
const STANDBY_LOOK: Duration = Duration::from_millis(500);
/// How often it is shown how far the source is behind.
const LAGS_EVERY: Duration = Duration::from_secs(1);
/// How often the wall clock cuts without input: timers fire this late at most.
const WALL_TICK: Duration = Duration::from_millis(10);
/// How often the event clock looks at what else may have happened.
const EVENT_TICK: Duration = Duration::from_millis(50);
/// How often metrics are given: nothing waits for them, and there may be very many.
const METRICS_EVERY: Nanos = SECOND;
/// How long commits are tried again after a signal, so that the process is gone within 10 s of it: the last one may wait
/// 5 s for a lock.
const DRAIN: Duration = Duration::from_secs(4);
/// How far behind the feed may be and still call itself ready.
const MAX_LAG: Duration = Duration::from_secs(5);

/// Why nothing was started, or why it ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Bad usage or configuration: everything that is wrong. Exit 2.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// It failed while running. Exit 1.
    #[error("{0}")]
    Failed(String),
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

/// The live configuration to begin with, and where to watch for more.
#[derive(Clone, Debug)]
pub struct Live {
    /// Keys and values.
    pub tree: BTreeMap<String, String>,
    /// Their revision.
    pub revision: u64,
    /// What is watched.
    pub watch: Watch,
}

/// Where changes of the live configuration come from.
#[derive(Clone, Debug)]
pub enum Watch {
    /// There are none.
    Nothing,
    /// A file.
    File(PathBuf),
    /// etcd, from where it was read.
    Etcd(Box<(EtcdConfig, etcd::Snapshot)>),
}

impl Live {
    /// Of a file.
    pub fn of(path: &Path, watch: bool) -> Result<Live, Failure> {
        let tree = live_file::load(path).map_err(Failure::refused)?;
        let watch = if watch { Watch::File(path.to_owned()) } else { Watch::Nothing };
        Ok(Live { tree, revision: 1, watch })
    }

    /// The embedded one that goes with a kind of source.
    pub fn embedded(kind: SourceKind) -> Live {
        let text = match kind {
            SourceKind::Synthetic => synthetic::LIVE_CONFIG,
            SourceKind::File | SourceKind::Kafka | SourceKind::RabbitMq => DEFAULT_LIVE,
        };
        let tree = live_file::parse(Path::new("embedded"), text.as_bytes()).expect("the embedded file is valid TOML");
        Live { tree, revision: 1, watch: Watch::Nothing }
    }

    /// As the configuration says. Waits until etcd answers, if it is there, or until it is stopped.
    pub fn configured(config: &Config, watch: bool, stop: &Stop) -> Result<Live, Failure> {
        match (&config.live_file, &config.etcd) {
            (Some(path), _) => Live::of(path, watch),
            (None, Some(etcd)) => {
                let snapshot = etcd::load(etcd, stop).map_err(Failure::failed)?;
                let (tree, revision) = (snapshot.tree.clone(), snapshot.revision);
                let watch = if watch { Watch::Etcd(Box::new((etcd.clone(), snapshot))) } else { Watch::Nothing };
                Ok(Live { tree, revision, watch })
            }
            (None, None) => Ok(Live::embedded(config.source.kind)),
        }
    }

    /// Read as the operators will read it.
    pub fn read(&self, config: &Config) -> LiveConfig {
        read_updates(&live_file::diff(&BTreeMap::new(), &self.tree, self.revision), config)
    }
}

/// Keys of instruments start so.
const INSTRUMENTS: &str = "/marea/instruments/";

/// Every change of a run, read as its operators have read it: the first revision has the instruments to begin with.
pub fn read_updates(updates: &[ConfigUpdate], config: &Config) -> LiveConfig {
    let mut puts = updates.iter().filter_map(|update| match update {
        ConfigUpdate::Put { key, value, revision } => Some((key.as_str(), value.as_str(), *revision)),
        ConfigUpdate::Delete { .. } | ConfigUpdate::Stale(_) => None,
    });
    let first = match updates.first() {
        Some(ConfigUpdate::Put { revision, .. }) => Some(*revision),
        _ => None,
    };
    let first = puts.by_ref().take_while(|(.., revision)| Some(*revision) == first);
    let tree = first.map(|(key, value, _)| (key, value)).collect();
    let mut live = LiveConfig::new(&initial_instruments(&tree)).with_timeframes(&config.pipeline.timeframes);
    for update in updates {
        live.apply(update);
    }
    live
}

/// The instruments to begin with: their scale and price source hold as long as the process runs. One that cannot be read
/// is left out here, and a problem of the [`LiveConfig`].
fn initial_instruments(tree: &BTreeMap<&str, &str>) -> Instruments {
    let mut instruments = Instruments::default();
    let of = |name: &str, base: &Instrument| {
        let spec: InstrumentSpec = serde_json::from_str(tree.get(format!("{INSTRUMENTS}{name}").as_str())?).ok()?;
        spec.over(base).ok()
    };
    instruments.default = of("default", &instruments.default).unwrap_or(instruments.default);
    for name in tree.keys().filter_map(|key| key.strip_prefix(INSTRUMENTS)).filter(|name| *name != "default") {
        let symbol = decode_segment(name).and_then(|text| Symbol::canonical(&text).ok());
        if let (Some(symbol), Some(instrument)) = (symbol, of(name, &instruments.default)) {
            instruments.by_symbol.insert(symbol, instrument);
        }
    }
    instruments
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
    failure: Arc<OnceLock<String>>,
}

impl Shutdown {
    /// Asks everybody to stop.
    pub fn stop(&self) {
        self.at.get_or_init(Instant::now);
        self.stop.stop();
    }

    /// Asks everybody to stop, since this went wrong.
    pub fn fail(&self, error: impl ToString) {
        self.failure.get_or_init(|| error.to_string());
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
    // Tried before the store is taken over, so that all that is wrong is said at once.
    refusals.take(prepare(&Arc::new(read.instruments().clone()), &Marks::new()))?;
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
    let (mut target, reader) = open_store(store.as_ref(), resume, &runtime, &shutdown)?;
    let restoration = match &mut target {
        Target::Store(store) => {
            runtime.block_on(store.restoration(config.pipeline.timeframes[0])).map_err(Failure::refused)?
        }
        Target::Memory(_) => None,
    };
    // While it stood by, or read the store, what it knew of policies may have become old: an old one may allow too much.
    if restoration.is_some() {
        live = match &live.watch {
            Watch::Nothing => live,
            Watch::File(path) => Live::of(path, true)?,
            Watch::Etcd(_) => Live::configured(&config, true, &shutdown.stop)?,
        };
    }
    let Standing { read, first, instruments, marks } = Standing::new(&config, &mut live, restoration.as_ref());
    let (source, progress) = prepare(&instruments, &marks)?;
    let answered = etcd::Answered::default();
    let feed = listener.as_ref().map(|_| {
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
    let mut engine = Engine::start_watched(&engine_config, beat).map_err(Failure::failed)?;

    let (notes_out, notes) = unbounded();
    let committer = Committer {
        target,
        feed: feed.clone(),
        metrics: metrics.clone(),
        clock: config.pipeline.clock,
        keep_state,
        notes,
        acknowledge: acknowledge.clone(),
        restored: restoration.is_some(),
        deadline: Box::new({
            let at = shutdown.at.clone();
            move || at.get().map(|at| *at + DRAIN)
        }),
    };
    let outputs = engine.take_outputs();
    let committer = spawn("committer", {
        let (handle, shutdown) = (runtime.handle().clone(), shutdown.clone());
        move || match committer.run(&outputs, &handle) {
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
    };
    // The whole live configuration enters before the first record.
    let cutter = spawn("cutter", move || cutting.run(first, inputs, live_in))?;

    let mut sources = vec![spawn("source", {
        let shutdown = shutdown.clone();
        move || {
            if let Err(error) = source(&out, &shutdown.stop) {
                shutdown.fail(error);
            }
        }
    })?];
    let stop = shutdown.stop.clone();
    match live.watch {
        Watch::Nothing => {}
        Watch::File(path) => {
            sources.push(spawn("live file", move || {
                live_file::watch_from(&path, live.tree, live.revision, &live_out, &stop);
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
    Ok(Running { shutdown, feed, address, desk, progress, sources, cutter, committer, server, runtime })
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
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        match (self.shutdown.failure.get(), outcome) {
            (Some(error), _) => Err(Failure::Failed(error.clone())),
            (None, Some(outcome)) => Ok(outcome),
            (None, None) => Err(Failure::failed("nothing was committed")),
        }
    }
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

/// Opens the store. While another process has it, one that may go on stands by.
fn open_store(
    target: Option<&StoreTarget>,
    resume: bool,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> Result<(Target, Option<marea_sinks::store::Reader>), Failure> {
    let Some(target) = target else { return Ok((Target::Memory(Box::new(Ledger::new(1))), None)) };
    let (mut said, mut unreachable) = (false, false);
    loop {
        match runtime.block_on(Store::try_open(target)) {
            Ok(Some(store)) => {
                let reader = store.reader();
                return Ok((Target::Store(Box::new(store)), Some(reader)));
            }
            Ok(None) => {}
            Err(error) if error.retryable() && resume => {
                if !std::mem::replace(&mut unreachable, true) {
                    tracing::warn!(%error, "waiting for the store");
                }
                if !shutdown.stop.sleep(STANDBY_LOOK) {
                    return Err(Failure::failed(error));
                }
                continue;
            }
            Err(error) => return Err(Failure::refused(error)),
        }
        if !resume {
            return Err(Failure::refused(format!("store {target}: another process has it: name another one")));
        }
        if !std::mem::replace(&mut said, true) {
            tracing::warn!("store {target}: another process has it: standing by until that one is gone");
        }
        if !shutdown.stop.sleep(STANDBY_LOOK) {
            return Err(Failure::failed("stopped while standing by"));
        }
    }
}

/// Whether a run may begin, or go on, in this store. Only reads: a process that writes to it is not fenced.
pub fn check_store(target: &StoreTarget, resume: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let peeked = match runtime.block_on(Store::peek(target)) {
        // It is waited for.
        Err(error) if error.retryable() && resume => return Ok(()),
        peeked => peeked.map_err(Failure::refused)?,
    };
    match peeked {
        Some(upper) if !resume => Err(Failure::Refused(vec![format!(
            "store {target}: holds a run already, up to epoch {upper}: name another one"
        )])),
        _ => Ok(()),
    }
}

/// Where each partition stood.
type Marks = BTreeMap<Partition, PartitionMark>;

/// What a process begins with.
struct Standing {
    /// The live configuration as it will be, to explain and to warn by.
    read: LiveConfig,
    /// What of it is new.
    first: Vec<ConfigUpdate>,
    /// Their scales and price sources are those of the run's very beginning.
    instruments: Arc<Instruments>,
    marks: Marks,
}

impl Standing {
    fn new(config: &Config, live: &mut Live, restoration: Option<&Restoration>) -> Standing {
        let Some(restoration) = restoration else {
            let read = live.read(config);
            let mut first = live_file::diff(&BTreeMap::new(), &live.tree, live.revision);
            if first.is_empty() {
                // So that a restart knows that it began with nothing.
                first.push(ConfigUpdate::Stale(false));
            }
            return Standing { instruments: Arc::new(read.instruments().clone()), read, first, marks: Marks::new() };
        };
        let (mut tree, mut stale, mut last) = (BTreeMap::new(), false, 0);
        for update in &restoration.config {
            match update {
                ConfigUpdate::Put { key, value, revision } => {
                    tree.insert(key.clone(), value.clone());
                    last = last.max(*revision);
                }
                ConfigUpdate::Delete { key, revision } => {
                    tree.remove(key);
                    last = last.max(*revision);
                }
                ConfigUpdate::Stale(now) => stale = *now,
            }
        }
        if matches!(live.watch, Watch::Nothing | Watch::File(_)) {
            live.revision = last + 1;
        }
        let mut first = live_file::diff(&tree, &live.tree, live.revision);
        if stale {
            first.push(ConfigUpdate::Stale(false));
        }
        let initial = read_updates(&restoration.config, config);
        let instruments = Arc::new(initial.initial().clone());
        Standing { read: initial, first, instruments, marks: restoration.partitions.clone() }
    }
}

type Source = Box<dyn FnOnce(&marea_sources::Sender, &Stop) -> Result<(), String> + Send>;

/// How far an event time may be ahead of its receipt.
const MAX_AHEAD: Nanos = 5 * SECOND;

/// What a source is made of.
struct Preparing<'a> {
    config: &'a Config,
    instruments: &'a Arc<Instruments>,
    acknowledge: &'a marea_sources::Committed,
    lags: &'a Lags,
    /// Where the run has come to that goes on.
    marks: &'a Marks,
}

impl Preparing<'_> {
    fn decoder(&self) -> Decoder {
        let base_timeframe = self.config.pipeline.timeframes[0];
        Decoder { instruments: self.instruments.clone(), base_timeframe, max_ahead: Some(MAX_AHEAD) }
    }

    /// Where to read on. Refuses a run of another source: what it has read could not be read again.
    fn resume(&self) -> Result<Vec<Resume>, Failure> {
        let source = &self.config.source;
        let known = |partition: &str| match source.kind {
            SourceKind::Synthetic => partition == synthetic::PARTITION,
            SourceKind::File => {
                let accounts = source.accounts.iter();
                partition == file::PARTITION
                    || source.paths.iter().chain(accounts).any(|path| path.as_os_str() == partition)
            }
            SourceKind::Kafka => {
                let topics = [Some(&source.kafka.topic), source.kafka.accounts_topic.as_ref()];
                let of =
                    |topic: &String| partition.rsplit_once('/').is_some_and(|(p, _)| p == format!("kafka:{topic}"));
                topics.into_iter().flatten().any(of)
            }
            SourceKind::RabbitMq => {
                let queues = [Some(&source.rabbitmq.name), source.rabbitmq.accounts.as_ref()];
                let of =
                    |queue: &String| partition.starts_with("rabbitmq:") && partition.ends_with(&format!("/{queue}"));
                queues.into_iter().flatten().any(of)
            }
        };
        let strange = self.marks.keys().filter(|partition| !known(partition.as_str()));
        let strange: Vec<String> = strange
            .map(|partition| format!("the store holds a run that has read {partition}, which is not a part of the source: name it, or another store"))
            .collect();
        if !strange.is_empty() {
            return Err(Failure::Refused(strange));
        }
        let resume = |mark: &PartitionMark| {
            let PartitionMark { partition, low, upper, fingerprint, .. } = *mark;
            Resume { partition, low, upper, fingerprint }
        };
        Ok(self.marks.values().map(resume).collect())
    }

    /// The source, checked but not yet running. A topic, stream or queue ends only if it is asked to, at what it has now.
    fn prepare(self, market: Synthetic, until_end: bool) -> Result<(Source, Option<Arc<FileProgress>>), Failure> {
        let Preparing { config, .. } = self;
        let instruments = self.instruments.clone();
        let (acknowledge, lags) = (self.acknowledge.clone(), self.lags.clone());
        let resume = self.resume()?;
        match config.source.kind {
            SourceKind::Kafka => {
                let kafka = KafkaConfig { until_end, ..config.source.kafka.clone() };
                let kafka = kafka::open(kafka, self.decoder(), resume, acknowledge, lags).map_err(Failure::refused)?;
                Ok((Box::new(move |out, stop| kafka.run(out, stop).map_err(|e| e.to_string())), None))
            }
            SourceKind::RabbitMq => {
                let rabbit = RabbitConfig { until_end, ..config.source.rabbitmq.clone() };
                let rabbit = rabbitmq::open(rabbit, self.decoder(), resume, acknowledge, lags);
                let rabbit = rabbit.map_err(Failure::refused)?;
                Ok((Box::new(move |out, stop| rabbit.run(out, stop).map_err(|e| e.to_string())), None))
            }
            SourceKind::Synthetic => {
                let market = match resume.iter().find_map(|resume| resume.fingerprint) {
                    None => market,
                    Some(left) => market.resumed(left).ok_or_else(|| {
                        Failure::refused(
                            "the store holds a run of another synthetic market: set seed and rate as they were, or name \
                             another store",
                        )
                    })?,
                };
                synthetic::Market::new(&market, &instruments).map_err(|e| Failure::refused(format!("source.{e}")))?;
                let run = move |out: &_, stop: &_| {
                    synthetic::run(&market, &instruments, out, stop).map_err(|e| e.to_string())
                };
                Ok((Box::new(run), None))
            }
            SourceKind::File => {
                let files = open_files(config, instruments).map_err(Failure::Refused)?;
                let progress = files.progress();
                Ok((Box::new(move |out, stop| files.run(out, stop).map_err(|e| e.to_string())), Some(progress)))
            }
        }
    }
}

/// The configured files, open; or everything that is wrong with them.
pub fn open_files(config: &Config, instruments: Arc<Instruments>) -> Result<file::Files, Vec<String>> {
    let source = &config.source;
    let files = FileConfig {
        files: source.paths.clone(),
        accounts: source.accounts.clone(),
        csv_format: source.csv_format,
        speed: source.speed,
    };
    let decoder = Decoder { instruments, base_timeframe: config.pipeline.timeframes[0], max_ahead: None };
    file::open(&files, &decoder).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// What is wrong with the configured files, as far as opening them tells.
pub fn check_files(config: &Config, instruments: &Instruments) -> Vec<String> {
    open_files(config, Arc::new(instruments.clone())).err().unwrap_or_default()
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

/// The thread that cuts.
struct Cutting {
    cutter: Cutter,
    clock: Clock,
    engine: Engine,
    notes: Sender<Note>,
    desk: Arc<Mutex<Desk>>,
    /// What was said to be wrong with the live configuration.
    problems: Vec<Problem>,
    /// The live configuration to begin with, until it has entered.
    first: Option<Vec<ConfigUpdate>>,
    shutdown: Shutdown,
    until: Option<Nanos>,
    end_when_finished: bool,
    /// How far the source is behind, where that is shown, and when it was last.
    lags: (Lags, Metrics, Instant),
}

impl Cutting {
    fn run(mut self, first: Vec<ConfigUpdate>, mut inputs: Receiver<Input>, mut live: Receiver<Input>) {
        match self.clock {
            Clock::Wall => self.push(Input::Config(first)),
            // Before the first record there is no time at which it could be judged.
            Clock::Event => self.first = Some(first),
        }
        if let Err(error) = self.cut_all(&mut inputs, &mut live) {
            self.shutdown.fail(error);
        }
        // Lets the engine finish what was submitted; then the committer ends.
        drop(self.engine.close());
    }

    fn cut_all(
        &mut self,
        inputs: &mut Receiver<Input>,
        live: &mut Receiver<Input>,
    ) -> Result<(), crate::engine::EngineError> {
        let tick = match self.clock {
            Clock::Wall => WALL_TICK,
            Clock::Event => EVENT_TICK,
        };
        let mut ended = false;
        while !self.shutdown.is_stopped() {
            select! {
                recv(inputs) -> input => match input {
                    Ok(input) => self.push(input),
                    Err(_) => (*inputs, ended) = (never(), true),
                },
                recv(live) -> input => match input {
                    Ok(input) => self.push(input),
                    Err(_) => *live = never(),
                },
                default(tick) => {}
            }
            while !self.cutter.ready() {
                match inputs.try_recv() {
                    Ok(input) => self.push(input),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        (*inputs, ended) = (never(), true);
                        break;
                    }
                }
            }
            if self.cutter.is_replaying() {
                let Some(cut) = self.cutter.restored() else {
                    if ended {
                        self.shutdown.fail("the source ended before it came to where the store stands");
                    }
                    continue;
                };
                tracing::info!(ticks = cut.records().count(), "read again what had not sealed");
                self.submit(cut)?;
            }
            self.cut(|cutter| !cutter.ready())?;
            self.show_lags();
            // A source that ended since it was stopped, or broke, has not reached its end.
            if ended && !self.shutdown.is_stopped() {
                ended = false;
                self.push_first();
                self.cut(Cutter::is_drained)?;
                if self.clock == Clock::Event || self.until.is_some() {
                    let cut = self.cutter.finish(self.until);
                    self.submit(cut)?;
                }
                if self.end_when_finished {
                    break;
                }
            }
        }
        self.cut(Cutter::is_drained)?;
        match self.cutter.settle() {
            Some(cut) => self.submit(cut),
            None => Ok(()),
        }
    }

    fn show_lags(&mut self) {
        let (lags, metrics, shown) = &mut self.lags;
        if shown.elapsed() >= LAGS_EVERY {
            *shown = Instant::now();
            for (partition, lag) in lags.all() {
                metrics.consumer_lag(partition, lag.records);
            }
        }
    }

    fn push(&mut self, input: Input) {
        if !matches!(input, Input::Start { .. }) {
            self.push_first();
        }
        self.cutter.push(input, wall_now());
    }

    fn push_first(&mut self) {
        if let Some(first) = self.first.take() {
            self.cutter.push(Input::Config(first), wall_now());
        }
    }

    /// Cuts until `enough`, or until nothing is left to cut.
    fn cut(&mut self, enough: impl Fn(&Cutter) -> bool) -> Result<(), crate::engine::EngineError> {
        while !self.cutter.is_replaying() {
            match self.cutter.cut(wall_now() / MILLI) {
                Some(cut) => self.submit(cut)?,
                None if self.cutter.is_drained() => return Ok(()),
                // The epochs of this millisecond are used up.
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            if enough(&self.cutter) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn submit(&mut self, cut: Cut) -> Result<(), crate::engine::EngineError> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        desk.observe(&cut);
        if !cut.config.is_empty() {
            let problems = desk.live().problems();
            for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
                tracing::warn!("live configuration: {problem}");
            }
            self.problems = problems;
        }
        drop(desk);
        // What is computed once more was noted when it happened.
        if cut.sealed.is_none() && (cut.received.is_some() || !cut.config.is_empty()) {
            let note = Note { epoch: cut.epoch, received: cut.received, config: cut.config.clone() };
            // A committer that is gone has said why, and has asked to stop.
            let _ = self.notes.send(note);
        }
        self.engine.submit(cut)
    }
}

/// The synthetic market of a configuration, with its history ending now.
pub fn market(config: &Config, history: Nanos) -> Synthetic {
    Synthetic {
        seed: config.source.seed,
        rate: config.source.rate,
        start: wall_now() / SECOND * SECOND,
        history,
        ..Synthetic::default()
    }
}

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
use marea_model::instrument::InstrumentSpec;
use marea_model::live::{Problem, decode_segment};
use marea_model::time::{MILLI, SECOND};
use marea_model::{ConfigUpdate, Epoch, Instrument, Instruments, LiveConfig, Nanos, Symbol};
use marea_sinks::store::Ledger;
use marea_sinks::{Feed, FeedConfig, Metrics, Store};
use marea_sources::file::{FileConfig, FileProgress};
use marea_sources::synthetic::Synthetic;
use marea_sources::{Input, Stop, file, live_file, synthetic};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The live configuration where none is named.
pub const DEFAULT_LIVE: &str = include_str!("default_live.toml");

/// Batches that wait for the cutter.
const BATCHES: usize = 8;
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
    /// The file that is watched, if one is.
    pub watch: Option<PathBuf>,
}

impl Live {
    /// Of a file.
    pub fn of(path: &Path, watch: bool) -> Result<Live, Failure> {
        let tree = live_file::load(path).map_err(Failure::refused)?;
        Ok(Live { tree, watch: watch.then(|| path.to_owned()) })
    }

    /// The embedded one that goes with a kind of source.
    pub fn embedded(kind: SourceKind) -> Live {
        let text = match kind {
            SourceKind::Synthetic => synthetic::LIVE_CONFIG,
            SourceKind::File => DEFAULT_LIVE,
        };
        let tree = live_file::parse(Path::new("embedded"), text.as_bytes()).expect("the embedded file is valid TOML");
        Live { tree, watch: None }
    }

    /// As the configuration says.
    pub fn configured(config: &Config, watch: bool) -> Result<Live, Failure> {
        match &config.live_file {
            Some(path) => Live::of(path, watch),
            None => Ok(Live::embedded(config.source.kind)),
        }
    }

    /// Read as the operators will read it.
    pub fn read(&self, config: &Config) -> LiveConfig {
        read_updates(&live_file::diff(&BTreeMap::new(), &self.tree, 1), config)
    }
}

/// Keys of instruments start so.
const INSTRUMENTS: &str = "/marea/instruments/";

/// Every change of a run, read as its operators have read it: the first revision has the instruments to begin with.
pub fn read_updates(updates: &[ConfigUpdate], config: &Config) -> LiveConfig {
    let puts = updates.iter().filter_map(|update| match update {
        ConfigUpdate::Put { key, value, revision } => Some((key.as_str(), value.as_str(), *revision)),
        ConfigUpdate::Delete { .. } | ConfigUpdate::Stale(_) => None,
    });
    let first = puts.clone().next().map(|(.., revision)| revision);
    let tree = puts.filter(|(.., revision)| Some(*revision) == first).map(|(key, value, _)| (key, value)).collect();
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
    /// The SQLite file; none: nothing is stored.
    pub store: Option<PathBuf>,
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
    let Plan { config, live, market, store, listen, until, end_when_finished, keep_state } = plan;
    let mut refusals = Refusals::default();
    let live = refusals.take(live)?;
    let listener = match &listen {
        Some(listen) => refusals.take(bind(listen))?,
        None => None,
    };
    if let Some(path) = &store {
        refusals.take(check_store(path))?;
    }
    let live = live.unwrap_or_else(|| Live::embedded(config.source.kind));
    let read = live.read(&config);
    let instruments = Arc::new(read.instruments().clone());
    let source = refusals.take(prepare_source(&config, market, &instruments))?;
    let (true, Some((source, progress))) = (refusals.0.is_empty(), source) else {
        return Err(Failure::Refused(refusals.0));
    };
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

    let source_name = match config.source.kind {
        SourceKind::Synthetic => "synthetic",
        SourceKind::File => "file",
    };
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), source_name);
    let (target, reader) = open_store(store.as_deref(), &runtime)?;
    let feed = listener.as_ref().map(|_| {
        let clock = match config.pipeline.clock {
            Clock::Wall => marea_sinks::Clock::Wall,
            Clock::Event => marea_sinks::Clock::Event,
        };
        let feed = FeedConfig { clock, workers: config.pipeline.workers, store: reader, max_lag: MAX_LAG };
        let feed = Feed::new(feed, metrics.clone());
        // The state is built from nothing: it is complete from the start.
        feed.health().set_hydrated(true);
        feed
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
        metrics,
        clock: config.pipeline.clock,
        keep_state,
        notes,
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
    let cutting = Cutting {
        cutter: Cutter::new(CutterConfig {
            clock: config.pipeline.clock,
            lateness: config.pipeline.lateness,
            max_ticks: config.pipeline.max_ticks,
            timeframes,
            instruments: instruments.clone(),
            metrics_every: METRICS_EVERY,
        }),
        clock: config.pipeline.clock,
        engine,
        notes: notes_out,
        desk: desk.clone(),
        problems,
        first: None,
        shutdown: shutdown.clone(),
        until,
        end_when_finished,
    };
    // The whole live configuration enters before the first record.
    let first = live_file::diff(&BTreeMap::new(), &live.tree, 1);
    let cutter = spawn("cutter", move || cutting.run(first, inputs, live_in))?;

    let mut sources = vec![spawn("source", {
        let shutdown = shutdown.clone();
        move || {
            if let Err(error) = source(&out, &shutdown.stop) {
                shutdown.fail(error);
            }
        }
    })?];
    if let Some(path) = live.watch {
        let stop = shutdown.stop.clone();
        sources.push(spawn("live file", move || live_file::watch_from(&path, live.tree, 1, &live_out, &stop))?);
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

fn open_store(
    path: Option<&Path>,
    runtime: &tokio::runtime::Runtime,
) -> Result<(Target, Option<marea_sinks::store::Reader>), Failure> {
    let Some(path) = path else { return Ok((Target::Memory(Box::new(Ledger::new(1))), None)) };
    let store = runtime.block_on(Store::open(path)).map_err(Failure::refused)?;
    // Another process may have begun since `check_store`.
    if store.standing().upper > 0 {
        return Err(holds_a_run(path, store.standing().upper));
    }
    let reader = store.reader();
    Ok((Target::Sqlite(Box::new(store)), Some(reader)))
}

fn holds_a_run(path: &Path, upper: Epoch) -> Failure {
    Failure::Refused(vec![format!(
        "store {}: holds a run already, up to epoch {upper}; runs are not resumed yet: name another file",
        path.display(),
    )])
}

/// Whether a run may begin in this store. Only reads: a process that writes to it is not fenced.
pub fn check_store(path: &Path) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    match runtime.block_on(Store::peek(path)).map_err(Failure::refused)? {
        Some(upper) => Err(holds_a_run(path, upper)),
        None => Ok(()),
    }
}

type Source = Box<dyn FnOnce(&marea_sources::Sender, &Stop) -> Result<(), String> + Send>;

/// The source, checked but not yet running.
fn prepare_source(
    config: &Config,
    market: Synthetic,
    instruments: &Arc<Instruments>,
) -> Result<(Source, Option<Arc<FileProgress>>), Failure> {
    let instruments = instruments.clone();
    match config.source.kind {
        SourceKind::Synthetic => {
            synthetic::Market::new(&market, &instruments).map_err(|e| Failure::refused(format!("source.{e}")))?;
            let run =
                move |out: &_, stop: &_| synthetic::run(&market, &instruments, out, stop).map_err(|e| e.to_string());
            Ok((Box::new(run), None))
        }
        SourceKind::File => {
            let files = open_files(config, instruments).map_err(Failure::Refused)?;
            let progress = files.progress();
            Ok((Box::new(move |out, stop| files.run(out, stop).map_err(|e| e.to_string())), Some(progress)))
        }
    }
}

fn open_files(config: &Config, instruments: Arc<Instruments>) -> Result<file::Files, Vec<String>> {
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
            self.cut(|cutter| !cutter.ready())?;
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
        loop {
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
        if cut.received.is_some() || !cut.config.is_empty() {
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

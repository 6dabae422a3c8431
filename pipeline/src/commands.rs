//! The commands: each makes a plan of its flags and configuration, runs it, and says what came of it.

use crate::cli::{Check, Cli, Command, Demo, Explain, Format, Replay, Run};
use crate::committer::Outcome;
use crate::config::{self, Config, Loaded, Origin, SourceKind, Sources};
use crate::explain::{BARS, BarLine, Case, Desk, Facts, Track, explain};
use crate::http;
use crate::live_cli;
use crate::run::{Failure, Listen, Live, Plan, Running, Watch, check_store, market, read_updates, start};
use crate::status::{LogWriter, StatusLine, progress_bar, thousands};
use clap::CommandFactory;
use marea_model::live::{Problem, encode_segment};
use marea_model::output::{Key, MetricsWindow, Totals};
use marea_model::time::{SECOND, format_rfc3339, now_ns, parse_rfc3339};
use marea_model::{AccountId, Nanos, Output, Recommendation, StrategyId, Symbol, Timeframe};
use marea_sinks::State;
use marea_sinks::store::{Reader, StoreTarget};
use marea_sources::Stop;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How much of the synthetic market has happened before it is opened.
const HISTORY: Nanos = 6 * 3600 * SECOND;
/// How often somebody looks whether it is over, and how it goes.
const LOOK: Duration = Duration::from_millis(100);

/// How long etcd may take to answer where it is only to be checked.
const CHECK_FOR: Duration = Duration::from_secs(5);

/// Does what was asked.
pub fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "marea", &mut script);
        say(String::from_utf8_lossy(&script));
        return Ok(());
    }
    let env: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let flags = cli.command.flags();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let loaded = config::load(&Sources { file: cli.config.as_deref(), env: &env, flags: &flags, cores });
    let loaded = loaded.map_err(|errors| Failure::Refused(errors.0))?;
    start_log(&loaded.config)?;
    if !matches!(cli.command, Command::Check(_)) {
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
    }
    let json = cli.format == Format::Json;
    match cli.command {
        Command::Demo(args) => demo(loaded, &args, json),
        Command::Replay(args) => replay(loaded, &args, json),
        Command::Run(args) => run_configured(loaded, &args, json),
        Command::Publish(args) => crate::publish::publish(&loaded, &args, json),
        Command::Policy(args) => live_cli::policy(&loaded.config, &args, json),
        Command::Window(args) => live_cli::window(&loaded.config, &args, json),
        Command::Kill(args) => live_cli::kill(&loaded.config, &args, json),
        Command::Migrate(args) if args.rebuild => crate::rebuild::rebuild(&loaded.config, args.swap, json),
        Command::Migrate(_) => migrate(&loaded.config, json),
        Command::Check(args) => check(&loaded, &args, json),
        Command::Explain(args) => explain_symbol(loaded, &args, json),
        Command::Completions { .. } => Ok(()),
    }
}

/// Writes to standard output. Nobody reading it is no reason to fail.
pub(crate) fn say(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_ref().as_bytes());
    let _ = out.flush();
}

pub(crate) fn say_json(value: &impl Serialize) {
    say(serde_json::to_string_pretty(value).unwrap_or_default() + "\n");
}

fn start_log(config: &Config) -> Result<(), Failure> {
    let writer = match &config.log.file {
        None => BoxMakeWriter::new(LogWriter),
        Some(path) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|e| {
                Failure::refused(format!("log.file: {:?} cannot be written: {e}", path.display().to_string()))
            })?;
            BoxMakeWriter::new(std::sync::Arc::new(file))
        }
    };
    let ansi = config.log.file.is_none() && std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{},lapin=off", config.log.level)))
        .with_target(false)
        .with_ansi(ansi)
        .with_writer(writer);
    // A second start in one process (tests) keeps the first log.
    let _ = if config.log.json { log.json().try_init() } else { log.try_init() };
    Ok(())
}

fn demo(loaded: Loaded, args: &Demo, json: bool) -> Result<(), Failure> {
    let Loaded { config, .. } = &loaded;
    let folder = tempfile::Builder::new().prefix("marea-demo-").tempdir();
    let folder = folder.map_err(|e| Failure::failed(format!("no temporary folder: {e}")))?;
    let live_file = match &config.live_file {
        Some(path) => path.clone(),
        None => {
            let path = folder.path().join("live.toml");
            let written = std::fs::write(&path, marea_sources::synthetic::LIVE_CONFIG);
            written.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            path
        }
    };
    let store = folder.path().join("marea.db");
    let origin = loaded.origin("feed.listen");
    let listen = Listen { address: config.listen, or_next: origin == Origin::Default, origin: origin.to_string() };
    let running = start(Plan {
        // What it makes up is for nobody's Redis.
        config: Config { redis: None, ..config.clone() },
        live: Live::of(&live_file, true),
        market: market(config, HISTORY),
        store: Some(StoreTarget::Sqlite(store.clone())),
        resume: true,
        listen: Some(listen),
        until: None,
        end_when_finished: false,
        keep_state: false,
    })?;
    let page = page(&running);
    if json {
        say(json!({ "page": page, "live_file": live_file, "store": store }).to_string() + "\n");
    } else {
        say(format!(
            "marea demo: a synthetic market, seed {}, {} ticks a second\n\n  page       {page}\n  live file  {}  (edit it: it takes effect at once)\n  store      {}\n  stop       Ctrl-C\n\n",
            config.source.seed,
            config.source.rate,
            live_file.display(),
            store.display()
        ));
    }
    let (outcome, _) = watch(running, args.duration, json)?;
    if json {
        say_json(&outcome.totals);
    } else {
        say(totals_line(&outcome.totals) + "\n");
    }
    Ok(())
}

fn run_configured(loaded: Loaded, args: &Run, json: bool) -> Result<(), Failure> {
    let config = &loaded.config;
    if let Some(folder) = &args.dump {
        make_dump_folder(folder)?;
    }
    let listen = Listen { address: config.listen, or_next: false, origin: loaded.origin("feed.listen").to_string() };
    let running = start(Plan {
        config: config.clone(),
        live: Live::configured(config, true, &Stop::new()),
        market: market(config, HISTORY),
        store: Some(config.store.clone()),
        resume: true,
        listen: Some(listen),
        until: args.until,
        end_when_finished: args.until.is_some(),
        keep_state: args.dump.is_some(),
    });
    let running = match running {
        Err(Failure::Stopped) if args.dump.is_some() => return Err(not_dumped()),
        running => running?,
    };
    tracing::info!(page = %page(&running), store = %config.store, "running");
    let (outcome, complete) = watch(running, None, json)?;
    if let Some(folder) = &args.dump {
        if !complete {
            return Err(not_dumped());
        }
        outcome.state.write_csv(folder).map_err(Failure::failed)?;
    }
    if json {
        say_json(&outcome.totals);
    } else {
        say(totals_line(&outcome.totals) + "\n");
    }
    Ok(())
}

fn not_dumped() -> Failure {
    Failure::failed("stopped before the end of the input: nothing is dumped")
}

fn make_dump_folder(folder: &Path) -> Result<(), Failure> {
    let made = std::fs::create_dir_all(folder);
    made.map_err(|e| Failure::refused(format!("--dump: {:?} cannot be made: {e}", folder.display().to_string())))
}

fn migrate(config: &Config, json: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let done = runtime.block_on(marea_sinks::store::migrate(&config.store)).map_err(Failure::failed)?;
    if json {
        say_json(&json!({ "store": config.store.to_string(), "done": done }));
    } else {
        say(format!("store {}\n", config.store) + &done.iter().map(|line| format!("  {line}\n")).collect::<String>());
    }
    Ok(())
}

/// Where a browser finds the feed.
fn page(running: &Running) -> String {
    running.address.map_or(String::new(), |address| format!("http://{address}/"))
}

/// Shows how it goes until it is over, or until its time is up; and whether the input was read to its end.
fn watch(running: Running, duration: Option<Duration>, json: bool) -> Result<(Outcome, bool), Failure> {
    let started = Instant::now();
    let mut line = StatusLine::new(json);
    while !running.is_over() {
        let status = running.feed.as_ref().map(|feed| feed.view().status());
        if let Some(status) = status.filter(|status| status.epoch.is_some()) {
            line.show(&status);
        }
        if duration.is_some_and(|duration| started.elapsed() >= duration) {
            running.shutdown.stop();
        }
        std::thread::sleep(LOOK);
    }
    line.clear();
    let complete = !running.shutdown.is_stopped();
    Ok((running.finish()?, complete))
}

fn totals_line(t: &Totals) -> String {
    format!(
        "records in {} = accepted {} + duplicate {} + dead {} + held {}",
        thousands(t.records_in),
        thousands(t.accepted),
        thousands(t.duplicate),
        thousands(t.dead),
        thousands(t.held)
    )
}

fn replay(loaded: Loaded, args: &Replay, json: bool) -> Result<(), Failure> {
    let config = &loaded.config;
    if let Some(folder) = &args.dump {
        make_dump_folder(folder)?;
    }
    let started = Instant::now();
    let running = start(Plan {
        config: config.clone(),
        live: Live::configured(config, false, &Stop::new()),
        market: market(config, 0),
        store: args.store.is_some().then(|| config.store.clone()),
        resume: false,
        listen: None,
        until: args.until,
        end_when_finished: true,
        keep_state: true,
    });
    let (outcome, complete) = match running {
        Ok(running) => wait_with_bar(running, std::io::stderr().is_terminal() && !json)?,
        // While the store was made.
        Err(Failure::Stopped) => (Outcome::default(), false),
        Err(failure) => return Err(failure),
    };
    let mut summary = Summary::of(&outcome, complete, started.elapsed());
    // A part of the state would look like the whole.
    if let Some(folder) = args.dump.as_ref().filter(|_| complete) {
        outcome.state.write_csv(folder).map_err(Failure::failed)?;
        summary.dump = Some(folder.display().to_string());
    }
    if json {
        say_json(&summary);
    } else {
        say(summary.text());
    }
    if complete { Ok(()) } else { Err(Failure::failed("stopped before the end of the files")) }
}

/// Waits for the end of the files, and says what came of it and whether it is complete.
fn wait_with_bar(running: Running, visible: bool) -> Result<(Outcome, bool), Failure> {
    let started = Instant::now();
    let bar = progress_bar(visible);
    while !running.is_over() {
        if let Some(progress) = &running.progress {
            bar.set_position((progress.fraction() * 1000.0) as u64);
            let rows = progress.rows_read();
            let rate = rows as f64 / started.elapsed().as_secs_f64().max(1e-3);
            bar.set_message(format!("{} rows, {} a second", thousands(rows as i64), thousands(rate as i64)));
        }
        // Short files are over before anybody looks.
        std::thread::sleep(LOOK.min(started.elapsed() / 8 + Duration::from_millis(1)));
    }
    bar.finish_and_clear();
    let complete = !running.shutdown.is_stopped();
    Ok((running.finish()?, complete))
}

/// What a replay came to.
#[derive(Debug, Serialize)]
struct Summary {
    /// Whether the files were read to their end.
    complete: bool,
    /// RFC 3339.
    now: String,
    seconds: f64,
    records_per_second: f64,
    #[serde(flatten)]
    totals: Totals,
    balanced: bool,
    /// By timeframe.
    bars: BTreeMap<String, u64>,
    indicator_values: u64,
    trades: u64,
    metrics: u64,
    /// By action; HOLD too.
    recommendations: BTreeMap<String, u64>,
    verdicts: u64,
    allowed: u64,
    /// Blocked verdicts by reason: one verdict counts under each of its reasons.
    blocked_by: BTreeMap<String, u64>,
    dead_letters: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dump: Option<String>,
}

impl Summary {
    fn of(outcome: &Outcome, complete: bool, took: Duration) -> Summary {
        let mut bars: BTreeMap<Timeframe, u64> = BTreeMap::new();
        let mut summary = Summary {
            complete,
            now: format_rfc3339(now_ns(outcome.epoch)),
            seconds: took.as_secs_f64(),
            records_per_second: outcome.totals.records_in as f64 / took.as_secs_f64().max(1e-9),
            totals: outcome.totals,
            balanced: outcome.totals.balanced(),
            bars: BTreeMap::new(),
            indicator_values: 0,
            trades: 0,
            metrics: 0,
            recommendations: BTreeMap::new(),
            verdicts: 0,
            allowed: 0,
            blocked_by: BTreeMap::new(),
            dead_letters: outcome.dead.iter().map(|(reason, n)| (reason.to_string(), *n)).collect(),
            dump: None,
        };
        for row in outcome.state.rows().values() {
            match row {
                Output::Bar(bar) => *bars.entry(bar.timeframe).or_default() += 1,
                Output::Indicator(_) => summary.indicator_values += 1,
                Output::Trade(_) => summary.trades += 1,
                Output::Metrics(_) => summary.metrics += 1,
                Output::Recommendation(r) => {
                    *summary.recommendations.entry(r.action.as_str().to_owned()).or_default() += 1;
                }
                Output::Verdict(v) => {
                    summary.verdicts += 1;
                    summary.allowed += u64::from(v.allow);
                    for reason in &v.reasons {
                        *summary.blocked_by.entry(reason.as_str().to_owned()).or_default() += 1;
                    }
                }
            }
        }
        summary.bars = bars.into_iter().map(|(timeframe, n)| (timeframe.to_string(), n)).collect();
        summary
    }

    fn text(&self) -> String {
        let counted = |map: &BTreeMap<String, u64>| {
            let each: Vec<String> = map.iter().map(|(name, n)| format!("{name} {}", thousands(*n as i64))).collect();
            if each.is_empty() { "none".to_owned() } else { each.join(", ") }
        };
        let n = |n: u64| thousands(n as i64);
        let mut text = totals_line(&self.totals);
        if !self.balanced {
            text.push_str("  (THIS DOES NOT ADD UP)");
        }
        if !self.complete {
            text.push_str("\nSTOPPED before the end of the files");
        }
        let _ = write!(
            text,
            "\n\nnow              {}\nbars             {}\nindicators       {} values\nbacktests        {} trades, {} rows of metrics\nrecommendations  {}\n",
            self.now,
            if self.bars.is_empty() { "none".to_owned() } else { counted_in_order(&self.bars) },
            n(self.indicator_values),
            n(self.trades),
            n(self.metrics),
            counted(&self.recommendations),
        );
        if self.verdicts > 0 {
            let _ = writeln!(
                text,
                "verdicts         {}: allowed {}, blocked {}\nblocked by       {}",
                n(self.verdicts),
                n(self.allowed),
                n(self.verdicts - self.allowed),
                counted(&self.blocked_by)
            );
        } else {
            text.push_str("verdicts         none: no accounts are configured\n");
        }
        let _ = writeln!(text, "dead letters     {}", counted(&self.dead_letters));
        if let Some(folder) = &self.dump {
            let _ = writeln!(text, "written to       {folder}");
        }
        let _ = writeln!(
            text,
            "took             {:.2} s, {} records a second",
            self.seconds,
            thousands(self.records_per_second as i64)
        );
        text
    }
}

/// Timeframes read best from short to long.
fn counted_in_order(bars: &BTreeMap<String, u64>) -> String {
    let mut each: Vec<(Option<Timeframe>, &String, &u64)> =
        bars.iter().map(|(name, n)| (name.parse().ok(), name, n)).collect();
    each.sort();
    each.iter().map(|(_, name, n)| format!("{name} {}", thousands(**n as i64))).collect::<Vec<_>>().join(", ")
}

fn check(loaded: &Loaded, _args: &Check, json: bool) -> Result<(), Failure> {
    let config = &loaded.config;
    let mut errors = Vec::new();
    let mut list = |failure| match failure {
        Failure::Refused(lines) => errors.extend(lines),
        Failure::Failed(line) => errors.push(line),
        Failure::Stopped => {}
    };
    // Another process may be needed for it: that one is asked for a moment only.
    let stop = Stop::new();
    std::thread::spawn({
        let stop = stop.clone();
        move || stop.sleep(CHECK_FOR).then(|| stop.stop())
    });
    let live = Live::configured(config, false, &stop).map_err(&mut list).ok();
    let _ = check_store(&config.store, true).map_err(&mut list);
    let broken = live.is_none();
    let read = live.unwrap_or_else(|| Live { tree: BTreeMap::new(), revision: 1, watch: Watch::Nothing }).read(config);
    let problems: Vec<Problem> = if broken { Vec::new() } else { read.problems() };
    errors.extend(problems.iter().map(ToString::to_string));
    if config.source.kind == SourceKind::File {
        errors.extend(crate::run::check_files(config, read.instruments()));
    }
    let name = config.live_file.as_ref().map_or("(embedded)".to_owned(), |path| path.display().to_string());
    let accounts: Vec<String> = read.accounts().keys().map(ToString::to_string).collect();
    let strategies: Vec<String> = read.strategies().keys().map(ToString::to_string).collect();
    let instruments: Vec<String> = read.instruments().by_symbol.keys().map(ToString::to_string).collect();
    if json {
        say_json(&json!({
            "ok": errors.is_empty(),
            "settings": loaded.settings,
            "warnings": loaded.warnings,
            "live": {
                "file": name,
                "accounts": accounts,
                "strategies": strategies,
                "instruments": instruments,
                "problems": problems,
            },
            "errors": errors,
        }));
    } else {
        let widest = |of: fn(&config::Setting) -> usize| loaded.settings.iter().map(of).max().unwrap_or(0);
        let (key, value) = (widest(|s| s.key.len()), widest(|s| s.value.len()).min(44));
        let mut text = String::new();
        for setting in &loaded.settings {
            let _ = writeln!(text, "{:key$}  {:value$}  ({})", setting.key, setting.value, setting.origin);
        }
        let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let _ = if broken {
            writeln!(text, "\nlive configuration {name}\n  cannot be read")
        } else {
            writeln!(
                text,
                "\nlive configuration {name}\n  accounts     {}\n  strategies   {}\n  instruments  {}",
                list(&accounts),
                list(&strategies),
                list(&instruments)
            )
        };
        for warning in &loaded.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        if errors.is_empty() {
            text.push_str("\nall is well\n");
        }
        say(text);
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::Refused(errors)) }
}

fn explain_symbol(loaded: Loaded, args: &Explain, json: bool) -> Result<(), Failure> {
    let symbol = Symbol::canonical(&args.symbol).map_err(Failure::refused)?;
    let account = args.account.as_deref().map(AccountId::new).transpose().map_err(Failure::refused)?;
    let case = if !args.files.is_empty() {
        case_of_files(&loaded, args, symbol, account)?
    } else if let Some(path) = &args.store {
        case_of_store(&loaded.config, path, symbol, account)?
    } else {
        case_of_feed(&http::Url::parse(&args.url).map_err(Failure::refused)?, symbol, account)?
    };
    if json {
        say_json(&case);
    } else {
        say(explain(&case, args.lang).map_err(Failure::failed)?);
    }
    Ok(())
}

fn no_recommendation(symbol: Symbol) -> Failure {
    Failure::failed(format!("no recommendation stands for {symbol}: it needs a closed bar of its decision timeframe"))
}

fn no_verdict(account: AccountId, symbol: Symbol) -> Failure {
    Failure::failed(format!("account {account} has no verdict on {symbol}: it is not among the configured accounts"))
}

fn case_of_files(loaded: &Loaded, args: &Explain, symbol: Symbol, account: Option<AccountId>) -> Result<Case, Failure> {
    let config = &loaded.config;
    let running = start(Plan {
        config: config.clone(),
        live: Live::configured(config, false, &Stop::new()),
        market: market(config, 0),
        store: None,
        resume: false,
        listen: None,
        until: args.until,
        end_when_finished: true,
        keep_state: true,
    })?;
    let desk = running.desk.clone();
    let (outcome, complete) = wait_with_bar(running, std::io::stderr().is_terminal())?;
    if !complete {
        return Err(Failure::failed("stopped before the end of the files: there is nothing to explain yet"));
    }
    let facts = desk.lock().unwrap_or_else(PoisonError::into_inner).facts(symbol, account);
    case_of_state(&outcome.state, facts, symbol, account)
}

fn case_of_state(state: &State, facts: Facts, symbol: Symbol, account: Option<AccountId>) -> Result<Case, Failure> {
    let Some(Output::Recommendation(r)) = state.get(&Key::Recommendation(symbol)) else {
        return Err(no_recommendation(symbol));
    };
    let verdict = match account {
        None => None,
        Some(account) => match state.get(&Key::Verdict(account, symbol)) {
            Some(Output::Verdict(v)) => Some(serde_json::to_value(&**v).map_err(Failure::failed)?),
            _ => return Err(no_verdict(account, symbol)),
        },
    };
    let track =
        |strategy: StrategyId| match state.get(&Key::Metrics(strategy, symbol, r.timeframe, MetricsWindow::Days30)) {
            Some(Output::Metrics(row)) => Some((strategy.to_string(), Track::from(&row.metrics))),
            _ => None,
        };
    Ok(Case {
        recommendation: serde_json::to_value(&**r).map_err(Failure::failed)?,
        verdict,
        tracks: r.votes.iter().filter_map(|vote| track(vote.strategy)).collect(),
        bars: last_bars(state, r),
        facts: Some(facts),
    })
}

/// The recommendation's bar and the ones before it.
fn last_bars(state: &State, r: &Recommendation) -> Vec<BarLine> {
    let from = Key::Bar(r.symbol, r.timeframe, Nanos::MIN);
    let to = Key::Bar(r.symbol, r.timeframe, r.bar_open_time);
    let bars = state.rows().range(from..=to).rev().filter_map(|(_, row)| match row {
        Output::Bar(bar) if bar.closed => Some(BarLine::from(bar)),
        _ => None,
    });
    let mut bars: Vec<BarLine> = bars.take(BARS).collect();
    bars.reverse();
    bars
}

/// A store has the tables and the configuration, but neither quotes nor equity.
fn case_of_store(config: &Config, path: &Path, symbol: Symbol, account: Option<AccountId>) -> Result<Case, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(async {
        let store = Reader::open(path).await.map_err(Failure::refused)?;
        let read = |text: String| serde_json::from_str::<Value>(&text).map_err(Failure::failed);
        let recommendation = store.recommendation(symbol).await.map_err(Failure::failed)?;
        let recommendation = recommendation.map(read).transpose()?.ok_or_else(|| no_recommendation(symbol))?;
        let verdict = match account {
            None => None,
            Some(account) => {
                let verdict = store.verdict(account, symbol).await.map_err(Failure::failed)?;
                Some(verdict.map(read).transpose()?.ok_or_else(|| no_verdict(account, symbol))?)
            }
        };
        let time = |json: &Value| json.as_str().and_then(|text| parse_rfc3339(text).ok());
        let mut case = Case { recommendation, verdict, tracks: BTreeMap::new(), bars: Vec::new(), facts: None };
        if let Ok(timeframe) = Timeframe::deserialize(&case.recommendation["timeframe"]) {
            let tracks = store.tracks(symbol, timeframe).await.map_err(Failure::failed)?;
            let track = |(strategy, trades, values): (String, u64, [Option<f64>; 3])| {
                let [total_return, sharpe, win_rate] = values;
                (strategy, Track { trades, total_return, sharpe, win_rate })
            };
            case.tracks = tracks.into_iter().map(track).collect();
            let to = time(&case.recommendation["bar_close_time"]);
            let bars = store.bars(symbol, timeframe, None, to, BARS).await.map_err(Failure::failed)?;
            case.bars = bars.iter().map(BarLine::from).collect();
        }
        if let Some(now) = case.verdict.as_ref().and_then(|verdict| time(&verdict["as_of"])) {
            let live = read_updates(&store.config_events().await.map_err(Failure::failed)?, config);
            case.facts = Some(Desk::at(live, now).facts(symbol, account));
        }
        Ok(case)
    })
}

fn case_of_feed(url: &http::Url, symbol: Symbol, account: Option<AccountId>) -> Result<Case, Failure> {
    let name = encode_segment(symbol.as_str());
    let get = |path: String| http::get(url, &path).map_err(Failure::failed);
    let found = get(format!("/api/v1/recommendations/{name}/latest"))?;
    let recommendation = match found.ok() {
        Some(body) => body["recommendation"].clone(),
        None => return Err(Failure::failed(found.detail)),
    };
    let verdict = match account {
        None => None,
        Some(account) => {
            let found = get(format!("/api/v1/verdicts?symbol={name}&account={}", encode_segment(account.as_str())))?;
            match found.ok().map(|body| body["verdicts"][0]["verdict"].clone()) {
                Some(verdict) if verdict.is_object() => Some(verdict),
                _ => return Err(no_verdict(account, symbol)),
            }
        }
    };
    let timeframe = recommendation["timeframe"].as_str().unwrap_or_default().to_owned();
    let mut case = Case { recommendation, verdict, tracks: BTreeMap::new(), bars: Vec::new(), facts: None };
    // The case stands without what follows: an answer that does not come leaves its part out.
    if let Some(body) = get(format!("/api/v1/metrics/{name}?window=30d&timeframe={timeframe}&limit=1000"))?.ok() {
        let rows = body["metrics"].as_array().map(Vec::as_slice).unwrap_or_default();
        let track = |row: &Value| Some((row["strategy"].as_str()?.to_owned(), Track::deserialize(row).ok()?));
        case.tracks = rows.iter().filter_map(track).collect();
    }
    let close = case.recommendation["bar_close_time"].as_str().and_then(|t| parse_rfc3339(t).ok());
    if let Some(close) = close {
        let to = encode_segment(&format_rfc3339(close));
        if let Some(body) = get(format!("/api/v1/bars/{name}?timeframe={timeframe}&to={to}&limit={BARS}"))?.ok() {
            case.bars = Vec::deserialize(&body["bars"]).unwrap_or_default();
        }
    }
    let query = account.map_or(String::new(), |account| format!("?account={}", encode_segment(account.as_str())));
    if let Some(body) = get(format!("/api/v1/facts/{name}{query}"))?.ok() {
        case.facts = Facts::deserialize(body).ok();
    }
    Ok(case)
}

//! The program's configuration: defaults < `marea.toml` < `MAREA__SECTION__KEY` < flags.
//!
//! Every value keeps its origin, for `marea check`. Whatever is wrong is listed, all of it at once, each line naming where
//! it stands, the key, the value and what it must be; unknown keys come with the nearest known one. What changes while the
//! program runs (policies, windows, switches, accounts, instruments, strategies) is not here but in the live file.

use crate::cutter::Clock;
use marea_model::codec::csv;
use marea_model::time::{MILLI, SECOND};
use marea_model::{Nanos, Timeframe, cursor::excerpt};
use marea_operators::indicators::IndicatorSpec;
use marea_sinks::redis::RedisConfig;
use marea_sinks::store::{Chunks, StoreTarget};
use marea_sources::etcd::EtcdConfig;
use marea_sources::file::Speed;
use marea_sources::kafka::{KafkaConfig, Protocol, Security};
use marea_sources::rabbitmq::{RabbitConfig, RabbitKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The file that is read when none is named, if it is there.
pub const DEFAULT_FILE: &str = "marea.toml";

/// Environment variables that start so are ours.
const ENV_PREFIX: &str = "MAREA__";

/// The most workers that may be asked for.
const MAX_WORKERS: u64 = 256;

/// (section, key, default as it would be written in the environment)
const KEYS: &[(&str, &str, &str)] = &[
    ("pipeline", "clock", "wall"),
    ("pipeline", "lateness", "10m"),
    ("pipeline", "workers", CORES),
    ("pipeline", "timeframes", "1s,1m,5m,1h"),
    ("pipeline", "max_ticks", "10000"),
    ("indicators", "timeframes", ALL_BUT_BASE),
    ("indicators", "list", ALL_INDICATORS),
    ("source", "kind", "synthetic"),
    ("source", "paths", ""),
    ("source", "accounts", ""),
    ("source", "csv_format", ""),
    ("source", "speed", "full"),
    ("source", "seed", "1"),
    ("source", "rate", "50"),
    ("source", "accept_gap", "false"),
    ("kafka", "brokers", "127.0.0.1:9092"),
    ("kafka", "topic", "marea.ticks.v1"),
    ("kafka", "accounts_topic", ""),
    ("kafka", "dead_letters", ""),
    ("kafka", "group", "marea"),
    ("kafka", "protocol", "plaintext"),
    ("kafka", "ca", ""),
    ("kafka", "certificate", ""),
    ("kafka", "key", ""),
    ("kafka", "key_password", ""),
    ("kafka", "mechanism", ""),
    ("kafka", "username", ""),
    ("kafka", "password", ""),
    ("rabbitmq", "url", "amqp://guest:guest@127.0.0.1:5672/%2f"),
    ("rabbitmq", "kind", "stream"),
    ("rabbitmq", "name", "marea.ticks"),
    ("rabbitmq", "accounts", ""),
    ("rabbitmq", "prefetch", "10000"),
    ("rabbitmq", "ca", ""),
    ("rabbitmq", "certificate", ""),
    ("rabbitmq", "key", ""),
    ("live", "file", ""),
    ("etcd", "endpoints", ""),
    ("etcd", "ca", ""),
    ("etcd", "certificate", ""),
    ("etcd", "key", ""),
    ("etcd", "user", ""),
    ("etcd", "password", ""),
    ("store", "path", "marea.db"),
    ("store", "url", ""),
    ("timescale", "chunk", "7d"),
    ("timescale", "compress_after", "30d"),
    ("timescale", "forget_after", "730d"),
    ("feed", "listen", "127.0.0.1:8000"),
    ("feed", "publish", "durable"),
    ("redis", "url", ""),
    ("redis", "hash_tags", "false"),
    ("log", "level", "info"),
    ("log", "format", "text"),
    ("log", "file", ""),
];

/// Never shown. Each may also be named as `…_file`: then it is what that file says.
const SECRETS: [(&str, &str); 6] = [
    ("kafka", "key_password"),
    ("kafka", "password"),
    ("rabbitmq", "url"),
    ("etcd", "password"),
    ("store", "url"),
    ("redis", "url"),
];

fn is_secret(section: &str, key: &str) -> bool {
    SECRETS.contains(&(section, key))
}

/// Defaults that depend on the machine or on other keys.
const CORES: &str = "<half of the cores>";
const ALL_BUT_BASE: &str = "<all but the base>";
const ALL_INDICATORS: &str = "<all>";

/// All of it, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[pipeline]`
    pub pipeline: Pipeline,
    /// `[indicators]`
    pub indicators: Indicators,
    /// `[source]`
    pub source: Source,
    /// `[live] file`; none, and no etcd: every kind of strategy once, and no accounts.
    pub live_file: Option<PathBuf>,
    /// `[etcd]`, if an endpoint is named: the live configuration is there.
    pub etcd: Option<EtcdConfig>,
    /// `[store] url`, if there is one, else `path`.
    pub store: StoreTarget,
    /// `[feed] listen`
    pub listen: SocketAddr,
    /// `[feed] publish`
    pub publish: Publish,
    /// `[redis]`, if a URL is named.
    pub redis: Option<RedisConfig>,
    /// `[log]`
    pub log: Log,
}

/// When values are published to Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Publish {
    /// After the commit.
    Durable,
    /// Before it, without a seq; and after it.
    Fast,
}

/// How ticks become epochs and bars.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// What `now` follows.
    pub clock: Clock,
    /// How far behind the watermark a record may be.
    pub lateness: Nanos,
    /// Worker threads.
    pub workers: usize,
    /// Rising, the base first; each a multiple of the base.
    pub timeframes: Vec<Timeframe>,
    /// The most records in an epoch.
    pub max_ticks: usize,
}

/// Which indicators are published.
#[derive(Clone, Debug)]
pub struct Indicators {
    /// On which bars.
    pub timeframes: Vec<Timeframe>,
    /// Which.
    pub list: Vec<IndicatorSpec>,
}

/// Where ticks come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// Files, merged by event time.
    pub paths: Vec<PathBuf>,
    /// A file of account snapshots, one JSON object a line.
    pub accounts: Option<PathBuf>,
    /// What CSV files are; looked at if none.
    pub csv_format: Option<csv::Format>,
    /// How fast files are read.
    pub speed: Speed,
    /// Of the synthetic market.
    pub seed: u64,
    /// Ticks a second of the synthetic market.
    pub rate: f64,
    /// Whether to go on where a broker no longer has what is needed.
    pub accept_gap: bool,
    /// `[kafka]`
    pub kafka: KafkaConfig,
    /// `[rabbitmq]`
    pub rabbitmq: RabbitConfig,
}

/// Kinds of sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceKind {
    /// A seeded market.
    Synthetic,
    /// Parquet, CSV and Arrow files.
    File,
    /// A topic.
    Kafka,
    /// A stream or a queue.
    RabbitMq,
}

impl SourceKind {
    const ALL: [SourceKind; 4] = [SourceKind::Synthetic, SourceKind::File, SourceKind::Kafka, SourceKind::RabbitMq];

    /// Its name in the configuration and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceKind::Synthetic => "synthetic",
            SourceKind::File => "file",
            SourceKind::Kafka => "kafka",
            SourceKind::RabbitMq => "rabbitmq",
        }
    }
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: tracing::Level,
    /// Whether lines are JSON.
    pub json: bool,
    /// Where to; standard error if none.
    pub file: Option<PathBuf>,
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A file and its line.
    File(String, usize),
    /// An environment variable.
    Env(String),
    /// A flag, or the command itself.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.pad("default"),
            Origin::File(file, line) => f.pad(&format!("{file}:{line}")),
            Origin::Env(name) | Origin::Flag(name) => f.pad(name),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// One value, for `marea check`.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// `pipeline.workers`
    pub key: String,
    /// `2`
    pub value: String,
    /// `marea.toml:3`
    pub origin: Origin,
}

impl Loaded {
    /// Where a value came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.settings.iter().find(|s| s.key == key).map_or(Origin::Default, |s| s.origin.clone())
    }
}

/// A configuration, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The same for people, in the order of the sections.
    pub settings: Vec<Setting>,
    /// What is allowed but unwise.
    pub warnings: Vec<String>,
}

/// A flag's `(section, key)`, its value as it would be written in the environment, and its name.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The section.
    pub section: &'static str,
    /// The key.
    pub key: &'static str,
    /// The value, or several.
    pub values: Vec<String>,
    /// `--workers`, or `marea replay`.
    pub name: String,
}

/// Everything that is wrong, at least one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// What is read.
pub struct Sources<'a> {
    /// The file that was named (it must exist); none: [`DEFAULT_FILE`], if it is there.
    pub file: Option<&'a Path>,
    /// The environment.
    pub env: &'a [(String, String)],
    /// Flags, the later over the earlier.
    pub flags: &'a [Flag],
    /// Processors of this machine.
    pub cores: usize,
}

/// A value as somebody wrote it.
#[derive(Clone, Debug)]
enum Given {
    One(String),
    Many(Vec<String>),
}

impl Given {
    fn items(&self) -> Vec<String> {
        match self {
            Given::One(text) => split(text),
            Given::Many(items) => items.clone(),
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::One(text) => f.write_str(text),
            Given::Many(items) => f.write_str(&items.join(", ")),
        }
    }
}

type Values = BTreeMap<(&'static str, &'static str), (Given, Origin)>;

/// Reads and checks everything.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, ConfigErrors> {
    let mut reader = Reader { values: Values::new(), errors: Vec::new() };
    for (section, key, default) in KEYS.iter().copied() {
        reader.values.insert((section, key), (Given::One(default.to_owned()), Origin::Default));
    }
    reader.file(sources.file);
    reader.env(sources.env);
    for flag in sources.flags {
        let given = match flag.values.as_slice() {
            // A path that was named as one argument is one path, commas and all.
            [one] if (flag.section, flag.key) != ("source", "paths") => Given::One(one.clone()),
            many => Given::Many(many.to_vec()),
        };
        reader.values.insert((flag.section, flag.key), (given, Origin::Flag(flag.name.clone())));
    }
    reader.finish(sources.cores)
}

struct Reader {
    values: Values,
    errors: Vec<String>,
}

impl Reader {
    fn file(&mut self, named: Option<&Path>) {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => return self.errors.push(format!("{name}: cannot be read: {e}")),
        };
        self.toml(&name, &text);
    }

    fn toml(&mut self, name: &str, text: &str) {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |s| s.start);
            self.errors.push(format!("{name}:{}: {}", line(at), error.message().trim_end().replace('\n', "; ")));
        }
        for (section, table) in document.get_ref() {
            let here = format!("{name}:{}", line(section.span().start));
            let section: &str = section.get_ref();
            if !KEYS.iter().any(|(s, ..)| *s == section) {
                let hint = suggest(section, KEYS.iter().map(|(s, ..)| *s));
                self.errors.push(format!("{here}: {}: unknown section{hint}", excerpt(section)));
                continue;
            }
            let Some(table) = table.get_ref().as_table() else {
                self.errors.push(format!("{here}: {section}: must be a section, [{section}]"));
                continue;
            };
            for (key, value) in table {
                let at = line(key.span().start);
                let origin = Origin::File(name.to_owned(), at);
                match scalar_or_list(value.get_ref()) {
                    Ok(given) => self.put(section, key.get_ref(), given, origin),
                    Err(must) => self.errors.push(format!("{origin}: {section}.{}: {must}", excerpt(key.get_ref()))),
                }
            }
        }
    }

    fn env(&mut self, env: &[(String, String)]) {
        let mut ours: Vec<_> = env.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        ours.sort();
        for (name, value) in ours {
            let rest = name[ENV_PREFIX.len()..].to_ascii_lowercase();
            let origin = Origin::Env(name.clone());
            let Some((section, key)) = rest.split_once("__") else {
                self.errors.push(format!("{origin}: must be {ENV_PREFIX}SECTION__KEY"));
                continue;
            };
            if !KEYS.iter().any(|(s, ..)| *s == section) {
                let hint = suggest(section, KEYS.iter().map(|(s, ..)| *s));
                self.errors.push(format!("{origin}: {}: unknown section{hint}", excerpt(section)));
                continue;
            }
            self.put(section, key, Given::One(value.clone()), origin);
        }
    }

    fn put(&mut self, section: &str, key: &str, given: Given, origin: Origin) {
        if let Some(secret) = key.strip_suffix("_file").filter(|secret| is_secret(section, secret)) {
            let path = given.to_string();
            return match std::fs::read_to_string(&path) {
                Ok(text) => {
                    self.put(section, secret, Given::One(text.trim_end_matches(['\r', '\n']).to_owned()), origin)
                }
                Err(e) => {
                    self.errors.push(format!("{origin}: {section}.{key}: {:?} cannot be read: {e}", excerpt(&path)))
                }
            };
        }
        match KEYS.iter().find(|(s, k, _)| *s == section && *k == key) {
            Some((section, key, _)) => {
                self.values.insert((section, key), (given, origin));
            }
            None => {
                let keys = KEYS.iter().filter(|(s, ..)| *s == section).map(|(_, k, _)| *k);
                let hint = suggest(key, keys);
                self.errors.push(format!("{origin}: {section}.{}: unknown key{hint}", excerpt(key)));
            }
        }
    }

    /// The value of a key through `parse`; what it says is wrong is an error, and the value none.
    fn read<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        parse: impl FnOnce(&Given) -> Result<T, String>,
    ) -> Option<T> {
        let (given, origin) = &self.values[&(section, key)];
        match parse(given) {
            Ok(value) => Some(value),
            Err(must) => {
                let value = if is_secret(section, key) { "***".to_owned() } else { excerpt(&given.to_string()) };
                self.errors.push(format!("{origin}: {section}.{key}: {value:?} {must}"));
                None
            }
        }
    }

    /// Replaces a default that depends on something else.
    fn computed(&mut self, section: &'static str, key: &'static str, default: &str, value: impl FnOnce() -> Given) {
        let entry = &self.values[&(section, key)];
        if entry.1 == Origin::Default && entry.0.to_string() == default {
            self.values.insert((section, key), (value(), Origin::Default));
        }
    }

    fn text(&self, section: &'static str, key: &'static str) -> String {
        self.values[&(section, key)].0.to_string()
    }

    fn optional_text(&self, section: &'static str, key: &'static str) -> Option<String> {
        Some(self.text(section, key)).filter(|text| !text.is_empty())
    }

    fn optional_path(&self, section: &'static str, key: &'static str) -> Option<PathBuf> {
        self.optional_text(section, key).map(PathBuf::from)
    }

    /// Files what a client says is wrong with its section: each line names its key first.
    fn problems(&mut self, section: &'static str, problems: Vec<String>) {
        for problem in problems {
            let problem = problem.trim_start_matches("security.").trim_start_matches(section).trim_start_matches('.');
            let key = problem.split(':').next().unwrap_or_default();
            let origin =
                self.values.iter().find(|((s, k), _)| *s == section && *k == key).map(|(_, (_, origin))| origin);
            let origin = origin.map_or_else(|| Origin::Default.to_string(), ToString::to_string);
            self.errors.push(format!("{origin}: {section}.{problem}"));
        }
    }

    fn kafka(&mut self, accept_gap: bool, wanted: bool) -> Option<KafkaConfig> {
        let protocols = [
            ("plaintext", Protocol::Plaintext),
            ("ssl", Protocol::Ssl),
            ("sasl_plaintext", Protocol::SaslPlaintext),
            ("sasl_ssl", Protocol::SaslSsl),
        ];
        let protocol = self.read("kafka", "protocol", |g| choice(g, &protocols))?;
        let config = KafkaConfig {
            brokers: self.text("kafka", "brokers"),
            topic: self.text("kafka", "topic"),
            accounts_topic: self.optional_text("kafka", "accounts_topic"),
            dead_letters: self.optional_text("kafka", "dead_letters"),
            group: self.text("kafka", "group"),
            security: Security {
                protocol,
                ca: self.optional_path("kafka", "ca"),
                certificate: self.optional_path("kafka", "certificate"),
                key: self.optional_path("kafka", "key"),
                key_password: self.optional_text("kafka", "key_password"),
                mechanism: self.optional_text("kafka", "mechanism"),
                username: self.optional_text("kafka", "username"),
                password: self.optional_text("kafka", "password"),
            },
            until_end: false,
            accept_gap,
        };
        if wanted {
            self.problems("kafka", config.check());
        }
        Some(config)
    }

    fn rabbitmq(&mut self, accept_gap: bool, wanted: bool) -> Option<RabbitConfig> {
        let kinds = [("stream", RabbitKind::Stream), ("queue", RabbitKind::Queue)];
        let kind = self.read("rabbitmq", "kind", |g| choice(g, &kinds));
        let prefetch = self.read("rabbitmq", "prefetch", |g| whole(g, 1, u64::from(u16::MAX)));
        let config = RabbitConfig {
            url: self.text("rabbitmq", "url"),
            name: self.text("rabbitmq", "name"),
            kind: kind?,
            accounts: self.optional_text("rabbitmq", "accounts"),
            prefetch: prefetch? as u16,
            ca: self.optional_path("rabbitmq", "ca"),
            cert: self.optional_path("rabbitmq", "certificate"),
            key: self.optional_path("rabbitmq", "key"),
            until_end: false,
            accept_gap,
        };
        if wanted {
            self.problems("rabbitmq", config.check());
        }
        Some(config)
    }

    /// The configuration of etcd, none where no endpoint is named.
    fn etcd(&mut self) -> Option<Option<EtcdConfig>> {
        let config = EtcdConfig {
            endpoints: self.values[&("etcd", "endpoints")].0.items(),
            ca: self.optional_path("etcd", "ca"),
            cert: self.optional_path("etcd", "certificate"),
            key: self.optional_path("etcd", "key"),
            user: self.optional_text("etcd", "user"),
            password: self.optional_text("etcd", "password"),
        };
        if config.endpoints.is_empty() {
            return Some(None);
        }
        self.problems("etcd", config.check());
        Some(Some(config))
    }

    /// What TimescaleDB does as time passes.
    fn chunks(&mut self) -> Option<Chunks> {
        let span = self.read("timescale", "chunk", at_least_an_hour);
        let compress_after = self.read("timescale", "compress_after", at_least_an_hour);
        let forget_after = self.read("timescale", "forget_after", |g| match g.to_string().as_str() {
            "never" => Ok(None),
            _ => at_least_an_hour(g).map(Some).map_err(|must| must + ", or never"),
        });
        Some(Chunks { span: span?, compress_after: compress_after?, forget_after: forget_after? })
    }

    /// Redis, none where no URL is named.
    fn redis(&mut self) -> Option<Option<RedisConfig>> {
        let hash_tags = self.read("redis", "hash_tags", truth);
        let Some(url) = self.optional_text("redis", "url") else { return Some(None) };
        let config = RedisConfig { url, hash_tags: hash_tags? };
        self.problems("redis", config.check());
        Some(Some(config))
    }

    fn finish(mut self, cores: usize) -> Result<Loaded, ConfigErrors> {
        self.computed("pipeline", "workers", CORES, || Given::One((cores / 2).clamp(1, 8).to_string()));
        let clock = self.read("pipeline", "clock", |g| choice(g, &[("wall", Clock::Wall), ("event", Clock::Event)]));
        let lateness = self.read("pipeline", "lateness", |g| duration(&g.to_string()));
        let workers = self.read("pipeline", "workers", |g| whole(g, 1, MAX_WORKERS));
        let timeframes = self.read("pipeline", "timeframes", timeframes);
        let max_ticks = self.read("pipeline", "max_ticks", |g| whole(g, 1, 1_000_000));

        let known = timeframes.clone().unwrap_or_default();
        let but_base = if known.len() > 1 { &known[1..] } else { &known[..] };
        let but_base = but_base.iter().map(ToString::to_string).collect();
        self.computed("indicators", "timeframes", ALL_BUT_BASE, || Given::Many(but_base));
        let all = || Given::Many(IndicatorSpec::defaults().iter().map(ToString::to_string).collect());
        self.computed("indicators", "list", ALL_INDICATORS, all);
        let on = self.read("indicators", "timeframes", |g| subset(g, &known));
        let list = self.read("indicators", "list", indicators);

        let kinds = SourceKind::ALL.map(|kind| (kind.as_str(), kind));
        let kind = self.read("source", "kind", |g| choice(g, &kinds));
        let paths = self.read("source", "paths", |g| Ok(g.items().into_iter().map(PathBuf::from).collect::<Vec<_>>()));
        let paths = paths.unwrap_or_default();
        if kind == Some(SourceKind::File) {
            let origin = self.values[&("source", "paths")].1.clone();
            if paths.is_empty() {
                self.errors
                    .push(format!("{origin}: source.paths: source.kind is \"file\", so at least one must be named"));
            }
            for path in &paths {
                if let Err(e) = readable(path) {
                    self.errors.push(format!("{origin}: source.paths: {:?} {e}", excerpt(&path.display().to_string())));
                }
            }
        }
        let accounts = self.read("source", "accounts", optional_file);
        let csv_formats = [("", None)].into_iter().chain(csv::Format::ALL.iter().map(|f| (f.as_str(), Some(*f))));
        let csv_formats: Vec<_> = csv_formats.collect();
        let csv_format = self.read("source", "csv_format", |g| choice(g, &csv_formats));
        let speed = self.read("source", "speed", speed);
        let seed = self.read("source", "seed", |g| whole(g, 0, u64::MAX));
        let rate = self.read("source", "rate", rate);
        let accept_gap = self.read("source", "accept_gap", truth);
        let kafka = self.kafka(accept_gap == Some(true), kind == Some(SourceKind::Kafka));
        let rabbitmq = self.rabbitmq(accept_gap == Some(true), kind == Some(SourceKind::RabbitMq));
        let live_file = self.read("live", "file", optional_file);
        let etcd = self.etcd();
        if let (Some(Some(_)), Some(Some(_))) = (&live_file, &etcd) {
            let origin = self.values[&("live", "file")].1.clone();
            self.errors.push(format!("{origin}: live.file: excludes etcd.endpoints: name one of them"));
        }
        // A path that was named goes over a URL that was configured below it.
        let url_stands =
            !self.text("store", "url").is_empty() && !matches!(self.values[&("store", "path")].1, Origin::Flag(_));
        let chunks = self.chunks();
        let store = if url_stands {
            let target = self.read("store", "url", store_url);
            target.zip(chunks).map(|(target, chunks)| target.with_chunks(chunks))
        } else {
            self.read("store", "path", store_path).map(StoreTarget::Sqlite)
        };
        let listen = self.read("feed", "listen", listen);
        let publishing = [("durable", Publish::Durable), ("fast", Publish::Fast)];
        let publish = self.read("feed", "publish", |g| choice(g, &publishing));
        let redis = self.redis();
        let levels = ["error", "warn", "info", "debug", "trace"];
        let levels: Vec<_> = levels.iter().filter_map(|l| Some((*l, l.parse::<tracing::Level>().ok()?))).collect();
        let level = self.read("log", "level", |g| choice(g, &levels));
        let json = self.read("log", "format", |g| choice(g, &[("text", false), ("json", true)]));
        let log_file = self.read("log", "file", |g| {
            let path = g.to_string();
            Ok((!path.is_empty()).then(|| PathBuf::from(path)))
        });

        let config = || {
            Some(Config {
                pipeline: Pipeline {
                    clock: clock?,
                    lateness: lateness?,
                    workers: workers? as usize,
                    timeframes: timeframes?,
                    max_ticks: max_ticks? as usize,
                },
                indicators: Indicators { timeframes: on?, list: list? },
                source: Source {
                    kind: kind?,
                    paths,
                    accounts: accounts?,
                    csv_format: csv_format?,
                    speed: speed?,
                    seed: seed?,
                    rate: rate?,
                    accept_gap: accept_gap?,
                    kafka: kafka?,
                    rabbitmq: rabbitmq?,
                },
                live_file: live_file?,
                etcd: etcd?,
                store: store?,
                listen: listen?,
                publish: publish?,
                redis: redis?,
                log: Log { level: level?, json: json?, file: log_file? },
            })
        };
        let (true, Some(config)) = (self.errors.is_empty(), config()) else { return Err(ConfigErrors(self.errors)) };
        let mut warnings = Vec::new();
        let origin = |section, key| &self.values[&(section, key)].1;
        if config.pipeline.workers > cores {
            warnings.push(format!(
                "{}: pipeline.workers: {} workers on {cores} cores will wait for each other",
                origin("pipeline", "workers"),
                config.pipeline.workers
            ));
        }
        if !config.listen.ip().is_loopback() {
            warnings.push(format!(
                "{}: feed.listen: {} is open to the network, and the feed asks nobody who they are",
                origin("feed", "listen"),
                config.listen
            ));
        }
        if config.publish == Publish::Fast && config.redis.is_none() {
            let origin = origin("feed", "publish");
            warnings.push(format!(
                "{origin}: feed.publish: only Redis is published to before a commit: redis.url is not set"
            ));
        }
        let settings = KEYS.iter().map(|(section, key, _)| {
            let (given, origin) = &self.values[&(*section, *key)];
            let value = given.to_string();
            let value = if is_secret(section, key) && !value.is_empty() { "***".to_owned() } else { value };
            Setting { key: format!("{section}.{key}"), value, origin: origin.clone() }
        });
        Ok(Loaded { config, settings: settings.collect(), warnings })
    }
}

/// `; did you mean "x"?`, when something is near enough.
pub fn suggest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let distance = |k: &str| strsim::damerau_levenshtein(word, k);
    match known.map(|k| (distance(k), k)).min() {
        Some((distance, nearest)) if distance <= 2.max(nearest.len() / 3) => format!("; did you mean {nearest:?}?"),
        _ => String::new(),
    }
}

/// A length of time: `250ms`, `30s`, `10m`, `4h`, `2d`.
pub fn duration(text: &str) -> Result<Nanos, String> {
    let error = || "must be a length of time such as 250ms, 30s, 10m, 4h or 2d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit = match &text[digits..] {
        "ms" => MILLI,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 3_600 * SECOND,
        "d" => 86_400 * SECOND,
        _ => return Err(error()),
    };
    text[..digits].parse::<Nanos>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(error)
}

/// Splits at commas that stand outside of parentheses.
fn split(text: &str) -> Vec<String> {
    let (mut items, mut depth, mut from) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                items.push(text[from..i].trim().to_owned());
                from = i + 1;
            }
            _ => {}
        }
    }
    items.push(text[from..].trim().to_owned());
    items.retain(|item| !item.is_empty());
    items
}

fn scalar_or_list(value: &DeValue<'_>) -> Result<Given, String> {
    let scalar = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(n) => Some(n.to_string()),
        DeValue::Float(n) => Some(n.to_string()),
        DeValue::Boolean(b) => Some(b.to_string()),
        DeValue::Datetime(t) => Some(t.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    };
    match value {
        DeValue::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(|item| scalar(item.get_ref())).collect();
            items.map(Given::Many).ok_or_else(|| "must be a list of plain values".to_owned())
        }
        one => scalar(one).map(Given::One).ok_or_else(|| "must be a plain value or a list, not a table".to_owned()),
    }
}

fn choice<T: Copy>(given: &Given, choices: &[(&str, T)]) -> Result<T, String> {
    let text = given.to_string();
    choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        format!("must be {}{}", one_of(&names), suggest(&text, names.iter().copied()))
    })
}

fn truth(given: &Given) -> Result<bool, String> {
    choice(given, &[("true", true), ("false", false)])
}

fn one_of(names: &[&str]) -> String {
    match names {
        [init @ .., last] if !init.is_empty() => format!("{} or {last}", init.join(", ")),
        names => names.join(", "),
    }
}

fn whole(given: &Given, least: u64, most: u64) -> Result<u64, String> {
    let n = given.to_string().replace('_', "").parse::<u64>().ok().filter(|n| (least..=most).contains(n));
    n.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}

fn timeframes(given: &Given) -> Result<Vec<Timeframe>, String> {
    let list = given.items();
    let list: Vec<Timeframe> = list
        .iter()
        .map(|t| t.parse())
        .collect::<Result<_, marea_model::time::TimeframeError>>()
        .map_err(|e| e.to_string())?;
    let Some(base) = list.first() else { return Err("must name at least one timeframe".to_owned()) };
    if list.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err("must rise, the base first".to_owned());
    }
    match list.iter().find(|t| t.nanos() % base.nanos() != 0) {
        Some(odd) => Err(format!("must be multiples of the first: {odd} is none of {base}")),
        None => Ok(list),
    }
}

fn subset(given: &Given, known: &[Timeframe]) -> Result<Vec<Timeframe>, String> {
    let mut list = Vec::new();
    for item in given.items() {
        match item.parse::<Timeframe>().ok().filter(|t| known.contains(t)) {
            Some(timeframe) => list.push(timeframe),
            // Without known timeframes their own error says enough.
            None if known.is_empty() => {}
            None => {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                return Err(format!("must be of pipeline.timeframes ({}); {item:?} is not", known.join(", ")));
            }
        }
    }
    list.sort();
    list.dedup();
    Ok(list)
}

fn indicators(given: &Given) -> Result<Vec<IndicatorSpec>, String> {
    given.items().iter().map(|item| item.parse::<IndicatorSpec>().map_err(|e| format!("{item}: {e}"))).collect()
}

fn speed(given: &Given) -> Result<Speed, String> {
    let text = given.to_string();
    if text == "full" {
        return Ok(Speed::Full);
    }
    let times = text.strip_suffix('x').and_then(|n| n.parse::<f64>().ok());
    match times.filter(|n| n.is_finite() && *n > 0.0) {
        Some(times) => Ok(Speed::Times(times)),
        None => Err("must be full, or a multiple of real time such as 1x or 60x".to_owned()),
    }
}

fn rate(given: &Given) -> Result<f64, String> {
    let rate = given.to_string().parse::<f64>().ok().filter(|n| (0.01..=1e7).contains(n));
    rate.ok_or_else(|| "must be ticks a second, from 0.01 to 10000000".to_owned())
}

fn readable(path: &Path) -> Result<(), String> {
    match std::fs::File::open(path).and_then(|f| f.metadata()) {
        Ok(metadata) if metadata.is_dir() => Err("is a folder, not a file".to_owned()),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err("is not there".to_owned()),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}

fn optional_file(given: &Given) -> Result<Option<PathBuf>, String> {
    let text = given.to_string();
    if text.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(text);
    readable(&path).map(|()| Some(path))
}

fn store_path(given: &Given) -> Result<PathBuf, String> {
    let path = PathBuf::from(given.to_string());
    if path.as_os_str().is_empty() {
        return Err("must name a file".to_owned());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err("is a folder, not a file".to_owned());
    }
    if folder.is_dir() {
        Ok(path)
    } else {
        Err(format!("must be in a folder that exists: {} does not", folder.display()))
    }
}

fn at_least_an_hour(given: &Given) -> Result<Nanos, String> {
    let length = duration(&given.to_string())?;
    if length < 3_600 * SECOND { Err("must be an hour (1h) at least".to_owned()) } else { Ok(length) }
}

fn store_url(given: &Given) -> Result<StoreTarget, String> {
    match StoreTarget::parse(&given.to_string()) {
        StoreTarget::Sqlite(_) => Err("must be postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned()),
        postgres => Ok(postgres),
    }
}

fn listen(given: &Given) -> Result<SocketAddr, String> {
    let text = given.to_string().replace("localhost", "127.0.0.1");
    text.parse().map_err(|_| "must be an address and a port, such as 127.0.0.1:8000".to_owned())
}

#[cfg(test)]
mod tests;

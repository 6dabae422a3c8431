//! What is written under each key: bodies, and the scripts that write them.

use super::names::{self, Names, RANKING};
use super::pending::{Derived, Head};
use super::state::{Answer, Expiry, Stamp, expiry};
use crate::feed::api::metrics_json;
use crate::feed::stream::envelope;
use crate::store::{AuditEntry, AuditKey};
use crate::view::{BarRow, Clock, View};
use marea_model::output::MetricsWindow;
use marea_model::{StrategyId, Symbol, Timeframe};
use redis::{Cmd, Script, Value};
use serde::Serialize;
use std::collections::BTreeSet;

/// Milliseconds that a bar lives after its last change.
const MARKET_DATA: u64 = 15 * 60_000;
/// Milliseconds that the metrics of a strategy do.
const BACKTEST: u64 = 7 * 86_400_000;

/// The scripts.
pub(super) struct Scripts {
    pub(super) write: Script,
    pub(super) check: Script,
    pub(super) rank: Script,
    pub(super) last: Script,
}

const WRITE: &str = include_str!("write.lua");
const CHECK: &str = include_str!("check.lua");
const RANK: &str = include_str!("rank.lua");
const LAST: &str = include_str!("last.lua");

impl Scripts {
    pub(super) fn new() -> Scripts {
        let [write, check, rank, last] = [WRITE, CHECK, RANK, LAST].map(Script::new);
        Scripts { write, check, rank, last }
    }

    /// What makes them known to a server.
    pub(super) fn load(&self) -> Vec<Cmd> {
        let load = |code| {
            let mut command = redis::cmd("SCRIPT");
            command.arg("LOAD").arg(code);
            command
        };
        [WRITE, CHECK, RANK, LAST].map(load).into()
    }

    /// What reads the last seq of a stream.
    pub(super) fn last(&self, stream: &str) -> Cmd {
        call(&self.last, &[stream], &[])
    }
}

/// A script's call. It is known to the server already.
fn call(script: &Script, keys: &[&str], arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys.len()).arg(keys).arg(arguments);
    command
}

/// What becomes of a value.
pub(super) enum Change {
    /// It stays as it is.
    Keep,
    /// It goes; what is told of that stands in its place for an hour.
    Delete,
    Set(String, Expiry),
}

/// One call of the script that writes.
pub(super) struct Write {
    pub(super) key: String,
    pub(super) change: Change,
    pub(super) stamp: Stamp,
    /// The stream, the seq in it, and how many entries it keeps.
    pub(super) stream: Option<(String, u64, u64)>,
    /// The channel, and what is said there and in the stream; none: the body.
    pub(super) told: Option<(String, Option<String>)>,
}

impl Write {
    pub(super) fn command(&self, scripts: &Scripts, force: bool) -> Cmd {
        let (body, expires) = match &self.change {
            Change::Keep => ("", String::new()),
            Change::Delete if matches!(self.told, Some((_, Some(_)))) => ("=", String::new()),
            Change::Delete | Change::Set(_, Expiry::Gone) => ("-", String::new()),
            Change::Set(body, Expiry::Never) => (body.as_str(), String::new()),
            Change::Set(body, Expiry::At(at)) => (body.as_str(), at.to_string()),
        };
        let (stream, seq, trim) = match &self.stream {
            Some((stream, seq, trim)) => (stream.as_str(), seq.to_string(), trim.to_string()),
            None => (self.key.as_str(), String::new(), String::new()),
        };
        let (channel, event) = match (&self.told, &self.change) {
            (None, _) => ("", ""),
            (Some((channel, Some(event))), _) => (channel.as_str(), event.as_str()),
            // What has expired is told as it is.
            (Some((channel, None)), Change::Set(body, Expiry::Gone)) => (channel.as_str(), body.as_str()),
            (Some((channel, None)), _) => (channel.as_str(), "="),
        };
        let (generation, epoch) = (self.stamp.generation.to_string(), self.stamp.epoch.to_string());
        let force = if force { "1" } else { "" };
        let arguments = [&generation, &epoch, body, &expires, &seq, event, channel, &trim, force];
        call(&scripts.write, &[&self.key, stream], &arguments)
    }
}

/// A body that says no more than where it stands.
#[derive(Serialize)]
pub(super) struct Bare {
    seq: Option<u64>,
    epoch: u64,
    generation: u64,
    /// Of the heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    /// Of a key that is withdrawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

impl Bare {
    pub(super) fn sentinel(head: Head) -> Bare {
        let Head { generation, epoch, seq, .. } = head;
        Bare { seq: Some(seq), epoch, generation, deadline_ms: None, key: None, deleted: false }
    }

    pub(super) fn heartbeat(head: Head, deadline_ms: u64) -> Bare {
        Bare { deadline_ms: Some(deadline_ms), ..Bare::sentinel(head) }
    }

    pub(super) fn withdrawn(head: Head, key: &str) -> Bare {
        Bare { seq: None, key: Some(key.to_owned()), deleted: true, ..Bare::sentinel(head) }
    }

    fn version(stamp: Stamp) -> Bare {
        let Stamp { generation, epoch } = stamp;
        Bare { seq: None, epoch, generation, deadline_ms: None, key: None, deleted: false }
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("bodies have text keys and no failing serializer")
}

/// The answer of a script that writes.
pub(super) fn answer(value: &Value) -> redis::RedisResult<Answer> {
    let [result, generation, epoch, healed, last_seq] = redis::from_redis_value_ref::<[u64; 5]>(value)?;
    Ok(Answer { result, generation, epoch, healed, last_seq })
}

/// How bodies come to be.
pub(super) struct Bodies<'a> {
    pub(super) names: Names,
    pub(super) view: &'a View,
    /// Whose bodies they are.
    pub(super) generation: u64,
    /// Now, in milliseconds since 1970.
    pub(super) wall_ms: u64,
}

impl Bodies<'_> {
    fn clock(&self) -> Clock {
        self.view.clock()
    }

    /// What stands under a key.
    pub(super) fn standing(&self, key: AuditKey) -> Option<AuditEntry> {
        match key {
            AuditKey::Recommendation(symbol) => self.view.recommendation(symbol),
            AuditKey::Verdict(account, symbol) => self.view.verdict(account, symbol),
        }
    }

    /// When the value of an entry goes. `epoch`: the last one.
    pub(super) fn expiry(&self, entry: &AuditEntry, epoch: u64) -> Expiry {
        expiry(entry, self.clock(), epoch, self.wall_ms)
    }

    /// An entry as value, told to whoever listens, and in its stream if it has a seq and `in_stream`.
    pub(super) fn entry(&self, entry: &AuditEntry, value: bool, in_stream: bool, epoch: u64) -> Write {
        let (names, key) = (self.names, entry.key);
        let body = envelope(entry);
        let (change, event) = match (value, &entry.payload) {
            (false, _) => (Change::Keep, Some(body)),
            (true, None) => (Change::Delete, Some(body)),
            (true, Some(_)) => (Change::Set(body, self.expiry(entry, epoch)), None),
        };
        let stream = (in_stream && entry.seq > 0).then(|| (names.stream(key), entry.seq, names::trim(key)));
        let stamp = Stamp { generation: self.generation, epoch: entry.epoch };
        Write { key: names.latest(key), change, stamp, stream, told: Some((names.channel(key), event)) }
    }

    /// The name of a derived key.
    pub(super) fn name(&self, derived: Derived) -> String {
        match derived {
            Derived::MarketData(symbol, timeframe) => self.names.market_data(symbol, timeframe),
            Derived::Strategies(symbol) => self.names.strategies(symbol),
            Derived::Ranking => RANKING.to_owned(),
            Derived::Backtest(strategy) => self.names.backtest(strategy),
        }
    }

    /// What writes these keys, and when each goes; none where nothing stands.
    pub(super) fn derived(
        &self,
        keys: &BTreeSet<Derived>,
        scripts: &Scripts,
        force: bool,
    ) -> Vec<(Derived, Cmd, Option<Expiry>)> {
        let stamp = Stamp { generation: self.generation, epoch: self.view.status().epoch.unwrap_or_default() };
        let strategies: BTreeSet<StrategyId> = keys
            .iter()
            .filter_map(|key| match key {
                Derived::Backtest(strategy) => Some(*strategy),
                _ => None,
            })
            .collect();
        let metrics = if strategies.is_empty() { Vec::new() } else { self.view.metrics_of(&strategies) };
        let of = |key: &Derived| {
            let (body, lives) = match *key {
                Derived::MarketData(symbol, timeframe) => (self.market_data(symbol, timeframe, stamp), MARKET_DATA),
                Derived::Backtest(strategy) => {
                    let rows = metrics.iter().filter(|row| row.strategy == strategy).map(metrics_json).collect();
                    (backtest(strategy, rows, stamp), BACKTEST)
                }
                Derived::Strategies(symbol) => {
                    return self.ranked(*key, &self.strategies(symbol), stamp, scripts, force);
                }
                Derived::Ranking => return self.ranked(*key, &self.ranking(), stamp, scripts, force),
            };
            let expiry = body.as_ref().map(|_| Expiry::At(self.wall_ms + lives));
            let change = match (body, expiry) {
                (Some(body), Some(expiry)) => Change::Set(body, expiry),
                _ => Change::Delete,
            };
            let write = Write { key: self.name(*key), change, stamp, stream: None, told: None };
            (*key, write.command(scripts, force), expiry)
        };
        keys.iter().map(of).collect()
    }

    fn ranked(
        &self,
        key: Derived,
        members: &[(f64, String)],
        stamp: Stamp,
        scripts: &Scripts,
        force: bool,
    ) -> (Derived, Cmd, Option<Expiry>) {
        let name = self.name(key);
        let (generation, epoch) = (stamp.generation.to_string(), stamp.epoch.to_string());
        let version = json(&Bare::version(stamp));
        let mut arguments = vec![generation, epoch, if force { "1" } else { "" }.to_owned(), version];
        arguments.extend(members.iter().flat_map(|(score, member)| [score.to_string(), member.clone()]));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let command = call(&scripts.rank, &[&name, &self.names.version(&name)], &arguments);
        (key, command, (!members.is_empty()).then_some(Expiry::Never))
    }

    fn market_data(&self, symbol: Symbol, timeframe: Timeframe, stamp: Stamp) -> Option<String> {
        #[derive(Serialize)]
        struct Body {
            seq: Option<u64>,
            epoch: u64,
            generation: u64,
            #[serde(flatten)]
            bar: BarRow,
        }
        let Stamp { generation, epoch } = stamp;
        let bar = self.view.bars(symbol, timeframe, 1).0.last().map(BarRow::from)?;
        Some(json(&Body { seq: None, epoch, generation, bar }))
    }

    fn strategies(&self, symbol: Symbol) -> Vec<(f64, String)> {
        let rows = self.view.metrics(symbol).into_iter().filter(|row| row.window == MetricsWindow::Days30);
        rows.filter_map(|row| Some((row.metrics.sharpe?.0, row.strategy.as_str().to_owned()))).collect()
    }

    fn ranking(&self) -> Vec<(f64, String)> {
        #[derive(serde::Deserialize)]
        struct Row<'a> {
            status: &'a str,
            confidence: f64,
        }
        let standing = self.view.recommendations();
        let ranked = standing.iter().filter_map(|entry| {
            let row: Row<'_> = serde_json::from_str(entry.payload.as_deref()?).ok()?;
            (row.status == "active").then(|| (row.confidence, entry.key.symbol().as_str().to_owned()))
        });
        ranked.collect()
    }

    /// What looks whether a key has what it should have. `seq`: of an entry with a stream.
    pub(super) fn check(
        &self,
        scripts: &Scripts,
        kind: &str,
        (key, stream): (&str, &str),
        stamp: Stamp,
        (seq, expiry): (Option<u64>, Expiry),
    ) -> Cmd {
        let expires = match expiry {
            Expiry::Never => String::new(),
            Expiry::At(at) => at.to_string(),
            Expiry::Gone => "gone".to_owned(),
        };
        let seq = seq.map_or_else(String::new, |seq| seq.to_string());
        let (generation, epoch) = (stamp.generation.to_string(), stamp.epoch.to_string());
        call(&scripts.check, &[key, stream], &[kind, &generation, &epoch, &seq, &expires])
    }
}

fn backtest(strategy: StrategyId, results: Vec<serde_json::Value>, stamp: Stamp) -> Option<String> {
    #[derive(Serialize)]
    struct Body {
        seq: Option<u64>,
        epoch: u64,
        generation: u64,
        strategy: StrategyId,
        results: Vec<serde_json::Value>,
    }
    let Stamp { generation, epoch } = stamp;
    (!results.is_empty()).then(|| json(&Body { seq: None, epoch, generation, strategy, results }))
}

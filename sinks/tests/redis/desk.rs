//! A store, the feed and Redis, fed with made-up epochs.

use crate::fixture::{bar, closed, epoch_at, judged, metrics, recommendation, recommended, up, verdict};
use marea_model::output::{Change, ClosedEpoch, MetricsWindow};
use marea_model::recommendation::Action;
use marea_model::{BlockReason, Epoch, Output, Timeframe};
use marea_servers::Redis as Server;
use marea_sinks::redis::{Redis, RedisConfig};
use marea_sinks::store::{AuditEntry, AuditKey};
use marea_sinks::{Clock, Committed, Feed, FeedConfig, Metrics, Store};
use redis::{Cmd, Commands, Connection, FromRedisValue};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Much longer than the 10 s that are promised: machines are busy.
pub const SOON: Duration = Duration::from_secs(40);
pub const SYMBOLS: [&str; 3] = ["IBM", "EUR/USD", "X:BTC"];
pub const ACCOUNTS: [&str; 2] = ["M1", "S:2"];

pub struct Desk {
    pub server: Server,
    /// What else is looked at, for keys that the server does not have: the other nodes of a Cluster.
    pub others: Vec<Server>,
    pub file: PathBuf,
    pub store: Store,
    pub feed: Feed,
    pub sink: Redis,
    pub task: JoinHandle<()>,
    pub epoch: Epoch,
    pub hash_tags: bool,
    /// Whether what [`Desk::commit`] commits is published before.
    pub early: bool,
    folder: Option<tempfile::TempDir>,
}

fn connection(server: &Server) -> Option<Connection> {
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_connection_with_timeout(Duration::from_secs(5)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    Some(connection)
}

impl Desk {
    pub async fn new() -> Desk {
        Desk::with(Clock::Event, false).await
    }

    pub async fn with(clock: Clock, hash_tags: bool) -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("marea.db");
        let server = Server::start().unwrap();
        let url = server.url();
        let desk = Desk::open(server, url, file, clock, hash_tags, epoch_at(0)).await;
        Desk { folder: Some(folder), ..desk }
    }

    /// With a URL that leads to this server somehow.
    pub async fn at(server: Server, url: String, hash_tags: bool) -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("marea.db");
        let desk = Desk::open(server, url, file, Clock::Event, hash_tags, epoch_at(0)).await;
        Desk { folder: Some(folder), ..desk }
    }

    async fn open(server: Server, url: String, file: PathBuf, clock: Clock, hash_tags: bool, epoch: Epoch) -> Desk {
        let store = Store::open(&*file).await.unwrap();
        let reader = store.reader();
        let config = FeedConfig {
            clock,
            workers: 1,
            store: Some(reader.clone()),
            max_lag: Duration::from_secs(5),
            config_current: None,
        };
        let feed = Feed::new(config, Metrics::new("0", "file"));
        let config = RedisConfig { url, hash_tags };
        let runtime = tokio::runtime::Handle::current();
        let (sink, task) = Redis::start(&config, feed.clone(), Some(reader.clone()), &runtime).unwrap();
        let standing = store.standing();
        let (upper, generation, last_seq) = (standing.upper, standing.generation, standing.last_seq);
        let committed = Committed { upper, generation, last_seq, totals: standing.totals, audit: Vec::new() };
        let mut entries = reader.standing().await.unwrap();
        entries.iter_mut().for_each(|entry| entry.generation = generation);
        // What a restart computes once more; of bars and metrics these tests restore none.
        if upper > 0 {
            feed.recomputed(&closed(upper - 1, vec![]), &committed);
        }
        feed.restore(&entries);
        sink.begin(&committed, &entries);
        Desk { server, others: Vec::new(), file, store, feed, sink, task, epoch, hash_tags, early: false, folder: None }
    }

    /// As after a kill: nothing that waits is written, and another process takes the store.
    pub async fn restart(self) -> Desk {
        self.task.abort();
        drop(self.store);
        let url = self.server.url();
        let desk = Desk::open(self.server, url, self.file, Clock::Event, self.hash_tags, self.epoch).await;
        Desk { folder: self.folder, ..desk }
    }

    pub fn close(&mut self, changes: Vec<Change>) -> ClosedEpoch {
        self.epoch += 1;
        closed(self.epoch, changes)
    }

    pub async fn commit_all(&mut self, epochs: &[ClosedEpoch]) {
        let committed = self.store.commit(epochs).await.unwrap();
        self.feed.publish(epochs, &committed);
        self.sink.committed(epochs, &committed);
    }

    pub async fn commit(&mut self, changes: Vec<Change>) {
        let epoch = self.close(changes);
        if self.early {
            self.sink.early(&epoch);
        }
        self.commit_all(&[epoch]).await;
    }

    /// Commits something of everything, different for each `n`.
    pub async fn trade(&mut self, n: u64) {
        let mut changes = Vec::new();
        for (i, symbol) in SYMBOLS.iter().enumerate() {
            let price = 18_000 + (n as i64 * 7 + i as i64) % 1_000;
            changes.push(up(Output::Bar(bar(symbol, Timeframe::M1, 0, [price; 4], 2))));
            if (n + i as u64).is_multiple_of(2) {
                changes.push(up(recommended(recommendation(symbol, Action::Buy, price, 2))));
            }
            for (j, account) in ACCOUNTS.iter().enumerate() {
                let reasons = [vec![], vec![BlockReason::KillSwitch], vec![BlockReason::QuoteStale]];
                let reasons = reasons[(n as usize + i + j) % 3].clone();
                changes.push(up(judged(verdict(account, symbol, reasons))));
            }
        }
        let sharpe = Some(n as f64 / 8.0);
        changes.push(up(Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::Days30, sharpe)))));
        changes.sort_by_key(|change| {
            let (Change::Upsert(row) | Change::Delete(row)) = change;
            row.key()
        });
        self.commit(changes).await;
    }

    pub fn redis(&self) -> Option<Connection> {
        connection(&self.server)
    }

    /// Asks the server, and whatever else there is until one of them has the key.
    fn ask<T: FromRedisValue>(&self, command: &mut Cmd) -> Option<T> {
        let servers = std::iter::once(&self.server).chain(&self.others);
        servers.filter_map(connection).find_map(|mut redis| command.query(&mut redis).ok())
    }

    pub fn get(&self, key: &str) -> Option<Value> {
        let text: Option<String> = self.ask(redis::cmd("GET").arg(key))?;
        serde_json::from_str(&text?).ok()
    }

    /// How many keys each server has.
    pub fn sizes(&self) -> Vec<u64> {
        let servers = std::iter::once(&self.server).chain(&self.others);
        servers.map(|server| redis::cmd("DBSIZE").query(&mut connection(server).unwrap()).unwrap()).collect()
    }

    /// The client of this name, as Redis tells it.
    pub fn client(&self, name: &str) -> Option<String> {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut self.redis()?).ok()?;
        clients.lines().find(|line| line.contains(&format!(" name={name} "))).map(str::to_owned)
    }

    pub fn ttl_ms(&self, key: &str) -> i64 {
        self.redis().unwrap().pttl(key).unwrap()
    }

    /// Bodies of a stream by id.
    pub fn stream(&self, key: &str) -> Option<BTreeMap<u64, Value>> {
        let entries: Vec<(String, Vec<String>)> = self.ask(redis::cmd("XRANGE").arg(key).arg("-").arg("+"))?;
        let entry = |(id, fields): (String, Vec<String>)| {
            let (seq, zero) = id.split_once('-').unwrap();
            assert_eq!((zero, fields[0].as_str()), ("0", "body"));
            (seq.parse().unwrap(), serde_json::from_str(&fields[1]).unwrap())
        };
        Some(entries.into_iter().map(entry).collect())
    }

    pub fn metric(&self, line: &str) -> f64 {
        let text = self.feed.metrics().text();
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok()).unwrap_or_else(|| panic!("{line}\n{text}"))
    }

    fn tag(&self, text: &str) -> String {
        if self.hash_tags { format!("{{{text}}}") } else { text.to_owned() }
    }

    pub fn name(&self, key: AuditKey) -> (String, String) {
        let s = self.tag(key.symbol().as_str());
        match key {
            AuditKey::Recommendation(_) => (format!("recommendation:{s}:latest"), format!("recommendation:{s}:stream")),
            AuditKey::Verdict(a, _) => {
                let a = self.tag(&a.as_str().replace(':', "%3A"));
                (format!("verdict:{a}:{s}:latest"), format!("verdict:{a}:stream"))
            }
        }
    }

    /// What Redis lacks, or has otherwise than the store.
    pub async fn difference(&self) -> Option<String> {
        let reader = self.store.reader();
        let (standing, audit) = (reader.standing().await.unwrap(), reader.audit_after(0, 100_000).await.unwrap());
        let Some(heartbeat) = self.get("marea:heartbeat") else { return Some("no heartbeat".to_owned()) };
        let at = (self.epoch, self.store.standing().last_seq, self.store.standing().generation);
        if (heartbeat["epoch"].as_u64(), heartbeat["seq"].as_u64(), heartbeat["generation"].as_u64())
            != (Some(at.0), Some(at.1), Some(at.2))
        {
            return Some(format!("{heartbeat} and not {at:?}"));
        }
        for entry in &standing {
            let (latest, _) = self.name(entry.key);
            let found = self.get(&latest);
            let expected: Value = serde_json::from_str(entry.payload.as_deref().unwrap()).unwrap();
            let same = found.as_ref().is_some_and(|found| {
                found[entry.key.kind()] == expected
                    && found["seq"] == entry.seq
                    && found["epoch"] == entry.epoch
                    && found["generation"] == at.2
            });
            if !same {
                return Some(format!("{latest}: {found:?} and not {entry:?}"));
            }
        }
        let mut streams: BTreeMap<String, BTreeMap<u64, &AuditEntry>> = BTreeMap::new();
        for entry in &audit {
            streams.entry(self.name(entry.key).1).or_default().insert(entry.seq, entry);
        }
        for (name, entries) in streams {
            let Some(found) = self.stream(&name) else { return Some(format!("{name}: none")) };
            if !found.keys().eq(entries.keys()) {
                let (found, entries): (Vec<_>, Vec<_>) = (found.keys().collect(), entries.keys().collect());
                return Some(format!("{name}: {found:?} and not {entries:?}"));
            }
            for (seq, entry) in entries {
                let expected = entry.payload.as_deref().map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
                if found[&seq][entry.key.kind()] != expected {
                    return Some(format!("{name} {seq}: {} and not {entry:?}", found[&seq]));
                }
            }
        }
        for symbol in SYMBOLS {
            let key = format!("market_data:{}:{}:latest", self.tag(symbol), self.tag("1m"));
            let price = self.last_price(symbol);
            let found = self.get(&key).map(|bar| bar["close"].clone());
            if price.is_some() && found != price {
                return Some(format!("{key}: {found:?} and not {price:?}"));
            }
        }
        let ranking = self.ask::<Vec<String>>(redis::cmd("ZRANGE").arg(&["recommendations:ranking", "0", "-1"]));
        let recommended = standing.iter().filter(|entry| entry.key.account().is_none()).count();
        (ranking.as_ref().map(Vec::len) != Some(recommended)).then(|| format!("ranking: {ranking:?}"))
    }

    fn last_price(&self, symbol: &str) -> Option<Value> {
        let symbol = crate::fixture::symbol(symbol);
        let (bars, _) = self.feed.view().bars(symbol, Timeframe::M1, 1);
        bars.last().map(|bar| serde_json::to_value(bar.price(bar.body.close)).unwrap())
    }

    /// Waits until Redis has what the store has; as the pipeline does, empty epochs are committed meanwhile.
    pub async fn converges(&mut self, what: &str) -> Duration {
        let began = Instant::now();
        loop {
            let Some(difference) = self.difference().await else { return began.elapsed() };
            assert!(began.elapsed() < SOON, "{what}: {difference}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            // Not with each look, or the heartbeat would never be the newest.
            if self.feed.view().commit_age().is_none_or(|age| age > Duration::from_secs(1)) {
                self.commit(vec![]).await;
            }
        }
    }

    pub async fn wait_for(&mut self, what: &str, is_so: impl Fn(&Desk) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < SOON, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

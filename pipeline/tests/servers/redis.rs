//! Redis and those who read it: the examples of `docs/consumers`, run as they stand.

use crate::common::{Feed, Market, Running, market};
use marea_model::Symbol;
use marea_servers::{Certificates, Etcd, Postgres, Redis};
use marea_sinks::store::{AuditKey, Reader, StoreTarget};
use marea_sources::etcd::{Client, EtcdConfig, Write};
use marea_sources::{live_file, synthetic};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// What a machine that is busy may take beside what is promised.
const SLACK: Duration = Duration::from_secs(3);

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/consumers").join(name)
}

/// A Python that has redis-py: the system's, else one of a virtual environment beside the other things that tests build.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let has_it = |python: &Path| {
            let tried = Command::new(python).args(["-c", "import redis"]).stderr(Stdio::null()).status();
            tried.is_ok_and(|status| status.success())
        };
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consumers");
        let of_it = kept.join("bin/python3");
        let known = [PathBuf::from("python3"), PathBuf::from("/usr/bin/python3"), of_it.clone()];
        if let Some(python) = known.into_iter().find(|python| has_it(python)) {
            return python;
        }
        let made = Command::new("python3").args(["-m", "venv"]).arg(&kept).status().unwrap();
        assert!(made.success(), "there is no redis-py: `./dev setup` installs it (Debian's package python3-redis)");
        let got = Command::new(&of_it).args(["-m", "pip", "install", "--quiet", "redis"]).status().unwrap();
        assert!(got.success(), "there is no redis-py: `./dev setup` installs it (Debian's package python3-redis)");
        of_it
    })
}

/// An example that runs: every line that it has printed, and when.
struct Consumer {
    name: &'static str,
    child: Child,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Consumer {
    fn start(name: &'static str, command: &mut Command) -> Consumer {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        let lines = Arc::<Mutex<Vec<_>>>::default();
        let (out, read) = (lines.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(read).lines().map_while(Result::ok) {
                out.lock().unwrap().push((Instant::now(), line));
            }
        });
        Consumer { name, child, lines }
    }

    fn all(redis: &Redis, feed: &Feed, account: &str, symbol: &str) -> [Consumer; 3] {
        let (url, page) = (redis.url(), format!("http://{}", feed.address));
        [
            Consumer::start(
                "shell",
                Command::new(example("consumer.sh")).args([account, symbol]).env("REDIS_URL", &url),
            ),
            Consumer::start(
                "python",
                Command::new(python())
                    .arg(example("consumer.py"))
                    .args(["verdicts", account, symbol])
                    .env("REDIS_URL", &url),
            ),
            Consumer::start("node", Command::new("node").arg(example("consumer.mjs")).args([&page, account, symbol])),
        ]
    }

    fn lines(&self) -> Vec<(Instant, String)> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a decision after `since` for which `is_so`, and says when it came.
    fn wait_for(&self, what: &str, since: Instant, is_so: impl Fn(&str) -> bool) -> Instant {
        let began = Instant::now();
        loop {
            let lines = self.lines();
            if let Some((at, _)) = lines.iter().find(|(at, line)| *at >= since && is_so(line)) {
                return *at;
            }
            assert!(began.elapsed() < SOON, "{}: {what}: {lines:#?}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the last decision is one for which `is_so`.
    fn wait_last(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let began = Instant::now();
        while !self.lines().last().is_some_and(|(_, line)| is_so(line)) {
            assert!(began.elapsed() < SOON, "{}: {what}: {:#?}", self.name, self.lines());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A synthetic market with etcd, PostgreSQL and Redis of its own.
struct Desk {
    etcd: Etcd,
    client: Client,
    postgres: Postgres,
    redis: Redis,
    process: Running,
    feed: Feed,
    _market: Market,
}

impl Desk {
    fn new(publish: &str) -> Desk {
        let (etcd, postgres, redis) = (Etcd::start().unwrap(), Postgres::start().unwrap(), Redis::start().unwrap());
        let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..EtcdConfig::default() };
        let client = Client::connect(&config).unwrap();
        let tree = live_file::parse(Path::new("demo.toml"), synthetic::LIVE_CONFIG.as_bytes()).unwrap();
        client.write(&Write { puts: tree, ..Write::default() }).unwrap();
        let market = market(10);
        let (store, redis_url) = (postgres.database("consumers"), redis.url());
        let env = [
            ("MAREA__ETCD__ENDPOINTS", &*etcd.endpoint()),
            ("MAREA__STORE__URL", &store),
            ("MAREA__REDIS__URL", &redis_url),
            ("MAREA__FEED__PUBLISH", publish),
            ("MAREA__FEED__LISTEN", "127.0.0.1:0"),
        ];
        let mut process = market.start("run", &["run"], &env);
        let feed = process.feed();
        feed.wait_for("verdicts", SOON, |feed| feed.all_verdicts().len() >= 18);
        feed.wait_for("Redis", SOON, |feed| feed.metric("marea_redis_up") == Some(1.0));
        Desk { etcd, client, postgres, redis, process, feed, _market: market }
    }

    fn put(&self, key: &str, value: &str) {
        let puts = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        self.client.write(&Write { puts, ..Write::default() }).unwrap();
    }
}

fn is_silent(line: &str) -> bool {
    line.ends_with("NO_HEARTBEAT")
}

/// Every consumer blocks within 5 s of `fault`, and not before it.
fn all_block(consumers: &[Consumer], from: Instant, fault: Instant, what: &str) {
    for consumer in consumers {
        let stopped = |line: &str| is_silent(line) || line.contains("POLICY_STALE");
        let blocked = consumer.wait_for(what, from, stopped);
        assert!(blocked >= fault, "{} blocked before {what}: {:#?}", consumer.name, consumer.lines());
        let took = blocked - fault;
        println!("{what}: {} blocked after {took:?}", consumer.name);
        assert!(took <= Duration::from_secs(5) + SLACK, "{}: {what}: {took:?}", consumer.name);
    }
}

#[test]
fn every_consumer_gets_the_values_and_blocks_within_five_seconds_of_a_fault() {
    let desk = Desk::new("durable");
    let consumers = Consumer::all(&desk.redis, &desk.feed, "M1", "EURUSD");
    for consumer in &consumers {
        consumer.wait_last("a first decision", |line| line.starts_with("M1 EURUSD ") && !is_silent(line));
    }
    for (value, is_there) in [("false", true), ("true", false)] {
        desk.put("/echo/policy/M1/enabled", value);
        for consumer in &consumers {
            consumer.wait_last(value, |line| line.contains("ACCOUNT_DISABLED") == is_there && !is_silent(line));
        }
    }
    let calm = || {
        for consumer in &consumers {
            consumer.wait_last("calm", |line| !is_silent(line) && !line.contains("POLICY_STALE"));
        }
        Instant::now()
    };

    let (from, fault) = (calm(), Instant::now());
    desk.etcd.kill().unwrap();
    all_block(&consumers, from, fault, "etcd stopped");
    desk.etcd.restart().unwrap();

    let (from, fault) = (calm(), Instant::now());
    desk.postgres.kill().unwrap();
    all_block(&consumers, from, fault, "PostgreSQL stopped");
    desk.postgres.restart().unwrap();

    let (from, fault) = (calm(), Instant::now());
    desk.process.kill();
    all_block(&consumers, from, fault, "marea killed");
}

#[test]
fn values_that_are_published_early_are_those_that_are_committed() {
    let desk = Desk::new("fast");
    let consumers = Consumer::all(&desk.redis, &desk.feed, "M1", "EURUSD");
    for i in 0..6 {
        let enabled = i % 2 == 1;
        desk.put("/echo/policy/M1/enabled", if enabled { "true" } else { "false" });
        for consumer in &consumers {
            consumer.wait_last("the policy", |line| line.contains("ACCOUNT_DISABLED") != enabled && !is_silent(line));
            // Early or not, it comes with its seq.
            consumer.wait_last("a seq", |line| line.split(' ').nth(3).is_some_and(|seq| seq.parse::<u64>().is_ok()));
        }
    }
    assert_eq!(desk.feed.metric("marea_redis_errors_total{kind=\"newer\"}"), Some(0.0));
    desk.process.terminate();
}

#[test]
fn a_consumer_that_is_disconnected_a_hundred_times_loses_no_recommendation() {
    let redis = Redis::start().unwrap();
    let market = market(10);
    // A decision a second, so that there is something to lose.
    let live = synthetic::LIVE_CONFIG.replace("timeframe = \"1m\"", "timeframe = \"1s\"");
    std::fs::write(market.path().join("live.toml"), live).unwrap();
    let url = redis.url();
    let env =
        [("MAREA__REDIS__URL", &*url), ("MAREA__FEED__LISTEN", "127.0.0.1:0"), ("MAREA__STORE__PATH", "redis.db")];
    let mut process = market.start("run", &["run", "--live", "live.toml"], &env);
    let feed = process.feed();
    feed.wait_for("Redis", SOON, |feed| feed.metric("marea_redis_up") == Some(1.0));
    let mut command = Command::new(python());
    let consumer = Consumer::start(
        "python",
        command.arg(example("consumer.py")).args(["recommendations", "EURUSD"]).env("REDIS_URL", &url),
    );
    consumer.wait_for("a recommendation", Instant::now() - SOON, |_| true);
    let cli = |args: &[&str]| {
        let output = Command::new("redis-cli").args(["-u", &url]).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (mut killed, mut dice) = (0, 7_u64);
    while killed < 100 {
        let clients = cli(&["CLIENT", "LIST"]);
        let of_it = clients.lines().filter(|line| line.contains("name=marea-consumer"));
        let ids: Vec<&str> = of_it.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()).collect();
        if !ids.is_empty() {
            ids.iter().for_each(|id| drop(cli(&["CLIENT", "KILL", "ID", id])));
            killed += 1;
        }
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((dice >> 33) % 200));
    }
    let symbol = Symbol::new("EURUSD").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let audit = || {
        let target = StoreTarget::Sqlite(market.path().join("redis.db"));
        let entries = runtime.block_on(async { Reader::open(target).await.unwrap().audit_after(0, 1_000_000).await });
        let of_it = entries.unwrap().into_iter().filter(|entry| entry.key == AuditKey::Recommendation(symbol));
        of_it.map(|entry| entry.seq).collect::<Vec<u64>>()
    };
    // What comes after the last disconnection closes the list.
    let last = audit().last().copied().unwrap();
    let seq = |line: &str| line.split(' ').nth(1).and_then(|seq| seq.parse::<u64>().ok());
    consumer.wait_for("the last", Instant::now() - SOON * 10, |line| seq(line).is_some_and(|seq| seq > last));
    let seen: Vec<u64> = consumer.lines().iter().filter_map(|(_, line)| seq(line)).collect();
    let (first, last) = (seen[0], seen[seen.len() - 1]);
    let expected: Vec<u64> = audit().into_iter().filter(|seq| (first..=last).contains(seq)).collect();
    println!("{} recommendations", seen.len());
    assert!(seen.len() > 10);
    assert_eq!(seen, expected, "each once, in order");
    process.terminate();
}

/// By TLS and with a password, whoever signed the server's certificate being known to the system; and not otherwise.
#[test]
fn redis_is_reached_by_tls_if_its_certificate_is_known() {
    let certificates = Certificates::new().unwrap();
    let (redis, url) = Redis::secure(&certificates, "sesame").unwrap();
    let market = market(10);
    let trade = |enabled: bool| {
        let live = synthetic::LIVE_CONFIG.replace("trading_enabled = true", &format!("trading_enabled = {enabled}"));
        assert!(enabled || live != synthetic::LIVE_CONFIG);
        std::fs::write(market.path().join("live.toml"), live).unwrap();
    };
    trade(true);
    let run = |name: &str, authority: &str| {
        let authority = certificates.path(authority).to_string_lossy().into_owned();
        let env = [
            ("SSL_CERT_FILE", &*authority),
            ("MAREA__REDIS__URL", &url),
            ("MAREA__FEED__PUBLISH", "fast"),
            ("MAREA__FEED__LISTEN", "127.0.0.1:0"),
            ("MAREA__STORE__PATH", &format!("{name}.db")),
        ];
        let mut process = market.start(name, &["run", "--live", "live.toml"], &env);
        let feed = process.feed();
        (process, feed)
    };
    let (process, feed) = run("known", "ca.pem");
    feed.wait_for("Redis", SOON, |feed| feed.metric("marea_redis_up") == Some(1.0));
    // Each turn of the switch changes verdicts, which are early ones.
    let mut enabled = true;
    feed.wait_for("early values over their own connection", SOON, |feed| {
        enabled = !enabled;
        trade(enabled);
        std::thread::sleep(Duration::from_millis(300));
        feed.metric("marea_redis_early_values_total{way=\"direct\"}").is_some_and(|count| count > 0.0)
    });
    trade(false);
    // Of a URL with a password and no user, redis-cli makes a user without a name.
    let plain = redis.url().replace(":sesame@", "");
    feed.wait_for("the last value", SOON, |_| {
        let mut cli = Command::new("redis-cli");
        cli.env("REDISCLI_AUTH", "sesame").args(["-u", &plain, "GET", "verdict:M1:EURUSD:latest"]);
        String::from_utf8_lossy(&cli.output().unwrap().stdout).contains("KILL_SWITCH")
    });
    assert_eq!(feed.metric("marea_redis_rebuilds_total"), Some(1.0));
    process.terminate();

    let (process, feed) = run("unknown", "other.pem");
    feed.wait_for("a refusal", SOON, |_| process.log().contains("redis: "));
    assert_eq!(feed.metric("marea_redis_up"), Some(0.0));
    let log = process.log();
    assert!(log.contains("certificate") && !log.contains("sesame"), "{log}");
    // It runs on without it.
    process.terminate();
}

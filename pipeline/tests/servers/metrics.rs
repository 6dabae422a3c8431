//! Metrics stay few however wide the market is, and add up; and no secret is said by any of the program's mouths.

use crate::common::{Market, market};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);
const RUN: [(&str, &str); 4] = [
    ("MAREA__SOURCE__KIND", "file"),
    ("MAREA__SOURCE__PATHS", "wide.csv"),
    ("MAREA__PIPELINE__CLOCK", "event"),
    ("MAREA__FEED__LISTEN", "127.0.0.1:0"),
];

/// The text of `/metrics` once so many symbols, each with a trade or two, were judged for so many accounts.
fn scrape(symbols: usize, accounts: usize) -> String {
    let market = market(1);
    let mut ticks = String::from("event_time,symbol,seq,kind,price,size\n");
    for (second, seq) in [(0, 1), (1, 2)] {
        for symbol in 0..symbols {
            writeln!(ticks, "2026-01-05T09:00:0{second}Z,S{symbol},{seq},trade,1.1,1").unwrap();
        }
    }
    // Nobody can read this one.
    ticks.push_str("2026-01-05T09:00:02Z,S0,3,trade,abc,1\n");
    std::fs::write(market.path().join("wide.csv"), ticks).unwrap();
    let names: Vec<String> = (0..accounts).map(|account| format!("\"A{account}\"")).collect();
    let live = format!("[core]\nmaster_accounts = [{}]\ntrading_enabled = true\n", names.join(","));
    std::fs::write(market.path().join("live.toml"), live).unwrap();
    let mut process = market.start("run", &["run", "--live", "live.toml"], &RUN);
    let feed = process.feed();
    let (records, verdicts) = ((2 * symbols + 1) as f64, (symbols * accounts) as f64);
    feed.wait_for("all verdicts", SOON, |feed| {
        let taken = feed.metric("marea_records_total{outcome=\"in\"}").unwrap_or_default();
        let blocked = feed.metric("marea_blocked_verdicts_total{reason=\"NO_POLICY\"}").unwrap_or_default();
        // The operators' sizes are shown once a second.
        let held = |operator| feed.metric(&format!("marea_operator_state_bytes{{operator=\"{operator}\"}}"));
        taken >= records
            && blocked >= verdicts
            && ["bars", "scan"].map(held).iter().all(|held| held.is_some_and(|bytes| bytes > 0.0))
    });
    let text = feed.metrics().unwrap();
    process.terminate();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn series(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
        .filter(|name| name.starts_with("marea_"))
        .collect()
}

fn value(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[test]
fn series_do_not_grow_with_symbols_and_accounts() {
    let narrow = scrape(6, 3);
    for (symbols, accounts) in [(10_000, 1), (10, 1_000)] {
        let wide = scrape(symbols, accounts);
        assert_eq!(series(&wide), series(&narrow), "{symbols} symbols, {accounts} accounts");
        assert_eq!(value(&wide, "marea_records_total{outcome=\"in\"}"), 2.0 * symbols as f64 + 1.0);
        assert_eq!(value(&wide, "marea_records_total{outcome=\"dead\"}"), 1.0);
    }
    assert!(series(&narrow).len() < 300, "{}", series(&narrow).len());
}

#[test]
fn the_stages_are_the_whole_way() {
    let text = scrape(50, 2);
    let of = |what: &str| {
        ["decode", "epoch_wait", "dataflow", "commit", "publish"]
            .map(|stage| value(&text, &format!("marea_stage_latency_seconds_{what}{{stage=\"{stage}\"}}")))
    };
    let epochs = value(&text, "marea_end_to_end_latency_seconds_count");
    assert!(epochs > 0.0 && of("count").iter().all(|count| *count == epochs), "{:?} of {epochs}", of("count"));
    let (parts, whole) = (of("sum").iter().sum::<f64>(), value(&text, "marea_end_to_end_latency_seconds_sum"));
    // A thread may lose its core between the end of one stage and the clock that begins the next.
    assert!((parts - whole).abs() < 0.1 * whole + 0.1 * epochs, "{parts} s of {whole} s in {epochs} epochs");
}

/// Nothing that the program ever says may hold it.
const CANARY: &str = "canary-5e5a7b";

/// A server that is not what anybody takes it for.
fn stranger() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Whoever has gone need not be told.
            let _ = stream.and_then(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    port
}

/// Runs it until it ends, or for so long; gives all that it said.
fn said(market: &Market, args: &[&str], env: &[(&str, &str)], most: Duration) -> String {
    let log = market.path().join("said.log");
    let file = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
    let mut child = market.marea(args, env).stdout(file()).stderr(file()).stdin(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() && began.elapsed() < most {
        std::thread::sleep(Duration::from_millis(20));
    }
    // It may have ended meanwhile.
    let _ = child.kill();
    child.wait().unwrap();
    let mut text = String::new();
    for name in ["said.log", "file.log"] {
        let path = market.path().join(name);
        text += &read(&path);
        let _ = std::fs::remove_file(path);
    }
    text
}

fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    // There is no log file where none was asked for.
    let _ = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The settings of each attempt, with a password that a person mistyped, a server that is not there, and one that is
/// another. `P` stands for the port.
const ATTEMPTS: [&[(&str, &str)]; 8] = [
    &[
        ("SOURCE__KIND", "kafka"),
        ("KAFKA__BROKERS", "127.0.0.1:P"),
        ("KAFKA__PROTOCOL", "sasl_plaintext"),
        ("KAFKA__MECHANISM", "PLAIN"),
        ("KAFKA__USERNAME", "u"),
        ("KAFKA__PASSWORD", CANARY),
    ],
    &[
        ("SOURCE__KIND", "kafka"),
        ("KAFKA__BROKERS", "127.0.0.1:P"),
        ("KAFKA__PROTOCOL", "ssl"),
        ("KAFKA__KEY_PASSWORD", CANARY),
    ],
    &[("SOURCE__KIND", "rabbitmq"), ("RABBITMQ__URL", "amqp://u:canary-5e5a7b@127.0.0.1:P/%2f")],
    &[("SOURCE__KIND", "rabbitmq"), ("RABBITMQ__URL", "amqp:/u:canary-5e5a7b@127.0.0.1:P")],
    &[("ETCD__ENDPOINTS", "http://127.0.0.1:P"), ("ETCD__USER", "u"), ("ETCD__PASSWORD", CANARY)],
    &[("STORE__URL", "postgres://u:canary-5e5a7b@127.0.0.1:P/marea")],
    &[("STORE__URL", "postgres//u:canary-5e5a7b@127.0.0.1:P/marea")],
    &[("STORE__URL", "postgres://u:canary-5e5a7b@127.0.0.1:99999/marea?canary-5e5a7b=1"), ("KAFKA__PASWORD", CANARY)],
];

#[test]
fn no_secret_is_ever_said() {
    let market = market(10);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut attempts: Vec<Vec<(&str, &str)>> = ATTEMPTS.iter().map(|attempt| attempt.to_vec()).collect();
    // A section that is not there yet is looked after as soon as it is.
    let settings = said(&market, &["check", "--format", "json"], &[], SOON);
    if settings.contains("redis.url") {
        attempts.push(vec![("REDIS__URL", "redis://u:canary-5e5a7b@127.0.0.1:P/")]);
    }
    for (i, attempt) in attempts.iter().enumerate() {
        for (format, file) in [("json", ""), ("text", "file.log")] {
            // A closed port first, then somebody else's.
            let port = if file.is_empty() { closed } else { stranger() }.to_string();
            let mut env: Vec<(String, String)> =
                attempt.iter().map(|(k, v)| ((*k).to_owned(), v.replace('P', &port))).collect();
            let own = [
                ("LOG__LEVEL", "trace"),
                ("LOG__FORMAT", format),
                ("LOG__FILE", file),
                ("FEED__LISTEN", "127.0.0.1:0"),
            ];
            env.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
            let env: Vec<(String, String)> = env.into_iter().map(|(k, v)| (format!("MAREA__{k}"), v)).collect();
            let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            for (command, most) in [("check", SOON), ("run", Duration::from_secs(3))] {
                let text = said(&market, &[command, "--format", format], &env, most);
                assert!(!text.is_empty(), "{command} {env:?} says nothing");
                let line = text.lines().find(|line| line.contains(CANARY));
                assert!(line.is_none(), "{command}, attempt {i}, {format}: {line:?}");
            }
        }
    }
    // What a person mistypes in a file.
    for text in [
        "[kafka]\npassword = canary-5e5a7b\n",
        "[kafka]\npassword = \"canary-5e5a7b\nx\"\n",
        "[store]\nurl = [[\"canary-5e5a7b\"]]\n",
    ] {
        std::fs::write(market.path().join("bad.toml"), text).unwrap();
        let said = said(&market, &["check", "--config", "bad.toml"], &[], SOON);
        assert!(said.contains("bad.toml") && !said.contains(CANARY), "{said}");
    }
}

/// Where a secret is right, all goes on, at the most talkative level, and it is not said either.
#[test]
fn nor_where_all_is_well() {
    let market = market(10);
    let database = marea_servers::shared::postgres().database("canary");
    let url = database.replacen("postgres@", &format!("postgres:{CANARY}@"), 1);
    assert!(url.contains(CANARY), "{url}");
    let password = market.path().join("password");
    std::fs::write(&password, CANARY).unwrap();
    let env = [
        ("MAREA__STORE__URL", url.as_str()),
        ("MAREA__KAFKA__PASSWORD_FILE", password.to_str().unwrap()),
        ("MAREA__LOG__LEVEL", "trace"),
        ("MAREA__FEED__LISTEN", "127.0.0.1:0"),
    ];
    let migrated = market.marea(&["migrate"], &env).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let mut process = market.start("run", &["run"], &env);
    let feed = process.feed();
    feed.wait_for("records", SOON, |feed| {
        feed.metric("marea_records_total{outcome=\"in\"}").unwrap_or_default() > 50.0
    });
    let metrics = feed.metrics().unwrap();
    assert!(metrics.contains("marea_sink_commit_duration_seconds_count{sink=\"postgres\"}"), "{metrics}");
    let checked = market.marea(&["check"], &env).output().unwrap();
    let all = [metrics, process.log(), String::from_utf8_lossy(&checked.stdout).into_owned()].concat();
    assert!(all.contains("TRACE"), "the most talkative level");
    assert!(all.contains("***"), "{all}");
    let line = all.lines().find(|line| line.contains(CANARY));
    assert!(line.is_none(), "{line:?}");
    process.terminate();
}

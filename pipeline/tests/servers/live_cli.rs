//! `marea policy`, `marea window` and `marea kill` against a real etcd.

use marea_servers::{Etcd, wait_until};
use marea_sources::etcd::{Client, EtcdConfig, Write};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

/// An etcd of its own, and marea far from any configuration of the machine.
struct Desk {
    etcd: Etcd,
    folder: tempfile::TempDir,
    client: Client,
}

impl Desk {
    fn new() -> Self {
        let etcd = Etcd::start().unwrap();
        let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..EtcdConfig::default() };
        let client = Client::connect(&config).unwrap();
        let desk = Desk { etcd, folder: tempfile::tempdir().unwrap(), client };
        desk.put(&[("/echo/core/master_accounts", "M1"), ("/echo/core/slave_accounts", "S1")]);
        desk
    }

    fn put(&self, puts: &[(&str, &str)]) {
        let puts = puts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.client.write(&Write { puts, ..Write::default() }).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_marea"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAREA__")) {
            command.env_remove(name);
        }
        command.current_dir(self.folder.path()).args(line.split(' ')).args(["--endpoints", &self.etcd.endpoint()]);
        command
    }

    /// Exit code, standard output, standard error.
    fn run(&self, line: &str) -> (i32, String, String) {
        let output = self.command(line).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn good(&self, line: &str) -> String {
        let (code, out, err) = self.run(line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        out
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.good(&format!("{line} --format json"))).unwrap()
    }

    /// It must end with `code`, say exactly this, and write nothing.
    #[track_caller]
    fn refused(&self, line: &str, code: i32, errors: &[&str]) {
        let before = self.client.read().unwrap();
        let (found, out, err) = self.run(line);
        let expected: String = errors.iter().map(|error| format!("error: {error}\n")).collect();
        assert_eq!((found, out.as_str(), err.as_str()), (code, "", expected.as_str()), "{line}");
        assert_eq!(self.client.read().unwrap(), before, "{line}");
    }

    fn value(&self, key: &str) -> Option<String> {
        self.client.read().unwrap().keys.get(key).map(|stored| stored.value.clone())
    }
}

#[test]
fn a_policy_is_set_shown_and_deleted() {
    let desk = Desk::new();
    assert!(desk.good("policy get").contains("M1 (master), revision 0: no policy: blocked"));
    let out = desk.good("policy set M1 max_spread=20 risk_per_trade=0.5");
    let revision = desk.client.read().unwrap().revision;
    let expected =
        format!("/echo/policy/M1/max_spread = 20\n/echo/policy/M1/risk_per_trade = 0.5\nrevision {revision}\n");
    assert_eq!(out, expected);
    desk.good("policy set * max_slippage=3 max_spread=99 risk_fixed=7");
    let shown = desk.json("policy get M1");
    let policy = &shown["policies"][0];
    assert_eq!(
        (&policy["state"], &policy["role"], &policy["revision"]),
        (&json!("valid"), &json!("master"), &json!(revision))
    );
    assert_eq!(policy["resolved"]["max_spread"], json!({ "value": "20", "from": "/echo/policy/M1/max_spread" }));
    assert_eq!(policy["resolved"]["max_slippage"], json!({ "value": "3", "from": "/echo/policy/*/max_slippage" }));
    assert_eq!(policy["resolved"]["enabled"], json!({ "value": "true", "from": null }));
    assert_eq!(policy["written"].as_array().unwrap().len(), 5);
    assert_eq!(desk.json("policy get")["policies"].as_array().unwrap().len(), 3);
    let text = desk.good("policy get M1");
    assert!(
        text.contains(&format!("  max_spread        20           /echo/policy/M1/max_spread, revision {revision}\n")),
        "{text}"
    );

    desk.good("policy delete M1 max_spread");
    assert_eq!(desk.value("/echo/policy/M1/max_spread"), None);
    desk.good("policy delete M1");
    assert_eq!(desk.client.read().unwrap().below("/echo/policy/M1/").count(), 0);
    desk.refused("policy delete M1", 2, &["nothing is there below /echo/policy/M1/"]);
    desk.refused("policy delete * max_delay_ms", 2, &["/echo/policy/*/max_delay_ms is not there"]);
}

#[test]
fn what_the_pipeline_would_not_read_is_not_written() {
    let desk = Desk::new();
    desk.refused(
        "policy set M1 max_spread=5,0 risk_per_trade=-2 enabled=yes",
        2,
        &[
            "/echo/policy/M1/enabled: \"yes\" is neither true nor false; blocks those it applies to",
            "/echo/policy/M1/max_spread: \"5,0\" is not a number; blocks those it applies to",
            "/echo/policy/M1/risk_per_trade: \"-2\" is negative; blocks those it applies to",
        ],
    );
    desk.refused(
        "policy set M1 max_spread=5",
        2,
        &["/echo/policy/M1/risk_per_trade: missing, and so is risk_fixed; blocks those it applies to"],
    );
    desk.refused(
        "policy set M9 max_spread=5 risk_fixed=1",
        2,
        &["/echo/policy/M9/max_spread: M9 is neither a master nor a slave account; ignored"],
    );
    let known = "max_spread, max_slippage, max_delay_ms, max_quote_age_ms, copy_sl_tp, risk_per_trade, risk_fixed, enabled, \
                 max_drawdown_pct, sl_offset, tp_offset, catastrophic_sl, allow_short";
    let unknown = format!("\"max_spred\" is not a key of a policy; did you mean \"max_spread\"?; known: {known}");
    desk.refused("policy set M1 max_spred=5 x", 2, &[&unknown, "\"x\" must be KEY=VALUE, such as max_spread=20"]);
    desk.refused(
        "policy set M_?1 max_spread=5",
        2,
        &["account \"M_?1\" must be 1 to 64 of letters, digits, . _ - @ :"],
    );
    // What was wrong already is nobody's fault now, and may be mended.
    desk.put(&[("/echo/policy/M1/max_spred", "5"), ("/echo/policy/S1/max_spread", "x")]);
    desk.good("policy set M1 max_spread=5 risk_fixed=1");
    assert_eq!(desk.json("policy get M1")["policies"][0]["state"], "invalid");
    desk.good("policy delete M1 max_spred");
    assert_eq!(desk.json("policy get M1")["policies"][0]["state"], "valid");
    desk.refused(
        "policy delete M1 max_spread",
        2,
        &["/echo/policy/M1/max_spread: missing; blocks those it applies to"],
    );
}

#[test]
fn a_change_is_made_only_at_the_revision_that_was_meant() {
    let desk = Desk::new();
    desk.good("policy set M1 max_spread=20 risk_fixed=5 --if-revision 0");
    let at = desk.json("policy get M1")["policies"][0]["revision"].as_i64().unwrap();
    let conflict = |line: &str, expected: i64| {
        let error = format!("/echo/policy/M1/ is at revision {at}, not {expected}: nothing was written");
        desk.refused(&format!("{line} --if-revision {expected}"), 1, &[&error]);
    };
    conflict("policy set M1 max_spread=30", 0);
    conflict("policy delete M1", at + 1);
    // Another account is another matter.
    desk.good("policy set S1 max_spread=20 risk_fixed=5");
    desk.good(&format!("policy set M1 max_spread=30 --if-revision {at}"));
    assert_eq!(desk.value("/echo/policy/M1/max_spread").as_deref(), Some("30"));
}

#[test]
fn many_writers_at_once_lose_nothing() {
    let desk = Desk::new();
    desk.good("policy set M1 max_spread=1 risk_fixed=1");
    let settings = ["max_slippage=1", "max_delay_ms=2", "sl_offset=3", "tp_offset=4", "max_drawdown_pct=5"];
    let running: Vec<_> = settings
        .iter()
        .map(|s| desk.command(&format!("policy set M1 {s}")).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(desk.client.read().unwrap().below("/echo/policy/M1/").count(), 2 + settings.len());
}

#[test]
fn a_window_is_one_revision_and_found_again() {
    let desk = Desk::new();
    let times = "--start 2026-01-05T13:00:00Z --end 2026-01-05T14:00:00+00:00";
    desk.good(&format!("window add M1 eur/usd {times} --pre 5m --post 10m"));
    let tree = desk.client.read().unwrap();
    let keys: Vec<_> = tree.below("/echo/windows/M1/EUR%2FUSD/").collect();
    let names: Vec<&str> = keys.iter().map(|(key, _)| key.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["end_utc", "post_buffer_sec", "pre_buffer_sec", "start_utc"]);
    assert!(keys.iter().all(|(_, stored)| stored.revision == tree.revision), "one transaction");
    assert_eq!(desk.value("/echo/windows/M1/EUR%2FUSD/pre_buffer_sec").as_deref(), Some("300"));
    desk.refused(
        &format!("window add M1 EUR/USD {times}"),
        2,
        &["the window \"default\" of M1 EUR/USD stands already; --replace it, or name another one with --id"],
    );
    desk.good(&format!("window add M1 EUR/USD {times} --replace"));
    assert_eq!(desk.client.read().unwrap().below("/echo/windows/").count(), 2, "without the buffers of before");
    desk.good(&format!("window add * * {times} --id nfp"));
    let listed = desk.json("window list");
    let rows = listed["windows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[0]["account"], &rows[0]["symbol"], &rows[0]["id"]), (&json!("*"), &json!("*"), &json!("nfp")));
    assert_eq!(rows[1]["end_utc"], "2026-01-05T14:00:00+00:00");
    assert_eq!(desk.json("window list M1 eur/usd")["windows"].as_array().unwrap().len(), 1);
    desk.refused(
        "window add M1 IBM --start 2026-01-05T15:00:00Z --end 2026-01-05T14:00:00Z",
        2,
        &["/echo/windows/M1/IBM/start_utc: \"2026-01-05T15:00:00Z\" is not before the end \"2026-01-05T14:00:00Z\"; \
           blocks those it applies to"],
    );
    desk.refused(
        "window remove M1 EUR/USD --id nfp",
        2,
        &["there is no window \"nfp\" of M1 EUR/USD; there is \"default\""],
    );
    desk.good("window remove M1 EUR/USD");
    desk.good("window remove * * --id nfp");
    assert_eq!(desk.good("window list"), "no windows\n");
    for (line, said) in [
        ("window add M1 IBM", "--start <TIME>"),
        ("window add M1 IBM --start 2026-01-05T15:00:00Z", "--end <TIME>"),
        ("window add M1 IBM --ttl 5m --start 2026-01-05T15:00:00Z --end 2026-01-05T16:00:00Z", "cannot be used with"),
        (
            "window add M1 IBM --start 2026-01-05T15:00:00 --end 2026-01-05T16:00:00Z",
            "is not an RFC 3339 time with a zone",
        ),
    ] {
        let (code, _, err) = desk.run(line);
        assert!(code == 2 && err.contains(said), "{line}: {code} {err}");
    }
}

#[test]
fn what_has_a_ttl_goes_by_itself() {
    let desk = Desk::new();
    desk.good("window add M1 IBM --ttl 2s --id halt");
    let row = desk.json("window list")["windows"][0].clone();
    assert_eq!((&row["active"], &row["id"]), (&json!("true"), &json!("halt")));
    assert!(row["seconds_left"].as_u64().unwrap() <= 2);
    desk.good("policy set * max_spread=5 risk_fixed=1");
    desk.good("policy set M1 max_spread=9 --ttl 2s");
    assert_eq!(desk.json("policy get M1")["policies"][0]["resolved"]["max_spread"]["value"], "9");
    wait_until(Duration::from_secs(15), "the leases end", || desk.client.read().unwrap().keys.len() == 4);
    assert_eq!(desk.json("policy get M1")["policies"][0]["resolved"]["max_spread"]["value"], "5");
}

#[test]
fn the_kill_switch() {
    let desk = Desk::new();
    desk.good("kill on");
    assert_eq!(desk.value("/echo/core/trading_enabled").as_deref(), Some("false"));
    assert!(desk.good("policy get").starts_with("the kill switch is on"));
    let at = desk.client.read().unwrap().keys["/echo/core/trading_enabled"].revision;
    let error = format!("/echo/core/trading_enabled is at revision {at}, not 1: nothing was written");
    desk.refused("kill off --if-revision 1", 1, &[&error]);
    desk.good(&format!("kill off --if-revision {at}"));
    assert_eq!(desk.value("/echo/core/trading_enabled").as_deref(), Some("true"));
    desk.put(&[("/echo/core/trading_enabled", "maybe")]);
    desk.good("kill on");
    // Nobody there is said, and is no success.
    desk.etcd.kill().unwrap();
    let (code, _, err) = desk.run("kill on");
    assert!(code == 1 && err.starts_with("error: no endpoint of etcd answers: etcd http://127.0.0.1:"), "{code} {err}");
    let (code, _, err) = desk.run("kill on --endpoints nowhere");
    assert!(code == 2 && err.contains("must be http://HOST:PORT or https://HOST:PORT"), "{code} {err}");
}

#[test]
fn a_watch_shows_changes_until_it_is_stopped() {
    let desk = Desk::new();
    let mut child =
        desk.command("policy watch M1 --format json").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["watching"], "M1");
    desk.put(&[("/echo/policy/S1/max_spread", "1"), ("/echo/policy/M1/max_spread", "2")]);
    let revision = desk.client.read().unwrap().revision;
    assert_eq!(next(), json!({ "revision": revision, "key": "/echo/policy/M1/max_spread", "value": "2" }));
    desk.put(&[("/echo/policy/*/max_spread", "3")]);
    assert_eq!(next()["key"], "/echo/policy/*/max_spread");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    wait_until(Duration::from_secs(10), "the end", || child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
}

/// A feed that says this, and nothing else.
fn feed(answers: impl Fn(&str) -> Option<Value> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
            // What is left unread would break the connection before the answer is read.
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            let (status, body) = answers(&path).map_or((404, json!({ "detail": "unknown" })), |body| (200, body));
            let _ = write!(stream, "HTTP/1.1 {status} X\r\n\r\n{body}");
        }
    });
    format!("http://{address}")
}

#[test]
fn a_dry_run_lists_what_would_flip_and_writes_nothing() {
    let desk = Desk::new();
    desk.put(&[
        ("/echo/policy/*/max_spread", "20"),
        ("/echo/policy/*/risk_per_trade", "1"),
        (
            "/marea/instruments/IBM",
            r#"{"scale":4,"tick_size":"0.01","tick_value":1,"min_lot":"0.01","lot_step":"0.01"}"#,
        ),
    ]);
    let url = feed(|path| {
        let facts = json!({
            "now": "2026-01-05T13:00:01Z",
            "instrument": { "tick_size": 0.01, "tick_value": 1.0, "currency": null, "min_lot": 0.01, "max_lot": 100.0,
                            "lot_step": 0.01, "min_stop_distance": 0.0 },
            "quote": { "event_time": "2026-01-05T13:00:00Z", "bid": 100.0, "ask": 100.1, "spread_points": 10.0, "age_ms": 1000 },
            "account": { "role": "master", "equity": 10000.0, "currency": "USD", "peak": 11000.0, "position_side": 0,
                         "position_lots": null, "policy": null, "windows": [] },
        });
        Some(match path {
            "/api/v1/recommendations" => json!({ "recommendations": [{ "recommendation": {
                "symbol": "IBM", "timeframe": "5m", "bar_open_time": "2026-01-05T12:55:00Z", "bar_close_time": "2026-01-05T13:00:00Z",
                "action": "BUY", "status": "active", "confidence": 75.0, "close": 100.05, "stop_loss": 98.05,
                "take_profit": 103.05, "expires_at": "2026-01-05T13:15:00Z" } }] }),
            "/api/v1/verdicts" => json!({ "verdicts": [
                { "verdict": { "account": "M1", "symbol": "IBM", "allow": true, "reasons": [] } },
                { "verdict": { "account": "S1", "symbol": "IBM", "allow": false, "reasons": ["DRAWDOWN_LIMIT"] } },
            ] }),
            _ if path.starts_with("/api/v1/facts/IBM?account=") => facts,
            _ => return None,
        })
    });
    let before = desk.client.read().unwrap();
    let flip = |line: &str| {
        let answer = desk.json(&format!("{line} --dry-run --url {url}"));
        let flips = answer["flips"].as_array().unwrap();
        let names: Vec<String> =
            flips.iter().map(|f| format!("{}: {}", f["account"].as_str().unwrap(), f["to"]["reasons"])).collect();
        (names, answer["differ_from_feed"].clone())
    };
    let differ = json!(["S1 IBM"]);
    assert_eq!(flip("kill on"), (vec!["M1: [\"KILL_SWITCH\"]".into(), "S1: [\"KILL_SWITCH\"]".into()], differ.clone()));
    assert_eq!(flip("policy set M1 max_spread=9"), (vec!["M1: [\"SPREAD_ABOVE_MAX\"]".into()], differ.clone()));
    assert_eq!(flip("policy set M1 max_spread=10"), (vec![], differ.clone()));
    assert_eq!(flip("policy set M1 max_drawdown_pct=9"), (vec!["M1: [\"DRAWDOWN_LIMIT\"]".into()], differ.clone()));
    assert_eq!(flip("policy delete *").0.len(), 2);
    let window = "window add * IBM --start 2026-01-05T13:30:00Z --end 2026-01-05T14:00:00Z";
    assert_eq!(flip(window).0.len(), 0);
    assert_eq!(flip(&format!("{window} --pre 30m")).0.len(), 2);
    let text = desk.good(&format!("kill on --dry-run --url {url}"));
    assert!(text.starts_with("M1 IBM: allow enter 0.5 lots -> block KILL_SWITCH\nS1 IBM: allow enter"), "{text}");
    assert!(text.ends_with("another configuration\na dry run: nothing was written\n"), "{text}");
    // What would be refused is refused here too.
    desk.refused(
        &format!("policy set M1 max_spread=x --dry-run --url {url}"),
        2,
        &["/echo/policy/M1/max_spread: \"x\" is not a number; blocks those it applies to"],
    );
    let (code, _, err) = desk.run("kill on --dry-run --url http://127.0.0.1:1");
    assert!(
        code == 1
            && err.contains("nobody answers")
            && err.contains("--dry-run asks the running feed: nothing was judged"),
        "{err}"
    );
    assert_eq!(desk.client.read().unwrap(), before);
}

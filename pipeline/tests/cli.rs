//! The program as a user meets it: bad usage with its exact words and exit code, replays, explanations, the demo and
//! its end.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use marea::http;
use marea_model::ConfigUpdate;
use serde_json::Value;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// marea, far from any configuration of the machine.
fn marea(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_marea"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAREA__")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(args);
    command
}

fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = marea(folder, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Trades of two symbols, one a minute, first up and then down, with a duplicate and a line that is no tick.
fn ticks(folder: &Path) -> String {
    let mut csv = "event_time,symbol,seq,kind,price,size\n".to_owned();
    for minute in 0_u64..400 {
        let cents = if minute < 200 { 10_000 + minute * 3 } else { 10_600 - (minute - 200) * 4 };
        let (hour, minute_of_hour) = (9 + minute / 60, minute % 60);
        for symbol in ["UP", "DN"] {
            let price = if symbol == "UP" { cents } else { 20_600 - cents };
            let time = format!("2026-01-05T{hour:02}:{minute_of_hour:02}:00Z");
            let (whole, part) = (price / 100, price % 100);
            writeln!(csv, "{time},{symbol},{minute},trade,{whole}.{part:02},10").unwrap();
        }
    }
    csv.push_str("2026-01-05T15:39:00Z,UP,399,trade,98.04,10\n");
    csv.push_str("2026-01-05T15:39:00Z,UP,400,trade,none,10\n");
    std::fs::write(folder.join("ticks.csv"), csv).unwrap();
    let live = r#"
        [core]
        master_accounts = ["M1"]
        trading_enabled = true
        [policy.M1]
        max_spread = 20
        risk_per_trade = 1
        [instruments.UP]
        scale = 4
        tick_size = 0.01
        tick_value = 2
        [strategies.cross]
        kind = "ema_cross"
        timeframe = "5m"
        [strategies.breakout]
        kind = "donchian_breakout"
        timeframe = "5m"
    "#;
    std::fs::write(folder.join("live.toml"), live).unwrap();
    "ticks.csv".to_owned()
}

#[test]
fn bad_usage_and_configuration_exit_with_2_and_say_everything() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ticks = ticks(at);
    std::fs::write(at.join("bad.toml"), "[pipeline]\nworker = 1\nclock = 'sun'\n[sink]\n").unwrap();
    std::fs::write(at.join("bad-live.toml"), "[policy.M1]\nmax_spread = '5,0'\n").unwrap();
    std::fs::write(at.join("broken.parquet"), "PAR1 and nothing else").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let in_use = format!("error: --listen: feed.listen: \"{address}\" is in use\n");
    let cases: &[(&[&str], &str)] = &[
        (
            &["run", "--config", "bad.toml"],
            "error: bad.toml:2: pipeline.worker: unknown key; did you mean \"workers\"?\n\
             error: bad.toml:4: sink: unknown section\n\
             error: bad.toml:3: pipeline.clock: \"sun\" must be wall or event\n",
        ),
        (
            &["replay", "nowhere.csv", &ticks, "--workers", "none"],
            "error: --workers: pipeline.workers: \"none\" must be a whole number from 1 to 256\n\
             error: FILE: source.paths: \"nowhere.csv\" is not there\n",
        ),
        (
            &["replay", &ticks, "--store", "no/such/folder/x.db"],
            "error: --store: store.path: \"no/such/folder/x.db\" must be in a folder that exists: no/such/folder does not\n",
        ),
        (&["run", "--listen", &address], &in_use),
        (&["demo", "--listen", &address], &in_use),
        (&["explain", "A B"], "error: symbol \"A B\" must be 1 to 32 of A-Z, 0-9, . _ / - :\n"),
        (
            &["explain", "UP", "--url", "localhost"],
            "error: --url: \"localhost\" must be http://HOST:PORT, the address of a feed\n",
        ),
    ];
    for (args, expected) in cases {
        let (code, stdout, stderr) = run(at, args);
        assert_eq!((code, stderr.as_str(), stdout.as_str()), (2, *expected, ""), "{args:?}");
    }
    for (args, part) in [
        (&["replay", "broken.parquet"][..], "error: broken.parquet: "),
        (&["check", "--live", "bad-live.toml"], "max_spread"),
        (&["explain", "UP", "--url", "http://x", "--store", "y"], "cannot be used with '--store <FILE>'"),
        (&["explain", "UP", "--store", "nowhere.db"], "error: store nowhere.db: cannot be opened: "),
        (&["replay"], "<FILE>..."),
    ] {
        let (code, _, stderr) = run(at, args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.contains(part), "{args:?}: {stderr}");
    }
    // Programs get the same list.
    let (code, _, stderr) = run(at, &["run", "--config", "bad.toml", "--format", "json"]);
    let errors: Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!((code, errors["errors"].as_array().unwrap().len()), (2, 3));
}

#[test]
fn more_workers_than_cores_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let many = (cores + 1).to_string();
    let (code, stdout, _) = marea(folder.path(), &["check"])
        .env("MAREA__PIPELINE__WORKERS", &many)
        .output()
        .map(|o| (o.status.code().unwrap(), String::from_utf8(o.stdout).unwrap(), o.stderr))
        .unwrap();
    assert_eq!(code, 0, "{stdout}");
    let warning = format!(
        "warning: MAREA__PIPELINE__WORKERS: pipeline.workers: {many} workers on {cores} cores will wait for each other"
    );
    assert!(stdout.lines().any(|line| line == warning), "{stdout}");
    assert!(stdout.ends_with("\nall is well\n"), "{stdout}");
}

#[test]
fn a_replay_adds_up_dumps_and_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ticks = ticks(at);
    let replay = ["replay", &ticks, "--live", "live.toml", "--dump", "out", "--format", "json", "--store", "m.db"];
    let (code, stdout, stderr) = run(at, &replay);
    assert_eq!(code, 0, "{stderr}");
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let n = |name: &str| summary[name].as_i64().unwrap();
    assert_eq!((n("records_in"), n("accepted"), n("duplicate"), n("dead"), n("held")), (802, 800, 1, 1, 0));
    assert_eq!((&summary["balanced"], &summary["bars"]["5m"]), (&Value::from(true), &Value::from(160)));
    assert_eq!(summary["now"], "2026-01-05T16:00:00.000000000Z", "the greatest close of any bar");
    assert_eq!(summary["dead_letters"].as_object().unwrap().values().sum_i64(), 1);
    for table in ["bars", "indicators", "trades", "metrics", "recommendations", "verdicts", "dead_letters"] {
        let csv = std::fs::read_to_string(at.join("out").join(format!("{table}.csv"))).unwrap();
        assert!(csv.lines().count() > 1, "{table}.csv is empty");
    }

    // Two workers, one tick an epoch: the same state.
    let again = marea(at, &["replay", &ticks, "--live", "live.toml", "--dump", "out2", "--workers", "2"])
        .env("MAREA__PIPELINE__MAX_TICKS", "1")
        .output()
        .unwrap();
    assert!(again.status.success());
    for table in ["bars", "indicators", "trades", "metrics", "recommendations"] {
        let read = |out: &str| std::fs::read_to_string(at.join(out).join(format!("{table}.csv"))).unwrap();
        assert!(read("out") == read("out2"), "{table}.csv differs");
    }

    let (code, _, stderr) = run(at, &replay);
    assert_eq!(code, 2);
    assert!(stderr.contains("store m.db: holds a run already, up to epoch "), "{stderr}");

    let (_, from_store, _) = run(at, &["explain", "up", "--account", "M1", "--store", "m.db", "--format", "json"]);
    let from_files = ["explain", "UP", "--account", "M1", "--files", &ticks, "--live", "live.toml", "--format", "json"];
    let (_, from_files, stderr) = run(at, &from_files);
    let case = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text} {stderr}"));
    let (store, files) = (case(&from_store), case(&from_files));
    for part in ["recommendation", "bars", "tracks"] {
        assert_eq!(store[part], files[part], "{part}");
    }
    assert_eq!(store["verdict"]["reasons"], files["verdict"]["reasons"]);
    let instrument = &store["facts"]["instrument"];
    assert_eq!((&instrument["tick_value"], instrument), (&Value::from(2.0), &files["facts"]["instrument"]));
    let (code, text, _) = run(at, &["explain", "UP", "--account", "M1", "--store", "m.db"]);
    assert_eq!(code, 0);
    assert!(text.contains("confidence = 100 × (0.6 × ") && text.contains("Verdict for M1: BLOCK"), "{text}");
    let (code, _, stderr) = run(at, &["explain", "GONE", "--store", "m.db"]);
    assert_eq!(code, 1);
    assert_eq!(stderr, "error: no recommendation stands for GONE: it needs a closed bar of its decision timeframe\n");
    let (code, _, stderr) = run(at, &["explain", "UP", "--account", "X", "--store", "m.db"]);
    assert_eq!(code, 1);
    assert_eq!(stderr, "error: account X has no verdict on UP: it is not among the configured accounts\n");
}

#[test]
fn a_replay_that_is_stopped_dumps_nothing_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ticks = ticks(at);
    let args = ["replay", &ticks, "--speed", "1x", "--dump", "out", "--store", "m.db", "--format", "json"];
    let replay = marea(at, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    // Signals are watched before the store is made.
    while !at.join("m.db").exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "not started");
        std::thread::sleep(Duration::from_millis(20));
    }
    terminate(replay.id());
    let Output { status, stdout, stderr } = replay.wait_with_output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(r#"{"errors":["stopped before the end of the files"]}"#), "{stderr}");
    assert_eq!(serde_json::from_slice::<Value>(&stdout).unwrap()["complete"], false);
    assert_eq!(std::fs::read_dir(at.join("out")).unwrap().count(), 0);
}

#[test]
fn an_argument_is_one_path_commas_and_all() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::rename(folder.path().join(ticks(folder.path())), folder.path().join("a,b.csv")).unwrap();
    let (code, stdout, stderr) = run(folder.path(), &["replay", "a,b.csv", "--format", "json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["records_in"], 802);
}

#[test]
fn a_second_run_stands_by_and_goes_on_when_the_first_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("one.csv"), "event_time,symbol,seq,kind,price,size\n").unwrap();
    let log = at.join("first.log");
    let mut first =
        marea(at, &["run", "--listen", "127.0.0.1:0"]).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let holds = "store marea.db: holds a run already, up to epoch ";
    let started = Instant::now();
    while !std::fs::read_to_string(&log).unwrap().contains("running") {
        assert!(started.elapsed() < Duration::from_secs(60), "not running");
        std::thread::sleep(Duration::from_millis(20));
    }
    while !run(at, &["replay", "one.csv", "--store", "marea.db"]).2.contains(holds) {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing committed");
        std::thread::sleep(Duration::from_millis(100));
    }

    // Everything that refuses is said at once, and the settings whatever is wrong.
    std::fs::write(at.join("broken.toml"), "[core\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let lines = |args: &[&str]| {
        let (code, stdout, stderr) = run(at, args);
        assert_eq!(code, 2, "{stderr}");
        (stdout, stderr.lines().map(ToOwned::to_owned).collect::<Vec<_>>())
    };
    let (_, errors) = lines(&["run", "--live", "broken.toml", "--listen", &address]);
    assert_eq!(errors.len(), 2, "{errors:?}");
    for (error, part) in errors.iter().zip(["error: broken.toml:1:", "is in use"]) {
        assert!(error.contains(part), "{error}");
    }
    std::fs::write(at.join("bad.parquet"), "PAR1 and nothing else").unwrap();
    let (_, errors) = lines(&["replay", "bad.parquet", "--live", "broken.toml", "--store", "marea.db"]);
    assert_eq!(errors.len(), 3, "{errors:?}");
    let (settings, errors) = lines(&["check", "--live", "broken.toml"]);
    assert!(settings.contains("pipeline.workers") && settings.contains("cannot be read"), "{settings}");
    assert_eq!(errors.len(), 1, "{errors:?}");

    let log = at.join("second.log");
    let mut second =
        marea(at, &["run", "--listen", "127.0.0.1:0"]).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let wait_for = |part: &str, most: Duration| {
        let started = Instant::now();
        while !std::fs::read_to_string(&log).unwrap().contains(part) {
            assert!(started.elapsed() < most, "{part}: {}", std::fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for("another process has it: standing by", Duration::from_secs(60));
    // It leaves the first one alone.
    std::thread::sleep(Duration::from_secs(1));
    assert!(first.try_wait().unwrap().is_none());
    first.kill().unwrap();
    first.wait().unwrap();
    wait_for("going on from the store", Duration::from_secs(5));
    wait_for("read again what had not sealed", Duration::from_secs(60));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("recomputed otherwise"), "{text}");
    terminate(second.id());
    let status = second.wait().unwrap();
    assert!(status.success(), "{status}");

    // Another market is not this one gone on.
    let (_, errors) = lines(&["run", "--listen", "127.0.0.1:0", "--config", "other.toml"]);
    assert!(errors[0].contains("other.toml"), "{errors:?}");
    std::fs::write(at.join("other.toml"), "[source]\nseed = 2\n").unwrap();
    let (_, errors) = lines(&["run", "--listen", "127.0.0.1:0", "--config", "other.toml"]);
    assert!(errors[0].contains("the store holds a run of another synthetic market"), "{errors:?}");
    std::fs::write(at.join("other.toml"), "[source]\nkind = 'file'\npaths = ['one.csv']\n").unwrap();
    let (_, errors) = lines(&["run", "--listen", "127.0.0.1:0", "--config", "other.toml"]);
    assert!(errors[0].contains("the store holds a run that has read synthetic"), "{errors:?}");
}

#[test]
fn a_standby_that_is_told_to_end_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let start = |name: &str| {
        let log = std::fs::File::create(at.join(name)).unwrap();
        marea(at, &["run", "--listen", "127.0.0.1:0"]).stderr(log).spawn().unwrap()
    };
    let wait_for = |name: &str, part: &str| {
        let started = Instant::now();
        while !std::fs::read_to_string(at.join(name)).unwrap().contains(part) {
            assert!(started.elapsed() < Duration::from_secs(60), "{name}: {part}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let mut first = start("first.log");
    wait_for("first.log", "running");
    let mut second = start("second.log");
    wait_for("second.log", "standing by");
    terminate(second.id());
    let status = second.wait().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(status.success(), "{status}: {}", std::fs::read_to_string(at.join("second.log")).unwrap());
}

/// What stands was computed with them: another base timeframe, scale or price source cannot go on with it.
#[test]
fn a_run_does_not_go_on_with_other_bars_than_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ticks = ticks(at);
    let (code, _, stderr) = run(at, &["replay", &ticks, "--live", "live.toml", "--store", "marea.db"]);
    assert_eq!(code, 0, "{stderr}");
    let configure = |timeframes: &str| {
        let text = format!("[source]\nkind = 'file'\npaths = ['{ticks}']\n[pipeline]\ntimeframes = [{timeframes}]\n");
        std::fs::write(at.join("marea.toml"), text).unwrap();
    };
    let go_on = || {
        let until = ["--until", "2026-01-05T20:00:00Z", "--clock", "event"];
        run(
            at,
            &[&["run", "--live", "live.toml", "--store", "marea.db", "--listen", "127.0.0.1:0"][..], &until].concat(),
        )
    };
    let (all, live) = ("'1s','1m','5m','1h'", std::fs::read_to_string(at.join("live.toml")).unwrap());
    configure("'1m','5m','1h'");
    let (code, _, stderr) = go_on();
    assert_eq!(code, 2, "{stderr}");
    let expected =
        "its smallest bars are of 1s, and pipeline.timeframes begins with 1m: begin with 1s as before, or start";
    assert!(stderr.contains(expected), "{stderr}");
    configure(all);
    for (from, to, expected) in [
        ("scale = 4", "scale = 5", "/marea/instruments/UP: scale is 5, and the store was computed with 4: set it back"),
        (
            "scale = 4",
            "scale = 4\nprice_source = 'mid'",
            "UP: price_source is \"mid\", and the store was computed with \"last\"",
        ),
        (
            "[instruments.UP]",
            "[instruments.default]\nscale = 3\n[instruments.UP]",
            "default: scale is 3, and the store was",
        ),
    ] {
        std::fs::write(at.join("live.toml"), live.replace(from, to)).unwrap();
        let (code, _, stderr) = go_on();
        assert_eq!(code, 2, "{to}: {stderr}");
        assert!(stderr.contains(expected), "{to}: {stderr}");
    }
    std::fs::write(at.join("live.toml"), live.replace("tick_value = 2", "tick_value = 3")).unwrap();
    let (code, _, stderr) = go_on();
    assert_eq!(code, 0, "{stderr}");
}

/// What a standby knew of policies when it began to wait must not come back when it takes over.
#[test]
fn a_standby_takes_over_with_the_policies_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let live = |enabled: bool| {
        let text = marea_sources::synthetic::LIVE_CONFIG
            .replace("trading_enabled = true", &format!("trading_enabled = {enabled}"));
        std::fs::write(at.join("new.toml"), text).unwrap();
        std::fs::rename(at.join("new.toml"), at.join("live.toml")).unwrap();
    };
    live(true);
    let start = |name: &str| {
        let log = std::fs::File::create(at.join(name)).unwrap();
        let args = ["run", "--listen", "127.0.0.1:0", "--live", "live.toml"];
        marea(at, &args).stderr(log).spawn().unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let switches = || -> Vec<String> {
        let events = runtime
            .block_on(async { marea_sinks::store::Reader::open(at.join("marea.db")).await?.config_events().await });
        let value = |event| match event {
            ConfigUpdate::Put { key, value, .. } if key.ends_with("/trading_enabled") => Some(value),
            _ => None,
        };
        events.unwrap_or_default().into_iter().filter_map(value).collect()
    };
    let wait_for = |what: &str, is_so: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !is_so() {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let says = |name: &str, part: &str| std::fs::read_to_string(at.join(name)).unwrap().contains(part);
    let mut first = start("first.log");
    wait_for("begun", &|| switches() == ["true"]);
    let mut second = start("second.log");
    wait_for("standing by", &|| says("second.log", "standing by"));
    live(false);
    wait_for("killed", &|| switches() == ["true", "false"]);
    first.kill().unwrap();
    first.wait().unwrap();
    wait_for("taken over", &|| says("second.log", "read again what had not sealed"));
    std::thread::sleep(Duration::from_secs(1));
    terminate(second.id());
    assert!(second.wait().unwrap().success());
    assert_eq!(switches(), ["true", "false"], "the kill switch was never lifted");
}

fn terminate(process: u32) {
    assert!(Command::new("kill").args(["-TERM", &process.to_string()]).status().unwrap().success());
}

trait SumI64 {
    fn sum_i64(self) -> i64;
}

impl<'a, I: Iterator<Item = &'a Value>> SumI64 for I {
    fn sum_i64(self) -> i64 {
        self.filter_map(Value::as_i64).sum()
    }
}

#[test]
fn the_demo_serves_explains_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = marea(folder.path(), &["demo", "--listen", "127.0.0.1:0", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(demo.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    let said: Value = serde_json::from_str(&first).unwrap();
    let page = said["page"].as_str().unwrap();
    let url = http::Url::parse(page).unwrap();
    let get = |path: &str| http::get(&url, path).ok().and_then(|answer| answer.ok().cloned());
    let started = Instant::now();
    let ready = || get("/ready").is_some() && get("/api/v1/recommendations/EURUSD/latest").is_some();
    while !ready() {
        assert!(started.elapsed() < Duration::from_secs(60), "not ready");
        std::thread::sleep(Duration::from_millis(100));
    }
    let (code, text, stderr) = run(folder.path(), &["explain", "EURUSD", "--account", "M1", "--url", page]);
    assert_eq!(code, 0, "{stderr}");
    assert!(text.contains("Verdict for M1: ") && text.contains("measured at "), "{text}");

    let store = said["store"].as_str().unwrap();
    assert!(Path::new(store).exists());
    terminate(demo.id());
    let asked = Instant::now();
    let status = demo.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(!Path::new(store).exists(), "its folder is gone with it");
}

#[test]
fn completions_are_scripts() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, part) in [("bash", "complete -F _marea"), ("zsh", "#compdef marea"), ("fish", "complete -c marea")] {
        let (code, stdout, _) = run(folder.path(), &["completions", shell]);
        assert!(code == 0 && stdout.contains(part), "{shell}");
    }
}

/// What an older logic is said to have computed is refused, compared and taken over; then it stands as a fresh run's.
#[test]
fn a_store_of_another_logic_is_computed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let ticks = ticks(at);
    for store in ["marea.db", "fresh.db"] {
        let (code, _, stderr) = run(at, &["replay", &ticks, "--live", "live.toml", "--store", store]);
        assert_eq!(code, 0, "{stderr}");
    }
    std::fs::write(at.join("marea.toml"), format!("[source]\nkind = \"file\"\npaths = [{ticks:?}]\n")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sql = |sql: String| -> Vec<String> {
        runtime.block_on(async {
            let options = sqlx::sqlite::SqliteConnectOptions::new().filename(at.join("marea.db"));
            let mut store = sqlx::ConnectOptions::connect(&options).await.unwrap();
            let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(&mut store).await.unwrap();
            rows.iter().map(|row| sqlx::Row::get_unchecked::<String, _>(row, 0)).collect()
        })
    };
    let alter = "UPDATE pipeline SET logic_version = 0; \
                 UPDATE trades SET pnl = pnl + 1 WHERE entry_time = (SELECT min(entry_time) FROM trades); \
                 DELETE FROM backtest_metrics WHERE strategy = 'cross' AND symbol = 'UP'; \
                 INSERT INTO indicators SELECT symbol, timeframe, open_time, 'old', value, epoch FROM indicators LIMIT 1; \
                 UPDATE recommendations SET payload = replace(payload, '\"status\"', '\"state\"') WHERE symbol = 'UP'; \
                 UPDATE verdicts SET payload = replace(payload, '\"allow\"', '\"allowed\"')";
    let counted = |table: &str| sql(format!("SELECT count(*) || '' FROM {table}")).remove(0).parse::<i64>().unwrap();
    let metrics = counted("backtest_metrics WHERE strategy = 'cross' AND symbol = 'UP'");
    let (verdicts, audit) = (counted("verdicts"), counted("audit"));
    let trades = counted("trades WHERE entry_time = (SELECT min(entry_time) FROM trades)");
    sql(alter.to_owned());

    let (code, _, stderr) = run(at, &["run", "--listen", "127.0.0.1:0", "--live", "live.toml"]);
    assert_eq!(code, 2);
    let refused =
        "computed by logic version 0, this marea computes version 1: `marea migrate --rebuild` computes it anew";
    assert!(stderr.contains(refused), "{stderr}");

    let rebuild = |swap: &[&str]| -> Value {
        let (code, stdout, stderr) = run(at, &[&["migrate", "--rebuild", "--format", "json"], swap].concat());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let tables = serde_json::json!({
        "backtest_metrics": { "only_in_store": 0, "only_anew": metrics, "changed": 0 },
        "indicators": { "only_in_store": 1, "only_anew": 0, "changed": 0 },
        "recommendations": { "only_in_store": 0, "only_anew": 0, "changed": 1 },
        "trades": { "only_in_store": 0, "only_anew": 0, "changed": trades },
        "verdicts": { "only_in_store": 0, "only_anew": 0, "changed": verdicts },
    });
    for _ in 0..2 {
        let report = rebuild(&[]);
        assert_eq!((&report["tables"], &report["kept"]), (&tables, &Value::Null), "{report:#}");
        assert_eq!(report["logic_version"], serde_json::json!({ "store": 0, "marea": 1 }));
    }
    let (_, text, _) = run(at, &["migrate", "--rebuild"]);
    assert!(text.contains("no row was changed: `marea migrate --rebuild --swap` takes it over"), "{text}");
    let report = rebuild(&["--swap"]);
    assert_eq!((&report["tables"], &report["kept"]), (&tables, &Value::from("marea.db.logic-0")), "{report:#}");
    assert_eq!(rebuild(&[])["differences"], 0);
    assert_eq!(counted("audit"), audit + 1 + verdicts, "a row for each that the audit is about");

    for table in ["bars", "indicators", "trades", "backtest_metrics", "recommendations", "verdicts"] {
        let written = "('epoch', 'seq', 'generation')";
        let columns =
            format!("SELECT group_concat(name) FROM pragma_table_info('{table}') WHERE name NOT IN {written}");
        let columns = sql(columns).remove(0);
        let differing = sql(format!(
            "ATTACH '{}' AS fresh; SELECT (SELECT count(*) FROM (SELECT {columns} FROM {table} EXCEPT \
             SELECT {columns} FROM fresh.{table})) + (SELECT count(*) FROM (SELECT {columns} FROM fresh.{table} EXCEPT \
             SELECT {columns} FROM {table})) || ''",
            at.join("fresh.db").display()
        ));
        assert_eq!(differing, ["0"], "{table}");
    }
}

//! What all of these tests need: a market in files, the program as a child process, and its dumps.

use marea::http;
use marea_model::codec::{csv, json};
use marea_model::time::{MILLI, SECOND, format_rfc3339};
use marea_model::{Nanos, Tick};
use marea_sources::synthetic::{self, Emitted, Pace, Synthetic};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A market in a folder: `ticks.csv` with late ticks, repeats, busts and corrections, `accounts.jsonl`, `live.toml`.
pub(crate) struct Market {
    pub(crate) folder: tempfile::TempDir,
    /// Where `now` is to end.
    pub(crate) until: String,
    pub(crate) ticks: usize,
}

pub(crate) fn market(ticks: u64) -> Market {
    let folder = tempfile::tempdir().unwrap();
    let config = Synthetic { pace: Pace::Full, limit: Some(ticks), rate: 20.0, ..Synthetic::default() };
    let instruments = synthetic::instruments();
    let (mut records, mut lines, mut last): (Vec<Tick>, Vec<u8>, Nanos) = (Vec::new(), Vec::new(), 0);
    for (_, what) in synthetic::Market::new(&config, &instruments).unwrap() {
        match what {
            Emitted::Tick(tick) => {
                last = last.max(tick.event_time);
                records.push(tick);
            }
            Emitted::Account(snapshot) => {
                last = last.max(snapshot.event_time);
                lines.extend(json::encode_account(&snapshot));
                lines.push(b'\n');
            }
        }
        if records.len() as u64 >= ticks {
            break;
        }
    }
    let at = folder.path();
    std::fs::write(at.join("ticks.csv"), csv::encode(&records, &instruments)).unwrap();
    std::fs::write(at.join("accounts.jsonl"), lines).unwrap();
    std::fs::write(at.join("live.toml"), synthetic::LIVE_CONFIG).unwrap();
    let until = format_rfc3339((last / SECOND + 7_200) * SECOND / MILLI * MILLI);
    Market { folder, until, ticks: records.len() }
}

impl Market {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The dump of a replay of the files: what every other way must give.
    pub(crate) fn expected(&self) -> Dump {
        let args = ["replay", "ticks.csv", "--live", "live.toml", "--accounts", "accounts.jsonl"];
        let args = [&args[..], &["--until", &self.until, "--dump", "expected", "--format", "json"]].concat();
        let summary = self.run(&args, &[]);
        assert_eq!(summary["balanced"], true);
        assert!(summary["dead_letters"].get("late").is_none(), "all records lie within the horizon: {summary}");
        self.dump("expected")
    }

    pub(crate) fn marea(&self, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_marea"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAREA__")) {
            command.env_remove(name);
        }
        command.current_dir(self.path()).args(args).envs(env.iter().copied());
        command
    }

    /// Runs to a good end, and reads what it says.
    pub(crate) fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Value {
        let Output { status, stdout, stderr } = self.marea(args, env).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{args:?}: {status}\n{stdout}\n{stderr}");
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}\n{stdout}\n{stderr}"))
    }

    pub(crate) fn dump(&self, folder: &str) -> Dump {
        let files = std::fs::read_dir(self.path().join(folder)).unwrap().map(Result::unwrap);
        files.map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap())).collect()
    }

    /// Starts it in the background; it logs into a file.
    pub(crate) fn start(&self, name: &str, args: &[&str], env: &[(&str, &str)]) -> Running {
        let log = self.path().join(format!("{name}.log"));
        let log_file = std::fs::File::create(&log).unwrap();
        let child = self.marea(args, env).stdout(Stdio::null()).stderr(log_file).spawn().unwrap();
        Running { child, log }
    }
}

/// A test that fails shows what its processes said last.
impl Drop for Market {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for file in std::fs::read_dir(self.path()).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "log") {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(40)..].join("\n");
                println!("---- {}\n{last}", file.path().display());
            }
        }
    }
}

/// A process in the background; gone with this.
pub(crate) struct Running {
    child: Child,
    log: std::path::PathBuf,
}

impl Running {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Where its feed is, once it says so.
    pub(crate) fn feed(&mut self) -> Feed {
        let started = Instant::now();
        loop {
            assert!(self.child.try_wait().unwrap().is_none(), "ended:\n{}", self.log());
            assert!(started.elapsed() < Duration::from_secs(60), "no feed:\n{}", self.log());
            let log = self.log();
            let last = log.lines().rev().find_map(|line| line.split("page=").nth(1));
            if let Some(url) = last.and_then(|rest| rest.split_whitespace().next()) {
                let address = url.trim_start_matches("http://").trim_end_matches('/');
                return Feed { url: http::Url::parse(url).unwrap(), address: address.to_owned() };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// It stands still until it is resumed.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended by itself, not well; gives its log.
    pub(crate) fn wait_for_failure(mut self) -> String {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(1), "{status}:\n{}", self.log());
                return self.log();
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it goes on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself, well.
    pub(crate) fn wait(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// Asks it to end, and waits until it has, well.
    pub(crate) fn terminate(mut self) {
        self.signal("-TERM");
        let asked = Instant::now();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The feed of a process.
pub(crate) struct Feed {
    url: http::Url,
    pub(crate) address: String,
}

impl Feed {
    fn get(&self, path: &str) -> Option<Value> {
        http::get(&self.url, path).ok().and_then(|answer| answer.ok().cloned())
    }

    /// Every verdict that stands.
    pub(crate) fn all_verdicts(&self) -> Vec<Value> {
        let all = self.get("/api/v1/verdicts").and_then(|v| v["verdicts"].as_array().cloned());
        all.unwrap_or_default().into_iter().map(|mut envelope| envelope["verdict"].take()).collect()
    }

    /// What Prometheus scrapes, after a head.
    pub(crate) fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let address = &self.address;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// One of its metrics.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        self.metrics()?.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    pub(crate) fn wait_for(&self, what: &str, most: Duration, mut is_so: impl FnMut(&Feed) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < most, "{what}: not within {most:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) type Dump = BTreeMap<String, Vec<u8>>;

pub(crate) fn assert_same(expected: &Dump, got: &Dump, what: &str) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{what}");
    assert!(expected.values().map(Vec::len).sum::<usize>() > 100_000, "an empty dump shows nothing");
    for (table, bytes) in expected {
        if *bytes == got[table] {
            continue;
        }
        let lines = |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(ToOwned::to_owned).collect::<Vec<_>>();
        let (a, b) = (lines(bytes), lines(&got[table]));
        let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        panic!(
            "{what}: {table} differs at line {first} of {} and {}:\n  {:?}\n  {:?}",
            a.len(),
            b.len(),
            a.get(first),
            b.get(first)
        );
    }
}

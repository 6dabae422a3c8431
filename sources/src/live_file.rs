//! The live configuration as a watched TOML file, with the same keys and text values as the etcd tree.
//!
//! | in the file | key | value |
//! |---|---|---|
//! | `[core] master_accounts = ["M1", "M2"]` | `/echo/core/master_accounts` | `M1,M2` |
//! | `[policy.M1] max_spread = 20` | `/echo/policy/M1/max_spread` | `20` |
//! | `[policy."*"] enabled = true` | `/echo/policy/*/enabled` | `true` |
//! | `[windows.M1.EURUSD] start_utc = 2026-01-05T13:00:00Z` | `/echo/windows/M1/EURUSD/start_utc` | `2026-01-05T13:00:00Z` |
//! | `[windows.M1."EUR/USD".nfp] start_utc = …` | `/echo/windows/M1/EUR%2FUSD/nfp/start_utc` | |
//! | `[strategies.cross] kind = "ema_cross"` | `/marea/strategies/cross` | `{"kind":"ema_cross"}` |
//! | `[instruments.default] scale = 5` | `/marea/instruments/default` | `{"scale":5}` |
//!
//! Names in keys are percent-encoded. Any other table becomes keys below `/echo` likewise: what a key may be called
//! and what a value may say is judged by the reader of the tree and not here, so that a bad value blocks what it
//! touches and no more. Numbers keep the digits that they were written with; in JSON, NaN and infinities become texts,
//! which no reader takes for a number. A time without a zone stays one, and is refused later.
//!
//! **Watching.** A version of the file is a revision, and all of its changes are one [`Input::Config`]. Order: as
//! written. Delivery: a version that stands for 5 ms, or for as long as changes have come for 20 ms; of faster ones
//! the last. (A program that writes this file had better write another one and rename it: then nobody ever reads
//! half of it.) A file that cannot be read as TOML, or is gone, leaves the tree as it was and sends
//! [`ConfigUpdate::Stale`] at once; mended, the difference to the last good version follows. The operating system's
//! notice is only a hint: the file is read again every 500 ms.

use crate::{Input, Sender, Stop, send};
use crossbeam_channel::TrySendError;
use marea_model::ConfigUpdate;
use marea_model::live::encode_segment;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use toml::de::{DeTable, DeValue};

/// A larger file is no configuration.
const MAX_BYTES: u64 = 16 << 20;
/// A version stands when it reads the same after this time …
const QUIET: Duration = Duration::from_millis(5);
/// … or when it has been changing for this long.
const SETTLE: Duration = Duration::from_millis(15);
/// How often the file is read without a notice.
const RECHECK: Duration = Duration::from_millis(500);
/// How often a waiting watch looks whether it is stopped.
const STEP: Duration = Duration::from_millis(50);

/// Why the file says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiveFileError {
    /// It cannot be read.
    #[error("{}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        cause: String,
    },
    /// It is no TOML.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
}

/// Reads the file as keys and values of the tree.
pub fn load(path: &Path) -> Result<BTreeMap<String, String>, LiveFileError> {
    parse(path, &read(path)?)
}

/// Reads the bytes of a file as keys and values of the tree; `path` only names it in errors.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, LiveFileError> {
    let syntax = |valid: &str, message: String| {
        let start = valid.rfind('\n').map_or(0, |newline| newline + 1);
        let line = 1 + valid.bytes().filter(|b| *b == b'\n').count();
        LiveFileError::Syntax { path: path.to_owned(), line, column: 1 + valid[start..].chars().count(), message }
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            return Err(syntax(valid, "not UTF-8".to_owned()));
        }
    };
    let document = DeTable::parse(text).map_err(|error| {
        let start = error.span().map_or(text.len(), |span| text.floor_char_boundary(span.start));
        syntax(&text[..start], error.message().replace('\n', " "))
    })?;
    let mut tree = BTreeMap::new();
    for (name, value) in document.get_ref() {
        let name = name.get_ref().as_ref();
        match (name, value.get_ref()) {
            ("strategies" | "instruments", DeValue::Table(entries)) => {
                for (id, value) in entries {
                    tree.insert(format!("/marea/{name}/{}", part(id.get_ref())), json(value.get_ref()));
                }
            }
            ("strategies" | "instruments", value) => {
                tree.insert(format!("/marea/{name}"), json(value));
            }
            (_, value) => flatten(&mut tree, &format!("/echo/{}", part(name)), value),
        }
    }
    Ok(tree)
}

/// Every leaf below `value` as a key below `key`.
fn flatten(tree: &mut BTreeMap<String, String>, key: &str, value: &DeValue<'_>) {
    let DeValue::Table(table) = value else {
        tree.insert(key.to_owned(), text(value));
        return;
    };
    for (name, value) in table {
        flatten(tree, &format!("{key}/{}", part(name.get_ref())), value.get_ref());
    }
}

/// A name as one part of a key; `*` means all.
fn part(name: &str) -> Cow<'_, str> {
    if name == "*" { Cow::Borrowed(name) } else { Cow::Owned(encode_segment(name)) }
}

/// A number as it was written, in decimal.
fn integer(value: &toml::de::DeInteger<'_>) -> String {
    i128::from_str_radix(value.as_str(), value.radix()).map_or_else(|_| value.to_string(), |n| n.to_string())
}

fn float(value: &toml::de::DeFloat<'_>) -> String {
    value.as_str().trim_start_matches('+').to_owned()
}

/// RFC 3339 where it has a zone; TOML lets the seconds out.
fn datetime(value: &toml::value::Datetime) -> String {
    let mut value = *value;
    if let Some(time) = &mut value.time {
        time.second.get_or_insert(0);
    }
    value.to_string()
}

/// The value of a key.
fn text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => integer(number),
        DeValue::Float(number) => float(number),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => datetime(time),
        DeValue::Array(values) => values.iter().map(|v| text(v.get_ref())).collect::<Vec<_>>().join(","),
        DeValue::Table(_) => json(value),
    }
}

/// The value as JSON, keys in order.
fn json(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => integer(number),
        DeValue::Float(number) if !number.as_str().contains(['n', 'i']) => float(number),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Array(values) => {
            format!("[{}]", values.iter().map(|v| json(v.get_ref())).collect::<Vec<_>>().join(","))
        }
        DeValue::Table(table) => {
            let entries =
                table.iter().map(|(name, value)| format!("{}:{}", quote(name.get_ref()), json(value.get_ref())));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        DeValue::String(_) | DeValue::Float(_) | DeValue::Datetime(_) => quote(&text(value)),
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What changed from `old` to `new`, ordered by key.
pub fn diff(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>, revision: u64) -> Vec<ConfigUpdate> {
    let mut updates: Vec<(&String, Option<&String>)> =
        new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, value)| (key, Some(value))).collect();
    updates.extend(old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key, None)));
    updates.sort_unstable();
    let update = |(key, value): (&String, Option<&String>)| match value {
        Some(value) => ConfigUpdate::Put { key: key.clone(), value: value.clone(), revision },
        None => ConfigUpdate::Delete { key: key.clone(), revision },
    };
    updates.into_iter().map(update).collect()
}

/// What has been sent of a file, and what its next version means.
#[derive(Debug, Default)]
struct State {
    known: BTreeMap<String, String>,
    revision: u64,
    stale: bool,
}

impl State {
    /// What to send now that the file says this.
    fn next(&mut self, version: Result<BTreeMap<String, String>, LiveFileError>) -> Vec<ConfigUpdate> {
        match version {
            Ok(tree) => {
                let mut updates = Vec::new();
                if std::mem::take(&mut self.stale) {
                    updates.push(ConfigUpdate::Stale(false));
                }
                if tree != self.known {
                    self.revision += 1;
                    updates.extend(diff(&self.known, &tree, self.revision));
                    self.known = tree;
                }
                updates
            }
            Err(_) if self.stale => Vec::new(),
            Err(_) => {
                self.stale = true;
                vec![ConfigUpdate::Stale(true)]
            }
        }
    }
}

/// The file as it stands, or `None` if it still says what it said `last`.
fn settled(path: &Path, last: Option<&Content>) -> Option<Content> {
    let mut content = read(path);
    if last == Some(&content) {
        return None;
    }
    let changed = Instant::now();
    while changed.elapsed() < SETTLE {
        std::thread::sleep(QUIET);
        let again = read(path);
        if again == content {
            break;
        }
        content = again;
    }
    (last != Some(&content)).then_some(content)
}

type Content = Result<Vec<u8>, LiveFileError>;

fn read(path: &Path) -> Result<Vec<u8>, LiveFileError> {
    let unreadable = |cause: String| LiveFileError::Unreadable { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(unreadable(format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(bytes)
}

/// Watches a file of which nothing is known: its first version is revision 1. Blocks until stopped.
pub fn watch(path: &Path, out: &Sender, stop: &Stop) {
    watch_from(path, BTreeMap::new(), 0, false, out, stop);
}

/// Watches a file of which `known` has already been applied as `revision`; `stale`: and nobody may
/// enter by it until the file can be read. Blocks until stopped.
pub fn watch_from(path: &Path, known: BTreeMap<String, String>, revision: u64, stale: bool, out: &Sender, stop: &Stop) {
    let (wake, woken) = crossbeam_channel::bounded::<()>(1);
    // Dropped at the end, and with it its thread. Without it the file is still read every RECHECK.
    let _watcher = match watcher(path, wake.clone()) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no notice of changes: looking every {RECHECK:?}");
            None
        }
    };
    let mut state = State { known, revision, stale };
    let mut last = None;
    loop {
        if let Some(content) = settled(path, last.as_ref()) {
            let version = content.as_ref().map_err(Clone::clone).and_then(|bytes| parse(path, bytes));
            if let Err(error) = &version {
                tracing::error!(%error, "the live configuration cannot be read: entries are blocked until it is mended");
            }
            let updates = state.next(version);
            if !updates.is_empty() {
                tracing::info!(path = %path.display(), revision = state.revision, changes = updates.len(), "live configuration");
                if send(out, stop, Input::Config(updates)).is_err() {
                    return;
                }
            }
            last = Some(content);
        }
        let read_at = Instant::now();
        let noticed = loop {
            if stop.is_stopped() {
                return;
            }
            // `wake` lives as long as this function: an error is always the end of the step.
            match woken.recv_timeout(STEP) {
                Ok(()) => break true,
                Err(_) if read_at.elapsed() >= RECHECK => break false,
                Err(_) => {}
            }
        };
        if noticed {
            // Other files of the folder may change all the time.
            std::thread::sleep(QUIET);
        }
    }
}

/// Wakes at every change in the file's folder: an editor's rename, or a link that is turned, names other files.
fn watcher(path: &Path, wake: crossbeam_channel::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event too: without this, every look at the file would wake the next one.
        let looked_at = matches!(
            &event,
            Ok(event) if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
        );
        if !looked_at && let Err(TrySendError::Disconnected(())) = wake.try_send(()) {
            tracing::debug!("a notice after the end of the watch");
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(toml: &str) -> BTreeMap<String, String> {
        parse(Path::new("live.toml"), toml.as_bytes()).unwrap()
    }

    fn put(key: &str, value: &str, revision: u64) -> ConfigUpdate {
        ConfigUpdate::Put { key: key.into(), value: value.into(), revision }
    }

    fn delete(key: &str, revision: u64) -> ConfigUpdate {
        ConfigUpdate::Delete { key: key.into(), revision }
    }

    #[test]
    fn a_file_becomes_the_keys_and_texts_of_the_tree() {
        let toml = r#"
            [core]
            master_accounts = ["M1", "M2"]
            slave_accounts = []
            trading_enabled = true
            [policy.M1]
            max_spread = 2_0
            risk_per_trade = 0.10
            max_slippage = nan
            max_delay_ms = 0x10
            sl_offset = +1.5
            tp_offset = "5,0"
            [policy."*"]
            max_spread = -7
            [windows.M1.EURUSD]
            start_utc = 2026-01-05T13:00Z
            end_utc = 2026-01-05 15:00:00.5+01:00
            [windows.M1."EUR/USD".nfp]
            start_utc = 2026-01-05T13:00:00
            [windows."*"."*"]
            active = true
            [strategies.cross]
            kind = "ema_cross"
            fast = 5
            weight = 1.50
            stop_loss = inf
            symbols = ["EURUSD", "A\"B"]
            [instruments.default]
            scale = 5
            [instruments."BTC/USD"]
            tick_size = "0.01"
            allow_negative = false
        "#;
        let expected = [
            ("/echo/core/master_accounts", "M1,M2"),
            ("/echo/core/slave_accounts", ""),
            ("/echo/core/trading_enabled", "true"),
            ("/echo/policy/*/max_spread", "-7"),
            ("/echo/policy/M1/max_delay_ms", "16"),
            ("/echo/policy/M1/max_slippage", "nan"),
            ("/echo/policy/M1/max_spread", "20"),
            ("/echo/policy/M1/risk_per_trade", "0.10"),
            ("/echo/policy/M1/sl_offset", "1.5"),
            ("/echo/policy/M1/tp_offset", "5,0"),
            ("/echo/windows/*/*/active", "true"),
            ("/echo/windows/M1/EUR%2FUSD/nfp/start_utc", "2026-01-05T13:00:00"),
            ("/echo/windows/M1/EURUSD/end_utc", "2026-01-05T15:00:00.5+01:00"),
            ("/echo/windows/M1/EURUSD/start_utc", "2026-01-05T13:00:00Z"),
            ("/marea/instruments/BTC%2FUSD", r#"{"allow_negative":false,"tick_size":"0.01"}"#),
            ("/marea/instruments/default", r#"{"scale":5}"#),
            (
                "/marea/strategies/cross",
                r#"{"fast":5,"kind":"ema_cross","stop_loss":"inf","symbols":["EURUSD","A\"B"],"weight":1.50}"#,
            ),
        ];
        let found = tree(toml);
        let found: Vec<(&str, &str)> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_ours_becomes_a_key_that_its_reader_refuses() {
        let found = tree("top = 1\nstrategies = 5\n[polcy.M1]\nmax_spread = 1\n[policy.'A/B%']\nenabled = false\n");
        let keys: Vec<&str> = found.keys().map(String::as_str).collect();
        let expected = ["/echo/polcy/M1/max_spread", "/echo/policy/A%2FB%25/enabled", "/echo/top", "/marea/strategies"];
        assert_eq!(keys, expected);
    }

    #[test]
    fn errors_name_line_and_column() {
        let cases: &[(&[u8], &str)] = &[
            (b"[core]\nmaster_accounts = \n", "live.toml:2:19: "),
            (b"[core]\na = 1\na = 2\n", "live.toml:3:1: duplicate key"),
            (b"[policy.M1]\nmax_spread = 5,0\n", "live.toml:2:15: "),
            ("# \u{e9}\nx = \"\u{e9}\" y\n".as_bytes(), "live.toml:2:9: "),
            (b"x = 1\ny = \"\xff\"\n", "live.toml:2:6: not UTF-8"),
            (b"[core\n", "live.toml:1:6: "),
        ];
        for (bytes, expected) in cases {
            let error = parse(Path::new("live.toml"), bytes).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error:?} should start with {expected:?}");
        }
        let gone = load(Path::new("no/such/live.toml")).unwrap_err().to_string();
        assert!(gone.starts_with("no/such/live.toml: No such file"), "{gone}");
    }

    #[test]
    fn a_diff_is_what_changed_by_key() {
        let (old, new) = (tree("[a]\nx = 1\ny = 2\nz = 3"), tree("[a]\nw = 0\nx = 1\ny = 5"));
        assert_eq!(diff(&old, &new, 7), [put("/echo/a/w", "0", 7), put("/echo/a/y", "5", 7), delete("/echo/a/z", 7)]);
        assert_eq!(diff(&new, &new, 8), []);
    }

    #[test]
    fn a_version_that_cannot_be_read_is_stale_once_and_changes_nothing() {
        let broken = || parse(Path::new("f"), b"=");
        let mut state = State::default();
        assert_eq!(state.next(Ok(tree("[a]\nx = 1"))), [put("/echo/a/x", "1", 1)]);
        assert_eq!(state.next(Ok(tree("[a]\nx = 1"))), []);
        assert_eq!(state.next(broken()), [ConfigUpdate::Stale(true)]);
        assert_eq!(state.next(broken()), []);
        assert_eq!(state.next(Ok(tree("[a]\nx = 2"))), [ConfigUpdate::Stale(false), put("/echo/a/x", "2", 2)]);
        assert_eq!(state.next(broken()), [ConfigUpdate::Stale(true)]);
        assert_eq!(state.next(Ok(tree("[a]\nx = 2"))), [ConfigUpdate::Stale(false)]);
    }

    /// Writes the file so that nobody reads half of it.
    fn replace(path: &Path, toml: &str) {
        let other = path.with_extension("swp");
        fs::write(&other, toml).unwrap();
        fs::rename(&other, path).unwrap();
    }

    /// A watched file in a folder of its own.
    struct Watched {
        folder: tempfile::TempDir,
        updates: crate::Receiver,
        stop: Stop,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Watched {
        fn new(toml: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("live.toml");
            fs::write(&path, toml).unwrap();
            let (out, updates) = crossbeam_channel::bounded(16);
            let out = Sender::from(out);
            let stop = Stop::new();
            let thread = std::thread::spawn({
                let stop = stop.clone();
                move || watch(&path, &out, &stop)
            });
            Watched { folder, updates, stop, thread: Some(thread) }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("live.toml")
        }

        /// The next revision, and how long it took.
        fn next(&self) -> (Vec<ConfigUpdate>, Duration) {
            let begun = Instant::now();
            match self.updates.recv_timeout(Duration::from_secs(10)).unwrap() {
                Input::Config(updates) => (updates, begun.elapsed()),
                other => panic!("{other:?}"),
            }
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            self.stop.stop();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn an_edit_is_seen_within_100_ms_and_only_once() {
        let watched = Watched::new("[policy.M1]\nmax_spread = 1");
        assert_eq!(watched.next().0, [put("/echo/policy/M1/max_spread", "1", 1)]);
        // The least of several, for a machine that is busy with other tests.
        let fastest = (2..7).map(|n| {
            let begun = Instant::now();
            fs::write(watched.path(), format!("[policy.M1]\nmax_spread = {n}")).unwrap();
            // A watcher may find the file between its truncation and its writing.
            while !matches!(&watched.next().0[..], [ConfigUpdate::Put { value, .. }] if *value == n.to_string()) {}
            begun.elapsed()
        });
        assert!(fastest.min().unwrap() < Duration::from_millis(100));
        replace(&watched.path(), "# only a comment\n[policy.M1]\nmax_spread = 6");
        assert!(watched.updates.recv_timeout(Duration::from_millis(700)).is_err(), "nothing changed");
    }

    #[test]
    fn an_editor_may_replace_the_file_by_rename() {
        let watched = Watched::new("[policy.M1]\nmax_spread = 1");
        watched.next();
        let fastest = (2..7).map(|revision| {
            replace(&watched.path(), &format!("[policy.M1]\nmax_spread = {revision}"));
            let (updates, took) = watched.next();
            assert_eq!(updates, [put("/echo/policy/M1/max_spread", &revision.to_string(), revision)]);
            took
        });
        assert!(fastest.min().unwrap() < Duration::from_millis(100));
    }

    #[test]
    fn a_broken_or_missing_file_is_stale_until_it_is_mended() {
        let watched = Watched::new("[policy.M1]\nmax_spread = 1");
        watched.next();
        replace(&watched.path(), "[policy.M1\nmax_spread = 2");
        assert_eq!(watched.next().0, [ConfigUpdate::Stale(true)]);
        replace(&watched.path(), "[policy.M1]\nmax_spread = 3");
        assert_eq!(watched.next().0, [ConfigUpdate::Stale(false), put("/echo/policy/M1/max_spread", "3", 2)]);
        fs::remove_file(watched.path()).unwrap();
        assert_eq!(watched.next().0, [ConfigUpdate::Stale(true)]);
        replace(&watched.path(), "[policy.M1]\nmax_spread = 3");
        assert_eq!(watched.next().0, [ConfigUpdate::Stale(false)]);
    }

    #[test]
    fn a_table_that_is_gone_deletes_its_keys() {
        let watched = Watched::new("[core]\ntrading_enabled = true\n[policy.M1]\nmax_spread = 1\nrisk_fixed = 5");
        watched.next();
        replace(&watched.path(), "[core]\ntrading_enabled = true\n");
        let gone = [delete("/echo/policy/M1/max_spread", 2), delete("/echo/policy/M1/risk_fixed", 2)];
        assert_eq!(watched.next().0, gone);
    }

    #[test]
    fn a_watch_goes_on_from_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("live.toml");
        fs::write(&path, "[a]\nx = 1\ny = 2").unwrap();
        let (out, updates) = crossbeam_channel::bounded(1);
        let out = Sender::from(out);
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| watch_from(&path, tree("[a]\nx = 1"), 4, false, &out, &stop));
            let Input::Config(first) = updates.recv_timeout(Duration::from_secs(10)).unwrap() else { panic!() };
            assert_eq!(first, [put("/echo/a/y", "2", 5)]);
            stop.stop();
        });
    }
    #[test]
    fn a_file_that_could_not_be_read_before_is_current_once_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("live.toml");
        fs::write(&path, "[a]\nx = 1").unwrap();
        let (out, updates) = crossbeam_channel::bounded(1);
        let out = Sender::from(out);
        let stop = Stop::new();
        std::thread::scope(|scope| {
            scope.spawn(|| watch_from(&path, tree("[a]\nx = 1"), 4, true, &out, &stop));
            let Input::Config(first) = updates.recv_timeout(Duration::from_secs(10)).unwrap() else { panic!() };
            assert_eq!(first, [ConfigUpdate::Stale(false)]);
            stop.stop();
        });
    }
}

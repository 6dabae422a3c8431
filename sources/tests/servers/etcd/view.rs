//! What a reader of the source holds, and the other ways to the same server: `etcdctl`, and a client of its own.

use crossbeam_channel::Receiver;
use marea_model::ConfigUpdate;
use marea_sources::etcd::{Answered, EtcdConfig, EtcdError, Snapshot, Timing, load, watch_timed};
use marea_sources::{Input, Stop};
use std::collections::BTreeMap;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than anything may take on a machine that does five things at once.
pub(super) const LONG: Duration = Duration::from_secs(40);

pub(super) fn config(endpoint: &str) -> EtcdConfig {
    EtcdConfig { endpoints: vec![endpoint.to_owned()], ..EtcdConfig::default() }
}

pub(super) fn put(key: &str, value: &str, revision: u64) -> ConfigUpdate {
    ConfigUpdate::Put { key: key.into(), value: value.into(), revision }
}

pub(super) fn delete(key: &str, revision: u64) -> ConfigUpdate {
    ConfigUpdate::Delete { key: key.into(), revision }
}

/// The tree as the updates leave it.
#[derive(Default)]
pub(super) struct View {
    pub(super) tree: BTreeMap<String, String>,
    pub(super) stale: bool,
}

impl View {
    pub(super) fn read(&mut self, updates: &[ConfigUpdate]) {
        for update in updates {
            match update.clone() {
                ConfigUpdate::Put { key, value, .. } => drop(self.tree.insert(key, value)),
                ConfigUpdate::Delete { key, .. } => assert!(self.tree.remove(&key).is_some(), "{key} was not there"),
                ConfigUpdate::Stale(stale) => {
                    assert_ne!(self.stale, stale, "said twice");
                    self.stale = stale;
                }
            }
        }
    }
}

/// A running watch.
pub(super) struct Watching {
    pub(super) view: View,
    pub(super) answered: Answered,
    input: Receiver<Input>,
    stop: Stop,
    thread: Option<JoinHandle<Result<(), EtcdError>>>,
}

impl Watching {
    pub(super) fn start(config: &EtcdConfig, timing: Timing) -> Self {
        Self::from(config, timing, load(config, &Stop::new()).unwrap())
    }

    pub(super) fn from(config: &EtcdConfig, timing: Timing, from: Snapshot) -> Self {
        let (out, input) = crossbeam_channel::bounded(64);
        let out = marea_sources::Sender::from(out);
        let (stop, answered, mut view) = (Stop::new(), Answered::new(), View::default());
        view.read(&from.updates());
        let thread = std::thread::spawn({
            let (config, stop, answered) = (config.clone(), stop.clone(), answered.clone());
            move || watch_timed(&config, &timing, from, &answered, &out, &stop)
        });
        while answered.sent().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Watching { view, answered, input, stop, thread: Some(thread) }
    }

    fn take(&mut self, input: Input) -> Vec<ConfigUpdate> {
        let Input::Config(updates) = input else { panic!("{input:?}") };
        assert!(!updates.is_empty());
        self.view.read(&updates);
        updates
    }

    /// The next that is said.
    pub(super) fn next(&mut self) -> Vec<ConfigUpdate> {
        let input = self.input.recv_timeout(LONG).expect("nothing was said");
        self.take(input)
    }

    /// What has been said already.
    pub(super) fn received(&mut self) -> Vec<ConfigUpdate> {
        let mut all = Vec::new();
        while let Ok(input) = self.input.try_recv() {
            all.extend(self.take(input));
        }
        all
    }

    /// Reads on until the view is as wished, and says how long it took.
    #[track_caller]
    pub(super) fn until(&mut self, what: &str, done: impl Fn(&View) -> bool) -> Duration {
        let begun = Instant::now();
        while !done(&self.view) {
            match self.input.recv_timeout(LONG.saturating_sub(begun.elapsed())) {
                Ok(input) => drop(self.take(input)),
                Err(_) => panic!("{what}: stale {}, tree {:?}", self.view.stale, self.view.tree),
            }
        }
        begun.elapsed()
    }

    /// Reads on until the view is what the server has, and current.
    #[track_caller]
    pub(super) fn settle(&mut self, what: &str, ctl: &Ctl) -> Duration {
        let expected = ctl.tree();
        self.until(what, |view| view.tree == expected && !view.stale)
    }

    pub(super) fn stop(mut self) {
        self.stop.stop();
        assert_eq!(self.thread.take().unwrap().join().unwrap(), Ok(()));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

/// `etcdctl`, and a client.
pub(super) struct Ctl {
    endpoint: String,
    flags: Vec<String>,
    runtime: tokio::runtime::Runtime,
    client: etcd_client::Client,
}

impl Ctl {
    pub(super) fn new(endpoint: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(etcd_client::Client::connect([endpoint], None)).unwrap();
        Ctl { endpoint: endpoint.to_owned(), flags: Vec::new(), runtime, client }
    }

    /// With more flags for `etcdctl`.
    pub(super) fn with(mut self, flags: &[&str]) -> Self {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    pub(super) fn config(&self) -> EtcdConfig {
        config(&self.endpoint)
    }

    /// Runs `etcdctl`; it must succeed.
    pub(super) fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]).args(&self.flags).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) fn put(&self, key: &str, value: &str) {
        self.run(&["put", key, value]);
    }

    pub(super) fn client_put(&self, key: &str, value: &[u8]) {
        self.runtime.block_on(self.client.clone().put(key, value, None)).unwrap();
    }

    /// Puts and deletions in one transaction; its revision.
    pub(super) fn txn(&self, changes: &[(&str, Option<&str>)]) -> u64 {
        self.try_txn(changes).unwrap()
    }

    pub(super) fn try_txn(&self, changes: &[(&str, Option<&str>)]) -> Result<u64, etcd_client::Error> {
        let operation = |(key, value): &(&str, Option<&str>)| match value {
            Some(value) => etcd_client::TxnOp::put(*key, *value, None),
            None => etcd_client::TxnOp::delete(*key, None),
        };
        let operations: Vec<_> = changes.iter().map(operation).collect();
        let mut client = self.client.clone();
        let answer = self.runtime.block_on(async {
            let txn = client.txn(etcd_client::Txn::new().and_then(operations));
            tokio::time::timeout(Duration::from_secs(5), txn).await
        });
        let answer = answer.map_err(|_| etcd_client::Error::Internal("no answer".into()))??;
        Ok(answer.header().unwrap().revision() as u64)
    }

    pub(super) fn compact(&self, revision: u64) {
        let mut client = self.client.clone();
        // A revision that is compacted already, or not yet written, is no matter.
        let _ = self
            .runtime
            .block_on(client.compact(revision as i64, Some(etcd_client::CompactionOptions::new().with_physical())));
    }

    /// How much a watch from `revision` hears in a while, without any source of ours; none if it is cancelled.
    pub(super) fn bare_watch(&self, key: &str, revision: u64, wait: Duration) -> Option<usize> {
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(revision as i64);
            let mut stream = client.watch(key, Some(options)).await.unwrap();
            let mut events = 0;
            while let Ok(Ok(Some(message))) = tokio::time::timeout(wait, stream.message()).await {
                if message.canceled() {
                    return None;
                }
                events += message.events().len();
            }
            Some(events)
        })
    }

    /// What stands below both folders, by `etcdctl`.
    pub(super) fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        for folder in ["/echo/", "/marea/"] {
            let text = self.run(&["get", "--prefix", folder]);
            let lines: Vec<&str> = text.lines().collect();
            tree.extend(lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())));
        }
        tree
    }
}

//! The writer's side, for commands: reads the tree, and writes to it in one transaction, if what it rests on still
//! stands. Blocking; every request has a limit of its own.

use super::connection::{Connection, FOLDERS, key_text, value_text, within};
use super::{EtcdConfig, EtcdError, Timing, check, runtime};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A server takes 128 operations a transaction unless told otherwise.
const MAX_OPERATIONS: usize = 128;

/// A value as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The value.
    pub value: String,
    /// Of its last modification.
    pub revision: i64,
    /// The lease that it ends with; 0 without one.
    pub lease: i64,
}

/// All keys at one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    /// The revision.
    pub revision: i64,
    /// By key.
    pub keys: BTreeMap<String, Stored>,
}

impl Tree {
    /// The keys that begin with `folder`.
    pub fn below(&self, folder: &str) -> impl Iterator<Item = (&String, &Stored)> {
        self.keys.range(folder.to_owned()..).take_while(move |(key, _)| key.starts_with(folder))
    }

    /// The greatest revision of the keys that begin with one of `folders`; 0 if there are none.
    pub fn revision_of(&self, folders: &[String]) -> i64 {
        folders.iter().flat_map(|folder| self.below(folder)).map(|(_, stored)| stored.revision).max().unwrap_or(0)
    }
}

/// What must not have changed since it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Guard {
    /// The tree's revision when it was read.
    revision: i64,
    /// No key that begins with one of these may be newer …
    folders: Vec<String>,
    /// … and these must stand as they stood; 0 is missing.
    keys: BTreeMap<String, i64>,
}

impl Guard {
    /// What stands below `folders` in `tree` must still stand so.
    pub fn new(tree: &Tree, folders: &[String]) -> Self {
        let keys = folders.iter().flat_map(|folder| tree.below(folder)).map(|(key, _)| key);
        Guard { folders: folders.to_vec(), ..Guard::of_keys(tree, keys) }
    }

    /// These keys must still stand, or be missing, as they do in `tree`.
    pub fn of_keys<'a>(tree: &Tree, keys: impl IntoIterator<Item = &'a String>) -> Self {
        let revision = |key: &String| tree.keys.get(key).map_or(0, |stored| stored.revision);
        let keys = keys.into_iter().map(|key| (key.clone(), revision(key))).collect();
        Guard { revision: tree.revision, folders: Vec::new(), keys }
    }

    fn compares(&self) -> Vec<Compare> {
        let newer = |folder: &String| {
            Compare::mod_revision(folder.as_str(), CompareOp::Less, self.revision.saturating_add(1)).with_prefix()
        };
        let stands =
            |(key, revision): (&String, &i64)| Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision);
        self.folders.iter().map(newer).chain(self.keys.iter().map(stands)).collect()
    }
}

/// What is to be written: all of it at one revision, or nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Write {
    /// Keys and their new values.
    pub puts: BTreeMap<String, String>,
    /// Keys that go.
    pub deletes: BTreeSet<String>,
    /// How long what is put stands; for ever if none. Whole seconds.
    pub ttl: Option<Duration>,
    /// What must not have changed since it was read.
    pub guard: Guard,
}

/// A connection to the first member that answers.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    endpoint: String,
    timing: Timing,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// Asks each endpoint in order, once; the first that answers is it.
    pub fn connect(config: &EtcdConfig) -> Result<Self, EtcdError> {
        check(config)?;
        let (runtime, timing) = (runtime()?, Timing::default());
        let mut tries = Vec::new();
        for endpoint in &config.endpoints {
            let found: Result<Connection, EtcdError> = runtime.block_on(async {
                let connection = Connection::open(config, endpoint, timing.answer).await?;
                // Connecting alone asks nobody anything.
                let count = within(timing.answer, endpoint, "count keys", connection.clone().count()).await?;
                count.map_err(|e| EtcdError::asked(endpoint, "count keys", e))?;
                Ok(connection)
            });
            match found {
                Ok(connection) => return Ok(Client { runtime, connection, endpoint: endpoint.clone(), timing }),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => tries.push(error.to_string()),
            }
        }
        Err(EtcdError::Nobody { tries })
    }

    /// Waits for something that is asked of the member.
    fn ask<T>(
        &self,
        patience: Duration,
        what: &'static str,
        work: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, EtcdError> {
        let answer = self.runtime.block_on(within(patience, &self.endpoint, what, work))?;
        answer.map_err(|e| EtcdError::asked(&self.endpoint, what, e))
    }

    /// All keys at one revision.
    pub fn read(&self) -> Result<Tree, EtcdError> {
        let get = |(from, to): (&str, &str)| TxnOp::get(from, Some(GetOptions::new().with_range(to)));
        let mut kv = self.connection.kv();
        let txn = Txn::new().and_then(FOLDERS.map(get));
        let answer = self.ask(self.timing.range, "read all keys", kv.txn(txn))?;
        let mut tree = Tree { revision: answer.header().map_or(0, |h| h.revision()), keys: BTreeMap::new() };
        for response in answer.op_responses() {
            let TxnOpResponse::Get(get) = response else { continue };
            for kv in get.kvs() {
                let stored = Stored { value: value_text(kv.value()), revision: kv.mod_revision(), lease: kv.lease() };
                tree.keys.insert(key_text(kv.key()), stored);
            }
        }
        Ok(tree)
    }

    /// How long a lease still lasts; none if it has ended.
    pub fn left(&self, lease: i64) -> Result<Option<Duration>, EtcdError> {
        let mut leases = self.connection.client.lease_client();
        let work = leases.time_to_live(lease, None);
        let answer = self.ask(self.timing.answer, "ask for a lease", work)?;
        Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
    }

    /// Writes all of it at one revision, which is returned; [`EtcdError::Conflict`] if the guard does not hold, and then
    /// nothing has been written. After [`EtcdError::is_ambiguous`] nobody knows whether it was written.
    pub fn write(&self, write: &Write) -> Result<i64, EtcdError> {
        let (compares, operations) = (write.guard.compares(), write.puts.len() + write.deletes.len());
        if compares.len().max(operations) > MAX_OPERATIONS {
            let cause = format!("more than {MAX_OPERATIONS} keys in one transaction");
            return Err(EtcdError::Failed { endpoint: self.endpoint.clone(), what: "write", cause });
        }
        let lease = write.ttl.map(|ttl| self.grant(ttl)).transpose()?;
        let put = |(key, value): (&String, &String)| {
            TxnOp::put(key.as_str(), value.as_str(), lease.map(|lease| PutOptions::new().with_lease(lease)))
        };
        let delete = |key: &String| TxnOp::delete(key.as_str(), None);
        let operations: Vec<TxnOp> = write.puts.iter().map(put).chain(write.deletes.iter().map(delete)).collect();
        let mut kv = self.connection.kv();
        let answer = self.ask(self.timing.answer, "write", kv.txn(Txn::new().when(compares).and_then(operations)));
        match answer {
            Ok(answer) if answer.succeeded() => Ok(answer.header().map_or(0, |h| h.revision())),
            Ok(_) => {
                if let Some(lease) = lease {
                    // Nothing hangs on it; should this fail, it ends by itself.
                    let mut leases = self.connection.client.lease_client();
                    let _ = self.ask(self.timing.answer, "revoke a lease", leases.revoke(lease));
                }
                Err(EtcdError::Conflict)
            }
            // The lease stays: what was perhaps written stands as long as it was meant to.
            Err(error) => Err(error),
        }
    }

    fn grant(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let mut leases = self.connection.client.lease_client();
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        Ok(self.ask(self.timing.answer, "grant a lease", leases.grant(seconds, None))?.id())
    }
}

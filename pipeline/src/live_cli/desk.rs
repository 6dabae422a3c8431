//! The tree as it stands, a change to it, and whether it may be made.

use super::{How, rehearse};
use crate::commands::{say, say_json};
use crate::config::Config;
use crate::run::{Failure, read_updates};
use marea_model::live::Problem;
use marea_model::{AccountId, ConfigUpdate, LiveConfig, Symbol};
use marea_sources::etcd::{Client, EtcdConfig, EtcdError, Guard, Tree, Write};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often a change is tried again that somebody else's came before.
const TRIES: usize = 5;

/// What is to be changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Change {
    pub(super) puts: BTreeMap<String, String>,
    pub(super) deletes: BTreeSet<String>,
    pub(super) ttl: Option<Duration>,
    /// The folders whose keys it rests on: what `--if-revision` is about, and what must not change meanwhile.
    pub(super) rests_on: Vec<String>,
    /// Whether it is written whatever stands there, unless `--if-revision` says otherwise.
    pub(super) regardless: bool,
}

impl Change {
    /// As the pipeline will see it.
    pub(super) fn updates(&self, revision: i64) -> Vec<ConfigUpdate> {
        let revision = u64::try_from(revision).unwrap_or_default();
        let put =
            |(key, value): (&String, &String)| ConfigUpdate::Put { key: key.clone(), value: value.clone(), revision };
        let deletes = self.deletes.iter().map(|key| ConfigUpdate::Delete { key: key.clone(), revision });
        self.puts.iter().map(put).chain(deletes).collect()
    }
}

/// A connection to etcd, and the tree as it was read.
pub(super) struct EtcdDesk<'a> {
    pub(super) client: Client,
    config: &'a Config,
    tree: Tree,
}

pub(super) fn failed(error: EtcdError) -> Failure {
    match error {
        EtcdError::Config { faults } => Failure::Refused(faults),
        error => Failure::failed(error),
    }
}

/// An account, or `*`.
pub(super) fn account(text: &str) -> Result<Option<AccountId>, Failure> {
    if text == "*" { Ok(None) } else { AccountId::new(text).map(Some).map_err(Failure::refused) }
}

/// An instrument, or `*`.
pub(super) fn symbol(text: &str) -> Result<Option<Symbol>, Failure> {
    if text == "*" { Ok(None) } else { Symbol::canonical(text).map(Some).map_err(Failure::refused) }
}

/// The tree as updates, each at its own revision.
pub(super) fn updates(tree: &Tree) -> Vec<ConfigUpdate> {
    let put = |(key, stored): (&String, &marea_sources::etcd::Stored)| ConfigUpdate::Put {
        key: key.clone(),
        value: stored.value.clone(),
        revision: u64::try_from(stored.revision).unwrap_or_default(),
    };
    tree.keys.iter().map(put).collect()
}

/// The tree as the pipeline reads it when it starts with it.
pub(super) fn read(tree: &Tree, config: &Config) -> LiveConfig {
    let updates = updates(tree);
    let mut first = updates.clone();
    for update in &mut first {
        if let ConfigUpdate::Put { revision, .. } = update {
            // Whoever starts now begins with all of it.
            *revision = 1;
        }
    }
    let mut live = read_updates(&first, config);
    for update in &updates {
        live.apply(update);
    }
    live
}

impl<'a> EtcdDesk<'a> {
    pub(super) fn open(etcd: &EtcdConfig, config: &'a Config) -> Result<Self, Failure> {
        let client = Client::connect(etcd).map_err(failed)?;
        let tree = client.read().map_err(failed)?;
        Ok(EtcdDesk { client, config, tree })
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn live(&self) -> LiveConfig {
        read(&self.tree, self.config)
    }

    /// What the change would make wrong that is not wrong now.
    fn new_problems(&self, change: &Change) -> Vec<String> {
        let mut live = self.live();
        let name = |p: &Problem| (p.key.clone(), p.why.clone(), p.effect);
        let before: BTreeSet<_> = live.problems().iter().map(name).collect();
        for update in change.updates(self.tree.revision.saturating_add(1)) {
            live.apply(&update);
        }
        let new = live.problems().into_iter().filter(|p| !before.contains(&name(p)));
        new.map(|p| format!("{}: {}; {}", p.key, p.why, p.effect.as_str())).collect()
    }

    /// Writes the change, or says what it would do.
    pub(super) fn make(
        mut self,
        change: impl Fn(&Tree) -> Result<Change, Failure>,
        how: &How,
        json: bool,
    ) -> Result<(), Failure> {
        for _ in 0..TRIES {
            let change = change(&self.tree)?;
            if let Some(expected) = how.if_revision {
                let actual = self.tree.revision_of(&change.rests_on);
                if actual != expected {
                    return Err(Failure::failed(format!(
                        "{} is at revision {actual}, not {expected}: nothing was written",
                        change.rests_on.join(", ")
                    )));
                }
            }
            let problems = self.new_problems(&change);
            if !problems.is_empty() {
                return Err(Failure::Refused(problems));
            }
            if how.dry_run {
                return rehearse::rehearse(&self.tree, &change, self.config, how.url.as_deref(), json);
            }
            let guard = match (change.regardless, how.if_revision) {
                (true, None) => Guard::default(),
                _ => Guard::new(&self.tree, &change.rests_on),
            };
            let write = Write { puts: change.puts.clone(), deletes: change.deletes.clone(), ttl: change.ttl, guard };
            match self.client.write(&write) {
                Ok(revision) => {
                    report(&change, revision, json);
                    return Ok(());
                }
                // It is judged once more by what stands now.
                Err(EtcdError::Conflict) => self.tree = self.client.read().map_err(failed)?,
                Err(error) if error.is_ambiguous() => {
                    return Err(Failure::failed(format!("{error}: whether it was written is not known; look")));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(Failure::failed("somebody else keeps writing here: nothing was written"))
    }
}

fn report(change: &Change, revision: i64, json: bool) {
    if json {
        say_json(&json!({
            "revision": revision,
            "put": change.puts,
            "deleted": change.deletes,
            "ttl_seconds": change.ttl.map(|ttl| ttl.as_secs()),
        }));
        return;
    }
    let until = change.ttl.map_or(String::new(), |ttl| format!("  for {} s", ttl.as_secs()));
    let mut text = String::new();
    for (key, value) in &change.puts {
        text.push_str(&format!("{key} = {value}{until}\n"));
    }
    for key in &change.deletes {
        text.push_str(&format!("{key} deleted\n"));
    }
    say(text + &format!("revision {revision}\n"));
}

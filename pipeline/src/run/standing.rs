//! What a process begins with: the store, and what stands in it.

use super::{Failure, Live, Shutdown, Watch, read_updates};
use crate::committer::Target;
use crate::config::Config;
use marea_model::{ConfigUpdate, Instruments, LiveConfig, Partition, PartitionMark, Restoration};
use marea_sinks::Store;
use marea_sinks::store::{Ledger, StoreTarget};
use marea_sources::live_file;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often a process that stands by looks whether the other one is gone.
const STANDBY_LOOK: Duration = Duration::from_millis(500);

/// Opens the store. While another process has it, one that may go on stands by.
pub(super) fn open_store(
    target: Option<&StoreTarget>,
    resume: bool,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> Result<(Target, Option<marea_sinks::store::Reader>), Failure> {
    let Some(target) = target else { return Ok((Target::Memory(Box::new(Ledger::new(1))), None)) };
    let (mut said, mut unreachable) = (false, false);
    loop {
        match runtime.block_on(Store::try_open(target)) {
            Ok(Some(store)) => {
                let reader = store.reader();
                return Ok((Target::Store(Box::new(store)), Some(reader)));
            }
            Ok(None) => {}
            Err(error) if error.retryable() && resume => {
                if !std::mem::replace(&mut unreachable, true) {
                    tracing::warn!(%error, "waiting for the store");
                }
                if !shutdown.stop.sleep(STANDBY_LOOK) {
                    return Err(Failure::failed(error));
                }
                continue;
            }
            Err(error) => return Err(Failure::refused(error)),
        }
        if !resume {
            return Err(Failure::refused(format!("store {target}: another process has it: name another one")));
        }
        if !std::mem::replace(&mut said, true) {
            tracing::warn!("store {target}: another process has it: standing by until that one is gone");
        }
        if !shutdown.stop.sleep(STANDBY_LOOK) {
            return Err(Failure::failed("stopped while standing by"));
        }
    }
}

/// Whether a run may begin, or go on, in this store. Only reads: a process that writes to it is not fenced.
pub fn check_store(target: &StoreTarget, resume: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let peeked = match runtime.block_on(Store::peek(target)) {
        // It is waited for.
        Err(error) if error.retryable() && resume => return Ok(()),
        peeked => peeked.map_err(Failure::refused)?,
    };
    match peeked {
        Some(upper) if !resume => Err(Failure::Refused(vec![format!(
            "store {target}: holds a run already, up to epoch {upper}: name another one"
        )])),
        _ => Ok(()),
    }
}

/// Where each partition stood.
pub(super) type Marks = BTreeMap<Partition, PartitionMark>;

/// What a process begins with.
pub(super) struct Standing {
    /// The live configuration as it will be, to explain and to warn by.
    pub(super) read: LiveConfig,
    /// What of it is new.
    pub(super) first: Vec<ConfigUpdate>,
    /// Their scales and price sources are those of the run's very beginning.
    pub(super) instruments: Arc<Instruments>,
    pub(super) marks: Marks,
}

impl Standing {
    pub(super) fn new(config: &Config, live: &mut Live, restoration: Option<&Restoration>) -> Standing {
        let Some(restoration) = restoration else {
            let read = live.read(config);
            let mut first = live_file::diff(&BTreeMap::new(), &live.tree, live.revision);
            if first.is_empty() {
                // So that a restart knows that it began with nothing.
                first.push(ConfigUpdate::Stale(false));
            }
            return Standing { instruments: Arc::new(read.instruments().clone()), read, first, marks: Marks::new() };
        };
        let (mut tree, mut stale, mut last) = (BTreeMap::new(), false, 0);
        for update in &restoration.config {
            match update {
                ConfigUpdate::Put { key, value, revision } => {
                    tree.insert(key.clone(), value.clone());
                    last = last.max(*revision);
                }
                ConfigUpdate::Delete { key, revision } => {
                    tree.remove(key);
                    last = last.max(*revision);
                }
                ConfigUpdate::Stale(now) => stale = *now,
            }
        }
        if matches!(live.watch, Watch::Nothing | Watch::File(_)) {
            live.revision = last + 1;
        }
        let mut first = live_file::diff(&tree, &live.tree, live.revision);
        if stale {
            first.push(ConfigUpdate::Stale(false));
        }
        let initial = read_updates(&restoration.config, config);
        let instruments = Arc::new(initial.initial().clone());
        Standing { read: initial, first, instruments, marks: restoration.partitions.clone() }
    }
}

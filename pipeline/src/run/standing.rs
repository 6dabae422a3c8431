//! What a process begins with: the store, and what stands in it.

use super::live::INSTRUMENTS;
use super::{Failure, Live, Shutdown, Watch, read_updates};
use crate::committer::{Target, wall_now};
use crate::config::Config;
use marea_model::live::{GAPS, encode_segment};
use marea_model::time::format_rfc3339;
use marea_model::{ConfigUpdate, Instruments, LiveConfig, Partition, PartitionMark, Restoration, Symbol, Timeframe};
use marea_sinks::store::{AuditEntry, Ledger, Reader, StoreTarget};
use marea_sinks::{Store, StoreError};
use marea_sources::{Gap, live_file};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
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
                    return Err(Failure::Stopped);
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
            return Err(Failure::Stopped);
        }
    }
}

/// All that a restart begins with; `as_it_stands` where records that it would read once more are lost. A store that does
/// not answer is waited for.
pub(super) fn restoration(
    target: &mut Target,
    base: Timeframe,
    as_it_stands: bool,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> Result<Option<Restoration>, Failure> {
    let Target::Store(store) = target else { return Ok(None) };
    patiently(shutdown, || match as_it_stands {
        false => runtime.block_on(store.restoration(base)),
        true => runtime.block_on(store.restoration_as_it_stands(base)),
    })
}

/// The recommendations and verdicts that stand. A store that does not answer is waited for.
pub(super) fn rows(
    reader: &Reader,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> Result<Vec<AuditEntry>, Failure> {
    patiently(shutdown, || runtime.block_on(reader.standing()))
}

/// Reads, again and again while that may help.
fn patiently<T>(shutdown: &Shutdown, mut read: impl FnMut() -> Result<T, StoreError>) -> Result<T, Failure> {
    let mut said = false;
    loop {
        match read() {
            Ok(done) => return Ok(done),
            Err(error) if error.retryable() => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, "waiting for the store");
                }
                if !shutdown.stop.sleep(STANDBY_LOOK) {
                    return Err(Failure::Stopped);
                }
            }
            // To start again is to stand by.
            Err(error @ StoreError::Fenced { .. }) => return Err(Failure::failed(error)),
            Err(error) => return Err(Failure::refused(error)),
        }
    }
}

/// What the pipeline notes of records that were lost, among the changes of the live configuration.
pub(super) fn noted(gap: &Gap, generation: u64) -> ConfigUpdate {
    let value = json!({
        "at": format_rfc3339(wall_now()),
        "available": gap.available,
        "cause": gap.cause.as_str(),
        "committed": gap.committed,
        "generation": generation,
        "wanted": gap.wanted,
    });
    let key = format!("{GAPS}{}", encode_segment(gap.partition.as_str()));
    ConfigUpdate::Put { key, value: value.to_string(), revision: 0 }
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

/// What of instruments was changed since the run was left, and cannot be: what stands was computed with it. What was
/// written while it ran, and had no effect then, is no change.
fn changed_instruments(stood: &Instruments, now: &Instruments, first: &[ConfigUpdate]) -> Vec<String> {
    let is_new = |name: &str| {
        let key = format!("{INSTRUMENTS}{name}");
        first.iter().any(|update| update.key() == Some(key.as_str()))
    };
    let symbols: BTreeSet<&Symbol> = stood.by_symbol.keys().chain(now.by_symbol.keys()).collect();
    let of_symbol = |symbol: &&Symbol| (encode_segment(symbol.as_str()), *stood.get(**symbol), *now.get(**symbol));
    let default = ("default".to_owned(), stood.default, now.default);
    let all = std::iter::once(default).chain(symbols.iter().map(of_symbol));
    let mut changed = Vec::new();
    for (name, was, is) in all.filter(|(name, ..)| is_new("default") || is_new(name)) {
        let mut differs = |field: &str, was: String, is: String| {
            if was != is {
                changed.push(format!(
                    "{INSTRUMENTS}{name}: {field} is {is}, and the store was computed with {was}: set it back, or start \
                     with an empty store and replay"
                ));
            }
        };
        differs("scale", was.scale.to_string(), is.scale.to_string());
        differs("price_source", json!(was.price_source).to_string(), json!(is.price_source).to_string());
    }
    changed
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
    /// Refuses an instrument whose scale or price source changed since the run was left: what stands could not go on.
    pub(super) fn new(
        config: &Config,
        live: &mut Live,
        restoration: Option<&Restoration>,
    ) -> Result<Standing, Failure> {
        let Some(restoration) = restoration else {
            let read = live.read(config);
            let mut first = live_file::diff(&BTreeMap::new(), &live.tree, live.revision);
            if first.is_empty() {
                // So that a restart knows that it began with nothing.
                first.push(ConfigUpdate::Stale(false));
            }
            return Ok(Standing {
                instruments: Arc::new(read.instruments().clone()),
                read,
                first,
                marks: Marks::new(),
            });
        };
        let (mut tree, mut stale, mut last) = (BTreeMap::new(), false, 0);
        for update in &restoration.config {
            match update {
                // A note, and no configuration.
                ConfigUpdate::Put { key, .. } if key.starts_with(GAPS) => {}
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
        let changed = changed_instruments(initial.initial(), live.read(config).instruments(), &first);
        if !changed.is_empty() {
            return Err(Failure::Refused(changed));
        }
        let instruments = Arc::new(initial.initial().clone());
        Ok(Standing { read: initial, first, instruments, marks: restoration.partitions.clone() })
    }
}

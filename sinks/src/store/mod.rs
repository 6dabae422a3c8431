//! The store: what is durable, and where the pipeline stands.
//!
//! ```text
//!  closed epochs ──► Ledger::plan (no I/O) ──► one transaction: fence, rows, audit, dead letters, cursors, upper
//!                        ▲                                         │ committed
//!                        └────────── Ledger::accept ◄──────────────┘──► Committed: audit entries with their seq
//! ```
//!
//! 1. **Unit**: several epochs are one transaction; `upper` (the first epoch that is not in the store) moves in it.
//! 2. **Fence**: its first statement moves `upper` from where this writer left it, under this writer's generation. No
//!    row: another process has taken over, and nothing is written.
//! 3. **Audit**: one row for each change of a recommendation or verdict; `seq` is dense, in the order (epoch, key);
//!    neighbouring rows of a key differ in more than `as_of`. The last row of a key equals its state.
//! 4. **Repeating** a commit whose outcome is unknown does nothing twice: epochs below the stored upper are skipped.
//! 5. Empty epochs move `upper` too. Nothing is dropped with a warning: a commit succeeds as a whole or not at all.

mod sqlite;

pub use sqlite::{Reader, Store};

use marea_model::output::{Change, ClosedEpoch, Key, Totals};
use marea_model::{AccountId, DeadLetter, Epoch, Output, Partition, Progress, Symbol};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process took the store over.
    #[error(
        "store: another process has taken over: generation {found} at epoch {upper}, this one is generation {mine}"
    )]
    Fenced {
        /// This process.
        mine: u64,
        /// Who stands in the store.
        found: u64,
        /// Where that one is.
        upper: Epoch,
    },
    /// A newer marea has migrated it.
    #[error("store {}: its schema is version {found}, this marea knows {known}: use a newer marea", path.display())]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The greatest version applied.
        found: i64,
        /// The greatest version known.
        known: i64,
    },
    /// A migration that was applied is not the one that we have.
    #[error("store {}: migration {version} was applied in another form: this is not marea's schema", path.display())]
    ForeignSchema {
        /// The file.
        path: PathBuf,
        /// The migration.
        version: i64,
    },
    /// A table is not there.
    #[error("store {}: table {table} is missing: restore a backup or start with a new file", path.display())]
    TableMissing {
        /// The file.
        path: PathBuf,
        /// The table.
        table: String,
    },
    /// The tables hold what the pipeline's row does not know of.
    #[error(
        "store {}: upper {upper} is behind the table {table}, which has epoch {epoch}: restore a backup or start with a new file",
        path.display()
    )]
    UpperBehind {
        /// The file.
        path: PathBuf,
        /// First epoch that should not be there.
        upper: Epoch,
        /// The table.
        table: &'static str,
        /// What it has.
        epoch: Epoch,
    },
    /// The audit has another end than the pipeline's row says.
    #[error(
        "store {}: the audit ends at seq {found}, the pipeline's row says {expected}: restore a backup or start with a new file",
        path.display()
    )]
    AuditBroken {
        /// The file.
        path: PathBuf,
        /// Its last seq.
        found: u64,
        /// The pipeline's last seq.
        expected: u64,
    },
    /// No database, or none that can be opened.
    #[error("store {}: cannot be opened: {detail}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// It cannot be written.
    #[error("store {}: read-only: nothing is acknowledged until it can be written", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// No space is left.
    #[error("store {}: disk full: nothing is acknowledged until there is space", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else holds its lock.
    #[error("store {}: locked by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("store {}: unavailable: {detail}", path.display())]
    Unavailable {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// An epoch is not after the one before it, or is in the store already.
    #[error("store: epoch {epoch} comes after {upper} was committed")]
    EpochOrder {
        /// The epoch.
        epoch: Epoch,
        /// The first epoch that may come.
        upper: Epoch,
    },
    /// A row has a value that no row may have.
    #[error("store: {key:?} has a NaN; undefined must be null")]
    NotANumber {
        /// The row's key.
        key: Box<Key>,
    },
    /// A statement failed: the store or this program is wrong.
    #[error("store {}: {detail}", path.display())]
    Statement {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
}

impl StoreError {
    /// Whether the same commit may succeed later: then pause, acknowledge nothing, say so, and try again.
    /// When opening, every error is a reason to refuse.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            StoreError::ReadOnly { .. }
                | StoreError::DiskFull { .. }
                | StoreError::Busy { .. }
                | StoreError::Unavailable { .. }
        )
    }
}

/// Where the store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The first epoch that is not in it.
    pub upper: Epoch,
    /// Whose it is: rises by one each time that a process takes it.
    pub generation: u64,
    /// The last seq of the audit.
    pub last_seq: u64,
    /// Counts of all epochs.
    pub totals: Totals,
    /// As of the end of the last epoch.
    pub progress: Progress,
    /// The first offset not yet read of each partition.
    pub cursors: BTreeMap<Partition, u64>,
}

impl Standing {
    fn empty(generation: u64) -> Self {
        Standing {
            upper: 0,
            generation,
            last_seq: 0,
            totals: Totals::default(),
            progress: Progress::START,
            cursors: BTreeMap::new(),
        }
    }
}

/// What the audit is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AuditKey {
    /// A symbol's recommendation.
    Recommendation(Symbol),
    /// An account's verdict on a symbol.
    Verdict(AccountId, Symbol),
}

impl AuditKey {
    /// `recommendation` or `verdict`.
    pub fn kind(&self) -> &'static str {
        match self {
            AuditKey::Recommendation(_) => "recommendation",
            AuditKey::Verdict(..) => "verdict",
        }
    }

    /// The instrument.
    pub fn symbol(&self) -> Symbol {
        match *self {
            AuditKey::Recommendation(symbol) | AuditKey::Verdict(_, symbol) => symbol,
        }
    }

    /// The account of a verdict.
    pub fn account(&self) -> Option<AccountId> {
        match *self {
            AuditKey::Recommendation(_) => None,
            AuditKey::Verdict(account, _) => Some(account),
        }
    }
}

/// One row of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its place: dense, from 1.
    pub seq: u64,
    /// The epoch that it happened in.
    pub epoch: Epoch,
    /// Who wrote it.
    pub generation: u64,
    /// What changed.
    pub key: AuditKey,
    /// The row that stands from then on, as JSON; none: no row stands any more.
    pub payload: Option<Arc<str>>,
}

/// What is durable now: publish it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The first epoch that is not in the store.
    pub upper: Epoch,
    /// Of the writer.
    pub generation: u64,
    /// The last seq of the audit.
    pub last_seq: u64,
    /// Counts of all epochs.
    pub totals: Totals,
    /// What these epochs added to the audit.
    pub audit: Vec<AuditEntry>,
}

/// The store's state without its I/O: numbers the audit, skips what did not really change, nets several epochs.
#[derive(Clone, Debug)]
pub struct Ledger {
    standing: Standing,
    /// The last audit row of each key, without `as_of`.
    last: BTreeMap<AuditKey, Arc<str>>,
}

/// What one transaction writes.
pub(crate) struct Plan<'a> {
    pub(crate) standing: Standing,
    /// The last change of each key, with its epoch. Recommendations and verdicts only where the audit has an entry.
    pub(crate) rows: BTreeMap<Key, (&'a Change, Epoch)>,
    pub(crate) audit: Vec<AuditEntry>,
    pub(crate) dead: Vec<(&'a DeadLetter, Epoch)>,
    pub(crate) cursors: BTreeMap<Partition, u64>,
    last: BTreeMap<AuditKey, Option<Arc<str>>>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(generation: u64) -> Self {
        Ledger { standing: Standing::empty(generation), last: BTreeMap::new() }
    }

    /// Where it stands.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Commits without a store: for a feed without one, and for tests.
    pub fn commit(&mut self, epochs: &[ClosedEpoch]) -> Result<Committed, StoreError> {
        let plan = self.plan(epochs)?;
        Ok(self.accept(plan))
    }

    pub(crate) fn resume(standing: Standing, payloads: impl IntoIterator<Item = (AuditKey, Arc<str>)>) -> Self {
        let last = payloads.into_iter().map(|(key, payload)| (key, without_as_of(&payload))).collect();
        Ledger { standing, last }
    }

    /// What a transaction of these epochs writes. Changes nothing.
    pub(crate) fn plan<'a>(&self, epochs: &'a [ClosedEpoch]) -> Result<Plan<'a>, StoreError> {
        let mut plan = Plan {
            standing: self.standing.clone(),
            rows: BTreeMap::new(),
            audit: Vec::new(),
            dead: Vec::new(),
            cursors: BTreeMap::new(),
            last: BTreeMap::new(),
        };
        for closed in epochs {
            if closed.epoch < plan.standing.upper {
                return Err(StoreError::EpochOrder { epoch: closed.epoch, upper: plan.standing.upper });
            }
            for change in &closed.changes {
                self.plan_change(change, closed.epoch, &mut plan)?;
            }
            plan.dead.extend(closed.dead.iter().map(|letter| (letter, closed.epoch)));
            plan.cursors.extend(closed.cursors.iter().copied());
            plan.standing.totals.add(&closed.totals);
            plan.standing.progress = closed.progress;
            plan.standing.upper = closed.epoch + 1;
        }
        plan.standing.cursors.extend(plan.cursors.iter().map(|(partition, upper)| (*partition, *upper)));
        Ok(plan)
    }

    fn plan_change<'a>(&self, change: &'a Change, epoch: Epoch, plan: &mut Plan<'a>) -> Result<(), StoreError> {
        let (row, stands) = match change {
            Change::Upsert(row) => (row, true),
            Change::Delete(row) => (row, false),
        };
        let key = row.key();
        if stands && has_nan(row) {
            return Err(StoreError::NotANumber { key: Box::new(key) });
        }
        let audited = match row {
            Output::Recommendation(r) => {
                Some((AuditKey::Recommendation(r.symbol), stands.then(|| payload(r.as_ref()))))
            }
            Output::Verdict(v) => Some((AuditKey::Verdict(v.account, v.symbol), stands.then(|| payload(v.as_ref())))),
            _ => None,
        };
        if let Some((audit_key, payload)) = audited {
            let fresh = payload.as_deref().map(without_as_of);
            let known = plan.last.get(&audit_key).map_or(self.last.get(&audit_key), Option::as_ref);
            if known == fresh.as_ref() {
                return Ok(());
            }
            plan.last.insert(audit_key, fresh);
            plan.standing.last_seq += 1;
            let (seq, generation) = (plan.standing.last_seq, plan.standing.generation);
            plan.audit.push(AuditEntry { seq, epoch, generation, key: audit_key, payload });
        }
        plan.rows.insert(key, (change, epoch));
        Ok(())
    }

    /// Takes a plan as committed.
    pub(crate) fn accept(&mut self, plan: Plan<'_>) -> Committed {
        for (key, payload) in plan.last {
            match payload {
                Some(payload) => self.last.insert(key, payload),
                None => self.last.remove(&key),
            };
        }
        self.standing = plan.standing;
        let Standing { upper, generation, last_seq, totals, .. } = self.standing;
        Committed { upper, generation, last_seq, totals, audit: plan.audit }
    }
}

fn payload<T: serde::Serialize>(row: &T) -> Arc<str> {
    serde_json::to_string(row).expect("rows have text keys and no failing serializer").into()
}

/// The payload without its field `as_of`; numbers keep their text, so that nothing is rounded on the way.
fn without_as_of(payload: &str) -> Arc<str> {
    let Ok(mut fields) = serde_json::from_str::<BTreeMap<&str, &RawValue>>(payload) else { return payload.into() };
    if fields.remove("as_of").is_none() {
        return payload.into();
    }
    serde_json::to_string(&fields).map_or_else(|_| payload.into(), Into::into)
}

/// SQLite would make NULL of it, and JSON null: an undefined value that nobody declared so.
fn has_nan(row: &Output) -> bool {
    match row {
        Output::Bar(_) | Output::Verdict(_) => false,
        Output::Indicator(row) => row.value.0.is_nan(),
        Output::Trade(t) => {
            [t.entry_price, t.exit_price, t.quantity, t.pnl, t.fees].into_iter().any(|value| value.0.is_nan())
        }
        Output::Metrics(row) => row.metrics.named().into_iter().any(|(_, value)| value.is_some_and(f64::is_nan)),
        Output::Recommendation(r) => [Some(r.strength), Some(r.consensus), Some(r.confidence), r.atr]
            .into_iter()
            .any(|value| value.is_some_and(|v| v.0.is_nan())),
    }
}

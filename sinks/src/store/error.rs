//! Why the store refused.

use marea_model::output::Key;
use marea_model::{Epoch, Timeframe};
use std::sync::Arc;

/// Why the store refused. `store` is its path, or its address without a password.
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
    /// It lost what it had confirmed.
    #[error(
        "store {store}: upper {found} is behind {mine}, which it had confirmed: a replica that lagged or an older backup \
         has taken its place; start again, to compute anew what it lost"
    )]
    WentBack {
        /// Which.
        store: Arc<str>,
        /// What it had confirmed.
        mine: Epoch,
        /// Where it is.
        found: Epoch,
    },
    /// A newer marea has migrated it.
    #[error("store {store}: its schema is version {found}, this marea knows {known}: use a newer marea")]
    NewerSchema {
        /// Which.
        store: Arc<str>,
        /// The greatest version applied.
        found: i64,
        /// The greatest version known.
        known: i64,
    },
    /// A migration that was applied is not the one that we have.
    #[error("store {store}: migration {version} was applied in another form: this is not marea's schema")]
    ForeignSchema {
        /// Which.
        store: Arc<str>,
        /// The migration.
        version: i64,
    },
    /// A marea that computes something else has written it.
    #[error(
        "store {store}: it was computed by logic version {found}, this marea computes version {known}: \
         `marea migrate --rebuild` computes it anew and shows what differs; or use the marea that wrote it"
    )]
    LogicVersion {
        /// Which.
        store: Arc<str>,
        /// What stands in it.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// It was computed from bars of another timeframe.
    #[error(
        "store {store}: its smallest bars are of {found}, and pipeline.timeframes begins with {wanted}: begin with {found} \
         as before, or start with an empty store and replay"
    )]
    BaseTimeframe {
        /// Which.
        store: Arc<str>,
        /// The smallest timeframe in it.
        found: Timeframe,
        /// As configured.
        wanted: Timeframe,
    },
    /// A table is not there.
    #[error("store {store}: table {table} is missing: restore a backup or start with an empty store")]
    TableMissing {
        /// Which.
        store: Arc<str>,
        /// The table.
        table: String,
    },
    /// The tables hold what the pipeline's row does not know of.
    #[error(
        "store {store}: upper {upper} is behind the table {table}, which has epoch {epoch}: \
         restore a backup or start with an empty store"
    )]
    UpperBehind {
        /// Which.
        store: Arc<str>,
        /// First epoch that should not be there.
        upper: Epoch,
        /// The table.
        table: &'static str,
        /// What it has.
        epoch: Epoch,
    },
    /// The audit has another end than the pipeline's row says.
    #[error(
        "store {store}: the audit ends at seq {found}, the pipeline's row says {expected}: \
         restore a backup or start with an empty store"
    )]
    AuditBroken {
        /// Which.
        store: Arc<str>,
        /// Its last seq.
        found: u64,
        /// The pipeline's last seq.
        expected: u64,
    },
    /// No database, or none that can be opened.
    #[error("store {store}: cannot be opened: {detail}")]
    Open {
        /// Which.
        store: Arc<str>,
        /// What the database says.
        detail: String,
    },
    /// It cannot be written.
    #[error("store {store}: read-only: nothing is acknowledged until it can be written")]
    ReadOnly {
        /// Which.
        store: Arc<str>,
    },
    /// No space is left.
    #[error("store {store}: disk full: nothing is acknowledged until there is space")]
    DiskFull {
        /// Which.
        store: Arc<str>,
    },
    /// Somebody else holds its lock.
    #[error("store {store}: locked by another process")]
    Busy {
        /// Which.
        store: Arc<str>,
    },
    /// Reading or writing failed, and may succeed later.
    #[error("store {store}: unavailable: {detail}")]
    Unavailable {
        /// Which.
        store: Arc<str>,
        /// What the database, or the network, says.
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
    #[error("store {store}: {detail}")]
    Statement {
        /// Which.
        store: Arc<str>,
        /// What the database says.
        detail: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later: then pause, acknowledge nothing, say so, and try again. What SQLite says
    /// when it is opened is never retryable; a PostgreSQL that does not answer yet is.
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

//! The store: what is durable, and where the pipeline stands.
//!
//! ```text
//!  closed epochs ──► Ledger::plan (no I/O) ──► one transaction: fence, rows, audit, dead letters, partitions, upper
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
//! 6. **One writer**: a lock is held for the life of the writer (SQLite: a file beside the database; PostgreSQL: an
//!    advisory lock of the writing connection). Who does not get it waits, as a standby. The fence stays the safety net.
//! 7. **After any failure** the connection is made anew and the pipeline's row read again, once the old transaction has
//!    ended, so that a COMMIT whose outcome is unknown is never guessed.
//! 8. **Restart**: [`Store::restoration`] gives what a process begins with; [`Store::verify`] compares what it computed
//!    from that with what stands, for all that is not sealed, and the next commit mends every difference.
//!
//! 9. **Metrics and indicators** have an upper of their own: [`Store::follow`] writes them behind, in chunks, each a
//!    transaction ([`behind`]). Their history is kept nowhere: it follows from trades and bars.
//!
//! Two databases, one contract: `ledger` and `tables` say what is written, `restore` and `verify` what is read, in SQL
//! that both understand; `sqlite` and `postgres` connect, lock, write rows and say what their errors mean.

mod behind;
mod cell;
mod error;
#[cfg(test)]
mod faults;
mod ledger;
mod link;
mod load;
mod postgres;
mod reader;
mod rebuild;
mod restore;
mod rows;
mod schema;
mod series;
mod sqlite;
mod tables;
mod target;
mod unacknowledged;
mod verify;
mod writer;

pub use error::StoreError;
pub use ledger::Ledger;
pub(crate) use ledger::{payload_of, without_as_of};
pub use reader::{Reader, StoredLetter};
pub use target::{Chunks, StoreTarget};
pub use verify::Difference;
pub use writer::{Store, migrate};

use marea_model::output::Totals;
use marea_model::{AccountId, Epoch, Nanos, Partition, PartitionMark, Progress, Symbol};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What this marea computes from the same input. It rises when the same input gives other rows: then a store cannot be
/// continued, only computed anew: `marea migrate --rebuild`.
pub const LOGIC_VERSION: i64 = 1;

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
    /// The first epoch whose metrics and indicators are not all in the store.
    pub metrics_upper: Epoch,
    /// Every indicator of a bar that opens before this is in the store.
    pub indicators_low: Nanos,
    /// Where each partition stands.
    pub partitions: BTreeMap<Partition, PartitionMark>,
}

impl Standing {
    fn empty(generation: u64) -> Self {
        Standing {
            upper: 0,
            generation,
            last_seq: 0,
            totals: Totals::default(),
            progress: Progress::START,
            metrics_upper: 0,
            indicators_low: Nanos::MAX,
            partitions: BTreeMap::new(),
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

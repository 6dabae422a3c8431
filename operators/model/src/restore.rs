//! What a process needs to go on where another one was killed.

use crate::account::AccountSnapshot;
use crate::bar::BarBody;
use crate::cursor::{Cursor, MessageIdentity, PartitionMark, RawMessage};
use crate::live::ConfigUpdate;
use crate::name::{Partition, Symbol};
use crate::num::Amount;
use crate::progress::Progress;
use crate::tick::{Quote, Tick};
use crate::time::{Epoch, Nanos};
use std::collections::{BTreeMap, BTreeSet};

/// What a dataflow cannot learn from the ticks that are read once more: all that stands of what has sealed.
#[derive(Clone, Debug, Default)]
pub struct Sealed {
    /// The sealed base bars that stand, by symbol and open time.
    pub bars: Vec<(Symbol, Nanos, BarBody)>,
    /// Every symbol that was ever met, and its latest quote.
    pub quotes: Vec<(Symbol, Option<Quote>)>,
    /// Every amend of a sealed bar.
    pub amends: Vec<Tick>,
}

/// All that a restart begins with, as of the last committed epoch.
#[derive(Clone, Debug)]
pub struct Restoration {
    /// The last committed epoch.
    pub epoch: Epoch,
    /// As of its end.
    pub progress: Progress,
    /// Where each partition stood.
    pub partitions: BTreeMap<Partition, PartitionMark>,
    /// Every change of the live configuration, in order.
    pub config: Vec<ConfigUpdate>,
    /// What has sealed.
    pub sealed: Sealed,
    /// The last snapshot of each account, and the greatest equity of all its snapshots.
    pub accounts: Vec<(AccountSnapshot, Amount)>,
    /// Where dead records stand, among those that are read once more.
    pub dead: BTreeSet<Cursor>,
    /// Messages that the source cannot be asked for again, by place.
    pub raw: Vec<RawMessage>,
    /// Messages that may not have been acknowledged: by partition, with their offsets.
    pub unacknowledged: Vec<(Partition, u64, MessageIdentity)>,
}

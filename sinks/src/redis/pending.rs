//! What waits to be written: bounded, so that a Redis that is slow or gone costs its own readers alone.
//!
//! 1. Changes of recommendations and verdicts wait in the order of their seq. When there are too many they are given up,
//!    and Redis is built anew from what stands and the audit: then the newest value of each key is all that is written.
//! 2. Everything else waits as a key: its value is the newest one when it is written.
//! 3. Values that are not committed yet wait for as long as they are not, and only while no epoch has waited a second for
//!    its commit.

use crate::store::{AuditEntry, AuditKey, Committed, payload_of, without_as_of};
use marea_model::output::{Change, ClosedEpoch, Key};
use marea_model::{Epoch, MetricsRow, Output, StrategyId, Symbol, Timeframe};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Changes that may wait.
pub(super) const QUEUE: usize = 65_536;
/// Nothing is published before its commit once the oldest epoch has waited this long for its own.
pub(super) const STALLED: Duration = Duration::from_secs(1);

/// A key whose value is made when it is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Derived {
    MarketData(Symbol, Timeframe),
    Strategies(Symbol),
    Ranking,
    Backtest(StrategyId),
}

fn derived_of_metrics(row: &MetricsRow) -> [Derived; 2] {
    [Derived::Strategies(row.symbol), Derived::Backtest(row.strategy)]
}

/// The keys of these epochs whose values are made when they are written.
pub(super) fn derived(epochs: &[ClosedEpoch]) -> BTreeSet<Derived> {
    let mut derived = BTreeSet::new();
    for rows in epochs.iter().map(|closed| &closed.rows) {
        derived.extend(rows.bars.iter().map(|bar| Derived::MarketData(bar.symbol, bar.timeframe)));
        derived.extend(rows.metrics.iter().flat_map(derived_of_metrics));
    }
    for change in epochs.iter().flat_map(|closed| &closed.changes) {
        let (Change::Upsert(row) | Change::Delete(row)) = change;
        match row {
            Output::Bar(bar) => drop(derived.insert(Derived::MarketData(bar.symbol, bar.timeframe))),
            Output::Metrics(row) => derived.extend(derived_of_metrics(row)),
            Output::Indicator(_) | Output::Trade(_) | Output::Recommendation(_) | Output::Verdict(_) => {}
        }
    }
    derived
}

/// How far the store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) generation: u64,
    /// The last epoch.
    pub(super) epoch: Epoch,
    /// The last seq of the audit.
    pub(super) seq: u64,
    pub(super) committed_at: SystemTime,
}

/// Values that are not committed.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Early {
    /// With seq 0.
    pub(super) entries: Vec<AuditEntry>,
    /// When the epoch of the oldest of them closed.
    pub(super) since: Option<Instant>,
}

/// What was taken to be written.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Rising by seq.
    pub(super) events: Vec<AuditEntry>,
    pub(super) derived: BTreeSet<Derived>,
    /// Whether changes were given up: Redis must be built anew.
    pub(super) overflowed: bool,
    /// Since when the oldest of it has waited.
    pub(super) since: Option<Instant>,
}

/// What waits. No I/O, no clock.
#[derive(Debug, Default)]
pub(super) struct Pending {
    head: Option<Head>,
    events: VecDeque<AuditEntry>,
    early: BTreeMap<AuditKey, AuditEntry>,
    /// When the first epoch closed that has any of these.
    early_since: Option<Instant>,
    derived: BTreeSet<Derived>,
    overflowed: bool,
    since: Option<Instant>,
    /// Epochs with changes that were published early, until they are committed.
    uncommitted: VecDeque<(Epoch, Instant)>,
    /// What the last epoch that closed said of each key, without `as_of`: as the store will, which leaves out what does
    /// not really change.
    last: BTreeMap<AuditKey, Option<Arc<str>>>,
    /// The last epoch of which anything may have been published early.
    early_until: Epoch,
}

impl Pending {
    /// The store stands here; what it has is in the view.
    pub(super) fn begin(&mut self, head: Head, standing: &[AuditEntry]) {
        self.head = Some(head);
        let last = standing.iter().map(|entry| (entry.key, entry.payload.as_deref().map(without_as_of)));
        self.last = last.collect();
    }

    /// How far the store is; none before it is known.
    pub(super) fn head(&self) -> Option<Head> {
        self.head
    }

    /// The last epoch of which anything may have been published before its commit.
    pub(super) fn early_until(&self) -> Epoch {
        self.early_until
    }

    /// Since when something has waited.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// What `derived` was made of is committed, and in the view.
    pub(super) fn committed(
        &mut self,
        mut derived: BTreeSet<Derived>,
        committed: &Committed,
        now: Instant,
        at: SystemTime,
    ) {
        let epoch = committed.upper.saturating_sub(1);
        let (generation, seq) = (committed.generation, committed.last_seq);
        self.head = Some(Head { generation, epoch, seq, committed_at: at });
        self.since.get_or_insert(now);
        self.derived.append(&mut derived);
        for entry in &committed.audit {
            if let AuditKey::Recommendation(_) = entry.key {
                self.derived.insert(Derived::Ranking);
            }
            self.events.push_back(entry.clone());
        }
        if self.events.len() > QUEUE {
            self.events.clear();
            self.overflowed = true;
        }
        self.early.retain(|_, entry| entry.epoch > epoch);
        if self.early.is_empty() {
            self.early_since = None;
        }
        while self.uncommitted.front().is_some_and(|(first, _)| *first <= epoch) {
            self.uncommitted.pop_front();
        }
    }

    /// An epoch has closed and is not committed yet. Whether there is something to write.
    pub(super) fn closed(&mut self, closed: &ClosedEpoch, now: Instant) -> bool {
        let Some(Head { generation, .. }) = self.head else { return false };
        let mut changed = Vec::new();
        for change in &closed.changes {
            let (row, payload) = match change {
                Change::Upsert(row) => (row, payload_of(row)),
                Change::Delete(row) => (row, None),
            };
            let key = match row.key() {
                Key::Recommendation(symbol) => AuditKey::Recommendation(symbol),
                Key::Verdict(account, symbol) => AuditKey::Verdict(account, symbol),
                _ => continue,
            };
            let fresh = payload.as_deref().map(without_as_of);
            if *self.last.entry(key).or_default() != fresh {
                self.last.insert(key, fresh);
                changed.push(AuditEntry { seq: 0, epoch: closed.epoch, generation, key, payload });
            }
        }
        if changed.is_empty() {
            return false;
        }
        self.uncommitted.push_back((closed.epoch, now));
        if self.stalled(now) {
            return false;
        }
        self.early_until = self.early_until.max(closed.epoch);
        self.early_since.get_or_insert(closed.closed_at);
        self.early.extend(changed.into_iter().map(|entry| (entry.key, entry)));
        true
    }

    fn stalled(&self, now: Instant) -> bool {
        self.uncommitted.front().is_some_and(|(_, since)| now.duration_since(*since) >= STALLED)
    }

    /// What is not committed yet.
    pub(super) fn early(&self) -> impl Iterator<Item = &AuditEntry> {
        self.early.values()
    }

    /// Takes what is not committed yet, and leaves the rest.
    pub(super) fn take_early(&mut self, now: Instant) -> Early {
        let (early, since) = (std::mem::take(&mut self.early), self.early_since.take());
        if self.stalled(now) {
            return Early::default();
        }
        Early { entries: early.into_values().collect(), since }
    }

    /// What was taken could not be written: it waits again, unless something newer does.
    pub(super) fn give_back(&mut self, early: Early) {
        let committed = self.head.map_or(0, |head| head.epoch);
        for entry in early.entries.into_iter().filter(|entry| entry.epoch > committed) {
            self.early.entry(entry.key).or_insert(entry);
        }
        self.early_since = if self.early.is_empty() { None } else { early.since.or(self.early_since) };
    }

    /// Takes all that is committed; of what is derived, only what was waited for long `enough`.
    pub(super) fn take(&mut self, enough: bool) -> Taken {
        Taken {
            events: std::mem::take(&mut self.events).into(),
            derived: if enough { std::mem::take(&mut self.derived) } else { BTreeSet::new() },
            overflowed: std::mem::take(&mut self.overflowed),
            since: self.since.take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{account, closed, judged, recommendation, recommended, symbol, up, verdict};
    use crate::store::Ledger;
    use marea_model::BlockReason;
    use marea_model::recommendation::Action;

    fn buy(epoch: Epoch, close: i64) -> ClosedEpoch {
        closed(epoch, vec![up(recommended(recommendation("IBM", Action::Buy, close, 2)))])
    }

    fn judge(epoch: Epoch, as_of: i64, reasons: Vec<BlockReason>) -> ClosedEpoch {
        let row = marea_model::Verdict { as_of, ..verdict("M1", "IBM", reasons) };
        closed(epoch, vec![up(judged(row))])
    }

    struct Desk {
        pending: Pending,
        ledger: Ledger,
        now: Instant,
    }

    impl Desk {
        fn new() -> Desk {
            let mut pending = Pending::default();
            let head = Head { generation: 1, epoch: 0, seq: 0, committed_at: SystemTime::UNIX_EPOCH };
            pending.begin(head, &[]);
            Desk { pending, ledger: Ledger::new(1), now: Instant::now() }
        }

        fn commit(&mut self, epochs: &[ClosedEpoch]) {
            let committed = self.ledger.commit(epochs).unwrap();
            self.pending.committed(derived(epochs), &committed, self.now, SystemTime::UNIX_EPOCH);
        }

        fn take(&mut self) -> (Vec<u64>, Vec<Epoch>) {
            let early = self.pending.take_early(self.now);
            let seqs = self.pending.take(true).events.iter().map(|entry| entry.seq).collect();
            (seqs, early.entries.iter().map(|entry| entry.epoch).collect())
        }
    }

    #[test]
    fn changes_wait_in_order_and_are_taken_once() {
        let mut desk = Desk::new();
        desk.commit(&[buy(1, 18_200), buy(2, 18_300)]);
        desk.commit(&[judge(3, 0, vec![])]);
        assert_eq!(desk.pending.head().map(|head| (head.epoch, head.seq)), Some((3, 3)));
        assert_eq!(desk.take(), (vec![1, 2, 3], vec![]));
        assert_eq!(desk.take(), (vec![], vec![]));
    }

    #[test]
    fn too_many_are_given_up() {
        let mut desk = Desk::new();
        let epochs: Vec<ClosedEpoch> = (1..=QUEUE as u64 + 1).map(|i| buy(i, 18_000 + i as i64)).collect();
        desk.commit(&epochs);
        let taken = desk.pending.take(true);
        assert!(taken.overflowed && taken.events.is_empty());
        desk.commit(&[buy(QUEUE as u64 + 2, 1_000)]);
        let taken = desk.pending.take(true);
        assert!(!taken.overflowed && taken.events.len() == 1, "and then it goes on");
    }

    #[test]
    fn an_early_value_waits_until_it_is_committed() {
        let mut desk = Desk::new();
        assert!(desk.pending.closed(&buy(1, 18_200), desk.now));
        assert!(desk.pending.closed(&buy(2, 18_300), desk.now));
        assert_eq!(desk.take(), (vec![], vec![2]), "the newest of a key");
        let third = buy(3, 18_400);
        assert!(desk.pending.closed(&third, desk.now));
        let early = desk.pending.take_early(desk.now);
        assert_eq!((early.entries.len(), early.since), (1, Some(third.closed_at)));
        assert_eq!(desk.pending.take_early(desk.now), Early::default());
        desk.commit(&[buy(1, 18_200), buy(2, 18_300), buy(3, 18_400)]);
        assert_eq!(desk.take(), (vec![1, 2, 3], vec![]), "it comes with its seq");
        assert_eq!(desk.pending.early_until(), 3);
    }

    #[test]
    fn what_the_store_leaves_out_is_not_published_early() {
        let mut desk = Desk::new();
        assert!(desk.pending.closed(&judge(1, 5, vec![]), desk.now));
        assert!(!desk.pending.closed(&judge(2, 6, vec![]), desk.now), "only as_of differs");
        assert!(desk.pending.closed(&judge(3, 7, vec![BlockReason::KillSwitch]), desk.now));
        let gone = closed(4, vec![Change::Delete(judged(verdict("M1", "IBM", vec![])))]);
        assert!(desk.pending.closed(&gone, desk.now));
        let early = desk.pending.take_early(desk.now);
        let key = AuditKey::Verdict(account("M1"), symbol("IBM"));
        assert_eq!(early.entries, [AuditEntry { seq: 0, epoch: 4, generation: 1, key, payload: None }]);
    }

    #[test]
    fn nothing_is_early_while_a_commit_stalls() {
        let mut desk = Desk::new();
        assert!(desk.pending.closed(&buy(1, 18_200), desk.now));
        desk.now += STALLED;
        assert_eq!(desk.take(), (vec![], vec![]), "not even what waited");
        assert!(!desk.pending.closed(&buy(2, 18_300), desk.now));
        desk.commit(&[buy(1, 18_200)]);
        assert!(desk.pending.closed(&buy(3, 18_400), desk.now), "the second has just closed");
        assert_eq!(desk.take(), (vec![1], vec![3]));
    }

    #[test]
    fn what_could_not_be_written_waits_again_unless_it_is_overtaken() {
        let mut desk = Desk::new();
        let epochs = [buy(1, 18_200), judge(2, 5, vec![]), buy(3, 18_300)];
        assert!(epochs[..2].iter().all(|epoch| desk.pending.closed(epoch, desk.now)));
        let early = desk.pending.take_early(desk.now);
        let since = early.since;
        assert!(since.is_some());
        assert!(desk.pending.closed(&epochs[2], desk.now));
        desk.pending.give_back(early);
        let again = desk.pending.take_early(desk.now);
        let epochs_of = |early: &Early| early.entries.iter().map(|entry| entry.epoch).collect::<Vec<_>>();
        assert_eq!((epochs_of(&again), again.since), (vec![3, 2], since), "the newer one of a key");
        desk.commit(&epochs);
        desk.pending.give_back(again);
        assert_eq!(desk.pending.take_early(desk.now), Early::default(), "what is committed is written as such");
    }
}

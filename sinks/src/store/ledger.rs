//! The store's state without its I/O: numbers the audit, skips what did not really change, nets several epochs.

use super::behind::is_late;
use super::{AuditEntry, AuditKey, Committed, Standing, StoreError};
use marea_model::output::{Change, ClosedEpoch, Key};
use marea_model::{
    AccountId, AccountSnapshot, Amount, DeadLetter, Epoch, Metrics, Output, Partition, PartitionMark, Quote,
    RawMessage, Symbol, Tick,
};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A row that should stand under a key, or none.
pub(crate) type Repair = (Key, Option<Output>);

/// The store's state without its I/O: numbers the audit, skips what did not really change, nets several epochs.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) standing: Standing,
    /// The last audit row of each key, without `as_of`.
    last: BTreeMap<AuditKey, Arc<str>>,
    /// The greatest snapshot of each account, and the greatest equity of all its snapshots.
    accounts: BTreeMap<AccountId, (AccountSnapshot, Amount)>,
    /// Partitions of which there are, or were, messages kept.
    kept: BTreeSet<Partition>,
    /// What the next commit mends.
    repairs: Vec<Repair>,
}

/// What one transaction writes.
pub(crate) struct Plan<'a> {
    pub(crate) standing: Standing,
    /// What stands from then on under each key that changed, and since when, but for what is written behind.
    /// Recommendations and verdicts only where the audit has an entry.
    pub(crate) rows: BTreeMap<Key, (Option<Cow<'a, Output>>, Epoch)>,
    pub(crate) audit: Vec<AuditEntry>,
    pub(crate) dead: Vec<(&'a DeadLetter, Epoch)>,
    /// The last mark of each partition that moved.
    pub(crate) marks: BTreeMap<Partition, PartitionMark>,
    pub(crate) raw: Vec<&'a RawMessage>,
    /// Before which offset messages of a partition need not be kept any longer.
    pub(crate) lows: Vec<(Partition, u64)>,
    /// The latest quote of each symbol that is new or has another one.
    pub(crate) quotes: BTreeMap<Symbol, (Option<Quote>, Epoch)>,
    /// Each account that was heard of: its greatest snapshot, and the greatest equity of all.
    pub(crate) accounts: BTreeMap<AccountId, (AccountSnapshot, Amount, Epoch)>,
    pub(crate) amends: Vec<(&'a Tick, Epoch)>,
    last: BTreeMap<AuditKey, Option<Arc<str>>>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(generation: u64) -> Self {
        Ledger::resume(Standing::empty(generation), None, BTreeMap::new(), BTreeSet::new())
    }

    /// Where it stands.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Commits without a store: for a feed without one, and for tests.
    pub fn commit(&mut self, epochs: &[ClosedEpoch]) -> Result<Committed, StoreError> {
        let plan = self.plan(epochs)?;
        let accepted = plan.accepted();
        Ok(self.accept(accepted))
    }

    pub(crate) fn resume(
        standing: Standing,
        payloads: impl IntoIterator<Item = (AuditKey, Arc<str>)>,
        accounts: BTreeMap<AccountId, (AccountSnapshot, Amount)>,
        kept: BTreeSet<Partition>,
    ) -> Self {
        let last = payloads.into_iter().map(|(key, payload)| (key, without_as_of(&payload))).collect();
        Ledger { standing, last, accounts, kept, repairs: Vec::new() }
    }

    /// The recommendations and verdicts that stand, without `as_of`.
    pub(crate) fn payloads(&self) -> &BTreeMap<AuditKey, Arc<str>> {
        &self.last
    }

    /// The greatest snapshot of each account and its peak, ordered by account.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = &(AccountSnapshot, Amount)> {
        self.accounts.values()
    }

    /// What the next commit mends beside what its epochs say.
    pub(crate) fn repair(&mut self, repairs: Vec<Repair>) {
        self.repairs = repairs;
    }

    /// The same state as it was read again after a failure: what was to be mended still is, unless that is done.
    pub(crate) fn replace(&mut self, reread: Ledger) {
        let landed = reread.standing.upper > self.standing.upper;
        let repairs = std::mem::take(&mut self.repairs);
        // What is to be mended behind may not have been noted yet.
        let low = self.standing.indicators_low.min(reread.standing.indicators_low);
        *self = reread;
        self.standing.indicators_low = low;
        self.repairs = if landed { Vec::new() } else { repairs };
    }

    /// What a transaction of these epochs writes. Changes nothing.
    pub(crate) fn plan<'a>(&'a self, epochs: &'a [ClosedEpoch]) -> Result<Plan<'a>, StoreError> {
        let mut plan = Plan {
            standing: self.standing.clone(),
            rows: BTreeMap::new(),
            audit: Vec::new(),
            dead: Vec::new(),
            marks: BTreeMap::new(),
            raw: Vec::new(),
            lows: Vec::new(),
            quotes: BTreeMap::new(),
            accounts: BTreeMap::new(),
            amends: Vec::new(),
            last: BTreeMap::new(),
        };
        if let Some(first) = epochs.first() {
            for (key, row) in &self.repairs {
                self.plan_row(key.clone(), row.as_ref().map(Cow::Borrowed), first.epoch, &mut plan)?;
            }
        }
        for closed in epochs {
            if closed.epoch < plan.standing.upper {
                return Err(StoreError::EpochOrder { epoch: closed.epoch, upper: plan.standing.upper });
            }
            // Of metrics and indicators, which follow, only that they can be written.
            if let Some(row) = closed.rows.metrics.iter().find(|row| metrics_have_nan(&row.metrics)) {
                let key = Output::Metrics(Box::new(*row)).key();
                return Err(StoreError::NotANumber { key: Box::new(key) });
            }
            let bars = closed.rows.bars.iter().copied().map(Output::Bar);
            for row in bars.chain(closed.rows.trades.iter().cloned().map(Output::Trade)) {
                self.plan_row(row.key(), Some(Cow::Owned(row)), closed.epoch, &mut plan)?;
            }
            for change in &closed.changes {
                let (row, stands) = match change {
                    Change::Upsert(row) => (row, Some(Cow::Borrowed(row))),
                    Change::Delete(row) => (row, None),
                };
                self.plan_row(row.key(), stands, closed.epoch, &mut plan)?;
            }
            plan.dead.extend(closed.dead.iter().map(|letter| (letter, closed.epoch)));
            plan.marks.extend(closed.marks.iter().map(|mark| (mark.partition, *mark)));
            plan.raw.extend(&closed.raw);
            plan.quotes.extend(closed.quotes.iter().map(|(symbol, quote)| (*symbol, (*quote, closed.epoch))));
            for snapshot in &closed.accounts {
                self.plan_account(snapshot, closed.epoch, &mut plan);
            }
            plan.amends.extend(closed.amends.iter().map(|tick| (tick, closed.epoch)));
            plan.standing.totals.add(&closed.totals);
            plan.standing.progress = closed.progress;
            plan.standing.upper = closed.epoch + 1;
        }
        plan.standing.partitions.extend(&plan.marks);
        let kept = |partition: &Partition| {
            self.kept.contains(partition) || plan.raw.iter().any(|message| message.cursor.partition == *partition)
        };
        let marks = plan.marks.values().filter(|mark| kept(&mark.partition));
        plan.lows = marks.map(|mark| (mark.partition, mark.low)).collect();
        Ok(plan)
    }

    fn plan_row<'a>(
        &self,
        key: Key,
        row: Option<Cow<'a, Output>>,
        epoch: Epoch,
        plan: &mut Plan<'a>,
    ) -> Result<(), StoreError> {
        if row.as_deref().is_some_and(has_nan) {
            return Err(StoreError::NotANumber { key: Box::new(key) });
        }
        if is_late(&key) {
            return Ok(());
        }
        if let Some(audit_key) = super::rows::audit_key(&key) {
            let payload = row.as_deref().and_then(payload_of);
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
        plan.rows.insert(key, (row, epoch));
        Ok(())
    }

    fn plan_account(&self, snapshot: &AccountSnapshot, epoch: Epoch, plan: &mut Plan<'_>) {
        let id = snapshot.account;
        let known = || match self.accounts.get(&id) {
            Some((greatest, peak)) => (greatest.clone(), *peak, epoch),
            None => (snapshot.clone(), snapshot.equity, epoch),
        };
        let (greatest, peak, since) = plan.accounts.entry(id).or_insert_with(known);
        *peak = (*peak).max(snapshot.equity);
        *since = epoch;
        // Of one account: event_time, seq, then the content.
        if *snapshot > *greatest {
            *greatest = snapshot.clone();
        }
    }

    /// Takes a plan as committed.
    pub(crate) fn accept(&mut self, accepted: Accepted) -> Committed {
        for (key, payload) in accepted.last {
            match payload {
                Some(payload) => self.last.insert(key, payload),
                None => self.last.remove(&key),
            };
        }
        self.accounts.extend(accepted.accounts);
        self.kept.extend(accepted.kept);
        if accepted.standing.upper > self.standing.upper {
            self.repairs.clear();
        }
        self.standing = accepted.standing;
        let Standing { upper, generation, last_seq, totals, .. } = self.standing;
        Committed { upper, generation, last_seq, totals, audit: accepted.audit }
    }
}

/// What a committed plan leaves.
pub(crate) struct Accepted {
    pub(crate) standing: Standing,
    audit: Vec<AuditEntry>,
    last: BTreeMap<AuditKey, Option<Arc<str>>>,
    accounts: Vec<(AccountId, (AccountSnapshot, Amount))>,
    kept: BTreeSet<Partition>,
}

impl Plan<'_> {
    /// What is left of it once it is written.
    pub(crate) fn accepted(self) -> Accepted {
        let accounts = self.accounts.into_iter().map(|(id, (snapshot, peak, _))| (id, (snapshot, peak))).collect();
        let kept = self.raw.iter().map(|message| message.cursor.partition).collect();
        Accepted { standing: self.standing, audit: self.audit, last: self.last, accounts, kept }
    }
}

/// A recommendation or verdict as JSON.
pub(crate) fn payload_of(row: &Output) -> Option<Arc<str>> {
    match row {
        Output::Recommendation(row) => Some(payload(row.as_ref())),
        Output::Verdict(row) => Some(payload(row.as_ref())),
        _ => None,
    }
}

fn payload<T: serde::Serialize>(row: &T) -> Arc<str> {
    serde_json::to_string(row).expect("rows have text keys and no failing serializer").into()
}

/// The payload, as [`payload_of`] writes it, without its field `as_of`. (In a text that is a value a quote is escaped: only
/// a key reads so.)
pub(crate) fn without_as_of(payload: &str) -> Arc<str> {
    const KEY: &str = r#","as_of":""#;
    let cut = || {
        let (before, rest) = payload.split_once(KEY)?;
        let (_, after) = rest.split_once('"')?;
        Some([before, after].concat().into())
    };
    cut().unwrap_or_else(|| payload.into())
}

/// SQLite would make NULL of it, and JSON null: an undefined value that nobody declared so.
fn metrics_have_nan(metrics: &Metrics) -> bool {
    metrics.named().into_iter().any(|(_, value)| value.is_some_and(f64::is_nan))
}

fn has_nan(row: &Output) -> bool {
    match row {
        Output::Bar(_) | Output::Verdict(_) => false,
        Output::Indicator(row) => row.value.0.is_nan(),
        Output::Trade(t) => {
            [t.entry_price, t.exit_price, t.quantity, t.pnl, t.fees].into_iter().any(|value| value.0.is_nan())
        }
        Output::Metrics(row) => metrics_have_nan(&row.metrics),
        Output::Recommendation(r) => [Some(r.strength), Some(r.consensus), Some(r.confidence), r.atr]
            .into_iter()
            .any(|value| value.is_some_and(|v| v.0.is_nan())),
    }
}

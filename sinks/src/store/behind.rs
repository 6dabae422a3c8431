//! Metrics and indicators: they are many, so they are written behind recommendations and verdicts, with an upper of
//! their own.
//!
//! ```text
//!  committed epochs ──► due: the newest row of each key ──► a pass, at most one a second ──► chunks, a transaction each
//! ```
//!
//! 1. **Bounded**: a chunk has so many rows that the next epoch waits for it some milliseconds at most. Above
//!    [`MOST`] rows that wait, epochs wait: then the store is too slow for what is computed, and says so to the sources.
//! 2. **Fence**: the first statement of each chunk asks for this writer's generation, as that of every commit does.
//! 3. `metrics_upper` moves with the last chunk of a pass. It never passes an epoch whose metrics were not asked for yet.
//! 4. `indicators_low` sinks in the transaction of the epoch that makes a row due, and rises with the last chunk of a
//!    pass: rows of bars before it all stand, even where ticks that could make them anew are sealed meanwhile.
//! 5. **After a kill** [`Store::verify`](super::Store::verify) finds what was due, and makes it due again. Writing a row
//!    twice changes nothing.

use super::cell::Cell;
use super::link::{Link, Named};
use super::rows::{cells, key_cells, table_of};
use super::tables::{Action, Batch, STATE};
use super::writer::write_batch;
use super::{Standing, StoreError, load};
use crate::failpoint;
use marea_model::output::{Change, ClosedEpoch, Key};
use marea_model::{Epoch, Nanos, Output, Rows};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The least time between the beginnings of two passes.
const EVERY: Duration = Duration::from_secs(1);
/// Rows of a chunk that an epoch may have to wait for.
pub(crate) const CHUNK: usize = 500;
/// Rows of a chunk while nothing but metrics and indicators is to be written.
pub(crate) const BULK: usize = 10_000;
/// The most rows that wait, about 100 MB: as many as 1,000 strategies have on 100 symbols.
pub(crate) const MOST: usize = 200_000;

/// What should stand under a key, and since when.
pub(crate) type Late = (Option<Output>, Epoch);

/// What an epoch has made due.
#[derive(Debug)]
struct Fresh {
    epoch: Epoch,
    changes: Vec<(Key, Option<Output>)>,
    rows: Arc<Rows>,
}

impl Fresh {
    fn len(&self) -> usize {
        self.changes.len() + self.rows.len() - self.rows.bars.len() - self.rows.trades.len()
    }
}

/// What is not written yet.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// What came last, epoch by epoch: not looked at yet, since whoever waits for the epoch's verdicts waits for that too.
    fresh: Vec<Fresh>,
    /// The newest of each key since the pass began, of what was looked at.
    due: BTreeMap<Key, Late>,
    /// What the pass has not come to.
    pass: BTreeMap<Key, Late>,
    /// What is being written. Kept until it stands.
    chunk: Vec<(Key, Late)>,
    /// Where `metrics_upper` comes to with the last chunk of the pass.
    leads_to: Epoch,
    /// The first epoch whose metrics were not asked for.
    given: Epoch,
    /// The first epoch that was not gathered.
    gathered: Epoch,
    /// When the last pass began.
    began: Option<Instant>,
}

/// Whether rows of this key are written behind.
pub(crate) fn is_late(key: &Key) -> bool {
    matches!(key, Key::Metrics(..) | Key::Indicator(..))
}

fn is_late_row(row: &Output) -> bool {
    matches!(row, Output::Metrics(_) | Output::Indicator(_))
}

fn row(change: &Change) -> &Output {
    match change {
        Change::Upsert(row) | Change::Delete(row) => row,
    }
}

impl Behind {
    /// Nothing is due of epochs before `upper`.
    pub(crate) fn new(upper: Epoch) -> Self {
        Behind { gathered: upper, ..Behind::default() }
    }

    /// Rows that wait.
    pub(crate) fn len(&self) -> usize {
        self.fresh.iter().map(Fresh::len).sum::<usize>() + self.due.len() + self.pass.len() + self.chunk.len()
    }

    /// Whether a pass is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.pass.is_empty() || !self.chunk.is_empty()
    }

    /// Whether a chunk is to be written by now.
    pub(crate) fn is_due(&self) -> bool {
        let waited = || self.began.is_none_or(|began| began.elapsed() >= EVERY);
        self.is_under_way() || (self.len() > 0 && waited())
    }

    /// `metrics_upper` and `indicators_low` as they are once these epochs are committed.
    pub(crate) fn with(&self, standing: &Standing, epochs: &[ClosedEpoch]) -> (Epoch, Nanos) {
        let (mut low, mut late) = (standing.indicators_low, self.len() > 0);
        let mut given = standing.metrics_upper.max(self.given);
        for closed in epochs {
            let rows = closed.rows.indicators.blocks().flat_map(|(_, _, _, open_times, _)| open_times).copied();
            let changed = closed.changes.iter().filter_map(|change| match row(change) {
                Output::Indicator(row) => Some(row.open_time),
                _ => None,
            });
            low = rows.chain(changed).fold(low, Nanos::min);
            late |= !closed.rows.metrics.is_empty() || !closed.rows.indicators.is_empty();
            late = late || closed.changes.iter().any(|change| is_late_row(row(change)));
            if closed.metrics {
                given = closed.epoch + 1;
            }
        }
        (if late { standing.metrics_upper } else { given }, low)
    }

    /// Takes what these epochs, which are committed, make due. Costs what each has withdrawn or corrected, not its rows.
    pub(crate) fn gather(&mut self, epochs: &[ClosedEpoch]) {
        for closed in &epochs[epochs.partition_point(|closed| closed.epoch < self.gathered)..] {
            let changed = closed.changes.iter().filter(|change| is_late_row(row(change))).map(|change| match change {
                Change::Upsert(row) => (row.key(), Some(row.clone())),
                Change::Delete(row) => (row.key(), None),
            });
            let fresh = Fresh { epoch: closed.epoch, changes: changed.collect(), rows: Arc::clone(&closed.rows) };
            if fresh.len() > 0 {
                self.fresh.push(fresh);
            }
            self.gathered = closed.epoch + 1;
            if closed.metrics {
                self.given = self.gathered;
            }
        }
    }

    /// Looks at what came last.
    fn sort(&mut self) {
        for Fresh { epoch, changes, rows } in self.fresh.drain(..) {
            let rows = rows.outputs().filter(is_late_row).map(|row| (row.key(), (Some(row), epoch)));
            // Put into an empty map, all of them are sorted at once.
            let mut new: BTreeMap<Key, Late> =
                changes.into_iter().map(|(key, row)| (key, (row, epoch))).chain(rows).collect();
            if new.len() > self.due.len() / 8 {
                self.due.append(&mut new);
            } else {
                self.due.extend(new);
            }
        }
    }

    /// Takes what a restart found otherwise than it was computed again, at the epoch before `upper`.
    pub(crate) fn repair(&mut self, repairs: impl Iterator<Item = (Key, Option<Output>)>, upper: Epoch) {
        self.sort();
        self.due.extend(repairs.map(|(key, row)| (key, (row, upper.saturating_sub(1)))));
        self.given = upper;
    }

    /// What is written next, of at most so many rows; the same again until it stands. Begins a
    /// pass if none is under way.
    fn next(&mut self, rows: usize) -> &[(Key, Late)] {
        self.sort();
        if !self.is_under_way() {
            (self.pass, self.leads_to) = (std::mem::take(&mut self.due), self.given);
            self.began = Some(Instant::now());
        }
        if self.chunk.is_empty() {
            let first = std::iter::from_fn(|| self.pass.pop_first());
            self.chunk.extend(first.take(rows));
        }
        &self.chunk
    }

    /// `metrics_upper` and `indicators_low` as they are once the chunk is written.
    fn after(&self, standing: &Standing) -> (Epoch, Nanos) {
        if !self.pass.is_empty() {
            return (standing.metrics_upper, standing.indicators_low);
        }
        let open_times = self.due.keys().filter_map(|key| match key {
            Key::Indicator(_, _, open_time, _) => Some(*open_time),
            _ => None,
        });
        let upper = if self.due.is_empty() { self.given } else { self.leads_to };
        (upper.max(standing.metrics_upper), open_times.min().unwrap_or(Nanos::MAX))
    }

    /// Writes the next chunk; gives `metrics_upper` and `indicators_low` as they are then.
    pub(crate) async fn write(
        &mut self,
        link: &mut Link,
        named: &Named,
        standing: &Standing,
        rows: usize,
    ) -> Result<(Epoch, Nanos), StoreError> {
        self.next(rows);
        let after = self.after(standing);
        let error = |error: sqlx::Error| named.error(&error);
        link.begin().await.map_err(error)?;
        let fence: [Cell; 3] = [after.0.into(), after.1.into(), standing.generation.into()];
        if link.execute(FENCE, &fence).await.map_err(error)? == 0 {
            return Err(super::writer::fenced(standing, &load::standing(link, named, false).await?));
        }
        failpoint::pass("behind.fenced");
        for batch in batches(&self.chunk) {
            write_batch(link, named, &batch).await?;
        }
        failpoint::pass("behind.end");
        link.commit().await.map_err(error)?;
        failpoint::pass("behind.unheard");
        self.chunk.clear();
        Ok(after)
    }
}

const FENCE: &str = "UPDATE pipeline SET metrics_upper = $1, indicators_low = $2 WHERE id = 1 AND generation = $3";

/// What these rows are to the tables.
pub(crate) fn batches(chunk: &[(Key, Late)]) -> Vec<Batch> {
    let mut all: BTreeMap<(usize, Action), Vec<Vec<Cell>>> = BTreeMap::new();
    for (key, (row, epoch)) in chunk {
        let (action, cells) = match row {
            Some(row) => {
                let mut cells = cells(row);
                cells.push((*epoch).into());
                (Action::Upsert, cells)
            }
            None => (Action::Delete, key_cells(key)),
        };
        all.entry((table_of(key), action)).or_default().push(cells);
    }
    all.into_iter().map(|((table, action), rows)| Batch::new(STATE[table], action, rows)).collect()
}

/// Whether a row that stands so is no more than behind: it was due when the process was killed.
pub(crate) fn was_due(key: &Key, standing: &Standing) -> bool {
    match key {
        Key::Metrics(..) => standing.metrics_upper < standing.upper,
        Key::Indicator(_, _, open_time, _) => *open_time >= standing.indicators_low,
        _ => false,
    }
}

//! The cutter: the one place that decides when an epoch ends, what `now` is, and which record is late.
//!
//! ```text
//!  sources ──Input──► queue ──judge, record by record──► Cut (epoch, records, progress, dead letters, cursors)
//! ```
//!
//! **Epochs** rise strictly: `now_ms · 4096 + n`. The clock of `now` is either the wall ([`Clock::Wall`]) or the greatest
//! event time in milliseconds of accepted trades, accepted quotes and account snapshots ([`Clock::Event`]). When the
//! 4,096 epochs of a millisecond are used up, the wall clock waits for the next one ([`Cutter::cut`] returns none), the
//! event clock advances one. A wall clock that was set back stands still until time has caught up.
//!
//! **Lateness** never uses `now`. The watermark is the least, over the partitions that count, of the greatest event time
//! *before this record*; `sealed_through` is the greatest (watermark − lateness) so far; a record is late iff its event
//! time is before it. A bust or correction is judged by its target's event time and moves nothing. An amend is never
//! late and moves nothing. A partition does not count when it is finished, when it has been at its end for 60 s of wall
//! time, or when it is at its end and never sent a record. One that was announced and has sent nothing counts, and holds
//! the watermark back.
//!
//! **Closing.** `closed_through` is the greatest so far of min(`now`, the least greatest event time of the partitions
//! that are not at their end). Before any partition is announced nothing is closed.
//!
//! **Size.** A cut takes what is pending, at most `max_ticks` records, except that it never ends inside a message (the
//! rows of one offset stay together), so that its cursors say exactly where it ended.
//!
//! No I/O and no clock of its own: wall time is an argument. Cost: O(1) a record, plus O(partitions) whenever the
//! partition that holds the watermark moves.

use marea_model::codec::json;
use marea_model::cursor::{Batch, Reason};
use marea_model::output::Totals;
use marea_model::time::{EPOCHS_PER_MS, MILLI, SECOND, first_epoch, format_rfc3339, now_ms, now_ns};
use marea_model::{
    AccountSnapshot, ConfigUpdate, Cursor, DeadLetter, Epoch, Event, Instruments, Nanos, Partition, Progress, Record,
    Timeframe,
};
use marea_sources::Input;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How long a partition must be at its end before it stops holding the watermark back.
pub const IDLE_AFTER: Nanos = 60 * SECOND;

/// What `now` follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// The wall: live.
    Wall,
    /// The greatest event time cut so far: replay.
    Event,
}

/// How to cut.
#[derive(Clone, Debug)]
pub struct CutterConfig {
    /// What `now` follows.
    pub clock: Clock,
    /// How far behind the watermark a record may be.
    pub lateness: Nanos,
    /// The most records in an epoch, at least 1.
    pub max_ticks: usize,
    /// All timeframes: the default end of a finite input is their greatest close.
    pub timeframes: Vec<Timeframe>,
    /// For writing late records again.
    pub instruments: Arc<Instruments>,
}

/// One epoch's input.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The epoch.
    pub epoch: Epoch,
    /// Its records in order, late ones left out.
    pub records: Vec<Record>,
    /// Account snapshots.
    pub accounts: Vec<AccountSnapshot>,
    /// Changes of the live configuration, revisions whole and in order.
    pub config: Vec<ConfigUpdate>,
    /// As of the end of the epoch.
    pub progress: Progress,
    /// What could not be read, and what came late.
    pub dead: Vec<DeadLetter>,
    /// `records_in` (records, account snapshots and rejects), `accepted` (account snapshots alone: records are judged
    /// on), `dead` (as above), `unknown_fields`.
    pub counts: Totals,
    /// The first offset not yet cut, of each partition that moved.
    pub cursors: Vec<(Partition, u64)>,
    /// When the first of it was received, by the wall clock; none of an epoch without batches.
    pub received: Option<Nanos>,
}

impl Cut {
    fn moved(&mut self, partition: Partition, upper: u64) {
        match self.cursors.iter_mut().rev().find(|(p, _)| *p == partition) {
            Some((_, u)) => *u = upper.max(*u),
            None => self.cursors.push((partition, upper)),
        }
    }

    /// Whether the cut stands after this place.
    fn is_past(&self, cursor: &Cursor) -> bool {
        self.cursors.iter().any(|(p, upper)| *p == cursor.partition && *upper > cursor.offset)
    }
}

/// A partition, as far as it has been cut.
struct PartitionState {
    greatest: Option<Nanos>,
    /// Since when (wall time) it is at its end.
    at_end_since: Option<Nanos>,
    finished: bool,
}

impl PartitionState {
    fn at_end(&self) -> bool {
        self.finished || self.at_end_since.is_some()
    }

    fn holds_watermark(&self, wall: Nanos) -> bool {
        !self.finished && self.at_end_since.is_none_or(|since| self.greatest.is_some() && wall - since < IDLE_AFTER)
    }
}

struct PendingBatch {
    records: std::vec::IntoIter<Record>,
    /// The rest of the batch; its `records` are above.
    rest: Batch,
}

enum Pending {
    Start(Partition),
    Batch(Box<PendingBatch>),
    Config(Vec<ConfigUpdate>),
    Finished(Partition),
}

/// Takes [`Input`]s, gives [`Cut`]s.
pub struct Cutter {
    config: CutterConfig,
    queue: VecDeque<(Nanos, Pending)>,
    pending: usize,
    partitions: Vec<PartitionState>,
    index: HashMap<Partition, usize>,
    /// Batches of each partition that wait to be cut: it is not at its end, whatever the last one said.
    queued: HashMap<Partition, usize>,
    /// Of the partitions that hold it; none while one of them has sent nothing, or there are none.
    watermark: Option<Nanos>,
    /// The greatest wall time that was told.
    wall: Nanos,
    /// The greatest event time of accepted trades and quotes, and account snapshots.
    greatest: Option<Nanos>,
    progress: Progress,
    last: Epoch,
}

impl Cutter {
    /// A cutter that has seen nothing.
    ///
    /// # Panics
    /// If `max_ticks` is 0.
    pub fn new(config: CutterConfig) -> Self {
        assert!(config.max_ticks > 0, "an epoch of no records never ends");
        Cutter {
            config,
            queue: VecDeque::new(),
            pending: 0,
            partitions: Vec::new(),
            index: HashMap::new(),
            queued: HashMap::new(),
            watermark: None,
            wall: Nanos::MIN,
            greatest: None,
            progress: Progress::START,
            last: 0,
        }
    }

    /// Queues an input that arrived at this wall time.
    pub fn push(&mut self, input: Input, wall_now: Nanos) {
        let pending = match input {
            Input::Start { partition } => Pending::Start(partition),
            Input::Batch(mut batch) => {
                self.pending += batch.records.len() + batch.rejects.len() + batch.accounts.len();
                *self.queued.entry(batch.partition).or_default() += 1;
                let records = std::mem::take(&mut batch.records).into_iter();
                Pending::Batch(Box::new(PendingBatch { records, rest: batch }))
            }
            Input::Config(updates) => Pending::Config(updates),
            Input::Finished { partition } => Pending::Finished(partition),
        };
        self.queue.push_back((wall_now, pending));
    }

    /// Whether an epoch is full.
    pub fn ready(&self) -> bool {
        self.pending >= self.config.max_ticks
    }

    /// Whether nothing is pending.
    pub fn is_drained(&self) -> bool {
        self.queue.is_empty()
    }

    /// Cuts what is pending. With the wall clock, an empty cut too, as time has passed. None when nothing has changed, or
    /// when the epochs of this millisecond are used up.
    pub fn cut(&mut self, wall_ms: i64) -> Option<Cut> {
        let last_ms = now_ms(self.last);
        if self.config.clock == Clock::Wall && wall_ms == last_ms && self.last % EPOCHS_PER_MS == EPOCHS_PER_MS - 1 {
            return None;
        }
        let (untouched, before) = (self.queue.is_empty(), self.progress);
        let mut cut = self.take(self.config.max_ticks);
        // What is still queued arrived before now: who fell idle since is judged when its turn comes.
        if self.queue.is_empty() {
            self.wall = self.wall.max(wall_ms * MILLI);
        }
        let clock_ms = match self.config.clock {
            Clock::Wall => wall_ms,
            Clock::Event => self.greatest.map_or(0, |t| t.div_euclid(MILLI)),
        };
        let epoch = first_epoch(clock_ms.max(0)).max(self.last + 1);
        self.advance(now_ns(epoch));
        if untouched && self.progress == before && (self.config.clock == Clock::Event || wall_ms <= last_ms) {
            return None;
        }
        self.last = epoch;
        cut.epoch = epoch;
        cut.progress = self.progress;
        Some(cut)
    }

    /// The closing cut of a finite input: all that is pending, and `now` moves on to `until`, by default the greatest
    /// close over all timeframes of the greatest event time. Everything up to there is closed. `now` never moves back: an
    /// `until` before it changes nothing. Sealed is what lies behind the greatest event time of all by the lateness.
    pub fn finish(&mut self, until: Option<Nanos>) -> Cut {
        let mut cut = self.take(usize::MAX);
        let default = || {
            let greatest = self.greatest?;
            self.config.timeframes.iter().map(|t| t.close_time(greatest)).max()
        };
        let end = until.or_else(default).unwrap_or(0).max(self.greatest.unwrap_or(0)).max(0);
        let end_ms = end.div_euclid(MILLI) + i64::from(end.rem_euclid(MILLI) > 0);
        let epoch = first_epoch(end_ms).max(self.last + 1);
        self.seal();
        // Nothing more comes, so no partition holds the others back: which one finished first must not matter.
        let sealed =
            self.partitions.iter().filter_map(|p| p.greatest).max().map(|t| t.saturating_sub(self.config.lateness));
        self.progress.sealed_through = self.progress.sealed_through.max(sealed.unwrap_or(Nanos::MIN));
        self.progress.closed_through = self.progress.closed_through.max(now_ns(epoch));
        self.last = epoch;
        cut.epoch = epoch;
        cut.progress = self.progress;
        cut
    }

    fn take(&mut self, max: usize) -> Cut {
        let mut cut = Cut {
            epoch: 0,
            records: Vec::new(),
            accounts: Vec::new(),
            config: Vec::new(),
            progress: Progress::START,
            dead: Vec::new(),
            counts: Totals::default(),
            cursors: Vec::new(),
            received: None,
        };
        let mut room = max;
        while room > 0 {
            let Some((wall, mut pending)) = self.queue.pop_front() else { break };
            // Who fell idle before this arrived is judged before it is, so that it does not matter when cuts are asked for.
            self.wall = self.wall.max(wall);
            self.seal();
            match &mut pending {
                Pending::Start(partition) => {
                    self.partition(*partition);
                }
                Pending::Config(updates) => cut.config.append(updates),
                Pending::Finished(partition) => {
                    let i = self.partition(*partition);
                    self.partitions[i].finished = true;
                }
                Pending::Batch(batch) => {
                    let taken = self.take_batch(batch, room, wall, &mut cut);
                    self.pending -= taken;
                    room = room.saturating_sub(taken);
                    if batch.records.len() > 0 {
                        self.queue.push_front((wall, pending));
                        break;
                    }
                }
            }
        }
        cut.counts.dead = cut.dead.len() as i64;
        cut
    }

    /// Takes up to `room` records of a batch (more, if a message has more), and says how many, with rejects and snapshots.
    fn take_batch(&mut self, pending: &mut PendingBatch, room: usize, wall: Nanos, cut: &mut Cut) -> usize {
        let i = self.partition(pending.rest.partition);
        cut.received = Some(cut.received.map_or(pending.rest.receive_time, |t| t.min(pending.rest.receive_time)));
        let before = pending.records.len();
        if before > 0 {
            self.partitions[i].at_end_since = None;
            self.seal();
        }
        let mut at: Option<Cursor> = None;
        while let Some(next) = pending.records.as_slice().first() {
            let (next, same_partition) = (next.cursor, at.is_none_or(|at| at.partition == next.cursor.partition));
            let same_message = at.is_some_and(|at| same_partition && at.offset == next.offset);
            if before - pending.records.len() >= room && !same_message {
                break;
            }
            if let (Some(at), false) = (at, same_partition) {
                cut.moved(at.partition, at.offset + 1);
            }
            at = Some(next);
            if let Some(record) = pending.records.next() {
                self.judge(i, record, cut);
            }
        }
        if let Some(at) = at {
            cut.moved(at.partition, at.offset + 1);
        }

        let done = pending.records.len() == 0;
        let rest = &mut pending.rest;
        if done {
            cut.moved(rest.partition, rest.upper);
            if let Some(batches) = self.queued.get_mut(&rest.partition) {
                *batches -= 1;
            }
            let since = self.partitions[i].at_end_since;
            self.partitions[i].at_end_since = rest.at_end.then(|| since.unwrap_or(wall));
        }
        // Of a batch that is cut in two, the first cut has what stands before its end.
        let rejects = cut_off(&mut rest.rejects, |reject| done || cut.is_past(&reject.cursor));
        let accounts = cut_off(&mut rest.accounts, |(cursor, _)| done || cut.is_past(cursor));
        let taken = before - pending.records.len() + rejects.len() + accounts.len();
        cut.counts.records_in += taken as i64;
        cut.counts.accepted += accounts.len() as i64;
        cut.counts.unknown_fields += std::mem::take(&mut rest.unknown_fields) as i64;
        cut.dead.extend(rejects);
        for (_, snapshot) in accounts {
            self.greatest = self.greatest.max(Some(snapshot.event_time));
            cut.accounts.push(snapshot);
        }
        self.seal();
        taken
    }

    fn judge(&mut self, partition: usize, record: Record, cut: &mut Cut) {
        let event_time = record.tick.event_time;
        let moves = match record.tick.event {
            Event::Trade { .. } | Event::Quote { .. } => true,
            Event::Bust | Event::Correction { .. } => false,
            Event::Amend(_) => return cut.records.push(record),
        };
        if event_time < self.progress.sealed_through {
            return cut.dead.push(self.late(record));
        }
        cut.records.push(record);
        if !moves {
            return;
        }
        self.greatest = self.greatest.max(Some(event_time));
        let state = &mut self.partitions[partition];
        let was = state.greatest;
        if was.is_none_or(|was| event_time > was) {
            state.greatest = Some(event_time);
            if was == self.watermark || self.watermark.is_none() {
                self.seal();
            }
        }
    }

    fn late(&self, record: Record) -> DeadLetter {
        let sealed = format_rfc3339(self.progress.sealed_through);
        DeadLetter {
            cursor: record.cursor,
            reason: Reason::Late,
            field: "event_time".to_owned(),
            value: format_rfc3339(record.tick.event_time),
            detail: format!("everything before {sealed} is sealed; only an amend changes it"),
            original: json::encode(&record.tick, &self.config.instruments),
        }
    }

    fn partition(&mut self, partition: Partition) -> usize {
        *self.index.entry(partition).or_insert_with(|| {
            self.partitions.push(PartitionState { greatest: None, at_end_since: None, finished: false });
            self.partitions.len() - 1
        })
    }

    /// Moves the watermark and what it seals to where the partitions stand now.
    fn seal(&mut self) {
        let holding = self.partitions.iter().filter(|p| p.holds_watermark(self.wall));
        // `None` orders before every time: a partition without a record holds all back.
        self.watermark = holding.map(|p| p.greatest).min().flatten();
        if let Some(watermark) = self.watermark {
            let sealed = watermark.saturating_sub(self.config.lateness);
            self.progress.sealed_through = self.progress.sealed_through.max(sealed);
        }
    }

    fn advance(&mut self, now: Nanos) {
        self.seal();
        if self.partitions.is_empty() {
            return;
        }
        let open = |(partition, i): &(&Partition, &usize)| {
            !self.partitions[**i].at_end() || self.queued.get(partition).is_some_and(|batches| *batches > 0)
        };
        let greatest = |(_, i): (&Partition, &usize)| self.partitions[*i].greatest.unwrap_or(Nanos::MIN);
        let behind = self.index.iter().filter(open).map(greatest).min();
        let closed = behind.map_or(now, |t| t.min(now));
        self.progress.closed_through = self.progress.closed_through.max(closed);
    }
}

/// Takes out what is due, and leaves the rest in order.
fn cut_off<T>(list: &mut Vec<T>, due: impl Fn(&T) -> bool) -> Vec<T> {
    let (out, left) = std::mem::take(list).into_iter().partition(due);
    *list = left;
    out
}

#[cfg(test)]
mod tests;

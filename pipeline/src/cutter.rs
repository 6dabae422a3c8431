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
                self.pending += batch.records.len();
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
    /// `until` before it changes nothing.
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

    /// Takes up to `room` records of a batch (more, if a message has more), and says how many.
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
            let since = self.partitions[i].at_end_since;
            self.partitions[i].at_end_since = rest.at_end.then(|| since.unwrap_or(wall));
        }
        // Of a batch that is cut in two, the first cut has what stands before its end.
        let rejects = cut_off(&mut rest.rejects, |reject| done || cut.is_past(&reject.cursor));
        let accounts = cut_off(&mut rest.accounts, |(cursor, _)| done || cut.is_past(cursor));
        let records = before - pending.records.len();
        cut.counts.records_in += (records + rejects.len() + accounts.len()) as i64;
        cut.counts.accepted += accounts.len() as i64;
        cut.counts.unknown_fields += std::mem::take(&mut rest.unknown_fields) as i64;
        cut.dead.extend(rejects);
        for (_, snapshot) in accounts {
            self.greatest = self.greatest.max(Some(snapshot.event_time));
            cut.accounts.push(snapshot);
        }
        self.seal();
        records
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
        let behind = self.partitions.iter().filter(|p| !p.at_end()).map(|p| p.greatest.unwrap_or(Nanos::MIN)).min();
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
mod tests {
    use super::*;
    use marea_model::cursor::excerpt;
    use marea_model::tick::Amend;
    use marea_model::{AccountId, Amount, Price, Size, Symbol, Tick};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const MINUTE: Nanos = 60 * SECOND;

    fn partition(name: &str) -> Partition {
        Partition::new(name).unwrap()
    }

    fn cutter(clock: Clock, lateness: Nanos, max_ticks: usize) -> Cutter {
        let timeframes = vec![Timeframe::S1, Timeframe::M1, Timeframe::M5, Timeframe::H1];
        Cutter::new(CutterConfig { clock, lateness, max_ticks, timeframes, instruments: Arc::default() })
    }

    fn trade() -> Event {
        Event::Trade { price: Price(100), size: Size(1) }
    }

    fn record(name: &str, offset: u64, event_time: Nanos, event: Event) -> Record {
        let tick = Tick { symbol: Symbol::new("A").unwrap(), event_time, seq: offset, event };
        Record { cursor: Cursor { partition: partition(name), offset, row: 0 }, tick }
    }

    fn batch(name: &str, at_end: bool, records: Vec<Record>) -> Input {
        let upper = records.last().map_or(0, |r| r.cursor.offset + 1);
        Input::Batch(Batch {
            partition: partition(name),
            records,
            rejects: Vec::new(),
            accounts: Vec::new(),
            unknown_fields: 0,
            upper,
            at_end,
            receive_time: 0,
        })
    }

    /// Trades at these times, offsets from `from`.
    fn trades(name: &str, from: u64, at_end: bool, times: &[Nanos]) -> Input {
        batch(name, at_end, times.iter().zip(from..).map(|(t, offset)| record(name, offset, *t, trade())).collect())
    }

    fn start(name: &str) -> Input {
        Input::Start { partition: partition(name) }
    }

    fn offsets(cut: &Cut) -> Vec<u64> {
        cut.records.iter().map(|r| r.cursor.offset).collect()
    }

    #[test]
    fn a_record_is_judged_by_what_came_before_it() {
        let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
        cutter.push(start("p"), 0);
        // 20:00 seals up to 10:00, but only for what comes after it.
        cutter.push(trades("p", 0, false, &[5 * MINUTE, 20 * MINUTE, 10 * MINUTE, 10 * MINUTE - 1]), 0);
        let cut = cutter.cut(0).unwrap();
        assert_eq!(offsets(&cut), [0, 1, 2]);
        assert_eq!(cut.dead.len(), 1);
        let dead = &cut.dead[0];
        assert_eq!((dead.cursor.offset, dead.reason, dead.field.as_str()), (3, Reason::Late, "event_time"));
        assert_eq!(dead.value, "1970-01-01T00:09:59.999999999Z");
        assert_eq!(dead.detail, "everything before 1970-01-01T00:10:00.000000000Z is sealed; only an amend changes it");
        assert_eq!(excerpt(&dead.value), dead.value, "64 bytes at most");
        assert!(String::from_utf8(dead.original.clone()).unwrap().contains("\"trade\""));
        assert_eq!(cut.progress.sealed_through, 10 * MINUTE);
        assert_eq!((cut.counts.records_in, cut.counts.dead, cut.counts.accepted), (4, 1, 0));
        assert_eq!(cut.cursors, [(partition("p"), 4)]);
    }

    #[test]
    fn busts_corrections_and_amends_move_nothing() {
        let correction = || Event::Correction { rev: 1, price: Price(1), size: Size(1) };
        let amend = || Event::Amend(Box::new(Amend { rev: 1, bar: None }));
        let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
        cutter.push(start("p"), 0);
        cutter.push(trades("p", 0, false, &[20 * MINUTE]), 0);
        let records = vec![
            record("p", 1, 90 * MINUTE, Event::Bust),
            record("p", 2, 90 * MINUTE, correction()),
            record("p", 3, 90 * MINUTE, amend()),
            record("p", 4, 10 * MINUTE - 1, Event::Bust),
            record("p", 5, 10 * MINUTE - 1, correction()),
            record("p", 6, 10 * MINUTE - 1, amend()),
            record("p", 7, 10 * MINUTE, Event::Bust),
        ];
        cutter.push(batch("p", false, records), 0);
        let cut = cutter.cut(0).unwrap();
        assert_eq!(
            offsets(&cut),
            [0, 1, 2, 3, 6, 7],
            "a bust and a correction of sealed targets are late, an amend never"
        );
        assert_eq!(cut.progress, Progress { sealed_through: 10 * MINUTE, closed_through: 20 * MINUTE });
        assert_eq!(now_ns(cut.epoch), 20 * MINUTE);
    }

    #[test]
    fn the_slowest_partition_holds_the_watermark_until_it_is_idle_or_finished() {
        let mut cutter = cutter(Clock::Event, 0, 100);
        cutter.push(start("a"), 0);
        cutter.push(start("b"), 0);
        cutter.push(trades("a", 0, false, &[50 * MINUTE]), 0);
        let cut = cutter.cut(0).unwrap();
        assert_eq!(cut.progress, Progress::START, "b was announced and has sent nothing");

        cutter.push(trades("b", 0, true, &[30 * MINUTE]), 5 * SECOND);
        let cut = cutter.cut(5_000).unwrap();
        assert_eq!(cut.progress.sealed_through, 30 * MINUTE);
        assert_eq!(cut.progress.closed_through, 50 * MINUTE, "b is at its end");

        assert!(cutter.cut(64_999).is_none(), "at its end for less than 60 s");
        let cut = cutter.cut(65_000).unwrap();
        assert_eq!(cut.progress.sealed_through, 50 * MINUTE, "b is idle");

        cutter.push(trades("b", 1, true, &[40 * MINUTE, 51 * MINUTE]), 66 * SECOND);
        let cut = cutter.cut(66_000).unwrap();
        assert_eq!(cut.dead.len(), 1, "what was sealed stays sealed");
        assert_eq!(offsets(&cut), [2]);

        cutter.push(Input::Finished { partition: partition("a") }, 66 * SECOND);
        let cut = cutter.cut(66_000).unwrap();
        assert_eq!(cut.progress.sealed_through, 51 * MINUTE, "a is finished, b alone counts");
    }

    #[test]
    fn a_silent_partition_at_its_end_holds_nothing_back() {
        let mut cutter = cutter(Clock::Event, 0, 100);
        cutter.push(start("a"), 0);
        cutter.push(start("b"), 0);
        cutter.push(trades("b", 0, true, &[]), 0);
        cutter.push(trades("a", 0, false, &[MINUTE]), 0);
        assert_eq!(cutter.cut(0).unwrap().progress, Progress { sealed_through: MINUTE, closed_through: MINUTE });
    }

    #[test]
    fn the_event_clock_follows_trades_quotes_and_accounts() {
        let snapshot = AccountSnapshot {
            account: AccountId::new("M1").unwrap(),
            event_time: 90 * SECOND,
            seq: 1,
            equity: Amount::whole(1),
            balance: Amount::whole(1),
            currency: *b"USD",
            positions: Vec::new(),
        };
        let mut cutter = cutter(Clock::Event, 0, 100);
        cutter.push(start("p"), 0);
        cutter.push(trades("p", 0, false, &[60 * SECOND + MILLI - 1]), 0);
        let cut = cutter.cut(0).unwrap();
        assert_eq!(now_ms(cut.epoch), 60_000, "whole milliseconds");
        let Input::Batch(mut accounts) = trades("accounts", 0, true, &[]) else { panic!() };
        accounts.accounts.push((Cursor { partition: partition("accounts"), offset: 0, row: 0 }, snapshot));
        cutter.push(Input::Batch(accounts), 0);
        let cut = cutter.cut(0).unwrap();
        assert_eq!(now_ms(cut.epoch), 90_000);
        assert_eq!((cut.counts.records_in, cut.counts.accepted), (1, 1));
        assert_eq!(cut.progress.closed_through, 60 * SECOND + MILLI - 1, "p is not at its end");
    }

    #[test]
    fn the_event_clock_advances_when_a_millisecond_is_full() {
        let mut cutter = cutter(Clock::Event, 0, 1);
        cutter.push(trades("p", 0, false, &[MILLI; 5000]), 0);
        let epochs: Vec<Epoch> = std::iter::from_fn(|| cutter.cut(0)).map(|c| c.epoch).collect();
        assert_eq!(epochs, (4096..4096 + 5000).collect::<Vec<_>>());
    }

    #[test]
    fn the_wall_clock_waits_when_a_millisecond_is_full_and_never_goes_back() {
        let mut cutter = cutter(Clock::Wall, 0, 1);
        cutter.push(trades("p", 0, false, &[MILLI; 5000]), 0);
        let first: Vec<Epoch> = std::iter::from_fn(|| cutter.cut(7)).map(|c| c.epoch).collect();
        assert_eq!(first, (7 * 4096..8 * 4096).collect::<Vec<_>>());
        assert_eq!(cutter.cut(8).unwrap().epoch, 8 * 4096);
        assert_eq!(cutter.cut(3).unwrap().epoch, 8 * 4096 + 1, "a clock set back stands still");
        assert!(cutter.cut(9).is_some());
    }

    #[test]
    fn the_wall_clock_cuts_empty_epochs_as_time_passes() {
        let mut cutter = cutter(Clock::Wall, 0, 10);
        assert_eq!(cutter.cut(5).unwrap().epoch, 5 * 4096);
        assert!(cutter.cut(5).is_none());
        let cut = cutter.cut(6).unwrap();
        assert_eq!(
            (cut.epoch, cut.progress),
            (6 * 4096, Progress::START),
            "nothing is closed before a partition is known"
        );
        cutter.push(trades("p", 0, true, &[]), 0);
        assert_eq!(cutter.cut(7).unwrap().progress.closed_through, 7 * MILLI);
    }

    #[test]
    fn an_epoch_ends_between_messages() {
        let mut cutter = cutter(Clock::Event, 0, 2);
        let mut records: Vec<Record> = (0..6).map(|i| record("p", i / 4, MINUTE, trade())).collect();
        for (row, record) in records.iter_mut().enumerate() {
            record.cursor.row = row as u32 % 4;
        }
        let Input::Batch(mut input) = batch("p", true, records) else { panic!() };
        input.rejects.push(DeadLetter {
            cursor: Cursor { partition: partition("p"), offset: 1, row: 3 },
            reason: Reason::Malformed,
            field: String::new(),
            value: String::new(),
            detail: String::new(),
            original: Vec::new(),
        });
        input.upper = 9;
        cutter.push(Input::Batch(input), 0);
        assert!(cutter.ready());
        let cut = cutter.cut(0).unwrap();
        assert_eq!(offsets(&cut), [0, 0, 0, 0], "the four rows of a message stay together");
        assert_eq!((cut.cursors.as_slice(), cut.dead.len()), (&[(partition("p"), 1)][..], 0));
        assert_eq!(cut.progress.closed_through, MINUTE, "not at its end before the batch is");
        let cut = cutter.cut(0).unwrap();
        assert_eq!((offsets(&cut).as_slice(), cut.dead.len()), (&[1, 1][..], 1));
        assert_eq!(cut.cursors, [(partition("p"), 9)]);
        assert!(cutter.is_drained() && !cutter.ready());
    }

    #[test]
    fn the_end_is_the_greatest_close_over_all_timeframes_or_as_told() {
        let greatest = 90 * MINUTE + 1;
        for (until, expected) in
            [(None, 120 * MINUTE), (Some(121 * MINUTE + 1), 121 * MINUTE + MILLI), (Some(0), 90 * MINUTE + MILLI)]
        {
            let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
            cutter.push(start("p"), 0);
            cutter.push(trades("p", 0, true, &[greatest]), 0);
            cutter.push(Input::Finished { partition: partition("p") }, 0);
            let before = cutter.cut(0).unwrap();
            let cut = cutter.finish(until);
            assert_eq!(now_ns(cut.epoch), expected);
            assert!(cut.epoch > before.epoch);
            assert_eq!(cut.progress.closed_through, expected);
            assert_eq!(cut.progress.sealed_through, before.progress.sealed_through, "lateness never uses now");
        }
        let cut = cutter(Clock::Event, 0, 1).finish(None);
        assert_eq!((cut.epoch, cut.records.len()), (1, 0), "an empty input ends at once");
    }

    /// (partition, event time in ms, kind, at end, cut here, wall step in ms)
    type Step = (usize, i64, u8, bool, bool, i64);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0_usize..3, 0_i64..2_000_000, 0_u8..6, any::<bool>(), any::<bool>(), 0_i64..40_000);
        prop::collection::vec(step, 1..120)
    }

    /// Drives a cutter, and checks what must always hold. Returns (accepted offsets, dead offsets, last progress).
    fn drive(clock: Clock, max_ticks: usize, steps: &[Step], obey_cuts: bool) -> (Vec<u64>, Vec<u64>, Progress) {
        let names = ["a", "b", "c"];
        let mut cutter = cutter(clock, 5 * MINUTE, max_ticks);
        let (mut wall_ms, mut cuts) = (1_000_000_i64, Vec::new());
        for name in names {
            cutter.push(start(name), wall_ms * MILLI);
        }
        for (offset, (p, ms, kind, at_end, cut_here, wall_step)) in (0_u64..).zip(steps) {
            wall_ms += wall_step;
            let event = match kind {
                0 => Event::Bust,
                1 => Event::Quote { bid: Price(1), ask: Price(2), bid_size: Size(0), ask_size: Size(0) },
                2 => Event::Amend(Box::new(Amend { rev: 1, bar: None })),
                _ => trade(),
            };
            cutter.push(batch(names[*p], *at_end, vec![record(names[*p], offset, ms * MILLI, event)]), wall_ms * MILLI);
            if *cut_here && obey_cuts || cutter.ready() {
                cuts.extend(cutter.cut(wall_ms));
            }
        }
        for name in names {
            cutter.push(Input::Finished { partition: partition(name) }, wall_ms * MILLI);
        }
        cuts.push(cutter.finish(None));
        let (mut last_epoch, mut last) = (0, Progress::START);
        let (mut accepted, mut dead) = (Vec::new(), Vec::new());
        for cut in &cuts {
            assert!(cut.epoch > last_epoch, "epochs rise strictly");
            assert!(cut.progress.sealed_through >= last.sealed_through, "sealed stays sealed");
            assert!(cut.progress.closed_through >= last.closed_through, "closed stays closed");
            assert!(cut.progress.closed_through <= now_ns(cut.epoch), "nothing closes before its time");
            for record in &cut.records {
                let amend = matches!(record.tick.event, Event::Amend(_));
                assert!(amend || record.tick.event_time >= last.sealed_through, "late records do not pass");
            }
            assert_eq!(cut.counts.records_in, (cut.records.len() + cut.dead.len()) as i64);
            (last_epoch, last) = (cut.epoch, cut.progress);
            accepted.extend(offsets(cut));
            dead.extend(cut.dead.iter().map(|d| d.cursor.offset));
        }
        let all: BTreeSet<u64> = accepted.iter().chain(&dead).copied().collect();
        assert_eq!((all.len(), accepted.len() + dead.len()), (steps.len(), steps.len()), "each record once");
        (accepted, dead, last)
    }

    /// The rules again, as plain as they can be said.
    fn naive(steps: &[Step]) -> (Vec<u64>, Vec<u64>) {
        let mut greatest: [Option<i64>; 3] = [None; 3];
        let mut end_since: [Option<i64>; 3] = [None; 3];
        let (mut sealed, mut wall) = (i64::MIN, 1_000_000_i64);
        let (mut accepted, mut dead) = (Vec::new(), Vec::new());
        for (offset, (p, ms, kind, at_end, _, wall_step)) in (0_u64..).zip(steps) {
            let mut watermark = |greatest: &[Option<i64>; 3], end_since: &[Option<i64>; 3], wall: i64| {
                let holding: Vec<Option<i64>> = (0..3)
                    .filter(|i| end_since[*i].is_none_or(|since| greatest[*i].is_some() && wall - since < 60_000))
                    .map(|i| greatest[i])
                    .collect();
                if let Some(Some(least)) = holding.into_iter().min() {
                    sealed = sealed.max(least - 300_000);
                }
                sealed
            };
            wall += wall_step;
            // Who fell idle before it came; then its own partition is not idle any more.
            watermark(&greatest, &end_since, wall);
            end_since[*p] = None;
            let sealed_now = watermark(&greatest, &end_since, wall);
            if *kind != 2 && *ms < sealed_now {
                dead.push(offset);
            } else {
                accepted.push(offset);
                if *kind != 0 && *kind != 2 {
                    greatest[*p] = greatest[*p].max(Some(*ms));
                }
            }
            watermark(&greatest, &end_since, wall);
            end_since[*p] = at_end.then_some(wall);
            watermark(&greatest, &end_since, wall);
        }
        (accepted, dead)
    }

    proptest! {
        #[test]
        fn cuts_lose_nothing_and_never_go_back(
            steps in steps(),
            max_ticks in 1_usize..30,
            wall: bool,
        ) {
            drive(if wall { Clock::Wall } else { Clock::Event }, max_ticks, &steps, true);
        }

        #[test]
        fn what_is_late_does_not_depend_on_the_cuts(steps in steps(), max_ticks in 1_usize..30) {
            let (accepted, dead) = naive(&steps);
            for (max_ticks, obey) in [(max_ticks, true), (1, false), (1000, false)] {
                let (a, d, _) = drive(Clock::Event, max_ticks, &steps, obey);
                prop_assert_eq!(&a, &accepted);
                prop_assert_eq!(&d, &dead);
            }
        }
    }
}

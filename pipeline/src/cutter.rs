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
//! the watermark back; one that carries account snapshots alone never does.
//!
//! **Closing.** `closed_through` is the greatest so far of min(`now`, the least greatest event time of the partitions
//! that are not at their end). Before any partition is announced nothing is closed.
//!
//! **Size.** A cut takes what is pending, at most `max_ticks` records, except that it never ends inside a message (the
//! rows of one offset stay together), so that its cursors say exactly where it ended.
//!
//! **Metrics** are asked for once in `metrics_every` of wall time, at the end, and where the configuration changes.
//!
//! No I/O and no clock of its own: wall time is an argument. Ticks are judged column by column where none of them can be
//! late (a fraction of a nanosecond each, nothing is copied), else one by one.

use marea_model::codec::json;
use marea_model::cursor::{Batch, Fingerprint, PartitionMark, RawMessage, Reason};
use marea_model::output::Totals;
use marea_model::ticks::RowKind;
use marea_model::time::{EPOCHS_PER_MS, MILLI, SECOND, first_epoch, format_rfc3339, now_ms, now_ns};
use marea_model::{
    AccountSnapshot, ConfigUpdate, Cursor, DeadLetter, Epoch, Instruments, Nanos, Partition, Progress, Record,
    Restoration, Sealed, Tick, TickSlice, Ticks, Timeframe,
};
use marea_sources::{Carries, Input};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// How long a partition must be at its end before it stops holding the watermark back.
pub const IDLE_AFTER: Nanos = 60 * SECOND;

/// Offsets that are remembered together: a restart reads at most so many in vain.
const SPAN: u64 = 4096;

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
    /// The least wall time between two epochs that give metrics without being asked; 0: every one does.
    pub metrics_every: Nanos,
}

/// One epoch's input.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The epoch.
    pub epoch: Epoch,
    /// Its ticks in order, late ones left out.
    pub ticks: Vec<TickSlice>,
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
    /// Where each partition stands that does not stand where it stood.
    pub marks: Vec<PartitionMark>,
    /// Messages of sources that cannot be asked for them again.
    pub raw: Vec<RawMessage>,
    /// When the first of it was received, by the wall clock; none of an epoch without batches.
    pub received: Option<Nanos>,
    /// When the cutter was given the first of it, likewise.
    pub entered: Option<Nanos>,
    /// Whether metrics are wanted at its end.
    pub metrics: bool,
    /// Its amends, for whoever must know them after a restart.
    pub amends: Vec<Tick>,
    /// What has sealed, in the first epoch of a process that goes on where another was killed.
    pub sealed: Option<Arc<Sealed>>,
}

impl Cut {
    /// Its ticks, with where each came from.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.ticks.iter().flat_map(TickSlice::iter)
    }

    fn push(&mut self, ticks: &Arc<Ticks>, rows: Range<usize>) {
        if !rows.is_empty() {
            self.ticks.push(TickSlice { ticks: Arc::clone(ticks), rows });
        }
    }

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
    carries: Carries,
    greatest: Option<Nanos>,
    /// How the last message of its last whole batch reads.
    fingerprint: Option<Fingerprint>,
    /// Since when (wall time) it is at its end.
    at_end_since: Option<Nanos>,
    finished: bool,
}

impl PartitionState {
    fn at_end(&self) -> bool {
        self.finished || self.at_end_since.is_some()
    }

    fn holds_watermark(&self, wall: Nanos) -> bool {
        self.carries == Carries::Ticks
            && !self.finished
            && self.at_end_since.is_none_or(|since| self.greatest.is_some() && wall - since < IDLE_AFTER)
    }
}

/// How far the records of a partition have been cut, and which of them may still be needed.
#[derive(Default)]
struct Track {
    upper: u64,
    /// The first offset of some records that follow each other, and the last close of their base bars; in order.
    spans: VecDeque<(u64, Nanos)>,
    /// As last said.
    said: Option<PartitionMark>,
}

impl Track {
    /// Takes records that begin at this offset, whose last base bar closes then.
    fn extend(&mut self, from: u64, close: Nanos) {
        match self.spans.back_mut() {
            Some((first, last)) if from.saturating_sub(*first) < SPAN => *last = close.max(*last),
            _ => self.spans.push_back((from, close)),
        }
    }

    /// The first offset of what may still be needed.
    fn low(&mut self, sealed_through: Nanos) -> u64 {
        while self.spans.front().is_some_and(|(_, close)| *close <= sealed_through) {
            self.spans.pop_front();
        }
        self.spans.front().map_or(self.upper, |(first, _)| *first)
    }
}

struct PendingBatch {
    ticks: Arc<Ticks>,
    /// The first row that has not been cut.
    row: usize,
    /// The rest of the batch; its `records` are above.
    rest: Batch,
}

enum Pending {
    Restarted(Partition, u64),
    Batch(Box<PendingBatch>),
    Config(Vec<ConfigUpdate>),
    Finished(Partition),
}

/// What is read once more after a restart, until the first cut.
struct Replay {
    restoration: Restoration,
    /// Records whose bars have not sealed.
    ticks: Vec<TickSlice>,
    /// The partitions that have not come to their upper yet.
    waiting: BTreeMap<Partition, u64>,
    /// The partition whose records name others.
    of_many: Option<Partition>,
}

impl Replay {
    fn reached(&mut self, partition: Partition, upper: u64) {
        if self.waiting.get(&partition).is_some_and(|wanted| upper >= *wanted) {
            self.waiting.remove(&partition);
        }
    }
}

/// Takes [`Input`]s, gives [`Cut`]s.
pub struct Cutter {
    config: CutterConfig,
    queue: VecDeque<(Nanos, Pending)>,
    pending: usize,
    partitions: Vec<PartitionState>,
    index: HashMap<Partition, usize>,
    /// Of each partition that a record names: a batch of several files is one partition, its records are of many.
    tracks: BTreeMap<Partition, Track>,
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
    /// The wall time at which metrics were asked for last.
    metrics_at: Nanos,
    /// Whether there was an epoch since.
    owes_metrics: bool,
    /// Where this process goes on where another was killed, until everything has been read once more.
    replay: Option<Box<Replay>>,
    /// As that one left them.
    left: BTreeMap<Partition, PartitionMark>,
    /// The first offset of each partition that was not committed, until it has been seen.
    behind: BTreeMap<Partition, u64>,
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
            tracks: BTreeMap::new(),
            queued: HashMap::new(),
            watermark: None,
            wall: Nanos::MIN,
            greatest: None,
            progress: Progress::START,
            last: 0,
            metrics_at: Nanos::MIN,
            owes_metrics: false,
            replay: None,
            left: BTreeMap::new(),
            behind: BTreeMap::new(),
        }
    }

    /// A cutter that goes on where another was killed. Sources send what stands from each partition's `low` on; what was
    /// committed is kept apart, judged by nobody, and comes with the first cut ([`Cutter::restored`]).
    pub fn resume(config: CutterConfig, restoration: Restoration) -> Self {
        let mut cutter = Cutter::new(config);
        let marks = &restoration.partitions;
        cutter.progress = restoration.progress;
        cutter.last = restoration.epoch;
        let accounts = restoration.accounts.iter().map(|(snapshot, _)| snapshot.event_time);
        cutter.greatest = marks.values().filter_map(|mark| mark.greatest).chain(accounts).max();
        cutter.left = marks.clone();
        cutter.behind = marks.values().map(|mark| (mark.partition, mark.upper)).collect();
        // All are said anew: `low` is not as it was left where what stands is not read again.
        let track = |mark: &PartitionMark| Track { upper: mark.upper, ..Track::default() };
        cutter.tracks = marks.iter().map(|(partition, mark)| (*partition, track(mark))).collect();
        let waiting = marks.values().filter(|mark| mark.low < mark.upper).map(|mark| (mark.partition, mark.upper));
        let waiting = waiting.collect();
        cutter.replay = Some(Box::new(Replay { restoration, ticks: Vec::new(), waiting, of_many: None }));
        cutter
    }

    /// Whether what was committed is still being read once more. Then nothing is cut.
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Whether all of it has been read, so that [`Cutter::restored`] gives it.
    pub fn has_replayed(&self) -> bool {
        self.replay.as_ref().is_some_and(|replay| replay.waiting.is_empty())
    }

    /// The first cut of a cutter that goes on, once everything has been read: the last committed epoch, whole, in one.
    /// What comes of it stands already.
    pub fn restored(&mut self) -> Option<Cut> {
        let replay = self.replay.take_if(|replay| replay.waiting.is_empty())?;
        let Replay { restoration, ticks, .. } = *replay;
        let mut cut = self.take(0);
        for (snapshot, peak) in restoration.accounts {
            // The peak is that of all snapshots there were: one of them had it, and is superseded.
            let peak = AccountSnapshot { equity: peak, event_time: Nanos::MIN, seq: 0, ..snapshot.clone() };
            cut.accounts.extend([peak, snapshot]);
        }
        (cut.epoch, cut.progress, cut.metrics) = (restoration.epoch, restoration.progress, true);
        (cut.ticks, cut.config, cut.sealed) = (ticks, restoration.config, Some(Arc::new(restoration.sealed)));
        Some(cut)
    }

    /// Takes out of a batch what was committed, and keeps of it what the dataflow needs once more.
    fn set_apart(&mut self, batch: &mut Batch) {
        let behind = &self.behind;
        let committed = |cursor: &Cursor| behind.get(&cursor.partition).is_some_and(|upper| cursor.offset < *upper);
        let base = self.config.timeframes.first().copied();
        let (mut again, mut rest, mut reached) = (Ticks::new(), Ticks::new(), BTreeMap::new());
        let mut see = |cursor: &Cursor| {
            let seen: &mut u64 = reached.entry(cursor.partition).or_default();
            *seen = (*seen).max(cursor.offset + 1);
        };
        for record in batch.records.iter() {
            see(&record.cursor);
            if !committed(&record.cursor) {
                rest.push(record.cursor, record.tick);
                continue;
            }
            // Once the first cut has been given, there is nobody left who needs it.
            let Some(replay) = &self.replay else { continue };
            let close = base.map_or(Nanos::MAX, |base| base.close_time(record.tick.event_time));
            let sealed = close <= replay.restoration.progress.sealed_through;
            if !sealed && !replay.restoration.dead.contains(&record.cursor) {
                let Cursor { partition, offset, .. } = record.cursor;
                self.tracks.entry(partition).or_default().extend(offset, close);
                again.push(record.cursor, record.tick);
            }
        }
        let (all, kept) = (batch.records.len() + batch.rejects.len() + batch.accounts.len(), rest.len());
        batch.records = rest;
        let others = batch.rejects.iter().map(|r| r.cursor).chain(batch.accounts.iter().map(|(cursor, _)| *cursor));
        others.for_each(|cursor| see(&cursor));
        batch.rejects.retain(|reject| !committed(&reject.cursor));
        batch.accounts.retain(|(cursor, _)| !committed(cursor));
        batch.raw.retain(|message| !committed(&message.cursor));
        if kept + batch.rejects.len() + batch.accounts.len() < all {
            // They do not say which of its records they are of. Sources send what was committed in batches of its own.
            batch.unknown_fields = 0;
        }
        let of_many = reached.keys().any(|partition| *partition != batch.partition);
        reached.insert(batch.partition, batch.upper);
        if let Some(replay) = &mut self.replay {
            if of_many {
                replay.of_many = Some(batch.partition);
            }
            if !again.is_empty() {
                replay.ticks.push(TickSlice::from(again));
            }
            for (partition, upper) in &reached {
                replay.reached(*partition, *upper);
            }
        }
        // Rows of a message share its offset: only what lies behind says that nothing of it comes any more.
        for (partition, seen) in reached {
            if self.behind.get(&partition).is_some_and(|upper| seen > *upper) {
                self.behind.remove(&partition);
            }
        }
    }

    /// Queues an input that arrived at this wall time.
    pub fn push(&mut self, input: Input, wall_now: Nanos) {
        let pending = match input {
            // At once, and not in its turn: it holds back what was announced before it and is judged later.
            Input::Start { partition, carries } => {
                let i = self.partition(partition);
                self.partitions[i].carries = carries;
                return;
            }
            Input::Batch(mut batch) => {
                if !self.behind.is_empty() {
                    self.set_apart(&mut batch);
                }
                self.pending += batch.records.len() + batch.rejects.len() + batch.accounts.len();
                *self.queued.entry(batch.partition).or_default() += 1;
                let ticks = Arc::new(std::mem::take(&mut batch.records));
                Pending::Batch(Box::new(PendingBatch { ticks, row: 0, rest: batch }))
            }
            Input::Restarted { partition, upper } => {
                if let Some(replay) = &mut self.replay {
                    replay.waiting.remove(&partition);
                }
                self.behind.remove(&partition);
                self.left.remove(&partition);
                Pending::Restarted(partition, upper)
            }
            Input::Config(updates) => Pending::Config(updates),
            Input::Finished { partition } => {
                if let Some(replay) = &mut self.replay {
                    replay.waiting.remove(&partition);
                    // Files are many and finish as one: what they have not shown is not there any more.
                    if replay.of_many == Some(partition) {
                        replay.waiting.clear();
                    }
                }
                Pending::Finished(partition)
            }
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
        if self.is_replaying() {
            return None;
        }
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
        let wall = wall_ms.saturating_mul(MILLI);
        // A wall clock that was set back must not hold them back.
        let due = wall < self.metrics_at || wall.saturating_sub(self.metrics_at) >= self.config.metrics_every;
        let wants_metrics = due || !cut.config.is_empty();
        let stands_still = untouched && self.progress == before;
        if stands_still
            && (self.config.clock == Clock::Event || wall_ms <= last_ms)
            && !(wants_metrics && self.owes_metrics)
        {
            return None;
        }
        if due {
            self.metrics_at = wall;
        }
        cut.metrics = wants_metrics;
        self.owes_metrics = !wants_metrics;
        self.last = epoch;
        cut.epoch = epoch;
        cut.progress = self.progress;
        self.mark(&mut cut);
        Some(cut)
    }

    /// An epoch that only gives metrics, if some are owed: for an input that ends without being finished.
    pub fn settle(&mut self) -> Option<Cut> {
        if !std::mem::take(&mut self.owes_metrics) {
            return None;
        }
        let mut cut = self.take(0);
        self.last += 1;
        (cut.epoch, cut.progress, cut.metrics) = (self.last, self.progress, true);
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
        self.owes_metrics = false;
        (cut.epoch, cut.progress, cut.metrics) = (epoch, self.progress, true);
        self.mark(&mut cut);
        cut
    }

    /// Says where partitions stand now.
    fn mark(&mut self, cut: &mut Cut) {
        for (partition, upper) in &cut.cursors {
            let track = self.tracks.entry(*partition).or_default();
            track.upper = track.upper.max(*upper);
        }
        for (partition, track) in &mut self.tracks {
            let state = self.index.get(partition).map(|i| &self.partitions[*i]);
            let left = self.left.get(partition);
            let mark = PartitionMark {
                partition: *partition,
                low: track.low(self.progress.sealed_through),
                upper: track.upper,
                // One that has not been announced yet stands as it was left.
                greatest: state.map_or(left.and_then(|mark| mark.greatest), |state| state.greatest),
                fingerprint: state.map_or(left.and_then(|mark| mark.fingerprint), |state| state.fingerprint),
            };
            if track.said != Some(mark) {
                track.said = Some(mark);
                cut.marks.push(mark);
            }
        }
    }

    fn take(&mut self, max: usize) -> Cut {
        let mut cut = Cut {
            epoch: 0,
            ticks: Vec::new(),
            accounts: Vec::new(),
            config: Vec::new(),
            progress: Progress::START,
            dead: Vec::new(),
            counts: Totals::default(),
            cursors: Vec::new(),
            marks: Vec::new(),
            raw: Vec::new(),
            received: None,
            entered: None,
            metrics: false,
            amends: Vec::new(),
            sealed: None,
        };
        let mut room = max;
        while room > 0 {
            let Some((wall, mut pending)) = self.queue.pop_front() else { break };
            // Who fell idle before this arrived is judged before it is, so that it does not matter when cuts are asked for.
            self.wall = self.wall.max(wall);
            self.seal();
            match &mut pending {
                Pending::Restarted(partition, upper) => {
                    let i = self.partition(*partition);
                    self.partitions[i].fingerprint = None;
                    self.tracks.insert(*partition, Track { upper: *upper, ..Track::default() });
                    cut.cursors.retain(|(moved, _)| moved != partition);
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
                    if batch.row < batch.ticks.len() {
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
        cut.entered = Some(cut.entered.map_or(wall, |t| t.min(wall)));
        let (ticks, from) = (&pending.ticks, pending.row);
        let mut to = ticks.len().min(from.saturating_add(room));
        if from < to {
            self.partitions[i].at_end_since = None;
            self.seal();
            while to < ticks.len() && is_same_message(ticks, to) {
                to += 1;
            }
            self.judge(i, ticks, from..to, cut);
            let mut row = from;
            while row < to {
                let end = ticks.run(row).0.min(to);
                let (first, last) = (ticks.cursor(row), ticks.cursor(end - 1));
                cut.moved(last.partition, last.offset + 1);
                let greatest = ticks.time_span(row..end).1;
                let close = self.config.timeframes.first().map_or(greatest, |base| base.close_time(greatest));
                self.tracks.entry(first.partition).or_default().extend(first.offset, close);
                row = end;
            }
        }
        pending.row = to;

        let done = to == ticks.len();
        let rest = &mut pending.rest;
        if done {
            cut.moved(rest.partition, rest.upper);
            if let Some(batches) = self.queued.get_mut(&rest.partition) {
                *batches -= 1;
            }
            let since = self.partitions[i].at_end_since;
            self.partitions[i].at_end_since = rest.at_end.then(|| since.unwrap_or(wall));
            self.partitions[i].fingerprint = rest.fingerprint.or(self.partitions[i].fingerprint);
        }
        // Of a batch that is cut in two, the first cut has what stands before its end.
        let rejects = cut_off(&mut rest.rejects, |reject| done || cut.is_past(&reject.cursor));
        let accounts = cut_off(&mut rest.accounts, |(cursor, _)| done || cut.is_past(cursor));
        let raw = cut_off(&mut rest.raw, |message| done || cut.is_past(&message.cursor));
        for cursor in rejects.iter().map(|reject| &reject.cursor).chain(accounts.iter().map(|(cursor, _)| cursor)) {
            cut.moved(cursor.partition, cursor.offset + 1);
        }
        cut.raw.extend(raw);
        let taken = to - from + rejects.len() + accounts.len();
        cut.counts.records_in += taken as i64;
        cut.counts.accepted += accounts.len() as i64;
        if done {
            // Of a batch that is cut in two with its end: should a restart come in between, never twice.
            cut.counts.unknown_fields += std::mem::take(&mut rest.unknown_fields) as i64;
        }
        cut.dead.extend(rejects);
        for (_, snapshot) in accounts {
            self.greatest = self.greatest.max(Some(snapshot.event_time));
            cut.accounts.push(snapshot);
        }
        self.seal();
        taken
    }

    /// Which of these rows of a partition are late; the others are cut.
    fn judge(&mut self, partition: usize, ticks: &Arc<Ticks>, rows: Range<usize>, cut: &mut Cut) {
        let is_all_ticks = ticks.all_trades() || ticks.kinds()[rows.clone()].iter().all(|kind| *kind != RowKind::Edit);
        let (least, greatest) = ticks.time_span(rows.clone());
        // What is sealed by the last of them, at most: the watermark is never after the greatest of its partition.
        let reached = self.partitions[partition].greatest.map_or(greatest, |was| was.max(greatest));
        let sealed = self.progress.sealed_through.max(reached.saturating_sub(self.config.lateness));
        if is_all_ticks && least >= sealed {
            cut.push(ticks, rows);
            return self.accept(partition, greatest);
        }
        let mut from = rows.start;
        for row in rows.clone() {
            let (time, kind) = (ticks.event_times()[row], ticks.kind(row));
            if kind == RowKind::Edit && ticks.is_amend(row) {
                cut.amends.push(ticks.tick(row));
                continue;
            }
            if time < self.progress.sealed_through {
                cut.push(ticks, from..row);
                cut.dead.push(self.late(ticks.record(row)));
                from = row + 1;
            } else if kind != RowKind::Edit {
                self.accept(partition, time);
            }
        }
        cut.push(ticks, from..rows.end);
    }

    /// A trade or quote of this event time is accepted.
    fn accept(&mut self, partition: usize, event_time: Nanos) {
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
            let left = self.left.get(&partition);
            self.partitions.push(PartitionState {
                carries: Carries::Ticks,
                greatest: left.and_then(|mark| mark.greatest),
                fingerprint: left.and_then(|mark| mark.fingerprint),
                at_end_since: None,
                finished: false,
            });
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
            let state = &self.partitions[**i];
            let waiting = self.queued.get(partition).is_some_and(|batches| *batches > 0);
            state.carries == Carries::Ticks && (!state.at_end() || waiting)
        };
        let greatest = |(_, i): (&Partition, &usize)| self.partitions[*i].greatest.unwrap_or(Nanos::MIN);
        let behind = self.index.iter().filter(open).map(greatest).min();
        let closed = behind.map_or(now, |t| t.min(now));
        self.progress.closed_through = self.progress.closed_through.max(closed);
    }
}

/// Whether a row and the one before it are of one message.
fn is_same_message(ticks: &Ticks, row: usize) -> bool {
    let (before, this) = (ticks.cursor(row - 1), ticks.cursor(row));
    (before.partition, before.offset) == (this.partition, this.offset)
}

/// Takes out what is due, and leaves the rest in order.
fn cut_off<T>(list: &mut Vec<T>, due: impl Fn(&T) -> bool) -> Vec<T> {
    let (out, left) = std::mem::take(list).into_iter().partition(due);
    *list = left;
    out
}

#[cfg(test)]
mod tests;

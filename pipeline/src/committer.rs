//! The committer: the one who makes closed epochs durable, and only then tells anyone.
//!
//! ```text
//!  closed epochs ──► what is ready, together ──► one transaction ──► feed (view, stream), metrics, kept state
//!                                                     │ disk full, read-only, locked: wait, say so, again
//! ```
//!
//! 1. One transaction commits one epoch or several, whole, in order.
//! 2. Nothing is published from here that is not committed, but for metrics and indicators, which follow: at most once a
//!    second, in chunks, so that no verdict waits for them long.
//! 3. While the store cannot be written nothing is acknowledged: closed epochs wait, then the engine, then the sources.
//!    The feed's heartbeat stops, so that readers block.
//! 4. Epochs that change nothing commit together with the next one that does, or once a second.
//! 5. Where values are published before their commit, commits are some time apart.

use crate::cutter::Clock;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use marea_model::cursor::Reason;
use marea_model::output::{ClosedEpoch, Totals};
use marea_model::time::{MILLI, now_ms};
use marea_model::{ConfigUpdate, Epoch, Nanos};
use marea_sinks::metrics::Stage;
use marea_sinks::redis::Redis;
use marea_sinks::store::{AuditEntry, Ledger, Standing};
use marea_sinks::{Committed, DeadLetters, Feed, Metrics, State, Store, StoreError, failpoint};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// How often epochs that change nothing are committed.
const EMPTY_EVERY: Duration = Duration::from_secs(1);
/// The most epochs in a transaction …
const MAX_EPOCHS: usize = 256;
/// How often it is looked whether there are so many, where commits are paced.
const LOOK: Duration = Duration::from_millis(5);
/// … and about how many changes.
const MAX_CHANGES: usize = 50_000;
/// The first and the longest wait before a commit is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often a wait looks whether there is a deadline by now.
const STEP: Duration = Duration::from_millis(500);
/// How many differences after a restart are named.
const SHOWN: usize = 20;
/// How often a wait is mentioned again.
const REMIND: Duration = Duration::from_secs(10);

/// Where epochs are committed to.
pub enum Target {
    /// A SQLite file or PostgreSQL.
    Store(Box<Store>),
    /// Nowhere: counted and numbered like in a store.
    Memory(Box<Ledger>),
}

impl Target {
    /// Where it stands.
    pub(crate) fn standing(&self) -> &Standing {
        match self {
            Target::Store(store) => store.standing(),
            Target::Memory(ledger) => ledger.standing(),
        }
    }
}

/// What the committer must know about an epoch beside its results. Sent before the epoch is submitted.
#[derive(Clone, Debug)]
pub struct Note {
    /// The epoch.
    pub epoch: Epoch,
    /// When its first record was received.
    pub received: Option<Nanos>,
    /// When it was cut.
    pub cut: Instant,
    /// The configuration that takes effect in it.
    pub config: Vec<ConfigUpdate>,
}

/// How to commit.
pub struct Committer {
    /// Where to.
    pub target: Target,
    /// Whom to tell.
    pub feed: Option<Feed>,
    /// The same in Redis, after the feed.
    pub redis: Option<Redis>,
    /// Whoever delivers dead letters to a topic.
    pub dead_letters: Option<DeadLetters>,
    /// The recommendations and verdicts that stand.
    pub standing: Vec<AuditEntry>,
    /// How it goes.
    pub metrics: Metrics,
    /// Which clock epochs follow: a lag is one of the wall clock only.
    pub clock: Clock,
    /// Whether the final state is kept in memory.
    pub keep_state: bool,
    /// What came with the epochs.
    pub notes: Receiver<Note>,
    /// To tell sources what they may acknowledge.
    pub acknowledge: marea_sources::Committed,
    /// Whether the first epoch is what stands in the store, computed once more.
    pub restored: bool,
    /// The least time from the end of a commit to the beginning of the next one.
    pub every: Duration,
    /// Past this moment, once there is one, a store that cannot be written is given up.
    pub deadline: Box<dyn Fn() -> Option<Instant> + Send>,
}

/// What was committed in the end.
#[derive(Default)]
pub struct Outcome {
    /// The last epoch.
    pub epoch: Epoch,
    /// Counts of all epochs.
    pub totals: Totals,
    /// Dead letters by reason.
    pub dead: BTreeMap<Reason, u64>,
    /// The final state, if it was to be kept.
    pub state: State,
}

impl Committer {
    /// Commits until the engine is closed and drained. Blocks; `runtime` is the one on which the store was opened, best of
    /// one thread and for this alone: then an answer of the store wakes whoever waits for it, and nobody else.
    pub fn run(mut self, outputs: &Receiver<ClosedEpoch>, runtime: &Runtime) -> Result<Outcome, StoreError> {
        let mut outcome = Outcome::default();
        if self.restored && !self.restore(outputs, &mut outcome, runtime)? {
            return Ok(outcome);
        }
        self.begin();
        if let Some(feed) = &self.feed {
            feed.health().set_hydrated(true);
        }
        let mut pending: Vec<ClosedEpoch> = Vec::new();
        let mut noted = VecDeque::new();
        let mut last_commit = Instant::now();
        let mut way = Way::default();
        loop {
            self.pace(outputs, last_commit);
            let ended = self.gather(outputs, &mut pending, &mut way, EMPTY_EVERY.saturating_sub(last_commit.elapsed()));
            let idle = pending.iter().all(|epoch| size(epoch) == 0 && epoch.dead.is_empty());
            if !pending.is_empty() && (ended || !idle || last_commit.elapsed() >= EMPTY_EVERY) {
                let last = pending.last().map_or(0, |epoch| epoch.epoch);
                noted.extend(self.notes.try_iter());
                let due = noted.partition_point(|note: &Note| note.epoch <= last);
                let notes: Vec<Note> = noted.drain(..due).collect();
                let committed = self.commit(&pending, &notes, runtime)?;
                last_commit = Instant::now();
                failpoint::pass("committed");
                let marks = pending.iter().flat_map(|epoch| &epoch.marks);
                self.acknowledge.advance(marks.map(|mark| (mark.partition, mark.upper)));
                failpoint::pass("acknowledged");
                self.publish(&pending, &notes, &committed);
                failpoint::pass("published");
                way.published(&notes, last, last_commit, &self.metrics);
                outcome.totals = committed.totals;
                for epoch in pending.drain(..) {
                    outcome.epoch = epoch.epoch;
                    for dead in &epoch.dead {
                        *outcome.dead.entry(dead.reason).or_default() += 1;
                    }
                    if self.keep_state {
                        outcome.state.apply_epoch(&epoch);
                    }
                }
            }
            self.follow(outputs, ended, runtime)?;
            if ended {
                break;
            }
        }
        if let Target::Store(store) = self.target {
            runtime.block_on(store.close())?;
        }
        Ok(outcome)
    }

    /// Lets time pass since the last commit, unless a transaction is full before.
    fn pace(&self, outputs: &Receiver<ClosedEpoch>, last_commit: Instant) {
        while outputs.len() < MAX_EPOCHS {
            let left = self.every.saturating_sub(last_commit.elapsed());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Takes the state as it was computed once more, and compares it with what stands. Whether there was one: else the
    /// input ended before.
    fn restore(
        &mut self,
        outputs: &Receiver<ClosedEpoch>,
        outcome: &mut Outcome,
        runtime: &Runtime,
    ) -> Result<bool, StoreError> {
        let Ok(mut closed) = outputs.recv() else { return Ok(false) };
        closed.expand();
        let differences = self.persistently(|target| match target {
            Target::Store(store) => runtime.block_on(store.verify(&closed)),
            Target::Memory(_) => Ok(Vec::new()),
        })?;
        // Metrics and indicators follow: those of the epochs just before a kill may never have been written.
        let differences: Vec<_> = differences.into_iter().filter(|difference| !difference.was_due).collect();
        for difference in differences.iter().take(SHOWN) {
            tracing::error!("recomputed otherwise, and mended: {difference}");
        }
        if differences.len() > SHOWN {
            tracing::error!("recomputed otherwise, and mended: {} rows more", differences.len() - SHOWN);
        }
        self.metrics.recovery_differences(differences.len() as u64);
        let committed = self.as_committed();
        outcome.epoch = closed.epoch;
        outcome.totals = committed.totals;
        if self.keep_state {
            outcome.state.apply_epoch(&closed);
        }
        if let Some(feed) = &self.feed {
            feed.recomputed(&closed, &committed);
        }
        failpoint::pass("restored");
        Ok(true)
    }

    /// Tells the feed and Redis what stands. This process vouches for it from now on, so that it goes over what an older
    /// one may have left.
    fn begin(&mut self) {
        let committed = self.as_committed();
        let mut standing = std::mem::take(&mut self.standing);
        standing.iter_mut().for_each(|entry| entry.generation = committed.generation);
        if let Some(feed) = &self.feed {
            feed.restore(&standing);
        }
        if let Some(redis) = &self.redis {
            redis.begin(&committed, &standing);
        }
    }

    fn as_committed(&self) -> Committed {
        let standing = self.target.standing();
        let (upper, generation, last_seq) = (standing.upper, standing.generation, standing.last_seq);
        Committed { upper, generation, last_seq, totals: standing.totals, audit: Vec::new() }
    }

    /// Takes what is ready, waiting at most so long for the first. Whether there will be no more.
    fn gather(
        &self,
        outputs: &Receiver<ClosedEpoch>,
        pending: &mut Vec<ClosedEpoch>,
        way: &mut Way,
        wait: Duration,
    ) -> bool {
        // With nothing pending there is nothing to be late with.
        let wait = if pending.is_empty() { EMPTY_EVERY } else { wait };
        match outputs.recv_timeout(wait) {
            Ok(epoch) => self.take(epoch, pending, way),
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => return true,
        }
        let mut changes: usize = pending.iter().map(size).sum();
        while pending.len() < MAX_EPOCHS && changes < MAX_CHANGES {
            let Ok(epoch) = outputs.try_recv() else { break };
            self.take(epoch, pending, way);
            changes += pending.last().map_or(0, size);
        }
        false
    }

    fn take(&self, epoch: ClosedEpoch, pending: &mut Vec<ClosedEpoch>, way: &mut Way) {
        self.lag("closed", epoch.epoch);
        way.closed.push_back((epoch.epoch, epoch.closed_at));
        pending.push(epoch);
    }

    fn commit(&mut self, epochs: &[ClosedEpoch], notes: &[Note], runtime: &Runtime) -> Result<Committed, StoreError> {
        let acknowledged = self.acknowledge.take_acknowledged();
        if let Target::Store(store) = &mut self.target {
            store.note_acknowledged(acknowledged);
            if let Some(upper) = self.dead_letters.as_mut().and_then(DeadLetters::news) {
                store.note_delivered(upper);
            }
            for note in notes.iter().filter(|note| !note.config.is_empty()) {
                store.note_config(note.epoch, &note.config);
            }
        }
        let metrics = self.metrics.clone();
        self.persistently(|target| {
            let started = Instant::now();
            match target {
                Target::Memory(ledger) => ledger.commit(epochs),
                Target::Store(store) => {
                    let committed = runtime.block_on(store.commit(epochs))?;
                    metrics.commit_took(store.target().kind(), started.elapsed());
                    Ok(committed)
                }
            }
        })
    }

    /// Lets metrics and indicators follow: a chunk where some are due, more while no epoch waits; all of them at the end.
    fn follow(&mut self, outputs: &Receiver<ClosedEpoch>, ended: bool, runtime: &Runtime) -> Result<(), StoreError> {
        loop {
            let more = self.persistently(|target| match target {
                Target::Store(store) if ended => runtime.block_on(store.settle()).map(|()| false),
                Target::Store(store) => runtime.block_on(store.follow()),
                Target::Memory(_) => Ok(false),
            })?;
            if !more || !outputs.is_empty() {
                return Ok(());
            }
        }
    }

    /// Tries again while the store may heal, and says so.
    fn persistently<T>(&mut self, mut work: impl FnMut(&mut Target) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let (mut backoff, mut said) = (BACKOFF.0, None::<Instant>);
        loop {
            match work(&mut self.target) {
                Ok(done) => {
                    if said.is_some() {
                        tracing::info!("the store takes commits again");
                    }
                    return Ok(done);
                }
                Err(error) if error.retryable() && !self.past_deadline() => {
                    if let Target::Store(store) = &self.target {
                        self.metrics.commit_failed(store.target().kind());
                    }
                    if said.is_none_or(|at| at.elapsed() >= REMIND) {
                        tracing::error!(%error, "not committed: nothing is acknowledged or published until it can be");
                        said = Some(Instant::now());
                    }
                    if !self.wait(backoff) {
                        return Err(error);
                    }
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn past_deadline(&self) -> bool {
        (self.deadline)().is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Waits, but not past a deadline, even one that is set meanwhile. Whether another try is in time.
    fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let now = Instant::now();
            let deadline = (self.deadline)();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return false;
            }
            if now >= until {
                return true;
            }
            std::thread::sleep(STEP.min(deadline.map_or(until, |deadline| deadline.min(until)) - now));
        }
    }

    fn publish(&self, epochs: &[ClosedEpoch], notes: &[Note], committed: &Committed) {
        match &self.feed {
            Some(feed) => feed.publish(epochs, committed),
            None => self.metrics.committed(epochs, committed),
        }
        if let Some(redis) = &self.redis {
            redis.committed(epochs, committed);
        }
        if let Some(dead_letters) = self.dead_letters.as_ref().filter(|_| epochs.iter().any(|e| !e.dead.is_empty())) {
            dead_letters.committed();
        }
        let now = wall_now();
        for note in notes {
            if let Some(received) = note.received {
                self.metrics.end_to_end((now - received).max(0) as f64 / 1e9);
            }
            let stale = note.config.iter().rev().find_map(|update| match update {
                ConfigUpdate::Stale(stale) => Some(*stale),
                _ => None,
            });
            if let Some(stale) = stale {
                self.metrics.config_stale(stale);
            }
            let revisions = note.config.iter().filter_map(|update| match update {
                ConfigUpdate::Put { revision, .. } | ConfigUpdate::Delete { revision, .. } => Some(*revision),
                ConfigUpdate::Stale(_) => None,
            });
            // Notes of the pipeline have none.
            if let Some(revision) = revisions.max().filter(|revision| *revision > 0) {
                self.metrics.config_revision(revision);
            }
        }
        if let Some(last) = epochs.last() {
            self.lag("committed", last.epoch);
        }
    }

    fn lag(&self, stage: &str, epoch: Epoch) {
        if self.clock == Clock::Wall {
            self.metrics.frontier_lag(stage, (wall_now() / MILLI - now_ms(epoch)).max(0) as f64 / 1000.0);
        }
    }
}

/// How many keys an epoch has changed.
fn size(epoch: &ClosedEpoch) -> usize {
    epoch.changes.len() + epoch.rows.len()
}

/// The way of epochs through the committer.
#[derive(Default)]
struct Way {
    /// When each was closed, until it is published.
    closed: VecDeque<(Epoch, Instant)>,
}

impl Way {
    /// Shows how long each epoch that had records was on its way, once all up to `last` are published.
    fn published(&mut self, notes: &[Note], last: Epoch, committed: Instant, metrics: &Metrics) {
        let published = committed.elapsed();
        for note in notes.iter().filter(|note| note.received.is_some()) {
            if let Ok(i) = self.closed.binary_search_by_key(&note.epoch, |(epoch, _)| *epoch) {
                let closed = self.closed[i].1;
                metrics.stage_took(Stage::Dataflow, closed.saturating_duration_since(note.cut));
                metrics.stage_took(Stage::Commit, committed.saturating_duration_since(closed));
                metrics.stage_took(Stage::Publish, published);
            }
        }
        self.closed.drain(..self.closed.partition_point(|(epoch, _)| *epoch <= last));
    }
}

/// The wall clock, in nanoseconds since 1970.
pub fn wall_now() -> Nanos {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::output::Change;
    use marea_model::time::Timeframe;
    use marea_model::{Bar, BarBody, Output, Price, Size, Symbol};

    fn epoch(epoch: Epoch, changes: usize) -> ClosedEpoch {
        let bar = |i: usize| Bar {
            symbol: Symbol::new("A").unwrap(),
            timeframe: Timeframe::S1,
            open_time: i as Nanos * 1_000_000_000,
            body: BarBody::first(Price(1), Size(1)),
            scale: 2,
            closed: true,
        };
        ClosedEpoch {
            changes: (0..changes).map(|i| Change::Upsert(Output::Bar(bar(i)))).collect(),
            totals: Totals { records_in: 1, accepted: 1, ..Totals::default() },
            ..ClosedEpoch::empty(epoch)
        }
    }

    fn in_memory(notes: Receiver<Note>) -> Committer {
        Committer {
            target: Target::Memory(Box::new(Ledger::new(1))),
            feed: None,
            redis: None,
            dead_letters: None,
            standing: Vec::new(),
            metrics: Metrics::new("0", "file"),
            clock: Clock::Event,
            keep_state: true,
            notes,
            acknowledge: marea_sources::Committed::default(),
            restored: false,
            every: Duration::ZERO,
            deadline: Box::new(|| None),
        }
    }

    #[test]
    fn a_wait_ends_at_a_deadline_that_is_set_meanwhile() {
        let committer = in_memory(crossbeam_channel::never());
        assert!(committer.wait(Duration::from_millis(10)));
        let (began, asked) = (Instant::now(), std::cell::Cell::new(false));
        let deadline = move || asked.replace(true).then(|| began + Duration::from_millis(700));
        let committer = Committer { deadline: Box::new(deadline), ..committer };
        assert!(!committer.wait(Duration::from_secs(60)));
        assert!((Duration::from_millis(700)..Duration::from_secs(10)).contains(&began.elapsed()));
    }

    #[test]
    fn everything_is_committed_in_order_and_kept() {
        let (out, outputs) = crossbeam_channel::unbounded();
        let (notes_out, notes) = crossbeam_channel::unbounded();
        let committer = in_memory(notes);
        let metrics = committer.metrics.clone();
        for i in 1..=600 {
            if i % 100 == 0 {
                notes_out.send(Note { epoch: i, received: Some(0), cut: Instant::now(), config: Vec::new() }).unwrap();
            }
            out.send(epoch(i, usize::from(i % 2 == 0) * 3)).unwrap();
        }
        drop(out);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome = committer.run(&outputs, &runtime).unwrap();
        assert_eq!((outcome.epoch, outcome.totals.records_in, outcome.state.rows().len()), (600, 600, 3));
        assert!(outcome.totals.balanced() && outcome.dead.is_empty());
        for stage in ["dataflow", "commit", "publish"] {
            let count = format!("marea_stage_latency_seconds_count{{stage=\"{stage}\"}} 6");
            assert!(metrics.text().lines().any(|line| line == count), "{count}:\n{}", metrics.text());
        }
    }

    #[test]
    fn a_store_gets_the_same_and_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marea.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = runtime.block_on(Store::open(&path)).unwrap();
        let (out, outputs) = crossbeam_channel::unbounded();
        let (_, notes) = crossbeam_channel::unbounded();
        let committer = Committer {
            target: Target::Store(Box::new(store)),
            feed: None,
            redis: None,
            dead_letters: None,
            standing: Vec::new(),
            metrics: Metrics::new("0", "file"),
            clock: Clock::Event,
            keep_state: false,
            notes,
            acknowledge: marea_sources::Committed::default(),
            restored: false,
            every: Duration::ZERO,
            deadline: Box::new(|| None),
        };
        (1..=10).for_each(|i| out.send(epoch(i, 2)).unwrap());
        drop(out);
        let outcome = committer.run(&outputs, &runtime).unwrap();
        assert_eq!((outcome.epoch, outcome.state.rows().len()), (10, 0));
        let again = runtime.block_on(Store::open(&path)).unwrap();
        assert_eq!((again.standing().upper, again.standing().totals), (11, outcome.totals));
    }

    /// The server says that its disk is full until that is over: nothing is acknowledged before.
    #[test]
    fn while_the_disk_is_full_nothing_is_acknowledged() {
        let url = marea_servers::shared::postgres().database("committer_full_disk");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let execute = |sql: &'static str| {
            runtime.block_on(async {
                let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                let tries =
                    "SELECT CASE WHEN to_regclass('tries') IS NULL THEN 0 ELSE (SELECT last_value FROM tries) END";
                sqlx::query_scalar::<_, i64>(tries).fetch_one(&mut connection).await.unwrap()
            })
        };
        let writing = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = writing.block_on(Store::open(marea_sinks::store::StoreTarget::parse(&url))).unwrap();
        execute(
            "CREATE SEQUENCE tries; CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM nextval('tries'); RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END $$; \
             CREATE TRIGGER full_disk BEFORE INSERT ON bars FOR EACH STATEMENT EXECUTE FUNCTION full_disk()",
        );
        let (out, outputs) = crossbeam_channel::unbounded();
        let committer = Committer { target: Target::Store(Box::new(store)), ..in_memory(crossbeam_channel::never()) };
        let acknowledged = committer.acknowledge.clone();
        let partition = marea_model::Partition::new("ticks").unwrap();
        let mark = marea_model::PartitionMark { partition, low: 0, upper: 7, greatest: None, fingerprint: None };
        out.send(ClosedEpoch { marks: vec![mark], ..epoch(1, 2) }).unwrap();
        drop(out);
        let committing = std::thread::spawn(move || committer.run(&outputs, &writing));
        let began = Instant::now();
        while execute("SELECT 1") < 3 {
            assert!(began.elapsed() < Duration::from_secs(60) && !committing.is_finished(), "not tried again");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(acknowledged.upper(partition), None);
        execute("DROP TRIGGER full_disk ON bars");
        let outcome = committing.join().unwrap().unwrap();
        assert_eq!((outcome.epoch, acknowledged.upper(partition)), (1, Some(7)));
    }
}

//! The connection's life: connect, build anew, then write what comes, and twice a second look whether it is still there.
//!
//! Whatever fails ends the session: what was under way is given up, for the next session builds everything anew.

use super::direct::Direct;
use super::early::{Posted, answered};
use super::gauges::Gauges;
use super::link::{Link, Target};
use super::names::{self, Names};
use super::pending::{Derived, Head, Pending};
use super::state::{Backoff, Expiry, Found, Next, Stamp, judge, newest, sentinel};
use super::writes::{Bare, Bodies, Change, Scripts, Write, answer, json};
use crate::feed::Feed;
use crate::metrics::Stage;
use crate::store::{AuditEntry, AuditKey, Reader, StoreError};
use crate::view::millis;
use redis::{Client, Cmd, RedisError, RedisResult, Value};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Commands that are sent at once.
pub(super) const BATCH: usize = 256;
/// The same of those that nobody waits for, where values are published early, which come after them.
const PIECE: usize = 32;
/// Between two heartbeats, each with a look at the sentinel and at a part of the keys.
const BEAT: Duration = Duration::from_millis(500);
/// Between two writes of what is derived, which may change with every commit: with each beat, and so often where more is
/// to be written.
const DERIVED: Duration = Duration::from_millis(100);
/// Every key is looked at within so many beats …
const ROUND: usize = 8;
/// … or so many at each.
const LOOKED_AT: usize = 256;
/// How often a failure that lasts is mentioned again.
const REMIND: Duration = Duration::from_secs(10);

/// What the committer and the shell share.
#[derive(Debug)]
pub(super) struct Shared {
    pending: Mutex<Pending>,
    /// Locked after the former.
    direct: Mutex<Option<Direct>>,
    /// Something is committed, or known.
    changed: Notify,
    /// Something is early.
    pub(super) early: Notify,
    stopped: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new() -> Shared {
        let [changed, early] = [Notify::new(), Notify::new()];
        Shared {
            pending: Mutex::default(),
            direct: Mutex::default(),
            changed,
            early,
            stopped: watch::Sender::new(false),
        }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where early values are written by whoever has them; none without a connection that is in step.
    pub(super) fn direct(&self) -> MutexGuard<'_, Option<Direct>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) {
        self.changed.notify_one();
    }

    pub(super) fn early(&self) {
        self.early.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{}", super::config::shown(.0))]
    Redis(#[from] RedisError),
    #[error("Redis holds generation {}, epoch {}, which the store has not", .0.generation, .0.epoch)]
    Newer(Stamp),
    #[error("a stream was something else, or lacks entries")]
    Refill,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("generation {0} has the store: another process writes Redis now")]
    Superseded(u64),
}

impl Trouble {
    fn kind(&self) -> &'static str {
        match self {
            Trouble::Redis(error) => kind(error),
            Trouble::Newer(_) | Trouble::Superseded(_) => "newer",
            Trouble::Refill => "wrongtype",
            Trouble::Store(_) => "store",
        }
    }
}

pub(super) fn kind(error: &RedisError) -> &'static str {
    match error.code() {
        Some("OOM") => "oom",
        Some("READONLY") => "readonly",
        Some("WRONGTYPE") => "wrongtype",
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN") => "loading",
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => "auth",
        _ if error.is_timeout() => "timeout",
        _ if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() => "connection",
        _ => "other",
    }
}

/// A session, of a size and a type that the compiler can look through.
type Session<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Trouble>> + 'a>>;

/// The shell's own state.
pub(super) struct Shell {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Target,
    pub(super) names: Names,
    pub(super) feed: Feed,
    /// The store, and where its queries run.
    pub(super) store: Option<(Reader, Handle)>,
    pub(super) gauges: Gauges,
    pub(super) scripts: Scripts,
    /// Redis has what the store has not: who owns the store is to be asked.
    disputed: bool,
    /// Streams are to be filled from further back than the sentinel says.
    pub(super) refill: bool,
    /// What connects to the server once more, for early values; none to a Cluster.
    pub(super) server: Option<Client>,
    /// The connection for early values that is being opened, and when that was begun last.
    pub(super) opening: (Option<JoinHandle<RedisResult<Direct>>>, Option<Instant>),
    /// Early values whose answers are outstanding, the oldest first.
    pub(super) posted: VecDeque<Posted>,
    /// How far everything was written.
    pub(super) written: Option<Head>,
    /// The sentinel that was written last.
    announced: Option<String>,
    /// Keys that the index has.
    pub(super) indexed: HashSet<String>,
    /// Entries among them.
    pub(super) entered: HashSet<AuditKey>,
    /// Streams that were written to: one of these that is not there has lost what it had.
    pub(super) filled: HashSet<String>,
    /// Derived keys that were written, and when they go.
    pub(super) derived: BTreeMap<Derived, Expiry>,
    /// When what is derived was written last.
    derived_at: Option<Instant>,
    /// Keys that this round has not looked at yet.
    pub(super) unchecked: VecDeque<Checked>,
    /// How many of them are looked at with each beat.
    round: usize,
    /// Since when the oldest change that was taken has waited.
    pub(super) since: Option<Instant>,
    said: Option<(&'static str, Instant)>,
}

/// A key to look at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Checked {
    Entry(AuditKey),
    Derived(Derived),
}

impl Shell {
    pub(super) fn new(
        shared: Arc<Shared>,
        target: Target,
        names: Names,
        feed: Feed,
        store: Option<(Reader, Handle)>,
    ) -> Shell {
        let gauges = Gauges::new(feed.metrics());
        Shell {
            shared,
            target,
            names,
            feed,
            store,
            gauges,
            scripts: Scripts::new(),
            disputed: false,
            refill: false,
            server: None,
            opening: (None, None),
            posted: VecDeque::new(),
            written: None,
            announced: None,
            round: LOOKED_AT,
            indexed: HashSet::new(),
            entered: HashSet::new(),
            filled: HashSet::new(),
            derived: BTreeMap::new(),
            derived_at: None,
            unchecked: VecDeque::new(),
            since: None,
            said: None,
        }
    }

    /// Writes until it is stopped, or another process has the store.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut stopped = shared.stopped.subscribe();
        let mut backoff = Backoff::default();
        // Nothing is known before the store is.
        while shared.pending().head().is_none() {
            tokio::select! {
                () = shared.changed.notified() => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
        loop {
            let ended = self.session(&mut backoff).await;
            // With the connection.
            self.posted.clear();
            self.close_direct();
            self.gauges.up.set(0);
            match ended {
                Ok(()) => return,
                Err(trouble) => {
                    self.failed(&trouble);
                    if let Trouble::Superseded(_) = trouble {
                        return;
                    }
                }
            }
            tokio::select! {
                () = sleep(backoff.next()) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    fn failed(&mut self, trouble: &Trouble) {
        let kind = trouble.kind();
        self.gauges.errors.with_label_values(&[kind]).inc();
        match trouble {
            Trouble::Newer(_) => self.disputed = true,
            Trouble::Refill => self.refill = true,
            Trouble::Redis(_) | Trouble::Store(_) | Trouble::Superseded(_) => {}
        }
        self.lag();
        if self.said.is_none_or(|(said, at)| said != kind || at.elapsed() >= REMIND) {
            self.said = Some((kind, Instant::now()));
            tracing::error!("redis: {trouble}; until it has everything again there is no heartbeat there");
        }
    }

    /// From a connection to its end; well if it was stopped.
    fn session<'a>(&'a mut self, backoff: &'a mut Backoff) -> Session<'a> {
        Box::pin(self.serve(backoff))
    }

    async fn serve(&mut self, backoff: &mut Backoff) -> Result<(), Trouble> {
        let shared = Arc::clone(&self.shared);
        let (mut link, server) = self.target.connect().await?;
        self.server = server;
        link.all(self.scripts.load()).await?;
        let force = self.disputed;
        if force {
            self.settle().await?;
        }
        self.rebuild(&mut link, force).await?;
        self.disputed = false;
        backoff.reset();
        self.gauges.up.set(1);
        if self.said.take().is_some() {
            tracing::info!("redis: it has everything again");
        }
        let mut stopped = shared.stopped.subscribe();
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (beat, stop) = tokio::select! {
                _ = beats.tick() => (true, false),
                () = shared.changed.notified() => (false, false),
                _ = stopped.wait_for(|stopped| *stopped) => (true, true),
                () = shared.early.notified() => {
                    self.early(&mut link).await?;
                    continue;
                }
                answered = answered(&mut self.posted) => {
                    self.judge_early(answered)?;
                    // More may have become early than could be sent.
                    self.early(&mut link).await?;
                    continue;
                }
            };
            self.flush(&mut link, beat).await?;
            if beat {
                self.beat(&mut link).await?;
            }
            if stop {
                return Ok(());
            }
        }
    }

    /// Asks the store whose it is.
    async fn settle(&self) -> Result<(), Trouble> {
        let Some(store) = &self.store else { return Ok(()) };
        let generation = ask(store, |store| async move { store.current_generation().await }).await?;
        if generation == store.0.generation() { Ok(()) } else { Err(Trouble::Superseded(generation)) }
    }

    /// The last epoch of which this process may have published early.
    pub(super) fn early_until(&self) -> u64 {
        self.shared.pending().early_until()
    }

    /// How far the store is. Known before a session begins.
    pub(super) fn head(&self) -> Head {
        let nothing = Head { generation: 0, epoch: 0, seq: 0, committed_at: SystemTime::UNIX_EPOCH };
        self.shared.pending().head().unwrap_or(nothing)
    }

    pub(super) fn bodies(&self, generation: u64) -> Bodies<'_> {
        Bodies { names: self.names, view: self.feed.view(), generation, wall_ms: millis(SystemTime::now()) }
    }

    fn lag(&self) {
        let waiting = self.shared.pending().since();
        let oldest = self.since.into_iter().chain(waiting).min();
        self.gauges.lag.set(oldest.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    }

    /// Writes everything that waits; what is early before all else, and whenever more of it comes meanwhile.
    async fn flush(&mut self, link: &mut Link, beat: bool) -> Result<(), Trouble> {
        self.early(link).await?;
        let now = Instant::now();
        let enough = beat || self.derived_at.is_none_or(|at| now.duration_since(at) >= DERIVED);
        let (taken, head) = {
            let mut pending = self.shared.pending();
            (pending.take(enough), pending.head())
        };
        if enough {
            self.derived_at = Some(now);
        }
        let Some(head) = head else { return Ok(()) };
        self.since = taken.since.or(self.since);
        if taken.overflowed {
            return self.rebuild(link, false).await;
        }
        let (events, derived) = (taken.events, taken.derived);
        self.index(link, events.iter().map(|entry| entry.key).collect(), &derived).await?;
        let (newest, written) = (newest(&events), self.written_directly());
        for batch in events.chunks(BATCH) {
            let bodies = self.bodies(head.generation);
            let writes = batch.iter().map(|entry| bodies.entry(entry, newest.contains(&entry.seq), true, head.epoch));
            let writes: Vec<Write> = writes.collect();
            let answers = link.all(self.commands(&writes, false));
            let (answers, early) = self.meanwhile(link, answers).await;
            self.judge_writes(answers, writes, head)?;
            early?;
        }
        if !events.is_empty() {
            self.took(Stage::Redis, self.since);
            self.read_directly(written);
        }
        self.derive(link, &derived, head, false).await?;
        self.written = Some(head);
        self.since = None;
        self.lag();
        Ok(())
    }

    pub(super) fn took(&self, stage: Stage, since: Option<Instant>) {
        if let Some(since) = since {
            self.feed.metrics().stage_took(stage, since.elapsed());
        }
    }

    /// Sends writes, and judges what comes back: the answers.
    pub(super) async fn write(
        &mut self,
        link: &mut Link,
        writes: Vec<Write>,
        head: Head,
        force: bool,
    ) -> Result<Vec<Value>, Trouble> {
        let answers = link.all(self.commands(&writes, force)).await;
        self.judge_writes(answers, writes, head)
    }

    fn commands(&self, writes: &[Write], force: bool) -> Vec<Cmd> {
        writes.iter().map(|write| write.command(&self.scripts, force)).collect()
    }

    fn judge_writes(
        &mut self,
        answers: RedisResult<Vec<Value>>,
        writes: Vec<Write>,
        head: Head,
    ) -> Result<Vec<Value>, Trouble> {
        let answers = answers.inspect_err(|error| {
            // The server refused one and may have taken later ones: their streams have a hole.
            self.refill |= error.code().is_some() && writes.iter().any(|write| write.stream.is_some());
        })?;
        let streams = writes.into_iter().map(|write| write.stream.map(|(stream, ..)| stream));
        self.judge(&answers, streams, head)?;
        Ok(answers)
    }

    pub(super) fn judge(
        &mut self,
        answers: &[Value],
        streams: impl Iterator<Item = Option<String>>,
        head: Head,
    ) -> Result<(), Trouble> {
        let early_until = self.early_until();
        // A commit may have come between: what was derived from the view is as new as that.
        let head = Head { epoch: head.epoch.max(self.head().epoch), ..head };
        let mut refill = false;
        for (value, stream) in answers.iter().zip(streams) {
            let answer = answer(value)?;
            if answer.healed & 3 > 0 {
                self.gauges.errors.with_label_values(&["wrongtype"]).inc();
            }
            let filled = stream.is_some_and(|stream| !self.filled.insert(stream));
            match judge(answer, head, early_until, filled) {
                Next::On => {}
                Next::Newer(stamp) => return Err(Trouble::Newer(stamp)),
                Next::Refill => refill = true,
            }
        }
        if refill { Err(Trouble::Refill) } else { Ok(()) }
    }

    /// How many commands are sent at once that nobody waits for.
    fn piece(&self) -> usize {
        if self.early_until() > 0 { PIECE } else { BATCH }
    }

    /// Writes keys whose values are made now.
    pub(super) async fn derive(
        &mut self,
        link: &mut Link,
        keys: &BTreeSet<Derived>,
        head: Head,
        force: bool,
    ) -> Result<(), Trouble> {
        let (backtests, others): (Vec<Derived>, Vec<Derived>) =
            keys.iter().partition(|key| matches!(key, Derived::Backtest(_)));
        let piece = if force { BATCH } else { self.piece() };
        // A look at backtests goes over the metrics of all of them.
        for batch in others.chunks(piece).chain(backtests.chunks(BATCH)) {
            let made = self.bodies(head.generation).derived(&batch.iter().copied().collect(), &self.scripts, force);
            let mut commands = Vec::with_capacity(made.len());
            for (key, command, expiry) in made {
                match expiry {
                    Some(expiry) => self.derived.insert(key, expiry),
                    None => self.derived.remove(&key),
                };
                commands.push(command);
            }
            let answers = link.all(commands);
            let (answers, early) = if force { (answers.await, Ok(())) } else { self.meanwhile(link, answers).await };
            self.judge(&answers?, std::iter::repeat(None), head)?;
            early?;
        }
        Ok(())
    }

    /// Puts keys into the index before they are written, each with what a withdrawal of it is to say.
    pub(super) async fn index(
        &mut self,
        link: &mut Link,
        entries: BTreeSet<AuditKey>,
        derived: &BTreeSet<Derived>,
    ) -> Result<(), Trouble> {
        let new: Vec<AuditKey> = entries.into_iter().filter(|key| !self.entered.contains(key)).collect();
        let mut fields: Vec<(String, String)> = Vec::new();
        for key in &new {
            fields.push((self.names.latest(*key), self.names.channel(*key)));
            fields.push((self.names.stream(*key), String::new()));
        }
        let bodies = self.bodies(0);
        fields.extend(derived.iter().map(|key| (bodies.name(*key), String::new())));
        self.enter(link, fields).await?;
        if let Some(direct) = &mut *self.shared.direct() {
            direct.indexed(new.iter().copied());
        }
        self.entered.extend(new);
        Ok(())
    }

    /// Puts these keys into the index, each with its channel.
    pub(super) async fn enter(&mut self, link: &mut Link, mut fields: Vec<(String, String)>) -> Result<(), Trouble> {
        fields.retain(|(name, _)| !self.indexed.contains(name));
        for batch in fields.chunks(BATCH) {
            let mut command = redis::cmd("HSET");
            command.arg(names::INDEX);
            command.arg(batch);
            link.one(command).await?;
            self.indexed.extend(batch.iter().map(|(name, _)| name.clone()));
        }
        Ok(())
    }

    /// The heartbeat and the sentinel, and a look at what is there.
    async fn beat(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let Some(head) = self.written else { return Ok(()) };
        let written = self.written_directly();
        let found = link.one(get(names::SENTINEL)).await?;
        self.read_directly(written);
        let found: Option<String> = redis::from_redis_value(found).map_err(RedisError::from)?;
        if found != self.announced {
            // Not the last one that was written, whoever put it there.
            return match sentinel(found.as_deref(), head, self.early_until()) {
                Found::Newer(stamp) => Err(Trouble::Newer(stamp)),
                Found::Nothing | Found::UpTo(_) => self.rebuild(link, false).await,
            };
        }
        self.check(link).await?;
        self.announce(link, false).await?;
        self.tend_direct().await;
        Ok(())
    }

    /// Says how far everything is written, and until when it may be acted on.
    pub(super) async fn announce(&mut self, link: &mut Link, force: bool) -> Result<(), Trouble> {
        let Some(head) = self.written else { return Ok(()) };
        let stamp = Stamp { generation: head.generation, epoch: head.epoch };
        let put = |key: &str, body, expiry, told| {
            let key = key.to_owned();
            Write { key, change: Change::Set(body, expiry), stamp, stream: None, told }
        };
        let sentinel = json(&Bare::sentinel(head));
        let mut writes = vec![put(names::SENTINEL, sentinel.clone(), Expiry::Never, None)];
        if let Some(deadline) = self.feed.deadline_of(head.committed_at, head.epoch).map(millis)
            && deadline > millis(SystemTime::now())
        {
            let told = Some((names::HEARTBEAT.to_owned(), None));
            writes.push(put(names::HEARTBEAT, json(&Bare::heartbeat(head, deadline)), Expiry::At(deadline), told));
        }
        self.write(link, writes, head, force).await?;
        self.announced = Some(sentinel);
        Ok(())
    }

    /// Looks at the next keys: what is not as it should be is written again.
    async fn check(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let Some(head) = self.written else { return Ok(()) };
        let view = self.feed.view();
        if self.unchecked.is_empty() {
            let entries = view.recommendations().into_iter().chain(view.verdicts(None, None));
            let entries = entries.map(|entry| Checked::Entry(entry.key));
            self.unchecked = entries.chain(self.derived.keys().copied().map(Checked::Derived)).collect();
            self.round = self.unchecked.len().div_ceil(ROUND).max(LOOKED_AT);
        }
        let looked_at: Vec<Checked> = self.unchecked.drain(..self.round.min(self.unchecked.len())).collect();
        for piece in looked_at.chunks(self.piece()) {
            self.check_all(link, piece, head).await?;
            self.early(link).await?;
        }
        Ok(())
    }

    async fn check_all(&mut self, link: &mut Link, keys: &[Checked], head: Head) -> Result<(), Trouble> {
        let bodies = self.bodies(head.generation);
        let (mut commands, mut asked): (Vec<Cmd>, Vec<(Checked, Option<AuditEntry>)>) = (Vec::new(), Vec::new());
        for key in keys {
            match *key {
                Checked::Entry(audit) => {
                    // What has changed since the last flush is about to be written.
                    let Some(entry) = bodies.standing(audit).filter(|entry| entry.seq <= head.seq) else { continue };
                    let places = (&*self.names.latest(audit), &*self.names.stream(audit));
                    let stamp = Stamp { generation: head.generation, epoch: entry.epoch };
                    let expected = (Some(entry.seq), bodies.expiry(&entry, head.epoch));
                    commands.push(bodies.check(&self.scripts, "string", places, stamp, expected));
                    asked.push((*key, Some(entry)));
                }
                Checked::Derived(derived) => {
                    let Some(expiry) = self.derived.get(&derived) else { continue };
                    if matches!(expiry, Expiry::At(at) if *at <= bodies.wall_ms + 1_000) {
                        continue;
                    }
                    let kind = match derived {
                        Derived::MarketData(..) | Derived::Backtest(_) => "string",
                        Derived::Strategies(_) | Derived::Ranking => "zset",
                    };
                    let name = bodies.name(derived);
                    let stamp = Stamp { generation: head.generation, epoch: self.head().epoch };
                    let places = (&*name, &*name);
                    commands.push(bodies.check(&self.scripts, kind, places, stamp, (None, Expiry::Never)));
                    asked.push((*key, None));
                }
            }
        }
        let answers = link.all(commands).await?;
        let early_until = self.early_until();
        let (mut missing, mut newer, mut derived, mut refill) = (Vec::new(), Vec::new(), BTreeSet::new(), false);
        for ((key, entry), value) in asked.iter().zip(&answers) {
            let [stands, generation, epoch, last]: [i64; 4] =
                redis::from_redis_value_ref(value).map_err(RedisError::from)?;
            let stamp = Stamp { generation: generation.cast_unsigned(), epoch: epoch.cast_unsigned() };
            if stands == 2 && (stamp.generation > head.generation || stamp.epoch > self.head().epoch.max(early_until)) {
                return Err(Trouble::Newer(stamp));
            }
            match (key, entry) {
                (Checked::Entry(_), Some(entry)) => {
                    // A newer epoch that is not committed was published early; one that is should have been followed.
                    if stands == 1 {
                        missing.push(bodies.entry(entry, true, false, head.epoch));
                    } else if stands == 2 && stamp.epoch <= head.epoch {
                        // Over all that is committed, and not over what comes early meanwhile.
                        let stamp = Stamp { generation: head.generation, epoch: head.epoch };
                        newer.push(Write { stamp, ..bodies.entry(entry, true, false, head.epoch) });
                    }
                    let last = u64::try_from(last).unwrap_or_default();
                    if last > self.head().seq {
                        return Err(Trouble::Newer(Stamp { generation: head.generation, epoch: head.epoch + 1 }));
                    }
                    refill |= last < entry.seq;
                }
                (Checked::Derived(key), _) if stands == 1 => drop(derived.insert(*key)),
                _ => {}
            }
        }
        if refill {
            return Err(Trouble::Refill);
        }
        // What was missing may be there by now, and newer.
        self.write(link, missing, head, false).await?;
        self.write(link, newer, head, false).await?;
        self.derive(link, &derived, head, false).await
    }
}

/// What the store answers, asked where its connections are driven.
pub(super) async fn ask<T: Send + 'static, F>(
    (store, runtime): &(Reader, Handle),
    query: impl FnOnce(Reader) -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    // Only a runtime that is being shut down gives none.
    let stopping = || StoreError::Unavailable { store: store.store(), detail: "the process is stopping".to_owned() };
    runtime.spawn(query(store.clone())).await.unwrap_or_else(|_| Err(stopping()))
}

/// What reads a string.
pub(super) fn get(key: &str) -> Cmd {
    let mut command = redis::cmd("GET");
    command.arg(key);
    command
}

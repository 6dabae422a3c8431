//! The shell: consumers, their events and timers, on the thread that runs the source.

use super::KafkaError;
use super::config::KafkaConfig;
use super::header;
use super::state::{Bounds, Message, State, Stood};
use crate::{Committed, Input, Lags, Sender, Stop, send_all, wall_now};
use marea_model::Nanos;
use marea_model::cursor::Fingerprint;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that an idle source sleeps: messages wake it.
const IDLE: Duration = Duration::from_millis(20);
/// The longest that one question to a broker may hold up the flow.
const ASK: Duration = Duration::from_secs(1);
/// How long records to compare are waited for.
const COMPARE: Duration = Duration::from_secs(5);
/// How often what was not answered is asked again …
const AGAIN: Duration = Duration::from_millis(500);
/// … and at the start, where nothing flows yet.
const AGAIN_AT_START: Duration = Duration::from_secs(1);
/// A topic that brokers do not know for so long is deleted; a broker that has just started knows nothing for a moment.
const DELETED: Duration = Duration::from_secs(3);
/// How often the group's offsets are written.
const COMMIT: Duration = Duration::from_secs(1);
/// How long the last of them may take, and the end of a client.
const CLOSE: Duration = Duration::from_secs(2);
/// How often the topic itself is looked at …
const LOOK: Duration = Duration::from_secs(5);
/// … and for how long at most.
const GLANCE: Duration = Duration::from_millis(300);
/// Statistics may speak of a former assignment for so long.
const SETTLED: Duration = Duration::from_secs(3);

/// The id of a topic before the client knows it.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// What the client tells beside messages.
#[derive(Default)]
pub(super) struct Context {
    /// Everything that was told: a poll without a message may have told something instead.
    told: AtomicU64,
    committed: AtomicU64,
    /// A topic of this name, but another one, has taken the place of what was read.
    another: AtomicBool,
    statistics: Mutex<Option<Statistics>>,
    reason: Mutex<String>,
}

impl Context {
    fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    fn tell(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.tell();
        // The only place where the client tells it: it goes on with the new topic's records at the old one's offset.
        if let Some((_, ids)) = message.split_once(" changed id from ")
            && !ids.starts_with(NO_ID)
        {
            self.another.store(true, Ordering::Relaxed);
        }
        match level {
            RDKafkaLogLevel::Debug => tracing::trace!(target: "librdkafka", facility, message),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(target: "librdkafka", facility, message);
            }
            // Each broken connection is several errors; what matters of it is said once, by the source.
            _ => tracing::debug!(target: "librdkafka", facility, message),
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.tell();
        *lock(&self.statistics) = Some(statistics);
    }

    fn error(&self, _error: ClientError, reason: &str) {
        self.tell();
        reason.clone_into(&mut lock(&self.reason));
    }
}

impl ConsumerContext for Context {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.tell();
        self.committed.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = result {
            tracing::debug!(%error, "the group's offsets were not written");
        }
    }
}

/// What an error means for the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    /// It passes.
    Passes,
    /// No broker can be reached.
    Down,
    /// A partition, or where it is read, is no longer there.
    Suspect,
    /// It never passes.
    Refused(&'static str),
}

fn trouble(code: Code) -> Trouble {
    match code {
        Code::AllBrokersDown => Trouble::Down,
        Code::AutoOffsetReset
        | Code::LogTruncation
        | Code::OffsetOutOfRange
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId => Trouble::Suspect,
        Code::Authentication | Code::SaslAuthenticationFailed => {
            Trouble::Refused("check mechanism, username and password")
        }
        Code::UnsupportedSASLMechanism => Trouble::Refused("choose a mechanism that the brokers offer"),
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            Trouble::Refused("allow this user to describe and read the topic")
        }
        Code::UnsupportedVersion | Code::UnsupportedFeature => Trouble::Refused("brokers must be Kafka 0.11 or newer"),
        Code::BadCompression | Code::NotImplemented => {
            Trouble::Refused("let producers use gzip, snappy, lz4, zstd, or no compression")
        }
        Code::BadMessage => Trouble::Refused("the log is corrupt there: repair the broker's log, or read on elsewhere"),
        Code::Fatal => Trouble::Refused("restart"),
        _ => Trouble::Passes,
    }
}

/// The code in a client's error; passing trouble without one.
fn code(error: &ClientError) -> Code {
    error.rdkafka_error_code().unwrap_or(Code::Unknown)
}

/// Why something cannot be done now.
enum Hold {
    /// It may be possible later.
    Later(String),
    /// It is over.
    Over(KafkaError),
}

impl From<KafkaError> for Hold {
    fn from(error: KafkaError) -> Self {
        Hold::Over(error)
    }
}

/// One topic, and its consumer.
pub(super) struct Reader {
    consumer: BaseConsumer<Context>,
    state: State,
    committed: Committed,
    lags: Lags,
    down: bool,
    /// Whether partitions must be looked at again.
    suspect: bool,
    /// Since when brokers say that there is no such topic.
    missing: Option<Instant>,
    look: Instant,
    commit: Instant,
    assigned: Instant,
    /// The partitions that are fetched.
    fetched: BTreeSet<i32>,
}

impl Reader {
    pub(super) fn new(
        config: &KafkaConfig,
        state: State,
        committed: Committed,
        lags: Lags,
    ) -> Result<Self, KafkaError> {
        let consumer = config.client().create_with_context(Context::default());
        let consumer = consumer.map_err(|error| KafkaError::Config(error.to_string()))?;
        let (down, suspect, missing, now) = (false, false, None, Instant::now());
        let (look, commit, assigned, fetched) = (now, now, now, BTreeSet::new());
        Ok(Reader { consumer, state, committed, lags, down, suspect, missing, look, commit, assigned, fetched })
    }

    /// Finds the topic and where to read it, within so long. Whether to go on.
    fn connect(&mut self, within: Duration, stop: &Stop) -> Result<bool, KafkaError> {
        let (mut said, begun) = (String::new(), Instant::now());
        while !stop.is_stopped() && begun.elapsed() < within {
            let met = self.partitions(ASK).and_then(|ids| {
                let ids = ids.ok_or_else(|| Hold::Later("the topic does not exist yet".to_owned()))?;
                self.state.present(&ids)?;
                self.locate(&ids.into_iter().collect::<Vec<_>>())
            });
            let cause = match met {
                Ok(()) => return Ok(true),
                Err(Hold::Over(error)) => return Err(error),
                Err(Hold::Later(cause)) => cause,
            };
            // Errors that say why come as events.
            self.serve()?;
            let reason = lock(&self.consumer.context().reason).clone();
            if cause != said {
                tracing::warn!(topic = self.state.topic(), cause, reason, "waiting for Kafka");
                said = cause;
            }
            stop.sleep(AGAIN_AT_START);
        }
        Ok(false)
    }

    /// Events alone, while nothing is assigned.
    fn serve(&mut self) -> Result<(), KafkaError> {
        loop {
            let told = self.consumer.context().told();
            match self.consumer.poll(Duration::ZERO) {
                Some(Err(error)) => self.meet(&error)?,
                Some(Ok(_)) => {}
                None if self.consumer.context().told() == told => return Ok(()),
                None => {}
            }
        }
    }

    /// The partitions that brokers know; none if they know no such topic.
    fn partitions(&self, within: Duration) -> Result<Option<BTreeSet<i32>>, Hold> {
        let metadata = self.consumer.fetch_metadata(Some(self.state.topic()), within);
        let metadata = metadata.map_err(|error| self.hold(&error))?;
        let Some(topic) = metadata.topics().first() else { return Ok(None) };
        match topic.error().map(Code::from) {
            None if topic.partitions().is_empty() => Ok(None),
            None => Ok(Some(topic.partitions().iter().map(|partition| partition.id()).collect())),
            Some(code) if trouble(code) == Trouble::Suspect => Ok(None),
            Some(code) => Err(self.hold(&ClientError::MetadataFetch(code))),
        }
    }

    fn hold(&self, error: &ClientError) -> Hold {
        match self.judge(error) {
            Err(error) => Hold::Over(error),
            Ok(_) => Hold::Later(error.to_string()),
        }
    }

    fn judge(&self, error: &ClientError) -> Result<Trouble, KafkaError> {
        let trouble = match error {
            ClientError::MessageConsumptionFatal(_) => Trouble::Refused("restart"),
            // Which of the connections that break never pass is told in words alone.
            error
                if matches!(code(error), Code::SSL | Code::BrokerTransportFailure)
                    && lock(&self.consumer.context().reason).contains("certificate") =>
            {
                Trouble::Refused("check security.ca, certificate and key, and the broker's certificate")
            }
            error => trouble(code(error)),
        };
        if let Trouble::Refused(advice) = trouble {
            let reason = lock(&self.consumer.context().reason).clone();
            let cause = if reason.is_empty() { error.to_string() } else { reason };
            return Err(KafkaError::Refused { topic: self.state.topic().to_owned(), cause, advice });
        }
        Ok(trouble)
    }

    /// An error came instead of a message.
    fn meet(&mut self, error: &ClientError) -> Result<(), KafkaError> {
        let topic = self.state.topic();
        match self.judge(error)? {
            Trouble::Down if !self.down => {
                tracing::warn!(topic, "all Kafka brokers are down: waiting for them");
                self.down = true;
            }
            Trouble::Suspect if !self.suspect => {
                tracing::debug!(topic, %error, "looking at the partitions again");
                (self.suspect, self.look) = (true, Instant::now());
            }
            _ => tracing::debug!(topic, %error, "kafka"),
        }
        Ok(())
    }

    /// Finds where to read partitions that are new or may have changed, and reads all from where they stand.
    fn locate(&mut self, ids: &[i32]) -> Result<(), Hold> {
        let mut bounds = BTreeMap::new();
        for id in ids {
            let (start, end) =
                self.consumer.fetch_watermarks(self.state.topic(), *id, ASK).map_err(|error| self.hold(&error))?;
            let (start, end) = (u64::try_from(start).unwrap_or(0), u64::try_from(end).unwrap_or(0));
            bounds.insert(*id, Bounds { start, end });
        }
        let mut compare = BTreeMap::new();
        for (id, bounds) in &bounds {
            if let Some(offset) = self.state.locate(*id, *bounds)? {
                compare.insert(*id, offset);
            }
        }
        for (id, found) in self.compare(compare)? {
            if let Some(bounds) = bounds.get(&id) {
                self.state.compare(id, found, *bounds)?;
            }
        }
        self.assign().map_err(|error| Hold::Later(error.to_string()))
    }

    /// Reads one record of each partition; none where another one stands in its place. Nothing is assigned afterwards.
    fn compare(&mut self, mut wanted: BTreeMap<i32, u64>) -> Result<Vec<(i32, Option<Fingerprint>)>, Hold> {
        let mut found = Vec::new();
        if wanted.is_empty() {
            return Ok(found);
        }
        let later = |error: ClientError| Hold::Later(error.to_string());
        self.consumer.assign(&list(self.state.topic(), &wanted).map_err(later)?).map_err(later)?;
        let begun = Instant::now();
        while !wanted.is_empty() && begun.elapsed() < COMPARE {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let id = message.partition();
                    if let Some(offset) = wanted.remove(&id) {
                        let message = read(&message);
                        found.push((id, (message.offset == offset).then(|| message.fingerprint())));
                    }
                }
                Some(Err(ClientError::PartitionEOF(id))) => found.extend(wanted.remove(&id).map(|_| (id, None))),
                Some(Err(error)) => {
                    if let Hold::Over(error) = self.hold(&error) {
                        return Err(Hold::Over(error));
                    }
                }
                None => {}
            }
        }
        self.consumer.unassign().map_err(later)?;
        if wanted.is_empty() {
            return Ok(found);
        }
        Err(Hold::Later("the last records read do not come, to be compared".to_owned()))
    }

    fn assign(&mut self) -> KafkaResult<()> {
        self.assigned = Instant::now();
        let fetching: BTreeMap<i32, u64> = self.state.fetching().collect();
        self.consumer.assign(&list(self.state.topic(), &fetching)?)?;
        self.fetched = fetching.into_keys().collect();
        Ok(())
    }

    /// Fetches what is wanted now, and nothing else: what is finished, or waits for others, needs no room.
    fn fetch(&mut self, only_committed: bool) {
        // What is suspect is looked at before anything else of it is read: what was left out stays left out until reading
        // can begin again where it was left.
        if self.suspect {
            return;
        }
        if self.state.read_only_committed(only_committed) {
            self.fetched.clear();
        }
        let fetching: BTreeSet<i32> = self.state.fetching().map(|(id, _)| id).collect();
        if fetching == self.fetched {
            return;
        }
        let topic = self.state.topic();
        let result = if fetching.is_subset(&self.fetched) {
            let leaving: BTreeMap<i32, u64> = self.fetched.difference(&fetching).map(|id| (*id, 0)).collect();
            self.fetched = fetching;
            list(topic, &leaving).and_then(|list| self.consumer.incremental_unassign(&list))
        } else {
            self.assign()
        };
        if let Err(error) = result {
            tracing::debug!(topic = self.state.topic(), %error, "what is fetched has not changed");
            // The positions are still those of before: what comes next may lie behind what was left out.
            self.state.read_only_committed(true);
        }
    }

    /// Takes what has come, until nothing more has or it is enough. Whether there was anything.
    fn read(&mut self, now: Nanos) -> Result<bool, KafkaError> {
        let mut any = false;
        loop {
            let told = self.consumer.context().told();
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    any = true;
                    if self.state.message(message.partition(), &read(&message), now) {
                        return Ok(true);
                    }
                }
                Some(Err(ClientError::PartitionEOF(id))) => {
                    any = true;
                    self.state.eof(id);
                }
                Some(Err(error)) => self.meet(&error)?,
                None if self.consumer.context().told() == told => return Ok(any),
                None => any = true,
            }
            if self.consumer.context().told() != told && self.consumer.context().another.swap(false, Ordering::Relaxed)
            {
                // Nothing more is read before it is looked at.
                (self.suspect, self.look) = (true, Instant::now());
                return Ok(true);
            }
        }
    }

    /// What time brings: statistics, commits, second looks. New partitions go to `starts`.
    fn tend(&mut self, starts: &mut Vec<Input>) -> Result<(), KafkaError> {
        let statistics = lock(&self.consumer.context().statistics).take();
        if let Some(statistics) = statistics {
            self.stood(&statistics);
        }
        let now = Instant::now();
        if self.suspect && now >= self.look {
            self.look = now + AGAIN;
            self.look_again()?;
        } else if !self.down && !self.suspect && now >= self.look {
            self.look = now + LOOK;
            self.glance(starts)?;
        }
        if now >= self.commit {
            self.commit = now + COMMIT;
            self.commit();
        }
        Ok(())
    }

    fn stood(&mut self, statistics: &Statistics) {
        if self.down && statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP") {
            tracing::info!(topic = self.state.topic(), "a Kafka broker is back");
            self.down = false;
            // Whatever happened meanwhile: is it still the same topic?
            (self.suspect, self.look) = (true, Instant::now());
        }
        let Some(topic) = statistics.topics.get(self.state.topic()) else { return };
        for (id, partition) in &topic.partitions {
            if *id < 0 {
                continue;
            }
            if self.assigned.elapsed() > SETTLED {
                let (eof, end, queued) = (partition.eof_offset, partition.hi_offset, partition.fetchq_cnt);
                self.state.stood(*id, Stood { eof, end, queued }, &self.lags);
            }
        }
    }

    /// Is the topic there, and has it more partitions than before?
    fn glance(&mut self, starts: &mut Vec<Input>) -> Result<(), KafkaError> {
        let glanced = self.partitions(GLANCE).and_then(|ids| {
            let Some(ids) = ids else {
                (self.suspect, self.look) = (true, Instant::now());
                return Ok(());
            };
            self.state.remember();
            let new: Vec<i32> = ids.into_iter().filter(|id| !self.state.knows(*id)).collect();
            if new.is_empty() || self.state.until_end() {
                return Ok(());
            }
            self.locate(&new)?;
            tracing::info!(topic = self.state.topic(), partitions = ?new, "partitions were added");
            starts.extend(new.iter().filter_map(|id| self.state.start(*id)));
            Ok(())
        });
        match glanced {
            Err(Hold::Over(error)) => Err(error),
            Err(Hold::Later(cause)) => {
                tracing::debug!(topic = self.state.topic(), cause, "looking at the topic");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Is it still the topic that was read?
    fn look_again(&mut self) -> Result<(), KafkaError> {
        let looked = self.partitions(GLANCE).and_then(|ids| {
            let Some(ids) = ids else {
                let since = *self.missing.get_or_insert_with(Instant::now);
                if since.elapsed() >= DELETED {
                    return Err(Hold::Over(KafkaError::Deleted { topic: self.state.topic().to_owned() }));
                }
                return Err(Hold::Later("brokers do not know the topic".to_owned()));
            };
            self.missing = None;
            self.state.present(&ids)?;
            self.locate(&self.state.reading().map(|(id, _)| id).collect::<Vec<_>>())
        });
        match looked {
            Ok(()) => self.suspect = false,
            Err(Hold::Later(cause)) => tracing::debug!(topic = self.state.topic(), cause, "looking again"),
            Err(Hold::Over(error)) => return Err(error),
        }
        Ok(())
    }

    /// Writes the group's offsets where they changed. Whether there was anything to write.
    fn commit(&mut self) -> bool {
        let offsets: BTreeMap<i32, u64> = self.state.commits(&self.committed).into_iter().collect();
        if offsets.is_empty() {
            return false;
        }
        let list = list(self.state.topic(), &offsets);
        if let Err(error) = list.and_then(|list| self.consumer.commit(&list, CommitMode::Async)) {
            tracing::debug!(topic = self.state.topic(), %error, "the group's offsets were not written");
        }
        true
    }

    /// The last commit, and the end of the client. Neither `CommitMode::Sync` nor a plain drop: while the brokers are away
    /// both wait for most of a minute.
    fn close(mut self) {
        let _ = self.consumer.unassign();
        let done = self.consumer.context().committed.load(Ordering::Relaxed);
        let reachable = !self.down && self.consumer.fetch_metadata(Some(self.state.topic()), GLANCE).is_ok();
        if reachable && self.commit() {
            let begun = Instant::now();
            while self.consumer.context().committed.load(Ordering::Relaxed) == done && begun.elapsed() < CLOSE {
                let _ = self.consumer.poll(Duration::from_millis(50));
            }
        }
        let (dropped, wait) = crossbeam_channel::bounded(1);
        let consumer = self.consumer;
        thread::spawn(move || {
            drop(consumer);
            let _ = dropped.send(());
        });
        let _ = wait.recv_timeout(CLOSE);
    }
}

/// What the source needs of a message. The last header counts, as everywhere in Kafka.
fn read<'a>(message: &'a BorrowedMessage<'_>) -> Message<'a> {
    Message {
        offset: u64::try_from(message.offset()).unwrap_or(0),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        content_type: header::last(message, "content-type"),
        key: message.key(),
        payload: message.payload(),
    }
}

fn list(topic: &str, offsets: &BTreeMap<i32, u64>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (id, offset) in offsets {
        list.add_partition_offset(topic, *id, Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX)))?;
    }
    Ok(list)
}

/// Reads all topics until the end, a stop, or an error.
pub(super) fn run(mut readers: Vec<Reader>, out: &Sender, stop: &Stop) -> Result<(), KafkaError> {
    let result = begin(&mut readers, stop).and_then(|starts| match starts {
        Some(starts) => flow(&mut readers, starts, out, stop),
        None => Ok(()),
    });
    for reader in readers {
        reader.close();
    }
    result
}

/// Finds all topics, and what they lack of what was committed. Whether all of them were there.
pub(super) fn check(mut readers: Vec<Reader>, within: Duration, stop: &Stop) -> Result<bool, KafkaError> {
    let result = readers.iter_mut().try_fold(true, |going, reader| {
        reader.state.check_only();
        Ok(going && reader.connect(within, stop)?)
    });
    readers.into_iter().for_each(Reader::close);
    result
}

/// Finds all topics. What announces their partitions; none if it was stopped meanwhile.
fn begin(readers: &mut [Reader], stop: &Stop) -> Result<Option<Vec<Input>>, KafkaError> {
    let mut starts = Vec::new();
    for reader in readers {
        if !reader.connect(Duration::MAX, stop)? {
            return Ok(None);
        }
        starts.extend(reader.state.ids().filter_map(|id| reader.state.start(id)));
        let me = thread::current();
        reader.consumer.set_nonempty_callback(move || me.unpark());
    }
    Ok(Some(starts))
}

fn flow(readers: &mut [Reader], mut inputs: Vec<Input>, out: &Sender, stop: &Stop) -> Result<(), KafkaError> {
    loop {
        let mut any = false;
        let mut wrong = None;
        let only_committed = readers.iter().any(|reader| reader.state.is_behind());
        for reader in &mut *readers {
            reader.fetch(only_committed);
            let now = wall_now();
            let read = reader.read(now);
            // What came before an error is sent before it is told.
            reader.state.drain(now, &mut inputs);
            match read.and_then(|read| reader.tend(&mut inputs).map(|()| read)) {
                Ok(read) => any |= read,
                Err(error) => wrong = wrong.or(Some(error)),
            }
        }
        if !inputs.is_empty() && send_all(out, stop, inputs.drain(..)).is_err() {
            return Ok(());
        }
        if let Some(error) = wrong {
            return Err(error);
        }
        if stop.is_stopped() || readers.iter().all(|reader| reader.state.is_finished()) {
            return Ok(());
        }
        if !any {
            thread::park_timeout(IDLE);
        }
    }
}

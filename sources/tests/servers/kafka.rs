//! The Kafka source against a real broker: each test has a topic of its own, a test that kills brokers has its own broker.

use marea_model::codec::{Decoder, arrow, json};
use marea_model::cursor::{Batch, Fingerprint, Reason};
use marea_model::time::SECOND;
use marea_model::{Cursor, Event, Instruments, Partition, Price, Size, Symbol, Tick, Timeframe};
use marea_servers::shared;
use marea_sources::kafka::{KafkaConfig, KafkaError, open};
use marea_sources::message::{ARROW, JSON};
use marea_sources::{Committed, Gap, GapCause, Gaps, Input, Lags, Receiver, Resume, Stop};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
const START: i64 = 1_600_000_000 * SECOND;

fn decoder() -> Decoder {
    Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: None }
}

fn tick(seq: u64) -> Tick {
    let event = Event::Trade { price: Price(181_9000_0000), size: Size(100_0000_0000) };
    Tick { symbol: Symbol::new("IBM").unwrap(), event_time: START + seq as i64, seq, event }
}

fn tick_json(seq: u64) -> Vec<u8> {
    json::encode(&tick(seq), &Instruments::default())
}

/// A topic's name that no other test has, nor any other run of this one.
fn name(base: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{base}-{}", now.as_nanos())
}

fn topic(base: &str, partitions: u32) -> String {
    let name = name(base);
    shared::kafka().create_topic(&name, partitions, &[]).unwrap();
    name
}

fn brokers() -> String {
    shared::kafka().brokers()
}

pub(super) fn config(brokers: &str, topic: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        group: format!("{topic}-group"),
        ..KafkaConfig::default()
    }
}

fn until_end(topic: &str) -> KafkaConfig {
    KafkaConfig { until_end: true, ..config(&brokers(), topic) }
}

fn partition(topic: &str, id: i32) -> Partition {
    Partition::new(&format!("kafka:{topic}/{id}")).unwrap()
}

fn producer(brokers: &str, settings: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("message.max.bytes", "20000000").set("acks", "all");
    settings.iter().for_each(|(key, value)| {
        config.set(*key, *value);
    });
    config.create().unwrap()
}

fn put(producer: &BaseProducer, topic: &str, partition: i32, content_type: Option<&str>, payload: Option<&[u8]>) {
    let headers =
        content_type.map(|value| OwnedHeaders::new().insert(Header { key: "Content-Type", value: Some(value) }));
    let mut record: BaseRecord<'_, str, [u8]> = BaseRecord::to(topic).partition(partition).key("IBM");
    record.payload = payload;
    record.headers = headers;
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(Duration::from_millis(10));
                record = back;
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}

fn put_ticks(topic: &str, partition: i32, seqs: std::ops::Range<u64>) {
    put_ticks_at(&brokers(), topic, partition, seqs);
}

pub(super) fn put_ticks_at(brokers: &str, topic: &str, partition: i32, seqs: std::ops::Range<u64>) {
    let producer = producer(brokers, &[]);
    seqs.for_each(|seq| put(&producer, topic, partition, Some(JSON), Some(&tick_json(seq))));
    producer.flush(SOON).unwrap();
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn delete_records(topic: &str, partition: i32, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
    wait(admin().delete_records(&list, &AdminOptions::new())).unwrap();
}

fn delete_topic(topic: &str) {
    wait(admin().delete_topics(&[topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    // The broker answers before it has forgotten.
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap();
    let begun = Instant::now();
    while consumer.fetch_metadata(Some(topic), SOON).unwrap().topics()[0].error().is_none() {
        assert!(begun.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Again, until the broker has forgotten the old one.
fn create_again(topic: &str, partitions: u32) {
    let begun = Instant::now();
    while let Err(error) = shared::kafka().create_topic(topic, partitions, &[]) {
        assert!(begun.elapsed() < SOON, "{error}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether all is there that a restart wants.
fn check(config: KafkaConfig, resume: Vec<Resume>) -> Result<Vec<Gap>, KafkaError> {
    let kafka = open(config, decoder(), resume, Committed::default(), Lags::default()).unwrap();
    kafka.check(SOON, &Stop::new()).map(|gaps| gaps.expect("the broker is there"))
}

/// A source at work, and what it sent so far.
pub(super) struct Running {
    input: Receiver,
    stop: Stop,
    gaps: Gaps,
    committed: Committed,
    lags: Lags,
    thread: Option<JoinHandle<Result<(), KafkaError>>>,
    started: Vec<Partition>,
    finished: Vec<Partition>,
    batches: Vec<Batch>,
}

impl Running {
    pub(super) fn new(config: KafkaConfig, resume: Vec<Resume>) -> Self {
        Self::with_room(config, resume, 1000)
    }

    fn with_room(config: KafkaConfig, resume: Vec<Resume>, room: usize) -> Self {
        assert_eq!(config.check(), Vec::<String>::new());
        let (out, input) = crossbeam_channel::bounded(room);
        let out = marea_sources::Sender::from(out);
        let (stop, committed, lags) = (Stop::new(), Committed::default(), Lags::default());
        let kafka = open(config, decoder(), resume, committed.clone(), lags.clone()).unwrap();
        let gaps = kafka.gaps();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || kafka.run(&out, &stop)
        });
        let (started, finished, batches) = (Vec::new(), Vec::new(), Vec::new());
        Running { input, stop, gaps, committed, lags, thread: Some(thread), started, finished, batches }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Start { partition, .. } => self.started.push(partition),
            Input::Finished { partition } => self.finished.push(partition),
            Input::Batch(batch) => {
                assert!(self.started.contains(&batch.partition), "announced before its first batch");
                self.batches.push(batch);
            }
            // What was skipped is told by `gaps`.
            Input::Restarted { .. } => {}
            Input::Config(_) => panic!("Kafka has no configuration"),
        }
    }

    /// Takes what comes until it is enough.
    fn until(&mut self, what: &str, mut enough: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !enough(self) {
            assert!(
                begun.elapsed() < SOON,
                "{what}: {} records, {:?}",
                self.rows(),
                self.thread.as_ref().map(JoinHandle::is_finished)
            );
            if let Ok(input) = self.input.recv_timeout(Duration::from_millis(20)) {
                self.take(input);
            }
        }
    }

    /// Takes what comes until the source ends by itself.
    pub(super) fn end(&mut self) -> Result<(), KafkaError> {
        let begun = Instant::now();
        while !self.thread.as_ref().unwrap().is_finished() || !self.input.is_empty() {
            assert!(begun.elapsed() < SOON, "{} records, {:?}", self.rows(), self.gaps.take());
            if let Ok(input) = self.input.recv_timeout(Duration::from_millis(20)) {
                self.take(input);
            }
        }
        self.thread.take().unwrap().join().unwrap()
    }

    fn stop(&mut self) {
        self.stop.stop();
        assert_eq!(self.thread.take().unwrap().join().unwrap(), Ok(()));
        while let Ok(input) = self.input.try_recv() {
            self.take(input);
        }
    }

    fn rows(&self) -> usize {
        self.batches.iter().map(|batch| batch.records.len() + batch.accounts.len() + batch.rejects.len()).sum()
    }

    fn ticks(&self) -> Vec<(Cursor, Tick)> {
        self.batches.iter().flat_map(|batch| batch.records.iter().map(|record| (record.cursor, record.tick))).collect()
    }

    pub(super) fn seqs(&self) -> Vec<u64> {
        let mut seqs: Vec<u64> = self.ticks().into_iter().map(|(_, tick)| tick.seq).collect();
        seqs.sort_unstable();
        seqs
    }

    fn last(&self, partition: Partition) -> Option<&Batch> {
        self.batches.iter().rev().find(|batch| batch.partition == partition)
    }

    fn stands(&self, partition: Partition) -> Option<(u64, bool)> {
        self.last(partition).map(|batch| (batch.upper, batch.at_end))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn resume(topic: &str, low: u64, upper: u64, fingerprint: Option<Fingerprint>) -> Vec<Resume> {
    vec![Resume { partition: partition(topic, 0), low, upper, fingerprint }]
}

#[test]
fn json_and_arrow_come_from_all_partitions_until_the_end() {
    let topic = topic("round-trip", 4);
    let kafka = producer(&brokers(), &[]);
    for seq in 0..1000 {
        put(&kafka, &topic, (seq % 2) as i32, Some("application/json; charset=utf-8"), Some(&tick_json(seq)));
    }
    for message in 0..10_u64 {
        let ticks: Vec<Tick> = (0..100).map(|row| tick(1000 + message * 100 + row)).collect();
        put(&kafka, &topic, 2, Some(ARROW), Some(&arrow::encode_stream(&ticks, &Instruments::default())));
    }
    kafka.flush(SOON).unwrap();
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), (0..2000).collect::<Vec<_>>());
    assert_eq!(run.started, (0..4).map(|id| partition(&topic, id)).collect::<Vec<_>>());
    run.finished.sort();
    assert_eq!(run.finished, run.started);
    for (cursor, tick_read) in run.ticks() {
        let seq = tick_read.seq;
        assert_eq!(tick_read, tick(seq));
        let (id, offset, row) =
            if seq < 1000 { ((seq % 2) as i32, seq / 2, 0) } else { (2, (seq - 1000) / 100, (seq % 100) as u32) };
        assert_eq!(cursor, Cursor { partition: partition(&topic, id), offset, row });
    }
    let uppers: Vec<_> = (0..4).map(|id| run.stands(partition(&topic, id)).unwrap()).collect();
    assert_eq!(uppers.iter().map(|(upper, _)| *upper).collect::<Vec<_>>(), [500, 500, 10, 0]);
}

#[test]
fn until_the_end_ends_though_writing_goes_on() {
    let topic = topic("goes-on", 2);
    put_ticks(&topic, 0, 0..100);
    put_ticks(&topic, 1, 100..110);
    let done = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (done, topic, kafka) = (done.clone(), topic.clone(), producer(&brokers(), &[]));
        move || {
            for seq in 1000.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                put(&kafka, &topic, 0, Some(JSON), Some(&tick_json(seq)));
                kafka.poll(Duration::from_millis(1));
            }
        }
    });
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(run.finished.len(), 2);
    let (seqs, upper) = (run.seqs(), run.stands(partition(&topic, 0)).unwrap().0);
    let expected = (0..110).chain(1000..1000 + upper - 100).collect::<Vec<_>>();
    assert_eq!(seqs, expected, "what was there at the start, and nothing beyond");
}

#[test]
fn accounts_have_a_topic_of_their_own() {
    let (ticks, accounts) = (topic("with-accounts", 2), topic("accounts", 2));
    put_ticks(&ticks, 1, 0..10);
    let kafka = producer(&brokers(), &[]);
    let account = br#"{"account":"M1","event_time":1600000000000000000,"seq":1,"equity":"1","balance":"1","currency":"USD","positions":[]}"#;
    put(&kafka, &accounts, 1, Some(JSON), Some(account));
    put(&kafka, &accounts, 0, Some(ARROW), Some(account));
    kafka.flush(SOON).unwrap();
    let config = KafkaConfig { accounts_topic: Some(accounts.clone()), ..until_end(&ticks) };
    let mut run = Running::new(config, vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!((run.started.len(), run.finished.len(), run.rows()), (4, 4, 12));
    let batch = run.last(partition(&accounts, 1)).unwrap();
    assert_eq!((batch.accounts.len(), batch.accounts[0].0.offset), (1, 0));
    assert_eq!(run.last(partition(&accounts, 0)).unwrap().rejects[0].reason, Reason::Schema);
}

#[test]
fn aborted_records_never_come() {
    let topic = topic("transactions", 1);
    let kafka = producer(&brokers(), &[("transactional.id", &topic)]);
    kafka.init_transactions(SOON).unwrap();
    let transaction = |seqs: std::ops::Range<u64>, commit: bool| {
        kafka.begin_transaction().unwrap();
        seqs.for_each(|seq| put(&kafka, &topic, 0, Some(JSON), Some(&tick_json(seq))));
        kafka.flush(SOON).unwrap();
        if commit { kafka.commit_transaction(SOON).unwrap() } else { kafka.abort_transaction(SOON).unwrap() }
    };
    transaction(0..10, true);
    transaction(10..20, false);
    transaction(20..30, true);
    transaction(30..40, false);
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), (0..10).chain(20..30).collect::<Vec<_>>());
    let offsets: Vec<u64> = run.ticks().iter().map(|(cursor, _)| cursor.offset).collect();
    assert_eq!(offsets, (0..10).chain(22..32).collect::<Vec<_>>());
    assert_eq!(run.stands(partition(&topic, 0)).unwrap().0, 44, "past the last marker");
    let last = run.last(partition(&topic, 0)).unwrap().fingerprint.unwrap();

    // Live, the upper moves past markers as well. What is open is not read until it is committed.
    let mut run = Running::new(config(&brokers(), &topic), resume(&topic, 32, 44, Some(last)));
    run.until("the end", |run| run.stands(partition(&topic, 0)) == Some((44, true)));
    kafka.begin_transaction().unwrap();
    put(&kafka, &topic, 0, Some(JSON), Some(&tick_json(50)));
    kafka.flush(SOON).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(run.input.len(), 0);
    kafka.commit_transaction(SOON).unwrap();
    run.until("the committed record", |run| run.seqs() == [50]);
    run.until("past its marker", |run| run.stands(partition(&topic, 0)) == Some((46, true)));
    run.stop();
}

#[test]
fn a_record_that_is_written_twice_comes_twice() {
    let topic = topic("twice", 1);
    put_ticks(&topic, 0, 0..3);
    put_ticks(&topic, 0, 2..4);
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), [0, 1, 2, 2, 3]);
}

#[test]
fn what_cannot_be_read_is_a_dead_letter() {
    let name = name("dead");
    shared::kafka().create_topic(&name, 1, &[("max.message.bytes", "20000000")]).unwrap();
    let kafka = producer(&brokers(), &[]);
    let large = vec![b'x'; 10 << 20];
    put(&kafka, &name, 0, Some(JSON), None);
    put(&kafka, &name, 0, None, Some(&tick_json(1)));
    put(&kafka, &name, 0, Some("text/plain"), Some(&tick_json(1)));
    put(&kafka, &name, 0, Some(JSON), Some(&large));
    put(&kafka, &name, 0, Some(ARROW), Some(&tick_json(1)));
    put(&kafka, &name, 0, Some(JSON), Some(&tick_json(7)));
    kafka.flush(SOON).unwrap();
    let mut run = Running::new(until_end(&name), vec![]);
    assert_eq!(run.end(), Ok(()));
    let rejects: Vec<_> = run.batches.iter().flat_map(|batch| &batch.rejects).collect();
    let reasons: Vec<_> = rejects.iter().map(|reject| (reject.cursor.offset, reject.reason)).collect();
    let expected = [Reason::Missing, Reason::Schema, Reason::Schema, Reason::Overflow];
    assert_eq!(reasons[..4], expected.into_iter().enumerate().map(|(i, r)| (i as u64, r)).collect::<Vec<_>>());
    assert_eq!((reasons.len(), reasons[4].0), (5, 4));
    assert_eq!(rejects[3].original, large);
    assert_eq!(run.seqs(), [7]);
}

#[test]
fn partitions_may_be_empty_idle_or_added_later() {
    let topic = topic("partitions", 2);
    let mut run = Running::new(config(&brokers(), &topic), vec![]);
    run.until("both ends", |run| (0..2).all(|id| run.stands(partition(&topic, id)) == Some((0, true))));
    put_ticks(&topic, 0, 0..5);
    run.until("the end again", |run| run.stands(partition(&topic, 0)) == Some((5, true)));
    let sent = run.batches.len();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((run.input.len(), run.batches.len()), (0, sent), "an idle partition says nothing");
    wait(admin().create_partitions(&[NewPartitions::new(&topic, 3)], &AdminOptions::new())).unwrap();
    put_ticks(&topic, 2, 5..10);
    run.until("the new partition", |run| run.stands(partition(&topic, 2)) == Some((5, true)));
    put_ticks(&topic, 1, 10..12);
    run.until("the old one", |run| run.stands(partition(&topic, 1)) == Some((2, true)));
    assert_eq!(run.seqs(), (0..12).collect::<Vec<_>>());
    assert_eq!(run.started.len(), 3);
    run.stop();
}

#[test]
fn a_missing_topic_is_waited_for() {
    let topic = name("missing");
    let mut run = Running::new(config(&brokers(), &topic), vec![]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(run.input.len(), 0);
    create_again(&topic, 1);
    put_ticks(&topic, 0, 0..3);
    run.until("its records", |run| run.seqs() == [0, 1, 2]);
    delete_topic(&topic);
    assert_eq!(run.end(), Err(KafkaError::Deleted { topic: topic.clone() }));
    // A topic that never comes does not hold up a stop.
    let mut run = Running::new(config(&brokers(), &topic), vec![]);
    std::thread::sleep(Duration::from_millis(200));
    run.stop();
}

#[test]
fn reading_resumes_at_low_and_never_where_the_group_stands() {
    let topic = topic("resume", 1);
    put_ticks(&topic, 0, 0..100);
    let mut run = Running::new(config(&brokers(), &topic), vec![]);
    run.until("all", |run| run.rows() == 100);
    run.committed.advance([(partition(&topic, 0), 90)]);
    run.stop();
    let fingerprint = run.last(partition(&topic, 0)).unwrap().fingerprint;
    assert_eq!(fingerprint.unwrap().offset, 99);

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", format!("{topic}-group"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(&topic, 0);
    let offsets = consumer.committed_offsets(list, SOON).unwrap();
    assert_eq!(offsets.elements()[0].offset(), Offset::Offset(90), "for lag tools");

    let mut run = Running::new(until_end(&topic), resume(&topic, 40, 100, fingerprint));
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), (40..100).collect::<Vec<_>>());
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.rows(), 100);
    assert_eq!(run.gaps.take(), []);
}

#[test]
fn commits_and_lags_are_told_while_running() {
    let topic = topic("lag", 1);
    put_ticks(&topic, 0, 0..50);
    let mut run = Running::new(config(&brokers(), &topic), vec![]);
    run.until("all", |run| run.rows() == 50);
    run.committed.advance([(partition(&topic, 0), 50)]);
    run.until("the lag", |run| {
        run.lags.all().iter().any(|(_, lag)| lag.records == 0 && lag.event_time == Some(START + 49))
    });
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", format!("{topic}-group"))
        .create()
        .unwrap();
    run.until("the commit", |_| {
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, 0);
        consumer.committed_offsets(list, SOON).unwrap().elements()[0].offset() == Offset::Offset(50)
    });
    run.stop();
}

#[test]
fn what_was_committed_comes_before_anything_new() {
    let topic = topic("first", 3);
    put_ticks(&topic, 0, 0..20_000);
    put_ticks(&topic, 1, 20_000..40_000);
    put_ticks(&topic, 2, 40_000..40_010);
    let resume = |id, low, upper| Resume { partition: partition(&topic, id), low, upper, fingerprint: None };
    // One far ahead of its upper, one with much to read again, one that is nearly through.
    let uppers = [15_000, 18_000, 5];
    let all = vec![resume(0, 14_990, uppers[0]), resume(1, 0, uppers[1]), resume(2, 5, uppers[2])];
    for config in [config(&brokers(), &topic), until_end(&topic)] {
        let mut run = Running::new(config, all.clone());
        run.until("all", |run| run.rows() == 5_010 + 20_000 + 5);
        run.stop();
        let ticks = run.ticks();
        for (id, low) in [(0, 14_990), (1, 0), (2, 5)] {
            let of_it = ticks.iter().filter(|(cursor, _)| cursor.partition == partition(&topic, id));
            assert!(of_it.enumerate().all(|(i, (cursor, _))| cursor.offset == low + i as u64), "all, once, in order");
        }
        let is_new = |(cursor, _): &&(Cursor, Tick)| {
            (0..3).any(|id| cursor.partition == partition(&topic, id) && cursor.offset >= uppers[id as usize])
        };
        let first_new = ticks.iter().position(|tick| is_new(&tick)).unwrap();
        assert_eq!(first_new, 10 + 18_000, "all that was committed, and then what was not");
        assert!(run.batches.iter().all(|batch| {
            let new = batch.records.iter().map(|r| (r.cursor, r.tick)).filter(|tick| is_new(&tick)).count();
            new == 0 || new == batch.records.len()
        }));
    }
}

#[test]
fn lost_records_are_a_gap() {
    let topic = topic("gap", 1);
    put_ticks(&topic, 0, 0..100);
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    let fingerprint = run.last(partition(&topic, 0)).unwrap().fingerprint;
    delete_records(&topic, 0, 60);
    let mut run = Running::new(until_end(&topic), resume(&topic, 40, 100, fingerprint));
    let gap = KafkaError::Gap { partition: partition(&topic, 0), wanted: 40, available: 60 };
    assert_eq!(run.end(), Err(gap.clone()));
    assert!(gap.to_string().contains("offset 40 is wanted, the broker has records from 60"), "{gap}");
    assert_eq!(run.rows(), 0);
    // Of what was committed a part is not accepted: it is asked for before anything is read.
    let accepting = KafkaConfig { accept_gap: true, ..until_end(&topic) };
    let mut run = Running::new(accepting.clone(), resume(&topic, 40, 100, fingerprint));
    assert_eq!(run.end(), Err(gap.clone()));
    assert_eq!(check(until_end(&topic), resume(&topic, 40, 100, fingerprint)), Err(gap));
    let (partition, cause) = (partition(&topic, 0), GapCause::Retention);
    let lost = Gap { partition, wanted: 40, available: 60, cause, committed: true };
    assert_eq!(check(accepting.clone(), resume(&topic, 40, 100, fingerprint)), Ok(vec![lost.clone()]));
    assert_eq!(check(accepting.clone(), resume(&topic, 60, 100, fingerprint)), Ok(vec![]));
    let mut run = Running::new(accepting, resume(&topic, 40, 40, None));
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), (60..100).collect::<Vec<_>>());
    assert_eq!(run.gaps.take(), [Gap { committed: false, ..lost }]);
    // Nothing that is wanted is lost: no gap, though the last record read cannot be compared.
    delete_records(&topic, 0, 100);
    let mut run = Running::new(until_end(&topic), resume(&topic, 100, 100, fingerprint));
    assert_eq!(run.end(), Ok(()));
    assert_eq!((run.rows(), run.gaps.take()), (0, vec![]));
}

#[test]
fn retention_that_overtakes_a_slow_reader_is_a_gap() {
    for accept_gap in [false, true] {
        let name = name("overtaken");
        shared::kafka().create_topic(&name, 1, &[("max.message.bytes", "20000000")]).unwrap();
        let kafka = producer(&brokers(), &[]);
        let large = vec![b'x'; 9 << 20];
        for _ in 0..20 {
            put(&kafka, &name, 0, None, Some(&large));
            kafka.flush(SOON).unwrap();
        }
        let config = KafkaConfig { accept_gap, ..config(&brokers(), &name) };
        let mut run = Running::with_room(config, vec![], 1);
        run.until("the first", |run| run.rows() >= 1);
        std::thread::sleep(Duration::from_millis(500));
        delete_records(&name, 0, 20);
        if accept_gap {
            put_ticks(&name, 0, 0..3);
            run.until("what came later", |run| run.seqs() == [0, 1, 2]);
            let gaps = run.gaps.take();
            let read: Vec<u64> = run.batches.iter().flat_map(|b| &b.rejects).map(|r| r.cursor.offset).collect();
            assert_eq!(read, (0..gaps[0].wanted).collect::<Vec<_>>(), "all before the gap, once");
            assert_eq!((gaps.len(), gaps[0].available, gaps[0].cause), (1, 20, GapCause::Retention));
        } else {
            let Err(KafkaError::Gap { wanted, available, .. }) = run.end() else { panic!("no gap") };
            assert_eq!((wanted, available), (run.rows() as u64, 20));
        }
    }
}

#[test]
fn a_recreated_topic_is_refused() {
    let topic = topic("recreated", 2);
    put_ticks(&topic, 0, 0..50);
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    let fingerprint = run.last(partition(&topic, 0)).unwrap().fingerprint;
    let before = resume(&topic, 40, 50, fingerprint);
    let mut run = Running::new(until_end(&topic), before.clone());
    assert_eq!(run.end(), Ok(()));

    delete_topic(&topic);
    create_again(&topic, 2);
    put_ticks(&topic, 0, 100..120);
    let refused = |resume: Vec<Resume>, detail: &str, end: u64| {
        let mut run = Running::new(until_end(&topic), resume.clone());
        let error = run.end().unwrap_err();
        assert!(
            matches!(&error, KafkaError::Recreated { partition: p, start: 0, end: e, .. } if *p == resume[0].partition && *e == end),
            "{error}"
        );
        assert!(error.to_string().contains(detail), "{error}");
        assert_eq!(run.rows(), 0, "nothing is sent before");
    };
    refused(before.clone(), "50 was the next offset", 20);
    put_ticks(&topic, 0, 120..160);
    refused(before.clone(), "the record at offset 49 reads differently", 60);
    let gone = Resume { partition: partition(&topic, 7), low: 3, upper: 5, fingerprint: None };
    refused(vec![gone], "the partition is gone", 0);

    let accepting = KafkaConfig { accept_gap: true, ..until_end(&topic) };
    let (partition, cause) = (partition(&topic, 0), GapCause::Recreated);
    let lost = Gap { partition, wanted: 40, available: 0, cause, committed: true };
    assert_eq!(check(accepting.clone(), before), Ok(vec![lost.clone()]));
    let mut run = Running::new(accepting, resume(&topic, 50, 50, fingerprint));
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), (100..160).collect::<Vec<_>>());
    assert_eq!(run.gaps.take(), [Gap { wanted: 50, committed: false, ..lost }]);
}

#[test]
fn a_topic_that_is_recreated_while_it_is_read_is_refused() {
    let topic = topic("recreated-live", 1);
    put_ticks(&topic, 0, 0..50);
    let mut run = Running::new(config(&brokers(), &topic), vec![]);
    run.until("all", |run| run.rows() == 50);
    delete_topic(&topic);
    create_again(&topic, 1);
    put_ticks(&topic, 0, 100..200);
    let error = run.end().unwrap_err();
    assert!(matches!(error, KafkaError::Recreated { .. }), "{error}");
    // Within seconds: until then, records of the new topic may come.
    assert_eq!(run.seqs()[..50], (0..50).collect::<Vec<_>>());
}

#[test]
fn a_broker_may_be_killed_at_any_time() {
    let kafka = marea_servers::Kafka::start().unwrap();
    let topic = name("kills");
    kafka.create_topic(&topic, 3, &[]).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = std::thread::spawn({
        let (done, written, topic, brokers) = (done.clone(), written.clone(), topic.clone(), kafka.brokers());
        move || {
            let settings =
                [("enable.idempotence", "true"), ("message.timeout.ms", "0"), ("reconnect.backoff.max.ms", "500")];
            let kafka = producer(&brokers, &settings);
            for seq in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                put(&kafka, &topic, (seq % 3) as i32, Some(JSON), Some(&tick_json(seq)));
                written.store(seq + 1, Ordering::Relaxed);
                kafka.poll(Duration::from_millis(1));
            }
            kafka.flush(SOON).unwrap();
        }
    });
    let mut run = Running::with_room(config(&kafka.brokers(), &topic), vec![], 100_000);
    for kill in 0..5 {
        let rows = run.rows();
        run.until("records", |run| run.rows() > rows + 300);
        kafka.kill().unwrap();
        std::thread::sleep(Duration::from_millis(100 * kill));
        kafka.restart().unwrap();
    }
    let rows = run.rows();
    run.until("records after the last kill", |run| run.rows() > rows + 300);
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let written = written.load(Ordering::Relaxed);
    run.until("all", |run| run.rows() as u64 >= written);
    std::thread::sleep(Duration::from_millis(300));
    run.stop();
    assert_eq!(run.seqs(), (0..written).collect::<Vec<_>>(), "0 lost, 0 twice");
    let mut next = BTreeMap::new();
    for (cursor, _) in run.ticks() {
        assert_eq!(cursor.offset, std::mem::replace(next.entry(cursor.partition).or_insert(0), cursor.offset + 1));
    }
    // A stop is quick without a broker, too.
    let mut run = Running::new(config(&kafka.brokers(), &topic), vec![]);
    run.until("records", |run| run.rows() > 0);
    run.committed.advance([(partition(&topic, 0), 1)]);
    kafka.kill().unwrap();
    let begun = Instant::now();
    run.stop();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn other_programs_write_too() {
    let topic = topic("kcat", 1);
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", &brokers(), "-t", &topic, "-k", "IBM", "-H", "content-type=application/json"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<u8> = (0..10).flat_map(|seq| [tick_json(seq), b"\n".to_vec()].concat()).collect();
    kcat.stdin.take().unwrap().write_all(&lines).unwrap();
    assert!(kcat.wait().unwrap().success());
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.seqs(), (0..10).collect::<Vec<_>>());
}

/// rdkafka's own way to read headers panics on these.
#[test]
fn header_names_may_be_no_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let topic = topic("header-name", 1);
    let mut kcat = Command::new("kcat");
    kcat.args(["-P", "-b", &brokers(), "-t", &topic, "-H", "content-type=application/json", "-H"]);
    let mut kcat = kcat.arg(std::ffi::OsStr::from_bytes(b"\xff\xfe=1")).stdin(Stdio::piped()).spawn().unwrap();
    kcat.stdin.take().unwrap().write_all(&tick_json(1)).unwrap();
    assert!(kcat.wait().unwrap().success());
    let mut run = Running::new(until_end(&topic), vec![]);
    assert_eq!(run.end(), Ok(()));
    assert_eq!(run.rows(), 1);
}

/// Faults of the protocol, which a healthy broker does not commit: from librdkafka's mock of one.
#[test]
fn faults_of_the_protocol_lose_nothing() {
    let mock = MockCluster::new(2).unwrap();
    mock.create_topic("t", 2, 1).unwrap();
    mock.partition_leader("t", 0, Some(1)).unwrap();
    mock.partition_leader("t", 1, Some(2)).unwrap();
    let brokers = mock.bootstrap_servers();
    let kafka = producer(&brokers, &[]);
    let write = |seqs: std::ops::Range<u64>| {
        seqs.for_each(|seq| put(&kafka, "t", (seq % 2) as i32, Some(JSON), Some(&tick_json(seq))));
        kafka.flush(SOON).unwrap();
    };
    write(0..500);
    let mut run = Running::new(config(&brokers, "t"), vec![]);
    run.until("the first", |run| run.rows() == 500);
    mock.broker_round_trip_time(1, Duration::from_millis(50)).unwrap();
    use rdkafka::types::RDKafkaRespErr as E;
    let faults = [
        E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        E::RD_KAFKA_RESP_ERR__TRANSPORT,
        E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        E::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        E::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        E::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
    ];
    mock.request_errors(rdkafka::types::RDKafkaApiKey::Fetch, &faults);
    write(500..1000);
    run.until("those after faults", |run| run.rows() == 1000);
    mock.broker_down(1).unwrap();
    mock.partition_leader("t", 0, Some(2)).unwrap();
    write(1000..1500);
    run.until("those of the new leader", |run| run.rows() == 1500);
    mock.broker_up(1).unwrap();
    run.stop();
    assert_eq!(run.seqs(), (0..1500).collect::<Vec<_>>());
    assert_eq!(run.gaps.take(), []);
}

#[test]
fn who_may_not_read_is_told_so() {
    use rdkafka::types::RDKafkaRespErr as E;
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic("t", 1, 1).unwrap();
    mock.topic_error("t", E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let mut run = Running::new(config(&mock.bootstrap_servers(), "t"), vec![]);
    let error = run.end().unwrap_err();
    assert!(matches!(error, KafkaError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("allow this user"), "{error}");
}

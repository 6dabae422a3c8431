//! RabbitMQ: each test has a vhost of its own on a shared node, or a node of its own that it may kill.

use crossbeam_channel::RecvTimeoutError;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use marea_model::codec::{Decoder, arrow, json};
use marea_model::cursor::{Fingerprint, RawMessage, Reason};
use marea_model::time::SECOND;
use marea_model::{Cursor, DeadLetter, Event, Instruments, Partition, Price, Size, Symbol, Tick, Timeframe};
use marea_servers::{RabbitMq, shared, wait_until};
use marea_sources::message::{ARROW, JSON};
use marea_sources::rabbitmq::{self, RabbitConfig, RabbitError, RabbitKind};
use marea_sources::{Committed, Input, Lags, Receiver, Resume, Stop};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_secs(60);

fn trade(seq: u64) -> Tick {
    Tick {
        symbol: Symbol::new("IBM").unwrap(),
        event_time: 1_600_000_000 * SECOND + i64::try_from(seq).unwrap(),
        seq,
        event: Event::Trade { price: Price(18_190), size: Size(10_000_000_000) },
    }
}

fn tick_json(seq: u64) -> Vec<u8> {
    json::encode(&trade(seq), &Instruments::default())
}

fn decoder() -> Decoder {
    Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: None }
}

/// A publisher that waits for every confirm.
pub(super) struct Producer {
    runtime: Runtime,
    connection: Connection,
    channel: Channel,
}

impl Producer {
    pub(super) fn new(url: &str) -> Self {
        Self::try_new(url).unwrap()
    }

    fn try_new(url: &str) -> lapin::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connect = async {
            let connection = Connection::connect(url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            lapin::Result::Ok((connection, channel))
        };
        // A broker that is just starting may take a connection and never answer on it.
        let (connection, channel) = runtime.block_on(async {
            let late = |_| lapin::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
            tokio::time::timeout(Duration::from_secs(5), connect).await.map_err(late)?
        })?;
        Ok(Producer { runtime, connection, channel })
    }

    pub(super) fn declare(&self, name: &str, kind: &str, arguments: &[(&str, i64)]) {
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        for (key, value) in arguments {
            table.insert((*key).into(), AMQPValue::LongLongInt(*value));
        }
        let declare = self.channel.queue_declare(name.into(), QueueDeclareOptions::durable(), table);
        self.runtime.block_on(declare).unwrap();
    }

    fn delete(&self, name: &str) {
        self.runtime.block_on(self.channel.queue_delete(name.into(), QueueDeleteOptions::default())).unwrap();
    }

    fn send(&self, name: &str, properties: BasicProperties, body: &[u8]) -> lapin::Result<()> {
        let publish = async {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let properties = properties.with_delivery_mode(2);
            let confirm = self.channel.basic_publish("".into(), name.into(), options, body, properties).await?;
            match confirm.await? {
                Confirmation::Ack(None) => Ok(()),
                // A broker that is just starting may not know the queue yet: it gives the message back, and confirms that.
                _ => Err(std::io::Error::other("not taken").into()),
            }
        };
        // A broker that is being killed may take a message and not confirm it.
        let late = |_| lapin::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), publish).await }).map_err(late)?
    }

    pub(super) fn ticks(&self, name: &str, seqs: std::ops::Range<u64>) {
        self.runtime.block_on(async {
            let mut confirms = Vec::new();
            for seq in seqs {
                let properties = BasicProperties::default()
                    .with_content_type(JSON.into())
                    .with_message_id(seq.to_string().into())
                    .with_delivery_mode(2);
                let (options, body) = (BasicPublishOptions::default(), tick_json(seq));
                let publish = self.channel.basic_publish("".into(), name.into(), options, &body, properties);
                confirms.push(publish.await.unwrap());
            }
            for confirm in confirms {
                assert!(confirm.await.unwrap().is_ack());
            }
        });
    }

    /// Messages that are ready.
    fn ready(&self, name: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = self.channel.queue_declare(name.into(), options, FieldTable::default());
        self.runtime.block_on(declare).unwrap().message_count()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let close = self.connection.close(200, "done".into());
        let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), close).await });
    }
}

/// A source while it runs, and what came of it.
pub(super) struct Run {
    input: Receiver,
    stop: Stop,
    committed: Committed,
    lags: Lags,
    thread: Option<JoinHandle<Result<(), RabbitError>>>,
    ticks: Vec<(Cursor, Tick)>,
    accounts: usize,
    rejects: Vec<DeadLetter>,
    raw: Vec<RawMessage>,
    upper: BTreeMap<Partition, u64>,
    at_end: BTreeMap<Partition, bool>,
    fingerprint: Option<Fingerprint>,
    started: Vec<Partition>,
    finished: Vec<Partition>,
    /// Commits whatever comes.
    commits: bool,
}

impl Run {
    pub(super) fn new(config: RabbitConfig, resume: Vec<Resume>) -> Self {
        let (out, input) = crossbeam_channel::bounded(16);
        let out = marea_sources::Sender::from(out);
        let (stop, committed, lags) = (Stop::new(), Committed::default(), Lags::default());
        let source = rabbitmq::open(config, decoder(), resume, committed.clone(), lags.clone()).unwrap();
        let thread = Some(std::thread::spawn({
            let stop = stop.clone();
            move || source.run(&out, &stop)
        }));
        Run {
            input,
            stop,
            committed,
            lags,
            thread,
            ticks: Vec::new(),
            accounts: 0,
            rejects: Vec::new(),
            raw: Vec::new(),
            upper: BTreeMap::new(),
            at_end: BTreeMap::new(),
            fingerprint: None,
            started: Vec::new(),
            finished: Vec::new(),
            commits: true,
        }
    }

    fn keeping(mut self) -> Self {
        self.commits = false;
        self
    }

    /// Receives for a while. Whether the source still runs.
    fn receive(&mut self, wait: Duration) -> bool {
        match self.input.recv_timeout(wait) {
            Ok(Input::Start { partition, .. }) => self.started.push(partition),
            Ok(Input::Finished { partition }) => self.finished.push(partition),
            Ok(Input::Restarted { .. }) => {}
            Ok(Input::Config(_)) => panic!("no source of ticks sends a configuration"),
            Ok(Input::Batch(batch)) => {
                assert!(self.started.contains(&batch.partition));
                self.ticks.extend(batch.records.iter().map(|record| (record.cursor, record.tick)));
                self.accounts += batch.accounts.len();
                self.rejects.extend(batch.rejects);
                self.raw.extend(batch.raw);
                self.fingerprint = batch.fingerprint.or(self.fingerprint);
                self.upper.insert(batch.partition, batch.upper);
                self.at_end.insert(batch.partition, batch.at_end);
                if self.commits {
                    self.committed.advance([(batch.partition, batch.upper)]);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&Run) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}; {} ticks", self.ticks.len());
            if !self.receive(Duration::from_millis(20)) {
                panic!("ended before: {what}: {:?}", self.thread.take().unwrap().join().unwrap());
            }
        }
    }

    /// Until the source ends by itself.
    pub(super) fn end(&mut self) -> Result<(), RabbitError> {
        let begun = Instant::now();
        while self.receive(Duration::from_millis(20)) {
            assert!(begun.elapsed() < DEADLINE, "does not end; {} ticks", self.ticks.len());
        }
        self.thread.take().unwrap().join().unwrap()
    }

    fn stop(&mut self) {
        self.stop.stop();
        self.end().unwrap();
    }

    pub(super) fn seqs(&self) -> Vec<u64> {
        self.ticks.iter().map(|(_, tick)| tick.seq).collect()
    }

    fn is_at_end(&self) -> bool {
        !self.at_end.is_empty() && self.at_end.values().all(|at_end| *at_end)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn stream(url: &str) -> RabbitConfig {
    RabbitConfig::new(url, "t", RabbitKind::Stream)
}

fn queue(url: &str) -> RabbitConfig {
    RabbitConfig::new(url, "t", RabbitKind::Queue)
}

fn until_end(config: RabbitConfig) -> RabbitConfig {
    RabbitConfig { until_end: true, ..config }
}

fn offsets(run: &Run) -> Vec<u64> {
    let mut offsets: Vec<u64> = run.ticks.iter().map(|(cursor, _)| cursor.offset).collect();
    offsets.dedup();
    offsets
}

fn some_of_both(producer: &Producer) {
    producer.ticks("t", 0..500);
    let rows: Vec<Tick> = (500..600).map(trade).collect();
    let properties = BasicProperties::default().with_content_type(ARROW.into());
    producer.send("t", properties, &arrow::encode_stream(&rows, &Instruments::default())).unwrap();
}

#[test]
fn a_stream_is_read_to_its_end_and_read_again() {
    let url = shared::rabbitmq().vhost("round_stream");
    let producer = Producer::new(&url);
    producer.declare("t", "stream", &[]);

    let mut empty = Run::new(until_end(stream(&url)), vec![]);
    empty.end().unwrap();
    assert_eq!((empty.ticks.len(), empty.finished.len()), (0, 1));

    some_of_both(&producer);
    for _ in 0..2 {
        let mut run = Run::new(until_end(stream(&url)), vec![]);
        run.end().unwrap();
        assert_eq!(run.seqs(), (0..600).collect::<Vec<_>>());
        assert_eq!(offsets(&run), (0..501).collect::<Vec<_>>());
        assert_eq!(run.ticks[599].0.row, 99);
        assert_eq!(run.ticks[599].0.partition.as_str(), "rabbitmq:stream:round_stream/t");
        assert_eq!(run.fingerprint.unwrap().offset, 500);
        assert!(run.raw.is_empty(), "a stream can be asked again");
        assert_eq!(run.finished, run.started);
    }
}

#[test]
fn a_queue_is_read_to_its_end_and_is_empty_then() {
    for kind in ["quorum", "classic"] {
        let url = shared::rabbitmq().vhost(&format!("round_{kind}"));
        let producer = Producer::new(&url);
        producer.declare("t", kind, &[]);
        some_of_both(&producer);
        let mut run = Run::new(until_end(queue(&url)), vec![]);
        let partition: Partition = format!("rabbitmq:queue:round_{kind}/t").parse().unwrap();
        run.end().unwrap();
        assert_eq!(run.seqs(), (0..600).collect::<Vec<_>>());
        assert_eq!(offsets(&run), (0..501).collect::<Vec<_>>());
        assert_eq!(run.raw.len(), 501);
        assert_eq!(run.raw[500].content_type.as_deref(), Some(ARROW));
        assert_eq!(run.raw[3].body, tick_json(3));
        assert_eq!(run.finished, [partition]);
        assert_eq!(producer.ready("t"), 0);

        producer.ticks("t", 600..610);
        let resume = Resume { partition, low: 400, upper: 501, fingerprint: None };
        let mut run = Run::new(until_end(queue(&url)), vec![resume]);
        run.end().unwrap();
        assert_eq!(offsets(&run), (501..511).collect::<Vec<_>>(), "offsets are counted on");
        assert_eq!(producer.ready("t"), 0);
    }
}

#[test]
fn a_queue_keeps_what_is_not_committed() {
    let url = shared::rabbitmq().vhost("acks");
    let producer = Producer::new(&url);
    producer.declare("t", "quorum", &[]);
    producer.ticks("t", 0..100);
    let mut run = Run::new(queue(&url), vec![]).keeping();
    run.until("all ticks", |run| run.ticks.len() == 100 && run.is_at_end());
    std::thread::sleep(Duration::from_millis(200));
    run.stop();
    wait_until(DEADLINE, "everything is back", || producer.ready("t") == 100);

    let mut run = Run::new(queue(&url), vec![]).keeping();
    run.until("all ticks again", |run| run.ticks.len() == 100);
    run.committed.advance([(run.started[0], 60)]);
    std::thread::sleep(Duration::from_millis(200));
    run.stop();
    wait_until(DEADLINE, "the rest is back", || producer.ready("t") == 40);

    // What is committed when it stops is acknowledged.
    let mut run = Run::new(queue(&url), vec![]).keeping();
    run.until("the rest", |run| run.ticks.len() == 40);
    assert_eq!(run.seqs(), (60..100).collect::<Vec<_>>());
    run.stop.stop();
    run.committed.advance([(run.started[0], 30)]);
    run.stop();
    wait_until(DEADLINE, "ten are back", || matches!(producer.ready("t"), 10 | 40));
}

#[test]
fn until_the_end_waits_for_the_last_commit() {
    let url = shared::rabbitmq().vhost("last_commit");
    let producer = Producer::new(&url);
    producer.declare("t", "quorum", &[]);
    producer.ticks("t", 0..100);
    let mut run = Run::new(until_end(queue(&url)), vec![]).keeping();
    run.until("the end", |run| !run.finished.is_empty());
    producer.ticks("t", 100..105);
    assert!(!run.thread.as_ref().unwrap().is_finished());
    run.committed.advance([(run.started[0], 100)]);
    run.end().unwrap();
    assert_eq!(run.ticks.len(), 100);
    wait_until(DEADLINE, "only what came later is left", || producer.ready("t") == 5);
}

#[test]
fn a_small_prefetch_flows() {
    for (kind, config) in [("quorum", queue as fn(&str) -> RabbitConfig), ("stream", stream)] {
        let url = shared::rabbitmq().vhost(&format!("prefetch_{kind}"));
        let producer = Producer::new(&url);
        producer.declare("t", kind, &[]);
        producer.ticks("t", 0..2000);
        let mut run = Run::new(RabbitConfig { prefetch: 7, ..until_end(config(&url)) }, vec![]);
        run.end().unwrap();
        assert_eq!(run.seqs(), (0..2000).collect::<Vec<_>>());
    }
}

#[test]
fn a_full_channel_holds_the_broker() {
    let url = shared::rabbitmq().vhost("full");
    let producer = Producer::new(&url);
    producer.declare("t", "quorum", &[]);
    producer.ticks("t", 0..3000);
    let mut run = Run::new(RabbitConfig { prefetch: 100, ..queue(&url) }, vec![]).keeping();
    wait_until(DEADLINE, "it waits", || producer.ready("t") == 2900);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(producer.ready("t"), 2900);
    run.until("what may be there", |run| run.ticks.len() == 100);
    run.commits = true;
    run.committed.advance([(run.started[0], 100)]);
    run.until("all", |run| run.ticks.len() == 3000);
}

#[test]
fn the_end_is_known_again_and_again() {
    for (kind, config) in [("quorum", queue as fn(&str) -> RabbitConfig), ("stream", stream)] {
        let url = shared::rabbitmq().vhost(&format!("at_end_{kind}"));
        let producer = Producer::new(&url);
        producer.declare("t", kind, &[]);
        let mut run = Run::new(config(&url), vec![]);
        run.until("the end of nothing", Run::is_at_end);
        for round in 1..5 {
            producer.ticks("t", (round - 1) * 50..round * 50);
            run.until("some", |run| run.ticks.len() as u64 > (round - 1) * 50);
            run.until("the end", Run::is_at_end);
            assert_eq!(run.ticks.len() as u64, round * 50, "the end is told when everything was handed over");
        }
        let lags = run.lags.all();
        assert_eq!((lags.len(), lags[0].1.records), (1, 0));
        assert_eq!(lags[0].1.event_time, Some(trade(199).event_time));
    }
}

#[test]
fn a_stream_is_resumed_where_it_was() {
    let url = shared::rabbitmq().vhost("resume");
    let producer = Producer::new(&url);
    producer.declare("t", "stream", &[]);
    producer.ticks("t", 0..100);
    let mut first = Run::new(until_end(stream(&url)), vec![]);
    first.end().unwrap();
    let (partition, fingerprint) = (first.started[0], first.fingerprint);
    producer.ticks("t", 100..150);

    let resume = Resume { partition, low: 37, upper: 100, fingerprint };
    let mut run = Run::new(until_end(stream(&url)), vec![resume]);
    run.end().unwrap();
    assert_eq!(run.seqs(), (37..150).collect::<Vec<_>>());

    let resume = Resume { partition, low: 150, upper: 150, fingerprint: run.fingerprint };
    let mut run = Run::new(stream(&url), vec![resume]);
    run.until("the end", Run::is_at_end);
    producer.ticks("t", 150..151);
    run.until("the next", |run| run.ticks.len() == 1);
    run.stop();
    assert_eq!(run.seqs(), [150]);
}

#[test]
fn another_stream_of_the_same_name_is_refused() {
    let url = shared::rabbitmq().vhost("recreated");
    let producer = Producer::new(&url);
    producer.declare("t", "stream", &[]);
    producer.ticks("t", 0..100);
    let mut first = Run::new(until_end(stream(&url)), vec![]);
    first.end().unwrap();
    let (partition, fingerprint) = (first.started[0], first.fingerprint);
    let resume = Resume { partition, low: 90, upper: 100, fingerprint };

    producer.delete("t");
    producer.declare("t", "stream", &[]);
    for ticks in [0..0, 1000..1010] {
        producer.ticks("t", ticks);
        let error = Run::new(stream(&url), vec![resume]).end().unwrap_err();
        assert!(matches!(error, RabbitError::Recreated { .. }), "{error}");
    }
    let accepting = RabbitConfig { accept_gap: true, ..until_end(stream(&url)) };
    // What stands would be computed anew from another stream's records.
    let error = Run::new(accepting.clone(), vec![resume]).end().unwrap_err();
    assert!(matches!(error, RabbitError::Lost { wanted: 90, upper: 100, .. }), "{error}");
    let mut run = Run::new(accepting, vec![Resume { low: 100, ..resume }]);
    run.end().unwrap();
    assert_eq!(run.seqs(), (1000..1010).collect::<Vec<_>>());

    producer.ticks("t", 1010..1200);
    let error = Run::new(stream(&url), vec![resume]).end().unwrap_err();
    assert!(error.to_string().contains("the record at offset 99 is another one"), "{error}");
}

#[test]
fn a_stream_that_is_recreated_while_it_is_read_is_refused() {
    let url = shared::rabbitmq().vhost("recreated_live");
    let producer = Producer::new(&url);
    producer.declare("t", "stream", &[]);
    producer.ticks("t", 0..100);
    let mut run = Run::new(stream(&url), vec![]);
    run.until("all", |run| run.ticks.len() == 100);
    producer.delete("t");
    producer.declare("t", "stream", &[]);
    producer.ticks("t", 0..10);
    let error = run.end().unwrap_err();
    assert!(matches!(error, RabbitError::Recreated { .. }), "{error}");
}

#[test]
fn a_gap_in_a_stream_names_both_offsets() {
    let url = shared::rabbitmq().vhost("gap");
    let producer = Producer::new(&url);
    producer.declare("t", "stream", &[("x-max-length-bytes", 60_000), ("x-stream-max-segment-size-bytes", 20_000)]);
    producer.ticks("t", 0..10);
    let mut first = Run::new(until_end(stream(&url)), vec![]);
    first.end().unwrap();
    let (partition, fingerprint) = (first.started[0], first.fingerprint);
    for round in 0..50 {
        producer.ticks("t", 10 + round * 100..110 + round * 100);
    }
    let resume = Resume { partition, low: 5, upper: 10, fingerprint };
    let error = Run::new(stream(&url), vec![resume]).end().unwrap_err();
    let RabbitError::Gap { wanted: 5, first, .. } = error else { panic!("{error}") };
    assert!(first > 10, "{first}");
    assert!(error.to_string().contains("offset 5"), "{error}");

    let accepting = RabbitConfig { accept_gap: true, ..until_end(stream(&url)) };
    // What stands would be computed anew from what is left.
    let error = Run::new(accepting.clone(), vec![resume]).end().unwrap_err();
    assert!(matches!(error, RabbitError::Lost { wanted: 5, upper: 10, .. }), "{error}");
    let mut run = Run::new(accepting, vec![Resume { low: 10, ..resume }]);
    run.end().unwrap();
    assert_eq!(run.ticks.last().unwrap().1.seq, 5009);
    assert_eq!(run.ticks[0].0.offset, first);

    // Without a resume there is nothing that could be missing.
    let mut run = Run::new(until_end(stream(&url)), vec![]);
    run.end().unwrap();
    assert_eq!(run.ticks.last().unwrap().1.seq, 5009);
}

#[test]
fn what_cannot_be_read_is_a_dead_letter_and_acknowledged() {
    for kind in ["quorum", "stream"] {
        let url = shared::rabbitmq().vhost(&format!("poison_{kind}"));
        let producer = Producer::new(&url);
        producer.declare("t", kind, &[]);
        let json = || BasicProperties::default().with_content_type(JSON.into());
        producer.send("t", BasicProperties::default(), &tick_json(0)).unwrap();
        producer.send("t", json(), b"").unwrap();
        producer.send("t", json(), b"{\"kind\":").unwrap();
        producer.send("t", json(), &vec![b' '; 9 << 20]).unwrap();
        producer.ticks("t", 1..2);
        let config = if kind == "stream" { stream(&url) } else { queue(&url) };
        let mut run = Run::new(until_end(config), vec![]);
        run.end().unwrap();
        let reasons: Vec<Reason> = run.rejects.iter().map(|dead| dead.reason).collect();
        assert_eq!(reasons, [Reason::Schema, Reason::Missing, Reason::Malformed, Reason::Overflow]);
        assert_eq!(run.rejects[0].original, tick_json(0));
        assert_eq!(run.rejects[3].original.len(), 9 << 20);
        assert_eq!(run.seqs(), [1]);
        if kind == "quorum" {
            assert_eq!((run.raw.len(), producer.ready("t")), (5, 0));
        }
    }
}

#[test]
fn the_wrong_kind_is_refused() {
    let url = shared::rabbitmq().vhost("kinds");
    let producer = Producer::new(&url);
    for (kind, config) in [("stream", queue as fn(&str) -> RabbitConfig), ("quorum", stream), ("classic", stream)] {
        producer.declare("t", kind, &[]);
        producer.ticks("t", 0..3);
        let mut run = Run::new(config(&url), vec![]);
        let error = run.end().unwrap_err();
        assert!(matches!(error, RabbitError::WrongKind { .. }), "{error}");
        assert!(run.ticks.is_empty());
        if kind != "stream" {
            assert_eq!(producer.ready("t"), 3);
        }
        producer.delete("t");
    }
}

#[test]
fn what_is_missing_is_waited_for() {
    for (kind, config) in [("quorum", queue as fn(&str) -> RabbitConfig), ("stream", stream)] {
        let url = shared::rabbitmq().vhost(&format!("missing_{kind}"));
        let producer = Producer::new(&url);
        let mut run = Run::new(config(&url), vec![]);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            assert!(run.receive(Duration::from_millis(20)));
        }
        assert_eq!((run.started.len(), run.at_end.len()), (1, 0));
        producer.declare("t", kind, &[]);
        producer.ticks("t", 0..10);
        run.until("all", |run| run.ticks.len() == 10);
        run.stop();
    }
}

#[test]
fn a_refused_user_ends_it_without_its_password() {
    let url = shared::rabbitmq().vhost("refused");
    let wrong = url.replace("test:test@", "test:hunter2@");
    let nowhere = format!("{}/nowhere", url.rsplit_once('/').unwrap().0);
    for url in [wrong, nowhere] {
        let error = Run::new(queue(&url), vec![]).end().unwrap_err();
        assert!(matches!(error, RabbitError::Refused { .. }), "{error}");
        let text = format!("{error} {error:?} {:?}", queue(&url));
        assert!(text.contains("user test") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn accounts_come_from_a_queue_of_their_own() {
    const ACCOUNT: &[u8] = br#"{"account":"M1","event_time":1600000000000000000,"seq":1,"equity":"1","balance":"1","currency":"USD","positions":[]}"#;
    for (kind, config) in [("quorum", queue as fn(&str) -> RabbitConfig), ("stream", stream)] {
        let url = shared::rabbitmq().vhost(&format!("accounts_{kind}"));
        let producer = Producer::new(&url);
        producer.declare("t", kind, &[]);
        producer.declare("a", kind, &[]);
        producer.ticks("t", 0..10);
        for _ in 0..3 {
            producer.send("a", BasicProperties::default().with_content_type(JSON.into()), ACCOUNT).unwrap();
        }
        let config = RabbitConfig { accounts: Some("a".to_owned()), ..until_end(config(&url)) };
        let mut run = Run::new(config, vec![]);
        run.end().unwrap();
        assert_eq!((run.ticks.len(), run.accounts, run.rejects.len()), (10, 3, 0));
        assert_eq!((run.started.len(), run.finished.len()), (2, 2));
    }
}

#[test]
fn a_message_written_by_hand_arrives() {
    let server = shared::rabbitmq();
    let url = server.vhost("by_hand");
    let producer = Producer::new(&url);
    producer.declare("t", "quorum", &[]);
    let mut run = Run::new(queue(&url), vec![]);
    let payload = String::from_utf8(tick_json(7)).unwrap();
    let body = serde_json::json!({
        "properties": {"content_type": "application/json; charset=utf-8", "delivery_mode": 2},
        "routing_key": "t", "payload": payload, "payload_encoding": "string",
    });
    let login = url.strip_prefix("amqp://").unwrap().split_once('@').unwrap().0;
    let address = format!("{}/api/exchanges/by_hand/amq.default/publish", server.management());
    let answer = Command::new("curl").args(["-sf", "-u", login, "-d", &body.to_string(), &address]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), r#"{"routed":true}"#);
    run.until("it", |run| run.ticks.len() == 1);
    assert_eq!(run.ticks[0].1, trade(7));
}

/// Python's client: the exchange, the key and the content type are all that it must know of us.
#[test]
fn another_language_writes_too() {
    const SCRIPT: &str = r##"
import pika, sys
url, body = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()
channel.exchange_declare("marea.ticks", "topic", durable=True)
channel.queue_bind("t", "marea.ticks", "#")
properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
channel.basic_publish("marea.ticks", "IBM", body.encode(), properties, mandatory=True)
connection.close()
"##;
    let url = shared::rabbitmq().vhost("pika");
    Producer::new(&url).declare("t", "quorum", &[]);
    let mut run = Run::new(queue(&url), vec![]);
    let body = String::from_utf8(tick_json(7)).unwrap();
    let done = Command::new("/usr/bin/python3").args(["-c", SCRIPT, &url, &body]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    run.until("it", |run| run.ticks.len() == 1);
    assert_eq!(run.ticks[0].1, trade(7));
}

/// The broker is killed twice while a producer writes and a source reads; both go on.
fn survives_kills(kind: &str, config: fn(&str) -> RabbitConfig) {
    const TICKS: u64 = 3000;
    let server = RabbitMq::start().unwrap();
    let url = server.vhost("kill");
    Producer::new(&url).declare("t", kind, &[]);
    // RabbitMQ 3.10 forgets new quorum queues and streams if it is killed before it has flushed its directory of them, which
    // it does when it is shut down.
    server.stop().unwrap();
    server.restart().unwrap();
    let writer = std::thread::spawn({
        let url = url.clone();
        move || {
            let (mut seq, mut repeats) = (0, 0);
            let mut producer: Option<Producer> = None;
            while seq < TICKS {
                let properties =
                    BasicProperties::default().with_content_type(JSON.into()).with_message_id(seq.to_string().into());
                let sent = match &producer {
                    Some(producer) => producer.send("t", properties, &tick_json(seq)).is_ok(),
                    None => false,
                };
                if sent {
                    seq += 1;
                } else {
                    repeats += 1;
                    std::thread::sleep(Duration::from_millis(100));
                    producer = Producer::try_new(&url).ok();
                }
            }
            repeats
        }
    });
    let mut run = Run::new(config(&url), vec![]).keeping();
    let mut committed = 0;
    for round in 1..=2_u64 {
        run.until("a third", |run| run.ticks.len() as u64 > round * TICKS / 3);
        // Half of it is committed, so that the rest comes again.
        committed = run.upper[&run.started[0]] - 200;
        run.committed.advance([(run.started[0], committed)]);
        server.kill().unwrap();
        server.restart().unwrap();
    }
    run.commits = true;
    run.until("all", |run| run.seqs().into_iter().collect::<BTreeSet<_>>().len() as u64 == TICKS);
    let upper = run.upper[&run.started[0]];
    assert!(upper > committed);
    run.committed.advance([(run.started[0], upper)]);
    run.until("the end", Run::is_at_end);
    let repeats: u64 = writer.join().unwrap();
    let extra = run.ticks.len() as u64 - TICKS;
    println!("{kind}: {} ticks, {extra} more than once, {repeats} tries of the producer failed", run.ticks.len());
    match kind {
        "quorum" => assert_eq!(extra, 0, "ids catch what is delivered again, or written again"),
        // A stream has twice what its producer wrote twice, and nothing else.
        _ => assert!(extra <= repeats, "{extra} more than once, {repeats} tries failed"),
    }
    if kind == "quorum" {
        std::thread::sleep(Duration::from_millis(300));
        run.stop();
        let left = Producer::new(&url);
        wait_until(DEADLINE, "nothing is left", || left.ready("t") == 0);
    }
}

#[test]
fn a_killed_broker_loses_nothing_of_a_queue() {
    survives_kills("quorum", queue);
}

#[test]
fn a_killed_broker_loses_nothing_of_a_stream() {
    survives_kills("stream", stream);
}

#[test]
fn a_paused_broker_is_waited_for() {
    let server = RabbitMq::start().unwrap();
    let url = server.vhost("pause");
    let producer = Producer::new(&url);
    producer.declare("t", "quorum", &[]);
    producer.ticks("t", 0..10);
    let mut run = Run::new(queue(&url), vec![]);
    run.until("the first", |run| run.ticks.len() == 10 && run.is_at_end());
    server.pause().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    server.resume().unwrap();
    producer.ticks("t", 10..20);
    run.until("the next", |run| run.ticks.len() == 20);
    assert_eq!(run.seqs(), (0..20).collect::<Vec<_>>());
    // It stops at once, though the broker does not answer.
    server.pause().unwrap();
    let begun = Instant::now();
    run.stop();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    server.resume().unwrap();
}

//! The connection: what [`State`] decides is done here. No call waits for ever, and whoever waits looks at `stop`.

use super::state::{Extent, Message, State, Took, Verdict};
use super::{Address, Rabbit, RabbitConfig, RabbitError, RabbitKind};
use crate::{Committed, Input, Lag, Lags, Sender, Stop, wall_now};
use crossbeam_channel::TrySendError;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ErrorKind};
use marea_model::cursor::Batch;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How often a waiting session looks at `stop` and at what is committed.
const STEP: Duration = Duration::from_millis(10);
/// How often a session that cannot hand over tries again.
const FULL: Duration = Duration::from_millis(2);
/// How long without deliveries is idle.
const IDLE: Duration = Duration::from_millis(5);
/// How often an idle partition is looked at, to find its end.
const LOOK: Duration = Duration::from_millis(100);
/// How often a busy or ended partition is looked at, to tell its lag.
const LOOK_BUSY: Duration = Duration::from_secs(2);
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// The first and the last wait before another connection.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often it is looked whether what is missing is there.
const MISSING: Duration = Duration::from_secs(1);
/// How long a stream may seem to be another one: a broker that just started may not know its end yet.
const DOUBT: Duration = Duration::from_secs(5);
/// How long the first delivery of a stream that seems empty is waited for.
const EMPTY: Duration = Duration::from_millis(300);
/// How long the last acknowledgements may take.
const LAST_ACKS: Duration = Duration::from_secs(5);
/// After so many connections that broke on the same message, a queue is given up.
const BROKEN: u32 = 20;

/// Why a connection is left.
enum Halt {
    /// Stopped, or nobody listens.
    Stopped,
    /// The connection or the channel is gone.
    Lost(String),
    /// The client cannot parse what the broker sends.
    Garbled(String),
    Fatal(RabbitError),
}

/// One queue or stream.
struct Feed {
    name: String,
    state: State,
    finished: bool,
    broken: u32,
    missing: bool,
    /// The last offset of the stream, if it was asked for.
    last: Option<u64>,
}

/// What belongs to one connection.
struct Link {
    channel: Channel,
    consumer: Option<Consumer>,
    /// What was received while it was waited for.
    next: Option<Item>,
    received: Instant,
    looked: Instant,
}

type Item = Option<Result<Delivery, lapin::Error>>;

/// A source while it runs.
pub(super) struct Session<'a> {
    config: RabbitConfig,
    address: Address,
    feeds: Vec<Feed>,
    committed: Committed,
    lags: Lags,
    out: &'a Sender,
    stop: &'a Stop,
    /// Whether this connection came so far that its deliveries were read.
    pumping: bool,
    /// When this connection began.
    connected: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(rabbit: Rabbit, out: &'a Sender, stop: &'a Stop) -> Self {
        let Rabbit { config, address, feeds, committed, lags } = rabbit;
        let feed = |(name, state)| Feed { name, state, finished: false, broken: 0, missing: false, last: None };
        let feeds = feeds.into_iter().map(feed).collect();
        Session { config, address, feeds, committed, lags, out, stop, pumping: false, connected: Instant::now() }
    }

    pub(super) async fn run(mut self) -> Result<(), RabbitError> {
        let mut wait = BACKOFF.0;
        let mut lost = false;
        loop {
            let begun = Instant::now();
            self.connected = begun;
            let result = match self.connect().await {
                Ok(connection) => {
                    if std::mem::take(&mut lost) {
                        info!(host = self.host(), "RabbitMQ is back");
                    }
                    let result = self.read(&connection).await;
                    let close = connection.close(200, "done".into());
                    let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
                    result
                }
                Err(halt) => Err(halt),
            };
            for feed in &mut self.feeds {
                feed.state.disconnect();
            }
            if let Err(Halt::Garbled(detail)) = &result {
                self.blame(detail)?;
            }
            self.pumping = false;
            let reason = match result {
                Ok(()) | Err(Halt::Stopped) => return Ok(()),
                Err(Halt::Fatal(error)) => return Err(error),
                Err(Halt::Lost(reason) | Halt::Garbled(reason)) => reason,
            };
            if self.feeds.iter().all(|feed| feed.finished) {
                warn!(reason, "RabbitMQ is lost while the last acknowledgements were due: it will deliver these again");
                return Ok(());
            }
            if begun.elapsed() > BACKOFF.1 {
                wait = BACKOFF.0;
            }
            if !std::mem::replace(&mut lost, true) {
                warn!(host = self.host(), reason, "RabbitMQ is lost; connecting again");
            }
            if self.sleep(wait).await.is_err() {
                return Ok(());
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// How long a broker may take to see that a connection before this one is gone, which it does after two or three
    /// missed heartbeats: until then it may deliver what that one has not acknowledged. Without heartbeats TCP's own two
    /// hours count.
    fn forget_after(&self) -> Duration {
        match self.address.uri.query.heartbeat {
            Some(seconds) if seconds > 0 => 3 * Duration::from_secs(seconds.into()) + Duration::from_mins(1),
            _ => Duration::from_hours(3),
        }
    }

    fn host(&self) -> String {
        let authority = &self.address.uri.authority;
        format!("{}:{}", authority.host, authority.port)
    }

    async fn connect(&self) -> Result<Connection, Halt> {
        let properties = ConnectionProperties::default().with_connection_name("marea".into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| Halt::Lost(error.to_string()))?;
        let (uri, tls) = (self.address.uri.clone(), self.address.tls.clone());
        let connect = Connection::connect_uri_with_config(uri, properties, tls, runtime);
        self.within(CONNECT, connect).await?.map_err(|error| self.judge_error(error))
    }

    /// What an answer takes, at most, unless it is stopped.
    async fn within<T>(&self, limit: Duration, answer: impl Future<Output = T>) -> Result<T, Halt> {
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = stopped(self.stop) => Err(Halt::Stopped),
            () = tokio::time::sleep(limit) => Err(Halt::Lost(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    async fn ask<T>(&self, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Halt> {
        self.within(ANSWER, answer).await?.map_err(|error| self.judge_error(error))
    }

    async fn sleep(&self, duration: Duration) -> Result<(), Halt> {
        match self.within(duration, std::future::pending::<()>()).await {
            Err(Halt::Stopped) => Err(Halt::Stopped),
            _ => Ok(()),
        }
    }

    fn judge_error(&self, error: lapin::Error) -> Halt {
        match error.kind() {
            ErrorKind::ParsingError(_) => Halt::Garbled(error.to_string()),
            ErrorKind::ProtocolError(reply) => {
                let refused = match reply.kind() {
                    AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => true,
                    // A vhost that is down comes back; one that is unknown or closed to the user does not.
                    AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                        let text = reply.get_message().as_str();
                        text.contains("not found") || text.contains("refused")
                    }
                    _ => false,
                };
                if !refused {
                    return Halt::Lost(error.to_string());
                }
                Halt::Fatal(RabbitError::Refused {
                    host: self.host(),
                    user: self.address.uri.authority.userinfo.username.clone(),
                    vhost: self.address.uri.vhost.clone(),
                    reply: reply.get_message().as_str().to_owned(),
                })
            }
            // TLS says only in words what is wrong.
            _ if error.to_string().to_lowercase().contains("certificate") => {
                Halt::Fatal(RabbitError::Untrusted { host: self.host(), reason: error.to_string() })
            }
            _ => Halt::Lost(error.to_string()),
        }
    }

    /// Everything between a connection and its end.
    async fn read(&mut self, connection: &Connection) -> Result<(), Halt> {
        let mut links = Vec::new();
        for index in 0..self.feeds.len() {
            links.push(self.open(connection, index).await?);
        }
        self.pumping = true;
        let result = self.pump(connection, &mut links).await;
        if matches!(result, Ok(()) | Err(Halt::Stopped)) {
            let _ = tokio::time::timeout(LAST_ACKS, self.acknowledge(&links, false)).await;
        }
        result
    }

    /// Checks one queue or stream, and consumes it.
    async fn open(&mut self, connection: &Connection, index: usize) -> Result<Link, Halt> {
        let (channel, count) = self.find(connection, index).await?;
        let kind = self.config.kind;
        let arguments = match kind {
            RabbitKind::Stream => {
                self.verify(connection, index).await?;
                offset_argument(self.feeds[index].state.from().map_or(Offset::First, Offset::At))
            }
            RabbitKind::Queue => {
                self.refuse_streams(connection, index).await?;
                FieldTable::default()
            }
        };
        let feed = &mut self.feeds[index];
        if self.config.until_end && !feed.finished {
            match kind {
                RabbitKind::Stream => feed.state.ends_at(feed.last.map_or(0, |last| last + 1)),
                RabbitKind::Queue => feed.state.ends_at(feed.state.position() + u64::from(count)),
            }
        }
        let feed = &self.feeds[index];
        let consumer = if feed.state.is_done() {
            None
        } else {
            self.ask(channel.basic_qos(self.config.prefetch, BasicQosOptions::default())).await?;
            Some(self.consume(&channel, &feed.name, arguments).await?)
        };
        debug!(partition = %feed.state.partition(), position = feed.state.position(), "consuming");
        let now = Instant::now();
        Ok(Link { channel, consumer, next: None, received: now, looked: now })
    }

    async fn consume(&self, channel: &Channel, name: &str, arguments: FieldTable) -> Result<Consumer, Halt> {
        let consume = channel.basic_consume(name.into(), "".into(), BasicConsumeOptions::default(), arguments);
        self.ask(consume).await
    }

    /// Waits until it exists. With the number of its ready messages.
    async fn find(&mut self, connection: &Connection, index: usize) -> Result<(Channel, u32), Halt> {
        loop {
            let channel = self.ask(connection.create_channel()).await?;
            let feed = &self.feeds[index];
            let declared = self.within(ANSWER, passive(&channel, &feed.name)).await?;
            match declared {
                Ok(count) => {
                    if std::mem::take(&mut self.feeds[index].missing) {
                        info!(partition = %self.feeds[index].state.partition(), "it exists now");
                    }
                    return Ok((channel, count));
                }
                Err(error) if soft(&error) == Some(AMQPSoftError::NOTFOUND) => {
                    if !std::mem::replace(&mut self.feeds[index].missing, true) {
                        let feed = &self.feeds[index];
                        warn!(partition = %feed.state.partition(), reason = %error, "it does not exist; waiting for it");
                    }
                    self.sleep(MISSING).await?;
                }
                Err(error) => return Err(self.judge_error(error)),
            }
        }
    }

    /// A stream takes this argument, a queue refuses it, and neither delivers anything for it.
    async fn refuse_streams(&self, connection: &Connection, index: usize) -> Result<(), Halt> {
        let channel = self.ask(connection.create_channel()).await?;
        self.ask(channel.basic_qos(1, BasicQosOptions::default())).await?;
        let feed = &self.feeds[index];
        let arguments = offset_argument(Offset::Next);
        let consume = channel.basic_consume(name(&feed.name), "".into(), BasicConsumeOptions::default(), arguments);
        match self.within(ANSWER, consume).await? {
            Ok(_) => Err(Halt::Fatal(self.wrong_kind(index))),
            Err(error) if refuses_argument(&error) => Ok(()),
            Err(error) => Err(self.judge_error(error)),
        }
    }

    fn wrong_kind(&self, index: usize) -> RabbitError {
        let configured = self.config.kind;
        let found = match configured {
            RabbitKind::Stream => RabbitKind::Queue,
            RabbitKind::Queue => RabbitKind::Stream,
        };
        RabbitError::WrongKind { partition: self.feeds[index].state.partition(), configured, found }
    }

    /// Whether the stream still is what it was. Learns its last offset.
    async fn verify(&mut self, connection: &Connection, index: usize) -> Result<(), Halt> {
        let begun = Instant::now();
        loop {
            let extent = self.extent(connection, index).await?;
            let feed = &mut self.feeds[index];
            let partition = feed.state.partition();
            if feed.last.is_none() || !self.config.until_end {
                feed.last = extent.last;
            }
            let verdict = feed.state.judge(&extent);
            if let (Some((wanted, upper)), true) = (feed.state.to_read_again(), self.config.accept_gap) {
                let lost = |detail| Err(Halt::Fatal(RabbitError::Lost { partition, wanted, upper, detail }));
                match verdict {
                    Verdict::Gap { first, .. } => return lost(format!("begins with {first}")),
                    Verdict::Other { ref detail } if begun.elapsed() >= DOUBT => return lost(detail.clone()),
                    Verdict::Fits | Verdict::Other { .. } => {}
                }
            }
            match verdict {
                Verdict::Fits => return Ok(()),
                Verdict::Gap { wanted, first } if self.config.accept_gap => {
                    warn!(%partition, wanted, first, "going on behind a gap");
                    feed.state.skip_to(first);
                    return Ok(());
                }
                Verdict::Gap { wanted, first } => {
                    return Err(Halt::Fatal(RabbitError::Gap { partition, wanted, first }));
                }
                Verdict::Other { .. } if begun.elapsed() < DOUBT => self.sleep(DOUBT / 10).await?,
                Verdict::Other { detail } if self.config.accept_gap => {
                    warn!(%partition, detail, "going on with another stream");
                    feed.state.accept_other(&extent);
                    feed.last = extent.last;
                    let upper = feed.state.position();
                    return self.hand_over(Input::Restarted { partition, upper }).await;
                }
                Verdict::Other { detail } => return Err(Halt::Fatal(RabbitError::Recreated { partition, detail })),
            }
        }
    }

    async fn extent(&self, connection: &Connection, index: usize) -> Result<Extent, Halt> {
        let first = self.probe(connection, index, Offset::First).await?;
        let last = self.probe(connection, index, Offset::Last).await?;
        let proof = match self.feeds[index].state.proof().map(|proof| proof.offset) {
            // Asked for only where it is: behind the end nothing would come.
            Some(offset) if last.as_ref().is_some_and(|(last, _)| *last >= offset) => {
                let found = self.probe(connection, index, Offset::At(offset)).await?;
                found.map(|(offset, message)| message.fingerprint(offset))
            }
            _ => None,
        };
        Ok(Extent { first: first.map(|(offset, _)| offset), last: last.map(|(offset, _)| offset), proof })
    }

    /// The first record at or behind an offset; of [`Offset::Last`], the last record.
    async fn probe(&self, connection: &Connection, index: usize, from: Offset) -> Result<Option<(u64, Message)>, Halt> {
        let channel = self.ask(connection.create_channel()).await?;
        // The last chunk comes from its beginning, and all of it has to come.
        let prefetch = if from == Offset::Last { u16::MAX } else { 1 };
        self.ask(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let feed = &self.feeds[index];
        let arguments = offset_argument(from);
        let consume = channel.basic_consume(name(&feed.name), "".into(), BasicConsumeOptions::default(), arguments);
        let mut consumer = match self.within(ANSWER, consume).await? {
            Err(error) if refuses_argument(&error) => {
                return Err(Halt::Fatal(self.wrong_kind(index)));
            }
            consumer => consumer.map_err(|error| self.judge_error(error))?,
        };
        let mut found: Option<(u64, Message)> = None;
        let mut begun = None;
        loop {
            // What the broker sent before its answer is here when the answer is.
            let ready = self.ask(passive(&channel, &feed.name)).await?;
            let mut came = false;
            while let Some(item) = consumer.next().now_or_never() {
                let Some(delivery) = item.transpose().map_err(|error| self.judge_error(error))? else {
                    return Err(Halt::Lost(format!("the stream {} was deleted", feed.name)));
                };
                let message = message(delivery);
                let Some(offset) = message.offset else {
                    return Err(Halt::Fatal(self.wrong_kind(index)));
                };
                came = true;
                // A chunk may come from its beginning.
                let before = matches!(from, Offset::At(wanted) if offset < wanted);
                if !before && (found.is_none() || from == Offset::Last) {
                    found = Some((offset, message));
                }
            }
            let empty = found.is_none() && (begun.get_or_insert_with(Instant::now).elapsed() < EMPTY || ready > 0);
            if !came && !empty || found.is_some() && from != Offset::Last {
                break;
            }
            if empty {
                if begun.is_some_and(|begun: Instant| begun.elapsed() > ANSWER) {
                    return Err(Halt::Lost(format!("the stream {} has {ready} records and sends none", feed.name)));
                }
                self.sleep(STEP).await?;
            }
        }
        // The channel must not wait for its credit: what it has sent is all that is wanted.
        let _ = self.within(ANSWER, channel.close(200, "done".into())).await?;
        Ok(found)
    }

    /// Takes, hands over and acknowledges until there is nothing more to do.
    async fn pump(&mut self, connection: &Connection, links: &mut [Link]) -> Result<(), Halt> {
        loop {
            let mut any = false;
            for (index, link) in links.iter_mut().enumerate() {
                any |= self.take(connection, index, link).await?;
            }
            self.acknowledge(links, true).await?;
            for (index, link) in links.iter_mut().enumerate() {
                self.look(connection, index, link).await?;
                self.finish(index, link).await?;
            }
            if self.feeds.iter().all(|feed| feed.finished && feed.state.deliveries.unacked() == 0) {
                return Ok(());
            }
            if self.stop.is_stopped() {
                return Err(Halt::Stopped);
            }
            if !any {
                let _ = tokio::time::timeout(STEP, arrival(links)).await;
            } else {
                // Heartbeats and the connection itself live on this thread.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes what is there, up to one batch, and hands it over. Whether anything was there.
    async fn take(&mut self, connection: &Connection, index: usize, link: &mut Link) -> Result<bool, Halt> {
        let receive_time = wall_now();
        let mut halt = None;
        let mut any = false;
        while halt.is_none() && !self.feeds[index].state.is_full() && !self.feeds[index].finished {
            let Some(consumer) = &mut link.consumer else { break };
            let Some(item) = link.next.take().or_else(|| consumer.next().now_or_never()) else { break };
            any = true;
            match item {
                Some(Ok(delivery)) => {
                    let message = message(delivery);
                    if self.feeds[index].state.jumps(&message)
                        && let Err(verdict) = self.verify(connection, index).await
                    {
                        halt = Some(verdict);
                        break;
                    }
                    let feed = &mut self.feeds[index];
                    match feed.state.take(message, receive_time) {
                        Took::In => feed.broken = 0,
                        Took::Known | Took::Beyond => {}
                        Took::OtherKind => halt = Some(Halt::Fatal(self.wrong_kind(index))),
                    }
                }
                Some(Err(error)) => halt = Some(self.judge_error(error)),
                None => halt = Some(Halt::Lost(format!("{} was deleted or moved", self.feeds[index].name))),
            }
            link.received = Instant::now();
        }
        if let Some(batch) = self.feeds[index].state.batch(receive_time) {
            self.hand_over(Input::Batch(batch)).await?;
        }
        if let Some(halt) = halt {
            return Err(halt);
        }
        if let Some(tag) = self.feeds[index].state.take_credit() {
            self.ask(link.channel.basic_ack(tag, BasicAckOptions { multiple: true })).await?;
        }
        Ok(any)
    }

    /// Sends without holding up the thread: the connection lives on it.
    async fn hand_over(&self, mut input: Input) -> Result<(), Halt> {
        loop {
            match self.out.try_send(input) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(Halt::Stopped),
                Err(TrySendError::Full(unsent)) => input = unsent,
            }
            self.sleep(FULL).await?;
        }
    }

    /// Acknowledges what is committed, of queues.
    async fn acknowledge(&mut self, links: &[Link], obey: bool) -> Result<(), Halt> {
        for (feed, link) in self.feeds.iter_mut().zip(links) {
            let Some(committed) = self.committed.upper(feed.state.partition()) else { continue };
            let Some(tag) = feed.state.deliveries.take_acks(committed) else { continue };
            let ack = link.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let result = if obey {
                tokio::select! {
                    biased;
                    result = ack => result,
                    () = tokio::time::sleep(ANSWER) => return Err(Halt::Lost("an acknowledgement is stuck".to_owned())),
                }
            } else {
                ack.await
            };
            result.map_err(|error| Halt::Lost(error.to_string()))?;
        }
        Ok(())
    }

    /// Looks now and then whether a partition is at its end, and how far it is behind.
    async fn look(&mut self, connection: &Connection, index: usize, link: &mut Link) -> Result<(), Halt> {
        let feed = &self.feeds[index];
        let idle = !feed.state.is_at_end() && link.next.is_none() && link.received.elapsed() >= IDLE;
        let due = link.looked.elapsed() >= if idle { LOOK } else { LOOK_BUSY };
        if link.consumer.is_none() || !due {
            return Ok(());
        }
        let (records, ended) = match self.config.kind {
            RabbitKind::Queue => {
                let acked = feed.state.deliveries.last_acked();
                let ready = self.ask(passive(&link.channel, &feed.name)).await?;
                // What the queue sent before its answer may still be with the channel: it comes before the next answer.
                self.ask(passive(&link.channel, &feed.name)).await?;
                // A channel does one thing after the other: the acknowledgements before the question have arrived.
                if let Some(tag) = acked {
                    let settled = self.feeds[index].state.deliveries.settle(tag);
                    self.committed.acknowledged(self.feeds[index].state.partition(), settled);
                }
                (u64::from(ready), ready == 0)
            }
            RabbitKind::Stream => {
                let last = self.probe(connection, index, Offset::Last).await?.map(|(offset, _)| offset);
                let records = last.map_or(0, |last| (last + 1).saturating_sub(self.feeds[index].state.position()));
                (records, records == 0)
            }
        };
        link.looked = Instant::now();
        if link.next.is_none() {
            link.next = link.consumer.as_mut().and_then(|consumer| consumer.next().now_or_never());
        }
        let forgets = ended && link.next.is_none() && self.connected.elapsed() >= self.forget_after();
        let feed = &mut self.feeds[index];
        if forgets {
            self.committed.acknowledged(feed.state.partition(), feed.state.deliveries.forget());
        }
        let lag = Lag { records, event_time: feed.state.event_time() };
        self.lags.set(feed.state.partition(), lag);
        if ended
            && link.next.is_none()
            && let Some(batch) = feed.state.reach_end(wall_now())
        {
            debug!(partition = %batch.partition, upper = batch.upper, redelivered = feed.state.deliveries.redelivered(), "at its end");
            self.hand_over(Input::Batch(batch)).await?;
        }
        Ok(())
    }

    /// Says that nothing more will come, when it is so.
    async fn finish(&mut self, index: usize, link: &mut Link) -> Result<(), Halt> {
        let feed = &mut self.feeds[index];
        if !self.config.until_end || feed.finished || !(feed.state.is_done() || feed.state.is_at_end()) {
            return Ok(());
        }
        feed.finished = true;
        let partition = feed.state.partition();
        let upper = feed.state.position();
        if let Some(consumer) = link.consumer.take() {
            // What was delivered beyond the end goes back when the channel closes.
            let _ = self.ask(link.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await;
        }
        self.lags.set(partition, Lag { records: 0, event_time: self.feeds[index].state.event_time() });
        let last = Batch { upper, at_end: true, ..Batch::new(partition, wall_now()) };
        self.hand_over(Input::Batch(last)).await?;
        self.hand_over(Input::Finished { partition }).await
    }

    /// A message broke the connection before it could be read. A stream is read on behind it, at the second time.
    fn blame(&mut self, detail: &str) -> Result<(), RabbitError> {
        for feed in &mut self.feeds {
            feed.broken += 1;
            let (partition, offset) = (feed.state.partition(), feed.state.position());
            let behind = self.config.kind == RabbitKind::Stream && feed.last.is_some_and(|last| offset <= last);
            if behind && self.pumping && feed.broken >= 2 {
                warn!(%partition, offset, detail, "a message cannot be received: it is dead");
                feed.state.bury(detail);
                feed.broken = 0;
            } else if feed.broken >= BROKEN {
                let detail = detail.to_owned();
                return Err(RabbitError::Unreadable { partition, offset, detail });
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Offset {
    First,
    Last,
    Next,
    At(u64),
}

fn offset_argument(offset: Offset) -> FieldTable {
    let value = match offset {
        Offset::First => AMQPValue::LongString("first".into()),
        Offset::Last => AMQPValue::LongString("last".into()),
        Offset::Next => AMQPValue::LongString("next".into()),
        Offset::At(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
    };
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), value);
    arguments
}

/// The length is checked with the configuration.
fn name(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

/// The ready messages of what exists.
async fn passive(channel: &Channel, queue: &str) -> lapin::Result<u32> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name(queue), options, FieldTable::default()).await?;
    Ok(declared.message_count())
}

fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(reply) => match reply.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// Whether a queue was asked for what only a stream has. A stream whose replica has not started yet fails the same
/// precondition, in other words.
fn refuses_argument(error: &lapin::Error) -> bool {
    soft(error) == Some(AMQPSoftError::PRECONDITIONFAILED) && error.to_string().contains("invalid arg")
}

fn message(delivery: Delivery) -> Message {
    let properties = &delivery.properties;
    let offset = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-stream-offset"));
    Message {
        tag: delivery.delivery_tag,
        offset: offset.and_then(|value| match value {
            AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
            AMQPValue::LongInt(offset) => u64::try_from(*offset).ok(),
            _ => None,
        }),
        content_type: properties.content_type().as_ref().map(|text| text.as_str().to_owned()),
        message_id: properties.message_id().as_ref().map(|text| text.as_str().to_owned()),
        timestamp: *properties.timestamp(),
        redelivered: delivery.redelivered,
        body: delivery.data,
    }
}

/// Waits until anything arrives, and keeps it.
async fn arrival(links: &mut [Link]) {
    std::future::poll_fn(|context| {
        for link in links.iter_mut() {
            if link.next.is_some() {
                return Poll::Ready(());
            }
            if let Some(consumer) = &mut link.consumer
                && let Poll::Ready(item) = Pin::new(consumer).poll_next(context)
            {
                link.next = Some(item);
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}

async fn stopped(stop: &Stop) {
    while !stop.is_stopped() {
        tokio::time::sleep(STEP).await;
    }
}

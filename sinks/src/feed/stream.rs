//! `/api/v1/stream`: server-sent events.
//!
//! ```text
//!  publish ──► Hub: ring of the last audit events ──► broadcast (bounded) ──► one stream a reader
//!                        ▲ resume after an id ▲ or from the store's audit
//! ```
//!
//! | event | id | data |
//! |---|---|---|
//! | `recommendation`, `verdict` | `{started_ms}-{seq}` | `{seq, epoch, generation, symbol, account, …}`, the row null where none stands |
//! | `bars` | none | bars that changed, four times a second at most |
//! | `heartbeat` | none | once a second: the status, and a deadline 5 s after the last commit |
//! | `reset` | of the last seq | what was asked for is not there: read everything anew, then go on from here |
//!
//! 1. A reader that resumes gets each seq after its own exactly once and in order, or a `reset`.
//!    `started_ms`, which the heartbeat has too, is the process: a seq of another one, whose store may be another, is
//!    never resumed after.
//! 2. A reader that falls behind by more than the queue is disconnected, and resumes by its last id.

use super::Feed;
use super::problem::Problem;
use super::query::Params;
use crate::store::{AuditEntry, AuditKey};
use crate::view::millis;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use marea_model::{AccountId, Symbol};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

/// Audit events kept in memory for readers that resume.
const RING: usize = 4_096;
/// Commits, heartbeats and bar updates that a reader may be behind.
const QUEUE: usize = 256;
/// The most audit events that a reader is replayed from the store before it is told to read everything anew.
const REPLAY: usize = 10_000;
/// Readers at a time.
const READERS: usize = 256;
/// Between two `bars` events.
pub(super) const BARS_EVERY: Duration = Duration::from_millis(250);
/// Between two `heartbeat` events.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// One event, as every reader gets it.
#[derive(Clone, Debug)]
struct Message {
    event: &'static str,
    /// Of audit events.
    seq: Option<u64>,
    data: Arc<str>,
}

impl Message {
    fn audit(entry: &AuditEntry) -> Self {
        Message { event: entry.key.kind(), seq: Some(entry.seq), data: envelope(entry).into() }
    }

    fn sse(&self, started_ms: u64) -> Event {
        let event = Event::default().event(self.event).data(&*self.data);
        match self.seq {
            Some(seq) => event.id(format!("{started_ms}-{seq}")),
            None => event,
        }
    }
}

/// An audit entry on the wire, here and in Redis. The row is null, and `deleted` true, where none stands any more; the
/// seq is null (0 in `entry`) before it is committed. `seq`, `epoch` and `generation` come first, in this order: Redis'
/// scripts read them.
pub(crate) fn envelope(entry: &AuditEntry) -> String {
    #[derive(Serialize)]
    struct Envelope<'a> {
        seq: Option<u64>,
        epoch: u64,
        generation: u64,
        valid_until: Option<&'a str>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        deleted: bool,
        symbol: Symbol,
        #[serde(skip_serializing_if = "Option::is_none")]
        account: Option<AccountId>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recommendation: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        verdict: Option<&'a RawValue>,
    }
    let payload = entry.payload.as_deref().unwrap_or("null");
    let row: &RawValue = serde_json::from_str(payload).unwrap_or(RawValue::NULL);
    let (recommendation, verdict) = match entry.key {
        AuditKey::Recommendation(_) => (Some(row), None),
        AuditKey::Verdict(..) => (None, Some(row)),
    };
    let AuditEntry { seq, epoch, generation, key, .. } = *entry;
    let (symbol, account) = (key.symbol(), key.account());
    let (valid_until, deleted) = (valid_until(payload), entry.payload.is_none());
    let seq = (seq > 0).then_some(seq);
    json(&Envelope { seq, epoch, generation, valid_until, deleted, symbol, account, recommendation, verdict })
}

/// Until when a row may be acted on: a recommendation until it expires.
pub(crate) fn valid_until(payload: &str) -> Option<&str> {
    #[derive(Deserialize)]
    struct Row<'a> {
        expires_at: Option<&'a str>,
        valid_until: Option<&'a str>,
    }
    let row: Option<Row<'_>> = serde_json::from_str(payload).ok()?;
    row.and_then(|row| row.valid_until.or(row.expires_at))
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("events have text keys and no failing serializer")
}

/// Where readers of the stream meet what is published.
#[derive(Debug)]
pub(super) struct Hub {
    ring: Mutex<Ring>,
    live: broadcast::Sender<Arc<[Message]>>,
    readers: Arc<Semaphore>,
    stopped: watch::Sender<bool>,
}

#[derive(Debug)]
struct Ring {
    entries: VecDeque<Message>,
    last_seq: u64,
}

impl Hub {
    pub(super) fn new(last_seq: u64) -> Self {
        Hub {
            ring: Mutex::new(Ring { entries: VecDeque::new(), last_seq }),
            live: broadcast::Sender::new(QUEUE),
            readers: Arc::new(Semaphore::new(READERS)),
            stopped: watch::Sender::new(false),
        }
    }

    /// Sends audit entries to every reader, and keeps them for those that resume.
    pub(super) fn audit(&self, entries: &[AuditEntry], last_seq: u64) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last_seq = last_seq;
        if entries.is_empty() {
            return;
        }
        let messages: Arc<[Message]> = entries.iter().map(Message::audit).collect();
        ring.entries.extend(messages.iter().cloned());
        let excess = ring.entries.len().saturating_sub(RING);
        ring.entries.drain(..excess);
        // Under the lock, so that whoever subscribes sees each message either in the ring or in its queue.
        let _ = self.live.send(messages);
    }

    fn send(&self, event: &'static str, data: String) {
        // No reader is no error.
        let _ = self.live.send([Message { event, seq: None, data: data.into() }].into());
    }

    /// Ends every stream.
    pub(super) fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

impl Feed {
    /// The once-a-second event: its `status`, when it was sent, and until when what stands may be acted on.
    fn heartbeat(&self) -> String {
        #[derive(Serialize)]
        struct Heartbeat {
            sent_ms: u64,
            /// Past it, every verdict means block. Null before the first commit: block.
            deadline_ms: Option<u64>,
            status: crate::view::Status,
        }
        let deadline_ms = self.deadline().map(millis);
        json(&Heartbeat { sent_ms: millis(SystemTime::now()), deadline_ms, status: self.inner.view.status() })
    }

    /// Sends `bars` and `heartbeat` until the feed stops.
    pub(super) async fn tick(self) {
        let mut stopped = self.inner.hub.stopped.subscribe();
        let mut bars = tokio::time::interval(BARS_EVERY);
        let mut heartbeat = tokio::time::interval(HEARTBEAT_EVERY);
        bars.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                _ = bars.tick() => {
                    let fresh = self.inner.view.fresh_bars();
                    let changed = !fresh.bars.is_empty() || !fresh.deleted.is_empty();
                    if changed && self.inner.hub.live.receiver_count() > 0 {
                        self.inner.hub.send("bars", json(&fresh));
                    }
                }
                _ = heartbeat.tick() => {
                    let status = self.inner.view.status();
                    self.inner.metrics.tick_rate(status.tick_rate);
                    self.inner.hub.send("heartbeat", self.heartbeat());
                }
            }
        }
    }
}

/// What one reader still has to get.
struct Reader {
    live: broadcast::Receiver<Arc<[Message]>>,
    stopped: watch::Receiver<bool>,
    pending: VecDeque<Message>,
    /// Audit events up to here are sent or skipped.
    seq: u64,
    started_ms: u64,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> Option<Message> {
        loop {
            if *self.stopped.borrow() {
                return None;
            }
            if let Some(message) = self.pending.pop_front() {
                if let Some(seq) = message.seq {
                    self.seq = seq;
                }
                return Some(message);
            }
            tokio::select! {
                _ = self.stopped.wait_for(|stopped| *stopped) => return None,
                messages = self.live.recv() => {
                    // Lagged: this reader is too slow. It is disconnected, and may resume by its last id.
                    let messages = messages.ok()?;
                    let seq = self.seq;
                    self.pending.extend(messages.iter().filter(|m| m.seq.is_none_or(|s| s > seq)).cloned());
                }
            }
        }
    }
}

/// `GET /api/v1/stream`, resuming after the header `Last-Event-ID` or the parameter `after`.
pub(super) async fn get(State(feed): State<Feed>, headers: HeaderMap, params: Params) -> Result<Response, Problem> {
    let params = params.only(&["after"])?;
    let after = params.after()?;
    let permit = feed.inner.hub.readers.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{READERS} readers are connected, no more are taken");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    })?;
    // A browser sends its last id as a header when it reconnects; then that is newer than the address's `after`.
    let id = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let started_ms = feed.inner.view.started_ms();
    let asked = id.or(after).map(|id| seq_of(id, started_ms));
    let (live, kept, last_seq) = {
        let ring = feed.inner.hub.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: Vec<Message> = match asked {
            Some(Some(seq)) => ring.entries.iter().filter(|m| m.seq > Some(seq)).cloned().collect(),
            _ => Vec::new(),
        };
        (feed.inner.hub.live.subscribe(), kept, ring.last_seq)
    };
    let heartbeat = Message { event: "heartbeat", seq: None, data: feed.heartbeat().into() };
    let mut reader = Reader {
        live,
        stopped: feed.inner.hub.stopped.subscribe(),
        pending: VecDeque::new(),
        seq: last_seq,
        started_ms,
        _permit: permit,
    };
    match asked {
        None => {}
        Some(Some(seq)) if seq <= last_seq => match feed.replay(seq, last_seq, kept).await {
            Some(messages) => reader.pending.extend(messages),
            None => reader.pending.push_back(reset(last_seq)),
        },
        Some(_) => reader.pending.push_back(reset(last_seq)),
    }
    // Last: no deadline that holds now stands before what is replayed of the past.
    reader.pending.push_back(heartbeat);
    let events = stream::unfold(reader, async |mut reader| {
        let message = reader.next().await?;
        Some((Ok::<_, Infallible>(message.sse(reader.started_ms)), reader))
    });
    let mut response = Sse::new(events).into_response();
    // A proxy that buffers would hold heartbeats back until they are stale.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

/// The seq in an id that this process gave out; none in any other.
fn seq_of(id: &str, started_ms: u64) -> Option<u64> {
    let (started, seq) = id.split_once('-')?;
    if started.parse() == Ok(started_ms) { seq.parse().ok() } else { None }
}

fn reset(last_seq: u64) -> Message {
    let data = format!("{{\"last_seq\":{last_seq}}}");
    Message { event: "reset", seq: Some(last_seq), data: data.into() }
}

impl Feed {
    /// The audit events after `seq` up to `last_seq`: from the ring, else from the store, else none.
    async fn replay(&self, seq: u64, last_seq: u64, kept: Vec<Message>) -> Option<Vec<Message>> {
        if seq == last_seq || kept.first().and_then(|m| m.seq) == Some(seq + 1) {
            return Some(kept);
        }
        if last_seq - seq > REPLAY as u64 {
            return None;
        }
        let limit = usize::try_from(last_seq - seq).ok()?;
        let entries = match self.inner.store.as_ref()?.audit_after(seq, limit).await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(%error, seq, "a reader of the stream cannot resume");
                return None;
            }
        };
        let dense = entries.iter().zip(seq + 1..).all(|(entry, seq)| entry.seq == seq) && entries.len() == limit;
        dense.then(|| entries.iter().map(Message::audit).collect())
    }
}

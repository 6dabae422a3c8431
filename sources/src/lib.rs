//! Where marea's records come from: files ([`mod@file`]), the synthetic market ([`synthetic`]), Kafka ([`kafka`]) and
//! RabbitMQ ([`rabbitmq`]); and where its live configuration does: a watched file ([`live_file`]) or etcd ([`etcd`]).
//!
//! A source runs on a thread of its own and meets the dataflow only through a bounded channel of [`Input`]: it
//! announces its partition, sends batches in order, and says when nothing more will come. A full channel is the
//! backpressure. A source ends when it is finished, when it is stopped ([`Stop`]), or when nobody listens any more.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod etcd;
pub mod file;
pub mod kafka;
pub mod live_file;
pub mod message;
pub mod rabbitmq;
pub mod synthetic;

use crossbeam_channel::{SendTimeoutError, TrySendError};
use marea_model::cursor::{Fingerprint, MessageIdentity};
use marea_model::time::Nanos;
use marea_model::{ConfigUpdate, Partition, cursor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a partition carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carries {
    /// Ticks, and maybe account snapshots among them.
    Ticks,
    /// Account snapshots alone.
    Accounts,
}

/// What a source sends.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all that is sent is batches, of thousands of rows each")]
pub enum Input {
    /// A partition exists. Announced before any batch of it, so that it holds the watermark from the beginning.
    Start {
        /// The partition.
        partition: Partition,
        /// What it carries: account snapshots hold no watermark back.
        carries: Carries,
    },
    /// A partition's log is another one from here on: what was read of it counts no longer, and offsets go on at `upper`.
    Restarted {
        /// The partition.
        partition: Partition,
        /// The first offset that is read of the new log.
        upper: u64,
    },
    /// Records of one partition, in order.
    Batch(cursor::Batch),
    /// One revision of the live configuration: all of it enters in one epoch.
    Config(Vec<ConfigUpdate>),
    /// Nothing more will come from this partition.
    Finished {
        /// The partition.
        partition: Partition,
    },
}

/// The way to the cutter: a bounded channel, and a bell that tells that something is in it. Sending waits while it is full.
#[derive(Clone)]
pub struct Sender {
    channel: crossbeam_channel::Sender<Input>,
    bell: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Sender {
    /// With a bell: it is called by the thread that sends, and may do the cutter's work there and then.
    pub fn with_bell(channel: crossbeam_channel::Sender<Input>, bell: impl Fn() + Send + Sync + 'static) -> Sender {
        Sender { channel, bell: Some(Arc::new(bell)) }
    }

    /// Says that something was queued.
    fn ring(&self) {
        if let Some(bell) = &self.bell {
            bell();
        }
    }

    /// Queues and rings, unless it is full.
    #[allow(clippy::result_large_err, reason = "what could not be sent is sent again")]
    pub(crate) fn try_send(&self, input: Input) -> Result<(), TrySendError<Input>> {
        let queued = self.channel.try_send(input);
        self.ring();
        queued
    }
}

impl From<crossbeam_channel::Sender<Input>> for Sender {
    /// Without a bell: the other end waits for what is sent.
    fn from(channel: crossbeam_channel::Sender<Input>) -> Self {
        Sender { channel, bell: None }
    }
}

/// The cutter's end.
pub type Receiver = crossbeam_channel::Receiver<Input>;

/// Where to read on in a partition that was read before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resume {
    /// The partition.
    pub partition: Partition,
    /// The first offset that is wanted: what stands from here to `upper` was committed, and is read once more.
    pub low: u64,
    /// The first offset that was not committed.
    pub upper: u64,
    /// How a committed record reads, if it is known.
    pub fingerprint: Option<Fingerprint>,
}

/// What the committer and a source that acknowledges tell each other: how far each partition is committed, and which
/// messages of those that the store remembers are acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Committed(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    uppers: BTreeMap<Partition, u64>,
    unacknowledged: Vec<(Partition, u64, MessageIdentity)>,
    acknowledged: Vec<(Partition, Range<u64>)>,
}

impl Committed {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything before these offsets is committed.
    pub fn advance(&self, uppers: impl IntoIterator<Item = (Partition, u64)>) {
        let mut told = self.told();
        for (partition, upper) in uppers {
            let known = told.uppers.entry(partition).or_default();
            *known = upper.max(*known);
        }
    }

    /// The first offset of a partition that is not committed; none if nothing is.
    pub fn upper(&self, partition: Partition) -> Option<u64> {
        self.told().uppers.get(&partition).copied()
    }

    /// Messages that were committed by the process before, and may not have been acknowledged.
    pub fn remember(&self, messages: impl IntoIterator<Item = (Partition, u64, MessageIdentity)>) {
        self.told().unacknowledged.extend(messages);
    }

    /// Those of a partition, each with its offset.
    pub fn remembered(&self, partition: Partition) -> Vec<(u64, MessageIdentity)> {
        let told = self.told();
        let messages = told.unacknowledged.iter().filter(|(of, ..)| *of == partition);
        messages.map(|(_, offset, identity)| (*offset, *identity)).collect()
    }

    /// The broker will not deliver these again.
    pub fn acknowledged(&self, partition: Partition, mut offsets: Vec<u64>) {
        offsets.sort_unstable();
        let runs = offsets.chunk_by(|a, b| b - a <= 1);
        let ranges = runs.filter_map(|run| Some((partition, *run.first()?..*run.last()? + 1)));
        self.told().acknowledged.extend(ranges);
    }

    /// What was acknowledged since this was asked last.
    pub fn take_acknowledged(&self) -> Vec<(Partition, Range<u64>)> {
        std::mem::take(&mut self.told().acknowledged)
    }
}

/// How far a source is behind in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    /// Messages that the broker has and this source has not read.
    pub records: u64,
    /// The greatest event time that was read.
    pub event_time: Option<Nanos>,
}

/// How far a source is behind: told by the source, asked by whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Lags(Arc<Mutex<BTreeMap<Partition, Lag>>>);

impl Lags {
    /// A partition stands so now.
    pub fn set(&self, partition: Partition, lag: Lag) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, lag);
    }

    /// All partitions.
    pub fn all(&self) -> Vec<(Partition, Lag)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(p, lag)| (*p, *lag)).collect()
    }
}

/// Why records were skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapCause {
    /// The broker no longer had them.
    Retention,
    /// The log is another one than before.
    Recreated,
}

impl GapCause {
    /// Its name in notes.
    pub fn as_str(self) -> &'static str {
        match self {
            GapCause::Retention => "retention",
            GapCause::Recreated => "recreated",
        }
    }
}

/// Records that were skipped because `accept_gap` allows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// The partition.
    pub partition: Partition,
    /// The next offset that was wanted.
    pub wanted: u64,
    /// Where reading went on: above `wanted` after retention, anywhere in a log that is another one.
    pub available: u64,
    /// Why.
    pub cause: GapCause,
    /// Whether some of them were committed, and wanted once more by a restart.
    pub committed: bool,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap { partition, wanted, available, cause, .. } = self;
        match cause {
            GapCause::Retention => write!(f, "{partition}: offsets {wanted} to {available} are lost to retention"),
            GapCause::Recreated => {
                write!(f, "{partition}: recreated: {wanted} was next, read from its earliest offset {available}")
            }
        }
    }
}

/// What was skipped and not yet audited: told by the source before anything that comes after it is sent, taken by
/// whoever audits it.
#[derive(Clone, Debug, Default)]
pub struct Gaps(Arc<Mutex<Vec<Gap>>>);

impl Gaps {
    /// Records were skipped.
    pub fn push(&self, gap: Gap) {
        tracing::warn!(%gap, "records are skipped, as accept_gap allows");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(gap);
    }

    /// What was told since this was asked last, in order.
    pub fn take(&self) -> Vec<Gap> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The most records of a batch.
pub const BATCH_ROWS: usize = 8192;

/// How often a waiting source looks whether it is stopped.
const STEP: Duration = Duration::from_millis(10);

/// A request to stop, shared by everybody who can ask and everybody who must obey.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Not stopped.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it is stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Sleeps, waking up early to stop. Whether to go on.
    pub fn sleep(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        loop {
            if self.is_stopped() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}

/// A source must end: it was stopped, or nobody listens any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// Sends, waiting while the channel is full.
pub(crate) fn send(out: &Sender, stop: &Stop, input: Input) -> Result<(), Stopped> {
    send_all(out, stop, [input])
}

/// The same with several: they are cut together, where there is room for them.
pub(crate) fn send_all(out: &Sender, stop: &Stop, inputs: impl IntoIterator<Item = Input>) -> Result<(), Stopped> {
    for mut input in inputs {
        loop {
            if stop.is_stopped() {
                return Err(Stopped);
            }
            let unsent = match out.channel.try_send(input) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(Stopped),
                Err(TrySendError::Full(unsent)) => unsent,
            };
            out.ring();
            match out.channel.send_timeout(unsent, STEP) {
                Ok(()) => break,
                Err(SendTimeoutError::Disconnected(_)) => return Err(Stopped),
                Err(SendTimeoutError::Timeout(unsent)) => input = unsent,
            }
        }
    }
    out.ring();
    Ok(())
}

/// The wall clock, in nanoseconds since 1970.
pub(crate) fn wall_now() -> Nanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_channel_holds_the_source_until_it_is_stopped() {
        let (out, _input) = crossbeam_channel::bounded(1);
        let (out, stop) = (Sender::from(out), Stop::new());
        assert_eq!(send(&out, &stop, Input::Config(vec![])), Ok(()));
        let waiting = std::thread::spawn({
            let stop = stop.clone();
            move || send(&out, &stop, Input::Config(vec![]))
        });
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiting.is_finished());
        stop.stop();
        assert_eq!(waiting.join().unwrap(), Err(Stopped));
    }

    #[test]
    fn a_source_ends_when_nobody_listens() {
        let (out, input) = crossbeam_channel::bounded(1);
        drop(input);
        assert_eq!(send(&out.into(), &Stop::new(), Input::Config(vec![])), Err(Stopped));
    }

    #[test]
    fn a_sleeper_wakes_up_to_stop() {
        let stop = Stop::new();
        assert!(stop.sleep(Duration::from_millis(1)));
        stop.stop();
        let begun = Instant::now();
        assert!(!stop.sleep(Duration::from_secs(60)));
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}

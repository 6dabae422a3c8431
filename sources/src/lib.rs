//! Where marea's records come from: files ([`mod@file`]), the synthetic market ([`synthetic`]) and the watched
//! configuration file ([`live_file`]).
//!
//! A source runs on a thread of its own and meets the dataflow only through a bounded channel of [`Input`]: it
//! announces its partition, sends batches in order, and says when nothing more will come. A full channel is the
//! backpressure. A source ends when it is finished, when it is stopped ([`Stop`]), or when nobody listens any more.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod file;
pub mod live_file;
pub mod synthetic;

use crossbeam_channel::SendTimeoutError;
use marea_model::time::Nanos;
use marea_model::{ConfigUpdate, Partition, cursor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a source sends.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all that is sent is batches, of thousands of rows each")]
pub enum Input {
    /// A partition exists. Announced before any batch of it, so that it holds the watermark from the beginning.
    Start {
        /// The partition.
        partition: Partition,
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

/// The way to the cutter. Bounded: sending waits while it is full.
pub type Sender = crossbeam_channel::Sender<Input>;

/// The cutter's end.
pub type Receiver = crossbeam_channel::Receiver<Input>;

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
pub(crate) fn send(out: &Sender, stop: &Stop, mut input: Input) -> Result<(), Stopped> {
    loop {
        if stop.is_stopped() {
            return Err(Stopped);
        }
        match out.send_timeout(input, STEP) {
            Ok(()) => return Ok(()),
            Err(SendTimeoutError::Timeout(unsent)) => input = unsent,
            Err(SendTimeoutError::Disconnected(_)) => return Err(Stopped),
        }
    }
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
        let stop = Stop::new();
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
        assert_eq!(send(&out, &Stop::new(), Input::Config(vec![])), Err(Stopped));
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

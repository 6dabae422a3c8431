//! Whether the workers are alive, and whether the pipeline is ready. Written from worker threads without a lock.

use super::ConfigCurrent;
use crate::view::{Clock, HEARTBEAT};
use marea_model::Epoch;
use marea_model::time::now_ms;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A worker that has not beaten for this long is taken for dead.
pub const WORKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Until when what was committed up to `epoch` at `committed` may be acted on: [`HEARTBEAT`] after it, or if that is longer
/// ago, after what the commit is as of (by the wall clock: an epoch may have waited long for its commit), or after the live
/// configuration was last known to be current. None if it never was.
pub(super) fn deadline(
    committed: SystemTime,
    epoch: Epoch,
    clock: Clock,
    config_current: Option<&ConfigCurrent>,
) -> Option<SystemTime> {
    let mut known = committed;
    if clock == Clock::Wall {
        known = known.min(UNIX_EPOCH + Duration::from_millis(u64::try_from(now_ms(epoch)).unwrap_or_default()));
    }
    if let Some(current) = config_current {
        known = known.min(current()?);
    }
    Some(known + HEARTBEAT)
}

/// The workers' heartbeats. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    started: Instant,
    /// Milliseconds after `started` of each worker's last beat.
    beats: Vec<AtomicU64>,
    hydrated: AtomicBool,
}

impl Health {
    /// Of `workers` workers, which all count as alive now.
    pub fn new(workers: usize) -> Self {
        let beats = (0..workers).map(|_| AtomicU64::new(0)).collect();
        Health { inner: Arc::new(Inner { started: Instant::now(), beats, hydrated: AtomicBool::new(false) }) }
    }

    /// Worker `index` is alive. A few nanoseconds; call it as often as it steps, at least once a second.
    pub fn beat(&self, index: usize) {
        if let Some(beat) = self.inner.beats.get(index) {
            let at = u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            beat.store(at, Ordering::Relaxed);
        }
    }

    /// Whether the state is complete: everything that stood before the start is there again.
    pub fn set_hydrated(&self, hydrated: bool) {
        self.inner.hydrated.store(hydrated, Ordering::Relaxed);
    }

    /// Whether the state is complete.
    pub fn hydrated(&self) -> bool {
        self.inner.hydrated.load(Ordering::Relaxed)
    }

    /// The worker that has been silent longest, and for how long. None without workers.
    pub fn oldest(&self) -> Option<(usize, Duration)> {
        let now = self.inner.started.elapsed();
        let beats = self.inner.beats.iter().enumerate();
        let ages = beats.map(|(i, b)| (i, now.saturating_sub(Duration::from_millis(b.load(Ordering::Relaxed)))));
        ages.max_by_key(|(_, age)| *age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::time::first_epoch;

    #[test]
    fn a_deadline_counts_from_the_oldest_of_what_is_known() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (committed, epoch, clock, config, expected) in [
            (100, 99, Clock::Wall, None, Some(104)),
            // It waited for its commit, or was committed by another process.
            (100, 70, Clock::Wall, None, Some(75)),
            // The clock was set back.
            (100, 120, Clock::Wall, None, Some(105)),
            (100, 70, Clock::Event, None, Some(105)),
            (100, 99, Clock::Wall, Some(Some(90)), Some(95)),
            (100, 70, Clock::Wall, Some(Some(90)), Some(75)),
            (100, 70, Clock::Event, Some(Some(90)), Some(95)),
            (100, 99, Clock::Wall, Some(None), None),
            // Nothing is committed by this process.
            (0, 70, Clock::Event, None, Some(5)),
        ] {
            let config = config.map(|known: Option<u64>| -> ConfigCurrent { Box::new(move || known.map(at)) });
            let found = deadline(at(committed), first_epoch(epoch * 1_000), clock, config.as_ref());
            assert_eq!(found, expected.map(at), "{committed} {epoch} {clock:?}");
        }
    }
}

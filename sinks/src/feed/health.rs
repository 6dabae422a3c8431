//! Whether the workers are alive, and whether the pipeline is ready. Written from worker threads without a lock.

use super::ConfigCurrent;
use crate::view::HEARTBEAT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A worker that has not beaten for this long is taken for dead.
pub const WORKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Until when what was committed at `committed` may be acted on: [`HEARTBEAT`] after it, or after the live configuration
/// was last known to be current if that is longer ago. None if it never was.
pub(super) fn deadline(committed: SystemTime, config_current: Option<&ConfigCurrent>) -> Option<SystemTime> {
    let known = match config_current {
        Some(current) => committed.min(current()?),
        None => committed,
    };
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

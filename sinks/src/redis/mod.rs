//! Redis: what is committed, where dashboards and executors read it.
//!
//! ```text
//!  worker ──early──► Direct ──► the same script, without a stream (or Pending, where it cannot)
//!  committer ──committed──► Pending (bounded) ──► Shell ──► one script a key: value, stream entry, publish
//!                └────────► View ───────────────────┘ │
//!  store (audit, whose it is) ────────────────────────┘ a sentinel is missing or old: built anew
//! ```
//!
//! 1. **A view**: nothing is decided by what Redis has. A Redis that is slow, full, read-only, empty, old or gone delays
//!    itself alone; the committer hands over and goes on.
//! 2. **One script a key** compares (generation, epoch), refuses what is older, and writes value, stream entry and publish
//!    together. An entry's id is `{seq}-0`, so that a repeat bounces.
//! 3. **In step**: each session begins by building Redis anew from what stands, and the streams from the audit. While it
//!    lasts, a sentinel and every key are looked at again and again; what is missing, old or of another type is mended.
//!    What is *newer* than the store is overwritten, once the store says that no other process has it.
//! 4. **Fails closed**: the heartbeat says how far everything is written and expires with the deadline that the feed has.
//!    There is none while Redis is not in step.
//! 5. **Early** values (`publish = "fast"`) have an epoch and no seq, touch no stream, and stop while commits stall. What was
//!    never committed is withdrawn by the restart: its generation is older. Whoever closes an epoch writes them, where that
//!    needs no waiting ([`direct`]).
//!
//! Names are those of [`names`]; bodies are those of the HTTP feed.

mod config;
mod direct;
mod early;
mod gauges;
mod link;
mod names;
mod pending;
mod rebuild;
mod shell;
mod state;
mod writes;

pub use config::RedisConfig;

use crate::feed::Feed;
use crate::store::{AuditEntry, Committed, Reader};
use marea_model::output::ClosedEpoch;
use names::Names;
use pending::Head;
use shell::{Shared, Shell};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where epochs are handed over to be written to Redis. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Redis {
    shared: Arc<Shared>,
}

impl Redis {
    /// Starts writing in the background, once it is [told](Redis::begin) where the store stands. `feed` has what stands;
    /// `store` the audit before that. The task ends some time after [`Redis::stop`]. The error says what the URL must be.
    ///
    /// It has a thread and a reactor of its own: an early value that is handed over wakes one thread, which writes it, and
    /// nothing that the feed's readers do is before it.
    pub fn start(
        config: &RedisConfig,
        feed: Feed,
        store: Option<Reader>,
        runtime: &Handle,
    ) -> Result<(Redis, JoinHandle<()>), String> {
        let target = link::target(config)?;
        let shared = Arc::new(Shared::new());
        let names = Names { hash_tags: config.hash_tags };
        // A connection of the store is driven by the reactor on which it was made, whoever uses it later.
        let store = store.map(|store| (store, runtime.clone()));
        let shell = Shell::new(Arc::clone(&shared), target, names, feed, store);
        let reactor = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let no_thread = |error| format!("cannot be served: no thread: {error}");
        let reactor = reactor.map_err(no_thread)?;
        let (wanted, unwanted) = oneshot::channel::<()>();
        let (ending, ended) = oneshot::channel::<()>();
        let held = Arc::clone(&shared);
        let write = move || {
            reactor.block_on(async move {
                tokio::select! {
                    () = shell.run() => {}
                    _ = unwanted => {}
                }
                *held.direct() = None;
                drop(ending);
            });
        };
        let thread = std::thread::Builder::new().name("redis".to_owned()).spawn(write);
        thread.map_err(no_thread)?;
        // Aborted, or with its runtime, it takes the thread along.
        let task = async move {
            let _wanted = wanted;
            let _ = ended.await;
        };
        Ok((Redis { shared }, runtime.spawn(task)))
    }

    /// The store stands here, and the feed has `standing`. Comes first.
    pub fn begin(&self, committed: &Committed, standing: &[AuditEntry]) {
        let head = Head {
            generation: committed.generation,
            epoch: committed.upper.saturating_sub(1),
            seq: committed.last_seq,
            // By another process. This one knows nothing new before its own first commit.
            committed_at: SystemTime::UNIX_EPOCH,
        };
        self.shared.pending().begin(head, standing);
        self.shared.changed();
    }

    /// These epochs are committed, and the feed has them. Takes no longer than it takes to note them.
    pub fn committed(&self, epochs: &[ClosedEpoch], committed: &Committed) {
        // Before the lock, for which a worker may wait that has an early value.
        let derived = pending::derived(epochs);
        self.shared.pending().committed(derived, committed, Instant::now(), SystemTime::now());
        self.shared.changed();
    }

    /// An epoch has closed and is not committed yet: its values are written early. Takes no longer than it takes to write
    /// them to a socket that has room.
    pub fn early(&self, closed: &ClosedEpoch) {
        let now = Instant::now();
        let mut pending = self.shared.pending();
        if !pending.closed(closed, now) {
            return;
        }
        let mut direct = self.shared.direct();
        let taken = match (&mut *direct, pending.head()) {
            (Some(open), Some(head)) if open.takes(pending.early()) => Some((open, pending.take_early(now), head)),
            _ => None,
        };
        drop(pending);
        if let Some((open, early, head)) = taken {
            let Err(error) = open.write(&early, head) else { return };
            *direct = None;
            drop(direct);
            tracing::debug!("redis: early values: {}", config::shown(&error));
            self.shared.pending().give_back(early);
        }
        self.shared.early();
    }

    /// Asks it to write what waits, and to end.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

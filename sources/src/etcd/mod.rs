//! The live configuration in etcd: the keys below `/echo/` and `/marea/`, from version 3.4 on.
//!
//! Protocol: gRPC v3. [`load`] reads all keys at one revision; [`watch`] goes on from there.
//!
//! * **Order**: by revision. All changes of one revision are one [`Input::Config`], in the order of the server.
//! * **Delivery**: every change at least as the difference that it makes. While the watch stands, each revision by
//!   itself; after a gap, one difference from what was said last to what stands. Nothing is said twice.
//! * **Cursor**: the revision. A [`ConfigUpdate`] carries the revision at which its key was last modified; a deletion
//!   that only a Range has shown carries that Range's.
//! * **A gap**: the watch is cancelled, its revision compacted, the connection lost, the cluster another one or its
//!   revision lower than before (a backup was restored): everything is read again, and the difference is sent. Also
//!   every 30 s, and when twice in a row, a second apart, the server counts other keys than are known or has modified one
//!   later than is known, since some servers lose events without a word (3.4.23 does: a watch that begins at a deletion up
//!   to which the history was compacted). A lost put that another one follows is found by the 30 s.
//! * **Silence**: one linearizable read a second; when the last one that was answered was *sent* is in [`Answered`].
//!   Five seconds after it, `Stale(true)`. `Stale(false)` comes with the differences of a read that was answered in
//!   time, in one `Config`; never before the tree is known to be current. Reads count only while the watch stands.
//!
//! A member that does not answer is left for the next endpoint. A key whose lease ends is deleted by the server. Values
//! that are not UTF-8 become texts that no reader accepts, so that they block. A user needs read permission on the one
//! range from `/echo/` to `/marea0`, and to write what the commands write. (One watch of one range, so that a revision comes whole; what other programs keep
//! between the two folders is sent too, and dropped here.)

mod client;
mod config;
mod connection;
mod shell;
mod state;

pub use client::{Client, Guard, Stored, Tree, Write};
pub use config::EtcdConfig;

use crate::{Input, Sender, Stop, wall_now};
use connection::{Connection, within};
use marea_model::{ConfigUpdate, Nanos};
use shell::Shell;
use state::{Change, Range, State};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// Why etcd says nothing, or did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// The configuration is wrong. Final.
    #[error("{}", faults.join("; "))]
    Config {
        /// Each names its key.
        faults: Vec<String>,
    },
    /// A certificate or key cannot be read.
    #[error("etcd.{key}: {} cannot be read: {cause}", path.display())]
    File {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        cause: String,
    },
    /// Wrong user or password, or something that the user may not do. Final until somebody mends it.
    #[error(
        "etcd {endpoint}: {what}: {cause}; check etcd.user, its password and its roles: \
             it must read the range from /echo/ to /marea0"
    )]
    Denied {
        /// The member.
        endpoint: String,
        /// What was asked.
        what: &'static str,
        /// What the server says.
        cause: String,
    },
    /// The server, or the way to it, refuses. Worth another try.
    #[error("etcd {endpoint}: {what}: {cause}")]
    Failed {
        /// The member.
        endpoint: String,
        /// What was asked.
        what: &'static str,
        /// What the server or the client says.
        cause: String,
    },
    /// No answer in time. Worth another try.
    #[error("etcd {endpoint}: {what}: no answer for {patience:?}")]
    Silent {
        /// The member.
        endpoint: String,
        /// What was asked.
        what: &'static str,
        /// How long it was waited for.
        patience: Duration,
    },
    /// No endpoint answers.
    #[error("no endpoint of etcd answers: {}", tries.join("; "))]
    Nobody {
        /// What each one said.
        tries: Vec<String>,
    },
    /// What was to be changed has been changed meanwhile; nothing was written.
    #[error("changed meanwhile; nothing was written")]
    Conflict,
    /// Neither a thread nor a runtime could be started.
    #[error("etcd: the client cannot start: {cause}")]
    Start {
        /// What the operating system says.
        cause: String,
    },
    /// It was asked to stop first.
    #[error("stopped before etcd answered")]
    Stopped,
}

impl EtcdError {
    /// What the client says about something that was asked of a member.
    fn asked(endpoint: &str, what: &'static str, error: etcd_client::Error) -> Self {
        let endpoint = endpoint.to_owned();
        let (code, cause) = match &error {
            etcd_client::Error::GRpcStatus(status) => {
                (i32::from(status.code()), chain(status.message(), std::error::Error::source(status)))
            }
            etcd_client::Error::TransportError(error) => (0, chain("transport error", Some(error))),
            other => (0, other.to_string()),
        };
        // Permission denied, unauthenticated; to a wrong password, or none, servers say "invalid argument".
        let denied = matches!(code, 7 | 16)
            || (code == 3 && (cause.contains("authentication failed") || cause.contains("user name is empty")))
            || (code == 9 && cause.contains("authentication is not enabled"));
        if denied { EtcdError::Denied { endpoint, what, cause } } else { EtcdError::Failed { endpoint, what, cause } }
    }

    /// Whether what was asked may have been done all the same.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            EtcdError::Silent { .. } => true,
            // Texts of the transport, and of a server that has lost its leader on the way.
            EtcdError::Failed { cause, .. } => {
                ["transport error", "timed out", "leader"].iter().any(|text| cause.contains(text))
            }
            _ => false,
        }
    }

    /// Whether asking again may help by itself.
    pub fn is_retryable(&self) -> bool {
        matches!(self, EtcdError::Failed { .. } | EtcdError::Silent { .. } | EtcdError::Nobody { .. })
    }
}

/// A text with the causes behind it: a transport's own is only "transport error".
fn chain(text: &str, mut next: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = text.to_owned();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// How long to wait for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// For a connection, and for each answer but that with all keys.
    pub answer: Duration,
    /// For all keys. Below `stale_after`, so that what it says is not old when it comes.
    pub range: Duration,
    /// Between two reads that show that somebody answers.
    pub ping: Duration,
    /// After the sending of the last answered read: from then on the tree counts as old.
    pub stale_after: Duration,
    /// Between two reads of all keys that nothing has called for.
    pub recheck: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            answer: Duration::from_millis(1_500),
            range: Duration::from_secs(4),
            ping: Duration::from_secs(1),
            stale_after: Duration::from_secs(5),
            recheck: Duration::from_secs(30),
        }
    }
}

/// When the last linearizable read was sent that has been answered while the tree was known to be current: told by
/// the source, asked by whoever says until when verdicts may be trusted.
#[derive(Clone, Debug, Default)]
pub struct Answered(Arc<AtomicI64>);

impl Answered {
    /// Nothing has been answered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// In nanoseconds since 1970, by the wall clock; none if nothing has been answered yet.
    pub fn sent(&self) -> Option<Nanos> {
        Some(self.0.load(Ordering::SeqCst)).filter(|sent| *sent > 0)
    }

    fn set(&self, sent: Nanos) {
        self.0.store(sent, Ordering::SeqCst);
    }
}

/// When something was asked, by the clock that never jumps and by the one that others know.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    wall: Nanos,
}

impl Asked {
    fn now() -> Self {
        Asked { at: Instant::now(), wall: wall_now() }
    }
}

/// All keys at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Keys and values.
    pub tree: BTreeMap<String, String>,
    /// The revision.
    pub revision: u64,
    /// The cluster.
    pub cluster_id: u64,
    /// When it was asked for, by the wall clock.
    pub sent: Nanos,
    range: Range,
    asked: Asked,
}

impl Snapshot {
    fn new(range: Range, asked: Asked) -> Self {
        let value = |change: &Change| Some((change.key.clone(), change.value.clone()?));
        Snapshot {
            tree: range.keys.iter().filter_map(value).collect(),
            revision: u64::try_from(range.revision).unwrap_or_default(),
            cluster_id: range.cluster,
            sent: asked.wall,
            range,
            asked,
        }
    }

    /// The whole tree as updates, each with the revision of its key: what has to enter before [`watch`] goes on.
    pub fn updates(&self) -> Vec<ConfigUpdate> {
        let empty = Range { cluster: self.range.cluster, revision: 0, keys: Vec::new() };
        let mut updates = State::new(empty).range(self.range.clone(), 0);
        updates.retain(|update| update.key().is_some());
        updates
    }
}

/// Reads all keys, trying again until somebody answers. Blocks until then, or until stopped; a wrong configuration,
/// user or password is an error at once.
pub fn load(config: &EtcdConfig, stop: &Stop) -> Result<Snapshot, EtcdError> {
    let timing = Timing::default();
    check(config)?;
    let runtime = runtime()?;
    let mut pause = Duration::from_millis(100);
    loop {
        for endpoint in &config.endpoints {
            if stop.is_stopped() {
                return Err(EtcdError::Stopped);
            }
            match runtime.block_on(range_of(config, endpoint, &timing)) {
                Ok(snapshot) => return Ok(snapshot),
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "the live configuration cannot be read yet")
                }
                Err(error) => return Err(error),
            }
        }
        if !stop.sleep(pause) {
            return Err(EtcdError::Stopped);
        }
        pause = Duration::from_secs(1).min(2 * pause);
    }
}

async fn range_of(config: &EtcdConfig, endpoint: &str, timing: &Timing) -> Result<Snapshot, EtcdError> {
    let connection = Connection::open(config, endpoint, timing.answer).await?;
    let asked = Asked::now();
    let range = within(timing.range, endpoint, "read all keys", connection.range()).await?;
    Ok(Snapshot::new(range.map_err(|e| EtcdError::asked(endpoint, "read all keys", e))?, asked))
}

/// Watches a tree of which `from` has already entered. Blocks until stopped, or until nobody listens any more. A wrong
/// user, password or certificate is not the end: somebody may mend it, and meanwhile the tree is stale.
pub fn watch(
    config: &EtcdConfig,
    from: Snapshot,
    answered: &Answered,
    out: &Sender,
    stop: &Stop,
) -> Result<(), EtcdError> {
    watch_timed(config, &Timing::default(), from, answered, out, stop)
}

/// The same, with another patience.
pub fn watch_timed(
    config: &EtcdConfig,
    timing: &Timing,
    from: Snapshot,
    answered: &Answered,
    out: &Sender,
    stop: &Stop,
) -> Result<(), EtcdError> {
    check(config)?;
    let runtime = runtime()?;
    runtime.block_on(Shell::new(config, timing, from, answered, out, stop).run());
    Ok(())
}

fn check(config: &EtcdConfig) -> Result<(), EtcdError> {
    match config.check() {
        faults if faults.is_empty() => Ok(()),
        faults => Err(EtcdError::Config { faults }),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, EtcdError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| EtcdError::Start { cause: e.to_string() })
}

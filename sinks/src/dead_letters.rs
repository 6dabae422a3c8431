//! Dead letters into a Kafka topic, for whoever mends and sends them again.
//!
//! ```text
//!  commit ──► the store's dead_letters ──► a page at a time ──► topic ──► delivered: noted with the next commit
//! ```
//!
//! **Delivery**: at least once, in the order of their epochs, and only what is committed. The store is the queue, so that
//! Kafka may be gone for as long as it likes: nothing waits for it but the topic. What was delivered just before a kill
//! comes again.
//!
//! **Form**: the key is where the record stood, `partition@offset.row`; the value its bytes as they came; headers
//! `marea-reason`, `marea-field`, `marea-value`, `marea-detail`, `marea-epoch`. Of a record that a broker may not take, the
//! first [`MOST`] bytes, and `marea-length` says how many there were; the store has them all.

use crate::publish::PublishError;
use crate::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use crate::store::{Reader, StoreError, StoreTarget, StoredLetter};
use marea_model::Epoch;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Letters that are sent before it is waited for their acknowledgements.
const PAGE: usize = 100;
/// Bytes of a record that are sent: a broker takes 1 MiB by default, headers included.
pub const MOST: usize = 900_000;
/// How long they may take.
const WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked whether there are new ones, though nobody said so.
const LOOK: Duration = Duration::from_secs(5);
/// The wait before another try.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a failure that lasts is mentioned again.
const REMIND: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Shared {
    delivered: AtomicU64,
    stopped: AtomicBool,
}

/// The delivery, on a thread of its own.
#[derive(Debug)]
pub struct DeadLetters {
    shared: Arc<Shared>,
    thread: Thread,
    noted: Epoch,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kafka(#[from] PublishError),
    #[error("no runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

impl DeadLetters {
    /// Begins after what the store says was delivered.
    pub fn start(
        topic: String,
        kafka: KafkaPublisherConfig,
        store: StoreTarget,
    ) -> std::io::Result<(DeadLetters, JoinHandle<()>)> {
        let shared = Arc::<Shared>::default();
        let delivery = Delivery { topic, kafka, store, shared: shared.clone() };
        let thread = std::thread::Builder::new().name("dead letters".into()).spawn(move || delivery.run())?;
        Ok((DeadLetters { shared, thread: thread.thread().clone(), noted: 0 }, thread))
    }

    /// Some were committed.
    pub fn committed(&self) {
        self.thread.unpark();
    }

    /// All of epochs before this are delivered, if that is news since it was asked last.
    pub fn news(&mut self) -> Option<Epoch> {
        let delivered = self.shared.delivered.load(Ordering::Acquire);
        (delivered > std::mem::replace(&mut self.noted, delivered)).then_some(delivered)
    }

    /// There will be no more: it ends with what there is, or at the first thing that fails.
    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Delivery {
    topic: String,
    kafka: KafkaPublisherConfig,
    store: StoreTarget,
    shared: Arc<Shared>,
}

/// What it works with, until something fails. Its own, so that it depends on nobody's end.
struct Ends {
    runtime: Runtime,
    reader: Reader,
    publisher: KafkaPublisher,
}

impl Delivery {
    fn run(self) {
        let (mut said, mut ends) = (None::<Instant>, None);
        loop {
            // What there is by then is delivered.
            let stopped = self.shared.stopped.load(Ordering::Acquire);
            match self.deliver(&mut ends) {
                Ok(true) => said = None,
                _ if stopped => return,
                Ok(false) => std::thread::park_timeout(LOOK),
                Err(trouble) => {
                    ends = None;
                    if said.is_none_or(|at| at.elapsed() >= REMIND) {
                        tracing::warn!(topic = self.topic, "dead letters wait in the store: {trouble}");
                        said = Some(Instant::now());
                    }
                    std::thread::park_timeout(AGAIN);
                }
            }
        }
    }

    fn open(&self) -> Result<Ends, Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reader = runtime.block_on(Reader::open(self.store.clone()))?;
        Ok(Ends { runtime, reader, publisher: KafkaPublisher::new(self.kafka.clone())? })
    }

    /// Delivers a page. Whether there was one.
    fn deliver(&self, ends: &mut Option<Ends>) -> Result<bool, Trouble> {
        let Ends { runtime, reader, publisher } = match ends {
            Some(ends) => ends,
            None => ends.insert(self.open()?),
        };
        let mut upper = self.shared.delivered.load(Ordering::Acquire);
        if upper == 0 {
            upper = runtime.block_on(reader.dead_letters_upper())?;
            self.shared.delivered.store(upper, Ordering::Release);
        }
        // Whole epochs, so that where it has come to is an epoch.
        let letters = runtime.block_on(reader.dead_letters_from(upper, PAGE, MOST))?;
        let Some(last) = letters.last().map(|letter| letter.epoch) else { return Ok(false) };
        for sent in &letters {
            let (headers, key) = (headers(sent), sent.letter.cursor.to_string());
            publisher.send_with(&self.topic, key.as_bytes(), &headers, &sent.letter.original)?;
        }
        publisher.flush(WITHIN)?;
        self.shared.delivered.store(last + 1, Ordering::Release);
        Ok(true)
    }
}

fn headers(StoredLetter { letter, epoch, length }: &StoredLetter) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("marea-reason", letter.reason.to_string()),
        ("marea-field", letter.field.clone()),
        ("marea-value", letter.value.clone()),
        ("marea-detail", letter.detail.clone()),
        ("marea-epoch", epoch.to_string()),
    ];
    if *length > letter.original.len() as u64 {
        headers.push(("marea-length", length.to_string()));
    }
    headers
}

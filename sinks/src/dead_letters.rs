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
//! `marea-reason`, `marea-field`, `marea-value`, `marea-detail`, `marea-epoch`.

use crate::publish::PublishError;
use crate::publish::kafka::{KafkaPublisher, KafkaPublisherConfig};
use crate::store::{Reader, StoreError};
use marea_model::{DeadLetter, Epoch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Letters that are sent before it is waited for their acknowledgements.
const PAGE: usize = 1_000;
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
}

impl DeadLetters {
    /// Begins after what the store says was delivered.
    pub fn start(
        topic: String,
        kafka: KafkaPublisherConfig,
        reader: Reader,
        runtime: Handle,
    ) -> std::io::Result<(DeadLetters, JoinHandle<()>)> {
        let shared = Arc::<Shared>::default();
        let delivery = Delivery { topic, kafka, reader, runtime, shared: shared.clone() };
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
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

struct Delivery {
    topic: String,
    kafka: KafkaPublisherConfig,
    reader: Reader,
    runtime: Handle,
    shared: Arc<Shared>,
}

impl Delivery {
    fn run(self) {
        let mut said = None::<Instant>;
        let mut publisher = None;
        loop {
            // What there is by then is delivered.
            let stopped = self.shared.stopped.load(Ordering::Acquire);
            match self.deliver(&mut publisher) {
                Ok(true) => said = None,
                _ if stopped => return,
                Ok(false) => std::thread::park_timeout(LOOK),
                Err(trouble) => {
                    publisher = None;
                    if said.is_none_or(|at| at.elapsed() >= REMIND) {
                        tracing::warn!(topic = self.topic, "dead letters wait in the store: {trouble}");
                        said = Some(Instant::now());
                    }
                    std::thread::park_timeout(AGAIN);
                }
            }
        }
    }

    /// Delivers a page. Whether there was one.
    fn deliver(&self, publisher: &mut Option<KafkaPublisher>) -> Result<bool, Trouble> {
        let mut upper = self.shared.delivered.load(Ordering::Acquire);
        if upper == 0 {
            upper = self.runtime.block_on(self.reader.dead_letters_upper())?;
            self.shared.delivered.store(upper, Ordering::Release);
        }
        // Whole epochs, so that where it has come to is an epoch.
        let letters = self.runtime.block_on(self.reader.dead_letters_from(upper, PAGE))?;
        let Some((_, last)) = letters.last() else { return Ok(false) };
        let publisher = match publisher {
            Some(publisher) => publisher,
            None => publisher.insert(KafkaPublisher::new(self.kafka.clone())?),
        };
        for (letter, epoch) in &letters {
            let (headers, key) = (headers(letter, *epoch), letter.cursor.to_string());
            publisher.send_with(&self.topic, key.as_bytes(), &headers, &letter.original)?;
        }
        publisher.flush(WITHIN)?;
        self.shared.delivered.store(last + 1, Ordering::Release);
        Ok(true)
    }
}

fn headers(letter: &DeadLetter, epoch: Epoch) -> [(&'static str, String); 5] {
    [
        ("marea-reason", letter.reason.to_string()),
        ("marea-field", letter.field.clone()),
        ("marea-value", letter.value.clone()),
        ("marea-detail", letter.detail.clone()),
        ("marea-epoch", epoch.to_string()),
    ]
}

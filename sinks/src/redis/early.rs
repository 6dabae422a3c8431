//! Values that are not committed yet and could not go the shortest way ([`super::direct`]): sent as they come, without waiting
//! for the answers to those before.
//!
//! One server carries out what one connection sends in its order, so that a committed value comes behind these early ones
//! of its epoch and those before; what comes in another order the script that writes refuses.

use super::link::{Answers, Link};
use super::shell::{BATCH, Shell, Trouble};
use crate::metrics::Stage;
use redis::{RedisResult, Value};
use std::collections::{BTreeSet, VecDeque};
use std::future::{pending, poll_fn, ready};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use tokio::task::unconstrained;

/// Early values are sent without waiting for answers until so many are outstanding: then they are sent together.
const POSTED: usize = 4;

/// Early values that were sent.
pub(super) struct Posted {
    answers: Answers,
    /// When the epoch of the oldest of them closed.
    since: Option<Instant>,
}

/// Answers to early values, and when the epoch of the oldest of these closed.
pub(super) type Answered = (RedisResult<Vec<Value>>, Option<Instant>);

/// The oldest answers that are outstanding, once they have come.
pub(super) async fn answered(posted: &mut VecDeque<Posted>) -> Answered {
    let Some(oldest) = posted.front_mut() else { return pending().await };
    let answers = oldest.answers.as_mut().await;
    (answers, posted.pop_front().and_then(|posted| posted.since))
}

/// Whether answers have come. Sends their commands if that was not done before.
async fn look(answers: &mut Answers) -> Poll<RedisResult<Vec<Value>>> {
    poll_fn(|context| Poll::Ready(answers.as_mut().poll(context))).await
}

impl Shell {
    /// Sends what has become early since, if not too much of that is outstanding.
    pub(super) async fn early(&mut self, link: &mut Link) -> Result<(), Trouble> {
        while let Some(oldest) = self.posted.front_mut() {
            let Poll::Ready(answers) = look(&mut oldest.answers).await else { break };
            let since = self.posted.pop_front().and_then(|posted| posted.since);
            self.judge_early((answers, since))?;
        }
        if self.posted.len() >= POSTED {
            // Whoever waits for answers comes back with each.
            return Ok(());
        }
        // A statement of its own: it ends with the lock.
        let early = self.shared.pending().take_early(Instant::now());
        let (head, mut since) = (self.head(), early.since);
        self.gauges.early.with_label_values(&["queued"]).inc_by(early.entries.len() as u64);
        self.index(link, early.entries.iter().map(|entry| entry.key).collect(), &BTreeSet::new()).await?;
        for batch in early.entries.chunks(BATCH) {
            let bodies = self.bodies(head.generation);
            let commands = batch.iter().map(|entry| bodies.entry(entry, true, false, head.epoch));
            let commands = commands.map(|write| write.command(&self.scripts, false)).collect();
            // The first look sends them, whatever else this task has done since it was woken.
            let mut answers: Answers = Box::pin(unconstrained(link.all(commands)));
            if let Poll::Ready(answered) = look(&mut answers).await {
                answers = Box::pin(ready(answered));
            }
            self.posted.push_back(Posted { answers, since: since.take() });
            // Of many, no more are on their way than the connection takes at once; and to a Cluster, what comes later might
            // be carried out before them.
            let most = if let Link::Cluster(_) = link { 0 } else { POSTED };
            while self.posted.len() > most {
                let answered = answered(&mut self.posted).await;
                self.judge_early(answered)?;
            }
        }
        Ok(())
    }

    pub(super) fn judge_early(&mut self, (answers, since): Answered) -> Result<(), Trouble> {
        self.judge(&answers?, std::iter::repeat(None), self.head())?;
        self.took(Stage::Early, since);
        Ok(())
    }

    /// Waits for answers, which are to be judged first; what becomes early meanwhile is sent, and what came of that is
    /// given too.
    pub(super) async fn meanwhile(
        &mut self,
        link: &mut Link,
        mut answers: Answers,
    ) -> (RedisResult<Vec<Value>>, Result<(), Trouble>) {
        let shared = Arc::clone(&self.shared);
        loop {
            let early = tokio::select! {
                biased;
                answers = &mut answers => return (answers, Ok(())),
                answered = answered(&mut self.posted) => match self.judge_early(answered) {
                    Ok(()) => self.early(link).await,
                    trouble => trouble,
                },
                () = shared.early.notified() => self.early(link).await,
            };
            if early.is_err() {
                return (answers.await, early);
            }
        }
    }
}

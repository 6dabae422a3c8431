//! The watch: what is asked when, of whom, and for how long it is waited for.

use super::connection::{Connection, Count, Heard, hear, within};
use super::state::{Range, State};
use super::{Answered, Asked, EtcdConfig, EtcdError, Input, Sender, Snapshot, Stop, Timing};
use crate::send;
use marea_model::ConfigUpdate;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

/// How often somebody looks whether it is time to stop, or to say that nobody answers.
const STEP: Duration = Duration::from_millis(20);
/// Between two tries of all endpoints, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why a session is over.
enum End {
    /// It was asked to, or nobody listens any more.
    Stopped,
    /// The member is as good as any, but what is known has to be read again.
    Again(String),
    /// The member does not answer as it should.
    Broken(EtcdError),
}

/// An answer that is awaited.
type Awaited<T> = Pin<Box<dyn Future<Output = Result<Result<T, etcd_client::Error>, EtcdError>>>>;

/// A question on its way.
struct Question<T> {
    asked: Asked,
    /// The greatest revision known when it was asked.
    floor: i64,
    answer: Awaited<T>,
}

async fn answer<T>(question: &mut Option<Question<T>>) -> Result<Result<T, etcd_client::Error>, EtcdError> {
    match question {
        Some(question) => question.answer.as_mut().await,
        None => std::future::pending().await,
    }
}

pub(super) struct Shell<'a> {
    config: &'a EtcdConfig,
    timing: &'a Timing,
    state: State,
    answered: &'a Answered,
    out: &'a Sender,
    stop: &'a Stop,
    /// When the last read was sent whose answer shows that the tree is current.
    fresh: Instant,
    /// Whether a watch may go on from what is known, without reading all keys first.
    trusted: bool,
    /// Whether the session has come as far as a standing watch.
    lived: bool,
}

impl<'a> Shell<'a> {
    pub(super) fn new(
        config: &'a EtcdConfig,
        timing: &'a Timing,
        from: Snapshot,
        answered: &'a Answered,
        out: &'a Sender,
        stop: &'a Stop,
    ) -> Self {
        let trusted = from.asked.at.elapsed() < timing.stale_after;
        answered.set(from.asked.wall);
        // Who has just been started had no chance to ask yet.
        let fresh = if trusted { from.asked.at } else { Instant::now() };
        Shell { config, timing, state: State::new(from.range), answered, out, stop, fresh, trusted, lived: false }
    }

    /// Until it is stopped, or nobody listens any more.
    pub(super) async fn run(mut self) {
        let endpoints = &self.config.endpoints;
        let (mut at, mut failures, mut said) = (0, 0, String::new());
        let mut pause = PAUSES.0;
        loop {
            let endpoint = &endpoints[at % endpoints.len()];
            let end = self.session(endpoint).await;
            self.trusted = false;
            if std::mem::take(&mut self.lived) {
                (failures, pause) = (0, PAUSES.0);
                said.clear();
            }
            match end {
                End::Stopped => return,
                End::Again(why) => tracing::info!(endpoint, why, "the live configuration is read again"),
                End::Broken(error) => {
                    let error = error.to_string();
                    if error != said {
                        tracing::warn!(error, "etcd does not answer; trying on");
                        said = error;
                    }
                    at += 1;
                    failures += 1;
                }
            }
            if failures > 0 && failures % endpoints.len() == 0 {
                pause = PAUSES.1.min(2 * pause);
            }
            let wait = async {
                tokio::time::sleep(if failures < endpoints.len() { STEP } else { pause }).await;
                Ok(())
            };
            if self.minding(wait).await.is_err() {
                return;
            }
        }
    }

    /// One connection, until it is over.
    async fn session(&mut self, endpoint: &str) -> End {
        match self.try_session(endpoint).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_session(&mut self, endpoint: &str) -> Result<std::convert::Infallible, End> {
        let patience = self.timing.answer;
        let broken = |what| move |error| End::Broken(EtcdError::asked(endpoint, what, error));
        let connection = self.minding(Connection::open(self.config, endpoint, patience)).await?;
        if !self.trusted || self.state.is_stale() {
            let mut question = self.ask_range(&connection, endpoint);
            let range = self.minding(question.answer.as_mut()).await?.map_err(broken("read all keys"))?;
            self.take_range(range, &question)?;
        }
        let watch = within(patience, endpoint, "watch", connection.watch(self.state.next()));
        let mut stream = self.minding(watch).await?.map_err(broken("watch"))?;
        loop {
            let heard = self.minding(within(patience, endpoint, "watch", hear(&mut stream))).await?;
            match heard.map_err(broken("watch"))? {
                Heard::Created => break,
                heard => self.take_heard(heard, endpoint)?,
            }
        }
        self.lived = true;

        let (mut count, mut range): (Option<Question<Count>>, Option<Question<Range>>) = (None, None);
        let (mut next_count, mut next_range) = (Instant::now(), Instant::now() + self.timing.recheck);
        // Whether the last count, or the last modification, was another one, and nothing has been heard since that would explain it.
        let mut differs = false;
        let mut step = interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = hear(&mut stream) => {
                    differs = false;
                    self.take_heard(heard.map_err(broken("watch"))?, endpoint)?;
                }
                answer = answer(&mut count) => {
                    let answer = answer.map_err(End::Broken)?.map_err(broken("count keys"))?;
                    if let Some(question) = count.take() {
                        if !self.state.continues(answer.cluster, answer.revision, question.floor) {
                            return Err(End::Again(format!(
                                "another history: cluster {:x} is at revision {} now", answer.cluster, answer.revision
                            )));
                        }
                        self.refreshed(question.asked);
                        let (found, known) =
                            ((answer.keys, answer.modified), (self.state.standing(), self.state.modified()));
                        let differed = std::mem::replace(&mut differs, found != known);
                        if differs && differed {
                            tracing::warn!(?found, ?known, "etcd has lost an event; reading all keys");
                            next_range = Instant::now();
                        }
                    }
                }
                answer = answer(&mut range) => {
                    let answer = answer.map_err(End::Broken)?.map_err(broken("read all keys"))?;
                    if let Some(question) = range.take() {
                        differs = false;
                        self.take_range(answer, &question)?;
                        next_range = Instant::now() + self.timing.recheck;
                    }
                }
                () = sleep_until(next_count.into()), if count.is_none() => {
                    count = Some(self.question(own(endpoint, patience, "count keys", connection.clone().count())));
                    next_count = Instant::now() + self.timing.ping;
                }
                () = sleep_until(next_range.into()), if range.is_none() => {
                    range = Some(self.ask_range(&connection, endpoint));
                }
                _ = step.tick() => {
                    self.look()?;
                    // It was this thread that was held up, and not the server.
                    if self.state.is_stale() && range.is_none() {
                        next_range = Instant::now();
                    }
                }
            }
        }
    }

    fn question<T>(&self, answer: Awaited<T>) -> Question<T> {
        Question { asked: Asked::now(), floor: self.state.seen(), answer }
    }

    fn ask_range(&self, connection: &Connection, endpoint: &str) -> Question<Range> {
        self.question(own(endpoint, self.timing.range, "read all keys", connection.clone().range()))
    }

    fn take_range(&mut self, range: Range, question: &Question<Range>) -> Result<(), End> {
        // Held up on the way: what it says is as old as what is known.
        if question.asked.at.elapsed() >= self.timing.stale_after {
            return Err(End::Again("the answer was too old".to_owned()));
        }
        let another = self.lived && !self.state.continues(range.cluster, range.revision, question.floor);
        let updates = self.state.range(range, question.floor);
        self.refreshed(question.asked);
        self.say(updates)?;
        // The watch that stands waits for revisions of the old history.
        if another { Err(End::Again("another history".to_owned())) } else { Ok(()) }
    }

    fn take_heard(&mut self, heard: Heard, endpoint: &str) -> Result<(), End> {
        match heard {
            Heard::Created => Ok(()),
            Heard::Events(events) => self.state.events(events).into_iter().try_for_each(|updates| self.say(updates)),
            Heard::Cancelled(why) if why.contains("compacted") => Err(End::Again(why)),
            Heard::Cancelled(cause) => {
                let (endpoint, what) = (endpoint.to_owned(), "watch");
                Err(End::Broken(if cause.contains("permission denied") {
                    EtcdError::Denied { endpoint, what, cause }
                } else {
                    EtcdError::Failed { endpoint, what, cause }
                }))
            }
        }
    }

    fn refreshed(&mut self, asked: Asked) {
        self.fresh = self.fresh.max(asked.at);
        self.answered.set(asked.wall);
    }

    /// Waits for `work`, and looks after what does not wait meanwhile.
    async fn minding<T>(&mut self, work: impl Future<Output = Result<T, EtcdError>>) -> Result<T, End> {
        let mut work = pin!(work);
        let mut step = interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = &mut work => return done.map_err(End::Broken),
                _ = step.tick() => self.look()?,
            }
        }
    }

    fn look(&mut self) -> Result<(), End> {
        if self.stop.is_stopped() {
            return Err(End::Stopped);
        }
        if self.fresh.elapsed() >= self.timing.stale_after && !self.state.is_stale() {
            tracing::error!(
                "etcd has not answered for {:?}: entries are blocked until it does",
                self.timing.stale_after
            );
            let updates = self.state.silence();
            self.say(updates)?;
        }
        Ok(())
    }

    fn say(&self, updates: Vec<ConfigUpdate>) -> Result<(), End> {
        if updates.is_empty() {
            return Ok(());
        }
        tracing::info!(revision = self.state.seen(), changes = updates.len(), "live configuration");
        send(self.out, self.stop, Input::Config(updates)).map_err(|_| End::Stopped)
    }
}

/// An answer that borrows nothing.
fn own<T: 'static>(
    endpoint: &str,
    patience: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, etcd_client::Error>> + 'static,
) -> Awaited<T> {
    let endpoint = endpoint.to_owned();
    Box::pin(async move { within(patience, &endpoint, what, work).await })
}

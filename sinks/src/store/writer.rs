//! The one writer.

use super::behind::{self, Behind};
use super::cell::Cell;
use super::ledger::{Ledger, Plan};
use super::link::{Link, Named};
use super::reader::Reader;
use super::rows::batches;
use super::tables::Batch;
use super::verify::{self, Difference};
use super::{AuditEntry, Committed, LOGIC_VERSION, Standing, StoreError, StoreTarget};
use super::{load, postgres, restore, schema, sqlite, unacknowledged};
use crate::failpoint;
use marea_model::live::ConfigUpdate;
use marea_model::output::{ClosedEpoch, Key};
use marea_model::{Epoch, Nanos, Partition, Restoration, Timeframe};
use std::fs::File;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long PostgreSQL may take to see that a writer has left.
const LEAVING: Duration = Duration::from_secs(2);

/// How often a standby looks whether the store is free.
const STANDBY: Duration = Duration::from_millis(250);

/// How long PostgreSQL may take to commit, beside a millisecond a row. SQLite needs no limit: it is in this process.
const COMMIT: Duration = Duration::from_secs(30);

/// How many connections the feed's queries have.
const READERS: u32 = 4;

/// The store's one writer.
#[derive(Debug)]
pub struct Store {
    pub(super) target: StoreTarget,
    pub(super) named: Named,
    /// None after a failure: the next call connects again and reads where the store stands.
    pub(super) link: Option<Link>,
    /// SQLite's lock. PostgreSQL's belongs to the connection.
    _lock: Option<File>,
    reader: Reader,
    pub(super) ledger: Ledger,
    behind: Behind,
    /// Changes of the configuration that wait for the commit of their epoch.
    config: Vec<(Epoch, ConfigUpdate)>,
    /// Messages that were acknowledged, to be forgotten in the next commit.
    acknowledged: Vec<(Partition, Range<u64>)>,
    /// All dead letters of epochs before this are delivered, which the store is not told yet.
    delivered: Option<Epoch>,
    /// What commits added to the audit that failed, and had landed after all: the next one that succeeds returns it.
    landed: Vec<AuditEntry>,
    /// How long PostgreSQL may take to commit, beside a millisecond a row.
    patience: Duration,
}

/// A connection, and what must be kept with it.
pub(crate) type Locked = (Link, Option<File>);

/// What a store is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// To go on: takes it over, and refuses what another logic computed.
    ToWrite,
    /// To compare, whatever logic computed it.
    ToRebuild,
}

/// A connection with the writer's lock. None if another one has it for longer than `wait`.
pub(crate) async fn locked(target: &StoreTarget, named: &Named, wait: Duration) -> Result<Option<Locked>, StoreError> {
    let (began, mut said) = (Instant::now(), false);
    // PostgreSQL's is asked for on the connection that is to have it.
    let mut asking = None;
    loop {
        match target {
            StoreTarget::Sqlite(path) => {
                if let Some(lock) = sqlite::lock(path, named)? {
                    let link = sqlite::connect(path).await;
                    return Ok(Some((link.map_err(|error| sqlite::open_error(named.error(&error)))?, Some(lock))));
                }
            }
            StoreTarget::Postgres { url, .. } => {
                let mut link = match asking.take() {
                    Some(link) => link,
                    None => postgres::connect(url, named).await?,
                };
                if postgres::lock(&mut link, named).await? {
                    return Ok(Some((link, None)));
                }
                asking = Some(link);
            }
        }
        if began.elapsed() >= wait {
            return Ok(None);
        }
        if !std::mem::replace(&mut said, true) {
            tracing::info!(store = %named.store, "another process has the store: waiting until it is gone");
        }
        tokio::time::sleep(STANDBY).await;
    }
}

impl Named {
    pub(crate) fn of(target: &StoreTarget) -> Self {
        let is_postgres = matches!(target, StoreTarget::Postgres { .. });
        Named { store: target.to_string().into(), is_postgres }
    }
}

impl Store {
    /// Opens the store, makes it if there is none, migrates and checks it, and takes it over (generation + 1). While
    /// another process has it, waits; drop the future to stop waiting.
    ///
    /// Every error is a reason to refuse to start, and leaves the process that has the store its own; only a PostgreSQL
    /// that does not answer may be [tried again](StoreError::retryable).
    pub async fn open(target: impl Into<StoreTarget>) -> Result<Store, StoreError> {
        let target = target.into();
        let named = Named::of(&target);
        match locked(&target, &named, Duration::MAX).await? {
            Some(locked) => Store::take(target, named, locked, Opening::ToWrite).await,
            None => Err(StoreError::Busy { store: named.store }),
        }
    }

    /// The same without waiting: none while another process, or another `Store` of this one, has it.
    pub async fn try_open(target: impl Into<StoreTarget>) -> Result<Option<Store>, StoreError> {
        let target = target.into();
        let named = Named::of(&target);
        match locked(&target, &named, Duration::ZERO).await? {
            Some(locked) => Store::take(target, named, locked, Opening::ToWrite).await.map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn take(
        target: StoreTarget,
        named: Named,
        (mut link, lock): Locked,
        opening: Opening,
    ) -> Result<Store, StoreError> {
        for line in schema_of(&target, &mut link, &named).await? {
            tracing::info!(store = %named.store, "{line}");
        }
        schema::check_tables(&mut link, &named).await?;
        postgres::check_durability(&mut link, &named).await?;
        let ledger = take_over(&mut link, &named, opening).await?;
        failpoint::pass("restore.taken");
        let Standing { generation, last_seq, upper, .. } = *ledger.standing();
        let reader = Reader::new(&target, named.clone(), READERS, generation, last_seq)?;
        let (link, behind, landed) = (Some(link), Behind::new(upper), Vec::new());
        let (config, acknowledged) = (Vec::new(), Vec::new());
        Ok(Store {
            target,
            named,
            link,
            _lock: lock,
            reader,
            ledger,
            behind,
            config,
            acknowledged,
            delivered: None,
            landed,
            patience: COMMIT,
        })
    }

    /// Where the run that a store holds stands: its upper. None if there is no store, or no run in it yet. Only reads:
    /// takes nothing over, makes and migrates nothing.
    pub async fn peek(target: impl Into<StoreTarget>) -> Result<Option<Epoch>, StoreError> {
        let target = target.into();
        let named = Named::of(&target);
        let mut link = match &target {
            StoreTarget::Sqlite(path) => {
                let unopened =
                    |error: std::io::Error| StoreError::Open { store: named.store.clone(), detail: error.to_string() };
                if !path.try_exists().map_err(unopened)? {
                    return Ok(None);
                }
                let link = sqlite::connect_to_read(path).await;
                link.map_err(|error| sqlite::open_error(named.error(&error)))?
            }
            StoreTarget::Postgres { url, .. } => postgres::connect(url, &named).await?,
        };
        let upper = upper(&mut link, &named).await.map_err(|error| opening(&named, error));
        link.close().await.map_err(|error| opening(&named, named.error(&error)))?;
        Ok(upper?.filter(|upper| *upper > 0))
    }

    /// Which store it is.
    pub fn target(&self) -> &StoreTarget {
        &self.target
    }

    /// Where it stands.
    pub fn standing(&self) -> &Standing {
        self.ledger.standing()
    }

    /// Read queries for the feed.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Changes of the live configuration that took effect in `epoch`: they are written in its transaction.
    pub fn note_config(&mut self, epoch: Epoch, updates: &[ConfigUpdate]) {
        self.config.extend(updates.iter().map(|update| (epoch, update.clone())));
    }

    /// The broker will not deliver these committed messages again: the next commit forgets what they are known by.
    pub fn note_acknowledged(&mut self, ranges: Vec<(Partition, Range<u64>)>) {
        self.acknowledged.extend(ranges);
    }

    /// All that a restart begins with, as of the last committed epoch; none if there is none. `base` is the timeframe of
    /// the bars that ticks make.
    pub async fn restoration(&mut self, base: Timeframe) -> Result<Option<Restoration>, StoreError> {
        self.restored(base, false).await
    }

    /// The same where records that a restart would read once more are lost, and that was accepted: nothing is read again.
    /// Every bar stands as it is, and everything up to the newest tick of any partition counts as sealed, so that no bar is
    /// made of a part of its ticks and nothing counts twice: what comes for it is `late`, only an amend changes it. What
    /// waited for a target or a seal goes on being counted as held.
    pub async fn restoration_as_it_stands(&mut self, base: Timeframe) -> Result<Option<Restoration>, StoreError> {
        self.restored(base, true).await
    }

    /// The next commit notes that the dead letters of all epochs before this are delivered.
    pub fn note_delivered(&mut self, upper: Epoch) {
        self.delivered = Some(upper);
    }

    async fn restored(&mut self, base: Timeframe, as_it_stands: bool) -> Result<Option<Restoration>, StoreError> {
        let mut link = self.connected().await?;
        let restoration = restore::restoration(&mut link, &self.named, &self.ledger, base, as_it_stands).await?;
        self.link = Some(link);
        Ok(restoration)
    }

    /// Compares the whole state, as the dataflow computed it again at the last committed epoch, with what stands, for
    /// unsealed keys. Every difference is an alarm, but see [`Difference::was_due`]; the next commit mends it, with an
    /// audit row where it is a recommendation or verdict, and metrics and indicators follow.
    ///
    /// `closed` has every row of the state once, as an upsert; rows that it does not have should not stand.
    pub async fn verify(&mut self, closed: &ClosedEpoch) -> Result<Vec<Difference>, StoreError> {
        let mut link = self.connected().await?;
        let (differences, repairs) = verify::compare(&mut link, &self.named, &self.ledger, closed).await?;
        self.link = Some(link);
        failpoint::pass("restore.compared");
        let (late, repairs): (Vec<_>, Vec<_>) = repairs.into_iter().partition(|(key, _)| behind::is_late(key));
        // What is mended behind is found again after a kill.
        let opens = late.iter().filter_map(|(key, _)| match key {
            Key::Indicator(_, _, open_time, _) => Some(*open_time),
            _ => None,
        });
        let low = &mut self.ledger.standing.indicators_low;
        *low = opens.fold(*low, Nanos::min);
        self.behind.repair(late.into_iter(), self.ledger.standing().upper);
        self.ledger.repair(repairs);
        Ok(differences)
    }

    /// Commits these epochs in one transaction, empty ones too. They rise strictly, from `standing().upper`.
    ///
    /// After an error that is [retryable](StoreError::retryable), call again with the same epochs, and more after them
    /// if there are more: those that had been committed after all are not written twice, and their audit entries are
    /// returned like the others.
    pub async fn commit(&mut self, epochs: &[ClosedEpoch]) -> Result<Committed, StoreError> {
        let mut epochs = epochs;
        // Taken out before the first await: a commit that is dropped half-way counts as failed.
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                let (mut link, reread) = self.reconnect().await?;
                let (mine, found) = (self.ledger.standing(), reread.standing());
                if found.upper > mine.upper {
                    let landed = audit_after(&mut link, &self.named, mine.last_seq).await?;
                    self.landed.extend(landed);
                    self.config.retain(|(epoch, _)| *epoch >= found.upper);
                }
                self.ledger.replace(reread);
                let upper = self.ledger.standing().upper;
                let landed;
                (landed, epochs) = epochs.split_at(epochs.partition_point(|closed| closed.epoch < upper));
                self.behind.gather(landed);
                link
            }
        };
        let mut plan = match self.ledger.plan(epochs) {
            Ok(plan) => plan,
            Err(error) => {
                // Nothing was begun.
                self.link = Some(link);
                return Err(error);
            }
        };
        let late = self.behind.with(self.ledger.standing(), epochs);
        (plan.standing.metrics_upper, plan.standing.indicators_low) = late;
        let upper = plan.standing.upper;
        let config = &self.config[..self.config.partition_point(|(epoch, _)| *epoch < upper)];
        let noted = Noted { config, acknowledged: &self.acknowledged, delivered: self.delivered };
        let writing = write(&mut link, &self.named, self.ledger.standing(), &plan, noted);
        if self.named.is_postgres {
            let limit = self.patience + Duration::from_millis(plan.rows.len() as u64);
            postgres::within(limit, &self.named, "committing", async { Ok(writing.await) }).await??;
        } else {
            writing.await?;
        }
        let accepted = plan.accepted();
        self.link = Some(link);
        self.config.retain(|(epoch, _)| *epoch >= upper);
        self.acknowledged.clear();
        self.delivered = None;
        let mut committed = self.ledger.accept(accepted);
        self.behind.gather(epochs);
        if !self.landed.is_empty() {
            let audit = std::mem::take(&mut committed.audit);
            committed.audit = std::mem::take(&mut self.landed);
            committed.audit.extend(audit);
        }
        Ok(committed)
    }

    /// Writes a chunk of the metrics and indicators that are due, behind the epochs that were committed; as many as it
    /// takes where too many wait. Whether there is more to write at once. For PostgreSQL a chunk takes some 10 ms.
    ///
    /// After an error that is [retryable](StoreError::retryable), call again: the chunk is not lost.
    pub async fn follow(&mut self) -> Result<bool, StoreError> {
        while self.behind.len() > behind::MOST {
            self.write_behind(behind::BULK).await?;
        }
        if !self.behind.is_due() {
            return Ok(false);
        }
        self.write_behind(behind::CHUNK).await?;
        Ok(self.behind.is_under_way())
    }

    /// Writes all metrics and indicators that are due.
    pub async fn settle(&mut self) -> Result<(), StoreError> {
        while self.behind.len() > 0 {
            self.write_behind(behind::BULK).await?;
        }
        Ok(())
    }

    async fn write_behind(&mut self, rows: usize) -> Result<(), StoreError> {
        let mut link = self.connected().await?;
        let writing = self.behind.write(&mut link, &self.named, self.ledger.standing(), rows);
        let late = if self.named.is_postgres {
            let limit = self.patience + Duration::from_millis(rows as u64);
            postgres::within(limit, &self.named, "committing", async { Ok(writing.await) }).await??
        } else {
            writing.await?
        };
        self.link = Some(link);
        (self.ledger.standing.metrics_upper, self.ledger.standing.indicators_low) = late;
        Ok(())
    }

    /// Closes the store as it is, and lets another process take it; SQLite folds its log into the file.
    pub async fn close(self) -> Result<(), StoreError> {
        self.reader.close().await;
        match self.link {
            Some(link) => link.close().await.map_err(|error| self.named.error(&error)),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn link(&mut self) -> &mut Link {
        self.link.as_mut().unwrap()
    }

    #[cfg(test)]
    pub(crate) fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    #[cfg(test)]
    pub(crate) fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    #[cfg(test)]
    pub(crate) fn forget_link(&mut self) {
        self.link = None;
    }

    /// The connection; a new one after a failure.
    pub(super) async fn connected(&mut self) -> Result<Link, StoreError> {
        if let Some(link) = self.link.take() {
            return Ok(link);
        }
        let (link, reread) = self.reconnect().await?;
        if reread.standing().upper != self.ledger.standing().upper {
            let detail = "a commit whose outcome was unknown has landed: commit again first".to_owned();
            return Err(StoreError::Unavailable { store: self.named.store.clone(), detail });
        }
        self.ledger.replace(reread);
        Ok(link)
    }

    /// A new connection, under the same lock and generation, and what the store holds by now. What the old connection
    /// had begun has ended by then, so that nothing is guessed.
    async fn reconnect(&self) -> Result<(Link, Ledger), StoreError> {
        let named = &self.named;
        let mut link = match &self.target {
            StoreTarget::Sqlite(path) => sqlite::connect(path).await.map_err(|error| named.error(&error))?,
            StoreTarget::Postgres { url, .. } => postgres::connect(url, named).await?,
        };
        link.begin().await.map_err(|error| named.error(&error))?;
        // Waits for the old connection's transaction.
        let reread = load::ledger(&mut link, named, true).await?;
        let (mine, found) = (self.ledger.standing(), reread.standing());
        if found.generation != mine.generation {
            return Err(fenced(mine, found));
        }
        if found.upper < mine.upper {
            return Err(went_back(named, mine, found));
        }
        if named.is_postgres && !postgres::lock(&mut link, named).await? {
            return Err(StoreError::Busy { store: named.store.clone() });
        }
        link.commit().await.map_err(|error| named.error(&error))?;
        Ok((link, reread))
    }
}

pub(crate) fn fenced(mine: &Standing, found: &Standing) -> StoreError {
    StoreError::Fenced { mine: mine.generation, found: found.generation, upper: found.upper }
}

fn went_back(named: &Named, mine: &Standing, found: &Standing) -> StoreError {
    StoreError::WentBack { store: named.store.clone(), mine: mine.upper, found: found.upper }
}

/// Makes and migrates a store, and says what was done. For PostgreSQL also what depends on the server: see
/// `migrations/postgres`. May be repeated.
pub async fn migrate(target: impl Into<StoreTarget>) -> Result<Vec<String>, StoreError> {
    let target = target.into();
    let named = Named::of(&target);
    let Some((mut link, lock)) = locked(&target, &named, LEAVING).await? else {
        return Err(StoreError::Busy { store: named.store });
    };
    let mut done = schema::migrate(&mut link, &named).await.map_err(|error| opening(&named, error))?;
    if done.is_empty() {
        done.push("the schema is up to date".to_owned());
    }
    if let StoreTarget::Postgres { url, chunks } = &target {
        done.extend(postgres::extras(url, *chunks, &named).await?);
    }
    schema::check_tables(&mut link, &named).await?;
    link.close().await.map_err(|error| named.error(&error))?;
    drop(lock);
    Ok(done)
}

/// Migrates what is behind; does nothing, and needs no right to, where nothing is.
async fn schema_of(target: &StoreTarget, link: &mut Link, named: &Named) -> Result<Vec<String>, StoreError> {
    let mut done = schema::migrate(link, named).await.map_err(|error| opening(named, error))?;
    if let (StoreTarget::Postgres { url, chunks }, false) = (target, done.is_empty()) {
        done.extend(postgres::extras(url, *chunks, named).await?);
    }
    Ok(done)
}

pub(crate) fn opening(named: &Named, error: StoreError) -> StoreError {
    if named.is_postgres { error } else { sqlite::open_error(error) }
}

/// Checks that the store is whole, and only then raises its generation, unless it is only to be compared. One
/// transaction: nobody commits in between.
async fn take_over(link: &mut Link, named: &Named, opening: Opening) -> Result<Ledger, StoreError> {
    let error = |error: sqlx::Error| named.error(&error);
    link.begin().await.map_err(error)?;
    let mut ledger = load::ledger(link, named, true).await?;
    if opening == Opening::ToWrite {
        load::upper(link, named).await?;
    }
    check_upper(link, named, ledger.standing()).await?;
    if opening == Opening::ToWrite {
        ledger.standing.generation += 1;
        let arguments: [Cell; 2] = [ledger.standing.generation.into(), LOGIC_VERSION.into()];
        let sql = "UPDATE pipeline SET generation = $1, logic_version = $2 WHERE id = 1";
        link.execute(sql, &arguments).await.map_err(error)?;
    }
    link.commit().await.map_err(error)?;
    Ok(ledger)
}

/// The pipeline's upper; none in a store that was never migrated.
async fn upper(link: &mut Link, named: &Named) -> Result<Option<Epoch>, StoreError> {
    if schema::check(link, named).await?.0 == 0 {
        return Ok(None);
    }
    load::upper(link, named).await.map(Some)
}

/// Nothing may be in the tables that the pipeline's row does not know of: then a store was restored in part.
async fn check_upper(link: &mut Link, named: &Named, standing: &Standing) -> Result<(), StoreError> {
    let newest = [
        ("audit", "SELECT max(epoch) FROM (SELECT epoch FROM audit ORDER BY seq DESC LIMIT 1) last"),
        ("recommendations", "SELECT max(epoch) FROM recommendations"),
        ("verdicts", "SELECT max(epoch) FROM verdicts"),
        ("config_events", "SELECT max(epoch) FROM config_events"),
    ];
    for (table, sql) in newest {
        let rows = link.rows(named, sql, &[]).await?;
        let epoch = rows.first().map_or(Ok(None), |row| row.optional_int(0)).map_err(|error| named.broken(error))?;
        if let Some(epoch) = epoch.map(i64::cast_unsigned).filter(|epoch| *epoch >= standing.upper) {
            return Err(StoreError::UpperBehind { store: named.store.clone(), upper: standing.upper, table, epoch });
        }
    }
    let rows = link.rows(named, "SELECT coalesce(max(seq), 0) FROM audit", &[]).await?;
    let found = rows.first().map_or(Ok(0), |row| row.unsigned(0)).map_err(|error| named.broken(error))?;
    let expected = standing.last_seq;
    if found == expected {
        Ok(())
    } else {
        Err(StoreError::AuditBroken { store: named.store.clone(), found, expected })
    }
}

async fn audit_after(link: &mut Link, named: &Named, seq: u64) -> Result<Vec<AuditEntry>, StoreError> {
    let (sql, arguments) = load::audit_after(seq, usize::MAX);
    let rows = link.rows(named, sql, &arguments).await?;
    rows.iter().map(load::audit_entry).collect::<Result<_, _>>().map_err(|error| named.broken(error))
}

pub(crate) async fn write_batch(link: &mut Link, named: &Named, batch: &Batch) -> Result<(), StoreError> {
    match link {
        Link::Sqlite(connection) => sqlite::write(connection, batch).await,
        Link::Postgres(session) => postgres::write(session, batch).await,
    }
    .map_err(|error| named.error(&error))
}

const FENCE: &str = "UPDATE pipeline SET upper = $1, last_seq = $2, records_in = $3, accepted = $4, duplicate = $5, \
                     dead = $6, held = $7, unknown_fields = $8, sealed_through = $9, closed_through = $10, \
                     metrics_upper = $11, indicators_low = $12 WHERE id = 1 AND upper = $13 AND generation = $14";

const DELIVERED: &str = "UPDATE pipeline SET dead_letters_upper = $1 WHERE id = 1";

/// What a commit notes beside its plan.
struct Noted<'a> {
    config: &'a [(Epoch, ConfigUpdate)],
    acknowledged: &'a [(Partition, Range<u64>)],
    delivered: Option<Epoch>,
}

/// One transaction.
async fn write(
    link: &mut Link,
    named: &Named,
    before: &Standing,
    plan: &Plan<'_>,
    noted: Noted<'_>,
) -> Result<(), StoreError> {
    let error = |error: sqlx::Error| named.error(&error);
    failpoint::pass("commit.begin");
    link.begin().await.map_err(error)?;
    write_plan(link, named, before, plan, noted.config).await?;
    unacknowledged::forget(link, noted.acknowledged).await.map_err(error)?;
    if let Some(upper) = noted.delivered {
        link.execute(DELIVERED, &[upper.into()]).await.map_err(error)?;
    }
    failpoint::pass("commit.end");
    link.commit().await.map_err(error)?;
    failpoint::pass("commit.unheard");
    Ok(())
}

/// What a plan writes, the fence first, in a transaction that was begun.
pub(crate) async fn write_plan(
    link: &mut Link,
    named: &Named,
    before: &Standing,
    plan: &Plan<'_>,
    config: &[(Epoch, ConfigUpdate)],
) -> Result<(), StoreError> {
    let error = |error: sqlx::Error| named.error(&error);
    let after = &plan.standing;
    let fence: [Cell; 14] = [
        after.upper.into(),
        after.last_seq.into(),
        after.totals.records_in.into(),
        after.totals.accepted.into(),
        after.totals.duplicate.into(),
        after.totals.dead.into(),
        after.totals.held.into(),
        after.totals.unknown_fields.into(),
        after.progress.sealed_through.into(),
        after.progress.closed_through.into(),
        after.metrics_upper.into(),
        after.indicators_low.into(),
        before.upper.into(),
        before.generation.into(),
    ];
    if link.execute(FENCE, &fence).await.map_err(error)? == 0 {
        let found = load::standing(link, named, false).await?;
        let same = found.generation == before.generation;
        return Err(if same { went_back(named, before, &found) } else { fenced(before, &found) });
    }
    failpoint::pass("commit.fenced");
    for batch in batches(plan, config) {
        write_batch(link, named, &batch).await?;
    }
    failpoint::pass("commit.written");
    // What stands before `low` is never asked for again.
    if !plan.lows.is_empty() {
        let lows: Vec<(Cell, Cell)> =
            plan.lows.iter().map(|(partition, low)| (partition.as_str().into(), (*low).into())).collect();
        match link {
            Link::Sqlite(connection) => sqlite::forget(connection, &lows).await.map_err(error)?,
            Link::Postgres(session) => postgres::forget(session, &lows).await.map_err(error)?,
        }
    }
    Ok(())
}

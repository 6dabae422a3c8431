//! A rebuild: what another logic has computed, beside what this one computes from the same input.
//!
//! ```text
//!  sealed base bars, quotes, accounts, amends, configuration ─┐
//!                                                             ├─► computed anew ──► differences ──► swap, if wanted
//!  ticks that had not sealed, from the source ────────────────┘
//! ```
//!
//! 1. Sealed base bars are taken as they stand: their ticks may be gone. A logic that makes other base bars of the same
//!    ticks needs an empty store and a replay.
//! 2. [`Store::differences`] compares the whole state, sealed or not, and writes nothing.
//! 3. [`Store::swap`] first keeps what stands under a name with its logic version: SQLite as a file beside the store,
//!    `<path>.logic-<version>`; PostgreSQL the state tables and the pipeline's row in a schema `marea_logic_<version>`.
//!    Then one transaction mends every difference, with an audit row for each recommendation and verdict, and says
//!    which logic stands now.
//! 4. The audit of before stays as it was: it says what was known then.
//! 5. What retention has forgotten is computed anew too, so it is a difference, and is forgotten once more.

use super::behind::{self, is_late};
use super::cell::Cell;
use super::link::{Link, Named};
use super::tables::STATE;
use super::verify::{self, Difference};
use super::writer::{Opening, Store, locked, write_batch, write_plan};
use super::{LOGIC_VERSION, StoreError, StoreTarget, load};
use marea_model::Nanos;
use marea_model::output::ClosedEpoch;
use std::time::Duration;

impl Store {
    /// Opens a store of any logic version for a rebuild: brings its tables up to date, and takes nothing over. None while
    /// another process has it.
    pub async fn try_open_to_rebuild(target: impl Into<StoreTarget>) -> Result<Option<Store>, StoreError> {
        let target = target.into();
        let named = Named::of(&target);
        match locked(&target, &named, Duration::ZERO).await? {
            Some(locked) => Store::take(target, named, locked, Opening::ToRebuild).await.map(Some),
            None => Ok(None),
        }
    }

    /// Which logic has computed it.
    pub async fn logic_version(&mut self) -> Result<i64, StoreError> {
        let mut link = self.connected().await?;
        let found = load::logic(&mut link, &self.named).await?;
        self.link = Some(link);
        Ok(found)
    }

    /// Every difference between what stands and the whole state, computed anew at the last committed epoch, ordered by
    /// key. As [`Store::verify`], but sealed history too; nothing is going to be mended.
    pub async fn differences(&mut self, closed: &ClosedEpoch) -> Result<Vec<Difference>, StoreError> {
        let mut link = self.connected().await?;
        let (differences, _) = verify::compare_whole(&mut link, &self.named, &self.ledger, closed).await?;
        self.link = Some(link);
        Ok(differences)
    }

    /// Puts the whole state, computed anew, in the place of what stands; gives the name under which that is kept.
    pub async fn swap(&mut self, closed: &ClosedEpoch) -> Result<String, StoreError> {
        let mut link = self.connected().await?;
        let named = &self.named;
        let error = |error: sqlx::Error| named.error(&error);
        let found = load::logic(&mut link, named).await?;
        let (_, repairs) = verify::compare_whole(&mut link, named, &self.ledger, closed).await?;
        let (late, repairs): (Vec<_>, Vec<_>) = repairs.into_iter().partition(|(key, _)| is_late(key));
        let before = self.ledger.standing().clone();
        let mut after = self.ledger.clone();
        after.standing.generation += 1;
        after.repair(repairs);
        let epochs = [ClosedEpoch { progress: before.progress, ..ClosedEpoch::empty(before.upper) }];
        let mut plan = after.plan(&epochs)?;
        (plan.standing.metrics_upper, plan.standing.indicators_low) = (plan.standing.upper, Nanos::MAX);
        let late: Vec<_> = late.into_iter().map(|(key, row)| (key, (row, before.upper))).collect();

        let kept = match &self.target {
            StoreTarget::Sqlite(path) => {
                keep_file(&mut link, named, &format!("{}.logic-{found}", path.display())).await?
            }
            StoreTarget::Postgres { .. } => format!("marea_logic_{found}"),
        };
        link.begin().await.map_err(error)?;
        if named.is_postgres {
            keep_tables(&mut link, &kept).await.map_err(error)?;
        }
        write_plan(&mut link, named, &before, &plan, &[]).await?;
        for batch in behind::batches(&late) {
            write_batch(&mut link, named, &batch).await?;
        }
        let sql = "UPDATE pipeline SET generation = $1, logic_version = $2 WHERE id = 1";
        let arguments: [Cell; 2] = [plan.standing.generation.into(), LOGIC_VERSION.into()];
        link.execute(sql, &arguments).await.map_err(error)?;
        link.commit().await.map_err(error)?;
        let accepted = plan.accepted();
        self.ledger = after;
        self.ledger.accept(accepted);
        self.link = Some(link);
        Ok(kept)
    }
}

/// A copy of the whole file, in place of one of this name, which a kill before the swap may have left.
async fn keep_file(link: &mut Link, named: &Named, path: &str) -> Result<String, StoreError> {
    // Under its name once it is whole: a kill leaves no half of it there.
    let begun = format!("{path}.tmp");
    let moved = |error| named.error(&sqlx::Error::Io(error));
    match std::fs::remove_file(&begun) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(moved(error)),
        _ => {}
    }
    let sql = format!("VACUUM INTO '{}'", begun.replace('\'', "''"));
    link.run(&sql).await.map_err(|error| named.error(&error))?;
    std::fs::File::open(&begun).and_then(|file| file.sync_all()).map_err(moved)?;
    std::fs::rename(&begun, path).map_err(moved)?;
    Ok(path.to_owned())
}

/// Copies of the tables, in the transaction that changes them. An error if there is a schema of this name.
async fn keep_tables(link: &mut Link, schema: &str) -> Result<(), sqlx::Error> {
    link.run(&format!("CREATE SCHEMA {schema}")).await?;
    for table in STATE.iter().map(|table| table.name).chain(["pipeline"]) {
        link.run(&format!("CREATE TABLE {schema}.{table} AS TABLE {table}")).await?;
    }
    Ok(())
}

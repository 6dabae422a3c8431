//! What came of it.

use super::StoreKind;
use super::blow::FAILPOINTS;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How many problems are named.
const SHOWN: usize = 20;

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub(super) store: StoreKind,
    /// Ticks, account snapshots, unreadable messages.
    pub(super) records: [usize; 3],
    /// How often what happened.
    pub(super) blows: BTreeMap<String, usize>,
    /// From the start of a process to its first commit.
    pub(super) restarts: Vec<Duration>,
    pub(super) edits: usize,
    /// Rows of the audit.
    pub(super) audit: u64,
    /// Processes that had the store.
    pub(super) generations: u64,
    /// How long it all took.
    pub(super) took: Duration,
    /// Whatever is not as it must be; nothing if all is well.
    pub problems: Vec<String>,
}

impl Outcome {
    /// Failpoints that no process died at.
    pub fn missed(&self) -> Vec<&'static str> {
        FAILPOINTS.iter().map(|(name, _)| *name).filter(|name| !self.blows.contains_key(*name)).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ticks, accounts, garbage] = self.records;
        let store = match self.store {
            StoreKind::Sqlite => "SQLite",
            StoreKind::Postgres => "PostgreSQL",
        };
        let mut restarts = self.restarts.clone();
        restarts.sort_unstable();
        let at =
            |share: usize| restarts.get((restarts.len().saturating_sub(1)) * share / 100).copied().unwrap_or_default();
        writeln!(f, "| chaos, {store} | |\n|---|---:|")?;
        writeln!(f, "| ticks, account snapshots, unreadable | {ticks}, {accounts}, {garbage} |")?;
        for (blow, times) in &self.blows {
            writeln!(f, "| {blow} | {times} |")?;
        }
        writeln!(f, "| edits of the live configuration | {} |", self.edits)?;
        writeln!(f, "| processes that had the store | {} |", self.generations)?;
        writeln!(f, "| rows of the audit | {} |", self.audit)?;
        let (p50, max) = (at(50).as_secs_f64(), at(100).as_secs_f64());
        writeln!(f, "| start to first new commit, p50 and max of {} | {p50:.2} s, {max:.2} s |", restarts.len())?;
        writeln!(f, "| took | {:.0} s |", self.took.as_secs_f64())?;
        writeln!(f, "| differences | {} |", self.problems.len())?;
        writeln!(
            f,
            "| verdict | {} |",
            if self.problems.is_empty() { "the same to the byte" } else { "NOT THE SAME" }
        )?;
        for problem in self.problems.iter().take(SHOWN) {
            writeln!(f, "\n{problem}")?;
        }
        Ok(())
    }
}

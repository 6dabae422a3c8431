//! Building Redis anew: what stands, then what the audit has after the last seq that was written.
//!
//! ```text
//!  sentinel ─► newer than the store? whose is it? ─► heartbeat away ─► values that do not stand away ─► all that stands
//!           ─► streams: the audit after the sentinel's seq, and each key's last entry ─► sentinel, heartbeat
//! ```
//!
//! 1. What waits is given up first: the view, read afterwards, has it.
//! 2. A value that was published early and never committed has a lower generation, or is in the index and stands nowhere:
//!    it is overwritten or withdrawn.
//! 3. Repeating it changes nothing: values are the same, stream entries bounce.

use super::link::Link;
use super::names;
use super::pending::{Derived, Head};
use super::shell::{BATCH, Shell, Trouble, ask, get};
use super::state::{Found, Stamp, sentinel};
use super::writes::{Bare, Change, Write, answer, json};
use crate::store::{AuditEntry, AuditKey};
use redis::{Cmd, RedisError};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Audit entries that streams are filled with where it is not known what they have.
const REFILL: u64 = names::VERDICTS;
/// Audit entries that are read at once.
const PAGE: usize = 1_000;

impl Shell {
    /// Builds everything anew; with `force` over whatever is there.
    pub(super) async fn rebuild(&mut self, link: &mut Link, force: bool) -> Result<(), Trouble> {
        self.gauges.rebuilds.inc();
        // What goes from the index is not to be written meanwhile.
        self.close_direct();
        let head = {
            let mut pending = self.shared.pending();
            // The view has it.
            let taken = pending.take(true);
            self.since = taken.since.or(self.since);
            pending.head()
        };
        let Some(head) = head else { return Ok(()) };
        let found = self.found(link, head).await?;
        // Streams of another history, or with a gap, begin anew: an entry cannot be put before another one. Nobody knows
        // what they have where no sentinel says it.
        let anew = force || self.refill || found == Found::Nothing;
        let from = match found {
            Found::Newer(stamp) if !force => return Err(Trouble::Newer(stamp)),
            Found::UpTo(seq) if !anew => Some(seq),
            _ => None,
        };
        link.one(unlink([names::HEARTBEAT])).await?;
        if anew {
            // Whoever comes after a kill in between begins anew too.
            link.one(unlink([names::SENTINEL])).await?;
        }
        let view = self.feed.view();
        let mut standing = view.recommendations();
        standing.extend(view.verdicts(None, None));
        let (bars, symbols, strategies) = view.series();
        let mut derived: BTreeSet<Derived> = bars.into_iter().map(|(s, t)| Derived::MarketData(s, t)).collect();
        derived.extend(symbols.into_iter().map(Derived::Strategies));
        derived.extend(strategies.into_iter().map(Derived::Backtest));
        derived.insert(Derived::Ranking);

        let indexed = self.indexed_before(link).await?;
        let gone = self.withdrawals(&indexed, &standing, &derived, head, anew);
        // Written once more whatever it has. It forgets only what has gone: whatever fails, the next one finds the rest.
        self.indexed.clear();
        self.entered.clear();
        self.index(link, standing.iter().map(|entry| entry.key).collect(), &derived).await?;
        self.indexed.extend(indexed.into_keys());
        self.withdraw(link, gone, head, force).await?;
        for batch in standing.chunks(BATCH) {
            let bodies = self.bodies(head.generation);
            let writes = batch.iter().map(|entry| bodies.entry(entry, true, false, head.epoch)).collect();
            self.write(link, writes, head, force).await?;
        }
        self.derive(link, &derived, head, force).await?;
        self.fill(link, &standing, from, head, anew).await?;
        (self.refill, self.written, self.since) = (false, Some(head), None);
        self.unchecked.clear();
        self.announce(link, force).await
    }

    async fn found(&self, link: &mut Link, head: Head) -> Result<Found, Trouble> {
        self.only(link, names::SENTINEL, "string").await?;
        let text = link.one(get(names::SENTINEL)).await?;
        let text: Option<String> = redis::from_redis_value(text).map_err(RedisError::from)?;
        Ok(sentinel(text.as_deref(), head, self.early_until()))
    }

    /// Removes a key that is of another type.
    async fn only(&self, link: &mut Link, key: &str, kind: &str) -> Result<(), Trouble> {
        let mut command = redis::cmd("TYPE");
        command.arg(key);
        let found: String = redis::from_redis_value(link.one(command).await?).map_err(RedisError::from)?;
        if found != kind && found != "none" {
            self.gauges.errors.with_label_values(&["wrongtype"]).inc();
            link.one(unlink([key])).await?;
        }
        Ok(())
    }

    /// Every key that was written before, with its channel.
    async fn indexed_before(&self, link: &mut Link) -> Result<HashMap<String, String>, Trouble> {
        self.only(link, names::INDEX, "hash").await?;
        let mut command = redis::cmd("HGETALL");
        command.arg(names::INDEX);
        Ok(redis::from_redis_value(link.one(command).await?).map_err(RedisError::from)?)
    }

    /// Takes away what does not stand, and then its name from the index. What was published early since stays.
    async fn withdraw(
        &mut self,
        link: &mut Link,
        (told, silent): (Vec<Write>, Vec<String>),
        head: Head,
        force: bool,
    ) -> Result<(), Trouble> {
        for batch in batches(told) {
            let names: Vec<String> = batch.iter().map(|write| write.key.clone()).collect();
            let answers = self.write(link, batch, head, force).await?;
            let mut gone = Vec::with_capacity(names.len());
            for (name, value) in names.into_iter().zip(&answers) {
                if answer(value)?.result == 0 {
                    gone.push(name);
                }
            }
            // What was published early and is not committed may be on its way still, and come after this.
            if self.early_until() <= head.epoch {
                self.forget(link, &gone).await?;
            }
        }
        for batch in silent.chunks(BATCH) {
            link.all(batch.iter().map(|name| unlink([name.as_str()])).collect()).await?;
            self.forget(link, batch).await?;
        }
        Ok(())
    }

    /// Takes names from the index.
    async fn forget(&mut self, link: &mut Link, names: &[String]) -> Result<(), Trouble> {
        if names.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("HDEL");
        command.arg(names::INDEX).arg(names);
        link.one(command).await?;
        for name in names {
            self.indexed.remove(name);
        }
        Ok(())
    }

    /// What takes away what was written before and does not stand: what somebody is told about, and the rest. The streams
    /// too if they begin `anew`.
    fn withdrawals(
        &self,
        indexed: &HashMap<String, String>,
        standing: &[AuditEntry],
        derived: &BTreeSet<Derived>,
        head: Head,
        anew: bool,
    ) -> (Vec<Write>, Vec<String>) {
        let bodies = self.bodies(head.generation);
        let mut stand: HashSet<String> = standing.iter().map(|entry| self.names.latest(entry.key)).collect();
        stand.extend(standing.iter().map(|entry| self.names.stream(entry.key)));
        stand.extend(derived.iter().map(|key| bodies.name(*key)));
        let stamp = Stamp { generation: head.generation, epoch: head.epoch };
        let (mut told, mut silent) = (Vec::new(), Vec::new());
        for (name, channel) in indexed {
            if stand.contains(name) || (is_stream(name) && !anew) {
                continue;
            }
            if channel.is_empty() {
                silent.push(name.clone());
            } else {
                let tell = Some((channel.clone(), Some(json(&Bare::withdrawn(head, name)))));
                told.push(Write { key: name.clone(), change: Change::Delete, stamp, stream: None, told: tell });
            }
        }
        (told, silent)
    }

    /// Fills the streams, `anew` or as they are: the audit after `from`, else as far back as streams may reach, and the
    /// last entry of each key that is older. What is there already bounces.
    async fn fill(
        &mut self,
        link: &mut Link,
        standing: &[AuditEntry],
        from: Option<u64>,
        head: Head,
        anew: bool,
    ) -> Result<(), Trouble> {
        self.filled.clear();
        let streams: BTreeSet<String> = standing.iter().map(|entry| self.names.stream(entry.key)).collect();
        let streams: Vec<String> = streams.into_iter().collect();
        for batch in streams.chunks(BATCH) {
            let commands = batch.iter().map(|stream| self.scripts.last(stream)).collect();
            let lasts: Vec<i64> =
                redis::from_redis_value(redis::Value::Array(link.all(commands).await?)).map_err(RedisError::from)?;
            let newer = |last: &i64| u64::try_from(*last).is_ok_and(|last| last > head.seq);
            if anew {
                link.one(unlink(batch.iter().map(String::as_str))).await?;
            } else if lasts.iter().any(newer) {
                return Err(Trouble::Newer(Stamp { generation: head.generation, epoch: head.epoch + 1 }));
            }
        }
        let stand: BTreeSet<AuditKey> = standing.iter().map(|entry| entry.key).collect();
        let mut from = from.unwrap_or(head.seq.saturating_sub(REFILL));
        let mut older: Vec<&AuditEntry> = standing.iter().filter(|entry| entry.seq <= from).collect();
        older.sort_by_key(|entry| entry.seq);
        for batch in older.chunks(BATCH) {
            let bodies = self.bodies(head.generation);
            let writes = batch.iter().map(|entry| bodies.entry(entry, false, true, head.epoch)).collect();
            self.append(link, writes, head).await?;
        }
        while from < head.seq {
            let page = match &self.store {
                Some(store) => ask(store, move |store| async move { store.audit_after(from, PAGE).await }).await?,
                None => {
                    let mut later: Vec<AuditEntry> = standing.iter().filter(|e| e.seq > from).cloned().collect();
                    later.sort_by_key(|entry| entry.seq);
                    later
                }
            };
            let Some(last) = page.last() else { break };
            from = last.seq;
            self.index(link, page.iter().map(|entry| entry.key).collect(), &BTreeSet::new()).await?;
            for batch in page.chunks(BATCH) {
                let bodies = self.bodies(head.generation);
                // What has gone may have gone unnoticed by the index.
                let gone = |entry: &AuditEntry| entry.payload.is_none() && !stand.contains(&entry.key);
                let writes = batch.iter().map(|entry| bodies.entry(entry, gone(entry), true, head.epoch)).collect();
                self.append(link, writes, head).await?;
            }
        }
        Ok(())
    }

    /// Adds to streams. One that was something else has been removed by that, and is full again once all is added.
    async fn append(&mut self, link: &mut Link, writes: Vec<Write>, head: Head) -> Result<(), Trouble> {
        match self.write(link, writes, head, false).await {
            Err(Trouble::Refill) if self.refill => Ok(()),
            other => other.map(drop),
        }
    }
}

fn unlink<'a>(keys: impl IntoIterator<Item = &'a str>) -> Cmd {
    let mut command = redis::cmd("UNLINK");
    command.arg(keys.into_iter().collect::<Vec<_>>());
    command
}

fn is_stream(name: &str) -> bool {
    name.ends_with(":stream")
}

fn batches<T>(all: Vec<T>) -> Vec<Vec<T>> {
    let (mut batches, mut rest) = (Vec::new(), all.into_iter().peekable());
    while rest.peek().is_some() {
        batches.push(rest.by_ref().take(BATCH).collect());
    }
    batches
}

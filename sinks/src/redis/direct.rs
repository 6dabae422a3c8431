//! Early values on their shortest way: written to Redis by the thread that closes their epoch. To wake another one takes
//! longer than to write them.
//!
//! 1. It has a connection of its own, on which Redis answers nothing (`CLIENT REPLY OFF`), for nobody would wait for that.
//!    What Redis makes of it the shell learns, which writes the same values when they are committed; the script that writes
//!    refuses what comes in another order.
//! 2. It does not wait: of what is written the shell presumes as read what Redis had before it answered the shell, and about
//!    [`ROOM`] bytes may be written beyond; sockets hold as many. What finds no room goes the shell's way, where only the
//!    newest value of a key waits.
//! 3. Only keys that the index has are written, so that whatever was written can be withdrawn.
//! 4. Whatever fails ends it (by TLS it may be the next write that notices); the shell opens another one some time later.
//!    Values are there with their commit.

use super::config::shown;
use super::gauges::Gauges;
use super::link::{ANSWER, CONNECT};
use super::names::{self, Names};
use super::pending::{Early, Head};
use super::shell::{Shell, get, kind};
use super::state::header;
use super::writes::{Bodies, Scripts};
use crate::feed::Feed;
use crate::metrics::Stage;
use crate::store::{AuditEntry, AuditKey};
use crate::view::millis;
use redis::{Client, Connection, RedisError, RedisResult};
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::spawn_blocking;

/// How Redis lists the connection.
const NAME: &str = "marea-early";
/// Bytes that may be written and not read, about. The first that a socket holds of an ethernet is not much more.
const ROOM: u64 = 64 * 1024;
/// About how many of them a value has beside its payload.
const ENVELOPE: u64 = 512;
/// How long a write may make no progress. Then sockets held less than they should.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long until another connection is tried.
const AGAIN: Duration = Duration::from_secs(10);

/// A connection that early values are written to.
pub(super) struct Direct {
    connection: Connection,
    /// Bytes that were written, and how many of them Redis is presumed to have read; both about.
    written: u64,
    read: u64,
    /// Keys that the index has.
    indexed: HashSet<AuditKey>,
    names: Names,
    scripts: Scripts,
    feed: Feed,
    gauges: Gauges,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("written", &self.written).field("read", &self.read).finish_non_exhaustive()
    }
}

impl Direct {
    /// Connects to the server whose sentinel says this, or more of the same generation. Blocks, at most some seconds. An
    /// error also where a user may not turn answers off.
    pub(super) fn open(client: &Client, least: Head, names: Names, feed: Feed, gauges: Gauges) -> RedisResult<Direct> {
        let mut connection = client.get_connection_with_timeout(CONNECT)?;
        connection.set_read_timeout(Some(ANSWER))?;
        let command = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            command
        };
        // A name may lead elsewhere by now; and a replica, which has the same, takes no writes.
        let found: Option<String> = get(names::SENTINEL).query(&mut connection)?;
        command(&["HDEL", names::INDEX, ""]).exec(&mut connection)?;
        let stamp = found.as_deref().and_then(header).map(|(_, stamp)| stamp);
        if !stamp.is_some_and(|stamp| stamp.generation == least.generation && stamp.epoch >= least.epoch) {
            return Err((redis::ErrorKind::Client, "it is another server than the one that is written to").into());
        }
        command(&["CLIENT", "REPLY", "ON"]).exec(&mut connection)?;
        // By TLS a write may also wait for something to read.
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        for words in [["CLIENT", "REPLY", "OFF"], ["CLIENT", "SETNAME", NAME]] {
            connection.send_packed_command(&command(&words).get_packed_command())?;
        }
        let (written, read) = (0, 0);
        Ok(Direct { connection, written, read, indexed: HashSet::new(), names, scripts: Scripts::new(), feed, gauges })
    }

    /// The index has these too.
    pub(super) fn indexed(&mut self, keys: impl IntoIterator<Item = AuditKey>) {
        self.indexed.extend(keys);
    }

    /// How many bytes were written so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Redis has answered what was sent when so many were written.
    pub(super) fn read(&mut self, written: u64) {
        // It may be younger than what was sent.
        self.read = self.read.max(written.min(self.written));
    }

    /// A word that keeps it from being closed as idle, and that shows whether it still is there.
    pub(super) fn ping(&mut self) -> RedisResult<()> {
        self.connection.send_packed_command(&redis::cmd("PING").get_packed_command())
    }

    /// Whether all of these can be written at once.
    pub(super) fn takes<'a>(&self, mut entries: impl Iterator<Item = &'a AuditEntry>) -> bool {
        let mut waiting = self.written - self.read;
        entries.all(|entry| {
            waiting += size(entry);
            waiting <= ROOM && self.indexed.contains(&entry.key)
        })
    }

    /// Writes values. After an error nothing more can be written.
    pub(super) fn write(&mut self, early: &Early, head: Head) -> RedisResult<()> {
        let wall_ms = millis(SystemTime::now());
        let bodies = Bodies { names: self.names, view: self.feed.view(), generation: head.generation, wall_ms };
        let mut commands = Vec::with_capacity(ROOM as usize / 8);
        for entry in &early.entries {
            self.written += size(entry);
            let write = bodies.entry(entry, true, false, head.epoch);
            write.command(&self.scripts, false).write_packed_command(&mut commands);
        }
        self.connection.send_packed_command(&commands).inspect_err(|error| self.gauges.failed(error))?;
        self.gauges.early.with_label_values(&["direct"]).inc_by(early.entries.len() as u64);
        if let Some(since) = early.since {
            self.feed.metrics().stage_took(Stage::Early, since.elapsed());
        }
        Ok(())
    }
}

fn size(entry: &AuditEntry) -> u64 {
    ENVELOPE + entry.payload.as_deref().map_or(0, str::len) as u64
}

impl Shell {
    /// Looks after the shortest way of early values, where there are any.
    pub(super) async fn tend_direct(&mut self) {
        let failed = match &mut *self.shared.direct() {
            Some(direct) => direct.ping().err(),
            None => None,
        };
        if let Some(error) = failed {
            self.no_direct(&error);
        }
        if self.early_until() == 0 || self.shared.direct().is_some() {
            return;
        }
        let (opening, begun) = &mut self.opening;
        if let Some(opened) = opening.take_if(|opening| opening.is_finished()) {
            match opened.await {
                Ok(Ok(mut direct)) => {
                    direct.indexed(self.entered.iter().copied());
                    *self.shared.direct() = Some(direct);
                }
                Ok(Err(error)) => self.no_direct(&error),
                Err(_) => {}
            }
        } else if opening.is_none()
            && begun.is_none_or(|begun| begun.elapsed() >= AGAIN)
            && let (Some(server), Some(least)) = (self.server.clone(), self.written)
        {
            let (names, feed, gauges) = (self.names, self.feed.clone(), self.gauges.clone());
            let open = move || Direct::open(&server, least, names, feed, gauges);
            self.opening = (Some(spawn_blocking(open)), Some(Instant::now()));
        }
    }

    fn no_direct(&mut self, error: &RedisError) {
        *self.shared.direct() = None;
        self.gauges.failed(error);
        if kind(error) == "auth" {
            // It will not be allowed later either.
            self.server = None;
        }
        tracing::debug!("redis: early values take the longer way: {}", shown(error));
    }

    pub(super) fn close_direct(&mut self) {
        self.opening = (None, None);
        *self.shared.direct() = None;
    }

    /// What was written directly so far …
    pub(super) fn written_directly(&self) -> u64 {
        self.shared.direct().as_ref().map_or(0, Direct::written)
    }

    /// … and what of that has been read, since Redis has answered what was sent later.
    pub(super) fn read_directly(&self, written: u64) {
        if let Some(direct) = &mut *self.shared.direct() {
            direct.read(written);
        }
    }
}

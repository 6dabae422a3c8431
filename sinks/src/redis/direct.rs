//! Early values on their shortest way: written to Redis by the thread that closes their epoch. To wake another one takes
//! longer than to write them.
//!
//! 1. It has a connection of its own, on which Redis answers nothing (`CLIENT REPLY OFF`), for nobody would wait for that.
//!    What Redis makes of it the shell learns, which writes the same values when they are committed; the script that writes
//!    refuses what comes in another order.
//! 2. It does not wait: until the shell has heard from Redis again at most some [`ROOM`] bytes are written, and sockets hold
//!    as many whether Redis reads them or not. What finds no room goes the shell's way, where only the newest value of a key
//!    waits.
//! 3. Only keys that the index has are written, so that whatever was written can be withdrawn.
//! 4. Whatever fails ends it; the shell opens another one.

use super::link::{ANSWER, CONNECT};
use super::names::Names;
use super::pending::{Early, Head};
use super::writes::{Bodies, Scripts};
use crate::feed::Feed;
use crate::metrics::Stage;
use crate::store::{AuditEntry, AuditKey};
use crate::view::millis;
use redis::{Client, Connection, RedisResult};
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, SystemTime};

/// How Redis lists the connection.
const NAME: &str = "marea-early";
/// Bytes that may be written before the shell hears from Redis again, about.
const ROOM: usize = 64 * 1024;
/// About how many of them a value has beside its payload.
const ENVELOPE: usize = 512;
/// How long a write may take. Then sockets held less than they should.
const PATIENCE: Duration = Duration::from_millis(5);

/// A connection that early values are written to.
pub(super) struct Direct {
    connection: Connection,
    /// Bytes that may still be written.
    room: usize,
    /// Keys that the index has.
    indexed: HashSet<AuditKey>,
    names: Names,
    scripts: Scripts,
    feed: Feed,
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").field("room", &self.room).finish_non_exhaustive()
    }
}

impl Direct {
    /// Connects; the index has these keys. Blocks, at most some seconds. An error also where a user may not turn answers
    /// off.
    pub(super) fn open(client: &Client, names: Names, feed: Feed, indexed: HashSet<AuditKey>) -> RedisResult<Direct> {
        let mut connection = client.get_connection_with_timeout(CONNECT)?;
        connection.set_read_timeout(Some(ANSWER))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        let client = |words: [&str; 2]| {
            let mut command = redis::cmd("CLIENT");
            command.arg(&words);
            command
        };
        client(["SETNAME", NAME]).exec(&mut connection)?;
        client(["REPLY", "ON"]).exec(&mut connection)?;
        connection.send_packed_command(&client(["REPLY", "OFF"]).get_packed_command())?;
        Ok(Direct { connection, room: ROOM, indexed, names, scripts: Scripts::new(), feed })
    }

    /// The index has these too.
    pub(super) fn indexed(&mut self, keys: impl IntoIterator<Item = AuditKey>) {
        self.indexed.extend(keys);
    }

    /// Redis answers what it was sent since.
    pub(super) fn refill(&mut self) {
        self.room = ROOM;
    }

    /// Whether all of these can be written at once.
    pub(super) fn takes<'a>(&self, mut entries: impl Iterator<Item = &'a AuditEntry>) -> bool {
        let mut left = self.room;
        entries.all(|entry| {
            let room = left.checked_sub(size(entry));
            left = room.unwrap_or_default();
            room.is_some() && self.indexed.contains(&entry.key)
        })
    }

    /// Writes values. After an error nothing more can be written.
    pub(super) fn write(&mut self, early: &Early, head: Head) -> RedisResult<()> {
        let wall_ms = millis(SystemTime::now());
        let bodies = Bodies { names: self.names, view: self.feed.view(), generation: head.generation, wall_ms };
        let mut commands = Vec::with_capacity(ROOM / 8);
        for entry in &early.entries {
            self.room = self.room.saturating_sub(size(entry));
            let write = bodies.entry(entry, true, false, head.epoch);
            write.command(&self.scripts, false).write_packed_command(&mut commands);
        }
        self.connection.send_packed_command(&commands)?;
        if let Some(since) = early.since {
            self.feed.metrics().stage_took(Stage::Early, since.elapsed());
        }
        Ok(())
    }
}

fn size(entry: &AuditEntry) -> usize {
    ENVELOPE + entry.payload.as_deref().map_or(0, str::len)
}

//! Where a source stands, what it hands over, and what it could not read.

use crate::account::AccountSnapshot;
use crate::name::Partition;
use crate::tick::Tick;
use crate::ticks::Ticks;
use crate::time::Nanos;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The place of one record: a file and its row, or a topic's partition, offset and the row in the message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Cursor {
    /// File, topic partition, or synthetic market.
    pub partition: Partition,
    /// Row of a file (from 0), offset in a partition, revision of a configuration.
    pub offset: u64,
    /// Row within a message that carries several.
    pub row: u32,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)?;
        if self.row > 0 { write!(f, ".{}", self.row) } else { Ok(()) }
    }
}

/// A tick, and where it came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Where it came from.
    pub cursor: Cursor,
    /// What it says.
    pub tick: Tick,
}

/// Why a record is dead. The texts are names on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The bytes are no record of their format.
    Malformed,
    /// A required field is absent.
    Missing,
    /// A field's value is not allowed.
    Invalid,
    /// A number does not fit.
    Overflow,
    /// The event time is not in the range that can be true.
    EventTime,
    /// Same identity, another payload; or a bust or correction of a quote.
    Conflict,
    /// Earlier than what is sealed.
    Late,
    /// A bust or correction whose target never came.
    UnknownTarget,
    /// An unknown or missing content type, or a schema that is not ours.
    Schema,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 9] = [
        Reason::Malformed,
        Reason::Missing,
        Reason::Invalid,
        Reason::Overflow,
        Reason::EventTime,
        Reason::Conflict,
        Reason::Late,
        Reason::UnknownTarget,
        Reason::Schema,
    ];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Missing => "missing",
            Reason::Invalid => "invalid",
            Reason::Overflow => "overflow",
            Reason::EventTime => "event_time",
            Reason::Conflict => "conflict",
            Reason::Late => "late",
            Reason::UnknownTarget => "unknown_target",
            Reason::Schema => "schema",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A rejected record. `original` holds its bytes as they came; where a record was refused only after decoding
/// (late, conflict, unknown target), it holds the record written again as canonical JSON.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeadLetter {
    /// Where it came from.
    pub cursor: Cursor,
    /// Why it is dead.
    pub reason: Reason,
    /// The field at fault, empty for the record as a whole.
    pub field: String,
    /// The field's value, 64 bytes at most.
    pub value: String,
    /// One sentence for people.
    pub detail: String,
    /// The record's bytes.
    pub original: Vec<u8>,
}

/// The first 64 bytes of a value, cut at a character, control characters escaped.
pub fn excerpt(value: &str) -> String {
    let mut text = String::with_capacity(value.len().min(64));
    for c in value.chars() {
        let escaped = if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        if text.len() + escaped.len() > 64 {
            break;
        }
        text.push_str(&escaped);
    }
    text
}

/// How a record that was read reads: a log that has another one in its place is another log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Where it stands in its partition.
    pub offset: u64,
    /// Its timestamp, as the log has it, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// A hash of its bytes, the same in every process.
    pub hash: u64,
}

/// Where a partition stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionMark {
    /// The partition.
    pub partition: Partition,
    /// Every record whose bar may still change stands at this offset or after it.
    pub low: u64,
    /// The first offset not yet taken.
    pub upper: u64,
    /// The greatest event time of its accepted trades and quotes.
    pub greatest: Option<Nanos>,
    /// How a record before `upper` reads, if the source says so.
    pub fingerprint: Option<Fingerprint>,
}

/// What tells a message from others where its broker gives it no place: a hash of all that its producer gave it, the same
/// in every process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MessageIdentity(pub [u8; 16]);

/// A message as it came, of a source that cannot be asked for it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawMessage {
    /// Where it came from.
    pub cursor: Cursor,
    /// What it says it is.
    pub content_type: Option<String>,
    /// When it was received, by the wall clock.
    pub receive_time: Nanos,
    /// Its bytes.
    pub body: Vec<u8>,
    /// What it is known by when it is delivered again; none of one that is acknowledged.
    pub identity: Option<MessageIdentity>,
}

/// What a source sends: decoded records of one partition in order, and what it could not read.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The partition that all of it comes from.
    pub partition: Partition,
    /// Ticks in order.
    pub records: Ticks,
    /// What could not be read.
    pub rejects: Vec<DeadLetter>,
    /// Account snapshots, with where they came from.
    pub accounts: Vec<(Cursor, AccountSnapshot)>,
    /// Records whose unknown fields were ignored.
    pub unknown_fields: u64,
    /// The first offset not yet read.
    pub upper: u64,
    /// Whether the partition is at its end now.
    pub at_end: bool,
    /// When it was received, by the wall clock.
    pub receive_time: Nanos,
    /// Its messages, if the source cannot be asked for them again.
    pub raw: Vec<RawMessage>,
    /// How the last of its messages reads, if the source can be asked for it again.
    pub fingerprint: Option<Fingerprint>,
}

impl Batch {
    /// Nothing yet, up to the partition's beginning.
    pub fn new(partition: Partition, receive_time: Nanos) -> Self {
        Batch {
            partition,
            records: Ticks::new(),
            rejects: Vec::new(),
            accounts: Vec::new(),
            unknown_fields: 0,
            upper: 0,
            at_end: false,
            receive_time,
            raw: Vec::new(),
            fingerprint: None,
        }
    }
}

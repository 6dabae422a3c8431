//! What all symbols of a worker share, and what becomes of a record.

use super::BarUpsert;
use super::Counts;
use super::log::{Key, Pool, QuoteTick, Trade};
use super::retained::Retained;
use marea_model::cursor::excerpt;
use marea_model::time::format_rfc3339;
use marea_model::{Amend, BarBody, Cursor, DeadLetter, Instruments, Nanos, Reason, Tick, Timeframe};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

/// Why a record is refused.
pub(super) struct Fault {
    pub(super) reason: Reason,
    pub(super) field: &'static str,
    pub(super) value: String,
    pub(super) detail: String,
}

impl Fault {
    pub(super) fn late(key: Key) -> Outcome {
        let value = format_rfc3339(key.event_time);
        let detail = "its bar has sealed".to_owned();
        Outcome::Dead(Box::new(Fault { reason: Reason::Late, field: "event_time", value, detail }))
    }

    pub(super) fn overflow(field: &'static str, value: String) -> Outcome {
        let detail = "a sum of its bar would overflow".to_owned();
        Outcome::Dead(Box::new(Fault { reason: Reason::Overflow, field, value, detail }))
    }

    pub(super) fn conflict(field: &'static str, value: String, first: &str) -> Outcome {
        let detail = format!("{first} with this event_time and seq came first");
        Outcome::Dead(Box::new(Fault { reason: Reason::Conflict, field, value, detail }))
    }

    pub(super) fn not_a_trade(key: Key, kind: &str) -> Outcome {
        let detail = format!("the target of this {kind} is a quote");
        Outcome::Dead(Box::new(Fault { reason: Reason::Conflict, field: "seq", value: key.seq.to_string(), detail }))
    }
}

/// What became of a record.
pub(super) enum Outcome {
    Accepted,
    Duplicate,
    Held,
    /// Boxed, so that the outcome of every tick stays in two registers.
    Dead(Box<Fault>),
}

/// A bucket that something rare has happened to in this epoch.
pub(super) struct Touched {
    pub(super) symbol: u32,
    pub(super) open_time: Nanos,
    /// What stood at the epoch's start.
    pub(super) before: Option<BarBody>,
    /// What stands for ever, if it has sealed in this epoch.
    pub(super) sealed: Option<Option<BarBody>>,
}

/// What all symbols share.
pub(super) struct Shared {
    pub(super) instruments: Arc<Instruments>,
    pub(super) base: Timeframe,
    pub(super) sealed_through: Nanos,
    /// (the `sealed_through` at which it has something to do, symbol). Entries that are not its `due` any more are void.
    pub(super) timers: BinaryHeap<Reverse<(Nanos, u32)>>,
    pub(super) touched: Vec<Touched>,
    /// Bars that nothing rare has happened to, and that have sealed in this epoch.
    pub(super) sealed: Vec<BarUpsert>,
    /// How many buckets were opened by trades in order in this epoch.
    pub(super) opened: usize,
    /// Symbols with a new latest quote, or new themselves.
    pub(super) quoted: Vec<u32>,
    /// Sealed bars with a new amend.
    pub(super) amended: Vec<(u32, Nanos)>,
    pub(super) counts: Counts,
    pub(super) dead: Vec<DeadLetter>,
    /// Trades that came in order.
    pub(super) retained: Retained,
    /// How many symbols there are.
    pub(super) known: usize,
    pub(super) trades: Pool<Trade>,
    pub(super) quotes: Pool<QuoteTick>,
}

impl Shared {
    pub(super) fn close_time(&self, open_time: Nanos) -> Nanos {
        open_time.saturating_add(self.base.nanos())
    }

    pub(super) fn is_sealed(&self, open_time: Nanos) -> bool {
        self.close_time(open_time) <= self.sealed_through
    }

    #[inline]
    pub(super) fn count(&mut self, outcome: Outcome, cursor: Cursor, tick: impl FnOnce() -> Tick) {
        match outcome {
            Outcome::Accepted => self.counts.accepted += 1,
            Outcome::Duplicate => self.counts.duplicate += 1,
            Outcome::Held => self.counts.held += 1,
            Outcome::Dead(fault) => self.refuse(*fault, cursor, &tick()),
        }
    }

    #[cold]
    pub(super) fn refuse(&mut self, fault: Fault, cursor: Cursor, tick: &Tick) {
        let Fault { reason, field, value, detail } = fault;
        let (field, value) = (field.to_owned(), excerpt(&value));
        let original = marea_model::codec::json::encode(tick, &self.instruments);
        self.counts.dead += 1;
        self.dead.push(DeadLetter { cursor, reason, field, value, detail, original });
    }
}

/// All amends of a bar.
#[derive(Default)]
pub(super) struct Amended {
    /// The greatest wins.
    pub(super) known: BTreeSet<Amend>,
    /// What was given last: none before the bar seals.
    pub(super) given: Option<Option<BarBody>>,
    /// Whether it stands among the amended bars of this epoch.
    pub(super) queued: bool,
}

impl Amended {
    pub(super) fn body(&self) -> Option<BarBody> {
        self.known.last().and_then(|amend| amend.bar)
    }
}

impl Shared {
    pub(super) fn new(instruments: Arc<Instruments>, base: Timeframe) -> Self {
        Shared {
            instruments,
            base,
            sealed_through: Nanos::MIN,
            timers: BinaryHeap::new(),
            touched: Vec::new(),
            sealed: Vec::new(),
            opened: 0,
            quoted: Vec::new(),
            amended: Vec::new(),
            counts: Counts::default(),
            dead: Vec::new(),
            retained: Retained::new(),
            known: 0,
            trades: Pool::new(),
            quotes: Pool::new(),
        }
    }
}

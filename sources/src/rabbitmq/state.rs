//! What a source of one queue or stream knows, without I/O: deliveries in, batches and acknowledgements out.

use super::RabbitKind;
use super::deliveries::Deliveries;
use crate::message;
use crate::{BATCH_ROWS, Carries, Resume};
use marea_model::codec::{Decoded, Decoder};
use marea_model::cursor::{Batch, Fingerprint, MessageIdentity, RawMessage, Reason};
use marea_model::time::Nanos;
use marea_model::{Cursor, DeadLetter, Partition};

/// The most bytes of messages in a batch.
const BATCH_BYTES: usize = 4 << 20;

/// One delivery.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    /// What it is acknowledged by. Rises by one a delivery, and begins anew with each connection.
    pub(super) tag: u64,
    /// Its `x-stream-offset`; none from a queue.
    pub(super) offset: Option<u64>,
    pub(super) content_type: Option<String>,
    pub(super) message_id: Option<String>,
    /// Seconds since 1970.
    pub(super) timestamp: Option<u64>,
    /// Whether the broker may have delivered it before.
    pub(super) redelivered: bool,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// How it reads as a record of a stream.
    pub(super) fn fingerprint(&self, offset: u64) -> Fingerprint {
        let seconds = self.timestamp.and_then(|s| i64::try_from(s).ok()).unwrap_or(0);
        Fingerprint { offset, timestamp_ms: seconds.saturating_mul(1000), hash: hash(&self.body) }
    }

    /// What tells it from other messages of a queue.
    fn identity(&self) -> MessageIdentity {
        let properties = format!("{:?} {:?} {:?}", self.content_type, self.message_id, self.timestamp);
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&hash(properties.as_bytes()).to_be_bytes());
        identity[8..].copy_from_slice(&hash(&self.body).to_be_bytes());
        MessageIdentity(identity)
    }
}

/// FNV-1a with a final mix: committed fingerprints and identities hold it, so it stays as it is.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What became of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Took {
    /// It is in the batch.
    In,
    /// It was handed over before, or is not asked for.
    Known,
    /// It lies behind the end, and stays with the broker.
    Beyond,
    /// It does not come from the kind that was configured.
    OtherKind,
}

/// Whether a stream is the one that was read before, and still has what is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is, and has.
    Fits,
    /// The first record it has is behind the first that is wanted.
    Gap { wanted: u64, first: u64 },
    /// It ends before what was read, or has another record there.
    Other { detail: String },
}

/// What the broker has of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Extent {
    /// Its first offset; none of an empty stream.
    pub(super) first: Option<u64>,
    /// Its last offset.
    pub(super) last: Option<u64>,
    /// The record at or behind [`State::proof`]'s offset.
    pub(super) proof: Option<Fingerprint>,
}

/// Where one queue or stream stands.
pub(super) struct State {
    partition: Partition,
    kind: RabbitKind,
    carries: Carries,
    decoder: Decoder,
    /// For what was committed: it was judged when it came, by the clock of then.
    again: Decoder,
    /// The next offset: of the stream, or our own.
    position: u64,
    /// The end of what was ever read of a stream.
    upper: u64,
    /// Whether anything was read of a stream.
    started: bool,
    /// The end, if there is one: an offset that is not wanted any more.
    end: Option<u64>,
    /// A record of the stream that was read.
    proof: Option<Fingerprint>,
    /// The greatest tag that is in the batch, and was not acknowledged: of a stream.
    credit: Option<u64>,
    /// What was delivered of a queue.
    pub(super) deliveries: Deliveries,
    /// Whether a message was left to the broker, on this connection.
    beyond: bool,
    at_end: bool,
    event_time: Option<Nanos>,
    decoded: Decoded,
    raw: Vec<RawMessage>,
    messages: usize,
    bytes: usize,
}

impl State {
    pub(super) fn new(
        partition: Partition,
        kind: RabbitKind,
        carries: Carries,
        decoder: Decoder,
        resume: Option<Resume>,
    ) -> Self {
        let resume = resume.filter(|resume| resume.upper > 0);
        let position = resume.map_or(0, |resume| match kind {
            RabbitKind::Stream => resume.low.min(resume.upper),
            RabbitKind::Queue => resume.upper,
        });
        State {
            partition,
            kind,
            carries,
            again: Decoder { max_ahead: None, ..decoder.clone() },
            decoder,
            position,
            upper: resume.map_or(0, |resume| resume.upper),
            started: resume.is_some(),
            end: None,
            proof: resume.and_then(|resume| resume.fingerprint),
            credit: None,
            deliveries: Deliveries::default(),
            beyond: false,
            at_end: false,
            event_time: None,
            decoded: Decoded::default(),
            raw: Vec::new(),
            messages: 0,
            bytes: 0,
        }
    }

    pub(super) fn partition(&self) -> Partition {
        self.partition
    }

    /// What it carries.
    pub(super) fn carries(&self) -> Carries {
        self.carries
    }

    /// The next offset.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The offset to consume a stream from; none for its beginning.
    pub(super) fn from(&self) -> Option<u64> {
        self.started.then_some(self.position)
    }

    /// The record that proves that the stream is the same.
    pub(super) fn proof(&self) -> Option<Fingerprint> {
        self.proof.filter(|_| self.started)
    }

    /// The greatest event time that was read.
    pub(super) fn event_time(&self) -> Option<Nanos> {
        self.event_time
    }

    /// Reads no further than here.
    pub(super) fn ends_at(&mut self, end: u64) {
        self.end = Some(end);
    }

    /// Whether the end that was set is reached.
    pub(super) fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.position >= end)
    }

    /// Whether the partition was last known at its end.
    pub(super) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Whether what the broker has is what was read before.
    pub(super) fn judge(&self, extent: &Extent) -> Verdict {
        if !self.started {
            return Verdict::Fits;
        }
        let upper = self.upper.max(self.position);
        let (Some(first), Some(last)) = (extent.first, extent.last) else {
            return Verdict::Other { detail: format!("it was read up to offset {upper}, and is empty") };
        };
        if last.saturating_add(1) < upper {
            return Verdict::Other { detail: format!("it was read up to offset {upper}, and ends with {last}") };
        }
        if let (Some(read), Some(found)) = (self.proof, extent.proof)
            && read.offset == found.offset
            && read != found
        {
            return Verdict::Other { detail: format!("the record at offset {} is another one", read.offset) };
        }
        if first > self.position {
            return Verdict::Gap { wanted: self.position, first };
        }
        Verdict::Fits
    }

    /// What a restart has to read again before anything new, if anything: from here to there.
    pub(super) fn to_read_again(&self) -> Option<(u64, u64)> {
        (self.kind == RabbitKind::Stream && self.position < self.upper).then_some((self.position, self.upper))
    }

    /// Goes on behind a gap.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.position = self.position.max(offset);
    }

    /// Goes on with another stream, from its beginning if it ends before what was read.
    pub(super) fn accept_other(&mut self, extent: &Extent) {
        self.proof = None;
        if extent.last.is_none_or(|last| last.saturating_add(1) < self.upper.max(self.position)) {
            (self.position, self.upper, self.started) = (0, 0, false);
        } else if let Some(first) = extent.first {
            self.skip_to(first);
        }
    }

    /// Whether offsets of a stream are missing before this delivery. Offsets need not be dense: the broker may keep its
    /// own books there. So it has to be asked what it still has.
    pub(super) fn jumps(&self, message: &Message) -> bool {
        self.started && message.offset.is_some_and(|offset| offset > self.position)
    }

    /// Takes a delivery.
    pub(super) fn take(&mut self, message: Message, receive_time: Nanos) -> Took {
        let took = match (self.kind, message.offset) {
            (RabbitKind::Stream, Some(offset)) => self.take_record(message, offset, receive_time),
            (RabbitKind::Queue, None) => self.take_message(message, receive_time),
            _ => return Took::OtherKind,
        };
        if took == Took::In {
            self.at_end = false;
            self.messages += 1;
        }
        took
    }

    fn take_record(&mut self, message: Message, offset: u64, receive_time: Nanos) -> Took {
        if self.end.is_some_and(|end| offset >= end) {
            // What is wanted may be gone by now: nothing before the end will come after this.
            self.position = self.position.max(self.end.unwrap_or(0));
            return Took::Beyond;
        }
        self.credit = Some(message.tag);
        if offset < self.position {
            return Took::Known;
        }
        self.decode(&message, offset, receive_time);
        self.proof = Some(message.fingerprint(offset));
        self.started = true;
        self.position = offset + 1;
        self.upper = self.upper.max(self.position);
        Took::In
    }

    fn take_message(&mut self, message: Message, receive_time: Nanos) -> Took {
        // Acknowledging one acknowledges all before it, so nothing is taken behind what was left to the broker.
        if self.beyond {
            return Took::Beyond;
        }
        let (identity, has_id) = (message.identity(), message.message_id.is_some());
        if self.deliveries.is_known(message.tag, identity, message.redelivered, has_id) {
            return Took::Known;
        }
        if self.is_done() {
            self.beyond = true;
            return Took::Beyond;
        }
        let offset = self.position;
        self.decode(&message, offset, receive_time);
        self.position += 1;
        self.deliveries.add(message.tag, offset, identity, has_id);
        let cursor = Cursor { partition: self.partition, offset, row: 0 };
        let Message { content_type, body, .. } = message;
        self.raw.push(RawMessage { cursor, content_type, receive_time, body, identity: Some(identity) });
        Took::In
    }

    fn decode(&mut self, message: &Message, offset: u64, receive_time: Nanos) {
        let cursor = Cursor { partition: self.partition, offset, row: 0 };
        let content_type = message.content_type.as_deref().map(str::as_bytes);
        let (body, before) = (Some(message.body.as_slice()), self.decoded.records.len());
        let decoder = if offset < self.upper { &self.again } else { &self.decoder };
        message::decode(decoder, self.carries, content_type, body, cursor, receive_time, &mut self.decoded);
        let greatest = self.decoded.records.event_times()[before..].iter().max().copied();
        self.event_time = self.event_time.max(greatest);
        self.bytes += message.body.len();
    }

    /// The record at the position cannot be transferred: it becomes a dead letter without its bytes. Of streams, where the
    /// next one can be asked for.
    pub(super) fn bury(&mut self, detail: &str) {
        let cursor = Cursor { partition: self.partition, offset: self.position, row: 0 };
        self.decoded.rejects.push(DeadLetter {
            cursor,
            reason: Reason::Malformed,
            field: "properties".to_owned(),
            value: String::new(),
            detail: format!("the message cannot be received: {detail}"),
            original: Vec::new(),
        });
        self.position += 1;
        self.started = true;
        self.proof = None;
        self.upper = self.upper.max(self.position);
        self.at_end = false;
        self.messages += 1;
    }

    /// Whether the batch should be sent before anything else is taken.
    pub(super) fn is_full(&self) -> bool {
        self.decoded.len() >= BATCH_ROWS || self.messages >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    /// What was taken since the last batch.
    pub(super) fn batch(&mut self, receive_time: Nanos) -> Option<Batch> {
        if self.messages == 0 {
            return None;
        }
        (self.messages, self.bytes) = (0, 0);
        let batch = Batch {
            records: std::mem::take(&mut self.decoded.records),
            rejects: std::mem::take(&mut self.decoded.rejects),
            accounts: std::mem::take(&mut self.decoded.accounts),
            unknown_fields: self.decoded.unknown_fields,
            upper: self.position,
            at_end: self.at_end,
            raw: std::mem::take(&mut self.raw),
            fingerprint: self.proof.filter(|_| self.kind == RabbitKind::Stream),
            ..Batch::new(self.partition, receive_time)
        };
        self.decoded.clear();
        Some(batch)
    }

    /// Nothing more is there now: the batch that says so, if it was not said.
    pub(super) fn reach_end(&mut self, receive_time: Nanos) -> Option<Batch> {
        let told = std::mem::replace(&mut self.at_end, true);
        let batch = Batch { upper: self.position, at_end: true, ..Batch::new(self.partition, receive_time) };
        (!told).then_some(batch)
    }

    /// The tag up to which a stream's deliveries were handed over: acknowledging it asks for more.
    pub(super) fn take_credit(&mut self) -> Option<u64> {
        self.credit.take()
    }

    /// The connection is gone, and its tags with it: what was not acknowledged comes again.
    pub(super) fn disconnect(&mut self) {
        self.credit = None;
        self.deliveries.disconnect();
        self.beyond = false;
        if self.kind == RabbitKind::Queue {
            self.end = None;
        }
    }
}

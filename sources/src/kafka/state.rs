//! What is known of one topic's partitions, and what follows from each message. No I/O: the shell tells what it met.

use super::KafkaError;
use super::config::partition;
use crate::message;
use crate::{BATCH_ROWS, Carries, Committed, Gap, GapCause, Gaps, Input, Lag, Lags, Resume};
use marea_model::codec::{Decoded, Decoder};
use marea_model::cursor::{Batch, Fingerprint};
use marea_model::{Cursor, Nanos, Partition};
use std::collections::{BTreeMap, BTreeSet};

/// More bytes than this do not wait for company: dead letters keep their bytes.
const BATCH_BYTES: usize = 8 << 20;

/// What holds for all partitions of a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) carries: Carries,
    pub(super) until_end: bool,
    pub(super) accept_gap: bool,
}

/// What a broker has of a partition: from `start`, and not yet `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A record, as the client has it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Message<'a> {
    pub(super) offset: u64,
    pub(super) timestamp_ms: i64,
    pub(super) content_type: Option<&'a [u8]>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) payload: Option<&'a [u8]>,
}

impl Message<'_> {
    /// How it reads.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let hash = hash(hash(0xcbf2_9ce4_8422_2325, self.key), self.payload);
        Fingerprint { offset: self.offset, timestamp_ms: self.timestamp_ms, hash }
    }
}

/// Hashes eight bytes at a time. Stored by the committer, so it is fixed for all time.
fn hash(seed: u64, bytes: Option<&[u8]>) -> u64 {
    let step = |h: u64, word: u64| (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let Some(bytes) = bytes else { return step(seed, u64::MAX) };
    let (words, rest) = bytes.as_chunks::<8>();
    let hashed = words.iter().fold(step(seed, bytes.len() as u64), |h, word| step(h, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    step(hashed, u64::from_le_bytes(last))
}

/// What the client's statistics say of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stood {
    /// Where its end was last reached; negative if never.
    pub(super) eof: i64,
    /// The first offset that the broker does not have; negative if unknown.
    pub(super) end: i64,
    /// Fetched messages of all partitions that nobody took yet.
    pub(super) queued: i64,
}

/// One partition.
struct Part {
    partition: Partition,
    /// The next offset to read.
    next: u64,
    /// Everything before it was read before: the log cannot be shorter.
    upper: u64,
    /// Where it ends for us.
    end: Option<u64>,
    at_end: bool,
    finished: bool,
    /// `next` and `at_end` of what was sent last.
    sent: Option<(u64, bool)>,
    /// The last record that was read.
    last: Option<Fingerprint>,
    /// An older one: read before the topic could have been recreated without notice.
    anchor: Option<Fingerprint>,
    /// The next anchor.
    recent: Option<Fingerprint>,
    /// What is being compared.
    asked: Option<Fingerprint>,
    /// Whether anything was read or resumed: then its offsets mean something.
    known: bool,
    event_time: Option<Nanos>,
    group_offset: Option<u64>,
    decoded: Decoded,
}

impl Part {
    /// Whether something that was committed is still to be read again.
    fn is_behind(&self) -> bool {
        !self.finished && self.next < self.upper
    }
}

/// The partitions of a topic.
pub(super) struct State {
    topic: String,
    rules: Rules,
    decoder: Decoder,
    /// For what was committed: it was judged when it came, by the clock of then.
    again: Decoder,
    gaps: Gaps,
    /// Whether nothing is sent: what is lost of what was committed is only told.
    checks: bool,
    /// Whether nothing new is read yet.
    only_committed: bool,
    /// What is to be said of logs that are others, before anything of them is sent.
    restarted: Vec<Input>,
    resume: BTreeMap<i32, Resume>,
    parts: Vec<Option<Part>>,
    /// Partitions with something to send.
    dirty: BTreeSet<usize>,
    rows: usize,
    bytes: usize,
}

impl State {
    pub(super) fn new(topic: &str, rules: Rules, decoder: Decoder, resume: &[Resume], gaps: Gaps) -> Self {
        let prefix = format!("kafka:{topic}/");
        let id = |resume: &Resume| resume.partition.as_str().strip_prefix(&prefix)?.parse().ok();
        let only_committed = resume.iter().any(|resume| resume.low < resume.upper);
        State {
            topic: topic.to_owned(),
            rules,
            again: Decoder { max_ahead: None, ..decoder.clone() },
            decoder,
            gaps,
            checks: false,
            only_committed,
            restarted: Vec::new(),
            resume: resume.iter().filter_map(|resume| Some((id(resume)?, *resume))).collect(),
            parts: Vec::new(),
            dirty: BTreeSet::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// From now on, what is lost of what was committed is told and not refused, if gaps are accepted.
    pub(super) fn check_only(&mut self) {
        self.checks = true;
    }

    /// Whether something that was committed is still to be read again.
    pub(super) fn is_behind(&self) -> bool {
        self.parts().any(|(_, part)| part.is_behind())
    }

    /// Whether nothing new is to be read yet, of any partition. If that changes, what came of it has been left out, and
    /// all has to be read from where it stands.
    pub(super) fn read_only_committed(&mut self, only: bool) -> bool {
        let changed = std::mem::replace(&mut self.only_committed, only) != only;
        if changed {
            for (at, part) in self.parts.iter_mut().enumerate().filter_map(|(at, part)| Some((at, part.as_mut()?))) {
                // It may have grown while it was not looked at.
                if !part.finished && std::mem::take(&mut part.at_end) {
                    self.dirty.insert(at);
                }
            }
        }
        changed
    }

    /// The partitions that are fetched now, by number, with where reading goes on.
    pub(super) fn fetching(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        let wanted = |part: &Part| !part.finished && (part.is_behind() || !self.only_committed);
        self.parts().filter(move |(_, part)| wanted(part)).map(|(id, part)| (id as i32, part.next))
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    pub(super) fn until_end(&self) -> bool {
        self.rules.until_end
    }

    /// The partitions that are read, by number, with where reading goes on.
    pub(super) fn reading(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        self.parts().filter(|(_, part)| !part.finished).map(|(id, part)| (id as i32, part.next))
    }

    /// The partitions that were met, by number.
    pub(super) fn ids(&self) -> impl Iterator<Item = i32> + '_ {
        self.parts().map(|(id, _)| id as i32)
    }

    /// Whether a partition was met before.
    pub(super) fn knows(&self, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| self.parts.get(id).is_some_and(Option::is_some))
    }

    /// Whether every partition is finished.
    pub(super) fn is_finished(&self) -> bool {
        self.parts().all(|(_, part)| part.finished)
    }

    fn parts(&self) -> impl Iterator<Item = (usize, &Part)> + '_ {
        self.parts.iter().enumerate().filter_map(|(id, part)| Some((id, part.as_ref()?)))
    }

    fn part(&mut self, id: i32) -> Option<(usize, &mut Part)> {
        let id = usize::try_from(id).ok()?;
        Some((id, self.parts.get_mut(id)?.as_mut()?))
    }

    /// The partitions that the topic has. Those that were read and are not among them are another topic's.
    pub(super) fn present(&mut self, ids: &BTreeSet<i32>) -> Result<(), KafkaError> {
        let resumed = self.resume.iter().map(|(id, resume)| (*id, (resume.upper, resume.low < resume.upper)));
        let read = self.parts().filter(|(_, part)| !part.finished);
        let read = read.map(|(id, part)| (id as i32, (part.next, part.is_behind())));
        let gone: BTreeMap<i32, _> = resumed.chain(read).filter(|(id, _)| !ids.contains(id)).collect();
        for (id, (upper, committed)) in gone {
            let partition = partition(&self.topic, id)?;
            let detail = format!("{upper} was the next offset, but the partition is gone");
            self.recreated(partition, upper, committed, detail, Bounds { start: 0, end: 0 })?;
            self.resume.remove(&id);
            match self.part(id) {
                Some((id, part)) => {
                    part.finished = true;
                    self.dirty.insert(id);
                }
                None => self.restarted.push(Input::Finished { partition }),
            }
        }
        Ok(())
    }

    /// Finds where to read a partition that is new, or that may have changed. Gives the offset of a record to compare, if
    /// there is one that can be.
    pub(super) fn locate(&mut self, id: i32, bounds: Bounds) -> Result<Option<u64>, KafkaError> {
        let Ok(at) = usize::try_from(id) else { return Ok(None) };
        if !self.knows(id) {
            let partition = partition(&self.topic, id)?;
            let resume = self.resume.remove(&id);
            if self.parts.len() <= at {
                self.parts.resize_with(at + 1, || None);
            }
            let next = resume.map_or(bounds.start, |resume| resume.low);
            // What was committed counts as sent: a partition that resumes at its upper need not say so.
            self.parts[at] = Some(Part {
                partition,
                next,
                upper: resume.map_or(next, |resume| resume.upper),
                end: None,
                at_end: false,
                finished: false,
                sent: Some((next, false)),
                last: resume.and_then(|resume| resume.fingerprint),
                anchor: resume.and_then(|resume| resume.fingerprint),
                recent: None,
                asked: None,
                known: resume.is_some(),
                event_time: None,
                group_offset: None,
                decoded: Decoded::default(),
            });
        }
        let Some(part) = self.parts.get_mut(at).and_then(Option::as_mut) else { return Ok(None) };
        let (partition, next, upper) = (part.partition, part.next, part.upper.max(part.next));
        let there = |record: &Fingerprint| record.offset >= bounds.start;
        part.asked = part.anchor.filter(there).or(part.last.filter(there));
        let mut compare = part.asked.map(|record| record.offset);
        if part.last.is_some() && compare.is_none() {
            tracing::debug!(%partition, start = bounds.start, "the last record read is beyond retention, and cannot be compared");
        }
        if !part.known {
            // Nothing was read of it: whatever is there now is its beginning.
            (part.next, part.upper) = (bounds.start, bounds.start);
            part.sent = Some((part.next, false));
        } else if bounds.end < upper {
            compare = None;
            let committed = part.is_behind();
            self.recreated(partition, next, committed, format!("{upper} was the next offset"), bounds)?;
            self.restart(at, bounds);
        } else if bounds.start > next {
            let committed = next < part.upper;
            if !self.rules.accept_gap || committed && !self.checks {
                return Err(KafkaError::Gap { partition, wanted: next, available: bounds.start });
            }
            part.next = bounds.start;
            let (wanted, available) = (next, bounds.start);
            self.gaps.push(Gap { partition, wanted, available, cause: GapCause::Retention, committed });
        }
        if self.rules.until_end {
            self.limit(at, bounds);
        }
        Ok(compare)
    }

    /// The record at the offset that [`Self::locate`] gave reads so; none if another one came in its place.
    pub(super) fn compare(&mut self, id: i32, found: Option<Fingerprint>, bounds: Bounds) -> Result<(), KafkaError> {
        let carries = self.rules.carries;
        let Some((at, part)) = self.part(id) else { return Ok(()) };
        let (partition, next, committed) = (part.partition, part.next, part.is_behind());
        let Some(last) = part.asked.take().filter(|asked| found != Some(*asked)) else { return Ok(()) };
        if found.is_none() && carries == Carries::Accounts {
            // A topic of snapshots may well be compacted: an older snapshot of an account goes when a newer one comes.
            tracing::debug!(%partition, offset = last.offset, "the last snapshot read was compacted, and cannot be compared");
            return Ok(());
        }
        let detail = match found {
            Some(_) => format!("the record at offset {} reads differently than when it was read", last.offset),
            None => format!("there is no record at offset {}, where one was read", last.offset),
        };
        self.recreated(partition, next, committed, detail, bounds)?;
        self.restart(at, bounds);
        if self.rules.until_end {
            self.limit(at, bounds);
        }
        Ok(())
    }

    fn recreated(
        &mut self,
        partition: Partition,
        wanted: u64,
        committed: bool,
        detail: String,
        bounds: Bounds,
    ) -> Result<(), KafkaError> {
        let Bounds { start, end } = bounds;
        if !self.rules.accept_gap || committed && !self.checks {
            return Err(KafkaError::Recreated { partition, detail, start, end });
        }
        tracing::warn!(%partition, detail, "the topic was recreated");
        self.gaps.push(Gap { partition, wanted, available: start, cause: GapCause::Recreated, committed });
        self.restarted.push(Input::Restarted { partition, upper: start });
        Ok(())
    }

    fn restart(&mut self, at: usize, bounds: Bounds) {
        if let Some(part) = self.parts.get_mut(at).and_then(Option::as_mut) {
            (part.next, part.upper) = (bounds.start, bounds.start);
            part.sent = Some((part.next, false));
            (part.last, part.anchor, part.recent, part.asked) = (None, None, None, None);
            (part.end, part.group_offset) = (None, None);
            (part.known, part.at_end) = (false, false);
        }
    }

    /// Ends a partition where it ends now, if that was not settled before.
    fn limit(&mut self, at: usize, bounds: Bounds) {
        if let Some(part) = self.parts.get_mut(at).and_then(Option::as_mut)
            && !part.finished
        {
            let end = *part.end.get_or_insert(bounds.end);
            if part.next >= end {
                (part.finished, part.at_end) = (true, part.next >= bounds.end);
                self.dirty.insert(at);
            }
        }
    }

    /// What announces a partition.
    pub(super) fn start(&self, id: i32) -> Option<Input> {
        let part = self.parts.get(usize::try_from(id).ok()?)?.as_ref()?;
        Some(Input::Start { partition: part.partition, carries: self.rules.carries })
    }

    /// A record came. Whether enough is pending to be sent.
    pub(super) fn message(&mut self, id: i32, message: &Message<'_>, now: Nanos) -> bool {
        let (carries, only_committed) = (self.rules.carries, self.only_committed);
        let Ok(at) = usize::try_from(id) else { return false };
        let Some(part) = self.parts.get_mut(at).and_then(Option::as_mut) else { return false };
        if part.finished || message.offset < part.next || only_committed && !part.is_behind() {
            return false;
        }
        if only_committed && message.offset >= part.upper {
            // It is new, and comes again later; what lies between was no record.
            part.next = part.upper;
            self.dirty.insert(at);
            return false;
        }
        let decoder = if message.offset < part.upper { &self.again } else { &self.decoder };
        if part.decoded.is_empty() {
            self.dirty.insert(at);
        }
        if let Some(end) = part.end.filter(|end| message.offset >= *end) {
            // What lies between was no record.
            (part.next, part.finished) = (end, true);
            return false;
        }
        let cursor = Cursor { partition: part.partition, offset: message.offset, row: 0 };
        let before = part.decoded.len();
        message::decode(decoder, carries, message.content_type, message.payload, cursor, now, &mut part.decoded);
        part.next = message.offset + 1;
        part.at_end = false;
        part.known = true;
        let read = message.fingerprint();
        part.last = Some(read);
        part.anchor.get_or_insert(read);
        part.finished = part.end.is_some_and(|end| part.next >= end);
        // A message counts even if it holds no rows.
        self.rows += (part.decoded.len() - before).max(1);
        self.bytes += message.payload.map_or(0, <[u8]>::len);
        self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    /// The end of a partition was reached.
    pub(super) fn eof(&mut self, id: i32) {
        let only_committed = self.only_committed;
        let Some((at, part)) = self.part(id) else { return };
        if part.finished {
            return;
        }
        if only_committed {
            // The end of what was committed: what is new was left out on the way here, and comes again.
            part.next = part.next.max(part.upper);
            self.dirty.insert(at);
            return;
        }
        part.at_end = true;
        if let Some(end) = part.end {
            // What lies between was no record.
            part.next = part.next.max(end);
            part.finished = true;
        }
        self.dirty.insert(at);
    }

    /// The client's statistics, once a second: how far behind, and how far beyond the last record the end is.
    pub(super) fn stood(&mut self, id: i32, stood: Stood, lags: &Lags) {
        let Some((at, part)) = self.part(id) else { return };
        let (end, mut moved) = (u64::try_from(stood.end).ok(), false);
        // Nothing is on its way, so nothing but markers lies before the end that was reached.
        if part.at_end
            && stood.queued == 0
            && let Ok(eof) = u64::try_from(stood.eof)
            && eof > part.next
            && end.is_some_and(|end| eof <= end)
        {
            part.next = eof;
            moved = !part.finished;
        }
        if let Some(end) = end {
            let records = end.saturating_sub(part.next);
            lags.set(part.partition, Lag { records, event_time: part.event_time });
        }
        if moved {
            self.dirty.insert(at);
        }
    }

    /// Some seconds went by, and the topic was the same: what was read before them is what later looks compare.
    pub(super) fn remember(&mut self) {
        for part in self.parts.iter_mut().flatten() {
            if let Some(recent) = part.recent.or(part.anchor) {
                part.anchor = Some(recent);
            }
            part.recent = part.last;
        }
    }

    /// What is to be sent now.
    pub(super) fn drain(&mut self, now: Nanos, out: &mut Vec<Input>) {
        out.append(&mut self.restarted);
        while let Some(at) = self.dirty.pop_first() {
            let Some(part) = self.parts.get_mut(at).and_then(Option::as_mut) else { continue };
            let stands = Some((part.next, part.at_end));
            if !part.decoded.is_empty() || part.sent != stands {
                part.sent = stands;
                out.push(Input::Batch(part.batch(now)));
            }
            if part.finished {
                out.push(Input::Finished { partition: part.partition });
            }
        }
        (self.rows, self.bytes) = (0, 0);
    }

    /// What the group's offsets should be now, where they are not.
    pub(super) fn commits(&mut self, committed: &Committed) -> Vec<(i32, u64)> {
        let parts = self.parts.iter_mut().enumerate().filter_map(|(id, part)| Some((id, part.as_mut()?)));
        let changed = parts.filter_map(|(id, part)| {
            let upper = committed.upper(part.partition)?;
            (part.group_offset.replace(upper) != Some(upper)).then_some((id as i32, upper))
        });
        changed.collect()
    }
}

impl Part {
    fn batch(&mut self, now: Nanos) -> Batch {
        let batch = Batch {
            records: std::mem::take(&mut self.decoded.records),
            rejects: std::mem::take(&mut self.decoded.rejects),
            accounts: std::mem::take(&mut self.decoded.accounts),
            unknown_fields: std::mem::take(&mut self.decoded.unknown_fields),
            upper: self.next,
            at_end: self.at_end,
            fingerprint: self.last,
            ..Batch::new(self.partition, now)
        };
        let ticks = batch.records.event_times().iter().copied().max();
        let accounts = batch.accounts.iter().map(|(_, account)| account.event_time).max();
        self.event_time = self.event_time.max(ticks).max(accounts);
        batch
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

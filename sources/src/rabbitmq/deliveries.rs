//! What a queue has delivered: what waits for its commit, for its acknowledgement, and what may come once more.
//!
//! A broker gives no identity to a message. What tells one from another is all that its producer gave it ([`identity`]).
//! Messages that are equal in that are interchangeable, so that only their number counts: of what was handed over and not
//! known to be acknowledged, as many are dropped as come again.
//!
//! A message is expected again from the connection's end on, or from the process's, since the store knows it
//! ([`marea_model::cursor::RawMessage::identity`]). It is taken for the one that is expected if the broker says that it is
//! delivered again, or if its producer gave it an id; anything else is new, though it be equal.
//!
//! **What is left.** The store learns of acknowledgements with its next commit. A message that was acknowledged in the
//! last two seconds before a kill is still expected; another one that is equal to it, without an id, and was on its way to
//! us at that moment, is then taken for it, and is not counted a second time.

use marea_model::cursor::MessageIdentity;
use std::collections::{HashMap, VecDeque};

/// Committed messages with an id that are remembered, so that one that its producer wrote again is known.
const REMEMBERED: usize = 100_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Delivery {
    /// What it is acknowledged by.
    tag: u64,
    /// Our number of the message.
    offset: u64,
    identity: MessageIdentity,
}

/// The deliveries of one queue.
#[derive(Default)]
pub(super) struct Deliveries {
    /// Of this connection, in the order of their tags: wait for their commit.
    unacked: VecDeque<Delivery>,
    /// Acknowledged; the broker has not shown yet that it knows.
    acked: VecDeque<Delivery>,
    /// Of connections before this one, also of processes before: offsets of the messages that may come once more.
    expected: HashMap<MessageIdentity, VecDeque<u64>>,
    /// The offsets of the messages with an id that were handed over.
    known: HashMap<MessageIdentity, u64>,
    /// The same in the order of their offsets.
    order: VecDeque<(MessageIdentity, u64)>,
    redelivered: u64,
}

impl Deliveries {
    /// These were handed over before, and may come once more.
    pub(super) fn expect(&mut self, offsets: impl IntoIterator<Item = (u64, MessageIdentity)>) {
        for (offset, identity) in offsets {
            self.expected.entry(identity).or_default().push_back(offset);
        }
    }

    /// Whether a delivery was handed over before. If so, it is acknowledged together with that.
    pub(super) fn is_known(&mut self, tag: u64, identity: MessageIdentity, redelivered: bool, has_id: bool) -> bool {
        let expected = if redelivered || has_id { self.take_expected(identity) } else { None };
        let written_again = || self.known.get(&identity).filter(|_| has_id).copied();
        let Some(offset) = expected.or_else(written_again) else { return false };
        self.unacked.push_back(Delivery { tag, offset, identity });
        self.redelivered += 1;
        true
    }

    fn take_expected(&mut self, identity: MessageIdentity) -> Option<u64> {
        let offsets = self.expected.get_mut(&identity)?;
        let offset = offsets.pop_front();
        if offsets.is_empty() {
            self.expected.remove(&identity);
        }
        offset
    }

    /// A message is handed over.
    pub(super) fn add(&mut self, tag: u64, offset: u64, identity: MessageIdentity, has_id: bool) {
        self.unacked.push_back(Delivery { tag, offset, identity });
        if has_id {
            self.known.insert(identity, offset);
            self.order.push_back((identity, offset));
        }
    }

    /// The tag up to which deliveries are committed: to be acknowledged now.
    pub(super) fn take_acks(&mut self, committed: u64) -> Option<u64> {
        let mut tag = None;
        while let Some(first) = self.unacked.pop_front_if(|first| first.offset < committed) {
            tag = Some(first.tag);
            self.acked.push_back(first);
        }
        while self.order.len() > REMEMBERED
            && let Some((identity, _)) = self.order.pop_front_if(|(_, offset)| *offset < committed)
        {
            self.known.remove(&identity);
        }
        tag
    }

    /// The last tag that was acknowledged and is not known to have arrived.
    pub(super) fn last_acked(&self) -> Option<u64> {
        self.acked.back().map(|last| last.tag)
    }

    /// The broker has answered something that was asked after this tag was acknowledged: these will not come again.
    pub(super) fn settle(&mut self, tag: u64) -> Vec<u64> {
        let settled = self.acked.partition_point(|delivery| delivery.tag <= tag);
        self.acked.drain(..settled).map(|delivery| delivery.offset).collect()
    }

    /// What was expected and has not come by now will not come: the broker had acknowledged it.
    pub(super) fn forget(&mut self) -> Vec<u64> {
        self.expected.drain().flat_map(|(_, offsets)| offsets).collect()
    }

    /// The connection is gone, and its tags with it: what is not known to be acknowledged may come again.
    pub(super) fn disconnect(&mut self) {
        let gone = self.acked.drain(..).chain(self.unacked.drain(..)).collect::<Vec<_>>();
        self.expect(gone.into_iter().map(|delivery| (delivery.offset, delivery.identity)));
    }

    /// Deliveries that wait for their commit.
    pub(super) fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// Deliveries that were handed over before.
    pub(super) fn redelivered(&self) -> u64 {
        self.redelivered
    }
}

//! The unsealed ticks of a symbol that did not come in order or are no plain trades, sorted by (event_time, seq), in
//! chunks: appended at the end in O(1), inserted anywhere by moving what is after it in its chunk, freed from the front
//! chunk by chunk.
//!
//! Memory: 32 bytes a trade, 48 a quote, in chunks of 256. Chunks that are full hold no slack, one that late ticks were
//! put into an eighth at most; the last one of a symbol and the first, which is freed as a whole, are over and above.

use marea_model::{Nanos, Price, Size};
use std::collections::VecDeque;

/// What orders and identifies the ticks of a symbol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) event_time: Nanos,
    pub(super) seq: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trade {
    pub(super) key: Key,
    pub(super) price: Price,
    pub(super) size: Size,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QuoteTick {
    pub(super) key: Key,
    pub(super) bid: Price,
    pub(super) ask: Price,
    pub(super) bid_size: Size,
    pub(super) ask_size: Size,
}

/// What a log holds.
pub(super) trait Entry: Copy {
    fn key(&self) -> Key;
}

impl Entry for Trade {
    #[inline]
    fn key(&self) -> Key {
        self.key
    }
}

impl Entry for QuoteTick {
    #[inline]
    fn key(&self) -> Key {
        self.key
    }
}

/// Entries that a chunk is filled with in order.
const CHUNK: usize = 256;

/// Chunks that wait to be used again: fresh memory costs more than what is written into it.
const SPARE: usize = 1024;

/// Empty chunks.
#[derive(Debug)]
pub(super) struct Pool<T>(Vec<Vec<T>>);

impl<T> Pool<T> {
    pub(super) fn new() -> Self {
        Pool(Vec::new())
    }

    fn give_back(&mut self, mut chunk: Vec<T>) {
        if self.0.len() < SPARE && chunk.capacity() >= CHUNK {
            chunk.clear();
            self.0.push(chunk);
        }
    }
}

/// What is there at a key, or else beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Around<T> {
    /// The greatest key before, if the key itself is not there.
    pub(super) before: Option<Key>,
    /// What is there.
    pub(super) found: Option<T>,
    /// Likewise the least key after.
    pub(super) after: Option<Key>,
}

impl<T> Default for Around<T> {
    fn default() -> Self {
        Around { before: None, found: None, after: None }
    }
}

/// Where an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    chunk: usize,
    at: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Log<T> {
    /// None empty; every key of a chunk is below those of the next, and below those of the tail.
    chunks: VecDeque<Vec<T>>,
    /// The last chunk: what comes in order is pushed here, up to [`CHUNK`] entries.
    tail: Vec<T>,
}

impl<T: Entry> Log<T> {
    pub(super) fn new() -> Self {
        Log { chunks: VecDeque::new(), tail: Vec::new() }
    }

    /// Bytes of its chunks.
    pub(super) fn bytes(&self) -> usize {
        let entries: usize = self.chunks.iter().chain([&self.tail]).map(Vec::capacity).sum();
        entries * size_of::<T>()
    }

    /// Makes room in the tail for an entry in order.
    fn rotate(&mut self, pool: &mut Pool<T>) {
        if self.tail.len() >= CHUNK {
            let fresh = pool.0.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
            self.chunks.push_back(std::mem::replace(&mut self.tail, fresh));
        }
    }

    fn chunk(&self, i: usize) -> &[T] {
        if i == self.chunks.len() { &self.tail } else { &self.chunks[i] }
    }

    pub(super) fn get(&self, place: Place) -> &T {
        &self.chunk(place.chunk)[place.at]
    }

    /// The first place whose entry is not before `key`; the end if there is none.
    fn lower_bound(&self, key: Key) -> Place {
        let chunk = match self.tail.first() {
            Some(first) if first.key() <= key => self.chunks.len(),
            _ => self.chunks.partition_point(|chunk| chunk.last().is_some_and(|last| last.key() < key)),
        };
        Place { chunk, at: self.chunk(chunk).partition_point(|entry| entry.key() < key) }
    }

    /// The entry of a key.
    pub(super) fn find(&self, key: Key) -> Option<Place> {
        let place = self.lower_bound(key);
        self.chunk(place.chunk).get(place.at).filter(|entry| entry.key() == key).map(|_| place)
    }

    /// Puts an entry with a new key in its place; gives the keys before and after it.
    pub(super) fn insert(&mut self, entry: T, pool: &mut Pool<T>) -> [Option<Key>; 2] {
        if let Some(last) = self.tail.last().map(Entry::key).filter(|last| *last < entry.key()) {
            self.rotate(pool);
            self.tail.push(entry);
            return [Some(last), None];
        }
        let Place { chunk: i, at } = self.lower_bound(entry.key());
        let before = match at.checked_sub(1) {
            Some(at) => Some(self.chunk(i)[at].key()),
            None => i.checked_sub(1).and_then(|i| self.chunk(i).last()).map(Entry::key),
        };
        let after = match self.chunk(i).get(at) {
            Some(entry) => Some(entry.key()),
            None if i < self.chunks.len() => self.chunk(i + 1).first().map(Entry::key),
            None => None,
        };
        if i == self.chunks.len() {
            if self.tail.len() < CHUNK {
                self.tail.insert(at, entry);
                return [before, after];
            }
            self.rotate(pool);
        }
        let chunk = &mut self.chunks[i];
        if chunk.len() == chunk.capacity() {
            if chunk.len() >= 2 * CHUNK {
                let upper = chunk.split_off(CHUNK);
                self.chunks.insert(i + 1, upper);
                self.insert(entry, pool);
                return [before, after];
            }
            // Late ticks are few: doubling a chunk for one would cost more memory than it saves time.
            chunk.reserve_exact(1 + chunk.len() / 8);
        }
        chunk.insert(at, entry);
        [before, after]
    }

    /// The entry of a key, or else the keys beside it.
    pub(super) fn around(&self, key: Key) -> Around<T> {
        let Place { chunk, at } = self.lower_bound(key);
        let entry = match self.chunk(chunk).get(at) {
            None if chunk < self.chunks.len() => self.chunk(chunk + 1).first(),
            entry => entry,
        };
        let before = match at.checked_sub(1) {
            Some(at) => self.chunk(chunk).get(at),
            None => chunk.checked_sub(1).and_then(|i| self.chunk(i).last()),
        };
        let before = before.map(Entry::key);
        match entry {
            Some(entry) if entry.key() == key => Around { before: None, found: Some(*entry), after: None },
            entry => Around { before, found: None, after: entry.map(Entry::key) },
        }
    }

    /// The entries of `[from, to)`, in order.
    pub(super) fn between(&self, from: Nanos, to: Nanos) -> impl Iterator<Item = &T> {
        let Place { chunk, at } = self.lower_bound(Key { event_time: from, seq: 0 });
        let first = self.chunk(chunk)[at..].iter();
        let rest = (chunk + 1..=self.chunks.len()).flat_map(|i| self.chunk(i));
        first.chain(rest).take_while(move |entry| entry.key().event_time < to)
    }

    /// Frees the chunks that end before `time`: nobody asks for them any more.
    pub(super) fn free_before(&mut self, time: Nanos, pool: &mut Pool<T>) {
        while let Some(chunk) = self.chunks.pop_front_if(|c| c.last().is_none_or(|last| last.key().event_time < time)) {
            pool.give_back(chunk);
        }
    }

    /// Entries, and how many there is room for.
    #[cfg(test)]
    pub(super) fn extent(&self) -> (usize, usize) {
        let chunks = self.chunks.iter().chain([&self.tail]);
        chunks.fold((0, 0), |(entries, room), chunk| (entries + chunk.len(), room + chunk.capacity()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn trade(event_time: Nanos, seq: u64) -> Trade {
        Trade { key: Key { event_time, seq }, price: Price(1), size: Size(1) }
    }

    #[test]
    fn a_retained_trade_is_within_40_bytes() {
        assert_eq!((size_of::<Trade>(), size_of::<QuoteTick>()), (32, 48));
        let (mut log, mut pool) = (Log::new(), Pool::new());
        let mut insert = |time, seq| {
            log.insert(trade(time, seq), &mut pool);
            let (entries, room) = log.extent();
            assert!(room <= entries + entries / 4 + 2 * CHUNK, "{entries} entries have room for {room}");
        };
        (0..100_000).for_each(|i| insert(i, 0));
        // One in a hundred is late.
        (0..1000).for_each(|i| insert(i * 97, 1));
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(
            steps in prop::collection::vec((0_i64..2000, 0_u64..3), 0..1500),
            cut in 0_i64..2500,
            range in (0_i64..2000, 0_i64..500),
        ) {
            let (mut log, mut map, mut pool) = (Log::new(), BTreeMap::new(), Pool::new());
            for (time, seq) in steps {
                let entry = trade(time, seq);
                if log.find(entry.key).is_some() {
                    prop_assert!(map.contains_key(&entry.key));
                    continue;
                }
                let before = map.range(..entry.key).next_back().map(|(k, _)| *k);
                let after = map.range(entry.key..).next().map(|(k, _)| *k);
                prop_assert_eq!(log.insert(entry, &mut pool), [before, after]);
                map.insert(entry.key, entry);
                prop_assert_eq!(log.find(entry.key).map(|place| *log.get(place)), Some(entry));
            }
            log.free_before(cut, &mut pool);
            let (from, to) = (range.0.max(cut), range.0.max(cut) + range.1);
            let expected: Vec<Trade> = map.into_values().filter(|t| (from..to).contains(&t.key.event_time)).collect();
            prop_assert_eq!(log.between(from, to).copied().collect::<Vec<_>>(), expected);
        }
    }
}

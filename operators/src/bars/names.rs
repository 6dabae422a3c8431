//! Symbols as dense numbers, so that the state of each is one index away.

use marea_model::Symbol;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Passes a symbol's own hash on: it is mixed already.
#[derive(Clone, Copy, Default, Debug)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Numbers symbols in the order of their first appearance. The numbers are this operator's own: they depend on
/// arrival and must not reach an output.
#[derive(Clone, Debug, Default)]
pub(crate) struct SymbolIndex {
    numbers: HashMap<Symbol, u32, BuildHasherDefault<NameHasher>>,
    /// Ticks come in runs of one symbol: comparing two pointers is cheaper than a look-up.
    last: Option<(Symbol, u32)>,
}

impl SymbolIndex {
    /// The number of `symbol`; a new one is the count of symbols so far.
    #[inline]
    pub(crate) fn number(&mut self, symbol: Symbol) -> usize {
        match self.last {
            Some((last, number)) if last == symbol => number as usize,
            _ => self.look_up(symbol),
        }
    }

    fn look_up(&mut self, symbol: Symbol) -> usize {
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry(symbol).or_insert(next);
        self.last = Some((symbol, number));
        number as usize
    }

    /// The number of `symbol`, if it has one.
    pub(crate) fn get(&self, symbol: Symbol) -> Option<usize> {
        self.numbers.get(&symbol).map(|n| *n as usize)
    }
}

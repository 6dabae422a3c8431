//! Ticks: trades and quotes, and what later says that they were wrong.

use crate::bar::BarBody;
use crate::name::Symbol;
use crate::num::{Price, Size};
use crate::time::Nanos;
use serde::{Deserialize, Serialize};

/// One record of the market. Its identity is (symbol, event_time, seq), across kinds and sources.
///
/// A bust or correction carries its *target's* event_time and seq. An amend carries its base bar's open time as
/// event_time, and seq 0.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Tick {
    /// The instrument.
    pub symbol: Symbol,
    /// The exchange's time.
    pub event_time: Nanos,
    /// Order within (symbol, event_time), and part of the identity.
    pub seq: u64,
    /// What happened.
    pub event: Event,
}

/// What a tick says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Event {
    /// A trade.
    Trade {
        /// Paid price.
        price: Price,
        /// Traded size, positive.
        size: Size,
    },
    /// A top-of-book quote. Sizes are 0 where unknown. It may be locked or crossed.
    Quote {
        /// Best bid.
        bid: Price,
        /// Best ask.
        ask: Price,
        /// Size at the bid.
        bid_size: Size,
        /// Size at the ask.
        ask_size: Size,
    },
    /// The target trade never was. Absorbs every correction of it.
    Bust,
    /// The target trade was really this.
    Correction {
        /// The highest wins; at equal rev the greater (price, size).
        rev: u32,
        /// The right price.
        price: Price,
        /// The right size.
        size: Size,
    },
    /// What a base bar really was.
    Amend(Box<Amend>),
}

impl Event {
    /// Its name on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Trade { .. } => "trade",
            Event::Quote { .. } => "quote",
            Event::Bust => "bust",
            Event::Correction { .. } => "correction",
            Event::Amend(_) => "amend",
        }
    }
}

/// The top of the book.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Quote {
    /// The exchange's time.
    pub event_time: Nanos,
    /// Order within the event time.
    pub seq: u64,
    /// Best bid.
    pub bid: Price,
    /// Best ask.
    pub ask: Price,
}

/// The replacement of one sealed base bar. The highest rev wins; at equal rev the greater body, `deleted` the greatest.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Amend {
    /// Revision.
    pub rev: u32,
    /// The whole bar, or none: deleted. Prices in units of the instrument's *bar* scale.
    pub bar: Option<BarBody>,
}

impl PartialOrd for Amend {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Amend {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |a: &Amend| (a.rev, a.bar.is_none(), a.bar);
        rank(self).cmp(&rank(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_a_cache_line() {
        assert!(size_of::<Tick>() <= 64, "{}", size_of::<Tick>());
    }

    #[test]
    fn the_highest_amend_wins_and_deleted_beats_a_bar() {
        let bar = Some(BarBody::first(Price(1), Size(1)));
        let amend = |rev, bar| Amend { rev, bar };
        assert!(amend(1, None) > amend(1, bar));
        assert!(amend(2, bar) > amend(1, None));
    }
}

//! Account snapshots.

use crate::name::{AccountId, Symbol};
use crate::num::Amount;
use crate::time::Nanos;
use serde::{Deserialize, Serialize};

/// The state of an account at a time. The greatest (event_time, seq) stands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AccountSnapshot {
    /// The account.
    pub account: AccountId,
    /// When it was so.
    pub event_time: Nanos,
    /// Order within event_time.
    pub seq: u64,
    /// Balance plus open profit, in `currency`.
    pub equity: Amount,
    /// Closed balance, in `currency`.
    pub balance: Amount,
    /// Three upper-case letters.
    pub currency: [u8; 3],
    /// Open positions, at most one a symbol, ordered by symbol.
    pub positions: Vec<Position>,
}

/// An open position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The instrument.
    pub symbol: Symbol,
    /// 1 long, −1 short.
    pub side: i8,
    /// Size, positive.
    pub lots: Amount,
}

impl AccountSnapshot {
    /// The side held in `symbol`: 1, −1, or 0 when flat.
    pub fn side(&self, symbol: Symbol) -> i8 {
        self.positions.iter().find(|p| p.symbol == symbol).map_or(0, |p| p.side)
    }
}

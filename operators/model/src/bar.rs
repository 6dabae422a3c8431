//! Bars.

use crate::name::Symbol;
use crate::num::{Decimal, Price, Size, fixed_to_f64};
use crate::time::{Nanos, Timeframe};
use serde::{Deserialize, Serialize};

/// What a bar is made of: everything but its key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BarBody {
    /// First price by (event_time, seq).
    pub open: Price,
    /// Highest price.
    pub high: Price,
    /// Lowest price.
    pub low: Price,
    /// Last price by (event_time, seq).
    pub close: Price,
    /// Sum of sizes, in units of 1e-8. 0 for bars of quotes.
    pub volume: i128,
    /// Sum of price · size, in units of 10^-(bar scale + 8). 0 for bars of quotes.
    pub turnover: i128,
    /// Trades, or quotes.
    pub count: u64,
}

/// A sum left i128 or u64: the bar is not what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sum of this bar overflows")]
pub struct BarOverflow;

impl BarBody {
    /// The bar of a single tick (size 0 for a quote).
    pub fn first(price: Price, size: Size) -> Self {
        let (volume, turnover) = (i128::from(size.0), price.turnover(size));
        BarBody { open: price, high: price, low: price, close: price, volume, turnover, count: 1 }
    }

    /// Adds what comes after it in time. Both a tick and a later bar are bodies, so roll-ups equal bars of ticks.
    pub fn append(&mut self, later: &BarBody) -> Result<(), BarOverflow> {
        self.volume = self.volume.checked_add(later.volume).ok_or(BarOverflow)?;
        self.turnover = self.turnover.checked_add(later.turnover).ok_or(BarOverflow)?;
        self.count = self.count.checked_add(later.count).ok_or(BarOverflow)?;
        self.high = self.high.max(later.high);
        self.low = self.low.min(later.low);
        self.close = later.close;
        Ok(())
    }
}

/// One bar `[open_time, open_time + timeframe)` of a symbol, as a row of the state table `bars`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Bar {
    /// The instrument.
    pub symbol: Symbol,
    /// Its length.
    pub timeframe: Timeframe,
    /// Its first instant.
    pub open_time: Nanos,
    /// Prices and sums.
    pub body: BarBody,
    /// Digits after the point of its prices.
    pub scale: u8,
    /// Whether its time is over and every partition is past it.
    pub closed: bool,
}

impl Bar {
    /// The first instant after it.
    pub fn close_time(&self) -> Nanos {
        self.open_time + self.timeframe.nanos()
    }

    /// One of its prices, for people.
    pub fn price(&self, price: Price) -> Decimal {
        price.decimal(self.scale)
    }

    /// Volume-weighted average price; null without volume.
    pub fn vwap(&self) -> Option<f64> {
        (self.body.volume > 0).then(|| fixed_to_f64(self.body.turnover, self.scale) / self.body.volume as f64)
    }
}

//! Marea's ground floor: what a tick, a bar, a strategy, a policy, a recommendation and a verdict *are*, and how
//! they read on the wire. No dataflow, no clock, no I/O: everything here is a value or a pure function.
//!
//! Times are nanoseconds since 1970 UTC unless a name says otherwise (`now_ms`). Prices and sizes are fixed-point
//! integers ([`Price`], [`Size`]), so equal input gives equal bits everywhere.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod account;
pub mod bar;
pub mod codec;
pub mod cursor;
pub mod instrument;
pub mod live;
pub mod name;
pub mod num;
pub mod output;
pub mod policy;
pub mod progress;
pub mod recommendation;
pub mod restore;
pub mod security;
pub mod strategy;
pub mod tick;
pub mod ticks;
pub mod time;
pub mod verdict;
pub mod window;

pub use account::{AccountSnapshot, Position};
pub use bar::{Bar, BarBody};
pub use cursor::{Cursor, DeadLetter, PartitionMark, RawMessage, Reason, Record};
pub use instrument::{Instrument, Instruments, PriceSource};
pub use live::{ConfigUpdate, LiveConfig};
pub use name::{AccountId, Partition, StrategyId, Symbol};
pub use num::{Amount, Decimal, F64, Price, Size};
pub use output::{Delta, IndicatorBars, IndicatorRow, Metrics, MetricsRow, Output, Rows, TradeRow};
pub use policy::Policy;
pub use progress::Progress;
pub use recommendation::Recommendation;
pub use restore::{Restoration, Sealed};
pub use strategy::Strategy;
pub use tick::{Amend, Event, Quote, Tick};
pub use ticks::{TickSlice, Ticks};
pub use time::{Epoch, Nanos, Timeframe};
pub use verdict::{BlockReason, Verdict};
pub use window::Window;

//! Base bars from ticks: for each symbol and base bucket `[open_time, open_time + base)` the first, highest, lowest and
//! last price by (event_time, seq), and the sums of size, price · size and ticks.
//!
//! * Key: (symbol, open_time). Bars of `last` are made of trades; of `mid` and `bid`, of quotes (volume and turnover 0).
//! * Corrects: a bar is given again whenever its body differs at an epoch's end, `None` when no tick of it stands any
//!   more. At most one [`BarUpsert`] a bar an epoch.
//! * Ties: the identity of a tick is (symbol, event_time, seq), over all kinds and sources. The first to arrive stands;
//!   the same again is a duplicate, another payload a dead letter `conflict`.
//! * A bust or correction holds until its target arrives; when the target's event time is before `sealed_through` and
//!   it has not come, it is a dead letter `unknown_target`. A bust absorbs; else the highest (rev, price, size) wins.
//!   One that has no effect (superseded, or after a bust) is accepted; the same again is a duplicate. Their targets are
//!   trades: of a quote they are dead letters `conflict`, whichever came first.
//! * An amend is held until its bar seals (its close ≤ `sealed_through`), then replaces the bar of ticks; the highest
//!   (rev, body) wins. An amend of a bar that has sealed applies at once; the first one is passed on even if it says
//!   what the bar is already, since a sealed bar is no longer here to compare (roll-up drops it).
//! * Late data: the cutter has judged. Whatever comes for a sealed bucket nevertheless is a dead letter `late`.
//! * Overflow: a trade or correction whose Σ|price · size| of the bar would leave i128, or a quote whose mid leaves i64,
//!   is a dead letter `overflow` and not in the log. Which of several trades is one too many depends on the order of
//!   arrival; nothing else here does, but for [`Counts::price_jumps`]. (It takes three trades of the greatest price and size.)
//! * State: trades that came in order, left in the batches that brought them ([`retained`]: 36 to 39 bytes each); per
//!   symbol the latest quote, its other unsealed ticks ([`log`]: 32 bytes a trade, 48 a quote) and its open buckets
//!   ([`bucket`]: 128 bytes). Ticks are freed when their buckets have sealed; all amends of a bar are kept for ever.
//! * Cost: a trade in order is added to its symbol's bar ([`hot`]), and that is all; of small batches it is copied once.
//!   A late tick, bust or correction first has the batch that holds its bar's trades indexed, once, some nanoseconds a
//!   row; then it costs O(log n), and a bust or correction the rebuilding of its one bar, once an epoch. Sealing looks
//!   only at symbols that have something to seal.
//! * The output frontier promises: all bars, quotes, dead letters and counts of the epochs before it.

mod bucket;
mod hot;
mod kernel;
mod log;
mod names;
mod records;
mod retained;
mod shared;
mod symbol;
#[cfg(test)]
mod tests;

pub use kernel::Bars;
pub(crate) use names::SymbolIndex;

use crate::epochs::{Clock, EpochOperator, EpochStream};
pub use marea_model::tick::Quote;
use marea_model::{BarBody, DeadLetter, Nanos, Symbol};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// A base bar as it stands now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BarUpsert {
    /// The instrument.
    pub symbol: Symbol,
    /// Its first instant.
    pub open_time: Nanos,
    /// None: no bar stands any more.
    pub body: Option<BarBody>,
}

/// The latest quote of a symbol, once an epoch when it changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct QuoteUpdate {
    /// The instrument.
    pub symbol: Symbol,
    /// The quote of the greatest (event_time, seq). None: the symbol has appeared, without a quote so far.
    pub quote: Option<Quote>,
}

/// What became of an epoch's records: `records = accepted + duplicate + dead + held`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Records that count, also held ones whose time has come.
    pub accepted: i64,
    /// Records that were there already.
    pub duplicate: i64,
    /// Dead letters.
    pub dead: i64,
    /// The change of the number of records that wait for a target or a seal.
    pub held: i64,
    /// Accepted prices, in order, more than [`JUMP_PERCENT`] % from the one before: kept, and counted beside the above. A hint
    /// and no state: ticks that arrive in another order may count otherwise.
    pub price_jumps: i64,
}

/// How far, in percent, a price may be from the one before it without being counted as a jump.
pub const JUMP_PERCENT: i128 = 10;

/// All that an epoch gave.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BarsOutput {
    /// Bars whose body changed, each once, in no particular order.
    pub bars: Vec<BarUpsert>,
    /// Latest quotes that changed, each symbol once, in no particular order.
    pub quotes: Vec<QuoteUpdate>,
    /// Refused records, by cursor.
    pub dead: Vec<DeadLetter>,
    /// What became of the records.
    pub counts: Counts,
}

/// What [`bars`] gives.
pub struct BarsStreams<'scope> {
    /// Base bars that changed, on the worker of their symbol: one vector for each epoch that has any.
    /// Beside whom [`route`](crate::route) serves, the scan alone may read it: that a vector is alive says that it has not.
    pub bars: EpochStream<'scope, Arc<Vec<BarUpsert>>>,
    /// Latest quotes that changed.
    pub quotes: EpochStream<'scope, QuoteUpdate>,
    /// Refused records.
    pub dead: EpochStream<'scope, DeadLetter>,
    /// One for each epoch and worker that had something to count.
    pub counts: EpochStream<'scope, Counts>,
    /// Bytes that the kernel of this worker holds, as of the last epoch that asked for metrics.
    pub bytes: Rc<Cell<usize>>,
}

/// The operator: every worker is fed all ticks, and takes those of the symbols that it owns.
pub fn bars<'scope>(clock: Clock<'scope>, mut kernel: Bars) -> BarsStreams<'scope> {
    let mut operator = EpochOperator::new("bars", clock);
    let (bars, bar_stream) = operator.output();
    let (quotes, quote_stream) = operator.output();
    let (dead, dead_stream) = operator.output();
    let (counts, count_stream) = operator.output();
    let bytes = Rc::new(Cell::new(0));
    let held = Rc::clone(&bytes);
    operator.build(move |_, feed| {
        if let Some(sealed) = &feed.sealed {
            kernel.restore(sealed, feed.progress.sealed_through);
        }
        let mut output = kernel.epoch(&feed.ticks, Some(feed.progress));
        if feed.metrics {
            held.set(kernel.bytes());
        }
        if feed.sealed.is_some() {
            // Judged and counted before, by the process that was killed.
            (output.dead, output.counts) = (Vec::new(), Counts::default());
        }
        if !output.bars.is_empty() {
            bars.give(Arc::new(output.bars));
        }
        quotes.give_vec(output.quotes);
        dead.give_vec(output.dead);
        if output.counts != Counts::default() {
            counts.give(output.counts);
        }
    });
    BarsStreams { bars: bar_stream, quotes: quote_stream, dead: dead_stream, counts: count_stream, bytes }
}

//! The backtest of a strategy on a symbol: a state machine over closed bars.
//!
//! A **signal** is a change of the rule's side at a bar's close; before the warm-up's end that side is 0. It fills at
//! the next closed bar, `next_open` at its open or `next_close` at its close, slippage against it, commission on its
//! notional. What happens within bar `i`, in order:
//!
//! | | `next_open` | `next_close` |
//! |---|---|---|
//! | 1 | the pending signal fills at the open | |
//! | 2 | stop and target, also of what has just been entered | stop and target of what was held before |
//! | 3 | | the pending signal fills at the close |
//! | 4 | the equity is marked to the close | the same |
//! | 5 | the rule steps; another side than before is the new pending signal | the same |
//!
//! - **A flip** is an exit and an entry at one price. **Re-entry** after a stop or target needs a new signal.
//! - **Stop and target** lie `stop_loss` and `take_profit` ATR(14) of the signal's bar from the fill (slippage
//!   included). They are looked for in this order: an open at or beyond the stop fills at the open; an open at or
//!   beyond the target fills at the open; a low (long; a high, short) at or beyond the stop fills at the stop; a high
//!   (low) at or beyond the target fills at the target. Slippage also on stops, never on targets.
//! - **Times**: a fill at an open has the bar's open time, any other its close time.
//! - **Size**: `all_in` puts the whole equity in, price · (1 + commission) a unit, long or short; `units` always as
//!   many, on credit if need be. Nothing is entered while the equity is ≤ 0, nor `all_in` at a price ≤ 0: the signal
//!   passes. An open position is never closed for want of equity, so a short can leave less than nothing; then no
//!   trade follows.
//! - **Equity** = cash + units · close at every closed bar, no commission for an exit not yet made.
//!
//! The state is some 450 bytes, `Copy`, and compared bit by bit: its own checkpoint. It holds sums over all history, so
//! after an edit it runs to the tip. Cost: about 10 ns a bar beside what the rule costs; no allocation.
//!
//! ```
//! use marea_model::{StrategyId, strategy::parse_strategy};
//! use marea_operators::backtest::{Backtest, Params, Recorded, metrics_all};
//! use marea_operators::series::{Series, SeriesBar};
//!
//! let json = r#"{"kind":"ema_cross","fast":1,"slow":2,"sides":"long","timeframe":"1d","size":10.0}"#;
//! let params = Params::new(&parse_strategy(StrategyId::new("s").unwrap(), json).unwrap());
//! let mut series = Series::new();
//! for (day, close) in [10.0, 11.0, 12.0, 9.0, 8.0].into_iter().enumerate() {
//!     let open_time = day as i64 * 86_400_000_000_000;
//!     series.push(SeriesBar { open_time, open: close, high: close, low: close, close, volume: 1.0, turnover: close });
//! }
//! let (mut backtest, mut events) = (Backtest::new(&params), Recorded::default());
//! backtest.run(&params, &series, 0..5, &mut events);
//! // Bar 1 closes above its averages: bought at bar 2's open, 12. Bar 3 closes below: sold at bar 4's open, 8.
//! let trade = events.trades[0];
//! assert_eq!((trade.entry_price.0, trade.exit_price.0, trade.pnl.0), (12.0, 8.0, -40.0));
//! assert_eq!(backtest.equity(), 99_960.0);
//! assert_eq!(metrics_all(&backtest, &params).trades, 1);
//! ```

mod columns;
mod partial;

pub use columns::{ColumnEvents, Columns, Replay};
pub use partial::{DayPartial, TRAILING_DAYS, metrics, metrics_30d};

use crate::indicators::{Atr, Kernel, Values};
use crate::series::{Series, utc_day};
use crate::strategies::{Rule, RuleKernel, RuleState, with_rule};
use marea_model::name::{StrategyId, Symbol};
use marea_model::num::F64;
use marea_model::output::{ExitReason, Metrics, TradeRow};
use marea_model::strategy::{ATR_PERIOD, Fill, Sizing, Strategy};
use marea_model::time::{Nanos, Timeframe};
use std::ops::Range;

/// Basis points in one.
const BPS: f64 = 10_000.0;

/// What a backtest needs of a strategy, computed once and shared by its symbols.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Params {
    rule: Rule,
    /// The least and the greatest side that it takes.
    sides: [i8; 2],
    fill: Fill,
    sizing: Sizing,
    timeframe: Timeframe,
    /// Distances in ATRs.
    stop_loss: Option<f64>,
    take_profit: Option<f64>,
    /// Where there is a stop or a target.
    atr: Option<Atr>,
    /// Fractions.
    slippage: f64,
    commission: f64,
    capital: f64,
    warm_up: u32,
    lookback: usize,
}

impl Params {
    /// Of a strategy.
    pub fn new(strategy: &Strategy) -> Self {
        let rule = Rule::new(&strategy.kind, strategy.seed);
        let stops = strategy.stop_loss.is_some() || strategy.take_profit.is_some();
        let atr = stops.then(|| Atr::new(ATR_PERIOD));
        Params {
            rule,
            sides: [-1, 1].map(|side| strategy.sides.allow(side)),
            fill: strategy.fill,
            sizing: strategy.sizing,
            timeframe: strategy.timeframe,
            stop_loss: strategy.stop_loss.map(|d| d.0),
            take_profit: strategy.take_profit.map(|d| d.0),
            atr,
            slippage: strategy.slippage_bps.0 / BPS,
            commission: strategy.commission_bps.0 / BPS,
            capital: strategy.capital.0,
            warm_up: rule.warm_up().max(atr.map_or(0, |atr| atr.warm_up())),
            lookback: rule.lookback().max(atr.map_or(0, |atr| atr.lookback())),
        }
    }

    /// How many bars before bar `i` a step reads.
    pub fn lookback(&self) -> usize {
        self.lookback
    }

    /// How many bars it takes until the rule has a side.
    pub fn warm_up(&self) -> u32 {
        self.warm_up
    }

    /// The bars it runs on.
    pub fn timeframe(&self) -> Timeframe {
        self.timeframe
    }

    /// Bars in 365 days.
    pub fn periods_per_year(&self) -> f64 {
        self.timeframe.periods_per_year()
    }

    /// `price` moved against who trades: up for a buyer (`side` 1), down for a seller (−1).
    fn slipped(&self, price: f64, side: f64) -> f64 {
        price + side * (price.abs() * self.slippage)
    }
}

/// A trade that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the fields are those of TradeRow")]
pub struct ClosedTrade {
    pub side: i8,
    pub entry_time: Nanos,
    pub entry_price: F64,
    pub exit_time: Nanos,
    pub exit_price: F64,
    pub quantity: F64,
    pub pnl: F64,
    pub fees: F64,
    pub exit_reason: ExitReason,
}

impl ClosedTrade {
    /// As a row of the state table `trades`.
    pub fn row(&self, strategy: StrategyId, symbol: Symbol, timeframe: Timeframe) -> TradeRow {
        TradeRow {
            strategy,
            symbol,
            timeframe,
            entry_time: self.entry_time,
            side: self.side,
            entry_price: self.entry_price,
            exit_time: self.exit_time,
            exit_price: self.exit_price,
            quantity: self.quantity,
            pnl: self.pnl,
            fees: self.fees,
            exit_reason: self.exit_reason,
        }
    }
}

/// Where a backtest's trades and completed days go. At most two trades a bar, in order.
pub trait Events {
    /// A trade has ended in this bar.
    fn trade(&mut self, trade: &ClosedTrade);
    /// This bar begins another UTC day than the last: that day is complete. Comes before this bar's trades.
    fn day(&mut self, day: &DayPartial);
}

/// Nowhere.
impl Events for () {
    fn trade(&mut self, _: &ClosedTrade) {}
    fn day(&mut self, _: &DayPartial) {}
}

/// All of them, in order.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// Trades by exit.
    pub trades: Vec<ClosedTrade>,
    /// Completed days.
    pub days: Vec<DayPartial>,
}

impl Events for Recorded {
    fn trade(&mut self, trade: &ClosedTrade) {
        self.trades.push(*trade);
    }
    fn day(&mut self, day: &DayPartial) {
        self.days.push(*day);
    }
}

/// A backtest after some bars: nothing but state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backtest {
    rule: RuleState,
    book: Book,
}

/// All but the rule's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Book {
    atr: F64,
    cash: F64,
    /// Signed: positive is long, 0 is flat, and then the four below are 0 too.
    units: F64,
    entry_price: F64,
    entry_time: Nanos,
    /// Infinitely far where there is none.
    stop: F64,
    target: F64,
    /// ATR of the bar of the pending signal, else 0.
    signal_atr: F64,
    /// Bars seen, up to the warm-up.
    age: u32,
    /// The side of the last signal.
    side: i8,
    /// It has not been filled yet.
    pending: bool,
    /// Its position has ended by a stop or target.
    stopped: bool,
    /// All days before the current one.
    past: DayPartial,
    today: DayPartial,
}

impl Backtest {
    /// Before the first bar.
    pub fn new(params: &Params) -> Self {
        let book = Book {
            atr: F64(0.0),
            cash: F64(params.capital),
            units: F64(0.0),
            entry_price: F64(0.0),
            entry_time: 0,
            stop: F64(0.0),
            target: F64(0.0),
            signal_atr: F64(0.0),
            age: 0,
            side: 0,
            pending: false,
            stopped: false,
            past: DayPartial::default(),
            today: DayPartial::open(0, params.capital, 0.0),
        };
        Backtest { rule: params.rule.start(), book }
    }

    /// Takes bar `i`, the one after the last that it took.
    #[inline]
    pub fn step<E: Events>(&mut self, params: &Params, series: &Series, i: usize, events: &mut E) {
        let book = &mut self.book;
        with_rule!(&params.rule, &mut self.rule, |rule, state| book.step(rule, state, params, series, i, events));
    }

    /// Takes `bars` one after the other: as [`Backtest::step`], but the rule is told apart only once.
    pub fn run<E: Events>(&mut self, params: &Params, series: &Series, bars: Range<usize>, events: &mut E) {
        let book = &mut self.book;
        with_rule!(&params.rule, &mut self.rule, |rule, state| {
            // A copy that nothing else can see stays in registers.
            let mut local = *state;
            for i in bars {
                book.step(rule, &mut local, params, series, i, events);
            }
            *state = local;
        });
    }

    /// The side of the last signal, 0 after a stop or target until the next one.
    pub fn standing_side(&self) -> i8 {
        if self.book.stopped { 0 } else { self.book.side }
    }

    /// How much the rule's side is worth in a recommendation, 0 to 1.
    pub fn confidence(&self, params: &Params) -> f64 {
        params.rule.confidence(&self.rule)
    }

    /// The values behind the rule's side; `i` is the last bar taken. In the order of
    /// [`marea_model::recommendation::reason_names`].
    pub fn values(&self, params: &Params, series: &Series, i: usize) -> Values {
        params.rule.values(&self.rule, self.book.age, series, i)
    }

    /// The equity at the last close.
    pub fn equity(&self) -> f64 {
        self.book.today.last_equity.0
    }

    /// The current UTC day so far, that of the last bar.
    pub fn day(&self) -> &DayPartial {
        &self.book.today
    }
}

/// The metrics over all history.
pub fn metrics_all(backtest: &Backtest, params: &Params) -> Metrics {
    let Book { past, today, .. } = &backtest.book;
    if past.bars == 0 {
        return metrics(today, params);
    }
    let mut all = *past;
    all.merge(today);
    metrics(&all, params)
}

impl Book {
    #[inline(always)]
    fn step<R: RuleKernel, E: Events>(
        &mut self,
        rule: &R,
        state: &mut R::State,
        params: &Params,
        series: &Series,
        i: usize,
        events: &mut E,
    ) {
        let (open_time, close) = (series.open_time[i], series.close[i]);
        let day = utc_day(open_time);
        if day != self.today.day || self.today.bars == 0 {
            self.begin_day(day, close, events);
        }
        self.trade(params, series, i, events);
        self.today.mark(self.cash.0 + self.units.0 * close, close, self.units.0 != 0.0);
        if let Some(atr) = &params.atr {
            atr.next(&mut self.atr, self.age, series, i);
        }
        let [least, greatest] = params.sides;
        let side = rule.step(state, self.age, series, i).clamp(least, greatest);
        if self.age < params.warm_up {
            self.age += 1;
            if self.age < params.warm_up {
                return;
            }
        }
        if side != self.side {
            self.signal(side, self.atr);
        }
    }

    /// What bar `i` fills: the pending signal, stop and target.
    #[inline(always)]
    fn trade<E: Events>(&mut self, params: &Params, series: &Series, i: usize, events: &mut E) {
        if self.pending && params.fill == Fill::NextOpen {
            self.fill(params, series.open[i], series.open_time[i], events);
        }
        if params.atr.is_some() && self.units.0 != 0.0 {
            self.stops(params, series, i, events);
        }
        if self.pending {
            self.fill(params, series.close[i], series.open_time[i] + params.timeframe.nanos(), events);
        }
    }

    /// The rule has another side than before, at the close of a bar with this ATR.
    #[inline(always)]
    fn signal(&mut self, side: i8, atr: F64) {
        self.side = side;
        self.pending = true;
        self.stopped = false;
        self.signal_atr = atr;
    }

    #[cold]
    fn begin_day<E: Events>(&mut self, day: i32, close: f64, events: &mut E) {
        let done = self.today;
        if done.bars == 0 {
            // The first bar of history: there is no close before it.
            self.today = DayPartial::open(day, done.open_equity.0, close);
            return;
        }
        events.day(&done);
        if self.past.bars == 0 {
            self.past = done;
        } else {
            self.past.merge(&done);
        }
        self.today = DayPartial::open(day, done.last_equity.0, done.last_close.0);
    }

    /// Fills the pending signal: whatever is held goes out, its side comes in.
    #[inline(never)]
    fn fill<E: Events>(&mut self, params: &Params, price: f64, time: Nanos, events: &mut E) {
        if self.units.0 != 0.0 {
            let price = params.slipped(price, -self.units.0.signum());
            self.exit(params, price, time, ExitReason::Signal, events);
        }
        if self.side != 0 {
            self.enter(params, price, time);
        }
        self.pending = false;
        self.stopped = false;
        self.signal_atr.0 = 0.0;
    }

    fn enter(&mut self, params: &Params, price: f64, time: Nanos) {
        let equity = self.cash.0;
        let side = f64::from(self.side);
        let price = params.slipped(price, side);
        let all_in = params.sizing == Sizing::AllIn;
        let quantity = match params.sizing {
            Sizing::AllIn => equity / (price * (1.0 + params.commission)),
            Sizing::Units(units) => units.0,
        };
        if equity <= 0.0 || (all_in && price <= 0.0) {
            return;
        }
        let fee = quantity * price.abs() * params.commission;
        self.units.0 = side * quantity;
        // All in, the cash is spent to the last bit.
        self.cash.0 = if all_in && side > 0.0 { 0.0 } else { equity - self.units.0 * price - fee };
        self.entry_price.0 = price;
        self.entry_time = time;
        let distance = |atrs: Option<f64>| atrs.map_or(f64::INFINITY, |atrs| atrs * self.signal_atr.0);
        self.stop.0 = price - side * distance(params.stop_loss);
        self.target.0 = price + side * distance(params.take_profit);
    }

    #[inline(never)]
    fn exit<E: Events>(&mut self, params: &Params, price: f64, time: Nanos, reason: ExitReason, events: &mut E) {
        let (units, entry) = (self.units.0, self.entry_price.0);
        let quantity = units.abs();
        let fee = |price: f64| quantity * price.abs() * params.commission;
        let (entry_fee, exit_fee) = (fee(entry), fee(price));
        let trade = ClosedTrade {
            side: if units > 0.0 { 1 } else { -1 },
            entry_time: self.entry_time,
            entry_price: self.entry_price,
            exit_time: time,
            exit_price: F64(price),
            quantity: F64(quantity),
            pnl: F64(units * (price - entry) - entry_fee - exit_fee),
            fees: F64(entry_fee + exit_fee),
            exit_reason: reason,
        };
        let risk = if params.stop_loss.is_some() { quantity * (entry - self.stop.0).abs() } else { 0.0 };
        self.today.count(&trade, risk);
        events.trade(&trade);
        self.cash.0 += units * price - exit_fee;
        self.units.0 = 0.0;
        self.entry_price.0 = 0.0;
        self.entry_time = 0;
        self.stop.0 = 0.0;
        self.target.0 = 0.0;
    }

    #[inline(never)]
    fn stops<E: Events>(&mut self, params: &Params, series: &Series, i: usize, events: &mut E) {
        let side = self.units.0.signum();
        let (stop, target) = (side * self.stop.0, side * self.target.0);
        let (adverse, favourable) =
            if side > 0.0 { (series.low[i], series.high[i]) } else { (-series.high[i], -series.low[i]) };
        if adverse > stop && favourable < target {
            return;
        }
        let open = side * series.open[i];
        let (reason, at_open) = if open <= stop {
            (ExitReason::StopLoss, true)
        } else if open >= target {
            (ExitReason::TakeProfit, true)
        } else if adverse <= stop {
            (ExitReason::StopLoss, false)
        } else {
            (ExitReason::TakeProfit, false)
        };
        let level = if reason == ExitReason::StopLoss { self.stop.0 } else { self.target.0 };
        let price = if at_open { series.open[i] } else { level };
        let price = if reason == ExitReason::StopLoss { params.slipped(price, -side) } else { price };
        let time = series.open_time[i] + if at_open { 0 } else { params.timeframe.nanos() };
        self.exit(params, price, time, reason, events);
        self.stopped = true;
    }
}

#[cfg(test)]
mod tests;

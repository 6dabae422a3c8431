//! What a UTC day of bars did to a backtest, and the metrics of a run of days.
//!
//! Sums are made day by day, in time order, and days are merged oldest first: `all` is every day, `30d` the last
//! thirty. So both are the same function of the same history, whatever was recomputed on the way, and equal to the
//! bit.
//!
//! Conventions (n bars, r the return of the equity over each, A the bars of 365 days):
//!
//! | metric | formula | none where |
//! |---|---|---|
//! | total return | last ÷ first − 1, first being the equity before the first bar | the equity before was ≤ 0 |
//! | CAGR | (last ÷ first)^(A/n) − 1 | likewise, or it overflows |
//! | Sharpe | mean r ÷ std(r, ddof 1) · √A | n < 2 or nothing varies |
//! | Sortino | mean r ÷ √(Σ min(r, 0)² ÷ n) · √A | nothing was lost |
//! | max drawdown | max(1 − equity ÷ peak), the peak from the equity before | the equity before was ≤ 0 |
//! | Calmar, recovery factor | CAGR, total return ÷ max drawdown | there was none |
//! | trades and what is made of them | those that *exit* in a bar of the window; a win is a pnl > 0 | there are none of the sort |
//! | mean R | mean of pnl ÷ (units · distance from entry to stop) | no trade had a stop at a distance |
//! | buy and hold | last close ÷ the close before the first bar (over all history: the first close) − 1 | that close was ≤ 0 |
//!
//! A variance below 1e-9 of the mean square is rounding, and counts as none. An equity ≤ 0 counts as a drawdown of 1,
//! and returns upon an equity ≤ 0 as 0.

use super::{ClosedTrade, Params};
use marea_model::num::F64;
use marea_model::output::Metrics;

/// A UTC day of a backtest, or several merged.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DayPartial {
    /// The (last) day, by [`crate::series::utc_day`].
    pub day: i32,
    /// Bars.
    pub bars: u32,
    /// Bars at whose close a position was held.
    pub in_market: u32,
    /// Trades that exit here.
    pub trades: u32,
    /// Those with pnl > 0.
    pub wins: u32,
    /// Those with a stop at a distance.
    pub risked: u32,
    /// Equity before the first bar.
    pub open_equity: F64,
    /// Equity at the last close.
    pub last_equity: F64,
    /// Greatest equity, `open_equity` included, not below 0.
    pub peak: F64,
    /// Least equity likewise.
    pub low: F64,
    /// Greatest 1 − equity ÷ peak.
    pub drawdown: F64,
    /// Σ r.
    pub returns: F64,
    /// Σ r².
    pub squares: F64,
    /// Σ min(r, 0)².
    pub downside: F64,
    /// Σ pnl of wins.
    pub won: F64,
    /// Σ pnl of the others, ≤ 0.
    pub lost: F64,
    /// Greatest pnl, 0 without wins.
    pub largest_win: F64,
    /// Least pnl, 0 without losses.
    pub largest_loss: F64,
    /// Σ fees.
    pub fees: F64,
    /// Σ pnl ÷ initial risk.
    pub r_multiples: F64,
    /// Σ time from entry to exit, in nanoseconds.
    pub held: i64,
    /// The close before the first bar (at the beginning of history: the first close).
    pub open_close: F64,
    /// The last close.
    pub last_close: F64,
}

impl DayPartial {
    /// A day before its first bar.
    pub(super) fn open(day: i32, equity: f64, close: f64) -> Self {
        let floor = F64(equity.max(0.0));
        DayPartial {
            day,
            open_equity: F64(equity),
            last_equity: F64(equity),
            peak: floor,
            low: floor,
            open_close: F64(close),
            last_close: F64(close),
            ..DayPartial::default()
        }
    }

    /// Marks the equity at a bar's close.
    #[inline]
    pub(super) fn mark(&mut self, equity: f64, close: f64, in_market: bool) {
        self.bars += 1;
        self.in_market += u32::from(in_market);
        self.last_close.0 = close;
        let last = self.last_equity.0;
        if equity == last {
            return; // a return of 0, and neither a new peak nor a deeper drawdown
        }
        self.last_equity.0 = equity;
        if last > 0.0 {
            let r = equity / last - 1.0;
            self.returns.0 += r;
            self.squares.0 += r * r;
            // Without a branch: half of them would be mispredicted.
            let loss = r.min(0.0);
            self.downside.0 += loss * loss;
        }
        let equity = equity.max(0.0);
        if equity > self.peak.0 {
            self.peak.0 = equity;
        } else if equity < self.peak.0 {
            let drawdown = 1.0 - equity / self.peak.0;
            if drawdown > self.drawdown.0 {
                self.drawdown.0 = drawdown;
            }
            if equity < self.low.0 {
                self.low.0 = equity;
            }
        }
    }

    /// Counts a trade that exits; `risk` is what its stop would have lost, 0 without one.
    pub(super) fn count(&mut self, trade: &ClosedTrade, risk: f64) {
        let pnl = trade.pnl.0;
        self.trades += 1;
        if pnl > 0.0 {
            self.wins += 1;
            self.won.0 += pnl;
            self.largest_win.0 = self.largest_win.0.max(pnl);
        } else {
            self.lost.0 += pnl;
            self.largest_loss.0 = self.largest_loss.0.min(pnl);
        }
        self.fees.0 += trade.fees.0;
        self.held += trade.exit_time - trade.entry_time;
        if risk > 0.0 {
            self.risked += 1;
            self.r_multiples.0 += pnl / risk;
        }
    }

    /// Appends the days right after.
    ///
    /// The drawdown from an earlier peak is that of the later days' least equity: dividing by the greater peak gives
    /// the lesser quotient, rounded or not, so a merged drawdown has the bits of one marked bar by bar.
    pub fn merge(&mut self, later: &DayPartial) {
        if self.peak.0 > 0.0 {
            self.drawdown.0 = self.drawdown.0.max(1.0 - later.low.0 / self.peak.0);
        }
        self.drawdown.0 = self.drawdown.0.max(later.drawdown.0);
        self.peak.0 = self.peak.0.max(later.peak.0);
        self.low.0 = self.low.0.min(later.low.0);
        self.day = later.day;
        self.bars += later.bars;
        self.in_market += later.in_market;
        self.trades += later.trades;
        self.wins += later.wins;
        self.risked += later.risked;
        self.last_equity = later.last_equity;
        self.returns.0 += later.returns.0;
        self.squares.0 += later.squares.0;
        self.downside.0 += later.downside.0;
        self.won.0 += later.won.0;
        self.lost.0 += later.lost.0;
        self.largest_win.0 = self.largest_win.0.max(later.largest_win.0);
        self.largest_loss.0 = self.largest_loss.0.min(later.largest_loss.0);
        self.fees.0 += later.fees.0;
        self.r_multiples.0 += later.r_multiples.0;
        self.held += later.held;
        self.last_close = later.last_close;
    }
}

/// Days of the trailing window.
pub const TRAILING_DAYS: i32 = 30;

/// The least share of the mean square that a variance is: below it is rounding.
const LEAST_VARIANCE: f64 = 1e-9;

/// The metrics over the current day and the 29 UTC days before it. `completed` are days before it, oldest first; those
/// out of the window are passed over.
///
/// The merge of the completed days may be kept from bar to bar: merging `current` into it and asking [`metrics`]
/// gives the same bits.
pub fn metrics_30d<'a>(
    completed: impl IntoIterator<Item = &'a DayPartial>,
    current: &DayPartial,
    params: &Params,
) -> Metrics {
    let first = current.day - (TRAILING_DAYS - 1);
    let mut days = completed.into_iter().filter(|day| day.day >= first);
    let window = match days.next() {
        None => *current,
        Some(oldest) => {
            let mut window = *oldest;
            days.for_each(|day| window.merge(day));
            window.merge(current);
            window
        }
    };
    metrics(&window, params)
}

/// The metrics of merged days.
pub fn metrics(window: &DayPartial, params: &Params) -> Metrics {
    if window.bars == 0 {
        return Metrics::default();
    }
    let finite = |x: f64| x.is_finite().then_some(x);
    let per = |sum: f64, count: u32| (count > 0).then(|| sum / f64::from(count));
    let some = |x: Option<f64>| x.and_then(finite).map(F64);
    let n = f64::from(window.bars);
    let year = params.periods_per_year();

    let growth = (window.open_equity.0 > 0.0).then(|| window.last_equity.0 / window.open_equity.0);
    let total_return = growth.map(|g| g - 1.0);
    let cagr = growth.filter(|g| *g >= 0.0).map(|g| libm::pow(g, year / n) - 1.0).and_then(finite);
    let drawdown = growth.map(|_| window.drawdown.0);
    let of_drawdown = |x: Option<f64>| x.zip(drawdown.filter(|d| *d > 0.0)).map(|(x, d)| x / d);

    let mean = window.returns.0 / n;
    let deviations = window.squares.0 - window.returns.0 * mean;
    let varies = window.bars > 1 && deviations > LEAST_VARIANCE * window.squares.0;
    let sharpe = varies.then(|| mean / (deviations / (n - 1.0)).sqrt() * year.sqrt());
    let lost_some = window.downside.0 > 0.0;
    let sortino = lost_some.then(|| mean / (window.downside.0 / n).sqrt() * year.sqrt());

    let losses = window.trades - window.wins;
    let buy_and_hold = (window.open_close.0 > 0.0).then(|| window.last_close.0 / window.open_close.0 - 1.0);
    Metrics {
        bars: u64::from(window.bars),
        trades: u64::from(window.trades),
        total_return: some(total_return),
        cagr: some(cagr),
        sharpe: some(sharpe),
        sortino: some(sortino),
        max_drawdown: some(drawdown),
        calmar: some(of_drawdown(cagr)),
        recovery_factor: some(of_drawdown(total_return)),
        win_rate: some(per(f64::from(window.wins), window.trades)),
        profit_factor: some((window.lost.0 < 0.0).then(|| window.won.0 / -window.lost.0)),
        expectancy: some(per(window.won.0 + window.lost.0, window.trades)),
        mean_r: some(per(window.r_multiples.0, window.risked)),
        average_win: some(per(window.won.0, window.wins)),
        average_loss: some(per(window.lost.0, losses)),
        largest_win: some((window.wins > 0).then_some(window.largest_win.0)),
        largest_loss: some((losses > 0).then_some(window.largest_loss.0)),
        fees: some(Some(window.fees.0)),
        average_duration: some(per(window.held as f64 / 1e9, window.trades)),
        time_in_market: some(Some(f64::from(window.in_market) / n)),
        buy_and_hold_return: some(buy_and_hold),
    }
}

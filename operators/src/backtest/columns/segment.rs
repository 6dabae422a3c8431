//! The inner loop: eight strategies over bars in which nothing happens to any of them.

use crate::series::Series;
use fearless_simd::{Level, Simd, dispatch, f64x8, prelude::*};
use std::ops::Range;

/// Strategies in a group: one vector of AVX-512, two of AVX2, four of SSE2.
pub(super) const LANES: usize = 8;

/// An equity above this has products with [`keep`] that round as they should.
const LEAST: f64 = 1e-290;

/// A number of each strategy.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(align(64))]
pub(super) struct Col(pub(super) [f64; LANES]);

impl Col {
    pub(super) const fn of(x: f64) -> Self {
        Col([x; LANES])
    }
}

/// What changes at every bar, and what that is made from.
#[derive(Clone, Debug)]
pub(super) struct Hot {
    pub(super) cash: Col,
    pub(super) units: Col,
    /// Equity at the last close.
    pub(super) last: Col,
    /// Greatest and least equity of the day.
    pub(super) peak: Col,
    pub(super) low: Col,
    /// Least equity since that peak, which may not have gone into `drawdown` yet.
    pub(super) since: Col,
    /// Greatest drawdown of the day, down to what is left of the peak: see [`keep`].
    pub(super) drawdown: Col,
    pub(super) keep: Col,
    pub(super) returns: Col,
    pub(super) squares: Col,
    pub(super) downside: Col,
    /// A crossing's averages, and what a new value weighs in each.
    pub(super) averages: [Col; 3],
    pub(super) weights: [Col; 3],
    /// Stop and target as prices to stay above and below of; infinitely far where there is none.
    pub(super) above: Col,
    pub(super) below: Col,
}

impl Hot {
    /// Nobody anywhere: a flat account that never trades.
    pub(super) const EMPTY: Hot = Hot {
        cash: Col::of(1.0),
        units: Col::of(0.0),
        last: Col::of(1.0),
        peak: Col::of(1.0),
        low: Col::of(1.0),
        since: Col::of(1.0),
        drawdown: Col::of(0.0),
        keep: Col::of(2.0),
        returns: Col::of(0.0),
        squares: Col::of(0.0),
        downside: Col::of(0.0),
        averages: [Col::of(0.0); 3],
        weights: [Col::of(0.0); 3],
        above: Col::of(f64::NEG_INFINITY),
        below: Col::of(f64::INFINITY),
    };
}

/// Far more than a few roundings of a number near 1, and far less than a drawdown that comes often.
const SLACK: f64 = 1e-12;

/// A share of the peak that an equity must fall below to deepen `drawdown`; a little more than that share, so that
/// rounding never hides one that does.
#[inline]
pub(super) fn keep(drawdown: f64) -> f64 {
    (1.0 - drawdown) + SLACK
}

/// `drawdown`, or that of the equity `since` below `peak`, whichever is greater.
///
/// A day's drawdown is the greatest 1 − equity ÷ peak over its bars. While the peak stands, equity ÷ peak and its
/// rounding rise with the equity, and 1 − x and its rounding fall with x: so among the bars of one peak the least
/// equity has the greatest drawdown, to the bit, and one division a peak does.
#[inline]
pub(super) fn deepened(drawdown: f64, since: f64, peak: f64) -> f64 {
    if since < peak { drawdown.max(1.0 - since / peak) } else { drawdown }
}

/// Bars of one UTC day, as slices of one length.
#[derive(Clone, Copy)]
pub(super) struct Bars<'a> {
    pub(super) close: &'a [f64],
    pub(super) high: &'a [f64],
    pub(super) low: &'a [f64],
}

impl<'a> Bars<'a> {
    pub(super) fn of(series: &'a Series, bars: Range<usize>) -> Self {
        let Series { close, high, low, .. } = series;
        Bars { close: &close[bars.clone()], high: &high[bars.clone()], low: &low[bars] }
    }
}

/// A side of each strategy: its bit in `up` is 1, in `down` −1, in none 0.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Sides {
    pub(super) up: u8,
    pub(super) down: u8,
}

impl Sides {
    /// The strategies whose sides differ.
    #[inline(always)]
    pub(super) fn changed(self, other: Sides) -> u8 {
        (self.up ^ other.up) | (self.down ^ other.down)
    }

    #[inline]
    pub(super) fn side(self, lane: usize) -> i8 {
        i8::from(self.up >> lane & 1 == 1) - i8::from(self.down >> lane & 1 == 1)
    }
}

/// Where a segment ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    /// Bars taken, at least one.
    pub(super) bars: usize,
    /// What the rules say at the last of them.
    pub(super) sides: Sides,
    /// Whether the equities stayed within what the loop is right for, above 0 and finite. Otherwise nothing but the
    /// rules has moved, and the bars are still to be marked.
    pub(super) tame: bool,
}

/// Which rule steps: the sides are given, bar by bar; or they come from averages.
pub(super) const TOLD: u8 = 0;
/// [`crate::strategies::Crossing::Ema`]
pub(super) const EMA: u8 = 1;
/// [`crate::strategies::Crossing::Macd`]
pub(super) const MACD: u8 = 2;

/// Marks every bar and steps the rules, up to the end, to the first bar at whose close a side changes, or to the last
/// before one that reaches a stop or target; the first bar's are not looked for. `RULE` is one of the three,
/// `STOPS` whether there are stops, `MARK` whether the equity is marked.
#[inline(always)]
fn walk<S: Simd, const RULE: u8, const STOPS: bool, const MARK: bool>(
    simd: S,
    hot: &mut Hot,
    standing: Sides,
    taken: Sides,
    bars: Bars<'_>,
    told: &[Sides],
) -> Exit {
    let load = |col: &Col| f64x8::simd_from(simd, col.0);
    let splat = |x: f64| f64x8::splat(simd, x);
    let (cash, units) = (load(&hot.cash), load(&hot.units));
    let (mut last, mut peak, mut low, mut since) = (load(&hot.last), load(&hot.peak), load(&hot.low), load(&hot.since));
    let mut floor = load(&hot.keep);
    let (mut returns, mut squares, mut downside) = (load(&hot.returns), load(&hot.squares), load(&hot.downside));
    let [mut a, mut b, mut c] = [0, 1, 2].map(|i| load(&hot.averages[i]));
    let [wa, wb, wc] = [0, 1, 2].map(|i| load(&hot.weights[i]));
    let (above, below) = (load(&hot.above), load(&hot.below));
    let (zero, one) = (splat(0.0), splat(1.0));
    let n = bars.close.len();
    let (highs, lows) = (&bars.high[..n], &bars.low[..n]);
    let mut sides = standing;
    // Seldom touched, so not in registers.
    let (mut deepest, mut deepened) = (hot.drawdown, false);
    let mut t = 0;
    while t < n {
        let close = splat(bars.close[t]);
        if MARK {
            let equity = cash + units * close;
            let r = equity / last - one;
            last = equity;
            returns += r;
            squares += r * r;
            let loss = r.min(zero);
            downside += loss * loss;
            let record = equity.simd_gt(peak);
            let deeper = record & since.simd_lt(peak * floor);
            if deeper.any_true() {
                let (drawdown, before) = (one - since / peak, load(&deepest));
                let after = (deeper & drawdown.simd_gt(before)).select(drawdown, before);
                floor = (one - after) + splat(SLACK);
                deepest = Col(after.into());
                deepened = true;
            }
            since = record.select(equity, since.min(equity));
            peak = peak.max(equity);
            low = low.min(equity);
        }
        sides = match RULE {
            TOLD => told[t],
            _ => {
                a += wa * (close - a);
                b += wb * (close - b);
                let (x, y) = if RULE == MACD {
                    let macd = a - b;
                    c += wc * (macd - c);
                    (macd, c)
                } else {
                    (a, b)
                };
                let up = x.simd_gt(y).to_bitmask() as u8 & taken.up;
                Sides { up, down: x.simd_lt(y).to_bitmask() as u8 & taken.down }
            }
        };
        t += 1;
        if sides.changed(standing) != 0 || t == n {
            break;
        }
        if STOPS {
            let within = splat(lows[t]).simd_gt(above) & splat(highs[t]).simd_lt(below);
            if !within.all_true() {
                break;
            }
        }
    }
    if RULE != TOLD {
        (hot.averages[0], hot.averages[1]) = (Col(a.into()), Col(b.into()));
        if RULE == MACD {
            hot.averages[2] = Col(c.into());
        }
    }
    // An equity that is infinite shows in the peak or the low, one that is no number in the sum.
    let tame =
        !MARK || (low.simd_gt(splat(LEAST)) & peak.simd_le(splat(f64::MAX)) & returns.simd_eq(returns)).all_true();
    if MARK && tame {
        (hot.last, hot.peak, hot.low, hot.since) =
            (Col(last.into()), Col(peak.into()), Col(low.into()), Col(since.into()));
        if deepened {
            (hot.drawdown, hot.keep) = (deepest, Col(floor.into()));
        }
        (hot.returns, hot.squares, hot.downside) = (Col(returns.into()), Col(squares.into()), Col(downside.into()));
    }
    Exit { bars: t, sides, tame }
}

/// [`walk`] with the widest vectors that the machine has.
pub(super) fn segment<const RULE: u8, const STOPS: bool, const MARK: bool>(
    level: Level,
    hot: &mut Hot,
    standing: Sides,
    taken: Sides,
    bars: Bars<'_>,
    told: &[Sides],
) -> Exit {
    dispatch!(level, simd => walk::<_, RULE, STOPS, MARK>(simd, hot, standing, taken, bars, told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The claim of [`deepened`].
        #[test]
        fn the_least_equity_has_the_greatest_drawdown(
            peak in prop_oneof![1.0..1e6, 1e-300..1e-290, Just(100_000.0)],
            falls in prop::collection::vec(prop_oneof![0.0..1.0, 0.0..1e-15, 0.3..0.3000001], 1..50),
            before in prop_oneof![Just(0.0), 0.0..1.0],
        ) {
            let equities: Vec<f64> = falls.iter().map(|f| peak - peak * f).collect();
            let each = equities.iter().fold(before, |d: f64, e| if *e < peak { d.max(1.0 - e / peak) } else { d });
            let least = equities.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert_eq!(each.to_bits(), deepened(before, least, peak).to_bits());
            // What deepens is never above the floor.
            if each > before {
                prop_assert!(least < peak * keep(before));
            }
        }
    }
}

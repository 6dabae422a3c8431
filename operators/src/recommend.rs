//! Recommendations: what the strategies on a symbol's decision timeframe say together, and until when it stands.
//!
//! ```text
//! voters     s ≠ 0 and w = weight · t > 0         track t = 1 under 10 trailing trades (unproven), 0 at a return ≤ 0,
//! strength   Σ w·s·c ÷ Σ w                          else ½·clamp(Sharpe ÷ 2, 0.1, 1) + ½·win rate
//! consensus  share of w on strength's side
//! confidence 100 · (0.6 · |strength| + 0.4 · consensus)
//! ```
//!
//! * Key: symbol; there is one recommendation where there is a closed decision bar, also without any strategy (HOLD).
//! * BUY or SELL at a confidence of 70 with 2 agreeing voters, STRONG_ at 85 with 3. HOLD leans to a side (`bias`) at
//!   50. Strength exactly 0 (both sides alike): HOLD, bias to the voter with the better trailing return, then the
//!   smaller id. Without ATR, or where no price holds the levels: HOLD.
//! * Entry range close ± ¼ ATR(14), stop 2 ATR, target 3 ATR, each on the nearest tick (ties away from zero).
//! * Expired from three bars after the bar's close; before that invalidated as long as the price since the close has
//!   touched stop or target (BUY and SELL only). Both correct themselves: a busted tick may make it active again.
//! * Sums in id order. Everything is a function of the contributions, the decision bar, the instrument's tick size and
//!   `now`; late ticks and edits reach it as changes of those.
//! * State per symbol: its contributions, the bar, the recommendation. Cost of a change: the symbol's strategies; of a
//!   price between stop and target: two comparisons.
//! * The output frontier promises: the recommendations at epochs before it, retractions paired with insertions.
//!
//! # Examples
//!
//! ```
//! use marea_model::recommendation::{Action, DecisionBar};
//! use marea_model::time::{SECOND, first_epoch};
//! use marea_model::{Decimal, F64, Instruments, Symbol, Timeframe};
//! use marea_operators::recommend::Recommend;
//!
//! let bar = DecisionBar {
//!     symbol: Symbol::new("IBM")?,
//!     timeframe: Timeframe::M5,
//!     open_time: 0,
//!     close: Decimal { mantissa: 100, scale: 0 },
//!     atr: Some(F64(1.0)),
//!     volume_change: None,
//!     five_bar_move: None,
//!     high_since: None,
//!     low_since: None,
//! };
//! let mut kernel = Recommend::new(&Instruments::default());
//! // Nobody votes: HOLD, until three bars after the bar's close, though no tick comes.
//! let rows = kernel.epoch(first_epoch(300_000), vec![], vec![(bar, 1)], &[]);
//! assert_eq!((rows[0].0.action, rows[0].0.expires_at), (Action::Hold, 1200 * SECOND));
//! assert!(kernel.epoch(first_epoch(1_199_999), vec![], vec![], &[]).is_empty());
//! assert_eq!(kernel.epoch(first_epoch(1_200_000), vec![], vec![], &[])[1].0.status.as_str(), "expired");
//! # Ok::<(), marea_model::name::NameError>(())
//! ```

use crate::epochs::{Clock, EpochOperator, EpochStream};
use crate::explain;
use crate::windows::{Timers, first_ms_from};
use marea_model::live::{ConfigUpdate, LiveConfig, Pattern, Touched};
use marea_model::num::pow10;
use marea_model::recommendation::{Action, Contribution, DecisionBar, Status, Vote, reason_names};
use marea_model::time::{now_ms, now_ns};
use marea_model::{Decimal, Epoch, F64, Instrument, Instruments, Nanos, Recommendation, StrategyId, Symbol, Timeframe};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Trailing trades from which a strategy is proven.
pub const PROVEN_TRADES: u64 = 10;
/// Confidence of a bias, of BUY and SELL, and of STRONG_BUY and STRONG_SELL.
pub const THRESHOLDS: [f64; 3] = [50.0, 70.0, 85.0];
/// Agreeing voters that BUY and SELL need, and STRONG_BUY and STRONG_SELL.
pub const AGREEING: [u32; 2] = [2, 3];
/// Bars after the bar's close until it expires.
pub const EXPIRES_AFTER_BARS: i64 = 3;

/// The track of a strategy over the trailing 30 days, 0 to 1, and whether it is 1 only for want of proof.
pub fn track(contribution: &Contribution) -> (f64, bool) {
    if contribution.trades < PROVEN_TRADES {
        return (1.0, true);
    }
    match contribution.trailing_return {
        Some(F64(trailing)) if trailing > 0.0 => {
            let sharpe = contribution.sharpe.map_or(0.1, |sharpe| (sharpe.0 / 2.0).clamp(0.1, 1.0));
            let win_rate = contribution.win_rate.map_or(0.0, |rate| rate.0);
            (0.5 * sharpe + 0.5 * win_rate, false)
        }
        _ => (0.0, false),
    }
}

/// What the votes come to.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Tally {
    strength: f64,
    consensus: f64,
    confidence: f64,
    agreeing: u32,
    /// Strength's side; at strength 0 with voters the side of the better of them.
    side: i8,
}

fn tally(votes: &[Vote]) -> Tally {
    let voters = || votes.iter().filter(|v| v.side != 0 && v.weight.0 > 0.0);
    let (mut signed, mut total) = (0.0, 0.0);
    for vote in voters() {
        signed += vote.weight.0 * f64::from(vote.side) * vote.confidence.0;
        total += vote.weight.0;
    }
    let mut tally = Tally { strength: 0.0, consensus: 0.0, confidence: 0.0, agreeing: 0, side: 0 };
    if total > 0.0 && signed != 0.0 {
        tally.strength = signed / total;
        tally.side = if signed > 0.0 { 1 } else { -1 };
        let agreeing = || voters().filter(|v| v.side == tally.side);
        let mut on_side = 0.0;
        for vote in agreeing() {
            on_side += vote.weight.0;
        }
        tally.consensus = on_side / total;
        tally.agreeing = u32::try_from(agreeing().count()).unwrap_or(u32::MAX);
        tally.confidence = 100.0 * (0.6 * tally.strength.abs() + 0.4 * tally.consensus);
    } else if total > 0.0 {
        let trailing = |vote: &Vote| vote.trailing_return.map_or(f64::NEG_INFINITY, |r| r.0);
        // Votes are in id order, and only a better one replaces: the smaller id wins ties.
        let best = voters().reduce(|best, vote| if trailing(vote) > trailing(best) { vote } else { best });
        tally.side = best.map_or(0, |vote| vote.side);
    }
    tally
}

/// Entry range, stop and target.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Levels {
    entry_low: Decimal,
    entry_high: Decimal,
    stop_loss: Decimal,
    take_profit: Decimal,
}

/// `price` on the nearest tick, ties away from zero, as a price of `scale`; none where no price holds it. Ticks are
/// round(price · 10^scale ÷ tick), the tick in units of that scale.
pub fn on_tick(price: f64, instrument: &Instrument, scale: u8) -> Option<Decimal> {
    let tick = i128::from(instrument.tick_size.0) * i128::from(pow10(scale.saturating_sub(instrument.scale)));
    let ticks = (price * pow10(scale) as f64 / tick as f64).round();
    // Beyond 2^63 ticks no price is left to hold it; NaN and infinities are beyond too.
    if ticks.abs() >= 9e18 || ticks.is_nan() {
        return None;
    }
    let mantissa = i64::try_from((ticks as i128).checked_mul(tick)?).ok()?;
    Some(Decimal { mantissa, scale })
}

fn levels(bar: &DecisionBar, side: i8, instrument: &Instrument) -> Option<Levels> {
    let (close, atr) = (bar.close.to_f64(), bar.atr?.0);
    let at = |atrs: f64| on_tick(close + atrs * atr, instrument, bar.close.scale);
    let side = f64::from(side);
    Some(Levels {
        entry_low: at(-0.25)?,
        entry_high: at(0.25)?,
        stop_loss: at(-2.0 * side)?,
        take_profit: at(3.0 * side)?,
    })
}

fn vote(contribution: &Contribution) -> Vote {
    let (track, unproven) = track(contribution);
    let names = reason_names(&contribution.kind);
    let named = names.into_iter().zip(contribution.values).filter_map(|(name, value)| name.zip(value));
    let mut vote = Vote {
        strategy: contribution.strategy,
        kind: contribution.kind,
        side: contribution.side,
        confidence: contribution.confidence,
        track: F64(track),
        unproven,
        weight: F64(contribution.weight.0 * track),
        trailing_return: contribution.trailing_return,
        values: named.collect(),
        reason: Default::default(),
    };
    vote.reason = explain::reason(contribution, &vote);
    vote
}

/// Whether the price since the bar's close has touched the stop, and the target.
pub(crate) fn reached(r: &Recommendation, bar: &DecisionBar) -> (bool, bool) {
    // How far the price went against it, and in its favour.
    let (against, favour) =
        if r.action.side() > 0 { (bar.low_since, bar.high_since) } else { (bar.high_since, bar.low_since) };
    let touched = |price: Option<Decimal>, level: Option<Decimal>, below: bool| {
        price
            .zip(level)
            .is_some_and(|(price, level)| !if below { is_below(level, price) } else { is_below(price, level) })
    };
    let long = r.action.side() > 0;
    (touched(against, r.stop_loss, long), touched(favour, r.take_profit, !long))
}

/// Whether one price is below another, whatever their scales.
fn is_below(a: Decimal, b: Decimal) -> bool {
    let scale = a.scale.max(b.scale);
    let units = |d: Decimal| i128::from(d.mantissa) * i128::from(pow10(scale - d.scale));
    units(a) < units(b)
}

/// The recommendation that rests on `bar` and `contributions` (in id order; those of other timeframes are left out).
pub fn recommendation<'a>(
    bar: &DecisionBar,
    contributions: impl IntoIterator<Item = &'a Contribution>,
    instrument: &Instrument,
    now: Nanos,
) -> Recommendation {
    let votes: Vec<Vote> = contributions.into_iter().filter(|c| c.timeframe == bar.timeframe).map(vote).collect();
    let tally = tally(&votes);
    let [bias_from, act_from, strong_from] = THRESHOLDS;
    let [few, several] = AGREEING;
    let acts = tally.confidence >= act_from && tally.agreeing >= few;
    let levels = levels(bar, tally.side, instrument).filter(|_| acts);
    let strong = tally.confidence >= strong_from && tally.agreeing >= several;
    let action = match (levels, tally.side > 0, strong) {
        (None, ..) => Action::Hold,
        (Some(_), true, true) => Action::StrongBuy,
        (Some(_), true, false) => Action::Buy,
        (Some(_), false, false) => Action::Sell,
        (Some(_), false, true) => Action::StrongSell,
    };
    let leans = action == Action::Hold && (tally.confidence >= bias_from || tally.strength == 0.0);
    let expires_at = bar.close_time() + EXPIRES_AFTER_BARS * bar.timeframe.nanos();
    let mut recommendation = Recommendation {
        symbol: bar.symbol,
        timeframe: bar.timeframe,
        bar_open_time: bar.open_time,
        bar_close_time: bar.close_time(),
        action,
        bias: if leans { tally.side } else { 0 },
        status: Status::Active,
        strength: F64(tally.strength),
        consensus: F64(tally.consensus),
        confidence: F64(tally.confidence),
        agreeing: tally.agreeing,
        close: bar.close,
        atr: bar.atr,
        entry_low: levels.map(|l| l.entry_low),
        entry_high: levels.map(|l| l.entry_high),
        stop_loss: levels.map(|l| l.stop_loss),
        take_profit: levels.map(|l| l.take_profit),
        expires_at,
        votes,
        explanation: Default::default(),
    };
    if now >= expires_at {
        recommendation.status = Status::Expired;
    } else if reached(&recommendation, bar) != (false, false) {
        recommendation.status = Status::Invalidated;
    }
    recommendation.explanation = explain::explanation(&recommendation, bar);
    recommendation
}

/// What is known of a symbol.
#[derive(Debug, Default)]
struct State {
    contributions: BTreeMap<StrategyId, Contribution>,
    decision: Option<DecisionBar>,
    recommendation: Option<Arc<Recommendation>>,
    timer: Option<i64>,
}

impl State {
    /// Whether the bar says nothing new: only the price since its close went further, and touched no other level. Most
    /// ticks are such, and would otherwise cost a look at all strategies.
    fn is_unmoved_by(&self, before: Option<DecisionBar>) -> bool {
        let (Some(before), Some(bar), Some(standing)) = (before, self.decision, &self.recommendation) else {
            return false;
        };
        let settled = DecisionBar { high_since: before.high_since, low_since: before.low_since, ..bar };
        settled == before && reached(standing, &before) == reached(standing, &bar)
    }
}

/// The row that is left of `standing` after some changes; changes of one epoch may come in any order.
fn net<T: Ord>(standing: Option<T>, changes: Vec<(T, i64)>) -> Option<T> {
    let mut rows: BTreeMap<T, i64> = BTreeMap::new();
    for (row, diff) in changes.into_iter().chain(standing.map(|row| (row, 1))) {
        *rows.entry(row).or_default() += diff;
    }
    rows.into_iter().find(|(_, count)| *count > 0).map(|(row, _)| row)
}

/// The kernel. See the module.
pub struct Recommend {
    config: LiveConfig,
    symbols: HashMap<Symbol, State>,
    timers: Timers<Symbol>,
}

type Changes = Vec<(Arc<Recommendation>, i64)>;

impl Recommend {
    /// The same, for a dataflow that has bars of these timeframes: an edit that asks for others is refused everywhere alike.
    pub fn with_timeframes(mut self, timeframes: &[Timeframe]) -> Self {
        self.config = self.config.with_timeframes(timeframes);
        self
    }

    /// No symbol yet.
    pub fn new(instruments: &Instruments) -> Self {
        Recommend { config: LiveConfig::new(instruments), symbols: HashMap::new(), timers: Timers::default() }
    }

    /// One epoch: what changed in, the recommendations that changed out (retractions −1, insertions 1).
    pub fn epoch(
        &mut self,
        epoch: Epoch,
        contributions: Vec<(Contribution, i64)>,
        decisions: Vec<(DecisionBar, i64)>,
        config: &[ConfigUpdate],
    ) -> Changes {
        let mut touched: BTreeSet<Symbol> = BTreeSet::new();
        for update in config {
            // Of all keys, only those of instruments matter here.
            if update.key().is_none_or(|key| !key.starts_with("/marea/instruments/")) {
                continue;
            }
            match self.config.apply(update) {
                Touched::Instruments(Pattern::One(symbol)) => drop(touched.insert(symbol)),
                Touched::Instruments(Pattern::Any) => touched.extend(self.symbols.keys()),
                _ => (),
            }
        }
        self.take_contributions(contributions, &mut touched);
        self.take_decisions(decisions, &mut touched);
        while let Some(symbol) = self.timers.pop(now_ms(epoch)) {
            if let Some(state) = self.symbols.get_mut(&symbol) {
                state.timer = None;
                touched.insert(symbol);
            }
        }
        let mut changes = Changes::new();
        for symbol in touched {
            self.renew(symbol, now_ns(epoch), &mut changes);
        }
        changes
    }

    fn take_contributions(&mut self, contributions: Vec<(Contribution, i64)>, touched: &mut BTreeSet<Symbol>) {
        let mut by_key: BTreeMap<(Symbol, StrategyId), Vec<(Contribution, i64)>> = BTreeMap::new();
        for (row, diff) in contributions {
            by_key.entry((row.symbol, row.strategy)).or_default().push((row, diff));
        }
        for ((symbol, strategy), changes) in by_key {
            let rows = &mut self.symbols.entry(symbol).or_default().contributions;
            if let Some(row) = net(rows.remove(&strategy), changes) {
                rows.insert(strategy, row);
            }
            touched.insert(symbol);
        }
    }

    fn take_decisions(&mut self, decisions: Vec<(DecisionBar, i64)>, touched: &mut BTreeSet<Symbol>) {
        let mut by_symbol: BTreeMap<Symbol, Vec<(DecisionBar, i64)>> = BTreeMap::new();
        for (bar, diff) in decisions {
            by_symbol.entry(bar.symbol).or_default().push((bar, diff));
        }
        for (symbol, changes) in by_symbol {
            let state = self.symbols.entry(symbol).or_default();
            let before = state.decision.take();
            state.decision = net(before, changes);
            if !state.is_unmoved_by(before) {
                touched.insert(symbol);
            }
        }
    }

    fn renew(&mut self, symbol: Symbol, now: Nanos, changes: &mut Changes) {
        let Some(state) = self.symbols.get_mut(&symbol) else { return };
        let instrument = self.config.instruments().get(symbol);
        let new = state.decision.map(|bar| recommendation(&bar, state.contributions.values(), instrument, now));
        let due = new.as_ref().filter(|r| r.status != Status::Expired).map(|r| first_ms_from(r.expires_at));
        self.timers.set(symbol, &mut state.timer, due);
        if new.as_ref() != state.recommendation.as_deref() {
            let new = new.map(Arc::new);
            changes.extend(std::mem::replace(&mut state.recommendation, new.clone()).map(|old| (old, -1)));
            changes.extend(new.map(|new| (new, 1)));
        }
        if state.contributions.is_empty() && state.decision.is_none() {
            self.symbols.remove(&symbol);
        }
    }
}

/// The operator: contributions and decision bars routed to the worker of their symbol.
pub fn recommend<'scope>(
    clock: Clock<'scope>,
    contributions: EpochStream<'scope, (Contribution, i64)>,
    decisions: EpochStream<'scope, (DecisionBar, i64)>,
    mut kernel: Recommend,
) -> EpochStream<'scope, (Arc<Recommendation>, i64)> {
    let mut operator = EpochOperator::new("recommend", clock);
    let contributions = operator.routed(contributions, |(row, _)| row.symbol.stable_hash());
    let decisions = operator.routed(decisions, |(bar, _)| bar.symbol.stable_hash());
    let (recommendations, stream) = operator.output();
    operator.build(move |epoch, feed| {
        recommendations.give_vec(kernel.epoch(epoch, contributions.take(), decisions.take(), &feed.config));
    });
    stream
}

#[cfg(test)]
#[path = "recommend/tests.rs"]
mod tests;

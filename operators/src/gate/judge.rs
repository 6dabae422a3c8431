//! The verdict as a pure function of the facts and `now`, and when it has to be asked again.

use super::sizing;
use crate::bars::Quote;
use crate::windows::{Intervals, cover, first_ms_after, first_ms_from};
use marea_model::live::{PolicyState, Role, WindowSet};
use marea_model::num::pow10;
use marea_model::recommendation::Status;
use marea_model::time::MILLI;
use marea_model::verdict::Intent;
use marea_model::{
    AccountId, AccountSnapshot, Amount, BlockReason, Decimal, Instrument, Nanos, Policy, Recommendation, Symbol,
    Verdict,
};

/// The confidence from which a position is added to.
const INCREASE_FROM: f64 = 80.0;

/// The windows of one pattern, ready to be asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PatternWindows {
    intervals: Intervals,
    half: Vec<String>,
    invalid: Vec<String>,
}

impl PatternWindows {
    pub(super) fn new(set: WindowSet) -> Self {
        PatternWindows { intervals: Intervals::new(&set.windows, set.active), half: set.half, invalid: set.invalid }
    }
}

/// The snapshot of an account that stands, and the greatest equity of all its snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    pub(super) snapshot: AccountSnapshot,
    pub(super) peak: Amount,
}

impl Standing {
    /// The equity, if it is one.
    pub(super) fn equity(&self) -> Option<Amount> {
        (self.snapshot.equity.0 > 0).then_some(self.snapshot.equity)
    }

    /// Whether the loss from the peak has reached the policy's limit.
    pub(super) fn drawdown_reached(&self, policy: &PolicyState) -> bool {
        let PolicyState::Valid(Policy { max_drawdown_pct: Some(limit), .. }) = policy else { return false };
        let (peak, equity) = (i128::from(self.peak.0), i128::from(self.snapshot.equity.0));
        // (peak − equity) ÷ peak ≥ limit ÷ 100, the limit in units of 1e-8.
        peak > 0 && (peak - equity) * 100 * i128::from(pow10(8)) >= i128::from(limit.0) * peak
    }
}

/// All that a verdict depends on, but `now`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) account: AccountId,
    pub(super) role: Role,
    pub(super) policy: &'a PolicyState,
    pub(super) standing: Option<&'a Standing>,
    pub(super) trading_enabled: bool,
    pub(super) stale: bool,
    pub(super) symbol: Symbol,
    pub(super) instrument: &'a Instrument,
    pub(super) recommendation: Option<&'a Recommendation>,
    pub(super) quote: Option<&'a Quote>,
    /// Of the patterns that match.
    pub(super) windows: [Option<&'a PatternWindows>; 4],
}

/// A verdict, and what it takes to make it another one.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    /// The millisecond of `now` at which time alone may change it, quotes apart.
    pub(super) wake: Option<i64>,
    /// What it asks of quotes.
    pub(super) watch: Option<Watch>,
    /// What quotes answered.
    pub(super) answer: Answer,
}

/// What an entry asks of quotes: limits beyond which it is blocked, none without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Watch {
    /// In units of the instrument's scale.
    pub(super) spread: Option<i128>,
    /// In units of the recommendation's scale.
    pub(super) distance: Option<i128>,
    /// In nanoseconds.
    pub(super) age: Option<i128>,
}

/// What a quote measures for all entries into its symbol, which have one side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reading {
    pub(super) spread: i128,
    pub(super) distance: i128,
    pub(super) age: i128,
}

impl Reading {
    /// Measures `quote` against the recommendation whose close and side an entry takes.
    pub(super) fn new(quote: &Quote, recommendation: &Recommendation, instrument: &Instrument, now: Nanos) -> Self {
        let price = if recommendation.action.side() >= 0 { quote.ask } else { quote.bid };
        let digits = recommendation.close.scale.saturating_sub(instrument.scale);
        let price = i128::from(price.0) * i128::from(pow10(digits));
        Reading {
            spread: i128::from(quote.ask.0) - i128::from(quote.bid.0),
            distance: (price - i128::from(recommendation.close.mantissa)).abs(),
            age: i128::from(now) - i128::from(quote.event_time),
        }
    }
}

/// What a quote means for an entry. No quote at all is the default, and blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Answer {
    pub(super) quoted: bool,
    stale: bool,
    crossed: bool,
    wide: bool,
    moved: bool,
}

impl Answer {
    pub(super) fn new(reading: Option<&Reading>, watch: &Watch) -> Self {
        let Some(reading) = reading else { return Answer::default() };
        let beyond = |value: i128, limit: Option<i128>| limit.is_some_and(|limit| value > limit);
        let stale = beyond(reading.age, watch.age);
        Answer {
            quoted: true,
            stale,
            crossed: reading.spread < 0,
            // What the spread was when the quote was young says nothing now.
            wide: !stale && beyond(reading.spread, watch.spread),
            moved: beyond(reading.distance, watch.distance),
        }
    }

    fn reasons(self) -> impl Iterator<Item = BlockReason> {
        [
            (!self.quoted, BlockReason::NoQuote),
            (self.stale, BlockReason::QuoteStale),
            (self.crossed, BlockReason::QuoteCrossed),
            (self.wide, BlockReason::SpreadAboveMax),
            (self.moved, BlockReason::PriceMoved),
        ]
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
    }
}

impl Facts<'_> {
    fn valid_policy(&self) -> Option<&Policy> {
        match self.policy {
            PolicyState::Valid(policy) => Some(policy),
            _ => None,
        }
    }

    fn held(&self) -> i8 {
        self.standing.map_or(0, |s| s.snapshot.side(self.symbol))
    }

    /// What is asked, and the side that it concerns.
    fn intent(&self, live: Option<&Recommendation>) -> (Intent, i8) {
        let Some(recommendation) = live else { return (Intent::None, 0) };
        let (side, held) = (recommendation.action.side(), self.held());
        let short_allowed = self.valid_policy().is_some_and(|p| p.allow_short);
        match (side, held) {
            (0, _) => (Intent::None, 0),
            (_, 0) if side > 0 || short_allowed => (Intent::Enter, side),
            (_, 0) => (Intent::None, 0),
            _ if held == -side => (Intent::Exit, held),
            _ if recommendation.confidence.0 >= INCREASE_FROM => (Intent::Increase, side),
            _ => (Intent::None, 0),
        }
    }

    /// Stop and target of an entry.
    fn levels(&self, policy: &Policy, r: &Recommendation, side: i8, point: i128) -> (Option<Decimal>, Option<Decimal>) {
        if self.role == Role::Slave && !policy.copy_sl_tp {
            let stop = policy.catastrophic_sl.and_then(|points| sizing::moved(r.close, -side, points, point));
            return (stop, None);
        }
        let stop = r.stop_loss.and_then(|price| sizing::moved(price, -side, policy.sl_offset, point));
        let target = r.take_profit.and_then(|price| sizing::moved(price, side, policy.tp_offset, point));
        (stop, target)
    }

    /// The verdict at `now`.
    pub(super) fn judge(&self, now: Nanos) -> Judged {
        let windows = || self.windows.iter().flatten();
        let covered = cover(windows().map(|w| &w.intervals), now);
        // Half a window blocks too, until the other half is written; but nobody said yet that orders are to go.
        let half = windows().any(|w| !w.half.is_empty());
        let expired = self.recommendation.is_some_and(|r| r.status == Status::Expired || now >= r.expires_at);
        let live = self.recommendation.filter(|r| r.status == Status::Active && !expired);
        let (intent, side) = self.intent(live);

        let expiry = self.recommendation.filter(|_| !expired).map(|r| r.expires_at);
        let valid_until = covered.next_edge().into_iter().chain(expiry).min();
        let mut wake = valid_until.map(first_ms_from);
        let mut verdict = Verdict {
            account: self.account,
            symbol: self.symbol,
            intent,
            side,
            allow: true,
            reasons: Vec::new(),
            details: Vec::new(),
            lots: None,
            entry: None,
            stop_loss: None,
            take_profit: None,
            cancel_pending: covered.is_active(),
            recommendation_time: self.recommendation.map(|r| r.bar_close_time),
            valid_until,
            blocked_until: None,
            as_of: now,
        };
        if intent == Intent::Exit {
            let position = self.standing.and_then(|s| s.snapshot.positions.iter().find(|p| p.symbol == self.symbol));
            verdict.lots = position.map(|p| p.lots);
            return Judged { verdict, wake, watch: None, answer: Answer::default() };
        }

        let policy = self.valid_policy();
        let mut reasons = Vec::new();
        let mut block = |holds: bool, reason: BlockReason| {
            if holds {
                reasons.push(reason);
            }
        };
        let bad_window = windows().any(|w| !w.invalid.is_empty());
        block(!self.trading_enabled, BlockReason::KillSwitch);
        block(*self.policy == PolicyState::Absent, BlockReason::NoPolicy);
        block(matches!(self.policy, PolicyState::Invalid(_)) || bad_window, BlockReason::PolicyInvalid);
        block(self.stale, BlockReason::PolicyStale);
        block(policy.is_some_and(|p| !p.enabled), BlockReason::AccountDisabled);
        block(covered.is_active() || half, BlockReason::NoTradeWindow);
        block(intent == Intent::None, BlockReason::NoSignal);
        block(expired, BlockReason::Expired);

        let entry = live.filter(|_| intent != Intent::None);
        let watch = entry.map(|recommendation| self.watch(recommendation));
        let answer = entry.zip(watch).map_or(Answer::default(), |(recommendation, watch)| {
            let reading = self.quote.map(|quote| Reading::new(quote, recommendation, self.instrument, now));
            Answer::new(reading.as_ref(), &watch)
        });
        if entry.is_some() {
            answer.reasons().for_each(|reason| block(true, reason));
        }
        let max_delay = policy.and_then(|p| p.max_delay_ms);
        if let (Some(recommendation), Some(max_delay)) = (self.recommendation, max_delay) {
            let last = i128::from(recommendation.bar_close_time) + i128::from(max_delay) * i128::from(MILLI);
            block(i128::from(now) > last, BlockReason::DelayAboveMax);
            if let (true, Ok(last)) = (i128::from(now) <= last, i64::try_from(last)) {
                wake = wake.into_iter().chain([first_ms_after(last)]).min();
            }
        }
        let equity = self.standing.and_then(Standing::equity);
        let currency = self.standing.map(|s| s.snapshot.currency).zip(self.instrument.currency);
        block(self.standing.is_some_and(|s| s.drawdown_reached(self.policy)), BlockReason::DrawdownLimit);
        block(equity.is_none(), BlockReason::NoEquity);
        block(currency.is_some_and(|(account, instrument)| account != instrument), BlockReason::CurrencyMismatch);

        if let Some(recommendation) = entry {
            verdict.entry = Some(recommendation.close);
            if let Some(policy) = policy {
                let point = sizing::point(self.instrument, recommendation.close.scale);
                let (stop, target) = self.levels(policy, recommendation, side, point);
                (verdict.stop_loss, verdict.take_profit) = (stop, target);
                let close = i128::from(recommendation.close.mantissa);
                let distance = stop.map_or(0, |stop| i128::from(side) * (close - i128::from(stop.mantissa)));
                let least = i128::from(self.instrument.min_stop_distance.0).saturating_mul(point);
                block(distance <= 0 || distance * i128::from(pow10(8)) < least, BlockReason::StopTooClose);
                let lots = sizing::lots(policy.risk, equity, distance, point, self.instrument);
                block(lots.is_some_and(|lots| lots < self.instrument.min_lot), BlockReason::LotTooSmall);
                verdict.lots = lots;
            }
        }

        // An order that nothing could be sized by (sums beyond every integer) stays closed.
        if entry.is_some() && reasons.is_empty() && verdict.lots.is_none() {
            reasons.push(BlockReason::LotTooSmall);
        }
        verdict.allow = reasons.is_empty();
        if !verdict.allow {
            verdict.lots = None;
        }
        if !half {
            verdict.blocked_until = covered.blocked_until();
        }
        if let PolicyState::Invalid(details) = self.policy {
            verdict.details.extend(details.iter().cloned());
        }
        verdict.details.extend(windows().flat_map(|w| w.invalid.iter().chain(&w.half)).cloned());
        verdict.details.sort();
        verdict.details.dedup();
        verdict.reasons = reasons;
        Judged { verdict, wake, watch, answer }
    }

    fn watch(&self, recommendation: &Recommendation) -> Watch {
        let Some(policy) = self.valid_policy() else { return Watch { spread: None, distance: None, age: None } };
        let point = |scale| sizing::point(self.instrument, scale);
        Watch {
            spread: Some(sizing::floor_points(policy.max_spread, point(self.instrument.scale))),
            distance: policy.max_slippage.map(|points| sizing::floor_points(points, point(recommendation.close.scale))),
            age: Some(i128::from(policy.max_quote_age_ms) * i128::from(MILLI)),
        }
    }
}

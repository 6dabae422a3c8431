//! Verdicts: what an account may do about a recommendation, and why not.

use crate::name::{AccountId, Symbol};
use crate::num::{Amount, Decimal};
use crate::time::{Nanos, rfc3339, rfc3339_option};
use serde::Serialize;
use std::fmt;

/// Why a verdict blocks. The order is the order in which reasons are listed; the texts are names on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BlockReason {
    /// `trading_enabled` has another value than `true`.
    KillSwitch,
    /// The account has no policy.
    NoPolicy,
    /// A key of the policy, or of a window of this pair, is invalid.
    PolicyInvalid,
    /// The configuration's source does not answer.
    PolicyStale,
    /// `enabled` is false.
    AccountDisabled,
    /// Inside a no-trade window, or half a window is written.
    NoTradeWindow,
    /// Nothing to act on.
    NoSignal,
    /// The recommendation has expired.
    Expired,
    /// No quote was ever seen.
    NoQuote,
    /// The last quote is older than `max_quote_age_ms`.
    QuoteStale,
    /// The bid is above the ask.
    QuoteCrossed,
    /// The spread is above `max_spread`.
    SpreadAboveMax,
    /// The price has moved from the recommendation's close by more than `max_slippage`.
    PriceMoved,
    /// The recommendation's bar closed more than `max_delay_ms` ago.
    DelayAboveMax,
    /// The drawdown has reached `max_drawdown_pct`.
    DrawdownLimit,
    /// No snapshot of the account was ever seen, or its equity is not positive.
    NoEquity,
    /// The account's currency is not the instrument's.
    CurrencyMismatch,
    /// The stop is nearer than `min_stop_distance`, or there is none to size by.
    StopTooClose,
    /// The size is below `min_lot`.
    LotTooSmall,
}

impl BlockReason {
    /// Every reason, in order.
    pub const ALL: [BlockReason; 19] = [
        BlockReason::KillSwitch,
        BlockReason::NoPolicy,
        BlockReason::PolicyInvalid,
        BlockReason::PolicyStale,
        BlockReason::AccountDisabled,
        BlockReason::NoTradeWindow,
        BlockReason::NoSignal,
        BlockReason::Expired,
        BlockReason::NoQuote,
        BlockReason::QuoteStale,
        BlockReason::QuoteCrossed,
        BlockReason::SpreadAboveMax,
        BlockReason::PriceMoved,
        BlockReason::DelayAboveMax,
        BlockReason::DrawdownLimit,
        BlockReason::NoEquity,
        BlockReason::CurrencyMismatch,
        BlockReason::StopTooClose,
        BlockReason::LotTooSmall,
    ];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            BlockReason::KillSwitch => "KILL_SWITCH",
            BlockReason::NoPolicy => "NO_POLICY",
            BlockReason::PolicyInvalid => "POLICY_INVALID",
            BlockReason::PolicyStale => "POLICY_STALE",
            BlockReason::AccountDisabled => "ACCOUNT_DISABLED",
            BlockReason::NoTradeWindow => "NO_TRADE_WINDOW",
            BlockReason::NoSignal => "NO_SIGNAL",
            BlockReason::Expired => "EXPIRED",
            BlockReason::NoQuote => "NO_QUOTE",
            BlockReason::QuoteStale => "QUOTE_STALE",
            BlockReason::QuoteCrossed => "QUOTE_CROSSED",
            BlockReason::SpreadAboveMax => "SPREAD_ABOVE_MAX",
            BlockReason::PriceMoved => "PRICE_MOVED",
            BlockReason::DelayAboveMax => "DELAY_ABOVE_MAX",
            BlockReason::DrawdownLimit => "DRAWDOWN_LIMIT",
            BlockReason::NoEquity => "NO_EQUITY",
            BlockReason::CurrencyMismatch => "CURRENCY_MISMATCH",
            BlockReason::StopTooClose => "STOP_TOO_CLOSE",
            BlockReason::LotTooSmall => "LOT_TOO_SMALL",
        }
    }
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the recommendation asks of an account that holds what it holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// Nothing.
    None,
    /// Open a position.
    Enter,
    /// Add to the position.
    Increase,
    /// Close the position. Never blocked.
    Exit,
}

impl Intent {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Intent::None => "none",
            Intent::Enter => "enter",
            Intent::Increase => "increase",
            Intent::Exit => "exit",
        }
    }
}

/// The verdict for one account and instrument, as a row of the state table `verdicts`.
/// `allow` iff `reasons` is empty; a reader past `valid_until` must block.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Verdict {
    /// The account.
    pub account: AccountId,
    /// The instrument.
    pub symbol: Symbol,
    /// What is asked.
    pub intent: Intent,
    /// The side that an entry or increase would take, or the side that an exit closes: 1 long, −1 short, 0 none.
    pub side: i8,
    /// Whether it may be done.
    pub allow: bool,
    /// Every reason that holds, in order.
    pub reasons: Vec<BlockReason>,
    /// What each invalid key is, for POLICY_INVALID and NO_TRADE_WINDOW: `key: why`. Sorted.
    pub details: Vec<String>,
    /// Size of an entry or increase that is allowed, or of the position that an exit closes.
    pub lots: Option<Amount>,
    /// The price that lots and stop were computed from: the recommendation's close.
    pub entry: Option<Decimal>,
    /// Where the stop goes.
    pub stop_loss: Option<Decimal>,
    /// Where the target goes.
    pub take_profit: Option<Decimal>,
    /// Inside a no-trade window: pending orders are to be cancelled.
    pub cancel_pending: bool,
    /// The close time of the recommendation's bar.
    #[serde(with = "rfc3339_option")]
    pub recommendation_time: Option<Nanos>,
    /// The next window edge or the recommendation's expiry, whichever is first; none where nothing is to come.
    #[serde(with = "rfc3339_option")]
    pub valid_until: Option<Nanos>,
    /// When the block by windows ends, if one holds (the end of the union of windows that covers `now`).
    #[serde(with = "rfc3339_option")]
    pub blocked_until: Option<Nanos>,
    /// `now` of the epoch in which this verdict was computed. Not part of the compared state: the store cuts
    /// it out of the text, and compares the fields before it in their order.
    #[serde(with = "rfc3339")]
    pub as_of: Nanos,
}

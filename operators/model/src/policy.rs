//! Policies: what an account may do.

use crate::num::Amount;

/// An account's policy, resolved key by key: the exact account over `*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Policy {
    /// Whether the account trades at all; default true.
    pub enabled: bool,
    /// Largest spread, in points. Required.
    pub max_spread: Amount,
    /// Largest distance of the price from the recommendation's close, in points; unlimited if absent.
    pub max_slippage: Option<Amount>,
    /// Longest time since the close of the recommendation's bar, in milliseconds; unlimited if absent.
    pub max_delay_ms: Option<i64>,
    /// Longest age of a quote, in milliseconds; default 5,000.
    pub max_quote_age_ms: i64,
    /// Whether slave accounts take the recommendation's stop and target; default true.
    pub copy_sl_tp: bool,
    /// What a trade may lose. Required.
    pub risk: Risk,
    /// Drawdown from the equity's peak at which entries stop, in percent; unlimited if absent.
    pub max_drawdown_pct: Option<Amount>,
    /// Moves the stop away from the entry, in points; default 0.
    pub sl_offset: Amount,
    /// Moves the target away from the entry, in points; default 0.
    pub tp_offset: Amount,
    /// The stop's distance from the entry where the recommendation's is not copied, in points.
    pub catastrophic_sl: Option<Amount>,
    /// Whether short entries are allowed; default false.
    pub allow_short: bool,
}

/// What a trade may lose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Risk {
    /// Percent of the equity.
    Percent(Amount),
    /// Money.
    Fixed(Amount),
}

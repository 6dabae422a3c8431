//! Recommendations, per symbol, and what the strategies contribute to them.

use crate::name::{StrategyId, Symbol};
use crate::num::{Decimal, F64};
use crate::strategy::Kind;
use crate::time::{Nanos, Timeframe, rfc3339};
use serde::{Deserialize, Serialize};

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// Confidence ≥ 85 with at least 3 agreeing voters.
    StrongBuy,
    /// Confidence ≥ 70 with at least 2 agreeing voters.
    Buy,
    /// Anything else.
    Hold,
    /// As `Buy`.
    Sell,
    /// As `StrongBuy`.
    StrongSell,
}

impl Action {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::StrongBuy => "STRONG_BUY",
            Action::Buy => "BUY",
            Action::Hold => "HOLD",
            Action::Sell => "SELL",
            Action::StrongSell => "STRONG_SELL",
        }
    }

    /// 1 to buy, −1 to sell, 0 to hold.
    pub fn side(self) -> i8 {
        match self {
            Action::StrongBuy | Action::Buy => 1,
            Action::Hold => 0,
            Action::Sell | Action::StrongSell => -1,
        }
    }
}

/// Whether it still stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It stands.
    Active,
    /// The price has crossed its stop or target since its bar's close.
    Invalidated,
    /// `now` has reached `expires_at`. Wins over `Invalidated`.
    Expired,
}

impl Status {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Invalidated => "invalidated",
            Status::Expired => "expired",
        }
    }
}

/// What a strategy says about a symbol as of its last closed bar: the scan's output, recommend's input.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Contribution {
    /// The instrument.
    pub symbol: Symbol,
    /// The strategy.
    pub strategy: StrategyId,
    /// Its bars.
    pub timeframe: Timeframe,
    /// Its rule, for the reason in words.
    pub kind: Kind,
    /// Its weight.
    pub weight: F64,
    /// Standing side: −1, 0, 1.
    pub side: i8,
    /// The rule's confidence: 0 to 1.
    pub confidence: F64,
    /// Closed trades in the trailing 30 days.
    pub trades: u64,
    /// Total return of the trailing 30 days; none before the first bar.
    pub trailing_return: Option<F64>,
    /// Sharpe ratio of the trailing 30 days.
    pub sharpe: Option<F64>,
    /// Win rate of the trailing 30 days.
    pub win_rate: Option<F64>,
    /// The indicator values behind the side, in the order of [`reason_names`].
    pub values: [Option<F64>; 4],
}

/// The names of [`Contribution::values`] for a kind, as in the table `indicators`: `ema(12)`, `rsi(14)`, `close` …
pub fn reason_names(kind: &Kind) -> [Option<String>; 4] {
    let some = |s: String| Some(s);
    let close = || Some("close".to_owned());
    match kind {
        Kind::EmaCross { fast, slow } => [some(format!("ema({fast})")), some(format!("ema({slow})")), None, None],
        Kind::RsiReversion { period, .. } => [some(format!("rsi({period})")), None, None, None],
        Kind::MacdCross { fast, slow, signal } => {
            let macd = format!("macd({fast},{slow},{signal})");
            [some(format!("{macd}.macd")), some(format!("{macd}.signal")), None, None]
        }
        Kind::BollingerReversion { period, deviations } => {
            let bands = format!("bollinger({period},{deviations})");
            [close(), some(format!("{bands}.lower")), some(format!("{bands}.middle")), some(format!("{bands}.upper"))]
        }
        // The channel of the bars *before* this one.
        Kind::DonchianBreakout { period } => {
            [close(), some(format!("donchian({period}).lower[1]")), some(format!("donchian({period}).upper[1]")), None]
        }
        Kind::TrendPullback { trend, period, .. } => {
            [close(), some(format!("ema({trend})")), some(format!("rsi({period})")), None]
        }
        Kind::Consensus { fast, slow, period, macd_fast, macd_slow, macd_signal, .. } => [
            some(format!("ema({fast})")),
            some(format!("ema({slow})")),
            some(format!("rsi({period})")),
            some(format!("macd({macd_fast},{macd_slow},{macd_signal}).hist")),
        ],
    }
}

/// The last closed bar of a symbol's decision timeframe and what surrounds it: the scan's output, recommend's input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DecisionBar {
    /// The instrument.
    pub symbol: Symbol,
    /// Its decision timeframe.
    pub timeframe: Timeframe,
    /// The bar's open time.
    pub open_time: Nanos,
    /// Its close.
    pub close: Decimal,
    /// ATR(14) at its close.
    pub atr: Option<F64>,
    /// Its volume ÷ the mean of the 20 bars before it − 1; none with fewer bars or without volume.
    pub volume_change: Option<F64>,
    /// Its close ÷ the close five bars before − 1.
    pub five_bar_move: Option<F64>,
    /// Highest price since its close (the forming bar's high); none before the first tick.
    pub high_since: Option<Decimal>,
    /// Lowest price since its close.
    pub low_since: Option<Decimal>,
}

impl DecisionBar {
    /// The bar's close time.
    pub fn close_time(&self) -> Nanos {
        self.open_time + self.timeframe.nanos()
    }
}

/// One strategy's part in a recommendation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Vote {
    /// The strategy.
    pub strategy: StrategyId,
    /// Its rule.
    #[serde(flatten)]
    pub kind: Kind,
    /// Standing side.
    pub side: i8,
    /// The rule's confidence c.
    pub confidence: F64,
    /// Track t, 0 to 1.
    pub track: F64,
    /// Under 10 trailing trades: t is 1 for want of proof.
    pub unproven: bool,
    /// w = weight · t.
    pub weight: F64,
    /// Trailing return.
    pub trailing_return: Option<F64>,
    /// The indicator values behind the side, by name.
    pub values: Vec<(String, F64)>,
    /// Why, in words.
    pub reason: Text,
}

/// The same sentence in English and Spanish.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
pub struct Text {
    /// English.
    pub en: String,
    /// Spanish.
    pub es: String,
}

/// A recommendation explained, each part in both languages.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
pub struct Explanation {
    /// One line.
    pub title: Text,
    /// The sums behind it.
    pub summary: Text,
    /// What else stands out: volume change beyond 20 %, five-bar move beyond 3 %.
    pub notes: Vec<Text>,
    /// What would invalidate it.
    pub invalidation: Text,
    /// When it is looked at again.
    pub next_review: Text,
}

/// The recommendation for a symbol, as a row of the state table `recommendations`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Recommendation {
    /// The instrument.
    pub symbol: Symbol,
    /// Its decision timeframe.
    pub timeframe: Timeframe,
    /// Open time of the bar it rests on.
    #[serde(with = "rfc3339")]
    pub bar_open_time: Nanos,
    /// Close time of that bar.
    #[serde(with = "rfc3339")]
    pub bar_close_time: Nanos,
    /// What to do.
    pub action: Action,
    /// With HOLD at 50 or more, or at strength 0: the side it leans to, −1 or 1; else 0.
    pub bias: i8,
    /// Whether it still stands.
    pub status: Status,
    /// Σ w·s·c ÷ Σ w, −1 to 1; 0 without voters.
    pub strength: F64,
    /// Share of w on strength's side, 0 to 1; 0 without voters.
    pub consensus: F64,
    /// 100·(0.6·|strength| + 0.4·consensus).
    pub confidence: F64,
    /// Voters on strength's side.
    pub agreeing: u32,
    /// The bar's close.
    pub close: Decimal,
    /// ATR(14) at its close.
    pub atr: Option<F64>,
    /// close − ¼ ATR; BUY and SELL only, as the next three.
    pub entry_low: Option<Decimal>,
    /// close + ¼ ATR.
    pub entry_high: Option<Decimal>,
    /// 2 ATR against.
    pub stop_loss: Option<Decimal>,
    /// 3 ATR in favour.
    pub take_profit: Option<Decimal>,
    /// Three bars after the bar's close.
    #[serde(with = "rfc3339")]
    pub expires_at: Nanos,
    /// Every strategy on this timeframe, ordered by id.
    pub votes: Vec<Vote>,
    /// In words.
    pub explanation: Explanation,
}

//! Made-up rows and epochs.

use marea_model::num::{Amount, Decimal, F64, Price, pow10};
use marea_model::output::{Change, ClosedEpoch, ExitReason, MetricsWindow};
use marea_model::recommendation::{Action, Explanation, Status, Text, Vote};
use marea_model::strategy::Kind;
use marea_model::time::{MILLI, SECOND, first_epoch};
use marea_model::verdict::Intent;
use marea_model::{
    AccountId, Bar, BarBody, BlockReason, Cursor, DeadLetter, Epoch, IndicatorRow, Metrics, MetricsRow, Nanos, Output,
    Partition, RawMessage, Reason, Recommendation, StrategyId, Symbol, Timeframe, TradeRow, Verdict,
};
use std::sync::Arc;

pub fn symbol(text: &str) -> Symbol {
    Symbol::new(text).unwrap()
}

pub fn account(text: &str) -> AccountId {
    AccountId::new(text).unwrap()
}

/// 2013-10-07T13:30:00Z
pub const OPEN: Nanos = 1_381_152_600 * SECOND;

/// Milliseconds after [`OPEN`].
pub fn epoch_at(ms: i64) -> Epoch {
    first_epoch(OPEN / MILLI + ms)
}

pub fn closed(epoch: Epoch, changes: Vec<Change>) -> ClosedEpoch {
    ClosedEpoch { changes, ..ClosedEpoch::empty(epoch) }
}

/// A bar whose prices are in units of 10^-scale.
pub fn bar(name: &str, timeframe: Timeframe, open_time: Nanos, prices: [i64; 4], scale: u8) -> Bar {
    let [open, high, low, close] = prices.map(Price);
    let volume = i128::from(100 * pow10(8));
    let turnover = volume * i128::from(prices[3]);
    let body = BarBody { open, high, low, close, volume, turnover, count: 7 };
    Bar { symbol: symbol(name), timeframe, open_time, body, scale, closed: true }
}

pub fn up(output: Output) -> Change {
    Change::Upsert(output)
}

pub fn indicator(name: &str, of: &str, open_time: Nanos, value: f64) -> Output {
    let (symbol, timeframe) = (symbol(of), Timeframe::M1);
    Output::Indicator(IndicatorRow { symbol, timeframe, open_time, name: name.into(), value: F64(value) })
}

pub fn trade(of: &str, strategy: &str) -> TradeRow {
    TradeRow {
        strategy: StrategyId::new(strategy).unwrap(),
        symbol: symbol(of),
        timeframe: Timeframe::M5,
        entry_time: OPEN,
        side: -1,
        entry_price: F64(181.9),
        exit_time: OPEN + 600 * SECOND,
        exit_price: F64(180.1 + 0.2),
        quantity: F64(549.754_4),
        pnl: F64(879.607_040_000_01),
        fees: F64(99.9),
        exit_reason: ExitReason::StopLoss,
    }
}

pub fn metrics(of: &str, strategy: &str, window: MetricsWindow, sharpe: Option<f64>) -> MetricsRow {
    let metrics = Metrics {
        bars: 480,
        trades: 12,
        total_return: Some(F64(0.042)),
        sharpe: sharpe.map(F64),
        max_drawdown: Some(F64(0.031)),
        win_rate: Some(F64(0.583_333_333_333_333_4)),
        profit_factor: Some(F64(1.4)),
        ..Metrics::default()
    };
    let strategy = StrategyId::new(strategy).unwrap();
    MetricsRow { strategy, symbol: symbol(of), timeframe: Timeframe::M5, window, as_of: OPEN, metrics }
}

pub fn both(en: &str, es: &str) -> Text {
    Text { en: en.to_owned(), es: es.to_owned() }
}

pub fn vote(strategy: &str, side: i8, reason: Text) -> Vote {
    Vote {
        strategy: StrategyId::new(strategy).unwrap(),
        kind: Kind::EmaCross { fast: 12, slow: 26 },
        side,
        confidence: F64(1.0),
        track: F64(0.725),
        unproven: false,
        weight: F64(0.725),
        trailing_return: Some(F64(0.012)),
        values: vec![("ema(12)".to_owned(), F64(181.905_331_2)), ("ema(26)".to_owned(), F64(181.771_204_9))],
        reason,
    }
}

/// A recommendation whose prices are in units of 10^-scale.
pub fn recommendation(of: &str, action: Action, close: i64, scale: u8) -> Recommendation {
    let decimal = |mantissa| Decimal { mantissa, scale };
    let side = i64::from(action.side());
    let atr = (close / 1_000).max(4);
    let level = |price: i64| (side != 0).then(|| decimal(price));
    Recommendation {
        symbol: symbol(of),
        timeframe: Timeframe::M5,
        bar_open_time: OPEN,
        bar_close_time: OPEN + 300 * SECOND,
        action,
        bias: 0,
        status: Status::Active,
        strength: F64(0.8 * side as f64),
        consensus: F64(0.75),
        confidence: F64(if side == 0 { 41.5 } else { 78.0 }),
        agreeing: 3,
        close: decimal(close),
        atr: Some(F64(decimal(atr).to_f64())),
        entry_low: level(close - atr / 4),
        entry_high: level(close + atr / 4),
        stop_loss: level(close - side * 2 * atr),
        take_profit: level(close + side * 3 * atr),
        expires_at: OPEN + 1_200 * SECOND,
        votes: vec![vote(
            "ema-fast",
            action.side(),
            both("EMA(12) is above EMA(26).", "La EMA(12) supera la EMA(26)."),
        )],
        explanation: Explanation {
            title: both("Title", "Título"),
            summary: both("Summary", "Resumen"),
            notes: Vec::new(),
            invalidation: both("Below the stop.", "Por debajo del stop."),
            next_review: both("At 13:40 UTC.", "A las 13:40 UTC."),
        },
    }
}

pub fn verdict(who: &str, of: &str, reasons: Vec<BlockReason>) -> Verdict {
    let allow = reasons.is_empty();
    Verdict {
        account: account(who),
        symbol: symbol(of),
        intent: if reasons.contains(&BlockReason::NoSignal) { Intent::None } else { Intent::Enter },
        side: i8::from(!reasons.contains(&BlockReason::NoSignal)),
        allow,
        cancel_pending: reasons.contains(&BlockReason::NoTradeWindow),
        blocked_until: reasons.contains(&BlockReason::NoTradeWindow).then_some(OPEN + 900 * SECOND),
        reasons,
        details: Vec::new(),
        lots: allow.then_some(Amount(pow10(8))),
        entry: allow.then_some(Decimal { mantissa: 18_190, scale: 2 }),
        stop_loss: allow.then_some(Decimal { mantissa: 18_150, scale: 2 }),
        take_profit: allow.then_some(Decimal { mantissa: 18_250, scale: 2 }),
        recommendation_time: Some(OPEN + 300 * SECOND),
        valid_until: Some(OPEN + 1_200 * SECOND),
        as_of: OPEN,
    }
}

pub fn recommended(row: Recommendation) -> Output {
    Output::Recommendation(Arc::new(row))
}

pub fn judged(row: Verdict) -> Output {
    Output::Verdict(Arc::new(row))
}

pub fn dead_letter(offset: u64, reason: Reason, original: &[u8]) -> DeadLetter {
    DeadLetter {
        cursor: Cursor { partition: Partition::new("ticks.csv").unwrap(), offset, row: 0 },
        reason,
        field: "price".to_owned(),
        value: "NaN".to_owned(),
        detail: "price NaN is not a number".to_owned(),
        original: original.to_owned(),
    }
}

/// A message of a source that cannot be asked for it again.
pub(crate) fn raw_message(partition: &str, offset: u64) -> RawMessage {
    RawMessage {
        identity: None,
        cursor: Cursor { partition: Partition::new(partition).unwrap(), offset, row: 0 },
        content_type: Some("a/b".to_owned()),
        receive_time: 5,
        body: vec![0, 0xff],
    }
}

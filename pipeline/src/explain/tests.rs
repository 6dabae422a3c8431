//! Explanations, read as a trader would: every number is there, and they add up.

use super::*;
use marea_model::verdict::BlockReason;
use serde_json::{Value, json};

fn vote(strategy: &str, side: i8, confidence: f64, track: f64, weight: f64) -> Value {
    json!({
        "strategy": strategy, "kind": "ema_cross", "fast": 12, "slow": 26, "side": side, "confidence": confidence,
        "track": track, "unproven": track == 1.0, "weight": weight, "trailing_return": 0.01,
        "values": [["ema(12)", 1.10012], ["ema(26)", 1.0999]],
        "reason": { "en": "because", "es": "porque" },
    })
}

/// Two long votes of w 1 and 0.632, one short of 0.5; sized as in the example of a risk of 2 %.
fn case(intent: &str, reasons: &[&str]) -> Case {
    let (w, sum) = (1.0 + 0.632 + 0.5, 1.0 + 0.632 * 0.8 - 0.5);
    let strength = sum / w;
    let consensus = 1.632 / w;
    let confidence = 100.0 * (0.6 * strength + 0.4 * consensus);
    let text = |en: &str, es: &str| json!({ "en": en, "es": es });
    let recommendation = json!({
        "symbol": "EURUSD", "timeframe": "5m",
        "bar_open_time": "2026-01-05T13:25:00.000000000Z", "bar_close_time": "2026-01-05T13:30:00.000000000Z",
        "action": "BUY", "bias": 0, "status": "active",
        "strength": strength, "consensus": consensus, "confidence": confidence, "agreeing": 2,
        "close": 1.1, "atr": 0.001, "entry_low": 1.09975, "entry_high": 1.10025, "stop_loss": 1.098,
        "take_profit": 1.103, "expires_at": "2026-01-05T13:45:00.000000000Z",
        "votes": [
            vote("a", 1, 1.0, 1.0, 1.0), vote("b", 1, 0.8, 0.632, 0.632), vote("c", -1, 1.0, 0.5, 0.5),
            vote("d", 0, 1.0, 1.0, 1.0), vote("e", 1, 1.0, 0.0, 0.0),
        ],
        "explanation": {
            "title": text("BUY EURUSD", "COMPRAR EURUSD"), "summary": text("so it is", "así es"),
            "notes": [], "invalidation": text("", ""), "next_review": text("", ""),
        },
    });
    let allow = reasons.is_empty();
    let verdict = json!({
        "account": "M1", "symbol": "EURUSD", "intent": intent, "side": 1, "allow": allow, "reasons": reasons,
        "details": [], "lots": allow.then_some(1.0), "entry": 1.1, "stop_loss": 1.098, "take_profit": 1.103,
        "cancel_pending": false, "recommendation_time": "2026-01-05T13:30:00.000000000Z",
        "valid_until": "2026-01-05T13:45:00.000000000Z", "blocked_until": "2026-01-05T13:40:00.000000000Z",
        "as_of": "2026-01-05T13:31:00.000000000Z",
    });
    let facts = Facts {
        now: "2026-01-05T13:31:00.000000000Z".to_owned(),
        instrument: InstrumentFacts {
            tick_size: 0.00001,
            tick_value: 1.0,
            currency: Some("USD".to_owned()),
            min_lot: 0.01,
            max_lot: 50.0,
            lot_step: 0.01,
            min_stop_distance: 300.0,
        },
        quote: Some(QuoteFacts {
            event_time: "2026-01-05T13:30:50.000000000Z".to_owned(),
            bid: 1.1002,
            ask: 1.10051,
            spread_points: 31.0,
            age_ms: 10_000,
        }),
        account: Some(AccountFacts {
            role: Some("master".to_owned()),
            equity: Some(10_000.0),
            currency: Some("EUR".to_owned()),
            peak: Some(12_500.0),
            position_side: 1,
            position_lots: Some(0.5),
            policy: Some(PolicyFacts {
                max_spread: 20.0,
                max_slippage: Some(40.0),
                max_delay_ms: Some(30_000),
                max_quote_age_ms: 5_000,
                risk_per_trade: Some(2.0),
                max_drawdown_pct: Some(15.0),
                copy_sl_tp: true,
                ..PolicyFacts::default()
            }),
            windows: vec![
                ("2026-01-05T13:00:00.000000000Z".to_owned(), "2026-01-05T13:40:00.000000000Z".to_owned()),
                ("2026-01-06T13:00:00.000000000Z".to_owned(), "2026-01-06T13:40:00.000000000Z".to_owned()),
            ],
        }),
    };
    let track = Track { trades: 12, total_return: Some(0.021), sharpe: Some(1.056), win_rate: Some(0.736) };
    Case {
        recommendation,
        verdict: Some(verdict),
        tracks: BTreeMap::from([("b".to_owned(), track)]),
        bars: vec![BarLine {
            open_time: "2026-01-05T13:25:00.000000000Z".to_owned(),
            open: 1.0995,
            high: 1.1003,
            low: 1.0991,
            close: 1.1,
            volume: 0.0,
        }],
        facts: Some(facts),
    }
}

fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l.trim() == line), "{line:?} is not a line of\n{text}");
}

#[test]
fn the_votes_and_the_confidence_add_up() {
    let text = explain(&case("enter", &[]), Lang::En).unwrap();
    for line in [
        "a  w = 1 × 1 = 1.000000   1.000000 × +1 × 1 = +1.000000",
        "b  w = 1 × 0.632 = 0.632000   0.632000 × +1 × 0.8 = +0.505600",
        "c  w = 1 × 0.5 = 0.500000   0.500000 × -1 × 1 = -0.500000",
        "d  no side, does not vote: because",
        "e  track 0, does not vote: because",
        "ema(12) = 1.10012, ema(26) = 1.0999",
        "track = ½ × 0.528 + ½ × 0.736 = 0.632: Sharpe 1.0560 ÷ 2 within 0.1 and 1, win rate 73.6000 %, \
         return +2.1000 % (trades in 30 days: 12)",
        "Σ w = 2.132000   Σ w × side × confidence = +1.005600",
        "strength   = +1.005600 ÷ 2.132000 = +0.471670",
        "consensus  = 1.632000 ÷ 2.132000 = 0.765478   (the w on strength's side)",
        "confidence = 100 × (0.6 × 0.471670 + 0.4 × 0.765478) = 28.3002 + 30.6191 = 58.9193",
        "stop      1.098   = 1.1 − 2 × 0.001",
        "target    1.103   = 1.1 + 3 × 0.001",
    ] {
        has(&text, line);
    }
}

#[test]
fn the_size_is_spelled_out() {
    let text = explain(&case("enter", &[]), Lang::En).unwrap();
    for line in [
        "Verdict for M1: ALLOW — enter long (as of 2026-01-05 13:31:00 UTC)",
        "risk = 10000 × 2 % = 200",
        "a lot loses = |1.1 − 1.098| ÷ 0.00001 × 1 = 200 points × 1 = 200",
        "lots = 200 ÷ 200 = 1, down to a multiple of 0.01 → 1",
        "stop 1.098, target 1.103",
        "valid until 2026-01-05 13:45:00 UTC; past that, block",
    ] {
        has(&text, line);
    }
    let mut fixed = case("enter", &["LOT_TOO_SMALL"]);
    let facts = fixed.facts.as_mut().unwrap();
    facts.instrument.min_lot = 0.5;
    facts.account.as_mut().unwrap().policy.as_mut().unwrap().risk_fixed = Some(25.0);
    let text = explain(&fixed, Lang::En).unwrap();
    has(&text, "risk = risk_fixed 25");
    has(&text, "lots = 25 ÷ 200 = 0.125, down to a multiple of 0.01 → 0.12 < min_lot 0.5");
    let text = explain(&Case { facts: None, ..case("enter", &[]) }, Lang::En).unwrap();
    has(&text, "lots 1");
}

#[test]
fn every_reason_says_the_limit_and_what_is() {
    let all: Vec<&str> = BlockReason::ALL.iter().map(|r| r.as_str()).collect();
    let text = explain(&case("enter", &all), Lang::En).unwrap();
    for line in [
        "KILL_SWITCH: trading_enabled is not true: nobody enters",
        "NO_TRADE_WINDOW: inside a no-trade window until 2026-01-05 13:40:00 UTC: \
         [2026-01-05 13:00:00, 2026-01-05 13:40:00)",
        "NO_SIGNAL: already in the market on this side, and an increase needs 80: confidence 58.9193 < 80",
        "QUOTE_STALE: the last quote is of 2026-01-05 13:30:50 UTC: 10000 ms > max_quote_age_ms 5000 ms",
        "SPREAD_ABOVE_MAX: (1.10051 − 1.1002) ÷ 0.00001 = 31 points > max_spread 20 points",
        "PRICE_MOVED: |ask 1.10051 − 1.1| ÷ 0.00001 = 51 points > max_slippage 40 points",
        "DELAY_ABOVE_MAX: its bar closed at 2026-01-05 13:30:00 UTC: 60000 ms > max_delay_ms 30000 ms",
        "DRAWDOWN_LIMIT: (12500 − 10000) ÷ 12500 = 20 % ≥ max_drawdown_pct 15 %",
        "CURRENCY_MISMATCH: the account is in EUR, the instrument in USD",
        "QUOTE_CROSSED: bid 1.1002 ≤ ask 1.10051 (when measured, no longer)",
        "STOP_TOO_CLOSE: |1.1 − 1.098| ÷ 0.00001 = 200 points < min_stop_distance 300 points",
    ] {
        has(&text, line);
    }
    // Without facts, and in the other language, each reason still says something.
    for (case, lang) in [
        (case("enter", &all), Lang::Es),
        (Case { facts: None, ..case("none", &all) }, Lang::En),
        (Case { facts: None, ..case("none", &all) }, Lang::Es),
    ] {
        let text = explain(&case, lang).unwrap();
        for reason in &all {
            let said = text.lines().any(|l| l.trim().strip_prefix(reason).is_some_and(|why| why.len() > ": …".len()));
            assert!(said, "{reason} in\n{text}");
        }
    }
}

#[test]
fn spanish_is_spanish() {
    let text = explain(&case("enter", &[]), Lang::Es).unwrap();
    has(&text, "COMPRAR EURUSD");
    has(&text, "Veredicto para M1: PERMITIDO — entrar largo (a las 2026-01-05 13:31:00 UTC)");
    has(&text, "un lote pierde = |1.1 − 1.098| ÷ 0.00001 × 1 = 200 puntos × 1 = 200");
    for word in ["votes", "strength", "the ", "because"] {
        assert!(!text.contains(word), "{word} in\n{text}");
    }
}

#[test]
fn what_is_no_recommendation_is_said() {
    let case = Case { recommendation: json!({ "symbol": 1 }), ..case("enter", &[]) };
    let error = explain(&case, Lang::En).unwrap_err().to_string();
    assert!(error.starts_with("the recommendation cannot be read: "), "{error}");
}

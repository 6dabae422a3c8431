use super::*;
use crate::indicators::IndicatorSpec;
use crate::series::SeriesBar;
use marea_model::num::F64;
use marea_model::recommendation::reason_names;
use proptest::prelude::*;

/// Bars that are nothing but closes.
fn closes(closes: &[f64]) -> Series {
    let bar = |(i, c): (usize, &f64)| SeriesBar {
        open_time: i as i64,
        open: *c,
        high: *c,
        low: *c,
        close: *c,
        volume: 1.0,
        turnover: *c,
    };
    closes.iter().enumerate().map(bar).collect()
}

/// What the rule says at every bar.
fn sides(kind: &Kind, seed: EmaSeed, series: &Series) -> Vec<i8> {
    let rule = Rule::new(kind, seed);
    let mut state = rule.start();
    (0..series.len()).map(|i| rule.step(&mut state, (i as u32).min(rule.warm_up()), series, i)).collect()
}

#[track_caller]
fn assert_sides(kind: Kind, seed: EmaSeed, prices: &[f64], expected: &[i8]) {
    assert_eq!(sides(&kind, seed, &closes(prices)), expected);
}

#[test]
fn ema_cross_is_a_sign() {
    let cross = Kind::EmaCross { fast: 1, slow: 3 };
    // EMA(3), from the mean of three: 2, then halfway to each close: 2.5, 1.75, 1.75.
    assert_sides(cross, EmaSeed::Sma, &[1.0, 2.0, 3.0, 3.0, 1.0, 1.75], &[0, 0, 1, 1, -1, 0]);
    // From the first: 1, 1.5, 2.25: defined no earlier.
    assert_sides(cross, EmaSeed::First, &[1.0, 2.0, 3.0, 2.25], &[0, 0, 1, 0]);
    for seed in [EmaSeed::Sma, EmaSeed::First] {
        assert_sides(Kind::EmaCross { fast: 3, slow: 7 }, seed, &[0.1; 12], &[0; 12]);
    }
}

#[test]
fn rsi_reversion_holds_to_the_middle() {
    // With a period of 1, RSI is 100 after a rise, 0 after a fall or none: between two extremes, side by side.
    let kind = |period| Kind::RsiReversion { period, oversold: F64(30.0), overbought: F64(70.0) };
    assert_sides(kind(1), EmaSeed::Sma, &[5.0, 6.0, 7.0, 6.0, 6.0], &[0, -1, -1, 1, 1]);
    // Period 2: gains and losses (0, 1) → RSI 0; (0.5, 0.5) → 50 is left; (1, 0.25)·… → 80; then 100·0.625/1.5 < 50.
    assert_sides(kind(2), EmaSeed::Sma, &[5.0, 4.0, 3.0, 4.0, 5.5, 4.5], &[0, 0, 1, 0, -1, 0]);
    // Neither beyond a level nor at the middle: held. (0, 1) → 0, then (0.25, 0.5) → 33.
    assert_sides(kind(2), EmaSeed::Sma, &[5.0, 4.0, 3.0, 3.5], &[0, 0, 1, 1]);
    // An opposite extreme turns it over without a stay at 0: (0, 1) → 0, then (5, 0.5) → 91.
    assert_sides(kind(2), EmaSeed::Sma, &[5.0, 4.0, 3.0, 13.0], &[0, 0, 1, -1]);
}

#[test]
fn rsi_is_extreme_ten_beyond_its_level() {
    let confidence = |prices: &[f64]| {
        let rule = Rule::RsiReversion(RsiReversion::new(2, 30.0, 70.0));
        let (mut state, series) = (rule.start(), closes(prices));
        for i in 0..series.len() {
            rule.step(&mut state, i as u32, &series, i);
        }
        let rsi = rule.values(&state, prices.len() as u32, &series, prices.len() - 1)[0].unwrap();
        (rsi, rule.confidence(&state))
    };
    assert_eq!(confidence(&[5.0, 4.0, 3.0]), (0.0, 0.9));
    assert_eq!(confidence(&[5.0, 6.0, 2.0]), (20.0, 0.7));
    assert_eq!(confidence(&[5.0, 4.0, 8.0]), (80.0, 0.7));
    assert_eq!(confidence(&[5.0, 6.0, 7.0]), (100.0, 0.9));
}

#[test]
fn macd_cross_waits_for_its_signal() {
    // EMA(1) − EMA(2): at bar 1, 2 − 1.5 = 0.5; bar 2: 3 − 2.5 = 0.5; the signal of two is their mean: equal, 0.
    // Bar 3: 6 − 4.8333 = 1.1667 above its signal; bar 4: 6 − 5.6111 = 0.3889 below it.
    assert_sides(
        Kind::MacdCross { fast: 1, slow: 2, signal: 2 },
        EmaSeed::Sma,
        &[1.0, 2.0, 3.0, 6.0, 6.0],
        &[0, 0, 0, 1, -1],
    );
    let flat = Kind::MacdCross { fast: 3, slow: 5, signal: 4 };
    assert_sides(flat, EmaSeed::First, &[0.3; 12], &[0; 12]);
}

#[test]
fn bollinger_reversion_holds_to_the_middle() {
    let kind = Kind::BollingerReversion { period: 3, deviations: F64(1.0) };
    // (3, 3, 0): mean 2, deviation 1.41: 0 is below 0.59. (3, 0, 1): the middle, 1.33, is not reached. (0, 1, 1):
    // 0.67 is.
    assert_sides(kind, EmaSeed::Sma, &[3.0, 3.0, 0.0, 1.0, 1.0], &[0, 0, 1, 1, 0]);
    // The same upside down, and turned over: (0, 2, 9): mean 3.67, deviation 3.86.
    assert_sides(kind, EmaSeed::Sma, &[0.0, 0.0, 3.0, 2.0, 2.0], &[0, 0, -1, -1, 0]);
    assert_sides(kind, EmaSeed::Sma, &[3.0, 3.0, 0.0, 2.0, 9.0], &[0, 0, 1, 0, -1]);
    // Reached exactly: (2, 0, 1), the middle is 1.
    assert_sides(kind, EmaSeed::Sma, &[2.0, 2.0, 0.0, 1.0], &[0, 0, 1, 0]);
    let narrow = Kind::BollingerReversion { period: 20, deviations: F64(0.1) };
    assert_sides(narrow, EmaSeed::Sma, &[0.1; 30], &[0; 30]);
}

#[test]
fn donchian_breakout_holds_to_the_opposite_break() {
    let kind = Kind::DonchianBreakout { period: 2 };
    // Touching the channel of the two bars before is no break.
    assert_sides(kind, EmaSeed::Sma, &[2.0, 3.0, 3.0, 4.0, 3.5, 3.5, 3.0, 5.0], &[0, 0, 0, 1, 1, 1, -1, 1]);
    // The bar itself is not in its channel, and the first bars have none.
    assert_sides(kind, EmaSeed::Sma, &[1.0, 2.0, 3.0], &[0, 0, 1]);
}

#[test]
fn trend_pullback_is_the_trend_while_rsi_rests() {
    let kind = |low, high| Kind::TrendPullback { trend: 2, period: 2, low: F64(low), high: F64(high) };
    // Changes +1, −1 … keep RSI(2) at 50, 75, 37.5, 68.75; EMA(2) is 1.5, 1.1667, 1.7222, 1.2407, 1.7469.
    let prices = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0];
    assert_sides(kind(0.0, 100.0), EmaSeed::Sma, &prices, &[0, 0, -1, 1, -1, 1]);
    assert_sides(kind(40.0, 60.0), EmaSeed::Sma, &prices, &[0, 0, -1, 0, 0, 0]);
    // Both levels are within.
    assert_sides(kind(37.5, 75.0), EmaSeed::Sma, &prices, &[0, 0, -1, 1, -1, 1]);
}

#[test]
fn consensus_is_what_its_three_rules_share() {
    let kind = Kind::Consensus {
        fast: 2,
        slow: 4,
        period: 12,
        oversold: F64(45.0),
        overbought: F64(55.0),
        macd_fast: 2,
        macd_slow: 3,
        macd_signal: 3,
    };
    let parts = [
        Kind::EmaCross { fast: 2, slow: 4 },
        Kind::RsiReversion { period: 12, oversold: F64(45.0), overbought: F64(55.0) },
        Kind::MacdCross { fast: 2, slow: 3, signal: 3 },
    ];
    // Plunges with weak recoveries, and the same upside down: averages turn while RSI is still beyond the middle.
    let steps = [(8, -3.0), (4, 1.0), (3, -0.5), (5, 1.5), (8, 3.0), (4, -1.0), (3, 0.5), (5, -1.5)];
    let steps = std::iter::repeat_n(steps, 10).flatten().flat_map(|(bars, step)| std::iter::repeat_n(step, bars));
    let prices: Vec<f64> = steps
        .scan(100.0, |price, step| {
            *price += step;
            Some(*price)
        })
        .collect();
    let series = closes(&prices);
    let consensus = sides(&kind, EmaSeed::Sma, &series);
    let parts = parts.map(|part| sides(&part, EmaSeed::Sma, &series));
    for i in 0..series.len() {
        let [a, b, c] = [0, 1, 2].map(|part| parts[part][i]);
        assert_eq!(consensus[i], if a == b && b == c { a } else { 0 });
    }
    assert!([-1, 0, 1].iter().all(|side| consensus.contains(side)), "the case is worth nothing");
}

#[test]
fn extremes_of_bars_make_the_channel_and_not_closes() {
    let mut series = closes(&[10.0, 10.0, 10.5, 11.5]);
    series.high[1] = 11.0;
    assert_eq!(sides(&Kind::DonchianBreakout { period: 2 }, EmaSeed::Sma, &series), [0, 0, 0, 1]);
}

fn kinds() -> impl proptest::strategy::Strategy<Value = Kind> {
    let levels = (0.0..=50.0, 50.0..=100.0);
    (0..7, 1_u32..8, 1_u32..8, 1_u32..8, levels).prop_map(|(kind, a, b, c, (low, high))| {
        let (low, high) = (F64(low), F64(high + 0.01));
        let (fast, slow) = (a, a + b);
        match kind {
            0 => Kind::EmaCross { fast, slow },
            1 => Kind::RsiReversion { period: a, oversold: low, overbought: high },
            2 => Kind::MacdCross { fast, slow, signal: c },
            3 => Kind::BollingerReversion { period: a, deviations: F64(f64::from(b) / 2.0) },
            4 => Kind::DonchianBreakout { period: a },
            5 => Kind::TrendPullback { trend: a, period: b, low, high },
            _ => Kind::Consensus {
                fast,
                slow,
                period: c,
                oversold: low,
                overbought: high,
                macd_fast: b,
                macd_slow: b + c,
                macd_signal: a,
            },
        }
    })
}

proptest! {
    /// A rule's values are those of the indicators that they are named after, from where these are defined.
    #[test]
    fn values_are_the_indicators_that_they_name(kind in kinds(), prices in prop::collection::vec(1_u32..100, 1..50)) {
        let series = closes(&prices.iter().map(|p| f64::from(*p)).collect::<Vec<_>>());
        let rule = Rule::new(&kind, EmaSeed::Sma);
        let names = reason_names(&kind);
        let mut state = rule.start();
        let mut table = std::collections::BTreeMap::new();
        let mut indicators: Vec<(IndicatorSpec, _)> = names
            .iter()
            .flatten()
            .filter_map(|name| name.split_inclusive(')').next().unwrap().parse().ok())
            .map(|spec: IndicatorSpec| (spec, spec.build()))
            .collect();
        for i in 0..series.len() {
            let age = (i as u32).min(rule.warm_up());
            rule.step(&mut state, age, &series, i);
            let values = rule.values(&state, (age + 1).min(rule.warm_up()), &series, i);
            // A channel named [1] is that of the bar before.
            let before = std::mem::take(&mut table);
            for (spec, indicator) in &mut indicators {
                let outputs = spec.outputs().into_iter().zip(indicator.step(&series, i));
                table.extend(outputs.map(|(name, value)| (name.to_string(), value)));
            }
            for (name, value) in names.iter().zip(values) {
                let expected = match name.as_deref() {
                    None => None,
                    Some("close") => Some(series.close[i]),
                    Some(name) => match name.strip_suffix("[1]") {
                        Some(name) => before.get(name).copied().flatten(),
                        None => table[name],
                    },
                };
                prop_assert_eq!(value.map(f64::to_bits), expected.map(f64::to_bits), "{:?} at bar {}", name, i);
            }
        }
    }
}

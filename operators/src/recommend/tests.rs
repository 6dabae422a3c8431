//! Tables with confidences computed by hand, and the life of a recommendation.

use super::*;
use marea_model::Timeframe;
use marea_model::strategy::Kind;
use marea_model::time::{MILLI, SECOND, first_epoch};
use proptest::prelude::*;

const M5: i64 = 300 * SECOND;

fn ibm() -> Symbol {
    Symbol::new("IBM").unwrap()
}

/// Scale 2, tick 0.05.
fn instrument() -> Instrument {
    Instrument { scale: 2, tick_size: marea_model::Price(5), ..Instrument::default() }
}

fn instruments() -> Instruments {
    Instruments { by_symbol: BTreeMap::from([(ibm(), instrument())]), ..Instruments::default() }
}

fn price(mantissa: i64) -> Decimal {
    Decimal { mantissa, scale: 2 }
}

/// The bar [0, 5m), close 100.00, ATR 1.
fn bar() -> DecisionBar {
    DecisionBar {
        symbol: ibm(),
        timeframe: Timeframe::M5,
        open_time: 0,
        close: price(10_000),
        atr: Some(F64(1.0)),
        volume_change: None,
        five_bar_move: None,
        high_since: None,
        low_since: None,
    }
}

fn says(id: &str, side: i8, confidence: f64, weight: f64) -> Contribution {
    Contribution {
        symbol: ibm(),
        strategy: StrategyId::new(id).unwrap(),
        timeframe: Timeframe::M5,
        kind: Kind::EmaCross { fast: 12, slow: 26 },
        weight: F64(weight),
        side,
        confidence: F64(confidence),
        trades: 0,
        trailing_return: None,
        sharpe: None,
        win_rate: None,
        values: [Some(F64(100.5)), Some(F64(100.0)), None, None],
    }
}

fn proven(mut c: Contribution, trailing: f64, sharpe: Option<f64>, win_rate: f64) -> Contribution {
    c.trades = 10;
    (c.trailing_return, c.sharpe, c.win_rate) = (Some(F64(trailing)), sharpe.map(F64), Some(F64(win_rate)));
    c
}

#[test]
fn track_by_hand() {
    let c = says("a", 1, 1.0, 1.0);
    for (name, contribution, expected) in [
        ("no trades: unproven", c.clone(), (1.0, true)),
        (
            "nine trades, even losing ones",
            Contribution { trades: 9, ..proven(c.clone(), -0.5, None, 0.0) },
            (1.0, true),
        ),
        ("ten, and nothing gained", proven(c.clone(), 0.0, Some(1.0), 0.6), (0.0, false)),
        ("ten, and lost", proven(c.clone(), -0.01, Some(1.0), 0.6), (0.0, false)),
        ("½·½ + ½·0.6", proven(c.clone(), 0.1, Some(1.0), 0.6), (0.55, false)),
        ("Sharpe counts 1 from 2 on", proven(c.clone(), 0.1, Some(5.0), 0.5), (0.75, false)),
        ("and 0.1 at least", proven(c.clone(), 0.1, Some(-3.0), 0.5), (0.3, false)),
        ("a null Sharpe too", proven(c.clone(), 0.1, None, 0.5), (0.3, false)),
    ] {
        assert_eq!(track(&contribution), expected, "{name}");
    }
}

#[test]
fn confidence_by_hand() {
    use Action::*;
    let a = |side, c| says("a", side, c, 1.0);
    let b = |side, c| says("b", side, c, 1.0);
    let c = |side, c| says("c", side, c, 1.0);
    let zero_track = |s| proven(s, -0.1, None, 0.5);
    // (name, contributions, action, bias, strength, consensus, confidence, agreeing)
    type Case<'a> = (&'a str, Vec<Contribution>, Action, i8, f64, f64, f64, u32);
    let cases: Vec<Case<'_>> = vec![
        ("nobody", vec![], Hold, 0, 0.0, 0.0, 0.0, 0),
        ("no side", vec![a(0, 1.0), b(0, 1.0)], Hold, 0, 0.0, 0.0, 0.0, 0),
        ("no track", vec![zero_track(a(1, 1.0))], Hold, 0, 0.0, 0.0, 0.0, 0),
        ("no weight", vec![says("a", 1, 1.0, 0.0)], Hold, 0, 0.0, 0.0, 0.0, 0),
        ("one voter is sure, but alone", vec![a(1, 1.0)], Hold, 1, 1.0, 1.0, 100.0, 1),
        ("two agree: 100 but not strong", vec![a(1, 1.0), b(1, 1.0)], Buy, 0, 1.0, 1.0, 100.0, 2),
        ("three: strong", vec![a(-1, 1.0), b(-1, 1.0), c(-1, 1.0)], StrongSell, 0, -1.0, 1.0, 100.0, 3),
        // strength 0.75, consensus 1: 45 + 40.
        ("three at exactly 85", vec![a(1, 0.75), b(1, 0.75), c(1, 0.75)], StrongBuy, 0, 0.75, 1.0, 85.0, 3),
        // strength 0.5, consensus 1: 30 + 40.
        ("two at exactly 70", vec![a(-1, 0.5), b(-1, 0.5)], Sell, 0, -0.5, 1.0, 70.0, 2),
        // strength (1 + 1 − 1) ÷ 3, consensus 2 ÷ 3: 20 + 26.67.
        ("two against one", vec![a(1, 1.0), b(1, 1.0), c(-1, 1.0)], Hold, 0, 1.0 / 3.0, 2.0 / 3.0, 140.0 / 3.0, 2),
        // strength (3 + 1 − 1) ÷ 5 = 0.6, consensus 0.8: 36 + 32 = 68.
        ("weights: leaning", vec![says("a", -1, 1.0, 3.0), b(-1, 1.0), c(1, 1.0)], Hold, -1, -0.6, 0.8, 68.0, 2),
        // w = 0.55 and 1: strength (0.55·0.8 + 0.9) ÷ 1.55.
        (
            "track weighs",
            vec![proven(a(1, 0.8), 0.1, Some(1.0), 0.6), b(1, 0.9)],
            Buy,
            0,
            (0.55 * 0.8 + 0.9) / 1.55,
            1.0,
            100.0 * (0.6 * ((0.55 * 0.8 + 0.9) / 1.55) + 0.4),
            2,
        ),
    ];
    for (name, contributions, action, bias, strength, consensus, confidence, agreeing) in cases {
        let r = recommendation(&bar(), &contributions, &instrument(), M5);
        assert_eq!((r.action, r.bias, r.agreeing), (action, bias, agreeing), "{name}: {r:?}");
        for (found, expected) in [(r.strength.0, strength), (r.consensus.0, consensus), (r.confidence.0, confidence)] {
            assert!((found - expected).abs() < 1e-12, "{name}: {found} for {expected}");
        }
        assert_eq!(r.votes.len(), contributions.len(), "{name}: every strategy is listed");
        assert_eq!(r.stop_loss.is_some(), r.action != Hold, "{name}");
    }
}

#[test]
fn at_strength_0_the_better_trailing_return_gives_the_bias() {
    let with = |id, side, trailing: Option<f64>| Contribution {
        trailing_return: trailing.map(F64),
        ..says(id, side, 1.0, 1.0)
    };
    for (name, a, b, bias) in [
        ("the better", with("a", 1, Some(0.1)), with("b", -1, Some(0.2)), -1),
        ("any over none", with("a", 1, None), with("b", -1, Some(-0.2)), -1),
        ("equal: the smaller id", with("a", 1, Some(0.1)), with("b", -1, Some(0.1)), 1),
        ("none at all: the smaller id", with("a", -1, None), with("b", 1, None), -1),
    ] {
        let r = recommendation(&bar(), &[a, b], &instrument(), M5);
        assert_eq!((r.action, r.bias, r.strength.0, r.confidence.0), (Action::Hold, bias, 0.0, 0.0), "{name}");
    }
}

fn buyers() -> [Contribution; 2] {
    [says("a", 1, 1.0, 1.0), says("b", 1, 1.0, 1.0)]
}

fn sellers() -> [Contribution; 2] {
    [says("a", -1, 1.0, 1.0), says("b", -1, 1.0, 1.0)]
}

#[test]
fn levels_are_atrs_on_the_nearest_tick() {
    let levels =
        |r: &Recommendation| [r.entry_low, r.entry_high, r.stop_loss, r.take_profit].map(|p| p.unwrap().mantissa);
    let buy = recommendation(&bar(), &buyers(), &instrument(), M5);
    assert_eq!(levels(&buy), [9_975, 10_025, 9_800, 10_300]);
    let sell = recommendation(&bar(), &sellers(), &instrument(), M5);
    assert_eq!(levels(&sell), [9_975, 10_025, 10_200, 9_700]);
    // 100.03 ± 0.275, − 2.2, + 3.3 on ticks of 0.05.
    let uneven = DecisionBar { close: price(10_003), atr: Some(F64(1.1)), ..bar() };
    assert_eq!(levels(&recommendation(&uneven, &buyers(), &instrument(), M5)), [9_975, 10_030, 9_785, 10_335]);
    for atr in [None, Some(F64(1e300)), Some(F64(f64::NAN))] {
        let r = recommendation(&DecisionBar { atr, ..bar() }, &buyers(), &instrument(), M5);
        assert_eq!((r.action, r.bias, r.stop_loss), (Action::Hold, 1, None), "no stop, no entry: {atr:?}");
    }
    for (value, ticks) in [(0.025, 5), (-0.025, -5), (0.0249, 0), (0.075, 10)] {
        assert_eq!(on_tick(value, &instrument(), 2), Some(price(ticks)), "{value}");
    }
    // A bar of mids has one digit more.
    assert_eq!(on_tick(1.23, &instrument(), 3), Some(Decimal { mantissa: 1250, scale: 3 }));
}

#[test]
fn other_timeframes_have_no_say() {
    let other = Contribution { timeframe: Timeframe::H1, ..says("c", -1, 1.0, 9.0) };
    let [a, b] = buyers();
    let r = recommendation(&bar(), &[a, b, other], &instrument(), M5);
    assert_eq!((r.action, r.votes.len()), (Action::Buy, 2));
}

#[test]
fn touching_stop_or_target_invalidates_and_expiry_wins() {
    let since =
        |low: i64, high: i64| DecisionBar { low_since: Some(price(low)), high_since: Some(price(high)), ..bar() };
    let three_bars = M5 + 3 * M5;
    for (name, bar, side, now, status) in [
        ("no tick yet", bar(), 1, M5, Status::Active),
        ("between", since(9_801, 10_299), 1, M5, Status::Active),
        ("the stop is touched", since(9_800, 10_000), 1, M5, Status::Invalidated),
        ("the target is touched", since(9_990, 10_300), 1, M5, Status::Invalidated),
        ("a short's stop is above", since(9_990, 10_200), -1, M5, Status::Invalidated),
        ("a short's target is below", since(9_700, 10_000), -1, M5, Status::Invalidated),
        ("a short between", since(9_701, 10_199), -1, M5, Status::Active),
        ("HOLD has no levels", since(0, 100_000), 0, M5, Status::Active),
        ("the last instant", bar(), 1, three_bars - 1, Status::Active),
        ("three bars", bar(), 1, three_bars, Status::Expired),
        ("expired wins", since(9_800, 10_000), 1, three_bars, Status::Expired),
        ("HOLD expires too", bar(), 0, three_bars, Status::Expired),
    ] {
        let voters = [says("a", side, 1.0, 1.0), says("b", side, 1.0, 1.0)];
        assert_eq!(recommendation(&bar, &voters, &instrument(), now).status, status, "{name}");
    }
}

type Rows = Vec<(Arc<Recommendation>, i64)>;

fn shown(rows: &Rows) -> Vec<(i64, Action, Status)> {
    rows.iter().map(|(r, diff)| (*diff, r.action, r.status)).collect()
}

#[test]
fn it_lives_from_its_bar_to_its_expiry_ticks_or_no_ticks() {
    let mut kernel = Recommend::new(&instruments());
    let at = |nanos: i64| first_epoch(nanos / MILLI);
    let plus = |rows: [Contribution; 2]| rows.into_iter().map(|row| (row, 1)).collect::<Vec<_>>();
    assert!(kernel.epoch(at(M5), plus(buyers()), vec![], &[]).is_empty(), "no bar, no recommendation");
    let rows = kernel.epoch(at(M5) + 1, vec![], vec![(bar(), 1)], &[]);
    assert_eq!(shown(&rows), [(1, Action::Buy, Status::Active)]);
    assert!(kernel.epoch(at(M5) + 2, vec![], vec![], &[]).is_empty());

    let crossed = DecisionBar { low_since: Some(price(9_700)), high_since: Some(price(10_000)), ..bar() };
    let rows = kernel.epoch(at(M5) + 3, vec![], vec![(crossed, 1), (bar(), -1)], &[]);
    assert_eq!(shown(&rows), [(-1, Action::Buy, Status::Active), (1, Action::Buy, Status::Invalidated)]);
    let text = &rows[1].0.explanation.invalidation;
    assert_eq!(text.en, "Invalidated: since the close the price has reached the stop 98.");
    assert_eq!(text.es, "Invalidada: desde el cierre el precio ha alcanzado el stop, 98.");
    // It goes on falling: nothing new.
    let further = DecisionBar { low_since: Some(price(9_600)), ..crossed };
    assert!(kernel.epoch(at(M5) + 3, vec![], vec![(further, 1), (crossed, -1)], &[]).is_empty());
    assert!(kernel.epoch(at(M5) + 3, vec![], vec![(further, -1), (crossed, 1)], &[]).is_empty());
    // The tick that crossed is busted.
    let rows = kernel.epoch(at(M5) + 4, vec![], vec![(crossed, -1), (bar(), 1)], &[]);
    assert_eq!(shown(&rows), [(-1, Action::Buy, Status::Invalidated), (1, Action::Buy, Status::Active)]);

    assert!(kernel.epoch(at(4 * M5) - 1, vec![], vec![], &[]).is_empty());
    let rows = kernel.epoch(at(4 * M5), vec![], vec![], &[]);
    assert_eq!(shown(&rows), [(-1, Action::Buy, Status::Active), (1, Action::Buy, Status::Expired)]);
    assert!(kernel.timers.is_empty());
    let text = &rows[1].0.explanation;
    assert_eq!(text.title.es, "COMPRAR IBM: confianza 100.0 de 100 (caducada)");
    assert_eq!(text.invalidation.en, "It expired at 1970-01-01 00:20:00 UTC, 3 bars after its bar's close.");

    // The scan's rows of one epoch may come in any order, and cancel out.
    let [a, b] = buyers();
    let [seller, _] = sellers();
    let changes = vec![(seller.clone(), 1), (a.clone(), -1), (a.clone(), 1), (seller.clone(), -1)];
    assert!(kernel.epoch(at(4 * M5) + 1, changes, vec![], &[]).is_empty());
    let rows = kernel.epoch(at(4 * M5) + 2, vec![(b, -1)], vec![], &[]);
    assert_eq!(shown(&rows), [(-1, Action::Buy, Status::Expired), (1, Action::Hold, Status::Expired)]);
    let rows = kernel.epoch(at(4 * M5) + 3, vec![(a, -1)], vec![(bar(), -1)], &[]);
    assert_eq!(shown(&rows), [(-1, Action::Hold, Status::Expired)]);
    assert!(kernel.symbols.is_empty(), "nothing is left");
}

#[test]
fn a_live_tick_size_moves_the_levels_and_other_keys_nothing() {
    let mut kernel = Recommend::new(&instruments());
    let contributions = buyers().into_iter().map(|row| (row, 1)).collect();
    let uneven = DecisionBar { close: price(10_003), ..bar() };
    kernel.epoch(first_epoch(300_000), contributions, vec![(uneven, 1)], &[]);
    let edit =
        |key: &str, value: &str| [ConfigUpdate::Put { key: key.to_owned(), value: value.to_owned(), revision: 1 }];
    assert!(kernel.epoch(first_epoch(300_001), vec![], vec![], &edit("/echo/policy/M1/max_spread", "x")).is_empty());
    let json = r#"{"scale":2,"tick_size":"0.01"}"#;
    let rows = kernel.epoch(first_epoch(300_002), vec![], vec![], &edit("/marea/instruments/IBM", json));
    let stops: Vec<_> = rows.iter().map(|(r, diff)| (*diff, r.stop_loss.unwrap().mantissa)).collect();
    assert_eq!(stops, [(-1, 9_805), (1, 9_803)]);
}

#[test]
fn it_explains_itself_in_english_and_spanish() {
    let bar = DecisionBar { volume_change: Some(F64(0.352)), five_bar_move: Some(F64(-0.0314)), ..bar() };
    let rsi = Contribution {
        kind: Kind::RsiReversion { period: 14, oversold: F64(30.0), overbought: F64(70.0) },
        values: [Some(F64(41.25)), None, None, None],
        ..says("b", 1, 0.7, 2.0)
    };
    let macd = Contribution {
        kind: Kind::MacdCross { fast: 12, slow: 26, signal: 9 },
        values: [Some(F64(0.12)), Some(F64(0.08)), None, None],
        ..says("c", 0, 0.8, 1.0)
    };
    let late = Contribution { values: [None; 4], ..says("d", 0, 1.0, 1.0) };
    let all = [proven(says("a", 1, 1.0, 1.0), 0.031, Some(1.2), 0.55), rsi, macd, late];
    let r = recommendation(&bar, &all, &instrument(), M5);
    let e = &r.explanation;
    // w = 0.5·0.6 + 0.5·0.55 = 0.575, and 2: strength (0.575 + 1.4) ÷ 2.575 = 0.767, confidence 46.02 + 40.
    assert_eq!(e.title.en, "BUY IBM: confidence 86.0 of 100");
    assert_eq!(e.title.es, "COMPRAR IBM: confianza 86.0 de 100");
    assert_eq!(
        e.summary.en,
        "2 of 4 strategies vote, 2 of them long. Strength +0.767 = +1.975 ÷ 2.575; consensus 1.000 = 2.575 ÷ 2.575; \
         confidence 100 × (0.6 × 0.767 + 0.4 × 1.000) = 86.0. Entry 99.75 to 100.25 (close 100 ± ¼ ATR(14) 1), stop 98 \
         (2 ATR), target 103 (3 ATR)."
    );
    assert_eq!(
        e.summary.es,
        "Votan 2 de 4 estrategias, 2 de ellas a largo. Fuerza +0.767 = +1.975 ÷ 2.575; consenso 1.000 = 2.575 ÷ 2.575; \
         confianza 100 × (0.6 × 0.767 + 0.4 × 1.000) = 86.0. Entrada de 99.75 a 100.25 (cierre 100 ± ¼ del ATR(14), 1), \
         stop en 98 (2 ATR), objetivo en 103 (3 ATR)."
    );
    let notes: Vec<&str> = e.notes.iter().map(|n| n.en.as_str()).collect();
    assert_eq!(
        notes,
        ["Volume is 35.2% above the mean of the 20 bars before.", "The close has fallen 3.1% in five bars."]
    );
    assert_eq!(
        e.invalidation.en,
        "A price at or below 98 or at or above 103 invalidates it at once; it expires at 1970-01-01 00:20:00 UTC, 3 bars \
         after its bar's close."
    );
    assert_eq!(e.next_review.es, "El 1970-01-01 00:10:00 UTC, al cierre de la próxima barra de 5m.");
    let reasons: Vec<&str> = r.votes.iter().map(|v| v.reason.en.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "Long: EMA(12) 100.5 is above EMA(26) 100. Weight 0.575 = 1 × track 0.575 (10 trades in 30 days, return +3.1%, \
             Sharpe 1.20, win rate 55.0%); with confidence 1 it adds +0.575.",
            "Long: RSI(14) is 41.25, after a close below 30; it leaves at 50. Weight 2.000 = 2 × track 1.000 (unproven: 0 of \
             10 trades in 30 days); with confidence 0.7 it adds +1.400.",
            "No side: MACD(12,26,9) 0.12 is above its signal line 0.08, but no position stands (stopped out, target \
             reached, or a side that it does not take). Weight 1.000 = 1 × track 1.000 (unproven: 0 of 10 trades in 30 \
             days): no vote.",
            "No side: too few bars for its indicators yet. Weight 1.000 = 1 × track 1.000 (unproven: 0 of 10 trades in 30 \
             days): no vote.",
        ]
    );
    assert_eq!(
        r.votes[1].reason.es,
        "Largo: el RSI(14) está en 41.25, tras un cierre por debajo de 30; sale en 50. Peso 2.000 = 2 × historial 1.000 \
         (sin probar: 0 de 10 operaciones en 30 días); con confianza 0.7 aporta +1.400."
    );
    assert_eq!(r.votes[0].values, [("ema(12)".to_owned(), F64(100.5)), ("ema(26)".to_owned(), F64(100.0))]);
}

#[test]
fn every_rule_has_words_for_every_side() {
    let kinds = [
        Kind::EmaCross { fast: 12, slow: 26 },
        Kind::RsiReversion { period: 14, oversold: F64(30.0), overbought: F64(70.0) },
        Kind::MacdCross { fast: 12, slow: 26, signal: 9 },
        Kind::BollingerReversion { period: 20, deviations: F64(2.0) },
        Kind::DonchianBreakout { period: 20 },
        Kind::TrendPullback { trend: 50, period: 14, low: F64(40.0), high: F64(60.0) },
        Kind::Consensus {
            fast: 12,
            slow: 26,
            period: 14,
            oversold: F64(30.0),
            overbought: F64(70.0),
            macd_fast: 12,
            macd_slow: 26,
            macd_signal: 9,
        },
    ];
    for kind in kinds {
        for side in [-1, 0, 1] {
            let values = [101.5, 102.25, 45.75, 103.125].map(|v| Some(F64(v)));
            let contribution = Contribution { kind, values, ..says("a", side, 1.0, 1.0) };
            let vote = vote(&contribution);
            for text in [&vote.reason.en, &vote.reason.es] {
                assert!(text.contains("101.5"), "{text}");
                assert!(!text.contains("  ") && !text.contains("{"), "{text}");
            }
            // All the numbers that there are, but for the band on the other side.
            for (name, value) in vote.values.iter().filter(|(name, _)| side == 0 || !name.contains("bollinger")) {
                assert!(vote.reason.en.contains(&value.0.to_string()), "{name} in {}", vote.reason.en);
            }
        }
    }
}

proptest! {
    /// Whatever the order and the cuts, the recommendation is that of the final rows at the final `now`.
    #[test]
    fn the_final_rows_decide(
        steps in prop::collection::vec((0_usize..4, -1_i8..=1, 1_u32..4, prop::option::of(9_600_i64..10_400)), 1..40),
        last in 0_i64..6,
    ) {
        let mut kernel = Recommend::new(&instruments());
        let mut rows: BTreeMap<usize, Contribution> = BTreeMap::new();
        let mut standing: Option<DecisionBar> = None;
        let mut table: Option<Arc<Recommendation>> = None;
        let mut fold = |changes: Rows| for (row, diff) in changes {
            if diff < 0 { assert_eq!(table.take(), Some(row)) } else { assert_eq!(table.replace(row), None) }
        };
        let mut epoch = first_epoch(M5 / MILLI);
        for (who, side, weight, low) in steps {
            epoch += 1;
            let new = says(["a", "b", "c", "d"][who], side, 0.9, weight.into());
            let old = rows.insert(who, new.clone());
            let changes = [Some((new, 1)), old.map(|old| (old, -1))].into_iter().flatten().collect();
            let bar = DecisionBar { low_since: low.map(price), high_since: low.map(price), ..bar() };
            let bars = [Some((bar, 1)), standing.replace(bar).map(|old| (old, -1))].into_iter().flatten().collect();
            fold(kernel.epoch(epoch, changes, bars, &[]));
        }
        epoch = epoch.max(first_epoch(last * M5 / MILLI));
        fold(kernel.epoch(epoch + 1, vec![], vec![], &[]));
        let mut fresh = Recommend::new(&instruments());
        let all = rows.into_values().map(|row| (row, 1)).collect();
        let expected = fresh.epoch(epoch + 1, all, standing.map(|bar| (bar, 1)).into_iter().collect(), &[]);
        prop_assert_eq!(table, expected.into_iter().next().map(|(row, _)| row));
    }
}

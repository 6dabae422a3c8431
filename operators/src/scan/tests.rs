//! The law of the scan: whatever the order and the cuts in which bars and strategies came, what stands is what a scan
//! that was given the final bars at once, under the final strategies, says.

use super::*;
use marea_model::output::{Change, Key, net};
use marea_model::time::{DAY, SECOND};
use marea_model::{BarBody, Nanos, Price, Size};
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;

const BASE: Nanos = 60 * SECOND;
const NO_BARS: [BarUpsert; 0] = [];

fn settings() -> ScanConfig {
    let timeframes = vec![Timeframe::M1, Timeframe::M5];
    let specs: Vec<IndicatorSpec> =
        ["ema(3)", "sma(4)", "rsi(3)", "obv", "vwap", "macd(2,3,2)", "donchian(3)", "atr(2)"]
            .map(|s| s.parse().unwrap())
            .into();
    ScanConfig {
        indicators: timeframes.iter().map(|t| (*t, specs.clone())).collect(),
        timeframes,
        instruments: Arc::new(Instruments::default()),
        index: 0,
        peers: 1,
    }
}

fn strategy(id: &str, json: &str) -> ConfigUpdate {
    ConfigUpdate::Put { key: format!("/marea/strategies/{id}"), value: json.to_owned(), revision: 1 }
}

/// A bar that opens at minute `at`: prices around 100, in cents of a scale of 8.
fn upsert(at: i64, body: Option<(i64, i64, i64)>) -> BarUpsert {
    let body = body.map(|(close, spread, volume)| {
        let mut body = BarBody::first(Price(close * 1_000_000), Size(volume * 100_000_000));
        body.high = Price((close + spread) * 1_000_000);
        body.low = Price((close - spread) * 1_000_000);
        body
    });
    BarUpsert { symbol: Symbol::new("X").unwrap(), open_time: at * BASE, body }
}

#[derive(Default)]
struct Standing {
    rows: BTreeMap<Key, Output>,
    contributions: BTreeMap<StrategyId, Contribution>,
    decision: Option<DecisionBar>,
}

impl Standing {
    fn apply(&mut self, out: ScanOutput) {
        // A key is in one of both.
        let changes = net(out.deltas);
        let given = out.rows.outputs().map(Change::Upsert);
        for change in changes.into_iter().chain(given) {
            match change {
                Change::Upsert(row) => self.rows.insert(row.key(), row),
                Change::Delete(row) => self.rows.remove(&row.key()),
            };
        }
        for (contribution, diff) in out.contributions {
            let standing = self.contributions.remove(&contribution.strategy);
            if diff == 1 {
                assert_eq!(standing, None);
                self.contributions.insert(contribution.strategy, contribution);
            } else {
                assert_eq!(standing, Some(contribution));
            }
        }
        for (decision, diff) in out.decisions {
            assert_eq!(self.decision.take(), (diff == -1).then_some(decision));
            self.decision = (diff == 1).then_some(decision);
        }
    }
}

fn progress(minutes: i64) -> Option<Progress> {
    Some(Progress { sealed_through: Nanos::MIN, closed_through: minutes * BASE })
}

const STRATEGIES: [(&str, &str); 4] = [
    ("cross", r#"{"kind":"ema_cross","fast":2,"slow":3,"timeframe":"1m","stop_loss":1,"take_profit":2}"#),
    ("cross", r#"{"kind":"ema_cross","fast":2,"slow":4,"timeframe":"1m"}"#),
    ("channel", r#"{"kind":"donchian_breakout","period":3,"timeframe":"5m","commission_bps":5,"slippage_bps":2}"#),
    (
        "channel",
        r#"{"kind":"donchian_breakout","period":3,"timeframe":"5m","commission_bps":5,"slippage_bps":2,"weight":3}"#,
    ),
];

type Step = (Vec<(i64, Option<(i64, i64, i64)>)>, Option<usize>, bool);

/// Epochs of bar edits within `minutes`, with strategies coming and going.
fn steps(minutes: i64) -> impl Generator<Value = Vec<Step>> {
    let body = proptest::option::weighted(0.9, (9_000..11_000_i64, 0..200_i64, 0..50_i64));
    let edits = proptest::collection::vec((0..minutes, body), 0..12);
    let config = proptest::option::weighted(0.15, 0..STRATEGIES.len());
    proptest::collection::vec((edits, config, any::<bool>()), 1..25)
}

fn check(minutes: i64, history: &[Step]) {
    let mut scan = Scan::new(settings()).unwrap();
    let mut standing = Standing::default();
    let mut bars: BTreeMap<i64, Option<(i64, i64, i64)>> = BTreeMap::new();
    let mut config: BTreeMap<&str, &str> = BTreeMap::new();
    let mut closed = 0;
    for (step, (edits, edit, removes)) in history.iter().enumerate() {
        closed = closed.max(minutes * (step as i64 + 1) / history.len() as i64);
        let edits: BTreeMap<i64, _> = edits.iter().copied().collect();
        let upserts: Vec<BarUpsert> = edits
            .iter()
            .filter(|(at, body)| bars.get(at).copied().flatten() != **body)
            .map(|(at, body)| upsert(*at, *body))
            .collect();
        bars.extend(edits.iter().map(|(at, body)| (*at, *body)));
        let updates: Vec<ConfigUpdate> = edit
            .map(|i| {
                let (id, json) = STRATEGIES[i];
                if *removes {
                    config.remove(id);
                    return ConfigUpdate::Delete { key: format!("/marea/strategies/{id}"), revision: 1 };
                }
                config.insert(id, json);
                strategy(id, json)
            })
            .into_iter()
            .collect();
        standing.apply(scan.epoch(upserts, progress(closed), &updates, true));

        let mut fresh = Scan::new(settings()).unwrap();
        let mut expected = Standing::default();
        let all: Vec<BarUpsert> =
            bars.iter().filter(|(_, b)| b.is_some()).map(|(at, body)| upsert(*at, *body)).collect();
        let tree: Vec<ConfigUpdate> = config.iter().map(|(id, json)| strategy(id, json)).collect();
        expected.apply(fresh.epoch(NO_BARS, None, &tree, true));
        expected.apply(fresh.epoch(all, progress(closed), &[], true));
        assert_eq!(standing.rows, expected.rows, "rows after step {step}");
        assert_eq!(standing.contributions, expected.contributions, "contributions after step {step}");
        assert_eq!(standing.decision, expected.decision, "decision after step {step}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn edits_anywhere_give_what_the_final_bars_give(history in steps(60)) {
        check(60, &history);
    }

    /// Indicators alone, and bars that only come and change: what was kept of the last bars is enough.
    #[test]
    fn edits_near_the_tip_give_what_the_final_bars_give(history in steps(400)) {
        let mut history = history;
        for (edits, config, _) in &mut history {
            edits.retain(|(_, body)| body.is_some());
            *config = None;
        }
        check(400, &history);
    }

    #[test]
    fn edits_behind_checkpoints_give_what_the_final_bars_give(history in steps(400)) {
        check(400, &history);
    }
}

#[test]
fn deleting_a_month_at_the_tip_moves_the_trailing_window_back() {
    let mut scan = Scan::new(settings()).unwrap();
    let mut standing = Standing::default();
    let (id, json) = STRATEGIES[1];
    let day = DAY / BASE;
    let bars: Vec<BarUpsert> = (0..200).map(|d| upsert(d * day, Some((10_000 + (d * 37) % 400, 20, 1)))).collect();
    standing.apply(scan.epoch(NO_BARS, None, &[strategy(id, json)], true));
    for bar in &bars {
        standing.apply(scan.epoch([*bar], progress(bar.open_time / BASE + 1), &[], true));
    }
    let gone: Vec<BarUpsert> = (90..200).map(|d| upsert(d * day, None)).collect();
    standing.apply(scan.epoch(gone, None, &[], true));

    let mut fresh = Scan::new(settings()).unwrap();
    let mut expected = Standing::default();
    expected.apply(fresh.epoch(bars[..90].to_vec(), progress(200 * day), &[strategy(id, json)], true));
    assert_eq!(standing.rows, expected.rows);
    assert_eq!(standing.contributions, expected.contributions);
}

#[test]
fn edits_far_back_find_their_way_through_thinned_checkpoints() {
    let config = STRATEGIES[..3].iter().map(|(id, json)| strategy(id, json)).collect::<Vec<_>>();
    let price = |at: i64| 10_000 + (at * 7919) % 301 + (at / 50) % 97;
    let mut bars: BTreeMap<i64, Option<(i64, i64, i64)>> =
        (0..9_000).map(|at| (at, Some((price(at), 15, 1 + at % 5)))).collect();
    let mut scan = Scan::new(settings()).unwrap();
    let mut standing = Standing::default();
    standing.apply(scan.epoch(NO_BARS, None, &config, true));
    for first in (0..9_000).step_by(450) {
        let chunk = bars.range(first..first + 450).map(|(at, body)| upsert(*at, *body));
        standing.apply(scan.epoch(chunk, progress(first + 450), &[], true));
    }
    for (at, body) in
        [(8_990, Some((9_000, 5, 1))), (100, None), (4_000, Some((12_000, 90, 7))), (0, None), (8_999, None)]
    {
        bars.insert(at, body);
        standing.apply(scan.epoch([upsert(at, body)], None, &[], true));
    }
    let mut fresh = Scan::new(settings()).unwrap();
    let mut expected = Standing::default();
    expected.apply(fresh.epoch(NO_BARS, None, &config, true));
    let all = bars.iter().filter(|(_, body)| body.is_some()).map(|(at, body)| upsert(*at, *body));
    expected.apply(fresh.epoch(all, progress(9_000), &[], true));
    let differ = |key: &&Key| standing.rows.get(key) != expected.rows.get(key);
    let first = standing.rows.keys().chain(expected.rows.keys()).find(differ);
    assert_eq!(first.map(|key| (standing.rows.get(key), expected.rows.get(key))), None);
    assert_eq!(standing.contributions, expected.contributions);
}

#[test]
fn a_bar_that_comes_back_at_a_checkpoint_is_in_it() {
    let config = STRATEGIES[..3].iter().map(|(id, json)| strategy(id, json)).collect::<Vec<_>>();
    let price = |at: i64| (9_000 + (at * 7919) % 1301, 15, 1 + at % 5);
    let mut bars: BTreeMap<i64, Option<(i64, i64, i64)>> = (0..64).map(|at| (at, Some(price(at)))).collect();
    let mut scan = Scan::new(settings()).unwrap();
    let mut standing = Standing::default();
    standing.apply(scan.epoch(NO_BARS, None, &config, true));
    standing.apply(scan.epoch(bars.iter().map(|(at, body)| upsert(*at, *body)), progress(64), &[], true));
    // The tip is deleted, its last bar comes back, the market goes on, and then an edit behind the checkpoint's time.
    let steps = [
        vec![(62, None), (63, None)],
        vec![(63, Some(price(7)))],
        vec![(64, Some(price(64)))],
        vec![(64, Some(price(9)))],
    ];
    for (step, edits) in steps.into_iter().enumerate() {
        bars.extend(edits.iter().copied());
        let upserts: Vec<BarUpsert> = edits.iter().map(|(at, body)| upsert(*at, *body)).collect();
        standing.apply(scan.epoch(upserts, progress(65), &[], true));
        let mut fresh = Scan::new(settings()).unwrap();
        let mut expected = Standing::default();
        expected.apply(fresh.epoch(NO_BARS, None, &config, true));
        let all = bars.iter().filter(|(_, body)| body.is_some()).map(|(at, body)| upsert(*at, *body));
        expected.apply(fresh.epoch(all, progress(65), &[], true));
        assert_eq!(standing.rows, expected.rows, "after step {step}");
        assert_eq!(standing.contributions, expected.contributions, "after step {step}");
    }
}

#[test]
fn a_symbol_met_by_a_bar_that_never_was_keeps_its_own_place() {
    let of = |symbol: &str, at: i64, close: Option<i64>| BarUpsert {
        symbol: Symbol::new(symbol).unwrap(),
        ..upsert(at, close.map(|close| (close, 10, 1)))
    };
    let mut scan = Scan::new(settings()).unwrap();
    let json = r#"{"kind":"ema_cross","fast":2,"slow":3,"timeframe":"1m","symbols":["X"]}"#;
    scan.epoch([of("X", 0, None)], progress(1), &[], true);
    scan.epoch((0..8).map(|at| of("Y", at, Some(10_000 + at))), progress(8), &[], true);
    scan.epoch((0..8).map(|at| of("X", at, Some(10_000 + at))), progress(8), &[], true);
    let out = scan.epoch(NO_BARS, None, &[strategy("cross", json)], true);
    let symbols: Vec<&str> = out.rows.metrics.iter().map(|row| row.symbol.as_str()).collect();
    assert_eq!(symbols, ["X", "X"]);
}

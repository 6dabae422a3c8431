//! A table for each reason, the life of windows, and that only the final facts count.

use super::*;
use crate::epochs::Feed;
use marea_model::live::MAX_VALUE_BYTES;
use marea_model::recommendation::{Action, Status};
use marea_model::time::{MILLI, SECOND, first_epoch};
use marea_model::{Amount, BlockReason, Decimal, F64, Position, Price, Progress, Timeframe};
use proptest::prelude::*;

/// Close of the recommendation's bar: 2013-10-07T13:30:00Z.
const T0: Nanos = 1_381_152_600 * SECOND;
const M5: Nanos = 300 * SECOND;

fn symbol() -> Symbol {
    Symbol::new("EURUSD").unwrap()
}

fn account(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

fn amount(text: &str) -> Amount {
    text.parse().unwrap()
}

/// Scale 5, tick 0.00001 of value 1, in USD; stops 10 points away at least.
fn instruments() -> Instruments {
    let eurusd = Instrument {
        scale: 5,
        tick_size: Price(1),
        currency: Some(*b"USD"),
        min_stop_distance: Amount::whole(10),
        ..Instrument::default()
    };
    Instruments { by_symbol: BTreeMap::from([(symbol(), eurusd)]), ..Instruments::default() }
}

fn price(mantissa: i64) -> Decimal {
    Decimal { mantissa, scale: 5 }
}

/// At 1.10000, stop 200 points away, target 300.
fn recommendation(action: Action) -> Recommendation {
    let side = i64::from(action.side());
    let level = |points: i64| (side != 0).then(|| price(110_000 + side * points));
    Recommendation {
        symbol: symbol(),
        timeframe: Timeframe::M5,
        bar_open_time: T0 - M5,
        bar_close_time: T0,
        action,
        bias: 0,
        status: Status::Active,
        strength: F64(0.5),
        consensus: F64(1.0),
        confidence: F64(75.0),
        agreeing: 2,
        close: price(110_000),
        atr: Some(F64(0.001)),
        entry_low: level(-25),
        entry_high: level(25),
        stop_loss: level(-200),
        take_profit: level(300),
        expires_at: T0 + 3 * M5,
        votes: Vec::new(),
        explanation: Default::default(),
    }
}

fn put(key: &str, value: &str) -> ConfigUpdate {
    ConfigUpdate::Put { key: key.to_owned(), value: value.to_owned(), revision: 3 }
}

fn delete(key: &str) -> ConfigUpdate {
    ConfigUpdate::Delete { key: key.to_owned(), revision: 4 }
}

/// One gate, the table of its verdicts, and the facts so far.
struct Desk {
    gate: Gate,
    epoch: Epoch,
    table: BTreeMap<(AccountId, Symbol), Arc<Verdict>>,
    recommendation: Option<Arc<Recommendation>>,
}

impl Desk {
    fn empty() -> Self {
        let gate = Gate::new(&instruments(), 0, 1);
        Desk { gate, epoch: first_epoch(T0 / MILLI), table: BTreeMap::new(), recommendation: None }
    }

    /// Master M1 with 10,000 USD, max_spread 20, risk 2 percent; BUY at 1.10000, quoted 1.09995 / 1.10000 at T0.
    fn new() -> Self {
        let mut desk = Desk::empty();
        desk.config(&[
            put("/echo/core/master_accounts", "M1"),
            put("/echo/policy/M1/max_spread", "20"),
            put("/echo/policy/M1/risk_per_trade", "2.0"),
        ]);
        desk.recommend(Some(recommendation(Action::Buy)));
        desk.quote(T0, 109_995, 110_000);
        desk.account("M1", 1, "10000", "USD", &[]);
        desk
    }

    /// The number of rows that changed: a replaced row counts 2.
    fn fold(&mut self, changes: Changes) -> usize {
        for (verdict, diff) in &changes {
            let key = (verdict.account, verdict.symbol);
            if *diff < 0 {
                assert_eq!(self.table.remove(&key).as_ref(), Some(verdict));
            } else {
                assert_eq!(self.table.insert(key, Arc::clone(verdict)), None);
            }
        }
        changes.len()
    }

    fn step(
        &mut self,
        recommendations: Vec<(Arc<Recommendation>, i64)>,
        quotes: Vec<QuoteUpdate>,
        accounts: Vec<AccountSnapshot>,
        config: &[ConfigUpdate],
    ) -> usize {
        self.epoch += 1;
        let changes = self.gate.epoch(self.epoch, recommendations, quotes, accounts, config);
        self.fold(changes)
    }

    fn config(&mut self, updates: &[ConfigUpdate]) -> usize {
        self.step(vec![], vec![], vec![], updates)
    }

    fn recommend(&mut self, new: Option<Recommendation>) -> usize {
        let new = new.map(Arc::new);
        let old = std::mem::replace(&mut self.recommendation, new.clone());
        let rows = new.map(|r| (r, 1)).into_iter().chain(old.map(|r| (r, -1))).collect();
        self.step(rows, vec![], vec![], &[])
    }

    fn quote(&mut self, event_time: Nanos, bid: i64, ask: i64) -> usize {
        let quote = Quote { event_time, seq: 0, bid: Price(bid), ask: Price(ask) };
        self.step(vec![], vec![QuoteUpdate { symbol: symbol(), quote: Some(quote) }], vec![], &[])
    }

    fn account(&mut self, name: &str, seq: u64, equity: &str, currency: &str, positions: &[(i8, &str)]) -> usize {
        let position = |(side, lots): &(i8, &str)| Position { symbol: symbol(), side: *side, lots: amount(lots) };
        let snapshot = AccountSnapshot {
            account: account(name),
            event_time: T0,
            seq,
            equity: amount(equity),
            balance: amount(equity),
            currency: currency.as_bytes().try_into().unwrap(),
            positions: positions.iter().map(position).collect(),
        };
        self.step(vec![], vec![], vec![snapshot], &[])
    }

    /// Time passes to `T0 + nanos`, and nothing else happens.
    fn pass(&mut self, nanos: Nanos) -> usize {
        self.epoch = self.epoch.max(first_epoch((T0 + nanos) / MILLI) - 1);
        self.step(vec![], vec![], vec![], &[])
    }

    fn of(&self, name: &str) -> &Verdict {
        &self.table[&(account(name), symbol())]
    }

    fn m1(&self) -> &Verdict {
        self.of("M1")
    }

    fn reasons(&self) -> &[BlockReason] {
        &self.m1().reasons
    }
}

#[test]
fn the_example_of_the_design_allows_one_lot() {
    let desk = Desk::new();
    let v = desk.m1();
    assert_eq!((v.intent, v.side, v.allow), (Intent::Enter, 1, true), "{v:?}");
    assert_eq!(v.lots, Some(Amount::whole(1)));
    assert_eq!(
        (v.entry, v.stop_loss, v.take_profit),
        (Some(price(110_000)), Some(price(109_800)), Some(price(110_300)))
    );
    assert_eq!((v.recommendation_time, v.valid_until), (Some(T0), Some(T0 + 3 * M5)));
    assert!(v.reasons.is_empty() && v.details.is_empty() && !v.cancel_pending && v.blocked_until.is_none());
}

#[test]
fn each_reason_alone() {
    use BlockReason::*;
    type Change = Box<dyn Fn(&mut Desk)>;
    let config = |key: &'static str, value: &'static str| -> Change {
        Box::new(move |desk| _ = desk.config(&[put(key, value)]))
    };
    let hold = |f: fn(&mut Recommendation)| -> Change {
        Box::new(move |desk| {
            let mut r = recommendation(Action::Buy);
            f(&mut r);
            desk.recommend(Some(r));
        })
    };
    let run = |f: fn(&mut Desk)| -> Change { Box::new(f) };
    let cases: Vec<(&str, Change, &[BlockReason])> = vec![
        ("kill switch", config("/echo/core/trading_enabled", "false"), &[KillSwitch]),
        ("any value but true", config("/echo/core/trading_enabled", "TRUE"), &[KillSwitch]),
        (
            "policy deleted",
            run(|d| _ = d.config(&[delete("/echo/policy/M1/max_spread"), delete("/echo/policy/M1/risk_per_trade")])),
            &[NoPolicy],
        ),
        ("half a policy", run(|d| _ = d.config(&[delete("/echo/policy/M1/max_spread")])), &[PolicyInvalid]),
        ("not a number", config("/echo/policy/M1/max_spread", "5,0"), &[PolicyInvalid]),
        ("a typo", config("/echo/policy/*/max_spred", "5"), &[PolicyInvalid]),
        ("a bad window", config("/echo/windows/M1/EURUSD/active", "no"), &[PolicyInvalid]),
        ("stale", run(|d| _ = d.config(&[ConfigUpdate::Stale(true)])), &[PolicyStale]),
        ("disabled", config("/echo/policy/M1/enabled", "false"), &[AccountDisabled]),
        ("window", config("/echo/windows/*/*/news/active", "true"), &[NoTradeWindow]),
        ("half a window", config("/echo/windows/M1/*/start_utc", "2030-01-01T00:00:00Z"), &[NoTradeWindow]),
        ("nothing recommended", run(|d| _ = d.recommend(None)), &[NoSignal]),
        ("HOLD", hold(|r| r.action = Action::Hold), &[NoSignal]),
        ("invalidated", hold(|r| r.status = Status::Invalidated), &[NoSignal]),
        ("expired", hold(|r| r.status = Status::Expired), &[NoSignal, Expired]),
        ("expired by now", run(|d| _ = d.pass(3 * M5)), &[NoSignal, Expired]),
        ("a short where none is allowed", run(|d| _ = d.recommend(Some(recommendation(Action::Sell)))), &[NoSignal]),
        ("stale quote", run(|d| _ = d.pass(5 * SECOND + MILLI)), &[QuoteStale]),
        ("crossed", run(|d| _ = d.quote(T0, 110_001, 110_000)), &[QuoteCrossed]),
        ("locked is not crossed", run(|d| _ = d.quote(T0, 110_000, 110_000)), &[]),
        ("spread at its limit", run(|d| _ = d.quote(T0, 109_980, 110_000)), &[]),
        ("spread", run(|d| _ = d.quote(T0, 109_979, 110_000)), &[SpreadAboveMax]),
        ("half a point counts", config("/echo/policy/M1/max_spread", "4.5"), &[SpreadAboveMax]),
        (
            "moved at its limit",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_slippage", "10")]);
                d.quote(T0, 110_005, 110_010);
            }),
            &[],
        ),
        (
            "moved",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_slippage", "10")]);
                d.quote(T0, 109_980, 109_989);
            }),
            &[PriceMoved],
        ),
        (
            "delay at its limit",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_delay_ms", "1000")]);
                d.pass(SECOND);
            }),
            &[],
        ),
        (
            "delay",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_delay_ms", "1000")]);
                d.pass(SECOND + MILLI);
            }),
            &[DelayAboveMax],
        ),
        (
            "drawdown under its limit",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_drawdown_pct", "10")]);
                d.account("M1", 2, "9000.01", "USD", &[]);
            }),
            &[],
        ),
        (
            "drawdown",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_drawdown_pct", "10")]);
                d.account("M1", 2, "9000", "USD", &[]);
            }),
            &[DrawdownLimit],
        ),
        (
            "a peak that came late",
            run(|d| {
                d.config(&[put("/echo/policy/M1/max_drawdown_pct", "10")]);
                d.account("M1", 0, "12000", "USD", &[]);
            }),
            &[DrawdownLimit],
        ),
        ("no equity", run(|d| _ = d.account("M1", 2, "0", "USD", &[])), &[NoEquity]),
        (
            "no snapshot",
            run(|d| {
                d.config(&[put("/echo/core/master_accounts", "M2"), put("/echo/policy/*/max_spread", "20")]);
                d.config(&[put("/echo/policy/*/risk_per_trade", "2"), put("/echo/core/slave_accounts", "M1")]);
            }),
            &[],
        ),
        ("another currency", run(|d| _ = d.account("M1", 2, "10000", "EUR", &[])), &[CurrencyMismatch]),
        ("a stop at its limit", hold(|r| r.stop_loss = Some(price(109_990))), &[]),
        ("a stop too close", hold(|r| r.stop_loss = Some(price(109_991))), &[StopTooClose]),
        ("a stop on the wrong side", hold(|r| r.stop_loss = Some(price(110_100))), &[StopTooClose]),
        ("no stop", hold(|r| r.stop_loss = None), &[StopTooClose]),
        ("the smallest lot", config("/echo/policy/M1/risk_fixed", "2"), &[]),
        ("too small a lot", config("/echo/policy/M1/risk_fixed", "1.99"), &[LotTooSmall]),
    ];
    for (name, change, reasons) in cases {
        let mut desk = Desk::new();
        change(&mut desk);
        let v = desk.m1();
        assert_eq!(v.reasons, reasons, "{name}");
        assert_eq!((v.allow, v.lots.is_some()), (reasons.is_empty(), reasons.is_empty()), "{name}");
    }
    let mut desk = Desk::empty();
    desk.config(&[
        put("/echo/core/master_accounts", "M1"),
        put("/echo/policy/*/max_spread", "20"),
        put("/echo/policy/*/risk_per_trade", "2"),
    ]);
    assert_eq!(desk.reasons(), [NoSignal, NoEquity], "an entry is needed for NO_QUOTE");
    desk.recommend(Some(recommendation(Action::Buy)));
    assert_eq!(desk.reasons(), [NoQuote, NoEquity]);
}

#[test]
fn all_reasons_hold_at_once_in_order() {
    use BlockReason::*;
    let mut desk = Desk::new();
    desk.config(&[
        put("/echo/core/trading_enabled", "no"),
        put("/echo/policy/M1/enabled", "false"),
        put("/echo/policy/M1/max_slippage", "0"),
        put("/echo/policy/M1/max_delay_ms", "0"),
        put("/echo/policy/M1/max_drawdown_pct", "1"),
        put("/echo/policy/M1/risk_per_trade", "0"),
        put("/echo/windows/M1/EURUSD/end_utc", "2030-01-01T00:00:00Z"),
        put("/echo/windows/*/EURUSD/x/active", "1"),
        ConfigUpdate::Stale(true),
    ]);
    desk.account("M1", 2, "100", "GBP", &[]);
    let close = Recommendation { stop_loss: Some(price(109_999)), ..recommendation(Action::Buy) };
    desk.recommend(Some(close));
    desk.quote(T0, 110_100, 110_050);
    desk.pass(6 * SECOND);
    assert_eq!(
        desk.reasons(),
        [
            KillSwitch,
            PolicyInvalid,
            PolicyStale,
            AccountDisabled,
            NoTradeWindow,
            QuoteStale,
            QuoteCrossed,
            PriceMoved,
            DelayAboveMax,
            DrawdownLimit,
            CurrencyMismatch,
            StopTooClose,
            LotTooSmall
        ]
    );
    assert_eq!(
        desk.m1().details,
        [
            "/echo/windows/*/EURUSD/x/active: \"1\" is not true",
            "/echo/windows/M1/EURUSD/end_utc: an end without a start"
        ]
    );
    let mut sorted = desk.reasons().to_vec();
    sorted.sort();
    assert_eq!(desk.reasons(), sorted, "the order of the enum is the order of the list");
    // Of a stale quote the spread is not judged, though it is wide.
    desk.quote(T0 + SECOND / 2, 100_000, 110_050);
    assert!(desk.reasons().contains(&QuoteStale) && !desk.reasons().contains(&SpreadAboveMax));
    desk.quote(T0 + 5 * SECOND, 100_000, 110_050);
    assert!(!desk.reasons().contains(&QuoteStale) && desk.reasons().contains(&SpreadAboveMax));
    // Nothing recommended: neither price nor stop is judged.
    desk.recommend(None);
    assert_eq!(
        desk.reasons(),
        [
            KillSwitch,
            PolicyInvalid,
            PolicyStale,
            AccountDisabled,
            NoTradeWindow,
            NoSignal,
            DrawdownLimit,
            CurrencyMismatch
        ]
    );
    // No policy: nothing that it limits is judged.
    let keys = ["max_spread", "enabled", "max_slippage", "max_delay_ms", "max_drawdown_pct", "risk_per_trade"];
    desk.config(&keys.map(|key| delete(&format!("/echo/policy/M1/{key}"))));
    assert_eq!(
        desk.reasons(),
        [KillSwitch, NoPolicy, PolicyInvalid, PolicyStale, NoTradeWindow, NoSignal, CurrencyMismatch]
    );
}

#[test]
fn intents_by_position() {
    use Action::*;
    // (action, positions, confidence, allow_short, intent, side)
    type Case<'a> = (Action, &'a [(i8, &'a str)], f64, bool, Intent, i8);
    let cases: &[Case<'_>] = &[
        (Buy, &[], 70.0, false, Intent::Enter, 1),
        (StrongBuy, &[], 90.0, false, Intent::Enter, 1),
        (Buy, &[(1, "0.5")], 79.9, false, Intent::None, 0),
        (Buy, &[(1, "0.5")], 80.0, false, Intent::Increase, 1),
        (Buy, &[(-1, "0.5")], 70.0, false, Intent::Exit, -1),
        (Sell, &[], 70.0, false, Intent::None, 0),
        (Sell, &[], 70.0, true, Intent::Enter, -1),
        (StrongSell, &[(-1, "0.5")], 79.9, true, Intent::None, 0),
        (Sell, &[(-1, "0.5")], 80.0, true, Intent::Increase, -1),
        (Sell, &[(1, "0.5")], 70.0, false, Intent::Exit, 1),
        (Hold, &[], 60.0, true, Intent::None, 0),
        (Hold, &[(1, "0.5")], 60.0, true, Intent::None, 0),
    ];
    for (action, positions, confidence, allow_short, intent, side) in cases {
        let mut desk = Desk::new();
        desk.config(&[put("/echo/policy/M1/allow_short", if *allow_short { "true" } else { "false" })]);
        desk.account("M1", 2, "10000", "USD", positions);
        desk.recommend(Some(Recommendation { confidence: F64(*confidence), ..recommendation(*action) }));
        let v = desk.m1();
        assert_eq!((v.intent, v.side), (*intent, *side), "{action:?} {positions:?}");
        assert_eq!(v.allow, *intent != Intent::None, "{action:?} {positions:?}: {:?}", v.reasons);
        assert_eq!(v.reasons.contains(&BlockReason::NoSignal), *intent == Intent::None);
    }
}

#[test]
fn an_exit_is_never_blocked() {
    let mut desk = Desk::new();
    desk.account("M1", 2, "10000", "EUR", &[(-1, "0.37")]);
    desk.config(&[
        put("/echo/core/trading_enabled", "false"),
        put("/echo/policy/M1/max_spread", "x"),
        put("/echo/windows/*/*/active", "true"),
        ConfigUpdate::Stale(true),
    ]);
    desk.pass(60 * SECOND);
    let v = desk.m1();
    assert_eq!((v.intent, v.side, v.allow, v.lots), (Intent::Exit, -1, true, Some(amount("0.37"))));
    assert!(v.reasons.is_empty() && v.details.is_empty() && v.entry.is_none() && v.blocked_until.is_none());
    assert!(v.cancel_pending, "orders that wait are to go all the same");
    desk.account("M1", 3, "10000", "EUR", &[(-1, "0.5")]);
    assert_eq!(desk.m1().lots, Some(amount("0.5")));
}

#[test]
fn stops_and_targets_of_masters_and_slaves() {
    let levels = |desk: &Desk, name| {
        let v = desk.of(name);
        (v.stop_loss.map(|p| p.mantissa), v.take_profit.map(|p| p.mantissa), v.lots, v.reasons.clone())
    };
    let mut desk = Desk::new();
    desk.config(&[
        put("/echo/core/slave_accounts", "S1"),
        put("/echo/policy/*/max_spread", "20"),
        put("/echo/policy/*/risk_per_trade", "2"),
        put("/echo/policy/*/copy_sl_tp", "false"),
        put("/echo/policy/*/sl_offset", "50"),
        put("/echo/policy/*/tp_offset", "7"),
        put("/echo/policy/*/allow_short", "true"),
    ]);
    desk.account("S1", 1, "10000", "USD", &[]);
    // Moved away: 250 points cost more a lot.
    assert_eq!(levels(&desk, "M1"), (Some(109_750), Some(110_307), Some(amount("0.8")), vec![]));
    assert_eq!(levels(&desk, "S1"), (None, None, None, vec![BlockReason::StopTooClose]));
    desk.config(&[put("/echo/policy/S1/catastrophic_sl", "400")]);
    assert_eq!(levels(&desk, "S1"), (Some(109_600), None, Some(amount("0.5")), vec![]));
    desk.recommend(Some(recommendation(Action::Sell)));
    assert_eq!(levels(&desk, "M1"), (Some(110_250), Some(109_693), Some(amount("0.8")), vec![]));
    assert_eq!(levels(&desk, "S1"), (Some(110_400), None, Some(amount("0.5")), vec![]));
    desk.config(&[put("/echo/core/master_accounts", "M1,S1")]);
    assert_eq!(levels(&desk, "S1"), levels(&desk, "M1"), "a master copies always");
}

/// The verdict's (reasons are just the window, cancel_pending, blocked_until, valid_until), seconds after T0.
fn window_state(desk: &Desk) -> (bool, bool, Option<i64>, Option<i64>) {
    let v = desk.m1();
    let seconds = |t: Option<Nanos>| t.map(|t| (t - T0) / SECOND);
    (v.reasons == [BlockReason::NoTradeWindow], v.cancel_pending, seconds(v.blocked_until), seconds(v.valid_until))
}

fn utc(seconds: i64) -> String {
    marea_model::time::format_rfc3339(T0 + seconds * SECOND)
}

#[test]
fn windows_block_and_free_on_time_ticks_or_no_ticks() {
    let mut desk = Desk::new();
    // Not to be disturbed by staleness.
    desk.config(&[put("/echo/policy/M1/max_quote_age_ms", "10000000")]);
    let key = |id: &str, field: &str| format!("/echo/windows/M1/EURUSD/{id}/{field}");
    desk.config(&[
        put(&key("a", "start_utc"), &utc(100)),
        put(&key("a", "end_utc"), &utc(200)),
        put(&key("a", "pre_buffer_sec"), "10"),
        put(&key("b", "start_utc"), &utc(150)),
        put(&key("b", "end_utc"), &utc(250)),
        put(&key("b", "post_buffer_sec"), "20"),
        put("/echo/windows/*/EURUSD/c/start_utc", &utc(400)),
        put("/echo/windows/*/EURUSD/c/end_utc", &utc(500)),
    ]);
    assert_eq!(window_state(&desk), (false, false, None, Some(90)));
    assert_eq!(desk.pass(90 * SECOND - 1), 0, "a nanosecond early is a millisecond early");
    assert_eq!(desk.pass(90 * SECOND), 2);
    assert_eq!(window_state(&desk), (true, true, Some(270), Some(270)));
    assert_eq!(desk.pass(200 * SECOND), 0, "the edges inside of the union are none");
    assert_eq!(desk.pass(269 * SECOND), 0);
    assert_eq!(desk.pass(270 * SECOND), 2);
    assert_eq!(window_state(&desk), (false, false, None, Some(400)));
    // An edit withdraws the future: the window of 400 is put off.
    desk.config(&[put("/echo/windows/*/EURUSD/c/start_utc", &utc(450))]);
    assert_eq!(desk.pass(449 * SECOND), 0);
    assert_eq!(desk.pass(450 * SECOND), 2);
    assert_eq!(window_state(&desk), (true, true, Some(500), Some(500)));
    // Deleted while it blocks: half of it still does, without a known end; then nothing.
    desk.config(&[delete("/echo/windows/*/EURUSD/c/end_utc")]);
    assert_eq!(window_state(&desk), (true, false, None, Some(900)));
    assert_eq!(desk.m1().details, ["/echo/windows/*/EURUSD/c/start_utc: a start without an end"]);
    desk.config(&[delete("/echo/windows/*/EURUSD/c/start_utc")]);
    assert_eq!(window_state(&desk), (false, false, None, Some(900)));
    // Active while the key lives.
    desk.config(&[put("/echo/windows/M1/*/active", "true")]);
    assert_eq!(window_state(&desk), (true, true, None, Some(900)));
    desk.config(&[delete("/echo/windows/M1/*/active")]);
    assert!(desk.m1().allow);
    // A bad one blocks its pair, and another's edge still counts.
    desk.config(&[
        put(&key("d", "start_utc"), &utc(600)),
        put(&key("d", "end_utc"), &utc(550)),
        put(&key("e", "start_utc"), &utc(700)),
        put(&key("e", "end_utc"), &utc(800)),
    ]);
    assert_eq!(desk.reasons(), [BlockReason::PolicyInvalid]);
    let expected = format!("{}: \"{}\" is not before the end \"{}\"", key("d", "start_utc"), utc(600), utc(550));
    assert_eq!(desk.m1().details, [expected]);
    desk.pass(700 * SECOND);
    assert_eq!(desk.reasons(), [BlockReason::PolicyInvalid, BlockReason::NoTradeWindow]);
    assert_eq!(desk.m1().blocked_until, Some(T0 + 800 * SECOND));
}

#[test]
fn a_whole_window_under_half_a_one_still_cancels() {
    let mut desk = Desk::new();
    desk.config(&[
        put("/echo/windows/M1/EURUSD/half/start_utc", &utc(0)),
        put("/echo/windows/M1/EURUSD/whole/start_utc", &utc(2)),
        put("/echo/windows/M1/EURUSD/whole/end_utc", &utc(3)),
    ]);
    assert_eq!(window_state(&desk), (true, false, None, Some(2)));
    desk.pass(2 * SECOND);
    assert_eq!(window_state(&desk), (true, true, None, Some(3)));
}

#[test]
fn every_bad_value_of_the_configuration_blocks_what_it_touches_and_nothing_else() {
    let long = "1".repeat(MAX_VALUE_BYTES + 1);
    let window = "/echo/windows/M1/EURUSD";
    type Case<'a> = (&'a str, Vec<(String, &'a str)>, &'a str);
    let policy = |field: &str| format!("/echo/policy/M1/{field}");
    let time = "is not an RFC 3339 time with a zone, such as 2013-10-07T13:30:00Z";
    let start_after_end = vec![
        (format!("{window}/start_utc"), "2013-10-07T15:00:00Z"),
        (format!("{window}/end_utc"), "2013-10-07T14:00:00Z"),
    ];
    let no_zone = vec![
        (format!("{window}/start_utc"), "2013-10-07 15:00"),
        (format!("{window}/end_utc"), "2013-10-07T16:00:00Z"),
    ];
    let cases: Vec<Case<'_>> = vec![
        ("not a number", vec![(policy("max_spread"), "wide")], "/echo/policy/M1/max_spread: \"wide\" is not a number"),
        ("5,0", vec![(policy("max_spread"), "5,0")], "/echo/policy/M1/max_spread: \"5,0\" is not a number"),
        (
            "negative risk",
            vec![(policy("risk_per_trade"), "-2.0")],
            "/echo/policy/M1/risk_per_trade: \"-2.0\" is negative",
        ),
        (
            "over 1 MB",
            vec![(policy("max_spread"), &long)],
            "/echo/policy/M1/max_spread: 1000001 bytes are more than 1000000",
        ),
        (
            "start ≥ end",
            start_after_end,
            "/echo/windows/M1/EURUSD/start_utc: \"2013-10-07T15:00:00Z\" is not before the end \"2013-10-07T14:00:00Z\"",
        ),
        ("no zone", no_zone, "/echo/windows/M1/EURUSD/start_utc: \"2013-10-07 15:00\" "),
    ];
    for (name, keys, detail) in cases {
        let mut desk = Desk::new();
        desk.config(&[
            put("/echo/core/slave_accounts", "S1"),
            put("/echo/policy/*/max_spread", "20"),
            put("/echo/policy/*/risk_per_trade", "2"),
        ]);
        desk.account("S1", 1, "10000", "USD", &[]);
        let updates: Vec<ConfigUpdate> = keys.iter().map(|(key, value)| put(key, value)).collect();
        desk.config(&updates);
        assert_eq!(desk.reasons(), [BlockReason::PolicyInvalid], "{name}");
        let detail = if detail.ends_with(' ') { format!("{detail}{time}") } else { detail.to_owned() };
        assert_eq!(desk.m1().details, [detail], "{name}");
        assert!(desk.of("S1").allow, "{name}: the rest goes on");
        let problems = desk.gate.config.problems();
        assert_eq!((problems.len(), problems[0].revision), (1, 3), "{name}");
        // The good value again, and all is well.
        for (key, _) in &keys {
            desk.config(&[delete(key)]);
        }
        desk.config(&[put("/echo/policy/M1/max_spread", "20"), put("/echo/policy/M1/risk_per_trade", "2")]);
        assert!(desk.m1().allow, "{name}");
    }
}

#[test]
fn the_whole_prefix_gone_blocks_everybody() {
    let mut desk = Desk::new();
    let keys = ["/echo/core/master_accounts", "/echo/policy/M1/max_spread", "/echo/policy/M1/risk_per_trade"];
    desk.config(&keys.map(delete));
    assert_eq!(desk.reasons(), [BlockReason::NoPolicy]);
    desk.config(&[put("/echo/core/slave_accounts", "S1")]);
    assert_eq!(desk.table.len(), 1, "a new list decides: M1 is no account any more");
    assert_eq!(desk.of("S1").reasons, [BlockReason::NoPolicy, BlockReason::NoEquity]);
}

#[test]
fn the_kill_switch_blocks_all_and_lets_go() {
    let mut desk = Desk::new();
    desk.config(&[put("/echo/core/slave_accounts", "S1,S2")]);
    assert_eq!(desk.config(&[put("/echo/core/trading_enabled", "false")]), 6);
    assert!(desk.table.values().all(|v| v.reasons.first() == Some(&BlockReason::KillSwitch)));
    assert_eq!(desk.config(&[put("/echo/core/trading_enabled", "no")]), 0);
    assert_eq!(desk.config(&[delete("/echo/core/trading_enabled")]), 6);
    assert!(desk.m1().allow);
}

#[test]
fn a_quote_within_its_limits_changes_nothing_and_one_beyond_at_once() {
    let mut desk = Desk::new();
    desk.config(&[put("/echo/policy/M1/max_slippage", "50")]);
    for (event_time, bid, ask, rows) in [
        (1, 109_990, 110_010, 0),
        (2, 109_989, 110_010, 2),
        (3, 109_900, 110_010, 0),
        (4, 109_991, 110_010, 2),
        (5, 110_031, 110_050, 0),
        (6, 110_032, 110_051, 2),
        (7, 110_060, 110_051, 2),
        (8, 110_040, 110_050, 2),
    ] {
        assert_eq!(desk.quote(T0 + event_time, bid, ask), rows, "{event_time}");
    }
    // A tightened limit blocks without any tick, and a wider one frees.
    assert_eq!(desk.config(&[put("/echo/policy/M1/max_spread", "9")]), 2);
    assert_eq!(desk.reasons(), [BlockReason::SpreadAboveMax]);
    assert_eq!(desk.config(&[put("/echo/policy/M1/max_spread", "10")]), 2);
    assert!(desk.m1().allow);
}

#[test]
fn staleness_comes_lazily_but_on_time() {
    let mut desk = Desk::new();
    for second in 1..=4 {
        assert_eq!(desk.pass(second * SECOND), 0);
        assert_eq!(desk.quote(T0 + second * SECOND + 1, 109_995, 110_000), 0);
    }
    assert_eq!(desk.gate.timers.len(), 2, "one a symbol and one a pair, whatever the number of quotes");
    assert_eq!(desk.pass(9 * SECOND), 0);
    // The last quote is of 4 s and 1 ns: at 9.000 it is 4.999999999 s old, at 9.001 more than 5 s.
    assert_eq!(desk.pass(9 * SECOND + MILLI), 2);
    assert_eq!(desk.reasons(), [BlockReason::QuoteStale]);
    assert_eq!(desk.quote(T0 + 9 * SECOND, 109_995, 110_000), 2);
    assert!(desk.m1().allow);
    desk.pass(14 * SECOND + MILLI);
    assert_eq!(desk.reasons(), [BlockReason::QuoteStale]);
}

#[test]
fn only_as_of_is_no_change() {
    let mut desk = Desk::new();
    let as_of = desk.m1().as_of;
    desk.pass(SECOND);
    assert_eq!(desk.config(&[put("/echo/policy/M1/max_spread", "19")]), 0);
    assert_eq!(desk.recommend(Some(Recommendation { agreeing: 3, ..recommendation(Action::Buy) })), 0);
    assert_eq!(desk.m1().as_of, as_of);
    assert_eq!(desk.config(&[put("/echo/policy/M1/max_spread", "1")]), 2);
    assert_eq!(desk.m1().as_of, T0 + SECOND);
}

#[test]
fn accounts_and_symbols_come_and_go() {
    let mut desk = Desk::new();
    assert_eq!(desk.table.len(), 1);
    let other = Symbol::new("GBPUSD").unwrap();
    let seen = QuoteUpdate { symbol: other, quote: None };
    assert_eq!(desk.step(vec![], vec![seen], vec![], &[]), 1, "a symbol that has ticks has verdicts");
    assert_eq!(desk.config(&[put("/echo/core/slave_accounts", "S1")]), 2);
    assert_eq!(desk.config(&[put("/marea/instruments/USDJPY", r#"{"tick_value":"2"}"#)]), 2);
    assert_eq!(desk.config(&[delete("/marea/instruments/USDJPY")]), 2);
    assert_eq!(desk.config(&[delete("/echo/core/slave_accounts")]), 2);
    assert_eq!(desk.table.len(), 2);
    let gbp = Recommendation { symbol: Symbol::new("XAUUSD").unwrap(), ..recommendation(Action::Hold) };
    let gbp = Arc::new(gbp);
    assert_eq!(desk.step(vec![(gbp.clone(), 1)], vec![], vec![], &[]), 1);
    assert_eq!(desk.step(vec![(gbp, -1)], vec![], vec![], &[]), 1);
    assert_eq!(desk.gate.markets.len(), 2);
}

#[test]
fn instances_share_the_symbols_among_them() {
    let mut all = instruments();
    for name in ["A", "B", "C", "D", "E", "F", "G"] {
        all.by_symbol.insert(Symbol::new(name).unwrap(), Instrument::default());
    }
    let rows = |index, peers| {
        let list = [put("/echo/core/master_accounts", "M1,M2")];
        Gate::new(&all, index, peers).epoch(first_epoch(1), vec![], vec![], vec![], &list)
    };
    let mut parts: Changes = (0..3).flat_map(|index| rows(index, 3)).collect();
    parts.sort_by_key(|(v, _)| (v.symbol, v.account));
    assert_eq!(parts, rows(0, 1));
    assert_eq!(parts.len(), 16);
}

/// Bars, quotes and configuration into one worker; recommendations and verdicts out of all of them.
fn wired(workers: usize) -> Vec<(Epoch, Verdict, i64)> {
    use crate::epochs::EpochOperator;
    use crate::recommend::{Recommend, recommend};
    use marea_model::recommendation::{Contribution, DecisionBar};
    use std::sync::mpsc;
    use timely::dataflow::operators::Input;

    let bar = |symbol| DecisionBar {
        symbol,
        timeframe: Timeframe::M5,
        open_time: T0 - M5,
        close: price(110_000),
        atr: None,
        volume_change: None,
        five_bar_move: None,
        high_since: None,
        low_since: None,
    };
    let (send, receive) = mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let send = send.lock().unwrap().clone();
        let (index, peers) = (worker.index(), worker.peers());
        let mut input = worker.dataflow(|scope| {
            let (input, feeds) = scope.new_input::<Vec<Arc<Feed>>>();
            let clock = Clock::new(feeds);
            let mut market = EpochOperator::new("market", clock.clone());
            let (_, contributions) = market.output::<(Contribution, i64)>();
            let (bars_out, bars) = market.output();
            let (quotes_out, quotes) = market.output();
            market.build(move |epoch, _| {
                if index == 0 && epoch == first_epoch(T0 / MILLI) {
                    for name in ["EURUSD", "GBPUSD", "USDJPY", "AUDUSD"] {
                        let symbol = Symbol::new(name).unwrap();
                        quotes_out.give(QuoteUpdate { symbol, quote: None });
                        bars_out.give((bar(symbol), 1));
                    }
                }
            });
            let recommendations = recommend(clock.clone(), contributions, bars, Recommend::new(&instruments()));
            let verdicts = gate(clock.clone(), recommendations, quotes, Gate::new(&instruments(), index, peers));
            let mut watch = EpochOperator::new("watch", clock.clone());
            let verdicts = watch.input(verdicts);
            watch.build(move |epoch, _| {
                for (verdict, diff) in verdicts.drain() {
                    send.send((epoch, Verdict::clone(&verdict), diff)).unwrap();
                }
            });
            clock.build();
            input
        });
        for ms in [0, 1, 999, 1000, 5000] {
            let mut feed = (*Feed::at(Progress::START)).clone();
            if ms == 1 {
                feed.config.push(put("/echo/core/master_accounts", "M1"));
                feed.config.push(put("/echo/windows/M1/EURUSD/start_utc", &utc(1)));
                feed.config.push(put("/echo/windows/M1/EURUSD/end_utc", &utc(4)));
            }
            let epoch = first_epoch(T0 / MILLI + ms);
            input.advance_to(epoch);
            input.send(Arc::new(feed));
            input.advance_to(epoch + 1);
        }
        input.close();
        while worker.step() {}
    });
    drop(guards.unwrap());
    let mut rows: Vec<_> = receive.try_iter().collect();
    rows.sort();
    rows
}

#[test]
fn wired_up_a_window_blocks_and_frees_on_time_on_any_number_of_workers() {
    let rows = wired(1);
    let of_eurusd: Vec<_> = rows
        .iter()
        .filter(|(_, v, diff)| v.symbol == symbol() && *diff > 0)
        .map(|(epoch, v, _)| (now_ns(*epoch) - T0, v.reasons.contains(&BlockReason::NoTradeWindow)))
        .collect();
    assert_eq!(of_eurusd, [(MILLI, false), (SECOND, true), (5 * SECOND, false)]);
    assert_eq!(rows.len(), 4 + 2 * 2);
    assert_eq!(wired(2), rows);
    assert_eq!(wired(3), rows);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Edit(usize, usize),
    Stale(bool),
    Quote { ago_ms: i64, bid: i64, spread: i64 },
    Snapshot { account: usize, seq: u64, equity: i64, side: i8, currency: bool },
    Recommend(Option<(usize, usize, usize)>),
    Pass(i64),
}

const KEYS: [&str; 22] = [
    "/echo/core/master_accounts",
    "/echo/core/slave_accounts",
    "/echo/core/trading_enabled",
    "/echo/policy/*/max_spread",
    "/echo/policy/*/risk_per_trade",
    "/echo/policy/M1/max_spread",
    "/echo/policy/M1/max_slippage",
    "/echo/policy/M1/max_delay_ms",
    "/echo/policy/M1/max_quote_age_ms",
    "/echo/policy/*/max_drawdown_pct",
    "/echo/policy/S1/copy_sl_tp",
    "/echo/policy/S1/catastrophic_sl",
    "/echo/policy/S1/risk_fixed",
    "/echo/policy/*/allow_short",
    "/echo/policy/M1/enabled",
    "/echo/windows/*/EURUSD/start_utc",
    "/echo/windows/*/EURUSD/end_utc",
    "/echo/windows/M1/EURUSD/x/start_utc",
    "/echo/windows/M1/EURUSD/x/end_utc",
    "/echo/windows/S1/*/active",
    "/marea/instruments/EURUSD",
    "/marea/instruments/GBPUSD",
];

/// Values for a key: mostly such as make sense.
fn value(key: usize, n: usize) -> Option<String> {
    let pick = |values: &[&str]| values.get(n % (values.len() + 1)).map(|v| (*v).to_owned());
    match KEYS[key] {
        k if k.ends_with("_accounts") => pick(&["M1", "M1,S1", "S1,M2", "[\"M1\", \"S1\"]", "["]),
        k if k.ends_with("_utc") => [None, Some(1), Some(2), Some(3), Some(5), Some(8), Some(200)][n % 7].map(utc),
        k if k.contains("instruments") => {
            pick(&[r#"{"scale":5,"tick_size":"0.00001"}"#, r#"{"scale":5,"tick_size":"0.00002","currency":"EUR"}"#])
        }
        k if k.ends_with("trading_enabled") => pick(&["true", "true", "off"]),
        k if k.ends_with("max_spread") => pick(&["5", "20", "10.5", "0", "x"]),
        k if k.ends_with("risk_per_trade") => pick(&["2", "0.01", "100", "-1"]),
        k if k.ends_with("_ms") => pick(&["0", "1000", "2000", "2500"]),
        k if k.ends_with("max_drawdown_pct") => pick(&["1", "10", "50"]),
        k if k.ends_with("max_slippage") || k.ends_with("catastrophic_sl") => pick(&["5", "10", "200"]),
        k if k.ends_with("risk_fixed") => pick(&["1", "200"]),
        _ => pick(&["true", "false", "true"]),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..KEYS.len(), 0_usize..8).prop_map(|(key, n)| Step::Edit(key, n)),
        1 => any::<bool>().prop_map(Step::Stale),
        8 => (0_i64..3000, 109_980_i64..110_020, -2_i64..24)
            .prop_map(|(ago_ms, bid, spread)| Step::Quote { ago_ms, bid, spread }),
        4 => (0_usize..3, 0_u64..6, 0_i64..12, -1_i8..=1, any::<bool>())
            .prop_map(|(account, seq, equity, side, currency)| Step::Snapshot { account, seq, equity, side, currency }),
        4 => prop::option::weighted(0.9, (0_usize..5, 0_usize..3, 0_usize..3)).prop_map(Step::Recommend),
        8 => prop_oneof![Just(0_i64), Just(1), Just(400), Just(1000), Just(2001), Just(200_000)].prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..60)
}

/// All facts that stand, apart from any gate.
#[derive(Default)]
struct Truth {
    tree: BTreeMap<usize, Option<String>>,
    /// Lists that were once read stay known, so each list is replayed whole.
    lists: Vec<(usize, Option<String>)>,
    stale: bool,
    quote: Option<Quote>,
    snapshots: Vec<AccountSnapshot>,
    recommendation: Option<Arc<Recommendation>>,
}

impl Truth {
    /// The table of a gate that is told all this at once.
    fn table(&self, epoch: Epoch) -> BTreeMap<(AccountId, Symbol), Arc<Verdict>> {
        let update = |key: usize, value: &Option<String>| match value {
            Some(value) => put(KEYS[key], value),
            None => delete(KEYS[key]),
        };
        let mut config: Vec<ConfigUpdate> = self.lists.iter().map(|(key, value)| update(*key, value)).collect();
        config.extend(self.tree.iter().rev().map(|(key, value)| update(*key, value)));
        config.push(ConfigUpdate::Stale(self.stale));
        let quotes = self.quote.map(|quote| QuoteUpdate { symbol: symbol(), quote: Some(quote) });
        let rows = self.recommendation.iter().map(|r| (Arc::clone(r), 1)).collect();
        let mut snapshots = self.snapshots.clone();
        snapshots.reverse();
        let changes =
            Gate::new(&instruments(), 0, 1).epoch(epoch, rows, quotes.into_iter().collect(), snapshots, &config);
        changes.into_iter().map(|(v, _)| ((v.account, v.symbol), v)).collect()
    }
}

fn without_as_of(table: &BTreeMap<(AccountId, Symbol), Arc<Verdict>>) -> Vec<Verdict> {
    table.values().map(|v| Verdict { as_of: 0, ..Verdict::clone(v) }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// L1, L2 and L7 of the gate: after every step its verdicts are those of a gate that was told only what stands.
    #[test]
    fn the_facts_that_stand_decide(steps in steps(), cut in 1_usize..4) {
        let mut desk = Desk::empty();
        let mut truth = Truth::default();
        // Some beginning, so that most histories have entries.
        let mut pending: Vec<Step> = vec![
            Step::Edit(0, 0), Step::Edit(1, 1), Step::Edit(3, 1), Step::Edit(4, 0), Step::Recommend(Some((1, 1, 0))),
            Step::Quote { ago_ms: 0, bid: 109_995, spread: 5 },
            Step::Snapshot { account: 0, seq: 0, equity: 10, side: 0, currency: true },
        ];
        pending.extend(steps);
        let mut now_ms = T0 / MILLI;
        for (number, steps) in pending.chunks(cut).enumerate() {
            let (mut quotes, mut accounts, mut config, mut rows) = (vec![], vec![], vec![], vec![]);
            for step in steps {
                match step.clone() {
                    Step::Edit(key, n) => {
                        let new = value(key, n);
                        config.push(new.as_ref().map_or_else(|| delete(KEYS[key]), |value| put(KEYS[key], value)));
                        if key < 2 { truth.lists.push((key, new)) } else { drop(truth.tree.insert(key, new)) }
                    }
                    Step::Stale(stale) => {
                        truth.stale = stale;
                        config.push(ConfigUpdate::Stale(stale));
                    }
                    Step::Quote { ago_ms, bid, spread } => {
                        let event_time = (now_ms - ago_ms) * MILLI + 7;
                        let (bid, ask) = (Price(bid), Price(bid + spread));
                        let quote = Quote { event_time, seq: number as u64, bid, ask };
                        if truth.quote.is_none_or(|q| (q.event_time, q.seq) < (event_time, quote.seq)) {
                            truth.quote = Some(quote);
                            quotes = vec![QuoteUpdate { symbol: symbol(), quote: Some(quote) }];
                        }
                    }
                    Step::Snapshot { account: n, seq, equity, side, currency } => {
                        let position = Position { symbol: symbol(), side, lots: amount("0.3") };
                        let snapshot = AccountSnapshot {
                            account: account(["M1", "M2", "S1"][n]),
                            event_time: T0,
                            seq,
                            equity: Amount::whole(equity as i32 * 1000),
                            balance: Amount(0),
                            currency: if currency { *b"USD" } else { *b"EUR" },
                            positions: if side == 0 { vec![] } else { vec![position] },
                        };
                        truth.snapshots.push(snapshot.clone());
                        accounts.push(snapshot);
                    }
                    Step::Recommend(None) => rows.extend(truth.recommendation.take().map(|r| (r, -1))),
                    Step::Recommend(Some((action, confidence, status))) => {
                        let actions =
                            [Action::StrongBuy, Action::Buy, Action::Hold, Action::Sell, Action::StrongSell];
                        let r = Arc::new(Recommendation {
                            confidence: F64([70.0, 79.0, 90.0][confidence]),
                            status: [Status::Active, Status::Active, Status::Invalidated][status],
                            ..recommendation(actions[action])
                        });
                        rows.push((r.clone(), 1));
                        rows.extend(truth.recommendation.replace(r).map(|r| (r, -1)));
                    }
                    Step::Pass(ms) => now_ms += ms,
                }
            }
            // As the wiring gives them: netted.
            let mut netted: Vec<(Arc<Recommendation>, i64)> = Vec::new();
            for (row, diff) in rows {
                match netted.iter_mut().find(|(r, _)| *r == row) {
                    Some((_, sum)) => *sum += diff,
                    None => netted.push((row, diff)),
                }
            }
            netted.retain(|(_, diff)| *diff != 0);
            desk.epoch = desk.epoch.max(first_epoch(now_ms) - 1);
            desk.step(netted, quotes, accounts, &config);
            prop_assert_eq!(without_as_of(&desk.table), without_as_of(&truth.table(desk.epoch)));
            for v in desk.table.values() {
                prop_assert_eq!(v.allow, v.reasons.is_empty());
                prop_assert!(v.valid_until.is_none_or(|t| t > now_ns(desk.epoch)));
            }
            // Nothing lags behind: one more epoch at the same `now` changes nothing.
            prop_assert_eq!(desk.step(vec![], vec![], vec![], &[]), 0);
        }
        let waiting: usize = desk.gate.markets.values()
            .map(|m| usize::from(m.timer.is_some()) + m.pairs.values().filter(|p| p.timer.is_some()).count())
            .sum();
        prop_assert_eq!(desk.gate.timers.len(), waiting, "no timer is left behind");
    }
}

//! The cases of a bad configuration, with the exact texts; and that only the final tree counts.

use super::*;
use crate::time::SECOND;
use proptest::prelude::*;

fn put(key: &str, value: &str) -> ConfigUpdate {
    ConfigUpdate::Put { key: key.to_owned(), value: value.to_owned(), revision: 7 }
}

fn delete(key: &str) -> ConfigUpdate {
    ConfigUpdate::Delete { key: key.to_owned(), revision: 8 }
}

fn account(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

fn symbol(name: &str) -> Symbol {
    Symbol::new(name).unwrap()
}

/// Accounts M1, M2 (masters) and S1 (slave); a valid policy for all under `*`; then `more`.
fn config(more: &[(&str, &str)]) -> LiveConfig {
    let mut config = LiveConfig::default();
    let base = [
        ("/echo/core/master_accounts", "M1,M2"),
        ("/echo/core/slave_accounts", "S1"),
        ("/echo/policy/*/max_spread", "20"),
        ("/echo/policy/*/risk_per_trade", "2"),
    ];
    for (key, value) in base.iter().chain(more) {
        config.apply(&put(key, value));
    }
    config
}

fn details(state: PolicyState) -> Vec<String> {
    match state {
        PolicyState::Invalid(details) => details,
        other => panic!("{other:?}"),
    }
}

fn texts(config: &LiveConfig) -> Vec<String> {
    config.problems().iter().map(Problem::to_string).collect()
}

#[test]
fn a_policy_reads_key_by_key_the_account_over_the_star() {
    let config = config(&[
        ("/echo/policy/M1/max_spread", "5"),
        ("/echo/policy/M1/allow_short", "true"),
        ("/echo/policy/*/max_delay_ms", "1500"),
        ("/echo/policy/S1/risk_fixed", "50"),
        ("/echo/policy/S1/copy_sl_tp", "false"),
    ]);
    let expected = Policy {
        enabled: true,
        max_spread: Amount::whole(5),
        max_slippage: None,
        max_delay_ms: Some(1500),
        max_quote_age_ms: 5_000,
        copy_sl_tp: true,
        risk: Risk::Percent(Amount::whole(2)),
        max_drawdown_pct: None,
        sl_offset: Amount(0),
        tp_offset: Amount(0),
        catastrophic_sl: None,
        allow_short: true,
    };
    assert_eq!(config.policy(account("M1")), PolicyState::Valid(expected));
    let slave = Policy {
        max_spread: Amount::whole(20),
        risk: Risk::Fixed(Amount::whole(50)),
        copy_sl_tp: false,
        allow_short: false,
        ..expected
    };
    assert_eq!(config.policy(account("S1")), PolicyState::Valid(slave), "risk_fixed replaces risk_per_trade");
    assert_eq!(texts(&config), Vec::<String>::new());
}

#[test]
fn a_bad_policy_value_blocks_the_account_and_names_key_revision_value_and_why() {
    let long = "1".repeat(MAX_VALUE_BYTES + 1);
    for (key, value, why) in [
        ("max_spread", "5,0", "\"5,0\" is not a number"),
        ("max_spread", "twenty", "\"twenty\" is not a number"),
        ("risk_per_trade", "-2", "\"-2\" is negative"),
        ("risk_per_trade", "200", "\"200\" is not 0 to 100 percent"),
        ("enabled", "yes", "\"yes\" is neither true nor false"),
        ("max_spread", &long, "1000001 bytes are more than 1000000"),
        (
            "max_spred",
            "20",
            "unknown key of a policy; known: max_spread, max_slippage, max_delay_ms, max_quote_age_ms, copy_sl_tp, \
             risk_per_trade, risk_fixed, enabled, max_drawdown_pct, sl_offset, tp_offset, catastrophic_sl, allow_short",
        ),
    ] {
        let key = format!("/echo/policy/M1/{key}");
        let config = config(&[(&key, value)]);
        assert_eq!(details(config.policy(account("M1"))), [format!("{key}: {why}")]);
        assert!(matches!(config.policy(account("M2")), PolicyState::Valid(_)), "the rest goes on");
        assert_eq!(texts(&config), [format!("{key} (revision 7): {why}; blocks those it applies to")]);
        assert_eq!(config.problems()[0].value, excerpt(value));
        assert_eq!(config.validate(&key, value), Err(why.to_owned()), "nobody writes it");
    }
}

#[test]
fn a_bad_value_for_all_blocks_whoever_does_not_override_it() {
    let config = config(&[("/echo/policy/*/max_spread", "5,0"), ("/echo/policy/M1/max_spread", "5")]);
    assert!(matches!(config.policy(account("M1")), PolicyState::Valid(_)));
    let expected = ["/echo/policy/*/max_spread: \"5,0\" is not a number"];
    assert_eq!(details(config.policy(account("M2"))), expected);
    assert_eq!(details(config.policy(account("S1"))), expected);
    let typo = self::config(&[("/echo/policy/*/max_spred", "5")]);
    assert_eq!(details(typo.policy(account("M1"))).len(), 1, "a typo is nothing that one can override");
}

#[test]
fn a_policy_may_be_incomplete_or_absent() {
    let mut config = config(&[]);
    config.apply(&delete("/echo/policy/*/risk_per_trade"));
    let missing = "/echo/policy/M1/risk_per_trade: missing, and so is risk_fixed";
    assert_eq!(details(config.policy(account("M1"))), [missing]);
    assert_eq!(config.apply(&delete("/echo/policy/*/max_spread")), Touched::Policy(Pattern::Any));
    assert_eq!(config.policy(account("M1")), PolicyState::Absent, "the policy is deleted");
    config.apply(&put("/echo/policy/M1/risk_fixed", "10"));
    assert_eq!(details(config.policy(account("M1"))), ["/echo/policy/M1/max_spread: missing"]);
    config.apply(&put("/echo/policy/M1/max_spread", "x"));
    assert_eq!(details(config.policy(account("M1"))), ["/echo/policy/M1/max_spread: \"x\" is not a number"]);
}

#[test]
fn accounts_have_a_role_and_a_master_stays_one() {
    let config = config(&[("/echo/core/slave_accounts", r#"["S1", "M1", "no name"]"#)]);
    let roles: Vec<_> = config.accounts().iter().map(|(a, r)| (a.as_str(), *r)).collect();
    assert_eq!(roles, [("M1", Role::Master), ("M2", Role::Master), ("S1", Role::Slave)]);
    assert_eq!(
        texts(&config),
        [
            "/echo/core/slave_accounts (revision 7): M1 is a master account too, and counts as one; ignored",
            "/echo/core/slave_accounts (revision 7): account \"no name\" must be 1 to 64 of letters, digits, \
             . _ - @ :; ignored",
        ]
    );
}

#[test]
fn an_unreadable_list_blocks_the_accounts_that_it_last_named() {
    let config = config(&[("/echo/core/master_accounts", "[\"M1\"")]);
    assert_eq!(config.accounts().len(), 3);
    let why = "\"[\"M1\"\" is no JSON array: EOF while parsing a list at line 1 column 5";
    assert_eq!(details(config.policy(account("M2"))), [format!("/echo/core/master_accounts: {why}")]);
    assert!(matches!(config.policy(account("S1")), PolicyState::Valid(_)));
}

#[test]
fn a_policy_for_an_unknown_account_is_kept_and_listed() {
    let mut config = config(&[("/echo/policy/M9/max_spread", "5"), ("/echo/policy/M9/enabled", "no")]);
    assert_eq!(
        texts(&config),
        [
            "/echo/policy/M9/enabled (revision 7): \"no\" is neither true nor false; ignored",
            "/echo/policy/M9/max_spread (revision 7): M9 is neither a master nor a slave account; ignored",
        ]
    );
    config.apply(&put("/echo/core/slave_accounts", "M9"));
    assert_eq!(details(config.policy(account("M9"))).len(), 1, "it takes effect once the account is known");
}

#[test]
fn the_whole_prefix_gone_leaves_everybody_without_a_policy() {
    let mut config = config(&[]);
    let keys = [
        "/echo/core/slave_accounts",
        "/echo/core/master_accounts",
        "/echo/policy/*/max_spread",
        "/echo/policy/*/risk_per_trade",
    ];
    for key in keys {
        config.apply(&delete(key));
    }
    assert_eq!(config.accounts().len(), 3);
    assert!(config.accounts().keys().all(|a| config.policy(*a) == PolicyState::Absent));
    let lists_gone = self::config(&[]);
    let mut lists_gone = lists_gone;
    lists_gone.apply(&delete("/echo/core/master_accounts"));
    assert_eq!(lists_gone.accounts().len(), 1, "one list gone: its accounts go");
    lists_gone.apply(&delete("/echo/core/slave_accounts"));
    assert_eq!(lists_gone.accounts().len(), 3, "both gone: the last known stand …");
    assert_eq!(lists_gone.policy(account("M1")), PolicyState::Absent, "… without a policy, though one is written");
}

#[test]
fn any_value_but_true_is_the_kill_switch() {
    let mut config = LiveConfig::default();
    assert!(config.trading_enabled(), "absent is true");
    for (value, enabled, touched) in [
        ("true", true, Touched::Nothing),
        ("false", false, Touched::Everything),
        ("True", false, Touched::Nothing),
        ("true ", false, Touched::Nothing),
        ("", false, Touched::Nothing),
        ("true", true, Touched::Everything),
    ] {
        assert_eq!(config.apply(&put("/echo/core/trading_enabled", value)), touched, "{value:?}");
        assert_eq!(config.trading_enabled(), enabled, "{value:?}");
    }
    config.apply(&put("/echo/core/trading_enabled", "yes"));
    assert_eq!(
        texts(&config),
        [
            "/echo/core/trading_enabled (revision 7): \"yes\" is not true: the kill switch is on; blocks those it applies to"
        ]
    );
    assert_eq!(config.apply(&ConfigUpdate::Stale(true)), Touched::Everything);
    assert_eq!((config.apply(&ConfigUpdate::Stale(true)), config.stale()), (Touched::Nothing, true));
}

const START: (&str, &str) = ("/echo/windows/M1/EURUSD/start_utc", "2013-10-07T13:30:00Z");
const END: (&str, &str) = ("/echo/windows/M1/EURUSD/end_utc", "2013-10-07T15:00:00+01:00");
/// 2013-10-07T13:30:00Z.
const T0: i64 = 1_381_152_600 * SECOND;

fn pair(config: &LiveConfig) -> WindowSet {
    config.windows(account("M1"), symbol("EURUSD"))
}

#[test]
fn windows_of_all_patterns_and_ids_are_united() {
    let config = config(&[
        START,
        END,
        ("/echo/windows/M1/EURUSD/pre_buffer_sec", "60"),
        ("/echo/windows/M1/eurusd/news/start_utc", "2013-10-08T00:00:00Z"),
        ("/echo/windows/M1/eurusd/news/end_utc", "2013-10-08T01:00:00Z"),
        ("/echo/windows/*/EURUSD/start_utc", "2013-10-09T00:00:00Z"),
        ("/echo/windows/*/EURUSD/end_utc", "2013-10-09T01:00:00Z"),
        ("/echo/windows/*/*/x/active", "true"),
        ("/echo/windows/M2/*/y/active", "true"),
    ]);
    let set = pair(&config);
    assert_eq!(set.windows.len(), 3);
    let first = Window { start: T0, end: T0 + 1800 * SECOND, pre_buffer_sec: 60, post_buffer_sec: 0 };
    assert_eq!(set.windows[0], first);
    assert!(set.active && set.half.is_empty() && set.invalid.is_empty());
    assert_eq!(config.windows(account("S1"), symbol("IBM")), WindowSet { active: true, ..WindowSet::default() });
    assert_eq!(config.window_patterns().len(), 4);
}

#[test]
fn half_a_window_blocks_and_a_bad_one_blocks_its_pair() {
    let half = |text: &str| (vec![text.to_owned()], vec![]);
    let invalid = |text: String| (vec![], vec![text]);
    let time = "is not an RFC 3339 time with a zone, such as 2013-10-07T13:30:00Z";
    let pre = "/echo/windows/M1/EURUSD/pre_buffer_sec";
    let active = "/echo/windows/M1/EURUSD/active";
    let long = "x".repeat(MAX_VALUE_BYTES + 1);
    type Case<'a> = (&'a [(&'a str, &'a str)], (Vec<String>, Vec<String>));
    let cases: &[Case<'_>] = &[
        (&[START], half("/echo/windows/M1/EURUSD/start_utc: a start without an end")),
        (&[END], half("/echo/windows/M1/EURUSD/end_utc: an end without a start")),
        (
            &[START, (END.0, START.1)],
            invalid(format!("{}: \"{}\" is not before the end \"{}\"", START.0, START.1, START.1)),
        ),
        (
            &[(START.0, "2013-10-07T16:00:00Z"), END],
            invalid(format!("{}: \"2013-10-07T16:00:00Z\" is not before the end \"{}\"", START.0, END.1)),
        ),
        (&[(START.0, "2013-10-07T13:30:00"), END], invalid(format!("{}: \"2013-10-07T13:30:00\" {time}", START.0))),
        (&[START, END, (pre, "-1")], invalid(format!("{pre}: \"-1\" is negative"))),
        (&[START, END, (pre, "1,5")], invalid(format!("{pre}: \"1,5\" is not a number"))),
        (&[(active, "false")], invalid(format!("{active}: \"false\" is not true"))),
        (&[(START.0, &long), END], invalid(format!("{}: 1000001 bytes are more than 1000000", START.0))),
        (
            &[START, END, ("/echo/windows/M1/EURUSD/pre_bufer_sec", "60")],
            invalid(
                "/echo/windows/M1/EURUSD/pre_bufer_sec: unknown key of a window; known: start_utc, end_utc, \
                 pre_buffer_sec, post_buffer_sec, active"
                    .to_owned(),
            ),
        ),
        (
            &[START, END, ("/echo/windows/M1/eurusd/start_utc", START.1)],
            invalid(
                "/echo/windows/M1/EURUSD/start_utc: written twice, also as /echo/windows/M1/eurusd/start_utc".into(),
            ),
        ),
    ];
    for (keys, (half, invalid)) in cases {
        let config = config(keys);
        let set = pair(&config);
        assert_eq!((&set.half, &set.invalid), (half, invalid), "{keys:?}");
        assert!(set.windows.is_empty() && !set.active, "{keys:?}");
        assert!(config.windows(account("M2"), symbol("EURUSD")).is_empty(), "another account's pair goes on");
        assert!(config.windows(account("M1"), symbol("GBPUSD")).is_empty(), "the account's other pairs go on");
        assert!(matches!(config.policy(account("M1")), PolicyState::Valid(_)));
        let expected: Vec<&String> = half.iter().chain(invalid).collect();
        let problems = config.problems();
        assert_eq!(problems.iter().map(Problem::detail).collect::<Vec<_>>().iter().collect::<Vec<_>>(), expected);
        assert!(problems.iter().all(|p| p.effect == Effect::Blocks && p.revision == 7));
    }
    let orphan = config(&[(pre, "60")]);
    assert!(pair(&orphan).is_empty());
    assert_eq!(texts(&orphan), [format!("{pre} (revision 7): a buffer without a window; ignored")]);
}

#[test]
fn unknown_keys_elsewhere_are_listed_and_ignored() {
    let config = config(&[("/echo/core/masters", "M1"), ("/other", "1"), ("/echo/policy/M%201/enabled", "true")]);
    let problems = config.problems();
    assert_eq!(problems.len(), 3);
    assert!(problems.iter().all(|p| p.effect == Effect::Ignored));
    assert!(problems[0].to_string().starts_with("/echo/core/masters (revision 7): unknown key; known: /echo/core/{"));
}

#[test]
fn a_bad_strategy_is_absent_and_named() {
    let timeframes = [Timeframe::S1, Timeframe::M1];
    let mut config = LiveConfig::default().with_timeframes(&timeframes);
    for (json, why) in [
        (r#"{"kind":"ema_cross","fast":0}"#, "fast: 0 must be 1 to 10000 bars"),
        (r#"{"kind":"ema_cross"}"#, "timeframe: there are no bars of 5m; known: 1s, 1m"),
        ("{", "json: EOF while parsing an object at line 1 column 1"),
    ] {
        assert_eq!(
            config.apply(&put("/marea/strategies/a", json)),
            Touched::Strategy(StrategyId::new("a").unwrap()),
            "{json}"
        );
        assert!(config.strategies().is_empty());
        assert_eq!(texts(&config), [format!("/marea/strategies/a (revision 7): {why}; the strategy does not run")]);
    }
    config.apply(&put("/marea/strategies/a", r#"{"kind":"ema_cross","timeframe":"1m"}"#));
    assert_eq!((config.strategies().len(), texts(&config).len()), (1, 0));
    config.apply(&delete("/marea/strategies/a"));
    assert!(config.strategies().is_empty());
}

#[test]
fn an_instrument_may_change_but_not_what_its_bars_are_made_of() {
    let ibm = symbol("IBM");
    let mut initial = Instruments::default();
    let spec = |json: &str| serde_json::from_str::<InstrumentSpec>(json).unwrap().over(&Instrument::default()).unwrap();
    initial.by_symbol.insert(ibm, spec(r#"{"scale":2}"#));
    let mut config = LiveConfig::new(&initial);
    let key = "/marea/instruments/ibm";
    assert_eq!(config.apply(&put(key, r#"{"scale":2,"tick_value":"5"}"#)), Touched::Instruments(Pattern::One(ibm)));
    assert_eq!(config.instruments().get(ibm).tick_value, Amount::whole(5));
    let later = "changes only at a rebuild, not while running";
    for (json, why) in [
        (r#"{"scale":3,"tick_value":"6"}"#, format!("scale: {later}")),
        (r#"{"scale":2,"price_source":"mid"}"#, format!("price_source: {later}")),
        (r#"{"scale":2,"allow_negative":true}"#, format!("allow_negative: {later}")),
        (r#"{"scale":2,"min_lot":0}"#, "min_lot: must be positive".to_owned()),
        (r#"{"lots":1}"#, config.validate(key, r#"{"lots":1}"#).unwrap_err()),
    ] {
        config.apply(&put(key, json));
        assert_eq!(config.instruments(), &initial, "the one of the start stays, not the last edit: {json}");
        assert_eq!(texts(&config), [format!("{key} (revision 7): {why}; the instrument stays as it was")]);
    }
    config.apply(&put(key, r#"{"scale":2}"#));
    config.apply(&put("/marea/instruments/default", r#"{"tick_value":"3"}"#));
    assert_eq!(config.instruments().get(ibm).tick_value, Amount::whole(3), "what is written rests on the default");
    config.apply(&delete(key));
    config.apply(&delete("/marea/instruments/default"));
    assert_eq!(config.instruments(), &initial);
}

proptest! {
    /// L7: whatever the order of edits, and whatever stood before, the final tree decides.
    #[test]
    fn the_final_tree_decides(edits in prop::collection::vec((0_usize..18, 0_usize..6), 0..60)) {
        const KEYS: [&str; 18] = [
            "/echo/policy/M1/max_spread", "/echo/policy/*/max_spread", "/echo/policy/*/risk_per_trade",
            "/echo/policy/S1/risk_fixed", "/echo/policy/S1/enabled", "/echo/policy/M1/typo",
            "/echo/core/trading_enabled", "/echo/windows/M1/EURUSD/start_utc", "/echo/windows/M1/EURUSD/end_utc",
            "/echo/windows/M1/eurusd/end_utc", "/echo/windows/*/*/a/active", "/echo/windows/*/EURUSD/post_buffer_sec",
            "/marea/instruments/default", "/marea/instruments/EURUSD", "/marea/instruments/eurusd",
            "/marea/strategies/a", "/unknown", "/echo/core/slave_accounts",
        ];
        const VALUES: [Option<&str>; 6] = [
            None, Some("true"), Some("5"), Some("2013-10-07T13:30:00Z"), Some(r#"{"scale":8,"tick_value":"2"}"#),
            Some(r#"{"kind":"ema_cross"}"#),
        ];
        let apply = |config: &mut LiveConfig, (key, value): &(usize, usize)| match VALUES[*value] {
            Some(value) => config.apply(&put(KEYS[*key], value)),
            None => config.apply(&delete(KEYS[*key])),
        };
        let mut edited = config(&[]);
        let mut last = BTreeMap::from([(1, None), (2, None)]);
        for edit in &edits {
            apply(&mut edited, edit);
            last.insert(edit.0, Some(edit.1));
        }
        let mut fresh = config(&[]);
        for (key, value) in last.iter().rev() {
            if let Some(value) = value {
                apply(&mut fresh, &(*key, *value));
            }
        }
        prop_assert_eq!(edited.problems(), fresh.problems());
        prop_assert_eq!(edited.accounts(), fresh.accounts());
        prop_assert_eq!(edited.instruments(), fresh.instruments());
        prop_assert_eq!(edited.strategies(), fresh.strategies());
        prop_assert_eq!(edited.trading_enabled(), fresh.trading_enabled());
        for account in [account("M1"), account("S1")] {
            prop_assert_eq!(edited.policy(account), fresh.policy(account));
            prop_assert_eq!(edited.windows(account, symbol("EURUSD")), fresh.windows(account, symbol("EURUSD")));
        }
    }

    #[test]
    fn no_key_and_no_value_panics(key in "(/(echo|marea|policy|windows|core|strategies|M1|\\*|%[0-9a-f]|.{0,5})){0,6}", value in ".{0,30}") {
        let mut config = config(&[]);
        config.apply(&put(&key, &value));
        let _ = (config.problems(), config.validate(&key, &value), pair(&config), config.policy(account("M1")));
        config.apply(&delete(&key));
        prop_assert_eq!(config.problems(), vec![]);
    }
}

//! Golden vectors: indicators against TA-Lib 0.8.2 (and pandas where TA-Lib has no such indicator), the backtest
//! against vectorbt 1.2, all from `tests/golden/`, which an independent program wrote.
#![allow(clippy::unwrap_used)]

use marea_model::strategy::{EmaSeed, Strategy, parse_strategy};
use marea_model::time::{DAY, SECOND};
use marea_model::{F64, StrategyId};
use marea_operators::backtest::{Backtest, Params, Recorded, metrics, metrics_30d, metrics_all};
use marea_operators::indicators::{Ema, Indicator, IndicatorSpec, Values};
use marea_operators::series::{Series, SeriesBar};
use std::collections::BTreeMap;

/// A file's columns by name; an empty field is none.
fn columns(file: &str) -> BTreeMap<String, Vec<Option<f64>>> {
    let path = format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    let mut reader = csv::Reader::from_path(path).unwrap();
    let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let mut columns: BTreeMap<String, Vec<Option<f64>>> = names.iter().map(|n| (n.clone(), Vec::new())).collect();
    for row in reader.records() {
        for (name, field) in names.iter().zip(&row.unwrap()) {
            columns.get_mut(name).unwrap().push(field.parse().ok());
        }
    }
    columns
}

/// The 2,000 bars, their open times made of the bar's number and second.
fn bars(open_time: impl Fn(usize, i64) -> i64) -> Series {
    let columns = columns("ohlcv_2000.csv");
    let at = |name: &str, i: usize| columns[name][i].unwrap();
    let bar = |i| SeriesBar {
        open_time: open_time(i, at("ts", i) as i64),
        open: at("open", i),
        high: at("high", i),
        low: at("low", i),
        close: at("close", i),
        volume: at("volume", i),
        turnover: at("volume", i) * at("close", i),
    };
    (0..2000).map(bar).collect()
}

/// Within 1e-9, relative; figures that cancel to nearly nothing within 1e-12.
fn close_to(ours: f64, theirs: f64) -> bool {
    (ours - theirs).abs() <= 1e-9 * theirs.abs() + 1e-12
}

#[track_caller]
fn assert_column(name: &str, ours: impl Iterator<Item = Option<f64>>, theirs: &[Option<f64>]) {
    let ours: Vec<Option<f64>> = ours.collect();
    assert_eq!(ours.len(), theirs.len());
    assert!(theirs.iter().flatten().count() > 1900, "{name}: the file has values");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        match (a, b) {
            (None, None) => {}
            (Some(a), Some(b)) if close_to(*a, *b) => {}
            _ => panic!("{name} at bar {i}: ours {a:?}, theirs {b:?}"),
        }
    }
}

fn run(indicator: impl Into<Indicator>, series: &Series) -> Vec<Values> {
    let mut indicator = indicator.into();
    (0..series.len()).map(|i| indicator.step(series, i)).collect()
}

#[test]
fn indicators_are_ta_libs() {
    let series = bars(|_, second| second * SECOND);
    let (talib, pandas) = (columns("talib.csv"), columns("pandas.csv"));
    let cases: [(&str, &BTreeMap<_, _>, &[&str]); 15] = [
        ("sma(20)", &talib, &["sma_20"]),
        ("ema(12)", &talib, &["ema_12"]),
        ("ema(26)", &talib, &["ema_26"]),
        ("rsi(14)", &talib, &["rsi_14"]),
        ("macd(12,26,9)", &talib, &["macd", "macd_signal", "macd_hist"]),
        ("bollinger(20,2)", &talib, &["bb_lower", "bb_mid", "bb_upper"]),
        ("atr(14)", &talib, &["atr_14"]),
        ("stochastic(14,3,3)", &talib, &["stoch_k", "stoch_d"]),
        ("adx(14)", &talib, &["adx_14", "plus_di_14", "minus_di_14", "dx_14"]),
        ("cci(20)", &talib, &["cci_20"]),
        ("williams_r(14)", &talib, &["willr_14"]),
        ("roc(10)", &talib, &["roc_10"]),
        ("obv", &talib, &["obv"]),
        ("donchian(20)", &pandas, &["donchian_lower_20", "donchian_mid_20", "donchian_upper_20"]),
        // The sessions lie a day apart and within a UTC day each.
        ("vwap", &pandas, &["vwap_session"]),
    ];
    for (name, golden, theirs) in cases {
        let spec: IndicatorSpec = name.parse().unwrap();
        let values = run(spec.build(), &series);
        assert_eq!(spec.outputs().len(), theirs.len());
        for (at, column) in theirs.iter().enumerate() {
            assert_column(column, values.iter().map(|v| v[at]), &golden[*column]);
        }
    }
}

#[test]
fn an_ema_from_the_first_close_is_pandas() {
    let series = bars(|_, second| second * SECOND);
    let values = run(Ema::new(12, EmaSeed::First), &series);
    assert_column("ema_12 first", values.iter().map(|v| v[0]), &columns("pandas.csv")["ema_12_ewm_first"]);
}

#[test]
fn rma_is_its_definition() {
    let series = bars(|_, second| second * SECOND);
    let mut expected: Vec<Option<f64>> = vec![None; 13];
    let mut y = series.close[..14].iter().sum::<f64>() / 14.0;
    expected.push(Some(y));
    for close in &series.close[14..] {
        y = (13.0 * y + close) / 14.0;
        expected.push(Some(y));
    }
    let spec: IndicatorSpec = "rma(14)".parse().unwrap();
    assert_column("rma(14)", run(spec.build(), &series).iter().map(|v| v[0]), &expected);
}

/// EMA(12) × EMA(26) from the first close, long or flat, at the next close, all in, 10 bps and 5 bps: as vectorbt ran
/// it.
fn strategy() -> Strategy {
    let json = r#"{"kind":"ema_cross","fast":12,"slow":26,"sides":"long","timeframe":"1d","fill":"next_close",
        "seed":"first","size":"all_in","commission_bps":10.0,"slippage_bps":5.0,"capital":100000.0}"#;
    parse_strategy(StrategyId::new("golden").unwrap(), json).unwrap()
}

#[test]
fn the_backtest_is_vectorbts() {
    // 2,000 days from 2015-01-01.
    const FIRST_DAY: i64 = 16_436;
    let series = bars(|i, _| (FIRST_DAY + i as i64) * DAY);
    let params = Params::new(&strategy());
    let (mut backtest, mut events) = (Backtest::new(&params), Recorded::default());

    let golden = columns("bt_equity.csv");
    for (i, theirs) in golden["equity"].iter().flatten().enumerate() {
        backtest.step(&params, &series, i, &mut events);
        assert!(close_to(backtest.equity(), *theirs), "equity at bar {i}: ours {}, theirs {theirs}", backtest.equity());
    }
    assert_eq!(backtest.day().day as i64, FIRST_DAY + 1999, "all bars were taken");

    let golden = columns("bt_trades.csv");
    assert_eq!((events.trades.len(), golden["pnl"].len()), (35, 35));
    for (i, trade) in events.trades.iter().enumerate() {
        let at = |name: &str| golden[name][i].unwrap();
        assert_eq!(trade.side, 1);
        // At the close of bar k: its close time is the open time of bar k + 1.
        assert_eq!(trade.entry_time / DAY - FIRST_DAY, at("entry_bar") as i64 + 1, "entry of trade {i}");
        assert_eq!(trade.exit_time / DAY - FIRST_DAY, at("exit_bar") as i64 + 1, "exit of trade {i}");
        for (ours, name) in [
            (trade.quantity, "units"),
            (trade.entry_price, "entry_price"),
            (trade.exit_price, "exit_price"),
            (trade.pnl, "pnl"),
        ] {
            assert!(close_to(ours.0, at(name)), "{name} of trade {i}: ours {ours}, theirs {}", at(name));
        }
        assert!(close_to(trade.fees.0, at("entry_fee") + at("exit_fee")), "fees of trade {i}");
        let ours = trade.pnl.0 / (trade.quantity.0 * trade.entry_price.0);
        assert!(close_to(ours, at("return")), "return of trade {i}");
    }

    let path = format!("{}/tests/golden/bt_metrics_vectorbt.json", env!("CARGO_MANIFEST_DIR"));
    let golden: serde_json::Value = serde_json::from_reader(std::fs::File::open(path).unwrap()).unwrap();
    let all = metrics_all(&backtest, &params);
    for (name, ours) in [
        ("total_return", all.total_return),
        ("cagr", all.cagr),
        ("sharpe", all.sharpe),
        ("sortino", all.sortino),
        ("max_drawdown", all.max_drawdown),
        ("calmar", all.calmar),
        ("win_rate", all.win_rate),
        ("profit_factor", all.profit_factor),
        ("expectancy", all.expectancy),
    ] {
        let (ours, theirs) = (ours.unwrap().0, golden["vectorbt"][name].as_f64().unwrap());
        assert!(close_to(ours, theirs), "{name}: ours {ours}, theirs {theirs}");
    }
    assert_eq!((all.bars, all.trades, all.mean_r), (2000, 35, None));

    // Every day but the last is complete, and thirty of them in a row are the trailing window.
    assert_eq!(events.days.len(), 1999);
    let trailing = metrics_30d(&events.days, backtest.day(), &params);
    let mut window = events.days[1970];
    events.days[1971..].iter().chain([backtest.day()]).for_each(|day| window.merge(day));
    assert_eq!((trailing.bars, trailing), (30, metrics(&window, &params)));
    let equity = columns("bt_equity.csv")["equity"].iter().flatten().copied().collect::<Vec<f64>>();
    assert!(close_to(trailing.total_return.unwrap().0, equity[1999] / equity[1969] - 1.0));
    let hold = F64(series.close[1999] / series.close[1969] - 1.0);
    assert_eq!(trailing.buy_and_hold_return, Some(hold));
}

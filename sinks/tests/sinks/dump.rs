//! The dump: exact text, and nothing that depends on the cuts.

use crate::fixture::*;
use marea_model::output::{Change, MetricsWindow};
use marea_model::recommendation::Action;
use marea_model::time::SECOND;
use marea_model::{BlockReason, Output, Reason, Timeframe};
use marea_sinks::State;
use marea_sinks::dump::{Table, float};

fn text(state: &State, table: Table) -> String {
    String::from_utf8(state.table(table)).unwrap()
}

#[test]
fn every_table_reads_as_promised() {
    let mut state = State::default();
    let mut forming = bar("IBM", Timeframe::M5, OPEN, [1_819_050, 1_830_000, 1_810_001, 1_821_500], 4);
    forming.closed = false;
    state.apply(&[
        up(Output::Bar(forming)),
        up(Output::Bar(bar("IBM", Timeframe::M1, OPEN + 60 * SECOND, [18_200, 18_215, 18_190, 18_210], 2))),
        up(Output::Bar(bar("IBM", Timeframe::M1, OPEN, [18_190, 18_215, 18_190, 18_215], 2))),
        up(indicator("macd(12,26,9).signal", "IBM", OPEN, 1.0 / 3.0)),
        up(Output::Trade(trade("IBM", "ema-fast"))),
        up(Output::Metrics(Box::new(metrics("IBM", "ema-fast", MetricsWindow::Days30, None)))),
        up(recommended(recommendation("IBM", Action::Hold, 18_215, 2))),
        up(judged(verdict("M1", "IBM", vec![BlockReason::NoTradeWindow, BlockReason::SpreadAboveMax]))),
    ]);
    state.add_dead(&[
        dead_letter(7, Reason::Invalid, b"trade,IBM,\"x\""),
        dead_letter(3, Reason::Malformed, &[0xff, 0]),
    ]);
    state.add_dead(&[dead_letter(7, Reason::Invalid, b"again")]);

    assert_eq!(
        text(&state, Table::Bars),
        "symbol,timeframe,open_time,open,high,low,close,volume,turnover,count,closed\n\
         IBM,1m,2013-10-07T13:30:00.000000000Z,181.9,182.15,181.9,182.15,100,18215,7,true\n\
         IBM,1m,2013-10-07T13:31:00.000000000Z,182,182.15,181.9,182.1,100,18210,7,true\n\
         IBM,5m,2013-10-07T13:30:00.000000000Z,181.905,183,181.0001,182.15,100,18215,7,false\n"
    );
    assert_eq!(
        text(&state, Table::Indicators),
        "symbol,timeframe,open_time,name,value\n\
         IBM,1m,2013-10-07T13:30:00.000000000Z,\"macd(12,26,9).signal\",0.3333333333333333\n"
    );
    assert_eq!(
        text(&state, Table::Trades),
        "strategy,symbol,timeframe,side,entry_time,entry_price,exit_time,exit_price,quantity,pnl,fees,exit_reason\n\
         ema-fast,IBM,5m,-1,2013-10-07T13:30:00.000000000Z,181.9,2013-10-07T13:40:00.000000000Z,180.29999999999998,\
         549.7544,879.60704000001,99.9,stop_loss\n"
    );
    let metrics = text(&state, Table::Metrics);
    assert_eq!(metrics.lines().count(), 22);
    assert!(metrics.starts_with("strategy,symbol,timeframe,window,metric,value\nema-fast,IBM,5m,30d,bars,480\n"));
    assert!(metrics.contains("\nema-fast,IBM,5m,30d,sharpe,\n"), "undefined is empty");
    let recommendations = text(&state, Table::Recommendations);
    assert!(recommendations.contains(
        "\nIBM,5m,2013-10-07T13:30:00.000000000Z,2013-10-07T13:35:00.000000000Z,HOLD,0,active,0,0.75,41.5,3,182.15,0.18,,,,,\
         2013-10-07T13:50:00.000000000Z,"
    ));
    assert_eq!(
        text(&state, Table::Verdicts).lines().nth(1).unwrap(),
        "M1,IBM,enter,1,false,NO_TRADE_WINDOW SPREAD_ABOVE_MAX,,,,,,true,2013-10-07T13:35:00.000000000Z,\
         2013-10-07T13:50:00.000000000Z,2013-10-07T13:45:00.000000000Z"
    );
    assert_eq!(
        text(&state, Table::DeadLetters),
        "partition,offset,row,reason,field,value,detail,original\n\
         ticks.csv,3,0,malformed,price,NaN,price NaN is not a number,hex:ff00\n\
         ticks.csv,7,0,invalid,price,NaN,price NaN is not a number,\"trade,IBM,\"\"x\"\"\"\n"
    );

    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("made/for/it");
    state.write_csv(&inside).unwrap();
    let concatenated: Vec<u8> =
        Table::STATE.iter().flat_map(|table| std::fs::read(inside.join(table.file_name())).unwrap()).collect();
    assert_eq!(concatenated, state.to_bytes());
    assert_eq!(std::fs::read(inside.join("dead_letters.csv")).unwrap(), state.table(Table::DeadLetters));
    let error = state.write_csv(&inside.join("bars.csv")).unwrap_err().to_string();
    assert!(error.starts_with("cannot write ") && error.contains("bars.csv"), "{error}");
}

#[test]
fn what_came_and_went_leaves_nothing() {
    let rows = [
        Output::Bar(bar("A", Timeframe::M1, OPEN, [1, 2, 1, 2], 0)),
        recommended(recommendation("A", Action::Buy, 10_000, 2)),
        judged(verdict("M1", "A", vec![])),
    ];
    let mut state = State::default();
    state.apply(&rows.clone().map(Change::Upsert));
    assert_eq!(state.rows().len(), 3);
    state.apply(&rows.map(Change::Delete));
    assert_eq!(state.to_bytes(), State::default().to_bytes());
}

#[test]
fn when_a_verdict_was_computed_is_no_state() {
    let (mut a, mut b) = (State::default(), State::default());
    let mut later = verdict("M1", "A", vec![]);
    a.apply(&[up(judged(later.clone()))]);
    later.as_of += SECOND;
    b.apply(&[up(judged(later))]);
    assert_eq!(a.to_bytes(), b.to_bytes());
}

#[test]
fn floats_read_back_as_the_same_bits() {
    let cases = [
        (0.0, "0"),
        (-0.0, "-0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (100_000.0, "100000"),
        (1e300, "1e300"),
        (-2.5e-12, "-2.5e-12"),
        (5e-324, "5e-324"),
        (f64::INFINITY, "inf"),
    ];
    for (value, expected) in cases {
        assert_eq!(float(value), expected);
        assert_eq!(float(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
    }
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let value = f64::from_bits(bits);
        if value.is_finite() {
            assert_eq!(float(value).parse::<f64>().unwrap().to_bits(), bits, "{value:e}");
        }
    }
}

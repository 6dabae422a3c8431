//! Columns are what each strategy alone is, to the bit, whatever sits beside it and with whatever vectors.

use super::super::tests::{histories, strategies};
use super::*;
use crate::backtest::Recorded;
use crate::series::SeriesBar;
use marea_model::name::StrategyId;
use marea_model::strategy::{KINDS, Strategy, parse_strategy};
use marea_model::time::SECOND;
use proptest::prelude::*;
use proptest::strategy::Strategy as Arbitrary;
use std::collections::BTreeMap;

/// All that this machine has.
fn levels() -> Vec<Level> {
    let best = Level::new();
    let mut levels = vec![best, Level::baseline()];
    #[cfg(target_arch = "x86_64")]
    levels.extend([best.as_sse4_2().map(Level::Sse4_2), best.as_avx2().map(Level::Avx2)].into_iter().flatten());
    levels
}

/// What stands of each slot.
#[derive(Clone, Default, PartialEq, Debug)]
struct Standing(BTreeMap<usize, Recorded>);

impl ColumnEvents for Standing {
    fn trade(&mut self, slot: usize, diff: i64, trade: &ClosedTrade) {
        let trades = &mut self.0.entry(slot).or_default().trades;
        if diff > 0 {
            let at = trades.partition_point(|t| t.entry_time < trade.entry_time);
            trades.insert(at, *trade);
        } else {
            let at = trades.iter().position(|t| t == trade).expect("what is withdrawn stands");
            trades.remove(at);
        }
    }

    fn day(&mut self, slot: usize, day: &DayPartial) {
        let days = &mut self.0.entry(slot).or_default().days;
        let at = days.partition_point(|d| d.day < day.day);
        assert!(days.get(at).is_none_or(|d| d.day != day.day), "a day stands once");
        days.insert(at, *day);
    }

    fn withdraw_days(&mut self, slot: usize, range: Range<i32>) {
        self.0.entry(slot).or_default().days.retain(|d| !range.contains(&d.day));
    }
}

fn alone(params: &Params, series: &Series) -> (Backtest, Recorded) {
    let (mut backtest, mut events) = (Backtest::new(params), Recorded::default());
    for i in 0..series.len() {
        backtest.step(params, series, i, &mut events);
    }
    (backtest, events)
}

#[track_caller]
fn assert_alone(columns: &mut Columns, standing: &Standing, seats: &[(usize, Params)], series: &Series) {
    for (slot, params) in seats {
        let (backtest, events) = alone(params, series);
        assert_eq!(columns.get(*slot), Some(backtest), "{params:?}");
        assert_eq!(standing.0.get(slot).cloned().unwrap_or_default(), events, "{params:?}");
    }
}

/// Any strategy; some with so little money that they lose all of it, or so few bars that they never warm up.
fn any_params() -> impl Arbitrary<Value = Params> {
    let capital = prop::sample::select(vec![500.0, 100_000.0, 60.0, 1e-300, 1e300]);
    (strategies(), capital, prop::sample::select(vec![0_u8, 0, 0, 1, 2])).prop_map(|(strategy, capital, kind)| {
        let mut strategy = Strategy { capital: F64(capital), ..strategy };
        let crossing = |json| parse_strategy(StrategyId::new("s").unwrap(), json).unwrap().kind;
        // More of those that run as columns.
        match kind {
            1 => strategy.kind = crossing(r#"{"kind":"ema_cross","fast":2,"slow":5,"timeframe":"6h"}"#),
            2 => strategy.kind = crossing(r#"{"kind":"macd_cross","fast":2,"slow":3,"signal":2,"timeframe":"6h"}"#),
            _ => {}
        }
        Params::new(&strategy)
    })
}

fn seated(level: Level, all: &[Params]) -> (Columns, Vec<(usize, Params)>) {
    let mut columns = Columns::with_level(level);
    let seats = all.iter().map(|params| (columns.add(params), *params)).collect();
    (columns, seats)
}

/// Bar numbers from shares of a length.
fn cuts(shares: &[f64], bars: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = shares.iter().map(|s| (s * bars as f64) as usize).chain([0, bars]).collect();
    cuts.sort_unstable();
    cuts
}

fn prefix(series: &Series, bars: usize) -> Series {
    let mut prefix = series.clone();
    prefix.truncate(bars);
    prefix
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn columns_are_backtests(
        all in prop::collection::vec(any_params(), 1..24),
        series in histories(1..150),
        shares in prop::collection::vec(0.0..1.0, 0..6),
    ) {
        for level in levels() {
            let (mut columns, seats) = seated(level, &all);
            let mut standing = Standing::default();
            for cut in cuts(&shares, series.len()).windows(2) {
                columns.run(&series, cut[0]..cut[1], &mut standing);
                assert_alone(&mut columns, &standing, &seats, &prefix(&series, cut[1]));
            }
        }
    }

    /// A few bars at a time leave equities to be marked, and nobody looks until the end, or only at one of them.
    #[test]
    fn what_is_owed_is_as_if_it_had_been_marked(
        all in prop::collection::vec(any_params(), 1..24),
        series in histories(1..300),
        strides in prop::collection::vec((1..10_usize, any::<bool>()), 1..10),
        looks in prop::collection::vec(0.0..1.0, 0..6),
    ) {
        for level in levels() {
            let (mut columns, seats) = seated(level, &all);
            let mut standing = Standing::default();
            let looks = cuts(&looks, series.len());
            let (mut at, mut strides) = (0, strides.iter().cycle());
            while let Some((stride, marks)) = strides.next().filter(|_| at < series.len()) {
                let to = series.len().min(at + stride);
                columns.run(&series, at..to, &mut standing);
                if looks.iter().any(|look| (at..to).contains(look)) {
                    let one = at % seats.len();
                    assert_alone(&mut columns, &standing, &seats[one..=one], &prefix(&series, to));
                    if *marks {
                        columns.mark();
                    }
                }
                at = to;
            }
            assert_alone(&mut columns, &standing, &seats, &series);
        }
    }

    /// Strategies come and go between bars; the past is rewritten from a mark; marks are let go.
    #[test]
    fn whatever_came_between_they_are_as_if_from_the_start(
        all in prop::collection::vec(any_params(), 1..20),
        fresh in prop::collection::vec((any_params(), 0.0..1.0), 0..12),
        (one, other) in (histories(60..150), histories(60..150)),
        shares in prop::collection::vec(0.0..1.0, 1..8),
        rewrites in prop::collection::vec((0.0..1.0, 0.0..1.0, any::<bool>()), 1..6),
        thins in any::<bool>(),
    ) {
        let (mut columns, mut seats) = seated(Level::new(), &all);
        let mut standing = Standing::default();
        let (mut series, mut marks) = (one, Vec::new());
        for cut in cuts(&shares, series.len()).windows(2).filter(|cut| cut[0] < cut[1]) {
            columns.run(&series, cut[0]..cut[1], &mut standing);
            marks.push(series.open_time[cut[1] - 1]);
            columns.mark();
        }
        if thins && marks.len() > 2 {
            let keep: Vec<bool> = (0..marks.len()).map(|m| m % 2 == 0).collect();
            columns.retain_marks(&keep);
            let mut flags = keep.iter();
            marks.retain(|_| *flags.next().unwrap());
        }
        for (begin, end, whole) in rewrites {
            // Bars from `first` to `last` are replaced by what the other history has at those times.
            let time = |share: f64| series.open_time[(share * series.len() as f64) as usize];
            let (first, last) = (time(f64::min(begin, end)), time(f64::max(begin, end)));
            let after = marks.partition_point(|m| *m < first).checked_sub(1);
            let from = after.map_or(0, |m| series.open_time.partition_point(|t| *t <= marks[m]));
            let inside = |bar: &SeriesBar| bar.open_time >= first && bar.open_time <= last;
            let bars = |series: &Series| (0..series.len()).map(|i| series.bar(i)).collect::<Vec<_>>();
            let mut rewritten: Vec<SeriesBar> = bars(&series).into_iter().filter(|b| !inside(b)).collect();
            rewritten.extend(bars(&other).into_iter().filter(inside));
            rewritten.sort_by_key(|b| b.open_time);
            let new: Series = rewritten.into_iter().collect();
            if new.is_empty() {
                continue;
            }
            let last_edit = if whole { Nanos::MAX } else { last };
            let back = from.saturating_sub(40);
            let replay =
                Replay { old: &series.tail(back), new: &new.tail(back), from: from - back, after, last_edit };
            columns.replay(&marks, replay, &mut standing);
            assert_alone(&mut columns, &standing, &seats, &new);
            series = new;
        }

        for (params, share) in &fresh {
            let at = (share * seats.len() as f64) as usize;
            if *share > 0.4 && !seats.is_empty() {
                let (slot, _) = seats.swap_remove(at);
                let (mut again, middle) = (columns.afresh(&[slot]), (share * series.len() as f64) as usize);
                again.withdraw(&series, 0..middle, &mut standing);
                again.withdraw(&series, middle..series.len(), &mut standing);
                columns.remove(slot);
                prop_assert_eq!(columns.get(slot), None);
                prop_assert!(standing.0.remove(&slot).is_none_or(|r| r.trades.is_empty()));
            }
            let (mut late, late_seats) = seated(Level::new(), &[*params, all[0]]);
            let mut told = Standing::default();
            let mut at = 0;
            for mark in &marks {
                let cut = series.open_time.partition_point(|time| time <= mark).max(at);
                late.run(&series, at..cut, &mut told);
                late.mark();
                at = cut;
            }
            late.run(&series, at..series.len(), &mut told);
            let mut moved = Vec::new();
            columns.join(late, |from, to| moved.push((from, to)));
            for (from, to) in moved {
                prop_assert!(!seats.iter().any(|(slot, _)| *slot == to));
                standing.0.insert(to, told.0.remove(&from).unwrap_or_default());
                let (_, params) = late_seats.iter().find(|(slot, _)| *slot == from).unwrap();
                seats.push((to, *params));
            }
        }
        assert_alone(&mut columns, &standing, &seats, &series);

        // And once more over all marks, now that others sit there.
        for after in [None, Some(0), marks.len().checked_sub(1)] {
            let from = after.map_or(0, |m| series.open_time.partition_point(|t| *t <= marks[m]));
            let (mut copy, mut again) = (columns.clone(), standing.clone());
            let replay = Replay { old: &series, new: &series, from, after, last_edit: Nanos::MAX };
            copy.replay(&marks, replay, &mut again);
            assert_alone(&mut copy, &again, &seats, &series);
        }
    }
}

/// One bar a minute for days, without memory.
fn walk(bars: usize, seed: u64) -> Series {
    let (mut x, mut price) = (seed, 100.0);
    (0..bars)
        .map(|i| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let open = price;
            price *= 1.0 + ((x >> 33) as f64 / (1_u64 << 31) as f64 - 0.5) * 0.004;
            let (high, low) = (open.max(price) * 1.0005, open.min(price) * 0.9995);
            let open_time = i as i64 * 60 * SECOND;
            SeriesBar { open_time, open, high, low, close: price, volume: 1.0, turnover: price }
        })
        .collect()
}

fn params(json: &str) -> Params {
    Params::new(&parse_strategy(StrategyId::new("s").unwrap(), json).unwrap())
}

#[test]
fn every_kind_over_days_of_minutes() {
    let series = walk(6_000, 7);
    let mut all = Vec::new();
    for (at, kind) in KINDS.iter().enumerate() {
        for (n, more) in
            ["", r#","stop_loss":2.0,"take_profit":3.0"#, r#","size":2.0,"fill":"next_close","seed":"first""#]
                .into_iter()
                .enumerate()
        {
            let costs = format!(r#","slippage_bps":{n},"commission_bps":{at}"#);
            all.push(params(&format!(r#"{{"kind":"{kind}","timeframe":"1m"{more}{costs}}}"#)));
        }
    }
    for fast in 2..30 {
        all.push(params(&format!(r#"{{"kind":"ema_cross","fast":{fast},"slow":{},"timeframe":"1m"}}"#, 3 * fast)));
    }
    for level in levels() {
        let (mut columns, seats) = seated(level, &all);
        let mut standing = Standing::default();
        columns.run(&series, 0..series.len(), &mut standing);
        assert_alone(&mut columns, &standing, &seats, &series);
        let (mut one_by_one, _) = seated(level, &all);
        let mut alike = Standing::default();
        (0..series.len()).for_each(|i| one_by_one.run(&series, i..i + 1, &mut alike));
        assert_alone(&mut one_by_one, &alike, &seats, &series);
        assert!(standing.0.values().map(|r| r.trades.len()).sum::<usize>() > 5_000);
    }
}

#[test]
fn an_edit_that_changes_nothing_stops_at_the_next_mark() {
    let series = walk(1_000, 3);
    let (mut columns, seats) =
        seated(Level::new(), &[params(r#"{"kind":"ema_cross","fast":3,"slow":9,"timeframe":"1m"}"#)]);
    let mut standing = Standing::default();
    let mut marks = Vec::new();
    for i in 0..series.len() {
        columns.run(&series, i..i + 1, &mut standing);
        if (i + 1) % 64 == 0 {
            columns.mark();
            marks.push(series.open_time[i]);
        }
    }
    // A wider high is nothing to an EMA cross without stops; what lies behind the next mark is never looked at.
    let (mut old, mut new) = (series.clone(), series.clone());
    new.high[100] *= 2.0;
    for unread in [&mut old, &mut new] {
        unread.close[200..990].fill(1.0);
    }
    let replay = Replay { old: &old, new: &new, from: 64, after: Some(0), last_edit: series.open_time[100] };
    let before = standing.clone();
    columns.replay(&marks, replay, &mut standing);
    assert_eq!(before, standing);
    assert_alone(&mut columns, &standing, &seats, &series);
}

#[test]
fn checkpoints_are_small() {
    let cross = r#""kind":"ema_cross","fast":3,"slow":9,"timeframe":"1m""#;
    for (json, bytes) in [
        (format!("{{{cross}}}"), 281),
        (format!(r#"{{{cross},"stop_loss":2.0}}"#), 329),
        (r#"{"kind":"macd_cross","fast":3,"slow":9,"signal":4,"timeframe":"1m"}"#.to_owned(), 289),
    ] {
        let (columns, _) = seated(Level::new(), &vec![params(&json); 1_000]);
        assert_eq!(columns.mark_bytes(), bytes * 1_000);
    }
}

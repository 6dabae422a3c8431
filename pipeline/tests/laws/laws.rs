//! The laws of the design, as tests over random histories: the state is compared as bits.
//!
//! `MAREA_LAW_CASES` sets how many histories are drawn in all (about; 1,100 by default).

use crate::harness::{Cuts, Done, How, difference, run, run_files, timeless};
use crate::histories::{History, Plan, Profile, long, plans, world};
use crate::oracle::State;
use marea_model::Output;
use marea_model::output::{Change, ClosedEpoch};
use marea_model::time::{Nanos, SECOND};
use marea_sources::file::Speed;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// `share` of a hundred of all cases.
fn cases(share: u32) -> ProptestConfig {
    let all = std::env::var("MAREA_LAW_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_100);
    ProptestConfig {
        cases: (all * share).div_ceil(100),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 3_000,
        max_shrink_time: 300_000,
        ..ProptestConfig::default()
    }
}

fn same(what: &str, expected: &Done, got: &Done) -> Result<(), TestCaseError> {
    prop_assert_eq!(expected.now, got.now, "{}: both must end at one time", what);
    let difference = difference(&expected.state, &got.state);
    prop_assert!(difference.is_empty(), "{}:\n{}", what, difference);
    Ok(())
}

/// Compares with the oracle after every epoch.
fn against_the_oracle(plan: &Plan, profile: &Profile, how: How) {
    run(&world(), &plan.build(profile), How { checked: true, ..how });
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn after_every_step_the_state_is_the_oracles(plan in plans(170), seed: u64) {
        let profile = Profile { too_late: true, ..Profile::FULL };
        against_the_oracle(&plan, &profile, How { cuts: Cuts::Random(seed), ..How::PLAIN });
    }

    #[test]
    fn after_every_step_two_workers_state_is_the_oracles(plan in plans(150), seed: u64) {
        let profile = Profile { too_late: true, ..Profile::FULL };
        let how = How { workers: 2, cuts: Cuts::Random(seed), grouped: true, ..How::PLAIN };
        against_the_oracle(&plan, &profile, how);
    }
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn after_every_single_item_the_state_is_the_oracles(plan in plans(80)) {
        against_the_oracle(&plan, &Profile::FULL, How { cuts: Cuts::Every(1), ..How::PLAIN });
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn l1_how_records_are_cut_into_epochs_does_not_matter(plan in plans(200), seed: u64) {
        let (world, history) = (world(), plan.build(&Profile::FULL));
        let each = run(&world, &history, How { cuts: Cuts::Every(1), ..How::PLAIN });
        for (cuts, grouped) in
            [(Cuts::One, true), (Cuts::One, false), (Cuts::Every(60), true), (Cuts::Random(seed), false)]
        {
            let other = run(&world, &history, How { cuts, grouped, ..How::PLAIN });
            same(&format!("{cuts:?}"), &each, &other)?;
            prop_assert_eq!(each.totals.records_in, other.totals.records_in);
            prop_assert_eq!(each.totals.accepted, other.totals.accepted);
            prop_assert_eq!(each.progress, other.progress);
        }
    }

    #[test]
    fn l2_the_order_of_arrival_and_repeats_do_not_matter(plan in plans(200), seed: u64) {
        let (world, history) = (world(), plan.build(&Profile::FULL));
        let first = run(&world, &history, How::PLAIN);
        let reordered = history.reordered(seed);
        same("reordered", &first, &run(&world, &reordered, How { cuts: Cuts::Random(seed), backwards: true, ..How::PLAIN }))?;
        let repeated = reordered.repeated(seed ^ 1);
        same("reordered and repeated", &first, &run(&world, &repeated, How::PLAIN))?;
    }

    #[test]
    fn l3_what_was_corrected_is_as_if_it_had_been_right(plan in plans(220), seed: u64) {
        let (world, history) = (world(), plan.build(&Profile::FULL));
        let wrong_at_first = run(&world, &history, How { cuts: Cuts::Random(seed), ..How::PLAIN });
        let right = run(&world, &history.righted(), How::PLAIN);
        same("right from the start", &right, &wrong_at_first)?;
    }

    #[test]
    fn l7_the_final_configuration_decides(plan in plans(220), seed: u64) {
        let (world, history) = (world(), plan.build(&Profile::FULL));
        let edited = run(&world, &history, How { cuts: Cuts::Random(seed), ..How::PLAIN });
        let settled = run(&world, &history.settled(), How::PLAIN);
        same("the final configuration from the start", &settled, &edited)?;
    }

    #[test]
    fn l8_nothing_looks_ahead(plan in plans(220), pick: prop::sample::Index, onto_minute: bool) {
        let profile = Profile { amended: false, edits: false, nonsense: false, ..Profile::FULL };
        let (world, history) = (world(), plan.build(&profile));
        let times: Vec<Nanos> = history.ticks().map(|t| t.event_time).collect();
        let t = *pick.get(&times);
        let t = if onto_minute { marea_model::Timeframe::M1.open_time(t) } else { t };
        let all = run(&world, &history, How::PLAIN);
        let some = run(&world, &history.before(t), How::PLAIN);
        let difference = difference(&by(t, &all.state), &by(t, &some.state));
        prop_assert!(difference.is_empty(), "without what is at or after {t}:\n{difference}");
    }
}

/// The bars, indicators and closed trades whose last bar closes at or before `t`.
fn by(t: Nanos, state: &State) -> State {
    let before = |row: &Output| match row {
        Output::Bar(bar) => bar.close_time() <= t,
        Output::Indicator(i) => i.open_time + i.timeframe.nanos() <= t,
        // An exit is told by its bar's open or close time: the later one is safe.
        Output::Trade(trade) => trade.exit_time + trade.timeframe.nanos() <= t,
        _ => false,
    };
    state.iter().filter(|(_, row)| before(row)).map(|(k, r)| (k.clone(), r.clone())).collect()
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn l4_the_number_of_workers_does_not_matter(plan in plans(200), seed: u64) {
        let (world, history): (_, History) = (world(), plan.build(&Profile::FULL));
        let how = How { cuts: Cuts::Random(seed), ..How::PLAIN };
        let one = run(&world, &history, how);
        for workers in [2, 4] {
            let more = run(&world, &history, How { workers, ..how });
            same(&format!("{workers} workers"), &one, &more)?;
            // More than the law asks: epoch by epoch the workers' changes are one worker's.
            for (a, b) in one.epochs.iter().zip(&more.epochs) {
                prop_assert_eq!(a.epoch, b.epoch);
                prop_assert_eq!(&a.changes, &b.changes, "{} workers, epoch {}", workers, a.epoch);
                prop_assert_eq!(&a.dead, &b.dead);
                prop_assert_eq!(a.totals, b.totals);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn l5_when_and_how_often_it_is_killed_does_not_matter(
        plan in plans(220),
        seed: u64,
        workers in 1..=2_usize,
        noise: bool,
        files: bool,
        grouped: bool,
    ) {
        let profile = Profile { too_late: true, ..Profile::FULL };
        let (world, history) = (world(), plan.build(&profile));
        let noise = noise.then_some(seed);
        let how = How { workers, cuts: Cuts::Random(seed), checked: true, noise, files, grouped, ..How::PLAIN };
        let undisturbed = run(&world, &history, How { checked: false, ..how });
        let killed = run(&world, &history, How { killed: Some(seed), ..how });
        same("killed now and then", &undisturbed, &killed)?;
        prop_assert_eq!(undisturbed.totals, killed.totals);
        prop_assert_eq!(undisturbed.progress, killed.progress);
        // More than the law asks: epoch by epoch nothing is different.
        for (a, b) in undisturbed.epochs.iter().zip(&killed.epochs) {
            prop_assert_eq!((a.epoch, &a.dead), (b.epoch, &b.dead));
            // A row that is withdrawn carries the moment at which it was computed, by the process that withdraws it.
            let changes = |epoch: &ClosedEpoch| epoch.changes.iter().cloned().map(timeless_change).collect::<Vec<_>>();
            prop_assert_eq!(changes(a), changes(b), "epoch {}", a.epoch);
            prop_assert_eq!(a.totals, b.totals);
        }
    }
}

proptest! {
    #![proptest_config(cases(6))]

    /// What a restart would read again is lost, and that is accepted: what stands goes on as it stands, and what comes for
    /// it is late.
    #[test]
    fn l5_what_is_lost_makes_nothing_wrong(plan in plans(200), seed: u64, workers in 1..=2_usize) {
        // Edits that wait for a target or a seal are lost with the rest.
        let profile = Profile { too_late: true, amended: false, ..Profile::FULL };
        let (world, history) = (world(), plan.build(&profile));
        let how = How { workers, cuts: Cuts::Random(seed), checked: true, lossy: true, ..How::PLAIN };
        run(&world, &history, How { killed: Some(seed), ..how });
    }
}

fn timeless_change(change: Change) -> Change {
    match change {
        Change::Upsert(row) => Change::Upsert(timeless(row)),
        Change::Delete(row) => Change::Delete(timeless(row)),
    }
}

proptest! {
    #![proptest_config(cases(4))]

    #[test]
    fn epochs_in_flight_and_metrics_at_the_end_alone_give_the_same_state(plan in plans(200)) {
        let (world, history) = (world(), plan.build(&Profile::FULL));
        let one_by_one = run(&world, &history, How { cuts: Cuts::Every(1), ..How::PLAIN });
        for workers in [1, 2] {
            let how = How { cuts: Cuts::Every(1), workers, ahead: true, ..How::PLAIN };
            same(&format!("ahead, {workers} workers"), &one_by_one, &run(&world, &history, how))?;
        }
    }

    #[test]
    fn l6_full_speed_and_paced_are_the_same(plan in plans(160)) {
        let profile = Profile { edits: false, ..Profile::FULL };
        let (world, history) = (world(), plan.build(&profile));
        let handed = run(&world, &history, How::PLAIN);
        let full = run_files(&world, &history, 1, Speed::Full);
        same("a file at full speed", &handed, &full)?;
        let times: Vec<Nanos> = history.ticks().map(|t| t.event_time).collect();
        let span = times.iter().max().unwrap() - times.iter().min().unwrap();
        // All of it within a quarter of a second.
        let paced = run_files(&world, &history, 2, Speed::Times((span as f64 / SECOND as f64 * 4.0).max(1.0)));
        same("a paced file", &full, &paced)?;
        prop_assert_eq!(full.totals, paced.totals);
    }
}

#[test]
fn edits_far_back_in_a_long_history_leave_the_oracles_state() {
    let world = world();
    for seed in 0..u64::from(cases(1).cases).div_ceil(4) {
        let history = long(seed, 10_000);
        let workers = 1 + seed as usize % 2;
        run(&world, &history, How { workers, cuts: Cuts::Every(500), grouped: true, checked: true, ..How::PLAIN });
    }
}

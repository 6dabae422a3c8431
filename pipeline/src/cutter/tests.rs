//! Tables and laws of the cutter.

use super::*;
use marea_model::cursor::excerpt;
use marea_model::tick::Amend;
use marea_model::{AccountId, Amount, Event, Price, Size, Symbol, Tick};
use proptest::prelude::*;
use std::collections::BTreeSet;

const MINUTE: Nanos = 60 * SECOND;

fn partition(name: &str) -> Partition {
    Partition::new(name).unwrap()
}

fn cutter(clock: Clock, lateness: Nanos, max_ticks: usize) -> Cutter {
    let timeframes = vec![Timeframe::S1, Timeframe::M1, Timeframe::M5, Timeframe::H1];
    let (instruments, metrics_every) = (Arc::default(), 0);
    Cutter::new(CutterConfig { clock, lateness, max_ticks, timeframes, instruments, metrics_every })
}

fn trade() -> Event {
    Event::Trade { price: Price(100), size: Size(1) }
}

fn record(name: &str, offset: u64, event_time: Nanos, event: Event) -> Record {
    let tick = Tick { symbol: Symbol::new("A").unwrap(), event_time, seq: offset, event };
    Record { cursor: Cursor { partition: partition(name), offset, row: 0 }, tick }
}

fn batch(name: &str, at_end: bool, records: Vec<Record>) -> Input {
    let upper = records.last().map_or(0, |r| r.cursor.offset + 1);
    Input::Batch(Batch { records: records.into_iter().collect(), upper, at_end, ..Batch::new(partition(name), 0) })
}

/// Trades at these times, offsets from `from`.
fn trades(name: &str, from: u64, at_end: bool, times: &[Nanos]) -> Input {
    batch(name, at_end, times.iter().zip(from..).map(|(t, offset)| record(name, offset, *t, trade())).collect())
}

fn start(name: &str) -> Input {
    Input::Start { partition: partition(name), carries: Carries::Ticks }
}

fn offsets(cut: &Cut) -> Vec<u64> {
    cut.records().map(|r| r.cursor.offset).collect()
}

#[test]
fn a_record_is_judged_by_what_came_before_it() {
    let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
    cutter.push(start("p"), 0);
    // 20:00 seals up to 10:00, but only for what comes after it.
    cutter.push(trades("p", 0, false, &[5 * MINUTE, 20 * MINUTE, 10 * MINUTE, 10 * MINUTE - 1]), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!(offsets(&cut), [0, 1, 2]);
    assert_eq!(cut.dead.len(), 1);
    let dead = &cut.dead[0];
    assert_eq!((dead.cursor.offset, dead.reason, dead.field.as_str()), (3, Reason::Late, "event_time"));
    assert_eq!(dead.value, "1970-01-01T00:09:59.999999999Z");
    assert_eq!(dead.detail, "everything before 1970-01-01T00:10:00.000000000Z is sealed; only an amend changes it");
    assert_eq!(excerpt(&dead.value), dead.value, "64 bytes at most");
    assert!(String::from_utf8(dead.original.clone()).unwrap().contains("\"trade\""));
    assert_eq!(cut.progress.sealed_through, 10 * MINUTE);
    assert_eq!((cut.counts.records_in, cut.counts.dead, cut.counts.accepted), (4, 1, 0));
    assert_eq!(cut.cursors, [(partition("p"), 4)]);
}

#[test]
fn busts_corrections_and_amends_move_nothing() {
    let correction = || Event::Correction { rev: 1, price: Price(1), size: Size(1) };
    let amend = || Event::Amend(Box::new(Amend { rev: 1, bar: None }));
    let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
    cutter.push(start("p"), 0);
    cutter.push(trades("p", 0, false, &[20 * MINUTE]), 0);
    let records = vec![
        record("p", 1, 90 * MINUTE, Event::Bust),
        record("p", 2, 90 * MINUTE, correction()),
        record("p", 3, 90 * MINUTE, amend()),
        record("p", 4, 10 * MINUTE - 1, Event::Bust),
        record("p", 5, 10 * MINUTE - 1, correction()),
        record("p", 6, 10 * MINUTE - 1, amend()),
        record("p", 7, 10 * MINUTE, Event::Bust),
    ];
    cutter.push(batch("p", false, records), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!(offsets(&cut), [0, 1, 2, 3, 6, 7], "a bust and a correction of sealed targets are late, an amend never");
    assert_eq!(cut.progress, Progress { sealed_through: 10 * MINUTE, closed_through: 20 * MINUTE });
    assert_eq!(now_ns(cut.epoch), 20 * MINUTE);
}

#[test]
fn the_slowest_partition_holds_the_watermark_until_it_is_idle_or_finished() {
    let mut cutter = cutter(Clock::Event, 0, 100);
    cutter.push(start("a"), 0);
    cutter.push(start("b"), 0);
    cutter.push(trades("a", 0, false, &[50 * MINUTE]), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!(cut.progress, Progress::START, "b was announced and has sent nothing");

    cutter.push(trades("b", 0, true, &[30 * MINUTE]), 5 * SECOND);
    let cut = cutter.cut(5_000).unwrap();
    assert_eq!(cut.progress.sealed_through, 30 * MINUTE);
    assert_eq!(cut.progress.closed_through, 50 * MINUTE, "b is at its end");

    assert!(cutter.cut(64_999).is_none(), "at its end for less than 60 s");
    let cut = cutter.cut(65_000).unwrap();
    assert_eq!(cut.progress.sealed_through, 50 * MINUTE, "b is idle");

    cutter.push(trades("b", 1, true, &[40 * MINUTE, 51 * MINUTE]), 66 * SECOND);
    let cut = cutter.cut(66_000).unwrap();
    assert_eq!(cut.dead.len(), 1, "what was sealed stays sealed");
    assert_eq!(offsets(&cut), [2]);

    cutter.push(Input::Finished { partition: partition("a") }, 66 * SECOND);
    let cut = cutter.cut(66_000).unwrap();
    assert_eq!(cut.progress.sealed_through, 51 * MINUTE, "a is finished, b alone counts");
}

#[test]
fn a_silent_partition_at_its_end_holds_nothing_back() {
    let mut cutter = cutter(Clock::Event, 0, 100);
    cutter.push(start("a"), 0);
    cutter.push(start("b"), 0);
    cutter.push(trades("b", 0, true, &[]), 0);
    cutter.push(trades("a", 0, false, &[MINUTE]), 0);
    assert_eq!(cutter.cut(0).unwrap().progress, Progress { sealed_through: MINUTE, closed_through: MINUTE });
}

#[test]
fn the_event_clock_follows_trades_quotes_and_accounts() {
    let snapshot = AccountSnapshot {
        account: AccountId::new("M1").unwrap(),
        event_time: 90 * SECOND,
        seq: 1,
        equity: Amount::whole(1),
        balance: Amount::whole(1),
        currency: *b"USD",
        positions: Vec::new(),
    };
    let mut cutter = cutter(Clock::Event, 0, 100);
    cutter.push(start("p"), 0);
    cutter.push(trades("p", 0, false, &[60 * SECOND + MILLI - 1]), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!(now_ms(cut.epoch), 60_000, "whole milliseconds");
    let Input::Batch(mut accounts) = trades("accounts", 0, true, &[]) else { panic!() };
    accounts.accounts.push((Cursor { partition: partition("accounts"), offset: 0, row: 0 }, snapshot));
    cutter.push(Input::Batch(accounts), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!(now_ms(cut.epoch), 90_000);
    assert_eq!((cut.counts.records_in, cut.counts.accepted), (1, 1));
    assert_eq!(cut.progress.closed_through, 60 * SECOND + MILLI - 1, "p is not at its end");
}

#[test]
fn the_event_clock_advances_when_a_millisecond_is_full() {
    let mut cutter = cutter(Clock::Event, 0, 1);
    cutter.push(trades("p", 0, false, &[MILLI; 5000]), 0);
    let epochs: Vec<Epoch> = std::iter::from_fn(|| cutter.cut(0)).map(|c| c.epoch).collect();
    assert_eq!(epochs, (4096..4096 + 5000).collect::<Vec<_>>());
}

#[test]
fn the_wall_clock_waits_when_a_millisecond_is_full_and_never_goes_back() {
    let mut cutter = cutter(Clock::Wall, 0, 1);
    cutter.push(trades("p", 0, false, &[MILLI; 5000]), 0);
    let first: Vec<Epoch> = std::iter::from_fn(|| cutter.cut(7)).map(|c| c.epoch).collect();
    assert_eq!(first, (7 * 4096..8 * 4096).collect::<Vec<_>>());
    assert_eq!(cutter.cut(8).unwrap().epoch, 8 * 4096);
    assert_eq!(cutter.cut(3).unwrap().epoch, 8 * 4096 + 1, "a clock set back stands still");
    assert!(cutter.cut(9).is_some());
}

#[test]
fn metrics_are_asked_for_once_in_a_while_at_edits_and_at_the_end() {
    let mut cutter = cutter(Clock::Event, 0, 10);
    cutter.config.metrics_every = SECOND;
    let mut wants = |input: Option<Input>, wall_ms: i64| {
        input.into_iter().for_each(|input| cutter.push(input, wall_ms * MILLI));
        cutter.cut(wall_ms).map(|cut| cut.metrics)
    };
    assert_eq!(wants(Some(trades("p", 0, false, &[1])), 10_000), Some(true), "the first");
    assert_eq!(wants(Some(trades("p", 1, false, &[2])), 10_999), Some(false));
    assert_eq!(wants(None, 10_999), None);
    assert_eq!(wants(None, 11_000), Some(true), "owed, though nothing else has happened");
    assert_eq!(wants(None, 11_400), None, "nothing is owed");
    assert_eq!(wants(Some(Input::Config(vec![ConfigUpdate::Stale(false)])), 11_500), Some(true), "an edit");
    assert_eq!(wants(Some(trades("p", 2, false, &[3])), 11_600), Some(false));
    assert_eq!(wants(Some(trades("p", 3, false, &[4])), 12_000), Some(true), "an edit puts nothing off");
    assert_eq!(wants(Some(trades("p", 4, false, &[5])), 1_000), Some(true), "a clock set back holds nothing back");
    assert_eq!(wants(Some(trades("p", 5, false, &[6])), 1_001), Some(false));
    assert!(cutter.settle().is_some_and(|cut| cut.metrics) && cutter.settle().is_none());
    assert!(cutter.finish(None).metrics);
}

#[test]
fn the_wall_clock_cuts_empty_epochs_as_time_passes() {
    let mut cutter = cutter(Clock::Wall, 0, 10);
    assert_eq!(cutter.cut(5).unwrap().epoch, 5 * 4096);
    assert!(cutter.cut(5).is_none());
    let cut = cutter.cut(6).unwrap();
    assert_eq!((cut.epoch, cut.progress), (6 * 4096, Progress::START), "nothing is closed before a partition is known");
    cutter.push(trades("p", 0, true, &[]), 0);
    assert_eq!(cutter.cut(7).unwrap().progress.closed_through, 7 * MILLI);
}

#[test]
fn an_epoch_ends_between_messages() {
    let mut cutter = cutter(Clock::Event, 0, 2);
    let mut records: Vec<Record> = (0..6).map(|i| record("p", i / 4, MINUTE, trade())).collect();
    for (row, record) in records.iter_mut().enumerate() {
        record.cursor.row = row as u32 % 4;
    }
    let Input::Batch(mut input) = batch("p", true, records) else { panic!() };
    input.rejects.push(DeadLetter {
        cursor: Cursor { partition: partition("p"), offset: 1, row: 3 },
        reason: Reason::Malformed,
        field: String::new(),
        value: String::new(),
        detail: String::new(),
        original: Vec::new(),
    });
    input.upper = 9;
    cutter.push(Input::Batch(input), 0);
    assert!(cutter.ready());
    let cut = cutter.cut(0).unwrap();
    assert_eq!(offsets(&cut), [0, 0, 0, 0], "the four rows of a message stay together");
    assert_eq!((cut.cursors.as_slice(), cut.dead.len()), (&[(partition("p"), 1)][..], 0));
    assert_eq!(cut.progress.closed_through, MINUTE, "not at its end before the batch is");
    let cut = cutter.cut(0).unwrap();
    assert_eq!((offsets(&cut).as_slice(), cut.dead.len()), (&[1, 1][..], 1));
    assert_eq!(cut.cursors, [(partition("p"), 9)]);
    assert!(cutter.is_drained() && !cutter.ready());
}

#[test]
fn the_end_is_the_greatest_close_over_all_timeframes_or_as_told() {
    let greatest = 90 * MINUTE + 1;
    for (until, expected) in
        [(None, 120 * MINUTE), (Some(121 * MINUTE + 1), 121 * MINUTE + MILLI), (Some(0), 90 * MINUTE + MILLI)]
    {
        let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
        cutter.push(start("p"), 0);
        cutter.push(trades("p", 0, true, &[greatest]), 0);
        cutter.push(Input::Finished { partition: partition("p") }, 0);
        let before = cutter.cut(0).unwrap();
        let cut = cutter.finish(until);
        assert_eq!(now_ns(cut.epoch), expected);
        assert!(cut.epoch > before.epoch);
        assert_eq!(cut.progress.closed_through, expected);
        assert_eq!(cut.progress.sealed_through, before.progress.sealed_through, "lateness never uses now");
    }
    let cut = cutter(Clock::Event, 0, 1).finish(None);
    assert_eq!((cut.epoch, cut.records().count()), (1, 0), "an empty input ends at once");
}

/// (partition, event time in ms, kind, at end, cut here, wall step in ms)
type Step = (usize, i64, u8, bool, bool, i64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0_usize..3, 0_i64..2_000_000, 0_u8..6, any::<bool>(), any::<bool>(), 0_i64..40_000);
    prop::collection::vec(step, 1..120)
}

/// Drives a cutter, and checks what must always hold. Returns (accepted offsets, dead offsets, last progress).
fn drive(clock: Clock, max_ticks: usize, steps: &[Step], obey_cuts: bool) -> (Vec<u64>, Vec<u64>, Progress) {
    let names = ["a", "b", "c"];
    let mut cutter = cutter(clock, 5 * MINUTE, max_ticks);
    let (mut wall_ms, mut cuts) = (1_000_000_i64, Vec::new());
    for name in names {
        cutter.push(start(name), wall_ms * MILLI);
    }
    for (offset, (p, ms, kind, at_end, cut_here, wall_step)) in (0_u64..).zip(steps) {
        wall_ms += wall_step;
        let event = match kind {
            0 => Event::Bust,
            1 => Event::Quote { bid: Price(1), ask: Price(2), bid_size: Size(0), ask_size: Size(0) },
            2 => Event::Amend(Box::new(Amend { rev: 1, bar: None })),
            _ => trade(),
        };
        cutter.push(batch(names[*p], *at_end, vec![record(names[*p], offset, ms * MILLI, event)]), wall_ms * MILLI);
        if *cut_here && obey_cuts || cutter.ready() {
            cuts.extend(cutter.cut(wall_ms));
        }
    }
    for name in names {
        cutter.push(Input::Finished { partition: partition(name) }, wall_ms * MILLI);
    }
    cuts.push(cutter.finish(None));
    let (mut last_epoch, mut last) = (0, Progress::START);
    let (mut accepted, mut dead) = (Vec::new(), Vec::new());
    for cut in &cuts {
        assert!(cut.epoch > last_epoch, "epochs rise strictly");
        assert!(cut.progress.sealed_through >= last.sealed_through, "sealed stays sealed");
        assert!(cut.progress.closed_through >= last.closed_through, "closed stays closed");
        assert!(cut.progress.closed_through <= now_ns(cut.epoch), "nothing closes before its time");
        for record in cut.records() {
            let amend = matches!(record.tick.event, Event::Amend(_));
            assert!(amend || record.tick.event_time >= last.sealed_through, "late records do not pass");
        }
        assert_eq!(cut.counts.records_in, (cut.records().count() + cut.dead.len()) as i64);
        (last_epoch, last) = (cut.epoch, cut.progress);
        accepted.extend(offsets(cut));
        dead.extend(cut.dead.iter().map(|d| d.cursor.offset));
    }
    let all: BTreeSet<u64> = accepted.iter().chain(&dead).copied().collect();
    assert_eq!((all.len(), accepted.len() + dead.len()), (steps.len(), steps.len()), "each record once");
    (accepted, dead, last)
}

/// The rules again, as plain as they can be said.
fn naive(steps: &[Step]) -> (Vec<u64>, Vec<u64>) {
    let mut greatest: [Option<i64>; 3] = [None; 3];
    let mut end_since: [Option<i64>; 3] = [None; 3];
    let (mut sealed, mut wall) = (i64::MIN, 1_000_000_i64);
    let (mut accepted, mut dead) = (Vec::new(), Vec::new());
    for (offset, (p, ms, kind, at_end, _, wall_step)) in (0_u64..).zip(steps) {
        let mut watermark = |greatest: &[Option<i64>; 3], end_since: &[Option<i64>; 3], wall: i64| {
            let holding: Vec<Option<i64>> = (0..3)
                .filter(|i| end_since[*i].is_none_or(|since| greatest[*i].is_some() && wall - since < 60_000))
                .map(|i| greatest[i])
                .collect();
            if let Some(Some(least)) = holding.into_iter().min() {
                sealed = sealed.max(least - 300_000);
            }
            sealed
        };
        wall += wall_step;
        // Who fell idle before it came; then its own partition is not idle any more.
        watermark(&greatest, &end_since, wall);
        end_since[*p] = None;
        let sealed_now = watermark(&greatest, &end_since, wall);
        if *kind != 2 && *ms < sealed_now {
            dead.push(offset);
        } else {
            accepted.push(offset);
            if *kind != 0 && *kind != 2 {
                greatest[*p] = greatest[*p].max(Some(*ms));
            }
        }
        watermark(&greatest, &end_since, wall);
        end_since[*p] = at_end.then_some(wall);
        watermark(&greatest, &end_since, wall);
    }
    (accepted, dead)
}

proptest! {
    #[test]
    fn cuts_lose_nothing_and_never_go_back(
        steps in steps(),
        max_ticks in 1_usize..30,
        wall: bool,
    ) {
        drive(if wall { Clock::Wall } else { Clock::Event }, max_ticks, &steps, true);
    }

    #[test]
    fn what_is_late_does_not_depend_on_the_cuts(steps in steps(), max_ticks in 1_usize..30) {
        let (accepted, dead) = naive(&steps);
        for (max_ticks, obey) in [(max_ticks, true), (1, false), (1000, false)] {
            let (a, d, _) = drive(Clock::Event, max_ticks, &steps, obey);
            prop_assert_eq!(&a, &accepted);
            prop_assert_eq!(&d, &dead);
        }
    }
}

#[test]
fn a_mark_keeps_what_may_still_change() {
    let mut cutter = cutter(Clock::Event, 10 * SECOND, 700);
    cutter.push(start("p"), 0);
    // 10 s of lateness: the bars of the first offsets seal when the watermark has passed them by that.
    let times: Vec<Nanos> = (0..20_000).map(|i| i * 10 * MILLI).collect();
    for (i, chunk) in times.chunks(500).enumerate() {
        cutter.push(trades("p", i as u64 * 500, false, chunk), 0);
    }
    let mut marks = Vec::new();
    while let Some(cut) = cutter.cut(0) {
        marks.extend(cut.marks);
    }
    let mark = *marks.last().unwrap();
    assert_eq!((mark.upper, mark.greatest), (20_000, Some(199_990 * MILLI)));
    let sealed = cutter.progress.sealed_through;
    let needed = times.iter().position(|t| Timeframe::S1.close_time(*t) > sealed).unwrap() as u64;
    assert!(mark.low <= needed && needed - mark.low <= SPAN + 500, "{} {needed}", mark.low);
    assert!(mark.low > 0);
    // Nothing more, and nothing new to say.
    cutter.push(Input::Config(vec![]), 0);
    assert!(cutter.cut(1).is_none_or(|cut| cut.marks.is_empty()));
}

#[test]
fn a_log_that_is_another_one_begins_anew() {
    let mut cutter = cutter(Clock::Event, 10 * MINUTE, 100);
    cutter.push(start("p"), 0);
    cutter.push(trades("p", 0, false, &[MINUTE, 2 * MINUTE]), 0);
    cutter.push(trades("p", 500, false, &[3 * MINUTE]), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!((cut.marks[0].low, cut.marks[0].upper), (0, 501));
    let mut restoration = Restoration {
        epoch: cut.epoch,
        progress: cut.progress,
        partitions: cut.marks.iter().map(|mark| (mark.partition, *mark)).collect(),
        config: Vec::new(),
        sealed: Sealed::default(),
        accounts: Vec::new(),
        dead: BTreeSet::new(),
        raw: Vec::new(),
        unacknowledged: Vec::new(),
    };
    restoration.partitions.get_mut(&partition("p")).unwrap().upper = 501;
    // While it runs, and at a restart that finds it so.
    let mut resumed = Cutter::resume(cutter.config.clone(), restoration);
    resumed.push(start("p"), 0);
    assert!(resumed.restored().is_none(), "what was committed is waited for");
    for (cutter, restart) in [(&mut cutter, false), (&mut resumed, true)] {
        cutter.push(Input::Restarted { partition: partition("p"), upper: 7 }, 0);
        cutter.push(trades("p", 7, false, &[4 * MINUTE]), 0);
        assert_eq!(cutter.restored().is_some(), restart);
        let cut = cutter.cut(0).unwrap();
        assert_eq!(offsets(&cut), [7]);
        assert_eq!((cut.marks[0].low, cut.marks[0].upper), (7, 8), "{restart}");
    }
}

/// What a process leaves that has read so much of each partition: (name, low, upper).
fn left(marks: &[(&str, u64, u64)]) -> Restoration {
    let mark = |(name, low, upper): &(&str, u64, u64)| {
        let partition = partition(name);
        (partition, PartitionMark { partition, low: *low, upper: *upper, greatest: Some(MINUTE), fingerprint: None })
    };
    Restoration {
        epoch: first_epoch(60_000),
        progress: Progress { sealed_through: 0, closed_through: MINUTE },
        partitions: marks.iter().map(mark).collect(),
        config: Vec::new(),
        sealed: Sealed::default(),
        accounts: Vec::new(),
        dead: BTreeSet::new(),
        raw: Vec::new(),
        unacknowledged: Vec::new(),
    }
}

fn resumed(max_ticks: usize, marks: &[(&str, u64, u64)]) -> Cutter {
    Cutter::resume(cutter(Clock::Event, 10 * MINUTE, max_ticks).config, left(marks))
}

fn reject(name: &str, offset: u64) -> DeadLetter {
    DeadLetter {
        cursor: Cursor { partition: partition(name), offset, row: 0 },
        reason: Reason::Malformed,
        field: String::new(),
        value: String::new(),
        detail: String::new(),
        original: Vec::new(),
    }
}

/// Records of several files, and rejects, in one batch of all.
fn of_files(upper: u64, cursors: &[(&str, u64)], rejects: &[(&str, u64)]) -> Batch {
    let records = cursors.iter().map(|(name, offset)| record(name, *offset, MINUTE, trade())).collect();
    let rejects = rejects.iter().map(|(name, offset)| reject(name, *offset)).collect();
    Batch { records, rejects, upper, ..Batch::new(partition("files"), 0) }
}

#[test]
fn rows_of_one_message_in_two_batches_are_counted_once() {
    let mut cutter = resumed(100, &[("p", 0, 2)]);
    cutter.push(start("p"), 0);
    let row = |offset, row| {
        let mut record = record("p", offset, MINUTE, trade());
        record.cursor.row = row;
        record
    };
    cutter.push(batch("p", false, vec![row(0, 0), row(1, 0)]), 0);
    assert_eq!(cutter.restored().unwrap().records().count(), 2);
    cutter.push(batch("p", false, vec![row(1, 1), row(2, 0)]), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!((offsets(&cut).as_slice(), cut.counts.records_in), (&[2][..], 1));
}

#[test]
fn what_was_committed_of_a_file_is_not_counted_again_however_late_it_comes() {
    // Of b nothing is needed any more: it is not waited for.
    let mut cutter = resumed(100, &[("files", 6, 6), ("a", 0, 3), ("b", 4, 4)]);
    cutter.push(start("files"), 0);
    // A reject that stands before rows of its file comes after them in the batch.
    cutter.push(Input::Batch(of_files(3, &[("a", 0), ("a", 2)], &[("a", 1)])), 0);
    assert_eq!(offsets(&cutter.restored().expect("all of a has come")), [0, 2]);
    cutter
        .push(Input::Batch(of_files(9, &[("b", 0), ("b", 2), ("a", 3), ("b", 4)], &[("b", 1), ("b", 3), ("b", 5)])), 0);
    let cut = cutter.cut(0).unwrap();
    assert_eq!(offsets(&cut), [3, 4]);
    assert_eq!(cut.dead.iter().map(|dead| dead.cursor.offset).collect::<Vec<_>>(), [5]);
    assert_eq!((cut.counts.records_in, cut.counts.dead), (3, 1));
    let mut uppers: Vec<_> = cut.marks.iter().map(|mark| (mark.partition.to_string(), mark.upper)).collect();
    uppers.sort();
    assert_eq!(uppers, [("a".to_owned(), 4), ("b".to_owned(), 6), ("files".to_owned(), 9)]);
}

#[test]
fn unknown_fields_are_counted_once() {
    let mut cutter = resumed(2, &[("p", 1, 2), ("accounts", 3, 3)]);
    cutter.push(start("p"), 0);
    let with = |input, unknown_fields| match input {
        Input::Batch(batch) => Input::Batch(Batch { unknown_fields, ..batch }),
        other => other,
    };
    let snapshot = AccountSnapshot {
        account: AccountId::new("M1").unwrap(),
        event_time: MINUTE,
        seq: 1,
        equity: Amount::whole(1),
        balance: Amount::whole(1),
        currency: *b"USD",
        positions: Vec::new(),
    };
    let cursor = |name, offset| Cursor { partition: partition(name), offset, row: 0 };
    cutter.push(with(trades("p", 1, false, &[MINUTE]), 1), 0);
    assert!(cutter.restored().is_some());
    let mut accounts = Batch { upper: 3, unknown_fields: 1, ..Batch::new(partition("accounts"), 0) };
    accounts.accounts.push((cursor("accounts", 2), snapshot));
    cutter.push(Input::Batch(accounts), 0);
    // Whole batches, and one that is cut in two: with its end, so that what is cut again is not counted again.
    cutter.push(with(trades("p", 2, false, &[MINUTE, MINUTE]), 2), 0);
    cutter.push(with(trades("p", 4, false, &[MINUTE, MINUTE, MINUTE]), 3), 0);
    let unknown: Vec<i64> = std::iter::from_fn(|| cutter.cut(0)).map(|cut| cut.counts.unknown_fields).collect();
    assert_eq!(unknown, [2, 0, 3]);
}

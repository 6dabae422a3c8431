use super::*;
use crate::message::{ARROW, JSON};
use marea_model::codec::{arrow, json};
use marea_model::cursor::Reason;
use marea_model::{Event, Instruments, Price, Size, Symbol, Tick, Timeframe};
use std::sync::Arc;

const NOW: Nanos = 1_700_000_000_000_000_000;
const START: Nanos = 1_600_000_000_000_000_000;

fn state(until_end: bool, accept_gap: bool, resume: &[Resume]) -> State {
    let decoder =
        Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: None };
    let rules = Rules { carries: Carries::Ticks, until_end, accept_gap };
    State::new("t", rules, decoder, resume, Gaps::default())
}

fn p(id: i32) -> Partition {
    partition("t", id).unwrap()
}

fn bounds(start: u64, end: u64) -> Bounds {
    Bounds { start, end }
}

fn tick(seq: u64) -> Tick {
    let event = Event::Trade { price: Price(100_0000_0000), size: Size(1_0000_0000) };
    Tick { symbol: Symbol::new("A").unwrap(), event_time: START + seq as i64, seq, event }
}

fn put(state: &mut State, id: i32, offset: u64) -> bool {
    let payload = json::encode(&tick(offset), &Instruments::default());
    let (content_type, payload) = (Some(JSON.as_bytes()), Some(&payload[..]));
    state.message(id, &Message { offset, timestamp_ms: 5, content_type, payload, ..Message::default() }, NOW)
}

/// What is sent, in short.
fn sent(state: &mut State) -> Vec<String> {
    let mut out = Vec::new();
    state.drain(NOW, &mut out);
    let short = |input| match input {
        Input::Batch(batch) => {
            let offsets: Vec<_> = batch.records.iter().map(|record| record.cursor.offset).collect();
            let end = if batch.at_end { " end" } else { "" };
            format!("{} {offsets:?} ..{}{end}", batch.partition, batch.upper)
        }
        Input::Finished { partition } => format!("{partition} finished"),
        Input::Start { partition, .. } => format!("{partition} start"),
        Input::Restarted { partition, upper } => format!("{partition} restarted at {upper}"),
        Input::Config(_) => "config".to_owned(),
    };
    out.into_iter().map(short).collect()
}

fn reading(state: &State) -> Vec<(i32, u64)> {
    state.reading().collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn the_end_is_told_when_it_changes() {
    let mut state = state(false, false, &[]);
    assert_eq!(state.locate(0, bounds(0, 3)), Ok(None));
    assert_eq!(state.locate(1, bounds(7, 7)), Ok(None));
    assert_eq!(reading(&state), [(0, 0), (1, 7)]);
    assert_eq!(sent(&mut state), NOTHING);
    put(&mut state, 0, 0);
    put(&mut state, 0, 1);
    state.eof(1);
    assert_eq!(sent(&mut state), ["kafka:t/0 [0, 1] ..2", "kafka:t/1 [] ..7 end"]);
    put(&mut state, 0, 2);
    state.eof(0);
    assert_eq!(sent(&mut state), ["kafka:t/0 [2] ..3 end"]);
    state.eof(0);
    state.eof(1);
    assert_eq!(sent(&mut state), NOTHING);
    put(&mut state, 1, 9);
    assert_eq!(sent(&mut state), ["kafka:t/1 [9] ..10"]);
    assert!(!state.is_finished());
}

#[test]
fn what_was_read_is_not_read_again() {
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 9)).unwrap();
    for offset in [0, 1, 1, 0, 2, 5, 4] {
        put(&mut state, 0, offset);
    }
    assert_eq!(sent(&mut state), ["kafka:t/0 [0, 1, 2, 5] ..6"]);
    put(&mut state, 3, 0);
    put(&mut state, -1, 0);
    assert_eq!(sent(&mut state), NOTHING);
}

#[test]
fn every_message_is_a_record_or_a_dead_letter() {
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 9)).unwrap();
    let stream = arrow::encode_stream(&[tick(1), tick(2)], &Instruments::default());
    let none = Message::default();
    let messages = [
        Message { offset: 0, content_type: Some(ARROW.as_bytes()), payload: Some(&stream), ..none },
        Message { offset: 1, content_type: Some(JSON.as_bytes()), ..none },
        Message { offset: 2, payload: Some(b"{}"), ..none },
    ];
    messages.iter().for_each(|message| assert!(!state.message(0, message, NOW)));
    let mut out = Vec::new();
    state.drain(NOW, &mut out);
    let [Input::Batch(batch)] = &out[..] else { panic!("one batch: {out:?}") };
    let rows: Vec<_> = batch.records.iter().map(|record| (record.cursor.offset, record.cursor.row)).collect();
    assert_eq!(rows, [(0, 0), (0, 1)]);
    let rejects: Vec<_> = batch.rejects.iter().map(|reject| (reject.cursor.offset, reject.reason)).collect();
    assert_eq!(rejects, [(1, Reason::Missing), (2, Reason::Schema)]);
    assert_eq!((batch.upper, batch.receive_time), (3, NOW));
    assert_eq!(batch.fingerprint, Some(messages[2].fingerprint()));
}

#[test]
fn enough_is_rows_or_bytes() {
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 9)).unwrap();
    let enough = (0..=BATCH_ROWS as u64).find(|offset| put(&mut state, 0, *offset));
    assert_eq!(enough, Some(BATCH_ROWS as u64 - 1));
    sent(&mut state);
    let half = vec![0; BATCH_BYTES / 2];
    let mut large = |offset| state.message(0, &Message { offset, payload: Some(&half), ..Message::default() }, NOW);
    assert!(!large(10_000));
    assert!(large(10_001));
}

#[test]
fn until_the_end_is_until_the_end_that_was_at_the_start() {
    let resume = [Resume { partition: p(3), low: 8, upper: 8, fingerprint: None }];
    let mut state = state(true, false, &resume);
    for (id, end) in [(0, 2), (1, 0), (2, 5), (3, 8), (4, 6)] {
        assert_eq!(state.locate(id, bounds(0, end)), Ok(None));
    }
    assert_eq!(
        sent(&mut state),
        ["kafka:t/1 [] ..0 end", "kafka:t/1 finished", "kafka:t/3 [] ..8 end", "kafka:t/3 finished"]
    );
    assert_eq!(reading(&state), [(0, 0), (2, 0), (4, 0)]);
    // The last record itself; a record beyond; the end, with markers before it.
    for (id, offset) in [(0, 0), (0, 1), (0, 2), (2, 3), (2, 9), (4, 1)] {
        put(&mut state, id, offset);
    }
    state.eof(4);
    assert_eq!(
        sent(&mut state),
        [
            "kafka:t/0 [0, 1] ..2",
            "kafka:t/0 finished",
            "kafka:t/2 [3] ..5",
            "kafka:t/2 finished",
            "kafka:t/4 [1] ..6 end",
            "kafka:t/4 finished"
        ]
    );
    assert!(state.is_finished());
    // Nothing more, whatever comes.
    put(&mut state, 0, 3);
    state.eof(0);
    state.stood(0, Stood { eof: 9, end: 9, queued: 0 }, &Lags::default());
    assert_eq!(sent(&mut state), NOTHING);
}

#[test]
fn reading_resumes_at_low_if_it_is_the_same_log() {
    let message = Message { offset: 9, timestamp_ms: 7, payload: Some(b"x"), ..Message::default() };
    let known = message.fingerprint();
    let changed = Message { payload: Some(b"y"), ..message }.fingerprint();
    let later = Message { timestamp_ms: 8, ..message }.fingerprint();
    let resume = |low| [Resume { partition: p(0), low, upper: 10, fingerprint: Some(known) }];
    let gap = |wanted, available| Err(KafkaError::Gap { partition: p(0), wanted, available });
    let begin = |low, at: Bounds| state(false, false, &resume(low)).locate(0, at);
    assert_eq!(begin(4, bounds(0, 10)), Ok(Some(9)));
    assert_eq!(begin(4, bounds(4, 99)), Ok(Some(9)));
    assert_eq!(begin(10, bounds(10, 10)), Ok(None), "retention took the record to compare, and nothing else");
    assert_eq!(begin(4, bounds(5, 10)), gap(4, 5));
    assert_eq!(begin(10, bounds(11, 12)), gap(10, 11));
    assert!(matches!(begin(4, bounds(0, 9)), Err(KafkaError::Recreated { start: 0, end: 9, .. })));

    // Asked again before anything was read, the committed upper still counts.
    let mut again = state(false, false, &resume(4));
    again.locate(0, bounds(0, 10)).unwrap();
    assert!(matches!(again.locate(0, bounds(0, 9)), Err(KafkaError::Recreated { .. })));

    for (found, same) in [(Some(known), true), (Some(changed), false), (Some(later), false), (None, false)] {
        let mut state = state(false, false, &resume(4));
        state.locate(0, bounds(0, 10)).unwrap();
        let compared = state.compare(0, found, bounds(0, 10));
        assert_eq!(compared.is_ok(), same, "{compared:?}");
        assert_eq!(reading(&state), [(0, 4)]);
    }
}

#[test]
fn accepted_gaps_are_told() {
    let resume = [
        Resume { partition: p(0), low: 4, upper: 10, fingerprint: None },
        Resume { partition: p(1), low: 4, upper: 10, fingerprint: None },
        Resume { partition: p(2), low: 4, upper: 10, fingerprint: None },
    ];
    // Not in what was committed and is read again: bars would be made of what is left.
    let mut reads = state(false, true, &resume);
    assert!(matches!(reads.present(&BTreeSet::from([0, 1])), Err(KafkaError::Recreated { .. })));
    let lost = KafkaError::Gap { partition: p(0), wanted: 4, available: 6 };
    assert_eq!(reads.locate(0, bounds(6, 12)), Err(lost));
    assert!(matches!(reads.locate(1, bounds(1, 3)), Err(KafkaError::Recreated { .. })));
    assert_eq!(reads.gaps.take(), []);
    // Unless whoever asks accepts even that, and reads nothing.
    let mut state = state(false, true, &resume);
    state.check_only();
    state.present(&BTreeSet::from([0, 1])).unwrap();
    state.locate(0, bounds(6, 12)).unwrap();
    state.locate(1, bounds(1, 3)).unwrap();
    assert_eq!(reading(&state), [(0, 6), (1, 1)]);
    let gaps: Vec<_> = state.gaps.take().into_iter().map(|gap| gap.to_string()).collect();
    assert_eq!(
        gaps,
        [
            "kafka:t/2: recreated: 10 was next, read from its earliest offset 0",
            "kafka:t/0: offsets 4 to 6 are lost to retention",
            "kafka:t/1: recreated: 4 was next, read from its earliest offset 1",
        ]
    );
}

#[test]
fn what_was_committed_is_read_before_anything_new() {
    let resume = |id, low, upper| Resume { partition: p(id), low, upper, fingerprint: None };
    let resume = [resume(0, 3, 5), resume(1, 2, 2), resume(2, 1, 4)];
    let mut state = state(false, false, &resume);
    for id in 0..4 {
        state.locate(id, bounds(0, 9)).unwrap();
    }
    let fetching = |state: &State| state.fetching().collect::<Vec<_>>();
    assert!(state.is_behind() && !state.read_only_committed(true));
    assert_eq!(fetching(&state), [(0, 3), (2, 1)], "neither what is at its upper nor what is new");
    for (id, offset) in [(0, 3), (0, 4), (0, 5), (1, 2), (2, 1), (3, 0)] {
        put(&mut state, id, offset);
    }
    state.eof(0);
    assert_eq!(
        sent(&mut state),
        ["kafka:t/0 [3, 4] ..5", "kafka:t/2 [1] ..2"],
        "it is not at its end: more was left out"
    );
    assert!(state.is_behind() && !state.read_only_committed(true));
    assert_eq!(fetching(&state), [(2, 2)]);
    // The rest of it is no records; what came instead is new, and comes again.
    put(&mut state, 2, 6);
    assert_eq!(sent(&mut state), ["kafka:t/2 [] ..4"]);
    assert!(!state.is_behind() && state.read_only_committed(false), "from now on all is read");
    assert_eq!(fetching(&state), [(0, 5), (1, 2), (2, 4), (3, 0)]);
    for (id, offset) in [(0, 5), (1, 2), (2, 6), (3, 0)] {
        put(&mut state, id, offset);
    }
    assert_eq!(sent(&mut state), ["kafka:t/0 [5] ..6", "kafka:t/1 [2] ..3", "kafka:t/2 [6] ..7", "kafka:t/3 [0] ..1"]);
}

#[test]
fn what_is_left_out_while_others_are_behind_is_read_until_the_end() {
    let resume = |id, low, upper| Resume { partition: p(id), low, upper, fingerprint: None };
    let mut state = state(true, false, &[resume(0, 3, 5), resume(1, 1, 4)]);
    for id in 0..2 {
        state.locate(id, bounds(0, 7)).unwrap();
    }
    for (id, offset) in [(0, 3), (0, 4), (0, 5), (0, 6)] {
        put(&mut state, id, offset);
    }
    state.eof(0);
    // The end that the client has come to; statistics must not move there either.
    state.stood(0, Stood { eof: 7, end: 7, queued: 0 }, &Lags::default());
    assert_eq!(sent(&mut state), ["kafka:t/0 [3, 4] ..5"]);
    // The last of it is no record, so only the end tells.
    put(&mut state, 1, 1);
    state.eof(1);
    assert_eq!(sent(&mut state), ["kafka:t/1 [1] ..4"]);
    assert!(!state.is_behind() && state.read_only_committed(false) && !state.is_finished());
    assert_eq!(state.fetching().collect::<Vec<_>>(), [(0, 5), (1, 4)]);
    for offset in [5, 6] {
        put(&mut state, 0, offset);
    }
    state.eof(1);
    assert_eq!(
        sent(&mut state),
        ["kafka:t/0 [5, 6] ..7", "kafka:t/0 finished", "kafka:t/1 [] ..7 end", "kafka:t/1 finished"]
    );
}

#[test]
fn what_was_committed_is_not_judged_by_the_clock_of_now() {
    let resume = [Resume { partition: p(0), low: 0, upper: 1, fingerprint: None }];
    let mut state = state(false, false, &resume);
    state.decoder.max_ahead = Some(0);
    state.locate(0, bounds(0, 9)).unwrap();
    let payload = json::encode(&tick(7), &Instruments::default());
    let (content_type, payload) = (Some(JSON.as_bytes()), Some(&payload[..]));
    // The clock was set back since.
    let early = START - 3_600_000_000_000;
    let mut read = |offset| {
        state.read_only_committed(false);
        state.message(0, &Message { offset, content_type, payload, ..Message::default() }, early);
        let mut out = Vec::new();
        state.drain(early, &mut out);
        let Some(Input::Batch(batch)) = out.pop() else { panic!("no batch") };
        (batch.records.len(), batch.rejects.first().map(|reject| reject.reason))
    };
    assert_eq!(read(0), (1, None));
    assert_eq!(read(1), (0, Some(Reason::EventTime)));
}

#[test]
fn a_second_look_finds_what_changed() {
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 9)).unwrap();
    state.locate(1, bounds(3, 3)).unwrap();
    put(&mut state, 0, 0);
    put(&mut state, 0, 1);
    sent(&mut state);
    assert_eq!(state.locate(0, bounds(0, 9)), Ok(Some(0)));
    assert_eq!(state.locate(1, bounds(5, 9)), Ok(None), "nothing was read of it");
    assert_eq!(reading(&state), [(0, 2), (1, 5)]);
    assert_eq!(state.locate(0, bounds(3, 9)), Err(KafkaError::Gap { partition: p(0), wanted: 2, available: 3 }));
    assert!(matches!(state.locate(0, bounds(0, 1)), Err(KafkaError::Recreated { .. })));
    assert!(matches!(state.present(&BTreeSet::from([1])), Err(KafkaError::Recreated { .. })));
}

#[test]
fn a_second_look_compares_a_record_of_some_time_ago() {
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 9)).unwrap();
    let look = |state: &mut State, offset, start| {
        put(state, 0, offset);
        state.locate(0, bounds(start, 99))
    };
    assert_eq!(look(&mut state, 3, 0), Ok(Some(3)));
    assert_eq!(look(&mut state, 4, 0), Ok(Some(3)));
    state.remember();
    assert_eq!(look(&mut state, 5, 0), Ok(Some(3)));
    state.remember();
    assert_eq!(look(&mut state, 6, 0), Ok(Some(4)));
    assert_eq!(look(&mut state, 7, 5), Ok(Some(7)), "the older one is beyond retention");
}

#[test]
fn the_upper_moves_past_markers_when_nothing_is_on_its_way() {
    let lags = Lags::default();
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 2)).unwrap();
    put(&mut state, 0, 0);
    let stood = |eof, end, queued| Stood { eof, end, queued };
    state.stood(0, stood(2, 2, 0), &lags);
    assert_eq!(lags.all(), [(p(0), Lag { records: 1, event_time: None })]);
    assert_eq!(sent(&mut state), ["kafka:t/0 [0] ..1"], "not at the end");
    state.eof(0);
    for stood in [stood(2, 2, 1), stood(2, 1, 0), stood(-1001, 2, 0), stood(2, -1001, 0)] {
        state.stood(0, stood, &lags);
    }
    assert_eq!(sent(&mut state), ["kafka:t/0 [] ..1 end"]);
    state.stood(0, stood(2, 2, 0), &lags);
    assert_eq!(sent(&mut state), ["kafka:t/0 [] ..2 end"]);
    assert_eq!(lags.all(), [(p(0), Lag { records: 0, event_time: Some(START) })]);
}

#[test]
fn the_groups_offsets_follow_what_is_committed() {
    let committed = Committed::default();
    let mut state = state(false, false, &[]);
    state.locate(0, bounds(0, 9)).unwrap();
    state.locate(1, bounds(0, 9)).unwrap();
    assert_eq!(state.commits(&committed), []);
    committed.advance([(p(0), 3), (Partition::new("files").unwrap(), 4)]);
    assert_eq!(state.commits(&committed), [(0, 3)]);
    assert_eq!(state.commits(&committed), []);
    committed.advance([(p(0), 3), (p(1), 1)]);
    assert_eq!(state.commits(&committed), [(1, 1)]);
}

#[test]
fn a_fingerprint_is_fixed_for_all_time() {
    let of =
        |key: Option<&[u8]>, payload: Option<&[u8]>| Message { key, payload, ..Message::default() }.fingerprint().hash;
    let all = [
        of(None, None),
        of(Some(b""), None),
        of(None, Some(b"")),
        of(Some(b"a"), Some(b"b")),
        of(Some(b""), Some(b"ab")),
        of(Some(b"ab"), Some(b"")),
        of(None, Some(b"12345678")),
        of(None, Some(b"12345678\0")),
        of(None, Some(b"123456789")),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(of(Some(b"IBM"), Some(b"{\"kind\":\"trade\"}")), HASH);
}

/// By a few lines of Python, from the definition.
const HASH: u64 = 0xaa4b_44c3_6063_b358;

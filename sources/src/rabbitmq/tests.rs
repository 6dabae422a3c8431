use super::state::{Extent, Message, State, Took, Verdict};
use super::*;
use marea_model::cursor::{Fingerprint, Reason};
use marea_model::{Instruments, Timeframe};
use std::sync::Arc;

const NOW: i64 = 2_000_000_000_000_000_000;

fn state(kind: RabbitKind, resume: Option<(u64, u64, Option<Fingerprint>)>) -> State {
    let decoder =
        Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: None };
    let partition = Partition::new("rabbitmq:v/t").unwrap();
    let resume = resume.map(|(low, upper, fingerprint)| Resume { partition, low, upper, fingerprint });
    State::new(partition, kind, Carries::Ticks, decoder, resume)
}

fn body(seq: u64) -> Vec<u8> {
    format!(
        r#"{{"kind":"trade","symbol":"A","event_time":{},"seq":{seq},"price":"1","size":"1"}}"#,
        1_600_000_000_000_000_000_u64 + seq
    )
    .into_bytes()
}

fn of_stream(tag: u64, offset: u64) -> Message {
    let content_type = Some("application/json".to_owned());
    Message { tag, offset: Some(offset), content_type, body: body(offset), ..Message::default() }
}

fn of_queue(tag: u64, id: &str, seq: u64) -> Message {
    let message_id = (!id.is_empty()).then(|| id.to_owned());
    Message { offset: None, message_id, ..Message { tag, ..of_stream(tag, seq) } }
}

fn offsets(state: &mut State) -> Vec<u64> {
    let batch = state.batch(NOW);
    batch.map_or(vec![], |batch| batch.records.iter().map(|record| record.cursor.offset).collect())
}

#[test]
fn a_stream_drops_what_comes_before_the_wanted_offset() {
    let mut state = state(RabbitKind::Stream, Some((5, 9, None)));
    assert_eq!(state.from(), Some(5));
    let took: Vec<Took> = (3..8).map(|offset| state.take(of_stream(offset, offset), NOW)).collect();
    assert_eq!(took, [Took::Known, Took::Known, Took::In, Took::In, Took::In]);
    let batch = state.batch(NOW).unwrap();
    assert_eq!((batch.records.len(), batch.upper, batch.raw.len(), batch.at_end), (3, 8, 0, false));
    assert_eq!(batch.fingerprint, Some(of_stream(0, 7).fingerprint(7)));
    assert_eq!((state.take_credit(), state.take_credit()), (Some(7), None));
    assert!(state.batch(NOW).is_none());
    assert_eq!(state.event_time(), Some(1_600_000_000_000_000_007));
}

#[test]
fn a_first_start_begins_where_the_stream_does() {
    let mut state = state(RabbitKind::Stream, None);
    assert_eq!(state.from(), None);
    assert!(!state.jumps(&of_stream(1, 500)));
    assert_eq!(state.take(of_stream(1, 500), NOW), Took::In);
    assert_eq!(offsets(&mut state), [500]);
    assert!(state.jumps(&of_stream(2, 502)) && !state.jumps(&of_stream(2, 501)));
}

#[test]
fn a_stream_is_compared_with_what_was_read() {
    let at = |offset| of_stream(0, offset).fingerprint(offset);
    let other = Fingerprint { hash: 1, ..at(99) };
    let extent = |first, last, proof| Extent { first, last, proof };
    // Wanted from 90, read up to 100.
    let cases: [(Extent, &str); 9] = [
        (extent(Some(0), Some(99), Some(at(99))), "fits"),
        (extent(Some(90), Some(500), Some(at(99))), "fits"),
        (extent(Some(0), Some(500), None), "fits"),
        (extent(Some(91), Some(500), Some(at(99))), "gap"),
        (extent(Some(200), Some(500), Some(at(200))), "gap"),
        (extent(Some(0), Some(98), None), "other"),
        (extent(None, None, None), "other"),
        (extent(Some(0), Some(500), Some(other)), "other"),
        // The record that was read last is gone, and all that is wanted with it.
        (extent(Some(100), Some(500), Some(at(100))), "gap"),
    ];
    let state = state(RabbitKind::Stream, Some((90, 100, Some(at(99)))));
    for (extent, expected) in cases {
        let verdict = match state.judge(&extent) {
            Verdict::Fits => "fits",
            Verdict::Gap { wanted, .. } => {
                assert_eq!(wanted, 90);
                "gap"
            }
            Verdict::Other { .. } => "other",
        };
        assert_eq!(verdict, expected, "{extent:?}");
    }
}

#[test]
fn nothing_is_compared_before_anything_was_read() {
    for resume in [None, Some((0, 0, None))] {
        let state = state(RabbitKind::Stream, resume);
        assert_eq!(state.judge(&Extent::default()), Verdict::Fits);
        assert_eq!(state.judge(&Extent { first: Some(7), last: Some(9), proof: None }), Verdict::Fits);
    }
}

#[test]
fn a_gap_can_be_accepted() {
    let mut state = state(RabbitKind::Stream, Some((5, 9, None)));
    state.skip_to(20);
    assert_eq!(state.from(), Some(20));
    assert_eq!(state.take(of_stream(1, 20), NOW), Took::In);
    assert_eq!(offsets(&mut state), [20]);
}

#[test]
fn another_stream_can_be_accepted() {
    let shorter = Extent { first: Some(0), last: Some(3), proof: None };
    let mut state = state(RabbitKind::Stream, Some((5, 9, None)));
    state.accept_other(&shorter);
    assert_eq!((state.from(), state.judge(&shorter)), (None, Verdict::Fits));
    assert_eq!(state.take(of_stream(1, 0), NOW), Took::In);
}

#[test]
fn a_stream_ends_where_it_ended_at_the_start() {
    let mut state = state(RabbitKind::Stream, None);
    state.ends_at(2);
    let took: Vec<Took> = (0..4).map(|offset| state.take(of_stream(offset + 1, offset), NOW)).collect();
    assert_eq!(took, [Took::In, Took::In, Took::Beyond, Took::Beyond]);
    assert!(state.is_done());
    assert_eq!(offsets(&mut state), [0, 1]);
    assert_eq!(state.take_credit(), Some(2));
}

#[test]
fn a_record_that_cannot_be_received_is_dead_and_passed() {
    let mut state = state(RabbitKind::Stream, Some((5, 9, None)));
    state.bury("not UTF-8");
    let batch = state.batch(NOW).unwrap();
    assert_eq!((batch.rejects.len(), batch.rejects[0].cursor.offset, batch.upper), (1, 5, 6));
    assert!(batch.rejects[0].detail.contains("not UTF-8"));
}

#[test]
fn a_queue_counts_on_and_keeps_the_bytes() {
    let mut state = state(RabbitKind::Queue, Some((5, 9, None)));
    for (tag, seq) in [(1, 100), (2, 101)] {
        assert_eq!(state.take(of_queue(tag, "", seq), NOW), Took::In);
    }
    let mut poison = of_queue(3, "", 0);
    (poison.content_type, poison.body) = (None, b"?".to_vec());
    assert_eq!(state.take(poison, NOW), Took::In);
    let batch = state.batch(NOW).unwrap();
    assert_eq!((batch.upper, batch.records.len(), batch.rejects.len(), batch.fingerprint), (12, 2, 1, None));
    let raw: Vec<(u64, Option<&str>, &[u8])> =
        batch.raw.iter().map(|raw| (raw.cursor.offset, raw.content_type.as_deref(), raw.body.as_slice())).collect();
    let json = Some("application/json");
    assert_eq!(raw, [(9, json, body(100).as_slice()), (10, json, body(101).as_slice()), (11, None, b"?".as_slice())]);
    assert!(state.take_credit().is_none());
}

#[test]
fn a_queue_acknowledges_what_is_committed_and_no_more() {
    let mut state = state(RabbitKind::Queue, None);
    for seq in 0..5 {
        state.take(of_queue(seq + 1, "", seq), NOW);
    }
    let steps = [(0, None), (1, Some(1)), (1, None), (4, Some(4)), (9, Some(5)), (9, None)];
    for (committed, tag) in steps {
        assert_eq!(state.deliveries.take_acks(committed), tag, "{committed}");
    }
    assert_eq!(state.deliveries.unacked(), 0);
}

#[test]
fn a_redelivery_is_bound_to_the_offset_it_had() {
    let mut state = state(RabbitKind::Queue, None);
    for (tag, id) in [(1, "a"), (2, "b"), (3, "c")] {
        state.take(of_queue(tag, id, tag), NOW);
    }
    assert_eq!(state.deliveries.take_acks(1), Some(1));
    assert_eq!(offsets(&mut state), [0, 1, 2]);
    state.disconnect();
    assert_eq!(state.deliveries.unacked(), 0);

    // The acknowledgement of `a` was lost. `d` is new, and comes before `c`.
    let again = [(1, "a", 1, Took::Known), (2, "b", 2, Took::Known), (3, "d", 4, Took::In), (4, "c", 3, Took::Known)];
    for (tag, id, seq, took) in again {
        assert_eq!(state.take(of_queue(tag, id, seq), NOW), took, "{id}");
    }
    assert_eq!((offsets(&mut state), state.deliveries.redelivered()), (vec![3], 3));
    // Tags are acknowledged in their order: `c` waits for `d`.
    for (committed, tag) in [(1, Some(1)), (2, Some(2)), (3, None), (4, Some(4))] {
        assert_eq!(state.deliveries.take_acks(committed), tag, "{committed}");
    }
}

fn again(message: Message) -> Message {
    Message { redelivered: true, ..message }
}

#[test]
fn a_redelivery_without_an_id_is_known_by_its_bytes() {
    let mut state = state(RabbitKind::Queue, None);
    // Two are equal, as rejects may be: interchangeable, so their number counts.
    for (tag, seq) in [(1, 1), (2, 2), (3, 2), (4, 3)] {
        assert_eq!(state.take(of_queue(tag, "", seq), NOW), Took::In);
    }
    assert_eq!(state.deliveries.take_acks(2), Some(2));
    assert_eq!(offsets(&mut state), [0, 1, 2, 3]);
    state.disconnect();
    let steps = [
        (again(of_queue(1, "", 2)), Took::Known),
        (of_queue(2, "", 2), Took::In),
        (again(of_queue(3, "", 2)), Took::Known),
        (again(of_queue(4, "", 2)), Took::In),
        (again(of_queue(5, "", 9)), Took::In),
        (again(of_queue(6, "", 3)), Took::Known),
    ];
    for (message, took) in steps {
        assert_eq!(state.take(message.clone(), NOW), took, "{message:?}");
    }
    assert_eq!((offsets(&mut state), state.deliveries.redelivered()), (vec![4, 5, 6], 3));
}

#[test]
fn what_a_process_before_committed_does_not_come_twice() {
    let mut first = state(RabbitKind::Queue, None);
    for tag in 1..4 {
        first.take(of_queue(tag, if tag == 2 { "id" } else { "" }, tag), NOW);
    }
    let messages = first.batch(NOW).unwrap().raw;
    assert_eq!(first.deliveries.take_acks(1), Some(1));
    assert_eq!(first.deliveries.last_acked(), Some(1));
    assert_eq!(first.deliveries.settle(1), [0]);
    assert_eq!(first.deliveries.last_acked(), None);

    let mut state = state(RabbitKind::Queue, Some((0, 3, None)));
    state.deliveries.expect(messages[1..].iter().map(|raw| (raw.cursor.offset, raw.identity.unwrap())));
    // The broker does not say that the one with an id comes again; and another one came behind it.
    let steps = [
        (of_queue(1, "id", 2), Took::Known),
        (again(of_queue(2, "", 7)), Took::In),
        (again(of_queue(3, "", 3)), Took::Known),
        (again(of_queue(4, "", 3)), Took::In),
    ];
    for (message, took) in steps {
        assert_eq!(state.take(message.clone(), NOW), took, "{message:?}");
    }
    assert_eq!(offsets(&mut state), [3, 4]);
    assert_eq!(state.deliveries.take_acks(3), Some(1), "it is committed");
    assert_eq!(state.deliveries.take_acks(5), Some(4));
    assert_eq!(state.deliveries.settle(4), [1, 3, 2, 4]);
}

#[test]
fn what_does_not_come_again_is_forgotten_some_time() {
    let mut state = state(RabbitKind::Queue, None);
    state.take(of_queue(1, "", 1), NOW);
    state.disconnect();
    assert_eq!(state.deliveries.forget(), [0]);
    assert_eq!(state.deliveries.forget(), [0_u64; 0]);
    assert_eq!(state.take(again(of_queue(1, "", 1)), NOW), Took::In);
}

#[test]
fn acknowledgements_are_told_as_ranges() {
    let committed = Committed::default();
    let partition = Partition::new("q").unwrap();
    committed.acknowledged(partition, vec![5, 3, 4, 9, 9]);
    committed.acknowledged(partition, vec![]);
    assert_eq!(committed.take_acknowledged(), [(partition, 3..6), (partition, 9..10)]);
    assert_eq!(committed.take_acknowledged(), []);
}

#[test]
fn a_store_of_another_queue_is_refused() {
    let config = RabbitConfig::new("amqp://u:p@h/v", "t", RabbitKind::Queue);
    let resume = |name: &str| {
        let partition = Partition::new(name).unwrap();
        vec![Resume { partition, low: 0, upper: 5, fingerprint: None }]
    };
    let open = |name| open(config.clone(), decoder(), resume(name), Committed::default(), Lags::default());
    assert!(open("rabbitmq:queue:v/t").is_ok());
    for other in ["rabbitmq:stream:v/t", "rabbitmq:queue:w/t"] {
        let error = open(other).unwrap_err().to_string();
        assert!(error.contains(other) && error.contains("rabbitmq:queue:v/t"), "{error}");
    }
}

#[test]
fn an_id_alone_does_not_make_a_redelivery() {
    let mut state = state(RabbitKind::Queue, None);
    assert_eq!(state.take(of_queue(1, "same", 1), NOW), Took::In);
    assert_eq!(state.take(of_queue(2, "same", 2), NOW), Took::In);
    assert_eq!(state.take(of_queue(3, "same", 2), NOW), Took::Known);
    state.disconnect();
    assert_eq!(state.take(of_queue(1, "", 1), NOW), Took::In, "without an id nothing is known");
}

#[test]
fn what_is_remembered_is_bounded_by_what_is_committed() {
    let mut state = state(RabbitKind::Queue, None);
    for seq in 0..100_010 {
        let tag = seq + 1;
        let message = Message { body: vec![b'x'], ..of_queue(tag, &seq.to_string(), 0) };
        state.take(message, NOW);
        state.batch(NOW);
    }
    state.deliveries.take_acks(4);
    state.deliveries.settle(4);
    state.disconnect();
    let again =
        |state: &mut State, seq: u64| state.take(Message { body: vec![b'x'], ..of_queue(1, &seq.to_string(), 0) }, NOW);
    assert_eq!(again(&mut state, 4), Took::Known, "it is not committed");
    assert_eq!(again(&mut state, 3), Took::In, "it is committed, and the oldest");
}

#[test]
fn a_queue_ends_after_as_many_as_there_were() {
    let mut state = state(RabbitKind::Queue, Some((0, 10, None)));
    state.ends_at(12);
    let took: Vec<Took> = (1..4).map(|tag| state.take(of_queue(tag, "", tag), NOW)).collect();
    assert_eq!(took, [Took::In, Took::In, Took::Beyond]);
    assert!(state.is_done());
    assert_eq!(state.deliveries.take_acks(100), Some(2), "what lies behind the end is not acknowledged");
}

/// An acknowledgement stands for all deliveries before it.
#[test]
fn nothing_behind_what_was_left_to_the_broker_is_acknowledged() {
    let mut state = state(RabbitKind::Queue, Some((0, 10, None)));
    assert_eq!(state.take(of_queue(1, "a", 1), NOW), Took::In);
    state.disconnect();
    state.ends_at(12);
    let deliveries = [of_queue(1, "b", 2), of_queue(2, "c", 3), of_queue(3, "a", 1)];
    let took: Vec<Took> = deliveries.into_iter().map(|delivery| state.take(delivery, NOW)).collect();
    assert_eq!(took, [Took::In, Took::Beyond, Took::Beyond]);
    assert_eq!(state.deliveries.take_acks(100), Some(1), "the second one is still the broker's");
}

#[test]
fn what_was_committed_is_not_judged_by_the_clock_of_now() {
    let decoder =
        Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: Some(0) };
    let partition = Partition::new("rabbitmq:v/t").unwrap();
    let resume = Resume { partition, low: 0, upper: 1, fingerprint: None };
    let mut state = State::new(partition, RabbitKind::Stream, Carries::Ticks, decoder, Some(resume));
    // The clock was set back since.
    let early = 1_500_000_000_000_000_000;
    state.take(of_stream(1, 0), early);
    state.take(of_stream(2, 1), early);
    let batch = state.batch(early).unwrap();
    assert_eq!(batch.records.iter().map(|record| record.cursor.offset).collect::<Vec<_>>(), [0]);
    assert_eq!(
        batch.rejects.iter().map(|reject| (reject.cursor.offset, reject.reason)).collect::<Vec<_>>(),
        [(1, Reason::EventTime)]
    );
}

#[test]
fn the_end_is_said_once_until_something_comes() {
    let mut state = state(RabbitKind::Queue, None);
    assert!(state.reach_end(NOW).is_some_and(|batch| batch.at_end && batch.upper == 0));
    assert!(state.reach_end(NOW).is_none());
    state.take(of_queue(1, "", 1), NOW);
    assert!(!state.is_at_end());
    assert!(!state.batch(NOW).unwrap().at_end);
    assert!(state.reach_end(NOW).is_some_and(|batch| batch.upper == 1));
}

#[test]
fn the_other_kind_shows_in_a_delivery() {
    assert_eq!(state(RabbitKind::Stream, None).take(of_queue(1, "", 1), NOW), Took::OtherKind);
    assert_eq!(state(RabbitKind::Queue, None).take(of_stream(1, 1), NOW), Took::OtherKind);
}

#[test]
fn the_configuration_names_all_that_is_wrong() {
    let good = RabbitConfig::new("amqp://u:p@h:5672/%2f", "t", RabbitKind::Queue);
    assert_eq!(good.check(), Vec::<String>::new());
    let bad = RabbitConfig {
        url: "http://u:secret@h".to_owned(),
        name: String::new(),
        accounts: Some("a".repeat(256)),
        prefetch: 0,
        cert: Some("/nowhere/cert.pem".into()),
        ..good.clone()
    };
    let wrong = bad.check();
    let keys: Vec<&str> = wrong.iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["url", "name", "accounts", "prefetch", "cert", "key"]);
    assert!(!wrong.join(" ").contains("secret"), "{wrong:?}");

    let cases = [
        ("amqp://h/", "url"),
        ("amqp://u@h/", "url"),
        ("amqp://:p@h/", "url"),
        ("amqp://u:p@/", "url"),
        ("amqp://u:p@:5672/", "url"),
        ("amqp://u:p@h:port/", "url"),
        ("amqp://u:p@h/?heartbeat=often", "url"),
        ("amqps://u:p@h/", "ca"),
        ("amqp://u:p@h/%00", "name"),
        ("nonsense", "url"),
    ];
    for (url, key) in cases {
        let wrong = RabbitConfig { url: url.to_owned(), ..good.clone() }.check();
        assert!(wrong.len() == 1 && wrong[0].starts_with(&format!("{key}: ")), "{url}: {wrong:?}");
    }
    let same = RabbitConfig { accounts: Some("t".to_owned()), ..good.clone() };
    assert_eq!(same.check(), ["accounts: must be another queue than name"]);
    let plain = RabbitConfig { ca: Some("/dev/null".into()), ..good };
    assert_eq!(plain.check(), ["ca: needs a url with amqps://"]);
}

#[test]
fn no_password_is_shown() {
    let cases = [
        ("amqp://u:secret@h:5672/v", "amqp://u:***@h:5672/v"),
        ("amqps://u:sec/r@et?@h", "amqps://u:***@h"),
        ("amqp://u@h", "amqp://u@h"),
        ("amqp://h/v", "amqp://h/v"),
        ("u:secret@h", "***@h"),
        ("nonsense", "nonsense"),
    ];
    for (url, shown) in cases {
        assert_eq!(redact(url), shown);
    }
    let config = RabbitConfig::new("amqp://u:secret@h/v", "t", RabbitKind::Stream);
    assert!(!format!("{config:?}").contains("secret"));
    let rabbit = open(config, decoder(), vec![], Committed::default(), Lags::default()).unwrap();
    assert!(!format!("{rabbit:?}").contains("secret"));
}

fn decoder() -> Decoder {
    Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: None }
}

#[test]
fn an_address_is_what_it_says() {
    let uri = address("amqp://u%40x:p%2F@[::1]:5673/a%2fb").unwrap();
    assert_eq!((uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()), ("::1", 5673, "a/b"));
    assert_eq!((uri.authority.userinfo.username.as_str(), uri.query.heartbeat), ("u@x", Some(HEARTBEAT_S)));
    assert_eq!(address("amqp://u:p@h?heartbeat=3").unwrap().query.heartbeat, Some(3));
    assert_eq!(partition(&uri, RabbitKind::Stream, "t").unwrap().as_str(), "rabbitmq:stream:a/b/t");
    let root = address("amqp://u:p@h").unwrap();
    assert_eq!(partition(&root, RabbitKind::Queue, "t").unwrap().as_str(), "rabbitmq:queue://t");
}

//! What each bad record gets, to the word; and that what is written reads back as it was.

use super::arrow::RowsAre;
use super::*;
use crate::Partition;
use crate::instrument::Instrument;
use arrow_array::cast::AsArray;
use arrow_array::*;
use arrow_schema::{DataType, Schema};
use proptest::prelude::*;

/// 2013-10-07T13:30:10Z
const RECEIVED: Nanos = 1_381_152_610 * SECOND;

fn decoder(max_ahead: Option<Nanos>) -> Decoder {
    let mut instruments = Instruments::default();
    let mut add = |symbol: &str, instrument| instruments.by_symbol.insert(Symbol::new(symbol).unwrap(), instrument);
    add("IBM", Instrument { scale: 2, tick_size: Price(1), ..Instrument::default() });
    add("CL", Instrument { scale: 2, tick_size: Price(1), allow_negative: true, ..Instrument::default() });
    add(
        "EURUSD",
        Instrument { scale: 5, tick_size: Price(1), price_source: PriceSource::Mid, ..Instrument::default() },
    );
    Decoder { instruments: Arc::new(instruments), base_timeframe: Timeframe::S1, max_ahead }
}

fn cursor() -> Cursor {
    Cursor { partition: Partition::new("test").unwrap(), offset: 40, row: 0 }
}

fn json(message: &[u8]) -> Decoded {
    let mut out = Decoded::default();
    json::decode(&decoder(Some(5 * SECOND)), message, cursor(), RECEIVED, &mut out);
    assert_eq!(out.len(), 1);
    out
}

fn account(message: &str) -> Decoded {
    let mut out = Decoded::default();
    json::decode_account(&decoder(Some(5 * SECOND)), message.as_bytes(), cursor(), RECEIVED, &mut out);
    assert_eq!(out.len(), 1);
    out
}

fn stream(message: &[u8]) -> Decoded {
    let mut out = Decoded::default();
    arrow::decode_stream(&decoder(None), message, cursor(), RECEIVED, &mut out);
    out
}

fn csv(file_name: &str, text: impl AsRef<[u8]>) -> Decoded {
    let mut out = Decoded::default();
    let partition = Partition::new(file_name).unwrap();
    let mut reader = csv::Reader::open(text.as_ref(), partition, file_name, None).unwrap();
    while reader.read(&decoder(None), 3, 0, &mut out).unwrap() {}
    out
}

/// Reason, field, value and detail of a reject, as one line.
fn line(reject: &DeadLetter) -> String {
    format!("{} | {} | {} | {}", reject.reason, reject.field, reject.value, reject.detail)
}

/// A trade in JSON: `change` names a member and the text that replaces its value.
fn trade(change: &[(&str, &str)]) -> String {
    let members = [
        ("kind", r#""trade""#),
        ("symbol", r#""IBM""#),
        ("event_time", r#""2013-10-07T13:30:00Z""#),
        ("seq", "17"),
        ("price", r#""181.90""#),
        ("size", r#""100""#),
    ];
    object(&members, change)
}

fn amend(change: &[(&str, &str)]) -> String {
    let members = [
        ("kind", r#""amend""#),
        ("symbol", r#""IBM""#),
        ("open_time", r#""2013-10-07T13:30:00Z""#),
        ("open", "181.9"),
        ("high", "182"),
        ("low", "181"),
        ("close", "181.5"),
        ("volume", "300"),
        ("turnover", "54500.5"),
        ("count", "3"),
    ];
    object(&members, change)
}

fn object(members: &[(&str, &str)], change: &[(&str, &str)]) -> String {
    let changed = |name: &str| change.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    let old = members.iter().map(|(name, value)| (*name, changed(name).unwrap_or(value)));
    let new = change.iter().filter(|(name, _)| !members.iter().any(|(n, _)| n == name)).copied();
    let text = old.chain(new).filter(|(_, v)| !v.is_empty()).map(|(n, v)| format!(r#""{n}":{v}"#));
    format!("{{{}}}", text.collect::<Vec<_>>().join(","))
}

/// Checks that each message is a reject with its bytes, and reads as the line says.
fn rejected<'a>(cases: impl IntoIterator<Item = (String, &'a str)>, decode: impl Fn(&str) -> Decoded) {
    for (message, expected) in cases {
        let out = decode(&message);
        assert_eq!(out.rejects.iter().map(line).collect::<Vec<_>>(), [expected], "{message}");
        let reject = &out.rejects[0];
        assert_eq!((reject.cursor, reject.original.as_slice(), out.unknown_fields), (cursor(), message.as_bytes(), 0));
        assert!(reject.value.len() <= 64);
    }
}

#[test]
fn a_good_trade_reads_in_every_spelling() {
    let plain = json(trade(&[]).as_bytes()).records.tick(0);
    assert_eq!(plain.event, Event::Trade { price: Price(18190), size: Size(10_000_000_000) });
    assert_eq!((plain.event_time, plain.seq), (1_381_152_600 * SECOND, 17));
    for change in [
        ("event_time", "1381152600000000000"),
        ("event_time", r#""1381152600000000000""#),
        ("event_time", r#""2013-10-07T15:30:00.000+02:00""#),
        ("seq", r#""17""#),
        ("price", "181.90"),
        ("price", "18190e-2"),
        ("price", r#""181.9000000000""#),
        ("size", "1e2"),
        ("symbol", r#""ibm""#),
        ("symbol", r#""\u0049BM""#),
        ("rev", "null"),
    ] {
        let out = json(trade(&[change]).as_bytes());
        assert_eq!(
            (out.records.iter().next().map(|r| r.tick).as_ref(), out.unknown_fields),
            (Some(&plain), 0),
            "{change:?}"
        );
    }
    let out = json(format!(" \n{} \n", trade(&[])).as_bytes());
    assert_eq!(out.records.tick(0), plain);
}

#[test]
fn unknown_fields_are_ignored_and_counted() {
    for change in [("venue", r#"{"id":[1,2]}"#), ("bid", "181.8"), ("rev", "2"), ("Price", "1")] {
        let out = json(trade(&[change]).as_bytes());
        assert_eq!((out.records.len(), out.unknown_fields), (1, 1), "{change:?}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(json(trade(&[("venue", &deep)]).as_bytes()).unknown_fields, 1);
    let out = csv("x.csv", "kind,symbol,event_time,seq,price,size,venue\ntrade,IBM,2013-10-07T13:30:00Z,1,2,3,N\n");
    assert_eq!((out.records.len(), out.unknown_fields), (1, 1));
}

#[test]
fn negative_prices_are_allowed_per_instrument() {
    for price in ["-37.63", "0"] {
        assert_eq!(json(trade(&[("symbol", r#""CL""#), ("price", price)]).as_bytes()).records.len(), 1);
    }
}

#[test]
fn every_bad_trade_gets_its_sentence() {
    let long = "A".repeat(257);
    let (quoted_long, cut) = (format!("\"{long}\""), "A".repeat(64));
    let long_symbol = format!("invalid | symbol | {cut} | symbol must be 1 to 32 of A-Z, 0-9, . _ / - :");
    let cases: Vec<(String, &str)> = vec![
        (
            trade(&[])[..60].to_owned(),
            r#"malformed |  | {"kind":"trade","symbol":"IBM","event_time":"2013-10-07T13:3 | not a JSON object: EOF while parsing a string at line 1 column 60"#,
        ),
        (String::new(), "malformed |  |  | not a JSON object: EOF while parsing a value at line 1 column 0"),
        (
            "[1]".to_owned(),
            "malformed |  | [1] | not a JSON object: invalid type: sequence, expected an object at line 1 column 0",
        ),
        ("{} {}".to_owned(), "malformed |  | {} {} | not a JSON object: trailing characters at line 1 column 4"),
        (
            trade(&[]).replace("\"seq\":17", "\"price\":\"5\""),
            "malformed | price | 181.90 | the key price appears twice",
        ),
        (trade(&[("a", "1,\"a\":2")]), "malformed | a | 2 | the key a appears twice"),
        (trade(&[("a", "1,\"\\u0061\":2")]), "malformed | a | 2 | the key a appears twice"),
        (trade(&[("kind", "")]), "missing | kind |  | a tick must have kind"),
        (trade(&[("symbol", "")]), "missing | symbol |  | a trade must have symbol"),
        (trade(&[("event_time", "")]), "missing | event_time |  | a trade must have event_time"),
        (trade(&[("seq", "null")]), "missing | seq |  | a trade must have seq"),
        (trade(&[("price", "")]), "missing | price |  | a trade must have price"),
        (trade(&[("size", "")]), "missing | size |  | a trade must have size"),
        (
            trade(&[("kind", "\"trades\"")]),
            "invalid | kind | trades | kind must be trade, quote, bust, correction or amend",
        ),
        (trade(&[("kind", "7")]), "invalid | kind | 7 | kind must be trade, quote, bust, correction or amend"),
        (
            trade(&[("price", "NaN")]),
            r#"malformed |  | {"kind":"trade","symbol":"IBM","event_time":"2013-10-07T13:30:00 | not a JSON object: expected value at line 1 column 85"#,
        ),
        (trade(&[("price", "\"NaN\"")]), "invalid | price | NaN | price must be a finite decimal number"),
        (trade(&[("price", "\"Inf\"")]), "invalid | price | Inf | price must be a finite decimal number"),
        (trade(&[("price", "\"-Infinity\"")]), "invalid | price | -Infinity | price must be a finite decimal number"),
        (trade(&[("price", "[1]")]), "invalid | price | [1] | price must be a finite decimal number"),
        (trade(&[("price", "true")]), "invalid | price | true | price must be a finite decimal number"),
        (trade(&[("price", "\"\"")]), "invalid | price |  | price must be a finite decimal number"),
        (trade(&[("price", "\"\\ud800\"")]), r#"invalid | price | "\ud800" | price must be a finite decimal number"#),
        (
            trade(&[("price", "\"181,90\"")]),
            "invalid | price | 181,90 | price must be a finite decimal number with a point, not a comma",
        ),
        (trade(&[("price", "0")]), "invalid | price | 0 | price must be positive"),
        (trade(&[("price", "-0.0")]), "invalid | price | -0.0 | price must be positive"),
        (trade(&[("price", "-1.5")]), "invalid | price | -1.5 | price must be positive"),
        (trade(&[("price", "1e400")]), "overflow | price | 1e400 | price must not exceed 92233720368547758.07"),
        (
            trade(&[("price", "92233720368547758.08")]),
            "overflow | price | 92233720368547758.08 | price must not exceed 92233720368547758.07",
        ),
        (trade(&[("price", "181.905")]), "invalid | price | 181.905 | price must not have more than 2 decimals"),
        (trade(&[("price", "1e-400")]), "invalid | price | 1e-400 | price must not have more than 2 decimals"),
        (trade(&[("size", "0")]), "invalid | size | 0 | size must be positive"),
        (trade(&[("size", "-5")]), "invalid | size | -5 | size must be positive"),
        (trade(&[("size", "1e11")]), "overflow | size | 1e11 | size must not exceed 92233720368.54775807"),
        (trade(&[("size", "0.000000001")]), "invalid | size | 0.000000001 | size must not have more than 8 decimals"),
        (trade(&[("seq", "-1")]), "invalid | seq | -1 | seq must be a whole number, not negative"),
        (trade(&[("seq", "1.0")]), "invalid | seq | 1.0 | seq must be a whole number, not negative"),
        (
            trade(&[("seq", "18446744073709551616")]),
            "overflow | seq | 18446744073709551616 | seq must not exceed 18446744073709551615",
        ),
        (
            trade(&[("event_time", "1381152600")]),
            "event_time | event_time | 1381152600 | event_time is before 1990: it looks like seconds, and must be nanoseconds",
        ),
        (
            trade(&[("event_time", "1381152600123")]),
            "event_time | event_time | 1381152600123 | event_time is before 1990: it looks like milliseconds, and must be nanoseconds",
        ),
        (
            trade(&[("event_time", "\"1381152600123456\"")]),
            "event_time | event_time | 1381152600123456 | event_time is before 1990: it looks like microseconds, and must be nanoseconds",
        ),
        (trade(&[("event_time", "0")]), "event_time | event_time | 0 | event_time is before 1990"),
        (
            trade(&[("event_time", "-9999999999999999999999999999999999999999")]),
            "event_time | event_time | -9999999999999999999999999999999999999999 | event_time is before 1990",
        ),
        (
            trade(&[("event_time", "\"1989-12-31T23:59:59.999999999Z\"")]),
            "event_time | event_time | 1989-12-31T23:59:59.999999999Z | event_time is before 1990",
        ),
        (
            trade(&[("event_time", "\"2200-01-01T00:00:00Z\"")]),
            "event_time | event_time | 2200-01-01T00:00:00Z | event_time is not before 2200",
        ),
        (
            trade(&[("event_time", "13811526000000000000")]),
            "event_time | event_time | 13811526000000000000 | event_time is not before 2200",
        ),
        (
            trade(&[("event_time", "\"2013-10-07T13:30:15.000000001Z\"")]),
            "event_time | event_time | 2013-10-07T13:30:15.000000001Z | event_time is 5.000000001 s ahead of its receipt, more than 5 s",
        ),
        (
            trade(&[("event_time", "\"2013-10-07T13:30:00\"")]),
            "invalid | event_time | 2013-10-07T13:30:00 | event_time must be RFC 3339 with a zone, or whole nanoseconds since 1970",
        ),
        (
            trade(&[("event_time", "1381152600.5")]),
            "invalid | event_time | 1381152600.5 | event_time must be RFC 3339 with a zone, or whole nanoseconds since 1970",
        ),
        (trade(&[("symbol", "\"\"")]), "invalid | symbol |  | symbol must be 1 to 32 of A-Z, 0-9, . _ / - :"),
        (trade(&[("symbol", &quoted_long)]), &long_symbol),
        (
            trade(&[("symbol", "\"A\\u0000B\"")]),
            r"invalid | symbol | A\u{0}B | symbol must be 1 to 32 of A-Z, 0-9, . _ / - :",
        ),
        (trade(&[("symbol", "\"A\\tB\"")]), r"invalid | symbol | A\tB | symbol must be 1 to 32 of A-Z, 0-9, . _ / - :"),
        (trade(&[("symbol", "5")]), "invalid | symbol | 5 | symbol must be 1 to 32 of A-Z, 0-9, . _ / - :"),
    ];
    rejected(cases, |message| json(message.as_bytes()));
    let raw = b"{\"kind\":\"\xff\"}";
    let out = json(raw);
    assert_eq!(line(&out.rejects[0]), "malformed |  | {\"kind\":\"\u{fffd}\"} | not UTF-8 from byte 9");
    assert_eq!(out.rejects[0].original, raw);
    let control = trade(&[("symbol", "\"A\u{1}B\"")]);
    assert_eq!(
        json(control.as_bytes()).rejects[0].detail,
        "not a JSON object: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 27"
    );
}

#[test]
fn a_time_ahead_is_for_files_no_fault() {
    let mut out = Decoded::default();
    let message = trade(&[("event_time", "\"2093-10-07T13:30:00Z\"")]);
    json::decode(&decoder(None), message.as_bytes(), cursor(), RECEIVED, &mut out);
    assert_eq!(out.records.len(), 1);
}

#[test]
fn every_bad_quote_correction_and_bust_gets_its_sentence() {
    let quote = |change: &[(&str, &str)]| {
        let members = [
            ("kind", r#""quote""#),
            ("symbol", r#""EURUSD""#),
            ("event_time", r#""2013-10-07T13:30:00Z""#),
            ("seq", "17"),
            ("bid", "1.38712"),
            ("ask", "1.38714"),
        ];
        object(&members, change)
    };
    let out = json(quote(&[("bid_size", "null"), ("ask_size", "0")]).as_bytes());
    let crossed = json(quote(&[("ask", "1.38")]).as_bytes());
    assert_eq!((out.records.len(), crossed.records.len()), (1, 1));
    rejected(
        [
            (quote(&[("ask", "")]), "missing | ask |  | a quote must have ask"),
            (quote(&[("bid", "0")]), "invalid | bid | 0 | bid must be positive"),
            (quote(&[("bid", "1.387123")]), "invalid | bid | 1.387123 | bid must not have more than 5 decimals"),
            (quote(&[("bid_size", "-1")]), "invalid | bid_size | -1 | bid_size must not be negative"),
            (
                quote(&[("bid", "92233720368547.7"), ("ask", "92233720368547.7")]),
                "overflow | bid | 92233720368547.7 | the mean of bid and ask is too large for its bars",
            ),
            (
                trade(&[("kind", "\"correction\""), ("rev", "4294967296")]),
                "overflow | rev | 4294967296 | rev must not exceed 4294967295",
            ),
            (trade(&[("kind", "\"correction\""), ("price", "")]), "missing | price |  | a correction must have price"),
            (trade(&[("kind", "\"bust\""), ("seq", "")]), "missing | seq |  | a bust must have seq"),
        ],
        |message| json(message.as_bytes()),
    );
    let out = json(trade(&[("kind", "\"correction\"")]).as_bytes());
    assert!(matches!(out.records.event(0), Event::Correction { rev: 1, .. }));
}

#[test]
fn every_bad_amend_gets_its_sentence() {
    let good = json(amend(&[]).as_bytes()).records.tick(0);
    let bar = BarBody {
        open: Price(18190),
        high: Price(18200),
        low: Price(18100),
        close: Price(18150),
        volume: 30_000_000_000,
        turnover: 545_005_000_000_000,
        count: 3,
    };
    assert_eq!(good.event, Event::Amend(Box::new(Amend { rev: 1, bar: Some(bar) })));
    assert_eq!((good.event_time, good.seq), (1_381_152_600 * SECOND, 0));
    let same = [("event_time", r#""2013-10-07T13:30:00Z""#), ("seq", "0"), ("timeframe", "\"1s\"")];
    assert_eq!(json(amend(&same).as_bytes()).records.tick(0), good);
    let gone = BAR_FIELDS.map(|field| (field.name(), ""));
    let deleted = [&gone[..], &[("deleted", "true"), ("rev", "3")]].concat();
    let event = json(amend(&deleted).as_bytes()).records.event(0);
    assert_eq!(event, Event::Amend(Box::new(Amend { rev: 3, bar: None })));
    let of_mids = [("symbol", "\"EURUSD\""), ("open", "181.123456"), ("volume", "0"), ("turnover", "")];
    assert_eq!(json(amend(&of_mids).as_bytes()).records.len(), 1);
    rejected(
        [
            (amend(&[("open_time", "")]), "missing | open_time |  | an amend must have open_time"),
            (
                amend(&[("event_time", "\"2013-10-07T13:30:01Z\"")]),
                "invalid | event_time | 2013-10-07T13:30:01Z | event_time must equal open_time in an amend",
            ),
            (
                amend(&[("open_time", "\"2013-10-07T13:30:00.5Z\"")]),
                "invalid | open_time | 2013-10-07T13:30:00.5Z | open_time must be a multiple of 1s, the base timeframe",
            ),
            (
                amend(&[("timeframe", "\"1m\"")]),
                "invalid | timeframe | 1m | timeframe must be 1s, the base timeframe, or absent",
            ),
            (amend(&[("seq", "4")]), "invalid | seq | 4 | seq must be 0 or absent in an amend"),
            (amend(&[("deleted", "1")]), "invalid | deleted | 1 | deleted must be true or false"),
            (amend(&[("deleted", "true")]), "invalid | open | 181.9 | open must be absent where deleted is true"),
            (amend(&[("close", "")]), "missing | close |  | an amend must have close"),
            (amend(&[("high", "181.6")]), "invalid | high | 181.6 | high must not be below open or close"),
            (amend(&[("low", "181.6")]), "invalid | low | 181.6 | low must not be above open or close"),
            (amend(&[("volume", "")]), "missing | volume |  | an amend must have volume"),
            (amend(&[("volume", "-1")]), "invalid | volume | -1 | volume must not be negative"),
            (amend(&[("turnover", "")]), "missing | turnover |  | an amend must have turnover"),
            (amend(&[("turnover", "-1")]), "invalid | turnover | -1 | turnover must not be negative"),
            (amend(&[("volume", "0")]), "invalid | turnover | 54500.5 | turnover must be 0 where volume is 0"),
            (
                amend(&[("turnover", "1e30")]),
                "overflow | turnover | 1e30 | turnover must not exceed 16225927682921336339157.8010288127",
            ),
            (
                amend(&[("turnover", "1.00000000001")]),
                "invalid | turnover | 1.00000000001 | turnover must not have more than 10 decimals",
            ),
            (amend(&[("count", "0")]), "invalid | count | 0 | count must be positive: a bar without ticks is deleted"),
            (
                amend(&[("symbol", "\"EURUSD\"")]),
                "invalid | volume | 300 | volume must be 0 or absent: the bars of this instrument are of quotes",
            ),
        ],
        |message| json(message.as_bytes()),
    );
}

#[test]
fn every_bad_account_gets_its_sentence() {
    let snapshot = |change: &[(&str, &str)]| {
        let members = [
            ("account", r#""M1""#),
            ("event_time", r#""2013-10-07T13:30:00Z""#),
            ("seq", "1"),
            ("equity", "10000"),
            ("balance", r#""9999.5""#),
            ("currency", r#""USD""#),
            ("positions", r#"[{"symbol":"IBM","side":"short","lots":0.5},{"symbol":"AIG","side":1,"lots":"2"}]"#),
        ];
        object(&members, change)
    };
    let out = account(&snapshot(&[]));
    let good = &out.accounts[0].1;
    let sides: Vec<_> = good.positions.iter().map(|p| (p.symbol.as_str(), p.side, p.lots.0)).collect();
    assert_eq!(sides, [("AIG", 1, 200_000_000), ("IBM", -1, 50_000_000)]);
    assert_eq!(account(&String::from_utf8(json::encode_account(good)).unwrap()).accounts[0].1, *good);
    assert_eq!(account(&snapshot(&[("equity", "-3"), ("positions", "[]")])).accounts.len(), 1);
    for extra in [("name", "1"), ("positions", r#"[{"symbol":"IBM","side":"long","lots":1,"swap":0}]"#)] {
        assert_eq!(account(&snapshot(&[extra])).unknown_fields, 1);
    }
    rejected(
        [
            (snapshot(&[("equity", "")]), "missing | equity |  | an account snapshot must have equity"),
            (
                snapshot(&[("account", "\"A/B\"")]),
                "invalid | account | A/B | account must be 1 to 64 of letters, digits, . _ - @ :",
            ),
            (
                snapshot(&[("event_time", "1381152600")]),
                "event_time | event_time | 1381152600 | event_time is before 1990: it looks like seconds, and must be nanoseconds",
            ),
            (
                snapshot(&[("equity", "\"5,0\"")]),
                "invalid | equity | 5,0 | equity must be a finite decimal number with a point, not a comma",
            ),
            (
                snapshot(&[("balance", "1e400")]),
                "overflow | balance | 1e400 | balance must not exceed 92233720368.54775807",
            ),
            (
                snapshot(&[("currency", "\"usd\"")]),
                "invalid | currency | usd | currency must be three upper-case letters",
            ),
            (snapshot(&[("positions", "{}")]), "invalid | positions | {} | positions must be a list"),
            (
                snapshot(&[("positions", "[5]")]),
                "malformed | positions[0] | 5 | not a JSON object: invalid type: integer `5`, expected an object at line 1 column 1",
            ),
            (
                snapshot(&[("positions", r#"[{"symbol":"IBM","side":"buy","lots":1}]"#)]),
                "invalid | positions[0].side | buy | positions[0].side must be long or short",
            ),
            (
                snapshot(&[("positions", r#"[{"symbol":"IBM","side":"long","lots":0}]"#)]),
                "invalid | positions[0].lots | 0 | positions[0].lots must be positive",
            ),
            (
                snapshot(&[("positions", r#"[{"symbol":"IBM","side":"long"}]"#)]),
                "missing | positions[0].lots |  | a position must have positions[0].lots",
            ),
            (
                snapshot(&[("positions", r#"[{"symbol":"I M","side":"long","lots":1}]"#)]),
                "invalid | positions[0].symbol | I M | symbol must be 1 to 32 of A-Z, 0-9, . _ / - :",
            ),
            (
                snapshot(&[(
                    "positions",
                    r#"[{"symbol":"IBM","side":"long","lots":1},{"symbol":"ibm","side":"short","lots":1}]"#,
                )]),
                "invalid | positions | IBM | positions must be at most one a symbol",
            ),
        ],
        account,
    );
}

#[test]
fn every_bad_line_is_a_reject_with_its_row() {
    let header = "event_time,symbol,seq,kind,price,size,bid,ask,bid_size,ask_size";
    let good = "2013-10-07T13:30:00Z,IBM,1,trade,181.90,100,,,,";
    let file = [
        header,
        good,
        "2013-10-07T13:30:00Z,IBM,2,trade,181.90,100,,,",
        "2013-10-07T13:30:00Z,IBM,3,trade,181,90,100,,,,",
        "2013-10-07T13:30:00Z,IBM,4,trade,\"181,90\",100,,,,",
        "",
        "\u{feff}2013-10-07T13:30:00Z,IBM,5,trade,181.90,100,,,,",
        "2013-10-07T13:30:00Z,IBM,6,trade,,100,,,,",
        "2013-10-07T13:30:00Z,IBM,7,\"trade,181.90,100,,,,",
        "2013-10-07T13:30:00Z,IBM,8,\"trade\"x,181.90,100,,,,",
        "2013-10-07T13:30:00Z,\"IBM\",9,\"trade\",\"181.90\",100,,,,",
    ];
    let text = file.join("\r\n");
    let out = csv("ticks.csv", &text);
    let rows: Vec<_> = out.records.iter().map(|r| r.cursor.offset).collect();
    assert_eq!(rows, [1, 10]);
    let lines: Vec<_> = out.rejects.iter().map(|r| format!("{} {}", r.cursor.offset, line(r))).collect();
    assert_eq!(
        lines,
        [
            "2 malformed |  | 2013-10-07T13:30:00Z,IBM,2,trade,181.90,100,,, | has 9 columns instead of 10",
            "3 malformed |  | 2013-10-07T13:30:00Z,IBM,3,trade,181,90,100,,,, | has 11 columns instead of 10 (a decimal comma?)",
            "4 invalid | price | 181,90 | price must be a finite decimal number with a point, not a comma",
            "6 malformed |  | \u{feff}2013-10-07T13:30:00Z,IBM,5,trade,181.90,100,,,, | begins with a byte order mark (EF BB BF)",
            "7 missing | price |  | a trade must have price",
            "8 malformed |  | 2013-10-07T13:30:00Z,IBM,7,\"trade,181.90,100,,,, | has a quote that is not closed",
            "9 malformed |  | 2013-10-07T13:30:00Z,IBM,8,\"trade\"x,181.90,100,,,, | has text after a closing quote",
        ]
    );
    for reject in &out.rejects {
        assert_eq!(reject.original, file[reject.cursor.offset as usize].as_bytes());
    }
    // A mark before the header makes a reject of it, and of nothing else.
    let out = csv("ticks.csv", format!("\u{feff}{header}\n{good}\n"));
    assert_eq!((out.records.len(), out.rejects.len(), out.rejects[0].cursor.offset), (1, 1, 0));
    let mut bytes = format!("{header}\n").into_bytes();
    bytes.extend_from_slice(b"2013-10-07T13:30:00Z,I\xffM,1,trade,181.90,100,,,,");
    assert_eq!(csv("ticks.csv", &bytes).rejects[0].detail, "not UTF-8 from byte 22");
    let out = csv("ticks.csv", format!("{header}\n{}\n{good}", "x".repeat(3 * csv::LONGEST_LINE)));
    assert_eq!((out.records.len(), out.rejects[0].detail.as_str()), (1, "longer than 1048576 bytes"));
    assert_eq!(out.rejects[0].original.len(), csv::LONGEST_LINE);
}

#[test]
fn public_files_read_by_their_first_line_or_name() {
    let trades = "5,7.2,0.5,3.6,1704067200123,true,true\n6,7.3,0.5,3.65,1735689600123456,False,true\n";
    let header = "id,price,qty,quote_qty,time,is_buyer_maker\n5,7.2,0.5,3.6,1704067200123,true\n";
    let agg = "9,7.2,0.5,5,6,1704067200123,true,true\n";
    let agg_header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n9,7.2,0.5,5,6,1704067200123,true\n";
    let truefx = "EUR/USD,20140505 00:00:00.123,1.38712,1.38714\nEUR/USD,20140505 00:00:01,1.38712,1.38714\n";
    for (name, text, format, rows) in [
        ("BTCUSDT-trades-2024-01-01.csv", trades, csv::Format::BinanceTrades, 2),
        ("btcusdt.csv", trades, csv::Format::BinanceTrades, 2),
        ("BTCUSDT-trades-2024-01-01.csv", header, csv::Format::BinanceTrades, 1),
        ("dir/BTCUSDT-aggTrades-2024-01-01.csv", agg, csv::Format::BinanceAggTrades, 1),
        ("BTCUSDT-x.csv", agg_header, csv::Format::BinanceAggTrades, 1),
        ("whatever.csv", truefx, csv::Format::TrueFx, 2),
    ] {
        let first = text.lines().next().unwrap();
        assert_eq!(csv::detect(first.as_bytes(), name), Some(format), "{name} {first}");
        let out = csv(name, text);
        assert_eq!((out.records.len(), out.rejects.len(), out.unknown_fields), (rows, 0, 0), "{name} {first}");
        let tick = &out.records.tick(0);
        let expected = match format {
            csv::Format::TrueFx => ("EUR/USD", "2014-05-05T00:00:00.123000000Z", 1),
            csv::Format::BinanceAggTrades => ("BTCUSDT", "2024-01-01T00:00:00.123000000Z", 9),
            _ => ("BTCUSDT", "2024-01-01T00:00:00.123000000Z", 5),
        };
        assert_eq!((tick.symbol.as_str(), &*format_rfc3339(tick.event_time), tick.seq), expected);
        assert_eq!(format.as_str().parse::<csv::Format>().unwrap(), format);
    }
    let micros = csv("BTCUSDT-trades-2025-01-01.csv", trades);
    assert_eq!(format_rfc3339(micros.records.event_times()[1]), "2025-01-01T00:00:00.123456000Z");
}

#[test]
fn every_bad_line_of_a_public_file_gets_its_sentence() {
    let cases = [
        (
            "5,7,2,0.5,3.6,1704067200123,true,true",
            "malformed |  | 5,7,2,0.5,3.6,1704067200123,true,true | has 8 columns instead of 6 or 7 (a decimal comma?)",
        ),
        (
            "5,7,2,0.5,3.6,1704067200123,true",
            "invalid | is_buyer_maker | 1704067200123 | is_buyer_maker must be true or false",
        ),
        (
            "5,7.2,0.5,3.6,1704067200,true,true",
            "event_time | time | 1704067200 | time is no time from 1990 to 2199 in milliseconds or microseconds",
        ),
        ("5,7.2,0.5,3.6,x,true,true", "invalid | time | x | time must be milliseconds or microseconds since 1970"),
        ("5,7.2,0,3.6,1704067200123,true,true", "invalid | qty | 0 | qty must be positive"),
        ("x,7.2,1,3.6,1704067200123,true,true", "invalid | id | x | id must be a whole number, not negative"),
        (",7.2,1,3.6,1704067200123,true,true", "missing | id |  | a trade must have id"),
    ];
    for (text, expected) in cases {
        let out = csv("BTCUSDT-trades-2024-01-01.csv", text);
        assert_eq!(out.rejects.iter().map(line).collect::<Vec<_>>(), [expected]);
    }
    let truefx = "EUR/USD,20140505 00:00:00.123,1.38712,1.38714\n";
    for (text, expected) in [
        (
            "EUR/USD,20140532 00:00:00.123,1.38712,1.38714",
            "invalid | event_time | 20140532 00:00:00.123 | event_time must be as in 20140505 00:00:00.123",
        ),
        (
            "EUR/USD,20140505 00:00:00.,1.38712,1.38714",
            "invalid | event_time | 20140505 00:00:00. | event_time must be as in 20140505 00:00:00.123",
        ),
        ("EUR/USD,20140505 00:00:00.123,1.38712,-1", "invalid | ask | -1 | ask must be positive"),
        (
            "EUR/USD,20140505 00:00:00.123,1.38712",
            "malformed |  | EUR/USD,20140505 00:00:00.123,1.38712 | has 3 columns instead of 4",
        ),
    ] {
        let out = csv("x.csv", format!("{truefx}{text}"));
        assert_eq!(out.rejects.iter().map(line).collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn a_file_that_is_none_of_ours_does_not_open() {
    let open = |name: &str, text: &'static str, format| {
        let reader = csv::Reader::open(text.as_bytes(), Partition::new("f").unwrap(), name, format);
        reader.map(|r| r.format()).map_err(|e| e.to_string())
    };
    for (name, text, format, expected) in [
        ("a.csv", "time;price\n", None, "not a known CSV format: \"a.csv\" begins with \"time;price\""),
        (
            "-trades-2024.csv",
            "5,7.2,0.5,3.6,1704067200123,true,true",
            None,
            "no symbol in the file name \"-trades-2024.csv\": it must begin with one, as in BTCUSDT-trades-2024-01-01.csv",
        ),
        ("a.csv", "kind,symbol,event_time\n", Some(csv::Format::Marea), "the header has no column seq"),
        ("a.csv", "kind,symbol,event_time,seq,seq\n", None, "the header has two columns seq"),
    ] {
        assert_eq!(open(name, text, format), Err(expected.to_owned()));
    }
    assert_eq!(open("a.csv", "", None), Ok(csv::Format::Marea));
    let error = "excel".parse::<csv::Format>().unwrap_err().to_string();
    assert_eq!(error, "format \"excel\" is none of marea, binance_trades, binance_agg_trades, truefx");
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn base_columns() -> Vec<(&'static str, ArrayRef)> {
    let time = TimestampNanosecondArray::from(vec![1_381_152_600 * SECOND; 2]).with_timezone("UTC");
    vec![
        ("event_time", Arc::new(time)),
        ("symbol", Arc::new(StringArray::from(vec!["IBM", "IBM"]))),
        ("seq", Arc::new(UInt64Array::from(vec![1, 2]))),
        ("kind", Arc::new(StringArray::from(vec!["trade", "trade"]))),
        ("price", Arc::new(Float64Array::from(vec![181.9, 182.01]))),
        ("size", Arc::new(Float64Array::from(vec![100.0, 0.5]))),
    ]
}

fn with(name: &'static str, array: ArrayRef) -> RecordBatch {
    let mut columns = base_columns();
    columns.retain(|(n, _)| *n != name);
    columns.insert(0, (name, array));
    batch(columns)
}

fn rows(batch: &RecordBatch) -> Decoded {
    let mut out = Decoded::default();
    arrow::decode_batch(&decoder(None), batch, cursor(), RowsAre::Offsets, 0, &mut out);
    out
}

#[test]
fn arrow_columns_read_in_every_type() {
    let first = |records: &Ticks, n: usize| records.iter().take(n).collect::<Vec<_>>();
    let plain = rows(&batch(base_columns()));
    assert_eq!((plain.records.len(), plain.unknown_fields), (2, 0));
    assert_eq!(plain.records.cursor(1).offset, 41);
    let second = 1_381_152_600;
    let dictionary: DictionaryArray<types::Int8Type> = vec!["IBM", "IBM"].into_iter().collect();
    let arrays: Vec<(&str, ArrayRef)> = vec![
        ("symbol", Arc::new(LargeStringArray::from(vec!["IBM", "ibm"]))),
        ("symbol", Arc::new(StringViewArray::from(vec!["IBM", "IBM"]))),
        ("symbol", Arc::new(dictionary)),
        ("event_time", Arc::new(TimestampSecondArray::from(vec![second; 2]).with_timezone("+00:00"))),
        ("event_time", Arc::new(TimestampMillisecondArray::from(vec![second * 1000; 2]).with_timezone("UTC"))),
        ("event_time", Arc::new(TimestampMicrosecondArray::from(vec![second * 1_000_000; 2]).with_timezone("UTC"))),
        ("event_time", Arc::new(Int64Array::from(vec![second * SECOND; 2]))),
        ("event_time", Arc::new(StringArray::from(vec!["2013-10-07T13:30:00Z"; 2]))),
        ("seq", Arc::new(Int64Array::from(vec![1, 2]))),
        ("seq", Arc::new(UInt32Array::from(vec![1, 2]))),
        ("seq", Arc::new(Int32Array::from(vec![1, 2]))),
        ("price", Arc::new(StringArray::from(vec!["181.90", "182.01"]))),
        ("price", Arc::new(Decimal128Array::from(vec![1819, 1820]).with_precision_and_scale(10, 1).unwrap())),
        ("size", Arc::new(StringArray::from(vec!["100", "0.5"]))),
        ("bid", Arc::new(NullArray::new(2))),
    ];
    for (name, array) in arrays {
        let data_type = array.data_type().clone();
        let out = rows(&with(name, array));
        // Tenths cannot say 182.01.
        let same = if matches!(data_type, DataType::Decimal128(..)) { 1 } else { 2 };
        assert_eq!((out.rejects.len(), out.unknown_fields), (0, 0), "{name} {data_type}");
        assert_eq!(first(&out.records, same), first(&plain.records, same), "{name} {data_type}");
    }
    let whole = rows(&with("price", Arc::new(Int64Array::from(vec![181, 182]))));
    assert!(matches!(whole.records.event(0), Event::Trade { price: Price(18100), .. }));
    let counted = rows(&with("venue", Arc::new(Int64Array::from(vec![1, 2]))));
    assert_eq!((counted.records.len(), counted.unknown_fields), (2, 2));
    let counted = rows(&with("bid", Arc::new(Float64Array::from(vec![Some(1.0), None]))));
    assert_eq!((counted.records.len(), counted.unknown_fields), (2, 1));
}

#[test]
fn every_bad_row_of_a_batch_gets_its_sentence() {
    let time = |count| Arc::new(TimestampNanosecondArray::from(vec![count; 2]).with_timezone("UTC"));
    let cases: Vec<(RecordBatch, &str)> = vec![
        (
            with("price", Arc::new(Float64Array::from(vec![f64::NAN, 182.01]))),
            "invalid | price | NaN | price must be a finite decimal number",
        ),
        (
            with("price", Arc::new(Float64Array::from(vec![f64::INFINITY, 182.01]))),
            "invalid | price | inf | price must be a finite decimal number",
        ),
        (
            with("price", Arc::new(Float64Array::from(vec![-1.0, 182.01]))),
            "invalid | price | -1 | price must be positive",
        ),
        (
            with("price", Arc::new(Float64Array::from(vec![1e300, 182.01]))),
            "overflow | price | 1000000000000000000000000000000000000000000000000000000000000000 | price must not exceed 92233720368547758.07",
        ),
        (
            with("price", Arc::new(Float64Array::from(vec![Some(0.1 + 0.2), Some(1.0)]))),
            "invalid | price | 0.30000000000000004 | price must not have more than 2 decimals",
        ),
        (
            with("price", Arc::new(Float64Array::from(vec![None, Some(1.0)]))),
            "missing | price |  | a trade must have price",
        ),
        (
            with("kind", Arc::new(StringArray::from(vec![None, Some("trade")]))),
            "missing | kind |  | a tick must have kind",
        ),
        (
            with("seq", Arc::new(Int64Array::from(vec![-1, 2]))),
            "invalid | seq | -1 | seq must be a whole number, not negative",
        ),
    ];
    for (batch, expected) in cases {
        let out = rows(&batch);
        assert_eq!(out.rejects.iter().map(line).collect::<Vec<_>>(), [expected]);
        assert_eq!((out.records.len(), out.rejects[0].cursor, out.records.cursor(0).offset), (1, cursor(), 41));
    }
    let out = rows(&with("event_time", time(1_381_152_600)));
    let expected = "event_time | event_time | 1970-01-01T00:00:01.381152600Z | event_time is before 1990: it looks like seconds, and must be nanoseconds";
    assert_eq!(out.rejects.iter().map(line).collect::<Vec<_>>(), [expected; 2]);
    assert_eq!(
        String::from_utf8(out.rejects[1].original.clone()).unwrap(),
        r#"{"event_time":"1970-01-01T00:00:01.381152600Z","kind":"trade","price":"182.01","seq":2,"size":"0.5","symbol":"IBM"}"#
    );
}

#[test]
fn another_schema_is_one_reject() {
    let price = |array: ArrayRef| with("price", array);
    let naive = Arc::new(TimestampNanosecondArray::from(vec![RECEIVED; 2]));
    let mut twice = base_columns();
    twice.push(("price", Arc::new(Float64Array::from(vec![1.0, 2.0]))));
    let missing = base_columns().into_iter().filter(|(name, _)| *name != "seq").collect();
    for (batch, expected) in [
        (batch(missing), "schema | seq |  | has no column seq"),
        (batch(twice), "schema | price |  | has two columns price"),
        (
            price(Arc::new(Float32Array::from(vec![1.0, 2.0]))),
            "schema | price | Float32 | the column price is Float32, and must be Float64, Decimal128, an integer or a text",
        ),
        (
            with("event_time", naive),
            "schema | event_time | Timestamp(ns) | the column event_time is Timestamp(ns), and must be a Timestamp with a time zone, Int64 nanoseconds, or a text",
        ),
        (
            with("seq", Arc::new(Float64Array::from(vec![1.0, 2.0]))),
            "schema | seq | Float64 | the column seq is Float64, and must be Int32, Int64, UInt32 or UInt64",
        ),
        (
            with("kind", Arc::new(Int64Array::from(vec![1, 2]))),
            "schema | kind | Int64 | the column kind is Int64, and must be a text",
        ),
    ] {
        let out = rows(&batch);
        assert_eq!(
            (out.records.len(), out.rejects.iter().map(line).collect::<Vec<_>>()),
            (0, vec![expected.to_owned()])
        );
        let message = write(std::slice::from_ref(&batch));
        let out = stream(&message);
        assert_eq!(
            (out.records.len(), out.rejects.iter().map(line).collect::<Vec<_>>()),
            (0, vec![expected.to_owned()])
        );
        assert_eq!(out.rejects[0].original, message);
    }
    let out = rows(&with("seq", Arc::new(BooleanArray::from(vec![true, false]))));
    let original = String::from_utf8(out.rejects[0].original.clone()).unwrap();
    assert!(
        original.starts_with(r#"{"rows":2,"schema":{"event_time":"#) && original.contains(r#""seq":"Boolean""#),
        "{original}"
    );
}

fn write(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), batches[0].schema_ref()).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.into_inner().unwrap()
}

#[test]
fn a_stream_reads_whole_or_not_at_all() {
    let one = batch(base_columns());
    let message = write(&[one.clone(), one.clone()]);
    let out = stream(&message);
    let places: Vec<_> = out.records.iter().map(|r| (r.cursor.offset, r.cursor.row)).collect();
    assert_eq!(places, [(40, 0), (40, 1), (40, 2), (40, 3)]);
    // A stream may end without its end mark.
    assert_eq!(stream(&message[..message.len() - 8]).records.len(), 4);
    for length in 0..message.len() - 8 {
        let out = stream(&message[..length]);
        let whole_batches = out.records.len().is_multiple_of(2) && out.rejects.is_empty();
        let nothing_but_one_reject = out.records.is_empty() && out.rejects.len() == 1;
        assert!(whole_batches || nothing_but_one_reject, "{length}");
    }
    let detail = |message: &[u8]| {
        let out = stream(message);
        assert_eq!((out.records.len(), out.rejects.len(), out.rejects[0].original.as_slice()), (0, 1, message));
        line(&out.rejects[0])
            .split(" | ")
            .enumerate()
            .filter(|(i, _)| *i != 2)
            .map(|(_, t)| t.to_owned())
            .collect::<Vec<_>>()
            .join(" | ")
    };
    assert_eq!(detail(b""), "malformed |  | has no Arrow schema");
    let schema_only =
        arrow_ipc::writer::StreamWriter::try_new(Vec::new(), one.schema_ref()).unwrap().into_inner().unwrap();
    assert_eq!(detail(&schema_only), "malformed |  | has no record batch");
    assert_eq!(detail(&message[..message.len() - 20]), "malformed |  | ends in the middle of a message");
    assert_eq!(detail(&[&message[..], b"x"].concat()), "malformed |  | has bytes after the end of its stream");
    assert_eq!(detail(trade(&[]).as_bytes()), "malformed |  | not an Arrow message");
    assert_eq!(
        detail(&[255, 255, 255, 255, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        "malformed |  | not an Arrow message"
    );

    let file = {
        let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), one.schema_ref()).unwrap();
        writer.write(&one).unwrap();
        writer.into_inner().unwrap()
    };
    assert_eq!(stream(&file).records.len(), 2);
    let (mut reader, mut out) = (arrow::BatchReader::new(file.as_slice()), Decoded::default());
    let mut next = |out: &mut Decoded| reader.decode_next(&decoder(None), cursor(), RowsAre::Offsets, 0, out).unwrap();
    assert_eq!((next(&mut out), next(&mut out), out.records.len()), (Some(2), None, 2));
}

#[test]
fn broken_offsets_are_one_reject() {
    let message = write(&[batch(base_columns())]);
    let offsets = [0_i32, 3, 6].map(i32::to_le_bytes).concat();
    let at = message.windows(12).position(|w| w == offsets).unwrap();
    for (broken, expected) in [
        ([0, 3, 1000], "Last offset 1000 of Utf8 is larger than values length 6"),
        ([0, 5, 3], "Offset invariant failure: non-monotonic offset at slot 1: 5 > 3"),
        ([0, -3, 6], "Offset invariant failure: Could not convert offset -3 to usize at position 1"),
    ] {
        let mut message = message.clone();
        message[at..at + 12].copy_from_slice(&broken.map(i32::to_le_bytes).concat());
        let out = stream(&message);
        assert_eq!((out.records.len(), out.rejects.len()), (0, 1));
        assert_eq!((out.rejects[0].reason, &*out.rejects[0].field), (Reason::Malformed, ""));
        let detail = &out.rejects[0].detail;
        assert!(detail.starts_with("has a broken record batch: ") && detail.contains(expected), "{detail}");
    }
}

/// Ours and others, of flat and nested types.
fn any_columns() -> RecordBatch {
    let dictionary: DictionaryArray<types::Int32Type> = vec![Some("IBM"), None].into_iter().collect();
    let mut list = builder::ListBuilder::new(builder::StringBuilder::new());
    list.append_value([Some("x")]);
    list.append_null();
    let mut columns = base_columns();
    columns.retain(|(name, _)| *name != "symbol" && *name != "kind");
    let kind = StringViewArray::from(vec!["trade", "a text too long to stand in its view"]);
    let other: DictionaryArray<types::Int8Type> = vec!["a", "b"].into_iter().collect();
    columns.insert(0, ("conditions", Arc::new(list.finish())));
    columns.push(("symbol", Arc::new(dictionary)));
    columns.push(("kind", Arc::new(kind)));
    columns.push(("venue", Arc::new(other)));
    columns.push(("nothing", Arc::new(NullArray::new(2))));
    batch(columns)
}

#[test]
fn no_damaged_byte_of_a_stream_panics() {
    for message in [write(&[batch(base_columns())]), write(&[any_columns()])] {
        for at in 0..message.len() {
            for byte in [0, 1, 9, 127, 255, message[at] ^ 1, message[at] ^ 128] {
                let mut message = message.clone();
                message[at] = byte;
                let out = stream(&message);
                assert!(out.len() == 2 || out.rejects.len() == 1 && out.records.is_empty(), "{at} {byte} {out:?}");
            }
        }
    }
}

#[test]
fn a_dictionary_and_columns_of_any_shape_pass_through_a_stream() {
    let out = stream(&write(&[any_columns()]));
    assert_eq!((out.records.len(), out.unknown_fields), (1, 1));
    let expected =
        "invalid | kind | a text too long to stand in its view | kind must be trade, quote, bust, correction or amend";
    assert_eq!(line(&out.rejects[0]), expected);
}

#[test]
fn prices_are_doubles_where_doubles_are_exact() {
    let tick = |price| Tick {
        symbol: Symbol::new("IBM").unwrap(),
        event_time: RECEIVED,
        seq: 1,
        event: Event::Trade { price: Price(price), size: Size(1) },
    };
    let instruments = decoder(None).instruments;
    let data_type =
        |price| arrow::encode(&[tick(price)], &instruments).column_by_name("price").unwrap().data_type().clone();
    assert_eq!((data_type(18190), data_type(i64::MAX)), (DataType::Float64, DataType::Utf8));
    let empty = arrow::encode(&[], &instruments);
    assert_eq!((empty.num_rows(), empty.num_columns()), (0, 10));
    assert_eq!(stream(&arrow::encode_stream(&[], &instruments)).len(), 0);
    assert!(arrow::check_schema(&Schema::empty()).is_err());
    assert!(empty.column_by_name("symbol").unwrap().as_string_opt::<i32>().is_some());
}

#[test]
fn the_cache_of_symbols_follows_the_instruments() {
    let mut out = Decoded::default();
    let mut coarse = Instruments::default();
    coarse.default.scale = 0;
    let coarse = Decoder { instruments: Arc::new(coarse), ..decoder(None) };
    for decoder in [decoder(None), coarse, decoder(None)] {
        json::decode(&decoder, trade(&[("price", "181.9")]).as_bytes(), cursor(), RECEIVED, &mut out);
    }
    assert_eq!((out.records.len(), out.rejects.len()), (2, 1));
    out.clear();
    assert!(out.is_empty());
}

fn any_tick() -> impl Strategy<Value = Tick> {
    let symbol = prop::sample::select(vec!["IBM", "CL", "EURUSD", "BRK.B", "A"]);
    let units = prop_oneof![1..100_000_i64, 1..i64::MAX / 20, Just(i64::MAX / 20)];
    let prices = prop::array::uniform4((units, any::<bool>()));
    let sizes = prop::array::uniform2(prop_oneof![Just(1), 1..1_000_000_i64, 1..=i64::MAX]);
    let sums = (prop_oneof![1..1_000_000_i128, 1..=WIDE_MAX], prop_oneof![1..1_000_000_i128, 1..=WIDE_MAX]);
    let time = prop_oneof![Just(EARLIEST), Just(LATEST - 1), EARLIEST..LATEST];
    (symbol, time, any::<u64>(), 0..6, prices, sizes, sums, any::<u32>()).prop_map(
        |(symbol, event_time, seq, kind, prices, sizes, (volume, turnover), rev)| {
            let symbol = Symbol::new(symbol).unwrap();
            let known = SymbolCache::default().get(&decoder(None).instruments, symbol.as_str()).unwrap();
            let price =
                |(units, negative): (i64, bool)| Price(if negative && known.allow_negative { -units } else { units });
            let p = prices.map(price);
            let size = Size(sizes[0]);
            let quoted = Size(sizes[1] - 1);
            let event = match kind {
                0 => Event::Trade { price: p[0], size },
                1 => Event::Quote { bid: p[0], ask: p[1], bid_size: quoted, ask_size: size },
                2 => Event::Bust,
                3 => Event::Correction { rev, price: p[0], size },
                4 => Event::Amend(Box::new(Amend { rev, bar: None })),
                _ => {
                    let of_trades = known.price_source == PriceSource::Last;
                    let (volume, turnover) = if of_trades { (volume, turnover) } else { (0, 0) };
                    let (high, low) = (p.into_iter().max().unwrap(), p.into_iter().min().unwrap());
                    let count = 1 + seq % COUNT_MAX;
                    let bar = BarBody { open: p[0], high, low, close: p[1], volume, turnover, count };
                    Event::Amend(Box::new(Amend { rev, bar: Some(bar) }))
                }
            };
            let amend = matches!(event, Event::Amend(_));
            let event_time = if amend { Timeframe::S1.open_time(event_time) } else { event_time };
            Tick { symbol, event_time, seq: if amend { 0 } else { seq }, event }
        },
    )
}

fn ticks_of(out: Decoded) -> Vec<Tick> {
    assert_eq!((out.rejects, out.unknown_fields), (vec![], 0));
    out.records.iter().map(|r| r.tick).collect()
}

proptest! {
    #[test]
    fn what_is_written_reads_back(ticks in prop::collection::vec(any_tick(), 0..20)) {
        let decoder = decoder(None);
        let mut out = Decoded::default();
        for tick in &ticks {
            json::decode(&decoder, &json::encode(tick, &decoder.instruments), cursor(), 0, &mut out);
        }
        prop_assert_eq!(&ticks_of(out), &ticks);
        prop_assert_eq!(&ticks_of(stream(&arrow::encode_stream(&ticks, &decoder.instruments))), &ticks);
        prop_assert_eq!(&ticks_of(csv("ticks.csv", csv::encode(&ticks, &decoder.instruments))), &ticks);
    }

    /// A damaged message still ends as something, and nothing of it passes that does not read back.
    #[test]
    fn damage_never_panics(
        ticks in prop::collection::vec(any_tick(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let decoder = decoder(None);
        let mut json = json::encode(&ticks[0], &decoder.instruments);
        let mut arrow = arrow::encode_stream(&ticks, &decoder.instruments);
        let mut csv = csv::encode(&ticks, &decoder.instruments).into_bytes();
        for (index, byte) in damage {
            for bytes in [&mut json, &mut arrow, &mut csv] {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let mut out = Decoded::default();
        json::decode(&decoder, &json, cursor(), 0, &mut out);
        prop_assert_eq!(out.len(), 1);
        arrow::decode_stream(&decoder, &arrow, cursor(), 0, &mut out);
        if let Ok(mut reader) = csv::Reader::open(csv.as_slice(), cursor().partition, "IBM.csv", None) {
            while reader.read(&decoder, 100, 0, &mut out).unwrap() {}
        }
        for tick in out.records.iter().map(|r| r.tick) {
            let mut again = Decoded::default();
            json::decode(&decoder, &json::encode(&tick, &decoder.instruments), cursor(), 0, &mut again);
            prop_assert_eq!(again.records.tick(0), tick);
        }
    }

    #[test]
    fn times_read_alike_by_either_parser(
        nanos: i64,
        (year, month, day) in (1678_u32..2262, 0_u32..14, 0_u32..33),
        clock in prop::array::uniform3(0_u32..61),
        decimals in "(\\.[0-9]{0,10})?",
    ) {
        let text = format_rfc3339(nanos);
        prop_assert_eq!(canonical_time(&text), Some(nanos));
        let [hour, minute, second] = clock;
        let text = format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{decimals}Z");
        // The general parser also takes a 60th second, and a point that nothing follows is for it to judge.
        if second < 60 && decimals != "." {
            prop_assert_eq!(canonical_time(&text), parse_rfc3339(&text).ok(), "{}", text);
        }
    }

    #[test]
    fn wide_numbers_read_as_they_print(units in -WIDE_MAX..=WIDE_MAX, scale in 0_u8..=21) {
        prop_assert_eq!(parse_wide(&format_fixed(units, scale), scale), Ok(units));
        let scientific = format!("{units}00e-{}", u32::from(scale) + 2);
        prop_assert!(units.unsigned_abs() > 1 << 110 || parse_wide(&scientific, scale) == Ok(units), "{}", scientific);
    }
}

/// A batch of anything: every type that a column may have, null or odd values, slices.
struct Anything {
    random: u64,
    /// One value in so many is odd.
    odd: u64,
    rows: usize,
}

impl Anything {
    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % n
    }

    fn one_of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize].clone()
    }

    /// Values of a column, each of `usual` or, seldom, of `odd` or null.
    fn values<T: Clone>(&mut self, usual: &[T], odd: &[T]) -> Vec<Option<T>> {
        let (nulls, rows) = (self.below(3) == 0, self.rows);
        let value = |_| match self.below(self.odd) {
            0 if nulls => None,
            0 => Some(self.one_of(odd)),
            _ => Some(self.one_of(usual)),
        };
        (0..rows).map(value).collect()
    }

    fn texts(&mut self, values: Vec<Option<&str>>) -> ArrayRef {
        fn dictionary<K: types::ArrowDictionaryKeyType>(
            values: &[Option<&str>],
            views: bool,
            key_of: fn(usize) -> K::Native,
        ) -> ArrayRef {
            // Both a null key and a key of a null are null.
            let mut texts: Vec<Option<&str>> = vec![None, Some("of no row")];
            let keys = values.iter().enumerate().map(|(row, value)| {
                let key = texts.iter().position(|text| text == value).unwrap_or(texts.len());
                if key == texts.len() {
                    texts.push(*value);
                }
                (value.is_some() || row % 2 == 0).then(|| key_of(key))
            });
            let keys = keys.collect::<PrimitiveArray<K>>();
            let values: ArrayRef =
                if views { Arc::new(StringViewArray::from(texts)) } else { Arc::new(StringArray::from(texts)) };
            Arc::new(DictionaryArray::new(keys, values))
        }
        match self.below(9) {
            0 => Arc::new(StringArray::from(values)),
            1 => Arc::new(LargeStringArray::from(values)),
            2 => Arc::new(StringViewArray::from(values)),
            3 => dictionary::<types::Int8Type>(&values, false, |key| key as i8),
            4 => dictionary::<types::UInt8Type>(&values, true, |key| key as u8),
            5 => dictionary::<types::Int16Type>(&values, false, |key| key as i16),
            6 => dictionary::<types::UInt32Type>(&values, false, |key| key as u32),
            7 => dictionary::<types::Int64Type>(&values, true, |key| key as i64),
            _ => dictionary::<types::Int32Type>(&values, false, |key| key as i32),
        }
    }

    fn times(&mut self) -> ArrayRef {
        let good = [RECEIVED, RECEIVED - SECOND, EARLIEST, RECEIVED - 3600 * SECOND];
        let odd = [EARLIEST - 1, LATEST, LATEST - 1, 0, i64::MIN, i64::MAX, -1, i64::MIN + EARLIEST, RECEIVED + SECOND];
        let counts = self.values(&good, &odd);
        let count = |count: i64, unit| if count.unsigned_abs() < 1 << 62 { count / unit } else { count };
        let of = |unit: Nanos| counts.iter().map(move |nanos| nanos.map(|nanos| count(nanos, unit)));
        match self.below(8) {
            0 => Arc::new(of(1).collect::<Int64Array>()),
            1 => Arc::new(of(1000).collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
            2 => Arc::new(of(MILLI).collect::<TimestampMillisecondArray>().with_timezone("UTC")),
            3 => Arc::new(of(SECOND).collect::<TimestampSecondArray>().with_timezone("UTC")),
            4 => Arc::new(of(1).map(|n| n.map(format_rfc3339)).collect::<StringArray>()),
            _ => Arc::new(of(1).collect::<TimestampNanosecondArray>().with_timezone("UTC")),
        }
    }

    fn seqs(&mut self) -> ArrayRef {
        let seqs = self.values(&[0_i64, 1, 17, 123_456_789], &[-1, i64::MIN, i64::MAX]);
        match self.below(5) {
            0 => Arc::new(seqs.into_iter().collect::<Int64Array>()),
            1 => Arc::new(seqs.into_iter().map(|n| n.map(|n| n as i32)).collect::<Int32Array>()),
            2 => Arc::new(seqs.into_iter().map(|n| n.map(|n| n.to_string())).collect::<StringArray>()),
            _ => Arc::new(seqs.into_iter().map(|n| n.map(|n| n as u64)).collect::<UInt64Array>()),
        }
    }

    fn numbers(&mut self) -> ArrayRef {
        let good = [1.0, 181.9, 0.01, 12_345.25, 99.99, 250_000.0];
        let odd = [
            0.0,
            -0.0,
            -1.5,
            1e-8,
            0.1 + 0.2,
            1e300,
            f64::NAN,
            f64::INFINITY,
            1e15,
            2e7,
            123_456_789.25,
            9_007_199_254_740_993.0,
            92_233_720_368.547_76,
            92_233_720_368.0,
            9.2e14,
            5.7e9,
            -0.01,
        ];
        let values = self.values(&good, &odd);
        let scaled = |power: f64| values.iter().map(move |value| value.map(|value| (value * power) as i64));
        match self.below(10) {
            0 => Arc::new(scaled(1.0).collect::<Int64Array>()),
            1 => Arc::new(values.iter().map(|n| n.map(|n| n as u32)).collect::<UInt32Array>()),
            2 => Arc::new(values.iter().map(|n| n.map(|n| n.to_string())).collect::<StringArray>()),
            3 => {
                let texts: Vec<Option<String>> = values.iter().map(|n| n.map(|n| n.to_string())).collect();
                self.texts(texts.iter().map(Option::as_deref).collect())
            }
            4 | 5 => {
                let scale = self.one_of(&[-2_i8, 0, 1, 2, 5, 8, 12, 13, 30]);
                let array: Decimal128Array =
                    scaled(10_f64.powi(scale.min(4).into())).map(|n| n.map(i128::from)).collect();
                Arc::new(array.with_precision_and_scale(38, scale).unwrap())
            }
            6 if self.below(4) == 0 => Arc::new(NullArray::new(self.rows)),
            _ => Arc::new(values.into_iter().collect::<Float64Array>()),
        }
    }

    /// Nearly always trades in order, with names in dictionaries.
    fn trades(&mut self) -> RecordBatch {
        fn keyed(keys: Vec<Option<i32>>, texts: &[&str]) -> ArrayRef {
            let values = Arc::new(StringArray::from(texts.to_vec()));
            Arc::new(DictionaryArray::new(PrimitiveArray::<types::Int32Type>::from(keys), values))
        }
        // One column in three has odd values.
        let one_in = |this: &mut Self| if this.below(3) == 0 { this.odd } else { u64::MAX };
        let names: &[&str] = match self.below(4) {
            0 => &["AIG"],
            1 => &["IBM", "AIG", "ibm"],
            _ => &["IBM", "CL", "EURUSD", "AIG", "MSFT"],
        };
        let symbols = (0..self.rows).map(|_| Some(self.below(names.len() as u64) as i32)).collect();
        let odd = one_in(self);
        let kinds = (0..self.rows).map(|_| if self.below(odd) == 0 { self.one_of(&[None, Some(2)]) } else { Some(0) });
        let kinds = kinds.collect();
        let (mut time, odd) = (RECEIVED - SECOND, one_in(self));
        let times = (0..self.rows).map(|_| {
            let step = self.below(100) as i64;
            time += if self.below(odd) == 0 { self.one_of(&[-500, 2 * SECOND]) } else { step };
            time
        });
        let times = TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC");
        let rows = self.rows;
        let mut number = || -> ArrayRef {
            let values = [0.0, -1.5, 0.1 + 0.2, f64::NAN, 1e15, 123_456_789.25, 92_233_720_368.0, 1e300];
            let odd = one_in(self);
            let value = |_| match self.below(odd) {
                0 => self.one_of(&values),
                _ => (1 + self.below(100_000)) as f64 / 100.0,
            };
            Arc::new((0..rows).map(value).collect::<Float64Array>())
        };
        let (price, size) = (number(), number());
        let mut columns: Vec<(&str, ArrayRef)> = vec![
            ("event_time", Arc::new(times)),
            ("seq", Arc::new((0..self.rows as u64).collect::<UInt64Array>())),
            ("kind", keyed(kinds, &["trade", "", "quote"])),
            ("symbol", keyed(symbols, names)),
            ("price", price),
            ("size", size),
        ];
        if self.below(3) == 0 {
            let bids = (0..self.rows).map(|_| (self.below(3) == 0).then_some(1.0)).collect::<Float64Array>();
            columns.push(("bid", Arc::new(bids)));
        }
        if self.below(8) == 0 {
            columns.push(("venue", Arc::new(Int32Array::from(vec![1; self.rows]))));
        }
        batch(columns)
    }

    fn batch(&mut self) -> RecordBatch {
        let kinds = self.one_of(&[&["trade"][..], &["quote"], &["trade", "quote"], &["trade", "trade", "quote"]]);
        let kinds =
            self.values(kinds, &["trade", "quote", "bust", "correction", "amend", "TRADE", "", "trade\0", "trad"]);
        let symbols = self.one_of(&[
            &["IBM"][..],
            &["IBM", "ibm", "CL"],
            &["AIG", "A-NAME-OF-21-LETTERS:", "12-AND-SOME", "EUR/USD", "IBM"],
            &["EURUSD", "EURUSE", "AIG"],
        ]);
        let long = "A".repeat(33);
        let odd = ["", "A B", "IBM\0", "EURUSD", "CL", &long, "a-symbol-of-18-char", "\u{e9}"];
        let symbols = self.values(symbols, &odd);
        let mut columns = vec![
            ("event_time", self.times()),
            ("seq", self.seqs()),
            ("kind", self.texts(kinds)),
            ("symbol", self.texts(symbols)),
        ];
        for name in ["price", "size", "bid", "ask", "bid_size", "ask_size", "open", "rev"] {
            let seldom = matches!(name, "open" | "rev");
            if self.below(6) < if seldom { 1 } else { 5 } {
                let array = if name == "rev" { self.seqs() } else { self.numbers() };
                // As real batches have it: the columns of the other kind are null.
                let sparse = self.below(2) == 0;
                let kinds = columns[2].1.clone();
                let wanted = if matches!(name, "price" | "size") { "trade" } else { "quote" };
                if sparse && *array.data_type() == DataType::Float64 {
                    let floats = array.as_primitive::<types::Float64Type>();
                    let kind = |row: usize| super::arrow::Cells::of(kinds.as_ref()).get(row).shown();
                    let value = |row| (floats.is_valid(row) && kind(row) == wanted).then(|| floats.value(row));
                    columns.push((name, Arc::new((0..self.rows).map(value).collect::<Float64Array>())));
                } else {
                    columns.push((name, array));
                }
            }
        }
        if self.below(8) == 0 {
            columns.push(("venue", Arc::new(Int32Array::from(vec![1; self.rows]))));
        }
        batch(columns)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn columns_are_decoded_like_rows(
        random in 1_u64..,
        odd in prop::sample::select(vec![2_u64, 10, 100, 1_000_000]),
        rows in prop_oneof![8 => 0_usize..70, 1 => 500_usize..1100],
        offsets: bool,
        ahead in prop::sample::select(vec![None, Some(0), Some(5 * SECOND), Some(Nanos::MAX), Some(Nanos::MIN)]),
        first in prop::sample::select(vec![(0, 0), (u64::MAX - 5, 3), (7, u32::MAX - 20)]),
        slice: (prop::sample::Index, prop::sample::Index),
    ) {
        let mut anything = Anything { random, odd, rows };
        let (mut by_column, mut by_row) = (Decoded::default(), Decoded::default());
        let decoder = decoder(ahead);
        let mut cursor = Cursor { offset: first.0, row: first.1, ..cursor() };
        for _ in 0..2 {
            let whole = anything.batch();
            let start = slice.0.index(rows + 1);
            let batch = whole.slice(start, slice.1.index(rows - start + 1));
            let rows_are = if offsets { RowsAre::Offsets } else { RowsAre::Rows };
            arrow::decode_batch(&decoder, &batch, cursor, rows_are, RECEIVED, &mut by_column);
            arrow::decode_by_row(&decoder, &batch, cursor, rows_are, RECEIVED, &mut by_row);
            cursor.row /= 2;
        }
        are_equal(&by_column, &by_row)?;
    }

    #[test]
    fn trades_in_order_are_decoded_like_rows(
        random in 1_u64..,
        odd in prop::sample::select(vec![10_u64, 1_000, 1_000_000]),
        rows in prop_oneof![0_usize..70, 500_usize..1100],
        offsets: bool,
        ahead in prop::sample::select(vec![None, Some(0)]),
    ) {
        let batch = Anything { random, odd, rows }.trades();
        let (mut by_column, mut by_row) = (Decoded::default(), Decoded::default());
        let (decoder, rows_are) = (decoder(ahead), if offsets { RowsAre::Offsets } else { RowsAre::Rows });
        arrow::decode_batch(&decoder, &batch, cursor(), rows_are, RECEIVED, &mut by_column);
        arrow::decode_by_row(&decoder, &batch, cursor(), rows_are, RECEIVED, &mut by_row);
        are_equal(&by_column, &by_row)?;
    }
}

fn are_equal(by_column: &Decoded, by_row: &Decoded) -> Result<(), TestCaseError> {
    for (left, right) in by_column.rejects.iter().zip(&by_row.rejects) {
        prop_assert_eq!(left, right, "{}", String::from_utf8_lossy(&left.original));
    }
    prop_assert_eq!(by_column.rejects.len(), by_row.rejects.len());
    prop_assert_eq!(by_column.unknown_fields, by_row.unknown_fields);
    prop_assert_eq!(by_column.records.iter().collect::<Vec<_>>(), by_row.records.iter().collect::<Vec<_>>());
    prop_assert_eq!(by_column.records.all_trades(), by_row.records.all_trades());
    prop_assert_eq!(by_column.records.kinds(), by_row.records.kinds());
    let all = 0..by_row.records.len();
    prop_assert_eq!(by_column.records.time_span(all.clone()), by_row.records.time_span(all));
    Ok(())
}

/// A CSV file of anything: mostly plain lines, with odd cells, odd ends and odd lines between them.
fn any_csv(anything: &mut Anything) -> (&'static str, Vec<u8>) {
    let cell = |anything: &mut Anything, usual: &[&str], odd: &[&str]| -> String {
        match anything.below(anything.odd * 2) {
            0 => String::new(),
            1 => anything.one_of(odd).to_owned(),
            _ => anything.one_of(usual).to_owned(),
        }
    };
    let times =
        ["2013-10-07T13:30:00Z", "2013-10-07T13:30:00.123456789Z", "2013-10-08T23:59:59.5Z", "1381152600000000000"];
    let odd_times = [
        "2013-10-07T13:30:00",
        "2013-10-07T15:30:00+02:00",
        "2013-10-07T13:30:60Z",
        "2013-10-07T13:30:00.Z",
        "2013-02-29T13:30:00Z",
        "1989-12-31T23:59:59Z",
        "2200-01-01T00:00:00Z",
        "2013-10-07t13:30:00z",
        "1381152600",
        "01381152600000000000",
        "-1381152600000000000",
        "99999999999999999999",
        "2013-10-07T13:30:00.1234567890Z",
    ];
    let numbers = ["181.90", "1", "0.01", "250000", "12345.25", "5.", ".5"];
    let odd_numbers = [
        "0",
        "-1",
        "+1",
        "1e3",
        "181,90",
        "NaN",
        ".",
        "1.2.3",
        "0.000000001",
        "1.500000000",
        "99999999999999999999",
        "999999999999999999",
        "9999999999999999999",
        "0000000000000000000001",
        "92233720368.54775807",
        "\"5\"",
        " 1",
    ];
    let seqs = ["0", "17", "123456789", "12345678901234567"];
    let odd_seqs = ["-1", "1.0", "18446744073709551615", "18446744073709551616", "x", "007"];
    let ends = anything.one_of(&["\n", "\r\n"]);
    let format = anything.below(4);
    let (name, mut columns) = match format {
        0 => ("BTCUSDT-trades-2024.csv", vec!["seq", "price", "size", "price", "millis", "flag", "flag"]),
        1 => ("IBM-aggTrades-2024.csv", vec!["seq", "price", "size", "seq", "seq", "millis", "flag"]),
        2 => ("x.csv", vec!["pair", "truefx", "bid", "ask"]),
        _ => {
            let mut columns = vec!["kind", "symbol", "event_time", "seq", "price", "size"];
            columns.extend(
                ["bid", "ask", "bid_size", "ask_size", "rev", "venue"].into_iter().filter(|_| anything.below(2) == 0),
            );
            for i in 0..columns.len() {
                let other = anything.below(columns.len() as u64) as usize;
                columns.swap(i, other);
            }
            ("a.csv", columns)
        }
    };
    let mut text = String::new();
    if format == 3 {
        text = format!("{}{ends}", columns.join(","));
    }
    let names = columns.clone();
    for _ in 0..anything.rows {
        columns.clone_from(&names);
        match anything.below(anything.odd * 3) {
            0 => drop(columns.pop()),
            1 => columns.push("venue"),
            2 => text.push_str(anything.one_of(&[ends, " \t\r\n", "\u{feff}", "nonsense\n", "\r"])),
            _ => {}
        }
        let quote = anything.below(3) == 0;
        for (i, name) in columns.iter().enumerate() {
            if i > 0 {
                text.push(',');
            }
            let other = match *name {
                "price" | "size" => format == 3 && quote,
                "bid" | "ask" | "bid_size" | "ask_size" => format == 3 && !quote,
                _ => false,
            };
            let value = match *name {
                _ if other && anything.below(20) > 0 => String::new(),
                "kind" => {
                    cell(anything, &[if quote { "quote" } else { "trade" }], &["trades", "bust", "Trade", "\"trade\""])
                }
                "symbol" => cell(
                    anything,
                    &["IBM", "EURUSD", "CL", "A-NAME-OF-21-LETTERS:"],
                    &["ibm", "A B", "\u{e9}", "\"IBM\"", "IBM\0"],
                ),
                "pair" => cell(anything, &["EUR/USD", "USD/JPY"], &["EURUSD", "\"EUR/USD\""]),
                "event_time" => cell(anything, &times, &odd_times),
                "truefx" => cell(
                    anything,
                    &["20140505 00:00:00.123", "20140506 23:59:59"],
                    &["20140505 24:00:00", "2014-05-05 00:00:00", "20140505T00:00:00", "19700101 00:00:00"],
                ),
                "millis" => cell(
                    anything,
                    &["1381152600123", "1735689600123456"],
                    &["1381152600", "x", "1381152600000000000", "-5"],
                ),
                "flag" => cell(anything, &["true", "False"], &["0", "truee"]),
                "seq" => cell(anything, &seqs, &odd_seqs),
                "rev" => {
                    if anything.below(anything.odd) == 0 {
                        "1".to_owned()
                    } else {
                        String::new()
                    }
                }
                "venue" => cell(anything, &["N", "", "XNYS"], &["\"a,b\"", "\u{e9}", "\"open"]),
                _ => cell(anything, &numbers, &odd_numbers),
            };
            text.push_str(&value);
        }
        text.push_str(ends);
    }
    if anything.below(3) == 0 {
        text.truncate(text.trim_end().len());
    }
    let mut bytes = text.into_bytes();
    if anything.below(anything.odd) == 0 && !bytes.is_empty() {
        let at = anything.below(bytes.len() as u64) as usize;
        bytes[at] = anything.below(256) as u8;
    }
    (name, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn plain_lines_are_decoded_like_any(
        random in 1_u64..,
        odd in prop::sample::select(vec![2_u64, 10, 100, 1_000_000]),
        rows in 0_usize..40,
        buffer in prop_oneof![1_usize..300, Just(1 << 17)],
        at_once in prop_oneof![1_usize..50, Just(usize::MAX)],
        ahead in prop::sample::select(vec![None, Some(0), Some(Nanos::MIN)]),
    ) {
        let mut anything = Anything { random, odd, rows };
        let (name, bytes) = any_csv(&mut anything);
        let decoder = decoder(ahead);
        let open = || {
            let input = std::io::BufReader::with_capacity(buffer, bytes.as_slice());
            csv::Reader::open(input, cursor().partition, name, None)
        };
        let (Ok(mut plain), Ok(mut by_line)) = (open(), open()) else { return Ok(()) };
        let (mut fast, mut slow) = (Decoded::default(), Decoded::default());
        while plain.read(&decoder, at_once, RECEIVED, &mut fast).unwrap() {}
        while by_line.read_by_line(&decoder, at_once, RECEIVED, &mut slow).unwrap() {}
        let text = String::from_utf8_lossy(&bytes);
        prop_assert_eq!(fast.rejects, slow.rejects, "{}", text);
        prop_assert_eq!(fast.unknown_fields, slow.unknown_fields, "{}", text);
        prop_assert_eq!(fast.records.iter().collect::<Vec<_>>(), slow.records.iter().collect::<Vec<_>>(), "{}", text);
        prop_assert_eq!(plain.upper(), by_line.upper());
    }
}

proptest! {
    /// What the fast reader of objects takes, the general one reads alike; and nothing that it refuses.
    #[test]
    fn plain_objects_are_read_like_any(
        members in prop::collection::vec(
            (
                prop::sample::select(vec!["kind", "price", "seq", "venue", "\u{e9}", "a\\u0062", ""]),
                prop::sample::select(vec![
                    "1", "-0", "01", "1.", ".5", "1.5e+3", "1e", "1E-5", "-", "\"x\"", "\"\\n\"", "\"\n\"", "null",
                    "nul", "true", "false", "falsey", "[1]", "{}", "\"\u{e9}\"", "\"", "1 1", "\"\"", "-12345678901234567890.5",
                ]),
            ),
            0..5,
        ),
        blank in prop::sample::select(vec!["", " ", "\n\t", "\u{a0}"]),
        ends in prop::sample::select(vec![("{", "}"), ("{", ""), ("[", "]"), ("{", "} x"), ("{", ",}")]),
    ) {
        let members = members.iter().map(|(name, value)| format!("{blank}\"{name}\"{blank}:{blank}{value}{blank}"));
        let text = format!("{blank}{}{}{}{blank}", ends.0, members.collect::<Vec<_>>().join(","), ends.1);
        json::plain_is_like_any(&text);
    }
}

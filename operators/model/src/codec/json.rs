//! JSON: one tick, or one account snapshot, a message.
//!
//! `{"kind":"trade","symbol":"IBM","event_time":"2013-10-07T13:30:00.123456789Z","seq":17,"price":"181.90","size":"100"}`
//!
//! Numbers are JSON numbers or texts, and judged by their text, so that a double never stands between. A key that
//! appears twice is malformed: readers disagree on which of the two counts. `null` is absent.

use super::{
    BAR_FIELDS, Decoded, Decoder, Fault, Field, Fields, Judged, SYMBOL_RULE, Value, bad_number, integer, invalid,
    judge, largest, missing, time,
};
use crate::account::{AccountSnapshot, Position};
use crate::bar::BarBody;
use crate::cursor::{Cursor, Reason, excerpt};
use crate::instrument::{Instruments, parse_currency};
use crate::name::{AccountId, Symbol};
use crate::num::{Amount, SCALE, Size, format_fixed};
use crate::tick::{Event, Tick};
use crate::time::{Nanos, format_rfc3339};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

/// Decodes one tick. It ends as one record or one reject of `out`.
///
/// ```
/// use marea_model::codec::{Decoded, Decoder, json};
/// use marea_model::{Cursor, Partition, Timeframe};
///
/// let decoder = Decoder { instruments: Default::default(), base_timeframe: Timeframe::S1, max_ahead: None };
/// let cursor = Cursor { partition: Partition::new("ticks-0").unwrap(), offset: 7, row: 0 };
/// let mut out = Decoded::default();
/// json::decode(&decoder, br#"{"kind":"trade","symbol":"IBM","event_time":1381152600,"seq":1}"#, cursor, 0, &mut out);
/// assert_eq!(out.rejects[0].reason.as_str(), "event_time");
/// assert_eq!(out.rejects[0].detail, "event_time is before 1990: it looks like seconds, and must be nanoseconds");
/// ```
pub fn decode(decoder: &Decoder, message: &[u8], cursor: Cursor, receive_time: Nanos, out: &mut Decoded) {
    let judged =
        Object::<{ Field::COUNT }>::parse(message, |name| Field::named(name).map(|f| f as usize)).and_then(|object| {
            let (tick, ignored) = judge(decoder, &mut out.symbols, &object, receive_time)?;
            Ok((tick, ignored || object.unknown))
        });
    out.file(cursor, judged, || message.to_vec());
}

/// Decodes one account snapshot. It ends as one account or one reject of `out`.
pub fn decode_account(decoder: &Decoder, message: &[u8], cursor: Cursor, receive_time: Nanos, out: &mut Decoded) {
    match account(decoder, message, receive_time) {
        Ok((snapshot, ignored)) => {
            out.accounts.push((cursor, snapshot));
            out.unknown_fields += u64::from(ignored);
        }
        Err(fault) => out.rejects.push(fault.dead(cursor, message.to_vec())),
    }
}

/// Writes a tick, canonically: equal ticks give equal bytes. Sizes that are unknown are left out.
pub fn encode(tick: &Tick, instruments: &Instruments) -> Vec<u8> {
    let instrument = instruments.get(tick.symbol);
    let mut text = String::with_capacity(160);
    member(&mut text, "kind", tick.event.kind(), true);
    member(&mut text, "symbol", tick.symbol.as_str(), true);
    if !matches!(tick.event, Event::Amend(_)) {
        member(&mut text, "event_time", &format_rfc3339(tick.event_time), true);
        member(&mut text, "seq", &tick.seq.to_string(), false);
    }
    let price = |price: crate::num::Price| format_fixed(i128::from(price.0), instrument.scale);
    let size = |size: Size| format_fixed(i128::from(size.0), SCALE);
    match &tick.event {
        Event::Trade { price: paid, size: traded } => {
            member(&mut text, "price", &price(*paid), true);
            member(&mut text, "size", &size(*traded), true);
        }
        Event::Quote { bid, ask, bid_size, ask_size } => {
            member(&mut text, "bid", &price(*bid), true);
            member(&mut text, "ask", &price(*ask), true);
            for (name, quoted) in [("bid_size", bid_size), ("ask_size", ask_size)] {
                if quoted.0 != 0 {
                    member(&mut text, name, &size(*quoted), true);
                }
            }
        }
        Event::Bust => {}
        Event::Correction { rev, price: paid, size: traded } => {
            member(&mut text, "rev", &rev.to_string(), false);
            member(&mut text, "price", &price(*paid), true);
            member(&mut text, "size", &size(*traded), true);
        }
        Event::Amend(amend) => {
            member(&mut text, "open_time", &format_rfc3339(tick.event_time), true);
            member(&mut text, "rev", &amend.rev.to_string(), false);
            match &amend.bar {
                None => member(&mut text, "deleted", "true", false),
                Some(bar) => {
                    for (field, value) in bar_texts(bar, instrument.bar_scale()) {
                        member(&mut text, field.name(), &value, field != Field::Count);
                    }
                }
            }
        }
    }
    text.push('}');
    text.into_bytes()
}

/// Writes an account snapshot.
pub fn encode_account(snapshot: &AccountSnapshot) -> Vec<u8> {
    let mut text = String::with_capacity(200);
    member(&mut text, "account", snapshot.account.as_str(), true);
    member(&mut text, "event_time", &format_rfc3339(snapshot.event_time), true);
    member(&mut text, "seq", &snapshot.seq.to_string(), false);
    member(&mut text, "equity", &snapshot.equity.to_string(), true);
    member(&mut text, "balance", &snapshot.balance.to_string(), true);
    member(&mut text, "currency", &String::from_utf8_lossy(&snapshot.currency), true);
    let mut positions = String::new();
    for position in &snapshot.positions {
        positions.push(if positions.is_empty() { '[' } else { ',' });
        let mut object = String::new();
        member(&mut object, "symbol", position.symbol.as_str(), true);
        member(&mut object, "side", if position.side > 0 { "long" } else { "short" }, true);
        member(&mut object, "lots", &position.lots.to_string(), true);
        positions.push_str(&object);
        positions.push('}');
    }
    positions.push_str(if positions.is_empty() { "[]" } else { "]" });
    member(&mut text, "positions", &positions, false);
    text.push('}');
    text.into_bytes()
}

/// A bar's fields as text, exactly.
pub(super) fn bar_texts(bar: &BarBody, scale: u8) -> [(Field, String); BAR_FIELDS.len()] {
    BAR_FIELDS.map(|field| {
        let price = |price: crate::num::Price| format_fixed(i128::from(price.0), scale);
        let text = match field {
            Field::Open => price(bar.open),
            Field::High => price(bar.high),
            Field::Low => price(bar.low),
            Field::Close => price(bar.close),
            Field::Volume => format_fixed(bar.volume, SCALE),
            Field::Turnover => format_fixed(bar.turnover, scale + SCALE),
            _ => bar.count.to_string(),
        };
        (field, text)
    })
}

/// Appends a member to an object that is open. Our names and values hold nothing that JSON escapes.
fn member(text: &mut String, name: &str, value: &str, quoted: bool) {
    let quote = if quoted { "\"" } else { "" };
    let start = if text.is_empty() { '{' } else { ',' };
    text.push(start);
    for part in ["\"", name, "\":", quote, value, quote] {
        text.push_str(part);
    }
}

/// The members of a JSON object, by index of their names, each as its text.
struct Object<'a, const N: usize> {
    /// Empty where absent: the text of a JSON value never is.
    values: [&'a str; N],
    unknown: bool,
    repeated: Option<(Cow<'a, str>, &'a str)>,
}

impl<'a, const N: usize> Object<'a, N> {
    fn parse(message: &'a [u8], index: fn(&str) -> Option<usize>) -> Judged<Self> {
        let text = std::str::from_utf8(message).map_err(|error| {
            let detail = format!("not UTF-8 from byte {}", error.valid_up_to());
            Fault::new(Reason::Malformed, "", excerpt(&String::from_utf8_lossy(message)), detail)
        })?;
        Object::parse_text(text, index)
    }

    fn parse_text(text: &'a str, index: fn(&str) -> Option<usize>) -> Judged<Self> {
        Object::plain(text, index).map_or_else(|| Object::parse_any(text, index), Ok)
    }

    fn parse_any(text: &'a str, index: fn(&str) -> Option<usize>) -> Judged<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let object = ObjectSeed { index }.deserialize(&mut json).and_then(|object| json.end().map(|()| object));
        let object: Object<'a, N> = object
            .map_err(|error| Fault::new(Reason::Malformed, "", excerpt(text), format!("not a JSON object: {error}")))?;
        match object.repeated {
            None => Ok(object),
            Some((name, value)) => {
                let detail = format!("the key {} appears twice", excerpt(&name));
                Err(Fault::new(Reason::Malformed, excerpt(&name), value_of(value).shown(), detail))
            }
        }
    }

    /// The same where it is as nearly all messages are: flat, without escapes, no key twice. None where it is not, or
    /// is no object at all: that is for the general reader to say.
    fn plain(text: &'a str, index: fn(&str) -> Option<usize>) -> Option<Self> {
        let mut object = Object { values: [""; N], unknown: false, repeated: None };
        let mut other = None;
        let bytes = text.as_bytes();
        let mut at = skip_blanks(bytes, 0);
        let mut next = b'{';
        loop {
            if *bytes.get(at)? != next {
                return None;
            }
            next = b',';
            let name = skip_blanks(bytes, at + 1);
            let name_end = string_end(bytes, name)?;
            let colon = skip_blanks(bytes, name_end);
            if *bytes.get(colon)? != b':' {
                return None;
            }
            let value = skip_blanks(bytes, colon + 1);
            let value_end = match bytes.get(value)? {
                b'"' => string_end(bytes, value)?,
                b'n' if bytes[value..].starts_with(b"null") => value + 4,
                b't' if bytes[value..].starts_with(b"true") => value + 4,
                b'f' if bytes[value..].starts_with(b"false") => value + 5,
                _ => number_end(bytes, value)?,
            };
            let name = &text[name + 1..name_end - 1];
            match index(name) {
                Some(index) if object.values[index].is_empty() => object.values[index] = &text[value..value_end],
                None if other.is_none() => {
                    object.unknown = true;
                    other = Some(name);
                }
                _ => return None,
            }
            at = skip_blanks(bytes, value_end);
            if *bytes.get(at)? == b'}' {
                return (skip_blanks(bytes, at + 1) == bytes.len()).then_some(object);
            }
        }
    }

    fn get(&self, index: usize) -> Value<'a> {
        value_of(self.values[index])
    }
}

/// Where the fast reader of objects takes a text, the general one must read the same.
#[cfg(test)]
pub(super) fn plain_is_like_any(text: &str) {
    let index = |name: &str| Field::named(name).map(|f| f as usize);
    if let Some(plain) = Object::<{ Field::COUNT }>::plain(text, index) {
        let any =
            Object::<{ Field::COUNT }>::parse_any(text, index).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
        assert_eq!((plain.values, plain.unknown), (any.values, any.unknown), "{text}");
    }
}

fn skip_blanks(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// Behind the closing quote of a string that begins here and has nothing escaped in it.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    if *bytes.get(start)? != b'"' {
        return None;
    }
    let length = bytes[start + 1..].iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20))?;
    let end = start + 1 + length;
    (bytes[end] == b'"').then_some(end + 1)
}

/// Behind a JSON number that begins here.
fn number_end(bytes: &[u8], start: usize) -> Option<usize> {
    let digits = |mut at: usize| {
        let first = at;
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        (at > first).then_some(at)
    };
    let unsigned = start + usize::from(*bytes.get(start)? == b'-');
    let mut at = digits(unsigned)?;
    if bytes[unsigned] == b'0' && at > unsigned + 1 {
        return None;
    }
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at = digits(at + 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-'))))?;
    }
    Some(at)
}

/// What the text of a JSON value says.
fn value_of(text: &str) -> Value<'_> {
    match text.as_bytes().first() {
        None | Some(b'n') => Value::Null,
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'[' | b'{') => Value::Other(text),
        Some(b'"') if !text.contains('\\') => Value::Text(Cow::Borrowed(&text[1..text.len() - 1])),
        // An escape may still name half a surrogate pair: then it is no text.
        Some(b'"') => serde_json::from_str(text).map_or(Value::Other(text), |text| Value::Text(Cow::Owned(text))),
        Some(_) => Value::Number(text),
    }
}

impl Fields for Object<'_, { Field::COUNT }> {
    fn get(&self, field: Field) -> Value<'_> {
        value_of(self.values[field as usize])
    }

    fn has_others(&self, known: u32) -> bool {
        let others = Field::ALL.into_iter().zip(self.values).filter(|(field, _)| field.bit() & known == 0);
        others.into_iter().any(|(_, value)| !value.is_empty() && value != "null")
    }
}

struct ObjectSeed<const N: usize> {
    index: fn(&str) -> Option<usize>,
}

impl<'de, const N: usize> DeserializeSeed<'de> for ObjectSeed<N> {
    type Value = Object<'de, N>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for ObjectSeed<N> {
    type Value = Object<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object { values: [""; N], unknown: false, repeated: None };
        let mut others = BTreeSet::new();
        while let Some(key) = map.next_key_seed(KeySeed(self.index))? {
            let value = map.next_value::<&'de RawValue>()?.get();
            let (repeated, name) = match key {
                Key::Known(index, name) => {
                    let repeated = !object.values[index].is_empty();
                    object.values[index] = value;
                    (repeated, name)
                }
                Key::Other(name) => {
                    object.unknown = true;
                    (!others.insert(name.clone()), name)
                }
            };
            if repeated && object.repeated.is_none() {
                object.repeated = Some((name, value));
            }
        }
        Ok(object)
    }
}

enum Key<'de> {
    Known(usize, Cow<'de, str>),
    Other(Cow<'de, str>),
}

struct KeySeed(fn(&str) -> Option<usize>);

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Key<'de>, E> {
        let key = Cow::Borrowed(name);
        Ok((self.0)(name).map_or_else(|| Key::Other(key.clone()), |index| Key::Known(index, key.clone())))
    }

    fn visit_str<E>(self, name: &str) -> Result<Key<'de>, E> {
        let key = Cow::Owned(name.to_owned());
        Ok(match (self.0)(name) {
            Some(index) => Key::Known(index, key),
            None => Key::Other(key),
        })
    }
}

const ACCOUNT: [&str; 7] = ["account", "event_time", "seq", "equity", "balance", "currency", "positions"];
const POSITION: [&str; 3] = ["symbol", "side", "lots"];

fn account(decoder: &Decoder, message: &[u8], receive_time: Nanos) -> Judged<(AccountSnapshot, bool)> {
    let object = Object::<7>::parse(message, |name| ACCOUNT.iter().position(|known| *known == name))?;
    let field = |index: usize| match object.get(index) {
        Value::Null => Err(missing("an account snapshot", ACCOUNT[index])),
        value => Ok((ACCOUNT[index], value)),
    };
    let amount = |(name, value): (&'static str, Value<'_>)| {
        let units = value.fixed(SCALE).map_err(|e| bad_number(name, &value, e, || largest(SCALE)))?;
        Ok::<Amount, Box<Fault>>(Amount(units))
    };
    let (name, value) = field(0)?;
    let account = match &value {
        Value::Text(text) => AccountId::new(text).ok(),
        _ => None,
    };
    let account = account.ok_or_else(|| invalid(name, &value, "must be 1 to 64 of letters, digits, . _ - @ :"))?;
    let (name, value) = field(1)?;
    let event_time = time(name, &value, receive_time, decoder.max_ahead)?;
    let (name, value) = field(2)?;
    let seq = integer(name, &value, u64::MAX)?;
    let (equity, balance) = (amount(field(3)?)?, amount(field(4)?)?);
    let (name, value) = field(5)?;
    let currency = match &value {
        Value::Text(text) => parse_currency(text),
        _ => None,
    };
    let currency = currency.ok_or_else(|| invalid(name, &value, "must be three upper-case letters"))?;
    let (name, value) = field(6)?;
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(object.values[6]) else {
        return Err(invalid(name, &value, "must be a list"));
    };
    let (mut positions, mut unknown) = (Vec::with_capacity(items.len()), object.unknown);
    for (i, item) in items.into_iter().enumerate() {
        let (position, ignored) = position(i, item.get())?;
        positions.push(position);
        unknown |= ignored;
    }
    positions.sort_unstable();
    if let Some(pair) = positions.windows(2).find(|pair| pair[0].symbol == pair[1].symbol) {
        let (value, detail) = (pair[0].symbol.to_string(), "positions must be at most one a symbol");
        return Err(Fault::new(Reason::Invalid, name, value, detail));
    }
    Ok((AccountSnapshot { account, event_time, seq, equity, balance, currency, positions }, unknown))
}

fn position(i: usize, text: &str) -> Judged<(Position, bool)> {
    let object = Object::<3>::parse_text(text, |name| POSITION.iter().position(|known| *known == name))
        .map_err(|fault| Fault::new(fault.reason, format!("positions[{i}]"), fault.value, fault.detail))?;
    let field = |index: usize| {
        let name = format!("positions[{i}].{}", POSITION[index]);
        match object.get(index) {
            Value::Null => Err(missing("a position", name)),
            value => Ok((name, value)),
        }
    };
    let (name, value) = field(0)?;
    let symbol = match &value {
        Value::Text(text) => Symbol::canonical(text).ok(),
        _ => None,
    };
    let symbol = symbol.ok_or_else(|| Fault::new(Reason::Invalid, name, value.shown(), SYMBOL_RULE))?;
    let (name, value) = field(1)?;
    let side = match &value {
        Value::Text(text) if text == "long" => 1,
        Value::Text(text) if text == "short" => -1,
        Value::Number("1") => 1,
        Value::Number("-1") => -1,
        _ => return Err(invalid(name, &value, "must be long or short")),
    };
    let (name, value) = field(2)?;
    let lots = value.fixed(SCALE).map_err(|e| bad_number(name.clone(), &value, e, || largest(SCALE)))?;
    if lots <= 0 {
        return Err(invalid(name, &value, "must be positive"));
    }
    Ok((Position { symbol, side, lots: Amount(lots) }, object.unknown))
}

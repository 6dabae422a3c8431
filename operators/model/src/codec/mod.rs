//! Codecs: how ticks and account snapshots read on the wire, and how they are written.
//!
//! | codec | reads | writes | `original` of a reject |
//! |---|---|---|---|
//! | [`json`] | one tick or one account snapshot a message | canonical JSON | the message |
//! | [`arrow`] | IPC streams and files, record batches | record batches, IPC streams | the row as JSON; the message, if it is unreadable as a whole |
//! | [`csv`] | our own columns, Binance `trades` and `aggTrades`, TrueFX quotes | our own columns | the line |
//!
//! Every codec gives the same fields to the same judge, so a wrong value gets the same reason, field and sentence
//! whatever carried it. A record of the input ends as exactly one record (or account) or one reject in [`Decoded`];
//! nothing panics, and a reject never stops what follows it. Fields that the kind of the tick does not have are
//! ignored, and the record is counted in `unknown_fields`.
//!
//! What is as nearly all input is (plain trades and quotes) takes a fast way in each codec, which never judges: it takes
//! what it is sure of and leaves all else to the judge, so that nothing but speed depends on it.
//!
//! Numbers are judged by their text, exactly: more decimals than the scale, or a value that does not fit, is a reject,
//! never a rounding. Doubles become decimal by their shortest round-trip.

pub mod arrow;
mod columnar;
pub mod csv;
pub mod json;
mod lines;
#[cfg(test)]
mod tests;

use crate::account::AccountSnapshot;
use crate::bar::BarBody;
use crate::cursor::{Cursor, DeadLetter, Reason, excerpt};
use crate::instrument::{Instruments, PriceSource};
use crate::name::{NameError, Symbol};
use crate::num::{NumError, Price, SCALE, Size, fixed_from_f64, format_fixed, parse_fixed};
use crate::tick::{Amend, Event, Tick};
use crate::ticks::Ticks;
use crate::time::{MILLI, Nanos, SECOND, Timeframe, format_rfc3339, parse_rfc3339};
use std::borrow::Cow;
use std::sync::Arc;

/// The first event time that can be true: 1990-01-01.
pub const EARLIEST: Nanos = 631_152_000 * SECOND;
/// The first event time that can no longer be true: 2200-01-01. It keeps every bar's close time within [`Nanos`].
pub const LATEST: Nanos = 7_258_118_400 * SECOND;

/// What decoding needs to know.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Scales, and whether prices may be negative.
    pub instruments: Arc<Instruments>,
    /// The timeframe of the bars that an amend replaces.
    pub base_timeframe: Timeframe,
    /// How far an event time may be ahead of its receipt; none for files.
    pub max_ahead: Option<Nanos>,
}

impl Decoder {
    /// The last event time that is believed of what is received at `receive_time`.
    fn latest(&self, receive_time: Nanos) -> Nanos {
        let believed = |max| receive_time.saturating_add(max).clamp(EARLIEST - 1, LATEST - 1);
        self.max_ahead.map_or(LATEST - 1, believed)
    }
}

/// Where decoded records go. Decoding only appends; a reader drains what it wants and uses the rest again, since the
/// symbols met so far are remembered in it.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Ticks, in the order of the input.
    pub records: Ticks,
    /// What could not be read, in the order of the input.
    pub rejects: Vec<DeadLetter>,
    /// Account snapshots, with where they came from.
    pub accounts: Vec<(Cursor, AccountSnapshot)>,
    /// Accepted records some of whose fields were ignored.
    pub unknown_fields: u64,
    symbols: SymbolCache,
}

impl Decoded {
    /// Input records so far: accepted or rejected.
    pub fn len(&self) -> usize {
        self.records.len() + self.rejects.len() + self.accounts.len()
    }

    /// Whether nothing has been decoded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything but the symbols.
    pub fn clear(&mut self) {
        self.records.clear();
        self.rejects.clear();
        self.accounts.clear();
        self.unknown_fields = 0;
    }

    /// Files one judged record; `original` is asked for only if it is dead.
    fn file(&mut self, cursor: Cursor, judged: Judged<(Tick, bool)>, original: impl FnOnce() -> Vec<u8>) {
        match judged {
            Ok((tick, ignored)) => {
                self.records.push(cursor, tick);
                self.unknown_fields += u64::from(ignored);
            }
            Err(fault) => self.rejects.push(fault.dead(cursor, original())),
        }
    }
}

/// Why one record is dead, before it is known where it stands.
#[derive(Debug)]
struct Fault {
    reason: Reason,
    field: Cow<'static, str>,
    value: String,
    detail: String,
}

/// Boxed: the good path should not carry room for four strings.
type Judged<T> = Result<T, Box<Fault>>;

impl Fault {
    fn new(
        reason: Reason,
        field: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
        detail: impl Into<String>,
    ) -> Box<Fault> {
        Box::new(Fault { reason, field: field.into(), value: value.into(), detail: detail.into() })
    }

    fn dead(self, cursor: Cursor, original: Vec<u8>) -> DeadLetter {
        let Fault { reason, field, value, detail } = self;
        DeadLetter { cursor, reason, field: field.into_owned(), value, detail, original }
    }
}

/// The fields of a tick on the wire, in the order in which they are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    Kind,
    Symbol,
    EventTime,
    Seq,
    Price,
    Size,
    Bid,
    Ask,
    BidSize,
    AskSize,
    Rev,
    Timeframe,
    OpenTime,
    Open,
    High,
    Low,
    Close,
    Volume,
    Turnover,
    Count,
    Deleted,
}

impl Field {
    const COUNT: usize = 21;

    const ALL: [Field; Field::COUNT] = [
        Field::Kind,
        Field::Symbol,
        Field::EventTime,
        Field::Seq,
        Field::Price,
        Field::Size,
        Field::Bid,
        Field::Ask,
        Field::BidSize,
        Field::AskSize,
        Field::Rev,
        Field::Timeframe,
        Field::OpenTime,
        Field::Open,
        Field::High,
        Field::Low,
        Field::Close,
        Field::Volume,
        Field::Turnover,
        Field::Count,
        Field::Deleted,
    ];

    /// Without these columns no row of a table can be a tick.
    const REQUIRED: [Field; 4] = [Field::Kind, Field::Symbol, Field::EventTime, Field::Seq];

    const fn name(self) -> &'static str {
        match self {
            Field::Kind => "kind",
            Field::Symbol => "symbol",
            Field::EventTime => "event_time",
            Field::Seq => "seq",
            Field::Price => "price",
            Field::Size => "size",
            Field::Bid => "bid",
            Field::Ask => "ask",
            Field::BidSize => "bid_size",
            Field::AskSize => "ask_size",
            Field::Rev => "rev",
            Field::Timeframe => "timeframe",
            Field::OpenTime => "open_time",
            Field::Open => "open",
            Field::High => "high",
            Field::Low => "low",
            Field::Close => "close",
            Field::Volume => "volume",
            Field::Turnover => "turnover",
            Field::Count => "count",
            Field::Deleted => "deleted",
        }
    }

    fn named(name: &str) -> Option<Field> {
        Some(match name {
            "kind" => Field::Kind,
            "symbol" => Field::Symbol,
            "event_time" => Field::EventTime,
            "seq" => Field::Seq,
            "price" => Field::Price,
            "size" => Field::Size,
            "bid" => Field::Bid,
            "ask" => Field::Ask,
            "bid_size" => Field::BidSize,
            "ask_size" => Field::AskSize,
            "rev" => Field::Rev,
            "timeframe" => Field::Timeframe,
            "open_time" => Field::OpenTime,
            "open" => Field::Open,
            "high" => Field::High,
            "low" => Field::Low,
            "close" => Field::Close,
            "volume" => Field::Volume,
            "turnover" => Field::Turnover,
            "count" => Field::Count,
            "deleted" => Field::Deleted,
            _ => return None,
        })
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// The bits of several fields.
const fn bits(fields: &[Field]) -> u32 {
    let (mut mask, mut i) = (0, 0);
    while i < fields.len() {
        mask |= fields[i].bit();
        i += 1;
    }
    mask
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Trade,
    Quote,
    Bust,
    Correction,
    Amend,
}

impl Kind {
    fn named(name: &str) -> Option<Kind> {
        Some(match name {
            "trade" => Kind::Trade,
            "quote" => Kind::Quote,
            "bust" => Kind::Bust,
            "correction" => Kind::Correction,
            "amend" => Kind::Amend,
            _ => return None,
        })
    }

    const fn article_and_name(self) -> &'static str {
        match self {
            Kind::Trade => "a trade",
            Kind::Quote => "a quote",
            Kind::Bust => "a bust",
            Kind::Correction => "a correction",
            Kind::Amend => "an amend",
        }
    }

    /// The fields that a tick of this kind may have.
    const fn fields(self) -> u32 {
        const TICK: u32 = bits(&Field::REQUIRED);
        const TRADE: u32 = TICK | bits(&[Field::Price, Field::Size]);
        match self {
            Kind::Trade => TRADE,
            Kind::Quote => TICK | bits(&[Field::Bid, Field::Ask, Field::BidSize, Field::AskSize]),
            Kind::Bust => TICK,
            Kind::Correction => TRADE | Field::Rev.bit(),
            Kind::Amend => TICK | bits(&[Field::Rev, Field::Timeframe, Field::OpenTime, Field::Deleted]) | BAR,
        }
    }
}

/// The fields that an amend has unless it deletes its bar.
const BAR_FIELDS: [Field; 7] =
    [Field::Open, Field::High, Field::Low, Field::Close, Field::Volume, Field::Turnover, Field::Count];
const BAR: u32 = bits(&BAR_FIELDS);

/// A field's value as its carrier has it.
#[derive(Clone, Debug)]
enum Value<'a> {
    /// Absent, null, or an empty cell.
    Null,
    /// A text; it may say a number.
    Text(Cow<'a, str>),
    /// The text of a JSON number.
    Number(&'a str),
    Float(f64),
    Int(i128),
    /// `units · 10^-scale`.
    Fixed {
        units: i128,
        scale: i8,
    },
    /// Nanoseconds since 1970, of a carrier that knows times.
    Time(i128),
    Bool(bool),
    /// A list, an object, or a text that is none.
    Other(&'a str),
}

impl Value<'_> {
    /// For an error, at most 64 bytes.
    fn shown(&self) -> String {
        match self {
            Value::Null => String::new(),
            Value::Text(text) => excerpt(text),
            Value::Number(text) | Value::Other(text) => excerpt(text),
            Value::Float(float) => excerpt(&float.to_string()),
            Value::Int(int) => int.to_string(),
            Value::Fixed { units, scale: scale @ 0..=38 } => format_fixed(*units, *scale as u8),
            Value::Fixed { units, scale } => format!("{units}e{}", -i16::from(*scale)),
            Value::Time(nanos) => i64::try_from(*nanos).map_or_else(|_| nanos.to_string(), format_rfc3339),
            Value::Bool(flag) => flag.to_string(),
        }
    }

    /// The number as units of 10^-scale, exactly or not at all.
    fn fixed(&self, scale: u8) -> Result<i64, NumError> {
        match self {
            Value::Text(text) => parse_fixed(text, scale),
            Value::Number(text) => parse_fixed(text, scale),
            Value::Float(float) => fixed_from_f64(*float, scale),
            other => i64::try_from(other.wide(scale)?).map_err(|_| NumError::TooLarge),
        }
    }

    /// The same where a sum may need more than 64 bits. The limit leaves room to add a day's nanoseconds of such bars.
    fn wide(&self, scale: u8) -> Result<i128, NumError> {
        let units = match self {
            Value::Text(text) => parse_wide(text, scale)?,
            Value::Number(text) => parse_wide(text, scale)?,
            Value::Float(float) if float.is_finite() => parse_wide(&float.to_string(), scale)?,
            Value::Int(int) => rescale(*int, 0, scale)?,
            Value::Fixed { units, scale: from } => rescale(*units, i64::from(*from), scale)?,
            _ => return Err(NumError::NotANumber),
        };
        if units.unsigned_abs() > WIDE_MAX.unsigned_abs() { Err(NumError::TooLarge) } else { Ok(units) }
    }

    /// Digits, without sign, point or exponent.
    fn integer(&self) -> Result<u64, NumError> {
        let text: &str = match self {
            Value::Text(text) => text,
            Value::Number(text) => text,
            Value::Int(int) if *int < 0 => return Err(NumError::NotANumber),
            Value::Int(int) => return u64::try_from(*int).map_err(|_| NumError::TooLarge),
            _ => return Err(NumError::NotANumber),
        };
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NumError::NotANumber);
        }
        text.parse().map_err(|_| NumError::TooLarge)
    }
}

/// The largest volume and turnover of an amended bar, in units.
const WIDE_MAX: i128 = i128::MAX >> 20;

/// `units · 10^-from` in units of 10^-to, exactly or not at all.
fn rescale(units: i128, from: i64, to: u8) -> Result<i128, NumError> {
    if units == 0 {
        return Ok(0);
    }
    let shift = i64::from(to) - from;
    let power = u32::try_from(shift.unsigned_abs()).ok().and_then(|n| 10_i128.checked_pow(n));
    match (shift < 0, power) {
        (false, Some(power)) => units.checked_mul(power).ok_or(NumError::TooLarge),
        (false, None) => Err(NumError::TooLarge),
        (true, Some(power)) if units % power == 0 => Ok(units / power),
        (true, _) => Err(NumError::TooManyDecimals(to)),
    }
}

/// As [`parse_fixed`], for sums that need more than 64 bits.
fn parse_wide(text: &str, scale: u8) -> Result<i128, NumError> {
    match parse_fixed(text, scale) {
        Err(NumError::TooLarge) => {}
        other => return other.map(i128::from),
    }
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => (true, unsigned),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (number, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    let mut units = 0_i128;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if !digit.is_ascii_digit() {
            return Err(NumError::NotANumber);
        }
        let shifted = units.checked_mul(10).and_then(|u| u.checked_add(i128::from(digit - b'0')));
        units = shifted.ok_or(NumError::TooLarge)?;
    }
    let exponent: i32 = exponent.parse().map_err(|_| NumError::TooLarge)?;
    rescale(if negative { -units } else { units }, fraction.len() as i64 - i64::from(exponent), scale)
}

/// One record's fields, whatever carries them.
trait Fields {
    fn get(&self, field: Field) -> Value<'_>;

    /// Whether it has a value in a field outside `known`.
    fn has_others(&self, known: u32) -> bool;

    /// What its carrier calls the field.
    fn name(&self, field: Field) -> &'static str {
        field.name()
    }
}

/// A symbol, and what its numbers need.
#[derive(Clone, Copy, Debug)]
struct Known {
    symbol: Symbol,
    scale: u8,
    bar_scale: u8,
    price_source: PriceSource,
    allow_negative: bool,
    length: u8,
    text: [u8; 32],
}

/// Symbols met lately by their text, so that a record needs neither the table of all names nor that of instruments.
#[derive(Clone, Debug, Default)]
struct SymbolCache {
    instruments: Option<Arc<Instruments>>,
    slots: Vec<Option<Known>>,
}

impl SymbolCache {
    const SLOTS: usize = 1024;

    fn get(&mut self, instruments: &Arc<Instruments>, text: &str) -> Result<Known, NameError> {
        if !self.instruments.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, instruments)) {
            self.instruments = Some(Arc::clone(instruments));
            self.slots.clear();
            self.slots.resize(SymbolCache::SLOTS, None);
        }
        let bytes = text.as_bytes();
        let hash = bytes.iter().take(32).fold(0_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
        let slot = (hash ^ (hash >> 15)) as usize % SymbolCache::SLOTS;
        if let Some(known) = &self.slots[slot]
            && known.text[..usize::from(known.length)] == *bytes
        {
            return Ok(*known);
        }
        let symbol = Symbol::canonical(text)?;
        let instrument = instruments.get(symbol);
        let mut known = Known {
            symbol,
            scale: instrument.scale,
            bar_scale: instrument.bar_scale(),
            price_source: instrument.price_source,
            allow_negative: instrument.allow_negative,
            length: bytes.len() as u8,
            text: [0; 32],
        };
        known.text[..bytes.len()].copy_from_slice(bytes);
        self.slots[slot] = Some(known);
        Ok(known)
    }
}

/// The judge of one record: from its fields to a tick, or to what is wrong with it.
struct Judge<'a, F> {
    decoder: &'a Decoder,
    fields: &'a F,
    receive_time: Nanos,
    kind: Kind,
    known: Known,
}

/// Judges one record. The flag says whether some of its fields were ignored.
fn judge<F: Fields>(
    decoder: &Decoder,
    symbols: &mut SymbolCache,
    fields: &F,
    receive_time: Nanos,
) -> Judged<(Tick, bool)> {
    let kind = match fields.get(Field::Kind) {
        Value::Text(name) => Kind::named(&name),
        Value::Null => return Err(missing("a tick", fields.name(Field::Kind))),
        _ => None,
    };
    let Some(kind) = kind else {
        let detail = "kind must be trade, quote, bust, correction or amend";
        return Err(Fault::new(Reason::Invalid, fields.name(Field::Kind), fields.get(Field::Kind).shown(), detail));
    };
    let known = match fields.get(Field::Symbol) {
        Value::Text(text) => symbols.get(&decoder.instruments, &text).ok(),
        Value::Null => return Err(missing(kind.article_and_name(), fields.name(Field::Symbol))),
        _ => None,
    };
    let Some(known) = known else {
        let value = fields.get(Field::Symbol).shown();
        return Err(Fault::new(Reason::Invalid, fields.name(Field::Symbol), value, SYMBOL_RULE));
    };
    let tick = Judge { decoder, fields, receive_time, kind, known }.tick()?;
    Ok((tick, fields.has_others(kind.fields())))
}

const SYMBOL_RULE: &str = "symbol must be 1 to 32 of A-Z, 0-9, . _ / - :";

fn missing(whose: &str, name: impl Into<Cow<'static, str>>) -> Box<Fault> {
    let name = name.into();
    let detail = format!("{whose} must have {name}");
    Fault::new(Reason::Missing, name, "", detail)
}

fn invalid(name: impl Into<Cow<'static, str>>, value: &Value<'_>, must: &str) -> Box<Fault> {
    let name = name.into();
    let detail = format!("{name} {must}");
    Fault::new(Reason::Invalid, name, value.shown(), detail)
}

/// What is wrong with a number; `limit` is the largest that fits.
fn bad_number(
    name: impl Into<Cow<'static, str>>,
    value: &Value<'_>,
    error: NumError,
    limit: impl FnOnce() -> String,
) -> Box<Fault> {
    let (name, shown) = (name.into(), value.shown());
    match error {
        NumError::NotANumber => {
            let comma = if shown.contains(',') { " with a point, not a comma" } else { "" };
            invalid(name, value, &format!("must be a finite decimal number{comma}"))
        }
        NumError::TooManyDecimals(scale) => invalid(name, value, &format!("must not have more than {scale} decimals")),
        NumError::TooLarge => {
            let detail = format!("{name} must not exceed {}", limit());
            Fault::new(Reason::Overflow, name, shown, detail)
        }
    }
}

fn largest(scale: u8) -> String {
    format_fixed(i128::from(i64::MAX), scale)
}

/// An unsigned integer up to `max`.
fn integer(name: impl Into<Cow<'static, str>>, value: &Value<'_>, max: u64) -> Judged<u64> {
    let name = name.into();
    match value.integer() {
        Ok(integer) if integer <= max => Ok(integer),
        Ok(_) | Err(NumError::TooLarge) => {
            let detail = format!("{name} must not exceed {max}");
            Err(Fault::new(Reason::Overflow, name, value.shown(), detail))
        }
        Err(_) => Err(invalid(name, value, "must be a whole number, not negative")),
    }
}

/// A time in the range that can be true, and not too far ahead of its receipt.
fn time(
    name: impl Into<Cow<'static, str>>,
    value: &Value<'_>,
    receive_time: Nanos,
    max_ahead: Option<Nanos>,
) -> Judged<Nanos> {
    let name = name.into();
    let must = "must be RFC 3339 with a zone, or whole nanoseconds since 1970";
    // A text that says its date needs no guess about its unit.
    let (nanos, bare) = match value {
        Value::Int(nanos) | Value::Time(nanos) => (*nanos, true),
        Value::Text(text) if !is_whole(text) => match canonical_time(text).or_else(|| parse_rfc3339(text).ok()) {
            Some(nanos) => (i128::from(nanos), false),
            None => return Err(invalid(name, value, must)),
        },
        Value::Text(text) => (whole(text), true),
        Value::Number(text) if is_whole(text) => (whole(text), true),
        _ => return Err(invalid(name, value, must)),
    };
    let fault = |detail: String| Err(Fault::new(Reason::EventTime, name.clone(), value.shown(), detail));
    if nanos < i128::from(EARLIEST) {
        let unit = if bare { likely_unit(nanos) } else { None };
        return fault(match unit {
            Some(unit) => format!("{name} is before 1990: it looks like {unit}, and must be nanoseconds"),
            None => format!("{name} is before 1990"),
        });
    }
    let nanos = match Nanos::try_from(nanos) {
        Ok(nanos) if nanos < LATEST => nanos,
        _ => return fault(format!("{name} is not before 2200")),
    };
    match max_ahead {
        Some(max) if nanos > receive_time.saturating_add(max) => {
            let (ahead, max) = (nanos.saturating_sub(receive_time), format_fixed(i128::from(max), 9));
            let ahead = format_fixed(i128::from(ahead), 9);
            fault(format!("{name} is {ahead} s ahead of its receipt, more than {max} s"))
        }
        _ => Ok(nanos),
    }
}

/// `2013-10-07T13:30:00.123456789Z`, as nearly all times are written. What it does not know is left to the general
/// parser, which takes several times as long.
fn canonical_time(text: &str) -> Option<Nanos> {
    let bytes = text.strip_suffix('Z')?.as_bytes();
    if bytes.len() < 19 || (bytes[4], bytes[7], bytes[10]) != (b'-', b'-', b'T') {
        return None;
    }
    instant(&bytes[..4], &bytes[5..7], &bytes[8..10], &bytes[11..])
}

/// The instant of a UTC date and a clock such as `13:30:00` or `13:30:00.123`, with at most nine decimals.
fn instant(year: &[u8], month: &[u8], day: &[u8], clock: &[u8]) -> Option<Nanos> {
    let (year, month, day) = (digits(year)?, digits(month)?, digits(day)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=longest).contains(&day) {
        return None;
    }
    // Days since 1970 by years that begin in March: https://howardhinnant.github.io/date_algorithms.html#days_from_civil
    let years = year - i64::from(month <= 2);
    let (era, year_of_era) = (years.div_euclid(400), years.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;

    if clock.len() < 8 || (clock[2], clock[5]) != (b':', b':') {
        return None;
    }
    let (hour, minute, second) = (digits(&clock[..2])?, digits(&clock[3..5])?, digits(&clock[6..8])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let nanos = match &clock[8..] {
        [] => 0,
        [b'.', decimals @ ..] if (1..=9).contains(&decimals.len()) => {
            digits(decimals)? * 10_i64.pow(9 - decimals.len() as u32)
        }
        _ => return None,
    };
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    seconds.checked_mul(SECOND)?.checked_add(nanos)
}

/// Up to nine digits.
fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

fn is_whole(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// The number that [`is_whole`] saw; what no i128 holds is as far away.
fn whole(text: &str) -> i128 {
    text.parse().unwrap_or(if text.starts_with('-') { i128::MIN } else { i128::MAX })
}

/// The unit in which `count` is a time of today rather than of the early seventies.
fn likely_unit(count: i128) -> Option<&'static str> {
    let units = [("seconds", SECOND), ("milliseconds", MILLI), ("microseconds", 1000)];
    let plausible = i128::from(EARLIEST)..i128::from(LATEST);
    if count <= 0 {
        return None;
    }
    units.into_iter().find(|(_, unit)| plausible.contains(&(count * i128::from(*unit)))).map(|(name, _)| name)
}

impl<F: Fields> Judge<'_, F> {
    fn tick(&self) -> Judged<Tick> {
        if self.kind == Kind::Amend {
            return self.amend();
        }
        let event_time = self.required(Field::EventTime, self.time(Field::EventTime)?)?;
        let seq = self.required(Field::Seq, self.integer(Field::Seq, u64::MAX)?)?;
        let scale = self.known.scale;
        let event = match self.kind {
            Kind::Trade => Event::Trade { price: self.price(Field::Price, scale)?, size: self.traded_size()? },
            Kind::Correction => {
                let rev = self.rev()?;
                Event::Correction { rev, price: self.price(Field::Price, scale)?, size: self.traded_size()? }
            }
            Kind::Quote => self.quote()?,
            Kind::Bust | Kind::Amend => Event::Bust,
        };
        Ok(Tick { symbol: self.known.symbol, event_time, seq, event })
    }

    fn quote(&self) -> Judged<Event> {
        let (bid, ask) = (self.price(Field::Bid, self.known.scale)?, self.price(Field::Ask, self.known.scale)?);
        if self.known.price_source == PriceSource::Mid && Price::mid(bid, ask).is_none() {
            let value = self.fields.get(Field::Bid).shown();
            let detail = "the mean of bid and ask is too large for its bars";
            return Err(Fault::new(Reason::Overflow, self.fields.name(Field::Bid), value, detail));
        }
        let (bid_size, ask_size) = (self.quoted_size(Field::BidSize)?, self.quoted_size(Field::AskSize)?);
        Ok(Event::Quote { bid, ask, bid_size, ask_size })
    }

    fn amend(&self) -> Judged<Tick> {
        let base = self.decoder.base_timeframe;
        // Either time names the bar; a table with a required event_time column may leave open_time out.
        let (open, event) = (self.time(Field::OpenTime)?, self.time(Field::EventTime)?);
        let field = if open.is_some() { Field::OpenTime } else { Field::EventTime };
        let Some(open_time) = open.or(event) else {
            return Err(missing(self.kind.article_and_name(), self.fields.name(Field::OpenTime)));
        };
        if event.is_some_and(|event| event != open_time) {
            return Err(self.invalid(Field::EventTime, "must equal open_time in an amend"));
        }
        if base.open_time(open_time) != open_time {
            return Err(self.invalid(field, &format!("must be a multiple of {base}, the base timeframe")));
        }
        if self.integer(Field::Seq, u64::MAX)?.is_some_and(|seq| seq != 0) {
            return Err(self.invalid(Field::Seq, "must be 0 or absent in an amend"));
        }
        let timeframe = match self.fields.get(Field::Timeframe) {
            Value::Null => Some(base),
            Value::Text(text) => text.parse::<Timeframe>().ok(),
            _ => None,
        };
        if timeframe != Some(base) {
            return Err(self.invalid(Field::Timeframe, &format!("must be {base}, the base timeframe, or absent")));
        }
        let rev = self.rev()?;
        let deleted = match self.fields.get(Field::Deleted) {
            Value::Null => false,
            Value::Bool(deleted) => deleted,
            Value::Text(text) if text == "true" || text == "false" => text == "true",
            _ => return Err(self.invalid(Field::Deleted, "must be true or false")),
        };
        let bar = if deleted { self.no_bar().map(|()| None)? } else { Some(self.bar()?) };
        let event = Event::Amend(Box::new(Amend { rev, bar }));
        Ok(Tick { symbol: self.known.symbol, event_time: open_time, seq: 0, event })
    }

    fn no_bar(&self) -> Judged<()> {
        match BAR_FIELDS.into_iter().find(|field| !matches!(self.fields.get(*field), Value::Null)) {
            Some(field) => Err(self.invalid(field, "must be absent where deleted is true")),
            None => Ok(()),
        }
    }

    fn bar(&self) -> Judged<BarBody> {
        let scale = self.known.bar_scale;
        let price = |field| self.price(field, scale);
        let (open, high) = (price(Field::Open)?, price(Field::High)?);
        let (low, close) = (price(Field::Low)?, price(Field::Close)?);
        if high < open.max(close) {
            return Err(self.invalid(Field::High, "must not be below open or close"));
        }
        if low > open.min(close) {
            return Err(self.invalid(Field::Low, "must not be above open or close"));
        }
        let volume = self.wide(Field::Volume, SCALE)?;
        let turnover = self.wide(Field::Turnover, scale + SCALE)?;
        let (volume, turnover) = if self.known.price_source == PriceSource::Last {
            let volume = self.required(Field::Volume, volume)?;
            if volume < 0 {
                return Err(self.invalid(Field::Volume, "must not be negative"));
            }
            if volume == 0 && turnover.is_some_and(|turnover| turnover != 0) {
                return Err(self.invalid(Field::Turnover, "must be 0 where volume is 0"));
            }
            let turnover = if volume > 0 { self.required(Field::Turnover, turnover)? } else { 0 };
            if turnover < 0 && !self.known.allow_negative {
                return Err(self.invalid(Field::Turnover, "must not be negative"));
            }
            (volume, turnover)
        } else {
            for (field, sum) in [(Field::Volume, volume), (Field::Turnover, turnover)] {
                if sum.is_some_and(|sum| sum != 0) {
                    return Err(self.invalid(field, "must be 0 or absent: the bars of this instrument are of quotes"));
                }
            }
            (0, 0)
        };
        let count = self.required(Field::Count, self.integer(Field::Count, COUNT_MAX)?)?;
        if count == 0 {
            return Err(self.invalid(Field::Count, "must be positive: a bar without ticks is deleted"));
        }
        Ok(BarBody { open, high, low, close, volume, turnover, count })
    }

    fn required<T>(&self, field: Field, value: Option<T>) -> Judged<T> {
        value.ok_or_else(|| missing(self.kind.article_and_name(), self.fields.name(field)))
    }

    fn invalid(&self, field: Field, must: &str) -> Box<Fault> {
        invalid(self.fields.name(field), &self.fields.get(field), must)
    }

    fn time(&self, field: Field) -> Judged<Option<Nanos>> {
        match self.fields.get(field) {
            Value::Null => Ok(None),
            value => time(self.fields.name(field), &value, self.receive_time, self.decoder.max_ahead).map(Some),
        }
    }

    fn integer(&self, field: Field, max: u64) -> Judged<Option<u64>> {
        match self.fields.get(field) {
            Value::Null => Ok(None),
            value => integer(self.fields.name(field), &value, max).map(Some),
        }
    }

    fn fixed(&self, field: Field, scale: u8) -> Judged<Option<i64>> {
        match self.fields.get(field) {
            Value::Null => Ok(None),
            value => {
                let fault = |e| bad_number(self.fields.name(field), &value, e, || largest(scale));
                value.fixed(scale).map(Some).map_err(fault)
            }
        }
    }

    fn wide(&self, field: Field, scale: u8) -> Judged<Option<i128>> {
        match self.fields.get(field) {
            Value::Null => Ok(None),
            value => {
                let fault = |e| bad_number(self.fields.name(field), &value, e, || format_fixed(WIDE_MAX, scale));
                value.wide(scale).map(Some).map_err(fault)
            }
        }
    }

    fn price(&self, field: Field, scale: u8) -> Judged<Price> {
        let units = self.required(field, self.fixed(field, scale)?)?;
        if units <= 0 && !self.known.allow_negative {
            return Err(self.invalid(field, "must be positive"));
        }
        Ok(Price(units))
    }

    fn traded_size(&self) -> Judged<Size> {
        let units = self.required(Field::Size, self.fixed(Field::Size, SCALE)?)?;
        if units <= 0 {
            return Err(self.invalid(Field::Size, "must be positive"));
        }
        Ok(Size(units))
    }

    fn quoted_size(&self, field: Field) -> Judged<Size> {
        let units = self.fixed(field, SCALE)?.unwrap_or(0);
        if units < 0 {
            return Err(self.invalid(field, "must not be negative"));
        }
        Ok(Size(units))
    }

    fn rev(&self) -> Judged<u32> {
        // The bound is u32's, so the conversion cannot lose anything.
        Ok(self.integer(Field::Rev, u64::from(u32::MAX))?.map_or(1, |rev| rev as u32))
    }
}

/// The largest count of an amended bar: it leaves room to add a day of such bars.
const COUNT_MAX: u64 = u64::MAX >> 20;

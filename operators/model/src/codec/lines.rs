//! The fast way through the lines of a CSV file: plain trades and quotes, straight from the reader's buffer.
//!
//! It never judges. A line is read once, cell by cell in the order of its columns; where anything is not as in nearly
//! all lines, it stops before that line, which is then split and judged. So what is accepted, what is rejected and in
//! which words is the same; a property test holds it to that.

use super::columnar::{LARGEST_QUOTED, Scales, Short, Slots, UNUSUAL};
use super::{Decoded, Decoder, EARLIEST, Field, LATEST, instant};
use crate::cursor::Cursor;
use crate::num::{SCALE, pow10};
use crate::time::{MILLI, Nanos, SECOND};

/// What a column of the file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// `trade` or `quote`.
    Kind,
    Symbol,
    /// Nanoseconds or RFC 3339.
    Time,
    /// Milliseconds or microseconds.
    ShortTime,
    /// `20140505 00:00:00.123`
    TrueFxTime,
    Seq,
    Number(Number),
    /// A field of ours that no plain tick has.
    Empty,
    /// Anything.
    Ignored,
    /// True or false.
    Flag,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(super) enum Number {
    Price,
    Size,
    Bid,
    Ask,
    BidSize,
    AskSize,
}

impl Role {
    /// The role of a field of our own columns.
    pub(super) fn of(field: Field) -> Role {
        match field {
            Field::Kind => Role::Kind,
            Field::Symbol => Role::Symbol,
            Field::EventTime => Role::Time,
            Field::Seq => Role::Seq,
            Field::Price => Role::Number(Number::Price),
            Field::Size => Role::Number(Number::Size),
            Field::Bid => Role::Number(Number::Bid),
            Field::Ask => Role::Number(Number::Ask),
            Field::BidSize => Role::Number(Number::BidSize),
            Field::AskSize => Role::Number(Number::AskSize),
            _ => Role::Empty,
        }
    }
}

/// What all lines of a file have in common.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) roles: Vec<Role>,
    /// Whether the last column may be absent.
    pub(super) last_is_optional: bool,
    /// Whether each line is a quote, where no column says it.
    pub(super) quotes: bool,
    /// The symbol, where no column says it.
    pub(super) symbol: Option<crate::name::Symbol>,
    /// Whether there are columns that are not ours.
    pub(super) ignores: bool,
    pub(super) longest: usize,
}

/// A number's digits without the point, and how many of them follow it; none if the cell is empty.
type Decimal = Option<(i64, u8)>;

/// The date of the line before, as it was written, and its midnight.
#[derive(Clone, Copy, Debug, Default)]
struct Day {
    text: [u8; 11],
    midnight: Option<Nanos>,
}

/// What is known while lines are read into one [`Decoded`].
pub(super) struct Lines<'a> {
    plan: &'a Plan,
    decoder: &'a Decoder,
    latest: Nanos,
    slots: Slots,
    scales: Scales,
    day: Day,
    /// The code of the plan's symbol.
    code: Option<u32>,
}

struct Line {
    quote: bool,
    code: u32,
    time: Nanos,
    seq: u64,
    first: i64,
    second: i64,
    bid_size: i64,
    ask_size: i64,
}

impl<'a> Lines<'a> {
    /// For so many lines.
    pub(super) fn new(plan: &'a Plan, decoder: &'a Decoder, lines: usize, receive_time: Nanos) -> Self {
        let latest = decoder.latest(receive_time);
        let (slots, scales) = (Slots::new(lines), Scales::default());
        Lines { plan, decoder, latest, slots, scales, day: Day::default(), code: None }
    }

    /// Reads plain lines, `most` at most; how many, and how many bytes they are. `first` is where the first one stands.
    pub(super) fn read(&mut self, bytes: &[u8], first: Cursor, most: usize, out: &mut Decoded) -> (usize, usize) {
        let (mut at, mut lines) = (0, 0);
        let before = out.records.len();
        while lines < most {
            let Some((line, end)) = self.line(bytes, at, first.offset + lines as u64, out) else { break };
            let Line { code, time, seq, first, second, .. } = line;
            match line.quote {
                true => out.records.add_quote(code, time, seq, first, second, line.bid_size, line.ask_size),
                false => out.records.add_trade(code, time, seq, first, second),
            }
            at = end;
            lines += 1;
        }
        out.records.locate(first, before, lines, Some(true));
        out.unknown_fields += if self.plan.ignores { lines as u64 } else { 0 };
        (lines, at)
    }

    /// A plain line and where it ends; none if it is anything else.
    fn line(&mut self, bytes: &[u8], start: usize, offset: u64, out: &mut Decoded) -> Option<(Line, usize)> {
        let plan = self.plan;
        let mut quote = plan.quotes;
        // Where no column says it, the number of the line, from 1, is its seq.
        let (mut code, mut time, mut seq) = (UNUSUAL, 0, offset.checked_add(1)?);
        let mut numbers: [Decimal; 6] = [None; 6];
        let mut at = start;
        let last = plan.roles.len().checked_sub(1)?;
        for (i, role) in plan.roles.iter().enumerate() {
            match role {
                Role::Kind => {
                    quote = match bytes.get(at..at + 5)? {
                        b"trade" => false,
                        b"quote" => true,
                        _ => return None,
                    };
                    at += 5;
                }
                Role::Symbol => (code, at) = self.symbol(bytes, at, out)?,
                Role::Time => (time, at) = self.time(bytes, at)?,
                Role::ShortTime => {
                    let count;
                    (count, at) = whole(bytes, at)?;
                    let count = i64::try_from(count).ok()?;
                    let as_time = |unit: Nanos| count.checked_mul(unit).filter(|t| (EARLIEST..LATEST).contains(t));
                    time = as_time(MILLI).or_else(|| as_time(1000))?;
                }
                Role::TrueFxTime => {
                    let midnight = self.midnight(bytes.get(at..at + 9)?, [0..4, 4..6, 6..8], [(8, b' '); 2])?;
                    let of_day;
                    (of_day, at) = clock(bytes, at + 9)?;
                    time = midnight + of_day;
                }
                Role::Seq => (seq, at) = whole(bytes, at)?,
                Role::Number(number) => (numbers[*number as usize], at) = decimal(bytes, at)?,
                Role::Empty => {}
                Role::Ignored => {
                    while !matches!(bytes.get(at)?, b',' | b'\n' | b'\r') {
                        if bytes[at] == b'"' || !bytes[at].is_ascii() {
                            return None;
                        }
                        at += 1;
                    }
                }
                Role::Flag => {
                    let is = |flag: &[u8]| bytes.get(at..at + flag.len()).is_some_and(|b| b.eq_ignore_ascii_case(flag));
                    at += if is(b"true") {
                        4
                    } else if is(b"false") {
                        5
                    } else {
                        return None;
                    };
                }
            }
            let more = *bytes.get(at)? == b',';
            at += 1;
            if !more {
                let end = at - 1 + usize::from(bytes[at - 1] == b'\r');
                if *bytes.get(end)? != b'\n' || i + usize::from(plan.last_is_optional) < last {
                    return None;
                }
                at = end + 1;
                break;
            }
            if i == last {
                return None;
            }
        }
        if !(EARLIEST..=self.latest).contains(&time) || at - start > plan.longest {
            return None;
        }
        if let Some(symbol) = plan.symbol {
            code = match self.code {
                Some(code) => code,
                None => self.find(symbol.as_str(), out)?,
            };
            self.code = Some(code);
        }
        let fixed = |number: Number, scale: u8| {
            let (units, decimals) = numbers[number as usize]?;
            units.checked_mul(pow10(scale.checked_sub(decimals)?))
        };
        let scale = self.scales.of(code);
        let has = |all: &[Number]| all.iter().any(|number| numbers[*number as usize].is_some());
        let (first, second) = match quote {
            false if has(&[Number::Bid, Number::Ask, Number::BidSize, Number::AskSize]) => return None,
            true if has(&[Number::Price, Number::Size]) => return None,
            false => (fixed(Number::Price, scale)?, fixed(Number::Size, SCALE)?),
            true => (fixed(Number::Bid, scale)?, fixed(Number::Ask, scale)?),
        };
        let size = |number: Number| if has(&[number]) { fixed(number, SCALE) } else { Some(0) };
        let (bid_size, ask_size) = if quote { (size(Number::BidSize)?, size(Number::AskSize)?) } else { (0, 0) };
        let usual = first > 0 && second > 0 && (!quote || first.max(second) < LARGEST_QUOTED);
        usual.then_some((Line { quote, code, time, seq, first, second, bid_size, ask_size }, at))
    }

    fn symbol(&mut self, bytes: &[u8], start: usize, out: &mut Decoded) -> Option<(u32, usize)> {
        let length = bytes.get(start..)?.iter().take(33).position(|b| matches!(b, b',' | b'\n' | b'\r'))?;
        let end = start + length;
        let short = Short::at(bytes, start, length);
        if let Some(code) = short.and_then(|short| self.slots.get(short)) {
            return Some((code, end));
        }
        let code = self.find(std::str::from_utf8(&bytes[start..end]).ok()?, out)?;
        if let Some(short) = short {
            self.slots.put(short, code);
        }
        Some((code, end))
    }

    fn find(&mut self, text: &str, out: &mut Decoded) -> Option<u32> {
        let known = out.symbols.get(&self.decoder.instruments, text).ok()?;
        let code = out.records.code(known.symbol);
        self.scales.set(code, known.scale);
        Some(code)
    }

    /// Whole nanoseconds, or `2013-10-07T13:30:00.123Z`.
    fn time(&mut self, bytes: &[u8], at: usize) -> Option<(Nanos, usize)> {
        if *bytes.get(at + 4)? != b'-' {
            let (nanos, end) = whole(bytes, at)?;
            return Some((Nanos::try_from(nanos).ok()?, end));
        }
        let midnight = self.midnight(bytes.get(at..at + 11)?, [0..4, 5..7, 8..10], [(7, b'-'), (10, b'T')])?;
        let (of_day, end) = clock(bytes, at + 11)?;
        (*bytes.get(end)? == b'Z').then_some((midnight + of_day, end + 1))
    }

    /// The midnight of a date: year, month and day where `parts` says, and marks between them.
    fn midnight(&mut self, date: &[u8], parts: [std::ops::Range<usize>; 3], marks: [(usize, u8); 2]) -> Option<Nanos> {
        if self.day.text.get(..date.len()) == Some(date)
            && let Some(midnight) = self.day.midnight
        {
            return Some(midnight);
        }
        if marks.iter().any(|(at, mark)| date[*at] != *mark) {
            return None;
        }
        let [year, month, day] = parts.map(|part| &date[part]);
        let midnight = instant(year, month, day, b"00:00:00")?;
        // Beyond the years that are believed, the time of day might not fit.
        if !(EARLIEST..LATEST).contains(&midnight) {
            return None;
        }
        self.day.text[..date.len()].copy_from_slice(date);
        self.day.midnight = Some(midnight);
        Some(midnight)
    }
}

/// `13:30:00` or `13:30:00.123`, with at most nine decimals, since midnight; and where it ends.
fn clock(bytes: &[u8], at: usize) -> Option<(Nanos, usize)> {
    let eight: &[u8; 8] = bytes.get(at..)?.first_chunk()?;
    let [h1, h2, b':', m1, m2, b':', s1, s2] = *eight else { return None };
    let two = |a: u8, b: u8| {
        let (a, b) = (a.wrapping_sub(b'0'), b.wrapping_sub(b'0'));
        (a <= 9 && b <= 9).then_some(i64::from(a) * 10 + i64::from(b))
    };
    let (hour, minute, second) = (two(h1, h2)?, two(m1, m2)?, two(s1, s2)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = (hour * 60 + minute) * 60 + second;
    if *bytes.get(at + 8)? != b'.' {
        return Some((seconds * SECOND, at + 8));
    }
    let (nanos, end) = whole(bytes, at + 9)?;
    let decimals = end - at - 9;
    if decimals > 9 {
        return None;
    }
    Some((seconds * SECOND + nanos as i64 * pow10(9 - decimals as u8), end))
}

/// One to nineteen digits, and where they end.
fn whole(bytes: &[u8], start: usize) -> Option<(u64, usize)> {
    let (mut number, mut at) = (0_u64, start);
    while at < start + 16
        && let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk)
        && let Some(digits) = eight_digits(u64::from_le_bytes(*eight))
    {
        number = number * 100_000_000 + digits;
        at += 8;
    }
    loop {
        let digit = bytes.get(at)?.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        if at == start + 19 {
            return None;
        }
        number = number * 10 + u64::from(digit);
        at += 1;
    }
    (at > start).then_some((number, at))
}

/// The number that eight digits are, the first in the lowest byte.
fn eight_digits(text: u64) -> Option<u64> {
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    // A digit's high half is 3, and stays so when 6 is added.
    let high = text & HIGH | (text.wrapping_add(0x0606_0606_0606_0606) & HIGH) >> 4;
    if high != 0x3333_3333_3333_3333 {
        return None;
    }
    // Pairs, fours, eight: https://lemire.me/blog/2022/01/21/swar-explained-parsing-eight-digits/
    let ones = text & !HIGH;
    let pairs = ones.wrapping_mul(10).wrapping_add(ones >> 8);
    let low = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let high = (pairs >> 16 & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    Some(low.wrapping_add(high) >> 32)
}

/// At most eighteen digits with or without a point, or nothing; and where it ends.
fn decimal(bytes: &[u8], start: usize) -> Option<(Decimal, usize)> {
    let (mut number, mut at, mut point) = (0_i64, start, None);
    loop {
        let byte = *bytes.get(at)?;
        let digit = byte.wrapping_sub(b'0');
        if digit <= 9 {
            number = number.wrapping_mul(10).wrapping_add(i64::from(digit));
        } else if byte == b'.' && point.is_none() {
            point = Some(at);
        } else {
            break;
        }
        at += 1;
        // Eighteen digits and a point.
        if at > start + 19 {
            return None;
        }
    }
    let count = at - start - usize::from(point.is_some());
    match (count, at - start) {
        (0, 0) => Some((None, at)),
        (1..=18, _) => Some((Some((number, point.map_or(0, |point| at - point - 1) as u8)), at)),
        _ => None,
    }
}

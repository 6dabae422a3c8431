//! CSV: our own columns, Binance's public `trades` and `aggTrades` files, and TrueFX's quotes.
//!
//! | format | header | columns | times | symbol |
//! |---|---|---|---|---|
//! | `marea` | yes, in any order | those of [`super::arrow`]; unknown ones are counted | RFC 3339, or nanoseconds | column |
//! | `binance_trades` | with or without | id, price, qty, quote qty, time, is buyer maker (, is best match) | ms or µs | file name |
//! | `binance_agg_trades` | with or without | id, price, quantity, first id, last id, time, is buyer maker (, is best match) | ms or µs | file name |
//! | `truefx` | no | pair, time, bid, ask | `20140505 00:00:00.123`, UTC | column, as written: `EUR/USD` |
//!
//! A trade's id is its `seq`. TrueFX has none: there it is the number of the line, so that two equal quotes of one
//! instant stay two.
//!
//! A record is a line, and its cursor's offset the line's number from 0, header and blank lines included, so that it
//! names one place of the file whatever the format. A line is never continued: a quoted field may hold commas and
//! doubled quotes, not line ends. A byte order mark makes a reject of its line; what follows is read on.

use super::arrow::{number_of, price_scale, rev_of};
use super::json::bar_texts;
use super::lines::{Lines, Number, Plan, Role};
use super::{
    BAR_FIELDS, Decoded, Decoder, EARLIEST, Fault, Field, Fields, Judged, LATEST, Value, instant, invalid, judge,
};
use crate::cursor::{Cursor, Reason, excerpt};
use crate::instrument::Instruments;
use crate::name::{Partition, Symbol};
use crate::num::format_fixed;
use crate::tick::{Event, Tick};
use crate::time::{MILLI, Nanos, format_rfc3339};
use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead};
use std::ops::Range;
use std::str::FromStr;

/// A line that is longer is a reject, which keeps only as much of it.
pub const LONGEST_LINE: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a file's lines are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Our own columns.
    Marea,
    /// Binance's public `trades` files.
    BinanceTrades,
    /// Binance's public `aggTrades` files.
    BinanceAggTrades,
    /// TrueFX's quotes.
    TrueFx,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 4] = [Format::Marea, Format::BinanceTrades, Format::BinanceAggTrades, Format::TrueFx];

    /// Its name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Marea => "marea",
            Format::BinanceTrades => "binance_trades",
            Format::BinanceAggTrades => "binance_agg_trades",
            Format::TrueFx => "truefx",
        }
    }

    fn binance(self) -> Option<&'static Binance> {
        match self {
            Format::BinanceTrades => Some(&TRADES),
            Format::BinanceAggTrades => Some(&AGG_TRADES),
            Format::Marea | Format::TrueFx => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = OpenError;
    fn from_str(name: &str) -> Result<Self, OpenError> {
        let named = Format::ALL.into_iter().find(|f| f.as_str() == name);
        named.ok_or_else(|| OpenError::UnknownFormat(excerpt(name)))
    }
}

/// Why a file cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No format has this name.
    #[error("format {0:?} is none of marea, binance_trades, binance_agg_trades, truefx")]
    UnknownFormat(String),
    /// Neither the file's name nor its first line says what it is.
    #[error("not a known CSV format: {file_name:?} begins with {first_line:?}")]
    Undetected {
        /// The file's name.
        file_name: String,
        /// Its first line, 64 bytes at most.
        first_line: String,
    },
    /// The format takes the symbol from the file's name, and there is none in it.
    #[error("no symbol in the file name {0:?}: it must begin with one, as in BTCUSDT-trades-2024-01-01.csv")]
    NoSymbol(String),
    /// Our own columns, but not all that are required, or one twice.
    #[error("the header {0}")]
    Header(String),
    /// It could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Says by the first line, and else by the file's name, what a file is.
pub fn detect(first_line: &[u8], file_name: &str) -> Option<Format> {
    let line = first_line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(first_line);
    let line = String::from_utf8_lossy(trim_end(line));
    let mut columns = Split::default();
    columns.split(&line).ok()?;
    let columns: Vec<&str> = (0..columns.len()).map(|i| columns.get(&line, i)).collect();
    if Field::REQUIRED.iter().all(|field| columns.contains(&field.name())) {
        return Some(Format::Marea);
    }
    let binance = [(Format::BinanceTrades, &TRADES), (Format::BinanceAggTrades, &AGG_TRADES)];
    if let Some((format, _)) = binance.iter().find(|(_, b)| b.ids.contains(&columns[0])) {
        return Some(*format);
    }
    let whole = |i: usize| columns[i].bytes().all(|b| b.is_ascii_digit()) && !columns[i].is_empty();
    match columns.len() {
        4 if columns[0].contains('/') && truefx_time(columns[1]).is_some() => Some(Format::TrueFx),
        6 | 7 if whole(0) && whole(4) && is_bool(columns[5]) => Some(Format::BinanceTrades),
        7 | 8 if whole(0) && whole(3) && whole(4) && whole(5) && is_bool(columns[6]) => Some(Format::BinanceAggTrades),
        _ => binance.iter().find(|(_, b)| file_name.contains(b.file_name)).map(|(format, _)| *format),
    }
}

/// Where a Binance file has its columns.
struct Binance {
    what: &'static str,
    /// What the first column of a header is called.
    ids: [&'static str; 2],
    /// What the file's name holds after the symbol.
    file_name: &'static str,
    size: (usize, &'static str),
    time: (usize, &'static str),
    /// The columns from here on are true or false, the last of them optional.
    flags: usize,
}

static TRADES: Binance = Binance {
    what: "Binance trades",
    ids: ["id", "trade_id"],
    file_name: "-trades",
    size: (2, "qty"),
    time: (4, "time"),
    flags: 5,
};

static AGG_TRADES: Binance = Binance {
    what: "Binance aggTrades",
    ids: ["agg_trade_id", "aggregate_trade_id"],
    file_name: "-aggTrades",
    size: (2, "quantity"),
    time: (5, "transact_time"),
    flags: 6,
};

fn is_bool(text: &str) -> bool {
    text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false")
}

/// The symbol at the beginning of a file's name, up to the first `-` or the extension.
fn symbol_of(file_name: &str) -> Result<Symbol, OpenError> {
    let name = file_name.rsplit(['/', '\\']).next().unwrap_or(file_name);
    let symbol = name.split(['-', '.']).next().unwrap_or(name);
    Symbol::canonical(symbol).map_err(|_| OpenError::NoSymbol(file_name.to_owned()))
}

/// Our own header: where each field stands.
#[derive(Debug, Default)]
struct Header {
    columns: [Option<usize>; Field::COUNT],
    /// The bits of the fields that stand anywhere.
    present: u32,
    width: usize,
    /// Whether there are columns that are not ours.
    ignores: bool,
}

/// How a line's columns become fields.
#[derive(Debug)]
enum Layout {
    Marea(Box<Header>),
    Binance { format: &'static Binance, symbol: Symbol },
    TrueFx,
}

impl Layout {
    /// The same for plain lines.
    fn plan(&self) -> Plan {
        let longest = LONGEST_LINE;
        match self {
            Layout::Marea(header) => {
                let field = |i: usize| Field::ALL.into_iter().find(|field| header.columns[*field as usize] == Some(i));
                let roles = (0..header.width).map(|i| field(i).map_or(Role::Ignored, Role::of)).collect();
                Plan { roles, ignores: header.ignores, longest, ..Plan::default() }
            }
            Layout::Binance { format, symbol } => {
                let mut roles = vec![Role::Ignored; format.flags];
                roles[0] = Role::Seq;
                roles[1] = Role::Number(Number::Price);
                roles[format.size.0] = Role::Number(Number::Size);
                roles[format.time.0] = Role::ShortTime;
                roles.extend([Role::Flag; 2]);
                Plan { roles, last_is_optional: true, symbol: Some(*symbol), longest, ..Plan::default() }
            }
            Layout::TrueFx => {
                let (bid, ask) = (Role::Number(Number::Bid), Role::Number(Number::Ask));
                let roles = vec![Role::Symbol, Role::TrueFxTime, bid, ask];
                Plan { roles, quotes: true, longest, ..Plan::default() }
            }
        }
    }
}

impl fmt::Debug for Binance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// Reads a file line by line.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    partition: Partition,
    format: Format,
    layout: Layout,
    /// The line in hand, without its end.
    line: Vec<u8>,
    /// Whether `line` has been read and not yet judged.
    pending: bool,
    /// Whether more of `line` was dropped.
    cut: bool,
    columns: Split,
    next: u64,
    plan: Plan,
}

impl<R: BufRead> Reader<R> {
    /// Opens a file: reads its first line, and by it and the file's name detects the format unless one is given. An
    /// empty file is one of our own without rows.
    pub fn open(
        input: R,
        partition: Partition,
        file_name: &str,
        format: Option<Format>,
    ) -> Result<Reader<R>, OpenError> {
        let mut reader = Reader {
            input,
            partition,
            format: Format::Marea,
            layout: Layout::TrueFx,
            line: Vec::new(),
            pending: false,
            cut: false,
            columns: Split::default(),
            next: 0,
            plan: Plan::default(),
        };
        reader.pending = reader.next_line()?;
        let detected = format.or_else(|| detect(&reader.line, file_name));
        reader.format = match detected {
            Some(format) => format,
            None if !reader.pending => Format::Marea,
            None => {
                let first_line = excerpt(&String::from_utf8_lossy(&reader.line));
                return Err(OpenError::Undetected { file_name: file_name.to_owned(), first_line });
            }
        };
        reader.layout = match reader.format.binance() {
            Some(format) => Layout::Binance { format, symbol: symbol_of(file_name)? },
            None if reader.format == Format::TrueFx => Layout::TrueFx,
            None => header(&reader.line, reader.pending)?,
        };
        reader.plan = reader.layout.plan();
        // A header is no record, unless a byte order mark makes it one that is dead.
        if reader.is_header() && !reader.line.starts_with(BYTE_ORDER_MARK) {
            reader.pending = false;
            reader.next = 1;
        }
        Ok(reader)
    }

    /// What the file is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The offset of the next line.
    pub fn upper(&self) -> u64 {
        self.next
    }

    /// Decodes up to `lines` lines; each that is not blank ends as one record or one reject of `out`. False at the end.
    pub fn read(
        &mut self,
        decoder: &Decoder,
        lines: usize,
        receive_time: Nanos,
        out: &mut Decoded,
    ) -> io::Result<bool> {
        let plan = std::mem::take(&mut self.plan);
        let more =
            self.read_lines(&mut Lines::new(&plan, decoder, lines, receive_time), decoder, lines, receive_time, out);
        self.plan = plan;
        more
    }

    fn read_lines(
        &mut self,
        plain: &mut Lines<'_>,
        decoder: &Decoder,
        mut lines: usize,
        receive_time: Nanos,
        out: &mut Decoded,
    ) -> io::Result<bool> {
        while lines > 0 {
            let first = Cursor { partition: self.partition, offset: self.next, row: 0 };
            if !self.pending {
                // Plain lines, as far as they go.
                let (read, bytes) = plain.read(fill(&mut self.input)?, first, lines, out);
                self.input.consume(bytes);
                self.next += read as u64;
                lines -= read;
                if lines == 0 {
                    break;
                }
                if !self.next_line()? {
                    return Ok(false);
                }
            }
            self.read_line(decoder, receive_time, out);
            lines -= 1;
        }
        Ok(true)
    }

    /// Judges the line in hand, unless it is blank.
    fn read_line(&mut self, decoder: &Decoder, receive_time: Nanos, out: &mut Decoded) {
        self.pending = false;
        let cursor = Cursor { partition: self.partition, offset: self.next, row: 0 };
        self.next += 1;
        if !self.line.iter().all(u8::is_ascii_whitespace) {
            let judged = self.judge(decoder, cursor.offset, receive_time, out);
            out.file(cursor, judged, || self.line.clone());
        }
    }

    /// [`Reader::read`] without [`Lines`]: what it must be equal to.
    #[cfg(test)]
    pub(super) fn read_by_line(
        &mut self,
        decoder: &Decoder,
        lines: usize,
        receive_time: Nanos,
        out: &mut Decoded,
    ) -> io::Result<bool> {
        for _ in 0..lines {
            if !self.pending && !self.next_line()? {
                return Ok(false);
            }
            self.read_line(decoder, receive_time, out);
        }
        Ok(true)
    }

    fn judge(
        &mut self,
        decoder: &Decoder,
        offset: u64,
        receive_time: Nanos,
        out: &mut Decoded,
    ) -> Judged<(Tick, bool)> {
        let malformed = |line: &[u8], detail: String| {
            Fault::new(Reason::Malformed, "", excerpt(&String::from_utf8_lossy(line)), detail)
        };
        if self.cut {
            return Err(malformed(&self.line[..64], format!("longer than {LONGEST_LINE} bytes")));
        }
        if self.line.starts_with(BYTE_ORDER_MARK) {
            return Err(malformed(&self.line, "begins with a byte order mark (EF BB BF)".to_owned()));
        }
        let line = std::str::from_utf8(&self.line)
            .map_err(|error| malformed(&self.line, format!("not UTF-8 from byte {}", error.valid_up_to())))?;
        self.columns.split(line).map_err(|detail| malformed(&self.line, detail.to_owned()))?;
        let (most, columns) = match &self.layout {
            Layout::Marea(header) => (header.width, header.width..=header.width),
            Layout::Binance { format, .. } => (format.flags + 2, format.flags + 1..=format.flags + 2),
            Layout::TrueFx => (4, 4..=4),
        };
        let width = self.columns.len();
        if !columns.contains(&width) {
            let expected = if *columns.start() == most { most.to_string() } else { format!("{} or {most}", most - 1) };
            let comma = if width > most { " (a decimal comma?)" } else { "" };
            return Err(malformed(&self.line, format!("has {width} columns instead of {expected}{comma}")));
        }
        let cells = Cells { line, split: &self.columns };
        match &self.layout {
            Layout::Marea(header) => {
                let row = MareaRow { header, cells };
                let (tick, ignored) = judge(decoder, &mut out.symbols, &row, receive_time)?;
                Ok((tick, ignored || header.ignores))
            }
            Layout::Binance { format, symbol } => {
                for flag in format.flags..width {
                    if !is_bool(cells.get(flag)) {
                        let name = if flag == format.flags { "is_buyer_maker" } else { "is_best_match" };
                        return Err(invalid(name, &cells.value(flag), "must be true or false"));
                    }
                }
                let time = binance_time(format, &cells.value(format.time.0))?;
                judge(decoder, &mut out.symbols, &BinanceRow { format, symbol: *symbol, time, cells }, receive_time)
            }
            Layout::TrueFx => {
                let time = truefx_time(cells.get(1)).ok_or_else(|| {
                    invalid(Field::EventTime.name(), &cells.value(1), "must be as in 20140505 00:00:00.123")
                })?;
                judge(decoder, &mut out.symbols, &TrueFxRow { time, seq: offset + 1, cells }, receive_time)
            }
        }
    }

    /// Whether the line in hand is a header.
    fn is_header(&self) -> bool {
        let line = self.line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.line);
        match &self.layout {
            Layout::Marea(_) => self.pending,
            // Where a price should stand, a name does.
            Layout::Binance { .. } => {
                line.split(|b| *b == b',').nth(1).and_then(<[u8]>::first).is_some_and(u8::is_ascii_alphabetic)
            }
            Layout::TrueFx => false,
        }
    }

    /// Reads the next line into hand; false at the end of the file.
    fn next_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        self.cut = false;
        let mut any = false;
        loop {
            let chunk = fill(&mut self.input)?;
            if chunk.is_empty() {
                break;
            }
            any = true;
            let end = chunk.iter().position(|b| *b == b'\n');
            let (part, used) = end.map_or((chunk, chunk.len()), |end| (&chunk[..end], end + 1));
            let room = LONGEST_LINE - self.line.len();
            self.cut |= part.len() > room;
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        let kept = trim_end(&self.line).len();
        self.line.truncate(kept);
        Ok(any)
    }
}

/// What is in the input's buffer, or can be read into it; nothing at the end.
fn fill(input: &mut impl BufRead) -> io::Result<&[u8]> {
    // Twice, since a buffer that is returned from a loop cannot be asked for again.
    while let Err(error) = input.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    input.fill_buf()
}

fn trim_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn header(line: &[u8], exists: bool) -> Result<Layout, OpenError> {
    let mut header = Box::<Header>::default();
    if !exists {
        return Ok(Layout::Marea(header));
    }
    let error = |detail: String| OpenError::Header(detail);
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    let line = std::str::from_utf8(line).map_err(|_| error("is not UTF-8".to_owned()))?;
    let mut split = Split::default();
    split.split(line).map_err(|detail| error(detail.to_owned()))?;
    header.width = split.len();
    for i in 0..split.len() {
        let name = split.get(line, i);
        match Field::named(name) {
            None => header.ignores = true,
            Some(field) if header.present & field.bit() != 0 => return Err(error(format!("has two columns {name}"))),
            Some(field) => {
                header.columns[field as usize] = Some(i);
                header.present |= field.bit();
            }
        }
    }
    match Field::REQUIRED.into_iter().find(|field| header.present & field.bit() == 0) {
        Some(field) => Err(error(format!("has no column {}", field.name()))),
        None => Ok(Layout::Marea(header)),
    }
}

/// A line cut at its commas.
#[derive(Debug, Default)]
struct Split {
    cells: Vec<Range<usize>>,
    /// Where a line has quotes, its cells without them.
    unquoted: String,
    quoted: bool,
}

impl Split {
    fn split(&mut self, line: &str) -> Result<(), &'static str> {
        self.cells.clear();
        self.quoted = line.as_bytes().contains(&b'"');
        if self.quoted {
            return self.split_quoted(line);
        }
        let mut start = 0;
        for (i, byte) in line.bytes().enumerate() {
            if byte == b',' {
                self.cells.push(start..i);
                start = i + 1;
            }
        }
        self.cells.push(start..line.len());
        Ok(())
    }

    fn split_quoted(&mut self, line: &str) -> Result<(), &'static str> {
        self.unquoted.clear();
        let mut rest = line;
        loop {
            let start = self.unquoted.len();
            if let Some(mut inside) = rest.strip_prefix('"') {
                loop {
                    let (part, after) = inside.split_once('"').ok_or("has a quote that is not closed")?;
                    self.unquoted.push_str(part);
                    let Some(more) = after.strip_prefix('"') else {
                        rest = after;
                        break;
                    };
                    self.unquoted.push('"');
                    inside = more;
                }
            } else {
                let end = rest.find(',').unwrap_or(rest.len());
                self.unquoted.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            self.cells.push(start..self.unquoted.len());
            if rest.is_empty() {
                return Ok(());
            }
            rest = rest.strip_prefix(',').ok_or("has text after a closing quote")?;
        }
    }

    fn len(&self) -> usize {
        self.cells.len()
    }

    fn get<'a>(&'a self, line: &'a str, i: usize) -> &'a str {
        let text = if self.quoted { &self.unquoted } else { line };
        &text[self.cells[i].clone()]
    }
}

/// The cells of one line.
#[derive(Clone, Copy)]
struct Cells<'a> {
    line: &'a str,
    split: &'a Split,
}

impl<'a> Cells<'a> {
    fn get(self, i: usize) -> &'a str {
        self.split.get(self.line, i)
    }

    fn value(self, i: usize) -> Value<'a> {
        match self.get(i) {
            "" => Value::Null,
            cell => Value::Text(Cow::Borrowed(cell)),
        }
    }
}

struct MareaRow<'a> {
    header: &'a Header,
    cells: Cells<'a>,
}

impl Fields for MareaRow<'_> {
    fn get(&self, field: Field) -> Value<'_> {
        self.header.columns[field as usize].map_or(Value::Null, |i| self.cells.value(i))
    }

    fn has_others(&self, known: u32) -> bool {
        let others = self.header.present & !known;
        let has = |field: Field| field.bit() & others != 0 && !matches!(self.get(field), Value::Null);
        others != 0 && Field::ALL.into_iter().any(has)
    }
}

struct BinanceRow<'a> {
    format: &'static Binance,
    symbol: Symbol,
    time: Nanos,
    cells: Cells<'a>,
}

impl Fields for BinanceRow<'_> {
    fn get(&self, field: Field) -> Value<'_> {
        match field {
            Field::Kind => Value::Text(Cow::Borrowed("trade")),
            Field::Symbol => Value::Text(Cow::Borrowed(self.symbol.as_str())),
            Field::EventTime => Value::Time(i128::from(self.time)),
            Field::Seq => self.cells.value(0),
            Field::Price => self.cells.value(1),
            Field::Size => self.cells.value(self.format.size.0),
            _ => Value::Null,
        }
    }

    fn has_others(&self, _known: u32) -> bool {
        false
    }

    fn name(&self, field: Field) -> &'static str {
        match field {
            Field::EventTime => self.format.time.1,
            Field::Seq => self.format.ids[0],
            Field::Size => self.format.size.1,
            other => other.name(),
        }
    }
}

/// Milliseconds, or microseconds (spot files since 2025): no time of one is a time of the other.
fn binance_time(format: &Binance, value: &Value<'_>) -> Judged<Nanos> {
    let name = format.time.1;
    let count = match value.integer() {
        Ok(count) => i128::from(count),
        Err(_) => return Err(invalid(name, value, "must be milliseconds or microseconds since 1970")),
    };
    let plausible = |unit: Nanos| (EARLIEST..LATEST).contains(&Nanos::try_from(count * i128::from(unit)).unwrap_or(0));
    match [MILLI, 1000].into_iter().find(|unit| plausible(*unit)) {
        Some(unit) => Ok(count as Nanos * unit),
        None => {
            let detail = format!("{name} is no time from 1990 to 2199 in milliseconds or microseconds");
            Err(Fault::new(Reason::EventTime, name, value.shown(), detail))
        }
    }
}

struct TrueFxRow<'a> {
    time: Nanos,
    seq: u64,
    cells: Cells<'a>,
}

impl Fields for TrueFxRow<'_> {
    fn get(&self, field: Field) -> Value<'_> {
        match field {
            Field::Kind => Value::Text(Cow::Borrowed("quote")),
            Field::Symbol => self.cells.value(0),
            Field::EventTime => Value::Time(i128::from(self.time)),
            Field::Seq => Value::Int(i128::from(self.seq)),
            Field::Bid => self.cells.value(2),
            Field::Ask => self.cells.value(3),
            _ => Value::Null,
        }
    }

    fn has_others(&self, _known: u32) -> bool {
        false
    }
}

/// `20140505 00:00:00.123`, UTC, with one to nine decimals or none.
fn truefx_time(text: &str) -> Option<Nanos> {
    let bytes = text.as_bytes();
    if bytes.get(8) != Some(&b' ') {
        return None;
    }
    instant(&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[9..])
}

/// Writes ticks in our own columns: those of trades and quotes, and all others if there is a correction or an amend.
pub fn encode(ticks: &[Tick], instruments: &Instruments) -> String {
    let base = |f: &Field| (*f as usize) < Field::Rev as usize;
    let all = ticks.iter().any(|t| rev_of(&t.event).is_some());
    let fields: Vec<Field> = Field::ALL.into_iter().filter(|f| (all || base(f)) && *f != Field::Timeframe).collect();
    let mut csv = fields.iter().map(|f| f.name()).collect::<Vec<_>>().join(",");
    csv.push('\n');
    for tick in ticks {
        let (amend, bar) = match &tick.event {
            Event::Amend(amend) => (true, amend.bar.map(|b| bar_texts(&b, instruments.get(tick.symbol).bar_scale()))),
            _ => (false, None),
        };
        for (i, field) in fields.iter().enumerate() {
            if i > 0 {
                csv.push(',');
            }
            let cell = match field {
                Field::Kind => tick.event.kind().to_owned(),
                Field::Symbol => tick.symbol.to_string(),
                Field::EventTime => format_rfc3339(tick.event_time),
                Field::OpenTime if amend => format_rfc3339(tick.event_time),
                Field::Seq => tick.seq.to_string(),
                Field::Rev => rev_of(&tick.event).map(|rev| rev.to_string()).unwrap_or_default(),
                Field::Deleted if amend && bar.is_none() => "true".to_owned(),
                field if BAR_FIELDS.contains(field) => {
                    let cell = bar.iter().flatten().find(|(name, _)| name == field);
                    cell.map(|(_, text)| text.clone()).unwrap_or_default()
                }
                field => {
                    let scale = price_scale(tick, *field, instruments);
                    number_of(tick, *field).map(|units| format_fixed(units.into(), scale)).unwrap_or_default()
                }
            };
            csv.push_str(&cell);
        }
        csv.push('\n');
    }
    csv
}

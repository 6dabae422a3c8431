//! Decoders alone, on one thread: bytes in memory or a file in, judged records out. The baseline of each reads the same
//! bytes without judging a field: what the library does, or a loop by hand.

use crate::Options;
use crate::drive::{Setup, each_trade};
use crate::files::{Files, Format, decode};
use crate::measure::try_timed;
use crate::report::{Report, Row};
use crate::w1::{symbols, tick};
use crate::workload::{self, Trade};
use anyhow::Context as _;
use arrow_ipc::reader::StreamReader;
use marea_model::codec::{Decoded, json};
use marea_model::time::SECOND;
use marea_model::{Cursor, Partition, Timeframe};
use marea_sources::BATCH_ROWS;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

const PART: &str = "decode";

/// Runs every decoder.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let count = if options.quick { 100_000 } else { 1_000_000 };
    let trades = workload::trades(count);
    let setup = Setup::plain(Timeframe::new(SECOND)?);
    from_json(options, &setup, &trades, report)?;
    let files = Files::write(options, &trades)?;
    let sums: (i64, i64) = trades.iter().fold((0, 0), |(p, s), t| (p + t.price, s + i64::from(t.size)));
    for (format, baseline) in [
        (Format::Csv, "a loop by hand, without judging"),
        (Format::Parquet, "the parquet crate, to columns, without judging"),
        (Format::Arrow, "the arrow-ipc crate, to columns, without judging"),
    ] {
        let path = files.path(format);
        let (mut base, mut subject) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let (rows, took) = try_timed(|| bare(&path, format))?;
            anyhow::ensure!(rows == count, "{} has {rows} rows, not {count}", format.name());
            base.push(took);
            let (found, took) = try_timed(|| {
                let (mut price_sum, mut size_sum) = (0, 0);
                decode(&setup, &path, format, |decoded| {
                    each_trade(decoded, |_, _, price, size| {
                        price_sum += price / 1_000_000;
                        size_sum += size / 100_000;
                    })
                    .map(drop)
                })?;
                Ok((price_sum, size_sum))
            })?;
            anyhow::ensure!(found == sums, "decoded {found:?}, not {sums:?}");
            subject.push(took);
        }
        let bytes = files.bytes(format)? as f64;
        report.add(row(format.name(), count, bytes, &base, &subject).note(baseline));
    }
    Ok(())
}

fn row(name: &str, count: usize, bytes: f64, base: &[crate::measure::Took], subject: &[crate::measure::Took]) -> Row {
    let seconds: Vec<f64> = subject.iter().map(|t| t.wall).collect();
    let speed = bytes / 1e6 / crate::measure::median(&seconds);
    let row = Row::rate(PART, format!("{name}, {count} trades"), count as f64, base, subject);
    row.note(format!("{speed:.0} MB/s, {:.0} bytes a trade", bytes / count as f64))
}

/// What serde makes of a message, borrowed: numbers and times stay texts.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    kind: &'a str,
    symbol: &'a str,
    event_time: &'a str,
    seq: u64,
    price: &'a str,
    size: &'a str,
}

fn from_json(options: &Options, setup: &Setup, trades: &[Trade], report: &mut Report) -> anyhow::Result<()> {
    let (symbols, decoder) = (symbols()?, setup.decoder());
    let messages: Vec<Vec<u8>> =
        trades.iter().enumerate().map(|(i, t)| json::encode(&tick(i, t, &symbols), &setup.instruments)).collect();
    let bytes: usize = messages.iter().map(Vec::len).sum();
    let partition = Partition::new("json")?;
    let (mut base, mut subject) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (_, took) = try_timed(|| {
            let mut length = 0;
            for message in &messages {
                let m: Message<'_> = serde_json::from_slice(message)?;
                length += m.kind.len() + m.symbol.len() + m.event_time.len() + m.price.len() + m.size.len();
                length += usize::try_from(m.seq)?;
            }
            Ok(std::hint::black_box(length))
        })?;
        base.push(took);
        let (count, took) = try_timed(|| {
            let (mut decoded, mut count) = (Decoded::default(), 0);
            for (i, message) in messages.iter().enumerate() {
                let cursor = Cursor { partition, offset: i as u64, row: 0 };
                json::decode(&decoder, message, cursor, 0, &mut decoded);
                if decoded.len() == BATCH_ROWS {
                    count += each_trade(&mut decoded, |_, _, _, _| ())?;
                }
            }
            Ok(count + each_trade(&mut decoded, |_, _, _, _| ())?)
        })?;
        anyhow::ensure!(count == trades.len(), "decoded {count} messages");
        subject.push(took);
    }
    report.add(row("JSON", trades.len(), bytes as f64, &base, &subject).note("serde_json to borrowed texts, unjudged"));
    Ok(())
}

/// The baseline: how many rows there are, when every cell that we need has been read.
fn bare(path: &Path, format: Format) -> anyhow::Result<usize> {
    let file = File::open(path)?;
    let mut count = 0;
    match format {
        Format::Parquet => {
            for rows in ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(BATCH_ROWS).build()? {
                count += std::hint::black_box(rows?).num_rows();
            }
        }
        Format::Arrow => {
            for rows in StreamReader::try_new(BufReader::with_capacity(1 << 17, file), None)? {
                count += std::hint::black_box(rows?).num_rows();
            }
        }
        Format::Csv => {
            let mut bytes = Vec::new();
            BufReader::new(file).read_to_end(&mut bytes)?;
            let mut lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            let header = lines.next().context("a header")?;
            let at = |name: &[u8]| header.split(|b| *b == b',').position(|cell| cell == name);
            let wanted = [at(b"seq"), at(b"price"), at(b"size"), at(b"event_time")];
            let mut sum = 0_i64;
            for line in lines {
                for (i, cell) in line.split(|b| *b == b',').enumerate() {
                    if wanted.contains(&Some(i)) {
                        // A number or an instant: its digits, whatever stands between them.
                        let digits = cell.iter().filter(|b| b.is_ascii_digit());
                        sum = sum.wrapping_add(digits.fold(0, |n: i64, b| n.wrapping_mul(10) + i64::from(b - b'0')));
                    }
                }
                count += 1;
            }
            std::hint::black_box(sum);
        }
    }
    Ok(count)
}

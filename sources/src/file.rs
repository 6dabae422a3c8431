//! Ticks from files: Parquet, CSV, Arrow IPC (file or stream); and account snapshots from JSON lines.
//!
//! **Order.** Several files are merged by event time: of the files' next records the earliest goes first, at equal
//! times that of the file named first; the accounts come after ticks of their time. A file itself is never sorted: its
//! late ticks stay late. However many the files, they are one partition, `files`, in the sense of watermarks.
//!
//! **Cursor**: the file's path and the row in it, from 0; of a text file the line, header and blank lines included.
//! The batch's upper counts all records of all files.
//!
//! **Pace.** At full speed, or at N × real time: the first record at once, another one when the wall clock has moved
//! on by its distance from the first ÷ N. Late records are due at once.
//!
//! **Errors.** [`open`] refuses what cannot be read (all of it, each naming path and cause) before anything is sent. A
//! record that cannot be read is a dead letter, and the file goes on; a file that breaks in the middle ends the run,
//! naming path and row, after everything before that row has been sent. Then nothing says [`Input::Finished`].

use crate::{BATCH_ROWS, Carries, Input, Sender, Stop, Stopped, send, wall_now};
use arrow_array::RecordBatch;
use marea_model::codec::arrow::{BatchReader, RowsAre, check_schema, decode_batch, dictionary_schema};
use marea_model::codec::{Decoded, Decoder, csv, json};
use marea_model::cursor::{Batch, DeadLetter};
use marea_model::time::Nanos;
use marea_model::{AccountSnapshot, Cursor, Partition, Ticks};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::ConvertedType;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

/// The partition of all files.
pub const PARTITION: &str = "files";

/// When records come.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Speed {
    /// As fast as they are taken.
    #[default]
    Full,
    /// As many times faster than they happened.
    Times(f64),
}

/// What to read.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FileConfig {
    /// Files of ticks; at equal event times the first goes first.
    pub files: Vec<PathBuf>,
    /// Account snapshots, one JSON object a line.
    pub accounts: Option<PathBuf>,
    /// What the CSV files are; looked at if absent.
    pub csv_format: Option<csv::Format>,
    /// When records come.
    pub speed: Speed,
}

/// Why files cannot be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Nothing of it can be read.
    #[error("{}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// It breaks in the middle. Everything before has been sent.
    #[error("{}: row {row}: {cause}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The first row that cannot be read, from 0.
        row: u64,
        /// What is wrong.
        cause: String,
    },
    /// A speed that is none.
    #[error("speed: {0} must be a positive number of times real time")]
    Speed(f64),
}

/// How far the files have been read; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct FileProgress {
    rows_read: AtomicU64,
    rows_total: AtomicU64,
    /// Files that do not say how many rows they have.
    rows_unknown: AtomicU64,
    bytes_read: AtomicU64,
    bytes_total: AtomicU64,
}

impl FileProgress {
    /// Rows decoded so far, readable or not.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::Relaxed)
    }

    /// Rows of all files, if all of them say it (Parquet does).
    pub fn rows_total(&self) -> Option<u64> {
        (self.rows_unknown.load(Ordering::Relaxed) == 0).then(|| self.rows_total.load(Ordering::Relaxed))
    }

    /// Bytes read so far; of a Parquet file, its length times the share of its rows.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed).min(self.bytes_total())
    }

    /// Bytes of all files.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total.load(Ordering::Relaxed)
    }

    /// The share that has been read, 0 to 1.
    pub fn fraction(&self) -> f64 {
        match (self.rows_total(), self.bytes_total()) {
            (Some(rows), _) if rows > 0 => self.rows_read() as f64 / rows as f64,
            (_, bytes) if bytes > 0 => self.bytes_read() as f64 / bytes as f64,
            _ => 1.0,
        }
    }
}

/// Counts the bytes that are read through it.
struct Counted {
    file: File,
    progress: Arc<FileProgress>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.progress.bytes_read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Parquet,
    Arrow,
    Csv,
}

/// By its first bytes, and else by its name. A text has no first bytes of its own: what is nothing else is CSV.
fn kind(path: &Path, head: &[u8]) -> Result<Kind, String> {
    const PACKED: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")];
    if let Some((_, name)) = PACKED.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(format!("is compressed with {name}: unpack it first"));
    }
    if head.starts_with(b"PAR1") {
        return Ok(Kind::Parquet);
    }
    if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) {
        return Ok(Kind::Arrow);
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        "parquet" => Err("is not a Parquet file: it does not begin with PAR1".to_owned()),
        "arrow" | "arrows" | "ipc" | "feather" => Err("is neither an Arrow IPC file nor a stream".to_owned()),
        _ => Ok(Kind::Csv),
    }
}

/// Where the stream within an Arrow IPC file begins: behind the magic and its padding, which is 2 bytes by the format's
/// description and up to 58 as some write it.
fn arrow_start(file: &mut File) -> Result<u64, String> {
    let mut bytes = Vec::with_capacity(64);
    let mut read = |from, bytes: &mut Vec<u8>| {
        bytes.clear();
        file.seek(from).and_then(|_| file.by_ref().take(64).read_to_end(bytes)).map_err(|e| e.to_string())
    };
    // What a file is cut off at would else read as its end.
    read(SeekFrom::End(-6), &mut bytes)?;
    if bytes != b"ARROW1" {
        return Err("is cut off: it does not end with ARROW1".to_owned());
    }
    read(SeekFrom::Start(0), &mut bytes)?;
    let start = (8..bytes.len()).step_by(8).find(|at| bytes[*at] != 0);
    Ok(start.unwrap_or(bytes.len()) as u64)
}

enum Reading {
    Parquet(Parquet),
    Arrow(BatchReader<BufReader<Counted>>),
    Csv(Box<csv::Reader<BufReader<Counted>>>),
    Accounts { lines: BufReader<Counted>, line: Vec<u8> },
}

impl Reading {
    fn open(
        path: &Path,
        partition: Partition,
        format: Option<csv::Format>,
        progress: &Arc<FileProgress>,
        rows: usize,
    ) -> Result<Self, String> {
        let text = |e: io::Error| e.to_string();
        let mut file = File::open(path).map_err(text)?;
        let bytes = file.metadata().map_err(text)?.len();
        let mut head = Vec::with_capacity(8);
        file.by_ref().take(8).read_to_end(&mut head).map_err(text)?;
        let kind = kind(path, &head)?;
        let start = match kind {
            Kind::Arrow if head.starts_with(b"ARROW1") => arrow_start(&mut file)?,
            _ => 0,
        };
        file.seek(SeekFrom::Start(start)).map_err(text)?;
        progress.bytes_total.fetch_add(bytes, Ordering::Relaxed);
        if kind == Kind::Parquet {
            return Parquet::open(path, file, bytes, progress, rows).map(Reading::Parquet);
        }
        progress.rows_unknown.fetch_add(1, Ordering::Relaxed);
        let input = BufReader::with_capacity(1 << 17, Counted { file, progress: Arc::clone(progress) });
        if kind == Kind::Arrow {
            return Ok(Reading::Arrow(BatchReader::new(input)));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        csv::Reader::open(input, partition, &name, format).map(|r| Reading::Csv(Box::new(r))).map_err(|e| e.to_string())
    }

    fn open_accounts(path: &Path, progress: &Arc<FileProgress>) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        progress.bytes_total.fetch_add(file.metadata().map_err(|e| e.to_string())?.len(), Ordering::Relaxed);
        progress.rows_unknown.fetch_add(1, Ordering::Relaxed);
        let lines = BufReader::new(Counted { file, progress: Arc::clone(progress) });
        Ok(Reading::Accounts { lines, line: Vec::new() })
    }

    /// Decodes up to `rows` more rows, from the row that `first` names. How many (a blank line is one), and whether there
    /// may be more, or why not.
    fn read(
        &mut self,
        decoder: &Decoder,
        first: Cursor,
        rows: usize,
        progress: &FileProgress,
        out: &mut Decoded,
    ) -> (u64, Result<bool, String>) {
        let received = wall_now();
        match self {
            Reading::Parquet(parquet) => match parquet.next(first.offset, rows, progress) {
                Err(cause) => (0, Err(cause)),
                Ok(None) => (0, Ok(false)),
                Ok(Some(batch)) => {
                    decode_batch(decoder, &batch, first, RowsAre::Offsets, received, out);
                    (batch.num_rows() as u64, Ok(true))
                }
            },
            Reading::Arrow(batches) => {
                match batches.decode_some(decoder, first, rows, RowsAre::Offsets, received, out) {
                    Err(error) => (0, Err(error.to_string())),
                    Ok(read) => (read.unwrap_or(0) as u64, Ok(read.is_some())),
                }
            }
            Reading::Csv(reader) => {
                let more = reader.read(decoder, rows, received, out).map_err(|e| e.to_string());
                (reader.upper() - first.offset, more)
            }
            Reading::Accounts { lines, line } => {
                for row in 0..rows as u64 {
                    line.clear();
                    match lines.read_until(b'\n', line) {
                        Ok(0) => return (row, Ok(false)),
                        Ok(_) => {}
                        Err(error) => return (row, Err(error.to_string())),
                    }
                    let message = line.trim_ascii();
                    if !message.is_empty() {
                        let cursor = Cursor { offset: first.offset + row, ..first };
                        json::decode_account(decoder, message, cursor, received, out);
                    }
                }
                (rows as u64, Ok(true))
            }
        }
    }
}

/// A Parquet file. Where a batch cannot be read, it is read again row by row, so that every row before what is broken
/// counts.
struct Parquet {
    path: PathBuf,
    batches: ParquetRecordBatchReader,
    /// What is left of a batch of which not all rows were wanted.
    rest: Option<RecordBatch>,
    by_row: bool,
    rows: u64,
    bytes: u64,
}

impl Parquet {
    fn open(path: &Path, file: File, bytes: u64, progress: &FileProgress, rows: usize) -> Result<Self, String> {
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|e| e.to_string())?;
        check_schema(metadata.schema()).map_err(|e| e.to_string())?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, with_dictionaries(metadata));
        for column in builder.metadata().row_groups().iter().flat_map(|group| group.columns()) {
            // The crate takes this for granted, and would panic.
            let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
            let place = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
            if place.and_then(|(start, length)| start.checked_add(length)).is_none_or(|end| end > bytes) {
                return Err(format!("has a column {} that lies outside of the file", column.column_path()));
            }
        }
        let mut groups = builder.metadata().row_groups().iter();
        let sum = groups.try_fold(0_u64, |sum, group| sum.checked_add(u64::try_from(group.num_rows()).ok()?));
        let total = builder.metadata().file_metadata().num_rows();
        let Some(total) = u64::try_from(total).ok().filter(|total| sum == Some(*total)) else {
            return Err(format!("says that it has {total} rows, which are not those of its row groups"));
        };
        let batches = builder.with_batch_size(rows).build().map_err(|e| e.to_string())?;
        progress.rows_total.fetch_add(total, Ordering::Relaxed);
        Ok(Parquet { path: path.to_owned(), batches, rest: None, by_row: false, rows: total, bytes })
    }

    /// Up to `most` rows from `row` on.
    fn next(&mut self, row: u64, most: usize, progress: &FileProgress) -> Result<Option<RecordBatch>, String> {
        let batch = match self.rest.take() {
            Some(batch) => batch,
            None => match self.next_batch(row, progress)? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        let rows = batch.num_rows();
        if rows <= most {
            return Ok(Some(batch));
        }
        self.rest = Some(batch.slice(most, rows - most));
        Ok(Some(batch.slice(0, most)))
    }

    fn next_batch(&mut self, row: u64, progress: &FileProgress) -> Result<Option<RecordBatch>, String> {
        let batch = match self.batches.next() {
            Some(Err(_)) if !self.by_row => {
                self.by_row = true;
                self.batches = self.reopen(row)?;
                self.batches.next()
            }
            other => other,
        };
        let Some(batch) = batch.transpose().map_err(|e| e.to_string())? else {
            return if row < self.rows { Err(format!("has no more rows, of {}", self.rows)) } else { Ok(None) };
        };
        let share = u128::from(self.bytes) * batch.num_rows() as u128 / u128::from(self.rows.max(1));
        progress.bytes_read.fetch_add(u64::try_from(share).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(Some(batch))
    }

    fn reopen(&self, row: u64) -> Result<ParquetRecordBatchReader, String> {
        let file = File::open(&self.path).map_err(|e| e.to_string())?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
        let row = usize::try_from(row).map_err(|e| e.to_string())?;
        builder.with_offset(row).with_batch_size(1).build().map_err(|e| e.to_string())
    }
}

/// Asks for the texts as the file has them: where all row groups have a dictionary, its keys are read and not the texts.
fn with_dictionaries(metadata: ArrowReaderMetadata) -> ArrowReaderMetadata {
    let file = metadata.metadata();
    let columns = file.file_metadata().schema_descr();
    // Else a column of the schema may be several in the file.
    if columns.num_columns() != metadata.schema().fields().len() {
        return metadata;
    }
    let schema = dictionary_schema(metadata.schema(), |i| {
        columns.column(i).converted_type() == ConvertedType::UTF8
            && file.row_groups().iter().all(|group| group.column(i).dictionary_page_offset().is_some())
    });
    let options = ArrowReaderOptions::new().with_schema(schema);
    ArrowReaderMetadata::try_new(Arc::clone(file), options).unwrap_or(metadata)
}

/// One file, and what has been decoded of it but not yet sent.
struct Stream {
    path: PathBuf,
    reading: Reading,
    /// The next row to read.
    next: Cursor,
    /// Nothing more can be read, because …
    ended: bool,
    /// … it broke here.
    broken: Option<FileError>,
    decoded: Decoded,
    records: Ticks,
    /// The next of the records in hand.
    at: usize,
    accounts: IntoIter<(Cursor, AccountSnapshot)>,
}

impl Stream {
    /// The event time of the next item in hand.
    fn head(&self) -> Option<Nanos> {
        let record = self.records.event_times().get(self.at).copied();
        record.or_else(|| self.accounts.as_slice().first().map(|(_, a)| a.event_time))
    }

    /// Reads on from where nothing is in hand, until `rows` rows are or nothing more can be read.
    fn fill(&mut self, decoder: &Decoder, rows: usize, progress: &FileProgress) {
        let before = self.decoded.len();
        while !self.ended {
            let nothing = self.decoded.records.is_empty() && self.decoded.accounts.is_empty();
            // A file of nothing but rejects is sent in batches too.
            let most = if nothing { BATCH_ROWS } else { rows };
            let wanted = most.saturating_sub(self.decoded.len()).min(rows);
            if wanted == 0 {
                break;
            }
            let (read, more) = self.reading.read(decoder, self.next, wanted, progress, &mut self.decoded);
            self.next.offset += read;
            self.ended = more != Ok(true);
            if let Err(cause) = more {
                self.broken = Some(FileError::Corrupt { path: self.path.clone(), row: self.next.offset, cause });
            }
        }
        progress.rows_read.fetch_add((self.decoded.len() - before) as u64, Ordering::Relaxed);
        self.records = std::mem::take(&mut self.decoded.records);
        self.at = 0;
        self.accounts = std::mem::take(&mut self.decoded.accounts).into_iter();
    }
}

/// Files that have been opened and found readable.
pub struct Files {
    streams: Vec<Stream>,
    decoder: Decoder,
    rows: usize,
    speed: Speed,
    progress: Arc<FileProgress>,
}

/// Opens all files and reads the first rows of each. What cannot be read is refused: every file with its cause.
pub fn open(config: &FileConfig, decoder: &Decoder) -> Result<Files, Vec<FileError>> {
    // A file's times say nothing about when it is read.
    let decoder = Decoder { max_ahead: None, ..decoder.clone() };
    let progress = Arc::new(FileProgress::default());
    // Each file has so many rows in hand: with many files, few.
    let rows = (16 * BATCH_ROWS / config.files.len().max(1)).clamp(512, BATCH_ROWS);
    let mut errors = Vec::new();
    if let Speed::Times(times) = config.speed
        && !(times > 0.0 && times.is_finite())
    {
        errors.push(FileError::Speed(times));
    }
    let mut streams = Vec::new();
    let files = config.files.iter().map(|path| (path, false));
    for (path, is_accounts) in files.chain(config.accounts.iter().map(|path| (path, true))) {
        let opened = Partition::new(&path.display().to_string()).map_err(|e| e.to_string()).and_then(|partition| {
            let reading = if is_accounts {
                Reading::open_accounts(path, &progress)?
            } else {
                Reading::open(path, partition, config.csv_format, &progress, rows)?
            };
            let mut stream = Stream {
                path: path.clone(),
                reading,
                next: Cursor { partition, offset: 0, row: 0 },
                ended: false,
                broken: None,
                decoded: Decoded::default(),
                records: Ticks::new(),
                at: 0,
                accounts: Vec::new().into_iter(),
            };
            stream.fill(&decoder, rows, &progress);
            match &stream.broken {
                // Of a file that breaks later, the good rows are sent first.
                Some(FileError::Corrupt { cause, .. }) if stream.head().is_none() => Err(cause.clone()),
                _ => Ok(stream),
            }
        });
        match opened {
            Ok(stream) => streams.push(stream),
            Err(cause) => errors.push(FileError::Unreadable { path: path.clone(), cause }),
        }
    }
    if errors.is_empty() { Ok(Files { streams, decoder, rows, speed: config.speed, progress }) } else { Err(errors) }
}

/// What has been merged and not yet sent.
struct Pending<'a> {
    out: &'a Sender,
    stop: &'a Stop,
    partition: Partition,
    records: Ticks,
    accounts: Vec<(Cursor, AccountSnapshot)>,
    rejects: Vec<DeadLetter>,
    unknown_fields: u64,
    upper: u64,
}

impl Pending<'_> {
    fn len(&self) -> usize {
        self.records.len() + self.accounts.len() + self.rejects.len()
    }

    fn flush(&mut self, at_end: bool) -> Result<(), Stopped> {
        if self.len() == 0 && !at_end {
            return Ok(());
        }
        self.upper += self.len() as u64;
        let batch = Batch {
            records: std::mem::take(&mut self.records),
            rejects: std::mem::take(&mut self.rejects),
            accounts: std::mem::take(&mut self.accounts),
            unknown_fields: std::mem::take(&mut self.unknown_fields),
            upper: self.upper,
            at_end,
            ..Batch::new(self.partition, wall_now())
        };
        send(self.out, self.stop, Input::Batch(batch))
    }

    /// Takes what a stream has decoded beside its records.
    fn take_rejects(&mut self, stream: &mut Stream) -> Result<(), Stopped> {
        let rejects = std::mem::take(&mut stream.decoded.rejects);
        self.unknown_fields += std::mem::take(&mut stream.decoded.unknown_fields);
        for reject in rejects {
            self.rejects.push(reject);
            if self.len() >= BATCH_ROWS {
                self.flush(false)?;
            }
        }
        Ok(())
    }

    fn take_head(&mut self, stream: &mut Stream) -> Result<(), Stopped> {
        // What stands before it goes before it: a cursor that is cut has nothing of its file behind it.
        let next = match stream.at < stream.records.len() {
            true => Some(stream.records.cursor(stream.at).offset),
            false => stream.accounts.as_slice().first().map(|(cursor, _)| cursor.offset),
        };
        let rejects = &mut stream.decoded.rejects;
        let before = rejects.partition_point(|reject| next.is_some_and(|next| reject.cursor.offset < next));
        self.rejects.extend(rejects.drain(..before));
        if stream.at < stream.records.len() {
            let record = stream.records.record(stream.at);
            self.records.push(record.cursor, record.tick);
            stream.at += 1;
        } else {
            self.accounts.extend(stream.accounts.next());
        }
        if self.len() >= BATCH_ROWS { self.flush(false) } else { Ok(()) }
    }
}

/// When records are due.
struct Clock {
    times: f64,
    begun: Instant,
    first: Nanos,
}

impl Clock {
    /// How long until a record of this time is due.
    fn wait(&self, event_time: Nanos) -> Duration {
        let distance = event_time.saturating_sub(self.first).max(0) as f64 / 1e9 / self.times;
        Duration::try_from_secs_f64(distance).unwrap_or(Duration::MAX).saturating_sub(self.begun.elapsed())
    }
}

enum End {
    Stopped,
    Broken(FileError),
}

impl From<Stopped> for End {
    fn from(_: Stopped) -> Self {
        End::Stopped
    }
}

impl Files {
    /// How far it is, while it runs.
    pub fn progress(&self) -> Arc<FileProgress> {
        Arc::clone(&self.progress)
    }

    /// Sends everything. Blocks until the end, a stop, or an error.
    pub fn run(mut self, out: &Sender, stop: &Stop) -> Result<(), FileError> {
        match self.merge(out, stop) {
            Ok(()) | Err(End::Stopped) => Ok(()),
            Err(End::Broken(error)) => Err(error),
        }
    }

    fn merge(&mut self, out: &Sender, stop: &Stop) -> Result<(), End> {
        let Files { streams, decoder, rows, speed, progress } = self;
        let only = streams.len() == 1 && *speed == Speed::Full;
        let partition = Partition::new(PARTITION).expect("a valid partition name");
        send(out, stop, Input::Start { partition, carries: Carries::Ticks })?;
        let mut pending = Pending {
            out,
            stop,
            partition,
            records: Ticks::new(),
            accounts: Vec::new(),
            rejects: Vec::new(),
            unknown_fields: 0,
            upper: 0,
        };
        if let [stream] = &mut streams[..]
            && only
        {
            // Nothing to merge with and nothing to wait for: what has been decoded goes on as it is.
            loop {
                pending.records = std::mem::take(&mut stream.records);
                pending.accounts = std::mem::take(&mut stream.accounts).collect();
                pending.rejects = std::mem::take(&mut stream.decoded.rejects);
                pending.unknown_fields = std::mem::take(&mut stream.decoded.unknown_fields);
                if let Some(error) = stream.broken.take() {
                    pending.flush(false)?;
                    return Err(End::Broken(error));
                }
                if stream.ended {
                    break;
                }
                pending.flush(false)?;
                stream.fill(decoder, *rows, progress);
            }
        }
        // The streams by what they have in hand; one with nothing in hand comes first, and is read on.
        let head = |stream: &Stream, i: usize| (stream.head().unwrap_or(Nanos::MIN), i);
        let mut next: BinaryHeap<Reverse<(Nanos, usize)>> =
            streams.iter().enumerate().map(|(i, stream)| Reverse(head(stream, i))).collect();
        let first = streams.iter().filter_map(Stream::head).min().unwrap_or(0);
        let clock = match *speed {
            Speed::Full => None,
            Speed::Times(times) => Some(Clock { times, begun: Instant::now(), first }),
        };
        while let Some(Reverse((_, i))) = next.pop() {
            let stream = &mut streams[i];
            let other = next.peek().map(|Reverse(other)| *other);
            loop {
                let Some(event_time) = stream.head() else {
                    pending.take_rejects(stream)?;
                    if let Some(error) = stream.broken.take() {
                        pending.flush(false)?;
                        return Err(End::Broken(error));
                    }
                    if stream.ended {
                        break;
                    }
                    stream.fill(decoder, *rows, progress);
                    continue;
                };
                if other.is_some_and(|other| other < (event_time, i)) {
                    next.push(Reverse((event_time, i)));
                    break;
                }
                if let Some(wait) = clock.as_ref().map(|clock| clock.wait(event_time))
                    && !wait.is_zero()
                {
                    pending.flush(false)?;
                    // At a high speed a batch is better than a record.
                    if !stop.sleep(wait.max(Duration::from_millis(1))) {
                        return Err(End::Stopped);
                    }
                }
                pending.take_head(stream)?;
            }
        }
        pending.flush(true)?;
        // Not every byte of a file has to be read.
        progress.bytes_read.store(progress.bytes_total(), Ordering::Relaxed);
        send(out, stop, Input::Finished { partition })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::codec::arrow;
    use marea_model::cursor::Reason;
    use marea_model::time::{MILLI, SECOND};
    use marea_model::{AccountId, Amount, Event, Instruments, Price, Record, Size, Symbol, Tick, Timeframe};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;
    use proptest::prelude::*;
    use std::fs;

    const T0: Nanos = 1_381_152_600 * SECOND;

    fn decoder() -> Decoder {
        Decoder { instruments: Arc::new(Instruments::default()), base_timeframe: Timeframe::S1, max_ahead: Some(0) }
    }

    fn tick(symbol: &str, ms: i64, seq: u64) -> Tick {
        let event = Event::Trade { price: Price(4_918_000_000 + seq as i64), size: Size(100_000_000) };
        Tick { symbol: Symbol::new(symbol).unwrap(), event_time: T0 + ms * MILLI, seq, event }
    }

    fn ticks(symbol: &str, n: u64) -> Vec<Tick> {
        (0..n).map(|i| tick(symbol, i as i64 * 10, i)).collect()
    }

    fn snapshot(ms: i64, seq: u64) -> AccountSnapshot {
        AccountSnapshot {
            account: AccountId::new("M1").unwrap(),
            event_time: T0 + ms * MILLI,
            seq,
            equity: Amount::whole(1000),
            balance: Amount::whole(1000),
            currency: *b"USD",
            positions: vec![],
        }
    }

    fn parquet(ticks: &[Tick], rows_a_group: usize) -> Vec<u8> {
        let batch = arrow::encode(ticks, &Instruments::default());
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows_a_group)).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    fn arrow_file(ticks: &[Tick]) -> Vec<u8> {
        let batch = arrow::encode(ticks, &Instruments::default());
        let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        for start in (0..batch.num_rows()).step_by(1000) {
            writer.write(&batch.slice(start, 1000.min(batch.num_rows() - start))).unwrap();
        }
        writer.into_inner().unwrap()
    }

    fn csv(ticks: &[Tick]) -> Vec<u8> {
        csv::encode(ticks, &Instruments::default()).into_bytes()
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Folder(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        }
    }

    fn of(files: &[PathBuf]) -> FileConfig {
        FileConfig { files: files.to_vec(), ..FileConfig::default() }
    }

    /// What a run has sent.
    #[derive(Default)]
    struct Sent {
        records: Vec<Record>,
        accounts: Vec<(Cursor, AccountSnapshot)>,
        rejects: Vec<DeadLetter>,
        batches: Vec<(usize, u64)>,
        at_end: bool,
        finished: bool,
        result: Option<FileError>,
    }

    impl Sent {
        fn ticks(&self) -> Vec<Tick> {
            self.records.iter().map(|r| r.tick.clone()).collect()
        }
    }

    fn run(config: &FileConfig) -> Sent {
        let files = open(config, &decoder()).map_err(|e| format!("{e:?}")).unwrap();
        let (out, inputs) = crossbeam_channel::unbounded();
        let mut sent = Sent { result: files.run(&out, &Stop::new()).err(), ..Sent::default() };
        drop(out);
        for (i, input) in inputs.into_iter().enumerate() {
            match input {
                Input::Start { partition, .. } => assert!(i == 0 && partition.as_str() == PARTITION),
                Input::Batch(batch) => {
                    assert!(!sent.at_end && batch.partition.as_str() == PARTITION);
                    let rows = batch.records.len() + batch.accounts.len() + batch.rejects.len();
                    sent.batches.push((rows, batch.upper));
                    sent.records.extend(batch.records.iter());
                    sent.accounts.extend(batch.accounts);
                    sent.rejects.extend(batch.rejects);
                    sent.at_end = batch.at_end;
                }
                Input::Finished { .. } => sent.finished = true,
                other => panic!("files never send {other:?}"),
            }
        }
        assert_eq!(sent.finished, sent.result.is_none());
        assert_eq!(sent.finished, sent.at_end);
        sent
    }

    fn refused(config: &FileConfig) -> Vec<String> {
        open(config, &decoder()).err().unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_format_gives_the_same_records() {
        let folder = Folder::new();
        let expected = ticks("IBM", 20_000);
        let stream = arrow::encode_stream(&expected, &Instruments::default());
        let cases = [
            ("a.parquet", parquet(&expected, 3000), 0),
            ("without-extension", parquet(&expected, 100_000), 0),
            ("a.arrow", arrow_file(&expected), 0),
            ("a.arrows", stream, 0),
            // Row 0 of a CSV is its heading.
            ("a.csv", csv(&expected), 1),
        ];
        for (name, bytes, first_row) in cases {
            let path = folder.write(name, &bytes);
            let sent = run(&of(std::slice::from_ref(&path)));
            assert_eq!(sent.result, None);
            assert_eq!(sent.ticks(), expected, "{name}");
            let offsets: Vec<u64> = sent.records.iter().map(|r| r.cursor.offset).collect();
            assert!(offsets.into_iter().eq(first_row..first_row + 20_000), "{name}");
            assert!(sent.records.iter().all(|r| r.cursor.partition.as_str() == path.display().to_string()));
            assert_eq!(sent.batches, [(8192, 8192), (8192, 16_384), (3616, 20_000)]);
        }
    }

    #[test]
    fn files_are_merged_by_event_time_and_stably() {
        let folder = Folder::new();
        // The second file has a late tick: it stays where it is, between its neighbours.
        let a = vec![tick("A", 0, 1), tick("A", 20, 2), tick("A", 20, 3)];
        let b = vec![tick("B", 10, 1), tick("B", 20, 2), tick("B", 5, 3), tick("B", 30, 4)];
        let files = [folder.write("a.csv", &csv(&a)), folder.write("b.parquet", &parquet(&b, 10))];
        let lines = [snapshot(20, 1), snapshot(25, 2)].map(|s| String::from_utf8(json::encode_account(&s)).unwrap());
        let accounts = folder.write("accounts.jsonl", format!("{}\n\n{}\nnonsense\n", lines[0], lines[1]).as_bytes());
        let sent = run(&FileConfig { accounts: Some(accounts), ..of(&files) });
        let order: Vec<(&str, u64)> = sent.records.iter().map(|r| (r.tick.symbol.as_str(), r.tick.seq)).collect();
        assert_eq!(order, [("A", 1), ("B", 1), ("A", 2), ("A", 3), ("B", 2), ("B", 3), ("B", 4)]);
        assert_eq!(sent.accounts.iter().map(|(c, s)| (c.offset, s.seq)).collect::<Vec<_>>(), [(0, 1), (2, 2)]);
        assert_eq!(sent.rejects.len(), 1);
        assert_eq!((sent.rejects[0].cursor.offset, sent.rejects[0].reason), (3, Reason::Malformed));
        assert_eq!(sent.batches, [(10, 10)]);
    }

    /// Each file's records with a time in milliseconds; their merge by its definition.
    fn merged(files: &[Vec<i64>]) -> Vec<(usize, usize)> {
        let mut at = vec![0; files.len()];
        let mut order = Vec::new();
        while let Some((_, i)) = (0..files.len()).filter_map(|i| Some((*files[i].get(at[i])?, i))).min() {
            order.push((i, at[i]));
            at[i] += 1;
        }
        order
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_merge_is_what_its_definition_says(
            files in prop::collection::vec(prop::collection::vec(0_i64..50, 0..40), 1..5),
        ) {
            let folder = Folder::new();
            let write = |(i, times): (usize, &Vec<i64>)| {
                let ticks: Vec<Tick> = times.iter().enumerate().map(|(j, ms)| tick("A", *ms, j as u64)).collect();
                folder.write(&format!("{i}.csv"), &csv(&ticks))
            };
            let paths: Vec<PathBuf> = files.iter().enumerate().map(write).collect();
            let sent = run(&of(&paths));
            let order = sent.records.iter().map(|r| {
                let path = r.cursor.partition.as_str();
                (paths.iter().position(|p| p.display().to_string() == path).unwrap(), r.cursor.offset as usize - 1)
            });
            prop_assert_eq!(order.collect::<Vec<_>>(), merged(&files));
        }
    }

    #[test]
    fn a_bad_row_is_a_dead_letter_and_the_file_goes_on() {
        let folder = Folder::new();
        let mut text = String::from_utf8(csv(&ticks("IBM", 3))).unwrap();
        text.insert_str(text.find('\n').unwrap() + 1, "trade,IBM\n");
        let sent = run(&of(&[folder.write("a.csv", text.as_bytes())]));
        assert_eq!(sent.ticks(), ticks("IBM", 3));
        assert_eq!(sent.rejects.len(), 1);
        assert_eq!(sent.rejects[0].cursor.offset, 1);
        assert_eq!(sent.rejects[0].original, b"trade,IBM");
        // Nothing but bad rows.
        let bad = csv(&ticks("IBM", 1)).split_inclusive(|b| *b == b'\n').next().unwrap().to_vec();
        let bad = [bad, b"x\n".repeat(20_000)].concat();
        let sent = run(&of(&[folder.write("bad.csv", &bad)]));
        assert_eq!((sent.records.len(), sent.rejects.len()), (0, 20_000));
        assert!(sent.batches.iter().all(|(rows, _)| *rows <= BATCH_ROWS));
    }

    #[test]
    fn a_file_alone_is_sent_as_if_it_were_merged_with_nothing() {
        let folder = Folder::new();
        let all = ticks("IBM", 30_000);
        let mut text = String::from_utf8(csv(&all)).unwrap();
        text.insert_str(text.find(",9000,").unwrap() / 60 * 60, "\n\nnonsense\n\n");
        let empty = folder.write("empty.csv", b"");
        for path in [folder.write("a.csv", text.as_bytes()), folder.write("a.parquet", &parquet(&all, 7000))] {
            let (alone, merged) = (run(&of(std::slice::from_ref(&path))), run(&of(&[path, empty.clone()])));
            assert!(alone.records == merged.records && alone.rejects == merged.rejects);
            assert_eq!((alone.batches.last(), alone.at_end), (merged.batches.last(), merged.at_end));
            assert!(alone.batches.iter().all(|(rows, _)| *rows <= BATCH_ROWS));
        }
    }

    #[test]
    fn an_empty_file_is_finished_at_once() {
        let folder = Folder::new();
        let files = [folder.write("a.csv", b""), folder.write("b.parquet", &parquet(&[], 10))];
        let sent = run(&FileConfig { accounts: Some(folder.write("accounts", b"")), ..of(&files) });
        assert_eq!(sent.batches, [(0, 0)]);
    }

    /// Texts that a file has by their number are read by it: across row groups, each with a dictionary of its own.
    #[test]
    fn dictionaries_of_a_file_are_read_as_such() {
        let folder = Folder::new();
        let symbols = ["A", "B", "CC", "D-4"];
        let all: Vec<Tick> = (0..9000).map(|i| tick(symbols[(i / 1000) as usize % 4], i as i64, i)).collect();
        let path = folder.write("a.parquet", &parquet(&all, 700));
        let load =
            |path: &Path| ArrowReaderMetadata::load(&File::open(path).unwrap(), ArrowReaderOptions::new()).unwrap();
        let schema = with_dictionaries(load(&path)).schema().to_string();
        assert_eq!(schema.matches("Dictionary(Int32, Utf8)").count(), 2, "{schema}");
        assert_eq!(run(&of(&[path])).ticks(), all);
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_all_of_it_is_named() {
        let folder = Folder::new();
        let good = folder.write("good.csv", &csv(&ticks("A", 1)));
        let whole = parquet(&ticks("A", 1000), 100);
        let mut other = ArrowWriter::try_new(
            Vec::new(),
            arrow::encode(&[], &Instruments::default()).project(&[0, 1]).unwrap().schema(),
            None,
        )
        .unwrap();
        other.flush().unwrap();
        let cases: [(&str, &[u8], &str); 8] = [
            ("empty.parquet", b"", "is not a Parquet file: it does not begin with PAR1"),
            ("cut.parquet", &whole[..whole.len() - 10], "Parquet error: "),
            ("other.parquet", &other.into_inner().unwrap(), "has no column "),
            ("text.arrow", b"kind,symbol\n", "is neither an Arrow IPC file nor a stream"),
            ("cut.arrow", &arrow_file(&ticks("A", 9))[..500], "is cut off: it does not end with ARROW1"),
            ("a.csv.gz", b"\x1f\x8b\x08\x00", "is compressed with gzip: unpack it first"),
            ("a.csv", b"a,b\n1,2\n", "not a known CSV format: \"a.csv\" begins with \"a,b\""),
            ("b.csv", b"kind,symbol,event_time,seq,seq\n", "the header has two columns seq"),
        ];
        let mut files = vec![good];
        files.extend(cases.iter().map(|(name, bytes, _)| folder.write(name, bytes)));
        files.push(folder.0.path().join("absent.csv"));
        files.push(folder.0.path().to_owned());
        let errors = refused(&FileConfig { speed: Speed::Times(0.0), ..of(&files) });
        assert_eq!(errors[0], "speed: 0 must be a positive number of times real time");
        for ((name, _, expected), error) in cases.iter().zip(&errors[1..]) {
            let expected = format!("{}: {expected}", folder.0.path().join(name).display());
            assert!(error.starts_with(&expected), "{error} should be {expected}");
        }
        assert!(errors[9].contains("absent.csv: No such file"), "{}", errors[9]);
        assert!(errors[10].ends_with("Is a directory (os error 21)"), "{}", errors[10]);
        assert_eq!(errors.len(), 11);
    }

    /// Overwrites the data of one column of one row group.
    fn break_parquet(path: &Path, group: usize, column: usize) {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
        let (start, length) = builder.metadata().row_group(group).column(column).byte_range();
        let mut bytes = fs::read(path).unwrap();
        bytes[start as usize..(start + length) as usize].fill(0xff);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_breaks_in_the_middle_is_named_after_what_was_good() {
        let folder = Folder::new();
        let all = ticks("A", 20_000);
        let path = folder.write("broken.parquet", &parquet(&all, 1000));
        break_parquet(&path, 9, 2);
        let other = folder.write("other.csv", &csv(&[tick("B", 0, 1), tick("B", 89_985, 2), tick("B", 99_995, 3)]));
        let sent = run(&of(&[path.clone(), other]));
        let (of_a, of_b): (Vec<_>, Vec<_>) = sent.ticks().into_iter().partition(|t| t.symbol.as_str() == "A");
        assert_eq!(of_a, all[..9000]);
        assert_eq!(of_b.len(), 2, "what comes after the broken row is not sent");
        let error = sent.result.unwrap().to_string();
        assert!(error.starts_with(&format!("{}: row 9000: ", path.display())), "{error}");

        let stream = arrow::encode_stream(&all[..100], &Instruments::default());
        let path = folder.write("cut.arrows", &stream[..stream.len() - 100]);
        let errors = refused(&of(std::slice::from_ref(&path)));
        assert_eq!(errors, [format!("{}: ends in the middle of a message", path.display())]);
        let mut file = arrow_file(&all);
        let middle = file.len() / 2;
        file[middle - 2000..middle + 2000].fill(0xff);
        let sent = run(&of(&[folder.write("broken.arrow", &file)]));
        let Some(FileError::Corrupt { row, .. }) = sent.result else { panic!("{:?}", sent.result) };
        assert!((9000..=10_000).contains(&row) && sent.ticks() == all[..row as usize]);
    }

    #[test]
    fn progress_is_known_at_any_time() {
        let folder = Folder::new();
        let (a, b) = (parquet(&ticks("A", 20_000), 5000), csv(&ticks("B", 1000)));
        let sizes = (a.len() + b.len()) as u64;
        let (a, b) = (folder.write("a.parquet", &a), folder.write("b.csv", &b));
        let only = open(&of(std::slice::from_ref(&a)), &decoder()).ok().unwrap();
        assert_eq!(only.progress().rows_total(), Some(20_000));
        let both = open(&of(&[a, b]), &decoder()).ok().unwrap();
        let progress = both.progress();
        assert_eq!((progress.rows_total(), progress.bytes_total()), (None, sizes));
        assert!((0.1..0.9).contains(&progress.fraction()), "the first rows are read when it is opened");
        let (out, _inputs) = crossbeam_channel::unbounded();
        both.run(&out, &Stop::new()).unwrap();
        assert_eq!(progress.rows_read(), 21_000);
        assert_eq!((progress.bytes_read(), progress.fraction()), (sizes, 1.0));
    }

    #[test]
    fn paced_records_come_at_their_time_and_a_stop_is_obeyed() {
        let folder = Folder::new();
        // 0, 1, 2 seconds, a late one, and an hour; ten times faster than real time.
        let times = [0, 1000, 2000, 500, 3_600_000];
        let all: Vec<Tick> = times.iter().enumerate().map(|(i, ms)| tick("A", *ms, i as u64)).collect();
        let config = FileConfig { speed: Speed::Times(10.0), ..of(&[folder.write("a.csv", &csv(&all))]) };
        let files = open(&config, &decoder()).ok().unwrap();
        let (out, inputs) = crossbeam_channel::bounded(4);
        let stop = Stop::new();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| files.run(&out, &stop));
            let mut came = Vec::new();
            while came.len() < 4 {
                if let Input::Batch(batch) = inputs.recv_timeout(Duration::from_secs(10)).unwrap() {
                    assert!(!batch.at_end);
                    came.extend(batch.records.iter().map(|r| (r.tick.seq, begun.elapsed())));
                }
            }
            for (seq, at) in [(0, 0), (1, 100), (2, 200), (3, 200)] {
                let (found, elapsed) = came[seq as usize];
                assert_eq!(found, seq);
                assert!(elapsed >= Duration::from_millis(at), "{seq} came after {elapsed:?}");
            }
            stop.stop();
            assert_eq!(running.join().unwrap(), Ok(()));
        });
        assert!(begun.elapsed() < Duration::from_secs(60), "an hour at ten times is six minutes");
        assert!(inputs.try_iter().all(|input| !matches!(input, Input::Finished { .. })));
    }

    #[test]
    fn the_real_file_has_all_its_rows() {
        let shared = std::env::var_os("MAREA_SHARED")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
        let path = shared.join("data/us-equities-20131007.parquet");
        if !path.exists() {
            eprintln!("SKIPPED: no real data at {}; set MAREA_SHARED to the folder that has it", path.display());
            return;
        }
        let sent = run(&of(&[path]));
        assert_eq!((sent.records.len(), sent.rejects.len()), (145_089, 0));
        let trades = |symbol: &str| {
            let is = |t: &&Record| t.tick.symbol.as_str() == symbol && t.tick.event.kind() == "trade";
            sent.records.iter().filter(is).count()
        };
        assert_eq!([trades("AIG"), trades("BAC"), trades("IBM")], [25_351, 88_172, 24_293]);
    }
}

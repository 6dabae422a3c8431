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
//! on by its distance from the first ÷ N. Late records are due at once. What was committed and is read again
//! ([`Files::resumed`]) does not wait: the first record after it counts its distance from the greatest time in it.
//!
//! **Errors.** [`open`] refuses what cannot be read (all of it, each naming path and cause) before anything is sent. A
//! record that cannot be read is a dead letter, and the file goes on; a file that breaks in the middle ends the run,
//! naming path and row, after everything before that row has been sent. Then nothing says [`Input::Finished`].

mod reading;

use crate::{BATCH_ROWS, Carries, Input, Resume, Sender, Stop, Stopped, send, wall_now};
use marea_model::codec::{Decoded, Decoder, csv};
use marea_model::cursor::{Batch, DeadLetter};
use marea_model::time::Nanos;
use marea_model::{AccountSnapshot, Cursor, Partition, Ticks};
use reading::Reading;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;
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
    /// What stands before this row was committed.
    committed: u64,
}

impl Stream {
    /// The event time of the next item in hand.
    fn head(&self) -> Option<Nanos> {
        let record = self.records.event_times().get(self.at).copied();
        record.or_else(|| self.accounts.as_slice().first().map(|(_, a)| a.event_time))
    }

    /// The row of the next item in hand.
    fn head_row(&self) -> Option<u64> {
        match self.at < self.records.len() {
            true => Some(self.records.cursor(self.at).offset),
            false => self.accounts.as_slice().first().map(|(cursor, _)| cursor.offset),
        }
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
                committed: 0,
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
        let next = stream.head_row();
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
    /// When the first record came that was not committed, and the event time that it counts from.
    begun: Option<(Instant, Nanos)>,
    /// The greatest event time of what was committed.
    reached: Option<Nanos>,
}

impl Clock {
    /// How long until a record of this time is due.
    fn wait(&mut self, event_time: Nanos, is_committed: bool) -> Duration {
        if is_committed {
            self.reached = self.reached.max(Some(event_time));
            return Duration::ZERO;
        }
        let from = self.reached.unwrap_or(event_time);
        let (begun, first) = *self.begun.get_or_insert_with(|| (Instant::now(), from));
        let distance = event_time.saturating_sub(first).max(0) as f64 / 1e9 / self.times;
        Duration::try_from_secs_f64(distance).unwrap_or(Duration::MAX).saturating_sub(begun.elapsed())
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

    /// Where a run goes on: rows before each file's upper were committed. They are sent once more, without waiting.
    pub fn resumed(mut self, resume: &[Resume]) -> Files {
        for stream in &mut self.streams {
            let of_it = resume.iter().find(|resume| resume.partition == stream.next.partition);
            stream.committed = of_it.map_or(0, |resume| resume.upper);
        }
        self
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
        let mut clock = match *speed {
            Speed::Full => None,
            Speed::Times(times) => Some(Clock { times, begun: None, reached: None }),
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
                let is_committed = stream.head_row().is_some_and(|row| row < stream.committed);
                if let Some(wait) = clock.as_mut().map(|clock| clock.wait(event_time, is_committed))
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
mod tests;

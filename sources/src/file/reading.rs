//! Rows of one file, whatever its format.

use super::FileProgress;
use crate::wall_now;
use arrow_array::RecordBatch;
use marea_model::codec::arrow::{BatchReader, RowsAre, check_schema, decode_batch, dictionary_schema};
use marea_model::codec::{Decoded, Decoder, csv, json};
use marea_model::{Cursor, Partition};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::ConvertedType;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Counts the bytes that are read through it.
pub(super) struct Counted {
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

/// A file, open, at the next row.
pub(super) enum Reading {
    Parquet(Parquet),
    Arrow(BatchReader<BufReader<Counted>>),
    Csv(Box<csv::Reader<BufReader<Counted>>>),
    Accounts { lines: BufReader<Counted>, line: Vec<u8> },
}

impl Reading {
    pub(super) fn open(
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

    pub(super) fn open_accounts(path: &Path, progress: &Arc<FileProgress>) -> Result<Self, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        progress.bytes_total.fetch_add(file.metadata().map_err(|e| e.to_string())?.len(), Ordering::Relaxed);
        progress.rows_unknown.fetch_add(1, Ordering::Relaxed);
        let lines = BufReader::new(Counted { file, progress: Arc::clone(progress) });
        Ok(Reading::Accounts { lines, line: Vec::new() })
    }

    /// Decodes up to `rows` more rows, from the row that `first` names. How many (a blank line is one), and whether there
    /// may be more, or why not.
    pub(super) fn read(
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
pub(super) struct Parquet {
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
pub(super) fn with_dictionaries(metadata: ArrowReaderMetadata) -> ArrowReaderMetadata {
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

//! W1's trades as files in a temporary folder, written by our own codecs; and how the baselines read them.

use crate::Options;
use crate::drive::Setup;
use crate::loops::{W1Loop, W1Sum};
use crate::w1::{into_loop, symbols, tick};
use crate::workload::Trade;
use anyhow::Context as _;
use arrow_ipc::writer::StreamWriter;
use marea_model::codec::arrow::{self, BatchReader, RowsAre};
use marea_model::codec::{Decoded, csv};
use marea_model::{Cursor, Instruments, Nanos, Partition, Tick};
use marea_sources::BATCH_ROWS;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Rows of a chunk that is written at once.
const CHUNK: usize = 65_536;

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Parquet, Snappy.
    Parquet,
    /// Our own columns.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

impl Format {
    /// All.
    pub(crate) const ALL: [Format; 3] = [Format::Parquet, Format::Csv, Format::Arrow];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Parquet => "Parquet",
            Format::Csv => "CSV",
            Format::Arrow => "Arrow IPC",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Format::Parquet => "ticks.parquet",
            Format::Csv => "ticks.csv",
            Format::Arrow => "ticks.arrows",
        }
    }
}

/// W1's trades on disk, until this is dropped.
pub(crate) struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    /// Writes every format.
    pub(crate) fn write(options: &Options, trades: &[Trade]) -> anyhow::Result<Files> {
        let folder = match &options.temp {
            Some(path) => tempfile::tempdir_in(path),
            None => tempfile::tempdir(),
        };
        let files = Files { folder: folder.context("no temporary folder")? };
        let (symbols, instruments) = (symbols()?, Instruments::default());
        let mut csv_out = BufWriter::new(File::create(files.path(Format::Csv))?);
        let mut writers: Option<(ArrowWriter<File>, StreamWriter<File>)> = None;
        for (chunk, trades) in trades.chunks(CHUNK).enumerate() {
            let ticks: Vec<Tick> =
                trades.iter().enumerate().map(|(i, t)| tick(chunk * CHUNK + i, t, &symbols)).collect();
            let text = csv::encode(&ticks, &instruments);
            let header = text.find('\n').map_or(0, |at| at + 1);
            csv_out.write_all(&text.as_bytes()[if chunk == 0 { 0 } else { header }..])?;
            let rows = arrow::encode(&ticks, &instruments);
            if writers.is_none() {
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                let file = File::create(files.path(Format::Parquet))?;
                let parquet = ArrowWriter::try_new(file, rows.schema(), Some(properties))?;
                let stream = File::create(files.path(Format::Arrow))?;
                writers = Some((parquet, StreamWriter::try_new(stream, rows.schema_ref())?));
            }
            if let Some((parquet, stream)) = &mut writers {
                parquet.write(&rows)?;
                for from in (0..rows.num_rows()).step_by(BATCH_ROWS) {
                    stream.write(&rows.slice(from, BATCH_ROWS.min(rows.num_rows() - from)))?;
                }
            }
        }
        csv_out.flush()?;
        if let Some((parquet, mut stream)) = writers {
            parquet.close()?;
            stream.finish()?;
        }
        Ok(files)
    }

    /// Where a format is.
    pub(crate) fn path(&self, format: Format) -> PathBuf {
        self.folder.path().join(format.file())
    }

    /// How long it is.
    pub(crate) fn bytes(&self, format: Format) -> anyhow::Result<u64> {
        Ok(self.path(format).metadata()?.len())
    }
}

/// Decodes a whole file with our decoder, batch by batch, and hands each batch to `take`, which must empty it.
pub(crate) fn decode(
    setup: &Setup,
    path: &Path,
    format: Format,
    mut take: impl FnMut(&mut Decoded) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let decoder = setup.decoder();
    let (mut decoded, mut first) =
        (Decoded::default(), Cursor { partition: Partition::new("files")?, offset: 0, row: 0 });
    let file = File::open(path)?;
    match format {
        Format::Parquet => {
            for rows in ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(BATCH_ROWS).build()? {
                let rows = rows?;
                arrow::decode_batch(&decoder, &rows, first, RowsAre::Offsets, 0, &mut decoded);
                first.offset += rows.num_rows() as u64;
                take(&mut decoded)?;
            }
        }
        Format::Csv => {
            let input = BufReader::with_capacity(1 << 17, file);
            let mut reader = csv::Reader::open(input, first.partition, "ticks.csv", None)?;
            while reader.read(&decoder, BATCH_ROWS, 0, &mut decoded)? {
                take(&mut decoded)?;
            }
            take(&mut decoded)?;
        }
        Format::Arrow => {
            let mut reader = BatchReader::new(BufReader::with_capacity(1 << 17, file));
            while let Some(rows) = reader.decode_next(&decoder, first, RowsAre::Offsets, 0, &mut decoded)? {
                first.offset += rows as u64;
                take(&mut decoded)?;
            }
        }
    }
    Ok(())
}

/// The baseline of W1 from a file: one thread, the same decoder, the plain loop.
pub(crate) fn plain_loop(setup: &Setup, path: &Path, format: Format, bar: Nanos) -> anyhow::Result<W1Sum> {
    let mut plain = W1Loop::new(bar);
    decode(setup, path, format, |decoded| into_loop(decoded, &mut plain).map(drop))?;
    Ok(plain.finish())
}

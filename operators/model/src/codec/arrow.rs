//! Arrow: IPC streams (one record batch a message), IPC files, and record batches that something else has read, such
//! as Parquet's.
//!
//! | column | type | |
//! |---|---|---|
//! | `kind`, `symbol` | text, or a dictionary of texts | required |
//! | `event_time` | Timestamp of any unit with a time zone; Int64 nanoseconds; RFC 3339 text | required |
//! | `seq` | integer | required |
//! | `price`, `size`, `bid`, `ask`, `bid_size`, `ask_size` | Float64, Decimal128, integer, text | |
//! | `rev`, `count` | integer | corrections and amends |
//! | `open_time`, `timeframe`, `deleted` | as `event_time`; text; Boolean | amends |
//! | `open`, `high`, `low`, `close`, `volume`, `turnover` | as `price` | amends |
//!
//! Columns come in any order; unknown ones are not even decoded, and each accepted row is counted. A message is read
//! whole before any of its rows counts: what is broken in its framing, schema or buffers makes one reject of the
//! message, what is wrong in a row makes one reject of the row. Offsets and lengths are checked against the body before
//! the arrow crate slices by them, since it would panic.

use super::columnar::Columnar;
use super::json::bar_texts;
use super::{Decoded, Decoder, Fault, Field, Fields, Value, judge};
use crate::cursor::{Cursor, Reason, excerpt};
use crate::instrument::Instruments;
use crate::num::{SCALE, fixed_from_f64, fixed_to_f64, format_fixed};
use crate::tick::{Event, Tick};
use crate::time::{MILLI, Nanos, SECOND};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, LargeStringArray,
    RecordBatch, StringArray, StringViewArray, TimestampNanosecondArray, UInt32Array, UInt64Array,
};
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_ipc::writer::StreamWriter;
use arrow_ipc::{Endianness, MetadataVersion, root_as_message};
use arrow_schema::{DataType, Field as Column, Schema, SchemaRef, TimeUnit, UnionMode};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

/// What the rows of a batch are, which is how their cursors differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowsAre {
    /// Rows of a file: the offset counts them.
    Offsets,
    /// Rows within a message: its offset is theirs, and `row` counts them.
    Rows,
}

impl RowsAre {
    pub(super) fn cursor(self, first: Cursor, row: usize) -> Cursor {
        match self {
            RowsAre::Offsets => Cursor { offset: first.offset.saturating_add(row as u64), ..first },
            RowsAre::Rows => Cursor { row: first.row.saturating_add(u32::try_from(row).unwrap_or(u32::MAX)), ..first },
        }
    }
}

/// Why a schema is not one of ticks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct SchemaError {
    /// The column at fault.
    pub column: String,
    /// Its type, empty if it is absent.
    pub data_type: String,
    /// One sentence for people.
    pub detail: String,
}

/// Why a stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It is no stream of batches.
    #[error("{0}")]
    Malformed(String),
    /// It is one, but not of ticks.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// It could not be read at all.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StreamError {
    fn malformed(detail: impl Into<String>) -> StreamError {
        StreamError::Malformed(detail.into())
    }

    fn fault(self, value: String) -> Box<Fault> {
        match self {
            StreamError::Schema(error) => error.fault(),
            other => Fault::new(Reason::Malformed, "", value, other.to_string()),
        }
    }
}

impl SchemaError {
    fn fault(self) -> Box<Fault> {
        Fault::new(Reason::Schema, self.column, excerpt(&self.data_type), self.detail)
    }
}

/// Whether batches of this schema can hold ticks: for a file, asked once before it is read.
pub fn check_schema(schema: &Schema) -> Result<(), SchemaError> {
    for field in Field::ALL {
        let name = field.name();
        let mut columns = schema.fields().iter().filter(|c| c.name() == name);
        let (column, data_type, detail) = match (columns.next(), columns.next()) {
            (None, _) if Field::REQUIRED.contains(&field) => (name, String::new(), format!("has no column {name}")),
            (Some(column), None) if !fits(field, column.data_type()) => {
                let (data_type, needed) = (column.data_type().to_string(), needed(field));
                (name, data_type.clone(), format!("the column {name} is {}, and must be {needed}", excerpt(&data_type)))
            }
            (Some(_), Some(_)) => (name, String::new(), format!("has two columns {name}")),
            _ => continue,
        };
        return Err(SchemaError { column: column.to_owned(), data_type, detail });
    }
    Ok(())
}

/// The schema by which to ask for a file's columns: those of ours that are texts, and of which `has_dictionary` says so,
/// as dictionaries, which are decoded much faster.
pub fn dictionary_schema(schema: &Schema, has_dictionary: impl Fn(usize) -> bool) -> SchemaRef {
    let fields = schema.fields().iter().enumerate().map(|(i, column)| {
        let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8);
        if !is_text || Field::named(column.name()).is_none() || !has_dictionary(i) {
            return Arc::clone(column);
        }
        let keyed = DataType::Dictionary(Box::new(DataType::Int32), Box::new(column.data_type().clone()));
        Arc::new(column.as_ref().clone().with_data_type(keyed))
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

fn fits(field: Field, data_type: &DataType) -> bool {
    let integer =
        matches!(data_type, DataType::Int64 | DataType::UInt64 | DataType::Int32 | DataType::UInt32) || text(data_type);
    match (field, data_type) {
        (_, DataType::Null) => !Field::REQUIRED.contains(&field),
        (Field::Kind | Field::Symbol | Field::Timeframe, _) => text(data_type),
        (Field::EventTime | Field::OpenTime, DataType::Timestamp(_, zone)) => zone.is_some(),
        (Field::EventTime | Field::OpenTime, _) => text(data_type) || *data_type == DataType::Int64,
        (Field::Seq | Field::Rev | Field::Count, _) => integer,
        (Field::Deleted, _) => *data_type == DataType::Boolean,
        (_, DataType::Float64 | DataType::Decimal128(..)) => true,
        _ => integer,
    }
}

fn text(data_type: &DataType) -> bool {
    let plain = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    plain(data_type) || matches!(data_type, DataType::Dictionary(_, values) if plain(values))
}

fn needed(field: Field) -> &'static str {
    match field {
        Field::Kind | Field::Symbol | Field::Timeframe => "a text",
        Field::EventTime | Field::OpenTime => "a Timestamp with a time zone, Int64 nanoseconds, or a text",
        Field::Seq | Field::Rev | Field::Count => "Int32, Int64, UInt32 or UInt64",
        Field::Deleted => "Boolean",
        _ => "Float64, Decimal128, an integer or a text",
    }
}

/// Decodes a batch: each row ends as one record or one reject of `out`. A batch of another schema is one reject (see
/// [`check_schema`]). `first` is the cursor of row 0.
pub fn decode_batch(
    decoder: &Decoder,
    batch: &RecordBatch,
    first: Cursor,
    rows_are: RowsAre,
    receive_time: Nanos,
    out: &mut Decoded,
) {
    match check_schema(batch.schema_ref()) {
        Ok(()) => {
            let ignores = batch.schema_ref().fields().iter().any(|c| Field::named(c.name()).is_none());
            decode_rows(decoder, batch, first, rows_are, receive_time, ignores, out);
        }
        Err(error) => {
            let columns = batch.schema_ref().fields().iter();
            let columns = columns.map(|c| (c.name().clone(), c.data_type().to_string().into())).collect();
            let original =
                serde_json::json!({ "schema": serde_json::Value::Object(columns), "rows": batch.num_rows() });
            out.rejects.push(error.fault().dead(first, original.to_string().into_bytes()));
        }
    }
}

fn decode_rows(
    decoder: &Decoder,
    batch: &RecordBatch,
    first: Cursor,
    rows_are: RowsAre,
    receive_time: Nanos,
    ignores: bool,
    out: &mut Decoded,
) {
    let mut rows = Rows { decoder, batch, columns: None, first, rows_are, receive_time, ignores };
    let last = batch.num_rows().saturating_sub(1);
    let numbered = match rows_are {
        RowsAre::Offsets => first.offset.checked_add(last as u64).is_some(),
        RowsAre::Rows => u32::try_from(last).is_ok_and(|last| first.row.checked_add(last).is_some()),
    };
    match Columnar::of(batch) {
        Some(columnar) if numbered => columnar.decode(&mut rows, out),
        _ => {
            out.records.reserve(batch.num_rows());
            rows.all(out);
        }
    }
}

/// The rows of a batch, decoded one by one.
pub(super) struct Rows<'a> {
    pub(super) decoder: &'a Decoder,
    batch: &'a RecordBatch,
    columns: Option<Columns<'a>>,
    pub(super) first: Cursor,
    pub(super) rows_are: RowsAre,
    pub(super) receive_time: Nanos,
    pub(super) ignores: bool,
}

impl Rows<'_> {
    /// Decodes a row.
    pub(super) fn one(&mut self, row: usize, out: &mut Decoded) {
        let columns = self.columns.get_or_insert_with(|| Columns::of(self.batch));
        let row = Row { columns, row };
        let judged = judge(self.decoder, &mut out.symbols, &row, self.receive_time);
        let judged = judged.map(|(tick, ignored)| (tick, ignored || self.ignores));
        out.file(self.rows_are.cursor(self.first, row.row), judged, || row.json());
    }

    fn all(&mut self, out: &mut Decoded) {
        (0..self.batch.num_rows()).for_each(|row| self.one(row, out));
    }
}

/// [`decode_batch`] without columns: what it must be equal to.
#[cfg(test)]
pub(super) fn decode_by_row(
    decoder: &Decoder,
    batch: &RecordBatch,
    first: Cursor,
    rows_are: RowsAre,
    receive_time: Nanos,
    out: &mut Decoded,
) {
    let ignores = batch.schema_ref().fields().iter().any(|c| Field::named(c.name()).is_none());
    Rows { decoder, batch, columns: None, first, rows_are, receive_time, ignores }.all(out);
}

/// Decodes a message: an IPC stream, or the bytes of an IPC file. Every row of every batch ends as one record or one
/// reject of `out`; a message that cannot be read to its end is one reject, and none of its rows counts.
pub fn decode_stream(decoder: &Decoder, message: &[u8], cursor: Cursor, receive_time: Nanos, out: &mut Decoded) {
    let mut reader = BatchReader::new(message);
    let mut batches = Vec::new();
    let end = loop {
        match reader.next_batch() {
            Ok(Some(batch)) => batches.push(batch),
            Ok(None) if reader.layout.is_none() => break Err(StreamError::malformed("has no Arrow schema")),
            Ok(None) if batches.is_empty() => break Err(StreamError::malformed("has no record batch")),
            // A file's footer repeats where its messages are.
            Ok(None) if reader.is_file || reader.input.is_empty() => break Ok(()),
            Ok(None) => break Err(StreamError::malformed("has bytes after the end of its stream")),
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = end {
        let fault = error.fault(excerpt(&String::from_utf8_lossy(&message[..message.len().min(64)])));
        out.rejects.push(fault.dead(cursor, message.to_vec()));
        return;
    }
    let ignores = reader.layout.is_some_and(|layout| layout.ignores);
    let mut row = 0;
    for batch in batches {
        let first = RowsAre::Rows.cursor(cursor, row);
        decode_rows(decoder, &batch, first, RowsAre::Rows, receive_time, ignores, out);
        row += batch.num_rows();
    }
}

/// Reads an IPC stream or file batch by batch, in bounded memory, without trusting a byte of it.
#[derive(Debug)]
pub struct BatchReader<R> {
    input: R,
    /// What is left of a batch of which not all rows were wanted.
    rest: Option<RecordBatch>,
    layout: Option<Layout>,
    dictionaries: HashMap<i64, ArrayRef>,
    is_file: bool,
    started: bool,
    ended: bool,
}

#[derive(Debug)]
struct Layout {
    all: SchemaRef,
    /// Our columns, and where they stand among all.
    ours: Schema,
    projection: Vec<usize>,
    /// Our dictionaries: their ids, and the types of their values.
    dictionaries: Vec<(i64, DataType)>,
    other_dictionaries: Vec<i64>,
    /// Whether there are columns that are not ours.
    ignores: bool,
}

impl<R: Read> BatchReader<R> {
    /// A reader from the stream's first byte.
    pub fn new(input: R) -> Self {
        BatchReader {
            input,
            rest: None,
            layout: None,
            dictionaries: HashMap::new(),
            is_file: false,
            started: false,
            ended: false,
        }
    }

    /// Decodes the next batch, as [`decode_batch`] does, and returns its rows; none at the end of the stream. After an
    /// error nothing can be read on.
    pub fn decode_next(
        &mut self,
        decoder: &Decoder,
        first: Cursor,
        rows_are: RowsAre,
        receive_time: Nanos,
        out: &mut Decoded,
    ) -> Result<Option<usize>, StreamError> {
        self.decode_some(decoder, first, usize::MAX, rows_are, receive_time, out)
    }

    /// The same for `most` rows of a batch at most; the next call goes on where this one ended.
    pub fn decode_some(
        &mut self,
        decoder: &Decoder,
        first: Cursor,
        most: usize,
        rows_are: RowsAre,
        receive_time: Nanos,
        out: &mut Decoded,
    ) -> Result<Option<usize>, StreamError> {
        let batch = match self.rest.take() {
            Some(batch) => Some(batch),
            None => self.next_batch()?,
        };
        let Some(mut batch) = batch else {
            if self.layout.is_none() {
                return Err(StreamError::malformed("has no Arrow schema"));
            }
            return Ok(None);
        };
        let rows = batch.num_rows();
        if rows > most {
            self.rest = Some(batch.slice(most, rows - most));
            batch = batch.slice(0, most);
        }
        let ignores = self.layout.as_ref().is_some_and(|layout| layout.ignores);
        decode_rows(decoder, &batch, first, rows_are, receive_time, ignores, out);
        Ok(Some(batch.num_rows()))
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, StreamError> {
        while let Some(metadata) = self.metadata()? {
            let message = root_as_message(&metadata).map_err(|_| StreamError::malformed("not an Arrow message"))?;
            let length = message.bodyLength();
            let length = u64::try_from(length).map_err(|_| StreamError::malformed("has a body of negative length"))?;
            let body = self.read(length)?;
            let version = message.version();
            if let Some(schema) = message.header_as_schema() {
                self.schema(schema)?;
                continue;
            }
            let Some(layout) = &self.layout else { return Err(StreamError::malformed("does not begin with a schema")) };
            if let Some(batch) = message.header_as_record_batch() {
                let columns = layout.all.fields().iter();
                let columns = columns.map(|c| (c.data_type(), Field::named(c.name()).is_some()));
                check_batch(&batch, body.len(), version, columns)?;
                return RecordBatchDecoder::try_new(
                    &body.into(),
                    batch,
                    Arc::clone(&layout.all),
                    &self.dictionaries,
                    &version,
                )
                .and_then(|reader| reader.with_projection(Some(&layout.projection)).read_record_batch())
                .map(Some)
                .map_err(|e| StreamError::malformed(format!("has a broken record batch: {e}")));
            }
            let dictionary = message.header_as_dictionary_batch();
            let Some((dictionary, data)) = dictionary.and_then(|d| Some((d, d.data()?))) else {
                return Err(StreamError::malformed("has a message that is no schema, batch or dictionary"));
            };
            // The values of a column that is not ours are not read.
            if let Some((_, values)) = layout.dictionaries.iter().find(|(id, _)| *id == dictionary.id()) {
                check_batch(&data, body.len(), version, std::iter::once((values, true)))?;
                read_dictionary(&body.into(), dictionary, &layout.ours, &mut self.dictionaries, &version)
                    .map_err(|e| StreamError::malformed(format!("has a broken dictionary: {e}")))?;
            } else if !layout.other_dictionaries.contains(&dictionary.id()) {
                return Err(StreamError::malformed("has a dictionary that is not in its schema"));
            }
        }
        Ok(None)
    }

    fn schema(&mut self, schema: arrow_ipc::Schema<'_>) -> Result<(), StreamError> {
        if self.layout.is_some() {
            return Err(StreamError::malformed("has two schemas"));
        }
        if schema.endianness() != Endianness::Little {
            return Err(StreamError::malformed("is not little-endian"));
        }
        let broken = |e| StreamError::malformed(format!("has a broken schema: {e}"));
        let all = arrow_ipc::convert::try_fb_to_schema(schema).map_err(broken)?;
        check_schema(&all)?;
        let is_ours = |i: &usize| Field::named(all.field(*i).name()).is_some();
        let projection: Vec<usize> = (0..all.fields().len()).filter(is_ours).collect();
        let fields = schema.fields().into_iter().flatten().enumerate().filter(|(i, _)| is_ours(i));
        let dictionary = |(i, field): (usize, arrow_ipc::Field<'_>)| match all.field(i).data_type() {
            DataType::Dictionary(_, values) => Some((field.dictionary()?.id(), values.as_ref().clone())),
            _ => None,
        };
        let dictionaries = fields.filter_map(dictionary).collect();
        let mut other_dictionaries = Vec::new();
        for field in schema.fields().into_iter().flatten() {
            dictionary_ids(field, &mut other_dictionaries);
        }
        let ignores = projection.len() < all.fields().len();
        let ours = all.project(&projection).map_err(broken)?;
        self.layout = Some(Layout { all: Arc::new(all), ours, projection, dictionaries, other_dictionaries, ignores });
        Ok(())
    }

    /// The metadata of the next message; none at the stream's end.
    fn metadata(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        /// Metadata describes columns and buffers; ours are a few kilobytes.
        const MOST: u32 = 64 << 20;
        if self.ended {
            return Ok(None);
        }
        let mut word = self.word()?;
        if !std::mem::replace(&mut self.started, true) && word == Some(*b"ARRO") {
            if self.word()? != Some(*b"W1\0\0") {
                return Err(StreamError::malformed("not an Arrow message"));
            }
            self.is_file = true;
            // Writers pad the mark to their alignment.
            word = self.word()?;
            while word == Some([0; 4]) {
                word = self.word()?;
            }
        }
        // Streams from before 2019 have no such marker before the length.
        if word == Some([0xff; 4]) {
            word = Some(self.word()?.ok_or_else(|| StreamError::malformed(CUT_OFF))?);
        }
        match word.map(u32::from_le_bytes) {
            None | Some(0) => {
                self.ended = true;
                Ok(None)
            }
            Some(length) if length > MOST => Err(StreamError::malformed("not an Arrow message")),
            Some(length) => self.read(u64::from(length)).map(Some),
        }
    }

    /// The next four bytes; none at the end of the input.
    fn word(&mut self) -> Result<Option<[u8; 4]>, StreamError> {
        let mut word = Vec::with_capacity(4);
        self.input.by_ref().take(4).read_to_end(&mut word)?;
        match <[u8; 4]>::try_from(word.as_slice()) {
            Ok(word) => Ok(Some(word)),
            Err(_) if word.is_empty() => Ok(None),
            Err(_) => Err(StreamError::malformed(CUT_OFF)),
        }
    }

    /// Exactly `length` bytes; room for more than a megabyte is only made as the bytes arrive.
    fn read(&mut self, length: u64) -> Result<Vec<u8>, StreamError> {
        let mut bytes = Vec::with_capacity(length.min(1 << 20) as usize);
        self.input.by_ref().take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(StreamError::malformed(CUT_OFF)) }
    }
}

/// The ids of all dictionaries in a column; the verifier of messages bounds its depth.
fn dictionary_ids(field: arrow_ipc::Field<'_>, ids: &mut Vec<i64>) {
    ids.extend(field.dictionary().map(|dictionary| dictionary.id()));
    for child in field.children().into_iter().flatten() {
        dictionary_ids(child, ids);
    }
}

const CUT_OFF: &str = "ends in the middle of a message";

/// Checks what the arrow crate takes for granted, and panics without: that every buffer lies in the body, that every
/// length can be one, and that our columns' buffers hold whole elements. `columns` are all of the batch's, with whether
/// they are ours.
fn check_batch<'a>(
    batch: &arrow_ipc::RecordBatch<'_>,
    body: usize,
    version: MetadataVersion,
    columns: impl Iterator<Item = (&'a DataType, bool)>,
) -> Result<(), StreamError> {
    if batch.compression().is_some() {
        return Err(StreamError::malformed("is compressed: send it uncompressed"));
    }
    // Every row of every column of ours takes a bit at least.
    let most_rows = body as u64 * 8;
    let rows = |n: i64| u64::try_from(n).is_ok_and(|n| n <= most_rows);
    let nodes = batch.nodes().into_iter().flatten();
    let nodes_fit = nodes.into_iter().all(|n| rows(n.length()) && (0..=n.length()).contains(&n.null_count()));
    let in_body = |offset: i64, length: i64| {
        let end = u64::try_from(offset).ok().zip(u64::try_from(length).ok()).and_then(|(o, l)| o.checked_add(l));
        end.is_some_and(|end| end <= body as u64)
    };
    let buffers: Vec<(i64, i64)> = batch.buffers().into_iter().flatten().map(|b| (b.offset(), b.length())).collect();
    if !rows(batch.length()) || !nodes_fit || !buffers.iter().all(|(offset, length)| in_body(*offset, *length)) {
        return Err(StreamError::malformed("has a record batch that reaches beyond its body"));
    }
    let mut views = batch.variadicBufferCounts().into_iter().flatten();
    let mut first = 0_usize;
    for (data_type, is_ours) in columns {
        // The first buffer says which rows are null, the second has offsets, keys, views or values.
        if is_ours && let Some((_, length)) = buffers.get(first.saturating_add(1)) {
            let width = data_type.primitive_width().unwrap_or(1).max(element_width(data_type)) as i64;
            if length % width != 0 {
                return Err(StreamError::malformed("has a record batch whose buffers end within an element"));
            }
        }
        first = first.saturating_add(count_buffers(data_type, version, &mut views));
    }
    Ok(())
}

/// Bytes of an offset, key or view of a column of ours.
fn element_width(data_type: &DataType) -> usize {
    match data_type {
        DataType::Utf8 => size_of::<i32>(),
        DataType::LargeUtf8 => size_of::<i64>(),
        DataType::Utf8View => size_of::<u128>(),
        DataType::Dictionary(keys, _) => keys.primitive_width().unwrap_or(1),
        _ => 1,
    }
}

/// The buffers of a column in a message, as the IPC format lays them out.
fn count_buffers(data_type: &DataType, version: MetadataVersion, views: &mut impl Iterator<Item = i64>) -> usize {
    let of_children: usize = match data_type {
        DataType::List(child)
        | DataType::LargeList(child)
        | DataType::ListView(child)
        | DataType::LargeListView(child)
        | DataType::FixedSizeList(child, _)
        | DataType::Map(child, _) => count_buffers(child.data_type(), version, views),
        DataType::Struct(children) => children.iter().map(|c| count_buffers(c.data_type(), version, views)).sum(),
        DataType::Union(children, _) => {
            children.iter().map(|(_, c)| count_buffers(c.data_type(), version, views)).sum()
        }
        DataType::RunEndEncoded(ends, values) => {
            count_buffers(ends.data_type(), version, views) + count_buffers(values.data_type(), version, views)
        }
        _ => 0,
    };
    let own = match data_type {
        DataType::Null | DataType::RunEndEncoded(..) => 0,
        DataType::Struct(_) | DataType::FixedSizeList(..) => 1,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => 3,
        DataType::ListView(_) | DataType::LargeListView(_) => 3,
        // A count that is no count fails in the arrow crate.
        DataType::Utf8View | DataType::BinaryView => {
            2 + views.next().and_then(|n| u16::try_from(n).ok()).map_or(0, usize::from)
        }
        // Before version 5 a union had a buffer of nulls.
        DataType::Union(_, mode) => {
            1 + usize::from(*mode == UnionMode::Dense) + usize::from(version < MetadataVersion::V5)
        }
        _ => 2,
    };
    own + of_children
}

/// One of our columns, its type found once a batch.
pub(super) enum Cells<'a> {
    Absent,
    Utf8(&'a StringArray),
    LargeUtf8(&'a LargeStringArray),
    Utf8View(&'a StringViewArray),
    Dictionary { array: &'a dyn Array, keys: Vec<usize>, values: Box<Cells<'a>> },
    Float64(&'a Float64Array),
    Int64(&'a Int64Array),
    Int32(&'a Int32Array),
    UInt64(&'a UInt64Array),
    UInt32(&'a UInt32Array),
    Decimal128 { array: &'a Decimal128Array, scale: i8 },
    Boolean(&'a BooleanArray),
    Timestamp { array: &'a dyn Array, counts: &'a [i64], unit: Nanos },
}

impl<'a> Cells<'a> {
    /// The cells of a column whose type [`fits`].
    pub(super) fn of(array: &'a dyn Array) -> Self {
        match array.data_type() {
            DataType::Utf8 => Cells::Utf8(array.as_string()),
            DataType::LargeUtf8 => Cells::LargeUtf8(array.as_string()),
            DataType::Utf8View => Cells::Utf8View(array.as_string_view()),
            DataType::Float64 => Cells::Float64(array.as_primitive::<Float64Type>()),
            DataType::Int64 => Cells::Int64(array.as_primitive::<Int64Type>()),
            DataType::Int32 => Cells::Int32(array.as_primitive::<Int32Type>()),
            DataType::UInt64 => Cells::UInt64(array.as_primitive::<UInt64Type>()),
            DataType::UInt32 => Cells::UInt32(array.as_primitive::<UInt32Type>()),
            DataType::Decimal128(_, scale) => {
                Cells::Decimal128 { array: array.as_primitive::<Decimal128Type>(), scale: *scale }
            }
            DataType::Boolean => Cells::Boolean(array.as_boolean()),
            DataType::Timestamp(unit, _) => {
                let (counts, unit): (&[i64], Nanos) = match unit {
                    TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().values(), SECOND),
                    TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().values(), MILLI),
                    TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().values(), 1000),
                    TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().values(), 1),
                };
                Cells::Timestamp { array, counts, unit }
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_any_dictionary();
                // Without values every key is null.
                if dictionary.values().is_empty() {
                    return Cells::Absent;
                }
                let values = Box::new(Cells::of(dictionary.values().as_ref()));
                Cells::Dictionary { array, keys: dictionary.normalized_keys(), values }
            }
            _ => Cells::Absent,
        }
    }

    pub(super) fn get(&self, row: usize) -> Value<'_> {
        match self {
            Cells::Absent => Value::Null,
            Cells::Utf8(array) if array.is_valid(row) => Value::Text(Cow::Borrowed(array.value(row))),
            Cells::LargeUtf8(array) if array.is_valid(row) => Value::Text(Cow::Borrowed(array.value(row))),
            Cells::Utf8View(array) if array.is_valid(row) => Value::Text(Cow::Borrowed(array.value(row))),
            Cells::Dictionary { array, keys, values } if array.is_valid(row) => values.get(keys[row]),
            Cells::Float64(array) if array.is_valid(row) => Value::Float(array.value(row)),
            Cells::Int64(array) if array.is_valid(row) => Value::Int(array.value(row).into()),
            Cells::Int32(array) if array.is_valid(row) => Value::Int(array.value(row).into()),
            Cells::UInt64(array) if array.is_valid(row) => Value::Int(array.value(row).into()),
            Cells::UInt32(array) if array.is_valid(row) => Value::Int(array.value(row).into()),
            Cells::Decimal128 { array, scale } if array.is_valid(row) => {
                Value::Fixed { units: array.value(row), scale: *scale }
            }
            Cells::Boolean(array) if array.is_valid(row) => Value::Bool(array.value(row)),
            Cells::Timestamp { array, counts, unit } if array.is_valid(row) => {
                Value::Time(i128::from(counts[row]) * i128::from(*unit))
            }
            _ => Value::Null,
        }
    }

    fn is_null(&self, row: usize) -> bool {
        matches!(self.get(row), Value::Null)
    }
}

struct Columns<'a> {
    cells: [Cells<'a>; Field::COUNT],
    present: u32,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Self {
        let cells = Field::ALL.map(|f| batch.column_by_name(f.name()).map_or(Cells::Absent, |c| Cells::of(c.as_ref())));
        let present = Field::ALL.into_iter().filter(|f| !matches!(cells[*f as usize], Cells::Absent));
        let present = present.fold(0, |mask, field| mask | field.bit());
        Columns { cells, present }
    }
}

struct Row<'a> {
    columns: &'a Columns<'a>,
    row: usize,
}

impl Row<'_> {
    /// The row in our own JSON, so that it can be read, mended and sent again.
    fn json(&self) -> Vec<u8> {
        let mut object = serde_json::Map::new();
        for field in Field::ALL {
            let value = match self.get(field) {
                Value::Null => continue,
                Value::Bool(flag) => flag.into(),
                Value::Text(text) => text.into_owned().into(),
                Value::Int(int) => i64::try_from(int).map_or_else(|_| int.to_string().into(), Into::into),
                Value::Float(float) => float.to_string().into(),
                other => other.shown().into(),
            };
            object.insert(field.name().to_owned(), value);
        }
        serde_json::Value::Object(object).to_string().into_bytes()
    }
}

impl Fields for Row<'_> {
    fn get(&self, field: Field) -> Value<'_> {
        self.columns.cells[field as usize].get(self.row)
    }

    fn has_others(&self, known: u32) -> bool {
        let mut others = self.columns.present & !known;
        while others != 0 {
            let index = others.trailing_zeros() as usize;
            if !self.columns.cells[index].is_null(self.row) {
                return true;
            }
            others &= others - 1;
        }
        false
    }
}

/// Writes ticks as a batch: the columns of trades and quotes, and those of corrections and amends if there are any.
/// A column of prices or sizes is Float64 if that loses nothing, else text.
pub fn encode(ticks: &[Tick], instruments: &Instruments) -> RecordBatch {
    let texts = |text: fn(&Tick) -> &'static str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(ticks.iter().map(text)))
    };
    let number = |field: Field| -> ArrayRef {
        let value = |t: &Tick| number_of(t, field).map(|n| (n, price_scale(t, field, instruments)));
        numbers(ticks.iter().map(value).collect())
    };
    let times = |times: Vec<Option<Nanos>>| -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from(times).with_timezone("UTC"))
    };
    let seq: ArrayRef = Arc::new(UInt64Array::from_iter_values(ticks.iter().map(|t| t.seq)));
    let mut columns = vec![
        (Field::EventTime, times(ticks.iter().map(|t| Some(t.event_time)).collect()), false),
        (Field::Symbol, texts(|t| t.symbol.as_str()), false),
        (Field::Seq, seq, false),
        (Field::Kind, texts(|t| t.event.kind()), false),
    ];
    let numbers = [Field::Price, Field::Size, Field::Bid, Field::Ask, Field::BidSize, Field::AskSize];
    columns.extend(numbers.map(|field| (field, number(field), true)));
    let revs: UInt32Array = ticks.iter().map(|t| rev_of(&t.event)).collect();
    if revs.null_count() < ticks.len() {
        columns.push((Field::Rev, Arc::new(revs), true));
    }
    if ticks.iter().any(|t| matches!(t.event, Event::Amend(_))) {
        let amend = |t: &Tick| match &t.event {
            Event::Amend(amend) => Some(amend.bar.map(|bar| bar_texts(&bar, instruments.get(t.symbol).bar_scale()))),
            _ => None,
        };
        let amends: Vec<Option<Option<_>>> = ticks.iter().map(amend).collect();
        let open_times = ticks.iter().zip(&amends).map(|(t, a)| a.is_some().then_some(t.event_time)).collect();
        columns.push((Field::OpenTime, times(open_times), true));
        for (i, field) in super::BAR_FIELDS.into_iter().enumerate() {
            let text = |a: &'_ Option<Option<[(Field, String); 7]>>| Some(a.as_ref()?.as_ref()?[i].1.clone());
            let texts: StringArray = amends.iter().map(text).collect();
            columns.push((field, Arc::new(texts), true));
        }
        let deleted: BooleanArray = amends.iter().map(|a| Some(a.as_ref()?.is_none())).collect();
        columns.push((Field::Deleted, Arc::new(deleted), true));
    }
    let field = |(f, array, null): &(Field, ArrayRef, bool)| Column::new(f.name(), array.data_type().clone(), *null);
    let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|(_, array, _)| array).collect();
    RecordBatch::try_new(Arc::new(schema), arrays).expect("columns of one length, typed as their schema says")
}

/// Writes ticks as an IPC stream of one batch: a message.
pub fn encode_stream(ticks: &[Tick], instruments: &Instruments) -> Vec<u8> {
    let batch = encode(ticks, instruments);
    let written = StreamWriter::try_new(Vec::new(), batch.schema_ref()).and_then(|mut writer| {
        writer.write(&batch)?;
        writer.into_inner()
    });
    written.expect("memory takes every byte, and our types have an encoding")
}

/// A price or size of a trade, quote or correction; a quote's unknown size is null.
pub(super) fn number_of(tick: &Tick, field: Field) -> Option<i64> {
    match (&tick.event, field) {
        (Event::Trade { price, .. } | Event::Correction { price, .. }, Field::Price) => Some(price.0),
        (Event::Trade { size, .. } | Event::Correction { size, .. }, Field::Size) => Some(size.0),
        (Event::Quote { bid, .. }, Field::Bid) => Some(bid.0),
        (Event::Quote { ask, .. }, Field::Ask) => Some(ask.0),
        (Event::Quote { bid_size, .. }, Field::BidSize) => Some(bid_size.0).filter(|size| *size != 0),
        (Event::Quote { ask_size, .. }, Field::AskSize) => Some(ask_size.0).filter(|size| *size != 0),
        _ => None,
    }
}

/// The digits after the point of [`number_of`].
pub(super) fn price_scale(tick: &Tick, field: Field, instruments: &Instruments) -> u8 {
    if matches!(field, Field::Price | Field::Bid | Field::Ask) { instruments.get(tick.symbol).scale } else { SCALE }
}

pub(super) fn rev_of(event: &Event) -> Option<u32> {
    match event {
        Event::Correction { rev, .. } => Some(*rev),
        Event::Amend(amend) => Some(amend.rev),
        _ => None,
    }
}

fn numbers(units: Vec<Option<(i64, u8)>>) -> ArrayRef {
    let float = |(units, scale)| fixed_to_f64(i128::from(units), scale);
    let exact = |(units, scale)| fixed_from_f64(float((units, scale)), scale) == Ok(units);
    if units.iter().flatten().all(|number| exact(*number)) {
        return Arc::new(units.into_iter().map(|number| number.map(float)).collect::<Float64Array>());
    }
    let text = |(units, scale)| format_fixed(i128::from(units), scale);
    Arc::new(units.into_iter().map(|number| number.map(text)).collect::<StringArray>())
}

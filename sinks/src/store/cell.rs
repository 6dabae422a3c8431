//! Values and rows as both databases give and take them.

use marea_model::num::F64;
use marea_model::{Decimal, Epoch};
use std::sync::Arc;

/// A value of a row.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Bool(bool),
    Float(f64),
    Name(&'static str),
    Text(String),
    Shared(Arc<str>),
    Bytes(Vec<u8>),
}

impl Cell {
    /// Its text, if it is one.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Cell::Name(text) => Some(text),
            Cell::Text(text) => Some(text),
            Cell::Shared(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is the same value: floats by their bits, a truth value also as SQLite's integer.
    pub(crate) fn same(&self, other: &Cell) -> bool {
        match (self, other) {
            (Cell::Null, Cell::Null) => true,
            (Cell::Int(a), Cell::Int(b)) => a == b,
            (Cell::Bool(a), Cell::Bool(b)) => a == b,
            (Cell::Bool(a), Cell::Int(b)) | (Cell::Int(b), Cell::Bool(a)) => i64::from(*a) == *b,
            (Cell::Float(a), Cell::Float(b)) => a.to_bits() == b.to_bits(),
            (Cell::Bytes(a), Cell::Bytes(b)) => a == b,
            (a, b) => a.as_str().is_some() && a.as_str() == b.as_str(),
        }
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        match self {
            Cell::Null => "null".to_owned(),
            Cell::Int(value) => value.to_string(),
            Cell::Bool(value) => value.to_string(),
            Cell::Float(value) => format!("{value:?}"),
            Cell::Bytes(bytes) => format!("{} bytes", bytes.len()),
            text => text.as_str().unwrap_or_default().to_owned(),
        }
    }
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Cell::Int(value)
    }
}
impl From<u64> for Cell {
    fn from(value: u64) -> Self {
        Cell::Int(value.cast_signed())
    }
}
impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Cell::Bool(value)
    }
}
impl From<F64> for Cell {
    fn from(value: F64) -> Self {
        Cell::Float(value.0)
    }
}
impl From<&'static str> for Cell {
    fn from(value: &'static str) -> Self {
        Cell::Name(value)
    }
}
impl From<String> for Cell {
    fn from(value: String) -> Self {
        Cell::Text(value)
    }
}
impl From<Decimal> for Cell {
    fn from(value: Decimal) -> Self {
        Cell::Text(value.to_string())
    }
}
impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}

/// A row as it was read. What cannot be read says which column and what stands there.
#[derive(Clone, Debug)]
pub(crate) struct Row(pub(crate) Vec<Cell>);

impl Row {
    fn unlike(&self, column: usize, expected: &str) -> String {
        let found = self.0.get(column).map_or_else(|| "nothing".to_owned(), Cell::shown);
        format!("column {}: {found} is no {expected}", column + 1)
    }

    pub(crate) fn int(&self, column: usize) -> Result<i64, String> {
        self.optional_int(column)?.ok_or_else(|| self.unlike(column, "integer"))
    }

    pub(crate) fn optional_int(&self, column: usize) -> Result<Option<i64>, String> {
        match self.0.get(column) {
            Some(Cell::Int(value)) => Ok(Some(*value)),
            Some(Cell::Bool(value)) => Ok(Some(i64::from(*value))),
            Some(Cell::Null) => Ok(None),
            _ => Err(self.unlike(column, "integer")),
        }
    }

    /// An epoch, offset or seq.
    pub(crate) fn unsigned(&self, column: usize) -> Result<Epoch, String> {
        self.int(column).map(i64::cast_unsigned)
    }

    pub(crate) fn optional_float(&self, column: usize) -> Result<Option<f64>, String> {
        match self.0.get(column) {
            Some(Cell::Float(value)) => Ok(Some(*value)),
            Some(Cell::Null) => Ok(None),
            _ => Err(self.unlike(column, "float")),
        }
    }

    pub(crate) fn text(&self, column: usize) -> Result<&str, String> {
        self.optional_text(column)?.ok_or_else(|| self.unlike(column, "text"))
    }

    pub(crate) fn optional_text(&self, column: usize) -> Result<Option<&str>, String> {
        match self.0.get(column) {
            Some(Cell::Null) => Ok(None),
            Some(cell) if cell.as_str().is_some() => Ok(cell.as_str()),
            _ => Err(self.unlike(column, "text")),
        }
    }

    /// A text that is to be read as a name or a number.
    pub(crate) fn parse<T, E: std::fmt::Display>(
        &self,
        column: usize,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, String> {
        read(self.text(column)?).map_err(|error| format!("column {}: {error}", column + 1))
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Vec<u8>, String> {
        match self.0.get(column) {
            Some(Cell::Bytes(bytes)) => Ok(bytes.clone()),
            _ => Err(self.unlike(column, "bytes")),
        }
    }
}

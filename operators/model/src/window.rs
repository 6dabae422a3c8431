//! No-trade windows.

use crate::time::Nanos;

/// A no-trade window. It blocks in `[start − pre, end + post)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Window {
    /// Its start.
    pub start: Nanos,
    /// Its end, after the start.
    pub end: Nanos,
    /// Seconds before the start; default 0.
    pub pre_buffer_sec: u32,
    /// Seconds after the end; default 0.
    pub post_buffer_sec: u32,
}

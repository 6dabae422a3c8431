//! What the cutter tells every worker beside the records.

use crate::time::Nanos;
use serde::{Deserialize, Serialize};

/// How far the input has come, as of the end of an epoch. Both only ever rise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Records before this event time are late; base bars that close at or before it are sealed.
    pub sealed_through: Nanos,
    /// Bars that close at or before this are closed: `now` is past it, and every partition is past it or at its end.
    pub closed_through: Nanos,
}

impl Progress {
    /// Nothing sealed, nothing closed.
    pub const START: Progress = Progress { sealed_through: Nanos::MIN, closed_through: Nanos::MIN };
}

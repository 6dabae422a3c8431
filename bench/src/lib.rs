//! What kills `marea` and what times its restarts, as a library: tests run it small, `marea-bench` at full size.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod chaos;
pub mod restart;

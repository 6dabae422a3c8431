//! The laws of the design against random histories, and against an oracle that knows nothing of dataflows.
#![allow(clippy::unwrap_used)]

mod harness;
mod histories;
mod laws;
mod oracle;

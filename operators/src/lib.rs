//! Marea's operators: pure dataflow and the finance in it. No clock, no I/O, no environment.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backtest;
pub mod bars;
pub mod epochs;
pub mod explain;
pub mod gate;
pub mod history;
pub mod indicators;
pub mod recommend;
pub mod rollup;
pub mod route;
pub mod scan;
pub mod series;
pub mod strategies;
pub mod windows;

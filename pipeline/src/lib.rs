//! The pipeline: configuration, cutter, dataflow, committer.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
pub mod commands;
pub mod committer;
pub mod config;
pub mod cutter;
pub mod dataflow;
pub mod engine;
pub mod explain;
pub mod http;
pub mod live_cli;
pub mod publish;
mod rebuild;
pub mod run;
pub mod status;

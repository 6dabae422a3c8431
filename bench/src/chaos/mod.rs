//! Chaos: the same input, once undisturbed and once with a process that is killed again and again, must give the same
//! tables to the byte (law L5), and a history that keeps its laws.
//!
//! ```text
//! cargo run -p marea-bench -- chaos --seed 1 --kills 125 --failpoints 5
//! cargo run -p marea-bench -- chaos --store postgres --kills 50 --pg-restarts 5 --cut-commits 20
//! ```
//!
//! The input ([`input`]) goes into a Kafka topic of four partitions little by little, always somewhat ahead of what is
//! committed, so that blows fall evenly over all of it. Meanwhile the live configuration is edited; it ends as the
//! undisturbed run, which reads the whole topic afterwards into a store of its own, has it from the beginning (law L7).
//! Each start takes one or two workers (law L4). What is killed: the process, by SIGKILL from outside (when so much is
//! committed, or so soon after its start) or by itself at a failpoint (`marea_sinks::failpoint`; debug builds alone);
//! PostgreSQL; its connection, in the midst of a COMMIT.

mod blow;
pub(crate) mod child;
pub mod input;
mod live;
mod report;
mod run;
pub(crate) mod store;
mod topic;

pub use report::Outcome;
pub use run::run;

use std::path::PathBuf;

/// Which store is under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum StoreKind {
    /// A file.
    Sqlite,
    /// A server of its own.
    Postgres,
}

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Another seed, another input and other moments.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often the process is killed from outside.
    #[arg(long, default_value_t = 200)]
    pub kills: usize,
    /// About how many ticks there are.
    #[arg(long, default_value_t = 2_000_000)]
    pub ticks: u64,
    /// What it commits to.
    #[arg(long, value_enum, default_value = "sqlite")]
    pub store: StoreKind,
    /// How often it is killed at each failpoint besides: of a debug build.
    #[arg(long, default_value_t = 0)]
    pub failpoints: usize,
    /// How often PostgreSQL is killed, or shut down, and started again.
    #[arg(long, default_value_t = 0)]
    pub pg_restarts: usize,
    /// How often the connection to PostgreSQL is cut at a COMMIT.
    #[arg(long, default_value_t = 0)]
    pub cut_commits: usize,
    /// The program under test; else the `marea` beside this one.
    #[arg(long, value_name = "PATH")]
    pub marea: Option<PathBuf>,
    /// Say nothing on the way.
    #[arg(long)]
    pub quiet: bool,
}

/// Where a store is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Sqlite(PathBuf),
    Postgres(String),
}

//! Marea's benchmarks, each beside its baseline in the same run.
//!
//! ```text
//! cargo run --release -p marea-bench -- all
//! cargo run --release -p marea-bench -- w1 w3 --rounds 9 --format json
//! cargo run --release -p marea-bench -- restart
//! cargo run -p marea-bench -- chaos --kills 125 --failpoints 5
//! ```
//!
//! Baseline and subject take turns, so that a machine whose speed drifts slows both; ratios are of medians, per second
//! of wall time and per second of CPU time of all threads. Every sum is checked. One table at the end, on stdout; rows
//! as they come, on stderr. What the parts are: [RESULTS.md](../RESULTS.md).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod commit;
mod decode;
mod desk;
mod drive;
mod feed;
mod files;
mod latency;
mod loops;
mod measure;
mod memory;
mod reference;
mod report;
mod w1;
mod w1_files;
mod w2;
mod w3;
mod w4;
mod w5;
mod workload;

use clap::{Parser, Subcommand, ValueEnum};
use marea_bench::{chaos, restart};
use report::Report;
use std::path::PathBuf;

/// It counts what it gives out, for the part `memory`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Every part.
    All,
    /// Ticks → bars and indicators, in memory.
    W1,
    /// The same from Parquet, CSV and Arrow files.
    W1Files,
    /// 400 strategies × 500,000 bars.
    W2,
    /// A bust, a late tick, an amend, with 1,000 strategies live.
    W3,
    /// A tick in Kafka → what it changes in Redis, beside a relay of bytes. Starts Kafka, Redis and PostgreSQL.
    W4,
    /// Kafka → bars and indicators, beside librdkafka that only consumes and decodes. Starts a broker.
    W5,
    /// What a commit costs, and how long a verdict waits for it. Starts a PostgreSQL.
    Commit,
    /// Bytes a bar, a trade, a strategy; and whether they stay.
    Memory,
    /// One tick in, its effect out.
    Latency,
    /// A commit, its event at a reader of the stream; alone, and in a crowd of idle and slow ones.
    Feed,
    /// JSON, CSV, Parquet and Arrow alone.
    Decode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// A table, in Markdown.
    Table,
    /// For machines.
    Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// No benchmark: kill `marea` again and again, and see that nothing shows.
    Chaos(chaos::Options),
    /// How long a restart takes, by bars in the store and by ticks to read again.
    Restart(restart::Options),
}

/// Marea's benchmarks, each beside its baseline.
#[derive(Parser, Debug)]
#[command(name = "marea-bench", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to run.
    #[arg(value_enum, default_value = "all")]
    parts: Vec<Part>,
    /// How often baseline and subject take turns; a report wants 5 at least.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=15))]
    rounds: u16,
    /// What to print in the end.
    #[arg(long, value_enum, default_value = "table")]
    format: Output,
    /// Only the rows of W1, and the turns of W4 (such as "fast, 10000"), whose name holds this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Smaller sizes, one round: whether it runs, and whether the sums are right.
    #[arg(long)]
    quick: bool,
    /// How long the steady load of `memory` lasts.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// How long each open loop of `latency` lasts.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// A built copy of shared/workloads/rustloop: its loops are run beside ours.
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
    /// Where files are made (and removed again); else where the system makes them.
    #[arg(long, value_name = "DIR")]
    temp: Option<PathBuf>,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        // Servers are not on every machine: only who asks for them gets them.
        let starts = matches!(part, Part::W4 | Part::W5 | Part::Commit);
        self.parts.contains(&part) || (self.parts.contains(&Part::All) && !starts)
    }
}

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    match &options.command {
        Some(Command::Chaos(options)) => {
            let outcome = chaos::run(options, &marea_servers::Kafka::start()?)?;
            println!("{outcome}");
            anyhow::ensure!(outcome.problems.is_empty(), "not the same");
            return Ok(());
        }
        Some(Command::Restart(options)) => {
            println!("{}", restart::run(options, &marea_servers::Kafka::start()?)?);
            return Ok(());
        }
        None => {}
    }
    if options.quick {
        options.rounds = 1;
    }
    let mut report = Report::new(usize::from(options.rounds), options.quick);
    if let Some(folder) = &options.reference {
        reference::run(&options, folder, &mut report)?;
    }
    type Run = fn(&Options, &mut Report) -> anyhow::Result<()>;
    let parts: [(Part, Run); 11] = [
        (Part::W1, w1::run),
        (Part::W1Files, w1_files::run),
        (Part::W2, w2::run),
        (Part::W3, w3::run),
        (Part::W4, w4::run),
        (Part::W5, w5::run),
        (Part::Commit, commit::run),
        (Part::Latency, latency::run),
        (Part::Feed, feed::run),
        (Part::Decode, decode::run),
        (Part::Memory, memory::run),
    ];
    for (_, run) in parts.iter().filter(|(part, _)| options.wants(*part)) {
        run(&options, &mut report)?;
    }
    report.end();
    match options.format {
        Output::Table => println!("{}", report.table()),
        Output::Json => println!("{}", report.json()?),
    }
    Ok(())
}

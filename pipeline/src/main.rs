//! marea: see `marea --help`.

use clap::Parser;
use marea::cli::{Cli, Format};
use marea::run::Failure;
use std::process::ExitCode;

/// What the benchmarks measure with: threads that hand rows on free what others allocated.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.format == Format::Json;
    let (errors, code) = match marea::commands::run(cli) {
        Ok(()) => return ExitCode::SUCCESS,
        // As it was asked to.
        Err(Failure::Stopped) => return ExitCode::SUCCESS,
        Err(Failure::Refused(errors)) => (errors, 2),
        Err(Failure::Failed(error)) => (vec![error], 1),
    };
    if json {
        eprintln!("{}", serde_json::json!({ "errors": errors }));
    } else {
        for error in errors {
            eprintln!("error: {error}");
        }
    }
    ExitCode::from(code)
}

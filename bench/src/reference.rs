//! `--reference DIR`: our plain loops beside those of shared/workloads/rustloop, built in that folder. Its input is made
//! there if it is not in `DIR/data` yet.

use crate::loops::{self, W2Sum};
use crate::measure::{Took, timed};
use crate::report::{Goal, Report, Row};
use crate::{Options, w1, w2, workload};
use anyhow::Context as _;
use marea_model::time::SECOND;
use serde::Deserialize;
use std::path::Path;
use std::process::Command;

/// A line that the reference prints a round.
#[derive(Deserialize)]
struct Line {
    secs: f64,
    cpu: f64,
}

fn reference(folder: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let binary = folder.join("target/release").join(program);
    let output = Command::new(&binary)
        .args(arguments)
        .current_dir(folder)
        .output()
        .with_context(|| format!("cannot run {}: build rustloop with `cargo build --release`", binary.display()))?;
    anyhow::ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The last of two rounds in one process: the first one also faults its memory in.
fn took(text: &str) -> anyhow::Result<Took> {
    let line: Line = serde_json::from_str(text.lines().last().context("the reference printed nothing")?)?;
    Ok(Took { wall: line.secs, cpu: line.cpu })
}

/// Runs both, in turns.
pub(crate) fn run(options: &Options, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let data = folder.join("data");
    if !data.join("ticks.bin").exists() {
        std::fs::create_dir_all(&data)?;
        reference(folder, "gen", &["data", "5000000", "50", "42"])?;
    }
    let plain = w1::plain(&workload::trades(5_000_000));
    for (bar, name, text) in [(SECOND, "1 s bars", "1e9"), (SECOND / 100, "10 ms bars", "1e7")] {
        let (mut base, mut subject) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            base.push(took(&reference(folder, "w1", &["mem", "data/ticks.bin", text, "2"])?)?);
            let (sum, took) = timed(|| loops::w1(&plain, bar));
            sum.check(plain.len(), bar)?;
            subject.push(took);
        }
        let what = format!("W1's loop, {name}, beside the reference's");
        report.add(Row::rate("reference", what, plain.len() as f64, &base, &subject).goal(Goal::RatioAtLeast(1.0)));
    }
    let closes = w2::prices(&workload::closes(500_000));
    let variants = w2::variants();
    let (mut base, mut subject) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        base.push(took(&reference(folder, "w2", &["plain", "data/bars500k.csv", "1"])?)?);
        let (sum, took) = timed(|| loops::w2(&closes, &variants));
        anyhow::ensure!(sum.agrees(&W2Sum::EXPECTED), "W2 checksum of the loop: {sum:?}");
        subject.push(took);
    }
    let items = (closes.len() * variants.len()) as f64;
    let row = Row::rate("reference", "W2's loop beside the reference's", items, &base, &subject);
    report.add(row.goal(Goal::RatioAtLeast(1.0)));
    Ok(())
}

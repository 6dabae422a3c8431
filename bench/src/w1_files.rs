//! W1 from files: the real file source on a thread of its own, the cutter on another, the graph, and a sink that counts
//! and sums; against the plain loop that reads the same file with the same decoder on one thread.

use crate::Options;
use crate::drive::replay_source;
use crate::files::{Files, Format, plain_loop};
use crate::measure::try_timed;
use crate::report::{Goal, Report, Row};
use crate::w1::{Sink, agree, setup};
use crate::workload;
use marea_model::time::SECOND;
use marea_sources::file::{self, FileConfig};

/// Runs W1 from files.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let count = if options.quick { 500_000 } else { 5_000_000 };
    let files = Files::write(options, &workload::trades(count))?;
    let setup = setup(SECOND, 10_000, 1)?;
    for format in Format::ALL {
        let path = files.path(format);
        let config = FileConfig { files: vec![path.clone()], ..FileConfig::default() };
        let (mut base, mut subject) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            let (expected, took) = try_timed(|| plain_loop(&setup, &path, format, SECOND))?;
            expected.check(count, SECOND)?;
            base.push(took);
            let opened = file::open(&config, &setup.decoder())
                .map_err(|errors| anyhow::anyhow!("{}", errors.iter().map(ToString::to_string).collect::<String>()))?;
            let mut sink = Sink::default();
            let took = replay_source(&setup, |out, stop| Ok(opened.run(out, stop)?), |closed| sink.take(closed))?;
            agree(&sink.sum(), &expected)?;
            subject.push(took);
        }
        let megabytes = files.bytes(format)? as f64 / 1e6;
        let what = format!("from {}, 1 s bars, 10000 ticks an epoch", format.name());
        let row = Row::rate("w1-files", what, count as f64, &base, &subject).goal(Goal::RatioAtLeast(0.5));
        report.add(row.note(format!("{megabytes:.0} MB")));
    }
    Ok(())
}

//! What happens to the process, and when.

use super::Options;
use super::input::Random;
use marea_servers::relay::Cut;
use std::fmt;

/// The failpoints, in the order in which a process passes them; and the most passes that are waited for.
pub(super) const FAILPOINTS: [(&str, u64); 15] = [
    ("restore.taken", 1),
    ("restore.bars", 5),
    ("restore.compared", 1),
    ("restored", 1),
    ("commit.begin", 2),
    ("commit.fenced", 2),
    ("commit.written", 2),
    ("commit.end", 2),
    ("commit.unheard", 2),
    ("committed", 2),
    ("acknowledged", 2),
    ("published", 2),
    ("behind.fenced", 2),
    ("behind.end", 2),
    ("behind.unheard", 2),
];

/// One disturbance.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Blow {
    /// SIGKILL when so much is committed.
    Kill,
    /// SIGKILL soon after the start: at this share of the time that a start takes.
    StartUp(f64),
    /// SIGKILL by itself, at this pass of a failpoint.
    Failpoint(&'static str, u64),
    /// PostgreSQL is killed, or shut down, and started again.
    Server { kill: bool },
    /// The connection to PostgreSQL is cut.
    Cut(Cut),
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blow::Kill => f.write_str("killed"),
            Blow::StartUp(_) => f.write_str("killed while starting"),
            Blow::Failpoint(name, _) => f.write_str(name),
            Blow::Server { kill: true } => f.write_str("PostgreSQL killed"),
            Blow::Server { kill: false } => f.write_str("PostgreSQL restarted"),
            Blow::Cut(cut) => write!(f, "COMMIT cut: {cut:?}"),
        }
    }
}

/// A blow, and when it falls.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Moment {
    pub(super) blow: Blow,
    /// It waits until so many records are committed …
    pub(super) goal: usize,
    /// … while so many are published.
    pub(super) ahead: usize,
}

/// All blows, evenly over so many records.
pub(super) fn moments(options: &Options, records: usize, random: &mut Random) -> Vec<Moment> {
    let failpoints = std::iter::repeat_n(FAILPOINTS, options.failpoints).flatten();
    let mut blows: Vec<Blow> = failpoints.map(|(name, most)| Blow::Failpoint(name, 1 + random.below(most))).collect();
    blows.extend((1..options.kills).map(|i| match i % 3 {
        0 => Blow::StartUp(random.below(120) as f64 / 100.0),
        _ => Blow::Kill,
    }));
    blows.extend((0..options.pg_restarts).map(|i| Blow::Server { kill: i % 2 == 0 }));
    let cuts = [Cut::Before, Cut::Behind, Cut::Answer, Cut::Silent];
    blows.extend((0..options.cut_commits).map(|i| Blow::Cut(cuts[i % cuts.len()])));
    for i in (1..blows.len()).rev() {
        blows.swap(i, random.below(i as u64 + 1) as usize);
    }
    // There are no sealed bars at first.
    let of_bars = |blow: &Blow| matches!(blow, Blow::Failpoint("restore.bars", _));
    for early in 0..blows.len().min(4) {
        if of_bars(&blows[early])
            && let Some(last) = blows.iter().rposition(|blow| !of_bars(blow))
        {
            blows.swap(early, last);
        }
    }
    // The first makes sure that there is something to go on from.
    if options.kills > 0 {
        blows.insert(0, Blow::Kill);
    }
    let slice = (records / (blows.len() + 1)).max(1);
    let moment = |(i, blow): (usize, Blow)| {
        let goal = i * slice + random.below(slice as u64) as usize + 1;
        let ahead = goal + random.below(2 * slice as u64) as usize + 1;
        Moment { blow, goal: goal.min(records), ahead: ahead.min(records) }
    };
    blows.into_iter().enumerate().map(moment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::StoreKind;

    #[test]
    fn blows_fall_over_all_of_the_input_and_each_failpoint_is_among_them_so_often() {
        let options = Options {
            seed: 1,
            kills: 15,
            ticks: 0,
            store: StoreKind::Postgres,
            failpoints: 2,
            pg_restarts: 2,
            cut_commits: 5,
            marea: None,
            quiet: true,
        };
        let moments = moments(&options, 100_000, &mut Random(7));
        assert_eq!(moments.len(), 52);
        assert!(moments.is_sorted_by_key(|moment| moment.goal));
        assert!(moments[0].goal < 3_000 && moments[51].goal > 90_000);
        assert!(moments.iter().all(|moment| moment.goal <= moment.ahead && moment.ahead <= 100_000));
        for (name, _) in FAILPOINTS {
            assert_eq!(moments.iter().filter(|moment| moment.blow.to_string() == name).count(), 2, "{name}");
        }
    }
}

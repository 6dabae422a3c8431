//! Where the time went, as the pipeline's own histograms tell.

use marea_sinks::metrics::Stage;
use std::collections::BTreeMap;

/// One stage's histogram: the upper bounds of its buckets in seconds, each with how many there were up to it.
#[derive(Clone, Debug, Default)]
struct Histogram {
    buckets: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

/// All stages, as they stood when they were asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Stages(BTreeMap<String, Histogram>);

impl Stages {
    /// Out of what `/metrics` says.
    pub(super) fn read(metrics: &str) -> Stages {
        let mut stages: BTreeMap<String, Histogram> = BTreeMap::new();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("marea_stage_latency_seconds_") else { continue };
            let Some((name, value)) = rest.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let Some(stage) = label(name, "stage") else { continue };
            let stage = stages.entry(stage.to_owned()).or_default();
            match (name.split('{').next(), label(name, "le").and_then(|bound| bound.parse().ok())) {
                (Some("bucket"), Some(bound)) => stage.buckets.push((bound, value)),
                (Some("sum"), _) => stage.sum = value,
                (Some("count"), _) => stage.count = value,
                _ => {}
            }
        }
        Stages(stages)
    }

    /// Of what came since `before`, a stage each: its name, the mean in milliseconds, and a remark on the rest.
    pub(super) fn since(&self, before: &Stages) -> Vec<(&'static str, f64, String)> {
        let none = Histogram::default();
        let of = |stage: Stage| {
            let name = stage.as_str();
            let (now, was) = (self.0.get(name)?, before.0.get(name).unwrap_or(&none));
            let count = now.count - was.count;
            let counted = |i: usize| now.buckets[i].1 - was.buckets.get(i).map_or(0.0, |(_, count)| *count);
            let below = |share: f64| {
                let first = (0..now.buckets.len()).find(|i| counted(*i) >= share * count);
                first.map_or(f64::INFINITY, |i| now.buckets[i].0 * 1_000.0)
            };
            let note = format!("{count} epochs: half ≤ {} ms, 99 % ≤ {} ms", below(0.5), below(0.99));
            (count > 0.0).then(|| (name, (now.sum - was.sum) / count * 1_000.0, note))
        };
        Stage::ALL.into_iter().filter_map(of).collect()
    }
}

/// What a label of a metric's name says.
fn label<'a>(name: &'a str, label: &str) -> Option<&'a str> {
    name.split_once(&format!("{label}=\""))?.1.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_is_told() {
        let text = |fast: u32, all: u32, sum: f64| {
            let name = "marea_stage_latency_seconds";
            format!(
                "# HELP {name} x\n{name}_bucket{{stage=\"commit\",le=\"0.001\"}} {fast}\n\
                 {name}_bucket{{stage=\"commit\",le=\"0.01\"}} {all}\n{name}_bucket{{stage=\"commit\",le=\"+Inf\"}} {all}\n\
                 {name}_sum{{stage=\"commit\"}} {sum}\n{name}_count{{stage=\"commit\"}} {all}\nother 7\n"
            )
        };
        let (before, after) = (Stages::read(&text(10, 10, 0.01)), Stages::read(&text(60, 110, 0.51)));
        let since = after.since(&before);
        assert_eq!(since.len(), 1);
        let (stage, mean, note) = &since[0];
        assert_eq!((*stage, note.as_str()), ("commit", "100 epochs: half ≤ 1 ms, 99 % ≤ 10 ms"));
        assert!((mean - 5.0).abs() < 1e-9);
        assert!(before.since(&before).is_empty());
    }
}

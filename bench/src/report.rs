//! What was measured: rows, each beside its baseline and its goal; one table for people, or JSON for machines.

use crate::measure::{Took, median};
use serde::Serialize;
use std::fmt::Write as _;

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    /// Rates.
    Higher,
    /// Times and sizes.
    Lower,
}

/// What a row should reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// This many times as good as the baseline.
    RatioAtLeast(f64),
    /// The subject's median, in the row's unit.
    AtMost(f64),
}

/// One measurement a round, in the row's unit; `cpu` is empty where it means nothing.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Figures {
    fn rates(items: f64, took: &[Took]) -> Self {
        Figures {
            wall: took.iter().map(|t| items / t.wall / 1e6).collect(),
            cpu: took.iter().map(|t| items / t.cpu / 1e6).collect(),
        }
    }

    fn times(scale: f64, took: &[Took]) -> Self {
        Figures {
            wall: took.iter().map(|t| t.wall * scale).collect(),
            cpu: took.iter().map(|t| t.cpu * scale).collect(),
        }
    }
}

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    part: &'static str,
    what: String,
    /// What the figures are.
    unit: &'static str,
    better: Better,
    baseline: Option<Figures>,
    subject: Figures,
    /// How many times as good as the baseline: ratio of medians, by wall and by CPU time.
    ratio: Option<f64>,
    cpu_ratio: Option<f64>,
    goal: Option<Goal>,
    /// By wall time, and by CPU time.
    met: Option<bool>,
    cpu_met: Option<bool>,
    note: String,
}

impl Row {
    fn new(
        part: &'static str,
        what: String,
        unit: &'static str,
        better: Better,
        baseline: Option<Figures>,
        subject: Figures,
    ) -> Self {
        let ratio = |base: &[f64], subject: &[f64]| match (base, subject) {
            ([], _) | (_, []) => None,
            _ if better == Better::Higher => Some(median(subject) / median(base)),
            _ => Some(median(base) / median(subject)),
        };
        let of = |pick: fn(&Figures) -> &[f64]| baseline.as_ref().and_then(|b| ratio(pick(b), pick(&subject)));
        let (ratio, cpu_ratio) = (of(|f| &f.wall), of(|f| &f.cpu));
        Row {
            part,
            what,
            unit,
            better,
            baseline,
            subject,
            ratio,
            cpu_ratio,
            goal: None,
            met: None,
            cpu_met: None,
            note: String::new(),
        }
    }

    /// Millions of items a second, of a baseline and a subject that do the same work.
    pub(crate) fn rate(
        part: &'static str,
        what: impl Into<String>,
        items: f64,
        base: &[Took],
        subject: &[Took],
    ) -> Row {
        let (base, subject) = (Figures::rates(items, base), Figures::rates(items, subject));
        Row::new(part, what.into(), "M/s", Better::Higher, Some(base), subject)
    }

    /// As [`Row::rate`], where the baseline did less of the same work: so many items.
    pub(crate) fn rate_of(
        part: &'static str,
        what: impl Into<String>,
        (base_items, base): (f64, &[Took]),
        (items, subject): (f64, &[Took]),
    ) -> Row {
        let (base, subject) = (Figures::rates(base_items, base), Figures::rates(items, subject));
        Row::new(part, what.into(), "M/s", Better::Higher, Some(base), subject)
    }

    /// Times, in units of 1 ÷ `scale` seconds.
    pub(crate) fn time(
        part: &'static str,
        what: impl Into<String>,
        (unit, scale): (&'static str, f64),
        base: &[Took],
        subject: &[Took],
    ) -> Row {
        let (base, subject) = (Figures::times(scale, base), Figures::times(scale, subject));
        Row::new(part, what.into(), unit, Better::Lower, Some(base), subject)
    }

    /// Figures of which less is better, a round each, beside those of a baseline.
    pub(crate) fn compared(
        part: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        base: Vec<f64>,
        subject: Vec<f64>,
    ) -> Row {
        let figures = |wall| Figures { wall, cpu: Vec::new() };
        Row::new(part, what.into(), unit, Better::Lower, Some(figures(base)), figures(subject))
    }

    /// Something that has no baseline: the less the better.
    pub(crate) fn value(part: &'static str, what: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Row {
        Row::new(part, what.into(), unit, Better::Lower, None, Figures { wall: values, cpu: Vec::new() })
    }

    /// Sets a goal, and says whether it is met.
    pub(crate) fn goal(mut self, goal: Goal) -> Row {
        let judge = |ratio: Option<f64>, values: &[f64]| match goal {
            Goal::RatioAtLeast(least) => ratio.map(|r| r >= least),
            Goal::AtMost(most) => (!values.is_empty()).then(|| median(values) <= most),
        };
        self.met = judge(self.ratio, &self.subject.wall);
        self.cpu_met = judge(self.cpu_ratio, &self.subject.cpu);
        self.goal = Some(goal);
        self
    }

    /// Adds a remark.
    pub(crate) fn note(mut self, note: impl AsRef<str>) -> Row {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(note.as_ref());
        self
    }

    /// The cells, in the order of [`COLUMNS`].
    fn cells(&self) -> [String; COLUMNS.len()] {
        let of = |values: &[f64], pick: fn(&[f64]) -> f64| match values {
            [] => String::new(),
            _ => number(pick(values)),
        };
        let least = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (base_wall, base_cpu) = self.baseline.as_ref().map_or((&[][..], &[][..]), |b| (&b.wall, &b.cpu));
        let ratio = |ratio: Option<f64>| ratio.map(number).unwrap_or_default();
        let yes = |met: bool| if met { "yes" } else { "NO" };
        let goal = match self.goal {
            Some(Goal::RatioAtLeast(least)) => format!("ratio ≥ {}", number(least)),
            Some(Goal::AtMost(most)) => format!("≤ {}", number(most)),
            None => String::new(),
        };
        let met = match (self.met, self.cpu_met) {
            (Some(wall), Some(cpu)) if wall != cpu => format!("{}, CPU {}", yes(wall), yes(cpu)),
            (Some(wall), _) => yes(wall).to_owned(),
            _ => String::new(),
        };
        [
            self.part.to_owned(),
            self.what.clone(),
            self.unit.to_owned(),
            of(base_wall, median),
            of(&self.subject.wall, median),
            of(&self.subject.wall, least),
            of(&self.subject.wall, most),
            ratio(self.ratio),
            of(base_cpu, median),
            of(&self.subject.cpu, median),
            ratio(self.cpu_ratio),
            goal,
            met,
            self.note.clone(),
        ]
    }
}

const COLUMNS: [&str; 14] = [
    "part",
    "what",
    "unit",
    "baseline",
    "median",
    "min",
    "max",
    "ratio",
    "base/CPU",
    "median/CPU",
    "ratio/CPU",
    "goal",
    "met",
    "note",
];

/// Four digits that count.
fn number(x: f64) -> String {
    let digits = match x.abs() {
        a if !a.is_finite() => return "–".to_owned(),
        a if a >= 1000.0 => 0,
        a if a >= 100.0 => 1,
        a if a >= 10.0 => 2,
        a if a >= 0.1 || a == 0.0 => 3,
        _ => 5,
    };
    format!("{x:.digits$}")
}

/// What it ran on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    memory_gb: f64,
    /// Over 1, 5 and 15 minutes, before and after.
    load_before: String,
    load_after: String,
    began: String,
    rounds: usize,
    quick: bool,
}

fn proc_field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// The rows of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

impl Report {
    /// Begins; the load is that of this moment.
    pub(crate) fn new(rounds: usize, quick: bool) -> Self {
        let kilobytes = proc_field("/proc/meminfo", "MemTotal")
            .and_then(|t| t.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()));
        let machine = Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_gb: kilobytes.unwrap_or(0.0) / 1e6,
            load_before: load(),
            load_after: String::new(),
            began: marea_model::time::format_rfc3339(marea::committer::wall_now()),
            rounds,
            quick,
        };
        Report { machine, rows: Vec::new() }
    }

    /// Adds a row, and shows it on stderr, where one watches.
    pub(crate) fn add(&mut self, row: Row) {
        let [part, what, unit, base, middle, .., goal, met, note] = row.cells();
        let ratio = row.ratio.map_or(String::new(), |r| format!(", ratio {}", number(r)));
        let base = if base.is_empty() { base } else { format!(" against {base}") };
        eprintln!("{part}: {what}: {middle}{base} {unit}{ratio} {goal} {met} {note}");
        self.rows.push(row);
    }

    /// Ends: the load after.
    pub(crate) fn end(&mut self) {
        self.machine.load_after = load();
    }

    /// For machines.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// For people, and for RESULTS.md: a Markdown table, aligned.
    pub(crate) fn table(&self) -> String {
        let Machine { cores, cpu, memory_gb, load_before, load_after, began, rounds, quick } = &self.machine;
        let quick = if *quick { ", quick" } else { "" };
        let mut text = format!(
            "{began}: {cores} cores ({cpu}), {memory_gb:.0} GB, load {load_before} before, {load_after} after, \
             {rounds} rounds{quick}\n\n"
        );
        let mut lines = vec![COLUMNS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let width = |c: usize| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
        for (i, line) in lines.iter().enumerate() {
            for (c, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let padded =
                    if (3..=10).contains(&c) { format!("| {cell:>width$} ") } else { format!("| {cell:<width$} ") };
                text.push_str(&padded);
            }
            text.push_str("|\n");
            if i == 0 {
                for (c, width) in widths.iter().enumerate() {
                    let (dashes, end) = if (3..=10).contains(&c) { (width + 1, ":") } else { (width + 2, "") };
                    // A string takes every byte.
                    let _ = write!(text, "|{}{end}", "-".repeat(dashes));
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(wall: f64) -> Took {
        Took { wall, cpu: 2.0 * wall }
    }

    #[test]
    fn a_ratio_above_one_is_better_whatever_the_unit() {
        let rate = Row::rate("p", "rate", 1e6, &[took(2.0)], &[took(1.0)]).goal(Goal::RatioAtLeast(2.0));
        assert_eq!((rate.ratio, rate.cpu_ratio, rate.met), (Some(2.0), Some(2.0), Some(true)));
        let time = Row::time("p", "time", ("ms", 1e3), &[took(1.0)], &[took(2.0)]).goal(Goal::RatioAtLeast(1.0));
        assert_eq!((time.ratio, time.met, time.subject.wall[0]), (Some(0.5), Some(false), 2000.0));
        let value = Row::value("p", "value", "bytes", vec![3.0, 1.0, 2.0]).goal(Goal::AtMost(2.0));
        assert_eq!((value.ratio, value.met, value.cpu_met), (None, Some(true), None));
    }

    #[test]
    fn every_line_of_the_table_has_every_column() {
        let mut report = Report::new(1, true);
        report.add(Row::rate("p", "ticks", 1e6, &[took(2.0)], &[took(1.0)]).note("a").note("b"));
        report.add(Row::value("p", "bytes", "bytes", vec![1.0]));
        let table = report.table();
        let lines: Vec<usize> = table.lines().skip(2).map(|line| line.matches('|').count()).collect();
        assert_eq!(lines, [COLUMNS.len() + 1; 4]);
        assert!(table.contains("a; b") && report.json().unwrap().contains("\"ratio\": 2.0"));
    }
}

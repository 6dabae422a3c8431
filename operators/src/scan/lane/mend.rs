//! Edits near the tip of a lane that has indicators alone.

use super::{Edit, Lane, series_bar};
use crate::indicators::Values;
use crate::scan::ScanOutput;
use crate::scan::track::Track;
use marea_model::{Delta, F64, IndicatorRow, Nanos, Output};

impl Lane {
    /// Rewrites the past where all of it is near and there are indicators alone: only the new side is stepped, and held
    /// against the values that were kept; those that differ are given as rows. Whether it was such an edit.
    pub(super) fn mend(&mut self, edits: &[Edit], out: &mut ScanOutput) -> bool {
        let [earliest, ..] = edits else { return true };
        let (begin, width) = (self.closed - self.tail.len(), self.names.len());
        let from = self.tail.open_time.partition_point(|open_time| *open_time < earliest.open_time);
        let first = self.marks.partition_point(|mark| mark.time < earliest.open_time);
        let after = first.checked_sub(1).map(|mark| self.marks[mark].time);
        let start = after.map_or(0, |time| self.tail.open_time.partition_point(|open_time| *open_time <= time));
        let is_near = begin == 0 || after.is_some() && start >= self.lookback;
        let is_kept = self.kept.len() >= (self.tail.len() - from) * width;
        if !is_near || !is_kept || !self.backtests.is_empty() || edits.iter().any(|edit| edit.new.is_none()) {
            return false;
        }
        let missing = self.tail.len() * width - self.kept.len();
        for Edit { open_time, new, .. } in edits {
            let Some(bar) = new.map(|body| series_bar(*open_time, &body, self.scale)) else { continue };
            match self.tail.open_time.binary_search(open_time) {
                Ok(i) => self.tail.set(i, bar),
                Err(i) => {
                    self.tail.insert(i, bar);
                    let at = i * width - missing;
                    self.kept.splice(at..at, std::iter::repeat_n(f64::NAN, width));
                    self.closed += 1;
                }
            }
        }
        let key = (self.symbol, self.timeframe);
        let to = self.tail.len();
        let mut hidden = [];
        let given = match width {
            0 => &mut hidden,
            _ => out.rows.indicators.extend(key.0, key.1, &self.tail.open_time[from..], &self.names),
        };
        let last_edit = edits.last().map_or(Nanos::MAX, |edit| edit.open_time);
        let settled = self.tail.open_time.partition_point(|open_time| *open_time <= last_edit);
        for consumer in &mut self.indicators {
            let (column, outputs, lookback) = (consumer.column, consumer.names.len(), consumer.spec.lookback());
            let (kept, deltas) = (&mut self.kept, &mut out.deltas);
            let names = &consumer.names;
            let mut compare = |i: usize, stepped: &Values, open_time: Nanos| {
                if outputs == 0 || i < from {
                    return;
                }
                let (to, was) = ((i - from) * width + column, i * width - missing + column);
                for (n, value) in stepped.iter().take(outputs).enumerate() {
                    let (value, was) = (value.unwrap_or(f64::NAN), &mut kept[was + n]);
                    if value.to_bits() == was.to_bits() || value.is_nan() && was.is_nan() {
                        continue;
                    }
                    if value.is_nan() {
                        let row = IndicatorRow {
                            symbol: key.0,
                            timeframe: key.1,
                            open_time,
                            name: names[n].clone(),
                            value: F64(*was),
                        };
                        deltas.push(Delta { output: Output::Indicator(row), diff: -1 });
                    }
                    (given[to + n], *was) = (value, value);
                }
            };
            let Track { state, saved } = &mut consumer.track;
            let (mut machine, mut last) = first.checked_sub(1).map_or(consumer.initial, |mark| saved[mark]);
            let (mut at, mut is_over) = (start, false);
            for (mark, saved) in self.marks.iter().zip(saved.iter_mut()).skip(first) {
                let end = self.tail.open_time.partition_point(|open_time| *open_time <= mark.time);
                machine.run(&self.tail, at..end, |i, stepped| {
                    last = *stepped;
                    compare(i, stepped, self.tail.open_time[i]);
                });
                at = end;
                // No later bar can differ.
                is_over = end >= settled + lookback && *saved == (machine, last);
                *saved = (machine, last);
                if is_over {
                    break;
                }
            }
            if !is_over {
                machine.run(&self.tail, at..to, |i, stepped| {
                    last = *stepped;
                    compare(i, stepped, self.tail.open_time[i]);
                });
                *state = (machine, last);
            }
        }
        true
    }
}

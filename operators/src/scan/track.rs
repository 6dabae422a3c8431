//! Checkpoints, and stepping two histories side by side.

use crate::series::Series;
use marea_model::Nanos;

/// Bars between two checkpoints near the tip.
pub(super) const GAP: u64 = 64;

/// How many marks there may be before they are thinned.
const CROWD: usize = 60;

/// An instant of a lane at which the states of all its consumers are kept: each as of the last bar that opened at or
/// before it. The bar itself may since have been deleted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) time: Nanos,
    /// Closed bars up to here when the mark was made: only thinning looks at it.
    pub(super) count: u64,
}

/// Which marks stay: neighbours no further apart than `max(GAP, distance to the tip ÷ 4)`, none while there are few.
/// Some 60 are left of a million bars.
pub(super) fn thin(marks: &[Mark], tip: u64) -> Option<Vec<bool>> {
    if marks.len() < CROWD {
        return None;
    }
    let mut keep = vec![true; marks.len()];
    let mut last = 0;
    for here in 1..marks.len() - 1 {
        let next = marks[here + 1].count;
        if next.saturating_sub(last) <= GAP.max(tip.saturating_sub(next) / 4) {
            keep[here] = false;
        } else {
            last = marks[here].count;
        }
    }
    Some(keep)
}

/// Keeps what `keep` says, in order.
pub(super) fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut flags = keep.iter();
    items.retain(|_| *flags.next().unwrap_or(&true));
}

/// One consumer's state at the tip, and at each mark of its lane.
#[derive(Clone, Debug)]
pub(super) struct Track<S> {
    pub(super) state: S,
    pub(super) saved: Vec<S>,
}

/// Two histories that differ by the edits of one epoch: bars before `from` are equal and only looked back at.
pub(super) struct Span {
    pub(super) old: Series,
    pub(super) new: Series,
    /// The first bar to step, in both.
    pub(super) from: usize,
    /// Open time of the latest bar that differs.
    pub(super) last_edit: Nanos,
}

impl<S: Clone + PartialEq> Track<S> {
    /// A consumer that has seen nothing, with a place for each mark.
    pub(super) fn new(initial: S, marks: usize) -> Self {
        Track { saved: vec![initial.clone(); marks], state: initial }
    }

    /// Replaces what this consumer made of `span.old` by what it makes of `span.new`: restores the state before
    /// `marks[first]`, steps both histories merged by open time (`step` with −1 over the old, +1 over the new), and
    /// stops as soon as no later bar can differ: past the last edit by `lookback` bars, with equal states.
    pub(super) fn replay(
        &mut self,
        initial: &S,
        marks: &[Mark],
        first: usize,
        span: &Span,
        lookback: usize,
        mut step: impl FnMut(&mut S, &Series, usize, i64),
    ) {
        let mut new_state = first.checked_sub(1).map_or(initial, |m| &self.saved[m]).clone();
        let mut old_state = new_state.clone();
        let (mut i, mut j) = (span.from, span.from);
        let mut mark = first;
        let mut clean = 0;
        loop {
            let (old_time, new_time) = (span.old.open_time.get(i), span.new.open_time.get(j));
            let time = match (old_time, new_time) {
                (None, None) => break,
                (Some(t), None) | (None, Some(t)) => *t,
                (Some(a), Some(b)) => *a.min(b),
            };
            while mark < marks.len() && marks[mark].time < time {
                self.saved[mark] = new_state.clone();
                mark += 1;
            }
            if time > span.last_edit {
                if clean >= lookback && old_state == new_state {
                    return;
                }
                clean += 1;
            }
            let (in_old, in_new) = (old_time == Some(&time), new_time == Some(&time));
            if in_old {
                step(&mut old_state, &span.old, i, -1);
                i += 1;
            }
            if in_new {
                step(&mut new_state, &span.new, j, 1);
                j += 1;
            }
        }
        for saved in &mut self.saved[mark..] {
            *saved = new_state.clone();
        }
        self.state = new_state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_bars_keep_some_sixty_marks() {
        let mut marks: Vec<Mark> = Vec::new();
        for count in (GAP..=1_000_000).step_by(GAP as usize) {
            marks.push(Mark { time: count as Nanos, count });
            if let Some(keep) = thin(&marks, count) {
                retain(&mut marks, &keep);
            }
        }
        assert!((50..=62).contains(&marks.len()), "{}", marks.len());
        for pair in marks.windows(2) {
            // A fourth of the distance when it was thinned; a few more bars have come since.
            let gap = pair[1].count - pair[0].count;
            assert!(gap <= GAP.max((1_000_000 - pair[1].count) / 4 + GAP), "{gap} at {}", pair[1].count);
        }
    }
}

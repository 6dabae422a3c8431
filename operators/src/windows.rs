//! No-trade windows as intervals that block, and the timers that let an operator act when `now` reaches an instant.
//!
//! A window blocks in `[start − pre, end + post)`: its start blocks, its end frees. Windows that overlap or touch are
//! one block; an `active` window (and half a window) blocks without end. The patterns that match a pair are kept apart and
//! united when asked, so that an edit of `*` costs the windows of `*`, not those of every pair.
//!
//! **No arrangement holds future times.** An operator keeps the next instant of each of its keys in [`Timers`]; an edit
//! moves it, so an edited window withdraws its future. Cost: O(log n) to set, move or release a timer; O(log n) to see
//! that nothing is due. State: one entry a key that waits.
//!
//! # Examples
//!
//! ```
//! use marea_model::{Window, time::SECOND};
//! use marea_operators::windows::{Cover, Intervals, cover};
//!
//! let window = |start: i64, end: i64| Window {
//!     start: start * SECOND, end: end * SECOND, pre_buffer_sec: 0, post_buffer_sec: 0,
//! };
//! let (one, two) = (Intervals::new(&[window(10, 20)], false), Intervals::new(&[window(15, 30)], false));
//! assert_eq!(cover([&one, &two], 9 * SECOND), Cover::Free { next: Some(10 * SECOND) });
//! assert_eq!(cover([&one, &two], 10 * SECOND), Cover::Blocked { until: Some(30 * SECOND) });
//! assert_eq!(cover([&one, &two], 30 * SECOND), Cover::Free { next: None });
//! ```

use marea_model::time::{MILLI, SECOND};
use marea_model::{Nanos, Window};
use std::collections::BTreeSet;

/// The union of some windows: disjoint intervals that do not touch, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Intervals {
    spans: Vec<(Nanos, Nanos)>,
    endless: bool,
}

impl Intervals {
    /// The union of `windows`; `endless`: all time, as far as anybody can see.
    pub fn new(windows: &[Window], endless: bool) -> Self {
        let bounds = |w: &Window| {
            let (pre, post) = (i64::from(w.pre_buffer_sec) * SECOND, i64::from(w.post_buffer_sec) * SECOND);
            (w.start.saturating_sub(pre), w.end.saturating_add(post))
        };
        let mut all: Vec<_> = windows.iter().map(bounds).collect();
        all.sort_unstable();
        let mut spans: Vec<(Nanos, Nanos)> = Vec::with_capacity(all.len());
        for (from, to) in all {
            match spans.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => spans.push((from, to)),
            }
        }
        Intervals { spans, endless }
    }

    /// The end of the interval that holds `at`.
    fn end_at(&self, at: Nanos) -> Option<Nanos> {
        let after = self.spans.partition_point(|(from, _)| *from <= at);
        let (_, to) = self.spans[..after].last()?;
        (at < *to).then_some(*to)
    }

    /// The first start after `at`.
    fn start_after(&self, at: Nanos) -> Option<Nanos> {
        let after = self.spans.partition_point(|(from, _)| *from <= at);
        self.spans.get(after).map(|(from, _)| *from)
    }
}

/// Whether windows block at an instant, and the next edge of their union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cover {
    /// No window blocks.
    Free {
        /// The next start, if one is to come.
        next: Option<Nanos>,
    },
    /// A window blocks.
    Blocked {
        /// The end of the union of windows that covers the instant; none where it has no end.
        until: Option<Nanos>,
    },
}

impl Cover {
    /// Whether a window blocks.
    pub fn is_active(self) -> bool {
        matches!(self, Cover::Blocked { .. })
    }

    /// The next instant at which that changes.
    pub fn next_edge(self) -> Option<Nanos> {
        match self {
            Cover::Free { next } => next,
            Cover::Blocked { until } => until,
        }
    }

    /// Until when it blocks: none where it does not, or without end.
    pub fn blocked_until(self) -> Option<Nanos> {
        match self {
            Cover::Free { .. } => None,
            Cover::Blocked { until } => until,
        }
    }
}

/// How the union of `sets` covers `now`. O(sets · log windows) for each interval that the covering union consists of.
pub fn cover<'a>(sets: impl IntoIterator<Item = &'a Intervals> + Clone, now: Nanos) -> Cover {
    if sets.clone().into_iter().any(|set| set.endless) {
        return Cover::Blocked { until: None };
    }
    let mut end = now;
    // An interval of one set may reach into one of another: go on from end to end.
    while let Some(further) = sets.clone().into_iter().filter_map(|set| set.end_at(end)).max() {
        end = further;
    }
    if end > now {
        Cover::Blocked { until: Some(end) }
    } else {
        Cover::Free { next: sets.into_iter().filter_map(|set| set.start_after(now)).min() }
    }
}

/// The first millisecond of `now` that is at or after `instant`.
pub fn first_ms_from(instant: Nanos) -> i64 {
    instant.div_euclid(MILLI) + i64::from(instant.rem_euclid(MILLI) > 0)
}

/// The first millisecond of `now` that is after `instant`.
pub fn first_ms_after(instant: Nanos) -> i64 {
    instant.div_euclid(MILLI) + 1
}

/// What waits for `now`: each key for one instant, in milliseconds. The owner remembers where its key waits.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    waiting: BTreeSet<(i64, K)>,
}

impl<K: Ord> Default for Timers<K> {
    fn default() -> Self {
        Timers { waiting: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Moves a key's timer: `at` is where it waits, `to` where it shall wait.
    pub fn set(&mut self, key: K, at: &mut Option<i64>, to: Option<i64>) {
        if *at == to {
            return;
        }
        if let Some(at) = *at {
            self.waiting.remove(&(at, key));
        }
        if let Some(to) = to {
            self.waiting.insert((to, key));
        }
        *at = to;
    }

    /// The next key that is due at `now_ms`, in the order of time; the owner must take note that it no longer waits.
    pub fn pop(&mut self, now_ms: i64) -> Option<K> {
        match self.waiting.first() {
            Some((at, _)) if *at <= now_ms => self.waiting.pop_first().map(|(_, key)| key),
            _ => None,
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(start: i64, end: i64, pre: u32, post: u32) -> Window {
        Window { start: start * SECOND, end: end * SECOND, pre_buffer_sec: pre, post_buffer_sec: post }
    }

    #[test]
    fn windows_unite() {
        let free = |next: Option<i64>| Cover::Free { next: next.map(|s| s * SECOND) };
        let blocked = |until: Option<i64>| Cover::Blocked { until: until.map(|s| s * SECOND) };
        type Case<'a> = (&'a str, &'a [Window], bool, &'a [(i64, Cover)]);
        let cases: &[Case<'_>] = &[
            ("none", &[], false, &[(0, free(None))]),
            (
                "one: its start blocks, its end frees",
                &[window(10, 20, 0, 0)],
                false,
                &[(9, free(Some(10))), (10, blocked(Some(20))), (19, blocked(Some(20))), (20, free(None))],
            ),
            (
                "buffers",
                &[window(10, 20, 3, 5)],
                false,
                &[(6, free(Some(7))), (7, blocked(Some(25))), (24, blocked(Some(25))), (25, free(None))],
            ),
            (
                "overlapping, inside and touching are one",
                &[window(10, 20, 0, 0), window(15, 30, 0, 0), window(16, 18, 0, 0), window(30, 40, 0, 0)],
                false,
                &[(10, blocked(Some(40))), (30, blocked(Some(40))), (40, free(None))],
            ),
            (
                "buffers that overlap",
                &[window(10, 20, 0, 5), window(30, 40, 6, 0)],
                false,
                &[(12, blocked(Some(40))), (22, blocked(Some(40)))],
            ),
            (
                "several apart",
                &[window(30, 40, 0, 0), window(10, 20, 0, 0)],
                false,
                &[(0, free(Some(10))), (10, blocked(Some(20))), (20, free(Some(30))), (35, blocked(Some(40)))],
            ),
            ("active", &[window(10, 20, 0, 0)], true, &[(0, blocked(None)), (15, blocked(None)), (99, blocked(None))]),
        ];
        for (name, windows, endless, expected) in cases {
            let all = Intervals::new(windows, *endless);
            for (now, cover_then) in *expected {
                assert_eq!(cover([&all], now * SECOND), *cover_then, "{name} at {now}");
                // However the windows are spread over patterns.
                let apart: Vec<Intervals> = windows.iter().map(|w| Intervals::new(&[*w], *endless)).collect();
                if !apart.is_empty() {
                    assert_eq!(cover(&apart, now * SECOND), *cover_then, "{name} apart at {now}");
                }
            }
        }
        let far =
            Window { start: i64::MIN + 1, end: i64::MAX - 1, pre_buffer_sec: u32::MAX, post_buffer_sec: u32::MAX };
        assert_eq!(cover([&Intervals::new(&[far], false)], 0), Cover::Blocked { until: Some(i64::MAX) });
    }

    #[test]
    fn milliseconds_of_now() {
        for (instant, from, after) in [(0, 0, 1), (1, 1, 1), (MILLI, 1, 2), (MILLI + 1, 2, 2), (-1, 0, 0)] {
            assert_eq!((first_ms_from(instant), first_ms_after(instant)), (from, after), "{instant}");
        }
    }

    #[test]
    fn a_moved_timer_leaves_nothing_behind() {
        let mut timers = Timers::default();
        let (mut a, mut b) = (None, None);
        timers.set("a", &mut a, Some(10));
        timers.set("b", &mut b, Some(5));
        timers.set("a", &mut a, Some(20));
        assert_eq!((timers.pop(4), timers.pop(10), timers.pop(19)), (None, Some("b"), None));
        timers.set("a", &mut a, None);
        assert!(timers.is_empty());
    }

    proptest! {
        #[test]
        fn the_union_is_what_each_window_says(
            windows in prop::collection::vec((0_i64..40, 1_i64..10, 0_u32..4, 0_u32..4), 0..8),
            now in -5_i64..60,
        ) {
            let windows: Vec<Window> = windows.iter().map(|(s, l, a, b)| window(*s, s + l, *a, *b)).collect();
            let active = |t: i64| windows.iter().any(|w| {
                let t = t * SECOND;
                w.start - i64::from(w.pre_buffer_sec) * SECOND <= t && t < w.end + i64::from(w.post_buffer_sec) * SECOND
            });
            let apart: Vec<Intervals> = windows.iter().map(|w| Intervals::new(&[*w], false)).collect();
            let found = cover(&apart, now * SECOND);
            prop_assert_eq!(found, cover([&Intervals::new(&windows, false)], now * SECOND));
            prop_assert_eq!(found.is_active(), active(now));
            let edge = (now + 1..70).find(|t| active(*t) != active(now)).map(|t| t * SECOND);
            prop_assert_eq!(found.next_edge(), edge);
        }
    }
}

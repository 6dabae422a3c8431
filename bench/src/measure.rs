//! Clocks: wall time, the process's CPU time, and percentiles of many.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// How long something took: seconds on the wall, and of the CPU by all threads of this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Took {
    /// Seconds of wall time.
    pub(crate) wall: f64,
    /// Seconds of CPU time.
    pub(crate) cpu: f64,
}

/// A running measurement.
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch {
    begin: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Begins.
    pub(crate) fn start() -> Self {
        Stopwatch { cpu: process_cpu(), begin: Instant::now() }
    }

    /// So far.
    pub(crate) fn took(&self) -> Took {
        let wall = self.begin.elapsed().as_secs_f64();
        Took { wall, cpu: process_cpu().saturating_sub(self.cpu).as_secs_f64() }
    }
}

/// Of all threads of this process, those that have ended too.
fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Does the work, and says how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Took) {
    let watch = Stopwatch::start();
    let result = work();
    (result, watch.took())
}

/// Does fallible work, and says how long it took.
pub(crate) fn try_timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Took)> {
    let (result, took) = timed(work);
    Ok((result?, took))
}

/// The middle one, the upper of two; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that a share `q` of the others does not exceed; NaN of none.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * q) as usize;
    sorted.get(rank.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The slope of the least-squares line through (x, y).
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (mean_x, mean_y) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let along = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>();
    along / points.iter().map(|(x, _)| (x - mean_x) * (x - mean_x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [0.0, 50.0, 99.0, 99.0]);
        assert_eq!(median(&[3.0]), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_line_has_its_slope() {
        let line: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), 7.0 - 2.0 * f64::from(x))).collect();
        assert!((slope(&line) + 2.0).abs() < 1e-12);
    }

    #[test]
    fn cpu_time_passes_while_one_works() {
        let (_, took) = timed(|| (0..10_000_000_u64).fold(0, |sum, x| std::hint::black_box(sum ^ x)));
        assert!(took.cpu > 0.0 && took.wall > 0.0);
    }
}

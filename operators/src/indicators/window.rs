//! What windowed indicators share: figures of a slice of bars, oldest first, always summed in that order.
//!
//! A window is read again at every bar, O(n), and nothing is carried from bar to bar. So no rounding piles up, and n
//! bars after an edit every bit is what it would have been without it.

/// The arithmetic mean, as the first value + the mean distance from it: a flat window's mean is exactly its value, so
/// that its deviation is 0 and not a rounding error. Not for empty slices.
#[inline]
pub fn mean(window: &[f64]) -> f64 {
    let origin = window[0];
    origin + window.iter().map(|x| x - origin).sum::<f64>() / window.len() as f64
}

/// The population standard deviation around `mean`.
#[inline]
pub fn deviation(window: &[f64], mean: f64) -> f64 {
    (window.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / window.len() as f64).sqrt()
}

/// The greatest value.
#[inline]
pub fn highest(window: &[f64]) -> f64 {
    window.iter().fold(f64::NEG_INFINITY, |a, x| if *x > a { *x } else { a })
}

/// The least value.
#[inline]
pub fn lowest(window: &[f64]) -> f64 {
    window.iter().fold(f64::INFINITY, |a, x| if *x < a { *x } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_window_has_no_deviation() {
        // 0.1 added up twenty times and divided by twenty is not 0.1.
        let flat = [0.1; 20];
        assert_eq!(mean(&flat).to_bits(), 0.1_f64.to_bits());
        assert_eq!(deviation(&flat, mean(&flat)), 0.0);
    }

    #[test]
    fn figures_of_a_window() {
        let window = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!((mean(&window), deviation(&window, 5.0)), (5.0, 2.0));
        assert_eq!((highest(&window), lowest(&window)), (9.0, 2.0));
    }
}

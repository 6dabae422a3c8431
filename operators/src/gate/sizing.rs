//! Lots, stops and targets of one order, in exact integers.
//!
//! `lots = floor to lot_step of risk ÷ (stop distance ÷ tick_size · tick_value)`, cut at max_lot; the risk is
//! `equity · risk_per_trade / 100` or `risk_fixed`. Below min_lot nothing is raised: that is the caller's to refuse.

use marea_model::num::{SCALE, pow10};
use marea_model::policy::Risk;
use marea_model::{Amount, Decimal, Instrument};

/// One point (= one tick) of an instrument in units of `10^-scale`, the scale of its recommendations' prices.
pub(super) fn point(instrument: &Instrument, scale: u8) -> i128 {
    i128::from(instrument.tick_size.0) * i128::from(pow10(scale.saturating_sub(instrument.scale)))
}

/// `points` points, floored to whole units of the scale that `point` has: for limits, which are exceeded or not.
pub(super) fn floor_points(points: Amount, point: i128) -> i128 {
    i128::from(points.0).saturating_mul(point).div_euclid(i128::from(pow10(SCALE)))
}

/// `price` moved by `points` points to `side`, on the nearest tick (ties away from zero); none where no price holds it.
pub(super) fn moved(price: Decimal, side: i8, points: Amount, point: i128) -> Option<Decimal> {
    // In units of 1e-8 of the price's own, so that half a point is exact.
    let unit = i128::from(pow10(SCALE));
    let by = i128::from(points.0).checked_mul(point)?.checked_mul(side.into())?;
    let exact = (i128::from(price.mantissa) * unit).checked_add(by)?;
    let tick = point.checked_mul(unit)?;
    let (whole, rest) = (exact / tick, exact % tick);
    let ticks = if rest.unsigned_abs() * 2 >= tick.unsigned_abs() { whole + exact.signum() } else { whole };
    let mantissa = i64::try_from(ticks.checked_mul(point)?).ok()?;
    Some(Decimal { mantissa, scale: price.scale })
}

/// The lots whose stop, `distance` away, loses what may be lost. `distance` and `point` are in the same units.
/// None where there is nothing to size by: a share of the equity without equity, no distance, or sums beyond 2^127.
pub(super) fn lots(
    risk: Risk,
    equity: Option<Amount>,
    distance: i128,
    point: i128,
    instrument: &Instrument,
) -> Option<Amount> {
    if distance <= 0 {
        return None;
    }
    // steps = risk · point ÷ (distance · tick_value · lot_step); amounts are in units of 1e-8, percent of 1e-10.
    let (value, step) = (instrument.tick_value.0.into(), instrument.lot_step.0.into());
    let (mut over, mut under): ([i128; 3], [i128; 4]) = match risk {
        Risk::Percent(percent) => ([equity?.0.into(), percent.0.into(), point], [distance, value, step, 100]),
        Risk::Fixed(money) => ([money.0.into(), pow10(SCALE).into(), point], [distance, value, step, 1]),
    };
    reduce(&mut over, &mut under);
    let product = |factors: &[i128]| factors.iter().try_fold(1_i128, |product, factor| product.checked_mul(*factor));
    let steps = match (product(&over), product(&under)) {
        (Some(over), Some(under)) => over / under,
        // A divisor beyond 2^127 with a dividend below it.
        (Some(_), None) => 0,
        _ => return None,
    };
    let lots = steps.checked_mul(instrument.lot_step.0.into()).and_then(|lots| i64::try_from(lots).ok());
    Some(lots.map_or(instrument.max_lot, |lots| Amount(lots).min(instrument.max_lot)))
}

/// Cancels common factors, so that what is left is far from 2^127.
fn reduce(over: &mut [i128], under: &mut [i128]) {
    let gcd = |mut a: i128, mut b: i128| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a.max(1)
    };
    for over in over {
        for under in &mut *under {
            let common = gcd(*over, *under);
            (*over, *under) = (*over / common, *under / common);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::Price;
    use proptest::prelude::*;

    fn amount(text: &str) -> Amount {
        text.parse().unwrap()
    }

    fn eurusd() -> Instrument {
        Instrument { scale: 5, tick_size: Price(1), ..Instrument::default() }
    }

    #[test]
    fn the_example_of_the_design_is_one_lot() {
        // Equity 10,000, 2.0 percent, stop 0.0020, tick 0.00001 of value 1; also on bars of mids, with one digit more.
        for (distance, scale) in [(200, 5), (2000, 6)] {
            let lots =
                lots(Risk::Percent(amount("2.0")), Some(amount("10000")), distance, point(&eurusd(), scale), &eurusd());
            assert_eq!(lots, Some(Amount::whole(1)));
        }
    }

    #[test]
    fn lots_are_floored_cut_and_never_raised() {
        let percent = |text| Risk::Percent(amount(text));
        let fixed = |text| Risk::Fixed(amount(text));
        for (name, risk, equity, distance, expected) in [
            ("floored to 0.01", percent("2"), Some("9999.99"), 200, Some("0.99")),
            ("just enough for a step", percent("2"), Some("10100"), 200, Some("1.01")),
            ("money instead of percent", fixed("200"), None, 200, Some("1")),
            ("no equity needed, none asked", fixed("199.99"), Some("1"), 200, Some("0.99")),
            ("cut at max_lot", percent("2"), Some("10000000"), 200, Some("100")),
            ("cut, also where the lots do not fit", percent("100"), Some("90000000000"), 1, Some("100")),
            ("below min_lot: what it is", percent("2"), Some("50"), 200, Some("0")),
            ("no risk", percent("0"), Some("10000"), 200, Some("0")),
            ("nothing to size by", percent("2"), None, 200, None),
            ("no distance", percent("2"), Some("10000"), 0, None),
        ] {
            let found = lots(risk, equity.map(amount), distance, 1, &eurusd());
            assert_eq!(found, expected.map(amount), "{name}");
        }
        let steps_of_three = Instrument { lot_step: amount("0.3"), max_lot: amount("1"), ..eurusd() };
        let found = |equity| lots(percent("2"), Some(amount(equity)), 200, 1, &steps_of_three);
        assert_eq!((found("9999"), found("10000000")), (Some(amount("0.9")), Some(amount("1"))));
    }

    #[test]
    fn a_moved_price_is_on_a_tick() {
        let price = |mantissa| Decimal { mantissa, scale: 6 };
        let tick = point(&eurusd(), 6);
        for (from, side, points, to) in [
            (1_100_000, 1, "0", 1_100_000),
            (1_100_000, -1, "3", 1_099_970),
            (1_100_000, 1, "0.4", 1_100_000),
            (1_100_000, 1, "0.5", 1_100_010),
            (1_100_000, -1, "0.5", 1_100_000),
            (-1_100_000, -1, "0.5", -1_100_010),
            (1_100_005, -1, "200", 1_098_010),
            (5, -1, "1", -10),
        ] {
            assert_eq!(moved(price(from), side, amount(points), tick), Some(price(to)), "{from} {side} {points}");
        }
        assert_eq!(moved(price(i64::MAX), 1, amount("1"), tick), None);
    }

    proptest! {
        /// Against the formula written as one division of big products.
        #[test]
        fn lots_are_exact(
            equity in 1_i64..1_000_000_000_000_000, percent in 1_i64..10_000_000_000, distance in 1_i64..1_000_000,
            tick in 1_i64..1_000, value in 1_i64..100_000_000_000, step in 1_i64..1_000_000_000,
        ) {
            let instrument = Instrument {
                tick_value: Amount(value), lot_step: Amount(step), max_lot: Amount(i64::MAX), ..eurusd()
            };
            let found =
                lots(Risk::Percent(Amount(percent)), Some(Amount(equity)), distance.into(), tick.into(), &instrument);
            let over = i128::from(equity) * i128::from(percent) * i128::from(tick);
            let under = 100 * i128::from(distance) * i128::from(value);
            // lots = floor(over / under / step) · step, with the division by `under` left exact.
            let steps = over / under / i128::from(step);
            let expected = i64::try_from(steps * i128::from(step)).unwrap_or(i64::MAX);
            prop_assert_eq!(found, Some(Amount(expected)));
        }
    }
}

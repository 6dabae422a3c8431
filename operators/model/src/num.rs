//! Fixed-point numbers.
//!
//! | type | unit | range | arithmetic |
//! |---|---|---|---|
//! | [`Price`] | 10^-scale of its instrument (bars of mids: one digit more) | ± 9.2e18 units | checked |
//! | [`Size`] | 1e-8 | ± 92 billion | checked |
//! | [`Amount`] | 1e-8: money, lots, points, percent | ± 92 billion | checked |
//! | [`Decimal`] | carries its scale: prices for people | as a price | none |
//! | [`F64`] | a float with a total order and bitwise equality | | none |
//!
//! Text becomes fixed-point exactly or not at all; a double becomes decimal by its shortest round-trip.

use fearless_simd::{Level, Simd as _, dispatch};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// Digits after the point of a [`Size`] and an [`Amount`].
pub const SCALE: u8 = 8;
/// The most digits after the point that a price may have (a bar of mids has one more).
pub const MAX_SCALE: u8 = 12;

const POW10: [i64; 19] = {
    let mut table = [1_i64; 19];
    let mut i = 1;
    while i < 19 {
        table[i] = table[i - 1] * 10;
        i += 1;
    }
    table
};

/// 10^scale, for a scale up to 18.
pub const fn pow10(scale: u8) -> i64 {
    POW10[scale as usize]
}

/// Why a number was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumError {
    /// Not a decimal number (also NaN and infinities).
    #[error("not a number")]
    NotANumber,
    /// More decimals than the scale holds.
    #[error("more than {0} decimals")]
    TooManyDecimals(u8),
    /// Too large for its type.
    #[error("too large")]
    TooLarge,
}

/// Reads `[+-]digits[.digits][e[+-]digits]` as a fixed-point integer of `scale`, exactly or not at all.
pub fn parse_fixed(text: &str, scale: u8) -> Result<i64, NumError> {
    let bytes = text.as_bytes();
    if let Some(units) = parse_plain(bytes, scale) {
        return Ok(units);
    }
    let (negative, mut rest) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut mantissa: i128 = 0;
    let (mut digits, mut significant, mut decimals, mut seen_point) = (0_u32, 0_u32, 0_i64, false);
    // Trailing zeros after the point say nothing: they are counted, and only paid for by a later digit.
    let mut zeros = 0_u32;
    while let [b, tail @ ..] = rest {
        match b {
            b'0' if seen_point => {
                zeros += 1;
                digits += 1;
            }
            b'0'..=b'9' => {
                for _ in 0..zeros {
                    mantissa = mantissa.checked_mul(10).ok_or(NumError::TooManyDecimals(scale))?;
                    decimals += 1;
                }
                zeros = 0;
                significant += u32::from(mantissa != 0 || *b != b'0');
                if significant > 36 {
                    return Err(NumError::TooLarge);
                }
                mantissa = mantissa.checked_mul(10).ok_or(NumError::TooLarge)? + i128::from(b - b'0');
                digits += 1;
                decimals += i64::from(seen_point);
            }
            b'.' if !seen_point => seen_point = true,
            b'e' | b'E' => break,
            _ => return Err(NumError::NotANumber),
        }
        rest = tail;
    }
    if digits == 0 {
        return Err(NumError::NotANumber);
    }
    if let [_, exponent @ ..] = rest {
        let text = std::str::from_utf8(exponent).map_err(|_| NumError::NotANumber)?;
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NumError::NotANumber);
        }
        decimals -= text.parse::<i32>().map_or(if text.starts_with('-') { -100_000 } else { 100_000 }, i64::from);
    }
    if mantissa == 0 {
        return Ok(0);
    }
    let mut shift = i64::from(scale) - decimals;
    while shift < 0 {
        if mantissa % 10 != 0 {
            return Err(NumError::TooManyDecimals(scale));
        }
        mantissa /= 10;
        shift += 1;
    }
    if shift > 38 {
        return Err(NumError::TooLarge);
    }
    let value = 10_i128.checked_pow(shift as u32).and_then(|p| mantissa.checked_mul(p)).ok_or(NumError::TooLarge)?;
    i64::try_from(if negative { -value } else { value }).map_err(|_| NumError::TooLarge)
}

/// At most eighteen digits, with or without a point, that need no more than `scale` decimals and fit.
fn parse_plain(bytes: &[u8], scale: u8) -> Option<i64> {
    if bytes.len() > 18 {
        return None;
    }
    let (mut units, mut point) = (0_i64, None);
    for (i, byte) in bytes.iter().enumerate() {
        match byte {
            b'0'..=b'9' => units = units * 10 + i64::from(byte - b'0'),
            b'.' if point.is_none() => point = Some(i),
            _ => return None,
        }
    }
    let decimals = point.map_or(0, |point| bytes.len() - point - 1);
    if bytes.len() == usize::from(point.is_some()) {
        return None;
    }
    units.checked_mul(pow10(scale.checked_sub(decimals as u8)?))
}

/// The decimal that `value` prints as in its shortest round-trip, as a fixed-point integer of `scale`.
pub fn fixed_from_f64(value: f64, scale: u8) -> Result<i64, NumError> {
    if !value.is_finite() {
        return Err(NumError::NotANumber);
    }
    // Nearly all prices of real feeds have few decimals: one multiplication finds the integer, one division proves it.
    let scaled = value * pow10(scale) as f64;
    if scaled.abs() < 9e15 {
        let rounded = scaled.round();
        if rounded / pow10(scale) as f64 == value && scaled.abs() < 1e15 {
            return Ok(rounded as i64);
        }
    }
    // Whole doubles below 2^53 are at most 1 apart: no decimal with fewer digits is nearer to one than its neighbours.
    if value.abs() < 9_007_199_254_740_992.0 && value.trunc() == value {
        return (value as i64).checked_mul(pow10(scale)).ok_or(NumError::TooLarge);
    }
    let mut text = [0_u8; 400];
    let length = {
        use std::io::Write;
        let mut cursor = std::io::Cursor::new(&mut text[..]);
        write!(cursor, "{value}").map_err(|_| NumError::TooLarge)?;
        cursor.position() as usize
    };
    parse_fixed(std::str::from_utf8(&text[..length]).map_err(|_| NumError::NotANumber)?, scale)
}

/// What the numbers of a column are multiplied by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Powers<'a> {
    /// 10 to the power of one scale.
    One(u8),
    /// A power of ten each, 10^12 at most.
    Each(&'a [f64]),
}

impl Powers<'_> {
    /// The power of a row.
    pub(crate) fn of(&self, row: usize) -> i64 {
        match self {
            Powers::One(scale) => pow10(*scale),
            // Powers of ten up to 10^22 are whole doubles.
            Powers::Each(powers) => powers[row] as i64,
        }
    }

    /// The scale of a row.
    pub(crate) fn scale(&self, row: usize) -> u8 {
        match self {
            Powers::One(scale) => *scale,
            Powers::Each(powers) => (powers[row] as i64).ilog10() as u8,
        }
    }
}

/// 1.5 · 2^52: adding it leaves the nearest whole number in a double's lowest bits, as long as that is below 2^51.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// What [`fixed_from_f64`] says of each value, where that takes one multiplication and one division; −1 elsewhere.
///
/// Why it is the same: let r be whole, |r| < 10^15 and r / 10^s, rounded to a double, equal x. r and 10^s (s ≤ 22) are
/// whole doubles, and a division is correctly rounded: so x is the double nearest to the decimal r · 10^-s, which has 15
/// significant digits at most. No two such decimals have the same nearest double (DBL_DIG = 15), so r · 10^-s is the
/// only one that reads as x, hence what x prints as in its shortest round-trip. How r was found does not matter.
pub(crate) fn fixed_from_f64s(values: &[f64], powers: &Powers<'_>, to: &mut [i64]) {
    let fixed = |value: f64, power: f64| {
        let sum = value * power + MAGIC;
        let (rounded, units) = (sum - MAGIC, sum.to_bits().wrapping_sub(MAGIC.to_bits()) as i64);
        let exact = (rounded / power == value) & (rounded.abs() < 1e15);
        if exact { units } else { -1 }
    };
    match powers {
        Powers::One(scale) => {
            let power = pow10(*scale) as f64;
            to.iter_mut().zip(values).for_each(|(to, value)| *to = fixed(*value, power));
        }
        Powers::Each(powers) => {
            let pairs = values.iter().zip(*powers);
            to.iter_mut().zip(pairs).for_each(|(to, (value, power))| *to = fixed(*value, *power));
        }
    }
}

/// The same, appended, of values all of which are plainly exact and positive. False if one is not: then what was appended
/// means nothing.
pub(crate) fn extend_from_f64s(to: &mut Vec<i64>, values: &[f64], powers: &Powers<'_>) -> bool {
    extend_at(Level::new(), to, values, powers)
}

/// The bits are the same at every width of vectors: each operation is one of IEEE 754, and none are made into one.
fn extend_at(level: Level, to: &mut Vec<i64>, values: &[f64], powers: &Powers<'_>) -> bool {
    let before = to.len();
    to.resize(before + values.len(), 0);
    let to = &mut to[before..];
    dispatch!(level, simd => simd.vectorize(#[inline(always)] || all_from_f64s(values, powers, to)))
}

#[inline(always)]
fn all_from_f64s(values: &[f64], powers: &Powers<'_>, to: &mut [i64]) -> bool {
    // 0 as long as each value is what its units divided by its power are; negative once units are not within 1 to
    // 10^15 − 1. A sum outside 2^52 to 2^53, which does not have them in its lowest bits, makes units far outside.
    let (mut differ, mut outside) = (0, 0);
    let mut fixed = |to: &mut i64, value: f64, power: f64| {
        let sum = value * power + MAGIC;
        let units = sum.to_bits().wrapping_sub(MAGIC.to_bits()) as i64;
        differ |= ((sum - MAGIC) / power).to_bits() ^ value.to_bits();
        outside |= units.wrapping_sub(1) | 999_999_999_999_999_i64.wrapping_sub(units);
        *to = units;
    };
    match powers {
        Powers::One(scale) => {
            let power = pow10(*scale) as f64;
            to.iter_mut().zip(values).for_each(|(to, value)| fixed(to, *value, power));
        }
        Powers::Each(powers) => {
            let pairs = values.iter().zip(*powers);
            to.iter_mut().zip(pairs).for_each(|(to, (value, power))| fixed(to, *value, *power));
        }
    }
    differ == 0 && outside >= 0
}

/// Prints a fixed-point integer without trailing zeros: `format_fixed(18190, 2)` is `181.9`.
pub fn format_fixed(mantissa: i128, scale: u8) -> String {
    let unit = 10_i128.pow(u32::from(scale)) as u128;
    let absolute = mantissa.unsigned_abs();
    let sign = if mantissa < 0 { "-" } else { "" };
    let (whole, fraction) = (absolute / unit, absolute % unit);
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    let digits = format!("{fraction:0width$}", width = usize::from(scale));
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

/// The double nearest to `mantissa · 10^-scale` (one correctly rounded division while the mantissa is below 2^53).
#[inline]
pub fn fixed_to_f64(mantissa: i128, scale: u8) -> f64 {
    // Both conversions round to the nearest double; that of 64 bits is one instruction.
    let units = match i64::try_from(mantissa) {
        Ok(units) => units as f64,
        Err(_) => wide(mantissa),
    };
    units / pow10(scale) as f64
}

#[cold]
#[inline(never)]
fn wide(mantissa: i128) -> f64 {
    mantissa as f64
}

/// A price in units of 10^-scale of its instrument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Price(pub i64);

impl Price {
    /// The price as a double.
    #[inline]
    pub fn to_f64(self, scale: u8) -> f64 {
        fixed_to_f64(i128::from(self.0), scale)
    }

    /// The mean of bid and ask, exactly, with one digit more than they have.
    pub fn mid(bid: Price, ask: Price) -> Option<Price> {
        bid.0.checked_add(ask.0)?.checked_mul(5).map(Price)
    }

    /// `price · size`, in units of 10^-(scale + 8).
    pub fn turnover(self, size: Size) -> i128 {
        i128::from(self.0) * i128::from(size.0)
    }

    /// With its scale, for people.
    pub fn decimal(self, scale: u8) -> Decimal {
        Decimal { mantissa: self.0, scale }
    }
}

/// A traded or quoted size in units of 1e-8. A quote's size is 0 where it is unknown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Size(pub i64);

/// Money, lots, points or percent, in units of 1e-8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Amount(pub i64);

impl Amount {
    /// A whole number.
    pub const fn whole(n: i32) -> Self {
        Amount(n as i64 * pow10(SCALE))
    }

    /// The amount as a double.
    pub fn to_f64(self) -> f64 {
        fixed_to_f64(i128::from(self.0), SCALE)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_fixed(i128::from(self.0), SCALE))
    }
}

impl FromStr for Amount {
    type Err = NumError;
    fn from_str(text: &str) -> Result<Self, NumError> {
        parse_fixed(text, SCALE).map(Amount)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.to_f64())
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(f64),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::Number(n) => fixed_from_f64(n, SCALE),
            Raw::Text(text) => parse_fixed(&text, SCALE),
        }
        .map(Amount)
        .map_err(serde::de::Error::custom)
    }
}

/// A price that carries its scale: prints without trailing zeros, serializes as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Decimal {
    /// Units of 10^-scale.
    pub mantissa: i64,
    /// Digits after the point.
    pub scale: u8,
}

impl Decimal {
    /// As a double.
    pub fn to_f64(self) -> f64 {
        fixed_to_f64(i128::from(self.mantissa), self.scale)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_fixed(i128::from(self.mantissa), self.scale))
    }
}

/// People and JSON read a number; workers of other processes get mantissa and scale.
impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.serialize_f64(self.to_f64()) } else { (self.mantissa, self.scale).serialize(s) }
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let mantissa = fixed_from_f64(f64::deserialize(d)?, MAX_SCALE).map_err(serde::de::Error::custom)?;
            return Ok(Decimal { mantissa, scale: MAX_SCALE });
        }
        let (mantissa, scale) = Deserialize::deserialize(d)?;
        Ok(Decimal { mantissa, scale })
    }
}

/// A double with a total order ([`f64::total_cmp`]) and bitwise equality, so that it may stand in a row.
#[derive(Clone, Copy, Default)]
pub struct F64(pub f64);

impl PartialEq for F64 {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for F64 {}
impl PartialOrd for F64 {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for F64 {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl Hash for F64 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.to_bits());
    }
}
impl fmt::Debug for F64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
impl fmt::Display for F64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl Serialize for F64 {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.0)
    }
}
impl<'de> Deserialize<'de> for F64 {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        f64::deserialize(d).map(F64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Those of this machine.
    fn levels() -> Vec<Level> {
        let best = Level::new();
        let mut levels = vec![best, Level::baseline()];
        #[cfg(target_arch = "x86_64")]
        levels.extend([best.as_sse4_2().map(Level::Sse4_2), best.as_avx2().map(Level::Avx2)].into_iter().flatten());
        levels
    }

    #[test]
    fn decimals_read_exactly_or_not_at_all() {
        let cases: &[(&str, u8, Result<i64, NumError>)] = &[
            ("181.90", 2, Ok(18190)),
            ("181.9000000", 2, Ok(18190)),
            ("181.901", 2, Err(NumError::TooManyDecimals(2))),
            ("-0.5", 1, Ok(-5)),
            ("+5.", 0, Ok(5)),
            (".5", 1, Ok(5)),
            ("1e2", 0, Ok(100)),
            ("1.5E-3", 4, Ok(15)),
            ("1e400", 8, Err(NumError::TooLarge)),
            ("1e-400", 8, Err(NumError::TooManyDecimals(8))),
            ("0e999999999999", 8, Ok(0)),
            ("1e99999999999999999999", 8, Err(NumError::TooLarge)),
            ("99999999999999999999", 0, Err(NumError::TooLarge)),
            ("", 2, Err(NumError::NotANumber)),
            (".", 2, Err(NumError::NotANumber)),
            ("5,0", 2, Err(NumError::NotANumber)),
            ("NaN", 2, Err(NumError::NotANumber)),
            ("inf", 2, Err(NumError::NotANumber)),
            ("1e", 2, Err(NumError::NotANumber)),
            ("0x10", 2, Err(NumError::NotANumber)),
            (" 1", 2, Err(NumError::NotANumber)),
        ];
        for (text, scale, expected) in cases {
            assert_eq!(parse_fixed(text, *scale), *expected, "{text}");
        }
    }

    #[test]
    fn doubles_become_decimal_by_their_shortest_round_trip() {
        assert_eq!(fixed_from_f64(49.18, 8), Ok(4_918_000_000));
        assert_eq!(fixed_from_f64(0.1 + 0.2, 8), Err(NumError::TooManyDecimals(8)));
        assert_eq!(fixed_from_f64(f64::NAN, 8), Err(NumError::NotANumber));
        assert_eq!(fixed_from_f64(1e300, 8), Err(NumError::TooLarge));
        assert_eq!(fixed_from_f64(-0.0, 8), Ok(0));
    }

    proptest! {
        #[test]
        fn fixed_reads_as_it_prints(mantissa: i64, scale in 0_u8..=12) {
            prop_assert_eq!(parse_fixed(&format_fixed(mantissa.into(), scale), scale), Ok(mantissa));
        }

        #[test]
        fn columns_are_read_like_their_values(
            values in prop::collection::vec(prop_oneof![
                any::<f64>(),
                (any::<i64>(), 0_u32..63, 0_u8..=12).prop_map(|(n, shift, scale)| fixed_to_f64((n >> shift).into(), scale)),
                (-100_i64..100).prop_map(|n| 1e15 / 100.0 + n as f64),
            ], 0..20),
            scale in 0_u8..=12,
        ) {
            let mut units = vec![7; values.len()];
            fixed_from_f64s(&values, &Powers::One(scale), &mut units);
            let mut each = vec![7; values.len()];
            fixed_from_f64s(&values, &Powers::Each(&vec![pow10(scale) as f64; values.len()]), &mut each);
            prop_assert_eq!(&units, &each);
            let all = units.iter().all(|units| *units > 0);
            let powers = vec![pow10(scale) as f64; values.len()];
            for level in levels() {
                for powers in [Powers::One(scale), Powers::Each(&powers)] {
                    let mut appended = vec![7];
                    prop_assert_eq!(extend_at(level, &mut appended, &values, &powers), all);
                    prop_assert!(!all || appended[0] == 7 && appended[1..] == units[..], "{:?} at {:?}", appended, level);
                }
            }
            for (value, units) in values.iter().zip(units) {
                let by_text = parse_fixed(&format!("{value}"), scale);
                prop_assert_eq!(fixed_from_f64(*value, scale), by_text, "{}", value);
                prop_assert!(units == -1 || by_text == Ok(units), "{} is not {}", value, units);
                let plain = by_text.is_ok_and(|units| units.abs() < 1_000_000_000_000_000);
                prop_assert!(units != -1 || !plain || by_text == Ok(-1), "{}", value);
            }
        }

        #[test]
        fn a_double_is_read_like_its_text(mantissa in -1_000_000_000_000_000_i64..1_000_000_000_000_000, scale in 0_u8..=8) {
            let value = fixed_to_f64(mantissa.into(), scale);
            prop_assert_eq!(fixed_from_f64(value, scale), parse_fixed(&format!("{value}"), scale));
        }
    }
}

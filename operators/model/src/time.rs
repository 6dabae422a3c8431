//! Event time, timeframes and epochs.
//!
//! *Event time* is data: nanoseconds since 1970 UTC. The *epoch* is the dataflow's logical time and carries the only
//! clock that operators know: `now_ms = epoch / 4096`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Nanoseconds since 1970-01-01T00:00:00Z.
pub type Nanos = i64;

/// Logical time: `now_ms · 4096 + n`, strictly rising.
pub type Epoch = u64;

/// Epochs in a millisecond of `now`.
pub const EPOCHS_PER_MS: u64 = 4096;

/// Nanoseconds in a millisecond.
pub const MILLI: Nanos = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;
/// Nanoseconds in a UTC day.
pub const DAY: Nanos = 86_400 * SECOND;

/// The clock of an epoch, in milliseconds since 1970.
pub const fn now_ms(epoch: Epoch) -> i64 {
    (epoch / EPOCHS_PER_MS) as i64
}

/// The clock of an epoch, in nanoseconds since 1970.
pub const fn now_ns(epoch: Epoch) -> Nanos {
    now_ms(epoch) * MILLI
}

/// The first epoch of a millisecond.
pub const fn first_epoch(now_ms: i64) -> Epoch {
    now_ms as u64 * EPOCHS_PER_MS
}

/// The length of a bar. A timeframe divides a UTC day, so that bars never straddle midnight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timeframe(Nanos);

/// Why a text or a length is no timeframe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timeframe {0:?} is not a length such as 10ms, 1s, 5m, 1h or 1d that divides a day")]
pub struct TimeframeError(String);

impl Timeframe {
    /// One minute.
    pub const M1: Timeframe = Timeframe(60 * SECOND);
    /// Five minutes.
    pub const M5: Timeframe = Timeframe(300 * SECOND);
    /// One hour.
    pub const H1: Timeframe = Timeframe(3600 * SECOND);
    /// One second.
    pub const S1: Timeframe = Timeframe(SECOND);

    /// A timeframe of `nanos`; an error unless it is positive and divides a day.
    pub fn new(nanos: Nanos) -> Result<Self, TimeframeError> {
        if nanos > 0 && DAY % nanos == 0 { Ok(Timeframe(nanos)) } else { Err(TimeframeError(format!("{nanos}ns"))) }
    }

    /// The length in nanoseconds.
    pub const fn nanos(self) -> Nanos {
        self.0
    }

    /// The open time of the bar that `event_time` falls into.
    pub const fn open_time(self, event_time: Nanos) -> Nanos {
        event_time - event_time.rem_euclid(self.0)
    }

    /// The close time of the bar that `event_time` falls into.
    pub const fn close_time(self, event_time: Nanos) -> Nanos {
        self.open_time(event_time) + self.0
    }

    /// Bars in 365 days: the annualising factor of every ratio.
    pub fn periods_per_year(self) -> f64 {
        (365 * DAY / self.0) as f64
    }
}

impl fmt::Display for Timeframe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        for (unit, name) in [(DAY, "d"), (3600 * SECOND, "h"), (60 * SECOND, "m"), (SECOND, "s"), (MILLI, "ms")] {
            if n % unit == 0 {
                return write!(f, "{}{name}", n / unit);
            }
        }
        write!(f, "{n}ns")
    }
}

impl FromStr for Timeframe {
    type Err = TimeframeError;
    fn from_str(text: &str) -> Result<Self, TimeframeError> {
        let error = || TimeframeError(text.to_owned());
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let unit = match &text[digits..] {
            "ns" => 1,
            "ms" => MILLI,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            "d" => DAY,
            _ => return Err(error()),
        };
        let n: Nanos = text[..digits].parse().map_err(|_| error())?;
        Timeframe::new(n.checked_mul(unit).ok_or_else(error)?).map_err(|_| error())
    }
}

impl Serialize for Timeframe {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timeframe {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is no event time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an RFC 3339 time with a zone, such as 2013-10-07T13:30:00.123456789Z")]
pub struct TimeError(String);

/// Reads RFC 3339 with a zone (a time without one is an error), to the nanosecond.
pub fn parse_rfc3339(text: &str) -> Result<Nanos, TimeError> {
    let error = || TimeError(text.chars().take(64).collect());
    let timestamp: jiff::Timestamp = text.parse().map_err(|_| error())?;
    i64::try_from(timestamp.as_nanosecond()).map_err(|_| error())
}

/// Writes RFC 3339 in UTC with nine decimals: `2013-10-07T13:30:00.123456789Z`.
pub fn format_rfc3339(nanos: Nanos) -> String {
    let timestamp = jiff::Timestamp::from_nanosecond(i128::from(nanos));
    timestamp.map_or_else(|_| nanos.to_string(), |t| format!("{t:.9}"))
}

/// Serde of [`Nanos`] as RFC 3339 text: `#[serde(with = "marea_model::time::rfc3339")]`.
pub mod rfc3339 {
    use super::{Nanos, format_rfc3339, parse_rfc3339};
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes RFC 3339 in UTC.
    pub fn serialize<S: Serializer>(nanos: &Nanos, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format_rfc3339(*nanos))
    }

    /// Reads RFC 3339 with a zone.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Nanos, D::Error> {
        parse_rfc3339(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// The same for `Option<Nanos>`, `null` where absent.
pub mod rfc3339_option {
    use super::{Nanos, format_rfc3339, parse_rfc3339};
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes RFC 3339 in UTC, or null.
    pub fn serialize<S: Serializer>(nanos: &Option<Nanos>, s: S) -> Result<S::Ok, S::Error> {
        match nanos {
            Some(nanos) => s.serialize_some(&format_rfc3339(*nanos)),
            None => s.serialize_none(),
        }
    }

    /// Reads RFC 3339 with a zone, or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Nanos>, D::Error> {
        Option::<String>::deserialize(d)?.map(|t| parse_rfc3339(&t).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeframes_read_as_they_print() {
        for text in ["10ms", "1s", "1m", "5m", "1h", "4h", "1d"] {
            assert_eq!(text.parse::<Timeframe>().unwrap().to_string(), text);
        }
        for text in ["", "5", "7m", "0s", "2d", "m", "-1m", "5 m", "99999999999999999999s"] {
            assert!(text.parse::<Timeframe>().is_err(), "{text}");
        }
    }

    #[test]
    fn bars_open_at_multiples_also_before_1970() {
        assert_eq!(Timeframe::M1.open_time(-1), -60 * SECOND);
        assert_eq!(Timeframe::M1.close_time(60 * SECOND), 120 * SECOND);
    }

    #[test]
    fn times_read_as_they_print() {
        let text = "2013-10-07T13:30:00.123456789Z";
        assert_eq!(format_rfc3339(parse_rfc3339(text).unwrap()), text);
        assert_eq!(format_rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert!(parse_rfc3339("2013-10-07T13:30:00").is_err(), "no zone");
        assert_eq!(parse_rfc3339("2013-10-07T15:30:00+02:00"), parse_rfc3339("2013-10-07T13:30:00Z"));
    }
}

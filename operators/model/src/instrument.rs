//! Instruments: how a symbol's prices read, what its bars are made of, and how its lots are sized.

use crate::name::Symbol;
use crate::num::{Amount, MAX_SCALE, Price};
use crate::time::Timeframe;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which price a symbol's bars are made of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PriceSource {
    /// Trades. Quotes make no bars.
    #[default]
    Last,
    /// The mean of bid and ask of each quote, with one digit more. Trades make no bars; volume is 0.
    Mid,
    /// The bid of each quote. Trades make no bars; volume is 0.
    Bid,
}

/// An instrument. `price_source` and `scale` change only at a rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Instrument {
    /// Digits after the point of its prices, 0 to 12.
    pub scale: u8,
    /// The smallest price step (= one point), in units of 10^-scale.
    pub tick_size: Price,
    /// Money that one lot gains when the price moves by one `tick_size`.
    pub tick_value: Amount,
    /// The currency of `tick_value`, if known: an account in another currency is blocked.
    pub currency: Option<[u8; 3]>,
    /// Smallest order, in lots.
    pub min_lot: Amount,
    /// Largest order, in lots.
    pub max_lot: Amount,
    /// Lots are floored to a multiple of this.
    pub lot_step: Amount,
    /// Smallest distance of a stop from the entry, in points.
    pub min_stop_distance: Amount,
    /// What its bars are made of.
    pub price_source: PriceSource,
    /// The timeframe on which it is recommended.
    pub decision_timeframe: Timeframe,
    /// Whether zero and negative prices are valid.
    pub allow_negative: bool,
}

impl Default for Instrument {
    fn default() -> Self {
        Instrument {
            scale: 8,
            tick_size: Price(1_000_000),
            tick_value: Amount::whole(1),
            currency: None,
            min_lot: Amount(1_000_000),
            max_lot: Amount::whole(100),
            lot_step: Amount(1_000_000),
            min_stop_distance: Amount(0),
            price_source: PriceSource::Last,
            decision_timeframe: Timeframe::M5,
            allow_negative: false,
        }
    }
}

/// An instrument as it is written (TOML or JSON): every key may be left out, numbers may be texts.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InstrumentSpec {
    /// Digits after the point.
    pub scale: Option<u8>,
    /// Smallest price step, in price units: `0.01`.
    pub tick_size: Option<Amount>,
    /// Money a lot gains per tick.
    pub tick_value: Option<Amount>,
    /// Three letters.
    pub currency: Option<String>,
    /// Lots.
    pub min_lot: Option<Amount>,
    /// Lots.
    pub max_lot: Option<Amount>,
    /// Lots.
    pub lot_step: Option<Amount>,
    /// Points.
    pub min_stop_distance: Option<Amount>,
    /// `last`, `mid` or `bid`.
    pub price_source: Option<PriceSource>,
    /// `5m`.
    pub decision_timeframe: Option<Timeframe>,
    /// Whether zero and negative prices are valid.
    pub allow_negative: Option<bool>,
}

/// Why an instrument was refused: the key, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {must}")]
pub struct InstrumentError {
    /// The key.
    pub field: &'static str,
    /// What it must be.
    pub must: String,
}

/// Three upper-case letters.
pub fn parse_currency(text: &str) -> Option<[u8; 3]> {
    let bytes: [u8; 3] = text.as_bytes().try_into().ok()?;
    bytes.iter().all(u8::is_ascii_uppercase).then_some(bytes)
}

impl InstrumentSpec {
    /// This specification over `base` (the default instrument), checked.
    pub fn over(&self, base: &Instrument) -> Result<Instrument, InstrumentError> {
        let error = |field, must: &str| Err(InstrumentError { field, must: must.to_owned() });
        let scale = self.scale.unwrap_or(base.scale);
        if scale > MAX_SCALE {
            return error("scale", "must be 0 to 12");
        }
        // tick_size is written with 8 decimals and kept in units of the scale: never rounded.
        let base_tick = i128::from(base.tick_size.0) * 10_i128.pow(u32::from(MAX_SCALE - base.scale));
        let tick = self.tick_size.map_or(base_tick, |a| i128::from(a.0) * 10_i128.pow(u32::from(MAX_SCALE - 8)));
        let unit = 10_i128.pow(u32::from(MAX_SCALE - scale));
        if tick <= 0 || tick % unit != 0 {
            return error("tick_size", &format!("must be a positive multiple of 10^-{scale}, the scale"));
        }
        let Ok(tick_size) = i64::try_from(tick / unit) else { return error("tick_size", "is too large") };
        let currency = match &self.currency {
            None => base.currency,
            Some(text) => match parse_currency(text) {
                Some(currency) => Some(currency),
                None => return error("currency", "must be three upper-case letters"),
            },
        };
        let instrument = Instrument {
            scale,
            tick_size: Price(tick_size),
            tick_value: self.tick_value.unwrap_or(base.tick_value),
            currency,
            min_lot: self.min_lot.unwrap_or(base.min_lot),
            max_lot: self.max_lot.unwrap_or(base.max_lot),
            lot_step: self.lot_step.unwrap_or(base.lot_step),
            min_stop_distance: self.min_stop_distance.unwrap_or(base.min_stop_distance),
            price_source: self.price_source.unwrap_or(base.price_source),
            decision_timeframe: self.decision_timeframe.unwrap_or(base.decision_timeframe),
            allow_negative: self.allow_negative.unwrap_or(base.allow_negative),
        };
        let positive = [
            ("tick_value", instrument.tick_value),
            ("min_lot", instrument.min_lot),
            ("max_lot", instrument.max_lot),
            ("lot_step", instrument.lot_step),
        ];
        for (field, amount) in positive {
            if amount.0 <= 0 {
                return error(field, "must be positive");
            }
        }
        if instrument.min_stop_distance.0 < 0 {
            return error("min_stop_distance", "must not be negative");
        }
        if instrument.max_lot < instrument.min_lot {
            return error("max_lot", "must not be below min_lot");
        }
        Ok(instrument)
    }
}

impl Instrument {
    /// Digits after the point of its bars' prices: one more than its scale for bars of mids.
    pub fn bar_scale(&self) -> u8 {
        self.scale + u8::from(self.price_source == PriceSource::Mid)
    }

    /// Whether `other` may replace this one while running.
    pub fn same_data(&self, other: &Instrument) -> bool {
        self.scale == other.scale
            && self.price_source == other.price_source
            && self.allow_negative == other.allow_negative
    }
}

/// All instruments by symbol; unknown symbols take the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instruments {
    /// What a symbol without an entry takes.
    pub default: Instrument,
    /// Configured instruments.
    pub by_symbol: BTreeMap<Symbol, Instrument>,
}

impl Instruments {
    /// The instrument of `symbol`.
    pub fn get(&self, symbol: Symbol) -> &Instrument {
        self.by_symbol.get(&symbol).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_default(json: &str) -> Result<Instrument, String> {
        let spec: InstrumentSpec = serde_json::from_str(json).map_err(|e| e.to_string())?;
        spec.over(&Instrument::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_instrument_reads_over_the_default() {
        let eurusd =
            over_default(r#"{"scale":5,"tick_size":"0.00001","price_source":"mid","currency":"USD"}"#).unwrap();
        assert_eq!((eurusd.scale, eurusd.tick_size, eurusd.bar_scale()), (5, Price(1), 6));
        assert_eq!(over_default(r#"{"scale":2}"#).unwrap().tick_size, Price(1));
    }

    #[test]
    fn a_bad_instrument_names_its_key() {
        for (json, expected) in [
            (r#"{"scale":13}"#, "scale: must be 0 to 12"),
            (r#"{"scale":1}"#, "tick_size: must be a positive multiple of 10^-1, the scale"),
            (r#"{"tick_value":0}"#, "tick_value: must be positive"),
            (r#"{"currency":"usd"}"#, "currency: must be three upper-case letters"),
            (r#"{"max_lot":"0.001"}"#, "max_lot: must not be below min_lot"),
        ] {
            assert_eq!(over_default(json).unwrap_err(), expected);
        }
    }
}

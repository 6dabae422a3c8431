//! Keys of the live configuration and the slots that they name.
//!
//! A slot is what a key means: `/echo/windows/M1/eurusd/start_utc` and `/echo/windows/M1/EURUSD/default/start_utc` are
//! one slot. Account, symbol, strategy and window id are percent-encoded in keys, so that a symbol may hold a `/`.

use crate::name::{AccountId, StrategyId, Symbol};
use std::fmt;

/// What a key selects: everything (`*`), or one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pattern<T> {
    /// All of them.
    Any,
    /// This one.
    One(T),
}

impl<T: Copy + PartialEq> Pattern<T> {
    /// Whether it selects `one`.
    pub fn matches(self, one: T) -> bool {
        match self {
            Pattern::Any => true,
            Pattern::One(this) => this == one,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Pattern<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Any => f.write_str("*"),
            Pattern::One(one) => one.fmt(f),
        }
    }
}

macro_rules! fields {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub(super) enum $name {
            $($variant,)*
            /// Not one of ours; the last, so that a range over a policy or window starts at the first field.
            Unknown(Box<str>),
        }

        impl $name {
            /// The names of all fields.
            pub(super) const NAMES: &[&str] = &[$($text),*];

            /// The field of a key's last part.
            pub(super) fn read(text: &str) -> Self {
                match text {
                    $($text => $name::$variant,)*
                    other => $name::Unknown(other.into()),
                }
            }
        }
    };
}

fields!(
    /// A key of a policy.
    PolicyField {
        MaxSpread = "max_spread",
        MaxSlippage = "max_slippage",
        MaxDelay = "max_delay_ms",
        MaxQuoteAge = "max_quote_age_ms",
        CopySlTp = "copy_sl_tp",
        RiskPerTrade = "risk_per_trade",
        RiskFixed = "risk_fixed",
        Enabled = "enabled",
        MaxDrawdown = "max_drawdown_pct",
        SlOffset = "sl_offset",
        TpOffset = "tp_offset",
        CatastrophicSl = "catastrophic_sl",
        AllowShort = "allow_short"
    }
);

fields!(
    /// A key of a window.
    WindowField {
        Start = "start_utc",
        End = "end_utc",
        PreBuffer = "pre_buffer_sec",
        PostBuffer = "post_buffer_sec",
        Active = "active"
    }
);

/// What a key means.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Slot {
    MasterAccounts,
    SlaveAccounts,
    TradingEnabled,
    Policy(Pattern<AccountId>, PolicyField),
    Window(Pattern<AccountId>, Pattern<Symbol>, Box<str>, WindowField),
    Strategy(StrategyId),
    /// `Any` is the default instrument.
    Instrument(Pattern<Symbol>),
    /// The key, which means nothing, and why.
    Unknown(Box<str>, Box<str>),
}

/// The window id of a path without one.
pub(super) const DEFAULT_WINDOW: &str = "default";

/// The tree's first folders, for the text about a key that is in none of them.
const ROOTS: &str = "/echo/core/{master_accounts, slave_accounts, trading_enabled}, /echo/policy/{account}/…, \
                     /echo/windows/{account}/{symbol}/…, /marea/strategies/{id}, /marea/instruments/{symbol}";

impl Slot {
    /// What `key` means. Every key means something, if only that it is unknown.
    pub(super) fn read(key: &str) -> Slot {
        read(key).unwrap_or_else(|why| Slot::Unknown(key.into(), why.into()))
    }
}

fn read(key: &str) -> Result<Slot, String> {
    let unknown = || Err(format!("unknown key; known: {ROOTS}"));
    let Some(path) = key.strip_prefix('/') else { return unknown() };
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        ["echo", "core", "master_accounts"] => Ok(Slot::MasterAccounts),
        ["echo", "core", "slave_accounts"] => Ok(Slot::SlaveAccounts),
        ["echo", "core", "trading_enabled"] => Ok(Slot::TradingEnabled),
        // A deeper path is a field of that name: unknown, and so it blocks the account that it was meant for.
        ["echo", "policy", account, field @ ..] if !account.is_empty() => {
            Ok(Slot::Policy(pattern(account, AccountId::new)?, PolicyField::read(&field.join("/"))))
        }
        ["echo", "windows", account, symbol, rest @ ..] if !rest.is_empty() => {
            let (account, symbol) = (pattern(account, AccountId::new)?, pattern(symbol, Symbol::canonical)?);
            let (id, field) = match rest {
                [field] => (DEFAULT_WINDOW.to_owned(), WindowField::read(field)),
                [id, field @ ..] => (segment(id)?, WindowField::read(&field.join("/"))),
                [] => return unknown(),
            };
            Ok(Slot::Window(account, symbol, id.into(), field))
        }
        ["marea", "strategies", id] => StrategyId::new(&segment(id)?).map(Slot::Strategy).map_err(|e| e.to_string()),
        ["marea", "instruments", "default"] => Ok(Slot::Instrument(Pattern::Any)),
        ["marea", "instruments", symbol] => {
            Symbol::canonical(&segment(symbol)?).map(|s| Slot::Instrument(Pattern::One(s))).map_err(|e| e.to_string())
        }
        _ => unknown(),
    }
}

fn segment(text: &str) -> Result<String, String> {
    decode_segment(text).ok_or_else(|| format!("{text:?} is not percent-encoded UTF-8"))
}

fn pattern<T, E: ToString>(text: &str, name: impl Fn(&str) -> Result<T, E>) -> Result<Pattern<T>, String> {
    match text {
        "*" => Ok(Pattern::Any),
        _ => name(&segment(text)?).map(Pattern::One).map_err(|e| e.to_string()),
    }
}

/// A name as one part of a key: what is not a letter, a digit or one of `-._~` is percent-encoded.
///
/// ```
/// assert_eq!(marea_model::live::encode_segment("EUR/USD"), "EUR%2FUSD");
/// ```
pub fn encode_segment(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The name that one part of a key stands for; none where a `%` is not followed by two hexadecimal digits, or where
/// the bytes are not UTF-8.
pub fn decode_segment(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |b: &u8| char::from(*b).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                tail
            }
            (b'%', _) => return None,
            (byte, tail) => {
                bytes.push(*byte);
                tail
            }
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_that_mean_the_same_are_one_slot() {
        let window = Slot::read("/echo/windows/M1/EUR%2FUSD/start_utc");
        assert_eq!(window, Slot::read("/echo/windows/M1/eur%2fusd/default/start_utc"));
        assert_ne!(window, Slot::read("/echo/windows/M1/EUR%2FUSD/news/start_utc"));
        assert_eq!(Slot::read("/marea/instruments/eurusd"), Slot::read("/marea/instruments/EURUSD"));
    }

    #[test]
    fn a_key_without_meaning_says_why() {
        let why = |key| match Slot::read(key) {
            Slot::Unknown(_, why) => why.into_string(),
            slot => panic!("{key} is {slot:?}"),
        };
        for key in
            ["", "x", "/", "/echo", "/echo/core/x", "/echo/policy", "/echo/policy/", "/echo/windows/M1/A", "/a/b"]
        {
            assert!(why(key).starts_with("unknown key; known: /echo/core/{"), "{key}");
        }
        assert_eq!(why("/echo/policy/M%201/enabled"), "account \"M 1\" must be 1 to 64 of letters, digits, . _ - @ :");
        assert_eq!(why("/echo/windows/M1/%ff/active"), "\"%ff\" is not percent-encoded UTF-8");
        assert_eq!(why("/echo/windows/M1/%2/active"), "\"%2\" is not percent-encoded UTF-8");
    }

    #[test]
    fn an_unknown_field_belongs_to_its_policy_or_window() {
        let account = Pattern::One(AccountId::new("M1").unwrap());
        for (key, field) in [("max_spred", "max_spred"), ("max_spread/x", "max_spread/x")] {
            let slot = Slot::read(&format!("/echo/policy/M1/{key}"));
            assert_eq!(slot, Slot::Policy(account, PolicyField::Unknown(field.into())));
        }
        assert_eq!(Slot::read("/echo/policy/M1"), Slot::Policy(account, PolicyField::Unknown("".into())));
    }

    proptest! {
        #[test]
        fn a_segment_reads_as_it_is_written(name in ".{0,40}") {
            prop_assert_eq!(decode_segment(&encode_segment(&name)), Some(name));
        }
    }
}

//! Values of the live configuration: what a text must be, and the words for one that is not.
//!
//! Nothing is trimmed or guessed: `5,0`, ` 20` and `True` are refused, since a policy that was misread is worse than
//! an account that is blocked.

use super::key::{PolicyField, WindowField};
use crate::cursor::excerpt;
use crate::name::AccountId;
use crate::num::{Amount, NumError, SCALE, parse_fixed};
use crate::time::{MILLI, Nanos, parse_rfc3339};

/// A policy's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyValue {
    Switch(bool),
    Amount(Amount),
    Millis(i64),
}

/// A window's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowValue {
    Time(Nanos),
    Seconds(u32),
    Active,
}

/// The text in quotes, as much of it as an error shows.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", excerpt(text))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{} is neither true nor false", quoted(text))),
    }
}

fn number(text: &str, scale: u8) -> Result<i64, String> {
    let value = parse_fixed(text, scale).map_err(|e| {
        let text = quoted(text);
        match e {
            NumError::NotANumber => format!("{text} is not a number"),
            NumError::TooManyDecimals(0) => format!("{text} is not a whole number"),
            NumError::TooManyDecimals(n) => format!("{text} has more than {n} decimals"),
            NumError::TooLarge => format!("{text} is too large"),
        }
    })?;
    if value < 0 { Err(format!("{} is negative", quoted(text))) } else { Ok(value) }
}

fn amount(text: &str) -> Result<Amount, String> {
    number(text, SCALE).map(Amount)
}

fn percent(text: &str) -> Result<Amount, String> {
    let value = amount(text)?;
    if value > Amount::whole(100) { Err(format!("{} is not 0 to 100 percent", quoted(text))) } else { Ok(value) }
}

fn millis(text: &str) -> Result<i64, String> {
    let value = number(text, 0)?;
    // So that it may be compared in nanoseconds.
    if value > Nanos::MAX / MILLI { Err(format!("{} is too large", quoted(text))) } else { Ok(value) }
}

fn seconds(text: &str) -> Result<u32, String> {
    u32::try_from(number(text, 0)?).map_err(|_| format!("{} is too large", quoted(text)))
}

/// Reads a policy's value.
pub(super) fn policy(field: &PolicyField, text: &str) -> Result<PolicyValue, String> {
    match field {
        PolicyField::CopySlTp | PolicyField::Enabled | PolicyField::AllowShort => switch(text).map(PolicyValue::Switch),
        PolicyField::MaxSpread
        | PolicyField::MaxSlippage
        | PolicyField::RiskFixed
        | PolicyField::SlOffset
        | PolicyField::TpOffset
        | PolicyField::CatastrophicSl => amount(text).map(PolicyValue::Amount),
        PolicyField::RiskPerTrade | PolicyField::MaxDrawdown => percent(text).map(PolicyValue::Amount),
        PolicyField::MaxDelay | PolicyField::MaxQuoteAge => millis(text).map(PolicyValue::Millis),
        PolicyField::Unknown(_) => Err(format!("unknown key of a policy; known: {}", PolicyField::NAMES.join(", "))),
    }
}

/// Reads a window's value.
pub(super) fn window(field: &WindowField, text: &str) -> Result<WindowValue, String> {
    match field {
        WindowField::Start | WindowField::End => parse_rfc3339(text)
            .map(WindowValue::Time)
            .map_err(|_| format!("{} is not an RFC 3339 time with a zone, such as 2013-10-07T13:30:00Z", quoted(text))),
        WindowField::PreBuffer | WindowField::PostBuffer => seconds(text).map(WindowValue::Seconds),
        WindowField::Active if text == "true" => Ok(WindowValue::Active),
        WindowField::Active => Err(format!("{} is not true", quoted(text))),
        WindowField::Unknown(_) => Err(format!("unknown key of a window; known: {}", WindowField::NAMES.join(", "))),
    }
}

/// The accounts of a list (`M1, M2` or `["M1","M2"]`), and what in it is no name; an error where all is unreadable.
pub(super) fn accounts(text: &str) -> Result<(Vec<AccountId>, Vec<String>), String> {
    let names: Vec<String> = if text.trim_start().starts_with('[') {
        let values: Vec<serde_json::Value> =
            serde_json::from_str(text).map_err(|e| format!("{} is no JSON array: {e}", quoted(text)))?;
        // Logins are often numbers, and then written as such.
        let name = |value| match value {
            serde_json::Value::String(name) => name,
            other => other.to_string(),
        };
        values.into_iter().map(name).collect()
    } else {
        text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    };
    let (mut accounts, mut faults) = (Vec::with_capacity(names.len()), Vec::new());
    for name in names {
        match AccountId::new(&name) {
            Ok(account) => accounts.push(account),
            Err(e) => faults.push(e.to_string()),
        }
    }
    Ok((accounts, faults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_value_of_a_policy_says_why() {
        for (field, text, why) in [
            ("max_spread", "5,0", "\"5,0\" is not a number"),
            ("max_spread", "", "\"\" is not a number"),
            ("max_spread", " 20", "\" 20\" is not a number"),
            ("max_spread", "NaN", "\"NaN\" is not a number"),
            ("max_spread", "20\n", "\"20\\n\" is not a number"),
            ("max_spread", "-1", "\"-1\" is negative"),
            ("max_spread", "0.000000001", "\"0.000000001\" has more than 8 decimals"),
            ("max_spread", "1e400", "\"1e400\" is too large"),
            ("max_slippage", "ten", "\"ten\" is not a number"),
            ("risk_per_trade", "-2", "\"-2\" is negative"),
            ("risk_per_trade", "100.5", "\"100.5\" is not 0 to 100 percent"),
            ("risk_per_trade", "2%", "\"2%\" is not a number"),
            ("risk_fixed", "-0.01", "\"-0.01\" is negative"),
            ("max_drawdown_pct", "101", "\"101\" is not 0 to 100 percent"),
            ("max_delay_ms", "1.5", "\"1.5\" is not a whole number"),
            ("max_delay_ms", "-1", "\"-1\" is negative"),
            ("max_quote_age_ms", "9300000000000", "\"9300000000000\" is too large"),
            ("sl_offset", "-3", "\"-3\" is negative"),
            ("tp_offset", "x", "\"x\" is not a number"),
            ("catastrophic_sl", "1e-9", "\"1e-9\" has more than 8 decimals"),
            ("enabled", "True", "\"True\" is neither true nor false"),
            ("enabled", "1", "\"1\" is neither true nor false"),
            ("copy_sl_tp", "yes", "\"yes\" is neither true nor false"),
            ("allow_short", "", "\"\" is neither true nor false"),
        ] {
            assert_eq!(policy(&PolicyField::read(field), text), Err(why.to_owned()), "{field} = {text:?}");
        }
        let why = policy(&PolicyField::read("max_spred"), "1").unwrap_err();
        assert!(why.starts_with("unknown key of a policy; known: max_spread, max_slippage, "), "{why}");
    }

    #[test]
    fn good_values_of_a_policy() {
        let read = |field, text| policy(&PolicyField::read(field), text).unwrap();
        assert_eq!(read("max_spread", "0"), PolicyValue::Amount(Amount(0)));
        assert_eq!(read("max_spread", "2.5"), PolicyValue::Amount(Amount(250_000_000)));
        assert_eq!(read("risk_per_trade", "100"), PolicyValue::Amount(Amount::whole(100)));
        assert_eq!(read("max_delay_ms", "1e3"), PolicyValue::Millis(1000));
        assert_eq!(read("enabled", "false"), PolicyValue::Switch(false));
    }

    #[test]
    fn a_bad_value_of_a_window_says_why() {
        let time = |text: &str| format!("\"{text}\" is not an RFC 3339 time with a zone, such as 2013-10-07T13:30:00Z");
        for (field, text, why) in [
            ("start_utc", "2013-10-07T13:30:00", time("2013-10-07T13:30:00")),
            ("end_utc", "1381152600", time("1381152600")),
            ("end_utc", "2013-02-30T00:00:00Z", time("2013-02-30T00:00:00Z")),
            ("pre_buffer_sec", "-1", "\"-1\" is negative".to_owned()),
            ("pre_buffer_sec", "0.5", "\"0.5\" is not a whole number".to_owned()),
            ("post_buffer_sec", "5000000000", "\"5000000000\" is too large".to_owned()),
            ("post_buffer_sec", "1m", "\"1m\" is not a number".to_owned()),
            ("active", "false", "\"false\" is not true".to_owned()),
            ("active", "TRUE", "\"TRUE\" is not true".to_owned()),
        ] {
            assert_eq!(window(&WindowField::read(field), text), Err(why), "{field} = {text:?}");
        }
        let why = window(&WindowField::read("begin"), "1").unwrap_err();
        assert!(why.starts_with("unknown key of a window; known: start_utc, end_utc, "), "{why}");
    }

    #[test]
    fn accounts_are_a_comma_list_or_a_json_array() {
        let names = |text| accounts(text).map(|(a, f)| (a.iter().map(|a| a.as_str()).collect::<Vec<_>>(), f));
        assert_eq!(names("M1, M2,"), Ok((vec!["M1", "M2"], vec![])));
        assert_eq!(names(r#" ["M1", 2002]"#), Ok((vec!["M1", "2002"], vec![])));
        assert_eq!(names(""), Ok((vec![], vec![])));
        let bad = "account \"M 2\" must be 1 to 64 of letters, digits, . _ - @ :".to_owned();
        assert_eq!(names("M1,M 2"), Ok((vec!["M1"], vec![bad])));
        assert_eq!(names(r#"["M1","#).unwrap_err().split(':').next(), Some(r#""["M1"," is no JSON array"#));
    }
}

//! Query parameters, strictly: every one is known, given once, and has a value in its range.

use super::problem::Problem;
use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use marea_model::cursor::excerpt;
use marea_model::time::parse_rfc3339;
use marea_model::{Nanos, Timeframe};

/// The parameters of a request.
#[derive(Debug, Default)]
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let pairs = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = pairs.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))?;
        Ok(Params { pairs })
    }
}

impl Params {
    /// Refuses parameters other than `known`, and those given twice.
    pub(crate) fn only(self, known: &[&str]) -> Result<Self, Problem> {
        for (i, (name, value)) in self.pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
                let detail = format!("unknown parameter {:?}; known here: {known}", excerpt(name));
                return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
            }
            if self.pairs[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(Problem::field(name, value, "be given once"));
            }
        }
        Ok(self)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn limit(&self, default: usize, max: usize) -> Result<usize, Problem> {
        let Some(text) = self.text("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
        limit.ok_or_else(|| Problem::field("limit", text, &format!("be a whole number from 1 to {max}")))
    }

    /// A time: RFC 3339 with a zone, or nanoseconds since 1970.
    pub(crate) fn time(&self, name: &str) -> Result<Option<Nanos>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let time = text.parse().ok().or_else(|| parse_rfc3339(text).ok());
        let must = "be an RFC 3339 time with a zone, or nanoseconds since 1970";
        time.map(Some).ok_or_else(|| Problem::field(name, text, must))
    }

    /// `from` and `to`, where `from` is not after `to`.
    pub(crate) fn range(&self) -> Result<(Option<Nanos>, Option<Nanos>), Problem> {
        let (from, to) = (self.time("from")?, self.time("to")?);
        match (from, to) {
            (Some(a), Some(b)) if a > b => {
                let to = excerpt(self.text("to").unwrap_or_default());
                let from = self.text("from").unwrap_or_default();
                Err(Problem::field("from", from, &format!("not be after to, {to:?}")))
            }
            range => Ok(range),
        }
    }

    pub(crate) fn timeframe(&self) -> Result<Option<Timeframe>, Problem> {
        let Some(text) = self.text("timeframe") else { return Ok(None) };
        let must = "be a length such as 1m, 5m or 1h";
        text.parse().map(Some).map_err(|_| Problem::field("timeframe", text, must))
    }

    /// One of `choices`; the first by default.
    pub(crate) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
        let Some(text) = self.text(name) else { return Ok(choices[0].1) };
        let chosen = choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value);
        let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        chosen.ok_or_else(|| Problem::field(name, text, &format!("be one of {}", names.join(", "))))
    }

    /// The id that a stream goes on after. Whole numbers that are no id of this process pass: they lead to a reset.
    pub(crate) fn after(&self) -> Result<Option<&str>, Problem> {
        let Some(text) = self.text("after") else { return Ok(None) };
        match text.split('-').all(|part| part.parse::<u64>().is_ok()) {
            true => Ok(Some(text)),
            false => Err(Problem::field("after", text, "be the id of an event, such as 1381152600000-7")),
        }
    }
}

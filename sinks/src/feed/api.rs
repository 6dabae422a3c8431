//! The handlers. Each reads parameters, asks the [`View`](crate::view::View) (or the store) and shapes JSON.

use super::problem::Problem;
use super::query::Params;
use super::stream::envelope;
use super::{Feed, WORKER_TIMEOUT};
use crate::page;
use crate::view::{BARS, BarRow};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use marea_model::output::MetricsWindow;
use marea_model::time::format_rfc3339;
use marea_model::{MetricsRow, Symbol};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::time::UNIX_EPOCH;

/// The most bars in an answer.
const MAX_BARS: usize = 5_000;
/// The most rows of metrics in an answer.
const MAX_METRICS: usize = 1_000;

type Symbols = Result<Path<String>, PathRejection>;

pub(super) async fn index() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page::INDEX).into_response()
}

pub(super) async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], page::SCRIPT).into_response()
}

pub(super) async fn style() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::STYLE).into_response()
}

pub(super) async fn health(State(feed): State<Feed>, params: Params) -> Result<Json<Value>, Problem> {
    params.only(&[])?;
    match feed.inner.health.oldest() {
        Some((worker, age)) if age > WORKER_TIMEOUT => {
            let detail = format!("worker {worker} has been silent for {:.1} s", age.as_secs_f64());
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
        oldest => {
            let age = oldest.map(|(_, age)| age.as_secs_f64());
            Ok(Json(json!({ "status": "ok", "heartbeat_age_seconds": age })))
        }
    }
}

pub(super) async fn ready(State(feed): State<Feed>, params: Params) -> Result<Json<Value>, Problem> {
    params.only(&[])?;
    let not_ready = |detail: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
    if !feed.inner.health.hydrated() {
        return Err(not_ready("not hydrated: the state is still being built".to_owned()));
    }
    let Some(age) = feed.inner.view.commit_age() else {
        return Err(not_ready("nothing has been committed yet".to_owned()));
    };
    let lag = feed.inner.view.status().lag_seconds.unwrap_or_default().max(age.as_secs_f64());
    let max = feed.inner.max_lag.as_secs_f64();
    if lag > max {
        return Err(not_ready(format!("the last commit is {lag:.1} s behind, {max:.1} s are allowed")));
    }
    Ok(Json(json!({ "status": "ready", "lag_seconds": lag })))
}

pub(super) async fn metrics(State(feed): State<Feed>, params: Params) -> Result<Response, Problem> {
    params.only(&[])?;
    let status = feed.inner.view.status();
    // Read at the scrape, so that a pipeline that has stopped shows a lag that grows.
    if let Some(lag) = status.lag_seconds {
        feed.inner.metrics.frontier_lag("published", lag);
    }
    feed.inner.metrics.tick_rate(status.tick_rate);
    let text = feed.inner.metrics.text();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

pub(super) async fn status(State(feed): State<Feed>, params: Params) -> Result<Json<Value>, Problem> {
    params.only(&[])?;
    let mut status = serde_json::to_value(feed.inner.view.status()).map_err(internal)?;
    status["deadline"] = deadline(&feed);
    status["heartbeat_age_seconds"] = json!(feed.inner.health.oldest().map(|(_, age)| age.as_secs_f64()));
    status["version"] = json!(env!("CARGO_PKG_VERSION"));
    Ok(Json(status))
}

pub(super) async fn symbols(State(feed): State<Feed>, params: Params) -> Result<Json<Value>, Problem> {
    params.only(&[])?;
    Ok(Json(json!({ "symbols": feed.inner.view.glances() })))
}

pub(super) async fn recommendations(State(feed): State<Feed>, params: Params) -> Result<Response, Problem> {
    params.only(&[])?;
    let rows = feed.inner.view.recommendations();
    answer(&feed, "recommendations", rows.iter().map(envelope))
}

pub(super) async fn recommendation(
    State(feed): State<Feed>,
    path: Symbols,
    params: Params,
) -> Result<Response, Problem> {
    params.only(&[])?;
    let symbol = known_symbol(&feed, &named(path)?)?;
    let entry = feed
        .inner
        .view
        .recommendation(symbol)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("no recommendation stands for {symbol} yet")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], envelope(&entry)).into_response())
}

pub(super) async fn verdicts(State(feed): State<Feed>, params: Params) -> Result<Response, Problem> {
    let params = params.only(&["account", "symbol"])?;
    let symbol = params.text("symbol").map(|text| known_symbol(&feed, text)).transpose()?;
    let account = params
        .text("account")
        .map(|text| feed.inner.view.account(text).ok_or_else(|| Problem::unknown("account", text)));
    let rows = feed.inner.view.verdicts(account.transpose()?, symbol);
    answer(&feed, "verdicts", rows.iter().map(envelope))
}

/// Bars with `from` ≤ open time < `to`: the first `limit` if there is a `from`, else the last.
pub(super) async fn bars(State(feed): State<Feed>, path: Symbols, params: Params) -> Result<Json<Value>, Problem> {
    let params = params.only(&["timeframe", "from", "to", "limit"])?;
    let limit = params.limit(BARS, MAX_BARS)?;
    let (from, to) = params.range()?;
    let timeframe = params.timeframe()?;
    let symbol = known_symbol(&feed, &named(path)?)?;
    let timeframes = feed.inner.view.timeframes(symbol);
    let Some(timeframe) = timeframe.or(timeframes.first().copied()) else {
        return Ok(Json(json!({ "symbol": symbol, "timeframe": null, "bars": [] })));
    };
    let (kept, more) = feed.inner.view.bars(symbol, timeframe, BARS);
    let oldest_kept = kept.first().map(|bar| bar.open_time);
    // The view has all that there is, or all from `from` on, or the last `limit`.
    let enough = !more || from.zip(oldest_kept).is_some_and(|(from, oldest)| from >= oldest);
    let enough = enough || (from.is_none() && to.is_none() && limit <= kept.len());
    let bars = match &feed.inner.store {
        Some(store) if !enough => store.bars(symbol, timeframe, from, to, limit).await.map_err(unavailable)?,
        _ => {
            let within = |time| from.is_none_or(|from| time >= from) && to.is_none_or(|to| time < to);
            let mut bars: Vec<_> = kept.into_iter().filter(|bar| within(bar.open_time)).collect();
            match from {
                Some(_) => bars.truncate(limit),
                None => drop(bars.drain(..bars.len().saturating_sub(limit))),
            }
            bars
        }
    };
    let rows: Vec<BarRow> = bars.iter().map(BarRow::from).collect();
    Ok(Json(json!({ "symbol": symbol, "timeframe": timeframe, "bars": rows })))
}

pub(super) async fn facts(State(feed): State<Feed>, path: Symbols, params: Params) -> Result<Json<Value>, Problem> {
    let params = params.only(&["account"])?;
    let symbol = known_symbol(&feed, &named(path)?)?;
    let account = params
        .text("account")
        .map(|text| feed.inner.view.account(text).ok_or_else(|| Problem::unknown("account", text)));
    let account = account.transpose()?;
    match feed.inner.facts.get() {
        Some(facts) => Ok(Json(facts(symbol, account))),
        None => Err(Problem::new(StatusCode::NOT_FOUND, "this feed has no facts")),
    }
}

/// A column to sort by, and whether less is better.
type Sort = (&'static str, bool);

pub(super) async fn backtest_metrics(
    State(feed): State<Feed>,
    path: Symbols,
    params: Params,
) -> Result<Json<Value>, Problem> {
    let params = params.only(&["sort", "window", "timeframe", "limit"])?;
    let window = params.choice("window", &[("30d", MetricsWindow::Days30), ("all", MetricsWindow::All)])?;
    let sorts: [(&str, Sort); 10] = [
        ("sharpe", ("sharpe", false)),
        ("total_return", ("total_return", false)),
        ("win_rate", ("win_rate", false)),
        ("max_drawdown", ("max_drawdown", true)),
        ("sortino", ("sortino", false)),
        ("calmar", ("calmar", false)),
        ("profit_factor", ("profit_factor", false)),
        ("expectancy", ("expectancy", false)),
        ("trades", ("trades", false)),
        ("cagr", ("cagr", false)),
    ];
    let (sort, less_is_better) = params.choice("sort", &sorts)?;
    let limit = params.limit(100, MAX_METRICS)?;
    let timeframe = params.timeframe()?;
    let symbol = known_symbol(&feed, &named(path)?)?;
    let mut rows: Vec<(Option<f64>, MetricsRow)> = feed
        .inner
        .view
        .metrics(symbol)
        .into_iter()
        .filter(|row| row.window == window && timeframe.is_none_or(|timeframe| timeframe == row.timeframe))
        .map(|row| (value(&row, sort), row))
        .collect();
    // Undefined comes last whichever way it is sorted; equals stay in the order of strategy and timeframe.
    rows.sort_by(|(a, _), (b, _)| match (a, b) {
        (Some(a), Some(b)) if less_is_better => a.total_cmp(b),
        (Some(a), Some(b)) => b.total_cmp(a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    });
    rows.truncate(limit);
    let rows: Vec<Value> = rows.iter().map(|(_, row)| metrics_json(row)).collect();
    Ok(Json(json!({ "symbol": symbol, "window": window.as_str(), "sort": sort, "metrics": rows })))
}

fn value(row: &MetricsRow, name: &str) -> Option<f64> {
    row.metrics.named().into_iter().find(|(n, _)| *n == name).and_then(|(_, value)| value)
}

pub(crate) fn metrics_json(row: &MetricsRow) -> Value {
    let mut json = json!({
        "strategy": row.strategy,
        "timeframe": row.timeframe,
        "window": row.window.as_str(),
        "as_of": format_rfc3339(row.as_of),
    });
    for (name, value) in row.metrics.named() {
        json[name] = json!(value);
    }
    json["bars"] = json!(row.metrics.bars);
    json["trades"] = json!(row.metrics.trades);
    json
}

/// Rows with what makes them safe to act on: the clock, and until when it may be trusted.
fn answer(feed: &Feed, name: &str, rows: impl Iterator<Item = String>) -> Result<Response, Problem> {
    let status = feed.inner.view.status();
    let rows: Result<Vec<Box<RawValue>>, _> = rows.map(RawValue::from_string).collect();
    let mut body = serde_json::Map::new();
    body.insert("generation".to_owned(), json!(status.generation));
    body.insert("epoch".to_owned(), json!(status.epoch));
    body.insert("last_seq".to_owned(), json!(status.last_seq));
    body.insert("now_ms".to_owned(), json!(status.now_ms));
    body.insert("deadline".to_owned(), deadline(feed));
    let head = serde_json::to_string(&body).map_err(internal)?;
    let rows = serde_json::to_string(&rows.map_err(internal)?).map_err(internal)?;
    // Rows are spliced in as they stand in the audit: their numbers keep their text.
    let body = format!("{},\"{name}\":{rows}}}", head.trim_end_matches('}'));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn deadline(feed: &Feed) -> Value {
    let deadline = feed.deadline().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    json!(deadline.and_then(|since| i64::try_from(since.as_nanos()).ok()).map(format_rfc3339))
}

fn named(path: Symbols) -> Result<String, Problem> {
    path.map(|Path(text)| text).map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))
}

fn known_symbol(feed: &Feed, text: &str) -> Result<Symbol, Problem> {
    feed.inner.view.symbol(text).ok_or_else(|| Problem::unknown("symbol", text))
}

fn unavailable(error: crate::StoreError) -> Problem {
    tracing::warn!(%error, "a query of the feed failed");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer; see the log")
}

fn internal(error: serde_json::Error) -> Problem {
    tracing::error!(%error, "an answer could not be written");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written; see the log")
}

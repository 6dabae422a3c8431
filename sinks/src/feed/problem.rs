//! Errors of the feed: `application/problem+json` (RFC 9457). `field` and `value` name what was wrong in a request.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use marea_model::cursor::excerpt;
use serde::Serialize;

/// An error, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    /// One sentence for people.
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Problem { kind: "about:blank", title, status: status.as_u16(), detail: detail.into(), field: None, value: None }
    }

    /// 400: `field` has a `value` that it must not have. `must` continues "`field` must".
    pub(crate) fn field(field: &str, value: &str, must: &str) -> Self {
        let value = excerpt(value);
        let problem = Problem::new(StatusCode::BAD_REQUEST, format!("{field} must {must}, not {value:?}"));
        Problem { field: Some(excerpt(field)), value: Some(value), ..problem }
    }

    /// 403: the request is meant for another host.
    pub(crate) fn foreign_host(host: &str) -> Self {
        let host = excerpt(host);
        let detail = format!("this feed is on loopback: host must be localhost or a loopback address, not {host:?}");
        let problem = Problem::new(StatusCode::FORBIDDEN, detail);
        Problem { field: Some("host".to_owned()), value: Some(host), ..problem }
    }

    /// 404: nothing of this kind has this name.
    pub(crate) fn unknown(kind: &str, name: &str) -> Self {
        let name = excerpt(name);
        let problem = Problem::new(StatusCode::NOT_FOUND, format!("unknown {kind} {name:?}"));
        Problem { field: Some(kind.to_owned()), value: Some(name), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

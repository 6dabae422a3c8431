//! The feed: REST, server-sent events, Prometheus and the page, on one loopback listener.
//!
//! ```text
//!  committer ──publish──► View (latest state) ──► /api/v1/…
//!                    └──► Hub (ring, broadcast) ─► /api/v1/stream
//!  workers ───beat──────► Health ───────────────► /health, /ready
//! ```
//!
//! 1. **Durable first**: only what is committed is published; every row carries generation, epoch and seq.
//! 2. **Fails closed**: the heartbeat's deadline is 5 s after the last commit. Past it, or when `now` reaches a
//!    verdict's `valid_until`, a reader must block; nothing here ever extends either.
//! 3. **Bounded**: bodies, queries, replays, queues and readers have limits; a reader that does not read is disconnected.
//! 4. **Local**: on loopback it answers only to loopback names, so that no web page reaches it by a name of its own that
//!    it has let resolve to 127.0.0.1 (DNS rebinding).
//! 5. Every error is problem+json and names the field and the value. No name that comes from outside is interned.

pub(crate) mod api;
mod guard;
mod health;
mod problem;
mod query;
pub(crate) mod stream;

pub use crate::view::Clock;
pub use health::{Health, WORKER_TIMEOUT};
pub use problem::Problem;

use crate::metrics::Metrics;
use crate::store::{AuditEntry, Committed, Reader};
use crate::view::{Corrections, View};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use guard::Guarded;
use marea_model::cursor::excerpt;
use marea_model::output::ClosedEpoch;
use marea_model::{AccountId, Epoch, Symbol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

/// The most bytes of a request's body; nothing here takes one.
const MAX_BODY: usize = 64 * 1024;
/// A write without progress for this long ends its connection.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// How long open requests have once the feed stops.
const GRACE: Duration = Duration::from_secs(2);

/// How a feed is set up.
pub struct FeedConfig {
    /// Which clock epochs follow.
    pub clock: Clock,
    /// How many workers beat.
    pub workers: usize,
    /// For bars older than the view's, and readers that resume. Without it they get what is in memory.
    pub store: Option<Reader>,
    /// `/ready` says no when the last commit is older, or further behind, than this.
    pub max_lag: Duration,
    /// When the live configuration was last known to be current; none: its source cannot fall silent.
    pub config_current: Option<ConfigCurrent>,
}

/// Tells when the live configuration was last known to be current; none: never yet.
pub type ConfigCurrent = Box<dyn Fn() -> Option<SystemTime> + Send + Sync>;

/// Tells what verdicts on a symbol, and of an account, are judged by right now: quote, policy, equity.
type Facts = Box<dyn Fn(Symbol, Option<AccountId>) -> serde_json::Value + Send + Sync>;

/// The feed. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    view: View,
    hub: stream::Hub,
    health: Health,
    metrics: Metrics,
    store: Option<Reader>,
    max_lag: Duration,
    config_current: Option<ConfigCurrent>,
    facts: OnceLock<Facts>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("view", &self.view).field("max_lag", &self.max_lag).finish_non_exhaustive()
    }
}

impl Feed {
    /// A feed that has nothing to say yet.
    pub fn new(config: FeedConfig, metrics: Metrics) -> Feed {
        let last_seq = config.store.as_ref().map_or(0, Reader::opened_at_seq);
        let inner = Inner {
            view: View::new(config.clock),
            hub: stream::Hub::new(last_seq),
            health: Health::new(config.workers),
            metrics,
            store: config.store,
            max_lag: config.max_lag,
            config_current: config.config_current,
            facts: OnceLock::new(),
        };
        Feed { inner: Arc::new(inner) }
    }

    /// Publishes committed epochs: to the view, to the stream, to the metrics. Empty ones too: they carry the
    /// heartbeat, so the committer must come by at least once a second.
    pub fn publish(&self, epochs: &[ClosedEpoch], committed: &Committed) {
        let corrections = self.inner.view.apply(epochs, committed);
        self.show(epochs, committed, corrections);
    }

    /// Publishes what was committed before the start, as it was computed once more. It is no commit: what was known of it
    /// then is all that is known now.
    pub fn recomputed(&self, closed: &ClosedEpoch, committed: &Committed) {
        let epochs = std::slice::from_ref(closed);
        let corrections = self.inner.view.recompute(epochs, committed);
        self.show(epochs, committed, corrections);
    }

    fn show(&self, epochs: &[ClosedEpoch], committed: &Committed, corrections: Corrections) {
        self.inner.hub.audit(&committed.audit, committed.last_seq);
        self.inner.view.follow(epochs);
        self.inner.metrics.committed(epochs, committed);
        self.inner.metrics.corrections("bars", corrections.base);
        self.inner.metrics.corrections("rollup", corrections.rolled_up);
        if let Some(lag) = self.inner.view.status().lag_seconds {
            self.inner.metrics.frontier_lag("published", lag);
        }
    }

    /// What stood before the start: recommendations and verdicts, which come from the audit otherwise. Before the first
    /// epochs are published.
    pub fn restore(&self, standing: &[AuditEntry]) {
        self.inner.view.restore(standing);
    }

    /// Until when what stands here may be acted on: [`HEARTBEAT`](crate::view::HEARTBEAT) after the last commit, or, if
    /// that is longer ago, after what it is as of (by the wall clock) or after the live configuration was last known to be
    /// current. None before the first commit of this process.
    pub fn deadline(&self) -> Option<SystemTime> {
        let (committed, epoch) = self.inner.view.last_commit()?;
        self.deadline_of(committed, epoch)
    }

    /// The same, of what was committed at that time up to that epoch.
    pub(crate) fn deadline_of(&self, committed: SystemTime, epoch: Epoch) -> Option<SystemTime> {
        health::deadline(committed, epoch, self.inner.view.clock(), self.inner.config_current.as_ref())
    }

    /// Answers `/api/v1/facts/{symbol}` with this. They are as of what was cut last, not of what was committed: for
    /// people who ask why, not for decisions. The first call counts.
    pub fn set_facts(&self, facts: impl Fn(Symbol, Option<AccountId>) -> serde_json::Value + Send + Sync + 'static) {
        let _ = self.inner.facts.set(Box::new(facts));
    }

    /// The workers' heartbeats, and whether the state is complete.
    pub fn health(&self) -> &Health {
        &self.inner.health
    }

    /// The latest state.
    pub fn view(&self) -> &View {
        &self.inner.view
    }

    /// The metrics that `/metrics` shows.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Serves until `stop` completes; then ends every stream and gives open requests two seconds.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let mut router = self.router();
        if listener.local_addr()?.ip().to_canonical().is_loopback() {
            router = router.layer(from_fn(local_host));
        }
        let router = router.layer(map_response(harden));
        let ticker = tokio::spawn(self.clone().tick());
        let (stopped, mut stopping) = tokio::sync::watch::channel(false);
        let feed = self.clone();
        let server = axum::serve(Guarded { listener, stall: WRITE_STALL }, router);
        let server = server.with_graceful_shutdown(async move {
            stop.await;
            feed.inner.hub.stop();
            stopped.send_replace(true);
        });
        let over = async {
            // An error means that the server has gone, and with it the sender.
            let _ = stopping.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(GRACE).await;
        };
        let served = tokio::select! {
            served = server.into_future() => served,
            () = over => Ok(()),
        };
        ticker.abort();
        served
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/", get(api::index))
            .route("/app.js", get(api::script))
            .route("/style.css", get(api::style))
            .route("/health", get(api::health))
            .route("/ready", get(api::ready))
            .route("/metrics", get(api::metrics))
            .route("/api/v1/status", get(api::status))
            .route("/api/v1/symbols", get(api::symbols))
            .route("/api/v1/recommendations", get(api::recommendations))
            .route("/api/v1/recommendations/{symbol}/latest", get(api::recommendation))
            .route("/api/v1/verdicts", get(api::verdicts))
            .route("/api/v1/bars/{symbol}", get(api::bars))
            .route("/api/v1/metrics/{symbol}", get(api::backtest_metrics))
            .route("/api/v1/facts/{symbol}", get(api::facts))
            .route("/api/v1/stream", get(stream::get))
            .fallback(not_found)
            .method_not_allowed_fallback(not_allowed)
            .layer(from_fn(no_body))
            .with_state(self.clone())
    }
}

async fn not_found(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("nothing is at {}", excerpt(uri.path())))
}

async fn not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} is not allowed at {}, only GET", excerpt(method.as_str()), excerpt(uri.path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Nothing here takes a body: one that is too large is 413 whatever the method, any other is 400 with GET.
async fn no_body(request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let too_large = || {
        let detail = format!("the body is larger than {MAX_BODY} bytes, and nothing here takes one");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    let body: Bytes = to_bytes(body, MAX_BODY).await.map_err(|_| too_large())?;
    if !body.is_empty() && parts.method == Method::GET {
        let detail = format!("GET takes no body, {} bytes came", body.len());
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    Ok(next.run(Request::from_parts(parts, Body::empty())).await)
}

/// Refuses requests for a host that is not this machine. A client without `Host` is no browser.
async fn local_host(request: Request, next: Next) -> Result<Response, Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()));
    if let Some(host) = hosts.find(|host| !is_local(host)) {
        return Err(Problem::foreign_host(&host));
    }
    Ok(next.run(request).await)
}

/// Whether a `Host` header, with or without a port, is `localhost` or a loopback address.
fn is_local(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ""),
    };
    let bare = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    let local = name.eq_ignore_ascii_case("localhost") || bare.is_some_and(|ip| ip.to_canonical().is_loopback());
    local && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// What every answer carries: it is fresh, is what it says, and may load and frame nothing from elsewhere.
async fn harden(response: Response) -> Response {
    let mut response = response.into_response();
    let headers = response.headers_mut();
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        let local = "localhost|LocalHost|localhost:8080|localhost:|127.0.0.1|127.0.0.1:8080|127.8.9.1|[::1]|[::1]:8080|\
                     [::ffff:127.0.0.1]:1";
        let foreign = "|:80|x|marea.example|marea.example:8080|localhost.evil.example|127.0.0.1.evil.example|evil.localhost|\
                       localhost:8080:evil|localhost:evil|192.168.0.7|0.0.0.0:8080|2130706433|[::]|[::1|[fe80::1]:80|::1|\
                       [localhost]|[127.0.0.1]|user@localhost|localhost, evil|\u{fffd}";
        for (hosts, expected) in [(local, true), (foreign, false)] {
            for host in hosts.split('|') {
                assert_eq!(is_local(host), expected, "{host:?}");
            }
        }
    }
}

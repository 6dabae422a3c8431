//! The feed over a real socket: answers, errors with their exact texts, the stream and its resumption.

use crate::fixture::*;
use marea_model::output::{ClosedEpoch, MetricsWindow, Totals};
use marea_model::recommendation::Action;
use marea_model::time::SECOND;
use marea_model::{BlockReason, Output, Timeframe};
use marea_sinks::store::Ledger;
use marea_sinks::{Clock, Feed, FeedConfig, Metrics, Store};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

struct Served {
    feed: Feed,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn serve(store: Option<&Store>) -> Served {
    let store = store.map(Store::reader);
    let config =
        FeedConfig { clock: Clock::Event, workers: 2, store, max_lag: Duration::from_secs(5), config_current: None };
    let feed = Feed::new(config, Metrics::new("0.1.0", "file"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(feed.clone().serve(listener, async { drop(stopped.await) }));
    Served { feed, address, stop: Some(stop), server }
}

fn market(epoch: u64) -> ClosedEpoch {
    let mut changes = Vec::new();
    for i in 0..5 {
        changes.push(up(Output::Bar(bar(
            "IBM",
            Timeframe::M1,
            OPEN + i * 60 * SECOND,
            [18_190, 18_215, 18_190, 18_200 + i],
            2,
        ))));
    }
    changes.push(up(Output::Bar(bar("EUR/USD", Timeframe::M5, OPEN, [1_084_275; 4], 6))));
    for (strategy, sharpe) in [("a", Some(0.5)), ("b", None), ("c", Some(2.0))] {
        changes.push(up(Output::Metrics(Box::new(metrics("IBM", strategy, MetricsWindow::Days30, sharpe)))));
    }
    changes.push(up(recommended(recommendation("IBM", Action::Buy, 18_204, 2))));
    changes.push(up(judged(verdict("M1", "IBM", vec![]))));
    changes.push(up(judged(verdict("M2", "IBM", vec![BlockReason::NoTradeWindow]))));
    let mut closed = closed(epoch, changes);
    closed.totals = Totals { records_in: 9, accepted: 8, duplicate: 1, ..Totals::default() };
    closed
}

fn publish(feed: &Feed, ledger: &mut Ledger, epochs: &[ClosedEpoch]) {
    let committed = ledger.commit(epochs).unwrap();
    feed.publish(epochs, &committed);
}

/// Sends raw bytes and reads the whole answer: status, head, body.
async fn raw(address: SocketAddr, request: Vec<u8>) -> (u16, String, String) {
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may answer and close before it has read all.
        let _ = stream.write_all(&request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    })
    .await
    .unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    raw(address, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes()).await
}

async fn json_at(address: SocketAddr, path: &str) -> Value {
    let (status, head, body) = get(address, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_what_is_wrong() {
    let mut served = serve(None).await;
    publish(&served.feed, &mut Ledger::new(1), &[market(epoch_at(0))]);
    let long = "x".repeat(300);
    let cases = [
        ("/api/v1/bars/IBM?limit=-1", 400, "limit must be a whole number from 1 to 5000, not \"-1\""),
        ("/api/v1/bars/IBM?limit=0", 400, "limit must be a whole number from 1 to 5000, not \"0\""),
        (
            "/api/v1/bars/IBM?limit=99999999999999999999",
            400,
            "limit must be a whole number from 1 to 5000, not \"99999999999999999999\"",
        ),
        ("/api/v1/bars/IBM?from=2&to=1", 400, "from must not be after to, \"1\", not \"2\""),
        (
            "/api/v1/bars/IBM?from=2013-10-07T13:30:00",
            400,
            "from must be an RFC 3339 time with a zone, or nanoseconds since 1970, not \"2013-10-07T13:30:00\"",
        ),
        ("/api/v1/bars/IBM?timeframe=7m", 400, "timeframe must be a length such as 1m, 5m or 1h, not \"7m\""),
        ("/api/v1/bars/IBM?depth=9", 400, "unknown parameter \"depth\"; known here: timeframe, from, to, limit"),
        ("/api/v1/status?x=1", 400, "unknown parameter \"x\"; known here: there are none"),
        ("/api/v1/bars/IBM?limit=1&limit=2", 400, "limit must be given once, not \"2\""),
        ("/api/v1/bars/XYZ", 404, "unknown symbol \"XYZ\""),
        ("/api/v1/bars/%00%0A", 404, "unknown symbol \"\\\\u{0}\\\\n\""),
        ("/api/v1/bars/%FF", 400, "Invalid URL: Invalid UTF-8 in `symbol`"),
        ("/api/v1/recommendations/XYZ/latest", 404, "unknown symbol \"XYZ\""),
        ("/api/v1/recommendations/eur%2Fusd/latest", 404, "no recommendation stands for EUR/USD yet"),
        ("/api/v1/verdicts?symbol=XYZ", 404, "unknown symbol \"XYZ\""),
        ("/api/v1/verdicts?account=nobody", 404, "unknown account \"nobody\""),
        (
            "/api/v1/metrics/IBM?sort=luck",
            400,
            "sort must be one of sharpe, total_return, win_rate, max_drawdown, sortino, calmar, profit_factor, \
             expectancy, trades, cagr, not \"luck\"",
        ),
        ("/api/v1/metrics/IBM?window=7d", 400, "window must be one of 30d, all, not \"7d\""),
        ("/api/v1/stream?after=abc", 400, "after must be the id of an event, such as 1381152600000-7, not \"abc\""),
        ("/api/v2/bars", 404, "nothing is at /api/v2/bars"),
    ];
    for (path, status, detail) in cases {
        let (found, head, body) = get(served.address, path).await;
        let problem: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
        assert_eq!((found, problem["detail"].as_str().unwrap()), (status, detail), "{path}");
        assert_eq!(problem["status"], status);
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    }
    let (_, _, body) = get(served.address, &format!("/api/v1/bars/{long}")).await;
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["value"].as_str().unwrap().len(), 64, "64 bytes at most");

    let with_body = |method: &str, body: &str| {
        format!(
            "{method} /api/v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let deep = "[".repeat(10_000);
    let chunked = format!(
        "GET /api/v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        format!("4000\r\n{}\r\n", "x".repeat(0x4000)).repeat(5)
    );
    let too_large = "the body is larger than 65536 bytes, and nothing here takes one";
    let requests = [
        (with_body("POST", ""), 405, "POST is not allowed at /api/v1/status, only GET"),
        (with_body("DELETE", ""), 405, "DELETE is not allowed at /api/v1/status, only GET"),
        (with_body("GET", &deep), 400, "GET takes no body, 10000 bytes came"),
        (with_body("GET", &"x".repeat(70_000)), 413, too_large),
        (with_body("POST", &"x".repeat(70_000)), 413, too_large),
        (chunked, 413, too_large),
    ];
    for (request, status, detail) in requests {
        let (found, head, body) = raw(served.address, request.into_bytes()).await;
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((found, problem["detail"].as_str().unwrap()), (status, detail));
        assert_eq!(head.contains("allow: get, head"), status == 405, "{head}");
    }
    served.stop.take().unwrap().send(()).unwrap();
    served.server.await.unwrap().unwrap();
}

/// A web page whose name was made to resolve to 127.0.0.1 says its own name.
#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_only_loopback_names_are_answered() {
    let served = serve(None).await;
    let at = served.address;
    let port = at.port();
    let ask = async |path: &str, version: &str, host: &str| {
        let request = format!("GET {path} HTTP/{version}\r\n{host}connection: close\r\n\r\n");
        raw(at, request.into_bytes()).await
    };
    let own = [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")];
    for host in own {
        assert_eq!(ask("/health", "1.1", &format!("host: {host}\r\n")).await.0, 200, "{host}");
    }
    assert_eq!(ask("/health", "1.0", "").await.0, 200, "HTTP/1.0 without a host");
    for path in ["/", "/api/v1/stream", "/nowhere"] {
        for (headers, named) in [
            ("host: evil.example:8080\r\n", "evil.example:8080"),
            ("host: localhost\r\nhost: evil.example\r\n", "evil.example"),
        ] {
            let (status, head, body) = ask(path, "1.1", headers).await;
            let problem: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
            let detail =
                format!("this feed is on loopback: host must be localhost or a loopback address, not \"{named}\"");
            assert_eq!((status, problem["detail"].as_str().unwrap()), (403, detail.as_str()), "{path}");
            assert_eq!((&problem["field"], &problem["value"]), (&json!("host"), &json!(named)));
            assert!(head.contains("content-type: application/problem+json"), "{head}");
            assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_was_committed() {
    let served = serve(None).await;
    let at = served.address;
    let (status, _, body) = get(at, "/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("not hydrated: the state is still being built"), "{body}");
    served.feed.health().set_hydrated(true);
    assert!(get(at, "/ready").await.2.contains("nothing has been committed yet"));
    publish(&served.feed, &mut Ledger::new(3), &[market(epoch_at(0))]);
    assert_eq!(json_at(at, "/ready").await["status"], "ready");
    assert_eq!(json_at(at, "/health").await["status"], "ok");

    let recommendation = json_at(at, "/api/v1/recommendations/ibm/latest").await;
    assert_eq!(recommendation["seq"], 1);
    assert_eq!(recommendation["generation"], 3);
    assert_eq!(recommendation["epoch"], epoch_at(0));
    assert_eq!(recommendation["recommendation"]["action"], "BUY");
    let all = json_at(at, "/api/v1/recommendations").await;
    assert_eq!(all["recommendations"], json!([recommendation]));
    assert_eq!(all["now_ms"], OPEN / 1_000_000);
    assert!(all["deadline"].as_str().unwrap().ends_with('Z'));

    let verdicts = json_at(at, "/api/v1/verdicts?account=M2&symbol=IBM").await;
    assert_eq!(verdicts["verdicts"].as_array().unwrap().len(), 1);
    let verdict = &verdicts["verdicts"][0];
    assert_eq!((&verdict["account"], &verdict["verdict"]["allow"]), (&json!("M2"), &json!(false)));
    assert_eq!(verdict["verdict"]["reasons"], json!(["NO_TRADE_WINDOW"]));
    assert_eq!(json_at(at, "/api/v1/verdicts?symbol=eur/usd").await["verdicts"], json!([]));

    let bars = json_at(at, "/api/v1/bars/IBM?timeframe=1m&limit=2").await;
    assert_eq!(bars["bars"].as_array().unwrap().len(), 2);
    assert_eq!(bars["bars"][1]["close"], 182.04);
    assert_eq!(bars["bars"][1]["volume"], 100.0);
    let range = format!("/api/v1/bars/IBM?from={}&to=2013-10-07T13:33:00Z", OPEN + 60 * SECOND);
    let closes: Vec<f64> =
        json_at(at, &range).await["bars"].as_array().unwrap().iter().map(|b| b["close"].as_f64().unwrap()).collect();
    assert_eq!(closes, [182.01, 182.02]);
    assert_eq!(json_at(at, "/api/v1/bars/EUR%2FUSD").await["timeframe"], "5m", "the shortest there is");

    let order = async |query: &str| {
        let answer = json_at(at, &format!("/api/v1/metrics/IBM?{query}")).await;
        let rows = answer["metrics"].as_array().unwrap().clone();
        rows.iter().map(|row| row["strategy"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(order("sort=sharpe").await, ["c", "a", "b"], "undefined last");
    assert_eq!(order("sort=max_drawdown&limit=2").await, ["a", "b"], "equals by name");
    assert_eq!(order("window=all").await, [""; 0]);

    let symbols = json_at(at, "/api/v1/symbols").await;
    let ibm = &symbols["symbols"][1];
    assert_eq!((&ibm["symbol"], &ibm["price"], &ibm["reference"]), (&json!("IBM"), &json!(182.04), &json!(181.9)));
    let status = json_at(at, "/api/v1/status").await;
    assert_eq!(status["totals"]["records_in"], 9);
    assert_eq!(status["balanced"], true);
    let (_, head, metrics) = get(at, "/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(metrics.contains("marea_records_total{outcome=\"in\"} 9"), "{metrics}");
    assert!(metrics.contains("marea_blocked_verdicts_total{reason=\"NO_TRADE_WINDOW\"} 1"), "{metrics}");
    for (path, kind, part) in [
        ("/", "text/html", "<title>marea</title>"),
        ("/app.js", "text/javascript", "\"use strict\""),
        ("/style.css", "text/css", "prefers-color-scheme: light"),
    ] {
        let (status, head, body) = get(at, path).await;
        assert_eq!(status, 200);
        assert!(head.contains(kind) && head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(body.contains(part));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn corrections_of_closed_bars_are_counted() {
    let served = serve(None).await;
    let mut ledger = Ledger::new(1);
    publish(&served.feed, &mut ledger, &[market(1)]);
    let corrected = bar("IBM", Timeframe::M1, OPEN, [18_190, 18_215, 18_000, 18_200], 2);
    publish(&served.feed, &mut ledger, &[closed(2, vec![up(Output::Bar(corrected))])]);
    let text = served.feed.metrics().text();
    assert!(text.contains("marea_corrections_total{stage=\"bars\"} 1"), "{text}");
    assert!(text.contains("marea_corrections_total{stage=\"rollup\"} 0"), "{text}");
}

/// One connection to the stream: events as (event, id, data).
struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    fn open(address: SocketAddr, headers: &str) -> Events {
        Events::open_at(address, "", headers)
    }

    fn open_at(address: SocketAddr, query: &str, headers: &str) -> Events {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET /api/v1/stream{query} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").unwrap();
        let mut events = Events { lines: BufReader::new(stream) };
        while !events.line().unwrap().is_empty() {}
        events
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event; none when the stream ends. Lines of chunk sizes have no colon.
    fn next(&mut self) -> Option<(String, Option<String>, Value)> {
        let (mut event, mut id, mut data) = (String::new(), None, None);
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                Some(("event", name)) => event = name.to_owned(),
                Some(("id", text)) => id = Some(text.to_owned()),
                Some(("data", json)) => data = Some(serde_json::from_str(json).unwrap()),
                _ => {}
            }
            if line.is_empty()
                && let Some(data) = data.take()
            {
                return Some((event, id, data));
            }
        }
    }

    /// The next events that are not told once a second.
    fn audit(&mut self, n: usize) -> Vec<(String, String)> {
        let mut found = Vec::new();
        while found.len() < n {
            let (event, id, _) = self.next().expect("the stream goes on");
            if let Some(id) = id {
                found.push((event, id));
            }
        }
        found
    }
}

fn flip(epoch: u64) -> ClosedEpoch {
    let reasons = if epoch.is_multiple_of(2) { vec![] } else { vec![BlockReason::QuoteStale] };
    closed(epoch, vec![up(judged(verdict("M1", "IBM", reasons)))])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_resumes_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marea.db");
    let mut store = Store::open(&path).await.unwrap();
    for epoch in 1..=5 {
        store.commit(&[flip(epoch)]).await.unwrap();
    }
    store.close().await.unwrap();
    // A new process: its ring is empty, the store has seqs 1 to 5.
    let mut store = Store::open(&path).await.unwrap();
    let mut served = serve(Some(&store)).await;
    let address = served.address;
    let opened = move |id: String, n: usize| {
        let header = format!("last-event-id: {id}\r\n");
        tokio::task::spawn_blocking(move || Events::open(address, &header).audit(n))
    };
    let started = served.feed.view().status().started_ms;
    let id = move |seq: u64| format!("{started}-{seq}");
    let verdict = |seq: u64| ("verdict".to_owned(), id(seq));
    assert_eq!(opened(id(2), 3).await.unwrap(), [verdict(3), verdict(4), verdict(5)], "from the store");
    let commit = async |store: &mut Store, epoch: u64| {
        let epochs = [flip(epoch)];
        let committed = store.commit(&epochs).await.unwrap();
        served.feed.publish(&epochs, &committed);
    };
    commit(&mut store, 6).await;
    commit(&mut store, 7).await;
    assert_eq!(opened(id(5), 2).await.unwrap(), [verdict(6), verdict(7)], "from the ring");
    assert_eq!(opened(id(4), 3).await.unwrap(), [verdict(5), verdict(6), verdict(7)], "from both");
    let header = format!("last-event-id: {}\r\n", id(4));
    let order = tokio::task::spawn_blocking(move || {
        let mut events = Events::open(address, &header);
        (0..4).map(|_| events.next().unwrap().0).collect::<Vec<_>>()
    });
    let order = order.await.unwrap();
    assert_eq!(order, ["verdict", "verdict", "verdict", "heartbeat"], "no deadline of now before what is past");
    // Ahead, no id, a seq without its process, and one of another process, whose store may be another.
    let another = format!("{}-5", started - 1);
    for unknown in [id(99), "never".to_owned(), "5".to_owned(), another.clone(), format!("{started}-"), id(5) + "-5"] {
        assert_eq!(opened(unknown.clone(), 1).await.unwrap(), [("reset".to_owned(), id(7))], "{unknown}");
    }
    let (path, foreign) = (format!("after={}", id(6)), format!("after={another}"));
    for (query, expected) in [(path, verdict(7)), (foreign, ("reset".to_owned(), id(7)))] {
        let found = tokio::task::spawn_blocking(move || Events::open_at(address, &format!("?{query}"), "").audit(1));
        assert_eq!(found.await.unwrap(), [expected]);
    }
    // Live: what is published after the connection arrives once, beside the heartbeat and the bars.
    let live = tokio::task::spawn_blocking(move || {
        let mut events = Events::open(address, &format!("last-event-id: {}\r\n", id(7)));
        let heartbeat = events.next().unwrap();
        (heartbeat, events.audit(2))
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    commit(&mut store, 8).await;
    commit(&mut store, 9).await;
    let ((event, id, data), audit) = live.await.unwrap();
    assert_eq!((event.as_str(), id), ("heartbeat", None), "at once, so that a reader knows its deadline");
    let deadline = data["deadline_ms"].as_u64().unwrap();
    assert!(deadline <= data["sent_ms"].as_u64().unwrap() + 5_000, "never more than 5 s ahead");
    assert_eq!(data["status"]["generation"], 2);
    assert_eq!(data["status"]["started_ms"], started, "another one: another process");
    assert_eq!(audit, [verdict(8), verdict(9)]);
    // A stop ends open streams at once.
    let open = tokio::task::spawn_blocking(move || {
        let mut events = Events::open(address, "");
        while events.next().is_some() {}
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let asked = Instant::now();
    served.stop.take().unwrap().send(()).unwrap();
    served.server.await.unwrap().unwrap();
    open.await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn bars_are_streamed_and_the_heartbeat_follows_the_commit() {
    let served = serve(None).await;
    let address = served.address;
    let silent = tokio::task::spawn_blocking(move || Events::open(address, "").next().unwrap());
    assert_eq!(silent.await.unwrap().2["deadline_ms"], Value::Null, "nothing committed: block");
    let reader = tokio::task::spawn_blocking(move || {
        let mut events = Events::open(address, "");
        loop {
            let (event, id, data) = events.next().unwrap();
            if event == "bars" {
                return (id, data);
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    publish(&served.feed, &mut Ledger::new(1), &[market(1)]);
    let (id, data) = reader.await.unwrap();
    assert_eq!(id, None);
    assert_eq!(data["bars"].as_array().unwrap().len(), 6);
    assert_eq!(data["bars"][0]["symbol"], "EUR/USD");
}

/// A reader that opens the stream and never reads: its queue overflows, and its connection is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_is_disconnected() {
    let served = serve(None).await;
    let mut ledger = Ledger::new(1);
    publish(&served.feed, &mut ledger, &[market(1)]);
    let address = served.address;
    let mut slow = tokio::task::spawn_blocking(move || Events::open(address, "")).await.unwrap();
    let begun = Instant::now();
    let mut epoch = 2;
    // Far more than the sockets' buffers and the queue hold.
    while begun.elapsed() < Duration::from_secs(2) {
        let epochs: Vec<ClosedEpoch> = (epoch..epoch + 50).map(flip).collect();
        epoch += 50;
        publish(&served.feed, &mut ledger, &epochs);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = tokio::task::spawn_blocking(move || {
        let mut events = 0_u64;
        let mut line = String::new();
        // Reads what had been sent; then the end, or a connection that was reset.
        while slow.lines.read_line(&mut line).is_ok_and(|n| n > 0) {
            events += u64::from(line.starts_with("event: verdict"));
            line.clear();
        }
        events
    });
    let received = tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the stream ends").unwrap();
    assert!(received < epoch, "{received} of {epoch}");
}

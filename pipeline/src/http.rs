//! A GET of JSON from the feed: all that `marea explain` needs of HTTP.

use marea_model::cursor::excerpt;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long to wait for a connection, and for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A longer answer is not the feed's.
const MAX_ANSWER: u64 = 64 << 20;

/// `http://host:port`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    host: String,
    port: u16,
}

impl Url {
    /// Reads `http://host[:port][/]`.
    pub fn parse(text: &str) -> Result<Url, String> {
        let error = || format!("--url: {:?} must be http://HOST:PORT, the address of a feed", excerpt(text));
        let rest = text.strip_prefix("http://").ok_or_else(error)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| error())?),
            _ => (rest, 80),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        if host.is_empty() || !host.bytes().all(plain) || host.contains(':') != host.starts_with('[') {
            return Err(error());
        }
        Ok(Url { host: host.to_owned(), port })
    }
}

/// An answer.
pub struct Answer {
    status: u16,
    body: Value,
    /// What a problem says.
    pub detail: String,
}

impl Answer {
    /// The body, if the answer was 200.
    pub fn ok(&self) -> Option<&Value> {
        (self.status == 200).then_some(&self.body)
    }
}

/// Gets `path`. An answer that is no HTTP or no JSON is an error.
pub fn get(url: &Url, path: &str) -> Result<Answer, String> {
    let place = format!("http://{}:{}", url.host, url.port);
    let nobody = |e: std::io::Error| {
        format!("{place}: nobody answers ({e}); is marea running? --store and --files explain without it")
    };
    let bare_host = url.host.trim_start_matches('[').trim_end_matches(']');
    let address = (bare_host, url.port).to_socket_addrs().map_err(nobody)?.next();
    let address = address.ok_or_else(|| format!("{place}: the host has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(nobody)?;
    let exchanged = (|| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (host, port) = (&url.host, url.port);
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\naccept: application/json\r\nconnection: close\r\n\r\n"
        )?;
        let mut bytes = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut bytes)?;
        Ok(bytes)
    })();
    let bytes: Vec<u8> = exchanged.map_err(nobody)?;
    answer(&bytes).ok_or_else(|| format!("{place}{path}: the answer is not that of a feed"))
}

fn answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let status: u16 = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    let body: Value = serde_json::from_slice(&bytes[end + 4..]).ok().or((status != 200).then_some(Value::Null))?;
    let detail = body["detail"].as_str().map_or_else(|| format!("the feed answers {status}"), str::to_owned);
    Some(Answer { status, body, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_refused() {
        for text in [
            "",
            "127.0.0.1:8000",
            "ftp://x",
            "https://x",
            "http://",
            "http://x:99999",
            "http://a b",
            "http://x/y",
            "http://:80",
        ] {
            assert_eq!(
                Url::parse(text).unwrap_err(),
                format!("--url: {text:?} must be http://HOST:PORT, the address of a feed")
            );
        }
        let url = |host: &str, port| Ok(Url { host: host.to_owned(), port });
        assert_eq!(Url::parse("http://127.0.0.1:8000/"), url("127.0.0.1", 8000));
        assert_eq!(Url::parse("http://desk"), url("desk", 80));
        assert_eq!(Url::parse("http://[::1]:9"), url("[::1]", 9));
    }

    #[test]
    fn an_answer_is_its_status_and_its_json() {
        let ok = answer(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").unwrap();
        assert_eq!(ok.ok().unwrap()["a"], 1);
        let problem = answer(b"HTTP/1.1 404 Not Found\r\n\r\n{\"detail\":\"unknown symbol\"}").unwrap();
        assert!(problem.ok().is_none());
        assert_eq!(problem.detail, "unknown symbol");
        for bytes in [&b""[..], b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>"] {
            assert!(answer(bytes).is_none());
        }
    }

    #[test]
    fn nobody_there_is_said() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = get(&Url::parse(&format!("http://127.0.0.1:{closed}")).unwrap(), "/").err().unwrap();
        assert!(error.contains("nobody answers") && error.contains("is marea running?"), "{error}");
    }
}

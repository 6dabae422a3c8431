//! Ports, and the few bytes over TCP that tell whether a server is ready.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::ServerError;

const CONNECT: Duration = Duration::from_millis(500);

// Below the ports that systems give to outgoing connections: a restarted server must find its own free.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Random bits, good enough for names and ports.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Ports of loopback that are free now.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N], ServerError> {
    let mut ports = [0; N];
    let mut held = Vec::with_capacity(N);
    let mut last = io::Error::other("none tried");
    for _ in 0..1_000 {
        let port = PORTS.start + u16::try_from(random() % PORTS.len() as u64).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => {
                ports[held.len()] = port;
                held.push(listener);
            }
            Err(error) => last = error,
        }
        if held.len() == N {
            return Ok(ports);
        }
    }
    Err(ServerError::Ports(last))
}

/// A connection, with time limits on everything that is done with it.
pub(crate) fn connect(address: &str, wait: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such address");
    // A name may stand for several addresses, of which a server listens on one.
    for address in address.to_socket_addrs()?.collect::<Vec<SocketAddr>>() {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(wait))?;
                stream.set_write_timeout(Some(wait))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends bytes and gives the first that come back.
pub(crate) fn greet(address: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(address, CONNECT)?;
    stream.write_all(bytes)?;
    let mut answer = vec![0; 512];
    let length = stream.read(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// One HTTP request, in the old protocol that needs no parsing: status and body.
pub(crate) fn http(
    address: &str,
    method: &str,
    path: &str,
    login: Option<(&str, &str)>,
    body: &str,
) -> io::Result<(u16, String)> {
    let mut stream = connect(address, Duration::from_secs(10))?;
    let login = login.map_or_else(String::new, |(user, password)| {
        format!("Authorization: Basic {}\r\n", base64(format!("{user}:{password}").as_bytes()))
    });
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{login}Content-Type: application/json\r\n");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP status"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_string()))
}

/// Whether a GET is answered by 200 and a body that contains the text.
pub(crate) fn http_says(address: &str, path: &str, text: &str) -> bool {
    http(address, "GET", path, None, "").is_ok_and(|(status, body)| status == 200 && body.contains(text))
}

/// A name as one segment of a URL's path.
pub(crate) fn percent(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= three.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{base64, free_ports, percent};

    #[test]
    fn base64_of_every_length() {
        for (bytes, text) in [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("test:test", "dGVzdDp0ZXN0")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_path_segment_is_percent_encoded() {
        assert_eq!(percent("a/b c-ä"), "a%2Fb%20c-%C3%A4");
    }

    #[test]
    fn ports_differ() {
        let [a, b, c] = free_ports::<3>().unwrap();
        assert!(a != b && b != c && a != c);
    }
}
